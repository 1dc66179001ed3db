//! What may be on the disk: a model fed with nothing but the front-end's log (submitted, completed, status, append
//! sector, when a flush began and ended). It knows no write order, no format and no cipher.
//!
//! A zone's content is known where an acknowledgement named the place. Everything else that was submitted and is not
//! acknowledged, or failed, is *loose*: its blocks may appear behind what is known, whole, each operation in one piece.

use std::collections::BTreeMap;
use std::rc::Rc;

use zonevault::request::{Outcome, Status};
use zonevault::zone::ZoneState;

use crate::payload::{Content, Stamp};
use crate::rig::QUEUES;

/// Where the zone is in a stamp.
pub(crate) const ZONE_SHIFT: u32 = 32;

/// How the disk came to be opened again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Power was cut: what no flush covered may be gone.
    Cut,
    /// The process was killed: what was acknowledged is there.
    Killed,
    /// It was closed in order.
    Clean,
    /// The process was killed after a sync had failed: as after a power cut.
    Doubted,
}

/// What the guest asks for.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    Write {
        zone: u32,
        at: u64,
        stamps: Rc<[Stamp]>,
    },
    Append {
        zone: u32,
        stamps: Rc<[Stamp]>,
    },
    Flush,
    Open(u32),
    Close(u32),
    Finish(u32),
    Reset(u32),
    ResetAll,
    Read {
        zone: u32,
    },
}

/// What is seen of a zone after an opening.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) state: ZoneState,
    /// Resets so far, as its record says.
    pub(crate) generation: u64,
    /// What the blocks below the write pointer hold.
    pub(crate) blocks: Vec<Content>,
    /// How many of them a power cut cannot take, as the record says.
    pub(crate) durable: u64,
}

/// Whether FINISH took effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Finish {
    No,
    /// One failed, or found nothing to do.
    Maybe,
    Done,
}

/// A write or an append that is not acknowledged.
#[derive(Clone, Debug)]
struct Loose {
    id: u64,
    queue: usize,
    at: Option<u64>,
    stamps: Rc<[Stamp]>,
    /// The end of what was acknowledged when it was submitted: it belongs behind that, or a reset came between.
    floor: u64,
    /// It failed.
    over: bool,
    /// It was under way on another queue while a reset was: nobody knows on which side it fell.
    straddles: bool,
    /// It may wait for a sync because the write cache was off, which later writes do not.
    waits: bool,
}

#[derive(Clone, Debug)]
struct Zone {
    /// By place, up to the end of the last acknowledged write; `None` where that is not known yet.
    blocks: Vec<Option<Stamp>>,
    /// So many blocks survive a power cut.
    durable: u64,
    finish: Finish,
    finishing: u32,
    resetting: u32,
    /// Resets and writes were under way at once, or a reset failed: nobody can tell what came first. Then all that is
    /// known is whose blocks are there, until a look at the quiet disk, or an opening, ends it.
    vague: bool,
    /// Fewest and most resets there can have been.
    generation: (u64, u64),
    /// Counts completed resets, to tell marks of before from those of after.
    incarnation: u64,
    /// How far the writes acknowledged to each queue reach.
    reached: [u64; QUEUES],
    loose: Vec<Loose>,
}

impl Zone {
    fn new(generation: u64) -> Self {
        Self {
            blocks: Vec::new(),
            durable: 0,
            finish: Finish::No,
            finishing: 0,
            resetting: 0,
            vague: false,
            generation: (generation, generation),
            incarnation: 0,
            reached: [0; QUEUES],
            loose: Vec::new(),
        }
    }

    /// The end of the last acknowledged write.
    fn end(&self) -> u64 {
        self.blocks.len() as u64
    }

    /// Nothing was acknowledged since the last reset.
    fn is_blank(&self) -> bool {
        self.blocks.is_empty() && self.finish == Finish::No
    }

