//! Chains that break the rules of the ring or of the request: each comes back, does nothing, and leaves the queue working.

#[cfg(test)]
pub mod common;

#[cfg(test)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "sizes of tests fit every integer they meet"
)]
mod tests {
    use std::time::Duration;

    use crate::common::daemon::Rig;
    use crate::common::frontend::Frontend;
    use crate::common::memory::Span;
    use crate::common::queue::{Next, Queue, RawDescriptor};
    use crate::common::request::{POISON, Request, kind, status};
    use crate::common::ring::{DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Descriptor};

    const PLAIN: [&str; 3] = ["--size", "16M", "--plain"];

    /// A descriptor of a hand-made chain; the chain goes on in the next one.
    fn raw(span: Span, flags: u16, next: usize) -> RawDescriptor {
        RawDescriptor {
            addr: span.start,
            len: span.len as u32,
            flags,
            next: Next::Chain(next),
        }
    }

    /// A chain that breaks a rule must come back, do nothing, and leave the queue working.
    fn refused(f: &mut Frontend, what: &str, chain: &[RawDescriptor]) {
        let before = f.queue().read_ok(0, 4096);
        let ticket = f.queue().submit_raw(chain).unwrap();
        f.queue().kick();
        match f.queue().wait(ticket, Duration::from_secs(5)) {
            Ok(done) => assert!(done.used_len <= 4097, "{what}: {}", done.used_len),
            Err(err) => panic!("{what}: {err}"),
        }
        let after = f.queue().read_ok(0, 4096);
        assert!(after == before, "{what}: the disk changed");
    }

    /// The buffers of hand-made requests: a write and a read of the first block.
    struct Parts {
        write: Span,
        read: Span,
        data: Span,
        space: Span,
        status: Span,
    }

    impl Parts {
        fn new(q: &Queue) -> Self {
            Self {
                write: q.buffer(&Request::new(kind::OUT, 0).readable),
                read: q.buffer(&Request::new(kind::IN, 0).readable),
                data: q.buffer(&[0x22; 4096]),
                space: q.buffer(&[POISON; 4096]),
                status: q.buffer(&[POISON]),
            }
        }
    }

