//! The way of one queue's operations through the disk.
//!
//! An operation begins ([`Channel::start`]), is admitted, is worked off in pieces of at most
//! 128 KiB (copied to a private buffer, encrypted there, submitted, neighbours of one batch as one;
//! the reverse for reads),
//! takes its turn in the zone's line, perhaps waits for a sync, and ends in [`Channel::poll`].
//! Each guest byte is read once. When buffers run out, the operation waits in the backlog.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use log::error;

use crate::arena;
use crate::geometry::{Blocks, Generation, SECTOR_SIZE, Sector, ZoneIndex, ZoneType};
use crate::integrity::SLOT_LEN;
use crate::keyslot::{KeyCache, KeyId, KeyRef, KeyslotError};
use crate::limit::LogLimit;
use crate::mutant::{self, Mutant, Point};
use crate::request::{Command, Outcome, Span, Status, ZoneAction, blocks_of};
use crate::store::{Completion, Medium, Op as StoreOp, Store, Token};
use crate::zone::{Admission, Change, Grant, Intent, Released, Ticket, ZoneError};

use super::fence::Fences;
use super::op::{Direction, Finished, Op, Owners, Payload, Piece, Stage, Transfer};
use super::pool::Pool;
use super::stretch::Stretches;
use super::sync::SyncRound;
use super::tags::{SlotWriter, slot_offset};
use super::{ChannelCounters, Volume};

/// Operations of the store that a channel has in flight at most.
pub(super) const STORE_DEPTH: u32 = 512;
/// Reads that begin together. Where memory is far away the processor waits for the translation of an address
/// of each, and for those of several at once not longer than for one; the first of them is answered later.
const HELD: usize = 8;
/// How much of a read is fetched ahead: the processor notices by itself how it goes on, and has room for
/// only so many requests at a time.
const FETCHED: usize = 1024;
/// How long a dropped channel waits for the kernel to let go of its buffers.
const DROP_PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 60 });

static KEY_ERRORS: LogLimit = LogLimit::new();

/// One queue's access to a disk. Belongs to one thread.
#[derive(Debug)]
pub struct Channel<M: Medium, P: Payload> {
    pub(super) volume: Arc<Volume<M>>,
    pub(super) store: M::Store,
    pub(super) queue: u16,
    /// Tells this channel from those that the queue had before: what they waited for may still come.
    pub(super) life: u32,
    pub(super) ops: Vec<Option<Op<P>>>,
    free_ops: Vec<u32>,
    pub(super) pieces: Vec<Option<Piece>>,
    pub(super) free_pieces: Vec<u32>,
    pub(super) pool: Pool,
    keys: KeyCache,
    /// Those of the keys are in `keys`.
    pub(super) counters: ChannelCounters,
    pub(super) slot_writer: SlotWriter,
    /// What this batch has encrypted so far.
    pub(super) stretches: Stretches,
    /// Lists that keep their memory.
    pub(super) owners: Vec<Owners>,
    /// Slots at hand; keeps its memory.
    pub(super) slots: Vec<u8>,
    /// Memory for slots that were read past the cache.
    pub(super) fresh_slots: Vec<Vec<u8>>,
    /// Reads that begin together, as soon as there are enough of them, or something else comes, or nothing:
    /// what they want of a mapped image is on its way meanwhile.
    pub(super) held: Vec<u32>,
    /// Operations with pieces left to begin, first come first served.
    pub(super) backlog: VecDeque<u32>,
    /// Zones in which something ended since they were settled.
    touched: Vec<ZoneIndex>,
    pub(super) released: Vec<Released>,
    completions: Vec<Completion>,
    /// The last poll has left something to the next one.
    more: bool,
    pub(super) round: SyncRound,
    pub(super) fences: Fences,
    /// What operations that were begun before were about to change, as far as it is known.
    pub(super) intents: HashMap<u32, Intent>,
    done: Vec<Finished<P>>,
}

