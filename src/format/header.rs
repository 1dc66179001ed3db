//! The header: what the disk is, and whether it was closed.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use thiserror::Error;
use uuid::Uuid;

use crate::arena::Guarded;
use crate::crypt::Cipher;
use crate::geometry::{Geometry, GeometryError, GeometrySpec, Model};
use crate::secret::{SecretError, VolumeKey};
use crate::zone::Epoch;

use super::field::{Field, crc32c};
use super::layout::PAGE;

/// The format version that this code reads and writes.
pub const FORMAT_VERSION: u32 = 1;
/// Bytes of meaning in a header: one sector, so that it is never torn.
pub const HEADER_LEN: usize = LENGTH_1 as usize;
/// The same as a field.
const LENGTH_1: u32 = 512;
/// Bytes of a header copy on disk.
const AREA: usize = PAGE;
/// Bytes that the MAC covers.
const COVERED: usize = 480;

const MAGIC_BYTES: [u8; 8] = *b"ZONEVLT\0";

const MAGIC: Field<0, 8> = Field;
const VERSION: Field<8, 4> = Field;
const LENGTH: Field<12, 4> = Field;
const CRC: Field<16, 4> = Field;
const PREAMBLE_RESERVED: Field<20, 4> = Field;
const COMPATIBLE: Field<24, 8> = Field;
const READ_COMPATIBLE: Field<32, 8> = Field;
const INCOMPATIBLE: Field<40, 8> = Field;
const UUID: Field<48, 16> = Field;
const SEQUENCE: Field<64, 8> = Field;
const CREATED: Field<72, 8> = Field;
const CIPHER: Field<80, 4> = Field;
const MODEL: Field<84, 4> = Field;
const BLOCK_SIZE: Field<88, 4> = Field;
const TAG_SLOT: Field<92, 4> = Field;
const DISK_SIZE: Field<96, 8> = Field;
const ZONE_SIZE: Field<104, 8> = Field;
const ZONE_CAPACITY: Field<112, 8> = Field;
const CONVENTIONAL: Field<120, 4> = Field;
const MAX_OPEN: Field<124, 4> = Field;
const MAX_ACTIVE: Field<128, 4> = Field;
const STATE: Field<132, 4> = Field;
const MAX_APPEND: Field<136, 8> = Field;
const EPOCH: Field<144, 8> = Field;
const BOOT_ID: Field<152, 16> = Field;
const RESERVED: Field<168, 16> = Field;
const RECORDS_ROOT: Field<184, 32> = Field;
const RESERVED_2: Field<216, 264> = Field;
const MAC: Field<480, 32> = Field;

const MODEL_HOST_MANAGED: u32 = 1;
const MODEL_PLAIN: u32 = 2;
const STATE_CLEAN: u32 = 1;
const STATE_OPEN: u32 = 2;
const STATE_IN_DOUBT: u32 = 3;

/// Whether the disk was closed in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OpenState {
    /// Drained, synced and closed: the zone records are exact.
    Clean,
    /// Being served, or its daemon or host died.
    Open,
    /// The same, and a sync failed since it was opened: the host's page cache may hold what the
    /// medium does not, and nobody will write it there.
    InDoubt,
}

impl OpenState {
    /// The word for reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Open => "open",
            Self::InDoubt => "in-doubt",
        }
    }
}

/// Identifies one boot of a host (`/proc/sys/kernel/random/boot_id`). Zero where none is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct BootId(pub [u8; 16]);

/// Stands for the newest record of every zone: see [`RecordKey::root`](super::RecordKey::root).
///
/// It is an HMAC, so two of them are compared in constant time.
#[derive(Clone, Copy, Debug, Default, Eq)]
pub struct RecordsRoot(pub [u8; 32]);

