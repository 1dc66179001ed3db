//! The tag slot of a block: under which stamp it was encrypted, and what proves it.

use crate::zone::Epoch;

/// Bytes of a tag slot.
pub const SLOT_LEN: usize = 32;

/// Bytes at the start of a slot that hold the stamp: the nonce of AES-GCM.
pub(super) const STAMP_LEN: usize = 12;

/// What makes an encryption of a block unlike every other one under the same key: never used twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Stamp {
    /// The epoch of the disk in which the block was written; never 0 in a stamp.
    pub epoch: Epoch,
    /// Counts the blocks written in one zone, generation and epoch.
    pub counter: u32,
}

impl Stamp {
    /// As it stands in a slot, and the nonce of AES-GCM.
    pub(super) fn to_bytes(self) -> [u8; STAMP_LEN] {
        let mut bytes = [0; STAMP_LEN];
        let (epoch, counter) = bytes.split_at_mut(8);
        epoch.copy_from_slice(&self.epoch.0.to_le_bytes());
        counter.copy_from_slice(&self.counter.to_le_bytes());
        bytes
    }
}

/// The tag slot of one block: [`SLOT_LEN`] bytes, little-endian.
///
/// | offset | size | field |
/// |---|---|---|
/// | 0 | 8 | epoch of the disk in which the block was written; 0: never written |
/// | 8 | 4 | counter |
/// | 12 | 4 | flags, none is defined: 0 |
/// | 16 | 16 | tag |
///
/// The tag of `aes-256-gcm` is that of GCM. The tag of `aes-256-xts+crc64` is a CRC-64/NVMe in 8
/// bytes, and 8 bytes of zero. Slots cannot be compared: whether a tag is right is for the cipher to
/// say, in constant time.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    stamp: Stamp,
    flags: u32,
    tag: [u8; 16],
}

impl Slot {
    /// Reads a slot. Every content is one: whether it is right, only [`super::BlockCipher::open`]
    /// can tell.
    pub fn parse(bytes: &[u8; SLOT_LEN]) -> Self {
        let (mut epoch, mut counter, mut flags, mut tag) = ([0; 8], [0; 4], [0; 4], [0; 16]);
        epoch.copy_from_slice(&bytes[..8]);
        counter.copy_from_slice(&bytes[8..STAMP_LEN]);
        flags.copy_from_slice(&bytes[STAMP_LEN..16]);
        tag.copy_from_slice(&bytes[16..]);
        Self {
            stamp: Stamp {
                epoch: Epoch(u64::from_le_bytes(epoch)),
                counter: u32::from_le_bytes(counter),
            },
            flags: u32::from_le_bytes(flags),
            tag,
        }
    }

    /// The slot of a block that was encrypted under `stamp`.
    pub(super) const fn new(stamp: Stamp, tag: [u8; 16]) -> Self {
        Self {
            stamp,
            flags: 0,
            tag,
        }
    }

    pub(super) fn to_bytes(self) -> [u8; SLOT_LEN] {
        let mut bytes = [0; SLOT_LEN];
        bytes[..STAMP_LEN].copy_from_slice(&self.stamp.to_bytes());
        bytes[STAMP_LEN..16].copy_from_slice(&self.flags.to_le_bytes());
        bytes[16..].copy_from_slice(&self.tag);
        bytes
    }

    /// The stamp, which is not proven by being there.
    pub const fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// The tag.
    pub(super) const fn tag(&self) -> &[u8; 16] {
        &self.tag
    }

    /// Nothing was ever written: every byte is zero.
    pub fn is_blank(&self) -> bool {
        self.to_bytes() == [0; SLOT_LEN]
    }

    /// Whether the slot may be that of a block: it has an epoch, and no flag that is not defined.
    pub(super) const fn is_meant(&self) -> bool {
        self.stamp.epoch.0 != 0 && self.flags == 0
    }
}
