//! One front-end after another.
//!
//! One is served at a time. A second that connects meanwhile waits for a moment ([`TURN_PATIENCE`]), as it
//! may be the first one's successor. Then it is closed and so learns that the disk is taken, where waiting
//! on would look like a disk that hangs, to a VMM that then does nothing else.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use log::{info, warn};
use thiserror::Error;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::connection::{Connection, Ended};
use super::options::{DeviceOptions, ThreadKind};
use super::socket::{AllowedUids, Socket, SocketError};
use super::state::Device;
use crate::guard;
use crate::limit::LogLimit;
use crate::store::Medium;
use crate::volume::Volume;

/// After a connection could not be set up, for want of descriptors or memory.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// How long a second front-end waits for the first to leave. A VMM that is replaced or that connects anew
/// needs next to nothing of this, one that was attached to the same disk by mistake should not hang long.
const TURN_PATIENCE: Duration = Duration::from_secs(3);

static TURNED_AWAY: LogLimit = LogLimit::new();

/// Why a disk cannot be served.
#[derive(Debug, Error)]
pub enum ServeError {
    /// There is nothing to listen on.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The system failed.
    #[error("cannot serve a front-end: {0}")]
    System(#[from] io::Error),
}

/// How serving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "it says whether the disk may be closed"]
pub enum Ending {
    /// What front-ends asked for is done and answered.
    InOrder,
    /// The same, under a front-end that keeps what is in flight: its guest goes on with the next daemon
    /// ([`Volume::pause`]).
    Paused,
    /// In order, too. But a daemon before this one was killed, and what became of its requests is still unknown
    /// ([`Volume::leave_open`]).
    Unknown,
    /// The host's disk keeps requests, and the thread of their queue with them: the disk is to be left as it
    /// is, as a kill would leave it.
    Stuck,
}

/// A way to end [`Server::run`] from another thread.
#[derive(Debug)]
pub struct Stop {
    requested: AtomicBool,
    event: EventFd,
}

impl Stop {
    /// Nothing requested yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            requested: AtomicBool::new(false),
            event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })
    }

    /// Ends the connection, if there is one, and then the server.
    pub fn request(&self) {
        self.requested.store(true, Ordering::Release);
        if let Err(e) = self.event.write(1) {
            warn!("cannot wake the server: {e}");
        }
    }

    fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Acquire)
    }
}

/// What wakes the server's thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Stop,
    Listener,
    Connection,
}

/// A listening socket. The file of one that was made here is removed when it is dropped.
#[derive(Debug)]
pub struct Server {
    socket: Socket,
}

impl Server {
    /// Listens at `path`, as a socket of mode 0600. A socket file that a dead process of this user left
    /// there is replaced; anything else is refused.
    pub fn bind(path: &Path, allowed: AllowedUids) -> Result<Self, ServeError> {
        let socket = Socket::bind(path, allowed)?;
        Ok(Self { socket })
    }

    /// Takes over a listening socket that this process inherited as `fd`.
    pub fn inherit(fd: RawFd, allowed: AllowedUids) -> Result<Self, ServeError> {
        let socket = Socket::inherit(fd, allowed)?;
        Ok(Self { socket })
    }

    /// Takes over the listening socket that a service manager hands over (sd_listen_fds(3)).
    pub fn activated(allowed: AllowedUids) -> Result<Self, ServeError> {
        let socket = Socket::activated(allowed)?;
        Ok(Self { socket })
    }

    /// Where front-ends connect, if that has a name.
    pub fn path(&self) -> Option<PathBuf> {
        self.socket.path()
    }