impl PartialEq for RecordsRoot {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

/// The header of a volume.
///
/// 512 bytes at the start of each 4 KiB copy, the rest of which is zero. All numbers are
/// little-endian.
///
/// | at | bytes | field |
/// |---|---|---|
/// | 0 | 8 | magic "ZONEVLT\0" |
/// | 8 | 4 | format version, 1 |
/// | 12 | 4 | header length L, 512 in version 1 (a multiple of 8, at most 4096 in any) |
/// | 16 | 4 | CRC-32C of bytes 0 to L - 1 with this field zero: tells rot from a wrong key |
/// | 20 | 4 | zero |
/// | 24 | 8 | compatible feature flags: unknown ones are ignored and kept |
/// | 32 | 8 | read-only compatible feature flags: an unknown one forbids writing |
/// | 40 | 8 | incompatible feature flags: an unknown one forbids use |
/// | 48 | 16 | volume uuid, in the byte order of RFC 9562 |
/// | 64 | 8 | sequence number |
/// | 72 | 8 | time of creation, seconds since 1970 UTC |
/// | 80 | 4 | cipher: 1 aes-128-xts, 2 aes-256-xts, 3 aes-256-gcm, 4 aes-256-xts+crc64 |
/// | 84 | 4 | model: 1 host-managed, 2 plain |
/// | 88 | 4 | block size, bytes |
/// | 92 | 4 | tag slot size, bytes: 32 for ciphers 3 and 4, 0 for the others |
/// | 96 | 8 | disk size, bytes |
/// | 104 | 8 | zone size, bytes |
/// | 112 | 8 | zone capacity, bytes |
/// | 120 | 4 | conventional zones |
/// | 124 | 4 | max open zones, 0 for no limit |
/// | 128 | 4 | max active zones, 0 for no limit |
/// | 132 | 4 | state: 1 clean, 2 open, 3 open and a sync has failed |
/// | 136 | 8 | max append, bytes |
/// | 144 | 8 | epoch of the last opening; not 0 once there was one |
/// | 152 | 16 | boot id of the last opening |
/// | 168 | 16 | zero; reserved, under feature flags: log region of conventional zones |
/// | 184 | 32 | records root if the state is clean ([`RecordKey::root`](super::RecordKey::root)), else zero |
/// | 216 | 264 | zero; reserved, under feature flags: external anchor (32 at 216), guest-visible tag (16 at 248), Merkle root of tags (32 at 264) |
/// | 480 | 32 | HMAC-SHA256 over bytes 0 to 479 with the CRC field zero |
///
/// Bytes 0 to 71 are the preamble: their meaning is the same in every version. The MAC key is
/// HKDF-SHA512(volume key; salt = uuid; info = "zonevault 1 header mac" || uuid),
/// 64 bytes. Reserved bytes
/// are checked to be zero unless a feature flag is set that this version does not know.
///
/// *Write order.* The header with sequence number s lies in copy A if s is even, in B if odd; of
/// two valid ones the higher number holds. A change is written with s + 1, hence over the older
/// copy, and synced before anything relies on it and before the next change: the two copies are
/// never both in flight. Where only one copy is valid the other may have been the newer one, so
/// the disk counts as open under an unknown boot whatever the survivor says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Whether the disk was closed in order.
    pub state: OpenState,
    /// The epoch of the last opening.
    pub epoch: Epoch,
    /// The boot during which it was last opened.
    pub boot_id: BootId,
    /// Of a clean disk, what stands for all its zone records; else zero.
    pub records_root: RecordsRoot,
    uuid: Uuid,
    sequence: u64,
    created: u64,
    cipher: Cipher,
    tag_slot_bytes: u32,
    geometry: Geometry,
    kept: Kept,
}

/// Flags and reserved bytes as they were read, everything else zero: what features that this
/// version does not know have put there survives a rewrite.
#[derive(Clone, PartialEq, Eq)]
struct Kept([u8; HEADER_LEN]);

impl Kept {
    fn of(header: &[u8; HEADER_LEN]) -> Self {
        let mut kept = [0; HEADER_LEN];
        PREAMBLE_RESERVED.put(&mut kept, PREAMBLE_RESERVED.get(header));
        COMPATIBLE.put(&mut kept, COMPATIBLE.get(header));
        READ_COMPATIBLE.put(&mut kept, READ_COMPATIBLE.get(header));
        RESERVED.put(&mut kept, RESERVED.get(header));
        RESERVED_2.put(&mut kept, RESERVED_2.get(header));
        Self(kept)
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kept(..)")
    }
}

