//! `zonevault serve`.

use std::fmt;
use std::io::{self, Write};
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::{panic, process, thread};

use clap::{Args, ValueEnum};
use log::{error, info};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use uuid::Uuid;

use crate::arena;
use crate::crypt::Cipher;
use crate::device::{
    AllowedUids, DeviceOptions, Ending, ServeError, Server, Stop, WithoutInflight,
};
use crate::format::Unlocked;
use crate::format::image::unlock;
use crate::geometry::Model;
use crate::keyslot::DEFAULT_SLOTS;
use crate::queue::stats::QueueStats;
use crate::request::{DeviceLimits, SERIAL_LEN};
use crate::sandbox::{Sandbox, Thread};
use crate::store::{Access, Cache, FileMedium};
use crate::volume::{DEFAULT_TAG_CACHE, Options, Volume};

use super::closing::Closing;
use super::confine::{SandboxArgs, hook, start_thread};
use super::cpu::CpuArgs;
use super::create::describe;
use super::credential::KeyArgs;
use super::error::{CliError, Exit};
use super::size::parse_size;
use super::stats::Printer;

/// Smallest and largest virtqueue: SEG_MAX of 254 needs room in it, and 1024 is QEMU's most.
const QUEUE_SIZES: [u16; 2] = [16, 1024];
/// Most memory for tags: those of 1 TiB of blocks of 4 KiB, beyond which more is a mistyped figure.
const MAX_TAG_CACHE: usize = 8 << 30;

/// How long a queue is watched unless told otherwise, in microseconds.
const DEFAULT_POLL_US: u32 = 100;
/// Longest watch: beyond a hundredth of a second a spinning core is no latency saved.
const MAX_POLL_US: i64 = 10_000;

/// Seconds between two lines of `--stats` unless told otherwise.
const DEFAULT_STATS_SECONDS: &str = "10";
/// Most of them: a day.
const MAX_STATS_SECONDS: i64 = 24 * 60 * 60;

/// Seconds for which the disk may be being closed unless told otherwise: shorter than the 90 after which systemd
/// kills.
const DEFAULT_CLOSE_SECONDS: u32 = 75;
/// Most of them: a day.
const MAX_CLOSE_SECONDS: i64 = 24 * 60 * 60;

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

/// What becomes of the host's space of what the guest does not need any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DiscardMode {
    /// The host gets it back
    Unmap,
    /// The image keeps it: for space that was reserved
    Ignore,
}

/// What to do about a queue that was in use when a daemon was killed, if the front-end does not keep
/// which of its requests were in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum WithoutInflightMode {
    /// Do not serve it before the guest starts anew
    Refuse,
    /// Go on: some requests may be done twice, others never be answered
    Resume,
}

impl From<WithoutInflightMode> for WithoutInflight {
    fn from(mode: WithoutInflightMode) -> Self {
        match mode {
            WithoutInflightMode::Refuse => Self::Refuse,
            WithoutInflightMode::Resume => Self::Resume,
        }
    }
}

/// Serve a disk to a virtual machine.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  zonevault serve disk.img --socket disk.sock --key-file disk.key
  zonevault serve disk.img --socket disk.sock --key-file disk.key --expect-cipher aes-256-gcm \\
    --expect-uuid 0b7f3d0e-7a07-4c3a-9a61-6a2a4f0f8b11 --expect-sequence-at-least 12")]
