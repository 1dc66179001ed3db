//! The whole disk above the in-memory medium: order, durability, failure, erasure.
#![expect(
    clippy::cast_possible_truncation,
    reason = "patterns are made of the low bits of positions"
)]

mod again;
mod cuts;
mod races;
mod tagged;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::*;
use crate::crypt::Cipher;
use crate::format::image::{create, unlock, write_header};
use crate::format::{Argon2Cost, BootId, CreateSpec, NewProtector, Protector};
use crate::geometry::{GeometrySpec, Sector};
use crate::keyslot::MIN_SLOTS;
use crate::request::{Command, MemoryFault, Outcome, Span, Status, ZoneAction};
use crate::secret::{Credential, VolumeKey};
use crate::store::Store;
use crate::store::mem::{Fault, Kind, MemMedium};
use crate::zone::{Intent, ZoneState};

const BLOCK: u64 = 4096;
const ZONE: u64 = 256 << 10;
const CAPACITY: u64 = 192 << 10;
/// Zone 0 is conventional.
const CONVENTIONAL: u32 = 1;

#[derive(Clone, Debug)]
struct Memory {
    name: u32,
    bytes: Rc<RefCell<Vec<u8>>>,
    noted: Arc<Mutex<Noted>>,
}

/// What is noted of an operation where it outlives the daemon.
#[derive(Clone, Copy, Debug, Default)]
struct Noted {
    intent: Option<Intent>,
    spoiled: bool,
}

/// All that is noted.
#[derive(Debug, Default)]
struct Notes(Mutex<Vec<Arc<Mutex<Noted>>>>);

impl Keeper for Notes {
    fn spoil(&self, undone: &mut dyn FnMut(&Intent) -> bool) {
        let notes = self.0.lock().clone();
        for note in notes {
            let Noted { intent, spoiled } = *note.lock();
            if !spoiled && intent.is_some_and(|intent| undone(&intent)) {
                note.lock().spoiled = true;
            }
        }
    }
}

impl Memory {
    fn new(name: u32, bytes: Vec<u8>) -> Self {
        Self {
            name,
            bytes: Rc::new(RefCell::new(bytes)),
            noted: Arc::default(),
        }
    }
}

impl Payload for Memory {
    fn gather(&self, offset: u64, buf: &mut [u8]) -> Result<(), MemoryFault> {
        let at = usize::try_from(offset).unwrap();
        let bytes = self.bytes.borrow();
        buf.copy_from_slice(bytes.get(at..at + buf.len()).ok_or(MemoryFault)?);
        Ok(())
    }

    fn scatter(&self, offset: u64, data: &[u8]) -> Result<(), MemoryFault> {
        let at = usize::try_from(offset).unwrap();
        let mut bytes = self.bytes.borrow_mut();
        let to = bytes.get_mut(at..at + data.len()).ok_or(MemoryFault)?;
        to.copy_from_slice(data);
        Ok(())
    }

    fn intend(&self, intent: Intent) {
        *self.noted.lock() = Noted {
            intent: Some(intent),
            spoiled: false,
        };
    }

    fn is_disowned(&self) -> bool {
        self.noted.lock().spoiled
    }

    fn disown(&self) {
        self.noted.lock().spoiled = true;
    }
}

fn spec(model: crate::geometry::Model) -> GeometrySpec {
    GeometrySpec {
        model,
        block_size: BLOCK,
        disk_size: 8 * ZONE,
        zone_size: ZONE,
        zone_capacity: CAPACITY,
        conventional: CONVENTIONAL,
        max_open: 3,
        max_active: 5,
        max_append: 64 << 10,
    }
}

fn credential() -> Credential {
    Credential::read_key(&[7; 64][..], "test").unwrap()
}

fn image(model: crate::geometry::Model) -> MemMedium {
    image_of(spec(model), Cipher::Aes256Xts)
}