    fn may_be_finished(&self) -> bool {
        self.finish != Finish::No || self.finishing > 0
    }

    /// In front of this nothing is written but after a reset.
    fn floor(&self) -> u64 {
        match self.finish {
            Finish::Done => u64::MAX,
            _ => self.end(),
        }
    }

    /// Notes an acknowledged write.
    fn acknowledge(
        &mut self,
        queue: usize,
        id: u64,
        place: u64,
        capacity: u64,
    ) -> Result<u64, String> {
        let Some(position) = self.loose.iter().position(|loose| loose.id == id) else {
            return Err("a write was acknowledged twice".into());
        };
        let loose = self.loose.remove(position);
        let end = place + loose.stamps.len() as u64;
        // A queue hears of its writes to a zone in the order of their places, but for those that wait for a sync.
        let reached = if loose.waits { 0 } else { self.reached[queue] };
        if place < loose.floor.max(reached) {
            return Err(format!(
                "acknowledged at {place}, in front of the write pointer"
            ));
        }
        if end > capacity {
            return Err(format!("acknowledged at {place}, past the zone's capacity"));
        }
        // What lies before it and is not known must belong to other queues, which have not heard of it yet, or to
        // writes that were written and then could not be made durable.
        let others = self
            .loose
            .iter()
            .filter(|l| l.queue != queue || l.waits || l.over);
        let room: u64 = others.map(|l| l.stamps.len() as u64).sum();
        let before = self.blocks.iter().take(place_len(place));
        let known = before.filter(|block| block.is_some()).count() as u64;
        if place > known + room {
            return Err(format!(
                "acknowledged at {place} while only {known} blocks before it were"
            ));
        }
        self.reached[queue] = self.reached[queue].max(end);
        if self.end() < end {
            self.blocks.resize(place_len(end), None);
        }
        for (at, stamp) in (place_len(place)..).zip(loose.stamps.iter()) {
            if self.blocks[at].replace(*stamp).is_some() {
                return Err(format!("block {at} was given to two writes"));
            }
        }
        Ok(end)
    }

    /// The zone after a reset, if one may have taken effect unnoticed.
    fn emptied(&self) -> Option<Self> {
        (self.resetting > 0).then(|| Self {
            blocks: Vec::new(),
            durable: 0,
            finish: self.finish.min(Finish::Maybe),
            ..self.clone()
        })
    }

    /// The reset that was operation `id` of `queue` is done.
    fn reset(&mut self, id: u64, queue: usize) {
        self.generation.0 += u64::from(!self.blocks.is_empty() || self.finish == Finish::Done);
        self.clear();
        self.loose.retain(|loose| !loose.over || loose.id > id);
        // A queue's own operations keep their order; others fell on this side or on that.
        for loose in &mut self.loose {
            loose.straddles |= loose.queue != queue || loose.id < id;
        }
    }

    fn clear(&mut self) {
        self.loose.iter_mut().for_each(|loose| loose.floor = 0);
        self.reached = [0; QUEUES];
        self.blocks.clear();
        self.durable = 0;
        self.finish = Finish::No;
        self.incarnation += 1;
    }

    /// Nobody can tell any more what is there.
    fn blur(&mut self) {
        self.clear();
        self.vague = true;
    }

    /// Whether what is seen of a vague zone may be there: blocks that were written to it, and nothing else.
    fn judge_vague(&self, index: usize, seen: &Seen) -> Result<(), String> {
        for (at, content) in seen.blocks.iter().enumerate() {
            match content {
                Content::Stamp(stamp) if zone_of(*stamp) == index => {}
                other => return Err(format!("block {at} holds {other:x?}")),
            }
        }
        Ok(())
    }

