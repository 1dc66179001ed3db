//! AWS-LC's memory: all of it comes from the arena, for most of what it holds is keys.
//!
//! AWS-LC lets a program replace its allocator once, before it has allocated anything. We use it for
//! AES-GCM alone, and it allocates: a context for each key, and for each thread in which a tag did not
//! match some 500 bytes of its record of errors.
#![expect(unsafe_code, reason = "the C library's own interface for allocators")]

use std::ffi::{c_char, c_int, c_void};
use std::ptr::{NonNull, null_mut};
use std::sync::Once;

use aws_lc_sys::{CRYPTO_set_mem_functions, EVP_AEAD_CTX};

use crate::arena;

/// Bytes of a context: round keys, hash key and its powers.
pub(super) const KEY_BYTES: usize = size_of::<EVP_AEAD_CTX>();

/// Has AWS-LC take its memory from the arena. To be called before anything else of AWS-LC.
pub(super) fn use_arena() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the three functions keep what C's malloc, realloc and free promise. Nothing was
        // allocated before: this module alone uses AWS-LC, and calls this first.
        let set = unsafe { CRYPTO_set_mem_functions(Some(malloc), Some(realloc), Some(free)) };
        if set != 1 {
            log::warn!(
                "keys of AES-GCM are not locked into memory: AWS-LC keeps its own allocator"
            );
        }
    });
}

unsafe extern "C" fn malloc(size: usize, _file: *const c_char, _line: c_int) -> *mut c_void {
    #[cfg(test)]
    tests::CALLS.set(tests::CALLS.get() + 1);
    // A size of 0 may give any address that can be released.
    arena::allocate(size).map_or(null_mut(), |slot| slot.as_ptr().cast())
}

unsafe extern "C" fn realloc(
    old: *mut c_void,
    size: usize,
    _file: *const c_char,
    _line: c_int,
) -> *mut c_void {
    let Some(new) = arena::allocate(size) else {
        return null_mut();
    };
    if let Some(old) = NonNull::new(old.cast::<u8>()) {
        let len = arena::size_of_slot(old).unwrap_or(0).min(size);
        // SAFETY: AWS-LC had `old` from `malloc`, with at least `len` bytes, as has `new`, which is
        // another slot; it does not use `old` after this.
        unsafe {
            new.copy_from_nonoverlapping(old, len);
            arena::release(old);
        }
    }
    new.as_ptr().cast()
}

unsafe extern "C" fn free(slot: *mut c_void, _file: *const c_char, _line: c_int) {
    if let Some(slot) = NonNull::new(slot.cast()) {
        // SAFETY: AWS-LC has done with it.
        unsafe { arena::release(slot) };
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::super::Gcm;
    use super::*;

    std::thread_local! {
        /// Calls of `malloc` by this thread.
        pub(super) static CALLS: Cell<u32> = const { Cell::new(0) };
    }

    /// Were there two versions of AWS-LC in the program, the functions would be set in the other one.
    #[test]
    fn a_key_takes_one_slot_of_the_arena() {
        let before = CALLS.get();
        let key = Gcm::new(&[1; 32]).unwrap();
        assert_eq!(CALLS.get(), before + 1);
        drop(key);
        assert_eq!(CALLS.get(), before + 1);
    }

    #[test]
    fn a_slot_that_grows_keeps_what_it_held() {
        // SAFETY: used as C would use malloc and realloc.
        unsafe {
            let small = malloc(64, std::ptr::null(), 0).cast::<u8>();
            small.write_bytes(0xC3, 64);
            let large = realloc(small.cast(), 4000, std::ptr::null(), 0).cast::<u8>();
            let bytes = std::slice::from_raw_parts(large, 4000);
            assert_eq!(bytes[..64], [0xC3; 64]);
            assert!(bytes[64..].iter().all(|&byte| byte == 0));
            free(large.cast(), std::ptr::null(), 0);
            assert!(realloc(null_mut(), usize::MAX, std::ptr::null(), 0).is_null());
        }
    }
}
