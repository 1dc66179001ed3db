//! Inflight regions that a front-end has made up or altered. The daemon trusts none of it: what it cannot trust it answers
//! with an error, it goes on serving, and what other requests were acknowledged stays.
//!
//! Nobody has to die for it: a region in which requests are marked as begun is handed over with a ring in which they
//! wait. The layout behind the standard part is the one that `src/queue/inflight.rs` documents.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use crc_fast::CrcAlgorithm;
use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures};

use crate::common::daemon::Rig;
use crate::common::frontend::{Frontend, Options, feature};
use crate::common::inflight::{DESC_STATE, Inflight, QUEUE_HEADER};
use crate::common::queue::{Queue, QueueError};
use crate::common::request::{Completion, Layout, Request, kind, status};
use crate::common::rng::Rng;
use crate::common::wire::{WireError, le64, longs};

/// The disk: zones of 1 MiB, of 256 blocks.
const DISK: [&str; 4] = ["--size", "32M", "--zone-size", "1M"];
const ZONE_SECTORS: u64 = 2048;
const ZONES: u64 = 32;
const QUEUE_SIZE: u16 = 16;
const PATIENCE: Duration = Duration::from_secs(20);

/// Bytes of the tail before the intents, and of an intent.
const TAIL_HEAD: u64 = 64;
const INTENT: u64 = 64;
const WRITE: u64 = 1;
const RESET: u64 = 2;

/// What is noted of a request that was begun.
#[derive(Clone, Copy, Debug)]
struct Intent {
    zone: u64,
    kind: u64,
    generation: u64,
    start: u64,
    count: u64,
    /// The check that belongs to it.
    checked: bool,
}

fn options() -> Options {
    let mut options = Options {
        queue_size: QUEUE_SIZE,
        ..Options::default()
    };
    options.protocol |= VhostUserProtocolFeatures::INFLIGHT_SHMFD;
    options.protocol |= VhostUserProtocolFeatures::RESET_DEVICE;
    options
}

/// A session whose only queue is not started, with a region that was not handed over yet.
fn waiting(rig: &Rig) -> Frontend {
    waiting_with(rig, 1)
}

/// [`waiting`] with some queues.
fn waiting_with(rig: &Rig, queues: u16) -> Frontend {
    let mut f = Frontend::negotiate(&rig.socket(), options()).unwrap();
    f.set_features().unwrap();
    f.set_memory().unwrap();
    f.inflight = Some(Inflight::get(&mut f.wire, queues, QUEUE_SIZE).unwrap());
    let event_idx = f.features & feature::EVENT_IDX != 0;
    for index in 0..queues {
        let ram = std::sync::Arc::clone(&f.ram);
        f.queues.push(Queue::new(index, ram, QUEUE_SIZE, event_idx));
    }
    f
}

fn append(zone: u64, fill: u8) -> Request {
    Request::append(zone * ZONE_SECTORS, &[fill; 4096], 16)
}

fn submit(f: &mut Frontend, request: &Request) -> u16 {
    let before = f.queue().ring.next_avail();
    f.queue().submit(request, &Layout::indirect()).unwrap();
    // The free list hands out the lowest heads first, one a chain.
    before % QUEUE_SIZE
}

fn state_of(head: u16) -> u64 {
    QUEUE_HEADER + DESC_STATE * u64::from(head)
}

fn intent_of(region: &Inflight, head: u16) -> u64 {
    region.tail_offset() + TAIL_HEAD + INTENT * u64::from(head)
}

/// Marks a chain as in flight.
fn begun(region: &Inflight, head: u16, counter: u64) {
    region.write(state_of(head) + 8, &counter.to_le_bytes());
    region.write(state_of(head), &[1]);
}

fn intend(region: &Inflight, head: u16, counter: u64, intent: Intent) {
    region.write(intent_of(region, head), &noted_bytes(counter, intent));
}

