//! The state of an image in memory, and what operations, power cuts and kills do to it.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use super::super::sys::Event;
use super::super::{Completion, IoBuf, Op, Token};
use super::change::{Change, Content, SECTOR, index, sectors_of};
use super::draw::Draw;
use super::fault::{Counts, Fault, Kind, Traps, error};
use super::image::Image;
use super::moment::{Flying, Landing, Moment};

/// What a deallocation does to the bytes: the contract allows zeroes and the old ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deallocation {
    /// Zeroes everywhere.
    Zeroes,
    /// The old bytes everywhere.
    Keeps,
    /// Zeroes in a part of the range that is drawn anew each time, from this seed on.
    ZeroesSome(u64),
}

/// What a power cut makes of one unsynced change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It never was.
    Lost,
    /// It survives.
    Kept,
    /// Some of its sectors survive: those that this seed draws.
    Torn(u64),
}

/// One channel of the image.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct StoreId(usize);

struct Mailbox {
    done: Vec<Completion>,
    event: Arc<Event>,
}

/// An operation that is held back.
pub(super) struct InFlight {
    pub(super) id: u64,
    store: StoreId,
    token: Token,
    pub(super) op: Op,
    handed_over: u64,
}

pub(super) fn kind_of(op: &Op) -> Kind {
    match op {
        Op::Read { .. } => Kind::Read,
        Op::ReadMetadata { .. } => Kind::MetadataRead,
        Op::Write { .. } => Kind::Write,
        Op::Sync => Kind::Sync,
        Op::Deallocate { .. } => Kind::Deallocate,
    }
}

/// Where an operation works: offset and length in bytes.
pub(super) fn range_of(op: &Op) -> (u64, u64) {
    match op {
        Op::Read { offset, buf } | Op::ReadMetadata { offset, buf } | Op::Write { offset, buf } => {
            (*offset, buf.len() as u64)
        }
        Op::Sync => (0, 0),
        Op::Deallocate { offset, len } => (*offset, *len),
    }
}

/// An unsynced change or a write in flight, to one about to decide its fate.
#[derive(Clone)]
pub(super) struct Candidate {
    pub(super) change: Change,
    pub(super) in_flight: bool,
}

impl Candidate {
    pub(super) fn range(&self) -> Range<u64> {
        self.change.range.clone()
    }
}

pub(super) struct Disk {
    len: u64,
    alignment: u64,
    /// What reads see.
    seen: Image,
    /// What would survive a power cut for certain.
    durable: Image,
    /// What lies between, oldest first.
    changes: Vec<Change>,
    /// Counts hand-overs and effects, to order them.
    clock: u64,
    mailboxes: Vec<Mailbox>,
    pub(super) held: Vec<InFlight>,
    pub(super) holding: Vec<Kind>,
    pub(super) reads_at_once: bool,
    pub(super) shuffle: Option<Draw>,
    pub(super) traps: Traps,
    deallocation: Deallocation,
    deallocation_draw: Draw,
    counts: Arc<Mutex<Counts>>,
    /// Moments kept for who looks at all of them.
    moments: Option<Vec<Moment>>,
}

