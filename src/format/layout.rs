//! Where everything lies in an image.

use thiserror::Error;

use crate::geometry::{Blocks, Geometry, ZoneIndex};
use crate::store::DoubleArea;
use crate::zone::RecordCopy;

use super::record::RECORD_LEN;

/// Bytes of a page, as the length of an array.
pub(super) const PAGE: usize = 4 << 10;
/// Granularity of every area: a page, which any O_DIRECT medium takes.
pub const AREA_ALIGN: u64 = PAGE as u64;
/// Bytes of each header copy.
pub const HEADER_AREA_LEN: u64 = AREA_ALIGN;
/// Protector slots: as many as LUKS1 had; a disk needs one or two.
pub const PROTECTOR_SLOTS: u32 = 8;
/// Bytes of each protector slot.
pub const PROTECTOR_SLOT_LEN: u64 = AREA_ALIGN;
/// Where blocks are written that are then written in place
/// ([`DoubleArea`]); behind the protectors.
const DOUBLE_START: u64 = 40960;
/// Where the zone records begin.
pub const RECORDS_START: u64 = 64 << 10;
/// The first data extent begins at a multiple of this, so that guest-aligned I/O stays aligned to
/// the erase and RAID units that hosts have.
pub const DATA_ALIGN: u64 = 64 << 10;
/// Largest tag slot that a layout can be computed for, in bytes a block.
pub const MAX_TAG_SLOT_BYTES: u32 = 64;

/// One of the two copies of the header.
///
/// Its sequence number decides where a header lies, even ones in A and odd ones in B, so that a
/// successor never overwrites what it replaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HeaderCopy {
    /// Even sequence numbers.
    A,
    /// Odd sequence numbers.
    B,
}

impl HeaderCopy {
    /// Both, in the order they lie in.
    pub const BOTH: [Self; 2] = [Self::A, Self::B];

    /// The copy that holds the header with this sequence number.
    pub const fn of_sequence(sequence: u64) -> Self {
        if sequence.is_multiple_of(2) {
            Self::A
        } else {
            Self::B
        }
    }

    /// The word for reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::B => "B",
        }
    }
}

/// A tag slot size beyond [`MAX_TAG_SLOT_BYTES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("tag slots of {0} bytes are not possible (at most {MAX_TAG_SLOT_BYTES})")]
pub struct TagSlotError(pub u32);

/// The places of an image, from its geometry. Version 1, all offsets in bytes:
///
/// | from | length | what |
/// |---|---|---|
/// | 0 | 4096 | header, copy A |
/// | 4096 | 4096 | header, copy B |
/// | 8192 | 8 x 4096 | protector slots 0 to 7 |
/// | 40960 | 24576 | blocks being written in place (`store::double`); zero where none is |
/// | 65536 | R | zone records, copy A: zone i at 128 i |
/// | 65536 + R | R | zone records, copy B |
/// | D | ... | zone after zone: data extent, tag extent |
///
/// R is 128 bytes a zone, rounded up to 4096. D is 65536 + 2 R, rounded up to 65536. A data extent
/// is as long as the zone's capacity, a tag extent as its blocks times the tag slot size (0 for
/// AES-XTS, so there is none, and 32 for the ciphers with tags); each is rounded up to 4096. The image ends with its last extent.
///
/// There are disk size / zone size zones, rounded up: a plain disk's last zone ends where the disk
/// ends. The conventional ones come first (of a plain disk: all); their capacity is all that they
/// span, whatever the header says of the capacity of the others.
///
/// *Data.* Block n of a zone lies at n times the block size in its data extent, encrypted under the
/// zone's key ([`derive_zone_key`](crate::secret::derive_zone_key)) with n as its data unit number;
/// with tags its slot (`integrity::Slot`) lies at 32 n in the tag extent.
/// Which blocks of a sequential zone are data is in its record. Of a conventional zone any may be,
/// and nothing tells which: one that was never written decrypts to noise.
///
/// No sum overflows: 2^20 zones of at most 2^38 bytes of data and 2^35 of tags (64 bytes for each
/// 512) stay below 2^59, and the metadata below 2^29.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    geometry: Geometry,
    tag_slot_bytes: u32,
    record_area_len: u64,
    data_start: u64,
    /// Data and tags of one conventional zone (of a plain disk: of each but a short last zone).
    conventional_stride: u64,
    sequential_stride: u64,
}

