//! `inspect` and `zones`, and every command on images that are not sound or not free.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::bench::{BINARY, Bench, Done, open_image, start};

#[test]
fn inspect_and_zones_show_a_disk_with_and_without_its_key() {
    let bench = Bench::with_disk();
    for (key, verified) in [([].as_slice(), false), (&["--key-file", "key"], true)] {
        let shown = |line: &[&str]| bench.succeed(&[line, key].concat()).out;
        assert_eq!(
            shown(&["inspect", "disk.img"]).contains("not verified"),
            !verified
        );
        assert_eq!(
            shown(&["zones", "disk.img"]).contains("not verified"),
            !verified
        );
        let map = shown(&["zones", "disk.img", "--map"]);
        assert_eq!(map.contains("not verified"), !verified);
        assert!(map.contains("       0 ................\n"), "{map}");
        assert!(map.contains("empty         16"), "{map}");
        let facts = bench.json(&[&["inspect", "disk.img", "--json"], key].concat());
        assert_eq!(facts["verified"], verified);
        let zones = bench.json(&[&["zones", "disk.img", "--json"], key].concat());
        assert_eq!(zones["verified"], verified);
        let zones = zones["zones"].as_array().unwrap();
        assert_eq!(zones.len(), 16);
        assert_eq!(zones[3]["start_sector"], 3 * 128);
        assert_eq!(zones[3]["write_pointer"], 3 * 128);
        assert_eq!(zones[3]["state"], "empty");
        assert_eq!(zones[3]["record"], "sound");
    }
    let table = bench
        .succeed(&["zones", "disk.img", "--key-file", "key"])
        .out;
    assert_eq!(table.lines().count(), 17, "{table}");
    // Looking changes nothing, and a reader that has seen enough is no failure.
    let before = bench.snapshot();
    bench.succeed(&["zones", "disk.img", "--json"]);
    assert!(bench.snapshot() == before);
    let line = format!("'{BINARY}' zones disk.img --json | head -n 1; echo ${{PIPESTATUS[0]}}");
    let mut shell = Command::new("bash");
    shell.args(["-c", &line]).current_dir(bench.dir.path());
    let done = Done::of(start(&mut shell).wait_with_output().unwrap());
    assert_eq!(done.err, "");
    assert!(done.out.ends_with("\n0\n"), "{}", done.out);
}

/// A bench with a sound image and many files that are none.
fn bench_with_odd_images() -> Bench {
    let bench = Bench::with_disk();
    let whole = fs::read(bench.path("disk.img")).unwrap();
    let spoil = |name: &str, change: fn(&mut Vec<u8>)| {
        let mut bytes = whole.clone();
        change(&mut bytes);
        fs::write(bench.path(name), bytes).unwrap();
    };
    spoil("short", |bytes| bytes.truncate(bytes.len() - 1));
    spoil("half", |bytes| bytes.truncate(bytes.len() / 2));
    spoil("stub", |bytes| bytes.truncate(8192));
    spoil("sector", |bytes| bytes.truncate(512));
    spoil("rotten", |bytes| {
        bytes[100] ^= 1;
        bytes[4096 + 100] ^= 1;
    });
    spoil("later", |bytes| set_header_u32(bytes, 8, 2));
    spoil("feature", |bytes| set_header_u32(bytes, 40, 1));
    fs::write(bench.path("text"), "just some text\n".repeat(10_000)).unwrap();
    fs::write(bench.path("zeroes"), vec![0; 1 << 20]).unwrap();
    fs::write(
        bench.path("luks"),
        [b"LUKS\xba\xbe\0\x02".as_slice(), &[0; 9000]].concat(),
    )
    .unwrap();
    fs::write(bench.path("empty"), b"").unwrap();
    bench
}

#[test]
fn what_is_not_a_sound_image_is_refused_by_every_command() {
    let bench = bench_with_odd_images();
    for (name, words) in [
        ("short", "truncated"),
        ("half", "truncated"),
        ("stub", "truncated"),
        ("sector", "not a zonevault image"),
        ("rotten", "damaged"),
        ("later", "version 2"),
        ("feature", "features"),
        ("text", "not a zonevault image"),
        ("zeroes", "not a zonevault image"),
        ("luks", "not a zonevault image"),
        ("empty", "not a zonevault image"),
    ] {
        for key in [[].as_slice(), &["--key-file", "key"]] {
            bench.refuse(&[&["inspect", name], key].concat(), 3, words);
            bench.refuse(&[&["zones", name, "--json"], key].concat(), 3, words);
        }
        let add = [
            "key",
            "add",
            name,
            "--key-file",
            "key",
            "--new-key-file",
            "other",
        ];
        bench.refuse(&add, 3, words);
        // The keys of a truncated image can still be listed and removed; it has no use otherwise.
        if !["short", "half"].contains(&name) {
            bench.refuse(&["key", "list", name], 3, words);
            bench.refuse(&["key", "remove", name, "0", "--force"], 3, words);
        }
    }
    for line in [
        ["inspect", "none"].as_slice(),
        &["zones", "none"],
        &["key", "list", "none"],
        &["key", "remove", "none", "0"],
        &[
            "key",
            "add",
            "none",
            "--key-file",
            "key",
            "--new-key-file",
            "other",
        ],
    ] {
        bench.refuse(line, 2, "none: cannot open");
    }
    bench.refuse(&["inspect", "."], 2, "neither a regular file");
    bench.refuse(&["zones", "text/none", "--json"], 2, "text/none");
}

