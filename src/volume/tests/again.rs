//! Operations that a killed daemon had begun and not answered, brought again to the next one.

use super::*;
use crate::geometry::{Blocks, Generation};
use crate::zone::Change;

/// An operation as a front-end keeps it.
struct Kept {
    command: Command,
    memory: Memory,
}

impl Disk {
    fn keep(&mut self, queue: usize, command: Command, data: Vec<u8>) -> Kept {
        let memory = self.start(queue, command, data);
        // A batch of its own each, or neighbours would be one write.
        self.poll();
        Kept { command, memory }
    }

    fn start_again(&mut self, queue: usize, kept: &Kept) -> Memory {
        let intent = kept.memory.intent.get();
        let bytes = kept.memory.bytes.borrow().clone();
        let memory = Memory::new(self.next, bytes);
        self.next += 1;
        self.channels[queue].start_again(kept.command, memory.clone(), intent);
        self.poll();
        memory
    }
}

/// The disk after a kill, told what will come again.
fn reopened(disk: Disk, kept: &[Kept]) -> Disk {
    let disk = Disk::open(disk.killed());
    let intents = kept.iter().filter_map(|kept| kept.memory.intent.get());
    disk.volume().expect(intents);
    disk
}

fn append(zone: u32) -> Command {
    Command::Append(ZoneIndex(zone), BLOCK)
}

/// Six appends of both queues, of which the first `written` reached the medium.
fn appends_cut_off(written: usize) -> (Disk, Vec<Kept>) {
    let mut disk = Disk::new();
    let control = disk.medium.control();
    control.hold(&[Kind::Write]);
    let kept: Vec<Kept> = (0..6)
        .map(|i| disk.keep(i % 2, append(1), blocks(i as u8 + 1, 1)))
        .collect();
    for op in control.held().iter().take(written) {
        control.release(op.id);
    }
    disk.poll();
    (disk, kept)
}

fn check_zone(disk: &mut Disk, ends: &[Outcome]) {
    for (i, end) in ends.iter().enumerate() {
        let sector = Sector(APPENDED_1 + i as u64 * BLOCK / 512);
        assert_eq!(*end, Outcome::Appended(sector), "append {i}");
    }
    let zone = disk.read_zone(1);
    for i in 0..ends.len() {
        assert_eq!(
            zone[i * 4096..][..4096],
            blocks(i as u8 + 1, 1),
            "block {i}"
        );
    }
    assert!(zone[ends.len() * 4096..].iter().all(|&byte| byte == 0));
}

#[test]
fn appends_are_done_once_at_the_place_they_had_whoever_brings_them_in_whatever_order() {
    for written in 0..6 {
        let (disk, kept) = appends_cut_off(written);
        let mut disk = reopened(disk, &kept);
        let newcomer = disk.start(0, append(1), blocks(7, 1));
        let mut again: Vec<(usize, Memory)> = kept
            .iter()
            .enumerate()
            .rev()
            .map(|(i, kept)| (i, disk.start_again(1 - i % 2, kept)))
            .collect();
        again.sort_by_key(|&(i, _)| i);
        let mut ends: Vec<Outcome> = again
            .iter()
            .map(|(_, memory)| disk.finish(memory))
            .collect();
        ends.push(disk.finish(&newcomer));
        check_zone(&mut disk, &ends);
        assert!(!disk.volume().expects());
    }
}

#[test]
fn what_the_record_counts_is_not_written_again() {
    let (disk, kept) = appends_cut_off(6);
    let mut disk = reopened(disk, &kept);
    assert!(!disk.volume().expects(), "all of it counts");
    let before = disk.medium.control().counts();
    let again: Vec<Memory> = kept.iter().map(|kept| disk.start_again(0, kept)).collect();
    let ends: Vec<Outcome> = again.iter().map(|memory| disk.finish(memory)).collect();
    assert_eq!(disk.medium.control().counts(), before);
    check_zone(&mut disk, &ends);
}

#[test]
fn a_second_kill_in_the_middle_of_it_changes_nothing() {
    let (disk, kept) = appends_cut_off(2);
    let mut disk = reopened(disk, &kept);
    let control = disk.medium.control();
    control.hold(&[Kind::Write]);
    for (i, kept) in kept.iter().enumerate().skip(1) {
        disk.start_again(i % 2, kept);
    }
    if let Some(first) = control.held().first() {
        control.release(first.id);
    }
    disk.poll();
    let mut disk = reopened(disk, &kept);
    let again: Vec<Memory> = kept.iter().map(|kept| disk.start_again(0, kept)).collect();
    let ends: Vec<Outcome> = again.iter().map(|memory| disk.finish(memory)).collect();
    check_zone(&mut disk, &ends);
}

