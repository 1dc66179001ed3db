//! Rules that no other suite holds the device to.

use std::time::{Duration, Instant};

use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures};

use crate::common::daemon::{Image, Rig};
use crate::common::disk::{SMALL, ZONE, small_rig};
use crate::common::frontend::{Frontend, Options, feature};
use crate::common::memory::Span;
use crate::common::queue::{Next, Queue, RawDescriptor};
use crate::common::request::{CONFIG_SIZE, Cut, Layout, POISON, Request, kind, status};
use crate::common::ring::{DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Descriptor};
use crate::table::Proof;
use crate::{block, ring};

const PLAIN: [&str; 3] = ["--size", "4M", "--plain"];
const SOON: Duration = Duration::from_secs(10);

/// Bits that vhost-user has for itself in the same word.
const VHOST_USER: u64 = feature::PROTOCOL_FEATURES;

#[test]
fn every_disk_offers_exactly_what_its_kind_may() {
    let always = feature::SEG_MAX
        | feature::BLK_SIZE
        | feature::FLUSH
        | feature::TOPOLOGY
        | feature::CONFIG_WCE
        | feature::MQ
        | feature::INDIRECT_DESC
        | feature::EVENT_IDX
        | feature::VERSION_1;
    let ranges = feature::DISCARD | feature::WRITE_ZEROES;
    for (create, serve, own) in [
        (&PLAIN[..], &[][..], ranges),
        (&PLAIN, &["--read-only"], feature::RO),
        (&SMALL, &[], feature::ZONED),
        (&SMALL, &["--read-only"], feature::ZONED | feature::RO),
    ] {
        let rig = Rig::new(create, serve);
        let f = Frontend::open(&rig.socket());
        assert_eq!(
            f.offered & !VHOST_USER,
            always | own,
            "{create:?} {serve:?}"
        );
        let bits = [block::DEVICE, block::LEGACY, block::GENERAL, ring::OTHERS]
            .into_iter()
            .flatten()
            .filter_map(|clause| match clause.proof {
                Proof::NotOffered(bit, name) => Some((bit, name)),
                _ => None,
            });
        for (bit, name) in bits.chain([(ring::RING_PACKED, "RING_PACKED")]) {
            assert_eq!(f.offered & (1 << bit), 0, "{name} is offered");
        }
    }
}

#[test]
fn zone_requests_without_the_feature_are_unsupported() {
    let rig = Rig::new(&SMALL, &[]);
    let mut f = Frontend::open_with(&rig.socket(), Options::without(feature::ZONED));
    for code in [
        kind::ZONE_APPEND,
        kind::ZONE_REPORT,
        kind::ZONE_OPEN,
        kind::ZONE_CLOSE,
        kind::ZONE_FINISH,
        kind::ZONE_RESET,
        kind::ZONE_RESET_ALL,
    ] {
        let request = Request::new(code, 2 * ZONE)
            .with_data(&[1; 4096])
            .with_tail(16);
        assert_eq!(
            f.queue().call(&request).status(),
            status::UNSUPP,
            "type {code}"
        );
    }
}

#[test]
fn the_configuration_does_not_change_under_load() {
    let (_rig, mut f) = small_rig();
    let before = f.config();
    for zone in 2..8 {
        for _ in 0..3 {
            f.queue().append(zone * ZONE, &[1; 65536], 16);
        }
        f.queue().simple(kind::ZONE_RESET, zone * ZONE);
    }
    assert_eq!(f.config(), before);
}

#[test]
fn what_the_configuration_does_not_use_is_zero() {
    for (create, unused) in [
        // Size limit, geometry, unused0, unused1, secure erase, zones.
        (
            &PLAIN[..],
            &[8..12, 16..20, 33..34, 57..60, 60..72, 72..96][..],
        ),
        // Discard and zeroes with them, but not the zones.
        (&SMALL, &[8..12, 16..20, 33..34, 36..60, 60..72, 93..96]),
    ] {
        let rig = Rig::new(create, &[]);
        // A driver that takes no zones reads the same.
        for options in [Options::default(), Options::without(feature::ZONED)] {
            let mut f = Frontend::open_with(&rig.socket(), options);
            let config = f.config();
            assert_eq!(config.0.len(), CONFIG_SIZE);
            for range in unused {
                let bytes = &config.0[range.clone()];
                assert!(
                    bytes.iter().all(|byte| *byte == 0),
                    "{create:?} {range:?}: {bytes:?}"
                );
            }
        }
    }
}

