//! Memory tables that break the rules, and regions that go away or shrink under requests, on a plain disk.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use memfd::{HugetlbSize, MemfdOptions};
use vhost::vhost_user::message::FrontendReq;

use crate::common::frontend::{Frontend, Options};
use crate::common::memory::{Region, Span};
use crate::common::queue::{QueueError, RawDescriptor};
use crate::common::request::{POISON, status};
use crate::common::ring::{DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Descriptor};
use crate::common::wire::{WireError, longs, words};
use crate::stage::{Case, Parts, SOON, Seen, Stage, Want, case, raw, tell};

const N: u16 = DESC_NEXT;
const W: u16 = DESC_WRITE;

/// Every table of this file.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = tables();
    cases.extend(files());
    cases.extend(slots());
    cases.extend(in_flight());
    cases.extend(shrinking());
    cases
}

/// Address, length, user address, offset: as the message has them.
type Row = [u64; 4];

fn row(r: &Region) -> Row {
    [r.span.start, r.span.len, r.user_addr, r.file_offset]
}

fn set_table(f: &mut Frontend, count: u32, rows: &[Row], fds: &[i32]) -> Seen {
    let mut body = words(&[count, 0]);
    for row in rows {
        body.extend_from_slice(&longs(row));
    }
    tell(f, FrontendReq::SET_MEM_TABLE as u32, &body, fds)
}

fn add(f: &mut Frontend, row: Row, fds: &[i32]) -> Seen {
    let mut body = longs(&[0]);
    body.extend_from_slice(&longs(&row));
    tell(f, FrontendReq::ADD_MEM_REG as u32, &body, fds)
}

fn remove(f: &mut Frontend, row: Row) -> Seen {
    let mut body = longs(&[0]);
    body.extend_from_slice(&longs(&row));
    tell(f, FrontendReq::REM_MEM_REG as u32, &body, &[])
}

/// A table in place of the first one.
fn table(
    name: &str,
    want: Want,
    act: impl Fn(&mut Frontend, [Row; 2], [i32; 2]) -> Seen + 'static,
) -> Case {
    case(name, want, move |stage| {
        let f = stage.negotiated();
        let regions = f.ram.regions();
        let rows = [row(&regions[0]), row(&regions[1])];
        act(f, rows, [regions[0].fd, regions[1].fd])
    })
}

fn tables() -> Vec<Case> {
    let no = Want::NotTaken;
    let mut cases = vec![
        table("a good table", Want::Taken, |f, rows, fds| {
            set_table(f, 2, &rows, &fds)
        }),
        table("a table of nothing", Want::Anything, |f, _, _| {
            set_table(f, 0, &[], &[])
        }),
        table("a region without its file", no.clone(), |f, rows, _| {
            set_table(f, 1, &rows[..1], &[])
        }),
        table("two regions and one file", no.clone(), |f, rows, fds| {
            set_table(f, 2, &rows, &fds[..1])
        }),
        table("one region and two files", no.clone(), |f, rows, fds| {
            set_table(f, 1, &rows[..1], &fds)
        }),
        table("two claimed, one there", no.clone(), |f, rows, fds| {
            set_table(f, 2, &rows[..1], &fds)
        }),
        table("one claimed, two there", no.clone(), |f, rows, fds| {
            set_table(f, 1, &rows, &fds[..1])
        }),
        table("one region twice", no.clone(), |f, rows, fds| {
            set_table(f, 2, &[rows[0], rows[0]], &[fds[0], fds[0]])
        }),
        table(
            "regions that overlap by a page",
            no.clone(),
            |f, rows, fds| {
                let mut second = rows[1];
                second[0] -= 4096;
                set_table(f, 2, &[rows[0], second], &fds)
            },
        ),
        table("regions out of order", Want::Taken, |f, rows, fds| {
            set_table(f, 2, &[rows[1], rows[0]], &[fds[1], fds[0]])
        }),
    ];
    for count in [3, 9, 32, 33, 127, 128, 0x1_0000, u32::MAX] {
        cases.push(table(
            &format!("{count} regions claimed, two there"),
            no.clone(),
            move |f, rows, fds| set_table(f, count, &rows, &fds),
        ));
    }
    let fields: [(&str, usize, u64); 12] = [
        ("of no length", 1, 0),
        ("of one byte more than the file", 1, (24 << 20) + 1),
        ("of a page more than the file", 1, (24 << 20) + 4096),
        ("of 2^40 bytes", 1, 1 << 40),
        ("of 2^63 bytes", 1, 1 << 63),
        ("of 2^64 - 1 bytes", 1, u64::MAX),
        ("at the end of the address space", 0, u64::MAX - 4095),
        ("whose user address wraps", 2, u64::MAX - 4095),
        ("at an offset that is no page", 3, 0x3001),
        ("at an offset beyond the file", 3, 1 << 40),
        ("at an offset of 2^63", 3, 1 << 63),
        ("at an offset that wraps", 3, u64::MAX - 4095),
    ];
    for (name, field, value) in fields {
        cases.push(table(
            &format!("a region {name}"),
            no.clone(),
            move |f, rows, fds| {
                let mut first = rows[0];
                first[field] = value;
                set_table(f, 1, &[first], &fds[..1])
            },
        ));
        // Nothing is ever reached by a user address but the rings.
        let want = if field == 2 {
            Want::Anything
        } else {
            no.clone()
        };
        cases.push(table(
            &format!("a slot {name}"),
            want,
            move |f, rows, fds| {
                let mut first = rows[0];
                first[field] = value;
                add(f, first, &fds[..1])
            },
        ));
    }
    cases
}

