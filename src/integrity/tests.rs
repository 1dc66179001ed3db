//! Unit tests of sealed blocks: the format against other implementations, every bit of what is
//! stored and of what a tag is bound to, and what the types promise.

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce};
use proptest::prelude::*;
use xts_mode::{Xts128, get_tweak_default};

use super::*;

const TAGGED: [Cipher; 2] = [Cipher::Aes256Gcm, Cipher::Aes256XtsCrc64];
const BLOCK: usize = 512;

const STAMP: Stamp = Stamp {
    epoch: Epoch(0x0123_4567_89ab_cdef),
    counter: 40,
};

const BINDING: Binding = Binding {
    uuid: Uuid::from_u128(0x6ba7_b810_9dad_11d1_80b4_00c0_4fd4_30c8),
    zone: ZoneIndex(3),
    generation: Generation(5),
};

fn key_bytes(cipher: Cipher) -> Vec<u8> {
    (0..64).take(cipher.key_len()).collect()
}

fn keys_for(cipher: Cipher, binding: Binding) -> BlockCipher {
    BlockCipher::new(cipher, &key_bytes(cipher), binding).unwrap()
}

fn keys(cipher: Cipher) -> BlockCipher {
    keys_for(cipher, BINDING)
}

fn plaintext(blocks: usize) -> Vec<u8> {
    (0..=250).cycle().take(blocks * BLOCK).collect()
}

/// Ciphertext and slots of `blocks` blocks from block `first` on.
fn sealed(keys: &BlockCipher, first: u64, blocks: usize) -> (Vec<u8>, Vec<u8>) {
    let mut data = plaintext(blocks);
    let mut slots = vec![0xee; blocks * keys.cipher().tag_slot_bytes() as usize];
    keys.seal(BLOCK, Blocks(first), STAMP, &mut data, &mut slots)
        .unwrap();
    (data, slots)
}

/// Numbers of the bad blocks, from block `first` on.
fn bad(keys: &BlockCipher, first: u64, data: &mut [u8], slots: &[u8]) -> Vec<u64> {
    match keys.open(BLOCK, Blocks(first), data, slots) {
        Ok(()) => vec![],
        Err(OpenError::Bad(bad)) => {
            assert_eq!(
                (bad.first(), bad.count()),
                (bad.numbers()[0], bad.numbers().len())
            );
            bad.numbers().iter().map(|block| block.0).collect()
        }
        Err(error) => panic!("{error}"),
    }
}

fn slot_at(slots: &[u8], index: usize) -> Slot {
    Slot::parse(&slots.as_chunks().0[index])
}

/// The associated data as the module says, put together from its parts.
fn aad_by_definition(cipher: Cipher, binding: Binding, block: u64) -> Vec<u8> {
    let mut label = b"zonevault 1 block".to_vec();
    label.resize(20, 0);
    [
        label.as_slice(),
        &u32::from(cipher.id()).to_le_bytes(),
        binding.uuid.as_bytes(),
        &binding.zone.0.to_le_bytes(),
        &[0; 4],
        &binding.generation.0.to_le_bytes(),
        &block.to_le_bytes(),
    ]
    .concat()
}

/// CRC-64/NVMe, a bit at a time.
fn crc64_by_bits(bytes: &[u8]) -> u64 {
    let mut crc = u64::MAX;
    for &byte in bytes {
        crc ^= u64::from(byte);
        for _ in 0..8 {
            let poly = if crc & 1 == 1 {
                0x9a6c_9329_ac4b_c9b5
            } else {
                0
            };
            crc = crc >> 1 ^ poly;
        }
    }
    !crc
}

/// One block's ciphertext and slot, by other implementations and the layout in `slot`.
fn by_definition(
    cipher: Cipher,
    binding: Binding,
    block: u64,
    stamp: Stamp,
    plaintext: &[u8],
) -> (Vec<u8>, Vec<u8>) {
    let key = key_bytes(cipher);
    let aad = aad_by_definition(cipher, binding, block);
    let mut slot = [
        stamp.epoch.0.to_le_bytes().as_slice(),
        &stamp.counter.to_le_bytes(),
    ]
    .concat();
    let mut data = plaintext.to_vec();
    let tag = if cipher == Cipher::Aes256Gcm {
        let nonce = Nonce::try_from(slot.as_slice()).unwrap();
        let gcm = Aes256Gcm::new_from_slice(&key).unwrap();
        let tag = gcm.encrypt_inout_detached(&nonce, &aad, data.as_mut_slice().into());
        tag.unwrap().to_vec()
    } else {
        let (data_key, tweak_key) = key.split_at(32);
        let xts = Xts128::new(
            aes::Aes256::new_from_slice(data_key).unwrap(),
            aes::Aes256::new_from_slice(tweak_key).unwrap(),
        );
        xts.encrypt_area(&mut data, plaintext.len(), block.into(), get_tweak_default);
        let crc = crc64_by_bits(&[&aad, &slot, &data].map(Vec::as_slice).concat());
        [crc.to_le_bytes(), [0; 8]].concat()
    };
    slot.extend([0; 4]);
    slot.extend(tag);
    (data, slot)
}

