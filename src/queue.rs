//! One virtqueue's worker: chains out of the ring, operations into the disk, answers back.
//!
//! A worker belongs to one thread and owns everything its queue needs. Each pass of
//! [`Worker::service`] answers what ended and takes a batch of what arrived; the caller signals the
//! guest once a pass and comes again as long as there is more. What is in the ring beyond the room of
//! the disk's channel stays there. When a pass found nothing the worker may [watch](Worker::watch) the
//! ring for a moment, and before it sleeps it [rests](Worker::rest): only from then on does it want to
//! be kicked.

pub mod inflight;
mod poll;
mod ring;
pub mod stats;

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{error, info, warn};
use thiserror::Error;
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::geometry::ZoneIndex;
use crate::guard;
use crate::limit::LogLimit;
use crate::mutant::{self, Mutant, Point};
use crate::request::{
    Chain, Command, DescriptorTable, Malformed, MemoryFault, Outcome, Policy, REPORT_ENTRY_LEN,
    REPORT_HEADER_LEN, Request, SERIAL_LEN, Status, encode_zone, report_header,
};
use crate::store::Medium;
use crate::volume::{Channel, Finished, Payload, Volume, channel};
use crate::zone::{Intent, ZoneInfo};

use inflight::{InflightError, InflightQueue, Intents, Past};
pub use poll::{PollWindow, Traffic};
use ring::{RingError, Rings};
use stats::{Collector, Mark, QueueStats};

/// Most chains taken from the ring in one pass. Writes of a pass share records, slots and system calls,
/// so the more the better; it bounds how long the first of them waits for the last.
const BATCH: usize = 64;
/// Answers that are enough to end a pass: the guest works on them while the next pass is under way.
/// Fewer cost more notifications, more let the two wait for each other.
const ANSWERS: usize = 16;
/// Zones encoded at once while the zone table is locked.
const REPORT_BATCH: usize = 64;

static MALFORMED: LogLimit = LogLimit::new();
static DOUBTFUL: LogLimit = LogLimit::new();

/// A chain whose operation is under way.
#[derive(Debug)]
struct Flight {
    chain: Chain,
    /// If the front-end keeps what is in flight.
    intents: Option<Intents>,
    /// If the queue counts.
    mark: Option<Mark>,
    /// [`guard::faults`] as long as guest memory is whole.
    faults: u64,
}

impl Payload for Flight {
    fn gather(&self, offset: u64, buf: &mut [u8]) -> Result<(), MemoryFault> {
        self.chain.read_data(offset, buf)?;
        // Zeroes in place of what the guest had there must not become what it has on the disk.
        whole(self.faults)
    }

    fn scatter(&self, offset: u64, data: &[u8]) -> Result<(), MemoryFault> {
        self.chain.write(offset, data)?;
        whole(self.faults)
    }

    fn intend(&self, intent: Intent) {
        if let Some(intents) = &self.intents {
            intents.note(self.chain.head(), intent);
        }
    }

    fn is_disowned(&self) -> bool {
        let head = self.chain.head();
        self.intents
            .as_ref()
            .is_some_and(|intents| intents.is_spoiled(head))
    }

    fn disown(&self) {
        if let Some(intents) = &self.intents {
            intents.spoil(self.chain.head());
        }
    }
}

/// Why a queue cannot go on where it was.
#[derive(Debug, Error)]
pub enum TrackError {
    /// The ring.
    #[error("{0}")]
    Ring(String),
    /// What the front-end keeps.
    #[error("what the front-end keeps of the queue cannot be used: {0}")]
    Inflight(#[from] InflightError),
}

impl From<RingError> for TrackError {
    fn from(error: RingError) -> Self {
        Self::Ring(error.to_string())
    }
}

/// Fails if some of guest memory went away with its file since there were `before` faults, anywhere: it is
/// the same front-end's. To be asked after a copy. That the copy itself met no fault is not enough: what
/// went an earlier one has met, and found zeroes put there.
fn whole(before: u64) -> Result<(), MemoryFault> {
    match guard::faults() == before {
        true => Ok(()),
        false => Err(MemoryFault),
    }
}

/// What a pass did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// The guest wants an interrupt.
    pub notify: bool,
    /// Another pass has something to do at once.
    pub again: bool,
    /// What went to and fro.
    pub traffic: Traffic,
}

