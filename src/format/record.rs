//! Zone records: what outlives the daemon of each zone.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use thiserror::Error;
use uuid::Uuid;

use crate::arena::Guarded;
use crate::geometry::{Blocks, Generation, Geometry, ZoneIndex, ZoneType};
use crate::secret::{SecretError, VolumeKey};
use crate::zone::{Epoch, Skipped, ZoneRecord, ZoneSalt, ZoneState};

use super::field::Field;
use super::header::RecordsRoot;

/// Bytes of a zone record: four to a sector, so that none is ever torn.
pub const RECORD_LEN: usize = 128;
/// The bytes that the MAC covers (after the volume's uuid).
const COVERED: usize = 96;
const KIND_ZONE: u8 = 1;
const FLAG_LEFTOVERS: u16 = 1;

const KIND: Field<0, 1> = Field;
const STATE: Field<1, 1> = Field;
const FLAGS: Field<2, 2> = Field;
const ZONE: Field<4, 4> = Field;
const SEQUENCE: Field<8, 8> = Field;
const WRITTEN: Field<16, 8> = Field;
const DURABLE: Field<24, 8> = Field;
const GENERATION: Field<32, 8> = Field;
const EPOCH: Field<40, 8> = Field;
const SALT: Field<48, 32> = Field;
const SKIPPED: Field<80, 4> = Field;
const RESERVED: Field<84, 12> = Field;
const MAC: Field<96, MAC_LEN> = Field;

/// Bytes of a record's MAC.
pub(super) const MAC_LEN: usize = 32;

/// The MAC that a record carries, sound or not.
pub(super) fn carried_mac(bytes: &[u8; RECORD_LEN]) -> [u8; MAC_LEN] {
    MAC.get(bytes)
}

/// Writes and reads the zone records of one volume.
///
/// A record, 128 bytes, all numbers little-endian:
///
/// | at | bytes | field |
/// |---|---|---|
/// | 0 | 1 | kind: 1 is a zone record; others are reserved for logs of conventional zones |
/// | 1 | 1 | state: 1 not-wp, 2 empty, 3 implicit-open, 4 explicit-open, 5 closed, 6 full, 7 read-only, 8 offline |
/// | 2 | 2 | flags: 1 leftovers (an empty zone whose reset has something to erase); others 0 |
/// | 4 | 4 | zone index |
/// | 8 | 8 | sequence number |
/// | 16 | 8 | blocks written, from the start of the zone; 0 in a conventional zone |
/// | 24 | 8 | blocks durable; 0 in a conventional zone |
/// | 32 | 8 | generation |
/// | 40 | 8 | epoch under which the zone was written to since the disk was opened, 0 if it was not |
/// | 48 | 32 | salt of the zone key |
/// | 80 | 4 | counters skipped: what a tag slot's counter is ahead of its block under that epoch |
/// | 84 | 12 | zero, reserved for a place |
/// | 96 | 32 | HMAC-SHA256 over the volume's uuid (16 bytes) and bytes 0 to 95 |
///
/// The MAC key is HKDF-SHA512(volume key; salt = uuid; info = "zonevault 1 zone record mac" ||
/// uuid), 64 bytes. Of a zone's two copies the valid one with the higher number
/// holds; a new image has the same bytes in both.
///
/// *Write order.* A record is written over the copy that is not the newest durable one; until a
/// sync covers it, it is rewritten in place with higher numbers. So one copy is always whole and
/// not in flight, and a power cut costs at most what no flush has promised. *A reset erases the
/// old salt*: the record with the new salt is written to one copy and synced, then to the other
/// and synced, and only then is the reset complete.
pub struct RecordKey {
    /// HMAC with the key and the uuid already in, so that a record costs three compressions.
    prepared: Guarded<Hmac<Sha256>>,
}

impl RecordKey {
    /// Prepares the MAC of volume `uuid`.
    pub fn new(volume_key: &VolumeKey, uuid: &Uuid) -> Result<Self, SecretError> {
        let key = volume_key.record_mac_key(uuid)?;
        let prepared = Guarded::new(|| {
            let mut prepared = Hmac::<Sha256>::new(key.bytes().into());
            prepared.update(uuid.as_bytes());
            prepared
        });
        Ok(Self { prepared })
    }

