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
use crate::integrity::SLOT_LEN;
use crate::store::Medium;

/// Bytes of a page of slots: what the host reads and caches at least.
pub(super) const SLOT_PAGE: u64 = 4096;
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

/// Pages of slots that a queue has read, each in the one place that its name leads to.
#[derive(Debug)]
pub(super) struct TagCache {
    /// As many as the pages that there may be; a power of two, or none.
    names: Vec<Option<PageId>>,
    /// Allocated page by page, when first used.
    pages: Vec<Box<[u8]>>,
}

impl TagCache {
    /// A cache of at most `bytes` bytes of slots.
    pub(super) fn new(bytes: usize) -> Self {
        let pages = bytes / usize::try_from(SLOT_PAGE).unwrap_or(usize::MAX);
        // The largest power of two that fits.
        let places = match pages.checked_ilog2() {
            Some(log) => 1 << log,
            None => 0,
        };
        Self {
            names: vec![None; places],
            pages: vec![Box::default(); places],
        }
    }

    fn place(&self, id: PageId) -> Option<usize> {
        // Consecutive pages of a zone and the same page of consecutive zones lie apart.
        let mixed = (u64::from(id.zone.0) << 24 ^ id.page).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let places = self.names.len().checked_ilog2()?;
        if places == 0 {
            return Some(0);
        }
        usize::try_from(mixed >> (64 - places)).ok()
    }

    /// Copies the slots of `count` blocks of `zone` from `first` on to the end of `slots`, if all of
    /// them are here.
    pub(super) fn get(
        &self,
        (zone, generation): (ZoneIndex, Generation),
        first: Blocks,
        count: Blocks,
        slots: &mut Vec<u8>,
    ) -> bool {
        let wanted = PageRange::of(first, count);
        let end = Blocks(first.0 + count.0);
        for page in wanted.first..wanted.first + wanted.count {
            let id = PageId {
                zone,
                generation,
                page,
            };
            let Some(place) = self
                .place(id)
                .filter(|&place| self.names[place] == Some(id))
            else {
                return false;
            };
            let this = PageRange {
                first: page,
                count: 1,
            };
            let begin = this.position(first);
            let stop = this.position(end).min(self.pages[place].len());
            match self.pages[place].get(begin..stop) {
                Some(part) => slots.extend_from_slice(part),
                None => return false,
            }
        }
        true
    }

    /// Keeps `pages`, which were just read and lie at `range` of the zone's tag extent.
    pub(super) fn put(
        &mut self,
        (zone, generation): (ZoneIndex, Generation),
        range: PageRange,
        pages: &[u8],
    ) {
        let size = usize::try_from(SLOT_PAGE).unwrap_or(usize::MAX);
        for (page, bytes) in (range.first..).zip(pages.chunks_exact(size)) {
            let id = PageId {
                zone,
                generation,
                page,
            };
            if let Some(place) = self.place(id) {
                self.names[place] = Some(id);
                let kept = &mut self.pages[place];
                if kept.is_empty() {
                    *kept = bytes.into();
                } else {
                    kept.copy_from_slice(bytes);
                }
            }
        }
    }
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

    #[test]
    fn slots_come_back_across_pages_and_for_their_generation_only() {
        let mut cache = TagCache::new(1 << 20);
        let range = PageRange::of(Blocks(128), Blocks(256));
        assert_eq!((range.first, range.count), (1, 2));
        cache.put(WHOSE, range, &pages(8)[4096..12288]);
        for (first, count) in [(128, 256), (130, 1), (255, 2), (256, 128)] {
            let mut found = vec![];
            assert!(cache.get(WHOSE, Blocks(first), Blocks(count), &mut found));
            assert_eq!(found, slots(first, count), "{first} {count}");
        }
        let mut found = vec![];
        assert!(!cache.get(WHOSE, Blocks(127), Blocks(2), &mut found));
        assert!(!cache.get(WHOSE, Blocks(383), Blocks(2), &mut found));
        let later = (WHOSE.0, Generation(2));
        assert!(!cache.get(later, Blocks(130), Blocks(1), &mut found));
    }

    #[test]
    fn a_cache_is_never_larger_than_it_may_be() {
        for bytes in [0, 4095, 4096, 12288, 1 << 20] {
            let mut cache = TagCache::new(bytes);
            for zone in 0..1000 {
                let whose = (ZoneIndex(zone), Generation(0));
                cache.put(whose, PageRange { first: 0, count: 1 }, &pages(1));
                let hit = cache.get(whose, Blocks(5), Blocks(2), &mut vec![]);
                assert_eq!(hit, bytes >= 4096, "what was put last is there");
            }
            let held: usize = cache.pages.iter().map(|page| page.len()).sum();
            assert!(held <= bytes, "{held} of {bytes}");
        }
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
