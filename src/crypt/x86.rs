//! Tweak arithmetic in AVX2 and AVX-512 registers.
//!
//! The only `unsafe` of the cipher. It is of two kinds: calling a function that needs a CPU feature,
//! which is sound because the caller holds a token that only detection hands out; and unaligned
//! vector loads and stores through a reference to exactly that many bytes.
#![expect(
    unsafe_code,
    reason = "vector loads and stores, and calls of functions that need a CPU feature"
)]

use core::arch::x86_64::*;

use aes::Block;

use super::tweak::{Group, TweakUnit};

/// Proof that this CPU has AVX2.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx2(());

impl Avx2 {
    /// The token, if this CPU has AVX2 and the operating system saves its registers.
    pub(super) fn detect() -> Option<Self> {
        is_x86_feature_detected!("avx2").then_some(Self(()))
    }
}

impl TweakUnit for Avx2 {
    type Vector = [__m256i; 4];

    #[inline(always)]
    fn spread(self, first: &Block) -> Self::Vector {
        // SAFETY: `self` proves AVX2.
        unsafe { avx2::spread(first) }
    }

    #[inline(always)]
    fn advance(self, tweaks: Self::Vector) -> Self::Vector {
        // SAFETY: `self` proves AVX2.
        unsafe { avx2::advance(tweaks) }
    }

    #[inline(always)]
    fn load(self, group: &Group) -> Self::Vector {
        // SAFETY: `self` proves AVX2.
        unsafe { avx2::load(group) }
    }

    #[inline(always)]
    fn store(self, vector: Self::Vector, group: &mut Group) {
        // SAFETY: `self` proves AVX2.
        unsafe { avx2::store(vector, group) }
    }

    #[inline(always)]
    fn xor(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        // SAFETY: `self` proves AVX2.
        unsafe { avx2::xor(a, b) }
    }
}

/// Proof that this CPU has AVX-512F and VAES.
///
/// The arithmetic needs AVX-512F alone. VAES is asked for because the crate `aes` compiles the
/// rounds with both, and only into such a function can these be inlined; a CPU with AVX-512F alone
/// is served better by AVX2.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx512(());

impl Avx512 {
    /// The token, if this CPU has AVX-512F and VAES and the operating system saves the registers.
    pub(super) fn detect() -> Option<Self> {
        (is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("vaes"))
            .then_some(Self(()))
    }
}

impl TweakUnit for Avx512 {
    type Vector = [__m512i; 2];

    #[inline(always)]
    fn spread(self, first: &Block) -> Self::Vector {
        // SAFETY: `self` proves AVX-512F.
        unsafe { avx512::spread(first) }
    }

    #[inline(always)]
    fn advance(self, tweaks: Self::Vector) -> Self::Vector {
        // SAFETY: `self` proves AVX-512F.
        unsafe { avx512::advance(tweaks) }
    }

    #[inline(always)]
    fn load(self, group: &Group) -> Self::Vector {
        // SAFETY: `self` proves AVX-512F.
        unsafe { avx512::load(group) }
    }

    #[inline(always)]
    fn store(self, vector: Self::Vector, group: &mut Group) {
        // SAFETY: `self` proves AVX-512F.
        unsafe { avx512::store(vector, group) }
    }

    #[inline(always)]
    fn xor(self, a: Self::Vector, b: Self::Vector) -> Self::Vector {
        // SAFETY: `self` proves AVX-512F.
        unsafe { avx512::xor(a, b) }
    }
}

/// Multiplication by `x^k`, `k <= 8`, of 128-bit lanes when the CPU shifts only 64-bit halves.
///
/// With `c` the `k` bits that leave each half at the top: those of the low half enter the high half
/// as they are, those of the high half come back into the low half times `1 + x + x^2 + x^7`. So the
/// halves of `c` are swapped, and `c << 1 ^ c << 2 ^ c << 7` is added in the low half alone.
mod avx2 {
    use super::*;

    /// Swaps the 64-bit halves of every 128-bit lane, as an immediate for `shuffle_epi32`.
    const SWAP_HALVES: i32 = 0b01_00_11_10;

    #[inline]
    #[target_feature(enable = "avx2")]
    fn fold(shifted: __m256i, carry: __m256i) -> __m256i {
        let low_half = _mm256_set_epi64x(0, -1, 0, -1);
        let c = _mm256_shuffle_epi32::<SWAP_HALVES>(carry);
        let back = _mm256_xor_si256(
            _mm256_xor_si256(_mm256_slli_epi64::<1>(c), _mm256_slli_epi64::<2>(c)),
            _mm256_slli_epi64::<7>(c),
        );
        let c = _mm256_xor_si256(c, _mm256_and_si256(back, low_half));
        _mm256_xor_si256(shifted, c)
    }

