//! What the device's threads use besides each other: guest memory, a worker's inside, the kernel's epoll.
//! As little of each as shows who touches what when.

use std::sync::Arc;

/// Memory that a front-end shares. Its bytes may be touched by the device until it was told otherwise; loom
/// finds it if a touch of the device's and one of the front-end's are not one after the other.
pub(crate) struct GuestMemoryMmap {
    bytes: loom::cell::UnsafeCell<u32>,
    pub(crate) ring: Arc<Indices>,
}

/// The indices of both rings: the same whatever the memory is mapped at.
#[derive(Debug, Default)]
pub(crate) struct Indices {
    pub(crate) available: loom::sync::atomic::AtomicU16,
    pub(crate) used: loom::sync::atomic::AtomicU16,
}

// SAFETY: loom finds accesses to the bytes that are not ordered.
unsafe impl Sync for GuestMemoryMmap {}

impl std::fmt::Debug for GuestMemoryMmap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GuestMemoryMmap")
    }
}

impl GuestMemoryMmap {
    pub(crate) fn new() -> Self {
        Self::with(Arc::default())
    }

    pub(crate) fn with(ring: Arc<Indices>) -> Self {
        let bytes = loom::cell::UnsafeCell::new(0);
        Self { bytes, ring }
    }

    pub(crate) fn touch(&self) {
        // SAFETY: that nobody else does is what loom checks.
        self.bytes.with_mut(|bytes| unsafe { *bytes += 1 });
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct GuestAddress(pub(crate) u64);

/// Every method is its own.
pub(crate) trait QueueT {}

#[derive(Debug)]
pub(crate) struct Error;

/// The positions in a ring.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    next_available: u16,
    next_used: u16,
}

impl QueueT for Queue {}

impl Queue {
    pub(crate) fn new(_most: u16) -> Result<Self, Error> {
        Ok(Self::default())
    }

    pub(crate) fn size(&self) -> u16 {
        2
    }

    pub(crate) fn max_size(&self) -> u16 {
        2
    }

    pub(crate) fn try_set_size(&mut self, _size: u16) -> Result<(), Error> {
        Ok(())
    }

    pub(crate) fn next_avail(&self) -> u16 {
        self.next_available
    }

    pub(crate) fn set_next_avail(&mut self, position: u16) {
        self.next_available = position;
    }

    pub(crate) fn set_next_used(&mut self, position: u16) {
        self.next_used = position;
    }

    pub(crate) fn used_idx(
        &self,
        memory: &GuestMemoryMmap,
        order: loom::sync::atomic::Ordering,
    ) -> Result<std::num::Wrapping<u16>, Error> {
        Ok(std::num::Wrapping(memory.ring.used.load(order)))
    }

    pub(crate) fn set_ready(&mut self, _ready: bool) {}

    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }

    pub(crate) fn try_set_desc_table_address(&mut self, _at: GuestAddress) -> Result<(), Error> {
        Ok(())
    }

    pub(crate) fn try_set_avail_ring_address(&mut self, _at: GuestAddress) -> Result<(), Error> {
        Ok(())
    }

    pub(crate) fn try_set_used_ring_address(&mut self, _at: GuestAddress) -> Result<(), Error> {
        Ok(())
    }
}

/// The event that a front-end hands over as a file.
pub(crate) type File = crate::shim::EventFd;

pub(crate) mod epoll {
    use std::io;
    use std::os::fd::RawFd;
    use std::sync::Arc;

    use crate::shim::{Signal, ignore, listen};

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct EventSet(u32);

    impl EventSet {
        pub(crate) const IN: Self = Self(1);
        pub(crate) const EDGE_TRIGGERED: Self = Self(2);
    }

    impl std::ops::BitOr for EventSet {
        type Output = Self;

        fn bitor(self, other: Self) -> Self {
            Self(self.0 | other.0)
        }
    }

