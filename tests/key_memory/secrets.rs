//! Every secret of a disk, from its image and its credential. Written from the format's description: nothing here uses
//! the crate's code.

use std::fs;
use std::ops::Range;

use aes_kw::KeyInit as _;
use hkdf::Hkdf;
use hmac::{Hmac, Mac};
use sha2::Sha512;

use crate::served::{Credential, Disk};

/// Bytes that must not be found where they do not belong.
#[derive(Clone, Debug)]
pub(crate) struct Secret {
    /// What it is, for the report.
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
}

fn secret(name: impl Into<String>, bytes: &[u8]) -> Secret {
    Secret {
        name: name.into(),
        bytes: bytes.to_vec(),
    }
}

fn hkdf(key: &[u8], salt: &[u8], info: &[&[u8]], out: &mut [u8]) {
    Hkdf::<Sha512>::new(Some(salt), key)
        .expand(&info.concat(), out)
        .unwrap();
}

/// What HKDF extracts, from which all it expands follows.
fn extracted(key: &[u8], salt: &[u8]) -> Vec<u8> {
    let mut mac = <Hmac<Sha512> as hmac::KeyInit>::new_from_slice(salt).unwrap();
    mac.update(key);
    mac.finalize().into_bytes().to_vec()
}

/// A MAC key, and the two forms in which HMAC has it go through the hash.
fn mac_secrets(name: &str, key: &[u8]) -> Vec<Secret> {
    let padded = |pad: u8| key.iter().map(|byte| byte ^ pad).collect::<Vec<_>>();
    vec![
        secret(name, key),
        secret(format!("{name}, inner pad"), &padded(0x36)),
        secret(format!("{name}, outer pad"), &padded(0x5C)),
    ]
}

struct Image {
    bytes: Vec<u8>,
    uuid: [u8; 16],
}

impl Image {
    fn read(disk: &Disk) -> Self {
        let bytes = fs::read(disk.image()).unwrap();
        let uuid = bytes[48..64].try_into().unwrap();
        Self { bytes, uuid }
    }

    /// Wrapping key and volume key, from what a credential is worth.
    fn unwrap(&self, ikm: &[u8]) -> ([u8; 32], [u8; 64]) {
        let slot = &self.bytes[8192..8192 + 512];
        let mut bound = slot[..104].to_vec();
        bound[8..12].fill(0);
        let mut wrapping = [0; 32];
        let info: [&[u8]; 4] = [b"zonevault 1 protector", &self.uuid, &[0; 4], &bound];
        hkdf(ikm, &slot[72..104], &info, &mut wrapping);
        let mut volume_key = [0; 64];
        aes_kw::KwAes256::new_from_slice(&wrapping)
            .unwrap()
            .unwrap_key(&slot[104..176], &mut volume_key)
            .unwrap();
        (wrapping, volume_key)
    }

    fn shared(&self, ikm: &[u8]) -> Vec<Secret> {
        let (wrapping, volume_key) = self.unwrap(ikm);
        let mut secrets = vec![
            secret("volume key", &volume_key),
            secret("wrapping key", &wrapping),
            secret(
                "wrapping key, extracted",
                &extracted(ikm, &self.bytes[8192 + 72..8192 + 104]),
            ),
            secret(
                "wrapping key, expanded",
                &schedule(&wrapping).concat()[32..],
            ),
            secret("MAC keys, extracted", &extracted(&volume_key, &self.uuid)),
        ];
        for (name, label) in [
            ("header MAC key", b"zonevault 1 header mac".as_slice()),
            ("record MAC key", b"zonevault 1 zone record mac"),
        ] {
            let mut key = [0; 64];
            hkdf(&volume_key, &self.uuid, &[label, &self.uuid], &mut key);
            secrets.extend(mac_secrets(name, &key));
        }
        secrets
    }
}

/// The secrets that all zones share, of a disk that a key file opens.
pub(crate) fn of_key_file(disk: &Disk) -> Vec<Secret> {
    let Credential::KeyFile(key) = disk.credential() else {
        panic!("a disk with a key file");
    };
    let mut secrets = Image::read(disk).shared(key);
    secrets.push(secret("key file", key));
    secrets
}

/// The same of a disk that a passphrase opens.
pub(crate) fn of_passphrase(disk: &Disk) -> Vec<Secret> {
    let Credential::Passphrase(text) = disk.credential() else {
        panic!("a disk with a passphrase");
    };
    let image = Image::read(disk);
    let number = |at: usize| u32::from_le_bytes(image.bytes[at..at + 4].try_into().unwrap());
    let params = argon2::Params::new(number(8208), number(8212), number(8216), None).unwrap();
    let mut memory = vec![argon2::Block::new(); params.block_count()];
    let mut stretched = [0; 64];
    argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params)
        .hash_password_into_with_memory(
            text.as_bytes(),
            &image.bytes[8192 + 72..8192 + 104],
            &mut stretched,
            &mut memory,
        )
        .unwrap();
    let mut secrets = image.shared(&stretched);
    secrets.push(secret("passphrase", text.as_bytes()));
    secrets.push(secret("passphrase, stretched", &stretched));
    secrets
}