/// The worker of one queue.
#[derive(Debug)]
pub struct Worker<M: Medium> {
    index: u16,
    volume: Arc<Volume<M>>,
    serial: [u8; SERIAL_LEN],
    /// Made on the worker's own thread when the queue starts, dropped there when it stops.
    channel: Option<Channel<M, Flight>>,
    spare: Vec<Chain>,
    finished: Vec<Finished<Flight>>,
    /// The ring is broken: nothing is taken from it until the front-end sets it up anew.
    broken: bool,
    /// The guest was asked to kick, as it is when a queue starts.
    listening: bool,
    /// Boxed: most workers count nothing.
    stats: Option<Box<Collector>>,
    /// What the front-end keeps of the queue for a daemon that may die, if it does.
    inflight: Option<InflightQueue>,
    /// Chains that were in flight when the queue was served before, to be begun again.
    begun_before: VecDeque<(u16, Past)>,
    /// The guest may not have been told of what it was answered before.
    untold: bool,
    /// [`guard::faults`] as long as guest memory is whole.
    faults: u64,
}

impl<M: Medium> Worker<M> {
    /// A worker for queue `index`; it touches nothing before its first pass.
    pub fn new(index: u16, volume: Arc<Volume<M>>, serial: [u8; SERIAL_LEN]) -> Self {
        Self {
            index,
            volume,
            serial,
            channel: None,
            spare: Vec::new(),
            finished: Vec::new(),
            broken: false,
            listening: true,
            stats: None,
            inflight: None,
            begun_before: VecDeque::new(),
            untold: false,
            faults: 0,
        }
    }

    /// Counts what the queue does, into `stats`. To be called before the queue starts.
    pub fn count_into(&mut self, stats: Arc<QueueStats>) {
        self.stats = Some(Box::new(Collector::new(stats)));
    }

    /// Opens the channel if the queue has none. Returns the store's event, if it has one, when the
    /// channel is new. `faults`: what [`guard::faults`] counted when guest memory was whole; as soon as it
    /// counts more, everything fails that takes from or puts into that memory.
    pub fn start(&mut self, depth: u16, faults: u64) -> io::Result<Option<RawFd>> {
        use std::os::fd::AsRawFd;
        if self.channel.is_some() {
            return Ok(None);
        }
        let opened = channel(&self.volume, self.index, depth)?;
        let event = opened.store_event().map(|fd| fd.as_raw_fd());
        self.channel = Some(opened);
        self.faults = faults;
        self.broken = false;
        self.listening = true;
        if let Some(stats) = &mut self.stats {
            stats.start(depth);
        }
        Ok(event)
    }

    /// Goes on where `inflight` says that the queue stands, and keeps it up to date. To be called when
    /// the queue is started, before its first pass; without, the queue goes on where it was told to,
    /// and nothing is known of requests that a daemon before this one had begun.
    ///
    /// # Errors
    /// The ring is not in guest memory, or is larger than what the front-end keeps of it. The queue is
    /// not to be served.
    pub fn track(
        &mut self,
        mut inflight: InflightQueue,
        queue: &mut Queue,
        memory: &GuestMemoryMmap,
    ) -> Result<(), TrackError> {
        let rings = Rings::find(queue, memory)?;
        let (available, used) = rings.indices()?;
        let resume = inflight.resume(queue.size(), available, used)?;
        if !Mutant::TrustBase.is_on() {
            queue.set_next_avail(resume.next_available);
        }
        queue.set_next_used(used);
        if !resume.heads.is_empty() {
            info!(
                "queue {}: goes on with {} requests that were in flight",
                self.index,
                resume.heads.len()
            );
        }
        self.begun_before = resume.heads.into();
        self.untold = true;
        self.inflight = Some(inflight);
        Ok(())
    }

    /// Whether nothing is taken from the ring any more, for what the guest did to it.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Whether nothing has gone through a ring yet, as far as its indices tell.
    pub fn is_fresh(&self, queue: &Queue, memory: &GuestMemoryMmap) -> bool {
        let used = Rings::find(queue, memory).and_then(|rings| Ok(rings.indices()?.1));
        queue.next_avail() == 0 && used.is_ok_and(|used| used == 0)
    }

    /// Whether the queue is started.
    pub fn is_started(&self) -> bool {
        self.channel.is_some()
    }

