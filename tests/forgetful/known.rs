//! What the front-end knows of the disk, and what must be there when the disk is opened again.
//!
//! Every block carries the stamp of its request and its position in it, so a block tells where it belongs. Times are
//! those of [`Clock`]: what was acknowledged at or before the time of a completed flush is flushed; time zero is what
//! was found when the disk was opened, which an opening makes durable.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::common::disk::state;
use crate::common::request::{ZoneInfo, kind};
use crate::common::stamps::{Piece, check_unacknowledged, decode};

/// Orders acknowledgements and flushes of all queues.
#[derive(Debug, Default)]
pub struct Clock {
    now: AtomicU64,
    flushed: AtomicU64,
}

impl Clock {
    /// The time of an acknowledgement that was just taken.
    pub fn acknowledged(&self) -> u64 {
        self.now.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// The time of a flush that is about to be submitted.
    pub fn flushing(&self) -> u64 {
        self.now.load(Ordering::SeqCst)
    }

    /// The flush of that time was acknowledged.
    pub fn flushed(&self, time: u64) {
        self.flushed.fetch_max(time, Ordering::SeqCst);
    }
}

/// How the disk was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// The daemon was killed, or ended in order: everything acknowledged is there.
    Whole,
    /// The power was cut: everything acknowledged up to this time is there.
    Cut(u64),
}

impl Left {
    /// By a power cut now.
    pub fn by_cut(clock: &Clock) -> Self {
        Self::Cut(clock.flushed.load(Ordering::SeqCst))
    }

    /// By a power cut that took nothing of what was written, on a disk that can tell.
    pub const CUT_WITHOUT_LOSS: Self = Self::Cut(u64::MAX);

    /// Whether what was acknowledged at `time` must be there.
    fn keeps(self, time: u64) -> bool {
        match self {
            Self::Whole => true,
            Self::Cut(flushed) => time <= flushed,
        }
    }
}

/// An acknowledged block.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    /// Stamp and position.
    pub content: (u64, u64),
    /// When.
    pub time: u64,
}

/// What is known of a sequential zone; blocks count from its start.
#[derive(Clone, Debug, Default)]
pub struct Zone {
    /// Acknowledged blocks.
    pub blocks: BTreeMap<u64, Written>,
    /// Blocks below the write pointer once everything in flight is done.
    pub sent: u64,
    /// Requests without an answer.
    pub pending: HashMap<u64, Piece>,
    /// Management command without an answer.
    pub manage: Option<u32>,
    /// A command made it full.
    pub finished: bool,
    /// It has refused a write, for lack of room.
    pub refused: bool,
}

impl Zone {
    /// FINISH was acknowledged, with nothing else in flight: that seals the zone, so all of it is durable.
    pub fn finish(&mut self) {
        self.finished = true;
        for block in self.blocks.values_mut() {
            block.time = 0;
        }
    }

    /// Compares a zone with what is known of it and returns what is known now. `data` is all of it, `capacity` counts
    /// blocks of `block` bytes.
    ///
    /// # Panics
    /// If anything is not as it must be.
    pub fn check(&self, left: Left, info: &ZoneInfo, data: &[u8], block: usize) -> Self {
        let what = format!("zone at {} after {left:?}", info.start);
        let found: Vec<_> = data
            .chunks_exact(block)
            .map(|part| decode(part, &what))
            .collect();
        let filled = found.iter().take_while(|b| b.is_some()).count();
        assert!(
            found[filled..].iter().all(Option::is_none),
            "{what}: data behind unwritten blocks"
        );
        let empty = filled == 0 && info.state == state::EMPTY;
        if empty && self.manage == Some(kind::ZONE_RESET) {
            return Self::default();
        }
        let found = &found[..filled];
        self.check_state(left, info, filled as u64, block, &what);
        for (at, wanted) in &self.blocks {
            match usize::try_from(*at).ok().and_then(|at| found.get(at)) {
                Some(got) => assert_eq!(*got, Some(wanted.content), "{what}: block {at}"),
                None => assert!(
                    !left.keeps(wanted.time),
                    "{what}: block {at} of {wanted:?} is gone, {filled} are left; {info:?}"
                ),
            }
        }
        let acknowledged = |at| self.blocks.contains_key(&at);
        check_unacknowledged(found, acknowledged, &self.pending, &what);
        let durable = |(at, content)| (at, Written { content, time: 0 });
        Self {
            blocks: (0..)
                .zip(found.iter().copied().flatten())
                .map(durable)
                .collect(),
            sent: filled as u64,
            finished: info.state == state::FULL,
            ..Self::default()
        }
    }

