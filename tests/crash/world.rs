//! A history: the disk, the model beside it, and every moment that it passes looked at.

use std::rc::Rc;

use zonevault::request::{Outcome, Status};
use zonevault::store::mem::{Counts, Fault, Kind, MemMedium, Moment};
use zonevault::zone::ZoneState;

use crate::judge::{Judge, Opened};
use crate::model::{Action, End, Model, ZONE_SHIFT};
use crate::payload::{Stamp, identify};
use crate::rig::{QUEUES, Rig};
use crate::rng::Rng;

/// Rounds after which everything that nothing holds back must have ended.
const PATIENCE: usize = 400;

/// How moments are looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    /// One moment in so many is looked at.
    pub(crate) one_in: u64,
    /// All ends of a moment that has at most so many are judged.
    pub(crate) exhaust: u64,
    /// Of others, and above that, so many drawn ones.
    pub(crate) drawn: u32,
    /// One recovery in so many is cut off itself, at one of its moments.
    pub(crate) recoveries: u64,
    /// One moment in so many is also a kill.
    pub(crate) kills: u64,
}

/// A running history.
#[derive(Debug)]
pub(crate) struct World<'a> {
    judge: &'a Judge<'a>,
    pub(crate) rig: Rig,
    pub(crate) model: Model,
    pub(crate) rng: Rng,
    pub(crate) look: Look,
    /// Moments are looked at. Off while a history is led to where it begins.
    pub(crate) looking: bool,
    /// The kernel forgot pages after a failed sync: what a kill leaves is then anybody's guess.
    forgot: bool,
    /// The header said that a sync failed when the last poll was over.
    told: bool,
    /// What had happened on the medium when the disk was opened.
    before: Counts,
    next_id: u64,
    next_stamp: u64,
    actions: Vec<(u64, Action)>,
    /// What was done, for who reads of a failure.
    pub(crate) log: Vec<String>,
}

impl<'a> World<'a> {
    /// A new disk.
    pub(crate) fn new(judge: &'a Judge<'a>, rng: Rng, look: Look) -> Result<Self, String> {
        let model = Model::new(&judge.base.shape);
        let Opened { rig, .. } = judge.judge(judge.base.fresh(), &model, End::Clean)?;
        rig.control.record(true);
        let rig_counts = rig.control.counts();
        Ok(Self {
            judge,
            rig,
            model,
            rng,
            look,
            looking: true,
            forgot: false,
            told: false,
            before: rig_counts,
            next_id: 0,
            next_stamp: 0x100,
            actions: Vec::new(),
            log: Vec::new(),
        })
    }

    /// New blocks for a zone.
    pub(crate) fn stamps(&mut self, zone: u32, count: u64) -> Rc<[Stamp]> {
        let first = u64::from(zone) << ZONE_SHIFT | self.next_stamp;
        self.next_stamp += count;
        (first..first + count).collect()
    }

    /// Hands an operation to a queue.
    pub(crate) fn submit(&mut self, queue: usize, action: Action) -> Result<(), String> {
        let id = self.next_id;
        self.next_id += 1;
        self.log.push(format!("{id}: {action:x?} to queue {queue}"));
        self.judge.tally.borrow_mut().operations += 1;
        self.model.submit(id, queue, &action);
        self.rig.start(queue, id, &action);
        self.actions.push((id, action));
        self.pass()
    }

    /// Looks at the moments that were passed since the last call. What the guest heard of meanwhile
    /// must not be in the model yet.
    fn pass(&mut self) -> Result<(), String> {
        let moments = self.rig.control.take_moments();
        if !moments.is_empty() {
            self.log.push(format!("  {} moments", moments.len()));
        }
        for moment in &moments {
            self.judge
                .book
                .borrow_mut()
                .note(&self.judge.base.reader, moment)?;
        }
        if self.looking {
            for moment in moments {
                self.look_at(&moment)?;
            }
        }
        Ok(())
    }

