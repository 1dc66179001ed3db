//! `zonevault create`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use clap::Args;
use uuid::Uuid;

use crate::crypt::Cipher;
use crate::format::{
    Argon2Cost, CreateSpec, Layout, NewProtector, Protector, ProtectorKind, image, takes_tags,
};
use crate::geometry::{Geometry, GeometryError, GeometrySpec, MAX_ZONE_SIZE, Model};
use crate::secret::{Credential, SecretError, VolumeKey};
use crate::store::{FileMedium, OpenError};

use super::credential::KeyArgs;
use super::error::CliError;
use super::preset::{FileSystem, ZoneAim, default_limits};
use super::size::{parse_size, show_size, size_option};

/// Largest append where the command line names none: what Linux makes of it fits its usual limits.
const DEFAULT_MAX_APPEND: u64 = 1 << 20;

/// Make a new disk image.
///
/// The image is a sparse file that grows with what the guest writes, or a block device. What a
/// Linux guest (or, with --for, a file system) would refuse is refused here, with the reason.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  zonevault create disk.img --size 2G --for btrfs --key-file disk.key
  zonevault create disk.img --size 100G --zone-size 256M --conventional 4
  zonevault create disk.img --size 20G --plain      # a disk without zones")]
pub(super) struct CreateArgs {
    /// File or block device to make the image on
    image: PathBuf,
    /// Size of the disk that the guest sees (K, M, G, T: powers of 1024)
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    size: u64,
    /// Choose a geometry that this file system takes; other options override single figures
    #[arg(long = "for", value_name = "FS", value_enum)]
    purpose: Option<FileSystem>,
    /// Make a disk without zones, for front-ends that know none
    #[arg(long, conflicts_with_all = [
        "purpose", "zone_size", "zone_capacity", "conventional", "max_open", "max_active",
        "max_append",
    ])]
    plain: bool,
    #[command(flatten)]
    zoned: ZonedArgs,
    /// Block size: unit of encryption and of writes, 512 or 4096
    #[arg(long, value_name = "SIZE", default_value = "4096", value_parser = parse_size)]
    block_size: u64,
    /// Cipher: aes-256-gcm (encrypted, every change detected), aes-256-xts+crc64 (rot detected),
    /// aes-256-xts or aes-128-xts (nothing detected) [default: aes-256-gcm; aes-256-xts for --plain
    /// disks and those with conventional zones, which have no tags]
    #[arg(long, value_name = "NAME")]
    cipher: Option<Cipher>,
    /// Overwrite what is there
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    key: KeyArgs,
    /// Text that `key list` shows beside the key (at most 32 bytes)
    #[arg(long, value_name = "TEXT", default_value = "", help_heading = "Key")]
    label: String,
    #[command(flatten)]
    kdf: KdfArgs,
}

/// What only a zoned disk has.
#[derive(Args, Debug)]
struct ZonedArgs {
    /// Zone size, a power of two [default: 64M, smaller where that leaves less than 16 zones]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = "Zones")]
    zone_size: Option<u64>,
    /// Writable part of each sequential zone [default: the zone size]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = "Zones")]
    zone_capacity: Option<u64>,
    /// Zones at the start of the disk that take random writes [default: 0]
    #[arg(long, value_name = "N", help_heading = "Zones")]
    conventional: Option<u32>,
    /// Most zones open at once, 0 for no limit [default: 128, or half of the sequential zones
    /// if that is less, but at least 14; none on a disk of up to 14]
    #[arg(long, value_name = "N", help_heading = "Zones")]
    max_open: Option<u32>,
    /// Most zones open or partly written at once, 0 for no limit [default: as --max-open; none if that is raised]
    #[arg(long, value_name = "N", help_heading = "Zones")]
    max_active: Option<u32>,
    /// Largest zone append [default: 1M, or the zone capacity if that is less]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = "Zones")]
    max_append: Option<u64>,
}

