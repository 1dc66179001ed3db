//! What a campaign did, and how often each fault fired.

use std::fmt::Write;
use std::time::{Duration, Instant};

use zonevault::store::mem::Counts;

/// Figures of a campaign.
#[derive(Debug)]
pub(crate) struct Tally {
    begun: Instant,
    pub(crate) histories: u64,
    /// Operations submitted.
    pub(crate) operations: u64,
    /// Operations acknowledged as done.
    pub(crate) acknowledged: u64,
    pub(crate) flushes: u64,
    /// Moments of histories and openings that were looked at.
    pub(crate) moments: u64,
    /// Images opened and judged.
    pub(crate) states: u64,
    /// Of these, openings that were cut off themselves.
    pub(crate) recoveries_cut: u64,
    /// Openings that met errors of the medium.
    pub(crate) stumbles: u64,
    pub(crate) kills: u64,
    pub(crate) closings: u64,
    /// Moments all of whose ends were judged.
    pub(crate) exhausted: u64,
    /// Nonces seen.
    pub(crate) nonces: u64,
    /// Blocks damaged by rot, and found.
    pub(crate) rotten: u64,
    /// Blocks replaced by another's or an older one's, and found.
    pub(crate) misdirected: u64,
    /// Writes that the medium lost although it said they were done, and whose loss was found.
    pub(crate) dropped: u64,
    /// Images that the Python reader read as well.
    pub(crate) foreign: u64,
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self {
            begun: Instant::now(),
            histories: 0,
            operations: 0,
            acknowledged: 0,
            flushes: 0,
            moments: 0,
            states: 0,
            recoveries_cut: 0,
            stumbles: 0,
            kills: 0,
            closings: 0,
            exhausted: 0,
            nonces: 0,
            rotten: 0,
            misdirected: 0,
            dropped: 0,
            foreign: 0,
        }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// The figures, a line each.
    pub(crate) fn report(&self, title: &str, counts: &Counts) -> String {
        let seconds = self.elapsed().as_secs_f64();
        let mut text = format!(
            "{title}: {:.1} s, {:.0} states/s\n",
            seconds,
            per(self.states, seconds)
        );
        let figures = [
            ("histories", self.histories),
            ("operations", self.operations),
            ("acknowledged", self.acknowledged),
            ("flushes", self.flushes),
            ("moments", self.moments),
            ("crash states", self.states),
            ("recoveries cut off", self.recoveries_cut),
            ("openings that met errors", self.stumbles),
            ("moments exhausted", self.exhausted),
            ("kills", self.kills),
            ("orderly closings", self.closings),
            ("nonces", self.nonces),
            ("read by the Python reader too", self.foreign),
        ];
        for (name, figure) in figures.into_iter().chain(faults(self, counts, true)) {
            writeln!(text, "  {name:34} {figure:>12}").expect("a string takes everything");
        }
        text
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people")]
fn per(count: u64, seconds: f64) -> f64 {
    count as f64 / seconds.max(0.001)
}

/// How often each kind of fault fired; damage that only tags tell is among them for `tagged` disks.
pub(crate) fn faults(tally: &Tally, counts: &Counts, tagged: bool) -> Vec<(&'static str, u64)> {
    let mut all = vec![
        ("fault: sectors lost", counts.sectors_lost + counts.cut_lost),
        ("fault: sectors kept", counts.sectors_kept + counts.cut_kept),
        ("fault: older version of a sector", counts.sectors_stale),
        ("fault: writes torn", counts.cut_torn),
        ("fault: survivors reordered", counts.cut_shuffled),
        ("fault: writes landing twice", counts.cut_duplicated),
        ("fault: writes in flight landing", counts.cut_in_flight),
        ("fault: landing after a kill", counts.kill_in_flight),
        ("fault: completions overtaking", counts.overtaken),
        ("fault: EIO on write", counts.write_errors),
        ("fault: ENOSPC", counts.full_errors),
        ("fault: short writes", counts.short_writes),
        ("fault: failed syncs", counts.failed_syncs),
        ("fault: pages forgotten after EIO", counts.forgotten),
        ("fault: read errors", counts.read_errors),
    ];
    if tagged {
        all.extend([
            ("fault: rotten blocks", tally.rotten),
            ("fault: misdirected writes", tally.misdirected),
            ("fault: dropped writes", tally.dropped),
        ]);
    }
    all
}
