//! Sparse bytes that are cheap to copy: copies share the pages that neither has changed.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Unit of sharing: small enough for a table of 64-byte records, large enough to stay few.
const PAGE: usize = 4096;

/// An image of any length; what was never written is zero and takes no memory.
#[derive(Clone, Default)]
pub(super) struct Image {
    pages: BTreeMap<u64, Arc<[u8; PAGE]>>,
}

/// The parts of a range page by page: page number, offset in the page, range in the whole.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at == len {
            return None;
        }
        let place = offset + at as u64;
        // Below PAGE, so it fits any usize.
        let inside = usize::try_from(place % PAGE as u64).unwrap_or(0);
        let part = (PAGE - inside).min(len - at);
        let range = at..at + part;
        at += part;
        Some((place / PAGE as u64, inside, range))
    })
}

impl Image {
    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) {
        for (page, inside, range) in parts(offset, buf.len()) {
            let part = &mut buf[range];
            match self.pages.get(&page) {
                Some(bytes) => part.copy_from_slice(&bytes[inside..inside + part.len()]),
                None => part.fill(0),
            }
        }
    }

    pub(super) fn write(&mut self, offset: u64, buf: &[u8]) {
        for (page, inside, range) in parts(offset, buf.len()) {
            let part = &buf[range];
            let bytes = self
                .pages
                .entry(page)
                .or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(bytes)[inside..inside + part.len()].copy_from_slice(part);
        }
    }

    pub(super) fn zero(&mut self, offset: u64, len: u64) {
        let end = offset + len;
        let whole = offset.div_ceil(PAGE as u64)..end / PAGE as u64;
        if whole.start >= whole.end {
            // Less than two pages long.
            let bytes = vec![0; usize::try_from(len).unwrap_or(0)];
            return self.write(offset, &bytes);
        }
        let edge = [0; PAGE];
        let head = whole.start * PAGE as u64 - offset;
        let tail = end - whole.end * PAGE as u64;
        self.write(offset, &edge[..usize::try_from(head).unwrap_or(0)]);
        self.write(end - tail, &edge[..usize::try_from(tail).unwrap_or(0)]);
        let mut rest = self.pages.split_off(&whole.start);
        self.pages.append(&mut rest.split_off(&whole.end));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behaves_like_an_array() {
        let mut image = Image::default();
        let mut array = vec![0u8; 5 * PAGE];
        let writes: [(usize, usize, u8); 5] = [
            (0, 10, 1),
            (PAGE - 3, 6, 2),
            (PAGE, 3 * PAGE, 3),
            (4 * PAGE + 1, PAGE - 1, 4),
            (2 * PAGE + 7, 0, 5),
        ];
        for (offset, len, byte) in writes {
            image.write(offset as u64, &vec![byte; len]);
            array[offset..offset + len].fill(byte);
        }
        let zeroes = [(5, 2), (PAGE - 1, PAGE + 2), (3 * PAGE, PAGE), (4000, 200)];
        for (offset, len) in zeroes {
            let before = image.clone();
            let old = array.clone();
            image.zero(offset as u64, len as u64);
            array[offset..offset + len].fill(0);
            let mut seen = vec![9; array.len()];
            image.read(0, &mut seen);
            assert_eq!(seen, array);
            before.read(0, &mut seen);
            assert_eq!(seen, old, "a copy must not change with its original");
        }
    }
}