fn image_of(spec: GeometrySpec, cipher: Cipher) -> MemMedium {
    let geometry = spec.validate().unwrap();
    let layout = Layout::new(&geometry, cipher.tag_slot_bytes()).unwrap();
    let medium = MemMedium::new(layout.image_len());
    format(&medium, geometry, cipher);
    medium
}

fn format(medium: &impl Medium, geometry: Geometry, cipher: Cipher) {
    let (uuid, volume_key) = (Uuid::new_v4(), VolumeKey::random().unwrap());
    let new = NewProtector {
        credential: &credential(),
        cost: Argon2Cost::default(),
        label: "",
        created: 0,
    };
    let protector = Protector::seal(&volume_key, &uuid, 0, &new).unwrap();
    let spec = CreateSpec {
        geometry: &geometry,
        cipher,
        uuid,
        created: 0,
        volume_key: &volume_key,
        protector: &protector,
    };
    create(medium, &spec).unwrap();
}

/// A disk with one or more channels, driven by hand.
struct Disk {
    medium: MemMedium,
    channels: Vec<Channel<MemMedium, Memory>>,
    notes: Arc<Notes>,
    next: u32,
    done: Vec<Finished<Memory>>,
}

impl Disk {
    fn new() -> Self {
        Self::open(image(crate::geometry::Model::HostManaged))
    }

    fn plain() -> Self {
        Self::open(image(crate::geometry::Model::Plain))
    }

    fn open(medium: MemMedium) -> Self {
        Self::open_with(medium, Options::default())
    }

    fn open_with(medium: MemMedium, options: Options) -> Self {
        let unlocked = unlock(&medium, &credential()).unwrap();
        let options = Options {
            queues: 2,
            keyslots: MIN_SLOTS,
            ..options
        };
        let volume = Arc::new(Volume::open(medium.clone(), unlocked, options).unwrap());
        let channels = (0..2).map(|queue| channel(&volume, queue, 64).unwrap());
        let notes = Arc::default();
        volume.expect(&notes, volume.identity().epoch);
        Self {
            channels: channels.collect(),
            medium,
            notes,
            next: 0,
            done: Vec::new(),
        }
    }

    fn volume(&self) -> &Arc<Volume<MemMedium>> {
        self.channels[0].volume()
    }

    /// Stops everything as a dead process would.
    fn killed(self) -> MemMedium {
        let medium = self.medium.control().kill();
        self.medium.control().hold(&[]);
        self.medium.control().release_all();
        medium
    }

    fn start(&mut self, queue: usize, command: Command, data: Vec<u8>) -> Memory {
        let memory = Memory::new(self.next, data);
        self.next += 1;
        self.notes.0.lock().push(Arc::clone(&memory.noted));
        self.channels[queue].start(command, memory.clone());
        memory
    }

    fn poll(&mut self) {
        for channel in &mut self.channels {
            channel.poll(&mut self.done);
        }
    }

    /// How `memory`'s operation ended, if it did.
    fn outcome(&mut self, memory: &Memory) -> Option<Outcome> {
        self.poll();
        let found = |done: &Finished<Memory>| done.payload.name == memory.name;
        let position = self.done.iter().position(found)?;
        Some(self.done.swap_remove(position).outcome)
    }

