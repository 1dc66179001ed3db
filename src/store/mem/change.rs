//! One change that a power cut may take, whole or in part.

use std::ops::Range;
use std::sync::Arc;

use super::draw::Draw;
use super::image::Image;

/// What is written whole or not at all, in bytes.
pub(super) const SECTOR: u64 = 512;

#[derive(Clone)]
pub(super) enum Content {
    /// Shared, so that looking at a moment copies none of it.
    Bytes(Arc<Vec<u8>>),
    Zeroes,
}

/// Whole sectors that were changed and not synced.
#[derive(Clone)]
pub(super) struct Change {
    /// When it took effect.
    pub(super) at: u64,
    /// The sync that failed over it.
    pub(super) doubted: Option<u64>,
    pub(super) range: Range<u64>,
    pub(super) content: Content,
}

impl Change {
    pub(super) fn apply(&self, image: &mut Image) {
        self.apply_part(image, &self.range);
    }

    /// Applies the sectors of `part`, a range inside of its own.
    fn apply_part(&self, image: &mut Image, part: &Range<u64>) {
        match &self.content {
            Content::Bytes(_) => image.write(part.start, self.bytes(part)),
            Content::Zeroes => image.zero(part.start, part.end - part.start),
        }
    }

    fn bytes(&self, part: &Range<u64>) -> &[u8] {
        match &self.content {
            Content::Bytes(bytes) => {
                let from = index(part.start - self.range.start);
                &bytes[from..from + index(part.end - part.start)]
            }
            Content::Zeroes => &[],
        }
    }

    /// What remains of it outside of `gone`.
    pub(super) fn without(self, gone: &Range<u64>) -> impl Iterator<Item = Self> {
        let range = self.range.clone();
        let before = range.start..gone.start.clamp(range.start, range.end);
        let after = gone.end.clamp(range.start, range.end)..range.end;
        let disjoint = gone.end <= range.start || range.end <= gone.start;
        let parts = if disjoint {
            [range.clone(), range.end..range.end]
        } else {
            [before, after]
        };
        parts
            .into_iter()
            .filter(|part| !part.is_empty())
            .map(move |part| Self {
                content: match &self.content {
                    Content::Bytes(_) => Content::Bytes(Arc::new(self.bytes(&part).to_vec())),
                    Content::Zeroes => Content::Zeroes,
                },
                range: part,
                ..self
            })
    }

    /// Applies what a tear leaves of it.
    pub(super) fn tear(&self, image: &mut Image, seed: u64) {
        let mut draw = Draw::new(seed);
        let sectors = (self.range.end - self.range.start) / SECTOR;
        let place = |sector: u64| self.range.start + sector * SECTOR;
        match self.content {
            // Either the transfer stopped in the middle, or sectors went out as they pleased.
            Content::Bytes(_) if draw.below(2) == 0 => {
                let kept = place(0)..place(draw.below(sectors));
                self.apply_part(image, &kept);
            }
            Content::Bytes(_) => {
                for sector in 0..sectors {
                    if draw.below(2) == 0 {
                        self.apply_part(image, &(place(sector)..place(sector + 1)));
                    }
                }
            }
            Content::Zeroes => {
                let (a, b) = (draw.below(sectors + 1), draw.below(sectors + 1));
                self.apply_part(image, &(place(a.min(b))..place(a.max(b))));
            }
        }
    }
}

/// Ranges that become indexes were checked against buffers that exist.
pub(super) fn index(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// The whole sectors around a range, as they are.
pub(super) fn sectors_of(image: &Image, offset: u64, len: usize, at: u64) -> Change {
    let start = offset / SECTOR * SECTOR;
    let end = (offset + len as u64).next_multiple_of(SECTOR);
    let mut bytes = vec![0; index(end - start)];
    image.read(start, &mut bytes);
    Change {
        at,
        doubted: None,
        range: start..end,
        content: Content::Bytes(Arc::new(bytes)),
    }
}
