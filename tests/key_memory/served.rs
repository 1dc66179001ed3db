//! Processes that serve a disk, to be looked into.
#![expect(
    unsafe_code,
    reason = "limits and signals have no safe form in the standard library"
)]

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use zonevault::device::{AllowedUids, DeviceOptions, Ending, Server, Stop, WithoutInflight};
use zonevault::format::image::unlock;
use zonevault::request::DeviceLimits;
use zonevault::secret;
use zonevault::store::{Access, Cache, FileMedium};
use zonevault::volume::{Options, Volume};

use crate::common::daemon::BINARY;
use crate::common::refused::refuse;
use crate::common::wire::PATIENCE;

/// Where a host is told which disk, and on which socket.
const HOSTED_DISK: &str = "ZONEVAULT_TEST_HOSTED_DISK";
/// What a host says when it has closed its disk.
const CLOSED: &str = "the disk is closed";

/// What opens a disk.
#[derive(Clone, Debug)]
pub(crate) enum Credential {
    KeyFile(Vec<u8>),
    Passphrase(String),
}

impl Credential {
    pub(crate) fn random_key() -> Self {
        Self::KeyFile(random(64))
    }

    pub(crate) fn random_passphrase() -> Self {
        Self::Passphrase(
            random(24)
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
        )
    }
}

fn random(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut source = File::open("/dev/urandom").unwrap();
    source.read_exact(&mut bytes).unwrap();
    bytes
}

/// An image in a directory of its own.
#[derive(Debug)]
pub(crate) struct Disk {
    dir: TempDir,
    cipher: String,
    credential: Credential,
}

impl Disk {
    /// Sixteen zones of a MiB.
    pub(crate) fn new(cipher: &str, credential: &Credential) -> Self {
        let disk = Self {
            dir: TempDir::new().unwrap(),
            cipher: cipher.to_owned(),
            credential: credential.clone(),
        };
        let secret = match credential {
            Credential::KeyFile(key) => key.as_slice(),
            Credential::Passphrase(text) => text.as_bytes(),
        };
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(0o600);
        file = file.custom_flags(libc::O_CLOEXEC);
        file.open(disk.key()).unwrap().write_all(secret).unwrap();
        let mut create = Command::new(BINARY);
        create.arg("create").arg(disk.image());
        create.args(["--size", "16M", "--zone-size", "1M", "--cipher", cipher]);
        if matches!(credential, Credential::Passphrase(_)) {
            create.args(["--kdf-memory", "8M"]);
        }
        let out = disk.unlocking(&mut create).output().unwrap();
        assert!(out.status.success(), "{out:?}");
        disk
    }

    /// Has a command take the disk's credential.
    fn unlocking<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        match self.credential {
            Credential::KeyFile(_) => command.arg("--key-file").arg(self.key()),
            Credential::Passphrase(_) => {
                let file = File::open(self.key()).unwrap();
                command.args(["--passphrase-fd", "0"]).stdin(file)
            }
        }
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.dir.path().join("disk.img")
    }

    fn key(&self) -> PathBuf {
        self.dir.path().join("key")
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn credential(&self) -> &Credential {
        &self.credential
    }

    pub(crate) fn is_xts(&self) -> bool {
        self.cipher != "aes-256-gcm"
    }

    /// Bytes of a zone's key.
    pub(crate) fn key_len(&self) -> usize {
        match self.cipher.as_str() {
            "aes-256-gcm" | "aes-128-xts" => 32,
            _ => 64,
        }
    }
}

/// Which memory a process has for keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    /// That of memfd_secret.
    Secret,
    /// Locked memory: memfd_secret is kept from it, as by an older kernel or a container.
    Locked,
}

/// Whether this kernel has it and lets us.
pub(crate) fn has_memfd_secret() -> bool {
    // SAFETY: the call takes a flag; the descriptor it gives is closed.
    unsafe {
        let fd = libc::syscall(libc::SYS_memfd_secret, 0);
        fd >= 0 && libc::close(i32::try_from(fd).unwrap()) == 0
    }
}

/// Lets this process dump core of any size, as far as it may.
fn allow_core() {
    // SAFETY: the limits outlive the calls.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        libc::getrlimit(libc::RLIMIT_CORE, &raw mut limit);
        limit.rlim_cur = libc::RLIM_INFINITY;
        limit.rlim_max = libc::RLIM_INFINITY;
        libc::setrlimit(libc::RLIMIT_CORE, &raw const limit);
    }
}

fn prepare(command: &mut Command, memory: Memory) {
    // SAFETY: between fork and exec only system calls are made.
    unsafe {
        command.pre_exec(|| {
            allow_core();
            Ok(())
        });
    }
    if memory == Memory::Locked {
        refuse(command, libc::SYS_memfd_secret, libc::ENOSYS);
    }
}

