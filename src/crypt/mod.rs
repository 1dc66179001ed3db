//! Encryption of blocks: batched AES-XTS (IEEE 1619), and AES-GCM in [`gcm`].
//!
//! # XTS
//!
//! A [`ZoneCipher`] holds the expanded keys of one zone in one generation and encrypts runs of
//! blocks in place. The tweak of a block is its data unit number (DUN) as a 128-bit little-endian
//! integer, as in dm-crypt's `plain64` and blk-crypto. XTS hides what a block holds and binds it to
//! its DUN; it does not detect tampering, and equal plaintext written twice at one DUN under one key
//! shows as equal ciphertext.
//!
//! AES itself (key schedule, rounds, choice of instructions, constant-time fallback) is the crate
//! `aes`. This module adds the mode: `xts` is the batching, `tweak` the arithmetic of tweaks in
//! portable integers, `avx2` and `avx512` the same in vector registers, chosen when the program
//! runs. All `unsafe` of the cipher is in these two. It knows nothing of zones, files or requests.
//!
//! Data may lie anywhere, but is fastest on a 64-byte boundary: a vector across two cache lines
//! costs twice.
//!
//! What is wiped: the round keys, when a [`ZoneCipher`] is dropped. What is not: registers, and stack
//! slots that the compiler used for copies of round keys, tweaks and data on the way. With AVX-512 these
//! hold every round key four times over: a thread that encrypted calls
//! [`wipe_stack`](crate::arena::wipe_stack) before it sleeps or ends.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod cpu;
pub mod gcm;
#[cfg(test)]
mod tests;
mod tweak;
mod xts;

use core::fmt;
use core::str::FromStr;

use aes::cipher::KeyInit;
use aes::{Aes128, Aes128Enc, Aes256, Aes256Enc};
use subtle::ConstantTimeEq;
use thiserror::Error;
use zeroize::ZeroizeOnDrop;

use crate::arena::Guarded;

use self::tweak::{GROUP_BYTES, Group, Portable};
use self::xts::{Engine, Xts, as_groups};

/// Largest block in bytes: IEEE 1619-2025 limits a data unit to 2^20 cipher blocks of 16 bytes.
pub const BLOCK_SIZE_MAX: usize = 16 << 20;

/// The block size is a multiple of this many bytes, the step in which tweaks are computed.
pub const BLOCK_SIZE_STEP: usize = GROUP_BYTES;

/// Which cipher a disk uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cipher {
    /// AES-128 in XTS mode: a key of two times 128 bits.
    Aes128Xts,
    /// AES-256 in XTS mode: a key of two times 256 bits.
    Aes256Xts,
    /// AES-256 in Galois/counter mode: a key of 256 bits. Every block has a tag slot, and whatever is
    /// changed is noticed.
    Aes256Gcm,
    /// [`Cipher::Aes256Xts`] with a CRC-64 of every block in its tag slot: what changes by accident
    /// is noticed, what is changed on purpose is not.
    Aes256XtsCrc64,
}

/// Bytes of a block's tag slot, with the ciphers that have one.
pub const TAG_SLOT_BYTES: u32 = 32;

impl Cipher {
    /// Every cipher, in the order of their ids.
    pub const ALL: [Self; 4] = [
        Self::Aes128Xts,
        Self::Aes256Xts,
        Self::Aes256Gcm,
        Self::Aes256XtsCrc64,
    ];

    /// The number that stands for this cipher on disk.
    ///
    /// 0 is never valid, so that a zeroed header names no cipher: there is no null cipher.
    pub const fn id(self) -> u8 {
        match self {
            Self::Aes128Xts => 1,
            Self::Aes256Xts => 2,
            Self::Aes256Gcm => 3,
            Self::Aes256XtsCrc64 => 4,
        }
    }

