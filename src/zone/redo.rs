//! What a daemon that died had granted and not answered, done once more.
//!
//! A killed daemon leaves every zone's record exact, so its write pointer tells which writes counted
//! and which did not. The latter begin once more at the place that they were granted, in the order of
//! their places, whichever queue brings them: a zone of which some are [expected](Table::expect) takes
//! no other operation meanwhile.

use std::ops::Range;

use crate::geometry::{Blocks, Generation, ZoneIndex, ZoneType};

use super::answer::{Admission, Grant};
use super::line::{Released, Ticket};
use super::table::{Inner, Table};
use super::{ZoneError, ZoneState};

/// What an operation is about to do to a zone, noted where it outlives the daemon before the
/// operation changes anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Intent {
    /// The zone.
    pub zone: ZoneIndex,
    /// Its generation before the operation.
    pub generation: Generation,
    /// What is to happen.
    pub change: Change,
}

/// The kinds of intents: operations that must not be done twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// `count` blocks are written from `start` on, for a write or an append.
    Write {
        /// First block granted.
        start: Blocks,
        /// Blocks granted, above 0.
        count: Blocks,
    },
    /// The zone is reset; if all are, this is the last of them.
    Reset,
    /// The zone is finished.
    Finish,
}

/// How an operation that was begun before goes on.
#[derive(Debug)]
#[must_use]
pub enum Redo<T> {
    /// It counts already: nothing is done, and it is answered.
    Counted,
    /// It begins once more.
    Again(Admission<T>),
}

/// Writes that were announced and did not come.
#[derive(Debug)]
#[must_use]
pub struct GivenUp {
    /// Where each was to be, in order.
    pub places: Vec<(ZoneIndex, Blocks)>,
    waiting: Vec<Released>,
}

/// A write that is to come once more.
#[derive(Debug)]
pub(super) struct Expected {
    zone: ZoneIndex,
    start: Blocks,
    /// It came, and waits for those before it.
    waiting: Option<Ticket>,
}

impl Inner {
    fn expected_at(&self, zone: ZoneIndex, start: Blocks) -> Option<usize> {
        let key = |expected: &Expected| (expected.zone, expected.start);
        self.expected.binary_search_by_key(&(zone, start), key).ok()
    }

    /// Where those of `zone` stand.
    fn expected_in(&self, zone: ZoneIndex) -> Range<usize> {
        let begin = self.expected.partition_point(|other| other.zone < zone);
        let end = self.expected.partition_point(|other| other.zone <= zone);
        begin..end
    }

    /// The write at `start` has begun, or never will.
    fn forget_expected(&mut self, zone: ZoneIndex, start: Blocks) {
        if let Some(at) = self.expected_at(zone, start) {
            self.expected.remove(at);
        }
        let more = !self.expected_in(zone).is_empty();
        if let Some(zone) = self.zone(zone) {
            zone.awaited = more;
        }
    }

    /// Releases who waits for its turn in `zone` if that has come, or never will.
    pub(super) fn release_expected(&mut self, zone: ZoneIndex, released: &mut Vec<Released>) {
        let Some(state) = self.zones.get(zone.as_usize()) else {
            return;
        };
        if !state.awaited || state.is_barred() {
            return;
        }
        let (reserved, idle) = (state.reserved, state.is_line_empty());
        let turn = self.expected_at(zone, reserved);
        let lost = turn.is_none() && idle;
        let range = self.expected_in(zone);
        for expected in self.expected.get_mut(range).unwrap_or_default() {
            if lost || expected.start == reserved {
                let ticket = expected.waiting.take();
                released.extend(ticket.map(|ticket| Released::Retry(ticket, zone)));
            }
        }
    }

    /// Nobody of channel `life` waits for its turn any more.
    pub(super) fn forget_waiting(&mut self, life: u32) {
        for expected in &mut self.expected {
            expected.waiting = expected.waiting.filter(|ticket| ticket.life != life);
        }
    }
}

