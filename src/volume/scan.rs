//! Reading zones for what they hold: how far one verifies ([`Scanner::extend`], for recovery) and
//! which of its blocks are bad ([`Scanner::verify`], for `check`), many zones at once
//! ([`Scanner::in_parallel`]).
//!
//! Data is read in chunks of at most 256 KiB, their tag slots in one read each, through the
//! page cache as all metadata. Recovery reads data that way too: it is what a daemon that was killed
//! meanwhile may have left there. `verify` reads data as a guest's reads do, past the page cache
//! where the medium can, some chunks ahead: what counts is the medium, and a disk that is read as a
//! whole should not push everything else out of the host's memory. Nothing is written.
//!
//! *Media errors.* A read that fails as reads of a bad sector do (`is_media_error`) is repeated
//! block by block, and the blocks that fail alone are unreadable: for `extend` as good as not
//! verified, for `verify` bad. Any other failure (no memory, a truncated file) says nothing of the
//! blocks and ends the scan as an error.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use crate::arena;
use crate::format::Layout;
use crate::geometry::{BlockRange, Blocks, Geometry, ZoneIndex};
use crate::integrity::{OpenError, SLOT_LEN, Slot, Stamp};
use crate::keyslot::{KeyId, KeyRef, Keyslots, MIN_SLOTS};
use crate::store::{Completion, IoBuf, Medium, Op, Store};
use crate::zone::{Epoch, Skipped, ZoneRecord};

use super::tags::slot_offset;

/// Most bytes of data that are read as one: calls get no cheaper beyond, and with its slots it
/// stays in the L2 cache between reading and verifying.
const CHUNK: u64 = 256 << 10;
/// Chunks that are being read while one is verified: enough to keep a disk busy.
const AHEAD: usize = 3;
/// How often the end of a read is looked for.
const READ_POLL: Duration = Duration::from_millis(100);
/// Most threads of a scan: each holds a keyslot while it verifies, and there are at least as many.
pub const MAX_THREADS: usize = MIN_SLOTS;
/// How often the caller of a scan hears how far it got: a bar moves smoothly at that.
const TICK: Duration = Duration::from_millis(100);

/// What is wrong with a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fault {
    /// The medium does not give back its data or its tag.
    Unreadable,
    /// It has no tag, as if it had never been written.
    Missing,
    /// Its tag does not fit its data and its place: rot, tampering, or another block's content.
    Mismatch,
}

impl Fault {
    /// The words for reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::Missing => "no tag",
            Self::Mismatch => "tag does not match",
        }
    }
}

/// Blocks of a zone, one after another, that have the same fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadRun {
    /// The blocks, from the start of the zone.
    pub blocks: BlockRange,
    /// What is wrong with each.
    pub fault: Fault,
}

/// Reads and verifies blocks of one image. Shared by the threads of a scan.
#[derive(Debug)]
pub struct Scanner<'a, M> {
    medium: &'a M,
    layout: &'a Layout,
    geometry: &'a Geometry,
    keyslots: &'a Keyslots,
    /// Bytes of data behind us.
    bytes: AtomicU64,
}

/// A piece of a zone in memory.
struct Chunk {
    zone: ZoneIndex,
    blocks: BlockRange,
    data: IoBuf,
    slots: Vec<[u8; SLOT_LEN]>,
}

impl<'a, M: Medium> Scanner<'a, M> {
    /// A scanner of the image on `medium`, whose zone keys come from `keyslots`.
    pub fn new(
        medium: &'a M,
        layout: &'a Layout,
        geometry: &'a Geometry,
        keyslots: &'a Keyslots,
    ) -> Self {
        Self {
            medium,
            layout,
            geometry,
            keyslots,
            bytes: AtomicU64::new(0),
        }
    }

