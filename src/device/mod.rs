//! The vhost-user face of a disk: features, configuration, queues started and stopped.
//!
//! The only module that names vhost-user. A [`Device`] lives for one connection of a front-end and
//! shares the [`Volume`] with those before and after it. Each queue has one worker thread, which
//! sleeps on the kick of its ring and on one more descriptor that gathers everything else: the
//! store's completions, the mailbox, a request to stop.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use log::{error, info, warn};
use parking_lot::{Condvar, Mutex};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackend, VringMutex, VringStateMutGuard, VringT};
use virtio_bindings::virtio_blk as blk;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueT;
use vm_memory::{GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::event::{EventConsumer, EventNotifier};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

mod server;

pub use server::{ServeError, Server, Stop};

use crate::geometry::Model;
use crate::limit::LogLimit;
use crate::queue::stats::QueueStats;
use crate::queue::{PollWindow, Worker};
use crate::request::{ConfigSpace, DeviceLimits, Policy, SERIAL_LEN};
use crate::store::Medium;
use crate::volume::Volume;

/// How long a stopping queue may take to bring what is in flight to an end. Longer than any disk
/// that is still alive, shorter than the patience of whoever waits for the front-end.
const DRAIN_PATIENCE: Duration = Duration::from_secs(30);

static TROUBLE: LogLimit = LogLimit::new();

type Ring = VringMutex<GuestMemoryAtomic<GuestMemoryMmap>>;

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
/// threads of queues start with [`Server::run`], live as long as that and serve one front-end after
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
    fn call(&self, kind: ThreadKind) -> io::Result<()> {
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
    /// Called on each thread.
    pub thread_started: ThreadHook,
}

/// What other threads ask of a worker.
#[derive(Debug)]
struct Control {
    /// Gathers the descriptors that wake the worker besides its ring's kick.
    wake: Epoll,
    knock: EventFd,
    /// Set while the queue is to come to rest, cleared by the worker when it has.
    stop: AtomicBool,
    stopped: Mutex<bool>,
    changed: Condvar,
}

impl Control {
    fn new<M: Medium>(volume: &Volume<M>, queue: u16) -> io::Result<Self> {
        let control = Self {
            wake: Epoll::new()?,
            knock: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            stop: AtomicBool::new(false),
            stopped: Mutex::new(true),
            changed: Condvar::new(),
        };
        control.listen(control.knock.as_raw_fd())?;
        if let Some(mailbox) = volume.mailbox_event(queue) {
            control.listen(mailbox)?;
        }
        Ok(control)
    }

    fn listen(&self, fd: i32) -> io::Result<()> {
        let event = EpollEvent::new(EventSet::IN, 0);
        self.wake.ctl(ControlOperation::Add, fd, event)
    }

    fn set_stopped(&self, stopped: bool) {
        *self.stopped.lock() = stopped;
        self.changed.notify_all();
    }
}

#[derive(Debug)]
struct DeviceQueue<M: Medium> {
    worker: Mutex<Worker<M>>,
    window: Mutex<PollWindow>,
    control: Control,
}

/// A disk as one front-end sees it.
pub struct Device<M: Medium> {
    volume: Arc<Volume<M>>,
    options: DeviceOptions,
    memory: GuestMemoryAtomic<GuestMemoryMmap>,
    config: Mutex<ConfigSpace>,
    acked: AtomicU64,
    /// The front-end is gone: a late kick must not start a queue again.
    closing: AtomicBool,
    queues: Vec<DeviceQueue<M>>,
}

impl<M: Medium> std::fmt::Debug for Device<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl<M: Medium> Device<M> {
    /// A device over `volume` for one connection. `memory` is what the protocol thread keeps up to
    /// date.
    pub fn new(
        volume: Arc<Volume<M>>,
        options: DeviceOptions,
        memory: GuestMemoryAtomic<GuestMemoryMmap>,
    ) -> io::Result<Self> {
        let queues = (0..options.limits.queues)
            .map(|index| {
                let mut worker = Worker::new(index, Arc::clone(&volume), options.serial);
                if let Some(stats) = options.stats.get(usize::from(index)) {
                    worker.count_into(Arc::clone(stats));
                }
                Ok(DeviceQueue {
                    worker: Mutex::new(worker),
                    window: Mutex::new(PollWindow::new(options.poll)),
                    control: Control::new(&volume, index)?,
                })
            })
            .collect::<io::Result<Vec<_>>>()?;
        // A new guest finds the write cache on, whatever the last one wanted.
        volume.set_write_cache(true);
        Ok(Self {
            config: Mutex::new(ConfigSpace::new(volume.geometry(), options.limits)),
            volume,
            options,
            memory,
            acked: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            queues,
        })
    }

    /// For each worker thread, the descriptor that wakes it besides its ring's kick; to register
    /// with [`Device::wake_event`] as its data.
    pub fn wake_fds(&self) -> impl Iterator<Item = i32> + '_ {
        self.queues
            .iter()
            .map(|queue| queue.control.wake.as_raw_fd())
    }

    /// The event number of those descriptors: the first that the framework leaves free.
    pub fn wake_event(&self) -> u64 {
        u64::from(self.options.limits.queues) + 1
    }

    /// Brings every queue to rest for good, and ends the worker threads: the framework's own way
    /// to end them leaks a descriptor each.
    pub fn close(&self) {
        self.closing.store(true, Ordering::Release);
        self.stop_all();
        for queue in &self.queues {
            if let Err(e) = queue.control.knock.write(1) {
                error!("cannot end a worker: {e}");
            }
        }
    }

    fn stop_all(&self) {
        for index in 0..self.options.limits.queues {
            self.stop(index);
        }
    }

    /// Brings a queue to rest: its worker ends what is in flight and answers it.
    fn stop(&self, index: u16) {
        let Some(queue) = self.queues.get(usize::from(index)) else {
            return;
        };
        let control = &queue.control;
        let mut stopped = control.stopped.lock();
        if *stopped {
            return;
        }
        control.stop.store(true, Ordering::Release);
        if let Err(e) = control.knock.write(1) {
            error!("queue {index}: cannot wake its worker: {e}");
            return;
        }
        // The worker itself keeps to DRAIN_PATIENCE; twice that means it is gone.
        let timeout = DRAIN_PATIENCE * 2;
        let late = control
            .changed
            .wait_while_for(&mut stopped, |stopped| !*stopped, timeout)
            .timed_out();
        if late {
            error!("queue {index}: its worker did not come to rest");
        }
    }

    fn is_stopped(&self, index: usize) -> bool {
        let queue = self.queues.get(index);
        queue.is_none_or(|queue| *queue.control.stopped.lock())
    }

    fn is_plain(&self) -> bool {
        self.volume.geometry().model() == Model::Plain
    }

    fn acked(&self, feature: u32) -> bool {
        self.acked.load(Ordering::Acquire) & (1 << feature) != 0
    }

    /// D16 of virtio-blk: without FLUSH a driver cannot ask for durability, so every write has it.
    fn apply_write_cache(&self) {
        let on = self.acked(blk::VIRTIO_BLK_F_FLUSH) && self.config.lock().writeback();
        self.volume.set_write_cache(on);
    }

    fn policy(&self) -> Policy {
        Policy {
            geometry: *self.volume.geometry(),
            read_only: self.volume.is_read_only(),
            zoned: self.acked(blk::VIRTIO_BLK_F_ZONED),
        }
    }

    /// Everything that a worker does when it was woken, by the kick of its ring or (`knocked`)
    /// another thread.
    fn run(&self, index: usize, ring: &Ring, knocked: bool) {
        let Some(queue) = self.queues.get(index) else {
            return;
        };
        let mut worker = queue.worker.lock();
        let control = &queue.control;
        if knocked {
            // Reading what is not there says so; all that counts is that it is quiet afterwards.
            let _ = control.knock.read();
            worker.clear_wake_up();
        }
        let mut window = queue.window.lock();
        window.woken();
        loop {
            let mut state = ring.get_mut();
            let memory = self.memory.memory().into_inner();
            if control.stop.swap(false, Ordering::AcqRel) {
                let _ = control.knock.read();
                self.drain(index, &mut worker, &mut state, &memory);
                control.set_stopped(true);
                return;
            }
            let accept = state.is_enabled()
                && state.get_queue().ready()
                && !self.closing.load(Ordering::Acquire);
            if accept && !worker.is_started() && !self.start(index, &mut worker, control) {
                return;
            }
            let policy = self.policy();
            let pass = worker.service(state.get_queue_mut(), &memory, accept.then_some(&policy));
            if pass.notify
                && let Err(e) = state.signal_used_queue()
                && let Some(more) = TROUBLE.allow()
            {
                error!("queue {index}: cannot notify the guest: {e} ({more} more like it)");
            }
            if pass.again {
                window.found();
                continue;
            }
            if !accept {
                return;
            }
            // Not under the ring's lock: whoever changes the ring need not wait for this.
            let mut found = worker.watch(state.get_queue(), &memory);
            drop(state);
            if window.watch(|| found(&mut worker) || control.stop.load(Ordering::Acquire)) {
                continue;
            }
            if !worker.rest(ring.get_mut().get_queue_mut(), &memory) {
                window.sleeps();
                return;
            }
        }
    }

    /// Starts a queue, unless the device is being closed: that looks at `stopped` once.
    fn start(&self, index: usize, worker: &mut Worker<M>, control: &Control) -> bool {
        {
            let mut stopped = control.stopped.lock();
            if self.closing.load(Ordering::Acquire) {
                return false;
            }
            *stopped = false;
        }
        let started = worker
            .start(self.options.limits.queue_size)
            .and_then(|event| event.map_or(Ok(()), |fd| control.listen(fd)));
        if let Err(e) = &started {
            control.set_stopped(true);
            if let Some(more) = TROUBLE.allow() {
                error!("queue {index}: cannot start: {e} ({more} more like it)");
            }
        }
        started.is_ok()
    }

    fn drain(
        &self,
        index: usize,
        worker: &mut Worker<M>,
        state: &mut <Ring as VringStateMutGuard<'_, GuestMemoryAtomic<GuestMemoryMmap>>>::G,
        memory: &Arc<GuestMemoryMmap>,
    ) {
        if !worker.drain(state.get_queue_mut(), memory, DRAIN_PATIENCE) {
            error!("queue {index}: requests in flight did not end in {DRAIN_PATIENCE:?}");
        }
        if let Err(e) = state.signal_used_queue() {
            warn!("queue {index}: cannot notify the guest: {e}");
        }
    }

    fn tell_of_missing_zoned(&self) {
        error!(
            "the front-end did not take VIRTIO_BLK_F_ZONED, so this zoned disk does no I/O: \
             use a front-end that passes it (QEMU 10.2's vhost-user-test-device-pci, crosvm), \
             or make a disk without zones with `zonevault create --plain`"
        );
    }
}

