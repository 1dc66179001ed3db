//! One crash state: an image as a cut, a kill or an orderly end left it is opened, looked at through the device and by
//! the second reader, and compared with the model.

use std::cell::RefCell;

use zonevault::store::mem::{MemMedium, Moment};
use zonevault::zone::ZoneState;

use crate::book::Book;
use crate::model::{End, Model, Seen};
use crate::payload::{Content, identify};
use crate::reader::{Block, Reader, Record, View, state};
use crate::rig::{Report, Rig};
use crate::shape::Base;
use crate::tally::Tally;

/// One state in so many is read by the Python reader as well, which takes a thousand times as long.
pub(crate) const FOREIGN_ONE_IN: u64 = 2_003;
/// And so many of a campaign at most.
const FOREIGN_MOST: u64 = 100;

/// Opens and judges the ends of one history.
#[derive(Debug)]
pub(crate) struct Judge<'a> {
    pub(crate) base: &'a Base,
    pub(crate) tally: &'a RefCell<Tally>,
    /// One state in so many is read by the Python reader as well.
    pub(crate) foreign_one_in: u64,
    pub(crate) book: RefCell<Book>,
}

/// A disk that was found in order.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) rig: Rig,
    pub(crate) seen: Vec<Seen>,
    /// The moments that the opening passed.
    pub(crate) moments: Vec<Moment>,
}

