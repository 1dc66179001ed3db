//! `zonevault inspect`.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use crate::format::{
    FORMAT_VERSION, Header, ImageError, LoadedRecord, OpenState, ProtectorKind, Slot, image,
    takes_tags,
};
use crate::geometry::{Model, ZoneIndex};
use crate::store::{Cache, Medium};
use crate::zone::RecordCopy;

use super::create::{describe, describe_limits, protection};
use super::credential::KeyArgs;
use super::error::CliError;
use super::size::{show_size, show_time};
use super::view::View;

/// Show what a disk image is.
///
/// Reads only, and works beside a daemon that serves the image. Without a key the facts are what
/// the image says of itself; with one they are verified.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  zonevault inspect disk.img
  zonevault inspect disk.img --key-file disk.key --json")]
pub(super) struct InspectArgs {
    /// The image
    image: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    key: KeyArgs,
}

/// Runs the command.
pub(super) fn run(args: &InspectArgs, out: &mut impl Write) -> Result<(), CliError> {
    args.key.check()?;
    let mut view = View::open(&args.image, &args.key)?;
    let slots = image::read_protectors(&view.medium).map_err(CliError::image(&args.image))?;
    let block = view.header.geometry().block_size().bytes();
    view.medium.enable_data(Cache::Direct, block)?;
    let size = view
        .medium
        .size()
        .map_err(|error| CliError::image(&args.image)(ImageError::Io(error)))?;
    let records = view.records().map_err(CliError::image(&args.image))?;
    let health = Health::of(&records, view.root_matches(&records));
    if args.json {
        let facts = facts(&view, &slots, health, size);
        serde_json::to_writer_pretty(&mut *out, &facts).map_err(std::io::Error::from)?;
        writeln!(out)?;
        return Ok(());
    }
    print(args, &view, &slots, health, size, out)
}

fn print(
    args: &InspectArgs,
    view: &View,
    slots: &[Slot],
    health: Health,
    size: u64,
    out: &mut impl Write,
) -> Result<(), CliError> {
    let Header { state, .. } = view.header;
    let header = &view.header;
    let geometry = header.geometry();
    let block = geometry.block_size().bytes();
    writeln!(out, "{}: {}", args.image.display(), describe(geometry))?;
    let mut line = |name: &str, text: &str| writeln!(out, "  {name:<12} {text}");
    line(
        "verified",
        if view.is_verified() {
            "yes, with the key"
        } else {
            "no (not verified: name a key to have these facts proven)"
        },
    )?;
    line("volume", &header.uuid().to_string())?;
    line("format", &format!("version {FORMAT_VERSION}"))?;
    line("made", &show_time(header.created()))?;
    line("state", state_text(state))?;
    line(
        "sequence",
        &format!(
            "header number {}, which grows with every opening and closing",
            header.sequence()
        ),
    )?;
    if let Some(copy) = view.damaged_header {
        let text = format!("copy {} is damaged, the other one is in use", copy.name());
        line("header", &text)?;
    }
    line("records", &health.text(view.is_verified()))?;
    line("cipher", &cipher_text(header))?;
    line("data unit", &data_unit_text(header))?;
    line(
        "blocks",
        &format!("{block} bytes (logical and physical block size, zone write granularity)"),
    )?;
    if geometry.model() == Model::HostManaged {
        line("limits", &describe_limits(geometry))?;
    }
    line("direct I/O", &direct_text(view))?;
    let layout = &view.layout;
    line(
        "layout",
        &format!(
            "records at {} and {}, data at {}, {} bytes needed, {size} there",
            layout.record_area(RecordCopy::A).0,
            layout.record_area(RecordCopy::B).0,
            layout.data_offset(ZoneIndex(0)),
            layout.image_len()
        ),
    )?;
    for (number, slot) in slots.iter().enumerate() {
        if let Some(text) = slot_text(slot) {
            line(&format!("key {number}"), &text)?;
        }
    }
    Ok(())
}

/// How many zone records are as they should be.
#[derive(Clone, Copy, Debug, Default)]
struct Health {
    sound: usize,
    /// One of the two copies is damaged: nothing is lost.
    damaged: usize,
    /// Both are: the zone is lost.
    lost: usize,
    /// Of a disk that was closed: whether these are the records with which it was.
    as_closed: Option<bool>,
}

impl Health {
    fn of(records: &[LoadedRecord], as_closed: Option<bool>) -> Self {
        let mut health = Self {
            as_closed,
            ..Self::default()
        };
        for record in records {
            match (record.is_sound(), record.newest) {
                (true, _) => health.sound += 1,
                (false, Some(_)) => health.damaged += 1,
                (false, None) => health.lost += 1,
            }
        }
        health
    }

    fn text(self, verified: bool) -> String {
        let word = if verified {
            "sound"
        } else {
            "readable, none verified"
        };
        let mut text = format!("{} {word}", self.sound);
        if self.damaged > 0 {
            text.push_str(&format!(", {} with one copy damaged", self.damaged));
        }
        if self.lost > 0 {
            text.push_str(&format!(
                ", {} with both copies damaged (zones lost)",
                self.lost
            ));
        }
        let foreign = self.as_closed == Some(false);
        if foreign {
            text.push_str(", NOT those with which the disk was closed");
        }
        if self.damaged + self.lost > 0 || foreign {
            text.push_str(": see `zonevault check`");
        }
        text
    }
}

