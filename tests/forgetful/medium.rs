//! One file on a medium with a volatile cache: what was synced is durable, of the rest a power cut keeps what it likes.
//!
//! The unit that is written whole or not at all is the sector of 512 bytes. A cut may keep any subset of the unsynced
//! sectors, the older of two versions of one included, and so tears writes, syncs that were under way, and the order.

use std::collections::HashSet;

use crate::common::rng::Rng;

/// Bytes that a medium writes whole or not at all.
pub const SECTOR: usize = 512;
/// Bytes of a page of the kernel's cache, which writes back whole pages.
const PAGE: usize = 4096;

/// Where in an image what lies: metadata, then zone after zone data and tags. Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Areas {
    /// Where the first zone begins.
    pub zones: u64,
    /// Length of a zone's data.
    pub data: u64,
    /// Length of its tags.
    pub tags: u64,
}

impl Areas {
    /// 0 for metadata, 1 for data, 2 for tags.
    fn of(&self, offset: u64) -> usize {
        match offset.checked_sub(self.zones) {
            None => 0,
            Some(at) if at % (self.data + self.tags) < self.data => 1,
            Some(_) => 2,
        }
    }
}

/// What of the unsynced writes is on the medium after a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing.
    Nothing,
    /// Everything; as a kill alone.
    Everything,
    /// Each sector with a chance of so many in a hundred.
    Sectors(u64),
    /// Each write, as a whole, with a chance of so many in a hundred.
    Writes(u64),
    /// The oldest so many in a hundred writes, and of the next one each second sector.
    Oldest(u64),
    /// The newest so many in a hundred writes, and of the next one each second sector.
    Newest(u64),
    /// All but so many sectors.
    AllBut(u64),
    /// What lies in some areas: metadata, data, tags.
    In(Areas, [bool; 3]),
}

impl Keep {
    /// One of the ways to fail.
    pub fn draw(rng: &mut Rng, areas: Areas) -> Self {
        match rng.below(10) {
            0 => Self::Nothing,
            1 => Self::Everything,
            2 | 3 => Self::Sectors(rng.range(1, 99)),
            4 => Self::Writes(rng.range(1, 99)),
            5 => Self::Oldest(rng.range(0, 99)),
            6 => Self::Newest(rng.range(0, 99)),
            7 => Self::AllBut(rng.range(1, 4)),
            _ => {
                let some = rng.range(1, 6);
                Self::In(areas, [1, 2, 4].map(|bit| some & bit != 0))
            }
        }
    }
}

/// What a cut took and left, in sectors and writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// Unsynced sectors that reached the medium.
    pub kept: u64,
    /// Unsynced sectors that did not.
    pub lost: u64,
    /// Writes of which some sectors are in both.
    pub torn: u64,
}

impl Loss {
    /// The sum of two.
    pub fn add(&mut self, other: Self) {
        self.kept += other.kept;
        self.lost += other.lost;
        self.torn += other.torn;
    }
}

#[derive(Debug)]
enum Change {
    Write(Vec<u8>),
    /// A punched hole of so many bytes.
    Hole(usize),
}

impl Change {
    fn len(&self) -> usize {
        match self {
            Self::Write(bytes) => bytes.len(),
            Self::Hole(len) => *len,
        }
    }
}

#[derive(Debug)]
struct Pending {
    moment: u64,
    offset: usize,
    change: Change,
    /// It came past the page cache.
    direct: bool,
}

impl Pending {
    /// The pieces of it that the medium writes whole: where in it they begin and end.
    fn sectors(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (offset, len) = (self.offset, self.change.len());
        let first = (SECTOR - offset % SECTOR) % SECTOR;
        let starts = std::iter::once(0).chain((first..len).step_by(SECTOR).filter(|s| *s > 0));
        starts.map(move |start| {
            let next = (offset + start) / SECTOR * SECTOR + SECTOR - offset;
            (start, next.min(len))
        })
    }

    /// Writes the bytes from `start` to `end` of it into `image`; what lies behind its end is dropped.
    fn apply(&self, image: &mut [u8], start: usize, end: usize) {
        let end = end.min(image.len().saturating_sub(self.offset));
        if start >= end {
            return;
        }
        let target = &mut image[self.offset + start..self.offset + end];
        match &self.change {
            Change::Write(bytes) => target.copy_from_slice(&bytes[start..end]),
            Change::Hole(_) => target.fill(0),
        }
    }
}

/// The end of what a sync covers; see [`Medium::moment`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment(u64);

