//! What the operator and the rest of the program say of a device.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::queue::stats::QueueStats;
use crate::request::{DeviceLimits, SERIAL_LEN};

/// What a thread of the server is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadKind {
    /// Talks with the front-end.
    FrontEnd,
    /// Serves one queue.
    Worker,
}

/// Called first thing on every thread of the server, before a front-end is accepted; an error ends the
/// server. What it changes belongs to that thread (its system calls, say), so it is called on each: the
/// threads of queues start with [`super::Server::run`], live as long as that and serve one front-end after
/// another. It is called last on the thread of `run` itself, which starts no thread afterwards.
#[derive(Clone, Default)]
pub struct ThreadHook(Option<Arc<HookFn>>);

type HookFn = dyn Fn(ThreadKind) -> io::Result<()> + Send + Sync;

impl ThreadHook {
    /// A hook that does `what`; the default does nothing.
    pub fn new(what: impl Fn(ThreadKind) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(what)))
    }

    /// To be called on the thread itself.
    pub(super) fn call(&self, kind: ThreadKind) -> io::Result<()> {
        self.0.as_ref().map_or(Ok(()), |what| what(kind))
    }
}

impl std::fmt::Debug for ThreadHook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ThreadHook")
            .field(&self.0.is_some())
            .finish()
    }
}

/// What becomes of a ring that was in use when a daemon was killed, if the front-end does not keep what
/// was in flight: which of its requests were done, nobody knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WithoutInflight {
    /// It is not served before the guest sets it up anew.
    #[default]
    Refuse,
    /// It goes on where the front-end says: some requests may be done twice, and others never answered.
    Resume,
}

/// What the operator chose.
#[derive(Clone, Debug)]
pub struct DeviceOptions {
    /// Number of queues and most descriptors of each.
    pub limits: DeviceLimits,
    /// Serial number, padded with NULs.
    pub serial: [u8; SERIAL_LEN],
    /// How long a queue is watched at most after it ran dry, before its worker sleeps. 0: never.
    pub poll: Duration,
    /// Where each queue counts what it does. A queue that has no place here does not.
    pub stats: Vec<Arc<QueueStats>>,
    /// What to do about requests of which nobody knows whether they were done.
    pub without_inflight: WithoutInflight,
    /// Called on each thread.
    pub thread_started: ThreadHook,
}