#[test]
fn a_zone_waits_for_what_does_not_come_until_it_is_given_up() {
    let (disk, kept) = appends_cut_off(0);
    let mut disk = reopened(disk, &kept);
    let first = disk.start_again(0, &kept[0]);
    assert!(matches!(disk.finish(&first), Outcome::Appended(_)));
    // The second of them never comes.
    let third = disk.start_again(1, &kept[2]);
    let newcomer = disk.start(0, append(1), blocks(9, 1));
    let reset = disk.start(
        1,
        Command::Zone(ZoneAction::Reset, ZoneIndex(1)),
        Vec::new(),
    );
    for memory in [&third, &newcomer, &reset] {
        assert_eq!(disk.outcome(memory), None);
    }
    let elsewhere = disk.append(2, &blocks(1, 1));
    assert_eq!(elsewhere, Sector(2 * APPENDED_1));
    let mut places = Vec::new();
    disk.volume().give_up(|given_up| places = given_up.to_vec());
    assert_eq!(places, [1, 2, 3, 4, 5].map(|at| (ZoneIndex(1), Blocks(at))));
    assert_eq!(disk.finish(&third), Outcome::Done(Status::IoError, 0));
    let sector = Sector(APPENDED_1 + BLOCK / 512);
    assert_eq!(disk.finish(&newcomer), Outcome::Appended(sector));
    assert_eq!(disk.finish(&reset), Outcome::Done(Status::Ok, 0));
}

#[test]
fn who_leaves_while_others_are_waited_for_holds_up_nothing_and_comes_again() {
    let (disk, kept) = appends_cut_off(0);
    let mut disk = reopened(disk, &kept);
    let third = disk.start_again(1, &kept[2]);
    disk.start(1, append(1), blocks(9, 1));
    assert_eq!(disk.outcome(&third), None);
    assert!(disk.channels[1].leave_waiting() && disk.channels[1].is_idle());
    let volume = Arc::clone(disk.volume());
    disk.channels[1] = channel(&volume, 1, 64).unwrap();
    let again: Vec<Memory> = kept.iter().map(|kept| disk.start_again(1, kept)).collect();
    let ends: Vec<Outcome> = again.iter().map(|memory| disk.finish(memory)).collect();
    check_zone(&mut disk, &ends);
    assert!(!disk.channels[1].leave_waiting(), "nothing is waited for");
}

#[test]
fn one_that_fails_once_more_takes_those_behind_it_along() {
    let (disk, kept) = appends_cut_off(0);
    let mut disk = reopened(disk, &kept);
    let control = disk.medium.control();
    control.fail_nth(Kind::Write, 1, Fault::Fail(libc::EIO));
    let again: Vec<Memory> = kept.iter().map(|kept| disk.start_again(0, kept)).collect();
    for memory in &again {
        assert_eq!(disk.finish(memory), Outcome::Done(Status::IoError, 0));
    }
    control.heal();
    assert!(!disk.volume().expects());
    assert_eq!(disk.append(1, &blocks(1, 1)), Sector(APPENDED_1));
}

#[test]
fn a_reset_that_was_done_does_not_take_what_was_written_since() {
    let mut disk = Disk::new();
    disk.append(1, &blocks(1, 3));
    let reset = Command::Zone(ZoneAction::Reset, ZoneIndex(1));
    let kept = disk.keep(0, reset, Vec::new());
    let memory = kept.memory.clone();
    assert_eq!(disk.finish(&memory), Outcome::Done(Status::Ok, 0));
    let data = blocks(2, 2);
    disk.append(1, &data);
    let mut disk = reopened(disk, std::slice::from_ref(&kept));
    let again = disk.start_again(1, &kept);
    assert_eq!(disk.finish(&again), Outcome::Done(Status::Ok, 0));
    assert_eq!(disk.read_zone(1)[..data.len()], data);
}

