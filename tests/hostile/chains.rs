//! Descriptor chains and indirect tables that break the rules, on a plain disk.

use crate::common::memory::Span;
use crate::common::queue::{Next, Queue, RawDescriptor};
use crate::common::request::status;
use crate::common::ring::{DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Descriptor};
use crate::stage::{Case, Parts, Seen, Stage, Want, case, raw, send};

const N: u16 = DESC_NEXT;
const W: u16 = DESC_WRITE;
const I: u16 = DESC_INDIRECT;

/// The bounds of guest memory as `Options::default` makes it: two regions that touch.
const LOW: u64 = 0x1_0000_0000;
const SEAM: u64 = LOW + (24 << 20);
const END: u64 = LOW + (64 << 20);

type Make = fn(&Parts) -> Vec<RawDescriptor>;

/// Every table of this file.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, want, make) in shapes() {
        cases.push(direct(name.into(), want.clone(), make));
        cases.push(indirect(format!("{name}, indirect"), want, make));
    }
    cases.extend(next_fields());
    cases.extend(addresses());
    cases.extend(lengths());
    cases.extend(empty_descriptors());
    cases.extend(tables());
    cases.extend(onto_the_ring());
    cases
}

fn direct(name: String, want: Want, make: impl Fn(&Parts) -> Vec<RawDescriptor> + 'static) -> Case {
    case(name, want, move |stage| {
        let q = stage.queue();
        let parts = Parts::new(q);
        let seen = send(q, &make(&parts), parts.status);
        parts.free(&q.ram);
        seen
    })
}

/// The chain in a table of its own, to which one descriptor refers.
fn indirect(name: String, want: Want, make: Make) -> Case {
    case(name, want, move |stage| {
        let q = stage.queue();
        let parts = Parts::new(q);
        let table = table_of(q, &make(&parts));
        let seen = send(q, &[raw(table, I, 0)], parts.status);
        q.ram.free(table);
        parts.free(&q.ram);
        seen
    })
}

fn entries(chain: &[RawDescriptor]) -> Vec<u8> {
    let entry = |d: &RawDescriptor| Descriptor {
        addr: d.addr,
        len: d.len,
        flags: d.flags,
        next: match d.next {
            Next::Chain(n) => u16::try_from(n).expect("a place in the table"),
            Next::Index(n) => n,
        },
    };
    chain.iter().flat_map(|d| entry(d).to_bytes()).collect()
}

fn table_of(q: &Queue, chain: &[RawDescriptor]) -> Span {
    q.buffer(&entries(chain))
}

/// A write of the first block, in three descriptors.
fn good(p: &Parts) -> Vec<RawDescriptor> {
    vec![raw(p.write, N, 1), raw(p.data, N, 2), raw(p.status, W, 0)]
}

