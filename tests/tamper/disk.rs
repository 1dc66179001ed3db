//! A disk of the library over an image in memory, driven by hand: one operation at a time, each to its end.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;
use zonevault::crypt::Cipher;
use zonevault::format::image::{create, unlock};
use zonevault::format::{Argon2Cost, CreateSpec, Layout, NewProtector, Protector, Unlocked};
use zonevault::geometry::{Geometry, GeometrySpec, Model, Sector, ZoneIndex};
use zonevault::keyslot::MIN_SLOTS;
use zonevault::request::{Command, MemoryFault, Outcome, Span, Status, ZoneAction};
use zonevault::secret::{Credential, VolumeKey};
use zonevault::store::Medium;
use zonevault::store::mem::MemMedium;
use zonevault::volume::{Channel, Finished, Options, Payload, Volume, channel};
use zonevault::zone::{ZoneInfo, ZoneState};

/// Bytes of a zone of the guest's disk.
pub const ZONE: u64 = 64 << 10;
/// No operation of these small disks takes longer.
const PATIENCE: Duration = Duration::from_secs(30);
/// Operations of a channel at once: here it is one at a time.
const DEPTH: u16 = 16;
/// What a buffer holds before a read: nothing of it may change if the read fails.
const UNTOUCHED: u8 = 0xee;

/// The shape of a disk.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Of its data.
    pub cipher: Cipher,
    /// Bytes of a block.
    pub block: u64,
    /// Blocks that a sequential zone holds.
    pub capacity: u64,
    /// Zones of 64 KiB.
    pub zones: u32,
    /// How many of them are conventional.
    pub conventional: u32,
}

impl Shape {
    /// What the format calls it.
    pub fn geometry(self) -> Geometry {
        GeometrySpec {
            model: Model::HostManaged,
            block_size: self.block,
            disk_size: u64::from(self.zones) * ZONE,
            zone_size: ZONE,
            zone_capacity: self.capacity * self.block,
            conventional: self.conventional,
            max_open: 4,
            max_active: 8,
            max_append: self.capacity * self.block,
        }
        .validate()
        .unwrap()
    }

    /// Where everything lies.
    pub fn layout(self) -> Layout {
        Layout::new(&self.geometry(), self.cipher.tag_slot_bytes()).unwrap()
    }

    /// Bytes of a block, as the length of a slice.
    pub fn block_len(self) -> usize {
        usize::try_from(self.block).unwrap()
    }

    /// A new image: its one protector is a key file of [`credential`].
    pub fn format(self) -> MemMedium {
        self.format_as(Uuid::new_v4())
    }

    /// The same with this identity.
    pub fn format_as(self, uuid: Uuid) -> MemMedium {
        let geometry = self.geometry();
        let volume_key = VolumeKey::random().unwrap();
        let new = NewProtector {
            credential: &credential(),
            cost: Argon2Cost::default(),
            label: "first",
            created: 1_800_000_000,
        };
        let protector = Protector::seal(&volume_key, &uuid, 0, &new).unwrap();
        let medium = MemMedium::new(self.layout().image_len());
        let spec = CreateSpec {
            geometry: &geometry,
            cipher: self.cipher,
            uuid,
            created: 1_800_000_000,
            volume_key: &volume_key,
            protector: &protector,
        };
        create(&medium, &spec).unwrap();
        medium
    }
}

/// The key file of every disk here.
pub fn credential() -> Credential {
    Credential::read_key(&[7; 64][..], "key").unwrap()
}

/// The whole image as a reader of the file sees it.
pub fn bytes_of(medium: &MemMedium) -> Vec<u8> {
    let len = usize::try_from(medium.size().unwrap()).unwrap();
    medium.control().peek(0, len)
}

/// An image of these bytes.
pub fn medium_of(bytes: &[u8]) -> MemMedium {
    let medium = MemMedium::new(bytes.len() as u64);
    medium.control().overwrite(0, bytes);
    medium
}

/// The guest's memory of one operation.
#[derive(Clone, Debug)]
struct Memory(Rc<RefCell<Vec<u8>>>);

impl Payload for Memory {
    fn gather(&self, offset: u64, buf: &mut [u8]) -> Result<(), MemoryFault> {
        let at = usize::try_from(offset).unwrap();
        let bytes = self.0.borrow();
        buf.copy_from_slice(bytes.get(at..at + buf.len()).ok_or(MemoryFault)?);
        Ok(())
    }

    fn scatter(&self, offset: u64, data: &[u8]) -> Result<(), MemoryFault> {
        let at = usize::try_from(offset).unwrap();
        let mut bytes = self.0.borrow_mut();
        let to = bytes.get_mut(at..at + data.len()).ok_or(MemoryFault)?;
        to.copy_from_slice(data);
        Ok(())
    }
}

/// A disk, opened, and its only channel.
#[derive(Debug)]
pub struct Disk {
    medium: MemMedium,
    channel: Channel<MemMedium, Memory>,
    done: Vec<Finished<Memory>>,
    block: u64,
}