    fn finish(&mut self, memory: &Memory) -> Outcome {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some(outcome) = self.outcome(memory) {
                return outcome;
            }
            assert!(Instant::now() < deadline, "an operation does not end");
            self.channels[0].wait(Duration::from_millis(1));
        }
    }

    fn run(&mut self, command: Command, data: Vec<u8>) -> (Outcome, Vec<u8>) {
        let memory = self.start(0, command, data);
        let outcome = self.finish(&memory);
        let bytes = memory.bytes.borrow().clone();
        (outcome, bytes)
    }

    fn append(&mut self, zone: u32, data: &[u8]) -> Sector {
        let command = Command::Append(ZoneIndex(zone), data.len() as u64);
        match self.run(command, data.to_vec()).0 {
            Outcome::Appended(sector) => sector,
            other => panic!("append to {zone}: {other:?}"),
        }
    }

    fn read(&mut self, sector: u64, len: u64) -> Vec<u8> {
        let span = Span {
            sector: Sector(sector),
            len,
        };
        let (outcome, bytes) = self.run(Command::Read(span), noise(len));
        assert_eq!(outcome, Outcome::Done(Status::Ok, len));
        bytes
    }

    fn read_zone(&mut self, zone: u32) -> Vec<u8> {
        self.read(u64::from(zone) * ZONE / 512, ZONE)
    }

    fn status(&mut self, command: Command) -> Status {
        let len = match command {
            Command::Read(span) | Command::Write(span) => span.len,
            Command::Append(_, len) => len,
            _ => 0,
        };
        match self.run(command, noise(len)).0 {
            Outcome::Done(status, _) => status,
            Outcome::Appended(_) => Status::Ok,
        }
    }

    fn zone(&mut self, action: ZoneAction, zone: u32) -> Status {
        self.status(Command::Zone(action, ZoneIndex(zone)))
    }

    fn flush(&mut self) {
        assert_eq!(self.status(Command::Flush), Status::Ok);
    }

    fn state(&self, zone: u32) -> ZoneState {
        self.record(zone).state
    }

    fn record(&self, zone: u32) -> crate::zone::ZoneRecord {
        self.volume().table.record(ZoneIndex(zone)).unwrap()
    }
}

fn noise(len: u64) -> Vec<u8> {
    vec![0xee; usize::try_from(len).unwrap()]
}

/// Blocks that tell which they are.
fn blocks(stamp: u8, count: usize) -> Vec<u8> {
    (0..count * 4096).map(|i| stamp ^ (i / 256) as u8).collect()
}

fn span(sector: u64, len: u64) -> Span {
    Span {
        sector: Sector(sector),
        len,
    }
}

const APPENDED_1: u64 = ZONE / 512;

#[test]
fn what_is_written_reads_back_and_is_ciphertext_on_the_medium() {
    let mut disk = Disk::new();
    let data = blocks(1, 5);
    assert_eq!(disk.append(1, &data), Sector(APPENDED_1));
    let zone = disk.read_zone(1);
    assert_eq!(zone[..data.len()], data);
    assert!(zone[data.len()..].iter().all(|&byte| byte == 0));
    let offset = disk.volume().layout.data_offset(ZoneIndex(1));
    let stored = disk.medium.control().peek(offset, data.len());
    assert!(stored.chunks(16).zip(data.chunks(16)).all(|(a, b)| a != b));
}

#[test]
fn reads_past_the_write_pointer_do_not_touch_the_medium() {
    let mut disk = Disk::new();
    let before = disk.medium.control().counts();
    assert!(disk.read_zone(3).iter().all(|&byte| byte == 0));
    let tail = disk.read(3 * ZONE / 512 + CAPACITY / 512, ZONE - CAPACITY);
    assert!(tail.iter().all(|&byte| byte == 0));
    assert_eq!(disk.medium.control().counts(), before);
}

#[test]
fn acknowledgements_of_a_zone_come_in_write_pointer_order_over_both_queues() {
    let mut disk = Disk::new();
    let control = disk.medium.control();
    control.hold(&[Kind::Write]);
    let appends: Vec<Memory> = (0..6)
        .map(|i| {
            let command = Command::Append(ZoneIndex(1), BLOCK);
            let memory = disk.start(i % 2, command, blocks(i as u8, 1));
            // A batch of its own each, or neighbours would be one write.
            disk.poll();
            memory
        })
        .collect();
    let held = control.held();
    assert_eq!(held.len(), 6);
    for op in held.iter().skip(1).rev() {
        assert!(control.release(op.id));
        disk.poll();
        assert!(disk.done.is_empty(), "the first is not written yet");
    }
    control.release_all();
    for (i, memory) in appends.iter().enumerate() {
        let sector = Sector(APPENDED_1 + i as u64 * BLOCK / 512);
        assert_eq!(disk.finish(memory), Outcome::Appended(sector));
    }
}