fn shapes() -> Vec<(&'static str, Want, Make)> {
    let empty = Want::NothingWritten;
    let no = Want::Failed;
    vec![
        ("a good write", Want::Status(status::OK), good),
        ("no status", empty.clone(), |p| {
            vec![raw(p.write, N, 1), raw(p.data, 0, 0)]
        }),
        ("header alone", empty.clone(), |p| vec![raw(p.write, 0, 0)]),
        ("short header alone", empty.clone(), |p| {
            vec![raw(Span::new(p.write.start, 7), 0, 0)]
        }),
        ("status alone", Want::Status(status::IOERR), |p| {
            vec![raw(p.status, W, 0)]
        }),
        ("data alone", empty.clone(), |p| vec![raw(p.data, 0, 0)]),
        ("space alone", Want::Anything, |p| vec![raw(p.space, W, 0)]),
        ("data after the status", empty.clone(), |p| {
            vec![
                raw(p.write, N, 1),
                raw(p.status, N | W, 2),
                raw(p.data, 0, 0),
            ]
        }),
        ("header after the status", empty.clone(), |p| {
            vec![raw(p.status, N | W, 1), raw(p.write, 0, 0)]
        }),
        ("readable between writable", empty.clone(), |p| {
            vec![
                raw(p.read, N, 1),
                raw(p.space, N | W, 2),
                raw(p.data, N, 3),
                raw(p.status, W, 0),
            ]
        }),
        ("an empty readable after writable", empty.clone(), |p| {
            vec![
                raw(p.read, N, 1),
                raw(p.space, N | W, 2),
                raw(Span::new(p.data.start, 0), N, 3),
                raw(p.status, W, 0),
            ]
        }),
        ("read with readable space", empty.clone(), |p| {
            vec![raw(p.read, N, 1), raw(p.space, 0, 0)]
        }),
        ("write with writable data", no.clone(), |p| {
            vec![
                raw(p.write, N, 1),
                raw(p.data, N | W, 2),
                raw(p.status, W, 0),
            ]
        }),
        ("header writable", no, |p| {
            vec![raw(p.read, N | W, 1), raw(p.status, W, 0)]
        }),
        ("loop of one", empty.clone(), |p| vec![raw(p.write, N, 0)]),
        ("loop of two", empty.clone(), |p| {
            vec![raw(p.write, N, 1), raw(p.data, N, 0)]
        }),
        ("loop of three, the first outside", empty.clone(), |p| {
            vec![
                raw(p.write, N, 1),
                raw(p.data, N, 2),
                raw(p.data, N, 3),
                raw(p.data, N, 1),
            ]
        }),
        ("loop of a writable one", empty.clone(), |p| {
            vec![raw(p.read, N, 1), raw(p.space, N | W, 1)]
        }),
        ("loop of empty descriptors", empty, |p| {
            let none = Span::new(p.data.start, 0);
            vec![raw(none, N, 1), raw(none, N, 0)]
        }),
        ("flags that mean nothing", Want::Anything, |p| {
            let mut chain = good(p);
            for d in &mut chain {
                d.flags |= 0xfff8;
            }
            chain
        }),
        ("next without its flag", Want::Status(status::OK), |p| {
            let mut chain = good(p);
            chain[2].next = Next::Index(0xffff);
            chain
        }),
        ("status inside of the header", Want::Anything, |p| {
            let byte = Span::new(p.write.start + 3, 1);
            vec![raw(p.write, N, 1), raw(p.data, N, 2), raw(byte, W, 0)]
        }),
        (
            "header, data and status in one place",
            Want::Anything,
            |p| vec![raw(p.read, N, 1), raw(p.read, N | W, 2), raw(p.read, W, 0)],
        ),
    ]
}

/// `next` outside of its table. The ring has 128 entries, the indirect table of two has two.
fn next_fields() -> Vec<Case> {
    let mut cases = Vec::new();
    for next in [128, 129, 500, 0x7fff, 0x8000, 0xffff] {
        let chain = move |p: &Parts| {
            let mut chain = good(p);
            chain[0].next = Next::Index(next);
            chain
        };
        let name = format!("next is {next:#x}");
        cases.push(direct(name, Want::NothingWritten, chain));
    }
    for next in [3, 4, 40, 128, 0xffff] {
        let name = format!("next is {next:#x} in an indirect table of three");
        cases.push(case(
            name,
            Want::NothingWritten,
            move |stage: &mut Stage| {
                let q = stage.queue();
                let parts = Parts::new(q);
                let mut chain = good(&parts);
                chain[1].next = Next::Index(next);
                let table = table_of(q, &chain);
                let seen = send(q, &[raw(table, I, 0)], parts.status);
                q.ram.free(table);
                parts.free(&q.ram);
                seen
            },
        ));
    }
    cases
}

/// Each part of a request at each bad place, and across the seam of two regions, which is a good place.
fn addresses() -> Vec<Case> {
    const PLACES: [(&str, u64); 9] = [
        ("at zero", 0),
        ("below memory", LOW - 8),
        ("far above memory", 0x7fff_ffff_f000),
        ("at the end of memory", END),
        ("over the end of memory", END - 8),
        ("up to 2^64", u64::MAX - 4095),
        ("over 2^64", u64::MAX - 8),
        ("at the last byte", u64::MAX),
        ("in the sign bit", 1 << 63),
    ];
    const PARTS: [&str; 4] = ["header", "data", "space", "status"];
    let mut cases = Vec::new();
    for (part, what) in PARTS.into_iter().enumerate() {
        for (place, address) in PLACES {
            // A byte fits below the end.
            if what == "status" && place == "over the end of memory" {
                continue;
            }
            let chain = move |p: &Parts| request_at(p, part, address);
            let name = format!("{what} {place}");
            cases.push(direct(name, Want::NothingWritten, chain));
        }
    }
    for (part, what) in PARTS.into_iter().enumerate().take(3) {
        // The data of a write there is zeroes; so it goes to another block and is put right again.
        if what == "data" {
            continue;
        }
        cases.push(case(
            format!("{what} across two regions"),
            Want::Status(status::OK),
            move |stage| {
                let q = stage.queue();
                let parts = Parts::new(q);
                let header = q.ram.read(parts.read);
                q.ram.write(SEAM - 8, &header);
                let seen = send(q, &request_at(&parts, part, SEAM - 8), parts.status);
                parts.free(&q.ram);
                seen
            },
        ));
    }
    cases
}