    /// Lets a queue go on, and hears what ended.
    pub(crate) fn poll(&mut self, queue: usize) -> Result<(), String> {
        let finished = self.rig.poll(queue);
        self.log.push(format!("poll {queue}"));
        self.pass()?;
        let shaken = self.rig.control.counts().failed_syncs != self.before.failed_syncs;
        self.told = shaken && self.judge.is_in_doubt(&self.rig.control.moment());
        for done in finished {
            let id = done.payload.id;
            let position = self.actions.iter().position(|(its, _)| *its == id);
            let (_, action) = self
                .actions
                .remove(position.ok_or("an operation ended twice")?);
            let place = match action {
                Action::Append { zone, .. } => self.rig.place(zone, done.outcome),
                _ => None,
            };
            self.log
                .push(format!("  {id} ended: {:?} {place:?}", done.outcome));
            self.hear(
                id,
                &action,
                done.outcome,
                place,
                &done.payload.bytes.borrow(),
            )?;
        }
        Ok(())
    }

    fn hear(
        &mut self,
        id: u64,
        action: &Action,
        outcome: Outcome,
        place: Option<u64>,
        bytes: &[u8],
    ) -> Result<(), String> {
        let ok = matches!(outcome, Outcome::Appended(_) | Outcome::Done(Status::Ok, _));
        let mut tally = self.judge.tally.borrow_mut();
        tally.acknowledged += u64::from(ok);
        tally.flushes += u64::from(ok && matches!(action, Action::Flush));
        drop(tally);
        if let Action::Read { zone } = action
            && ok
            && !self.forgot
            && let Some(known) = self.model.known_at(id, *zone)
        {
            let block = self.judge.base.shape.block_len();
            let blocks: Vec<_> = bytes.chunks(block).map(identify).collect();
            self.model.judge_read(*zone, &blocks, known)?;
        }
        let read_only = self.rig.read_only();
        let completed = self.model.complete(id, outcome, place, &read_only);
        completed.map_err(|why| format!("operation {id}: {why}"))?;
        Ok(())
    }

    /// Lets everything end.
    pub(crate) fn settle(&mut self) -> Result<(), String> {
        self.rig.control.hold(&[]);
        for _ in 0..PATIENCE {
            self.rig.control.release_all();
            self.pass()?;
            for queue in 0..QUEUES {
                self.poll(queue)?;
            }
            if self.model.under_way() == 0 && self.rig.is_idle() {
                return Ok(());
            }
        }
        Err(format!("{} operations do not end", self.model.under_way()))
    }

    /// Lets everything end and compares what the running disk says with the model.
    pub(crate) fn compare(&mut self) -> Result<(), String> {
        self.settle()?;
        if self.model.faults {
            return Ok(());
        }
        let looking = std::mem::replace(&mut self.looking, false);
        for (zone, report) in (0..).zip(self.rig.look()?) {
            self.model.learn(zone, report.state, &report.blocks)?;
            let Some(expected) = self.model.certain(zone) else {
                continue;
            };
            if report.state.is_active() && report.pointer != expected {
                let found = report.pointer;
                return Err(format!(
                    "zone {zone}: the write pointer is at {found}, acknowledged are {expected}"
                ));
            }
            if report.state == ZoneState::ReadOnly {
                return Err(format!("zone {zone} is read-only without a cause"));
            }
            self.model.judge_read(zone, &report.blocks, u64::MAX)?;
        }
        self.looking = looking;
        Ok(())
    }

    /// Looks at the disk as it is now.
    pub(crate) fn glance(&mut self) -> Result<(), String> {
        self.pass()?;
        let moment = self.rig.control.moment();
        self.judge
            .book
            .borrow_mut()
            .note(&self.judge.base.reader, &moment)?;
        if self.looking {
            self.look_at(&moment)
        } else {
            Ok(())
        }
    }