#[test]
fn the_crc_is_that_of_the_catalogue() {
    // The check value of CRC-64/NVME: its CRC of the nine digits.
    assert_eq!(crc64_by_bits(b"123456789"), 0xae8b_1486_0a79_9888);
}

proptest! {
    /// Runs of blocks are what the specification says, by RustCrypto's AES-GCM, `xts-mode` and a CRC
    /// from its polynomial; and they open again.
    #[test]
    fn sealed_blocks_are_those_of_other_implementations(
        cipher in prop::sample::select(TAGGED.as_slice()),
        (uuid, zone, generation) in any::<(u128, u32, u64)>(),
        first in prop_oneof![0..1000u64, any::<u64>().prop_map(|n| n >> 1)],
        epoch in 1..=u64::MAX,
        counter in prop_oneof![0..1000u32, (0..14u32).prop_map(|n| u32::MAX - 20 + n)],
        blocks in 0..8usize,
        steps in prop_oneof![Just(4usize), Just(32), 1..9usize],
        seed in any::<u8>(),
    ) {
        let block_size = steps * 128;
        let binding = Binding {
            uuid: Uuid::from_u128(uuid),
            zone: ZoneIndex(zone),
            generation: Generation(generation),
        };
        let plaintext: Vec<u8> = (seed..=u8::MAX).cycle().take(blocks * block_size).collect();
        let (mut expected_data, mut expected_slots) = (vec![], vec![]);
        for (i, block) in plaintext.chunks_exact(block_size).enumerate() {
            let i = u32::try_from(i).unwrap();
            let stamp = Stamp { epoch: Epoch(epoch), counter: counter + i };
            let (data, slot) =
                by_definition(cipher, binding, first + u64::from(i), stamp, block);
            expected_data.extend(data);
            expected_slots.extend(slot);
        }
        let keys = keys_for(cipher, binding);
        let mut data = plaintext.clone();
        let mut slots = vec![0xee; blocks * SLOT_LEN];
        let stamp = Stamp { epoch: Epoch(epoch), counter };
        keys.seal(block_size, Blocks(first), stamp, &mut data, &mut slots).unwrap();
        prop_assert!(data == expected_data && slots == expected_slots);
        prop_assert_eq!(keys.open(block_size, Blocks(first), &mut data, &slots), Ok(()));
        prop_assert!(data == plaintext);
    }

    /// Any set of blocks may be bad: exactly those are named and wiped, all others can be read.
    #[test]
    fn exactly_the_bad_blocks_are_named(
        cipher in prop::sample::select(TAGGED.as_slice()),
        first in 0..1000u64,
        hits in prop::collection::vec((any::<bool>(), 0..BLOCK + SLOT_LEN, 0..8u32), 1..12),
    ) {
        let keys = keys(cipher);
        let (mut data, mut slots) = sealed(&keys, first, hits.len());
        let mut expected = plaintext(hits.len());
        let mut numbers = vec![];
        for (i, &(hit, byte, bit)) in hits.iter().enumerate().filter(|(_, hit)| hit.0) {
            let byte = match byte.checked_sub(BLOCK) {
                None => &mut data[i * BLOCK + byte],
                Some(byte) => &mut slots[i * SLOT_LEN + byte],
            };
            *byte ^= u8::from(hit) << bit;
            expected[i * BLOCK..][..BLOCK].fill(0);
            numbers.push(first + i as u64);
        }
        prop_assert_eq!(bad(&keys, first, &mut data, &slots), numbers);
        prop_assert!(data == expected);
    }
}

#[test]
fn untagged_ciphers_are_those_of_the_zone_cipher() {
    for cipher in [Cipher::Aes128Xts, Cipher::Aes256Xts] {
        let keys = keys(cipher);
        assert!(!keys.is_tagged());
        let mut expected = plaintext(3);
        let xts = ZoneCipher::new(cipher, &key_bytes(cipher)).unwrap();
        xts.encrypt(BLOCK, 9, &mut expected).unwrap();
        // No stamp is needed.
        let mut data = plaintext(3);
        keys.seal(BLOCK, Blocks(9), Stamp::default(), &mut data, &mut [])
            .unwrap();
        assert_eq!(data, expected);
        keys.open(BLOCK, Blocks(9), &mut data, &[]).unwrap();
        assert_eq!(data, plaintext(3));
    }
}

