//! Every byte of an image, flipped.

use std::thread;

use zonevault::crypt::Cipher;
use zonevault::format::HeaderCopy;
use zonevault::format::image::{unlock, write_protector};
use zonevault::format::{Argon2Cost, NewProtector, Protector};
use zonevault::request::Status;
use zonevault::secret::Credential;
use zonevault::store::mem::{Fault, Kind};
use zonevault::zone::RecordCopy;

use crate::disk::{Disk, Shape, credential, medium_of};
use crate::rng::Rng;
use crate::scene::{
    CUT, Expected, FINISHED, FLUSHED, Left, Missed, PARTLY, Places, RECORD, Range, TAGGED, TAIL,
    Tally, UNCACHED, Verdict, WRITTEN, blocks, content, expected, image, judge, shape, swap,
};

const REFUSED: &str = "refused";
const OTHER_COPY: &str = "harmless: the other copy holds";
const UNUSED: &str = "harmless: nothing uses it";
const LAST_FLUSH: &str = "write pointer of the last flush, as after a cut";
const ERROR: &str = "an error for exactly the touched block";
const OFFLINE: &str = "the zone is offline, its neighbours are not";
const ENDS_THERE: &str = "not proven: the zone ends there, as after a cut";
const GARBLED: &str = "not noticed: 16 bytes garbled, no tags";

/// A damaged header is read three times, with pauses: many threads wait better than one.
const THREADS: usize = 32;

/// Works on all items, in threads; `work` says in which class and how each ended.
fn tally<T: Sync>(items: &[T], work: impl Fn(&T) -> (&'static str, &'static str) + Sync) -> Tally {
    let work = &work;
    thread::scope(|scope| {
        let part = |number| {
            scope.spawn(move || {
                let mut tally = Tally::default();
                for item in items.iter().skip(number).step_by(THREADS) {
                    let (class, end) = work(item);
                    tally.add(class, end);
                }
                tally
            })
        };
        let parts: Vec<_> = (0..THREADS).map(part).collect();
        let mut all = Tally::default();
        for part in parts {
            all.merge(part.join().unwrap());
        }
        all
    })
}

/// A bit of byte `at`: all of them come to their turn.
fn bit(at: usize) -> u8 {
    1 << (at % 8)
}

/// Prints the table and checks that it holds every trial.
fn report(tally: &Tally, tried: &[(&str, usize)]) {
    print!("{tally}");
    for &(class, count) in tried {
        assert_eq!(tally.tried(class), count as u64, "{class}");
    }
}

/// The newest header copy of an image.
fn newest(bytes: &[u8]) -> HeaderCopy {
    let unlocked = unlock(&medium_of(bytes), &credential()).unwrap();
    HeaderCopy::of_sequence(unlocked.header.sequence())
}

/// Makes the CRC-32C at `field` right again, of the 512 bytes from `start` on: what an attacker can do who has no key.
fn mend_crc(bytes: &mut [u8], start: usize, field: usize) {
    bytes[start + field..start + field + 4].fill(0);
    let crc = crc_fast::checksum(
        crc_fast::CrcAlgorithm::Crc32Iscsi,
        &bytes[start..start + 512],
    );
    let crc = u32::try_from(crc).unwrap();
    bytes[start + field..start + field + 4].copy_from_slice(&crc.to_le_bytes());
}

/// A clean disk loses nothing with a header copy, any other at most what a power cut may take.
fn header_end(verdict: Verdict, cipher: Cipher, left: Left) -> &'static str {
    let shorter = Missed {
        shorter: vec![(TAIL, FLUSHED[TAIL as usize])],
        ..Missed::default()
    };
    match verdict {
        Verdict::Refused(why) => {
            assert!(!why.is_empty());
            REFUSED
        }
        Verdict::Unharmed => OTHER_COPY,
        Verdict::Missed(missed) => {
            assert_eq!(missed, shorter);
            assert!(!cipher.is_tagged() && left == Left::Killed);
            LAST_FLUSH
        }
    }
}

