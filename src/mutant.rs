//! Faults built in on purpose, one at a time, so that the crash simulator and the campaign of killed
//! daemons can show that they would find them, and points at which a daemon ends itself. Only with the
//! feature `mutants`, which nothing but those tests turns on: without it every question here is answered
//! "no" when compiled.
//!
//! A daemon takes its fault from `ZONEVAULT_MUTANT` (`forget-intent`), the point of its end from
//! `ZONEVAULT_DIE_AT` (`granted`, or `granted:7` for the seventh time that it is passed, or `granted:7:900` for that
//! and 900 microseconds, in which only the thread stands still that came by), and from `ZONEVAULT_FAIL_WRITES` that the
//! medium fails one write in so many (`40`), of each zone two at most.

#[cfg(feature = "mutants")]
use std::{
    sync::{
        LazyLock, OnceLock,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

/// What can be done wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mutant {
    /// A write is acknowledged when it is written, not in write-pointer order.
    AcknowledgeOutOfOrder = 1,
    /// An opening goes on under the epoch of the last session.
    KeepEpoch,
    /// A zone's record counts a write before its data is there.
    RecordBeforeData,
    /// A reset waits for no sync.
    ResetWithoutSync,
    /// What was read reaches the guest before it is verified.
    VerifyAfterCopy,
    /// The counters of a failed write are used once more.
    ReuseNonceAfterFailedWrite,
    /// A flush completes without a sync.
    FlushWithoutSync,
    /// A zone takes writes before the record of what a failed write used up is durable.
    NoFence,
    /// What a daemon that died had begun is begun as if it were new.
    ForgetIntent,
    /// Of that, writes that the zone's record counts are done again.
    RedoCounted,
    /// Answers that the guest has seen, but which still count as in flight, are given again.
    AnswerTwice,
    /// A queue goes on where the front-end says that it stands.
    TrustBase,
    /// A write that failed is still said to be about to happen, where another may be by now.
    KeepFailedIntent,
    /// A block of a mapped image is written in place without being written elsewhere first.
    WriteInPlaceOnce,
}

impl Mutant {
    /// All that the simulator can find.
    pub const ALL: [Self; 8] = [
        Self::AcknowledgeOutOfOrder,
        Self::KeepEpoch,
        Self::RecordBeforeData,
        Self::ResetWithoutSync,
        Self::VerifyAfterCopy,
        Self::ReuseNonceAfterFailedWrite,
        Self::FlushWithoutSync,
        Self::NoFence,
    ];

    /// All that a daemon takes from `ZONEVAULT_MUTANT`, with their names there.
    pub const NAMED: [(&str, Self); 6] = [
        ("forget-intent", Self::ForgetIntent),
        ("redo-counted", Self::RedoCounted),
        ("answer-twice", Self::AnswerTwice),
        ("trust-base", Self::TrustBase),
        ("keep-failed-intent", Self::KeepFailedIntent),
        ("write-in-place-once", Self::WriteInPlaceOnce),
    ];

    /// Whether this is what the process does wrong.
    #[cfg(feature = "mutants")]
    pub(crate) fn is_on(self) -> bool {
        CHOSEN.load(Ordering::Relaxed) == self as u8
    }

    /// Whether this is what the process does wrong.
    #[cfg(not(feature = "mutants"))]
    pub(crate) const fn is_on(self) -> bool {
        false
    }
}

#[cfg(feature = "mutants")]
static CHOSEN: LazyLock<AtomicU8> = LazyLock::new(|| {
    let named = std::env::var("ZONEVAULT_MUTANT").ok();
    let mut all = Mutant::NAMED.into_iter();
    let found = all.find(|(name, _)| named.as_deref() == Some(*name));
    AtomicU8::new(found.map_or(0, |(_, mutant)| mutant as u8))
});

/// From now on the whole process does this wrong; `None`: nothing.
#[cfg(feature = "mutants")]
pub fn choose(mutant: Option<Mutant>) {
    CHOSEN.store(mutant.map_or(0, |mutant| mutant as u8), Ordering::Relaxed);
}

/// Where a daemon can be made to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// A write has its place.
    Granted,
    /// What an operation is about to change is noted.
    IntentWritten,
    /// Data is on its way to the store.
    DataSubmitted,
    /// It is there.
    DataWritten,
    /// A zone's record is written, and nobody told.
    RecordWritten,
    /// The record of a reset is written.
    ResetRecorded,
    /// A request's status is in guest memory.
    Answered,
    /// The guest sees answers in the used ring.
    Published,
    /// Those requests do not count as in flight any more.
    Cleared,
    /// A write has failed, its queue knows, and the guest does not.
    Failed,
    /// A block is being written in place, and half of it is there.
    HalfWritten,
}

