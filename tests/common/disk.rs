//! The zoned disk that most tests use, small enough to be read whole.

use super::daemon::Rig;
use super::frontend::{Frontend, Options};

/// Sectors of a zone of [`SMALL`].
pub const ZONE: u64 = 512;
/// Sectors of a sequential zone's capacity.
pub const ZONE_CAPACITY: u64 = 384;
/// Zones.
pub const ZONES: usize = 16;
/// Sixteen zones, two of them conventional, three open, five active.
pub const SMALL: [&str; 14] = [
    "--size",
    "4M",
    "--zone-size",
    "256K",
    "--zone-capacity",
    "192K",
    "--conventional",
    "2",
    "--max-open",
    "3",
    "--max-active",
    "5",
    "--max-append",
    "64K",
];

/// Zone states as on the wire.
pub mod state {
    /// Conventional.
    pub const NOT_WP: u8 = 0;
    /// Empty.
    pub const EMPTY: u8 = 1;
    /// Opened by a write.
    pub const IOPEN: u8 = 2;
    /// Opened by command.
    pub const EOPEN: u8 = 3;
    /// Closed.
    pub const CLOSED: u8 = 4;
    /// Full.
    pub const FULL: u8 = 14;
}

/// A served [`SMALL`] disk and a session with four queues.
pub fn small_rig() -> (Rig, Frontend) {
    let rig = Rig::new(&SMALL, &["--queues", "4"]);
    let f = Frontend::open_with(&rig.socket(), Options::queues(4));
    (rig, f)
}

/// A block of one byte's value.
pub fn block(fill: u8) -> Vec<u8> {
    vec![fill; 4096]
}
