//! A directory to run commands in, and what they did there.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::thread;

use serde_json::Value;
use tempfile::TempDir;
use zonevault::store::{Access, FileMedium};

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_zonevault");

/// A small disk: 16 zones of 64 KiB.
pub(crate) const SMALL: [&str; 4] = ["--size", "1M", "--zone-size", "64K"];
/// The cheapest passphrase that `create` takes.
pub(crate) const CHEAP: [&str; 4] = ["--kdf-memory", "8M", "--kdf-time", "1"];

/// A directory to work in, with two key files.
pub(crate) struct Bench {
    pub(crate) dir: TempDir,
}

/// What a command did.
pub(crate) struct Done {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Held while a program is started. Between fork and exec a child has a copy of every descriptor of
/// this process, and so the lock of an image that another test has just let go of: who takes a lock
/// takes this first.
static STARTING: Mutex<()> = Mutex::new(());

/// Starts a program with pipes for its input and outputs.
pub(crate) fn start(command: &mut Command) -> Child {
    let starting = STARTING.lock();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It has let go of them when it has a command line of its own; `spawn` returns a little before.
    let line = format!("/proc/{}/cmdline", child.id());
    let in_exec = || fs::read(&line).is_ok_and(|line| line.is_empty());
    while in_exec() && child.try_wait().unwrap().is_none() {
        thread::yield_now();
    }
    drop(starting);
    child
}

/// Opens an image in this process.
pub(crate) fn open_image(path: &Path, access: Access) -> FileMedium {
    let starting = STARTING.lock();
    let medium = FileMedium::open(path, access).unwrap();
    drop(starting);
    medium
}

impl Bench {
    pub(crate) fn new() -> Self {
        let bench = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        bench.write_key("key", &[7; 64]);
        bench.write_key("other", &[8; 32]);
        bench
    }

    /// A bench with a small disk `disk.img` that `key` opens.
    pub(crate) fn with_disk() -> Self {
        let bench = Self::new();
        let mut args = vec!["create", "disk.img", "--key-file", "key"];
        args.extend(SMALL);
        bench.succeed(&args);
        bench
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write_key(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
        fs::set_permissions(self.path(name), Permissions::from_mode(0o600)).unwrap();
    }

    pub(crate) fn run_with(&self, args: &[impl AsRef<OsStr>], stdin: &[u8]) -> Done {
        let mut command = Command::new(BINARY);
        command
            .args(args)
            .current_dir(self.dir.path())
            .env_remove("RUST_LOG");
        let mut child = start(&mut command);
        // A command that does not read its input closes the pipe: that is its right.
        let _ = child.stdin.take().unwrap().write_all(stdin);
        Done::of(child.wait_with_output().unwrap())
    }

    pub(crate) fn run(&self, args: &[&str]) -> Done {
        self.run_with(args, b"")
    }

    pub(crate) fn succeed(&self, args: &[&str]) -> Done {
        let done = self.run(args);
        assert_eq!(done.code, 0, "{args:?}: {}", done.err);
        assert_eq!(done.err, "", "{args:?}");
        done
    }

    pub(crate) fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.succeed(args).out).unwrap()
    }

    /// Every file's content, by name.
    pub(crate) fn snapshot(&self) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
        fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| {
                let path = entry.unwrap().path();
                let content = fs::read(&path).ok();
                (path, content)
            })
            .collect()
    }

    /// Runs a command that must be refused with `code`, in one line that contains `words`, and
    /// must leave everything as it was.
    pub(crate) fn refuse(&self, args: &[&str], code: i32, words: &str) {
        self.refuse_with(args, b"", code, words);
    }

    pub(crate) fn refuse_with(&self, args: &[&str], stdin: &[u8], code: i32, words: &str) {
        let before = self.snapshot();
        let done = self.run_with(args, stdin);
        done.assert_refused(code, words, &format!("{args:?}"));
        assert!(self.snapshot() == before, "{args:?}: files changed");
    }

    /// The same of a daemon, which may have logged before it refused.
    pub(crate) fn refuse_daemon(&self, args: &[&str], code: i32, words: &str) {
        let done = self.run(args);
        assert_eq!(done.code, code, "{args:?}: {}", done.err);
        let last = done.err.lines().last().unwrap_or_default();
        assert!(last.starts_with("zonevault: "), "{}", done.err);
        assert!(last.contains(words), "{}", done.err);
    }

    pub(crate) fn create(&self, args: &[&str], extra: &[&str]) -> Vec<String> {
        ["create", "new.img", "--key-file", "key"]
            .iter()
            .chain(args)
            .chain(extra)
            .map(|&word| word.to_owned())
            .collect()
    }

    /// `create` with these options must be refused as a usage error.
    pub(crate) fn refuse_create(&self, options: &[&str], words: &str) {
        let args = self.create(options, &[]);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.refuse(&args, 2, words);
    }
}

impl Done {
    pub(crate) fn of(output: Output) -> Self {
        Self {
            code: output.status.code().expect("killed by a signal"),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    pub(crate) fn assert_refused(&self, code: i32, words: &str, what: &str) {
        assert_eq!(self.code, code, "{what}: {}", self.err);
        assert!(self.err.starts_with("zonevault: "), "{what}: {}", self.err);
        assert_eq!(self.err.lines().count(), 1, "{what}: {}", self.err);
        assert!(self.err.contains(words), "{what}: {}", self.err);
        assert_eq!(self.out, "", "{what}");
    }
}
