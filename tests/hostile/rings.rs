//! Rings that break the rules: indices, heads, places and sizes, before the start and after it; events that misbehave.

use std::os::fd::AsRawFd;
use std::time::Duration;

use vhost::vhost_user::message::FrontendReq;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::common::frontend::{Frontend, Options};
use crate::common::memory::Span;
use crate::common::queue::Queue;
use crate::common::request::{Request, status};
use crate::common::ring::{DESC_NEXT, DESC_WRITE, Descriptor};
use crate::common::wire::{longs, words};
use crate::stage::{Case, Parts, Seen, Stage, Want, case, kick_and_see, send, stopped, tell};

/// Entries of the ring that cases start with, and the most that the daemon allows.
const SIZE: u16 = 128;

/// Every table of this file.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = indices();
    cases.extend(heads());
    cases.extend(places());
    cases.extend(sizes());
    cases.extend(bases());
    cases.extend(after_the_start());
    cases.extend(events());
    cases
}

/// A read of the first block in descriptors 0 to 2, not offered yet. Returns where its status goes.
fn prepare(q: &Queue) -> Span {
    let parts = Parts::new(q);
    for (at, (span, flags)) in [
        (parts.read, DESC_NEXT),
        (parts.space, DESC_NEXT | DESC_WRITE),
        (parts.status, DESC_WRITE),
    ]
    .into_iter()
    .enumerate()
    {
        let at = u16::try_from(at).expect("small");
        let descriptor = Descriptor {
            addr: span.start,
            len: u32::try_from(span.len).expect("small"),
            flags,
            next: at + 1,
        };
        q.ring.write_descriptor(at, descriptor);
    }
    parts.status
}

fn indices() -> Vec<Case> {
    let mut cases = Vec::new();
    for served in [0_u64, 3] {
        for jump in [SIZE + 1, SIZE + 2, 0x7fff, 0x8000, 0xff80, 0xffff] {
            let name = format!("after {served} requests the index jumps by {jump:#x}");
            cases.push(case(name, Want::QueueStops, move |stage| {
                let f = stage.fresh();
                for _ in 0..served {
                    f.queue().assert_alive();
                }
                let ring = &f.queue().ring;
                ring.set_avail_index(ring.next_avail().wrapping_add(jump));
                kick_and_see(f, None)
            }));
        }
    }
    for jump in [1, 2, SIZE - 1, SIZE] {
        let name = format!("the index claims {jump} chains of empty descriptors");
        cases.push(case(name, Want::NothingWritten, move |stage| {
            let f = stage.fresh();
            f.queue().ring.set_avail_index(jump);
            kick_and_see(f, None)
        }));
    }
    cases.push(case(
        "the index falls back under requests in flight",
        Want::Anything,
        |stage| {
            let f = stage.fresh();
            for _ in 0..20 {
                let read = Request::read(0, 65536);
                let _ticket = f
                    .queue()
                    .submit(&read, &crate::common::request::Layout::default());
            }
            f.queue().force_kick();
            f.queue().ring.set_avail_index(1);
            f.queue().force_kick();
            f.stop_queue(0).map_or(Seen::Closed, |_| Seen::Silent)
        },
    ));
    cases.push(case(
        "the index runs on while it is served",
        Want::Anything,
        |stage| {
            let f = stage.fresh();
            for index in 0..=u16::MAX {
                f.queue().ring.set_avail_index(index);
                if index % 64 == 0 {
                    f.queue().force_kick();
                }
            }
            stopped(f, 0)
        },
    ));
    cases
}

fn heads() -> Vec<Case> {
    let mut cases = Vec::new();
    for head in [SIZE, SIZE + 1, 255, 256, 0x7fff, 0x8000, 0xffff] {
        let name = format!("the head is {head:#x}");
        cases.push(case(name, Want::NothingWritten, move |stage| {
            let f = stage.fresh();
            f.queue().ring.offer(head);
            kick_and_see(f, None)
        }));
    }
    for times in [2, usize::from(SIZE)] {
        let name = format!("one head {times} times");
        cases.push(case(name, Want::Status(status::OK), move |stage| {
            let f = stage.fresh();
            let place = prepare(f.queue());
            for _ in 0..times {
                f.queue().ring.offer(0);
            }
            kick_and_see(f, Some(place))
        }));
    }
    cases.push(case(
        "a head in the middle of a chain",
        Want::Anything,
        |stage| {
            let f = stage.fresh();
            let place = prepare(f.queue());
            f.queue().ring.offer(0);
            f.queue().ring.offer(1);
            f.queue().ring.offer(2);
            kick_and_see(f, Some(place))
        },
    ));
    cases
}