impl<M: Medium, P: Payload> Channel<M, P> {
    pub(super) fn new(volume: Arc<Volume<M>>, queue: u16, depth: u16) -> io::Result<Self> {
        let store = volume.medium.open_store(STORE_DEPTH)?;
        let life = volume.lives.fetch_add(1, Ordering::Relaxed);
        Ok(Self {
            life,
            keys: volume.keyslots.cache(),
            volume,
            store,
            queue,
            ops: (0..depth).map(|_| None).collect(),
            free_ops: (0..u32::from(depth)).rev().collect(),
            pieces: (0..STORE_DEPTH).map(|_| None).collect(),
            // One place in the store is left for the sync.
            free_pieces: (0..STORE_DEPTH - 1).rev().collect(),
            pool: Pool::new(),
            counters: ChannelCounters::default(),
            slot_writer: SlotWriter::default(),
            stretches: Stretches::default(),
            owners: Vec::new(),
            slots: Vec::new(),
            fresh_slots: Vec::new(),
            held: Vec::with_capacity(HELD),
            backlog: VecDeque::with_capacity(usize::from(depth)),
            touched: Vec::new(),
            released: Vec::new(),
            completions: Vec::new(),
            more: false,
            round: SyncRound::default(),
            fences: Fences::default(),
            intents: HashMap::new(),
            done: Vec::with_capacity(usize::from(depth)),
        })
    }

    /// The disk.
    pub fn volume(&self) -> &Arc<Volume<M>> {
        &self.volume
    }

    /// What the channel did so far.
    pub fn counters(&self) -> ChannelCounters {
        ChannelCounters {
            key_hits: self.keys.hits(),
            key_misses: self.keys.misses(),
            ..self.counters
        }
    }

    /// Whether another operation can be started: there is room for it, and none waits for buffers.
    pub fn has_room(&self) -> bool {
        !self.free_ops.is_empty() && self.backlog.is_empty()
    }

    /// Overwrites what encryption has left on this thread's stack, where vector code has copies of round
    /// keys. To be called before the thread sleeps or turns to something else.
    pub fn rest(&self) {
        arena::wipe_stack();
    }

