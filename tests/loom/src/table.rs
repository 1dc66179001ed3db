//! The table of guarded mappings: a fault is looked up while mappings come and go.

use loom::sync::Arc;
use loom::thread;

use crate::explore;

#[allow(dead_code, reason = "not all that the sources can do is called here")]
mod right {
    include!(concat!(env!("OUT_DIR"), "/table.rs"));
}
#[allow(dead_code, reason = "as above")]
mod uncounted {
    include!(concat!(env!("OUT_DIR"), "/table_uncounted.rs"));
}
#[allow(dead_code, reason = "as above")]
mod unfenced {
    include!(concat!(env!("OUT_DIR"), "/table_unfenced.rs"));
}
#[allow(dead_code, reason = "as above")]
mod unclaimed {
    include!(concat!(env!("OUT_DIR"), "/table_unclaimed.rs"));
}

/// Mappings that follow each other at one address, as the kernel likes to place them: of one file each,
/// by which they differ in length, page and owner.
const FOLLOWING: [Fields; 2] = [
    (0x4000, 0x8000, 0x1000, false),
    (0x4000, 0x6000, 0x2000, true),
];
/// One that is there all the while.
const LASTING: Fields = (0x10_0000, 0x20_0000, 0x1000, false);

/// Start, end, page, whether it counts.
type Fields = (usize, usize, usize, bool);

macro_rules! range {
    ($module:ident) => {
        |(start, end, page, counts)| $module::Range {
            start,
            end,
            page,
            counts,
        }
    };
}

macro_rules! ranges_are_found_whole {
    ($module:ident) => {
        explore(|| {
            let range = range!($module);
            let table = Arc::new($module::Table::<2>::new());
            let first = table.insert(range(FOLLOWING[0])).expect("room");
            let lasting = table.insert(range(LASTING)).expect("room");
            let writer = Arc::clone(&table);
            let changes = thread::spawn(move || {
                writer.remove(first);
                writer.insert(range(FOLLOWING[1])).expect("room");
            });
            if let Some((at, found)) = table.find(FOLLOWING[0].0 + 0x800) {
                let whole = FOLLOWING.map(range).contains(&found);
                assert!(whole, "a mixture: {found:x?}");
                assert_eq!(at, first);
            }
            assert_eq!(table.find(LASTING.0), Some((lasting, range(LASTING))));
            table.lose(lasting);
            changes.join().expect("the writer");
            assert!(table.is_lost(lasting) && !table.is_lost(first));
        });
    };
}

#[test]
fn a_fault_never_finds_a_mixture_of_two_mappings() {
    ranges_are_found_whole!(right);
}

#[test]
#[should_panic(expected = "a mixture")]
fn without_its_count_it_does() {
    ranges_are_found_whole!(uncounted);
}

#[test]
#[should_panic(expected = "a mixture")]
fn without_its_fence_it_does() {
    ranges_are_found_whole!(unfenced);
}

macro_rules! mappings_do_not_take_the_same_place {
    ($module:ident) => {
        explore(|| {
            let range = range!($module);
            let table = Arc::new($module::Table::<2>::new());
            let other = Arc::clone(&table);
            let inserts = thread::spawn(move || other.insert(range(FOLLOWING[0])));
            let mine = table.insert(range(LASTING)).expect("room");
            assert_eq!(
                table.find(LASTING.0),
                Some((mine, range(LASTING))),
                "mine is there"
            );
            let theirs = inserts.join().expect("the other thread").expect("room");
            assert_ne!(mine, theirs, "two at one place");
            let found = table.find(FOLLOWING[0].0);
            assert_eq!(
                found,
                Some((theirs, range(FOLLOWING[0]))),
                "theirs is there"
            );
            assert_eq!(table.insert(range(FOLLOWING[1])), None, "it is full");
            table.remove(theirs);
            assert_eq!(table.find(FOLLOWING[0].0), None);
        });
    };
}

#[test]
fn two_mappings_take_two_places() {
    mappings_do_not_take_the_same_place!(right);
}

#[test]
#[should_panic(expected = "two at one place")]
fn without_a_claim_they_take_one() {
    mappings_do_not_take_the_same_place!(unclaimed);
}