impl Judge<'_> {
    fn reader(&self) -> &Reader {
        &self.base.reader
    }

    /// Judges the disk on `medium`, which ended as `end` says in a state of which `model` knows.
    pub(crate) fn judge(
        &self,
        medium: MemMedium,
        model: &Model,
        end: End,
    ) -> Result<Opened, String> {
        let before = medium.control().moment();
        let judged = self.judge_end(medium, model, end);
        judged.map_err(|why| {
            let peek = |offset, len| before.peek(offset, len);
            let Ok(left) = self.reader().view(&peek) else {
                return why;
            };
            let zones = (0..self.reader().zones()).map(|zone| {
                let record = left
                    .newest(zone)
                    .map(|record| self.reader().describe(&peek, zone, record));
                record.unwrap_or_default()
            });
            let slots: String = zones.collect();
            format!("{why}\nthe image before it was opened: {left:?}\n{slots}")
        })
    }

    fn judge_end(&self, medium: MemMedium, model: &Model, end: End) -> Result<Opened, String> {
        self.tally.borrow_mut().states += 1;
        let control = medium.control();
        let before = control.moment();
        let left = self
            .reader()
            .view(&|offset, len| before.peek(offset, len))?;
        let end = match (left.header.clean, end) {
            // Whatever came after it was closed, and before it was opened again, changed nothing.
            (true, _) => End::Clean,
            (false, End::Clean) => {
                return Err("a disk that was closed in order is not clean".into());
            }
            // The page cache of a host on which a sync failed is not believed.
            (false, End::Killed) if left.header.in_doubt => End::Doubted,
            (false, end) => end,
        };
        control.record(true);
        let mut rig = Rig::open(self.base, medium, end)?;
        let moments = rig.control.take_moments();
        rig.control.record(false);
        let reports = rig.look()?;
        let after = rig.control.moment();
        let peek = |offset, len| after.peek(offset, len);
        let view = self.reader().view(&peek)?;
        let seen = self.see(&view, &reports, &after)?;
        model.judge(&seen, end)?;
        self.ask_another(&before, end, &reports)?;
        self.judge_opening(&left, &before, &view, &seen, end)?;
        self.judge_durable(&after, &view)?;
        for moment in moments.iter().chain([&after]) {
            self.book.borrow_mut().note(self.reader(), moment)?;
        }
        Ok(Opened { rig, seen, moments })
    }

    /// Has the Python reader look at the image too, at one state in so many.
    fn ask_another(&self, left: &Moment, end: End, reports: &[Report]) -> Result<(), String> {
        let mut tally = self.tally.borrow_mut();
        let due = tally.states.is_multiple_of(self.foreign_one_in) && tally.foreign < FOREIGN_MOST;
        if !due || end == End::Doubted {
            return Ok(());
        }
        tally.foreign += 1;
        crate::foreign::read(&self.base.shape, left, end, reports)
    }

    /// Whether the header says that a sync failed.
    pub(crate) fn is_in_doubt(&self, moment: &Moment) -> bool {
        let view = self.reader().view(&|offset, len| moment.peek(offset, len));
        view.is_ok_and(|view| view.header.in_doubt)
    }

    /// What the second reader finds, which must be what the device says.
    fn see(&self, view: &View, reports: &[Report], moment: &Moment) -> Result<Vec<Seen>, String> {
        let mut seen = Vec::new();
        for (zone, report) in (0..).zip(reports) {
            let record = view.newest(zone).ok_or("a record that vanished")?;
            let blocks = self.see_zone(zone, record, report, moment);
            seen.push(blocks.map_err(|why| format!("zone {zone}: {why}"))?);
        }
        Ok(seen)
    }

    fn see_zone(
        &self,
        zone: u32,
        record: &Record,
        report: &Report,
        moment: &Moment,
    ) -> Result<Seen, String> {
        if state_of(report.state) != Some(record.state) {
            return Err(format!(
                "reported {}, recorded {}",
                report.state, record.state
            ));
        }
        let active = matches!(
            report.state,
            ZoneState::Closed | ZoneState::ImplicitOpen | ZoneState::ExplicitOpen
        );
        if active && report.pointer != record.written {
            return Err(format!(
                "write pointer {} reported, {} recorded",
                report.pointer, record.written
            ));
        }
        let peek = |offset, len| moment.peek(offset, len);
        let read = self.reader().blocks(&peek, zone, record, record.written);
        let blocks: Vec<Content> = read
            .iter()
            .map(|block| match block {
                Block::Plain(bytes) => identify(bytes),
                Block::Bad => Content::Failed,
            })
            .collect();
        let (below, behind) = report.blocks.split_at(blocks.len());
        if below != blocks {
            return Err(format!(
                "the device reads {below:x?}, the second reader {blocks:x?}"
            ));
        }
        if behind.iter().any(|content| *content != Content::Zero) {
            return Err(format!("behind the write pointer it reads {behind:x?}"));
        }
        Ok(Seen {
            state: report.state,
            generation: record.generation,
            durable: record.durable,
            blocks,
        })
    }

    /// What must hold of an opening besides the model.
    fn judge_opening(
        &self,
        left: &View,
        before: &Moment,
        view: &View,
        seen: &[Seen],
        end: End,
    ) -> Result<(), String> {
        if view.header.clean || view.header.epoch == 0 || view.header.epoch == left.header.epoch {
            return Err(format!("after {end:?} the header says {:?}", view.header));
        }
        for (zone, seen) in (0..).zip(seen) {
            let expected = match end {
                End::Cut => {
                    self.reader()
                        .recovered(&|offset, len| before.peek(offset, len), left, zone)
                }
                End::Doubted if left.header.in_doubt => {
                    left.newest(zone).map_or(0, |record| record.durable)
                }
                End::Killed | End::Clean | End::Doubted => {
                    left.newest(zone).map_or(0, |record| record.written)
                }
            };
            if expected != seen.blocks.len() as u64 {
                let found = seen.blocks.len();
                return Err(format!(
                    "zone {zone}: recovered {found} blocks, by the book {expected}"
                ));
            }
            for record in view.records[zone as usize].iter().flatten() {
                if record.generation < seen.generation {
                    return Err(format!(
                        "zone {zone}: the salt of an erased generation is still there"
                    ));
                }
            }
        }
        Ok(())
    }

    /// An opening makes what it found durable before the disk takes a write.
    fn judge_durable(&self, after: &Moment, view: &View) -> Result<(), String> {
        let durable = after.cuts().numbered(0).control();
        let peek = |offset, len| durable.peek(offset, len);
        let least = self.reader().view(&peek)?;
        if least.header != view.header {
            return Err("the header of the opening is not durable".into());
        }
        for zone in 0..self.reader().zones() {
            let (now, then) = (view.newest(zone), least.newest(zone));
            if now != then
                || now.is_none_or(|record| {
                    record.durable != record.written && record.state != state::READ_ONLY
                })
            {
                return Err(format!(
                    "zone {zone}: opened as {now:?}, durable is {then:?}"
                ));
            }
        }
        Ok(())
    }

    /// A second cut inside of a recovery: the disk must be found as the first recovery would have left it.
    pub(crate) fn judge_again(
        &self,
        medium: MemMedium,
        model: &Model,
        first: &[Seen],
    ) -> Result<(), String> {
        self.tally.borrow_mut().recoveries_cut += 1;
        let again = self.judge(medium, model, End::Cut)?;
        for (zone, (one, two)) in first.iter().zip(&again.seen).enumerate() {
            if one.blocks != two.blocks
                || one.state != two.state
                || one.generation != two.generation
            {
                return Err(format!(
                    "zone {zone}: a recovery that was cut off changed it: {one:x?}, then {two:x?}"
                ));
            }
        }
        again.rig.retire();
        Ok(())
    }
}

fn state_of(state: ZoneState) -> Option<u8> {
    Some(match state {
        ZoneState::Empty => state::EMPTY,
        ZoneState::ImplicitOpen => state::IMPLICIT,
        ZoneState::ExplicitOpen => state::EXPLICIT,
        ZoneState::Closed => state::CLOSED,
        ZoneState::Full => state::FULL,
        ZoneState::ReadOnly => state::READ_ONLY,
        ZoneState::NotWritePointer | ZoneState::Offline => return None,
    })
}
