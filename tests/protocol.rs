//! The vhost-user side of the daemon: negotiation, configuration space, sessions, queues' life, the process itself.

#[cfg(test)]
pub mod common;

#[cfg(test)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "sizes of tests fit every integer they meet"
)]
mod tests {
    use std::time::Duration;

    use vhost::VhostBackend;
    use vhost::vhost_user::message::{
        FrontendReq, VhostUserConfigFlags, VhostUserProtocolFeatures,
    };
    use vhost::vhost_user::{Frontend as CrateFrontend, VhostUserFrontend};

    use crate::common::daemon::{Daemon, Image, Rig};
    use crate::common::frontend::{Frontend, Options, feature};
    use crate::common::inflight::Inflight;
    use crate::common::queue::QueueError;
    use crate::common::request::{CONFIG_SIZE, Cut, Layout, Request, kind, status};
    use crate::common::wire::{Wire, WireError, longs};

    const ZONED: [&str; 10] = [
        "--size",
        "16M",
        "--zone-size",
        "1M",
        "--zone-capacity",
        "768K",
        "--max-open",
        "4",
        "--max-active",
        "6",
    ];
    const PLAIN: [&str; 3] = ["--size", "16M", "--plain"];

    /// What every disk offers; vhost-user's own bit with it.
    const ALWAYS: u64 = feature::SEG_MAX
        | feature::BLK_SIZE
        | feature::FLUSH
        | feature::TOPOLOGY
        | feature::CONFIG_WCE
        | feature::MQ
        | feature::INDIRECT_DESC
        | feature::EVENT_IDX
        | feature::PROTOCOL_FEATURES
        | feature::VERSION_1;

    #[test]
    fn a_zoned_disk_offers_what_it_implements() {
        let rig = Rig::new(&ZONED, &[]);
        let f = Frontend::open(&rig.socket());
        assert_eq!(f.offered, ALWAYS | feature::ZONED, "{:#x}", f.offered);
        for wanted in [
            VhostUserProtocolFeatures::MQ,
            VhostUserProtocolFeatures::CONFIG,
            VhostUserProtocolFeatures::REPLY_ACK,
        ] {
            assert!(f.protocol_offered.contains(wanted), "{wanted:?}");
        }
    }

    #[test]
    fn a_plain_disk_offers_discard_and_no_zones() {
        let rig = Rig::new(&PLAIN, &[]);
        let mut f = Frontend::open(&rig.socket());
        let wanted = ALWAYS | feature::DISCARD | feature::WRITE_ZEROES;
        assert_eq!(f.offered, wanted, "{:#x}", f.offered);
        let config = f.config();
        assert_eq!(config.capacity(), (16 << 20) / 512);
        assert!(config.0[72..].iter().all(|b| *b == 0), "zoned fields");
        let [sectors, segments, _] = config.discard();
        assert!(sectors > 0 && segments > 0, "discard limits");
        let [sectors, segments] = config.write_zeroes();
        assert!(sectors > 0 && segments > 0, "write zeroes limits");
    }

    #[test]
    fn read_only_is_offered_when_asked_for() {
        for create in [&ZONED[..], &PLAIN[..]] {
            let rig = Rig::new(create, &["--read-only"]);
            let f = Frontend::open(&rig.socket());
            assert_ne!(f.offered & feature::RO, 0, "{:#x}", f.offered);
            assert_eq!(f.offered & ALWAYS, ALWAYS, "{:#x}", f.offered);
        }
    }

    #[test]
    fn the_configuration_says_the_geometry() {
        let create = [&ZONED[..], &["--max-append", "64K"]].concat();
        let rig = Rig::new(&create, &["--queues", "3"]);
        let mut f = Frontend::negotiate(&rig.socket(), Options::default()).unwrap();
        let before = f.config();
        f.set_features().unwrap();
        let config = f.config();
        assert_eq!(before, config, "readable before the features are chosen");
        assert_eq!(config.capacity(), (16 << 20) / 512);
        assert_eq!(config.block_size(), 4096);
        assert_eq!(config.num_queues(), 3);
        assert_eq!(f.queue_num().unwrap(), 3);
        assert!(config.seg_max() >= 254, "seg_max {}", config.seg_max());
        assert_eq!(config.zoned(), [2048, 4, 6, 128, 4096]);
        assert_eq!(config.model(), 1, "host-managed");
        assert_eq!(config.0[33], 0, "unused0");
        assert_eq!(config.0[57..60], [0; 3], "unused1");
        assert_eq!(config.0[93..96], [0; 3], "unused2");
    }

