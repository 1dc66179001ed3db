//! What a queue does, counted for whoever asked for it.
//!
//! A worker that counts keeps a `Collector`. During a pass that only notes, in memory of its own; at
//! the end of the pass it reads the clock and adds everything to the queue's [`QueueStats`] at once, under
//! a lock that it shares with no other queue and that whoever reads holds for as long as it takes to
//! exchange two pointers' worth of numbers. So a pass costs two readings of the clock, one when the first
//! chain is taken and one when the answers are out, and a request no allocation. A worker that does not
//! count reads no clock.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use hdrhistogram::Histogram;
use parking_lot::Mutex;

use crate::request::{Command, Outcome, Status};
use crate::volume::ChannelCounters;

use super::BATCH;

/// Significant decimal digits of a latency: 30 KiB a histogram, against 220 KiB for three.
const LATENCY_DIGITS: u8 = 2;
/// Longest latency told from longer ones, in nanoseconds: a minute, which is longer than any disk takes
/// that is still alive.
const MAX_LATENCY: u64 = 60_000_000_000;

/// Requests that move data, and how much.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transfers {
    /// Requests answered, failed ones too.
    pub requests: u64,
    /// Bytes of those that did not fail.
    pub bytes: u64,
}

impl Transfers {
    fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.bytes += other.bytes;
    }
}

/// Chains taken from the ring, pass by pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Batches {
    /// Passes that took any.
    pub count: u64,
    /// Chains that they took.
    pub chains: u64,
    /// Most of one pass.
    pub largest: u64,
}

impl Batches {
    fn add(&mut self, other: Self) {
        self.count += other.count;
        self.chains += other.chains;
        self.largest = self.largest.max(other.largest);
    }
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Reads.
    pub reads: Transfers,
    /// Writes at a sector that the guest named.
    pub writes: Transfers,
    /// Zone appends.
    pub appends: Transfers,
    /// Flushes.
    pub flushes: u64,
    /// Everything else that got an answer: zone management, reports, discards, what the device does
    /// not know.
    pub others: u64,
    /// Of all these, those that did not end well.
    pub errors: u64,
    /// Chains that were no request; handed back without an answer, and not among the above.
    pub malformed: u64,
    /// Chains taken.
    pub batches: Batches,
    /// Passes after which the guest wanted an interrupt.
    pub notifications: u64,
    /// Keys and tags.
    pub channel: ChannelCounters,
}

impl Counts {
    /// Requests answered.
    pub fn requests(&self) -> u64 {
        let transfers = [self.reads, self.writes, self.appends];
        let moving: u64 = transfers.iter().map(|t| t.requests).sum();
        moving + self.flushes + self.others
    }

    fn add(&mut self, other: &Self) {
        self.reads.add(other.reads);
        self.writes.add(other.writes);
        self.appends.add(other.appends);
        self.flushes += other.flushes;
        self.others += other.others;
        self.errors += other.errors;
        self.malformed += other.malformed;
        self.batches.add(other.batches);
        self.notifications += other.notifications;
        self.channel.add(&other.channel);
    }

    fn answered(&mut self, Ended { mark, ok }: Ended) {
        self.errors += u64::from(!ok);
        let transfers = match mark.kind {
            Kind::Read => &mut self.reads,
            Kind::Write => &mut self.writes,
            Kind::Append => &mut self.appends,
            Kind::Flush => {
                self.flushes += 1;
                return;
            }
            Kind::Other => {
                self.others += 1;
                return;
            }
        };
        transfers.requests += 1;
        transfers.bytes += if ok { mark.bytes.into() } else { 0 };
    }
}

/// What a queue did between two moments.
#[derive(Clone, Debug)]
pub struct Interval {
    /// How often.
    pub counts: Counts,
    /// How long it took to answer each request, in nanoseconds: from the moment when the batch was taken
    /// that it was in until its answer could be seen by the guest.
    pub latency: Histogram<u64>,
}

impl Interval {
    /// Nothing happened yet.
    ///
    /// # Errors
    /// No memory for the histogram.
    pub fn new() -> io::Result<Self> {
        let latency = Histogram::new_with_bounds(1, MAX_LATENCY, LATENCY_DIGITS);
        Ok(Self {
            counts: Counts::default(),
            latency: latency.map_err(io::Error::other)?,
        })
    }

    /// Adds what happened in another one.
    ///
    /// # Errors
    /// Their histograms differ in their bounds.
    pub fn add(&mut self, other: &Self) -> io::Result<()> {
        self.counts.add(&other.counts);
        self.latency.add(&other.latency).map_err(io::Error::other)
    }

    /// Forgets everything, and keeps the memory.
    pub fn clear(&mut self) {
        self.counts = Counts::default();
        self.latency.reset();
    }
}