impl Header {
    /// The header of a new volume: clean, sequence number 0. `created` is in seconds since 1970.
    pub fn new(uuid: Uuid, cipher: Cipher, geometry: &Geometry, created: u64) -> Self {
        Self {
            state: OpenState::Clean,
            epoch: Epoch(0),
            boot_id: BootId::default(),
            records_root: RecordsRoot::default(),
            uuid,
            sequence: 0,
            created,
            cipher,
            tag_slot_bytes: cipher.tag_slot_bytes(),
            geometry: *geometry,
            kept: Kept([0; HEADER_LEN]),
        }
    }

    /// The volume's identity.
    pub const fn uuid(&self) -> &Uuid {
        &self.uuid
    }

    /// How often the header was written, less one.
    pub const fn sequence(&self) -> u64 {
        self.sequence
    }

    /// When the volume was made, in seconds since 1970 UTC.
    pub const fn created(&self) -> u64 {
        self.created
    }

    /// The cipher of the data.
    pub const fn cipher(&self) -> Cipher {
        self.cipher
    }

    /// Bytes of tag for every block, 0 for none.
    pub const fn tag_slot_bytes(&self) -> u32 {
        self.tag_slot_bytes
    }

    /// The disk's shape.
    pub const fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Whether a feature flag forbids this version to write to the image.
    pub fn read_only_features(&self) -> u64 {
        READ_COMPATIBLE.u64(&self.kept.0)
    }

    /// The same header with a feature from the future.
    #[cfg(test)]
    pub(super) fn with_read_only_feature(mut self, flags: u64) -> Self {
        READ_COMPATIBLE.put_u64(&mut self.kept.0, flags);
        self
    }

    /// The same header as successor of this one.
    pub(super) fn successor(&self) -> Self {
        Self {
            sequence: self.sequence.saturating_add(1),
            ..self.clone()
        }
    }

    /// Marks the header as one whose twin is lost: see *Write order*.
    pub(super) fn distrust_state(&mut self) {
        self.state = OpenState::Open;
        self.boot_id = BootId::default();
    }

    /// The whole 4 KiB copy.
    pub(super) fn encode(&self, key: &HeaderKey) -> [u8; AREA] {
        let mut bytes = self.kept.0;
        MAGIC.put(&mut bytes, MAGIC_BYTES);
        VERSION.put_u32(&mut bytes, FORMAT_VERSION);
        LENGTH.put_u32(&mut bytes, LENGTH_1);
        UUID.put(&mut bytes, *self.uuid.as_bytes());
        SEQUENCE.put_u64(&mut bytes, self.sequence);
        CREATED.put_u64(&mut bytes, self.created);
        CIPHER.put_u32(&mut bytes, u32::from(self.cipher.id()));
        TAG_SLOT.put_u32(&mut bytes, self.tag_slot_bytes);
        put_geometry(&mut bytes, &self.geometry);
        STATE.put_u32(
            &mut bytes,
            match self.state {
                OpenState::Clean => STATE_CLEAN,
                OpenState::Open => STATE_OPEN,
                OpenState::InDoubt => STATE_IN_DOUBT,
            },
        );
        EPOCH.put_u64(&mut bytes, self.epoch.0);
        BOOT_ID.put(&mut bytes, self.boot_id.0);
        RECORDS_ROOT.put(&mut bytes, self.records_root.0);
        CRC.put_u32(&mut bytes, 0);
        let mac = key.mac(&bytes).finalize().into_bytes();
        MAC.put(&mut bytes, mac.into());
        let crc = crc32c(&bytes);
        CRC.put_u32(&mut bytes, crc);
        let mut area = [0; AREA];
        area[..HEADER_LEN].copy_from_slice(&bytes);
        area
    }
}

/// Whether ciphers with tags are for this disk. Data and tag are two writes; only where a block is
/// written once, behind a write pointer, does a crash between them lose nothing.
pub fn takes_tags(geometry: &Geometry) -> bool {
    geometry.spec().model == Model::HostManaged && geometry.conventional() == 0
}

