//! Histories in which a cut, a kill or a failure once cost what had been promised, or brought back
//! what was gone: each was a bug, found by a review.

use super::tagged::{CUT, tagged};
use super::*;
use crate::geometry::Blocks;
use crate::integrity::SLOT_LEN;
use crate::store::mem::Fate;
use crate::zone::RecordCopy;

fn failing_append(disk: &mut Disk, zone: u32) {
    disk.medium
        .control()
        .fail_nth(Kind::Write, 1, Fault::Fail(libc::EIO));
    let status = disk.status(Command::Append(ZoneIndex(zone), BLOCK));
    assert_eq!(status, Status::IoError);
    disk.medium.control().heal();
}

/// Flushed data is lost: the fence's record has the new `skipped` and the old `durable`.
#[test]
fn a_flush_behind_a_failed_write_keeps_its_promise() {
    let mut disk = tagged(Cipher::Aes256Gcm);
    disk.append(1, &blocks(1, 2));
    failing_append(&mut disk, 1);
    disk.flush();
    let medium = disk.medium.control().crash_with(|_| Fate::Lost);
    let disk = Disk::open_with(medium, CUT);
    assert_eq!(disk.record(1).written, Blocks(2), "flushed");
}

/// The same with writes after the fence.
#[test]
fn and_so_with_more_writes_after_the_failed_one() {
    let mut disk = tagged(Cipher::Aes256Gcm);
    disk.append(1, &blocks(1, 2));
    failing_append(&mut disk, 1);
    disk.append(1, &blocks(2, 3));
    disk.flush();
    let medium = disk.medium.control().crash_with(|_| Fate::Lost);
    let disk = Disk::open_with(medium, CUT);
    assert_eq!(disk.record(1).written, Blocks(5), "flushed");
}

/// A fence whose sync fails: the other zones' doubt is not on record; a kill heals it.
#[test]
fn a_failed_sync_of_a_fence_is_on_record_for_every_zone() {
    let mut disk = tagged(Cipher::Aes256Gcm);
    disk.append(2, &blocks(1, 3));
    let control = disk.medium.control();
    control.fail_nth(Kind::Write, 1, Fault::Fail(libc::EIO));
    control.fail_nth(Kind::Sync, 1, Fault::Fail(libc::EIO));
    let status = disk.status(Command::Append(ZoneIndex(1), BLOCK));
    assert_eq!(status, Status::IoError);
    assert_eq!(disk.status(Command::Flush), Status::IoError);
    assert_eq!(disk.state(2), ZoneState::ReadOnly, "in memory");
    let mut disk = Disk::open(disk.killed());
    let state = disk.state(2);
    let _ = disk.status(Command::Flush);
    let medium = disk.medium.control().crash_with(|_| Fate::Lost);
    let mut after = Disk::open_with(medium, CUT);
    let written = after.record(2).written;
    let read = after.status(Command::Read(span(2 * ZONE / 512, 3 * BLOCK)));
    assert_eq!(state, ZoneState::ReadOnly, "a kill does not heal it");
    assert!(written.0 == 0 || read == Status::Ok);
}

/// Slots that cannot be written while the stretches are full, and the operation that fills them
/// is itself among the failed ones.
#[test]
fn full_stretches_whose_writing_fails() {
    let mut disk = tagged(Cipher::Aes256Gcm);
    // 31 stretches: every other block is the other queue's.
    let mut ops = Vec::new();
    disk.medium.control().hold(&[Kind::Write]);
    for i in 0..31 {
        let append = Command::Append(ZoneIndex(if i < 24 { 1 } else { 3 }), BLOCK);
        ops.push(disk.start(0, append, blocks(1, 1)));
        // The other queue's slots go out at its poll; this one is not polled.
        ops.push(disk.start(1, append, blocks(2, 1)));
    }
    let Disk { channels, done, .. } = &mut disk;
    channels[1].poll(done);
    let control = disk.medium.control();
    let layout = disk.volume().layout;
    let at = layout.tag_offset(ZoneIndex(2));
    control.fail_range(
        Kind::MetadataWrite,
        at..at + 4096,
        Fault::Fail(libc::ENOSPC),
    );
    let big = Command::Append(ZoneIndex(2), 33 * BLOCK);
    ops.push(disk.start(0, big, blocks(3, 33)));
    control.hold(&[]);
    disk.poll();
    control.release_all();
    for op in &ops {
        let _ = disk.finish(op);
    }
}

