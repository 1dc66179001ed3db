//! The daemon under test as a process: create an image, serve it, end it in every way, read its log.
#![expect(
    unsafe_code,
    reason = "the standard library sends no signal but SIGKILL"
)]

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::wire::PATIENCE;

/// The binary under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_zonevault");

/// An image with its key in a directory of its own, which goes with it.
#[derive(Debug)]
pub struct Image {
    dir: TempDir,
}

impl Image {
    /// A new directory with a key file and no image yet.
    pub fn empty() -> Self {
        Self::empty_in(&env::temp_dir())
    }

    fn empty_in(parent: &Path) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("zv-")
            .tempdir_in(parent)
            .expect("temporary directory");
        let image = Self { dir };
        let mut key = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(image.key())
            .expect("key file");
        // Any 64 bytes do; XTS refuses equal halves, so they differ.
        let bytes: Vec<u8> = (0..64).map(|i: u8| i.wrapping_mul(37) ^ 0x5c).collect();
        key.write_all(&bytes).expect("key file");
        image
    }

    /// Creates an image with these options.
    ///
    /// # Panics
    /// If the command fails.
    pub fn create(options: &[&str]) -> Self {
        Self::empty().created(options)
    }

    /// The same in a directory of `parent`.
    ///
    /// # Panics
    /// If the command fails.
    pub fn create_in(parent: &Path, options: &[&str]) -> Self {
        Self::empty_in(parent).created(options)
    }

    fn created(self, options: &[&str]) -> Self {
        let image = self;
        let out = image.run_create(options);
        assert!(
            out.status.success(),
            "create {options:?}: {}\n{}{}",
            out.status,
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
        image
    }

    /// Runs `create` and returns what came of it.
    pub fn run_create(&self, options: &[&str]) -> Output {
        let mut command = Command::new(BINARY);
        command.arg("create").arg(self.path()).args(options);
        command.arg("--key-file").arg(self.key());
        finish(command.stdin(Stdio::null()))
    }

    /// The image.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("disk.img")
    }

    /// The key file.
    pub fn key(&self) -> PathBuf {
        self.dir.path().join("key")
    }

    /// The directory, for whatever else a test needs.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

/// Runs a command to its end, for at most [`PATIENCE`].
fn finish(command: &mut Command) -> Output {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("running the binary");
    if wait_until(&mut child, Instant::now() + PATIENCE).is_none() {
        let _gone = child.kill();
        panic!("{command:?} did not end");
    }
    child.wait_with_output().expect("output")
}

