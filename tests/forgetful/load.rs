//! One queue's load on the disk, and its share of the knowledge about it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::common::queue::{Queue, QueueError};
use crate::common::request::{
    APPEND_TAIL_LINUX, APPEND_TAIL_SPEC, Completion, Request, kind, status,
};
use crate::common::rng::Rng;
use crate::common::stamps::{Piece, decode, stamped, submit};

use super::known::{Clock, InPlace, Written, Zone};

/// Requests that a queue keeps in flight.
const DEPTH: usize = 24;
/// Longest write in blocks.
const LONGEST: u64 = 6;
/// One in so many requests reads what was acknowledged.
const READ_SHARE: u64 = 8;
/// One in so many requests goes to a conventional zone, if there is one.
const IN_PLACE_SHARE: u64 = 5;

/// What a load is like.
#[derive(Clone, Copy, Debug)]
pub struct Mood {
    /// One in so many requests is a flush.
    pub flush: u64,
    /// One in so many turns at a zone manages it although it is not full.
    pub manage: u64,
    /// One in so many turns at a full zone resets it. Each reset syncs, and leaves less to lose.
    pub reset: u64,
}

impl Mood {
    /// From restless to careless.
    pub fn draw(rng: &mut Rng) -> Self {
        Self {
            flush: *rng.pick(&[10, 40, 40, 200, 1000]),
            manage: *rng.pick(&[20, 100, 400]),
            reset: *rng.pick(&[1, 10, 100]),
        }
    }
}

/// What a queue has in flight, by ticket.
#[derive(Clone, Copy, Debug)]
enum Op {
    Piece {
        zone: usize,
        piece: Piece,
    },
    Manage {
        zone: usize,
        kind: u32,
    },
    InPlace {
        block: usize,
    },
    Flush {
        time: u64,
    },
    Read {
        zone: usize,
        at: u64,
        life: u64,
        content: (u64, u64),
    },
}

/// One queue's share of the disk and of the knowledge about it.
#[derive(Debug)]
pub struct Worker {
    /// Decides what it does.
    pub rng: Rng,
    /// Bytes of a block.
    pub block: usize,
    /// Blocks of a zone's capacity.
    pub capacity: u64,
    /// A write is durable when it is acknowledged.
    pub writethrough: bool,
    /// What the load is like.
    pub mood: Mood,
    /// First sector and knowledge of the zone that all queues append to, then of those that are this one's alone.
    pub zones: Vec<(u64, Zone)>,
    /// First sector of its blocks in a conventional zone.
    pub in_place_start: u64,
    /// Those blocks; none on a disk without such zones.
    pub in_place: Vec<InPlace>,
    /// The last stamp that it gave.
    pub stamps: u64,
    /// Requests acknowledged.
    pub acknowledged: u64,
    /// Flushes among them.
    pub flushes: u64,
    /// Resets submitted so far: what was read before one says nothing after it.
    resets: u64,
    flights: HashMap<u64, Op>,
}

impl Worker {
    /// A worker that has done nothing yet.
    pub fn new(mut rng: Rng, block: usize, capacity: u64, zones: &[u64]) -> Self {
        Self {
            block,
            capacity,
            writethrough: false,
            mood: Mood::draw(&mut rng),
            rng,
            zones: zones
                .iter()
                .map(|start| (*start, Zone::default()))
                .collect(),
            in_place_start: 0,
            in_place: Vec::new(),
            stamps: 0,
            acknowledged: 0,
            flushes: 0,
            resets: 0,
            flights: HashMap::new(),
        }
    }

    /// A number that no request had before.
    pub fn stamp(&mut self) -> u64 {
        self.stamps += 1;
        self.stamps
    }

