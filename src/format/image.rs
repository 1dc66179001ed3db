//! Whole images: making one, unlocking it, and reading and writing its metadata.

use std::io;
use std::time::Duration;

use log::warn;
use thiserror::Error;
use uuid::Uuid;

use crate::crypt::Cipher;
use crate::geometry::{Blocks, Generation, Geometry, ZoneIndex, ZoneType};
use crate::secret::{Credential, SecretError, VolumeKey, random_bytes};
use crate::store::Medium;
use crate::zone::{
    Epoch, Loaded, RecordCopy, RecordWrite, Skipped, ZoneRecord, ZoneSalt, ZoneState,
};

use super::header::{
    Header, HeaderError, HeaderKey, OpenState, RawHeader, RecordsRoot, takes_tags,
};
use super::layout::{
    HEADER_AREA_LEN, HeaderCopy, Layout, PAGE, PROTECTOR_SLOTS, RECORDS_START, TagSlotError,
};
use super::protector::{Protector, ProtectorError, Slot};
use super::record::{MAC_LEN, RECORD_LEN, RecordError, RecordKey, carried_mac, decode_unverified};

/// Both copies of the zone records, in the order they lie in.
const RECORD_COPIES: [RecordCopy; 2] = [RecordCopy::A, RecordCopy::B];
/// Zone records read or written in one call: 1 MiB, beyond which calls get no cheaper.
const CHUNK_RECORDS: usize = 8192;
/// How often a header pair is read again that does not look whole: a daemon may be writing it.
const HEADER_READS: u32 = 3;
/// Pause before a header pair is read again.
const HEADER_READ_PAUSE: Duration = Duration::from_millis(5);

/// What a new image is made of.
#[derive(Clone, Copy, Debug)]
pub struct CreateSpec<'a> {
    /// The disk's shape.
    pub geometry: &'a Geometry,
    /// The cipher of its data.
    pub cipher: Cipher,
    /// Its identity, under which `protector` was sealed.
    pub uuid: Uuid,
    /// Seconds since 1970 UTC.
    pub created: u64,
    /// Its master secret.
    pub volume_key: &'a VolumeKey,
    /// The first protector, sealed for slot 0.
    pub protector: &'a Protector,
}

/// Writes the metadata of a new image over whatever `medium` holds, and returns its layout. Data
/// extents are left as they are: nothing reads them before something wrote them.
///
/// *Write order.* Both header copies are zeroed and synced; zone records (both copies) and
/// protectors are written and synced; header A, sync; header B, sync. Whatever interrupts it, the
/// medium holds no valid header before everything that a header vouches for is durable.
pub fn create(medium: &impl Medium, spec: &CreateSpec<'_>) -> Result<Layout, ImageError> {
    if spec.cipher.is_tagged() && !takes_tags(spec.geometry) {
        return Err(HeaderError::TaggedInPlace(spec.cipher).into());
    }
    let layout = Layout::new(spec.geometry, spec.cipher.tag_slot_bytes())?;
    check_len(medium, layout.image_len())?;
    let header_key = HeaderKey::new(spec.volume_key, &spec.uuid)?;
    let record_key = RecordKey::new(spec.volume_key, &spec.uuid)?;
    for offset in (0..RECORDS_START).step_by(PAGE) {
        medium.write_at(offset, &[0; PAGE])?;
    }
    medium.sync()?;
    write_fresh_records(medium, &layout, spec.geometry, &record_key)?;
    medium.write_at(Layout::protector_offset(0), &spec.protector.encode())?;
    medium.sync()?;
    let mut header = Header::new(spec.uuid, spec.cipher, spec.geometry, spec.created);
    let records = load_records(medium, &layout, spec.geometry, &record_key)?;
    header.records_root = records_root(&record_key, &records);
    medium.write_at(
        Layout::header_offset(HeaderCopy::of_sequence(header.sequence())),
        &header.encode(&header_key),
    )?;
    medium.sync()?;
    write_header(medium, &header_key, &mut header)?;
    Ok(layout)
}

