//! Images that are regular files or block devices.
//!
//! Metadata goes through the page cache on one descriptor, data through another one, with O_DIRECT
//! where the file system has it. The two never name the same bytes, so the cache of the one cannot
//! go stale under the other.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use log::{info, warn};

use super::Medium;
use super::channel::{Data, FileStore, keep_ring};
use super::double::{self, DoubleArea};
use super::open::{Access, OpenError, Opened};
use super::sys;

/// How much of a block device must be zero for [`FileMedium::create`] to take it without force:
/// partition tables, file systems, LUKS and this crate's own header all begin inside of it.
const PROBE_LEN: usize = 64 << 10;

/// How data gets to the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// Past the host's page cache (O_DIRECT) where the file system can, through it elsewhere.
    Direct,
    /// Through the host's page cache.
    Writeback,
}

/// An image in a regular file or on a block device.
///
/// Opening takes two steps, since the block size stands in the header: [`FileMedium::open`] gives
/// access to the metadata (and to data through the page cache), [`FileMedium::enable_data`] then
/// chooses the way of the data.
#[derive(Debug)]
pub struct FileMedium {
    opened: Opened,
    data: Arc<Data>,
    keeps_space: bool,
    double: Option<DoubleArea>,
}

impl FileMedium {
    /// Opens an existing image. To change it takes the lock of the image, and waits for writes
    /// that a killed process left in flight.
    ///
    /// # Errors
    /// [`OpenError::InUse`] if another opener may change it, [`OpenError::NotAnImage`] for what is
    /// neither file nor block device, else [`OpenError::Io`].
    pub fn open(path: &Path, access: Access) -> Result<Self, OpenError> {
        Self::over(Opened::existing(path, access)?)
    }

    /// Makes an image of `len` bytes, all zero, open for change.
    ///
    /// A regular file is sparse, of exactly that length and, if it is new, readable by its owner
    /// only. One that exists and is not empty is refused unless `force` is given, which discards
    /// its content. A block device must have `len` bytes or more, and needs `force` if there is
    /// anything in its first 64 KiB; its content stays (the caller overwrites what it relies on).
    ///
    /// # Errors
    /// [`OpenError::Occupied`], [`OpenError::TooSmall`], and those of [`FileMedium::open`].
    pub fn create(path: &Path, len: u64, force: bool) -> Result<Self, OpenError> {
        if let Some(opened) = Opened::new(path)? {
            return Self::fill_new(opened, len).inspect_err(|_| {
                // Nobody had anything there before; the first error is the one worth telling.
                let _ = std::fs::remove_file(path);
            });
        }
        let medium = Self::open(path, Access::ReadWrite)?;
        if medium.opened.block_device {
            medium.take_device(len, force)?;
        } else {
            medium.take_file(len, force)?;
        }
        Ok(medium)
    }

    /// Chooses the way of the data: offsets and lengths of operations will be multiples of
    /// `block` bytes (512 or 4096). Where O_DIRECT demands more than that, or is not to be had,
    /// the page cache it is. What was chosen is logged.
    ///
    /// Stores that are open already keep the old way.
    ///
    /// # Errors
    /// [`OpenError::Replaced`] if the path names another file by now, else [`OpenError::Io`].
    pub fn enable_data(&mut self, cache: Cache, block: u64) -> Result<(), OpenError> {
        let direct = match cache {
            Cache::Direct => self.opened.direct_data(block)?,
            Cache::Writeback => None,
        };
        let path = self.opened.path.display();
        let mut data = match direct {
            Some(data) => {
                let unit = data.alignment();
                info!("{path}: direct I/O in units of {unit} bytes");
                data
            }
            None => self.mapped_or_cached()?,
        };
        if self.keeps_space {
            data.keep_space();
        }
        self.data = Arc::new(data);
        Ok(())
    }

    /// What is deallocated keeps its space from the next [`FileMedium::enable_data`] on: deallocations do
    /// nothing. For images whose space was reserved.
    pub fn keep_space(&mut self) {
        self.keeps_space = true;
    }

    /// From the next [`FileMedium::enable_data`] on blocks may be written in place by way of `area`, where that
    /// is faster. What a killed process has left there is finished first.
    ///
    /// # Errors
    /// [`OpenError::Io`] if that fails.
    pub fn write_in_place_by(&mut self, area: DoubleArea) -> Result<(), OpenError> {
        let path = self.opened.path.display();
        let file = &self.opened.meta;
        if self.opened.is_writable() {
            let len = self.size().map_err(self.opened.cannot("examine"))?;
            let finished = double::finish(file, area, len);
            match finished.map_err(self.opened.cannot("finish the last writes of"))? {
                0 => {}
                1 => info!("{path}: finished the last write of a daemon that was killed"),
                pages => info!("{path}: finished {pages} writes of a daemon that was killed"),
            }
            self.double = Some(area);
        } else if double::is_unfinished(file, area).map_err(self.opened.cannot("read"))? {
            warn!(
                "{path}: a daemon was killed while it wrote in place, and a block may be half written: \
                 serve the image once without --read-only, which finishes it"
            );
        }
        Ok(())
    }

