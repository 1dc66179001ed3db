//! Memory that a front-end keeps for a daemon that may die: what is in flight, and what it was about to
//! change.
//!
//! # Layout
//!
//! First what the vhost-user specification lays down for split rings ("Inflight I/O tracking"), one part
//! a queue, little-endian, each part and everything behind at a multiple of 64 bytes:
//!
//! ```text
//! features 8 | version 2 | descriptors 2 | last batch head 2 | used index 2 |
//! each descriptor { in flight 1, unused 5, next 2, counter 8 }
//! ```
//!
//! then a tail of ours:
//!
//! ```text
//! magic 8 | volume 16 | epoch 8 | queues 2 | descriptors 2 | write cache off 2 | unused 26 |
//! each descriptor of each queue { counter 8, zone 8, kind 8, generation 8, start 8, count 8, check 8,
//!                                 unused 8 }
//! ```
//!
//! # Order
//!
//! Every store is a release, so what a killed daemon leaves is a prefix of what it stored. A request is
//! taken: counter, in flight. It is about to change a zone: the fields of its intent, the counter last, which
//! makes the intent that of this request. It is answered: `next` and the last batch head; when the used index
//! of the ring is out, in flight is cleared for the batch, then the used index here. A daemon that finds
//! the used indices differ knows that the last batch was seen by the guest.
//!
//! An intent that will not be carried out is spoiled, by turning its check round, before anybody else can have
//! what it names; who is to do that when, [`crate::zone::Note`]'s module says. The request then fails,
//! now or when it is brought again.
//!
//! # Trust
//!
//! A front-end can hand back anything. [`Region::adopt`] takes sizes and identity for nothing but
//! checked facts; every index read from it is checked where it is used; an intent is used only if its
//! counter and check fit. What a front-end gains by forging one is that writes of its own guest are
//! acknowledged and not done.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crc_fast::CrcAlgorithm;
use memfd::{FileSeal, MemfdOptions};
use thiserror::Error;
use vm_memory::{AtomicAccess, Bytes as _, FileOffset, MmapRegion, VolatileMemory};

use crate::geometry::{Blocks, Generation, ZoneIndex};
use crate::guard::{Guarded, TooMany, guard};
use crate::mutant::Mutant;
use crate::volume::{Identity, Keeper};
use crate::zone::{Change, Epoch, Intent};

/// Everything begins at a multiple of this.
const ALIGNMENT: u64 = 64;
/// Bytes of a queue's part before its descriptors.
const PART_HEAD: u64 = 16;
/// Bytes of a descriptor's state.
const STATE_LEN: u64 = 16;
/// Where the fields of a part stand.
const VERSION: u64 = 8;
const DESCRIPTORS: u64 = 10;
const LAST_BATCH_HEAD: u64 = 12;
const USED_INDEX: u64 = 14;
/// Where those of a descriptor's state stand.
const IN_FLIGHT: u64 = 0;
const NEXT: u64 = 6;
const COUNTER: u64 = 8;
/// The version of the standard layout.
const LAYOUT_VERSION: u16 = 1;

/// What our tail begins with: "zvflight".
const MAGIC: u64 = u64::from_le_bytes(*b"zvflight");
/// Bytes of the tail before the intents.
const TAIL_HEAD: u64 = 64;
const TAIL_VOLUME: u64 = 8;
const TAIL_EPOCH: u64 = 24;
const TAIL_QUEUES: u64 = 32;
const TAIL_DESCRIPTORS: u64 = 34;
const TAIL_WRITE_CACHE_OFF: u64 = 36;
/// Bytes of an intent.
const INTENT_LEN: u64 = 64;
/// Its fields that count, all of 8 bytes, in this order behind the counter; the check is the last.
const INTENT_FIELDS: usize = 5;

const KIND_WRITE: u64 = 1;
const KIND_RESET: u64 = 2;
const KIND_FINISH: u64 = 3;
const KIND_RESET_ALL: u64 = 4;