fn flip_headers(cipher: Cipher, left: Left, len: usize) {
    let shape = shape(cipher);
    let places = Places::of(shape);
    let sound = image(shape, left);
    let expected = expected(shape, &sound, left);
    let newest = newest(&sound);
    let class = |copy| match copy == newest {
        true => "header, newer copy",
        false => "header, older copy",
    };
    let trials: Vec<(HeaderCopy, usize)> = HeaderCopy::BOTH
        .into_iter()
        .flat_map(|copy| (0..len).map(move |at| (copy, at)))
        .collect();
    let plain = tally(&trials, |&(copy, at)| {
        let mut bytes = sound.clone();
        bytes[places.header(copy).start + at] ^= bit(at);
        let verdict = judge(shape, &bytes, left.options(), &expected);
        let end = header_end(verdict, cipher, left);
        assert_ne!(end, REFUSED, "the other copy is sound: {copy:?} {at}");
        (class(copy), end)
    });
    println!("{cipher}, {left:?}:");
    report(
        &plain,
        &[("header, newer copy", len), ("header, older copy", len)],
    );
    let mended: Vec<_> = trials.into_iter().filter(|&(_, at)| at < 512).collect();
    let mended = tally(&mended, |&(copy, at)| {
        let mut bytes = sound.clone();
        let start = places.header(copy).start;
        bytes[start + at] ^= bit(at);
        if !(16..20).contains(&at) {
            mend_crc(&mut bytes, start, 16);
        }
        let end = header_end(
            judge(shape, &bytes, left.options(), &expected),
            cipher,
            left,
        );
        (class(copy), end)
    });
    println!("{cipher}, {left:?}, CRC made right:");
    report(
        &mended,
        &[("header, newer copy", 512), ("header, older copy", 512)],
    );
    // All but the magic, the CRC itself, and a sequence number that says it is the older one.
    assert!(mended.count("header, newer copy", REFUSED) >= 512 - 8 - 4 - 8);
}

#[test]
fn every_byte_of_both_header_copies() {
    flip_headers(Cipher::Aes256Gcm, Left::Clean, 4096);
}

#[test]
fn every_byte_of_the_headers_of_other_ciphers_and_endings() {
    for cipher in [Cipher::Aes256Gcm, Cipher::Aes256XtsCrc64, Cipher::Aes256Xts] {
        for left in Left::ALL {
            if (cipher, left) != (Cipher::Aes256Gcm, Left::Clean) {
                flip_headers(cipher, left, 512);
            }
        }
    }
}

#[test]
fn both_header_copies_damaged_are_refused() {
    let shape = shape(Cipher::Aes256Gcm);
    let places = Places::of(shape);
    let sound = image(shape, Left::Clean);
    let all: Vec<usize> = (0..512).collect();
    let tally = tally(&all, |&at| {
        let mut bytes = sound.clone();
        for copy in HeaderCopy::BOTH {
            bytes[places.header(copy).start + at] ^= bit(at);
        }
        let opened = unlock(&medium_of(&bytes), &credential());
        assert!(opened.is_err(), "byte {at}");
        ("header, both copies", REFUSED)
    });
    report(&tally, &[("header, both copies", 512)]);
}

