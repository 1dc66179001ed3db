//! The reference model of the zoned disk: what each request must answer and leave behind, by virtio 1.4 ("Block Device
//! / Device Operation") and by the choices listed here for what it leaves open. It shares no code with the daemon.
//!
//! Where several errors apply to one request the specification ranks only two of them (active before open resources),
//! so a verdict is the set of statuses that a device may answer. Choices:
//! FINISH takes EMPTY and CLOSED zones to FULL and needs the slot that a write would need (as null_blk); a zone that is
//! FULL has no write pointer, so writing it is INVALID_CMD, never UNALIGNED_WP; zero-length IN and OUT, and ones past
//! the capacity of the disk, are IOERR; a read-only disk answers IOERR to whatever would change it; unwritten sectors
//! of sequential zones read as zeroes, those of conventional ones as anything; a report past the capacity is
//! INVALID_CMD.

use crate::common::request::{SECTOR, ZoneInfo, status, zone_type};

/// Zone states as on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Conventional.
    NotWp = 0,
    /// Nothing written.
    Empty = 1,
    /// Opened by a write.
    Implicit = 2,
    /// Opened by ZONE_OPEN.
    Explicit = 3,
    /// Active, not open.
    Closed = 4,
    /// Not writable until reset.
    Full = 14,
}

/// The disk's shape; sectors unless said otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    /// Zones.
    pub zones: u64,
    /// Zone size.
    pub zone_size: u64,
    /// Writable sectors of a sequential zone.
    pub zone_capacity: u64,
    /// Conventional zones at the start.
    pub conventional: u64,
    /// Most open zones; 0 for no limit.
    pub max_open: u64,
    /// Most active zones; 0 for no limit.
    pub max_active: u64,
    /// Longest append.
    pub max_append: u64,
    /// Write granularity in sectors.
    pub block: u64,
}

impl Geometry {
    /// Size of the disk.
    pub fn capacity(&self) -> u64 {
        self.zones * self.zone_size
    }
}

/// One zone.
#[derive(Clone, Copy, Debug)]
pub struct Zone {
    /// State.
    pub state: State,
    /// Sectors below the write pointer, counted from the zone's start.
    pub written: u64,
    /// When it was last written, for the order of implicit closing; 0 is "before the restart".
    used: u64,
}

/// The statuses that a device may answer to one request.
pub type Verdict = Vec<u8>;

/// The disk.
#[derive(Clone, Debug)]
pub struct Model {
    /// Shape.
    pub geometry: Geometry,
    /// The disk was opened read-only.
    pub read_only: bool,
    /// Zones in the order of their sectors.
    pub zones: Vec<Zone>,
    /// Contents; unwritten sectors are zero.
    data: Vec<u8>,
    clock: u64,
    /// Zones one of which was closed implicitly, if the model cannot know which (after a restart).
    pub doubt: Vec<usize>,
}

const OK: &[u8] = &[status::OK];

fn index(value: u64) -> usize {
    usize::try_from(value).expect("fits the address space")
}

impl Model {
    /// A fresh disk.
    pub fn new(geometry: Geometry) -> Self {
        let zone = |i| Zone {
            state: if i < geometry.conventional {
                State::NotWp
            } else {
                State::Empty
            },
            written: 0,
            used: 0,
        };
        Self {
            geometry,
            read_only: false,
            zones: (0..geometry.zones).map(zone).collect(),
            data: vec![0; index(geometry.capacity() * SECTOR)],
            clock: 0,
            doubt: Vec::new(),
        }
    }

    /// First sector of a zone.
    pub fn start(&self, zone: usize) -> u64 {
        zone as u64 * self.geometry.zone_size
    }

    fn count(&self, states: &[State]) -> u64 {
        self.zones
            .iter()
            .filter(|zone| states.contains(&zone.state))
            .count() as u64
    }

    /// Open zones.
    pub fn open_zones(&self) -> u64 {
        self.count(&[State::Implicit, State::Explicit])
    }

    /// Active zones.
    pub fn active_zones(&self) -> u64 {
        self.open_zones() + self.count(&[State::Closed])
    }

