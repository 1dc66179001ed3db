//! What each zone must hold, from what the front-end asked for and was told.
//!
//! Every block ever written carries a number of its own, its stamp, in all of its words. A zone is judged when nothing is
//! in flight in it: every acknowledged stamp at its place, no other block below the write pointer but those of requests
//! that met a reset or have no answer yet, and none of a life before the last reset. No request may fail but one that
//! met a FINISH or closes what is not open. If the medium fails writes, those fail and what was to lie behind them; none of
//! that may be found anywhere.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use crate::common::request::{ZoneInfo, kind, status};

/// Bytes of a block.
pub(crate) const BLOCK: usize = 4096;
/// Sectors of a block.
pub(crate) const BLOCK_SECTORS: u64 = 8;
/// Blocks of a zone, all of them writable.
pub(crate) const ZONE_BLOCKS: u64 = 256;
/// Sectors of a zone.
pub(crate) const ZONE_SECTORS: u64 = ZONE_BLOCKS * BLOCK_SECTORS;

const FULL: u8 = 14;

/// Consecutive blocks of one request; their stamps count up from the first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) stamp: u64,
    pub(crate) blocks: u64,
    /// Where it must lie, in blocks of the zone; appends go where the device puts them.
    pub(crate) at: Option<u64>,
    pub(crate) queue: usize,
    /// It and a RESET were in flight together: which came first is not known.
    met_reset: bool,
    /// It was sent after that RESET: in the old life it would be where the write pointer was or higher.
    after_reset: bool,
    /// The same with a FINISH, after which it may be refused.
    met_finish: bool,
}

/// A RESET in flight.
#[derive(Clone, Debug, Default)]
struct Reset {
    /// The write pointer was at least here when it was sent.
    floor: u64,
    /// Acknowledged since, at places that only the new life has free.
    next: BTreeMap<u64, u64>,
    /// Acknowledged since, in one of the two lives: place and stamp.
    either: BTreeSet<(u64, u64)>,
}

/// One zone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Zone {
    pub(crate) index: u64,
    /// Acknowledged stamps by block.
    must: BTreeMap<u64, u64>,
    /// Place and stamp of acknowledged ones that a reset may have taken along.
    either: BTreeSet<(u64, u64)>,
    /// Writes may fail; what they wrote is then nowhere.
    fallible: bool,
    /// Something was refused: the write pointer is lower than what was asked for would have it.
    vague: bool,
    /// Requests without an answer, by their first stamp.
    pending: HashMap<u64, Piece>,
    /// The write pointer is nowhere above this.
    reserved: u64,
    /// What was sent after the last reset and is below this block is of the new life.
    floor: u64,
    reset: Option<Reset>,
    /// Another management command in flight.
    manage: Option<u32>,
    full: bool,
    /// Counts resets when they are sent.
    pub(crate) life: u64,
    /// What happened last, for whoever has to understand a failure.
    history: VecDeque<Event>,
}

/// Something that happened to a zone.
#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "printed")]
enum Event {
    Sent(Piece),
    /// Stamp, status, block.
    Answered(u64, u8, u64),
    SentCommand(u32),
    /// Kind, status.
    Managed(u32, u8),
    /// Blocks found.
    Checked(u64),
    /// The daemon was gone.
    Death(u64),
}

/// Events that are kept of each zone.
const HISTORY: usize = 40;

/// The bytes of a piece.
pub(crate) fn stamped(piece: &Piece) -> Vec<u8> {
    (0..piece.blocks)
        .flat_map(|i| (piece.stamp + i).to_le_bytes().repeat(BLOCK / 8))
        .collect()
}

/// The stamp of a block, 0 for one that nobody wrote.
pub(crate) fn stamp_of(block: &[u8]) -> Result<u64, String> {
    let unit: [u8; 8] = block[..8].try_into().expect("eight bytes");
    if block.chunks_exact(8).all(|part| part == unit) {
        Ok(u64::from_le_bytes(unit))
    } else {
        Err(format!(
            "torn: begins with stamp {}",
            u64::from_le_bytes(unit)
        ))
    }
}

impl Zone {
    pub(crate) fn new(index: u64, fallible: bool) -> Self {
        Self {
            index,
            fallible,
            ..Self::default()
        }
    }

    fn note(&mut self, event: Event) {
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(event);
    }

    /// The daemon died in this round.
    pub(crate) fn note_death(&mut self, round: u64) {
        self.note(Event::Death(round));
    }

    /// What happened last, a line each.
    pub(crate) fn story(&self) -> String {
        let lines = self.history.iter().map(|event| format!("  {event:?}\n"));
        format!("zone {}:\n{}", self.index, lines.collect::<String>())
    }

    pub(crate) fn start(&self) -> u64 {
        self.index * ZONE_SECTORS
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.reset.is_none() && self.manage.is_none()
    }

