//! `check`: what it finds, what it names, what it repairs and what it leaves alone.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use zonevault::format::{Layout, RECORD_LEN};
use zonevault::geometry::ZoneIndex;
use zonevault::store::Access;
use zonevault::zone::RecordCopy;

use super::bench::{Bench, Done, open_image};
use super::disk::{BLOCK, Session, flip, layout, put_back};

const CHECK: [&str; 4] = ["check", "disk.img", "--key-file", "key"];
/// Zones with content, and how much of it, in blocks.
const CONTENT: [(u32, u64); 3] = [(2, 16), (5, 9), (6, 1)];

/// A disk of 16 zones of 16 blocks, and what is done to it.
struct Subject {
    bench: Bench,
    image: PathBuf,
    layout: Layout,
}

impl Subject {
    /// One with content, closed in order.
    fn closed() -> Self {
        let subject = Self::new(&[]);
        let mut session = subject.session();
        for (zone, blocks) in CONTENT {
            session.append(zone, blocks);
        }
        session.close();
        subject
    }

    /// A fresh one.
    fn new(options: &[&str]) -> Self {
        let bench = Bench::new();
        let create = ["create", "disk.img", "--key-file", "key"];
        let small = ["--size", "1M", "--zone-size", "64K"];
        let size = if options.contains(&"--size") {
            &[]
        } else {
            &small[..]
        };
        bench.succeed(&[&create, size, options].concat());
        let image = bench.path("disk.img");
        let layout = layout(&image, &bench.path("key"));
        Self {
            bench,
            image,
            layout,
        }
    }

    fn session(&self) -> Session {
        Session::open(&self.image, &self.bench.path("key"))
    }

    fn data(&self, zone: u32, block: u64) -> u64 {
        self.layout.data_offset(ZoneIndex(zone)) + block * BLOCK
    }

    fn slot(&self, zone: u32, block: u64) -> u64 {
        self.layout.tag_offset(ZoneIndex(zone)) + block * 32
    }

    fn record(&self, copy: RecordCopy, zone: u32) -> u64 {
        self.layout.record_offset(copy, ZoneIndex(zone))
    }

    fn check(&self, options: &[&str], code: i32) -> Done {
        let args = [&CHECK[..], options].concat();
        let done = self.bench.run(&args);
        assert_eq!(done.code, code, "{options:?}: {}{}", done.out, done.err);
        done
    }

    fn json(&self, options: &[&str], code: i32) -> Value {
        let done = self.check(&[options, &["--json"]].concat(), code);
        serde_json::from_str(&done.out).unwrap()
    }
}

#[test]
fn a_sound_disk_is_sound() {
    let subject = Subject::closed();
    let before = fs::read(&subject.image).unwrap();
    let done = subject.bench.succeed(&CHECK);
    for words in [
        "both copies sound, closed in order",
        "keys         1 sound",
        "16 sound, those with which the disk was closed",
        "26 verified",
        "none bad",
        "result       sound",
    ] {
        assert!(done.out.contains(words), "{words}: {}", done.out);
    }
    let facts = subject.json(&["--repair"], 0);
    assert_eq!(facts["outcome"], "sound");
    assert_eq!(facts["blocks_read"], 26);
    assert_eq!(facts["zones_checked"], 16);
    assert_eq!(facts["records_match_header"], true);
    assert_eq!(subject.json(&["--zone", "5"], 0)["blocks_read"], 9);
    let two = ["--zone", "5", "--zone", "2", "--zone", "5"];
    assert_eq!(subject.json(&two, 0)["blocks_read"], 25);
    assert!(fs::read(&subject.image).unwrap() == before);
}

