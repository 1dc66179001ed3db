//! Each knob does what it says, and the fault model is neither harsher nor milder than its prose.

use std::collections::BTreeSet;
use std::time::Duration;

use super::draw::Draw;
use super::*;
use crate::store::IoBuf;

const PATIENCE: Duration = Duration::from_secs(60);
const SECTOR: usize = 512;

fn filled(byte: u8, len: usize) -> IoBuf {
    let mut buf = IoBuf::new(len);
    buf.fill(byte);
    buf
}

fn write(byte: u8, sector: u64, count: usize) -> Op {
    Op::Write {
        offset: sector * 512,
        buf: filled(byte, count * SECTOR),
    }
}

fn reap(store: &mut MemStore) -> Vec<Completion> {
    let mut done = Vec::new();
    store.reap(&mut done);
    done
}

/// Submits as one batch and takes what completed at once.
fn run(store: &mut MemStore, ops: Vec<Op>) -> Vec<Completion> {
    for (token, op) in ops.into_iter().enumerate() {
        store.submit(op, token as u64);
    }
    store.kick();
    reap(store)
}

fn run_ok(store: &mut MemStore, ops: Vec<Op>) {
    let count = ops.len();
    let done = run(store, ops);
    assert_eq!(done.len(), count);
    assert!(done.iter().all(|completion| completion.result.is_ok()));
}

fn errno(completion: &Completion) -> Option<i32> {
    completion.result.as_ref().unwrap_err().raw_os_error()
}

/// The first byte of each of the first `count` sectors, each of which must be of one byte only.
fn sectors(medium: &MemMedium, count: usize) -> Vec<u8> {
    let bytes = medium.control().peek(0, count * SECTOR);
    let whole = |sector: &[u8]| {
        assert!(
            sector.iter().all(|byte| *byte == sector[0]),
            "a torn sector"
        );
        sector[0]
    };
    bytes.chunks(SECTOR).map(whole).collect()
}

fn disk() -> (MemMedium, MemStore, MemControl) {
    let medium = MemMedium::new(1 << 20);
    let store = medium.open_store(16).unwrap();
    let control = medium.control();
    (medium, store, control)
}

#[test]
fn nothing_happens_before_the_kick() {
    let (medium, mut store, control) = disk();
    store.submit(write(1, 0, 1), 1);
    assert!(reap(&mut store).is_empty());
    assert_eq!((store.in_flight(), sectors(&medium, 1)), (1, vec![0]));
    store.kick();
    assert_eq!(reap(&mut store).len(), 1);
    assert_eq!((store.in_flight(), sectors(&medium, 1)), (0, vec![1]));
    assert_eq!(control.counts().writes, 1);
}

#[test]
fn a_kill_keeps_all_and_a_power_cut_what_was_synced() {
    let (medium, mut store, control) = disk();
    run_ok(&mut store, vec![write(1, 0, 2)]);
    run_ok(&mut store, vec![Op::Sync]);
    run_ok(&mut store, vec![write(2, 1, 2)]);
    medium.write_at(4 * 512, &[3; 512]).unwrap();
    assert_eq!(sectors(&medium, 5), [1, 2, 2, 0, 3]);
    assert_eq!(control.unsynced().len(), 2);

    assert_eq!(
        sectors(&control.crash_with(|_| Fate::Lost), 5),
        [1, 1, 0, 0, 0]
    );
    assert_eq!(
        sectors(&control.crash_with(|_| Fate::Kept), 5),
        [1, 2, 2, 0, 3]
    );
    let killed = control.kill();
    assert_eq!(sectors(&killed, 5), [1, 2, 2, 0, 3]);
    // The kill made nothing durable.
    let cut_later = killed.control().crash_with(|_| Fate::Lost);
    assert_eq!(sectors(&cut_later, 5), [1, 1, 0, 0, 0]);
    killed.sync().unwrap();
    assert_eq!(sectors(&killed.control().crash(1), 5), [1, 2, 2, 0, 3]);

    let counts = control.counts();
    assert_eq!((counts.cuts, counts.kills), (4, 1), "children count along");
    assert_eq!((counts.cut_lost, counts.cut_kept), (4, 2));
}

