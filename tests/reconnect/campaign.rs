//! Rounds of load and death. In each the daemon is started (or found again), takes back what was in flight, is asked for
//! all it has, works, and dies: at once or under load, by SIGKILL at any moment or at a named point, by SIGTERM; or it is
//! the front-end that goes. What must hold after each return stands in `truth`.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::common::daemon::{Daemon, Image};
use crate::common::frontend::{Frontend, Options};
use crate::common::rng::Rng;
use zonevault::mutant::LAST_WORDS;

use super::load::{Counts, Load};

const QUEUES: u16 = 4;
const QUEUE_SIZE: u16 = 64;
/// Requests that a queue keeps in flight.
const DEPTH: usize = 24;
/// How long anything may take before the daemon counts as hung.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long the load waits for a daemon to come by its point; then it is killed where it is.
const POINT_PATIENCE: Duration = Duration::from_millis(200);
/// What waits for a queue that was left out does so for this long; then that comes back.
const LEFT_OUT: Duration = Duration::from_millis(300);
/// Ends of rounds that a failure tells of.
const DEATHS: usize = 5;
/// Longest load before a kill, in microseconds.
const LOAD_US: u64 = 20_000;

/// Where a daemon built with the feature `mutants` kills itself.
pub(super) const POINTS: [&str; 9] = [
    "intent-written",
    "granted",
    "data-submitted",
    "data-written",
    "record-written",
    "answered",
    "published",
    "cleared",
    "reset-recorded",
];

/// The longest pause of the thread that comes by its point, in microseconds, while the others go on.
const PAUSE_US: u64 = 3_000;

const CREATE: [&str; 8] = [
    "--size",
    "32M",
    "--zone-size",
    "1M",
    "--max-open",
    "0",
    "--max-active",
    "0",
];

/// How a round ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// SIGKILL while the daemon takes back what was in flight, this many microseconds after the last queue started.
    KillAtReturn(u64),
    /// SIGKILL under load.
    Kill,
    /// The daemon kills itself when it comes by this point for so many times, after so many microseconds.
    Point(&'static str, u64, u64),
    /// SIGTERM under load.
    Terminate,
    /// The front-end closes its socket.
    Disconnect,
}

/// Where the front-end says that the rings stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Base {
    Used,
    Zero,
    Avail,
    Garbage,
}

/// One round's choices.
#[derive(Clone, Copy, Debug)]
struct Plan {
    end: End,
    base: Base,
    /// This queue is not started again until the next round.
    without: Option<usize>,
    /// The guest looks at the used rings before the daemon is back; else it sleeps until it is called.
    looks: bool,
    /// Requests go on before all that was in flight is answered.
    impatient: bool,
    load: Duration,
}

/// How the session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Life {
    Alive,
    Dead,
}

/// What a campaign is about.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) stream: u64,
    pub(super) rounds: u64,
    /// The front-end asks for an inflight region; without one only clean ends are possible.
    pub(super) inflight: bool,
    /// The guest leaves the write cache on.
    pub(super) write_cache: bool,
    /// Where the image's directory is made, if not where all are.
    pub(super) parent: Option<&'static Path>,
    /// More options.
    pub(super) create: Vec<&'static str>,
    pub(super) serve: Vec<&'static str>,
    pub(super) environment: Vec<(&'static str, String)>,
    /// Where daemons end themselves.
    pub(super) points: &'static [&'static str],
    /// One write in so many fails.
    pub(super) failing: Option<u64>,
}

pub(super) struct Campaign {
    settings: Settings,
    /// Before the image: its log is in the image's directory and is shown when it is dropped.
    daemon: Daemon,
    image: Image,
    f: Frontend,
    load: Load,
    calls: Epoll,
    rng: Rng,
    /// Queues that run, and those that the guest looks at without being called.
    running: Vec<bool>,
    awake: Vec<bool>,
    ends: BTreeMap<String, u64>,
    /// Requests in flight at the ends of rounds, and those of which the daemon had noted what it was
    /// about to change.
    taken_back: u64,
    noted: u64,
    round: u64,
    slowest: Duration,
    deaths: VecDeque<String>,
    /// How many daemons had said that they end themselves when this one was started.
    farewells: usize,
}

