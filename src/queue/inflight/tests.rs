//! A region as its writer leaves it at any moment, and as a hostile front-end hands it back.

use super::*;

const SIZE: u16 = 8;

fn disk() -> Identity {
    Identity {
        uuid: uuid::Uuid::from_u128(7),
        epoch: Epoch(3),
        last_epoch: Epoch(2),
    }
}

fn region() -> Region {
    Region::create(2, SIZE, &disk()).unwrap()
}

/// The region as the next daemon gets it.
fn handed_back(region: &Region) -> Region {
    let place = (0, region.size());
    Region::adopt(region.file().unwrap(), place, 2, SIZE, &disk()).unwrap()
}

fn intent(start: u64) -> Intent {
    Intent {
        zone: ZoneIndex(4),
        generation: Generation(9),
        change: Change::Write {
            start: Blocks(start),
            count: Blocks(2),
        },
    }
}

/// A queue in the middle of its life: the ring's used index is `used`, and nothing is in flight.
fn queue(region: &Region, used: u16) -> InflightQueue {
    let mut queue = region.queue(1).unwrap();
    let resume = queue.resume(SIZE, used, used).unwrap();
    assert_eq!((resume.next_available, resume.heads), (used, Vec::new()));
    queue
}

fn resume(region: &Region, available: u16, used: u16) -> (u16, Vec<(u16, Past)>) {
    let mut queue = handed_back(region).queue(1).unwrap();
    let resume = queue.resume(SIZE, available, used).unwrap();
    (resume.next_available, resume.heads)
}

#[test]
fn what_is_in_flight_comes_back_in_the_order_in_which_it_was_taken() {
    let region = region();
    // Indices wrap.
    let mut queue = queue(&region, 0xfffe);
    for head in [5, 2, 7] {
        queue.take(head);
    }
    queue.intents().note(2, intent(6));
    let heads = vec![
        (5, Past::Untouched),
        (2, Past::Intended(intent(6))),
        (7, Past::Untouched),
    ];
    assert_eq!(resume(&region, 4, 0xfffe), (1, heads));
    let mut intents = Vec::new();
    region.spoil(&mut |intent| {
        intents.push(*intent);
        false
    });
    assert_eq!(intents, [intent(6)]);
}

#[test]
fn what_the_guest_saw_is_not_in_flight_also_if_the_daemon_died_before_it_said_so() {
    let region = region();
    let mut queue = queue(&region, 10);
    for head in 0..4 {
        queue.take(head);
    }
    queue.give_back(3);
    queue.give_back(1);
    // Not published: all four are to be answered.
    assert_eq!(resume(&region, 14, 10).1.len(), 4);
    // Published, and dead before that was noted.
    let heads = vec![(0, Past::Untouched), (2, Past::Untouched)];
    assert_eq!(resume(&region, 14, 12), (14, heads.clone()));
    queue.published(12);
    assert_eq!(resume(&region, 14, 12), (14, heads));
}

#[test]
fn an_intent_belongs_to_one_request_of_a_head() {
    let region = region();
    let mut queue = queue(&region, 0);
    queue.take(3);
    queue.intents().note(3, intent(1));
    queue.give_back(3);
    queue.published(1);
    queue.take(3);
    assert_eq!(resume(&region, 2, 1), (2, vec![(3, Past::Untouched)]));
}

#[test]
fn a_new_region_of_a_ring_that_was_used_before_starts_where_the_ring_is() {
    let region = region();
    let mut queue = queue(&region, 5);
    queue.take(0);
    assert_eq!(resume(&region, 6, 5), (6, vec![(0, Past::Untouched)]));
}

#[test]
fn a_ring_that_was_set_up_anew_has_nothing_in_flight() {
    let region = region();
    let mut queue = queue(&region, 100);
    for head in 0..3 {
        queue.take(head);
    }
    assert_eq!(resume(&region, 2, 0), (0, Vec::new()));
    assert_eq!(resume(&region, 103, 100), (100, Vec::new()), "for good");
}

