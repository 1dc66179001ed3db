//! Rounds of load, a sudden end, and a look at what is left.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;

use crate::common::daemon::{BINARY, Daemon, Image};
use crate::common::frontend::{Frontend, Options};
use crate::common::queue::Queue;
use crate::common::request::{kind, status};
use crate::common::rng::Rng;
use crate::common::stamps::stamped;
use crate::common::wire::PATIENCE;

use super::known::{Clock, InPlace, Left, Zone};
use super::load::{Mood, Worker};
use super::machine::Boot;
use super::medium::{Areas, Keep, Loss};
use super::mount::Mount;

/// The image in the file system that forgets.
const FILE: &str = "image";
const QUEUES: u16 = 4;
/// Sectors of a zone.
const ZONE: u64 = 1024;
/// Bytes of its capacity.
const CAPACITY: u64 = 384 << 10;
/// Header, protectors and zone records lie below this byte, and nothing else does.
const METADATA_END: u64 = 128 << 10;
/// Bytes of the tag of a block.
const TAG: u64 = 32;
/// Zones. The first two are conventional, or never touched; then comes the shared one; the others have owners.
const ZONES: u64 = 16;
const SHARED: u64 = 2;
/// Zones that each queue has for itself.
const OWNED: u64 = 3;
/// Conventional blocks that each queue has for itself.
const IN_PLACE: u64 = 16;
/// Most zones that the disk lets be active: all that are in use.
const ACTIVE: usize = 13;
/// Most zones that it lets be open: less, so that zones are closed to make room.
const OPEN: &str = "6";
/// The load lasts at most this long, in microseconds.
const LONGEST_LOAD: u64 = 30_000;
/// An orderly end, or an opening, is left this long at most before the kill, in microseconds.
const LONGEST_GRACE: u64 = 20_000;
/// Exit status of `check` where something is damaged.
const CHECK_FOUND_DAMAGE: i32 = 6;
/// One in so many looks at the disk ends with a reset of all of it.
const RESET_ALL_SHARE: u64 = 20;
/// The option that says what a boot id would say.
const AFTER_CUT: &str = "--after-power-cut";

/// What a campaign is about.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Keeps the random choices of campaigns apart.
    pub stream: u64,
    /// Name of the cipher; without tags the disk has conventional zones.
    pub cipher: &'static str,
    /// Block size in bytes.
    pub block: usize,
    /// `--cache`.
    pub cache: &'static str,
    /// The front-end turns the write cache off.
    pub writethrough: bool,
    /// Rounds, unless `ZONEVAULT_ROUNDS` says otherwise.
    pub rounds: u64,
}

impl Plan {
    fn is_tagged(&self) -> bool {
        !self.cipher.ends_with("xts")
    }

    /// Where what lies. (Conventional zones and tags never meet, so all zones are alike.)
    fn areas(&self) -> Areas {
        let tags = CAPACITY / self.block as u64 * TAG;
        Areas {
            zones: METADATA_END,
            data: CAPACITY,
            tags: if self.is_tagged() {
                tags.next_multiple_of(4096)
            } else {
                0
            },
        }
    }
}

/// How a daemon ends.
#[derive(Clone, Copy, Debug)]
enum End {
    /// By SIGKILL; the machine goes on.
    Kill,
    /// With the machine, whose medium keeps so much of what was not synced.
    Cut(Keep),
}

impl End {
    fn draw(rng: &mut Rng, plan: Plan) -> Self {
        if rng.one_in(2) {
            Self::Kill
        } else {
            Self::Cut(Keep::draw(rng, plan.areas()))
        }
    }

    fn come(self, daemon: Daemon, mount: &Mount, rng: &mut Rng) -> Loss {
        let mut loss = Loss::default();
        if let Self::Cut(keep) = self {
            // Nothing that the medium still does may be seen: neither by the daemon nor, through it, by us.
            mount.freeze();
            daemon.signal(libc::SIGKILL);
            loss = mount.cut(keep, rng);
        }
        daemon.kill9();
        loss
    }
}

/// What happened in a campaign.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    kills: u64,
    cuts: u64,
    interrupted: u64,
    orderly: u64,
    /// Runs of `zonevault check`.
    checks: u64,
    loss: Loss,
    /// Blocks acknowledged and not flushed that were there after a cut, and that were not.
    unflushed: [u64; 2],
}