/// Why a region cannot be used.
#[derive(Debug, Error)]
pub enum InflightError {
    /// No queues, or none of which could hold a descriptor.
    #[error("a region for {queues} queues of {descriptors} descriptors is asked for")]
    Size {
        /// Queues asked for.
        queues: u16,
        /// Descriptors of each.
        descriptors: u16,
    },
    /// It is smaller than its queues need, or lies at an odd place.
    #[error("{len} bytes at {offset} are not a region of {needed} bytes")]
    Bounds {
        /// Where it is said to lie.
        offset: u64,
        /// Its length as said.
        len: u64,
        /// What it would have to be.
        needed: u64,
    },
    /// Not one of this program's, or for other queues.
    #[error("it is not one that this program made for these queues")]
    Foreign,
    /// One of another disk's.
    #[error("it belongs to another disk")]
    OtherDisk,
    /// The ring has more descriptors than the region was made for.
    #[error("it is for {descriptors} descriptors, and the ring has {ring}")]
    RingLarger {
        /// Descriptors of each queue in it.
        descriptors: u16,
        /// Descriptors of the ring.
        ring: u16,
    },
    /// The system has no memory for it.
    #[error("cannot be mapped: {0}")]
    System(#[from] io::Error),
    /// Too much is mapped already.
    #[error(transparent)]
    Guard(#[from] TooMany),
}

/// Where things stand in a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    queues: u16,
    descriptors: u16,
}

impl Shape {
    fn new(queues: u16, descriptors: u16) -> Result<Self, InflightError> {
        let shape = Self {
            queues,
            descriptors,
        };
        match queues == 0 || descriptors == 0 {
            true => Err(InflightError::Size {
                queues,
                descriptors,
            }),
            false => Ok(shape),
        }
    }

    fn part_len(self) -> u64 {
        (PART_HEAD + STATE_LEN * u64::from(self.descriptors)).next_multiple_of(ALIGNMENT)
    }

    fn part(self, queue: u16) -> u64 {
        self.part_len() * u64::from(queue)
    }

    fn tail(self) -> u64 {
        self.part(self.queues)
    }

    fn intents(self, queue: u16) -> u64 {
        let before = u64::from(queue) * u64::from(self.descriptors);
        self.tail() + TAIL_HEAD + before * INTENT_LEN
    }

    fn len(self) -> u64 {
        self.intents(self.queues)
    }
}

/// The mapped bytes. Offsets come from a [`Shape`] that was checked against its length, and are
/// aligned, so no access fails; one that did would read as 0.
#[derive(Debug)]
struct Bytes {
    map: MmapRegion,
    /// From before the first look: the file may shrink like any that is not ours.
    _guarded: Guarded,
}

impl Bytes {
    fn load<T: AtomicAccess + Default>(&self, at: u64) -> T {
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let value = self.map.as_volatile_slice().load(at, Ordering::Acquire);
        value.unwrap_or_default()
    }

    fn store<T: AtomicAccess>(&self, at: u64, value: T) {
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let stored = self
            .map
            .as_volatile_slice()
            .store(value, at, Ordering::Release);
        debug_assert!(stored.is_ok(), "inside of the region, and aligned");
    }

