//! The thread of one queue.
//!
//! It lives as long as the server, for one front-end after another, and sleeps on one epoll: the kick of
//! its ring, the store's completions, its mailbox, and the knock of whoever changes the ring.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use log::{error, info, warn};
use vmm_sys_util::epoll::EpollEvent;

use super::handle::{DRAIN_PATIENCE, QueueHandle, Wake};
use super::options::WithoutInflight;
use super::ring::Ring;
use super::state::Device;
use super::tracked::Tracked;
use crate::limit::LogLimit;
use crate::queue::{PollWindow, Worker};
use crate::store::Medium;

/// Milliseconds until a queue that could not be started is tried again: what it lacked, memory or
/// descriptors, comes back when others let go of it.
const RETRY_PAUSE_MS: i32 = 500;

static TROUBLE: LogLimit = LogLimit::new();
/// Guests start their queues as often as they like.
static UNTRACKED: LogLimit = LogLimit::new();

/// Everything that belongs to the thread alone.
pub(super) struct QueueThread<M: Medium> {
    device: Arc<Device<M>>,
    queue: Arc<QueueHandle>,
    worker: Worker<M>,
    window: PollWindow,
    /// The region that the worker keeps up to date, guarded for as long as it does.
    tracked: Option<Arc<Tracked>>,
    /// The queue could not be started. Its guest has kicked and does not know: it is tried again.
    retries: bool,
}

impl<M: Medium> QueueThread<M> {
    /// Starts the thread of `queue`, which calls `started` first and ends if that fails.
    pub(super) fn spawn(
        device: &Arc<Device<M>>,
        queue: &Arc<QueueHandle>,
        started: impl FnOnce() -> bool + Send + 'static,
    ) -> io::Result<JoinHandle<()>> {
        let index = queue.index();
        let options = device.options();
        let mut worker = Worker::new(index, Arc::clone(device.volume()), options.serial);
        if let Some(stats) = options.stats.get(usize::from(index)) {
            worker.count_into(Arc::clone(stats));
        }
        let thread = Self {
            device: Arc::clone(device),
            queue: Arc::clone(queue),
            worker,
            window: PollWindow::new(options.poll),
            tracked: None,
            retries: false,
        };
        thread::Builder::new()
            .name(format!("queue-{index}"))
            .spawn(move || {
                if started() {
                    thread.run();
                }
            })
    }

    fn run(mut self) {
        let events = Arc::clone(self.queue.events());
        loop {
            let mut ready = [EpollEvent::default(); 4];
            let patience = if self.retries { RETRY_PAUSE_MS } else { -1 };
            let count = match events.wait(patience, &mut ready) {
                Ok(count) => count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
                Err(e) => {
                    error!("queue {}: cannot wait: {e}", self.queue.index());
                    return;
                }
            };
            for event in ready.iter().take(count) {
                match Wake::of(event) {
                    Some(Wake::Knock) => self.queue.clear_knock(),
                    Some(Wake::Mailbox) => self.worker.clear_wake_up(),
                    Some(Wake::Kick | Wake::Store) | None => {}
                }
            }
            self.queue.notify_due();
            self.serve();
            if self.queue.is_ending() && !self.worker.is_started() {
                return;
            }
        }
    }

    /// Everything that there is to do now.
    fn serve(&mut self) {
        let handle = Arc::clone(&self.queue);
        self.retries = false;
        self.window.woken();
        loop {
            let mut ring = handle.ring();
            if handle.take_rest() {
                self.drain(&mut ring);
                drop(ring);
                handle.notify();
                handle.set_resting(true);
                return;
            }
            let accept = ring.is_served() && !handle.is_paused() && !ring.has_faults();
            if accept && !self.worker.is_started() && !self.start(&mut ring) {
                let lost = ring.broken;
                drop(ring);
                if lost {
                    handle.notify_error();
                }
                return;
            }
            let policy = self.device.policy();
            let state = &mut *ring;
            let accepted = accept.then_some(&policy);
            let pass = self
                .worker
                .service(&mut state.queue, &state.memory, accepted);
            let broke = !ring.broken && self.has_broken(&ring);
            ring.broken |= broke;
            // Whoever changes the ring need not wait for those who are slow to hear.
            drop(ring);
            if pass.notify {
                handle.notify();
            }
            if broke {
                handle.notify_error();
            }
            self.window.saw(pass.traffic);
            if pass.again {
                continue;
            }
            if !accept {
                return;
            }
            if self.watch() {
                continue;
            }
            let mut ring = handle.ring();
            let state = &mut *ring;
            if !self.worker.rest(&mut state.queue, &state.memory) {
                self.window.sleeps();
                return;
            }
        }
    }

