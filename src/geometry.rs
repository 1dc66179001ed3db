//! Units and the shape of a disk: how sectors, blocks and zones map onto each other.
//!
//! *Sector* is 512 bytes, always (the unit of every virtio-blk address); *block* is the unit of
//! encryption, the logical block size and the zone write granularity. Everything here is pure and
//! checked: a guest may hand in any 64-bit sector and gets an answer, never a panic or a wrapped
//! product. A [`Geometry`] can only be made by [`GeometrySpec::validate`], which refuses what a
//! Linux guest would refuse, and says why.

use std::fmt;

use thiserror::Error;

/// log2 of the sector size.
pub const SECTOR_SHIFT: u32 = 9;
/// Bytes in a sector (virtio 1.4, 5.2: "512-byte sectors").
pub const SECTOR_SIZE: u64 = 1 << SECTOR_SHIFT;

/// Smallest zone, in bytes: one btrfs stripe; less only multiplies metadata.
pub const MIN_ZONE_SIZE: u64 = 64 << 10;
/// Largest zone, in bytes. Keeps `zone_sectors` in its 32-bit field and every zone key far below
/// the 1 TiB that IEEE 1619-2025 recommends as the most data under one XTS key.
pub const MAX_ZONE_SIZE: u64 = 256 << 30;
/// Most zones of a disk: bounds the zone table to about 256 MiB of memory and of metadata.
pub const MAX_ZONES: u64 = 1 << 20;

/// An address or a count in 512-byte sectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sector(pub u64);

impl Sector {
    /// The byte offset, or `None` where it does not fit 64 bits (a shift would drop bits silently).
    pub fn bytes(self) -> Option<u64> {
        self.0.checked_mul(SECTOR_SIZE)
    }

    /// The sector that holds byte `offset`.
    pub const fn containing(offset: u64) -> Self {
        Self(offset >> SECTOR_SHIFT)
    }
}

impl fmt::Display for Sector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sector {}", self.0)
    }
}

/// The position of a zone on the disk, from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ZoneIndex(pub u32);

impl ZoneIndex {
    /// The index as a slice position.
    pub const fn as_usize(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for ZoneIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "zone {}", self.0)
    }
}

/// A block's position inside its zone, or a count of blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Blocks(pub u64);

/// How often a zone has been reset. With the zone's salt it selects the zone key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

/// The unit of encryption and of zoned writes: 512 or 4096 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockSize {
    /// 512 bytes: as small as virtio-blk addresses.
    B512,
    /// 4096 bytes: the default, one page.
    B4096,
}

impl BlockSize {
    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        1 << self.shift()
    }

    /// log2 of the size in bytes.
    pub const fn shift(self) -> u32 {
        match self {
            Self::B512 => 9,
            Self::B4096 => 12,
        }
    }

    /// The block size with that many bytes, if it is one.
    pub const fn from_bytes(bytes: u64) -> Option<Self> {
        match bytes {
            512 => Some(Self::B512),
            4096 => Some(Self::B4096),
            _ => None,
        }
    }
}

/// What the guest is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Model {
    /// A host-managed zoned disk (VIRTIO_BLK_Z_HM).
    HostManaged,
    /// A disk without zones, for front-ends that know none: inside, every zone is conventional.
    Plain,
}

/// What a zone accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ZoneType {
    /// Random writes in place.
    Conventional,
    /// Sequential write required.
    Sequential,
}

/// A wished-for disk. All sizes in bytes; [`GeometrySpec::validate`] turns it into a [`Geometry`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeometrySpec {
    /// Zoned or plain.
    pub model: Model,
    /// Logical block size and zone write granularity, in bytes: 512 or 4096.
    pub block_size: u64,
    /// Size of the disk as the guest sees it.
    pub disk_size: u64,
    /// Distance from the start of a zone to the start of the next.
    pub zone_size: u64,
    /// Writable part of each sequential zone, from its start.
    pub zone_capacity: u64,
    /// Zones at the start of the disk that take random writes (of a plain disk: ignored, all do).
    pub conventional: u32,
    /// Most zones open at once; 0 for no limit.
    pub max_open: u32,
    /// Most zones open or closed (with data, not full) at once; 0 for no limit.
    pub max_active: u32,
    /// Largest zone append.
    pub max_append: u64,
}

