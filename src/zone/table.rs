//! The zone table: every zone's state behind one lock that is never held across I/O.

use parking_lot::Mutex;

use crate::geometry::{Blocks, Generation, Geometry, Sector, ZoneIndex, ZoneType};
use crate::mutant::Mutant;

use super::answer::{Admission, FlushMark, Grant, MarkedZone, ReadView, Settled};
use super::entry::{Zone, fall_back, load_zone};
use super::line::{Released, Ticket};
use super::record::{Loaded, RecordWrite};
use super::recover::{Opening, switched_off};
use super::redo::{Expected, lose};
use super::reset_all::Awaited;
use super::resources::Resources;
use super::view::Views;
use super::{Epoch, Skipped, ZoneError, ZoneInfo, ZoneRecord, ZoneSalt, ZoneState};

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) zones: Vec<Zone>,
    resources: Resources,
    /// Zones whose newest record is not durable yet.
    undurable: Vec<ZoneIndex>,
    clock: u64,
    pub(super) epoch: Epoch,
    /// Writes of a daemon that died, by place.
    pub(super) expected: Expected,
    /// A RESET_ALL of it.
    pub(super) reset_all: Option<Awaited>,
}

impl Inner {
    pub(super) fn zone(&mut self, zone: ZoneIndex) -> Option<&mut Zone> {
        self.zones.get_mut(zone.as_usize())
    }

    pub(super) fn set_state(&mut self, index: ZoneIndex, to: ZoneState) {
        let Some(zone) = self.zones.get_mut(index.as_usize()) else {
            return;
        };
        if zone.state != to {
            let lingered = zone.lingers();
            self.resources.change(index, zone.state, to);
            zone.state = to;
            zone.touched = true;
            self.resources.change_lingering(lingered, zone.lingers());
        }
    }

    /// Takes the resources for opening `index`, closing the least recently used implicitly open
    /// zone if that makes room. Returns the zone that was closed.
    pub(super) fn obtain(&mut self, index: ZoneIndex) -> Result<Option<ZoneIndex>, ZoneError> {
        let state = self
            .zone(index)
            .map_or(ZoneState::Offline, |zone| zone.state);
        if state.is_open() {
            return Ok(None);
        }
        // Both limits hit: the specification lets ACTIVE_RESOURCE win.
        // A zone whose record still says that it is active takes its own slot again.
        let lingers = self.zone(index).is_some_and(|zone| zone.lingers());
        if !state.is_active() && self.resources.active_full(lingers) {
            return Err(ZoneError::ActiveResource);
        }
        if !self.resources.open_full() {
            return Ok(None);
        }
        let victim = self.least_recently_used().ok_or(ZoneError::OpenResource)?;
        self.set_state(victim, self.closed_state_of(victim));
        Ok(Some(victim))
    }

    fn least_recently_used(&self) -> Option<ZoneIndex> {
        self.resources
            .open_zones()
            .iter()
            .filter_map(|&index| Some((index, self.zones.get(index.as_usize())?)))
            .filter(|(_, zone)| zone.state == ZoneState::ImplicitOpen)
            .min_by_key(|(_, zone)| zone.last_use)
            .map(|(index, _)| index)
    }

    /// What a zone becomes when it loses its open slot.
    pub(super) fn closed_state_of(&self, index: ZoneIndex) -> ZoneState {
        match self.zones.get(index.as_usize()) {
            Some(zone) if zone.reserved.0 == 0 => ZoneState::Empty,
            _ => ZoneState::Closed,
        }
    }