    /// Whether blocks that nobody acknowledged are where they may be.
    fn judge_loose(&self, blocks: &[Content]) -> Result<(), String> {
        let mut last: Option<(usize, usize)> = None;
        let mut used = vec![false; self.loose.len()];
        for (at, content) in blocks.iter().enumerate() {
            if matches!(self.blocks.get(at), Some(Some(_))) {
                last = None;
                continue;
            }
            let Content::Stamp(stamp) = content else {
                return Err(format!("block {at}, not acknowledged, holds {content:?}"));
            };
            let found = self.loose.iter().enumerate().find_map(|(n, loose)| {
                let part = loose.stamps.iter().position(|s| s == stamp)?;
                Some((n, part))
            });
            let Some((owner, part)) = found else {
                return Err(format!(
                    "block {at} holds what belongs elsewhere ({stamp:#x})"
                ));
            };
            let loose = &self.loose[owner];
            if loose
                .at
                .is_some_and(|start| start + part as u64 != at as u64)
            {
                return Err(format!("block {at} holds a write that named another place"));
            }
            let follows = match last {
                Some((before, its)) if part > 0 => before == owner && its + 1 == part,
                Some((before, its)) => its + 1 == self.loose[before].stamps.len(),
                None => part == 0,
            };
            if !follows || (part == 0 && std::mem::replace(&mut used[owner], true)) {
                return Err(format!(
                    "block {at} holds part {part} of a write that is not whole before it"
                ));
            }
            last = Some((owner, part));
        }
        Ok(())
    }

    fn judge_content(&self, seen: &Seen, must: u64) -> Result<(), String> {
        let written = seen.blocks.len() as u64;
        if written < must {
            return Err(format!(
                "the write pointer is at {written}, and {must} blocks are promised"
            ));
        }
        let loose: u64 = self
            .loose
            .iter()
            .map(|loose| loose.stamps.len() as u64)
            .sum();
        if written > self.end() + loose {
            return Err(format!(
                "the write pointer is at {written}, beyond all that was submitted"
            ));
        }
        for (at, (block, content)) in self.blocks.iter().zip(&seen.blocks).enumerate() {
            match block {
                Some(stamp) if *content != Content::Stamp(*stamp) => {
                    return Err(format!(
                        "block {at} holds {content:?}, not what was acknowledged ({stamp:#x})"
                    ));
                }
                _ => {}
            }
        }
        self.judge_loose(&seen.blocks)
    }
}

/// The zone that a stamp was made for.
fn zone_of(stamp: Stamp) -> usize {
    usize::try_from(stamp >> ZONE_SHIFT).expect("few zones")
}

fn place_len(place: u64) -> usize {
    usize::try_from(place).expect("64 bits")
}

/// An operation that was submitted and is not over.
#[derive(Clone, Debug)]
struct Submitted {
    queue: usize,
    action: Action,
    /// Of a flush, a FINISH or a read: for every zone, its incarnation and how much was acknowledged. Of a reset: 1 if
    /// anything was.
    marks: Rc<[(u64, u64)]>,
}

/// The disk, as far as the front-end can know.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    capacity: u64,
    max_open: u32,
    max_active: u32,
    zones: Vec<Zone>,
    submitted: BTreeMap<u64, Submitted>,
    write_cache: bool,
    /// Errors were injected: requests may fail and zones turn read-only.
    pub(crate) faults: bool,
}

impl Model {
    /// A new disk.
    pub(crate) fn new(shape: &crate::shape::Shape) -> Self {
        Self {
            capacity: shape.capacity,
            max_open: shape.max_open,
            max_active: shape.max_active,
            zones: (0..shape.zones).map(|_| Zone::new(0)).collect(),
            submitted: BTreeMap::new(),
            write_cache: true,
            faults: false,
        }
    }

    /// The write cache is turned on or off.
    pub(crate) fn set_write_cache(&mut self, on: bool) {
        if on && !self.write_cache {
            let loose = self.zones.iter_mut().flat_map(|zone| &mut zone.loose);
            loose.for_each(|loose| loose.waits = true);
        }
        self.write_cache = on;
    }

