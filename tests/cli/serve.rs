//! `serve`: which disks it refuses, and what it says of those it serves.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use zonevault::format::RECORD_LEN;
use zonevault::geometry::ZoneIndex;
use zonevault::zone::RecordCopy;

use super::bench::{BINARY, Bench, Done, start};
use super::disk::{Session, layout, put_back};

const SERVE: [&str; 6] = ["serve", "disk.img", "--socket", "s", "--key-file", "key"];
/// How long a daemon may take to come up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Serves the disk until its socket is there, then ends it in order.
fn serve(bench: &Bench, options: &[&str]) -> Done {
    serve_with(bench, options, || ())
}

/// The same, with something to do while it is served.
fn serve_with(bench: &Bench, options: &[&str], meanwhile: impl FnOnce()) -> Done {
    let mut command = Command::new(BINARY);
    command
        .args(SERVE)
        .args(options)
        .current_dir(bench.dir.path())
        .env_remove("RUST_LOG");
    let mut child = start(&mut command);
    await_socket(bench, &mut child);
    meanwhile();
    let pid = child.id().to_string();
    let mut kill = start(Command::new("kill").args(["-TERM", &pid]));
    kill.wait().unwrap();
    Done::of(child.wait_with_output().unwrap())
}

fn await_socket(bench: &Bench, child: &mut Child) {
    let deadline = Instant::now() + PATIENCE;
    let there = || fs::metadata(bench.path("s")).is_ok_and(|s| s.file_type().is_socket());
    while !there() && child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "no socket");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn sequence(bench: &Bench) -> u64 {
    let facts = bench.json(&["inspect", "disk.img", "--json"]);
    facts["sequence"].as_u64().unwrap()
}

#[test]
fn a_disk_is_pinned_by_volume_cipher_and_sequence() {
    let bench = Bench::with_disk();
    let facts = bench.json(&["inspect", "disk.img", "--json"]);
    let uuid = facts["uuid"].as_str().unwrap();
    let refuse = |pin: [&str; 2], words: &str| {
        bench.refuse(&[&SERVE[..], &pin].concat(), 8, words);
    };
    let other = "0b7f3d0e-7a07-4c3a-9a61-6a2a4f0f8b11";
    refuse(["--expect-uuid", other], uuid);
    refuse(
        ["--expect-cipher", "aes-256-xts"],
        "its cipher is aes-256-gcm",
    );
    refuse(
        ["--expect-sequence-at-least", "2"],
        "number 1, and 2 or later",
    );
    let pins = [
        "--expect-uuid",
        uuid,
        "--expect-cipher",
        "aes-256-gcm",
        "--expect-sequence-at-least",
        "1",
    ];
    let old = fs::read(bench.path("disk.img")).unwrap();
    let done = serve(&bench, &pins);
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(done.err.contains(uuid), "{}", done.err);
    assert!(done.err.contains("header number 2\n"), "{}", done.err);
    assert!(
        done.err.contains("closed in order, header number 4"),
        "{}",
        done.err
    );
    assert_eq!(sequence(&bench), 4);
    let shown = bench.succeed(&["inspect", "disk.img"]).out;
    assert!(shown.contains("header number 4, "), "{shown}");
    // What the operator noted at the closing takes this state, and no older one.
    let pin = ["--expect-sequence-at-least", "4"];
    fs::write(bench.path("disk.img"), old).unwrap();
    refuse(pin, "an older state of the disk");
    bench.refuse(&[&SERVE[..], &["--expect-uuid", "7"]].concat(), 2, "uuid");
    bench.refuse(
        &[&SERVE[..], &["--expect-cipher", "null"]].concat(),
        2,
        "null",
    );
}

#[test]
fn records_put_back_are_served_on_demand_only() {
    let bench = Bench::with_disk();
    let (image, key) = (bench.path("disk.img"), bench.path("key"));
    let fresh = fs::read(&image).unwrap();
    let mut session = Session::open(&image, &key);
    session.append(2, 3);
    session.close();
    let layout = layout(&image, &key);
    for copy in [RecordCopy::A, RecordCopy::B] {
        let offset = layout.record_offset(copy, ZoneIndex(2));
        put_back(&fresh, &image, offset, RECORD_LEN as u64);
    }
    bench.refuse_daemon(&SERVE, 3, "--accept-records");
    let done = serve(&bench, &["--accept-records"]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(done.err.contains("accepted as told"), "{}", done.err);
    assert_eq!(serve(&bench, &[]).code, 0);
}

#[test]
fn a_killed_disk_is_recovered_as_told() {
    let bench = Bench::with_disk();
    let kill = || {
        let mut session = Session::open(&bench.path("disk.img"), &bench.path("key"));
        session.append(2, 3);
    };
    kill();
    let done = serve(&bench, &[]);
    assert!(done.err.contains("was killed"), "{}", done.err);
    kill();
    let done = serve(&bench, &["--after-power-cut", "--tag-cache", "1M"]);
    assert!(done.err.contains("tags prove 12 KiB"), "{}", done.err);
    let zones = bench.json(&["zones", "disk.img", "--json"]);
    assert_eq!(zones["zones"][2]["written_blocks"], 6);
    let line = [&SERVE[..], &["--tag-cache", "9G"]].concat();
    bench.refuse(&line, 2, "at most 8G");
}

#[test]
fn a_front_end_with_too_many_queues_is_told_in_the_log() {
    /// VHOST_USER_SET_VRING_NUM of queue 3, 128 descriptors: request, version, length, content.
    const SET_VRING_NUM: [u32; 5] = [8, 1, 8, 3, 128];
    /// VHOST_USER_GET_FEATURES.
    const GET_FEATURES: [u32; 3] = [1, 1, 0];
    let bench = Bench::with_disk();
    let done = serve_with(&bench, &["--queues", "2"], || {
        // It hangs up, and then serves the next one.
        assert!(!answers(&bench, &SET_VRING_NUM));
        assert!(answers(&bench, &GET_FEATURES));
    });
    assert_eq!(done.code, 0, "{}", done.err);
    let told = "queue 3 does not exist, there are 2: serve with a larger --queues";
    assert!(done.err.contains(told), "{}", done.err);
}

/// Connects and sends a message; whether anything comes back before the daemon hangs up.
fn answers(bench: &Bench, message: &[u32]) -> bool {
    let mut front_end = UnixStream::connect(bench.path("s")).unwrap();
    front_end.set_read_timeout(Some(PATIENCE)).unwrap();
    let bytes: Vec<u8> = message.iter().flat_map(|n| n.to_ne_bytes()).collect();
    front_end.write_all(&bytes).unwrap();
    matches!(front_end.read(&mut [0]), Ok(1))
}
