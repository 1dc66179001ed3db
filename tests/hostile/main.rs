//! A guest and a front-end that mean harm: tables of cases, each with what may come of it.
//!
//! | file | what breaks the rules |
//! |---|---|
//! | `chains` | descriptor chains and indirect tables |
//! | `rings` | indices, heads, sizes and places of rings, before and after the start |
//! | `memory` | memory tables; regions that go, or shrink, under requests |
//! | `requests` | headers, tails, lengths, sectors, types, on zoned and plain disks |
//! | `messages` | vhost-user messages: order, size, flags, descriptors, configuration |
//! | `leaks` | what a hundred thousand messages leave behind |
//!
//! After each case a well-formed request must work and the disk must hold what it held. With
//! `ZONEVAULT_CASES=1` in the environment (and `--no-capture`) every case is printed with what came of it.

#![cfg(test)]

#[path = "../common/mod.rs"]
pub mod common;
pub mod stage;

mod chains;
mod leaks;
mod memory;
mod messages;
mod requests;
mod rings;

mod tests {
    use std::collections::BTreeSet;

    use crate::stage::Case;
    use crate::{chains, memory, messages, requests, rings};

    /// What issue and README speak of.
    const AT_LEAST: usize = 400;

    #[test]
    fn the_tables_hold_what_they_promise() {
        let tables: [(&str, Vec<Case>); 5] = [
            ("chains", chains::cases()),
            ("rings", rings::cases()),
            ("memory", memory::cases()),
            ("requests", requests::cases()),
            ("messages", messages::cases()),
        ];
        let mut total = 0;
        for (class, cases) in &tables {
            println!("{class:<10} {:>5} cases", cases.len());
            total += cases.len();
            let names: BTreeSet<&str> = cases.iter().map(|case| case.name.as_str()).collect();
            assert_eq!(names.len(), cases.len(), "{class}: a name is used twice");
        }
        println!("{:<10} {total:>5} cases", "all");
        assert!(total >= AT_LEAST, "{total} cases");
    }
}