/// The record of a zone that was never written, under a fresh salt.
pub fn fresh_record(geometry: &Geometry, zone: ZoneIndex, salt: ZoneSalt) -> ZoneRecord {
    ZoneRecord {
        state: match geometry.zone_type(zone) {
            ZoneType::Conventional => ZoneState::NotWritePointer,
            ZoneType::Sequential => ZoneState::Empty,
        },
        written: Blocks(0),
        durable: Blocks(0),
        generation: Generation(0),
        epoch: Epoch(0),
        skipped: Skipped(0),
        leftovers: false,
        salt,
    }
}

/// Writes both copies of all zone records, with the same salts, in large pieces.
fn write_fresh_records(
    medium: &impl Medium,
    layout: &Layout,
    geometry: &Geometry,
    key: &RecordKey,
) -> Result<(), ImageError> {
    let mut zones = geometry.all_zones();
    loop {
        let piece: Vec<ZoneIndex> = zones.by_ref().take(CHUNK_RECORDS).collect();
        let Some(&first) = piece.first() else {
            return Ok(());
        };
        let mut salts = vec![[0; 32]; piece.len()];
        random_bytes(salts.as_flattened_mut())?;
        let mut bytes = Vec::with_capacity(piece.len() * RECORD_LEN);
        for (&zone, &salt) in piece.iter().zip(&salts) {
            let record = fresh_record(geometry, zone, ZoneSalt(salt));
            bytes.extend_from_slice(&key.encode(zone, 0, &record));
        }
        for copy in RECORD_COPIES {
            medium.write_at(layout.record_offset(copy, first), &bytes)?;
        }
    }
}

/// The newest header copy of an image, before any key vouches for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundHeader {
    /// The newest sound copy.
    pub raw: RawHeader,
    /// The copy that is not sound, if one is not.
    pub damaged: Option<HeaderCopy>,
}

/// Reads both header copies and selects the newer sound one. An image that one copy claims to be
/// of a later version or to need unknown features is refused, whatever the other says.
pub fn read_header(medium: &impl Medium) -> Result<FoundHeader, ImageError> {
    let mut attempt = 1;
    loop {
        let found = read_header_once(medium);
        let whole = matches!(&found, Ok(FoundHeader { damaged: None, .. }));
        if whole || attempt == HEADER_READS {
            return found;
        }
        attempt += 1;
        std::thread::sleep(HEADER_READ_PAUSE);
    }
}

fn read_header_once(medium: &impl Medium) -> Result<FoundHeader, ImageError> {
    let size = medium.size()?;
    let mut best: Option<RawHeader> = None;
    let mut damaged = None;
    let mut rot = false;
    for copy in HeaderCopy::BOTH {
        let mut area = [0; PAGE];
        let offset = Layout::header_offset(copy);
        let parsed = if size < offset + HEADER_AREA_LEN {
            Err(HeaderError::NotAnImage)
        } else {
            medium.read_at(offset, &mut area)?;
            RawHeader::parse(&area)
        };
        match parsed {
            Ok(raw) if HeaderCopy::of_sequence(raw.sequence()) == copy => {
                if best.as_ref().is_none_or(|b| b.sequence() < raw.sequence()) {
                    best = Some(raw);
                }
            }
            Ok(_) | Err(HeaderError::Rot) => {
                rot = true;
                damaged = Some(copy);
            }
            Err(HeaderError::NotAnImage) => damaged = Some(copy),
            Err(refusal) => return Err(refusal.into()),
        }
    }
    match best {
        Some(raw) => Ok(FoundHeader { raw, damaged }),
        None if rot => Err(HeaderError::Rot.into()),
        None => Err(HeaderError::NotAnImage.into()),
    }
}

