//! Messages of the front-end, and what each does to the device.
//!
//! The `vhost` crate reads a message and checks its form: version, sizes, number of descriptors, flags,
//! and whether the protocol feature that it belongs to was taken. Everything that depends on the state of
//! the device is checked here. A message is obeyed as a whole or refused as a whole ([`Refusal`]); one
//! that only asks and cannot be answered ends the connection, as there is no answer that says so.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{error, warn};
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    Error as ProtocolError, GpuBackend, Result as ProtocolResult, VhostUserBackendReqHandlerMut,
};
use virtio_queue::QueueT;

use super::handle::{QueueHandle, Wake};
use super::memory::{MAX_REGIONS, Place, Table};
use super::refusal::Refusal;
use super::ring::{Addresses, Kick};
use super::state::Device;
use super::sys;
use super::tracked::{self, Tracked};
use crate::limit::LogLimit;
use crate::store::Medium;

/// How long zones are kept for requests that the front-end says were in flight and has not brought back
/// yet. It starts its queues one right after the other, in a loop that takes milliseconds: this is a
/// thousand times as long, for a host that swaps. One that it never starts again must not keep the guest
/// from a zone for long: its other requests wait meanwhile, and block layers of guests call 30 s a hang.
const RETURN_PATIENCE: Duration = Duration::from_secs(5);

static LOST_RINGS: LogLimit = LogLimit::new();

/// What a front-end may use besides virtio itself.
const PROTOCOL_FEATURES: VhostUserProtocolFeatures = VhostUserProtocolFeatures::CONFIG
    .union(VhostUserProtocolFeatures::MQ)
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    .union(VhostUserProtocolFeatures::INFLIGHT_SHMFD)
    .union(VhostUserProtocolFeatures::RESET_DEVICE);

/// One connection's state.
pub(super) struct Handler<M: Medium> {
    device: Arc<Device<M>>,
    owned: bool,
    protocol: VhostUserProtocolFeatures,
    memory: Table,
    /// What the front-end keeps of requests in flight, and of the write cache.
    tracked: Option<Arc<Tracked>>,
    /// When zones are no longer kept for requests that were in flight.
    give_up: Option<Instant>,
}

impl<M: Medium> Handler<M> {
    /// A new connection to a device at rest.
    pub(super) fn new(device: Arc<Device<M>>) -> Self {
        device.begin();
        Self {
            device,
            owned: false,
            protocol: VhostUserProtocolFeatures::empty(),
            memory: Table::empty(),
            tracked: None,
            give_up: None,
        }
    }

    /// What is to be done without a message, and how long until the next such thing.
    pub(super) fn tick(&mut self) -> Option<Duration> {
        let at = self.give_up?;
        let left = at.saturating_duration_since(Instant::now());
        if !self.device.volume().expects() {
            self.device.take_left();
            self.give_up = None;
        } else if left.is_zero() {
            warn!("requests that were in flight did not come back in {RETURN_PATIENCE:?}");
            self.give_up();
        }
        self.give_up.map(|_| left)
    }

    /// Zones take whatever comes, and requests that were in flight and did not come back are not done.
    fn give_up(&mut self) {
        // What was left behind is let go of after it was told.
        let _left = self.device.take_left();
        self.device.volume().give_up();
        self.give_up = None;
    }