    #[test]
    fn small_blocks_are_reported_as_such() {
        let create = [&ZONED[..], &["--block-size", "512"]].concat();
        let rig = Rig::new(&create, &[]);
        let config = Frontend::open(&rig.socket()).config();
        assert_eq!(config.block_size(), 512);
        assert_eq!(config.zoned()[4], 512, "write granularity");
    }

    #[test]
    fn every_piece_of_the_configuration_can_be_read() {
        let rig = Rig::new(&ZONED, &[]);
        let mut f = Frontend::open(&rig.socket());
        let whole = f.config().0;
        for offset in 0..CONFIG_SIZE {
            for size in 1..=CONFIG_SIZE - offset {
                let got = f.get_config(offset as u32, size as u32).unwrap();
                assert_eq!(got, whole[offset..offset + size], "{offset}+{size}");
            }
        }
        // Front-ends may ask for all 256 bytes that the transport allows; what has no field is zero.
        for offset in (0..256).step_by(7) {
            let got = f.get_config(offset, 256 - offset).unwrap();
            for (i, byte) in got.iter().enumerate() {
                let at = offset as usize + i;
                assert_eq!(*byte, whole.get(at).copied().unwrap_or(0), "byte {at}");
            }
        }
        f.queue().assert_alive();
    }

    #[test]
    fn the_write_cache_can_be_switched() {
        let rig = Rig::new(&ZONED, &[]);
        let mut f = Frontend::open(&rig.socket());
        for mode in [0_u8, 1, 0] {
            f.set_config(32, &[mode]).unwrap();
            assert_eq!(f.config().writeback(), mode);
            assert_eq!(f.queue().append(0, &[mode; 4096], 9).0, status::OK);
            assert_eq!(f.queue().flush(), status::OK);
        }
    }

    #[test]
    fn the_write_cache_stays_off_when_the_daemon_dies() {
        let mut rig = Rig::new(&ZONED, &[]);
        let mut f = Frontend::open_with(&rig.socket(), tracking());
        assert_eq!(f.config().writeback(), 1);
        for off in [true, false] {
            f.set_config(32, &[u8::from(!off)]).unwrap();
            rig.crash();
            f.reconnect().unwrap();
            assert_eq!(f.config().writeback(), u8::from(!off));
            f.queue().assert_alive();
        }
    }

    fn tracking() -> Options {
        let mut options = Options::default();
        options.protocol |= VhostUserProtocolFeatures::INFLIGHT_SHMFD;
        options
    }

    #[test]
    fn requests_in_flight_are_kept_for_no_more_than_the_device_has() {
        let rig = Rig::new(&ZONED, &["--queues", "2", "--queue-size", "64"]);
        let options = Options {
            queue_size: 64,
            ..tracking()
        };
        for [queues, size] in [[3, 64], [2, 65], [0, 64], [2, 0], [u16::MAX; 2]] {
            let mut f = Frontend::negotiate(&rig.socket(), options.clone()).unwrap();
            assert!(
                f.protocol
                    .contains(VhostUserProtocolFeatures::INFLIGHT_SHMFD)
            );
            let none = Inflight::get(&mut f.wire, queues, size);
            assert!(
                matches!(none, Err(WireError::Closed)),
                "{queues} of {size}: {none:?}"
            );
        }
        // The ring must fit into what is kept of it.
        let mut f = Frontend::open_with(&rig.socket(), options);
        f.queue().assert_alive();
        let small = Inflight::get(&mut f.wire, 1, 16).unwrap();
        let busy = small.set(&mut f.wire);
        assert!(
            matches!(busy, Err(WireError::Refused(_))),
            "while a queue runs: {busy:?}"
        );
        f.stop_queue(0).unwrap();
        small.set(&mut f.wire).unwrap();
        f.start_queue(0).unwrap();
        let read = Request::read(0, 4096);
        let stopped = f.queue().try_call(&read, &Layout::default());
        assert_eq!(stopped.unwrap_err(), QueueError::Stopped);
        // Another one, and the queue goes on.
        f.stop_queue(0).unwrap();
        let whole = Inflight::get(&mut f.wire, 2, 64).unwrap();
        whole.set(&mut f.wire).unwrap();
        f.queue().events()[2].read().unwrap();
        f.start_queue(0).unwrap();
        let done = f.queue().reap(Duration::from_secs(10)).unwrap();
        assert_eq!(done.status(), status::OK);
    }

