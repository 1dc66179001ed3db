//! The zoned disk: every command in every state, reports, bounds, limits, restarts. Appends have a file of their own.

#[cfg(test)]
pub mod common;

#[cfg(test)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "sizes of tests fit every integer they meet"
)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use crate::common::daemon::Rig;
    use crate::common::disk::state::{CLOSED, EMPTY, EOPEN, FULL, IOPEN, NOT_WP};
    use crate::common::disk::{SMALL, ZONE, ZONE_CAPACITY, ZONES, block, small_rig};
    use crate::common::frontend::{Frontend, Options, feature};
    use crate::common::queue::Queue;
    use crate::common::request::{
        Cut, Layout, POISON, REPORT_UNIT, Request, ZoneInfo, kind, parse_report, status, zone_type,
    };
    use crate::common::rng::Rng;

    #[test]
    fn a_fresh_disk_reports_empty_zones() {
        let (_rig, mut f) = small_rig();
        for (i, zone) in f.queue().zones(ZONES).into_iter().enumerate() {
            let start = i as u64 * ZONE;
            let conventional = i < 2;
            let wanted = ZoneInfo {
                capacity: if conventional { ZONE } else { ZONE_CAPACITY },
                start,
                wp: start,
                kind: if conventional {
                    zone_type::CONV
                } else {
                    zone_type::SWR
                },
                state: if conventional { NOT_WP } else { EMPTY },
            };
            assert_eq!(zone, wanted, "zone {i}");
        }
    }

    #[test]
    fn a_reset_gives_space_back_unless_the_image_keeps_it() {
        for (discard, kept) in [("unmap", false), ("ignore", true)] {
            let create = ["--size", "64M", "--zone-size", "1M"];
            let rig = Rig::new(&create, &["--discard", discard]);
            let mut f = Frontend::open(&rig.socket());
            let data = vec![7; 512 << 10];
            assert_eq!(f.queue().write(0, &data), status::OK);
            assert_eq!(f.queue().flush(), status::OK);
            let blocks = || fs::metadata(rig.image.path()).unwrap().blocks();
            let before = blocks();
            assert!(before >= 1024, "{before} sectors");
            assert_eq!(f.queue().simple(kind::ZONE_RESET, 0), status::OK);
            assert_eq!(f.queue().read_ok(0, 4096), [0; 4096]);
            assert_eq!(blocks() > 1024, kept, "{discard}: {} sectors", blocks());
        }
    }

    #[test]
    fn a_report_starts_in_any_sector_and_fits_its_buffer() {
        let (_rig, mut f) = small_rig();
        let all = f.queue().zones(ZONES);
        for sector in [0, 1, 511, 512, 513, 5 * ZONE + 77, 16 * ZONE - 1] {
            let first = (sector / ZONE) as usize;
            for room in [0, 1, 2, 5, ZONES, ZONES + 10] {
                let (status, zones) = f.queue().report(sector, room);
                assert_eq!(status, status::OK, "{room} at {sector}");
                let last = (first + room).min(ZONES);
                assert_eq!(zones, all[first..last], "{room} at {sector}");
            }
        }
        for len in [64, 65, 127, 128, 129, 191, 192, 1000] {
            let done = f.queue().call(&Request::report(0, len));
            assert_eq!(done.status(), status::OK, "{len} bytes");
            let fit = (len / REPORT_UNIT - 1).min(ZONES);
            assert_eq!(parse_report(done.data()), all[..fit], "{len} bytes");
            let end = REPORT_UNIT * (fit + 1);
            let rest = &done.data()[end..];
            assert!(
                rest.iter().all(|b| *b == POISON || *b == 0),
                "{len} bytes: something behind the last descriptor"
            );
        }
        for len in [0, 1, 8, 63] {
            let done = f.queue().call(&Request::report(0, len));
            assert_ne!(done.status(), status::OK, "{len} bytes hold no header");
        }
        for sector in [16 * ZONE, 16 * ZONE + 1, u64::MAX, 1 << 55] {
            let (status, _) = f.queue().report(sector, 1);
            assert_eq!(status, status::INVALID_CMD, "report at {sector}");
        }
    }

    #[test]
    fn a_report_may_be_scattered() {
        let (_rig, mut f) = small_rig();
        let all = f.queue().zones(ZONES);
        let len = REPORT_UNIT * (ZONES + 1);
        for cut in [
            Cut::Whole,
            Cut::Every(17),
            Cut::Every(64),
            Cut::At(vec![1, 63, 65, 100, 1087]),
        ] {
            for indirect in [false, true] {
                let layout = Layout {
                    readable: Cut::At(vec![5]),
                    writable: cut.clone(),
                    indirect,
                    skew: 0,
                };
                let done = f.queue().call_as(&Request::report(0, len), &layout);
                assert_eq!(done.status(), status::OK, "{layout:?}");
                assert_eq!(parse_report(done.data()), all, "{layout:?}");
            }
        }
    }

    /// Brings zone 4 into a state: 'e'mpty, 'i'mplicitly open, 'o'pen, open with 'd'ata, 'c'losed, 'f'ull.
    fn bring(q: &mut Queue, state: char) {
        let zone = 4 * ZONE;
        assert_eq!(q.simple(kind::ZONE_RESET, zone), status::OK);
        let steps: &[u32] = match state {
            'e' => &[],
            'i' => &[kind::ZONE_APPEND],
            'o' => &[kind::ZONE_OPEN],
            'd' => &[kind::ZONE_OPEN, kind::ZONE_APPEND],
            'c' => &[kind::ZONE_APPEND, kind::ZONE_CLOSE],
            'f' => &[kind::ZONE_APPEND, kind::ZONE_FINISH],
            other => panic!("state {other}"),
        };
        for step in steps {
            let status = match *step {
                kind::ZONE_APPEND => q.append(zone, &block(0x77), 9).0,
                command => q.simple(command, zone),
            };
            assert_eq!(status, status::OK, "on the way to {state}");
        }
    }

    #[test]
    fn every_transition_of_the_state_machine() {
        let (ok, invalid) = (status::OK, status::INVALID_CMD);
        let zone = 4 * ZONE;
        // From, command, status; state and sectors below the write pointer afterwards.
        let table: &[(char, u32, u8, u8, u64)] = &[
            ('e', kind::ZONE_RESET, ok, EMPTY, 0),
            ('e', kind::ZONE_OPEN, ok, EOPEN, 0),
            ('e', kind::ZONE_CLOSE, invalid, EMPTY, 0),
            ('e', kind::ZONE_FINISH, ok, FULL, ZONE),
            ('e', kind::ZONE_APPEND, ok, IOPEN, 8),
            ('e', kind::OUT, ok, IOPEN, 8),
            ('i', kind::ZONE_RESET, ok, EMPTY, 0),
            ('i', kind::ZONE_OPEN, ok, EOPEN, 8),
            ('i', kind::ZONE_CLOSE, ok, CLOSED, 8),
            ('i', kind::ZONE_FINISH, ok, FULL, ZONE),
            ('i', kind::ZONE_APPEND, ok, IOPEN, 16),
            ('i', kind::OUT, ok, IOPEN, 16),
            ('o', kind::ZONE_RESET, ok, EMPTY, 0),
            ('o', kind::ZONE_OPEN, ok, EOPEN, 0),
            ('o', kind::ZONE_CLOSE, ok, EMPTY, 0),
            ('o', kind::ZONE_FINISH, ok, FULL, ZONE),
            ('o', kind::ZONE_APPEND, ok, EOPEN, 8),
            ('o', kind::OUT, ok, EOPEN, 8),
            ('d', kind::ZONE_RESET, ok, EMPTY, 0),
            ('d', kind::ZONE_OPEN, ok, EOPEN, 8),
            ('d', kind::ZONE_CLOSE, ok, CLOSED, 8),
            ('d', kind::ZONE_FINISH, ok, FULL, ZONE),
            ('d', kind::ZONE_APPEND, ok, EOPEN, 16),
            ('d', kind::OUT, ok, EOPEN, 16),
            ('c', kind::ZONE_RESET, ok, EMPTY, 0),
            ('c', kind::ZONE_OPEN, ok, EOPEN, 8),
            ('c', kind::ZONE_CLOSE, ok, CLOSED, 8),
            ('c', kind::ZONE_FINISH, ok, FULL, ZONE),
            ('c', kind::ZONE_APPEND, ok, IOPEN, 16),
            ('c', kind::OUT, ok, IOPEN, 16),
            ('f', kind::ZONE_RESET, ok, EMPTY, 0),
            ('f', kind::ZONE_OPEN, invalid, FULL, ZONE),
            ('f', kind::ZONE_CLOSE, invalid, FULL, ZONE),
            ('f', kind::ZONE_FINISH, ok, FULL, ZONE),
            ('f', kind::ZONE_APPEND, invalid, FULL, ZONE),
            ('f', kind::OUT, invalid, FULL, ZONE),
        ];
        let (_rig, mut f) = small_rig();
        let q = f.queue();
        for (from, command, wanted, state, written) in table {
            bring(q, *from);
            // A full zone reports the next one's start; where it would go on is behind its only block.
            let wp = match from {
                'f' => zone + 8,
                _ => q.zone(zone).wp,
            };
            let got = match *command {
                kind::OUT => q.write(wp, &block(1)),
                kind::ZONE_APPEND => q.append(zone, &block(1), 16).0,
                command => q.simple(command, zone),
            };
            assert_eq!(got, *wanted, "{from}: command {command}");
            let after = q.zone(zone);
            assert_eq!(
                (after.state, after.wp - after.start),
                (*state, *written),
                "{from}: after command {command}"
            );
        }
    }

    #[test]
    fn a_write_of_the_rest_makes_a_zone_full() {
        let (_rig, mut f) = small_rig();
        let q = f.queue();
        let zone = 4 * ZONE;
        let whole = vec![5; ZONE_CAPACITY as usize * 512];
        for from in ['e', 'i', 'o', 'd', 'c'] {
            bring(q, from);
            let wp = q.zone(zone).wp;
            let rest = &whole[(wp - zone) as usize * 512..];
            assert_eq!(q.write(wp, rest), status::OK, "{from}");
            let after = q.zone(zone);
            assert_eq!((after.state, after.wp), (FULL, zone + ZONE), "{from}");
            assert!(q.read_ok(wp, rest.len()) == rest, "{from}");
            // The gap between capacity and size reads as unwritten and takes nothing.
            let gap = q.read_ok(zone + ZONE_CAPACITY, 65536);
            assert!(gap.iter().all(|b| *b == 0), "{from}");
            let status = q.write(zone + ZONE_CAPACITY, &block(1));
            assert_eq!(status, status::INVALID_CMD, "{from}");
        }
    }

    #[test]
    fn management_needs_the_start_of_a_sequential_zone() {
        let (_rig, mut f) = small_rig();
        let q = f.queue();
        assert_eq!(q.append(4 * ZONE, &block(1), 9).0, status::OK);
        let before = q.zones(ZONES);
        for command in [
            kind::ZONE_OPEN,
            kind::ZONE_CLOSE,
            kind::ZONE_FINISH,
            kind::ZONE_RESET,
        ] {
            for sector in [
                0,
                ZONE,
                4 * ZONE + 1,
                4 * ZONE + 8,
                5 * ZONE - 1,
                16 * ZONE,
                17 * ZONE,
                1 << 55,
                u64::MAX,
                u64::MAX - ZONE + 1,
            ] {
                let status = q.simple(command, sector);
                assert_eq!(status, status::INVALID_CMD, "{command} at {sector}");
            }
        }
        assert_eq!(q.zones(ZONES), before);
    }

    #[test]
    fn reset_all_spares_conventional_zones() {
        let (_rig, mut f) = small_rig();
        let q = f.queue();
        assert_eq!(q.write(8, &block(0x21)), status::OK);
        for (zone, from) in [(3, 'i'), (4, 'd'), (5, 'f'), (6, 'c')] {
            assert_eq!(q.append(zone * ZONE, &block(1), 9).0, status::OK);
            let steps: &[u32] = match from {
                'd' => &[kind::ZONE_OPEN],
                'f' => &[kind::ZONE_FINISH],
                'c' => &[kind::ZONE_CLOSE],
                _ => &[],
            };
            for step in steps {
                assert_eq!(q.simple(*step, zone * ZONE), status::OK);
            }
        }
        // The sector of this command means nothing.
        for sector in [0, 4 * ZONE, 77, u64::MAX] {
            assert_eq!(q.append(7 * ZONE, &block(1), 9).0, status::OK);
            assert_eq!(q.simple(kind::ZONE_RESET_ALL, sector), status::OK);
            for zone in &q.zones(ZONES)[2..] {
                assert_eq!((zone.state, zone.wp), (EMPTY, zone.start));
                let data = q.read_ok(zone.start, 4096);
                assert!(data.iter().all(|b| *b == 0), "zone at {}", zone.start);
            }
            assert!(q.read_ok(8, 4096) == block(0x21));
        }
    }

    fn states(q: &mut Queue) -> Vec<u8> {
        q.zones(ZONES)[2..].iter().map(|zone| zone.state).collect()
    }

    #[test]
    fn the_least_recently_written_zone_is_closed() {
        let (_rig, mut f) = small_rig();
        let q = f.queue();
        for zone in [2, 3, 4, 2] {
            assert_eq!(q.append(zone * ZONE, &block(1), 9).0, status::OK);
        }
        assert_eq!(q.append(5 * ZONE, &block(1), 9).0, status::OK);
        assert_eq!(states(q)[..4], [IOPEN, CLOSED, IOPEN, IOPEN]);
        // Opening explicitly takes a slot in the same way.
        assert_eq!(q.simple(kind::ZONE_OPEN, 6 * ZONE), status::OK);
        assert_eq!(states(q)[..5], [IOPEN, CLOSED, CLOSED, IOPEN, EOPEN]);
        // Back into a closed zone: it takes the slot of the oldest.
        assert_eq!(q.write(3 * ZONE + 8, &block(1)), status::OK);
        assert_eq!(states(q)[..5], [CLOSED, IOPEN, CLOSED, IOPEN, EOPEN]);
    }

    #[test]
    fn explicitly_opened_zones_hold_their_slots() {
        let (_rig, mut f) = small_rig();
        let q = f.queue();
        for zone in [2, 3, 4] {
            assert_eq!(q.simple(kind::ZONE_OPEN, zone * ZONE), status::OK);
        }
        let held = q.zones(ZONES);
        let zone = 5 * ZONE;
        assert_eq!(q.simple(kind::ZONE_OPEN, zone), status::OPEN_RESOURCE);
        assert_eq!(q.simple(kind::ZONE_FINISH, zone), status::OPEN_RESOURCE);
        assert_eq!(q.append(zone, &block(1), 9).0, status::OPEN_RESOURCE);
        assert_eq!(q.write(zone, &block(1)), status::OPEN_RESOURCE);
        assert_eq!(q.zones(ZONES), held);
        // Full zones hold none.
        assert_eq!(q.simple(kind::ZONE_FINISH, 2 * ZONE), status::OK);
        assert_eq!(q.append(zone, &block(1), 9).0, status::OK);
        assert_eq!(states(q)[..4], [FULL, EOPEN, EOPEN, IOPEN]);
    }

    #[test]
    fn active_zones_are_limited_too() {
        let (_rig, mut f) = small_rig();
        let q = f.queue();
        for zone in [2, 3, 4, 5, 6] {
            assert_eq!(q.append(zone * ZONE, &block(1), 9).0, status::OK);
        }
        let held = q.zones(ZONES);
        let zone = 7 * ZONE;
        assert_eq!(q.append(zone, &block(1), 9).0, status::ACTIVE_RESOURCE);
        assert_eq!(q.write(zone, &block(1)), status::ACTIVE_RESOURCE);
        assert_eq!(q.simple(kind::ZONE_OPEN, zone), status::ACTIVE_RESOURCE);
        assert_eq!(q.simple(kind::ZONE_FINISH, zone), status::ACTIVE_RESOURCE);
        assert_eq!(q.zones(ZONES), held);
        // Zones that are active already may be opened again: 2 and 3 were closed to make room.
        assert_eq!(q.write(2 * ZONE + 8, &block(1)), status::OK);
        assert_eq!(q.simple(kind::ZONE_RESET, 3 * ZONE), status::OK);
        assert_eq!(q.append(zone, &block(1), 9).0, status::OK);
    }

    #[test]
    fn where_both_limits_are_reached_the_active_one_is_named() {
        let create = [
            "--size",
            "4M",
            "--zone-size",
            "256K",
            "--max-open",
            "2",
            "--max-active",
            "2",
        ];
        let rig = Rig::new(&create, &[]);
        let mut f = Frontend::open(&rig.socket());
        let q = f.queue();
        for zone in [0, 1] {
            assert_eq!(q.simple(kind::ZONE_OPEN, zone * ZONE), status::OK);
        }
        let zone = 2 * ZONE;
        assert_eq!(q.simple(kind::ZONE_OPEN, zone), status::ACTIVE_RESOURCE);
        assert_eq!(q.append(zone, &block(1), 9).0, status::ACTIVE_RESOURCE);
    }

    #[test]
    fn a_disk_without_limits_opens_every_zone() {
        let rig = Rig::new(
            &[
                "--size",
                "8M",
                "--zone-size",
                "256K",
                "--max-open",
                "0",
                "--max-active",
                "0",
            ],
            &[],
        );
        let mut f = Frontend::open(&rig.socket());
        let config = f.config();
        assert_eq!(config.zoned()[1..3], [0, 0]);
        for zone in 0..32 {
            let status = f.queue().simple(kind::ZONE_OPEN, zone * ZONE);
            assert_eq!(status, status::OK, "zone {zone}");
        }
    }

    #[test]
    fn writes_go_to_the_write_pointer() {
        let (_rig, mut f) = small_rig();
        let q = f.queue();
        let zone = 4 * ZONE;
        assert_eq!(q.write(zone, &block(1)), status::OK);
        let before = q.zone(zone);
        for (sector, bytes, wanted) in [
            (zone, 4096, status::UNALIGNED_WP),
            (zone + 16, 4096, status::UNALIGNED_WP),
            (zone + 7, 4096, status::UNALIGNED_WP),
            (zone + 9, 4096, status::UNALIGNED_WP),
            (zone + 8, 512, status::UNALIGNED_WP),
            (zone + 8, 4096 + 512, status::UNALIGNED_WP),
            (zone + 8, 0, status::IOERR),
            (zone + 8, 100, status::IOERR),
            (zone + 8, 192 << 10, status::INVALID_CMD),
            (zone + 8, 256 << 10, status::INVALID_CMD),
            (16 * ZONE, 4096, status::IOERR),
            (16 * ZONE - 8, 8192, status::IOERR),
            (u64::MAX, 4096, status::IOERR),
        ] {
            let status = q.write(sector, &vec![2; bytes]);
            assert_eq!(status, wanted, "{bytes} bytes at {sector}");
        }
        // From a conventional zone into a sequential one.
        let status = q.write(2 * ZONE - 8, &[3; 8192]);
        assert_eq!(status, status::INVALID_CMD);
        assert_eq!(q.zone(2 * ZONE).state, EMPTY);
        assert_eq!(q.zone(zone), before);
        assert!(q.read_ok(zone, 4096) == block(1));
        // From one conventional zone into the next is an ordinary write.
        assert_eq!(q.write(ZONE - 8, &[3; 8192]), status::OK);
        assert!(q.read_ok(ZONE - 8, 8192) == [3; 8192]);
    }

    #[test]
    fn reads_see_data_and_zeroes() {
        let (_rig, mut f) = small_rig();
        let q = f.queue();
        let zone = 4 * ZONE;
        let data = Rng::new(1).bytes(12288);
        assert_eq!(q.append(zone, &data, 16).0, status::OK);
        let whole = q.read_ok(zone, ZONE as usize * 512);
        assert!(whole[..12288] == data);
        assert!(whole[12288..].iter().all(|b| *b == 0));
        // Block by block, across the write pointer.
        for sector in (0..80).step_by(8) {
            for count in [1, 3, 8] {
                let got = q.read_ok(zone + sector, count * 4096);
                let at = sector as usize * 512;
                assert!(got == whole[at..at + got.len()], "{count} at {sector}");
            }
        }
        for (sector, sectors, wanted) in [
            (5 * ZONE - 8, 16, status::INVALID_CMD),
            (2 * ZONE - 8, 16, status::INVALID_CMD),
            (4 * ZONE, 2 * ZONE, status::INVALID_CMD),
            (ZONE - 8, 16, status::OK),
            (16 * ZONE - 8, 8, status::OK),
            (16 * ZONE - 8, 16, status::IOERR),
            (16 * ZONE, 8, status::IOERR),
        ] {
            let (status, _) = q.read(sector, sectors as usize * 512);
            assert_eq!(status, wanted, "{sectors} sectors at {sector}");
        }
        assert_eq!(q.simple(kind::ZONE_RESET, zone), status::OK);
        assert_eq!(q.append(zone, &block(9), 16).0, status::OK);
        let whole = q.read_ok(zone, ZONE as usize * 512);
        assert!(whole[..4096] == block(9));
        assert!(
            whole[4096..].iter().all(|b| *b == 0),
            "data of before the reset"
        );
    }

    #[test]
    fn finish_leaves_the_rest_unwritten() {
        let (_rig, mut f) = small_rig();
        let q = f.queue();
        let zone = 4 * ZONE;
        assert_eq!(q.append(zone, &block(3), 16).0, status::OK);
        assert_eq!(q.simple(kind::ZONE_FINISH, zone), status::OK);
        let whole = q.read_ok(zone, ZONE as usize * 512);
        assert!(whole[..4096] == block(3));
        assert!(whole[4096..].iter().all(|b| *b == 0));
    }

    #[test]
    fn writes_in_flight_follow_the_ring() {
        let (_rig, mut f) = small_rig();
        let q = f.queue();
        for zone in 2..12 {
            let start = zone * ZONE;
            let writes: Vec<Request> = (0..ZONE_CAPACITY / 8)
                .map(|i| Request::write(start + i * 8, &block((i * zone) as u8)))
                .collect();
            for done in q.batch(&writes, &Layout::indirect()).unwrap() {
                assert_eq!(done.status(), status::OK, "zone {zone}");
            }
            assert_eq!(q.zone(start).state, FULL);
            for i in 0..ZONE_CAPACITY / 8 {
                assert!(q.read_ok(start + i * 8, 4096) == block((i * zone) as u8));
            }
        }
    }

    #[test]
    fn queues_share_the_limits() {
        let (_rig, mut f) = small_rig();
        let statuses: Vec<u8> = std::thread::scope(|scope| {
            let workers: Vec<_> = f
                .queues
                .iter_mut()
                .map(|queue| {
                    scope.spawn(move || {
                        let mut got = Vec::new();
                        for zone in 2..14 {
                            got.push(queue.append(zone * ZONE, &block(1), 9).0);
                            got.push(queue.simple(kind::ZONE_OPEN, zone * ZONE));
                        }
                        got
                    })
                })
                .collect();
            workers
                .into_iter()
                .flat_map(|worker| worker.join().unwrap())
                .collect()
        });
        let known = [status::OK, status::OPEN_RESOURCE, status::ACTIVE_RESOURCE];
        assert!(statuses.iter().all(|s| known.contains(s)), "{statuses:?}");
        let zones = f.queue().zones(ZONES);
        let count = |states: &[u8]| zones.iter().filter(|z| states.contains(&z.state)).count();
        // Zones opened by command stay open, so the slots fill up and stay full.
        assert_eq!(count(&[EOPEN]), 3, "{zones:?}");
        assert_eq!(count(&[IOPEN]), 0, "{zones:?}");
        assert!(count(&[CLOSED]) <= 2, "{zones:?}");
    }

    #[test]
    fn small_blocks_work_alike() {
        let create = [&SMALL[..], &["--block-size", "512"]].concat();
        let rig = Rig::new(&create, &[]);
        let mut f = Frontend::open(&rig.socket());
        let q = f.queue();
        let zone = 4 * ZONE;
        for i in 0..ZONE_CAPACITY {
            let (status, sector) = q.append(zone, &[i as u8; 512], 9);
            assert_eq!((status, sector), (status::OK, zone + i));
        }
        assert_eq!(q.zone(zone).state, FULL);
        let whole = q.read_ok(zone, ZONE_CAPACITY as usize * 512);
        for (i, sector) in whole.chunks(512).enumerate() {
            assert!(sector.iter().all(|b| *b == i as u8), "sector {i}");
            assert!(q.read_ok(zone + i as u64, 512) == sector, "sector {i}");
        }
    }

    #[test]
    fn a_read_only_disk_keeps_its_zones() {
        let (mut rig, mut f) = small_rig();
        let zone = 4 * ZONE;
        assert_eq!(f.queue().append(zone, &block(4), 9).0, status::OK);
        assert_eq!(f.queue().write(0, &block(5)), status::OK);
        drop(f);
        rig.restart_with(&["--read-only"]);
        let mut f = Frontend::open(&rig.socket());
        let q = f.queue();
        let before = q.zones(ZONES);
        assert_eq!((before[4].state, before[4].wp), (CLOSED, zone + 8));
        for command in [
            kind::ZONE_OPEN,
            kind::ZONE_CLOSE,
            kind::ZONE_FINISH,
            kind::ZONE_RESET,
            kind::ZONE_RESET_ALL,
        ] {
            assert_eq!(q.simple(command, zone), status::IOERR, "{command}");
        }
        assert_eq!(q.append(zone, &block(1), 16).0, status::IOERR);
        assert_eq!(q.write(zone + 8, &block(1)), status::IOERR);
        assert_eq!(q.write(0, &block(1)), status::IOERR);
        assert_eq!(q.zones(ZONES), before);
        assert!(q.read_ok(zone, 4096) == block(4));
        assert!(q.read_ok(0, 4096) == block(5));
    }

    #[test]
    fn states_survive_the_end_of_the_daemon() {
        for clean in [true, false] {
            let (mut rig, mut f) = small_rig();
            let q = f.queue();
            // 2 implicitly open, 3 open without data, 4 closed, 5 full, 6 finished early, 7 open with data.
            let whole = vec![8; ZONE_CAPACITY as usize * 512];
            assert_eq!(q.write(5 * ZONE, &whole), status::OK);
            assert_eq!(q.append(6 * ZONE, &block(6), 9).0, status::OK);
            assert_eq!(q.simple(kind::ZONE_FINISH, 6 * ZONE), status::OK);
            assert_eq!(q.append(4 * ZONE, &block(4), 9).0, status::OK);
            assert_eq!(q.simple(kind::ZONE_CLOSE, 4 * ZONE), status::OK);
            assert_eq!(q.simple(kind::ZONE_OPEN, 3 * ZONE), status::OK);
            assert_eq!(q.append(7 * ZONE, &block(7), 9).0, status::OK);
            assert_eq!(q.simple(kind::ZONE_OPEN, 7 * ZONE), status::OK);
            assert_eq!(q.append(2 * ZONE, &block(2), 9).0, status::OK);
            let mut wanted = q.zones(ZONES);
            drop(f);
            if clean {
                rig.restart();
                for (zone, state) in [(2, CLOSED), (3, EMPTY), (7, CLOSED)] {
                    wanted[zone].state = state;
                }
            } else {
                rig.crash();
            }
            let mut f = Frontend::open(&rig.socket());
            let q = f.queue();
            assert_eq!(q.zones(ZONES), wanted, "clean: {clean}");
            assert!(q.read_ok(5 * ZONE, whole.len()) == whole);
            for zone in [2, 4, 6, 7] {
                assert!(q.read_ok(zone * ZONE, 4096) == block(zone as u8));
            }
            assert_eq!(
                q.append(2 * ZONE, &block(9), 16),
                (status::OK, 2 * ZONE + 8)
            );
        }
    }

    #[test]
    fn zones_work_without_event_idx_and_indirect() {
        let rig = Rig::new(&SMALL, &[]);
        let dropped = feature::EVENT_IDX | feature::INDIRECT_DESC;
        let mut f = Frontend::open_with(&rig.socket(), Options::without(dropped));
        let appends: Vec<Request> = (0..40)
            .map(|i| Request::append(4 * ZONE, &block(i), 16))
            .collect();
        let done = f.queue().batch(&appends, &Layout::default()).unwrap();
        assert!(done.iter().all(|d| d.status() == status::OK));
        assert_eq!(f.queue().zone(4 * ZONE).wp, 4 * ZONE + 320);
    }
}