fn noted_bytes(counter: u64, intent: Intent) -> Vec<u8> {
    let Intent {
        zone,
        kind,
        generation,
        start,
        count,
        checked,
    } = intent;
    let mut bytes = longs(&[counter, zone, kind, generation, start, count]);
    let check = crc_fast::checksum(CrcAlgorithm::Crc64Nvme, &bytes);
    let check = if checked { check } else { !check };
    bytes.extend_from_slice(&check.to_le_bytes());
    bytes
}

/// Hands the region over and starts the queue.
fn go(f: &mut Frontend) -> Result<(), WireError> {
    f.set_inflight()?;
    f.start_queue(0)
}

/// Appends a block and returns where it is, in blocks, and the zone's generation, which the daemon has noted.
fn learn(rig: &Rig, zone: u64, fill: u8) -> (u64, u64) {
    let mut f = Frontend::open_with(&rig.socket(), options());
    let head = submit(&mut f, &append(zone, fill));
    f.queue().kick();
    let done = f.queue().reap(PATIENCE).unwrap();
    assert_eq!(done.status(), status::OK);
    let region = f.inflight.as_ref().unwrap();
    let at = usize::try_from(intent_of(region, head)).unwrap();
    let noted = &region.read()[at..];
    assert_eq!([le64(noted, 8), le64(noted, 16)], [zone, WRITE], "noted");
    let block = (done.append_sector() - zone * ZONE_SECTORS) / 8;
    assert_eq!(le64(noted, 32), block, "noted place");
    (block, le64(noted, 24))
}

/// One append, begun as the intent says.
fn begun_append(rig: &Rig, zone: u64, intent: Intent) -> Completion {
    let mut f = waiting(rig);
    let head = submit(&mut f, &append(zone, 0xee));
    let region = f.inflight.as_ref().unwrap();
    intend(region, head, 1, intent);
    begun(region, head, 1);
    go(&mut f).unwrap();
    f.queue().reap(PATIENCE).unwrap()
}

fn blocks_in(rig: &Rig, zone: u64) -> u64 {
    let mut f = Frontend::open_with(&rig.socket(), options());
    let info = f.queue().zone(zone * ZONE_SECTORS);
    (info.wp - info.start) / 8
}

#[test]
fn a_request_without_an_intent_begins_as_new() {
    let rig = Rig::new(&DISK, &[]);
    let mut f = waiting(&rig);
    let head = submit(&mut f, &append(1, 1));
    begun(f.inflight.as_ref().unwrap(), head, 7);
    go(&mut f).unwrap();
    let done = f.queue().reap(PATIENCE).unwrap();
    let sector = done.append_sector();
    assert_eq!((done.status(), sector), (status::OK, ZONE_SECTORS));
    drop(f);
    assert_eq!(blocks_in(&rig, 1), 1);
}

#[test]
fn an_intent_is_followed_or_refused() {
    let rig = Rig::new(&DISK, &[]);
    let (_, generation) = learn(&rig, 2, 1);
    let good = Intent {
        zone: 2,
        kind: WRITE,
        generation,
        start: 1,
        count: 1,
        checked: true,
    };
    let bad = |name: &str, intent: Intent| {
        let done = begun_append(&rig, 2, intent);
        assert_eq!(done.status(), status::IOERR, "{name}: {intent:?}");
        assert_eq!(blocks_in(&rig, 2), 1, "{name}: {intent:?}");
    };
    bad(
        "check",
        Intent {
            checked: false,
            ..good
        },
    );
    for kind in [0, RESET, 3, 4, 99, u64::MAX] {
        bad("kind", Intent { kind, ..good });
    }
    bad(
        "older",
        Intent {
            generation: generation.wrapping_sub(1),
            ..good
        },
    );
    bad(
        "later",
        Intent {
            generation: generation + 1,
            ..good
        },
    );
    for start in [2, 100, 255, 256, u64::MAX] {
        bad("behind a gap", Intent { start, ..good });
    }
    for count in [0, 2, 255, 256, u64::MAX] {
        bad("another length", Intent { count, ..good });
    }
    for zone in [1, 3, ZONES, u64::from(u32::MAX), u64::MAX] {
        bad("another zone", Intent { zone, ..good });
    }
    let done = begun_append(&rig, 2, good);
    let sector = done.append_sector();
    assert_eq!((done.status(), sector), (status::OK, 2 * ZONE_SECTORS + 8));
    // The record counts it: it is not done again.
    let done = begun_append(&rig, 2, good);
    let again = done.append_sector();
    assert_eq!((done.status(), again), (status::OK, sector));
    assert_eq!(blocks_in(&rig, 2), 2);
    let mut f = Frontend::open_with(&rig.socket(), options());
    let data = f.queue().read_ok(2 * ZONE_SECTORS, 8192);
    assert!(data[..4096].iter().all(|b| *b == 1) && data[4096..].iter().all(|b| *b == 0xee));
    let log = rig.log();
    for why in [
        "not to be trusted",
        "not reset as often",
        "no such blocks",
        "did not come",
        "another one was in flight",
    ] {
        let lines = log.lines().filter(|line| line.contains(why)).count();
        assert!((1..=10).contains(&lines), "{why:?} {lines} times: {log}");
    }
}