/// Why a disk of this shape cannot be. Each names the figure and the cure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum GeometryError {
    /// Not 512 or 4096.
    #[error("block size {0} is not supported: use 512 or 4096")]
    BlockSize(u64),
    /// Linux: "zoned device with non power of two zone size".
    #[error("zone size {0} is not a power of two, which Linux requires")]
    ZoneSizePower(u64),
    /// Outside `MIN_ZONE_SIZE..=MAX_ZONE_SIZE`.
    #[error("zone size {0} is out of range: {MIN_ZONE_SIZE} to {MAX_ZONE_SIZE} bytes")]
    ZoneSizeRange(u64),
    /// A smaller last zone is legal virtio, and XFS refuses it.
    #[error("disk size {size} is not a multiple of the zone size {zone}")]
    SizeMultiple {
        /// Wished disk size.
        size: u64,
        /// Zone size.
        zone: u64,
    },
    /// A plain disk's size.
    #[error("disk size {size} is not a multiple of the block size {block}")]
    SizeBlocks {
        /// Wished disk size.
        size: u64,
        /// Block size.
        block: u64,
    },
    /// No zone at all.
    #[error("disk size 0: a disk needs at least one zone")]
    Empty,
    /// More than `MAX_ZONES`.
    #[error("{0} zones are too many (at most {MAX_ZONES}): use a larger zone size")]
    TooManyZones(u64),
    /// Linux: "zone with no capacity" or capacity beyond the zone.
    #[error(
        "zone capacity {capacity} must be a multiple of the block size, above 0 and at most \
         the zone size {zone}"
    )]
    Capacity {
        /// Wished capacity.
        capacity: u64,
        /// Zone size.
        zone: u64,
    },
    /// A zoned disk of conventional zones only: Linux refuses it.
    #[error(
        "{conventional} conventional zones of {zones}: at least one must be sequential \
         (for a disk without zones use --plain)"
    )]
    NoSequentialZone {
        /// Wished conventional zones.
        conventional: u32,
        /// All zones.
        zones: u32,
    },
    /// Linux answers EINVAL to such limits.
    #[error("max open {open} exceeds max active {active}: an open zone is active")]
    OpenAboveActive {
        /// Wished open limit.
        open: u32,
        /// Wished active limit.
        active: u32,
    },
    /// Linux refuses a zoned disk whose append limit is 0 or below the write granularity.
    #[error(
        "max append {append} must be a multiple of the block size, above 0 and at most the \
         zone capacity {capacity}"
    )]
    MaxAppend {
        /// Wished limit.
        append: u64,
        /// Zone capacity.
        capacity: u64,
    },
}

impl GeometrySpec {
    /// Checks everything that a guest would refuse later, with the reason.
    pub fn validate(self) -> Result<Geometry, GeometryError> {
        let block = BlockSize::from_bytes(self.block_size)
            .ok_or(GeometryError::BlockSize(self.block_size))?;
        if !self.zone_size.is_power_of_two() {
            return Err(GeometryError::ZoneSizePower(self.zone_size));
        }
        if !(MIN_ZONE_SIZE..=MAX_ZONE_SIZE).contains(&self.zone_size) {
            return Err(GeometryError::ZoneSizeRange(self.zone_size));
        }
        if self.disk_size == 0 {
            return Err(GeometryError::Empty);
        }
        let zones = self.disk_size.div_ceil(self.zone_size);
        if zones > MAX_ZONES {
            return Err(GeometryError::TooManyZones(zones));
        }
        let zones = u32::try_from(zones).map_err(|_| GeometryError::TooManyZones(zones))?;
        match self.model {
            Model::HostManaged => self.validate_zoned(block, zones),
            Model::Plain => self.validate_plain(block, zones),
        }
    }