/// A request whose part number `part` lies at `address`.
fn request_at(p: &Parts, part: usize, address: u64) -> Vec<RawDescriptor> {
    let moved = |span: Span| Span::new(address, span.len);
    match part {
        0 => vec![
            raw(moved(p.read), N, 1),
            raw(p.space, N | W, 2),
            raw(p.status, W, 0),
        ],
        1 => vec![
            raw(p.write, N, 1),
            raw(moved(p.data), N, 2),
            raw(p.status, W, 0),
        ],
        2 => vec![
            raw(p.read, N, 1),
            raw(moved(p.space), N | W, 2),
            raw(p.status, W, 0),
        ],
        _ => vec![
            raw(p.read, N, 1),
            raw(p.space, N | W, 2),
            raw(moved(p.status), W, 0),
        ],
    }
}

/// Lengths that no memory has, and sums that no request has.
fn lengths() -> Vec<Case> {
    let mut cases = Vec::new();
    for len in [
        0x4000_0000_u32,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_f000,
        0xffff_ffff,
    ] {
        for (name, head, flags) in [("data", true, N), ("space", false, N | W)] {
            let chain = move |p: &Parts| {
                let header = if head { p.write } else { p.read };
                let long = Span::new(LOW, u64::from(len));
                vec![raw(header, N, 1), raw(long, flags, 2), raw(p.status, W, 0)]
            };
            let name = format!("{name} of {len:#x} bytes");
            cases.push(direct(name, Want::NothingWritten, chain));
        }
    }
    for (name, readable) in [("data", true), ("space", false)] {
        for times in [3_usize, 120] {
            let chain = move |p: &Parts| {
                let whole = Span::new(SEAM, END - SEAM);
                let mut chain = vec![raw(if readable { p.write } else { p.read }, N, 1)];
                for at in 0..times {
                    let flags = if readable { N } else { N | W };
                    chain.push(raw(whole, flags, at + 2));
                }
                chain.push(raw(p.status, W, 0));
                chain
            };
            let name = format!("{name} of {times} times the same 40 MiB");
            cases.push(direct(name, Want::Failed, chain));
        }
    }
    cases
}

/// Descriptors of no bytes count for nothing, or the chain is refused; they drive no loop.
fn empty_descriptors() -> Vec<Case> {
    let mut cases = Vec::new();
    let ok_or_no = || Want::Anything;
    for (place, address) in [("in memory", LOW), ("nowhere", 0), ("at 2^64", u64::MAX)] {
        let none = Span::new(address, 0);
        cases.push(direct(
            format!("one empty readable {place}"),
            Want::NothingWritten,
            move |_| vec![raw(none, 0, 0)],
        ));
        cases.push(direct(
            format!("one empty writable {place}"),
            Want::NothingWritten,
            move |_| vec![raw(none, W, 0)],
        ));
        cases.push(direct(
            format!("an empty one before the header {place}"),
            ok_or_no(),
            move |p| {
                vec![
                    raw(none, N, 1),
                    raw(p.write, N, 2),
                    raw(p.data, N, 3),
                    raw(p.status, W, 0),
                ]
            },
        ));
        cases.push(direct(
            format!("an empty one after the header {place}"),
            ok_or_no(),
            move |p| {
                vec![
                    raw(p.write, N, 1),
                    raw(none, N, 2),
                    raw(p.data, N, 3),
                    raw(p.status, W, 0),
                ]
            },
        ));
        cases.push(direct(
            format!("an empty one after the status {place}"),
            ok_or_no(),
            move |p| {
                vec![
                    raw(p.write, N, 1),
                    raw(p.data, N, 2),
                    raw(p.status, N | W, 3),
                    raw(none, W, 0),
                ]
            },
        ));
        cases.push(direct(
            format!("a ring full of empty ones {place}"),
            Want::NothingWritten,
            move |_| {
                let mut chain: Vec<_> = (1..128).map(|next| raw(none, N, next)).collect();
                chain.push(raw(none, 0, 0));
                chain
            },
        ));
    }
    cases
}