#[test]
fn a_reset_that_is_done_is_not_done_again() {
    let rig = Rig::new(&DISK, &[]);
    let (_, before) = learn(&rig, 3, 1);
    let mut f = Frontend::open_with(&rig.socket(), options());
    let code = f.queue().simple(kind::ZONE_RESET, 3 * ZONE_SECTORS);
    assert_eq!(code, status::OK);
    drop(f);
    let (block, generation) = learn(&rig, 3, 2);
    assert!(block == 0 && generation > before);
    let mut f = waiting(&rig);
    let head = submit(&mut f, &Request::new(kind::ZONE_RESET, 3 * ZONE_SECTORS));
    let region = f.inflight.as_ref().unwrap();
    let intent = Intent {
        zone: 3,
        kind: RESET,
        generation: before,
        start: 0,
        count: 0,
        checked: true,
    };
    intend(region, head, 5, intent);
    begun(region, head, 5);
    go(&mut f).unwrap();
    assert_eq!(f.queue().reap(PATIENCE).unwrap().status(), status::OK);
    drop(f);
    assert_eq!(blocks_in(&rig, 3), 1, "the next life's block");
    let mut f = waiting(&rig);
    let head = submit(&mut f, &Request::new(kind::ZONE_RESET, 3 * ZONE_SECTORS));
    let region = f.inflight.as_ref().unwrap();
    intend(
        region,
        head,
        5,
        Intent {
            generation,
            ..intent
        },
    );
    begun(region, head, 5);
    go(&mut f).unwrap();
    assert_eq!(f.queue().reap(PATIENCE).unwrap().status(), status::OK);
    drop(f);
    assert_eq!(blocks_in(&rig, 3), 0);
}

/// What the daemon says to a region in which some bytes were altered.
fn verdict(rig: &Rig, alter: impl FnOnce(&Inflight)) -> Result<(), WireError> {
    let mut f = waiting(rig);
    alter(f.inflight.as_ref().unwrap());
    let handed = f.set_inflight();
    // The connection goes on in any case.
    f.sync().unwrap();
    handed
}

#[test]
fn a_region_of_others_is_refused() {
    let rig = Rig::new(&DISK, &[]);
    assert!(verdict(&rig, |_| {}).is_ok());
    let refused = |name: &str, queue: bool, at: u64, bytes: &[u8]| {
        let told = verdict(&rig, |region| {
            let from = if queue { 0 } else { region.tail_offset() };
            region.write(from + at, bytes);
        });
        assert!(
            matches!(told, Err(WireError::Refused(_))),
            "{name}: {told:?}"
        );
    };
    refused("version", true, 8, &[2, 0]);
    refused("no version", true, 8, &[0, 0]);
    for descriptors in [0_u16, 8, 17, 32, u16::MAX] {
        refused("descriptors", true, 10, &descriptors.to_le_bytes());
    }
    refused("magic", false, 0, b"zvflighs");
    refused("no magic", false, 0, &[0; 8]);
    refused("volume", false, 8, &[0; 8]);
    refused("volume", false, 16, &[0; 8]);
    refused("queues", false, 32, &[2, 0]);
    refused("tail's descriptors", false, 34, &[32, 0]);
    let other = Rig::new(&DISK, &[]);
    let region = waiting(&other).inflight.take().unwrap();
    let mut f = waiting(&rig);
    let told = region.set(&mut f.wire);
    assert!(matches!(told, Err(WireError::Refused(_))), "{told:?}");
    // It was told what was wrong, and goes on without.
    assert!(go(&mut f).is_ok());
    f.queue().assert_alive();
}