    /// Stores `new` where `old` is, and nothing where it is not.
    fn replace_u64(&self, at: u64, old: u64, new: u64) {
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let (old, new) = (old.to_le(), new.to_le());
        let slice = self.map.as_volatile_slice();
        if let Ok(place) = slice.get_atomic_ref::<AtomicU64>(at) {
            // Not there: that is what was asked for.
            let _ = place.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    fn load_u16(&self, at: u64) -> u16 {
        u16::from_le(self.load(at))
    }

    fn load_u64(&self, at: u64) -> u64 {
        u64::from_le(self.load(at))
    }

    fn store_u16(&self, at: u64, value: u16) {
        self.store(at, value.to_le());
    }

    fn store_u64(&self, at: u64, value: u64) {
        self.store(at, value.to_le());
    }
}

/// A front-end's memory of what is in flight.
#[derive(Debug)]
pub struct Region {
    bytes: Arc<Bytes>,
    shape: Shape,
    file: File,
    place: FilePlace,
    /// It had nothing in it when it was handed over.
    blank: bool,
}

/// Which bytes of which file: device, inode, offset.
type FilePlace = (u64, u64, u64);

impl Region {
    /// A new one, nothing in flight, in memory that cannot shrink. `queues` and `descriptors` of each:
    /// what the front-end asked for; who calls has seen that they are not more than the device has.
    ///
    /// # Errors
    /// [`InflightError::Size`], [`InflightError::System`].
    pub fn create(queues: u16, descriptors: u16, disk: &Identity) -> Result<Self, InflightError> {
        let shape = Shape::new(queues, descriptors)?;
        let memory = MemfdOptions::new()
            .allow_sealing(true)
            .close_on_exec(true)
            .create("inflight")
            .map_err(io::Error::other)?;
        memory.as_file().set_len(shape.len())?;
        let seals = [FileSeal::SealShrink, FileSeal::SealGrow, FileSeal::SealSeal];
        memory.add_seals(&seals).map_err(io::Error::other)?;
        let region = Self::map(memory.into_file(), 0, shape)?;
        region.initialize(disk);
        Ok(region)
    }

    /// The one that a front-end hands back: `len` bytes at `offset` of `file`.
    ///
    /// # Errors
    /// Those of [`Region::create`]; [`InflightError::Bounds`], [`InflightError::Foreign`],
    /// [`InflightError::OtherDisk`].
    pub fn adopt(
        file: File,
        (offset, len): (u64, u64),
        queues: u16,
        descriptors: u16,
        disk: &Identity,
    ) -> Result<Self, InflightError> {
        let shape = Shape::new(queues, descriptors)?;
        let needed = shape.len();
        let there = file.metadata()?.len();
        let inside = offset.checked_add(len).is_some_and(|end| end <= there);
        if len < needed || !inside {
            return Err(InflightError::Bounds {
                offset,
                len,
                needed,
            });
        }
        let mut region = Self::map(file, offset, shape)?;
        region.blank = region.is_blank();
        if region.blank {
            // A front-end forgets what was in flight, as when its guest starts anew.
            region.initialize(disk);
        }
        region.check(disk)?;
        Ok(region)
    }

    fn map(file: File, offset: u64, shape: Shape) -> Result<Self, InflightError> {
        let len = usize::try_from(shape.len()).map_err(io::Error::other)?;
        let metadata = file.metadata()?;
        let page = usize::try_from(metadata.blksize()).map_err(io::Error::other)?;
        let mapped = MmapRegion::from_file(FileOffset::new(file.try_clone()?, offset), len);
        let map = mapped.map_err(io::Error::other)?;
        let _guarded = guard(map.as_ptr(), map.size(), page)?;
        Ok(Self {
            bytes: Arc::new(Bytes { map, _guarded }),
            shape,
            file,
            place: (metadata.dev(), metadata.ino(), offset),
            blank: false,
        })
    }

    fn initialize(&self, disk: &Identity) {
        for queue in 0..self.shape.queues {
            let part = self.shape.part(queue);
            self.bytes.store_u16(part + VERSION, LAYOUT_VERSION);
            self.bytes
                .store_u16(part + DESCRIPTORS, self.shape.descriptors);
        }
        let tail = self.shape.tail();
        let (low, high) = disk.uuid.as_u64_pair();
        self.bytes.store_u64(tail + TAIL_VOLUME, low);
        self.bytes.store_u64(tail + TAIL_VOLUME + 8, high);
        self.bytes.store_u64(tail + TAIL_EPOCH, disk.epoch.0);
        self.bytes.store_u16(tail + TAIL_QUEUES, self.shape.queues);
        self.bytes
            .store_u16(tail + TAIL_DESCRIPTORS, self.shape.descriptors);
        self.bytes.store_u64(tail, MAGIC);
    }

    fn is_blank(&self) -> bool {
        let versions = (0..self.shape.queues).map(|queue| self.shape.part(queue) + VERSION);
        let mut parts = versions.map(|at| self.bytes.load_u16(at));
        parts.all(|version| version == 0) && self.bytes.load_u64(self.shape.tail()) == 0
    }

    fn check(&self, disk: &Identity) -> Result<(), InflightError> {
        let (bytes, shape, tail) = (&self.bytes, self.shape, self.shape.tail());
        let ours = bytes.load_u64(tail) == MAGIC
            && bytes.load_u16(tail + TAIL_QUEUES) == shape.queues
            && bytes.load_u16(tail + TAIL_DESCRIPTORS) == shape.descriptors;
        let fits = |queue| {
            let part = shape.part(queue);
            bytes.load_u16(part + VERSION) == LAYOUT_VERSION
                && bytes.load_u16(part + DESCRIPTORS) == shape.descriptors
        };
        if !ours || !(0..shape.queues).all(fits) {
            return Err(InflightError::Foreign);
        }
        let volume = (
            bytes.load_u64(tail + TAIL_VOLUME),
            bytes.load_u64(tail + TAIL_VOLUME + 8),
        );
        match volume == disk.uuid.as_u64_pair() {
            true => Ok(()),
            false => Err(InflightError::OtherDisk),
        }
    }

    /// Under which opening of the disk it was last in use.
    pub fn epoch(&self) -> Epoch {
        Epoch(self.bytes.load_u64(self.shape.tail() + TAIL_EPOCH))
    }

    /// From here on what is in the region is of this opening of the disk. To be said once its intents were
    /// judged ([`crate::volume::Volume::expect`]): if the daemon is killed before, they are judged anew.
    ///
    /// A daemon that is killed before a front-end comes to it changes nothing, but leaves an epoch: that
    /// others were between is no proof that they wrote. Generations and write pointers decide.
    pub fn continue_under(&self, disk: &Identity) {
        let before = self.epoch();
        if before != disk.epoch && before != disk.last_epoch {
            log::warn!(
                "the disk was opened in between by others than those who serve this front-end: what was \
                 in flight is judged by the zones as they are now"
            );
        }
        let at = self.shape.tail() + TAIL_EPOCH;
        self.bytes.store_u64(at, disk.epoch.0);
    }

    /// Whether this is `earlier` once more, and the front-end has not forgotten what is in it.
    pub fn is_again(&self, earlier: &Self) -> bool {
        !self.blank && self.place == earlier.place && self.shape == earlier.shape
    }

    /// Bytes that the front-end has to keep, from the start of [`Region::file`].
    pub fn size(&self) -> u64 {
        self.shape.len()
    }

    /// The file for the front-end.
    pub fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Notes whether the guest has the write cache on: no front-end tells the next daemon.
    pub fn set_write_cache(&self, on: bool) {
        let at = self.shape.tail() + TAIL_WRITE_CACHE_OFF;
        self.bytes.store_u16(at, u16::from(!on));
    }

    /// Whether the guest had the write cache on.
    pub fn write_cache(&self) -> bool {
        let at = self.shape.tail() + TAIL_WRITE_CACHE_OFF;
        self.bytes.load_u16(at) == 0
    }

    /// The part of a queue; `None` if the region was made for fewer.
    pub fn queue(&self, index: u16) -> Option<InflightQueue> {
        (index < self.shape.queues).then(|| InflightQueue {
            part: Arc::new(Part {
                bytes: Arc::clone(&self.bytes),
                state: self.shape.part(index),
                intents: self.shape.intents(index),
                descriptors: self.shape.descriptors,
            }),
            counter: 0,
            batch: Vec::new(),
        })
    }
}

impl Keeper for Region {
    fn spoil(&self, undone: &mut dyn FnMut(&Intent) -> bool) {
        for queue in (0..self.shape.queues).filter_map(|index| self.queue(index)) {
            for (_, head) in queue.part.in_flight() {
                queue.part.spoil(head, &mut *undone);
            }
        }
    }
}

/// What an operation that was in flight had come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Past {
    /// It had changed nothing, or what may be changed twice.
    Untouched,
    /// It was about to do this, or did.
    Intended(Intent),
    /// What is noted of it is not to be trusted.
    Doubtful,
}

/// How a queue goes on.
#[derive(Debug)]
pub struct Resume {
    /// Where to look in the available ring next.
    pub next_available: u16,
    /// What to begin once more, oldest first: the head of each chain, and what is known of it.
    pub heads: Vec<(u16, Past)>,
}

/// A queue's part of the bytes.
#[derive(Debug)]
struct Part {
    bytes: Arc<Bytes>,
    state: u64,
    intents: u64,
    descriptors: u16,
}

impl Part {
    fn state_of(&self, head: u16) -> u64 {
        self.state + PART_HEAD + STATE_LEN * u64::from(head)
    }