    /// One pair of tweaks, `first * x^k` and `first * x^(k + 1)`.
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

    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn spread(first: &Block) -> [__m256i; 4] {
        // SAFETY: the reference is good for 16 bytes; the load needs no alignment.
        let first = unsafe { _mm_loadu_si128(first.as_ptr().cast()) };
        let first = _mm256_broadcastsi128_si256(first);
        [
            pair(first, 0),
            pair(first, 2),
            pair(first, 4),
            pair(first, 6),
        ]
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn advance(tweaks: [__m256i; 4]) -> [__m256i; 4] {
        let step = |t| fold(_mm256_slli_epi64::<8>(t), _mm256_srli_epi64::<56>(t));
        let [a, b, c, d] = tweaks;
        [step(a), step(b), step(c), step(d)]
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn load(group: &Group) -> [__m256i; 4] {
        let from: *const __m256i = group.as_ptr().cast();
        // SAFETY: the reference is good for 128 bytes, four vectors; the loads need no alignment.
        unsafe {
            [
                _mm256_loadu_si256(from),
                _mm256_loadu_si256(from.add(1)),
                _mm256_loadu_si256(from.add(2)),
                _mm256_loadu_si256(from.add(3)),
            ]
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn store(vector: [__m256i; 4], group: &mut Group) {
        let to: *mut __m256i = group.as_mut_ptr().cast();
        let [a, b, c, d] = vector;
        // SAFETY: the reference is good for 128 bytes, four vectors; the stores need no alignment.
        unsafe {
            _mm256_storeu_si256(to, a);
            _mm256_storeu_si256(to.add(1), b);
            _mm256_storeu_si256(to.add(2), c);
            _mm256_storeu_si256(to.add(3), d);
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn xor(a: [__m256i; 4], b: [__m256i; 4]) -> [__m256i; 4] {
        let ([a0, a1, a2, a3], [b0, b1, b2, b3]) = (a, b);
        [
            _mm256_xor_si256(a0, b0),
            _mm256_xor_si256(a1, b1),
            _mm256_xor_si256(a2, b2),
            _mm256_xor_si256(a3, b3),
        ]
    }
}

/// The same in registers twice as wide, where one instruction takes any function of three inputs.
mod avx512 {
    use super::*;

    const SWAP_HALVES: i32 = 0b01_00_11_10;
    /// Truth table of `a ^ b ^ c`.
    const XOR3: i32 = 0x96;
    /// Truth table of `a ^ (b & c)`.
    const XOR_AND: i32 = 0x78;

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn fold(shifted: __m512i, carry: __m512i) -> __m512i {
        let low_half = _mm512_set_epi64(0, -1, 0, -1, 0, -1, 0, -1);
        let c = _mm512_shuffle_epi32::<SWAP_HALVES>(carry);
        let back = _mm512_ternarylogic_epi64::<XOR3>(
            _mm512_slli_epi64::<1>(c),
            _mm512_slli_epi64::<2>(c),
            _mm512_slli_epi64::<7>(c),
        );
        let c = _mm512_ternarylogic_epi64::<XOR_AND>(c, back, low_half);
        _mm512_xor_si512(shifted, c)
    }

    /// Four tweaks, `first * x^k` to `first * x^(k + 3)`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn quad(first: __m512i, k: i64) -> __m512i {
        // A shift by 64 gives 0, so that k = 0 needs no case of its own.
        let left = _mm512_set_epi64(k + 3, k + 3, k + 2, k + 2, k + 1, k + 1, k, k);
        let right = _mm512_sub_epi64(_mm512_set1_epi64(64), left);
        fold(
            _mm512_sllv_epi64(first, left),
            _mm512_srlv_epi64(first, right),
        )
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn spread(first: &Block) -> [__m512i; 2] {
        // SAFETY: the reference is good for 16 bytes; the load needs no alignment.
        let first = unsafe { _mm_loadu_si128(first.as_ptr().cast()) };
        let first = _mm512_broadcast_i32x4(first);
        [quad(first, 0), quad(first, 4)]
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn advance(tweaks: [__m512i; 2]) -> [__m512i; 2] {
        let step = |t| fold(_mm512_slli_epi64::<8>(t), _mm512_srli_epi64::<56>(t));
        let [a, b] = tweaks;
        [step(a), step(b)]
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn load(group: &Group) -> [__m512i; 2] {
        let from: *const __m512i = group.as_ptr().cast();
        // SAFETY: the reference is good for 128 bytes, two vectors; the loads need no alignment.
        unsafe { [_mm512_loadu_si512(from), _mm512_loadu_si512(from.add(1))] }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn store(vector: [__m512i; 2], group: &mut Group) {
        let to: *mut __m512i = group.as_mut_ptr().cast();
        let [a, b] = vector;
        // SAFETY: the reference is good for 128 bytes, two vectors; the stores need no alignment.
        unsafe {
            _mm512_storeu_si512(to, a);
            _mm512_storeu_si512(to.add(1), b);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) fn xor(a: [__m512i; 2], b: [__m512i; 2]) -> [__m512i; 2] {
        let ([a0, a1], [b0, b1]) = (a, b);
        [_mm512_xor_si512(a0, b0), _mm512_xor_si512(a1, b1)]
    }
}
