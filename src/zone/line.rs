//! The line of writes in flight in one zone: in order of their places, released from its head.

use std::collections::VecDeque;

use crate::geometry::{Blocks, ZoneIndex};

use super::ZoneError;

/// Who is to be told: an operation of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    /// Index of the queue.
    pub queue: u16,
    /// Which of the channels that this queue had one after another.
    pub life: u32,
    /// Operation of that channel, in its own numbering.
    pub op: u32,
}

/// What an operation of a queue waited for has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Released {
    /// The write is over and counts (or does not).
    Write(Ticket, Result<(), ZoneError>),
    /// This zone is free again: begin once more, then say so by [`super::Table::retried`].
    Retry(Ticket, ZoneIndex),
    /// The sync that the operation waited for is over; `false`: it failed.
    Synced(Ticket, bool),
}

impl Released {
    /// Whose it is.
    pub const fn ticket(&self) -> Ticket {
        match self {
            Self::Write(ticket, _) | Self::Retry(ticket, _) | Self::Synced(ticket, _) => *ticket,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Flying,
    Done,
    Failed,
}

#[derive(Debug)]
struct Entry {
    end: Blocks,
    ticket: Ticket,
    progress: Progress,
}

/// The writes of a zone that were granted and not yet released, oldest first.
///
/// Every entry is numbered; the number of the head is `first`, so that a grant finds its entry
/// without a search.
#[derive(Debug, Default)]
pub(super) struct Line {
    entries: VecDeque<Entry>,
    first: u64,
    flying: usize,
    failed: bool,
    parked: Vec<Ticket>,
    /// Unparked, and not begun again yet: they come before whoever comes now.
    retrying: Vec<Ticket>,
}

impl Line {
    /// No write is in it.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether `ticket` would overtake somebody who waits, or was told to try again before it.
    pub(super) fn would_overtake(&self, ticket: Ticket) -> bool {
        let waiting = !self.parked.is_empty() || !self.retrying.is_empty();
        waiting && !self.retrying.contains(&ticket)
    }

    /// A write of it failed: it takes no more until it has drained.
    pub(super) fn has_failed(&self) -> bool {
        self.failed
    }

    /// Appends a write that ends at `end`; returns its number.
    pub(super) fn join(&mut self, end: Blocks, ticket: Ticket) -> u64 {
        let number = self.first + self.entries.len() as u64;
        self.entries.push_back(Entry {
            end,
            ticket,
            progress: Progress::Flying,
        });
        self.flying += 1;
        number
    }

    /// Notes how write `number` ended. A number that is not in the line is ignored: a grant is
    /// consumed by its completion, so there is none.
    pub(super) fn mark(&mut self, number: u64, ok: bool) {
        let position = number
            .checked_sub(self.first)
            .and_then(|p| usize::try_from(p).ok());
        let Some(entry) = position.and_then(|p| self.entries.get_mut(p)) else {
            return;
        };
        if entry.progress != Progress::Flying {
            return;
        }
        self.flying -= 1;
        entry.progress = if ok { Progress::Done } else { Progress::Failed };
        self.failed |= !ok;
    }

    /// Takes the finished head off, if the head is finished and good: where it ends, and whose it
    /// was.
    pub(super) fn pop_done(&mut self) -> Option<(Blocks, Ticket)> {
        if self.entries.front()?.progress != Progress::Done {
            return None;
        }
        let entry = self.entries.pop_front()?;
        self.first += 1;
        Some((entry.end, entry.ticket))
    }

    /// Once a failed write is at the head and nothing flies any more, empties the line: all who
    /// were in it have failed.
    pub(super) fn pop_failed(&mut self, released: &mut Vec<Released>) -> bool {
        let at_head = self
            .entries
            .front()
            .is_some_and(|entry| entry.progress == Progress::Failed);
        if !at_head || self.flying != 0 {
            return false;
        }
        self.first += self.entries.len() as u64;
        released.extend(
            self.entries
                .drain(..)
                .map(|entry| Released::Write(entry.ticket, Err(ZoneError::Failed))),
        );
        self.failed = false;
        true
    }

    /// Lets an operation wait until the line has drained.
    pub(super) fn park(&mut self, ticket: Ticket) {
        self.parked.push(ticket);
    }

    /// Frees everyone who waits, unless those who were freed before have not begun again yet.
    pub(super) fn unpark(&mut self, zone: ZoneIndex, released: &mut Vec<Released>) {
        if self.retrying.is_empty() {
            let freed = self.parked.iter();
            released.extend(freed.map(|&ticket| Released::Retry(ticket, zone)));
            std::mem::swap(&mut self.parked, &mut self.retrying);
        }
    }

    /// Nobody of channel `life` waits any more.
    pub(super) fn forget_life(&mut self, life: u32) {
        self.parked.retain(|ticket| ticket.life != life);
        self.retrying.retain(|ticket| ticket.life != life);
    }

    /// `ticket` has begun again, whatever came of it.
    pub(super) fn retried(&mut self, ticket: Ticket) {
        self.retrying.retain(|&waiting| waiting != ticket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket(op: u32) -> Ticket {
        Ticket {
            queue: 0,
            life: 0,
            op,
        }
    }

    #[test]
    fn only_a_finished_prefix_leaves_the_line() {
        let mut line = Line::default();
        let numbers: Vec<u64> = (1..=3).map(|i| line.join(Blocks(i), ticket(1))).collect();
        line.mark(numbers[1], true);
        assert_eq!(line.pop_done(), None);
        line.mark(numbers[0], true);
        assert_eq!(line.pop_done(), Some((Blocks(1), ticket(1))));
        assert_eq!(line.pop_done(), Some((Blocks(2), ticket(1))));
        assert_eq!(line.pop_done(), None);
        assert_eq!(line.join(Blocks(4), ticket(1)), 3);
    }

    #[test]
    fn a_failure_takes_everything_behind_it_and_waits_for_what_flies() {
        let mut line = Line::default();
        let numbers: Vec<u64> = (0..4).map(|i| line.join(Blocks(1), ticket(i))).collect();
        line.mark(numbers[1], false);
        line.mark(numbers[2], true);
        line.mark(numbers[0], true);
        assert!(line.pop_done().is_some() && line.pop_done().is_none());
        let mut released = Vec::new();
        assert!(!line.pop_failed(&mut released), "write 3 still flies");
        line.mark(numbers[3], true);
        assert!(line.pop_failed(&mut released));
        let failed = |op| Released::Write(ticket(op), Err(ZoneError::Failed));
        assert_eq!(released, [failed(1), failed(2), failed(3)]);
        assert!(line.is_empty() && !line.has_failed());
    }

    #[test]
    fn a_write_ends_once() {
        let mut line = Line::default();
        let number = line.join(Blocks(1), ticket(0));
        line.mark(number, true);
        line.mark(number, false);
        assert!(!line.has_failed() && line.pop_done().is_some());
        line.mark(number, false);
        assert!(!line.has_failed());
    }
}
