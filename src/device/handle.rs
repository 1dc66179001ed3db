//! One queue, as the thread that talks with the front-end and the worker's thread share it.
//!
//! The worker holds the ring's lock while it takes and answers, never while it waits for anything of the
//! front-end's: whoever sets the ring up waits for the end of one pass at most. To bring a queue to rest
//! is [`QueueHandle::ask_to_rest`] and then [`QueueHandle::await_rest`]: the ring must no longer be
//! served by then ([`Ring::is_served`], [`QueueHandle::pause`]), or the worker starts it again.
//!
//! A pass may wait for the host's disk, and one that is dead keeps the worker in the kernel with the lock.
//! So the thread that talks with the front-end only ever tries for it ([`QueueHandle::reach`]). A ring that
//! it cannot reach when the front-end leaves is [`left`](QueueHandle::stop_serving): the worker takes
//! nothing more from it should it come back, and the ring is forgotten when it can be reached.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use log::error;
use parking_lot::{Condvar, Mutex, MutexGuard};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::refusal::Refusal;
use super::ring::Ring;
use super::sys;
use crate::limit::LogLimit;

/// How long a stopping queue may take to bring what is in flight to an end. Longer than any disk
/// that is still alive, shorter than the patience of whoever waits for the front-end.
pub(super) const DRAIN_PATIENCE: Duration = Duration::from_secs(30);
/// The worker itself keeps to [`DRAIN_PATIENCE`]; after twice that it is stuck in the kernel.
const REST_PATIENCE: Duration = Duration::from_secs(60);
/// How long to try for the lock of a ring: a pass that takes longer waits for a disk that is as good as
/// dead.
const LOCK_PATIENCE: Duration = DRAIN_PATIENCE;
/// The same for the ring of a worker that was given up: it may have come back.
const LATE_PATIENCE: Duration = Duration::from_millis(100);
/// How long a thread that rests may take to end: it has one thing left to do, a few times if the front-end
/// is ill-natured.
const END_PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks whether it has.
const END_PAUSE: Duration = Duration::from_millis(1);
/// After so long a worker may be waiting for a front-end that never reads what it is told, and that is
/// looked after.
const RELIEF: Duration = Duration::from_secs(1);

