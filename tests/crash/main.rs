//! The crash simulator: the whole disk above the store, on a medium that loses power.
//!
//! A history runs once, single-threaded and seeded, on the in-memory medium; every moment of it, between any two
//! operations of the medium, has many ends. A power cut leaves any subset of the sectors written since the last sync,
//! in any order, torn and repeated; a kill leaves what the page cache has. Each end is opened again and judged by an
//! oracle that shares nothing with the daemon: `model` knows only what the front-end was told, `reader` reads the image
//! by the format's documentation, `book` holds every nonce ever seen on the medium.
//!
//! In CI each test runs for a bounded time. By hand, for hours, and to replay what failed:
//!
//! ```text
//! CRASH_TIME=3600 cargo test --release --test crash -- --nocapture drawn      every drawn campaign, an hour each
//! CRASH_SEED=17 CRASH_HISTORIES=1 cargo test --test crash -- --nocapture NAME one history
//! ```
//!
//! `CRASH_SEED` is the seed of the first history (the next one has the next number), `CRASH_TIME` the seconds of a
//! campaign, `CRASH_HISTORIES` how many at most.
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
