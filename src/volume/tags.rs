//! Tag slots on their way to the medium, and those that are kept in memory.
//!
//! *Writing.* The slots of blocks that were encrypted gather in a [`SlotWriter`], next to each other
//! where the blocks are, and go out before the completion of any of them is looked at: into the page
//! cache, so that a killed daemon loses none, in one call for each stretch of a zone however many
//! requests made it. The page cache is also what keeps the last slot page of an open zone in memory
//! and writes it once.
//!
//! *Reading.* A [`TagCache`] keeps pages of slots. Slots of a sequential zone are written once in a
//! generation, so each queue keeps a cache of its own without a lock: what it has is right, or it is
//! of a time before the block was written and does not verify; then the page is read again, once.

use std::io;

use crate::format::Layout;
use crate::geometry::{Blocks, Generation, ZoneIndex};
use crate::integrity::{SLOT_LEN, Slot};
use crate::store::Medium;

use super::prefetch::prefetch;

/// Bytes of a page of slots: what the host reads and caches at least.
pub(super) const SLOT_PAGE: u64 = PAGE as u64;
const PAGE: usize = 4096;
/// Slots in a page.
const SLOTS_PER_PAGE: u64 = SLOT_PAGE / SLOT_LEN as u64;
/// How many stretches are looked at for one to go on with: a batch of requests is rarely for more
/// zones. (There are at most as many stretches as pieces in flight.)
const RUNS_LOOKED_AT: usize = 32;

/// Slots of consecutive blocks.
#[derive(Debug)]
struct Run {
    zone: ZoneIndex,
    first: Blocks,
    slots: Vec<u8>,
    /// The operations that they belong to.
    ops: Vec<u32>,
}

impl Run {
    fn end(&self) -> Blocks {
        Blocks(self.first.0 + (self.slots.len() / SLOT_LEN) as u64)
    }
}

/// Slots that are to be written.
#[derive(Debug, Default)]
pub(super) struct SlotWriter {
    /// The first `used` are filled; the others keep their memory.
    runs: Vec<Run>,
    used: usize,
}

impl SlotWriter {
    /// Nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Takes the slots of blocks `first` and following of `zone`, which belong to operation `op`.
    pub(super) fn push(&mut self, zone: ZoneIndex, first: Blocks, op: u32, slots: &[u8]) {
        let filled = self.runs.get_mut(..self.used).unwrap_or_default();
        let before = filled
            .iter_mut()
            .rev()
            .take(RUNS_LOOKED_AT)
            .find(|run| run.zone == zone && run.end() == first);
        let run = match before {
            Some(run) => run,
            None => self.begin(zone, first),
        };
        run.slots.extend_from_slice(slots);
        if run.ops.last() != Some(&op) {
            run.ops.push(op);
        }
    }

    fn begin(&mut self, zone: ZoneIndex, first: Blocks) -> &mut Run {
        if self.used == self.runs.len() {
            self.runs.push(Run {
                zone,
                first,
                slots: Vec::new(),
                ops: Vec::new(),
            });
        }
        let run = &mut self.runs[self.used];
        self.used += 1;
        run.zone = zone;
        run.first = first;
        run.slots.clear();
        run.ops.clear();
        run
    }

    /// Writes what gathered, and calls `failed` for every operation whose slots could not be.
    pub(super) fn write(
        &mut self,
        medium: &impl Medium,
        layout: &Layout,
        mut failed: impl FnMut(u32, ZoneIndex, &io::Error),
    ) {
        let filled = self.runs.get(..self.used).unwrap_or_default();
        for run in filled {
            let offset = slot_offset(layout, run.zone, run.first);
            if let Err(e) = medium.write_at(offset, &run.slots) {
                for &op in &run.ops {
                    failed(op, run.zone, &e);
                }
            }
        }
        self.used = 0;
    }
}

/// Where the slot of `block` of `zone` lies.
pub(super) fn slot_offset(layout: &Layout, zone: ZoneIndex, block: Blocks) -> u64 {
    layout.tag_offset(zone) + block.0 * SLOT_LEN as u64
}