    #[derive(Clone, Copy, Debug, Default)]
    pub(crate) struct EpollEvent {
        edge: bool,
        data: u64,
    }

    impl EpollEvent {
        pub(crate) fn new(set: EventSet, data: u64) -> Self {
            let edge = set.0 & EventSet::EDGE_TRIGGERED.0 != 0;
            Self { edge, data }
        }

        pub(crate) fn data(&self) -> u64 {
            self.data
        }
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum ControlOperation {
        Add,
        Delete,
    }

    #[derive(Debug)]
    pub(crate) struct Epoll {
        signal: Arc<Signal>,
        /// What each place reports.
        events: loom::sync::Mutex<Vec<EpollEvent>>,
    }

    impl Epoll {
        pub(crate) fn new() -> io::Result<Self> {
            Ok(Self {
                signal: Arc::new(Signal {
                    ready: loom::sync::Mutex::default(),
                    changed: loom::sync::Condvar::new(),
                }),
                events: loom::sync::Mutex::default(),
            })
        }

        pub(crate) fn ctl(
            &self,
            operation: ControlOperation,
            fd: RawFd,
            event: EpollEvent,
        ) -> io::Result<()> {
            if operation == ControlOperation::Delete {
                ignore(fd);
                return Ok(());
            }
            let mut events = self.events.lock().expect("an epoll");
            let at = listen(fd, &self.signal).ok_or(io::ErrorKind::AlreadyExists)?;
            assert_eq!(at, events.len());
            events.push(event);
            self.signal.changed.notify_all();
            Ok(())
        }

        pub(crate) fn wait(&self, _patience: i32, found: &mut [EpollEvent]) -> io::Result<usize> {
            let mut ready = self.signal.ready.lock().expect("an epoll");
            while !ready.contains(&true) {
                ready = self.signal.changed.wait(ready).expect("an epoll");
            }
            let places: Vec<usize> = (0..ready.len()).filter(|&at| ready[at]).collect();
            drop(ready);
            let events = self.events.lock().expect("an epoll");
            let count = places.len().min(found.len());
            for (found, &at) in found.iter_mut().zip(&places) {
                *found = events[at];
                if events[at].edge {
                    self.signal.ready.lock().expect("an epoll")[at] = false;
                }
            }
            Ok(count)
        }
    }
}

pub(crate) mod thread {
    use std::io;

    pub(crate) struct Builder(loom::thread::Builder);

    #[derive(Debug)]
    pub(crate) struct JoinHandle<T>(loom::thread::JoinHandle<T>);

    impl Builder {
        pub(crate) fn new() -> Self {
            Self(loom::thread::Builder::new())
        }

        pub(crate) fn name(self, name: String) -> Self {
            Self(self.0.name(name))
        }

        pub(crate) fn spawn<T: Send + 'static>(
            self,
            body: impl FnOnce() -> T + Send + 'static,
        ) -> io::Result<JoinHandle<T>> {
            self.0.spawn(body).map(JoinHandle)
        }
    }

    impl<T> JoinHandle<T> {
        /// Whoever joins waits, and no time passes here.
        pub(crate) fn is_finished(&self) -> bool {
            true
        }

        pub(crate) fn join(self) -> std::thread::Result<T> {
            self.0.join()
        }
    }

    pub(crate) fn sleep(_time: std::time::Duration) {
        loom::thread::yield_now();
    }
}

pub(crate) mod limit {
    #[derive(Debug)]
    pub(crate) struct LogLimit;

    impl LogLimit {
        pub(crate) const fn new() -> Self {
            Self
        }

        pub(crate) fn allow(&self) -> Option<u64> {
            None
        }
    }
}

pub(crate) mod guard {
    pub(crate) fn faults() -> u64 {
        0
    }
}

pub(crate) mod store {
    pub(crate) trait Medium: std::fmt::Debug + Send + Sync + 'static {}

    #[derive(Debug)]
    pub(crate) struct Disk;