    /// Keeps the queue busy until the daemon is dead, then takes what it had answered.
    ///
    /// # Panics
    /// If the device answers what it must not.
    pub fn run(&mut self, queue: &mut Queue, clock: &Clock, dead: &AtomicBool) {
        self.flights.clear();
        loop {
            while queue.in_flight() < DEPTH && self.submit(queue, clock) {}
            queue.kick();
            match queue.reap(Duration::from_millis(2)) {
                Ok(done) => self.take(&done, clock),
                Err(QueueError::TimedOut | QueueError::Stopped | QueueError::LostCall)
                    if dead.load(Ordering::Acquire) =>
                {
                    break;
                }
                Err(QueueError::TimedOut) => {}
                Err(err) => panic!("queue {}: {err}", queue.index),
            }
        }
        while let Some(done) = queue.poll().expect("used ring") {
            self.take(&done, clock);
        }
    }

    /// Submits one random request; true if there was room for it.
    fn submit(&mut self, queue: &mut Queue, clock: &Clock) -> bool {
        if self.rng.one_in(self.mood.flush) {
            let time = clock.flushing();
            return self.send(queue, &Request::new(kind::FLUSH, 0), Op::Flush { time });
        }
        if !self.in_place.is_empty() && self.rng.one_in(IN_PLACE_SHARE) {
            return self.write_in_place(queue);
        }
        if self.rng.one_in(READ_SHARE) {
            return self.read(queue);
        }
        let zones = self.zones.len() as u64;
        let zone = usize::try_from(self.rng.below(zones)).expect("index");
        let known = &self.zones[zone].1;
        if known.manage.is_some() {
            return true;
        }
        let idle = known.pending.is_empty();
        let full = known.refused || known.finished || known.sent == self.capacity;
        let share = if full {
            self.mood.reset
        } else {
            self.mood.manage
        };
        if zone != 0 && idle && self.rng.one_in(share) {
            let kinds = [kind::ZONE_RESET, kind::ZONE_FINISH, kind::ZONE_CLOSE];
            let choice = if full || known.sent == 0 {
                kind::ZONE_RESET
            } else {
                *self.rng.pick(&kinds)
            };
            return self.manage(queue, zone, choice);
        }
        if full {
            return true;
        }
        self.write_zone(queue, zone)
    }

    fn send(&mut self, queue: &mut Queue, request: &Request, op: Op) -> bool {
        let ticket = submit(&mut self.rng, queue, request);
        let sent = ticket.map(|ticket| self.flights.insert(ticket, op));
        sent.is_some()
    }

    fn read(&mut self, queue: &mut Queue) -> bool {
        let zones = self.zones.len() as u64;
        let zone = usize::try_from(self.rng.below(zones)).expect("index");
        let (start, known) = &self.zones[zone];
        let end = known.blocks.last_key_value().map_or(0, |(at, _)| at + 1);
        let at = self.rng.below(end);
        let Some(written) = known.blocks.get(&at) else {
            return true;
        };
        let content = written.content;
        if known.manage.is_some() {
            return true;
        }
        let sector = start + at * self.block as u64 / 512;
        let life = self.resets;
        let op = Op::Read {
            zone,
            at,
            life,
            content,
        };
        self.send(queue, &Request::read(sector, self.block), op)
    }

    fn manage(&mut self, queue: &mut Queue, zone: usize, kind: u32) -> bool {
        let request = Request::new(kind, self.zones[zone].0);
        let sent = self.send(queue, &request, Op::Manage { zone, kind });
        if sent {
            self.resets += u64::from(kind == kind::ZONE_RESET);
            self.zones[zone].1.manage = Some(kind);
        }
        sent
    }

    fn write_in_place(&mut self, queue: &mut Queue) -> bool {
        let count = self.in_place.len() as u64;
        let at = self.rng.below(count);
        let block = usize::try_from(at).expect("index");
        if self.in_place[block].is_pending() {
            return true;
        }
        let stamp = self.stamp();
        let sector = self.in_place_start + at * self.block as u64 / 512;
        let request = Request::write(sector, &stamped(stamp, 1, self.block));
        let sent = self.send(queue, &request, Op::InPlace { block });
        if sent {
            self.in_place[block].submit(stamp);
        }
        sent
    }

