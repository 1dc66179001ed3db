//! A front-end that sends any messages, in any order, with any descriptors, to a live device: the
//! session ends or goes on, the next one finds the device alive, and nothing is left open.
//!
//! One device serves all cases, so what a case meets depends on those before it: a crash may need its
//! predecessors to be seen again.
#![no_main]

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use arbitrary::{Arbitrary, Result, Unstructured};
use memfd::MemfdOptions;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;
use zonevault::crypt::Cipher;
use zonevault::device::{AllowedUids, DeviceOptions, Server, Stop, WithoutInflight};
use zonevault::geometry::{GeometrySpec, Model};
use zonevault::request::DeviceLimits;
use zonevault::store::{Cache, FileMedium};
use zonevault_fuzz::{ZONE, disk};

/// How long a session may take to end once nothing comes any more.
const PATIENCE: Duration = Duration::from_secs(15);
const QUEUES: u16 = 2;
const QUEUE_SIZE: u16 = 16;
/// Guest memory: one region in the usual case.
const MEMORY: u64 = 256 << 10;
const GUEST: u64 = 0x10_0000;
const USER: u64 = 0x7000_0000;
/// Messages of a case.
const MESSAGES: usize = 48;
/// Descriptors that a device may hold more than when it was new: those of a session that is just
/// being taken down.
const SLACK: usize = 64;

static SOCKET: LazyLock<PathBuf> = LazyLock::new(|| {
    let path = std::env::temp_dir().join(format!("zv-fuzz-{}.sock", std::process::id()));
    let spec = GeometrySpec {
        model: Model::HostManaged,
        block_size: 4096,
        disk_size: 8 * ZONE,
        zone_size: ZONE,
        zone_capacity: ZONE,
        conventional: 0,
        max_open: 2,
        max_active: 4,
        max_append: 16 << 10,
    };
    let geometry = spec.validate().expect("a disk");
    let image = path.with_extension("img");
    let len = disk::image_len(&geometry, Cipher::Aes256Gcm);
    let mut medium = FileMedium::create(&image, len, true).expect("a file");
    disk::format(&medium, &geometry, Cipher::Aes256Gcm);
    medium
        .enable_data(Cache::Writeback, 4096)
        .expect("data in a file");
    std::fs::remove_file(&image).expect("our file");
    let volume = Arc::new(disk::open(medium, QUEUES));
    let options = DeviceOptions {
        limits: DeviceLimits {
            queues: QUEUES,
            queue_size: QUEUE_SIZE,
        },
        serial: [b'f'; 20],
        poll: Duration::ZERO,
        stats: Vec::new(),
        without_inflight: WithoutInflight::default(),
        thread_started: Default::default(),
    };
    let mut server = Server::bind(&path, AllowedUids::default()).expect("a socket");
    std::thread::spawn(move || {
        let stop = Stop::new().expect("an event");
        let ended = server.run(&volume, &options, &stop);
        panic!("the server ended: {ended:?}");
    });
    path
});
static RAM: LazyLock<File> = LazyLock::new(|| {
    let memory = MemfdOptions::new().create("guest").expect("a memfd");
    memory.as_file().set_len(MEMORY).expect("a memfd");
    memory.into_file()
});
/// Descriptors of this process after the first case.
static BEFORE: AtomicUsize = AtomicUsize::new(0);

/// What is sent along with a message.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Along {
    Nothing,
    Memory,
    Event,
    OtherEvent,
    Small,
    Null,
    Two,
    Many,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Action {
    /// Everything that makes a queue run.
    SetUp {
        queue: u8,
        protocol: bool,
    },
    /// A message of the usual form, its fields off by what is said.
    Message {
        kind: u8,
        queue: u8,
        off: i8,
        along: Along,
        ack: bool,
    },
    /// The same with one field that is anything.
    Wild {
        kind: u8,
        field: u8,
        value: u64,
        along: Along,
    },
    /// Any header and any bytes.
    Raw {
        kind: u8,
        flags: u8,
        len: u8,
        claimed: u16,
        along: Along,
    },
    /// A message that stops halfway.
    Half {
        kind: u8,
        len: u8,
    },
    Kick,
    /// Guest memory gets so many pages.
    Resize {
        pages: u8,
    },
    /// What came back is read.
    Read,
    Sync,
}

struct Session {
    socket: UnixStream,
    kick: EventFd,
    call: EventFd,
    small: File,
    /// What GET_INFLIGHT_FD answered.
    kept: Option<OwnedFd>,
}

