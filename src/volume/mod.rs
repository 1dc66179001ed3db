//! The disk: zones, keys and store joined, with the order in which things become true.
//!
//! [`Volume`] is what all queues share; each queue works through a [`Channel`] of its own. Rules
//! of order, each kept in one place:
//!
//! 1. *Place before encryption.* A write is encrypted for the place, and under the stamp, that its
//!    grant names (`piece`).
//! 2. *Data and tag slots, then record, then acknowledgement.* A zone's record is in the page cache
//!    before anyone is told that its write pointer moved (`Volume::publish`), and tag slots are
//!    before the write they belong to counts as done (`tags`), so what was acknowledged survives a
//!    killed daemon, and who may read a block finds its tag.
//! 3. *Flush.* A sync makes data, tags and records durable; only then does a record call the data
//!    durable. With tags that is all: they tell how far a zone goes behind that. A cipher without
//!    them cannot find the end of its data after a power cut, so that record is synced too before
//!    the flush completes (`sync`).
//! 4. *A failed write* takes those behind it along; the write pointer falls back to where it began.
//!    The counters that were used up are durable before the zone takes another write
//!    (`fence`): no stamp is used twice, and no block of the failed write can pass for the
//!    one that is written in its place; and what is noted of it for a daemon after this one is
//!    spoiled before (`redo`), so that it is not taken for that one either.
//! 5. *Reset.* New salt to one copy of the record, sync, to the other copy, sync, space given
//!    back, then the zone takes writes again (`manage`).
//! 6. *Opening.* An unclean disk makes what it recovered, and a new epoch, durable before it
//!    accepts anything (`session`).

mod channel;
mod fence;
mod mailbox;
mod manage;
mod now;
mod op;
mod piece;
mod pool;
mod prefetch;
mod redo;
pub mod scan;
mod session;
mod stretch;
mod sync;
mod tag_cache;
mod tags;
#[cfg(test)]
mod tests;

pub use channel::Channel;
pub use op::{Finished, Payload};
pub use redo::Keeper;

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use log::error;
use parking_lot::Mutex;
use thiserror::Error;

use self::mailbox::Mailbox;
use self::redo::Keepers;
use self::scan::Scanner;
use self::session::Left;
use self::tag_cache::TagCache;
use crate::format::{
    BootId, Header, HeaderKey, ImageError, Layout, OpenState, RecordKey, Unlocked,
    image::{load_records, records_root, write_record},
};
use crate::geometry::{Geometry, ZoneIndex};
use crate::keyslot::{self, KeyslotStats, Keyslots};
use crate::limit::LogLimit;
use crate::mutant::{self, Mutant, Point};
use crate::secret::SecretError;
use crate::store::Medium;
use crate::zone::{
    Epoch, Opening, RecordWrite, Released, Settled, Table, Ticket, ZoneInfo, ZoneSalt,
};

/// Bytes of tag slots kept in memory unless told otherwise: those of 1 GiB of blocks of 4 KiB.
pub const DEFAULT_TAG_CACHE: usize = 8 << 20;
/// Record writes of two zones may overlap, those of one zone may not: zones share this many locks.
const RECORD_LOCKS: usize = 64;
/// Operations that a queue has in flight when it is busy: what lists begin with room for.
const USUAL_DEPTH: usize = 64;

static RECORD_ERRORS: LogLimit = LogLimit::new();

/// Why a disk could not be opened or closed.
#[derive(Debug, Error)]
pub enum VolumeError {
    /// The image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Keys.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// Reading or writing metadata.
    #[error("cannot access the image's metadata: {0}")]
    Io(#[from] io::Error),
    /// Too late to close in order.
    #[error(
        "a sync of the image failed, so it is not closed in order: what no flush covered may be lost, \
         and when it is served next it goes back to the last flush"
    )]
    SyncFailed,
    /// Records of a clean disk that do not belong to its header.
    #[error(
        "the zone records are not those with which the disk was closed: some were put back from an \
         older copy, or both copies of one are damaged"
    )]
    ForeignRecords,
}

/// How a disk is to be opened.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Channels that there will be at most.
    pub queues: u16,
    /// Keyslots.
    pub keyslots: usize,
    /// Change nothing, neither for the guest nor of the image's own bookkeeping.
    pub read_only: bool,
    /// Take a disk that was not closed for one that was cut off from power, although the host was
    /// not booted since: its page cache may have been lost all the same (a copied image, a
    /// detached device).
    pub after_power_cut: bool,
    /// Take the zone records of a clean disk as they are, also if they are not those with which it
    /// was closed.
    pub accept_records: bool,
    /// Bytes of tag slots that all channels together keep in memory.
    pub tag_cache: usize,
}

