//! The buffer that an operation owns.

use std::fmt;
use std::ops::{Deref, DerefMut};

use zeroize::Zeroize;

/// Alignment of every buffer: a page, which satisfies any O_DIRECT medium.
pub(super) const ALIGN: usize = 4096;

/// A page-aligned buffer of a fixed capacity and a settable length.
///
/// Aligned without `unsafe` by allocating a page more and starting at the first aligned byte. It
/// holds plaintext at times, so it is wiped when dropped, and its content is never printed.
pub struct IoBuf {
    memory: Vec<u8>,
    start: usize,
    len: usize,
    capacity: usize,
}

impl IoBuf {
    /// A zeroed buffer for up to `capacity` bytes, of that length.
    pub fn new(capacity: usize) -> Self {
        let memory = vec![0; capacity + ALIGN];
        let start = memory.as_ptr().align_offset(ALIGN).min(ALIGN);
        Self {
            memory,
            start,
            len: capacity,
            capacity,
        }
    }

    /// How long it can be, in bytes.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Sets the length to `len`, or to the capacity if that is less. Bytes keep what they held.
    pub fn set_len(&mut self, len: usize) {
        self.len = len.min(self.capacity);
    }
}

impl Deref for IoBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl DerefMut for IoBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

impl fmt::Debug for IoBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoBuf").field("len", &self.len).finish()
    }
}

impl Drop for IoBuf {
    fn drop(&mut self) {
        self.memory.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_page_aligned_and_keep_their_bounds() {
        for capacity in [0, 1, 512, 4096, 131_072] {
            let mut buf = IoBuf::new(capacity);
            assert_eq!(buf.as_ptr().align_offset(ALIGN), 0);
            assert_eq!(buf.len(), capacity);
            buf.set_len(capacity / 2);
            assert_eq!(buf.len(), capacity / 2);
            buf.set_len(capacity + 1);
            assert_eq!(buf.len(), capacity);
        }
    }
}