    /// The cipher with this on-disk number; `None` if this version knows none.
    pub fn from_id(id: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|cipher| cipher.id() == id)
    }

    /// The name on the command line, as OpenSSL spells it; what is added to a cipher follows a `+`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes128Xts => "aes-128-xts",
            Self::Aes256Xts => "aes-256-xts",
            Self::Aes256Gcm => "aes-256-gcm",
            Self::Aes256XtsCrc64 => "aes-256-xts+crc64",
        }
    }

    /// Bytes of key; with XTS both halves together.
    pub const fn key_len(self) -> usize {
        match self {
            Self::Aes128Xts | Self::Aes256Gcm => 32,
            Self::Aes256Xts | Self::Aes256XtsCrc64 => 64,
        }
    }

    /// Whether every block has a tag slot, by which a read notices that the block has changed.
    pub const fn is_tagged(self) -> bool {
        match self {
            Self::Aes128Xts | Self::Aes256Xts => false,
            Self::Aes256Gcm | Self::Aes256XtsCrc64 => true,
        }
    }

    /// Bytes of a block's tag slot: [`TAG_SLOT_BYTES`], or 0 if there is none.
    pub const fn tag_slot_bytes(self) -> u32 {
        if self.is_tagged() { TAG_SLOT_BYTES } else { 0 }
    }
}

impl fmt::Display for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Cipher {
    type Err = UnknownCipher;

    fn from_str(name: &str) -> Result<Self, UnknownCipher> {
        Self::ALL
            .into_iter()
            .find(|cipher| cipher.name() == name)
            .ok_or_else(|| UnknownCipher(name.to_owned()))
    }
}

/// No cipher has this name.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("unknown cipher {0:?}: use aes-256-gcm, aes-256-xts, aes-128-xts or aes-256-xts+crc64")]
pub struct UnknownCipher(String);

/// Why a key was refused. Tells nothing of the key but its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum KeyError {
    /// The key is too short or too long.
    #[error("{cipher} takes a key of {} bytes, not {len}", .cipher.key_len())]
    Length {
        /// The cipher that the key was for.
        cipher: Cipher,
        /// Bytes given.
        len: usize,
    },
    /// Both halves are equal, which voids the security proof of XTS and is forbidden by
    /// IEEE 1619-2025 and FIPS 140-3 (implementation guidance C.I).
    #[error("the two halves of an XTS key must differ")]
    EqualHalves,
    /// The key is for a cipher that is not, or not only, XTS.
    #[error("{0} is more than XTS")]
    NotXts(Cipher),
    /// The library that has the cipher could not expand the key: it got no memory.
    #[error("the key could not be expanded")]
    Library,
}

/// The data is not a whole number of blocks, or the block size is none. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{len} bytes are no whole number of blocks of {block_size} bytes")]
pub struct LengthError {
    /// Block size given, in bytes.
    pub block_size: usize,
    /// Length of the data given, in bytes.
    pub len: usize,
}

/// Expanded keys of one zone in one generation.
///
/// The round keys live in the [arena](crate::arena), so that moving the value leaves no copy behind;
/// they are wiped on drop, and `Debug` does not show them.
pub struct ZoneCipher {
    keys: Guarded<Keys>,
    backend: Backend,
}

enum Keys {
    Aes128(Xts<Aes128, Aes128Enc>),
    Aes256(Xts<Aes256, Aes256Enc>),
}

/// The crate `aes` wipes round keys only with its feature `zeroize`: without it this does not build.
const _: () = {
    const fn wiped_on_drop<T: ZeroizeOnDrop>() {}
    wiped_on_drop::<Aes128>();
    wiped_on_drop::<Aes128Enc>();
    wiped_on_drop::<Aes256>();
    wiped_on_drop::<Aes256Enc>();
};

impl ZeroizeOnDrop for ZoneCipher {}

impl fmt::Debug for ZoneCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ZoneCipher")
            .field("cipher", &self.cipher())
            .field("backend", &self.backend)
            .finish_non_exhaustive()
    }
}

impl ZoneCipher {
    /// Bytes of the [arena](crate::arena) that hold its round keys.
    pub const ARENA_BYTES: usize = size_of::<Keys>();