impl Default for Options {
    /// One queue, and what the command line has unless told otherwise.
    fn default() -> Self {
        Self {
            queues: 1,
            keyslots: keyslot::DEFAULT_SLOTS as usize,
            read_only: false,
            after_power_cut: false,
            accept_records: false,
            tag_cache: DEFAULT_TAG_CACHE,
        }
    }
}

/// How often blocks were found bad since the disk was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IntegrityStats {
    /// Blocks whose tag did not fit when the guest read them.
    pub bad_blocks: u64,
    /// Reads of tag slots that no cache had.
    pub slot_reads: u64,
}

/// What a channel did since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelCounters {
    /// Keys found, in the channel's own cache or in a keyslot.
    pub key_hits: u64,
    /// Keys derived and programmed.
    pub key_misses: u64,
    /// Pieces of reads whose tag slots the channel's cache had.
    pub tag_hits: u64,
    /// Reads of tag slots that it did not have.
    pub slot_reads: u64,
}

impl ChannelCounters {
    /// Adds what another channel did, or the same one at another time.
    pub fn add(&mut self, other: &Self) {
        self.key_hits += other.key_hits;
        self.key_misses += other.key_misses;
        self.tag_hits += other.tag_hits;
        self.slot_reads += other.slot_reads;
    }

    /// What the channel did since it had counted `before`.
    pub fn since(&self, before: &Self) -> Self {
        Self {
            key_hits: self.key_hits.saturating_sub(before.key_hits),
            key_misses: self.key_misses.saturating_sub(before.key_misses),
            tag_hits: self.tag_hits.saturating_sub(before.tag_hits),
            slot_reads: self.slot_reads.saturating_sub(before.slot_reads),
        }
    }
}

#[derive(Debug, Default)]
struct IntegrityCounters {
    bad_blocks: AtomicU64,
    slot_reads: AtomicU64,
}

/// Lets one queue sync at a time, for all who wait.
#[derive(Debug, Default)]
struct SyncGate {
    busy: bool,
    waiting: Vec<Ticket>,
}

#[derive(Clone, Copy, Debug)]
struct PastSession {
    epoch: Epoch,
    killed: bool,
}

/// What ties a note of somebody else's to this disk, and to one opening of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The volume.
    pub uuid: uuid::Uuid,
    /// This opening.
    pub epoch: Epoch,
    /// The opening for writing before this one.
    pub last_epoch: Epoch,
}

#[derive(Debug)]
struct HeaderState {
    header: Header,
    key: HeaderKey,
}

/// A disk, opened.
#[derive(Debug)]
pub struct Volume<M: Medium> {
    medium: M,
    layout: Layout,
    table: Table,
    keyslots: Keyslots,
    record_key: RecordKey,
    header: Mutex<HeaderState>,
    /// Held while a zone is settled and its record written; each with memory for what that gives.
    record_locks: Vec<Mutex<Settled>>,
    mailboxes: Vec<Mailbox<Released>>,
    read_only: bool,
    write_cache: AtomicBool,
    sync_failed: AtomicBool,
    sync_gate: Mutex<SyncGate>,
    /// Who keeps intents of operations in flight.
    keepers: Mutex<Keepers>,
    closing: session::Progress,
    /// Channels there were so far.
    lives: AtomicU32,
    /// Under which epoch the disk was written to before, and whether that ended by a kill.
    past: PastSession,
    /// Blocks have tag slots.
    tagged: bool,
    /// Slots in memory, for all queues.
    tags: TagCache,
    integrity: IntegrityCounters,
}

