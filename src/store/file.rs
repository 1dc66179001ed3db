//! Images that are regular files or block devices.
//!
//! Metadata goes through the page cache on one descriptor, which also carries the lock; data goes
//! through another one, with O_DIRECT where the file system has it. The two never name the same
//! bytes, so the cache of the one cannot go stale under the other.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use log::info;
use thiserror::Error;

use super::Medium;
use super::buffer::{ALIGN, IoBuf};
use super::channel::{Data, FileStore};
use super::sys::{self, DirectDemands, DirectSupport};

/// How much of a block device must be zero for [`FileMedium::create`] to take it without force:
/// partition tables, file systems, LUKS and this crate's own header all begin inside of it.
const PROBE_LEN: usize = 64 << 10;

/// What an image is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To look at. Takes no lock, so it works beside a daemon that serves the image.
    ReadOnly,
    /// To change. Takes the lock of the image: one such opener at a time.
    ReadWrite,
}

/// How data gets to the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// Past the host's page cache (O_DIRECT) where the file system can, through it elsewhere.
    Direct,
    /// Through the host's page cache.
    Writeback,
}

/// Why an image could not be opened or made. Each names the path, and the cure where there is one.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Nothing there, or no permission, or any other failure of the system call `action`.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The image.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Somebody else has it open for writing.
    #[error(
        "{}: in use: another process serves or changes this image, or it is mounted; stop that \
         one first",
        path.display()
    )]
    InUse {
        /// The image.
        path: PathBuf,
    },
    /// A directory, a pipe, a terminal...
    #[error("{}: neither a regular file nor a block device", path.display())]
    NotAnImage {
        /// The image.
        path: PathBuf,
    },
    /// To be created, but there is something already.
    #[error(
        "{}: {what}; creating the image would destroy it: choose another path, or use --force",
        path.display()
    )]
    Occupied {
        /// The image.
        path: PathBuf,
        /// What there is.
        what: &'static str,
    },
    /// The block device is too small for the image.
    #[error(
        "{}: the device has {have} bytes and the image needs {need}: choose a smaller disk or a \
         larger device",
        path.display()
    )]
    TooSmall {
        /// The image.
        path: PathBuf,
        /// Size of the device in bytes.
        have: u64,
        /// Size of the image in bytes.
        need: u64,
    },
    /// The path named one file at first and another one a moment later.
    #[error("{}: was replaced while it was being opened: try again", path.display())]
    Replaced {
        /// The image.
        path: PathBuf,
    },
}

impl OpenError {
    fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            path: path.to_owned(),
            action,
            source,
        }
    }
}

/// An image in a regular file or on a block device.
///
/// Opening takes two steps, since the block size stands in the header: [`FileMedium::open`] gives
/// access to the metadata (and to data through the page cache), [`FileMedium::enable_data`] then
/// chooses the way of the data.
#[derive(Debug)]
pub struct FileMedium {
    path: PathBuf,
    access: Access,
    block_device: bool,
    /// For metadata. Holds the lock, if there is one.
    meta: File,
    data: Arc<Data>,
}

