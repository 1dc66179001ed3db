//! Zones: states, write pointers, limits and the order of acknowledgements. Pure: no I/O, no time.
//!
//! [`Table`] is the state machine of virtio 1.4 (5.2.6, "Zone operation"). It decides and
//! remembers; the volume does the I/O in between. The life of a write:
//!
//! 1. [`Table::admit_write`] checks state, write pointer and limits, reserves `[wp, wp + n)` and
//!    returns a [`Grant`]: the place is known *before* anything is encrypted, and several grants
//!    of one zone may be in flight, for several queues.
//! 2. The holder encrypts for that place, writes, and hands the grant back by
//!    [`Table::complete`].
//! 3. [`Table::settle`] releases what is finished at the head of the zone's line, in
//!    write-pointer order, together with the zone record that must be written before anyone is
//!    told. A failed write fails everything behind it in the line; the write pointer falls back
//!    to where the failed one began once all of those have come to rest.
//!
//! RESET and FINISH need the line empty; who finds it busy is *parked* and retried when it drains.

mod answer;
mod entry;
mod line;
mod manage;
mod record;
mod recover;
mod redo;
mod report;
mod reset_all;
mod resources;
mod state;
mod table;
#[cfg(test)]
mod tests;
mod view;

pub use answer::{Admission, Finished, FlushMark, Grant, ReadView, Settled};
pub use line::{Released, Ticket};
pub use record::{Loaded, RecordCopy, RecordWrite};
pub use recover::{Opening, provable};
pub use redo::{Change, GivenUp, Intent, Note, Redo, Unfit};
pub use report::ZoneInfo;
pub use reset_all::AllZones;
pub use state::{Epoch, Skipped, ZoneRecord, ZoneSalt, ZoneState};
pub use table::Table;

use thiserror::Error;

/// Why a zone refuses. The request layer maps each to a virtio-blk status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ZoneError {
    /// VIRTIO_BLK_S_ZONE_INVALID_CMD: not possible for this zone in this state.
    #[error("not possible in this state of the zone")]
    InvalidCommand,
    /// VIRTIO_BLK_S_ZONE_UNALIGNED_WP: a write that does not start at the write pointer.
    #[error("not at the write pointer")]
    UnalignedWritePointer,
    /// VIRTIO_BLK_S_ZONE_OPEN_RESOURCE: every open slot is held by an explicitly open zone.
    #[error("no open zone resource left")]
    OpenResource,
    /// VIRTIO_BLK_S_ZONE_ACTIVE_RESOURCE: every active slot is taken.
    #[error("no active zone resource left")]
    ActiveResource,
    /// VIRTIO_BLK_S_IOERR: an earlier write in the line failed, or the zone's record could not be
    /// written.
    #[error("an earlier write of the zone failed")]
    Failed,
}
