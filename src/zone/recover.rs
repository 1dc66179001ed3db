//! What a zone record means when a disk is opened again.

use crate::geometry::{Blocks, Geometry, ZoneIndex, ZoneType};

use super::{Loaded, ZoneRecord, ZoneState};

/// How the disk was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// Stopped in order: everything is durable, and a disk that was switched off has no open zone.
    Clean,
    /// Stopped in order, and the host went on: zones are open if a guest was to go on with them.
    Paused,
    /// The daemon was killed and the machine went on: the page cache kept every record exact, and
    /// a guest may go on where it was.
    Killed,
    /// The machine went down: of a zone only what a flush covered is certain.
    PowerCut,
}

impl Opening {
    /// Whether everything on the disk is durable and as its header says.
    pub const fn is_orderly(self) -> bool {
        matches!(self, Self::Clean | Self::Paused)
    }
}

/// The record under which a zone starts. Idempotent, and never moves a durable write pointer back.
///
/// After a power cut the zone holds what is proven to be there. A cipher without tags cannot tell
/// data that reached the medium from data that did not, so that is what a flush covered; with tags
/// it is also what verifies behind that, which may be more than the record has heard of. A zone
/// that was full by writing may then not be full any more, or one be full that was not; one that
/// was finished early keeps that state, for the blocks it lacks read as zeroes either way.
pub(super) fn recover(
    geometry: &Geometry,
    index: ZoneIndex,
    loaded: &Loaded,
    opening: Opening,
) -> ZoneRecord {
    let record = loaded.record;
    if geometry.zone_type(index) == ZoneType::Conventional {
        return record;
    }
    let capacity = geometry.zone_capacity_blocks(index);
    let mut recovered = record;
    match opening {
        Opening::Clean | Opening::Paused => {}
        // Unless the newest record is lost, what is proven is what the record says.
        Opening::Killed => recovered.written = record.written.max(loaded.proven),
        Opening::PowerCut => {
            recovered.written = loaded.proven;
            recovered.durable = loaded.proven;
        }
    }
    let filled = record.written == capacity;
    recovered.state = match record.state {
        ZoneState::Full if filled && recovered.written < capacity => ZoneState::Closed,
        ZoneState::Empty if recovered.written > Blocks(0) => ZoneState::Closed,
        state => state,
    };
    if recovered.state.is_active() && recovered.written == capacity {
        recovered.state = ZoneState::Full;
    }
    // One that was closed to make room before its first write was over holds nothing.
    let closed = recovered.state == ZoneState::Closed;
    let goes_on = matches!(opening, Opening::Killed | Opening::Paused);
    if !goes_on || closed {
        recovered.state = switched_off(&recovered);
    }
    recovered.leftovers |= recovered.state == ZoneState::Empty && record.state != ZoneState::Empty;
    recovered
}

/// How far behind the proven blocks of a zone tags may prove more after a power cut: to its end, or,
/// if it takes no more writes, to where its data ended. Nowhere if its record, and so its key, is
/// lost.
pub fn provable(geometry: &Geometry, index: ZoneIndex, loaded: &Loaded) -> Blocks {
    let capacity = geometry.zone_capacity_blocks(index);
    match loaded.record.state {
        ZoneState::NotWritePointer | ZoneState::Offline => loaded.proven,
        // Nothing is written to such a zone any more.
        ZoneState::Full | ZoneState::ReadOnly => loaded.record.written,
        _ => capacity,
    }
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
    use crate::zone::{Epoch, RecordCopy, Skipped, ZoneSalt};

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
            skipped: Skipped(0),
            leftovers: false,
            salt: ZoneSalt([1; 32]),
        }
    }

    fn recovered(record: ZoneRecord, proven: u64, opening: Opening) -> ZoneRecord {
        let loaded = Loaded {
            record,
            sequence: 1,
            copy: RecordCopy::A,
            mirrored: false,
            proven: Blocks(proven),
        };
        recover(&geometry(), ZoneIndex(0), &loaded, opening)
    }

    #[test]
    fn what_tags_prove_counts_after_a_power_cut_only() {
        use Opening::{Clean, Killed, PowerCut};
        use ZoneState::{Closed, Empty, Full, ImplicitOpen, ReadOnly};
        let cases = [
            (PowerCut, (ImplicitOpen, 5, 2), 4, (Closed, 4, 4)),
            (PowerCut, (ImplicitOpen, 5, 2), 9, (Closed, 9, 9)),
            (PowerCut, (ImplicitOpen, 5, 2), 16, (Full, 16, 16)),
            (PowerCut, (Empty, 0, 0), 3, (Closed, 3, 3)),
            (PowerCut, (Empty, 0, 0), 16, (Full, 16, 16)),
            (PowerCut, (Full, 16, 9), 15, (Closed, 15, 15)),
            (PowerCut, (Full, 7, 3), 5, (Full, 5, 5)),
            (PowerCut, (ReadOnly, 7, 3), 6, (ReadOnly, 6, 6)),
            // Killed, and the newest record damaged: tags say what it said.
            (Killed, (ImplicitOpen, 5, 2), 9, (ImplicitOpen, 9, 2)),
            (Killed, (Empty, 0, 0), 9, (Closed, 9, 0)),
            (Killed, (ImplicitOpen, 5, 2), 3, (ImplicitOpen, 5, 2)),
            (Clean, (Closed, 5, 5), 9, (Closed, 5, 5)),
        ];
        for (opening, before, proven, after) in cases {
            let found = recovered(record(before.0, before.1, before.2), proven, opening);
            let expected = record(after.0, after.1, after.2);
            assert_eq!(found, expected, "{opening:?} {before:?} {proven}");
        }
    }

    #[test]
    fn recovery_follows_how_the_disk_was_left() {
        use Opening::{Clean, Killed, Paused, PowerCut};
        use ZoneState::{Closed, Empty, ExplicitOpen, Full, ImplicitOpen, ReadOnly};
        let cases = [
            (Killed, (ImplicitOpen, 5, 2), (ImplicitOpen, 5, 2)),
            (Killed, (ExplicitOpen, 0, 0), (ExplicitOpen, 0, 0)),
            (Killed, (Closed, 0, 0), (Empty, 0, 0)),
            (Killed, (Closed, 5, 2), (Closed, 5, 2)),
            (Paused, (ExplicitOpen, 0, 0), (ExplicitOpen, 0, 0)),
            (Paused, (ImplicitOpen, 5, 5), (ImplicitOpen, 5, 5)),
            (Paused, (Closed, 5, 5), (Closed, 5, 5)),
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
            let found = recovered(record(before.0, before.1, before.2), before.2, opening);
            let leftovers = after.0 == Empty && before.0 != Empty;
            let expected = ZoneRecord {
                leftovers,
                ..record(after.0, after.1, after.2)
            };
            assert_eq!(found, expected, "{opening:?} {before:?}");
            assert_eq!(recovered(found, found.durable.0, opening), found);
        }
    }
}