#[test]
fn a_region_of_another_shape_is_refused() {
    let rig = Rig::new(&DISK, &[]);
    let region = waiting(&rig).inflight.take().unwrap();
    let size = region.size;
    let shapes = [
        (0, 0, 1, QUEUE_SIZE),
        (size - 1, 0, 1, QUEUE_SIZE),
        (size, 1, 1, QUEUE_SIZE),
        (size, 4096, 1, QUEUE_SIZE),
        (size, u64::MAX, 1, QUEUE_SIZE),
        (u64::MAX, 0, 1, QUEUE_SIZE),
        (u64::MAX, 4096, 1, QUEUE_SIZE),
        (size, 0, 0, QUEUE_SIZE),
        (size, 0, 2, QUEUE_SIZE),
        (size, 0, u16::MAX, QUEUE_SIZE),
        (size, 0, 1, 0),
        (size, 0, 1, 2 * QUEUE_SIZE),
        (size, 0, 1, u16::MAX),
    ];
    for (size, offset, queues, queue_size) in shapes {
        let shape = Inflight {
            file: region.file.try_clone().unwrap(),
            size,
            offset,
            queues,
            queue_size,
        };
        not_taken(&rig, &shape);
    }
    for path in ["/dev/null", "/", "/proc/self/exe"] {
        let file = File::open(path).unwrap();
        not_taken(&rig, &Inflight { file, ..region });
    }
    let mut f = waiting(&rig);
    f.inflight = Some(region);
    go(&mut f).unwrap();
    f.queue().assert_alive();
}

/// Refused, and the connection goes on; or, where the message has no sense, the connection ends.
fn not_taken(rig: &Rig, region: &Inflight) {
    let mut f = waiting(rig);
    match region.set(&mut f.wire) {
        Err(WireError::Refused(_)) => {
            go(&mut f).unwrap();
            f.queue().assert_alive();
        }
        Err(WireError::Closed) => {}
        other => panic!("{region:?}: {other:?}"),
    }
}

/// Waits until `wanted` requests have come back or the daemon has stopped the queue, each once.
fn come_back(f: &mut Frontend, wanted: usize) -> Vec<u8> {
    let mut codes = Vec::new();
    while codes.len() < wanted {
        match f.queue().reap(PATIENCE) {
            Ok(done) => codes.push(done.status()),
            Err(QueueError::Stopped) => break,
            Err(err) => panic!("{err} after {codes:?}"),
        }
    }
    codes
}

#[test]
fn lists_without_an_end_are_not_followed() {
    let rig = Rig::new(&DISK, &[]);
    for (last, used, loops) in [
        (0, 1, true),
        (0, 15, true),
        (0, u16::MAX, true),
        (u16::MAX, u16::MAX, false),
        (QUEUE_SIZE, 65_530, false),
        (3, 65_520, false),
    ] {
        let mut f = waiting(&rig);
        let heads: Vec<u16> = (0..4).map(|n| submit(&mut f, &append(5, n))).collect();
        let region = f.inflight.as_ref().unwrap();
        for (counter, head) in (1..).zip(&heads) {
            begun(region, *head, counter);
            let next = if loops { *head } else { u16::MAX };
            region.write(state_of(*head) + 6, &next.to_le_bytes());
        }
        region.write(12, &u16::to_le_bytes(last));
        region.write(14, &u16::to_le_bytes(used));
        let started = Instant::now();
        go(&mut f).unwrap();
        f.sync().unwrap();
        assert!(started.elapsed() < PATIENCE);
        // Flags that the list clears are answers that the guest is said to have: those are lost, and only those.
        let back = come_back_within(&mut f, Duration::from_millis(300));
        assert!(back.len() <= 4, "{back:?}");
        drop(f);
        let mut f = Frontend::open_with(&rig.socket(), options());
        f.queue().assert_alive();
    }
}