    /// Serves one front-end after another until `stop` is requested. What one had in flight is brought to
    /// an end before the next.
    pub fn run<M: Medium>(
        &mut self,
        volume: &Arc<Volume<M>>,
        options: &DeviceOptions,
        stop: &Stop,
    ) -> Result<Ending, ServeError> {
        guard::install()?;
        let device = Arc::new(Device::new(Arc::clone(volume), options.clone())?);
        let threads = device.start_threads()?;
        let events = Epoll::new()?;
        // By its edge: one that waits is known of, and wakes us no more.
        let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
        watch(&events, self.socket.as_raw_fd(), Token::Listener, edge)?;
        watch(&events, stop.event.as_raw_fd(), Token::Stop, EventSet::IN)?;
        options.thread_started.call(ThreadKind::FrontEnd)?;
        while !stop.is_requested() {
            let served = match self.socket.accept() {
                Ok(Some(socket)) => self.serve(socket, &device, &events, stop),
                Ok(None) => wait(&events, None).map(|_| ()),
                Err(e) => Err(e),
            };
            if let Err(e) = served {
                warn!("cannot serve a front-end: {e}; trying again");
                thread::sleep(RETRY_PAUSE);
            }
        }
        drop(threads);
        if device.busy().is_some() {
            return Ok(Ending::Stuck);
        }
        device.past().next_front_end();
        Ok(match device.past().is_unknown() {
            true => Ending::Unknown,
            false if device.past().goes_on() => Ending::Paused,
            false => Ending::InOrder,
        })
    }

    /// Serves one front-end to its end. An error is ours, not the front-end's.
    fn serve<M: Medium>(
        &self,
        socket: UnixStream,
        device: &Arc<Device<M>>,
        events: &Epoll,
        stop: &Stop,
    ) -> io::Result<()> {
        let mut connection = Connection::new(socket, Arc::clone(device))?;
        // Edges: what is not whole yet stays readable, and would wake us for nothing. Dropping the
        // connection closes the socket and ends the watch.
        let edges =
            EventSet::IN | EventSet::OUT | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        watch(events, connection.as_raw_fd(), Token::Connection, edges)?;
        info!("a front-end connected");
        let ended = self.serve_messages(&mut connection, events, stop)?;
        match ended {
            Some(ended @ Ended::Disconnected) => info!("{ended}"),
            Some(ended) => warn!("{ended}"),
            None => {
                info!("the front-end is disconnected: the server ends");
                device.past().ends_with_front_end(connection.is_tracked());
            }
        }
        Ok(())
    }

    /// `None`: the server is to end.
    fn serve_messages<M: Medium>(
        &self,
        connection: &mut Connection<M>,
        events: &Epoll,
        stop: &Stop,
    ) -> io::Result<Option<Ended>> {
        // When the patience of a second front-end ends.
        let mut second: Option<Instant> = None;
        loop {
            if let Err(ended) = connection.serve() {
                return Ok(Some(ended));
            }
            let second_patience = second.map(|at| at.saturating_duration_since(Instant::now()));
            let patience = [connection.patience(), second_patience];
            let woken = wait(events, patience.into_iter().flatten().min())?;
            if stop.is_requested() {
                return Ok(None);
            }
            if woken.contains(&Some(Token::Listener)) {
                second.get_or_insert_with(|| Instant::now() + TURN_PATIENCE);
            }
            if second.is_some_and(|at| at <= Instant::now()) && !connection.is_hung_up() {
                self.turn_away();
                second = None;
            }
        }
    }

    /// Tells those who wait that the disk is taken.
    fn turn_away(&self) {
        while let Ok(Some(_second)) = self.socket.accept() {
            if let Some(more) = TURNED_AWAY.allow() {
                warn!(
                    "turned a second front-end away: one is served at a time ({more} more like it)"
                );
            }
        }
    }
}

fn watch(events: &Epoll, fd: RawFd, token: Token, interest: EventSet) -> io::Result<()> {
    let event = EpollEvent::new(interest, token as u64);
    events.ctl(ControlOperation::Add, fd, event)
}

/// Waits for something to do.
fn wait(events: &Epoll, patience: Option<Duration>) -> io::Result<[Option<Token>; 3]> {
    // Rounded up: woken too early, it would turn round without anything to do.
    let timeout = patience.map_or(-1, |patience| {
        i32::try_from(patience.as_millis().saturating_add(1)).unwrap_or(i32::MAX)
    });
    let mut ready = [EpollEvent::default(); 3];
    let count = match events.wait(timeout, &mut ready) {
        Ok(count) => count,
        Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
        Err(e) => return Err(e),
    };
    let mut tokens = [None; 3];
    for (token, event) in tokens.iter_mut().zip(ready.iter().take(count)) {
        *token = [Token::Stop, Token::Listener, Token::Connection]
            .into_iter()
            .find(|token| *token as u64 == event.data());
    }
    Ok(tokens)
}
