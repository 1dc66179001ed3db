//! Blocks bound to their place: encryption of runs of blocks together with their tag slots.
//!
//! A [`BlockCipher`] is what a keyslot holds: the keys of one zone in one generation, and the names
//! of both. With a *tagged* cipher every block has a [`Slot`] beside it, by which a read tells a
//! block that is as it was written from one that is not:
//!
//! - `aes-256-gcm`: nobody without the key makes a block that opens, changes one, or moves one from
//!   another block number, zone, generation or volume. What remains is a block and its slot put back
//!   together as they once were at this place in this generation; epochs and the records' root are
//!   there to notice what follows from that.
//! - `aes-256-xts+crc64`: the same against accidents. The CRC is no secret: who can write to the
//!   disk can make it right.
//!
//! With an untagged cipher there are no slots, and nothing is noticed.
//!
//! # What is authenticated
//!
//! The associated data of a block, 64 bytes, little-endian:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 20 | `"zonevault 1 block"`, padded with zeroes |
//! | 20 | 4 | id of the cipher |
//! | 24 | 16 | uuid of the volume |
//! | 40 | 4 | zone |
//! | 44 | 4 | flags of the slot |
//! | 48 | 8 | generation of the zone |
//! | 56 | 8 | block in the zone |
//!
//! AES-GCM takes it as it is, with the slot's first 12 bytes as the nonce. The CRC-64/NVMe runs over
//! it, those 12 bytes, and the ciphertext, which is that of `aes-256-xts` with the block's number in
//! the zone as its DUN.
//!
//! # Stamps
//!
//! Under one key no [`Stamp`] may be used twice: with AES-GCM two messages under one nonce give both
//! away, and the authentication with them. A key belongs to a zone in a generation, so it is the zone
//! that hands out stamps; nothing here remembers one.
//!
//! What is wiped: keys on drop, as said at [`crate::crypt`] and [`crate::crypt::gcm`]; every block
//! that is not proven. What is not: a bad block's plaintext may have been in vector registers.

mod slot;
#[cfg(test)]
mod tests;

use std::fmt;

use crc_fast::{CrcAlgorithm, Digest};
use thiserror::Error;
use uuid::Uuid;

use crate::crypt::gcm::Gcm;
use crate::crypt::{self, Cipher, KeyError, LengthError, ZoneCipher};
use crate::geometry::{Blocks, Generation, ZoneIndex};
use crate::zone::Epoch;

pub use slot::{SLOT_LEN, Slot, Stamp};

/// Bytes of associated data.
const AAD_LEN: usize = 64;
/// Where in them the block's number stands: all before it is the same for every block of a key.
const AAD_BLOCK: usize = 56;
/// First bytes of associated data: no other message under a key of ours begins like this.
const AAD_LABEL: &[u8; 20] = b"zonevault 1 block\0\0\0";

/// What a key is for, and every tag under it is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The volume.
    pub uuid: Uuid,
    /// The zone.
    pub zone: ZoneIndex,
    /// Its generation.
    pub generation: Generation,
}

/// Data, slots or block numbers that do not fit each other. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ShapeError {
    /// The data is no whole number of blocks.
    #[error(transparent)]
    Length(#[from] LengthError),
    /// Not as many slots as blocks, or slots where the cipher has none.
    #[error("{len} bytes of tag slots where {expected} are due")]
    Slots {
        /// Bytes that there should be.
        expected: usize,
        /// Bytes given.
        len: usize,
    },
    /// A block's number would be 2^64 or more.
    #[error("blocks past the last number there is")]
    BlockNumber,
}

/// Why blocks were not encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SealError {
    /// What was given does not fit together.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// A stamp without an epoch would make a slot that says "never written". Nothing was changed.
    #[error("no epoch to write under")]
    NoEpoch,
    /// The counters of the blocks would pass 2^32. Nothing was changed.
    #[error("no counters are left in this epoch")]
    CountersUsedUp,
    /// The library refused. Data and slots are wiped.
    #[error("the cipher failed")]
    Library,
}

/// Why not all blocks could be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OpenError {
    /// What was given does not fit together.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// Some blocks are not what was written there. The others are decrypted.
    #[error("{0}")]
    Bad(BadBlocks),
}