/// Pages of slots, one after another, that hold what is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PageRange {
    /// The first page of the zone's tag extent.
    pub(super) first: u64,
    /// How many.
    pub(super) count: u64,
}

impl PageRange {
    /// The pages with the slots of `count` (above 0) blocks from `first` on.
    pub(super) fn of(first: Blocks, count: Blocks) -> Self {
        let page = first.0 / SLOTS_PER_PAGE;
        let last = (first.0 + count.0.saturating_sub(1)) / SLOTS_PER_PAGE;
        Self {
            first: page,
            count: last - page + 1,
        }
    }

    /// Offset and length in the image.
    pub(super) fn extent(&self, layout: &Layout, zone: ZoneIndex) -> (u64, u64) {
        let offset = layout.tag_offset(zone) + self.first * SLOT_PAGE;
        (offset, self.count * SLOT_PAGE)
    }

    /// Where in these pages the slot of `block` is.
    pub(super) fn position(&self, block: Blocks) -> usize {
        let slots = block.0.saturating_sub(self.first * SLOTS_PER_PAGE);
        usize::try_from(slots).map_or(usize::MAX, |slots| slots.saturating_mul(SLOT_LEN))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PageId {
    zone: ZoneIndex,
    generation: Generation,
    page: u64,
}

/// Pages that lost their place unused, beyond those that were used, before the cache takes fewer.
const WASTED: u32 = 64;
/// One in so many pages is kept then: of reads at random all over a disk larger than the cache the same
/// share hits, and a new favourite place is learnt all the same.
const KEPT_OF_WASTED: u32 = 16;

#[derive(Clone, Copy, Debug)]
struct Name {
    id: PageId,
    /// Slots of it were wanted after it was read.
    used: bool,
}

/// Pages of slots that a queue has read, each in the one place that its name leads to: neighbours lie
/// side by side, so that a stretch of the disk no larger than the cache has room in it.
#[derive(Debug)]
pub(super) struct TagCache {
    names: Vec<Option<Name>>,
    /// All of them side by side; the host gives memory for those that are used.
    pages: Vec<u8>,
    pages_per_zone: u64,
    /// Pages that went unused, less those that did not.
    wasted: u32,
    misses: u32,
}

impl TagCache {
    /// A cache of at most `bytes` bytes of slots, for zones of up to `blocks` blocks.
    pub(super) fn new(bytes: usize, blocks: Blocks) -> Self {
        let places = bytes / PAGE;
        Self {
            names: vec![None; places],
            pages: vec![0; places * PAGE],
            pages_per_zone: blocks.0.div_ceil(SLOTS_PER_PAGE),
            wasted: 0,
            misses: 0,
        }
    }

    fn place(&self, id: PageId) -> Option<usize> {
        let number = u64::from(id.zone.0) * self.pages_per_zone + id.page;
        let places = self.names.len() as u64;
        number
            .checked_rem(places)
            .and_then(|place| usize::try_from(place).ok())
    }

    /// Begins to fetch what [`TagCache::get`] will look at first.
    pub(super) fn prefetch(&self, (zone, generation): (ZoneIndex, Generation), first: Blocks) {
        let PageRange { first: page, .. } = PageRange::of(first, Blocks(1));
        let id = PageId {
            zone,
            generation,
            page,
        };
        let range = PageRange {
            first: page,
            count: 1,
        };
        if let Some(place) = self.place(id)
            && let Some(slots) = self.pages.get(place * PAGE + range.position(first)..)
        {
            prefetch(slots);
        }
    }

    /// The slots of `count` blocks of `zone` from `first` on, if all of them are here and none is of a
    /// time before its block was written. `scratch` takes them if they are on several pages.
    pub(super) fn get<'a>(
        &'a mut self,
        (zone, generation): (ZoneIndex, Generation),
        first: Blocks,
        count: Blocks,
        scratch: &'a mut Vec<u8>,
    ) -> Option<&'a [u8]> {
        let wanted = PageRange::of(first, count);
        let end = Blocks(first.0 + count.0);
        scratch.clear();
        for page in wanted.first..wanted.first + wanted.count {
            let id = PageId {
                zone,
                generation,
                page,
            };
            let place = self.place(id)?;
            let name = self.names[place].as_mut().filter(|name| name.id == id)?;
            if !name.used {
                name.used = true;
                self.wasted = self.wasted.saturating_sub(1);
            }
            let this = PageRange {
                first: page,
                count: 1,
            };
            let kept = self.pages.get(place * PAGE..(place + 1) * PAGE)?;
            let part = kept.get(this.position(first)..this.position(end).min(PAGE))?;
            if wanted.count == 1 {
                return Some(part).filter(|slots| none_blank(slots));
            }
            scratch.extend_from_slice(part);
        }
        Some(scratch.as_slice()).filter(|slots| none_blank(slots))
    }

