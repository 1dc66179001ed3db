//! The crash simulator: the whole disk above the store, on a medium that loses power.
//!
//! A history runs once, single-threaded and seeded, on the in-memory medium; every moment of it, between any two
//! operations of the medium, has many ends. A power cut leaves any subset of the sectors written since the last sync,
//! in any order, torn and repeated; a kill leaves what the page cache has. Each end is opened again and judged by an
//! oracle that shares nothing with the daemon: `model` knows only what the front-end was told, `reader` reads the image
//! by the format's documentation, `book` holds every nonce ever seen on the medium.
//!
//! Campaigns: *exhaustive*, every history of up to three operations after a flush, at every moment of the last one every
//! end (where there are too many, a draw of them); *drawn*, longer histories on two queues with cuts, kills and closings
//! in them, without errors of the medium and with; now and then a recovery is cut off itself, or meets errors, or the
//! Python reader reads the same image. Every fault must have fired. `mutants` shows what the simulator would find.
//!
//! In CI each test runs for a bounded time. By hand, for hours, and to replay what failed:
//!
//! ```text
//! CRASH_TIME=3600 cargo test --release --test crash -- --nocapture --test-threads 2 drawn
//! CRASH_SEED=17 CRASH_HISTORIES=1 cargo test --test crash -- --nocapture drawn_gcm_512
//! CRASH_SEED=570 cargo test --test crash -- --nocapture exhaustive_gcm
//! cargo test --features mutants --test crash -- --nocapture mutants
//! ```
//!
//! `CRASH_TIME` is the seconds of a drawn campaign, `CRASH_SEED` the seed of its first history (the next one has the next
//! number) or the number of an exhaustive one, `CRASH_HISTORIES` how many run at most; the Python reader reads one state in
//! `CRASH_PYTHON`. A failure prints the line that
//! replays it and what was done; the ciphertext differs from run to run, what happens does not.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on fails, in its helpers too"
)]

mod book;
mod campaign;
mod damage;
mod exhaustive;
mod foreign;
mod history;
mod judge;
mod model;
mod modes;
#[cfg(feature = "mutants")]
mod mutants;
mod payload;
mod reader;
mod rig;
mod rng;
mod shape;
mod tally;
mod world;
