//! How long a worker watches a ring that ran dry before it sleeps.
//!
//! Going to sleep and being woken costs a guest and its device tens of microseconds each time; a guest
//! that answers at once makes that the greater part of its latency. So a worker watches for a moment,
//! and it learns whether that pays: a watch that finds nothing halves the next one, down to nothing
//! for a guest that comes rarely, and a guest that comes back soon after the worker went to sleep makes
//! it grow again. A disk that nobody uses costs nothing.
//!
//! That a watch is halved also if the guest comes right after it is deliberate, other than in the halt
//! polling of KVM: where worker and guest share a processor it is the watch that keeps the guest from
//! coming, and a window that grew then would only make both wait.

use std::time::{Duration, Instant};

/// What a watch that has shrunk to nothing begins with again.
const FIRST: Duration = Duration::from_micros(4);
/// Looks at the ring between two looks at the clock, which cost about as much as one.
const LOOKS: u32 = 8;

/// The present length of a watch, and what it learns from.
#[derive(Debug)]
pub struct PollWindow {
    most: Duration,
    now: Duration,
    slept: Option<Instant>,
}

impl PollWindow {
    /// A window of at most `most`, which it begins with.
    pub const fn new(most: Duration) -> Self {
        Self {
            most,
            now: most,
            slept: None,
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
        if self.now < self.most {
            self.now = (self.now * 2).clamp(FIRST.min(self.most), self.most);
        }
    }

    /// The worker goes to sleep.
    pub fn sleeps(&mut self) {
        if !self.most.is_zero() {
            self.slept = Some(Instant::now());
        }
    }

    /// Calls `look` until it finds something (`true`) or the time is over.
    pub fn watch(&mut self, mut look: impl FnMut() -> bool) -> bool {
        if self.now.is_zero() {
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
            if start.elapsed() >= self.now {
                self.now /= 2;
                if self.now < FIRST {
                    self.now = Duration::ZERO;
                }
                return false;
            }
        }
    }
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
        while !window.now.is_zero() {
            window.watch(|| false);
        }
        window.sleeps();
        std::thread::sleep(MOST * 2);
        window.woken();
        assert!(window.now.is_zero());
        window.slept = Some(Instant::now() + Duration::from_secs(1));
        window.woken();
        assert_eq!(window.now, FIRST);
        (0..10).for_each(|_| window.found());
        assert_eq!(window.now, MOST);
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