/// What comes back in a while.
fn come_back_within(f: &mut Frontend, wait: Duration) -> Vec<u8> {
    let mut codes = Vec::new();
    while f.queue().in_flight() > 0 {
        match f.queue().reap(wait) {
            Ok(done) => codes.push(done.status()),
            Err(_) => break,
        }
    }
    codes
}

#[test]
fn more_in_flight_than_the_ring_offers_is_not_believed() {
    let rig = Rig::new(&DISK, &[]);
    let mut f = waiting(&rig);
    for n in 0..3 {
        submit(&mut f, &append(6, n));
    }
    let region = f.inflight.as_ref().unwrap();
    for head in 0..QUEUE_SIZE {
        begun(region, head, 100 - u64::from(head));
    }
    go(&mut f).unwrap();
    assert_eq!(come_back(&mut f, 3), [status::OK; 3]);
    drop(f);
    assert_eq!(blocks_in(&rig, 6), 3);
}

/// Queue 1 is said to have begun an append and is not started; queue 0 wants to append to that zone and has to wait.
fn waits_for_a_queue(rig: &Rig) -> Frontend {
    let (block, generation) = learn(rig, 7, 1);
    let mut f = waiting_with(rig, 2);
    let left_out = &mut f.queues[1];
    left_out.submit(&append(7, 2), &Layout::indirect()).unwrap();
    let region = f.inflight.as_ref().unwrap();
    let intent = Intent {
        zone: 7,
        kind: WRITE,
        generation,
        start: block + 1,
        count: 1,
        checked: true,
    };
    begun_on(region, 1, intent);
    submit(&mut f, &append(7, 3));
    go(&mut f).unwrap();
    f.queue().kick();
    let waits = f.queue().reap(Duration::from_millis(100)).unwrap_err();
    assert_eq!(waits, QueueError::TimedOut);
    f
}

#[test]
fn a_queue_that_comes_late_finds_its_place() {
    let rig = Rig::new(&DISK, &["--queues", "2"]);
    let mut f = waits_for_a_queue(&rig);
    f.start_queue(1).unwrap();
    let first = f.queues[1].reap(PATIENCE).unwrap();
    let second = f.queues[0].reap(PATIENCE).unwrap();
    assert_eq!([first.status(), second.status()], [status::OK; 2]);
    let places = [first, second].map(|done| done.append_sector() - 7 * ZONE_SECTORS);
    assert_eq!(places, [8, 16]);
}

/// Notes what the first request of a queue was about to do, and that it is in flight.
fn begun_on(region: &Inflight, queue: u16, intent: Intent) {
    let to_queue = |at: u64| region.queue_offset(queue) + at;
    let heads = u64::from(queue) * u64::from(QUEUE_SIZE);
    let noted = region.tail_offset() + TAIL_HEAD + INTENT * heads;
    region.write(noted, &noted_bytes(1, intent));
    region.write(to_queue(state_of(0) + 8), &1_u64.to_le_bytes());
    region.write(to_queue(state_of(0)), &[1]);
}

