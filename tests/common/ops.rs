//! One call a request: submit, wait, and take the answer apart.

use super::memory::Span;
use super::queue::{Queue, QueueError};
use super::request::{
    Completion, Layout, REPORT_UNIT, Request, SECTOR, ZoneInfo, kind, parse_report, status,
};

impl Queue {
    /// Sends a request and waits for it.
    ///
    /// # Panics
    /// If nothing comes back: these calls are for requests that every device answers.
    pub fn call(&mut self, request: &Request) -> Completion {
        self.call_as(request, &Layout::default())
    }

    /// [`Queue::call`] with a framing.
    pub fn call_as(&mut self, request: &Request, layout: &Layout) -> Completion {
        match self.try_call(request, layout) {
            Ok(done) => done,
            Err(err) => panic!(
                "queue {}: {err} for {:02x?} framed {layout:?}",
                self.index,
                &request.readable[..request.readable.len().min(16)]
            ),
        }
    }

    /// Reads `len` bytes; the used length of a good read must cover data and status.
    pub fn read(&mut self, sector: u64, len: usize) -> (u8, Vec<u8>) {
        let done = self.call(&Request::read(sector, len));
        if done.status() == status::OK {
            assert_eq!(done.used_len as usize, len + 1, "used length of a read");
        }
        (done.status(), done.data().to_vec())
    }

    /// Reads what must be readable.
    pub fn read_ok(&mut self, sector: u64, len: usize) -> Vec<u8> {
        let (status, data) = self.read(sector, len);
        assert_eq!(status, status::OK, "read of {len} bytes at {sector}");
        data
    }

    /// Writes and returns the status.
    pub fn write(&mut self, sector: u64, data: &[u8]) -> u8 {
        self.call(&Request::write(sector, data)).status()
    }

    /// Appends; returns status and the sector that came back.
    pub fn append(&mut self, zone: u64, data: &[u8], tail: usize) -> (u8, u64) {
        let done = self.call(&Request::append(zone, data, tail));
        (done.status(), done.append_sector())
    }

    /// Makes completed writes stable.
    pub fn flush(&mut self) -> u8 {
        self.simple(kind::FLUSH, 0)
    }

    /// A request of a header and a status byte: flush, zone management.
    pub fn simple(&mut self, kind: u32, sector: u64) -> u8 {
        self.call(&Request::new(kind, sector)).status()
    }

    /// The 20 bytes of the serial number.
    pub fn get_id(&mut self) -> (u8, Vec<u8>) {
        let done = self.call(&Request::new(kind::GET_ID, 0).with_space(20));
        (done.status(), done.data().to_vec())
    }

    /// Reports up to `zones` zones from the one that holds `sector`.
    pub fn report(&mut self, sector: u64, zones: usize) -> (u8, Vec<ZoneInfo>) {
        let len = REPORT_UNIT * (zones + 1);
        let done = self.call(&Request::report(sector, len));
        if done.status() != status::OK {
            return (done.status(), Vec::new());
        }
        (status::OK, parse_report(done.data()))
    }

    /// The whole disk's report.
    pub fn zones(&mut self, count: usize) -> Vec<ZoneInfo> {
        let (status, zones) = self.report(0, count);
        assert_eq!(status, status::OK, "report");
        assert_eq!(zones.len(), count, "zones in the report");
        zones
    }

    /// The descriptor of the zone that holds `sector`.
    pub fn zone(&mut self, sector: u64) -> ZoneInfo {
        let (status, zones) = self.report(sector, 1);
        assert_eq!((status, zones.len()), (status::OK, 1), "report at {sector}");
        zones[0]
    }

    /// DISCARD, WRITE_ZEROES or SECURE_ERASE of (sector, sectors, flags).
    pub fn ranges(&mut self, kind: u32, ranges: &[(u64, u32, u32)]) -> u8 {
        self.call(&Request::ranges(kind, ranges)).status()
    }

    /// Writes `data` into fresh guest memory, for hand-made chains.
    pub fn buffer(&self, data: &[u8]) -> Span {
        let span = self.ram.alloc(data.len() as u64, 512, 0);
        self.ram.write(span.start, data);
        span
    }

    /// A read of the first block must work: the device is alive on this queue.
    pub fn assert_alive(&mut self) {
        let (status, data) = self.read(0, 4096);
        assert_eq!((status, data.len()), (status::OK, 4096), "alive");
    }

    /// Offers many requests, kicks once for all that fit, and returns the completions in the order in which they came.
    pub fn batch(
        &mut self,
        requests: &[Request],
        layout: &Layout,
    ) -> Result<Vec<Completion>, QueueError> {
        let mut done = Vec::with_capacity(requests.len());
        let mut next = 0;
        while done.len() < requests.len() {
            while next < requests.len() {
                match self.submit(&requests[next], layout) {
                    Ok(_) => next += 1,
                    Err(QueueError::Full) if self.in_flight() > 0 => break,
                    Err(err) => return Err(err),
                }
            }
            self.kick();
            done.push(self.reap(super::wire::PATIENCE)?);
            while let Some(more) = self.poll()? {
                done.push(more);
            }
        }
        Ok(done)
    }
}

/// Sectors of `bytes`.
pub fn sectors(bytes: usize) -> u64 {
    bytes as u64 / SECTOR
}