fn record_bytes(disk: &Disk, copy: RecordCopy, zone: u32) -> Vec<u8> {
    let at = disk.volume().layout.record_offset(copy, ZoneIndex(zone));
    disk.medium.control().peek(at, 128)
}

/// A fence while a flush is under way: the zone is taken off the list of what is not durable.
#[test]
fn a_fence_beside_a_flush_leaves_the_zone_marked() {
    let mut disk = tagged(Cipher::Aes256Gcm);
    let control = disk.medium.control();
    disk.append(1, &blocks(1, 2));
    disk.flush();
    control.hold(&[Kind::Sync]);
    let flush = disk.start(1, Command::Flush, vec![]);
    assert_eq!(disk.outcome(&flush), None);
    disk.append(1, &blocks(2, 2));
    failing_append(&mut disk, 1);
    control.hold(&[]);
    control.release_all();
    assert_eq!(disk.finish(&flush), Outcome::Done(Status::Ok, 0));
    disk.flush();
    let durable = disk.record(1).durable;
    disk.volume().close().unwrap();
    let copies = [RecordCopy::A, RecordCopy::B].map(|copy| record_bytes(&disk, copy, 1));
    assert!(
        copies[0] == copies[1],
        "both copies alike on a clean disk; durable was {durable:?}"
    );
    assert_eq!(durable, Blocks(4), "flushed");
}

/// One copy of a record put back from an older generation: the daemon itself destroys the data.
#[test]
fn an_older_copy_of_a_record_does_not_cost_the_zone_its_data() {
    let mut disk = tagged(Cipher::Aes256Gcm);
    disk.append(1, &blocks(1, 2));
    disk.flush();
    let old = record_bytes(&disk, RecordCopy::A, 1);
    assert_eq!(disk.zone(ZoneAction::Reset, 1), Status::Ok);
    let data = blocks(7, 4);
    disk.append(1, &data);
    disk.flush();
    let (medium, volume) = (disk.medium.clone(), Arc::clone(disk.volume()));
    drop(disk);
    volume.close().unwrap();
    let at = volume.layout.record_offset(RecordCopy::A, ZoneIndex(1));
    medium.control().overwrite(at, &old);
    let mut disk = Disk::open(medium);
    assert_eq!(disk.record(1).written, Blocks(4));
    let read = disk.status(Command::Read(span(ZONE / 512, 4 * BLOCK)));
    assert_eq!(read, Status::Ok);
}

/// A sync that is given up with its channel and fails later is noticed by nobody.
#[test]
fn a_sync_that_is_given_up_counts_as_failed() {
    let mut disk = tagged(Cipher::Aes256Gcm);
    disk.append(1, &blocks(1, 2));
    let control = disk.medium.control();
    control.hold(&[Kind::Sync]);
    let _ = disk.start(0, Command::Flush, vec![]);
    disk.poll();
    control.fail_nth(Kind::Sync, 1, Fault::Fail(libc::EIO));
    let first = disk.channels.remove(0);
    // A minute: the channel gives up, and its store lets the sync fail where nobody looks.
    drop(first);
    control.hold(&[]);
    let flush = disk.start(0, Command::Flush, vec![]);
    let deadline = Instant::now() + Duration::from_secs(5);
    let outcome = loop {
        if let Some(outcome) = disk.outcome(&flush) {
            break outcome;
        }
        assert!(Instant::now() < deadline);
    };
    let medium = control.crash_with(|_| Fate::Lost);
    let after = Disk::open_with(medium, CUT);
    assert!(outcome != Outcome::Done(Status::Ok, 0) || after.record(1).written == Blocks(2));
}