#[test]
fn a_sync_covers_what_took_effect_before_its_hand_over() {
    let (_, mut store, control) = disk();
    run_ok(&mut store, vec![write(1, 0, 1), Op::Sync]);
    assert_eq!(
        control.unsynced().len(),
        1,
        "not what it was submitted with"
    );
    run_ok(&mut store, vec![Op::Sync]);
    assert_eq!(control.unsynced().len(), 0);

    // A write that overtakes a sync in flight is not covered either.
    control.hold(&[Kind::Sync]);
    run_ok(&mut store, vec![write(2, 1, 1)]);
    assert!(run(&mut store, vec![Op::Sync]).is_empty());
    run_ok(&mut store, vec![write(3, 2, 1)]);
    assert_eq!(control.release_all(), 1);
    assert!(reap(&mut store)[0].result.is_ok());
    let cut = control.crash_with(|_| Fate::Lost);
    assert_eq!(sectors(&cut, 3), [1, 2, 0]);
}

#[test]
fn held_operations_wait_for_their_release_and_wake_their_owner() {
    let (medium, mut store, control) = disk();
    control.hold(&[Kind::Write, Kind::Read]);
    let worker = std::thread::spawn({
        let control = control.clone();
        move || {
            assert!(control.await_held(3, PATIENCE));
            let held = control.held();
            assert_eq!(held[1].kind, Kind::Write);
            assert_eq!((held[1].offset, held[1].len), (512, 1024));
            // Out of order, and one of them fails.
            assert!(control.release(held[2].id));
            assert!(!control.release(held[2].id), "once only");
            assert!(control.release_failing(held[0].id, libc::EIO));
            assert!(control.release(held[1].id));
        }
    });
    let read = Op::Read {
        offset: 512,
        buf: filled(9, 512),
    };
    // The other thread may be quick enough to have released some already.
    let mut done = run(&mut store, vec![write(1, 0, 1), write(2, 1, 2), read]);
    while done.len() < 3 {
        assert!(store.event.poll(PATIENCE), "nobody woke the store");
        done.append(&mut reap(&mut store));
    }
    worker.join().unwrap();
    assert!(reap(&mut store).is_empty());
    assert!(!store.event.poll(Duration::ZERO), "cleared by the reap");
    let tokens: Vec<Token> = done.iter().map(|completion| completion.token).collect();
    assert_eq!(tokens, [2, 0, 1]);
    assert_eq!(
        done[0].buf.as_ref().unwrap()[0],
        0,
        "the read overtook the write"
    );
    assert_eq!(errno(&done[1]), Some(libc::EIO));
    assert_eq!(sectors(&medium, 3), [0, 2, 2]);
    let counts = control.counts();
    assert_eq!((counts.held, counts.overtaken, counts.failed), (3, 1, 1));

    // Let through again, and `wait` sees releases too.
    control.hold(&[Kind::Sync]);
    assert!(run(&mut store, vec![Op::Sync]).is_empty());
    store.wait(Duration::from_millis(10));
    assert!(reap(&mut store).is_empty());
    let releaser = std::thread::spawn(move || control.release_shuffled(5));
    store.wait(PATIENCE);
    assert_eq!(reap(&mut store).len(), 1);
    assert_eq!(releaser.join().unwrap(), 1);
}

