//! What changes places: blocks and tag slots within a zone, between zones, between volumes; and metadata.

use zonevault::crypt::Cipher;
use zonevault::format::HeaderCopy;
use zonevault::zone::RecordCopy;

use crate::scene::{
    FULL, Left, Missed, PARTLY, Places, RESET, Range, TAGGED, TAIL, Tally, UNCACHED, Verdict,
    WRITTEN, expected, image, judge, shape, swap,
};

const ERRORS: &str = "errors for exactly the touched blocks";

/// What of a block is moved.
#[derive(Clone, Copy, Debug)]
enum Part {
    Both,
    Data,
    Slot,
}

const PARTS: [(Part, &str); 3] = [
    (Part::Both, "with their slots"),
    (Part::Data, "data alone"),
    (Part::Slot, "slots alone"),
];

impl Part {
    fn ranges(self, places: &Places, (zone, block): (u32, u64)) -> Vec<Range> {
        let (data, slot) = (places.data(zone, block), places.slot(zone, block));
        match self {
            Self::Both => vec![data, slot],
            Self::Data => vec![data],
            Self::Slot => vec![slot],
        }
    }
}

fn errors(mut bad: Vec<(u32, u64)>) -> Verdict {
    bad.sort_unstable();
    Verdict::Missed(Missed {
        bad,
        ..Missed::default()
    })
}

/// All pairs of blocks that hold data.
fn pairs() -> Vec<[(u32, u64); 2]> {
    let all: Vec<(u32, u64)> = (0..)
        .zip(&WRITTEN)
        .flat_map(|(zone, &written)| (0..written).map(move |block| (zone, block)))
        .collect();
    let later = |at: usize| all[at + 1..].iter().map(move |&other| (at, other));
    let pairs = (0..all.len()).flat_map(later);
    pairs.map(|(at, other)| [all[at], other]).collect()
}

#[test]
fn any_two_blocks_of_a_volume() {
    for cipher in TAGGED {
        let shape = shape(cipher);
        let places = Places::of(shape);
        let sound = image(shape, Left::Clean);
        let expected = expected(shape, &sound, Left::Clean);
        let mut tally = Tally::default();
        for [one, two] in pairs() {
            for (part, name) in PARTS {
                let mut bytes = sound.clone();
                let (from, to) = (part.ranges(&places, one), part.ranges(&places, two));
                for (from, to) in from.into_iter().zip(to) {
                    swap(&mut bytes, from, to);
                }
                let verdict = judge(shape, &bytes, UNCACHED, &expected);
                assert_eq!(verdict, errors(vec![one, two]), "{part:?} {one:?} {two:?}");
                let class = match one.0 == two.0 {
                    true => format!("swapped within a zone, {name}"),
                    false => format!("swapped between zones, {name}"),
                };
                tally.add(&class, ERRORS);
            }
        }
        println!("{cipher}:\n{tally}");
    }
}

#[test]
fn a_block_in_the_place_of_another() {
    for cipher in TAGGED {
        let shape = shape(cipher);
        let places = Places::of(shape);
        let sound = image(shape, Left::Clean);
        let expected = expected(shape, &sound, Left::Clean);
        let mut tally = Tally::default();
        for [one, two] in pairs() {
            let mut bytes = sound.clone();
            let (from, to) = (
                Part::Both.ranges(&places, one),
                Part::Both.ranges(&places, two),
            );
            for (from, to) in from.into_iter().zip(to) {
                bytes.copy_within(from, to.start);
            }
            let verdict = judge(shape, &bytes, UNCACHED, &expected);
            assert_eq!(verdict, errors(vec![two]), "{one:?} over {two:?}");
            tally.add("copied over another, with its slot", ERRORS);
        }
        println!("{cipher}:\n{tally}");
    }
}