    /// The way through the page cache, or past its system calls where the file is nothing else.
    fn mapped_or_cached(&self) -> Result<Data, OpenError> {
        let path = self.opened.path.display();
        let mut data = self.opened.cached_data()?;
        let len = self.size().map_err(self.opened.cannot("examine"))?;
        // It works without as well.
        if let Err(e) = data.map(len, self.opened.is_writable()) {
            info!("{path}: cannot be mapped: {e}");
        }
        let doubled = self.double.map(|area| data.write_twice(area.offset));
        if let Some(Err(e)) = doubled {
            info!("{path}: blocks in place are written through the descriptor: {e}");
        }
        match data.is_mapped() {
            true => info!("{path}: it lives in memory, and is mapped"),
            false => info!("{path}: data goes through the host's page cache"),
        }
        Ok(data)
    }

    /// Whether data bypasses the host's page cache.
    pub fn is_direct(&self) -> bool {
        self.data.is_direct()
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.opened.path
    }

    /// Whether it is a block device (else a regular file).
    pub fn is_block_device(&self) -> bool {
        self.opened.block_device
    }

    /// Opens a channel that does everything at once inside of `submit`, as where the host has no
    /// io_uring.
    pub fn open_synchronous(&self, depth: u32) -> FileStore {
        FileStore::synchronous(Arc::clone(&self.data), depth)
    }

    fn over(opened: Opened) -> Result<Self, OpenError> {
        let data = Arc::new(opened.cached_data()?);
        Ok(Self {
            opened,
            data,
            keeps_space: false,
            double: None,
        })
    }

    fn fill_new(opened: Opened, len: u64) -> Result<Self, OpenError> {
        opened.meta.set_len(len).map_err(opened.cannot("size"))?;
        opened.meta.sync_all().map_err(opened.cannot("sync"))?;
        sync_directory_of(&opened.path)?;
        Self::over(opened)
    }

    /// Empties a file that exists already. Under its lock, so not under anybody's feet.
    fn take_file(&self, len: u64, force: bool) -> Result<(), OpenError> {
        let size = self.size().map_err(self.opened.cannot("examine"))?;
        if size > 0 && !force {
            return Err(OpenError::Occupied {
                path: self.opened.path.clone(),
                what: "a file that is not empty is there",
            });
        }
        self.opened
            .meta
            .set_len(0)
            .and_then(|()| self.opened.meta.set_len(len))
            .map_err(self.opened.cannot("size"))?;
        self.opened
            .meta
            .sync_all()
            .map_err(self.opened.cannot("sync"))
    }

    fn take_device(&self, len: u64, force: bool) -> Result<(), OpenError> {
        let have = self.size().map_err(self.opened.cannot("examine"))?;
        if have < len {
            return Err(OpenError::TooSmall {
                path: self.opened.path.clone(),
                have,
                need: len,
            });
        }
        if force {
            return Ok(());
        }
        let mut start = vec![0; PROBE_LEN.min(usize::try_from(have).unwrap_or(PROBE_LEN))];
        self.read_at(0, &mut start)
            .map_err(self.opened.cannot("read"))?;
        if start.iter().any(|byte| *byte != 0) {
            return Err(OpenError::Occupied {
                path: self.opened.path.clone(),
                what: "the device carries something",
            });
        }
        Ok(())
    }
}

/// Makes the name of a new file durable.
fn sync_directory_of(path: &Path) -> Result<(), OpenError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(OpenError::io(path, "sync the directory of"))
}

impl Medium for FileMedium {
    type Store = FileStore;

    fn open_store(&self, depth: u32) -> io::Result<FileStore> {
        FileStore::open(Arc::clone(&self.data), depth)
    }

    fn prepare_thread(&self, depth: u32) -> io::Result<bool> {
        keep_ring(&self.data, depth)
    }

    fn size(&self) -> io::Result<u64> {
        // Where a file ends; of a block device, whose metadata gives no size, its capacity. Moves
        // the shared cursor, which nothing here uses.
        (&self.opened.meta).seek(SeekFrom::End(0))
    }

    fn alignment(&self) -> u64 {
        self.data.alignment()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.opened.meta.read_exact_at(buf, offset)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.opened.meta.write_all_at(buf, offset)
    }

    fn write_loose_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        match self.data.is_mapped() {
            true => self.data.write_loose_at_once(offset, buf),
            false => self.write_at(offset, buf),
        }
    }

    fn forget_cached(&self) {
        sys::forget_cached(&self.opened.meta);
    }

    fn sync(&self) -> io::Result<()> {
        self.opened.meta.sync_data()
    }
}
