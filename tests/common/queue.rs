//! A request queue: the ring, its eventfds and the requests in flight. Each queue may live on its own thread.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::memory::{GuestRam, Span};
use super::request::{Completion, Layout, POISON, Request};
use super::ring::{DESC_INDIRECT, DESC_NEXT, DESC_SIZE, DESC_WRITE, Descriptor, Ring};
use super::wire::PATIENCE;

/// Why nothing came back from a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueError {
    /// No used element within the time given.
    TimedOut,
    /// The used ring advanced, but the call that was asked for never came.
    LostCall,
    /// A used element names a head that is not in flight.
    NotInFlight(u32),
    /// The used index ran ahead by more than is in flight.
    UsedIndex(u16),
    /// The device says it wrote more than it was given.
    UsedLength(u32),
    /// The device raised the queue's error event.
    Stopped,
    /// The ring has too few free descriptors.
    Full,
}

impl fmt::Display for QueueError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

#[derive(Debug)]
struct InFlight {
    ticket: u64,
    descriptors: Vec<u16>,
    owned: Vec<Span>,
    writable: Vec<Span>,
    space: usize,
}

/// A descriptor of a hand-made chain; `next` counts within the chain unless it is absolute.
#[derive(Clone, Copy, Debug)]
pub struct RawDescriptor {
    /// Guest-physical address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// `DESC_*`, exactly as they shall stand.
    pub flags: u16,
    /// What `next` shall hold.
    pub next: Next,
}

/// The `next` field of a hand-made descriptor.
#[derive(Clone, Copy, Debug)]
pub enum Next {
    /// The n-th descriptor of the same chain.
    Chain(usize),
    /// This very number.
    Index(u16),
}

/// How long after a used element its call may come, in milliseconds.
const CALL_GRACE_MS: i32 = 1000;

const CALL: u64 = 0;
const ERR: u64 = 1;

/// One virtqueue of the pretended guest.
#[derive(Debug)]
pub struct Queue {
    /// Position among the device's queues.
    pub index: u16,
    /// The ring, for tests that write it by hand.
    pub ring: Ring,
    /// Guest memory.
    pub ram: Arc<GuestRam>,
    kick: EventFd,
    call: EventFd,
    err: EventFd,
    epoll: Epoll,
    flights: HashMap<u16, InFlight>,
    early: VecDeque<Completion>,
    tickets: u64,
}

fn eventfd() -> EventFd {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).expect("eventfd")
}

impl Queue {
    /// A queue with an empty ring.
    pub fn new(index: u16, ram: Arc<GuestRam>, size: u16, event_idx: bool) -> Self {
        let (call, err) = (eventfd(), eventfd());
        let epoll = Epoll::new().expect("epoll");
        for (fd, tag) in [(&call, CALL), (&err, ERR)] {
            epoll
                .ctl(
                    ControlOperation::Add,
                    fd.as_raw_fd(),
                    EpollEvent::new(EventSet::IN, tag),
                )
                .expect("epoll add");
        }
        Self {
            index,
            ring: Ring::new(Arc::clone(&ram), size, event_idx),
            ram,
            kick: eventfd(),
            call,
            err,
            epoll,
            flights: HashMap::new(),
            early: VecDeque::new(),
            tickets: 0,
        }
    }

    /// Kick, call and error event, in the order in which they are handed over.
    pub fn events(&self) -> [&EventFd; 3] {
        [&self.kick, &self.call, &self.err]
    }

    /// Requests that have not come back.
    pub fn in_flight(&self) -> usize {
        self.flights.len()
    }

    /// Where the device may write for a request in flight.
    ///
    /// # Panics
    /// If it is not in flight.
    pub fn writable_spans(&self, ticket: u64) -> Vec<Span> {
        let flight = self.flights.values().find(|f| f.ticket == ticket);
        flight.expect("in flight").writable.clone()
    }

    /// The ticket of the newest request; tickets count up by one.
    pub fn last_ticket(&self) -> u64 {
        self.tickets
    }

