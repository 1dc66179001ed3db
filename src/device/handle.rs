//! One queue, as the thread that talks with the front-end and the worker's thread share it.
//!
//! The worker holds the ring's lock while it takes and answers, never while it waits for anything of the
//! front-end's: whoever sets the ring up waits for the end of one pass at most. To bring a queue to rest
//! is [`QueueHandle::ask_to_rest`] and then [`QueueHandle::await_rest`]: the ring must no longer be
//! served by then ([`Ring::is_served`]), or the worker starts it again.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use log::error;
use parking_lot::{Condvar, Mutex, MutexGuard};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::ring::Ring;
use super::sys;
use crate::limit::LogLimit;

/// How long a stopping queue may take to bring what is in flight to an end. Longer than any disk
/// that is still alive, shorter than the patience of whoever waits for the front-end.
pub(super) const DRAIN_PATIENCE: Duration = Duration::from_secs(30);
/// The worker itself keeps to [`DRAIN_PATIENCE`]; after twice that it is stuck in the kernel.
const REST_PATIENCE: Duration = Duration::from_secs(60);
/// After so long a worker may be waiting for a front-end that never reads what it is told, and that is
/// looked after.
const RELIEF: Duration = Duration::from_secs(1);

static TROUBLE: LogLimit = LogLimit::new();

/// What woke a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wake {
    /// The guest, by its kick.
    Kick,
    /// Another thread of the device.
    Knock,
    /// Another queue left something in the mailbox.
    Mailbox,
    /// The store completed something.
    Store,
}

impl Wake {
    /// As the data of an epoll event.
    pub(super) const fn token(self) -> u64 {
        self as u64
    }

    pub(super) fn of(event: &EpollEvent) -> Option<Self> {
        [Self::Kick, Self::Knock, Self::Mailbox, Self::Store]
            .into_iter()
            .find(|wake| wake.token() == event.data())
    }
}

/// An eventfd of the front-end's, or none. Apart from the ring: telling the guest takes no lock that
/// anybody could want for long, and what the guest does with it keeps nobody from the ring. Only the
/// worker raises it: a front-end that fills its counter keeps the writer waiting, and the thread that
/// talks with the front-end is the one that ends that.
#[derive(Debug, Default)]
struct Told {
    event: Mutex<Option<Arc<File>>>,
    /// What the worker is raising, which another may have replaced meanwhile.
    raising: Mutex<Option<Arc<File>>>,
    /// It is to be raised whatever the ring says.
    due: AtomicBool,
}

impl Told {
    fn set(&self, event: Option<File>) {
        *self.event.lock() = event.map(Arc::new);
    }

    /// Lets a worker go on that waits for the front-end to read what it was told.
    fn relieve(&self) {
        if let Some(event) = &*self.raising.lock() {
            sys::empty_event(event);
        }
    }

    fn raise(&self, index: u16, whom: &str) {
        self.due.store(false, Ordering::Release);
        let event = {
            // Whoever replaces it afterwards sees what is raised.
            let event = self.event.lock();
            self.raising.lock().clone_from(&event);
            match &*event {
                Some(event) => Arc::clone(event),
                None => return,
            }
        };
        let raised = sys::raise_event(&event);
        *self.raising.lock() = None;
        if let Err(e) = raised
            && let Some(more) = TROUBLE.allow()
        {
            error!("queue {index}: cannot notify the {whom}: {e} ({more} more like it)");
        }
    }
}

/// What both threads hold of a queue.
#[derive(Debug)]
pub(super) struct QueueHandle {
    index: u16,
    ring: Mutex<Ring>,
    call: Told,
    error: Told,
    events: Arc<Epoll>,
    knock: EventFd,
    /// Set while the queue is to come to rest, cleared by the worker when it has.
    stop: AtomicBool,
    /// The thread is to end once the queue is at rest.
    exit: AtomicBool,
    resting: Mutex<bool>,
    changed: Condvar,
}

impl QueueHandle {
    /// A queue at rest. `mailbox`: the descriptor by which other queues wake its worker.
    pub(super) fn new(ring: Ring, index: u16, mailbox: Option<RawFd>) -> io::Result<Self> {
        let handle = Self {
            index,
            ring: Mutex::new(ring),
            call: Told::default(),
            error: Told::default(),
            events: Arc::new(Epoll::new()?),
            knock: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            stop: AtomicBool::new(false),
            exit: AtomicBool::new(false),
            resting: Mutex::new(true),
            changed: Condvar::new(),
        };
        handle.listen(handle.knock.as_raw_fd(), Wake::Knock)?;
        if let Some(mailbox) = mailbox {
            handle.listen(mailbox, Wake::Mailbox)?;
        }
        Ok(handle)
    }