#[test]
fn an_append_from_before_a_reset_leaves_the_zone_to_the_one_that_began_since() {
    let rig = Rig::new(&DISK, &["--queues", "2"]);
    let (block, generation) = learn(&rig, 7, 1);
    let mut f = Frontend::open_with(&rig.socket(), options());
    let reset = f.queue().simple(kind::ZONE_RESET, 7 * ZONE_SECTORS);
    assert_eq!((reset, block), (status::OK, 0));
    drop(f);
    let mut f = waiting_with(&rig, 2);
    let old = Intent {
        zone: 7,
        kind: WRITE,
        generation,
        start: 0,
        count: 1,
        checked: true,
    };
    let since = Intent {
        generation: generation + 1,
        ..old
    };
    for (fill, queue) in (1..).zip(&mut f.queues) {
        queue.submit(&append(7, fill), &Layout::indirect()).unwrap();
    }
    let region = f.inflight.as_ref().unwrap();
    begun_on(region, 0, old);
    begun_on(region, 1, since);
    submit(&mut f, &append(7, 3));
    go(&mut f).unwrap();
    f.queue().kick();
    let first = f.queue().reap(PATIENCE).unwrap();
    assert_eq!(first.status(), status::OK, "it counted, and was erased");
    let waits = f.queue().reap(Duration::from_millis(100)).unwrap_err();
    assert_eq!(waits, QueueError::TimedOut);
    f.start_queue(1).unwrap();
    let since = f.queues[1].reap(PATIENCE).unwrap();
    let newcomer = f.queue().reap(PATIENCE).unwrap();
    assert_eq!([since.status(), newcomer.status()], [status::OK; 2]);
    let places = [since, newcomer].map(|done| done.append_sector() - 7 * ZONE_SECTORS);
    assert_eq!(places, [0, 8]);
    let data = f.queue().read_ok(7 * ZONE_SECTORS, 8192);
    assert!(data[..4096].iter().all(|byte| *byte == 2));
    assert!(data[4096..].iter().all(|byte| *byte == 3));
}

/// Longest that a daemon keeps a zone for a queue that does not come, and something on top.
const GIVES_UP: Duration = Duration::from_secs(15);

#[test]
fn a_write_that_was_given_up_is_never_acknowledged() {
    let rig = Rig::new(&DISK, &["--queues", "2"]);
    let mut f = waits_for_a_queue(&rig);
    let other = f.queues[0].reap(GIVES_UP).unwrap();
    assert_eq!(other.status(), status::OK);
    f.start_queue(1).unwrap();
    let late = f.queues[1].reap(PATIENCE).unwrap();
    assert_eq!(late.status(), status::IOERR, "its place is somebody else's");
    let data = f.queues[0].read_ok(7 * ZONE_SECTORS, 8192);
    assert!(data[4096..].iter().all(|byte| *byte == 3));
    assert_eq!(f.queues[0].zone(7 * ZONE_SECTORS).wp, 7 * ZONE_SECTORS + 16);
}

/// Appends where the one that [`waits_for_a_queue`] had begun to.
fn takes_the_place(other: &mut Frontend) {
    let place = 7 * ZONE_SECTORS + 8;
    let appended = other.queue().append(7 * ZONE_SECTORS, &[9; 4096], 16);
    assert_eq!(appended, (status::OK, place));
}

/// The one that [`waits_for_a_queue`] comes back with all that it had: its queue 1 is told that what it had begun was not
/// done, since `fill` was written at that place, and its queue 0 is served.
fn finds_its_place_taken(mut f: Frontend, fill: u8) {
    f.reconnect().unwrap();
    let late = f.queues[1].reap(PATIENCE).unwrap();
    assert_eq!(late.status(), status::IOERR, "its place is somebody else's");
    while f.queues[0].in_flight() > 0 {
        assert_eq!(f.queues[0].reap(PATIENCE).unwrap().status(), status::OK);
    }
    let data = f.queues[0].read_ok(7 * ZONE_SECTORS, 8192);
    assert!(data[4096..].iter().all(|byte| *byte == fill));
}

#[test]
fn what_was_given_up_for_another_front_end_is_not_acknowledged_to_the_one_that_comes_back() {
    let rig = Rig::new(&DISK, &["--queues", "2"]);
    let f = waits_for_a_queue(&rig);
    f.wire.close();
    // With a region of its own.
    let mut other = Frontend::open_with(&rig.socket(), options());
    takes_the_place(&mut other);
    drop(other);
    finds_its_place_taken(f, 9);
}

#[test]
fn what_was_given_up_for_a_reset_of_the_device_is_not_acknowledged_later() {
    let rig = Rig::new(&DISK, &["--queues", "2"]);
    let mut f = waits_for_a_queue(&rig);
    f.wire.tell(FrontendReq::RESET_DEVICE, &[], &[]).unwrap();
    f.wire.close();
    // One that keeps nothing, and so has nothing to give up.
    let mut other = Frontend::open(&rig.socket());
    takes_the_place(&mut other);
    drop(other);
    finds_its_place_taken(f, 9);
}

