//! A front-end that keeps one queue of a served disk full: zone appends, for which fio has no engine
//! without a guest, and reads and writes beside them.
//!
//! `load --socket SOCK --op read|write|append|reset [--block 4096] [--depth 32] [--zones 8] [--seconds 3]
//! [--poll]` prints a line of JSON. Appends and writes take `--zones` zones in turn, from the first
//! on; full zones give way to those behind them, and the run ends early with the last zone of the disk
//! (a plain disk is written anywhere). Reads are random over the whole disk. With `--poll` it never
//! sleeps, else it waits for the call as a guest does. `--op reset` empties all zones and prints nothing.
//!
//! All chains are laid out once: a request changes a sector and the available ring, so that the
//! client costs next to nothing.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a client for measurements: whatever goes wrong ends it"
)]

#[path = "../common/mod.rs"]
pub mod common;

use std::collections::VecDeque;
use std::error::Error;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use common::frontend::{Frontend, Options};
use common::memory::Span;
use common::request::{APPEND_TAIL_LINUX, SECTOR, kind, status};
use common::ring::{DESC_NEXT, DESC_WRITE, Descriptor};
use common::rng::Rng;

/// Bytes of the header of a request.
const HEADER: u64 = 16;
/// Descriptors of a request: header, data, tail.
const CHAIN: u16 = 3;
/// How long nothing may come back.
const PATIENCE_MS: i32 = 10_000;
/// What `serve` offers unless told otherwise.
const QUEUE_SIZE: u16 = 256;

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Read,
    Write,
    Append,
    /// All zones, once.
    Reset,
}

struct Job {
    socket: String,
    kind: Kind,
    block: u64,
    depth: u16,
    zones: u64,
    time: Duration,
    poll: bool,
}

/// Where the next request goes.
enum Places {
    /// Anywhere in so many blocks of the job's size.
    Random(Rng, u64),
    /// To zones in turn.
    Zones(Zones),
}

struct Zones {
    sectors: u64,
    /// Zones that are written to, with the sectors that were asked for of each.
    current: VecDeque<(u64, u64)>,
    next: u64,
    count: u64,
}

impl Zones {
    /// Start of the next zone and the sector in it.
    fn next(&mut self, sectors: u64) -> Option<(u64, u64)> {
        loop {
            let (zone, used) = self.current.pop_front()?;
            if used + sectors <= self.sectors {
                self.current.push_back((zone, used + sectors));
                return Some((zone * self.sectors, used));
            }
            if self.next < self.count {
                self.current.push_back((self.next, 0));
                self.next += 1;
            }
        }
    }
}

/// What a slot of the ring has in flight.
struct Slot {
    header: Span,
    tail: Span,
    begun: Instant,
}

struct Load {
    job: Job,
    frontend: Frontend,
    slots: Vec<Slot>,
    places: Places,
    epoll: Epoll,
    latencies: Vec<u32>,
}

impl Load {
    fn new(job: Job) -> Result<Self, Box<dyn Error>> {
        let options = Options {
            queue_size: QUEUE_SIZE,
            memory: vec![Span::new(0x1_0000_0000, 256 << 20)],
            ..Options::default()
        };
        let mut frontend = Frontend::open_with(Path::new(&job.socket), options);
        let config = frontend.config();
        let zone_sectors = u64::from(config.zoned()[0]);
        let places = if job.kind == Kind::Read || zone_sectors == 0 {
            let blocks = config.capacity() * SECTOR / job.block;
            Places::Random(Rng::new(1), blocks)
        } else {
            Places::Zones(Zones {
                sectors: zone_sectors,
                current: (0..job.zones).map(|zone| (zone, 0)).collect(),
                next: job.zones,
                count: config.capacity() / zone_sectors,
            })
        };
        let epoll = Epoll::new()?;
        let call = frontend.queue().events()[1].as_raw_fd();
        let event = EpollEvent::new(EventSet::IN, 0);
        epoll.ctl(ControlOperation::Add, call, event)?;
        let mut load = Self {
            job,
            frontend,
            slots: Vec::new(),
            places,
            epoll,
            latencies: Vec::with_capacity(8 << 20),
        };
        for index in 0..load.job.depth {
            load.lay_out(index);
        }
        Ok(load)
    }

    /// Lays the chain of a slot out in guest memory.
    fn lay_out(&mut self, index: u16) {
        let Job { block, kind, .. } = self.job;
        let ram = &self.frontend.ram;
        let data = ram.alloc(block, 4096, 0);
        let (type_id, tail, data_flags) = match kind {
            Kind::Read => (kind::IN, 1, DESC_WRITE),
            Kind::Write => (kind::OUT, 1, 0),
            Kind::Reset => (kind::ZONE_RESET_ALL, 1, 0),
            Kind::Append => (kind::ZONE_APPEND, APPEND_TAIL_LINUX as u64, 0),
        };
        let len = usize::try_from(block).expect("block");
        ram.write(data.start, &Rng::new(u64::from(index)).bytes(len));
        let header = ram.alloc(HEADER, 64, 0);
        ram.write(header.start, &type_id.to_le_bytes());
        let tail = ram.alloc(tail, 64, 0);
        let parts = [(header, 0), (data, data_flags), (tail, DESC_WRITE)];
        let head = index * CHAIN;
        let ring = &self.frontend.queues[0].ring;
        for ((span, flags), place) in parts.into_iter().zip(0..) {
            let last = place + 1 == CHAIN;
            let descriptor = Descriptor {
                addr: span.start,
                len: u32::try_from(span.len).expect("length"),
                flags: flags | if last { 0 } else { DESC_NEXT },
                next: if last { 0 } else { head + place + 1 },
            };
            ring.write_descriptor(head + place, descriptor);
        }
        self.slots.push(Slot {
            header,
            tail,
            begun: Instant::now(),
        });
    }