    #[test]
    fn without_flush_the_cache_starts_as_writethrough() {
        let rig = Rig::new(&ZONED, &[]);
        let mut f = Frontend::open_with(&rig.socket(), Options::without(feature::FLUSH));
        assert_eq!(f.config().writeback(), 0);
    }

    #[test]
    fn nothing_but_the_cache_switch_can_be_written() {
        let rig = Rig::new(&ZONED, &[]);
        let mut f = Frontend::open(&rig.socket());
        let before = f.config();
        for offset in (0..CONFIG_SIZE as u32).filter(|at| *at != 32) {
            match f.set_config(offset, &[0xff]) {
                // Refusing aloud or in silence is both within the protocol.
                Ok(()) => {}
                Err(WireError::Refused(_) | WireError::Closed) => {
                    f = Frontend::open(&rig.socket());
                }
                Err(err) => panic!("set_config at {offset}: {err}"),
            }
        }
        assert_eq!(f.config(), before);
        f.queue().assert_alive();
    }

    #[test]
    fn sessions_follow_each_other() {
        let mut rig = Rig::new(&ZONED, &[]);
        for round in 0..10_u8 {
            let mut f = Frontend::open(&rig.socket());
            assert_eq!(f.queue().append(0, &[round; 4096], 16).0, status::OK);
            for seen in 0..=round {
                let data = f.queue().read_ok(u64::from(seen) * 8, 4096);
                assert!(data == [seen; 4096], "round {round}");
            }
            // Some front-ends say goodbye.
            if round % 2 == 0 {
                f.stop_queue(0).unwrap();
            }
        }
        assert!(rig.daemon.as_mut().unwrap().is_running());
    }

    #[test]
    fn a_front_end_may_vanish_with_requests_in_flight() {
        let rig = Rig::new(&ZONED, &["--queues", "2"]);
        for _ in 0..5 {
            let mut f = Frontend::open_with(&rig.socket(), Options::queues(2));
            for queue in &mut f.queues {
                for _ in 0..20 {
                    let zone = u64::from(queue.index) * 2048;
                    let append = Request::append(zone, &[7; 4096], 16);
                    queue.submit(&append, &Layout::default()).unwrap();
                    let read = Request::read(0, 65536);
                    queue.submit(&read, &Layout::default()).unwrap();
                }
                queue.kick();
            }
        }
        let mut f = Frontend::open(&rig.socket());
        let zone = f.queue().zone(0);
        for block in (0..zone.wp).step_by(8) {
            assert!(f.queue().read_ok(block, 4096) == [7; 4096]);
        }
    }

    #[test]
    fn rings_go_on_where_they_stood() {
        let rig = Rig::new(&ZONED, &[]);
        let mut f = Frontend::open(&rig.socket());
        for round in 0..5_u8 {
            assert_eq!(f.queue().append(0, &[round; 4096], 16).0, status::OK);
            let base = f.stop_queue(0).unwrap();
            assert_eq!(base, f.queue().ring.next_avail(), "round {round}");
            if round % 2 == 0 {
                f.start_queue(0).unwrap();
            } else {
                f.reconnect().unwrap();
            }
            f.queue().assert_alive();
        }
    }