#[test]
fn what_is_in_flight_survives_a_cut_or_a_kill_or_not() {
    let (_, mut store, control) = disk();
    control.hold(&[Kind::Write, Kind::Deallocate]);
    let gone = Op::Deallocate {
        offset: 0,
        len: 512,
    };
    run(&mut store, vec![write(1, 0, 1), write(2, 2, 2), gone]);
    let unsynced = control.unsynced();
    assert!(unsynced.len() == 3 && unsynced.iter().all(|change| change.in_flight));
    assert_eq!(sectors(&control.kill(), 4), [0; 4]);
    assert_eq!(sectors(&control.crash_with(|_| Fate::Lost), 4), [0; 4]);
    // The deallocation comes last and takes the first write along.
    assert_eq!(
        sectors(&control.crash_with(|_| Fate::Kept), 4),
        [0, 0, 2, 2]
    );
    let (mut seen, mut nth) = (Vec::new(), 0);
    for lost in 0..3 {
        let cut = control.crash_with(|_| {
            nth += 1;
            if (nth - 1) % 3 == lost {
                Fate::Lost
            } else {
                Fate::Kept
            }
        });
        seen.push(sectors(&cut, 4));
    }
    assert_eq!(seen, [[0, 0, 2, 2], [0, 0, 0, 0], [1, 0, 2, 2]]);
    let mut seen = BTreeSet::new();
    for seed in 0..64 {
        seen.insert(sectors(&control.kill_mid_flight(seed), 4));
    }
    let expected = [[0, 0, 0, 0], [0, 0, 2, 2], [1, 0, 0, 0], [1, 0, 2, 2]];
    assert_eq!(seen, expected.map(Vec::from).into());
    assert!(control.counts().kill_in_flight > 0 && control.counts().cut_in_flight > 0);

    // A store that is dropped drains: what it had handed over happens.
    let after = control.clone();
    drop(store);
    assert_eq!(after.peek(1024, 1), [2]);
    assert!(after.held().is_empty());
}

#[test]
fn the_nth_of_a_kind_fails_tears_or_lies() {
    let (medium, mut store, control) = disk();
    control.fail_nth(Kind::Write, 2, Fault::Fail(libc::EIO));
    control.fail_nth(Kind::Write, 3, Fault::Tear(libc::ENOSPC, 1300));
    control.fail_nth(Kind::Write, 4, Fault::Lose);
    let writes = (1..=5).map(|byte| write(byte, u64::from(byte) * 4 - 4, 4));
    let done = run(&mut store, writes.collect());
    assert!(done[0].result.is_ok() && done[3].result.is_ok() && done[4].result.is_ok());
    assert_eq!(errno(&done[1]), Some(libc::EIO));
    assert_eq!(errno(&done[2]), Some(libc::ENOSPC));
    assert_eq!(done[2].buf.as_ref().unwrap().len(), 2048);
    let expected = [1, 1, 1, 1, 0, 0, 0, 0, 3, 3, 0, 0, 0, 0, 0, 0, 5, 5, 5, 5];
    assert_eq!(sectors(&medium, 20), expected);
    let counts = control.counts();
    assert_eq!((counts.failed, counts.torn, counts.lost), (1, 1, 1));
    assert_eq!(counts.writes, 2);

    control.fail_nth(Kind::Read, 1, Fault::Lose);
    let read = || Op::Read {
        offset: 0,
        buf: filled(9, 512),
    };
    let done = run(&mut store, vec![read(), read()]);
    assert_eq!(done[0].buf.as_ref().unwrap()[0], 9);
    assert_eq!(done[1].buf.as_ref().unwrap()[0], 1);

    control.fail_nth(Kind::MetadataWrite, 1, Fault::Fail(libc::EROFS));
    assert!(medium.write_at(0, &[7; 512]).is_err());
    medium.write_at(0, &[7; 512]).unwrap();
    control.fail_nth(Kind::MetadataRead, 1, Fault::Tear(libc::EIO, 512));
    let mut two = [0; 1024];
    assert!(medium.read_at(0, &mut two).is_err());
    assert_eq!((two[0], two[512]), (7, 0));
}

#[test]
fn a_bad_range_fails_until_it_is_healed() {
    let (_, mut store, control) = disk();
    control.fail_range(Kind::Write, 1024..1536, Fault::Fail(libc::EIO));
    for _ in 0..3 {
        let done = run(
            &mut store,
            vec![write(1, 0, 2), write(1, 1, 2), write(1, 3, 1)],
        );
        assert!(done[0].result.is_ok() && done[2].result.is_ok());
        assert_eq!(errno(&done[1]), Some(libc::EIO));
    }
    let gone = Op::Deallocate {
        offset: 1024,
        len: 512,
    };
    run_ok(&mut store, vec![gone]);
    control.heal();
    run_ok(&mut store, vec![write(1, 1, 2)]);
    assert_eq!(control.counts().failed, 3);
}

