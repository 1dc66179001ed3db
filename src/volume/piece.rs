//! Pieces: an operation's data on its way between the guest and the store, at most [`PIECE`] bytes
//! at a time, through a private buffer in which it is encrypted, or verified and decrypted.

use std::io;
use std::sync::atomic::Ordering;

use log::{error, warn};

use crate::geometry::{Blocks, Generation, SECTOR_SIZE, ZoneIndex, ZoneType};
use crate::integrity::{BadBlocks, OpenError, SLOT_LEN, Stamp};
use crate::keyslot::KeyslotError;
use crate::limit::LogLimit;
use crate::mutant::{self, Mutant, Point};
use crate::request::{Span, Status, blocks_of};
use crate::store::{Completion, IoBuf, Medium, Op as StoreOp, Store, Token};

use super::channel::{Channel, Progress, no_key};
use super::op::{Direction, Payload, Piece, PieceKind, ReadPiece, SlotSource, Stage};
use super::pool::PIECE;
use super::stretch::Stretch;
use super::tags::{PageRange, slot_offset};

/// What reads of unwritten space are made of.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
/// Marks the token of the operation that reads a piece's tag slots. No piece has so high a number.
const SLOTS_OF: Token = 1 << 32;

static IO_ERRORS: LogLimit = LogLimit::new();
static BAD_BLOCKS: LogLimit = LogLimit::new();

/// Why a piece that was read could not be handed to the guest.
pub(super) enum Undelivered {
    /// For good.
    Failed(Status),
    /// Its slots came from the cache and do not fit: they may be of a time before the blocks were
    /// written.
    Stale,
}

impl From<Status> for Undelivered {
    fn from(status: Status) -> Self {
        Self::Failed(status)
    }
}

impl<M: Medium, P: Payload> Channel<M, P> {
    /// Begins the next piece of a transfer.
    pub(super) fn begin_piece(&mut self, id: u32) -> Progress {
        let geometry = *self.volume.geometry();
        let Some((direction, sector, left)) = self
            .transfer(id)
            .map(|transfer| (transfer.direction, transfer.sector, transfer.left))
        else {
            return Progress::AllBegun;
        };
        let Some(zone) = geometry.zone_of(sector) else {
            return self.fail_transfer(id, Status::IoError);
        };
        let zone_end = geometry.zone_start(zone).0 + geometry.zone_len(zone).0;
        let len = left.min((zone_end - sector.0) * SECTOR_SIZE);
        let span = Span { sector, len };
        match direction {
            Direction::Read => self.begin_read_piece(id, zone, span),
            Direction::Write | Direction::Zeroes => self.begin_write_piece(id, zone, span),
            Direction::Discard => self.begin_discard_piece(id, zone, span),
        }
    }

    /// What a read of a stretch of one zone is made of, for `offset` of the payload: blocks that are
    /// stored, and zeroes behind them.
    pub(super) fn plan_read(
        &self,
        zone: ZoneIndex,
        span: Span,
        offset: u64,
    ) -> Result<ReadPiece, Status> {
        let view = self.volume.table.admit_read(zone)?;
        let geometry = self.volume.geometry();
        let (first, count) = blocks_of(geometry, zone, span);
        let valid = Blocks(view.written.0.saturating_sub(first.0).min(count.0));
        Ok(ReadPiece {
            generation: view.generation,
            first,
            count: valid,
            offset,
            zeroes: span.len - geometry.block_bytes(valid),
            flying: 0,
            data: None,
            slots: SlotSource::None,
            failed: None,
        })
    }

    fn begin_read_piece(&mut self, id: u32, zone: ZoneIndex, span: Span) -> Progress {
        let len = span.len.min(PIECE as u64);
        let offset = self.transfer(id).map_or(0, |transfer| transfer.offset);
        let read = match self.plan_read(zone, Span { len, ..span }, offset) {
            Ok(read) => read,
            Err(status) => return self.fail_transfer(id, status),
        };
        let stored = len - read.zeroes;
        if stored == 0 {
            return match self.scatter_zeroes(id, offset, len) {
                Ok(()) => self.advance(id, len, 0),
                Err(status) => self.fail_transfer(id, status),
            };
        }
        let Some((token, buf)) = self.piece_and_buffer(stored) else {
            return Progress::Starved;
        };
        let read = ReadPiece { flying: 1, ..read };
        match self.submit_read(token, id, zone, read, buf) {
            Ok(()) => self.advance(id, len, 1),
            Err(buf) => {
                self.free_pieces.push(token);
                self.pool.give(buf);
                Progress::Starved
            }
        }
    }

