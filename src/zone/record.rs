//! Which of a zone record's two copies is written next.

use crate::geometry::Blocks;

use super::ZoneRecord;

/// One of the two places of a zone record on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RecordCopy {
    /// In the first record area.
    A,
    /// In the second.
    B,
}

impl RecordCopy {
    /// The other place.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

/// A zone record as it was found on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Its content.
    pub record: ZoneRecord,
    /// Its sequence number.
    pub sequence: u64,
    /// Where it was found.
    pub copy: RecordCopy,
    /// The other copy is the same.
    pub mirrored: bool,
    /// Blocks, from the start of the zone, that are there for certain, also after a power cut: the
    /// durable ones, and what tags prove beyond them.
    pub proven: Blocks,
}

/// An order to write a zone record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordWrite {
    /// The content.
    pub record: ZoneRecord,
    /// The sequence number: the highest of the two copies is the valid one.
    pub sequence: u64,
    /// The place to write to.
    pub copy: RecordCopy,
}

/// Where the newest record of a zone is, and whether it is durable.
///
/// Write order: as long as the newest copy is not durable, it is rewritten in place; once a sync
/// has made it durable, the next write goes to the other copy. So at any moment one copy is not
/// in flight, and power loss costs at most what was not flushed. When a disk is closed in order the
/// other copy is made the same, so that damage to one costs nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecordPlace {
    sequence: u64,
    /// The newest record whose write has returned: a sync covers no later one.
    written: u64,
    newest: RecordCopy,
    durable: bool,
    /// The other copy is the same as the newest.
    mirrored: bool,
}

impl RecordPlace {
    pub(super) fn loaded(sequence: u64, newest: RecordCopy, mirrored: bool) -> Self {
        Self {
            sequence,
            written: sequence,
            newest,
            durable: true,
            mirrored,
        }
    }

    /// An order to make the other copy the same, if it is not and nothing is in flight.
    pub(super) fn mirror(&mut self, record: ZoneRecord) -> Option<RecordWrite> {
        if self.mirrored || !self.durable {
            return None;
        }
        self.mirrored = true;
        Some(RecordWrite {
            record,
            sequence: self.sequence,
            copy: self.newest.other(),
        })
    }

    /// The number of the newest record.
    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The place and number for the next record.
    pub(super) fn advance(&mut self, record: ZoneRecord) -> RecordWrite {
        if self.durable {
            self.newest = self.newest.other();
            self.durable = false;
        }
        self.mirrored = false;
        self.sequence = self.sequence.saturating_add(1);
        RecordWrite {
            record,
            sequence: self.sequence,
            copy: self.newest,
        }
    }

    /// The write of record `sequence` has returned.
    pub(super) fn written(&mut self, sequence: u64) {
        self.written = self.written.max(sequence);
    }

    /// The number of the newest record that a sync which starts now covers.
    pub(super) fn covered(&self) -> u64 {
        self.written
    }

    /// A sync covered record `sequence`; says whether that is still the newest one.
    pub(super) fn synced(&mut self, sequence: u64) -> bool {
        if self.sequence == sequence {
            self.durable = true;
        }
        self.durable
    }

    /// Whether the newest record is durable.
    pub(super) fn is_durable(&self) -> bool {
        self.durable
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::{Blocks, Generation};
    use crate::zone::{Epoch, Skipped, ZoneSalt, ZoneState};

    #[test]
    fn the_durable_copy_is_never_in_flight() {
        let record = ZoneRecord {
            state: ZoneState::Empty,
            written: Blocks(0),
            durable: Blocks(0),
            generation: Generation(0),
            epoch: Epoch(0),
            skipped: Skipped(0),
            leftovers: false,
            salt: ZoneSalt([0; 32]),
        };
        let mut place = RecordPlace::loaded(7, RecordCopy::A, true);
        let first = place.advance(record);
        assert_eq!((first.copy, first.sequence), (RecordCopy::B, 8));
        let second = place.advance(record);
        assert_eq!((second.copy, second.sequence), (RecordCopy::B, 9));
        assert_eq!(place.covered(), 7, "neither write has returned");
        assert!(!place.synced(8), "the sync did not cover the newest");
        assert_eq!(place.advance(record).copy, RecordCopy::B);
        assert_eq!(
            place.mirror(record),
            None,
            "the newest may not be on the medium"
        );
        assert!(place.synced(10));
        let twin = place.mirror(record).unwrap();
        assert_eq!((twin.copy, twin.sequence), (RecordCopy::A, 10));
        assert_eq!(place.mirror(record), None);
        assert_eq!(place.advance(record).copy, RecordCopy::A);
    }
}
