//! kill -9 of the daemon under load, again and again: whatever was acknowledged is there after the restart, in its
//! place; what was in flight is there whole, once and in order, or not at all. `ZONEVAULT_SEED` repeats a run's choices
//! (not the moment of the kill), `ZONEVAULT_ROUNDS` sets the rounds of each test.

#[cfg(test)]
pub mod common;

#[cfg(test)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "sizes of tests fit every integer they meet"
)]
mod tests {
    use std::collections::{BTreeMap, HashMap};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use crate::common::daemon::Rig;
    use crate::common::disk::{ZONE, ZONE_CAPACITY, ZONES, state};
    use crate::common::frontend::{Frontend, Options};
    use crate::common::queue::{Queue, QueueError};
    use crate::common::request::{
        APPEND_TAIL_LINUX, APPEND_TAIL_SPEC, Completion, Request, ZoneInfo, kind, status,
    };
    use crate::common::rng::Rng;
    use crate::common::stamps::{Piece, check_unacknowledged, decode, stamped, submit};

    /// Rounds of each of the four tests: two hundred in all.
    const ROUNDS: u64 = 50;
    const QUEUES: u16 = 4;
    /// Zones 0 and 1 are conventional; zone 2 is appended to by every queue; of the others each queue owns three.
    const SHARED: u64 = 2;
    const OWNED: u64 = 3;
    /// Blocks of the conventional zones that each queue owns.
    const IN_PLACE: u64 = 16;
    /// Requests that a queue keeps in flight.
    const DEPTH: usize = 24;

    /// What is known of a sequential zone; blocks count from its start.
    #[derive(Clone, Debug, Default)]
    struct Truth {
        /// Stamp and position of each acknowledged block.
        blocks: BTreeMap<u64, (u64, u64)>,
        /// Blocks below the write pointer once everything in flight is done.
        sent: u64,
        /// Requests without an answer.
        pending: HashMap<u64, Piece>,
        /// Management command without an answer.
        manage: Option<u32>,
        /// FINISH was acknowledged, or the last block was.
        full: bool,
    }

    /// What a queue has in flight, by ticket.
    #[derive(Clone, Copy, Debug)]
    enum Op {
        Piece { zone: usize, piece: Piece },
        Manage { zone: usize, kind: u32 },
        InPlace { block: u64, stamp: u64 },
        Flush,
    }

    /// One queue's share of the disk and of the knowledge about it.
    #[derive(Debug)]
    struct Worker {
        rng: Rng,
        block: u64,
        first_in_place: u64,
        /// The shared zone, then the owned ones: first sector and truth.
        zones: Vec<(u64, Truth)>,
        /// Acknowledged and pending stamp of each owned conventional block.
        in_place: Vec<(Option<u64>, Option<u64>)>,
        flights: HashMap<u64, Op>,
        stamps: u64,
        acknowledged: u64,
    }

    impl Worker {
        fn capacity(&self) -> u64 {
            ZONE_CAPACITY * 512 / self.block
        }

        fn stamp(&mut self) -> u64 {
            self.stamps += 1;
            self.stamps
        }

        /// Submits one random request; true if there was room for it.
        fn submit(&mut self, queue: &mut Queue) -> bool {
            if self.rng.one_in(40) {
                return self.send(queue, &Request::new(kind::FLUSH, 0), Op::Flush);
            }
            if self.rng.one_in(5) {
                return self.write_in_place(queue);
            }
            let zone = self.rng.below(OWNED + 1) as usize;
            let truth = &self.zones[zone].1;
            if truth.manage.is_some() {
                return true;
            }
            let idle = truth.pending.is_empty();
            let full = truth.full || truth.sent == self.capacity();
            if zone != 0 && idle && (full || self.rng.one_in(60)) {
                let kinds = [kind::ZONE_RESET, kind::ZONE_FINISH, kind::ZONE_CLOSE];
                let choice = if full || truth.sent == 0 {
                    kind::ZONE_RESET
                } else {
                    *self.rng.pick(&kinds)
                };
                return self.manage(queue, zone, choice);
            }
            if full {
                return true;
            }
            self.write_zone(queue, zone)
        }

