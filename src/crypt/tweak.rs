//! Tweak arithmetic: the part of XTS that is not AES.
//!
//! XTS (IEEE 1619, section 5) whitens cipher block `j` of a data unit with `T * x^j`, where `T` is
//! the encrypted data unit number and the product is taken in GF(2^128) modulo
//! `x^128 + x^7 + x^2 + x + 1`, bytes in little-endian order. Multiplying one tweak at a time by `x`
//! is a chain that no CPU can run in parallel, so everything here works on a [`Group`]: eight
//! consecutive tweaks, which all advance by `x^8` at once.

use aes::Block;
use aes::cipher::array::Array;

/// Cipher blocks in a [`Group`]. Eight is the most whose advance (`x^8`) shifts whole bytes, and
/// 128 bytes divide every block size the product has.
pub(super) const GROUP_BLOCKS: usize = 8;

/// Bytes in a [`Group`].
pub(super) const GROUP_BYTES: usize = GROUP_BLOCKS * 16;

/// Eight consecutive 16-byte cipher blocks as they lie in memory.
pub(super) type Group = [Block; GROUP_BLOCKS];

/// One way to compute eight tweaks at a time.
///
/// A value of the type is the proof that the CPU can run it; the methods take `self` for no other
/// reason. All of them are inlined into the function of the crate `aes` that runs the rounds, so
/// that tweaks stay in registers.
pub(super) trait TweakUnit: Copy {
    /// Eight 128-bit values, wherever this implementation likes to hold them.
    type Vector: Copy;

    /// `first`, `first * x`, ... `first * x^7`.
    fn spread(self, first: &Block) -> Self::Vector;

    /// Multiplies every value by `x^8`: from the tweaks of one group to those of the next.
    fn advance(self, tweaks: Self::Vector) -> Self::Vector;

    /// Reads a group of data.
    fn load(self, group: &Group) -> Self::Vector;

    /// Writes a group of data.
    fn store(self, vector: Self::Vector, group: &mut Group);

    /// Adds in GF(2^128).
    fn xor(self, a: Self::Vector, b: Self::Vector) -> Self::Vector;
}

/// Tweaks in plain integer arithmetic: the fallback, and the twin that the SIMD units are tested
/// against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Portable;

/// `t * x^k` for `k <= 8`.
///
/// The bits shifted out, `c`, have fewer than nine bits, so that folding them back in by
/// `x^128 = x^7 + x^2 + x + 1` cannot overflow again.
#[inline(always)]
const fn times_x_pow(t: u128, k: u32) -> u128 {
    let c = if k == 0 { 0 } else { t >> (128 - k) };
    (t << k) ^ c ^ (c << 1) ^ (c << 2) ^ (c << 7)
}

impl TweakUnit for Portable {
    type Vector = [u128; GROUP_BLOCKS];

    #[inline(always)]
    fn spread(self, first: &Block) -> Self::Vector {
        let first = u128::from_le_bytes(first.0);
        let mut tweaks = [first; GROUP_BLOCKS];
        for (k, tweak) in (0u32..).zip(&mut tweaks) {
            *tweak = times_x_pow(first, k);
        }
        tweaks
    }

    #[inline(always)]
    fn advance(self, tweaks: Self::Vector) -> Self::Vector {
        tweaks.map(|t| times_x_pow(t, 8))
    }

    #[inline(always)]
    fn load(self, group: &Group) -> Self::Vector {
        group.map(|block| u128::from_le_bytes(block.0))
    }

    #[inline(always)]
    fn store(self, vector: Self::Vector, group: &mut Group) {
        *group = vector.map(|value| Array(value.to_le_bytes()));
    }

    #[inline(always)]
    fn xor(self, mut a: Self::Vector, b: Self::Vector) -> Self::Vector {
        for (a, b) in a.iter_mut().zip(b) {
            *a ^= b;
        }
        a
    }
}