#[test]
fn every_kind_of_intent_is_read_as_it_was_written() {
    let region = region();
    let mut queue = queue(&region, 0);
    queue.take(0);
    for change in [
        intent(5).change,
        Change::Reset,
        Change::Finish,
        Change::ResetAll,
    ] {
        let wanted = Intent {
            change,
            ..intent(0)
        };
        queue.intents().note(0, wanted);
        assert_eq!(resume(&region, 1, 0).1, [(0, Past::Intended(wanted))]);
    }
}

#[test]
fn an_altered_intent_is_not_trusted() {
    let region = region();
    let mut queue = queue(&region, 0);
    queue.take(0);
    queue.intents().note(0, intent(5));
    let at = queue.part.intents;
    for byte in 8..56 {
        let before: u8 = region.bytes.load(at + byte);
        region.bytes.store(at + byte, before ^ 0x10);
        assert_eq!(
            resume(&region, 1, 0).1,
            [(0, Past::Doubtful)],
            "byte {byte}"
        );
        region.bytes.store(at + byte, before);
    }
    assert_eq!(resume(&region, 1, 0).1, [(0, Past::Intended(intent(5)))]);
}

#[test]
fn an_intent_that_was_given_up_is_not_trusted() {
    let region = region();
    let mut queue = queue(&region, 0);
    for (head, start) in [(0, 2), (1, 4)] {
        queue.take(head);
        queue.intents().note(head, intent(start));
    }
    let heads = [(0, Past::Intended(intent(2))), (1, Past::Doubtful)];
    // Once is as good as twice, by whomever.
    for _ in 0..2 {
        region.spoil(&mut |found| *found == intent(4));
        assert_eq!(resume(&region, 2, 0).1, heads);
    }
    let intents = queue.intents();
    assert!(intents.is_spoiled(1) && !intents.is_spoiled(0));
    for _ in 0..2 {
        intents.spoil(0);
        assert!(intents.is_spoiled(0));
    }
    // The next request of the head has nothing to do with it.
    queue.take(1);
    queue.intents().note(1, intent(4));
    let heads = [(0, Past::Doubtful), (1, Past::Intended(intent(4)))];
    assert_eq!(resume(&region, 2, 0).1, heads);
}

#[test]
fn an_intent_that_is_written_meanwhile_is_not_spoiled_for_the_one_before_it() {
    let region = region();
    let mut queue = queue(&region, 0);
    queue.take(0);
    queue.intents().note(0, intent(2));
    region.spoil(&mut |_| {
        queue.take(0);
        queue.intents().note(0, intent(6));
        true
    });
    assert_eq!(resume(&region, 1, 0).1, [(0, Past::Intended(intent(6)))]);
}

#[test]
fn a_region_is_known_again_unless_the_front_end_has_forgotten_what_was_in_it() {
    let region = region();
    assert!(handed_back(&region).is_again(&region));
    assert!(!self::region().is_again(&region));
    for at in (0..region.size()).step_by(8) {
        region.bytes.store_u64(at, 0);
    }
    assert!(!handed_back(&region).is_again(&region));
}

#[test]
fn heads_that_no_table_has_are_not_noted() {
    let region = region();
    let mut queue = queue(&region, 0);
    for head in [SIZE, u16::MAX] {
        queue.take(head);
        queue.give_back(head);
        queue.intents().note(head, intent(1));
    }
    queue.published(2);
    assert_eq!(resume(&region, 2, 2), (2, Vec::new()));
}

#[test]
fn a_loop_of_answers_ends() {
    let region = region();
    let mut queue = queue(&region, 0);
    queue.take(0);
    queue.give_back(0);
    region.bytes.store_u16(queue.part.state_of(0) + NEXT, 0);
    assert_eq!(resume(&region, 8, 8), (8, Vec::new()));
    region
        .bytes
        .store_u16(queue.part.state + LAST_BATCH_HEAD, u16::MAX);
    assert_eq!(resume(&region, 16, 16), (16, Vec::new()));
}

