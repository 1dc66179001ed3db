//! The socket, and one front-end after another on it.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use log::{info, warn};
use parking_lot::Mutex;
use thiserror::Error;
use vhost::vhost_user::{Error as ProtocolError, Listener};
use vhost_user_backend::{Error as DaemonError, ShutdownHandle, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::store::Medium;
use crate::volume::Volume;

use super::{Device, DeviceOptions, ThreadKind};

/// Who may connect: the owner.
const SOCKET_MODE: u32 = 0o600;

/// After a connection could not be set up, for want of descriptors or memory.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Why a disk cannot be served.
#[derive(Debug, Error)]
pub enum ServeError {
    /// Somebody answers on the socket.
    #[error("{}: another process listens there: stop it or choose another path", .0.display())]
    SocketInUse(PathBuf),
    /// Something that is not a socket.
    #[error("{}: exists and is not a socket: choose another path", .0.display())]
    NotASocket(PathBuf),
    /// The socket cannot be made.
    #[error("{}: cannot listen: {source}", path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The framework or the system failed.
    #[error("cannot serve a front-end: {0}")]
    Daemon(String),
}

impl From<DaemonError> for ServeError {
    fn from(error: DaemonError) -> Self {
        Self::Daemon(error.to_string())
    }
}

impl From<io::Error> for ServeError {
    fn from(error: io::Error) -> Self {
        Self::Daemon(error.to_string())
    }
}

/// A way to end [`Server::run`] from another thread.
#[derive(Debug)]
pub struct Stop {
    requested: AtomicBool,
    event: EventFd,
    connection: Mutex<Option<Connection>>,
}

struct Connection(ShutdownHandle);

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connection")
    }
}

impl Stop {
    /// Nothing requested yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            requested: AtomicBool::new(false),
            event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            connection: Mutex::new(None),
        })
    }

    /// Ends the connection, if there is one, and then the server.
    pub fn request(&self) {
        self.requested.store(true, Ordering::Release);
        if let Err(e) = self.event.write(1) {
            warn!("cannot wake the server: {e}");
        }
        if let Some(Connection(handle)) = &*self.connection.lock() {
            handle.shutdown();
        }
    }

    fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Acquire)
    }

    fn set_connection(&self, handle: Option<ShutdownHandle>) {
        let mut connection = self.connection.lock();
        *connection = handle.map(Connection);
        if let Some(Connection(handle)) = connection.as_ref().filter(|_| self.is_requested()) {
            handle.shutdown();
        }
    }
}

/// A listening socket. Its file is removed when it is dropped.
pub struct Server {
    path: PathBuf,
    listener: Listener,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("path", &self.path).finish()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = fs::remove_file(&self.path);
    }
}

impl Server {
    /// Listens at `path`. A socket file that a dead process left there is replaced; anything else
    /// is refused.
    pub fn bind(path: &Path) -> Result<Self, ServeError> {
        remove_stale(path)?;
        let listen = |source| ServeError::Listen {
            path: path.to_owned(),
            source,
        };
        let listener = std::os::unix::net::UnixListener::bind(path).map_err(listen)?;
        fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE)).map_err(listen)?;
        Ok(Self {
            path: path.to_owned(),
            listener: listener.into(),
        })
    }

    /// Serves one front-end after another until `stop` is requested. Each gets a device of its
    /// own; when it is gone, what it had in flight is brought to an end before the next.
    pub fn run<M: Medium>(
        &mut self,
        volume: &Arc<Volume<M>>,
        options: &DeviceOptions,
        stop: &Stop,
    ) -> Result<(), ServeError> {
        let events = Epoll::new()?;
        for fd in [self.listener.as_raw_fd(), stop.event.as_raw_fd()] {
            events.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0))?;
        }
        options.thread_started.call(ThreadKind::FrontEnd)?;
        loop {
            if stop.is_requested() {
                return Ok(());
            }
            let mut ready = [EpollEvent::default()];
            match events.wait(-1, &mut ready) {
                Ok(_) if stop.is_requested() => return Ok(()),
                Ok(_) => {
                    if let Err(e) = self.serve_one(volume, options, stop) {
                        warn!("{e}; trying again");
                        thread::sleep(RETRY_PAUSE);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn serve_one<M: Medium>(
        &mut self,
        volume: &Arc<Volume<M>>,
        options: &DeviceOptions,
        stop: &Stop,
    ) -> Result<(), ServeError> {
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let device = Arc::new(Device::new(
            Arc::clone(volume),
            options.clone(),
            memory.clone(),
        )?);
        let mut daemon = VhostUserDaemon::new("vhost-user".into(), Arc::clone(&device), memory)?;
        for (handler, fd) in daemon.get_epoll_handlers().iter().zip(device.wake_fds()) {
            if let Err(e) = handler.register_listener(fd, EventSet::IN, device.wake_event()) {
                // Its workers cannot be told to end, and dropping it would wait for them.
                std::mem::forget(daemon);
                return Err(e.into());
            }
        }
        let served = self.serve_connection(&mut daemon, options, stop);
        // The rings' memory is still mapped: what is in flight can be answered.
        device.close();
        served
    }

    fn serve_connection<M: Medium>(
        &mut self,
        daemon: &mut VhostUserDaemon<Arc<Device<M>>>,
        options: &DeviceOptions,
        stop: &Stop,
    ) -> Result<(), ServeError> {
        daemon.start(&mut self.listener)?;
        info!("a front-end connected");
        stop.set_connection(daemon.shutdown_handle());
        let ended = daemon.wait();
        stop.set_connection(None);
        match ended {
            Ok(()) => info!("the front-end disconnected"),
            Err(DaemonError::HandleRequest(
                ProtocolError::Disconnected | ProtocolError::PartialMessage,
            )) => info!("the front-end disconnected"),
            Err(DaemonError::HandleRequest(ProtocolError::InvalidParam)) => warn!(
                "the connection ended: the front-end asked for something that this disk does not \
                 offer. If it has more than {} queues (num_vqs of QEMU), or more than {} \
                 descriptors in one (vq_size), serve with a larger --queues or --queue-size",
                options.limits.queues, options.limits.queue_size
            ),
            Err(e) => warn!("the connection ended: {e}"),
        }
        Ok(())
    }
}

fn remove_stale(path: &Path) -> Result<(), ServeError> {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return Ok(());
    };
    if !metadata.file_type().is_socket() {
        return Err(ServeError::NotASocket(path.to_owned()));
    }
    if UnixStream::connect(path).is_ok() {
        return Err(ServeError::SocketInUse(path.to_owned()));
    }
    fs::remove_file(path).map_err(|source| ServeError::Listen {
        path: path.to_owned(),
        source,
    })
}