/// Opens something; the first of it is used.
type Open = fn() -> Vec<File>;

/// Bytes of a huge page of every machine that runs x86-64.
const HUGE_PAGE: u64 = 2 << 20;

/// A file of two huge pages. None has to be free: nothing of it is used.
fn huge_file() -> Vec<File> {
    let options = MemfdOptions::new().hugetlb(Some(HugetlbSize::Huge2MB));
    let made = options.create("huge").expect("hugetlbfs in the kernel");
    made.as_file().set_len(2 * HUGE_PAGE).expect("its size");
    vec![made.into_file()]
}

/// Descriptors that are no memory.
fn files() -> Vec<Case> {
    let kinds: [(&str, Open); 5] = [
        ("/dev/null", || vec![File::open("/dev/null").expect("null")]),
        ("a directory", || vec![File::open("/").expect("root")]),
        ("a socket", || {
            let (a, b) = UnixStream::pair().expect("sockets");
            vec![
                File::from(std::os::fd::OwnedFd::from(a)),
                File::from(std::os::fd::OwnedFd::from(b)),
            ]
        }),
        ("a pipe", || {
            let (a, b) = std::io::pipe().expect("pipe");
            vec![
                File::from(std::os::fd::OwnedFd::from(a)),
                File::from(std::os::fd::OwnedFd::from(b)),
            ]
        }),
        ("an empty file", || {
            vec![tempfile::tempfile().expect("temporary file")]
        }),
    ];
    let mut cases = Vec::new();
    for (name, make) in kinds {
        cases.push(table(
            &format!("memory in {name}"),
            Want::NotTaken,
            move |f, rows, _| {
                let files = make();
                set_table(f, 1, &rows[..1], &[files[0].as_raw_fd()])
            },
        ));
        cases.push(table(
            &format!("a slot in {name}"),
            Want::NotTaken,
            move |f, rows, _| {
                let files = make();
                add(f, rows[0], &[files[0].as_raw_fd()])
            },
        ));
    }
    cases
}

