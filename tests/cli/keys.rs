//! Where keys come from, and `key add | remove | list`.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use super::bench::{BINARY, Bench, CHEAP, Done, SMALL, start};

#[test]
fn keys_come_from_files_descriptors_and_standard_input() {
    let bench = Bench::new();
    let make = |source: &[&str], stdin: &[u8]| {
        let line = [&["create", "d", "--force"], &SMALL[..], &CHEAP, source].concat();
        let done = bench.run_with(&line, stdin);
        assert_eq!(done.code, 0, "{source:?}: {}", done.err);
        done.out
    };
    let opens = |source: &[&str], stdin: &[u8]| {
        let line = [&["inspect", "d", "--json"], source].concat();
        bench.run_with(&line, stdin).code
    };
    let key = [7; 64];
    // A key is the same key however it comes.
    make(&["--key-file", "-"], &key);
    assert_eq!(opens(&["--key-file", "key"], b""), 0);
    assert_eq!(opens(&["--key-fd", "0"], &key), 0);
    assert_eq!(opens(&["--key-file", "-"], &[9; 64]), 4);
    // A passphrase with and without the newline that `echo` adds; nothing else is cut off.
    let made = make(&["--passphrase-fd", "0"], b"open sesame\n");
    assert!(made.contains("argon2id, 8 MiB, time 1"), "{made}");
    assert_eq!(opens(&["--passphrase-fd", "0"], b"open sesame"), 0);
    assert_eq!(opens(&["--passphrase-fd", "0"], b"open sesame\n\n"), 4);
    // A passphrase is no key file, even with the same bytes.
    make(&["--key-file", "-"], &[b'x'; 32]);
    assert_eq!(opens(&["--passphrase-fd", "0"], &[b'x'; 32]), 4);
    // A descriptor above the standard ones.
    bench.write_key("x", &[b'x'; 32]);
    let line = "exec \"$0\" inspect d --key-fd 7 7<x >/dev/null";
    let mut shell = Command::new("sh");
    shell
        .args(["-c", line, BINARY])
        .current_dir(bench.dir.path());
    let done = Done::of(start(&mut shell).wait_with_output().unwrap());
    assert_eq!(done.code, 0, "{}", done.err);
}

#[test]
fn unusable_keys_are_refused_with_the_cure() {
    let bench = Bench::with_disk();
    bench.write_key("short", &[1; 31]);
    bench.write_key("long", &[1; 8193]);
    bench.write_key("open", &[7; 64]);
    fs::set_permissions(bench.path("open"), Permissions::from_mode(0o644)).unwrap();
    symlink(bench.path("key"), bench.path("link")).unwrap();
    for (source, stdin, words) in [
        (["--key-file", "none"], b"".as_slice(), "key file none"),
        (["--key-file", "open"], b"", "chmod 600"),
        (["--key-file", "short"], b"", "at least 32"),
        (["--key-file", "long"], b"", "more than 8192"),
        (["--key-file", "link"], b"", "not a regular file"),
        (["--key-file", "."], b"", "not a regular file"),
        (["--key-file", "-"], b"tiny", "standard input"),
        (["--key-fd", "0"], b"tiny", "descriptor 0"),
        (["--key-fd", "99"], b"", "descriptor 99"),
        (["--key-fd", "1"], b"", "descriptor 1"),
        (["--passphrase-fd", "0"], b"\n", "empty"),
        (["--passphrase-fd", "0"], &[b'x'; 2000], "more than"),
    ] {
        let create = [&["create", "new.img"], &SMALL[..], &source].concat();
        bench.refuse_with(&create, stdin, 4, words);
        for command in [["inspect", "disk.img"], ["zones", "disk.img"]] {
            bench.refuse_with(&[command, source].concat(), stdin, 4, words);
        }
        let add = [
            &["key", "add", "disk.img", "--new-key-file", "other"],
            &source[..],
        ]
        .concat();
        if source != ["--key-file", "-"] {
            bench.refuse_with(&add, stdin, 4, words);
        }
    }
    // Nobody is there to type a passphrase.
    bench.refuse(&["create", "new.img", "--size", "1M"], 4, "--passphrase-fd");
    bench.refuse(&["key", "add", "disk.img"], 4, "--key-file FILE");
    let add = ["key", "add", "disk.img", "--key-file", "key"];
    bench.refuse(&add, 4, "--new-passphrase-fd");
    // Two sources for one key.
    let two = ["inspect", "disk.img", "--key-file", "key", "--key-fd", "0"];
    bench.refuse(&two, 2, "--key-fd");
    // One source for two keys.
    for (old, new) in [
        (["--key-file", "-"], ["--new-key-file", "-"]),
        (["--key-fd", "0"], ["--new-key-file", "-"]),
        (["--key-fd", "5"], ["--new-passphrase-fd", "5"]),
    ] {
        let line = [&["key", "add", "disk.img"], &old[..], &new[..]].concat();
        bench.refuse_with(&line, &[7; 64], 2, "one descriptor");
    }
}

