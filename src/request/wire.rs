//! The fixed structures of the protocol, byte by byte (virtio 1.4, 5.2.6). All little-endian.

use crate::geometry::{Sector, ZoneType};
use crate::zone::{ZoneInfo, ZoneState};

use super::chain::{Chain, MemoryFault};

/// Bytes of a request header.
pub(super) const HEADER_LEN: usize = 16;
/// Bytes of a DISCARD or WRITE_ZEROES segment.
pub(super) const SEGMENT_LEN: usize = 16;
/// Bytes of a serial number; shorter ones are padded with NULs.
pub const SERIAL_LEN: usize = 20;
/// Bytes before the first zone of a report.
pub const REPORT_HEADER_LEN: usize = 64;
/// Bytes of one zone in a report.
pub const REPORT_ENTRY_LEN: usize = 64;

/// Segment flag: the blocks may be deallocated.
const FLAG_UNMAP: u32 = 1;

/// `struct virtio_blk_req` up to its data: type le32 @0, reserved le32 @4 (Linux puts an I/O
/// priority there), sector le64 @8.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub(super) kind: u32,
    pub(super) sector: Sector,
}

impl Header {
    /// Copies the header out of the chain, wherever its bytes are.
    pub(super) fn read(chain: &Chain) -> Result<Self, MemoryFault> {
        let mut bytes = [0; HEADER_LEN];
        chain.read(0, &mut bytes)?;
        let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = bytes;
        Ok(Self {
            kind: u32::from_le_bytes([k0, k1, k2, k3]),
            sector: Sector(u64::from_le_bytes(sector)),
        })
    }
}

/// `struct virtio_blk_discard_write_zeroes`: sector le64 @0, num_sectors le32 @8, flags le32 @12.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) sector: Sector,
    pub(super) sectors: u32,
    flags: u32,
}

impl Segment {
    /// Copies the segment at byte `offset` of what the driver sent.
    pub(super) fn read(chain: &Chain, offset: u64) -> Result<Self, MemoryFault> {
        let mut bytes = [0; SEGMENT_LEN];
        chain.read(offset, &mut bytes)?;
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = bytes;
        Ok(Self {
            sector: Sector(u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7])),
            sectors: u32::from_le_bytes([n0, n1, n2, n3]),
            flags: u32::from_le_bytes(flags),
        })
    }

    /// Whether only known flags are set, `unmap` only where it may be.
    pub(super) fn flags_valid(&self, unmap_allowed: bool) -> bool {
        let known = if unmap_allowed { FLAG_UNMAP } else { 0 };
        self.flags & !known == 0
    }
}

/// `struct virtio_blk_zone_report` up to its zones: nr_zones le64 @0, 56 reserved bytes.
pub fn report_header(zones: u64) -> [u8; REPORT_HEADER_LEN] {
    let mut bytes = [0; REPORT_HEADER_LEN];
    bytes[..8].copy_from_slice(&zones.to_le_bytes());
    bytes
}

/// `struct virtio_blk_zone_descriptor`: z_cap le64 @0, z_start le64 @8, z_wp le64 @16, z_type u8
/// @24, z_state u8 @25, 38 reserved bytes.
pub fn encode_zone(zone: &ZoneInfo) -> [u8; REPORT_ENTRY_LEN] {
    let mut bytes = [0; REPORT_ENTRY_LEN];
    bytes[..8].copy_from_slice(&zone.capacity.0.to_le_bytes());
    bytes[8..16].copy_from_slice(&zone.start.0.to_le_bytes());
    bytes[16..24].copy_from_slice(&zone.write_pointer.0.to_le_bytes());
    bytes[24] = match zone.kind {
        ZoneType::Conventional => 1,
        ZoneType::Sequential => 2,
    };
    bytes[25] = match zone.state {
        ZoneState::NotWritePointer => 0,
        ZoneState::Empty => 1,
        ZoneState::ImplicitOpen => 2,
        ZoneState::ExplicitOpen => 3,
        ZoneState::Closed => 4,
        ZoneState::ReadOnly => 13,
        ZoneState::Full => 14,
        ZoneState::Offline => 15,
    };
    bytes
}