/// An indirect table that begins `skew` bytes into its buffer and claims `len` bytes of it.
fn claimed(name: String, want: Want, skew: u64, len: u64, flags: u16) -> Case {
    case(name, want, move |stage| {
        let q = stage.queue();
        let parts = Parts::new(q);
        let bytes = entries(&good(&parts));
        let table = q.ram.alloc(bytes.len() as u64 + skew, 16, 0);
        q.ram.write(table.start + skew, &bytes);
        let span = Span::new(table.start + skew, len);
        let seen = send(q, &[raw(span, flags, 0)], parts.status);
        q.ram.free(table);
        parts.free(&q.ram);
        seen
    })
}

fn tables() -> Vec<Case> {
    const WHOLE: u64 = 48;
    let mut cases = Vec::new();
    for len in (0..16).chain([17, 31, 33, 40, 47, 49, 0xffff_fff0]) {
        let name = format!("indirect table of {len} bytes");
        cases.push(claimed(name, Want::NothingWritten, 0, len, I));
    }
    for len in [16, 32] {
        let name = format!("indirect table cut to {len} bytes");
        cases.push(claimed(name, Want::NothingWritten, 0, len, I));
    }
    for skew in [1, 2, 4, 8, 15] {
        let name = format!("indirect table {skew} bytes off");
        cases.push(claimed(name, Want::Anything, skew, WHOLE, I));
    }
    let fine = Want::Status(status::OK);
    cases.push(claimed("indirect table".into(), fine.clone(), 0, WHOLE, I));
    // 2.7.5.3.2: the device ignores the flag.
    let name = "indirect and writable".into();
    cases.push(claimed(name, fine, 0, WHOLE, I | W));
    let name = "indirect and a next".into();
    cases.push(claimed(name, Want::NothingWritten, 0, WHOLE, I | N));
    let name = "indirect, writable and a next".into();
    cases.push(claimed(name, Want::NothingWritten, 0, WHOLE, I | N | W));
    for (place, address) in [
        ("at zero", 0),
        ("below memory", LOW - 16),
        ("over the end of memory", END - 16),
        ("at the end of memory", END),
        ("over 2^64", u64::MAX - 15),
        ("in the sign bit", 1 << 63),
    ] {
        let span = Span::new(address, WHOLE);
        cases.push(direct(
            format!("indirect table {place}"),
            Want::NothingWritten,
            move |_| vec![raw(span, I, 0)],
        ));
    }
    cases.extend(mixed_tables());
    cases
}

/// A case whose chain is made of parts and of tables that it makes itself.
fn with_queue(name: &str, want: Want, make: fn(&Queue, &Parts) -> Vec<RawDescriptor>) -> Case {
    case(name, want, move |stage: &mut Stage| {
        // What it leaves behind in guest memory goes with the session.
        let f = stage.fresh();
        let q = f.queue();
        let parts = Parts::new(q);
        let chain = make(q, &parts);
        send(q, &chain, parts.status)
    })
}