#[test]
fn bad_blocks_are_named() {
    let subject = Subject::closed();
    flip(&subject.image, subject.data(2, 3));
    flip(&subject.image, subject.data(2, 4) + BLOCK - 1);
    flip(&subject.image, subject.slot(2, 15) + 30);
    flip(&subject.image, subject.slot(5, 7));
    let blank = vec![0; fs::read(&subject.image).unwrap().len()];
    put_back(&blank, &subject.image, subject.slot(5, 8), 32);
    // Behind the write pointer there is nothing to be damaged.
    flip(&subject.image, subject.data(6, 1));
    flip(&subject.image, subject.data(0, 0));
    let before = fs::read(&subject.image).unwrap();
    let done = subject.check(&[], 6);
    for words in [
        "    zone 2: blocks 3 to 4 (2): tag does not match\n",
        "    zone 2: block 15: tag does not match\n",
        "    zone 5: block 7: tag does not match\n",
        "    zone 5: block 8: no tag\n",
        "5 bad in 2 zones\n",
        "result       damaged\n",
    ] {
        assert!(done.out.contains(words), "{words}: {}", done.out);
    }
    assert_eq!(done.err.lines().count(), 1, "{}", done.err);
    assert!(done.err.contains("damaged: 5 blocks in 2 zones"));
    let facts = subject.json(&["--repair"], 6);
    assert_eq!(facts["outcome"], "damaged");
    assert_eq!(facts["bad_blocks"], 5);
    assert_eq!(
        facts["block_damage"][1],
        serde_json::json!({
            "zone": 5, "bad_blocks": 2, "bad_blocks_in_no_run": 0, "runs": [
                { "first_block": 7, "blocks": 1, "why": "tag does not match" },
                { "first_block": 8, "blocks": 1, "why": "no tag" },
            ],
        })
    );
    assert_eq!(subject.json(&["--zone", "5"], 6)["bad_blocks"], 2);
    subject.check(&["--zone", "6", "--zone", "0"], 0);
    assert!(fs::read(&subject.image).unwrap() == before, "data changed");
}

#[test]
fn a_zone_full_of_damage_is_named_in_part() {
    let subject = Subject::new(&["--size", "4M", "--zone-size", "256K"]);
    let mut session = subject.session();
    session.append(1, 64);
    session.append(2, 64);
    session.close();
    for block in (0..64).step_by(2) {
        flip(&subject.image, subject.data(1, block));
    }
    for block in 10..60 {
        flip(&subject.image, subject.data(2, block));
    }
    let done = subject.check(&[], 6);
    assert!(
        done.out.contains("    zone 1: block 30: tag"),
        "{}",
        done.out
    );
    assert!(
        !done.out.contains("    zone 1: block 32: tag"),
        "{}",
        done.out
    );
    assert!(
        done.out.contains("    zone 1: 16 more blocks\n"),
        "{}",
        done.out
    );
    assert!(
        done.out.contains("    zone 2: blocks 10 to 59 (50)"),
        "{}",
        done.out
    );
    let facts = subject.json(&[], 6);
    assert_eq!(facts["bad_blocks"], 82);
    assert_eq!(facts["block_damage"][0]["bad_blocks_in_no_run"], 16);
}

#[test]
fn a_damaged_copy_of_a_record_is_repaired_from_the_other() {
    let subject = Subject::closed();
    let sound = fs::read(&subject.image).unwrap();
    flip(&subject.image, subject.record(RecordCopy::A, 2) + 50);
    flip(&subject.image, subject.record(RecordCopy::B, 9));
    let done = subject.check(&[], 6);
    let words = "    zone 2: copy A is damaged: the record fails its authentication\n";
    assert!(done.out.contains(words), "{}", done.out);
    assert!(
        done.out.contains("14 sound, 2 damaged, those with"),
        "{}",
        done.out
    );
    assert!(done.err.contains("--repair"), "{}", done.err);
    let one = subject.json(&["--zone", "9"], 6);
    assert_eq!(one["damaged_records"], 1);
    assert_eq!(one["record_damage"][0]["copy"], "B");
    let repaired = subject.json(&["--repair"], 7);
    assert_eq!(repaired["outcome"], "repaired");
    assert_eq!(repaired["record_damage"][1]["repaired"], true);
    assert!(fs::read(&subject.image).unwrap() == sound);
    subject.check(&[], 0);
}