#[test]
fn a_failed_sync_leaves_doubt_that_only_a_rewrite_ends() {
    let (medium, mut store, control) = disk();
    run_ok(&mut store, vec![write(1, 0, 4)]);
    control.fail_nth(Kind::Sync, 1, Fault::Fail(libc::EIO));
    assert_eq!(errno(&run(&mut store, vec![Op::Sync])[0]), Some(libc::EIO));
    assert_eq!(sectors(&medium, 4), [1; 4], "reads see it still");
    run_ok(&mut store, vec![Op::Sync]);
    let lost = || sectors(&control.crash_with(|_| Fate::Lost), 4);
    let kept = || sectors(&control.crash_with(|_| Fate::Kept), 4);
    assert_eq!((lost(), kept()), (vec![0; 4], vec![1; 4]), "in doubt");

    run_ok(&mut store, vec![write(2, 1, 2)]);
    run_ok(&mut store, vec![Op::Sync]);
    // What was written again is durable, and what is in doubt cannot come back over it.
    assert_eq!((lost(), kept()), (vec![0, 2, 2, 0], vec![1, 2, 2, 1]));
    assert_eq!(control.counts().failed_syncs, 1);

    // A sync that was under way when another one failed over the same writes fails as well.
    run_ok(&mut store, vec![write(3, 0, 1)]);
    control.hold(&[Kind::Sync]);
    run(&mut store, vec![Op::Sync, Op::Sync]);
    let held = control.held();
    control.release_failing(held[0].id, libc::EIO);
    control.release(held[1].id);
    let done = reap(&mut store);
    assert!(done.len() == 2 && done.iter().all(|completion| completion.result.is_err()));
    // And a lying one makes nothing durable.
    control.hold(&[]);
    control.fail_nth(Kind::Sync, 1, Fault::Lose);
    run_ok(&mut store, vec![write(4, 5, 1)]);
    run_ok(&mut store, vec![Op::Sync]);
    assert_eq!(sectors(&control.crash_with(|_| Fate::Lost), 6)[5], 0);
}

#[test]
fn small_writes_take_their_sector_along() {
    let (medium, _, control) = disk();
    medium.write_at(100, &[1; 50]).unwrap();
    medium.write_at(500, &[2; 24]).unwrap();
    let bytes = |medium: &MemMedium| medium.control().peek(0, 1024);
    // The second one alone: its sectors have the first one in them.
    let second = control.crash_with(|change| match change.range.end {
        1024 => Fate::Kept,
        _ => Fate::Lost,
    });
    assert_eq!(bytes(&second), control.peek(0, 1024));
    let mut seen = BTreeSet::new();
    for seed in 0..200 {
        let torn = control.crash_with(|change| match change.range.end {
            1024 => Fate::Torn(seed),
            _ => Fate::Lost,
        });
        let bytes = bytes(&torn);
        seen.insert((bytes[100], bytes[500], bytes[512]));
        assert_eq!(bytes[100] == 1, bytes[511] == 2, "a torn sector");
    }
    assert_eq!(
        seen,
        BTreeSet::from([(0, 0, 0), (1, 2, 0), (0, 0, 2), (1, 2, 2)])
    );
}

#[test]
fn deallocations_give_zeroes_or_the_old_bytes() {
    let (medium, mut store, control) = disk();
    let gone = || Op::Deallocate {
        offset: 0,
        len: 64 * 512,
    };
    run_ok(&mut store, vec![write(1, 0, 65)]);
    control.set_deallocation(Deallocation::Keeps);
    run_ok(&mut store, vec![gone()]);
    assert_eq!(sectors(&medium, 65), [1; 65]);
    control.set_deallocation(Deallocation::ZeroesSome(1));
    run_ok(&mut store, vec![gone()]);
    let some = sectors(&medium, 65);
    assert!(some.contains(&0) && some[..64].contains(&1) && some[64] == 1);
    control.set_deallocation(Deallocation::Zeroes);
    run_ok(&mut store, vec![gone()]);
    assert_eq!(sectors(&medium, 64), [0; 64]);
    let whole_or_part = (0..50).map(|seed| sectors(&control.crash_with(|_| Fate::Torn(seed)), 65));
    assert!(whole_or_part.collect::<BTreeSet<_>>().len() > 10);
}

