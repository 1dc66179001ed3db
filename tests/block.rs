//! Requests of an ordinary block device: bounds, framing, every type, read-only, plain disks, hostile chains.

#[cfg(test)]
pub mod common;

#[cfg(test)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "sizes of tests fit every integer they meet"
)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use crate::common::daemon::Rig;
    use crate::common::frontend::{Frontend, Options, feature};
    use crate::common::memory::Span;
    use crate::common::queue::Queue;
    use crate::common::request::{Cut, Layout, POISON, Request, kind, status};
    use crate::common::rng::Rng;

    const PLAIN: [&str; 3] = ["--size", "16M", "--plain"];
    /// The same in blocks of a sector.
    const FINE: [&str; 5] = ["--size", "16M", "--plain", "--block-size", "512"];
    /// Both with their sectors a block.
    const DISKS: [(&[&str], u64); 2] = [(&PLAIN, 8), (&FINE, 1)];
    const CAPACITY: u64 = (16 << 20) / 512;
    /// One conventional zone, then sequential ones.
    const MIXED: [&str; 6] = ["--size", "16M", "--zone-size", "1M", "--conventional", "2"];

    fn pattern(seed: u64, len: usize) -> Vec<u8> {
        Rng::new(seed).bytes(len)
    }

    /// (sector, bytes, status) of reads and writes that are easy to get wrong, for a disk of `capacity` sectors and
    /// blocks of `unit` sectors.
    fn awkward(capacity: u64, unit: u64) -> Vec<(u64, usize, u8)> {
        let bad = status::IOERR;
        let last = capacity / unit - 1;
        let good = [
            (0, 1),
            (1, 1),
            (7, 1),
            (7, 2),
            (3, 16),
            (8, 8),
            (last, 1),
            (last - 7, 8),
            (last - 8, 9),
        ]
        .map(|(at, count)| (at * unit, (count * unit * 512) as usize, status::OK));
        let refused = [
            (capacity - 1, 1024, bad),
            (capacity - unit, 512 * unit as usize + 4096, bad),
            (capacity, 512, bad),
            (capacity, 4096, bad),
            (capacity + unit, 4096, bad),
            (capacity, 0, bad),
            (0, 0, bad),
            (8, 0, bad),
            (u64::MAX, 512, bad),
            (u64::MAX, 4096, bad),
            (u64::MAX - 7, 4096, bad),
            (u64::MAX - 8, 4096, bad),
            (u64::MAX >> 9, 512, bad),
            ((u64::MAX >> 9) + 1, 512, bad),
            ((u64::MAX >> 9) + 1, 4096, bad),
            (1 << 55, 4096, bad),
            (1 << 63, 4096, bad),
            (0, 1, bad),
            (0, 511, bad),
            (0, 513, bad),
            (0, 4095, bad),
            (0, 4097, bad),
            (capacity - 1, 513, bad),
        ];
        [&good[..], &refused].concat()
    }

    /// Fills a 16 MiB disk, so that every sector's content is known.
    fn fill(queue: &mut Queue, data: &[u8]) {
        for (i, part) in data.chunks(1 << 20).enumerate() {
            assert_eq!(queue.write(i as u64 * 2048, part), status::OK, "MiB {i}");
        }
    }

    #[test]
    fn awkward_reads() {
        for (create, unit) in DISKS {
            let rig = Rig::new(create, &[]);
            let mut f = Frontend::open(&rig.socket());
            let data = pattern(1, 16 << 20);
            fill(f.queue(), &data);
            for (sector, len, wanted) in awkward(CAPACITY, unit) {
                let (status, got) = f.queue().read(sector, len);
                assert_eq!(status, wanted, "read of {len} bytes at {sector}");
                if wanted == status::OK {
                    let at = sector as usize * 512;
                    assert!(got == data[at..at + len], "{len} bytes at {sector}");
                } else {
                    assert!(got.iter().all(|b| *b == POISON || *b == 0), "leak");
                }
            }
        }
    }

    #[test]
    fn awkward_writes() {
        for (create, unit) in DISKS {
            let rig = Rig::new(create, &[]);
            let mut f = Frontend::open(&rig.socket());
            let mut shadow = pattern(2, 16 << 20);
            fill(f.queue(), &shadow);
            for (i, (sector, len, wanted)) in awkward(CAPACITY, unit).into_iter().enumerate() {
                let data = pattern(100 + i as u64, len);
                let status = f.queue().write(sector, &data);
                assert_eq!(status, wanted, "write of {len} bytes at {sector}");
                if wanted == status::OK {
                    let at = sector as usize * 512;
                    shadow[at..at + len].copy_from_slice(&data);
                }
            }
            for (i, part) in shadow.chunks(1 << 20).enumerate() {
                let got = f.queue().read_ok(i as u64 * 2048, part.len());
                assert!(got == part, "MiB {i}");
            }
        }
    }

    /// Addresses count sectors, but a disk of 4096-byte blocks takes whole blocks only, as QEMU's
    /// own virtio-blk does: an encrypted block cannot be changed in part without reading it.
    #[test]
    fn a_part_of_a_block_is_refused_and_changes_nothing() {
        let rig = Rig::new(&PLAIN, &[]);
        let mut f = Frontend::open_with(&rig.socket(), Options::queues(1));
        assert_eq!(f.queue().write(0, &[0x10; 8192]), status::OK);
        for (sector, len) in [(0, 512), (3, 512), (3, 4096), (0, 4608), (1, 3584)] {
            assert_eq!(f.queue().write(sector, &vec![0x20; len]), status::IOERR);
            assert_eq!(f.queue().read(sector, len).0, status::IOERR);
        }
        assert!(f.queue().read_ok(0, 8192) == [0x10; 8192]);
    }

    #[test]
    fn conventional_zones_are_an_ordinary_disk() {
        for (block, unit) in [("4096", 8), ("512", 1)] {
            let rig = Rig::new(&[&MIXED[..], &["--block-size", block]].concat(), &[]);
            let mut f = Frontend::open(&rig.socket());
            let mut rng = Rng::from_env(10);
            let mut shadow = rng.bytes(2 << 20);
            fill(f.queue(), &shadow);
            for step in 0..300 {
                let count = rng.range(1, 40);
                let len = (count * unit * 512) as usize;
                let sector = rng.below(4096 / unit - count + 1) * unit;
                let at = sector as usize * 512;
                if rng.one_in(2) {
                    let data = rng.bytes(len);
                    assert_eq!(f.queue().write(sector, &data), status::OK, "step {step}");
                    shadow[at..at + len].copy_from_slice(&data);
                } else {
                    let got = f.queue().read_ok(sector, len);
                    assert!(
                        got == shadow[at..at + len],
                        "step {step}: {len} at {sector}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_header_may_be_split_at_every_byte() {
        let rig = Rig::new(&PLAIN, &[]);
        let mut f = Frontend::open(&rig.socket());
        for indirect in [false, true] {
            for cut in 1..=40 {
                let layout = Layout {
                    readable: Cut::At(vec![cut]),
                    indirect,
                    ..Layout::default()
                };
                let data = pattern(cut as u64, 4096);
                let done = f.queue().call_as(&Request::write(16, &data), &layout);
                assert_eq!(done.status(), status::OK, "{layout:?}");
                let done = f.queue().call_as(&Request::read(16, 4096), &layout);
                assert_eq!(done.status(), status::OK, "{layout:?}");
                assert!(done.data() == data, "{layout:?}");
            }
            for cut in 2..15 {
                let layout = Layout {
                    readable: Cut::At((1..=16).step_by(cut).collect()),
                    indirect,
                    ..Layout::default()
                };
                let done = f.queue().call_as(&Request::new(kind::FLUSH, 0), &layout);
                assert_eq!(done.status(), status::OK, "{layout:?}");
            }
        }
    }

    #[test]
    fn data_may_be_split_anywhere() {
        for (create, unit) in DISKS {
            let rig = Rig::new(create, &[]);
            split_anywhere(&mut Frontend::open(&rig.socket()), unit);
        }
    }

    fn split_anywhere(f: &mut Frontend, unit: u64) {
        let mut rng = Rng::from_env(11);
        for step in 0..300 {
            let len = (512 * unit * rng.range(1, 24 / unit)) as usize;
            let sector = rng.below((CAPACITY - 32) / unit) * unit;
            let mut cuts = |total: usize| match rng.below(4) {
                0 => Cut::Natural,
                1 => Cut::Whole,
                2 => Cut::Every(total / rng.range(2, 40) as usize + 1),
                _ => {
                    let mut at: Vec<usize> = (0..rng.range(1, 12))
                        .map(|_| rng.below(total as u64) as usize)
                        .collect();
                    at.sort_unstable();
                    Cut::At(at)
                }
            };
            let (out, back) = (cuts(len + 16), cuts(len + 1));
            let layout = Layout {
                readable: out,
                writable: back,
                indirect: rng.one_in(2),
                skew: *rng.pick(&[0, 0, 1, 3, 8, 100]),
            };
            let data = rng.bytes(len);
            let done = f.queue().call_as(&Request::write(sector, &data), &layout);
            assert_eq!(done.status(), status::OK, "step {step} {layout:?}");
            let done = f.queue().call_as(&Request::read(sector, len), &layout);
            assert_eq!(done.status(), status::OK, "step {step} {layout:?}");
            assert!(done.data() == data, "step {step} {layout:?}");
            assert_eq!(done.used_len as usize, len + 1, "step {step}");
        }
    }

    #[test]
    fn data_may_come_in_many_segments() {
        let rig = Rig::new(&FINE, &[]);
        let options = Options {
            queue_size: 256,
            ..Options::default()
        };
        let mut f = Frontend::open_with(&rig.socket(), options);
        let seg_max = f.config().seg_max() as usize;
        for indirect in [false, true] {
            // The ring has 256 descriptors; header and status take one each.
            let segments = seg_max.min(254);
            for bytes in [512, 4096] {
                let layout = Layout {
                    readable: Cut::At((0..segments).map(|i| 16 + i * bytes).collect()),
                    writable: Cut::Every(bytes),
                    indirect,
                    skew: 0,
                };
                let data = pattern(bytes as u64, segments * bytes);
                let done = f.queue().call_as(&Request::write(0, &data), &layout);
                assert_eq!(done.status(), status::OK, "{segments} x {bytes}");
                let done = f.queue().call_as(&Request::read(0, data.len()), &layout);
                assert_eq!(done.status(), status::OK, "{segments} x {bytes}");
                assert!(done.data() == data, "{segments} x {bytes}");
            }
        }
    }

    #[test]
    fn requests_may_be_large() {
        let rig = Rig::new(&PLAIN, &[]);
        let mut f = Frontend::open(&rig.socket());
        for (len, cut) in [(4 << 20, Cut::Natural), (8 << 20, Cut::Every(100_000))] {
            let layout = Layout {
                readable: cut.clone(),
                writable: cut,
                indirect: true,
                skew: 0,
            };
            let data = pattern(len as u64, len);
            let done = f.queue().call_as(&Request::write(16, &data), &layout);
            assert_eq!(done.status(), status::OK, "{len} bytes");
            let done = f.queue().call_as(&Request::read(16, len), &layout);
            assert_eq!(done.status(), status::OK, "{len} bytes");
            assert!(done.data() == data, "{len} bytes");
        }
    }

    #[test]
    fn a_buffer_may_cross_memory_regions() {
        let rig = Rig::new(&PLAIN, &[]);
        let seam = 0x2_0000_0000_u64;
        let options = Options {
            // The first region ends inside the first big buffer.
            memory: vec![
                Span::new(seam - (1 << 20), 1 << 20),
                Span::new(seam, 16 << 20),
            ],
            ..Options::default()
        };
        let mut f = Frontend::open_with(&rig.socket(), options);
        let data = pattern(3, 2 << 20);
        assert_eq!(f.queue().write(0, &data), status::OK);
        assert!(f.queue().read_ok(0, 2 << 20) == data);
    }

    #[test]
    fn the_serial_number_is_a_padded_string() {
        let mut rig = Rig::new(&PLAIN, &[]);
        let (status, id) = Frontend::open(&rig.socket()).queue().get_id();
        assert_eq!(status, status::OK);
        let text = id.iter().take_while(|b| **b != 0).count();
        assert!(text > 0, "empty");
        assert!(id[..text].iter().all(u8::is_ascii_graphic), "{id:?}");
        assert!(id[text..].iter().all(|b| *b == 0), "{id:?}");
        rig.restart();
        let (_, again) = Frontend::open(&rig.socket()).queue().get_id();
        assert_eq!(id, again, "stable over a restart");
        let other = Rig::new(&PLAIN, &[]);
        let (_, other) = Frontend::open(&other.socket()).queue().get_id();
        assert_ne!(id, other, "another disk");
    }

    #[test]
    fn a_serial_number_without_its_twenty_bytes_is_harmless() {
        let rig = Rig::new(&PLAIN, &[]);
        let mut f = Frontend::open(&rig.socket());
        let (_, id) = f.queue().get_id();
        for space in [0, 1, 19, 21, 4096] {
            // The driver breaks its rule; the device may answer as it likes, with these bytes or none.
            let get_id = Request::new(kind::GET_ID, 0).with_space(space);
            let done = f.queue().call(&get_id);
            assert!(done.status() <= status::UNSUPP, "{space} bytes");
            for (got, wanted) in done.data().iter().zip(id.iter().chain(&[0; 4096])) {
                assert!(got == wanted || [0, POISON].contains(got), "{space} bytes");
            }
        }
        assert_eq!(f.queue().get_id(), (status::OK, id));
    }

    #[test]
    fn unknown_requests_are_unsupported() {
        for (create, taken) in [
            (&PLAIN[..], &[0, 1, 4, 8, 11, 13][..]),
            (&MIXED[..], &[0, 1, 4, 8, 15, 16, 18, 20, 22, 24, 26][..]),
        ] {
            let rig = Rig::new(create, &[]);
            let mut f = Frontend::open(&rig.socket());
            let odd = [0x8000_0000, 0x8000_0001, 0xffff_ffff, 0x100, 0x1_0001];
            for request in (0..64).chain(odd).filter(|t| !taken.contains(t)) {
                for (data, space) in [(0, 0), (4096, 0), (0, 4096), (16, 64)] {
                    let request = Request::new(request, 0)
                        .with_data(&vec![1; data])
                        .with_space(space);
                    let done = f.queue().call(&request);
                    assert_eq!(
                        done.status(),
                        status::UNSUPP,
                        "{create:?} {:x?} data {data} space {space}",
                        &request.readable[..4]
                    );
                    assert!(done.data().iter().all(|b| *b == POISON || *b == 0));
                }
            }
            f.queue().assert_alive();
        }
    }

    #[test]
    fn zone_requests_of_a_plain_disk_are_unsupported() {
        let rig = Rig::new(&PLAIN, &[]);
        let mut f = Frontend::open(&rig.socket());
        assert_eq!(f.queue().write(0, &[0x66; 4096]), status::OK);
        for request in [18, 20, 22, 24, 26] {
            assert_eq!(f.queue().simple(request, 0), status::UNSUPP, "{request}");
        }
        let append = Request::append(0, &[1; 4096], 16);
        assert_eq!(f.queue().call(&append).status(), status::UNSUPP);
        let report = f.queue().call(&Request::report(0, 4096));
        assert_eq!(report.status(), status::UNSUPP);
        assert!(f.queue().read_ok(0, 4096) == [0x66; 4096]);
    }

    #[test]
    fn a_read_only_disk_does_not_change() {
        let mut rig = Rig::new(&PLAIN, &[]);
        let data = pattern(5, 65536);
        let mut f = Frontend::open(&rig.socket());
        assert_eq!(f.queue().write(64, &data), status::OK);
        drop(f);
        rig.daemon.take().unwrap().stop();
        let before = fs::read(rig.image.path()).unwrap();
        rig.start();
        rig.restart_with(&["--read-only"]);
        let at_start = fs::read(rig.image.path()).unwrap();

        // Not having taken F_RO makes a disk no more writable.
        for dropped in [0, feature::RO] {
            let mut f = Frontend::open_with(&rig.socket(), Options::without(dropped));
            let q = f.queue();
            assert_eq!(q.write(64, &[1; 4096]), status::IOERR);
            assert_eq!(q.write(0, &[1; 512]), status::IOERR);
            for request in [kind::DISCARD, kind::WRITE_ZEROES] {
                let status = q.ranges(request, &[(64, 8, 0)]);
                assert!(
                    status == status::IOERR || status == status::UNSUPP,
                    "type {request}: {status}"
                );
            }
            assert_eq!(q.flush(), status::OK);
            assert!(q.read_ok(64, 65536) == data);
        }
        rig.daemon.take().unwrap().stop();
        let after = fs::read(rig.image.path()).unwrap();
        assert!(
            at_start == after,
            "the image changed while served read-only"
        );
        drop(before);
    }

    #[test]
    fn write_zeroes_leaves_zeroes() {
        for (create, unit) in DISKS {
            let rig = Rig::new(create, &[]);
            let mut f = Frontend::open(&rig.socket());
            let mut shadow = pattern(6, 1 << 20);
            assert_eq!(f.queue().write(0, &shadow), status::OK);
            for (start, count, flags) in [
                (1, 1, 0),
                (4, 1, 1),
                (9, 3, 1),
                (20, 30, 0),
                (64, 64, 1),
                (200, 1, 0),
            ] {
                let (sector, sectors) = (start * unit, count * unit);
                let what = format!("{sectors} at {sector}, flags {flags}");
                let range = (sector, sectors as u32, flags);
                let status = f.queue().ranges(kind::WRITE_ZEROES, &[range]);
                assert_eq!(status, status::OK, "{what}");
                let at = sector as usize * 512;
                shadow[at..at + sectors as usize * 512].fill(0);
                assert!(f.queue().read_ok(0, 1 << 20) == shadow, "{what}");
            }
            // A zeroed range takes new data like any other.
            assert_eq!(f.queue().write(64 * unit, &[7; 8192]), status::OK);
            assert!(f.queue().read_ok(64 * unit, 8192) == [7; 8192]);
            assert!(f.queue().read_ok(64 * unit + 16, 4096) == [0; 4096]);
        }
    }

    #[test]
    fn discard_touches_nothing_else() {
        for (create, unit) in DISKS {
            let rig = Rig::new(create, &[]);
            let mut f = Frontend::open(&rig.socket());
            let data = pattern(7, 1 << 20);
            assert_eq!(f.queue().write(0, &data), status::OK);
            let ranges = [(1, 1), (9, 6), (16, 128), (200, 1)].map(|(s, n)| (s * unit, n * unit));
            for (sector, sectors) in ranges {
                let range = (sector, sectors as u32, 0);
                let status = f.queue().ranges(kind::DISCARD, &[range]);
                assert_eq!(status, status::OK, "{sectors} at {sector}");
            }
            // What was dropped may read as anything ("the driver MUST NOT assume anything").
            let got = f.queue().read_ok(0, 1 << 20);
            for (i, (new, old)) in (0..).zip(got.chunks(512).zip(data.chunks(512))) {
                let dropped = ranges.iter().any(|(s, n)| (*s..s + n).contains(&i));
                assert!(new == old || dropped, "sector {i}");
            }
            assert_eq!(f.queue().write(16 * unit, &[9; 4096]), status::OK);
            assert!(f.queue().read_ok(16 * unit, 4096) == [9; 4096]);
        }
    }

    #[test]
    fn range_flags_and_bounds_are_checked() {
        let rig = Rig::new(&PLAIN, &[]);
        let mut f = Frontend::open(&rig.socket());
        let config = f.config();
        let data = pattern(8, 65536);
        assert_eq!(f.queue().write(0, &data), status::OK);
        let q = f.queue();
        for flags in [2, 3, 4, 0x8000_0000, 0xffff_ffff] {
            for request in [kind::DISCARD, kind::WRITE_ZEROES] {
                let status = q.ranges(request, &[(0, 8, flags)]);
                assert_eq!(status, status::UNSUPP, "type {request} flags {flags:#x}");
            }
        }
        assert_eq!(q.ranges(kind::DISCARD, &[(0, 8, 1)]), status::UNSUPP);
        for request in [kind::DISCARD, kind::WRITE_ZEROES] {
            for (sector, sectors) in [
                (CAPACITY, 8),
                (CAPACITY - 1, 2),
                (u64::MAX, 8),
                (u64::MAX - 7, 8),
                (1 << 55, 8),
                (0, u32::MAX),
            ] {
                let status = q.ranges(request, &[(sector, sectors, 0)]);
                assert_eq!(
                    status,
                    status::IOERR,
                    "type {request} {sectors} at {sector}"
                );
            }
            for len in [1, 15, 17, 24] {
                let ragged = Request::new(request, 0).with_data(&vec![0; len]);
                let status = q.call(&ragged).status();
                assert_eq!(status, status::IOERR, "type {request}: {len} bytes");
            }
            let empty = q.call(&Request::new(request, 0)).status();
            assert_ne!(empty, status::UNSUPP, "type {request} without ranges");
        }
        // More segments than the configuration allows.
        for (request, most) in [
            (kind::DISCARD, config.discard()[1]),
            (kind::WRITE_ZEROES, config.write_zeroes()[1]),
        ] {
            let ranges = vec![(0, 8, 0); most as usize + 1];
            assert_eq!(q.ranges(request, &ranges), status::IOERR, "type {request}");
            assert!(q.read_ok(0, 65536) == data, "type {request}");
        }
        // As many as it allows.
        for (request, most) in [
            (kind::DISCARD, config.discard()[1]),
            (kind::WRITE_ZEROES, config.write_zeroes()[1]),
        ] {
            let ranges: Vec<_> = (0..u64::from(most.min(256)))
                .map(|i| (256 + i * 16, 8, 0))
                .collect();
            assert_eq!(q.ranges(request, &ranges), status::OK, "type {request}");
        }
        assert!(q.read_ok(0, 65536) == data);
    }

    #[test]
    fn queues_work_side_by_side() {
        let rig = Rig::new(&PLAIN, &["--queues", "4"]);
        let mut f = Frontend::open_with(&rig.socket(), Options::queues(4));
        let share = CAPACITY / 4;
        let seed = Rng::from_env(12).bits();
        let shadows: Vec<Vec<u8>> = std::thread::scope(|scope| {
            let workers: Vec<_> = f
                .queues
                .iter_mut()
                .map(|queue| scope.spawn(move || storm(queue, share, seed)))
                .collect();
            workers.into_iter().map(|w| w.join().unwrap()).collect()
        });
        for (i, shadow) in shadows.iter().enumerate() {
            let other = &mut f.queues[(i + 1) % 4];
            for (at, part) in shadow.chunks(1 << 19).enumerate() {
                let sector = i as u64 * share + at as u64 * 1024;
                assert!(other.read_ok(sector, part.len()) == part, "share {i}");
            }
        }
    }

    /// Many writes in flight over the queue's own share of the disk; returns what the share must hold.
    fn storm(queue: &mut Queue, share: u64, seed: u64) -> Vec<u8> {
        let mut rng = Rng::new(seed ^ u64::from(queue.index));
        let base = u64::from(queue.index) * share;
        let mut shadow = rng.bytes(share as usize * 512);
        for (at, part) in (0..).zip(shadow.chunks(1 << 19)) {
            assert_eq!(queue.write(base + at * 1024, part), status::OK);
        }
        for _ in 0..12 {
            // Within a batch no two writes overlap: the order of completion is free.
            let mut requests = Vec::new();
            for slot in 0..32 {
                let sector = slot * (share / 32) + 8 * rng.below(4);
                let len = 4096 * rng.range(1, 8) as usize;
                let data = rng.bytes(len);
                let at = sector as usize * 512;
                shadow[at..at + data.len()].copy_from_slice(&data);
                requests.push(Request::write(base + sector, &data));
            }
            for done in queue.batch(&requests, &Layout::indirect()).unwrap() {
                assert_eq!(done.status(), status::OK);
            }
        }
        shadow
    }

    #[test]
    fn a_ring_full_of_requests_comes_back() {
        let rig = Rig::new(&PLAIN, &[]);
        for dropped in [0, feature::EVENT_IDX] {
            let mut f = Frontend::open_with(&rig.socket(), Options::without(dropped));
            let reads: Vec<_> = (0..1000).map(|i| Request::read(i * 8, 4096)).collect();
            for layout in [Layout::default(), Layout::indirect()] {
                let done = f.queue().batch(&reads, &layout).unwrap();
                assert_eq!(done.len(), 1000);
                assert!(done.iter().all(|d| d.status() == status::OK));
            }
            // And without being told of each: the driver polls.
            f.queue().ring.disarm();
            let append = Request::write(0, &[1; 4096]);
            for _ in 0..20 {
                f.queue().submit(&append, &Layout::default()).unwrap();
            }
            f.queue().kick();
            let deadline = std::time::Instant::now() + Duration::from_secs(20);
            let mut back = 0;
            while back < 20 && std::time::Instant::now() < deadline {
                match f.queue().poll().unwrap() {
                    Some(_) => back += 1,
                    None => std::thread::sleep(Duration::from_millis(1)),
                }
            }
            assert_eq!(back, 20);
        }
    }

    #[test]
    fn what_was_written_survives() {
        for options in [&[][..], &["--cache", "writeback"], &["--cache", "direct"]] {
            let mut rig = Rig::new(&PLAIN, options);
            let data = pattern(9, 1 << 20);
            let mut f = Frontend::open(&rig.socket());
            assert_eq!(f.queue().write(1000, &data), status::OK);
            assert_eq!(f.queue().flush(), status::OK);
            drop(f);
            rig.restart();
            let mut f = Frontend::open(&rig.socket());
            assert!(f.queue().read_ok(1000, 1 << 20) == data, "{options:?}");
            assert_eq!(f.queue().write(4000, &data), status::OK);
            // No flush: what was acknowledged survives the end of the process all the same.
            rig.crash();
            let mut f = Frontend::open(&rig.socket());
            assert!(f.queue().read_ok(4000, 1 << 20) == data, "{options:?}");
            assert!(f.queue().read_ok(1000, 1 << 20) == data, "{options:?}");
        }
    }

    #[test]
    fn the_host_sees_ciphertext() {
        let marker = b"PLAINTEXT THAT THE HOST MUST NOT";
        for create in [&PLAIN[..], &MIXED[..]] {
            let rig = Rig::new(create, &[]);
            let mut f = Frontend::open(&rig.socket());
            let data = marker.repeat(2048);
            assert_eq!(f.queue().write(0, &data), status::OK);
            if create == MIXED {
                assert_eq!(f.queue().append(2 * 2048, &data, 16).0, status::OK);
            }
            assert_eq!(f.queue().flush(), status::OK);
            let image = fs::read(rig.image.path()).unwrap();
            let seen = image.windows(marker.len()).filter(|w| w == marker).count();
            assert_eq!(seen, 0, "{create:?}");
            // Equal blocks must not show as equal either.
            let mut blocks: Vec<&[u8]> = image
                .chunks(4096)
                .filter(|b| b.iter().any(|x| *x != 0))
                .collect();
            let all = blocks.len();
            blocks.sort_unstable();
            blocks.dedup();
            assert!(
                all - blocks.len() < 16,
                "{} equal blocks",
                all - blocks.len()
            );
        }
    }

    #[test]
    fn a_flush_may_overtake_nothing() {
        let rig = Rig::new(&PLAIN, &["--queues", "2"]);
        let mut f = Frontend::open_with(&rig.socket(), Options::queues(2));
        let written = AtomicU64::new(0);
        let (first, second) = f.queues.split_at_mut(1);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for i in 0..200 {
                    assert_eq!(first[0].write(i * 8, &[i as u8; 4096]), status::OK);
                    written.store(i + 1, Ordering::Release);
                }
            });
            for _ in 0..50 {
                let seen = written.load(Ordering::Acquire);
                assert_eq!(second[0].flush(), status::OK);
                if seen > 0 {
                    let last = second[0].read_ok((seen - 1) * 8, 4096);
                    assert!(last == [(seen - 1) as u8; 4096]);
                }
            }
        });
    }
}