    fn validate_plain(self, block: BlockSize, zones: u32) -> Result<Geometry, GeometryError> {
        if !self.disk_size.is_multiple_of(block.bytes()) {
            return Err(GeometryError::SizeBlocks {
                size: self.disk_size,
                block: block.bytes(),
            });
        }
        Ok(Geometry {
            spec: Self {
                zone_capacity: self.zone_size,
                conventional: zones,
                max_open: 0,
                max_active: 0,
                max_append: 0,
                ..self
            },
            block,
            zones,
        })
    }

    fn validate_zoned(self, block: BlockSize, zones: u32) -> Result<Geometry, GeometryError> {
        if !self.disk_size.is_multiple_of(self.zone_size) {
            return Err(GeometryError::SizeMultiple {
                size: self.disk_size,
                zone: self.zone_size,
            });
        }
        let granular = |bytes: u64| bytes != 0 && bytes.is_multiple_of(block.bytes());
        if !granular(self.zone_capacity) || self.zone_capacity > self.zone_size {
            return Err(GeometryError::Capacity {
                capacity: self.zone_capacity,
                zone: self.zone_size,
            });
        }
        if self.conventional >= zones {
            return Err(GeometryError::NoSequentialZone {
                conventional: self.conventional,
                zones,
            });
        }
        if self.max_active != 0 && self.max_open > self.max_active {
            return Err(GeometryError::OpenAboveActive {
                open: self.max_open,
                active: self.max_active,
            });
        }
        if !granular(self.max_append) || self.max_append > self.zone_capacity {
            return Err(GeometryError::MaxAppend {
                append: self.max_append,
                capacity: self.zone_capacity,
            });
        }
        Ok(Geometry {
            spec: self,
            block,
            zones,
        })
    }
}

/// A piece of one zone, in blocks from the zone's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRange {
    /// First block.
    pub start: Blocks,
    /// How many; may be 0 only where a caller says so.
    pub count: Blocks,
}

impl BlockRange {
    /// The first block after the range. Ranges come from [`Geometry`], whose bounds keep this far
    /// below overflow.
    pub const fn end(self) -> Blocks {
        Blocks(self.start.0.saturating_add(self.count.0))
    }
}

/// The shape of a disk, proven consistent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    spec: GeometrySpec,
    block: BlockSize,
    zones: u32,
}

impl Geometry {
    /// The figures it was made from (of a plain disk with the zone fields normalised).
    pub const fn spec(&self) -> GeometrySpec {
        self.spec
    }

    /// Zoned or plain.
    pub const fn model(&self) -> Model {
        self.spec.model
    }

    /// The block size.
    pub const fn block_size(&self) -> BlockSize {
        self.block
    }

    /// The disk's size in bytes.
    pub const fn disk_size(&self) -> u64 {
        self.spec.disk_size
    }

    /// The disk's size in sectors (virtio `capacity`).
    pub const fn disk_sectors(&self) -> Sector {
        Sector::containing(self.spec.disk_size)
    }

    /// Zone size in bytes.
    pub const fn zone_size(&self) -> u64 {
        self.spec.zone_size
    }

    /// Zone size in sectors.
    pub const fn zone_sectors(&self) -> Sector {
        Sector::containing(self.spec.zone_size)
    }

    /// How many zones.
    pub const fn zones(&self) -> u32 {
        self.zones
    }

    /// How many of them, from the first, are conventional.
    pub const fn conventional(&self) -> u32 {
        self.spec.conventional
    }

    /// Open limit, 0 for none.
    pub const fn max_open(&self) -> u32 {
        self.spec.max_open
    }

    /// Active limit, 0 for none.
    pub const fn max_active(&self) -> u32 {
        self.spec.max_active
    }

    /// Append limit in bytes.
    pub const fn max_append(&self) -> u64 {
        self.spec.max_append
    }

