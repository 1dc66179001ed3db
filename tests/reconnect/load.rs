//! The requests: made at random, remembered while in flight, judged when they come back.

use std::collections::HashMap;

use crate::common::queue::{Queue, QueueError};
use crate::common::request::{
    APPEND_TAIL_LINUX, APPEND_TAIL_SPEC, Completion, Layout, REPORT_UNIT, Request, kind,
    parse_report, status,
};
use crate::common::rng::Rng;

use super::survey::{Survey, Want};
use super::truth::{BLOCK, BLOCK_SECTORS, ZONE_SECTORS, Zone, stamp_of, stamped};

/// Zones of the disk, all sequential.
pub(crate) const ZONES: u64 = 32;
/// Zones that one report asks for.
const REPORTED: u64 = 4;

/// Of a zone that is in between two lives when it is asked for: it may be found in either.
const NO_LIFE: (u64, u64) = (u64::MAX, 0);

/// What is in flight.
#[derive(Clone, Debug)]
enum Op {
    Piece {
        zone: usize,
        stamp: u64,
        append: bool,
    },
    Manage {
        zone: usize,
        kind: u32,
    },
    ResetAll,
    Read {
        zone: usize,
        life: u64,
        stamps: Vec<u64>,
    },
    /// First zone, and for each the life and the least write pointer.
    Report {
        zone: usize,
        least: Vec<(u64, u64)>,
    },
    Flush,
    GetId,
    /// Of the survey with this number: the report, or a zone's data.
    Survey(u64),
    Inspect(u64, usize),
}

/// What was done and found in a whole campaign.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) answered: u64,
    pub(crate) stamps: u64,
    pub(crate) checked: u64,
    pub(crate) refused: u64,
}

/// The load on one disk.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) rng: Rng,
    pub(crate) zones: Vec<Zone>,
    /// By queue, by ticket.
    flights: Vec<HashMap<u64, Op>>,
    next_stamp: u64,
    pub(crate) counts: Counts,
    pub(crate) survey: Survey,
}

impl Load {
    /// `fallible`: the daemon's medium fails some writes.
    pub(crate) fn new(rng: Rng, queues: u16, fallible: bool) -> Self {
        Self {
            rng,
            zones: (0..ZONES).map(|zone| Zone::new(zone, fallible)).collect(),
            flights: (0..queues).map(|_| HashMap::new()).collect(),
            next_stamp: 1,
            counts: Counts::default(),
            survey: Survey::default(),
        }
    }

    /// Submits one random request; `false` if the ring is full.
    pub(crate) fn submit(&mut self, queue: &mut Queue) -> bool {
        if self.rng.one_in(700) && self.reset_all(queue) {
            return true;
        }
        let zone = self.pick_zone(queue.index);
        match self.rng.below(100) {
            0..=1 => self.send(queue, &Request::new(kind::FLUSH, 0), Op::Flush),
            2 => {
                let request = Request::new(kind::GET_ID, 0).with_space(20);
                self.send(queue, &request, Op::GetId)
            }
            3..=5 => self.report(queue, zone),
            6..=18 => self.read(queue, zone),
            19..=21 => self.manage(queue, zone),
            _ => self.write(queue, zone),
        }
    }

    /// Mostly one that this queue cares for, so that writes at the write pointer happen.
    fn pick_zone(&mut self, queue: u16) -> usize {
        let queues = self.flights.len() as u64;
        let any = self.rng.below(ZONES);
        let zone = if self.rng.one_in(3) {
            any
        } else {
            any / queues * queues + u64::from(queue)
        };
        usize::try_from(zone).expect("index")
    }

    fn send(&mut self, queue: &mut Queue, request: &Request, op: Op) -> bool {
        let layout = if self.rng.one_in(3) {
            Layout::default()
        } else {
            Layout::indirect()
        };
        match queue.submit(request, &layout) {
            Ok(ticket) => {
                self.flights[usize::from(queue.index)].insert(ticket, op);
                true
            }
            Err(QueueError::Full) => false,
            Err(err) => panic!("{err}"),
        }
    }

