//! Parts of an image, put back from an older copy of it.
//!
//! What is promised. A block belongs to its place and its zone's generation: one of an earlier generation is refused,
//! and where an older copy has no block there is an error. A disk that was closed in order vouches for its records, so
//! records put back are refused. What is not promised, and shown here so that nobody takes it for granted:
//!
//! - A block put back together with its slot, if the zone's write pointer fell back and the place was written again
//!   since: both were written there in this generation. The reader gets the older one.
//! - Records put back on a disk that was not closed in order: its zones are as the older records say. The same after a
//!   clean header of which the newest copy is damaged.
//! - A block and slot from another copy of this very image, both served since: the same, for they have the same keys.
//! - All of it put back at once: that is the disk as it was. Only who remembers the number of the header notices
//!   (`serve --expect-sequence-at-least`).
//!
//! In none of these is anything shown that was not written at that place, and no nonce is used twice: whatever the
//! records say, every opening writes under a new epoch.

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use zonevault::crypt::Cipher;
use zonevault::format::HeaderCopy;
use zonevault::format::image::unlock;
use zonevault::request::{Status, ZoneAction};
use zonevault::store::Medium;
use zonevault::store::mem::Fate;
use zonevault::volume::Options;
use zonevault::zone::{RecordCopy, ZoneState};

use crate::disk::{Disk, Shape, bytes_of, credential, medium_of};
use crate::scene::{
    CUT, Expected, FINISHED, FULL, Left, Missed, PARTLY, Places, RESET, TAGGED, TAIL, UNCACHED,
    Verdict, WRITTEN, blocks, compare, content, expected, image, judge, put_back, shape,
};

const BOTH: [RecordCopy; 2] = [RecordCopy::A, RecordCopy::B];
const GCM: Cipher = Cipher::Aes256Gcm;

/// A disk's two states: as the tour left it, closed in order, and as a later session left it, in which
/// [`TAIL`] got two more blocks, [`RESET`] was reset again and got two, and [`PARTLY`] got one.
struct History {
    shape: Shape,
    places: Places,
    old: Vec<u8>,
    new: Vec<u8>,
    /// What the new state shows.
    expected: Expected,
    left: Left,
}

impl History {
    fn of(cipher: Cipher, left: Left) -> Self {
        let shape = shape(cipher);
        let old = image(shape, Left::Clean);
        let mut disk = Disk::open(medium_of(&old), UNCACHED).unwrap();
        let mut content = content(shape);
        disk.zone(ZoneAction::Reset, RESET);
        content[RESET as usize].clear();
        for (zone, life, more) in [(TAIL, 0, 6..8), (RESET, 2, 0..2), (PARTLY, 0, 5..6)] {
            let data = blocks(shape, zone, life, more);
            disk.append(zone, &data);
            content[zone as usize].extend_from_slice(&data);
        }
        disk.flush();
        let new = bytes_of(&left.leave(disk));
        let mut history = Self {
            shape,
            places: Places::of(shape),
            old,
            new,
            expected: Expected {
                content,
                states: Vec::new(),
            },
            left,
        };
        let disk = history.open(&history.new).unwrap();
        history.expected.states = (0..shape.zones).map(|zone| disk.state(zone)).collect();
        assert_eq!(history.judge(&history.new), Verdict::Unharmed);
        history
    }

    fn open(&self, bytes: &[u8]) -> Result<Disk, String> {
        Disk::open(medium_of(bytes), self.left.options())
    }

    fn judge(&self, bytes: &[u8]) -> Verdict {
        judge(self.shape, bytes, self.left.options(), &self.expected)
    }

    /// The new image with these parts of the old one.
    fn with(&self, parts: &[crate::scene::Range]) -> Vec<u8> {
        let mut bytes = self.new.clone();
        for part in parts {
            put_back(&mut bytes, &self.old, part.clone());
        }
        bytes
    }

    fn newest_header(&self) -> HeaderCopy {
        let unlocked = unlock(&medium_of(&self.new), &credential()).unwrap();
        HeaderCopy::of_sequence(unlocked.header.sequence())
    }

    fn older_header(&self) -> HeaderCopy {
        match self.newest_header() {
            HeaderCopy::A => HeaderCopy::B,
            HeaderCopy::B => HeaderCopy::A,
        }
    }

    fn both_records(&self, zone: u32) -> Vec<crate::scene::Range> {
        BOTH.map(|copy| self.places.record(copy, zone)).to_vec()
    }