    /// Offers a request without telling the device. Returns its ticket.
    pub fn submit(&mut self, request: &Request, layout: &Layout) -> Result<u64, QueueError> {
        let writable_len = request.space + request.tail;
        let readable = layout.readable.lengths(request.readable.len(), 16);
        let writable = layout.writable.lengths(writable_len, request.space);
        let count = readable.len() + writable.len();
        let slots = if layout.indirect { 1 } else { count };
        let descriptors = self.ring.take(slots).ok_or(QueueError::Full)?;
        let mut owned = Vec::with_capacity(count + 1);
        let mut chain = Vec::with_capacity(count);
        let mut at = 0;
        for len in &readable {
            let span = self.ram.alloc(*len as u64, 512, layout.skew);
            self.ram.write(span.start, &request.readable[at..at + len]);
            at += len;
            owned.push(span);
            chain.push((span, 0));
        }
        for len in &writable {
            let span = self.ram.alloc(*len as u64, 512, layout.skew);
            self.ram.write(span.start, &vec![POISON; *len]);
            owned.push(span);
            chain.push((span, DESC_WRITE));
        }
        let writable_spans = owned[readable.len()..].to_vec();
        if layout.indirect {
            owned.push(self.write_indirect(descriptors[0], &chain));
        } else {
            self.write_chain(&descriptors, &chain);
        }
        let head = descriptors[0];
        let ticket = self.fly(head, descriptors, owned, writable_spans, request.space);
        Ok(ticket)
    }

    fn write_chain(&self, descriptors: &[u16], chain: &[(Span, u16)]) {
        for (i, (span, flags)) in chain.iter().enumerate() {
            let next = descriptors.get(i + 1);
            self.ring.write_descriptor(
                descriptors[i],
                Descriptor {
                    addr: span.start,
                    len: u32::try_from(span.len).expect("buffer length"),
                    flags: flags | if next.is_some() { DESC_NEXT } else { 0 },
                    next: next.copied().unwrap_or(0),
                },
            );
        }
    }

    fn write_indirect(&self, head: u16, chain: &[(Span, u16)]) -> Span {
        let bytes = chain.len() as u64 * DESC_SIZE;
        let table = self.ram.alloc(bytes, 16, 0);
        for (i, (span, flags)) in chain.iter().enumerate() {
            let more = i + 1 < chain.len();
            let descriptor = Descriptor {
                addr: span.start,
                len: u32::try_from(span.len).expect("buffer length"),
                flags: flags | if more { DESC_NEXT } else { 0 },
                next: if more {
                    u16::try_from(i + 1).expect("table size")
                } else {
                    0
                },
            };
            self.ram
                .write(table.start + i as u64 * DESC_SIZE, &descriptor.to_bytes());
        }
        self.ring.write_descriptor(
            head,
            Descriptor {
                addr: table.start,
                len: u32::try_from(bytes).expect("table size"),
                flags: DESC_INDIRECT,
                next: 0,
            },
        );
        table
    }

    fn fly(
        &mut self,
        head: u16,
        descriptors: Vec<u16>,
        owned: Vec<Span>,
        writable: Vec<Span>,
        space: usize,
    ) -> u64 {
        self.tickets += 1;
        let ticket = self.tickets;
        self.flights.insert(
            head,
            InFlight {
                ticket,
                descriptors,
                owned,
                writable,
                space,
            },
        );
        self.ring.offer(head);
        ticket
    }

    /// Offers a chain exactly as written. The buffers stay the caller's; the completion carries no bytes.
    pub fn submit_raw(&mut self, chain: &[RawDescriptor]) -> Result<u64, QueueError> {
        let descriptors = self.ring.take(chain.len()).ok_or(QueueError::Full)?;
        for (raw, index) in chain.iter().zip(&descriptors) {
            self.ring.write_descriptor(
                *index,
                Descriptor {
                    addr: raw.addr,
                    len: raw.len,
                    flags: raw.flags,
                    next: match raw.next {
                        Next::Chain(n) => descriptors[n],
                        Next::Index(n) => n,
                    },
                },
            );
        }
        let head = descriptors[0];
        Ok(self.fly(head, descriptors, Vec::new(), Vec::new(), 0))
    }

    /// Tells the device of new chains, if it wants to know.
    pub fn kick(&mut self) {
        if self.ring.take_kick() {
            self.force_kick();
        }
    }

