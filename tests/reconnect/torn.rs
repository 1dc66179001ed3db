//! Blocks that are written in place by a daemon that is killed: afterwards each is what it was before, or what was to
//! be there, and never half of both.
//!
//! The image is one that is mapped: a kill can come in the middle of a copy there, and with the feature `mutants` it
//! always does. The front-end keeps nothing for the next daemon and asks for nothing again, or that would write over
//! what is torn.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::common::daemon::{Daemon, Image};
use crate::common::frontend::{Frontend, Options};
use crate::common::request::{Layout, Request, kind, status};
use crate::common::rng::Rng;

const BLOCK: usize = 4096;
const SECTORS: u64 = BLOCK as u64 / 512;
/// Few enough to be written over and over.
const BLOCKS: u64 = 256;
const QUEUES: usize = 2;
/// Requests that a queue gets before the kill. No block is in two of them.
const BATCH: usize = 100;
/// Longest time from the kicks to the kill.
const LIFE_NS: u64 = 800_000;

/// What a block may hold.
#[derive(Clone, Copy, Debug, Default)]
struct Truth {
    before: u64,
    begun: Option<u64>,
}

#[derive(Debug)]
struct Disk {
    image: Image,
    rng: Rng,
    blocks: Vec<Truth>,
    stamp: u64,
    environment: Vec<(&'static str, String)>,
}

impl Disk {
    fn new(environment: Vec<(&'static str, String)>) -> Self {
        let create = ["--plain", "--size", "16M"];
        Self {
            image: Image::create_in(Path::new("/dev/shm"), &create),
            rng: Rng::from_env(79),
            blocks: vec![Truth::default(); usize::try_from(BLOCKS).expect("a few")],
            stamp: 0,
            environment,
        }
    }

    fn serve(&mut self) -> (Daemon, Frontend) {
        let mut environment = self.environment.clone();
        if cfg!(feature = "mutants") {
            let count = self.rng.range(1, (QUEUES * BATCH) as u64);
            environment.push(("ZONEVAULT_DIE_AT", format!("half-written:{count}")));
        }
        let daemon = Daemon::serve_in(&self.image, &["--queues", "2"], &environment);
        let frontend = Frontend::open_with(daemon.socket(), Options::queues(2));
        (daemon, frontend)
    }

    fn next_stamp(&mut self) -> u64 {
        self.stamp += 1;
        self.stamp
    }

    /// Every block gets something to be written over.
    fn fill(&mut self, frontend: &mut Frontend) {
        for block in 0..BLOCKS {
            let stamp = self.next_stamp();
            let done = frontend
                .queue()
                .try_call(&write(block, stamp), &Layout::default());
            assert_eq!(done.expect("an answer").status(), status::OK);
            self.truth(block).before = stamp;
        }
    }

    fn truth(&mut self, block: u64) -> &mut Truth {
        &mut self.blocks[usize::try_from(block).expect("a few")]
    }

    /// Lets a daemon be killed in the middle of its work, or of a block.
    fn kill(&mut self, mut daemon: Daemon, frontend: &mut Frontend) {
        let first = self.rng.below(BLOCKS);
        for at in 0..QUEUES * BATCH {
            let block = (first + at as u64) % BLOCKS;
            let stamp = self.next_stamp();
            self.truth(block).begun = Some(stamp);
            let queue = &mut frontend.queues[at % QUEUES];
            queue
                .submit(&write(block, stamp), &Layout::indirect())
                .expect("room");
        }
        for queue in &mut frontend.queues {
            queue.kick();
        }
        if cfg!(feature = "mutants") {
            daemon.wait_exit();
            return;
        }
        let life = self.rng.below(LIFE_NS);
        let end = Instant::now() + Duration::from_nanos(life);
        while Instant::now() < end {
            std::hint::spin_loop();
        }
        daemon.kill9();
    }

    /// Reads all there is. How many of the blocks that were begun are written, or what is torn.
    fn judge(&mut self, frontend: &mut Frontend) -> Result<u64, String> {
        let mut written = 0;
        for block in 0..BLOCKS {
            let request = Request::new(kind::IN, block * SECTORS).with_space(BLOCK);
            let done = frontend.queue().try_call(&request, &Layout::default());
            let done = done.expect("an answer");
            assert_eq!(done.status(), status::OK);
            let stamps = stamps_in(done.data());
            let Truth { before, begun } = *self.truth(block);
            let (found, whole) = (stamps[0], stamps.windows(2).all(|two| two[0] == two[1]));
            if !whole {
                return Err(format!(
                    "block {block}: torn: {before} and {begun:?}, and found {stamps:?}"
                ));
            }
            if found != before && Some(found) != begun {
                return Err(format!(
                    "block {block}: {before} or {begun:?}, and found {found}"
                ));
            }
            written += u64::from(Some(found) == begun);
            *self.truth(block) = Truth {
                before: found,
                begun: None,
            };
        }
        Ok(written)
    }

    /// Kills daemons. How many blocks were written of those that were begun, or why it came to an end before.
    fn kill_many(&mut self, rounds: u64) -> Result<(u64, u64), String> {
        let (mut daemon, mut frontend) = self.serve();
        self.fill(&mut frontend);
        let mut written = 0;
        for round in 0..rounds {
            self.kill(daemon, &mut frontend);
            (daemon, frontend) = self.serve();
            // What was read is mapped: so this is also what lets the next writes go through the mapping.
            let judged = self.judge(&mut frontend);
            written += judged.map_err(|why| format!("round {round}: {why}"))?;
        }
        drop(frontend);
        daemon.stop();
        Ok((written, rounds * (QUEUES * BATCH) as u64))
    }
}

fn write(block: u64, stamp: u64) -> Request {
    let data: Vec<u8> = stamp.to_le_bytes().repeat(BLOCK / 8);
    Request::new(kind::OUT, block * SECTORS).with_data(&data)
}

fn stamps_in(data: &[u8]) -> Vec<u64> {
    let (stamps, _) = data.as_chunks::<8>();
    stamps
        .iter()
        .map(|stamp| u64::from_le_bytes(*stamp))
        .collect()
}

fn has_tmpfs() -> bool {
    let there = Path::new("/dev/shm").is_dir();
    if !there {
        println!("skipped: no tmpfs at /dev/shm");
    }
    there
}

#[test]
fn no_block_of_a_mapped_image_is_torn_by_a_kill() {
    if !has_tmpfs() {
        return;
    }
    let rounds = super::campaigns::rounds(50);
    let (written, begun) = Disk::new(Vec::new())
        .kill_many(rounds)
        .unwrap_or_else(|why| panic!("{why}"));
    println!("{rounds} kills, {written} of {begun} blocks written");
    assert!(
        (1..begun).contains(&written),
        "no kill came in the middle: {written} of {begun}"
    );
}

/// The fault that this is about is found.
#[cfg(feature = "mutants")]
#[test]
fn mutants_that_tear_blocks_are_found() {
    const MOST: u64 = 20;
    if !has_tmpfs() {
        return;
    }
    let name = zonevault::mutant::Mutant::NAMED
        .into_iter()
        .find_map(|(name, mutant)| {
            (mutant == zonevault::mutant::Mutant::WriteInPlaceOnce).then_some(name)
        });
    let environment = vec![("ZONEVAULT_MUTANT", name.expect("it has a name").to_owned())];
    let why = Disk::new(environment)
        .kill_many(MOST)
        .expect_err("torn blocks");
    println!("{why}");
    assert!(why.contains("torn"), "{why}");
}

/// What cannot be finished is said.
#[cfg(feature = "mutants")]
#[test]
fn a_read_only_daemon_says_that_blocks_are_half_written() {
    if !has_tmpfs() {
        return;
    }
    let mut disk = Disk::new(Vec::new());
    let (daemon, mut frontend) = disk.serve();
    disk.fill(&mut frontend);
    disk.kill(daemon, &mut frontend);
    // The log is that of all daemons of the image.
    let said = |daemon: &Daemon, what| daemon.log().matches(what).count();
    let read_only = Daemon::serve(&disk.image, &["--read-only"]);
    assert_eq!(said(&read_only, "half written"), 1);
    read_only.stop();
    let (daemon, mut frontend) = disk.serve();
    assert_eq!(said(&daemon, ": finished "), 1);
    disk.judge(&mut frontend).expect("whole blocks");
    drop(frontend);
    daemon.stop();
    let read_only = Daemon::serve(&disk.image, &["--read-only"]);
    assert_eq!(said(&read_only, "half written"), 1);
    read_only.stop();
}
