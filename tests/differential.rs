//! Long random runs of the daemon beside the reference model: every status, every byte and every report compared,
//! with restarts and kills in between. `ZONEVAULT_SEED` replays a run, `ZONEVAULT_STEPS` makes it longer or shorter.

#[cfg(test)]
pub mod common;
#[cfg(test)]
#[path = "common/model.rs"]
pub mod model;

#[cfg(test)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "sizes of tests fit every integer they meet"
)]
mod tests {
    use vhost::vhost_user::message::VhostUserProtocolFeatures;

    use crate::common::daemon::Rig;
    use crate::common::frontend::{Frontend, Options, feature};
    use crate::common::request::{
        APPEND_TAIL_LINUX, APPEND_TAIL_SPEC, Cut, Layout, Request, kind, status,
    };
    use crate::common::rng::Rng;
    use crate::model::{Geometry, Model, State};

    /// Commands of one run.
    const STEPS: u64 = 4000;
    const QUEUES: u16 = 2;

    /// One random command.
    #[derive(Clone, Debug)]
    enum Command {
        Read {
            sector: u64,
            len: usize,
        },
        Write {
            sector: u64,
            len: usize,
        },
        Append {
            sector: u64,
            len: usize,
            tail: usize,
        },
        Manage {
            kind: u32,
            sector: u64,
        },
        Report {
            sector: u64,
            room: usize,
        },
        Flush,
    }

    /// The daemon, the model, and what drives both.
    struct Pair {
        rig: Rig,
        frontend: Frontend,
        model: Model,
        rng: Rng,
    }

    fn options(rng: &mut Rng) -> Options {
        let dropped = *rng.pick(&[0, feature::EVENT_IDX]);
        let options = Options::without(dropped);
        Options {
            queues: QUEUES,
            // So that rings may go on where they were when the daemon is killed.
            protocol: options.protocol | VhostUserProtocolFeatures::INFLIGHT_SHMFD,
            ..options
        }
    }

    impl Pair {
        fn new(geometry: Geometry, stream: u64) -> Self {
            let mut rng = Rng::from_env(stream);
            let bytes = |sectors: u64| (sectors * 512).to_string();
            let args: Vec<String> = [
                ("--size", bytes(geometry.capacity())),
                ("--zone-size", bytes(geometry.zone_size)),
                ("--zone-capacity", bytes(geometry.zone_capacity)),
                ("--conventional", geometry.conventional.to_string()),
                ("--max-open", geometry.max_open.to_string()),
                ("--max-active", geometry.max_active.to_string()),
                ("--max-append", bytes(geometry.max_append)),
                ("--block-size", bytes(geometry.block)),
            ]
            .into_iter()
            .flat_map(|(name, value)| [name.to_owned(), value])
            .collect();
            let create: Vec<&str> = args.iter().map(String::as_str).collect();
            let rig = Rig::new(&create, &["--queues", "2"]);
            let frontend = Frontend::open_with(&rig.socket(), options(&mut rng));
            Self {
                rig,
                frontend,
                model: Model::new(geometry),
                rng,
            }
        }

        /// A length in bytes that is mostly whole blocks, sometimes whole sectors, rarely neither.
        fn length(&mut self, most: u64) -> usize {
            let rng = &mut self.rng;
            let block = self.model.geometry.block;
            let bytes = match rng.below(40) {
                0 => 0,
                1 => rng.below(most * 512),
                2..=4 => rng.range(1, most) * 512,
                _ => rng.range(1, (most / block).max(1)) * block * 512,
            };
            bytes as usize
        }

        /// A sector that is rarely outside the disk.
        fn sector(&mut self) -> u64 {
            let capacity = self.model.geometry.capacity();
            match self.rng.below(60) {
                0 => capacity,
                1 => capacity + self.rng.below(5000),
                2 => self.rng.bits(),
                3 => u64::MAX - self.rng.below(16),
                _ => self.rng.below(capacity),
            }
        }

        /// A zone whose neighbours were likely used before, so that limits are met.
        fn zone(&mut self) -> usize {
            let zones = self.model.geometry.zones;
            let at = self.rng.below(zones);
            (if self.rng.one_in(3) { at } else { at % 8 }) as usize
        }