fn longs(values: &[u64]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// The body of a message as a front-end would send it.
fn body(kind: u8, queue: u64) -> Vec<u8> {
    let at = |offset: u64| USER + offset + queue * 0x8000;
    match kind {
        // SET_FEATURES: all that the device offers, and VHOST_USER_F_PROTOCOL_FEATURES.
        2 => longs(&[0x1_7002_1e44]),
        5 => longs(&[1, GUEST, MEMORY, USER, 0]),
        8 => longs(&[queue | u64::from(QUEUE_SIZE) << 32]),
        9 => longs(&[queue, at(0), at(0x600), at(0x400), 0]),
        10 | 11 => longs(&[queue]),
        12..=14 => longs(&[queue]),
        // SET_PROTOCOL_FEATURES: MQ, REPLY_ACK, CONFIG, INFLIGHT_SHMFD, RESET_DEVICE, memory slots.
        16 => longs(&[0xb209]),
        18 => longs(&[queue | 1 << 32]),
        24 | 25 => {
            let mut body = vec![0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0];
            body.extend_from_slice(&[0; 8]);
            body
        }
        31 | 32 => longs(&[0x1000, 0, u64::from(QUEUES) | u64::from(QUEUE_SIZE) << 16]),
        37 | 38 => longs(&[0, GUEST, MEMORY, USER, 0]),
        _ => Vec::new(),
    }
}

/// Rings and requests in guest memory, as if nothing was ever served.
fn fill_memory(available: u16) {
    let mut bytes = vec![0; usize::try_from(MEMORY).unwrap()];
    for queue in 0..QUEUES {
        let base = usize::from(queue) * 0x8000;
        let mut put = |at: usize, data: &[u8]| {
            bytes[base + at..base + at + data.len()].copy_from_slice(data);
        };
        // A read, an append, a report, a flush: header, data, status.
        for (number, (kind, data)) in [(0_u8, 2_u16), (15, 0), (16, 2), (4, 2)].iter().enumerate() {
            let at = 0x1000 + number * 0x1800;
            put(at, &[*kind]);
            let guest = GUEST + (base + at) as u64;
            let parts = [
                (guest, 16, 1),
                (guest + 0x800, 0x1000, 1 | data),
                (guest + 0x20, 16, 2),
            ];
            for (part, (address, len, flags)) in parts.into_iter().enumerate() {
                let index = 3 * number + part;
                let mut entry = longs(&[address]);
                entry.extend_from_slice(&u32::to_le_bytes(len));
                entry.extend_from_slice(&u16::to_le_bytes(flags));
                entry.extend_from_slice(&u16::try_from(index + 1).unwrap().to_le_bytes());
                put(16 * index, &entry);
            }
            put(0x404 + 2 * number, &[u8::try_from(3 * number).unwrap(), 0]);
        }
        put(0x402, &available.to_le_bytes());
    }
    // New pages, also where the last device still has the old ones.
    RAM.set_len(0).expect("a memfd");
    RAM.set_len(MEMORY).expect("a memfd");
    RAM.write_all_at(&bytes, 0).expect("a memfd");
}

impl Session {
    fn open() -> Self {
        let socket = UnixStream::connect(&*SOCKET).expect("the device is alive");
        socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
        socket.set_write_timeout(Some(PATIENCE)).expect("a socket");
        let event = || EventFd::new(EFD_NONBLOCK).expect("an event");
        let small = MemfdOptions::new().create("small").expect("a memfd");
        small.as_file().set_len(4096).expect("a memfd");
        Self {
            socket,
            kick: event(),
            call: event(),
            small: small.into_file(),
            kept: None,
        }
    }

    fn descriptors(&self, along: Along) -> Vec<RawFd> {
        let kept = self
            .kept
            .as_ref()
            .map_or(self.small.as_raw_fd(), AsRawFd::as_raw_fd);
        match along {
            Along::Nothing => Vec::new(),
            Along::Memory => vec![RAM.as_raw_fd()],
            Along::Event => vec![self.kick.as_raw_fd()],
            Along::OtherEvent => vec![self.call.as_raw_fd()],
            Along::Small => vec![kept],
            Along::Null => vec![self.socket.as_raw_fd()],
            Along::Two => vec![RAM.as_raw_fd(), self.kick.as_raw_fd()],
            Along::Many => vec![RAM.as_raw_fd(); 9],
        }
    }

    /// `false`: the device has ended the session.
    fn send(&mut self, header: [u32; 3], body: &[u8], along: Along) -> bool {
        let mut bytes: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.extend_from_slice(body);
        let descriptors = self.descriptors(along);
        match self.socket.send_with_fds(&[bytes.as_slice()], &descriptors) {
            Ok(sent) => sent == bytes.len(),
            Err(e) => {
                let kind = std::io::Error::from(e).kind();
                assert_ne!(kind, ErrorKind::WouldBlock, "the device reads no more");
                false
            }
        }
    }

    fn message(&mut self, kind: u8, body: &[u8], along: Along, ack: bool) -> bool {
        let flags = if ack { 9 } else { 1 };
        let len = u32::try_from(body.len()).unwrap();
        self.send([kind.into(), flags, len], body, along)
    }

    fn set_up(&mut self, queue: u64, protocol: bool) -> bool {
        let mut messages = vec![(3, Along::Nothing), (2, Along::Nothing)];
        if protocol {
            messages.push((16, Along::Nothing));
        }
        messages.extend([
            (5, Along::Memory),
            (8, Along::Nothing),
            (10, Along::Nothing),
            (9, Along::Nothing),
            (13, Along::OtherEvent),
            (12, Along::Event),
            (18, Along::Nothing),
        ]);
        messages
            .into_iter()
            .all(|(kind, along)| self.message(kind, &body(kind, queue), along, false))
    }

    /// Takes what the device has sent; keeps a descriptor that came with it.
    fn read(&mut self) {
        let mut bytes = [0; 512];
        self.socket.set_nonblocking(true).expect("a socket");
        if let Ok((_, Some(file))) = self.socket.recv_with_fd(&mut bytes) {
            self.kept = Some(file.into());
        }
        self.socket.set_nonblocking(false).expect("a socket");
    }

    fn act(&mut self, action: Action) -> bool {
        match action {
            Action::SetUp { queue, protocol } => self.set_up(u64::from(queue & 1), protocol),
            Action::Message {
                kind,
                queue,
                off,
                along,
                ack,
            } => {
                let kind = kind % 44;
                let mut body = body(kind, u64::from(queue % 3));
                let at = usize::from(off.unsigned_abs());
                if let Some(byte) = body.get_mut(at) {
                    *byte = byte.wrapping_add_signed(off);
                }
                self.message(kind, &body, along, ack)
            }
            Action::Wild {
                kind,
                field,
                value,
                along,
            } => {
                let mut body = body(kind % 44, 0);
                let at = 8 * usize::from(field & 7);
                if let Some(place) = body.get_mut(at..at + 8) {
                    place.copy_from_slice(&value.to_le_bytes());
                }
                self.message(kind % 44, &body, along, true)
            }
            Action::Raw {
                kind,
                flags,
                len,
                claimed,
                along,
            } => {
                let body = vec![kind ^ len; usize::from(len)];
                let claimed = if claimed & 1 == 0 {
                    u32::from(len)
                } else {
                    claimed.into()
                };
                self.send([kind.into(), flags.into(), claimed], &body, along)
            }
            Action::Half { kind, len } => {
                let body = vec![0; usize::from(len & 15)];
                self.send([kind.into(), 1, 200], &body, Along::Nothing)
            }
            Action::Kick => self.kick.write(1).is_ok(),
            Action::Resize { pages } => {
                let len = 4096 * u64::from(pages & 63);
                RAM.set_len(len.min(MEMORY)).is_ok()
            }
            Action::Read => {
                self.read();
                true
            }
            // What follows finds the device at rest, if it answers.
            Action::Sync => self.message(1, &[], Along::Nothing, false),
        }
    }

    /// Says nothing more, and waits until the device has ended the session.
    fn end(mut self) {
        let _ = self.socket.shutdown(Shutdown::Write);
        let mut rest = [0; 4096];
        loop {
            match self.socket.read(&mut rest) {
                Ok(0) => return,
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => panic!("the session does not end"),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }
}

fn check_alive() {
    let mut session = Session::open();
    assert!(session.message(1, &[], Along::Nothing, false));
    let mut answer = [0; 20];
    session
        .socket
        .read_exact(&mut answer)
        .expect("the features");
    assert_eq!(answer[..4], [1, 0, 0, 0]);
    session.end();
    let open = descriptors();
    let before = BEFORE
        .compare_exchange(0, open.len(), Ordering::Relaxed, Ordering::Relaxed)
        .unwrap_or_else(|before| before);
    let most = if before == 0 {
        usize::MAX
    } else {
        before + SLACK
    };
    assert!(open.len() <= most, "open, of {before} at first: {open:?}");
}

/// What the descriptors of this process stand for.
fn descriptors() -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/proc/self/fd").into_iter().flatten();
    entries
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .collect()
}

fn run(data: &[u8]) -> Result<()> {
    let u = &mut Unstructured::new(data);
    fill_memory(u.int_in_range(0..=5)?);
    let mut session = Session::open();
    for _ in 0..MESSAGES {
        if u.is_empty() || !session.act(u.arbitrary()?) {
            break;
        }
    }
    session.socket.flush().expect("a socket");
    session.end();
    Ok(())
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = run(data);
    check_alive();
});