impl FileMedium {
    /// Opens an existing image.
    ///
    /// # Errors
    /// [`OpenError::InUse`] if it is to be changed and another opener holds it,
    /// [`OpenError::NotAnImage`] for what is neither file nor block device, else
    /// [`OpenError::Io`].
    pub fn open(path: &Path, access: Access) -> Result<Self, OpenError> {
        let kind = std::fs::metadata(path).map_err(OpenError::io(path, "open"))?;
        let block_device = kind.file_type().is_block_device();
        if !block_device && !kind.file_type().is_file() {
            return Err(OpenError::NotAnImage {
                path: path.to_owned(),
            });
        }
        let meta = open_existing(path, access, block_device)?;
        Self::over(path, access, meta)
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
        let made = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path);
        match made {
            Ok(meta) => Self::fill_new(path, meta, len).inspect_err(|_| {
                // Nobody had anything there before; the first error is the one worth telling.
                let _ = std::fs::remove_file(path);
            }),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let medium = Self::open(path, Access::ReadWrite)?;
                if medium.block_device {
                    medium.take_device(len, force)?;
                } else {
                    medium.take_file(len, force)?;
                }
                Ok(medium)
            }
            Err(e) => Err(OpenError::io(path, "create")(e)),
        }
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
            Cache::Direct => self.open_direct(block)?,
            Cache::Writeback => None,
        };
        let path = self.path.display();
        self.data = Arc::new(match direct {
            Some((file, alignment)) => {
                info!("{path}: direct I/O in units of {alignment} bytes");
                let lock = self
                    .meta
                    .try_clone()
                    .map_err(OpenError::io(&self.path, "examine"))?;
                Data::direct(file, alignment, lock)
            }
            None => {
                info!("{path}: data goes through the host's page cache");
                self.cached_data()?
            }
        });
        Ok(())
    }

    /// Whether data bypasses the host's page cache.
    pub fn is_direct(&self) -> bool {
        self.data.is_direct()
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is a block device (else a regular file).
    pub fn is_block_device(&self) -> bool {
        self.block_device
    }

    /// Opens a channel that does everything at once inside of `submit`, as where the host has no
    /// io_uring.
    pub fn open_synchronous(&self, depth: u32) -> FileStore {
        FileStore::synchronous(Arc::clone(&self.data), depth)
    }

    fn over(path: &Path, access: Access, meta: File) -> Result<Self, OpenError> {
        let opened = meta.metadata().map_err(OpenError::io(path, "examine"))?;
        let data = meta
            .try_clone()
            .and_then(Data::cached)
            .map_err(OpenError::io(path, "examine"))?;
        Ok(Self {
            path: path.to_owned(),
            access,
            block_device: opened.file_type().is_block_device(),
            meta,
            data: Arc::new(data),
        })
    }

    fn fill_new(path: &Path, meta: File, len: u64) -> Result<Self, OpenError> {
        lock(path, &meta)?;
        meta.set_len(len).map_err(OpenError::io(path, "size"))?;
        meta.sync_all().map_err(OpenError::io(path, "sync"))?;
        sync_directory_of(path)?;
        Self::over(path, Access::ReadWrite, meta)
    }

    /// Empties a file that exists already. Under its lock, so not under anybody's feet.
    fn take_file(&self, len: u64, force: bool) -> Result<(), OpenError> {
        let size = self.size().map_err(OpenError::io(&self.path, "examine"))?;
        if size > 0 && !force {
            return Err(OpenError::Occupied {
                path: self.path.clone(),
                what: "a file that is not empty is there",
            });
        }
        self.meta
            .set_len(0)
            .and_then(|()| self.meta.set_len(len))
            .map_err(OpenError::io(&self.path, "size"))?;
        self.meta
            .sync_all()
            .map_err(OpenError::io(&self.path, "sync"))
    }

    fn take_device(&self, len: u64, force: bool) -> Result<(), OpenError> {
        let have = self.size().map_err(OpenError::io(&self.path, "examine"))?;
        if have < len {
            return Err(OpenError::TooSmall {
                path: self.path.clone(),
                have,
                need: len,
            });
        }
        if force {
            return Ok(());
        }
        let mut start = vec![0; PROBE_LEN.min(usize::try_from(have).unwrap_or(PROBE_LEN))];
        self.read_at(0, &mut start)
            .map_err(OpenError::io(&self.path, "read"))?;
        if start.iter().any(|byte| *byte != 0) {
            return Err(OpenError::Occupied {
                path: self.path.clone(),
                what: "the device carries something",
            });
        }
        Ok(())
    }

    fn cached_data(&self) -> Result<Data, OpenError> {
        self.meta
            .try_clone()
            .and_then(Data::cached)
            .map_err(OpenError::io(&self.path, "examine"))
    }

    /// The file once more, with O_DIRECT, and its demands; `None` if that cannot carry data in
    /// units of `block`.
    fn open_direct(&self, block: u64) -> Result<Option<(File, u64)>, OpenError> {
        let examine = || OpenError::io(&self.path, "examine");
        if sys::lives_in_memory(&self.meta).map_err(examine())? {
            return Ok(None);
        }
        let support = sys::direct_support(&self.meta).map_err(examine())?;
        if support == DirectSupport::No {
            return Ok(None);
        }
        let opened = OpenOptions::new()
            .read(true)
            .write(self.access == Access::ReadWrite)
            .custom_flags(libc::O_DIRECT)
            .open(&self.path);
        let file = match opened {
            Ok(file) => file,
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => return Ok(None),
            Err(e) => return Err(OpenError::io(&self.path, "open for direct I/O")(e)),
        };
        let identity = |file: &File| file.metadata().map(|m| (m.dev(), m.ino(), m.rdev()));
        if identity(&file).map_err(examine())? != identity(&self.meta).map_err(examine())? {
            return Err(OpenError::Replaced {
                path: self.path.clone(),
            });
        }
        let demands = match support {
            DirectSupport::Yes(demands) => Some(demands),
            _ => probe_direct(&file),
        };
        let usable = |d: &DirectDemands| d.memory <= ALIGN as u64 && block.is_multiple_of(d.offset);
        match demands {
            Some(demands) if usable(&demands) => Ok(Some((file, demands.offset))),
            Some(DirectDemands { memory, offset }) => {
                info!(
                    "{}: direct I/O demands units of {offset} bytes and buffers at {memory}, more \
                     than blocks of {block} bytes can keep",
                    self.path.display()
                );
                Ok(None)
            }
            None => Ok(None),
        }
    }
}

