//! `create`: what is made, and what is refused.

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::bench::Bench;

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
        ("1G", 16, 64 << 20, 14),
        ("16M", 16, 1 << 20, 14),
        ("2G", 32, 64 << 20, 16),
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
    bench.refuse_create(&["--size", "4097", "--plain"], "use --size 4K or 8K");
}

#[test]
fn a_disk_gets_the_strongest_cipher_that_it_can_have() {
    let bench = Bench::new();
    let make = |options: &[&str]| {
        let line = [
            "create",
            "d",
            "--force",
            "--size",
            "1M",
            "--key-file",
            "key",
        ];
        let made = bench.succeed(&[&line[..], options].concat()).out;
        (made, bench.json(&["inspect", "d", "--json"]))
    };
    for (options, cipher, slot, words) in [
        (
            ["--zone-size", "64K"].as_slice(),
            "aes-256-gcm",
            32,
            "encrypted and authenticated",
        ),
        (
            &["--plain"],
            "aes-256-xts",
            0,
            "conventional zones have none",
        ),
        (
            &["--zone-size", "64K", "--conventional", "1"],
            "aes-256-xts",
            0,
            "conventional zones have none",
        ),
        (
            &["--cipher", "aes-256-xts"],
            "aes-256-xts",
            0,
            "without tags: altered",
        ),
        (
            &["--cipher", "aes-256-xts+crc64"],
            "aes-256-xts+crc64",
            32,
            "rot detected",
        ),
    ] {
        let (made, facts) = make(options);
        assert!(made.contains(&format!("\n  {cipher}: ")), "{made}");
        assert!(made.contains(words), "{made}");
        assert_eq!(facts["cipher"], cipher, "{options:?}");
        assert_eq!(facts["layout"]["tag_slot_bytes"], slot, "{options:?}");
    }
    for cipher in ["aes-256-gcm", "aes-256-xts+crc64"] {
        let size = ["--size", "1M", "--cipher", cipher];
        bench.refuse_create(&[&size[..], &["--plain"]].concat(), "leave out --plain");
        let conventional = ["--zone-size", "64K", "--conventional", "1"];
        bench.refuse_create(
            &[&size, &conventional[..]].concat(),
            "conventional zones are",
        );
    }
}

#[test]
fn disks_that_linux_would_refuse_are_refused_with_the_reason() {
    let bench = Bench::new();
    for (options, words) in [
        (["--size", "100M1"].as_slice(), "whole number"),
        (&["--size", "20000000T"], "64 bits"),
        (&["--size", "0"], "at least one zone"),
        (&["--size", "1000001"], "use --size 960K or 1M"),
        (
            &["--size", "10M", "--zone-size", "4M"],
            "use --size 8M or 12M",
        ),
        (
            &["--size", "9M", "--zone-size", "3M"],
            "--zone-size 2M or 4M",
        ),
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
    ] {
        bench.refuse_create(options, words);
    }
}

#[test]
fn keys_that_could_not_be_made_or_shown_are_refused() {
    let bench = Bench::new();
    for (options, words) in [
        (["--size", "1M", "--kdf-memory", "4M"].as_slice(), "8 MiB"),
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
    bench.refuse(&nowhere, 2, "no/such/dir/d");
    bench.refuse(
        &["create", ".", "--size", "1M", "--key-file", "key"],
        2,
        "regular file",
    );
}