    /// Operations under way.
    pub(crate) fn under_way(&self) -> usize {
        self.submitted.len()
    }

    /// Where the next write to a zone belongs if all that is under way succeeds.
    pub(crate) fn next_place(&self, zone: u32) -> u64 {
        let zone = &self.zones[zone as usize];
        let under_way = zone.loose.iter().filter(|loose| !loose.over);
        zone.end()
            + under_way
                .map(|loose| loose.stamps.len() as u64)
                .sum::<u64>()
    }

    /// The front-end hands an operation to `queue`.
    pub(crate) fn submit(&mut self, id: u64, queue: usize, action: &Action) {
        let marks: Rc<[(u64, u64)]> = match action {
            Action::Flush | Action::Finish(_) | Action::Read { .. } => {
                let marks = self.zones.iter().map(|zone| (zone.incarnation, zone.end()));
                marks.collect()
            }
            Action::Reset(_) | Action::ResetAll => {
                let mark = |zone: &Zone| (zone.incarnation, u64::from(!zone.is_blank()));
                self.zones.iter().map(mark).collect()
            }
            _ => Rc::new([]),
        };
        match action {
            Action::Write { zone, stamps, .. } | Action::Append { zone, stamps } => {
                let at = match action {
                    Action::Write { at, .. } => Some(*at),
                    _ => None,
                };
                let stamps = Rc::clone(stamps);
                let loose = Loose {
                    id,
                    queue,
                    at,
                    stamps,
                    floor: self.zones[*zone as usize].floor(),
                    over: false,
                    straddles: false,
                    waits: false,
                };
                self.zones[*zone as usize].loose.push(loose);
            }
            Action::Finish(zone) => self.zones[*zone as usize].finishing += 1,
            Action::Reset(_) | Action::ResetAll => {
                for zone in self.reset_zones(action) {
                    self.zones[zone].resetting += 1;
                    self.zones[zone].generation.1 += 1;
                }
            }
            Action::Flush | Action::Open(_) | Action::Close(_) | Action::Read { .. } => {}
        }
        let action = action.clone();
        self.submitted.insert(
            id,
            Submitted {
                queue,
                action,
                marks,
            },
        );
    }

    fn reset_zones(&self, action: &Action) -> Vec<usize> {
        match action {
            Action::Reset(zone) => vec![*zone as usize],
            _ => (0..self.zones.len()).collect(),
        }
    }

    /// The front-end hears how an operation ended. `place` is the block in its zone that an append names; `read_only`
    /// are the zones that a report shows so.
    pub(crate) fn complete(
        &mut self,
        id: u64,
        outcome: Outcome,
        place: Option<u64>,
        read_only: &[bool],
    ) -> Result<(), String> {
        let submitted = self
            .submitted
            .remove(&id)
            .ok_or("an operation ended twice")?;
        let status = match outcome {
            Outcome::Done(status, _) => status,
            Outcome::Appended(_) => Status::Ok,
        };
        if status == Status::IoError && !self.faults {
            return Err(format!("{:?} failed without a cause", submitted.action));
        }
        match &submitted.action {
            Action::Write { zone, at, .. } => {
                self.complete_write(*zone as usize, submitted.queue, id, status, Some(*at))
            }
            Action::Append { zone, .. } => {
                self.complete_write(*zone as usize, submitted.queue, id, status, place)
            }
            Action::Flush if status == Status::Ok => {
                self.flushed(&submitted.marks);
                Ok(())
            }
            Action::Finish(zone) => {
                self.complete_finish(*zone as usize, status, &submitted.marks);
                Ok(())
            }
            action @ (Action::Reset(_) | Action::ResetAll) => {
                let all = matches!(action, Action::ResetAll);
                for zone in self.reset_zones(action) {
                    let passed_over = all && read_only[zone];
                    self.complete_reset(zone, status, passed_over, (id, &submitted));
                }
                Ok(())
            }
            Action::Flush | Action::Open(_) | Action::Close(_) | Action::Read { .. } => Ok(()),
        }
    }