impl Disk {
    pub(super) fn new(len: u64, alignment: u64) -> Self {
        Self {
            len,
            alignment,
            seen: Image::default(),
            durable: Image::default(),
            changes: Vec::new(),
            clock: 0,
            mailboxes: Vec::new(),
            held: Vec::new(),
            holding: Vec::new(),
            reads_at_once: false,
            shuffle: None,
            traps: Traps::default(),
            deallocation: Deallocation::Zeroes,
            deallocation_draw: Draw::new(0),
            counts: Arc::default(),
            moments: None,
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn counts(&self) -> Counts {
        *self.counts.lock()
    }

    fn count(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.counts.lock());
    }

    pub(super) fn set_deallocation(&mut self, mode: Deallocation) {
        self.deallocation = mode;
        if let Deallocation::ZeroesSome(seed) = mode {
            self.deallocation_draw = Draw::new(seed);
        }
    }

    /// The time of a hand-over: later than every effect so far.
    pub(super) fn now(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    // Channels.

    pub(super) fn connect(&mut self, event: Arc<Event>) -> StoreId {
        let done = Vec::new();
        self.mailboxes.push(Mailbox { done, event });
        StoreId(self.mailboxes.len() - 1)
    }

    pub(super) fn disconnect(&mut self, store: StoreId) {
        let (mine, others) = self.held.drain(..).partition(|op| op.store == store);
        self.held = others;
        let mine: Vec<InFlight> = mine;
        for op in mine {
            let _nobody_waits_for_it = self.execute(op.op, op.handed_over);
        }
        self.mailboxes[store.0].done.clear();
    }

    /// Takes over a batch, and does at once what is not to be held.
    pub(super) fn accept(&mut self, store: StoreId, batch: &mut Vec<(Op, Token)>) {
        let alignment = self.alignment;
        // One time for the whole batch: a sync does not cover the writes it was submitted with.
        let handed_over = self.now();
        if let Some(draw) = &mut self.shuffle {
            draw.shuffle(batch);
            self.count(|c| c.shuffled += 1);
        }
        for (op, token) in batch.drain(..) {
            let (offset, len) = range_of(&op);
            if !offset.is_multiple_of(alignment) || !len.is_multiple_of(alignment) {
                self.count(|c| c.misaligned += 1);
                self.deliver(store, token, (Err(error(libc::EINVAL)), buffer_of(op)));
            } else if self.holding.contains(&kind_of(&op)) {
                self.count(|c| c.held += 1);
                let id = self.now();
                self.held.push(InFlight {
                    id,
                    store,
                    token,
                    op,
                    handed_over,
                });
            } else {
                let end = self.execute(op, handed_over);
                self.deliver(store, token, end);
            }
        }
    }

    /// Lets go of a held operation: it takes effect, or fails with `errno`. Wakes its channel.
    pub(super) fn release(&mut self, id: u64, errno: Option<i32>) -> bool {
        let Some(at) = self.held.iter().position(|op| op.id == id) else {
            return false;
        };
        let InFlight {
            store,
            token,
            op,
            handed_over,
            ..
        } = self.held.remove(at);
        if at > 0 {
            self.count(|c| c.overtaken += 1);
        }
        let end = match errno {
            Some(errno) => {
                self.count(|c| {
                    c.failed += 1;
                    c.note_error(kind_of(&op), Fault::Fail(errno));
                });
                if matches!(op, Op::Sync) {
                    self.doubt(handed_over);
                }
                (Err(error(errno)), buffer_of(op))
            }
            None => self.execute(op, handed_over),
        };
        self.deliver(store, token, end);
        self.mailboxes[store.0].event.raise();
        true
    }

    pub(super) fn has_mail(&self, store: StoreId) -> bool {
        !self.mailboxes[store.0].done.is_empty()
    }

    pub(super) fn collect(&mut self, store: StoreId, done: &mut Vec<Completion>) {
        done.append(&mut self.mailboxes[store.0].done);
    }

    fn deliver(&mut self, store: StoreId, token: Token, end: (io::Result<()>, Option<IoBuf>)) {
        let (result, buf) = end;
        let done = &mut self.mailboxes[store.0].done;
        done.push(Completion { token, result, buf });
    }

    // Effects.

    fn execute(&mut self, op: Op, handed_over: u64) -> (io::Result<()>, Option<IoBuf>) {
        match op {
            Op::Read { offset, mut buf } => (self.read(Kind::Read, offset, &mut buf), Some(buf)),
            Op::ReadMetadata { offset, mut buf } => {
                (self.read(Kind::MetadataRead, offset, &mut buf), Some(buf))
            }
            Op::Write { offset, buf } => (self.write(Kind::Write, offset, &buf), Some(buf)),
            Op::Sync => (self.sync(handed_over), None),
            Op::Deallocate { offset, len } => (self.deallocate(offset, len), None),
        }
    }

    fn check(&self, offset: u64, len: u64, errno: i32) -> io::Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(error(errno)),
        }
    }

    /// The fault that was set for an operation, if one was. Counts it.
    fn trap(&mut self, kind: Kind, offset: u64, len: u64) -> Option<Fault> {
        let fault = self.traps.spring(kind, offset, len)?;
        self.count(|c| {
            match fault {
                Fault::Tear(..) if kind != Kind::Sync => c.torn += 1,
                Fault::Fail(_) | Fault::Tear(..) => c.failed += 1,
                Fault::Lose => c.lost += 1,
            }
            c.note_error(kind, fault);
        });
        Some(fault)
    }

    /// Whether a read of this kind takes effect as soon as it is wanted.
    pub(super) fn reads_now(&self, kind: Kind) -> bool {
        self.reads_at_once && !self.holding.contains(&kind)
    }

    pub(super) fn read(&mut self, kind: Kind, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let len = buf.len() as u64;
        if self.check(offset, len, 0).is_err() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match self.trap(kind, offset, len) {
            Some(Fault::Fail(errno)) => return Err(error(errno)),
            Some(Fault::Tear(errno, keep)) => {
                let part = index(torn_len(offset, len, keep));
                self.seen.read(offset, &mut buf[..part]);
                return Err(error(errno));
            }
            Some(Fault::Lose) => return Ok(()),
            None => self.seen.read(offset, buf),
        }
        self.count(|c| match kind {
            Kind::MetadataRead => c.metadata_reads += 1,
            _ => c.reads += 1,
        });
        Ok(())
    }

