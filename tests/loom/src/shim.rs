//! What the sources use besides atomics, made of loom's parts.

use std::cell::RefCell;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

pub(crate) const EFD_CLOEXEC: i32 = 1;
pub(crate) const EFD_NONBLOCK: i32 = 2;

/// A lock that cannot be poisoned.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

/// Taken out while its owner waits.
pub(crate) struct MutexGuard<'a, T>(Option<loom::sync::MutexGuard<'a, T>>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard(Some(self.0.lock().expect("no test panics with it")))
    }

    /// No time passes here.
    pub(crate) fn try_lock_for(&self, _patience: Duration) -> Option<MutexGuard<'_, T>> {
        Some(self.lock())
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("not waiting")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect("not waiting")
    }
}

#[derive(Debug)]
pub(crate) struct Condvar(loom::sync::Condvar);

pub(crate) struct InTime;

impl InTime {
    pub(crate) fn timed_out(&self) -> bool {
        false
    }
}

impl Condvar {
    pub(crate) fn new() -> Self {
        Self(loom::sync::Condvar::new())
    }

    /// No time passes here: who waits for what does not come waits for ever, and loom says so.
    pub(crate) fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, _patience: Duration) -> InTime {
        let inner = guard.0.take().expect("not waiting");
        guard.0 = Some(self.0.wait(inner).expect("no test panics with it"));
        InTime
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }
}

/// What is ready in an epoll, and who waits for it.
#[derive(Debug)]
pub(crate) struct Signal {
    pub(crate) ready: loom::sync::Mutex<Vec<bool>>,
    pub(crate) changed: loom::sync::Condvar,
}

#[derive(Debug, Default)]
struct Counter {
    count: u64,
    /// Which place of which epoll it makes ready.
    watcher: Option<(Arc<Signal>, usize)>,
}

/// An eventfd's inside.
#[derive(Debug)]
struct Inside {
    counter: loom::sync::Mutex<Counter>,
    readable: loom::sync::Condvar,
}

impl Inside {
    fn write(&self, value: u64) {
        let mut counter = self.counter.lock().expect("a counter");
        counter.count += value;
        self.readable.notify_all();
        if let Some((signal, at)) = &counter.watcher {
            signal.ready.lock().expect("an epoll")[*at] = true;
            signal.changed.notify_all();
        }
    }

    fn read(&self) -> u64 {
        let mut counter = self.counter.lock().expect("a counter");
        if let Some((signal, at)) = &counter.watcher {
            signal.ready.lock().expect("an epoll")[*at] = false;
        }
        std::mem::take(&mut counter.count)
    }
}

thread_local! {
    /// The events of the case that runs; a descriptor is a place in here.
    static EVENTS: RefCell<Vec<Option<Arc<Inside>>>> = const { RefCell::new(Vec::new()) };
}

/// An eventfd.
#[derive(Debug)]
pub(crate) struct EventFd {
    inside: Arc<Inside>,
    number: RawFd,
}

impl EventFd {
    pub(crate) fn new(flags: i32) -> io::Result<Self> {
        assert_eq!(flags, EFD_CLOEXEC | EFD_NONBLOCK);
        Ok(Self::of(Arc::new(Inside {
            counter: loom::sync::Mutex::new(Counter::default()),
            readable: loom::sync::Condvar::new(),
        })))
    }

    fn of(inside: Arc<Inside>) -> Self {
        let number = EVENTS.with_borrow_mut(|events| {
            events.push(Some(Arc::clone(&inside)));
            i32::try_from(events.len() - 1).expect("few events")
        });
        Self { inside, number }
    }

    pub(crate) fn write(&self, value: u64) -> io::Result<()> {
        self.inside.write(value);
        Ok(())
    }

    pub(crate) fn read(&self) -> io::Result<u64> {
        match self.inside.read() {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            value => Ok(value),
        }
    }
}

impl EventFd {
    /// Another descriptor of the same event.
    pub(crate) fn again(&self) -> Self {
        Self::of(Arc::clone(&self.inside))
    }
}

impl Drop for EventFd {
    fn drop(&mut self) {
        // A case that failed is not cleaned up after: loom would fail once more.
        if std::thread::panicking() {
            return;
        }
        ignore(self.number);
        let at = usize::try_from(self.number).expect("an event");
        // Dropped where nothing is borrowed: loom has its own business with it.
        let inside = EVENTS.with_borrow_mut(|events| events[at].take());
        drop(inside);
    }
}

impl AsRawFd for EventFd {
    fn as_raw_fd(&self) -> RawFd {
        self.number
    }
}

fn inside_of(event: RawFd) -> Arc<Inside> {
    let at = usize::try_from(event).expect("an event");
    let inside = EVENTS.with_borrow(|events| events[at].clone());
    inside.expect("an event that is open")
}

/// Has an event make a new place of an epoll ready. `None`: it does so for an epoll already.
pub(crate) fn listen(event: RawFd, signal: &Arc<Signal>) -> Option<usize> {
    let inside = inside_of(event);
    let mut counter = inside.counter.lock().expect("a counter");
    if counter.watcher.is_some() {
        return None;
    }
    let mut ready = signal.ready.lock().expect("an epoll");
    ready.push(counter.count > 0);
    counter.watcher = Some((Arc::clone(signal), ready.len() - 1));
    Some(ready.len() - 1)
}

/// The end of [`listen`].
pub(crate) fn ignore(event: RawFd) {
    if std::thread::panicking() {
        return;
    }
    let inside = inside_of(event);
    let mut counter = inside.counter.lock().expect("a counter");
    if let Some((signal, at)) = counter.watcher.take() {
        signal.ready.lock().expect("an epoll")[at] = false;
    }
}

/// Sleeps until the event is readable.
pub(crate) fn wait_for(event: RawFd) {
    let inside = inside_of(event);
    let mut counter = inside.counter.lock().expect("a counter");
    while counter.count == 0 {
        counter = inside.readable.wait(counter).expect("a counter");
    }
}

/// Whether the event is readable.
pub(crate) fn is_raised(event: RawFd) -> bool {
    inside_of(event).counter.lock().expect("a counter").count != 0
}