pub(super) struct ServeArgs {
    /// The image
    pub(super) image: PathBuf,
    #[command(flatten)]
    listen: ListenArgs,
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
    /// What becomes of the host's space of a zone that is reset, or of blocks that are discarded
    #[arg(long, value_enum, default_value_t = DiscardMode::Unmap)]
    discard: DiscardMode,
    /// Zone keys held ready
    #[arg(long, value_name = "N", default_value_t = DEFAULT_SLOTS, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub(super) keyslots: u32,
    /// Microseconds for which a queue that ran dry is watched, at most, before its worker sleeps: less
    /// latency for a busy guest, nothing while it is idle. 0 never watches
    #[arg(long, value_name = "US", default_value_t = DEFAULT_POLL_US, value_parser = clap::value_parser!(u32).range(0..=MAX_POLL_US))]
    pub(super) poll_us: u32,
    /// Serial number that the guest reads, at most 20 bytes of printable ASCII
    #[arg(long, value_name = "TEXT", value_parser = parse_serial)]
    pub(super) serial: Option<String>,
    /// Memory for tags of blocks that are read at random, of all queues together
    #[arg(long, value_name = "SIZE", default_value_t = TagCache(DEFAULT_TAG_CACHE), value_parser = parse_tag_cache)]
    tag_cache: TagCache,
    /// Print what each queue did, as a line of JSON on standard output, every so many seconds (10
    /// unless told otherwise) and at the end
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = DEFAULT_STATS_SECONDS, value_parser = clap::value_parser!(u32).range(1..=MAX_STATS_SECONDS))]
    stats: Option<u32>,
    /// Seconds that it may take at the end to make everything durable. After that the daemon ends as if it were killed:
    /// what the page cache has is not lost, unless the host's power is cut
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_CLOSE_SECONDS, value_parser = clap::value_parser!(u32).range(1..=MAX_CLOSE_SECONDS))]
    close_timeout: u32,
    #[command(flatten)]
    expect: ExpectArgs,
    #[command(flatten)]
    opening: OpeningArgs,
    #[command(flatten)]
    cpu: CpuArgs,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

/// Where front-ends connect, and which. Neither `--socket` nor `--fd` is needed if a service manager hands
/// a socket over.
#[derive(Args, Debug)]
struct ListenArgs {
    /// Unix socket to listen on, made with mode 0600
    #[arg(long, value_name = "PATH", conflicts_with = "fd")]
    socket: Option<PathBuf>,
    /// Listening Unix socket that was inherited as this descriptor
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(RawFd).range(3..))]
    fd: Option<RawFd>,
    /// User whose front-ends are served, besides our own user and root; may be repeated
    #[arg(long, value_name = "UID")]
    allow_uid: Vec<u32>,
}

impl ListenArgs {
    /// `user`: who this process becomes.
    fn server(&self, user: Option<u32>) -> Result<Server, ServeError> {
        let allowed = AllowedUids(self.allow_uid.iter().copied().chain(user).collect());
        match (&self.socket, self.fd) {
            (Some(path), _) => Server::bind(path, allowed),
            (None, Some(fd)) => Server::inherit(fd, allowed),
            (None, None) => Server::activated(allowed),
        }
    }
}

/// What the disk must be, or it is not served.
#[derive(Args, Debug)]
struct ExpectArgs {
    /// Refuse another volume than this one
    #[arg(long, value_name = "UUID", help_heading = "Pinning")]
    expect_uuid: Option<Uuid>,
    /// Refuse a disk under another cipher than this one
    #[arg(long, value_name = "NAME", help_heading = "Pinning")]
    expect_cipher: Option<Cipher>,
    /// Refuse a header older than the one with this number: it grows with every opening and closing,
    /// `inspect` shows it, and the log says it when the disk is opened and closed
    #[arg(long, value_name = "N", help_heading = "Pinning")]
    expect_sequence_at_least: Option<u64>,
}

/// How a disk is opened that was not closed in order, or not left alone.
#[derive(Args, Debug)]
struct OpeningArgs {
    /// Recover as after a power cut, also if the host was not booted since (its cache was lost all
    /// the same: a copied image, a detached device)
    #[arg(long, help_heading = "Opening")]
    after_power_cut: bool,
    /// Serve a disk whose zone records are not those with which it was closed, as they are
    #[arg(long, help_heading = "Opening")]
    accept_records: bool,
    /// What to do about a queue that was in use when the daemon before this one was killed, if the
    /// front-end does not keep which of its requests were in flight (QEMU's vhost-user-blk-pci does)
    #[arg(long, value_enum, default_value_t = WithoutInflightMode::Refuse, help_heading = "Opening")]
    without_inflight: WithoutInflightMode,
}

/// Bytes of tags in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TagCache(usize);

impl fmt::Display for TagCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // As the command line takes it.
        write!(f, "{}M", self.0 >> 20)
    }
}

fn parse_tag_cache(text: &str) -> Result<TagCache, String> {
    let bytes = parse_size(text)?;
    usize::try_from(bytes)
        .ok()
        .filter(|&bytes| bytes <= MAX_TAG_CACHE)
        .map(TagCache)
        .ok_or_else(|| format!("at most {}G are possible", MAX_TAG_CACHE >> 30))
}

