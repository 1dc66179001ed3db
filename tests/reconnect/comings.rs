//! Front-ends that come, go and ask for much: what the daemon keeps of them, and what it owes them.

use std::time::Duration;

use crate::common::daemon::Rig;
use crate::common::frontend::{Frontend, Options};
use crate::common::request::{Layout, Request, status};

/// Connections that end at a bad moment: the race was met within 200.
const CONNECTIONS: u64 = 300;
const PATIENCE: Duration = Duration::from_secs(10);

fn descriptors(rig: &Rig) -> usize {
    let pid = rig.daemon.as_ref().unwrap().pid();
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .count()
}

#[test]
fn a_ring_fuller_than_the_buffers_is_served_to_its_end() {
    let rig = Rig::new(&["--size", "64M", "--plain"], &["--cache", "writeback"]);
    let mut f = Frontend::open_with(&rig.socket(), Options::default());
    let data = vec![7; 128 << 10];
    for i in 0..40 {
        let write = Request::write(i * 256, &data);
        f.queue().submit(&write, &Layout::indirect()).unwrap();
    }
    f.queue().kick();
    for _ in 0..40 {
        f.queue().reap(PATIENCE).unwrap();
    }
}

#[test]
fn connections_leave_no_descriptors_behind() {
    let rig = Rig::new(&["--size", "16M", "--plain"], &["--queues", "4"]);
    let mut counts = Vec::new();
    for _ in 0..10 {
        let mut f = Frontend::open_with(&rig.socket(), Options::queues(4));
        f.queue().assert_alive();
        counts.push(descriptors(&rig));
    }
    // How many are open at a moment varies with what is still being closed.
    let (early, late) = (counts[..3].iter().max(), counts[5..].iter().min());
    assert!(late <= early, "{counts:?}");
}

#[test]
fn a_front_end_that_goes_right_after_a_kick_holds_no_zone() {
    let rig = Rig::new(&["--size", "64M", "--zone-size", "4M"], &[]);
    let data = vec![7; 4096];
    for i in 0..CONNECTIONS {
        let mut f = Frontend::open(&rig.socket());
        for zone in 0..8 {
            let append = Request::append(zone * 8192, &data, 9);
            let _ = f.queue().submit(&append, &Layout::indirect());
        }
        f.queue().kick();
        if i % 3 == 1 {
            std::thread::sleep(Duration::from_micros(i % 300 * 5));
        }
    }
    let mut f = Frontend::open(&rig.socket());
    for zone in 0..8 {
        let (code, _) = f.queue().append(zone * 8192, &data, 9);
        assert_eq!(code, status::OK, "zone {zone}");
    }
}

#[test]
fn a_guest_cannot_fill_the_log_with_its_write_cache() {
    let rig = Rig::new(&["--size", "16M", "--plain"], &[]);
    let mut f = Frontend::open_with(&rig.socket(), Options::default());
    for i in 0..500_u16 {
        f.set_config(32, &[u8::from(i % 2 == 0)]).unwrap();
    }
    f.sync().unwrap();
    let lines = rig
        .log()
        .lines()
        .filter(|l| l.contains("write cache"))
        .count();
    assert!((1..50).contains(&lines), "{lines} lines");
}