    fn counter_of(&self, head: u16) -> u64 {
        self.bytes.load_u64(self.state_of(head) + COUNTER)
    }

    /// Counters and heads of the chains in flight.
    fn in_flight(&self) -> Vec<(u64, u16)> {
        (0..self.descriptors)
            .filter(|&head| self.bytes.load::<u8>(self.state_of(head) + IN_FLIGHT) != 0)
            .map(|head| (self.counter_of(head), head))
            .collect()
    }

    fn set_in_flight(&self, head: u16, in_flight: bool) {
        let at = self.state_of(head) + IN_FLIGHT;
        self.bytes.store(at, u8::from(in_flight));
    }

    fn write_intent(&self, head: u16, counter: u64, intent: Intent) {
        let at = self.intents + INTENT_LEN * u64::from(head);
        let fields = encode(intent);
        let places = (1_u64..).map(|place| at + place * 8);
        for (place, field) in places.zip(fields) {
            self.bytes.store_u64(place, field);
        }
        self.bytes
            .store_u64(self.check_of(head), check(counter, &fields));
        self.bytes.store_u64(at, counter);
    }

    fn check_of(&self, head: u16) -> u64 {
        self.intents + INTENT_LEN * u64::from(head) + (1 + INTENT_FIELDS as u64) * 8
    }

