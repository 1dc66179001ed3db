//! Unit tests of the cipher: tweaks against their definition, batching against every width of
//! backend, and what the types promise. Published vectors are in `tests/vectors.rs`.

use aes::cipher::array::{Array, ArraySize};
use aes::cipher::block::{
    BlockCipherDecBackend, BlockCipherDecClosure, BlockCipherEncBackend, BlockCipherEncClosure,
};
use aes::cipher::consts::{U1, U2, U4, U8, U16, U30, U32, U64};
use aes::cipher::inout::InOut;
use aes::cipher::{
    BlockCipherDecrypt, BlockCipherEncrypt, BlockSizeUser, KeyInit, ParBlocks, ParBlocksSizeUser,
};
use aes::{Aes128, Aes256, Block};
use proptest::prelude::*;
use xts_mode::{Xts128, get_tweak_default};

use super::tweak::{GROUP_BLOCKS, Portable, TweakUnit, Walk};
use super::*;

/// `t * x` as IEEE 1619 writes it: byte by byte, with the carry of each into the next.
fn times_x_by_bytes(t: Block) -> Block {
    let mut product = Block::default();
    let mut carry = 0;
    for (to, from) in product.iter_mut().zip(t) {
        *to = from << 1 | carry;
        carry = from >> 7;
    }
    if carry == 1 {
        product[0] ^= 0x87;
    }
    product
}

/// The tweaks of all groups of the data units that begin with `starts`.
fn tweaks_by_definition(unit: usize, starts: &[Block]) -> Vec<Group> {
    let mut tweaks = vec![];
    for &start in starts {
        let mut t = start;
        for _ in 0..unit {
            tweaks.push(Group::default().map(|_| {
                let now = t;
                t = times_x_by_bytes(t);
                now
            }));
        }
    }
    tweaks
}

/// Tweaks made `N` groups at a time.
fn tweaks_by<U: TweakUnit, const N: usize>(
    made_by: U,
    unit: usize,
    starts: &[Block],
) -> Vec<Group> {
    let mut walk = Walk::new(unit, starts);
    let mut made = [Group::default(); N];
    let mut tweaks = vec![];
    while tweaks.len() < unit * starts.len() {
        made_by.fill(&mut walk, &mut made);
        tweaks.extend_from_slice(&made);
    }
    tweaks.truncate(unit * starts.len());
    tweaks
}

fn check_tweaks<U: TweakUnit>(made_by: U, unit: usize, starts: &[Block]) {
    let expected = tweaks_by_definition(unit, starts);
    assert_eq!(tweaks_by::<U, 1>(made_by, unit, starts), expected);
    assert_eq!(tweaks_by::<U, 8>(made_by, unit, starts), expected);
    assert_eq!(tweaks_by::<U, 15>(made_by, unit, starts), expected);

    let data = tweaks_by_definition(expected.len(), &[Array([0x5a; 16])]);
    let mut sum = data.clone();
    made_by.whiten(&mut sum, &expected);
    for ((sum, data), tweak) in sum
        .iter()
        .flatten()
        .zip(data.iter().flatten())
        .zip(expected.iter().flatten())
    {
        for ((sum, data), tweak) in sum.iter().zip(data).zip(tweak) {
            assert_eq!(*sum, data ^ tweak);
        }
    }
}

proptest! {
    /// Every unit makes the tweaks of the standard, whatever the size of data units.
    #[test]
    fn tweaks_are_those_of_the_standard(
        unit in 1usize..40,
        starts in prop::collection::vec(any::<[u8; 16]>(), 1..5),
    ) {
        let starts: Vec<Block> = starts.into_iter().map(Array).collect();
        check_tweaks(Portable, unit, &starts);
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(avx2) = avx2::Avx2::detect() {
                check_tweaks(avx2, unit, &starts);
            }
            if let Some(avx512) = avx512::Avx512::detect() {
                check_tweaks(avx512, unit, &starts);
            }
        }
    }
}

