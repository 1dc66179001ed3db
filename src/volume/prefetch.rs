//! Asking the processor for memory that will be needed soon.
#![cfg_attr(
    target_arch = "x86_64",
    expect(
        unsafe_code,
        reason = "the instruction has no name that counts as safe"
    )
)]

/// Begins to fetch the cache line at the start of `bytes`, without waiting for it. Slots lie in
/// megabytes of cache of which each request wants half a line: without this it would wait for memory
/// where it can read data meanwhile.
#[inline]
pub(super) fn prefetch(bytes: &[u8]) {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch is a hint: it touches no register and no memory, faults nowhere, and SSE
        // is part of every x86-64 processor. The address is that of a live slice besides.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = bytes;
}
