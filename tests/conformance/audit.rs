//! The tables are complete, and what they name exists and runs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::table::{Clause, Force, Proof};
use crate::{block, ring};

/// What the specification has, counted by keyword in its sources (v1.4-cs01): MUST and MUST NOT, SHALL, SHOULD and
/// SHOULD NOT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Count {
    must: usize,
    shall: usize,
    should: usize,
}

/// Block device: device clauses and legacy ones.
const BLOCK: Count = Count {
    must: 44,
    shall: 9,
    should: 11,
};
/// Split virtqueues: every MUST of the chapter; of the SHOULDs the device's.
const SPLIT: Count = Count {
    must: 39,
    shall: 0,
    should: 3,
};

fn count(tables: &[&[Clause]]) -> Count {
    let of = |force| {
        let clauses = tables.iter().copied().flatten();
        clauses.filter(|clause| clause.force == force).count()
    };
    Count {
        must: of(Force::Must),
        shall: of(Force::Shall),
        should: of(Force::Should),
    }
}

fn every_clause() -> impl Iterator<Item = &'static Clause> {
    [
        block::DEVICE,
        block::LEGACY,
        block::GENERAL,
        ring::DEVICE,
        ring::OTHERS,
    ]
    .into_iter()
    .flatten()
}

fn tests_of(clause: &Clause) -> &'static [&'static str] {
    match clause.proof {
        Proof::Tests(tests) | Proof::Driver(tests) => tests,
        _ => &[],
    }
}

#[test]
fn every_clause_is_in_the_tables_once() {
    assert_eq!(count(&[block::DEVICE, block::LEGACY]), BLOCK);
    assert_eq!(count(&[ring::DEVICE, ring::OTHERS]), SPLIT);
    let mut seen = BTreeSet::new();
    for clause in every_clause() {
        assert!(seen.insert(clause.id), "{} is there twice", clause.id);
        assert!(
            !clause.says.is_empty() && !clause.section.is_empty(),
            "{}",
            clause.id
        );
        if let Proof::Tests(tests) | Proof::Driver(tests) = clause.proof {
            assert!(!tests.is_empty(), "{}: no test", clause.id);
        }
        if let Proof::FrontEnd(why) | Proof::DriverAlone(why) = clause.proof {
            assert!(!why.is_empty(), "{}: no reason", clause.id);
        }
    }
    for table in [
        block::DEVICE,
        block::LEGACY,
        block::GENERAL,
        ring::DEVICE,
        ring::OTHERS,
    ] {
        assert!(table.is_sorted_by_key(|clause| clause.id), "order");
    }
}

/// Source files under `dir`, with the test target that they belong to.
fn sources(dir: &Path, target: Option<&str>, found: &mut Vec<(String, PathBuf)>) {
    for entry in fs::read_dir(dir).expect("a directory of the repository") {
        let path = entry.expect("an entry").path();
        let stem = path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .expect("a name");
        if path.is_dir() {
            // Under tests, a directory is a target if it has a main.rs; others are shared or hold no Rust.
            let own = target.map_or_else(|| stem.to_owned(), str::to_owned);
            if target.is_some() || path.join("main.rs").exists() {
                sources(&path, Some(&own), found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push((target.unwrap_or(stem).to_owned(), path));
        }
    }
}

/// The tests of a file: functions that carry `#[test]` (or stand in `proptest!`), and whether they are ignored.
fn tests_in(text: &str) -> Vec<(String, bool)> {
    let mut tests = Vec::new();
    let (mut test, mut ignored) = (false, false);
    for line in text.lines().map(str::trim) {
        if line.starts_with("#[test]") {
            test = true;
        } else if line.starts_with("#[ignore") {
            ignored = true;
        } else if let Some(rest) = line.strip_prefix("fn ") {
            if test {
                let name = rest
                    .split(|c: char| !c.is_alphanumeric() && c != '_')
                    .next();
                tests.push((name.unwrap_or_default().to_owned(), ignored));
            }
            (test, ignored) = (false, false);
        }
    }
    tests
}

/// Every test of the repository by `target::function`; true if it is ignored.
fn all_tests() -> BTreeMap<String, bool> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    sources(&root.join("src"), Some("lib"), &mut files);
    sources(&root.join("tests"), None, &mut files);
    let mut tests = BTreeMap::new();
    for (target, path) in files {
        let text = fs::read_to_string(&path).expect("a source file");
        for (name, ignored) in tests_in(&text) {
            tests.insert(format!("{target}::{name}"), ignored);
        }
    }
    tests
}

#[test]
fn every_test_that_the_tables_name_is_there_and_runs() {
    let tests = all_tests();
    assert!(tests.len() > 200, "{} tests found", tests.len());
    let mut wrong = Vec::new();
    for clause in every_clause() {
        for name in tests_of(clause) {
            match tests.get(*name) {
                Some(false) => {}
                Some(true) => wrong.push(format!("{}: {name} is ignored", clause.id)),
                None => wrong.push(format!("{}: there is no {name}", clause.id)),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_test_is_found_as_the_compiler_finds_it() {
    let text = "#[test]\nfn one() {}\nfn helper() {}\n#[test]\n#[ignore = \"slow\"]\nfn two() {}\n";
    let found = tests_in(text);
    assert_eq!(found, [("one".to_owned(), false), ("two".to_owned(), true)]);
}

/// Prints how many clauses hold for which reason: what the note says is this.
#[test]
fn the_count() {
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    let mut named: BTreeSet<&str> = BTreeSet::new();
    for clause in every_clause() {
        let reason = match clause.proof {
            Proof::Tests(_) => "held by tests",
            Proof::NotOffered(..) => "of a feature that is not offered",
            Proof::NotLegacy => "of the legacy interface, which there is not",
            Proof::Driver(_) => "the driver's, broken by tests",
            Proof::DriverAlone(_) => "the driver's, of no effect",
            Proof::FrontEnd(_) => "the front-end's",
        };
        *reasons.entry(reason).or_insert(0) += 1;
        named.extend(tests_of(clause));
    }
    for (reason, count) in &reasons {
        println!("{count:>4} {reason}");
    }
    println!("{:>4} packed, not offered", ring::PACKED_CLAUSES);
    println!("{:>4} tests named", named.len());
    let all = every_clause().count();
    assert_eq!(reasons.values().sum::<usize>(), all);
}
