//! What a hundred thousand messages leave behind: nothing.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use vhost::vhost_user::message::FrontendReq;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::common::frontend::Frontend;
use crate::common::memory::Region;
use crate::common::rng::Rng;
use crate::common::wire::{longs, words};
use crate::stage::{SOON, Seen, Stage, tell};

/// Messages of a run.
const MESSAGES: u64 = 100_000;
/// Connections that the messages may need at most: some of them end theirs.
const CONNECTIONS: u64 = 1_000;
/// Resident memory may grow by so many KiB: caches of the allocator, one stack that was deeper than before.
const RSS_SLACK: u64 = 4 << 10;
/// Lines of log that a connection may cost: it came, it went, and why.
const LINES_PER_CONNECTION: u64 = 3;

/// What a process holds.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Holdings {
    descriptors: BTreeMap<String, usize>,
    maps: usize,
    threads: u64,
    rss: u64,
}

/// Mappings that come and go with the allocator's arenas.
const MAPS_SLACK: usize = 4;

impl Holdings {
    /// Of what is counted in pieces.
    fn holds_no_more_than(&self, before: &Self) -> bool {
        let mut kinds = self.descriptors.iter();
        kinds.all(|(kind, count)| before.descriptors.get(kind).is_some_and(|had| count <= had))
            && self.maps <= before.maps + MAPS_SLACK
            && self.threads <= before.threads
    }
}

fn holdings(pid: u32) -> Holdings {
    let mut descriptors = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors") {
        let Ok(target) = entry.and_then(|entry| fs::read_link(entry.path())) else {
            continue;
        };
        let name = target.to_string_lossy().into_owned();
        // Sockets and pipes carry a number of their own.
        let kind = name.split(":[").next().unwrap_or(&name).to_owned();
        *descriptors.entry(kind).or_insert(0) += 1;
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name));
        let number = line.and_then(|line| line.split_whitespace().nth(1));
        number.expect("a field").parse().expect("a number")
    };
    Holdings {
        descriptors,
        maps: fs::read_to_string(format!("/proc/{pid}/maps"))
            .expect("maps")
            .lines()
            .count(),
        threads: field("Threads:"),
        rss: field("VmRSS:"),
    }
}

/// One of the messages that a front-end sends, well or badly, with whatever descriptors belong to it.
fn message(f: &mut Frontend, rng: &mut Rng) -> Seen {
    let event = || EventFd::new(EFD_NONBLOCK).expect("eventfd");
    let regions = f.ram.regions();
    let region = |r: &Region| [r.span.start, r.span.len, r.user_addr, r.file_offset];
    match rng.below(16) {
        0 => tell(f, 1, &[], &[]),
        1 => tell(f, 15, &[], &[]),
        2 => tell(f, 17, &[], &[]),
        3..=5 => {
            let code = 12 + u32::try_from(rng.below(3)).expect("small");
            tell(f, code, &longs(&[0]), &[event().as_raw_fd()])
        }
        6 => {
            let mut body = words(&[1, 0]);
            body.extend_from_slice(&longs(&region(&regions[0])));
            tell(
                f,
                FrontendReq::SET_MEM_TABLE as u32,
                &body,
                &[regions[0].fd],
            )
        }
        7 => {
            let mut body = words(&[2, 0]);
            for r in &regions {
                body.extend_from_slice(&longs(&region(r)));
            }
            let fds = [regions[0].fd, regions[1].fd];
            tell(f, FrontendReq::SET_MEM_TABLE as u32, &body, &fds)
        }
        8 => {
            let mut body = longs(&[0]);
            body.extend_from_slice(&longs(&region(&regions[1])));
            tell(f, FrontendReq::ADD_MEM_REG as u32, &body, &[regions[1].fd])
        }
        9 => {
            let mut body = longs(&[0]);
            body.extend_from_slice(&longs(&region(&regions[1])));
            tell(f, FrontendReq::REM_MEM_REG as u32, &body, &[])
        }
        10 => tell(f, 11, &words(&[1, 0]), &[]),
        11 => tell(f, 8, &words(&[1, 1 << rng.below(9)]), &[]),
        12 => tell(f, 10, &words(&[1, 7]), &[]),
        13 => {
            let mut body = words(&[0, 96, 0]);
            body.resize(12 + 96, 0);
            tell(f, 24, &body, &[])
        }
        14 => {
            // The position of a queue that would take many more: it is there to be refused.
            let mut body = words(&[1, 0]);
            body.extend_from_slice(&longs(&[rng.bits(), rng.bits(), rng.bits(), 0]));
            tell(f, 9, &body, &[])
        }
        _ => tell(f, 18, &words(&[1, u32::from(rng.one_in(2))]), &[]),
    }
}

