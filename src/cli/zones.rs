//! `zonevault zones`.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::format::LoadedRecord;
use crate::geometry::{Geometry, Sector, ZoneIndex, ZoneType};
use crate::zone::ZoneState;

use super::credential::KeyArgs;
use super::error::CliError;
use super::map;
use super::view::View;

/// Show the zones of a disk.
///
/// What is shown is what the image holds: sectors are 512 bytes, blocks as `inspect` tells; the
/// write pointer (wp) is where the next write goes, durable is what a flush has covered. Reads only, and works beside a daemon that serves the
/// image. Without a key the records are shown unverified.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  zonevault zones disk.img --map
  zonevault zones disk.img --key-file disk.key --json")]
pub(super) struct ZonesArgs {
    /// The image
    image: PathBuf,
    /// Print JSON: an object a zone
    #[arg(long)]
    json: bool,
    /// Draw the whole disk, a character for each zone or group of zones
    #[arg(long, conflicts_with = "json")]
    map: bool,
    #[command(flatten)]
    key: KeyArgs,
}

/// Runs the command.
pub(super) fn run(args: &ZonesArgs, out: &mut impl Write) -> Result<(), CliError> {
    args.key.check()?;
    let view = View::open(&args.image, &args.key)?;
    let records = view.records().map_err(CliError::image(&args.image))?;
    let geometry = view.header.geometry();
    if args.json {
        return print_json(&view, geometry, &records, out);
    }
    if !view.is_verified() {
        writeln!(out, "not verified: name a key to have these records proven")?;
    }
    if args.map {
        return Ok(map::draw(geometry, &records, map::terminal_width(), out)?);
    }
    print_table(geometry, &records, out)
}

/// Where the next write goes, in sectors of the disk. `None` where no such place exists.
fn write_pointer(geometry: &Geometry, zone: ZoneIndex, record: &LoadedRecord) -> Option<Sector> {
    let newest = record.newest?.record;
    match newest.state {
        ZoneState::NotWritePointer | ZoneState::Offline | ZoneState::ReadOnly => None,
        ZoneState::Full => Some(Sector(
            geometry.zone_start(zone).0 + geometry.zone_len(zone).0,
        )),
        _ => Some(geometry.block_sector(zone, newest.written)),
    }
}

fn print_table(
    geometry: &Geometry,
    records: &[LoadedRecord],
    out: &mut impl Write,
) -> Result<(), CliError> {
    writeln!(
        out,
        "{:>8} {:>16} {:<13} {:>16} {:>14} {:>14} {:>15} {:>10}  record",
        "zone",
        "start-sector",
        "state",
        "wp-sector",
        "written-blocks",
        "durable-blocks",
        "capacity-blocks",
        "generation"
    )?;
    for (zone, record) in geometry.all_zones().zip(records) {
        write!(out, "{:>8} {:>16} ", zone.0, geometry.zone_start(zone).0)?;
        let capacity = geometry.zone_capacity_blocks(zone).0;
        let pointer = write_pointer(geometry, zone, record)
            .map_or_else(|| "-".to_owned(), |sector| sector.0.to_string());
        match record.newest {
            Some(found) => write!(
                out,
                "{:<13} {pointer:>16} {:>14} {:>14} {capacity:>15} {:>10}  ",
                found.record.state.name(),
                found.record.written.0,
                found.record.durable.0,
                found.record.generation.0,
            )?,
            None => write!(
                out,
                "{:<13} {pointer:>16} {:>14} {:>14} {capacity:>15} {:>10}  ",
                "lost", "-", "-", "-"
            )?,
        }
        writeln!(out, "{}", health(record))?;
    }
    match records.iter().filter(|record| !record.is_sound()).count() {
        0 => Ok(()),
        damaged => Ok(writeln!(
            out,
            "{damaged} of {} records are damaged: see `zonevault check`",
            records.len()
        )?),
    }
}

/// The condition of the two copies of a record, in a word.
fn health(record: &LoadedRecord) -> &'static str {
    match record.faults {
        [None, None] => "sound",
        [Some(_), None] => "copy A damaged",
        [None, Some(_)] => "copy B damaged",
        [Some(_), Some(_)] => "both copies damaged",
    }
}

/// One object a line inside of the array, so that a million zones need no memory here.
fn print_json(
    view: &View,
    geometry: &Geometry,
    records: &[LoadedRecord],
    out: &mut impl Write,
) -> Result<(), CliError> {
    writeln!(
        out,
        "{{ \"verified\": {}, \"block_size\": {}, \"zones\": [",
        view.is_verified(),
        geometry.block_size().bytes()
    )?;
    let last = records.len().saturating_sub(1);
    for (zone, record) in geometry.all_zones().zip(records) {
        let newest = record.newest;
        let entry = json!({
            "zone": zone.0,
            "start_sector": geometry.zone_start(zone).0,
            "sectors": geometry.zone_len(zone).0,
            "type": match geometry.zone_type(zone) {
                ZoneType::Conventional => "conventional",
                ZoneType::Sequential => "sequential",
            },
            "state": newest.map_or("lost", |found| found.record.state.name()),
            "write_pointer": write_pointer(geometry, zone, record).map(|sector| sector.0),
            "written_blocks": newest.map(|found| found.record.written.0),
            "durable_blocks": newest.map(|found| found.record.durable.0),
            "capacity_blocks": geometry.zone_capacity_blocks(zone).0,
            "generation": newest.map(|found| found.record.generation.0),
            "sequence": newest.map(|found| found.sequence),
            "record": health(record),
            "damaged_copies": record.faults.iter().flatten().count(),
        });
        let comma = if zone.as_usize() == last { "" } else { "," };
        writeln!(out, "  {entry}{comma}")?;
    }
    writeln!(out, "] }}")?;
    Ok(())
}
