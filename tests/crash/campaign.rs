//! The campaigns: what runs, for how long, and what must have happened.

use std::cell::RefCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use zonevault::crypt::Cipher;

use crate::book::Book;
use crate::exhaustive;
use crate::history::{self, Plan};
use crate::judge::{FOREIGN_ONE_IN, Judge};
use crate::shape::{Base, Shape};
use crate::tally::{Tally, faults};
use crate::world::Look;

/// How long a drawn campaign runs in CI.
const CI_TIME: Duration = Duration::from_secs(20);

const SMALL: Look = Look {
    one_in: 2,
    exhaust: 8,
    drawn: 3,
    recoveries: 6,
    kills: 6,
};

const BLOCKS_OF_512: Shape = Shape {
    cipher: Cipher::Aes256Xts,
    block: 512,
    zones: 4,
    capacity: 8,
    max_open: 2,
    max_active: 3,
};

const BLOCKS_OF_4096: Shape = Shape {
    block: 4096,
    zones: 3,
    capacity: 6,
    max_open: 2,
    max_active: 2,
    ..BLOCKS_OF_512
};

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is a decimal number")),
    )
}

fn seed() -> u64 {
    let clock = || {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_nanos()
    };
    number("CRASH_SEED").unwrap_or_else(|| u64::try_from(clock() % 1_000_000_007).unwrap())
}

/// Runs drawn histories for the time that is set.
fn drawn(name: &str, shape: Shape, plan: Plan) {
    let base = Base::new(shape);
    let tally = RefCell::new(Tally::new());
    let time = number("CRASH_TIME").map_or(CI_TIME, Duration::from_secs);
    let most = number("CRASH_HISTORIES").unwrap_or(u64::MAX);
    let first = seed();
    println!("{name}: CRASH_SEED={first}");
    let mut run = 0;
    while run < most && tally.borrow().elapsed() < time {
        let seed = first.wrapping_add(run);
        let judge = Judge {
            base: &base,
            tally: &tally,
            foreign_one_in: number("CRASH_PYTHON").unwrap_or(FOREIGN_ONE_IN),
            book: RefCell::new(Book::default()),
        };
        if let Err(why) = history::run(&judge, seed, plan) {
            panic!(
                "{name}: {why}\nreplay: CRASH_SEED={seed} CRASH_HISTORIES=1 cargo test --test crash -- --nocapture {name}"
            );
        }
        tally.borrow_mut().nonces += judge.book.borrow().nonces() as u64;
        base.reader.forget_keys();
        run += 1;
    }
    finish(name, &base, &tally.into_inner(), plan.faults);
}

/// Prints what happened. A campaign that ran in full must have fired every fault that it could.
fn finish(name: &str, base: &Base, tally: &Tally, faulty: bool) {
    let counts = base.medium.control().counts();
    println!("{}", tally.report(name, &counts));
    let replayed = number("CRASH_HISTORIES").is_some() || number("CRASH_SEED").is_some();
    if faulty && !replayed {
        let fired = faults(tally, &counts, base.shape.tagged());
        let silent: Vec<&str> = fired
            .iter()
            .filter(|(_, count)| *count == 0)
            .map(|(what, _)| *what)
            .collect();
        assert!(silent.is_empty(), "{name}: never fired: {silent:?}");
    }
}

fn all_of(name: &str, shape: Shape, look: Look) {
    let base = Base::new(shape);
    let tally = RefCell::new(Tally::new());
    let only = number("CRASH_SEED");
    for history in 0..exhaustive::count() {
        if only.is_some_and(|only| only != history) {
            continue;
        }
        let judge = Judge {
            base: &base,
            tally: &tally,
            foreign_one_in: number("CRASH_PYTHON").unwrap_or(FOREIGN_ONE_IN),
            book: RefCell::new(Book::default()),
        };
        if let Err(why) = exhaustive::run(&judge, history, look) {
            panic!(
                "{name}: {why}\nreplay: CRASH_SEED={history} cargo test --test crash -- --nocapture {name}"
            );
        }
        base.reader.forget_keys();
    }
    finish(name, &base, &tally.into_inner(), false);
}

pub(crate) const DRAWN: Plan = Plan {
    steps: 60,
    faults: false,
    syncs: false,
    look: SMALL,
};

pub(crate) const FAULTY: Plan = Plan {
    syncs: true,
    faults: true,
    ..DRAWN
};

#[test]
fn drawn_xts_512() {
    drawn("drawn_xts_512", BLOCKS_OF_512, DRAWN);
}

#[test]
fn drawn_xts_4096_with_errors() {
    drawn("drawn_xts_4096_with_errors", BLOCKS_OF_4096, FAULTY);
}

#[test]
fn exhaustive_xts() {
    let look = Look {
        one_in: 1,
        exhaust: 32,
        drawn: 12,
        recoveries: 16,
        kills: 8,
    };
    all_of("exhaustive_xts", BLOCKS_OF_512, look);
}

pub(crate) const GCM: Shape = Shape {
    cipher: Cipher::Aes256Gcm,
    ..BLOCKS_OF_512
};
pub(crate) const GCM_4096: Shape = Shape {
    cipher: Cipher::Aes256Gcm,
    ..BLOCKS_OF_4096
};
const CRC: Shape = Shape {
    cipher: Cipher::Aes256XtsCrc64,
    ..BLOCKS_OF_4096
};

#[test]
fn drawn_gcm_512() {
    drawn("drawn_gcm_512", GCM, DRAWN);
}

#[test]
fn drawn_gcm_4096_with_errors() {
    drawn("drawn_gcm_4096_with_errors", GCM_4096, FAULTY);
}

#[test]
fn drawn_crc_4096_with_errors() {
    drawn("drawn_crc_4096_with_errors", CRC, FAULTY);
}

#[test]
fn exhaustive_gcm() {
    let look = Look {
        one_in: 1,
        exhaust: 32,
        drawn: 12,
        recoveries: 16,
        kills: 8,
    };
    all_of("exhaustive_gcm", GCM, look);
}