#[test]
fn a_stale_copy_of_a_record_is_repaired_and_both_put_back_are_not() {
    let subject = Subject::new(&[]);
    let fresh = fs::read(&subject.image).unwrap();
    let mut session = subject.session();
    session.append(2, 3);
    session.close();
    let closed = fs::read(&subject.image).unwrap();
    let record = RECORD_LEN as u64;
    put_back(
        &fresh,
        &subject.image,
        subject.record(RecordCopy::A, 2),
        record,
    );
    let done = subject.check(&[], 6);
    let words = "zone 2: copy A is stale: it is older than the other one\n";
    assert!(done.out.contains(words), "{}", done.out);
    subject.check(&["--repair"], 7);
    assert!(fs::read(&subject.image).unwrap() == closed);
    for copy in [RecordCopy::A, RecordCopy::B] {
        put_back(&fresh, &subject.image, subject.record(copy, 2), record);
    }
    let before = fs::read(&subject.image).unwrap();
    let done = subject.check(&["--repair"], 6);
    let words = "NOT those with which the disk was closed";
    assert!(done.out.contains(words), "{}", done.out);
    assert!(fs::read(&subject.image).unwrap() == before);
}

#[test]
fn a_lost_record_is_beyond_repair() {
    let subject = Subject::closed();
    flip(&subject.image, subject.record(RecordCopy::A, 5));
    flip(&subject.image, subject.record(RecordCopy::B, 5));
    flip(&subject.image, subject.record(RecordCopy::B, 6));
    let before = fs::read(&subject.image).unwrap();
    let done = subject.check(&["--repair"], 6);
    let words = "zone 5: both copies are damaged, and the zone with them";
    assert!(done.out.contains(words), "{}", done.out);
    assert!(
        done.err.contains("restore lost data from a backup"),
        "{}",
        done.err
    );
    assert!(fs::read(&subject.image).unwrap() == before);
    let shown = subject.bench.json(&["inspect", "disk.img", "--json"]);
    let counts =
        serde_json::json!({ "sound": 14, "one_copy": 1, "both_copies": 1, "as_closed": null });
    assert_eq!(shown["zone_records"], counts);
    let shown = subject.bench.succeed(&["inspect", "disk.img"]).out;
    let words = "14 readable, none verified, 1 with one copy damaged, 1 with both copies damaged";
    assert!(shown.contains(words), "{shown}");
    let zones = subject.bench.succeed(&["zones", "disk.img"]).out;
    assert!(zones.contains("2 of 16 records are damaged"), "{zones}");
}

#[test]
fn a_damaged_header_copy_is_repaired_as_not_closed() {
    let subject = Subject::closed();
    for (at, copy) in [(100, "A"), (4096 + 100, "B")] {
        let before = subject.bench.json(&["inspect", "disk.img", "--json"]);
        flip(&subject.image, at);
        let words = format!("copy {copy} is damaged: the header is damaged; the other one: ");
        let done = subject.check(&[], 6);
        assert!(done.out.contains(&words), "{}", done.out);
        let repaired = subject.json(&["--repair"], 7);
        assert_eq!(repaired["header_damage"]["copy"], copy);
        assert_eq!(repaired["header_damage"]["repaired"], true);
        let facts = subject.json(&[], 0);
        assert_eq!(facts["state"], "open");
        assert_eq!(facts["blocks_unflushed"], 0);
        assert_eq!(facts["blocks_read"], 26);
        let sequence = |facts: &Value| facts["sequence"].as_u64().unwrap();
        // The one that was lost may have been the newer one: then it has its number now.
        assert!(sequence(&facts) >= sequence(&before));
        subject.session().close();
        assert_eq!(subject.json(&[], 0)["state"], "clean");
    }
    // An older header, put back into one of the copies, is none that could be there.
    let old = fs::read(&subject.image).unwrap();
    subject.session().close();
    subject.session().close();
    put_back(&old, &subject.image, 0, 4096);
    let done = subject.bench.run(&CHECK);
    assert_eq!(done.code, 6, "{}", done.out);
    assert!(done.out.contains("older than it can be"), "{}", done.out);
}

