//! `zonevault serve`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::credential::KeyArgs;
use super::error::CliError;

/// Smallest and largest virtqueue: SEG_MAX of 254 needs room in it, and 1024 is QEMU's most.
const QUEUE_SIZES: [u16; 2] = [16, 1024];
/// Bytes of a virtio-blk serial (virtio 1.4, 5.2.6, VIRTIO_BLK_T_GET_ID).
const SERIAL_LEN: usize = 20;

/// How data gets to the host's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum CacheMode {
    /// Past the host's page cache where its file system can
    Direct,
    /// Through the host's page cache
    Writeback,
}

/// Serve a disk to a virtual machine.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  zonevault serve disk.img --socket disk.sock --key-file disk.key")]
pub(super) struct ServeArgs {
    /// The image
    pub(super) image: PathBuf,
    /// Unix socket to listen on
    #[arg(long, value_name = "PATH")]
    pub(super) socket: PathBuf,
    /// Key of the disk
    #[command(flatten)]
    pub(super) key: KeyArgs,
    /// Virtqueues, each with a worker thread of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=16))]
    pub(super) queues: u16,
    /// Descriptors of each queue, a power of two from 16 to 1024
    #[arg(long, value_name = "N", default_value = "256", value_parser = parse_queue_size)]
    pub(super) queue_size: u16,
    /// Refuse every write
    #[arg(long)]
    pub(super) read_only: bool,
    /// How data gets to the host's disk
    #[arg(long, value_enum, default_value_t = CacheMode::Direct)]
    pub(super) cache: CacheMode,
    /// Zone keys held ready
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(super) keyslots: u16,
    /// Serial number that the guest reads, at most 20 bytes of printable ASCII
    #[arg(long, value_name = "TEXT", value_parser = parse_serial)]
    pub(super) serial: Option<String>,
}

fn parse_queue_size(text: &str) -> Result<u16, String> {
    let [least, most] = QUEUE_SIZES;
    text.parse()
        .ok()
        .filter(|size: &u16| size.is_power_of_two() && (least..=most).contains(size))
        .ok_or_else(|| format!("a power of two from {least} to {most} is needed"))
}

fn parse_serial(text: &str) -> Result<String, String> {
    if text.len() > SERIAL_LEN || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!(
            "at most {SERIAL_LEN} printable ASCII characters are possible"
        ));
    }
    Ok(text.to_owned())
}

/// Runs the command.
pub(super) fn run(args: &ServeArgs) -> Result<(), CliError> {
    Err(CliError::Failure(format!(
        "{}: this build has no server",
        args.image.display()
    )))
}