    type Cases = Vec<(&'static str, Vec<RawDescriptor>)>;

    /// Runs hand-made chains on a plain disk: none may succeed or change anything.
    fn all_refused(make: impl Fn(&Parts) -> Cases) {
        let rig = Rig::new(&PLAIN, &[]);
        let mut f = Frontend::open(&rig.socket());
        assert_eq!(f.queue().write(0, &[0x11; 4096]), status::OK);
        let parts = Parts::new(f.queue());
        for (what, chain) in make(&parts) {
            f.ram.write(parts.status.start, &[POISON]);
            refused(&mut f, what, &chain);
            let status = f.ram.read(parts.status)[0];
            assert_ne!(status, status::OK, "{what}");
        }
    }

    #[test]
    fn chains_of_a_wrong_shape_are_refused_and_harmless() {
        let (n, w) = (DESC_NEXT, DESC_WRITE);
        all_refused(|parts| {
            let Parts {
                write: header,
                read: read_header,
                data,
                space,
                status: status_byte,
            } = *parts;
            let short = Span::new(header.start, 7);
            vec![
                ("no status", vec![raw(header, n, 1), raw(data, 0, 0)]),
                ("header alone", vec![raw(header, 0, 0)]),
                ("short header alone", vec![raw(short, 0, 0)]),
                (
                    "short header with a status",
                    vec![raw(short, n, 1), raw(status_byte, w, 0)],
                ),
                ("status alone", vec![raw(status_byte, w, 0)]),
                (
                    "data after the status",
                    vec![
                        raw(header, n, 1),
                        raw(status_byte, n | w, 2),
                        raw(data, 0, 0),
                    ],
                ),
                (
                    "header after the status",
                    vec![raw(status_byte, n | w, 1), raw(header, 0, 0)],
                ),
                (
                    "read without room for a status",
                    vec![raw(read_header, n, 1), raw(data, 0, 0)],
                ),
                ("loop of one", vec![raw(header, n, 0)]),
                ("loop of two", vec![raw(header, n, 1), raw(data, n, 0)]),
                (
                    "loop of writable descriptors",
                    vec![raw(read_header, n, 1), raw(space, n | w, 1)],
                ),
                (
                    "next past the table",
                    vec![RawDescriptor {
                        next: Next::Index(500),
                        ..raw(header, n, 0)
                    }],
                ),
            ]
        });
    }

    #[test]
    fn chains_outside_of_memory_are_refused_and_harmless() {
        let (n, w) = (DESC_NEXT, DESC_WRITE);
        let nowhere = Span::new(0x10, 4096);
        let over_the_end = Span::new(0x1_0000_0000 + (64 << 20) - 512, 4096);
        let wraps = Span::new(u64::MAX - 100, 4096);
        all_refused(|parts| {
            let Parts {
                write: header,
                read: read_header,
                data,
                status: status_byte,
                ..
            } = *parts;
            vec![
                (
                    "header nowhere",
                    vec![raw(nowhere, n, 1), raw(status_byte, w, 0)],
                ),
                (
                    "data nowhere",
                    vec![
                        raw(header, n, 1),
                        raw(nowhere, n, 2),
                        raw(status_byte, w, 0),
                    ],
                ),
                (
                    "space nowhere",
                    vec![
                        raw(read_header, n, 1),
                        raw(nowhere, n | w, 2),
                        raw(status_byte, w, 0),
                    ],
                ),
                (
                    "data over the end of memory",
                    vec![
                        raw(header, n, 1),
                        raw(over_the_end, n, 2),
                        raw(status_byte, w, 0),
                    ],
                ),
                (
                    "data wraps the address space",
                    vec![raw(header, n, 1), raw(wraps, n, 2), raw(status_byte, w, 0)],
                ),
                (
                    "status nowhere",
                    vec![
                        raw(header, n, 1),
                        raw(data, n, 2),
                        raw(Span::new(0x10, 1), w, 0),
                    ],
                ),
                (
                    "four gigabytes of data",
                    vec![
                        raw(header, n, 1),
                        raw(Span::new(data.start, 0xffff_ffff), n, 2),
                        raw(status_byte, w, 0),
                    ],
                ),
            ]
        });
    }

    #[test]
    fn empty_descriptors_are_harmless() {
        let rig = Rig::new(&PLAIN, &[]);
        let mut f = Frontend::open(&rig.socket());
        let q = f.queue();
        let header = q.buffer(&Request::new(kind::OUT, 8).readable);
        let data = q.buffer(&[0x33; 4096]);
        let status_byte = q.buffer(&[POISON]);
        let (n, w) = (DESC_NEXT, DESC_WRITE);
        let empty = Span::new(data.start, 0);
        let lost = Span::new(0, 0);
        for chain in [
            vec![raw(empty, 0, 0)],
            vec![raw(lost, 0, 0)],
            vec![raw(empty, w, 0)],
            vec![
                raw(header, n, 1),
                raw(empty, n, 2),
                raw(data, n, 3),
                raw(status_byte, w, 0),
            ],
            vec![
                raw(header, n, 1),
                raw(data, n, 2),
                raw(status_byte, n | w, 3),
                raw(empty, w, 0),
            ],
        ] {
            q.ram.write(status_byte.start, &[POISON]);
            let ticket = q.submit_raw(&chain).unwrap();
            q.kick();
            q.wait(ticket, Duration::from_secs(5)).unwrap();
            // Either it counts for nothing, or the chain is refused; a success must have written the data.
            if q.ram.read(status_byte)[0] == status::OK {
                assert!(q.read_ok(8, 4096) == [0x33; 4096]);
                assert_eq!(q.write(8, &[0; 4096]), status::OK);
            }
            q.assert_alive();
        }
    }

    /// Processor time that the daemon has used, in hundredths of a second.
    fn ticks(rig: &Rig) -> u64 {
        let pid = rig.daemon.as_ref().unwrap().pid();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let (_, after_name) = stat.rsplit_once(')').unwrap();
        let fields = after_name.split_whitespace().skip(11).take(2);
        fields.map(|field| field.parse::<u64>().unwrap()).sum()
    }

    #[test]
    fn a_ring_that_claims_more_than_it_holds_is_left_alone() {
        let rig = Rig::new(&PLAIN, &[]);
        let mut f = Frontend::open(&rig.socket());
        f.queue().assert_alive();
        let ring = &f.queue().ring;
        ring.set_avail_index(ring.next_avail().wrapping_add(ring.size() + 1));
        f.queue().force_kick();
        let before = ticks(&rig);
        std::thread::sleep(Duration::from_secs(1));
        let used = ticks(&rig) - before;
        assert!(used < 20, "{used} hundredths of a second spent on nothing");
        f.stop_queue(0).unwrap();
    }

    #[test]
    fn malformed_indirect_tables_are_refused_and_harmless() {
        let rig = Rig::new(&PLAIN, &[]);
        let mut f = Frontend::open(&rig.socket());
        let q = f.queue();
        let header = q.buffer(&Request::new(kind::OUT, 0).readable);
        let data = q.buffer(&[0x44; 4096]);
        let status_byte = q.buffer(&[POISON]);
        let entry = |span: Span, flags, next| Descriptor {
            addr: span.start,
            len: span.len as u32,
            flags,
            next,
        };
        let good = [
            entry(header, DESC_NEXT, 1),
            entry(data, DESC_NEXT, 2),
            entry(status_byte, DESC_WRITE, 0),
        ];
        let table = |q: &Queue, entries: &[Descriptor]| {
            let bytes: Vec<u8> = entries.iter().flat_map(|d| d.to_bytes()).collect();
            q.buffer(&bytes)
        };
        let whole = table(q, &good);
        let nested = table(q, &[entry(whole, DESC_INDIRECT, 0)]);
        let looped = table(q, &[entry(header, DESC_NEXT, 0)]);
        let astray = table(q, &[entry(header, DESC_NEXT, 40), good[2]]);
        let ragged = Span::new(whole.start, 40);
        let none = Span::new(whole.start, 0);
        let nowhere = Span::new(0x10, 48);
        let huge = Span::new(whole.start, 0xffff_fff0);
        for (what, span, flags) in [
            ("nested", nested, DESC_INDIRECT),
            ("loop", looped, DESC_INDIRECT),
            ("next past the table", astray, DESC_INDIRECT),
            ("no multiple of 16", ragged, DESC_INDIRECT),
            ("no entries", none, DESC_INDIRECT),
            ("nowhere", nowhere, DESC_INDIRECT),
            ("longer than memory", huge, DESC_INDIRECT),
            ("and a next", whole, DESC_INDIRECT | DESC_NEXT),
        ] {
            f.ram.write(status_byte.start, &[POISON]);
            refused(&mut f, what, &[raw(span, flags, 0)]);
            let status = f.ram.read(status_byte)[0];
            assert_ne!(status, status::OK, "{what}");
        }
        // The table itself is good.
        let q = f.queue();
        let ticket = q.submit_raw(&[raw(whole, DESC_INDIRECT, 0)]).unwrap();
        q.kick();
        q.wait(ticket, Duration::from_secs(5)).unwrap();
        assert_eq!(q.ram.read(status_byte)[0], status::OK);
        assert!(q.read_ok(0, 4096) == [0x44; 4096]);
    }
}