/// The newest copy of a record is damaged, the daemon was killed: flushed data is overwritten.
#[test]
fn a_damaged_record_copy_of_a_killed_disk_costs_nothing_that_was_flushed() {
    let mut disk = tagged(Cipher::Aes256Gcm);
    disk.append(1, &blocks(1, 2));
    disk.flush();
    disk.append(1, &blocks(2, 5));
    disk.flush();
    disk.append(1, &blocks(3, 1));
    disk.flush();
    let sequence = |copy| {
        let bytes = record_bytes(&disk, copy, 1);
        u64::from_le_bytes(bytes[8..16].try_into().unwrap())
    };
    let newest = if sequence(RecordCopy::A) > sequence(RecordCopy::B) {
        RecordCopy::A
    } else {
        RecordCopy::B
    };
    let at = disk.volume().layout.record_offset(newest, ZoneIndex(1));
    let medium = disk.killed();
    medium.control().overwrite(at + 100, &[0x5a]);
    let disk = Disk::open(medium);
    assert!(disk.record(1).written >= Blocks(8), "flushed");
}

/// A read-only zone whose writes failed, a kill, a flush, a cut.
#[test]
fn a_read_only_zone_keeps_what_was_flushed() {
    let mut disk = tagged(Cipher::Aes256Gcm);
    disk.append(1, &blocks(1, 2));
    for _ in 0..3 {
        failing_append(&mut disk, 1);
    }
    assert_eq!(disk.state(1), ZoneState::ReadOnly);
    let mut disk = Disk::open(disk.killed());
    assert_eq!(disk.record(1).written, Blocks(2));
    disk.flush();
    let medium = disk.medium.control().crash_with(|_| Fate::Lost);
    let disk = Disk::open_with(medium, CUT);
    assert_eq!(disk.record(1).written, Blocks(2), "flushed");
}

/// RESET of a zone that a cut left empty is no erasure.
#[test]
fn a_reset_erases_also_what_a_cut_left_behind_the_write_pointer() {
    let mut disk = tagged(Cipher::Aes256Gcm);
    let data = blocks(5, 40);
    disk.append(1, &data[..16 * 4096]);
    disk.append(1, &data[16 * 4096..32 * 4096]);
    disk.append(1, &data[32 * 4096..]);
    let lost = disk.slot_at(1, 0);
    let medium = disk.medium.control().crash_with(|unsynced| {
        if unsynced.range.contains(&lost) {
            Fate::Lost
        } else {
            Fate::Kept
        }
    });
    let mut disk = Disk::open_with(medium, CUT);
    assert_eq!(disk.state(1), ZoneState::Empty);
    let before = disk.record(1);
    let at = disk.volume().layout.data_offset(ZoneIndex(1)) + 33 * BLOCK;
    let ciphertext = disk.medium.control().peek(at, 4096);
    assert_eq!(disk.zone(ZoneAction::Reset, 1), Status::Ok);
    let after = disk.record(1);
    let still = disk.medium.control().peek(at, 4096) == ciphertext;
    assert!(
        after.salt != before.salt,
        "same key after RESET; old ciphertext still there: {still}"
    );
}

impl Disk {
    fn slot_at(&self, zone: u32, block: u64) -> u64 {
        self.volume().layout.tag_offset(ZoneIndex(zone)) + block * SLOT_LEN as u64
    }
}

/// A disk whose daemon was killed with two blocks behind the write pointer on the medium.
fn killed_with_leftovers() -> MemMedium {
    for seed in 0..100 {
        let mut disk = tagged(Cipher::Aes256Gcm);
        disk.append(1, &blocks(1, 2));
        disk.flush();
        let control = disk.medium.control();
        control.hold(&[Kind::Write]);
        let _ = disk.start(0, Command::Append(ZoneIndex(1), 2 * BLOCK), blocks(9, 2));
        disk.poll();
        let at = disk.volume().layout.data_offset(ZoneIndex(1)) + 2 * BLOCK;
        let medium = control.kill_mid_flight(seed);
        let landed = medium.control().peek(at, 4096) != vec![0; 4096];
        control.hold(&[]);
        control.release_all();
        if landed {
            return medium;
        }
    }
    panic!("never landed");
}