impl ExpectArgs {
    /// What is not as expected, in words.
    fn mismatch(&self, unlocked: &Unlocked) -> Option<String> {
        let header = &unlocked.header;
        let uuid = header.uuid();
        let cipher = header.cipher();
        let sequence = header.sequence();
        if let Some(expected) = self.expect_uuid.filter(|expected| expected != uuid) {
            return Some(format!("this is volume {uuid}, and {expected} is expected"));
        }
        if let Some(expected) = self.expect_cipher.filter(|expected| *expected != cipher) {
            return Some(format!(
                "its cipher is {cipher}, and {expected} is expected"
            ));
        }
        let least = self.expect_sequence_at_least?;
        (sequence < least).then(|| {
            let damaged = match unlocked.damaged_header {
                Some(_) => {
                    ", or the newer copy of its header is the damaged one (`zonevault check`)"
                }
                None => "",
            };
            format!(
                "its header is number {sequence}, and {least} or later is expected: this is an \
                 older state of the disk{damaged}"
            )
        })
    }
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
    args.cpu.check()?;
    args.key.check()?;
    args.sandbox.check()?;
    let access = if args.read_only {
        Access::Shared
    } else {
        Access::ReadWrite
    };
    let mut medium = FileMedium::open(&args.image, access)?;
    let credential = args.key.read()?;
    let unlocked = unlock(&medium, &credential).map_err(CliError::image(&args.image))?;
    drop(credential);
    if let Some(mismatch) = args.expect.mismatch(&unlocked) {
        return Err(CliError::Pinned {
            path: args.image.clone(),
            mismatch,
        });
    }
    if args.discard == DiscardMode::Ignore {
        medium.keep_space();
    }
    medium.write_in_place_by(unlocked.layout.double_area())?;
    medium.enable_data(args.cache.into(), unlocked.geometry().block_size().bytes())?;
    let direct = medium.is_direct();
    // Before there is a socket: who waits for that may ask for the end at once.
    let stop = Arc::new(Stop::new()?);
    let signals = Signals::new([SIGTERM, SIGINT])?;
    let mut server = args.listen.server(args.sandbox.uid())?;
    let options = Options {
        queues: args.queues,
        keyslots: args.keyslots as usize,
        read_only: args.read_only,
        after_power_cut: args.opening.after_power_cut,
        accept_records: args.opening.accept_records,
        tag_cache: args.tag_cache.0,
    };
    let volume = Volume::open(medium, unlocked, options).map_err(CliError::volume(&args.image))?;
    let volume = Arc::new(volume);
    announce(args, &volume, direct, server.path());
    let closing = Arc::new(Closing::default());
    let ends = Ends {
        stop,
        closing: Arc::clone(&closing),
    };
    let served = serve(args, &volume, &mut server, ends, signals);
    let (printer, ended) = match served {
        Ok(Served { printer, ended }) => (printer, ended.map_err(CliError::from)),
        Err(e) => (None, Err(e)),
    };
    let closed = closing.run(|| close(args, &volume, ended.as_ref().copied().ok()));
    if let Some(printer) = printer {
        printer.finish();
    }
    let how = closed?;
    let keys = volume.keyslot_stats();
    let blocks = volume.integrity_stats();
    info!(
        "{how}, header number {}; bad blocks read: {}; tag slots read: {}; keyslots: {} \
         hits, {} programs, {} evictions",
        volume.header_sequence(),
        blocks.bad_blocks,
        blocks.slot_reads,
        keys.cache_hits + keys.slot_hits,
        keys.programs,
        keys.evictions
    );
    ended.map(|_| ())
}

/// Closes the disk as far as the way in which serving ended lets it be closed, and says how.
fn close(
    args: &ServeArgs,
    volume: &Volume<FileMedium>,
    ended: Option<Ending>,
) -> Result<&'static str, CliError> {
    if ended == Some(Ending::Stuck) {
        return Err(CliError::Failure(format!(
            "{}: the host's disk does not bring what is in flight to an end: ended without closing the \
             disk, as if killed",
            args.image.display()
        )));
    }
    // The last that is heard if the host's disk is dead.
    info!("closing the disk");
    let closed = match ended {
        Some(Ending::Unknown) => volume.leave_open(),
        Some(Ending::Paused) => volume.pause(),
        _ => volume.close(),
    };
    closed.map_err(CliError::volume(&args.image))?;
    Ok(match ended {
        _ if args.read_only => "ended, nothing was changed",
        Some(Ending::Unknown) => {
            "ended, all durable, and left as the killed daemon before this one did: no front-end has \
             shown what was in flight then"
        }
        Some(Ending::Paused) => "closed in order, for a guest that goes on",
        _ => "closed in order",
    })
}

