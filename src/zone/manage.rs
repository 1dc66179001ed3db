//! Zone management: open, close, finish, reset.

use crate::geometry::{Blocks, Generation, ZoneIndex};

use super::answer::{Admission, Finished};
use super::line::Ticket;
use super::table::Table;
use super::{Skipped, ZoneError, ZoneSalt, ZoneState};

impl Table {
    /// ZONE_OPEN. Returns the zone that was closed to make room; both have new records to settle.
    pub fn open(
        &self,
        index: ZoneIndex,
        ticket: Ticket,
    ) -> Result<Admission<Option<ZoneIndex>>, ZoneError> {
        let mut inner = self.inner.lock();
        let zone = inner.zone(index).ok_or(ZoneError::InvalidCommand)?;
        match zone.state {
            ZoneState::Empty
            | ZoneState::ImplicitOpen
            | ZoneState::ExplicitOpen
            | ZoneState::Closed => {}
            _ => return Err(ZoneError::InvalidCommand),
        }
        if zone.must_wait(ticket) {
            zone.line().park(ticket);
            return Ok(Admission::Parked);
        }
        let closed = inner.obtain(index)?;
        inner.set_state(index, ZoneState::ExplicitOpen);
        Ok(Admission::Granted(closed))
    }

    /// ZONE_CLOSE. The zone has a new record to settle.
    pub fn close(&self, index: ZoneIndex, ticket: Ticket) -> Result<Admission<()>, ZoneError> {
        let mut inner = self.inner.lock();
        let zone = inner.zone(index).ok_or(ZoneError::InvalidCommand)?;
        if !zone.state.is_active() {
            return Err(ZoneError::InvalidCommand);
        }
        if zone.must_wait(ticket) {
            zone.line().park(ticket);
            return Ok(Admission::Parked);
        }
        let to = inner.closed_state_of(index);
        inner.set_state(index, to);
        Ok(Admission::Granted(()))
    }

    /// ZONE_FINISH: waits for writes in flight, then seals the zone. `Granted(changed)`. Finishing
    /// an empty or closed zone passes through an open state and needs its resources, as NVMe ZNS
    /// has it; virtio 1.4 leaves both transitions out of its list and in its prose.
    pub fn finish(
        &self,
        index: ZoneIndex,
        ticket: Ticket,
    ) -> Result<Admission<Finished>, ZoneError> {
        let capacity = self.geometry.zone_capacity_blocks(index);
        let mut inner = self.inner.lock();
        let zone = inner.zone(index).ok_or(ZoneError::InvalidCommand)?;
        match zone.state {
            // Full by a write or a finish that no sync covers yet: that is waited for.
            ZoneState::Full => {
                return Ok(Admission::Granted(Finished {
                    pending: zone.listed || zone.touched,
                    ..Finished::default()
                }));
            }
            ZoneState::Empty
            | ZoneState::ImplicitOpen
            | ZoneState::ExplicitOpen
            | ZoneState::Closed => {}
            _ => return Err(ZoneError::InvalidCommand),
        }
        if zone.must_wait(ticket) || !zone.is_at_rest() {
            zone.line().park(ticket);
            return Ok(Admission::Parked);
        }
        let closed = inner.obtain(index)?;
        inner.set_state(index, ZoneState::Full);
        if let Some(zone) = inner.zone(index) {
            zone.reserved = capacity;
        }
        Ok(Admission::Granted(Finished {
            changed: true,
            pending: true,
            closed,
        }))
    }

    /// Begins ZONE_RESET: waits for writes in flight, then keeps the zone to itself until
    /// [`Table::end_reset`]. `Granted(false)`: it is empty already and nothing is to do.
    pub fn begin_reset(
        &self,
        index: ZoneIndex,
        ticket: Ticket,
    ) -> Result<Admission<bool>, ZoneError> {
        let mut inner = self.inner.lock();
        let zone = inner.zone(index).ok_or(ZoneError::InvalidCommand)?;
        match zone.state {
            ZoneState::NotWritePointer | ZoneState::ReadOnly | ZoneState::Offline => {
                return Err(ZoneError::InvalidCommand);
            }
            _ => {}
        }
        if zone.must_wait(ticket) || !zone.is_at_rest() {
            zone.line().park(ticket);
            return Ok(Admission::Parked);
        }
        if zone.state == ZoneState::Empty && !zone.leftovers {
            return Ok(Admission::Granted(false));
        }
        zone.exclusive = true;
        Ok(Admission::Granted(true))
    }

    /// Begins ZONE_RESET_ALL: every zone with something to reset, each as by
    /// [`Table::begin_reset`]. Parked behind the first busy one.
    pub fn begin_reset_all(&self, ticket: Ticket) -> Admission<Vec<ZoneIndex>> {
        let mut inner = self.inner.lock();
        if let Some(busy) = inner.zones.iter_mut().find(|zone| !zone.is_at_rest()) {
            busy.line().park(ticket);
            return Admission::Parked;
        }
        let mut zones = Vec::new();
        for (index, zone) in self.geometry.all_zones().zip(&mut inner.zones) {
            if zone.has_something_to_reset() {
                zone.exclusive = true;
                zones.push(index);
            }
        }
        Admission::Granted(zones)
    }

    /// Empties a zone that a reset holds, under a new generation and `salt`; its record is to
    /// settle. Reads see zeroes from here on.
    pub fn apply_reset(&self, index: ZoneIndex, salt: ZoneSalt) {
        let mut inner = self.inner.lock();
        let Some(zone) = inner.zone(index).filter(|zone| zone.exclusive) else {
            return;
        };
        zone.written = Blocks(0);
        zone.durable = Blocks(0);
        zone.reserved = Blocks(0);
        zone.generation = Generation(zone.generation.0.saturating_add(1));
        zone.salt = salt;
        zone.skipped = Skipped(0);
        zone.leftovers = false;
        zone.failures = (Blocks(0), 0);
        zone.touched = true;
        inner.set_state(index, ZoneState::Empty);
        self.show(&inner, index);
    }

    /// Ends a reset; [`Table::settle`] then frees who waits for the zone.
    pub fn end_reset(&self, index: ZoneIndex, ok: bool) {
        let mut inner = self.inner.lock();
        if let Some(zone) = inner.zone(index) {
            zone.exclusive = false;
        }
        if !ok {
            inner.set_state(index, ZoneState::ReadOnly);
        }
    }
}