    /// Offers the request of a slot. `false` if there is no place left to write to.
    fn begin(&mut self, index: u16, now: Instant) -> bool {
        let sectors = self.job.block / SECTOR;
        let sector = match &mut self.places {
            Places::Random(rng, blocks) => Some(rng.below(*blocks) * sectors),
            Places::Zones(zones) => zones.next(sectors).map(|(start, at)| match self.job.kind {
                Kind::Append => start,
                _ => start + at,
            }),
        };
        let Some(sector) = sector else { return false };
        let slot = &mut self.slots[usize::from(index)];
        slot.begun = now;
        self.frontend
            .ram
            .write(slot.header.start + 8, &sector.to_le_bytes());
        self.frontend.queues[0].ring.offer(index * CHAIN);
        true
    }

    /// Runs to the end; returns requests and time.
    fn run(&mut self) -> Result<(usize, Duration), Box<dyn Error>> {
        let start = Instant::now();
        let (mut flying, mut open) = (0_usize, true);
        for index in 0..self.job.depth {
            open = open && self.begin(index, start);
            flying += usize::from(open);
        }
        self.frontend.queues[0].kick();
        while flying > 0 {
            self.wait()?;
            let now = Instant::now();
            let over = now - start >= self.job.time;
            while let Some(used) = self.frontend.queues[0].ring.pop() {
                flying -= 1;
                let index = u16::try_from(used.id)? / CHAIN;
                self.end(index, now)?;
                open = open && !over;
                if open {
                    open = self.begin(index, now);
                    flying += usize::from(open);
                }
            }
            self.frontend.queues[0].kick();
        }
        Ok((self.latencies.len(), start.elapsed()))
    }

    fn end(&mut self, index: u16, now: Instant) -> Result<(), Box<dyn Error>> {
        let slot = &self.slots[usize::from(index)];
        let last = slot.tail.start + slot.tail.len - 1;
        let answer = self.frontend.ram.read(Span::new(last, 1));
        if answer[0] != status::OK {
            return Err(format!("a request came back with status {}", answer[0]).into());
        }
        let nanos = (now - slot.begun).as_nanos();
        self.latencies
            .push(u32::try_from(nanos).unwrap_or(u32::MAX));
        Ok(())
    }

    fn wait(&mut self) -> Result<(), Box<dyn Error>> {
        let queue = &self.frontend.queues[0];
        if self.job.poll {
            let start = Instant::now();
            while queue.ring.ready() == 0 {
                if start.elapsed() > Duration::from_millis(PATIENCE_MS.unsigned_abs().into()) {
                    return Err("nothing comes back".into());
                }
                std::hint::spin_loop();
            }
            return Ok(());
        }
        queue.ring.arm();
        while queue.ring.ready() == 0 {
            let mut events = [EpollEvent::default()];
            if self.epoll.wait(PATIENCE_MS, &mut events)? == 0 {
                return Err("nothing comes back".into());
            }
            let _count = queue.events()[1].read();
        }
        Ok(())
    }

    fn percentile(&self, per_mille: usize) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        let at = last * per_mille / 1000;
        self.latencies
            .get(at)
            .map_or(0.0, |&nanos| f64::from(nanos) / 1e3)
    }
}

fn parse() -> Option<Job> {
    let mut job = Job {
        socket: String::new(),
        kind: Kind::Append,
        block: 4096,
        depth: 32,
        zones: 8,
        time: Duration::from_secs(3),
        poll: false,
    };
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        match name.as_str() {
            "--poll" => job.poll = true,
            // What cargo says to every benchmark.
            "--bench" => {}
            _ => {
                let value = args.next()?;
                match name.as_str() {
                    "--socket" => job.socket = value,
                    "--op" => {
                        job.kind = match value.as_str() {
                            "read" => Kind::Read,
                            "write" => Kind::Write,
                            "append" => Kind::Append,
                            "reset" => Kind::Reset,
                            _ => return None,
                        };
                    }
                    "--block" => job.block = value.parse().ok()?,
                    "--depth" => {
                        job.depth = value
                            .parse()
                            .ok()
                            .filter(|d| (1..=QUEUE_SIZE / CHAIN).contains(d))?;
                    }
                    "--zones" => job.zones = value.parse().ok()?,
                    "--seconds" => job.time = Duration::from_secs_f64(value.parse().ok()?),
                    _ => return None,
                }
            }
        }
    }
    Some(job)
}

fn main() -> Result<(), Box<dyn Error>> {
    let Some(job) = parse() else {
        return Err("see the head of tests/bench/load.rs for the options".into());
    };
    if job.socket.is_empty() {
        // Cargo's tests run every benchmark once, without a disk.
        println!("load: no --socket, nothing to do");
        return Ok(());
    }
    if job.kind == Kind::Reset {
        let mut frontend = Frontend::open(Path::new(&job.socket));
        return match frontend.queue().simple(kind::ZONE_RESET_ALL, 0) {
            status::OK => Ok(()),
            other => Err(format!("the reset came back with status {other}").into()),
        };
    }
    let block = job.block;
    let mut load = Load::new(job)?;
    let (requests, time) = load.run()?;
    load.latencies.sort_unstable();
    let iops = requests as f64 / time.as_secs_f64();
    println!(
        "{{\"requests\": {requests}, \"seconds\": {:.3}, \"iops\": {iops:.0}, \"mib_s\": {:.1}, \
         \"p50_us\": {:.1}, \"p99_us\": {:.1}, \"p999_us\": {:.1}}}",
        time.as_secs_f64(),
        iops * block as f64 / f64::from(1 << 20),
        load.percentile(500),
        load.percentile(990),
        load.percentile(999),
    );
    Ok(())
}