    /// Whether a page that was missed is worth reading whole.
    pub(super) fn wants_page(&mut self) -> bool {
        self.misses = self.misses.wrapping_add(1);
        let wasteful = self.wasted >= WASTED;
        !self.names.is_empty() && (!wasteful || self.misses.is_multiple_of(KEPT_OF_WASTED))
    }

    /// Forgets what it has of these pages: slots from there did not fit.
    pub(super) fn forget(&mut self, (zone, generation): (ZoneIndex, Generation), range: PageRange) {
        for page in range.first..range.first + range.count {
            let id = PageId {
                zone,
                generation,
                page,
            };
            if let Some(place) = self.place(id)
                && self.names[place].is_some_and(|name| name.id == id)
            {
                self.names[place] = None;
            }
        }
    }

    /// Keeps `pages`, which were just read and lie at `range` of the zone's tag extent.
    pub(super) fn put(
        &mut self,
        (zone, generation): (ZoneIndex, Generation),
        range: PageRange,
        pages: &[u8],
    ) {
        for (page, bytes) in (range.first..).zip(pages.chunks_exact(PAGE)) {
            let id = PageId {
                zone,
                generation,
                page,
            };
            let Some(place) = self.place(id) else { return };
            let before = self.names[place].replace(Name { id, used: false });
            if before.is_some_and(|name| name.id != id && !name.used) {
                self.wasted = (self.wasted + 1).min(WASTED * 2);
            }
            if let Some(kept) = self.pages.get_mut(place * PAGE..(place + 1) * PAGE) {
                kept.copy_from_slice(bytes);
            }
        }
    }
}