    #[test]
    fn stopping_a_queue_drains_it() {
        let rig = Rig::new(&ZONED, &[]);
        let mut f = Frontend::open(&rig.socket());
        let append = Request::append(0, &[1; 8192], 16);
        for round in 0..8 {
            for _ in 0..8 {
                f.queue().submit(&append, &Layout::default()).unwrap();
            }
            f.queue().kick();
            let base = f.stop_queue(0).unwrap();
            let used = f.queue().ring.used_index();
            assert_eq!(base, used, "round {round}: what was taken was answered");
            std::thread::sleep(Duration::from_millis(5));
            assert_eq!(f.queue().ring.used_index(), used, "silence after the stop");
            // The rest, if any, is taken up again from the base.
            while f.queue().poll().unwrap().is_some() {}
            f.start_queue(0).unwrap();
            f.queue().force_kick();
            while f.queue().in_flight() > 0 {
                let done = f.queue().reap(Duration::from_secs(10)).unwrap();
                assert_eq!(done.status(), status::OK);
            }
        }
        assert_eq!(f.queue().zone(0).wp, 8 * 8 * 16);
    }

    #[test]
    fn a_disabled_queue_waits() {
        let rig = Rig::new(&ZONED, &[]);
        let mut f = Frontend::open(&rig.socket());
        f.enable_queue(0, false).unwrap();
        let ticket = f
            .queue()
            .submit(&Request::read(0, 4096), &Layout::default())
            .unwrap();
        f.queue().force_kick();
        let early = f.queue().reap(Duration::from_millis(100));
        assert_eq!(early.unwrap_err(), QueueError::TimedOut);
        f.enable_queue(0, true).unwrap();
        let done = f.queue().wait(ticket, Duration::from_secs(10)).unwrap();
        assert_eq!(done.status(), status::OK);
    }

    #[test]
    fn any_subset_of_the_features_works() {
        let rig = Rig::new(&ZONED, &[]);
        let mut at = 0;
        for dropped in [
            0,
            feature::EVENT_IDX,
            feature::INDIRECT_DESC,
            feature::EVENT_IDX | feature::INDIRECT_DESC,
            feature::FLUSH | feature::CONFIG_WCE,
            feature::MQ,
            feature::SEG_MAX | feature::BLK_SIZE | feature::TOPOLOGY,
            ALWAYS & !feature::VERSION_1 & !feature::PROTOCOL_FEATURES,
            feature::PROTOCOL_FEATURES,
        ] {
            for slots in [false, true] {
                if slots && dropped == feature::PROTOCOL_FEATURES {
                    continue;
                }
                let options = Options {
                    memory_slots: slots,
                    ..Options::without(dropped)
                };
                let mut f = Frontend::open_with(&rig.socket(), options);
                let (status, sector) = f.queue().append(0, &[9; 4096], 16);
                assert_eq!((status, sector), (status::OK, at), "without {dropped:#x}");
                at += 8;
                assert!(f.queue().read_ok(sector, 4096) == [9; 4096]);
            }
        }
    }

    #[test]
    fn acknowledgements_are_optional() {
        let rig = Rig::new(&ZONED, &[]);
        let options = Options {
            protocol: VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::CONFIG,
            ..Options::default()
        };
        let mut f = Frontend::open_with(&rig.socket(), options);
        f.sync().unwrap();
        f.queue().assert_alive();
        assert_eq!(f.config().num_queues(), 1);
    }

    #[test]
    fn a_bit_that_was_not_offered_is_not_taken() {
        let rig = Rig::new(&ZONED, &[]);
        for bit in [feature::LIFETIME, feature::SECURE_ERASE, 1 << 18, 1 << 34] {
            let mut f = Frontend::negotiate(&rig.socket(), Options::default()).unwrap();
            f.features |= bit;
            let refused = f.set_features();
            assert!(
                matches!(refused, Err(WireError::Refused(_) | WireError::Closed)),
                "{bit:#x}: {refused:?}"
            );
        }
        Frontend::open(&rig.socket()).queue().assert_alive();
    }

    #[test]
    fn queues_are_as_many_as_asked_for() {
        for count in [1_u16, 2, 16] {
            let rig = Rig::new(&ZONED, &["--queues", &count.to_string()]);
            let mut f = Frontend::open_with(&rig.socket(), Options::queues(count));
            assert_eq!(f.queue_num().unwrap(), u64::from(count));
            for queue in &mut f.queues {
                queue.assert_alive();
            }
        }
        let image = Image::create(&ZONED);
        for count in ["0", "17"] {
            let mut daemon = Daemon::spawn(&image, "sock", &["--queues", count]);
            assert!(!daemon.wait_exit().success(), "{count} queues");
        }
    }