    fn complete_write(
        &mut self,
        zone: usize,
        queue: usize,
        id: u64,
        status: Status,
        place: Option<u64>,
    ) -> Result<(), String> {
        let (capacity, write_cache) = (self.capacity, self.write_cache);
        let zone = &mut self.zones[zone];
        if zone.vague {
            zone.loose.retain(|loose| loose.id != id);
            return Ok(());
        }
        match status {
            Status::Ok => {
                let straddles = |loose: &Loose| loose.id == id && loose.straddles;
                if zone.loose.iter().any(straddles) {
                    zone.blur();
                    return Ok(());
                }
                let place = place.ok_or("an append that names no sector of its zone")?;
                let end = zone.acknowledge(queue, id, place, capacity)?;
                if !write_cache {
                    zone.durable = zone.durable.max(end);
                }
            }
            Status::IoError => {
                for loose in zone.loose.iter_mut().filter(|loose| loose.id == id) {
                    loose.over = true;
                }
            }
            _ => zone.loose.retain(|loose| loose.id != id),
        }
        Ok(())
    }

    fn flushed(&mut self, marks: &[(u64, u64)]) {
        for (zone, (incarnation, end)) in self.zones.iter_mut().zip(marks) {
            if zone.incarnation == *incarnation {
                zone.durable = zone.durable.max(*end);
            }
        }
    }

    fn complete_finish(&mut self, zone: usize, status: Status, marks: &[(u64, u64)]) {
        let capacity = self.capacity;
        let (incarnation, end) = marks[zone];
        let zone = &mut self.zones[zone];
        zone.finishing -= 1;
        if zone.vague {
            return;
        }
        // Found it finished by another FINISH, which may still be on its way, or full.
        let another = zone.finishing > 0;
        let flying = zone.loose.iter().filter(|loose| !loose.over);
        let may_fill = zone.end() + flying.map(|l| l.stamps.len() as u64).sum::<u64>() >= capacity;
        match status {
            Status::Ok if another => zone.finish = zone.finish.max(Finish::Maybe),
            Status::Ok if zone.incarnation == incarnation && !may_fill => {
                zone.finish = Finish::Done;
                zone.durable = zone.durable.max(end);
            }
            Status::Ok | Status::IoError => zone.finish = zone.finish.max(Finish::Maybe),
            _ => {}
        }
    }

    fn complete_reset(
        &mut self,
        zone: usize,
        status: Status,
        passed_over: bool,
        (id, submitted): (u64, &Submitted),
    ) {
        let (incarnation, held) = submitted.marks[zone];
        let zone = &mut self.zones[zone];
        let held = held > 0 && zone.incarnation == incarnation;
        zone.resetting -= 1;
        // It may have found the zone empty, before what is there now was written: nothing was acknowledged when it was
        // submitted, or another reset may have come before it. Resetting all passes over zones that failed.
        let unsure = !zone.is_blank() && (!held || zone.resetting > 0);
        match status {
            Status::Ok if zone.vague || unsure || passed_over => zone.blur(),
            Status::Ok => zone.reset(id, submitted.queue),
            Status::IoError => zone.blur(),
            _ => {}
        }
    }