impl Campaign {
    pub(super) fn new(settings: Settings) -> Self {
        let mut rng = Rng::from_env(settings.stream);
        let options = [&CREATE, settings.create.as_slice()].concat();
        let image = match settings.parent {
            Some(parent) => Image::create_in(parent, &options),
            None => Image::create(&options),
        };
        let daemon = serve(&image, &settings, None);
        let mut options = Options::queues(QUEUES);
        options.queue_size = QUEUE_SIZE;
        if settings.inflight {
            options.protocol |=
                vhost::vhost_user::message::VhostUserProtocolFeatures::INFLIGHT_SHMFD;
        }
        let mut f = Frontend::open_with(daemon.socket(), options);
        assert_eq!(f.inflight.is_some(), settings.inflight, "inflight region");
        if !settings.write_cache {
            f.set_config(32, &[0]).expect("write cache off");
        }
        let calls = Epoll::new().expect("epoll");
        for (tag, queue) in (0..).zip(&f.queues) {
            let event = EpollEvent::new(EventSet::IN, tag);
            let fd = queue.events()[1].as_raw_fd();
            calls
                .ctl(ControlOperation::Add, fd, event)
                .expect("epoll add");
        }
        let fallible = settings.failing.is_some();
        let load = Load::new(Rng::new(rng.bits()), QUEUES, fallible);
        Self {
            settings,
            daemon,
            image,
            f,
            load,
            calls,
            rng,
            running: vec![true; usize::from(QUEUES)],
            awake: vec![true; usize::from(QUEUES)],
            ends: BTreeMap::new(),
            taken_back: 0,
            noted: 0,
            round: 0,
            slowest: Duration::ZERO,
            deaths: VecDeque::new(),
            farewells: 0,
        }
    }

    fn draw(&mut self) -> Plan {
        let points = cfg!(feature = "mutants");
        let rng = &mut self.rng;
        let end = if self.settings.inflight {
            match rng.below(100) {
                0..=11 => End::KillAtReturn(rng.below(3_000)),
                12..=19 => End::Terminate,
                20..=29 => End::Disconnect,
                30..=74 if points => {
                    let point: &str = rng.pick::<&str>(self.settings.points);
                    // What has failed is rare, and worth a look at what others do meanwhile.
                    let failed = point == "failed";
                    let few = if failed { 8 } else { 4 };
                    let most = if failed || rng.one_in(3) { few } else { 120 };
                    let pause = if failed || rng.one_in(2) { PAUSE_US } else { 1 };
                    End::Point(point, rng.range(1, most), rng.below(pause))
                }
                _ => End::Kill,
            }
        } else if rng.one_in(2) {
            End::Terminate
        } else {
            End::Disconnect
        };
        let load = if rng.one_in(6) { 500 } else { LOAD_US };
        Plan {
            end,
            base: *rng.pick(&[Base::Used, Base::Zero, Base::Avail, Base::Garbage]),
            without: (self.settings.inflight && rng.one_in(10))
                .then(|| usize::try_from(rng.below(u64::from(QUEUES))).expect("index")),
            looks: rng.one_in(2),
            impatient: rng.one_in(3),
            load: Duration::from_micros(rng.below(load)),
        }
    }

    fn start(&mut self, plan: &Plan) {
        self.farewells = farewells(&self.daemon);
        self.daemon = serve(&self.image, &self.settings, Some(plan.end));
    }

