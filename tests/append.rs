//! Zone appends: their two tails, bounds and framing, and many in flight from several queues.

#[cfg(test)]
pub mod common;

#[cfg(test)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "sizes of tests fit every integer they meet"
)]
mod tests {
    use crate::common::disk::state::{EMPTY, FULL};
    use crate::common::disk::{ZONE, ZONE_CAPACITY, ZONES, block, small_rig};
    use crate::common::queue::Queue;
    use crate::common::request::{
        APPEND_TAIL_LINUX, APPEND_TAIL_SPEC, Cut, Layout, POISON, Request, kind, status,
    };
    use crate::common::rng::Rng;

    #[test]
    fn the_tail_of_an_append_has_any_length() {
        let (_rig, mut f) = small_rig();
        let q = f.queue();
        let mut at = 4 * ZONE;
        for tail in [APPEND_TAIL_SPEC, APPEND_TAIL_LINUX, 10, 12, 17, 24, 512] {
            for writable in [
                Cut::Whole,
                Cut::Every(1),
                Cut::At(vec![8]),
                Cut::At(vec![3]),
            ] {
                let layout = Layout {
                    writable,
                    indirect: true,
                    ..Layout::default()
                };
                if tail > 100 && layout.writable == Cut::Every(1) {
                    continue;
                }
                let append = Request::append(4 * ZONE, &block(tail as u8), tail);
                let done = q.call_as(&append, &layout);
                assert_eq!(done.status(), status::OK, "{tail} bytes {layout:?}");
                assert_eq!(done.append_sector(), at, "{tail} bytes {layout:?}");
                assert!(
                    done.tail_padding().iter().all(|b| *b == POISON),
                    "{tail} bytes: the bytes between sector and status were written"
                );
                assert!(q.read_ok(at, 4096) == block(tail as u8));
                at += 8;
            }
        }
        for tail in 1..APPEND_TAIL_SPEC {
            let done = q.call(&Request::append(4 * ZONE, &block(0xee), tail));
            assert_ne!(done.status(), status::OK, "{tail} bytes hold no sector");
        }
        assert_eq!(q.zone(4 * ZONE).wp, at);
    }

    #[test]
    fn append_data_may_be_scattered() {
        let (_rig, mut f) = small_rig();
        let mut rng = Rng::from_env(20);
        let q = f.queue();
        for zone in 2..14 {
            let mut wp = zone * ZONE;
            while wp + 64 <= zone * ZONE + ZONE_CAPACITY {
                let data = {
                    let blocks = rng.range(1, 8) as usize;
                    rng.bytes(4096 * blocks)
                };
                let layout = Layout {
                    readable: Cut::Every(rng.range(400, 5000) as usize),
                    writable: Cut::Natural,
                    indirect: rng.one_in(2),
                    skew: rng.below(9),
                };
                let tail = *rng.pick(&[APPEND_TAIL_SPEC, APPEND_TAIL_LINUX]);
                let done = q.call_as(&Request::append(zone * ZONE, &data, tail), &layout);
                assert_eq!((done.status(), done.append_sector()), (status::OK, wp));
                assert!(q.read_ok(wp, data.len()) == data, "{layout:?}");
                wp += data.len() as u64 / 512;
            }
            assert_eq!(q.simple(kind::ZONE_FINISH, zone * ZONE), status::OK);
        }
    }

    #[test]
    fn appends_have_bounds() {
        let (_rig, mut f) = small_rig();
        let q = f.queue();
        let zone = 4 * ZONE;
        let mut refused = |sector: u64, bytes: usize, wanted: u8| {
            let status = q.append(sector, &vec![1; bytes], 16).0;
            assert_eq!(status, wanted, "{bytes} bytes at {sector}");
        };
        refused(zone + 8, 4096, status::INVALID_CMD);
        refused(zone + 1, 4096, status::INVALID_CMD);
        refused(0, 4096, status::INVALID_CMD);
        refused(ZONE, 4096, status::INVALID_CMD);
        refused(16 * ZONE, 4096, status::INVALID_CMD);
        refused(1 << 55, 4096, status::INVALID_CMD);
        refused(u64::MAX, 4096, status::INVALID_CMD);
        refused(zone, 0, status::INVALID_CMD);
        refused(zone, 65536 + 4096, status::INVALID_CMD);
        refused(zone, 1 << 20, status::INVALID_CMD);
        refused(zone, 512, status::UNALIGNED_WP);
        refused(zone, 4096 + 512, status::UNALIGNED_WP);
        assert_eq!(q.zone(zone).state, EMPTY, "nothing was written");
        for n in 0..2 {
            let (status, sector) = q.append(zone, &vec![1; 65536], 16);
            assert_eq!((status, sector), (status::OK, zone + n * 128));
        }
        // 128 sectors are left: more is refused, the rest fits.
        assert_eq!(q.append(zone, &vec![1; 61440], 9).0, status::OK);
        let (status, _) = q.append(zone, &vec![1; 8192], 9);
        assert_eq!(status, status::INVALID_CMD);
        assert_eq!(q.append(zone, &block(1), 9).0, status::OK);
        assert_eq!(q.zone(zone).state, FULL);
    }