#[test]
fn every_zoned_disk_takes_appends() {
    let rig = Rig::new(&SMALL, &[]);
    let mut f = Frontend::open(&rig.socket());
    assert_ne!(f.config().zoned()[3], 0);
    assert_eq!(
        f.queue().append(2 * ZONE, &[1; 4096], 9),
        (status::OK, 2 * ZONE)
    );
    let none = [&SMALL[..12], &["--max-append", "0"]].concat();
    let out = Image::empty().run_create(&none);
    assert!(!out.status.success(), "a disk without appends was made");
}

#[test]
fn reads_of_two_sequential_zones_are_invalid() {
    let (_rig, mut f) = small_rig();
    for len in [8192, 65536] {
        let (code, _) = f.queue().read(3 * ZONE - 8, len);
        assert_eq!(code, status::INVALID_CMD, "{len} bytes");
    }
    let (code, _) = f.queue().read(2 * ZONE - 8, 8192);
    assert_eq!(code, status::INVALID_CMD, "from a conventional zone on");
}

/// A session that may reset the device.
fn with_reset() -> Options {
    let options = Options::default();
    Options {
        protocol: options.protocol | VhostUserProtocolFeatures::RESET_DEVICE,
        ..options
    }
}

#[test]
fn the_same_features_are_taken_again_after_a_reset() {
    let rig = Rig::new(&PLAIN, &[]);
    let mut f = Frontend::open_with(&rig.socket(), with_reset());
    for _ in 0..3 {
        f.queue().assert_alive();
        f.wire
            .tell(FrontendReq::RESET_DEVICE, &[], &[])
            .expect("a reset");
        f.queue().reset();
        f.set_features().expect("the same features");
        f.set_memory().expect("the same memory");
        f.start_queue(0).expect("the same queue");
    }
    f.queue().assert_alive();
}

#[test]
fn a_reset_device_leaves_its_rings_alone() {
    let rig = Rig::new(&PLAIN, &[]);
    let mut f = Frontend::open_with(&rig.socket(), with_reset());
    f.queue().assert_alive();
    f.wire
        .tell(FrontendReq::RESET_DEVICE, &[], &[])
        .expect("a reset");
    let call = |q: &Queue| q.events()[1].read().unwrap_or(0);
    let q = f.queue();
    // What the drain said belongs to the time before.
    call(q);
    let ticket = q
        .submit(&Request::read(0, 4096), &Layout::default())
        .expect("room");
    let rings = |q: &Queue| {
        let [_, available, used] = q.ring.addresses();
        [
            q.ram.read(Span::new(available, 262)),
            q.ram.read(Span::new(used, 1030)),
        ]
    };
    let before = rings(q);
    q.force_kick();
    std::thread::sleep(Duration::from_millis(300));
    assert!(rings(q) == before, "a ring changed after the reset");
    assert_eq!(call(q), 0, "notified after the reset");
    f.set_features().expect("features");
    f.set_memory().expect("memory");
    f.start_queue(0).expect("queue");
    f.queue().force_kick();
    let done = f.queue().wait(ticket, SOON).expect("served now");
    assert_eq!(done.status(), status::OK);
}

/// Guest memory that is small enough to be compared whole.
fn small_memory(features: u64) -> Options {
    Options {
        memory: vec![Span::new(0x1_0000_0000, 1 << 20)],
        queue_size: 64,
        features,
        ..Options::default()
    }
}

/// Everything in guest memory.
fn whole(f: &Frontend) -> Vec<u8> {
    f.ram.read(f.ram.regions()[0].span)
}