    fn write(&mut self, queue: &mut Queue, zone: usize) -> bool {
        let at = usize::from(queue.index);
        let room = self.zones[zone].room();
        if room == 0 {
            return self.manage(queue, zone);
        }
        let most = if self.rng.one_in(12) { 32 } else { 6 };
        let blocks = self.rng.range(1, most).min(room);
        let append = !self.zones[zone].may_write(at) || self.rng.one_in(2);
        // The ring must have room for it, for a piece once sent cannot be taken back.
        if (append && !self.zones[zone].may_append(at)) || queue.ring.free_descriptors() < 8 {
            return true;
        }
        let piece = self.zones[zone].send(self.next_stamp, blocks, at, append);
        self.next_stamp += blocks;
        let data = stamped(&piece);
        let start = self.zones[zone].start();
        let request = match piece.at {
            Some(block) => Request::write(start + block * BLOCK_SECTORS, &data),
            None => {
                let tail = *self.rng.pick(&[APPEND_TAIL_SPEC, APPEND_TAIL_LINUX]);
                Request::append(start, &data, tail)
            }
        };
        let op = Op::Piece {
            zone,
            stamp: piece.stamp,
            append,
        };
        assert!(self.send(queue, &request, op), "room for a piece");
        true
    }

    fn manage(&mut self, queue: &mut Queue, zone: usize) -> bool {
        let known = &self.zones[zone];
        if !known.may_manage(usize::from(queue.index)) || queue.ring.free_descriptors() < 8 {
            return true;
        }
        let kind = if known.room() == 0 {
            kind::ZONE_RESET
        } else if known.is_empty() {
            kind::ZONE_OPEN
        } else {
            *self.rng.pick(&[
                kind::ZONE_RESET,
                kind::ZONE_RESET,
                kind::ZONE_FINISH,
                kind::ZONE_OPEN,
                kind::ZONE_CLOSE,
            ])
        };
        let request = Request::new(kind, self.zones[zone].start());
        self.zones[zone].send_manage(kind);
        assert!(
            self.send(queue, &request, Op::Manage { zone, kind }),
            "room for a command"
        );
        true
    }

    /// Every zone at once, if none has a reason against it.
    fn reset_all(&mut self, queue: &mut Queue) -> bool {
        let at = usize::from(queue.index);
        let free = self.zones.iter().all(|zone| zone.may_manage(at));
        if !free || queue.ring.free_descriptors() < 8 {
            return false;
        }
        for zone in &mut self.zones {
            zone.send_manage(kind::ZONE_RESET_ALL);
        }
        self.send(queue, &Request::new(kind::ZONE_RESET_ALL, 0), Op::ResetAll)
    }

    fn read(&mut self, queue: &mut Queue, zone: usize) -> bool {
        let from = self.rng.below(ZONE_SECTORS / BLOCK_SECTORS);
        let known = &self.zones[zone];
        if known.is_resetting() {
            return true;
        }
        let Some((first, stamps)) = known.sample(from, 4) else {
            return true;
        };
        let sector = known.start() + first * BLOCK_SECTORS;
        let request = Request::read(sector, stamps.len() * BLOCK);
        let life = known.life;
        self.send(queue, &request, Op::Read { zone, life, stamps })
    }

    fn report(&mut self, queue: &mut Queue, zone: usize) -> bool {
        let count = REPORTED.min(ZONES - zone as u64);
        let count = usize::try_from(count).expect("count");
        let least = self.zones[zone..zone + count]
            .iter()
            .map(|z| {
                if z.is_resetting() {
                    NO_LIFE
                } else {
                    (z.life, z.known_end())
                }
            })
            .collect();
        let request = Request::report(self.zones[zone].start(), REPORT_UNIT * (count + 1));
        self.send(queue, &request, Op::Report { zone, least })
    }