impl Disk {
    /// Opens it; `Err` is the one line that a user sees.
    pub fn open(medium: MemMedium, options: Options) -> Result<Self, String> {
        let unlocked = unlock(&medium, &credential()).map_err(|e| e.to_string())?;
        Self::open_unlocked(medium, unlocked, options)
    }

    /// The same, from where it is unlocked.
    pub fn open_unlocked(
        medium: MemMedium,
        unlocked: Unlocked,
        options: Options,
    ) -> Result<Self, String> {
        let options = Options {
            queues: 1,
            keyslots: MIN_SLOTS,
            ..options
        };
        let volume = Volume::open(medium.clone(), unlocked, options).map_err(|e| e.to_string())?;
        let block = volume.geometry().block_size().bytes();
        let volume = Arc::new(volume);
        Ok(Self {
            medium,
            channel: channel(&volume, 0, DEPTH).unwrap(),
            done: Vec::new(),
            block,
        })
    }

    /// What it lies on.
    pub fn medium(&self) -> &MemMedium {
        &self.medium
    }

    /// The library's disk.
    pub fn volume(&self) -> &Arc<Volume<MemMedium>> {
        self.channel.volume()
    }

    /// Runs an operation on `data`; how it ended, and what is there then.
    pub fn run(&mut self, command: Command, data: Vec<u8>) -> (Outcome, Vec<u8>) {
        let memory = Memory(Rc::new(RefCell::new(data)));
        self.channel.start(command, memory.clone());
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.channel.poll(&mut self.done);
            if let Some(finished) = self.done.pop() {
                return (finished.outcome, memory.0.take());
            }
            assert!(Instant::now() < deadline, "an operation does not end");
            self.channel.wait(Duration::from_millis(1));
        }
    }

    /// Appends whole blocks; returns the first one's number in the zone.
    pub fn append(&mut self, zone: u32, data: &[u8]) -> u64 {
        let command = Command::Append(ZoneIndex(zone), data.len() as u64);
        match self.run(command, data.to_vec()).0 {
            Outcome::Appended(sector) => (sector.0 * 512 - u64::from(zone) * ZONE) / self.block,
            other => panic!("append to zone {zone}: {other:?}"),
        }
    }

    /// Writes to a conventional zone.
    pub fn write(&mut self, zone: u32, block: u64, data: &[u8]) {
        let command = Command::Write(self.span(zone, block, data.len()));
        let (outcome, _) = self.run(command, data.to_vec());
        assert_eq!(outcome, Outcome::Done(Status::Ok, 0));
    }

    /// Reads one block. Where it fails, nothing may have reached the guest.
    pub fn block(&mut self, zone: u32, block: u64) -> Result<Vec<u8>, Status> {
        let len = usize::try_from(self.block).unwrap();
        self.read(zone, block, len)
    }

    /// Reads whole blocks, likewise.
    pub fn read(&mut self, zone: u32, block: u64, len: usize) -> Result<Vec<u8>, Status> {
        let command = Command::Read(self.span(zone, block, len));
        let before = vec![UNTOUCHED; len];
        match self.run(command, before.clone()) {
            (Outcome::Done(Status::Ok, _), bytes) => Ok(bytes),
            (Outcome::Done(status, _), bytes) => {
                assert_eq!(bytes, before, "a part of a bad read reached the guest");
                Err(status)
            }
            other => panic!("{other:?}"),
        }
    }

    /// Opens, closes, finishes or resets a zone.
    pub fn zone(&mut self, action: ZoneAction, zone: u32) {
        let (outcome, _) = self.run(Command::Zone(action, ZoneIndex(zone)), Vec::new());
        assert_eq!(outcome, Outcome::Done(Status::Ok, 0), "{action:?} {zone}");
    }

    /// Makes durable what was written.
    pub fn flush(&mut self) {
        let (outcome, _) = self.run(Command::Flush, Vec::new());
        assert_eq!(outcome, Outcome::Done(Status::Ok, 0));
    }

    /// The zone as a report shows it.
    pub fn info(&self, zone: u32) -> ZoneInfo {
        let mut found = None;
        let each = |_, info| found = Some(info);
        self.volume().report(ZoneIndex(zone), 1, each);
        found.unwrap()
    }

    /// The state of a zone.
    pub fn state(&self, zone: u32) -> ZoneState {
        self.info(zone).state
    }

    /// The write pointer, in blocks from the start of the zone; only of a zone that has one.
    pub fn write_pointer(&self, zone: u32) -> u64 {
        let info = self.info(zone);
        (info.write_pointer.0 - info.start.0) * 512 / self.block
    }

    /// Closes it in order.
    pub fn close(self) -> MemMedium {
        let (medium, volume) = (self.medium.clone(), Arc::clone(self.volume()));
        drop(self);
        volume.close().unwrap();
        medium
    }

    /// Leaves it as a killed daemon does.
    pub fn kill(self) -> MemMedium {
        self.medium.control().kill()
    }

    fn span(&self, zone: u32, block: u64, len: usize) -> Span {
        Span {
            sector: Sector((u64::from(zone) * ZONE + block * self.block) / 512),
            len: len as u64,
        }
    }
}