    /// Judges ends of a moment.
    fn look_at(&mut self, moment: &Moment) -> Result<(), String> {
        if !self.rng.one_in(self.look.one_in) {
            return Ok(());
        }
        self.judge.tally.borrow_mut().moments += 1;
        let cuts = moment.cuts();
        if let Some(count) = cuts.count(self.look.exhaust) {
            self.judge.tally.borrow_mut().exhausted += 1;
            for number in 0..count {
                self.cut(cuts.numbered(number))?;
            }
        } else {
            for _ in 0..self.look.drawn {
                let end = self.draw_end(moment);
                self.cut(end)?;
            }
        }
        if self.rng.one_in(self.look.kills) && self.can_be_killed(moment) {
            let rng = &mut self.rng;
            let medium = moment.kill_with(|| rng.one_in(2));
            self.judge.tally.borrow_mut().kills += 1;
            if self.model.faults && self.rng.one_in(2) {
                let copy = medium.control().moment().kill_with(|| false);
                self.stumble(copy, End::Killed)?;
            }
            let opened = self.judge.judge(medium, &self.model, End::Killed)?;
            opened.rig.retire();
            self.interrupt(&opened.moments)?;
        }
        Ok(())
    }

    /// One way in which power can fail at a moment.
    pub(crate) fn draw_end(&mut self, moment: &Moment) -> MemMedium {
        let rng = &mut self.rng;
        match rng.below(6) {
            0 => moment.cuts().end(|_| 0),
            1 => moment.cuts().end(|versions| versions - 1),
            // One sector fares otherwise than all others.
            2 => {
                let cuts = moment.cuts();
                let odd = rng.below(cuts.sectors().max(1) as u64);
                let kept = rng.one_in(2);
                let mut sector = 0;
                cuts.end(|versions| {
                    sector += 1;
                    if (sector - 1 == odd) == kept {
                        versions - 1
                    } else {
                        0
                    }
                })
            }
            3 => moment.cuts().end(|versions| rng.index(versions)),
            _ => moment.crash(rng.bits()),
        }
    }

    /// Judges one image that a cut left.
    fn cut(&mut self, medium: MemMedium) -> Result<(), String> {
        if self.model.faults && self.rng.one_in(self.look.recoveries) {
            let copy = medium.control().moment().kill_with(|| false);
            self.stumble(copy, End::Cut)?;
        }
        let opened = self.judge.judge(medium, &self.model, End::Cut)?;
        let Opened { rig, seen, moments } = opened;
        rig.retire();
        if !moments.is_empty() && self.rng.one_in(self.look.recoveries) {
            let moment = &moments[self.rng.index(moments.len())];
            let end = self.draw_end(moment);
            self.judge.judge_again(end, &self.model, &seen)?;
        }
        Ok(())
    }

    /// Cuts an opening off at one of its moments: what was known before it still is.
    fn interrupt(&mut self, opening: &[Moment]) -> Result<(), String> {
        if opening.is_empty() {
            return Ok(());
        }
        let moment = &opening[self.rng.index(opening.len())];
        let end = self.draw_end(moment);
        self.judge.tally.borrow_mut().recoveries_cut += 1;
        self.judge.judge(end, &self.model, End::Cut)?.rig.retire();
        Ok(())
    }

    /// Has an opening of an image that ended so meet an error, and judges what it leaves: after another cut or, if it
    /// was killed and not cut, another kill.
    fn stumble(&mut self, medium: MemMedium, end: End) -> Result<(), String> {
        let kinds = [
            Kind::MetadataRead,
            Kind::MetadataWrite,
            Kind::Sync,
            Kind::Read,
            Kind::Deallocate,
        ];
        let kind = kinds[self.rng.index(kinds.len())];
        let control = medium.control();
        control.fail_nth(kind, self.rng.range(1, 5), Fault::Fail(libc::EIO));
        let before = control.counts().failed_syncs;
        // What was in doubt goes back to what is durable, and so it stays.
        let again = match self.judge.is_in_doubt(&control.moment()) {
            true => End::Doubted,
            false => End::Killed,
        };
        if let Ok(rig) = Rig::open(self.judge.base, medium, end) {
            rig.retire();
        }
        let moment = control.moment();
        let told = control.counts().failed_syncs == before || self.judge.is_in_doubt(&moment);
        self.judge.tally.borrow_mut().stumbles += 1;
        let opened = if end == End::Killed && told && self.rng.one_in(2) {
            let medium = moment.kill_with(|| false);
            self.judge.judge(medium, &self.model, again)?
        } else {
            let medium = self.draw_end(&moment);
            self.judge.judge(medium, &self.model, End::Cut)?
        };
        opened.rig.retire();
        Ok(())
    }

