//! Virtio-blk requests as bytes, and how those bytes are spread over descriptors.

use super::wire::{le16, le32, le64};

/// Bytes of a sector, the only unit of the protocol.
pub const SECTOR: u64 = 512;

/// Request types (virtio 1.4, "Block Device / Device Operation").
pub mod kind {
    /// Read.
    pub const IN: u32 = 0;
    /// Write.
    pub const OUT: u32 = 1;
    /// Make completed writes stable.
    pub const FLUSH: u32 = 4;
    /// Read the 20 bytes of the serial number.
    pub const GET_ID: u32 = 8;
    /// Read wear data (not offered).
    pub const GET_LIFETIME: u32 = 10;
    /// Drop ranges.
    pub const DISCARD: u32 = 11;
    /// Make ranges read as zeroes.
    pub const WRITE_ZEROES: u32 = 13;
    /// Erase ranges (not offered).
    pub const SECURE_ERASE: u32 = 14;
    /// Write at a zone's write pointer.
    pub const ZONE_APPEND: u32 = 15;
    /// Describe zones.
    pub const ZONE_REPORT: u32 = 16;
    /// Open a zone explicitly.
    pub const ZONE_OPEN: u32 = 18;
    /// Close a zone.
    pub const ZONE_CLOSE: u32 = 20;
    /// Make a zone full.
    pub const ZONE_FINISH: u32 = 22;
    /// Make a zone empty.
    pub const ZONE_RESET: u32 = 24;
    /// Make every sequential zone empty.
    pub const ZONE_RESET_ALL: u32 = 26;
}

/// Status bytes.
pub mod status {
    /// Done.
    pub const OK: u8 = 0;
    /// Device or driver error.
    pub const IOERR: u8 = 1;
    /// Not a request of this device.
    pub const UNSUPP: u8 = 2;
    /// Zone command that the zone cannot follow.
    pub const INVALID_CMD: u8 = 3;
    /// Write that does not start at the write pointer or does not end on a block.
    pub const UNALIGNED_WP: u8 = 4;
    /// No open slot.
    pub const OPEN_RESOURCE: u8 = 5;
    /// No active slot.
    pub const ACTIVE_RESOURCE: u8 = 6;
}

/// What the device-writable bytes hold before the device gets them: no status, no append sector, no data.
pub const POISON: u8 = 0xa5;

/// Device-writable bytes after an append's data by the specification.
pub const APPEND_TAIL_SPEC: usize = 9;
/// The same as Linux lays it out.
pub const APPEND_TAIL_LINUX: usize = 16;

/// A request: the device-readable bytes and how many device-writable ones follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Header and data for the device.
    pub readable: Vec<u8>,
    /// Length of the data that the device returns, in bytes.
    pub space: usize,
    /// Length of what follows the returned data; the last byte is the status.
    pub tail: usize,
}

impl Request {
    /// A request of a header and a status byte.
    pub fn new(kind: u32, sector: u64) -> Self {
        let mut readable = Vec::with_capacity(16);
        readable.extend_from_slice(&kind.to_le_bytes());
        readable.extend_from_slice(&0_u32.to_le_bytes());
        readable.extend_from_slice(&sector.to_le_bytes());
        Self {
            readable,
            space: 0,
            tail: 1,
        }
    }

    /// Read `len` bytes at `sector`.
    pub fn read(sector: u64, len: usize) -> Self {
        Self::new(kind::IN, sector).with_space(len)
    }

    /// Write `data` at `sector`.
    pub fn write(sector: u64, data: &[u8]) -> Self {
        Self::new(kind::OUT, sector).with_data(data)
    }

    /// Append `data` to the zone at `sector`, with a tail of 9 or 16 bytes.
    pub fn append(sector: u64, data: &[u8], tail: usize) -> Self {
        Self::new(kind::ZONE_APPEND, sector)
            .with_data(data)
            .with_tail(tail)
    }

    /// Report into a buffer of `len` bytes.
    pub fn report(sector: u64, len: usize) -> Self {
        Self::new(kind::ZONE_REPORT, sector).with_space(len)
    }

    /// Ranges for DISCARD, WRITE_ZEROES and SECURE_ERASE: (sector, sectors, flags).
    pub fn ranges(kind: u32, ranges: &[(u64, u32, u32)]) -> Self {
        let mut data = Vec::with_capacity(16 * ranges.len());
        for (sector, sectors, flags) in ranges {
            data.extend_from_slice(&sector.to_le_bytes());
            data.extend_from_slice(&sectors.to_le_bytes());
            data.extend_from_slice(&flags.to_le_bytes());
        }
        Self::new(kind, 0).with_data(&data)
    }

    /// Adds device-readable bytes.
    pub fn with_data(mut self, data: &[u8]) -> Self {
        self.readable.extend_from_slice(data);
        self
    }

    /// Gives the device `len` bytes for data.
    pub fn with_space(mut self, len: usize) -> Self {
        self.space = len;
        self
    }

    /// Makes the tail `len` bytes long.
    pub fn with_tail(mut self, len: usize) -> Self {
        self.tail = len;
        self
    }
}

/// How a run of bytes is cut into buffers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cut {
    /// Header, data and tail each in a buffer of their own.
    #[default]
    Natural,
    /// One buffer.
    Whole,
    /// Buffers of this many bytes.
    Every(usize),
    /// Cuts at these offsets, ascending.
    At(Vec<usize>),
}