    fn both_headers(&self) -> Vec<crate::scene::Range> {
        HeaderCopy::BOTH
            .map(|copy| self.places.header(copy))
            .to_vec()
    }
}

fn bad(zone: u32, blocks: std::ops::Range<u64>) -> Verdict {
    Verdict::Missed(Missed {
        bad: blocks.map(|block| (zone, block)).collect(),
        ..Missed::default()
    })
}

fn shorter(zone: u32, here: u64) -> Missed {
    Missed {
        shorter: vec![(zone, here)],
        ..Missed::default()
    }
}

fn refused_for_its_records(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Refused(why) if why.contains("not those with which the disk was closed"))
}

// Data and tags.

#[test]
fn data_and_tags_of_a_zone_from_when_it_was_shorter() {
    for cipher in TAGGED {
        for left in Left::ALL {
            let history = History::of(cipher, left);
            let places = &history.places;
            let zone = history.with(&[places.zone(TAIL)]);
            assert_eq!(history.judge(&zone), bad(TAIL, 6..8), "{cipher} {left:?}");
            for block in 0..8 {
                let parts = [places.data(TAIL, block), places.slot(TAIL, block)];
                let verdict = match block {
                    0..6 => Verdict::Unharmed,
                    _ => bad(TAIL, block..block + 1),
                };
                assert_eq!(history.judge(&history.with(&parts)), verdict);
                assert_eq!(history.judge(&history.with(&parts[..1])), verdict);
                assert_eq!(history.judge(&history.with(&parts[1..])), verdict);
            }
        }
    }
}

#[test]
fn data_and_tags_of_a_zone_from_before_its_reset() {
    for cipher in TAGGED {
        for left in Left::ALL {
            let history = History::of(cipher, left);
            let zone = history.with(&[history.places.zone(RESET)]);
            assert_eq!(history.judge(&zone), bad(RESET, 0..2), "{cipher} {left:?}");
        }
    }
}

#[test]
fn all_tags() {
    for cipher in TAGGED {
        for left in Left::ALL {
            let history = History::of(cipher, left);
            let zones = 0..history.shape.zones;
            let slots: Vec<_> = zones
                .map(|zone| {
                    history.places.slot(zone, 0).start..history.places.slot_padding(zone).end
                })
                .collect();
            let lost = Missed {
                bad: vec![(PARTLY, 5), (RESET, 0), (RESET, 1), (TAIL, 6), (TAIL, 7)],
                ..Missed::default()
            };
            let verdict = history.judge(&history.with(&slots));
            assert_eq!(verdict, Verdict::Missed(lost), "{cipher} {left:?}");
        }
    }
}

/// Not promised: the place was written twice in one generation, and each of the two blocks was right there once.
#[test]
fn a_block_from_before_its_zone_fell_back_passes() {
    for cipher in TAGGED {
        let shape = shape(cipher);
        let places = Places::of(shape);
        let before = image(shape, Left::Killed);
        let mut cut = before.clone();
        for block in 4..6 {
            cut[places.data(TAIL, block)].fill(0);
            cut[places.slot(TAIL, block)].fill(0);
        }
        let mut disk = Disk::open(medium_of(&cut), CUT).unwrap();
        assert_eq!(disk.write_pointer(TAIL), 4);
        disk.append(TAIL, &blocks(shape, TAIL, 9, 4..6));
        let mut bytes = bytes_of(&disk.close());
        let parts = [places.data(TAIL, 4), places.slot(TAIL, 4)];
        for part in &parts {
            let mut bytes = bytes.clone();
            put_back(&mut bytes, &before, part.clone());
            let mut disk = Disk::open(medium_of(&bytes), UNCACHED).unwrap();
            assert!(disk.block(TAIL, 4).is_err(), "one without the other");
        }
        for part in parts {
            put_back(&mut bytes, &before, part);
        }
        let mut disk = Disk::open(medium_of(&bytes), UNCACHED).unwrap();
        assert_eq!(disk.block(TAIL, 4), Ok(blocks(shape, TAIL, 0, 4..5)));
        assert_eq!(disk.block(TAIL, 5), Ok(blocks(shape, TAIL, 9, 5..6)));
    }
}