/// Both volumes have the same key file, and hold the same.
#[test]
fn a_block_of_another_volume() {
    for cipher in TAGGED {
        let shape = shape(cipher);
        let places = Places::of(shape);
        let (sound, other) = (image(shape, Left::Clean), image(shape, Left::Clean));
        let expected = expected(shape, &sound, Left::Clean);
        let mut tally = Tally::default();
        for zone in [PARTLY, FULL, RESET, TAIL] {
            for block in 0..WRITTEN[zone as usize] {
                for (part, name) in PARTS {
                    let mut bytes = sound.clone();
                    for range in part.ranges(&places, (zone, block)) {
                        bytes[range.clone()].copy_from_slice(&other[range]);
                    }
                    let verdict = judge(shape, &bytes, UNCACHED, &expected);
                    assert_eq!(verdict, errors(vec![(zone, block)]), "{part:?}");
                    tally.add(&format!("from another volume, {name}"), ERRORS);
                }
            }
        }
        println!("{cipher}:\n{tally}");
    }
}

/// A recovery after a power cut reads tags to find where zones end: it is not to be led on by blocks from elsewhere.
#[test]
fn a_block_from_elsewhere_behind_the_last_flush() {
    for cipher in TAGGED {
        let shape = shape(cipher);
        let places = Places::of(shape);
        let sound = image(shape, Left::Cut);
        let expected = expected(shape, &sound, Left::Cut);
        let end = WRITTEN[TAIL as usize];
        let mut tally = Tally::default();
        for [one, _] in pairs() {
            let (from, to) = (
                Part::Both.ranges(&places, one),
                Part::Both.ranges(&places, (TAIL, end)),
            );
            let mut bytes = sound.clone();
            for (from, to) in from.into_iter().zip(to) {
                bytes.copy_within(from, to.start);
            }
            let verdict = judge(shape, &bytes, Left::Cut.options(), &expected);
            assert_eq!(verdict, Verdict::Unharmed, "{one:?}");
            tally.add(
                "copied behind the end of a zone",
                "not taken for one of its blocks",
            );
        }
        println!("{cipher}:\n{tally}");
    }
}

/// What AES-XTS is: whoever can write to the image can move blocks, and the reader gets noise.
#[test]
fn without_tags_swapped_blocks_read_as_noise() {
    let shape = shape(Cipher::Aes256Xts);
    let places = Places::of(shape);
    let mut bytes = image(shape, Left::Clean);
    let expected = expected(shape, &bytes, Left::Clean);
    swap(&mut bytes, places.data(PARTLY, 0), places.data(FULL, 9));
    let verdict = judge(shape, &bytes, UNCACHED, &expected);
    let wrong = vec![(PARTLY, 0), (FULL, 9)];
    let missed = Missed {
        wrong,
        ..Missed::default()
    };
    assert_eq!(verdict, Verdict::Missed(missed));
}

// Metadata.

const BOTH: [RecordCopy; 2] = [RecordCopy::A, RecordCopy::B];

fn refused(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Refused(why) if !why.is_empty())
}

#[test]
fn header_copies_that_change_places() {
    let shape = shape(Cipher::Aes256Gcm);
    let places = Places::of(shape);
    for left in Left::ALL {
        let sound = image(shape, left);
        let expected = expected(shape, &sound, left);
        let mut bytes = sound.clone();
        let [a, b] = HeaderCopy::BOTH.map(|copy| places.header(copy));
        swap(&mut bytes, a.clone(), b.clone());
        assert!(refused(&judge(shape, &bytes, left.options(), &expected)));
        // One of them twice: it is not the other copy's place.
        for (from, to) in [(&a, &b), (&b, &a)] {
            let mut bytes = sound.clone();
            bytes.copy_within(from.clone(), to.start);
            let verdict = judge(shape, &bytes, left.options(), &expected);
            assert_eq!(verdict, Verdict::Unharmed, "{left:?}");
        }
    }
}

