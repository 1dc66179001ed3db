//! vhost-user messages that break the rules, on a plain disk.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

use vhost::vhost_user::message::FrontendReq;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::common::frontend::{Frontend, feature};
use crate::common::wire::{
    FLAG_NEED_REPLY, FLAG_REPLY, FLAG_VERSION, Wire, WireError, longs, words,
};
use crate::stage::{Case, Seen, Stage, Want, case, heard, still_there, tell};

/// Every table of this file.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = codes();
    cases.extend(bodies());
    cases.extend(halves());
    cases.extend(flags());
    cases.extend(descriptors());
    cases.extend(events());
    cases.extend(indices());
    cases.extend(order());
    cases.extend(repeats());
    cases.extend(config());
    cases
}

/// A message in a session that negotiated and has no memory yet.
fn message(name: impl Into<String>, want: Want, code: u32, body: Vec<u8>) -> Case {
    case(name, want, move |stage| {
        tell(stage.negotiated(), code, &body, &[])
    })
}

/// A connection on which nothing was said.
fn bare(stage: &mut Stage) -> Wire {
    stage.leave();
    Wire::connect(&stage.rig.socket()).expect("a connection")
}

/// What came of bytes that may have broken the connection.
fn after(wire: &mut Wire, sent: Result<(), WireError>) -> Seen {
    match sent {
        Ok(()) => still_there(wire),
        Err(WireError::Closed) => Seen::Closed,
        Err(err) => Seen::Wrong(format!("sending: {err}")),
    }
}

/// Codes that nobody defined, and those of features that are not offered.
fn codes() -> Vec<Case> {
    let unknown = [
        0,
        45,
        46,
        47,
        63,
        64,
        100,
        128,
        255,
        256,
        0xffff,
        0x1_0000,
        0x7fff_ffff,
        0x8000_0001,
        u32::MAX,
    ];
    // Log, RARP, MTU, IOTLB, endianness, crypto sessions, postcopy, GPU, shared objects, device state, shared memory.
    let unoffered = [6, 7, 19, 20, 22, 23, 26, 27, 28, 29, 30, 33, 41, 42, 43, 44];
    let mut cases = Vec::new();
    for code in unknown.into_iter().chain(unoffered) {
        for len in [0, 8] {
            let name = format!("code {code:#x} with {len} bytes");
            cases.push(message(name, Want::NotTaken, code, vec![0; len]));
        }
    }
    cases
}

/// Every code with bodies of every kind of length, zeroes and ones.
fn bodies() -> Vec<Case> {
    let mut cases = Vec::new();
    for code in 1..=44 {
        for len in [1, 4, 7, 9, 12, 16, 32, 39, 40, 64, 4095, 4096] {
            let fill = if len % 2 == 0 { 0 } else { 0xff };
            let name = format!("code {code} with {len} bytes of {fill:#x}");
            cases.push(message(name, Want::Anything, code, vec![fill; len]));
        }
    }
    for len in [4097, 8192, 0x1_0000, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
        for code in [1, 5, 24, 25] {
            let name = format!("code {code} that claims {len} bytes");
            cases.push(case(name, Want::NotTaken, move |stage| {
                let f = stage.negotiated();
                let header = words(&[code, FLAG_VERSION | FLAG_NEED_REPLY, len]);
                match f.wire.send_bytes(&header, &[]) {
                    Ok(()) => heard(&mut f.wire, code),
                    Err(err) => Seen::Wrong(err.to_string()),
                }
            }));
        }
    }
    cases
}