/// Tweaks of which every bit falls off at some time.
#[test]
fn tweaks_of_edge_values() {
    for start in [[0; 16], [0xff; 16], [0x80; 16], [0x01; 16]] {
        for backend in Backend::available() {
            match backend.0 {
                Arithmetic::Portable => check_tweaks(Portable, 33, &[Array(start)]),
                #[cfg(target_arch = "x86_64")]
                Arithmetic::Avx2(avx2) => check_tweaks(avx2, 33, &[Array(start)]),
                #[cfg(target_arch = "x86_64")]
                Arithmetic::Avx512(avx512) => check_tweaks(avx512, 33, &[Array(start)]),
            }
        }
    }
}

/// AES with a backend of `N` parallel blocks, as other CPUs have.
struct WithBatch<C, N>(C, core::marker::PhantomData<N>);

/// What a closure sees of [`WithBatch`].
struct BatchBackend<'a, C, N>(&'a C, core::marker::PhantomData<N>);

impl<C, N> BlockSizeUser for WithBatch<C, N> {
    type BlockSize = U16;
}

impl<C, N> BlockSizeUser for BatchBackend<'_, C, N> {
    type BlockSize = U16;
}

impl<C, N: ArraySize> ParBlocksSizeUser for BatchBackend<'_, C, N> {
    type ParBlocksSize = N;
}

impl<C: BlockCipherEncrypt<BlockSize = U16>, N: ArraySize> BlockCipherEncBackend
    for BatchBackend<'_, C, N>
{
    fn encrypt_block(&self, block: InOut<'_, '_, Block>) {
        self.0.encrypt_block_inout(block);
    }

    fn encrypt_par_blocks(&self, blocks: InOut<'_, '_, ParBlocks<Self>>) {
        self.0.encrypt_blocks_inout(blocks.into_buf());
    }
}

impl<C: BlockCipherDecrypt<BlockSize = U16>, N: ArraySize> BlockCipherDecBackend
    for BatchBackend<'_, C, N>
{
    fn decrypt_block(&self, block: InOut<'_, '_, Block>) {
        self.0.decrypt_block_inout(block);
    }

    fn decrypt_par_blocks(&self, blocks: InOut<'_, '_, ParBlocks<Self>>) {
        self.0.decrypt_blocks_inout(blocks.into_buf());
    }
}

impl<C: BlockCipherEncrypt<BlockSize = U16>, N: ArraySize> BlockCipherEncrypt for WithBatch<C, N> {
    fn encrypt_with_backend(&self, f: impl BlockCipherEncClosure<BlockSize = U16>) {
        f.call(&BatchBackend::<C, N>(&self.0, self.1));
    }
}

impl<C: BlockCipherDecrypt<BlockSize = U16>, N: ArraySize> BlockCipherDecrypt for WithBatch<C, N> {
    fn decrypt_with_backend(&self, f: impl BlockCipherDecClosure<BlockSize = U16>) {
        f.call(&BatchBackend::<C, N>(&self.0, self.1));
    }
}

fn aes256(key: u8) -> Aes256 {
    Aes256::new(&Array([key; 32]))
}

fn check_batch<N: ArraySize, E: Engine>(engine: E, unit: usize, units: usize) {
    let xts = Xts::new(
        WithBatch::<_, N>(aes256(1), core::marker::PhantomData),
        WithBatch::<_, N>(aes256(2), core::marker::PhantomData),
    );
    let plaintext: Vec<u8> = (0..unit * units * GROUP_BYTES)
        .map(|i| (i * 7 + i / 251).to_le_bytes()[0])
        .collect();
    let mut expected = plaintext.clone();
    Xts128::new(aes256(1), aes256(2)).encrypt_area(
        &mut expected,
        unit * GROUP_BYTES,
        77,
        get_tweak_default,
    );
    let mut data = plaintext.clone();
    xts.encrypt(engine, unit, 77, as_groups(&mut data).unwrap());
    assert!(
        data == expected,
        "{} blocks, {units} units of {unit} groups",
        N::USIZE
    );
    xts.decrypt(engine, unit, 77, as_groups(&mut data).unwrap());
    assert!(
        data == plaintext,
        "{} blocks, {units} units of {unit} groups",
        N::USIZE
    );
}

