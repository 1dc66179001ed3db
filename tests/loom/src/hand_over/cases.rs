// A front-end that does one thing while the worker is anywhere.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use loom::sync::atomic::Ordering;

use super::handler::Handler;
use super::memory::Table;
use super::ring::Addresses;
use super::state::Device;
use super::worker::QueueThread;
use crate::shim::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd, wait_for};
use crate::world::store::Disk;
use crate::world::thread::JoinHandle;
use crate::world::{GuestMemoryMmap, Indices};

struct FrontEnd {
    handler: Handler<Disk>,
    worker: JoinHandle<()>,
    ring: Arc<Indices>,
    kick: EventFd,
    call: EventFd,
}

fn event() -> EventFd {
    EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).expect("an event")
}

impl FrontEnd {
    fn new() -> Self {
        let device = Arc::new(Device::with_one_queue());
        let queue = Arc::clone(&device.queues()[0]);
        let worker = QueueThread::spawn(&device, &queue, || true).expect("a thread");
        let ring: Arc<Indices> = Arc::default();
        let memory = Table(Arc::new(GuestMemoryMmap::with(Arc::clone(&ring))));
        let handler = Handler {
            device,
            memory,
            tracked: None,
        };
        Self {
            handler,
            worker,
            ring,
            kick: event(),
            call: event(),
        }
    }

    /// Starts the queue from position `base`.
    fn start(&mut self, base: u16) {
        self.kick = event();
        self.call = event();
        let queue = Arc::clone(&self.handler.device.queues()[0]);
        queue.set_call(Some(self.call.again()));
        let addresses = Addresses {
            descriptors: 0,
            available: 0,
            used: 0,
        };
        {
            let mut ring = queue.reach().expect("the ring");
            ring.set_base(base.into()).expect("a position");
            ring.enabled = true;
        }
        self.handler.set_addresses(0, addresses).expect("addresses");
        let kick = self.kick.again();
        self.handler.set_kick(0, Some(kick)).expect("a kick");
    }

    /// The guest offers a chain.
    fn offer(&self) {
        self.ring.available.fetch_add(1, Ordering::AcqRel);
        self.kick.write(1).expect("an event");
    }

    /// The guest waits for the answer to `count` chains.
    fn await_answers(&self, count: u16) {
        while self.ring.used.load(Ordering::Acquire) < count {
            wait_for(self.call.as_raw_fd());
            let _ = self.call.read();
        }
    }

    /// The memory that is shared now.
    fn memory(&self) -> Arc<GuestMemoryMmap> {
        Arc::clone(self.handler.memory.map())
    }

    fn end(self) {
        let queue = Arc::clone(&self.handler.device.queues()[0]);
        queue.end();
        assert!(queue.await_end(&self.worker));
        self.worker.join().expect("the worker");
    }
}

/// GET_VRING_BASE while a request may be offered, taken, in flight or answered.
pub(crate) fn get_vring_base() {
    let mut front_end = FrontEnd::new();
    front_end.start(0);
    front_end.offer();
    let base = front_end.handler.stop(0).expect("it comes to rest");
    front_end.memory().touch();
    let used = front_end.ring.used.load(Ordering::Acquire);
    assert_eq!(used, base, "what was taken is answered");
    front_end.end();
}

/// The same, and the queue goes on from there in other memory.
pub(crate) fn stop_and_start() {
    let mut front_end = FrontEnd::new();
    front_end.start(0);
    front_end.offer();
    let base = front_end.handler.stop(0).expect("it comes to rest");
    front_end.memory().touch();
    front_end.handler.memory = Table(Arc::new(GuestMemoryMmap::with(Arc::clone(&front_end.ring))));
    front_end.start(base);
    front_end.await_answers(1);
    let base = front_end.handler.stop(0).expect("it comes to rest");
    front_end.memory().touch();
    assert_eq!(base, 1);
    front_end.end();
}

/// SET_MEM_TABLE in the same situations; the queue goes on in the new memory.
pub(crate) fn set_mem_table() {
    let mut front_end = FrontEnd::new();
    front_end.start(0);
    front_end.offer();
    let before = front_end.memory();
    let next = Table(Arc::new(GuestMemoryMmap::with(Arc::clone(&front_end.ring))));
    let changed = front_end.handler.change_memory(|_| Ok(next));
    changed.expect("it comes to rest");
    before.touch();
    front_end.await_answers(1);
    front_end.handler.stop(0).expect("it comes to rest");
    front_end.memory().touch();
    front_end.end();
}

/// The front-end hangs up.
pub(crate) fn leave() {
    let mut front_end = FrontEnd::new();
    front_end.start(0);
    front_end.offer();
    assert!(front_end.handler.device.stop_all());
    front_end.memory().touch();
    front_end.end();
}