/// Connections that end within a message.
fn halves() -> Vec<Case> {
    let mut cases = Vec::new();
    for len in 0..20_usize {
        let name = format!("{len} bytes of a message of 20, and gone");
        cases.push(case(name, Want::Anything, move |stage| {
            let f = stage.negotiated();
            let mut bytes = words(&[8, FLAG_VERSION, 8]);
            bytes.extend_from_slice(&words(&[0, 128]));
            let sent = f.wire.send_bytes(&bytes[..len], &[]);
            stage.leave();
            sent.map_or_else(|err| Seen::Wrong(err.to_string()), |()| Seen::Closed)
        }));
    }
    cases.push(case(
        "a message in twenty pieces",
        Want::Anything,
        |stage| {
            let f = stage.negotiated();
            let mut bytes = words(&[8, FLAG_VERSION | FLAG_NEED_REPLY, 8]);
            bytes.extend_from_slice(&words(&[0, 128]));
            for byte in bytes {
                if f.wire.send_bytes(&[byte], &[]).is_err() {
                    return Seen::Closed;
                }
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            heard(&mut f.wire, 8)
        },
    ));
    cases.push(case("two messages in one piece", Want::Anything, |stage| {
        let f = stage.negotiated();
        let mut bytes = words(&[8, FLAG_VERSION, 8]);
        bytes.extend_from_slice(&words(&[0, 128]));
        let twice = [bytes.clone(), bytes].concat();
        let sent = f.wire.send_bytes(&twice, &[]);
        after(&mut f.wire, sent)
    }));
    cases.push(case("a page of noise", Want::NotTaken, |stage| {
        let mut wire = bare(stage);
        let sent = wire.send_bytes(&[0x5a; 4096], &[]);
        after(&mut wire, sent)
    }));
    cases
}

fn flags() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, flags) in [
        ("version 0", 0),
        ("version 2", 2),
        ("version 3", 3),
        ("a reply as a request", FLAG_VERSION | FLAG_REPLY),
        (
            "a reply that needs a reply",
            FLAG_VERSION | FLAG_REPLY | FLAG_NEED_REPLY,
        ),
    ] {
        for (code, body) in [(1, vec![]), (8, words(&[0, 64]))] {
            let name = format!("code {code} with {name}");
            cases.push(case(name, Want::NotTaken, move |stage| {
                let f = stage.negotiated();
                let len = u32::try_from(body.len()).expect("small");
                let mut bytes = words(&[code, flags, len]);
                bytes.extend_from_slice(&body);
                let sent = f.wire.send_bytes(&bytes, &[]);
                after(&mut f.wire, sent)
            }));
        }
    }
    for bit in [4, 5, 16, 31] {
        let name = format!("flag {bit}");
        cases.push(case(name, Want::Anything, move |stage| {
            let f = stage.negotiated();
            let sent = f
                .wire
                .send_bytes(&words(&[1, FLAG_VERSION | 1 << bit, 0]), &[]);
            after(&mut f.wire, sent)
        }));
    }
    cases.push(case(
        "an acknowledgement wanted that was not negotiated",
        Want::Taken,
        |stage| {
            let mut wire = bare(stage);
            let sent = wire.send(3, FLAG_NEED_REPLY, &[], &[]);
            after(&mut wire, sent)
        },
    ));
    cases
}

fn eventfds(count: usize) -> Vec<EventFd> {
    (0..count)
        .map(|_| EventFd::new(EFD_NONBLOCK).expect("eventfd"))
        .collect()
}

/// Descriptors with messages that have none, too many, and too few.
fn descriptors() -> Vec<Case> {
    let mut cases = Vec::new();
    for (code, body) in [
        (1, vec![]),
        (2, longs(&[0])),
        (3, vec![]),
        (8, words(&[0, 64])),
        (10, words(&[0, 0])),
        (18, words(&[0, 1])),
        (34, vec![]),
    ] {
        for count in [1, 8, 32, 33, 253] {
            let body = body.clone();
            let name = format!("code {code} with {count} descriptors too many");
            cases.push(case(name, Want::Anything, move |stage| {
                let fds = eventfds(count);
                let raw: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
                // Nothing follows: what waits for more of it waits in vain.
                tell(stage.negotiated(), code, &body, &raw)
            }));
        }
    }
    for code in [12, 13, 14] {
        cases.push(message(
            format!("code {code} without its descriptor"),
            Want::NotTaken,
            code,
            longs(&[0]),
        ));
        cases.push(message(
            format!("code {code} that says it has none"),
            Want::Anything,
            code,
            longs(&[1 << 8]),
        ));
        for count in [2, 3, 32] {
            let name = format!("code {code} with {count} descriptors");
            cases.push(case(name, Want::NotTaken, move |stage| {
                let fds = eventfds(count);
                let raw: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
                tell(stage.negotiated(), code, &longs(&[0]), &raw)
            }));
        }
        let name = format!("code {code} that says it has none and has one");
        cases.push(case(name, Want::Anything, move |stage| {
            let event = EventFd::new(EFD_NONBLOCK).expect("eventfd");
            let body = longs(&[1 << 8]);
            tell(stage.negotiated(), code, &body, &[event.as_raw_fd()])
        }));
    }
    cases
}

/// Opens something; the first of it is used.
type Open = fn() -> Vec<OwnedFd>;

