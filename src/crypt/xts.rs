//! XTS over runs of data units, in batches as wide as the crate `aes` works.
//!
//! A run is encrypted in one visit to the crate's backend: tweaks, whitening and rounds are compiled
//! together with the features of the CPU at hand, and a batch may span several data units. A naive
//! XTS (one block, one tweak, one call) leaves nine tenths of the speed on the table.

use aes::Block;
use aes::cipher::array::{Array, ArraySize};
use aes::cipher::block::{
    BlockCipherDecBackend, BlockCipherDecClosure, BlockCipherEncBackend, BlockCipherEncClosure,
};
use aes::cipher::consts::U16;
use aes::cipher::inout::InOut;
use aes::cipher::typenum::Unsigned;
use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, BlockSizeUser};

use super::tweak::{GROUP_BLOCKS, GROUP_BYTES, Group, TweakUnit};

/// Data units whose first tweaks are encrypted together: one full batch of the widest backend.
const UNITS_AT_ONCE: usize = 64;

/// First tweaks beyond which a padded batch costs less than as many single blocks (14 rounds at two
/// a cycle: 7 cycles for a block alone, 112 for a batch of 64).
const PAD_UNITS_FROM: usize = 17;

/// Width of the batch, in groups, that is kept in registers from whitening to whitening.
const FUSED_GROUPS: usize = 8;

/// Most groups that are whitened before their rounds run, where the backend's batch is not
/// [`FUSED_GROUPS`] wide: 2 KiB of data and as much of tweaks stay in the first-level cache.
const MAX_GROUPS: usize = 16;

/// The two keys of XTS, expanded: `data` runs over the data, `tweak` over the data unit numbers.
pub(super) struct Xts<D, T> {
    data: D,
    tweak: T,
}

impl<D, T> Xts<D, T>
where
    D: BlockCipherEncrypt<BlockSize = U16> + BlockCipherDecrypt<BlockSize = U16>,
    T: BlockCipherEncrypt<BlockSize = U16>,
{
    /// `data` is Key 1 of IEEE 1619, `tweak` is its Key 2.
    pub(super) fn new(data: D, tweak: T) -> Self {
        Self { data, tweak }
    }

    /// Encrypts data units of `unit` groups in place; the first has number `first`.
    #[inline]
    pub(super) fn encrypt<U: TweakUnit>(
        &self,
        tweaks: U,
        unit: usize,
        first: u128,
        data: &mut [Group],
    ) {
        self.runs(tweaks, unit, first, data, |run| {
            self.data.encrypt_with_backend(run);
        });
    }

    /// Decrypts data units of `unit` groups in place; the first has number `first`.
    #[inline]
    pub(super) fn decrypt<U: TweakUnit>(
        &self,
        tweaks: U,
        unit: usize,
        first: u128,
        data: &mut [Group],
    ) {
        self.runs(tweaks, unit, first, data, |run| {
            self.data.decrypt_with_backend(run);
        });
    }

    /// Cuts `data` into runs of data units whose first tweaks are ready.
    #[inline(always)]
    fn runs<U: TweakUnit>(
        &self,
        tweaks: U,
        unit: usize,
        first: u128,
        data: &mut [Group],
        mut crypt: impl FnMut(Run<'_, U>),
    ) {
        if data.len() == unit {
            let mut starts = [Array(first.to_le_bytes())];
            self.tweak.encrypt_block(&mut starts[0]);
            return crypt(Run {
                tweaks,
                unit,
                starts: &starts,
                data,
            });
        }
        let mut starts = [Block::default(); UNITS_AT_ONCE];
        let mut number = first;
        for data in data.chunks_mut(unit * UNITS_AT_ONCE) {
            let units = data.len() / unit;
            for start in &mut starts[..units] {
                start.0 = number.to_le_bytes();
                number = number.wrapping_add(1);
            }
            let batch = if units < PAD_UNITS_FROM {
                units
            } else {
                UNITS_AT_ONCE
            };
            self.tweak.encrypt_blocks(&mut starts[..batch]);
            crypt(Run {
                tweaks,
                unit,
                starts: &starts[..units],
                data,
            });
        }
    }
}

/// Consecutive data units, to be visited by a backend of the crate `aes`.
struct Run<'a, U> {
    tweaks: U,
    /// Groups in a data unit.
    unit: usize,
    /// The encrypted number of each data unit.
    starts: &'a [Block],
    data: &'a mut [Group],
}

