//! One worker's way to the data of a file: which operations are done at once, and which wait.
//!
//! - O_DIRECT: everything goes to the ring.
//! - Page cache: a read of what is cached and every write are done inside of `submit`, since a
//!   ring would hand each of them to a thread of the kernel, at two to three times the cost. Only
//!   reads that must wait for the device, syncs and deallocations go to the ring. (A write may
//!   wait there while the kernel throttles whoever dirties pages faster than the device takes
//!   them.)
//! - A file in memory (tmpfs): the same, no read ever waits, and what exists of the file is copied from
//!   and to a mapping of it ([`Mapped`]).
//! - No io_uring on this host: everything inside of `submit`.
//!
//! A thread that is about to be forbidden to make rings makes one before ([`keep_ring`]). It keeps
//! that one from one store to the next, and makes no other.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Once};
use std::time::Duration;

use log::info;

use super::double::{AREA_LEN, Slot, Slots};
use super::mapped::{Mapped, Twice, settle};
use super::sys;
use super::uring::Ring;
use super::{Completion, Op, Part, Store, Token};

/// The descriptor that carries data, and how it wants to be used.
#[derive(Debug)]
pub(super) struct Data {
    file: File,
    way: Way,
    /// One that goes through the page cache, if `file` does not.
    metadata: Option<File>,
    /// The whole of a file in memory, unless the system does not want to map it.
    mapped: Option<Mapped>,
    /// For blocks that are written in place through the mapping.
    slots: Option<Slots>,
    /// What is deallocated keeps its space.
    keeps_space: bool,
    /// The descriptor with the owner's lock: held for as long as anybody may write.
    _owner: File,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// O_DIRECT, in units of so many bytes.
    Direct(u64),
    /// Through the page cache, with a device behind it.
    Cached,
    /// The page cache is all there is (tmpfs): no read waits, and RWF_NOWAIT is not known.
    Memory,
}

impl Data {
    pub(super) fn new(file: File, metadata: Option<File>, way: Way, owner: File) -> Self {
        Self {
            file,
            way,
            metadata,
            mapped: None,
            slots: None,
            keeps_space: false,
            _owner: owner,
        }
    }

    /// Maps a file in memory of `len` bytes.
    pub(super) fn map(&mut self, len: u64, writable: bool) -> io::Result<()> {
        if self.way == Way::Memory {
            self.mapped = Some(Mapped::new(&self.file, len, writable)?);
        }
        Ok(())
    }

    pub(super) fn is_mapped(&self) -> bool {
        self.mapped.is_some()
    }

    /// Blocks are written in place by way of the slots at `area` from now on, if the file is mapped. The area is
    /// finished.
    pub(super) fn write_twice(&mut self, area: u64) -> io::Result<()> {
        if self.is_mapped() {
            // Its pages are to exist.
            self.write_at_once(area, &[0; AREA_LEN])?;
            self.slots = Some(Slots::new(area));
        }
        Ok(())
    }

    pub(super) fn keep_space(&mut self) {
        self.keeps_space = true;
    }

    fn read_at_once(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let Some(mapped) = &self.mapped else {
            return self.file.read_exact_at(buf, offset);
        };
        if !mapped.read(offset, buf) {
            self.file.read_exact_at(buf, offset)?;
            mapped.note_read(offset, buf);
        }
        Ok(())
    }

    fn write_at_once(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.file.write_all_at(buf, offset)?;
        if let Some(mapped) = &self.mapped {
            mapped.note_written(offset, buf.len());
        }
        Ok(())
    }

    /// The same for what may be there already and be read by others: through the mapping if `slot` is given.
    fn write_in_place(&self, slot: Option<Slot>, offset: u64, buf: &[u8]) -> io::Result<()> {
        let (Some(mapped), Some(slots)) = (&self.mapped, &self.slots) else {
            return self.write_at_once(offset, buf);
        };
        let written = slot.map(|slot| (slot, mapped.write_twice(slots, slot, offset, buf)));
        if matches!(written, Some((_, Twice::Done))) {
            return Ok(());
        }
        let _held = slots.hold_all(offset, buf.len());
        self.write_at_once(offset, buf)?;
        match written {
            // Or the next daemon would put there what lies in the slot.
            Some((slot, Twice::Lost)) => self.file.write_all_at(&[0; 8], slot.head),
            _ => Ok(()),
        }
    }

    /// The same, if it may be cut short by a kill.
    pub(super) fn write_loose_at_once(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        match self.write_mapped(offset, buf) {
            true => {
                settle();
                Ok(())
            }
            false => self.write_at_once(offset, buf),
        }
    }