impl Tally {
    fn count(&mut self, end: End, loss: Loss) {
        match end {
            End::Kill => self.kills += 1,
            End::Cut(_) => self.cuts += 1,
        }
        self.loss.add(loss);
    }
}

/// A disk, its front-end and what both went through. Fields are dropped in their order: the daemon goes first.
#[derive(Debug)]
pub struct Campaign {
    daemon: Option<Daemon>,
    image: Image,
    boot: Boot,
    mount: Mount,
    plan: Plan,
    rng: Rng,
    clock: Clock,
    workers: Vec<Worker>,
    shared: Zone,
    tally: Tally,
}

impl Campaign {
    /// Makes the disk and serves it.
    pub fn new(plan: Plan) -> Self {
        let mut rng = Rng::from_env(plan.stream);
        let mount = Mount::new(&[FILE], Some(Rng::new(rng.bits())));
        let boot = Boot::first(&mut rng);
        let image = Image::empty();
        std::os::unix::fs::symlink(mount.path(FILE), image.path()).expect("link to the image");
        create(&image, plan);
        let workers = (0..u64::from(QUEUES))
            .map(|i| worker(&mut rng, plan, i))
            .collect();
        let mut campaign = Self {
            daemon: None,
            image,
            boot,
            mount,
            plan,
            rng,
            clock: Clock::default(),
            workers,
            shared: Zone::default(),
            tally: Tally::default(),
        };
        campaign.start(&[]);
        campaign.fill_in_place();
        campaign
    }

    /// All rounds.
    ///
    /// # Panics
    /// If what was promised is not kept, or nothing was put to the test.
    pub fn run(mut self) {
        let rounds = match std::env::var("ZONEVAULT_ROUNDS") {
            Ok(text) => text.parse().expect("ZONEVAULT_ROUNDS is a number"),
            Err(_) => self.plan.rounds,
        };
        for round in 0..rounds {
            let end = End::draw(&mut self.rng, self.plan);
            self.load_and_end(end);
            let left = match end {
                End::Kill => {
                    self.start_after_kill();
                    Left::Whole
                }
                End::Cut(keep) => {
                    if self.rng.one_in(4) {
                        self.check_from_outside(false);
                    }
                    self.start_after_cut();
                    self.left_by(keep)
                }
            };
            self.check(left);
            if round % 10 == 7 {
                self.end_in_order();
            }
        }
        self.summarise(rounds);
    }

    fn summarise(&self, rounds: u64) {
        let acknowledged: u64 = self.workers.iter().map(|w| w.acknowledged).sum();
        let flushes: u64 = self.workers.iter().map(|w| w.flushes).sum();
        let Tally {
            kills,
            cuts,
            interrupted,
            orderly,
            checks,
            loss,
            unflushed: [found, gone],
        } = self.tally;
        println!(
            "{}, {}-byte blocks, {}{}: {rounds} rounds: {kills} kills, {cuts} cuts, {interrupted} openings \
             interrupted, {orderly} orderly ends, {checks} checks; {acknowledged} requests acknowledged, {flushes} of them flushes; \
             unsynced sectors {} kept and {} lost, {} writes torn; of unflushed blocks {found} found and {gone} gone",
            self.plan.cipher,
            self.plan.block,
            self.plan.cache,
            if self.plan.writethrough {
                ", no write cache"
            } else {
                ""
            },
            loss.kept,
            loss.lost,
            loss.torn,
        );
        // Ends that come before the first answer, or cuts that find everything synced, would prove nothing.
        assert!(acknowledged > rounds * 2, "{acknowledged} acknowledged");
        if rounds >= 20 {
            assert!(kills > 0 && cuts > 0, "{kills} kills and {cuts} cuts");
            assert!(loss.kept > 0 && loss.lost > 0, "{loss:?}");
            assert!(loss.torn > 0, "no write was torn");
            assert!(self.plan.writethrough || gone > 0, "nothing was lost");
            let found_by_tags = self.plan.writethrough || !self.plan.is_tagged() || found > 0;
            assert!(found_by_tags, "tags found nothing");
        }
    }

