//! Tweak arithmetic: the part of XTS that is not AES.
//!
//! XTS (IEEE 1619, section 5) whitens cipher block `j` of a data unit with `T * x^j`, where `T` is
//! the encrypted data unit number and the product is taken in GF(2^128) modulo
//! `x^128 + x^7 + x^2 + x + 1`, bytes in little-endian order. Multiplying one tweak at a time by `x`
//! is a chain that no CPU can run in parallel, so everything here works on a [`Group`]: eight
//! consecutive tweaks, which all advance by `x^8` at once.

use core::slice;

use aes::Block;
use aes::cipher::array::Array;

/// Cipher blocks in a [`Group`]. Eight, because then `x^8` advances all of them by whole bytes, and
/// 128 bytes divide every block size the product has.
pub(super) const GROUP_BLOCKS: usize = 8;

/// Bytes in a [`Group`].
pub(super) const GROUP_BYTES: usize = GROUP_BLOCKS * 16;

/// Eight consecutive 16-byte cipher blocks as they lie in memory.
pub(super) type Group = [Block; GROUP_BLOCKS];

/// Tweaks of `N` groups. On a cache line of their own: a vector that straddles two costs twice.
#[repr(align(64))]
pub(super) struct Tweaks<const N: usize>(pub(super) [Group; N]);

impl<const N: usize> Default for Tweaks<N> {
    fn default() -> Self {
        Self([Group::default(); N])
    }
}

/// `x^128` reduced: `x^7 + x^2 + x + 1`.
pub(super) const REDUCTION: u8 = 0x87;

/// Where in a run of data units the tweaks stand.
pub(super) struct Walk<'a> {
    /// Groups in a data unit.
    unit: usize,
    /// Groups of the current data unit whose tweaks were not yet made.
    left: usize,
    /// The first tweaks of the data units not yet begun.
    starts: slice::Iter<'a, Block>,
}

impl<'a> Walk<'a> {
    /// At the beginning of data units of `unit` groups, whose first tweaks are `starts`.
    #[inline]
    pub(super) fn new(unit: usize, starts: &'a [Block]) -> Self {
        Self {
            unit,
            left: 0,
            starts: starts.iter(),
        }
    }

    /// Makes tweaks for the next groups, from `last`, those of the previous group.
    ///
    /// `spread` makes a group of tweaks from the first, `advance` the next group from a group. Where
    /// the run ends early, the rest of `tweaks` stays as it is.
    #[inline(always)]
    pub(super) fn fill<V: Copy>(
        &mut self,
        tweaks: &mut [Group],
        mut last: V,
        spread: impl Fn(&Block) -> V,
        advance: impl Fn(V) -> V,
        store: impl Fn(V, &mut Group),
    ) {
        for group in tweaks {
            last = if self.left > 0 {
                advance(last)
            } else if let Some(start) = self.starts.next() {
                self.left = self.unit;
                spread(start)
            } else {
                return;
            };
            self.left -= 1;
            store(last, group);
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl Walk<'_> {
    /// Whether the previous `groups` groups and the next `groups` lie in one data unit.
    #[inline]
    pub(super) fn stays_in_unit(&self, groups: usize) -> bool {
        self.left >= groups && self.unit - self.left >= groups
    }

    /// Goes on by groups that [`Walk::stays_in_unit`].
    #[inline]
    pub(super) fn skip(&mut self, groups: usize) {
        self.left -= groups;
    }
}

/// One way to compute tweaks. A value of the type is the proof that this CPU can run it.
pub(super) trait TweakUnit: Copy {
    /// Makes the tweaks of the next `N` groups, or of those that are left, if fewer.
    ///
    /// `tweaks` holds what the previous call for this `walk` left there: the state is in the data.
    fn fill<const N: usize>(self, walk: &mut Walk<'_>, tweaks: &mut [Group; N]);

    /// Adds `tweaks` to `data`, group by group.
    fn whiten(self, data: &mut [Group], tweaks: &[Group]);
}

/// Tweaks in integer arithmetic: the fallback, and the twin that the SIMD units are tested against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Portable;

/// `t * x`, without a branch on the bit that falls off: tweaks are secret.
#[inline(always)]
const fn times_x(t: u128) -> u128 {
    let all_ones_if_carry = (t >> 127).wrapping_neg();
    (t << 1) ^ (all_ones_if_carry & REDUCTION as u128)
}

/// `first` times `x^0` to `x^7`, one after the other: the integer units are idle while the rounds of
/// the group before still run, and have the time for a chain.
#[inline(always)]
fn eight_from(first: u128) -> [u128; GROUP_BLOCKS] {
    let mut tweaks = [first; GROUP_BLOCKS];
    for i in 1..GROUP_BLOCKS {
        tweaks[i] = times_x(tweaks[i - 1]);
    }
    tweaks
}

#[inline(always)]
fn to_integers(group: &Group) -> [u128; GROUP_BLOCKS] {
    group.map(|block| u128::from_le_bytes(block.0))
}

impl TweakUnit for Portable {
    #[inline(always)]
    fn fill<const N: usize>(self, walk: &mut Walk<'_>, tweaks: &mut [Group; N]) {
        let last = tweaks.last().map_or([0; GROUP_BLOCKS], to_integers);
        walk.fill(
            tweaks,
            last,
            |start| eight_from(u128::from_le_bytes(start.0)),
            |last| eight_from(times_x(last[GROUP_BLOCKS - 1])),
            |made, group| *group = made.map(|t| Array(t.to_le_bytes())),
        );
    }

    #[inline(always)]
    fn whiten(self, data: &mut [Group], tweaks: &[Group]) {
        let tweaks = tweaks.as_flattened();
        for (block, tweak) in data.as_flattened_mut().iter_mut().zip(tweaks) {
            let sum = u128::from_le_bytes(block.0) ^ u128::from_le_bytes(tweak.0);
            block.0 = sum.to_le_bytes();
        }
    }
}
