//! The golden disks: how each is made, and what it holds.

use uuid::Uuid;
use zonevault::crypt::Cipher;
use zonevault::format::image::{unlock, write_header, write_protector};
use zonevault::format::{Argon2Cost, BootId, NewProtector, OpenState, Protector};
use zonevault::geometry::ZoneIndex;
use zonevault::request::{Command, Outcome, Status, ZoneAction};
use zonevault::secret::{Credential, KeyMaterial};
use zonevault::store::mem::{Fate, Fault, Kind, MemMedium};
use zonevault::volume::Options;
use zonevault::zone::ZoneState;

use crate::disk::{Disk, Shape, bytes_of, credential};

/// What a zone is, and the blocks that it holds: the number of each, and its life.
#[derive(Clone, Debug)]
pub struct Zone {
    /// Its state when the disk is opened.
    pub state: ZoneState,
    /// Blocks that are not zero, with what [`block`] takes to make them.
    pub blocks: Vec<(u64, u8)>,
}

/// A golden disk.
#[derive(Clone, Debug)]
pub struct Golden {
    /// Its file, without the ending.
    pub name: &'static str,
    /// Its shape.
    pub shape: Shape,
    /// Its identity.
    pub uuid: Uuid,
    /// How it was left.
    pub left: OpenState,
    /// What it holds.
    pub zones: Vec<Zone>,
}

/// Opens the second protector of each disk.
pub fn passphrase() -> Credential {
    let text = KeyMaterial::new("the golden passphrase".into());
    Credential::passphrase(text, "passphrase").unwrap()
}

/// Block `number` of `zone`, in one of its lives.
pub fn block(shape: Shape, zone: u32, number: u64, life: u8) -> Vec<u8> {
    let seed = u64::from(zone) * 13 + number * 7 + u64::from(life) * 101 + 1;
    let byte = |at| u8::try_from((at * 31 + seed) % 251).unwrap();
    (0..shape.block).map(byte).collect()
}

fn blocks(shape: Shape, zone: u32, numbers: std::ops::Range<u64>, life: u8) -> Vec<u8> {
    let numbers = numbers.map(|number| block(shape, zone, number, life));
    numbers.collect::<Vec<_>>().concat()
}

const fn shape(cipher: Cipher, conventional: u32) -> Shape {
    Shape {
        cipher,
        block: 512,
        capacity: 4,
        zones: 6,
        conventional,
    }
}

fn zone(state: ZoneState, numbers: std::ops::Range<u64>, life: u8) -> Zone {
    Zone {
        state,
        blocks: numbers.map(|number| (number, life)).collect(),
    }
}

/// All golden disks.
pub fn all() -> [Golden; 3] {
    use ZoneState::{Closed, Empty, Full, NotWritePointer};
    let written = |first: Zone| {
        vec![
            first,
            zone(Closed, 0..2, 0),
            zone(Full, 0..4, 0),
            zone(Full, 0..1, 0),
            zone(Closed, 0..2, 1),
            zone(Closed, 0..2, 0),
        ]
    };
    let conventional = Zone {
        state: NotWritePointer,
        blocks: vec![(0, 0), (100, 0)],
    };
    [
        Golden {
            name: "aes-256-gcm",
            shape: shape(Cipher::Aes256Gcm, 0),
            uuid: Uuid::from_u128(0x60d5_1a9e_0000_4000_8000_0000_0000_0001),
            left: OpenState::Clean,
            zones: written(zone(Empty, 0..0, 0)),
        },
        Golden {
            name: "aes-256-xts",
            shape: shape(Cipher::Aes256Xts, 1),
            uuid: Uuid::from_u128(0x60d5_1a9e_0000_4000_8000_0000_0000_0002),
            left: OpenState::Clean,
            zones: written(conventional),
        },
        Golden {
            name: "aes-256-gcm-cut",
            shape: shape(Cipher::Aes256Gcm, 0),
            uuid: Uuid::from_u128(0x60d5_1a9e_0000_4000_8000_0000_0000_0003),
            left: OpenState::Open,
            zones: vec![
                zone(Empty, 0..0, 0),
                zone(Closed, 0..3, 0),
                zone(Full, 0..4, 0),
                zone(Closed, 0..1, 0),
                zone(Closed, 0..2, 1),
                zone(Full, 0..2, 0),
            ],
        },
    ]
}

