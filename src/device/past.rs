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
    /// The server ended under a front-end that can go on with another.
    goes_on: AtomicBool,
}

impl Past {
    /// `killed`: the daemon before this one was.
    pub(super) fn new(killed: bool) -> Self {
        Self {
            unknown: AtomicBool::new(killed),
            served: AtomicBool::new(false),
            refused: AtomicBool::new(false),
            goes_on: AtomicBool::new(false),
        }
    }

    /// The server ends under a front-end; `tracked`: one that keeps what is in flight and will look for the next
    /// server.
    pub(super) fn ends_with_front_end(&self, tracked: bool) {
        let served = self.served.load(Ordering::Relaxed);
        self.goes_on.store(tracked && served, Ordering::Relaxed);
    }

    /// Whether a guest is there that will be served by the next server.
    pub(super) fn goes_on(&self) -> bool {
        self.goes_on.load(Ordering::Relaxed)
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

    #[test]
    fn a_guest_goes_on_that_was_served_by_a_front_end_which_keeps_what_is_in_flight() {
        let past = Past::new(false);
        past.ends_with_front_end(true);
        assert!(!past.goes_on(), "it was not served");
        past.serves();
        past.ends_with_front_end(false);
        assert!(!past.goes_on());
        past.ends_with_front_end(true);
        past.next_front_end();
        assert!(past.goes_on());
    }
}
