//! What was found, as text and as JSON. Both are bounded, whatever is wrong with the disk.

use std::io::{self, Write};
use std::path::Path;

use serde_json::{Value, json};

use crate::format::{HeaderCopy, OpenState};
use crate::geometry::{Blocks, ZoneIndex};
use crate::volume::scan::BadRun;
use crate::zone::RecordCopy;

use super::super::create::describe;
use super::blocks::{MAX_RUNS, ZoneDamage};
use super::metadata::{Damage, Metadata, RecordDamage, Root};
use super::{Findings, Subject};

/// Zones that a list names; the rest is counted.
const MAX_ZONES: usize = 200;

/// The report for people.
pub(super) fn text(
    path: &Path,
    subject: &Subject,
    findings: &Findings,
    out: &mut impl Write,
) -> io::Result<()> {
    writeln!(
        out,
        "{}: {}, {}",
        path.display(),
        describe(subject.geometry()),
        subject.header.cipher()
    )?;
    let metadata = &findings.metadata;
    line(out, "header", &header_text(metadata))?;
    line(out, "keys", &keys_text(metadata))?;
    line(out, "records", &records_text(metadata))?;
    for (zone, damage) in metadata.records.iter().take(MAX_ZONES) {
        writeln!(out, "    {zone}: {}", record_text(damage))?;
    }
    left_out(out, metadata.records.len(), "records")?;
    line(out, "blocks", &blocks_text(subject, findings))?;
    let mut runs = 0;
    for (&zone, damage) in findings.blocks.zones.iter().take(MAX_ZONES) {
        zone_text(zone, damage, &mut runs, out)?;
    }
    left_out(out, findings.blocks.zones.len(), "zones with bad blocks")?;
    line(out, "result", result_word(findings))
}

fn line(out: &mut impl Write, name: &str, text: &str) -> io::Result<()> {
    writeln!(out, "  {name:<12} {text}")
}

fn left_out(out: &mut impl Write, count: usize, what: &str) -> io::Result<()> {
    match count.checked_sub(MAX_ZONES) {
        None | Some(0) => Ok(()),
        Some(more) => writeln!(out, "    and {more} more {what} (see --zone)"),
    }
}

fn result_word(findings: &Findings) -> &'static str {
    match (findings.is_sound(), findings.is_repaired()) {
        (true, _) => "sound",
        (false, true) => "repaired",
        (false, false) => "damaged",
    }
}

fn header_text(metadata: &Metadata) -> String {
    let state = match metadata.state {
        OpenState::Clean => "closed in order",
        OpenState::Open => "not closed in order: `serve` will recover it",
        OpenState::InDoubt => {
            "not closed in order, and its medium failed a sync: `serve` goes back to the last flush"
        }
    };
    match &metadata.header {
        None => format!("both copies sound, {state}"),
        Some(Damage {
            what,
            why,
            repaired: false,
        }) => format!(
            "copy {} is damaged: {why}; the other one: {state}",
            what.name()
        ),
        Some(Damage { what, why, .. }) => format!(
            "copy {} was damaged: {why}; written anew, as not closed in order: `serve` will recover",
            what.name()
        ),
    }
}

fn keys_text(metadata: &Metadata) -> String {
    let mut text = format!("{} sound", metadata.keys);
    for number in &metadata.damaged_keys {
        text.push_str(&format!(
            ", key {number} is damaged (remove it with `zonevault key remove`)"
        ));
    }
    text
}

fn records_text(metadata: &Metadata) -> String {
    let damaged = metadata.records.len();
    let sound = metadata.zones - damaged;
    let root = match metadata.root {
        Root::Open => "",
        Root::Matches => ", those with which the disk was closed",
        Root::Differs => ", NOT those with which the disk was closed",
    };
    match damaged {
        0 => format!("{sound} sound{root}"),
        _ => format!("{sound} sound, {damaged} damaged{root}"),
    }
}

const fn copy_name(copy: RecordCopy) -> &'static str {
    match copy {
        RecordCopy::A => "A",
        RecordCopy::B => "B",
    }
}

