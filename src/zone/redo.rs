//! What a daemon that died had granted and not answered, done once more.
//!
//! A killed daemon leaves every zone's record exact, so its write pointer tells which writes counted
//! and which did not. The latter begin once more at the place that they were granted, in the order of
//! their places, whichever queue brings them: a zone of which some are [expected](Table::expect) takes
//! no other operation meanwhile.
//!
//! # Why a place that counts is that of the write which names it
//!
//! An intent names a place, and whoever finds that the zone counts it takes the write for done. That
//! holds as long as a place is never free for another write while an intent that was not carried out
//! names it. There are five ways in which it becomes free, and before each the intent is *spoiled*: made
//! one that nobody trusts, in the memory that outlives the daemon.
//!
//! 1. *A write fails, and with it those behind it.* [`Table::settle`] bars the zone and tells how far it
//!    fell back ([`super::Settled::fell_back`]); the volume spoils what was to be there, in every region that
//!    is kept; the fence then ends, and the zone takes writes. What was expected behind is not any more.
//! 2. *Expected writes are given up.* [`Table::give_up`] takes the expectation, the volume spoils, and
//!    [`Table::release`] frees the zone.
//! 3. *One comes once more and is refused.* [`Table::admit_redo`] spoils its intent before it frees the zone.
//! 4. *It is not expected at all*, since what it names does not fit the zone. [`Table::expect`] says so, and it is
//!    spoiled before any queue runs.
//! 5. *Another front-end came first*, with a region that this daemon had not seen: of a zone that was written
//!    to since, [`Table::expect`] knows nothing.
//!
//! A reset waits for all of them, so one of an older generation counted in its time; and what is expected is of
//! the generation that its zone has. Both may be in flight at once, with the same place: a write that
//! counted and was not answered, and one since the reset. So a place says which write it is only together
//! with the generation, and of an older one nothing that is expected is used up, taken or given up. A daemon that is
//! killed between two steps leaves the zone as it was before the first of them, where what is not spoiled
//! fits again, or spoiled more than it had to: that is an error for a write that was not done. And since
//! the intent may be spoiled by another thread while its own is about to ask for its place, who takes it for
//! counted looks at it once more, under the lock under which places are given.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use thiserror::Error;

use crate::geometry::{Blocks, Generation, ZoneIndex, ZoneType};

use super::answer::{Admission, Grant};
use super::line::{Released, Ticket};
use super::table::{Inner, Table};
use super::{Epoch, ZoneError, ZoneState};

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
    /// The zone is reset.
    Reset,
    /// All zones are reset, this as the last of them: its record stands for all.
    ResetAll,
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

/// Why a write that was in flight is not to be trusted, or does not begin once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Unfit {
    /// It names what its zone does not have.
    #[error("its zone has no such blocks to write")]
    Nowhere,
    /// It names a generation that its zone has not come to.
    #[error("its zone was not reset as often as it says")]
    FromLater,
    /// The write pointer is in the middle of it.
    #[error("its zone counts a part of it")]
    CountsInPart,
    /// [`Table::expect`] was told of it when others may have had its place.
    #[error("its zone was written to before its front-end came")]
    Overtaken,
    /// Its intent was spoiled.
    #[error("it failed or was given up, and its place may be another's")]
    Spoiled,
    /// Not expected, or not any more.
    #[error("its turn does not come any more")]
    Unexpected,
    /// What lay before it does not come.
    #[error("what lay before it did not come")]
    BehindGap,
    /// Its zone took it once, and does not take it now.
    #[error("its zone refuses it: {0}")]
    Refused(ZoneError),
}

impl Unfit {
    /// How many kinds there are.
    pub const KINDS: usize = 8;

    /// Which of the kinds it is, below [`Unfit::KINDS`].
    pub const fn kind(self) -> usize {
        match self {
            Self::Nowhere => 0,
            Self::FromLater => 1,
            Self::CountsInPart => 2,
            Self::Overtaken => 3,
            Self::Spoiled => 4,
            Self::Unexpected => 5,
            Self::BehindGap => 6,
            Self::Refused(_) => 7,
        }
    }
}

impl From<Unfit> for ZoneError {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::Refused(error) => error,
            _ => Self::Failed,
        }
    }
}

/// Where the intent of an operation is noted.
pub trait Note {
    /// It is not to be trusted any more.
    fn is_spoiled(&self) -> bool;
    /// Makes it so.
    fn spoil(&self);
}