impl Layout {
    /// The layout of an image with this geometry and `tag_slot_bytes` of tag for every block.
    pub fn new(geometry: &Geometry, tag_slot_bytes: u32) -> Result<Self, TagSlotError> {
        if tag_slot_bytes > MAX_TAG_SLOT_BYTES {
            return Err(TagSlotError(tag_slot_bytes));
        }
        let records = u64::from(geometry.zones()) * RECORD_LEN as u64;
        let record_area_len = records.next_multiple_of(AREA_ALIGN);
        let mut layout = Self {
            geometry: *geometry,
            tag_slot_bytes,
            record_area_len,
            data_start: (RECORDS_START + 2 * record_area_len).next_multiple_of(DATA_ALIGN),
            conventional_stride: 0,
            sequential_stride: 0,
        };
        // A plain disk's first zone is a whole one unless it is the only one; then no stride of it
        // is ever used.
        layout.conventional_stride = layout.extents_len(geometry.zone_size());
        layout.sequential_stride = layout.extents_len(geometry.spec().zone_capacity);
        Ok(layout)
    }

    /// Bytes of tag for every block; 0 where the cipher has none.
    pub const fn tag_slot_bytes(&self) -> u32 {
        self.tag_slot_bytes
    }

    /// Length of the image in bytes.
    pub fn image_len(&self) -> u64 {
        let last = ZoneIndex(self.geometry.zones().saturating_sub(1));
        self.data_offset(last) + self.extents_len(self.data_len(last))
    }

    /// Where blocks go first that are then written in place.
    pub fn double_area(&self) -> DoubleArea {
        DoubleArea {
            offset: DOUBLE_START,
            data_start: self.data_start,
        }
    }

    /// Where `copy` of the header lies.
    pub const fn header_offset(copy: HeaderCopy) -> u64 {
        match copy {
            HeaderCopy::A => 0,
            HeaderCopy::B => HEADER_AREA_LEN,
        }
    }

    /// Where protector slot `slot` lies; slots run from 0 to [`PROTECTOR_SLOTS`] - 1.
    pub const fn protector_offset(slot: u32) -> u64 {
        2 * HEADER_AREA_LEN + slot as u64 * PROTECTOR_SLOT_LEN
    }

    /// Offset and length of the area of `copy` of the zone records.
    pub const fn record_area(&self, copy: RecordCopy) -> (u64, u64) {
        let offset = match copy {
            RecordCopy::A => RECORDS_START,
            RecordCopy::B => RECORDS_START + self.record_area_len,
        };
        (offset, self.record_area_len)
    }

    /// Where `copy` of the record of `zone` lies.
    pub const fn record_offset(&self, copy: RecordCopy, zone: ZoneIndex) -> u64 {
        self.record_area(copy).0 + zone.0 as u64 * RECORD_LEN as u64
    }

    /// Where the data of `zone` begins.
    pub fn data_offset(&self, zone: ZoneIndex) -> u64 {
        let conventional = u64::from(zone.0.min(self.geometry.conventional()));
        let sequential = u64::from(zone.0) - conventional;
        self.data_start
            + conventional * self.conventional_stride
            + sequential * self.sequential_stride
    }

    /// Where block `block` of `zone` lies.
    pub fn block_offset(&self, zone: ZoneIndex, block: Blocks) -> u64 {
        self.data_offset(zone) + self.geometry.block_bytes(block)
    }

    /// Bytes of data that `zone` holds: its capacity.
    pub fn data_len(&self, zone: ZoneIndex) -> u64 {
        self.geometry
            .block_bytes(self.geometry.zone_capacity_blocks(zone))
    }

    /// Where the tags of `zone` begin; an empty extent where the cipher has none.
    pub fn tag_offset(&self, zone: ZoneIndex) -> u64 {
        self.data_offset(zone) + self.data_len(zone).next_multiple_of(AREA_ALIGN)
    }

    /// Bytes of the tag extent of `zone`.
    pub fn tag_len(&self, zone: ZoneIndex) -> u64 {
        self.tags_for(self.data_len(zone))
    }

    /// Offset and length of all that belongs to `zone`: its data and its tags.
    pub fn extents(&self, zone: ZoneIndex) -> (u64, u64) {
        (
            self.data_offset(zone),
            self.extents_len(self.data_len(zone)),
        )
    }

    fn tags_for(&self, data_len: u64) -> u64 {
        let blocks = self.geometry.blocks_in(data_len).0;
        (blocks * u64::from(self.tag_slot_bytes)).next_multiple_of(AREA_ALIGN)
    }