impl<U> BlockSizeUser for Run<'_, U> {
    type BlockSize = U16;
}

impl<U: TweakUnit> BlockCipherEncClosure for Run<'_, U> {
    #[inline(always)]
    fn call<B: BlockCipherEncBackend<BlockSize = U16>>(self, backend: &B) {
        self.visit(&Encrypting(backend));
    }
}

impl<U: TweakUnit> BlockCipherDecClosure for Run<'_, U> {
    #[inline(always)]
    fn call<B: BlockCipherDecBackend<BlockSize = U16>>(self, backend: &B) {
        self.visit(&Decrypting(backend));
    }
}

/// AES in one direction.
trait Rounds {
    /// Blocks that the backend works on in parallel.
    type Batch: ArraySize;
    fn batch(&self, blocks: &mut Array<Block, Self::Batch>);
    fn block(&self, block: &mut Block);
}

struct Encrypting<'a, B>(&'a B);

impl<B: BlockCipherEncBackend<BlockSize = U16>> Rounds for Encrypting<'_, B> {
    type Batch = B::ParBlocksSize;

    #[inline(always)]
    fn batch(&self, blocks: &mut Array<Block, Self::Batch>) {
        self.0.encrypt_par_blocks(InOut::from(blocks));
    }

    #[inline(always)]
    fn block(&self, block: &mut Block) {
        self.0.encrypt_block(InOut::from(block));
    }
}

struct Decrypting<'a, B>(&'a B);

impl<B: BlockCipherDecBackend<BlockSize = U16>> Rounds for Decrypting<'_, B> {
    type Batch = B::ParBlocksSize;

    #[inline(always)]
    fn batch(&self, blocks: &mut Array<Block, Self::Batch>) {
        self.0.decrypt_par_blocks(InOut::from(blocks));
    }

    #[inline(always)]
    fn block(&self, block: &mut Block) {
        self.0.decrypt_block(InOut::from(block));
    }
}

impl<U: TweakUnit> Run<'_, U> {
    #[inline(always)]
    fn visit<R: Rounds>(self, rounds: &R) {
        let Some(walk) = Walk::new(self.tweaks, self.unit, self.starts) else {
            return;
        };
        if R::Batch::USIZE == FUSED_GROUPS * GROUP_BLOCKS {
            fused(rounds, walk, self.data);
        } else {
            staged(rounds, walk, self.data);
        }
    }
}

/// The tweaks of a run, group after group.
struct Walk<'a, U: TweakUnit> {
    tweaks: U,
    unit: usize,
    /// Of the data units not yet begun.
    starts: core::slice::Iter<'a, Block>,
    /// Groups left in this data unit.
    left: usize,
    /// Tweaks of the next group, if any is left.
    next: U::Vector,
}

impl<'a, U: TweakUnit> Walk<'a, U> {
    #[inline(always)]
    fn new(tweaks: U, unit: usize, starts: &'a [Block]) -> Option<Self> {
        let mut starts = starts.iter();
        let next = tweaks.spread(starts.next()?);
        Some(Self {
            tweaks,
            unit,
            starts,
            left: unit,
            next,
        })
    }

    /// Tweaks of the next groups.
    #[inline(always)]
    fn fill(&mut self, out: &mut [U::Vector]) {
        if self.left >= out.len() {
            self.left -= out.len();
            for slot in out {
                *slot = self.next;
                self.next = self.tweaks.advance(self.next);
            }
            return;
        }
        for slot in out {
            if self.left == 0 {
                // A run has as many starts as units: past the last, nobody looks at the tweaks.
                if let Some(start) = self.starts.next() {
                    self.next = self.tweaks.spread(start);
                }
                self.left = self.unit;
            }
            *slot = self.next;
            self.next = self.tweaks.advance(self.next);
            self.left -= 1;
        }
    }
}