fn slots() -> Vec<Case> {
    vec![
        table(
            "more slots than there are",
            Want::NotTaken,
            |f, rows, fds| {
                let most = f.max_mem_slots().expect("a number");
                for at in 0..most + 4 {
                    let mut slot = rows[1];
                    slot[0] = (1 << 40) + at * 0x1_0000;
                    slot[1] = 4096;
                    slot[2] = (1 << 40) + at * 0x1_0000;
                    let told = add(f, slot, &fds[1..]);
                    if told != Seen::Taken {
                        return if at < most {
                            Seen::Wrong(format!("slot {at} of {most}: {told}"))
                        } else {
                            told
                        };
                    }
                }
                Seen::Taken
            },
        ),
        table("a slot without a file", Want::NotTaken, |f, rows, _| {
            add(f, rows[0], &[])
        }),
        table("a slot with two files", Want::NotTaken, |f, rows, fds| {
            add(f, rows[0], &fds)
        }),
        table("one slot twice", Want::NotTaken, |f, rows, fds| {
            match add(f, rows[0], &fds[..1]) {
                Seen::Taken => add(f, rows[0], &fds[..1]),
                other => Seen::Wrong(other.to_string()),
            }
        }),
        table(
            "a slot inside of another",
            Want::NotTaken,
            |f, rows, fds| {
                let mut inner = rows[0];
                inner[0] += 4096;
                inner[1] = 4096;
                match add(f, rows[0], &fds[..1]) {
                    Seen::Taken => add(f, inner, &fds[..1]),
                    other => Seen::Wrong(other.to_string()),
                }
            },
        ),
        table(
            "a slot taken out that is not there",
            Want::NotTaken,
            |f, rows, _| remove(f, rows[0]),
        ),
        table("a slot taken out twice", Want::NotTaken, |f, rows, fds| {
            let told = [add(f, rows[0], &fds[..1]), remove(f, rows[0])];
            if told != [Seen::Taken, Seen::Taken] {
                return Seen::Wrong(format!("{told:?}"));
            }
            remove(f, rows[0])
        }),
        table(
            "a part of a slot taken out",
            Want::NotTaken,
            |f, rows, fds| {
                let mut part = rows[0];
                part[1] = 4096;
                match add(f, rows[0], &fds[..1]) {
                    Seen::Taken => remove(f, part),
                    other => Seen::Wrong(other.to_string()),
                }
            },
        ),
        table(
            "a slot taken out with a file",
            Want::Anything,
            |f, rows, fds| {
                add(f, rows[0], &fds[..1]);
                let mut body = longs(&[0]);
                body.extend_from_slice(&longs(&rows[0]));
                tell(f, FrontendReq::REM_MEM_REG as u32, &body, &fds[..1])
            },
        ),
    ]
}

/// Sixty requests whose data lies in the second region, under way when the message comes.
fn under_way(f: &mut Frontend, act: impl Fn(&mut Frontend) -> Seen) -> Seen {
    let second = f.ram.regions()[1].span.start;
    let q = f.queue();
    let parts = Parts::new(q);
    let data = Span::new(second, 4096);
    q.ram.write(second, &[0x11; 4096]);
    let space = Span::new(second + 4096, 4096);
    for round in 0..20 {
        let chain = if round % 2 == 0 {
            [
                raw(parts.read, N, 1),
                raw(space, N | W, 2),
                raw(parts.status, W, 0),
            ]
        } else {
            [
                raw(parts.write, N, 1),
                raw(data, N, 2),
                raw(parts.status, W, 0),
            ]
        };
        let _ticket = q.submit_raw(&chain).expect("room");
    }
    q.force_kick();
    let told = act(f);
    match f.stop_queue(0) {
        Ok(_) => told,
        Err(WireError::Closed) => Seen::Closed,
        Err(err) => Seen::Wrong(format!("the queue cannot be stopped: {err}")),
    }
}

fn in_flight() -> Vec<Case> {
    let slots = || Options {
        memory_slots: true,
        ..Options::default()
    };
    let mut cases = Vec::new();
    for (name, at) in [("data", 1_usize), ("rings", 0)] {
        cases.push(case(
            format!("the region of the {name} is taken out under requests"),
            Want::Anything,
            move |stage| {
                let f = stage.fresh_with(slots());
                let region = row(&f.ram.regions()[at]);
                under_way(f, |f| remove(f, region))
            },
        ));
        cases.push(case(
            format!("a new table without the region of the {name} under requests"),
            Want::Anything,
            move |stage| {
                let f = stage.fresh();
                let rest = f.ram.regions()[1 - at];
                under_way(f, |f| set_table(f, 1, &[row(&rest)], &[rest.fd]))
            },
        ));
        cases.push(case(
            format!("the region of the {name} elsewhere in the address space, under requests"),
            Want::Anything,
            move |stage| {
                let f = stage.fresh();
                let regions = f.ram.regions();
                let mut rows = [row(&regions[0]), row(&regions[1])];
                rows[at][0] += 1 << 40;
                under_way(f, |f| {
                    set_table(f, 2, &rows, &[regions[0].fd, regions[1].fd])
                })
            },
        ));
    }
    cases.push(case(
        "all regions are taken out under requests",
        Want::Anything,
        move |stage| {
            let f = stage.fresh_with(slots());
            let regions = f.ram.regions();
            under_way(f, |f| {
                remove(f, row(&regions[1]));
                remove(f, row(&regions[0]))
            })
        },
    ));
    cases.push(case(
        "one table after another under requests",
        Want::Anything,
        |stage| {
            let f = stage.fresh();
            under_way(f, |f| {
                for _ in 0..50 {
                    if f.set_memory().is_err() {
                        return Seen::Closed;
                    }
                }
                Seen::Taken
            })
        },
    ));
    cases
}