fn none_blank(slots: &[u8]) -> bool {
    let slots = slots.as_chunks().0;
    slots.iter().all(|slot| !Slot::parse(slot).is_blank())
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOSE: (ZoneIndex, Generation) = (ZoneIndex(3), Generation(1));

    fn pages(count: u64) -> Vec<u8> {
        let slots = 0..u32::try_from(count * SLOTS_PER_PAGE).unwrap();
        slots
            .flat_map(|slot| slot.to_le_bytes().repeat(SLOT_LEN / 4))
            .collect()
    }

    fn slots(first: u64, count: u64) -> Vec<u8> {
        let bytes = |slots: u64| usize::try_from(slots).unwrap() * SLOT_LEN;
        pages(8)[bytes(first)..][..bytes(count)].to_vec()
    }

    fn find(cache: &mut TagCache, whose: (ZoneIndex, Generation), at: u64, count: u64) -> Vec<u8> {
        let mut scratch = vec![];
        let found = cache.get(whose, Blocks(at), Blocks(count), &mut scratch);
        found.map(<[u8]>::to_vec).unwrap_or_default()
    }

    fn cache(bytes: usize) -> TagCache {
        TagCache::new(bytes, Blocks(8 * SLOTS_PER_PAGE))
    }

    #[test]
    fn slots_come_back_across_pages_and_for_their_generation_only() {
        let mut cache = cache(1 << 20);
        let range = PageRange::of(Blocks(128), Blocks(256));
        assert_eq!((range.first, range.count), (1, 2));
        cache.put(WHOSE, range, &pages(8)[4096..12288]);
        for (first, count) in [(128, 256), (130, 1), (255, 2), (256, 128)] {
            let found = find(&mut cache, WHOSE, first, count);
            assert_eq!(found, slots(first, count), "{first} {count}");
        }
        assert!(find(&mut cache, WHOSE, 127, 2).is_empty());
        assert!(find(&mut cache, WHOSE, 383, 2).is_empty());
        let later = (WHOSE.0, Generation(2));
        assert!(find(&mut cache, later, 130, 1).is_empty());
        cache.forget(WHOSE, PageRange { first: 2, count: 1 });
        assert!(find(&mut cache, WHOSE, 256, 1).is_empty());
        assert_eq!(find(&mut cache, WHOSE, 255, 1), slots(255, 1));
    }

    #[test]
    fn a_slot_from_before_its_block_was_written_is_not_there() {
        let mut cache = cache(1 << 20);
        let mut half_written = pages(1);
        half_written[64 * SLOT_LEN..].fill(0);
        cache.put(WHOSE, PageRange { first: 0, count: 1 }, &half_written);
        assert_eq!(find(&mut cache, WHOSE, 63, 1), slots(63, 1));
        assert!(find(&mut cache, WHOSE, 63, 2).is_empty());
    }

    #[test]
    fn a_cache_is_never_larger_than_it_may_be() {
        for bytes in [0, 4095, 4096, 12288, 1 << 20] {
            let mut cache = cache(bytes);
            for zone in 0..1000 {
                let whose = (ZoneIndex(zone), Generation(0));
                cache.put(whose, PageRange { first: 0, count: 1 }, &pages(1));
                let hit = !find(&mut cache, whose, 5, 2).is_empty();
                assert_eq!(hit, bytes >= 4096, "what was put last is there");
            }
            assert!(cache.pages.len() <= bytes);
        }
    }

    #[test]
    fn a_stretch_of_the_disk_as_large_as_the_cache_stays_in_it() {
        let mut cache = cache(24 * 4096);
        let places = || (5..8).flat_map(|zone| (0..8).map(move |page| (ZoneIndex(zone), page)));
        for (zone, page) in places() {
            let range = PageRange {
                first: page,
                count: 1,
            };
            cache.put((zone, Generation(0)), range, &pages(1));
        }
        for (zone, page) in places() {
            let whose = (zone, Generation(0));
            assert!(!find(&mut cache, whose, page * SLOTS_PER_PAGE + 1, 1).is_empty());
        }
    }

    #[test]
    fn pages_that_nobody_uses_are_read_whole_now_and_then_only() {
        let mut cache = cache(4096);
        let page = PageRange { first: 0, count: 1 };
        let reads = (0..1000).filter(|&zone| {
            let wanted = cache.wants_page();
            if wanted {
                cache.put((ZoneIndex(zone), Generation(0)), page, &pages(1));
            }
            wanted
        });
        assert!(reads.count() < 200);
        for _ in 0..2 * WASTED {
            cache.put(WHOSE, page, &pages(1));
            assert!(!find(&mut cache, WHOSE, 1, 1).is_empty());
        }
        assert!(cache.wants_page(), "what is used is wanted again");
    }

    #[test]
    fn slots_of_consecutive_blocks_go_out_as_one() {
        let mut writer = SlotWriter::default();
        assert!(writer.is_empty());
        writer.push(ZoneIndex(1), Blocks(7), 10, &slots(7, 1));
        writer.push(ZoneIndex(2), Blocks(0), 11, &slots(0, 2));
        writer.push(ZoneIndex(1), Blocks(8), 12, &slots(8, 3));
        assert_eq!(writer.used, 2);
        assert_eq!(writer.runs[0].slots, slots(7, 4));
        assert_eq!(writer.runs[0].ops, [10, 12]);
    }
}