#[test]
fn damage_is_there_before_and_after_a_cut() {
    let (medium, mut store, control) = disk();
    run_ok(&mut store, vec![write(1, 0, 3), Op::Sync]);
    let gone = Op::Deallocate {
        offset: 512,
        len: 512,
    };
    run_ok(&mut store, vec![gone]);
    control.overwrite(500, &[0xff; 24]);
    let cuts = [Fate::Lost, Fate::Kept].map(|fate| control.crash_with(|_| fate));
    for image in [&medium, &cuts[0], &cuts[1]] {
        assert_eq!(image.control().peek(500, 24), [0xff; 24]);
    }
    assert_eq!(control.counts().overwritten, 24);
}

#[test]
fn bounds_and_alignment_are_kept() {
    let (medium, mut store, control) = disk();
    let past = Op::Read {
        offset: (1 << 20) - 512,
        buf: IoBuf::new(1024),
    };
    let wraps = Op::Write {
        offset: u64::MAX - 511,
        buf: IoBuf::new(512),
    };
    let crooked = Op::Write {
        offset: 100,
        buf: IoBuf::new(512),
    };
    let done = run(&mut store, vec![past, wraps, crooked]);
    assert!(done.iter().all(|completion| completion.result.is_err()));
    assert!(done.iter().all(|completion| completion.buf.is_some()));
    assert_eq!(control.counts().misaligned, 1);
    assert!(medium.write_at((1 << 20) - 4, &[0; 8]).is_err());
}

#[test]
fn shuffled_batches_complete_whole() {
    let (_, mut store, control) = disk();
    control.reorder(Some(3));
    let mut orders = BTreeSet::new();
    for _ in 0..20 {
        let done = run(&mut store, (0..4).map(|n| write(1, n, 1)).collect());
        let order: Vec<Token> = done.iter().map(|completion| completion.token).collect();
        assert_eq!(order.iter().sum::<u64>(), 6);
        orders.insert(order);
    }
    assert!(orders.len() > 5);
}

/// Random histories against a model of one line a sector: the values it may hold after a cut.
#[test]
fn after_a_cut_a_sector_holds_one_of_its_versions_since_the_sync() {
    const SECTORS: usize = 24;
    let mut outcomes = BTreeSet::new();
    for seed in 0..300 {
        let mut draw = Draw::new(seed);
        let (medium, mut store, control) = disk();
        let mut versions: Vec<Vec<u8>> = vec![vec![0]; SECTORS];
        for byte in 1..=40u8 {
            if draw.below(8) == 0 {
                run_ok(&mut store, vec![Op::Sync]);
                for versions in &mut versions {
                    let last = versions.pop();
                    *versions = last.into_iter().collect();
                }
                continue;
            }
            let first = draw.below(SECTORS as u64);
            let count = 1 + usize::try_from(draw.below(SECTORS as u64 - first)).unwrap();
            run_ok(&mut store, vec![write(byte, first, count)]);
            let first = usize::try_from(first).unwrap();
            for versions in &mut versions[first..first + count] {
                versions.push(byte);
            }
        }
        let cut = control.crash(seed);
        let again = sectors(&control.crash(seed), SECTORS);
        let seen = sectors(&cut, SECTORS);
        assert_eq!(seen, again, "seed {seed}: not repeatable");
        for (sector, (byte, versions)) in seen.iter().zip(&versions).enumerate() {
            assert!(
                versions.contains(byte),
                "seed {seed}: sector {sector} holds {byte}"
            );
            let age = versions.iter().position(|version| version == byte).unwrap();
            outcomes.insert((versions.len().min(4), age.min(3)));
        }
        // One moment has many ends, and none of them changes it.
        let now: Vec<u8> = versions
            .iter()
            .map(|versions| versions[versions.len() - 1])
            .collect();
        assert_eq!(sectors(&medium, SECTORS), now, "seed {seed}");
    }
    // Every version was somewhere the one that survived.
    for (versions, age) in [
        (1, 0),
        (2, 0),
        (2, 1),
        (3, 0),
        (3, 1),
        (3, 2),
        (4, 0),
        (4, 3),
    ] {
        assert!(
            outcomes.contains(&(versions, age)),
            "{versions} versions, never number {age}"
        );
    }
}

