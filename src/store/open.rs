//! Opening the file of an image: what it is, whose it is, and which way its data goes.
//!
//! # Locks
//!
//! Whoever opens an image to change it holds [`OWNER`] alone. That ends with the process, and the
//! writes that a killed process has in flight may not: the kernel finishes them, and one of them
//! could land on what the next owner wrote meanwhile. So every description that carries data holds
//! [`IN_FLIGHT`], which the kernel gives back once nothing is under way on it, and a new owner
//! waits for that. Both are open-file-description locks (fcntl(2)).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use log::info;
use thiserror::Error;

use super::buffer::{ALIGN, IoBuf};
use super::channel::{Data, Way};
use super::sys::{self, DirectDemands, DirectSupport, Lock, LockByte};

/// Held by whoever may change the image: one at a time.
const OWNER: LockByte = LockByte(0);
/// Held, by any number, on descriptors that the kernel may be writing through.
const IN_FLIGHT: LockByte = LockByte(1);

/// How long an opener waits for the writes of a predecessor that was killed: a healthy disk ends
/// them in milliseconds, and the sync that may be among them in seconds.
const PREDECESSOR_TIMEOUT: Duration = Duration::from_secs(20);
/// How often it looks.
const PREDECESSOR_POLL: Duration = Duration::from_millis(5);

/// What an image is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// To look at. Takes no lock, so it works beside a daemon that serves the image.
    ReadOnly,
    /// To read from for long. Shares the lock of the image with its like: while one of them has
    /// it, nobody can change the image under its feet.
    Shared,
    /// To change. Takes the lock of the image: one such opener at a time.
    ReadWrite,
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
    /// Nobody has it open any more, but writes of a process that was killed are still under way.
    #[error(
        "{}: the device does not finish the writes of a process that has ended: check the \
         device, then try again",
        path.display()
    )]
    StillWriting {
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
    pub(super) fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            path: path.to_owned(),
            action,
            source,
        }
    }
}

/// The file of an image, open for metadata. Holds [`OWNER`] if it is open for change.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) path: PathBuf,
    pub(super) block_device: bool,
    /// Through the page cache.
    pub(super) meta: File,
    access: Access,
}

impl Opened {
    /// Opens what is there.
    pub(super) fn existing(path: &Path, access: Access) -> Result<Self, OpenError> {
        let kind = std::fs::metadata(path).map_err(OpenError::io(path, "open"))?;
        let block_device = kind.file_type().is_block_device();
        if !block_device && !kind.file_type().is_file() {
            return Err(OpenError::NotAnImage {
                path: path.to_owned(),
            });
        }
        let writable = access == Access::ReadWrite;
        // On a block device O_EXCL claims it from the rest of the kernel: a mounted one is
        // refused, and so is a second opener through another node, which has locks of its own.
        let claim = if writable && block_device {
            libc::O_EXCL
        } else {
            0
        };
        let meta = OpenOptions::new()
            .read(true)
            .write(writable)
            .custom_flags(claim)
            .open(path);
        match meta {
            Err(e) if block_device && e.raw_os_error() == Some(libc::EBUSY) => {
                Err(OpenError::InUse {
                    path: path.to_owned(),
                })
            }
            Err(e) => Err(OpenError::io(path, "open")(e)),
            Ok(meta) => Self::over(path, access, meta),
        }
    }