fn open_existing(path: &Path, access: Access, block_device: bool) -> Result<File, OpenError> {
    let writable = access == Access::ReadWrite;
    // On a block device O_EXCL claims it from the rest of the kernel: a mounted one is refused,
    // and so is a second opener through another device node, whose inode and lock are others.
    let flags = if writable && block_device {
        libc::O_EXCL
    } else {
        0
    };
    let opened = OpenOptions::new()
        .read(true)
        .write(writable)
        .custom_flags(flags)
        .open(path);
    let file = match opened {
        Err(e) if block_device && e.raw_os_error() == Some(libc::EBUSY) => {
            return Err(OpenError::InUse {
                path: path.to_owned(),
            });
        }
        other => other.map_err(OpenError::io(path, "open"))?,
    };
    if writable {
        lock(path, &file)?;
    }
    Ok(file)
}

fn lock(path: &Path, file: &File) -> Result<(), OpenError> {
    match sys::lock_exclusive(file).map_err(OpenError::io(path, "lock"))? {
        true => Ok(()),
        false => Err(OpenError::InUse {
            path: path.to_owned(),
        }),
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

/// Finds the demands of O_DIRECT by trying, on kernels that do not tell them. The buffer is at a
/// page and the read at the start of the file, so only the length can be refused.
fn probe_direct(file: &File) -> Option<DirectDemands> {
    [512, ALIGN].into_iter().find_map(|unit| {
        let mut buf = IoBuf::new(unit);
        file.read_at(&mut buf, 0).is_ok().then_some(DirectDemands {
            memory: unit as u64,
            offset: unit as u64,
        })
    })
}

impl Medium for FileMedium {
    type Store = FileStore;

    fn open_store(&self, depth: u32) -> io::Result<FileStore> {
        FileStore::open(Arc::clone(&self.data), depth)
    }

    fn size(&self) -> io::Result<u64> {
        // Where a file ends; of a block device, whose metadata gives no size, its capacity. Moves
        // the shared cursor, which nothing here uses.
        (&self.meta).seek(SeekFrom::End(0))
    }

    fn alignment(&self) -> u64 {
        self.data.alignment()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.meta.read_exact_at(buf, offset)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.meta.write_all_at(buf, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.meta.sync_data()
    }
}
