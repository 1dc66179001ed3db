//! `zonevault check`.

mod blocks;
mod metadata;
mod repair;
mod report;

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use crate::format::{
    Header, HeaderKey, ImageError, Layout, LoadedRecord, RecordKey, Unlocked, image,
};
use crate::geometry::{Geometry, ZoneIndex};
use crate::keyslot::{DEFAULT_SLOTS, Keyslots};
use crate::secret::Credential;
use crate::store::{Access, Cache, FileMedium};

use self::blocks::BlockFindings;
use self::metadata::{CopyState, Metadata};
use super::cpu::CpuArgs;
use super::credential::KeyArgs;
use super::error::CliError;

/// Read everything on a disk and verify it.
///
/// Verifies both copies of the header and of every zone record, the keys, and every block below
/// the write pointers: with tags that it is what was written there, without them that it can be
/// read. Of a disk that was not closed in order, blocks that no flush covered are counted and left
/// to the recovery that `serve` does. The disk must not be in use, and stays locked meanwhile.
///
/// --repair writes a damaged or stale copy of the header or of a record anew from the good one,
/// and nothing else: never data, and never from a guess.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  zonevault check disk.img --key-file disk.key
  zonevault check disk.img --key-file disk.key --zone 5 --zone 6 --json

Exit codes: 0 sound, 6 damage found, 7 damage found and all repaired; others as of every command")]
pub(super) struct CheckArgs {
    /// The image
    image: PathBuf,
    /// Check the records and blocks of this zone only; may be given several times
    #[arg(long = "zone", value_name = "N")]
    zones: Vec<u32>,
    /// Write damaged or stale copies of header and zone records anew from the good ones
    #[arg(long)]
    repair: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    cpu: CpuArgs,
}

/// Everything that was found.
#[derive(Debug)]
struct Findings {
    metadata: Metadata,
    blocks: BlockFindings,
}

impl Findings {
    /// Nothing is wrong, or nothing was.
    fn is_sound(&self) -> bool {
        self.metadata.is_sound() && self.blocks.bad() == 0
    }

    /// What was wrong is not any more.
    fn is_repaired(&self) -> bool {
        self.metadata.is_repaired() && self.blocks.bad() == 0
    }
}

/// A disk that is being checked.
#[derive(Debug)]
struct Subject {
    medium: FileMedium,
    /// The newest sound header.
    header: Header,
    /// The two copies of the header.
    copies: [CopyState; 2],
    layout: Layout,
    header_key: HeaderKey,
    record_key: RecordKey,
    keyslots: Keyslots,
    records: Vec<LoadedRecord>,
    /// The zones to check, ascending; `None` for all.
    chosen: Option<Vec<ZoneIndex>>,
}

impl Subject {
    fn open(args: &CheckArgs) -> Result<Self, CliError> {
        // A served disk changes while it is read: what was found of it would mean nothing.
        let access = match args.repair {
            true => Access::ReadWrite,
            false => Access::Shared,
        };
        let medium = FileMedium::open(&args.image, access)?;
        let credential = args.key.read()?;
        let mut subject =
            Self::unlock(medium, &credential).map_err(CliError::image(&args.image))?;
        let block = subject.geometry().block_size().bytes();
        subject.medium.enable_data(Cache::Direct, block)?;
        let forbidden = subject.header.read_only_features();
        if args.repair && forbidden != 0 {
            let error = ImageError::ReadOnlyFeatures(forbidden);
            return Err(CliError::image(&args.image)(error));
        }
        Ok(Self {
            chosen: args.chosen_zones(subject.geometry().zones())?,
            ..subject
        })
    }

    fn unlock(medium: FileMedium, credential: &Credential) -> Result<Self, ImageError> {
        let unlocked = image::unlock(&medium, credential)?;
        let header_key = unlocked.header_key()?;
        let record_key = unlocked.record_key()?;
        let copies = metadata::header_copies(&medium, &unlocked)?;
        let Unlocked {
            header,
            volume_key,
            layout,
            ..
        } = unlocked;
        let records = image::load_records(&medium, &layout, header.geometry(), &record_key)?;
        let keyslots = Keyslots::new(
            volume_key,
            *header.uuid(),
            header.cipher(),
            DEFAULT_SLOTS as usize,
        );
        Ok(Self {
            medium,
            header,
            copies,
            layout,
            header_key,
            record_key,
            keyslots,
            records,
            chosen: None,
        })
    }

    fn geometry(&self) -> &Geometry {
        self.header.geometry()
    }

    /// The zones to check, with what was found of their records.
    fn zones(&self) -> impl Iterator<Item = (ZoneIndex, &LoadedRecord)> {
        let chosen = self.chosen.as_deref();
        let is_chosen =
            move |zone: &ZoneIndex| chosen.is_none_or(|zones| zones.binary_search(zone).is_ok());
        let zones = self.geometry().all_zones().zip(&self.records);
        zones.filter(move |(zone, _)| is_chosen(zone))
    }
}

impl CheckArgs {
    fn chosen_zones(&self, count: u32) -> Result<Option<Vec<ZoneIndex>>, CliError> {
        if self.zones.is_empty() {
            return Ok(None);
        }
        let mut chosen: Vec<ZoneIndex> = self.zones.iter().copied().map(ZoneIndex).collect();
        chosen.sort_unstable();
        chosen.dedup();
        match chosen.iter().find(|zone| zone.0 >= count) {
            Some(zone) => Err(CliError::Usage(format!(
                "{}: there is no {zone}: they run from 0 to {}",
                self.image.display(),
                count.saturating_sub(1)
            ))),
            None => Ok(Some(chosen)),
        }
    }
}

/// Runs the command.
pub(super) fn run(args: &CheckArgs, out: &mut impl Write) -> Result<(), CliError> {
    args.cpu.check()?;
    args.key.check()?;
    let subject = Subject::open(args)?;
    let mut metadata = Metadata::examine(&subject).map_err(CliError::image(&args.image))?;
    let blocks = blocks::check(&subject, metadata.is_closed())
        .map_err(|e| CliError::image(&args.image)(e.into()))?;
    if args.repair {
        repair::repair(&subject, &mut metadata).map_err(CliError::image(&args.image))?;
    }
    let findings = Findings { metadata, blocks };
    match args.json {
        true => report::json(&subject, &findings, out)?,
        false => report::text(&args.image, &subject, &findings, out)?,
    }
    out.flush()?;
    if findings.is_sound() {
        return Ok(());
    }
    Err(CliError::Checked {
        summary: report::summary(&args.image, &findings),
        repaired: findings.is_repaired(),
    })
}
