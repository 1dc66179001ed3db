//! An image stopped at one moment, and the ends that the moment can have.
//!
//! One run passes many moments, and each has many ends: a power cut keeps this or that, a kill lets
//! this or that happen. A [`Moment`] is cheap (unchanged pages are shared), so a test runs a
//! history once and looks at all of them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use super::MemMedium;
use super::change::{Change, Content, SECTOR, index, sectors_of};
use super::control::Unsynced;
use super::disk::{Candidate, Deallocation, Disk, Fate};
use super::draw::Draw;
use super::fault::{Counts, Kind};
use super::image::Image;

/// The bytes of one sector.
type Sector = [u8; 512];

/// What an operation in flight does when it lands.
#[derive(Clone)]
pub(super) enum Landing {
    Write { offset: u64, bytes: Arc<Vec<u8>> },
    Deallocate { offset: u64, len: u64 },
}

/// An operation in flight.
#[derive(Clone)]
pub(super) struct Flying {
    pub(super) id: u64,
    pub(super) landing: Landing,
}

/// A disk, stopped. Nobody is connected to it and nothing happens in it any more.
#[derive(Clone)]
pub struct Moment {
    pub(super) len: u64,
    pub(super) alignment: u64,
    pub(super) seen: Image,
    pub(super) durable: Image,
    pub(super) changes: Vec<Change>,
    pub(super) flying: Vec<Flying>,
    pub(super) clock: u64,
    pub(super) deallocation: Deallocation,
    pub(super) deallocation_draw: Draw,
    pub(super) counts: Arc<Mutex<Counts>>,
}

impl fmt::Debug for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Moment")
            .field("changes", &self.changes.len())
            .field("flying", &self.flying.len())
            .finish_non_exhaustive()
    }
}

impl Moment {
    /// Length of the image in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// An image of no length.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes that a read would see.
    pub fn peek(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.seen.read(offset, &mut bytes);
        bytes
    }

    /// What a power cut could take or leave, oldest first, what is in flight last.
    pub(super) fn candidates(&self) -> Vec<Candidate> {
        let unsynced = self.changes.iter().map(|change| Candidate {
            change: change.clone(),
            in_flight: false,
        });
        let in_flight = self.flying.iter().filter_map(|flying| {
            let change = self.landed(flying, &self.seen)?;
            Some(Candidate {
                change,
                in_flight: true,
            })
        });
        unsynced.chain(in_flight).collect()
    }

    /// The change that an operation in flight would make to `image`.
    fn landed(&self, flying: &Flying, image: &Image) -> Option<Change> {
        match &flying.landing {
            Landing::Write { offset, bytes } if !bytes.is_empty() => {
                let mut image = image.clone();
                image.write(*offset, bytes);
                Some(sectors_of(&image, *offset, bytes.len(), flying.id))
            }
            Landing::Deallocate { offset, len } if self.deallocation != Deallocation::Keeps => {
                let (first, end) = (offset.div_ceil(SECTOR), (offset + len) / SECTOR);
                (first < end).then_some(Change {
                    at: flying.id,
                    doubted: None,
                    range: first * SECTOR..end * SECTOR,
                    content: Content::Zeroes,
                })
            }
            _ => None,
        }
    }

    /// The image as a power cut leaves it: which changes survive, whole or torn, and in what
    /// order, is drawn from `seed`.
    pub fn crash(&self, seed: u64) -> MemMedium {
        /// Chances that a change survives, in quarters: everything and nothing among them.
        const QUARTERS: u64 = 4;
        let mut draw = Draw::new(seed);
        let chance = draw.below(QUARTERS + 1);
        let mut fates: Vec<(Candidate, Fate)> = self
            .candidates()
            .into_iter()
            .map(|candidate| {
                let survives = draw.below(QUARTERS) < chance;
                let torn = draw.below(QUARTERS) == 0;
                let seed = draw.next();
                let fate = match (survives, torn) {
                    (false, _) => Fate::Lost,
                    (true, false) => Fate::Kept,
                    (true, true) => Fate::Torn(seed),
                };
                (candidate, fate)
            })
            .collect();
        if draw.below(2) == 0 {
            draw.shuffle(&mut fates);
            self.count(|c| c.cut_shuffled += 1);
        }
        // A request that the transport sent twice lands again after younger ones.
        if !fates.is_empty() && draw.below(QUARTERS) == 0 {
            let twice = index(draw.below(fates.len() as u64));
            let (candidate, fate) = &fates[twice];
            if *fate != Fate::Lost {
                let again = (candidate.clone(), *fate);
                fates.push(again);
                self.count(|c| c.cut_duplicated += 1);
            }
        }
        self.after_cut(&fates)
    }

    /// The image as a power cut leaves it that treats each change as `decide` says; survivors in
    /// the order in which they took effect.
    pub fn crash_with(&self, mut decide: impl FnMut(&Unsynced) -> Fate) -> MemMedium {
        let decide = |candidate: Candidate| {
            let fate = decide(&Unsynced::from(&candidate));
            (candidate, fate)
        };
        let fates: Vec<_> = self.candidates().into_iter().map(decide).collect();
        self.after_cut(&fates)
    }

