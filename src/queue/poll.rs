//! How long a worker watches a ring that ran dry before it sleeps.
//!
//! Going to sleep and being woken costs a guest and its device tens of microseconds each time; a guest
//! that answers at once makes that the greater part of its latency. So a worker watches for a moment,
//! and it learns whether that pays when it is woken: as the halt polling of KVM does, it then judges by
//! how long there was nothing to do. Less than it may watch at most, and the next watch is longer, until
//! one lasts long enough; more, and it is shorter, down to nothing. A disk that nobody uses costs nothing.

use std::time::{Duration, Instant};

/// What a watch that has shrunk to nothing begins with again.
const FIRST: Duration = Duration::from_micros(4);
/// How much shorter the next watch is after a long wait. More than it grows after a short one: a request that
/// comes alone makes a long wait, for it, and a short one, for its medium, and is to close the window.
const SHRINK: u32 = 4;
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
        let Some(slept) = self.slept.take() else {
            return;
        };
        if self.now + slept.elapsed() < self.most {
            return self.found();
        }
        self.now /= SHRINK;
        if self.now < FIRST {
            self.now = Duration::ZERO;
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
                return false;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_micros(64);

    /// Nothing comes for a while, and then something does.
    fn wait_long(window: &mut PollWindow) {
        window.slept = Instant::now().checked_sub(MOST * 2);
        window.woken();
    }

    #[test]
    fn a_window_that_never_finds_anything_closes() {
        let mut window = PollWindow::new(MOST);
        let fruitless = (0..20).take_while(|_| {
            let mut looks = 0;
            window.watch(|| {
                looks += 1;
                false
            });
            wait_long(&mut window);
            looks > 0
        });
        assert_eq!(fruitless.count(), 3, "64, 16 and 4 microseconds");
    }

    #[test]
    fn a_lone_request_whose_medium_is_slow_keeps_no_window_open() {
        let mut window = PollWindow::new(MOST);
        for _ in 0..8 {
            wait_long(&mut window);
            window.slept = Some(Instant::now());
            window.woken();
        }
        assert!(window.now <= FIRST, "{:?}", window.now);
    }

    #[test]
    fn a_guest_that_comes_back_soon_opens_it_again_and_a_late_one_does_not() {
        let mut window = PollWindow::new(MOST);
        while !window.now.is_zero() {
            wait_long(&mut window);
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
    fn a_guest_slower_than_the_first_watch_is_met_in_the_end() {
        let mut window = PollWindow::new(MOST);
        while !window.now.is_zero() {
            wait_long(&mut window);
        }
        let met = (0..10).any(|_| {
            let begun = Instant::now();
            let met = window.watch(|| begun.elapsed() >= MOST / 4);
            window.sleeps();
            window.woken();
            met
        });
        assert!(met, "{:?}", window.now);
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