#[test]
fn so_with_a_reset_of_all_zones_and_the_writes_before_it_are_answered_too() {
    let (mut disk, kept) = appends_cut_off(6);
    disk.medium.control().hold(&[]);
    for kept in &kept {
        assert!(matches!(disk.finish(&kept.memory), Outcome::Appended(_)));
    }
    disk.append(3, &blocks(1, 1));
    let reset = disk.keep(1, Command::ResetAll, Vec::new());
    let memory = reset.memory.clone();
    assert_eq!(disk.finish(&memory), Outcome::Done(Status::Ok, 0));
    let data = blocks(2, 2);
    disk.append(1, &data);
    disk.append(3, &data);
    let mut disk = reopened(disk, &kept);
    for kept in kept.iter().chain([&reset]) {
        let again = disk.start_again(0, kept);
        let end = disk.finish(&again);
        assert!(!matches!(end, Outcome::Done(status, _) if status != Status::Ok));
    }
    for zone in [1, 3] {
        assert_eq!(disk.read_zone(zone)[..data.len()], data);
    }
}

/// Of a reset that was noted and not begun, `command` is done by the next daemon.
fn check_reset_only_begun(command: Command) {
    let mut disk = Disk::new();
    disk.append(1, &blocks(1, 3));
    let memory = Memory::new(99, Vec::new());
    memory.intend(Intent {
        zone: ZoneIndex(1),
        generation: disk.record(1).generation,
        change: Change::Reset,
    });
    let kept = Kept { command, memory };
    let mut disk = reopened(disk, std::slice::from_ref(&kept));
    let again = disk.start_again(0, &kept);
    assert_eq!(disk.finish(&again), Outcome::Done(Status::Ok, 0));
    assert_eq!(disk.state(1), ZoneState::Empty);
}

#[test]
fn a_reset_of_all_zones_that_was_only_begun_is_done() {
    check_reset_only_begun(Command::ResetAll);
}

#[test]
fn a_reset_that_was_only_begun_is_done() {
    check_reset_only_begun(Command::Zone(ZoneAction::Reset, ZoneIndex(1)));
}

#[test]
fn a_finish_and_a_close_that_were_done_are_answered() {
    let mut disk = Disk::new();
    disk.append(1, &blocks(1, 3));
    assert_eq!(disk.zone(ZoneAction::Open, 2), Status::Ok);
    let commands = [(ZoneAction::Finish, 1), (ZoneAction::Close, 2)];
    let kept = commands.map(|(action, zone)| {
        let kept = disk.keep(0, Command::Zone(action, ZoneIndex(zone)), Vec::new());
        let memory = kept.memory.clone();
        assert_eq!(disk.finish(&memory), Outcome::Done(Status::Ok, 0));
        kept
    });
    let mut disk = reopened(disk, &kept);
    for kept in &kept {
        let again = disk.start_again(0, kept);
        assert_eq!(disk.finish(&again), Outcome::Done(Status::Ok, 0));
    }
    assert_eq!(
        (disk.state(1), disk.state(2)),
        (ZoneState::Full, ZoneState::Empty)
    );
}

#[test]
fn intents_that_fit_nothing_are_harmless() {
    let (disk, kept) = appends_cut_off(1);
    let good = kept[1].memory.intent.get().unwrap();
    let mut disk = reopened(disk, &[]);
    let write = |zone, generation, start, count| Intent {
        zone: ZoneIndex(zone),
        generation: Generation(generation),
        change: Change::Write {
            start: Blocks(start),
            count: Blocks(count),
        },
    };
    let generation = good.generation.0;
    let forged = [
        write(0, 0, 0, 1),
        write(u32::MAX, 0, 0, 1),
        write(1, generation + 1, 1, 1),
        write(1, generation, u64::MAX, u64::MAX),
        write(1, generation, 47, 2),
        write(1, generation, 0, 1),
        write(1, generation + 1, 0, 1),
    ];
    disk.volume().expect(forged.into_iter());
    assert!(!disk.volume().expects());
    for intent in forged.into_iter().take(5) {
        let kept = Kept {
            command: append(1),
            memory: Memory::new(98, blocks(1, 1)),
        };
        kept.memory.intend(intent);
        let again = disk.start_again(0, &kept);
        assert!(matches!(disk.finish(&again), Outcome::Done(status, 0) if status != Status::Ok));
    }
    // Of another request than the one that is brought.
    let kept = Kept {
        command: Command::Append(ZoneIndex(2), BLOCK),
        memory: Memory::new(97, blocks(1, 1)),
    };
    kept.memory.intend(good);
    let again = disk.start_again(0, &kept);
    assert_eq!(disk.finish(&again), Outcome::Done(Status::IoError, 0));
    assert_eq!(
        disk.append(1, &blocks(2, 1)),
        Sector(APPENDED_1 + BLOCK / 512)
    );
}
