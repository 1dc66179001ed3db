//! Each test runs its threads in every order that matters, and with every value that a weak memory
//! may show them.
#![cfg(test)]

mod hand_over;
#[allow(dead_code, reason = "as much as some state of the sources uses")]
mod kept;
mod prefix;
mod shim;
mod table;
mod world;

mod geometry {
    //! As much of the units as the sources here use.

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct Generation(pub(crate) u64);
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    pub(crate) struct Blocks(pub(crate) u64);
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
    pub(crate) struct ZoneIndex(pub(crate) u32);

    impl ZoneIndex {
        pub(crate) fn as_usize(self) -> usize {
            self.0 as usize
        }
    }
}

mod answer {
    use crate::geometry::{Blocks, Generation};

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) struct ReadView {
        pub(crate) generation: Generation,
        pub(crate) written: Blocks,
    }
}

#[allow(dead_code, reason = "not all that the sources can do is called here")]
mod view {
    include!(concat!(env!("OUT_DIR"), "/view.rs"));
}
#[allow(dead_code, reason = "as above")]
mod view_unfenced {
    include!(concat!(env!("OUT_DIR"), "/view_unfenced.rs"));
}
#[allow(dead_code, reason = "as above")]
mod mailbox {
    include!(concat!(env!("OUT_DIR"), "/mailbox.rs"));
}
#[allow(dead_code, reason = "as above")]
mod mailbox_early {
    include!(concat!(env!("OUT_DIR"), "/mailbox_early.rs"));
}

use answer::ReadView;
use geometry::{Blocks, Generation, ZoneIndex};
use loom::thread;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

fn view(number: u64) -> ReadView {
    ReadView {
        generation: Generation(number),
        written: Blocks(number * 3),
    }
}

/// Bounds the number of orders: more than so many times no thread is interrupted, which finds nearly
/// every mistake that there is and takes seconds.
fn explore(case: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    let orders = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&orders);
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        case();
    });
    println!("{} orders", orders.load(Ordering::Relaxed));
}

macro_rules! readers_see_whole_views {
    ($module:ident) => {
        explore(|| {
            let views = Arc::new($module::Views::new([Some(view(0))].into_iter()));
            let writer = Arc::clone(&views);
            let writes = thread::spawn(move || {
                writer.set(ZoneIndex(0), Some(view(1)));
                writer.set(ZoneIndex(0), Some(view(2)));
            });
            let mut last = 0;
            for _ in 0..2 {
                let seen = views.get(ZoneIndex(0)).flatten().expect("a view");
                assert_eq!(seen, view(seen.generation.0), "half of a change");
                assert!(seen.generation.0 >= last, "time runs forward");
                last = seen.generation.0;
            }
            writes.join().expect("the writer");
        });
    };
}

#[test]
fn a_reader_never_sees_half_a_change() {
    readers_see_whole_views!(view);
}

#[test]
#[should_panic(expected = "half of a change")]
fn without_its_fence_a_reader_does() {
    readers_see_whole_views!(view_unfenced);
}

macro_rules! all_mail_arrives {
    ($module:ident) => {
        explore(|| {
            let mailbox = Arc::new($module::Mailbox::new().expect("an event"));
            let senders: Vec<_> = (0..2)
                .map(|number| {
                    let mailbox = Arc::clone(&mailbox);
                    thread::spawn(move || mailbox.post(number).expect("an event"))
                })
                .collect();
            let mut mail = Vec::new();
            // As a worker does that was woken, and that sleeps then.
            shim::wait_for(mailbox.event());
            mailbox.quiet();
            mailbox.take(&mut mail);
            for sender in senders {
                sender.join().expect("a sender");
            }
            let woken = shim::is_raised(mailbox.event());
            let first = mail.len();
            mailbox.quiet();
            mailbox.take(&mut mail);
            drop(mailbox);
            assert!(woken || first == 2, "it sleeps, and there is mail");
            mail.sort_unstable();
            assert!(mail == [0, 1], "mail stays behind");
        });
    };
}

#[test]
fn what_is_posted_arrives_and_wakes() {
    all_mail_arrives!(mailbox);
}

#[test]
#[should_panic(expected = "mail")]
fn mail_that_comes_after_the_wake_up_does_not() {
    all_mail_arrives!(mailbox_early);
}

/// A worker that polls finds mail without its event.
#[test]
fn a_queue_that_finds_nothing_has_missed_nothing() {
    explore(|| {
        let mailbox = Arc::new(mailbox::Mailbox::new().expect("an event"));
        let sender = Arc::clone(&mailbox);
        let sends = thread::spawn(move || sender.post(1).expect("an event"));
        let mut mail = Vec::new();
        while !mailbox.has_something() {
            thread::yield_now();
        }
        mailbox.take(&mut mail);
        assert_eq!(mail, [1]);
        sends.join().expect("the sender");
    });
}