    /// Damages copies of the disk as it is now.
    pub(crate) fn damage(&mut self) -> Result<(), String> {
        let medium = self.rig.control.moment().kill_with(|| false);
        crate::damage::run(self.judge, &medium, &self.model, &mut self.rng)
    }

    /// The history goes on after such an end.
    pub(crate) fn reopen(&mut self, end: End) -> Result<(), String> {
        self.log.push(format!("--- {end:?}"));
        let medium = match end {
            End::Cut => {
                let moment = self.rig.control.moment();
                self.draw_end(&moment)
            }
            End::Killed if !self.can_be_killed(&self.rig.control.moment()) => return Ok(()),
            End::Killed => {
                let rng = &mut self.rng;
                self.rig.control.moment().kill_with(|| rng.one_in(2))
            }
            End::Clean | End::Doubted => {
                self.settle()?;
                let closed = self.rig.close();
                self.pass()?;
                if let Err(why) = closed {
                    // Whoever cannot close it ends all the same.
                    return if self.model.faults {
                        self.reopen(End::Cut)
                    } else {
                        Err(why)
                    };
                }
                // Whoever closes it may lose power right after.
                let moment = self.rig.control.moment();
                self.draw_end(&moment)
            }
        };
        {
            let mut tally = self.judge.tally.borrow_mut();
            tally.kills += u64::from(end == End::Killed);
            tally.closings += u64::from(end == End::Clean);
        }
        let Opened { rig, seen, moments } = self.judge.judge(medium, &self.model, end)?;
        if self.looking {
            self.interrupt(&moments)?;
        }
        std::mem::replace(&mut self.rig, rig).retire();
        self.actions.clear();
        self.model.rebase(&seen);
        self.before = self.rig.control.counts();
        self.forgot = false;
        self.told = false;
        self.rig.control.record(true);
        Ok(())
    }

    /// Sets a fault, and says so to the model.
    pub(crate) fn inject(&mut self, kind: Kind, nth: u64, fault: Fault) {
        self.log
            .push(format!("fault: {kind:?} number {nth}: {fault:?}"));
        self.model.faults = true;
        self.rig.control.fail_nth(kind, nth, fault);
    }

    /// Lets one held operation go, well or not.
    pub(crate) fn release(&mut self, errno: Option<i32>, syncs: bool) -> Result<(), String> {
        let mut held = self.rig.control.held();
        held.retain(|op| syncs || op.kind != Kind::Sync);
        if held.is_empty() {
            return Ok(());
        }
        let op = held[self.rng.index(held.len())];
        self.log.push(format!(
            "release {:?} at {:#x}, {errno:?}",
            op.kind, op.offset
        ));
        match errno {
            Some(errno) => {
                self.model.faults = true;
                self.rig.control.release_failing(op.id, errno)
            }
            None => self.rig.control.release(op.id),
        };
        self.pass()
    }

    /// The kernel drops the pages that a failed sync left in doubt.
    pub(crate) fn forget(&mut self) {
        let before = self.rig.control.counts().forgotten;
        self.rig.control.forget(self.rng.bits());
        if self.rig.control.counts().forgotten != before {
            self.log.push("the kernel forgets".into());
            self.forgot = true;
        }
    }

    /// Whether a kill at that moment leaves something that can be judged. A sync that failed is told once; a daemon that dies before
    /// it has written that down leaves what nobody can know of.
    fn can_be_killed(&self, moment: &Moment) -> bool {
        let shaken = self.rig.control.counts().failed_syncs != self.before.failed_syncs;
        // Nor, if the kernel has dropped a record as well, before that is written anew.
        !shaken || (self.judge.is_in_doubt(moment) && (self.told || !self.forgot))
    }

    /// Turns the write cache on or off.
    pub(crate) fn set_write_cache(&mut self, on: bool) {
        self.log.push(format!("write cache {on}"));
        self.rig.set_write_cache(on);
        self.model.set_write_cache(on);
    }

    /// The history is over.
    pub(crate) fn retire(self) {
        let mut tally = self.judge.tally.borrow_mut();
        tally.histories += 1;
        drop(tally);
        self.rig.retire();
    }
}