#[test]
fn a_failed_write_fails_the_later_ones_and_the_pointer_is_where_it_began() {
    let mut disk = Disk::new();
    disk.append(1, &blocks(0, 2));
    let control = disk.medium.control();
    control.hold(&[Kind::Write]);
    let appends: Vec<Memory> = (1..4)
        .map(|i| {
            let command = Command::Append(ZoneIndex(1), BLOCK);
            let memory = disk.start(0, command, blocks(i, 1));
            disk.poll();
            memory
        })
        .collect();
    let held = control.held();
    control.release(held[0].id);
    control.release_failing(held[1].id, libc::EIO);
    control.release(held[2].id);
    control.hold(&[]);
    let ends: Vec<Outcome> = appends.iter().map(|memory| disk.finish(memory)).collect();
    let failed = Outcome::Done(Status::IoError, 0);
    let third = Sector(APPENDED_1 + 2 * BLOCK / 512);
    assert_eq!(ends, [Outcome::Appended(third), failed, failed]);
    assert_eq!(disk.append(1, &blocks(9, 1)).0, third.0 + BLOCK / 512);
    let zone = disk.read_zone(1);
    assert_eq!(zone[2 * 4096..3 * 4096], blocks(1, 1));
    assert_eq!(zone[3 * 4096..4 * 4096], blocks(9, 1));
    assert!(zone[4 * 4096..].iter().all(|&byte| byte == 0));
}

#[test]
fn neighbouring_appends_of_a_batch_are_one_write_and_fail_as_one() {
    let mut disk = Disk::new();
    let control = disk.medium.control();
    control.hold(&[Kind::Write]);
    let append = |disk: &mut Disk, zone, stamp: u8, count: u8| {
        let command = Command::Append(ZoneIndex(zone), u64::from(count) * BLOCK);
        disk.start(0, command, blocks(stamp, count.into()))
    };
    let one: Vec<Memory> = (1..4).map(|i| append(&mut disk, 1, i, i)).collect();
    let other: Vec<Memory> = (4..6).map(|i| append(&mut disk, 2, i, 1)).collect();
    disk.poll();
    let mut lengths: Vec<u64> = control.held().iter().map(|op| op.len).collect();
    lengths.sort_unstable();
    assert_eq!(lengths, [2 * BLOCK, 6 * BLOCK]);
    for op in control.held() {
        match op.len == 2 * BLOCK {
            true => control.release_failing(op.id, libc::EIO),
            false => control.release(op.id),
        };
    }
    control.hold(&[]);
    let ends: Vec<Outcome> = one.iter().map(|memory| disk.finish(memory)).collect();
    let sectors = [0, 1, 3].map(|at| Outcome::Appended(Sector(APPENDED_1 + at * BLOCK / 512)));
    assert_eq!(ends, sectors);
    for memory in &other {
        assert_eq!(disk.finish(memory), Outcome::Done(Status::IoError, 0));
    }
    let zone = disk.read_zone(1);
    assert_eq!(zone[..4096], blocks(1, 1));
    assert_eq!(zone[4096..3 * 4096], blocks(2, 2));
    assert_eq!(zone[3 * 4096..6 * 4096], blocks(3, 3));
    assert!(disk.read_zone(2).iter().all(|&byte| byte == 0));
}

#[test]
fn what_was_acknowledged_survives_a_kill_without_a_flush() {
    let mut disk = Disk::new();
    let data = blocks(3, 7);
    disk.append(2, &data);
    assert_eq!(disk.zone(ZoneAction::Open, 4), Status::Ok);
    let states: Vec<ZoneState> = (0..8).map(|zone| disk.state(zone)).collect();
    let mut disk = Disk::open(disk.killed());
    assert_eq!(disk.read_zone(2)[..data.len()], data);
    let after: Vec<ZoneState> = (0..8).map(|zone| disk.state(zone)).collect();
    assert_eq!(after, states);
    assert_eq!(disk.append(2, &blocks(1, 1)).0, 2 * APPENDED_1 + 56);
}

