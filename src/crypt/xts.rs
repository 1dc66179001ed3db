//! XTS over runs of data units, in batches as wide as the crate `aes` works.
//!
//! A run of data units is handed over in one visit to the crate's backend, and a batch may span
//! several of them. One block and one tweak at a time, as textbooks have it, would leave nine tenths
//! of the speed on the table.
//!
//! All of it is generic and must end up inside the crate's function for the CPU at hand: hence
//! `inline(always)`, and `codegen-units = 1` in the release profile, without which the compiler
//! leaves calls in the loop and two thirds of the speed are gone.

use aes::Block;
use aes::cipher::array::{Array, ArraySize};
use aes::cipher::block::{
    BlockCipherDecBackend, BlockCipherDecClosure, BlockCipherEncBackend, BlockCipherEncClosure,
};
use aes::cipher::consts::U16;
use aes::cipher::inout::InOut;
use aes::cipher::typenum::Unsigned;
use aes::cipher::{BlockCipherDecrypt, BlockCipherEncrypt, BlockSizeUser};

use super::tweak::{GROUP_BYTES, Group, Portable, TweakUnit, Tweaks, Walk};

/// Data units whose first tweaks are encrypted together: one full batch of the widest backend.
const UNITS_AT_ONCE: usize = 64;

/// From so many first tweaks on, a padded batch costs less than single blocks: at two AES
/// instructions a cycle and 14 rounds, 112 cycles for any batch of 64 against 7 for a block.
const PAD_UNITS_FROM: usize = 17;

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

    /// Encrypts data units of `unit` groups in place, numbered from `first` up.
    ///
    /// `unit` is not 0 and `data` is a whole number of units: the caller has checked.
    #[inline]
    pub(super) fn encrypt<E: Engine>(
        &self,
        engine: E,
        unit: usize,
        first: u128,
        data: &mut [Group],
    ) {
        self.runs(engine, unit, first, data, |run| {
            self.data.encrypt_with_backend(run);
        });
    }

    /// Decrypts data units of `unit` groups in place, numbered from `first` up.
    ///
    /// `unit` is not 0 and `data` is a whole number of units: the caller has checked.
    #[inline]
    pub(super) fn decrypt<E: Engine>(
        &self,
        engine: E,
        unit: usize,
        first: u128,
        data: &mut [Group],
    ) {
        self.runs(engine, unit, first, data, |run| {
            self.data.decrypt_with_backend(run);
        });
    }

    /// Cuts `data` into runs of data units whose first tweaks are ready.
    #[inline(always)]
    fn runs<E: Engine>(
        &self,
        engine: E,
        unit: usize,
        first: u128,
        data: &mut [Group],
        mut crypt: impl FnMut(Run<'_, E>),
    ) {
        if data.len() == unit {
            let mut starts = [Array(first.to_le_bytes())];
            self.tweak.encrypt_block(&mut starts[0]);
            return crypt(Run {
                engine,
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
                engine,
                unit,
                starts: &starts[..units],
                data,
            });
        }
    }
}

/// Consecutive data units, to be visited by a backend of the crate `aes`.
struct Run<'a, E> {
    engine: E,
    /// Groups in a data unit.
    unit: usize,
    /// The encrypted number of each data unit.
    starts: &'a [Block],
    data: &'a mut [Group],
}

impl<E> BlockSizeUser for Run<'_, E> {
    type BlockSize = U16;
}

impl<E: Engine> BlockCipherEncClosure for Run<'_, E> {
    #[inline(always)]
    fn call<B: BlockCipherEncBackend<BlockSize = U16>>(self, backend: &B) {
        self.engine.run(
            &Encrypting(backend),
            Walk::new(self.unit, self.starts),
            self.data,
        );
    }
}

impl<E: Engine> BlockCipherDecClosure for Run<'_, E> {
    #[inline(always)]
    fn call<B: BlockCipherDecBackend<BlockSize = U16>>(self, backend: &B) {
        self.engine.run(
            &Decrypting(backend),
            Walk::new(self.unit, self.starts),
            self.data,
        );
    }
}

/// AES in one direction.
pub(super) trait Rounds {
    /// Blocks that the backend works on in parallel.
    type Batch: ArraySize;
    /// Runs a whole batch in place.
    fn batch(&self, blocks: &mut Array<Block, Self::Batch>);
    /// Runs one block in place.
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

/// A way to run XTS over data units whose first tweaks are ready.
pub(super) trait Engine: TweakUnit {
    /// Encrypts or decrypts the data units of `walk`, which are `data`.
    #[inline(always)]
    fn run<R: Rounds>(self, rounds: &R, walk: Walk<'_>, data: &mut [Group]) {
        // As many groups as make whole batches. VAES in AVX2 registers works on 30 blocks, every
        // other backend on a power of two up to 64.
        if R::Batch::USIZE == 30 {
            staged::<_, _, 15>(self, rounds, walk, data);
        } else {
            staged::<_, _, 8>(self, rounds, walk, data);
        }
    }
}

impl Engine for Portable {}

/// Whitens `N` groups in place, runs their rounds, whitens again, and so on.
#[inline(always)]
pub(super) fn staged<U: TweakUnit, R: Rounds, const N: usize>(
    unit: U,
    rounds: &R,
    mut walk: Walk<'_>,
    data: &mut [Group],
) {
    let mut tweaks = Tweaks::<N>::default();
    for groups in data.chunks_mut(N) {
        unit.fill(&mut walk, &mut tweaks.0);
        unit.whiten(groups, &tweaks.0);
        all_rounds(rounds, groups.as_flattened_mut());
        unit.whiten(groups, &tweaks.0);
    }
}

/// AES over any number of blocks.
#[inline(always)]
fn all_rounds<R: Rounds>(rounds: &R, blocks: &mut [Block]) {
    let (batches, tail) = Array::<Block, R::Batch>::slice_as_chunks_mut(blocks);
    for batch in batches {
        rounds.batch(batch);
    }
    // A batch of more than a few costs about half as much as its blocks one by one.
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