    impl Medium for Disk {}
}

pub(crate) mod sys {
    use super::File;
    use std::io;

    pub(crate) fn may_be_event(_file: &File) -> io::Result<bool> {
        Ok(true)
    }

    pub(crate) fn raise_event(event: &File) -> io::Result<()> {
        event.write(1)
    }

    pub(crate) fn empty_event(event: &File) {
        let _ = event.read();
    }
}

pub(crate) mod refusal {
    use std::io;

    #[derive(Debug)]
    #[allow(dead_code, reason = "read by whoever looks at a failure")]
    pub(crate) enum Refusal {
        NoSuchQueue { index: u32, queues: usize },
        QueueSize { asked: u32, most: u16 },
        Running(u32),
        Base { index: u32, base: u32 },
        RingAddress(u16, &'static str),
        RingAlignment(u16, &'static str, u64),
        RingMemory(u16),
        MemoryGone(u16),
        Busy(u16),
        Stuck(u16),
        NoKick(u8),
        NotAnEvent,
        Io(io::Error),
    }

    impl From<io::Error> for Refusal {
        fn from(error: io::Error) -> Self {
            Self::Io(error)
        }
    }

    impl std::fmt::Display for Refusal {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "{self:?}")
        }
    }
}

pub(crate) mod memory {
    use super::{GuestAddress, GuestMemoryMmap};
    use std::sync::Arc;

    pub(crate) type Region = GuestMemoryMmap;

    #[derive(Clone, Debug)]
    pub(crate) struct Table(pub(crate) Arc<GuestMemoryMmap>);

    impl Table {
        pub(crate) fn map(&self) -> &Arc<GuestMemoryMmap> {
            &self.0
        }

        pub(crate) fn guest_address(&self, user: u64, _len: u64) -> Option<GuestAddress> {
            Some(GuestAddress(user))
        }

        pub(crate) fn is_whole(&self) -> bool {
            true
        }

        pub(crate) fn without_those_of(self, _other: &Self) -> Vec<Arc<Region>> {
            vec![self.0]
        }
    }
}

pub(crate) mod tracked {
    #[derive(Debug)]
    pub(crate) struct Tracked;

    impl Tracked {
        pub(crate) fn queue(&self, _index: u16) -> Option<()> {
            None
        }
    }
}

pub(crate) mod options {
    use std::time::Duration;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[allow(dead_code, reason = "no daemon before this one was killed")]
    pub(crate) enum WithoutInflight {
        Refuse,
        Resume,
    }

    #[derive(Clone, Copy, Debug)]
    pub(crate) struct Limits {
        pub(crate) queue_size: u16,
    }

    #[derive(Debug)]
    pub(crate) struct DeviceOptions {
        pub(crate) limits: Limits,
        pub(crate) serial: u8,
        pub(crate) poll: Duration,
        pub(crate) stats: Vec<std::sync::Arc<()>>,
        pub(crate) without_inflight: WithoutInflight,
    }
}

#[derive(Debug)]
pub(crate) struct Past;

impl Past {
    pub(crate) fn serves(&self) {}

    pub(crate) fn refuses(&self) {}

    pub(crate) fn is_unknown(&self) -> bool {
        false
    }
}

#[derive(Debug)]
pub(crate) struct Volume<M>(pub(crate) std::marker::PhantomData<M>);

impl<M> Volume<M> {
    pub(crate) fn expects(&self) -> bool {
        false
    }
}

pub(crate) mod queue {
    use std::io;
    use std::marker::PhantomData;
    use std::os::fd::{AsRawFd, RawFd};
    use std::sync::Arc;
    use std::time::Duration;

    use loom::sync::atomic::Ordering;

    use super::{GuestMemoryMmap, Queue, Volume};
    use crate::shim::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

    #[derive(Debug)]
    pub(crate) struct PollWindow;

    impl PollWindow {
        pub(crate) fn new(_most: Duration) -> Self {
            Self
        }