#[test]
fn what_a_flush_covers_survives_any_power_cut() {
    let mut disk = Disk::new();
    let flushed = blocks(3, 7);
    disk.append(2, &flushed);
    disk.flush();
    disk.append(2, &blocks(4, 3));
    disk.append(3, &blocks(5, 1));
    let control = disk.medium.control();
    for seed in 0..200 {
        let medium = control.crash(seed);
        let mut disk = Disk::open(forget_boot(medium));
        let record = disk.record(2);
        assert_eq!(record.written.0, 7, "seed {seed}");
        assert_eq!(disk.read_zone(2)[..flushed.len()], flushed, "seed {seed}");
        assert_eq!(disk.state(3), ZoneState::Empty, "seed {seed}");
    }
}

/// Makes an image look as if another boot had left it, as a power cut does.
fn forget_boot(medium: MemMedium) -> MemMedium {
    let mut unlocked = unlock(&medium, &credential()).unwrap();
    let key = unlocked.header_key().unwrap();
    for _ in 0..2 {
        unlocked.header.boot_id = BootId([1; 16]);
        write_header(&medium, &key, &mut unlocked.header).unwrap();
    }
    medium
}

#[test]
fn a_reset_leaves_the_old_salt_nowhere_and_the_old_data_unreadable() {
    let mut disk = Disk::new();
    let data = blocks(1, 4);
    disk.append(1, &data);
    disk.flush();
    let (old, layout) = (disk.record(1), disk.volume().layout);
    let control = disk.medium.control();
    let extent = layout.data_offset(ZoneIndex(1));
    let stored = control.peek(extent, data.len());
    assert_eq!(disk.zone(ZoneAction::Reset, 1), Status::Ok);
    assert!(control.peek(extent, data.len()).iter().all(|&b| b == 0));
    for seed in 0..50 {
        let medium = control.crash(seed);
        let len = usize::try_from(layout.image_len()).unwrap();
        let image = medium.control().peek(0, len);
        let salt = old.salt.0;
        assert!(!image.windows(salt.len()).any(|window| window == salt));
        medium.control().overwrite(extent, &stored);
        let mut disk = Disk::open(medium);
        assert_eq!(disk.record(1).generation.0, 1);
        assert!(disk.read_zone(1).iter().all(|&byte| byte == 0));
    }
    assert_eq!(disk.append(1, &data), Sector(APPENDED_1));
    assert_ne!(control.peek(extent, data.len()), stored, "another key");
}

#[test]
fn a_reset_that_was_cut_off_leaves_the_old_zone_or_the_empty_one() {
    for step in 1..=3 {
        let mut disk = Disk::new();
        let data = blocks(1, 4);
        disk.append(1, &data);
        disk.flush();
        let control = disk.medium.control();
        control.hold(&[Kind::Sync, Kind::Deallocate]);
        let reset = disk.start(
            0,
            Command::Zone(ZoneAction::Reset, ZoneIndex(1)),
            Vec::new(),
        );
        for _ in 1..step {
            disk.poll();
            control.release_all();
        }
        disk.poll();
        assert_eq!(disk.outcome(&reset), None, "step {step} is under way");
        for seed in 0..30 {
            let mut after = Disk::open(forget_boot(control.crash(seed)));
            let found = after.read_zone(1);
            let empty = found.iter().all(|&byte| byte == 0);
            assert!(
                empty || found[..data.len()] == data,
                "step {step} seed {seed}"
            );
            assert!(step == 1 || empty, "the reset was durable: step {step}");
        }
        control.hold(&[]);
        control.release_all();
    }
}

