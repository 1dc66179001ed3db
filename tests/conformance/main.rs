//! The clauses of virtio 1.4 that bind a split-ring block device, each with the tests that break if it is broken.
//!
//! `block` and `ring` are the tables, in our own words and in the order of the specification; one row is one MUST,
//! SHALL or SHOULD. `audit` checks that they are complete and that every test they name is in the source and runs.
//! What no other suite tests stands in `rules`. With `--no-capture` the counts are printed.

#![cfg(test)]

#[path = "../common/mod.rs"]
pub mod common;

mod audit;
mod block;
mod ring;
mod rules;
pub mod table;
