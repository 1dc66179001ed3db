//! Whether anybody knows what was in flight when the daemon before this one was killed.
//!
//! A front-end that keeps it says so ([`super::tracked`]). For one that does not, a ring which was in use
//! holds requests that were done and not answered, and others that were not done; the indices do not
//! tell which, and an append done twice is data that nobody asked for. Only a ring that starts from
//! nothing, as after a reboot of the guest, has no past.

use std::sync::atomic::{AtomicBool, Ordering};

/// What this server knows of requests before its time.
#[derive(Debug)]
pub(super) struct Past {
    /// A daemon was killed, and no front-end has been served from beginning to end since.
    unknown: AtomicBool,
    served: AtomicBool,
    refused: AtomicBool,
}

impl Past {
    /// `killed`: the daemon before this one was.
    pub(super) fn new(killed: bool) -> Self {
        Self {
            unknown: AtomicBool::new(killed),
            served: AtomicBool::new(false),
            refused: AtomicBool::new(false),
        }
    }

    /// Another front-end: what the last one had in flight was brought to an end, if it was served.
    pub(super) fn next_front_end(&self) {
        let served = self.served.swap(false, Ordering::Relaxed);
        let refused = self.refused.swap(false, Ordering::Relaxed);
        if served && !refused {
            self.unknown.store(false, Ordering::Relaxed);
        }
    }

    /// Whether a ring in use may hold requests of which nobody knows.
    pub(super) fn is_unknown(&self) -> bool {
        self.unknown.load(Ordering::Relaxed)
    }

    /// A queue is served.
    pub(super) fn serves(&self) {
        self.served.store(true, Ordering::Relaxed);
    }

    /// A queue is not, for what nobody knows of it.
    pub(super) fn refuses(&self) {
        self.refused.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_unknown_until_a_front_end_was_served_and_none_of_its_queues_refused() {
        let past = Past::new(true);
        past.next_front_end();
        assert!(past.is_unknown(), "nobody was served");
        past.serves();
        past.refuses();
        past.next_front_end();
        assert!(past.is_unknown());
        past.serves();
        assert!(past.is_unknown(), "not before it has left");
        past.next_front_end();
        assert!(!past.is_unknown());
        assert!(!Past::new(false).is_unknown());
    }
}
