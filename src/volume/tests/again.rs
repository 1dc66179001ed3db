//! Operations that a killed daemon had begun and not answered, brought again to the next one.

use super::*;
use crate::geometry::{Blocks, Generation};
use crate::zone::Change;

/// An operation as a front-end keeps it.
struct Kept {
    command: Command,
    memory: Memory,
}

impl Kept {
    fn intent(&self) -> Option<Intent> {
        self.memory.noted.lock().intent
    }
}

impl Disk {
    /// A front-end has come that keeps these.
    fn take_back<'a>(&mut self, kept: impl IntoIterator<Item = &'a Kept>, epoch: Epoch) {
        let notes = kept.into_iter().map(|kept| Arc::clone(&kept.memory.noted));
        self.notes = Arc::new(Notes(Mutex::new(notes.collect())));
        self.volume().expect(&self.notes, epoch);
    }

    fn keep(&mut self, queue: usize, command: Command, data: Vec<u8>) -> Kept {
        let memory = self.start(queue, command, data);
        // A batch of its own each, or neighbours would be one write.
        self.poll();
        Kept { command, memory }
    }

    fn start_again(&mut self, queue: usize, kept: &Kept) -> Memory {
        let intent = kept.intent();
        let bytes = kept.memory.bytes.borrow().clone();
        let memory = Memory {
            noted: Arc::clone(&kept.memory.noted),
            ..Memory::new(self.next, bytes)
        };
        self.next += 1;
        self.channels[queue].start_again(kept.command, memory.clone(), intent);
        self.poll();
        memory
    }
}