    /// Submits the read of a piece's data into `buf`, and of its tag slots if they are not at hand;
    /// gives the buffer back if there is none for the slots.
    fn submit_read(
        &mut self,
        token: u32,
        op: u32,
        zone: ZoneIndex,
        mut read: ReadPiece,
        buf: IoBuf,
    ) -> Result<(), IoBuf> {
        let mut slots = None;
        if self.volume.tagged {
            if self.has_cached_slots(zone, &read) {
                read.slots = SlotSource::Cache;
            } else {
                let range = PageRange::of(read.first, read.count);
                let (offset, len) = range.extent(&self.volume.layout, zone);
                let Some(pages) = usize::try_from(len)
                    .ok()
                    .and_then(|len| self.pool.take(len))
                else {
                    return Err(buf);
                };
                read.flying += 1;
                slots = Some(StoreOp::ReadMetadata { offset, buf: pages });
                self.count_slot_read();
            }
        }
        let offset = self.volume.layout.block_offset(zone, read.first);
        let kind = PieceKind::Read(read);
        self.submit(
            token,
            Piece { op, zone, kind },
            StoreOp::Read { offset, buf },
        );
        if let Some(slots) = slots {
            self.store.submit(slots, SLOTS_OF | Token::from(token));
        }
        Ok(())
    }

    /// Whether the cache has a piece's slots; they are in `self.slots` then.
    pub(super) fn has_cached_slots(&mut self, zone: ZoneIndex, read: &ReadPiece) -> bool {
        let whose = (zone, read.generation);
        let tags = &self.volume.tags;
        let found = tags.get(whose, read.first, read.count, &mut self.slots);
        self.counters.tag_hits += u64::from(found);
        found
    }

    pub(super) fn count_slot_read(&mut self) {
        let counters = &self.volume.integrity;
        counters.slot_reads.fetch_add(1, Ordering::Relaxed);
        self.counters.slot_reads += 1;
    }

    /// Encrypts the next piece of a write into a stretch, which goes to the store with the others of
    /// this batch.
    fn begin_write_piece(&mut self, id: u32, zone: ZoneIndex, span: Span) -> Progress {
        let geometry = *self.volume.geometry();
        let len = span.len.min(PIECE as u64);
        let (first, count) = blocks_of(&geometry, zone, Span { len, ..span });
        let Ok(bytes) = usize::try_from(len) else {
            return self.fail_transfer(id, Status::IoError);
        };
        let mut stretch = match self.stretches.take(zone, first, bytes) {
            Some(stretch) => stretch,
            None => match self.new_stretch(zone, first, bytes) {
                Some(stretch) => stretch,
                None => return Progress::Starved,
            },
        };
        let begun = self.fill_and_encrypt(id, zone, first, stretch.room(bytes));
        if begun.is_ok() {
            stretch.extend(id, bytes, count);
        }
        if stretch.is_empty() {
            self.free_pieces.push(stretch.token);
            self.pool.give(stretch.buf);
            self.owners.push(stretch.owners);
        } else if stretch.is_full() {
            // While it is in the processor's cache. Its slots are written before anybody looks for
            // its completion.
            self.send(stretch);
        } else {
            self.stretches.put(stretch);
        }
        match begun {
            Ok(()) => self.advance(id, len, 1),
            Err(status) => self.fail_transfer(id, status),
        }
    }

    fn new_stretch(&mut self, zone: ZoneIndex, first: Blocks, len: usize) -> Option<Stretch> {
        let token = self.free_pieces.pop()?;
        let Some(buf) = self.pool.take_to_extend(len) else {
            self.free_pieces.push(token);
            return None;
        };
        let owners = self.owners.pop().unwrap_or_default();
        Some(Stretch::new(token, zone, first, buf, owners))
    }

    /// Hands the store what was encrypted since the last time: tag slots first, so that nothing they
    /// belong to completes before they are written.
    pub(super) fn send_writes(&mut self) {
        self.write_slots();
        if self.store.is_mapped() {
            for stretch in self.stretches.iter() {
                let layout = &self.volume.layout;
                let offset = layout.block_offset(stretch.zone, stretch.first);
                self.store.prefetch(offset, 1);
            }
        }
        while let Some(stretch) = self.stretches.pop() {
            self.send(stretch);
        }
    }

