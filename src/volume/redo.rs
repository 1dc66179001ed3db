//! Operations that a daemon before this one had begun: those that count are answered, the others done.
//!
//! Whoever brings them knows from a place that outlives the daemon what each was about to change
//! ([`Payload::intend`]); what came of it, the zone records tell. A place that is free again must be named
//! by nobody: see [`crate::zone::Note`] and the module that it is of for the rules, and [`Keeper`] for those who obey.

use std::fmt::Debug;
use std::sync::{Arc, Weak};

use log::warn;

use crate::geometry::{Blocks, Generation, Sector, ZoneIndex};
use crate::limit::LogLimit;
use crate::mutant::{self, Mutant, Point};
use crate::request::{Command, Outcome, Status, ZoneAction, blocks_of};
use crate::store::Medium;
use crate::zone::{
    Admission, AllZones, Change, Epoch, Intent, Note, Redo, Ticket, Unfit, ZoneError, ZoneState,
};

use super::Volume;
use super::channel::Channel;
use super::op::{Op, Payload, Stage};

/// A guest can bring what it likes; one kind must not hide another.
static UNFIT: [LogLimit; Unfit::KINDS] = [const { LogLimit::new() }; Unfit::KINDS];
static STRANGERS: LogLimit = LogLimit::new();

/// What keeps the intents of operations in flight for a daemon after this one. Other threads may change it.
pub trait Keeper: Debug + Send + Sync {
    /// Asks `undone` of every intent of an operation in flight, and makes those of which it says so such that
    /// they are not trusted any more.
    fn spoil(&self, undone: &mut dyn FnMut(&Intent) -> bool);
}

/// Everything that keeps intents which may still have to be spoiled.
///
/// A keeper is needed as long as a queue works that notes something there, whose worker holds it, and as
/// long as something of it is expected; that can be said of the one that came last only, and who serves
/// front-ends holds that. So of many front-ends one after another next to nothing is kept.
#[derive(Debug, Default)]
pub(super) struct Keepers(Vec<Weak<dyn Keeper>>);

impl Keepers {
    fn add(&mut self, keeper: Weak<dyn Keeper>) {
        self.0.retain(|keeper| keeper.strong_count() > 0);
        self.0.push(keeper);
    }
}

/// Where a payload notes its intent.
struct NoteOf<'a, P>(&'a P);

impl<P: Payload> Note for NoteOf<'_, P> {
    fn is_spoiled(&self) -> bool {
        self.0.is_disowned()
    }

    fn spoil(&self) {
        self.0.disown();
    }
}

impl<M: Medium> Volume<M> {
    /// A front-end has come with `keeper`, which was last in use under `epoch`: announces the operations that
    /// will come by [`Channel::start_again`]. Until each has come, its zone takes no other write. They come
    /// from a front-end, and those that cannot be are spoiled. No queue may run; who calls holds the keeper
    /// until the next one has come, or nothing is expected.
    pub fn expect<K: Keeper + 'static>(&self, keeper: &Arc<K>, epoch: Epoch) {
        let weak: Weak<K> = Arc::downgrade(keeper);
        self.keepers.lock().add(weak);
        if Mutant::ForgetIntent.is_on() {
            return;
        }
        keeper.spoil(&mut |intent| {
            let unfit = self.table.expect(*intent, epoch).err();
            if let Some(why) = unfit {
                say_unfit(intent, why);
            }
            unfit.is_some()
        });
    }

    /// Whether some that were announced have not come.
    pub fn expects(&self) -> bool {
        self.table.expects()
    }

    /// Waits no longer for those that have not come: they fail, and so does what must follow them, and
    /// their zones take whatever comes.
    pub fn give_up(&self) {
        let given_up = self.table.give_up();
        self.spoil(|intent| given_up.has(intent));
        for released in self.table.release(given_up) {
            self.post(released);
        }
    }

    /// The write pointer of a zone fell back: what was granted from there on was not done.
    pub(super) fn spoil_failed(&self, zone: ZoneIndex, (generation, from): (Generation, Blocks)) {
        if Mutant::KeepFailedIntent.is_on() {
            return;
        }
        self.spoil(|intent| {
            let behind = matches!(intent.change, Change::Write { start, .. } if start >= from);
            behind && intent.zone == zone && intent.generation == generation
        });
    }

    fn spoil(&self, mut undone: impl FnMut(&Intent) -> bool) {
        for keeper in self.keepers.lock().0.iter().filter_map(Weak::upgrade) {
            keeper.spoil(&mut undone);
        }
    }
}

impl<M: Medium, P: Payload> Channel<M, P> {
    /// Starts an operation that was begun before and not answered; `intent`: what it was about to
    /// change. Otherwise like [`Channel::start`].
    pub fn start_again(&mut self, command: Command, payload: P, intent: Option<Intent>) {
        let Some(id) = self.enter(command, payload, true) else {
            return;
        };
        self.begin_held();
        if let Some(intent) = intent.filter(|_| !Mutant::ForgetIntent.is_on()) {
            self.intents.insert(id, intent);
        }
        self.begin(id);
    }

    /// Lets go of operations that wait for others which are announced and do not come, if they are all that
    /// is left: nothing of them has begun, and whoever keeps what is in flight brings them again. `true` if
    /// they are gone, and with them everything.
    pub fn leave_waiting(&mut self) -> bool {
        let parked = |op: &Op<P>| matches!(op.stage, Stage::Parked);
        let waits = self.ops.iter().flatten().all(parked);
        if !waits || !self.is_still() || !self.volume.expects() {
            return false;
        }
        self.volume.table.forget_life(self.life);
        self.forget_ops();
        true
    }

