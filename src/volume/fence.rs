//! Fences: what stands between a failed write and the next one to the same zone.
//!
//! When writes fail, the write pointer falls back to where the first of them began; their blocks may
//! be on the medium all the same, with tags that verify. The next writes to these places skip the
//! counters that were used up, and the zone's record must say so, durably, before the first of them:
//! or after a power cut a block of the failed write could pass for the one that was written in its
//! place. Before that record, what the zone holds must be durable and be called so, since it has
//! counters from before the skip and could not be proven behind such a record.
//!
//! So a fence takes part in two rounds of syncs; the zone takes no writes until the second is over.

use crate::geometry::ZoneIndex;
use crate::mutant::Mutant;
use crate::store::Medium;

use super::channel::Channel;
use super::op::Payload;

/// Marks the tickets of fences among those of operations, of which no queue has so many.
const FENCES: u32 = 1 << 31;

#[derive(Debug)]
struct Fence {
    zone: ZoneIndex,
    /// The record with the skipped counters is written, and being synced.
    recorded: bool,
}

/// A channel's fences.
#[derive(Debug, Default)]
pub(super) struct Fences {
    /// Zones whose write pointer fell back.
    pub(super) due: Vec<ZoneIndex>,
    active: Vec<Option<Fence>>,
}

impl Fences {
    /// None is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.due.is_empty() && self.active.iter().all(Option::is_none)
    }
}

impl<M: Medium, P: Payload> Channel<M, P> {
    /// Begins the fences that are due.
    pub(super) fn begin_fences(&mut self) {
        while let Some(zone) = self.fences.due.pop() {
            let fence = Some(Fence {
                zone,
                recorded: false,
            });
            let free = self.fences.active.iter().position(Option::is_none);
            let place = free.unwrap_or(self.fences.active.len());
            match self.fences.active.get_mut(place) {
                Some(slot) => *slot = fence,
                None => self.fences.active.push(fence),
            }
            self.join_sync(FENCES | u32::try_from(place).unwrap_or(0));
        }
    }

    /// Whether `id` is that of a fence.
    pub(super) fn is_fence(id: u32) -> bool {
        id & FENCES != 0
    }

    /// The round that a fence waited for is over.
    pub(super) fn fence_synced(&mut self, id: u32, ok: bool) {
        let place = (id & !FENCES) as usize;
        let slot = self.fences.active.get_mut(place);
        let Some(Fence { zone, recorded }) = slot.and_then(Option::take) else {
            return;
        };
        if !ok || recorded || !self.volume.record_fence(zone) {
            return self.end_fence(zone, ok && recorded);
        }
        if Mutant::NoFence.is_on() {
            return self.end_fence(zone, true);
        }
        self.fences.active[place] = Some(Fence {
            zone,
            recorded: true,
        });
        self.join_sync(id);
    }

    fn end_fence(&mut self, zone: ZoneIndex, ok: bool) {
        self.volume.table.end_fence(zone, ok);
        self.touch(zone);
    }

    /// Gives the fences up: their zones take no more writes.
    pub(super) fn abandon_fences(&mut self) {
        let active = std::mem::take(&mut self.fences.active);
        let zones = active.into_iter().flatten().map(|fence| fence.zone);
        let due = std::mem::take(&mut self.fences.due);
        for zone in zones.chain(due) {
            self.volume.table.end_fence(zone, false);
            self.publish(zone);
        }
    }
}
