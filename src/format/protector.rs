//! Protectors: the ways to unlock a disk. Each holds the volume key, wrapped under a key of its own.

use std::fmt;

use aes_kw::{KeyInit as _, KwAes256};
use thiserror::Error;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::arena::{Guarded, scrubbed};
use crate::secret::{Credential, SecretError, VOLUME_KEY_LEN, VolumeKey, hkdf, random_bytes};

use super::field::{Field, crc32c};
use super::layout::PAGE;

/// Bytes of meaning in a slot: one sector, so that none is ever torn.
const LEN: usize = 512;
/// Bytes of a slot on disk.
const AREA: usize = PAGE;
/// The wrapped volume key: AES-KW adds 8 bytes.
const WRAPPED_LEN: usize = VOLUME_KEY_LEN + 8;
/// Bytes of a slot that the wrapping key depends on.
const BOUND: usize = 104;
/// Longest label in bytes.
pub const MAX_LABEL_LEN: usize = 32;

const MAGIC_BYTES: [u8; 8] = *b"ZVPROTEC";
const LABEL_KEK: &[u8] = b"zonevault 1 protector";

const MAGIC: Field<0, 8> = Field;
const CRC: Field<8, 4> = Field;
const KIND: Field<12, 4> = Field;
const MEMORY: Field<16, 4> = Field;
const PASSES: Field<20, 4> = Field;
const LANES: Field<24, 4> = Field;
const LABEL_LEN: Field<28, 4> = Field;
const CREATED: Field<32, 8> = Field;
const LABEL: Field<40, 32> = Field;
const SALT: Field<72, 32> = Field;
const WRAPPED: Field<104, 72> = Field;
const RESERVED: Field<176, 336> = Field;

const KIND_PASSPHRASE: u32 = 1;
const KIND_KEY_FILE: u32 = 2;

/// What stretching a passphrase costs (RFC 9106).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Argon2Cost {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over the memory.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

impl Argon2Cost {
    /// Most memory: an image that asks for more is hostile or meant for another class of machine.
    pub const MAX_MEMORY_KIB: u32 = 4 << 20;
    /// Least memory that new protectors may use.
    pub const MIN_MEMORY_KIB: u32 = 8 << 10;
    /// Most lanes.
    pub const MAX_LANES: u32 = 64;
    /// Most memory times passes, in KiB: about a minute and a half of one slow core, so that a
    /// hostile image cannot keep the program busy for ever.
    pub const MAX_WORK_KIB: u64 = 64 << 20;

    /// Whether deriving a key at this cost is possible and ends.
    pub const fn is_bounded(self) -> bool {
        self.lanes >= 1
            && self.lanes <= Self::MAX_LANES
            && self.passes >= 1
            // RFC 9106, 3.1: at least 8 KiB a lane.
            && self.memory_kib >= 8 * self.lanes
            && self.memory_kib <= Self::MAX_MEMORY_KIB
            && self.memory_kib as u64 * self.passes as u64 <= Self::MAX_WORK_KIB
    }
}

impl Default for Argon2Cost {
    /// 256 MiB, three passes, four lanes: about half a second on one core, and memory enough to
    /// make guessing on GPUs expensive.
    fn default() -> Self {
        Self {
            memory_kib: 256 << 10,
            passes: 3,
            lanes: 4,
        }
    }
}

impl fmt::Display for Argon2Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "argon2id, {} MiB, time {}, lanes {}",
            self.memory_kib >> 10,
            self.passes,
            self.lanes
        )
    }
}

/// How a protector gets its wrapping key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtectorKind {
    /// From a passphrase.
    Passphrase(Argon2Cost),
    /// From a key file.
    KeyFile,
}

impl ProtectorKind {
    /// The word for reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Passphrase(_) => "passphrase",
            Self::KeyFile => "key file",
        }
    }
}