/// What was announced and did not come.
#[derive(Debug)]
#[must_use]
pub struct GivenUp {
    /// Where each was to be, in order, and in which generation.
    places: Vec<(ZoneIndex, Blocks, Generation)>,
    reset_all: Option<Intent>,
    waiting: Vec<Released>,
}

impl GivenUp {
    /// Whether `intent` is that of one of them.
    pub fn has(&self, intent: &Intent) -> bool {
        match intent.change {
            Change::Write { start, .. } => {
                let place = (intent.zone, start, intent.generation);
                self.places.binary_search(&place).is_ok()
            }
            Change::ResetAll => self.reset_all == Some(*intent),
            Change::Reset | Change::Finish => false,
        }
    }
}

/// Writes that are to come once more, by their places in the generation that their zone has, which no reset changes
/// meanwhile; of those that came before their turn, who waits for it.
pub(super) type Expected = BTreeMap<(ZoneIndex, Blocks), Option<Ticket>>;

/// The places of a zone.
fn all_of(zone: ZoneIndex) -> RangeInclusive<(ZoneIndex, Blocks)> {
    (zone, Blocks(0))..=(zone, Blocks(u64::MAX))
}

/// Forgets what is expected in `zone`: its turn does not come. Whoever waits for it fails.
pub(super) fn lose(expected: &mut Expected, zone: ZoneIndex, released: &mut Vec<Released>) {
    let places: Vec<_> = expected.range(all_of(zone)).map(|(&at, _)| at).collect();
    for at in places {
        let waiting = expected.remove(&at).flatten();
        released.extend(waiting.map(failed));
    }
}

fn failed(ticket: Ticket) -> Released {
    Released::Write(ticket, Err(ZoneError::Failed))
}

impl Inner {
    /// The write at `start` has begun, or never will.
    fn forget_expected(&mut self, zone: ZoneIndex, start: Blocks) {
        self.expected.remove(&(zone, start));
        let more = self.expected.range(all_of(zone)).next().is_some() || self.reset_all.is_some();
        if let Some(zone) = self.zone(zone) {
            zone.awaited = more;
        }
    }

    /// Releases who waits for its turn in `zone` if that has come, or never will.
    pub(super) fn release_expected(&mut self, zone: ZoneIndex, released: &mut Vec<Released>) {
        self.release_reset_all(released);
        let Some(state) = self.zones.get(zone.as_usize()) else {
            return;
        };
        if !state.awaited || state.is_barred() {
            return;
        }
        let (reserved, idle) = (state.reserved, state.is_line_empty());
        let lost = idle && !self.expected.contains_key(&(zone, reserved));
        for (&(_, start), waiting) in self.expected.range_mut(all_of(zone)) {
            if lost || start == reserved {
                let ticket = waiting.take();
                released.extend(ticket.map(|ticket| Released::Retry(ticket, zone)));
            }
        }
    }

    /// Nobody of channel `life` waits for its turn any more.
    pub(super) fn forget_waiting(&mut self, life: u32) {
        for waiting in self.expected.values_mut() {
            *waiting = waiting.filter(|ticket| ticket.life != life);
        }
        if let Some(awaited) = &mut self.reset_all {
            awaited.waiting = awaited.waiting.filter(|ticket| ticket.life != life);
        }
    }
}

impl Table {
    /// Whether anything is known of an operation that was begun and not answered, as `intent` says. If that is a
    /// write that its zone does not count, it is announced with that ([`Table::admit_redo`]): the zone takes nothing else
    /// before it has come or is [given up](Table::give_up). The intent comes from a front-end and may be
    /// anything; `epoch`: under which the region that holds it was last in use.
    ///
    /// To be called while no queue runs.
    ///
    /// # Errors
    /// [`Unfit`]: it does not fit the zone, or others may have written since at the place that it names. It is not
    /// to be trusted, now or later.
    pub fn expect(&self, intent: Intent, epoch: Epoch) -> Result<(), Unfit> {
        let mut inner = self.inner.lock();
        let now = inner.epoch;
        let (start, count) = match intent.change {
            Change::Write { start, count } => (start, count),
            Change::ResetAll => return self.expect_reset_all(&mut inner, intent, epoch),
            // They take nothing that was written since: the zone tells whether they are done.
            Change::Reset | Change::Finish => return Ok(()),
        };
        let index = intent.zone;
        let zone = inner.zone(index).ok_or(Unfit::Nowhere)?;
        let capacity = self.geometry().zone_capacity_blocks(index);
        let end = start.0.checked_add(count.0).map(Blocks);
        let end = end
            .filter(|&end| end <= capacity)
            .filter(|_| self.geometry().zone_type(index) == ZoneType::Sequential)
            .ok_or(Unfit::Nowhere)?;
        if zone.epoch == now && epoch != now {
            return Err(Unfit::Overtaken);
        }
        if intent.generation > zone.generation {
            return Err(Unfit::FromLater);
        }
        if intent.generation < zone.generation || end <= zone.written {
            return Ok(());
        }
        if start < zone.written {
            return Err(Unfit::CountsInPart);
        }
        zone.awaited = true;
        inner.expected.entry((index, start)).or_insert(None);
        Ok(())
    }

