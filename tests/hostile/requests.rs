//! Requests that break the rules in well-formed chains, on a zoned disk and on a plain one.

use crate::common::disk::{ZONE, ZONES};
use crate::common::memory::Span;
use crate::common::request::{Cut, Layout, Request, kind, status};
use crate::common::ring::{DESC_NEXT, DESC_WRITE};
use crate::stage::{Case, Parts, Seen, Stage, Want, ask, case, raw, send};

const N: u16 = DESC_NEXT;
const W: u16 = DESC_WRITE;

/// Sectors of the zoned disk and of the plain one.
const ZONED_SECTORS: u64 = ZONES as u64 * ZONE;
const PLAIN_SECTORS: u64 = 8192;

/// An empty zone, which cases may fill and then empty.
const SCRATCH: u64 = 5 * ZONE;

/// Every table of this file: for each disk the same questions, with answers of its own.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = on(true);
    cases.extend(on(false));
    cases
}

fn on(zoned: bool) -> Vec<Case> {
    let mut cases = headers(zoned);
    cases.extend(framings(zoned));
    cases.extend(tails(zoned));
    cases.extend(lengths(zoned));
    cases.extend(sectors(zoned));
    cases.extend(reports(zoned));
    cases.extend(serials(zoned));
    cases.extend(types(zoned));
    cases.extend(ranges(zoned));
    cases
}

fn disk(zoned: bool) -> &'static str {
    if zoned { "zoned" } else { "plain" }
}

/// A request in its natural framing.
fn plain_case(name: String, want: Want, request: Request) -> Case {
    case(name, want, move |stage| {
        ask(stage, &request, &Layout::default())
    })
}

/// Headers cut short at every byte, with and without room for data behind.
fn headers(zoned: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, request, space) in [
        ("read", Request::new(kind::IN, 0), 4096),
        ("write", Request::new(kind::OUT, 0), 0),
        ("flush", Request::new(kind::FLUSH, 0), 0),
    ] {
        for len in 0..16 {
            let mut short = request.clone().with_space(space);
            short.readable.truncate(len);
            let name = format!("{}: {name} header of {len} bytes", disk(zoned));
            cases.push(plain_case(name, Want::Status(status::IOERR), short));
        }
    }
    cases
}

/// Headers and tails split at every byte: framing is free, so all of these work.
fn framings(zoned: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    let read = Request::read(0, 4096);
    let fine = || Want::Status(status::OK);
    for at in 1..16 {
        let layout = Layout {
            readable: Cut::At(vec![at]),
            ..Layout::default()
        };
        let (request, name) = (
            read.clone(),
            format!("{}: header split at {at}", disk(zoned)),
        );
        cases.push(case(name, fine(), move |stage| {
            ask(stage, &request, &layout)
        }));
    }
    for (name, layout) in [
        (
            "header byte by byte",
            Layout {
                readable: Cut::Every(1),
                ..Layout::default()
            },
        ),
        (
            "data and status in one",
            Layout {
                writable: Cut::Whole,
                ..Layout::default()
            },
        ),
        (
            "status joined to the last byte of data",
            Layout {
                writable: Cut::At(vec![4095]),
                ..Layout::default()
            },
        ),
        (
            "a hundred pieces, odd addresses",
            Layout {
                writable: Cut::Every(41),
                skew: 3,
                ..Layout::default()
            },
        ),
    ] {
        let (request, name) = (read.clone(), format!("{}: {name}", disk(zoned)));
        cases.push(case(name, fine(), move |stage| {
            ask(stage, &request, &layout)
        }));
    }
    cases
}

/// An append to the scratch zone; where it succeeds the zone is emptied again.
fn append_and_undo(stage: &mut Stage, request: &Request, layout: &Layout) -> Seen {
    let done = stage.queue().try_call(request, layout);
    let seen = crate::stage::seen(&done);
    if let Ok(done) = done
        && matches!(seen, Seen::Answered(Some(status::OK), _))
    {
        if done.append_sector() != SCRATCH {
            return Seen::Wrong(format!("appended at {}", done.append_sector()));
        }
        let (q, data) = (stage.queue(), &request.readable[16..]);
        if q.read_ok(SCRATCH, data.len()) != data {
            return Seen::Wrong("something else was appended".into());
        }
        if q.simple(kind::ZONE_RESET, SCRATCH) != status::OK {
            return Seen::Wrong("the zone cannot be emptied".into());
        }
    }
    seen
}