    #[test]
    fn ring_sizes_from_one_to_the_maximum() {
        let rig = Rig::new(&ZONED, &["--queue-size", "256"]);
        for queue_size in [2_u16, 4, 16, 256] {
            let options = Options {
                queue_size,
                ..Options::default()
            };
            let mut f = Frontend::open_with(&rig.socket(), options);
            for _ in 0..2 * queue_size {
                // An indirect table may not be longer than the ring either: two buffers do.
                let layout = Layout {
                    writable: Cut::Whole,
                    indirect: true,
                    ..Layout::default()
                };
                let done = f.queue().call_as(&Request::read(0, 4096), &layout);
                assert_eq!(done.status(), status::OK);
            }
        }
    }

    #[test]
    fn a_second_opener_is_refused() {
        let mut rig = Rig::new(&ZONED, &[]);
        let mut f = Frontend::open(&rig.socket());
        for options in [&[][..], &["--read-only"]] {
            let mut second = Daemon::spawn(&rig.image, "other", options);
            let status = second.wait_exit();
            assert!(!status.success(), "{options:?}");
            let log = second.log();
            let said = log.to_lowercase();
            assert!(
                ["use", "lock", "open"].iter().any(|w| said.contains(w)),
                "no reason in: {log}"
            );
        }
        f.queue().assert_alive();
        drop(f);
        rig.restart();
    }

    #[test]
    fn a_second_front_end_does_not_disturb_the_first() {
        let rig = Rig::new(&ZONED, &[]);
        let mut f = Frontend::open(&rig.socket());
        let second = Wire::connect(&rig.socket());
        for _ in 0..20 {
            assert_eq!(f.queue().append(0, &[1; 4096], 9).0, status::OK);
        }
        drop(second);
        f.queue().assert_alive();
        drop(f);
        Frontend::open(&rig.socket()).queue().assert_alive();
    }

    #[test]
    fn a_host_managed_disk_needs_a_front_end_that_takes_zones() {
        let rig = Rig::new(&[&ZONED[..], &["--conventional", "1"]].concat(), &[]);
        let mut f = Frontend::open(&rig.socket());
        assert_eq!(f.queue().write(0, &[0x5a; 4096]), status::OK);
        drop(f);

        match Frontend::start(&rig.socket(), Options::without(feature::ZONED)) {
            // Refusing the features is the front door, answering no request the back door; both keep the promise.
            Err(WireError::Refused(_) | WireError::Closed) => {}
            Err(err) => panic!("{err}"),
            Ok(mut f) => {
                let (status, data) = f.queue().read(0, 4096);
                assert_ne!(status, status::OK, "read");
                assert!(!data.contains(&0x5a), "data came back");
                assert_ne!(f.queue().write(0, &[1; 4096]), status::OK, "write");
                let append = Request::append(0, &[1; 4096], 16);
                let report = Request::report(0, 4096);
                for data_request in [append, report] {
                    let status = f.queue().call(&data_request).status();
                    assert_eq!(status, status::UNSUPP, "append, report");
                }
                for zone_request in [
                    kind::ZONE_OPEN,
                    kind::ZONE_CLOSE,
                    kind::ZONE_FINISH,
                    kind::ZONE_RESET,
                    kind::ZONE_RESET_ALL,
                ] {
                    let status = f.queue().simple(zone_request, 0);
                    assert_eq!(status, status::UNSUPP, "type {zone_request}");
                }
            }
        }
        let log = rig.log();
        let line = log
            .lines()
            .find(|line| line.contains("--plain"))
            .unwrap_or_else(|| panic!("no line names --plain:\n{log}"));
        assert!(
            line.contains("QEMU") || line.contains("crosvm") || line.contains("vhost-user-test"),
            "no line names a front-end that takes zones: {line}"
        );

        let mut f = Frontend::open(&rig.socket());
        assert!(f.queue().read_ok(0, 4096) == [0x5a; 4096]);
    }