    /// The end of the blocks from `from` on, and before `end`, that were written under `epoch` with
    /// consecutive counters (block + `skipped`) and verify. The first block that was not, does not
    /// or cannot be read ends them. Without tags nothing can be told, and the end is `from`.
    ///
    /// # Errors
    /// Failures that say nothing of the blocks: see the module. A media error is none.
    pub fn extend(
        &self,
        zone: ZoneIndex,
        record: &ZoneRecord,
        epoch: Epoch,
        skipped: Skipped,
        from: Blocks,
        end: Blocks,
    ) -> io::Result<Blocks> {
        if !self.is_tagged() {
            return Ok(from);
        }
        let mut at = from;
        let mut key = None;
        while at < end {
            let wanted = self.chunk_at(at, end);
            let slots = self.read_slots_until_bad(zone, wanted)?;
            let fits =
                |(block, slot): &(u64, &[u8; SLOT_LEN])| is_stamped(slot, epoch, *block, skipped);
            let stamped = (at.0..).zip(&slots).take_while(fits).count();
            if stamped == 0 {
                break;
            }
            // Most zones end here: a key is derived only for one that may go on.
            let key = match &key {
                Some(key) => key,
                None => key.insert(self.key(zone, record)?),
            };
            let sound = self.sound_prefix(zone, at, &slots[..stamped], key)?;
            at = Blocks(at.0 + sound);
            self.count(Blocks(sound));
            if sound < wanted.count.0 {
                break;
            }
        }
        Ok(at)
    }

    /// Reads and verifies every block of `range`, which lies in the capacity of `zone`, and reports
    /// the bad ones in ascending order to `bad`; of a disk without tags the unreadable ones.
    ///
    /// # Errors
    /// Failures that say nothing of the blocks: see the module. A media error is none.
    pub fn verify(
        &self,
        zone: ZoneIndex,
        record: &ZoneRecord,
        range: BlockRange,
        bad: &mut impl FnMut(BadRun),
    ) -> io::Result<()> {
        let key = match self.is_tagged() {
            true => Some(self.key(zone, record)?),
            false => None,
        };
        let mut runs = Runs { open: None, bad };
        let mut reader = Reader::new(self.medium)?;
        let mut slots = Vec::new();
        let mut begun = range.start;
        let mut at = range.start;
        while at < range.end() {
            while begun < range.end() && reader.has_room() {
                let blocks = self.chunk_at(begun, range.end());
                reader.begin(self.layout.block_offset(zone, begun), self.bytes_of(blocks));
                begun = blocks.end();
            }
            let blocks = self.chunk_at(at, range.end());
            let (result, data) = reader.end(self.layout.block_offset(zone, at));
            let mut chunk = Chunk {
                zone,
                blocks,
                data,
                slots,
            };
            match unless_media_error(result)? {
                true => self.verify_chunk(&mut chunk, key.as_ref(), &mut reader, &mut runs)?,
                false => self.verify_blocks(&mut chunk, key.as_ref(), &mut reader, &mut runs)?,
            }
            at = blocks.end();
            self.count(blocks.count);
            slots = chunk.slots;
            reader.give(chunk.data);
        }
        runs.end();
        Ok(())
    }

    /// Verifies a chunk whose data was read.
    fn verify_chunk(
        &self,
        chunk: &mut Chunk,
        key: Option<&KeyRef>,
        reader: &mut Reader<M::Store>,
        runs: &mut Runs<impl FnMut(BadRun)>,
    ) -> io::Result<()> {
        let Some(key) = key else {
            return Ok(());
        };
        if !self.read_slots(chunk)? {
            return self.verify_blocks(chunk, Some(key), reader, runs);
        }
        let start = chunk.blocks.start;
        let slots = chunk.slots.as_flattened();
        match key.open(self.block_len(), start, &mut chunk.data, slots) {
            Ok(()) => Ok(()),
            Err(OpenError::Bad(found)) => {
                for &block in found.numbers() {
                    if let Some(slot) = chunk.slots.get(usize_of(block.0 - start.0)) {
                        runs.add(block, tag_fault(slot));
                    }
                }
                Ok(())
            }
            Err(other) => Err(io::Error::other(other)),
        }
    }

