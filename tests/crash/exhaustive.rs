//! Every history of up to three operations after a flush.

use crate::judge::Judge;
use crate::model::{Action, End};
use crate::rng::Rng;
use crate::world::{Look, World};
use zonevault::store::mem::Kind;

/// Operations of a history after the flush.
pub(crate) const LENGTH: u32 = 3;

/// One step of a history.
#[derive(Clone, Copy, Debug)]
enum Step {
    Append(u32, u64),
    Write(u32, u64),
    /// Two appends of a zone in flight, on two queues; the younger one ends first.
    Pair(u32),
    /// An append that is still in flight at the end.
    Hanging(u32),
    Flush,
    Finish(u32),
    Reset(u32),
    ResetAll,
    Open(u32),
    Close(u32),
    CacheOff,
    Killed,
    Closed,
}

const STEPS: [Step; 15] = [
    Step::Append(0, 1),
    Step::Append(0, 2),
    Step::Append(1, 1),
    Step::Write(0, 1),
    Step::Pair(0),
    Step::Hanging(0),
    Step::Flush,
    Step::Finish(0),
    Step::Reset(0),
    Step::ResetAll,
    Step::Open(2),
    Step::Close(0),
    Step::CacheOff,
    Step::Killed,
    Step::Closed,
];

/// How many histories there are.
pub(crate) fn count() -> u64 {
    (STEPS.len() as u64).pow(LENGTH)
}

/// Runs history `number`: flushed data in one zone, then [`LENGTH`] steps. The moments of the last one are looked at;
/// those before it belong to shorter histories, which are the beginnings of others: number 0 to 14 look at the first
/// step too, and so on.
pub(crate) fn run(judge: &Judge<'_>, number: u64, look: Look) -> Result<(), String> {
    let mut world = World::new(judge, Rng::new(number), look)?;
    let result = steps(&mut world, number);
    if let Err(why) = result {
        let log = world.log.join("\n");
        std::mem::forget(world);
        return Err(format!("{log}\n=> {why}"));
    }
    world.retire();
    Ok(())
}

fn steps(world: &mut World<'_>, number: u64) -> Result<(), String> {
    world.looking = false;
    let stamps = world.stamps(0, 2);
    world.submit(0, Action::Append { zone: 0, stamps })?;
    world.settle()?;
    world.submit(0, Action::Flush)?;
    world.settle()?;
    let choices = STEPS.len() as u64;
    for position in 0..LENGTH {
        // The first step varies slowest, so a prefix is looked at once: when all after it are number 0.
        let rest = choices.pow(LENGTH - 1 - position);
        let index = usize::try_from(number / rest % choices).expect("below the number of steps");
        world.looking = number.is_multiple_of(rest);
        step(world, STEPS[index])?;
    }
    world.looking = false;
    world.rig.control.hold(&[]);
    world.compare()
}

fn step(world: &mut World<'_>, step: Step) -> Result<(), String> {
    world.log.push(format!("{step:?}"));
    let action = match step {
        Step::Append(zone, count) => Action::Append {
            zone,
            stamps: world.stamps(zone, count),
        },
        Step::Write(zone, count) => Action::Write {
            zone,
            at: world.model.next_place(zone),
            stamps: world.stamps(zone, count),
        },
        Step::Pair(zone) => return pair(world, zone),
        Step::Hanging(zone) => {
            world.rig.control.hold(&[Kind::Write]);
            let stamps = world.stamps(zone, 1);
            world.submit(1, Action::Append { zone, stamps })?;
            world.poll(1)?;
            world.rig.control.hold(&[]);
            return world.glance();
        }
        Step::Flush => Action::Flush,
        Step::Finish(zone) => Action::Finish(zone),
        Step::Reset(zone) => Action::Reset(zone),
        Step::ResetAll => Action::ResetAll,
        Step::Open(zone) => Action::Open(zone),
        Step::Close(zone) => Action::Close(zone),
        Step::CacheOff => {
            world.set_write_cache(false);
            return Ok(());
        }
        Step::Killed => return world.reopen(End::Killed),
        Step::Closed => return world.reopen(End::Clean),
    };
    world.submit(0, action)?;
    // What hangs goes on hanging, and whoever waits for it.
    for _ in 0..4 {
        world.poll(0)?;
    }
    world.glance()
}

fn pair(world: &mut World<'_>, zone: u32) -> Result<(), String> {
    world.rig.control.hold(&[Kind::Write]);
    for queue in 0..2 {
        let stamps = world.stamps(zone, 1);
        world.submit(queue, Action::Append { zone, stamps })?;
        world.poll(queue)?;
    }
    world.glance()?;
    world.rig.control.hold(&[]);
    let held = world.rig.control.held();
    for op in held.iter().rev().take(2) {
        world.rig.control.release(op.id);
        world.poll(1)?;
        world.poll(0)?;
        world.glance()?;
    }
    Ok(())
}