/// Reads all protector slots.
pub fn read_protectors(medium: &impl Medium) -> Result<Vec<Slot>, ImageError> {
    check_len(medium, RECORDS_START)?;
    (0..PROTECTOR_SLOTS)
        .map(|slot| {
            let mut area = [0; PAGE];
            medium.read_at(Layout::protector_offset(slot), &mut area)?;
            Ok(Slot::parse(&area))
        })
        .collect()
}

/// Writes `protector` into `slot`, or frees the slot, and makes it durable.
pub fn write_protector(
    medium: &impl Medium,
    slot: u32,
    protector: Option<&Protector>,
) -> Result<(), ImageError> {
    if slot >= PROTECTOR_SLOTS {
        return Err(ImageError::NoSuchSlot(slot));
    }
    let area = protector.map_or([0; PAGE], Protector::encode);
    medium.write_at(Layout::protector_offset(slot), &area)?;
    medium.sync()?;
    Ok(())
}

/// An image whose volume key is known and whose header is proven to be written under it.
#[derive(Debug)]
pub struct Unlocked {
    /// The header, as of the newest sound copy.
    pub header: Header,
    /// The volume key.
    pub volume_key: VolumeKey,
    /// Where everything lies.
    pub layout: Layout,
    /// The protector slot that unlocked it.
    pub slot: u32,
    /// The header copy that was not sound, if one was not; the next two writes replace both.
    pub damaged_header: Option<HeaderCopy>,
    /// If one copy was not sound and the other says that the disk was closed: with which records.
    pub closed_with: Option<RecordsRoot>,
}

impl Unlocked {
    /// The disk's shape.
    pub const fn geometry(&self) -> &Geometry {
        self.header.geometry()
    }

    /// The MAC of its headers.
    pub fn header_key(&self) -> Result<HeaderKey, SecretError> {
        HeaderKey::new(&self.volume_key, self.header.uuid())
    }

    /// The MAC of its zone records.
    pub fn record_key(&self) -> Result<RecordKey, SecretError> {
        RecordKey::new(&self.volume_key, self.header.uuid())
    }
}

/// Unlocks an image: finds its header and protectors, tries `credential` on each protector of its
/// kind, then verifies the header before anything in it is believed. Reads only.
///
/// A passphrase costs what each protector asks, within the bounds of
/// [`Argon2Cost`](super::protector::Argon2Cost).
pub fn unlock(medium: &impl Medium, credential: &Credential) -> Result<Unlocked, ImageError> {
    let found = read_header(medium)?;
    let (slot, volume_key) = unseal_any(medium, &found.raw.uuid(), credential)?;
    let mut header = found.raw.verify(&volume_key)?;
    let mut closed_with = None;
    if let Some(copy) = found.damaged {
        closed_with = (header.state == OpenState::Clean).then_some(header.records_root);
        warn!(
            "header copy {} is damaged; going by the other one",
            copy.name()
        );
        header.distrust_state();
    }
    let layout = Layout::new(header.geometry(), header.tag_slot_bytes())?;
    check_len(medium, layout.image_len())?;
    Ok(Unlocked {
        header,
        volume_key,
        layout,
        slot,
        damaged_header: found.damaged,
        closed_with,
    })
}

fn unseal_any(
    medium: &impl Medium,
    uuid: &Uuid,
    credential: &Credential,
) -> Result<(u32, VolumeKey), ImageError> {
    let mut trouble = None;
    for (number, slot) in (0..).zip(read_protectors(medium)?) {
        match slot {
            Slot::Free => {}
            Slot::Used(protector) => match protector.unseal(uuid, number, credential) {
                Ok(Some(key)) => return Ok((number, key)),
                Ok(None) => {}
                Err(error) => trouble = Some(error),
            },
            Slot::Damaged => warn!("protector slot {number} is damaged"),
            Slot::Unusable(why) => warn!("protector slot {number} is of no use: {why}"),
        }
    }
    // A lack of memory is not a wrong key, and must not be taken for one.
    trouble.map_or(Err(ImageError::WrongKey), |error| {
        Err(ImageError::Protector(error))
    })
}

