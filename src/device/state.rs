//! The disk as front-ends see it: features, configuration, and its queues.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use log::{error, info};
use parking_lot::Mutex;
use vhost::vhost_user::message::VhostUserVirtioFeatures;
use virtio_bindings::virtio_blk as blk;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::handle::QueueHandle;
use super::memory::Region;
use super::options::{DeviceOptions, ThreadKind};
use super::past::Past;
use super::refusal::Refusal;
use super::ring::Ring;
use super::tracked::Tracked;
use super::worker::QueueThread;
use crate::geometry::Model;
use crate::limit::LogLimit;
use crate::request::{ConfigSpace, Policy};
use crate::store::Medium;
use crate::volume::Volume;

static CACHE_CHANGES: LogLimit = LogLimit::new();

/// What all threads of the server share. It lives as long as the server; front-ends come and go.
pub(super) struct Device<M: Medium> {
    volume: Arc<Volume<M>>,
    options: DeviceOptions,
    config: Mutex<ConfigSpace>,
    /// Features that the present front-end took.
    acked: AtomicU64,
    queues: Vec<Arc<QueueHandle>>,
    /// Regions that a front-end took back or left behind while requests still held them: kept guarded
    /// until the last of these has let go.
    retired: Mutex<Vec<Arc<Region>>>,
    past: Past,
    /// What a front-end kept that left while zones were kept for its requests.
    left: Mutex<Option<Arc<Tracked>>>,
}

/// The threads of a device's queues.
#[derive(Debug)]
pub(super) struct Threads(Vec<(Arc<QueueHandle>, JoinHandle<()>)>);

impl<M: Medium> Device<M> {
    /// A device over `volume`, with all its queues at rest.
    pub(super) fn new(volume: Arc<Volume<M>>, options: DeviceOptions) -> io::Result<Self> {
        let limits = options.limits;
        let queues = (0..limits.queues)
            .map(|index| {
                let ring = Ring::new(index, limits.queue_size).map_err(io::Error::other)?;
                QueueHandle::new(ring, index, volume.mailbox_event(index)).map(Arc::new)
            })
            .collect::<io::Result<Vec<_>>>()?;
        Ok(Self {
            config: Mutex::new(ConfigSpace::new(volume.geometry(), limits)),
            past: Past::new(volume.was_killed()),
            volume,
            options,
            acked: AtomicU64::new(0),
            queues,
            retired: Mutex::new(Vec::new()),
            left: Mutex::new(None),
        })
    }

    /// Starts a thread for each queue and waits until each has called the hook of the options.
    ///
    /// # Errors
    /// A thread cannot be started, or the hook failed on one.
    pub(super) fn start_threads(self: &Arc<Self>) -> io::Result<Threads> {
        let mut threads = Threads(Vec::new());
        let (report, reports) = mpsc::channel();
        for queue in &self.queues {
            let report = report.clone();
            let hook = self.options.thread_started.clone();
            let started = move || {
                let result = hook.call(ThreadKind::Worker);
                let started = result.is_ok();
                // Nobody listens any more if another one failed.
                let _ = report.send(result);
                started
            };
            let thread = QueueThread::spawn(self, queue, started)?;
            threads.0.push((Arc::clone(queue), thread));
        }
        drop(report);
        for result in reports {
            result?;
        }
        Ok(threads)
    }

    pub(super) fn volume(&self) -> &Arc<Volume<M>> {
        &self.volume
    }

    pub(super) fn past(&self) -> &Past {
        &self.past
    }

    pub(super) fn options(&self) -> &DeviceOptions {
        &self.options
    }

    pub(super) fn queues(&self) -> &[Arc<QueueHandle>] {
        &self.queues
    }

    /// A new front-end, which finds nothing of what the last one set up, and the write cache on.
    pub(super) fn begin(&self) {
        self.past.next_front_end();
        self.acked.store(0, Ordering::Release);
        self.config.lock().set_writeback(true);
        self.volume.set_write_cache(true);
    }

    /// Brings all queues to rest, all at once. `false` if one does not come there. None may be served
    /// any more.
    pub(super) fn rest(&self) -> bool {
        for queue in &self.queues {
            queue.ask_to_rest();
        }
        // All in the same time.
        let deadline = QueueHandle::rest_deadline();
        let rested = self
            .queues
            .iter()
            .filter(|queue| queue.await_rest(deadline));
        rested.count() == self.queues.len()
    }

    /// Stops all queues and forgets how they were set up. `false` if one did not come to rest.
    pub(super) fn stop_all(&self) -> bool {
        let deadline = QueueHandle::lock_deadline();
        for queue in &self.queues {
            queue.stop_serving(deadline);
        }
        let rested = self.rest();
        for queue in &self.queues {
            queue.reset();
        }
        rested
    }