    fn serve_options<'a>(&self, more: &[&'a str]) -> Vec<&'a str> {
        let mut options = vec!["--queues", "4", "--cache", self.plan.cache];
        options.extend_from_slice(more);
        options
    }

    fn start(&mut self, more: &[&str]) {
        let options = self.serve_options(more);
        self.daemon = Some(Daemon::serve(&self.image, &options));
    }

    fn connect(&self) -> Frontend {
        let socket = self.daemon.as_ref().expect("running").socket();
        let mut f = Frontend::open_with(socket, Options::queues(QUEUES));
        if self.plan.writethrough {
            f.set_config(32, &[0]).expect("write cache off");
        }
        f
    }

    /// Writes every conventional block once: what nobody wrote may read as anything.
    fn fill_in_place(&mut self) {
        let mut f = self.connect();
        for worker in &mut self.workers {
            for i in 0..worker.in_place.len() {
                let stamp = worker.stamp();
                let sector = worker.in_place_start + (i * worker.block / 512) as u64;
                worker.in_place[i].submit(stamp);
                let data = stamped(stamp, 1, worker.block);
                assert_eq!(f.queue().write(sector, &data), status::OK);
                worker.in_place[i].acknowledge(0);
            }
        }
        assert_eq!(f.queue().flush(), status::OK);
    }

    /// Load, and at a random moment the end: at once, or in the middle of ending in order.
    fn load_and_end(&mut self, end: End) {
        let mut f = self.connect();
        let dead = AtomicBool::new(false);
        let daemon = self.daemon.take().expect("running");
        let load = Duration::from_micros(self.rng.below(LONGEST_LOAD));
        let grace = self.rng.one_in(8).then(|| self.rng.below(LONGEST_GRACE));
        let mood = Mood::draw(&mut self.rng);
        let clock = &self.clock;
        let (mount, rng) = (&self.mount, &mut self.rng);
        let loss = std::thread::scope(|scope| {
            for (worker, queue) in self.workers.iter_mut().zip(&mut f.queues) {
                let dead = &dead;
                worker.mood = mood;
                scope.spawn(move || worker.run(queue, clock, dead));
            }
            std::thread::sleep(load);
            if let Some(grace) = grace {
                daemon.signal(libc::SIGTERM);
                std::thread::sleep(Duration::from_micros(grace));
            }
            let loss = end.come(daemon, mount, rng);
            dead.store(true, Ordering::Release);
            loss
        });
        self.tally.count(end, loss);
    }

    /// An opening that ends at some moment of it.
    fn interrupt_opening(&mut self, more: &[&str], end: End) {
        let options = self.serve_options(more);
        let daemon = Daemon::spawn(&self.image, "sock", &options);
        let grace = self.rng.below(LONGEST_GRACE);
        std::thread::sleep(Duration::from_micros(grace));
        let loss = end.come(daemon, &self.mount, &mut self.rng);
        self.tally.count(end, loss);
        self.tally.interrupted += 1;
    }

    fn start_after_kill(&mut self) {
        if self.rng.one_in(4) {
            self.interrupt_opening(&[], End::Kill);
        }
        self.start(&[]);
    }

    /// The power is back, and may fail again while the disk recovers. The daemon is told so, or has to find out.
    fn start_after_cut(&mut self) {
        let told = self.rng.one_in(2);
        let more: &[&str] = if told { &[AFTER_CUT] } else { &[] };
        self.reboot_unless(told);
        while self.rng.one_in(3) {
            let end = End::draw(&mut self.rng, self.plan);
            self.interrupt_opening(more, end);
            if matches!(end, End::Cut(_)) {
                self.reboot_unless(told);
            }
        }
        self.start(more);
    }

    /// A tag tells what reached the medium, so nothing of that is given up.
    fn left_by(&self, keep: Keep) -> Left {
        if keep == Keep::Everything && self.plan.is_tagged() {
            Left::CUT_WITHOUT_LOSS
        } else {
            Left::by_cut(&self.clock)
        }
    }

    fn reboot_unless(&mut self, told: bool) {
        if !told {
            self.boot.again(&mut self.rng);
        }
    }

    /// An orderly end, after which a cut takes nothing.
    fn end_in_order(&mut self) {
        self.daemon.take().expect("running").stop();
        let loss = self.mount.cut(Keep::Nothing, &mut self.rng);
        assert_eq!(loss, Loss::default(), "unsynced after an orderly end");
        self.check_from_outside(true);
        self.boot.again(&mut self.rng);
        self.start(&[]);
        self.tally.orderly += 1;
        self.check(Left::Whole);
    }

    /// `zonevault check`. A cut may tear a copy of header or record, of which there are two; a block below what is
    /// durable must be sound at any time, and everything after an orderly end.
    fn check_from_outside(&mut self, closed: bool) {
        let mut command = Command::new("timeout");
        command.arg(PATIENCE.as_secs().to_string());
        command.arg(BINARY).arg("check").arg("--json");
        command.arg(self.image.path());
        command.arg("--key-file").arg(self.image.key());
        let out = command.output().expect("running the binary");
        let text = String::from_utf8_lossy(&out.stdout);
        let sound = match out.status.code() {
            Some(0) => true,
            Some(CHECK_FOUND_DAMAGE) => !closed,
            _ => false,
        };
        let err = String::from_utf8_lossy(&out.stderr);
        assert!(sound, "check: {}\n{text}{err}", out.status);
        let found: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(found["bad_blocks"], 0, "{text}");
        self.tally.checks += 1;
    }

    /// Everything known, compared with the disk.
    fn check(&mut self, left: Left) {
        let mut f = self.connect();
        let q = f.queue();
        let count = usize::try_from(ZONES).expect("zones");
        let zones = q.zones(count);
        let active = zones.iter().filter(|z| (2..=4).contains(&z.state)).count();
        assert!(active <= ACTIVE, "{active} active zones");
        let block = self.plan.block;
        let info = |start: u64| &zones[usize::try_from(start / ZONE).expect("zone")];
        let read = |q: &mut Queue, start: u64| q.read_ok(start, 512 << 10);
        if self.plan.is_tagged() {
            for start in [0, ZONE] {
                Zone::default().check(left, info(start), &read(q, start), block);
            }
        }
        for worker in &mut self.workers {
            let part = std::mem::take(&mut worker.zones[0].1);
            self.shared.pending.extend(part.pending);
            self.shared.refused |= part.refused;
            for (at, written) in part.blocks {
                let old = self.shared.blocks.insert(at, written);
                assert!(old.is_none(), "block {at} of the shared zone twice");
            }
        }
        let mut count = |before: &Zone, now: &Zone| {
            if left != Left::Whole {
                let [found, gone] = before.unflushed(&self.clock, now);
                self.tally.unflushed[0] += found;
                self.tally.unflushed[1] += gone;
            }
        };
        let start = SHARED * ZONE;
        let refused = self.shared.refused;
        let now = self.shared.check(left, info(start), &read(q, start), block);
        count(&self.shared, &now);
        self.shared = now;
        for worker in &mut self.workers {
            for (start, known) in &mut worker.zones[1..] {
                let now = known.check(left, info(*start), &read(q, *start), block);
                count(known, &now);
                *known = now;
            }
            for (i, known) in worker.in_place.iter_mut().enumerate() {
                let sector = worker.in_place_start + (i * block / 512) as u64;
                known.check(left, &q.read_ok(sector, block), "conventional block");
            }
        }
        if self.rng.one_in(RESET_ALL_SHARE) {
            assert_eq!(q.simple(kind::ZONE_RESET_ALL, 0), status::OK);
            self.shared = Zone::default();
            for (_, known) in self.workers.iter_mut().flat_map(|w| &mut w.zones) {
                *known = Zone::default();
            }
        } else if refused || self.shared.finished {
            assert_eq!(q.simple(kind::ZONE_RESET, start), status::OK);
            self.shared = Zone::default();
        }
    }
}

