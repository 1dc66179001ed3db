//! The listening socket: made, inherited or handed over by a service manager; and who may connect.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use log::warn;
use thiserror::Error;

use super::sys;
use crate::limit::LogLimit;

/// The first descriptor that a service manager hands over (sd_listen_fds(3)).
const FIRST_INHERITED: RawFd = 3;
const ROOT: u32 = 0;

static STRANGERS: LogLimit = LogLimit::new();

/// Why there is nothing to listen on.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Somebody answers on the socket.
    #[error("{}: another process listens there: stop it or choose another path", .0.display())]
    InUse(PathBuf),
    /// Something that is not a socket.
    #[error("{}: exists and is not a socket: choose another path", .0.display())]
    NotASocket(PathBuf),
    /// A socket that another user left there.
    #[error("{}: a socket of user {owner} is in the way: remove it or choose another path", path.display())]
    NotOurs {
        /// Where.
        path: PathBuf,
        /// Whose.
        owner: u32,
    },
    /// The socket cannot be made.
    #[error("{}: cannot listen: {source}", path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The descriptor to take over is none to listen on.
    #[error("descriptor {fd}: {source}")]
    Inherit {
        /// Which.
        fd: RawFd,
        /// Why.
        source: io::Error,
    },
    /// A service manager handed over more than one socket.
    #[error("{0} sockets were handed over, and one is needed")]
    TooMany(String),
    /// Nobody said where to listen.
    #[error("nowhere to listen: give --socket PATH, or --fd N for a socket that was inherited")]
    Nowhere,
}

/// Which users may connect, besides the one that this process acts as, and root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowedUids(pub Vec<u32>);

impl AllowedUids {
    fn allows(&self, uid: u32) -> bool {
        uid == ROOT || uid == sys::own_uid() || self.0.contains(&uid)
    }
}

/// The file of a socket, which goes with it.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Device and inode: what lies at the path later may be another's.
    identity: (u64, u64),
}

impl SocketFile {
    fn at(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            identity: identity(path)?,
        })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity) {
            // Gone already is as good.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Where front-ends connect.
#[derive(Debug)]
pub(super) struct Socket {
    listener: UnixListener,
    allowed: AllowedUids,
    _file: Option<SocketFile>,
}

impl Socket {
    /// Listens at `path`, with mode 0600. A socket that a dead process of this user, or of an allowed
    /// one, left there is replaced; anything else is refused.
    pub(super) fn bind(path: &Path, allowed: AllowedUids) -> Result<Self, SocketError> {
        remove_stale(path, &allowed)?;
        let failed = |source| SocketError::Listen {
            path: path.to_owned(),
            source,
        };
        let listener = sys::listen(path).map_err(failed)?;
        let file = SocketFile::at(path).map_err(failed)?;
        Self::of(listener, allowed, Some(file)).map_err(failed)
    }

    /// Takes over a descriptor that listens already. Its file, if it has one, is not ours to remove.
    pub(super) fn inherit(fd: RawFd, allowed: AllowedUids) -> Result<Self, SocketError> {
        let failed = |source| SocketError::Inherit { fd, source };
        let listener = sys::inherit(fd).map_err(failed)?;
        Self::of(listener, allowed, None).map_err(failed)
    }

    /// Takes over what a service manager hands over (`LISTEN_PID`, `LISTEN_FDS`).
    pub(super) fn activated(allowed: AllowedUids) -> Result<Self, SocketError> {
        let variable = |name| std::env::var(name).unwrap_or_default();
        let pid = variable("LISTEN_PID").parse();
        if pid != Ok(std::process::id()) {
            return Err(SocketError::Nowhere);
        }
        match variable("LISTEN_FDS").as_str() {
            "1" => Self::inherit(FIRST_INHERITED, allowed),
            "" | "0" => Err(SocketError::Nowhere),
            count => Err(SocketError::TooMany(count.to_owned())),
        }
    }

    fn of(
        listener: UnixListener,
        allowed: AllowedUids,
        file: Option<SocketFile>,
    ) -> io::Result<Self> {
        // A front-end may have gone again between the wake-up and the accepting.
        listener.set_nonblocking(true)?;
        Ok(Self {
            listener,
            allowed,
            _file: file,
        })
    }

    /// Where it lies, for those who want to connect.
    pub(super) fn path(&self) -> Option<PathBuf> {
        let address = self.listener.local_addr().ok()?;
        address.as_pathname().map(Path::to_owned)
    }

    /// The next front-end that waits and may connect, if there is one. Others are closed at once.
    pub(super) fn accept(&self) -> io::Result<Option<UnixStream>> {
        loop {
            let socket = match self.listener.accept() {
                Ok((socket, _)) => socket,
                Err(e) => match e.kind() {
                    io::ErrorKind::WouldBlock => return Ok(None),
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => continue,
                    _ => return Err(e),
                },
            };
            let uid = sys::peer_uid(&socket)?;
            if self.allowed.allows(uid) {
                return Ok(Some(socket));
            }
            if let Some(more) = STRANGERS.allow() {
                warn!("refused a front-end of user {uid}: see --allow-uid ({more} more like it)");
            }
        }
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }
}

fn remove_stale(path: &Path, allowed: &AllowedUids) -> Result<(), SocketError> {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !metadata.file_type().is_socket() {
        return Err(SocketError::NotASocket(path.to_owned()));
    }
    let owner = metadata.uid();
    // One who may connect may also have been whom the last server became.
    if owner != sys::own_uid() && !allowed.0.contains(&owner) {
        return Err(SocketError::NotOurs {
            path: path.to_owned(),
            owner,
        });
    }
    let failed = |source| SocketError::Listen {
        path: path.to_owned(),
        source,
    };
    match UnixStream::connect(path) {
        Ok(_) => Err(SocketError::InUse(path.to_owned())),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)
        }
        // Its backlog is full, for instance: somebody listens.
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(SocketError::InUse(path.to_owned())),
        Err(e) => Err(failed(e)),
    }
}