    /// Brings a recovered disk under its limits: first by closing, then by finishing, which keeps all that
    /// zones hold. More can be active only after a power cut that took what made room for another zone, as
    /// the end of one that was full, and left what was then written to the other, neither of them flushed.
    /// So the one with the least room left is finished first. Or somebody put back an older record of a
    /// zone, whatever that says; so open ones are not spared.
    fn enforce_limits(&mut self, geometry: &Geometry) {
        while self.resources.open_exceeded() {
            let explicit = self.resources.open_zones().last().copied();
            let Some(index) = self.least_recently_used().or(explicit) else {
                return;
            };
            self.set_state(index, self.closed_state_of(index));
        }
        while self.resources.active_exceeded() {
            let zones = geometry.all_zones().zip(&self.zones);
            let active = zones.filter(|(_, zone)| zone.state.is_active());
            let room = |&(index, zone): &(ZoneIndex, &Zone)| {
                let open = zone.state.is_open();
                (
                    open,
                    geometry.zone_capacity_blocks(index).0 - zone.reserved.0,
                )
            };
            let Some((index, zone)) = active.min_by_key(room) else {
                return;
            };
            if zone.reserved.0 == 0 {
                self.set_state(index, ZoneState::Empty);
                continue;
            }
            if let Some(zone) = self.zone(index) {
                zone.reserved = geometry.zone_capacity_blocks(index);
            }
            self.set_state(index, ZoneState::Full);
        }
    }

    /// Whether a write up to `end` would need a counter that a tag slot cannot hold. Billions of
    /// blocks must fail before that.
    fn counters_used_up(&mut self, index: ZoneIndex, end: Blocks) -> bool {
        let epoch = self.epoch;
        self.zone(index)
            .is_some_and(|zone| zone.epoch == epoch && zone.skipped.counter(end).is_none())
    }

    fn list_undurable(&mut self, index: ZoneIndex) {
        if let Some(zone) = self.zones.get_mut(index.as_usize())
            && !zone.listed
        {
            zone.listed = true;
            self.undurable.push(index);
        }
    }

    /// The next record of a zone, placed and numbered.
    fn next_record(&mut self, index: ZoneIndex) -> Option<RecordWrite> {
        let zone = self.zone(index)?;
        zone.touched = false;
        let record = zone.record();
        zone.recorded_active |= record.state.is_active();
        let write = zone.place.advance(record);
        self.list_undurable(index);
        Some(write)
    }
}

/// All zones of a disk.
#[derive(Debug)]
pub struct Table {
    pub(super) geometry: Geometry,
    pub(super) inner: Mutex<Inner>,
    /// What `inner` says to readers, who come without its lock.
    views: Views,
}

impl Table {
    /// Builds the table from the zone records of a disk that was left as `opening` says; changes
    /// are booked under `epoch` from now on. A zone without a valid record is offline. Open and
    /// active zones are brought under the limits. [`Table::touched`] tells whose record changed.
    pub fn new(
        geometry: Geometry,
        records: Vec<Option<Loaded>>,
        opening: Opening,
        epoch: Epoch,
    ) -> Self {
        let mut inner = Inner {
            zones: Vec::with_capacity(records.len()),
            resources: Resources::new(geometry.max_open(), geometry.max_active()),
            undurable: Vec::new(),
            clock: 0,
            epoch,
            expected: Expected::new(),
            reset_all: None,
        };
        let mut records = records.into_iter();
        for index in geometry.all_zones() {
            let zone = load_zone(&geometry, index, records.next().flatten(), opening);
            inner.resources.change(index, ZoneState::Empty, zone.state);
            inner.resources.change_lingering(false, zone.lingers());
            inner.zones.push(zone);
        }
        inner.enforce_limits(&geometry);
        let views = Views::new(inner.zones.iter().map(Zone::view));
        Self {
            geometry,
            inner: Mutex::new(inner),
            views,
        }
    }

    /// Shows readers what changed for them.
    pub(super) fn show(&self, inner: &Inner, index: ZoneIndex) {
        if let Some(zone) = inner.zones.get(index.as_usize()) {
            self.views.set(index, zone.view());
        }
    }

    /// The shape of the disk.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The epoch under which changes are booked.
    pub fn epoch(&self) -> Epoch {
        self.inner.lock().epoch
    }

    /// Zones whose record on disk is out of date.
    pub fn touched(&self) -> Vec<ZoneIndex> {
        let inner = self.inner.lock();
        let zones = self.geometry.all_zones().zip(&inner.zones);
        zones
            .filter(|(_, zone)| zone.touched)
            .map(|(index, _)| index)
            .collect()
    }

    /// Open and active zones now.
    pub fn resources(&self) -> (u32, u32) {
        let inner = self.inner.lock();
        (inner.resources.open_count(), inner.resources.active_count())
    }