    /// Whether what is seen of all zones may be there after `end`.
    pub(crate) fn judge(&self, seen: &[Seen], end: End) -> Result<(), String> {
        let count = |states: &[ZoneState]| {
            seen.iter()
                .filter(|zone| states.contains(&zone.state))
                .count()
        };
        let open = [ZoneState::ImplicitOpen, ZoneState::ExplicitOpen];
        let active = [
            ZoneState::ImplicitOpen,
            ZoneState::ExplicitOpen,
            ZoneState::Closed,
        ];
        if self.max_open != 0 && count(&open) > self.max_open as usize {
            return Err(format!(
                "{} zones are open, the limit is {}",
                count(&open),
                self.max_open
            ));
        }
        if self.max_active != 0 && count(&active) > self.max_active as usize {
            return Err(format!(
                "{} zones are active, the limit is {}",
                count(&active),
                self.max_active
            ));
        }
        let crowded = self.was_crowded(seen, end, count(&active))?;
        for (index, (zone, seen)) in self.zones.iter().zip(seen).enumerate() {
            self.judge_zone(index, zone, seen, end, crowded)
                .map_err(|why| format!("zone {index}, {end:?}: {why}"))?;
        }
        Ok(())
    }

    /// Whether a recovery may have finished zones, because one more would have been active than may be: after a cut that
    /// took the end of a zone that was full, or its FINISH or RESET on its way, and left what was then written instead.
    /// That is not flushed, or the end of the first would be too: zones that hold what is flushed are never too many.
    fn was_crowded(&self, seen: &[Seen], end: End, active: usize) -> Result<bool, String> {
        let limit = self.max_active as usize;
        if limit == 0 || !matches!(end, End::Cut | End::Doubted) {
            return Ok(false);
        }
        let sealed = |zone: &Zone, seen: &Seen| {
            let early = (1..self.capacity).contains(&(seen.blocks.len() as u64));
            early && seen.state == ZoneState::Full && !zone.vague && !zone.may_be_finished()
        };
        let zones = || self.zones.iter().zip(seen);
        let flushed = zones().filter(|(zone, seen)| {
            let known = !zone.vague && zone.resetting == 0 && zone.durable > 0;
            known && (seen.state.is_active() || sealed(zone, seen))
        });
        let flushed = flushed.count();
        if flushed > limit {
            return Err(format!(
                "{flushed} zones that were flushed are active or were finished, the limit is {limit}"
            ));
        }
        // And no more of them are finished than must be.
        Ok(active == limit && zones().any(|(zone, seen)| sealed(zone, seen)))
    }

    fn judge_zone(
        &self,
        index: usize,
        zone: &Zone,
        seen: &Seen,
        end: End,
        crowded: bool,
    ) -> Result<(), String> {
        let (least, most) = zone.generation;
        if !(least..=most).contains(&seen.generation) {
            return Err(format!(
                "generation {} is not within {least}..={most}",
                seen.generation
            ));
        }
        if zone.vague {
            zone.judge_vague(index, seen)?;
            let fits = self.fits(seen, end, true);
            return if fits {
                Ok(())
            } else {
                Err(format!("{} with {} blocks", seen.state, seen.blocks.len()))
            };
        }
        let judged = self.judge_world(zone, seen, end, crowded);
        match (judged, zone.emptied()) {
            (Err(why), Some(emptied)) => self
                .judge_world(&emptied, seen, end, crowded)
                .map_err(|other| format!("{why}; or, if it was reset: {other}")),
            (judged, _) => judged,
        }
    }

    fn judge_world(&self, zone: &Zone, seen: &Seen, end: End, crowded: bool) -> Result<(), String> {
        let must = match end {
            End::Cut | End::Doubted => zone.durable,
            End::Killed | End::Clean => zone.end(),
        };
        zone.judge_content(seen, must)?;
        let crowded = crowded && !seen.blocks.is_empty();
        let must_be_full = zone.finish == Finish::Done;
        let closed_for_good = matches!(seen.state, ZoneState::Full | ZoneState::ReadOnly);
        if self.fits(seen, end, zone.may_be_finished() || crowded)
            && (closed_for_good || !must_be_full)
        {
            Ok(())
        } else {
            let (state, written) = (seen.state, seen.blocks.len());
            Err(format!(
                "{state} with {written} blocks (finished: {:?})",
                zone.finish
            ))
        }
    }

