//! One virtqueue's worker: chains out of the ring, operations into the disk, answers back.
//!
//! A worker belongs to one thread and owns everything its queue needs. Each pass of
//! [`Worker::service`] answers what ended and takes what arrived; the caller signals the guest
//! once a pass and comes again as long as there is more. What is in the ring beyond the room of the
//! disk's channel stays there.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use log::{error, warn};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::geometry::ZoneIndex;
use crate::limit::LogLimit;
use crate::request::{
    Chain, Command, DescriptorTable, Malformed, MemoryFault, Outcome, Policy, REPORT_ENTRY_LEN,
    REPORT_HEADER_LEN, Request, SERIAL_LEN, Status, encode_zone, report_header,
};
use crate::store::Medium;
use crate::volume::{Channel, Finished, Payload, Volume, channel};
use crate::zone::ZoneInfo;

/// Most chains taken from the ring in one pass: answers go out between passes.
const BATCH: usize = 64;
/// Zones encoded at once while the zone table is locked.
const REPORT_BATCH: usize = 64;

static MALFORMED: LogLimit = LogLimit::new();

impl Payload for Chain {
    fn gather(&self, offset: u64, buf: &mut [u8]) -> Result<(), MemoryFault> {
        self.read_data(offset, buf)
    }

    fn scatter(&self, offset: u64, data: &[u8]) -> Result<(), MemoryFault> {
        self.write(offset, data)
    }
}

/// What a pass did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// The guest wants an interrupt.
    pub notify: bool,
    /// Another pass has something to do at once.
    pub again: bool,
}