#[test]
fn every_byte_of_the_protectors() {
    let shape = shape(Cipher::Aes256Gcm);
    let places = Places::of(shape);
    let sound = image(shape, Left::Clean);
    let whole = unlock(&medium_of(&sound), &credential()).unwrap();
    let trials: Vec<(u32, usize, bool)> = (0..8)
        .flat_map(|slot| (0..4096).map(move |at| (slot, at, false)))
        .chain((0..512).map(|at| (0, at, true)))
        .collect();
    let tally = tally(&trials, |&(slot, at, mended)| {
        let mut bytes = sound.clone();
        let start = places.protector(slot).start;
        bytes[start + at] ^= bit(at);
        if mended && !(8..12).contains(&at) {
            mend_crc(&mut bytes, start, 8);
        }
        let class = match (slot, mended) {
            (0, false) => "protector",
            (0, true) => "protector, CRC made right",
            _ => "free protector slot",
        };
        match unlock(&medium_of(&bytes), &credential()) {
            Ok(unlocked) => {
                assert!(slot != 0, "an altered protector unwraps nothing: {at}");
                assert_eq!(unlocked.header, whole.header);
                assert_eq!(unlocked.slot, 0);
                (class, UNUSED)
            }
            Err(why) => {
                assert_eq!(slot, 0, "slot {slot} is nothing to the others: {at}");
                assert!(why.to_string().contains("no protector"), "{why}");
                (class, REFUSED)
            }
        }
    });
    let tried = [
        ("protector", 4096),
        ("protector, CRC made right", 512),
        ("free protector slot", 7 * 4096),
    ];
    report(&tally, &tried);
}

#[test]
fn a_protector_that_is_moved_or_lost_leaves_the_others() {
    let shape = shape(Cipher::Aes256Gcm);
    let places = Places::of(shape);
    let sound = image(shape, Left::Clean);
    let mut moved = sound.clone();
    swap(&mut moved, places.protector(0), places.protector(5));
    assert!(unlock(&medium_of(&moved), &credential()).is_err());
    // A second protector: the first may be anything.
    let medium = medium_of(&sound);
    let unlocked = unlock(&medium, &credential()).unwrap();
    let second = Credential::read_key(&[8; 64][..], "second").unwrap();
    let new = NewProtector {
        credential: &second,
        cost: Argon2Cost::default(),
        label: "",
        created: 0,
    };
    let uuid = *unlocked.header.uuid();
    let protector = Protector::seal(&unlocked.volume_key, &uuid, 3, &new).unwrap();
    write_protector(&medium, 3, Some(&protector)).unwrap();
    let mut rng = Rng::from_env(60);
    let start = places.protector(0).start as u64;
    for _ in 0..100 {
        let noise = rng.bytes(512);
        medium.control().overwrite(start, &noise);
        assert_eq!(unlock(&medium, &second).unwrap().slot, 3);
        assert!(unlock(&medium, &credential()).is_err());
    }
}

/// What may hold anything, for nobody reads it; the proof is a medium that cannot read it.
#[test]
fn what_nobody_reads_cannot_do_harm() {
    for cipher in [Cipher::Aes256Gcm, Cipher::Aes256XtsCrc64, Cipher::Aes256Xts] {
        let shape = shape(cipher);
        let places = Places::of(shape);
        for left in Left::ALL {
            let sound = image(shape, left);
            let expected = expected(shape, &sound, left);
            let mut unread: Vec<(&str, Range)> = vec![
                ("between protectors and records", places.gap()),
                ("between records and data", places.lead_in()),
                ("behind the records", places.record_padding(RecordCopy::A)),
                ("behind the records", places.record_padding(RecordCopy::B)),
            ];
            for (zone, &written) in (0..).zip(&WRITTEN) {
                let beyond = (written..shape.capacity).map(|block| places.data(zone, block));
                unread.extend(beyond.map(|range| ("data beyond a write pointer", range)));
            }
            let mut bytes = sound.clone();
            let mut tally = Tally::default();
            for (class, range) in &unread {
                bytes[range.clone()]
                    .iter_mut()
                    .for_each(|byte| *byte ^= 0xff);
                tally.add_many(class, UNUSED, range.len());
            }
            let medium = medium_of(&bytes);
            for (_, range) in &unread {
                let range = range.start as u64..range.end as u64;
                for kind in [Kind::Read, Kind::MetadataRead] {
                    medium
                        .control()
                        .fail_range(kind, range.clone(), Fault::Fail(libc::EIO));
                }
            }
            let mut disk = Disk::open(medium, left.options()).unwrap();
            let verdict = crate::scene::compare(shape, &mut disk, &expected);
            assert_eq!(verdict, Verdict::Unharmed, "{cipher} {left:?}");
            if left == Left::Clean {
                println!("{cipher}:\n{tally}");
            }
        }
    }
}

