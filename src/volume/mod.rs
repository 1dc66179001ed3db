//! The disk: zones, keys and store joined, with the order in which things become true.
//!
//! [`Volume`] is what all queues share; each queue works through a [`Channel`] of its own. Rules
//! of order, each kept in one place:
//!
//! 1. *Place before encryption.* A write is encrypted for the place that its grant names
//!    (`channel`).
//! 2. *Data, then record, then acknowledgement.* A zone's record is in the page cache before
//!    anyone is told that its write pointer moved ([`Volume::publish`]), so what was acknowledged
//!    survives a killed daemon.
//! 3. *Flush.* A sync makes data durable; only then does a record call it durable. A cipher
//!    without tags cannot find the end of its data after a power cut, so such a record is synced
//!    too before the flush completes (`sync`).
//! 4. *Reset.* New salt to one copy of the record, sync, to the other copy, sync, space given
//!    back, then the zone takes writes again (`manage`).
//! 5. *Opening.* An unclean disk makes what it recovered, and a new epoch, durable before it
//!    accepts anything ([`Volume::open`]).

mod channel;
mod manage;
mod op;
mod pool;
mod sync;
#[cfg(test)]
mod tests;

pub use channel::Channel;
pub use op::{Finished, Payload};

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use log::{error, info, warn};
use parking_lot::Mutex;
use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::format::{
    BootId, Header, HeaderKey, ImageError, Layout, OpenState, RecordKey, Unlocked,
    image::{load_records, write_header, write_record},
};
use crate::geometry::{Geometry, ZoneIndex};
use crate::keyslot::{KeyslotStats, Keyslots};
use crate::secret::SecretError;
use crate::store::Medium;
use crate::zone::{Epoch, Opening, Released, Table, Ticket, ZoneInfo, ZoneSalt};

/// Record writes of two zones may overlap, those of one zone may not: zones share this many locks.
const RECORD_LOCKS: usize = 64;

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
}

