//! Tweak arithmetic in AVX2 registers.
#![expect(
    unsafe_code,
    reason = "vector loads and stores, and calls of functions that need a CPU feature"
)]

use core::arch::x86_64::*;

use aes::Block;

use super::tweak::{Group, TweakUnit, Walk};
use super::xts::Engine;

/// A group of tweaks, two in a register.
type Vectors = [__m256i; 4];

/// Proof that this CPU has AVX2.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx2(());

impl Avx2 {
    /// The proof, if this CPU has AVX2 and the operating system saves its registers.
    pub(super) fn detect() -> Option<Self> {
        is_x86_feature_detected!("avx2").then_some(Self(()))
    }
}

impl TweakUnit for Avx2 {
    #[inline(always)]
    fn fill<const N: usize>(self, walk: &mut Walk<'_>, tweaks: &mut [Group; N]) {
        // SAFETY: `self` is the proof of AVX2.
        unsafe { fill(walk, tweaks) }
    }

    #[inline(always)]
    fn whiten(self, data: &mut [Group], tweaks: &[Group]) {
        // SAFETY: `self` is the proof of AVX2.
        unsafe { whiten(data, tweaks) }
    }
}

impl Engine for Avx2 {}

#[target_feature(enable = "avx2")]
fn fill(walk: &mut Walk<'_>, tweaks: &mut [Group]) {
    let last = tweaks
        .last()
        .map_or([_mm256_setzero_si256(); 4], |g| load(g));
    walk.fill(
        tweaks,
        last,
        |start| spread(start),
        |last| advance(last),
        |made, group| store(made, group),
    );
}

#[target_feature(enable = "avx2")]
fn whiten(data: &mut [Group], tweaks: &[Group]) {
    for (group, tweak) in data.iter_mut().zip(tweaks) {
        let ([a0, a1, a2, a3], [b0, b1, b2, b3]) = (load(group), load(tweak));
        let sum = [
            _mm256_xor_si256(a0, b0),
            _mm256_xor_si256(a1, b1),
            _mm256_xor_si256(a2, b2),
            _mm256_xor_si256(a3, b3),
        ];
        store(sum, group);
    }
}

/// Completes a multiplication by `x^k`, `k <= 8`, where the CPU shifts only 64-bit halves.
///
/// `shifted` is every half shifted left, `carry` the bits that left it at the top. Those of the low
/// half enter the high half as they are; those of the high half come back into the low half times
/// `1 + x + x^2 + x^7`. So the halves of `carry` are swapped, and its multiples by `x`, `x^2` and
/// `x^7` are added to the low half alone.
#[inline]
#[target_feature(enable = "avx2")]
fn fold(shifted: __m256i, carry: __m256i) -> __m256i {
    const SWAP_HALVES: i32 = 0b01_00_11_10;
    let c = _mm256_shuffle_epi32::<SWAP_HALVES>(carry);
    let multiples = _mm256_xor_si256(
        _mm256_xor_si256(_mm256_slli_epi64::<1>(c), _mm256_slli_epi64::<2>(c)),
        _mm256_slli_epi64::<7>(c),
    );
    let low_half = _mm256_set_epi64x(0, -1, 0, -1);
    let c = _mm256_xor_si256(c, _mm256_and_si256(multiples, low_half));
    _mm256_xor_si256(shifted, c)
}

/// `first * x^k` and `first * x^(k + 1)`, where both lanes of `first` are the same.
#[inline]
#[target_feature(enable = "avx2")]
fn pair(first: __m256i, k: i64) -> __m256i {
    // A shift by 64 gives 0, so that k = 0 needs no case of its own.
    let left = _mm256_set_epi64x(k + 1, k + 1, k, k);
    let right = _mm256_sub_epi64(_mm256_set1_epi64x(64), left);
    fold(
        _mm256_sllv_epi64(first, left),
        _mm256_srlv_epi64(first, right),
    )
}

/// A tweak times `x^0` to `x^7`.
#[inline]
#[target_feature(enable = "avx2")]
fn spread(start: &Block) -> Vectors {
    // SAFETY: the reference is good for 16 bytes; the load needs no alignment.
    let start = unsafe { _mm_loadu_si128(start.as_ptr().cast()) };
    let start = _mm256_broadcastsi128_si256(start);
    [
        pair(start, 0),
        pair(start, 2),
        pair(start, 4),
        pair(start, 6),
    ]
}

/// Every tweak times `x^8`.
#[inline]
#[target_feature(enable = "avx2")]
fn advance(tweaks: Vectors) -> Vectors {
    tweaks.map(|t| fold(_mm256_slli_epi64::<8>(t), _mm256_srli_epi64::<56>(t)))
}

#[inline]
#[target_feature(enable = "avx2")]
fn load(group: &Group) -> Vectors {
    let from: *const __m256i = group.as_ptr().cast();
    // SAFETY: the reference is good for 128 bytes, four vectors; the loads need no alignment.
    [0, 1, 2, 3].map(|i| unsafe { _mm256_loadu_si256(from.add(i)) })
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(vectors: Vectors, group: &mut Group) {
    let to: *mut __m256i = group.as_mut_ptr().cast();
    for (i, vector) in vectors.into_iter().enumerate() {
        // SAFETY: the reference is good for 128 bytes, four vectors; the stores need no alignment.
        unsafe { _mm256_storeu_si256(to.add(i), vector) }
    }
}