    /// Whether the front-end may ask for acknowledgements.
    pub(super) fn acknowledges(&self) -> bool {
        self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK)
    }

    /// Whether the front-end keeps what is in flight.
    pub(super) fn is_tracked(&self) -> bool {
        self.tracked.is_some()
    }

    /// The front-end is gone: ends what is in flight, as long as its memory is still there, and forgets
    /// everything about it.
    pub(super) fn close(&mut self) {
        if !self.device.stop_all() {
            error!("requests of the front-end that left are still in flight");
        }
        let memory = std::mem::replace(&mut self.memory, Table::empty());
        self.use_memory();
        self.device.retire(memory.without_those_of(&self.memory));
        // What it did not bring back by now it brings with its next connection. If another front-end comes
        // first, it is noted where this one will look.
        if self.device.volume().expects() {
            self.device.leave(self.tracked.take());
        } else {
            self.device.take_left();
        }
        self.tracked = None;
    }

    fn queue(&self, index: u32) -> Result<&Arc<QueueHandle>, Refusal> {
        let queues = self.device.queues();
        let at = usize::try_from(index).ok();
        at.and_then(|at| queues.get(at))
            .ok_or(Refusal::NoSuchQueue {
                index,
                queues: queues.len(),
            })
    }

    /// Starts a queue if everything that it needs is there, and has its worker look at it.
    fn try_start(&mut self, queue: &QueueHandle) -> Result<(), Refusal> {
        if self.tracked.is_none() && self.device.volume().expects() {
            warn!(
                "this front-end does not bring back what another had in flight: that is given up"
            );
            self.give_up();
        }
        {
            let mut ring = queue.reach()?;
            // One that went on working for a front-end that left.
            if !ring.is_started() && !queue.is_resting() {
                return Err(Refusal::Busy(queue.index()));
            }
            ring.try_start(&self.memory)?;
        }
        queue.knock();
        Ok(())
    }

    /// Brings all queues to rest, does `change` on the memory, and has those that ran go on in it.
    fn change_memory(
        &mut self,
        change: impl FnOnce(&Table) -> Result<Table, Refusal>,
    ) -> Result<(), Refusal> {
        // Whatever cannot be mapped is found out before anything is touched.
        let next = change(&self.memory)?;
        for queue in self.device.queues() {
            queue.pause();
        }
        let rested = self.device.rest();
        let before = if rested {
            let before = std::mem::replace(&mut self.memory, next);
            self.use_memory();
            before
        } else {
            next
        };
        for queue in self.device.queues() {
            queue.go_on();
        }
        self.device.retire(before.without_those_of(&self.memory));
        if rested {
            return Ok(());
        }
        Err(Refusal::Busy(self.device.busy().unwrap_or(0)))
    }

    /// Tells the queues, which are at rest, of the present memory. One whose ring is not in it any more
    /// is broken.
    fn use_memory(&self) {
        for queue in self.device.queues() {
            // One that cannot be reached keeps what it has, until its front-end's ring is forgotten.
            let Ok(mut ring) = queue.reach() else {
                continue;
            };
            let Err(refusal) = ring.set_memory(&self.memory) else {
                continue;
            };
            ring.broken = true;
            drop(ring);
            queue.have_error_notified();
            if let Some(more) = LOST_RINGS.allow() {
                warn!("{refusal}; the queue is stopped ({more} more like it)");
            }
        }
    }

    fn refuse_foreign(event: Option<&File>) -> Result<(), Refusal> {
        match event {
            Some(event) if !sys::may_be_event(event)? => Err(Refusal::NotAnEvent),
            _ => Ok(()),
        }
    }

    fn choose_features(&mut self, features: u64) -> Result<(), Refusal> {
        let unknown = features & !self.device.features();
        if unknown != 0 {
            return Err(Refusal::Features(unknown));
        }
        let queues = self.device.queues();
        let runs = self.device.is_any_started()?;
        if runs && features != self.device.acked_features() {
            return Err(Refusal::FeaturesInUse);
        }
        self.device.set_features(features);
        // Without the bit there is no message to enable a ring by.
        let enable = features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0;
        for queue in queues {
            let mut ring = queue.reach()?;
            ring.queue.set_event_idx(self.device.has_event_index());
            ring.enabled |= enable;
            drop(ring);
            queue.knock();
        }
        Ok(())
    }

    fn set_addresses(&mut self, index: u32, addresses: Addresses) -> Result<(), Refusal> {
        let queue = Arc::clone(self.queue(index)?);
        let runs = {
            let mut ring = queue.reach()?;
            if !ring.is_started() {
                ring.set_addresses(addresses, &self.memory)?;
            } else if ring.has_addresses(&addresses) {
                // Front-ends repeat them to say something of the flags.
                return Ok(());
            }
            ring.is_started()
        };
        if !runs {
            return self.try_start(&queue);
        }
        queue.pause();
        let moved = match queue.rest() {
            true => queue
                .reach()
                .and_then(|mut ring| ring.relocate(addresses, &self.memory)),
            false => Err(Refusal::Busy(queue.index())),
        };
        queue.go_on();
        moved
    }

    fn set_kick(&mut self, index: u8, event: Option<File>) -> Result<(), Refusal> {
        let queue = Arc::clone(self.queue(index.into())?);
        Self::refuse_foreign(event.as_ref())?;
        let event = event.ok_or(Refusal::NoKick(index))?;
        let kick = Kick::listen(event, queue.events(), Wake::Kick.token())?;
        queue.reach()?.set_kick(kick);
        self.try_start(&queue)
    }

    fn set_tracked(&mut self, handed: &VhostUserInflight, file: File) -> Result<(), Refusal> {
        let queues = self.device.queues();
        if self.device.is_any_started()? {
            return Err(Refusal::TrackedInUse);
        }
        let volume = self.device.volume();
        let limits = self.device.options().limits;
        let tracked = Arc::new(Tracked::adopt(handed, file, limits, &volume.identity())?);
        let (region, left) = (tracked.region(), self.device.take_left());
        let before = self.tracked.as_ref().or(left.as_ref());
        let again = before.is_some_and(|before| region.is_again(before.region()));
        if !again {
            // What an earlier front-end left behind, or this one puts away, must not hold it up.
            volume.give_up();
        }
        volume.expect(region, region.epoch());
        region.continue_under(&volume.identity());
        let patience = volume.expects().then_some(RETURN_PATIENCE);
        self.give_up = patience.map(|patience| Instant::now() + patience);
        // Whatever comes of the rest: it is held as long as something of it is expected.
        self.tracked = Some(Arc::clone(&tracked));
        for queue in queues {
            queue.reach()?.tracked = Some(Arc::clone(&tracked));
        }
        if !tracked.region().write_cache() {
            self.device.keep_write_cache_off();
        }
        Ok(())
    }

    /// Brings a queue to rest. The index of the next chain that it would take.
    fn stop(&mut self, index: u32) -> Result<u16, Refusal> {
        let queue = self.queue(index)?;
        queue.reach()?.stop();
        if !queue.rest() {
            return Err(Refusal::Busy(queue.index()));
        }
        queue.set_call(None);
        let base = queue.reach()?.base();
        Ok(base)
    }
}