    fn send(&mut self, stretch: Stretch) {
        let layout = &self.volume.layout;
        let offset = layout.block_offset(stretch.zone, stretch.first);
        let token = stretch.token;
        let (zone, owners, buf) = stretch.into_parts();
        let piece = Piece {
            op: 0,
            zone,
            kind: PieceKind::Write(owners),
        };
        let op = StoreOp::Write { offset, buf };
        match self.volume.geometry().zone_type(zone) {
            // Nothing counts on it before the zone's record does.
            ZoneType::Sequential => self.submit_loose(token, piece, op),
            ZoneType::Conventional => self.submit(token, piece, op),
        }
    }

    /// Fills `buf` with what is to be written at block `first` of `zone`, encrypted, and leaves its
    /// tag slots with those to be written.
    fn fill_and_encrypt(
        &mut self,
        id: u32,
        zone: ZoneIndex,
        first: Blocks,
        buf: &mut [u8],
    ) -> Result<(), Status> {
        let op = self.ops.get(id as usize).and_then(Option::as_ref);
        let Some((op, Stage::Transfer(transfer))) = op.map(|op| (op, &op.stage)) else {
            return Err(Status::IoError);
        };
        let (generation, stamp) = match &transfer.grant {
            Some(grant) => {
                let counter = grant.skipped.counter(first).ok_or(Status::IoError)?;
                let epoch = grant.epoch;
                (grant.generation, Stamp { epoch, counter })
            }
            None => {
                let view = self.volume.table.admit_read(zone)?;
                (view.generation, Stamp::default())
            }
        };
        if transfer.direction == Direction::Zeroes {
            buf.fill(0);
        } else if op.payload.gather(transfer.offset, buf).is_err() {
            return Err(Status::IoError);
        }
        let block_len = self.block_len();
        let key = self.key(zone, generation).map_err(|e| no_key(zone, &e))?;
        let mut slots = std::mem::take(&mut self.slots);
        slots.clear();
        if key.is_tagged() {
            slots.resize(buf.len() / block_len * SLOT_LEN, 0);
        }
        let sealed = key.seal(block_len, first, stamp, buf, &mut slots);
        if sealed.is_ok() && key.is_tagged() {
            self.slot_writer.push(zone, first, id, &slots);
        }
        self.slots = slots;
        sealed.map_err(|e| {
            error!("{zone}: cannot encrypt: {e}");
            Status::IoError
        })
    }

    /// Writes the tag slots that have gathered.
    fn write_slots(&mut self) {
        if self.slot_writer.is_empty() {
            return;
        }
        let mut failed = Vec::new();
        self.slot_writer
            .write(&self.volume.medium, &self.volume.layout, |op, zone, e| {
                say_io_error(zone, e);
                failed.push(op);
            });
        for op in failed {
            if let Some(transfer) = self.transfer(op) {
                transfer.fail(Status::IoError);
            }
        }
    }

    fn begin_discard_piece(&mut self, id: u32, zone: ZoneIndex, span: Span) -> Progress {
        let Some(token) = self.free_pieces.pop() else {
            return Progress::Starved;
        };
        let geometry = *self.volume.geometry();
        let (first, count) = blocks_of(&geometry, zone, span);
        let piece = Piece {
            op: id,
            zone,
            kind: PieceKind::Deallocate,
        };
        let offset = self.volume.layout.block_offset(zone, first);
        let len = geometry.block_bytes(count);
        self.submit(token, piece, StoreOp::Deallocate { offset, len });
        self.advance(id, span.len, 1)
    }

    fn piece_and_buffer(&mut self, len: u64) -> Option<(u32, IoBuf)> {
        let token = self.free_pieces.pop()?;
        let buf = usize::try_from(len)
            .ok()
            .and_then(|len| self.pool.take(len));
        if buf.is_none() {
            self.free_pieces.push(token);
        }
        Some((token, buf?))
    }