    /// Nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.free_ops.len() == self.ops.len() && self.is_still()
    }

    /// Nothing is under way but perhaps operations that are being worked off, or wait.
    pub(super) fn is_still(&self) -> bool {
        self.done.is_empty() && !self.round.is_active() && self.fences.is_idle()
    }

    /// Drops every operation as if it had never come.
    pub(super) fn forget_ops(&mut self) {
        for (id, op) in (0..).zip(&mut self.ops) {
            if op.take().is_some() {
                self.free_ops.push(id);
            }
        }
        self.intents.clear();
        self.held.clear();
    }

    /// Operations that ended as soon as they were started; [`Channel::poll`] hands them over.
    pub fn finished(&self) -> usize {
        self.done.len()
    }

    /// Whether [`Channel::poll`] would find something that happened meanwhile; cheap enough to be
    /// asked over and over.
    pub fn is_ready(&mut self) -> bool {
        self.store.is_ready() || self.volume.has_mail(self.queue)
    }

    /// Whether the last [`Channel::poll`] stopped with something for the next one at hand, of which no event
    /// tells.
    pub fn has_more(&self) -> bool {
        self.more
    }

    /// Whether the store is busy with something.
    pub fn waits(&self) -> bool {
        self.store.in_flight() > 0
    }

    /// Readable when the store has completed something; `None` if it never does so by itself.
    pub fn store_event(&self) -> Option<BorrowedFd<'_>> {
        self.store.event()
    }

    /// Blocks until the store has something, or for `timeout`.
    pub fn wait(&mut self, timeout: Duration) {
        if self.store.in_flight() == 0 {
            // Whatever is waited for is another queue's to do.
            std::thread::sleep(timeout);
        } else {
            self.store.wait(timeout);
        }
    }

    /// Starts an operation; reads perhaps later, several of them together, at the latest when
    /// [`Channel::poll`] is called. It ends in a later [`Channel::poll`]. Without room for it
    /// ([`Channel::has_room`]) it fails.
    pub fn start(&mut self, command: Command, payload: P) {
        let Some(id) = self.enter(command, payload, false) else {
            return;
        };
        match command {
            Command::Read(_) => {
                self.held.push(id);
                if self.held.len() >= HELD {
                    self.begin_held();
                }
            }
            _ => {
                self.begin_held();
                self.begin(id);
            }
        }
    }

    /// Begins the reads that were held back.
    pub(super) fn begin_held(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let mut held = std::mem::take(&mut self.held);
        for &id in &held {
            self.prefetch(id, 1);
        }
        let mut following = held.iter().skip(1);
        for &id in &held {
            if let Some(&next) = following.next() {
                self.prefetch(next, FETCHED);
            }
            self.begin(id);
        }
        held.clear();
        // Keeps the vector's memory.
        self.held = held;
    }

    /// Asks the processor for the first of what a read wants, `len` bytes of data at most, if the image is
    /// mapped.
    fn prefetch(&self, id: u32, len: usize) {
        let op = self.ops.get(id as usize).and_then(Option::as_ref);
        let Some(&Command::Read(span)) = op.map(|op| &op.command) else {
            return;
        };
        let geometry = self.volume.geometry();
        if let Some(zone) = geometry.zone_of(span.sector) {
            let (first, _) = blocks_of(geometry, zone, span);
            let len = usize::try_from(span.len).map_or(len, |all| all.min(len));
            let layout = &self.volume.layout;
            self.store.prefetch(layout.block_offset(zone, first), len);
            if self.volume.tagged {
                self.store
                    .prefetch(slot_offset(layout, zone, first), SLOT_LEN);
            }
        }
    }

    /// Gives an operation its place, if there is one; else it fails.
    pub(super) fn enter(
        &mut self,
        command: Command,
        payload: P,
        begun_before: bool,
    ) -> Option<u32> {
        let Some(id) = self.free_ops.pop() else {
            self.done.push(Finished {
                payload,
                outcome: Outcome::Done(Status::IoError, 0),
            });
            return None;
        };
        if let Some(slot) = self.ops.get_mut(id as usize) {
            *slot = Some(Op {
                command,
                payload,
                stage: Stage::Parked,
                begun_before,
            });
        }
        Some(id)
    }

    /// Works on everything that can go on and moves what ended to `finished`. If much ended, the guest can have the
    /// first of it before the rest is looked at ([`Channel::has_more`]).
    pub fn poll(&mut self, finished: &mut Vec<Finished<P>>) {
        self.begin_held();
        self.volume.take_mail(self.queue, &mut self.released);
        self.more = false;
        self.reap();
        loop {
            self.settle();
            self.handle_released();
            self.begin_fences();
            let started = self.start_sync_round();
            // A store that completes inside `submit` has no event to call us back.
            let reaped = !self.more && self.reap();
            if !started
                && !reaped
                && self.released.is_empty()
                && self.touched.is_empty()
                && self.fences.due.is_empty()
            {
                break;
            }
        }
        self.store.kick();
        finished.append(&mut self.done);
    }

    /// The name of an operation for all queues.
    pub(super) fn ticket(&self, op: u32) -> Ticket {
        Ticket {
            queue: self.queue,
            life: self.life,
            op,
        }
    }

    /// Begins an operation, for the first time or once more after it was parked.
    pub(super) fn begin(&mut self, id: u32) {
        let Some((command, begun_before)) = self.op(id).map(|op| (op.command, op.begun_before))
        else {
            return;
        };
        let ticket = self.ticket(id);
        if begun_before && self.begin_again(id, command, ticket) {
            return;
        }
        match command {
            Command::Read(span) => {
                if !self.read_now(id, span) {
                    self.begin_transfer(id, Direction::Read, span, None);
                }
            }
            Command::Write(span) => self.begin_write(id, span, ticket),
            Command::Append(zone, len) => self.begin_append(id, zone, len, ticket),
            Command::Flush => self.wait_for_sync(id, Outcome::Done(Status::Ok, 0)),
            Command::Discard(span) => self.begin_in_place(id, Direction::Discard, span),
            Command::WriteZeroes(span) => self.begin_in_place(id, Direction::Zeroes, span),
            Command::Zone(ZoneAction::Open, zone) => self.open_zone(id, zone, ticket),
            Command::Zone(ZoneAction::Close, zone) => self.close_zone(id, zone, ticket),
            Command::Zone(ZoneAction::Finish, zone) => self.finish_zone(id, zone, ticket),
            Command::Zone(ZoneAction::Reset, zone) => self.reset_zone(id, zone, ticket),
            Command::ResetAll => self.reset_all(id, ticket),
            // Answered by the queue, from tables.
            Command::GetId | Command::Report(_) => self.finish(id, Status::Unsupported),
        }
    }

    fn begin_write(&mut self, id: u32, span: Span, ticket: Ticket) {
        let geometry = *self.volume.geometry();
        match geometry.zone_of(span.sector) {
            Some(zone) if geometry.zone_type(zone) == ZoneType::Sequential => {
                let (at, count) = blocks_of(&geometry, zone, span);
                let admission = self.admit(id, (zone, Some(at), count), ticket);
                self.begin_granted(id, admission, span.len);
            }
            _ => self.begin_in_place(id, Direction::Write, span),
        }
    }

    fn begin_append(&mut self, id: u32, zone: ZoneIndex, len: u64, ticket: Ticket) {
        let count = self.volume.geometry().blocks_in(len);
        let admission = self.admit(id, (zone, None, count), ticket);
        self.begin_granted(id, admission, len);
    }

    /// Admits a write and notes its place.
    fn admit(
        &self,
        id: u32,
        (zone, at, count): (ZoneIndex, Option<Blocks>, Blocks),
        ticket: Ticket,
    ) -> Result<Admission<Grant>, ZoneError> {
        let op = self.ops.get(id as usize).and_then(Option::as_ref);
        let note = |grant: &Grant| {
            mutant::pass(Point::Granted);
            if let Some(op) = op {
                op.payload.intend(Intent {
                    zone: grant.zone,
                    generation: grant.generation,
                    change: Change::Write {
                        start: grant.start,
                        count,
                    },
                });
                mutant::pass(Point::IntentWritten);
            }
        };
        let table = &self.volume.table;
        table.admit_noted_write(zone, at, count, ticket, note)
    }

    /// Goes on with a write whose place is noted, if it has one.
    pub(super) fn begin_granted(
        &mut self,
        id: u32,
        admission: Result<Admission<Grant>, ZoneError>,
        len: u64,
    ) {
        match admission {
            Ok(Admission::Granted(grant)) => {
                if let Some(closed) = grant.closed {
                    self.touch(closed);
                }
                if grant.start == Blocks(0) || Mutant::RecordBeforeData.is_on() {
                    // If the daemon is killed meanwhile, the zone is not empty, and a reset of it has
                    // something to erase.
                    self.publish(grant.zone);
                }
                let sector = self.volume.geometry().block_sector(grant.zone, grant.start);
                let span = Span { sector, len };
                self.begin_transfer(id, Direction::Write, span, Some(grant));
            }
            Ok(Admission::Parked) => self.set_stage(id, Stage::Parked),
            Err(error) => self.finish(id, error.into()),
        }
    }

    /// Begins a change of conventional zones.
    fn begin_in_place(&mut self, id: u32, direction: Direction, span: Span) {
        if self.volume.has_failed_sync() {
            self.finish(id, Status::IoError);
        } else {
            self.begin_transfer(id, direction, span, None);
        }
    }

    fn begin_transfer(&mut self, id: u32, direction: Direction, span: Span, grant: Option<Grant>) {
        self.set_stage(id, Stage::Transfer(Transfer::new(direction, span, grant)));
        self.backlog.push_back(id);
        self.pump();
    }

    /// Begins pieces of the backlog for as long as there are buffers.
    pub(super) fn pump(&mut self) {
        while let Some(&id) = self.backlog.front() {
            let more = match self.op(id).map(|op| &op.stage) {
                Some(Stage::Transfer(transfer)) if transfer.left > 0 => self.begin_piece(id),
                Some(Stage::Reset(_)) => self.begin_deallocation(id),
                _ => Progress::AllBegun,
            };
            match more {
                Progress::Begun => {}
                Progress::AllBegun => {
                    self.backlog.pop_front();
                    self.end_transfer_if_over(id);
                }
                Progress::Starved => break,
            }
        }
    }

    pub(super) fn free_piece(&mut self) -> Option<u32> {
        self.free_pieces.pop()
    }

    pub(super) fn submit(&mut self, token: u32, piece: Piece, op: StoreOp) {
        self.note_piece(token, piece);
        self.store.submit(op, Token::from(token));
        mutant::pass(Point::DataSubmitted);
    }

    /// The same for what may be cut short by a kill.
    pub(super) fn submit_loose(&mut self, token: u32, piece: Piece, op: StoreOp) {
        self.note_piece(token, piece);
        self.store.submit_loose(op, Token::from(token));
        mutant::pass(Point::DataSubmitted);
    }

    fn note_piece(&mut self, token: u32, piece: Piece) {
        if let Some(slot) = self.pieces.get_mut(token as usize) {
            *slot = Some(piece);
        }
    }

    /// Books `len` bytes of a transfer as begun.
    pub(super) fn advance(&mut self, id: u32, len: u64, pieces: u32) -> Progress {
        if let Some(transfer) = self.transfer(id) {
            transfer.sector = Sector(transfer.sector.0 + len / SECTOR_SIZE);
            transfer.left -= len;
            transfer.offset += len;
            transfer.flying += pieces;
        }
        Progress::Begun
    }

    pub(super) fn fail_transfer(&mut self, id: u32, status: Status) -> Progress {
        if let Some(transfer) = self.transfer(id) {
            transfer.fail(status);
        }
        Progress::AllBegun
    }

    /// Takes what the store completed, and begins what waited for its buffers. `true` if there
    /// was something.
    fn reap(&mut self) -> bool {
        let mut any = false;
        let ended = self.done.len();
        loop {
            self.send_writes();
            let mut completions = std::mem::take(&mut self.completions);
            self.store.reap(&mut completions);
            if completions.is_empty() {
                self.completions = completions;
                return any;
            }
            any = true;
            for completion in completions.drain(..) {
                self.complete(completion);
            }
            self.completions = completions;
            self.pump();
            if self.done.len() > ended && self.store.is_ready() {
                self.send_writes();
                self.more = true;
                return any;
            }
        }
    }

    pub(super) fn end_transfer_piece(&mut self, id: u32, result: Result<(), Status>) {
        if let Some(transfer) = self.transfer(id) {
            transfer.flying -= 1;
            if let Err(status) = result {
                transfer.fail(status);
            }
        }
        self.end_transfer_if_over(id);
    }

    /// A transfer with nothing left and nothing flying goes on to what comes after. One that is
    /// still in the backlog is looked at again when its turn is over.
    fn end_transfer_if_over(&mut self, id: u32) {
        if self.backlog.contains(&id) {
            return;
        }
        let Some(transfer) = self.transfer(id).filter(|transfer| transfer.is_over()) else {
            return;
        };
        let (direction, failed, offset) = (transfer.direction, transfer.failed, transfer.offset);
        if let Some(grant) = transfer.grant.take() {
            let geometry = self.volume.geometry();
            let outcome = match self.ops.get(id as usize).and_then(Option::as_ref) {
                Some(op) if matches!(op.command, Command::Append(..)) => {
                    Outcome::Appended(geometry.block_sector(grant.zone, grant.start))
                }
                _ => Outcome::Done(Status::Ok, 0),
            };
            self.touch(grant.zone);
            self.set_stage(id, Stage::InLine(outcome));
            self.volume.table.complete(grant, failed.is_none());
            if Mutant::AcknowledgeOutOfOrder.is_on() && failed.is_none() {
                self.end(id, outcome);
            }
            return;
        }
        match (failed, direction) {
            (Some(status), _) => self.finish(id, status),
            (None, Direction::Read) => self.end(id, Outcome::Done(Status::Ok, offset)),
            (None, _) => self.acknowledge(id, Outcome::Done(Status::Ok, 0)),
        }
    }

    /// Ends a write: at once, or after a sync if the write cache is off.
    pub(super) fn acknowledge(&mut self, id: u32, outcome: Outcome) {
        if self.volume.write_cache() {
            self.end(id, outcome);
        } else {
            self.wait_for_sync(id, outcome);
        }
    }

    pub(super) fn touch(&mut self, zone: ZoneIndex) {
        if self.touched.last() != Some(&zone) {
            self.touched.push(zone);
        }
    }

    /// Publishes a zone: see [`Volume::publish`].
    pub(super) fn publish(&mut self, zone: ZoneIndex) -> bool {
        let fences = &mut self.fences.due;
        self.volume
            .publish(zone, self.queue, &mut self.released, fences)
    }

    /// Publishes every zone in which something ended.
    fn settle(&mut self) {
        if self.touched.is_empty() {
            return;
        }
        let mut touched = std::mem::take(&mut self.touched);
        touched.sort_unstable();
        touched.dedup();
        for zone in touched.drain(..) {
            self.publish(zone);
        }
        // Keeps the vector's memory.
        self.touched = touched;
    }

    fn handle_released(&mut self) {
        let mut released = std::mem::take(&mut self.released);
        for item in released.drain(..) {
            if item.ticket().life != self.life {
                self.release_for_dead(item);
                continue;
            }
            match item {
                Released::Retry(ticket, zone) => self.retry(ticket, zone),
                Released::Synced(ticket, ok) => self.synced(ticket.op, ok),
                Released::Write(ticket, result) => self.end_write(ticket.op, result),
            }
        }
        released.append(&mut self.released);
        self.released = released;
    }

    /// What an earlier channel of this queue waited for: nobody is told, but nobody may wait for it
    /// either.
    fn release_for_dead(&mut self, item: Released) {
        if let Released::Retry(ticket, zone) = item {
            self.volume.table.retried(zone, ticket);
            self.touch(zone);
        }
    }

    fn retry(&mut self, ticket: Ticket, zone: ZoneIndex) {
        let id = ticket.op;
        if matches!(self.op(id).map(|op| &op.stage), Some(Stage::Parked)) {
            self.begin(id);
        }
        self.volume.table.retried(zone, ticket);
        self.touch(zone);
    }

    fn end_write(&mut self, id: u32, result: Result<(), ZoneError>) {
        match (self.op(id).map(|op| &op.stage), result) {
            (Some(&Stage::InLine(outcome)), Ok(())) => self.acknowledge(id, outcome),
            // Or it was begun before, and waited for its turn, which does not come.
            (Some(Stage::InLine(_) | Stage::Parked), Err(error)) => {
                mutant::pass(Point::Failed);
                self.finish(id, error.into());
            }
            _ => {}
        }
    }

    pub(super) fn op(&mut self, id: u32) -> Option<&mut Op<P>> {
        self.ops.get_mut(id as usize)?.as_mut()
    }

    pub(super) fn transfer(&mut self, id: u32) -> Option<&mut Transfer> {
        match &mut self.op(id)?.stage {
            Stage::Transfer(transfer) => Some(transfer),
            _ => None,
        }
    }

    pub(super) fn set_stage(&mut self, id: u32, stage: Stage) {
        if let Some(op) = self.op(id) {
            op.stage = stage;
        }
    }

    pub(super) fn push_backlog(&mut self, id: u32) {
        self.backlog.push_back(id);
    }

    /// Ends an operation with a bare status.
    pub(super) fn finish(&mut self, id: u32, status: Status) {
        self.end(id, Outcome::Done(status, 0));
    }

    /// Ends an operation.
    pub(super) fn end(&mut self, id: u32, outcome: Outcome) {
        let op = self.ops.get_mut(id as usize).and_then(Option::take);
        if let Some(Op {
            payload,
            begun_before,
            ..
        }) = op
        {
            if begun_before {
                self.intents.remove(&id);
            }
            self.free_ops.push(id);
            self.done.push(Finished { payload, outcome });
        }
    }

    pub(super) fn block_len(&self) -> usize {
        1 << self.volume.geometry().block_size().shift()
    }

    pub(super) fn key(
        &mut self,
        zone: ZoneIndex,
        generation: Generation,
    ) -> Result<KeyRef, KeyslotError> {
        let table = &self.volume.table;
        let id = KeyId { zone, generation };
        self.volume
            .keyslots
            .get(&mut self.keys, id, || table.salt(zone, generation))
    }
}