/// Without the check the third descriptor is whatever the command opens first: the image.
#[test]
fn a_descriptor_that_nobody_passed_is_not_the_image() {
    let bench = Bench::with_disk();
    let run = |line: &str| {
        let mut shell = Command::new("sh");
        let line = format!("exec \"$0\" {line} 3<&- 4<&-");
        shell
            .args(["-c", &line, BINARY])
            .current_dir(bench.dir.path());
        let before = bench.snapshot();
        let done = Done::of(start(&mut shell).wait_with_output().unwrap());
        done.assert_refused(4, "is not open for reading a key", &line);
        assert!(bench.snapshot() == before, "{line}: files changed");
    };
    for source in ["--key-fd 3", "--passphrase-fd 3", "--key-fd 4"] {
        for command in ["inspect", "zones", "check", "serve --socket s"] {
            run(&format!("{command} disk.img {source}"));
        }
        run(&format!("create new.img --size 1M {source}"));
        run(&format!("key add disk.img --new-key-file other {source}"));
        run(&format!(
            "key add disk.img --key-file key --new-{}",
            &source[2..]
        ));
    }
}

#[test]
fn keys_are_added_listed_and_removed() {
    let bench = Bench::with_disk();
    let list = || bench.succeed(&["key", "list", "disk.img"]).out;
    let opens = |key: &str| bench.run(&["inspect", "disk.img", "--key-file", key]).code == 0;
    assert_eq!(list().lines().count(), 1);
    let add = ["key", "add", "disk.img", "--key-file", "key"];
    let spare = ["--new-key-file", "other", "--label", "spare"];
    let added = bench.succeed(&[&add[..], &spare].concat()).out;
    assert!(added.contains("added key 1: key file \"spare\""), "{added}");
    assert!(opens("key") && opens("other"));
    let typed = [&add[..], &["--new-passphrase-fd", "0"], &CHEAP].concat();
    assert_eq!(bench.run_with(&typed, b"open sesame").code, 0);
    let listed = bench.json(&["key", "list", "disk.img", "--json"]);
    assert_eq!(listed["protectors"][1]["label"], "spare");
    assert_eq!(listed["protectors"][2]["argon2id"]["memory_kib"], 8192);
    // By the right of the passphrase, a key takes the place of one removed.
    assert!(
        bench
            .succeed(&["key", "remove", "disk.img", "0"])
            .out
            .contains("removed key 0")
    );
    assert!(!opens("key") && opens("other"));
    let back = [
        "key",
        "add",
        "disk.img",
        "--passphrase-fd",
        "0",
        "--new-key-file",
        "key",
    ];
    assert!(
        bench
            .run_with(&back, b"open sesame")
            .out
            .contains("added key 0")
    );
    assert!(opens("key"));
    // What does not exist cannot be removed.
    bench.refuse(&["key", "remove", "disk.img", "5"], 2, "no key 5");
    bench.refuse(&["key", "remove", "disk.img", "8"], 2, "0 to 7");
    bench.refuse(&["key", "remove", "disk.img", "4294967295"], 2, "0 to 7");
    // The wrong key adds none.
    let wrong = [
        "key",
        "add",
        "disk.img",
        "--key-file",
        "x",
        "--new-key-file",
        "other",
    ];
    bench.write_key("x", &[9; 64]);
    bench.refuse(&wrong, 4, "no protector of this disk opens");
    // Eight keys are the most.
    for _ in 3..8 {
        bench.succeed(&[&add[..], &spare].concat());
    }
    bench.refuse(&[&add[..], &spare].concat(), 2, "all 8 key slots");
}

#[test]
fn the_last_key_is_only_removed_by_force() {
    let bench = Bench::with_disk();
    bench.refuse(&["key", "remove", "disk.img", "0"], 2, "--force");
    let gone = bench
        .succeed(&["key", "remove", "disk.img", "0", "--force"])
        .out;
    assert!(gone.contains("cannot be opened any more"), "{gone}");
    bench.refuse(
        &["inspect", "disk.img", "--key-file", "key"],
        4,
        "no protector",
    );
    assert_eq!(bench.succeed(&["key", "list", "disk.img"]).out, "");
    // Of the wrapped volume key nothing is left in the image.
    let image = fs::read(bench.path("disk.img")).unwrap();
    assert!(image[8192..65_536].iter().all(|&byte| byte == 0));
}

#[test]
fn a_damaged_slot_counts_as_no_key_and_can_be_cleared() {
    let bench = Bench::with_disk();
    let add = [
        "key",
        "add",
        "disk.img",
        "--key-file",
        "key",
        "--new-key-file",
        "other",
    ];
    bench.succeed(&add);
    let mut bytes = fs::read(bench.path("disk.img")).unwrap();
    bytes[12_288 + 50] ^= 1;
    fs::write(bench.path("disk.img"), bytes).unwrap();
    assert!(
        bench
            .succeed(&["key", "list", "disk.img"])
            .out
            .contains("1: damaged")
    );
    bench.refuse(&["key", "remove", "disk.img", "0"], 2, "the last one");
    bench.succeed(&["key", "remove", "disk.img", "1"]);
    bench.succeed(&["inspect", "disk.img", "--key-file", "key"]);
}
