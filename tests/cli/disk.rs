//! A disk with content, and ways to spoil it: the library does what a guest would.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use zonevault::format::{Layout, image};
use zonevault::geometry::ZoneIndex;
use zonevault::request::{Command, MemoryFault, Outcome, Status};
use zonevault::secret::Credential;
use zonevault::store::{Access, Cache, FileMedium};
use zonevault::volume::{Channel, Options, Payload, Volume, channel};

use super::bench::open_image;

/// Bytes of a block of every disk here.
pub(crate) const BLOCK: u64 = 4096;
/// How long an operation may take on a busy machine.
const PATIENCE: Duration = Duration::from_millis(100);

/// What a guest writes: every byte is this one.
#[derive(Debug)]
struct Filled(u8);

impl Payload for Filled {
    fn gather(&self, _: u64, buf: &mut [u8]) -> Result<(), MemoryFault> {
        buf.fill(self.0);
        Ok(())
    }

    fn scatter(&self, _: u64, _: &[u8]) -> Result<(), MemoryFault> {
        Ok(())
    }
}

/// A disk being served, as far as its queue.
pub(crate) struct Session {
    volume: Arc<Volume<FileMedium>>,
    channel: Channel<FileMedium, Filled>,
}

impl Session {
    /// Opens the disk at `path` with key file `key`.
    pub(crate) fn open(path: &Path, key: &Path) -> Self {
        let credential = Credential::from_key_file(key).unwrap();
        let mut medium = open_image(path, Access::ReadWrite);
        let unlocked = image::unlock(&medium, &credential).unwrap();
        medium.enable_data(Cache::Direct, BLOCK).unwrap();
        let volume = Arc::new(Volume::open(medium, unlocked, Options::default()).unwrap());
        let channel = channel(&volume, 0, 16).unwrap();
        Self { volume, channel }
    }

    fn run(&mut self, command: Command) {
        self.channel.start(command, Filled(7));
        let mut finished = Vec::new();
        while finished.is_empty() {
            self.channel.poll(&mut finished);
            if finished.is_empty() {
                self.channel.wait(PATIENCE);
            }
        }
        let outcome = finished.remove(0).outcome;
        let failed = matches!(outcome, Outcome::Done(status, _) if status != Status::Ok);
        assert!(!failed, "{command:?}: {outcome:?}");
    }

    /// Appends `blocks` blocks to `zone`.
    pub(crate) fn append(&mut self, zone: u32, blocks: u64) {
        for _ in 0..blocks {
            self.run(Command::Append(ZoneIndex(zone), BLOCK));
        }
    }

    /// What was written is durable.
    pub(crate) fn flush(&mut self) {
        self.run(Command::Flush);
    }

    /// Ends in order. (Dropped instead, the disk is as a killed daemon leaves it.)
    pub(crate) fn close(self) {
        self.volume.close().unwrap();
    }
}

/// Where everything lies on the disk at `path`.
pub(crate) fn layout(path: &Path, key: &Path) -> Layout {
    let credential = Credential::from_key_file(key).unwrap();
    let medium = open_image(path, Access::ReadOnly);
    image::unlock(&medium, &credential).unwrap().layout
}

/// Changes a bit of a file.
pub(crate) fn flip(path: &Path, offset: u64) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    byte[0] ^= 1;
    file.write_all_at(&byte, offset).unwrap();
}

/// Copies `len` bytes at `offset` from one file to another.
pub(crate) fn put_back(from: &[u8], path: &Path, offset: u64, len: u64) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    let at = usize::try_from(offset).unwrap();
    let len = usize::try_from(len).unwrap();
    file.write_all_at(&from[at..at + len], offset).unwrap();
}
