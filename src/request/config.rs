//! The configuration space: `struct virtio_blk_config` (virtio 1.4, 5.2.4), 96 bytes.

use crate::geometry::{Geometry, Model, SECTOR_SIZE, Sector};

use super::{MAX_DISCARD, MAX_WRITE_ZEROES};

/// Bytes of the structure.
const LEN: usize = 96;
/// Offset of `writeback`, the one field that a driver may write.
const WRITEBACK: usize = 32;
/// `model` of a host-managed disk (VIRTIO_BLK_Z_HM).
const MODEL_HOST_MANAGED: u8 = 1;
/// Descriptors of a request besides its data segments: header and status.
pub const SEGMENT_OVERHEAD: u16 = 2;
/// Optimal I/O size in bytes: the piece that the pipeline encrypts and submits as one.
const OPTIMAL_IO: u64 = 128 << 10;

/// What of the device the configuration tells besides the disk's geometry.
#[derive(Clone, Copy, Debug)]
pub struct DeviceLimits {
    /// Number of request queues.
    pub queues: u16,
    /// Most descriptors of a queue.
    pub queue_size: u16,
}

/// The configuration space as the front-end reads it.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: [u8; LEN],
}

impl ConfigSpace {
    /// Describes a disk. Fields of features that are not offered are zero.
    pub fn new(geometry: &Geometry, limits: DeviceLimits) -> Self {
        let mut config = Self { bytes: [0; LEN] };
        let block = geometry.block_size().bytes();
        config.put(0, &geometry.disk_sectors().0.to_le_bytes());
        let seg_max = limits.queue_size.saturating_sub(SEGMENT_OVERHEAD).max(1);
        config.put(12, &u32::from(seg_max).to_le_bytes());
        config.put(20, &field(block).to_le_bytes());
        // Topology, in logical blocks: physical_block_exp and alignment_offset 0, min_io_size 1.
        config.put(26, &1u16.to_le_bytes());
        config.put(28, &field(OPTIMAL_IO / block).to_le_bytes());
        config.set_writeback(true);
        config.put(34, &limits.queues.to_le_bytes());
        match geometry.model() {
            Model::Plain => config.put_ranges(geometry),
            Model::HostManaged => config.put_zoned(geometry),
        }
        config
    }

    fn put_ranges(&mut self, geometry: &Geometry) {
        let alignment = geometry.block_size().bytes();
        self.put(36, &sectors(MAX_DISCARD).to_le_bytes());
        self.put(40, &1u32.to_le_bytes());
        self.put(44, &sectors(alignment).to_le_bytes());
        self.put(48, &sectors(MAX_WRITE_ZEROES).to_le_bytes());
        self.put(52, &1u32.to_le_bytes());
        // write_zeroes_may_unmap 0: a hole would decrypt to noise, so zeroes are written.
    }

    fn put_zoned(&mut self, geometry: &Geometry) {
        self.put(72, &sectors(geometry.zone_size()).to_le_bytes());
        self.put(76, &geometry.max_open().to_le_bytes());
        self.put(80, &geometry.max_active().to_le_bytes());
        self.put(84, &sectors(geometry.max_append()).to_le_bytes());
        self.put(88, &field(geometry.block_size().bytes()).to_le_bytes());
        self.put(92, &[MODEL_HOST_MANAGED]);
    }

    fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    /// Sets the write cache mode.
    pub fn set_writeback(&mut self, on: bool) {
        self.bytes[WRITEBACK] = u8::from(on);
    }

    /// Whether the write cache is on.
    pub fn writeback(&self) -> bool {
        self.bytes[WRITEBACK] != 0
    }

    /// The bytes `[offset, offset + size)`; what lies past the structure reads as zero, because
    /// front-ends ask for as much as they know of.
    pub fn read(&self, offset: u32, size: u32) -> Vec<u8> {
        let byte = |at: u64| {
            let at = usize::try_from(at).ok();
            at.and_then(|at| self.bytes.get(at)).copied().unwrap_or(0)
        };
        let start = u64::from(offset);
        (start..start + u64::from(size)).map(byte).collect()
    }

    /// What a driver's write of `data` at `offset` asks of the write cache, if it reaches that
    /// field; everything else is read-only and keeps its value.
    pub fn requested_writeback(offset: u32, data: &[u8]) -> Option<bool> {
        let at = WRITEBACK.checked_sub(usize::try_from(offset).ok()?)?;
        data.get(at).map(|&value| value != 0)
    }
}

/// A byte count in sectors, for a 32-bit field.
fn sectors(bytes: u64) -> u32 {
    field(
        Sector::containing(bytes)
            .0
            .min(u64::from(u32::MAX) / SECTOR_SIZE * SECTOR_SIZE),
    )
}

fn field(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}