    /// The resource error of opening `zone`, if it cannot be opened.
    fn shortage(&self, zone: usize) -> Option<u8> {
        let g = &self.geometry;
        let state = self.zones[zone].state;
        if state == State::Empty && g.max_active != 0 && self.active_zones() >= g.max_active {
            return Some(status::ACTIVE_RESOURCE);
        }
        let needs_slot = matches!(state, State::Empty | State::Closed);
        let explicit = self.count(&[State::Explicit]);
        (needs_slot && g.max_open != 0 && explicit >= g.max_open).then_some(status::OPEN_RESOURCE)
    }

    /// Closes the least recently used implicitly open zone if opening `zone` needs its slot.
    fn make_room(&mut self, zone: usize) {
        let needs_slot = matches!(self.zones[zone].state, State::Empty | State::Closed);
        if !needs_slot || self.geometry.max_open == 0 || self.open_zones() < self.geometry.max_open
        {
            return;
        }
        let open = |z: &&Zone| z.state == State::Implicit;
        let oldest = self.zones.iter().filter(open).map(|z| z.used).min();
        let victims: Vec<usize> = (0..self.zones.len())
            .filter(|i| open(&&self.zones[*i]) && Some(self.zones[*i].used) == oldest)
            .collect();
        self.zones[victims[0]].state = State::Closed;
        if victims.len() > 1 {
            self.doubt = victims;
        }
    }

    /// Learns from a report which of the doubtful zones the device closed.
    ///
    /// # Panics
    /// If it closed none or several.
    pub fn settle(&mut self, report: &[ZoneInfo]) {
        let closed: Vec<usize> = std::mem::take(&mut self.doubt)
            .into_iter()
            .inspect(|i| self.zones[*i].state = State::Implicit)
            .filter(|i| report[*i].state == State::Closed as u8)
            .collect();
        assert_eq!(closed.len(), 1, "implicitly closed: {closed:?}");
        self.zones[closed[0]].state = State::Closed;
    }

    fn is_sequential(&self, zone: usize) -> bool {
        self.zones[zone].state != State::NotWp
    }

    /// The zones that a range touches, or `None` if it leaves the disk.
    fn touched(&self, sector: u64, sectors: u64) -> Option<std::ops::RangeInclusive<usize>> {
        let end = sector.checked_add(sectors)?;
        (end <= self.geometry.capacity()).then(|| {
            let zone = |s| index(s / self.geometry.zone_size);
            zone(sector)..=zone(end - 1)
        })
    }

    /// What reading `len` bytes may answer, with the data of a good read.
    pub fn read(&self, sector: u64, len: usize) -> (Verdict, &[u8]) {
        let sectors = len as u64 / SECTOR;
        if len == 0 || !(len as u64).is_multiple_of(SECTOR) {
            return (vec![status::IOERR], &[]);
        }
        let Some(zones) = self.touched(sector, sectors) else {
            return (vec![status::IOERR], &[]);
        };
        // Whether parts of blocks may be refused is a question that the block tests ask on their own.
        let mut verdict = Vec::new();
        if !self.whole_blocks(sector, sectors) {
            verdict.push(status::IOERR);
        }
        if zones.start() != zones.end() && zones.clone().any(|z| self.is_sequential(z)) {
            verdict.push(status::INVALID_CMD);
            return (verdict, &[]);
        }
        verdict.push(status::OK);
        let at = index(sector * SECTOR);
        (verdict, &self.data[at..at + len])
    }

    fn whole_blocks(&self, sector: u64, sectors: u64) -> bool {
        let block = self.geometry.block;
        sector.is_multiple_of(block) && sectors.is_multiple_of(block)
    }

    fn store(&mut self, sector: u64, data: &[u8]) {
        let at = index(sector * SECTOR);
        self.data[at..at + data.len()].copy_from_slice(data);
    }

    /// Errors of putting `sectors` at `sector` of a sequential zone.
    fn write_errors(&self, zone: usize, sector: u64, sectors: u64) -> Verdict {
        let g = &self.geometry;
        let z = &self.zones[zone];
        let mut errors = Vec::new();
        let aligned = self.whole_blocks(sector, sectors);
        if !aligned {
            errors.push(status::UNALIGNED_WP);
        }
        if z.state == State::Full {
            errors.push(status::INVALID_CMD);
            return errors;
        }
        let offset = sector - self.start(zone);
        if aligned && offset != z.written {
            errors.push(status::UNALIGNED_WP);
        }
        if offset + sectors > g.zone_capacity {
            errors.push(status::INVALID_CMD);
        }
        errors.extend(self.shortage(zone));
        errors
    }