    /// Whether a ring is started, and all can be reached.
    ///
    /// # Errors
    /// [`Refusal::Stuck`].
    pub(super) fn is_any_started(&self) -> Result<bool, Refusal> {
        let mut any = false;
        for queue in &self.queues {
            any |= queue.reach()?.is_started();
        }
        Ok(any)
    }

    /// A queue that is not at rest, if there is one.
    pub(super) fn busy(&self) -> Option<u16> {
        let busy = self.queues.iter().find(|queue| !queue.is_resting());
        busy.map(|queue| queue.index())
    }

    /// The guest starts over: RESET_DEVICE.
    ///
    /// # Errors
    /// A queue that did not come to rest.
    pub(super) fn reset(&self) -> Result<(), u16> {
        self.stop_all();
        self.acked.store(0, Ordering::Release);
        self.config.lock().set_writeback(true);
        self.apply_write_cache();
        self.busy().map_or(Ok(()), Err)
    }

    /// Lets go of memory that no table has any more, as soon as no request holds it.
    pub(super) fn retire(&self, regions: Vec<Arc<Region>>) {
        let mut retired = self.retired.lock();
        retired.extend(regions);
        retired.retain(|region| region.is_in_use());
    }

    /// A front-end leaves whose requests are still waited for. `kept`: where it will look what became of
    /// them.
    pub(super) fn leave(&self, kept: Option<Arc<Tracked>>) {
        if let Some(kept) = kept {
            *self.left.lock() = Some(kept);
        }
    }

    /// What such a front-end kept.
    pub(super) fn take_left(&self) -> Option<Arc<Tracked>> {
        self.left.lock().take()
    }

    pub(super) fn is_plain(&self) -> bool {
        self.volume.geometry().model() == Model::Plain
    }

    /// What the device can do, with vhost-user's own bit.
    pub(super) fn features(&self) -> u64 {
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

    /// The features that the front-end took.
    pub(super) fn acked_features(&self) -> u64 {
        self.acked.load(Ordering::Acquire)
    }

    fn acked(&self, feature: u32) -> bool {
        self.acked_features() & (1 << feature) != 0
    }

    /// The front-end's choice, of what was offered.
    pub(super) fn set_features(&self, features: u64) {
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
            tell_of_missing_zoned();
        }
    }

    /// Whether the driver names the entries of which it wants to hear.
    pub(super) fn has_event_index(&self) -> bool {
        self.acked(VIRTIO_RING_F_EVENT_IDX)
    }

    /// `size` bytes of the configuration space from `offset`; zero past its end.
    pub(super) fn read_config(&self, offset: u32, size: u32) -> Vec<u8> {
        self.config.lock().read(offset, size)
    }

    /// The driver's write into the configuration space: whatever it says of the write cache counts, the
    /// rest cannot be written and keeps its value.
    pub(super) fn write_config(&self, offset: u32, bytes: &[u8]) {
        let Some(on) = ConfigSpace::requested_writeback(offset, bytes) else {
            return;
        };
        let before = {
            let mut config = self.config.lock();
            let before = config.writeback();
            config.set_writeback(on);
            before
        };
        if on != before && CACHE_CHANGES.allow().is_some() {
            let to = if on { "on" } else { "off" };
            info!("the guest turns the write cache {to}");
        }
        self.apply_write_cache();
    }

    /// Whether the guest has the write cache on.
    pub(super) fn write_cache(&self) -> bool {
        self.config.lock().writeback()
    }

    /// The guest switched the write cache off for a daemon before this one, and does not know of that.
    pub(super) fn keep_write_cache_off(&self) {
        self.config.lock().set_writeback(false);
        self.apply_write_cache();
    }

    /// D16 of virtio-blk: without FLUSH a driver cannot ask for durability, so every write has it.
    fn apply_write_cache(&self) {
        let on = self.acked(blk::VIRTIO_BLK_F_FLUSH) && self.config.lock().writeback();
        self.volume.set_write_cache(on);
    }

    /// What requests are judged by.
    pub(super) fn policy(&self) -> Policy {
        Policy {
            geometry: *self.volume.geometry(),
            read_only: self.volume.is_read_only(),
            zoned: self.acked(blk::VIRTIO_BLK_F_ZONED),
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        for (queue, _) in &self.0 {
            queue.end();
        }
        for (queue, thread) in self.0.drain(..) {
            // One that is stuck in the kernel is left behind: waiting for it would be for ever.
            if queue.is_resting() && queue.await_end(&thread) && thread.join().is_err() {
                error!("queue {}: its worker ended badly", queue.index());
            }
        }
    }
}

fn tell_of_missing_zoned() {
    error!(
        "the front-end did not take VIRTIO_BLK_F_ZONED, so this zoned disk does no I/O: \
         use a front-end that passes it (QEMU 10.2's vhost-user-test-device-pci, crosvm), \
         or make a disk without zones with `zonevault create --plain`"
    );
}
