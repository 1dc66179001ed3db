//! The zone machine alone beside the reference model, with failing cases made small by proptest.
//!
//! `differential.rs` compares the whole daemon over its socket; here nothing but
//! `zonevault::zone::Table` answers, thousands of command sequences a second, over geometries drawn
//! at random too.

#[cfg(test)]
pub mod common;
#[cfg(test)]
#[path = "common/model.rs"]
pub mod model;

#[cfg(test)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "sizes of tests fit every integer they meet"
)]
mod tests {
    use proptest::prelude::*;
    use zonevault::geometry::{Blocks, Generation, Geometry, GeometrySpec, Model, ZoneIndex};
    use zonevault::request::{encode_zone, report_header};
    use zonevault::zone::{
        Admission, Epoch, Loaded, Opening, RecordCopy, Released, Skipped, Table, Ticket, ZoneError,
        ZoneRecord, ZoneSalt, ZoneState,
    };

    use crate::common::request::{parse_report, status};
    use crate::model;

    const BLOCK: u64 = 4096;
    const ZONE: u64 = 64 << 10;
    const TICKET: Ticket = Ticket {
        queue: 0,
        life: 0,
        op: 0,
    };

    #[derive(Clone, Debug)]
    enum Command {
        Append(u32, u64),
        /// A write that many blocks past the zone's start.
        Write(u32, u64, u64),
        Open(u32),
        Close(u32),
        Finish(u32),
        Reset(u32),
        ResetAll,
    }

    fn spec() -> impl Strategy<Value = GeometrySpec> {
        (2..8u32, 1..=16u64, 0..5u32, 0..6u32).prop_flat_map(|(zones, capacity, open, active)| {
            (0..zones).prop_map(move |conventional| GeometrySpec {
                model: Model::HostManaged,
                block_size: BLOCK,
                disk_size: u64::from(zones) * ZONE,
                zone_size: ZONE,
                zone_capacity: capacity * BLOCK,
                conventional,
                max_open: if active == 0 { open } else { open.min(active) },
                max_active: active,
                max_append: capacity * BLOCK,
            })
        })
    }

    fn command() -> impl Strategy<Value = Command> {
        let zone = 0..8u32;
        prop_oneof![
            4 => (zone.clone(), 1..6u64).prop_map(|(z, n)| Command::Append(z, n)),
            4 => (zone.clone(), 0..17u64, 1..6u64).prop_map(|(z, at, n)| Command::Write(z, at, n)),
            2 => zone.clone().prop_map(Command::Open),
            2 => zone.clone().prop_map(Command::Close),
            1 => zone.clone().prop_map(Command::Finish),
            1 => zone.prop_map(Command::Reset),
            1 => Just(Command::ResetAll),
        ]
    }

    fn fresh(geometry: Geometry) -> Table {
        let record = |zone| Loaded {
            record: ZoneRecord {
                state: match geometry.zone_type(zone) {
                    zonevault::geometry::ZoneType::Conventional => ZoneState::NotWritePointer,
                    zonevault::geometry::ZoneType::Sequential => ZoneState::Empty,
                },
                written: Blocks(0),
                durable: Blocks(0),
                generation: Generation(0),
                epoch: Epoch(0),
                skipped: Skipped(0),
                leftovers: false,
                salt: ZoneSalt([0; 32]),
            },
            sequence: 0,
            copy: RecordCopy::A,
            mirrored: true,
            proven: Blocks(0),
        };
        let records = geometry.all_zones().map(|zone| Some(record(zone)));
        Table::new(geometry, records.collect(), Opening::Clean, Epoch(1))
    }

    fn code<T>(result: Result<Admission<T>, ZoneError>) -> (u8, Option<T>) {
        match result {
            Ok(Admission::Granted(value)) => (status::OK, Some(value)),
            Ok(Admission::Parked) => panic!("nothing is under way"),
            Err(ZoneError::InvalidCommand) => (status::INVALID_CMD, None),
            Err(ZoneError::UnalignedWritePointer) => (status::UNALIGNED_WP, None),
            Err(ZoneError::OpenResource) => (status::OPEN_RESOURCE, None),
            Err(ZoneError::ActiveResource) => (status::ACTIVE_RESOURCE, None),
            Err(ZoneError::Failed) => (status::IOERR, None),
        }
    }

    /// Writes to the table as the disk does; the status, and where it went.
    fn write(table: &Table, zone: ZoneIndex, at: Option<u64>, count: u64) -> (u8, u64) {
        let admission = table.admit_write(zone, at.map(Blocks), Blocks(count), TICKET);
        let (code, grant) = code(admission);
        let start = grant.as_ref().map_or(0, |grant| grant.start.0);
        if let Some(grant) = grant {
            table.complete(grant, true);
            let released = settle(table, zone);
            assert_eq!(released.len(), 1, "the only write of its line is released");
        }
        (code, start)
    }