fn damage_header(medium: &MemMedium, newest: bool) {
    let sequence = |at: u64| {
        let bytes = medium.control().peek(at + 64, 8);
        u64::from_le_bytes(bytes.try_into().unwrap())
    };
    let b_is_newest = sequence(4096) > sequence(0);
    let at = if b_is_newest == newest { 4096 } else { 0 };
    medium.control().overwrite(at + 300, &[0x77]);
}

/// Kill with writes in flight, another session, a cut and a damaged header copy: a stale block
/// stands where a new one was acknowledged.
#[test]
fn a_stale_block_is_not_taken_for_a_new_one() {
    let mut disk = Disk::open(killed_with_leftovers());
    assert_eq!(disk.record(1).written, Blocks(2));
    disk.append(1, &blocks(4, 1));
    let medium = disk.medium.control().crash_with(|_| Fate::Lost);
    damage_header(&medium, true);
    let mut disk = Disk::open_with(medium, CUT);
    let read = disk.read(ZONE / 512 + 2 * 8, BLOCK);
    assert!(
        read != blocks(9, 2)[..4096],
        "a block of a write that nobody acknowledged"
    );
}

/// The same leftovers, a session that is closed in order, and rot in one copy of the header.
#[test]
fn damage_to_one_header_copy_of_a_clean_disk_moves_no_write_pointer() {
    for newest in [false, true] {
        let disk = Disk::open(killed_with_leftovers());
        assert_eq!(disk.record(1).written, Blocks(2));
        let (medium, volume) = (disk.medium.clone(), Arc::clone(disk.volume()));
        drop(disk);
        volume.close().unwrap();
        damage_header(&medium, newest);
        let disk = Disk::open(medium);
        assert_eq!(disk.record(1).written, Blocks(2), "newest {newest}");
    }
}

/// What a queue that was given up waited for is told to the next one with its number.
#[test]
fn mail_of_a_dead_channel_acknowledges_nothing_of_the_next() {
    let mut disk = tagged(Cipher::Aes256Gcm);
    let control = disk.medium.control();
    control.hold(&[Kind::Write]);
    let append = |zone| Command::Append(ZoneIndex(zone), BLOCK);
    let head = disk.start(0, append(1), blocks(1, 1));
    disk.poll();
    let heads = control.held();
    control.hold(&[]);
    let _ = disk.start(1, append(1), blocks(2, 1));
    disk.poll();
    let volume = Arc::clone(disk.volume());
    // A minute.
    drop(disk.channels.remove(1));
    disk.channels.push(channel(&volume, 1, 64).unwrap());
    control.hold(&[Kind::Write]);
    let other = disk.start(0, append(2), blocks(3, 1));
    disk.poll();
    control.hold(&[]);
    let behind = disk.start(1, append(2), blocks(4, 1));
    disk.poll();
    assert_eq!(disk.outcome(&behind), None, "in line behind the other");
    control.release(heads[0].id);
    for _ in 0..5 {
        disk.poll();
    }
    let outcome = disk.outcome(&behind);
    let written = disk.record(2).written;
    control.release_all();
    let _ = (disk.finish(&head), disk.finish(&other));
    assert_eq!(outcome, None, "acknowledged at write pointer {written:?}");
}

/// Giving up does not wait for the medium that does not answer.
#[test]
fn a_zone_that_turns_read_only_needs_no_fence() {
    let mut disk = tagged(Cipher::Aes256Gcm);
    let control = disk.medium.control();
    control.hold(&[Kind::Write]);
    let _ = disk.start(0, Command::Append(ZoneIndex(1), BLOCK), blocks(1, 1));
    disk.poll();
    let before = control.counts().syncs;
    drop(disk.channels.remove(0));
    assert_eq!(
        control.counts().syncs,
        before,
        "a sync of a medium that is stuck"
    );
}