#[test]
fn a_write_waits_for_a_reset_and_lands_in_the_new_generation() {
    let mut disk = Disk::new();
    disk.append(1, &blocks(1, 4));
    let control = disk.medium.control();
    control.hold(&[Kind::Sync]);
    let reset = disk.start(0, Command::Zone(ZoneAction::Reset, ZoneIndex(1)), vec![]);
    let append = disk.start(1, Command::Append(ZoneIndex(1), BLOCK), blocks(2, 1));
    assert_eq!(disk.outcome(&append), None);
    control.hold(&[]);
    control.release_all();
    assert_eq!(disk.finish(&reset), Outcome::Done(Status::Ok, 0));
    assert_eq!(disk.finish(&append), Outcome::Appended(Sector(APPENDED_1)));
    assert_eq!(disk.read_zone(1)[..4096], blocks(2, 1));
}

#[test]
fn a_read_that_a_reset_overtakes_sees_zeroes_not_noise() {
    let mut disk = Disk::new();
    disk.append(1, &blocks(1, 4));
    let control = disk.medium.control();
    control.hold(&[Kind::Read]);
    let read = disk.start(0, Command::Read(span(APPENDED_1, BLOCK)), noise(BLOCK));
    disk.poll();
    assert_eq!(disk.zone(ZoneAction::Reset, 1), Status::Ok);
    control.release_all();
    assert_eq!(disk.finish(&read), Outcome::Done(Status::Ok, BLOCK));
    assert!(read.bytes.borrow().iter().all(|&byte| byte == 0));
}

#[test]
fn reset_all_empties_every_sequential_zone_and_no_other() {
    let mut disk = Disk::new();
    let kept = blocks(8, 1);
    assert_eq!(
        disk.run(Command::Write(span(0, BLOCK)), kept.clone()).0,
        Outcome::Done(Status::Ok, 0)
    );
    for zone in 1..4 {
        disk.append(zone, &blocks(1, 2));
    }
    assert_eq!(disk.zone(ZoneAction::Finish, 5), Status::Ok);
    assert_eq!(disk.status(Command::ResetAll), Status::Ok);
    assert!((1..8).all(|zone| disk.state(zone) == ZoneState::Empty));
    assert_eq!(disk.read(0, BLOCK), kept);
    assert_eq!(disk.status(Command::ResetAll), Status::Ok);
}

#[test]
fn a_finished_zone_is_durable_and_its_rest_is_zeroes() {
    let mut disk = Disk::new();
    let data = blocks(1, 2);
    disk.append(1, &data);
    assert_eq!(disk.zone(ZoneAction::Finish, 1), Status::Ok);
    for seed in 0..50 {
        let medium = forget_boot(disk.medium.control().crash(seed));
        let mut disk = Disk::open(medium);
        assert_eq!(disk.state(1), ZoneState::Full);
        let zone = disk.read_zone(1);
        assert_eq!(zone[..data.len()], data);
        assert!(zone[data.len()..].iter().all(|&byte| byte == 0));
    }
}

#[test]
fn without_the_write_cache_a_write_is_durable_before_it_is_acknowledged() {
    let mut disk = Disk::new();
    disk.volume().set_write_cache(false);
    let control = disk.medium.control();
    control.hold(&[Kind::Sync]);
    let append = disk.start(0, Command::Append(ZoneIndex(1), BLOCK), blocks(1, 1));
    let write = disk.start(1, Command::Write(span(0, BLOCK)), blocks(2, 1));
    for memory in [&append, &write] {
        assert_eq!(disk.outcome(memory), None);
    }
    control.hold(&[]);
    control.release_all();
    disk.finish(&append);
    disk.finish(&write);
    for seed in 0..50 {
        let mut disk = Disk::open(forget_boot(control.crash(seed)));
        assert_eq!(disk.read_zone(1)[..4096], blocks(1, 1));
        assert_eq!(disk.read(0, BLOCK), blocks(2, 1));
    }
}