    #[test]
    fn sigterm_ends_it_cleanly() {
        for requests in [0, 40] {
            let mut rig = Rig::new(&ZONED, &[]);
            let mut f = Frontend::open(&rig.socket());
            assert_eq!(f.queue().append(0, &[3; 4096], 9).0, status::OK);
            for _ in 0..requests {
                let append = Request::append(0, &[3; 4096], 9);
                f.queue().submit(&append, &Layout::default()).unwrap();
            }
            f.queue().kick();
            rig.daemon.take().unwrap().stop();
            rig.start();
            let mut f = Frontend::open(&rig.socket());
            let zone = f.queue().zone(0);
            assert_eq!(zone.state, 4, "closed by the clean stop");
            assert!(zone.wp >= 8 && zone.wp <= 8 * (requests + 1), "{zone:?}");
            assert!(f.queue().read_ok(zone.wp - 8, 4096) == [3; 4096]);
        }
    }

    #[test]
    fn sigterm_ends_it_without_a_front_end() {
        let rig = Rig::new(&ZONED, &[]);
        let socket = rig.socket();
        rig.daemon.unwrap().stop();
        assert!(!socket.exists(), "the socket went with the daemon");
    }

    #[test]
    fn a_silent_connection_does_not_hinder_the_end() {
        let mut rig = Rig::new(&ZONED, &[]);
        let mut wire = Wire::connect(&rig.socket()).unwrap();
        wire.send_bytes(&longs(&[1])[..5], &[]).unwrap();
        rig.daemon.take().unwrap().stop();
        wire.wait_closed().unwrap();
    }

    #[test]
    fn memory_may_change_between_requests() {
        let rig = Rig::new(&ZONED, &[]);
        let options = Options {
            memory_slots: true,
            ..Options::default()
        };
        let mut f = Frontend::open_with(&rig.socket(), options);
        assert!(f.max_mem_slots().unwrap() >= 8);
        f.queue().assert_alive();
        // The rings and small buffers lie in the first region; the second may come and go.
        f.remove_region(1).unwrap();
        f.queue().assert_alive();
        f.stop_queue(0).unwrap();
        f.remove_region(0).unwrap();
        f.set_memory().unwrap();
        f.start_queue(0).unwrap();
        f.queue().assert_alive();
    }

    #[test]
    fn the_stock_front_end_of_crate_vhost_negotiates() {
        let rig = Rig::new(&ZONED, &["--queues", "2"]);
        let socket = rig.socket();
        let (done, finished) = std::sync::mpsc::channel();
        // That front-end waits for ever, so it gets a thread that the test can give up on.
        std::thread::spawn(move || {
            let mut f = CrateFrontend::connect(&socket, 2).unwrap();
            f.set_owner().unwrap();
            let offered = f.get_features().unwrap();
            f.set_features(offered).unwrap();
            let protocol = f.get_protocol_features().unwrap();
            f.set_protocol_features(
                protocol & (VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::CONFIG),
            )
            .unwrap();
            let queues = f.get_queue_num().unwrap();
            let (_, config) = f
                .get_config(0, 96, VhostUserConfigFlags::empty(), &[0; 96])
                .unwrap();
            done.send((offered, queues, config)).unwrap();
        });
        let (offered, queues, config) = finished.recv_timeout(Duration::from_secs(20)).unwrap();
        assert_ne!(offered & feature::ZONED, 0);
        assert_eq!((queues, config[92]), (2, 1));
    }

    #[test]
    fn a_message_of_nonsense_ends_the_session_only() {
        let rig = Rig::new(&ZONED, &[]);
        for (request, body) in [
            (0, vec![]),
            (999, vec![]),
            (FrontendReq::SET_VRING_NUM as u32, vec![1, 2, 3]),
            (FrontendReq::SET_MEM_TABLE as u32, vec![0xff; 64]),
            (FrontendReq::GET_CONFIG as u32, vec![0xff; 12]),
        ] {
            let mut f = Frontend::open(&rig.socket());
            f.wire.send(request, 0, &body, &[]).unwrap();
            f.wire.set_timeout(Duration::from_millis(200)).unwrap();
            // Whatever the answer is, another session must be possible.
            let _answer = f.wire.receive();
            drop(f);
            Frontend::open(&rig.socket()).queue().assert_alive();
        }
    }
}