    /// Judges what came back.
    pub(crate) fn take(&mut self, queue: u16, done: &Completion) -> Result<(), String> {
        let flights = &mut self.flights[usize::from(queue)];
        let op = flights
            .remove(&done.ticket)
            .ok_or_else(|| format!("ticket {} was not in flight", done.ticket))?;
        self.counts.answered += 1;
        let code = done.status();
        if code != status::OK {
            self.counts.refused += 1;
        }
        let judged = match op.clone() {
            Op::Piece {
                zone,
                stamp,
                append,
            } => {
                let sector = if append { done.append_sector() } else { 0 };
                let zone = &mut self.zones[zone];
                let stamps = zone.answered(stamp, code, sector);
                stamps.map(|stamps| self.counts.stamps += stamps)
            }
            Op::Manage { zone, kind } => self.zones[zone].managed(kind, code),
            Op::ResetAll => self
                .zones
                .iter_mut()
                .try_for_each(|zone| zone.managed(kind::ZONE_RESET_ALL, code)),
            _ if code != status::OK => Err(format!("status {code}")),
            Op::Read { zone, life, stamps } => {
                let zone = &self.zones[zone];
                if zone.life == life {
                    same_stamps(done.data(), &stamps)
                } else {
                    Ok(())
                }
            }
            Op::Report { zone, least } => self.judge_report(zone, &least, done.data()),
            Op::Survey(number) => {
                self.survey.reported(number, parse_report(done.data()));
                Ok(())
            }
            Op::Inspect(number, zone) => {
                self.survey.inspected(number, zone, done.data());
                Ok(())
            }
            Op::Flush | Op::GetId => Ok(()),
        };
        judged.map_err(|why| {
            let zone = match op {
                Op::Piece { zone, .. } | Op::Manage { zone, .. } | Op::Read { zone, .. } => {
                    self.zones[zone].story()
                }
                Op::Report { zone, .. } => {
                    self.zones[zone..].iter().take(4).map(Zone::story).collect()
                }
                _ => String::new(),
            };
            format!("queue {queue}, {op:?}: {why}\n{zone}")
        })
    }

    fn judge_report(&self, first: usize, least: &[(u64, u64)], data: &[u8]) -> Result<(), String> {
        let report = parse_report(data);
        if report.len() != least.len() {
            return Err(format!("{} zones", report.len()));
        }
        for ((info, (life, least)), zone) in report.iter().zip(least).zip(&self.zones[first..]) {
            let wp = (info.wp - info.start) / BLOCK_SECTORS;
            if info.start != zone.start() {
                return Err(format!("{info:?} is not zone {}", zone.index));
            }
            let quiet = zone.life == *life && !zone.is_resetting();
            if quiet && info.state != 14 && (wp < *least || wp > zone.bound()) {
                return Err(format!("{info:?}: not from {least} to {}", zone.bound()));
            }
        }
        Ok(())
    }

    /// Asks for the next thing that the survey wants, if the ring has room.
    pub(crate) fn survey(&mut self, queue: &mut Queue) -> bool {
        if queue.ring.free_descriptors() < 8 {
            return false;
        }
        let number = self.survey.number();
        match self.survey.wants() {
            Want::Nothing => false,
            Want::Report => {
                let zones = usize::try_from(ZONES).expect("count");
                let request = Request::report(0, REPORT_UNIT * (zones + 1));
                self.send(queue, &request, Op::Survey(number))
            }
            Want::Zone(zone, len) => {
                let request = Request::read(self.zones[zone].start(), len);
                self.send(queue, &request, Op::Inspect(number, zone))
            }
        }
    }

    /// Compares what the survey found with what is known.
    pub(crate) fn judge_survey(&mut self) -> Result<(), String> {
        let found = self.survey.take();
        for (zone, (info, data)) in self.zones.iter_mut().zip(&found) {
            let checked = zone.check(info, data);
            self.counts.checked += checked.map_err(|why| format!("{why}\n{}", zone.story()))?;
        }
        Ok(())
    }
}

fn same_stamps(data: &[u8], stamps: &[u64]) -> Result<(), String> {
    for (block, wanted) in data.chunks_exact(BLOCK).zip(stamps) {
        let got = stamp_of(block)?;
        if got != *wanted {
            return Err(format!("read {got}, not {wanted}"));
        }
    }
    Ok(())
}