#[test]
fn every_byte_of_tag_slots_beyond_the_write_pointers() {
    let shape = shape(Cipher::Aes256Gcm);
    let places = Places::of(shape);
    for left in Left::ALL {
        let sound = image(shape, left);
        let expected = expected(shape, &sound, left);
        let mut trials: Vec<(&str, usize)> = Vec::new();
        for (zone, &written) in (0..).zip(&WRITTEN) {
            let beyond = (written..shape.capacity).flat_map(|block| places.slot(zone, block));
            trials.extend(beyond.map(|at| ("slots beyond a write pointer", at)));
            let padding = places.slot_padding(zone).step_by(61);
            trials.extend(padding.map(|at| ("behind the slots", at)));
        }
        let tally = tally(&trials, |&(class, at)| {
            let mut bytes = sound.clone();
            bytes[at] ^= bit(at);
            let verdict = judge(shape, &bytes, left.options(), &expected);
            assert_eq!(verdict, Verdict::Unharmed, "{left:?} {class} {at}");
            (class, UNUSED)
        });
        println!("{left:?}:\n{tally}");
    }
}

/// What is lost with one copy of a zone's record: nothing of a clean disk, and nothing with tags, which prove what the
/// copy that is left does not know. Without tags a killed disk goes by that copy as it is, which is the last flush; and a
/// cut one by what that copy calls durable, which is the flush before.
fn record_end(verdict: &Verdict, shape: Shape, left: Left, zone: u32) -> &'static str {
    let missed = match verdict {
        Verdict::Unharmed => return OTHER_COPY,
        Verdict::Missed(missed) => missed,
        Verdict::Refused(why) => panic!("{why}"),
    };
    let spared = shape.cipher.is_tagged() || left == Left::Clean;
    assert!(!spared, "{missed:?}");
    let written = WRITTEN[zone as usize];
    let only = match left {
        Left::Cut if zone == FINISHED => Missed {
            zeroes: (0..written).map(|block| (zone, block)).collect(),
            ..Missed::default()
        },
        Left::Cut => Missed {
            shorter: vec![(zone, 0)],
            ..Missed::default()
        },
        _ => Missed {
            shorter: vec![(zone, FLUSHED[zone as usize])],
            ..Missed::default()
        },
    };
    assert_eq!(missed, &only);
    "what the copy before knows"
}

#[test]
fn every_byte_of_one_copy_of_the_records() {
    for cipher in [Cipher::Aes256Gcm, Cipher::Aes256XtsCrc64, Cipher::Aes256Xts] {
        let shape = shape(cipher);
        let places = Places::of(shape);
        for left in Left::ALL {
            let sound = image(shape, left);
            let expected = expected(shape, &sound, left);
            let mut trials = Vec::new();
            for copy in [RecordCopy::A, RecordCopy::B] {
                for zone in 0..shape.zones {
                    trials.extend((0..RECORD).map(|at| (copy, zone, at)));
                }
            }
            let tally = tally(&trials, |&(copy, zone, at)| {
                let mut bytes = sound.clone();
                bytes[places.record(copy, zone).start + at] ^= bit(at);
                let verdict = judge(shape, &bytes, left.options(), &expected);
                ("record, one copy", record_end(&verdict, shape, left, zone))
            });
            println!("{cipher}, {left:?}:");
            report(&tally, &[("record, one copy", trials.len())]);
        }
    }
}

