//! Zone records, in front of the MAC and behind it, and the zone table that is made of them: records
//! that were sealed with the right key may still contradict each other.
#![no_main]

use std::sync::LazyLock;

use arbitrary::{Result, Unstructured};
use uuid::Uuid;
use zonevault::format::{RECORD_LEN, RecordError, RecordKey};
use zonevault::geometry::{Blocks, Geometry, Model, ZoneIndex, ZoneType};
use zonevault::zone::{
    Admission, Epoch, Loaded, Opening, RecordCopy, Table, Ticket, ZoneRecord, ZoneSalt, ZoneState,
    provable,
};
use zonevault_fuzz::{seal, small_disk};

const ZONES: u32 = 8;
const UUID: Uuid = Uuid::from_u128(0x1234_5678);

static KEY: LazyLock<RecordKey> =
    LazyLock::new(|| RecordKey::new(&seal::volume_key(), &UUID).expect("a MAC key"));

/// A record of the input's bytes, mostly near to a sound one, or the bytes as they are.
fn invent(u: &mut Unstructured<'_>, zone: ZoneIndex) -> Result<([u8; RECORD_LEN], bool)> {
    let mut bytes = [0; RECORD_LEN];
    if u.ratio(1, 16)? {
        u.fill_buffer(&mut bytes)?;
        return Ok((bytes, false));
    }
    bytes[0] = 1;
    bytes[1] = u.int_in_range(1..=8)?;
    bytes[2] = u.int_in_range(0..=1)?;
    bytes[4..8].copy_from_slice(&zone.0.to_le_bytes());
    let mut count = |at: usize, any: bool| -> Result<()> {
        let number = if any {
            u.arbitrary()?
        } else {
            u64::from(u.arbitrary::<u8>()?)
        };
        bytes[at..at + 8].copy_from_slice(&number.to_le_bytes());
        Ok(())
    };
    for (at, any) in [(8, true), (16, false), (24, false), (32, true), (40, false)] {
        count(at, any)?;
    }
    bytes[48] = u.arbitrary()?;
    bytes[80..84].copy_from_slice(&u.arbitrary::<u32>()?.to_le_bytes());
    // And one byte that is anything.
    if u.ratio(1, 8)? {
        bytes[u.int_in_range(0..=95)?] = u.arbitrary()?;
    }
    seal::record(&mut bytes, UUID.as_bytes());
    Ok((bytes, true))
}

fn decode(
    geometry: &Geometry,
    zone: ZoneIndex,
    bytes: &[u8; RECORD_LEN],
    sealed: bool,
) -> Option<(u64, ZoneRecord)> {
    let decoded = KEY.decode(geometry, zone, bytes);
    assert_eq!(decoded == Err(RecordError::Forged), !sealed);
    let (sequence, record) = decoded.ok()?;
    assert!(record.durable <= record.written);
    assert!(record.written <= geometry.zone_capacity_blocks(zone));
    assert!(
        KEY.encode(zone, sequence, &record) == *bytes,
        "two spellings of one record"
    );
    Some((sequence, record))
}

/// The limits, and what a guest is shown, hold for whatever the records said.
fn check_table(table: &Table) {
    let geometry = *table.geometry();
    let (open, active) = table.resources();
    assert!(geometry.max_open() == 0 || open <= geometry.max_open());
    assert!(geometry.max_active() == 0 || active <= geometry.max_active());
    let mut seen = (0, 0);
    table.report(ZoneIndex(0), usize::MAX, |at, info| {
        let zone = ZoneIndex(u32::try_from(at).unwrap());
        assert_eq!(info.start, geometry.zone_start(zone));
        assert!(info.write_pointer >= info.start);
        let past = info.write_pointer.0 - info.start.0;
        assert!(past <= info.capacity.0 || info.state == ZoneState::Full);
        assert!(past <= info.len.0);
        assert!(info.state != ZoneState::NotWritePointer || info.kind == ZoneType::Conventional);
        seen.0 += u32::from(info.state.is_open());
        seen.1 += u32::from(info.state.is_active());
    });
    assert_eq!(seen, (open, active));
}

fn use_table(u: &mut Unstructured<'_>, table: &Table) -> Result<()> {
    let ticket = Ticket {
        queue: 0,
        life: 0,
        op: 0,
    };
    for zone in table.geometry().all_zones() {
        let record = table.record(zone).expect("a zone");
        let view = table.admit_read(zone);
        assert_eq!(view.is_err(), record.state == ZoneState::Offline);
        match u.int_in_range(0..=3)? {
            0 => {
                if let Ok(Admission::Granted(grant)) =
                    table.admit_write(zone, None, Blocks(1), ticket)
                {
                    assert_eq!(grant.start, record.written, "{record:?}");
                    table.complete(grant, u.arbitrary()?);
                }
            }
            1 => drop(table.open(zone, ticket)),
            2 => drop(table.finish(zone, ticket)),
            _ => {
                if let Ok(Admission::Granted(true)) = table.begin_reset(zone, ticket) {
                    table.apply_reset(zone, ZoneSalt([1; 32]));
                    table.end_reset(zone, u.arbitrary()?);
                }
            }
        }
    }
    for zone in table.touched() {
        let settled = table.settle(zone);
        if let Some(order) = settled.record {
            assert!(order.record.durable <= order.record.written);
            table.record_written(zone, &order);
        }
    }
    Ok(())
}

fn run(data: &[u8]) -> Result<()> {
    let u = &mut Unstructured::new(data);
    let geometry = small_disk(u, ZONES)?;
    let opening = *u.choose(&[Opening::Clean, Opening::Killed, Opening::PowerCut])?;
    let mut records = Vec::new();
    for zone in geometry.all_zones() {
        let (bytes, sealed) = invent(u, zone)?;
        let Some((sequence, record)) = decode(&geometry, zone, &bytes, sealed) else {
            records.push(None);
            continue;
        };
        let mut loaded = Loaded {
            record,
            sequence,
            copy: if u.arbitrary()? {
                RecordCopy::A
            } else {
                RecordCopy::B
            },
            mirrored: u.arbitrary()?,
            proven: record.durable,
        };
        // Tags may prove more than is durable, as far as there may be any.
        let end = provable(&geometry, zone, &loaded).max(record.durable);
        let more = u64::from(u.arbitrary::<u8>()?) % (end.0 - record.durable.0 + 1);
        if geometry.model() == Model::HostManaged && opening != Opening::Clean {
            loaded.proven = Blocks(record.durable.0 + more);
        }
        records.push(Some(loaded));
    }
    let table = Table::new(geometry, records, opening, Epoch(77));
    check_table(&table);
    use_table(u, &table)?;
    check_table(&table);
    Ok(())
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = run(data);
});
