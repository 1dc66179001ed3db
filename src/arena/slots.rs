//! The arena's slots: runs of pages, each cut into slots of one size.
//!
//! All that is known about slots stands outside of the protected pages; in those there is nothing but
//! keys and zeroes.
#![expect(
    unsafe_code,
    reason = "wiping slots, whose addresses are kept as numbers"
)]

use std::collections::BTreeMap;
use std::ptr::NonNull;

use zeroize::Zeroize;

use super::map::{Calls, Protection, map};

/// Every slot lies on a boundary of this many bytes: a cache line.
pub const SLOT_ALIGN: usize = 64;
/// Bytes of the largest slot: the longest key file and one byte more, by which one that is too long is
/// noticed.
pub const LARGEST: usize = RUN;

/// Bytes of a run.
const RUN: usize = 16 << 10;
/// Least runs that are mapped at once: few calls, and a small part of RLIMIT_MEMLOCK, 8 MiB since
/// Linux 5.16 and 64 KiB before.
const RUNS_AT_ONCE: usize = 3;
/// Runs that are reserved beside those asked for: small secrets that come and go while others stay, and
/// the cipher library's records of errors, are of other sizes.
const SLACK_RUNS: usize = 4;
/// Sizes of slots, ascending: a key's few sizes fit them well, and nothing larger is frequent.
const SIZES: [usize; 16] = [
    64, 128, 192, 256, 384, 512, 640, 768, 896, 1024, 1280, 1536, 2048, 4096, 8192, RUN,
];

/// A run of slots of one size.
#[derive(Debug)]
struct Run {
    class: usize,
    /// A bit for each slot that is in use.
    used: [u64; RUN / SLOT_ALIGN / 64],
}

/// The slots of all sizes.
#[derive(Debug)]
pub(super) struct Slots {
    runs: BTreeMap<usize, Run>,
    /// Addresses of free slots of each size; the last one released is used first.
    free: [Vec<usize>; SIZES.len()],
    /// Addresses of runs that have no size yet.
    spare: Vec<usize>,
    protection: Option<Protection>,
    /// What may be called to get more.
    calls: Calls,
}

impl Slots {
    pub(super) const fn new() -> Self {
        Self {
            runs: BTreeMap::new(),
            free: [const { Vec::new() }; SIZES.len()],
            spare: Vec::new(),
            protection: None,
            calls: Calls::All,
        }
    }

    pub(super) const fn protection(&self) -> Option<Protection> {
        self.protection
    }

    pub(super) fn allocate(&mut self, size: usize) -> Option<NonNull<u8>> {
        let class = class_of(size)?;
        if self.free[class].is_empty() {
            self.cut_run(class)?;
        }
        let address = self.free[class].pop()?;
        self.note(address, true)?;
        NonNull::new(std::ptr::with_exposed_provenance_mut(address))
    }

    /// # Safety
    /// Nothing may use the slot any more.
    pub(super) unsafe fn release(&mut self, slot: NonNull<u8>) -> bool {
        let address = slot.as_ptr().addr();
        let Some(class) = self.note(address, false) else {
            return false;
        };
        // In words, which are wiped one by one: sizes are multiples of a cache line.
        let (words, len) = (slot.cast::<u64>(), SIZES[class] / 8);
        // SAFETY: `note` found a slot in use here, so that these bytes are mapped and aligned, and by
        // the promise of the caller nobody else's.
        unsafe { std::slice::from_raw_parts_mut(words.as_ptr(), len) }.zeroize();
        self.free[class].push(address);
        true
    }

    pub(super) fn size_at(&self, slot: NonNull<u8>) -> Option<usize> {
        let (class, _, _) = self.locate(slot.as_ptr().addr())?;
        Some(SIZES[class])
    }

    pub(super) fn reserve(&mut self, size: usize, count: usize) {
        let Some(class) = class_of(size) else { return };
        let missing = count.saturating_sub(self.free[class].len());
        let runs = missing.div_ceil(RUN / SIZES[class]) + SLACK_RUNS;
        self.calls = Calls::All;
        if runs > self.spare.len() {
            self.map_runs(runs - self.spare.len());
        }
        self.calls = Calls::OfTheHeap;
    }

    /// The size of the slot that is at `address`, its run and its number in it.
    fn locate(&self, address: usize) -> Option<(usize, usize, usize)> {
        let (&run, Run { class, .. }) = self.runs.range(..=address).next_back()?;
        let offset = address - run;
        let size = SIZES[*class];
        let number = offset / size;
        let is_slot = offset.is_multiple_of(size) && number < RUN / size;
        is_slot.then_some((*class, run, number))
    }

