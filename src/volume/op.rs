//! Operations of a channel: what is under way, and its pieces.

use crate::geometry::{Blocks, Generation, Sector, ZoneIndex};
use crate::request::{Command, MemoryFault, Outcome, Span, Status};
use crate::store::IoBuf;
use crate::zone::{Grant, Intent};

/// The data of an operation, wherever its owner keeps it. Offsets are from the start of the data.
pub trait Payload {
    /// Copies out what the guest wants written. Called once for every byte.
    fn gather(&self, offset: u64, buf: &mut [u8]) -> Result<(), MemoryFault>;

    /// Hands the guest what was read.
    fn scatter(&self, offset: u64, data: &[u8]) -> Result<(), MemoryFault>;

    /// Notes what the operation is about to change, if it is noted anywhere. Called before anything
    /// is changed that outlives the daemon.
    fn intend(&self, _intent: Intent) {}

    /// Whether what is noted was spoiled since it was read: somebody else may have what it names.
    fn is_disowned(&self) -> bool {
        false
    }

    /// Spoils what is noted, for the operation fails.
    fn disown(&self) {}
}

/// An operation that is over; the payload goes back to who brought it.
#[derive(Debug)]
pub struct Finished<P> {
    /// What came with the command.
    pub payload: P,
    /// How it ended.
    pub outcome: Outcome,
}

/// Which way a transfer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Read,
    Write,
    /// A write whose data is zeroes.
    Zeroes,
    /// Nothing moves; the space is given back.
    Discard,
}

/// A stretch of the disk that is worked off in pieces.
#[derive(Debug)]
pub(super) struct Transfer {
    pub(super) direction: Direction,
    /// Next sector to begin.
    pub(super) sector: Sector,
    /// Bytes not begun.
    pub(super) left: u64,
    /// Bytes begun: the place in the payload.
    pub(super) offset: u64,
    /// Pieces begun and not over.
    pub(super) flying: u32,
    /// The first thing that went wrong; nothing more is begun then.
    pub(super) failed: Option<Status>,
    /// For a write to a sequential zone.
    pub(super) grant: Option<Grant>,
}

impl Transfer {
    pub(super) fn new(direction: Direction, span: Span, grant: Option<Grant>) -> Self {
        Self {
            direction,
            sector: span.sector,
            left: span.len,
            offset: 0,
            flying: 0,
            failed: None,
            grant,
        }
    }

    pub(super) fn fail(&mut self, status: Status) {
        self.failed.get_or_insert(status);
        self.left = 0;
    }

    pub(super) fn is_over(&self) -> bool {
        self.left == 0 && self.flying == 0
    }
}

/// Steps of a reset; each waits for the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ResetStep {
    /// The new records are being synced.
    First,
    /// Their other copies are.
    Second,
    /// The space is being given back.
    Deallocate,
}

/// A reset of one zone or of all.
#[derive(Debug)]
pub(super) struct Reset {
    pub(super) zones: Vec<ZoneIndex>,
    /// Others that nobody writes to until it ends.
    pub(super) kept: Vec<ZoneIndex>,
    pub(super) step: ResetStep,
    /// Zones whose deallocation was begun.
    pub(super) begun: usize,
    /// Deallocations begun and not over.
    pub(super) flying: u32,
}

/// Where an operation stands.
#[derive(Debug)]
pub(super) enum Stage {
    /// Waits for a busy zone; begins anew when that is free. (Or a read that is held for a moment.)
    Parked,
    /// Being worked off.
    Transfer(Transfer),
    /// Written; waits for its turn in the zone's line.
    InLine(Outcome),
    /// Waits for so many syncs, one after another, then ends so.
    Sync(Outcome, u8),
    /// Zones being reset.
    Reset(Reset),
}

/// An operation of a channel.
#[derive(Debug)]
pub(super) struct Op<P> {
    pub(super) command: Command,
    pub(super) payload: P,
    pub(super) stage: Stage,
    /// A daemon before this one had begun it: the channel may know what it was about to change.
    pub(super) begun_before: bool,
}

/// Where the tag slots of a piece are.
#[derive(Debug)]
pub(super) enum SlotSource {
    /// The cipher has none, or they are being read.
    None,
    /// In the cache, unless they lose their place there.
    Cache,
    /// Copied from the cache just now, into the channel's scratch.
    Gathered,
    /// In pages that were read for this piece.
    Pages(IoBuf),
    /// Read after what the cache had did not fit.
    Fresh(Vec<u8>),
}

/// Ciphertext of `count` blocks for `payload[offset..]`, then `zeroes` bytes that were never
/// written.
#[derive(Debug)]
pub(super) struct ReadPiece {
    pub(super) generation: Generation,
    pub(super) first: Blocks,
    pub(super) count: Blocks,
    pub(super) offset: u64,
    pub(super) zeroes: u64,
    /// Operations of the store that are not over: that for the data, and perhaps that for the slots.
    pub(super) flying: u8,
    /// The ciphertext, once it is there.
    pub(super) data: Option<IoBuf>,
    pub(super) slots: SlotSource,
    pub(super) failed: Option<Status>,
}

/// What a piece is.
#[derive(Debug)]
pub(super) enum PieceKind {
    Read(ReadPiece),
    Write(Owners),
    Deallocate,
}

/// The operations that a written piece is of, one after another.
pub(super) type Owners = Vec<u32>;

/// A part of an operation of the channel that the store works on.
#[derive(Debug)]
pub(super) struct Piece {
    /// The operation, or the first of them.
    pub(super) op: u32,
    pub(super) zone: ZoneIndex,
    pub(super) kind: PieceKind,
}
