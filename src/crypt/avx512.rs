//! Tweak arithmetic and whitening in AVX-512 registers, fused with the rounds of the crate `aes`.
//!
//! Blocks are loaded, whitened, encrypted, whitened and stored without touching memory in between:
//! [`load`], [`add`] and [`store`] need no feature that the crate's AVX-512 function lacks, so that
//! they are inlined there. The tweaks come from a function of its own, which may then use carry-less
//! multiplication.
//!
//! The crate's batch is 64 blocks, in 16 registers. With 15 round keys beside them nothing is left
//! for tweaks, and the compiler falls back to two registers at a time, which a core whose other
//! thread is busy cannot keep filled. Eight registers leave room, and eight are enough to hide the
//! latency of the rounds: so half a batch is given, and the rounds of the half that is not there are
//! optimised away, because its result is used nowhere.
#![expect(
    unsafe_code,
    reason = "vector loads and stores, and calls of functions that need a CPU feature"
)]

use core::arch::x86_64::*;

use aes::Block;
use aes::cipher::array::Array;
use aes::cipher::typenum::Unsigned;

use super::tweak::{GROUP_BLOCKS, Group, REDUCTION, TweakUnit, Tweaks, Walk};
use super::xts::{Engine, Rounds, staged};

/// Blocks in a batch of the crate's AVX-512 backend.
const BATCH_BLOCKS: usize = 64;

/// Groups that go through the rounds together: half a batch.
const FUSED: usize = BATCH_BLOCKS / GROUP_BLOCKS / 2;

/// Groups whose tweaks are made together: so many that [`times_x64`] leads to those of the next.
const AHEAD: usize = 8;

/// A group of tweaks, four in a register.
type Vectors = [__m512i; 2];

/// Proof that this CPU has AVX-512F, AVX-512BW, VPCLMULQDQ and VAES.
///
/// VAES is not used here. But without it the crate `aes` runs no function with AVX-512, there would
/// be nothing to fuse with, and AVX2 serves such a CPU better.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx512(());

impl Avx512 {
    /// The proof, if this CPU has the instructions and the operating system saves the registers.
    pub(super) fn detect() -> Option<Self> {
        let detected = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("vpclmulqdq")
            && is_x86_feature_detected!("vaes");
        detected.then_some(Self(()))
    }

    /// `data` and `tweaks` into `sum`.
    #[inline(always)]
    fn add(self, data: &Group, tweaks: &Group, sum: &mut Group) {
        // SAFETY: `self` is the proof of AVX-512F.
        unsafe { add(data, tweaks, sum) }
    }
}

impl TweakUnit for Avx512 {
    #[inline(always)]
    fn fill<const N: usize>(self, walk: &mut Walk<'_>, tweaks: &mut [Group; N]) {
        // SAFETY: `self` is the proof of the features.
        unsafe { fill(walk, tweaks) }
    }

    #[inline(always)]
    fn whiten(self, data: &mut [Group], tweaks: &[Group]) {
        // SAFETY: `self` is the proof of AVX-512F.
        unsafe { whiten(data, tweaks) }
    }
}

impl Engine for Avx512 {
    #[inline(always)]
    fn run<R: Rounds>(self, rounds: &R, walk: Walk<'_>, data: &mut [Group]) {
        if R::Batch::USIZE == BATCH_BLOCKS {
            fused(self, rounds, walk, data);
        } else {
            staged::<_, _, AHEAD>(self, rounds, walk, data);
        }
    }
}

#[inline(always)]
fn fused<R: Rounds>(unit: Avx512, rounds: &R, mut walk: Walk<'_>, data: &mut [Group]) {
    let mut tweaks = Tweaks::<AHEAD>::default();
    for data in data.chunks_mut(AHEAD) {
        unit.fill(&mut walk, &mut tweaks.0);
        let (tweaks, _) = tweaks.0.as_chunks();
        let (whole, rest) = data.as_chunks_mut();
        for (groups, tweaks) in whole.iter_mut().zip(tweaks) {
            fused_rounds(unit, rounds, groups, tweaks);
        }
        if let Some(tweaks) = tweaks.get(whole.len())
            && !rest.is_empty()
        {
            let mut padded = [Group::default(); FUSED];
            padded[..rest.len()].copy_from_slice(rest);
            fused_rounds(unit, rounds, &mut padded, tweaks);
            rest.copy_from_slice(&padded[..rest.len()]);
        }
    }
}