/// What lies in the second region when its file becomes empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    Header,
    Data,
    Space,
    Status,
    Table,
}

fn shrinking() -> Vec<Case> {
    let mut cases = Vec::new();
    for lost in [
        Lost::Header,
        Lost::Data,
        Lost::Space,
        Lost::Status,
        Lost::Table,
    ] {
        let name = format!("the file of the memory shrinks under {lost:?}");
        cases.push(case(name, Want::Anything, move |stage| {
            shrink_under(stage, lost)
        }));
    }
    cases.push(case(
        "the file of the memory shrinks under the rings",
        Want::Anything,
        |stage| {
            let f = stage.fresh();
            f.queue().assert_alive();
            f.ram.shrink(0);
            // From here on this process must not touch the first region either.
            f.queue().force_kick();
            let told = f.stop_queue(0).map_or(Seen::Closed, |_| Seen::Silent);
            stage.leave();
            told
        },
    ));
    cases.push(case(
        "the file shrinks to half under the data",
        Want::Anything,
        |stage| {
            let f = stage.fresh();
            let region = f.ram.regions()[1].span;
            let q = f.queue();
            let parts = Parts::new(q);
            // The second half of the data is beyond the end of the file.
            let space = Span::new(region.start + region.len / 2 - 2048, 4096);
            let chain = [
                raw(parts.read, N, 1),
                raw(space, N | W, 2),
                raw(parts.status, W, 0),
            ];
            q.ram.shrink_to(1, region.len / 2);
            crate::stage::send(q, &chain, parts.status)
        },
    ));
    cases.push(case(
        "the file of the memory shrinks under the data of two writes of a pass",
        Want::Failed,
        |stage| {
            let (f, chains) = lost_writes(stage);
            let q = f.queue();
            let status = chains[1][2].addr;
            let tickets = chains.map(|chain| q.submit_raw(&chain).expect("room in the ring"));
            q.kick();
            // The first one may stop the queue, and the second one be answered before.
            match tickets.map(|ticket| q.wait(ticket, SOON)) {
                [_, Ok(done)] => {
                    let code = q.ram.read(Span::new(status, 1))[0];
                    Seen::Answered((code != POISON).then_some(code), done.used_len)
                }
                [_, Err(QueueError::TimedOut | QueueError::Stopped)] => Seen::Answered(None, 0),
                other => Seen::Wrong(format!("{other:?}")),
            }
        },
    ));
    cases.push(case(
        "a ring that starts again in memory whose file shrank",
        Want::NotTaken,
        |stage| {
            let (f, [first, second]) = lost_writes(stage);
            let q = f.queue();
            let seen = crate::stage::send(q, &first, Span::new(first[2].addr, 1));
            if !Want::Failed.allows(&seen) && !Want::QueueStops.allows(&seen) {
                return seen;
            }
            if let Err(e) = f.stop_queue(0) {
                return Seen::Wrong(format!("the queue cannot be stopped: {e}"));
            }
            match f.start_queue(0) {
                Ok(()) => crate::stage::send(f.queue(), &second, Span::new(second[2].addr, 1)),
                Err(WireError::Closed) => Seen::Closed,
                Err(WireError::Refused(code)) => Seen::Nack(code),
                Err(e) => Seen::Wrong(e.to_string()),
            }
        },
    ));
    cases
}