/// What to make a protector of.
#[derive(Clone, Copy, Debug)]
pub struct NewProtector<'a> {
    /// What will unlock it.
    pub credential: &'a Credential,
    /// The cost of a passphrase; unused for a key file.
    pub cost: Argon2Cost,
    /// A text for `key list`, at most [`MAX_LABEL_LEN`] bytes without control characters.
    pub label: &'a str,
    /// Seconds since 1970 UTC.
    pub created: u64,
}

/// A protector slot in use.
///
/// 512 bytes at the start of its 4 KiB slot, the rest of which is zero; a slot of zeroes is free.
///
/// | at | bytes | field |
/// |---|---|---|
/// | 0 | 8 | magic "ZVPROTEC" |
/// | 8 | 4 | CRC-32C of bytes 0 to 511 with this field zero |
/// | 12 | 4 | kind: 1 passphrase (argon2id, version 0x13), 2 key file |
/// | 16 | 4 | argon2 memory, KiB; 0 for a key file, as the next two |
/// | 20 | 4 | argon2 passes |
/// | 24 | 4 | argon2 lanes |
/// | 28 | 4 | label length, bytes |
/// | 32 | 8 | time of creation, seconds since 1970 UTC |
/// | 40 | 32 | label, UTF-8, zero-padded |
/// | 72 | 32 | salt |
/// | 104 | 72 | volume key, wrapped by AES-256-KW (RFC 3394) |
/// | 176 | 336 | zero |
///
/// Wrapping key = HKDF-SHA512(ikm; salt = bytes 72 to 103; info = "zonevault 1 protector" || volume
/// uuid || slot number (LE32) || bytes 0 to 103 with the CRC field zero), 32 bytes, where ikm is
/// argon2id(passphrase, salt) of 64 bytes, or the key file as it is. So a slot that was altered,
/// moved or taken from another volume unwraps nothing, exactly as under a wrong key.
///
/// *Write order.* A slot is written whole and synced; making a disk writes it before the header.
/// Removal writes 4 KiB of zeroes and syncs.
#[derive(Clone, PartialEq, Eq)]
pub struct Protector {
    bytes: [u8; LEN],
    kind: ProtectorKind,
    label: String,
}

impl Protector {
    /// Wraps `volume_key` of volume `uuid` for slot number `slot`. Takes as long as the cost says.
    pub fn seal(
        volume_key: &VolumeKey,
        uuid: &Uuid,
        slot: u32,
        new: &NewProtector<'_>,
    ) -> Result<Self, ProtectorError> {
        if new.label.len() > MAX_LABEL_LEN || new.label.chars().any(char::is_control) {
            return Err(ProtectorError::Label);
        }
        let kind = match new.credential {
            Credential::Passphrase(_) => ProtectorKind::Passphrase(new.cost),
            Credential::KeyFile(_) => ProtectorKind::KeyFile,
        };
        let mut bytes = [0; LEN];
        MAGIC.put(&mut bytes, MAGIC_BYTES);
        match kind {
            ProtectorKind::Passphrase(cost) => {
                KIND.put_u32(&mut bytes, KIND_PASSPHRASE);
                MEMORY.put_u32(&mut bytes, cost.memory_kib);
                PASSES.put_u32(&mut bytes, cost.passes);
                LANES.put_u32(&mut bytes, cost.lanes);
            }
            ProtectorKind::KeyFile => KIND.put_u32(&mut bytes, KIND_KEY_FILE),
        }
        CREATED.put_u64(&mut bytes, new.created);
        let mut label = [0; MAX_LABEL_LEN];
        label[..new.label.len()].copy_from_slice(new.label.as_bytes());
        LABEL.put(&mut bytes, label);
        let label_len = u32::try_from(new.label.len()).map_err(|_| ProtectorError::Label)?;
        LABEL_LEN.put_u32(&mut bytes, label_len);
        let mut salt = [0; 32];
        random_bytes(&mut salt)?;
        SALT.put(&mut bytes, salt);
        let mut sealed = Self {
            bytes,
            kind,
            label: new.label.to_owned(),
        };
        let kek = sealed.wrapping_key(uuid, slot, new.credential)?;
        let mut wrapped = [0; WRAPPED_LEN];
        scrubbed(|| {
            let kw = KwAes256::new((&*kek).into());
            kw.wrap_key(volume_key.bytes(), &mut wrapped).map(|_| ())
        })
        .map_err(|_| ProtectorError::Wrap)?;
        WRAPPED.put(&mut sealed.bytes, wrapped);
        let crc = crc32c(&sealed.bytes);
        CRC.put_u32(&mut sealed.bytes, crc);
        Ok(sealed)
    }

