//! Small disks whose volume key everybody knows.

use uuid::Uuid;
use zonevault::crypt::Cipher;
use zonevault::format::image::{create, unlock};
use zonevault::format::{Argon2Cost, CreateSpec, Layout, NewProtector, Protector};
use zonevault::geometry::{Geometry, ZoneIndex};
use zonevault::store::Medium;
use zonevault::store::mem::MemMedium;
use zonevault::volume::{Options, Volume};
use zonevault::zone::RecordCopy;

use crate::seal;

/// The volume of every disk here.
pub const UUID: Uuid = Uuid::from_u128(0x5eed);

/// Bytes of a disk's image.
pub fn image_len(geometry: &Geometry, cipher: Cipher) -> u64 {
    let layout = Layout::new(geometry, cipher.tag_slot_bytes()).expect("a layout");
    layout.image_len()
}

/// Makes a new disk of what `medium` holds.
pub fn format(medium: &impl Medium, geometry: &Geometry, cipher: Cipher) {
    let (credential, volume_key) = (seal::credential(), seal::volume_key());
    let new = NewProtector {
        credential: &credential,
        cost: Argon2Cost::default(),
        label: "",
        created: 0,
    };
    let protector = Protector::seal(&volume_key, &UUID, 0, &new).expect("a protector");
    let spec = CreateSpec {
        geometry,
        cipher,
        uuid: UUID,
        created: 0,
        volume_key: &volume_key,
        protector: &protector,
    };
    create(medium, &spec).expect("an image");
}

/// A new disk in memory.
pub fn blank(geometry: &Geometry, cipher: Cipher) -> MemMedium {
    let medium = MemMedium::new(image_len(geometry, cipher));
    format(&medium, geometry, cipher);
    medium
}

/// Puts both copies of a zone's record, given without its MAC.
pub fn put_record(medium: &MemMedium, layout: &Layout, zone: ZoneIndex, mut record: [u8; 128]) {
    seal::record(&mut record, UUID.as_bytes());
    for copy in [RecordCopy::A, RecordCopy::B] {
        let at = layout.record_offset(copy, zone);
        medium.control().overwrite(at, &record);
    }
}

/// Opens it, whatever its records say.
pub fn open<M: Medium>(medium: M, queues: u16) -> Volume<M> {
    let unlocked = unlock(&medium, &seal::credential()).expect("our own image");
    let options = Options {
        queues,
        accept_records: true,
        tag_cache: 64 << 10,
        ..Options::default()
    };
    Volume::open(medium, unlocked, options).expect("our own disk")
}