impl Golden {
    /// Makes the disk with the code of today.
    pub fn make(&self) -> Vec<u8> {
        let medium = self.shape.format_as(self.uuid);
        add_passphrase(&medium);
        let disk = Disk::open(medium, Options::default()).unwrap();
        match self.left {
            OpenState::Clean => bytes_of(&self.fill(disk)),
            _ => bytes_of(&self.cut(disk)),
        }
    }

    /// Two sessions that leave a zone in every condition.
    fn fill(&self, mut disk: Disk) -> MemMedium {
        let shape = self.shape;
        for &(number, life) in self.zones[0].blocks.iter() {
            disk.write(0, number, &block(shape, 0, number, life));
        }
        disk.append(1, &blocks(shape, 1, 0..2, 0));
        disk.append(2, &blocks(shape, 2, 0..4, 0));
        disk.append(3, &blocks(shape, 3, 0..1, 0));
        disk.zone(ZoneAction::Finish, 3);
        disk.append(4, &blocks(shape, 4, 0..3, 0));
        disk.append(5, &blocks(shape, 5, 0..1, 0));
        let mut disk = Disk::open(disk.close(), Options::default()).unwrap();
        disk.zone(ZoneAction::Reset, 4);
        disk.append(4, &blocks(shape, 4, 0..2, 1));
        fail_append(&mut disk, shape, 5);
        disk.append(5, &blocks(shape, 5, 1..2, 0));
        disk.close()
    }

    /// A power cut that takes all records behind the last flush, and the data of one block.
    fn cut(&self, mut disk: Disk) -> MemMedium {
        let shape = self.shape;
        fail_append(&mut disk, shape, 4);
        disk.append(5, &blocks(shape, 5, 0..2, 0));
        disk.zone(ZoneAction::Finish, 5);
        disk.append(1, &blocks(shape, 1, 0..2, 0));
        disk.flush();
        disk.append(1, &blocks(shape, 1, 2..3, 0));
        disk.append(2, &blocks(shape, 2, 0..4, 0));
        for number in 0..3 {
            disk.append(3, &block(shape, 3, number, 0));
        }
        disk.append(4, &blocks(shape, 4, 0..2, 1));
        let data = shape.layout().data_offset(ZoneIndex(0));
        let lost = shape.layout().data_offset(ZoneIndex(3)) + shape.block;
        let medium = disk.medium().control().crash_with(|change| {
            match change.range.start < data || change.range.start == lost {
                true => Fate::Lost,
                false => Fate::Kept,
            }
        });
        // Of some other boot, whatever host opens it.
        let mut unlocked = unlock(&medium, &credential()).unwrap();
        let key = unlocked.header_key().unwrap();
        for _ in 0..2 {
            unlocked.header.boot_id = BootId([0x5a; 16]);
            write_header(&medium, &key, &mut unlocked.header).unwrap();
        }
        medium
    }
}

/// An append that the medium fails: it uses up a counter.
fn fail_append(disk: &mut Disk, shape: Shape, zone: u32) {
    let control = disk.medium().control();
    control.fail_nth(Kind::Write, 1, Fault::Fail(libc::EIO));
    let append = Command::Append(ZoneIndex(zone), shape.block);
    let (outcome, _) = disk.run(append, block(shape, zone, 0, 9));
    assert_eq!(outcome, Outcome::Done(Status::IoError, 0));
}

/// A second protector, as cheap as may be.
fn add_passphrase(medium: &MemMedium) {
    let unlocked = unlock(medium, &credential()).unwrap();
    let new = NewProtector {
        credential: &passphrase(),
        cost: Argon2Cost {
            memory_kib: Argon2Cost::MIN_MEMORY_KIB,
            passes: 1,
            lanes: 1,
        },
        label: "golden",
        created: 1_800_000_000,
    };
    let uuid = *unlocked.header.uuid();
    let protector = Protector::seal(&unlocked.volume_key, &uuid, 1, &new).unwrap();
    write_protector(medium, 1, Some(&protector)).unwrap();
}