    /// Notes that the slot at `address` is in use or free, and returns its size's number. `None` if
    /// there is no slot, or it is so already.
    fn note(&mut self, address: usize, in_use: bool) -> Option<usize> {
        let (class, run, number) = self.locate(address)?;
        let word = self.runs.get_mut(&run)?.used.get_mut(number / 64)?;
        let bit = 1 << (number % 64);
        if (*word & bit != 0) == in_use {
            return None;
        }
        *word ^= bit;
        Some(class)
    }

    /// Cuts a spare run into slots of a size.
    fn cut_run(&mut self, class: usize) -> Option<()> {
        if self.spare.is_empty() {
            self.map_runs(RUNS_AT_ONCE);
        }
        let run = self.spare.pop()?;
        let used = [0; RUN / SLOT_ALIGN / 64];
        self.runs.insert(run, Run { class, used });
        let size = SIZES[class];
        let slots = (0..RUN / size).map(|number| run + number * size);
        // The first is used first: neighbours then share pages.
        self.free[class].extend(slots.rev());
        Some(())
    }

    fn map_runs(&mut self, runs: usize) {
        let runs = runs.max(RUNS_AT_ONCE);
        let Some((start, protection)) = map(runs * RUN, self.calls) else {
            return;
        };
        let start = start.as_ptr().expose_provenance();
        self.spare
            .extend((0..runs).rev().map(|run| start + run * RUN));
        self.protection = self.protection.max(Some(protection));
    }
}

/// The smallest size that holds `size` bytes.
fn class_of(size: usize) -> Option<usize> {
    SIZES.iter().position(|&slot| size <= slot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_of_all_sizes_are_apart_aligned_and_zero() {
        let mut slots = Slots::new();
        let mut taken: Vec<(usize, usize)> = Vec::new();
        for size in (1..=LARGEST).step_by(509) {
            for _ in 0..3 {
                let slot = slots.allocate(size).unwrap();
                let whole = slots.size_at(slot).unwrap();
                assert!(whole >= size && slot.as_ptr().addr().is_multiple_of(SLOT_ALIGN));
                // SAFETY: the slot is ours and has that many bytes.
                let bytes = unsafe { std::slice::from_raw_parts_mut(slot.as_ptr(), whole) };
                assert!(bytes.iter().all(|&byte| byte == 0));
                bytes.fill(0xFF);
                taken.push((slot.as_ptr().addr(), whole));
            }
        }
        taken.sort_unstable();
        assert!(
            taken
                .windows(2)
                .all(|pair| pair[0].0 + pair[0].1 <= pair[1].0)
        );
        assert!(slots.allocate(LARGEST + 1).is_none());
    }

    #[test]
    fn a_released_slot_is_zero_and_used_again() {
        let mut slots = Slots::new();
        let slot = slots.allocate(700).unwrap();
        // SAFETY: the slot is ours, and not used after its release but to look at it; its pages are
        // never unmapped.
        unsafe {
            slot.as_ptr().write_bytes(0xEE, 700);
            assert!(slots.release(slot));
            assert!(!slots.release(slot));
            assert_eq!(*slot.cast::<[u8; 700]>().as_ref(), [0; 700]);
        }
        assert_eq!(slots.allocate(768), Some(slot));
    }

    #[test]
    fn addresses_that_are_no_slot_are_told_apart() {
        let mut slots = Slots::new();
        let slot = slots.allocate(640).unwrap();
        let beside = slot.map_addr(|address| address.saturating_add(64));
        assert_eq!(slots.size_at(slot), Some(640));
        assert_eq!(slots.size_at(beside), None);
        // SAFETY: nobody uses what is no slot.
        assert!(!unsafe { slots.release(beside) });
    }

    #[test]
    fn what_is_reserved_needs_no_mapping_later() {
        let mut slots = Slots::new();
        slots.reserve(1000, 100);
        // 16 slots of 1024 bytes in a run.
        assert_eq!(slots.spare.len(), 7 + SLACK_RUNS);
        for _ in 0..100 {
            let _slot = slots.allocate(1000).unwrap();
        }
        assert_eq!(slots.spare.len(), SLACK_RUNS);
        // 12 slots of the last run are free.
        slots.reserve(1000, 12);
        assert_eq!(slots.spare.len(), SLACK_RUNS);
        assert_eq!(slots.calls, Calls::OfTheHeap);
        slots.reserve(1000, 13);
        assert_eq!(slots.spare.len(), SLACK_RUNS + RUNS_AT_ONCE);
    }
}