/// What was not offered and was asked for all the same.
fn not_offered<T>() -> ProtocolResult<T> {
    Err(ProtocolError::InvalidOperation("not offered"))
}

impl<M: Medium> VhostUserBackendReqHandlerMut for Handler<M> {
    fn set_owner(&mut self) -> ProtocolResult<()> {
        if self.owned {
            return Err(Refusal::Owned.into());
        }
        self.owned = true;
        Ok(())
    }

    /// Deprecated; the protocol says to disable all rings or to ignore it.
    fn reset_owner(&mut self) -> ProtocolResult<()> {
        for queue in self.device.queues() {
            queue.reach()?.enabled = false;
        }
        self.owned = false;
        Ok(())
    }

    fn reset_device(&mut self) -> ProtocolResult<()> {
        let reset = self.device.reset();
        // The guest starts over: nothing that was in flight comes again.
        self.give_up();
        self.tracked = None;
        Ok(reset.map_err(Refusal::Busy)?)
    }

    fn get_features(&mut self) -> ProtocolResult<u64> {
        Ok(self.device.features())
    }

    fn set_features(&mut self, features: u64) -> ProtocolResult<()> {
        Ok(self.choose_features(features)?)
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> ProtocolResult<Option<Vec<VhostUserMemoryRegionBase>>> {
        self.change_memory(|_| {
            let places = regions.iter().map(Place::of);
            let places = places.collect::<Result<Vec<_>, _>>()?;
            Ok(Table::new(places.into_iter().zip(files).collect())?)
        })?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> ProtocolResult<()> {
        Ok(self.queue(index)?.reach()?.set_size(num)?)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> ProtocolResult<()> {
        let addresses = Addresses {
            descriptors,
            available,
            used,
        };
        Ok(self.set_addresses(index, addresses)?)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> ProtocolResult<()> {
        Ok(self.queue(index)?.reach()?.set_base(base)?)
    }

    fn get_vring_base(&mut self, index: u32) -> ProtocolResult<VhostUserVringState> {
        match self.stop(index) {
            Ok(base) => Ok(VhostUserVringState::new(index, base.into())),
            Err(refusal) => {
                warn!("{refusal}");
                // No position says this.
                Err(ProtocolError::InvalidParam)
            }
        }
    }

    fn set_vring_kick(&mut self, index: u8, event: Option<File>) -> ProtocolResult<()> {
        Ok(self.set_kick(index, event)?)
    }

    fn set_vring_call(&mut self, index: u8, event: Option<File>) -> ProtocolResult<()> {
        Self::refuse_foreign(event.as_ref())?;
        self.queue(index.into())?.set_call(event);
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, event: Option<File>) -> ProtocolResult<()> {
        Self::refuse_foreign(event.as_ref())?;
        self.queue(index.into())?.set_error(event);
        Ok(())
    }

    fn get_protocol_features(&mut self) -> ProtocolResult<VhostUserProtocolFeatures> {
        Ok(PROTOCOL_FEATURES)
    }

    fn set_protocol_features(&mut self, features: u64) -> ProtocolResult<()> {
        let unknown = features & !PROTOCOL_FEATURES.bits();
        if unknown != 0 {
            warn!("{}", Refusal::ProtocolFeatures(unknown));
            // The crate took them already, and with them whether there is to be an acknowledgement.
            return Err(ProtocolError::InvalidParam);
        }
        self.protocol = VhostUserProtocolFeatures::from_bits_truncate(features);
        Ok(())
    }

    fn get_queue_num(&mut self) -> ProtocolResult<u64> {
        Ok(self.device.options().limits.queues.into())
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> ProtocolResult<()> {
        let queue = self.queue(index)?;
        queue.reach()?.enabled = enable;
        queue.knock();
        Ok(())
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> ProtocolResult<Vec<u8>> {
        Ok(self.device.read_config(offset, size))
    }

    fn set_config(
        &mut self,
        offset: u32,
        bytes: &[u8],
        _flags: VhostUserConfigFlags,
    ) -> ProtocolResult<()> {
        self.device.write_config(offset, bytes);
        if let Some(tracked) = &self.tracked {
            tracked.region().set_write_cache(self.device.write_cache());
        }
        Ok(())
    }

    fn set_gpu_socket(&mut self, _gpu: GpuBackend) -> ProtocolResult<()> {
        not_offered()
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> ProtocolResult<File> {
        not_offered()
    }

    fn get_inflight_fd(
        &mut self,
        asked: &VhostUserInflight,
    ) -> ProtocolResult<(VhostUserInflight, File)> {
        let disk = self.device.volume().identity();
        tracked::create(asked, self.device.options().limits, &disk).map_err(|e| {
            warn!("no region for requests in flight: {e}");
            // No region says this.
            ProtocolError::InvalidParam
        })
    }

    fn set_inflight_fd(&mut self, handed: &VhostUserInflight, file: File) -> ProtocolResult<()> {
        Ok(self.set_tracked(handed, file)?)
    }

    fn get_max_mem_slots(&mut self) -> ProtocolResult<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> ProtocolResult<Option<VhostUserMemoryRegionBase>> {
        let add = || {
            let added = self.memory.with(vec![(Place::of(region)?, file)])?;
            self.device.is_any_started()?;
            Ok::<_, Refusal>(added)
        };
        self.memory = add()?;
        // What is in flight works with what was there, and that stays where it is.
        for queue in self.device.queues() {
            queue.reach()?.add_memory(&self.memory);
        }
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> ProtocolResult<()> {
        Ok(self.change_memory(|memory| Ok(memory.without(&Place::of(region)?)?))?)
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> ProtocolResult<Option<File>> {
        not_offered()
    }

    fn check_device_state(&mut self) -> ProtocolResult<()> {
        not_offered()
    }

    fn get_shmem_config(&mut self) -> ProtocolResult<VhostUserShMemConfig> {
        not_offered()
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> ProtocolResult<()> {
        not_offered()
    }
}