    fn reset(table: &Table, zones: Vec<ZoneIndex>) {
        for zone in zones {
            table.apply_reset(zone, ZoneSalt([1; 32]));
            table.end_reset(zone, true);
            let _ = settle(table, zone);
        }
    }

    /// Settles a zone, and has its record written as the disk does before it tells anyone.
    fn settle(table: &Table, zone: ZoneIndex) -> Vec<Released> {
        let settled = table.settle(zone);
        if let Some(order) = &settled.record {
            table.record_written(zone, order);
        }
        settled.released
    }

    /// One request from its beginning to its acknowledgement.
    fn step(table: &Table, model: &mut model::Model, command: &Command) {
        begin(table, model, command);
        for zone in table.touched() {
            let _ = settle(table, zone);
        }
    }

    fn begin(table: &Table, model: &mut model::Model, command: &Command) {
        let zones = table.geometry().zones();
        let of = |zone: u32| {
            (
                ZoneIndex(zone % zones),
                model.start((zone % zones) as usize),
            )
        };
        match *command {
            Command::Append(zone, count) => {
                let (index, sector) = of(zone);
                let data = vec![0; (count * BLOCK) as usize];
                let over = count * BLOCK > table.geometry().max_append();
                let (allowed, place) = model.append(sector, &data);
                if over {
                    // Refused by the request layer, before the table is asked.
                    assert!(allowed.contains(&status::INVALID_CMD));
                    return;
                }
                let (code, start) = write(table, index, None, count);
                assert!(
                    allowed.contains(&code),
                    "{command:?}: {code} not in {allowed:?}"
                );
                if code == status::OK {
                    assert_eq!(place, sector + start * 8, "{command:?}");
                }
            }
            Command::Write(zone, at, count) => {
                let (index, sector) = of(zone);
                let conventional = index.0 < table.geometry().conventional();
                if conventional || at + count > ZONE / BLOCK {
                    return; // written in place, or refused before the table is asked
                }
                let data = vec![0; (count * BLOCK) as usize];
                let allowed = model.write(sector + at * 8, &data);
                let (code, _) = write(table, index, Some(at), count);
                assert!(
                    allowed.contains(&code),
                    "{command:?}: {code} not in {allowed:?}"
                );
            }
            Command::Open(zone) => {
                let (index, sector) = of(zone);
                let (code, _) = code(table.open(index, TICKET));
                assert!(model.open(sector).contains(&code), "{command:?}: {code}");
            }
            Command::Close(zone) => {
                let (index, sector) = of(zone);
                let (code, _) = code(table.close(index, TICKET));
                assert!(model.close(sector).contains(&code), "{command:?}: {code}");
            }
            Command::Finish(zone) => {
                let (index, sector) = of(zone);
                let (code, _) = code(table.finish(index, TICKET));
                assert!(model.finish(sector).contains(&code), "{command:?}: {code}");
            }
            Command::Reset(zone) => {
                let (index, sector) = of(zone);
                let (code, needed) = code(table.begin_reset(index, TICKET));
                if needed == Some(true) {
                    reset(table, vec![index]);
                }
                assert!(model.reset(sector).contains(&code), "{command:?}: {code}");
            }
            Command::ResetAll => {
                if let Admission::Granted(zones) = table.begin_reset_all(TICKET) {
                    reset(table, zones);
                }
                model.reset_all();
            }
        }
    }

    fn compare(table: &Table, model: &model::Model) {
        let zones = table.geometry().zones() as usize;
        let mut bytes = report_header(zones as u64).to_vec();
        table.report(ZoneIndex(0), usize::MAX, |_, zone| {
            bytes.extend(encode_zone(&zone));
        });
        assert_eq!(parse_report(&bytes), model.report());
        let (open, active) = table.resources();
        assert_eq!(u64::from(open), model.open_zones());
        assert_eq!(u64::from(active), model.active_zones());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn the_table_agrees_with_the_model(
            spec in spec(),
            commands in prop::collection::vec(command(), 1..120),
        ) {
            let geometry = spec.validate().expect("the strategy makes valid geometries");
            let table = fresh(geometry);
            let mut model = model::Model::new(model::Geometry {
                zones: geometry.zones().into(),
                zone_size: ZONE / 512,
                zone_capacity: spec.zone_capacity / 512,
                conventional: spec.conventional.into(),
                max_open: spec.max_open.into(),
                max_active: spec.max_active.into(),
                max_append: spec.max_append / 512,
                block: BLOCK / 512,
            });
            for command in &commands {
                step(&table, &mut model, command);
                compare(&table, &model);
            }
        }
    }
}