    pub(super) fn write(&mut self, kind: Kind, offset: u64, buf: &[u8]) -> io::Result<()> {
        let len = buf.len() as u64;
        self.check(offset, len, libc::ENOSPC)?;
        match self.trap(kind, offset, len) {
            Some(Fault::Fail(errno)) => return Err(error(errno)),
            Some(Fault::Tear(errno, keep)) => {
                let part = index(torn_len(offset, len, keep));
                self.change(offset, &buf[..part]);
                return Err(error(errno));
            }
            Some(Fault::Lose) => return Ok(()),
            None => self.change(offset, buf),
        }
        self.count(|c| match kind {
            Kind::MetadataWrite => c.metadata_writes += 1,
            _ => c.writes += 1,
        });
        Ok(())
    }

    fn change(&mut self, offset: u64, buf: &[u8]) {
        if buf.is_empty() {
            return;
        }
        self.note_moment();
        self.seen.write(offset, buf);
        let at = self.now();
        self.changes
            .push(sectors_of(&self.seen, offset, buf.len(), at));
    }

    pub(super) fn deallocate(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.check(offset, len, libc::EINVAL)?;
        match self.trap(Kind::Deallocate, offset, len) {
            Some(Fault::Fail(errno) | Fault::Tear(errno, _)) => return Err(error(errno)),
            Some(Fault::Lose) => return Ok(()),
            None => {}
        }
        self.count(|c| c.deallocations += 1);
        // Sectors that lie in the range whole: the medium has no smaller ones to give back.
        let (first, end) = (offset.div_ceil(SECTOR), (offset + len) / SECTOR);
        if first >= end {
            return Ok(());
        }
        let (from, to) = match self.deallocation {
            Deallocation::Zeroes => (0, end - first),
            Deallocation::Keeps => return Ok(()),
            Deallocation::ZeroesSome(_) => {
                let draw = &mut self.deallocation_draw;
                let (a, b) = (draw.below(end - first + 1), draw.below(end - first + 1));
                (a.min(b), a.max(b))
            }
        };
        if from == to {
            return Ok(());
        }
        self.note_moment();
        let change = Change {
            at: self.now(),
            doubted: None,
            range: (first + from) * SECTOR..(first + to) * SECTOR,
            content: Content::Zeroes,
        };
        change.apply(&mut self.seen);
        self.changes.push(change);
        Ok(())
    }

    /// Makes durable what took effect before `handed_over`.
    pub(super) fn sync(&mut self, handed_over: u64) -> io::Result<()> {
        self.note_moment();
        match self.trap(Kind::Sync, 0, 0) {
            Some(Fault::Fail(errno) | Fault::Tear(errno, _)) => {
                self.doubt(handed_over);
                return Err(error(errno));
            }
            Some(Fault::Lose) => return Ok(()),
            None => {}
        }
        // Another sync failed over the same writes while this one was under way.
        let covers = |change: &Change| change.at < handed_over;
        let failed_meanwhile =
            |c: &Change| covers(c) && c.doubted.is_some_and(|at| at > handed_over);
        if self.changes.iter().any(failed_meanwhile) {
            self.count(|c| c.failed_syncs += 1);
            return Err(error(libc::EIO));
        }
        let mut rest: Vec<Change> = Vec::new();
        for change in std::mem::take(&mut self.changes) {
            if covers(&change) && change.doubted.is_none() {
                change.apply(&mut self.durable);
                // An older write in doubt cannot come back over one that is durable.
                let cut = |old: Change| old.without(&change.range);
                rest = rest.into_iter().flat_map(cut).collect();
            } else {
                rest.push(change);
            }
        }
        self.changes = rest;
        self.count(|c| c.syncs += 1);
        Ok(())
    }

    fn doubt(&mut self, handed_over: u64) {
        let now = self.now();
        for change in &mut self.changes {
            if change.at < handed_over && change.doubted.is_none() {
                change.doubted = Some(now);
            }
        }
        self.count(|c| c.failed_syncs += 1);
    }

    /// Reads see the medium again, where writes in doubt did not arrive.
    pub(super) fn forget_doubted(&mut self) {
        self.changes.retain(|change| change.doubted.is_none());
        self.seen = self.durable.clone();
        for change in &self.changes {
            change.apply(&mut self.seen);
        }
    }

    // Behind everybody's back.