/// The cost of a passphrase.
#[derive(Args, Clone, Debug)]
pub(super) struct KdfArgs {
    /// Memory that one try of the passphrase costs
    #[arg(
        long, value_name = "SIZE", default_value = "256M", value_parser = parse_size,
        help_heading = "Key"
    )]
    kdf_memory: u64,
    /// Passes over that memory
    #[arg(long, value_name = "N", default_value_t = 3, help_heading = "Key")]
    kdf_time: u32,
}

impl KdfArgs {
    /// The cost, within what can be unlocked again.
    pub(super) fn cost(&self) -> Result<Argon2Cost, CliError> {
        let least = u64::from(Argon2Cost::MIN_MEMORY_KIB);
        let cost = u32::try_from(self.kdf_memory >> 10)
            .ok()
            .map(|memory_kib| Argon2Cost {
                memory_kib,
                passes: self.kdf_time,
                ..Argon2Cost::default()
            })
            .filter(|cost| u64::from(cost.memory_kib) >= least && cost.is_bounded());
        cost.ok_or_else(|| {
            CliError::Usage(format!(
                "--kdf-memory {} --kdf-time {}: memory must be {} to {}, time at least 1, and \
                 their product at most {}",
                show_size(self.kdf_memory),
                self.kdf_time,
                show_size(least << 10),
                show_size(u64::from(Argon2Cost::MAX_MEMORY_KIB) << 10),
                show_size(Argon2Cost::MAX_WORK_KIB << 10)
            ))
        })
    }
}

/// Runs the command. Nothing is written before everything is known to be in order.
pub(super) fn run(args: &CreateArgs, out: &mut impl Write) -> Result<(), CliError> {
    args.key.check()?;
    let geometry = geometry(args)?;
    let cipher = cipher(args, &geometry)?;
    let cost = args.kdf.cost()?;
    let len = Layout::new(&geometry, cipher.tag_slot_bytes())
        .map_err(|error| CliError::image(&args.image)(error.into()))?
        .image_len();
    refuse_occupied(&args.image, args.force)?;
    let credential = args.key.read_new()?;
    let made = Made::prepare(args, &credential, cost).map_err(CliError::image(&args.image))?;
    let existed = args.image.exists();
    let medium = FileMedium::create(&args.image, len, args.force)?;
    let spec = CreateSpec {
        geometry: &geometry,
        cipher,
        uuid: made.uuid,
        created: made.created,
        volume_key: &made.volume_key,
        protector: &made.protector,
    };
    if let Err(error) = image::create(&medium, &spec) {
        if !existed {
            // Half an image helps nobody; the first error is the one worth telling.
            let _ = std::fs::remove_file(&args.image);
        }
        return Err(CliError::image(&args.image)(error));
    }
    report(args, &geometry, cipher, &made, out)
}

/// The cipher that the command line names, or the strongest that the disk can have.
fn cipher(args: &CreateArgs, geometry: &Geometry) -> Result<Cipher, CliError> {
    let tagged = takes_tags(geometry);
    match args.cipher {
        None if tagged => Ok(Cipher::Aes256Gcm),
        None => Ok(Cipher::Aes256Xts),
        Some(cipher) if cipher.is_tagged() && !tagged => {
            let (what, cure) = match geometry.model() {
                Model::Plain => ("a --plain disk is", "leave out --plain"),
                Model::HostManaged => ("conventional zones are", "make a disk without them"),
            };
            Err(CliError::Usage(format!(
                "--cipher {cipher} keeps a tag for every block, and {what} written in place, where \
                 a power cut could part a block from its tag: use --cipher aes-256-xts, or {cure}"
            )))
        }
        Some(cipher) => Ok(cipher),
    }
}