    /// The volume key, if `credential` is the one that this protector was made with; `None` if it
    /// is not, or of the other kind, or the slot was altered.
    pub fn unseal(
        &self,
        uuid: &Uuid,
        slot: u32,
        credential: &Credential,
    ) -> Result<Option<VolumeKey>, ProtectorError> {
        if !self.accepts(credential) {
            return Ok(None);
        }
        let kek = self.wrapping_key(uuid, slot, credential)?;
        let mut key = VolumeKey::zeroed();
        let wrapped = WRAPPED.get(&self.bytes);
        let unwrapped = scrubbed(|| {
            let kw = KwAes256::new((&*kek).into());
            kw.unwrap_key(&wrapped, key.bytes_mut()).is_ok()
        });
        Ok(unwrapped.then_some(key))
    }

    /// Whether `credential` is of this protector's kind.
    pub const fn accepts(&self, credential: &Credential) -> bool {
        matches!(
            (self.kind, credential),
            (ProtectorKind::Passphrase(_), Credential::Passphrase(_))
                | (ProtectorKind::KeyFile, Credential::KeyFile(_))
        )
    }

    /// How it unlocks.
    pub const fn kind(&self) -> ProtectorKind {
        self.kind
    }

    /// Its label. Anybody with write access to the image can have put it there.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// When it was made, in seconds since 1970 UTC. As trustworthy as the label.
    pub fn created(&self) -> u64 {
        CREATED.u64(&self.bytes)
    }

    /// The whole 4 KiB slot.
    pub(super) fn encode(&self) -> [u8; AREA] {
        let mut area = [0; AREA];
        area[..LEN].copy_from_slice(&self.bytes);
        area
    }

    fn wrapping_key(
        &self,
        uuid: &Uuid,
        slot: u32,
        credential: &Credential,
    ) -> Result<Guarded<[u8; 32]>, ProtectorError> {
        let salt = SALT.get(&self.bytes);
        let stretched;
        let ikm: &[u8] = match (self.kind, credential) {
            (ProtectorKind::Passphrase(cost), Credential::Passphrase(text)) => {
                stretched = stretch(cost, text.bytes(), &salt)?;
                stretched.as_slice()
            }
            (_, Credential::KeyFile(material) | Credential::Passphrase(material)) => {
                material.bytes()
            }
        };
        let mut bound = self.bytes;
        CRC.put_u32(&mut bound, 0);
        let mut kek = Guarded::new(|| [0; 32]);
        let info = [
            LABEL_KEK,
            uuid.as_bytes(),
            &slot.to_le_bytes(),
            &bound[..BOUND],
        ];
        hkdf(&salt, ikm, &info, kek.as_mut_slice())?;
        Ok(kek)
    }
}

impl fmt::Debug for Protector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Protector")
            .field("kind", &self.kind)
            .field("label", &self.label)
            .finish_non_exhaustive()
    }
}

