//! What a zone record means when a disk is opened again.

use crate::geometry::{Blocks, Geometry, ZoneIndex, ZoneType};

use super::{ZoneRecord, ZoneState};

/// How the disk was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// Stopped in order: everything is durable, and a disk that was switched off has no open zone.
    Clean,
    /// The daemon was killed and the machine went on: the page cache kept every record exact, and
    /// a guest may go on where it was.
    Killed,
    /// The machine went down: of a zone only what a flush covered is certain.
    PowerCut,
}

/// The record under which a zone starts. Idempotent, and never moves a durable write pointer.
///
/// After a power cut a cipher without tags cannot tell data that reached the medium from data
/// that did not, so the write pointer returns to the durable one. A zone that was full by writing
/// is then not full any more; one that was finished early keeps that state, for the blocks it
/// lacks read as zeroes either way.
pub(super) fn recover(
    geometry: &Geometry,
    index: ZoneIndex,
    record: ZoneRecord,
    opening: Opening,
) -> ZoneRecord {
    if geometry.zone_type(index) == ZoneType::Conventional {
        return record;
    }
    let mut recovered = record;
    if opening == Opening::PowerCut {
        let lost = record.written > record.durable;
        recovered.written = record.durable;
        let filled = record.written == geometry.zone_capacity_blocks(index);
        if record.state == ZoneState::Full && lost && filled {
            recovered.state = ZoneState::Closed;
        }
    }
    // One that was closed to make room before its first write was over holds nothing.
    let closed = recovered.state == ZoneState::Closed;
    if opening != Opening::Killed || closed {
        recovered.state = switched_off(&recovered);
    }
    recovered
}

/// The state that a zone keeps through a power cycle.
pub(super) fn switched_off(record: &ZoneRecord) -> ZoneState {
    match record.state {
        state if !state.is_active() => state,
        _ if record.written == Blocks(0) => ZoneState::Empty,
        _ => ZoneState::Closed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::{Generation, GeometrySpec, Model};
    use crate::zone::{Epoch, ZoneSalt};

    fn geometry() -> Geometry {
        GeometrySpec {
            model: Model::HostManaged,
            block_size: 4096,
            disk_size: 1 << 20,
            zone_size: 64 << 10,
            zone_capacity: 64 << 10,
            conventional: 0,
            max_open: 0,
            max_active: 0,
            max_append: 4096,
        }
        .validate()
        .unwrap()
    }

    fn record(state: ZoneState, written: u64, durable: u64) -> ZoneRecord {
        ZoneRecord {
            state,
            written: Blocks(written),
            durable: Blocks(durable),
            generation: Generation(3),
            epoch: Epoch(0),
            salt: ZoneSalt([1; 32]),
        }
    }

    #[test]
    fn recovery_follows_how_the_disk_was_left() {
        use Opening::{Clean, Killed, PowerCut};
        use ZoneState::{Closed, Empty, ExplicitOpen, Full, ImplicitOpen, ReadOnly};
        let cases = [
            (Killed, (ImplicitOpen, 5, 2), (ImplicitOpen, 5, 2)),
            (Killed, (ExplicitOpen, 0, 0), (ExplicitOpen, 0, 0)),
            (Killed, (Closed, 0, 0), (Empty, 0, 0)),
            (Killed, (Closed, 5, 2), (Closed, 5, 2)),
            (Clean, (ImplicitOpen, 5, 5), (Closed, 5, 5)),
            (Clean, (ExplicitOpen, 0, 0), (Empty, 0, 0)),
            (Clean, (Full, 16, 16), (Full, 16, 16)),
            (PowerCut, (ImplicitOpen, 5, 2), (Closed, 2, 2)),
            (PowerCut, (Closed, 5, 0), (Empty, 0, 0)),
            (PowerCut, (Full, 16, 9), (Closed, 9, 9)),
            (PowerCut, (Full, 16, 0), (Empty, 0, 0)),
            (PowerCut, (Full, 16, 16), (Full, 16, 16)),
            (PowerCut, (Full, 7, 3), (Full, 3, 3)),
            (PowerCut, (ReadOnly, 7, 3), (ReadOnly, 3, 3)),
        ];
        for (opening, before, after) in cases {
            let found = recover(
                &geometry(),
                ZoneIndex(0),
                record(before.0, before.1, before.2),
                opening,
            );
            assert_eq!(
                found,
                record(after.0, after.1, after.2),
                "{opening:?} {before:?}"
            );
            assert_eq!(recover(&geometry(), ZoneIndex(0), found, opening), found);
        }
    }
}