#[test]
fn a_blank_region_is_a_new_one() {
    let region = region();
    let mut queue = queue(&region, 3);
    queue.take(1);
    for at in (0..region.size()).step_by(8) {
        region.bytes.store_u64(at, 0);
    }
    assert_eq!(resume(&region, 4, 3), (3, Vec::new()));
}

#[test]
fn what_is_not_ours_or_not_this_disks_is_refused() {
    let adopt = |region: &Region, place, queues, size, disk: &Identity| {
        Region::adopt(region.file().unwrap(), place, queues, size, disk).map(|_| ())
    };
    let place = (0, region().size());
    let refused = |alter: &dyn Fn(&Region)| {
        let region = region();
        alter(&region);
        let result = adopt(&region, place, 2, SIZE, &disk());
        assert!(matches!(result, Err(InflightError::Foreign)), "{result:?}");
    };
    let tail = region().shape.tail();
    refused(&|region| region.bytes.store_u64(tail, 1));
    refused(&|region| region.bytes.store_u16(tail + TAIL_QUEUES, 3));
    refused(&|region| region.bytes.store_u16(tail + TAIL_DESCRIPTORS, 9));
    refused(&|region| region.bytes.store_u16(VERSION, 2));
    refused(&|region| {
        let at = region.shape.part(1) + DESCRIPTORS;
        region.bytes.store_u16(at, SIZE + 1);
    });
    let other = Identity {
        uuid: uuid::Uuid::from_u128(8),
        ..disk()
    };
    let result = adopt(&region(), place, 2, SIZE, &other);
    assert!(matches!(result, Err(InflightError::OtherDisk)));
    for (queues, size) in [(0, SIZE), (2, 0)] {
        let result = adopt(&region(), place, queues, size, &disk());
        assert!(matches!(result, Err(InflightError::Size { .. })));
    }
    let len = place.1;
    for place in [(0, len - 1), (4096, len), (u64::MAX, len), (0, u64::MAX)] {
        let result = adopt(&region(), place, 2, SIZE, &disk());
        assert!(
            matches!(result, Err(InflightError::Bounds { .. })),
            "{place:?}"
        );
    }
    let ring_larger = region().queue(0).unwrap().resume(SIZE * 2, 0, 0);
    assert!(matches!(ring_larger, Err(InflightError::RingLarger { .. })));
    assert!(region().queue(2).is_none());
}

#[test]
fn the_write_cache_stays_as_the_guest_set_it() {
    let region = region();
    assert!(handed_back(&region).write_cache());
    region.set_write_cache(false);
    assert!(!handed_back(&region).write_cache());
    region.set_write_cache(true);
    assert!(handed_back(&region).write_cache());
}

#[test]
fn the_front_end_cannot_shrink_it() {
    assert!(region().file().unwrap().set_len(0).is_err());
}

#[test]
fn the_layout_is_that_of_the_specification() {
    let region = Region::create(3, 128, &disk()).unwrap();
    let part = region.shape.part_len();
    assert_eq!(part, 16 + 128 * 16 + 48, "rounded up to 64");
    assert_eq!(region.size(), 3 * part + 64 + 3 * 128 * 64);
    let mut queue = region.queue(2).unwrap();
    let _ = queue.resume(128, 0, 0).unwrap();
    queue.take(1);
    let state = 2 * part + 16 + 16;
    assert_eq!(region.bytes.load::<u8>(state), 1);
    assert_eq!(region.bytes.load_u64(state + 8), 1);
    queue.give_back(1);
    assert_eq!(region.bytes.load_u16(2 * part + 12), 1);
    queue.published(1);
    assert_eq!(region.bytes.load::<u8>(state), 0);
    assert_eq!(region.bytes.load_u16(2 * part + 14), 1);
}