    fn after_cut(&self, fates: &[(Candidate, Fate)]) -> MemMedium {
        let mut image = self.durable.clone();
        for (candidate, fate) in fates {
            match fate {
                Fate::Lost => {}
                Fate::Kept => candidate.change.apply(&mut image),
                Fate::Torn(seed) => candidate.change.tear(&mut image, *seed),
            }
        }
        self.count(|c| {
            c.cuts += 1;
            for (candidate, fate) in fates {
                match fate {
                    Fate::Lost => c.cut_lost += 1,
                    Fate::Kept => c.cut_kept += 1,
                    Fate::Torn(_) => c.cut_torn += 1,
                }
                c.cut_in_flight += u64::from(candidate.in_flight && *fate != Fate::Lost);
            }
        });
        self.reborn(image)
    }

    /// Everything that a power cut now can leave, sector by sector.
    pub fn cuts(&self) -> Cuts {
        let mut sectors: BTreeMap<u64, Vec<Sector>> = BTreeMap::new();
        let mut note = |change: &Change, image: &Image| {
            for sector in change.range.start / SECTOR..change.range.end / SECTOR {
                let mut bytes = [0; 512];
                image.read(sector * SECTOR, &mut bytes);
                let versions = sectors.entry(sector).or_insert_with(|| {
                    let mut old = [0; 512];
                    self.durable.read(sector * SECTOR, &mut old);
                    vec![old]
                });
                if !versions.contains(&bytes) {
                    versions.push(bytes);
                }
            }
        };
        let mut image = self.durable.clone();
        for change in &self.changes {
            change.apply(&mut image);
            note(change, &image);
        }
        // Each of those in flight alone, and on top of those before it: a small write takes its
        // neighbours in the sector along.
        let mut all = self.seen.clone();
        for flying in &self.flying {
            for base in [&self.seen, &all] {
                if let Some(change) = self.landed(flying, base) {
                    image = base.clone();
                    change.apply(&mut image);
                    note(&change, &image);
                }
            }
            all = image.clone();
        }
        Cuts {
            moment: self.clone(),
            sectors: sectors.into_iter().filter(|(_, v)| v.len() > 1).collect(),
        }
    }

    /// The disk as the kernel has it once the process is gone; of what is in flight, that happens
    /// which `lets_through` says.
    pub fn kill_with(&self, mut lets_through: impl FnMut() -> bool) -> MemMedium {
        let mut heir = Disk::of(self, self.seen.clone(), self.durable.clone());
        heir.inherit(self.changes.clone(), self.clock);
        self.count(|c| c.kills += 1);
        for flying in &self.flying {
            let effect = lets_through()
                && match &flying.landing {
                    Landing::Write { offset, bytes } => {
                        heir.write(Kind::Write, *offset, bytes).is_ok()
                    }
                    Landing::Deallocate { offset, len } => heir.deallocate(*offset, *len).is_ok(),
                };
            self.count(|c| c.kill_in_flight += u64::from(effect));
        }
        MemMedium::over(heir, self.alignment)
    }

    fn reborn(&self, image: Image) -> MemMedium {
        MemMedium::over(Disk::of(self, image.clone(), image), self.alignment)
    }

    fn count(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.counts.lock());
    }
}

/// The choices of a power cut. Any sector that changed since the last sync ends as it was then or
/// as any change left it, whatever its neighbours do: that is every subset of the sectors written,
/// in every order.
#[derive(Clone, Debug)]
pub struct Cuts {
    moment: Moment,
    /// Sectors with a choice, and what they can hold, the durable bytes first.
    sectors: Vec<(u64, Vec<Sector>)>,
}

impl Cuts {
    /// Sectors that have a choice.
    pub fn sectors(&self) -> usize {
        self.sectors.len()
    }

    /// How many different ends there are, or `None` if that is more than `limit`.
    pub fn count(&self, limit: u64) -> Option<u64> {
        self.sectors.iter().try_fold(1_u64, |count, (_, versions)| {
            count
                .checked_mul(versions.len() as u64)
                .filter(|count| *count <= limit)
        })
    }

    /// The end in which each sector holds the version that `pick` names, given how many it has (0:
    /// the durable one; a later one is a younger one).
    pub fn end(&self, mut pick: impl FnMut(usize) -> usize) -> MemMedium {
        let mut image = self.moment.durable.clone();
        let (mut lost, mut kept, mut stale) = (0, 0, 0);
        for (sector, versions) in &self.sectors {
            let choice = pick(versions.len()).min(versions.len() - 1);
            match choice {
                0 => lost += 1,
                last if last == versions.len() - 1 => kept += 1,
                _ => stale += 1,
            }
            if choice != 0 {
                image.write(sector * SECTOR, &versions[choice]);
            }
        }
        self.moment.count(|c| {
            c.cuts += 1;
            c.sectors_lost += lost;
            c.sectors_kept += kept;
            c.sectors_stale += stale;
        });
        self.moment.reborn(image)
    }

    /// End number `number` of [`Cuts::count`].
    pub fn numbered(&self, mut number: u64) -> MemMedium {
        self.end(|versions| {
            let choice = index(number % versions as u64);
            number /= versions as u64;
            choice
        })
    }
}
