//! The command line from outside: every command, every refusal, its exit code and its one line.
//! A refused command must leave every file as it was.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_zonevault");

/// A small disk: 16 zones of 64 KiB.
const SMALL: [&str; 4] = ["--size", "1M", "--zone-size", "64K"];
/// The cheapest passphrase that `create` takes.
const CHEAP: [&str; 4] = ["--kdf-memory", "8M", "--kdf-time", "1"];

/// A directory to work in, with two key files.
struct Bench {
    dir: TempDir,
}

/// What a command did.
struct Done {
    code: i32,
    out: String,
    err: String,
}

impl Bench {
    fn new() -> Self {
        let bench = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        bench.write_key("key", &[7; 64]);
        bench.write_key("other", &[8; 32]);
        bench
    }

    /// A bench with a small disk `disk.img` that `key` opens.
    fn with_disk() -> Self {
        let bench = Self::new();
        let mut args = vec!["create", "disk.img", "--key-file", "key"];
        args.extend(SMALL);
        bench.succeed(&args);
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write_key(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path(name), bytes).unwrap();
        fs::set_permissions(self.path(name), Permissions::from_mode(0o600)).unwrap();
    }

    fn run_with(&self, args: &[impl AsRef<OsStr>], stdin: &[u8]) -> Done {
        let mut child = Command::new(BINARY)
            .args(args)
            .current_dir(self.dir.path())
            .env_remove("RUST_LOG")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A command that does not read its input closes the pipe: that is its right.
        let _ = child.stdin.take().unwrap().write_all(stdin);
        Done::of(child.wait_with_output().unwrap())
    }

    fn run(&self, args: &[&str]) -> Done {
        self.run_with(args, b"")
    }

    fn succeed(&self, args: &[&str]) -> Done {
        let done = self.run(args);
        assert_eq!(done.code, 0, "{args:?}: {}", done.err);
        assert_eq!(done.err, "", "{args:?}");
        done
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.succeed(args).out).unwrap()
    }

    /// Every file's content, by name.
    fn snapshot(&self) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
        fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| {
                let path = entry.unwrap().path();
                let content = fs::read(&path).ok();
                (path, content)
            })
            .collect()
    }

    /// Runs a command that must be refused with `code`, in one line that contains `words`, and
    /// must leave everything as it was.
    fn refuse(&self, args: &[&str], code: i32, words: &str) {
        self.refuse_with(args, b"", code, words);
    }

    fn refuse_with(&self, args: &[&str], stdin: &[u8], code: i32, words: &str) {
        let before = self.snapshot();
        let done = self.run_with(args, stdin);
        done.assert_refused(code, words, &format!("{args:?}"));
        assert!(self.snapshot() == before, "{args:?}: files changed");
    }

    fn create(&self, args: &[&str], extra: &[&str]) -> Vec<String> {
        ["create", "new.img", "--key-file", "key"]
            .iter()
            .chain(args)
            .chain(extra)
            .map(|&word| word.to_owned())
            .collect()
    }

    /// `create` with these options must be refused as a usage error.
    fn refuse_create(&self, options: &[&str], words: &str) {
        let args = self.create(options, &[]);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.refuse(&args, 2, words);
    }
}