        fn command(&mut self) -> Command {
            let zone = self.zone();
            let start = self.model.start(zone);
            let g = self.model.geometry;
            match self.rng.below(100) {
                0..30 => {
                    let sector = match self.rng.below(20) {
                        0 => self.sector(),
                        1 => start + g.block * self.rng.below(4),
                        _ => start,
                    };
                    Command::Append {
                        sector,
                        len: self.length(g.max_append + g.block),
                        tail: *self.rng.pick(&[APPEND_TAIL_SPEC, APPEND_TAIL_LINUX]),
                    }
                }
                30..52 => {
                    let at = start + self.model.zones[zone].written;
                    let sector = match self.rng.below(12) {
                        0 => self.sector(),
                        1 => at + self.rng.range(1, 16),
                        2 => at.saturating_sub(self.rng.range(1, 16)),
                        3 => start + self.rng.below(g.zone_size),
                        _ => at,
                    };
                    let most = match self.rng.below(12) {
                        0 => g.zone_size,
                        _ => 64,
                    };
                    let mut len = self.length(most);
                    let mut sector = sector;
                    if sector < g.conventional * g.zone_size {
                        // Parts of blocks in place are a question that the block tests ask.
                        sector = sector / g.block * g.block;
                        len = len.next_multiple_of(g.block as usize * 512);
                    }
                    Command::Write { sector, len }
                }
                52..72 => {
                    let sector = match self.rng.below(6) {
                        0 => self.sector(),
                        _ => start + self.rng.below(g.zone_size),
                    };
                    let most = (start + g.zone_size).saturating_sub(sector).clamp(1, 128);
                    let len = match self.rng.below(8) {
                        0 => self.length(g.zone_size),
                        _ => self.rng.range(1, most) as usize * 512,
                    };
                    if self.rng.one_in(8) {
                        return Command::Read { sector, len };
                    }
                    let sector = sector / g.block * g.block;
                    let len = len.next_multiple_of(g.block as usize * 512);
                    Command::Read { sector, len }
                }
                72..94 => {
                    let kinds = [
                        kind::ZONE_OPEN,
                        kind::ZONE_OPEN,
                        kind::ZONE_CLOSE,
                        kind::ZONE_CLOSE,
                        kind::ZONE_FINISH,
                        kind::ZONE_RESET,
                        kind::ZONE_RESET,
                    ];
                    let kind = *self.rng.pick(&kinds);
                    let sector = match self.rng.below(12) {
                        0 => self.sector(),
                        _ => start,
                    };
                    Command::Manage { kind, sector }
                }
                94..98 => Command::Report {
                    sector: self.sector(),
                    room: self.rng.below(20) as usize,
                },
                98 if self.rng.one_in(4) => Command::Manage {
                    kind: kind::ZONE_RESET_ALL,
                    sector: self.rng.bits(),
                },
                _ => Command::Flush,
            }
        }

        fn layout(&mut self) -> Layout {
            let rng = &mut self.rng;
            let cut = match rng.below(4) {
                0 => Cut::Whole,
                1 => Cut::Every(rng.range(2000, 9000) as usize),
                _ => Cut::Natural,
            };
            Layout {
                readable: cut,
                writable: rng.pick(&[Cut::Natural, Cut::Whole]).clone(),
                indirect: rng.one_in(2),
                skew: *rng.pick(&[0, 0, 0, 1, 16]),
            }
        }

        /// Runs one command on both sides and compares what they answer.
        fn step(&mut self, command: &Command) {
            let layout = self.layout();
            let at = self.rng.below(u64::from(QUEUES)) as usize;
            let data = match command {
                Command::Write { len, .. } | Command::Append { len, .. } => self.rng.bytes(*len),
                _ => Vec::new(),
            };
            let request = match command {
                Command::Read { sector, len } => Request::read(*sector, *len),
                Command::Write { sector, .. } => Request::write(*sector, &data),
                Command::Append { sector, tail, .. } => Request::append(*sector, &data, *tail),
                Command::Manage { kind, sector } => Request::new(*kind, *sector),
                Command::Report { sector, room } => Request::report(*sector, 64 * (room + 1)),
                Command::Flush => Request::new(kind::FLUSH, 0),
            };
            let done = self.frontend.queues[at].call_as(&request, &layout);
            let model = &mut self.model;
            let verdict = match command {
                Command::Read { sector, len } => {
                    let (verdict, wanted) = model.read(*sector, *len);
                    if done.status() == status::OK {
                        assert!(done.data() == wanted, "{command:?}: data");
                    }
                    verdict
                }
                Command::Write { sector, .. } => model.write(*sector, &data),
                Command::Append { sector, .. } => {
                    let (verdict, place) = model.append(*sector, &data);
                    if done.status() == status::OK {
                        assert_eq!(done.append_sector(), place, "{command:?}");
                    }
                    verdict
                }
                Command::Manage { kind, sector } => match *kind {
                    kind::ZONE_OPEN => model.open(*sector),
                    kind::ZONE_CLOSE => model.close(*sector),
                    kind::ZONE_FINISH => model.finish(*sector),
                    kind::ZONE_RESET => model.reset(*sector),
                    _ => model.reset_all(),
                },
                Command::Report { sector, room } => {
                    if *sector < model.geometry.capacity() {
                        let first = (sector / model.geometry.zone_size) as usize;
                        let zones = model.report();
                        let last = (first + room).min(zones.len());
                        let got = crate::common::request::parse_report(done.data());
                        assert_eq!(got, zones[first..last], "{command:?}");
                        vec![status::OK]
                    } else {
                        vec![status::INVALID_CMD]
                    }
                }
                Command::Flush => vec![status::OK],
            };
            assert!(
                verdict.contains(&done.status()),
                "{command:?} answered {}, the model allows {verdict:?}",
                done.status()
            );
        }

