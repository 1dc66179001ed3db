//! The private buffers of a channel: few, reused last-in first-out so that they stay in the cache.

use crate::store::IoBuf;

/// Most bytes that are encrypted and submitted as one. Large enough that the store works at its
/// full rate, small enough that a piece stays in the L2 cache between copying and encrypting.
pub(super) const PIECE: usize = 128 << 10;
/// Size of a small buffer: one block of the usual size.
const SMALL: usize = 4096;
/// Small buffers of a channel: 1 MiB of them.
const MAX_SMALL: usize = 256;
/// Large buffers of a channel: 3 MiB of them.
const MAX_LARGE: usize = 24;

/// Large buffers that are left to those who need all of them.
const KEPT_LARGE: usize = MAX_LARGE / 3;

#[derive(Debug)]
struct Shelf {
    size: usize,
    free: Vec<IoBuf>,
    /// Buffers that may still be allocated; they are when first needed.
    left: usize,
}

impl Shelf {
    fn take(&mut self) -> Option<IoBuf> {
        if let Some(buf) = self.free.pop() {
            return Some(buf);
        }
        self.left = self.left.checked_sub(1)?;
        Some(IoBuf::new(self.size))
    }
}

/// The buffers of one channel.
#[derive(Debug)]
pub(super) struct Pool {
    small: Shelf,
    large: Shelf,
}

impl Pool {
    pub(super) fn new() -> Self {
        let shelf = |size, count| Shelf {
            size,
            free: Vec::with_capacity(count),
            left: count,
        };
        Self {
            small: shelf(SMALL, MAX_SMALL),
            large: shelf(PIECE, MAX_LARGE),
        }
    }

    /// A buffer of exactly `len` bytes (at most [`PIECE`]), or `None` until one is given back.
    pub(super) fn take(&mut self, len: usize) -> Option<IoBuf> {
        let mut buf = if len <= SMALL {
            self.small.take().or_else(|| self.large.take())
        } else {
            self.large.take()
        }?;
        buf.set_len(len);
        Some(buf)
    }

    /// A buffer for `len` bytes, with room for more behind them while large ones are plenty.
    pub(super) fn take_to_extend(&mut self, len: usize) -> Option<IoBuf> {
        if self.large.free.len() + self.large.left > KEPT_LARGE
            && let Some(mut buf) = self.large.take()
        {
            buf.set_len(PIECE);
            return Some(buf);
        }
        self.take(len)
    }

    /// Takes a buffer back.
    pub(super) fn give(&mut self, buf: IoBuf) {
        if buf.capacity() == SMALL {
            self.small.free.push(buf);
        } else {
            self.large.free.push(buf);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_is_bounded_and_reuses_the_last_buffer() {
        let mut pool = Pool::new();
        let mut taken: Vec<IoBuf> = std::iter::from_fn(|| pool.take(PIECE)).collect();
        assert_eq!(taken.len(), MAX_LARGE);
        let address = taken[3].as_ptr();
        pool.give(taken.remove(3));
        assert_eq!(pool.take(5000).unwrap().as_ptr(), address);
        let small = std::iter::from_fn(|| pool.take(512)).count();
        assert_eq!(small, MAX_SMALL);
    }

    #[test]
    fn buffers_with_room_run_out_before_large_ones_do() {
        let mut pool = Pool::new();
        let taken: Vec<IoBuf> = (0..MAX_LARGE)
            .map(|_| pool.take_to_extend(4096).unwrap())
            .collect();
        let roomy = taken.iter().filter(|buf| buf.len() == PIECE).count();
        assert_eq!(roomy, MAX_LARGE - KEPT_LARGE);
        assert!(pool.take(PIECE).is_some());
    }
}