impl Point {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Granted,
        Self::IntentWritten,
        Self::DataSubmitted,
        Self::DataWritten,
        Self::RecordWritten,
        Self::ResetRecorded,
        Self::Answered,
        Self::Published,
        Self::Cleared,
        Self::Failed,
        Self::HalfWritten,
    ];

    /// Its name in `ZONEVAULT_DIE_AT`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Granted => "granted",
            Self::IntentWritten => "intent-written",
            Self::DataSubmitted => "data-submitted",
            Self::DataWritten => "data-written",
            Self::RecordWritten => "record-written",
            Self::ResetRecorded => "reset-recorded",
            Self::Answered => "answered",
            Self::Published => "published",
            Self::Cleared => "cleared",
            Self::Failed => "failed",
            Self::HalfWritten => "half-written",
        }
    }
}

/// What a daemon says on its standard error before it ends itself; the point's name follows.
pub const LAST_WORDS: &str = "the daemon ends itself at ";

#[cfg(feature = "mutants")]
struct End {
    point: Point,
    left: AtomicU64,
    pause: Duration,
}

#[cfg(feature = "mutants")]
fn end_from_environment() -> Option<End> {
    let text = std::env::var("ZONEVAULT_DIE_AT").ok()?;
    let mut parts = text.split(':');
    let name = parts.next()?;
    let mut number = |without: u64| match parts.next() {
        Some(part) => part.parse().ok(),
        None => Some(without),
    };
    let (left, pause) = (number(1)?, number(0)?);
    Some(End {
        point: Point::ALL.into_iter().find(|point| point.name() == name)?,
        left: AtomicU64::new(left),
        pause: Duration::from_micros(pause),
    })
}

/// Ends the process at once, as if it were killed, if this is where it is to end. The sandbox, which knows
/// no signal of that kind, does it in its own way, so it is said before: a call that it forbids looks the same.
#[cfg(feature = "mutants")]
pub(crate) fn pass(point: Point) {
    static END: OnceLock<Option<End>> = OnceLock::new();
    let end = END.get_or_init(end_from_environment).as_ref();
    let Some(end) = end.filter(|end| end.point == point) else {
        return;
    };
    if end.left.fetch_sub(1, Ordering::Relaxed) == 1 {
        std::thread::sleep(end.pause);
        eprintln!("{LAST_WORDS}{}", point.name());
        std::process::abort();
    }
}

/// Ends the process if this is where it is to end: never.
#[cfg(not(feature = "mutants"))]
pub(crate) const fn pass(_point: Point) {}

/// Failures of a zone that are made up: with one more at the same place it would turn read-only.
#[cfg(feature = "mutants")]
const FAILURES_OF_A_ZONE: u8 = 2;

/// Whether a write to this zone that has just come to its end counts as one that failed.
#[cfg(feature = "mutants")]
pub(crate) fn fails(zone: u32) -> bool {
    static ONE_IN: LazyLock<Option<u64>> = LazyLock::new(|| {
        let text = std::env::var("ZONEVAULT_FAIL_WRITES").ok()?;
        text.parse().ok().filter(|&one_in| one_in > 0)
    });
    static WRITES: AtomicU64 = AtomicU64::new(0);
    static FAILED: [AtomicU8; 64] = [const { AtomicU8::new(0) }; 64];
    let Some(one_in) = *ONE_IN else {
        return false;
    };
    let due = WRITES.fetch_add(1, Ordering::Relaxed) % one_in == one_in - 1;
    let of_zone = FAILED.get(zone as usize % FAILED.len());
    due && of_zone.is_some_and(|count| count.fetch_add(1, Ordering::Relaxed) < FAILURES_OF_A_ZONE)
}

/// Whether a write counts as failed that did not fail: never.
#[cfg(not(feature = "mutants"))]
pub(crate) const fn fails(_zone: u32) -> bool {
    false
}