    /// The bytes of `record` of `zone`, as number `sequence`.
    pub fn encode(&self, zone: ZoneIndex, sequence: u64, record: &ZoneRecord) -> [u8; RECORD_LEN] {
        let mut bytes = [0; RECORD_LEN];
        KIND.put(&mut bytes, [KIND_ZONE]);
        STATE.put(&mut bytes, [state_id(record.state)]);
        FLAGS.put_u16(
            &mut bytes,
            if record.leftovers { FLAG_LEFTOVERS } else { 0 },
        );
        ZONE.put_u32(&mut bytes, zone.0);
        SEQUENCE.put_u64(&mut bytes, sequence);
        WRITTEN.put_u64(&mut bytes, record.written.0);
        DURABLE.put_u64(&mut bytes, record.durable.0);
        GENERATION.put_u64(&mut bytes, record.generation.0);
        EPOCH.put_u64(&mut bytes, record.epoch.0);
        SALT.put(&mut bytes, record.salt.0);
        SKIPPED.put_u32(&mut bytes, record.skipped.0);
        let mac = self.mac(&bytes).finalize().into_bytes();
        MAC.put(&mut bytes, mac.into());
        bytes
    }

    /// Checks and decodes the record of `zone`: its sequence number and content. Nothing is
    /// decoded before the MAC is verified, in constant time; ranges are checked after it.
    pub fn decode(
        &self,
        geometry: &Geometry,
        zone: ZoneIndex,
        bytes: &[u8; RECORD_LEN],
    ) -> Result<(u64, ZoneRecord), RecordError> {
        self.mac(bytes)
            .verify_slice(&MAC.get(bytes))
            .map_err(|_| RecordError::Forged)?;
        decode_unverified(geometry, zone, bytes)
    }

    /// What stands for all records of a disk: HMAC-SHA256 with the same key over the volume's uuid,
    /// the ASCII bytes "records", and for every zone in order the MAC of its newest sound record
    /// (32 bytes; zero where there is none). A header that says the disk is clean holds it, so that
    /// records put back from an older copy are noticed.
    pub fn root<'a>(&self, macs: impl IntoIterator<Item = &'a [u8; MAC_LEN]>) -> RecordsRoot {
        let mut mac = Hmac::clone(&self.prepared);
        mac.update(b"records");
        for of_zone in macs {
            mac.update(of_zone);
        }
        RecordsRoot(mac.finalize().into_bytes().into())
    }

    /// The root of the records that are the newest by what their writer remembers, whatever lies on
    /// the medium by now.
    pub fn root_of(&self, newest: &[Option<(ZoneRecord, u64)>]) -> RecordsRoot {
        let zones = (0..).map(ZoneIndex).zip(newest);
        let macs: Vec<_> = zones
            .map(|(zone, newest)| match newest {
                Some((record, sequence)) => carried_mac(&self.encode(zone, *sequence, record)),
                None => [0; MAC_LEN],
            })
            .collect();
        self.root(&macs)
    }

    fn mac(&self, bytes: &[u8; RECORD_LEN]) -> Hmac<Sha256> {
        let mut mac = Hmac::clone(&self.prepared);
        mac.update(&bytes[..COVERED]);
        mac
    }
}

impl fmt::Debug for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecordKey(..)")
    }
}

/// Decodes the record of `zone` without proof that it is ours: for display, never for use.
pub(super) fn decode_unverified(
    geometry: &Geometry,
    zone: ZoneIndex,
    bytes: &[u8; RECORD_LEN],
) -> Result<(u64, ZoneRecord), RecordError> {
    let [kind] = KIND.get(bytes);
    if kind != KIND_ZONE {
        return Err(RecordError::Kind(kind));
    }
    if ZONE.u32(bytes) != zone.0 {
        return Err(RecordError::Zone(ZONE.u32(bytes)));
    }
    let flags = FLAGS.u16(bytes);
    if flags & !FLAG_LEFTOVERS != 0 || RESERVED.get(bytes) != [0; 12] {
        return Err(RecordError::Reserved);
    }
    let [state] = STATE.get(bytes);
    let record = ZoneRecord {
        state: state_from_id(state).ok_or(RecordError::State(state))?,
        written: Blocks(WRITTEN.u64(bytes)),
        durable: Blocks(DURABLE.u64(bytes)),
        generation: Generation(GENERATION.u64(bytes)),
        epoch: Epoch(EPOCH.u64(bytes)),
        salt: ZoneSalt(SALT.get(bytes)),
        skipped: Skipped(SKIPPED.u32(bytes)),
        leftovers: flags & FLAG_LEFTOVERS != 0,
    };
    let capacity = geometry.zone_capacity_blocks(zone);
    if record.durable > record.written || record.written > capacity {
        return Err(RecordError::Range);
    }
    let conventional = geometry.zone_type(zone) == ZoneType::Conventional;
    if (record.state == ZoneState::NotWritePointer && !conventional)
        || (conventional && !state_of_conventional(record.state))
    {
        return Err(RecordError::State(state));
    }
    Ok((SEQUENCE.u64(bytes), record))
}