/// Two writes of the first block, whose data was in the second region before its file became empty.
fn lost_writes(stage: &mut Stage) -> (&mut Frontend, [[RawDescriptor; 3]; 2]) {
    let f = stage.fresh();
    let second = f.ram.regions()[1].span.start;
    let q = f.queue();
    let chains = [0, 1].map(|_| {
        let parts = Parts::new(q);
        [
            raw(parts.write, N, 1),
            raw(Span::new(second, 4096), N, 2),
            raw(parts.status, W, 0),
        ]
    });
    q.ram.write(second, &[0x11; 4096]);
    q.ram.shrink(1);
    (f, chains)
}

fn shrink_under(stage: &mut Stage, lost: Lost) -> Seen {
    let f = stage.fresh();
    let second = f.ram.regions()[1].span.start;
    let q = f.queue();
    let mut parts = Parts::new(q);
    let header = q.ram.read(parts.read);
    q.ram.write(second, &header);
    let mut chain = vec![
        raw(parts.read, N, 1),
        raw(parts.space, N | W, 2),
        raw(parts.status, W, 0),
    ];
    match lost {
        Lost::Header => chain[0].addr = second,
        Lost::Space => chain[1].addr = second,
        Lost::Status => chain[2].addr = second,
        Lost::Data => {
            chain = vec![
                raw(parts.write, N, 1),
                raw(parts.data, N, 2),
                raw(parts.status, W, 0),
            ];
            chain[1].addr = second;
        }
        Lost::Table => {
            let entry = |span: Span, flags, next| Descriptor {
                addr: span.start,
                len: u32::try_from(span.len).expect("small"),
                flags,
                next,
            };
            let table = [
                entry(parts.read, N, 1),
                entry(parts.space, N | W, 2),
                entry(parts.status, W, 0),
            ];
            let bytes: Vec<u8> = table.iter().flat_map(|d| d.to_bytes()).collect();
            q.ram.write(second, &bytes);
            chain = vec![raw(Span::new(second, 48), DESC_INDIRECT, 0)];
        }
    }
    q.ram.shrink(1);
    if lost == Lost::Status {
        // Where nothing can be read any more; the poison goes somewhere else.
        parts.status = parts.space;
    }
    crate::stage::send(q, &chain, parts.status)
}

#[test]
fn memory_that_breaks_the_rules_is_refused_or_harmless() {
    Stage::plain().play_all("memory", &cases());
}

#[test]
fn memory_that_shrank_is_an_error_and_not_the_end() {
    let mut stage = Stage::plain();
    let f = stage.fresh();
    let region = f.ram.regions()[1];
    let q = f.queue();
    let parts = Parts::new(q);
    let mut chain = [
        raw(parts.read, N, 1),
        raw(parts.space, N | W, 2),
        raw(parts.status, W, 0),
    ];
    chain[1].addr = region.span.start;
    q.ram.shrink(1);
    let seen = crate::stage::send(q, &chain, parts.status);
    assert!(
        matches!(seen, Seen::Answered(Some(code), _) if code != status::OK)
            || matches!(seen, Seen::Answered(None, 0) | Seen::Silent | Seen::Stopped),
        "{seen}"
    );
    stage.fresh().queue().assert_alive();
    let mut text = String::new();
    File::open(stage.rig.image.dir().join("sock.log"))
        .and_then(|mut log| log.read_to_string(&mut text))
        .expect("a log");
    assert!(text.lines().count() < 50, "{text}");
}

/// The mapping of a part of a huge page could never be taken back: the kernel unmaps whole ones only.
#[test]
fn a_part_of_a_huge_page_is_refused_before_it_is_mapped() {
    let mut stage = Stage::plain();
    let files = huge_file();
    for len in [HUGE_PAGE / 2, HUGE_PAGE + 4096, 2 * HUGE_PAGE - 4096] {
        let f = stage.negotiated();
        let mut region = row(&f.ram.regions()[0]);
        region[1] = len;
        let fd = files[0].as_raw_fd();
        for told in [set_table(f, 1, &[region], &[fd]), add(f, region, &[fd])] {
            assert!(matches!(told, Seen::Nack(_)), "{len}: {told}");
        }
    }
    // Not for want of such pages, of which there may be none.
    let log = stage.rig.log();
    assert!(log.contains("it has to consist of whole ones"), "{log}");
    stage.fresh().queue().assert_alive();
}