/// Events that are none, on a queue that runs.
fn events() -> Vec<Case> {
    let kinds: [(&str, Open); 6] = [
        ("/dev/null", || {
            vec![
                File::options()
                    .read(true)
                    .write(true)
                    .open("/dev/null")
                    .expect("null")
                    .into(),
            ]
        }),
        ("a directory", || {
            vec![File::open("/").expect("root").into()]
        }),
        ("a file", || {
            vec![tempfile::tempfile().expect("file").into()]
        }),
        ("a socket", || {
            let (a, b) = std::os::unix::net::UnixStream::pair().expect("sockets");
            vec![a.into(), b.into()]
        }),
        ("a pipe to read", || {
            let (a, b) = std::io::pipe().expect("pipe");
            vec![a.into(), b.into()]
        }),
        ("a pipe to write", || {
            let (a, b) = std::io::pipe().expect("pipe");
            vec![b.into(), a.into()]
        }),
    ];
    let mut cases = Vec::new();
    for code in [12, 13, 14] {
        for (name, make) in kinds {
            let name = format!("code {code} with {name} for an event");
            cases.push(case(name, Want::Anything, move |stage| {
                let fds = make();
                let f = stage.fresh();
                let told = tell(f, code, &longs(&[0]), &[fds[0].as_raw_fd()]);
                if told == Seen::Taken {
                    f.queue().force_kick();
                    let stopped = crate::stage::stopped(f, 0);
                    if stopped != Seen::Silent {
                        return stopped;
                    }
                }
                told
            }));
        }
    }
    cases
}

/// Queues that are not there. The disk has two.
fn indices() -> Vec<Case> {
    let mut cases = Vec::new();
    for index in [2, 3, 255, 256, 0x8000, 0xffff, 0x1_0000, u32::MAX] {
        for (code, body) in [
            (8, words(&[index, 64])),
            (9, [words(&[index, 0]), longs(&[0; 4])].concat()),
            (10, words(&[index, 0])),
            (11, words(&[index, 0])),
            (18, words(&[index, 1])),
        ] {
            let name = format!("code {code} for queue {index}");
            cases.push(message(name, Want::NotTaken, code, body));
        }
    }
    for index in [2, 3, 127, 255] {
        for code in [12, 13, 14] {
            let name = format!("code {code} for queue {index}");
            cases.push(case(name, Want::NotTaken, move |stage| {
                let event = EventFd::new(EFD_NONBLOCK).expect("eventfd");
                let f = stage.negotiated();
                tell(f, code, &longs(&[index]), &[event.as_raw_fd()])
            }));
        }
    }
    for (name, value) in [("2", 2), ("2^32 - 1", u32::MAX)] {
        let body = words(&[0, value]);
        cases.push(message(
            format!("a queue enabled by {name}"),
            Want::NotTaken,
            18,
            body,
        ));
    }
    cases
}

/// What a front-end does in a session.
type Scene = fn(&mut Frontend) -> Seen;

/// Messages at the wrong moment.
fn order() -> Vec<Case> {
    let mut cases = Vec::new();
    // The very first thing on a connection.
    for code in 1..=40_u32 {
        for len in [0, 8] {
            let name = format!("code {code} with {len} bytes is the first message");
            cases.push(case(name, Want::Anything, move |stage| {
                let mut wire = bare(stage);
                let sent = wire.send(code, 0, &vec![0; len], &[]);
                after(&mut wire, sent)
            }));
        }
    }
    let scenes: [(&str, Want, Scene); 12] = [
        ("addresses before memory", Want::NotTaken, |f| {
            let body = [words(&[0, 0]), longs(&[0x1000, 0x3000, 0x2000, 0])].concat();
            tell(f, FrontendReq::SET_VRING_ADDR as u32, &body, &[])
        }),
        ("enabled before it was set up", Want::Anything, |f| {
            tell(
                f,
                FrontendReq::SET_VRING_ENABLE as u32,
                &words(&[0, 1]),
                &[],
            )
        }),
        (
            "the position of a queue that never ran",
            Want::Anything,
            |f| tell(f, FrontendReq::GET_VRING_BASE as u32, &words(&[0, 0]), &[]),
        ),
        ("a kick before memory and addresses", Want::Anything, |f| {
            let event = EventFd::new(EFD_NONBLOCK).expect("eventfd");
            let code = FrontendReq::SET_VRING_KICK as u32;
            let told = tell(f, code, &longs(&[0]), &[event.as_raw_fd()]);
            event.write(1).expect("kick");
            match told {
                Seen::Taken => tell(
                    f,
                    FrontendReq::SET_VRING_ENABLE as u32,
                    &words(&[0, 1]),
                    &[],
                ),
                other => other,
            }
        }),
        ("features that were not offered", Want::NotTaken, |f| {
            let bits = f.offered | feature::SECURE_ERASE;
            tell(f, FrontendReq::SET_FEATURES as u32, &longs(&[bits]), &[])
        }),
        ("every feature there is", Want::NotTaken, |f| {
            tell(
                f,
                FrontendReq::SET_FEATURES as u32,
                &longs(&[u64::MAX]),
                &[],
            )
        }),
        ("no features", Want::Taken, |f| {
            tell(f, FrontendReq::SET_FEATURES as u32, &longs(&[0]), &[])
        }),
        ("every protocol feature", Want::Anything, |f| {
            let code = FrontendReq::SET_PROTOCOL_FEATURES as u32;
            let sent = f.wire.send(code, 0, &longs(&[u64::MAX]), &[]);
            after(&mut f.wire, sent)
        }),
        ("no protocol features", Want::Anything, |f| {
            let code = FrontendReq::SET_PROTOCOL_FEATURES as u32;
            let sent = f.wire.send(code, 0, &longs(&[0]), &[]);
            after(&mut f.wire, sent)
        }),
        ("the owner is reset", Want::Anything, |f| {
            tell(f, FrontendReq::RESET_OWNER as u32, &[], &[])
        }),
        ("a second owner", Want::Anything, |f| {
            tell(f, FrontendReq::SET_OWNER as u32, &[], &[])
        }),
        ("the device is reset", Want::Anything, |f| {
            tell(f, FrontendReq::RESET_DEVICE as u32, &[], &[])
        }),
    ];
    for (name, want, act) in scenes {
        cases.push(case(name, want.clone(), move |stage| {
            act(stage.negotiated())
        }));
        // Where the queue runs, what is refused before may be nonsense of another kind.
        let name = format!("{name}, while a queue runs");
        cases.push(case(name, Want::Anything, move |stage| {
            let f = stage.fresh();
            f.queue().assert_alive();
            act(f)
        }));
    }
    cases
}

