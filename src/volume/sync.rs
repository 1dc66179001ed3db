//! Syncs in rounds: who waits for one joins the next, and all who wait share it.

use std::io;

use crate::mutant::Mutant;
use crate::request::{Outcome, Status};
use crate::store::{Medium, Op as StoreOp, Store, Token};
use crate::zone::{FlushMark, Released, Ticket};

use super::channel::Channel;
use super::op::{Payload, Stage};

/// The token of a channel's one sync in flight. No piece has it.
pub(super) const TOKEN: Token = Token::MAX;

/// A channel's syncs.
///
/// Write order of a round: everything acknowledged before it is made durable by the first sync.
/// Then the records of zones whose durable write pointer moved are written. A cipher without tags
/// knows the end of its data from them alone, so they must be durable too before anyone is told, and
/// a second sync follows if there are any. With tags the data says itself how far it goes.
#[derive(Debug, Default)]
pub(super) struct SyncRound {
    active: Option<Active>,
    /// Operations of this queue that wait for a round, whoever's it is.
    joined: usize,
}

impl SyncRound {
    /// Whether a sync is in flight.
    pub(super) fn is_active(&self) -> bool {
        self.active.is_some()
    }
}

#[derive(Debug)]
struct Active {
    tickets: Vec<Ticket>,
    mark: FlushMark,
    second: bool,
}

impl<M: Medium, P: Payload> Channel<M, P> {
    /// Has operation `id` wait for a round that begins after now; then it ends with `outcome`.
    pub(super) fn wait_for_sync(&mut self, id: u32, outcome: Outcome) {
        self.wait_for_syncs(id, outcome, 1);
    }

    /// The same for `rounds` rounds: the second makes durable what the records said after the first.
    pub(super) fn wait_for_syncs(&mut self, id: u32, outcome: Outcome, rounds: u8) {
        if self.volume.is_read_only() {
            self.end(id, outcome);
            return;
        }
        if Mutant::FlushWithoutSync.is_on() {
            self.end(id, outcome);
            return;
        }
        self.set_stage(id, Stage::Sync(outcome, rounds));
        self.join_sync(id);
    }

    /// Has an operation wait for a round; its stage says what follows.
    pub(super) fn join_sync(&mut self, op: u32) {
        self.round.joined += 1;
        self.volume.join_sync(self.ticket(op));
    }

    /// Starts a round if an operation of this queue waits for one and no other is under way, for
    /// all who wait, of whichever queue. `true` if a sync was submitted.
    pub(super) fn start_sync_round(&mut self) -> bool {
        // Most polls have nothing to sync and leave the shared gate alone.
        if self.round.joined == 0 || self.round.active.is_some() {
            return false;
        }
        let Some(tickets) = self.volume.begin_sync(self.queue) else {
            return false;
        };
        self.submit_sync(tickets, false);
        true
    }

    fn submit_sync(&mut self, tickets: Vec<Ticket>, second: bool) {
        self.round.active = Some(Active {
            tickets,
            mark: self.volume.table.begin_flush(),
            second,
        });
        self.store.submit(StoreOp::Sync, TOKEN);
    }

    /// The sync in flight is over.
    pub(super) fn end_sync(&mut self, result: io::Result<()>) {
        let Some(Active {
            tickets,
            mark,
            second,
        }) = self.round.active.take()
        else {
            return;
        };
        let ok = match result {
            Ok(()) => self.end_good_sync(mark, second),
            Err(e) => {
                self.fail_round(&e);
                Some(false)
            }
        };
        match ok {
            Some(ok) => self.tell_synced(tickets, ok),
            None => self.submit_sync(tickets, true),
        }
    }

    fn fail_round(&mut self, error: &io::Error) {
        self.volume.note_failed_sync(error);
        for zone in self.volume.table.fail_flush() {
            self.publish(zone);
        }
    }

    /// Tells everyone for whom a round was, of this queue and of others.
    fn tell_synced(&mut self, tickets: Vec<Ticket>, ok: bool) {
        self.volume.end_sync();
        for ticket in tickets {
            if ticket == self.ticket(ticket.op) {
                self.synced(ticket.op, ok);
            } else {
                self.volume.post(Released::Synced(ticket, ok));
            }
        }
    }

    /// Gives up a round that does not end: it has failed for all.
    pub(super) fn abandon_sync(&mut self) {
        self.volume.leave_sync(self.life);
        if let Some(active) = self.round.active.take() {
            // If it fails later nobody hears of it, and the kernel does not say it twice.
            self.fail_round(&io::ErrorKind::TimedOut.into());
            self.tell_synced(active.tickets, false);
        }
    }

    /// Writes the records of zones whose durable write pointer moved. `None`: these must be made
    /// durable by a second sync.
    fn end_good_sync(&mut self, mark: FlushMark, second: bool) -> Option<bool> {
        let moved = self.volume.table.end_flush(mark);
        let mut ok = true;
        for &zone in &moved {
            ok &= self.publish(zone);
        }
        let again = ok && !second && !moved.is_empty() && !self.volume.tagged;
        (!again).then_some(ok)
    }

    /// The round that operation `id` waited for is over.
    pub(super) fn synced(&mut self, id: u32, ok: bool) {
        self.round.joined = self.round.joined.saturating_sub(1);
        if Self::is_fence(id) {
            return self.fence_synced(id, ok && !self.volume.has_failed_sync());
        }
        match self.op(id).map(|op| &op.stage) {
            Some(Stage::Sync(outcome, rounds)) => {
                let (outcome, rounds) = (*outcome, *rounds);
                if ok && !self.volume.has_failed_sync() {
                    match rounds {
                        0 | 1 => self.end(id, outcome),
                        _ => self.wait_for_syncs(id, outcome, rounds - 1),
                    }
                } else {
                    self.finish(id, Status::IoError);
                }
            }
            Some(Stage::Reset(_)) => self.continue_reset(id, ok),
            _ => {}
        }
    }
}