/// Not promised: two copies of one image that went their own ways have the same keys, so a block that one of them wrote
/// at a place is as good in the other, if neither has reset the zone since. Their nonces differ: each has its own epochs.
#[test]
fn a_block_of_a_copy_that_went_its_own_way_passes() {
    for cipher in TAGGED {
        let shape = shape(cipher);
        let places = Places::of(shape);
        let common = image(shape, Left::Clean);
        let [one, two] = [1, 2].map(|life| {
            let mut disk = Disk::open(medium_of(&common), UNCACHED).unwrap();
            disk.append(TAIL, &blocks(shape, TAIL, life, 6..8));
            disk.zone(ZoneAction::Reset, RESET);
            disk.append(RESET, &blocks(shape, RESET, life, 0..2));
            bytes_of(&disk.close())
        });
        let slot = places.slot(TAIL, 6);
        assert_ne!(
            one[slot.clone()][..12],
            two[slot.clone()][..12],
            "one nonce"
        );
        let mut bytes = one.clone();
        put_back(&mut bytes, &two, places.data(TAIL, 6));
        put_back(&mut bytes, &two, slot);
        put_back(&mut bytes, &two, places.zone(RESET));
        let mut disk = Disk::open(medium_of(&bytes), UNCACHED).unwrap();
        assert_eq!(disk.block(TAIL, 6), Ok(blocks(shape, TAIL, 2, 6..7)));
        assert_eq!(disk.block(TAIL, 7), Ok(blocks(shape, TAIL, 1, 7..8)));
        // A reset parts them for good; of the CRC, which knows no keys, only the plaintext.
        match (cipher, disk.block(RESET, 0)) {
            (GCM, found) => assert!(found.is_err()),
            (_, found) => assert_ne!(found, Ok(blocks(shape, RESET, 2, 0..1))),
        }
    }
}

// Records.

#[test]
fn one_copy_of_a_record_on_a_clean_disk() {
    for cipher in [GCM, Cipher::Aes256Xts] {
        let history = History::of(cipher, Left::Clean);
        for copy in BOTH {
            for zone in (0..history.shape.zones).filter(|&zone| zone != RESET) {
                let bytes = history.with(&[history.places.record(copy, zone)]);
                assert_eq!(history.judge(&bytes), Verdict::Unharmed, "{copy:?} {zone}");
            }
        }
    }
}

/// The newer copy holds, and the older one is of a generation that was reset: it must not be taken for a reset that was
/// cut off, whose data is to be given back.
#[test]
fn one_copy_of_a_record_from_before_a_reset() {
    for cipher in [GCM, Cipher::Aes256Xts] {
        for left in Left::ALL {
            let history = History::of(cipher, left);
            let mut unharmed = 0;
            for copy in BOTH {
                let bytes = history.with(&[history.places.record(copy, RESET)]);
                let verdict = history.judge(&bytes);
                if verdict == Verdict::Unharmed {
                    unharmed += 1;
                    continue;
                }
                // The newest copy is gone: without tags a cut disk goes by the flush before it.
                assert_eq!(verdict, Verdict::Missed(shorter(RESET, 0)), "{copy:?}");
                assert!(!cipher.is_tagged() && left == Left::Cut, "{left:?}");
            }
            assert!(unharmed >= 1, "{cipher} {left:?}");
        }
    }
}

#[test]
fn both_copies_of_a_record_on_a_clean_disk_are_refused() {
    for cipher in [GCM, Cipher::Aes256XtsCrc64, Cipher::Aes256Xts] {
        let history = History::of(cipher, Left::Clean);
        let mut refused = 0;
        for zone in 0..history.shape.zones {
            let bytes = history.with(&history.both_records(zone));
            let verdict = history.judge(&bytes);
            let changed = bytes != history.new;
            assert_eq!(
                changed,
                refused_for_its_records(&verdict),
                "{zone} {verdict:?}"
            );
            refused += u32::from(changed);
            let with_data = history
                .with(&[history.both_records(zone), vec![history.places.zone(zone)]].concat());
            assert_eq!(changed, refused_for_its_records(&history.judge(&with_data)));
        }
        assert!(refused >= 3, "the zones that were written since");
        let all = history.with(&[history.places.records()]);
        assert!(refused_for_its_records(&history.judge(&all)));
    }
}

