//! Small disks in memory whose volume key everybody knows.

use uuid::Uuid;
use zonevault::crypt::Cipher;
use zonevault::format::image::{create, unlock};
use zonevault::format::{Argon2Cost, CreateSpec, Layout, NewProtector, Protector};
use zonevault::geometry::{Geometry, ZoneIndex};
use zonevault::store::mem::MemMedium;
use zonevault::volume::{Options, Volume};
use zonevault::zone::RecordCopy;

use crate::seal;

/// The volume of every disk here.
pub const UUID: Uuid = Uuid::from_u128(0x5eed);

/// A new disk.
pub fn blank(geometry: &Geometry, cipher: Cipher) -> MemMedium {
    let (credential, volume_key) = (seal::credential(), seal::volume_key());
    let new = NewProtector {
        credential: &credential,
        cost: Argon2Cost::default(),
        label: "",
        created: 0,
    };
    let protector = Protector::seal(&volume_key, &UUID, 0, &new).expect("a protector");
    let layout = Layout::new(geometry, cipher.tag_slot_bytes()).expect("a layout");
    let medium = MemMedium::new(layout.image_len());
    let spec = CreateSpec {
        geometry,
        cipher,
        uuid: UUID,
        created: 0,
        volume_key: &volume_key,
        protector: &protector,
    };
    create(&medium, &spec).expect("an image");
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
pub fn open(medium: MemMedium, queues: u16) -> Volume<MemMedium> {
    let unlocked = unlock(&medium, &seal::credential()).expect("our own image");
    let options = Options {
        queues,
        accept_records: true,
        tag_cache: 64 << 10,
        ..Options::default()
    };
    Volume::open(medium, unlocked, options).expect("our own disk")
}