    /// Reads and verifies the blocks of a chunk one by one.
    fn verify_blocks(
        &self,
        chunk: &mut Chunk,
        key: Option<&KeyRef>,
        reader: &mut Reader<M::Store>,
        runs: &mut Runs<impl FnMut(BadRun)>,
    ) -> io::Result<()> {
        let BlockRange { start, .. } = chunk.blocks;
        let end = chunk.blocks.end();
        for block in (start.0..end.0).map(Blocks) {
            chunk.blocks = BlockRange {
                start: block,
                count: Blocks(1),
            };
            let offset = self.layout.block_offset(chunk.zone, block);
            reader.begin(offset, self.block_len());
            let (result, data) = reader.end(offset);
            reader.give(std::mem::replace(&mut chunk.data, data));
            let readable =
                unless_media_error(result)? && (key.is_none() || self.read_slots(chunk)?);
            let fault = match (readable, key) {
                (false, _) => Some(Fault::Unreadable),
                (true, None) => None,
                (true, Some(key)) => self.fault_of(chunk, key)?,
            };
            if let Some(fault) = fault {
                runs.add(block, fault);
            }
        }
        Ok(())
    }

    /// What is wrong with the one block of `chunk`, which was read.
    fn fault_of(&self, chunk: &mut Chunk, key: &KeyRef) -> io::Result<Option<Fault>> {
        let BlockRange { start, .. } = chunk.blocks;
        let slots = chunk.slots.as_flattened();
        match key.open(self.block_len(), start, &mut chunk.data, slots) {
            Ok(()) => Ok(None),
            Err(OpenError::Bad(_)) => Ok(chunk.slots.first().map(tag_fault)),
            Err(other) => Err(io::Error::other(other)),
        }
    }

    /// Reads the slots of a chunk; `false` for a media error in them.
    fn read_slots(&self, chunk: &mut Chunk) -> io::Result<bool> {
        let BlockRange { start, count } = chunk.blocks;
        chunk.slots.resize(usize_of(count.0), [0; SLOT_LEN]);
        let at = self.slot_at(chunk.zone, start);
        self.read(at, chunk.slots.as_flattened_mut())
    }

    /// The slots of `blocks`, up to the first that cannot be read.
    fn read_slots_until_bad(
        &self,
        zone: ZoneIndex,
        blocks: BlockRange,
    ) -> io::Result<Vec<[u8; SLOT_LEN]>> {
        let mut slots = vec![[0; SLOT_LEN]; usize_of(blocks.count.0)];
        let at = self.slot_at(zone, blocks.start);
        let readable = self.read_until_bad(at, slots.as_flattened_mut(), SLOT_LEN)?;
        slots.truncate(readable);
        Ok(slots)
    }

    /// How many of the blocks at `start` can be read and fit their slots.
    fn sound_prefix(
        &self,
        zone: ZoneIndex,
        start: Blocks,
        slots: &[[u8; SLOT_LEN]],
        key: &KeyRef,
    ) -> io::Result<u64> {
        let block = self.block_len();
        let mut data = IoBuf::new(slots.len() * block);
        let readable =
            self.read_until_bad(self.layout.block_offset(zone, start), &mut data, block)?;
        data.set_len(readable * block);
        let slots = slots[..readable].as_flattened();
        match key.open(block, start, &mut data, slots) {
            Ok(()) => Ok(readable as u64),
            Err(OpenError::Bad(found)) => Ok(found.first().0.saturating_sub(start.0)),
            Err(other) => Err(io::Error::other(other)),
        }
    }

    /// Fills `buf` as far as the medium can be read, in units of `unit` bytes; says how many. Not
    /// by halves: a failing disk takes seconds over a bad sector, and this asks for it only twice.
    fn read_until_bad(&self, offset: u64, buf: &mut [u8], unit: usize) -> io::Result<usize> {
        if self.read(offset, buf)? {
            return Ok(buf.len() / unit);
        }
        for (number, (offset, piece)) in (offset..)
            .step_by(unit)
            .zip(buf.chunks_exact_mut(unit))
            .enumerate()
        {
            if !self.read(offset, piece)? {
                return Ok(number);
            }
        }
        Ok(buf.len() / unit)
    }

