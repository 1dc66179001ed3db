//! The format's seals under a key that everybody knows.

use aes_kw::{KeyInit as _, KwAes256};
use hkdf::Hkdf;
use hmac::{Hmac, Mac};
use sha2::{Sha256, Sha512};
use uuid::Uuid;
use zonevault::format::Slot;
use zonevault::secret::{Credential, KeyMaterial, VolumeKey};

/// The volume key.
pub const VOLUME_KEY: [u8; 64] = [0x5A; 64];
/// The content of the key file that unlocks it.
pub const KEY_FILE: [u8; 32] = [0x77; 32];
/// Bytes of a header copy and of a protector slot.
pub const AREA: usize = 4096;

/// The credential of every protector that [`protector`] seals.
pub fn credential() -> Credential {
    Credential::KeyFile(KeyMaterial::new(KEY_FILE.to_vec()))
}

fn expand(salt: &[u8], ikm: &[u8], info: &[&[u8]], out: &mut [u8]) {
    Hkdf::<Sha512>::new(Some(salt), ikm)
        .expand_multi_info(info, out)
        .expect("HKDF-SHA512 gives that much");
}

fn mac(label: &[u8], uuid: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut key = [0; 64];
    expand(uuid, &VOLUME_KEY, &[label, uuid], &mut key);
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).expect("HMAC takes any key");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

fn crc32c(bytes: &[u8]) -> [u8; 4] {
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes);
    u32::try_from(crc).expect("32 bits").to_le_bytes()
}

/// Gives a header copy the MAC that belongs to it.
pub fn header_mac(area: &mut [u8; AREA]) {
    let uuid: [u8; 16] = area[48..64].try_into().expect("16 bytes");
    let crc: [u8; 4] = area[16..20].try_into().expect("4 bytes");
    area[16..20].fill(0);
    let mac = mac(b"zonevault 1 header mac", &uuid, &[&area[..480]]);
    area[480..512].copy_from_slice(&mac);
    area[16..20].copy_from_slice(&crc);
}

/// Gives a header copy the CRC that belongs to it, over as much as it says it is long.
pub fn header_crc(area: &mut [u8; AREA]) {
    let length = u32::from_le_bytes(area[12..16].try_into().expect("4 bytes"));
    let length = usize::try_from(length).unwrap_or(0);
    if (512..=AREA).contains(&length) {
        area[16..20].fill(0);
        let crc = crc32c(&area[..length]);
        area[16..20].copy_from_slice(&crc);
    }
}

/// Gives a zone record of volume `uuid` the MAC that belongs to it.
pub fn record(bytes: &mut [u8; 128], uuid: &[u8; 16]) {
    let mac = mac(b"zonevault 1 zone record mac", uuid, &[uuid, &bytes[..96]]);
    bytes[96..].copy_from_slice(&mac);
}

/// Gives a protector in slot `slot` of volume `uuid` the volume key, wrapped under [`KEY_FILE`].
pub fn protector_key(area: &mut [u8; AREA], uuid: &[u8; 16], slot: u32) {
    area[8..12].fill(0);
    let mut kek = [0; 32];
    let info: [&[u8]; 4] = [
        b"zonevault 1 protector",
        uuid,
        &slot.to_le_bytes(),
        &area[..104],
    ];
    expand(&area[72..104], &KEY_FILE, &info, &mut kek);
    let mut wrapped = [0; 72];
    KwAes256::new((&kek).into())
        .wrap_key(&VOLUME_KEY, &mut wrapped)
        .expect("AES-KW takes 64 bytes");
    area[104..176].copy_from_slice(&wrapped);
}

/// Gives a protector the CRC that belongs to it.
pub fn protector_crc(area: &mut [u8; AREA]) {
    area[8..12].fill(0);
    let crc = crc32c(&area[..512]);
    area[8..12].copy_from_slice(&crc);
}

/// A sound protector of the key file in slot `slot` of volume `uuid`.
pub fn protector(uuid: &[u8; 16], slot: u32) -> [u8; AREA] {
    let mut area = [0; AREA];
    area[..8].copy_from_slice(b"ZVPROTEC");
    area[12] = 2;
    protector_key(&mut area, uuid, slot);
    protector_crc(&mut area);
    area
}

/// The volume key as the program holds it, for who needs more than a MAC.
pub fn volume_key() -> VolumeKey {
    let uuid = Uuid::nil();
    let Slot::Used(protector) = Slot::parse(&protector(uuid.as_bytes(), 0)) else {
        panic!("our own protector is none");
    };
    let key = protector
        .unseal(&uuid, 0, &credential())
        .expect("no argon2");
    key.expect("our own protector holds our key")
}