/// The copy that is not put back is newer and holds; where it was the newest that was put back, the other one knows what
/// the last flush covered. Not promised: both are sound, so after a kill nothing makes anybody look for more.
#[test]
fn one_copy_of_a_record_on_an_unclean_disk() {
    for left in [Left::Killed, Left::Cut] {
        let history = History::of(GCM, left);
        for copy in BOTH {
            for zone in [PARTLY, TAIL] {
                let bytes = history.with(&[history.places.record(copy, zone)]);
                assert_eq!(history.judge(&bytes), Verdict::Unharmed, "{left:?} {zone}");
            }
        }
        // The same with a record that no flush covers.
        let sound = image(history.shape, left);
        let mut expected = expected(history.shape, &sound, left);
        let mut disk = Disk::open(medium_of(&sound), left.options()).unwrap();
        let seventh = blocks(history.shape, TAIL, 0, 6..7);
        disk.append(TAIL, &seventh);
        expected.content[TAIL as usize].extend_from_slice(&seventh);
        let later = bytes_of(&disk.kill());
        let mut ends = BTreeSet::new();
        for copy in BOTH {
            let mut bytes = later.clone();
            put_back(&mut bytes, &sound, history.places.record(copy, TAIL));
            ends.insert(judge(history.shape, &bytes, left.options(), &expected));
        }
        let mut possible = BTreeSet::from([Verdict::Unharmed]);
        if left == Left::Killed {
            possible.insert(Verdict::Missed(shorter(TAIL, 6)));
        }
        assert_eq!(ends, possible, "{left:?}");
    }
}

/// Not promised. After a kill the zone is as the older record says; what the guest writes next goes over what it wrote
/// before, under a new epoch, so no nonce comes twice.
#[test]
fn both_copies_of_a_record_on_a_killed_disk_set_the_zone_back() {
    for cipher in [GCM, Cipher::Aes256XtsCrc64, Cipher::Aes256Xts] {
        let history = History::of(cipher, Left::Killed);
        let bytes = history.with(&history.both_records(TAIL));
        assert_eq!(history.judge(&bytes), Verdict::Missed(shorter(TAIL, 6)));
        if !cipher.is_tagged() {
            continue;
        }
        let stamps = |bytes: &[u8]| -> Vec<Vec<u8>> {
            let slots =
                (0..WRITTEN[TAIL as usize] + 2).map(|block| history.places.slot(TAIL, block));
            slots.map(|slot| bytes[slot][..12].to_vec()).collect()
        };
        let mut seen: BTreeSet<Vec<u8>> = stamps(&history.new).into_iter().collect();
        for round in 0..4 {
            // Again and again from the same record.
            let mut disk = history.open(&bytes).unwrap();
            disk.append(TAIL, &blocks(history.shape, TAIL, 10 + round, 6..8));
            let after = bytes_of(&disk.close());
            let new = stamps(&after).into_iter().skip(6);
            assert!(
                new.into_iter().all(|stamp| seen.insert(stamp)),
                "a nonce came twice"
            );
        }
    }
}

/// After a power cut tags find what the older record does not know; without tags the zone is set back.
#[test]
fn both_copies_of_a_record_on_a_cut_disk() {
    for cipher in TAGGED {
        let history = History::of(cipher, Left::Cut);
        for zone in [PARTLY, TAIL] {
            let bytes = history.with(&history.both_records(zone));
            assert_eq!(history.judge(&bytes), Verdict::Unharmed, "{cipher} {zone}");
        }
    }
    let history = History::of(Cipher::Aes256Xts, Left::Cut);
    let bytes = history.with(&history.both_records(TAIL));
    assert_eq!(history.judge(&bytes), Verdict::Missed(shorter(TAIL, 6)));
}

/// Not promised on an unclean disk: with its old record a zone has its old key. The blocks written since do not open
/// under it; those of then do, if they are put back too. A reset erases what nobody kept a copy of.
#[test]
fn both_copies_of_a_record_from_before_a_reset_on_an_unclean_disk() {
    for cipher in TAGGED {
        for left in [Left::Killed, Left::Cut] {
            let history = History::of(cipher, left);
            let records = history.both_records(RESET);
            let mut disk = history.open(&history.with(&records)).unwrap();
            assert_eq!(disk.write_pointer(RESET), 4);
            for block in 0..4 {
                assert!(disk.block(RESET, block).is_err(), "{cipher} {left:?}");
            }
            let all = [records, vec![history.places.zone(RESET)]].concat();
            let mut disk = history.open(&history.with(&all)).unwrap();
            let old = content(history.shape).swap_remove(RESET as usize);
            assert_eq!(disk.read(RESET, 0, old.len()), Ok(old), "{cipher} {left:?}");
            // The number of the generation comes again; its salt does not, and so neither its key.
            disk.zone(ZoneAction::Reset, RESET);
            disk.append(RESET, &blocks(history.shape, RESET, 7, 0..2));
            let mut bytes = bytes_of(&disk.close());
            put_back(&mut bytes, &history.new, history.places.zone(RESET));
            let mut disk = history.open(&bytes).unwrap();
            for block in 0..2 {
                let found = disk.block(RESET, block);
                let written = blocks(history.shape, RESET, 2, block..block + 1);
                match cipher {
                    GCM => assert!(found.is_err(), "another life of generation 2"),
                    // A CRC knows no keys: it fits, and what is shown is noise under the new key.
                    _ => assert!(found.is_ok_and(|found| found != written)),
                }
            }
        }
    }
}