/// Untagged: a flush that ends while the zone's record waits to be written for another reason.
#[test]
fn a_flush_counts_also_for_a_zone_that_was_closed_to_make_room_meanwhile() {
    for cipher in [Cipher::Aes256Xts, Cipher::Aes256Gcm] {
        let mut disk = tagged(cipher);
        for zone in 1..=3 {
            disk.append(zone, &blocks(1, 4));
        }
        let control = disk.medium.control();
        control.hold(&[Kind::Sync]);
        let flush = disk.start(0, Command::Flush, vec![]);
        disk.poll();
        control.hold(&[]);
        control.release_all();
        // The sync is over, and nobody has looked yet; this closes zone 1.
        let _ = disk.start(0, Command::Append(ZoneIndex(4), BLOCK), blocks(2, 1));
        assert_eq!(disk.finish(&flush), Outcome::Done(Status::Ok, 0));
        let medium = disk.medium.control().crash_with(|_| Fate::Lost);
        let disk = Disk::open(forget(medium));
        let written = [1, 2, 3].map(|zone| disk.record(zone).written.0);
        assert_eq!(written, [4, 4, 4], "{cipher}: flushed");
    }
}

fn forget(medium: MemMedium) -> MemMedium {
    super::forget_boot(medium)
}

/// A disk in doubt of this boot, opened as after a power cut: tags in the page cache prove nothing.
#[test]
fn after_power_cut_does_not_heal_a_doubt() {
    let mut disk = tagged(Cipher::Aes256Gcm);
    disk.append(1, &blocks(1, 3));
    disk.medium
        .control()
        .fail_nth(Kind::Sync, 1, Fault::Fail(libc::EIO));
    assert_eq!(disk.status(Command::Flush), Status::IoError);
    let mut disk = Disk::open_with(disk.killed(), CUT);
    disk.flush();
    let medium = disk.medium.control().crash_with(|_| Fate::Lost);
    let mut after = Disk::open_with(medium, CUT);
    let read = after.status(Command::Read(span(ZONE / 512, 3 * BLOCK)));
    assert_eq!(
        read,
        Status::Ok,
        "bad blocks below the durable write pointer"
    );
}

/// An opening after a cut whose sync fails, another opening of the same boot, another cut.
#[test]
fn an_opening_that_failed_does_not_cost_what_was_flushed() {
    for nth in 1..=5 {
        let mut disk = tagged(Cipher::Aes256Gcm);
        disk.append(1, &blocks(1, 5));
        disk.flush();
        let medium = super::forget_boot(disk.medium.control().crash_with(|_| Fate::Lost));
        medium
            .control()
            .fail_nth(Kind::Sync, nth, Fault::Fail(libc::EIO));
        let unlocked = unlock(&medium, &credential()).unwrap();
        let first = Volume::open(medium.clone(), unlocked, Options::default());
        println!("{nth}: first opening: {:?}", first.as_ref().map(|_| ()));
        drop(first);
        let medium = medium.control().kill();
        let disk = Disk::open(medium);
        let second = disk.record(1).written.0;
        let medium = disk.medium.control().crash_with(|_| Fate::Lost);
        let mut disk = Disk::open(super::forget_boot(medium));
        let third = disk.record(1).written.0;
        let read = disk.status(Command::Read(span(ZONE / 512, 5 * BLOCK)));
        println!("{nth}: {second} {third} {read:?}");
        assert_eq!((second, third, read), (5, 5, Status::Ok), "sync {nth}");
    }
}

/// As 16, with a zone that is full, and one that is finished.
#[test]
fn an_opening_that_failed_does_not_cost_a_full_zone_what_was_flushed() {
    for finish in [false, true] {
        for nth in 1..=5 {
            let mut disk = tagged(Cipher::Aes256Gcm);
            let count = if finish { 5 } else { 48 };
            for part in [5, 16, 16, 11].iter().take(if finish { 1 } else { 4 }) {
                disk.append(1, &blocks(1, *part));
            }
            disk.flush();
            if finish {
                assert_eq!(disk.zone(ZoneAction::Finish, 1), Status::Ok);
            }
            let medium = super::forget_boot(disk.medium.control().crash_with(|_| Fate::Lost));
            medium
                .control()
                .fail_nth(Kind::Sync, nth, Fault::Fail(libc::EIO));
            let unlocked = unlock(&medium, &credential()).unwrap();
            drop(Volume::open(medium.clone(), unlocked, Options::default()));
            let disk = Disk::open(medium.control().kill());
            let second = disk.record(1).written.0;
            let medium = disk.medium.control().crash_with(|_| Fate::Lost);
            let disk = Disk::open(super::forget_boot(medium));
            let third = disk.record(1).written.0;
            println!("finish {finish} sync {nth}: {second} {third}");
            assert_eq!(
                (second, third),
                (count, count),
                "finish {finish} sync {nth}"
            );
        }
    }
}