/// Sends one message after another until one is not taken.
fn tell_all(f: &mut Frontend, messages: &[(FrontendReq, Vec<u8>, Vec<i32>)]) -> Seen {
    for (code, body, fds) in messages {
        match tell(f, *code as u32, body, fds) {
            Seen::Taken => {}
            other => return other,
        }
    }
    Seen::Taken
}

/// What starts queue 0: its size, its position and the user addresses of its three parts.
#[derive(Clone, Copy, Debug)]
struct Start {
    size: u32,
    base: u32,
    desc: u64,
    avail: u64,
    used: u64,
}

/// A session with memory and an unstarted queue, and what would start it well.
fn unstarted(stage: &mut Stage) -> (&mut Frontend, Start) {
    let f = stage.fresh_with(Options {
        queues: 0,
        ..Options::default()
    });
    let queue = Queue::new(0, std::sync::Arc::clone(&f.ram), SIZE, true);
    let [desc, avail, used] = queue.ring.addresses().map(|at| f.ram.user_addr(at));
    f.queues.push(queue);
    let start = Start {
        size: u32::from(SIZE),
        base: 0,
        desc,
        avail,
        used,
    };
    (f, start)
}

fn address_body(start: &Start) -> Vec<u8> {
    let mut body = words(&[0, 0]);
    body.extend_from_slice(&longs(&[start.desc, start.used, start.avail, 0]));
    body
}

/// Starts queue 0 so, offers a read and kicks.
fn begin(f: &mut Frontend, start: &Start) -> Seen {
    let events = f.queue().events().map(AsRawFd::as_raw_fd);
    let told = tell_all(
        f,
        &[
            (FrontendReq::SET_VRING_NUM, words(&[0, start.size]), vec![]),
            (FrontendReq::SET_VRING_BASE, words(&[0, start.base]), vec![]),
            (FrontendReq::SET_VRING_ADDR, address_body(start), vec![]),
            (FrontendReq::SET_VRING_CALL, longs(&[0]), vec![events[1]]),
            (FrontendReq::SET_VRING_ERR, longs(&[0]), vec![events[2]]),
            (FrontendReq::SET_VRING_KICK, longs(&[0]), vec![events[0]]),
            (FrontendReq::SET_VRING_ENABLE, words(&[0, 1]), vec![]),
        ],
    );
    if told != Seen::Taken {
        return told;
    }
    let place = prepare(f.queue());
    f.queue().ring.offer(0);
    kick_and_see(f, Some(place))
}

/// Where a part of the ring may be put: relative to its good place, to the two regions, or anywhere.
fn bad_places(f: &Frontend, good: u64) -> [u64; 16] {
    let regions = f.ram.regions();
    let (low, high) = (regions[0], regions[1]);
    let (low_end, high_end) = (low.user_addr + low.span.len, high.user_addr + high.span.len);
    [
        0,
        1,
        u64::MAX,
        u64::MAX - 15,
        1 << 63,
        low.user_addr - 16,
        low_end - 16,
        low_end - 2,
        low_end - 64,
        high_end - 16,
        high_end,
        good + 1,
        good + 2,
        good + 4,
        good + 8,
        good + 15,
    ]
}

const PLACE_NAMES: [&str; 16] = [
    "at zero",
    "at one",
    "at 2^64 - 1",
    "at 2^64 - 16",
    "at 2^63",
    "below memory",
    "over the end of a region by all but 16 bytes",
    "over the end of a region by all but 2 bytes",
    "over the end of a region by all but 64 bytes",
    "over the end of memory",
    "at the end of memory",
    "1 byte off",
    "2 bytes off",
    "4 bytes off",
    "8 bytes off",
    "15 bytes off",
];