pub(super) fn no_key(zone: ZoneIndex, error: &KeyslotError) -> Status {
    if let Some(more) = KEY_ERRORS.allow() {
        error!("{zone}: {error} ({more} more like it)");
    }
    Status::IoError
}

/// How [`Channel::pump`] goes on after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// There may be more to begin.
    Begun,
    /// Everything of this operation is begun.
    AllBegun,
    /// No buffer or piece is free.
    Starved,
}

impl<M: Medium, P: Payload> Channel<M, P> {
    /// Gives up what does not come to rest: the medium may still write there at any time, so the
    /// zones it holds take no more writes.
    fn abandon(&mut self) {
        for op in std::mem::take(&mut self.ops).into_iter().flatten() {
            match op.stage {
                Stage::Transfer(Transfer {
                    grant: Some(grant), ..
                }) => {
                    let zone = grant.zone;
                    self.volume.table.fail_zone(zone);
                    self.volume.table.complete(grant, false);
                    self.publish(zone);
                }
                Stage::Reset(reset) => {
                    for zone in reset.zones {
                        self.volume.table.end_reset(zone, false);
                        self.publish(zone);
                    }
                    for zone in reset.kept {
                        self.volume.table.end_reset(zone, true);
                        self.publish(zone);
                    }
                }
                _ => {}
            }
        }
        self.volume.table.forget_life(self.life);
        self.abandon_fences();
        self.abandon_sync();
    }
}

impl<M: Medium, P: Payload> Drop for Channel<M, P> {
    /// Lets what is under way come to rest, or the zones it holds would stay held.
    fn drop(&mut self) {
        let deadline = Instant::now() + DROP_PATIENCE;
        let mut finished = Vec::new();
        loop {
            self.poll(&mut finished);
            finished.clear();
            if self.is_idle() {
                return;
            }
            if Instant::now() >= deadline {
                error!("queue {}: requests in flight are given up", self.queue);
                return self.abandon();
            }
            self.wait(Duration::from_millis(1));
        }
    }
}