    /// The daemon is there again: hands it everything.
    fn reconnect(&mut self, plan: &Plan) {
        let inflight = self.settings.inflight;
        let mut bases = Vec::new();
        for (at, queue) in self.f.queues.iter().enumerate() {
            let base = match plan.base {
                Base::Zero if inflight => 0,
                Base::Avail if inflight => queue.ring.next_avail(),
                Base::Garbage if inflight => u16::try_from(self.rng.below(1 << 16)).expect("base"),
                _ => queue.ring.used_index(),
            };
            self.running[at] = plan.without != Some(at);
            bases.push(self.running[at].then_some(base));
            self.awake[at] = plan.looks;
        }
        if plan.without.is_some() {
            *self
                .ends
                .entry("(a queue left out)".to_owned())
                .or_default() += 1;
        }
        if let Err(err) = self.f.reconnect_at(&bases) {
            // A daemon that dies at a point may do so before the last message.
            let died = matches!(plan.end, End::Point(..)) && self.wait_dead();
            assert!(died, "round {}: no session: {err}\n{plan:?}", self.round);
        }
        if !self.settings.write_cache && self.f.set_config(32, &[0]).is_err() && !self.wait_dead() {
            self.fail("the write cache cannot be turned off");
        }
        if !inflight {
            // Nobody tells the daemon of what it has not seen.
            for queue in &self.f.queues {
                queue.force_kick();
            }
        }
    }

    fn wait_dead(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if self.daemon.ended().is_some() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        false
    }

    /// Takes what came back; with calls waits for them for at most `wait` milliseconds. `true`: something came.
    fn pump(&mut self, wait: i32) -> bool {
        let mut events = [EpollEvent::default(); QUEUES as usize];
        let ready = match self.calls.wait(wait, &mut events) {
            Ok(n) => n,
            Err(err) if err.kind() == std::io::ErrorKind::Interrupted => 0,
            Err(err) => panic!("epoll: {err}"),
        };
        for event in &events[..ready] {
            let at = usize::try_from(event.data()).expect("tag");
            let _count = self.f.queues[at].events()[1].read();
            self.awake[at] = true;
        }
        let before = self.load.counts.answered;
        for at in 0..self.f.queues.len() {
            if self.awake[at] {
                self.harvest(at);
            }
        }
        self.load.counts.answered > before
    }

    /// Takes all that a queue has, and goes to sleep on it.
    fn harvest(&mut self, at: usize) {
        loop {
            let queue = &mut self.f.queues[at];
            match queue.poll() {
                Ok(Some(done)) => {
                    let index = queue.index;
                    if let Err(why) = self.load.take(index, &done) {
                        self.fail(&why);
                    }
                }
                Ok(None) => {
                    queue.ring.arm();
                    if queue.ring.ready() == 0 {
                        self.awake[at] = false;
                        return;
                    }
                }
                Err(err) => self.fail(&format!("queue {at}: {err}")),
            }
        }
    }

    fn fail(&self, why: &str) -> ! {
        let deaths: String = self.deaths.iter().map(String::as_str).collect();
        panic!("round {}: {why}\nThe last deaths:\n{deaths}", self.round);
    }

    /// Waits until `done`, and while it waits does `step`; the daemon may die meanwhile.
    fn until(
        &mut self,
        what: &str,
        mut step: impl FnMut(&mut Self),
        done: impl Fn(&Self) -> bool,
    ) -> Life {
        let mut deadline = Instant::now() + PATIENCE;
        loop {
            step(self);
            let waited =
                PATIENCE.saturating_sub(deadline.saturating_duration_since(Instant::now()));
            if waited > LEFT_OUT
                && let Some(at) = self.running.iter().position(|runs| !runs)
            {
                self.start_late(at);
                *self
                    .ends
                    .entry("(it was waited for)".to_owned())
                    .or_default() += 1;
            }
            if done(self) {
                return Life::Alive;
            }
            if self.daemon.ended().is_some() {
                return Life::Dead;
            }
            if self.pump(5) {
                deadline = Instant::now() + PATIENCE;
            }
            if Instant::now() > deadline {
                let mut why = format!("{what}: nothing more comes;");
                for (at, queue) in self.f.queues.iter().enumerate() {
                    let _ = write!(
                        why,
                        " queue {at}: runs {}, {} in flight, {} used and not called for;",
                        self.running[at],
                        queue.in_flight(),
                        queue.ring.ready()
                    );
                }
                self.fail(&why);
            }
        }
    }

    /// Every request of a queue that runs is answered.
    fn drain(&mut self) -> Life {
        self.until(
            "requests in flight",
            |_| {},
            |c| {
                let mut queues = c.f.queues.iter().zip(&c.running);
                queues.all(|(queue, runs)| !runs || queue.in_flight() == 0)
            },
        )
    }

