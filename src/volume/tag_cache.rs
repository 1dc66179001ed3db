//! Tag slots that are kept in memory, for reads at random.
//!
//! The cache keeps pages of slots, for all queues together. Slots of a sequential zone are written once
//! in a generation: what it has is right, or it is of a time before the block was written and does not
//! verify; then it is forgotten and read again. Each page has a lock of its own, held while a slot is
//! copied, so queues meet only where they read the same.

use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

use crate::geometry::{Blocks, Generation, ZoneIndex};
use crate::integrity::Slot;

use super::prefetch::prefetch;
use super::tags::{PAGE, PageRange, SLOTS_PER_PAGE};

/// Whose slots: of a zone in a generation.
pub(super) type Whose = (ZoneIndex, Generation);

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

#[derive(Debug, Default)]
struct Place {
    id: Option<PageId>,
    /// Slots of it were wanted after it was read.
    used: bool,
    /// Allocated when first used.
    page: Box<[u8]>,
}

/// Pages of slots, each in the one place that its name leads to: neighbours lie side by side, so that a
/// stretch of the disk no larger than the cache has room in it.
#[derive(Debug)]
pub(super) struct TagCache {
    places: Box<[Mutex<Place>]>,
    pages_per_zone: u64,
    /// Pages that went unused, less those that did not. (Counted roughly: queues may miss each other.)
    wasted: AtomicU32,
    misses: AtomicU32,
}

impl TagCache {
    /// A cache of at most `bytes` bytes of slots, for zones of up to `blocks` blocks.
    pub(super) fn new(bytes: usize, blocks: Blocks) -> Self {
        let places = (0..bytes / PAGE).map(|_| Mutex::default());
        Self {
            places: places.collect(),
            pages_per_zone: blocks.0.div_ceil(SLOTS_PER_PAGE),
            wasted: AtomicU32::new(0),
            misses: AtomicU32::new(0),
        }
    }

    fn place(&self, id: PageId) -> Option<&Mutex<Place>> {
        let number = u64::from(id.zone.0) * self.pages_per_zone + id.page;
        let place = number.checked_rem(self.places.len() as u64)?;
        self.places.get(usize::try_from(place).ok()?)
    }

    /// Begins to fetch what [`TagCache::get`] will look at first.
    pub(super) fn prefetch(&self, (zone, generation): Whose, first: Blocks) {
        let range = PageRange::of(first, Blocks(1));
        let id = PageId {
            zone,
            generation,
            page: range.first,
        };
        if let Some(place) = self.place(id).and_then(Mutex::try_lock)
            && let Some(slots) = place.page.get(range.position(first)..)
        {
            prefetch(slots);
        }
    }

    /// Copies the slots of `count` blocks of `zone` from `first` on into `slots`, if all of them are
    /// here and none is of a time before its block was written.
    pub(super) fn get(
        &self,
        (zone, generation): Whose,
        first: Blocks,
        count: Blocks,
        slots: &mut Vec<u8>,
    ) -> bool {
        slots.clear();
        let wanted = PageRange::of(first, count);
        let end = Blocks(first.0 + count.0);
        let mut pages = wanted.first..wanted.first + wanted.count;
        let all = pages.all(|page| {
            let id = PageId {
                zone,
                generation,
                page,
            };
            let this = PageRange {
                first: page,
                count: 1,
            };
            let part = this.position(first)..this.position(end).min(PAGE);
            self.copy(id, part, slots).is_some()
        });
        all && none_blank(slots)
    }

    fn copy(&self, id: PageId, part: std::ops::Range<usize>, slots: &mut Vec<u8>) -> Option<()> {
        let mut place = self.place(id)?.lock();
        if place.id != Some(id) {
            return None;
        }
        if !place.used {
            place.used = true;
            let wasted = self.wasted.load(Ordering::Relaxed);
            self.wasted
                .store(wasted.saturating_sub(1), Ordering::Relaxed);
        }
        slots.extend_from_slice(place.page.get(part)?);
        Some(())
    }

    /// Whether a page that was missed is worth reading whole.
    pub(super) fn wants_page(&self) -> bool {
        let misses = self.misses.fetch_add(1, Ordering::Relaxed);
        let wasteful = self.wasted.load(Ordering::Relaxed) >= WASTED;
        !self.places.is_empty() && (!wasteful || misses.is_multiple_of(KEPT_OF_WASTED))
    }