#[test]
fn of_an_open_disk_only_what_was_flushed_is_judged() {
    let subject = Subject::new(&[]);
    let mut session = subject.session();
    session.append(2, 4);
    session.append(3, 2);
    session.flush();
    session.append(2, 5);
    drop(session);
    let facts = subject.json(&[], 0);
    assert_eq!(facts["blocks_read"], 6);
    assert_eq!(facts["blocks_unflushed"], 5);
    assert_eq!(facts["records_match_header"], Value::Null);
    flip(&subject.image, subject.data(2, 4));
    let done = subject.check(&[], 0);
    assert!(done.out.contains("not closed in order"), "{}", done.out);
    assert!(done.out.contains("5 after the last flush left to recovery"));
    // Which copy of a record holds, the next opening decides.
    flip(&subject.image, subject.record(RecordCopy::A, 2));
    let before = fs::read(&subject.image).unwrap();
    let done = subject.check(&["--repair"], 6);
    assert!(done.err.contains("the next `serve`"), "{}", done.err);
    assert!(fs::read(&subject.image).unwrap() == before);
    flip(&subject.image, subject.record(RecordCopy::A, 2));
    flip(&subject.image, subject.data(2, 3));
    let done = subject.check(&[], 6);
    assert!(done.out.contains("zone 2: block 3: tag"), "{}", done.out);
}

#[test]
fn a_repaired_header_lets_nothing_be_forgotten() {
    // Whichever copy is lost: the one that says that the disk is open, or the one before it.
    for at in [100, 4096 + 100] {
        let subject = Subject::new(&[]);
        let mut session = subject.session();
        session.append(2, 4);
        session.flush();
        session.append(2, 5);
        drop(session);
        flip(&subject.image, at);
        let facts = subject.json(&["--repair"], 7);
        assert_eq!(facts["records_match_header"], Value::Null);
        assert_eq!(facts["damaged_records"], 0);
        subject.session().close();
        let zones = subject.bench.json(&["zones", "disk.img", "--json"]);
        assert_eq!(zones["zones"][2]["written_blocks"], 9);
        assert_eq!(subject.json(&[], 0)["blocks_read"], 9);
    }
}

#[test]
fn without_tags_only_the_medium_is_checked() {
    let subject = Subject::new(&["--cipher", "aes-256-xts"]);
    let mut session = subject.session();
    session.append(2, 4);
    session.close();
    flip(&subject.image, subject.data(2, 1));
    let done = subject.check(&[], 0);
    assert!(
        done.out.contains("4 read (the cipher has no tags"),
        "{}",
        done.out
    );
    let rot = Subject::new(&["--cipher", "aes-256-xts+crc64"]);
    let mut session = rot.session();
    session.append(2, 4);
    session.close();
    flip(&rot.image, rot.data(2, 1));
    let done = rot.check(&[], 6);
    assert!(done.out.contains("zone 2: block 1: tag"), "{}", done.out);
}

#[test]
fn a_damaged_key_is_damage() {
    let subject = Subject::closed();
    let add = ["key", "add", "disk.img", "--key-file", "key"];
    let new = ["--new-key-file", "other"];
    subject.bench.succeed(&[&add[..], &new].concat());
    flip(&subject.image, Layout::protector_offset(1) + 40);
    let done = subject.bench.run(&CHECK);
    assert_eq!(done.code, 6, "{}", done.err);
    assert!(
        done.out.contains("1 sound, key 1 is damaged"),
        "{}",
        done.out
    );
    assert_eq!(subject.json(&[], 6)["damaged_keys"], serde_json::json!([1]));
}

#[test]
fn what_cannot_be_checked_is_refused() {
    let subject = Subject::closed();
    let bench = &subject.bench;
    bench.refuse(&[&CHECK[..], &["--zone", "16"]].concat(), 2, "0 to 15");
    bench.refuse(&["check", "none", "--key-file", "key"], 2, "none");
    bench.refuse(
        &["check", "disk.img", "--key-file", "other"],
        4,
        "no protector",
    );
    bench.refuse(&["check", "disk.img"], 4, "no key given");
    bench.refuse(
        &["check", "key", "--key-file", "key"],
        3,
        "not a zonevault image",
    );
    let held = open_image(&subject.image, Access::ReadWrite);
    bench.refuse(&CHECK, 5, "in use");
    drop(held);
    let reader = open_image(&subject.image, Access::Shared);
    bench.succeed(&CHECK);
    bench.refuse(&[&CHECK[..], &["--repair"]].concat(), 5, "in use");
    drop(reader);
    flip(&subject.image, 100);
    flip(&subject.image, 4096 + 100);
    bench.refuse(&CHECK, 3, "damaged");
}