#[test]
fn every_byte_of_both_copies_of_a_record() {
    let shape = shape(Cipher::Aes256Gcm);
    let places = Places::of(shape);
    for left in Left::ALL {
        let sound = image(shape, left);
        let expected = expected(shape, &sound, left);
        let trials: Vec<(u32, usize)> = (0..shape.zones)
            .flat_map(|zone| (0..RECORD).map(move |at| (zone, at)))
            .collect();
        let tally = tally(&trials, |&(zone, at)| {
            let mut bytes = sound.clone();
            for copy in [RecordCopy::A, RecordCopy::B] {
                bytes[places.record(copy, zone).start + at] ^= bit(at);
            }
            let offline = Verdict::Missed(Missed {
                offline: vec![zone],
                ..Missed::default()
            });
            let mut verdict = judge(shape, &bytes, left.options(), &expected);
            let mut end = OFFLINE;
            if left == Left::Clean {
                assert!(matches!(&verdict, Verdict::Refused(why) if why.contains("records")));
                let accepting = zonevault::volume::Options {
                    accept_records: true,
                    ..left.options()
                };
                verdict = judge(shape, &bytes, accepting, &expected);
                end = REFUSED;
            }
            assert_eq!(verdict, offline, "{left:?} {at}");
            ("record, both copies", end)
        });
        println!("{left:?}:");
        report(&tally, &[("record, both copies", trials.len())]);
    }
}

/// Reads blocks around the touched one too: they are none of its business.
fn flip_and_read(disk: &mut Disk, sound: &[Vec<u8>], shape: Shape, at: usize, place: (u32, u64)) {
    let control = disk.medium().control();
    let offset = at as u64;
    let byte = control.peek(offset, 1)[0];
    control.overwrite(offset, &[byte ^ bit(at)]);
    let (zone, block) = place;
    let written = WRITTEN[zone as usize];
    for near in block.saturating_sub(1)..(block + 2).min(written) {
        let found = disk.block(zone, near);
        if near == block {
            assert_eq!(
                found,
                Err(Status::IoError),
                "zone {zone} block {block} byte {at}"
            );
        } else {
            let start = usize::try_from(near).unwrap() * shape.block_len();
            let content = &sound[zone as usize][start..start + shape.block_len()];
            assert_eq!(
                found.as_deref(),
                Ok(content),
                "beside zone {zone} block {block}"
            );
        }
    }
    control.overwrite(offset, &[byte]);
}

#[test]
fn every_byte_of_data_and_of_tag_slots() {
    for cipher in TAGGED {
        let shape = shape(cipher);
        let places = Places::of(shape);
        let mut disk = Disk::open(medium_of(&image(shape, Left::Clean)), UNCACHED).unwrap();
        let sound = content(shape);
        let mut tally = Tally::default();
        for (zone, &written) in (0..).zip(&WRITTEN) {
            for block in 0..written {
                for (class, range) in [
                    ("data", places.data(zone, block)),
                    ("tag slot", places.slot(zone, block)),
                ] {
                    for at in range {
                        flip_and_read(&mut disk, &sound, shape, at, (zone, block));
                        tally.add(class, ERROR);
                    }
                }
            }
        }
        println!("{cipher}:");
        let blocks = usize::try_from(WRITTEN.iter().sum::<u64>()).unwrap();
        report(&tally, &[("data", blocks * 512), ("tag slot", blocks * 32)]);
    }
}