/// Two openings one after the other that fail.
#[test]
fn two_openings_that_failed_cost_nothing_either() {
    for first in 1..=5 {
        for second in 1..=5 {
            let mut disk = tagged(Cipher::Aes256Gcm);
            disk.append(1, &blocks(1, 5));
            disk.flush();
            let mut medium = super::forget_boot(disk.medium.control().crash_with(|_| Fate::Lost));
            for nth in [first, second] {
                medium
                    .control()
                    .fail_nth(Kind::Sync, nth, Fault::Fail(libc::EIO));
                let unlocked = unlock(&medium, &credential()).unwrap();
                drop(Volume::open(medium.clone(), unlocked, Options::default()));
                medium = medium.control().kill();
            }
            let medium = medium.control().crash_with(|_| Fate::Lost);
            let disk = Disk::open(super::forget_boot(medium));
            let found = disk.record(1).written.0;
            assert_eq!(found, 5, "syncs {first} and {second}");
        }
    }
}

/// A reset after a kill during the very first write of a zone.
#[test]
fn a_reset_erases_what_a_killed_first_write_left() {
    for seed in 0..20 {
        let mut disk = tagged(Cipher::Aes256Gcm);
        let control = disk.medium.control();
        control.hold(&[Kind::Write]);
        let _ = disk.start(0, Command::Append(ZoneIndex(1), BLOCK), blocks(9, 1));
        disk.poll();
        let at = disk.volume().layout.data_offset(ZoneIndex(1));
        let medium = control.kill_mid_flight(seed);
        control.hold(&[]);
        control.release_all();
        if medium.control().peek(at, 4096) == vec![0; 4096] {
            continue;
        }
        let mut disk = Disk::open(medium);
        let before = disk.record(1);
        assert_eq!(disk.zone(ZoneAction::Reset, 1), Status::Ok);
        assert!(disk.record(1).salt != before.salt, "same key after RESET");
    }
}

/// A zone that made room for others is empty in memory and still open on record, another took its slot,
/// and a kill: one zone more is active on record than may be, and a third was finished, which nobody asked for.
#[test]
fn a_kill_finishes_no_zone() {
    for cipher in [Cipher::Aes256Xts, Cipher::Aes256Gcm] {
        let mut disk = tagged(cipher);
        (1..=4).for_each(|zone| _ = disk.append(zone, &blocks(1, 2)));
        let control = disk.medium.control();
        control.hold(&[Kind::Write]);
        let _ = disk.start(0, Command::Append(ZoneIndex(5), BLOCK), blocks(9, 1));
        disk.poll();
        let mut disk = Disk::open(disk.killed());
        assert_eq!(disk.state(5), ZoneState::ImplicitOpen, "it holds nothing");
        (3..=4).for_each(|zone| _ = disk.append(zone, &blocks(2, 1)));
        // Closes zone 5 on a queue that does not come to write its record.
        let _ = disk.start(1, Command::Append(ZoneIndex(1), BLOCK), blocks(3, 1));
        assert_eq!(disk.state(5), ZoneState::Empty);
        let sixth = Command::Append(ZoneIndex(6), BLOCK);
        let _ = disk.start(0, sixth, blocks(4, 1));
        let Disk { channels, done, .. } = &mut disk;
        channels[0].poll(done);
        let after = Disk::open(disk.medium.control().kill());
        let full = |&zone: &u32| after.state(zone) == ZoneState::Full;
        assert_eq!((1..8).find(full), None, "{cipher}");
        // The slot is free once the record is written.
        disk.poll();
        assert_eq!(disk.status(sixth), Status::Ok);
    }
}