fn check_batches<E: Engine>(engine: E) {
    for unit in [1, 2, 4, 5, 8, 9, 15, 16, 31, 32] {
        for units in [1, 2, 3, 8, 17, 65] {
            check_batch::<U1, E>(engine, unit, units);
            check_batch::<U2, E>(engine, unit, units);
            check_batch::<U4, E>(engine, unit, units);
            check_batch::<U8, E>(engine, unit, units);
            check_batch::<U30, E>(engine, unit, units);
            check_batch::<U32, E>(engine, unit, units);
            check_batch::<U64, E>(engine, unit, units);
        }
    }
}

/// The batches of CPUs that the tests do not run on: 1 to 4 in software, 8 with AES-NI and on ARM,
/// 30 with VAES in AVX2 registers, 64 in AVX-512 registers.
#[test]
fn every_width_of_backend_gives_the_same() {
    check_batches(Portable);
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(avx2) = avx2::Avx2::detect() {
            check_batches(avx2);
        }
        if let Some(avx512) = avx512::Avx512::detect() {
            check_batches(avx512);
        }
    }
}

/// IEEE 1619, vector 1. Its halves are equal, so that a `ZoneCipher` refuses the key.
#[test]
fn ieee_1619_vector_1() {
    let zero = [0; 16].into();
    let xts = Xts::new(Aes128::new(&zero), Aes128::new(&zero));
    let mut data = [0; GROUP_BYTES];
    xts.encrypt(Portable, 1, 0, as_groups(&mut data).unwrap());
    let expected = [
        0x91, 0x7c, 0xf6, 0x9e, 0xbd, 0x68, 0xb2, 0xec, 0x9b, 0x9f, 0xe9, 0xa3, 0xea, 0xdd, 0xa6,
        0x92, 0xcd, 0x43, 0xd2, 0xf5, 0x95, 0x98, 0xed, 0x85, 0x8c, 0x02, 0xc2, 0x65, 0x2f, 0xbf,
        0x92, 0x2e,
    ];
    assert_eq!(data[..32], expected);
}

/// The ciphers that a [`ZoneCipher`] is for.
const XTS: [Cipher; 2] = [Cipher::Aes128Xts, Cipher::Aes256Xts];

#[test]
fn ciphers_have_stable_ids_and_names() {
    let facts = Cipher::ALL.map(|cipher| (cipher.id(), cipher.to_string(), cipher.key_len()));
    let expected = [
        (1, "aes-128-xts".to_owned(), 32),
        (2, "aes-256-xts".to_owned(), 64),
        (3, "aes-256-gcm".to_owned(), 32),
        (4, "aes-256-xts+crc64".to_owned(), 64),
    ];
    assert_eq!(facts, expected);
    for cipher in Cipher::ALL {
        assert_eq!(Cipher::from_id(cipher.id()), Some(cipher));
        assert_eq!(cipher.name().parse(), Ok(cipher));
    }
    let slots = Cipher::ALL.map(|cipher| (cipher.is_tagged(), cipher.tag_slot_bytes()));
    assert_eq!(slots, [(false, 0), (false, 0), (true, 32), (true, 32)]);
    // There is no null cipher.
    for id in (0..=u8::MAX).filter(|id| !(1..=4).contains(id)) {
        assert_eq!(Cipher::from_id(id), None, "{id}");
    }
    for name in ["", "null", "AES-256-XTS", "aes-256-xts ", "aes-256-gcm-siv"] {
        let error = name.parse::<Cipher>().unwrap_err().to_string();
        assert!(error.contains(&format!("{name:?}")), "{error}");
        for cipher in Cipher::ALL {
            assert!(error.contains(cipher.name()), "{error}");
        }
    }
}

#[test]
fn keys_of_another_length_are_refused() {
    for cipher in XTS {
        let key: Vec<u8> = (0..200).collect();
        for len in (0..200).filter(|&len| len != cipher.key_len()) {
            let error = ZoneCipher::new(cipher, &key[..len]).unwrap_err();
            assert_eq!(error, KeyError::Length { cipher, len });
        }
        assert_eq!(
            ZoneCipher::new(cipher, &key[..cipher.key_len()])
                .unwrap()
                .cipher(),
            cipher
        );
    }
    let error = ZoneCipher::new(Cipher::Aes256Xts, &[1; 32]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "aes-256-xts takes a key of 64 bytes, not 32"
    );
}