/// Sets a field of both header copies and makes their CRCs right again.
fn set_header_u32(image: &mut [u8], at: usize, value: u32) {
    for copy in [0, 4096] {
        let header = &mut image[copy..copy + 512];
        header[at..at + 4].copy_from_slice(&value.to_le_bytes());
        header[16..20].fill(0);
        let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, header);
        header[16..20].copy_from_slice(&u32::try_from(crc).unwrap().to_le_bytes());
    }
}

#[test]
fn an_altered_header_is_a_forgery_to_who_holds_the_key() {
    let bench = Bench::with_disk();
    let create = ["create", "disk.img", "--force", "--key-file", "key"];
    let cipher = ["--size", "1M", "--cipher", "aes-256-xts"];
    bench.succeed(&[&create[..], &cipher].concat());
    let mut bytes = fs::read(bench.path("disk.img")).unwrap();
    // The cipher, swapped for the weaker one, with every checksum right.
    set_header_u32(&mut bytes, 80, 1);
    fs::write(bench.path("disk.img"), bytes).unwrap();
    let believed = bench.json(&["inspect", "disk.img", "--json"]);
    assert_eq!(believed["cipher"], "aes-128-xts");
    assert_eq!(believed["verified"], false);
    bench.refuse(
        &["inspect", "disk.img", "--key-file", "key"],
        3,
        "altered the image",
    );
}

#[test]
fn one_damaged_copy_is_reported_and_survived() {
    let bench = Bench::with_disk();
    let mut bytes = fs::read(bench.path("disk.img")).unwrap();
    bytes[100] ^= 1;
    // Zone 2 loses a copy of its record, zone 3 both: they lie at 65536 and 69632.
    for at in [65_536 + 2 * 128, 65_536 + 3 * 128, 69_632 + 3 * 128] {
        bytes[at + 60] ^= 1;
    }
    fs::write(bench.path("disk.img"), bytes).unwrap();
    let facts = bench.json(&["inspect", "disk.img", "--json"]);
    assert_eq!(facts["damaged_header"], "A");
    let done = bench.run(&["zones", "disk.img", "--json", "--key-file", "key"]);
    assert_eq!(done.code, 0);
    assert!(
        done.err.contains("header copy A is damaged"),
        "{}",
        done.err
    );
    let zones: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(zones["zones"][1]["record"], "sound");
    assert_eq!(zones["zones"][2]["record"], "copy A damaged");
    assert_eq!(zones["zones"][2]["state"], "empty");
    assert_eq!(zones["zones"][3]["state"], "lost");
    let map = bench
        .run(&["zones", "disk.img", "--map", "--key-file", "key"])
        .out;
    assert!(map.contains(" ...?............\n"), "{map}");
}

#[test]
fn an_image_in_use_can_be_looked_at_and_not_changed() {
    use zonevault::store::Access;
    let bench = Bench::with_disk();
    let held = open_image(&bench.path("disk.img"), Access::ReadWrite);
    for line in [
        ["key", "remove", "disk.img", "0", "--force"].as_slice(),
        &[
            "key",
            "add",
            "disk.img",
            "--key-file",
            "key",
            "--new-key-file",
            "other",
        ],
        &[
            "create",
            "disk.img",
            "--force",
            "--size",
            "1M",
            "--key-file",
            "key",
        ],
        &["serve", "disk.img", "--socket", "s", "--key-file", "key"],
    ] {
        bench.refuse(line, 5, "in use");
    }
    bench.succeed(&["inspect", "disk.img", "--key-file", "key"]);
    bench.succeed(&["zones", "disk.img"]);
    bench.succeed(&["key", "list", "disk.img"]);
    drop(held);
    bench.succeed(&["key", "remove", "disk.img", "0", "--force"]);
}

#[test]
fn a_read_only_file_is_looked_at_and_not_changed() {
    let bench = Bench::with_disk();
    let image = bench.path("disk.img");
    fs::set_permissions(&image, Permissions::from_mode(0o444)).unwrap();
    fs::set_permissions(bench.dir.path(), Permissions::from_mode(0o755)).unwrap();
    let run = |args: &[&str]| {
        let mut command = as_ordinary_user(bench.dir.path());
        let child = start(command.args(args));
        Done::of(child.wait_with_output().unwrap())
    };
    assert_eq!(run(&["key", "list", "disk.img"]).code, 0);
    assert_eq!(run(&["inspect", "disk.img"]).code, 0);
    let before = fs::read(&image).unwrap();
    for line in [
        ["key", "remove", "disk.img", "0", "--force"].as_slice(),
        &[
            "create",
            "disk.img",
            "--force",
            "--size",
            "1M",
            "--key-file",
            "-",
        ],
    ] {
        let mut command = as_ordinary_user(bench.dir.path());
        let mut child = start(command.args(line));
        let _ = child.stdin.take().unwrap().write_all(&[7; 64]);
        let done = Done::of(child.wait_with_output().unwrap());
        done.assert_refused(1, "Permission denied", &format!("{line:?}"));
    }
    assert!(fs::read(&image).unwrap() == before);
}

/// The command, run by a user whom permissions bind: as root, by nobody, from a copy of the
/// program that nobody can reach.
fn as_ordinary_user(dir: &Path) -> Command {
    const NOBODY: u32 = 65_534;
    let root = fs::metadata("/proc/self").unwrap().uid() == 0;
    let mut command = if root {
        let copy = dir.join("program");
        if !copy.exists() {
            fs::copy(BINARY, &copy).unwrap();
        }
        let mut command = Command::new(copy);
        command.uid(NOBODY).gid(NOBODY);
        command
    } else {
        Command::new(BINARY)
    };
    command.current_dir(dir).env_remove("RUST_LOG");
    command
}