/// One message very often.
fn repeats() -> Vec<Case> {
    let mut cases = Vec::new();
    for (code, body) in [
        (1, vec![]),
        (3, vec![]),
        (8, words(&[0, 64])),
        (10, words(&[0, 0])),
        (11, words(&[0, 0])),
        (15, vec![]),
        (17, vec![]),
        (18, words(&[0, 0])),
        (18, words(&[0, 1])),
        (36, vec![]),
    ] {
        let name = format!("code {code} with {body:?} two hundred times on a queue that runs");
        cases.push(case(name, Want::Anything, move |stage| {
            let f = stage.fresh();
            for _ in 0..200 {
                match tell(f, code, &body, &[]) {
                    Seen::Taken => {}
                    other => return other,
                }
            }
            Seen::Taken
        }));
    }
    for code in [12, 13, 14] {
        let name = format!("code {code} two hundred times on a queue that runs");
        cases.push(case(name, Want::Anything, move |stage| {
            let f = stage.fresh();
            for _ in 0..200 {
                let event = EventFd::new(EFD_NONBLOCK).expect("eventfd");
                match tell(f, code, &longs(&[0]), &[event.as_raw_fd()]) {
                    Seen::Taken => {}
                    other => return other,
                }
            }
            Seen::Taken
        }));
    }
    cases
}

/// The configuration space at odd offsets, of odd sizes, with bodies that do not fit them.
fn config() -> Vec<Case> {
    let places: [(u32, u32); 18] = [
        (0, 0),
        (0, 1),
        (1, 95),
        (31, 3),
        (95, 1),
        (95, 2),
        (96, 1),
        (96, 8),
        (255, 1),
        (256, 1),
        (0, 256),
        (0, 257),
        (1, 256),
        (4095, 1),
        (u32::MAX, 1),
        (0x8000_0000, 0x8000_0000),
        (0, u32::MAX),
        (u32::MAX, u32::MAX),
    ];
    let mut cases = Vec::new();
    for (offset, size) in places {
        for (code, name) in [(24, "read"), (25, "write")] {
            for body in [0, 1, 60, 96, 256, 4084] {
                // Writes that fit are what a front-end may do; byte 32 is set to what it is.
                let name = format!("config {name} of {offset:#x}+{size:#x} with {body} bytes");
                let mut bytes = words(&[offset, size, 0]);
                bytes.resize(12 + body, 1);
                cases.push(message(name, Want::Anything, code, bytes));
            }
        }
    }
    for flags in [1, 2, 3, 0x8000_0000, u32::MAX] {
        let mut bytes = words(&[0, 8, flags]);
        bytes.resize(20, 0);
        let name = format!("config read with flags {flags:#x}");
        cases.push(message(name, Want::Anything, 24, bytes.clone()));
        let name = format!("config write with flags {flags:#x}");
        cases.push(message(name, Want::Anything, 25, bytes));
    }
    cases
}

#[test]
fn messages_that_break_the_rules_end_the_session_at_most() {
    Stage::plain().play_all("messages", &cases());
}