/// The keys of zones as their newest records have them: as derived, and expanded.
pub(crate) fn zone_secrets(disk: &Disk, zones: Range<u64>) -> Vec<Secret> {
    let Credential::KeyFile(ikm) = disk.credential() else {
        panic!("a disk with a key file");
    };
    let image = Image::read(disk);
    let (_, volume_key) = image.unwrap(ikm);
    // One page of records: at most 32 zones.
    let copies = [65536, 65536 + 4096];
    zones
        .flat_map(|zone| {
            let at = usize::try_from(zone).unwrap() * 128;
            let records = copies.map(|copy| &image.bytes[copy + at..copy + at + 128]);
            let sequence = |record: &&&[u8]| u64::from_le_bytes(record[8..16].try_into().unwrap());
            let record = records.iter().max_by_key(sequence).unwrap();
            let (generation, salt) = (&record[32..40], &record[48..80]);
            let mut key = vec![0; disk.key_len()];
            let number = u32::try_from(zone).unwrap().to_le_bytes();
            let info: [&[u8]; 4] = [b"zonevault 1 zone key", &image.uuid, &number, generation];
            hkdf(&volume_key, salt, &info, &mut key);
            let mut secrets = vec![
                secret(format!("zone {zone} key"), &key),
                secret(
                    format!("zone {zone} key, extracted"),
                    &extracted(&volume_key, salt),
                ),
            ];
            let halves = if disk.is_xts() { 2 } else { 1 };
            for (half, key) in key.chunks(key.len() / halves).enumerate() {
                let rounds = schedule(key);
                // The first ones are the key itself.
                let own = &rounds[key.len() / 16..];
                secrets.push(secret(
                    format!("zone {zone} round keys {half}"),
                    &own.concat(),
                ));
                let inverse: Vec<_> = rounds[1..rounds.len() - 1].iter().map(inverse).collect();
                secrets.push(secret(
                    format!("zone {zone} inverse round keys {half}"),
                    &inverse.concat(),
                ));
            }
            secrets
        })
        .collect()
}

/// Multiplication in the field of AES (FIPS 197, 4.2).
fn times(mut a: u8, mut b: u8) -> u8 {
    let mut product = 0;
    while b != 0 {
        if b & 1 != 0 {
            product ^= a;
        }
        a = (a << 1) ^ if a & 0x80 != 0 { 0x1B } else { 0 };
        b >>= 1;
    }
    product
}

/// The S-box (FIPS 197, 5.1.1): inverse, then an affine map.
fn substitute(byte: u8) -> u8 {
    let inverse = (1..=255)
        .find(|&other| times(byte, other) == 1)
        .unwrap_or(0);
    (0..5).fold(0x63, |sum, turn| sum ^ inverse.rotate_left(turn))
}

/// The round keys of AES-128 or AES-256 (FIPS 197, 5.2).
fn schedule(key: &[u8]) -> Vec<[u8; 16]> {
    let length = key.len() / 4;
    let mut words: Vec<[u8; 4]> = key.as_chunks().0.to_vec();
    let mut constant = 1;
    for i in length..4 * (length + 7) {
        let mut word = words[i - 1];
        if i % length == 0 {
            word.rotate_left(1);
            word = word.map(substitute);
            word[0] ^= constant;
            constant = times(constant, 2);
        } else if length > 6 && i % length == 4 {
            word = word.map(substitute);
        }
        let before = words[i - length];
        words.push(std::array::from_fn(|byte| word[byte] ^ before[byte]));
    }
    words.concat().as_chunks().0.to_vec()
}

/// A round key of decryption (FIPS 197, 5.3.5): InvMixColumns of one of encryption.
fn inverse(round: &[u8; 16]) -> [u8; 16] {
    std::array::from_fn(|i| {
        let column = &round[i / 4 * 4..][..4];
        let factors = [14, 11, 13, 9];
        (0..4).fold(0, |sum, j| sum ^ times(column[(i + j) % 4], factors[j]))
    })
}

fn hex(digits: &str) -> Vec<u8> {
    let pairs = digits.as_bytes().chunks(2);
    let texts = pairs.map(|pair| std::str::from_utf8(pair).unwrap());
    texts
        .map(|text| u8::from_str_radix(text, 16).unwrap())
        .collect()
}

/// FIPS 197, appendix A: the last words of the schedules of its keys; C.3: the last inverse round key.
#[test]
fn the_key_schedule_is_that_of_the_standard() {
    let rounds = schedule(&hex("2b7e151628aed2a6abf7158809cf4f3c"));
    assert_eq!(rounds.len(), 11);
    assert_eq!(rounds[10][12..], hex("b6630ca6"));
    let key = "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4";
    let rounds = schedule(&hex(key));
    assert_eq!(rounds.len(), 15);
    assert_eq!(rounds[14][12..], hex("706c631e"));
    let counted: Vec<u8> = (0..32).collect();
    let last = inverse(&schedule(&counted)[13]);
    assert_eq!(last[..], hex("34f1d1ffbfceaa2ffce9e25f2558016e"));
}