    /// Whether a zone in this state can hold as much as it does; `full`: it can be full early.
    fn fits(&self, seen: &Seen, end: End, full: bool) -> bool {
        let written = seen.blocks.len() as u64;
        match seen.state {
            ZoneState::Empty => written == 0,
            ZoneState::Closed => written > 0 && written < self.capacity,
            ZoneState::ImplicitOpen | ZoneState::ExplicitOpen => {
                end == End::Killed && written < self.capacity
            }
            ZoneState::Full => written == self.capacity || full,
            ZoneState::ReadOnly => self.faults,
            ZoneState::Offline | ZoneState::NotWritePointer => false,
        }
    }

    /// Blocks acknowledged of a zone, from its start, if that is certain.
    pub(crate) fn certain(&self, zone: u32) -> Option<u64> {
        let zone = &self.zones[zone as usize];
        (!zone.vague && zone.resetting == 0).then(|| zone.end())
    }

    /// Whether a read of a running disk may give these blocks, of which `known` were acknowledged when it began.
    pub(crate) fn judge_read(
        &self,
        zone: u32,
        blocks: &[Content],
        known: u64,
    ) -> Result<(), String> {
        let zone = &self.zones[zone as usize];
        let known = zone.blocks.iter().zip(blocks).take(place_len(known));
        for (at, (block, content)) in known.enumerate() {
            let fits = block.is_none_or(|stamp| *content == Content::Stamp(stamp));
            let failed = *content == Content::Failed && self.faults;
            if !fits && !failed && zone.resetting == 0 {
                return Err(format!("block {at} reads as {content:?}, not as {block:?}"));
            }
        }
        Ok(())
    }

    /// Learns from a quiet disk, on which nothing ever failed, what a vague zone holds.
    pub(crate) fn learn(
        &mut self,
        index: u32,
        state: ZoneState,
        blocks: &[Content],
    ) -> Result<(), String> {
        let capacity = self.capacity;
        let zone = &mut self.zones[index as usize];
        if !zone.vague {
            return Ok(());
        }
        let blocks = blocks.iter().map_while(|content| match content {
            Content::Stamp(stamp) => Some(Some(*stamp)),
            _ => None,
        });
        let blocks: Vec<Option<Stamp>> = blocks.collect();
        if blocks
            .iter()
            .flatten()
            .any(|stamp| zone_of(*stamp) != index as usize)
        {
            return Err(format!("zone {index} holds another zone's blocks"));
        }
        let early = state == ZoneState::Full && (blocks.len() as u64) < capacity;
        *zone = Zone {
            blocks,
            finish: if early { Finish::Maybe } else { Finish::No },
            incarnation: zone.incarnation + 1,
            generation: zone.generation,
            ..Zone::new(0)
        };
        Ok(())
    }

    /// How much of a zone was acknowledged when the read `id`, which is under way, began; `None` if it was reset since.
    pub(crate) fn known_at(&self, id: u64, zone: u32) -> Option<u64> {
        let (incarnation, end) = self.submitted.get(&id)?.marks[zone as usize];
        (self.zones[zone as usize].incarnation == incarnation).then_some(end)
    }

    /// The disk is open again, and this is what is on it: from here on nothing else can be.
    pub(crate) fn rebase(&mut self, seen: &[Seen]) {
        self.submitted.clear();
        self.write_cache = true;
        for (zone, seen) in self.zones.iter_mut().zip(seen) {
            let blocks = seen.blocks.iter().map(|content| match content {
                Content::Stamp(stamp) => Some(*stamp),
                _ => None,
            });
            let finished =
                seen.state == ZoneState::Full && (seen.blocks.len() as u64) < self.capacity;
            *zone = Zone {
                blocks: blocks.collect(),
                // All of them, but in a zone that failed: see the judge.
                durable: seen.durable,
                finish: if finished { Finish::Done } else { Finish::No },
                incarnation: zone.incarnation + 1,
                ..Zone::new(seen.generation)
            };
        }
    }
}