    pub(crate) fn is_resetting(&self) -> bool {
        self.reset.is_some()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.must.is_empty() && self.reserved == 0 && !self.full
    }

    /// Blocks that may be asked for without running into the capacity.
    pub(crate) fn room(&self) -> u64 {
        if self.full {
            0
        } else {
            ZONE_BLOCKS - self.reserved
        }
    }

    /// The blocks below the write pointer, at least.
    pub(crate) fn known_end(&self) -> u64 {
        self.must.last_key_value().map_or(0, |(at, _)| at + 1)
    }

    pub(crate) fn bound(&self) -> u64 {
        if self.full {
            ZONE_BLOCKS
        } else {
            self.reserved
        }
    }

    /// Up to `most` acknowledged blocks in a row: the first one's place, and their stamps.
    pub(crate) fn sample(&self, from: u64, most: usize) -> Option<(u64, Vec<u64>)> {
        let (&first, _) = self.must.range(from..).next().or(self.must.iter().next())?;
        let stamps = (first..)
            .map_while(|at| self.must.get(&at).copied())
            .take(most)
            .collect();
        Some((first, stamps))
    }

    fn all_of(&self, queue: usize) -> bool {
        self.pending.values().all(|piece| piece.queue == queue)
    }

    fn has_positional(&self) -> bool {
        self.pending.values().any(|piece| piece.at.is_some())
    }

    /// A queue may write at the write pointer only if nobody else may move it meanwhile.
    pub(crate) fn may_write(&self, queue: usize) -> bool {
        self.reset.is_none()
            && self.manage.is_none()
            && !self.vague
            && self.either.is_empty()
            && !self.pending.values().any(|piece| piece.met_reset)
            && self.all_of(queue)
    }

    pub(crate) fn may_append(&self, queue: usize) -> bool {
        self.manage.is_none() && (!self.has_positional() || self.all_of(queue))
    }

    /// A reset may meet appends in flight, but not a second reset, nor writes of another queue.
    pub(crate) fn may_manage(&self, queue: usize) -> bool {
        self.reset.is_none()
            && self.manage.is_none()
            && !self.pending.values().any(|piece| piece.met_reset)
            && (!self.has_positional() || self.all_of(queue))
    }

    /// The next piece of a queue: at the write pointer, or as an append.
    pub(crate) fn send(&mut self, stamp: u64, blocks: u64, queue: usize, append: bool) -> Piece {
        let piece = Piece {
            stamp,
            blocks,
            at: (!append).then_some(self.reserved),
            queue,
            met_reset: self.reset.is_some(),
            after_reset: self.reset.is_some(),
            met_finish: false,
        };
        self.note(Event::Sent(piece));
        self.pending.insert(stamp, piece);
        self.reserved += blocks;
        piece
    }

    pub(crate) fn send_manage(&mut self, kind: u32) {
        self.note(Event::SentCommand(kind));
        match kind {
            kind::ZONE_RESET | kind::ZONE_RESET_ALL => {
                self.life += 1;
                self.reset = Some(Reset {
                    floor: self.known_end(),
                    ..Reset::default()
                });
                for piece in self.pending.values_mut() {
                    piece.met_reset = true;
                }
            }
            kind => {
                self.manage = Some(kind);
                if kind == kind::ZONE_FINISH {
                    for piece in self.pending.values_mut() {
                        piece.met_finish = true;
                    }
                }
            }
        }
    }

    /// A piece was answered; `sector` is where an append says it is.
    pub(crate) fn answered(&mut self, stamp: u64, code: u8, sector: u64) -> Result<u64, String> {
        let piece = self
            .pending
            .remove(&stamp)
            .ok_or_else(|| format!("{stamp} was not in flight"))?;
        let block = sector.wrapping_sub(self.start()) / BLOCK_SECTORS;
        self.note(Event::Answered(stamp, code, piece.at.unwrap_or(block)));
        let refused = piece.met_finish && code == status::INVALID_CMD
            // Itself, or what was to lie before it.
            || self.fallible && code == status::IOERR
            || self.fallible && piece.at.is_some() && code == status::UNALIGNED_WP;
        if code != status::OK {
            if refused {
                self.vague = true;
                return Ok(0);
            }
            return Err(format!("{piece:?}: status {code}"));
        }
        let at = match piece.at {
            Some(at) => at,
            None => self.place_of(&piece, sector)?,
        };
        for i in 0..piece.blocks {
            let (at, stamp) = (at + i, piece.stamp + i);
            let old = match &mut self.reset {
                Some(reset) if piece.after_reset && at < reset.floor => {
                    reset.next.insert(at, stamp)
                }
                Some(reset) => {
                    reset.either.insert((at, stamp));
                    None
                }
                None if piece.met_reset && !(piece.after_reset && at < self.floor) => {
                    self.either.insert((at, stamp));
                    None
                }
                None => self.must.insert(at, stamp),
            };
            if let Some(other) = old {
                return Err(format!("{piece:?} at {at}, where {other} already is"));
            }
        }
        Ok(piece.blocks)
    }