/// Blocks that are not what was written there; their bytes are wiped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadBlocks(Vec<Blocks>);

impl BadBlocks {
    /// The number in the zone of the first one.
    pub fn first(&self) -> Blocks {
        self.0.first().copied().unwrap_or_default()
    }

    /// How many, at least one.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The numbers of all of them, ascending.
    pub fn numbers(&self) -> &[Blocks] {
        &self.0
    }
}

impl fmt::Display for BadBlocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block {} of the zone fails its check", self.first().0)?;
        match self.count() {
            0 | 1 => Ok(()),
            count => write!(f, ", and {} after it", count - 1),
        }
    }
}

enum Mode {
    Xts(ZoneCipher),
    Gcm(Gcm),
    XtsCrc64 {
        xts: ZoneCipher,
        /// The CRC's state after the associated data that all blocks have in common.
        after_aad: u64,
    },
}

/// The keys of one zone in one generation, and how its blocks are encrypted and checked.
pub struct BlockCipher {
    cipher: Cipher,
    mode: Mode,
    /// The associated data of block 0, for which no flag is set.
    aad: [u8; AAD_LEN],
}

impl fmt::Debug for BlockCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockCipher")
            .field("cipher", &self.cipher)
            .finish_non_exhaustive()
    }
}

impl BlockCipher {
    /// Expands `key`, which is [`Cipher::key_len`] bytes long.
    ///
    /// # Errors
    /// [`KeyError`] if `cipher` cannot use the key.
    pub fn new(cipher: Cipher, key: &[u8], binding: Binding) -> Result<Self, KeyError> {
        let aad = first_aad(cipher, binding);
        let mode = match cipher {
            Cipher::Aes128Xts | Cipher::Aes256Xts => Mode::Xts(ZoneCipher::new(cipher, key)?),
            Cipher::Aes256Gcm => Mode::Gcm(Gcm::new(key)?),
            Cipher::Aes256XtsCrc64 => {
                let mut digest = Digest::new(CrcAlgorithm::Crc64Nvme);
                digest.update(&aad[..AAD_BLOCK]);
                Mode::XtsCrc64 {
                    xts: ZoneCipher::new(Cipher::Aes256Xts, key)?,
                    after_aad: digest.get_state(),
                }
            }
        };
        Ok(Self { cipher, mode, aad })
    }

    /// Bytes of the [arena](crate::arena) that the keys of one zone take, in one piece.
    pub const fn arena_bytes(cipher: Cipher) -> usize {
        match cipher {
            Cipher::Aes128Xts | Cipher::Aes256Xts | Cipher::Aes256XtsCrc64 => {
                ZoneCipher::ARENA_BYTES
            }
            Cipher::Aes256Gcm => Gcm::ARENA_BYTES,
        }
    }

    /// The cipher.
    pub const fn cipher(&self) -> Cipher {
        self.cipher
    }

    /// Whether blocks have tag slots.
    pub const fn is_tagged(&self) -> bool {
        self.cipher.is_tagged()
    }

    /// Encrypts whole blocks of `block_size` bytes in place, the first of which is block `first` of
    /// the zone, and fills their slots: [`SLOT_LEN`] bytes a block, none with an untagged cipher.
    ///
    /// The first block gets `stamp`, each after it the next counter. An untagged cipher ignores it.
    ///
    /// # Errors
    /// [`SealError`]. **Except with [`SealError::Library`] the data is then as it was: a caller who
    /// goes on would store plaintext.**
    pub fn seal(
        &self,
        block_size: usize,
        first: Blocks,
        stamp: Stamp,
        data: &mut [u8],
        slots: &mut [u8],
    ) -> Result<(), SealError> {
        let run = self.run(block_size, first, data.len(), slots.len())?;
        let slots_of_run = slots.as_chunks_mut().0;
        match &self.mode {
            Mode::Xts(xts) => xts
                .encrypt(block_size, first.0, data)
                .map_err(ShapeError::from)?,
            Mode::Gcm(gcm) => {
                run.check_stamps(stamp)?;
                if self.seal_gcm(gcm, run, stamp, data, slots_of_run).is_none() {
                    data.fill(0);
                    slots.fill(0);
                    return Err(SealError::Library);
                }
            }
            Mode::XtsCrc64 { xts, after_aad } => {
                run.check_stamps(stamp)?;
                xts.encrypt(block_size, first.0, data)
                    .map_err(ShapeError::from)?;
                let blocks = data.chunks_exact(block_size).zip(slots_of_run);
                for ((block, slot), (number, stamp)) in blocks.zip(run.stamps(stamp)) {
                    let tag = crc64(*after_aad, number, stamp, block);
                    *slot = Slot::new(stamp, tag).to_bytes();
                }
            }
        }
        Ok(())
    }