#[test]
fn records_that_change_places() {
    let shape = shape(Cipher::Aes256Gcm);
    let places = Places::of(shape);
    for left in Left::ALL {
        let sound = image(shape, left);
        let expected = expected(shape, &sound, left);
        for zone in 0..shape.zones {
            let mut bytes = sound.clone();
            let [a, b] = BOTH.map(|copy| places.record(copy, zone));
            swap(&mut bytes, a, b);
            let verdict = judge(shape, &bytes, left.options(), &expected);
            assert_eq!(
                verdict,
                Verdict::Unharmed,
                "either copy may hold the newest"
            );
            let other = (zone + 1) % shape.zones;
            let mut bytes = sound.clone();
            for copy in BOTH {
                swap(
                    &mut bytes,
                    places.record(copy, zone),
                    places.record(copy, other),
                );
            }
            let verdict = judge(shape, &bytes, left.options(), &expected);
            let mut offline = vec![zone, other];
            offline.sort_unstable();
            let missed = Missed {
                offline,
                ..Missed::default()
            };
            match left {
                Left::Clean => assert!(refused(&verdict), "{zone}"),
                _ => assert_eq!(verdict, Verdict::Missed(missed), "{left:?} {zone}"),
            }
        }
    }
}

#[test]
fn metadata_of_another_volume() {
    let shape = shape(Cipher::Aes256Gcm);
    let places = Places::of(shape);
    for left in Left::ALL {
        let (sound, other) = (image(shape, left), image(shape, left));
        let expected = expected(shape, &sound, left);
        let with = |ranges: &[Range]| {
            let mut bytes = sound.clone();
            for range in ranges {
                bytes[range.clone()].copy_from_slice(&other[range.clone()]);
            }
            judge(shape, &bytes, left.options(), &expected)
        };
        let headers = HeaderCopy::BOTH.map(|copy| places.header(copy));
        // Either header alone: the protector does not open it, or it is the older one and nobody looks at it.
        let alone = headers.clone().map(|header| with(&[header]));
        assert_eq!(
            alone.iter().filter(|end| refused(end)).count(),
            1,
            "{left:?}"
        );
        assert!(alone.contains(&Verdict::Unharmed), "{left:?}");
        assert!(refused(&with(&headers)));
        assert!(refused(&with(&[places.protector(0)])));
        let unlocking = 0..places.gap().start;
        let records = places.records();
        let all = with(std::slice::from_ref(&records));
        let offline = (0..shape.zones).collect();
        let missed = Missed {
            offline,
            ..Missed::default()
        };
        match left {
            Left::Clean => {
                assert!(refused(&all));
                assert!(refused(&with(std::slice::from_ref(&unlocking))));
            }
            _ => {
                assert_eq!(all, Verdict::Missed(missed.clone()));
                assert_eq!(
                    with(std::slice::from_ref(&unlocking)),
                    Verdict::Missed(missed)
                );
            }
        }
        // All of it: that is the other disk, and none of the blocks are its own.
        let bad = (0..).zip(&WRITTEN).flat_map(|(zone, &written)| {
            let first = match left {
                // Of this zone no more is taken for its own than what is durable.
                Left::Cut if zone == TAIL => crate::scene::FLUSHED[TAIL as usize],
                _ => written,
            };
            (0..first).map(move |block| (zone, block))
        });
        let bad: Vec<_> = bad.collect();
        match with(&[unlocking, records]) {
            Verdict::Missed(missed) => {
                assert_eq!(missed.bad, bad);
                assert!(
                    missed.wrong.is_empty() && missed.zeroes.is_empty(),
                    "{missed:?}"
                );
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_image_that_is_shorter_is_refused_and_a_longer_one_is_none_the_worse() {
    for cipher in [Cipher::Aes256Gcm, Cipher::Aes256Xts] {
        let shape = shape(cipher);
        let places = Places::of(shape);
        let sound = image(shape, Left::Clean);
        let expected = expected(shape, &sound, Left::Clean);
        let ends = [
            0,
            1,
            4096,
            8191,
            8192,
            places.gap().start,
            places.records().start,
            places.records().end,
            places.data(PARTLY, 1).start,
            sound.len() - 1,
        ];
        for end in ends {
            let verdict = judge(shape, &sound[..end], UNCACHED, &expected);
            assert!(refused(&verdict), "{end}: {verdict:?}");
        }
        let longer = [sound, vec![0x5a; 5000]].concat();
        let verdict = judge(shape, &longer, UNCACHED, &expected);
        assert_eq!(verdict, Verdict::Unharmed);
    }
}