        fn send(&mut self, queue: &mut Queue, request: &Request, op: Op) -> bool {
            let ticket = submit(&mut self.rng, queue, request);
            let sent = ticket.map(|ticket| self.flights.insert(ticket, op));
            sent.is_some()
        }

        fn manage(&mut self, queue: &mut Queue, zone: usize, kind: u32) -> bool {
            let request = Request::new(kind, self.zones[zone].0);
            let sent = self.send(queue, &request, Op::Manage { zone, kind });
            if sent {
                self.zones[zone].1.manage = Some(kind);
            }
            sent
        }

        fn write_in_place(&mut self, queue: &mut Queue) -> bool {
            let block = self.rng.below(IN_PLACE);
            if self.in_place[block as usize].1.is_some() {
                return true;
            }
            let stamp = self.stamp();
            let sector = (self.first_in_place + block) * self.block / 512;
            let request = Request::write(sector, &stamped(stamp, 1, self.block as usize));
            let sent = self.send(queue, &request, Op::InPlace { block, stamp });
            if sent {
                self.in_place[block as usize].1 = Some(stamp);
            }
            sent
        }

        fn write_zone(&mut self, queue: &mut Queue, zone: usize) -> bool {
            let (start, sent) = (self.zones[zone].0, self.zones[zone].1.sent);
            let left = self.capacity() - sent;
            let blocks = self.rng.range(1, 4).min(left);
            let stamp = self.stamp();
            let data = stamped(stamp, blocks, self.block as usize);
            // Only the owner of a zone knows where its write pointer will be.
            let by_append = zone == 0 || self.rng.one_in(2);
            let piece = Piece {
                stamp,
                blocks,
                at: (!by_append).then_some(sent),
            };
            let request = if by_append {
                let tail = *self.rng.pick(&[APPEND_TAIL_SPEC, APPEND_TAIL_LINUX]);
                Request::append(start, &data, tail)
            } else {
                Request::write(start + sent * self.block / 512, &data)
            };
            let done = self.send(queue, &request, Op::Piece { zone, piece });
            if done {
                let truth = &mut self.zones[zone].1;
                truth.pending.insert(stamp, piece);
                // Of the shared zone the others' pieces are not known, and it may be full at any time.
                if zone != 0 {
                    truth.sent += blocks;
                }
            }
            done
        }

        fn take(&mut self, done: &Completion) {
            let op = self.flights.remove(&done.ticket).expect("in flight");
            let status = done.status();
            match op {
                Op::Piece { zone, piece } => {
                    let (start, truth) = &mut self.zones[zone];
                    truth.pending.remove(&piece.stamp);
                    if zone == 0 && status == status::INVALID_CMD {
                        truth.full = true;
                        return;
                    }
                    assert_eq!(status, status::OK, "{op:?}");
                    let place = piece
                        .at
                        .unwrap_or_else(|| (done.append_sector() - *start) * 512 / self.block);
                    for i in 0..piece.blocks {
                        let old = truth.blocks.insert(place + i, (piece.stamp, i));
                        assert!(old.is_none(), "{op:?}: block {} twice", place + i);
                    }
                }
                Op::Manage { zone, kind } => {
                    assert_eq!(status, status::OK, "{op:?}");
                    let truth = &mut self.zones[zone].1;
                    truth.manage = None;
                    match kind {
                        kind::ZONE_RESET => *truth = Truth::default(),
                        kind::ZONE_FINISH => truth.full = true,
                        _ => {}
                    }
                }
                Op::InPlace { block, stamp } => {
                    assert_eq!(status, status::OK, "{op:?}");
                    self.in_place[block as usize] = (Some(stamp), None);
                }
                Op::Flush => assert_eq!(status, status::OK, "{op:?}"),
            }
            self.acknowledged += 1;
        }

        /// Keeps the queue busy until the daemon is dead, then takes what it had answered.
        fn run(&mut self, queue: &mut Queue, dead: &AtomicBool) {
            loop {
                while queue.in_flight() < DEPTH && self.submit(queue) {}
                queue.kick();
                match queue.reap(Duration::from_millis(2)) {
                    Ok(done) => self.take(&done),
                    Err(QueueError::TimedOut | QueueError::Stopped | QueueError::LostCall)
                        if dead.load(Ordering::Acquire) =>
                    {
                        break;
                    }
                    Err(QueueError::TimedOut) => {}
                    Err(err) => panic!("queue {}: {err}", queue.index),
                }
            }
            while let Some(done) = queue.poll().expect("used ring") {
                self.take(&done);
            }
        }
    }