    /// Of the blocks that nobody flushed before a cut: how many of them `now` has, and how many it has not.
    pub fn unflushed(&self, clock: &Clock, now: &Self) -> [u64; 2] {
        let flushed = Left::by_cut(clock);
        let unflushed = self
            .blocks
            .iter()
            .filter(|(_, block)| !flushed.keeps(block.time));
        unflushed.fold([0, 0], |[found, gone], (at, _)| {
            if *at < now.sent {
                [found + 1, gone]
            } else {
                [found, gone + 1]
            }
        })
    }

    fn check_state(&self, left: Left, info: &ZoneInfo, filled: u64, block: usize, what: &str) {
        let in_blocks = |sectors: u64| sectors * 512 / block as u64;
        let capacity = in_blocks(info.capacity);
        assert!(filled <= capacity, "{what}: data behind the capacity");
        if info.state == state::FULL {
            let finishing = self.manage == Some(kind::ZONE_FINISH);
            let may = self.finished || finishing || filled == capacity;
            assert!(may, "{what}: full with {filled} blocks");
            return;
        }
        assert!(!self.finished, "{what}: no longer full: {info:?}");
        assert!(filled < capacity, "{what}: should be full: {info:?}");
        let wp = in_blocks(info.wp - info.start);
        assert_eq!(filled, wp, "{what}: write pointer and data disagree");
        if left != Left::Whole {
            let wanted = if filled == 0 {
                state::EMPTY
            } else {
                state::CLOSED
            };
            assert_eq!(info.state, wanted, "{what}: state after a power cut");
        }
    }
}

/// What is known of a block of a conventional zone.
#[derive(Clone, Debug, Default)]
pub struct InPlace {
    /// The stamp of each of its sectors as it was found or made durable.
    base: Vec<u64>,
    /// Later writes in their order, with the time of the acknowledgement.
    later: Vec<(u64, Option<u64>)>,
}

impl InPlace {
    /// Whether a write of it has no answer yet.
    pub fn is_pending(&self) -> bool {
        self.later.last().is_some_and(|(_, time)| time.is_none())
    }

    /// A write with this stamp was submitted.
    pub fn submit(&mut self, stamp: u64) {
        self.later.push((stamp, None));
    }

    /// The newest write was acknowledged.
    pub fn acknowledge(&mut self, time: u64) {
        if let Some((_, acknowledged)) = self.later.last_mut() {
            *acknowledged = Some(time);
        }
    }

    /// Compares the block with what is known of it, and keeps what was found. Without tags a power cut may mix writes
    /// of one block, sector by sector.
    ///
    /// # Panics
    /// If anything is not as it must be.
    pub fn check(&mut self, left: Left, data: &[u8], what: &str) {
        let stamps: Vec<u64> = data
            .chunks_exact(512)
            .map(|sector| decode(sector, what).map_or(0, |(stamp, _)| stamp))
            .collect();
        let kept = |time: Option<u64>| time.is_some_and(|time| left.keeps(time));
        if let Some(at) = self.later.iter().rposition(|(_, time)| kept(*time)) {
            self.base = vec![self.later[at].0; stamps.len()];
            self.later.drain(..=at);
        }
        if left == Left::Whole {
            let same = stamps.iter().all(|stamp| *stamp == stamps[0]);
            assert!(same || stamps == self.base, "{what}: torn: {stamps:?}");
        }
        for (at, stamp) in stamps.iter().enumerate() {
            let known = self.base.get(at) == Some(stamp);
            let later = self.later.iter().any(|(later, _)| later == stamp);
            assert!(
                known || later,
                "{what}: sector {at} holds {stamp:#x} after {left:?}, not {self:x?}"
            );
        }
        self.base = stamps;
        self.later.clear();
    }
}
