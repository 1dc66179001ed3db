//! Memory that holds keys: not swapped, not dumped, not inherited by a fork, wiped when given back.
//!
//! One arena for the process. Its pages come from `memfd_secret` where the kernel has it: they are then
//! missing from the kernel's own map of memory as well, so that neither a kernel bug nor root with
//! `/proc/PID/mem` reads them. Elsewhere they are anonymous, locked (`mlock2`), left out of core dumps
//! (`MADV_DONTDUMP`) and zero in a child (`MADV_WIPEONFORK`). Where RLIMIT_MEMLOCK forbids the lock the
//! arena says so once, as a warning, and goes on with what is left: a disk that is not served for want of
//! a limit helps nobody, and the warning names the cure.
//!
//! Typed values stand in a [`Guarded`], bytes of variable length in [`GuardedBytes`]; C code gets memory
//! by [`allocate`] and [`release`]. Slots are of fixed sizes on 64-byte boundaries, and a slot that was
//! released is zero.
//!
//! What a computation leaves on the stack is in no arena. [`scrubbed`] runs one and then overwrites the
//! stack that it used; making a [`Guarded`] does so by itself.
//!
//! Sources of the calls: memfd_secret(2), mlock2(2), madvise(2).
#![expect(
    unsafe_code,
    reason = "typed values in memory that the arena hands out, and raw memory for the C library"
)]

mod map;
mod slots;

use std::fmt;
use std::hint::black_box;
use std::mem::{align_of, size_of};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use parking_lot::Mutex;
use zeroize::Zeroize;

use self::slots::Slots;

pub use map::Protection;
pub use slots::{LARGEST, SLOT_ALIGN};

/// Bytes of stack that are overwritten: what any computation with a key uses, and what lies between the
/// top of a thread's work and its encryption. `tests/key_memory` would find what is beyond it.
const SCRUBBED_STACK: usize = 16 << 10;

static ARENA: Mutex<Slots> = Mutex::new(Slots::new());

/// A slot of at least `size` bytes (at most [`LARGEST`]), zeroed, on a [`SLOT_ALIGN`] boundary. `None`
/// without memory or for more.
pub fn allocate(size: usize) -> Option<NonNull<u8>> {
    ARENA.lock().allocate(size)
}

/// Wipes a slot and takes it back.
///
/// # Safety
/// Nothing may use what [`allocate`] gave at `slot` any more. An address that the arena did not give, or
/// that it has back already, is refused: `false`.
pub unsafe fn release(slot: NonNull<u8>) -> bool {
    // SAFETY: passed on to the caller.
    unsafe { ARENA.lock().release(slot) }
}

/// Bytes of the slot at `slot`, or `None` if that is no address of a slot.
pub fn size_of_slot(slot: NonNull<u8>) -> Option<usize> {
    ARENA.lock().size_at(slot)
}

/// Maps now what `count` slots of `size` bytes each will need, and some more, so that no system call is
/// made for them later. Pages are still taken as they are first used.
///
/// What is missing all the same is mapped later, by no other calls than a heap makes, for the process may
/// be confined by then: it is not locked.
pub fn reserve(size: usize, count: usize) {
    ARENA.lock().reserve(size, count);
}

/// How the arena's pages are protected: the weakest that any of them got. `None` if there are none yet.
pub fn protection() -> Option<Protection> {
    ARENA.lock().protection()
}

/// Runs `work` and then overwrites the stack that it used, so that no key it passed there remains.
///
/// What `work` returns must not be a key: it is returned through the caller's stack.
#[inline(never)]
pub fn scrubbed<R>(work: impl FnOnce() -> R) -> R {
    let result = deeper(work);
    wipe_stack();
    result
}

/// A frame of its own, which begins where that of [`wipe_stack`] begins.
#[inline(never)]
fn deeper<R>(work: impl FnOnce() -> R) -> R {
    work()
}

/// Overwrites the stack below the caller's frame: what calls that have returned left there.
#[inline(never)]
pub fn wipe_stack() {
    let stack = [0_u8; SCRUBBED_STACK];
    // For all that the compiler knows somebody looks at it now: so the zeroes are really written, and by
    // the fastest means, other than with volatile writes.
    black_box(&stack);
}

/// A value in the arena, dropped and wiped with this.
pub struct Guarded<T>(NonNull<T>);

// SAFETY: it owns its value as a `Box` does.
unsafe impl<T: Send> Send for Guarded<T> {}
// SAFETY: it gives out references by the rules of a `Box`.
unsafe impl<T: Sync> Sync for Guarded<T> {}

impl<T> Guarded<T> {
    const FITS: () = assert!(size_of::<T>() <= LARGEST && align_of::<T>() <= SLOT_ALIGN);

    /// What `make` makes, which may leave copies on the stack: they are overwritten.
    pub fn new(make: impl FnOnce() -> T) -> Self {
        match Self::try_new(|| Ok::<_, std::convert::Infallible>(make())) {
            Ok(guarded) => guarded,
            Err(never) => match never {},
        }
    }

    /// The same if making it can fail.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn try_new<E>(make: impl FnOnce() -> Result<T, E>) -> Result<Self, E> {
        const { Self::FITS };
        let slot = Slot::new(size_of::<T>());
        scrubbed(|| {
            let value = make()?;
            // SAFETY: the slot is large enough and aligned (`FITS`), and nobody else knows it.
            unsafe { slot.0.cast::<T>().write(value) };
            Ok(())
        })?;
        Ok(Self(slot.keep().cast()))
    }
}

