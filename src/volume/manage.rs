//! Zone management: open, close, finish, reset.

use log::error;

use crate::geometry::ZoneIndex;
use crate::mutant::{self, Mutant, Point};
use crate::request::{Outcome, Status};
use crate::store::Medium;
use crate::zone::{Admission, Change, Ticket, ZoneError};

use super::channel::{Channel, Progress};
use super::op::{Payload, Piece, PieceKind, Reset, ResetStep, Stage};

impl<M: Medium, P: Payload> Channel<M, P> {
    pub(super) fn open_zone(&mut self, id: u32, zone: ZoneIndex, ticket: Ticket) {
        match self.volume.table.open(zone, ticket) {
            Ok(Admission::Granted(closed)) => {
                let both = closed.into_iter().chain([zone]);
                self.publish_and_finish(id, both);
            }
            other => self.not_granted(id, &other),
        }
    }

    pub(super) fn close_zone(&mut self, id: u32, zone: ZoneIndex, ticket: Ticket) {
        match self.volume.table.close(zone, ticket) {
            Ok(Admission::Granted(())) => self.publish_and_finish(id, [zone]),
            other => self.not_granted(id, &other),
        }
    }

    /// Finishing seals what was written: it is durable when it completes, and the record says so. Else
    /// a block that rots before a power cut would end the zone there, and what lies behind it would
    /// read as zeroes for good, since the zone stays full.
    pub(super) fn finish_zone(&mut self, id: u32, zone: ZoneIndex, ticket: Ticket) {
        match self.volume.table.finish(zone, ticket) {
            Ok(Admission::Granted(finished)) if finished.pending => {
                if finished.changed {
                    self.intend_change(id, zone, Change::Finish);
                }
                // Of a zone that another queue has just filled, the record may still be on its way.
                for changed in finished.closed.into_iter().chain([zone]) {
                    if !self.publish(changed) {
                        return self.finish(id, Status::IoError);
                    }
                }
                // Without tags a round is not over before its records are durable.
                let rounds = if self.volume.tagged { 2 } else { 1 };
                self.wait_for_syncs(id, Outcome::Done(Status::Ok, 0), rounds);
            }
            Ok(Admission::Granted(_)) => self.finish(id, Status::Ok),
            other => self.not_granted(id, &other),
        }
    }

    pub(super) fn reset_zone(&mut self, id: u32, zone: ZoneIndex, ticket: Ticket) {
        match self.volume.table.begin_reset(zone, ticket) {
            Ok(Admission::Granted(true)) => {
                self.intend_change(id, zone, Change::Reset);
                self.begin_reset(id, vec![zone], Vec::new());
            }
            Ok(Admission::Granted(false)) => self.finish(id, Status::Ok),
            other => self.not_granted(id, &other),
        }
    }

    pub(super) fn reset_all(&mut self, id: u32, ticket: Ticket) {
        match self.volume.table.begin_reset_all(ticket) {
            Admission::Granted(zones) => match zones.last() {
                None => self.finish(id, Status::Ok),
                Some(&last) => {
                    // The records are written in this order, and nobody writes to any of the zones
                    // before all are reset; nor if a daemon after this one has to go on with it.
                    self.intend_change(id, last, Change::ResetAll);
                    self.begin_reset(id, zones, Vec::new());
                }
            },
            Admission::Parked => self.set_stage(id, Stage::Parked),
        }
    }

    fn intend_change(&mut self, id: u32, zone: ZoneIndex, change: Change) {
        if let Some(generation) = self.volume.table.generation(zone) {
            self.intend(id, zone, generation, change);
        }
    }

    fn not_granted<T>(&mut self, id: u32, admission: &Result<Admission<T>, ZoneError>) {
        match admission {
            Err(error) => self.finish(id, (*error).into()),
            Ok(_) => self.set_stage(id, Stage::Parked),
        }
    }

    fn publish_and_finish(&mut self, id: u32, zones: impl IntoIterator<Item = ZoneIndex>) {
        let mut ok = true;
        for zone in zones {
            ok &= self.publish(zone);
        }
        self.finish(id, if ok { Status::Ok } else { Status::IoError });
    }