    /// The store has ended an operation.
    pub(super) fn complete(&mut self, completion: Completion) {
        let Completion { token, result, buf } = completion;
        if token == super::sync::TOKEN {
            self.end_sync(result);
            return;
        }
        let index = u32::try_from(token & !SLOTS_OF).unwrap_or(u32::MAX);
        let slot = self.pieces.get_mut(index as usize);
        let Some(Piece { op, zone, kind }) = slot.and_then(Option::take) else {
            return;
        };
        match kind {
            PieceKind::Deallocate => {
                // Space only, and a medium that cannot give it back says so once in its own log.
                self.free_pieces.push(index);
                self.end_deallocation(op);
                self.end_transfer_piece(op, Ok(()));
            }
            PieceKind::Write(mut owners) => {
                self.free_pieces.push(index);
                self.give_back(buf);
                mutant::pass(Point::DataWritten);
                let result = match mutant::fails(zone.0) {
                    true => Err(Status::IoError),
                    false => result.map_err(|e| say_io_error(zone, &e)),
                };
                for op in owners.drain(..) {
                    self.end_transfer_piece(op, result);
                }
                self.owners.push(owners);
            }
            PieceKind::Read(mut read) => {
                let slots = token & SLOTS_OF != 0;
                self.note_read(zone, &mut read, slots, result, buf);
                if read.flying > 0 {
                    let kind = PieceKind::Read(read);
                    self.pieces[index as usize] = Some(Piece { op, zone, kind });
                } else {
                    self.end_read(index, op, zone, read);
                }
            }
        }
    }

    /// One of the operations of a read piece is over.
    fn note_read(
        &mut self,
        zone: ZoneIndex,
        read: &mut ReadPiece,
        slots: bool,
        result: io::Result<()>,
        buf: Option<IoBuf>,
    ) {
        read.flying -= 1;
        match (result, buf) {
            (Ok(()), Some(buf)) if slots => {
                let range = PageRange::of(read.first, read.count);
                self.volume.tags.put((zone, read.generation), range, &buf);
                read.slots = SlotSource::Pages(buf);
            }
            (Ok(()), Some(buf)) => read.data = Some(buf),
            (Ok(()), None) => read.failed = Some(Status::IoError),
            (Err(e), buf) => {
                read.failed = Some(say_io_error(zone, &e));
                self.give_back(buf);
            }
        }
    }

    /// All that a read piece needs is here, or failed.
    fn end_read(&mut self, index: u32, op: u32, zone: ZoneIndex, mut read: ReadPiece) {
        let result = match (read.failed, read.data.take()) {
            (None, Some(mut data)) => match self.deliver(op, zone, &read, &mut data) {
                Err(Undelivered::Stale) => return self.read_again(index, op, zone, read, data),
                Err(Undelivered::Failed(status)) => {
                    self.pool.give(data);
                    Err(status)
                }
                Ok(()) => {
                    self.pool.give(data);
                    Ok(())
                }
            },
            (failed, data) => {
                self.give_back(data);
                Err(failed.unwrap_or(Status::IoError))
            }
        };
        self.recycle(read.slots);
        self.free_pieces.push(index);
        self.end_transfer_piece(op, result);
    }

    /// Takes back what held a piece's slots.
    pub(super) fn recycle(&mut self, slots: SlotSource) {
        match slots {
            SlotSource::Pages(pages) => self.pool.give(pages),
            SlotSource::Fresh(slots) => self.fresh_slots.push(slots),
            SlotSource::None | SlotSource::Cache | SlotSource::Gathered => {}
        }
    }

    /// Reads a piece once more with slots that are read now. What the cache had was overtaken by the
    /// write, so they are in the host's page cache and nobody waits long.
    fn read_again(&mut self, index: u32, op: u32, zone: ZoneIndex, read: ReadPiece, buf: IoBuf) {
        let count = usize::try_from(read.count.0).unwrap_or(0);
        let mut slots = self.fresh_slots.pop().unwrap_or_default();
        slots.resize(count * SLOT_LEN, 0);
        let offset = slot_offset(&self.volume.layout, zone, read.first);
        if let Err(e) = self.volume.medium.read_at(offset, &mut slots) {
            self.fresh_slots.push(slots);
            self.free_pieces.push(index);
            self.pool.give(buf);
            self.end_transfer_piece(op, Err(say_io_error(zone, &e)));
            return;
        }
        let offset = self.volume.layout.block_offset(zone, read.first);
        let kind = PieceKind::Read(ReadPiece {
            flying: 1,
            slots: SlotSource::Fresh(slots),
            ..read
        });
        self.submit(
            index,
            Piece { op, zone, kind },
            StoreOp::Read { offset, buf },
        );
    }

