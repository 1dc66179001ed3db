//! Tiny disks, so small that every end of a power cut can be looked at.

use uuid::Uuid;
use zonevault::crypt::Cipher;
use zonevault::format::image::create;
use zonevault::format::{Argon2Cost, CreateSpec, Layout, NewProtector, Protector};
use zonevault::geometry::{Geometry, GeometrySpec, Model};
use zonevault::secret::{Credential, VolumeKey};
use zonevault::store::mem::{Fate, MemMedium};

use crate::reader::Reader;

/// The key file of every simulated disk.
pub(crate) const KEY: [u8; 64] = [7; 64];
/// The smallest zone there is, in bytes; its capacity is far below.
pub(crate) const ZONE_SIZE: u64 = 64 << 10;
const SECTOR: u64 = 512;

/// A disk's shape.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) cipher: Cipher,
    /// Bytes of a block.
    pub(crate) block: u64,
    pub(crate) zones: u32,
    /// Blocks that a zone holds.
    pub(crate) capacity: u64,
    pub(crate) max_open: u32,
    pub(crate) max_active: u32,
}

impl Shape {
    pub(crate) fn geometry(&self) -> Geometry {
        let spec = GeometrySpec {
            model: Model::HostManaged,
            block_size: self.block,
            disk_size: u64::from(self.zones) * ZONE_SIZE,
            zone_size: ZONE_SIZE,
            zone_capacity: self.capacity * self.block,
            conventional: 0,
            max_open: self.max_open,
            max_active: self.max_active,
            max_append: self.capacity * self.block,
        };
        spec.validate().expect("a shape of these tests")
    }

    /// Whether blocks have tags.
    pub(crate) fn tagged(&self) -> bool {
        self.cipher.tag_slot_bytes() != 0
    }

    /// First sector of a zone.
    pub(crate) fn start(&self, zone: u32) -> u64 {
        u64::from(zone) * ZONE_SIZE / SECTOR
    }

    /// Bytes of a block, as a length.
    pub(crate) fn block_len(&self) -> usize {
        usize::try_from(self.block).expect("a small block")
    }
}

/// What unlocks every simulated disk.
pub(crate) fn credential() -> Credential {
    Credential::read_key(&KEY[..], "the simulator's key").expect("long enough")
}

/// A disk as it was made, from which every history starts.
#[derive(Debug)]
pub(crate) struct Base {
    pub(crate) shape: Shape,
    pub(crate) medium: MemMedium,
    pub(crate) reader: Reader,
}

impl Base {
    /// Makes a disk of this shape.
    pub(crate) fn new(shape: Shape) -> Self {
        let geometry = shape.geometry();
        let layout = Layout::new(&geometry, shape.cipher.tag_slot_bytes()).expect("a slot size");
        let medium = MemMedium::new(layout.image_len());
        let uuid = Uuid::new_v4();
        let volume_key = VolumeKey::random().expect("randomness");
        let credential = credential();
        let new = NewProtector {
            credential: &credential,
            cost: Argon2Cost::default(),
            label: "",
            created: 0,
        };
        let protector = Protector::seal(&volume_key, &uuid, 0, &new).expect("a protector");
        let spec = CreateSpec {
            geometry: &geometry,
            cipher: shape.cipher,
            uuid,
            created: 0,
            volume_key: &volume_key,
            protector: &protector,
        };
        create(&medium, &spec).expect("a fresh medium takes everything");
        let control = medium.control();
        let reader = Reader::unlock(&|offset, len| control.peek(offset, len), &KEY);
        Self {
            shape,
            reader: reader.expect("what was made can be read"),
            medium,
        }
    }

    /// A copy of the disk as it was made.
    pub(crate) fn fresh(&self) -> MemMedium {
        self.medium.control().moment().crash_with(|_| Fate::Kept)
    }
}