    /// Expands `key`: the data key (Key 1 of IEEE 1619) and then the tweak key (Key 2).
    ///
    /// # Errors
    /// [`KeyError`] if `cipher` is not one of XTS alone, if the length is not [`Cipher::key_len`] or
    /// if the halves are equal.
    pub fn new(cipher: Cipher, key: &[u8]) -> Result<Self, KeyError> {
        Self::with_backend(cipher, key, Backend::best())
    }

    /// The same with the instructions to use, for tests and benchmarks.
    ///
    /// # Errors
    /// As [`ZoneCipher::new`].
    #[doc(hidden)]
    pub fn with_backend(cipher: Cipher, key: &[u8], backend: Backend) -> Result<Self, KeyError> {
        let wrong_length = KeyError::Length {
            cipher,
            len: key.len(),
        };
        let (data, tweak) = key
            .split_at_checked(cipher.key_len() / 2)
            .ok_or(wrong_length)?;
        let keys = Guarded::try_new(|| match cipher {
            Cipher::Aes128Xts => Ok(Keys::Aes128(Xts::new(
                Aes128::new_from_slice(data).map_err(|_| wrong_length)?,
                Aes128Enc::new_from_slice(tweak).map_err(|_| wrong_length)?,
            ))),
            Cipher::Aes256Xts => Ok(Keys::Aes256(Xts::new(
                Aes256::new_from_slice(data).map_err(|_| wrong_length)?,
                Aes256Enc::new_from_slice(tweak).map_err(|_| wrong_length)?,
            ))),
            Cipher::Aes256Gcm | Cipher::Aes256XtsCrc64 => Err(KeyError::NotXts(cipher)),
        })?;
        // In constant time, as anything that reads a key.
        if data.ct_eq(tweak).into() {
            return Err(KeyError::EqualHalves);
        }
        Ok(Self { keys, backend })
    }

    /// The cipher that the key is for.
    pub fn cipher(&self) -> Cipher {
        match *self.keys {
            Keys::Aes128(_) => Cipher::Aes128Xts,
            Keys::Aes256(_) => Cipher::Aes256Xts,
        }
    }

    /// Encrypts whole blocks of `block_size` bytes in place.
    ///
    /// The first block has the data unit number `first_dun`, the following ones count up from it.
    /// They do not wrap at 2^64: the carry goes into the upper half of the tweak, as in blk-crypto.
    /// No data is fine.
    ///
    /// # Errors
    /// [`LengthError`] if `block_size` is 0, no multiple of [`BLOCK_SIZE_STEP`] or more than
    /// [`BLOCK_SIZE_MAX`], or if `data` is no whole number of blocks. **The data is then as it was:
    /// a caller who goes on would store plaintext.**
    pub fn encrypt(
        &self,
        block_size: usize,
        first_dun: u64,
        data: &mut [u8],
    ) -> Result<(), LengthError> {
        let (unit, groups) = check_lengths(block_size, data)?;
        self.crypt(Direction::Encrypt, unit, first_dun.into(), groups);
        Ok(())
    }

    /// Decrypts what [`ZoneCipher::encrypt`] made.
    ///
    /// # Errors
    /// As [`ZoneCipher::encrypt`].
    pub fn decrypt(
        &self,
        block_size: usize,
        first_dun: u64,
        data: &mut [u8],
    ) -> Result<(), LengthError> {
        let (unit, groups) = check_lengths(block_size, data)?;
        self.crypt(Direction::Decrypt, unit, first_dun.into(), groups);
        Ok(())
    }

    /// Encrypts or decrypts one data unit of any whole number of 16-byte cipher blocks under a
    /// tweak of all 128 bits: published test vectors use such, the product does not.
    ///
    /// # Errors
    /// [`LengthError`] if `data` is empty or no multiple of 16 bytes.
    #[doc(hidden)]
    pub fn crypt_unit(
        &self,
        direction: Direction,
        tweak: u128,
        data: &mut [u8],
    ) -> Result<(), LengthError> {
        let len = data.len();
        if len == 0 || !len.is_multiple_of(16) {
            return Err(LengthError {
                block_size: len,
                len,
            });
        }
        // The blocks of a data unit do not depend on each other: those of the padding are cut off.
        let mut padded = data.to_vec();
        padded.resize(len.next_multiple_of(GROUP_BYTES), 0);
        let (unit, groups) = check_lengths(padded.len(), &mut padded)?;
        self.crypt(direction, unit, tweak, groups);
        data.copy_from_slice(&padded[..len]);
        Ok(())
    }

