//! Faults built in on purpose, one at a time, so that the crash simulator and the campaign of killed
//! daemons can show that they would find them, and points at which a daemon ends itself. Only with the
//! feature `mutants`, which nothing but those tests turns on: without it every question here is answered
//! "no" when compiled.
//!
//! A daemon takes its fault from `ZONEVAULT_MUTANT` (`forget-intent`) and the point of its end from
//! `ZONEVAULT_DIE_AT` (`granted`, or `granted:7` for the seventh time that it is passed).

#[cfg(feature = "mutants")]
use std::sync::{
    LazyLock, OnceLock,
    atomic::{AtomicU8, AtomicU64, Ordering},
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
    pub const NAMED: [(&str, Self); 4] = [
        ("forget-intent", Self::ForgetIntent),
        ("redo-counted", Self::RedoCounted),
        ("answer-twice", Self::AnswerTwice),
        ("trust-base", Self::TrustBase),
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
}

impl Point {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Granted,
        Self::IntentWritten,
        Self::DataSubmitted,
        Self::DataWritten,
        Self::RecordWritten,
        Self::ResetRecorded,
        Self::Answered,
        Self::Published,
        Self::Cleared,
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
        }
    }
}

#[cfg(feature = "mutants")]
struct End {
    point: Point,
    left: AtomicU64,
}

#[cfg(feature = "mutants")]
fn end_from_environment() -> Option<End> {
    let text = std::env::var("ZONEVAULT_DIE_AT").ok()?;
    let (name, count) = text.split_once(':').unwrap_or((&text, "1"));
    let point = Point::ALL.into_iter().find(|point| point.name() == name)?;
    let left = AtomicU64::new(count.parse().ok()?);
    Some(End { point, left })
}

/// Ends the process at once, as if it were killed, if this is where it is to end.
#[cfg(feature = "mutants")]
pub(crate) fn pass(point: Point) {
    static END: OnceLock<Option<End>> = OnceLock::new();
    let end = END.get_or_init(end_from_environment).as_ref();
    if end.is_some_and(|end| end.point == point && end.left.fetch_sub(1, Ordering::Relaxed) == 1) {
        std::process::abort();
    }
}

/// Ends the process if this is where it is to end: never.
#[cfg(not(feature = "mutants"))]
pub(crate) const fn pass(_point: Point) {}