/// argon2id over `passphrase`, in memory that may be refused and that is wiped.
fn stretch(
    cost: Argon2Cost,
    passphrase: &[u8],
    salt: &[u8; 32],
) -> Result<Guarded<[u8; 64]>, ProtectorError> {
    if !cost.is_bounded() {
        return Err(Unusable::Cost.into());
    }
    let params = argon2::Params::new(cost.memory_kib, cost.passes, cost.lanes, None)
        .map_err(|_| Unusable::Cost)?;
    let blocks = params.block_count();
    let mut memory = Vec::new();
    memory
        .try_reserve_exact(blocks)
        .map_err(|_| ProtectorError::Memory(cost.memory_kib >> 10))?;
    memory.resize(blocks, argon2::Block::new());
    let mut memory = Zeroizing::new(memory);
    let mut out = Guarded::new(|| [0; 64]);
    let argon2 = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
    scrubbed(|| {
        let out = out.as_mut_slice();
        argon2.hash_password_into_with_memory(passphrase, salt, out, memory.as_mut_slice())
    })
    .map_err(|_| Unusable::Cost)?;
    Ok(out)
}

/// What a protector slot holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Slot {
    /// Nothing.
    Free,
    /// A protector.
    Used(Box<Protector>),
    /// Bytes that are no protector: rot.
    Damaged,
    /// Written on purpose, and this version cannot use it.
    Unusable(Unusable),
}

impl Slot {
    /// Decodes a slot. Its content is bound by the wrapping key; until that has unwrapped the
    /// volume key, kind, cost and label are what anybody may have written, so the cost is bounded
    /// here.
    pub fn parse(area: &[u8; AREA]) -> Self {
        if area.iter().all(|&byte| byte == 0) {
            return Self::Free;
        }
        let mut bytes = [0; LEN];
        bytes.copy_from_slice(&area[..LEN]);
        let crc = CRC.u32(&bytes);
        CRC.put_u32(&mut bytes, 0);
        let trailing = area[LEN..].iter().any(|&byte| byte != 0);
        if MAGIC.get(&bytes) != MAGIC_BYTES || crc32c(&bytes) != crc || trailing {
            return Self::Damaged;
        }
        CRC.put_u32(&mut bytes, crc);
        let cost = Argon2Cost {
            memory_kib: MEMORY.u32(&bytes),
            passes: PASSES.u32(&bytes),
            lanes: LANES.u32(&bytes),
        };
        let kind = match KIND.u32(&bytes) {
            KIND_PASSPHRASE if !cost.is_bounded() => {
                return Self::Unusable(Unusable::Cost);
            }
            KIND_PASSPHRASE => ProtectorKind::Passphrase(cost),
            KIND_KEY_FILE => ProtectorKind::KeyFile,
            other => return Self::Unusable(Unusable::Kind(other)),
        };
        let label = LABEL.get(&bytes);
        let text = label
            .get(..LABEL_LEN.u32(&bytes) as usize)
            .and_then(|text| std::str::from_utf8(text).ok())
            .filter(|text| !text.chars().any(char::is_control));
        match text {
            Some(text) if RESERVED.get(&bytes) == [0; 336] => Self::Used(Box::new(Protector {
                bytes,
                kind,
                label: text.to_owned(),
            })),
            _ => Self::Damaged,
        }
    }
}

/// Why a protector that its writer meant so is of no use here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Unusable {
    /// Beyond the bounds of [`Argon2Cost`].
    #[error("argon2id cost out of bounds (at most 4 GiB of memory, 64 GiB over all passes)")]
    Cost,
    /// A kind from a later version.
    #[error("protector kind {0} is not known to this program")]
    Kind(u32),
}