    /// Tells the device without asking whether it wants to know.
    pub fn force_kick(&self) {
        self.kick.write(1).expect("kick");
    }

    /// Takes a completion that is already there, without waiting.
    pub fn poll(&mut self) -> Result<Option<Completion>, QueueError> {
        if let Some(done) = self.early.pop_front() {
            return Ok(Some(done));
        }
        self.take_used()
    }

    fn take_used(&mut self) -> Result<Option<Completion>, QueueError> {
        let ready = self.ring.ready();
        if usize::from(ready) > self.flights.len() {
            return Err(QueueError::UsedIndex(ready));
        }
        let Some(used) = self.ring.pop() else {
            return Ok(None);
        };
        let flight = u16::try_from(used.id)
            .ok()
            .and_then(|head| self.flights.remove(&head))
            .ok_or(QueueError::NotInFlight(used.id))?;
        let mut writable = Vec::new();
        for span in &flight.writable {
            writable.extend_from_slice(&self.ram.read(*span));
        }
        for span in flight.owned {
            self.ram.free(span);
        }
        self.ring.give_back(&flight.descriptors);
        if !writable.is_empty() && used.len as usize > writable.len() {
            return Err(QueueError::UsedLength(used.len));
        }
        Ok(Some(Completion {
            ticket: flight.ticket,
            used_len: used.len,
            writable,
            space: flight.space,
        }))
    }

    /// Waits for the next completion by the call event alone, as a guest does.
    pub fn reap(&mut self, timeout: Duration) -> Result<Completion, QueueError> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(done) = self.poll()? {
                return Ok(done);
            }
            self.ring.arm();
            if self.ring.ready() > 0 {
                continue;
            }
            self.wait_call(deadline)?;
        }
    }

    fn wait_call(&mut self, deadline: Instant) -> Result<(), QueueError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let millis = i32::try_from(left.as_millis()).unwrap_or(i32::MAX).max(1);
        let mut events = [EpollEvent::default(); 2];
        let n = match self.epoll.wait(millis, &mut events) {
            Ok(n) => n,
            Err(err) if err.kind() == std::io::ErrorKind::Interrupted => return Ok(()),
            Err(err) => panic!("epoll: {err}"),
        };
        for event in &events[..n] {
            if event.data() == ERR {
                return Err(QueueError::Stopped);
            }
            let _count = self.call.read();
        }
        match n {
            // The device publishes first and calls then: only a call that stays away is lost.
            0 if self.ring.ready() > 0 => match self.epoll.wait(CALL_GRACE_MS, &mut events) {
                Ok(0) => Err(QueueError::LostCall),
                _ => Ok(()),
            },
            0 if left.is_zero() || Instant::now() >= deadline => Err(QueueError::TimedOut),
            _ => Ok(()),
        }
    }

    /// Waits for one ticket; completions of others are kept for later.
    pub fn wait(&mut self, ticket: u64, timeout: Duration) -> Result<Completion, QueueError> {
        if let Some(at) = self.early.iter().position(|done| done.ticket == ticket) {
            return Ok(self.early.remove(at).expect("just found"));
        }
        let mut others = VecDeque::new();
        let deadline = Instant::now() + timeout;
        let found = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.reap(left) {
                Ok(done) if done.ticket == ticket => break Ok(done),
                Ok(done) => others.push_back(done),
                Err(err) => break Err(err),
            }
        };
        self.early.append(&mut others);
        found
    }

    /// Submits, kicks and waits.
    pub fn try_call(
        &mut self,
        request: &Request,
        layout: &Layout,
    ) -> Result<Completion, QueueError> {
        let ticket = self.submit(request, layout)?;
        self.kick();
        self.wait(ticket, PATIENCE)
    }

    /// Forgets requests in flight and starts over with an empty ring.
    pub fn reset(&mut self) {
        for (_, flight) in self.flights.drain() {
            for span in flight.owned {
                self.ram.free(span);
            }
        }
        self.early.clear();
        self.ring.reset();
        for event in [&self.kick, &self.call, &self.err] {
            let _count = event.read();
        }
    }
}
