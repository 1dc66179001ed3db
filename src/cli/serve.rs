//! `zonevault serve`.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use clap::{Args, ValueEnum};
use log::info;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::device::{DeviceOptions, Server, Stop};
use crate::format::image::unlock;
use crate::geometry::Model;
use crate::request::{DeviceLimits, SERIAL_LEN};
use crate::store::{Access, Cache, FileMedium};
use crate::volume::{Options, Volume};

use super::create::describe;
use super::credential::KeyArgs;
use super::error::CliError;

/// Smallest and largest virtqueue: SEG_MAX of 254 needs room in it, and 1024 is QEMU's most.
const QUEUE_SIZES: [u16; 2] = [16, 1024];

/// How data gets to the host's disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum CacheMode {
    /// Past the host's page cache where its file system can
    Direct,
    /// Through the host's page cache
    Writeback,
}

impl From<CacheMode> for Cache {
    fn from(mode: CacheMode) -> Self {
        match mode {
            CacheMode::Direct => Self::Direct,
            CacheMode::Writeback => Self::Writeback,
        }
    }
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

/// Runs the command: opens the disk, serves it until SIGTERM or SIGINT, closes it in order.
pub(super) fn run(args: &ServeArgs) -> Result<(), CliError> {
    let access = if args.read_only {
        Access::Shared
    } else {
        Access::ReadWrite
    };
    let mut medium = FileMedium::open(&args.image, access)?;
    let credential = args.key.read()?;
    let unlocked = unlock(&medium, &credential).map_err(CliError::image(&args.image))?;
    drop(credential);
    medium.enable_data(args.cache.into(), unlocked.geometry().block_size().bytes())?;
    let direct = medium.is_direct();
    // Before there is a socket: who waits for that may ask for the end at once.
    let stop = Arc::new(Stop::new()?);
    stop_on_signals(&stop)?;
    let mut server = Server::bind(&args.socket)?;
    let options = Options {
        queues: args.queues,
        keyslots: usize::from(args.keyslots),
        read_only: args.read_only,
        ..Options::default()
    };
    let volume = Volume::open(medium, unlocked, options).map_err(CliError::volume(&args.image))?;
    let volume = Arc::new(volume);
    announce(args, &volume, direct);
    let device = DeviceOptions {
        limits: DeviceLimits {
            queues: args.queues,
            queue_size: args.queue_size,
        },
        serial: serial(args, &volume),
    };
    let served = server.run(&volume, device, &stop);
    volume.close().map_err(CliError::volume(&args.image))?;
    let keys = volume.keyslot_stats();
    info!(
        "closed in order; keyslots: {} hits, {} programs, {} evictions",
        keys.cache_hits + keys.slot_hits,
        keys.programs,
        keys.evictions
    );
    Ok(served?)
}

fn stop_on_signals(stop: &Arc<Stop>) -> Result<(), CliError> {
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let stop = Arc::clone(stop);
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for _ in &mut signals {
                stop.request();
            }
        })?;
    Ok(())
}

fn serial(args: &ServeArgs, volume: &Volume<FileMedium>) -> [u8; SERIAL_LEN] {
    let text = match &args.serial {
        Some(serial) => serial.clone(),
        None => volume.uuid().simple().to_string(),
    };
    let mut serial = [0; SERIAL_LEN];
    for (to, from) in serial.iter_mut().zip(text.bytes()) {
        *to = from;
    }
    serial
}

/// Says that the disk is there, and how to attach it.
fn announce(args: &ServeArgs, volume: &Volume<FileMedium>, direct: bool) {
    let geometry = volume.geometry();
    let socket = args.socket.display();
    info!(
        "serving {} at {socket}: {}, {}",
        args.image.display(),
        describe(geometry),
        if direct { "direct I/O" } else { "page cache" },
    );
    let queues = args.queues;
    let size = args.queue_size;
    let mut out = String::new();
    out.push_str("Attach it to QEMU (guest memory must be shared):\n");
    out.push_str(
        "  -object memory-backend-memfd,id=mem,size=1G,share=on -machine memory-backend=mem \\\n",
    );
    out.push_str(&format!("  -chardev socket,id=disk,path={socket}"));
    match geometry.model() {
        Model::HostManaged => out.push_str(&format!(
            " \\\n  -device vhost-user-test-device-pci,chardev=disk,virtio-id=2,num_vqs={queues},\
             vq_size={size},config_size=96\n"
        )),
        Model::Plain => out.push_str(&format!(
            ",reconnect-ms=1000 \\\n  -device vhost-user-blk-pci,chardev=disk,num-queues={queues},\
             queue-size={size}\n"
        )),
    }
    out.push_str(&format!(
        "or to crosvm:\n  --vhost-user type=block,socket={socket}\n"
    ));
    // Whoever closed standard output does not want to read it.
    let _ = io::stdout().write_all(out.as_bytes());
}
