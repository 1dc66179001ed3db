//! The test of the test: the disk is made to do one thing wrong, and the simulator must find out, within a number of
//! states that is stated here.
//!
//! ```text
//! cargo test --features mutants --test crash -- --nocapture mutants
//! ```

use std::cell::RefCell;

use zonevault::mutant::{Mutant, choose};

use crate::book::Book;
use crate::campaign::{DRAWN, FAULTY, GCM, GCM_4096};
use crate::history::{self, Plan};
use crate::judge::{FOREIGN_ONE_IN, Judge};
use crate::shape::{Base, Shape};
use crate::tally::Tally;

/// Where a mutant shows, and after how many states at most.
fn hunt(mutant: Mutant) -> (Shape, Plan, u64) {
    match mutant {
        Mutant::AcknowledgeOutOfOrder => (GCM, DRAWN, 2_000),
        Mutant::KeepEpoch => (GCM, DRAWN, 100),
        Mutant::RecordBeforeData => (GCM, DRAWN, 1_000),
        Mutant::ResetWithoutSync => (GCM, DRAWN, 2_000),
        Mutant::VerifyAfterCopy => (GCM_4096, DRAWN, 2_000),
        Mutant::ReuseNonceAfterFailedWrite => (GCM_4096, FAULTY, 5_000),
        Mutant::FlushWithoutSync => (GCM, DRAWN, 500),
        Mutant::NoFence => (GCM, FAULTY, 100_000),
        Mutant::ForgetIntent
        | Mutant::RedoCounted
        | Mutant::AnswerTwice
        | Mutant::TrustBase
        | Mutant::KeepFailedIntent
        | Mutant::WriteInPlaceOnce => {
            unreachable!("not one that a crash of the whole machine shows")
        }
    }
}

/// Runs histories until one fails; the states judged until then, and why it failed.
fn find(shape: Shape, plan: Plan, limit: u64) -> Option<(u64, String)> {
    let base = Base::new(shape);
    let tally = RefCell::new(Tally::new());
    for seed in 1.. {
        if tally.borrow().states > limit {
            break;
        }
        let judge = Judge {
            base: &base,
            tally: &tally,
            foreign_one_in: FOREIGN_ONE_IN,
            book: RefCell::new(Book::default()),
        };
        if let Err(why) = history::run(&judge, seed, plan) {
            let states = tally.borrow().states;
            let reason = why.lines().find(|line| line.starts_with("=>"));
            return Some((states, reason.unwrap_or("no reason").to_owned()));
        }
    }
    None
}

// One test for all of them: the whole process does what is chosen.
#[test]
fn each_is_found() {
    for mutant in Mutant::ALL {
        let (shape, plan, limit) = hunt(mutant);
        choose(Some(mutant));
        let found = find(shape, plan, limit);
        choose(None);
        match found {
            Some((states, reason)) => {
                println!("{mutant:?}: found after {states} states\n  {reason}");
            }
            None => panic!("{mutant:?} was not found in {limit} states"),
        }
    }
}