#[test]
fn nothing_is_written_but_what_is_the_devices() {
    for (create, zoned) in [(&PLAIN[..], false), (&SMALL, true)] {
        let rig = Rig::new(create, &[]);
        let mut f = Frontend::open_with(&rig.socket(), small_memory(feature::KNOWN));
        let base = f.ram.regions()[0].span.start;
        let mut requests = vec![
            Request::write(0, &[7; 8192]),
            Request::read(0, 8192),
            Request::read(1 << 40, 4096),
            Request::new(kind::FLUSH, 0),
            Request::new(kind::GET_ID, 0).with_space(20),
            Request::new(99, 0).with_data(&[1; 600]).with_space(600),
        ];
        if zoned {
            requests.extend([
                Request::append(2 * ZONE, &[7; 4096], 16),
                Request::report(0, 700),
                Request::new(kind::ZONE_RESET, 2 * ZONE),
            ]);
        }
        for layout in [
            Layout::default(),
            Layout::indirect(),
            Layout {
                readable: Cut::Every(1000),
                writable: Cut::Every(333),
                skew: 5,
                indirect: true,
            },
        ] {
            for request in &requests {
                let [_, _, used] = f.queue().ring.addresses();
                let ticket = f.queue().submit(request, &layout).expect("room");
                let writable = f.queue().writable_spans(ticket);
                let before = whole(&f);
                f.queue().kick();
                let deadline = Instant::now() + SOON;
                while f.queue().ring.ready() == 0 {
                    assert!(Instant::now() < deadline, "no answer");
                    std::thread::sleep(Duration::from_micros(100));
                }
                let after = whole(&f);
                f.queue().wait(ticket, SOON).expect("it is there");
                let own = |at: u64| {
                    let of_ring = at >= used && at < used + 4 + 8 * 64 + 2;
                    let inside = |span: &Span| at >= span.start && at < span.start + span.len;
                    of_ring || writable.iter().any(inside)
                };
                for (at, (old, new)) in (base..).zip(before.iter().zip(&after)) {
                    assert!(old == new || own(at), "{at:#x} changed for {layout:?}");
                }
            }
        }
    }
}

#[test]
fn the_used_length_never_claims_what_was_not_written() {
    let (_rig, mut f) = small_rig();
    let mut requests = vec![
        Request::write(0, &[POISON ^ 0xff; 4096]),
        Request::read(0, 4096),
        Request::read(1 << 40, 4096),
        Request::read(0, 100),
        Request::new(kind::FLUSH, 0),
        Request::new(99, 0).with_space(512),
        Request::new(kind::ZONE_OPEN, 3).with_space(512),
    ];
    requests.extend([0, 63, 64, 100, 128, 700].map(|len| Request::report(0, len)));
    requests.extend([1, 20, 40].map(|len| Request::new(kind::GET_ID, 0).with_space(len)));
    requests.extend((1..24).map(|tail| Request::append(2 * ZONE, &[1; 4096], tail)));
    for request in &requests {
        let done = f.queue().call(request);
        let claimed = usize::try_from(done.used_len).expect("small");
        assert!(claimed <= done.writable.len());
        // The disk holds no byte of POISON, so a byte that still shows it was not written. Bytes of a serial number and
        // of zeroes are others too.
        let untouched = done.writable[..claimed]
            .iter()
            .position(|byte| *byte == POISON);
        assert_eq!(untouched, None, "{claimed} bytes claimed of {request:?}");
    }
}

/// Reads of the first block, offered and kicked by hand.
fn offer(q: &mut Queue, count: usize) -> Vec<u64> {
    let read = Request::read(0, 4096);
    let tickets = (0..count)
        .map(|_| q.submit(&read, &Layout::default()).expect("room"))
        .collect();
    q.force_kick();
    tickets
}