    /// Has the worker woken by a descriptor of this process, which may do so already: a store can come
    /// with the event of the one before it.
    pub(super) fn listen(&self, fd: RawFd, wake: Wake) -> io::Result<()> {
        let event = EpollEvent::new(EventSet::IN, wake.token());
        match self.events.ctl(ControlOperation::Add, fd, event) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }

    pub(super) fn index(&self) -> u16 {
        self.index
    }

    pub(super) fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock()
    }

    /// Where the worker waits.
    pub(super) fn events(&self) -> &Arc<Epoll> {
        &self.events
    }

    /// Who tells the guest of answers. It is told at once: a daemon before this one may have died
    /// between an answer and telling of it.
    pub(super) fn set_call(&self, event: Option<File>) {
        self.call.set(event);
        self.call.relieve();
        self.call.due.store(true, Ordering::Release);
        self.knock();
    }

    pub(super) fn set_error(&self, event: Option<File>) {
        self.error.set(event);
    }

    /// For the worker: tells what others want told.
    pub(super) fn notify_due(&self) {
        if self.call.due.load(Ordering::Acquire) {
            self.notify();
        }
        if self.error.due.load(Ordering::Acquire) {
            self.notify_error();
        }
    }

    /// Has the worker tell the front-end that the queue was stopped.
    pub(super) fn have_error_notified(&self) {
        self.error.due.store(true, Ordering::Release);
        self.knock();
    }

    /// For the worker: tells the guest that there are answers.
    pub(super) fn notify(&self) {
        self.call.raise(self.index, "guest");
    }

    /// For the worker: tells the front-end that the queue was stopped for what its guest did.
    pub(super) fn notify_error(&self) {
        self.error.raise(self.index, "front-end");
    }

    /// Makes the worker look at its ring, whether it was kicked or not.
    pub(super) fn knock(&self) {
        if let Err(e) = self.knock.write(1) {
            error!("queue {}: cannot wake its worker: {e}", self.index);
        }
    }

    /// For the worker: it was knocked at.
    pub(super) fn clear_knock(&self) {
        // Nothing to read is what a knock that was heard already says.
        let _ = self.knock.read();
    }

    /// Begins to bring the queue to rest.
    pub(super) fn ask_to_rest(&self) {
        let resting = self.resting.lock();
        if !*resting {
            self.stop.store(true, Ordering::Release);
            self.knock();
        }
    }

    /// Waits until what was in flight is answered. `false` if that did not happen.
    pub(super) fn await_rest(&self) -> bool {
        let deadline = Instant::now() + REST_PATIENCE;
        let mut resting = self.resting.lock();
        while !*resting {
            let late = self.changed.wait_for(&mut resting, RELIEF).timed_out();
            if late && !*resting {
                self.call.relieve();
                self.error.relieve();
                if Instant::now() >= deadline {
                    error!("queue {}: its worker did not come to rest", self.index);
                    return false;
                }
            }
        }
        true
    }

    /// Both, for a queue alone.
    pub(super) fn rest(&self) -> bool {
        self.ask_to_rest();
        self.await_rest()
    }

    pub(super) fn is_resting(&self) -> bool {
        *self.resting.lock()
    }

    /// For the worker: what it says of itself. It says that it is up under the ring's lock, and that it
    /// rests when it touches neither guest memory nor eventfds any more.
    pub(super) fn set_resting(&self, resting: bool) {
        let mut state = self.resting.lock();
        *state = resting;
        if resting {
            // Whoever asked twice meant this rest, not the next.
            self.stop.store(false, Ordering::Release);
        }
        self.changed.notify_all();
    }

    /// For the worker: whether it was asked to rest.
    pub(super) fn is_asked_to_rest(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// For the worker: the same, and takes the request as its own.
    pub(super) fn take_rest(&self) -> bool {
        // A load first: the line stays shared as long as nobody asks.
        self.is_asked_to_rest() && self.stop.swap(false, Ordering::AcqRel)
    }

    /// Ends the thread, which must be at rest or on its way there.
    pub(super) fn end(&self) {
        self.exit.store(true, Ordering::Release);
        self.knock();
    }

    pub(super) fn is_ending(&self) -> bool {
        self.exit.load(Ordering::Acquire)
    }

    /// As if no front-end had ever set it up. It must be at rest, or never come there.
    pub(super) fn reset(&self) {
        self.ring.lock().reset();
        for told in [&self.call, &self.error] {
            told.set(None);
            // The worker may be held by what it told before the ring ever ran.
            told.relieve();
        }
    }
}