/// The worker of one queue.
#[derive(Debug)]
pub struct Worker<M: Medium> {
    index: u16,
    volume: Arc<Volume<M>>,
    serial: [u8; SERIAL_LEN],
    /// Made on the worker's own thread when the queue starts, dropped there when it stops.
    channel: Option<Channel<M, Chain>>,
    spare: Vec<Chain>,
    finished: Vec<Finished<Chain>>,
    /// The ring is broken: nothing is taken from it until the front-end sets it up anew.
    broken: bool,
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
        }
    }

    /// Opens the channel if the queue has none. Returns the store's event, if it has one, when the
    /// channel is new.
    pub fn start(&mut self, depth: u16) -> io::Result<Option<RawFd>> {
        use std::os::fd::AsRawFd;
        if self.channel.is_some() {
            return Ok(None);
        }
        let opened = channel(&self.volume, self.index, depth)?;
        let event = opened.store_event().map(|fd| fd.as_raw_fd());
        self.channel = Some(opened);
        self.broken = false;
        Ok(event)
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
        self.volume.clear_mailbox_event(self.index);
        let mut answered = self.answer(queue, memory);
        let mut again = false;
        if let Some(policy) = policy.filter(|_| !self.broken) {
            let taken = self.take(queue, memory, policy);
            answered |= self.answer(queue, memory);
            answered |= taken.answered;
            // What filled the room may be over already, without an event to come.
            let room = self.channel.as_ref().is_some_and(Channel::has_room);
            again = taken.more || (taken.no_room && room);
        }
        Pass {
            notify: answered && queue.needs_notification(&**memory).unwrap_or(true),
            again,
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
            self.answer(queue, memory);
            if let Some(channel) = &mut self.channel {
                channel.wait(Duration::from_millis(1));
            }
        }
        self.answer(queue, memory);
        let idle = self.channel.as_ref().is_none_or(Channel::is_idle);
        self.channel = None;
        idle
    }

    /// Answers every operation that ended. `true` if there was one.
    fn answer(&mut self, queue: &mut Queue, memory: &Arc<GuestMemoryMmap>) -> bool {
        let Some(channel) = &mut self.channel else {
            return false;
        };
        let mut finished = std::mem::take(&mut self.finished);
        channel.poll(&mut finished);
        let any = !finished.is_empty();
        for Finished { payload, outcome } in finished.drain(..) {
            self.reply(queue, memory, payload, outcome);
        }
        self.finished = finished;
        any
    }

    fn reply(
        &mut self,
        queue: &mut Queue,
        memory: &Arc<GuestMemoryMmap>,
        mut chain: Chain,
        outcome: Outcome,
    ) {
        // Memory that went away takes the answer with it; the chain is handed back all the same.
        let written = chain.answer(outcome).unwrap_or(0);
        self.give_back(queue, memory, chain.head(), written);
        chain.release();
        self.spare.push(chain);
    }

    fn give_back(&mut self, queue: &mut Queue, memory: &Arc<GuestMemoryMmap>, head: u16, len: u32) {
        if let Err(e) = queue.add_used(&**memory, head, len) {
            self.break_ring(&format_args!("cannot return a chain: {e}"));
        }
    }

    fn break_ring(&mut self, why: &dyn std::fmt::Display) {
        if !self.broken {
            error!("queue {}: {why}; the queue is stopped", self.index);
        }
        self.broken = true;
    }

    /// Takes up to a batch of chains and starts their operations.
    fn take(&mut self, queue: &mut Queue, memory: &Arc<GuestMemoryMmap>, policy: &Policy) -> Taken {
        let mut taken = Taken::default();
        if queue.disable_notification(&**memory).is_err() {
            self.break_ring(&"the rings are not in guest memory");
            return taken;
        }
        for _ in 0..BATCH {
            if !self.channel.as_ref().is_some_and(Channel::has_room) {
                // What is in flight wakes the worker, which then comes back to the ring.
                taken.no_room = true;
                return taken;
            }
            let mut chain = self.spare.pop().unwrap_or_default();
            match next_chain(queue, memory, &mut chain) {
                Ok(Some(Ok(()))) => taken.answered |= self.begin(queue, memory, policy, chain),
                Ok(Some(Err(malformed))) => {
                    self.refuse(queue, memory, &chain, malformed);
                    self.spare.push(chain);
                    taken.answered = true;
                }
                Ok(None) => {
                    self.spare.push(chain);
                    taken.more = queue.enable_notification(&**memory).unwrap_or(false);
                    return taken;
                }
                Err(e) => {
                    self.break_ring(&e);
                    return taken;
                }
            }
            if self.broken {
                return taken;
            }
        }
        taken.more = true;
        taken
    }

    fn refuse(
        &mut self,
        queue: &mut Queue,
        memory: &Arc<GuestMemoryMmap>,
        chain: &Chain,
        malformed: Malformed,
    ) {
        if let Some(more) = MALFORMED.allow() {
            warn!(
                "queue {}: refused a request of the guest: {malformed} ({more} more like it)",
                self.index
            );
        }
        self.give_back(queue, memory, chain.head(), 0);
    }

    /// Starts the operation of a chain, or answers it from tables (`true`).
    fn begin(
        &mut self,
        queue: &mut Queue,
        memory: &Arc<GuestMemoryMmap>,
        policy: &Policy,
        chain: Chain,
    ) -> bool {
        let Request { command, chain } = Request::parse(chain, policy);
        let outcome = match command {
            Err(status) => Outcome::Done(status, 0),
            Ok(Command::GetId) => self.get_id(&chain),
            Ok(Command::Report(first)) => self.report(&chain, first),
            Ok(command) => {
                if let Some(channel) = &mut self.channel {
                    channel.start(command, chain);
                }
                return false;
            }
        };
        self.reply(queue, memory, chain, outcome);
        true
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
    /// Something was answered at once.
    answered: bool,
}

fn done(written: Result<(), MemoryFault>, len: usize) -> Outcome {
    match written {
        Ok(()) => Outcome::Done(Status::Ok, len as u64),
        Err(MemoryFault) => Outcome::Done(Status::IoError, 0),
    }
}

/// Takes the next chain out of the ring: `None` if there is none, an error if the ring is broken.
fn next_chain(
    queue: &mut Queue,
    memory: &Arc<GuestMemoryMmap>,
    chain: &mut Chain,
) -> Result<Option<Result<(), Malformed>>, virtio_queue::Error> {
    let table = DescriptorTable {
        address: GuestAddress(queue.desc_table()),
        size: queue.size(),
    };
    let next = queue.iter(&**memory)?.next();
    Ok(next.map(|available| chain.collect(memory, table, available.head_index())))
}