    /// Admits a read: how far data goes, and under which key. Takes no lock.
    pub fn admit_read(&self, index: ZoneIndex) -> Result<ReadView, ZoneError> {
        let view = self.views.get(index).ok_or(ZoneError::InvalidCommand)?;
        if cfg!(debug_assertions) {
            let inner = self.inner.lock();
            let zone = inner.zones.get(index.as_usize()).map(Zone::view);
            debug_assert_eq!(self.views.get(index), zone, "{index} was not shown");
        }
        view.ok_or(ZoneError::InvalidCommand)
    }

    /// The salt of a zone, if `generation` is still the one that counts.
    pub fn salt(&self, index: ZoneIndex, generation: Generation) -> Option<ZoneSalt> {
        let mut inner = self.inner.lock();
        let zone = inner.zone(index)?;
        (zone.generation == generation).then_some(zone.salt)
    }

    /// Admits a write of `count` blocks (above 0) to a sequential zone: at block `at`, or, for
    /// `None`, wherever the write pointer is (a zone append).
    pub fn admit_write(
        &self,
        index: ZoneIndex,
        at: Option<Blocks>,
        count: Blocks,
        ticket: Ticket,
    ) -> Result<Admission<Grant>, ZoneError> {
        self.admit_noted_write(index, at, count, ticket, |_| ())
    }

    /// [`Table::admit_write`]; `note` learns of the grant before anybody is granted what follows it, so that of
    /// the grants that are noted none lies behind one that is not.
    pub fn admit_noted_write(
        &self,
        index: ZoneIndex,
        at: Option<Blocks>,
        count: Blocks,
        ticket: Ticket,
        note: impl FnOnce(&Grant),
    ) -> Result<Admission<Grant>, ZoneError> {
        if self.geometry.zone_type(index) != ZoneType::Sequential {
            return Err(ZoneError::InvalidCommand);
        }
        let mut inner = self.inner.lock();
        let zone = inner.zone(index).ok_or(ZoneError::InvalidCommand)?;
        if zone.must_wait(ticket) {
            zone.line().park(ticket);
            return Ok(Admission::Parked);
        }
        let grant = self.grant(&mut inner, index, at, count, ticket)?;
        note(&grant);
        Ok(Admission::Granted(grant))
    }

    /// Grants a write that need not wait.
    pub(super) fn grant(
        &self,
        inner: &mut Inner,
        index: ZoneIndex,
        at: Option<Blocks>,
        count: Blocks,
        ticket: Ticket,
    ) -> Result<Grant, ZoneError> {
        let capacity = self.geometry.zone_capacity_blocks(index);
        let zone = inner.zone(index).ok_or(ZoneError::InvalidCommand)?;
        if zone.line.as_ref().is_some_and(|line| line.has_failed()) {
            return Err(ZoneError::Failed);
        }
        match zone.state {
            ZoneState::Full | ZoneState::ReadOnly | ZoneState::Offline => {
                return Err(ZoneError::InvalidCommand);
            }
            _ => {}
        }
        let start = zone.reserved;
        if start >= capacity {
            return Err(ZoneError::InvalidCommand);
        }
        if at.is_some_and(|at| at != start) {
            return Err(ZoneError::UnalignedWritePointer);
        }
        let end = start
            .0
            .checked_add(count.0)
            .map(Blocks)
            .filter(|&end| end <= capacity)
            .ok_or(ZoneError::InvalidCommand)?;
        if inner.counters_used_up(index, end) {
            inner.set_state(index, ZoneState::ReadOnly);
            return Err(ZoneError::InvalidCommand);
        }
        let closed = inner.obtain(index)?;
        inner.clock += 1;
        let (clock, epoch) = (inner.clock, inner.epoch);
        let opens = inner.zone(index).is_some_and(|zone| !zone.state.is_open());
        if opens {
            inner.set_state(index, ZoneState::ImplicitOpen);
        }
        let zone = inner.zone(index).ok_or(ZoneError::InvalidCommand)?;
        zone.last_use = clock;
        zone.reserved = end;
        if Mutant::RecordBeforeData.is_on() {
            zone.written = end;
            zone.touched = true;
        }
        if zone.epoch != epoch {
            zone.epoch = epoch;
            zone.skipped = Skipped(0);
        }
        let (generation, skipped) = (zone.generation, zone.skipped);
        let number = zone.line().join(end, ticket);
        if Mutant::RecordBeforeData.is_on() {
            self.show(inner, index);
        }
        Ok(Grant {
            zone: index,
            start,
            generation,
            epoch,
            skipped,
            closed,
            number,
        })
    }