impl<M: Medium> Volume<M> {
    /// Opens an unlocked image: tells how it was left, recovers its zones, and, unless read-only,
    /// makes the recovered state and a new epoch durable.
    pub fn open(medium: M, unlocked: Unlocked, options: Options) -> Result<Self, VolumeError> {
        let record_key = unlocked.record_key()?;
        let header_key = unlocked.header_key()?;
        let Unlocked {
            header,
            volume_key,
            layout,
            damaged_header,
            closed_with,
            ..
        } = unlocked;
        let geometry = *header.geometry();
        let boot_id = session::boot_id();
        if options.after_power_cut && header.state != OpenState::Clean {
            medium.forget_cached();
        }
        let mut loaded = load_records(&medium, &layout, &geometry, &record_key)?;
        let lost = loaded.iter().filter(|record| record.newest.is_none());
        match lost.count() {
            0 => {}
            lost => error!("{lost} zones have no valid record and are offline"),
        }
        let root = records_root(&record_key, &loaded);
        let left = Left::of(&header, (closed_with, root), boot_id, &options);
        session::check_root(&header, root, &options)?;
        let keyslots = Keyslots::new(
            volume_key,
            *header.uuid(),
            header.cipher(),
            options.keyslots,
        );
        let tagged = header.cipher().is_tagged();
        if tagged && !left.opening.is_orderly() && !left.in_doubt {
            // With one copy of the header lost it may be the one that named the last epoch, also if
            // `check --repair` has replaced it since: that names no boot.
            let lost = damaged_header.is_some() || header.boot_id == BootId::default();
            let last_epoch = (!lost).then_some(header.epoch);
            let scanner = Scanner::new(&medium, &layout, &geometry, &keyslots);
            let only_damaged = left.opening == Opening::Killed;
            session::prove(&scanner, &geometry, last_epoch, only_damaged, &mut loaded)?;
        }
        let zones = geometry.all_zones().zip(&loaded);
        let stale: Vec<ZoneIndex> = zones
            .filter(|(_, record)| record.stale)
            .map(|(zone, _)| zone)
            .collect();
        let epoch = match Mutant::KeepEpoch.is_on() && header.epoch != Epoch(0) {
            true => header.epoch,
            false => session::random_epoch()?,
        };
        let past = PastSession {
            epoch: header.epoch,
            killed: left.opening == Opening::Killed,
        };
        let records = loaded.iter().map(|record| record.newest).collect();
        let table = Table::new(geometry, records, left.opening, epoch);
        if left.opening == Opening::PowerCut {
            session::say_lost(&geometry, &loaded, &table);
        }
        let largest_zone = geometry.zone_capacity_blocks(ZoneIndex(0));
        let tags = TagCache::new(if tagged { options.tag_cache } else { 0 }, largest_zone);
        let volume = Self {
            table,
            medium,
            layout,
            keyslots,
            record_key,
            header: Mutex::new(HeaderState {
                header,
                key: header_key,
            }),
            record_locks: (0..RECORD_LOCKS)
                .map(|_| Mutex::new(with_memory()))
                .collect(),
            mailboxes: (0..options.queues)
                .map(|_| Mailbox::new())
                .collect::<io::Result<_>>()?,
            read_only: options.read_only,
            write_cache: AtomicBool::new(true),
            sync_failed: AtomicBool::new(false),
            sync_gate: Mutex::new(SyncGate::default()),
            keepers: Mutex::default(),
            closing: session::Progress::default(),
            lives: AtomicU32::new(0),
            past,
            tagged,
            tags,
            integrity: IntegrityCounters::default(),
        };
        if !options.read_only {
            volume.begin_session(left, epoch, boot_id, &stale)?;
        }
        Ok(volume)
    }

    /// Gets now what the channels of this thread need of the system. To be called by a thread that may
    /// ask the system for nothing new from then on; it has one channel at a time. Whether that will do
    /// its work by io_uring.
    pub fn prepare_thread(&self) -> io::Result<bool> {
        self.medium.prepare_thread(channel::STORE_DEPTH)
    }

    /// The disk's shape.
    pub fn geometry(&self) -> &Geometry {
        self.table.geometry()
    }

    /// Whether nothing may be written.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The volume's id, as the front-end's serial number shows it.
    pub fn uuid(&self) -> uuid::Uuid {
        *self.header.lock().header.uuid()
    }

    /// What names this opening of the disk.
    pub fn identity(&self) -> Identity {
        Identity {
            uuid: self.uuid(),
            epoch: self.table.epoch(),
            last_epoch: self.past.epoch,
        }
    }

    /// The daemon that had the disk before was killed, and the host went on.
    pub fn was_killed(&self) -> bool {
        self.past.killed
    }

    /// The number of the newest header: it grows with every opening and closing for writing.
    pub fn header_sequence(&self) -> u64 {
        self.header.lock().header.sequence()
    }

    /// What the keyslots did so far.
    pub fn keyslot_stats(&self) -> KeyslotStats {
        self.keyslots.stats()
    }

