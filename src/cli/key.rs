//! `zonevault key add | remove | list`.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;

use crate::format::{ImageError, NewProtector, Protector, Slot, image};
use crate::store::{Access, FileMedium};

use super::create::{KdfArgs, now};
use super::credential::{KeyArgs, NewKeyArgs};
use super::error::CliError;
use super::inspect::{slot_text, slots_json};

/// Manage the keys that unlock a disk.
///
/// A disk has up to eight, each of them a passphrase or a key file, and each opens all of it.
#[derive(Args, Debug)]
pub(super) struct KeyCommandArgs {
    #[command(subcommand)]
    command: KeyCommand,
}

#[derive(Debug, Subcommand)]
enum KeyCommand {
    /// Add a key, by the right of an existing one
    Add(AddArgs),
    /// Remove a key
    Remove(RemoveArgs),
    /// List the keys (needs none)
    List(ListArgs),
}

/// Add a key. The disk must not be in use.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  zonevault key add disk.img --key-file disk.key           # asks for a new passphrase
  zonevault key add disk.img --key-file disk.key --new-key-file spare.key --label spare")]
struct AddArgs {
    /// The image
    image: PathBuf,
    #[command(flatten)]
    key: KeyArgs,
    #[command(flatten)]
    new_key: NewKeyArgs,
    /// Text that `key list` shows beside the key (at most 32 bytes)
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        help_heading = "New key"
    )]
    label: String,
    #[command(flatten)]
    kdf: KdfArgs,
}

/// Remove a key. The disk must not be in use.
///
/// What was the key keeps opening copies of the image that were made before.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  zonevault key remove disk.img 1")]
struct RemoveArgs {
    /// The image
    image: PathBuf,
    /// The number that `key list` shows
    slot: u32,
    /// Remove the last key too: nobody can ever open the disk again
    #[arg(long)]
    force: bool,
}

/// List the keys.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  zonevault key list disk.img --json")]
struct ListArgs {
    /// The image
    image: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(super) fn run(args: &KeyCommandArgs, out: &mut impl Write) -> Result<(), CliError> {
    match &args.command {
        KeyCommand::Add(args) => add(args, out),
        KeyCommand::Remove(args) => remove(args, out),
        KeyCommand::List(args) => list(args, out),
    }
}

fn add(args: &AddArgs, out: &mut impl Write) -> Result<(), CliError> {
    let cost = args.kdf.cost()?;
    args.new_key.check_beside(&args.key)?;
    args.key.check()?;
    let medium = FileMedium::open(&args.image, Access::ReadWrite)?;
    let fail = CliError::image(&args.image);
    // Before anybody is asked to type a key: is it an image, and is there room?
    let slots = read_slots(&medium, &args.image)?;
    let free = (0..)
        .zip(&slots)
        .find_map(|(number, slot)| matches!(slot, Slot::Free).then_some(number));
    let Some(number) = free else {
        return Err(CliError::Usage(format!(
            "{}: all {} key slots are in use: remove one first",
            args.image.display(),
            slots.len()
        )));
    };
    let existing = args.key.read()?;
    let unlocked = image::unlock(&medium, &existing).map_err(CliError::image(&args.image))?;
    let credential = args.new_key.read()?;
    let new = NewProtector {
        credential: &credential,
        cost,
        label: &args.label,
        created: now(),
    };
    let protector = Protector::seal(&unlocked.volume_key, unlocked.header.uuid(), number, &new)
        .map_err(|error| CliError::image(&args.image)(error.into()))?;
    image::write_protector(&medium, number, Some(&protector)).map_err(fail)?;
    writeln!(
        out,
        "{}: added key {number}: {}",
        args.image.display(),
        slot_text(&Slot::Used(Box::new(protector))).unwrap_or_default()
    )?;
    Ok(())
}

fn remove(args: &RemoveArgs, out: &mut impl Write) -> Result<(), CliError> {
    let medium = FileMedium::open(&args.image, Access::ReadWrite)?;
    let slots = read_slots(&medium, &args.image)?;
    let path = args.image.display();
    let Some(slot) = usize::try_from(args.slot).ok().and_then(|n| slots.get(n)) else {
        return Err(CliError::image(&args.image)(ImageError::NoSuchSlot(
            args.slot,
        )));
    };
    if *slot == Slot::Free {
        return Err(CliError::Usage(format!(
            "{path}: there is no key {}: see `zonevault key list`",
            args.slot
        )));
    }
    let usable = |slot: &&Slot| matches!(slot, Slot::Used(_));
    let last = usable(&slot) && slots.iter().filter(usable).count() == 1;
    if last && !args.force {
        return Err(CliError::Usage(format!(
            "{path}: key {} is the last one, and without it the disk is lost for ever: add another \
             first, or use --force",
            args.slot
        )));
    }
    image::write_protector(&medium, args.slot, None).map_err(CliError::image(&args.image))?;
    writeln!(
        out,
        "{path}: removed key {}{}",
        args.slot,
        if last {
            ", the last one: this disk cannot be opened any more"
        } else {
            ""
        }
    )?;
    Ok(())
}

fn list(args: &ListArgs, out: &mut impl Write) -> Result<(), CliError> {
    let medium = FileMedium::open(&args.image, Access::ReadOnly)?;
    let slots = read_slots(&medium, &args.image)?;
    if args.json {
        let keys = json!({ "protectors": slots_json(&slots) });
        serde_json::to_writer_pretty(&mut *out, &keys).map_err(std::io::Error::from)?;
        writeln!(out)?;
        return Ok(());
    }
    for (number, slot) in slots.iter().enumerate() {
        if let Some(text) = slot_text(slot) {
            writeln!(out, "{number}: {text}")?;
        }
    }
    Ok(())
}

/// The slots of what is known to be an image.
fn read_slots(medium: &FileMedium, path: &Path) -> Result<Vec<Slot>, CliError> {
    image::read_header(medium)
        .and_then(|_| image::read_protectors(medium))
        .map_err(CliError::image(path))
}