    fn crypt(&self, direction: Direction, unit: usize, first: u128, groups: &mut [Group]) {
        match self.backend.0 {
            Arithmetic::Portable => self.crypt_with(Portable, direction, unit, first, groups),
            #[cfg(target_arch = "x86_64")]
            Arithmetic::Avx2(avx2) => self.crypt_with(avx2, direction, unit, first, groups),
            #[cfg(target_arch = "x86_64")]
            Arithmetic::Avx512(avx512) => self.crypt_with(avx512, direction, unit, first, groups),
        }
    }

    #[inline(always)]
    fn crypt_with<E: Engine>(
        &self,
        engine: E,
        direction: Direction,
        unit: usize,
        first: u128,
        groups: &mut [Group],
    ) {
        match (&*self.keys, direction) {
            (Keys::Aes128(xts), Direction::Encrypt) => xts.encrypt(engine, unit, first, groups),
            (Keys::Aes128(xts), Direction::Decrypt) => xts.decrypt(engine, unit, first, groups),
            (Keys::Aes256(xts), Direction::Encrypt) => xts.encrypt(engine, unit, first, groups),
            (Keys::Aes256(xts), Direction::Decrypt) => xts.decrypt(engine, unit, first, groups),
        }
    }
}

/// Encrypt or decrypt.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Plaintext to ciphertext.
    Encrypt,
    /// Ciphertext to plaintext.
    Decrypt,
}

/// Blocks in `len` bytes.
///
/// # Errors
/// [`LengthError`] if `block_size` is 0, no multiple of [`BLOCK_SIZE_STEP`] or more than
/// [`BLOCK_SIZE_MAX`], or if `len` is no whole number of blocks.
pub(crate) fn count_blocks(block_size: usize, len: usize) -> Result<usize, LengthError> {
    let is_block_size =
        (1..=BLOCK_SIZE_MAX).contains(&block_size) && block_size.is_multiple_of(BLOCK_SIZE_STEP);
    if !is_block_size || !len.is_multiple_of(block_size) {
        return Err(LengthError { block_size, len });
    }
    Ok(len / block_size)
}

/// Groups in a block, and the data as groups.
fn check_lengths(block_size: usize, data: &mut [u8]) -> Result<(usize, &mut [Group]), LengthError> {
    let len = data.len();
    count_blocks(block_size, len)?;
    let groups = as_groups(data).ok_or(LengthError { block_size, len })?;
    Ok((block_size / GROUP_BYTES, groups))
}

/// The instructions that the tweak arithmetic uses. (Those of AES are chosen by the crate `aes`.)
///
/// A value exists only if this CPU has the instructions.
#[doc(hidden)]
#[derive(Clone, Copy)]
pub struct Backend(Arithmetic);

#[derive(Clone, Copy)]
enum Arithmetic {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
}

impl Backend {
    /// All that this CPU has, the fastest first. The portable one is always there and last.
    pub fn available() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let simd = [
            avx512::Avx512::detect().map(Arithmetic::Avx512),
            avx2::Avx2::detect().map(Arithmetic::Avx2),
        ];
        #[cfg(not(target_arch = "x86_64"))]
        let simd = [None];
        simd.into_iter()
            .flatten()
            .chain([Arithmetic::Portable])
            .map(Self)
    }

    fn best() -> Self {
        Self::available()
            .next()
            .unwrap_or(Self(Arithmetic::Portable))
    }

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self.0 {
            Arithmetic::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Arithmetic::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Arithmetic::Avx512(_) => "avx512",
        }
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
