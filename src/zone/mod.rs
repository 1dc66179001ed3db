//! Zones: states, write pointers, limits and the order of acknowledgements. Pure: no I/O, no time.

mod state;

pub use state::{Epoch, ZoneRecord, ZoneSalt, ZoneState};