    /// The disk holds what it must.
    fn survey(&mut self) -> Life {
        self.load.survey.start();
        let life = self.until("survey", Self::ask_for_survey, |c| {
            c.load.survey.is_complete()
        });
        if life == Life::Dead {
            self.load.survey.stop();
            return life;
        }
        if let Err(why) = self.load.judge_survey() {
            self.fail(&why);
        }
        life
    }

    fn ask_for_survey(&mut self) {
        for (queue, runs) in self.f.queues.iter_mut().zip(&self.running) {
            if *runs {
                while self.load.survey(queue) {}
                queue.kick();
            }
        }
    }

    /// With nothing in flight the region says so.
    fn region_is_idle(&mut self) {
        let Some(region) = &self.f.inflight else {
            return;
        };
        if self.running.contains(&false) {
            return;
        }
        // The flags are cleared after the answer is published.
        let deadline = Instant::now() + PATIENCE;
        for queue in &self.f.queues {
            loop {
                let tracked = region.tracked(queue.index);
                let idle = tracked.heads.is_empty() && tracked.used_idx == queue.ring.used_index();
                if idle && tracked.version == 1 && tracked.desc_num == QUEUE_SIZE {
                    break;
                }
                if Instant::now() > deadline {
                    let used = queue.ring.used_index();
                    self.fail(&format!("idle at {used}, and the region says {tracked:?}"));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// Load for a while, or until the daemon comes by its point.
    fn generate(&mut self, plan: &Plan) -> Life {
        let wait = match plan.end {
            End::Point(..) => plan.load.max(POINT_PATIENCE),
            _ => plan.load,
        };
        let deadline = Instant::now() + wait;
        while Instant::now() < deadline {
            for (queue, runs) in self.f.queues.iter_mut().zip(&self.running) {
                if !runs {
                    continue;
                }
                // Not always to the brim: short queues make other orders.
                let depth = 1 + self.rng.below(DEPTH as u64);
                let mut budget = 2 * DEPTH;
                while (queue.in_flight() as u64) < depth && budget > 0 && self.load.submit(queue) {
                    budget -= 1;
                }
                queue.kick();
            }
            self.pump(1);
            if self.daemon.ended().is_some() {
                return Life::Dead;
            }
        }
        Life::Alive
    }

    fn work(&mut self, plan: &Plan) -> Life {
        if let End::KillAtReturn(after) = plan.end {
            std::thread::sleep(Duration::from_micros(after));
            return Life::Alive;
        }
        if !plan.impatient {
            if self.settle() == Life::Dead {
                return Life::Dead;
            }
            if let Some(at) = plan.without.filter(|at| plan.looks && !self.running[*at]) {
                self.start_late(at);
                if self.settle() == Life::Dead {
                    return Life::Dead;
                }
            }
        }
        self.generate(plan)
    }

    fn settle(&mut self) -> Life {
        if self.drain() == Life::Dead || self.survey() == Life::Dead {
            return Life::Dead;
        }
        self.region_is_idle();
        Life::Alive
    }

    fn start_late(&mut self, at: usize) {
        let base = self.f.queues[at].ring.used_index();
        if let Err(err) = self.f.start_queue_from(at, base) {
            // It may die at a point meanwhile; what follows finds out.
            if !self.wait_dead() {
                self.fail(&format!("queue {at} cannot be started: {err}"));
            }
        }
        self.running[at] = true;
    }

    /// Brings the round to its end, unless the daemon did.
    fn end(&mut self, plan: &Plan, life: Life) {
        let mut name = match plan.end {
            End::KillAtReturn(_) => "kill at return".to_owned(),
            End::Kill => "kill".to_owned(),
            End::Point(point, ..) => point.to_owned(),
            End::Terminate => "SIGTERM".to_owned(),
            End::Disconnect => "disconnect".to_owned(),
        };
        if life == Life::Dead {
            let status = self.daemon.wait_exit();
            // It aborts, and the sandbox does not even let it do that, as nothing else that it forbids: so
            // it must have said what it was about to do.
            let ways = [libc::SIGABRT, libc::SIGSYS].map(Some);
            let said = farewells(&self.daemon) > self.farewells;
            let planned = matches!(plan.end, End::Point(..)) && said;
            if !planned || !ways.contains(&status.signal()) {
                self.fail(&format!("the daemon ended by itself: {status}"));
            }
        } else {
            match plan.end {
                End::Disconnect => self.disconnect(),
                End::Terminate => {
                    self.daemon.signal(libc::SIGTERM);
                    let status = self.daemon.wait_exit();
                    if !status.success() {
                        self.fail(&format!("SIGTERM: {status}"));
                    }
                }
                _ => {
                    if matches!(plan.end, End::Point(..)) {
                        name = "kill short of a point".to_owned();
                    }
                    self.daemon.signal(libc::SIGKILL);
                    self.daemon.wait_exit();
                }
            }
        }
        let held: usize = match &self.f.inflight {
            Some(region) => (0..QUEUES).map(|q| region.tracked(q).heads.len()).sum(),
            None => 0,
        };
        self.taken_back += held as u64;
        if let Some(region) = &self.f.inflight {
            let noted: usize = (0..QUEUES).map(|q| region.noted(q)).sum();
            self.noted += noted as u64;
        }
        if self.deaths.len() == DEATHS {
            self.deaths.pop_front();
        }
        self.deaths.push_back(format!(
            "  {}: {plan:?} ended as {name} with {held} in flight\n",
            self.round
        ));
        *self.ends.entry(name).or_default() += 1;
        for zone in &mut self.load.zones {
            zone.note_death(self.round);
        }
        if plan.looks {
            for at in 0..self.f.queues.len() {
                self.harvest(at);
            }
        }
    }

    /// Without a region the queues are stopped first: nobody else could tell where they stand.
    fn disconnect(&mut self) {
        for at in 0..self.f.queues.len() {
            if !self.settings.inflight
                && let Err(err) = self.f.stop_queue(at)
            {
                self.fail(&format!("queue {at} cannot be stopped: {err}"));
            }
        }
        self.f.wire.close();
    }

    pub(super) fn run(mut self) -> Counts {
        let mut plan = self.draw();
        while matches!(plan.end, End::Point(..)) {
            plan = self.draw();
        }
        plan.without = None;
        for round in 0..self.settings.rounds {
            self.round = round;
            let began = Instant::now();
            let life = self.work(&plan);
            self.end(&plan, life);
            self.slowest = self.slowest.max(began.elapsed());
            let same_daemon = plan.end == End::Disconnect;
            plan = self.draw();
            if round + 1 == self.settings.rounds {
                plan.end = End::Terminate;
                plan.without = None;
            }
            if same_daemon {
                if let End::Point(..) = plan.end {
                    plan.end = End::Kill;
                }
            } else {
                self.start(&plan);
            }
            self.reconnect(&plan);
        }
        if self.settle() == Life::Dead {
            self.fail("the daemon ended by itself");
        }
        let counts = self.load.counts;
        println!(
            "{} rounds {:?}: {} requests answered, {} of them with an error; {} stamps acknowledged, \
             {} checked; {} requests taken back, {} of them with an intent; the slowest round took {:?}",
            self.settings.rounds,
            self.ends,
            counts.answered,
            counts.refused,
            counts.stamps,
            counts.checked,
            self.taken_back,
            self.noted,
            self.slowest
        );
        counts
    }
}

fn farewells(daemon: &Daemon) -> usize {
    daemon.log().matches(LAST_WORDS).count()
}

fn serve(image: &Image, settings: &Settings, end: Option<End>) -> Daemon {
    let mut environment = settings.environment.clone();
    if let Some(End::Point(point, count, pause)) = end {
        environment.push(("ZONEVAULT_DIE_AT", format!("{point}:{count}:{pause}")));
    }
    if let Some(one_in) = settings.failing {
        environment.push(("ZONEVAULT_FAIL_WRITES", one_in.to_string()));
    }
    let queues = QUEUES.to_string();
    let mut options = vec!["--queues", queues.as_str()];
    options.extend(&settings.serve);
    Daemon::serve_in(image, &options, &environment)
}