/// The disk after a kill, told what will come again.
fn reopened(disk: Disk, kept: &[Kept]) -> Disk {
    let epoch = disk.volume().identity().epoch;
    let mut disk = Disk::open(disk.killed());
    disk.take_back(kept, epoch);
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
    disk.volume().give_up();
    let spoiled = kept.iter().map(|kept| kept.memory.noted.lock().spoiled);
    let given_up = [false, true, true, true, true, true];
    assert!(spoiled.eq(given_up), "whose turn had come, that was not");
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
fn who_waits_for_one_that_is_refused_waits_no_longer() {
    let (disk, kept) = appends_cut_off(0);
    let mut disk = reopened(disk, &kept[2..3]);
    let newcomer = disk.start(0, append(1), blocks(1, 1));
    // What lay before it does not come.
    let again = disk.start_again(1, &kept[2]);
    assert_eq!(disk.finish(&again), Outcome::Done(Status::IoError, 0));
    let end = disk.finish(&newcomer);
    check_zone(&mut disk, &[end]);
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
fn check_reset_only_begun(command: Command, change: Change) {
    let mut disk = Disk::new();
    disk.append(1, &blocks(1, 3));
    let memory = Memory::new(99, Vec::new());
    memory.intend(Intent {
        zone: ZoneIndex(1),
        generation: disk.record(1).generation,
        change,
    });
    let kept = Kept { command, memory };
    let mut disk = reopened(disk, std::slice::from_ref(&kept));
    let again = disk.start_again(0, &kept);
    assert_eq!(disk.finish(&again), Outcome::Done(Status::Ok, 0));
    assert_eq!(disk.state(1), ZoneState::Empty);
}

#[test]
fn a_reset_of_all_zones_that_was_only_begun_is_done() {
    check_reset_only_begun(Command::ResetAll, Change::ResetAll);
}

#[test]
fn a_reset_that_was_only_begun_is_done() {
    let reset = Command::Zone(ZoneAction::Reset, ZoneIndex(1));
    check_reset_only_begun(reset, Change::Reset);
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
    let good = kept[1].intent().unwrap();
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
    let forged = forged.map(|intent| {
        let memory = Memory::new(98, blocks(1, 1));
        memory.intend(intent);
        let command = append(1);
        Kept { command, memory }
    });
    let epoch = disk.volume().identity().epoch;
    disk.take_back(&forged, epoch);
    assert!(!disk.volume().expects());
    let spoiled = forged.iter().map(|kept| kept.memory.noted.lock().spoiled);
    assert!(spoiled.eq([true, true, true, true, true, false, true]));
    for kept in forged.iter().take(5) {
        let again = disk.start_again(0, kept);
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

/// An append that fails on one queue before its answer is given, and another that gets its place.
fn failed_and_overtaken() -> (Disk, Kept, Kept) {
    let mut disk = Disk::new();
    let control = disk.medium.control();
    control.hold(&[Kind::Write]);
    let failed = disk.keep(0, append(1), blocks(1, 1));
    let held = control.held();
    control.release_failing(held[0].id, libc::EIO);
    control.hold(&[]);
    disk.poll();
    let other = disk.keep(1, append(1), blocks(2, 1));
    let memory = other.memory.clone();
    let end = disk.finish(&memory);
    assert_eq!(end, Outcome::Appended(Sector(APPENDED_1)), "the same place");
    (disk, failed, other)
}

#[test]
fn a_write_that_failed_is_not_acknowledged_for_what_another_wrote_at_its_place() {
    let (disk, failed, other) = failed_and_overtaken();
    assert_eq!(
        failed.intent(),
        other.intent(),
        "neither was answered before the kill"
    );
    let kept = [failed, other];
    let mut disk = reopened(disk, &kept);
    let ends = [0, 1].map(|i| {
        let again = disk.start_again(i, &kept[i]);
        disk.finish(&again)
    });
    let counted = Outcome::Appended(Sector(APPENDED_1));
    assert_eq!(ends, [Outcome::Done(Status::IoError, 0), counted]);
    // Nor by the one after, if that one is killed too.
    let mut disk = reopened(disk, &kept);
    let again = disk.start_again(1, &kept[0]);
    assert_eq!(disk.finish(&again), Outcome::Done(Status::IoError, 0));
}

#[test]
fn of_those_that_fail_with_it_none_is_acknowledged_either() {
    let (disk, kept) = appends_cut_off(0);
    let mut disk = reopened(disk, &kept);
    let control = disk.medium.control();
    control.hold(&[Kind::Write]);
    // The first fails; some wait for their turn, others have not come.
    let waiting = disk.start_again(1, &kept[2]);
    disk.start_again(0, &kept[0]);
    let held = control.held();
    control.release_failing(held[0].id, libc::EIO);
    control.hold(&[]);
    assert_eq!(disk.finish(&waiting), Outcome::Done(Status::IoError, 0));
    assert!(!disk.volume().expects());
    disk.append(1, &blocks(9, 6));
    let mut disk = reopened(disk, &kept);
    for (i, kept) in kept.iter().enumerate() {
        let again = disk.start_again(0, kept);
        let end = disk.finish(&again);
        assert_eq!(end, Outcome::Done(Status::IoError, 0), "append {i}");
    }
    assert_eq!(disk.read_zone(1)[..6 * 4096], blocks(9, 6));
}

#[test]
fn one_that_was_given_up_while_its_queue_had_read_its_intent_is_not_acknowledged() {
    let (disk, kept) = appends_cut_off(0);
    let mut disk = reopened(disk, &kept);
    disk.volume().give_up();
    disk.append(1, &blocks(9, 6));
    // The queue does not look at the region again: it brings what it has read there before.
    let again = disk.start_again(0, &kept[0]);
    assert_eq!(disk.finish(&again), Outcome::Done(Status::IoError, 0));
}

#[test]
fn one_that_is_refused_when_it_comes_again_is_not_acknowledged_later() {
    let (disk, kept) = appends_cut_off(0);
    // What lay before it does not come, as of writes that failed if the daemon was killed in between.
    let mut disk = reopened(disk, &kept[1..2]);
    let newcomer = disk.start(1, append(1), blocks(9, 1));
    assert_eq!(disk.outcome(&newcomer), None);
    let again = disk.start_again(0, &kept[1]);
    assert_eq!(disk.finish(&again), Outcome::Done(Status::IoError, 0));
    let end = disk.finish(&newcomer);
    assert_eq!(
        end,
        Outcome::Appended(Sector(APPENDED_1)),
        "none is waited for"
    );
    disk.append(1, &blocks(9, 6));
    let mut disk = reopened(disk, &kept[1..2]);
    let again = disk.start_again(0, &kept[1]);
    assert_eq!(disk.finish(&again), Outcome::Done(Status::IoError, 0));
}

#[test]
fn what_another_wrote_before_the_front_end_came_is_not_taken_for_its_own() {
    let (disk, kept) = appends_cut_off(1);
    let epoch = disk.volume().identity().epoch;
    let mut disk = Disk::open(disk.killed());
    disk.append(1, &blocks(9, 6));
    disk.take_back(&kept, epoch);
    for kept in &kept {
        let again = disk.start_again(0, kept);
        assert_eq!(disk.finish(&again), Outcome::Done(Status::IoError, 0));
    }
    // Nor when it comes once more, which this daemon has seen.
    let epoch = disk.volume().identity().epoch;
    disk.take_back(&kept, epoch);
    let again = disk.start_again(0, &kept[1]);
    assert_eq!(disk.finish(&again), Outcome::Done(Status::IoError, 0));
}

/// An append that counted and was not answered, a reset of its zone since, and an append to the next life that has the
/// same place and did not reach the medium.
fn one_place_in_two_lives() -> (Disk, Kept, Kept) {
    let mut disk = Disk::new();
    let old = disk.keep(0, append(1), blocks(1, 1));
    let memory = old.memory.clone();
    assert_eq!(disk.finish(&memory), Outcome::Appended(Sector(APPENDED_1)));
    assert_eq!(disk.zone(ZoneAction::Reset, 1), Status::Ok);
    disk.medium.control().hold(&[Kind::Write]);
    let new = disk.keep(1, append(1), blocks(2, 1));
    let lives = [&old, &new].map(|kept| kept.intent().unwrap());
    assert_eq!(lives[0].change, lives[1].change, "the same place");
    assert!(lives[0].generation < lives[1].generation);
    (disk, old, new)
}

#[test]
fn an_append_from_before_a_reset_does_not_use_up_the_turn_of_the_one_at_its_place_since() {
    let (disk, old, new) = one_place_in_two_lives();
    let kept = [old, new];
    let mut disk = reopened(disk, &kept);
    let newcomer = disk.start(0, append(1), blocks(3, 1));
    let old = disk.start_again(0, &kept[0]);
    assert_eq!(disk.finish(&old), Outcome::Appended(Sector(APPENDED_1)));
    assert_eq!(disk.outcome(&newcomer), None, "the other comes first");
    let new = disk.start_again(1, &kept[1]);
    let ends = [new, newcomer].map(|memory| disk.finish(&memory));
    let second = Sector(APPENDED_1 + BLOCK / 512);
    let places = [Sector(APPENDED_1), second].map(Outcome::Appended);
    assert_eq!(ends, places);
    assert_eq!(
        disk.read_zone(1)[..8192],
        [blocks(2, 1), blocks(3, 1)].concat()
    );
}

#[test]
fn one_from_before_a_reset_that_is_not_to_be_trusted_does_not_get_the_place_of_the_one_since() {
    let (disk, old, new) = one_place_in_two_lives();
    let kept = [old, new];
    let mut disk = reopened(disk, &kept);
    kept[0].memory.disown();
    let old = disk.start_again(0, &kept[0]);
    assert_eq!(disk.finish(&old), Outcome::Done(Status::IoError, 0));
    let new = disk.start_again(1, &kept[1]);
    assert_eq!(disk.finish(&new), Outcome::Appended(Sector(APPENDED_1)));
    assert_eq!(disk.read_zone(1)[..4096], blocks(2, 1));
}

#[test]
fn one_from_before_a_reset_is_answered_although_the_one_at_its_place_since_is_given_up() {
    let (disk, old, new) = one_place_in_two_lives();
    let kept = [old, new];
    let mut disk = reopened(disk, &kept);
    disk.volume().give_up();
    let ends = kept.each_ref().map(|kept| {
        let again = disk.start_again(0, kept);
        disk.finish(&again)
    });
    let failed = Outcome::Done(Status::IoError, 0);
    assert_eq!(ends, [Outcome::Appended(Sector(APPENDED_1)), failed]);
}

/// A RESET_ALL of which nothing but the intent is there.
fn reset_all_intended(disk: &Disk) -> Kept {
    let memory = Memory::new(99, Vec::new());
    memory.intend(Intent {
        zone: ZoneIndex(3),
        generation: disk.record(3).generation,
        change: Change::ResetAll,
    });
    let command = Command::ResetAll;
    Kept { command, memory }
}

/// Zones 1 and 3 hold something, and of a RESET_ALL the first part was done before the kill.
fn reset_all_cut_off() -> (Disk, Kept) {
    let mut disk = Disk::new();
    disk.append(1, &blocks(1, 3));
    disk.append(3, &blocks(1, 3));
    let kept = reset_all_intended(&disk);
    assert_eq!(disk.zone(ZoneAction::Reset, 1), Status::Ok);
    (disk, kept)
}

#[test]
fn a_reset_of_all_zones_that_is_done_once_more_takes_nothing_that_was_acknowledged_since_the_first_time()
 {
    let (disk, kept) = reset_all_cut_off();
    let mut disk = reopened(disk, std::slice::from_ref(&kept));
    let newcomers = [1, 2, 3].map(|zone| disk.start(0, append(zone), blocks(7, 1)));
    let control = disk.medium.control();
    control.hold(&[Kind::Sync]);
    let again = disk.start_again(1, &kept);
    for memory in &newcomers {
        assert_eq!(disk.outcome(memory), None, "before all are reset");
    }
    control.hold(&[]);
    for held in control.held() {
        control.release(held.id);
    }
    assert_eq!(disk.finish(&again), Outcome::Done(Status::Ok, 0));
    for (zone, memory) in (1..).zip(&newcomers) {
        let sector = Sector(u64::from(zone) * APPENDED_1);
        assert_eq!(disk.finish(memory), Outcome::Appended(sector));
        let data = disk.read_zone(zone);
        assert_eq!(data[..4096], blocks(7, 1));
        assert!(data[4096..].iter().all(|&byte| byte == 0));
    }
    assert!(!disk.volume().expects());
}

#[test]
fn a_reset_of_all_zones_waits_for_a_write_that_was_begun_before_it() {
    let (mut disk, reset) = reset_all_cut_off();
    disk.medium.control().hold(&[Kind::Write]);
    let write = disk.keep(0, append(2), blocks(2, 1));
    let kept = [reset, write];
    let mut disk = reopened(disk, &kept);
    let reset = disk.start_again(0, &kept[0]);
    assert_eq!(disk.outcome(&reset), None);
    let write = disk.start_again(1, &kept[1]);
    let sector = Sector(2 * APPENDED_1);
    assert_eq!(disk.finish(&write), Outcome::Appended(sector));
    assert_eq!(disk.finish(&reset), Outcome::Done(Status::Ok, 0));
    for zone in [1, 2, 3] {
        assert_eq!(disk.state(zone), ZoneState::Empty);
    }
}

#[test]
fn a_reset_of_all_zones_that_was_given_up_is_not_done_later() {
    let (disk, kept) = reset_all_cut_off();
    let mut disk = reopened(disk, std::slice::from_ref(&kept));
    let newcomer = disk.start(0, append(1), blocks(7, 1));
    assert_eq!(disk.outcome(&newcomer), None);
    disk.volume().give_up();
    let end = disk.finish(&newcomer);
    assert_eq!(end, Outcome::Appended(Sector(APPENDED_1)));
    let again = disk.start_again(1, &kept);
    assert_eq!(disk.finish(&again), Outcome::Done(Status::IoError, 0));
    assert_eq!(disk.read_zone(1)[..4096], blocks(7, 1));
    assert!(kept.memory.noted.lock().spoiled && !disk.volume().expects());
}

#[test]
fn nor_one_that_comes_after_what_others_wrote() {
    let (disk, kept) = reset_all_cut_off();
    let epoch = disk.volume().identity().epoch;
    let mut disk = Disk::open(disk.killed());
    disk.append(1, &blocks(7, 1));
    disk.take_back([&kept], epoch);
    let again = disk.start_again(1, &kept);
    assert_eq!(disk.finish(&again), Outcome::Done(Status::IoError, 0));
    assert_eq!(disk.read_zone(1)[..4096], blocks(7, 1));
}

#[test]
fn a_reset_of_all_zones_that_somebody_made_up_ends() {
    let disk = Disk::new();
    let kept = reset_all_intended(&disk);
    let mut disk = reopened(disk, std::slice::from_ref(&kept));
    let again = disk.start_again(1, &kept);
    assert_eq!(disk.finish(&again), Outcome::Done(Status::Ok, 0));
    assert_eq!(disk.append(1, &blocks(1, 1)), Sector(APPENDED_1));
}

#[test]
fn a_write_made_up_for_a_conventional_zone_holds_up_no_reset_of_all_zones() {
    let disk = Disk::new();
    let reset = reset_all_intended(&disk);
    let memory = Memory::new(99, blocks(9, 1));
    memory.intend(Intent {
        zone: ZoneIndex(0),
        generation: disk.record(0).generation,
        change: Change::Write {
            start: Blocks(0),
            count: Blocks(1),
        },
    });
    let command = Command::Write(Span {
        sector: Sector(0),
        len: BLOCK,
    });
    let write = Kept { command, memory };
    // What the front-end puts into the region after it was looked at is in nobody's list.
    let mut disk = reopened(disk, std::slice::from_ref(&reset));
    let again = disk.start_again(0, &write);
    assert_eq!(disk.finish(&again), Outcome::Done(Status::IoError, 0));
    let again = disk.start_again(1, &reset);
    assert_eq!(disk.finish(&again), Outcome::Done(Status::Ok, 0));
    disk.append(1, &blocks(1, 1));
    let another = disk.start(0, Command::ResetAll, Vec::new());
    assert_eq!(disk.finish(&another), Outcome::Done(Status::Ok, 0));
    assert_eq!(disk.state(1), ZoneState::Empty);
}