fn put(start: &mut Start, part: usize, place: u64) -> u64 {
    let field = match part {
        0 => &mut start.desc,
        1 => &mut start.avail,
        _ => &mut start.used,
    };
    std::mem::replace(field, place)
}

const PART_NAMES: [&str; 3] = ["descriptors", "available ring", "used ring"];

/// Puts parts of a ring where they may not be.
type Spoil = fn(&mut Start);

fn places() -> Vec<Case> {
    let mut cases = Vec::new();
    for (part, part_name) in PART_NAMES.into_iter().enumerate() {
        for (place, place_name) in PLACE_NAMES.into_iter().enumerate() {
            let name = format!("{part_name} {place_name}");
            cases.push(case(name, Want::Anything, move |stage| {
                let (f, mut start) = unstarted(stage);
                let good = put(&mut start, part, 0);
                let bad = bad_places(f, good)[place];
                put(&mut start, part, bad);
                begin(f, &start)
            }));
        }
    }
    let overlaps: [(&str, Spoil); 4] = [
        ("all parts in one place", |s| {
            s.avail = s.desc;
            s.used = s.desc;
        }),
        ("used ring on the available one", |s| s.used = s.avail),
        ("used ring on the descriptors", |s| s.used = s.desc),
        ("available ring on the descriptors", |s| s.avail = s.desc),
    ];
    for (name, spoil) in overlaps {
        cases.push(case(name, Want::Anything, move |stage| {
            let (f, mut start) = unstarted(stage);
            spoil(&mut start);
            begin(f, &start)
        }));
    }
    cases
}

fn sizes() -> Vec<Case> {
    let mut cases = Vec::new();
    for size in [1, 2, 4, 64, 128] {
        let name = format!("a ring of {size}");
        cases.push(case(name, Want::Taken, move |stage| {
            let (f, _) = unstarted(stage);
            tell(
                f,
                FrontendReq::SET_VRING_NUM as u32,
                &words(&[0, size]),
                &[],
            )
        }));
    }
    for size in [
        0,
        129,
        256,
        1024,
        32768,
        32769,
        65535,
        65536,
        65537,
        0x8000_0000,
        0xffff_ffff,
    ] {
        let name = format!("a ring of {size}");
        cases.push(case(name, Want::NotTaken, move |stage| {
            let (f, _) = unstarted(stage);
            tell(
                f,
                FrontendReq::SET_VRING_NUM as u32,
                &words(&[0, size]),
                &[],
            )
        }));
    }
    for size in [3, 5, 100, 127] {
        let name = format!("a ring of {size}, which is no power of two, and a read");
        cases.push(case(name, Want::Anything, move |stage| {
            let (f, mut start) = unstarted(stage);
            start.size = size;
            begin(f, &start)
        }));
    }
    cases
}

fn bases() -> Vec<Case> {
    let mut cases = Vec::new();
    for base in [1, 127, 128, 129, 0x7fff, 0x8000, 0xfffe, 0xffff] {
        // The ring's index is 1: every other position claims what is not there.
        let want = if base == 1 || base >= 0xff81 {
            Want::Anything
        } else {
            Want::QueueStops
        };
        let name = format!("a ring that begins at {base:#x}");
        cases.push(case(name, want, move |stage| {
            let (f, mut start) = unstarted(stage);
            start.base = base;
            begin(f, &start)
        }));
    }
    for base in [0x1_0000, 0x1_0001, 0x8000_0000, 0xffff_ffff] {
        let name = format!("a ring that begins at {base:#x}");
        cases.push(case(name, Want::Anything, move |stage| {
            let (f, mut start) = unstarted(stage);
            start.base = base;
            begin(f, &start)
        }));
    }
    cases
}