    fn write_mapped(&self, offset: u64, buf: &[u8]) -> bool {
        let mapped = self.mapped.as_ref();
        mapped.is_some_and(|mapped| mapped.write(offset, buf))
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// The file by way of the page cache.
    pub(super) fn metadata(&self) -> &File {
        self.metadata.as_ref().unwrap_or(&self.file)
    }

    pub(super) fn is_direct(&self) -> bool {
        matches!(self.way, Way::Direct(_))
    }

    /// Bytes that offsets and lengths must be multiples of.
    pub(super) fn alignment(&self) -> u64 {
        match self.way {
            Way::Direct(alignment) => alignment,
            Way::Cached | Way::Memory => 1,
        }
    }
}

/// The [`Store`] of a [`FileMedium`](super::FileMedium).
///
/// It belongs to the thread that kicks it first, and is to be dropped there too.
#[derive(Debug)]
pub struct FileStore {
    data: Arc<Data>,
    /// `None`: the host has no io_uring, or none was wanted.
    ring: Option<Ring>,
    /// What completed inside of `submit`.
    done: Vec<Completion>,
    /// If the image is mapped, and not all of them are taken.
    slot: Option<Slot>,
}

/// What a thread has for its next store.
#[derive(Debug)]
enum Kept {
    /// Nothing: each store has a ring of its own.
    Nothing,
    /// The one ring of this thread, unless a store has it or it is lost.
    Ring(Option<Box<Ring>>),
    /// That the host has no io_uring.
    Synchronous,
}

thread_local! {
    static KEPT: RefCell<Kept> = const { RefCell::new(Kept::Nothing) };
}

/// Makes the ring of this thread, for up to `depth` operations at once. From now on the thread makes
/// no other: its stores use this one, one at a time. `false`: the host has none, and they do without.
pub(super) fn keep_ring(data: &Arc<Data>, depth: u32) -> io::Result<bool> {
    let Some(mut ring) = new_ring(data, depth)? else {
        KEPT.set(Kept::Synchronous);
        return Ok(false);
    };
    ring.keep()?;
    KEPT.set(Kept::Ring(Some(Box::new(ring))));
    Ok(true)
}

/// A ring; `None` where the host has none.
fn new_ring(data: &Arc<Data>, depth: u32) -> io::Result<Option<Ring>> {
    static SAID: Once = Once::new();
    match Ring::new(Arc::clone(data), depth) {
        Ok(ring) => Ok(Some(ring)),
        // Not built in or too old; forbidden by the administrator or a sandbox; more memory than old
        // kernels let a user lock.
        Err(e)
            if matches!(
                e.raw_os_error(),
                Some(libc::ENOSYS | libc::EPERM | libc::EACCES | libc::ENOMEM)
            ) =>
        {
            SAID.call_once(|| info!("no io_uring on this host ({e}): using synchronous I/O"));
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

impl Drop for FileStore {
    /// Gives the slot back, and the ring to the thread, if that keeps it.
    fn drop(&mut self) {
        if let (Some(slots), Some(slot)) = (&self.data.slots, self.slot.take()) {
            slots.give(slot);
        }
        let Some(mut ring) = self.ring.take() else {
            return;
        };
        // A thread that is ending keeps nothing.
        let _ = KEPT.try_with(|kept| {
            if let Kept::Ring(place @ None) = &mut *kept.borrow_mut()
                && ring.come_to_rest()
            {
                *place = Some(Box::new(ring));
            }
        });
    }
}

impl FileStore {
    pub(super) fn open(data: Arc<Data>, depth: u32) -> io::Result<Self> {
        let ring = KEPT.with_borrow_mut(|kept| match kept {
            Kept::Nothing => new_ring(&data, depth),
            Kept::Synchronous => Ok(None),
            Kept::Ring(ring) => match ring.take() {
                Some(ring) if ring.is_of(&data) => Ok(Some(*ring)),
                _ => Err(io::Error::other("this thread has lost its io_uring")),
            },
        })?;
        let mut store = Self::synchronous(data, depth);
        store.ring = ring;
        Ok(store)
    }

    pub(super) fn synchronous(data: Arc<Data>, depth: u32) -> Self {
        Self {
            slot: data.slots.as_ref().and_then(Slots::take),
            data,
            ring: None,
            done: Vec::with_capacity(depth as usize),
        }
    }

    /// Whether it has an io_uring.
    pub fn has_ring(&self) -> bool {
        self.ring.is_some()
    }

    /// Does an operation here and now.
    fn perform(&mut self, op: Op, token: Token) {
        let file = &self.data.file;
        let (result, buf) = match op {
            Op::Read { offset, mut buf } => (self.data.read_at_once(offset, &mut buf), Some(buf)),
            Op::ReadMetadata { offset, mut buf } => {
                let read = self.data.metadata().read_exact_at(&mut buf, offset);
                (read, Some(buf))
            }
            Op::Write { offset, buf } => {
                let written = self.data.write_in_place(self.slot, offset, &buf);
                (written, Some(buf))
            }
            Op::Sync => (file.sync_data(), None),
            Op::Deallocate { len: 0, .. } => (Ok(()), None),
            Op::Deallocate { offset, len } => {
                (deallocated(sys::deallocate(file, offset, len)), None)
            }
        };
        self.done.push(Completion { token, result, buf });
    }

    fn hand_to_ring(&mut self, op: Op, token: Token, done: usize) {
        match &mut self.ring {
            Some(ring) => ring.submit(op, token, done),
            None => self.perform(op, token),
        }
    }

    /// Reads what is in the page cache, and sends the rest to the ring to wait for the device.
    fn read_cached(&mut self, mut op: Op, token: Token) {
        // No error is final here: the ring meets it again, and knows which ones pass.
        let (done, len) = match &mut op {
            Op::Read { offset, buf } => {
                (sys::read_cached(&self.data.file, *offset, buf), buf.len())
            }
            Op::ReadMetadata { offset, buf } => (
                sys::read_cached(self.data.metadata(), *offset, buf),
                buf.len(),
            ),
            _ => (Ok(0), 1),
        };
        let done = done.unwrap_or(0);
        match op {
            Op::Read { buf, .. } | Op::ReadMetadata { buf, .. } if done == len => {
                self.done.push(Completion {
                    token,
                    result: Ok(()),
                    buf: Some(buf),
                });
            }
            op => self.hand_to_ring(op, token, done),
        }
    }
}

/// Deallocation is a hint: a medium that knows none has followed it as well as it can.
pub(super) fn deallocated(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
        other => other,
    }
}

/// Whether there is nothing to do for an operation but to complete it.
fn is_empty(op: &Op) -> bool {
    match op {
        Op::Read { buf, .. } | Op::ReadMetadata { buf, .. } | Op::Write { buf, .. } => {
            buf.is_empty()
        }
        Op::Sync => false,
        Op::Deallocate { len, .. } => *len == 0,
    }
}

impl Store for FileStore {
    fn read_now(&mut self, part: Part, offset: u64, buf: &mut [u8]) -> Option<io::Result<()>> {
        let (file, way) = match (part, self.data.way) {
            (Part::Data, way) => (&self.data.file, way),
            (Part::Metadata, Way::Memory) => (self.data.metadata(), Way::Memory),
            (Part::Metadata, _) => (self.data.metadata(), Way::Cached),
        };
        match way {
            Way::Memory => Some(self.data.read_at_once(offset, buf)),
            Way::Cached if self.ring.is_some() => {
                let read = sys::read_cached(file, offset, buf);
                (read.ok()? == buf.len()).then_some(Ok(()))
            }
            Way::Cached | Way::Direct(_) => None,
        }
    }

    fn submit(&mut self, op: Op, token: Token) {
        let op = match op {
            Op::Deallocate { offset, .. } if self.data.keeps_space => {
                Op::Deallocate { offset, len: 0 }
            }
            op => op,
        };
        if let (Op::Deallocate { offset, len }, Some(mapped)) = (&op, &self.data.mapped) {
            // Before it goes, or somebody reads a hole by the mapping, and makes a page of it.
            mapped.note_freed(*offset, *len);
        }
        if self.ring.is_none() || is_empty(&op) {
            return self.perform(op, token);
        }
        match (self.data.way, op) {
            (Way::Cached, op @ Op::Write { .. })
            | (Way::Memory, op @ (Op::Read { .. } | Op::ReadMetadata { .. } | Op::Write { .. })) => {
                self.perform(op, token);
            }
            (Way::Cached, op @ Op::Read { .. }) | (_, op @ Op::ReadMetadata { .. }) => {
                self.read_cached(op, token);
            }
            (_, op) => self.hand_to_ring(op, token, 0),
        }
    }

    fn is_mapped(&self) -> bool {
        self.data.is_mapped()
    }

    fn prefetch(&self, offset: u64, len: usize) {
        if let Some(mapped) = &self.data.mapped {
            mapped.prefetch(offset, len);
        }
    }

    fn submit_loose(&mut self, op: Op, token: Token) {
        match op {
            Op::Write { offset, buf } if self.data.write_mapped(offset, &buf) => {
                self.done.push(Completion {
                    token,
                    result: Ok(()),
                    buf: Some(buf),
                });
            }
            op => self.submit(op, token),
        }
    }

    fn kick(&mut self) {
        if let Some(ring) = &mut self.ring {
            ring.kick();
        }
    }

    fn reap(&mut self, done: &mut Vec<Completion>) {
        if self.data.is_mapped() && !self.done.is_empty() {
            settle();
        }
        done.append(&mut self.done);
        if let Some(ring) = &mut self.ring {
            ring.reap(done);
        }
    }

    fn is_ready(&mut self) -> bool {
        !self.done.is_empty() || self.ring.as_mut().is_some_and(Ring::is_ready)
    }

    fn in_flight(&self) -> usize {
        self.done.len() + self.ring.as_ref().map_or(0, Ring::in_flight)
    }

    fn event(&self) -> Option<BorrowedFd<'_>> {
        self.ring.as_ref().map(Ring::event)
    }

    fn wait(&mut self, timeout: Duration) {
        match &mut self.ring {
            Some(ring) if self.done.is_empty() => ring.wait(timeout),
            // Everything is done inside of `submit`, or something is there to be reaped.
            _ => {}
        }
    }
}