    /// Whether nothing in the ring can be trusted any more.
    fn has_broken(&self, ring: &Ring) -> bool {
        let faults = ring.has_faults();
        if faults {
            error!(
                "queue {}: guest memory went away under it (its file shrank); the queue is stopped",
                self.queue.index()
            );
        }
        // What it says is about the ring that it serves, not about one that will be.
        faults || (self.worker.is_started() && self.worker.is_broken())
    }

    /// Watches ring and store for a moment, without the ring's lock. `true` if there is something to do.
    fn watch(&mut self) -> bool {
        let Self {
            queue,
            worker,
            window,
            ..
        } = self;
        let ring = queue.ring();
        let memory = Arc::clone(&ring.memory);
        let mut found = worker.watch(&ring.queue, &memory);
        drop(ring);
        window.watch(|| found(worker) || queue.is_asked_to_rest())
    }

    /// Starts the queue, under the ring's lock: whoever stops it takes that first and then finds that it
    /// does not rest.
    fn start(&mut self, ring: &mut Ring) -> bool {
        let options = self.device.options();
        self.queue.set_resting(false);
        // Who paused before this found a queue at rest, and waits for nothing.
        if self.queue.is_paused() {
            self.queue.set_resting(true);
            return false;
        }
        self.window = PollWindow::new(options.poll);
        let opened = self.worker.start(options.limits.queue_size, ring.faults());
        let listened = opened.and_then(|event| match event {
            Some(fd) => self.queue.listen(fd, Wake::Store),
            None => Ok(()),
        });
        if let Err(e) = listened {
            if let Some(more) = TROUBLE.allow() {
                let index = self.queue.index();
                error!("queue {index}: cannot start: {e}; trying again ({more} more like it)");
            }
            // It may have got half of the way.
            self.drain(ring);
            self.queue.set_resting(true);
            self.retries = true;
            return false;
        }
        self.track(ring)
    }

    /// Takes up what the front-end keeps of the queue, if it keeps anything. `false`, and a broken ring, if
    /// that cannot be: to go on elsewhere would do some requests twice and others never.
    fn track(&mut self, ring: &mut Ring) -> bool {
        let Some(tracked) = &ring.tracked else {
            return self.begin_untracked(ring);
        };
        self.device.past().serves();
        let index = self.queue.index();
        let told = match tracked.queue(index) {
            Some(part) => self
                .worker
                .track(part, &mut ring.queue, &ring.memory)
                .map_err(|e| e.to_string()),
            None => Err("the front-end keeps nothing of what is in flight in it".to_owned()),
        };
        match told {
            Ok(()) => {
                self.tracked = Some(Arc::clone(tracked));
                true
            }
            Err(e) => {
                error!("queue {index}: {e}; the queue is stopped");
                ring.broken = true;
                false
            }
        }
    }

    /// Begins a queue of which the front-end keeps nothing; `false`, and a broken ring, if it holds requests
    /// of which nobody knows whether they were done.
    fn begin_untracked(&self, ring: &mut Ring) -> bool {
        let past = self.device.past();
        let index = self.queue.index();
        if index == 0 && UNTRACKED.allow().is_some() {
            info!(
                "the front-end does not keep what is in flight: if this daemon is killed, its guest must be \
                 restarted"
            );
        }
        let fresh = || self.worker.is_fresh(&ring.queue, &ring.memory);
        if !past.is_unknown() || fresh() {
            past.serves();
            return true;
        }
        match self.device.options().without_inflight {
            WithoutInflight::Resume => {
                warn!(
                    "queue {index}: goes on where the front-end says. The daemon before this one was \
                     killed: requests that were in flight may be done twice or never be answered"
                );
                past.serves();
                true
            }
            WithoutInflight::Refuse => {
                error!(
                    "queue {index}: the daemon before this one was killed, and the front-end does not keep \
                     what was in flight: nobody knows which requests were done, so the queue is not \
                     served. Restart the guest, or serve with --without-inflight resume"
                );
                past.refuses();
                ring.broken = true;
                false
            }
        }
    }

    /// Ends and answers what is in flight. Nothing touches guest memory afterwards.
    fn drain(&mut self, ring: &mut Ring) {
        if !self
            .worker
            .drain(&mut ring.queue, &ring.memory, DRAIN_PATIENCE)
        {
            let index = self.queue.index();
            error!("queue {index}: requests in flight did not end in {DRAIN_PATIENCE:?}");
        }
        self.tracked = None;
    }
}
