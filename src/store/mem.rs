//! The in-memory twin of a disk, on which everything above the store is tested, faults included.
//!
//! # The fault model
//!
//! *What is where.* The twin keeps two images: what a read sees, and what would survive a power
//! cut. Between them stands the list of changes made since the last sync. A change is kept as the
//! whole 512-byte sectors it touched, as they were right after it: a sector is written whole or
//! not at all, and a small write into the page cache takes its neighbours in the sector along.
//!
//! *Order.* An operation takes effect between its hand-over ([`Store::kick`]) and its completion,
//! and completions come in any order. By default both happen at once and in order;
//! [`MemControl::reorder`] shuffles every batch, and [`MemControl::hold`] keeps operations in
//! flight until they are released one by one, in whichever order, from any thread.
//!
//! *Sync* makes durable what had taken effect when the sync was handed over, and nothing that
//! came later. When it fails, what it covered is in doubt for good: reads go on seeing it, a later
//! successful sync does not cover it, and after a power cut it is there or not. (Linux marks the
//! pages of a failed write-back clean.) Writing the same place again and syncing ends the doubt.
//!
//! *Power cut* ([`MemControl::crash`]): of the changes since the last sync and of the writes in
//! flight any subset survives, in any order where they overlap, each whole or torn at a sector, one
//! perhaps landing a second time.
//! *kill -9* ([`MemControl::kill`]): everything that took effect stays visible and what was
//! unsynced stays unsynced, so that a power cut after the kill still can take it. What is in
//! flight then has happened or has not ([`MemControl::kill_mid_flight`]). A test that wants every
//! end of every moment of a run records them ([`MemControl::record`], [`Moment`], [`Cuts`]).
//!
//! *EIO once.* After a failed sync the kernel drops the pages it could not write sooner or later;
//! [`MemControl::forget`] says when.
//!
//! *Errors.* The n-th operation of a kind, or every one that touches a range, can fail with a
//! given error and no effect, fail with a part of its effect, or claim success and do nothing.
//!
//! *Damage and attack* are [`MemControl::overwrite`]: the bytes change on both images, behind
//! everybody's back.
//!
//! Not modelled: time, misdirected writes, sectors larger than 512 bytes.

mod change;
mod control;
mod disk;
mod draw;
mod fault;
mod image;
mod moment;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::sys::Event;
use super::{Completion, Medium, Op, Part, Store, Token};

pub use control::{HeldOp, MemControl, Unsynced};
pub use disk::{Deallocation, Fate};
pub use fault::{Counts, Fault, Kind};
pub use moment::{Cuts, Moment};

use disk::{Disk, StoreId};

/// What the handles of one image share.
struct Shared {
    disk: Mutex<Disk>,
    /// Signalled when something was completed or was held back.
    changed: Condvar,
}

/// An image in memory. Clones are handles of the same image.
#[derive(Clone)]
pub struct MemMedium {
    shared: Arc<Shared>,
    alignment: u64,
}

impl fmt::Debug for MemMedium {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemMedium").finish_non_exhaustive()
    }
}

impl MemMedium {
    /// Alignment of data operations, in bytes, unless another one is asked for: a sector.
    const ALIGNMENT: u64 = 512;

    /// An image of `len` bytes, all zero and durable. Memory is used for what is written only.
    pub fn new(len: u64) -> Self {
        Self::with_alignment(len, Self::ALIGNMENT)
    }

    /// One whose data operations must be multiples of `alignment` bytes, or fail with EINVAL.
    pub fn with_alignment(len: u64, alignment: u64) -> Self {
        Self::over(Disk::new(len, alignment), alignment)
    }

    /// The handle with the knobs.
    pub fn control(&self) -> MemControl {
        MemControl::new(self.clone())
    }

    fn over(disk: Disk, alignment: u64) -> Self {
        Self {
            shared: Arc::new(Shared {
                disk: Mutex::new(disk),
                changed: Condvar::new(),
            }),
            alignment,
        }
    }
}

impl Medium for MemMedium {
    type Store = MemStore;

    fn open_store(&self, depth: u32) -> io::Result<MemStore> {
        let event = Arc::new(Event::new()?);
        let id = self.shared.disk.lock().connect(Arc::clone(&event));
        Ok(MemStore {
            medium: self.clone(),
            id,
            event,
            batch: Vec::with_capacity(depth as usize),
            in_flight: 0,
        })
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.shared.disk.lock().len())
    }

    fn alignment(&self) -> u64 {
        self.alignment
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.shared
            .disk
            .lock()
            .read(Kind::MetadataRead, offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.shared
            .disk
            .lock()
            .write(Kind::MetadataWrite, offset, buf)
    }

    fn forget_cached(&self) {
        self.shared.disk.lock().forget_doubted();
    }

    fn sync(&self) -> io::Result<()> {
        let mut disk = self.shared.disk.lock();
        let now = disk.now();
        disk.sync(now)
    }
}

/// A channel to an image in memory.
pub struct MemStore {
    medium: MemMedium,
    id: StoreId,
    event: Arc<Event>,
    /// Submitted and not handed over yet: a store does nothing before the kick.
    batch: Vec<(Op, Token)>,
    in_flight: usize,
}

impl fmt::Debug for MemStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemStore")
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}

impl Store for MemStore {
    fn read_now(&mut self, part: Part, offset: u64, buf: &mut [u8]) -> Option<io::Result<()>> {
        let kind = match part {
            Part::Data => Kind::Read,
            Part::Metadata => Kind::MetadataRead,
        };
        let mut disk = self.medium.shared.disk.lock();
        disk.reads_now(kind).then(|| disk.read(kind, offset, buf))
    }

    fn submit(&mut self, op: Op, token: Token) {
        self.batch.push((op, token));
        self.in_flight += 1;
    }

    fn kick(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        self.medium
            .shared
            .disk
            .lock()
            .accept(self.id, &mut self.batch);
        self.medium.shared.changed.notify_all();
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        let before = done.len();
        let mut disk = self.medium.shared.disk.lock();
        self.event.clear();
        disk.collect(self.id, done);
        drop(disk);
        self.in_flight -= done.len() - before;
    }

    fn is_ready(&mut self) -> bool {
        self.medium.shared.disk.lock().has_mail(self.id)
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn event(&self) -> Option<BorrowedFd<'_>> {
        Some(self.event.fd())
    }

    fn wait(&mut self, timeout: Duration) {
        self.kick();
        let deadline = Instant::now() + timeout;
        let mut disk = self.medium.shared.disk.lock();
        while self.in_flight > 0 && !disk.has_mail(self.id) {
            let wait = self.medium.shared.changed.wait_until(&mut disk, deadline);
            if wait.timed_out() {
                return;
            }
        }
    }
}

impl Drop for MemStore {
    /// What is in flight takes effect, as it would when a process drains its ring; what was
    /// never handed over does not.
    fn drop(&mut self) {
        self.medium.shared.disk.lock().disconnect(self.id);
    }
}