/// Where one queue's worker leaves what it counted, whatever front-end it works for.
#[derive(Debug)]
pub struct QueueStats {
    now: Mutex<Interval>,
}

impl QueueStats {
    /// Nothing happened yet.
    ///
    /// # Errors
    /// No memory for the histogram.
    pub fn new() -> io::Result<Self> {
        let now = Mutex::new(Interval::new()?);
        Ok(Self { now })
    }

    /// Takes everything that happened since the last time, and has the worker go on with `interval`,
    /// which is cleared before.
    pub fn take(&self, interval: &mut Interval) {
        interval.clear();
        std::mem::swap(&mut *self.now.lock(), interval);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Read,
    Write,
    Append,
    Flush,
    Other,
}

/// When a chain was taken: nanoseconds since its collector was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Taken(u64);

/// What travels with a chain, to be counted when it is answered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mark {
    taken: Taken,
    /// Of data; no transfer has more than 64 MiB.
    bytes: u32,
    kind: Kind,
}

impl Mark {
    /// The mark of a request that was taken then, and that asks for `command` or for nothing valid.
    pub(super) fn new(taken: Taken, command: Result<&Command, &Status>) -> Self {
        let (kind, bytes) = match command {
            Ok(Command::Read(span)) => (Kind::Read, span.len),
            Ok(Command::Write(span)) => (Kind::Write, span.len),
            Ok(Command::Append(_, len)) => (Kind::Append, *len),
            Ok(Command::Flush) => (Kind::Flush, 0),
            _ => (Kind::Other, 0),
        };
        Self {
            taken,
            bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
            kind,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Ended {
    mark: Mark,
    ok: bool,
}

/// Notes what happens in a pass of a worker.
#[derive(Debug)]
pub(super) struct Collector {
    shared: Arc<QueueStats>,
    /// What moments are counted from, so that one is 8 bytes in a request and not 16.
    epoch: Instant,
    /// Chains taken in this pass, and when.
    batch: u64,
    taken: Taken,
    malformed: u64,
    ended: Vec<Ended>,
    /// What the channel had counted at the last pass.
    seen: ChannelCounters,
}

impl Collector {
    pub(super) fn new(shared: Arc<QueueStats>) -> Self {
        Self {
            shared,
            epoch: Instant::now(),
            batch: 0,
            taken: Taken(0),
            malformed: 0,
            ended: Vec::new(),
            seen: ChannelCounters::default(),
        }
    }

    /// The queue starts anew, with a new channel of so many operations.
    pub(super) fn start(&mut self, depth: u16) {
        self.seen = ChannelCounters::default();
        // In one pass as many can end as there can be under way, and a batch that ends at once.
        self.ended.reserve(usize::from(depth) + BATCH);
    }

    /// A chain was taken from the ring.
    pub(super) fn take(&mut self) -> Taken {
        if self.batch == 0 {
            self.taken = Taken(self.now());
        }
        self.batch += 1;
        self.taken
    }

    /// A chain was handed back that is no request.
    pub(super) fn malformed(&mut self) {
        self.malformed += 1;
    }

    /// A request was answered.
    pub(super) fn ended(&mut self, mark: Mark, outcome: Outcome) {
        let ok = matches!(outcome, Outcome::Done(Status::Ok, _) | Outcome::Appended(_));
        self.ended.push(Ended { mark, ok });
    }

    /// The guest sees the answers of this pass. `notify`: it wants an interrupt for them.
    pub(super) fn end_pass(&mut self, notify: bool, channel: ChannelCounters) {
        if self.batch == 0 && self.ended.is_empty() {
            return;
        }
        let now = match self.ended.is_empty() {
            true => 0,
            false => self.now(),
        };
        let mut interval = self.shared.now.lock();
        let Interval { counts, latency } = &mut *interval;
        for ended in self.ended.drain(..) {
            latency.saturating_record(now.saturating_sub(ended.mark.taken.0));
            counts.answered(ended);
        }
        counts.batches.add(Batches {
            count: u64::from(self.batch > 0),
            chains: self.batch,
            largest: self.batch,
        });
        counts.malformed += self.malformed;
        counts.notifications += u64::from(notify);
        counts.channel.add(&channel.since(&self.seen));
        drop(interval);
        self.seen = channel;
        self.batch = 0;
        self.malformed = 0;
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use crate::geometry::{Sector, ZoneIndex};
    use crate::request::Span;

    use super::*;

    const READ: Command = Command::Read(Span {
        sector: Sector(8),
        len: 4096,
    });
    const APPEND: Command = Command::Append(ZoneIndex(1), 8192);

    fn collector() -> (Collector, Arc<QueueStats>) {
        let stats = Arc::new(QueueStats::new().unwrap());
        let mut collector = Collector::new(Arc::clone(&stats));
        collector.start(16);
        (collector, stats)
    }

    fn done(status: Status) -> Outcome {
        Outcome::Done(status, 0)
    }

    fn channel(key_hits: u64, slot_reads: u64) -> ChannelCounters {
        ChannelCounters {
            key_hits,
            slot_reads,
            ..ChannelCounters::default()
        }
    }

    fn batches(count: u64, chains: u64, largest: u64) -> Batches {
        Batches {
            count,
            chains,
            largest,
        }
    }

    fn take(stats: &QueueStats) -> Interval {
        let mut interval = Interval::new().unwrap();
        // What is left in it from before must not count.
        interval.counts.errors = 77;
        interval.latency.saturating_record(5);
        stats.take(&mut interval);
        interval
    }

    #[test]
    fn answers_are_counted_by_kind_and_bytes_only_of_what_went_well() {
        let (mut collector, stats) = collector();
        let mut end = |command: Result<&Command, &Status>, outcome| {
            let mark = Mark::new(collector.take(), command);
            collector.ended(mark, outcome);
        };
        end(Ok(&READ), done(Status::Ok));
        end(Ok(&READ), done(Status::IoError));
        end(Ok(&APPEND), Outcome::Appended(Sector(3)));
        end(Ok(&Command::Flush), done(Status::Ok));
        end(Ok(&Command::GetId), done(Status::Ok));
        end(Err(&Status::Unsupported), done(Status::Unsupported));
        collector.end_pass(true, channel(5, 1));
        let Interval { counts, latency } = take(&stats);
        let reads = Transfers {
            requests: 2,
            bytes: 4096,
        };
        let appends = Transfers {
            requests: 1,
            bytes: 8192,
        };
        assert_eq!((counts.reads, counts.appends), (reads, appends));
        assert_eq!(counts.writes, Transfers::default());
        assert_eq!((counts.flushes, counts.others, counts.errors), (1, 2, 2));
        assert_eq!((counts.requests(), latency.len()), (6, 6));
        assert_eq!(counts.batches, batches(1, 6, 6));
        assert_eq!((counts.notifications, counts.channel), (1, channel(5, 1)));
    }

    #[test]
    fn a_latency_is_from_the_taking_of_the_batch_to_the_end_of_the_pass_that_answers() {
        const PAUSE: Duration = Duration::from_millis(20);
        let (mut collector, stats) = collector();
        let slow = Mark::new(collector.take(), Ok(&READ));
        thread::sleep(PAUSE);
        // The same batch, so the same moment.
        assert_eq!(collector.take(), slow.taken);
        collector.end_pass(false, channel(0, 0));
        assert_eq!(take(&stats).latency.len(), 0);
        let quick = Mark::new(collector.take(), Ok(&READ));
        assert!(quick.taken.0 - slow.taken.0 >= 20_000_000);
        collector.ended(slow, done(Status::Ok));
        thread::sleep(PAUSE);
        collector.end_pass(false, channel(0, 0));
        let latency = take(&stats).latency;
        assert_eq!(latency.len(), 1);
        assert!(latency.max() >= 40_000_000, "{}", latency.max());
    }

    #[test]
    fn what_the_channel_counts_is_added_once_also_of_the_next_channel() {
        let (mut collector, stats) = collector();
        let pass = |collector: &mut Collector, counters| {
            collector.take();
            collector.end_pass(false, counters);
        };
        pass(&mut collector, channel(5, 1));
        pass(&mut collector, channel(7, 4));
        assert_eq!(take(&stats).counts.channel, channel(7, 4));
        pass(&mut collector, channel(8, 4));
        collector.start(16);
        pass(&mut collector, channel(2, 2));
        assert_eq!(take(&stats).counts.channel, channel(3, 2));
    }

    #[test]
    fn taking_leaves_nothing_and_parts_add_up() {
        let (mut collector, stats) = collector();
        let mut total = Interval::new().unwrap();
        for requests in [3, 1, 16] {
            for _ in 0..requests {
                let mark = Mark::new(collector.take(), Ok(&READ));
                collector.ended(mark, done(Status::Ok));
            }
            collector.malformed();
            collector.end_pass(requests == 1, channel(0, 0));
            let part = take(&stats);
            assert_eq!((part.counts.requests(), part.counts.errors), (requests, 0));
            total.add(&part).unwrap();
        }
        let last = take(&stats);
        assert_eq!((last.counts, last.latency.len()), (Counts::default(), 0));
        let counts = total.counts;
        assert_eq!(
            (counts.requests(), counts.batches),
            (20, batches(3, 20, 16))
        );
        assert_eq!((counts.malformed, counts.notifications), (3, 1));
        assert_eq!(total.latency.len(), 20);
    }

    #[test]
    fn an_idle_pass_leaves_no_trace() {
        let (mut collector, stats) = collector();
        collector.end_pass(false, channel(9, 9));
        assert_eq!(take(&stats).counts, Counts::default());
    }
}
