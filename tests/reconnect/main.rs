//! Death and return: daemons that are killed, front-ends that come, go and ask for much, and what each owes the other.
//!
//! | file | what |
//! |---|---|
//! | `comings` | front-ends that come and go: nothing is left behind, nothing is held |
//! | `campaign` | rounds of load and death; after each return every request is answered once and every block is where it was acknowledged |
//! | `campaigns` | the kinds of them |
//! | `torn` | blocks that are written in place while the daemon is killed |
//! | `region` | inflight regions that a front-end has altered |
//!
//! `load` makes the requests and knows what is in flight, `truth` knows what each zone must hold.
//!
//! `ZONEVAULT_SEED` repeats a campaign's choices (not how far the daemon got before it died, so a failure may need
//! several runs to come again), `RECONNECT_ROUNDS` sets its rounds. The named points at which a daemon kills itself, and
//! the faults that the campaign must find, exist only with the feature `mutants`:
//!
//! ```text
//! RECONNECT_ROUNDS=2000 cargo test --features mutants --test reconnect -- --nocapture campaign
//! ```

#![cfg(test)]

#[path = "../common/mod.rs"]
pub mod common;

mod campaign;
mod campaigns;
mod comings;
mod load;
mod region;
mod survey;
mod torn;
mod truth;