    fn extents_len(&self, data_len: u64) -> u64 {
        data_len.next_multiple_of(AREA_ALIGN) + self.tags_for(data_len)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::geometry::tests::spec;
    use crate::geometry::{GeometrySpec, MAX_ZONE_SIZE, MAX_ZONES, Model};

    #[test]
    fn a_small_disk_lies_where_the_table_says() {
        let layout = Layout::new(&spec().validate().unwrap(), 0).unwrap();
        assert_eq!(Layout::header_offset(HeaderCopy::B), 4096);
        assert_eq!(Layout::protector_offset(0), 8192);
        assert_eq!(Layout::protector_offset(7), 8192 + 7 * 4096);
        assert_eq!(layout.record_area(RecordCopy::A), (65536, 4096));
        assert_eq!(layout.record_area(RecordCopy::B), (65536 + 4096, 4096));
        assert_eq!(
            layout.record_offset(RecordCopy::B, ZoneIndex(3)),
            69632 + 384
        );
        assert_eq!(layout.data_offset(ZoneIndex(0)), 131_072);
        assert_eq!(layout.data_offset(ZoneIndex(2)), 131_072 + (8 << 20));
        assert_eq!(layout.data_offset(ZoneIndex(3)), 131_072 + (11 << 20));
        assert_eq!(layout.tag_len(ZoneIndex(3)), 0);
        assert_eq!(layout.image_len(), 131_072 + (8 << 20) + 14 * (3 << 20));
    }

    #[test]
    fn tags_follow_the_data_they_belong_to() {
        let layout = Layout::new(&spec().validate().unwrap(), 32).unwrap();
        let zone = ZoneIndex(2);
        assert_eq!(
            layout.tag_offset(zone),
            layout.data_offset(zone) + (3 << 20)
        );
        assert_eq!(layout.tag_len(zone), 768 * 32);
        assert_eq!(
            layout.data_offset(ZoneIndex(3)),
            layout.tag_offset(zone) + 768 * 32
        );
    }

    #[test]
    fn the_largest_disk_does_not_overflow() {
        for (block_size, model) in [(512, Model::HostManaged), (512, Model::Plain)] {
            let geometry = GeometrySpec {
                model,
                block_size,
                disk_size: MAX_ZONES * MAX_ZONE_SIZE,
                zone_size: MAX_ZONE_SIZE,
                zone_capacity: MAX_ZONE_SIZE,
                ..spec()
            }
            .validate()
            .unwrap();
            let layout = Layout::new(&geometry, MAX_TAG_SLOT_BYTES).unwrap();
            assert!(layout.image_len() < 1 << 59);
            assert!(layout.image_len() > MAX_ZONES * MAX_ZONE_SIZE);
        }
        let geometry = spec().validate().unwrap();
        assert_eq!(Layout::new(&geometry, 65), Err(TagSlotError(65)));
    }

    proptest! {
        #[test]
        fn areas_are_aligned_and_disjoint(
            zones in 2_u64..200,
            shift in 16_u32..24,
            capacity_blocks in 1_u64..16,
            conventional in 0_u32..2,
            block in prop_oneof![Just(512_u64), Just(4096)],
            tags in prop_oneof![Just(0_u32), Just(16), Just(32)],
            plain in any::<bool>(),
            short in 0_u64..16,
        ) {
            let zone_size = 1_u64 << shift;
            let geometry = GeometrySpec {
                model: if plain { Model::Plain } else { Model::HostManaged },
                block_size: block,
                disk_size: zones * zone_size - if plain { short * block } else { 0 },
                zone_size,
                zone_capacity: capacity_blocks * block,
                conventional,
                max_open: 0,
                max_active: 0,
                max_append: block,
            }.validate().unwrap();
            let layout = Layout::new(&geometry, tags).unwrap();
            let (a, len) = layout.record_area(RecordCopy::A);
            let (b, _) = layout.record_area(RecordCopy::B);
            prop_assert_eq!(b, a + len);
            prop_assert!(len >= zones * RECORD_LEN as u64);
            let mut end = b + len;
            for zone in geometry.all_zones() {
                let data = layout.data_offset(zone);
                let tag = layout.tag_offset(zone);
                prop_assert!(data >= end);
                prop_assert!(tag >= data + layout.data_len(zone));
                prop_assert_eq!(data % AREA_ALIGN, 0);
                prop_assert_eq!(tag % AREA_ALIGN, 0);
                prop_assert_eq!(
                    layout.data_len(zone),
                    geometry.zone_capacity(zone).bytes().unwrap()
                );
                end = tag + layout.tag_len(zone);
            }
            prop_assert_eq!(layout.data_offset(ZoneIndex(0)) % DATA_ALIGN, 0);
            prop_assert_eq!(layout.image_len(), end);
        }
    }
}