    fn advance(&mut self, zone: usize, data: &[u8]) {
        self.make_room(zone);
        self.store(self.start(zone) + self.zones[zone].written, data);
        self.clock += 1;
        let z = &mut self.zones[zone];
        z.written += data.len() as u64 / SECTOR;
        z.used = self.clock;
        if z.written == self.geometry.zone_capacity {
            z.state = State::Full;
        } else if z.state != State::Explicit {
            z.state = State::Implicit;
        }
    }

    /// What writing may answer; if it may succeed, it has.
    pub fn write(&mut self, sector: u64, data: &[u8]) -> Verdict {
        let sectors = data.len() as u64 / SECTOR;
        let ragged = !(data.len() as u64).is_multiple_of(SECTOR);
        if self.read_only || data.is_empty() || ragged {
            return vec![status::IOERR];
        }
        let Some(zones) = self.touched(sector, sectors) else {
            return vec![status::IOERR];
        };
        if !zones.clone().any(|z| self.is_sequential(z)) {
            self.store(sector, data);
            return OK.to_vec();
        }
        let first = *zones.start();
        let mut errors = Vec::new();
        if first != *zones.end() {
            errors.push(status::INVALID_CMD);
        }
        if self.is_sequential(first) {
            errors.extend(self.write_errors(first, sector, sectors));
        } else if !self.whole_blocks(sector, sectors) {
            errors.push(status::IOERR);
        }
        if errors.is_empty() {
            self.advance(first, data);
            return OK.to_vec();
        }
        errors
    }

    /// What appending may answer, with the sector of a good append, which is done.
    pub fn append(&mut self, sector: u64, data: &[u8]) -> (Verdict, u64) {
        let sectors = (data.len() as u64).div_ceil(SECTOR);
        if self.read_only {
            return (vec![status::IOERR], 0);
        }
        let zone = match self.zone_at(sector) {
            Ok(zone) if self.is_sequential(zone) && !data.is_empty() => zone,
            _ => return (vec![status::INVALID_CMD], 0),
        };
        let place = sector + self.zones[zone].written;
        let mut errors = self.write_errors(zone, place, sectors);
        if !(data.len() as u64).is_multiple_of(SECTOR) {
            errors.extend([status::IOERR, status::UNALIGNED_WP]);
        }
        if sectors > self.geometry.max_append {
            errors.push(status::INVALID_CMD);
        }
        if errors.is_empty() {
            self.advance(zone, data);
            return (OK.to_vec(), place);
        }
        (errors, 0)
    }

    /// The zone that starts at `sector`.
    fn zone_at(&self, sector: u64) -> Result<usize, Verdict> {
        let aligned = sector.is_multiple_of(self.geometry.zone_size);
        if aligned && sector < self.geometry.capacity() {
            Ok(index(sector / self.geometry.zone_size))
        } else {
            Err(vec![status::INVALID_CMD])
        }
    }

    /// The sequential zone that a management command names.
    fn managed(&self, sector: u64) -> Result<usize, Verdict> {
        if self.read_only {
            return Err(vec![status::IOERR]);
        }
        let zone = self.zone_at(sector)?;
        if self.is_sequential(zone) {
            Ok(zone)
        } else {
            Err(vec![status::INVALID_CMD])
        }
    }

    /// ZONE_OPEN.
    pub fn open(&mut self, sector: u64) -> Verdict {
        let zone = match self.managed(sector) {
            Ok(zone) => zone,
            Err(verdict) => return verdict,
        };
        if self.zones[zone].state == State::Full {
            return vec![status::INVALID_CMD];
        }
        if let Some(error) = self.shortage(zone) {
            return vec![error];
        }
        self.make_room(zone);
        self.zones[zone].state = State::Explicit;
        OK.to_vec()
    }

    /// ZONE_CLOSE.
    pub fn close(&mut self, sector: u64) -> Verdict {
        let zone = match self.managed(sector) {
            Ok(zone) => zone,
            Err(verdict) => return verdict,
        };
        let z = &mut self.zones[zone];
        match z.state {
            State::Implicit | State::Explicit if z.written == 0 => z.state = State::Empty,
            State::Implicit | State::Explicit => z.state = State::Closed,
            State::Closed => {}
            State::Empty | State::Full | State::NotWp => return vec![status::INVALID_CMD],
        }
        OK.to_vec()
    }