fn wait_ready(q: &Queue, count: u16) {
    let deadline = Instant::now() + SOON;
    while q.ring.ready() < count {
        assert!(
            Instant::now() < deadline,
            "{} of {count} came",
            q.ring.ready()
        );
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Lets the notices pass that come with the start of a queue.
fn settle(q: &mut Queue) {
    q.assert_alive();
    std::thread::sleep(Duration::from_millis(100));
    let _count = q.events()[1].read();
}

/// Waits for the next notices and counts them.
fn notices(q: &Queue) -> u64 {
    let deadline = Instant::now() + SOON;
    loop {
        if let Ok(count) = q.events()[1].read() {
            return count;
        }
        assert!(Instant::now() < deadline, "no notice");
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn take_all(q: &mut Queue, tickets: &[u64]) {
    for ticket in tickets {
        q.wait(*ticket, SOON).expect("it came");
    }
    let _count = q.events()[1].read();
}

#[test]
fn with_event_indices_the_driver_hears_when_it_asked_to() {
    let rig = Rig::new(&PLAIN, &[]);
    let mut f = Frontend::open(&rig.socket());
    let q = f.queue();
    settle(q);
    for flags in [0, 1] {
        // The event index lies behind: no notice, however many come.
        for _ in 0..5 {
            q.ring.disarm();
            q.ring.set_avail_flags(flags);
            let tickets = offer(q, 3);
            wait_ready(q, 3);
            take_all_quietly(q, &tickets);
        }
        // The next element is asked for: exactly one notice, and whatever the flag says.
        q.ring.arm();
        q.ring.set_avail_flags(flags);
        let tickets = offer(q, 1);
        wait_ready(q, 1);
        assert_eq!(notices(q), 1, "flags {flags}");
        take_all(q, &tickets);
        // The third from here: it comes with that one and not before.
        q.ring.ask_for(q.ring.next_used().wrapping_add(2));
        let two = offer(q, 2);
        wait_ready(q, 2);
        let third = offer(q, 1);
        wait_ready(q, 3);
        assert_eq!(notices(q), 1, "flags {flags}");
        take_all(q, &two);
        take_all(q, &third);
    }
}

/// Takes completions off the ring without touching the notices.
fn take_all_quietly(q: &mut Queue, tickets: &[u64]) {
    for _ in tickets {
        let done = q.poll().expect("a ring in order");
        assert!(done.is_some(), "it is there");
    }
}

#[test]
fn without_event_indices_the_flags_decide() {
    let rig = Rig::new(&PLAIN, &[]);
    let mut f = Frontend::open_with(&rig.socket(), Options::without(feature::EVENT_IDX));
    let q = f.queue();
    settle(q);
    // Where an event index would be stands one that asks for every element: it means nothing.
    for round in 0..5_u16 {
        q.ring.set_avail_flags(1);
        q.ring.write_event(q.ring.next_used());
        let tickets = offer(q, 3);
        wait_ready(q, 3);
        take_all_quietly(q, &tickets);
        q.ring.set_avail_flags(0);
        q.ring.write_event(round.wrapping_sub(99));
        let tickets = offer(q, 1);
        wait_ready(q, 1);
        assert_eq!(notices(q), 1, "round {round}");
        take_all(q, &tickets);
    }
}

#[test]
fn the_used_flags_hold_one_bit_at_most() {
    for (features, most) in [
        (feature::KNOWN, 0),
        (feature::KNOWN & !feature::EVENT_IDX, 1),
    ] {
        let rig = Rig::new(&PLAIN, &[]);
        let options = Options {
            features,
            ..Options::default()
        };
        let mut f = Frontend::open_with(&rig.socket(), options);
        let q = f.queue();
        for _ in 0..200 {
            let tickets = offer(q, 4);
            while q.ring.ready() < 4 {
                assert!(q.ring.used_flags() <= most, "flags {}", q.ring.used_flags());
            }
            assert!(q.ring.used_flags() <= most, "flags {}", q.ring.used_flags());
            take_all(q, &tickets);
        }
    }
}

#[test]
fn what_the_index_shows_is_complete() {
    let rig = Rig::new(&PLAIN, &[]);
    let mut f = Frontend::open(&rig.socket());
    assert_eq!(f.queue().write(0, &[0x3c; 4096]), status::OK);
    let q = f.queue();
    for round in 0..3000 {
        let [_, _, used] = q.ring.addresses();
        let slot = u64::from(q.ring.next_used() % q.ring.size());
        q.ram.write(used + 4 + 8 * slot, &[0xee; 8]);
        let ticket = q
            .submit(&Request::read(0, 4096), &Layout::default())
            .expect("room");
        let spans = q.writable_spans(ticket);
        q.force_kick();
        let deadline = Instant::now() + SOON;
        while q.ring.ready() == 0 {
            assert!(Instant::now() < deadline, "no answer");
            std::hint::spin_loop();
        }
        // At once, before anything else could catch up.
        let element = q.ram.read(Span::new(used + 4 + 8 * slot, 8));
        let last = q.ram.read(Span::new(spans[0].start + 4095, 1))[0];
        assert_eq!(element[4..], 4097_u32.to_le_bytes(), "round {round}");
        assert_eq!(last, 0x3c, "round {round}");
        let done = q.wait(ticket, SOON).expect("it came");
        assert!(
            done.data().iter().all(|byte| *byte == 0x3c),
            "round {round}"
        );
    }
}

/// A read of the first block whose parts are in guest memory, for hand-made chains.
struct Parts {
    header: Span,
    space: Span,
    status: Span,
}

fn parts(q: &Queue) -> Parts {
    Parts {
        header: q.buffer(&Request::new(kind::IN, 0).readable),
        space: q.buffer(&[POISON; 4096]),
        status: q.buffer(&[POISON]),
    }
}

fn descriptor(span: Span, flags: u16, next: u16) -> Descriptor {
    Descriptor {
        addr: span.start,
        len: u32::try_from(span.len).expect("small"),
        flags,
        next,
    }
}

fn table(q: &Queue, entries: &[Descriptor]) -> Span {
    let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_bytes()).collect();
    q.buffer(&bytes)
}

fn raw(span: Span, flags: u16, next: usize) -> RawDescriptor {
    RawDescriptor {
        addr: span.start,
        len: u32::try_from(span.len).expect("small"),
        flags,
        next: Next::Chain(next),
    }
}

fn works(q: &mut Queue, chain: &[RawDescriptor], parts: &Parts) {
    let ticket = q.submit_raw(chain).expect("room");
    q.kick();
    let done = q.wait(ticket, SOON).expect("an answer");
    assert_eq!(done.used_len, 4097);
    assert_eq!(q.ram.read(parts.status), [status::OK]);
    assert!(q.ram.read(parts.space).iter().all(|byte| *byte == 0x5d));
}

fn disk_with_a_block() -> (Rig, Frontend) {
    let rig = Rig::new(&PLAIN, &[]);
    let mut f = Frontend::open(&rig.socket());
    assert_eq!(f.queue().write(0, &[0x5d; 4096]), status::OK);
    (rig, f)
}

#[test]
fn the_write_flag_of_an_indirect_descriptor_means_nothing() {
    let (_rig, mut f) = disk_with_a_block();
    let q = f.queue();
    let p = parts(q);
    let all = table(
        q,
        &[
            descriptor(p.header, DESC_NEXT, 1),
            descriptor(p.space, DESC_NEXT | DESC_WRITE, 2),
            descriptor(p.status, DESC_WRITE, 0),
        ],
    );
    works(q, &[raw(all, DESC_INDIRECT | DESC_WRITE, 0)], &p);
}

#[test]
fn a_chain_may_end_in_an_indirect_table() {
    let (_rig, mut f) = disk_with_a_block();
    let q = f.queue();
    let p = parts(q);
    let rest = table(
        q,
        &[
            descriptor(p.space, DESC_NEXT | DESC_WRITE, 1),
            descriptor(p.status, DESC_WRITE, 0),
        ],
    );
    works(
        q,
        &[raw(p.header, DESC_NEXT, 1), raw(rest, DESC_INDIRECT, 0)],
        &p,
    );
    let p = parts(q);
    let last = table(q, &[descriptor(p.status, DESC_WRITE, 0)]);
    let chain = [
        raw(p.header, DESC_NEXT, 1),
        raw(p.space, DESC_NEXT | DESC_WRITE, 2),
        raw(last, DESC_INDIRECT, 0),
    ];
    works(q, &chain, &p);
}