/// What a cipher does for the disk, in words.
pub(super) const fn protection(cipher: Cipher, tags_possible: bool) -> &'static str {
    match cipher {
        Cipher::Aes256Gcm => {
            "encrypted and authenticated: altered or moved blocks are I/O errors, never data"
        }
        Cipher::Aes256XtsCrc64 => {
            "encrypted, rot detected: rotten blocks are I/O errors; deliberate changes may pass"
        }
        Cipher::Aes128Xts | Cipher::Aes256Xts if tags_possible => {
            "encrypted without tags: altered blocks pass unnoticed"
        }
        Cipher::Aes128Xts | Cipher::Aes256Xts => {
            "encrypted without tags, for plain disks and conventional zones have none: altered \
             blocks pass unnoticed"
        }
    }
}

/// What is made before the image is touched.
struct Made {
    uuid: Uuid,
    created: u64,
    volume_key: VolumeKey,
    protector: Protector,
    /// How long it took, which for a passphrase is what every unlocking will take.
    seconds: f64,
}

impl Made {
    fn prepare(
        args: &CreateArgs,
        credential: &Credential,
        cost: Argon2Cost,
    ) -> Result<Self, image::ImageError> {
        let uuid = Uuid::new_v4();
        let created = now();
        let volume_key = VolumeKey::random()?;
        let started = Instant::now();
        let new = NewProtector {
            credential,
            cost,
            label: &args.label,
            created,
        };
        let protector = Protector::seal(&volume_key, &uuid, 0, &new)?;
        Ok(Self {
            uuid,
            created,
            volume_key,
            protector,
            seconds: started.elapsed().as_secs_f64(),
        })
    }
}

/// Seconds since 1970; 0 on a machine whose clock stands before that.
pub(super) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// Spares the user the typing of a passphrase for an image that will not be made.
fn refuse_occupied(path: &Path, force: bool) -> Result<(), CliError> {
    match std::fs::metadata(path) {
        Ok(found) if found.is_file() && found.len() > 0 && !force => Err(OpenError::Occupied {
            path: path.to_owned(),
            what: "a file that is not empty is there",
        }
        .into()),
        _ => Ok(()),
    }
}

/// The disk that the command line describes.
fn geometry(args: &CreateArgs) -> Result<Geometry, CliError> {
    let zoned = &args.zoned;
    let zone_size = zoned
        .zone_size
        .unwrap_or_else(|| ZoneAim::of(args.purpose).zone_size(args.size));
    let model = if args.plain {
        Model::Plain
    } else {
        Model::HostManaged
    };
    let zone_capacity = zoned.zone_capacity.unwrap_or(zone_size);
    let conventional = match (zoned.conventional, args.purpose) {
        (Some(count), _) => u64::from(count),
        // A zone size of 0 is refused below, with its reason.
        (None, Some(purpose)) => purpose.conventional(args.size, zone_size.max(1)),
        (None, None) => 0,
    };
    let zones = args.size.div_ceil(zone_size.max(1));
    let (max_open, max_active) = default_limits(
        model,
        zones.saturating_sub(conventional),
        zoned.max_open,
        zoned.max_active,
    );
    let spec = GeometrySpec {
        model,
        block_size: args.block_size,
        disk_size: args.size,
        zone_size,
        zone_capacity,
        conventional: u32::try_from(conventional).unwrap_or(u32::MAX),
        max_open,
        max_active,
        max_append: zoned
            .max_append
            .unwrap_or(DEFAULT_MAX_APPEND.min(zone_capacity)),
    };
    let geometry = spec
        .validate()
        .map_err(|error| CliError::Usage(explain(args, error)))?;
    if let Some(purpose) = args.purpose {
        purpose.check(&geometry).map_err(CliError::Usage)?;
    }
    Ok(geometry)
}