#[test]
fn what_was_given_up_for_another_region_is_not_acknowledged_from_the_first_one_later() {
    let rig = Rig::new(&DISK, &["--queues", "2"]);
    let mut f = waits_for_a_queue(&rig);
    f.stop_queue(0).unwrap();
    let second = Inflight::get(&mut f.wire, 2, QUEUE_SIZE).unwrap();
    second.set(&mut f.wire).unwrap();
    // Queue 0 begins what waited as new, and takes the place.
    f.start_queue(0).unwrap();
    f.queue().kick();
    let done = f.queue().reap(PATIENCE).unwrap();
    let place = 7 * ZONE_SECTORS + 8;
    assert_eq!((done.status(), done.append_sector()), (status::OK, place));
    f.wire.close();
    finds_its_place_taken(f, 3);
}

#[test]
fn a_front_end_that_comes_back_in_time_goes_on_where_it_was() {
    let rig = Rig::new(&DISK, &["--queues", "2"]);
    let mut f = waits_for_a_queue(&rig);
    f.wire.close();
    // One that only looks takes nothing away.
    drop(Frontend::negotiate(&rig.socket(), options()).unwrap());
    f.reconnect().unwrap();
    let places = [1, 0].map(|queue| {
        let done = f.queues[queue].reap(PATIENCE).unwrap();
        assert_eq!(done.status(), status::OK);
        done.append_sector() - 7 * ZONE_SECTORS
    });
    assert_eq!(places, [8, 16]);
}

#[test]
fn what_another_wrote_before_a_front_end_came_is_not_taken_for_its_own() {
    let mut rig = Rig::new(&DISK, &[]);
    let (block, generation) = learn(&rig, 7, 1);
    let intent = Intent {
        zone: 7,
        kind: WRITE,
        generation,
        start: block + 1,
        count: 1,
        checked: true,
    };
    // As it was left by a daemon before this one.
    let mut f = waiting(&rig);
    let head = submit(&mut f, &append(7, 2));
    let region = f.inflight.as_ref().unwrap();
    intend(region, head, 1, intent);
    begun(region, head, 1);
    rig.restart();
    let mut other = Frontend::open_with(&rig.socket(), options());
    let appended = other.queue().append(7 * ZONE_SECTORS, &[9; 4096], 16);
    assert_eq!(appended, (status::OK, 7 * ZONE_SECTORS + 8));
    drop(other);
    f.reconnect().unwrap();
    let late = f.queue().reap(PATIENCE).unwrap();
    assert_eq!(late.status(), status::IOERR);
    assert_eq!(f.queue().zone(7 * ZONE_SECTORS).wp, 7 * ZONE_SECTORS + 16);
}

/// Longest that a daemon may take to let go of a front-end of which something is missing.
const FAREWELL: Duration = Duration::from_secs(5);

#[test]
fn a_queue_that_never_comes_holds_up_no_end() {
    let mut rig = Rig::new(&DISK, &["--queues", "2"]);
    let f = waits_for_a_queue(&rig);
    f.wire.close();
    let left = Instant::now();
    Frontend::open_with(&rig.socket(), options())
        .queue()
        .assert_alive();
    assert!(
        left.elapsed() < FAREWELL,
        "disconnect: {:?}",
        left.elapsed()
    );
    let _f = waits_for_a_queue(&rig);
    let told = Instant::now();
    rig.daemon.take().unwrap().stop();
    assert!(told.elapsed() < FAREWELL, "SIGTERM: {:?}", told.elapsed());
}