/// Behind what its record calls durable, a zone of a disk that was cut off from power goes as far as its tags prove, so
/// there damage ends it: it cannot be told from a write that the cut took.
#[test]
fn every_byte_of_what_only_tags_prove_after_a_power_cut() {
    for cipher in TAGGED {
        let shape = shape(cipher);
        let places = Places::of(shape);
        let sound = image(shape, Left::Cut);
        let expected = expected(shape, &sound, Left::Cut);
        let trials: Vec<(u64, usize)> = (FLUSHED[TAIL as usize]..WRITTEN[TAIL as usize])
            .flat_map(|block| {
                let bytes = places.data(TAIL, block).chain(places.slot(TAIL, block));
                bytes.map(move |at| (block, at))
            })
            .collect();
        let tally = tally(&trials, |&(block, at)| {
            let mut bytes = sound.clone();
            bytes[at] ^= bit(at);
            let shorter = Missed {
                shorter: vec![(TAIL, block)],
                ..Missed::default()
            };
            let verdict = judge(shape, &bytes, CUT, &expected);
            assert_eq!(verdict, Verdict::Missed(shorter), "{block} {at}");
            ("block behind the last flush", ENDS_THERE)
        });
        println!("{cipher}:");
        report(&tally, &[("block behind the last flush", trials.len())]);
    }
}

/// AES-XTS has no tags: the README says so. A flipped bit garbles its 16 bytes and nothing else.
#[test]
fn without_tags_a_flip_garbles_one_cipher_block() {
    let shape = shape(Cipher::Aes256Xts);
    let places = Places::of(shape);
    let mut disk = Disk::open(medium_of(&image(shape, Left::Clean)), UNCACHED).unwrap();
    let control = disk.medium().control();
    let sound = content(shape);
    let mut tally = Tally::default();
    for block in 0..WRITTEN[PARTLY as usize] {
        let range = places.data(PARTLY, block);
        for at in range.clone() {
            let offset = at as u64;
            let byte = control.peek(offset, 1)[0];
            control.overwrite(offset, &[byte ^ bit(at)]);
            let found = disk.block(PARTLY, block).unwrap();
            let start = usize::try_from(block).unwrap() * shape.block_len();
            let content = &sound[PARTLY as usize][start..start + shape.block_len()];
            let within = (at - range.start) / 16;
            for (number, (found, written)) in found.chunks(16).zip(content.chunks(16)).enumerate() {
                assert_eq!(found == written, number != within, "byte {at}");
            }
            control.overwrite(offset, &[byte]);
            tally.add("data", GARBLED);
        }
    }
    report(&tally, &[("data", 5 * 512)]);
}

/// Flips of [`random_flips_in_blocks_of_the_usual_size`], each of one to four bytes.
const RANDOM_FLIPS: usize = 10_000;

#[test]
fn random_flips_in_blocks_of_the_usual_size() {
    let mut rng = Rng::from_env(61);
    for cipher in TAGGED {
        let shape = Shape {
            block: 4096,
            capacity: 16,
            zones: 2,
            ..shape(cipher)
        };
        let places = Places::of(shape);
        let mut disk = Disk::open(shape.format(), UNCACHED).unwrap();
        let sound = blocks(shape, 1, 0, 0..16);
        disk.append(1, &sound);
        let control = disk.medium().control();
        let mut tally = Tally::default();
        for _ in 0..RANDOM_FLIPS {
            let block = rng.below(16);
            let (class, range) = match rng.one_in(2) {
                true => ("data, random", places.data(1, block)),
                false => ("tag slot, random", places.slot(1, block)),
            };
            let kept = control.peek(range.start as u64, range.len());
            let mut bytes = kept.clone();
            for _ in 0..rng.range(1, 4) {
                let at = usize::try_from(rng.below(bytes.len() as u64)).unwrap();
                bytes[at] ^= u8::try_from(rng.range(1, 255)).unwrap();
            }
            if bytes == kept {
                tally.add(class, "two flips of the same bits");
                continue;
            }
            control.overwrite(range.start as u64, &bytes);
            assert_eq!(disk.block(1, block), Err(Status::IoError), "block {block}");
            let near = (block + 1) % 16;
            let start = usize::try_from(near).unwrap() * 4096;
            assert_eq!(
                disk.block(1, near).as_deref(),
                Ok(&sound[start..start + 4096])
            );
            control.overwrite(range.start as u64, &kept);
            tally.add(class, ERROR);
        }
        assert_eq!(disk.read(1, 0, sound.len()).as_ref(), Ok(&sound));
        println!("{cipher}:\n{tally}");
    }
}