/// Every end of a cut, by its number: each sector's content after it.
fn ends(cuts: &Cuts, count: usize) -> BTreeSet<Vec<u8>> {
    let all = cuts.count(1000).unwrap();
    (0..all)
        .map(|number| sectors(&cuts.numbered(number), count))
        .collect()
}

#[test]
fn the_ends_of_a_moment_are_all_versions_of_each_sector() {
    let (_, mut store, control) = disk();
    run_ok(&mut store, vec![write(1, 0, 2)]);
    run_ok(&mut store, vec![Op::Sync]);
    run_ok(&mut store, vec![write(2, 0, 1)]);
    run_ok(&mut store, vec![write(3, 0, 2)]);
    control.hold(&[Kind::Write]);
    run(&mut store, vec![write(4, 2, 1)]);
    let cuts = control.moment().cuts();
    assert_eq!((cuts.sectors(), cuts.count(11)), (3, None));
    let mut expected = BTreeSet::new();
    for first in [1, 2, 3] {
        for second in [1, 3] {
            for third in [0, 4] {
                expected.insert(vec![first, second, third]);
            }
        }
    }
    assert_eq!(ends(&cuts, 3), expected);
    assert_eq!(
        sectors(&cuts.end(|versions| versions - 1), 3),
        [3, 3, 4],
        "the last version is the youngest"
    );
}

#[test]
fn a_deallocation_in_flight_happens_or_not() {
    let (_, mut store, control) = disk();
    run_ok(&mut store, vec![write(1, 0, 1)]);
    run_ok(&mut store, vec![Op::Sync]);
    control.hold(&[Kind::Deallocate]);
    run(
        &mut store,
        vec![Op::Deallocate {
            offset: 0,
            len: 512,
        }],
    );
    let cuts = control.moment().cuts();
    assert_eq!(ends(&cuts, 1), BTreeSet::from([vec![0], vec![1]]));
    control.set_deallocation(Deallocation::Keeps);
    assert_eq!(control.moment().cuts().sectors(), 0, "nothing changes");
}

#[test]
fn moments_are_kept_before_every_change_and_sync() {
    let (medium, mut store, control) = disk();
    run_ok(&mut store, vec![write(1, 0, 1)]);
    control.record(true);
    run_ok(&mut store, vec![write(2, 0, 1), Op::Sync]);
    medium.write_at(0, &[3; 512]).unwrap();
    let seen: Vec<u8> = control
        .take_moments()
        .iter()
        .map(|moment| moment.peek(0, 1)[0])
        .collect();
    assert_eq!(seen, [1, 2, 2]);
    assert!(control.take_moments().is_empty(), "they were taken");
    control.record(false);
    run_ok(&mut store, vec![write(4, 0, 1)]);
    assert!(control.take_moments().is_empty());
}

#[test]
fn what_the_kernel_forgets_after_a_failed_sync_is_gone_from_reads_too() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..40 {
        let (medium, mut store, control) = disk();
        control.fail_nth(Kind::Sync, 1, Fault::Fail(libc::EIO));
        run_ok(&mut store, vec![write(1, 0, 1), write(2, 1, 1)]);
        run(&mut store, vec![Op::Sync]);
        run_ok(&mut store, vec![write(3, 2, 1)]);
        control.forget(seed);
        let now = sectors(&medium, 3);
        assert_eq!(now[2], 3, "not in doubt");
        let cut = sectors(&control.crash_with(|_| Fate::Lost), 3);
        assert_eq!(cut[..2], now[..2], "what reads see is what is there");
        outcomes.insert(now);
    }
    assert_eq!(outcomes.len(), 4);
}