#[test]
fn after_a_failed_sync_the_zone_is_read_only_and_reads_go_on() {
    let mut disk = Disk::new();
    let data = blocks(1, 2);
    disk.append(1, &data);
    disk.flush();
    disk.append(2, &data);
    disk.medium
        .control()
        .fail_nth(Kind::Sync, 1, Fault::Fail(libc::EIO));
    assert_eq!(disk.status(Command::Flush), Status::IoError);
    assert_eq!(disk.state(2), ZoneState::ReadOnly);
    assert_eq!(
        disk.status(Command::Append(ZoneIndex(2), BLOCK)),
        Status::ZoneInvalidCommand
    );
    assert_eq!(disk.read_zone(2)[..data.len()], data);
    disk.append(1, &data);
    assert_eq!(
        disk.status(Command::Write(span(0, BLOCK))),
        Status::IoError,
        "nobody knows which writes in place are on the medium"
    );
}

#[test]
fn a_record_that_cannot_be_written_fails_the_write_and_the_zone() {
    let mut disk = Disk::new();
    disk.medium
        .control()
        .fail_nth(Kind::MetadataWrite, 1, Fault::Fail(libc::ENOSPC));
    assert_eq!(
        disk.status(Command::Append(ZoneIndex(1), BLOCK)),
        Status::IoError
    );
    assert_eq!(disk.state(1), ZoneState::ReadOnly);
    disk.append(2, &blocks(1, 1));
}

#[test]
fn a_large_request_goes_through_in_pieces() {
    let mut disk = Disk::plain();
    let len = 7 * ZONE;
    let data: Vec<u8> = (0..len)
        .map(|i| (i / 512) as u8 ^ (i / 70_000) as u8)
        .collect();
    let write = Command::Write(span(BLOCK / 512, len));
    assert_eq!(
        disk.run(write, data.clone()).0,
        Outcome::Done(Status::Ok, 0)
    );
    assert_eq!(disk.read(BLOCK / 512, len), data);
}

#[test]
fn zeroes_written_are_encrypted_and_a_discard_gives_space_back() {
    let mut disk = Disk::plain();
    disk.run(Command::Write(span(0, 2 * ZONE)), noise(2 * ZONE));
    let zeroed = Command::WriteZeroes(span(8, 2 * ZONE - 2 * BLOCK));
    assert_eq!(disk.status(zeroed), Status::Ok);
    let found = disk.read(0, 2 * ZONE);
    assert!(found[..4096].iter().all(|&byte| byte == 0xee));
    assert!(found[4096..found.len() - 4096].iter().all(|&b| b == 0));
    let offset = disk.volume().layout.data_offset(ZoneIndex(0));
    let stored = || disk.medium.control().peek(offset + BLOCK, 4096);
    assert!(stored().iter().any(|&byte| byte != 0));
    let medium = disk.medium.clone();
    assert_eq!(disk.status(Command::Discard(span(8, BLOCK))), Status::Ok);
    let stored = medium.control().peek(offset + BLOCK, 4096);
    assert!(stored.iter().all(|&byte| byte == 0));
}

#[test]
fn a_clean_stop_closes_zones_and_loses_nothing() {
    let mut disk = Disk::new();
    let data = blocks(6, 3);
    disk.append(1, &data);
    disk.zone(ZoneAction::Open, 2);
    disk.volume().close().unwrap();
    for seed in 0..20 {
        let mut disk = Disk::open(disk.medium.control().crash(seed));
        assert_eq!(disk.state(1), ZoneState::Closed);
        assert_eq!(disk.state(2), ZoneState::Empty);
        assert_eq!(disk.read_zone(1)[..data.len()], data);
    }
}

#[test]
fn two_openings_write_under_different_epochs() {
    let disk = Disk::new();
    let first = disk.volume().header.lock().header.epoch;
    let disk = Disk::open(disk.killed());
    assert_ne!(disk.volume().header.lock().header.epoch, first);
}

#[test]
fn a_dropped_channel_lets_its_writes_come_to_rest() {
    let mut disk = Disk::new();
    disk.medium.control().reorder(Some(1));
    for i in 0..8 {
        disk.start(1, Command::Append(ZoneIndex(1), BLOCK), blocks(i, 1));
    }
    disk.channels.truncate(1);
    assert_eq!(disk.record(1).written.0, 8);
    assert_eq!(disk.channels[0].store.in_flight(), 0);
    disk.append(1, &blocks(1, 1));
}