    /// One pass: answers what ended and, if `policy` is given, takes what arrived.
    pub fn service(
        &mut self,
        queue: &mut Queue,
        memory: &Arc<GuestMemoryMmap>,
        policy: Option<&Policy>,
    ) -> Pass {
        if !self.is_started() {
            return Pass::default();
        }
        let Some(mut rings) = self.find_rings(queue, memory) else {
            return Pass::default();
        };
        let (available, used) = (queue.next_avail(), queue.next_used());
        self.answer(&mut rings);
        let mut taken = Taken::default();
        let table = DescriptorTable {
            address: GuestAddress(queue.desc_table()),
            size: queue.size(),
        };
        if let Some(policy) = policy.filter(|_| !self.broken) {
            taken = self.take(&mut rings, table, memory, policy);
            // With more to come of what ended, the guest first gets what there is.
            if !self.has_more() {
                self.answer(&mut rings);
            }
        }
        let notify = self.publish(&mut rings) | std::mem::take(&mut self.untold);
        rings.leave(queue);
        if let Some(stats) = &mut self.stats {
            let counters = self.channel.as_ref().map(Channel::counters);
            stats.end_pass(notify, counters.unwrap_or_default());
        }
        // What filled the room may be over already, without an event to come.
        let room = self.channel.as_ref().is_some_and(Channel::has_room);
        Pass {
            notify,
            again: taken.more || (taken.no_room && room) || self.has_more(),
            traffic: Traffic {
                taken: queue.next_avail().wrapping_sub(available).into(),
                answered: queue.next_used().wrapping_sub(used).into(),
                more: taken.more,
                waits: self.channel.as_ref().is_some_and(Channel::waits),
            },
        }
    }

    fn has_more(&self) -> bool {
        self.channel.as_ref().is_some_and(Channel::has_more)
    }

