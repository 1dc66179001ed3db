//! Blocks with tags in GB/s a core: `BlockCipher` beside plain calls of what it is made of.
//!
//! ```text
//! cargo bench --bench sealed                 # half a minute
//! ```
//! How it measures is said in `measure.rs`. "aws-lc" is one call of AES-256-GCM a block by the crate
//! `aws-lc-rs`, with as much associated data; "RustCrypto" the same by the crate `aes-gcm`;
//! "crc-fast" one CRC-64/NVMe a block and nothing encrypted; `aes-256-xts` is the `BlockCipher`
//! without tags. Opening must find what was sealed, so a turn of it seals and opens, and the figure
//! is that of both.
#![expect(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

#[path = "measure.rs"]
pub mod measure;

use std::hint::black_box;
use std::time::Duration;

use aes_gcm::aead::{AeadInOut, KeyInit};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use measure::{Buffer, LONGEST, Pace, measure, median};
use uuid::Uuid;
use zonevault::crypt::Cipher;
use zonevault::geometry::{Blocks, Generation, ZoneIndex};
use zonevault::integrity::{Binding, BlockCipher, SLOT_LEN, Stamp};
use zonevault::zone::Epoch;

/// Block size and length of a run, in bytes.
const SHAPES: [(&str, usize, usize); 4] = [
    ("lone 512", 512, 512),
    ("64K of 512", 512, LONGEST),
    ("lone 4K", 4096, 4096),
    ("64K of 4K", 4096, LONGEST),
];

/// Bytes of associated data, as many as a block of ours has.
const AAD_LEN: usize = 64;

/// What is measured.
#[derive(Clone, Copy)]
enum Work {
    Seal,
    SealAndOpen,
}

/// Who takes a turn.
enum Contender {
    Ours(BlockCipher),
    AwsLc(LessSafeKey),
    RustCrypto(Box<aes_gcm::Aes256Gcm>),
    CrcFast,
}

impl Contender {
    fn all() -> Vec<Self> {
        let key: Vec<u8> = (0..64).collect();
        let binding = Binding {
            uuid: Uuid::from_u128(1),
            zone: ZoneIndex(2),
            generation: Generation(3),
        };
        let ours = |cipher: Cipher| {
            let key = &key[..cipher.key_len()];
            Self::Ours(BlockCipher::new(cipher, key, binding).unwrap())
        };
        vec![
            ours(Cipher::Aes256Gcm),
            Self::AwsLc(LessSafeKey::new(
                UnboundKey::new(&AES_256_GCM, &key[..32]).unwrap(),
            )),
            Self::RustCrypto(Box::new(
                aes_gcm::Aes256Gcm::new_from_slice(&key[..32]).unwrap(),
            )),
            ours(Cipher::Aes256XtsCrc64),
            ours(Cipher::Aes256Xts),
            Self::CrcFast,
        ]
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Ours(keys) => keys.cipher().name(),
            Self::AwsLc(_) => "aws-lc",
            Self::RustCrypto(_) => "RustCrypto",
            Self::CrcFast => "crc-fast",
        }
    }

    /// GB/s of one turn.
    fn turn(
        &self,
        turn: Duration,
        work: Work,
        (block_size, len): (usize, usize),
        buffer: &mut Buffer,
    ) -> f64 {
        let data = &mut buffer.0[..len];
        let opens = matches!(work, Work::SealAndOpen);
        let aad = [7; AAD_LEN];
        match self {
            Self::Ours(keys) => {
                let slots = if keys.is_tagged() {
                    len / block_size
                } else {
                    0
                };
                let mut slots = vec![0; slots * SLOT_LEN];
                measure(turn, len, |number| {
                    let stamp = Stamp {
                        epoch: Epoch(1 + (number >> 24)),
                        counter: u32::try_from(number & 0xff_ffff).unwrap(),
                    };
                    let data = black_box(&mut *data);
                    keys.seal(block_size, Blocks(number), stamp, data, &mut slots)
                        .unwrap();
                    if opens {
                        keys.open(block_size, Blocks(number), data, black_box(&slots))
                            .unwrap();
                    }
                })
            }
            Self::AwsLc(key) => measure(turn, len, |number| {
                for (block, i) in black_box(&mut *data).chunks_exact_mut(block_size).zip(0..) {
                    let nonce = || Nonce::assume_unique_for_key(nonce(number, i));
                    let tag = key.seal_in_place_separate_tag(nonce(), Aad::from(&aad), block);
                    let tag = black_box(tag.unwrap());
                    if opens {
                        key.open_in_place_separate_tag(
                            nonce(),
                            Aad::from(&aad),
                            tag.as_ref(),
                            block,
                        )
                        .unwrap();
                    }
                }
            }),
            Self::RustCrypto(key) => measure(turn, len, |number| {
                for (block, i) in black_box(&mut *data).chunks_exact_mut(block_size).zip(0..) {
                    let nonce = nonce(number, i).into();
                    let tag = key
                        .encrypt_inout_detached(&nonce, &aad, (&mut *block).into())
                        .unwrap();
                    if opens {
                        key.decrypt_inout_detached(&nonce, &aad, block.into(), black_box(&tag))
                            .unwrap();
                    }
                }
            }),
            Self::CrcFast => measure(turn, len, |_| {
                for block in black_box(&*data).chunks_exact(block_size) {
                    black_box(crc_fast::crc64_nvme(block));
                    if opens {
                        black_box(crc_fast::crc64_nvme(black_box(block)));
                    }
                }
            }),
        }
    }
}

/// A nonce for block `i` of call `number`.
fn nonce(number: u64, i: u32) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&number.to_le_bytes());
    nonce[8..].copy_from_slice(&i.to_le_bytes());
    nonce
}

fn table(title: &str, work: Work, pace: Pace) {
    let contenders = Contender::all();
    let mut buffer = Buffer::new();
    let mut figures = vec![[const { vec![] }; SHAPES.len()]; contenders.len()];
    for _ in 0..pace.rounds {
        for (contender, figures) in contenders.iter().zip(&mut figures) {
            for ((_, block_size, len), figures) in SHAPES.into_iter().zip(figures) {
                figures.push(contender.turn(pace.turn, work, (block_size, len), &mut buffer));
            }
        }
    }
    println!("\n{title}, GB/s");
    print!("{:22}", "");
    for (name, ..) in SHAPES {
        print!("{name:>12}");
    }
    println!();
    for (contender, figures) in contenders.iter().zip(&mut figures) {
        print!("{:22}", contender.name());
        for figures in figures {
            print!("{:12.2}", median(figures).unwrap());
        }
        println!();
    }
}

fn main() {
    let pace = Pace::full().unwrap_or(Pace::GLIMPSE);
    table("seal", Work::Seal, pace);
    table("seal and open", Work::SealAndOpen, pace);
}