/// The reason, with the nearest figure that would do where there is one.
fn explain(args: &CreateArgs, error: GeometryError) -> String {
    match error {
        GeometryError::NoSequentialZone { .. } if args.zoned.conventional.is_none() => format!(
            "{} is too small for the conventional zones that this file system needs: choose a \
             larger --size",
            show_size(args.size)
        ),
        GeometryError::SizeMultiple { size, zone } => {
            let advice = sizes_around(size, zone);
            format!(
                "disk size {size} is not a multiple of the zone size {zone}: use --size {advice}, \
                 or another --zone-size"
            )
        }
        GeometryError::SizeBlocks { size, block } => {
            let advice = sizes_around(size, block);
            format!(
                "disk size {size} is not a multiple of the block size {block}: use --size {advice}"
            )
        }
        GeometryError::ZoneSizePower(size) if size > 0 => {
            let above = size.checked_next_power_of_two().unwrap_or(MAX_ZONE_SIZE);
            format!(
                "zone size {size} is not a power of two, which Linux requires: use --zone-size {} \
                 or {}",
                size_option(above / 2),
                size_option(above)
            )
        }
        other => other.to_string(),
    }
}

/// The multiples of `unit` next to `size`, as options take them.
fn sizes_around(size: u64, unit: u64) -> String {
    let below = size / unit * unit;
    let above = size_option(below.saturating_add(unit));
    match below {
        0 => above,
        _ => format!("{} or {above}", size_option(below)),
    }
}

fn report(
    args: &CreateArgs,
    geometry: &Geometry,
    cipher: Cipher,
    made: &Made,
    out: &mut impl Write,
) -> Result<(), CliError> {
    let path = args.image.display();
    writeln!(
        out,
        "{path}: made {}, blocks of {} bytes",
        describe(geometry),
        args.block_size
    )?;
    let protection = protection(cipher, takes_tags(geometry));
    writeln!(out, "  {cipher}: {protection}")?;
    if geometry.model() == Model::HostManaged {
        writeln!(out, "  {}", describe_limits(geometry))?;
    }
    match made.protector.kind() {
        ProtectorKind::KeyFile => writeln!(out, "  key 0: key file")?,
        ProtectorKind::Passphrase(cost) => writeln!(
            out,
            "  key 0: passphrase ({cost}: {:.1} s to unlock)",
            made.seconds
        )?,
    }
    writeln!(out, "  volume {}", made.uuid)?;
    let key = match &args.key {
        KeyArgs {
            key_file: Some(file),
            ..
        } => format!(" --key-file {}", file.display()),
        KeyArgs {
            key_fd: Some(fd), ..
        } => format!(" --key-fd {fd}"),
        KeyArgs {
            passphrase_fd: Some(fd),
            ..
        } => format!(" --passphrase-fd {fd}"),
        _ => String::new(),
    };
    let socket = args.image.with_extension("sock");
    writeln!(
        out,
        "next: zonevault serve {path} --socket {}{key}",
        socket.display()
    )?;
    Ok(())
}

/// Size and zones in words.
pub(super) fn describe(geometry: &Geometry) -> String {
    let size = show_size(geometry.disk_size());
    if geometry.model() == Model::Plain {
        return format!("a plain disk of {size}");
    }
    let capacity = geometry.spec().zone_capacity;
    let capacity = if capacity == geometry.zone_size() {
        String::new()
    } else {
        format!(" (capacity {})", show_size(capacity))
    };
    let conventional = match geometry.conventional() {
        0 => String::new(),
        count => format!(", {count} of them conventional"),
    };
    format!(
        "a host-managed disk of {size}, {} zones of {}{capacity}{conventional}",
        geometry.zones(),
        show_size(geometry.zone_size()),
    )
}

/// Limits in words.
pub(super) fn describe_limits(geometry: &Geometry) -> String {
    let limit = |count: u32| match count {
        0 => "no limit".to_owned(),
        count => count.to_string(),
    };
    format!(
        "open zones: {}, active zones: {}, append: up to {}",
        limit(geometry.max_open()),
        limit(geometry.max_active()),
        show_size(geometry.max_append())
    )
}

impl From<SecretError> for CliError {
    fn from(error: SecretError) -> Self {
        Self::Key(error)
    }
}