/// Every bit of the ciphertext and of the slot.
#[test]
fn no_bit_can_flip_unnoticed() {
    for cipher in TAGGED {
        let keys = keys(cipher);
        let (data, slots) = sealed(&keys, 7, 1);
        for bit in 0..BLOCK * 8 {
            let mut data = data.clone();
            data[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(bad(&keys, 7, &mut data, &slots), [7], "{cipher} data {bit}");
            assert!(data.iter().all(|byte| *byte == 0), "{cipher} data {bit}");
        }
        for bit in 0..SLOT_LEN * 8 {
            let (mut data, mut slots) = (data.clone(), slots.clone());
            slots[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(bad(&keys, 7, &mut data, &slots), [7], "{cipher} slot {bit}");
            assert!(data.iter().all(|byte| *byte == 0), "{cipher} slot {bit}");
        }
    }
}

/// Every bit of the associated data: with equal key bytes, so that the tag alone can tell.
#[test]
fn no_bit_that_a_tag_is_bound_to_can_flip_unnoticed() {
    for cipher in TAGGED {
        let mut keys = keys(cipher);
        let (data, slots) = sealed(&keys, 7, 1);
        let aad = keys.aad;
        // The block's number is its argument, and the slot's flags were flipped in the slot.
        for bit in (0..AAD_BLOCK * 8).filter(|bit| !(44..48).contains(&(bit / 8))) {
            keys.aad = aad;
            keys.aad[bit / 8] ^= 1 << (bit % 8);
            if let Mode::XtsCrc64 { after_aad, .. } = &mut keys.mode {
                let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
                digest.update(&keys.aad[..AAD_BLOCK]);
                *after_aad = digest.get_state();
            }
            assert_eq!(
                bad(&keys, 7, &mut data.clone(), &slots),
                [7],
                "{cipher} {bit}"
            );
        }
        for bit in 0..63 {
            let other = 7 ^ 1 << bit;
            let keys = self::keys(cipher);
            assert_eq!(bad(&keys, other, &mut data.clone(), &slots), [other]);
        }
    }
}

#[test]
fn volume_zone_generation_and_place_bind_each() {
    let others = [
        Binding {
            uuid: Uuid::nil(),
            ..BINDING
        },
        Binding {
            zone: ZoneIndex(4),
            ..BINDING
        },
        Binding {
            generation: Generation(6),
            ..BINDING
        },
    ];
    for cipher in TAGGED {
        let (data, slots) = sealed(&keys(cipher), 7, 2);
        for other in others {
            let keys = keys_for(cipher, other);
            assert_eq!(
                bad(&keys, 7, &mut data.clone(), &slots),
                [7, 8],
                "{other:?}"
            );
        }
        let keys = keys(cipher);
        assert_eq!(bad(&keys, 8, &mut data.clone(), &slots), [8, 9]);
        assert_eq!(bad(&keys, 7, &mut data.clone(), &slots), [0_u64; 0]);
        // Two blocks of one run change places, each with its slot.
        let swapped = [&data[BLOCK..], &data[..BLOCK]].concat();
        let swapped_slots = [&slots[SLOT_LEN..], &slots[..SLOT_LEN]].concat();
        assert_eq!(bad(&keys, 7, &mut swapped.clone(), &swapped_slots), [7, 8]);
    }
}

/// The id of the cipher is bound too: of two with equal keys, neither opens what the other sealed.
#[test]
fn another_key_opens_nothing() {
    for cipher in TAGGED {
        let (data, slots) = sealed(&keys(cipher), 7, 2);
        let mut key = key_bytes(cipher);
        key[0] ^= 1;
        let other = BlockCipher::new(cipher, &key, BINDING).unwrap();
        let mut opened = data.clone();
        if cipher == Cipher::Aes256Gcm {
            assert_eq!(bad(&other, 7, &mut opened, &slots), [7, 8]);
        } else {
            // A CRC is no proof of the key: it is over the ciphertext.
            assert_eq!(bad(&other, 7, &mut opened, &slots), [0_u64; 0]);
            assert_ne!(opened, plaintext(2));
        }
    }
}

#[test]
fn a_blank_slot_is_never_good() {
    for cipher in TAGGED {
        let keys = keys(cipher);
        let (mut data, mut slots) = sealed(&keys, 0, 3);
        assert!(!slot_at(&slots, 1).is_blank());
        slots[SLOT_LEN..2 * SLOT_LEN].fill(0);
        assert!(slot_at(&slots, 1).is_blank());
        assert_eq!(bad(&keys, 0, &mut data, &slots), [1]);
        // Nor is one with a right tag: this makes what a daemon without an epoch would write.
        let stamp = Stamp {
            epoch: Epoch(0),
            counter: 1,
        };
        let (mut data, slot) = by_definition(cipher, BINDING, 1, stamp, &plaintext(1));
        assert_eq!(bad(&keys, 1, &mut data, &slot), [1]);
    }
    let mut bytes = [0; SLOT_LEN];
    bytes[31] = 1;
    assert!(!Slot::parse(&bytes).is_blank());
}

#[test]
fn stamps_count_up_with_the_blocks() {
    for cipher in TAGGED {
        let (_, slots) = sealed(&keys(cipher), 1000, 3);
        let stamps = slots
            .as_chunks()
            .0
            .iter()
            .map(|slot| Slot::parse(slot).stamp());
        let expected = [40, 41, 42].map(|counter| Stamp { counter, ..STAMP });
        assert_eq!(stamps.collect::<Vec<_>>(), expected);
    }
}

#[test]
fn counters_do_not_wrap() {
    for cipher in TAGGED {
        let keys = keys(cipher);
        let seal = |counter, blocks: usize| {
            let (mut data, mut slots) = (plaintext(blocks), vec![0xee; blocks * SLOT_LEN]);
            let stamp = Stamp { counter, ..STAMP };
            let result = keys.seal(BLOCK, Blocks(0), stamp, &mut data, &mut slots);
            if result.is_err() {
                assert_eq!(data, plaintext(blocks));
                assert!(slots.iter().all(|byte| *byte == 0xee));
            }
            result
        };
        assert_eq!(seal(u32::MAX, 0), Ok(()));
        assert_eq!(seal(u32::MAX, 1), Ok(()));
        assert_eq!(seal(u32::MAX - 1, 2), Ok(()));
        assert_eq!(seal(u32::MAX, 2), Err(SealError::CountersUsedUp));
    }
}

#[test]
fn what_does_not_fit_changes_nothing() {
    for cipher in Cipher::ALL {
        let keys = keys(cipher);
        let slot = cipher.tag_slot_bytes() as usize;
        for (block_size, first, data_len, slots_len) in [
            (0, 0, 512, slot),
            (100, 0, 100, slot),
            (512, 0, 513, slot),
            (512, 0, 1024, slot + 1),
            (512, 0, 512, slot + 32),
            (512, 0, 0, 32),
            (512, u64::MAX, 1024, 2 * slot),
        ] {
            let (mut data, mut slots) = (vec![7; data_len], vec![7; slots_len]);
            let first = Blocks(first);
            let error = keys.seal(block_size, first, STAMP, &mut data, &mut slots);
            let Err(SealError::Shape(shape)) = error else {
                panic!("{cipher} {block_size} {data_len} {slots_len}: {error:?}");
            };
            let opened = keys.open(block_size, first, &mut data, &slots);
            assert_eq!(opened, Err(OpenError::Shape(shape)));
            assert_eq!((data, slots), (vec![7; data_len], vec![7; slots_len]));
        }
    }
    for cipher in TAGGED {
        let (mut data, mut slots) = (plaintext(1), vec![0; SLOT_LEN]);
        let stamp = Stamp::default();
        let result = keys(cipher).seal(BLOCK, Blocks(0), stamp, &mut data, &mut slots);
        assert_eq!(result, Err(SealError::NoEpoch));
        assert_eq!(data, plaintext(1));
    }
}

#[test]
fn messages_name_blocks() {
    let bad = BadBlocks(vec![Blocks(5)]);
    assert_eq!(bad.to_string(), "block 5 of the zone fails its check");
    let bad = BadBlocks(vec![Blocks(5), Blocks(9)]);
    assert_eq!(
        OpenError::Bad(bad).to_string(),
        "block 5 of the zone fails its check, and 1 after it"
    );
}

#[test]
fn keys_are_refused_and_never_shown() {
    for cipher in Cipher::ALL {
        let key = key_bytes(cipher);
        let error = BlockCipher::new(cipher, &key[1..], BINDING).unwrap_err();
        assert!(matches!(error, KeyError::Length { .. }), "{error}");
        let debug = format!("{:?}", keys(cipher));
        assert_eq!(debug, format!("BlockCipher {{ cipher: {cipher:?}, .. }}"));
    }
    fn shared<T: Send + Sync>() {}
    shared::<BlockCipher>();
}