    /// What was found bad so far.
    pub fn integrity_stats(&self) -> IntegrityStats {
        IntegrityStats {
            bad_blocks: self.integrity.bad_blocks.load(Ordering::Relaxed),
            slot_reads: self.integrity.slot_reads.load(Ordering::Relaxed),
        }
    }

    /// Turns the write cache on or off. Off: a write is durable before it is acknowledged.
    pub fn set_write_cache(&self, on: bool) {
        self.write_cache.store(on, Ordering::Relaxed);
    }

    fn write_cache(&self) -> bool {
        self.write_cache.load(Ordering::Relaxed)
    }

    /// Calls `each` for up to `limit` zones from `first` on.
    pub fn report(&self, first: ZoneIndex, limit: usize, each: impl FnMut(usize, ZoneInfo)) {
        self.table.report(first, limit, each);
    }

    /// Readable when another queue released something for queue `queue`.
    pub fn mailbox_event(&self, queue: u16) -> Option<RawFd> {
        let mailbox = self.mailboxes.get(usize::from(queue))?;
        Some(mailbox.event())
    }

    /// Settles a zone: writes its record if that changed, and only then hands out what it
    /// released: what belongs to `own` goes into `released`, the rest to its queue's mailbox.
    /// `false` if the record could not be written; then the zone is read-only and what was
    /// released has failed. `zone` goes to `fences` if its write pointer fell back and who calls has to
    /// see to that.
    fn publish(
        &self,
        zone: ZoneIndex,
        own: u16,
        released: &mut Vec<Released>,
        fences: &mut Vec<ZoneIndex>,
    ) -> bool {
        let Some(lock) = self.record_locks.get(zone.as_usize() % RECORD_LOCKS) else {
            return false;
        };
        let mut settled = lock.lock();
        let mut ok = true;
        loop {
            self.table.settle_into(zone, &mut settled);
            if let Some(place) = settled.fell_back {
                // Before anybody hears of it, and before the zone takes a write there.
                self.spoil_failed(zone, place);
            }
            let order = settled.record.as_ref();
            ok &= order.is_none_or(|order| self.write_record(zone, order));
            if !settled.fence {
                break;
            }
            if self.tagged {
                fences.push(zone);
                break;
            }
            let order = self.table.fence_record(zone, false);
            ok &= order.is_some_and(|order| self.write_record(zone, &order));
            self.table.end_fence(zone, ok);
            // For those who waited; and a write that was let in just now may have failed already.
        }
        if !ok {
            for item in &mut settled.released {
                if let Released::Write(_, result) = item {
                    *result = Err(crate::zone::ZoneError::Failed);
                }
            }
        }
        // Still under the lock, and behind what others released for `own` before: a queue hears of
        // its writes to a zone in write-pointer order, whoever settled them.
        self.take_mail(own, released);
        for item in settled.released.drain(..) {
            if item.ticket().queue == own {
                released.push(item);
            } else {
                self.post(item);
            }
        }
        ok
    }

    /// Puts on record which counters the failed writes of `zone` used up.
    fn record_fence(&self, zone: ZoneIndex) -> bool {
        let Some(lock) = self.record_locks.get(zone.as_usize() % RECORD_LOCKS) else {
            return false;
        };
        let _guard = lock.lock();
        let order = self.table.fence_record(zone, true);
        order.is_some_and(|order| self.write_record(zone, &order))
    }

    /// Syncs, and if that fails notes that the disk is in doubt.
    fn sync_or_doubt(&self) -> Result<(), VolumeError> {
        self.medium.sync().map_err(|e| {
            self.note_failed_sync(&e);
            VolumeError::Io(e)
        })
    }

    /// Writes a record; `false` if it could not be, and then the zone is read-only.
    fn write_record(&self, zone: ZoneIndex, order: &RecordWrite) -> bool {
        if self.read_only {
            return true;
        }
        match write_record(&self.medium, &self.layout, &self.record_key, zone, order) {
            Ok(()) => {
                mutant::pass(Point::RecordWritten);
                self.table.record_written(zone, order);
            }
            Err(ref e) => {
                if let Some(more) = RECORD_ERRORS.allow() {
                    error!(
                        "{zone}: cannot write its record: {e}; the zone is read-only now \
                         ({more} more like it)"
                    );
                }
                self.table.fail_zone(zone);
                return false;
            }
        }
        true
    }

    /// Has an operation wait for the next sync.
    fn join_sync(&self, ticket: Ticket) {
        self.sync_gate.lock().waiting.push(ticket);
    }

