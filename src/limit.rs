//! A bound on log lines that a guest or a medium can cause.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Lines of one kind that may be logged in a [`WINDOW`]: enough to see what happens.
const LINES: u32 = 5;
/// After this long the count starts anew.
const WINDOW: Duration = Duration::from_secs(30);

/// Lets a few lines through in each window and counts the rest.
#[derive(Debug)]
pub struct LogLimit {
    window: Mutex<Option<(Instant, u32)>>,
    suppressed: AtomicU64,
}

impl LogLimit {
    /// A limit with nothing logged yet.
    pub const fn new() -> Self {
        Self {
            window: Mutex::new(None),
            suppressed: AtomicU64::new(0),
        }
    }

    /// Whether to log now: if so, how many lines were held back since the last one.
    pub fn allow(&self) -> Option<u64> {
        self.allow_at(Instant::now())
    }

    fn allow_at(&self, now: Instant) -> Option<u64> {
        let mut window = self.window.lock();
        let (start, lines) = match *window {
            Some((start, lines)) if now.saturating_duration_since(start) < WINDOW => (start, lines),
            _ => (now, 0),
        };
        *window = Some((start, lines.saturating_add(1)));
        if lines < LINES {
            Some(self.suppressed.swap(0, Ordering::Relaxed))
        } else {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
            None
        }
    }
}

impl Default for LogLimit {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_becomes_a_few_lines_and_a_count() {
        let limit = LogLimit::new();
        let start = Instant::now();
        let logged = (0..1000).filter(|_| limit.allow_at(start).is_some());
        assert_eq!(logged.count(), LINES as usize);
        assert_eq!(
            limit.allow_at(start + WINDOW),
            Some(1000 - u64::from(LINES))
        );
    }
}