    /// Hands a grant back. Nobody is told before [`Table::settle`].
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a grant is consumed here, once"
    )]
    pub fn complete(&self, grant: Grant, ok: bool) {
        let mut inner = self.inner.lock();
        if let Some(zone) = inner.zone(grant.zone) {
            zone.line().mark(grant.number, ok);
        }
    }

    /// Releases what is over in a zone, in write-pointer order, and says which record must be on
    /// its way first. Calls for one zone, and the record writes they order, must not overlap.
    pub fn settle(&self, index: ZoneIndex) -> Settled {
        let mut settled = Settled::default();
        self.settle_into(index, &mut settled);
        settled
    }

    /// [`Table::settle`] into memory that is at hand: adds to who is to be told, replaces the rest.
    pub fn settle_into(&self, index: ZoneIndex, settled: &mut Settled) {
        let capacity = self.geometry.zone_capacity_blocks(index);
        (settled.record, settled.fence, settled.fell_back) = (None, false, None);
        let released = &mut settled.released;
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        let Some(zone) = inner.zones.get_mut(index.as_usize()) else {
            return;
        };
        let mut state = zone.state;
        if let Some(mut line) = zone.line.take() {
            while let Some((end, ticket)) = line.pop_done() {
                if state == ZoneState::ReadOnly {
                    released.push(Released::Write(ticket, Err(ZoneError::Failed)));
                    continue;
                }
                zone.written = end;
                zone.touched = true;
                released.push(Released::Write(ticket, Ok(())));
            }
            if line.pop_failed(released) {
                state = fall_back(zone);
                settled.fence = zone.fence.is_some();
                settled.fell_back = Some((zone.generation, zone.reserved));
                lose(&mut inner.expected, index, released);
                zone.awaited = inner.reset_all.is_some();
            }
            if line.is_empty() && !zone.is_held() {
                line.unpark(index, released);
            }
            zone.line = Some(line);
        }
        if zone.written == capacity && state.is_active() {
            state = ZoneState::Full;
        }
        if zone.reserved.0 == 0 && state == ZoneState::Closed {
            state = ZoneState::Empty;
        }
        inner.set_state(index, state);
        inner.release_expected(index, released);
        if inner.zone(index).is_some_and(|zone| zone.touched) {
            settled.record = inner.next_record(index);
        }
        self.show(inner, index);
    }

    /// The record of a zone that fell back, in which its counters are skipped; for a disk with tags
    /// (`tagged`) only if all that the zone holds is durable and its records have heard of it: behind
    /// what a record calls durable, tags prove only what was written after the counters were skipped.
    pub fn fence_record(&self, index: ZoneIndex, tagged: bool) -> Option<RecordWrite> {
        let mut inner = self.inner.lock();
        let zone = inner.zone(index)?;
        if tagged && zone.durable != zone.written {
            return None;
        }
        // What overflows here is refused by the next write.
        let used = zone.fence.unwrap_or(0);
        zone.skipped = Skipped(zone.skipped.0.saturating_add(used));
        zone.fence = Some(0);
        inner.next_record(index)
    }

    /// All that a zone's falling back needed is done, or (not `ok`) could not be, and the zone is
    /// read-only. Who waits for the zone is freed by the next [`Table::settle`].
    pub fn end_fence(&self, index: ZoneIndex, ok: bool) {
        let mut inner = self.inner.lock();
        if let Some(zone) = inner.zone(index) {
            zone.fence = None;
        }
        if !ok {
            inner.set_state(index, ZoneState::ReadOnly);
        }
    }

    /// Orders to make both copies of every zone's record the same. None while the newest may not be
    /// durable; whatever is written afterwards makes them differ again.
    pub fn mirror(&self) -> Vec<(ZoneIndex, RecordWrite)> {
        let mut inner = self.inner.lock();
        let zones = self.geometry.all_zones().zip(&mut inner.zones);
        zones
            .filter(|(_, zone)| !zone.touched)
            .filter_map(|(index, zone)| {
                let record = zone.record();
                Some((index, zone.place.mirror(record)?))
            })
            .collect()
    }

    /// The record that [`Table::settle`] ordered could not be written: the zone turns read-only, and
    /// no flush is complete before its record is written after all.
    pub fn fail_zone(&self, index: ZoneIndex) {
        let mut inner = self.inner.lock();
        let Some(zone) = inner.zone(index) else {
            return;
        };
        if zone.state != ZoneState::Offline {
            zone.touched = true;
            inner.set_state(index, ZoneState::ReadOnly);
            inner.list_undurable(index);
        }
    }

    /// Has a zone's record written again, to its other copy: the first is durable, and the other
    /// still holds the salt that a reset is to erase.
    pub fn touch(&self, index: ZoneIndex) {
        if let Some(zone) = self.inner.lock().zone(index) {
            zone.touched = true;
        }
    }

    /// Has the record written again of every zone that holds something or is not empty.
    pub fn touch_used(&self) {
        for zone in &mut self.inner.lock().zones {
            let unused = zone.state == ZoneState::Empty || zone.state == ZoneState::NotWritePointer;
            zone.touched |= zone.state != ZoneState::Offline && (!unused || zone.written.0 > 0);
        }
    }

    /// Forgets what operations of a channel that is given up wait for.
    pub fn forget_life(&self, life: u32) {
        let mut inner = self.inner.lock();
        inner.forget_waiting(life);
        for line in inner.zones.iter_mut().filter_map(|zone| zone.line.as_mut()) {
            line.forget_life(life);
        }
    }

    /// Notes what a sync that starts now will cover. Syncs of one table must not overlap.
    pub fn begin_flush(&self) -> FlushMark {
        let inner = self.inner.lock();
        let marked = inner.undurable.iter().filter_map(|&index| {
            let zone = inner.zones.get(index.as_usize())?;
            Some(MarkedZone {
                zone: index,
                sequence: zone.place.covered(),
                generation: zone.generation,
                written: zone.written,
            })
        });
        FlushMark {
            zones: marked.collect(),
        }
    }

    /// A sync has made everything in `mark` durable. Returns the zones whose record on disk does not
    /// say so yet: their durable write pointer moved, or they were reset meanwhile. They are to settle.
    pub fn end_flush(&self, mark: FlushMark) -> Vec<ZoneIndex> {
        let mut inner = self.inner.lock();
        let mut moved = Vec::new();
        for marked in mark.zones {
            let Some(zone) = inner.zone(marked.zone) else {
                continue;
            };
            zone.place.synced(marked.sequence);
            let same = zone.generation == marked.generation;
            if same && !zone.doubtful && zone.durable < marked.written {
                zone.durable = marked.written;
                zone.touched = true;
            }
            // A reset overtook the sync: its record is not durable, and the old one may not say how
            // far the flush went; one of the two must. Or a record is still to be written.
            // Or it was written while the sync ran, and may be the first to say how far this went.
            if !same || zone.touched || !zone.place.is_durable() {
                moved.push(marked.zone);
            }
        }
        let Inner {
            zones, undurable, ..
        } = &mut *inner;
        undurable.retain(|index| {
            let keep = zones
                .get(index.as_usize())
                .is_some_and(|zone| !zone.place.is_durable() || zone.awaits_flush());
            if let Some(zone) = zones.get_mut(index.as_usize()) {
                zone.listed = keep;
            }
            keep
        });
        moved
    }

    /// A sync has failed: nobody knows what is on the medium of what it was to cover or of what was
    /// written meanwhile. Those zones turn read-only; returned, for their records are to settle.
    pub fn fail_flush(&self) -> Vec<ZoneIndex> {
        let mut inner = self.inner.lock();
        let zones = self.geometry.all_zones().zip(&inner.zones);
        // Also those whose writes are still under way: a part of them may be what was lost.
        let doubtful: Vec<ZoneIndex> = zones
            .filter(|(_, zone)| zone.listed || !zone.is_at_rest())
            .map(|(index, _)| index)
            .collect();
        for &index in &doubtful {
            if let Some(zone) = inner.zone(index) {
                zone.doubtful = true;
                // Its record is in doubt like all that was to be covered.
                zone.touched = true;
            }
            inner.set_state(index, ZoneState::ReadOnly);
        }
        doubtful
    }

    /// Everything that was ever written is durable: the disk was just opened and synced, was not cut
    /// off from power, and no sync of it had failed. Records are to settle.
    pub fn all_durable(&self) {
        let mut inner = self.inner.lock();
        for zone in &mut inner.zones {
            if zone.durable < zone.written {
                zone.durable = zone.written;
                zone.touched = true;
            }
        }
    }

    /// Forgets under which epochs zones were written to before the disk was opened: their records
    /// prove no more from then on what a cut or a failed write left behind their write pointers. Only
    /// once the header names the new epoch. Records are to settle.
    pub fn forget_epochs(&self) {
        let mut inner = self.inner.lock();
        for zone in &mut inner.zones {
            let takes_writes = zone.state.is_active() || zone.state == ZoneState::Empty;
            if takes_writes && zone.epoch != Epoch(0) {
                zone.epoch = Epoch(0);
                zone.skipped = Skipped(0);
                zone.touched = true;
            }
        }
    }

    /// The record that [`Table::settle`] ordered is written.
    pub fn record_written(&self, index: ZoneIndex, write: &RecordWrite) {
        let mut inner = self.inner.lock();
        let Some(zone) = inner.zone(index) else {
            return;
        };
        zone.place.written(write.sequence);
        let lingered = zone.lingers();
        zone.recorded_active = write.record.state.is_active();
        let lingers = zone.lingers();
        inner.resources.change_lingering(lingered, lingers);
    }

    /// A [`Released::Retry`] has begun again, whatever came of it; [`Table::settle`] then frees
    /// those who came meanwhile.
    pub fn retried(&self, index: ZoneIndex, ticket: Ticket) {
        if let Some(zone) = self.inner.lock().zone(index) {
            zone.line().retried(ticket);
        }
    }

    /// Closes every open zone: the disk is being switched off. Their records are to settle.
    pub fn close_all(&self) {
        let mut inner = self.inner.lock();
        let open: Vec<ZoneIndex> = inner.resources.open_zones().to_vec();
        for index in open {
            let state = inner
                .zone(index)
                .map_or(ZoneState::Offline, |zone| switched_off(&zone.record()));
            inner.set_state(index, state);
        }
    }

    /// Calls `each` for up to `limit` zones from `first` on.
    pub fn report(&self, first: ZoneIndex, limit: usize, mut each: impl FnMut(usize, ZoneInfo)) {
        let inner = self.inner.lock();
        let zones = inner.zones.get(first.as_usize()..).unwrap_or_default();
        for (position, (index, zone)) in (first.0..).zip(zones).take(limit).enumerate() {
            each(position, self.info(ZoneIndex(index), zone));
        }
    }

    fn info(&self, index: ZoneIndex, zone: &Zone) -> ZoneInfo {
        let start = self.geometry.zone_start(index);
        let len = self.geometry.zone_len(index);
        let write_pointer = match zone.state {
            ZoneState::Full => Sector(start.0 + len.0),
            state if state.is_active() => self.geometry.block_sector(index, zone.written),
            _ => start,
        };
        ZoneInfo {
            start,
            len,
            capacity: self.geometry.zone_capacity(index),
            write_pointer,
            kind: self.geometry.zone_type(index),
            state: zone.state,
        }
    }

    /// The newest record of every zone and its number; `None` of a zone whose records were lost.
    pub fn newest_records(&self) -> Vec<Option<(ZoneRecord, u64)>> {
        let inner = self.inner.lock();
        let newest = |zone: &Zone| {
            let sequence = zone.place.sequence();
            let lost = zone.state == ZoneState::Offline && sequence == 0;
            (!lost).then(|| (zone.record(), sequence))
        };
        inner.zones.iter().map(newest).collect()
    }

    /// The content of a zone's record, as it stands in memory.
    pub fn record(&self, index: ZoneIndex) -> Option<ZoneRecord> {
        self.inner.lock().zone(index).map(|zone| zone.record())
    }
}