/// A message to a queue that runs, and a read after it.
fn later(
    name: impl Into<String>,
    message: impl Fn(&Frontend, &Start) -> (FrontendReq, Vec<u8>) + 'static,
) -> Case {
    case(name, Want::Anything, move |stage| {
        let (f, start) = unstarted(stage);
        let events = f.queue().events().map(AsRawFd::as_raw_fd);
        let told = tell_all(
            f,
            &[
                (FrontendReq::SET_VRING_NUM, words(&[0, start.size]), vec![]),
                (FrontendReq::SET_VRING_BASE, words(&[0, 0]), vec![]),
                (FrontendReq::SET_VRING_ADDR, address_body(&start), vec![]),
                (FrontendReq::SET_VRING_CALL, longs(&[0]), vec![events[1]]),
                (FrontendReq::SET_VRING_KICK, longs(&[0]), vec![events[0]]),
                (FrontendReq::SET_VRING_ENABLE, words(&[0, 1]), vec![]),
            ],
        );
        if told != Seen::Taken {
            return Seen::Wrong(format!("the start: {told}"));
        }
        f.queue().assert_alive();
        let (code, body) = message(f, &start);
        let told = tell(f, code as u32, &body, &[]);
        if matches!(told, Seen::Nack(_)) {
            // A message that is refused changes nothing.
            f.queue().assert_alive();
        }
        if told != Seen::Taken {
            return told;
        }
        let place = prepare(f.queue());
        f.queue().ring.offer(0);
        kick_and_see(f, Some(place))
    })
}

fn after_the_start() -> Vec<Case> {
    let mut cases = Vec::new();
    for size in [0, 1, 64, 127, 129, 256, 32768, 65536, u32::MAX] {
        cases.push(later(
            format!("the size becomes {size} while the queue runs"),
            move |_, _| (FrontendReq::SET_VRING_NUM, words(&[0, size])),
        ));
    }
    for base in [0, 5, 0x8000, 0xffff, 0x1_0000] {
        cases.push(later(
            format!("the position becomes {base:#x} while the queue runs"),
            move |_, _| (FrontendReq::SET_VRING_BASE, words(&[0, base])),
        ));
    }
    for (part, part_name) in PART_NAMES.into_iter().enumerate() {
        for place in [0, 5, 8, 11, 13] {
            cases.push(later(
                format!(
                    "{part_name} moved while the queue runs: {}",
                    PLACE_NAMES[place]
                ),
                move |f, start| {
                    let mut moved = *start;
                    let good = put(&mut moved, part, 0);
                    put(&mut moved, part, bad_places(f, good)[place]);
                    (FrontendReq::SET_VRING_ADDR, address_body(&moved))
                },
            ));
        }
    }
    cases
}

fn events() -> Vec<Case> {
    vec![
        case("a thousand kicks for nothing", Want::QueueStops, |stage| {
            let f = stage.fresh();
            for _ in 0..1000 {
                f.queue().force_kick();
            }
            kick_and_see(f, None)
        }),
        case(
            "a kick counter at its limit",
            Want::Status(status::OK),
            |stage| {
                let f = stage.fresh();
                let [kick, _, _] = f.queue().events();
                // As far as an eventfd counts; more would block.
                let _full = kick.write(u64::MAX - 2);
                let q = f.queue();
                let parts = Parts::new(q);
                let chain = [
                    crate::stage::raw(parts.read, DESC_NEXT, 1),
                    crate::stage::raw(parts.space, DESC_NEXT | DESC_WRITE, 2),
                    crate::stage::raw(parts.status, DESC_WRITE, 0),
                ];
                send(q, &chain, parts.status)
            },
        ),
        case(
            "a call counter at its limit",
            Want::Status(status::OK),
            |stage| {
                let f = stage.fresh();
                let [_, call, _] = f.queue().events();
                // What a start may say of itself.
                let _count = call.read();
                call.write(u64::MAX - 1).expect("room in the counter");
                let place = prepare(f.queue());
                f.queue().ring.offer(0);
                kick_and_see(f, Some(place))
            },
        ),
        case("no call event at all", Want::Status(status::OK), |stage| {
            let f = stage.fresh();
            // Bit 8: no descriptor comes with it, poll instead.
            let told = tell(
                f,
                FrontendReq::SET_VRING_CALL as u32,
                &longs(&[1 << 8]),
                &[],
            );
            if told != Seen::Taken {
                return told;
            }
            let place = prepare(f.queue());
            f.queue().ring.offer(0);
            kick_and_see(f, Some(place))
        }),
        case(
            "another kick event while the queue runs",
            Want::Anything,
            |stage| {
                let f = stage.fresh();
                let other = EventFd::new(EFD_NONBLOCK).expect("eventfd");
                let code = FrontendReq::SET_VRING_KICK as u32;
                let told = tell(f, code, &longs(&[0]), &[other.as_raw_fd()]);
                if told != Seen::Taken {
                    return told;
                }
                let place = prepare(f.queue());
                f.queue().ring.offer(0);
                other.write(1).expect("kick");
                kick_and_see(f, Some(place))
            },
        ),
        case("kick and call are one event", Want::Anything, |stage| {
            let f = stage.fresh();
            let [kick, _, _] = f.queue().events().map(AsRawFd::as_raw_fd);
            let told = tell(f, FrontendReq::SET_VRING_CALL as u32, &longs(&[0]), &[kick]);
            if told != Seen::Taken {
                return told;
            }
            let place = prepare(f.queue());
            f.queue().ring.offer(0);
            kick_and_see(f, Some(place))
        }),
    ]
}