        pub(crate) fn woken(&mut self) {}

        pub(crate) fn saw(&mut self, _traffic: ()) {}

        pub(crate) fn sleeps(&mut self) {}

        pub(crate) fn watch(&mut self, mut look: impl FnMut() -> bool) -> bool {
            look()
        }
    }

    #[derive(Clone, Copy, Debug, Default)]
    pub(crate) struct Pass {
        pub(crate) notify: bool,
        pub(crate) again: bool,
        pub(crate) traffic: (),
    }

    /// Takes one chain a pass and answers it in a later one, in the memory in which it took it.
    #[derive(Debug)]
    pub(crate) struct Worker<M> {
        /// The store's, while the queue is started: raised as long as something is in flight.
        store: Option<EventFd>,
        in_flight: Vec<Arc<GuestMemoryMmap>>,
        _medium: PhantomData<M>,
    }

    impl<M> Worker<M> {
        pub(crate) fn new(_index: u16, _volume: Arc<Volume<M>>, _serial: u8) -> Self {
            Self {
                store: None,
                in_flight: Vec::new(),
                _medium: PhantomData,
            }
        }

        pub(crate) fn count_into(&mut self, _stats: Arc<()>) {}

        pub(crate) fn start(&mut self, _depth: u16, _faults: u64) -> io::Result<Option<RawFd>> {
            assert!(self.store.is_none() && self.in_flight.is_empty());
            let event = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?;
            let fd = event.as_raw_fd();
            self.store = Some(event);
            Ok(Some(fd))
        }

        pub(crate) fn is_started(&self) -> bool {
            self.store.is_some()
        }

        pub(crate) fn is_broken(&self) -> bool {
            false
        }

        pub(crate) fn is_fresh(&self, _queue: &Queue, _memory: &GuestMemoryMmap) -> bool {
            true
        }

        pub(crate) fn track(
            &mut self,
            _part: (),
            _queue: &mut Queue,
            _memory: &GuestMemoryMmap,
        ) -> Result<(), String> {
            Ok(())
        }

        pub(crate) fn clear_wake_up(&self) {}

        pub(crate) fn service(
            &mut self,
            queue: &mut Queue,
            memory: &Arc<GuestMemoryMmap>,
            policy: Option<&()>,
        ) -> Pass {
            let Some(store) = &self.store else {
                return Pass::default();
            };
            memory.touch();
            let ended = self.in_flight.len();
            for of in self.in_flight.drain(..) {
                of.touch();
                queue.next_used += 1;
                memory.ring.used.store(queue.next_used, Ordering::Release);
            }
            if ended > 0 {
                let _ = store.read();
            }
            let mut again = false;
            let available = memory.ring.available.load(Ordering::Acquire);
            if policy.is_some() && available != queue.next_available {
                queue.next_available += 1;
                again = available != queue.next_available;
                self.in_flight.push(Arc::clone(memory));
                store.write(1).expect("an event");
            }
            Pass {
                notify: ended > 0,
                again,
                traffic: (),
            }
        }

        pub(crate) fn watch<'m>(
            &mut self,
            queue: &Queue,
            memory: &'m GuestMemoryMmap,
        ) -> impl FnMut(&mut Self) -> bool + use<'m, M> {
            let next = queue.next_available;
            move |_| {
                memory.touch();
                memory.ring.available.load(Ordering::Acquire) != next
            }
        }

        pub(crate) fn rest(&mut self, queue: &mut Queue, memory: &Arc<GuestMemoryMmap>) -> bool {
            memory.touch();
            memory.ring.available.load(Ordering::Acquire) != queue.next_available
        }

        pub(crate) fn drain(
            &mut self,
            queue: &mut Queue,
            memory: &Arc<GuestMemoryMmap>,
            _patience: Duration,
        ) -> bool {
            self.service(queue, memory, None);
            self.rest(queue, memory);
            self.store = None;
            true
        }
    }
}