/// For backends with a batch of exactly [`FUSED_GROUPS`]: a batch is loaded once and stored once.
#[inline(always)]
fn fused<R: Rounds, U: TweakUnit>(rounds: &R, mut walk: Walk<'_, U>, data: &mut [Group]) {
    let (whole, tail) = data.as_chunks_mut::<FUSED_GROUPS>();
    for groups in whole {
        fused_batch(rounds, &mut walk, groups);
    }
    if tail.is_empty() {
        return;
    }
    // Half a batch is a lone block of 512 bytes. Its dead half costs rounds but no loads and stores.
    if let Ok(half) = <&mut [Group; FUSED_GROUPS / 2]>::try_from(&mut *tail) {
        return fused_batch(rounds, &mut walk, half);
    }
    let mut padded = [Group::default(); FUSED_GROUPS];
    padded[..tail.len()].copy_from_slice(tail);
    fused_batch(rounds, &mut walk, &mut padded);
    tail.copy_from_slice(&padded[..tail.len()]);
}

#[inline(always)]
fn fused_batch<R: Rounds, U: TweakUnit, const N: usize>(
    rounds: &R,
    walk: &mut Walk<'_, U>,
    groups: &mut [Group; N],
) {
    let tweaks = walk.tweaks;
    let mut whitening = [walk.next; N];
    walk.fill(&mut whitening);
    let mut batch = Array::<Block, R::Batch>::default();
    let (slots, _) = batch.as_chunks_mut::<GROUP_BLOCKS>();
    for ((slot, group), whitening) in slots.iter_mut().zip(&*groups).zip(whitening) {
        tweaks.store(tweaks.xor(tweaks.load(group), whitening), slot);
    }
    rounds.batch(&mut batch);
    let (slots, _) = batch.as_chunks_mut::<GROUP_BLOCKS>();
    for ((slot, group), whitening) in slots.iter().zip(groups).zip(whitening) {
        tweaks.store(tweaks.xor(tweaks.load(slot), whitening), group);
    }
}

/// For any other backend: whiten some groups in place, run their rounds, whiten again.
#[inline(always)]
fn staged<R: Rounds, U: TweakUnit>(rounds: &R, mut walk: Walk<'_, U>, data: &mut [Group]) {
    let tweaks = walk.tweaks;
    let mut whitening = [walk.next; MAX_GROUPS];
    for groups in data.chunks_mut(const { groups_of_whole_batches(R::Batch::USIZE) }) {
        let whitening = &mut whitening[..groups.len()];
        walk.fill(whitening);
        for (group, whitening) in groups.iter_mut().zip(&*whitening) {
            tweaks.store(tweaks.xor(tweaks.load(group), *whitening), group);
        }
        all_rounds(rounds, groups.as_flattened_mut());
        for (group, whitening) in groups.iter_mut().zip(&*whitening) {
            tweaks.store(tweaks.xor(tweaks.load(group), *whitening), group);
        }
    }
}

/// The most groups, up to [`MAX_GROUPS`], that are a whole number of batches of `batch` blocks.
const fn groups_of_whole_batches(batch: usize) -> usize {
    let mut groups = MAX_GROUPS;
    while groups > 1 && !(groups * GROUP_BLOCKS).is_multiple_of(batch) {
        groups -= 1;
    }
    if (groups * GROUP_BLOCKS).is_multiple_of(batch) {
        groups
    } else {
        MAX_GROUPS
    }
}

#[inline(always)]
fn all_rounds<R: Rounds>(rounds: &R, blocks: &mut [Block]) {
    let (batches, tail) = Array::<Block, R::Batch>::slice_as_chunks_mut(blocks);
    for batch in batches {
        rounds.batch(batch);
    }
    // A batch costs about half as much as its blocks one by one.
    if tail.len() * 2 >= R::Batch::USIZE {
        let mut padded = Array::<Block, R::Batch>::default();
        padded[..tail.len()].copy_from_slice(tail);
        rounds.batch(&mut padded);
        tail.copy_from_slice(&padded[..tail.len()]);
    } else {
        for block in tail {
            rounds.block(block);
        }
    }
}

/// `data` as groups. `None` if it is no whole number of them.
#[inline]
pub(super) fn as_groups(data: &mut [u8]) -> Option<&mut [Group]> {
    if !data.len().is_multiple_of(GROUP_BYTES) {
        return None;
    }
    let (blocks, _) = Block::slice_as_chunks_mut(data);
    let (groups, _) = blocks.as_chunks_mut();
    Some(groups)
}
