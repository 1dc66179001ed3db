//! One zone in memory.

use crate::geometry::{Blocks, Generation, Geometry, ZoneIndex};
use crate::mutant::Mutant;

use super::answer::ReadView;
use super::line::{Line, Ticket};
use super::record::{Loaded, RecordPlace};
use super::recover::{Opening, recover};
use super::{Epoch, RecordCopy, Skipped, ZoneRecord, ZoneSalt, ZoneState};

/// Failed writes at one write pointer after which a zone turns read-only: the medium will not
/// take that place, and a guest that retries for ever gains nothing.
const MAX_FAILURES_AT_ONE_PLACE: u8 = 3;

/// How far the data of a conventional zone goes: nobody counts there.
const EVERYTHING: Blocks = Blocks(u64::MAX >> 1);

#[derive(Debug)]
pub(super) struct Zone {
    pub(super) state: ZoneState,
    /// Blocks acknowledged.
    pub(super) written: Blocks,
    /// Blocks covered by a completed flush.
    pub(super) durable: Blocks,
    /// Blocks granted: where the next write goes.
    pub(super) reserved: Blocks,
    pub(super) generation: Generation,
    pub(super) epoch: Epoch,
    pub(super) skipped: Skipped,
    pub(super) leftovers: bool,
    pub(super) salt: ZoneSalt,
    pub(super) place: RecordPlace,
    /// The record on disk may say that it is active.
    pub(super) recorded_active: bool,
    /// The record on disk is older than this.
    pub(super) touched: bool,
    /// In `Inner::undurable`.
    pub(super) listed: bool,
    /// A reset is under way.
    pub(super) exclusive: bool,
    /// Writes that a daemon before this one had begun come first, or its RESET_ALL.
    pub(super) awaited: bool,
    /// Writes failed that used up so many counters, and the record that says so is not durable yet.
    pub(super) fence: Option<u32>,
    /// When it was last written to, for the implicit close.
    pub(super) last_use: u64,
    /// A sync that was to cover it failed: nothing makes its data durable any more.
    pub(super) doubtful: bool,
    /// Where the last write failed, and how often in a row.
    pub(super) failures: (Blocks, u8),
    /// Allocated with the first write after it was idle; most zones of a large disk are.
    pub(super) line: Option<Box<Line>>,
}

impl Zone {
    pub(super) fn record(&self) -> ZoneRecord {
        ZoneRecord {
            state: self.state,
            written: self.written,
            durable: self.durable,
            generation: self.generation,
            epoch: self.epoch,
            skipped: self.skipped,
            leftovers: self.leftovers,
            salt: self.salt,
        }
    }

    /// What a read needs to know; `None` if the zone cannot be read.
    pub(super) fn view(&self) -> Option<ReadView> {
        let written = match self.state {
            ZoneState::Offline => return None,
            ZoneState::NotWritePointer => EVERYTHING,
            _ => self.written,
        };
        let generation = self.generation;
        Some(ReadView {
            generation,
            written,
        })
    }

    pub(super) fn line(&mut self) -> &mut Line {
        self.line.get_or_insert_with(Box::default)
    }

    /// It is not active any more, and its record does not say so yet.
    pub(super) fn lingers(&self) -> bool {
        self.recorded_active && !self.state.is_active()
    }

    /// Nothing in flight.
    pub(super) fn is_at_rest(&self) -> bool {
        !self.is_held() && self.is_line_empty()
    }

    /// No write is in flight.
    pub(super) fn is_line_empty(&self) -> bool {
        self.line.as_ref().is_none_or(|line| line.is_empty())
    }

    /// A flush that succeeds will make more of it durable.
    pub(super) fn awaits_flush(&self) -> bool {
        self.durable < self.written && !self.doubtful
    }

    /// Nobody may begin anything.
    pub(super) fn is_barred(&self) -> bool {
        self.exclusive || self.fence.is_some()
    }

    /// Nobody may begin anything new.
    pub(super) fn is_held(&self) -> bool {
        self.is_barred() || self.awaited
    }

    /// It holds something, or is open, or something of a reset or a failed write is left in it.
    pub(super) fn has_something_to_reset(&self) -> bool {
        match self.state {
            ZoneState::Empty => self.leftovers,
            state => state.is_active() || state == ZoneState::Full,
        }
    }

    /// The zone is held, or someone waits for it: who comes now waits behind, or a stream of
    /// appends could keep a reset waiting for ever, and a write could overtake the one before it.
    pub(super) fn must_wait(&self, ticket: Ticket) -> bool {
        let overtakes = |line: &Line| line.would_overtake(ticket);
        self.is_held() || self.line.as_deref().is_some_and(overtakes)
    }
}

/// The failed writes have left the line: the write pointer is where the first of them began.
/// Returns the state that follows.
pub(super) fn fall_back(zone: &mut Zone) -> ZoneState {
    let place = zone.written;
    let used = u32::try_from(zone.reserved.0 - place.0).unwrap_or(u32::MAX);
    zone.reserved = place;
    zone.touched = true;
    zone.leftovers |= place == Blocks(0);
    zone.failures = match zone.failures {
        (at, count) if at == place => (at, count.saturating_add(1)),
        _ => (place, 1),
    };
    if zone.state == ZoneState::ReadOnly || zone.failures.1 >= MAX_FAILURES_AT_ONE_PLACE {
        // No write follows, so its counters matter to nobody.
        return ZoneState::ReadOnly;
    }
    zone.fence = Some(match Mutant::ReuseNonceAfterFailedWrite.is_on() {
        true => 0,
        false => used,
    });
    zone.state
}

pub(super) fn load_zone(
    geometry: &Geometry,
    index: ZoneIndex,
    loaded: Option<Loaded>,
    opening: Opening,
) -> Zone {
    let lost = Loaded {
        record: ZoneRecord {
            state: ZoneState::Offline,
            written: Blocks(0),
            durable: Blocks(0),
            generation: Generation(0),
            epoch: Epoch(0),
            skipped: Skipped(0),
            leftovers: false,
            salt: ZoneSalt([0; 32]),
        },
        sequence: 0,
        copy: RecordCopy::A,
        mirrored: true,
        proven: Blocks(0),
    };
    let loaded = loaded.unwrap_or(lost);
    let record = recover(geometry, index, &loaded, opening);
    let reserved = match record.state {
        ZoneState::Full => geometry.zone_capacity_blocks(index),
        _ => record.written,
    };
    Zone {
        state: record.state,
        written: record.written,
        durable: record.durable,
        reserved,
        generation: record.generation,
        epoch: record.epoch,
        skipped: record.skipped,
        leftovers: record.leftovers,
        salt: record.salt,
        place: RecordPlace::loaded(loaded.sequence, loaded.copy, loaded.mirrored),
        // Whatever it is now, the record on disk says so until it is written anew.
        recorded_active: loaded.record.state.is_active(),
        touched: record != loaded.record,
        listed: false,
        exclusive: false,
        awaited: false,
        fence: None,
        doubtful: false,
        last_use: 0,
        failures: (Blocks(0), 0),
        line: None,
    }
}