    /// Every zone in disk order.
    pub fn all_zones(&self) -> impl DoubleEndedIterator<Item = ZoneIndex> + use<> {
        (0..self.zones).map(ZoneIndex)
    }

    /// What `zone` accepts.
    pub const fn zone_type(&self, zone: ZoneIndex) -> ZoneType {
        if zone.0 < self.spec.conventional {
            ZoneType::Conventional
        } else {
            ZoneType::Sequential
        }
    }

    /// The zone that holds `sector`, unless that lies past the disk.
    pub fn zone_of(&self, sector: Sector) -> Option<ZoneIndex> {
        if sector >= self.disk_sectors() {
            return None;
        }
        u32::try_from(sector.0 / self.zone_sectors().0)
            .ok()
            .map(ZoneIndex)
    }

    /// The zone that starts exactly at `sector`.
    pub fn zone_starting_at(&self, sector: Sector) -> Option<ZoneIndex> {
        self.zone_of(sector)
            .filter(|&zone| self.zone_start(zone) == sector)
    }

    /// First sector of `zone`.
    pub fn zone_start(&self, zone: ZoneIndex) -> Sector {
        Sector(u64::from(zone.0) * self.zone_sectors().0)
    }

    /// Sectors from the start of `zone` to its end; less than the zone size only in the last zone
    /// of a plain disk.
    pub fn zone_len(&self, zone: ZoneIndex) -> Sector {
        let rest = self.disk_sectors().0 - self.zone_start(zone).0;
        Sector(rest.min(self.zone_sectors().0))
    }

    /// Sectors of `zone` that can hold data.
    pub fn zone_capacity(&self, zone: ZoneIndex) -> Sector {
        match self.zone_type(zone) {
            ZoneType::Conventional => self.zone_len(zone),
            ZoneType::Sequential => Sector::containing(self.spec.zone_capacity),
        }
    }

    /// Blocks of `zone` that can hold data.
    pub fn zone_capacity_blocks(&self, zone: ZoneIndex) -> Blocks {
        Blocks(self.zone_capacity(zone).0 >> (self.block.shift() - SECTOR_SHIFT))
    }

    /// `count` blocks in bytes. For counts that lie inside a zone, as all that come from here do.
    pub const fn block_bytes(&self, count: Blocks) -> u64 {
        count.0.saturating_mul(self.block.bytes())
    }

    /// Blocks in `bytes`, rounded down.
    pub const fn blocks_in(&self, bytes: u64) -> Blocks {
        Blocks(bytes >> self.block.shift())
    }

    /// The sector of a block of `zone`.
    pub fn block_sector(&self, zone: ZoneIndex, block: Blocks) -> Sector {
        Sector(self.zone_start(zone).0 + (block.0 << (self.block.shift() - SECTOR_SHIFT)))
    }

    /// Whether `sector` is the first of a block.
    pub const fn is_block_aligned(&self, sector: Sector) -> bool {
        sector.0.is_multiple_of(self.block.bytes() >> SECTOR_SHIFT)
    }