    /// Whether some that were announced have not come.
    pub fn expects(&self) -> bool {
        let inner = self.inner.lock();
        !inner.expected.is_empty() || inner.reset_all.is_some()
    }

    /// Gives up those that were announced and have not had their turn: they fail from now on. Their zones
    /// are free only after [`Table::release`], so that in between it can be noted that what they ask for
    /// was not done: whatever takes their place next must not be taken for them.
    pub fn give_up(&self) -> GivenUp {
        let mut inner = self.inner.lock();
        let expected = std::mem::take(&mut inner.expected);
        let places = expected.keys().filter_map(|&(index, start)| {
            let generation = inner.zone(index)?.generation;
            Some((index, start, generation))
        });
        let places = places.collect();
        let reset_all = inner.reset_all.take();
        let waiting = reset_all.as_ref().and_then(|awaited| awaited.waiting);
        let waiting = expected.into_values().flatten().chain(waiting);
        GivenUp {
            places,
            reset_all: reset_all.map(|awaited| awaited.intent),
            waiting: waiting.map(failed).collect(),
        }
    }

    /// Frees the zones of what was given up. Returns who can go on now, of whatever queue.
    pub fn release(&self, given_up: GivenUp) -> Vec<Released> {
        let GivenUp {
            places,
            reset_all,
            waiting: mut released,
        } = given_up;
        let mut inner = self.inner.lock();
        let zones: Vec<ZoneIndex> = match reset_all {
            Some(_) => self.geometry.all_zones().collect(),
            None => places.into_iter().map(|(index, ..)| index).collect(),
        };
        for index in zones {
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

    /// Admits a write that was granted before, at the place that `intent` names. `note` is where that is noted:
    /// it is spoiled if the write is refused.
    ///
    /// # Errors
    /// [`Unfit`]: it is not one that the zone can have granted and not counted, what lay before it does not
    /// come, or it was given up; or those of [`Table::admit_write`].
    pub fn admit_redo(
        &self,
        intent: Intent,
        ticket: Ticket,
        note: &impl Note,
    ) -> Result<Redo<Grant>, Unfit> {
        let index = intent.zone;
        let Change::Write { start, count } = intent.change else {
            return Err(Unfit::Nowhere);
        };
        let mut inner = self.inner.lock();
        let zone = inner.zone(index).ok_or(Unfit::Nowhere)?;
        // What was looked at by `expect` need not be what stands in the region now.
        if self.geometry().zone_type(index) != ZoneType::Sequential {
            note.spoil();
            return Err(Unfit::Nowhere);
        }
        let end = Blocks(start.0.saturating_add(count.0));
        // Only one of this generation can be what is expected at its place.
        let current = zone.generation == intent.generation;
        // A reset waits for what was granted before: that counted, and is gone.
        let reset = zone.generation > intent.generation;
        let counts = reset || (current && end <= zone.written);
        let spoiled = note.is_spoiled();
        if counts && !spoiled {
            if current {
                inner.forget_expected(index, start);
            }
            return Ok(Redo::Counted);
        }
        let (reserved, barred, idle) = (zone.reserved, zone.is_barred(), zone.is_line_empty());
        let expected = &mut inner.expected;
        let comes = start > reserved && (!idle || expected.contains_key(&(index, reserved)));
        let granted = match expected.get_mut(&(index, start)).filter(|_| current) {
            Some(waiting) if barred || comes => {
                *waiting = Some(ticket);
                return Ok(Redo::Again(Admission::Parked));
            }
            Some(_) if start != reserved => Err(Unfit::BehindGap),
            Some(_) => {
                let granted = self.grant(&mut inner, index, Some(start), count, ticket);
                granted.map_err(Unfit::Refused)
            }
            None if spoiled => Err(Unfit::Spoiled),
            None => Err(Unfit::Unexpected),
        };
        if granted.is_err() {
            note.spoil();
        }
        if current {
            inner.forget_expected(index, start);
        }
        granted.map(|grant| Redo::Again(Admission::Granted(grant)))
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