#[test]
fn rings_that_break_the_rules_stop_their_queue_at_most() {
    Stage::plain().play_all("rings", &cases());
}

#[test]
fn a_ring_that_claims_more_than_it_holds_is_left_alone() {
    let mut stage = Stage::plain();
    let f = stage.fresh();
    let ring = &f.queue().ring;
    ring.set_avail_index(ring.next_avail().wrapping_add(SIZE + 1));
    f.queue().force_kick();
    std::thread::sleep(Duration::from_millis(100));
    let before = stage.cpu_time();
    std::thread::sleep(Duration::from_secs(1));
    let spent = stage.cpu_time().saturating_sub(before);
    assert!(spent < Duration::from_millis(200), "{spent:?} on nothing");
    for _ in 0..1000 {
        stage.queue().force_kick();
    }
    stage.session().stop_queue(0).expect("it can be stopped");
    let lines = stage
        .rig
        .log()
        .lines()
        .filter(|l| l.contains("is stopped"))
        .count();
    assert_eq!(lines, 1, "told once");
}

#[test]
fn a_kick_whose_other_end_is_closed_does_not_keep_the_worker_busy() {
    let mut stage = Stage::plain();
    let f = stage.fresh();
    let (reader, writer) = std::io::pipe().expect("pipe");
    let code = FrontendReq::SET_VRING_KICK as u32;
    let told = tell(f, code, &longs(&[0]), &[reader.as_raw_fd()]);
    drop((reader, writer));
    assert!(
        matches!(told, Seen::Taken | Seen::Nack(_) | Seen::Closed),
        "{told}"
    );
    let before = stage.cpu_time();
    std::thread::sleep(Duration::from_secs(1));
    let spent = stage.cpu_time().saturating_sub(before);
    assert!(spent < Duration::from_millis(300), "{spent:?} on nothing");
    stage.fresh().queue().assert_alive();
}

/// Gives queue 0 a call event that is full and whose writer waits, and has the device call.
fn call_in_vain(f: &mut Frontend) -> EventFd {
    let full = EventFd::new(0).expect("eventfd");
    full.write(u64::MAX - 1).expect("room in the counter");
    let code = FrontendReq::SET_VRING_CALL as u32;
    let told = tell(f, code, &longs(&[0]), &[full.as_raw_fd()]);
    assert_eq!(told, Seen::Taken);
    prepare(f.queue());
    f.queue().ring.offer(0);
    f.queue().force_kick();
    std::thread::sleep(Duration::from_millis(200));
    full
}

#[test]
fn a_call_that_blocks_its_writer_does_not_hold_the_daemon() {
    let mut stage = Stage::plain();
    let full = call_in_vain(stage.fresh());
    // A front-end that hurts itself; the next one must be served.
    stage.fresh().queue().assert_alive();
    drop(full);
}

#[test]
fn a_call_that_blocks_and_is_replaced_does_not_hold_the_daemon() {
    let mut stage = Stage::plain();
    let f = stage.fresh();
    let full = call_in_vain(f);
    let good = EventFd::new(EFD_NONBLOCK).expect("eventfd");
    let code = FrontendReq::SET_VRING_CALL as u32;
    let told = tell(f, code, &longs(&[0]), &[good.as_raw_fd()]);
    assert_eq!(told, Seen::Taken);
    f.stop_queue(0).expect("it can be stopped");
    stage.fresh().queue().assert_alive();
    drop(full);
}