/// Slots that a read has kept in memory are no excuse for data that changed since; and while they are kept, damage to
/// those on the medium does no harm.
#[test]
fn every_byte_with_slots_in_memory() {
    for cipher in TAGGED {
        let shape = shape(cipher);
        let places = Places::of(shape);
        let cached = zonevault::volume::Options {
            tag_cache: 1 << 20,
            ..UNCACHED
        };
        let mut disk = Disk::open(medium_of(&image(shape, Left::Clean)), cached).unwrap();
        let control = disk.medium().control();
        let sound = content(shape)[PARTLY as usize].clone();
        assert_eq!(disk.read(PARTLY, 0, sound.len()).as_ref(), Ok(&sound));
        let mut tally = Tally::default();
        for block in 0..WRITTEN[PARTLY as usize] {
            let start = usize::try_from(block).unwrap() * shape.block_len();
            let (data, slot) = (places.data(PARTLY, block), places.slot(PARTLY, block));
            for at in data.clone().chain(slot) {
                let offset = at as u64;
                let byte = control.peek(offset, 1)[0];
                control.overwrite(offset, &[byte ^ bit(at)]);
                let found = disk.block(PARTLY, block);
                if data.contains(&at) {
                    assert_eq!(found, Err(Status::IoError), "byte {at}");
                    tally.add("data", ERROR);
                } else {
                    assert_eq!(found.unwrap(), sound[start..start + shape.block_len()]);
                    tally.add("tag slot", "harmless: its sound self is in memory");
                }
                control.overwrite(offset, &[byte]);
                assert!(disk.block(PARTLY, block).is_ok(), "put right again");
            }
        }
        println!("{cipher}, slots in memory:");
        report(&tally, &[("data", 5 * 512), ("tag slot", 5 * 32)]);
    }
}

/// The whole of what the other tests take apart: no byte of an image is in none of their classes.
#[test]
fn the_classes_cover_the_image() {
    for cipher in [Cipher::Aes256Gcm, Cipher::Aes256Xts] {
        let shape = shape(cipher);
        let places = Places::of(shape);
        let sound = image(shape, Left::Clean);
        let mut classes = vec![
            places.header(HeaderCopy::A),
            places.header(HeaderCopy::B),
            places.gap(),
            places.lead_in(),
            places.record_padding(RecordCopy::A),
            places.record_padding(RecordCopy::B),
        ];
        classes.extend((0..8).map(|slot| places.protector(slot)));
        for zone in 0..shape.zones {
            classes.push(places.record(RecordCopy::A, zone));
            classes.push(places.record(RecordCopy::B, zone));
            classes.extend((0..shape.capacity).map(|block| places.data(zone, block)));
            if cipher.is_tagged() {
                classes.extend((0..shape.capacity).map(|block| places.slot(zone, block)));
                classes.push(places.slot_padding(zone));
            }
        }
        classes.sort_by_key(|range| range.start);
        let mut end = 0;
        for range in classes.iter().filter(|range| !range.is_empty()) {
            assert_eq!(range.start, end, "{range:?}");
            end = range.end;
        }
        assert_eq!(end, sound.len());
    }
}

#[test]
fn the_judge_notices_what_is_wrong() {
    let shape = shape(Cipher::Aes256Xts);
    let sound = image(shape, Left::Clean);
    let mut expected: Expected = expected(shape, &sound, Left::Clean);
    expected.content[PARTLY as usize][512] ^= 1;
    let Verdict::Missed(missed) = judge(shape, &sound, UNCACHED, &expected) else {
        panic!("a wrong byte passes");
    };
    assert_eq!(missed.wrong, [(PARTLY, 1)]);
}