    /// If nobody syncs and `queue` waits for it: everyone who waits, for whom it now syncs. Two
    /// syncs at once would each miss what the other has only half said in the zone records.
    fn begin_sync(&self, queue: u16) -> Option<Vec<Ticket>> {
        let mut gate = self.sync_gate.lock();
        let wanted = gate.waiting.iter().any(|ticket| ticket.queue == queue);
        if gate.busy || !wanted {
            return None;
        }
        gate.busy = true;
        Some(std::mem::take(&mut gate.waiting))
    }

    /// Forgets who waits for a sync in a channel that is given up.
    fn leave_sync(&self, life: u32) {
        let mut gate = self.sync_gate.lock();
        gate.waiting.retain(|ticket| ticket.life != life);
    }

    /// The sync is over; somebody else's turn.
    fn end_sync(&self) {
        let next = {
            let mut gate = self.sync_gate.lock();
            gate.busy = false;
            gate.waiting.first().map(|ticket| ticket.queue)
        };
        if let Some(queue) = next {
            self.wake(queue);
        }
    }

    fn wake(&self, queue: u16) {
        let Some(mailbox) = self.mailboxes.get(usize::from(queue)) else {
            return;
        };
        if let Err(e) = mailbox.wake() {
            say_not_woken(queue, &e);
        }
    }

    fn post(&self, item: Released) {
        let Ticket { queue, .. } = item.ticket();
        if let Some(mailbox) = self.mailboxes.get(usize::from(queue))
            && let Err(e) = mailbox.post(item)
        {
            say_not_woken(queue, &e);
        }
    }

    /// Moves what other queues left for `queue` into `released`.
    fn take_mail(&self, queue: u16, released: &mut Vec<Released>) {
        if let Some(mailbox) = self.mailboxes.get(usize::from(queue)) {
            mailbox.take(released);
        }
    }

    /// Whether another queue left something for `queue`.
    fn has_mail(&self, queue: u16) -> bool {
        let mailbox = self.mailboxes.get(usize::from(queue));
        mailbox.is_some_and(Mailbox::has_something)
    }

    /// Quiets the mailbox's event; before the mail is taken, or a wake-up could get lost.
    pub fn clear_mailbox_event(&self, queue: u16) {
        if let Some(mailbox) = self.mailboxes.get(usize::from(queue)) {
            mailbox.quiet();
        }
    }

    /// Notes that a sync failed; the first time it says so and marks the header, since the kernel
    /// tells of lost writes once and then calls their pages clean: whoever opens the disk during this
    /// boot of the host must not take what it sees for what is on the medium.
    fn note_failed_sync(&self, error: &io::Error) {
        if self.sync_failed.swap(true, Ordering::Relaxed) {
            return;
        }
        error!(
            "a sync of the image failed: {error}; what was not flushed is in doubt: its zones \
                 and all conventional ones are read-only, and no flush succeeds any more. Reads go \
                 on. Find out what ails the medium, then serve the disk anew"
        );
        if !self.read_only
            && let Err(e) = self.mark_in_doubt()
        {
            error!("cannot note that in the header: {e}");
        }
    }

    /// A sync has failed since the disk was opened: writes in place are refused, and no flush can
    /// promise anything, for what came before it is lost or not.
    fn has_failed_sync(&self) -> bool {
        self.sync_failed.load(Ordering::Relaxed)
    }
}

fn say_not_woken(queue: u16, error: &io::Error) {
    error!("cannot wake queue {queue}: {error}");
}

/// What settling a zone gives, with memory for as many as a queue usually has in flight.
fn with_memory() -> Settled {
    Settled {
        released: Vec::with_capacity(USUAL_DEPTH),
        ..Settled::default()
    }
}

/// A channel to `volume` for queue `queue`, with up to `depth` operations.
pub fn channel<M: Medium, P: Payload>(
    volume: &Arc<Volume<M>>,
    queue: u16,
    depth: u16,
) -> io::Result<Channel<M, P>> {
    Channel::new(Arc::clone(volume), queue, depth)
}

fn random_salt() -> io::Result<ZoneSalt> {
    let mut salt = ZoneSalt([0; 32]);
    fill_random(&mut salt.0)?;
    Ok(salt)
}

fn fill_random(bytes: &mut [u8]) -> io::Result<()> {
    getrandom::fill(bytes).map_err(|e| io::Error::other(format!("no randomness: {e}")))
}
