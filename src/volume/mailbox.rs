//! Where other threads leave what is for a queue, and what wakes it then.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Where other queues leave what they released for a queue.
#[derive(Debug)]
pub(super) struct Mailbox<T> {
    items: Mutex<Vec<T>>,
    /// There is something for the queue: mail, or its turn to sync. Set after the mail is there, so
    /// that a queue which finds it unset has missed nothing and leaves the lock alone.
    waiting: AtomicBool,
    event: EventFd,
}

impl<T> Mailbox<T> {
    /// An empty one.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            items: Mutex::new(Vec::new()),
            waiting: AtomicBool::new(false),
            event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })
    }

    /// Readable when there is something.
    pub(super) fn event(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    /// Leaves something and wakes the queue. An error: it is there, and nobody was woken.
    pub(super) fn post(&self, item: T) -> io::Result<()> {
        self.items.lock().push(item);
        self.wake()
    }

    /// Wakes the queue for something that is not mail.
    pub(super) fn wake(&self) -> io::Result<()> {
        self.waiting.store(true, Ordering::Release);
        self.event.write(1)
    }

    /// Moves what was left into `items`.
    pub(super) fn take(&self, items: &mut Vec<T>) {
        if self.waiting.load(Ordering::Relaxed)
            // Who unsets it sees what was there when it was set; what comes now sets it again.
            && self.waiting.swap(false, Ordering::AcqRel)
        {
            items.append(&mut self.items.lock());
        }
    }

    /// Whether there is something.
    pub(super) fn has_something(&self) -> bool {
        self.waiting.load(Ordering::Acquire)
    }

    /// Quiets the event; before the mail is taken, or a wake-up could get lost.
    pub(super) fn quiet(&self) {
        // Nothing to read is what an event that was cleared before says.
        let _ = self.event.read();
    }
}
