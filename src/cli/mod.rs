//! The command line: `zonevault create | serve | inspect | zones | check | key`.
//!
//! Every command reads and checks all it was given before it changes anything. Facts go to
//! standard output, everything else to standard error; a failure is one line and an exit code.

mod check;
mod closing;
mod confine;
mod cpu;
mod create;
mod credential;
mod error;
mod inspect;
mod key;
mod map;
mod preset;
mod progress;
mod prompt;
mod serve;
mod size;
mod stats;
mod view;
mod zones;

use std::io::{self, BufWriter, Write};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

pub use credential::KeyArgs;
pub use error::{CliError, EXIT_CODES, Exit};

use crate::secret::harden_process;

/// A vhost-user-blk backend: zoned, encrypted disks for virtual machines.
#[derive(Debug, Parser)]
#[command(
    name = "zonevault",
    version,
    subcommand_required = true,
    after_help = EXIT_CODES,
    after_long_help = concat_help()
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a new disk image
    Create(create::CreateArgs),
    /// Serve a disk to a virtual machine
    Serve(serve::ServeArgs),
    /// Show what a disk image is
    Inspect(inspect::InspectArgs),
    /// Show the zones of a disk
    Zones(zones::ZonesArgs),
    /// Read everything on a disk and verify it
    Check(check::CheckArgs),
    /// Manage the keys that unlock a disk
    Key(key::KeyCommandArgs),
}

/// The end of the long help: a first session, and the exit codes.
fn concat_help() -> String {
    format!(
        "\
A first disk, with a key file, served to a virtual machine:
  (umask 077; head -c 64 /dev/urandom > disk.key)
  zonevault create disk.img --size 2G --for btrfs --key-file disk.key
  zonevault serve disk.img --socket disk.sock --key-file disk.key

{EXIT_CODES}"
    )
}

/// Runs the command that the process was started with, and returns its exit code.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error).into(),
    };
    // A daemon tells its life, a command only its troubles.
    let level = match cli.command {
        Command::Serve(_) => "info",
        _ => "warn",
    };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or(level)).init();
    harden_process();
    match dispatch(cli.command) {
        Ok(()) => Exit::Ok.into(),
        Err(error) => {
            if error.exit() != Exit::Ok {
                complain(&error.to_string());
            }
            error.exit().into()
        }
    }
}

fn dispatch(command: Command) -> Result<(), CliError> {
    let mut out = BufWriter::new(io::stdout().lock());
    match command {
        Command::Create(args) => create::run(&args, &mut out)?,
        Command::Serve(args) => {
            drop(out);
            return serve::run(&args);
        }
        Command::Inspect(args) => inspect::run(&args, &mut out)?,
        Command::Zones(args) => zones::run(&args, &mut out)?,
        Command::Check(args) => check::run(&args, &mut out)?,
        Command::Key(args) => key::run(&args, &mut out)?,
    }
    out.flush()?;
    Ok(())
}

/// Answers what clap did not take: help and version as asked, anything else in one line.
fn refuse(error: &clap::Error) -> Exit {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    ) {
        let asked = error.kind() != ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
        // Help that nobody reads is no failure.
        let _ = error.print();
        return if asked { Exit::Ok } else { Exit::Usage };
    }
    complain(&one_line(&error.to_string()));
    Exit::Usage
}

/// Folds clap's paragraph into one line, with a pointer to the help of the command at hand.
fn one_line(text: &str) -> String {
    let message: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
        .filter(|line| !line.is_empty())
        .collect();
    let message = message.join(" ");
    let message = message.strip_prefix("error: ").unwrap_or(&message);
    let command = std::env::args()
        .nth(1)
        .filter(|word| Cli::command().find_subcommand(word).is_some())
        .map_or_else(String::new, |word| format!("{word} "));
    format!("{message} (see `zonevault {command}--help`)")
}

fn complain(message: &str) {
    // If even standard error is gone, the exit code has to do.
    let _ = writeln!(io::stderr(), "zonevault: {message}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_usage_error_is_one_line() {
        for line in [
            ["zonevault", "create", "disk.img"].as_slice(),
            &["zonevault", "create", "--nonsense"],
            &["zonevault", "nonsense"],
            &["zonevault", "create", "a", "--size", "1X"],
            &[
                "zonevault",
                "create",
                "a",
                "--size",
                "1G",
                "--plain",
                "--zone-size",
                "4M",
            ],
        ] {
            let error = Cli::try_parse_from(line).unwrap_err();
            let shown = one_line(&error.to_string());
            assert!(
                !shown.contains('\n') && !shown.contains("error:"),
                "{shown}"
            );
            assert!(shown.ends_with("--help`)"), "{shown}");
        }
    }
}