    /// Makes the intent of a head, if that is of the request in flight and `undone` says so, one that is not to
    /// be trusted. Any thread may. Was another one noted meanwhile, then the request was answered, and that
    /// of its successor stays.
    fn spoil(&self, head: u16, undone: impl FnOnce(&Intent) -> bool) {
        let (past, check) = self.look(head);
        if matches!(past, Past::Intended(intent) if undone(&intent)) {
            let at = self.check_of(head);
            self.bytes.replace_u64(at, check, !check);
        }
    }

    fn past(&self, head: u16) -> Past {
        self.look(head).0
    }

    /// What is known of the request in flight, and the check of its intent.
    fn look(&self, head: u16) -> (Past, u64) {
        let at = self.intents + INTENT_LEN * u64::from(head);
        let counter = self.bytes.load_u64(at);
        let mut fields = [0; INTENT_FIELDS];
        for (field, place) in fields.iter_mut().zip(1_u64..) {
            *field = self.bytes.load_u64(at + place * 8);
        }
        let found = self.bytes.load_u64(self.check_of(head));
        let past = if counter != self.counter_of(head) {
            Past::Untouched
        } else {
            let sound = decode(&fields).filter(|_| found == check(counter, &fields));
            sound.map_or(Past::Doubtful, Past::Intended)
        };
        (past, found)
    }
}

fn encode(intent: Intent) -> [u64; INTENT_FIELDS] {
    let (kind, start, count) = match intent.change {
        Change::Write { start, count } => (KIND_WRITE, start.0, count.0),
        Change::Reset => (KIND_RESET, 0, 0),
        Change::Finish => (KIND_FINISH, 0, 0),
        Change::ResetAll => (KIND_RESET_ALL, 0, 0),
    };
    let zone = u64::from(intent.zone.0);
    [zone, kind, intent.generation.0, start, count]
}

fn decode(fields: &[u64; INTENT_FIELDS]) -> Option<Intent> {
    let &[zone, kind, generation, start, count] = fields;
    let change = match kind {
        KIND_WRITE if count > 0 => Change::Write {
            start: Blocks(start),
            count: Blocks(count),
        },
        KIND_RESET => Change::Reset,
        KIND_FINISH => Change::Finish,
        KIND_RESET_ALL => Change::ResetAll,
        _ => return None,
    };
    Some(Intent {
        zone: ZoneIndex(u32::try_from(zone).ok()?),
        generation: Generation(generation),
        change,
    })
}

/// Finds what was altered by accident: what a front-end alters on purpose can only hurt its guest.
fn check(counter: u64, fields: &[u64; INTENT_FIELDS]) -> u64 {
    let mut bytes = [0; (1 + INTENT_FIELDS) * 8];
    let values = [counter].into_iter().chain(*fields);
    for (to, value) in bytes.chunks_exact_mut(8).zip(values) {
        to.copy_from_slice(&value.to_le_bytes());
    }
    crc_fast::checksum(CrcAlgorithm::Crc64Nvme, &bytes)
}

/// Keeps a queue's part up to date. Belongs to the queue's worker.
#[derive(Debug)]
pub struct InflightQueue {
    part: Arc<Part>,
    /// Of the last chain that was taken.
    counter: u64,
    /// Heads given back since the used index was last shown.
    batch: Vec<u16>,
}

impl InflightQueue {
    /// Finds out where a queue stands whose ring has `ring` descriptors and these indices in guest
    /// memory, and brings the part in line with the ring.
    ///
    /// # Errors
    /// [`InflightError::RingLarger`].
    pub(super) fn resume(
        &mut self,
        ring: u16,
        available_index: u16,
        used_index: u16,
    ) -> Result<Resume, InflightError> {
        let Part {
            bytes,
            state,
            descriptors,
            ..
        } = &*self.part;
        let descriptors = *descriptors;
        if ring > descriptors {
            return Err(InflightError::RingLarger { descriptors, ring });
        }
        self.batch.clear();
        let seen = used_index.wrapping_sub(bytes.load_u16(state + USED_INDEX));
        if seen <= descriptors && !Mutant::AnswerTwice.is_on() {
            self.clear_last_batch(seen);
        }
        bytes.store_u16(state + USED_INDEX, used_index);
        let mut in_flight = self.part.in_flight();
        in_flight.sort_unstable();
        self.counter = (0..descriptors)
            .map(|head| self.part.counter_of(head))
            .max()
            .unwrap_or(0);
        let offered = available_index.wrapping_sub(used_index);
        let count = u16::try_from(in_flight.len()).unwrap_or(u16::MAX);
        if offered > ring || count > offered {
            // Not the ring in which these were in flight: it was set up anew.
            for (_, head) in in_flight.drain(..) {
                self.part.set_in_flight(head, false);
            }
        }
        let count = u16::try_from(in_flight.len()).unwrap_or(u16::MAX);
        Ok(Resume {
            next_available: used_index.wrapping_add(count),
            heads: in_flight
                .into_iter()
                .map(|(_, head)| (head, self.part.past(head)))
                .collect(),
        })
    }

