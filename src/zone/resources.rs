//! The two limits: how many zones may be open, and how many active.

use crate::geometry::ZoneIndex;

use super::ZoneState;

/// Counts open and active zones against their limits (0 = none).
#[derive(Debug)]
pub(super) struct Resources {
    max_open: u32,
    max_active: u32,
    active: u32,
    /// Zones that are not active any more, but whose records on disk still say so. Nobody gets their
    /// slots: after a kill more zones would be active than may be, and one would have to be finished.
    lingering: u32,
    /// Every open zone, in no order; searched only when a slot must be freed.
    open: Vec<ZoneIndex>,
}

impl Resources {
    pub(super) fn new(max_open: u32, max_active: u32) -> Self {
        Self {
            max_open,
            max_active,
            active: 0,
            lingering: 0,
            open: Vec::new(),
        }
    }

    /// Books the change of `zone` from one state to another.
    pub(super) fn change(&mut self, zone: ZoneIndex, from: ZoneState, to: ZoneState) {
        if from.is_active() && !to.is_active() {
            self.active -= 1;
        }
        if !from.is_active() && to.is_active() {
            self.active += 1;
        }
        if from.is_open() && !to.is_open() {
            self.open.retain(|&open| open != zone);
        }
        if !from.is_open() && to.is_open() {
            self.open.push(zone);
        }
    }

    /// Books that a zone begins or ceases to linger.
    pub(super) fn change_lingering(&mut self, from: bool, to: bool) {
        self.lingering -= u32::from(from);
        self.lingering += u32::from(to);
    }

    /// No zone more may become active; of those that linger the one that asks does not count
    /// (`lingers`).
    pub(super) fn active_full(&self, lingers: bool) -> bool {
        let taken = self.active + self.lingering - u32::from(lingers);
        self.max_active != 0 && taken >= self.max_active
    }

    /// No zone more may become open.
    pub(super) fn open_full(&self) -> bool {
        self.max_open != 0 && self.open_count() >= self.max_open
    }

    /// More are active than the limit allows (only a recovery can find it so).
    pub(super) fn active_exceeded(&self) -> bool {
        self.max_active != 0 && self.active > self.max_active
    }

    /// More are open than the limit allows (only a recovery can find it so).
    pub(super) fn open_exceeded(&self) -> bool {
        self.max_open != 0 && self.open_count() > self.max_open
    }

    /// Zones open now.
    pub(super) fn open_count(&self) -> u32 {
        u32::try_from(self.open.len()).unwrap_or(u32::MAX)
    }

    /// Zones active now.
    pub(super) fn active_count(&self) -> u32 {
        self.active
    }

    /// The open zones.
    pub(super) fn open_zones(&self) -> &[ZoneIndex] {
        &self.open
    }
}
