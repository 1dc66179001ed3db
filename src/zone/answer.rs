//! What the zone table answers.

use crate::geometry::{Blocks, Generation, ZoneIndex};

use super::line::Released;
use super::record::RecordWrite;
use super::{Epoch, Skipped};

/// Whether an operation may go on now.
#[derive(Debug)]
#[must_use]
pub enum Admission<T> {
    /// Go on.
    Granted(T),
    /// The zone is busy; the ticket comes back as [`Released::Retry`].
    Parked,
}

/// The right, and the duty, to write a reserved range of a zone. Handed back by
/// [`super::Table::complete`], exactly once.
#[derive(Debug)]
#[must_use]
pub struct Grant {
    /// The zone.
    pub zone: ZoneIndex,
    /// First reserved block.
    pub start: Blocks,
    /// The generation whose key encrypts it.
    pub generation: Generation,
    /// With `skipped`, what stamps its blocks.
    pub epoch: Epoch,
    /// See `epoch`.
    pub skipped: Skipped,
    /// Zone that lost its open slot to this one, whose record must be written ([`super::Table::settle`]).
    pub closed: Option<ZoneIndex>,
    pub(super) number: u64,
}

/// What a read needs to know of a zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadView {
    /// The generation whose key decrypts it.
    pub generation: Generation,
    /// Blocks from here on have no data and read as zeroes.
    pub written: Blocks,
}

/// What [`super::Table::settle`] wants done before anyone is told.
#[derive(Debug, Default)]
#[must_use]
pub struct Settled {
    /// A zone record to write first.
    pub record: Option<RecordWrite>,
    /// The write pointer fell back, and the zone takes no writes before the record is written that
    /// [`super::Table::fence_record`] gives, and [`super::Table::end_fence`] is called. With tags what
    /// the zone holds must be durable before the one, and that record before the other.
    pub fence: bool,
    /// Writes failed: nothing of this generation that was granted from here on was done. It must not be taken
    /// for whatever is next at its place, so who keeps intents is told before the fence ends.
    pub fell_back: Option<(Generation, Blocks)>,
    /// Who is to be told afterwards.
    pub released: Vec<Released>,
}

/// What a flush covers: taken before its sync, given back after.
#[derive(Debug, Default)]
#[must_use]
pub struct FlushMark {
    pub(super) zones: Vec<MarkedZone>,
}

#[derive(Debug)]
pub(super) struct MarkedZone {
    pub(super) zone: ZoneIndex,
    pub(super) sequence: u64,
    pub(super) generation: Generation,
    pub(super) written: Blocks,
}

/// What [`super::Table::finish`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Finished {
    /// The zone was not full before; its record is to settle.
    pub changed: bool,
    /// Its record is not durable: to be synced before anyone is told.
    pub pending: bool,
    /// Zone closed to make room.
    pub closed: Option<ZoneIndex>,
}
