//! The kinds of campaigns: what the image is like, how it is served, which ends the daemons meet.

use std::path::Path;

use super::campaign::{Campaign, POINTS, Settings};

/// Where a daemon kills itself while writes fail: most of these rounds are to end when somebody has just learned of it.
#[cfg(feature = "mutants")]
const POINTS_OF_FAILURE: [&str; 6] = [
    "failed",
    "failed",
    "failed",
    "record-written",
    "answered",
    "data-written",
];
/// Rounds of the campaigns in CI together, with points at which the daemon ends itself and without.
const ROUNDS: u64 = if cfg!(feature = "mutants") { 200 } else { 60 };

/// `RECONNECT_ROUNDS` names the rounds of all campaigns together; each has its percentage of them.
pub(crate) fn rounds(percent: u64) -> u64 {
    let all = match std::env::var("RECONNECT_ROUNDS") {
        Ok(text) => text.parse().expect("RECONNECT_ROUNDS is a number"),
        Err(_) => ROUNDS,
    };
    (all * percent).div_ceil(100)
}

fn settings(stream: u64, percent: u64) -> Settings {
    Settings {
        stream,
        rounds: rounds(percent),
        inflight: true,
        write_cache: true,
        parent: None,
        create: Vec::new(),
        serve: Vec::new(),
        environment: Vec::new(),
        points: &POINTS,
        failing: None,
    }
}

/// Most of what was acknowledged must have been there to be lost.
fn run(settings: Settings) {
    let rounds = settings.rounds;
    let counts = Campaign::new(settings).run();
    assert!(counts.stamps > rounds * 10, "{counts:?}");
}

#[test]
fn campaign() {
    run(settings(72, 50));
}

#[test]
fn campaign_through_the_page_cache() {
    run(Settings {
        create: vec!["--cipher", "aes-256-xts"],
        serve: vec!["--cache", "writeback"],
        ..settings(73, 30)
    });
}

/// An image that is mapped, and whose zones keep their pages, so that they are written through the mapping.
#[test]
fn campaign_of_an_image_in_memory() {
    let memory = Path::new("/dev/shm");
    if !memory.is_dir() {
        return println!("skipped: no tmpfs at {}", memory.display());
    }
    run(Settings {
        parent: Some(memory),
        serve: vec!["--discard", "ignore"],
        ..settings(78, 20)
    });
}

#[test]
fn campaign_without_write_cache() {
    run(Settings {
        write_cache: false,
        ..settings(74, 20)
    });
}

/// A front-end that keeps nothing for the daemon, and ends that lose nothing of what was in flight.
#[test]
fn campaign_of_clean_ends() {
    run(Settings {
        inflight: false,
        ..settings(70, 30)
    });
}

/// Without tags a zone takes the next write as soon as one has failed.
#[cfg(feature = "mutants")]
fn failing(stream: u64, percent: u64) -> Settings {
    Settings {
        create: vec!["--cipher", "aes-256-xts"],
        points: &POINTS_OF_FAILURE,
        failing: Some(15),
        ..settings(stream, percent)
    }
}

#[cfg(feature = "mutants")]
#[test]
fn campaign_of_failing_writes() {
    run(failing(76, 15));
}

/// With them, once what it holds is durable and so is what the failed one used up.
#[cfg(feature = "mutants")]
#[test]
fn campaign_of_failing_writes_with_tags() {
    run(Settings {
        create: Vec::new(),
        ..failing(77, 15)
    });
}

/// What a campaign finds in a daemon with a fault, and in which round.
#[cfg(feature = "mutants")]
fn found(mutant: &str, most: u64) -> String {
    let which = match mutant {
        // The guest must have seen an answer of which the daemon does not know that it did.
        "answer-twice" => Settings {
            points: &["published"],
            ..settings(75, 100)
        },
        "keep-failed-intent" => failing(75, 100),
        _ => settings(75, 100),
    };
    let settings = Settings {
        rounds: most,
        environment: vec![("ZONEVAULT_MUTANT", mutant.to_owned())],
        ..which
    };
    let hunt = std::panic::AssertUnwindSafe(|| Campaign::new(settings).run());
    let why = match std::panic::catch_unwind(hunt) {
        Ok(counts) => panic!("{mutant} was not found in {most} rounds: {counts:?}"),
        Err(why) => why,
    };
    let why = why.downcast_ref::<String>().cloned().unwrap_or_default();
    println!("{mutant}: {}", why.lines().next().unwrap_or_default());
    why
}

#[cfg(feature = "mutants")]
#[test]
fn mutants_are_found() {
    for (name, mutant) in zonevault::mutant::Mutant::NAMED {
        // No front-end asks again for what is torn here (`torn`).
        if mutant == zonevault::mutant::Mutant::WriteInPlaceOnce {
            continue;
        }
        // Somebody must write to the right place in the right moment; it takes 70 rounds on the average.
        let most = if name == "keep-failed-intent" {
            700
        } else {
            150
        };
        let why = found(name, most);
        assert!(why.starts_with("round "), "{mutant:?}: {why}");
    }
}
