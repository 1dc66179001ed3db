//! What a zone is at one moment: its state, its write pointer, and what must outlive the daemon.

use std::fmt;

use crate::geometry::{Blocks, Generation};

/// The condition of a zone, in the words of virtio 1.4 (5.2.6, "zone states") and ZNS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ZoneState {
    /// A conventional zone: no write pointer.
    NotWritePointer,
    /// Nothing written since the last reset.
    Empty,
    /// Opened by a write; the device may close it to make room.
    ImplicitOpen,
    /// Opened by ZONE_OPEN; only the guest closes it.
    ExplicitOpen,
    /// Holds data, no open resource.
    Closed,
    /// Takes no more writes until reset.
    Full,
    /// Reads only, for good: the medium failed it.
    ReadOnly,
    /// Neither reads nor writes: its record is lost, and its key with it.
    Offline,
}

impl ZoneState {
    /// Whether the zone takes one of the open slots.
    pub const fn is_open(self) -> bool {
        matches!(self, Self::ImplicitOpen | Self::ExplicitOpen)
    }

    /// Whether the zone takes one of the active slots (open ones do).
    pub const fn is_active(self) -> bool {
        self.is_open() || matches!(self, Self::Closed)
    }

    /// The word that reports print.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotWritePointer => "not-wp",
            Self::Empty => "empty",
            Self::ImplicitOpen => "implicit-open",
            Self::ExplicitOpen => "explicit-open",
            Self::Closed => "closed",
            Self::Full => "full",
            Self::ReadOnly => "read-only",
            Self::Offline => "offline",
        }
    }
}

impl fmt::Display for ZoneState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A random 64-bit value, never 0, drawn for every opening of the disk; names who wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Epoch(pub u64);

/// What the counter of every block's tag slot is ahead of the block's number.
///
/// 0 in a new generation and under a new epoch. When writes fail and the write pointer falls back
/// by n blocks, it grows by n: so under one key and one epoch no counter is used twice, and a block
/// of a failed write can never be taken for the one that was written in its place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Skipped(pub u32);

impl Skipped {
    /// The counter of `block`; `None` beyond what a tag slot holds.
    pub fn counter(self, block: Blocks) -> Option<u32> {
        u32::try_from(block.0).ok()?.checked_add(self.0)
    }
}

/// The random salt that, with the volume key, makes a zone's key. Replacing it erases the zone.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ZoneSalt(pub [u8; 32]);

impl fmt::Debug for ZoneSalt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ZoneSalt(..)")
    }
}

/// What is kept of a zone on disk: the content of its zone record.
///
/// `durable <= written <= capacity`. `written` counts the blocks that hold data, which is the
/// write pointer except in a zone that was finished early: there the write pointer stands at the
/// end and the blocks after `written` read as zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZoneRecord {
    /// The zone's state.
    pub state: ZoneState,
    /// Blocks acknowledged, from the start of the zone.
    pub written: Blocks,
    /// Blocks that a completed flush covers.
    pub durable: Blocks,
    /// Resets so far.
    pub generation: Generation,
    /// The epoch under which the zone was written to since the disk was opened; 0 if it was not.
    pub epoch: Epoch,
    /// Counters that failed writes have used up under that epoch.
    pub skipped: Skipped,
    /// The zone is empty, and yet blocks of this generation may be on the medium, of writes that
    /// failed or that a cut took back: a reset has something to erase.
    pub leftovers: bool,
    /// The salt of this generation's key.
    pub salt: ZoneSalt,
}