    /// What looks whether ring or store have something for the next pass. It takes nothing and needs no
    /// lock of the queue, which may change meanwhile.
    pub fn watch<'m>(
        &mut self,
        queue: &Queue,
        memory: &'m GuestMemoryMmap,
    ) -> impl FnMut(&mut Self) -> bool + use<'m, M> {
        // What lies in a ring from which nothing can be taken is no work.
        let mut rings = self.takes().then(|| Rings::find(queue, memory));
        move |worker| {
            let ring = rings.as_mut().is_some_and(|rings| match rings {
                Ok(rings) => rings.look().unwrap_or(true),
                // The next pass says so.
                Err(_) => true,
            });
            ring || worker.channel.as_mut().is_some_and(Channel::is_ready)
        }
    }

    /// Asks the guest to kick when it has something. `true` if it has already: then another pass is
    /// due, and no kick may come.
    pub fn rest(&mut self, queue: &mut Queue, memory: &Arc<GuestMemoryMmap>) -> bool {
        if let Some(channel) = &self.channel {
            channel.rest();
        }
        let Some(mut rings) = self.find_rings(queue, memory) else {
            return false;
        };
        self.listening = true;
        match rings.listen() {
            Ok(more) => more && self.takes(),
            Err(e) => {
                self.break_ring(&e);
                false
            }
        }
    }

    /// Whether a pass would take a chain that lies in the ring.
    fn takes(&self) -> bool {
        !self.broken && self.channel.as_ref().is_some_and(Channel::has_room)
    }

    /// Whatever other threads left for this queue wakes it no more until there is something new.
    pub fn clear_wake_up(&self) {
        self.volume.clear_mailbox_event(self.index);
    }

    fn find_rings<'m>(&mut self, queue: &Queue, memory: &'m GuestMemoryMmap) -> Option<Rings<'m>> {
        match Rings::find(queue, memory) {
            Ok(rings) => Some(rings),
            Err(e) => {
                self.break_ring(&e);
                // What was begun ends all the same, unheard.
                self.drop_finished();
                None
            }
        }
    }

    /// Lets everything in flight end, answers it, and closes the channel. `false` if that took
    /// longer than `patience`; the channel then closes all the same.
    pub fn drain(
        &mut self,
        queue: &mut Queue,
        memory: &Arc<GuestMemoryMmap>,
        patience: Duration,
    ) -> bool {
        let deadline = Instant::now() + patience;
        while let Some(channel) = &self.channel
            && !channel.is_idle()
            && Instant::now() < deadline
        {
            self.service(queue, memory, None);
            if let Some(channel) = &mut self.channel {
                // They stay in flight, for who serves the queue next.
                if channel.leave_waiting() {
                    break;
                }
                channel.wait(Duration::from_millis(1));
            }
        }
        self.service(queue, memory, None);
        // Whoever serves the ring next may wait for a kick before it looks.
        self.rest(queue, memory);
        let idle = self.channel.as_ref().is_none_or(Channel::is_idle);
        self.channel = None;
        self.inflight = None;
        self.begun_before.clear();
        idle
    }

    /// Answers every operation that ended.
    fn answer(&mut self, rings: &mut Rings<'_>) {
        let Some(channel) = &mut self.channel else {
            return;
        };
        let mut finished = std::mem::take(&mut self.finished);
        channel.poll(&mut finished);
        for Finished { payload, outcome } in finished.drain(..) {
            self.reply(rings, payload, outcome);
        }
        self.finished = finished;
    }

    fn drop_finished(&mut self) {
        while let Some(channel) = &mut self.channel {
            channel.poll(&mut self.finished);
            self.finished.clear();
            if !channel.has_more() {
                return;
            }
        }
    }

    fn reply(&mut self, rings: &mut Rings<'_>, flight: Flight, outcome: Outcome) {
        let Flight {
            mut chain, mark, ..
        } = flight;
        if let (Some(mark), Some(stats)) = (mark, &mut self.stats) {
            stats.ended(mark, outcome);
        }
        // Memory that went away takes the answer with it; the chain is handed back all the same.
        let written = chain.answer(outcome).unwrap_or(0);
        mutant::pass(Point::Answered);
        self.give_back(rings, chain.head(), written);
        chain.release();
        self.spare.push(chain);
    }

    fn give_back(&mut self, rings: &mut Rings<'_>, head: u16, len: u32) {
        if let Some(inflight) = &mut self.inflight {
            inflight.give_back(head);
        }
        if let Err(e) = rings.give_back(head, len) {
            self.break_ring(&e);
        }
    }

    /// `true` if the guest wants to be told.
    fn publish(&mut self, rings: &mut Rings<'_>) -> bool {
        let notify = match rings.publish() {
            Ok(notify) => notify,
            Err(e) => {
                self.break_ring(&e);
                return true;
            }
        };
        if let Some(inflight) = &mut self.inflight {
            mutant::pass(Point::Published);
            inflight.published(rings.used_index());
            mutant::pass(Point::Cleared);
        }
        notify
    }

    fn break_ring(&mut self, why: &RingError) {
        if !self.broken {
            error!("queue {}: {why}; the queue is stopped", self.index);
        }
        self.broken = true;
    }

    /// Takes up to a batch of chains and starts their operations.
    fn take(
        &mut self,
        rings: &mut Rings<'_>,
        table: DescriptorTable,
        memory: &Arc<GuestMemoryMmap>,
        policy: &Policy,
    ) -> Taken {
        let mut taken = Taken::default();
        if self.listening && rings.hush().is_ok() {
            self.listening = false;
        }
        for _ in 0..BATCH {
            if !self.channel.as_ref().is_some_and(Channel::has_room) {
                // What is in flight wakes the worker, which then comes back to the ring.
                taken.no_room = true;
                return taken;
            }
            let past = self.begun_before.pop_front();
            let head = match past {
                Some((head, _)) => head,
                None => match self.next(rings) {
                    Ok(Some(head)) => head,
                    Ok(None) => return taken,
                    Err(e) => {
                        self.break_ring(&e);
                        return taken;
                    }
                },
            };
            let at = self.stats.as_mut().map(|stats| stats.take());
            let mut chain = self.spare.pop().unwrap_or_default();
            match chain.collect(memory, table, head) {
                Ok(()) => {
                    if let Some((command, flight)) = self.prepare(rings, policy, chain, at) {
                        match past {
                            None => self.start_operation(command, flight),
                            Some((_, past)) => self.start_again(rings, command, flight, past),
                        }
                    }
                }
                Err(malformed) => {
                    self.refuse(rings, &chain, malformed);
                    self.spare.push(chain);
                }
            }
            if self.broken {
                return taken;
            }
            if self
                .channel
                .as_ref()
                .is_some_and(|channel| channel.finished() >= ANSWERS)
            {
                break;
            }
        }
        taken.more = true;
        taken
    }

    /// The head of the next chain in the ring.
    fn next(&mut self, rings: &mut Rings<'_>) -> Result<Option<u16>, RingError> {
        let head = rings.next()?;
        if let (Some(head), Some(inflight)) = (head, &mut self.inflight) {
            inflight.take(head);
        }
        Ok(head)
    }

    fn refuse(&mut self, rings: &mut Rings<'_>, chain: &Chain, malformed: Malformed) {
        if let Some(more) = MALFORMED.allow() {
            warn!(
                "queue {}: refused a request of the guest: {malformed} ({more} more like it)",
                self.index
            );
        }
        if let Some(stats) = &mut self.stats {
            stats.malformed();
        }
        self.give_back(rings, chain.head(), 0);
    }

    /// What a chain asks for, unless that can be answered from tables; then it is. `at`: when it was
    /// taken, if that is counted.
    fn prepare(
        &mut self,
        rings: &mut Rings<'_>,
        policy: &Policy,
        chain: Chain,
        at: Option<stats::Taken>,
    ) -> Option<(Command, Flight)> {
        let Request { command, chain } = Request::parse(chain, policy);
        let mark = at.map(|at| Mark::new(at, command.as_ref()));
        let flight = Flight {
            chain,
            intents: self.inflight.as_ref().map(InflightQueue::intents),
            mark,
            faults: self.faults,
        };
        let outcome = match command {
            Err(status) => Outcome::Done(status, 0),
            // What it asks for may have been read from zeroes.
            Ok(_) if whole(self.faults).is_err() => Outcome::Done(Status::IoError, 0),
            Ok(Command::GetId) => self.get_id(&flight.chain),
            Ok(Command::Report(first)) => self.report(&flight.chain, first),
            Ok(command) => return Some((command, flight)),
        };
        self.reply(rings, flight, outcome);
        None
    }

    fn start_operation(&mut self, command: Command, flight: Flight) {
        if let Some(channel) = &mut self.channel {
            channel.start(command, flight);
        }
    }

    /// Starts an operation that was begun before.
    fn start_again(&mut self, rings: &mut Rings<'_>, command: Command, flight: Flight, past: Past) {
        let intent = match past {
            Past::Untouched => None,
            Past::Intended(intent) => Some(intent),
            // It may have been done, and nobody knows.
            Past::Doubtful => {
                if let Some(more) = DOUBTFUL.allow() {
                    warn!(
                        "queue {}: a request that was in flight is answered with an error: what is noted \
                         of it is not to be trusted, or not any more ({more} more like it)",
                        self.index
                    );
                }
                return self.reply(rings, flight, Outcome::Done(Status::IoError, 0));
            }
        };
        if let Some(channel) = &mut self.channel {
            channel.start_again(command, flight, intent);
        }
    }

    fn get_id(&self, chain: &Chain) -> Outcome {
        let room = usize::try_from(chain.data_in_len()).unwrap_or(usize::MAX);
        let id = self.serial.get(..room).unwrap_or(&self.serial);
        done(chain.write(0, id), id.len())
    }

    /// Reports as many zones as the buffer holds; one that holds the header alone gets none, which
    /// Linux asks for when memory is short.
    fn report(&self, chain: &Chain, first: ZoneIndex) -> Outcome {
        let room = usize::try_from(chain.data_in_len()).unwrap_or(usize::MAX);
        let Some(room) = room.checked_sub(REPORT_HEADER_LEN) else {
            return Outcome::Done(Status::IoError, 0);
        };
        let left = (self.volume.geometry().zones() - first.0) as usize;
        let count = left.min(room / REPORT_ENTRY_LEN);
        match self.write_report(chain, first, count) {
            Ok(()) => done(Ok(()), REPORT_HEADER_LEN + count * REPORT_ENTRY_LEN),
            Err(fault) => done(Err(fault), 0),
        }
    }

    fn write_report(
        &self,
        chain: &Chain,
        first: ZoneIndex,
        count: usize,
    ) -> Result<(), MemoryFault> {
        chain.write(0, &report_header(count as u64))?;
        let mut entries = [[0; REPORT_ENTRY_LEN]; REPORT_BATCH];
        let (mut zone, mut left) = (first, count);
        let mut offset = REPORT_HEADER_LEN;
        while left > 0 {
            let batch = left.min(REPORT_BATCH);
            self.volume.report(zone, batch, |at, info: ZoneInfo| {
                if let Some(entry) = entries.get_mut(at) {
                    *entry = encode_zone(&info);
                }
            });
            let bytes = entries.get(..batch).unwrap_or_default().as_flattened();
            chain.write(offset as u64, bytes)?;
            offset += bytes.len();
            left -= batch;
            zone = ZoneIndex(
                zone.0
                    .saturating_add(u32::try_from(batch).unwrap_or(u32::MAX)),
            );
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Taken {
    /// The ring may hold more.
    more: bool,
    /// It does, perhaps, and the channel has no room.
    no_room: bool,
}

fn done(written: Result<(), MemoryFault>, len: usize) -> Outcome {
    match written {
        Ok(()) => Outcome::Done(Status::Ok, len as u64),
        Err(MemoryFault) => Outcome::Done(Status::IoError, 0),
    }
}
