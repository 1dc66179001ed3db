//! Faults built in on purpose, one at a time, so that the crash simulator can show that it would find
//! them. Only with the feature `mutants`, which nothing but that test turns on: without it every
//! question here is answered "no" when compiled.

#[cfg(feature = "mutants")]
use std::sync::atomic::{AtomicU8, Ordering};

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
}

impl Mutant {
    /// All of them.
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
static CHOSEN: AtomicU8 = AtomicU8::new(0);

/// From now on the whole process does this wrong; `None`: nothing.
#[cfg(feature = "mutants")]
pub fn choose(mutant: Option<Mutant>) {
    CHOSEN.store(mutant.map_or(0, |mutant| mutant as u8), Ordering::Relaxed);
}