    fn place_of(&self, piece: &Piece, sector: u64) -> Result<u64, String> {
        let place = sector
            .checked_sub(self.start())
            .filter(|offset| offset.is_multiple_of(BLOCK_SECTORS))
            .map(|offset| offset / BLOCK_SECTORS)
            .filter(|at| at + piece.blocks <= ZONE_BLOCKS);
        place.ok_or_else(|| format!("{piece:?}: appended at sector {sector}"))
    }

    pub(crate) fn managed(&mut self, kind: u32, code: u8) -> Result<(), String> {
        self.note(Event::Managed(kind, code));
        let good = match kind {
            // A zone that is not open cannot be closed.
            kind::ZONE_CLOSE => [status::OK, status::INVALID_CMD].contains(&code),
            _ => code == status::OK,
        };
        if !good {
            return Err(format!("command {kind}: status {code}"));
        }
        if kind != kind::ZONE_RESET && kind != kind::ZONE_RESET_ALL {
            self.manage = None;
            self.full |= kind == kind::ZONE_FINISH && code == status::OK;
            return Ok(());
        }
        let Some(reset) = self.reset.take() else {
            return Err("a reset that was not in flight".to_owned());
        };
        self.must = reset.next;
        self.either = reset.either;
        self.floor = reset.floor;
        self.full = false;
        let pending: u64 = self.pending.values().map(|piece| piece.blocks).sum();
        let since = self.must.len() + self.either.len();
        self.reserved = pending + since as u64;
        Ok(())
    }

    /// Compares the zone with what is known of it and knows what was found from then on. `data`: the
    /// blocks below the write pointer, or all of them. Returns how many stamps had to be there.
    pub(crate) fn check(&mut self, info: &ZoneInfo, data: &[u8]) -> Result<u64, String> {
        let found = data
            .chunks_exact(BLOCK)
            .map(stamp_of)
            .collect::<Result<Vec<_>, _>>()?;
        let full = info.state == FULL;
        let filled = found.iter().take_while(|stamp| **stamp != 0).count();
        if found[filled..].iter().any(|stamp| *stamp != 0) {
            return Err(format!("data behind unwritten block {filled}"));
        }
        let wp = (info.wp - info.start) / BLOCK_SECTORS;
        let loose = !self.is_idle();
        if !full && wp != filled as u64 {
            return Err(format!("{filled} blocks below the write pointer {wp}"));
        }
        if full != (self.full || filled as u64 == ZONE_BLOCKS) && !loose {
            return Err(format!("{info:?}, full: {}", self.full));
        }
        for (at, stamp) in &self.must {
            let got = usize::try_from(*at).ok().and_then(|at| found.get(at));
            if got != Some(stamp) && !self.is_resetting() {
                return Err(format!(
                    "{stamp} was acknowledged at block {at}, where {got:?} is; it is at {:?} of {filled}",
                    found.iter().position(|other| other == stamp)
                ));
            }
        }
        self.check_others(&found[..filled])?;
        let checked = self.must.len() as u64;
        self.note(Event::Checked(filled as u64));
        if self.is_idle() {
            self.must = (0..).zip(found.into_iter().take(filled)).collect();
            self.either.clear();
            self.vague = false;
            self.floor = 0;
            self.reserved = filled as u64;
            self.full = full;
        }
        Ok(checked)
    }

    /// Whatever was not acknowledged at its place must be of a request that may be there, once.
    fn check_others(&self, found: &[u64]) -> Result<(), String> {
        let mut seen = HashSet::new();
        for (at, stamp) in (0..).zip(found) {
            if !seen.insert(*stamp) {
                return Err(format!("{stamp} is there twice, the second time at {at}"));
            }
            let of_reset = self.reset.as_ref().is_some_and(|r| {
                r.next.get(&at) == Some(stamp) || r.either.contains(&(at, *stamp))
            });
            let known = self.must.get(&at) == Some(stamp)
                || self.either.contains(&(at, *stamp))
                || of_reset;
            if known {
                continue;
            }
            let pending = self.pending.values().any(|piece| {
                let mine = (piece.stamp..piece.stamp + piece.blocks).contains(stamp);
                mine && piece
                    .at
                    .is_none_or(|first| first + (stamp - piece.stamp) == at)
            });
            if !pending {
                return Err(format!(
                    "block {at} holds {stamp}, which is of no request that may be there \
                     (acknowledged here: {:?})",
                    self.must.get(&at)
                ));
            }
        }
        Ok(())
    }
}
