//! Reads that need not wait: all they want is in the host's page cache, or the image is memory itself.
//!
//! Such a read goes from the command to its end in one go, without a place in the in-flight tables,
//! and takes half the time. Whenever something is not at hand it goes the way of all others
//! (`piece`), from the start; nothing has reached the guest then.

use crate::geometry::{SECTOR_SIZE, ZoneIndex};
use crate::integrity::SLOT_LEN;
use crate::request::{Outcome, Span, Status};
use crate::store::{Medium, Part, Store};

use super::channel::Channel;
use super::op::{Payload, ReadPiece, SlotSource};
use super::piece::{Undelivered, say_io_error};
use super::pool::PIECE;
use super::tags::{PageRange, slot_offset};

impl<M: Medium, P: Payload> Channel<M, P> {
    /// Does a read and ends it. `false` if something has to be waited for: then nothing was done.
    pub(super) fn read_now(&mut self, id: u32, span: Span) -> bool {
        match self.try_read(id, span) {
            Some(Ok(())) => self.end(id, Outcome::Done(Status::Ok, span.len)),
            Some(Err(status)) => self.finish(id, status),
            None => return false,
        }
        true
    }

    fn try_read(&mut self, id: u32, span: Span) -> Option<Result<(), Status>> {
        let geometry = *self.volume.geometry();
        let zone = geometry.zone_of(span.sector)?;
        let zone_end = geometry.zone_start(zone).0 + geometry.zone_len(zone).0;
        let in_zone = (zone_end - span.sector.0) * SECTOR_SIZE;
        if span.len > in_zone.min(PIECE as u64) || !self.backlog.is_empty() {
            return None;
        }
        let mut read = match self.plan_read(zone, span, 0) {
            Ok(read) => read,
            Err(status) => return Some(Err(status)),
        };
        let stored = span.len - read.zeroes;
        if stored == 0 {
            return Some(self.scatter_zeroes(id, 0, span.len));
        }
        let mut data = self.pool.take(usize::try_from(stored).ok()?)?;
        let result = self.fetch(id, zone, &mut read, &mut data);
        self.recycle(read.slots);
        self.pool.give(data);
        result
    }

    /// Reads ciphertext and slots, and hands the guest what they prove.
    fn fetch(
        &mut self,
        id: u32,
        zone: ZoneIndex,
        read: &mut ReadPiece,
        data: &mut [u8],
    ) -> Option<Result<(), Status>> {
        if self.volume.tagged && !self.store.is_mapped() {
            self.volume
                .tags
                .prefetch((zone, read.generation), read.first);
        }
        let offset = self.volume.layout.block_offset(zone, read.first);
        if let Err(e) = self.store.read_now(Part::Data, offset, data)? {
            return Some(Err(say_io_error(zone, &e)));
        }
        if self.volume.tagged {
            read.slots = self.slots_now(zone, read)?;
        }
        match self.deliver(id, zone, read, data) {
            Ok(()) => Some(Ok(())),
            Err(Undelivered::Failed(status)) => Some(Err(status)),
            // The cache has forgotten them.
            Err(Undelivered::Stale) => None,
        }
    }

    /// The slots of a read, from the cache or the medium.
    fn slots_now(&mut self, zone: ZoneIndex, read: &ReadPiece) -> Option<SlotSource> {
        if self.store.is_mapped() {
            // They are in memory anyway, and nobody has to be locked out.
            self.counters.tag_hits += 1;
            return self.slots_past_cache(zone, read);
        }
        if self.has_cached_slots(zone, read) {
            return Some(SlotSource::Gathered);
        }
        self.count_slot_read();
        if self.volume.tags.wants_page() {
            return self.slot_pages_now(zone, read);
        }
        self.slots_past_cache(zone, read)
    }

    fn slots_past_cache(&mut self, zone: ZoneIndex, read: &ReadPiece) -> Option<SlotSource> {
        let mut slots = self.fresh_slots.pop().unwrap_or_default();
        slots.resize(usize::try_from(read.count.0).ok()? * SLOT_LEN, 0);
        let offset = slot_offset(&self.volume.layout, zone, read.first);
        let found = self.store.read_now(Part::Metadata, offset, &mut slots);
        let slots = SlotSource::Fresh(slots);
        if matches!(found, Some(Ok(()))) {
            return Some(slots);
        }
        self.recycle(slots);
        None
    }

    /// The pages that the slots are in; the cache takes them.
    fn slot_pages_now(&mut self, zone: ZoneIndex, read: &ReadPiece) -> Option<SlotSource> {
        let range = PageRange::of(read.first, read.count);
        let (offset, len) = range.extent(&self.volume.layout, zone);
        let mut pages = self.pool.take(usize::try_from(len).ok()?)?;
        let found = self.store.read_now(Part::Metadata, offset, &mut pages);
        if !matches!(found, Some(Ok(()))) {
            self.pool.give(pages);
            return None;
        }
        self.volume.tags.put((zone, read.generation), range, &pages);
        Some(SlotSource::Pages(pages))
    }
}