/// Bytes at random, over everything or over what matters, with requests waiting.
#[test]
fn noise_in_the_region_harms_nobody_else() {
    let rig = Rig::new(&DISK, &[]);
    let mut rng = Rng::from_env(71);
    let keep: Vec<u8> = (0..4096_u32)
        .map(|i| u8::try_from(i % 251).unwrap())
        .collect();
    let mut f = Frontend::open_with(&rig.socket(), options());
    assert_eq!(f.queue().append(31 * ZONE_SECTORS, &keep, 16).0, status::OK);
    drop(f);
    let (mut taken, mut refused, mut answered) = (0, 0, 0);
    for round in 0..150 {
        let mut f = waiting(&rig);
        let count = rng.range(1, 10);
        for n in 0..count {
            let zone = rng.below(8) + 8;
            let request = match rng.below(6) {
                0 => Request::new(kind::ZONE_RESET, zone * ZONE_SECTORS),
                1 => Request::new(kind::ZONE_FINISH, zone * ZONE_SECTORS),
                2 => Request::read(zone * ZONE_SECTORS, 4096),
                _ => append(zone, u8::try_from(n).unwrap()),
            };
            submit(&mut f, &request);
        }
        disturb(&mut rng, f.inflight.as_ref().unwrap(), count);
        match go(&mut f) {
            Ok(()) => {
                taken += 1;
                answered += come_back_within(&mut f, Duration::from_millis(20)).len();
            }
            Err(WireError::Refused(_)) => refused += 1,
            Err(err) => panic!("round {round}: {err}"),
        }
        f.sync().unwrap();
    }
    println!("{taken} regions taken, {refused} refused, {answered} requests answered");
    assert!(taken > 20 && answered > 20);
    let mut f = Frontend::open_with(&rig.socket(), options());
    assert!(f.queue().read_ok(31 * ZONE_SECTORS, 4096) == keep);
    for zone in 8..16 {
        assert_eq!(
            f.queue().simple(kind::ZONE_RESET, zone * ZONE_SECTORS),
            status::OK
        );
    }
    assert!(rig.log().lines().count() < 2_000, "a bounded log");
}

fn disturb(rng: &mut Rng, region: &Inflight, count: u64) {
    let tail = region.tail_offset();
    for head in 0..u16::try_from(count).unwrap() {
        if rng.one_in(2) {
            begun(region, head, rng.below(20));
        }
        if rng.one_in(2) {
            let odd = |rng: &mut Rng, small| match rng.below(4) {
                0 => rng.bits(),
                _ => rng.below(small),
            };
            let intent = Intent {
                zone: odd(rng, 16),
                kind: odd(rng, 5),
                generation: odd(rng, 6),
                start: odd(rng, 10),
                count: odd(rng, 3),
                checked: !rng.one_in(4),
            };
            intend(region, head, rng.below(20), intent);
        }
    }
    for _ in 0..rng.below(6) {
        let at = if rng.one_in(3) {
            rng.below(region.size)
        } else {
            // Not what makes it refused at once.
            let standard = rng.range(12, tail - 1);
            let intents = rng.range(tail + TAIL_HEAD, region.size - 1);
            *rng.pick(&[standard, intents])
        };
        let len = usize::try_from(rng.range(1, 8).min(region.size - at)).unwrap();
        let bytes = rng.bytes(len);
        region.write(at, &bytes);
    }
}

/// The file shrinks under the daemon: one of ours cannot, another's must not take the daemon along.
#[test]
fn a_region_cannot_be_taken_away() {
    let rig = Rig::new(&DISK, &[]);
    let mut f = waiting(&rig);
    let region = f.inflight.as_ref().unwrap();
    assert!(region.file.set_len(0).is_err(), "sealed");
    assert!(region.file.set_len(1 << 30).is_err(), "sealed");
    let copy = tempfile::tempfile().unwrap();
    std::os::unix::fs::FileExt::write_all_at(&copy, &region.read(), 0).unwrap();
    let mut own = f.inflight.take().unwrap();
    own.file = copy.try_clone().unwrap();
    own.offset = 0;
    let told = own.set(&mut f.wire);
    if told.is_ok() {
        f.start_queue(0).unwrap();
        copy.set_len(0).unwrap();
        submit(&mut f, &append(9, 1));
        f.queue().kick();
        come_back_within(&mut f, Duration::from_millis(300));
    }
    drop(f);
    let mut f = Frontend::open_with(&rig.socket(), options());
    f.queue().assert_alive();
    let _fd: RawFd = copy.as_raw_fd();
}
