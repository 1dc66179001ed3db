//! Syncs in rounds: who waits for one joins the next, and all who wait share it.

use std::io;

use crate::request::{Outcome, Status};
use crate::store::{Medium, Op as StoreOp, Store, Token};
use crate::zone::FlushMark;

use super::channel::Channel;
use super::op::{Payload, Stage};

/// The token of a channel's one sync in flight. No piece has it.
pub(super) const TOKEN: Token = Token::MAX;

/// A channel's syncs.
///
/// Write order of a round: everything acknowledged before it is made durable by the first sync.
/// Then the records of zones whose durable write pointer moved are written; they must be durable
/// too before anyone is told, since a cipher without tags knows the end of its data from them
/// alone, so a second sync follows if there are any.
#[derive(Debug, Default)]
pub(super) struct SyncRound {
    /// Operations that wait for the next round.
    waiting: Vec<u32>,
    active: Option<Active>,
}

impl SyncRound {
    /// Whether a sync is in flight.
    pub(super) fn is_active(&self) -> bool {
        self.active.is_some()
    }
}

#[derive(Debug)]
struct Active {
    ops: Vec<u32>,
    mark: FlushMark,
    second: bool,
}

impl<M: Medium, P: Payload> Channel<M, P> {
    /// Has operation `id` wait for a round that begins after now; then it ends with `outcome`.
    pub(super) fn wait_for_sync(&mut self, id: u32, outcome: Outcome) {
        if self.volume.is_read_only() {
            self.end(id, outcome);
            return;
        }
        self.set_stage(id, Stage::Sync(outcome));
        self.round.waiting.push(id);
    }

    /// Has a reset wait for a round; its stage says what follows.
    pub(super) fn join_sync(&mut self, id: u32) {
        self.round.waiting.push(id);
    }

    /// Starts a round if somebody waits and no other is under way, of this queue or of another.
    /// `true` if a sync was submitted.
    pub(super) fn start_sync_round(&mut self) -> bool {
        if self.round.active.is_some()
            || self.round.waiting.is_empty()
            || !self.volume.acquire_sync(self.queue)
        {
            return false;
        }
        let ops = std::mem::take(&mut self.round.waiting);
        self.submit_sync(ops, false);
        true
    }

    fn submit_sync(&mut self, ops: Vec<u32>, second: bool) {
        self.round.active = Some(Active {
            ops,
            mark: self.volume.table.begin_flush(),
            second,
        });
        self.store.submit(StoreOp::Sync, TOKEN);
    }

    /// The sync in flight is over.
    pub(super) fn end_sync(&mut self, result: io::Result<()>) {
        let Some(Active { ops, mark, second }) = self.round.active.take() else {
            return;
        };
        let ok = match result {
            Ok(()) => self.end_good_sync(mark, &ops, second),
            Err(e) => {
                self.volume.note_failed_sync(&e);
                for zone in self.volume.table.fail_flush() {
                    self.volume.publish(zone, self.queue, &mut self.released);
                }
                Some(false)
            }
        };
        let Some(ok) = ok else {
            return self.submit_sync(ops, true);
        };
        self.volume.release_sync();
        for id in ops {
            self.synced(id, ok);
        }
    }

    /// Writes the records of zones whose durable write pointer moved. `None`: these must be made
    /// durable by a second sync.
    fn end_good_sync(&mut self, mark: FlushMark, ops: &[u32], second: bool) -> Option<bool> {
        let moved = self.volume.table.end_flush(mark);
        let mut ok = true;
        for &zone in &moved {
            ok &= self.volume.publish(zone, self.queue, &mut self.released);
        }
        let again = ok && !second && !moved.is_empty() && !ops.is_empty();
        (!again).then_some(ok)
    }

    fn synced(&mut self, id: u32, ok: bool) {
        match self.op(id).map(|op| &op.stage) {
            Some(Stage::Sync(outcome)) => {
                let outcome = *outcome;
                if ok && !self.volume.has_failed_sync() {
                    self.end(id, outcome);
                } else {
                    self.finish(id, Status::IoError);
                }
            }
            Some(Stage::Reset(_)) => self.continue_reset(id, ok),
            _ => {}
        }
    }
}