/// Why a protector cannot be made or used.
#[derive(Debug, Error)]
pub enum ProtectorError {
    /// Its parameters.
    #[error(transparent)]
    Unusable(#[from] Unusable),
    /// The memory for argon2id is not there.
    #[error("no {0} MiB of memory for argon2id: free some, or choose less with --kdf-memory")]
    Memory(u32),
    /// Too long, or with control characters.
    #[error("a label has at most {MAX_LABEL_LEN} bytes and no control characters")]
    Label,
    /// AES-KW refused its input.
    #[error("the volume key could not be wrapped")]
    Wrap,
    /// No random bytes, or no key.
    #[error(transparent)]
    Secret(#[from] SecretError),
}

#[cfg(test)]
mod tests {
    use hkdf::Hkdf;
    use sha2::Sha512;

    use super::*;
    use crate::secret::KeyMaterial;

    /// As cheap as RFC 9106 allows.
    const CHEAP: Argon2Cost = Argon2Cost {
        memory_kib: 8,
        passes: 1,
        lanes: 1,
    };

    fn phrase(text: &str) -> Credential {
        Credential::Passphrase(KeyMaterial::new(text.as_bytes().to_vec()))
    }

    fn key_file(fill: u8) -> Credential {
        Credential::KeyFile(KeyMaterial::new(vec![fill; 32]))
    }

    fn volume() -> Uuid {
        Uuid::from_u128(7)
    }

    fn volume_key() -> VolumeKey {
        let mut key = VolumeKey::zeroed();
        key.bytes_mut().fill(0x5A);
        key
    }

    fn seal(credential: &Credential, slot: u32) -> Protector {
        let new = NewProtector {
            credential,
            cost: CHEAP,
            label: "spare",
            created: 5,
        };
        Protector::seal(&volume_key(), &volume(), slot, &new).unwrap()
    }

    fn opens(area: &[u8; AREA], slot: u32, credential: &Credential) -> bool {
        match Slot::parse(area) {
            Slot::Used(protector) => protector
                .unseal(&volume(), slot, credential)
                .unwrap()
                .is_some_and(|key| key.bytes() == volume_key().bytes()),
            _ => false,
        }
    }

    fn with_crc(mut area: [u8; AREA]) -> [u8; AREA] {
        CRC.put_u32(&mut area, 0);
        let crc = crc32c(&area[..LEN]);
        CRC.put_u32(&mut area, crc);
        area
    }

    #[test]
    fn each_kind_opens_with_its_credential_alone() {
        let typed = seal(&phrase("correct horse"), 0).encode();
        assert!(opens(&typed, 0, &phrase("correct horse")));
        assert!(!opens(&typed, 0, &phrase("correct horse ")));
        let held = seal(&key_file(1), 0).encode();
        assert!(opens(&held, 0, &key_file(1)));
        assert!(!opens(&held, 0, &key_file(2)));
        // The same bytes as the other kind are not even tried.
        let same = Credential::Passphrase(KeyMaterial::new(vec![1; 32]));
        assert!(!opens(&held, 0, &same));
    }

    #[test]
    fn a_protector_is_bound_to_volume_and_slot() {
        let protector = seal(&key_file(1), 3);
        let opened = |uuid: Uuid, slot| {
            protector
                .unseal(&uuid, slot, &key_file(1))
                .unwrap()
                .is_some()
        };
        assert!(opened(volume(), 3));
        assert!(!opened(volume(), 2));
        assert!(!opened(Uuid::from_u128(8), 3));
    }

    #[test]
    fn two_protectors_of_one_key_have_nothing_in_common() {
        let (a, b) = (seal(&key_file(1), 0), seal(&key_file(1), 0));
        assert_ne!(SALT.get(&a.bytes), SALT.get(&b.bytes));
        assert_ne!(WRAPPED.get(&a.bytes), WRAPPED.get(&b.bytes));
    }

    #[test]
    fn what_a_slot_says_comes_back() {
        let Slot::Used(found) = Slot::parse(&seal(&phrase("x"), 0).encode()) else {
            panic!("a fresh protector was not recognised");
        };
        assert_eq!(found.kind(), ProtectorKind::Passphrase(CHEAP));
        assert_eq!((found.label(), found.created()), ("spare", 5));
        assert_eq!(Slot::parse(&[0; AREA]), Slot::Free);
    }

    #[test]
    fn every_flipped_bit_is_damage_and_with_the_crc_repaired_opens_nothing() {
        let sound = seal(&key_file(1), 0).encode();
        for bit in 0..AREA * 8 {
            let mut area = sound;
            area[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Slot::parse(&area), Slot::Damaged, "bit {bit}");
            if bit < LEN * 8 {
                let repaired_away = (8..12).contains(&(bit / 8));
                assert_eq!(
                    opens(&with_crc(area), 0, &key_file(1)),
                    repaired_away,
                    "bit {bit}"
                );
            }
        }
    }

    #[test]
    fn hostile_costs_are_refused_before_they_cost_anything() {
        let sound = seal(&phrase("x"), 0).encode();
        let with = |memory: u32, passes: u32, lanes: u32| {
            let mut area = sound;
            MEMORY.put_u32(&mut area, memory);
            PASSES.put_u32(&mut area, passes);
            LANES.put_u32(&mut area, lanes);
            Slot::parse(&with_crc(area))
        };
        let refused = Slot::Unusable(Unusable::Cost);
        for (memory, passes, lanes) in [
            (u32::MAX, 1, 1),
            ((4 << 20) + 1, 1, 1),
            (4 << 20, 17, 1),
            (8, u32::MAX, 1),
            (0, 1, 1),
            (7, 1, 1),
            (8, 0, 1),
            (8, 1, 0),
            (1 << 20, 1, 65),
            (15, 1, 2),
            (u32::MAX, u32::MAX, u32::MAX),
        ] {
            assert_eq!(
                with(memory, passes, lanes),
                refused,
                "{memory} {passes} {lanes}"
            );
        }
        assert!(matches!(with(4 << 20, 16, 1), Slot::Used(_)));
        assert!(Argon2Cost::default().is_bounded());
    }

    #[test]
    fn unknown_kinds_and_odd_labels_are_answered() {
        let sound = seal(&key_file(1), 0).encode();
        let mut area = sound;
        KIND.put_u32(&mut area, 9);
        assert_eq!(
            Slot::parse(&with_crc(area)),
            Slot::Unusable(Unusable::Kind(9))
        );
        for (len, first) in [(33, b'a'), (u32::MAX, b'a'), (5, 0xFF), (5, 0x1B)] {
            let mut area = sound;
            LABEL_LEN.put_u32(&mut area, len);
            area[40] = first;
            assert_eq!(Slot::parse(&with_crc(area)), Slot::Damaged);
        }
        let long = NewProtector {
            credential: &key_file(1),
            cost: CHEAP,
            label: "a label that is longer than 32 bytes",
            created: 0,
        };
        assert!(matches!(
            Protector::seal(&volume_key(), &volume(), 0, &long),
            Err(ProtectorError::Label)
        ));
    }

    /// The wrapped key by hand, from the primitives: checks the arrangement of the inputs.
    #[test]
    fn the_wrapping_key_is_derived_as_specified() {
        let protector = seal(&key_file(1), 2);
        let mut info = b"zonevault 1 protector".to_vec();
        info.extend(volume().as_bytes());
        info.extend([2, 0, 0, 0]);
        info.extend(&protector.bytes[..8]);
        info.extend([0; 4]);
        info.extend(&protector.bytes[12..104]);
        let mut kek = [0; 32];
        Hkdf::<Sha512>::new(Some(&protector.bytes[72..104]), &[1; 32])
            .expand(&info, &mut kek)
            .unwrap();
        let mut wrapped = [0; WRAPPED_LEN];
        KwAes256::new((&kek).into())
            .wrap_key(&[0x5A; 64], &mut wrapped)
            .unwrap();
        assert_eq!(protector.bytes[104..176], wrapped);
    }

    /// The answer is that of the reference implementation in C.
    #[test]
    fn stretching_is_argon2id() {
        let cost = Argon2Cost {
            memory_kib: 64,
            passes: 2,
            lanes: 2,
        };
        let salt = std::array::from_fn(|at| u8::try_from(at).unwrap());
        let out = stretch(cost, b"correct horse", &salt).unwrap();
        let shown: String = out.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            shown,
            "dbc1f51eed42af9d1ab61ffc5b3eb05633d1ecd47d97060013b88710c291bea7\
             d6167da8fe3fccc047425b909ab3c80e8ae8a1da81e89fab24084f24e6426356"
        );
    }
}
