//! Noise and zeroes over stretches of an image, wherever they fall.

use zonevault::format::HeaderCopy;
use zonevault::zone::RecordCopy;

use crate::rng::Rng;
use crate::scene::{
    Left, Missed, Places, TAGGED, Tally, UNCACHED, Verdict, WRITTEN, expected, image, judge, shape,
};

/// Trials of [`noise_anywhere`] for each cipher and ending.
const TRIALS: usize = 700;

/// How a disk ends with one or more stretches replaced: never with a block that the guest did not write there.
fn end_of(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Refused(why) => {
            assert!(!why.is_empty());
            "refused"
        }
        Verdict::Unharmed => "unharmed",
        Verdict::Missed(missed) => {
            let told = Missed {
                wrong: Vec::new(),
                zeroes: Vec::new(),
                ..missed.clone()
            };
            assert_eq!(missed, told, "shown to the guest");
            "errors, offline zones, or what a cut may take"
        }
    }
}

#[test]
fn noise_anywhere() {
    let mut rng = Rng::from_env(62);
    for cipher in TAGGED {
        let shape = shape(cipher);
        let places = Places::of(shape);
        let metadata = places.lead_in().start as u64;
        for left in Left::ALL {
            let sound = image(shape, left);
            let expected = expected(shape, &sound, left);
            let mut tally = Tally::default();
            for _ in 0..TRIALS {
                let mut bytes = sound.clone();
                // Half of it in the metadata: there is less of it.
                let (class, end) = match rng.one_in(2) {
                    true => ("noise over metadata", metadata),
                    false => ("noise anywhere", bytes.len() as u64),
                };
                let sizes = [1, 16, 512, 4096, 40_000];
                let most = *rng.pick(&sizes);
                let len = 1 + rng.below(most);
                let start = usize::try_from(rng.below(end)).unwrap();
                let stop = bytes.len().min(start + usize::try_from(len).unwrap());
                match rng.one_in(4) {
                    true => bytes[start..stop].fill(0),
                    false => {
                        let noise = rng.bytes(stop - start);
                        bytes[start..stop].copy_from_slice(&noise);
                    }
                }
                tally.add(
                    class,
                    end_of(judge(shape, &bytes, left.options(), &expected)),
                );
            }
            println!("{cipher}, {left:?}:\n{tally}");
            assert_eq!(
                tally.tried("noise over metadata") + tally.tried("noise anywhere"),
                TRIALS as u64
            );
        }
    }
}

/// What a trim or a lost write leaves.
#[test]
fn zeroes_below_a_write_pointer_are_errors() {
    for cipher in TAGGED {
        let shape = shape(cipher);
        let places = Places::of(shape);
        let sound = image(shape, Left::Clean);
        let expected = expected(shape, &sound, Left::Clean);
        for (zone, &written) in (0..).zip(&WRITTEN) {
            for block in 0..written {
                let (data, slot) = (places.data(zone, block), places.slot(zone, block));
                for ranges in [vec![data.clone()], vec![slot.clone()], vec![data, slot]] {
                    let mut bytes = sound.clone();
                    ranges.into_iter().for_each(|range| bytes[range].fill(0));
                    let missed = Missed {
                        bad: vec![(zone, block)],
                        ..Missed::default()
                    };
                    let verdict = judge(shape, &bytes, UNCACHED, &expected);
                    assert_eq!(verdict, Verdict::Missed(missed), "{cipher}");
                }
            }
        }
    }
}

#[test]
fn zeroed_metadata() {
    for cipher in TAGGED {
        let shape = shape(cipher);
        let places = Places::of(shape);
        for left in Left::ALL {
            let sound = image(shape, left);
            let expected = expected(shape, &sound, left);
            let without = |ranges: &[crate::scene::Range]| {
                let mut bytes = sound.clone();
                ranges.iter().for_each(|range| bytes[range.clone()].fill(0));
                judge(shape, &bytes, left.options(), &expected)
            };
            let [a, b] = HeaderCopy::BOTH.map(|copy| places.header(copy));
            assert_eq!(without(std::slice::from_ref(&a)), Verdict::Unharmed);
            assert_eq!(without(std::slice::from_ref(&b)), Verdict::Unharmed);
            assert!(matches!(without(&[a, b]), Verdict::Refused(_)));
            assert!(matches!(
                without(&[places.protector(0)]),
                Verdict::Refused(_)
            ));
            for zone in 0..shape.zones {
                let [a, b] = [RecordCopy::A, RecordCopy::B].map(|copy| places.record(copy, zone));
                assert_eq!(without(std::slice::from_ref(&a)), Verdict::Unharmed);
                assert_eq!(without(std::slice::from_ref(&b)), Verdict::Unharmed);
                let offline = Missed {
                    offline: vec![zone],
                    ..Missed::default()
                };
                match (left, without(&[a, b])) {
                    (Left::Clean, Verdict::Refused(_)) => {}
                    (Left::Clean, other) => panic!("{other:?}"),
                    (_, verdict) => assert_eq!(verdict, Verdict::Missed(offline)),
                }
            }
        }
    }
}
