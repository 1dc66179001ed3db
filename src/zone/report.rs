//! What a zone report says of a zone.

use crate::geometry::{Sector, ZoneType};

use super::ZoneState;

/// One zone as the guest sees it; all figures in sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZoneInfo {
    /// First sector.
    pub start: Sector,
    /// Sectors to the next zone.
    pub len: Sector,
    /// Sectors that can hold data.
    pub capacity: Sector,
    /// The write pointer: the first sector after what is acknowledged. The specification leaves it
    /// undefined where there is none (virtio 1.4, 5.2.6); here a full zone's stands at the end of
    /// the zone, any other's at its start.
    pub write_pointer: Sector,
    /// Conventional or sequential.
    pub kind: ZoneType,
    /// State.
    pub state: ZoneState,
}