impl<M: Medium> VhostUserBackend for Device<M> {
    type Bitmap = ();
    type Vring = Ring;

    fn num_queues(&self) -> usize {
        usize::from(self.options.limits.queues)
    }

    fn max_queue_size(&self) -> usize {
        usize::from(self.options.limits.queue_size)
    }

    fn features(&self) -> u64 {
        let mut bits = vec![
            VIRTIO_F_VERSION_1,
            VIRTIO_RING_F_EVENT_IDX,
            VIRTIO_RING_F_INDIRECT_DESC,
            blk::VIRTIO_BLK_F_SEG_MAX,
            blk::VIRTIO_BLK_F_BLK_SIZE,
            blk::VIRTIO_BLK_F_FLUSH,
            blk::VIRTIO_BLK_F_TOPOLOGY,
            blk::VIRTIO_BLK_F_CONFIG_WCE,
            blk::VIRTIO_BLK_F_MQ,
        ];
        if self.volume.is_read_only() {
            bits.push(blk::VIRTIO_BLK_F_RO);
        }
        if !self.is_plain() {
            bits.push(blk::VIRTIO_BLK_F_ZONED);
        } else if !self.volume.is_read_only() {
            bits.extend([blk::VIRTIO_BLK_F_DISCARD, blk::VIRTIO_BLK_F_WRITE_ZEROES]);
        }
        let offered = bits.iter().fold(0, |all, bit| all | 1 << bit);
        offered | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn acked_features(&self, features: u64) {
        let before = self.acked.swap(features, Ordering::AcqRel);
        if features != before {
            // D2 of virtio-blk: a driver that cannot flush starts without a write cache.
            let flush = self.acked(blk::VIRTIO_BLK_F_FLUSH);
            self.config.lock().set_writeback(flush);
        }
        self.apply_write_cache();
        // Some front-ends first claim the device with next to no features; a driver that has
        // looked at it takes VERSION_1.
        let driver = features & (1 << VIRTIO_F_VERSION_1) != 0;
        if driver && features != before && !self.is_plain() && !self.acked(blk::VIRTIO_BLK_F_ZONED)
        {
            self.tell_of_missing_zoned();
        }
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::RESET_DEVICE
    }

    fn reset_device(&self) {
        self.stop_all();
        self.config.lock().set_writeback(true);
        self.acked.store(0, Ordering::Release);
    }

    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        self.config.lock().read(offset, size)
    }