fn cipher_text(header: &Header) -> String {
    let cipher = header.cipher();
    format!(
        "{cipher}, {} bytes of key for each zone and generation; {}",
        cipher.key_len(),
        protection(cipher, takes_tags(header.geometry()))
    )
}

fn data_unit_text(header: &Header) -> String {
    let block = header.geometry().block_size().bytes();
    match header.tag_slot_bytes() {
        0 => format!("{block} bytes; its number (DUN) is the block within the zone"),
        slot => format!(
            "{block} bytes, with a tag slot of {slot} bytes; its number is the block within the zone"
        ),
    }
}

fn direct_text(view: &View) -> String {
    let block = show_size(view.header.geometry().block_size().bytes());
    if view.medium.is_direct() {
        format!(
            "yes: this host wants units of {} bytes, blocks are {block}",
            view.medium.alignment()
        )
    } else {
        format!(
            "no: the host's file system has none in units of {block}; data goes through its page \
             cache"
        )
    }
}

const fn state_text(state: OpenState) -> &'static str {
    match state {
        OpenState::Clean => "clean",
        OpenState::Open => "open (being served, or its daemon or host died)",
        OpenState::InDoubt => "open, and a sync of its medium failed",
    }
}

/// A protector slot in words; `None` for a free one.
pub(super) fn slot_text(slot: &Slot) -> Option<String> {
    Some(match slot {
        Slot::Free => return None,
        Slot::Damaged => "damaged".to_owned(),
        Slot::Unusable(why) => format!("unusable: {why}"),
        Slot::Used(protector) => {
            let label = match protector.label() {
                "" => String::new(),
                label => format!(" \"{label}\""),
            };
            let cost = match protector.kind() {
                ProtectorKind::Passphrase(cost) => format!(" ({cost})"),
                ProtectorKind::KeyFile => String::new(),
            };
            format!(
                "{}{cost}{label}, made {}",
                protector.kind().name(),
                show_time(protector.created())
            )
        }
    })
}

/// The protectors as JSON: an object for each slot in use.
pub(super) fn slots_json(slots: &[Slot]) -> Vec<Value> {
    slots
        .iter()
        .enumerate()
        .filter_map(|(number, slot)| match slot {
            Slot::Free => None,
            Slot::Damaged => Some(json!({ "slot": number, "kind": "damaged" })),
            Slot::Unusable(why) => Some(json!({
                "slot": number, "kind": "unusable", "reason": why.to_string(),
            })),
            Slot::Used(protector) => {
                let mut entry = json!({
                    "slot": number,
                    "kind": match protector.kind() {
                        ProtectorKind::Passphrase(_) => "passphrase",
                        ProtectorKind::KeyFile => "key-file",
                    },
                    "label": protector.label(),
                    "created": protector.created(),
                });
                if let ProtectorKind::Passphrase(cost) = protector.kind() {
                    entry["argon2id"] = json!({
                        "memory_kib": cost.memory_kib,
                        "passes": cost.passes,
                        "lanes": cost.lanes,
                    });
                }
                Some(entry)
            }
        })
        .collect()
}

fn facts(view: &View, slots: &[Slot], health: Health, size: u64) -> Value {
    let header = &view.header;
    let geometry = header.geometry();
    let spec = geometry.spec();
    let layout = &view.layout;
    let area = |copy| {
        let (offset, length) = layout.record_area(copy);
        json!({ "offset": offset, "length": length })
    };
    json!({
        "verified": view.is_verified(),
        "format_version": FORMAT_VERSION,
        "uuid": header.uuid().to_string(),
        "created": header.created(),
        "state": header.state.name(),
        "sequence": header.sequence(),
        "zone_records": {
            "sound": health.sound,
            "one_copy": health.damaged,
            "both_copies": health.lost,
            "as_closed": health.as_closed,
        },
        "damaged_header": view.damaged_header.map(|copy| copy.name()),
        "cipher": header.cipher().name(),
        "data_unit": spec.block_size,
        "geometry": {
            "model": match spec.model {
                Model::HostManaged => "host-managed",
                Model::Plain => "plain",
            },
            "disk_size": spec.disk_size,
            "block_size": spec.block_size,
            "zones": geometry.zones(),
            "zone_size": spec.zone_size,
            "zone_capacity": spec.zone_capacity,
            "conventional": spec.conventional,
            "max_open": spec.max_open,
            "max_active": spec.max_active,
            "max_append": spec.max_append,
        },
        "direct_io": {
            "possible": view.medium.is_direct(),
            "alignment": view.medium.alignment(),
        },
        "layout": {
            "image_length": layout.image_len(),
            "file_length": size,
            "records_a": area(RecordCopy::A),
            "records_b": area(RecordCopy::B),
            "data_offset": layout.data_offset(ZoneIndex(0)),
            "tag_slot_bytes": layout.tag_slot_bytes(),
        },
        "protectors": slots_json(slots),
    })
}