/// Records that are put back while the disk is served: what the daemon knows is what it closes the disk with.
#[test]
fn records_put_back_under_a_running_daemon_are_not_vouched_for() {
    for cipher in [GCM, Cipher::Aes256Xts] {
        let history = History::of(cipher, Left::Clean);
        // After a session without a write there is nothing to write of the zone.
        let idle = history.open(&history.new).unwrap().close();
        let disk = Disk::open(idle, history.left.options()).unwrap();
        for part in history.both_records(TAIL) {
            let offset = part.start as u64;
            let control = disk.medium().control();
            control.overwrite(offset, &history.old[part]);
        }
        let bytes = bytes_of(&disk.close());
        let verdict = history.judge(&bytes);
        let noticed = verdict == Verdict::Unharmed || refused_for_its_records(&verdict);
        assert!(noticed, "{cipher}: {verdict:?}");
    }
}

// Headers.

#[test]
fn one_header_copy_put_back_changes_nothing() {
    for cipher in [GCM, Cipher::Aes256Xts] {
        let clean = History::of(cipher, Left::Clean);
        for copy in HeaderCopy::BOTH {
            let bytes = clean.with(&[clean.places.header(copy)]);
            assert_eq!(clean.judge(&bytes), Verdict::Unharmed, "{cipher} {copy:?}");
        }
    }
    // Of an open disk the newer copy says so, and the one before it speaks for records that are not there any more.
    for left in [Left::Killed, Left::Cut] {
        let history = History::of(GCM, left);
        let bytes = history.with(&[history.places.header(history.newest_header())]);
        assert!(refused_for_its_records(&history.judge(&bytes)));
        let bytes = history.with(&[history.places.header(history.older_header())]);
        assert_eq!(history.judge(&bytes), Verdict::Unharmed);
    }
}

#[test]
fn both_header_copies_put_back_do_not_fit_the_records() {
    for left in Left::ALL {
        let history = History::of(GCM, left);
        let bytes = history.with(&history.both_headers());
        assert!(refused_for_its_records(&history.judge(&bytes)), "{left:?}");
    }
}

/// Not promised, and what the number of the header is for: a disk that was closed says so in both copies of its header,
/// but with one of them damaged it may have been opened since, and an unclean disk does not vouch for its records.
#[test]
fn a_clean_header_undone_lets_older_records_in() {
    let number = |bytes: &[u8]| {
        let unlocked = unlock(&medium_of(bytes), &credential()).unwrap();
        unlocked.header.sequence()
    };
    for cipher in [GCM, Cipher::Aes256Xts] {
        let history = History::of(cipher, Left::Clean);
        let newest = history.places.header(history.newest_header());
        let records = history.both_records(TAIL);
        let put_back = history.with(&[records.clone(), vec![newest.clone()]].concat());
        assert!(refused_for_its_records(&history.judge(&put_back)));
        let mut damaged = history.with(&records);
        damaged[newest.start + 300] ^= 1;
        let verdict = history.judge(&damaged);
        assert_eq!(verdict, Verdict::Missed(shorter(TAIL, 6)), "{cipher}");
        assert!(
            number(&damaged) < number(&history.new),
            "a pinned number notices"
        );
        // The damage alone takes nothing.
        let mut damaged = history.new.clone();
        damaged[newest.start + 300] ^= 1;
        assert_eq!(history.judge(&damaged), Verdict::Unharmed, "{cipher}");
    }
}

