//! One front-end on the socket: whole messages in, one at a time, and a bound for those that never
//! become whole.
//!
//! The `vhost` crate waits for the rest of a message that has begun, for ever. So a message is handed to
//! it only when all of it has arrived, and while there is room for an answer: then neither reading nor
//! answering it waits for the front-end.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use log::warn;
use thiserror::Error;
use vhost::vhost_user::message::MAX_ATTACHED_FD_ENTRIES;
use vhost::vhost_user::{BackendReqHandler, Error as ProtocolError};

use super::handler::Handler;
use super::state::Device;
use super::sys;
use crate::limit::LogLimit;
use crate::store::Medium;

/// Messages handled before anything else gets its turn: a front-end that never stops sending must not keep
/// the server from its end.
const BURST: usize = 64;
/// How long a message may take from its first byte to its last, and the front-end to read answers
/// until there is room for another. They are some hundred bytes between processes of one machine; a
/// second is an eternity, and this allows for a front-end that is stopped in a debugger for a moment.
pub(super) const MESSAGE_PATIENCE: Duration = Duration::from_secs(10);

/// Bytes of a message before its body: request, flags, size of the body; 32 bits each.
const HEADER: usize = 12;
/// Where the flags stand, and the size.
const FLAGS: usize = 4;
const SIZE: usize = 8;
/// Flag of a message whose sender wants to know how it ended.
const NEED_REPLY: u32 = 1 << 3;
/// Largest body. A larger one is refused by its header, without waiting for it.
const MAX_BODY: usize = 4096;

/// Most descriptors of a message.
const MAX_DESCRIPTORS: usize = MAX_ATTACHED_FD_ENTRIES;

static REFUSED: LogLimit = LogLimit::new();

/// How a connection came to its end.
#[derive(Debug, Error)]
pub(super) enum Ended {
    #[error("the front-end disconnected")]
    Disconnected,
    #[error(
        "the connection ended: the front-end began a message and left it unfinished for {MESSAGE_PATIENCE:?}"
    )]
    Slow,
    #[error(
        "the connection ended: the front-end did not read its answers for {MESSAGE_PATIENCE:?}"
    )]
    Deaf,
    #[error("the connection ended: a message came in pieces with descriptors in between")]
    Pieces,
    #[error("the connection ended: a message came with more than {MAX_DESCRIPTORS} descriptors")]
    Descriptors,
    #[error("the connection ended: {0}")]
    Protocol(ProtocolError),
    #[error("the connection ended: {0}")]
    Io(#[from] io::Error),
}

/// What there is on the socket.
enum Arrived {
    Nothing,
    /// Some of a message.
    Part,
    /// A message, and no room for its answer.
    NoRoom,
    /// A message.
    Whole {
        need_reply: bool,
    },
}

/// A front-end that is connected.
pub(super) struct Connection<M: Medium> {
    socket: UnixStream,
    handler: Arc<Mutex<Handler<M>>>,
    requests: BackendReqHandler<Mutex<Handler<M>>>,
    /// When patience ends with what is unfinished now, and what that is.
    deadline: Option<(Instant, Ended)>,
    /// When the handler has something to do without a message.
    tick: Option<Duration>,
    /// There may be more messages.
    more: bool,
}

impl<M: Medium> Connection<M> {
    pub(super) fn new(socket: UnixStream, device: Arc<Device<M>>) -> io::Result<Self> {
        let handler = Arc::new(Mutex::new(Handler::new(device)));
        let requests = BackendReqHandler::from_stream(socket.try_clone()?, Arc::clone(&handler));
        Ok(Self {
            socket,
            handler,
            requests,
            deadline: None,
            tick: None,
            more: false,
        })
    }

    /// Handles the messages that are there, up to [`BURST`] of them. Afterwards there is nothing to do until more arrives, or room
    /// for answers, or [`Connection::patience`] ends.
    pub(super) fn serve(&mut self) -> Result<(), Ended> {
        let served = self.serve_messages();
        self.tick = self
            .handler
            .lock()
            .ok()
            .and_then(|mut handler| handler.tick());
        served
    }