    /// ZONE_FINISH.
    pub fn finish(&mut self, sector: u64) -> Verdict {
        let zone = match self.managed(sector) {
            Ok(zone) => zone,
            Err(verdict) => return verdict,
        };
        if let Some(error) = self.shortage(zone) {
            return vec![error];
        }
        self.make_room(zone);
        self.zones[zone].state = State::Full;
        OK.to_vec()
    }

    fn clear(&mut self, zone: usize) {
        self.zones[zone].state = State::Empty;
        self.zones[zone].written = 0;
        let at = index(self.start(zone) * SECTOR);
        let len = index(self.geometry.zone_size * SECTOR);
        self.data[at..at + len].fill(0);
    }

    /// ZONE_RESET.
    pub fn reset(&mut self, sector: u64) -> Verdict {
        match self.managed(sector) {
            Ok(zone) => self.clear(zone),
            Err(verdict) => return verdict,
        }
        OK.to_vec()
    }

    /// ZONE_RESET_ALL, whose sector means nothing.
    pub fn reset_all(&mut self) -> Verdict {
        if self.read_only {
            return vec![status::IOERR];
        }
        for zone in 0..self.zones.len() {
            if self.is_sequential(zone) {
                self.clear(zone);
            }
        }
        OK.to_vec()
    }

    /// What a report of every zone shows.
    pub fn report(&self) -> Vec<ZoneInfo> {
        let describe = |(i, zone): (usize, &Zone)| {
            let start = self.start(i);
            let conventional = zone.state == State::NotWp;
            ZoneInfo {
                capacity: if conventional {
                    self.geometry.zone_size
                } else {
                    self.geometry.zone_capacity
                },
                start,
                wp: match zone.state {
                    State::NotWp => start,
                    State::Full => start + self.geometry.zone_size,
                    _ => start + zone.written,
                },
                kind: if conventional {
                    zone_type::CONV
                } else {
                    zone_type::SWR
                },
                state: zone.state as u8,
            }
        };
        self.zones.iter().enumerate().map(describe).collect()
    }

    /// A clean stop without a guest, and start: open zones are closed, those without data empty again.
    pub fn restart(&mut self) {
        for zone in &mut self.zones {
            zone.used = 0;
            if matches!(zone.state, State::Implicit | State::Explicit) {
                zone.state = if zone.written == 0 {
                    State::Empty
                } else {
                    State::Closed
                };
            }
        }
    }