/// A flush that syncs once leaves it to the next one to make records durable that say so. If the power fails before, what
/// was flushed is found by its tags; and where such a block has rotted, an error is due, and neither zeroes nor a shorter
/// zone for what follows it.
#[test]
fn a_rotten_block_of_a_finished_zone_after_a_power_cut() {
    let shape = shape(GCM);
    let places = Places::of(shape);
    let mut disk = Disk::open(shape.format(), UNCACHED).unwrap();
    let data = blocks(shape, FINISHED, 0, 0..3);
    disk.append(FINISHED, &data);
    disk.zone(ZoneAction::Finish, FINISHED);
    let medium = disk.medium().control().crash_with(|_| Fate::Lost);
    let mut sound = Disk::open(medium_of(&bytes_of(&medium)), CUT).unwrap();
    assert_eq!(sound.read(FINISHED, 0, data.len()), Ok(data.clone()));
    let mut bytes = bytes_of(&medium);
    bytes[places.data(FINISHED, 1).start] ^= 1;
    let mut disk = Disk::open(medium_of(&bytes), CUT).unwrap();
    assert_eq!(disk.state(FINISHED), ZoneState::Full);
    let found: Vec<_> = (0..3).map(|block| disk.block(FINISHED, block)).collect();
    let written = |block: usize| Ok(data[block * 512..][..512].to_vec());
    assert_eq!(found, [written(0), Err(Status::IoError), written(2)]);
}

/// Not promised: headers and records of then are a disk of then, whatever lies in its zones.
#[test]
fn all_metadata_put_back() {
    for cipher in TAGGED {
        let history = History::of(cipher, Left::Clean);
        let metadata = 0..history.places.records().end;
        let mut disk = history.open(&history.with(&[metadata])).unwrap();
        assert_eq!(disk.write_pointer(TAIL), 6);
        assert_eq!(
            disk.block(TAIL, 5),
            Ok(blocks(history.shape, TAIL, 0, 5..6))
        );
        // Data that was reset since is of another key.
        assert!((0..4).all(|block| disk.block(RESET, block).is_err()));
    }
}

// Everything.

/// Not promised: the whole image put back is the disk as it was. Nothing in it can tell.
#[test]
fn the_whole_image_put_back_is_not_noticed() {
    for cipher in [GCM, Cipher::Aes256XtsCrc64, Cipher::Aes256Xts] {
        let history = History::of(cipher, Left::Clean);
        let before = expected(history.shape, &history.old, Left::Clean);
        let mut disk = history.open(&history.old).unwrap();
        assert_eq!(
            compare(history.shape, &mut disk, &before),
            Verdict::Unharmed
        );
        assert_eq!(disk.state(FULL), ZoneState::Full);
    }
}

/// Serves an image with options, to the end of the process, which comes at once: it is refused, or has no socket to
/// listen on.
fn serve(image: &[u8], options: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let [image_file, key_file] = ["disk", "key"].map(|name| dir.path().join(name));
    std::fs::write(&image_file, image).unwrap();
    std::fs::write(&key_file, [7; 64]).unwrap();
    std::fs::set_permissions(&key_file, Permissions::from_mode(0o600)).unwrap();
    let output = Command::new("timeout")
        .args(["20", env!("CARGO_BIN_EXE_zonevault"), "serve"])
        .arg(&image_file)
        .arg("--socket")
        .arg(dir.path().join("no/such/folder/socket"))
        .arg("--key-file")
        .arg(&key_file)
        .args(["--cache", "writeback"])
        .args(options)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_pinned_header_number_notices() {
    let history = History::of(GCM, Left::Clean);
    let number = unlock(&medium_of(&history.new), &credential())
        .unwrap()
        .header
        .sequence();
    let number = number.to_string();
    let pinned = ["--expect-sequence-at-least", number.as_str()];
    let whole = serve(&history.old, &pinned);
    assert!(whole.contains("older state of the disk"), "{whole}");
    let newest = history.places.header(history.newest_header());
    let undone = serve(&history.with(std::slice::from_ref(&newest)), &pinned);
    assert!(undone.contains("older state of the disk"), "{undone}");
    let mut damaged = history.new.clone();
    damaged[newest.start + 300] ^= 1;
    let damaged = serve(&damaged, &pinned);
    assert!(damaged.contains("older state of the disk"), "{damaged}");
    let sound = serve(&history.new, &pinned);
    assert!(!sound.contains("older state"), "it is the newest: {sound}");
    assert!(sound.contains("socket"), "{sound}");
}

/// Read-only serving goes by the same rules.
#[test]
fn a_read_only_disk_refuses_older_records_too() {
    let history = History::of(GCM, Left::Clean);
    let bytes = history.with(&history.both_records(TAIL));
    let options = Options {
        read_only: true,
        ..UNCACHED
    };
    let medium = medium_of(&bytes);
    let why = Disk::open(medium.clone(), options).err().unwrap();
    assert!(
        why.contains("not those with which the disk was closed"),
        "{why}"
    );
    assert_eq!(bytes_of(&medium), bytes);
    assert_eq!(medium.size().unwrap(), bytes.len() as u64);
}