fn put_geometry(bytes: &mut [u8; HEADER_LEN], geometry: &Geometry) {
    let spec = geometry.spec();
    let model = match spec.model {
        Model::HostManaged => MODEL_HOST_MANAGED,
        Model::Plain => MODEL_PLAIN,
    };
    MODEL.put_u32(bytes, model);
    BLOCK_SIZE.put_u32(bytes, 1 << geometry.block_size().shift());
    DISK_SIZE.put_u64(bytes, spec.disk_size);
    ZONE_SIZE.put_u64(bytes, spec.zone_size);
    ZONE_CAPACITY.put_u64(bytes, spec.zone_capacity);
    CONVENTIONAL.put_u32(bytes, spec.conventional);
    MAX_OPEN.put_u32(bytes, spec.max_open);
    MAX_ACTIVE.put_u32(bytes, spec.max_active);
    MAX_APPEND.put_u64(bytes, spec.max_append);
}

/// The prepared MAC of one volume's headers.
pub struct HeaderKey(Guarded<Hmac<Sha256>>);

impl HeaderKey {
    /// Derives the key of volume `uuid`.
    pub fn new(volume_key: &VolumeKey, uuid: &Uuid) -> Result<Self, SecretError> {
        let key = volume_key.header_mac_key(uuid)?;
        Ok(Self(Guarded::new(|| Hmac::new(key.bytes().into()))))
    }

    /// The MAC of a header whose CRC field is zero.
    fn mac(&self, bytes: &[u8; HEADER_LEN]) -> Hmac<Sha256> {
        let mut mac = Hmac::clone(&self.0);
        mac.update(&bytes[..COVERED]);
        mac
    }
}

impl fmt::Debug for HeaderKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HeaderKey(..)")
    }
}

/// A header copy whose preamble is sound and whose body nobody has vouched for yet.
#[derive(Clone, PartialEq, Eq)]
pub struct RawHeader {
    bytes: [u8; HEADER_LEN],
}

impl RawHeader {
    /// Checks magic, length, CRC, version and flags, in this order, and nothing else.
    pub fn parse(area: &[u8; AREA]) -> Result<Self, HeaderError> {
        if MAGIC.get(area) != MAGIC_BYTES {
            return Err(HeaderError::NotAnImage);
        }
        let length = LENGTH.u32(area) as usize;
        if !(HEADER_LEN..=AREA).contains(&length) || !length.is_multiple_of(8) {
            return Err(HeaderError::Rot);
        }
        let mut content = *area;
        CRC.put_u32(&mut content, 0);
        if crc32c(&content[..length]) != CRC.u32(area) {
            return Err(HeaderError::Rot);
        }
        // From here on the bytes are what somebody wrote: a claim to be from the future counts.
        let version = VERSION.u32(area);
        if version != FORMAT_VERSION {
            return Err(HeaderError::Version(version));
        }
        let incompatible = INCOMPATIBLE.u64(area);
        if incompatible != 0 {
            return Err(HeaderError::Incompatible(incompatible));
        }
        if length != HEADER_LEN || area[HEADER_LEN..].iter().any(|&byte| byte != 0) {
            return Err(HeaderError::Rot);
        }
        let mut bytes = [0; HEADER_LEN];
        bytes.copy_from_slice(&area[..HEADER_LEN]);
        Ok(Self { bytes })
    }

    /// The volume's identity, which selects its keys.
    pub fn uuid(&self) -> Uuid {
        Uuid::from_bytes(UUID.get(&self.bytes))
    }

    /// The sequence number, which selects the newer copy.
    pub fn sequence(&self) -> u64 {
        SEQUENCE.u64(&self.bytes)
    }

    /// Checks the MAC, and only then decodes the body.
    pub fn verify(&self, volume_key: &VolumeKey) -> Result<Header, HeaderError> {
        let key = HeaderKey::new(volume_key, &self.uuid())?;
        let mut bytes = self.bytes;
        CRC.put_u32(&mut bytes, 0);
        key.mac(&bytes)
            .verify_slice(&MAC.get(&bytes))
            .map_err(|_| HeaderError::Forged)?;
        self.decode()
    }

    /// The body without proof that it is ours: for display, never for use.
    pub fn unverified(&self) -> Result<Header, HeaderError> {
        self.decode()
    }