    /// Makes a new file, which its owner alone may read and write; `None` if something has that
    /// name already.
    pub(super) fn new(path: &Path) -> Result<Option<Self>, OpenError> {
        let made = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path);
        match made {
            Ok(meta) => Self::over(path, Access::ReadWrite, meta).map(Some),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(None),
            Err(e) => Err(OpenError::io(path, "create")(e)),
        }
    }

    fn over(path: &Path, access: Access, meta: File) -> Result<Self, OpenError> {
        let kind = meta.metadata().map_err(OpenError::io(path, "examine"))?;
        let opened = Self {
            path: path.to_owned(),
            block_device: kind.file_type().is_block_device(),
            meta,
            access,
        };
        match access {
            Access::ReadOnly => {}
            Access::Shared => opened.take_lock(OWNER, Lock::Shared)?,
            Access::ReadWrite => opened.become_owner()?,
        }
        Ok(opened)
    }

    fn take_lock(&self, byte: LockByte, lock: Lock) -> Result<(), OpenError> {
        if sys::lock(&self.meta, byte, lock).map_err(self.cannot("lock"))? {
            return Ok(());
        }
        Err(OpenError::InUse {
            path: self.path.clone(),
        })
    }

    fn become_owner(&self) -> Result<(), OpenError> {
        let lock = |byte, lock| sys::lock(&self.meta, byte, lock).map_err(self.cannot("lock"));
        self.take_lock(OWNER, Lock::Exclusive)?;
        let deadline = Instant::now() + PREDECESSOR_TIMEOUT;
        while !lock(IN_FLIGHT, Lock::Exclusive)? {
            if Instant::now() >= deadline {
                return Err(OpenError::StillWriting {
                    path: self.path.clone(),
                });
            }
            std::thread::sleep(PREDECESSOR_POLL);
        }
        lock(IN_FLIGHT, Lock::Release)?;
        Ok(())
    }

    pub(super) fn is_writable(&self) -> bool {
        self.access == Access::ReadWrite
    }

    /// The way through the page cache.
    pub(super) fn cached_data(&self) -> Result<Data, OpenError> {
        let data = self.open_again(0)?;
        let in_memory = sys::lives_in_memory(&data).map_err(self.cannot("examine"))?;
        let way = match in_memory && !self.block_device {
            true => Way::Memory,
            false => Way::Cached,
        };
        self.carrying(data, way)
    }

    /// The way past the page cache; `None` if that cannot carry data in units of `block`.
    pub(super) fn direct_data(&self, block: u64) -> Result<Option<Data>, OpenError> {
        let in_memory = sys::lives_in_memory(&self.meta).map_err(self.cannot("examine"))?;
        if in_memory && !self.block_device {
            return Ok(None);
        }
        let support = sys::direct_support(&self.meta).map_err(self.cannot("examine"))?;
        if support == DirectSupport::No {
            return Ok(None);
        }
        let file = match self.open_again(libc::O_DIRECT) {
            Ok(file) => file,
            Err(OpenError::Io { source, .. }) if source.raw_os_error() == Some(libc::EINVAL) => {
                return Ok(None);
            }
            Err(e) => return Err(e),
        };
        let demands = match support {
            DirectSupport::Yes(demands) => Some(demands),
            _ => probe_direct(&file),
        };
        let Some(DirectDemands { memory, offset }) = demands else {
            return Ok(None);
        };
        if memory > ALIGN as u64 || !block.is_multiple_of(offset) {
            info!(
                "{}: direct I/O demands units of {offset} bytes and buffers at {memory}, more \
                 than blocks of {block} bytes can keep",
                self.path.display()
            );
            return Ok(None);
        }
        self.carrying(file, Way::Direct(offset)).map(Some)
    }

    /// The same file on a description of its own.
    fn open_again(&self, flags: libc::c_int) -> Result<File, OpenError> {
        let file = OpenOptions::new()
            .read(true)
            .write(self.is_writable())
            .custom_flags(flags)
            .open(&self.path)
            .map_err(self.cannot("open"))?;
        let identity = |file: &File| {
            file.metadata()
                .map(|m| (m.dev(), m.ino(), m.rdev()))
                .map_err(self.cannot("examine"))
        };
        if identity(&file)? != identity(&self.meta)? {
            return Err(OpenError::Replaced {
                path: self.path.clone(),
            });
        }
        Ok(file)
    }

    /// Makes a description one that carries data, with the lock that says so.
    fn carrying(&self, file: File, way: Way) -> Result<Data, OpenError> {
        if self.is_writable() {
            // Only an owner takes it alone, and the owner is here: a refusal is somebody else's.
            if !sys::lock(&file, IN_FLIGHT, Lock::Shared).map_err(self.cannot("lock"))? {
                return Err(OpenError::InUse {
                    path: self.path.clone(),
                });
            }
        }
        // A ring may outlive its process by a moment and keeps what it names open: the description
        // with the owner's lock must not be among that.
        let metadata = match way {
            Way::Direct(_) => Some(self.open_again(0)?),
            Way::Cached | Way::Memory => None,
        };
        let owner = self.meta.try_clone().map_err(self.cannot("examine"))?;
        Ok(Data::new(file, metadata, way, owner))
    }

    /// The error for a failure of `action`.
    pub(super) fn cannot(&self, action: &'static str) -> impl FnOnce(io::Error) -> OpenError {
        OpenError::io(&self.path, action)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_owner_waits_for_the_writes_of_a_killed_one() {
        const LINGERING: Duration = Duration::from_millis(300);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, "content").unwrap();
        // What a kernel that is still writing looks like: the owner is gone, this lock is not.
        let description = File::open(&path).unwrap();
        assert!(sys::lock(&description, IN_FLIGHT, Lock::Shared).unwrap());
        let start = Instant::now();
        let writer = std::thread::spawn(move || {
            std::thread::sleep(LINGERING);
            drop(description);
        });
        let looker = Opened::existing(&path, Access::ReadOnly).unwrap();
        assert!(looker.cached_data().is_ok());
        let owner = Opened::existing(&path, Access::ReadWrite).unwrap();
        assert!(start.elapsed() >= LINGERING);
        writer.join().unwrap();

        // Data of the owner itself is no obstacle to more data of it, and one to the next owner.
        let first = owner.cached_data().unwrap();
        let second = owner.direct_data(4096).unwrap();
        drop(owner);
        let refused = Opened::existing(&path, Access::ReadWrite).unwrap_err();
        assert!(matches!(refused, OpenError::InUse { .. }), "{refused}");
        drop((first, second));
        Opened::existing(&path, Access::ReadWrite).unwrap();
    }

    #[test]
    fn readers_share_an_image_and_keep_a_writer_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, "content").unwrap();
        let open = |access| Opened::existing(&path, access);
        let readers = (open(Access::Shared).unwrap(), open(Access::Shared).unwrap());
        let refused = |access| matches!(open(access), Err(OpenError::InUse { .. }));
        assert!(refused(Access::ReadWrite));
        drop(readers);
        let writer = open(Access::ReadWrite).unwrap();
        assert!(refused(Access::Shared));
        assert!(open(Access::ReadOnly).is_ok());
        drop(writer);
    }
}
