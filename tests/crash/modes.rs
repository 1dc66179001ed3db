//! AES-256-XTS and the two CRCs, written out for the second reader.

use aes::Aes256;
use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};

/// CRC-32C (Castagnoli), reflected.
const CRC32C: u64 = 0x82F6_3B78;
/// CRC-64/NVMe, reflected.
const CRC64_NVME: u64 = 0x9A6C_9329_AC4B_C9B5;

const fn table(polynomial: u64) -> [u64; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u64;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 {
                (crc >> 1) ^ polynomial
            } else {
                crc >> 1
            };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
}

static TABLE_32: [u64; 256] = table(CRC32C);
static TABLE_64: [u64; 256] = table(CRC64_NVME);

fn step(table: &[u64; 256], crc: u64, byte: u8) -> u64 {
    table[usize::from(crc.to_le_bytes()[0] ^ byte)] ^ (crc >> 8)
}

/// CRC-32C of `bytes`.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    let crc = bytes
        .iter()
        .fold(0xFFFF_FFFF, |crc, &byte| step(&TABLE_32, crc, byte));
    u32::try_from(crc ^ 0xFFFF_FFFF).expect("32 bits")
}

/// CRC-64/NVMe of `parts`, one after the other.
pub(crate) fn crc64_nvme(parts: &[&[u8]]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.iter());
    !bytes.fold(u64::MAX, |crc, &byte| step(&TABLE_64, crc, byte))
}

/// AES-256-XTS (IEEE 1619): data key, tweak key.
pub(crate) struct Xts256 {
    data: Aes256,
    tweak: Aes256,
}

impl Xts256 {
    pub(crate) fn new(key: &[u8; 64]) -> Self {
        let half = |half: &[u8]| Aes256::new_from_slice(half).expect("32 bytes");
        Self {
            data: half(&key[..32]),
            tweak: half(&key[32..]),
        }
    }

    /// Decrypts one data unit, a multiple of 16 bytes, in place.
    pub(crate) fn decrypt(&self, unit: u64, bytes: &mut [u8]) {
        let mut first = aes::Block::default();
        first[..8].copy_from_slice(&unit.to_le_bytes());
        self.tweak.encrypt_block(&mut first);
        let mut tweak = u128::from_le_bytes(first.into());
        let (blocks, _) = bytes.as_chunks_mut::<16>();
        for bytes in blocks {
            let mut block: aes::Block = (u128::from_le_bytes(*bytes) ^ tweak).to_le_bytes().into();
            self.data.decrypt_block(&mut block);
            *bytes = (u128::from_le_bytes(block.into()) ^ tweak).to_le_bytes();
            tweak = (tweak << 1) ^ if tweak >> 127 == 1 { 0x87 } else { 0 };
        }
    }
}

#[test]
fn the_crcs_are_those_of_their_catalogue_entries() {
    assert_eq!(crc32c(b"123456789"), 0xE306_9283);
    assert_eq!(crc64_nvme(&[b"1234", b"56789"]), 0xAE8B_1486_0A79_9888);
}