impl Table {
    /// Announces the writes among `intents` that will come once more ([`Table::admit_redo`]). Their zones
    /// take nothing else before each has come or is [given up](Table::give_up). What a zone counts
    /// already, and what does not fit it (the intents come from a front-end), is not waited for.
    pub fn expect(&self, intents: impl Iterator<Item = Intent>) {
        let mut inner = self.inner.lock();
        for Intent {
            zone: index,
            generation,
            change,
        } in intents
        {
            let Change::Write { start, count } = change else {
                continue;
            };
            let sequential = self.geometry().zone_type(index) == ZoneType::Sequential;
            let capacity = self.geometry().zone_capacity_blocks(index);
            let Some(zone) = inner.zone(index).filter(|_| sequential) else {
                continue;
            };
            let fits = start
                .0
                .checked_add(count.0)
                .is_some_and(|end| end <= capacity.0);
            if zone.generation != generation || start < zone.written || !fits {
                continue;
            }
            zone.awaited = true;
            let waiting = None;
            inner.expected.push(Expected {
                zone: index,
                start,
                waiting,
            });
        }
        let key = |expected: &Expected| (expected.zone, expected.start);
        inner.expected.sort_by_key(key);
        inner.expected.dedup_by_key(|expected| key(expected));
    }

    /// Whether some that were announced have not come.
    pub fn expects(&self) -> bool {
        !self.inner.lock().expected.is_empty()
    }

    /// Gives up those that were announced and have not had their turn: they fail from now on. Their zones
    /// are free only after [`Table::release`], so that in between it can be noted that what they ask for
    /// was not done: whatever takes their place next must not be taken for them.
    pub fn give_up(&self) -> GivenUp {
        let mut inner = self.inner.lock();
        let expected = std::mem::take(&mut inner.expected);
        let places = expected.iter().map(|one| (one.zone, one.start));
        let waiting = expected.iter().filter_map(|one| {
            let ticket = one.waiting?;
            Some(Released::Retry(ticket, one.zone))
        });
        GivenUp {
            places: places.collect(),
            waiting: waiting.collect(),
        }
    }

    /// Frees the zones of what was given up. Returns who can go on now, of whatever queue.
    pub fn release(&self, given_up: GivenUp) -> Vec<Released> {
        let GivenUp {
            places,
            waiting: mut released,
        } = given_up;
        let mut inner = self.inner.lock();
        for (index, _) in places {
            let Some(zone) = inner.zone(index).filter(|zone| zone.awaited) else {
                continue;
            };
            zone.awaited = false;
            if zone.is_at_rest() {
                zone.line().unpark(index, &mut released);
            }
        }
        released
    }

    /// Admits a write that was granted before, at the place that `intent` names.
    ///
    /// # Errors
    /// [`ZoneError::Failed`]: it is not one that the zone can have granted and not counted, or what lay
    /// before it does not come. Those of [`Table::admit_write`].
    pub fn admit_redo(&self, intent: Intent, ticket: Ticket) -> Result<Redo<Grant>, ZoneError> {
        let index = intent.zone;
        let Change::Write { start, count } = intent.change else {
            return Err(ZoneError::InvalidCommand);
        };
        let mut inner = self.inner.lock();
        let zone = inner.zone(index).ok_or(ZoneError::InvalidCommand)?;
        let end = Blocks(start.0.saturating_add(count.0));
        if zone.generation < intent.generation {
            return Err(ZoneError::Failed);
        }
        // A reset waits for what was granted before: that counted, and is gone.
        let reset = zone.generation > intent.generation;
        if reset || end <= zone.written {
            inner.forget_expected(index, start);
            return Ok(Redo::Counted);
        }
        let (reserved, barred) = (zone.reserved, zone.is_barred());
        let idle = zone.is_line_empty();
        let Some(at) = inner.expected_at(index, start) else {
            return Err(ZoneError::Failed);
        };
        let comes = start > reserved && (!idle || inner.expected_at(index, reserved).is_some());
        if barred || comes {
            if let Some(expected) = inner.expected.get_mut(at) {
                expected.waiting = Some(ticket);
            }
            return Ok(Redo::Again(Admission::Parked));
        }
        inner.forget_expected(index, start);
        if start != reserved {
            return Err(ZoneError::Failed);
        }
        self.grant(&mut inner, index, Some(start), count, ticket)
            .map(|grant| Redo::Again(Admission::Granted(grant)))
    }

    /// Whether what a reset or finish was to do to a zone is done, or overtaken by a reset since.
    pub fn is_done(&self, intent: Intent) -> bool {
        let mut inner = self.inner.lock();
        inner.zone(intent.zone).is_some_and(|zone| {
            let full = intent.change == Change::Finish && zone.state == ZoneState::Full;
            zone.generation > intent.generation || full
        })
    }

    /// The generation that counts now.
    pub fn generation(&self, index: ZoneIndex) -> Option<Generation> {
        let mut inner = self.inner.lock();
        inner.zone(index).map(|zone| zone.generation)
    }
}