    pub(super) fn peek(&self, offset: u64, buf: &mut [u8]) {
        self.seen.read(offset, buf);
    }

    pub(super) fn overwrite(&mut self, offset: u64, bytes: &[u8]) {
        self.seen.write(offset, bytes);
        self.durable.write(offset, bytes);
        let gone = offset..offset + bytes.len() as u64;
        for change in &mut self.changes {
            let range = gone.start.max(change.range.start)..gone.end.min(change.range.end);
            if range.is_empty() {
                continue;
            }
            if matches!(change.content, Content::Zeroes) {
                let len = index(change.range.end - change.range.start);
                change.content = Content::Bytes(Arc::new(vec![0; len]));
            }
            if let Content::Bytes(content) = &mut change.content {
                let len = index(range.end - range.start);
                let (to, from) = (
                    index(range.start - change.range.start),
                    index(range.start - gone.start),
                );
                Arc::make_mut(content)[to..to + len].copy_from_slice(&bytes[from..from + len]);
            }
        }
        self.count(|c| c.overwritten += bytes.len() as u64);
    }

    // Ends.

    /// The disk as it is now.
    pub(super) fn moment(&self) -> Moment {
        let flying = self.held.iter().filter_map(|held| {
            let landing = match &held.op {
                Op::Write { offset, buf } => Landing::Write {
                    offset: *offset,
                    bytes: Arc::new(buf.to_vec()),
                },
                Op::Deallocate { offset, len } => Landing::Deallocate {
                    offset: *offset,
                    len: *len,
                },
                Op::Read { .. } | Op::ReadMetadata { .. } | Op::Sync => return None,
            };
            let id = held.id;
            Some(Flying { id, landing })
        });
        Moment {
            len: self.len,
            alignment: self.alignment,
            seen: self.seen.clone(),
            durable: self.durable.clone(),
            changes: self.changes.clone(),
            flying: flying.collect(),
            clock: self.clock,
            deallocation: self.deallocation,
            deallocation_draw: self.deallocation_draw.clone(),
            counts: Arc::clone(&self.counts),
        }
    }

    /// A disk that begins where `moment` was, with these bytes, no fault set and nobody connected.
    /// It goes on counting where that one did.
    pub(super) fn of(moment: &Moment, seen: Image, durable: Image) -> Self {
        let mut heir = Self::new(moment.len, moment.alignment);
        heir.seen = seen;
        heir.durable = durable;
        heir.deallocation = moment.deallocation;
        heir.deallocation_draw = moment.deallocation_draw.clone();
        heir.counts = Arc::clone(&moment.counts);
        heir
    }

    /// Takes over what is not synced, and the clock that orders it.
    pub(super) fn inherit(&mut self, changes: Vec<Change>, clock: u64) {
        self.changes = changes;
        self.clock = clock;
    }

    /// Keeps the moment before every change from now on, or stops that.
    pub(super) fn record(&mut self, on: bool) {
        self.moments = on.then(Vec::new);
    }

    /// The moments that were kept since the last call.
    pub(super) fn take_moments(&mut self) -> Vec<Moment> {
        self.moments
            .as_mut()
            .map(std::mem::take)
            .unwrap_or_default()
    }

    fn note_moment(&mut self) {
        if self.moments.is_some() {
            let moment = self.moment();
            if let Some(moments) = &mut self.moments {
                moments.push(moment);
            }
        }
    }

    /// What the kernel does some time after a failed sync: it drops pages that it could not write.
    /// Of those in doubt some reached the medium all the same, as `landed` says; reads see what is
    /// there now.
    pub(super) fn forget(&mut self, mut landed: impl FnMut() -> bool) {
        let (doubted, rest): (Vec<Change>, Vec<Change>) = std::mem::take(&mut self.changes)
            .into_iter()
            .partition(|change| change.doubted.is_some());
        for change in &doubted {
            if landed() {
                change.apply(&mut self.durable);
            } else {
                self.count(|c| c.forgotten += 1);
            }
        }
        self.seen = self.durable.clone();
        for change in &rest {
            change.apply(&mut self.seen);
        }
        self.changes = rest;
    }
}

/// How much of a torn transfer goes through, when `keep` bytes should: up to a sector boundary.
fn torn_len(offset: u64, len: u64, keep: u64) -> u64 {
    let end = (offset + keep.min(len)) / SECTOR * SECTOR;
    end.saturating_sub(offset)
}

fn buffer_of(op: Op) -> Option<IoBuf> {
    match op {
        Op::Read { buf, .. } | Op::ReadMetadata { buf, .. } | Op::Write { buf, .. } => Some(buf),
        Op::Sync | Op::Deallocate { .. } => None,
    }
}
