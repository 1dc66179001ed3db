//! The `zonevault` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    zonevault::cli::run()
}