fn create(image: &Image, plan: Plan) {
    let block = plan.block.to_string();
    let active = ACTIVE.to_string();
    let conventional = if plan.is_tagged() { "0" } else { "2" };
    let options = [
        "--size",
        "8M",
        "--zone-size",
        "512K",
        "--zone-capacity",
        "384K",
        "--conventional",
        conventional,
        "--max-open",
        OPEN,
        "--max-active",
        &active,
        "--block-size",
        &block,
        "--cipher",
        plan.cipher,
    ];
    let out = image.run_create(&options);
    let err = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "create: {err}");
}

fn worker(rng: &mut Rng, plan: Plan, i: u64) -> Worker {
    let zones: Vec<u64> = (0..=OWNED)
        .map(|n| match n {
            0 => SHARED * ZONE,
            n => (SHARED + i * OWNED + n) * ZONE,
        })
        .collect();
    let capacity = CAPACITY / plan.block as u64;
    let mut worker = Worker::new(Rng::new(rng.bits()), plan.block, capacity, &zones);
    worker.writethrough = plan.writethrough;
    worker.stamps = (i + 1) << 40;
    if !plan.is_tagged() {
        worker.in_place_start = i * IN_PLACE * plan.block as u64 / 512;
        worker.in_place = (0..IN_PLACE).map(|_| InPlace::default()).collect();
    }
    worker
}