/// Who is told by a call event and by an error event, in messages.
const GUEST: &str = "guest";
const FRONT_END: &str = "front-end";

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

    /// Another one, which is to be raised.
    fn replace(&self, event: Option<File>) {
        let mut place = self.event.lock();
        *place = event.map(Arc::new);
        self.due.store(true, Ordering::Release);
    }

    /// None, and nothing that is to be told: the next front-end has nothing to do with it.
    fn reset(&self) {
        let mut place = self.event.lock();
        *place = None;
        self.due.store(false, Ordering::Release);
    }

    /// Lets a worker go on that waits for the front-end to read what it was told.
    fn relieve(&self) {
        if let Some(event) = &*self.raising.lock() {
            sys::empty_event(event);
        }
    }

    /// Raises it, or does so only if it is due.
    fn raise(&self, index: u16, whom: &str, only_if_due: bool) {
        let event = {
            // Whoever replaces it afterwards sees what is raised.
            let event = self.event.lock();
            let due = self.due.swap(false, Ordering::AcqRel);
            if only_if_due && !due {
                return;
            }
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
    /// Nothing is taken from the ring: its memory changes.
    paused: AtomicBool,
    /// The worker did not do in time what it was asked to.
    late: AtomicBool,
    /// The front-end is gone, and its ring could not be reached to say so.
    left: AtomicBool,
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
            paused: AtomicBool::new(false),
            late: AtomicBool::new(false),
            left: AtomicBool::new(false),
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

    /// For the worker: the ring, however long others set it up.
    pub(super) fn ring(&self) -> MutexGuard<'_, Ring> {
        let mut ring = self.ring.lock();
        if self.left.load(Ordering::Acquire) {
            ring.stop();
        }
        ring
    }

    /// For everybody else: the ring.
    ///
    /// # Errors
    /// [`Refusal::Stuck`]: its worker does not let go of it.
    pub(super) fn reach(&self) -> Result<MutexGuard<'_, Ring>, Refusal> {
        self.reach_by(Self::lock_deadline())
    }

    /// When patience ends with the locks of all queues together.
    pub(super) fn lock_deadline() -> Instant {
        Instant::now() + LOCK_PATIENCE
    }

    fn reach_by(&self, deadline: Instant) -> Result<MutexGuard<'_, Ring>, Refusal> {
        let left = deadline.saturating_duration_since(Instant::now());
        let patience = match self.late.load(Ordering::Acquire) {
            true => LATE_PATIENCE,
            false => left.max(LATE_PATIENCE),
        };
        let Some(mut ring) = self.ring.try_lock_for(patience) else {
            self.note_late();
            return Err(Refusal::Stuck(self.index));
        };
        self.late.store(false, Ordering::Release);
        if self.left.load(Ordering::Acquire) {
            match self.is_resting() {
                true => {
                    ring.forget();
                    self.left.store(false, Ordering::Release);
                }
                false => ring.stop(),
            }
        }
        Ok(ring)
    }

    fn note_late(&self) {
        if !self.late.swap(true, Ordering::AcqRel) {
            error!(
                "queue {}: its worker does not come back from the host's disk; until it does the queue \
                 serves nobody",
                self.index
            );
        }
    }

    /// Has nothing be taken from the ring until [`QueueHandle::go_on`].
    pub(super) fn pause(&self) {
        self.paused.store(true, Ordering::Release);
    }

    /// The end of a pause.
    pub(super) fn go_on(&self) {
        self.paused.store(false, Ordering::Release);
        self.knock();
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Acquire)
    }

    /// Takes no more chains, for a front-end that leaves: `deadline` is for the lock.
    pub(super) fn stop_serving(&self, deadline: Instant) {
        match self.reach_by(deadline) {
            Ok(mut ring) => ring.stop(),
            Err(_) => self.left.store(true, Ordering::Release),
        }
    }

    /// Where the worker waits.
    pub(super) fn events(&self) -> &Arc<Epoll> {
        &self.events
    }

    /// Who tells the guest of answers. It is told at once: a daemon before this one may have died
    /// between an answer and telling of it.
    pub(super) fn set_call(&self, event: Option<File>) {
        self.call.replace(event);
        self.call.relieve();
        self.knock();
    }

    pub(super) fn set_error(&self, event: Option<File>) {
        self.error.set(event);
    }

    /// For the worker: tells what others want told.
    pub(super) fn notify_due(&self) {
        for (told, whom) in [(&self.call, GUEST), (&self.error, FRONT_END)] {
            // A load first: it is seldom due.
            if told.due.load(Ordering::Acquire) {
                told.raise(self.index, whom, true);
            }
        }
    }

    /// Has the worker tell the front-end that the queue was stopped.
    pub(super) fn have_error_notified(&self) {
        self.error.due.store(true, Ordering::Release);
        self.knock();
    }

    /// For the worker: tells the guest that there are answers.
    pub(super) fn notify(&self) {
        self.call.raise(self.index, GUEST, false);
    }

    /// For the worker: tells the front-end that the queue was stopped for what its guest did.
    pub(super) fn notify_error(&self) {
        self.error.raise(self.index, FRONT_END, false);
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

    /// Waits until what was in flight is answered. `false` if that did not happen by `deadline`, or once
    /// more after the worker was relieved.
    pub(super) fn await_rest(&self, deadline: Instant) -> bool {
        let mut resting = self.resting.lock();
        let mut relieved = false;
        while !*resting {
            let late = self.changed.wait_for(&mut resting, RELIEF).timed_out();
            if !late || *resting {
                continue;
            }
            let over = self.late.load(Ordering::Acquire) || Instant::now() >= deadline;
            if over && relieved {
                self.note_late();
                return false;
            }
            self.relieve();
            relieved = true;
        }
        true
    }

    /// When patience ends with queues that are asked to rest now.
    pub(super) fn rest_deadline() -> Instant {
        Instant::now() + REST_PATIENCE
    }

    /// Both, for a queue alone.
    pub(super) fn rest(&self) -> bool {
        self.ask_to_rest();
        self.await_rest(Self::rest_deadline())
    }

    /// Lets the worker go on that waits for the front-end to read what it was told.
    pub(super) fn relieve(&self) {
        self.call.relieve();
        self.error.relieve();
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
            self.late.store(false, Ordering::Release);
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

    /// Waits for the end of the thread, which was told. It may be telling a front-end that does not read,
    /// and may then fall to it again. `false`: it is best left behind.
    pub(super) fn await_end(&self, thread: &JoinHandle<()>) -> bool {
        let deadline = Instant::now() + END_PATIENCE;
        while !thread.is_finished() {
            if Instant::now() >= deadline {
                error!("queue {}: its worker does not end", self.index);
                return false;
            }
            self.relieve();
            thread::sleep(END_PAUSE);
        }
        true
    }

    pub(super) fn is_ending(&self) -> bool {
        self.exit.load(Ordering::Acquire)
    }

    /// As if no front-end had ever set it up. It must be at rest, or be late.
    pub(super) fn reset(&self) {
        match self.reach_by(Instant::now()) {
            Ok(mut ring) => ring.reset(),
            Err(_) => self.left.store(true, Ordering::Release),
        }
        self.paused.store(false, Ordering::Release);
        for told in [&self.call, &self.error] {
            told.reset();
            // The worker may be held by what it told before the ring ever ran.
            told.relieve();
        }
    }
}