impl Done {
    fn of(output: Output) -> Self {
        Self {
            code: output.status.code().expect("killed by a signal"),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    fn assert_refused(&self, code: i32, words: &str, what: &str) {
        assert_eq!(self.code, code, "{what}: {}", self.err);
        assert!(self.err.starts_with("zonevault: "), "{what}: {}", self.err);
        assert_eq!(self.err.lines().count(), 1, "{what}: {}", self.err);
        assert!(self.err.contains(words), "{what}: {}", self.err);
        assert_eq!(self.out, "", "{what}");
    }
}

#[test]
fn help_teaches_and_version_answers() {
    let bench = Bench::new();
    let help = bench.succeed(&["--help"]).out;
    for code in 0..=5 {
        assert!(help.contains(&format!("\n  {code}  ")), "{help}");
    }
    for command in [
        vec!["create"],
        vec!["serve"],
        vec!["inspect"],
        vec!["zones"],
        vec!["key", "add"],
        vec!["key", "remove"],
        vec!["key", "list"],
    ] {
        let line: Vec<&str> = command.iter().copied().chain(["--help"]).collect();
        let help = bench.succeed(&line).out;
        let example = format!("\n  zonevault {} ", command.join(" "));
        assert!(help.contains(&example), "{help}");
    }
    let version = bench.succeed(&["--version"]).out;
    assert_eq!(
        version,
        format!("zonevault {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn what_is_not_a_command_line_is_refused() {
    let bench = Bench::new();
    bench.refuse(&["nonsense"], 2, "nonsense");
    bench.refuse(&["--nonsense"], 2, "--nonsense");
    bench.refuse(&["create", "--nonsense"], 2, "zonevault create --help");
    bench.refuse(&["create", "new.img"], 2, "--size");
    bench.refuse(&["inspect"], 2, "<IMAGE>");
    bench.refuse(&["zones", "disk.img", "--json", "--map"], 2, "--map");
    bench.refuse(&["key", "remove", "disk.img", "one"], 2, "one");
    for line in [["key"].as_slice(), &[]] {
        assert_eq!(bench.run(line).code, 2);
    }
}

#[test]
fn a_disk_is_made_as_asked() {
    let bench = Bench::new();
    let made = bench.succeed(&[
        "create",
        "disk.img",
        "--size",
        "4M",
        "--zone-size",
        "256K",
        "--zone-capacity",
        "192K",
        "--conventional",
        "2",
        "--max-open",
        "3",
        "--max-active",
        "5",
        "--max-append",
        "64K",
        "--cipher",
        "aes-128-xts",
        "--block-size",
        "512",
        "--key-file",
        "key",
        "--label",
        "first",
    ]);
    assert!(made.out.contains("16 zones of 256 KiB"), "{}", made.out);
    assert!(
        made.out.contains("next: zonevault serve disk.img"),
        "{}",
        made.out
    );
    let facts = bench.json(&["inspect", "disk.img", "--json", "--key-file", "key"]);
    assert_eq!(facts["verified"], true);
    assert_eq!(facts["cipher"], "aes-128-xts");
    assert_eq!(facts["state"], "clean");
    assert_eq!(
        facts["geometry"],
        serde_json::json!({
            "model": "host-managed", "disk_size": 4 << 20, "block_size": 512, "zones": 16,
            "zone_size": 256 << 10, "zone_capacity": 192 << 10, "conventional": 2, "max_open": 3,
            "max_active": 5, "max_append": 64 << 10,
        })
    );
    assert_eq!(facts["protectors"][0]["label"], "first");
    let file = fs::metadata(bench.path("disk.img")).unwrap();
    assert_eq!(facts["layout"]["image_length"], file.len());
    assert_eq!(file.mode() & 0o777, 0o600);
    assert!(file.blocks() * 512 < 1 << 20, "the image is not sparse");
}

#[test]
fn defaults_suit_the_size() {
    let bench = Bench::new();
    for (size, zones, zone_size, limit) in [
        ("1G", 16, 64 << 20, 0),
        ("16M", 16, 1 << 20, 0),
        ("20G", 320, 64 << 20, 128),
    ] {
        bench.succeed(&[
            "create",
            "d",
            "--force",
            "--size",
            size,
            "--key-file",
            "key",
        ]);
        let geometry = &bench.json(&["inspect", "d", "--json"])["geometry"];
        assert_eq!(geometry["zones"], zones);
        assert_eq!(geometry["zone_size"], zone_size);
        assert_eq!(geometry["zone_capacity"], zone_size);
        assert_eq!(geometry["max_open"], limit);
        assert_eq!(geometry["max_active"], limit);
        assert_eq!(geometry["max_append"], 1 << 20);
    }
}

#[test]
fn presets_make_what_their_file_system_takes() {
    let bench = Bench::new();
    for (name, size, zone_size, conventional) in [
        ("btrfs", "2G", 64 << 20, 0),
        ("btrfs", "64M", 4 << 20, 0),
        ("xfs", "4G", 128 << 20, 3),
        ("xfs", "100G", 256 << 20, 4),
        ("f2fs", "4G", 64 << 20, 1),
        ("zonefs", "1G", 64 << 20, 0),
    ] {
        bench.succeed(&[
            "create",
            "d",
            "--force",
            "--size",
            size,
            "--for",
            name,
            "--key-file",
            "key",
        ]);
        let geometry = &bench.json(&["inspect", "d", "--json"])["geometry"];
        assert_eq!(geometry["zone_size"], zone_size, "{name} {size}");
        assert_eq!(geometry["conventional"], conventional, "{name} {size}");
    }
}

#[test]
fn presets_refuse_what_their_file_system_would() {
    let bench = Bench::new();
    for (name, options, words) in [
        (
            "btrfs",
            ["--size", "32M", "--zone-size", "2M"].as_slice(),
            "2 MiB",
        ),
        ("btrfs", &["--size", "40M"], "12 zones"),
        (
            "btrfs",
            &["--size", "1T", "--max-active", "7"],
            "8 open and active",
        ),
        ("btrfs", &["--size", "256G", "--zone-size", "16G"], "8 GiB"),
        (
            "xfs",
            &["--size", "4G", "--conventional", "1"],
            "--conventional to",
        ),
        (
            "xfs",
            &["--size", "100G", "--conventional", "3"],
            "--conventional to 4",
        ),
        ("xfs", &["--size", "400M"], "sequential zones"),
        ("xfs", &["--size", "300M"], "choose a larger --size"),
        ("xfs", &["--size", "4G", "--max-open", "1"], "2 open"),
        (
            "f2fs",
            &["--size", "4G", "--conventional", "0"],
            "--conventional",
        ),
        ("f2fs", &["--size", "1G", "--zone-size", "1M"], "segments"),
        ("f2fs", &["--size", "4G", "--max-open", "5"], "6 logs"),
        ("f2fs", &["--size", "32T"], "16 TiB"),
        ("f2fs", &["--size", "4G", "--block-size", "512"], "4096"),
        (
            "zonefs",
            &["--size", "1M", "--zone-size", "1M"],
            "superblock",
        ),
    ] {
        let line: Vec<&str> = ["--for", name].iter().chain(options).copied().collect();
        bench.refuse_create(&line, words);
    }
}

#[test]
fn plain_disks_have_no_zone_options() {
    let bench = Bench::new();
    let args = [
        "create",
        "d",
        "--size",
        "1052672",
        "--plain",
        "--key-file",
        "key",
    ];
    assert!(bench.succeed(&args).out.contains("plain disk"));
    let facts = bench.json(&["inspect", "d", "--json"]);
    assert_eq!(facts["geometry"]["model"], "plain");
    assert_eq!(facts["geometry"]["disk_size"], 1_052_672);
    for option in [
        ["--zone-size", "1M"],
        ["--zone-capacity", "1M"],
        ["--conventional", "1"],
        ["--max-open", "1"],
        ["--max-active", "1"],
        ["--max-append", "1M"],
        ["--for", "btrfs"],
    ] {
        bench.refuse_create(
            &[&["--size", "1M", "--plain"], &option[..]].concat(),
            option[0],
        );
    }
    bench.refuse_create(&["--size", "4097", "--plain"], "use --size 8192");
}

#[test]
fn disks_that_linux_would_refuse_are_refused_with_the_reason() {
    let bench = Bench::new();
    for (options, words) in [
        (["--size", "100M1"].as_slice(), "whole number"),
        (&["--size", "20000000T"], "64 bits"),
        (&["--size", "0"], "at least one zone"),
        (&["--size", "1000001"], "use --size 983040"),
        (
            &["--size", "10M", "--zone-size", "4M"],
            "use --size 8388608",
        ),
        (&["--size", "9M", "--zone-size", "3M"], "power of two"),
        (&["--size", "1M", "--zone-size", "0"], "power of two"),
        (&["--size", "1M", "--zone-size", "32K"], "out of range"),
        (&["--size", "1T", "--zone-size", "64K"], "too many"),
        (
            &[
                "--size",
                "1M",
                "--zone-size",
                "64K",
                "--zone-capacity",
                "128K",
            ],
            "capacity",
        ),
        (
            &[
                "--size",
                "1M",
                "--zone-size",
                "64K",
                "--zone-capacity",
                "1000",
            ],
            "capacity",
        ),
        (
            &["--size", "1M", "--zone-size", "64K", "--conventional", "16"],
            "--plain",
        ),
        (
            &["--size", "1M", "--max-open", "3", "--max-active", "2"],
            "max open 3",
        ),
        (
            &["--size", "1M", "--zone-size", "64K", "--max-append", "128K"],
            "max append",
        ),
        (&["--size", "1M", "--max-append", "512"], "max append"),
        (&["--size", "1M", "--block-size", "1024"], "512 or 4096"),
        (&["--size", "1M", "--cipher", "null"], "--cipher"),
        (
            &["--size", "1M", "--for", "ntfs"],
            "btrfs, xfs, f2fs, zonefs",
        ),
        (&["--size", "1M", "--kdf-memory", "4M"], "8 MiB"),
        (&["--size", "1M", "--kdf-memory", "5G"], "4 GiB"),
        (&["--size", "1M", "--kdf-time", "0"], "time at least 1"),
        (
            &["--size", "1M", "--kdf-memory", "4G", "--kdf-time", "17"],
            "64 GiB",
        ),
        (
            &[
                "--size",
                "1M",
                "--label",
                "a label of more than 32 bytes, really",
            ],
            "label",
        ),
        (&["--size", "1M", "--label", "esc\u{1b}[2J"], "label"),
    ] {
        bench.refuse_create(options, words);
    }
}

#[test]
fn what_is_there_is_only_overwritten_by_force() {
    let bench = Bench::with_disk();
    let line = ["create", "disk.img", "--size", "1M", "--key-file", "other"];
    bench.refuse(&line, 2, "--force");
    // Neither does force help who has no key, or asks for what cannot be.
    let forced = [&line[..4], &["--force", "--key-file", "none"]].concat();
    bench.refuse(&forced, 4, "none");
    let odd = [&line[..], &["--force", "--zone-size", "3M"]].concat();
    bench.refuse(&odd, 2, "power of two");
    bench.succeed(&[&line[..], &["--force"]].concat());
    bench.refuse(
        &["inspect", "disk.img", "--key-file", "key"],
        4,
        "no protector",
    );
    bench.succeed(&["inspect", "disk.img", "--key-file", "other"]);
    fs::write(bench.path("empty"), b"").unwrap();
    bench.succeed(&["create", "empty", "--size", "1M", "--key-file", "key"]);
    let nowhere = [
        "create",
        "no/such/dir/d",
        "--size",
        "1M",
        "--key-file",
        "key",
    ];
    bench.refuse(&nowhere, 1, "no/such/dir/d");
    bench.refuse(
        &["create", ".", "--size", "1M", "--key-file", "key"],
        3,
        "regular file",
    );
}

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
    assert!(made.contains("argon2id, 8 MiB, 1 passes"), "{made}");
    assert_eq!(opens(&["--passphrase-fd", "0"], b"open sesame"), 0);
    assert_eq!(opens(&["--passphrase-fd", "0"], b"open sesame\n\n"), 4);
    // A passphrase is no key file, even with the same bytes.
    make(&["--key-file", "-"], &[b'x'; 32]);
    assert_eq!(opens(&["--passphrase-fd", "0"], &[b'x'; 32]), 4);
    // A descriptor above the standard ones.
    bench.write_key("x", &[b'x'; 32]);
    let status = Command::new("sh")
        .args([
            "-c",
            "exec \"$0\" inspect d --key-fd 7 7<x >/dev/null",
            BINARY,
        ])
        .current_dir(bench.dir.path())
        .status()
        .unwrap();
    assert!(status.success());
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
    let output = Command::new("bash")
        .args(["-c", &line])
        .current_dir(bench.dir.path())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(String::from_utf8_lossy(&output.stdout).ends_with("\n0\n"));
}

#[test]
fn what_is_not_a_sound_image_is_refused_by_every_command() {
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
        (".", "neither a regular file"),
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
        bench.refuse(line, 1, "none: cannot open");
    }
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

#[test]
fn an_image_in_use_can_be_looked_at_and_not_changed() {
    use zonevault::store::{Access, FileMedium};
    let bench = Bench::with_disk();
    let held = FileMedium::open(&bench.path("disk.img"), Access::ReadWrite).unwrap();
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
        Done::of(command.args(args).output().unwrap())
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
        let mut child = command
            .args(line)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
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