    /// Verifies and decrypts what a read brought and hands it to the guest. Nothing reaches the guest
    /// of a piece in which a block is bad.
    pub(super) fn deliver(
        &mut self,
        op: u32,
        zone: ZoneIndex,
        read: &ReadPiece,
        data: &mut [u8],
    ) -> Result<(), Undelivered> {
        if Mutant::VerifyAfterCopy.is_on()
            && let Some(op) = self.op(op)
        {
            let _ = op.payload.scatter(read.offset, data);
        }
        let block_len = self.block_len();
        match self.key(zone, read.generation) {
            Ok(key) => {
                let whose = (zone, read.generation);
                let cached = matches!(read.slots, SlotSource::Cache | SlotSource::Gathered);
                let slots = match &read.slots {
                    SlotSource::None => &[][..],
                    SlotSource::Gathered => self.slots.as_slice(),
                    SlotSource::Cache => {
                        let tags = &self.volume.tags;
                        if !tags.get(whose, read.first, read.count, &mut self.slots) {
                            // Another page has taken its place meanwhile.
                            return Err(Undelivered::Stale);
                        }
                        self.slots.as_slice()
                    }
                    SlotSource::Fresh(slots) => slots,
                    SlotSource::Pages(pages) => slots_in(pages, read),
                };
                match key.open(block_len, read.first, data, slots) {
                    Ok(()) => {}
                    Err(OpenError::Bad(_)) if self.is_erased(zone, read.generation) => data.fill(0),
                    Err(OpenError::Bad(_)) if cached => {
                        let range = PageRange::of(read.first, read.count);
                        self.volume.tags.forget(whose, range);
                        return Err(Undelivered::Stale);
                    }
                    Err(OpenError::Bad(bad)) => return Err(self.say_bad(zone, &bad).into()),
                    Err(OpenError::Shape(e)) => {
                        error!("{zone}: cannot decrypt: {e}");
                        return Err(Status::IoError.into());
                    }
                }
            }
            // Reset while the read was under way: an empty zone reads as zeroes.
            Err(KeyslotError::Erased(_)) => data.fill(0),
            Err(e) => return Err(no_key(zone, &e).into()),
        }
        let payload = &self.op(op).ok_or(Status::IoError)?.payload;
        payload
            .scatter(read.offset, data)
            .map_err(|_| Status::IoError)?;
        self.scatter_zeroes(op, read.offset + data.len() as u64, read.zeroes)?;
        Ok(())
    }

    fn is_erased(&self, zone: ZoneIndex, generation: Generation) -> bool {
        self.volume.table.salt(zone, generation).is_none()
    }

    /// Counts blocks that are not what was written there, and says so.
    fn say_bad(&self, zone: ZoneIndex, bad: &BadBlocks) -> Status {
        let count = bad.count() as u64;
        let counters = &self.volume.integrity;
        counters.bad_blocks.fetch_add(count, Ordering::Relaxed);
        if let Some(more) = BAD_BLOCKS.allow() {
            error!(
                "{zone}: {bad}: damaged or altered; its reader gets an I/O error ({more} more like \
                 it). `zonevault check` finds all such blocks"
            );
        }
        Status::IoError
    }

    pub(super) fn scatter_zeroes(&self, id: u32, offset: u64, len: u64) -> Result<(), Status> {
        let op = self.ops.get(id as usize).and_then(Option::as_ref);
        let op = op.ok_or(Status::IoError)?;
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let take = (end - at).min(ZEROES.len() as u64);
            let zeroes = ZEROES.get(..usize::try_from(take).unwrap_or(0));
            op.payload
                .scatter(at, zeroes.unwrap_or_default())
                .map_err(|_| Status::IoError)?;
            at += take;
        }
        Ok(())
    }

    fn give_back(&mut self, buf: Option<IoBuf>) {
        if let Some(buf) = buf {
            self.pool.give(buf);
        }
    }
}

/// The slots of a piece in the pages that were read for it.
fn slots_in<'a>(pages: &'a [u8], read: &ReadPiece) -> &'a [u8] {
    let range = PageRange::of(read.first, read.count);
    let end = Blocks(read.first.0 + read.count.0);
    pages
        .get(range.position(read.first)..range.position(end))
        .unwrap_or_default()
}

pub(super) fn say_io_error(zone: ZoneIndex, error: &io::Error) -> Status {
    if let Some(more) = IO_ERRORS.allow() {
        warn!("{zone}: {error} ({more} more like it)");
    }
    Status::IoError
}