    /// A kill, or a clean stop under a guest that goes on, and start: nothing changes but what was only in
    /// memory, the order of use.
    pub fn go_on(&mut self) {
        for zone in &mut self.zones {
            zone.used = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Six zones of 16 sectors, 12 writable, the first conventional, two open, three active, blocks of 2 sectors.
    fn small() -> Model {
        Model::new(Geometry {
            zones: 6,
            zone_size: 16,
            zone_capacity: 12,
            conventional: 1,
            max_open: 2,
            max_active: 3,
            max_append: 8,
            block: 2,
        })
    }

    fn data(sectors: usize, fill: u8) -> Vec<u8> {
        vec![fill; sectors * 512]
    }

    fn states(model: &Model) -> Vec<u8> {
        model.zones.iter().map(|zone| zone.state as u8).collect()
    }

    #[test]
    fn model_closes_the_least_recently_written_zone() {
        let mut m = small();
        for zone in [1, 2, 1] {
            assert_eq!(m.append(zone * 16, &data(2, 1)).0, OK);
        }
        assert_eq!(m.append(3 * 16, &data(2, 1)), (OK.to_vec(), 48));
        assert_eq!(states(&m), [0, 2, 4, 2, 1, 1]);
        assert_eq!(m.write(4 * 16, &data(2, 1)), [status::ACTIVE_RESOURCE]);
        assert_eq!(m.finish(4 * 16), [status::ACTIVE_RESOURCE]);
        assert_eq!(m.finish(2 * 16), OK, "needs a slot, so zone 1 is closed");
        assert_eq!(states(&m), [0, 4, 14, 2, 1, 1]);
    }

    #[test]
    fn model_never_closes_explicitly_opened_zones() {
        let mut m = small();
        assert_eq!(m.open(16), OK);
        assert_eq!(m.open(32), OK);
        assert_eq!(m.open(32), OK);
        assert_eq!(m.open(48), [status::OPEN_RESOURCE]);
        assert_eq!(m.append(48, &data(2, 1)).0, [status::OPEN_RESOURCE]);
        assert_eq!(m.close(16), OK);
        assert_eq!(states(&m), [0, 1, 3, 1, 1, 1]);
        assert_eq!(m.close(16), [status::INVALID_CMD]);
    }

    #[test]
    fn model_write_errors_come_as_a_set() {
        let mut m = small();
        assert_eq!(m.write(18, &data(2, 1)), [status::UNALIGNED_WP]);
        assert_eq!(m.write(16, &data(1, 1)), [status::UNALIGNED_WP]);
        assert_eq!(m.write(16, &data(14, 1)), [status::INVALID_CMD]);
        let both = [status::UNALIGNED_WP, status::INVALID_CMD];
        assert_eq!(m.write(20, &data(10, 1)), both);
        assert_eq!(m.write(14, &data(4, 1)), [status::INVALID_CMD]);
        assert_eq!(m.write(16, &data(12, 1)), OK);
        assert_eq!(m.write(28, &data(2, 1)), [status::INVALID_CMD], "full");
        assert_eq!(m.write(96, &data(2, 1)), [status::IOERR]);
        assert_eq!(m.write(u64::MAX, &data(2, 1)), [status::IOERR]);
    }

    #[test]
    fn model_appends_have_bounds() {
        let mut m = small();
        for (sector, len) in [(0, 2), (17, 2), (16, 10), (16, 0), (96, 2)] {
            let verdict = m.append(sector, &data(len, 1)).0;
            assert_eq!(verdict, [status::INVALID_CMD], "{len} at {sector}");
        }
        assert_eq!(m.append(16, &data(3, 1)).0, [status::UNALIGNED_WP]);
        assert_eq!(m.append(16, &data(8, 7)), (OK.to_vec(), 16));
        assert_eq!(m.append(16, &data(6, 7)).0, [status::INVALID_CMD]);
        assert_eq!(m.append(16, &data(4, 7)), (OK.to_vec(), 24));
        assert_eq!(m.zones[1].state, State::Full);
    }

    #[test]
    fn model_reads_zeroes_where_nothing_was_written() {
        let mut m = small();
        assert_eq!(m.append(16, &data(2, 9)).0, OK);
        assert_eq!(m.read(16, 2048).1, [data(2, 9), data(2, 0)].concat());
        assert_eq!(m.read(30, 2048).0, [status::INVALID_CMD]);
        assert_eq!(m.read(14, 2048).0, [status::INVALID_CMD]);
        assert_eq!(m.read(95, 1024).0, [status::IOERR]);
        assert_eq!(m.read(0, 0).0, [status::IOERR]);
        assert_eq!(m.reset(16), OK);
        assert_eq!(m.read(16, 1024).1, data(2, 0));
    }

    #[test]
    fn model_restarts_and_crashes() {
        let mut m = small();
        assert_eq!(m.append(16, &data(2, 9)).0, OK);
        assert_eq!(m.open(32), OK);
        m.go_on();
        assert_eq!(states(&m), [0, 2, 3, 1, 1, 1]);
        m.restart();
        assert_eq!(states(&m), [0, 4, 1, 1, 1, 1]);
        m.read_only = true;
        assert_eq!(m.reset_all(), [status::IOERR]);
        assert_eq!(m.open(16), [status::IOERR]);
        assert_eq!(m.append(16, &data(2, 9)).0, [status::IOERR]);
    }

    #[test]
    fn model_settles_what_it_cannot_know() {
        let mut m = small();
        assert_eq!(m.append(16, &data(2, 1)).0, OK);
        assert_eq!(m.append(32, &data(2, 1)).0, OK);
        m.go_on();
        assert_eq!(m.append(48, &data(2, 1)).0, OK);
        assert_eq!(m.doubt, [1, 2]);
        let mut report = m.report();
        report[1].state = State::Implicit as u8;
        report[2].state = State::Closed as u8;
        m.settle(&report);
        assert_eq!(states(&m), [0, 2, 4, 2, 1, 1]);
    }
}
