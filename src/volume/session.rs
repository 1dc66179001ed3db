//! Opening and closing a disk: what it was left as, what can be proven of it, and in which order
//! that becomes durable.
//!
//! *Opening.* The zone records are read and, of a clean disk, compared with the root in its header.
//! After a power cut every zone is read on from its durable write pointer: a tag under the epoch of
//! the last session, with the counter that follows, proves a block ([`Scanner::extend`]). The first
//! block that proves nothing ends the zone. Nothing is ever moved back behind what a record calls
//! durable, and a second crash meanwhile finds the same: until the new epoch is in the header, the
//! old one still proves what it proved, and records only ever say more.
//!
//! *Closing.* Data, then records that call it durable, then those records' other copies, then the
//! header with the root in both copies, each synced before the next.

use std::fs;
use std::io;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use log::{info, warn};

use crate::format::{
    BootId, Header, LoadedRecord, OpenState, RecordsRoot,
    image::{mark_header, write_header, write_record},
};
use crate::geometry::{Blocks, Geometry, ZoneIndex};
use crate::store::{Medium, Op, Store};
use crate::zone::{Epoch, Loaded, Opening, Skipped, Table, ZoneState, provable};

use super::scan::Scanner;
use super::{Options, Volume, VolumeError, fill_random};

/// How often the end of a deallocation is looked for while a disk is opened.
const DEALLOCATION_POLL: Duration = Duration::from_millis(10);
/// A recovery that takes longer than this says how far it is, and again after as long.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// How often records are written when a disk is closed: once each for a state, what is durable, and
/// what became so on the way; nothing else changes then.
const CLOSING_ROUNDS: u32 = 3;

/// The steps of closing a disk, in words for whoever waits.
const STEPS: [&str; 4] = [
    "what was written is being synced",
    "the zone records are being written",
    "their other copies are being written",
    "the header is being written",
];

/// Which of the steps is under way.
#[derive(Debug, Default)]
pub(super) struct Progress(AtomicU8);