fn mixed_tables() -> Vec<Case> {
    let fine = Want::Status(status::OK);
    let empty = Want::NothingWritten;
    vec![
        // 2.7.5.3.2: zero or more ordinary descriptors, then one that is indirect.
        with_queue("a chain that ends in a table", fine.clone(), |q, p| {
            let rest = table_of(q, &[raw(p.data, N, 1), raw(p.status, W, 0)]);
            vec![raw(p.write, N, 1), raw(rest, I, 0)]
        }),
        with_queue("a table in the middle of a chain", empty.clone(), |q, p| {
            let middle = table_of(q, &[raw(p.data, 0, 0)]);
            vec![
                raw(p.write, N, 1),
                raw(middle, I | N, 2),
                raw(p.status, W, 0),
            ]
        }),
        with_queue("two tables in a row", empty.clone(), |q, p| {
            let first = table_of(q, &[raw(p.write, N, 1), raw(p.data, 0, 0)]);
            let second = table_of(q, &[raw(p.status, W, 0)]);
            vec![raw(first, I | N, 1), raw(second, I, 0)]
        }),
        with_queue("a table in a table", empty.clone(), |q, p| {
            let inner = table_of(q, &good(p));
            vec![raw(table_of(q, &[raw(inner, I, 0)]), I, 0)]
        }),
        with_queue(
            "a table in a table's second entry",
            empty.clone(),
            |q, p| {
                let inner = table_of(q, &[raw(p.data, N, 1), raw(p.status, W, 0)]);
                vec![raw(
                    table_of(q, &[raw(p.write, N, 1), raw(inner, I, 0)]),
                    I,
                    0,
                )]
            },
        ),
        with_queue("a table that names itself", empty.clone(), |q, _| {
            let table = q.ram.alloc(16, 16, 0);
            q.ram.write(table.start, &entries(&[raw(table, I, 0)]));
            vec![raw(table, I, 0)]
        }),
        with_queue("the ring's own table as indirect", empty.clone(), |q, _| {
            let [table, _, _] = q.ring.addresses();
            vec![raw(Span::new(table, 128 * 16), I, 0)]
        }),
        with_queue("a table of as many as the queue", fine, |q, p| {
            let none = Span::new(p.data.start, 0);
            let mut chain = vec![raw(p.write, N, 1), raw(p.data, N, 2)];
            chain.extend((3..128).map(|next| raw(none, N, next)));
            chain.push(raw(p.status, W, 0));
            vec![raw(table_of(q, &chain), I, 0)]
        }),
        with_queue(
            "a table of one more than the queue",
            empty.clone(),
            |q, p| {
                let none = Span::new(p.data.start, 0);
                let mut chain = vec![raw(p.write, N, 1), raw(p.data, N, 2)];
                chain.extend((3..129).map(|next| raw(none, N, next)));
                chain.push(raw(p.status, W, 0));
                vec![raw(table_of(q, &chain), I, 0)]
            },
        ),
        with_queue("a table of 65536 entries", empty.clone(), |q, p| {
            let mut chain = Vec::new();
            for next in 1..=65536 {
                chain.push(raw(p.data, N, next % 65536));
            }
            vec![raw(table_of(q, &chain), I, 0)]
        }),
        with_queue("a table of 65535 entries in a loop", empty, |q, p| {
            let mut chain = Vec::new();
            for next in 1..=65535 {
                chain.push(raw(p.data, N, next % 65535));
            }
            vec![raw(table_of(q, &chain), I, 0)]
        }),
        with_queue(
            "a table across two regions",
            Want::Status(status::OK),
            |q, p| {
                let table = Span::new(SEAM - 24, WHOLE_TABLE);
                q.ram.write(table.start, &entries(&good(p)));
                vec![raw(table, I, 0)]
            },
        ),
    ]
}

/// Bytes of a table of three.
const WHOLE_TABLE: u64 = 48;

/// Reads whose data or status goes onto the ring itself: the guest breaks its own queue, and nothing else.
fn onto_the_ring() -> Vec<Case> {
    let mut cases = Vec::new();
    for (part, name) in ["descriptors", "available ring", "used ring"]
        .into_iter()
        .enumerate()
    {
        for (offset, what) in [(0, "start"), (2, "index")] {
            cases.push(case(
                format!("a read onto the {what} of the {name}"),
                Want::Anything,
                move |stage| overwrite(stage, part, offset, 4096),
            ));
            cases.push(case(
                format!("a status onto the {what} of the {name}"),
                Want::Anything,
                move |stage| overwrite(stage, part, offset, 0),
            ));
        }
    }
    cases
}

fn overwrite(stage: &mut Stage, part: usize, offset: u64, data: u64) -> Seen {
    let f = stage.fresh();
    let q = f.queue();
    let parts = Parts::new(q);
    let target = q.ring.addresses()[part] + offset;
    let chain = if data > 0 {
        let space = Span::new(target, data);
        vec![
            raw(parts.read, N, 1),
            raw(space, N | W, 2),
            raw(parts.status, W, 0),
        ]
    } else {
        let byte = Span::new(target, 1);
        vec![
            raw(parts.read, N, 1),
            raw(parts.space, N | W, 2),
            raw(byte, W, 0),
        ]
    };
    let _ticket = q.submit_raw(&chain).expect("room");
    let seen = crate::stage::kick_and_see(f, Some(parts.status));
    stage.leave();
    seen
}

#[test]
fn chains_that_break_the_rules_are_refused_and_harmless() {
    Stage::plain().play_all("chains", &cases());
}