    /// Compares a zone with what is known of it and returns what is known now.
    fn check_zone(truth: &Truth, info: &ZoneInfo, data: &[u8], block: u64) -> Truth {
        let what = format!("zone at {}", info.start);
        let found: Vec<_> = data
            .chunks_exact(block as usize)
            .map(|part| decode(part, &what))
            .collect();
        let capacity = ZONE_CAPACITY * 512 / block;
        let filled = found.iter().take_while(|b| b.is_some()).count() as u64;
        assert!(
            found[filled as usize..].iter().all(Option::is_none),
            "{what}: data behind unwritten blocks"
        );
        assert!(filled <= capacity, "{what}: data behind the capacity");
        if truth.manage == Some(kind::ZONE_RESET) && filled == 0 && info.state == state::EMPTY {
            return Truth::default();
        }
        let full = info.state == state::FULL;
        let may_be_full = truth.full || truth.manage == Some(kind::ZONE_FINISH);
        if full {
            assert!(may_be_full || filled == capacity, "{what}: full {info:?}");
        } else {
            assert!(!truth.full, "{what}: no longer full {info:?}");
            let wp = (info.wp - info.start) * 512 / block;
            assert_eq!(filled, wp, "{what}: write pointer and data disagree");
            assert!(filled < capacity, "{what}: not full {info:?}");
        }
        for (at, wanted) in &truth.blocks {
            let got = found[*at as usize];
            assert_eq!(got, Some(*wanted), "{what}: acknowledged block {at}");
        }
        let acknowledged = |at| truth.blocks.contains_key(&at);
        let below = &found[..filled as usize];
        check_unacknowledged(below, acknowledged, &truth.pending, &what);
        Truth {
            blocks: (0..).zip(found.into_iter().flatten()).collect(),
            sent: filled,
            full,
            ..Truth::default()
        }
    }

    struct Campaign {
        rig: Rig,
        block: u64,
        writethrough: bool,
        rng: Rng,
        workers: Vec<Worker>,
        shared: Truth,
    }

    impl Campaign {
        fn new(stream: u64, block: u64, serve: &[&str], writethrough: bool) -> Self {
            let mut rng = Rng::from_env(stream);
            let block_size = block.to_string();
            let create = [
                "--size",
                "4M",
                "--zone-size",
                "256K",
                "--zone-capacity",
                "192K",
                "--conventional",
                "2",
                "--max-open",
                "14",
                "--max-active",
                "14",
                "--block-size",
                &block_size,
            ];
            let serve = [&["--queues", "4"], serve].concat();
            let rig = Rig::new(&create, &serve);
            let workers = (0..u64::from(QUEUES))
                .map(|i| Worker {
                    rng: Rng::new(rng.bits()),
                    block,
                    first_in_place: i * IN_PLACE,
                    zones: (0..=OWNED)
                        .map(|n| match n {
                            0 => (SHARED * ZONE, Truth::default()),
                            n => ((SHARED + i * OWNED + n) * ZONE, Truth::default()),
                        })
                        .collect(),
                    in_place: vec![(None, None); IN_PLACE as usize],
                    flights: HashMap::new(),
                    stamps: (i + 1) << 40,
                    acknowledged: 0,
                })
                .collect();
            Self {
                rig,
                block,
                writethrough,
                rng,
                workers,
                shared: Truth::default(),
            }
        }

        fn connect(&mut self) -> Frontend {
            let mut f = Frontend::open_with(&self.rig.socket(), Options::queues(QUEUES));
            if self.writethrough {
                f.set_config(32, &[0]).unwrap();
            }
            f
        }

        /// Writes every conventional block once: what nobody wrote may read as anything.
        fn fill_in_place(&mut self) {
            let mut f = self.connect();
            for worker in &mut self.workers {
                for i in 0..IN_PLACE {
                    let stamp = worker.stamp();
                    let sector = (worker.first_in_place + i) * self.block / 512;
                    let status = f
                        .queue()
                        .write(sector, &stamped(stamp, 1, self.block as usize));
                    assert_eq!(status, status::OK, "conventional block");
                    worker.in_place[i as usize].0 = Some(stamp);
                }
            }
        }

