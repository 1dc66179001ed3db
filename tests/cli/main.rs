//! The command line from outside: every command, every refusal, its exit code and its one line.
//! A refused command must leave every file as it was.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails, in its helpers too"
)]

mod bench;
mod check;
mod create;
mod disk;
mod images;
mod keys;
mod serve;
mod usage;