/// Where other queues leave what they released for a queue.
#[derive(Debug)]
struct Mailbox {
    released: Mutex<Vec<Released>>,
    event: EventFd,
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
    record_locks: Vec<Mutex<()>>,
    mailboxes: Vec<Mailbox>,
    read_only: bool,
    write_cache: AtomicBool,
    /// A sync failed: nobody knows which in-place writes are on the medium.
    in_place_failed: AtomicBool,
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
            ..
        } = unlocked;
        let geometry = *header.geometry();
        let boot_id = boot_id();
        let opening = how_it_was_left(&header, boot_id);
        let loaded = load_records(&medium, &layout, &geometry, &record_key)?;
        let lost = loaded.iter().filter(|record| record.newest.is_none());
        match lost.count() {
            0 => {}
            lost => error!("{lost} zones have no valid record and are offline"),
        }
        let epoch = random_epoch()?;
        let records = loaded.iter().map(|record| record.newest).collect();
        let keyslots = Keyslots::new(
            volume_key,
            *header.uuid(),
            header.cipher(),
            options.keyslots,
        );
        let volume = Self {
            table: Table::new(geometry, records, opening, epoch),
            medium,
            layout,
            keyslots,
            record_key,
            header: Mutex::new(HeaderState {
                header,
                key: header_key,
            }),
            record_locks: (0..RECORD_LOCKS).map(|_| Mutex::new(())).collect(),
            mailboxes: (0..options.queues)
                .map(|_| Mailbox::new())
                .collect::<io::Result<_>>()?,
            read_only: options.read_only,
            write_cache: AtomicBool::new(true),
            in_place_failed: AtomicBool::new(false),
        };
        if !options.read_only {
            volume.begin_session(opening, epoch, boot_id)?;
        }
        Ok(volume)
    }

    /// Makes an opening durable. Before the header says that the disk is open under a new epoch,
    /// every record it relies on is: whoever finds that header can trust what it finds below.
    fn begin_session(
        &self,
        opening: Opening,
        epoch: Epoch,
        boot_id: BootId,
    ) -> Result<(), VolumeError> {
        let changed = self.table.touched();
        match opening {
            Opening::Clean => {}
            Opening::Killed => info!("the last daemon of this disk was killed: going on exactly"),
            Opening::PowerCut => warn!(
                "the disk was not closed in order: {} zones return to their last flush",
                changed.len()
            ),
        }
        // The records of a killed daemon may still be in the page cache only.
        self.medium.sync()?;
        self.write_touched_records(&changed)?;
        self.set_header(OpenState::Open, |header| {
            header.epoch = epoch;
            header.boot_id = boot_id;
        })
    }

    fn write_touched_records(&self, zones: &[ZoneIndex]) -> Result<(), VolumeError> {
        for &zone in zones {
            if let Some(order) = self.table.settle(zone).record {
                write_record(&self.medium, &self.layout, &self.record_key, zone, &order)?;
            }
        }
        let mark = self.table.begin_flush();
        self.medium.sync()?;
        for zone in self.table.end_flush(mark, true) {
            // Their durable write pointers moved with this very sync; the next flush says so.
            self.table.touch(zone);
        }
        Ok(())
    }

    fn set_header(
        &self,
        state: OpenState,
        change: impl FnOnce(&mut Header),
    ) -> Result<(), VolumeError> {
        let mut held = self.header.lock();
        let mut header = held.header.clone();
        header.state = state;
        change(&mut header);
        write_header(&self.medium, &held.key, &mut header)?;
        held.header = header;
        Ok(())
    }

    /// Closes the disk in order: everything durable, no zone open, marked clean. No channel may
    /// have anything in flight.
    pub fn close(&self) -> Result<(), VolumeError> {
        if self.read_only {
            return Ok(());
        }
        self.table.close_all();
        // First what was written becomes durable, then the records that call it so.
        let mark = self.table.begin_flush();
        self.medium.sync()?;
        let _ = self.table.end_flush(mark, true);
        self.write_touched_records(&self.table.touched())?;
        self.set_header(OpenState::Clean, |_| {})
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

    /// What the keyslots did so far.
    pub fn keyslot_stats(&self) -> KeyslotStats {
        self.keyslots.stats()
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
        Some(mailbox.event.as_raw_fd())
    }

    /// Settles a zone: writes its record if that changed, and only then hands out what it
    /// released: what belongs to `own` goes into `released`, the rest to its queue's mailbox.
    /// `false` if the record could not be written; then the zone is read-only and what was
    /// released has failed.
    fn publish(&self, zone: ZoneIndex, own: u16, released: &mut Vec<Released>) -> bool {
        let Some(lock) = self.record_locks.get(zone.as_usize() % RECORD_LOCKS) else {
            return false;
        };
        let guard = lock.lock();
        let mut settled = self.table.settle(zone);
        let mut ok = true;
        if let Some(order) = settled.record
            && !self.read_only
            && let Err(e) = write_record(&self.medium, &self.layout, &self.record_key, zone, &order)
        {
            error!("{zone}: cannot write its record: {e}; the zone is read-only now");
            self.table.fail_zone(zone);
            ok = false;
            for item in &mut settled.released {
                if let Released::Write(_, result) = item {
                    *result = Err(crate::zone::ZoneError::Failed);
                }
            }
        }
        drop(guard);
        for item in settled.released {
            if item.ticket().queue == own {
                released.push(item);
            } else {
                self.post(item);
            }
        }
        ok
    }

    fn post(&self, item: Released) {
        let Ticket { queue, .. } = item.ticket();
        if let Some(mailbox) = self.mailboxes.get(usize::from(queue)) {
            mailbox.released.lock().push(item);
            if let Err(e) = mailbox.event.write(1) {
                error!("cannot wake queue {queue}: {e}");
            }
        }
    }

    /// Moves what other queues left for `queue` into `released`.
    fn take_mail(&self, queue: u16, released: &mut Vec<Released>) {
        if let Some(mailbox) = self.mailboxes.get(usize::from(queue)) {
            released.append(&mut mailbox.released.lock());
        }
    }

    /// Quiets the mailbox's event; before the mail is taken, or a wake-up could get lost.
    pub fn clear_mailbox_event(&self, queue: u16) {
        if let Some(mailbox) = self.mailboxes.get(usize::from(queue)) {
            // Nothing to read is what an event that was cleared before says.
            let _ = mailbox.event.read();
        }
    }

    fn sync_failed(&self, error: &io::Error) {
        error!(
            "a sync of the image failed: {error}; zones with unflushed data are read-only now, \
             and so are conventional zones"
        );
        self.in_place_failed.store(true, Ordering::Relaxed);
    }

    fn in_place_failed(&self) -> bool {
        self.in_place_failed.load(Ordering::Relaxed)
    }

    /// No flush can promise anything any more: writes in place went before a sync that failed.
    fn in_place_poisoned(&self) -> bool {
        self.geometry().conventional() > 0 && self.in_place_failed()
    }
}

impl Mailbox {
    fn new() -> io::Result<Self> {
        Ok(Self {
            released: Mutex::new(Vec::new()),
            event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })
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

fn how_it_was_left(header: &Header, boot_id: BootId) -> Opening {
    match header.state {
        OpenState::Clean => Opening::Clean,
        OpenState::Open if boot_id != BootId::default() && header.boot_id == boot_id => {
            Opening::Killed
        }
        OpenState::Open => Opening::PowerCut,
    }
}

/// This boot of the host, or zero where the kernel does not tell: then any unclean disk counts as
/// cut off from power, which is the careful reading.
fn boot_id() -> BootId {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .ok()
        .and_then(|text| uuid::Uuid::try_parse(text.trim()).ok())
        .map_or_else(BootId::default, |id| BootId(id.into_bytes()))
}

fn random_epoch() -> Result<Epoch, VolumeError> {
    let mut bytes = [0; 8];
    fill_random(&mut bytes)?;
    Ok(Epoch(u64::from_le_bytes(bytes)))
}

fn random_salt() -> io::Result<ZoneSalt> {
    let mut salt = ZoneSalt([0; 32]);
    fill_random(&mut salt.0)?;
    Ok(salt)
}

fn fill_random(bytes: &mut [u8]) -> io::Result<()> {
    getrandom::fill(bytes).map_err(|e| io::Error::other(format!("no randomness: {e}")))
}