    /// Notes what an operation is about to change.
    pub(super) fn intend(
        &mut self,
        id: u32,
        zone: ZoneIndex,
        generation: Generation,
        change: Change,
    ) {
        if let Some(op) = self.op(id) {
            op.payload.intend(Intent {
                zone,
                generation,
                change,
            });
            mutant::pass(Point::IntentWritten);
        }
    }

    /// Goes on with an operation that was begun before; `false`: as if it were new.
    pub(super) fn begin_again(&mut self, id: u32, command: Command, ticket: Ticket) -> bool {
        let intent = self.intents.get(&id).copied();
        match (command, intent) {
            // What was closed already is not active any more.
            (Command::Zone(ZoneAction::Close, zone), _) => {
                let record = self.volume.table.record(zone);
                let closed = record.is_some_and(|record| record.state == ZoneState::Empty);
                if closed {
                    self.finish(id, Status::Ok);
                }
                closed
            }
            (Command::Zone(ZoneAction::Reset | ZoneAction::Finish, zone), Some(intent)) => {
                // Opening the disk has made it durable.
                let done = intent.zone == zone && self.volume.table.is_done(intent);
                if done {
                    self.finish(id, Status::Ok);
                }
                done
            }
            (Command::ResetAll, Some(intent)) => {
                self.reset_all_again(id, intent, ticket);
                true
            }
            (Command::Write(_) | Command::Append(..), Some(intent)) => {
                self.begin_write_again(id, command, intent, ticket)
            }
            _ => false,
        }
    }

    fn begin_write_again(
        &mut self,
        id: u32,
        command: Command,
        intent: Intent,
        ticket: Ticket,
    ) -> bool {
        let Some((len, outcome)) = self.outcome_of(command, intent) else {
            self.refuse_stranger(id, command, intent);
            return true;
        };
        let Some(op) = self.ops.get(id as usize).and_then(Option::as_ref) else {
            return true;
        };
        let note = NoteOf(&op.payload);
        let admitted = self.volume.table.admit_redo(intent, ticket, &note);
        if !matches!(admitted, Ok(Redo::Again(_))) {
            // It may have been the last that the zone was kept for, and nothing of it will end there.
            self.touch(intent.zone);
        }
        match admitted {
            Ok(Redo::Counted) if Mutant::RedoCounted.is_on() => return false,
            Ok(Redo::Counted) => self.acknowledge(id, outcome),
            Ok(Redo::Again(admission)) => self.begin_granted(id, Ok(admission), len),
            Err(why) => {
                say_unfit(&intent, why);
                self.finish(id, ZoneError::from(why).into());
            }
        }
        true
    }

    /// The request is not the one that was begun.
    fn refuse_stranger(&mut self, id: u32, command: Command, intent: Intent) {
        if let Some(more) = STRANGERS.allow() {
            warn!(
                "queue {}: a request is answered with an error, for another one was in flight in its \
                 place: {command:?}, {intent:?} ({more} more like it)",
                self.queue
            );
        }
        self.finish(id, Status::IoError);
    }

    fn reset_all_again(&mut self, id: u32, intent: Intent, ticket: Ticket) {
        if intent.change != Change::ResetAll {
            return self.refuse_stranger(id, Command::ResetAll, intent);
        }
        let Some(op) = self.ops.get(id as usize).and_then(Option::as_ref) else {
            return;
        };
        let note = NoteOf(&op.payload);
        let table = &self.volume.table;
        match table.begin_reset_all_again(intent, ticket, &note) {
            // Opening the disk has made it durable.
            Ok(Redo::Counted) => self.finish(id, Status::Ok),
            Ok(Redo::Again(Admission::Parked)) => self.set_stage(id, Stage::Parked),
            Ok(Redo::Again(Admission::Granted(AllZones { zones, kept }))) => {
                self.begin_reset(id, zones, kept);
            }
            Err(why) => {
                say_unfit(&intent, why);
                self.finish(id, ZoneError::from(why).into());
            }
        }
    }

    /// Bytes of a write that was begun as `intent` says, and what it is answered; `None` if the two do
    /// not belong together.
    fn outcome_of(&self, command: Command, intent: Intent) -> Option<(u64, Outcome)> {
        let geometry = self.volume.geometry();
        let Change::Write { start, count } = intent.change else {
            return None;
        };
        let end = start.0.checked_add(count.0)?;
        if end > geometry.zone_capacity_blocks(intent.zone).0 {
            return None;
        }
        match command {
            Command::Append(zone, len) => {
                let same = zone == intent.zone && geometry.blocks_in(len) == count;
                let sector: Sector = geometry.block_sector(zone, start);
                same.then_some((len, Outcome::Appended(sector)))
            }
            Command::Write(span) => {
                let zone = geometry.zone_of(span.sector)?;
                let same = zone == intent.zone && blocks_of(geometry, zone, span) == (start, count);
                same.then_some((span.len, Outcome::Done(Status::Ok, 0)))
            }
            _ => None,
        }
    }
}

/// Says why a write that was in flight is answered with an error.
fn say_unfit(intent: &Intent, why: Unfit) {
    let limit = UNFIT.get(why.kind());
    if let Some(more) = limit.and_then(LogLimit::allow) {
        let Intent {
            zone,
            generation,
            change,
        } = intent;
        warn!(
            "{zone}: a request that was in flight is answered with an error: {why} (generation {}, {change:?}; \
             {more} more like it)",
            generation.0
        );
    }
}