    /// Whether `[sector, sector + bytes)` lies on the disk, with no wrap and `bytes` whole sectors.
    pub fn contains(&self, sector: Sector, bytes: u64) -> bool {
        bytes.is_multiple_of(SECTOR_SIZE)
            && sector
                .0
                .checked_add(bytes >> SECTOR_SHIFT)
                .is_some_and(|end| end <= self.disk_sectors().0)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A disk with something of everything.
    pub(crate) fn spec() -> GeometrySpec {
        GeometrySpec {
            model: Model::HostManaged,
            block_size: 4096,
            disk_size: 64 << 20,
            zone_size: 4 << 20,
            zone_capacity: 3 << 20,
            conventional: 2,
            max_open: 4,
            max_active: 6,
            max_append: 1 << 20,
        }
    }

    #[test]
    fn sector_bytes_never_drop_bits() {
        assert_eq!(Sector(1 << 55).bytes(), None);
        assert_eq!(Sector((1 << 55) - 1).bytes(), Some(u64::MAX - 511));
    }

    #[test]
    fn zones_tile_the_disk() {
        let geometry = spec().validate().unwrap();
        let mut next = Sector(0);
        for zone in geometry.all_zones() {
            assert_eq!(geometry.zone_start(zone), next);
            assert_eq!(geometry.zone_starting_at(next), Some(zone));
            assert_eq!(geometry.zone_starting_at(Sector(next.0 + 1)), None);
            next.0 += geometry.zone_len(zone).0;
            assert_eq!(geometry.zone_of(Sector(next.0 - 1)), Some(zone));
        }
        assert_eq!(next, geometry.disk_sectors());
        assert_eq!(geometry.zone_of(next), None);
        assert_eq!(geometry.zone_of(Sector(u64::MAX)), None);
    }

    #[test]
    fn conventional_zones_hold_their_whole_size() {
        let geometry = spec().validate().unwrap();
        assert_eq!(geometry.zone_capacity(ZoneIndex(1)), Sector(8192));
        assert_eq!(geometry.zone_capacity(ZoneIndex(2)), Sector(6144));
        assert_eq!(geometry.zone_capacity_blocks(ZoneIndex(2)), Blocks(768));
    }

    #[test]
    fn a_plain_disk_may_end_in_a_short_zone() {
        let geometry = GeometrySpec {
            model: Model::Plain,
            disk_size: (9 << 20) + 4096,
            ..spec()
        }
        .validate()
        .unwrap();
        assert_eq!(geometry.zones(), 3);
        assert_eq!(geometry.zone_len(ZoneIndex(2)), Sector(2056));
        assert_eq!(geometry.zone_type(ZoneIndex(2)), ZoneType::Conventional);
    }

    #[test]
    fn range_checks_survive_any_sector() {
        let geometry = spec().validate().unwrap();
        assert!(geometry.contains(Sector(0), 64 << 20));
        assert!(!geometry.contains(Sector(1), 64 << 20));
        assert!(!geometry.contains(Sector(u64::MAX), 512));
        assert!(!geometry.contains(Sector(0), 511));
        assert!(!geometry.contains(Sector(1 << 55), 512));
    }

    #[test]
    fn what_linux_refuses_is_refused_with_the_reason() {
        let refuse = |change: fn(&mut GeometrySpec)| {
            let mut wished = spec();
            change(&mut wished);
            wished.validate().unwrap_err()
        };
        assert_eq!(
            refuse(|s| s.block_size = 1024),
            GeometryError::BlockSize(1024)
        );
        assert_eq!(
            refuse(|s| s.zone_size = 3 << 20),
            GeometryError::ZoneSizePower(3 << 20)
        );
        assert_eq!(
            refuse(|s| s.zone_size = 4096),
            GeometryError::ZoneSizeRange(4096)
        );
        assert!(matches!(
            refuse(|s| s.disk_size += 4096),
            GeometryError::SizeMultiple { .. }
        ));
        assert_eq!(refuse(|s| s.disk_size = 0), GeometryError::Empty);
        assert!(matches!(
            refuse(|s| s.disk_size = 1 << 50),
            GeometryError::TooManyZones(_)
        ));
        for capacity in [0, 4097, 5 << 20] {
            let wished = GeometrySpec {
                zone_capacity: capacity,
                ..spec()
            };
            assert!(matches!(
                wished.validate(),
                Err(GeometryError::Capacity { .. })
            ));
        }
        assert!(matches!(
            refuse(|s| s.conventional = 16),
            GeometryError::NoSequentialZone { .. }
        ));
        assert!(matches!(
            refuse(|s| s.max_open = 7),
            GeometryError::OpenAboveActive { .. }
        ));
        for append in [0, 512, 4 << 20] {
            let wished = GeometrySpec {
                max_append: append,
                ..spec()
            };
            assert!(matches!(
                wished.validate(),
                Err(GeometryError::MaxAppend { .. })
            ));
        }
    }
}