    /// Appends many stamped pieces from one queue into `zones`; returns (sector, stamp, blocks) of each good one.
    fn append_storm(queue: &mut Queue, zones: &[u64], seed: u64) -> Vec<(u64, u64, u64)> {
        let mut rng = Rng::new(seed);
        let mut stamps = Vec::new();
        let requests: Vec<Request> = (0..60)
            .map(|_| {
                let (stamp, blocks) = (rng.bits(), rng.range(1, 4));
                stamps.push((stamp, blocks));
                let zone = *rng.pick(zones) * ZONE;
                let tail = *rng.pick(&[APPEND_TAIL_SPEC, APPEND_TAIL_LINUX]);
                Request::append(zone, &stamped(stamp, blocks), tail)
            })
            .collect();
        let before = queue.last_ticket();
        let mut good = Vec::new();
        let mut last = [0; ZONES];
        for done in queue.batch(&requests, &Layout::indirect()).unwrap() {
            let (stamp, blocks) = stamps[(done.ticket - before - 1) as usize];
            if done.status() == status::OK {
                let sector = done.append_sector();
                let newest = &mut last[(sector / ZONE) as usize];
                assert!(sector > *newest || *newest == 0, "behind a later one");
                *newest = sector;
                good.push((sector, stamp, blocks));
            } else {
                assert_eq!(done.status(), status::INVALID_CMD, "the zone is full");
            }
        }
        good
    }

    /// Blocks that each carry a stamp and their position.
    fn stamped(stamp: u64, blocks: u64) -> Vec<u8> {
        (0..blocks)
            .flat_map(|i| [stamp.to_le_bytes(), i.to_le_bytes()].concat().repeat(256))
            .collect()
    }

    #[test]
    fn appends_from_many_queues_tile_the_zones() {
        let seed = Rng::from_env(21).bits();
        for zones in [&[4][..], &[4, 5, 6]] {
            let (_rig, mut f) = small_rig();
            let mut all: Vec<(u64, u64, u64)> = std::thread::scope(|scope| {
                let workers: Vec<_> = f
                    .queues
                    .iter_mut()
                    .map(|queue| {
                        let seed = seed ^ u64::from(queue.index);
                        scope.spawn(move || append_storm(queue, zones, seed))
                    })
                    .collect();
                workers
                    .into_iter()
                    .flat_map(|worker| worker.join().unwrap())
                    .collect()
            });
            all.sort_unstable();
            for zone in zones {
                let start = zone * ZONE;
                let mut wp = start;
                for (sector, stamp, blocks) in all.iter().filter(|a| a.0 / ZONE == *zone) {
                    assert_eq!(*sector, wp, "no hole and no overlap in zone {zone}");
                    let got = f.queue().read_ok(*sector, *blocks as usize * 4096);
                    assert!(got == stamped(*stamp, *blocks), "data at {sector}");
                    wp += blocks * 8;
                }
                let info = f.queue().zone(start);
                if info.state == FULL {
                    assert_eq!(wp, start + ZONE_CAPACITY);
                } else {
                    assert_eq!(info.wp, wp, "zone {zone}");
                }
                assert!(wp > start, "zone {zone} took something");
            }
        }
    }

    #[test]
    fn a_failing_append_does_not_disturb_its_neighbours() {
        let (_rig, mut f) = small_rig();
        let q = f.queue();
        let zone = 4 * ZONE;
        let good = Request::append(zone, &block(1), 16);
        let bad = Request::append(zone + 8, &block(2), 16);
        let long = Request::append(zone, &vec![3; 1 << 17], 16);
        let mixed: Vec<Request> = (0..30)
            .map(|i| match i % 3 {
                0 => good.clone(),
                1 => bad.clone(),
                _ => long.clone(),
            })
            .collect();
        let done = q.batch(&mixed, &Layout::indirect()).unwrap();
        let ok = done.iter().filter(|d| d.status() == status::OK).count();
        assert_eq!(ok, 10);
        assert_eq!(q.zone(zone).wp, zone + 80);
        assert!(q.read_ok(zone, 40960) == [1; 40960]);
    }
}
