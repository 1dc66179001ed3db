//! The vhost-user face of a disk: features, configuration, queues started and stopped.
//!
//! The only module that names vhost-user. Messages are read and answered by the `vhost` crate; what they
//! do is decided here, and queues have threads of their own. A [`Server`] has one device, which lives as
//! long as it and serves one front-end after another.
//!
//! | file | what it does | who calls it |
//! |---|---|---|
//! | `server` | one front-end after another, until told to stop | the thread of [`Server::run`] |
//! | `socket` | the listening socket, and who may connect | the same |
//! | `connection` | whole messages, one at a time, in bounded time | the same |
//! | `handler` | what each message does | the same |
//! | `memory` | what the front-end shares of its guest's memory | the same |
//! | `ring` | what it said of one queue, and whether that may be served | both, under its lock |
//! | `tracked` | what it keeps of requests in flight, for a daemon that may die | both |
//! | `past` | whether anybody knows what was in flight when a daemon was killed | both |
//! | `handle` | one queue as both threads hold it: knock, rest, notify | both |
//! | `worker` | the thread of one queue | itself |
//! | `state` | features, configuration, the queues | both |
//!
//! The handler is our own because that of the crate vhost-user-backend 0.24 cannot be reached from outside: it
//! refuses to keep requests in flight for a daemon that may die, ends its workers by an error, and takes memory
//! away from requests that use it.
//!
//! # Who validates
//!
//! The form of a message is the `vhost` crate's; that it arrives whole and in time, `connection`'s; that
//! it fits the state of the device, `handler`'s, `memory`'s and `ring`'s, which refuse it as a whole or
//! obey it as a whole. What lies in guest memory is hostile for ever: [`crate::queue`] and
//! [`crate::request`] check it with each use, and [`crate::guard`] stands by for memory that is not there
//! any more.
//!
//! # When memory goes
//!
//! Before a region goes (SET_MEM_TABLE, REM_MEM_REG, the end of the connection) every queue is brought to
//! rest: what is in flight ends and is answered where the answer was asked for. Nothing is written to
//! memory that the front-end has taken back; if a queue cannot be brought to rest the message is refused
//! and the memory stays.

mod connection;
mod handle;
mod handler;
mod memory;
mod options;
mod past;
mod refusal;
mod ring;
mod server;
mod socket;
mod state;
mod sys;
mod tracked;
mod worker;

pub use options::{DeviceOptions, ThreadHook, ThreadKind, WithoutInflight};
pub use server::{Ending, ServeError, Server, Stop};
pub use socket::{AllowedUids, SocketError};