/// A file: what everybody reads, what would survive a cut, and what lies between them.
#[derive(Debug, Default)]
pub struct Medium {
    current: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Pending>,
    clock: u64,
    settled: u64,
}

impl Medium {
    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.current.len() as u64
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.current.is_empty()
    }

    /// Sets the length, durably: images get theirs once, before anything relies on it.
    pub fn set_len(&mut self, len: usize) {
        self.current.resize(len, 0);
        self.durable.resize(len, 0);
    }

    /// Up to `len` bytes at `offset`.
    pub fn read(&self, offset: usize, len: usize) -> &[u8] {
        let start = offset.min(self.current.len());
        let end = offset.saturating_add(len).min(self.current.len());
        &self.current[start..end]
    }

    /// Writes into the cache.
    pub fn write(&mut self, offset: usize, bytes: Vec<u8>, direct: bool) {
        let end = offset + bytes.len();
        if end > self.current.len() {
            self.set_len(end);
        }
        self.change(offset, Change::Write(bytes), direct);
    }

    /// Makes a range zero, in the cache. What lies behind the end is left out.
    pub fn punch(&mut self, offset: usize, len: usize) {
        let len = len.min(self.current.len().saturating_sub(offset));
        if len > 0 {
            self.change(offset, Change::Hole(len), true);
        }
    }

    fn change(&mut self, offset: usize, change: Change, direct: bool) {
        let pending = Pending {
            moment: self.clock,
            offset,
            change,
            direct,
        };
        self.clock += 1;
        pending.apply(&mut self.current, 0, pending.change.len());
        self.pending.push(pending);
    }

    /// Now: a sync that begins here covers what was written before.
    pub fn moment(&self) -> Moment {
        Moment(self.clock)
    }

    /// A sync that began at `moment` has ended.
    pub fn sync(&mut self, moment: Moment) {
        let (done, rest) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|pending| pending.moment < moment.0);
        self.pending = rest;
        let done: Vec<Pending> = done;
        let mut pages = HashSet::new();
        for pending in done {
            let len = pending.change.len();
            pending.apply(&mut self.durable, 0, len);
            match &pending.change {
                Change::Hole(_) => {}
                Change::Write(_) if pending.direct => self.settled += len as u64,
                Change::Write(_) => {
                    pages.extend(pending.offset / PAGE..=(pending.offset + len - 1) / PAGE);
                }
            }
        }
        self.settled += (pages.len() * PAGE) as u64;
    }

    /// Bytes that a disk below a page cache would have written so far: between two syncs every page once, and what came
    /// past the cache as it came.
    pub fn settled(&self) -> u64 {
        self.settled
    }

    /// The power fails: of the unsynced sectors `keep` says which are there when it is back.
    pub fn cut(&mut self, keep: Keep, rng: &mut Rng) -> Loss {
        let pending = std::mem::take(&mut self.pending);
        let count = pending.len() as u64;
        let sectors: u64 = pending.iter().map(|p| p.sectors().count() as u64).sum();
        let spared: Vec<u64> = match keep {
            Keep::AllBut(n) => (0..n).map(|_| rng.below(sectors)).collect(),
            _ => Vec::new(),
        };
        let mut loss = Loss::default();
        let mut number = 0;
        for (index, write) in (0..).zip(&pending) {
            let whole = rng.below(100);
            let [mut kept, mut lost] = [0, 0];
            for (start, end) in write.sectors() {
                let offset = (write.offset + start) as u64;
                let stays = match keep {
                    Keep::Nothing => false,
                    Keep::Everything => true,
                    Keep::Sectors(share) => rng.below(100) < share,
                    Keep::Writes(share) => whole < share,
                    Keep::Oldest(share) => match index.cmp(&(count * share / 100)) {
                        std::cmp::Ordering::Less => true,
                        std::cmp::Ordering::Equal => rng.one_in(2),
                        std::cmp::Ordering::Greater => false,
                    },
                    Keep::Newest(share) => match (count - 1 - index).cmp(&(count * share / 100)) {
                        std::cmp::Ordering::Less => true,
                        std::cmp::Ordering::Equal => rng.one_in(2),
                        std::cmp::Ordering::Greater => false,
                    },
                    Keep::AllBut(_) => !spared.contains(&number),
                    Keep::In(areas, kept) => kept[areas.of(offset)],
                };
                number += 1;
                if stays {
                    kept += 1;
                    write.apply(&mut self.durable, start, end);
                } else {
                    lost += 1;
                }
            }
            loss.add(Loss {
                kept,
                lost,
                torn: u64::from(kept > 0 && lost > 0),
            });
        }
        self.current.copy_from_slice(&self.durable);
        loss
    }
}
