//! Faults that can be asked for, and the count of those that happened.

use std::io;
use std::ops::Range;

/// What an operation is, for holding and for failing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// [`Op::Read`](crate::store::Op::Read)
    Read,
    /// [`Op::Write`](crate::store::Op::Write)
    Write,
    /// [`Op::Sync`](crate::store::Op::Sync) and [`Medium::sync`](crate::store::Medium::sync)
    Sync,
    /// [`Op::Deallocate`](crate::store::Op::Deallocate)
    Deallocate,
    /// [`Medium::read_at`](crate::store::Medium::read_at)
    MetadataRead,
    /// [`Medium::write_at`](crate::store::Medium::write_at)
    MetadataWrite,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Read,
        Self::Write,
        Self::Sync,
        Self::Deallocate,
        Self::MetadataRead,
        Self::MetadataWrite,
    ];
}

/// What happens to an operation instead of success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails with this errno and has no effect.
    Fail(i32),
    /// It fails with this errno after its first so many bytes, rounded down to whole sectors, were
    /// transferred. (Of a sync: the same as [`Fault::Fail`].)
    Tear(i32, u64),
    /// It claims success and did nothing: a lost write, a lying flush, a buffer that the read left
    /// as it was.
    Lose,
}

#[derive(Clone)]
struct Trap {
    kind: Kind,
    when: When,
    fault: Fault,
}

#[derive(Clone)]
enum When {
    /// After so many more operations of the kind; once.
    After(u64),
    /// Whenever it touches these bytes.
    Touches(Range<u64>),
}

/// The faults that were set.
#[derive(Clone, Default)]
pub(super) struct Traps(Vec<Trap>);

impl Traps {
    pub(super) fn set_nth(&mut self, kind: Kind, n: u64, fault: Fault) {
        let when = When::After(n.saturating_sub(1));
        self.0.push(Trap { kind, when, fault });
    }

    pub(super) fn set_range(&mut self, kind: Kind, range: Range<u64>, fault: Fault) {
        let when = When::Touches(range);
        self.0.push(Trap { kind, when, fault });
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// What happens to the next operation of that kind on those bytes. Counts it.
    pub(super) fn spring(&mut self, kind: Kind, offset: u64, len: u64) -> Option<Fault> {
        let mut sprung = None;
        self.0.retain_mut(|trap| {
            if trap.kind != kind {
                return true;
            }
            match &mut trap.when {
                When::After(0) if sprung.is_none() => {
                    sprung = Some(trap.fault);
                    false
                }
                // Another trap took this one: the next operation of the kind is its turn.
                When::After(0) => true,
                When::After(n) => {
                    *n -= 1;
                    true
                }
                When::Touches(range) => {
                    if offset < range.end && range.start < offset.saturating_add(len) {
                        sprung = sprung.or(Some(trap.fault));
                    }
                    true
                }
            }
        });
        sprung
    }
}

/// How often what happened, over an image and all that were made of it by crash and kill.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Data reads that took effect.
    pub reads: u64,
    /// Data writes that took effect.
    pub writes: u64,
    /// Syncs that succeeded.
    pub syncs: u64,
    /// Deallocations that took effect.
    pub deallocations: u64,
    /// Metadata reads.
    pub metadata_reads: u64,
    /// Metadata writes.
    pub metadata_writes: u64,
    /// Operations that were held back.
    pub held: u64,
    /// Operations released before an older one.
    pub overtaken: u64,
    /// Batches whose order was shuffled.
    pub shuffled: u64,
    /// Faults fired: failed with no effect. Syncs that failed are among them.
    pub failed: u64,
    /// Faults fired: failed with a part of the effect.
    pub torn: u64,
    /// Faults fired: success claimed, nothing done.
    pub lost: u64,
    /// Syncs that failed and left writes in doubt.
    pub failed_syncs: u64,
    /// Operations refused for their alignment.
    pub misaligned: u64,
    /// Power cuts.
    pub cuts: u64,
    /// Unsynced changes lost in power cuts.
    pub cut_lost: u64,
    /// Unsynced changes that survived power cuts whole.
    pub cut_kept: u64,
    /// Unsynced changes torn by power cuts.
    pub cut_torn: u64,
    /// Writes in flight that a power cut let through, whole or in part.
    pub cut_in_flight: u64,
    /// Kills.
    pub kills: u64,
    /// Operations in flight that took effect after a kill.
    pub kill_in_flight: u64,
    /// Bytes changed behind everybody's back.
    pub overwritten: u64,
    /// Reads that failed, of data or metadata.
    pub read_errors: u64,
    /// Writes that failed with EIO or any errno but ENOSPC, with no effect.
    pub write_errors: u64,
    /// Writes that failed with ENOSPC, whole or short.
    pub full_errors: u64,
    /// Writes that failed with a part of their effect.
    pub short_writes: u64,
    /// Changes in doubt that the kernel forgot, so that reads see the old bytes again.
    pub forgotten: u64,
    /// Power cuts in which survivors landed in another order.
    pub cut_shuffled: u64,
    /// Power cuts in which a write landed a second time, behind younger ones.
    pub cut_duplicated: u64,
    /// Sectors that a power cut took back to what was durable.
    pub sectors_lost: u64,
    /// Sectors that a power cut left as they were.
    pub sectors_kept: u64,
    /// Sectors in which a power cut left an older unsynced version.
    pub sectors_stale: u64,
}

impl Counts {
    /// Sorts an error by its kind.
    pub(super) fn note_error(&mut self, kind: Kind, fault: Fault) {
        let write = matches!(kind, Kind::Write | Kind::MetadataWrite);
        match (kind, fault) {
            (_, Fault::Lose) => {}
            (Kind::Read | Kind::MetadataRead, _) => self.read_errors += 1,
            (_, Fault::Fail(libc::ENOSPC)) if write => self.full_errors += 1,
            (_, Fault::Fail(_)) if write => self.write_errors += 1,
            (_, Fault::Tear(errno, _)) if write => {
                self.short_writes += 1;
                self.full_errors += u64::from(errno == libc::ENOSPC);
            }
            _ => {}
        }
    }
}

/// The error of a fault.
pub(super) fn error(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}