#[inline(always)]
fn fused_rounds<R: Rounds>(
    unit: Avx512,
    rounds: &R,
    groups: &mut [Group; FUSED],
    tweaks: &[Group; FUSED],
) {
    // The compiler keeps all of this in registers.
    let mut batch = Array::<Block, R::Batch>::default();
    let (slots, _) = batch.as_chunks_mut::<GROUP_BLOCKS>();
    for ((group, tweak), slot) in groups.iter().zip(tweaks).zip(slots) {
        unit.add(group, tweak, slot);
    }
    rounds.batch(&mut batch);
    let (slots, _) = batch.as_chunks::<GROUP_BLOCKS>();
    for ((slot, tweak), group) in slots.iter().zip(tweaks).zip(groups) {
        unit.add(slot, tweak, group);
    }
}

#[target_feature(enable = "avx512f,avx512bw,vpclmulqdq")]
fn fill(walk: &mut Walk<'_>, tweaks: &mut [Group]) {
    if tweaks.len() == AHEAD && walk.stays_in_unit(AHEAD) {
        walk.skip(AHEAD);
        for group in tweaks {
            let next = load(group).map(|t| times_x64(t));
            store(next, group);
        }
        return;
    }
    let last = tweaks
        .last()
        .map_or([_mm512_setzero_si512(); 2], |g| load(g));
    walk.fill(
        tweaks,
        last,
        |start| spread(start),
        |last| last.map(|t| times_x8(t)),
        |made, group| store(made, group),
    );
}

#[target_feature(enable = "avx512f")]
fn whiten(data: &mut [Group], tweaks: &[Group]) {
    for (group, tweak) in data.iter_mut().zip(tweaks) {
        let data = *group;
        add(&data, tweak, group);
    }
}

/// Every lane times `x^8`: the lane moves up by a byte, and the byte that falls off is reduced.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,vpclmulqdq")]
fn times_x8(t: __m512i) -> __m512i {
    let carry = _mm512_bsrli_epi128::<15>(t);
    let reduced = _mm512_clmulepi64_epi128::<0x00>(carry, reduction());
    _mm512_xor_si512(_mm512_bslli_epi128::<1>(t), reduced)
}

/// Every lane times `x^64`: from the tweaks of [`AHEAD`] groups to those of the next, none of them
/// waiting for another. The high half falls off; reduced it has 71 bits, and cannot overflow again.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,vpclmulqdq")]
fn times_x64(t: __m512i) -> __m512i {
    let reduced = _mm512_clmulepi64_epi128::<0x01>(t, reduction());
    _mm512_xor_si512(_mm512_bslli_epi128::<8>(t), reduced)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn reduction() -> __m512i {
    _mm512_set1_epi64(REDUCTION.into())
}

/// A tweak times `x^0` to `x^7`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,vpclmulqdq")]
fn spread(start: &Block) -> Vectors {
    // SAFETY: the reference is good for 16 bytes; the load needs no alignment.
    let start = unsafe { _mm_loadu_si128(start.as_ptr().cast()) };
    let start = _mm512_broadcast_i32x4(start);
    [quad(start, 0), quad(start, 4)]
}

/// `start * x^k` to `start * x^(k + 3)`, where all lanes of `start` are the same.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,vpclmulqdq")]
fn quad(start: __m512i, k: i64) -> __m512i {
    // The CPU shifts 64-bit halves. What leaves the low half enters the high one, what leaves the
    // high half is reduced. A shift by 64 gives 0, so that k = 0 needs no case of its own.
    let left = _mm512_set_epi64(k + 3, k + 3, k + 2, k + 2, k + 1, k + 1, k, k);
    let right = _mm512_sub_epi64(_mm512_set1_epi64(64), left);
    let carry = _mm512_srlv_epi64(start, right);
    let reduced = _mm512_clmulepi64_epi128::<0x01>(carry, reduction());
    let shifted = _mm512_xor_si512(
        _mm512_sllv_epi64(start, left),
        _mm512_bslli_epi128::<8>(carry),
    );
    _mm512_xor_si512(shifted, reduced)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn add(a: &Group, b: &Group, sum: &mut Group) {
    let ([a0, a1], [b0, b1]) = (load(a), load(b));
    store([_mm512_xor_si512(a0, b0), _mm512_xor_si512(a1, b1)], sum);
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(group: &Group) -> Vectors {
    let from: *const __m512i = group.as_ptr().cast();
    // SAFETY: the reference is good for 128 bytes, two vectors; the loads need no alignment.
    unsafe { [_mm512_loadu_si512(from), _mm512_loadu_si512(from.add(1))] }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store([low, high]: Vectors, group: &mut Group) {
    let to: *mut __m512i = group.as_mut_ptr().cast();
    // SAFETY: the reference is good for 128 bytes, two vectors; the stores need no alignment.
    unsafe {
        _mm512_storeu_si512(to, low);
        _mm512_storeu_si512(to.add(1), high);
    }
}
