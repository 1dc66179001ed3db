//! A RESET_ALL that a killed daemon was in the middle of.
//!
//! Zones are reset one after another, and the record of the last tells whether all are ([`super::Change::ResetAll`]). If the
//! daemon is killed before that, some are empty and nobody knows which of them were so before: when the request
//! comes once more, all are reset that are not empty. Who had written to one meanwhile, in the life that began with
//! the first try, would lose that. So the zones are kept from everybody, from the moment at which the front-end has handed
//! over what was in flight until all are reset. Only writes that were begun before come first: those were granted
//! before the reset began, or in zones that had nothing to reset. If it does not come, it is given up with them; what is noted of it is
//! spoiled before the zones are free, so that it is not done later.

use crate::geometry::{ZoneIndex, ZoneType};

use super::Epoch;
use super::answer::Admission;
use super::line::{Released, Ticket};
use super::redo::{Intent, Note, Redo, Unfit};
use super::table::{Inner, Table};

/// One that is to come once more, and who waits for its turn if it came.
#[derive(Debug)]
pub(super) struct Awaited {
    pub(super) intent: Intent,
    pub(super) waiting: Option<Ticket>,
}

/// The zones of a RESET_ALL that has come once more. All are kept from everybody until [`Table::end_reset`].
#[derive(Debug)]
pub struct AllZones {
    /// Those to reset, that whose record stands for all the last.
    pub zones: Vec<ZoneIndex>,
    /// The others.
    pub kept: Vec<ZoneIndex>,
}

impl Inner {
    /// Others that were announced come before it, or something is under way.
    fn holds_up_reset_all(&self) -> bool {
        let busy = |zone: &super::entry::Zone| zone.is_barred() || !zone.is_line_empty();
        !self.expected.is_empty() || self.zones.iter().any(busy)
    }

    /// Releases a RESET_ALL that waits for its turn, if that has come.
    pub(super) fn release_reset_all(&mut self, released: &mut Vec<Released>) {
        let waits = |awaited: &Awaited| awaited.waiting.is_some();
        if self.reset_all.as_ref().is_some_and(waits)
            && !self.holds_up_reset_all()
            && let Some(awaited) = &mut self.reset_all
        {
            let zone = awaited.intent.zone;
            let ticket = awaited.waiting.take();
            released.extend(ticket.map(|ticket| Released::Retry(ticket, zone)));
        }
    }
}

impl Table {
    /// [`Table::expect`] of a RESET_ALL.
    pub(super) fn expect_reset_all(
        &self,
        inner: &mut Inner,
        intent: Intent,
        epoch: Epoch,
    ) -> Result<(), Unfit> {
        let now = inner.epoch;
        if self.geometry.zone_type(intent.zone) != ZoneType::Sequential {
            return Err(Unfit::Nowhere);
        }
        let last = inner.zone(intent.zone).ok_or(Unfit::Nowhere)?;
        if last.generation > intent.generation {
            return Ok(());
        }
        if last.generation < intent.generation {
            return Err(Unfit::FromLater);
        }
        if epoch != now && inner.zones.iter().any(|zone| zone.epoch == now) {
            return Err(Unfit::Overtaken);
        }
        inner.reset_all.get_or_insert(Awaited {
            intent,
            waiting: None,
        });
        for (index, zone) in self.geometry.all_zones().zip(&mut inner.zones) {
            zone.awaited |= self.geometry.zone_type(index) == ZoneType::Sequential;
        }
        Ok(())
    }

    /// Begins a RESET_ALL once more that was begun before as `intent` says. `note` is where that is noted.
    ///
    /// # Errors
    /// [`Unfit`]: it was given up, or is not the one that was announced.
    pub fn begin_reset_all_again(
        &self,
        intent: Intent,
        ticket: Ticket,
        note: &impl Note,
    ) -> Result<Redo<AllZones>, Unfit> {
        let mut inner = self.inner.lock();
        let last = inner.zone(intent.zone).ok_or(Unfit::Nowhere)?;
        let spoiled = note.is_spoiled();
        if last.generation > intent.generation && !spoiled {
            return Ok(Redo::Counted);
        }
        let busy = inner.holds_up_reset_all();
        match &mut inner.reset_all {
            Some(awaited) if awaited.intent == intent && !spoiled => {
                if busy {
                    awaited.waiting = Some(ticket);
                    return Ok(Redo::Again(Admission::Parked));
                }
            }
            _ => {
                note.spoil();
                return Err(match spoiled {
                    true => Unfit::Spoiled,
                    false => Unfit::Unexpected,
                });
            }
        }
        inner.reset_all = None;
        let (mut zones, mut kept) = (Vec::new(), Vec::new());
        for (index, zone) in self.geometry.all_zones().zip(&mut inner.zones) {
            zone.awaited = false;
            if self.geometry.zone_type(index) == ZoneType::Sequential {
                zone.exclusive = true;
                let list = match zone.has_something_to_reset() {
                    true => &mut zones,
                    false => &mut kept,
                };
                list.push(index);
            }
        }
        // What is noted stays true: others may have come to hold something that are behind it.
        zones.sort_by_key(|&index| index == intent.zone);
        Ok(Redo::Again(Admission::Granted(AllZones { zones, kept })))
    }
}