    fn write_zone(&mut self, queue: &mut Queue, zone: usize) -> bool {
        let (start, sent) = (self.zones[zone].0, self.zones[zone].1.sent);
        let blocks = self.rng.range(1, LONGEST).min(self.capacity - sent);
        let stamp = self.stamp();
        let data = stamped(stamp, blocks, self.block);
        // Only the owner of a zone knows where its write pointer will be.
        let by_append = zone == 0 || self.rng.one_in(2);
        let piece = Piece {
            stamp,
            blocks,
            at: (!by_append).then_some(sent),
        };
        let request = if by_append {
            let tail = *self.rng.pick(&[APPEND_TAIL_SPEC, APPEND_TAIL_LINUX]);
            Request::append(start, &data, tail)
        } else {
            Request::write(start + sent * self.block as u64 / 512, &data)
        };
        let done = self.send(queue, &request, Op::Piece { zone, piece });
        if done {
            let known = &mut self.zones[zone].1;
            known.pending.insert(stamp, piece);
            // Of the shared zone the others' pieces are not known.
            if zone != 0 {
                known.sent += blocks;
            }
        }
        done
    }

    fn take(&mut self, done: &Completion, clock: &Clock) {
        let op = self.flights.remove(&done.ticket).expect("in flight");
        let status = done.status();
        let shared_is_full = matches!(op, Op::Piece { zone: 0, .. });
        let reset_meanwhile = matches!(op, Op::Read { life, .. } if life != self.resets);
        if !(shared_is_full && status == status::INVALID_CMD || reset_meanwhile) {
            assert_eq!(status, status::OK, "{op:?}");
        }
        match op {
            Op::Piece { zone, piece } => {
                let sector = done.append_sector_of(&piece);
                self.take_piece(zone, piece, status, sector, clock);
            }
            Op::Manage { zone, kind } => {
                let known = &mut self.zones[zone].1;
                known.manage = None;
                match kind {
                    kind::ZONE_RESET => *known = Zone::default(),
                    kind::ZONE_FINISH => known.finish(),
                    _ => {}
                }
            }
            Op::InPlace { block } => {
                let time = self.time(clock);
                self.in_place[block].acknowledge(time);
            }
            Op::Read {
                zone,
                at,
                life,
                content,
            } => {
                if zone == 0 || life == self.resets {
                    let found = decode(done.data(), "a block read under load");
                    assert_eq!(found, Some(content), "block {at} of zone {zone}");
                }
            }
            Op::Flush { time } => {
                clock.flushed(time);
                self.flushes += 1;
            }
        }
        self.acknowledged += 1;
    }

    fn time(&self, clock: &Clock) -> u64 {
        if self.writethrough {
            0
        } else {
            clock.acknowledged()
        }
    }

    fn take_piece(
        &mut self,
        zone: usize,
        piece: Piece,
        status: u8,
        sector: Option<u64>,
        clock: &Clock,
    ) {
        let time = self.time(clock);
        let block = self.block as u64;
        let (start, known) = &mut self.zones[zone];
        known.pending.remove(&piece.stamp);
        if status != status::OK {
            known.refused = true;
            return;
        }
        let place = match sector {
            Some(sector) => (sector - *start) * 512 / block,
            None => piece.at.expect("a write knows its place"),
        };
        for i in 0..piece.blocks {
            let content = (piece.stamp, i);
            let old = known.blocks.insert(place + i, Written { content, time });
            assert!(old.is_none(), "{piece:?}: block {} twice", place + i);
        }
    }
}

impl Completion {
    /// Where an append landed; a write says nothing of it.
    fn append_sector_of(&self, piece: &Piece) -> Option<u64> {
        piece.at.is_none().then(|| self.append_sector())
    }
}