/// A conventional zone has no write pointer, but its medium can fail.
const fn state_of_conventional(state: ZoneState) -> bool {
    matches!(
        state,
        ZoneState::NotWritePointer | ZoneState::ReadOnly | ZoneState::Offline
    )
}

const fn state_id(state: ZoneState) -> u8 {
    match state {
        ZoneState::NotWritePointer => 1,
        ZoneState::Empty => 2,
        ZoneState::ImplicitOpen => 3,
        ZoneState::ExplicitOpen => 4,
        ZoneState::Closed => 5,
        ZoneState::Full => 6,
        ZoneState::ReadOnly => 7,
        ZoneState::Offline => 8,
    }
}

const fn state_from_id(id: u8) -> Option<ZoneState> {
    Some(match id {
        1 => ZoneState::NotWritePointer,
        2 => ZoneState::Empty,
        3 => ZoneState::ImplicitOpen,
        4 => ZoneState::ExplicitOpen,
        5 => ZoneState::Closed,
        6 => ZoneState::Full,
        7 => ZoneState::ReadOnly,
        8 => ZoneState::Offline,
        _ => return None,
    })
}

/// Why a zone record is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RecordError {
    /// The MAC is wrong: rot, another volume's record, or tampering.
    #[error("the record fails its authentication")]
    Forged,
    /// Authentic, of a kind that this version does not know.
    #[error("the record is of unknown kind {0}")]
    Kind(u8),
    /// Authentic, of another zone.
    #[error("the record belongs to zone {0}")]
    Zone(u32),
    /// Authentic, in a state that this zone cannot be in.
    #[error("the record holds state {0}, which this zone cannot have")]
    State(u8),
    /// Authentic, with durable > written or written > capacity.
    #[error("the record holds a write pointer out of range")]
    Range,
    /// Authentic, with reserved bytes in use.
    #[error("the record uses bytes that this version does not know")]
    Reserved,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::geometry::{GeometrySpec, Model};

    fn geometry() -> Geometry {
        GeometrySpec {
            model: Model::HostManaged,
            block_size: 4096,
            disk_size: 16 << 20,
            zone_size: 1 << 20,
            zone_capacity: 1 << 20,
            conventional: 1,
            max_open: 0,
            max_active: 0,
            max_append: 4096,
        }
        .validate()
        .unwrap()
    }

    fn key(volume_key: u8, uuid: u128) -> RecordKey {
        let mut volume = VolumeKey::zeroed();
        volume.bytes_mut().fill(volume_key);
        RecordKey::new(&volume, &Uuid::from_u128(uuid)).unwrap()
    }

    fn record() -> ZoneRecord {
        ZoneRecord {
            state: ZoneState::Closed,
            written: Blocks(17),
            durable: Blocks(16),
            generation: Generation(3),
            epoch: Epoch(0x1122_3344_5566_7788),
            skipped: Skipped(0x0a0b_0c0d),
            leftovers: true,
            salt: ZoneSalt([9; 32]),
        }
    }

    #[test]
    fn a_record_lies_as_specified() {
        let bytes = key(1, 2).encode(ZoneIndex(5), 0x0102, &record());
        assert_eq!(bytes[..8], [1, 5, 1, 0, 5, 0, 0, 0]);
        assert_eq!(bytes[8..16], [2, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[16], 17);
        assert_eq!(bytes[24], 16);
        assert_eq!(bytes[32], 3);
        assert_eq!(bytes[40..48], 0x1122_3344_5566_7788_u64.to_le_bytes());
        assert_eq!(bytes[48..80], [9; 32]);
        assert_eq!(bytes[80..84], [0x0d, 0x0c, 0x0b, 0x0a]);
        assert_eq!(bytes[84..96], [0; 12]);
    }

    #[test]
    fn every_flipped_bit_is_detected() {
        let key = key(1, 2);
        let sound = key.encode(ZoneIndex(5), 7, &record());
        for bit in 0..RECORD_LEN * 8 {
            let mut bytes = sound;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(
                key.decode(&geometry(), ZoneIndex(5), &bytes),
                Err(RecordError::Forged),
                "bit {bit}"
            );
        }
    }

    #[test]
    fn a_record_is_bound_to_key_volume_and_zone() {
        let bytes = key(1, 2).encode(ZoneIndex(5), 7, &record());
        let decode = |key: RecordKey, zone| key.decode(&geometry(), ZoneIndex(zone), &bytes);
        assert_eq!(decode(key(1, 2), 5), Ok((7, record())));
        assert_eq!(decode(key(3, 2), 5), Err(RecordError::Forged));
        assert_eq!(decode(key(1, 3), 5), Err(RecordError::Forged));
        assert_eq!(decode(key(1, 2), 6), Err(RecordError::Zone(5)));
    }

    #[test]
    fn an_authentic_record_must_still_make_sense() {
        let key = key(1, 2);
        let decode = |zone: u32, change: fn(&mut ZoneRecord)| {
            let mut record = record();
            change(&mut record);
            let bytes = key.encode(ZoneIndex(zone), 7, &record);
            key.decode(&geometry(), ZoneIndex(zone), &bytes)
        };
        assert_eq!(
            decode(5, |r| r.durable = Blocks(18)),
            Err(RecordError::Range)
        );
        assert!(decode(5, |r| r.written = Blocks(256)).is_ok());
        assert_eq!(
            decode(5, |r| r.written = Blocks(257)),
            Err(RecordError::Range)
        );
        assert_eq!(
            decode(5, |r| r.state = ZoneState::NotWritePointer),
            Err(RecordError::State(1))
        );
        assert_eq!(decode(0, |_| ()), Err(RecordError::State(5)));
        assert!(decode(0, |r| r.state = ZoneState::NotWritePointer).is_ok());
        assert!(decode(0, |r| r.state = ZoneState::ReadOnly).is_ok());
    }

    #[test]
    fn unknown_fields_under_a_valid_mac_are_refused() {
        let key = key(1, 2);
        let with = |at: usize, value: u8| {
            let mut bytes = key.encode(ZoneIndex(5), 7, &record());
            bytes[at] = value;
            let mac = key.mac(&bytes).finalize().into_bytes();
            MAC.put(&mut bytes, mac.into());
            key.decode(&geometry(), ZoneIndex(5), &bytes)
        };
        assert_eq!(with(0, 2), Err(RecordError::Kind(2)));
        assert_eq!(with(1, 0), Err(RecordError::State(0)));
        assert_eq!(with(1, 9), Err(RecordError::State(9)));
        assert_eq!(with(3, 1), Err(RecordError::Reserved));
        assert_eq!(with(95, 1), Err(RecordError::Reserved));
    }

    proptest! {
        #[test]
        fn any_sound_record_comes_back(
            state in 2_u8..=8,
            written in 0_u64..=256,
            durable in 0_u64..=256,
            generation: u64,
            epoch: u64,
            skipped: u32,
            leftovers: bool,
            salt: [u8; 32],
            sequence: u64,
            zone in 1_u32..16,
        ) {
            let record = ZoneRecord {
                state: state_from_id(state).unwrap(),
                written: Blocks(written),
                durable: Blocks(durable.min(written)),
                generation: Generation(generation),
                epoch: Epoch(epoch),
                skipped: Skipped(skipped),
                leftovers,
                salt: ZoneSalt(salt),
            };
            let key = key(1, 2);
            let bytes = key.encode(ZoneIndex(zone), sequence, &record);
            prop_assert_eq!(state_id(record.state), state);
            prop_assert_eq!(
                key.decode(&geometry(), ZoneIndex(zone), &bytes),
                Ok((sequence, record))
            );
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), RECORD_LEN)) {
            let bytes: [u8; RECORD_LEN] = bytes.try_into().unwrap();
            // Without a MAC nearly all of them are refused; what matters is that all are answered.
            if let Ok((_, record)) = decode_unverified(&geometry(), ZoneIndex(1), &bytes) {
                prop_assert!(record.durable <= record.written);
            }
            prop_assert_eq!(
                key(1, 2).decode(&geometry(), ZoneIndex(1), &bytes),
                Err(RecordError::Forged)
            );
        }
    }
}