    fn set_config(&self, offset: u32, buf: &[u8]) -> io::Result<()> {
        if let Some(on) = ConfigSpace::requested_writeback(offset, buf) {
            let before = {
                let mut config = self.config.lock();
                let before = config.writeback();
                config.set_writeback(on);
                before
            };
            if on != before && TROUBLE.allow().is_some() {
                let to = if on { "on" } else { "off" };
                info!("the guest turns the write cache {to}");
            }
            self.apply_write_cache();
        }
        Ok(())
    }

    fn update_memory(&self, _memory: GuestMemoryAtomic<GuestMemoryMmap>) -> io::Result<()> {
        // Every request holds the map it came with; new ones see the new map.
        Ok(())
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        (0..self.options.limits.queues)
            .map(|queue| 1 << queue)
            .collect()
    }

    fn exit_event(&self, _thread_index: usize) -> Option<(EventConsumer, EventNotifier)> {
        // The framework never closes the descriptor of one; `close` ends the workers.
        None
    }

    fn stop_vring(&self, queue_index: u32) -> io::Result<()> {
        if let Ok(index) = u16::try_from(queue_index) {
            self.stop(index);
        }
        Ok(())
    }

    fn handle_event(
        &self,
        device_event: u16,
        _events: EventSet,
        rings: &[Ring],
        thread_id: usize,
    ) -> io::Result<()> {
        if let Some(ring) = rings.first() {
            let knocked = u64::from(device_event) == self.wake_event();
            self.run(thread_id, ring, knocked);
        }
        // An error ends the worker for good, so nothing that a guest does is one.
        if self.closing.load(Ordering::Acquire) && self.is_stopped(thread_id) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        Ok(())
    }
}