    fn serve_messages(&mut self) -> Result<(), Ended> {
        self.more = false;
        for _ in 0..BURST {
            let ended = match self.look()? {
                Arrived::Whole { need_reply } => {
                    self.deadline = None;
                    self.handle(need_reply)?;
                    continue;
                }
                Arrived::Nothing => {
                    self.deadline = None;
                    return Ok(());
                }
                Arrived::Part => Ended::Slow,
                Arrived::NoRoom => Ended::Deaf,
            };
            let now = Instant::now();
            return match self.deadline.take() {
                Some((deadline, ended)) if deadline <= now => Err(ended),
                Some(before) => {
                    self.deadline = Some(before);
                    Ok(())
                }
                None => {
                    self.deadline = Some((now + MESSAGE_PATIENCE, ended));
                    Ok(())
                }
            };
        }
        self.more = true;
        Ok(())
    }

    /// How long to wait at most before the next [`Connection::serve`], if there is a bound.
    pub(super) fn patience(&self) -> Option<Duration> {
        let deadline = self.deadline.as_ref();
        let left = deadline.map(|(at, _)| at.saturating_duration_since(Instant::now()));
        let more = self.more.then_some(Duration::ZERO);
        [left, self.tick, more].into_iter().flatten().min()
    }

    /// Whether the front-end closed its end, read or not.
    pub(super) fn is_hung_up(&self) -> bool {
        sys::socket_state(&self.socket).map_or(true, |state| state.hung_up)
    }

    fn look(&self) -> Result<Arrived, Ended> {
        let state = sys::socket_state(&self.socket)?;
        let part = || match state.hung_up {
            true => Err(Ended::Disconnected),
            false => Ok(Arrived::Part),
        };
        if state.unread == 0 {
            return match state.hung_up {
                true => Err(Ended::Disconnected),
                false => Ok(Arrived::Nothing),
            };
        }
        let mut header = [0; HEADER];
        let ahead = sys::peek(&self.socket, &mut header, 0)?;
        if ahead.len < HEADER {
            // More is there than can be seen: descriptors came within a header.
            return if state.unread < HEADER {
                part()
            } else {
                Err(Ended::Pieces)
            };
        }
        // The crate takes what it finds no room for as a reason to read on, and waits for what never comes.
        if ahead.more_descriptors
            && sys::peek(&self.socket, &mut header, MAX_DESCRIPTORS)?.more_descriptors
        {
            return Err(Ended::Descriptors);
        }
        let body = usize::try_from(word(&header, SIZE)).unwrap_or(usize::MAX);
        if body <= MAX_BODY && state.unread < HEADER + body {
            return part();
        }
        if !state.writable && !state.hung_up {
            return Ok(Arrived::NoRoom);
        }
        Ok(Arrived::Whole {
            need_reply: word(&header, FLAGS) & NEED_REPLY != 0,
        })
    }

    fn handle(&mut self, need_reply: bool) -> Result<(), Ended> {
        match self.requests.handle_request() {
            Ok(()) => Ok(()),
            Err(ProtocolError::Disconnected) => Err(Ended::Disconnected),
            // It was told, and nothing has changed.
            Err(ProtocolError::ReqHandlerError(e)) if need_reply && self.acknowledges() => {
                if let Some(more) = REFUSED.allow() {
                    warn!("refused the front-end: {e} ({more} more like it)");
                }
                Ok(())
            }
            Err(e) => Err(Ended::Protocol(e)),
        }
    }

    /// Whether the front-end keeps what is in flight for the next server.
    pub(super) fn is_tracked(&self) -> bool {
        self.handler
            .lock()
            .is_ok_and(|handler| handler.is_tracked())
    }

    fn acknowledges(&self) -> bool {
        self.handler
            .lock()
            .is_ok_and(|handler| handler.acknowledges())
    }
}

impl<M: Medium> Drop for Connection<M> {
    fn drop(&mut self) {
        // The rings' memory is still mapped: what is in flight can be answered.
        if let Ok(mut handler) = self.handler.lock() {
            handler.close();
        }
    }
}

impl<M: Medium> AsRawFd for Connection<M> {
    fn as_raw_fd(&self) -> i32 {
        self.socket.as_raw_fd()
    }
}

/// A number of the header, in the machine's order as the protocol has it.
fn word(header: &[u8; HEADER], at: usize) -> u32 {
    let mut bytes = [0; 4];
    for (to, from) in bytes.iter_mut().zip(header.iter().skip(at)) {
        *to = *from;
    }
    #[expect(
        clippy::host_endian_bytes,
        reason = "vhost-user speaks in the machine's order"
    )]
    u32::from_ne_bytes(bytes)
}
