//! Every block that should hold data, read and verified.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use crate::format::LoadedRecord;
use crate::geometry::{BlockRange, Blocks, Geometry, ZoneIndex, ZoneType};
use crate::volume::scan::{BadRun, Scanner};
use crate::zone::{ZoneRecord, ZoneState};

use super::super::progress::Progress;
use super::Subject;

/// Bytes that one thread reads at a time: small enough that the last ones end together.
const PIECE: u64 = 64 << 20;
/// Runs of bad blocks that are named in each zone; the rest is counted.
pub(super) const MAX_RUNS_OF_ZONE: usize = 16;
/// Runs that are kept, and named, of all zones together.
pub(super) const MAX_RUNS: usize = 1000;

/// The bad blocks of a zone.
#[derive(Debug, Default)]
pub(super) struct ZoneDamage {
    /// The first runs, ascending.
    pub(super) runs: Vec<BadRun>,
    /// Bad blocks in all.
    pub(super) bad: u64,
}

impl ZoneDamage {
    /// Bad blocks that no run names.
    pub(super) fn unnamed(&self) -> u64 {
        let named: u64 = self.runs.iter().map(|run| run.blocks.count.0).sum();
        self.bad.saturating_sub(named)
    }

    /// Takes in another run; the lowest [`MAX_RUNS_OF_ZONE`] are kept.
    fn add(&mut self, run: BadRun) {
        self.bad += run.blocks.count.0;
        let at = self
            .runs
            .partition_point(|other| other.blocks.start < run.blocks.start);
        self.runs.insert(at, run);
        self.runs.dedup_by(|later, earlier| {
            let joined = earlier.fault == later.fault && earlier.blocks.end() == later.blocks.start;
            if joined {
                earlier.blocks.count.0 += later.blocks.count.0;
            }
            joined
        });
        self.runs.truncate(MAX_RUNS_OF_ZONE);
    }

    /// The same for a whole piece of the zone.
    fn merge(&mut self, piece: Self) {
        self.bad += piece.unnamed();
        for run in piece.runs {
            self.add(run);
        }
    }
}

/// What was found of all blocks.
#[derive(Debug, Default)]
pub(super) struct BlockFindings {
    /// The zones that have bad blocks.
    pub(super) zones: BTreeMap<ZoneIndex, ZoneDamage>,
    /// Blocks read.
    pub(super) read: u64,
    /// Blocks written after the last flush to a disk that was not closed: recovery decides.
    pub(super) unflushed: u64,
    /// How long it took.
    pub(super) took: Duration,
    /// Runs that are kept.
    kept: usize,
}

impl BlockFindings {
    /// Bad blocks in all.
    pub(super) fn bad(&self) -> u64 {
        self.zones.values().map(|zone| zone.bad).sum()
    }

    /// Takes in what was found in a piece of a zone.
    fn note(&mut self, zone: ZoneIndex, mut piece: ZoneDamage) {
        if piece.bad == 0 {
            return;
        }
        // Beyond the limit a zone is counted and its blocks are not named.
        if self.kept >= MAX_RUNS {
            piece.runs.clear();
        }
        let damage = self.zones.entry(zone).or_default();
        self.kept -= damage.runs.len();
        damage.merge(piece);
        self.kept += damage.runs.len();
    }
}

/// A piece of a zone to be read.
struct Job {
    zone: ZoneIndex,
    record: ZoneRecord,
    range: BlockRange,
}

/// Reads and verifies the blocks of the zones to check. Of a disk that is not `closed`, those that
/// a flush covered.
pub(super) fn check(subject: &Subject, closed: bool) -> io::Result<BlockFindings> {
    let geometry = subject.geometry();
    let mut findings = BlockFindings::default();
    for (zone, record) in subject.zones() {
        findings.read += extent(geometry, zone, record, closed).0;
        if !closed && geometry.zone_type(zone) == ZoneType::Sequential {
            let newest = record.newest.map(|newest| newest.record);
            let behind = newest.map_or(0, |record| record.written.0 - record.durable.0);
            findings.unflushed += behind;
        }
    }
    let progress = Progress::bytes(geometry.block_bytes(Blocks(findings.read)));
    let scanner = Scanner::new(
        &subject.medium,
        &subject.layout,
        geometry,
        &subject.keyslots,
    );
    let jobs = subject.zones().flat_map(|(zone, record)| {
        let extent = extent(geometry, zone, record, closed);
        pieces(geometry, extent)
            .zip(std::iter::repeat(record.newest))
            .filter_map(move |(range, newest)| {
                let record = newest?.record;
                Some(Job {
                    zone,
                    record,
                    range,
                })
            })
    });
    let begun = Instant::now();
    let work = |job: Job| {
        let mut damage = ZoneDamage::default();
        scanner.verify(job.zone, &job.record, job.range, &mut |run| damage.add(run))?;
        Ok((job.zone, damage))
    };
    let result = scanner.in_parallel(
        jobs,
        work,
        |(zone, damage)| findings.note(zone, damage),
        |bytes| progress.at(bytes),
    );
    progress.end();
    findings.took = begun.elapsed();
    result.map(|()| findings)
}

/// Blocks of a zone that hold data for certain.
fn extent(geometry: &Geometry, zone: ZoneIndex, record: &LoadedRecord, closed: bool) -> Blocks {
    let Some(newest) = record.newest else {
        return Blocks(0);
    };
    match newest.record.state {
        ZoneState::Offline => Blocks(0),
        _ if geometry.zone_type(zone) == ZoneType::Conventional => {
            geometry.zone_capacity_blocks(zone)
        }
        _ if closed => newest.record.written,
        _ => newest.record.durable,
    }
}

/// The first `extent` blocks of a zone in pieces.
fn pieces(geometry: &Geometry, extent: Blocks) -> impl Iterator<Item = BlockRange> + use<> {
    let piece = geometry.blocks_in(PIECE).0;
    (0..extent.0.div_ceil(piece)).map(move |number| {
        let start = number * piece;
        BlockRange {
            start: Blocks(start),
            count: Blocks(piece.min(extent.0 - start)),
        }
    })
}