/// Writes `header` as its own successor and makes it durable; on success `header` is what lies on
/// disk. After an error nothing is known but that the previous header is untouched.
pub fn write_header(
    medium: &impl Medium,
    key: &HeaderKey,
    header: &mut Header,
) -> Result<(), ImageError> {
    if header.read_only_features() != 0 {
        return Err(ImageError::ReadOnlyFeatures(header.read_only_features()));
    }
    let next = header.successor();
    let copy = HeaderCopy::of_sequence(next.sequence());
    medium.write_at(Layout::header_offset(copy), &next.encode(key))?;
    medium.sync()?;
    *header = next;
    Ok(())
}

/// Writes `header` as its own successor into the page cache, for whoever opens the image during this
/// boot of the host. It must be synced before the header is written again.
pub fn mark_header(medium: &impl Medium, key: &HeaderKey, header: &mut Header) -> io::Result<()> {
    let next = header.successor();
    let copy = HeaderCopy::of_sequence(next.sequence());
    medium.write_at(Layout::header_offset(copy), &next.encode(key))?;
    *header = next;
    Ok(())
}

/// Writes a record of `zone` to where the zone table wants it. Not durable before the medium's next
/// sync; see [`RecordKey`] for what needs one.
pub fn write_record(
    medium: &impl Medium,
    layout: &Layout,
    key: &RecordKey,
    zone: ZoneIndex,
    order: &RecordWrite,
) -> io::Result<()> {
    let bytes = key.encode(zone, order.sequence, &order.record);
    medium.write_at(layout.record_offset(order.copy, zone), &bytes)
}

/// What the image holds of one zone's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadedRecord {
    /// The newer valid copy. `None`: both are lost, and the zone with them, for its salt is.
    pub newest: Option<Loaded>,
    /// The MAC of `newest`, zero where there is none.
    pub mac: [u8; MAC_LEN],
    /// What is wrong with copy A and with copy B.
    pub faults: [Option<RecordError>; 2],
    /// The older copy is of another generation: a reset was cut off before it erased the old salt.
    pub stale: bool,
}

impl LoadedRecord {
    /// Whether both copies are sound.
    pub const fn is_sound(&self) -> bool {
        matches!(self.faults, [None, None])
    }
}

/// Reads and checks both copies of every zone record, in disk order. Only I/O errors fail; a lost
/// record is a fact about its zone.
pub fn load_records(
    medium: &impl Medium,
    layout: &Layout,
    geometry: &Geometry,
    key: &RecordKey,
) -> io::Result<Vec<LoadedRecord>> {
    load_by(medium, layout, geometry, |zone, bytes| {
        key.decode(geometry, zone, bytes)
    })
}

/// The same without a key, and so without proof of anything: for display, never for use.
pub fn load_records_unverified(
    medium: &impl Medium,
    layout: &Layout,
    geometry: &Geometry,
) -> io::Result<Vec<LoadedRecord>> {
    load_by(medium, layout, geometry, |zone, bytes| {
        decode_unverified(geometry, zone, bytes)
    })
}