    /// Reads all of `buf`; `false` for a media error.
    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<bool> {
        unless_media_error(self.medium.read_at(offset, buf))
    }

    /// Works on `jobs` in as many threads as there are processors, at most [`MAX_THREADS`], and
    /// hands every result to `done`, in any order. `tick` hears the bytes of data that were scanned
    /// so far (also by earlier calls), some times a second and at the end. Both are called on the
    /// caller's thread.
    ///
    /// # Errors
    /// The first error of a job, after which no other is begun; or that of starting a thread.
    pub fn in_parallel<J: Send, R: Send>(
        &self,
        jobs: impl Iterator<Item = J> + Send,
        work: impl Fn(J) -> io::Result<R> + Sync,
        mut done: impl FnMut(R),
        mut tick: impl FnMut(u64),
    ) -> io::Result<()> {
        let threads = thread::available_parallelism().map_or(1, |count| count.get());
        let jobs = Mutex::new(jobs);
        let stopped = AtomicBool::new(false);
        let (to_us, results) = sync_channel(MAX_THREADS);
        let worker = |to_us: SyncSender<io::Result<R>>| {
            while !stopped.load(Ordering::Relaxed) {
                // A poisoned lock is one whose iterator panicked: no more jobs.
                let Some(job) = jobs.lock().ok().and_then(|mut jobs| jobs.next()) else {
                    return;
                };
                if to_us.send(work(job)).is_err() {
                    return;
                }
            }
        };
        thread::scope(|scope| {
            let mut outcome = Ok(());
            let worker = &worker;
            for number in 0..threads.min(MAX_THREADS) {
                let to_us = to_us.clone();
                let name = format!("scan {number}");
                let started = thread::Builder::new()
                    .name(name)
                    // The stack may be kept for another thread: without what encryption left there.
                    .spawn_scoped(scope, move || arena::scrubbed(|| worker(to_us)));
                match started {
                    Ok(_) => {}
                    // Fewer threads do as well, if slower.
                    Err(e) if number == 0 => outcome = Err(e),
                    Err(_) => break,
                }
            }
            drop(to_us);
            loop {
                match results.recv_timeout(TICK) {
                    Ok(Ok(result)) => done(result),
                    Ok(Err(e)) => {
                        stopped.store(true, Ordering::Relaxed);
                        outcome = outcome.and(Err(e));
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => break,
                }
                tick(self.bytes.load(Ordering::Relaxed));
            }
            outcome
        })
    }

    /// Blocks from `at` to `end`, but at most a chunk.
    fn chunk_at(&self, at: Blocks, end: Blocks) -> BlockRange {
        let left = end.0.saturating_sub(at.0);
        BlockRange {
            start: at,
            count: Blocks(left.min(self.geometry.blocks_in(CHUNK).0)),
        }
    }

    fn key(&self, zone: ZoneIndex, record: &ZoneRecord) -> io::Result<KeyRef> {
        let id = KeyId {
            zone,
            generation: record.generation,
        };
        self.keyslots
            .get(&mut self.keyslots.cache(), id, || Some(record.salt))
            .map_err(io::Error::other)
    }

    fn is_tagged(&self) -> bool {
        self.layout.tag_slot_bytes() != 0
    }

    fn slot_at(&self, zone: ZoneIndex, block: Blocks) -> u64 {
        slot_offset(self.layout, zone, block)
    }

    fn bytes_of(&self, blocks: BlockRange) -> usize {
        usize_of(self.geometry.block_bytes(blocks.count))
    }

    fn block_len(&self) -> usize {
        usize_of(self.geometry.block_size().bytes())
    }

    fn count(&self, blocks: Blocks) {
        let bytes = self.geometry.block_bytes(blocks);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// Reads of data, several at once, named by their offsets.
struct Reader<S> {
    store: S,
    /// What is over and was not asked for yet.
    over: Vec<Completion>,
    spare: Vec<IoBuf>,
    under_way: usize,
}

impl<S: Store> Reader<S> {
    fn new(medium: &impl Medium<Store = S>) -> io::Result<Self> {
        // One more than are read ahead, for the blocks of the chunk at hand.
        let depth = u32::try_from(AHEAD + 1).unwrap_or(u32::MAX);
        Ok(Self {
            store: medium.open_store(depth)?,
            over: Vec::new(),
            spare: Vec::new(),
            under_way: 0,
        })
    }

    fn has_room(&self) -> bool {
        self.under_way < AHEAD
    }

    /// Begins to read `len` bytes, at most a chunk.
    fn begin(&mut self, offset: u64, len: usize) {
        let mut buf = self.buffer();
        buf.set_len(len);
        self.store.submit(Op::Read { offset, buf }, offset);
        self.store.kick();
        self.under_way += 1;
    }

    /// Waits for the read at `offset`, which was begun.
    fn end(&mut self, offset: u64) -> (io::Result<()>, IoBuf) {
        loop {
            let found = self.over.iter().position(|read| read.token == offset);
            if let Some(position) = found {
                let Completion { result, buf, .. } = self.over.swap_remove(position);
                self.under_way -= 1;
                return (result, buf.unwrap_or_else(|| self.buffer()));
            }
            let known = self.over.len();
            self.store.reap(&mut self.over);
            if self.over.len() == known {
                self.store.wait(READ_POLL);
            }
        }
    }

    fn give(&mut self, buf: IoBuf) {
        self.spare.push(buf);
    }

    fn buffer(&mut self) -> IoBuf {
        self.spare
            .pop()
            .unwrap_or_else(|| IoBuf::new(usize_of(CHUNK)))
    }
}

/// Joins bad blocks into runs.
struct Runs<'a, F> {
    open: Option<BadRun>,
    bad: &'a mut F,
}

impl<F: FnMut(BadRun)> Runs<'_, F> {
    fn add(&mut self, block: Blocks, fault: Fault) {
        match &mut self.open {
            Some(run) if run.fault == fault && run.blocks.end() == block => run.blocks.count.0 += 1,
            _ => {
                self.end();
                let blocks = BlockRange {
                    start: block,
                    count: Blocks(1),
                };
                self.open = Some(BadRun { blocks, fault });
            }
        }
    }

    fn end(&mut self) {
        if let Some(run) = self.open.take() {
            (self.bad)(run);
        }
    }
}

/// What is wrong with a block whose tag is not right.
fn tag_fault(slot: &[u8; SLOT_LEN]) -> Fault {
    match Slot::parse(slot).is_blank() {
        true => Fault::Missing,
        false => Fault::Mismatch,
    }
}

fn is_stamped(slot: &[u8; SLOT_LEN], epoch: Epoch, block: u64, skipped: Skipped) -> bool {
    let slot = Slot::parse(slot);
    let counter = skipped.counter(Blocks(block));
    // A slot that was never written would pass for the first one of epoch 0.
    !slot.is_blank() && counter.is_some_and(|counter| slot.stamp() == Stamp { epoch, counter })
}

/// Whether a read succeeded, or failed with a media error; any other error is one.
fn unless_media_error(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(e) if is_media_error(&e) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Whether a read failed as one of a bad sector does: EIO, and what Linux makes of a medium error
/// (ENODATA), a target that gave up (EREMOTEIO), and failed checksums of the device (EILSEQ) or of
/// the host's file system (EBADMSG).
fn is_media_error(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EIO | libc::ENODATA | libc::EREMOTEIO | libc::EILSEQ | libc::EBADMSG)
    )
}

/// Counts within a chunk, which fit any machine.
fn usize_of(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
