//! How long a worker watches a ring that ran dry before it sleeps.
//!
//! Going to sleep and being woken costs a guest and its device tens of microseconds each time; a guest
//! that answers at once makes that the greater part of its latency. So a worker watches for a moment,
//! and it learns whether that pays: a watch that finds nothing halves the next one, down to nothing
//! for a guest that comes rarely, and a guest that comes back soon after the worker went to sleep makes
//! it grow again. A disk that nobody uses costs nothing.
//!
//! A guest is watched for as long as it has something to bring: it has not come back yet for all that it was
//! answered. Once it has, and the store is busy with it, what is watched is a disk, whose time is another and
//! is learnt apart from the guest's: a disk too slow to be worth a watch must not teach the worker to sleep while the
//! guest is about to answer. (A burst would then cost the wake-ups of both, one after the other, with the disk idle.)
//!
//! That a watch is halved also if the guest comes right after it is deliberate, other than in the halt
//! polling of KVM: where worker and guest share a processor it is the watch that keeps the guest from
//! coming, and a window that grew then would only make both wait.

use std::time::{Duration, Instant};

/// What a watch that has shrunk to nothing begins with again.
const FIRST: Duration = Duration::from_micros(4);
/// Looks at the ring between two looks at the clock, which cost about as much as one.
const LOOKS: u32 = 8;

/// What went to and fro in a pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Requests that the guest brought.
    pub taken: usize,
    /// Requests that it got back.
    pub answered: usize,
    /// It may have brought more than was taken.
    pub more: bool,
    /// The store is busy.
    pub waits: bool,
}

/// The present length of a watch, of the guest and of the store, and what it learns from.
#[derive(Debug)]
pub struct PollWindow {
    most: Duration,
    guest: Duration,
    store: Duration,
    /// Requests for which the guest may come back.
    owed: usize,
    waits: bool,
    slept: Option<Instant>,
}

impl PollWindow {
    /// A window of at most `most`, which it begins with.
    pub const fn new(most: Duration) -> Self {
        Self {
            most,
            guest: most,
            store: most,
            owed: 0,
            waits: false,
            slept: None,
        }
    }

    /// After a pass.
    pub fn saw(&mut self, traffic: Traffic) {
        self.owed = (self.owed + traffic.answered).saturating_sub(traffic.taken);
        self.waits = traffic.waits;
        if traffic.more {
            grow(&mut self.guest, self.most);
        }
    }

    /// Of whom is watched now.
    fn now(&mut self) -> &mut Duration {
        match self.waits && self.owed == 0 {
            true => &mut self.store,
            false => &mut self.guest,
        }
    }

    /// The worker was woken: had it watched for as long as it may, it would not have slept if this is
    /// within that time.
    pub fn woken(&mut self) {
        if let Some(slept) = self.slept.take()
            && slept.elapsed() < self.most
        {
            self.found();
        }
    }

    /// There was something to do without a wake-up.
    pub fn found(&mut self) {
        let most = self.most;
        grow(self.now(), most);
    }

    /// The worker goes to sleep.
    pub fn sleeps(&mut self) {
        if !self.most.is_zero() {
            self.slept = Some(Instant::now());
        }
    }

    /// Calls `look` until it finds something (`true`) or the time is over.
    pub fn watch(&mut self, mut look: impl FnMut() -> bool) -> bool {
        let length = *self.now();
        if length.is_zero() {
            return false;
        }
        let start = Instant::now();
        loop {
            for _ in 0..LOOKS {
                if look() {
                    self.found();
                    return true;
                }
                std::hint::spin_loop();
            }
            if start.elapsed() >= length {
                let half = length / 2;
                *self.now() = if half < FIRST { Duration::ZERO } else { half };
                // Not all of it: the guest may have become one of fewer requests at once.
                self.owed = 0;
                return false;
            }
        }
    }
}

fn grow(length: &mut Duration, most: Duration) {
    *length = (*length * 2).clamp(FIRST.min(most), most);
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_micros(64);

    #[test]
    fn a_window_that_never_finds_anything_closes() {
        let mut window = PollWindow::new(MOST);
        let fruitless = (0..20).take_while(|_| {
            let mut looks = 0;
            window.watch(|| {
                looks += 1;
                false
            });
            looks > 0
        });
        assert_eq!(fruitless.count(), 5, "64, 32, 16, 8 and 4 microseconds");
    }

    #[test]
    fn a_guest_that_comes_back_soon_opens_it_again_and_a_late_one_does_not() {
        let mut window = PollWindow::new(MOST);
        while !window.guest.is_zero() {
            window.watch(|| false);
        }
        window.sleeps();
        std::thread::sleep(MOST * 2);
        window.woken();
        assert!(window.guest.is_zero());
        window.slept = Some(Instant::now() + Duration::from_secs(1));
        window.woken();
        assert_eq!(window.guest, FIRST);
        (0..10).for_each(|_| window.found());
        assert_eq!(window.guest, MOST);
    }

    #[test]
    fn a_store_that_is_slow_does_not_close_the_window_for_the_guest() {
        let mut window = PollWindow::new(MOST);
        let traffic = |answered, taken| Traffic {
            taken,
            answered,
            more: false,
            waits: true,
        };
        for _ in 0..20 {
            // Half of what it was given back has come again, then the rest; then the store is waited for.
            window.saw(traffic(32, 0));
            window.saw(traffic(0, 16));
            assert!(window.watch(|| true));
            window.saw(traffic(0, 16));
            window.watch(|| false);
        }
        assert_eq!((window.guest, window.store), (MOST, Duration::ZERO));
        // One that brings fewer than it got is watched once, and then it is the store's turn.
        window.saw(traffic(32, 8));
        assert!(!window.watch(|| false));
        assert_eq!((window.guest, window.store), (MOST / 2, Duration::ZERO));
        assert!(!window.watch(|| panic!("looked")));
        // A store without anything to do is not waited for.
        window.saw(Traffic::default());
        assert!(window.watch(|| true));
    }

    #[test]
    fn without_a_window_nothing_is_looked_at() {
        let mut window = PollWindow::new(Duration::ZERO);
        window.sleeps();
        window.woken();
        window.found();
        assert!(!window.watch(|| panic!("looked")));
    }
}