    /// `None` if the library fails.
    fn seal_gcm(
        &self,
        gcm: &Gcm,
        run: Run,
        stamp: Stamp,
        data: &mut [u8],
        slots: &mut [[u8; SLOT_LEN]],
    ) -> Option<()> {
        let mut aad = self.aad;
        let blocks = data.chunks_exact_mut(run.block_size).zip(slots);
        for ((block, slot), (number, stamp)) in blocks.zip(run.stamps(stamp)) {
            aad[AAD_BLOCK..].copy_from_slice(&number.to_le_bytes());
            let tag = gcm.seal(&stamp.to_bytes(), &aad, block).ok()?;
            *slot = Slot::new(stamp, tag).to_bytes();
        }
        Some(())
    }

    /// Checks and decrypts in place what [`BlockCipher::seal`] made.
    ///
    /// Whether a stamp is the newest of its block is for the caller to judge: every one that was ever
    /// used for this block under this key is accepted.
    ///
    /// # Errors
    /// [`OpenError::Bad`] names the blocks that are not what was written there. They are wiped; all
    /// others are decrypted. [`OpenError::Shape`] if nothing was done. Memory is allocated only to
    /// name bad blocks.
    pub fn open(
        &self,
        block_size: usize,
        first: Blocks,
        data: &mut [u8],
        slots: &[u8],
    ) -> Result<(), OpenError> {
        let run = self.run(block_size, first, data.len(), slots.len())?;
        let slots = slots.as_chunks().0;
        let bad = match &self.mode {
            Mode::Xts(xts) => {
                xts.decrypt(block_size, first.0, data)
                    .map_err(ShapeError::from)?;
                Vec::new()
            }
            Mode::Gcm(gcm) => self.open_gcm(gcm, run, data, slots),
            Mode::XtsCrc64 { xts, after_aad } => {
                let bad = find_bad_crc64(*after_aad, run, data, slots);
                decrypt_good(xts, run, data, &bad).map_err(ShapeError::from)?;
                bad
            }
        };
        if bad.is_empty() {
            Ok(())
        } else {
            Err(OpenError::Bad(BadBlocks(bad)))
        }
    }

    /// The bad blocks, which are wiped.
    fn open_gcm(
        &self,
        gcm: &Gcm,
        run: Run,
        data: &mut [u8],
        slots: &[[u8; SLOT_LEN]],
    ) -> Vec<Blocks> {
        let mut bad = Vec::new();
        let mut aad = self.aad;
        let blocks = data.chunks_exact_mut(run.block_size).zip(slots);
        for ((block, slot), number) in blocks.zip(run.first..) {
            let slot = Slot::parse(slot);
            aad[AAD_BLOCK..].copy_from_slice(&number.to_le_bytes());
            if !slot.is_meant() {
                block.fill(0);
                bad.push(Blocks(number));
            } else if gcm
                .open(&slot.stamp().to_bytes(), &aad, block, slot.tag())
                .is_err()
            {
                bad.push(Blocks(number));
            }
        }
        bad
    }

    /// Checks that data and slots fit each other and the cipher.
    fn run(
        &self,
        block_size: usize,
        first: Blocks,
        data_len: usize,
        slots_len: usize,
    ) -> Result<Run, ShapeError> {
        let blocks = crypt::count_blocks(block_size, data_len)?;
        let expected = if self.is_tagged() {
            blocks * SLOT_LEN
        } else {
            0
        };
        if slots_len != expected {
            return Err(ShapeError::Slots {
                expected,
                len: slots_len,
            });
        }
        let count = u64::try_from(blocks).ok();
        if count.and_then(|count| first.0.checked_add(count)).is_none() {
            return Err(ShapeError::BlockNumber);
        }
        Ok(Run {
            block_size,
            first: first.0,
            blocks,
        })
    }
}