fn load_by(
    medium: &impl Medium,
    layout: &Layout,
    geometry: &Geometry,
    decode: impl Fn(ZoneIndex, &[u8; RECORD_LEN]) -> Result<(u64, ZoneRecord), RecordError>,
) -> io::Result<Vec<LoadedRecord>> {
    let mut loaded = Vec::with_capacity(geometry.zones() as usize);
    let mut bytes = [Vec::new(), Vec::new()];
    for first in geometry.all_zones().step_by(CHUNK_RECORDS) {
        let left = (geometry.zones() - first.0) as usize;
        for (buffer, copy) in bytes.iter_mut().zip(RECORD_COPIES) {
            buffer.resize(CHUNK_RECORDS.min(left) * RECORD_LEN, 0);
            medium.read_at(layout.record_offset(copy, first), buffer)?;
        }
        let (a, _) = bytes[0].as_chunks::<RECORD_LEN>();
        let (b, _) = bytes[1].as_chunks::<RECORD_LEN>();
        for (zone, (a, b)) in (first.0..).map(ZoneIndex).zip(a.iter().zip(b)) {
            loaded.push(judge([a, b], |bytes| decode(zone, bytes)));
        }
    }
    // Beside a daemon that is writing, copies read at two moments can both be caught half-way.
    for (zone, record) in geometry.all_zones().zip(&mut loaded) {
        if record.newest.is_none() {
            let mut pair = [[0; RECORD_LEN]; 2];
            for (bytes, copy) in pair.iter_mut().zip(RECORD_COPIES) {
                medium.read_at(layout.record_offset(copy, zone), bytes)?;
            }
            let [a, b] = &pair;
            *record = judge([a, b], |bytes| decode(zone, bytes));
        }
    }
    Ok(loaded)
}

/// What stands for all of a disk's records.
pub fn records_root(key: &RecordKey, records: &[LoadedRecord]) -> RecordsRoot {
    key.root(records.iter().map(|record| &record.mac))
}

fn judge(
    copies: [&[u8; RECORD_LEN]; 2],
    decode: impl Fn(&[u8; RECORD_LEN]) -> Result<(u64, ZoneRecord), RecordError>,
) -> LoadedRecord {
    let mut newest: Option<Loaded> = None;
    let mut mac = [0; MAC_LEN];
    let mut faults = [None, None];
    let mut stale = false;
    for ((copy, bytes), fault) in RECORD_COPIES.into_iter().zip(copies).zip(&mut faults) {
        match decode(bytes) {
            Ok((sequence, record)) => {
                let other = newest.map(|other| other.record);
                stale = other.is_some_and(|other| other.generation != record.generation);
                // Equal numbers are equal content: those of a new image or of one closed in order.
                let mirrored = newest.is_some_and(|other| other.sequence == sequence);
                match &mut newest {
                    Some(best) if best.sequence >= sequence => best.mirrored = mirrored,
                    _ => {
                        mac = carried_mac(bytes);
                        newest = Some(Loaded {
                            record,
                            sequence,
                            copy,
                            mirrored: false,
                            proven: record.durable,
                        });
                    }
                }
            }
            Err(error) => *fault = Some(error),
        }
    }
    LoadedRecord {
        newest,
        mac,
        faults,
        stale,
    }
}

fn check_len(medium: &impl Medium, need: u64) -> Result<(), ImageError> {
    let have = medium.size()?;
    if have < need {
        return Err(ImageError::Truncated { have, need });
    }
    Ok(())
}

/// Why an image cannot be made, unlocked or changed.
#[derive(Debug, Error)]
pub enum ImageError {
    /// The medium failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The header.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// Shorter than its header says, or than any image.
    #[error("truncated: {have} bytes long, and {need} are needed")]
    Truncated {
        /// Its length.
        have: u64,
        /// The least it must be.
        need: u64,
    },
    /// No protector took the credential. Which one came nearest is nobody's business.
    #[error("no protector of this disk opens with this key")]
    WrongKey,
    /// A protector could not be tried or made.
    #[error(transparent)]
    Protector(#[from] ProtectorError),
    /// A slot number beyond the last.
    #[error("there is no protector slot {0} (they run from 0 to {last})", last = PROTECTOR_SLOTS - 1)]
    NoSuchSlot(u32),
    /// Unknown read-only compatible features.
    #[error("the image has features (flags {0:#x}) that forbid this program to write to it")]
    ReadOnlyFeatures(u64),
    /// No layout.
    #[error(transparent)]
    TagSlot(#[from] TagSlotError),
    /// Keys or random bytes.
    #[error(transparent)]
    Secret(#[from] SecretError),
}

#[cfg(test)]
mod tests;