/// How serving ended.
struct Served {
    printer: Option<Printer>,
    /// As [`Server::run`] says.
    ended: Result<Ending, ServeError>,
}

/// What asks for the end, and what tells how far it has come.
struct Ends {
    stop: Arc<Stop>,
    closing: Arc<Closing>,
}

/// Goes into the sandbox, thread by thread, and serves until the end is requested.
fn serve(
    args: &ServeArgs,
    volume: &Arc<Volume<FileMedium>>,
    server: &mut Server,
    ends: Ends,
    signals: Signals,
) -> Result<Served, CliError> {
    // A thread that is gone would leave its guest waiting for ever; a daemon that is gone is started anew and
    // goes on. The usual message asks for what a thread in the sandbox may not.
    panic::set_hook(Box::new(|info| {
        let thread = thread::current();
        error!("{}: {info}", thread.name().unwrap_or("a thread"));
        process::abort();
    }));
    let sandbox = args.sandbox.confine(args.listen.socket.as_deref())?;
    let stop = Arc::clone(&ends.stop);
    stop_on_signals(signals, ends, &sandbox, (args, volume))?;
    let (stats, printer) = start_stats(args, &sandbox)?;
    let device = DeviceOptions {
        poll: Duration::from_micros(args.poll_us.into()),
        limits: DeviceLimits {
            queues: args.queues,
            queue_size: args.queue_size,
        },
        serial: serial(args, volume),
        without_inflight: args.opening.without_inflight.into(),
        stats,
        thread_started: hook(&sandbox, volume),
    };
    let ended = server.run(volume, &device, &stop);
    Ok(Served { printer, ended })
}

/// Where each queue counts, and who prints it; nowhere and nobody unless asked for.
fn start_stats(
    args: &ServeArgs,
    sandbox: &Arc<Sandbox>,
) -> Result<(Vec<Arc<QueueStats>>, Option<Printer>), CliError> {
    let Some(seconds) = args.stats else {
        return Ok((Vec::new(), None));
    };
    let stats = (0..args.queues)
        .map(|_| QueueStats::new().map(Arc::new))
        .collect::<io::Result<Vec<_>>>()?;
    let every = Duration::from_secs(seconds.into());
    let printer = Printer::start(stats.clone(), every, io::stdout(), sandbox)?;
    Ok((stats, Some(printer)))
}

/// Who was told to end sees to it that it comes to that.
fn stop_on_signals(
    mut signals: Signals,
    ends: Ends,
    sandbox: &Arc<Sandbox>,
    (args, volume): (&ServeArgs, &Arc<Volume<FileMedium>>),
) -> Result<(), CliError> {
    let (path, volume) = (args.image.clone(), Arc::clone(volume));
    let seconds = args.close_timeout;
    start_thread("signals", sandbox, Thread::Signals, move || {
        for _ in &mut signals {
            ends.stop.request();
            let patience = Duration::from_secs(seconds.into());
            ends.closing.watch(patience, || {
                error!(
                    "{}: the host's disk does not answer: not closed within {seconds} seconds, for {}; ended \
                     as if killed",
                    path.display(),
                    volume.closing()
                );
                process::exit(i32::from(Exit::Failure as u8));
            });
        }
    })
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
fn announce(args: &ServeArgs, volume: &Volume<FileMedium>, direct: bool, socket: Option<PathBuf>) {
    let geometry = volume.geometry();
    // An abstract one has no path.
    let socket = socket.unwrap_or_else(|| PathBuf::from("SOCKET"));
    let socket = socket.display();
    info!(
        "serving {} at {socket}: {}, {}, keys in {}, volume {}, header number {}",
        args.image.display(),
        describe(geometry),
        if direct { "direct I/O" } else { "page cache" },
        arena::protection().unwrap_or(arena::Protection::Swappable),
        volume.uuid(),
        volume.header_sequence(),
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
    // Whoever closed standard output does not want to read it; whoever asked for statistics reads those
    // there, and with a program.
    let _ = match args.stats {
        None => io::stdout().write_all(out.as_bytes()),
        Some(_) => io::stderr().write_all(out.as_bytes()),
    };
}