/// Consecutive blocks of a zone, whose numbers are known to exist.
#[derive(Clone, Copy)]
struct Run {
    block_size: usize,
    first: u64,
    blocks: usize,
}

impl Run {
    /// Whether there are counters for all blocks from `stamp` on.
    fn check_stamps(self, stamp: Stamp) -> Result<(), SealError> {
        if stamp.epoch == Epoch(0) {
            return Err(SealError::NoEpoch);
        }
        let Some(after_first) = self.blocks.checked_sub(1) else {
            return Ok(());
        };
        u32::try_from(after_first)
            .ok()
            .and_then(|after| stamp.counter.checked_add(after))
            .map(|_| ())
            .ok_or(SealError::CountersUsedUp)
    }

    /// Number and stamp of every block; the stamps have been checked.
    fn stamps(self, stamp: Stamp) -> impl Iterator<Item = (u64, Stamp)> {
        let counters = stamp.counter..=u32::MAX;
        let epoch = stamp.epoch;
        (self.first..).zip(counters.map(move |counter| Stamp { epoch, counter }))
    }
}

/// The associated data of block 0.
fn first_aad(cipher: Cipher, binding: Binding) -> [u8; AAD_LEN] {
    let mut aad = [0; AAD_LEN];
    aad[..20].copy_from_slice(AAD_LABEL);
    aad[20..24].copy_from_slice(&u32::from(cipher.id()).to_le_bytes());
    aad[24..40].copy_from_slice(binding.uuid.as_bytes());
    aad[40..44].copy_from_slice(&binding.zone.0.to_le_bytes());
    // Bytes 44 to 48 are the flags, of which none is defined.
    aad[48..AAD_BLOCK].copy_from_slice(&binding.generation.0.to_le_bytes());
    aad
}

/// The tag of a block: its CRC, from the state after what all blocks have in common.
#[inline]
fn crc64(after_aad: u64, number: u64, stamp: Stamp, ciphertext: &[u8]) -> [u8; 16] {
    let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc64Nvme, after_aad);
    let mut own = [0; 20];
    own[..8].copy_from_slice(&number.to_le_bytes());
    own[8..].copy_from_slice(&stamp.to_bytes());
    digest.update(&own);
    digest.update(ciphertext);
    let mut tag = [0; 16];
    tag[..8].copy_from_slice(&digest.finalize().to_le_bytes());
    tag
}

/// The blocks whose slots do not fit them.
fn find_bad_crc64(after_aad: u64, run: Run, data: &[u8], slots: &[[u8; SLOT_LEN]]) -> Vec<Blocks> {
    let blocks = data.chunks_exact(run.block_size).zip(slots);
    let bad = blocks.zip(run.first..).filter(|((block, slot), number)| {
        let slot = Slot::parse(slot);
        !slot.is_meant() || crc64(after_aad, *number, slot.stamp(), block) != *slot.tag()
    });
    bad.map(|(_, number)| Blocks(number)).collect()
}

/// Wipes the bad blocks and decrypts the runs of good ones between them.
fn decrypt_good(
    xts: &ZoneCipher,
    run: Run,
    data: &mut [u8],
    bad: &[Blocks],
) -> Result<(), LengthError> {
    let (mut rest, mut number) = (data, run.first);
    for bad in bad {
        // A slice of our own data cannot have more blocks than a usize counts.
        let good = usize::try_from(bad.0 - number).unwrap_or(usize::MAX);
        let (before, after) =
            rest.split_at_mut(good.saturating_mul(run.block_size).min(rest.len()));
        let (wiped, after) = after.split_at_mut(run.block_size.min(after.len()));
        xts.decrypt(run.block_size, number, before)?;
        wiped.fill(0);
        (rest, number) = (after, bad.0 + 1);
    }
    xts.decrypt(run.block_size, number, rest)
}