fn record_text(damage: &Damage<RecordDamage>) -> String {
    let why = &damage.why;
    let repaired = match damage.repaired {
        true => "; written anew",
        false => "",
    };
    match damage.what {
        RecordDamage::Copy(copy, _) => {
            format!("copy {} is damaged: {why}{repaired}", copy_name(copy))
        }
        RecordDamage::Stale(copy) => format!("copy {} is stale: {why}{repaired}", copy_name(copy)),
        RecordDamage::Lost => {
            format!("both copies are damaged, and the zone with them: {why}")
        }
    }
}

fn blocks_text(subject: &Subject, findings: &Findings) -> String {
    let blocks = &findings.blocks;
    let bytes = subject.geometry().block_bytes(Blocks(blocks.read));
    let what = match subject.layout.tag_slot_bytes() {
        0 => "read (the cipher has no tags: only the medium was checked)",
        _ => "verified",
    };
    let mut text = format!(
        "{} {what}, {:.1} MiB in {:.1} s",
        blocks.read,
        bytes as f64 / f64::from(1 << 20),
        blocks.took.as_secs_f64()
    );
    if blocks.unflushed > 0 {
        text.push_str(&format!(
            ", {} after the last flush left to recovery",
            blocks.unflushed
        ));
    }
    match blocks.bad() {
        0 => text.push_str(", none bad"),
        bad => {
            let zones = many(blocks.zones.len() as u64, "zone");
            text.push_str(&format!(", {bad} bad in {zones}"));
        }
    }
    text
}

fn zone_text(
    zone: ZoneIndex,
    damage: &ZoneDamage,
    shown: &mut usize,
    out: &mut impl Write,
) -> io::Result<()> {
    let mut unnamed = damage.unnamed();
    for run in &damage.runs {
        if *shown == MAX_RUNS {
            unnamed += run.blocks.count.0;
            continue;
        }
        *shown += 1;
        writeln!(out, "    {zone}: {}", run_text(run))?;
    }
    match unnamed {
        0 => Ok(()),
        more => writeln!(out, "    {zone}: {more} more blocks"),
    }
}

fn run_text(run: &BadRun) -> String {
    let first = run.blocks.start.0;
    let fault = run.fault.name();
    match run.blocks.count.0 {
        1 => format!("block {first}: {fault}"),
        count => format!("blocks {first} to {} ({count}): {fault}", first + count - 1),
    }
}

/// A count and what it counts.
fn many(count: u64, what: &str) -> String {
    match count {
        1 => format!("{count} {what}"),
        _ => format!("{count} {what}s"),
    }
}

/// The one line on standard error.
pub(super) fn summary(path: &Path, findings: &Findings) -> String {
    let metadata = &findings.metadata;
    let blocks = &findings.blocks;
    let mut what = Vec::new();
    if let Some(damage) = &metadata.header {
        what.push(format!("copy {} of the header", damage.what.name()));
    }
    if !metadata.damaged_keys.is_empty() {
        what.push(many(metadata.damaged_keys.len() as u64, "key"));
    }
    if !metadata.records.is_empty() {
        let zones = many(metadata.records.len() as u64, "zone");
        what.push(format!("records of {zones}"));
    }
    if metadata.root == Root::Differs {
        what.push("the records as a whole".to_owned());
    }
    if blocks.bad() > 0 {
        let zones = many(blocks.zones.len() as u64, "zone");
        what.push(format!("{} in {zones}", many(blocks.bad(), "block")));
    }
    let path = path.display();
    let what = what.join(", ");
    match findings.is_repaired() {
        true => format!("{path}: repaired: {what}"),
        false => format!("{path}: damaged: {what}: {}", cure(findings)),
    }
}