impl Progress {
    fn next(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn begin(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// How the disk was left, as far as its header and the boot of the host tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Left {
    /// What that means for its zones.
    pub(super) opening: Opening,
    /// What the page cache shows of the image may not be on the medium, although nothing is there to
    /// be written: a sync failed, and the host has not been booted since. Tags that verify prove
    /// nothing then, and no record can be relied on before it is written anew. What records call
    /// durable is: a sync that did not fail came after it.
    pub(super) in_doubt: bool,
}

impl Left {
    /// `found` is the root of the records; `closed_with` that of the header, if it is of a disk that
    /// was closed but has lost its other copy, which may have been newer. With equal roots it said
    /// nothing that matters: whoever opens a disk and has a flush completed has changed a record.
    pub(super) fn of(
        header: &Header,
        (closed_with, found): (Option<RecordsRoot>, RecordsRoot),
        boot: BootId,
        options: &Options,
    ) -> Self {
        let same_boot =
            boot != BootId::default() && header.boot_id == boot && !options.after_power_cut;
        let (opening, in_doubt) = match header.state {
            OpenState::Clean if same_boot => (Opening::Paused, false),
            OpenState::Clean => (Opening::Clean, false),
            _ if closed_with == Some(found) => (Opening::Clean, false),
            OpenState::Open if same_boot => (Opening::Killed, false),
            OpenState::Open => (Opening::PowerCut, false),
            OpenState::InDoubt => (Opening::PowerCut, same_boot),
        };
        Self { opening, in_doubt }
    }
}

/// Refuses a clean disk whose records are not those with which it was closed.
pub(super) fn check_root(
    header: &Header,
    found: RecordsRoot,
    options: &Options,
) -> Result<(), VolumeError> {
    if header.state != OpenState::Clean || header.records_root == found {
        return Ok(());
    }
    if options.accept_records {
        warn!("the zone records are not those with which the disk was closed: accepted as told");
        return Ok(());
    }
    Err(VolumeError::ForeignRecords)
}

/// What the tags of a disk that was cut off from power prove, noted in `loaded`.
///
/// `last_epoch` is the epoch of the last session: a zone was written under it also if the newest of
/// its records that reached the medium does not say so. If it is not known, each record's own has to
/// do. `only_damaged`: only zones of which a record is lost, which may have been the newest.
pub(super) fn prove<M: Medium>(
    scanner: &Scanner<'_, M>,
    geometry: &Geometry,
    last_epoch: Option<Epoch>,
    only_damaged: bool,
    loaded: &mut [LoadedRecord],
) -> Result<(), VolumeError> {
    let zones = geometry.all_zones().zip(loaded.iter());
    let jobs: Vec<(ZoneIndex, Loaded)> = zones
        .filter(|(_, record)| !only_damaged || !record.is_sound())
        .filter_map(|(zone, record)| Some((zone, record.newest?)))
        .filter(|(zone, found)| found.proven < provable(geometry, *zone, found))
        .collect();
    let total = jobs.len();
    if total == 0 {
        return Ok(());
    }
    let begun = Instant::now();
    let mut next_line = PROGRESS_EVERY;
    let done = AtomicU64::new(0);
    let prove_zone = |(zone, found): (ZoneIndex, Loaded)| {
        let record = &found.record;
        let (epoch, skipped) = match last_epoch {
            Some(epoch) if epoch != record.epoch => (epoch, Skipped(0)),
            _ => (record.epoch, record.skipped),
        };
        let end = provable(geometry, zone, &found);
        let proven = scanner.extend(zone, record, epoch, skipped, found.proven, end)?;
        done.fetch_add(1, Ordering::Relaxed);
        Ok((zone, proven))
    };
    let mut gained = Blocks(0);
    let note = |(zone, proven): (ZoneIndex, Blocks)| {
        let newest = loaded
            .get_mut(zone.as_usize())
            .and_then(|record| record.newest.as_mut());
        if let Some(newest) = newest {
            gained = Blocks(gained.0 + proven.0.saturating_sub(newest.proven.0));
            newest.proven = proven;
        }
    };
    let tick = |bytes| {
        if begun.elapsed() >= next_line {
            next_line = begun.elapsed() + PROGRESS_EVERY;
            let zones = done.load(Ordering::Relaxed);
            info!(
                "recovering: {zones} of {total} zones, {} MiB read",
                bytes >> 20
            );
        }
    };
    scanner.in_parallel(jobs.into_iter(), prove_zone, note, tick)?;
    if gained.0 > 0 {
        info!(
            "tags prove {} KiB behind what is on record as flushed ({:.1} s)",
            geometry.block_bytes(gained) >> 10,
            begun.elapsed().as_secs_f64()
        );
    }
    Ok(())
}

/// Says what a power cut took. What never got on record is not known of.
pub(super) fn say_lost(geometry: &Geometry, loaded: &[LoadedRecord], table: &Table) {
    let (mut zones, mut blocks, mut first) = (0_u32, Blocks(0), None);
    for (zone, found) in geometry.all_zones().zip(loaded) {
        let before = found
            .newest
            .map_or(Blocks(0), |newest| newest.record.written);
        let now = table
            .record(zone)
            .map_or(Blocks(0), |record| record.written);
        if now < before {
            zones += 1;
            blocks = Blocks(blocks.0 + before.0 - now.0);
            first.get_or_insert(zone);
        }
    }
    let lost = geometry.block_bytes(blocks) >> 10;
    match first {
        None => warn!("the disk was not closed in order: nothing that is on record is lost"),
        Some(first) => warn!(
            "the disk was not closed in order: {lost} KiB that no flush covered are lost, at the ends of {zones} \
             zones, the first of them {first}"
        ),
    }
}

impl<M: Medium> Volume<M> {
    /// Makes an opening durable. Before the header says that the disk is open under a new epoch,
    /// every record it relies on is: whoever finds that header can trust what it finds below.
    pub(super) fn begin_session(
        &self,
        left: Left,
        epoch: Epoch,
        boot_id: BootId,
        stale: &[ZoneIndex],
    ) -> Result<(), VolumeError> {
        let Left { opening, in_doubt } = left;
        if opening == Opening::Killed {
            info!("the last daemon of this disk was killed: going on exactly");
        }
        if opening.is_orderly() {
            // Its records are durable and exact, and go with the root in its header: that goes first.
            self.open_header(epoch, boot_id)?;
        }
        // What a killed daemon wrote may still be in the page cache only.
        self.sync_or_doubt()?;
        if opening != Opening::PowerCut {
            self.table.all_durable();
        }
        for &zone in stale {
            self.table.touch(zone);
        }
        if opening == Opening::PowerCut {
            // What was recovered may equal what was read and still be in the page cache only: an
            // earlier opening may have come as far as this.
            self.table.touch_used();
        }
        if in_doubt {
            self.geometry()
                .all_zones()
                .for_each(|zone| self.table.touch(zone));
        }
        self.write_touched_records()?;
        // A zone that holds something was not being reset, whatever its other record says.
        let emptied = |zone: &ZoneIndex| {
            let record = self.table.record(*zone);
            record.is_some_and(|record| record.state == ZoneState::Empty)
        };
        let erased: Vec<ZoneIndex> = stale.iter().copied().filter(emptied).collect();
        self.deallocate(&erased)?;
        if !opening.is_orderly() {
            self.open_header(epoch, boot_id)?;
        }
        self.table.forget_epochs();
        self.write_touched_records()
    }

    fn open_header(&self, epoch: Epoch, boot_id: BootId) -> Result<(), VolumeError> {
        self.set_header(OpenState::Open, |header| {
            header.epoch = epoch;
            header.boot_id = boot_id;
            header.records_root = RecordsRoot::default();
        })
    }

    /// Writes every record that is out of date and makes all of them durable.
    fn write_touched_records(&self) -> Result<(), VolumeError> {
        let touched = self.table.touched();
        if touched.is_empty() {
            return Ok(());
        }
        for zone in touched {
            if let Some(order) = self.table.settle(zone).record {
                write_record(&self.medium, &self.layout, &self.record_key, zone, &order)?;
                self.table.record_written(zone, &order);
            }
        }
        let mark = self.table.begin_flush();
        self.sync_or_doubt()?;
        let _ = self.table.end_flush(mark);
        Ok(())
    }

    /// Makes both copies of every record the same, so that damage to one costs nothing.
    fn mirror_records(&self) -> Result<(), VolumeError> {
        let orders = self.table.mirror();
        if orders.is_empty() {
            return Ok(());
        }
        for (zone, order) in orders {
            write_record(&self.medium, &self.layout, &self.record_key, zone, &order)?;
        }
        self.sync_or_doubt()
    }

    /// Gives back the space of zones whose reset was cut off.
    fn deallocate(&self, zones: &[ZoneIndex]) -> Result<(), VolumeError> {
        if zones.is_empty() {
            return Ok(());
        }
        let mut store = self.medium.open_store(1)?;
        for &zone in zones {
            store.submit(self.deallocation(zone), 0);
            store.kick();
            while store.in_flight() > 0 {
                store.wait(DEALLOCATION_POLL);
                store.reap(&mut Vec::new());
            }
        }
        Ok(())
    }

    /// The operation that gives back the space of a whole zone.
    pub(super) fn deallocation(&self, zone: ZoneIndex) -> Op {
        let (offset, len) = self.layout.extents(zone);
        Op::Deallocate { offset, len }
    }

    /// Notes in the header that a sync failed. In the page cache only, for nobody else needs to know:
    /// after another boot there is nothing left to doubt.
    pub(super) fn mark_in_doubt(&self) -> io::Result<()> {
        let mut held = self.header.lock();
        let mut header = held.header.clone();
        header.state = OpenState::InDoubt;
        mark_header(&self.medium, &held.key, &mut header)?;
        held.header = header;
        Ok(())
    }

    fn set_header(
        &self,
        state: OpenState,
        change: impl FnOnce(&mut Header),
    ) -> Result<(), VolumeError> {
        let mut held = self.header.lock();
        let mut header = held.header.clone();
        header.state = state;
        change(&mut header);
        write_header(&self.medium, &held.key, &mut header)?;
        held.header = header;
        Ok(())
    }

    /// Leaves the disk as a killed daemon does, but durable: who opens it next knows that requests were
    /// in flight of which nobody knows whether they were done. No channel may have anything in flight.
    ///
    /// # Errors
    /// Those of [`Volume::close`].
    pub fn leave_open(&self) -> Result<(), VolumeError> {
        if self.read_only {
            return Ok(());
        }
        if self.has_failed_sync() {
            return Err(VolumeError::SyncFailed);
        }
        let mark = self.table.begin_flush();
        self.sync_or_doubt()?;
        let _ = self.table.end_flush(mark);
        self.write_touched_records()
    }

    /// What closing the disk is at, while another thread does it.
    pub fn closing(&self) -> &'static str {
        let step = self.closing.0.load(Ordering::Relaxed);
        STEPS.get(usize::from(step)).copied().unwrap_or_default()
    }

    /// Closes the disk in order: everything durable, no zone open, marked clean. No channel may
    /// have anything in flight.
    ///
    /// # Errors
    /// Metadata could not be written, or a sync failed, now or since the disk was opened: it then
    /// counts as not closed.
    pub fn close(&self) -> Result<(), VolumeError> {
        if !self.read_only && !self.has_failed_sync() {
            self.table.close_all();
        }
        self.pause()
    }

    /// [`Volume::close`] for a guest that goes on with the next daemon: zones stay open, as it left them, unless
    /// the host is booted meanwhile.
    ///
    /// # Errors
    /// Those of [`Volume::close`].
    pub fn pause(&self) -> Result<(), VolumeError> {
        if self.read_only {
            return Ok(());
        }
        if self.has_failed_sync() {
            return Err(VolumeError::SyncFailed);
        }
        self.closing.begin();
        // First what was written becomes durable, then the records that call it so.
        let mark = self.table.begin_flush();
        self.sync_or_doubt()?;
        let _ = self.table.end_flush(mark);
        self.closing.next();
        // What becomes durable with the records is said by the next ones.
        for _ in 0..CLOSING_ROUNDS {
            self.write_touched_records()?;
            if self.table.touched().is_empty() {
                break;
            }
        }
        self.closing.next();
        self.mirror_records()?;
        self.closing.next();
        let root = self.record_key.root_of(&self.table.newest_records());
        // Twice, so that both copies say it: neither is worth putting back.
        self.set_header(OpenState::Clean, |header| header.records_root = root)?;
        self.set_header(OpenState::Clean, |_| {})
    }
}

/// This boot of the host, or zero where the kernel does not tell: then any unclean disk counts as
/// cut off from power, which is the careful reading.
pub(super) fn boot_id() -> BootId {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .ok()
        .and_then(|text| uuid::Uuid::try_parse(text.trim()).ok())
        .map_or_else(BootId::default, |id| BootId(id.into_bytes()))
}

/// A new epoch: never 0, which in a tag slot means that nothing was written.
pub(super) fn random_epoch() -> Result<Epoch, VolumeError> {
    loop {
        let mut bytes = [0; 8];
        fill_random(&mut bytes)?;
        let epoch = Epoch(u64::from_le_bytes(bytes));
        if epoch != Epoch(0) {
            return Ok(epoch);
        }
    }
}
