//! The zone machine with many operations under way, ended in any order.
//!
//! As long as nothing fails it is compared with the reference model of the tests. In the other half
//! of the cases writes, records and resets fail, syncs overlap with all of it, and the daemon is
//! killed; then what must hold in any case is checked: who is told, in which order, what a record
//! on disk says, and that no counter stamps two blocks.
#![no_main]

use std::collections::{HashMap, HashSet, VecDeque};

use arbitrary::{Arbitrary, Result, Unstructured};
use zonevault::format::image::fresh_record;
use zonevault::geometry::{Blocks, Geometry, Model as Kind, ZoneIndex, ZoneType};
use zonevault::request::{encode_zone, report_header};
use zonevault::zone::{
    Admission, Epoch, FlushMark, Grant, Loaded, Opening, RecordCopy, RecordWrite, Released, Table,
    Ticket, ZoneError, ZoneSalt, ZoneState,
};
use zonevault_fuzz::common::request::{parse_report, status};
use zonevault_fuzz::model::Model;
use zonevault_fuzz::{ZONE, model_of, small_disk};

const ZONES: u32 = 6;
/// Operations of a case.
const OPS: usize = 200;

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Op {
    Append {
        zone: u8,
        count: u8,
    },
    /// At the write pointer, moved by so many blocks.
    Write {
        zone: u8,
        off: i8,
        count: u8,
    },
    Open {
        zone: u8,
    },
    Close {
        zone: u8,
    },
    Finish {
        zone: u8,
    },
    Reset {
        zone: u8,
    },
    ResetAll,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Event {
    Begin(Op),
    Again(Op),
    /// One of the writes in flight ends.
    EndWrite {
        which: u8,
        fails: bool,
    },
    EndReset {
        fails: bool,
    },
    BeginFlush,
    EndFlush {
        fails: bool,
    },
    Fence {
        fails: bool,
    },
    /// The next record cannot be written.
    LoseRecord,
    Kill,
}

impl Event {
    /// Whether something goes wrong by it.
    fn is_trouble(self) -> bool {
        match self {
            Self::EndWrite { fails, .. } | Self::EndReset { fails } | Self::EndFlush { fails } => {
                fails
            }
            Self::Fence { .. } | Self::LoseRecord | Self::Kill => true,
            Self::Begin(_) | Self::Again(_) | Self::BeginFlush => false,
        }
    }
}

struct World {
    table: Table,
    geometry: Geometry,
    /// `None`: things fail.
    model: Option<Model>,
    tagged: bool,
    epoch: u64,
    flying: Vec<Grant>,
    /// Per zone: writes granted and not released, with their ends.
    line: Vec<VecDeque<(Ticket, u64)>>,
    parked: HashMap<u32, Op>,
    resets: VecDeque<ZoneIndex>,
    fences: VecDeque<ZoneIndex>,
    mark: Option<FlushMark>,
    lose_record: bool,
    /// The newest record of every zone.
    disk: Vec<Loaded>,
    /// Zone, generation, epoch and counter of every block that was ever granted.
    stamps: HashSet<(u32, u64, u64, u32)>,
    next: u32,
}

fn code<T>(result: Result<Admission<T>, ZoneError>) -> Option<(u8, Option<T>)> {
    Some(match result {
        Ok(Admission::Granted(value)) => (status::OK, Some(value)),
        Ok(Admission::Parked) => return None,
        Err(ZoneError::InvalidCommand) => (status::INVALID_CMD, None),
        Err(ZoneError::UnalignedWritePointer) => (status::UNALIGNED_WP, None),
        Err(ZoneError::OpenResource) => (status::OPEN_RESOURCE, None),
        Err(ZoneError::ActiveResource) => (status::ACTIVE_RESOURCE, None),
        Err(ZoneError::Failed) => (status::IOERR, None),
    })
}

fn fresh_disk(geometry: &Geometry) -> Vec<Loaded> {
    let fresh = |zone| Loaded {
        record: fresh_record(geometry, zone, ZoneSalt([0; 32])),
        sequence: 0,
        copy: RecordCopy::A,
        mirrored: true,
        proven: Blocks(0),
    };
    geometry.all_zones().map(fresh).collect()
}

impl World {
    fn new(geometry: Geometry, trouble: bool, tagged: bool) -> Self {
        let disk = fresh_disk(&geometry);
        let records = disk.iter().copied().map(Some).collect();
        Self {
            table: Table::new(geometry, records, Opening::Clean, Epoch(1)),
            geometry,
            model: (!trouble).then(|| model_of(&geometry)),
            tagged,
            epoch: 1,
            flying: Vec::new(),
            line: geometry.all_zones().map(|_| VecDeque::new()).collect(),
            parked: HashMap::new(),
            resets: VecDeque::new(),
            fences: VecDeque::new(),
            mark: None,
            lose_record: false,
            disk,
            stamps: HashSet::new(),
            next: 0,
        }
    }

    fn zone(&self, zone: u8) -> (ZoneIndex, u64) {
        let zone = ZoneIndex(u32::from(zone) % self.geometry.zones());
        (zone, self.geometry.zone_start(zone).0)
    }

    /// Where the next write of a zone goes, by what was granted and released.
    fn pointer(&self, zone: ZoneIndex) -> u64 {
        let end = self.line[zone.as_usize()].back().map(|(_, end)| *end);
        end.unwrap_or_else(|| self.table.record(zone).map_or(0, |record| record.written.0))
    }

    fn data(&self, count: u64) -> Vec<u8> {
        vec![0; usize::try_from(self.geometry.block_bytes(Blocks(count))).unwrap()]
    }

    fn begin(&mut self, op: Op) {
        self.next += 1;
        let ticket = self.ticket(self.next);
        self.attempt(op, ticket);
    }

    fn ticket(&self, op: u32) -> Ticket {
        let life = u32::try_from(self.epoch).unwrap();
        Ticket { queue: 0, life, op }
    }

    /// Begins an operation, perhaps once more.
    fn attempt(&mut self, op: Op, ticket: Ticket) {
        let parked = match op {
            Op::Append { zone, count } => self.write(zone, None, count, ticket),
            Op::Write { zone, off, count } => self.write(zone, Some(off), count, ticket),
            Op::Open { zone } => {
                let (zone, sector) = self.zone(zone);
                let code = code(self.table.open(zone, ticket)).map(|(code, _)| code);
                self.compare(op, code, |model| model.open(sector))
            }
            Op::Close { zone } => {
                let (zone, sector) = self.zone(zone);
                let code = code(self.table.close(zone, ticket)).map(|(code, _)| code);
                self.compare(op, code, |model| model.close(sector))
            }
            Op::Finish { zone } => {
                let (zone, sector) = self.zone(zone);
                let code = code(self.table.finish(zone, ticket)).map(|(code, _)| code);
                self.compare(op, code, |model| model.finish(sector))
            }
            Op::Reset { zone } => {
                let (zone, sector) = self.zone(zone);
                let begun = code(self.table.begin_reset(zone, ticket));
                if matches!(begun, Some((_, Some(true)))) {
                    self.hold(vec![zone]);
                }
                let code = begun.map(|(code, _)| code);
                self.compare(op, code, |model| model.reset(sector))
            }
            Op::ResetAll => {
                let begun = code(Ok(self.table.begin_reset_all(ticket)));
                if let Some((_, Some(zones))) = &begun {
                    self.hold(zones.clone());
                }
                let code = begun.map(|(code, _)| code);
                self.compare(op, code, Model::reset_all)
            }
        };
        if parked {
            self.parked.insert(ticket.op, op);
        }
        for zone in self.table.touched() {
            self.settle(zone);
        }
    }

    /// Compares with the model how an operation began; `true` if it waits.
    fn compare(
        &mut self,
        op: Op,
        code: Option<u8>,
        verdict: impl FnOnce(&mut Model) -> Vec<u8>,
    ) -> bool {
        let Some(code) = code else {
            return true;
        };
        if let Some(model) = &mut self.model {
            let allowed = verdict(model);
            assert!(
                allowed.contains(&code),
                "{op:?}: {code}, not in {allowed:?}"
            );
        }
        false
    }

    fn write(&mut self, zone: u8, off: Option<i8>, count: u8, ticket: Ticket) -> bool {
        let (zone, sector) = self.zone(zone);
        let block = self.geometry.block_size().bytes();
        let count = u64::from(count % 6) + 1;
        let pointer = self.pointer(zone);
        let at = off.map(|off| pointer.saturating_add_signed(i64::from(off / 32)));
        let past = at.unwrap_or(0) + count > ZONE / block;
        let conventional = self.geometry.zone_type(zone) == ZoneType::Conventional;
        if conventional || past || count * block > self.geometry.max_append() {
            return false; // never comes this far
        }
        let admitted = self
            .table
            .admit_write(zone, at.map(Blocks), Blocks(count), ticket);
        let Some((code, grant)) = code(admitted) else {
            return true;
        };
        let data = self.data(count);
        let op = Op::Append { zone: 0, count: 0 };
        self.compare(op, Some(code), |model| match at {
            Some(at) => model.write(sector + at * block / 512, &data),
            None => model.append(sector, &data).0,
        });
        let Some(grant) = grant else {
            return false;
        };
        assert_eq!(grant.start.0, pointer, "not where the last write ends");
        let end = pointer + count;
        for number in pointer..end {
            let counter = grant.skipped.counter(Blocks(number)).expect("a counter");
            let stamp = (zone.0, grant.generation.0, grant.epoch.0, counter);
            assert!(self.stamps.insert(stamp), "{stamp:?} stamps two blocks");
        }
        self.line[zone.as_usize()].push_back((ticket, end));
        if let Some(closed) = grant.closed {
            self.settle(closed);
        }
        self.flying.push(grant);
        // Of a zone that is full by what is in flight the model says that it is full, and has a
        // slot for another; the machine is to say so when that has ended.
        if self.model.is_some() && end == self.geometry.zone_capacity_blocks(zone).0 {
            self.end_writes_of(zone);
        }
        false
    }

    fn end_writes_of(&mut self, zone: ZoneIndex) {
        while let Some(at) = self.flying.iter().position(|grant| grant.zone == zone) {
            self.end_write(at, true);
        }
    }

    fn end_write(&mut self, at: usize, ok: bool) {
        let grant = self.flying.swap_remove(at);
        let zone = grant.zone;
        self.table.complete(grant, ok);
        self.settle(zone);
    }

    /// Resets of these zones are under way.
    fn hold(&mut self, zones: Vec<ZoneIndex>) {
        self.resets.extend(zones);
        while self.model.is_some() && !self.resets.is_empty() {
            self.end_reset(true);
        }
    }

    fn end_reset(&mut self, ok: bool) {
        let Some(zone) = self.resets.pop_front() else {
            return;
        };
        if ok {
            self.table.apply_reset(zone, ZoneSalt([1; 32]));
        }
        self.table.end_reset(zone, ok);
        self.settle(zone);
    }

    fn settle(&mut self, zone: ZoneIndex) {
        let settled = self.table.settle(zone);
        if let Some(order) = settled.record {
            self.put_record(zone, &order);
        }
        if settled.fence {
            self.fences.push_back(zone);
        }
        let mut again = Vec::new();
        for released in settled.released {
            match released {
                Released::Write(ticket, result) => {
                    let (first, end) = self.line[zone.as_usize()].pop_front().expect("a write");
                    assert_eq!(first, ticket, "told out of order");
                    let written = self.table.record(zone).expect("a zone").written.0;
                    assert!(result.is_err() || written >= end, "told, and not there");
                    assert!(result.is_ok() || self.model.is_none());
                }
                Released::Retry(ticket, of) => {
                    assert_eq!(of, zone);
                    again.push(ticket);
                }
                Released::Synced(..) => panic!("nobody syncs here"),
            }
        }
        let retried = !again.is_empty();
        for ticket in again {
            let op = self.parked.remove(&ticket.op).expect("who waited");
            self.attempt(op, ticket);
            self.table.retried(zone, ticket);
        }
        if retried {
            self.settle(zone);
        }
    }

    fn put_record(&mut self, zone: ZoneIndex, order: &RecordWrite) {
        if std::mem::take(&mut self.lose_record) {
            self.table.fail_zone(zone);
            return;
        }
        let before = &self.disk[zone.as_usize()];
        assert!(
            order.sequence > before.sequence,
            "not newer than what it replaces"
        );
        assert!(order.record.durable <= order.record.written);
        assert!(order.record.generation >= before.record.generation);
        let proven = order.record.durable;
        self.disk[zone.as_usize()] = Loaded {
            record: order.record,
            sequence: order.sequence,
            copy: order.copy,
            mirrored: false,
            proven,
        };
        self.table.record_written(zone, order);
    }

    fn end_flush(&mut self, ok: bool) {
        let Some(mark) = self.mark.take() else {
            return;
        };
        let moved = if ok {
            self.table.end_flush(mark)
        } else {
            self.table.fail_flush()
        };
        for zone in moved {
            self.settle(zone);
        }
    }

    fn end_fence(&mut self, ok: bool) {
        let Some(zone) = self.fences.pop_front() else {
            return;
        };
        // One sync at a time: the one under way is over before the fence's own.
        self.end_flush(true);
        self.mark = Some(self.table.begin_flush());
        self.end_flush(true);
        let recorded = ok
            && match self.table.fence_record(zone, self.tagged) {
                None => false,
                Some(order) => {
                    self.put_record(zone, &order);
                    self.mark = Some(self.table.begin_flush());
                    self.end_flush(true);
                    true
                }
            };
        self.table.end_fence(zone, recorded);
        self.settle(zone);
    }

    /// The daemon is killed, and another opens the disk.
    fn kill(&mut self) {
        self.epoch += 1;
        self.flying.clear();
        self.line.iter_mut().for_each(VecDeque::clear);
        self.parked.clear();
        self.resets.clear();
        self.fences.clear();
        self.mark = None;
        let records = self.disk.iter().copied().map(Some).collect();
        self.table = Table::new(self.geometry, records, Opening::Killed, Epoch(self.epoch));
        for (zone, loaded) in self.geometry.all_zones().zip(self.disk.clone()) {
            let now = self.table.record(zone).expect("a zone");
            assert_eq!(now.written, loaded.record.written, "what was told is there");
        }
        for zone in self.table.touched() {
            self.settle(zone);
        }
    }

    fn step(&mut self, event: Event) {
        match event {
            Event::Begin(op) | Event::Again(op) => self.begin(op),
            Event::EndWrite { which, fails } if !self.flying.is_empty() => {
                self.end_write(usize::from(which) % self.flying.len(), !fails);
            }
            Event::EndReset { fails } => self.end_reset(!fails),
            Event::BeginFlush if self.mark.is_none() => {
                self.mark = Some(self.table.begin_flush());
            }
            Event::EndFlush { fails } => self.end_flush(!fails),
            Event::Fence { fails } => self.end_fence(!fails),
            Event::LoseRecord => self.lose_record = true,
            Event::Kill => self.kill(),
            Event::EndWrite { .. } | Event::BeginFlush => {}
        }
        self.check();
    }

    /// What a guest may rely on at any moment.
    fn check(&self) {
        let g = &self.geometry;
        let (open, active) = self.table.resources();
        assert!(g.max_open() == 0 || open <= g.max_open());
        assert!(g.max_active() == 0 || active <= g.max_active());
        self.table.report(ZoneIndex(0), usize::MAX, |_, info| {
            let past = info.write_pointer.0 - info.start.0;
            assert!(past <= info.capacity.0 || info.state == ZoneState::Full);
        });
        let recorded = self
            .disk
            .iter()
            .filter(|zone| zone.record.state.is_active());
        let limit = usize::try_from(g.max_active()).unwrap();
        assert!(
            limit == 0 || recorded.count() <= limit,
            "more active on disk than may be"
        );
    }

    /// Everything ends well, and nobody is left waiting.
    fn rest(&mut self) {
        self.lose_record = false;
        self.end_flush(true);
        while !(self.flying.is_empty() && self.resets.is_empty() && self.fences.is_empty()) {
            while !self.flying.is_empty() {
                self.end_write(0, true);
            }
            self.end_reset(true);
            self.end_fence(true);
        }
        assert!(
            self.parked.is_empty(),
            "they wait for ever: {:?}",
            self.parked
        );
        assert!(self.line.iter().all(VecDeque::is_empty), "never told");
        if let Some(model) = &self.model {
            let mut bytes = report_header(self.geometry.zones().into()).to_vec();
            self.table.report(ZoneIndex(0), usize::MAX, |_, zone| {
                bytes.extend(encode_zone(&zone));
            });
            assert_eq!(parse_report(&bytes), model.report());
            let (open, active) = self.table.resources();
            assert_eq!(u64::from(open), model.open_zones());
            assert_eq!(u64::from(active), model.active_zones());
        }
    }
}

fn run(data: &[u8]) -> Result<()> {
    let u = &mut Unstructured::new(data);
    let geometry = small_disk(u, ZONES)?;
    if geometry.model() == Kind::Plain {
        return Ok(());
    }
    let trouble = u.arbitrary()?;
    let mut world = World::new(geometry, trouble, u.arbitrary()?);
    for _ in 0..OPS {
        if u.is_empty() {
            break;
        }
        let event: Event = u.arbitrary()?;
        if trouble || !event.is_trouble() {
            world.step(event);
        }
    }
    world.rest();
    Ok(())
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = run(data);
});