impl Cut {
    /// The lengths of the buffers for `len` bytes; `natural` is the offset of the natural cut.
    pub fn lengths(&self, len: usize, natural: usize) -> Vec<usize> {
        let mut ends: Vec<usize> = match self {
            Self::Natural => vec![natural],
            Self::Whole => Vec::new(),
            Self::Every(step) => (0..len).step_by(*step).skip(1).collect(),
            Self::At(offsets) => offsets.clone(),
        };
        ends.retain(|end| *end > 0 && *end < len);
        ends.push(len);
        let mut start = 0;
        let mut lengths = Vec::with_capacity(ends.len());
        for end in ends {
            if end > start {
                lengths.push(end - start);
                start = end;
            }
        }
        lengths
    }
}

/// The framing of one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Cuts of the device-readable bytes.
    pub readable: Cut,
    /// Cuts of the device-writable bytes.
    pub writable: Cut,
    /// Put the descriptors into an indirect table.
    pub indirect: bool,
    /// Bytes by which each buffer misses a 512-byte boundary.
    pub skew: u64,
}

impl Layout {
    /// The natural framing in an indirect table, as Linux sends it.
    pub fn indirect() -> Self {
        Self {
            indirect: true,
            ..Self::default()
        }
    }
}

/// A request that came back.
#[derive(Clone, Debug)]
pub struct Completion {
    /// What `submit` returned.
    pub ticket: u64,
    /// Bytes that the device says it wrote.
    pub used_len: u32,
    /// Everything device-writable, as it is now.
    pub writable: Vec<u8>,
    /// Bytes of data space in it.
    pub space: usize,
}

impl Completion {
    /// The status: the last device-writable byte.
    pub fn status(&self) -> u8 {
        *self.writable.last().expect("requests have a status")
    }

    /// The data space.
    pub fn data(&self) -> &[u8] {
        &self.writable[..self.space]
    }

    /// Where an append landed: the first eight bytes behind the data space.
    pub fn append_sector(&self) -> u64 {
        le64(&self.writable, self.space)
    }

    /// The bytes between the append sector and the status.
    pub fn tail_padding(&self) -> &[u8] {
        &self.writable[self.space + 8..self.writable.len() - 1]
    }
}

/// Zone types of a report.
pub mod zone_type {
    /// Conventional.
    pub const CONV: u8 = 1;
    /// Sequential write required.
    pub const SWR: u8 = 2;
}

/// A zone descriptor of a report; sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZoneInfo {
    /// Writable sectors.
    pub capacity: u64,
    /// First sector.
    pub start: u64,
    /// Write pointer.
    pub wp: u64,
    /// `zone_type::*`.
    pub kind: u8,
    /// Zone state as on the wire.
    pub state: u8,
}

/// Bytes of a report's header and of each of its descriptors.
pub const REPORT_UNIT: usize = 64;

/// Reads a report and checks every reserved byte that the device wrote.
pub fn parse_report(bytes: &[u8]) -> Vec<ZoneInfo> {
    let count = usize::try_from(le64(bytes, 0)).expect("zone count");
    assert!(
        REPORT_UNIT * (count + 1) <= bytes.len(),
        "{count} zones claimed in a buffer of {} bytes",
        bytes.len()
    );
    assert!(bytes[8..REPORT_UNIT].iter().all(|b| *b == 0), "header");
    bytes[REPORT_UNIT..]
        .chunks_exact(REPORT_UNIT)
        .take(count)
        .map(|raw| {
            assert!(raw[26..].iter().all(|b| *b == 0), "reserved bytes");
            ZoneInfo {
                capacity: le64(raw, 0),
                start: le64(raw, 8),
                wp: le64(raw, 16),
                kind: raw[24],
                state: raw[25],
            }
        })
        .collect()
}

/// The configuration space of a block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config(pub Vec<u8>);

/// Bytes of the configuration space up to its last zoned field.
pub const CONFIG_SIZE: usize = 96;

impl Config {
    /// Disk size in sectors.
    pub fn capacity(&self) -> u64 {
        le64(&self.0, 0)
    }

    /// Most data segments of a request.
    pub fn seg_max(&self) -> u32 {
        le32(&self.0, 12)
    }

    /// Logical block size in bytes.
    pub fn block_size(&self) -> u32 {
        le32(&self.0, 20)
    }

    /// The write cache switch.
    pub fn writeback(&self) -> u8 {
        self.0[32]
    }

    /// Request queues.
    pub fn num_queues(&self) -> u16 {
        le16(&self.0, 34)
    }

    /// Discard limits: sectors, segments, alignment in sectors.
    pub fn discard(&self) -> [u32; 3] {
        [36, 40, 44].map(|at| le32(&self.0, at))
    }

    /// Write-zeroes limits: sectors, segments.
    pub fn write_zeroes(&self) -> [u32; 2] {
        [48, 52].map(|at| le32(&self.0, at))
    }

    /// Zone size, open limit, active limit, append limit (sectors or counts), write granularity (bytes).
    pub fn zoned(&self) -> [u32; 5] {
        [72, 76, 80, 84, 88].map(|at| le32(&self.0, at))
    }

    /// Zoned model: 0 none, 1 host-managed, 2 host-aware.
    pub fn model(&self) -> u8 {
        self.0[92]
    }
}