/// What to do about what is not repaired.
fn cure(findings: &Findings) -> String {
    let metadata = &findings.metadata;
    let records = || metadata.records.iter().map(|(_, damage)| damage);
    let lost = |damage: &Damage<RecordDamage>| damage.what == RecordDamage::Lost;
    let copies = records().any(|damage| !damage.repaired && !lost(damage));
    let header = metadata.header.as_ref();
    let header = header.is_some_and(|damage| !damage.repaired);
    // As `repair` has it.
    let header_repairable = header && metadata.state != OpenState::InDoubt;
    let records_repairable = copies && metadata.is_closed();
    let mut cures = Vec::new();
    if header_repairable || records_repairable {
        cures.push("--repair writes lost copies of header and records anew");
    }
    if (copies && !records_repairable) || (header && !header_repairable) {
        cures.push("the next `serve` writes both copies of header and records anew");
    }
    if metadata.root == Root::Differs {
        cures.push("`serve` refuses it unless it is told --accept-records");
    }
    if !metadata.damaged_keys.is_empty() {
        cures.push("remove the damaged key with `zonevault key remove`");
    }
    if findings.blocks.bad() > 0 || records().any(lost) {
        cures.push("restore lost data from a backup");
    }
    cures.join("; ")
}

/// The report for programs.
pub(super) fn json(subject: &Subject, findings: &Findings, out: &mut impl Write) -> io::Result<()> {
    let metadata = &findings.metadata;
    let blocks = &findings.blocks;
    let header: Option<Value> = metadata.header.as_ref().map(|damage| {
        let copy: HeaderCopy = damage.what;
        json!({ "copy": copy.name(), "why": damage.why, "repaired": damage.repaired })
    });
    let records: Vec<Value> = metadata
        .records
        .iter()
        .take(MAX_ZONES)
        .map(record_json)
        .collect();
    let zones = blocks.zones.iter().take(MAX_ZONES);
    let zones: Vec<Value> = zones
        .map(|(zone, damage)| zone_json(*zone, damage))
        .collect();
    let facts = json!({
        "outcome": result_word(findings),
        "uuid": subject.header.uuid().to_string(),
        "cipher": subject.header.cipher().name(),
        "tagged": subject.layout.tag_slot_bytes() != 0,
        "state": metadata.state.name(),
        "sequence": subject.header.sequence(),
        "header_damage": header,
        "keys": metadata.keys,
        "damaged_keys": metadata.damaged_keys,
        "zones_checked": metadata.zones,
        "damaged_records": metadata.records.len(),
        "record_damage": records,
        "records_match_header": match metadata.root {
            Root::Open => Value::Null,
            Root::Matches => Value::Bool(true),
            Root::Differs => Value::Bool(false),
        },
        "block_size": subject.geometry().block_size().bytes(),
        "blocks_read": blocks.read,
        "blocks_unflushed": blocks.unflushed,
        "seconds": blocks.took.as_secs_f64(),
        "bad_blocks": blocks.bad(),
        "zones_with_bad_blocks": blocks.zones.len(),
        "block_damage": zones,
    });
    serde_json::to_writer_pretty(&mut *out, &facts).map_err(io::Error::from)?;
    writeln!(out)
}

fn record_json((zone, damage): &(ZoneIndex, Damage<RecordDamage>)) -> Value {
    let (kind, copy) = match damage.what {
        RecordDamage::Copy(copy, _) => ("damaged copy", Some(copy_name(copy))),
        RecordDamage::Stale(copy) => ("stale copy", Some(copy_name(copy))),
        RecordDamage::Lost => ("lost", None),
    };
    json!({
        "zone": zone.0,
        "kind": kind,
        "copy": copy,
        "why": damage.why,
        "repaired": damage.repaired,
    })
}

fn zone_json(zone: ZoneIndex, damage: &ZoneDamage) -> Value {
    let run = |run: &BadRun| {
        json!({
            "first_block": run.blocks.start.0,
            "blocks": run.blocks.count.0,
            "why": run.fault.name(),
        })
    };
    json!({
        "zone": zone.0,
        "bad_blocks": damage.bad,
        "runs": damage.runs.iter().map(run).collect::<Vec<Value>>(),
        "bad_blocks_in_no_run": damage.unnamed(),
    })
}