    fn decode(&self) -> Result<Header, HeaderError> {
        let bytes = &self.bytes;
        let flagged = COMPATIBLE.u64(bytes) != 0 || READ_COMPATIBLE.u64(bytes) != 0;
        let reserved_clear = RESERVED.get(bytes) == [0; 16]
            && RESERVED_2.get(bytes) == [0; 264]
            && PREAMBLE_RESERVED.get(bytes) == [0; 4];
        if !flagged && !reserved_clear {
            return Err(HeaderError::Reserved);
        }
        let number = CIPHER.u32(bytes);
        let cipher = u8::try_from(number)
            .ok()
            .and_then(Cipher::from_id)
            .ok_or(HeaderError::Cipher(number))?;
        let tag_slot_bytes = TAG_SLOT.u32(bytes);
        if tag_slot_bytes != cipher.tag_slot_bytes() {
            return Err(HeaderError::TagSlot(tag_slot_bytes));
        }
        let geometry = self.decode_geometry()?;
        if tag_slot_bytes != 0 && !takes_tags(&geometry) {
            return Err(HeaderError::TaggedInPlace(cipher));
        }
        let state = match STATE.u32(bytes) {
            STATE_CLEAN => OpenState::Clean,
            STATE_OPEN => OpenState::Open,
            STATE_IN_DOUBT => OpenState::InDoubt,
            other => return Err(HeaderError::State(other)),
        };
        Ok(Header {
            state,
            epoch: Epoch(EPOCH.u64(bytes)),
            boot_id: BootId(BOOT_ID.get(bytes)),
            records_root: RecordsRoot(RECORDS_ROOT.get(bytes)),
            uuid: self.uuid(),
            sequence: self.sequence(),
            created: CREATED.u64(bytes),
            cipher,
            tag_slot_bytes,
            geometry,
            kept: Kept::of(bytes),
        })
    }

    fn decode_geometry(&self) -> Result<Geometry, HeaderError> {
        let bytes = &self.bytes;
        let spec = GeometrySpec {
            model: match MODEL.u32(bytes) {
                MODEL_HOST_MANAGED => Model::HostManaged,
                MODEL_PLAIN => Model::Plain,
                other => return Err(HeaderError::Model(other)),
            },
            block_size: u64::from(BLOCK_SIZE.u32(bytes)),
            disk_size: DISK_SIZE.u64(bytes),
            zone_size: ZONE_SIZE.u64(bytes),
            zone_capacity: ZONE_CAPACITY.u64(bytes),
            conventional: CONVENTIONAL.u32(bytes),
            max_open: MAX_OPEN.u32(bytes),
            max_active: MAX_ACTIVE.u32(bytes),
            max_append: MAX_APPEND.u64(bytes),
        };
        Ok(spec.validate()?)
    }
}

impl fmt::Debug for RawHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawHeader")
            .field("uuid", &self.uuid())
            .field("sequence", &self.sequence())
            .finish_non_exhaustive()
    }
}