fn wait_until(child: &mut Child, deadline: Instant) -> Option<ExitStatus> {
    loop {
        if let Some(status) = child.try_wait().expect("wait") {
            return Some(status);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A serving daemon; it is killed when this goes out of scope.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    socket: PathBuf,
    log: PathBuf,
}

impl Daemon {
    /// Serves an image and waits until the socket is there.
    ///
    /// # Panics
    /// If it is not ready in time.
    pub fn serve(image: &Image, options: &[&str]) -> Self {
        Self::serve_in(image, options, &[])
    }

    /// [`Daemon::serve`] with more in its environment.
    pub fn serve_in(image: &Image, options: &[&str], environment: &[(&str, String)]) -> Self {
        let daemon = Self::spawn_in(image, "sock", options, environment);
        daemon.await_socket(options)
    }

    /// [`Daemon::serve`] by a command that `prepare` has had in its hands.
    pub fn serve_prepared(
        image: &Image,
        options: &[&str],
        prepare: impl FnOnce(&mut Command),
    ) -> Self {
        let daemon = Self::spawn_prepared(image, "sock", options, prepare);
        daemon.await_socket(options)
    }

    fn await_socket(self, options: &[&str]) -> Self {
        let mut daemon = self;
        let deadline = Instant::now() + PATIENCE;
        while !daemon.ready() {
            if let Some(status) = wait_until(&mut daemon.child, Instant::now()) {
                panic!("serve {options:?} ended: {status}\n{}", daemon.log());
            }
            assert!(Instant::now() < deadline, "no socket\n{}", daemon.log());
            std::thread::sleep(Duration::from_millis(1));
        }
        daemon
    }

    /// Starts `serve` on the socket `name` without waiting for anything.
    pub fn spawn(image: &Image, name: &str, options: &[&str]) -> Self {
        Self::spawn_in(image, name, options, &[])
    }

    /// [`Daemon::spawn`] with more in its environment.
    pub fn spawn_in(
        image: &Image,
        name: &str,
        options: &[&str],
        environment: &[(&str, String)],
    ) -> Self {
        Self::spawn_prepared(image, name, options, |command| {
            command.envs(environment.iter().map(|(name, value)| (name, value)));
        })
    }

    fn spawn_prepared(
        image: &Image,
        name: &str,
        options: &[&str],
        prepare: impl FnOnce(&mut Command),
    ) -> Self {
        let socket = image.dir().join(name);
        // A killed daemon leaves its socket behind: were it still there, "the socket exists" would say nothing.
        match fs::remove_file(&socket) {
            Ok(()) => {}
            Err(err) => assert_eq!(err.kind(), std::io::ErrorKind::NotFound, "old socket"),
        }
        let log = image.dir().join(format!("{name}.log"));
        let output = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .expect("log file");
        let mut command = Command::new(BINARY);
        command
            .arg("serve")
            .arg(image.path())
            .arg("--socket")
            .arg(&socket)
            .arg("--key-file")
            .arg(image.key())
            .args(options)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("log file"))
            .stderr(output);
        prepare(&mut command);
        let child = command.spawn().expect("running the binary");
        Self { child, socket, log }
    }

    fn ready(&self) -> bool {
        fs::metadata(&self.socket).is_ok_and(|meta| meta.file_type().is_socket())
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything that it and its predecessors on this socket printed.
    pub fn log(&self) -> String {
        let bytes = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// SIGKILL, at once.
    pub fn kill9(mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    /// SIGTERM; returns how it ended.
    ///
    /// # Panics
    /// If it does not end in time.
    pub fn terminate(mut self) -> ExitStatus {
        self.signal(libc::SIGTERM);
        self.wait_exit()
    }

    /// Waits for the end of the process.
    pub fn wait_exit(&mut self) -> ExitStatus {
        match wait_until(&mut self.child, Instant::now() + PATIENCE) {
            Some(status) => status,
            None => panic!("the daemon did not end\n{}", self.log()),
        }
    }

    /// Ends cleanly, as a service manager ends it.
    pub fn stop(self) {
        let log = self.log.clone();
        let status = self.terminate();
        let text = fs::read_to_string(log).unwrap_or_default();
        assert!(status.success(), "clean stop: {status}\n{text}");
    }

    /// Sends any signal.
    pub fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.child.id()).expect("pid");
        // SAFETY: the child was not waited for yet, so the number is still its own.
        let sent = unsafe { libc::kill(pid, signal) };
        assert_eq!(sent, 0, "kill({pid}, {signal})");
    }

    /// How the process ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("wait")
    }

    /// True while the process runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_none()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
        if std::thread::panicking() {
            println!("--- daemon log ---\n{}", self.log());
        }
    }
}

/// An image and the daemon that serves it.
#[derive(Debug)]
pub struct Rig {
    /// The running daemon; replaced by a restart.
    pub daemon: Option<Daemon>,
    /// The image.
    pub image: Image,
    options: Vec<String>,
}

impl Rig {
    /// Creates an image and serves it.
    pub fn new(create: &[&str], serve: &[&str]) -> Self {
        let image = Image::create(create);
        let daemon = Daemon::serve(&image, serve);
        Self {
            daemon: Some(daemon),
            image,
            options: serve.iter().map(ToString::to_string).collect(),
        }
    }

    /// Where the daemon listens.
    pub fn socket(&self) -> PathBuf {
        self.daemon.as_ref().expect("running").socket().to_owned()
    }

    /// What the daemon and its predecessors printed.
    pub fn log(&self) -> String {
        self.daemon.as_ref().expect("running").log()
    }

    /// Starts the daemon again with its old options after it was ended by other means.
    pub fn start(&mut self) {
        let options: Vec<&str> = self.options.iter().map(String::as_str).collect();
        self.daemon = Some(Daemon::serve(&self.image, &options));
    }

    /// Ends the daemon with SIGTERM, checks that it ended well, and starts it again.
    pub fn restart(&mut self) {
        self.daemon.take().expect("running").stop();
        self.start();
    }

    /// Ends the daemon with SIGKILL and starts it again.
    pub fn crash(&mut self) {
        self.daemon.take().expect("running").kill9();
        self.start();
    }

    /// Starts the daemon with other options after a clean stop.
    pub fn restart_with(&mut self, options: &[&str]) {
        self.options = options.iter().map(ToString::to_string).collect();
        self.restart();
    }
}