    /// First step: new salts, in memory and in one copy of each record; the keys are evicted.
    /// Nobody writes to `kept` before the end.
    pub(super) fn begin_reset(&mut self, id: u32, zones: Vec<ZoneIndex>, kept: Vec<ZoneIndex>) {
        let mut ok = true;
        for &zone in &zones {
            match super::random_salt() {
                Ok(salt) => self.volume.table.apply_reset(zone, salt),
                Err(e) => {
                    error!("{zone}: cannot reset: {e}");
                    ok = false;
                    break;
                }
            }
            self.volume.keyslots.evict(zone);
            if !self.publish(zone) {
                // The last zone's record stands for all: it must not be written if another's is not.
                ok = false;
                break;
            }
            mutant::pass(Point::ResetRecorded);
        }
        let nothing = zones.is_empty();
        let reset = Reset {
            zones,
            kept,
            step: ResetStep::First,
            begun: 0,
            flying: 0,
        };
        self.set_stage(id, Stage::Reset(reset));
        if nothing {
            // Somebody made up what is to be done again.
            self.end_reset(id, true);
        } else if ok && Mutant::ResetWithoutSync.is_on() {
            self.continue_reset(id, true);
        } else if ok {
            self.join_sync(id);
        } else {
            self.end_reset(id, false);
        }
    }

    /// A sync that the reset waited for is over.
    pub(super) fn continue_reset(&mut self, id: u32, ok: bool) {
        let Some(reset) = self.reset(id).filter(|_| ok) else {
            return self.end_reset(id, false);
        };
        if reset.step == ResetStep::Second {
            reset.step = ResetStep::Deallocate;
            self.push_backlog(id);
            return self.pump();
        }
        reset.step = ResetStep::Second;
        // The new salt is durable in one copy; the old one still stands in the other.
        let zones = std::mem::take(&mut reset.zones);
        let mut written = true;
        for &zone in &zones {
            self.volume.table.touch(zone);
            written &= self.publish(zone);
        }
        if let Some(reset) = self.reset(id) {
            reset.zones = zones;
        }
        if written && Mutant::ResetWithoutSync.is_on() {
            self.continue_reset(id, true);
        } else if written {
            self.join_sync(id);
        } else {
            self.end_reset(id, false);
        }
    }

    /// Begins to give back the space of the next zone.
    pub(super) fn begin_deallocation(&mut self, id: u32) -> Progress {
        let Some(reset) = self.reset(id) else {
            return Progress::AllBegun;
        };
        let Some(&zone) = reset.zones.get(reset.begun) else {
            return Progress::AllBegun;
        };
        let Some(token) = self.free_piece() else {
            return Progress::Starved;
        };
        if let Some(reset) = self.reset(id) {
            reset.begun += 1;
            reset.flying += 1;
        }
        let op = self.volume.deallocation(zone);
        let piece = Piece {
            op: id,
            zone,
            kind: PieceKind::Deallocate,
        };
        self.submit(token, piece, op);
        Progress::Begun
    }

    /// A deallocation is over; after the last one the reset is.
    pub(super) fn end_deallocation(&mut self, id: u32) {
        let Some(reset) = self.reset(id) else {
            return;
        };
        reset.flying -= 1;
        if reset.flying == 0 && reset.begun == reset.zones.len() {
            self.end_reset(id, true);
        }
    }

    fn end_reset(&mut self, id: u32, ok: bool) {
        let lists = self.reset(id).map(|reset| {
            let kept = std::mem::take(&mut reset.kept);
            (std::mem::take(&mut reset.zones), kept)
        });
        let (zones, kept) = lists.unwrap_or_default();
        let kept = kept.into_iter().map(|zone| (zone, true));
        for (zone, ok) in zones.into_iter().map(|zone| (zone, ok)).chain(kept) {
            self.volume.table.end_reset(zone, ok);
            self.touch(zone);
        }
        self.finish(id, if ok { Status::Ok } else { Status::IoError });
    }

    fn reset(&mut self, id: u32) -> Option<&mut Reset> {
        match &mut self.op(id)?.stage {
            Stage::Reset(reset) => Some(reset),
            _ => None,
        }
    }
}