fn signal(child: &Child, signal: i32) {
    let pid = i32::try_from(child.id()).unwrap();
    // SAFETY: the child was not waited for yet, so the number is still its own.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

/// Whether a process that crashes here leaves a core, if it is allowed to.
pub(crate) fn dumps_core() -> bool {
    let dir = TempDir::new().unwrap();
    let mut command = Command::new("sleep");
    command.arg("60").current_dir(dir.path());
    prepare(&mut command, Memory::Secret);
    let mut child = command.spawn().unwrap();
    signal(&child, libc::SIGSEGV);
    child.wait().unwrap().core_dumped()
}

/// A process that serves a disk; it is killed when this goes out of scope.
#[derive(Debug)]
pub(crate) struct Served {
    child: Child,
    socket: PathBuf,
    /// Of a host: where it is told to close its disk, and where it says that it has.
    talk: Option<(ChildStdin, BufReader<ChildStdout>)>,
}

impl Served {
    /// The daemon.
    pub(crate) fn daemon(disk: &Disk, memory: Memory) -> Self {
        let socket = disk.dir().join("sock");
        let mut command = Command::new(BINARY);
        command.arg("serve").arg(disk.image());
        command.arg("--socket").arg(&socket).args(["--queues", "2"]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        disk.unlocking(&mut command).current_dir(disk.dir());
        prepare(&mut command, memory);
        Self::wait(command.spawn().unwrap(), socket)
    }

    /// A process of this test that serves the disk with the library, and goes on when it has closed it.
    pub(crate) fn host(disk: &Disk, memory: Memory) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "tests::host", "--ignored", "--nocapture"]);
        command.env(HOSTED_DISK, disk.dir());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        prepare(&mut command, memory);
        let mut child = command.spawn().unwrap();
        let talk = child.stdin.take().zip(child.stdout.take());
        let mut served = Self::wait(child, disk.dir().join("sock"));
        served.talk = talk.map(|(to, from)| (to, BufReader::new(from)));
        served
    }

    fn wait(child: Child, socket: PathBuf) -> Self {
        let mut served = Self {
            child,
            socket,
            talk: None,
        };
        let deadline = Instant::now() + PATIENCE;
        while !fs::exists(&served.socket).unwrap() {
            let ended = served.child.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "{ended:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
        served
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Has a host close its disk, and returns when it has.
    pub(crate) fn close_disk(&mut self) {
        let (to, from) = self.talk.as_mut().unwrap();
        to.write_all(b"\n").unwrap();
        let closed = from.lines().any(|line| line.unwrap().ends_with(CLOSED));
        assert!(closed, "the host ended");
    }

    /// SIGTERM, and an end in order.
    pub(crate) fn stop(self) {
        let status = self.crash(libc::SIGTERM);
        assert!(status.success(), "{status}");
    }

    /// Any signal, and the end that it makes.
    pub(crate) fn crash(mut self, number: i32) -> ExitStatus {
        signal(&self.child, number);
        if number == libc::SIGSEGV {
            // The standard library catches the first one, to tell overflows of stacks, and lets it happen
            // again, which it does not when it came from outside. A second one that comes too early is lost, or
            // goes to a thread that may not handle it and dies of SIGSYS.
            self.wait_until_not_caught(number);
            signal(&self.child, number);
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Served {
    /// Waits until the process has no handler for that signal any more.
    fn wait_until_not_caught(&self, number: i32) {
        let deadline = Instant::now() + PATIENCE;
        let is_caught = || {
            let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
            let mask = status.lines().find_map(|l| l.strip_prefix("SigCgt:"));
            let mask = u64::from_str_radix(mask.unwrap().trim(), 16).unwrap();
            mask & 1 << (number - 1) != 0
        };
        while is_caught() {
            assert!(Instant::now() < deadline, "signal {number} is not handled");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

/// What a host does: serve until there is a line on standard input, close, say so, wait for the end.
pub(crate) fn hosted() {
    let dir = PathBuf::from(std::env::var_os(HOSTED_DISK).unwrap());
    let stop = Arc::new(Stop::new().unwrap());
    let stopper = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            let _told = std::io::stdin().read(&mut [0]);
            stop.request();
        }
    });
    serve(&dir, &stop);
    stopper.join().unwrap();
    writeln!(std::io::stdout(), "{CLOSED}").unwrap();
    // Until the other side ends us, or itself.
    let _ended = std::io::stdin().read(&mut [0]);
}

fn serve(dir: &Path, stop: &Stop) {
    let mut medium = FileMedium::open(&dir.join("disk.img"), Access::ReadWrite).unwrap();
    let credential = secret::Credential::from_key_file(&dir.join("key")).unwrap();
    let unlocked = unlock(&medium, &credential).unwrap();
    drop(credential);
    let block = unlocked.geometry().block_size().bytes();
    medium.enable_data(Cache::Direct, block).unwrap();
    let options = Options {
        queues: 2,
        ..Options::default()
    };
    let volume = Arc::new(Volume::open(medium, unlocked, options).unwrap());
    let mut server = Server::bind(&dir.join("sock"), AllowedUids::default()).unwrap();
    let device = DeviceOptions {
        limits: DeviceLimits {
            queues: 2,
            queue_size: 256,
        },
        serial: [b'0'; 20],
        poll: Duration::from_micros(100),
        stats: Vec::new(),
        without_inflight: WithoutInflight::Refuse,
        thread_started: Default::default(),
    };
    let ending = server.run(&volume, &device, stop).unwrap();
    assert_eq!(ending, Ending::InOrder);
    volume.close().unwrap();
}
