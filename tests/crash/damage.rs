//! Damage to what is written: every damaged block of a tagged disk is refused and every other one is read, whatever
//! the disk; sectors that cannot be read cost their blocks and no others.

use zonevault::store::mem::{Fault, Kind, MemControl, MemMedium};

use crate::judge::{Judge, Opened};
use crate::model::{End, Model};
use crate::payload::Content;
use crate::rig::Rig;
use crate::rng::Rng;

const SLOT_LEN: u64 = 32;

/// A block below a write pointer.
type Place = (u32, u64);

/// Damages copies of the disk on `medium`, all of which is known and flushed, in each way once.
pub(crate) fn run(
    judge: &Judge<'_>,
    medium: &MemMedium,
    model: &Model,
    rng: &mut Rng,
) -> Result<(), String> {
    let copy = || medium.control().moment().kill_with(|| false);
    let Opened { rig, seen, .. } = judge.judge(copy(), model, End::Killed)?;
    rig.retire();
    let places: Vec<Place> = (0..)
        .zip(&seen)
        .flat_map(|(zone, seen)| (0..seen.blocks.len() as u64).map(move |block| (zone, block)))
        .collect();
    if places.len() < 2 {
        return Ok(());
    }
    let known: Vec<Vec<Content>> = seen.into_iter().map(|zone| zone.blocks).collect();
    let victim = places[rng.index(places.len())];
    let check = |control: MemControl, rig: Rig| find(judge, &known, victim, &control, rig);

    let (control, rig) = open(judge, copy())?;
    let (offset, len) = (data_of(judge, victim), judge.base.shape.block);
    control.fail_range(Kind::Read, offset..offset + len, Fault::Fail(libc::EIO));
    check(control, rig)?;
    if !judge.base.shape.tagged() {
        return Ok(());
    }
    for way in [
        Way::Rot,
        Way::RottenSlot,
        Way::Misdirected,
        Way::Moved,
        Way::Dropped,
    ] {
        let (control, rig) = open(judge, copy())?;
        let other = places[rng.index(places.len())];
        if !way.apply(judge, &control, victim, other, rng) {
            rig.retire();
            continue;
        }
        check(control, rig).map_err(|why| format!("{way:?} from {other:?}: {why}"))?;
        let mut tally = judge.tally.borrow_mut();
        match way {
            Way::Rot | Way::RottenSlot => tally.rotten += 1,
            Way::Misdirected | Way::Moved => tally.misdirected += 1,
            Way::Dropped => tally.dropped += 1,
        }
    }
    Ok(())
}

/// How a block comes to harm.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// A bit of its data flips.
    Rot,
    /// A bit of its slot flips.
    RottenSlot,
    /// Another block's data lands on it.
    Misdirected,
    /// Another block's data and slot land on it and on its slot.
    Moved,
    /// The medium never wrote it: zeroes, as after a discard.
    Dropped,
}

impl Way {
    /// Does it; `false` if that changes nothing.
    fn apply(
        self,
        judge: &Judge<'_>,
        control: &MemControl,
        victim: Place,
        other: Place,
        rng: &mut Rng,
    ) -> bool {
        let block = judge.base.shape.block_len();
        let (data, slot) = (data_of(judge, victim), slot_of(judge, victim));
        let flip = |at: u64, len: u64, rng: &mut Rng| {
            let at = at + rng.below(len);
            let byte = control.peek(at, 1)[0] ^ (1 << rng.below(8));
            control.overwrite(at, &[byte]);
        };
        match self {
            Self::Rot => flip(data, judge.base.shape.block, rng),
            Self::RottenSlot => flip(slot, SLOT_LEN, rng),
            Self::Dropped => control.overwrite(data, &vec![0; block]),
            Self::Misdirected | Self::Moved if victim == other => return false,
            Self::Misdirected => {
                control.overwrite(data, &control.peek(data_of(judge, other), block));
            }
            Self::Moved => {
                control.overwrite(data, &control.peek(data_of(judge, other), block));
                control.overwrite(slot, &control.peek(slot_of(judge, other), 32));
            }
        }
        true
    }
}

fn data_of(judge: &Judge<'_>, (zone, block): Place) -> u64 {
    judge.base.reader.data_offset(zone) + block * judge.base.shape.block
}

fn slot_of(judge: &Judge<'_>, (zone, block): Place) -> u64 {
    judge.base.reader.slot_offset(zone) + block * SLOT_LEN
}

fn open(judge: &Judge<'_>, medium: MemMedium) -> Result<(MemControl, Rig), String> {
    let rig = Rig::open(judge.base, medium, End::Killed)?;
    Ok((rig.control.clone(), rig))
}

/// The disk must refuse `victim` and read all else.
fn find(
    judge: &Judge<'_>,
    known: &[Vec<Content>],
    victim: Place,
    control: &MemControl,
    mut rig: Rig,
) -> Result<(), String> {
    for (zone, known) in (0..judge.base.shape.zones).zip(known) {
        let found = rig.read_zone(zone)?;
        for (block, (known, found)) in (0..).zip(known.iter().zip(&found)) {
            let expected = if victim == (zone, block) {
                &Content::Failed
            } else {
                known
            };
            if found != expected {
                return Err(format!(
                    "damage to {victim:?}: {:?} reads as {found:?}, not {expected:?}",
                    (zone, block)
                ));
            }
        }
    }
    control.heal();
    rig.retire();
    Ok(())
}