#[test]
fn a_cipher_that_is_more_than_xts_is_refused() {
    let key: Vec<u8> = (0..64).collect();
    for cipher in [Cipher::Aes256Gcm, Cipher::Aes256XtsCrc64] {
        let error = ZoneCipher::new(cipher, &key[..cipher.key_len()]).unwrap_err();
        assert_eq!(error, KeyError::NotXts(cipher));
    }
}

#[test]
fn keys_with_equal_halves_are_refused() {
    for cipher in XTS {
        let half = cipher.key_len() / 2;
        let mut key: Vec<u8> = (0..half)
            .chain(0..half)
            .map(|i| i.to_le_bytes()[0])
            .collect();
        let error = ZoneCipher::new(cipher, &key).unwrap_err();
        assert_eq!(error, KeyError::EqualHalves);
        // One bit apart is apart.
        key[cipher.key_len() - 1] ^= 1;
        assert!(ZoneCipher::new(cipher, &key).is_ok());
    }
}

fn some_cipher() -> ZoneCipher {
    let key: Vec<u8> = (100..164).collect();
    ZoneCipher::new(Cipher::Aes256Xts, &key).unwrap()
}

#[test]
fn lengths_out_of_contract_change_nothing() {
    let keys = some_cipher();
    let plaintext = vec![7; 8192];
    for (block_size, len) in [
        (0, 0),
        (0, 512),
        (16, 512),
        (127, 127),
        (520, 520),
        (BLOCK_SIZE_MAX + BLOCK_SIZE_STEP, 0),
        (usize::MAX, 512),
        (512, 511),
        (512, 513),
        (4096, 512),
        (4096, 4096 + 512),
    ] {
        let mut data = plaintext[..len].to_vec();
        let error = LengthError { block_size, len };
        assert_eq!(keys.encrypt(block_size, 0, &mut data), Err(error));
        assert_eq!(keys.decrypt(block_size, 0, &mut data), Err(error));
        assert_eq!(data, plaintext[..len], "{block_size} {len}");
    }
    for len in [0, 15, 17] {
        let mut data = plaintext[..len].to_vec();
        let result = keys.crypt_unit(Direction::Encrypt, 0, &mut data);
        assert!(result.is_err());
        assert_eq!(data, plaintext[..len]);
    }
    assert_eq!(keys.encrypt(512, 0, &mut []), Ok(()));
}

/// A block lies between others: they are not touched, and each has a ciphertext of its own.
#[test]
fn equal_blocks_at_two_duns_differ() {
    let keys = some_cipher();
    let mut data = vec![0; 3 * 512];
    keys.encrypt(512, 10, &mut data).unwrap();
    let (first, rest) = data.split_at(512);
    let (second, third) = rest.split_at(512);
    assert!(first != second && second != third && first != third);
    let mut alone = vec![0; 512];
    keys.encrypt(512, 11, &mut alone).unwrap();
    assert_eq!(second, alone);
}

#[test]
fn debug_shows_no_key() {
    let debug = format!("{:?}", some_cipher());
    assert!(
        debug.starts_with("ZoneCipher { cipher: Aes256Xts, backend: "),
        "{debug}"
    );
    // Nothing but those two words: no digits of key bytes (100, 101, ...) or hexadecimal.
    assert!(debug.ends_with(", .. }") && debug.len() < 70, "{debug}");
}

#[test]
fn the_portable_backend_is_always_there() {
    let names: Vec<_> = Backend::available().map(Backend::name).collect();
    assert_eq!(names.last(), Some(&"portable"));
    #[cfg(target_arch = "x86_64")]
    assert_eq!(names.contains(&"avx2"), is_x86_feature_detected!("avx2"));
}

/// Keyslots are shared by workers.
#[test]
fn zone_ciphers_go_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<ZoneCipher>();
}

/// The group is a whole number of vectors of every width.
#[test]
fn a_group_is_128_bytes() {
    assert_eq!(size_of::<Group>(), GROUP_BYTES);
    assert_eq!(GROUP_BLOCKS * 16, 128);
}