        /// Load until the kill, which comes at a random moment.
        fn load_and_kill(&mut self) {
            let mut f = self.connect();
            let dead = AtomicBool::new(false);
            let daemon = self.rig.daemon.take().unwrap();
            let delay = Duration::from_micros(self.rng.below(15_000));
            std::thread::scope(|scope| {
                for (worker, queue) in self.workers.iter_mut().zip(&mut f.queues) {
                    let dead = &dead;
                    scope.spawn(move || worker.run(queue, dead));
                }
                std::thread::sleep(delay);
                daemon.kill9();
                dead.store(true, Ordering::Release);
            });
        }

        /// Everything known, compared with the disk.
        fn check(&mut self) {
            let mut f = self.connect();
            let q = f.queue();
            let zones = q.zones(ZONES);
            let active = zones.iter().filter(|z| (2..=4).contains(&z.state)).count();
            assert!(active <= 14, "{active} active zones");
            for i in 0..self.workers.len() {
                let part = std::mem::take(&mut self.workers[i].zones[0].1);
                self.shared.pending.extend(part.pending);
                self.shared.full |= part.full;
                for (at, stamp) in part.blocks {
                    let old = self.shared.blocks.insert(at, stamp);
                    assert!(old.is_none(), "block {at} of the shared zone twice");
                }
            }
            let read = |q: &mut Queue, start: u64| q.read_ok(start, ZONE as usize * 512);
            let info = &zones[SHARED as usize];
            let data = read(q, info.start);
            // A queue may have seen the shared zone refuse a piece that was merely too long for the rest.
            let near_full = self.shared.full && info.state != state::FULL;
            self.shared.full &= !near_full;
            self.shared = check_zone(&self.shared, info, &data, self.block);
            for worker in &mut self.workers {
                for (start, truth) in &mut worker.zones[1..] {
                    let info = &zones[(*start / ZONE) as usize];
                    *truth = check_zone(truth, info, &read(q, *start), self.block);
                }
                for (i, known) in (0..).zip(&mut worker.in_place) {
                    let sector = (worker.first_in_place + i) * self.block / 512;
                    let data = q.read_ok(sector, self.block as usize);
                    let got = decode(&data, "conventional block").map(|(stamp, _)| stamp);
                    let new = known.1.is_some() && got == known.1;
                    assert!(got == known.0 || new, "block {i}: {got:?}, not {known:?}");
                    *known = (got, None);
                }
                worker.flights.clear();
            }
            if near_full || info.state == state::FULL {
                let status = q.simple(kind::ZONE_RESET, SHARED * ZONE);
                assert_eq!(status, status::OK);
                self.shared = Truth::default();
            }
        }

        fn run(mut self) {
            self.fill_in_place();
            let rounds = match std::env::var("ZONEVAULT_ROUNDS") {
                Ok(text) => text.parse().expect("ZONEVAULT_ROUNDS is a number"),
                Err(_) => ROUNDS,
            };
            for round in 0..rounds {
                self.load_and_kill();
                self.rig.start();
                if round % 8 == 3 {
                    // A second kill before anything was done must change nothing.
                    self.rig.crash();
                }
                self.check();
                if round % 10 == 7 {
                    self.rig.restart();
                    self.check();
                }
            }
            let acknowledged: u64 = self.workers.iter().map(|w| w.acknowledged).sum();
            println!("{rounds} rounds, {acknowledged} requests acknowledged");
            // Kills that always come before the first answer would prove nothing.
            // How many come depends on how fast the machine syncs.
            assert!(acknowledged > rounds * 2, "{acknowledged} acknowledged");
        }
    }

    #[test]
    fn kill_under_load() {
        Campaign::new(40, 4096, &[], false).run();
    }

    #[test]
    fn kill_under_load_with_the_page_cache() {
        Campaign::new(41, 4096, &["--cache", "writeback"], false).run();
    }

    #[test]
    fn kill_under_load_with_small_blocks() {
        Campaign::new(42, 512, &[], false).run();
    }

    #[test]
    fn kill_under_load_without_write_cache() {
        Campaign::new(43, 4096, &[], true).run();
    }
}
