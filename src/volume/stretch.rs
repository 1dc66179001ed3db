//! Neighbouring writes of one batch, encrypted side by side and handed to the store as one.
//!
//! A guest that appends fills a zone from many small requests. Each is encrypted for its own place, but
//! their places follow each other, and one large write costs the host little more than one small one.

use crate::geometry::{Blocks, ZoneIndex};
use crate::store::IoBuf;

use super::op::Owners;

/// Ciphertext of consecutive blocks of a zone.
#[derive(Debug)]
pub(super) struct Stretch {
    /// The piece that it will be.
    pub(super) token: u32,
    pub(super) zone: ZoneIndex,
    pub(super) first: Blocks,
    /// The first `filled` bytes count.
    pub(super) buf: IoBuf,
    pub(super) owners: Owners,
    filled: usize,
    end: Blocks,
}

impl Stretch {
    /// An empty one.
    pub(super) fn new(
        token: u32,
        zone: ZoneIndex,
        first: Blocks,
        buf: IoBuf,
        owners: Owners,
    ) -> Self {
        Self {
            token,
            zone,
            first,
            buf,
            owners,
            filled: 0,
            end: first,
        }
    }

    /// Where the next `len` bytes go; `len` is no more than what is left.
    pub(super) fn room(&mut self, len: usize) -> &mut [u8] {
        let end = self.filled + len;
        self.buf.get_mut(self.filled..end).unwrap_or_default()
    }

    /// The next `len` bytes are filled, with `count` blocks of operation `owner`.
    pub(super) fn extend(&mut self, owner: u32, len: usize, count: Blocks) {
        self.filled += len;
        self.end = Blocks(self.end.0 + count.0);
        self.owners.push(owner);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.filled == 0
    }

    pub(super) fn is_full(&self) -> bool {
        self.filled == self.buf.len()
    }

    /// Whose it is, and the buffer, cut to what is filled.
    pub(super) fn into_parts(mut self) -> (ZoneIndex, Owners, IoBuf) {
        self.buf.set_len(self.filled);
        (self.zone, self.owners, self.buf)
    }
}

/// The stretches of a batch. There are at most as many as pieces, and rarely more than zones that a
/// guest writes to.
#[derive(Debug, Default)]
pub(super) struct Stretches(Vec<Stretch>);

impl Stretches {
    /// Takes out the stretch that ends before block `next` of `zone` and has room for `len` bytes.
    pub(super) fn take(&mut self, zone: ZoneIndex, next: Blocks, len: usize) -> Option<Stretch> {
        let goes_on = |stretch: &Stretch| {
            let room = stretch.buf.len() - stretch.filled;
            stretch.zone == zone && stretch.end == next && room >= len
        };
        let position = self.0.iter().rposition(goes_on)?;
        Some(self.0.swap_remove(position))
    }

    pub(super) fn put(&mut self, stretch: Stretch) {
        self.0.push(stretch);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Stretch> {
        self.0.iter()
    }

    pub(super) fn pop(&mut self) -> Option<Stretch> {
        self.0.pop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZONE: ZoneIndex = ZoneIndex(3);

    fn stretches(len: usize) -> Stretches {
        let buf = IoBuf::new(len);
        let mut stretch = Stretch::new(7, ZONE, Blocks(10), buf, vec![]);
        stretch.room(8192).fill(1);
        stretch.extend(40, 8192, Blocks(2));
        let mut stretches = Stretches::default();
        stretches.put(stretch);
        stretches
    }

    #[test]
    fn only_the_next_block_of_the_zone_goes_on_with_a_stretch_that_has_room() {
        let mut all = stretches(16384);
        assert!(all.take(ZONE, Blocks(13), 4096).is_none());
        assert!(all.take(ZONE, Blocks(10), 4096).is_none());
        assert!(all.take(ZoneIndex(2), Blocks(12), 4096).is_none());
        assert!(all.take(ZONE, Blocks(12), 12288).is_none());
        let mut stretch = all.take(ZONE, Blocks(12), 8192).unwrap();
        stretch.room(8192).fill(2);
        stretch.extend(41, 8192, Blocks(2));
        all.put(stretch);
        let done = all.pop().unwrap();
        assert!(done.is_full() && done.first == Blocks(10));
        let (_, owners, buf) = done.into_parts();
        assert_eq!(owners, [40, 41]);
        assert!(buf[..8192].iter().all(|&byte| byte == 1));
        assert!(buf[8192..].iter().all(|&byte| byte == 2));
    }

    #[test]
    fn a_stretch_ends_where_it_is_filled_to() {
        let done = stretches(16384).pop().unwrap();
        assert!(!done.is_full());
        assert_eq!(done.into_parts().2.len(), 8192);
    }
}