    /// The guest saw the last `count` answers: they are not in flight.
    fn clear_last_batch(&self, count: u16) {
        let Part {
            bytes,
            state,
            descriptors,
            ..
        } = &*self.part;
        let mut head = bytes.load_u16(state + LAST_BATCH_HEAD);
        for _ in 0..count {
            if head >= *descriptors {
                return;
            }
            self.part.set_in_flight(head, false);
            head = bytes.load_u16(self.part.state_of(head) + NEXT);
        }
    }

    /// A chain is taken from the ring. One whose head no table has is not noted: it is refused.
    pub(super) fn take(&mut self, head: u16) {
        if head < self.part.descriptors {
            self.counter = self.counter.wrapping_add(1);
            let at = self.part.state_of(head) + COUNTER;
            self.part.bytes.store_u64(at, self.counter);
            self.part.set_in_flight(head, true);
        }
    }

    /// Where operations of this queue note what they are about to change.
    pub(super) fn intents(&self) -> Intents {
        Intents(Arc::clone(&self.part))
    }

    /// A chain was given back; the guest does not see it yet.
    pub(super) fn give_back(&mut self, head: u16) {
        if head < self.part.descriptors {
            let part = &self.part;
            let last = part.bytes.load_u16(part.state + LAST_BATCH_HEAD);
            part.bytes.store_u16(part.state_of(head) + NEXT, last);
            part.bytes.store_u16(part.state + LAST_BATCH_HEAD, head);
            self.batch.push(head);
        }
    }

    /// The guest sees everything that was given back, up to `used_index`.
    pub(super) fn published(&mut self, used_index: u16) {
        for head in self.batch.drain(..) {
            self.part.set_in_flight(head, false);
        }
        let at = self.part.state + USED_INDEX;
        self.part.bytes.store_u16(at, used_index);
    }
}

/// Where an operation notes what it is about to change.
#[derive(Clone, Debug)]
pub(super) struct Intents(Arc<Part>);

impl Intents {
    /// `head`: of the chain, which was taken.
    pub(super) fn note(&self, head: u16, intent: Intent) {
        let Self(part) = self;
        if head < part.descriptors {
            part.write_intent(head, part.counter_of(head), intent);
        }
    }

    /// Whether what was noted of `head` was spoiled, or cannot be trusted for another reason.
    pub(super) fn is_spoiled(&self, head: u16) -> bool {
        let Self(part) = self;
        head < part.descriptors && part.past(head) == Past::Doubtful
    }

    /// Makes what was noted of `head` something that nobody trusts.
    pub(super) fn spoil(&self, head: u16) {
        let Self(part) = self;
        if head < part.descriptors {
            part.spoil(head, |_| true);
        }
    }
}

#[cfg(test)]
mod tests;