        /// Compares the whole report; learns from it what the model could not know.
        fn compare(&mut self, what: &str) {
            let count = self.model.zones.len();
            let got = self.frontend.queue().zones(count);
            if !self.model.doubt.is_empty() {
                self.model.settle(&got);
            }
            for (got, wanted) in got.iter().zip(self.model.report()) {
                assert_eq!(*got, wanted, "after {what}");
            }
            let g = self.model.geometry;
            assert!(g.max_open == 0 || self.model.open_zones() <= g.max_open);
            assert!(g.max_active == 0 || self.model.active_zones() <= g.max_active);
        }

        fn restart(&mut self, clean: bool) {
            let stays = !clean || self.rng.one_in(2);
            if !stays {
                self.frontend.wire.leave().unwrap();
            }
            if clean {
                self.rig.restart();
            } else {
                self.rig.crash();
            }
            // The front-end keeps what is in flight: a guest that is there goes on.
            if stays {
                self.model.go_on();
            } else {
                self.model.restart();
            }
            if self.rng.one_in(2) {
                self.frontend.reconnect().unwrap();
            } else {
                let options = options(&mut self.rng);
                self.frontend = Frontend::open_with(&self.rig.socket(), options);
            }
            self.compare(if clean { "a clean restart" } else { "a kill" });
        }

        /// Reads the whole disk and compares.
        fn compare_data(&mut self) {
            let g = self.model.geometry;
            for zone in 0..g.zones {
                let sector = zone * g.zone_size;
                let len = g.zone_size as usize * 512;
                let got = self.frontend.queue().read_ok(sector, len);
                assert!(got == self.model.read(sector, len).1, "zone {zone}");
            }
        }

        fn run(mut self) {
            let steps = match std::env::var("ZONEVAULT_STEPS") {
                Ok(text) => text.parse().expect("ZONEVAULT_STEPS is a number"),
                Err(_) => STEPS,
            };
            self.compare("creation");
            // What nobody wrote in place may read as anything: write it all.
            for zone in 0..self.model.geometry.conventional {
                let data = self.rng.bytes(self.model.geometry.zone_size as usize * 512);
                let sector = zone * self.model.geometry.zone_size;
                assert_eq!(self.model.write(sector, &data), [status::OK]);
                assert_eq!(self.frontend.queue().write(sector, &data), status::OK);
            }
            let mut counts = [0_u64; 2];
            for step in 0..steps {
                if self.rng.one_in(200) {
                    let clean = self.rng.one_in(2);
                    self.restart(clean);
                }
                let command = self.command();
                self.step(&command);
                self.compare(&format!("step {step}: {command:?}"));
                let full = self.model.zones.iter();
                counts[0] += full.filter(|z| z.state == State::Full).count() as u64;
                counts[1] += self.model.open_zones();
            }
            self.compare_data();
            self.restart(true);
            self.compare_data();
            // A run that met no open and no full zone would prove little.
            assert!(
                counts[0] > steps / 10 && counts[1] > steps / 2,
                "{counts:?}"
            );
        }
    }

    const GEOMETRY: Geometry = Geometry {
        zones: 16,
        zone_size: 512,
        zone_capacity: 384,
        conventional: 2,
        max_open: 3,
        max_active: 5,
        max_append: 128,
        block: 8,
    };

    #[test]
    fn the_daemon_follows_the_model() {
        Pair::new(GEOMETRY, 30).run();
    }

    #[test]
    fn the_daemon_follows_the_model_with_small_blocks() {
        let geometry = Geometry {
            block: 1,
            zone_capacity: 512,
            ..GEOMETRY
        };
        Pair::new(geometry, 31).run();
    }

    #[test]
    fn the_daemon_follows_the_model_without_limits() {
        let geometry = Geometry {
            conventional: 0,
            max_open: 0,
            max_active: 0,
            max_append: 384,
            ..GEOMETRY
        };
        Pair::new(geometry, 32).run();
    }

    #[test]
    fn the_daemon_follows_the_model_where_little_may_be_open() {
        let geometry = Geometry {
            conventional: 1,
            max_open: 1,
            max_active: 2,
            ..GEOMETRY
        };
        Pair::new(geometry, 33).run();
    }
}
