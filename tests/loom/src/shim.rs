//! What the sources use besides atomics, made of loom's parts.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use loom::sync::{Arc, Condvar, MutexGuard};

pub(crate) const EFD_CLOEXEC: i32 = 1;
pub(crate) const EFD_NONBLOCK: i32 = 2;

/// A lock that cannot be poisoned.
#[derive(Debug)]
pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().expect("no test panics with it")
    }
}

/// A counter, and who waits for it.
type Counter = Arc<(loom::sync::Mutex<u64>, Condvar)>;

thread_local! {
    /// The events of the case that runs; a descriptor is a place in here.
    static EVENTS: RefCell<Vec<Option<Counter>>> = const { RefCell::new(Vec::new()) };
}

/// An eventfd.
#[derive(Debug)]
pub(crate) struct EventFd {
    counter: Counter,
    number: RawFd,
}

impl EventFd {
    pub(crate) fn new(flags: i32) -> io::Result<Self> {
        assert_eq!(flags, EFD_CLOEXEC | EFD_NONBLOCK);
        let counter = Arc::new((loom::sync::Mutex::new(0), Condvar::new()));
        let number = EVENTS.with_borrow_mut(|events| {
            events.push(Some(Arc::clone(&counter)));
            i32::try_from(events.len() - 1).expect("few events")
        });
        Ok(Self { counter, number })
    }

    pub(crate) fn write(&self, value: u64) -> io::Result<()> {
        *self.counter.0.lock().expect("a counter") += value;
        self.counter.1.notify_all();
        Ok(())
    }

    pub(crate) fn read(&self) -> io::Result<u64> {
        let value = std::mem::take(&mut *self.counter.0.lock().expect("a counter"));
        if value == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(value)
    }
}

impl Drop for EventFd {
    fn drop(&mut self) {
        let at = usize::try_from(self.number).expect("an event");
        // Dropped where nothing is borrowed: loom has its own business with it.
        let counter = EVENTS.with_borrow_mut(|events| events[at].take());
        drop(counter);
    }
}

impl AsRawFd for EventFd {
    fn as_raw_fd(&self) -> RawFd {
        self.number
    }
}

fn counter_of(event: RawFd) -> Counter {
    let at = usize::try_from(event).expect("an event");
    let counter = EVENTS.with_borrow(|events| events[at].clone());
    counter.expect("an event that is open")
}

/// Sleeps until the event is readable.
pub(crate) fn wait_for(event: RawFd) {
    let counter = counter_of(event);
    let mut value = counter.0.lock().expect("a counter");
    while *value == 0 {
        value = counter.1.wait(value).expect("a counter");
    }
}

/// Whether the event is readable.
pub(crate) fn is_raised(event: RawFd) -> bool {
    *counter_of(event).0.lock().expect("a counter") != 0
}