/// Append tails of 1 to 64 bytes, and of 9 and 16 split at every byte.
fn tails(zoned: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    let want = |tail: usize| match (zoned, tail >= 9) {
        (false, _) => Want::Status(status::UNSUPP),
        (true, false) => Want::Failed,
        (true, true) => Want::Status(status::OK),
    };
    let append = |tail| Request::append(SCRATCH, &[0x77; 4096], tail);
    for tail in 1..=64 {
        let request = append(tail);
        let name = format!("{}: append tail of {tail}", disk(zoned));
        cases.push(case(name, want(tail), move |stage| {
            append_and_undo(stage, &request, &Layout::default())
        }));
    }
    for tail in [9, 16] {
        for at in 1..tail {
            let request = append(tail);
            let layout = Layout {
                writable: Cut::At(vec![at]),
                ..Layout::default()
            };
            let name = format!("{}: append tail of {tail} split at {at}", disk(zoned));
            cases.push(case(name, want(tail), move |stage| {
                append_and_undo(stage, &request, &layout)
            }));
        }
    }
    cases
}

/// Lengths that are no whole blocks, none at all, or nearly 2^32.
fn lengths(zoned: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    for len in [0, 1, 511, 512, 513, 4095, 4097, 8191] {
        let data = vec![0x66; len];
        for (name, request) in [
            ("read", Request::read(0, len)),
            ("write", Request::write(0, &data)),
            (
                "write at a write pointer",
                Request::write(2 * ZONE + 16, &data),
            ),
        ] {
            let name = format!("{}: {name} of {len} bytes", disk(zoned));
            cases.push(plain_case(name, Want::Failed, request));
        }
        let want = if zoned {
            Want::Failed
        } else {
            Want::Status(status::UNSUPP)
        };
        let name = format!("{}: append of {len} bytes", disk(zoned));
        cases.push(plain_case(name, want, Request::append(SCRATCH, &data, 16)));
    }
    for (name, code) in [
        ("read", kind::IN),
        ("write", kind::OUT),
        ("append", kind::ZONE_APPEND),
        ("report", kind::ZONE_REPORT),
        ("flush", kind::FLUSH),
    ] {
        let name = format!("{}: {name} of 2^32 - 512 bytes", disk(zoned));
        let want = match (zoned, code) {
            (_, kind::FLUSH) | (true, kind::ZONE_REPORT) => Want::Anything,
            (false, kind::ZONE_REPORT | kind::ZONE_APPEND) => Want::Status(status::UNSUPP),
            _ => Want::Failed,
        };
        cases.push(case(name, want, move |stage| huge(stage, code)));
    }
    cases
}

/// A request of 2^32 - 512 bytes of data: the same memory many times over.
fn huge(stage: &mut Stage, code: u32) -> Seen {
    const PIECE: u64 = 36 << 20;
    const ALL: u64 = (1 << 32) - 512;
    let f = stage.fresh();
    let place = f.ram.regions()[1].span.start;
    let q = f.queue();
    let parts = Parts::new(q);
    let readable = code == kind::OUT || code == kind::ZONE_APPEND;
    let header = q.buffer(&Request::new(code, 0).readable);
    let mut chain = vec![raw(header, N, 1)];
    let mut left = ALL;
    while left > 0 {
        let len = left.min(PIECE);
        let next = chain.len() + 1;
        let flags = if readable { N } else { N | W };
        chain.push(raw(Span::new(place, len), flags, next));
        left -= len;
    }
    if code == kind::ZONE_APPEND {
        let next = chain.len() + 1;
        chain.push(raw(Span::new(parts.space.start, 8), N | W, next));
    }
    chain.push(raw(parts.status, W, 0));
    let seen = send(q, &chain, parts.status);
    stage.leave();
    seen
}

/// First sectors that are not on the disk, or no block's.
fn sectors(zoned: bool) -> Vec<Case> {
    let end = if zoned { ZONED_SECTORS } else { PLAIN_SECTORS };
    let places = [
        1,
        7,
        end - 7,
        end - 1,
        end,
        end + 8,
        1 << 32,
        (1 << 55) - 8,
        (1 << 55) - 1,
        1 << 55,
        (1 << 55) + 8,
        1 << 63,
        u64::MAX - 15,
        u64::MAX - 7,
        u64::MAX,
    ];
    let mut cases = Vec::new();
    for sector in places {
        for (name, request) in [
            ("read", Request::read(sector, 4096)),
            ("long read", Request::read(sector, 65536)),
            ("write", Request::write(sector, &[0x66; 4096])),
        ] {
            let name = format!("{}: {name} at {sector:#x}", disk(zoned));
            cases.push(plain_case(name, Want::Failed, request));
        }
        for (name, request) in [
            ("append", Request::append(sector, &[0x66; 4096], 9)),
            ("open", Request::new(kind::ZONE_OPEN, sector)),
            ("close", Request::new(kind::ZONE_CLOSE, sector)),
            ("finish", Request::new(kind::ZONE_FINISH, sector)),
            ("reset", Request::new(kind::ZONE_RESET, sector)),
        ] {
            let want = if zoned {
                Want::Status(status::INVALID_CMD)
            } else {
                Want::Status(status::UNSUPP)
            };
            let name = format!("{}: {name} at {sector:#x}", disk(zoned));
            cases.push(plain_case(name, want, request));
        }
        let want = match (zoned, sector < end) {
            (false, _) => Want::Status(status::UNSUPP),
            (true, true) => Want::Status(status::OK),
            (true, false) => Want::Failed,
        };
        let name = format!("{}: report at {sector:#x}", disk(zoned));
        cases.push(plain_case(name, want, Request::report(sector, 128)));
    }
    cases
}

