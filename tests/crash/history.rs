//! Histories that are drawn.

use zonevault::store::mem::{Deallocation, Fault, Kind};

use crate::judge::Judge;
use crate::model::{Action, End};
use crate::rig::QUEUES;
use crate::rng::Rng;
use crate::world::{Look, World};

/// Operations under way at most.
const UNDER_WAY: usize = 8;
/// What a short write brings to the medium, in bytes; the last is all of it.
const KEPT: [u64; 4] = [0, 512, 1024, 1 << 20];
/// Longest write, in blocks.
const LONGEST: u64 = 3;

/// What kind of histories.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Steps of a history.
    pub(crate) steps: u32,
    /// Errors are injected.
    pub(crate) faults: bool,
    /// Syncs fail too.
    pub(crate) syncs: bool,
    pub(crate) look: Look,
}

/// Runs the history of `seed`; on failure says what was done.
pub(crate) fn run(judge: &Judge<'_>, seed: u64, plan: Plan) -> Result<(), String> {
    let mut world = World::new(judge, Rng::new(seed), plan.look)?;
    let result = steps(&mut world, judge, plan);
    if let Err(why) = result {
        let log = world.log.join("\n");
        // What is left cannot be brought to rest by who does not know what is wrong with it.
        std::mem::forget(world);
        return Err(format!("{log}\n=> {why}"));
    }
    world.retire();
    Ok(())
}

fn steps(world: &mut World<'_>, judge: &Judge<'_>, plan: Plan) -> Result<(), String> {
    hold_something(world);
    for _ in 0..plan.steps {
        step(world, judge, plan)?;
    }
    world.rig.control.heal();
    world.compare()?;
    world.reopen(End::Killed)?;
    world.reopen(End::Cut)?;
    world.compare()?;
    world.damage()?;
    world.reopen(End::Clean)
}

fn step(world: &mut World<'_>, judge: &Judge<'_>, plan: Plan) -> Result<(), String> {
    let queue = world.rng.index(QUEUES);
    if plan.syncs && world.rng.one_in(8) {
        world.forget();
    }
    match world.rng.below(100) {
        0..45 => {
            if world.model.under_way() < UNDER_WAY && world.rig.has_room(queue) {
                let action = draw_action(world, judge);
                world.submit(queue, action)?;
            }
            Ok(())
        }
        45..62 => world.poll(queue),
        62..78 => world.release(None, true),
        78..82 => world.compare(),
        82..85 => {
            hold_something(world);
            Ok(())
        }
        85..87 => {
            let on = world.rng.one_in(2);
            world.set_write_cache(on);
            Ok(())
        }
        87..96 if plan.faults => fault(world, plan),
        96 | 97 => world.reopen(End::Cut),
        98 => world.reopen(End::Killed),
        99 => world.reopen(End::Clean),
        _ => world.poll(queue),
    }
}

fn hold_something(world: &mut World<'_>) {
    let kinds = [Kind::Write, Kind::Sync, Kind::Deallocate, Kind::Read];
    let held: Vec<Kind> = kinds.into_iter().filter(|_| world.rng.one_in(2)).collect();
    world.log.push(format!("hold {held:?}"));
    world.rig.control.hold(&held);
    let mode = match world.rng.below(4) {
        0 => Deallocation::Keeps,
        1 => Deallocation::ZeroesSome(world.rng.bits()),
        _ => Deallocation::Zeroes,
    };
    world.rig.control.set_deallocation(mode);
}

fn draw_action(world: &mut World<'_>, judge: &Judge<'_>) -> Action {
    let zones = u64::from(judge.base.shape.zones);
    // The first zones are busier than the others.
    let zone = world.rng.below(zones).min(world.rng.below(zones));
    let zone = u32::try_from(zone).expect("few zones");
    let room = judge
        .base
        .shape
        .capacity
        .saturating_sub(world.model.next_place(zone));
    let count = world.rng.range(1, LONGEST).min(room.max(1));
    match world.rng.below(100) {
        0..38 => Action::Append {
            zone,
            stamps: world.stamps(zone, count),
        },
        38..58 => Action::Write {
            zone,
            at: world
                .model
                .next_place(zone)
                .min(judge.base.shape.capacity - count),
            stamps: world.stamps(zone, count),
        },
        58..74 => Action::Flush,
        74..78 => Action::Finish(zone),
        78..85 => Action::Reset(zone),
        85 => Action::ResetAll,
        86..90 => Action::Open(zone),
        90..94 => Action::Close(zone),
        _ => Action::Read { zone },
    }
}

fn fault(world: &mut World<'_>, plan: Plan) -> Result<(), String> {
    let errno = if world.rng.one_in(3) {
        libc::ENOSPC
    } else {
        libc::EIO
    };
    let nth = world.rng.range(1, 3);
    match world.rng.below(12) {
        0 | 1 => return world.release(Some(errno), plan.syncs),
        2 => world.inject(Kind::Write, nth, Fault::Fail(errno)),
        3 | 4 => {
            let kept = KEPT[world.rng.index(KEPT.len())];
            world.inject(Kind::Write, nth, Fault::Tear(errno, kept));
        }
        5 => world.inject(Kind::MetadataWrite, nth, Fault::Fail(errno)),
        6 => {
            let kept = KEPT[world.rng.index(KEPT.len())];
            world.inject(Kind::MetadataWrite, nth, Fault::Tear(errno, kept));
        }
        7 if plan.syncs => world.inject(Kind::Sync, nth, Fault::Fail(libc::EIO)),
        8 => world.forget(),
        9 => world.inject(Kind::Read, nth, Fault::Fail(libc::EIO)),
        10 => world.inject(Kind::Deallocate, 1, Fault::Fail(libc::EOPNOTSUPP)),
        _ => {
            world.log.push("healed".into());
            world.rig.control.heal();
        }
    }
    Ok(())
}