/// Why a header copy cannot be used.
#[derive(Debug, Error)]
pub enum HeaderError {
    /// No magic.
    #[error("not a zonevault image")]
    NotAnImage,
    /// The CRC or a length is wrong.
    #[error("the header is damaged")]
    Rot,
    /// Another format version.
    #[error("format version {0} is not supported (this program knows {FORMAT_VERSION})")]
    Version(u32),
    /// Unknown incompatible features.
    #[error("the image needs features that this program does not know (flags {0:#x})")]
    Incompatible(u64),
    /// The MAC is wrong under the right volume key.
    #[error("the header fails its authentication: somebody altered the image")]
    Forged,
    /// Reserved bytes in use without a flag.
    #[error("the header uses bytes that this program does not know")]
    Reserved,
    /// Unknown cipher.
    #[error("cipher number {0} is not known to this program")]
    Cipher(u32),
    /// Not the tag slot size of the cipher.
    #[error("tag slots of {0} bytes do not belong to this cipher")]
    TagSlot(u32),
    /// A cipher with tags on zones that are written in place.
    #[error("{0} needs every zone to be sequential: blocks that are written in place have no tags")]
    TaggedInPlace(Cipher),
    /// Unknown state.
    #[error("the header holds an unknown state {0}")]
    State(u32),
    /// Unknown model.
    #[error("the header holds an unknown model {0}")]
    Model(u32),
    /// The geometry cannot be.
    #[error("the header holds an impossible geometry: {0}")]
    Geometry(#[from] GeometryError),
    /// A key could not be derived.
    #[error(transparent)]
    Secret(#[from] SecretError),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn volume_key(fill: u8) -> VolumeKey {
        let mut key = VolumeKey::zeroed();
        key.bytes_mut().fill(fill);
        key
    }

    fn geometry() -> Geometry {
        GeometrySpec {
            model: Model::HostManaged,
            block_size: 4096,
            disk_size: 16 << 20,
            zone_size: 1 << 20,
            zone_capacity: (1 << 20) - 4096,
            conventional: 1,
            max_open: 3,
            max_active: 4,
            max_append: 8192,
        }
        .validate()
        .unwrap()
    }

    fn header() -> Header {
        let uuid = Uuid::from_u128(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);
        let mut header = Header::new(uuid, Cipher::Aes256Xts, &geometry(), 1_700_000_000);
        header.state = OpenState::Open;
        header.epoch = Epoch(77);
        header.boot_id = BootId([3; 16]);
        header
    }

    fn encoded(header: &Header) -> [u8; AREA] {
        header.encode(&HeaderKey::new(&volume_key(1), header.uuid()).unwrap())
    }

    /// `area` with its CRC made right again, as an attacker without the key would leave it.
    fn with_crc(mut area: [u8; AREA]) -> [u8; AREA] {
        CRC.put_u32(&mut area, 0);
        let crc = crc32c(&area[..HEADER_LEN]);
        CRC.put_u32(&mut area, crc);
        area
    }

    /// `area` with MAC and CRC made right again, as a later version would write it.
    fn with_mac(mut area: [u8; AREA]) -> [u8; AREA] {
        let key = HeaderKey::new(&volume_key(1), header().uuid()).unwrap();
        CRC.put_u32(&mut area, 0);
        let mut bytes = [0; HEADER_LEN];
        bytes.copy_from_slice(&area[..HEADER_LEN]);
        let mac = key.mac(&bytes).finalize().into_bytes();
        MAC.put(&mut area, mac.into());
        with_crc(area)
    }

    #[test]
    fn a_header_lies_as_specified() {
        let area = encoded(&header());
        assert_eq!(&area[..8], b"ZONEVLT\0");
        assert_eq!(area[8..16], [1, 0, 0, 0, 0, 2, 0, 0]);
        assert_eq!(area[48..52], [1, 2, 3, 4]);
        assert_eq!(area[72..80], 1_700_000_000_u64.to_le_bytes());
        assert_eq!(area[80..88], [2, 0, 0, 0, 1, 0, 0, 0]);
        assert_eq!(area[96..104], (16_u64 << 20).to_le_bytes());
        assert_eq!(area[112..120], ((1_u64 << 20) - 4096).to_le_bytes());
        assert_eq!(
            area[120..136],
            [1, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0, 2, 0, 0, 0]
        );
        assert_eq!(area[144..152], 77_u64.to_le_bytes());
        assert_eq!(area[152..168], [3; 16]);
        assert!(area[168..480].iter().all(|&byte| byte == 0));
        assert!(area[512..].iter().all(|&byte| byte == 0));
    }

    #[test]
    fn a_header_comes_back() {
        let area = encoded(&header());
        let raw = RawHeader::parse(&area).unwrap();
        assert_eq!(raw.uuid(), *header().uuid());
        let verified = raw.verify(&volume_key(1)).unwrap();
        assert_eq!(verified, raw.unverified().unwrap());
        assert_eq!(
            (verified.state, verified.epoch, verified.boot_id),
            (OpenState::Open, Epoch(77), BootId([3; 16]))
        );
        assert_eq!(verified.geometry(), &geometry());
        assert_eq!(verified.cipher(), Cipher::Aes256Xts);
        assert_eq!(encoded(&verified), area);
        assert_eq!(verified.successor().sequence(), 1);
    }

    #[test]
    fn every_flipped_bit_is_detected() {
        let area = encoded(&header());
        for bit in 0..AREA * 8 {
            let mut bytes = area;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(RawHeader::parse(&bytes).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn every_flipped_bit_with_the_crc_repaired_is_a_forgery() {
        let area = encoded(&header());
        for bit in 0..HEADER_LEN * 8 {
            let mut bytes = area;
            bytes[bit / 8] ^= 1 << (bit % 8);
            let bytes = with_crc(bytes);
            // The CRC's own bits are repaired away, which leaves the header as it was.
            let repaired = (16..20).contains(&(bit / 8));
            let accepted =
                RawHeader::parse(&bytes).is_ok_and(|raw| raw.verify(&volume_key(1)).is_ok());
            assert_eq!(accepted, repaired, "bit {bit}");
        }
    }

    #[test]
    fn another_key_or_volume_is_refused() {
        let raw = RawHeader::parse(&encoded(&header())).unwrap();
        assert!(matches!(
            raw.verify(&volume_key(2)),
            Err(HeaderError::Forged)
        ));
    }

    #[test]
    fn the_mac_is_checked_before_the_body_is_read() {
        let mut area = encoded(&header());
        CIPHER.put_u32(&mut area, 99);
        let raw = RawHeader::parse(&with_crc(area)).unwrap();
        assert!(matches!(
            raw.verify(&volume_key(1)),
            Err(HeaderError::Forged)
        ));
        assert!(matches!(raw.unverified(), Err(HeaderError::Cipher(99))));
    }

    #[test]
    fn flags_decide_what_an_unknown_feature_forbids() {
        let parse = |set: fn(&mut [u8; AREA])| {
            let mut area = encoded(&header());
            set(&mut area);
            RawHeader::parse(&with_mac(area))
        };
        assert!(matches!(
            parse(|a| VERSION.put_u32(a, 2)),
            Err(HeaderError::Version(2))
        ));
        assert!(matches!(
            parse(|a| INCOMPATIBLE.put_u64(a, 4)),
            Err(HeaderError::Incompatible(4))
        ));
        let read_only = parse(|a| READ_COMPATIBLE.put_u64(a, 8)).unwrap();
        let read_only = read_only.verify(&volume_key(1)).unwrap();
        assert_eq!(read_only.read_only_features(), 8);
        // A compatible feature keeps its fields through a rewrite by who does not know it.
        let compatible = parse(|a| {
            COMPATIBLE.put_u64(a, 1);
            a[300] = 42;
        });
        let known = compatible.unwrap().verify(&volume_key(1)).unwrap();
        assert_eq!(known.read_only_features(), 0);
        let again = encoded(&known.successor());
        assert_eq!(again[300], 42);
        assert_eq!(COMPATIBLE.u64(&again), 1);
    }

    #[test]
    fn an_authentic_body_must_still_make_sense() {
        let verify = |set: fn(&mut [u8; AREA])| {
            let mut area = encoded(&header());
            set(&mut area);
            RawHeader::parse(&with_mac(area))
                .unwrap()
                .verify(&volume_key(1))
                .unwrap_err()
        };
        assert!(matches!(verify(|a| a[479] = 1), HeaderError::Reserved));
        assert!(matches!(verify(|a| a[20] = 1), HeaderError::Reserved));
        assert!(matches!(
            verify(|a| CIPHER.put_u32(a, 0)),
            HeaderError::Cipher(0)
        ));
        assert!(matches!(
            verify(|a| CIPHER.put_u32(a, 258)),
            HeaderError::Cipher(258)
        ));
        assert!(matches!(
            verify(|a| TAG_SLOT.put_u32(a, 32)),
            HeaderError::TagSlot(32)
        ));
        assert!(matches!(
            verify(|a| STATE.put_u32(a, 0)),
            HeaderError::State(0)
        ));
        assert!(matches!(
            verify(|a| MODEL.put_u32(a, 3)),
            HeaderError::Model(3)
        ));
        assert!(matches!(
            verify(|a| ZONE_SIZE.put_u64(a, 3)),
            HeaderError::Geometry(GeometryError::ZoneSizePower(3))
        ));
    }

    proptest! {
        #[test]
        fn no_body_makes_it_panic(body in prop::collection::vec(any::<u8>(), 408)) {
            let mut area = encoded(&header());
            area[72..480].copy_from_slice(&body);
            // Neither reading it as it is nor believing it may panic, whatever it says.
            let raw = RawHeader::parse(&with_mac(area)).unwrap();
            prop_assert_eq!(
                raw.unverified().is_ok(),
                raw.verify(&volume_key(1)).is_ok()
            );
        }
    }
}