impl<T> Deref for Guarded<T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: it points to a value that lives as long as `self`.
        unsafe { self.0.as_ref() }
    }
}

impl<T> DerefMut for Guarded<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as for `deref`, and `self` is borrowed for nobody else.
        unsafe { self.0.as_mut() }
    }
}

impl<T> Drop for Guarded<T> {
    fn drop(&mut self) {
        // SAFETY: the value is there, and after this nobody can reach it or its slot.
        unsafe {
            self.0.drop_in_place();
            release(self.0.cast());
        }
    }
}

impl<T> fmt::Debug for Guarded<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Guarded(..)")
    }
}

/// A slot that is released unless it is kept.
struct Slot(NonNull<u8>);

impl Slot {
    fn new(size: usize) -> Self {
        match allocate(size) {
            Some(slot) => Self(slot),
            // As with any other value for which there is no memory.
            None => std::alloc::handle_alloc_error(std::alloc::Layout::new::<[u8; LARGEST]>()),
        }
    }

    fn keep(self) -> NonNull<u8> {
        let slot = self.0;
        std::mem::forget(self);
        slot
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // SAFETY: `self` was its only user.
        unsafe { release(self.0) };
    }
}

/// Bytes in the arena: a buffer of fixed capacity, of which the first [`GuardedBytes::len`] count.
pub struct GuardedBytes {
    slot: Slot,
    len: usize,
}

// SAFETY: it owns its bytes as a `Vec` does.
unsafe impl Send for GuardedBytes {}
// SAFETY: it gives out references by the rules of a `Vec`.
unsafe impl Sync for GuardedBytes {}

impl GuardedBytes {
    /// `len` zeroes; at most [`LARGEST`] of them.
    pub fn zeroed(len: usize) -> Self {
        let len = len.min(LARGEST);
        Self {
            slot: Slot::new(len),
            len,
        }
    }

    /// How many bytes count.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Wipes all from `len` on.
    pub fn truncate(&mut self, len: usize) {
        if let Some(rest) = self.get_mut(len..) {
            rest.zeroize();
            self.len = len;
        }
    }
}

impl Deref for GuardedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the slot has `len` initialised bytes, and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.slot.0.as_ptr(), self.len) }
    }
}

impl DerefMut for GuardedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for `deref`, and `self` is borrowed for nobody else.
        unsafe { std::slice::from_raw_parts_mut(self.slot.0.as_ptr(), self.len) }
    }
}

impl fmt::Debug for GuardedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GuardedBytes(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_dropped_once_and_its_slot_is_wiped() {
        struct Counted<'a>(&'a std::cell::Cell<u32>, [u8; 200]);
        impl Drop for Counted<'_> {
            fn drop(&mut self) {
                self.0.set(self.0.get() + 1);
            }
        }
        let drops = std::cell::Cell::new(0);
        let value = Guarded::new(|| Counted(&drops, [0xA7; 200]));
        let place = value.0.cast::<u8>();
        assert_eq!(value.1, [0xA7; 200]);
        assert!(size_of_slot(place).unwrap() >= size_of::<Counted<'_>>());
        drop(value);
        assert_eq!(drops.get(), 1);
        // SAFETY: pages of the arena are never unmapped, and 64 bytes are in every slot.
        let left = unsafe { std::slice::from_raw_parts(place.as_ptr(), 64) };
        assert!(left.iter().all(|&byte| byte == 0));
    }

    #[test]
    fn a_value_that_was_not_made_leaves_nothing() {
        let made: Result<Guarded<[u8; 64]>, &str> = Guarded::try_new(|| Err("no"));
        assert_eq!(made.unwrap_err(), "no");
    }

    #[test]
    fn bytes_keep_what_was_written_and_forget_what_was_cut_off() {
        let mut bytes = GuardedBytes::zeroed(100);
        bytes.fill(7);
        bytes.truncate(40);
        bytes.truncate(90);
        assert_eq!(*bytes, [7; 40]);
        let place = bytes.as_ptr();
        // SAFETY: the slot has 100 bytes and is ours.
        let cut = unsafe { std::slice::from_raw_parts(place.add(40), 60) };
        assert_eq!(cut, [0; 60]);
        assert_eq!(format!("{bytes:?}"), "GuardedBytes(..)");
    }

    #[test]
    fn a_released_slot_is_not_released_again() {
        let slot = allocate(64).unwrap();
        let foreign = NonNull::from(&mut [0_u8; 64]).cast();
        // SAFETY: nobody uses the slot, and the other is none.
        unsafe {
            assert!(release(slot));
            assert!(!release(foreign));
        }
    }

    #[inline(never)]
    fn leave_a_mark() -> usize {
        let mut mark = [0x5A_u8; 512];
        black_box(&mut mark).as_ptr() as usize
    }

    #[test]
    fn the_stack_of_a_scrubbed_computation_is_overwritten() {
        let at = black_box(scrubbed(leave_a_mark));
        // SAFETY: it is a part of this thread's stack, below the frame of this function; what is read
        // there is any byte.
        let left: [u8; 512] = unsafe { std::ptr::read_volatile(at as *const [u8; 512]) };
        let marks = left.iter().filter(|&&byte| byte == 0x5A).count();
        assert!(marks < 16, "{marks}");
    }
}