    /// Forgets what it has of these pages: slots from there did not fit.
    pub(super) fn forget(&self, (zone, generation): Whose, range: PageRange) {
        for page in range.first..range.first + range.count {
            let id = PageId {
                zone,
                generation,
                page,
            };
            if let Some(mut place) = self.place(id).map(Mutex::lock)
                && place.id == Some(id)
            {
                place.id = None;
            }
        }
    }

    /// Keeps `pages`, which were just read and lie at `range` of the zone's tag extent.
    pub(super) fn put(&self, (zone, generation): Whose, range: PageRange, pages: &[u8]) {
        for (page, bytes) in (range.first..).zip(pages.chunks_exact(PAGE)) {
            let id = PageId {
                zone,
                generation,
                page,
            };
            let Some(place) = self.place(id) else { return };
            let mut place = place.lock();
            if place.id.is_some_and(|before| before != id) && !place.used {
                let wasted = self.wasted.load(Ordering::Relaxed);
                self.wasted
                    .store((wasted + 1).min(WASTED * 2), Ordering::Relaxed);
            }
            (place.id, place.used) = (Some(id), false);
            if place.page.is_empty() {
                place.page = bytes.into();
            } else {
                place.page.copy_from_slice(bytes);
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
    use crate::integrity::SLOT_LEN;
    use crate::volume::tags::tests::{pages, slots};

    const WHOSE: (ZoneIndex, Generation) = (ZoneIndex(3), Generation(1));

    fn find(cache: &TagCache, whose: (ZoneIndex, Generation), at: u64, count: u64) -> Vec<u8> {
        let mut slots = vec![];
        match cache.get(whose, Blocks(at), Blocks(count), &mut slots) {
            true => slots,
            false => vec![],
        }
    }

    fn cache(bytes: usize) -> TagCache {
        TagCache::new(bytes, Blocks(8 * SLOTS_PER_PAGE))
    }

    #[test]
    fn slots_come_back_across_pages_and_for_their_generation_only() {
        let cache = cache(1 << 20);
        let range = PageRange::of(Blocks(128), Blocks(256));
        assert_eq!((range.first, range.count), (1, 2));
        cache.put(WHOSE, range, &pages(8)[4096..12288]);
        for (first, count) in [(128, 256), (130, 1), (255, 2), (256, 128)] {
            let found = find(&cache, WHOSE, first, count);
            assert_eq!(found, slots(first, count), "{first} {count}");
        }
        assert!(find(&cache, WHOSE, 127, 2).is_empty());
        assert!(find(&cache, WHOSE, 383, 2).is_empty());
        let later = (WHOSE.0, Generation(2));
        assert!(find(&cache, later, 130, 1).is_empty());
        cache.forget(WHOSE, PageRange { first: 2, count: 1 });
        assert!(find(&cache, WHOSE, 256, 1).is_empty());
        assert_eq!(find(&cache, WHOSE, 255, 1), slots(255, 1));
    }

    #[test]
    fn a_slot_from_before_its_block_was_written_is_not_there() {
        let cache = cache(1 << 20);
        let mut half_written = pages(1);
        half_written[64 * SLOT_LEN..].fill(0);
        cache.put(WHOSE, PageRange { first: 0, count: 1 }, &half_written);
        assert_eq!(find(&cache, WHOSE, 63, 1), slots(63, 1));
        assert!(find(&cache, WHOSE, 63, 2).is_empty());
    }

    #[test]
    fn a_cache_is_never_larger_than_it_may_be() {
        for bytes in [0, 4095, 4096, 12288, 1 << 20] {
            let cache = cache(bytes);
            for zone in 0..1000 {
                let whose = (ZoneIndex(zone), Generation(0));
                cache.put(whose, PageRange { first: 0, count: 1 }, &pages(1));
                let hit = !find(&cache, whose, 5, 2).is_empty();
                assert_eq!(hit, bytes >= 4096, "what was put last is there");
            }
            let held = cache.places.iter().map(|place| place.lock().page.len());
            assert!(held.sum::<usize>() <= bytes);
        }
    }

    #[test]
    fn a_stretch_of_the_disk_as_large_as_the_cache_stays_in_it() {
        let cache = cache(24 * 4096);
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
            assert!(!find(&cache, whose, page * SLOTS_PER_PAGE + 1, 1).is_empty());
        }
    }

    #[test]
    fn pages_that_nobody_uses_are_read_whole_now_and_then_only() {
        let cache = cache(4096);
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
            assert!(!find(&cache, WHOSE, 1, 1).is_empty());
        }
        assert!(cache.wants_page(), "what is used is wanted again");
    }
}
