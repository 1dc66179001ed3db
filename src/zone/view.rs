//! What readers need to know of zones, kept where they find it without the table's lock.

use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::geometry::{Blocks, Generation, ZoneIndex};

use super::answer::ReadView;

/// Stands for the extent of a zone that cannot be read. No zone has so many blocks.
const UNREADABLE: u64 = u64::MAX;

/// Two words that change together, and a count by which a reader notices that they did (a sequence
/// lock): odd while they are being written. Writers come one at a time.
#[derive(Debug, Default)]
struct View {
    changes: AtomicU64,
    generation: AtomicU64,
    written: AtomicU64,
}

/// One view a zone.
#[derive(Debug)]
pub(super) struct Views(Box<[View]>);

impl Views {
    /// Views of all zones.
    pub(super) fn new(zones: impl Iterator<Item = Option<ReadView>>) -> Self {
        let views = zones.map(|zone| {
            let view = View::default();
            view.store(zone);
            view
        });
        Self(views.collect())
    }

    /// Shows readers another view of a zone. The caller holds the lock of the table.
    pub(super) fn set(&self, zone: ZoneIndex, to: Option<ReadView>) {
        let Some(view) = self.0.get(zone.as_usize()) else {
            return;
        };
        let changes = view.changes.load(Ordering::Relaxed);
        view.changes
            .store(changes.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        view.store(to);
        view.changes
            .store(changes.wrapping_add(2), Ordering::Release);
    }

    /// The view of a zone; `None` if there is no such zone, `Some(None)` if it cannot be read.
    pub(super) fn get(&self, zone: ZoneIndex) -> Option<Option<ReadView>> {
        let view = self.0.get(zone.as_usize())?;
        loop {
            let before = view.changes.load(Ordering::Acquire);
            let found = view.load();
            fence(Ordering::Acquire);
            let unchanged = view.changes.load(Ordering::Relaxed) == before;
            if unchanged && before.is_multiple_of(2) {
                return Some(found);
            }
            // The writer needs a few instructions more, unless it was put to sleep just there.
            std::thread::yield_now();
        }
    }
}

impl View {
    fn store(&self, view: Option<ReadView>) {
        let (generation, written) =
            view.map_or((0, UNREADABLE), |view| (view.generation.0, view.written.0));
        self.generation.store(generation, Ordering::Relaxed);
        self.written.store(written, Ordering::Relaxed);
    }

    fn load(&self) -> Option<ReadView> {
        let written = self.written.load(Ordering::Relaxed);
        let generation = self.generation.load(Ordering::Relaxed);
        (written != UNREADABLE).then_some(ReadView {
            generation: Generation(generation),
            written: Blocks(written),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZONE: ZoneIndex = ZoneIndex(1);

    fn view(number: u64) -> ReadView {
        ReadView {
            generation: Generation(number),
            written: Blocks(number * 3),
        }
    }

    #[test]
    fn an_unreadable_zone_and_one_that_does_not_exist_are_told_apart() {
        let views = Views::new([Some(view(5)), None].into_iter());
        assert_eq!(views.get(ZoneIndex(0)), Some(Some(view(5))));
        assert_eq!(views.get(ZONE), Some(None));
        assert_eq!(views.get(ZoneIndex(2)), None);
        views.set(ZONE, Some(view(7)));
        assert_eq!(views.get(ZONE), Some(Some(view(7))));
    }

    #[test]
    fn a_reader_never_sees_half_a_change() {
        let views = Views::new([Some(view(0)), Some(view(0))].into_iter());
        std::thread::scope(|scope| {
            scope.spawn(|| (0..200_000).for_each(|number| views.set(ZONE, Some(view(number)))));
            let mut last = 0;
            while last < 199_999 {
                let seen = views.get(ZONE).flatten().unwrap();
                assert_eq!(seen, view(seen.generation.0));
                assert!(seen.generation.0 >= last, "time runs forward");
                last = seen.generation.0;
            }
        });
    }
}