/// Messages that come with descriptors that nobody asked for.
fn excess(f: &mut Frontend, rng: &mut Rng) -> Seen {
    let events: Vec<EventFd> = (0..rng.range(1, 40))
        .map(|_| EventFd::new(EFD_NONBLOCK).expect("eventfd"))
        .collect();
    let fds: Vec<i32> = events.iter().map(AsRawFd::as_raw_fd).collect();
    let code = *rng.pick(&[1, 3, 8, 11, 12, 13, 24, 36, 37, 77]);
    let body = vec![0; usize::try_from(rng.below(64)).expect("small")];
    tell(f, code, &body, &fds)
}

/// Waits until the process holds as little as before, or says what is left.
fn settled(pid: u32, before: &Holdings) -> Holdings {
    let deadline = Instant::now() + SOON;
    loop {
        let now = holdings(pid);
        if now.holds_no_more_than(before) || Instant::now() >= deadline {
            return now;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_hundred_thousand_messages_leave_nothing_behind() {
    let mut rng = Rng::from_env(501);
    let mut stage = Stage::plain();
    let pid = stage.rig.daemon.as_ref().expect("running").pid();
    // Once around, so that what is made once is there.
    for _ in 0..200 {
        if message(stage.session(), &mut rng) == Seen::Closed {
            stage.leave();
        }
    }
    stage.fresh().queue().assert_alive();
    let before = holdings(pid);
    let lines_before = stage.rig.log().lines().count() as u64;
    let (mut sent, mut connections) = (0, 1);
    while sent < MESSAGES {
        let seen = if connections < CONNECTIONS && rng.one_in(200) {
            excess(stage.session(), &mut rng)
        } else {
            message(stage.session(), &mut rng)
        };
        sent += 1;
        assert!(!matches!(seen, Seen::Wrong(_)), "message {sent}: {seen}");
        if seen == Seen::Closed {
            stage.leave();
            connections += 1;
            assert!(
                connections < MESSAGES / 5,
                "nearly every message ends the connection"
            );
        }
    }
    stage.fresh().queue().assert_alive();
    connections += 1;
    let after = settled(pid, &before);
    println!("{sent} messages, {connections} connections: {before:?} then {after:?}");
    assert!(
        after.holds_no_more_than(&before),
        "{before:?} then {after:?}"
    );
    assert!(
        after.rss <= before.rss + RSS_SLACK,
        "{} KiB, {} before",
        after.rss,
        before.rss
    );
    let lines = stage.rig.log().lines().count() as u64 - lines_before;
    assert!(
        lines <= LINES_PER_CONNECTION * connections + 200,
        "{lines} lines of log for {connections} connections"
    );
}

#[test]
fn a_guest_cannot_fill_the_log_with_resets() {
    let mut stage = Stage::plain();
    let before = stage.rig.log().lines().count();
    let f = stage.fresh();
    for _ in 0..500 {
        f.stop_queue(0).expect("it stops");
        f.start_queue(0).expect("it starts");
        f.queue().assert_alive();
    }
    let lines = stage.rig.log().lines().count() - before;
    assert!(lines < 50, "{lines} lines");
}

#[test]
fn a_guest_cannot_fill_the_log_with_bad_requests() {
    let mut stage = Stage::plain();
    let before = stage.rig.log().lines().count();
    let q = stage.queue();
    let parts = crate::stage::Parts::new(q);
    for _ in 0..20_000 {
        let ticket = q
            .submit_raw(&[crate::stage::raw(parts.write, 0, 0)])
            .expect("room");
        q.kick();
        q.wait(ticket, SOON).expect("it comes back");
    }
    stage.queue().assert_alive();
    let lines = stage.rig.log().lines().count() - before;
    assert!((1..50).contains(&lines), "{lines} lines");
}