/// Reports into less than their header, and into odd lengths behind it.
fn reports(zoned: bool) -> Vec<Case> {
    (0..=63)
        .chain([64, 65, 127, 128, 129, 1000, 65536])
        .map(|len| {
            let want = match (zoned, len) {
                (false, _) => Want::Status(status::UNSUPP),
                (true, 64..) => Want::Status(status::OK),
                (true, _) => Want::Failed,
            };
            let name = format!("{}: report into {len} bytes", disk(zoned));
            plain_case(name, want, Request::report(0, len))
        })
        .collect()
}

/// Serial numbers into more or less than twenty bytes: never more than twenty and a status are written.
fn serials(zoned: bool) -> Vec<Case> {
    [0, 1, 7, 19, 20, 21, 40, 511, 512, 4096]
        .into_iter()
        .map(|len| {
            let request = Request::new(kind::GET_ID, 0).with_space(len);
            let name = format!("{}: serial number into {len} bytes", disk(zoned));
            case(name, Want::Anything, move |stage| {
                let done = stage.queue().try_call(&request, &Layout::default());
                match &done {
                    Ok(done) if done.used_len > 21 => {
                        Seen::Wrong(format!("{} bytes of a serial number", done.used_len))
                    }
                    _ => crate::stage::seen(&done),
                }
            })
        })
        .collect()
}

/// Types that the disk does not know: all small ones, and samples up to 2^32.
fn types(zoned: bool) -> Vec<Case> {
    let known: &[u32] = if zoned {
        &[0, 1, 4, 8, 15, 16, 18, 20, 22, 24, 26]
    } else {
        &[0, 1, 4, 8, 11, 13]
    };
    let powers = (6..32).map(|bit| 1 << bit);
    let below = (6..=32).map(|bit| u32::try_from((1_u64 << bit) - 1).expect("32 bits"));
    // The old barrier flag on known types.
    let barriers = [0, 1, 4, 15].map(|code| code | 0x8000_0000);
    (0..48)
        .chain(powers)
        .chain(below)
        .chain(barriers)
        .filter(|code| !known.contains(code))
        .collect::<std::collections::BTreeSet<u32>>()
        .into_iter()
        .map(|code| {
            let name = format!("{}: type {code:#x}", disk(zoned));
            let request = Request::new(code, 0).with_data(&[0x66; 4096]).with_tail(16);
            plain_case(name, Want::Status(status::UNSUPP), request)
        })
        .collect()
}

/// DISCARD and WRITE_ZEROES with bad segments; a zoned disk knows neither.
fn ranges(zoned: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, code) in [("discard", kind::DISCARD), ("zeroes", kind::WRITE_ZEROES)] {
        for len in [0, 1, 15, 17, 31, 32, 4096] {
            let want = if zoned {
                Want::Status(status::UNSUPP)
            } else {
                Want::Failed
            };
            let request = Request::new(code, 0).with_data(&vec![0; len]);
            let name = format!("{}: {name} with {len} bytes of segments", disk(zoned));
            cases.push(plain_case(name, want, request));
        }
        for (what, range) in [
            ("of nothing", (0, 0, 0)),
            ("of one sector", (0, 1, 0)),
            ("at an odd sector", (3, 8, 0)),
            ("over the end", (PLAIN_SECTORS - 8, 16, 0)),
            ("at the end", (PLAIN_SECTORS, 8, 0)),
            ("of 2^32 - 1 sectors", (0, u32::MAX, 0)),
            ("that wraps", (u64::MAX - 7, 16, 0)),
            ("at 2^55", (1 << 55, 8, 0)),
            ("at 2^63", (1 << 63, 8, 0)),
        ] {
            let want = if zoned {
                Want::Status(status::UNSUPP)
            } else {
                Want::Failed
            };
            let name = format!("{}: {name} {what}", disk(zoned));
            cases.push(plain_case(name, want, Request::ranges(code, &[range])));
        }
        for bit in (0..32).filter(|bit| !(code == kind::WRITE_ZEROES && *bit == 0)) {
            let name = format!("{}: {name} with flag {bit}", disk(zoned));
            let request = Request::ranges(code, &[(0, 8, 1 << bit)]);
            cases.push(plain_case(name, Want::Status(status::UNSUPP), request));
        }
    }
    cases
}

#[test]
fn requests_that_break_the_rules_get_their_status_on_a_zoned_disk() {
    Stage::zoned().play_all("zoned", &on(true));
}

#[test]
fn requests_that_break_the_rules_get_their_status_on_a_plain_disk() {
    Stage::plain().play_all("plain", &on(false));
}
