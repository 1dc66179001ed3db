//! The table of guarded mappings: written by threads, read by a signal handler on any of them.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};

/// `start` of a place that is being filled in.
const CLAIMED: usize = usize::MAX;

/// `[start, end)` of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: usize,
    pub(super) end: usize,
    /// Bytes of a page of the file, for those whose pages are huge.
    pub(super) page: usize,
    /// It is a front-end's: its faults are counted together.
    pub(super) counts: bool,
}

/// One range, or none: `start` is 0 then. `changes` is odd while it is being filled in: start alone does
/// not tell a mapping from the next one, which the kernel likes to put at the same address.
#[derive(Debug)]
struct Place {
    changes: AtomicUsize,
    start: AtomicUsize,
    end: AtomicUsize,
    page: AtomicUsize,
    counts: AtomicBool,
    /// There are zeros somewhere in it, or are about to be.
    lost: AtomicBool,
}

impl Place {
    const fn free() -> Self {
        Self {
            changes: AtomicUsize::new(0),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            page: AtomicUsize::new(0),
            counts: AtomicBool::new(false),
            lost: AtomicBool::new(false),
        }
    }

    /// Puts `range` here; `false` if there is one already.
    fn fill(&self, range: Range) -> bool {
        let claim = self
            .start
            .compare_exchange(0, CLAIMED, Ordering::AcqRel, Ordering::Relaxed);
        if claim.is_err() {
            return false;
        }
        // Nobody else changes it meanwhile.
        let changes = self.changes.load(Ordering::Relaxed);
        self.changes
            .store(changes.wrapping_add(1), Ordering::Relaxed);
        // Who sees any of the new range sees that it changes.
        fence(Ordering::Release);
        self.end.store(range.end, Ordering::Relaxed);
        self.page.store(range.page, Ordering::Relaxed);
        self.counts.store(range.counts, Ordering::Relaxed);
        self.lost.store(false, Ordering::Relaxed);
        self.start.store(range.start, Ordering::Relaxed);
        self.changes
            .store(changes.wrapping_add(2), Ordering::Release);
        true
    }

    /// The range here.
    fn read(&self) -> Option<Range> {
        let changes = self.changes.load(Ordering::Acquire);
        let range = Range {
            start: self.start.load(Ordering::Relaxed),
            end: self.end.load(Ordering::Relaxed),
            page: self.page.load(Ordering::Relaxed),
            counts: self.counts.load(Ordering::Relaxed),
        };
        // All of one mapping, and not of one and the next at this place of the table. A handler
        // cannot wait for the end of a change: it may have interrupted it. Nor need it: a range in which
        // somebody works was there before.
        fence(Ordering::Acquire);
        let whole = changes.is_multiple_of(2) && self.changes.load(Ordering::Relaxed) == changes;
        (whole && range.start != 0 && range.start != CLAIMED).then_some(range)
    }
}

/// Up to `N` ranges. Nothing in it waits or allocates.
#[derive(Debug)]
pub(super) struct Table<const N: usize>([Place; N]);

impl<const N: usize> Table<N> {
    /// An empty one.
    pub(super) const fn new() -> Self {
        Self([const { Place::free() }; N])
    }

    /// Where the range is from now on; `None` if there is no room.
    pub(super) fn insert(&self, range: Range) -> Option<usize> {
        self.0.iter().position(|place| place.fill(range))
    }

    /// Forgets the range at `at`.
    pub(super) fn remove(&self, at: usize) {
        if let Some(place) = self.0.get(at) {
            place.start.store(0, Ordering::Release);
        }
    }

    /// The range in which `address` lies, and where it is. One that is there all the while is found.
    pub(super) fn find(&self, address: usize) -> Option<(usize, Range)> {
        let places = self.0.iter().enumerate();
        let mut ranges = places.filter_map(|(at, place)| Some((at, place.read()?)));
        ranges.find(|(_, range)| (range.start..range.end).contains(&address))
    }

    /// Some of the range at `at` is gone, or is about to be seen as zeros.
    pub(super) fn lose(&self, at: usize) {
        if let Some(place) = self.0.get(at) {
            place.lost.store(true, Ordering::Release);
        }
    }

    /// Whether that was said of the range at `at`.
    pub(super) fn is_lost(&self, at: usize) -> bool {
        let place = self.0.get(at);
        place.is_none_or(|place| place.lost.load(Ordering::Acquire))
    }
}
