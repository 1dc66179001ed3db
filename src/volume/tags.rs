//! Tag slots on their way to the medium, and where they lie.
//!
//! *Writing.* The slots of blocks that were encrypted gather in a [`SlotWriter`], next to each other
//! where the blocks are, and go out before the completion of any of them is looked at: into the page
//! cache, so that a killed daemon loses none, in one call for each stretch of a zone however many
//! requests made it. (Half a slot, which a kill may leave of an image in memory, is that of a block that no
//! record counts yet.) The page cache is also what keeps the last slot page of an open zone in memory
//! and writes it once.

use std::io;

use crate::format::Layout;
use crate::geometry::{Blocks, ZoneIndex};
use crate::integrity::SLOT_LEN;
use crate::store::Medium;

/// Bytes of a page of slots: what the host reads and caches at least.
pub(super) const SLOT_PAGE: u64 = PAGE as u64;
pub(super) const PAGE: usize = 4096;
/// Slots in a page.
pub(super) const SLOTS_PER_PAGE: u64 = SLOT_PAGE / SLOT_LEN as u64;
/// How many stretches are looked at for one to go on with: a batch of requests is rarely for more
/// zones. (There are at most as many stretches as pieces in flight.)
const RUNS_LOOKED_AT: usize = 32;

/// Slots of consecutive blocks.
#[derive(Debug)]
struct Run {
    zone: ZoneIndex,
    first: Blocks,
    slots: Vec<u8>,
    /// The operations that they belong to.
    ops: Vec<u32>,
}

impl Run {
    fn end(&self) -> Blocks {
        Blocks(self.first.0 + (self.slots.len() / SLOT_LEN) as u64)
    }
}

/// Slots that are to be written.
#[derive(Debug, Default)]
pub(super) struct SlotWriter {
    /// The first `used` are filled; the others keep their memory.
    runs: Vec<Run>,
    used: usize,
}

impl SlotWriter {
    /// Nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Takes the slots of blocks `first` and following of `zone`, which belong to operation `op`.
    pub(super) fn push(&mut self, zone: ZoneIndex, first: Blocks, op: u32, slots: &[u8]) {
        let filled = self.runs.get_mut(..self.used).unwrap_or_default();
        let before = filled
            .iter_mut()
            .rev()
            .take(RUNS_LOOKED_AT)
            .find(|run| run.zone == zone && run.end() == first);
        let run = match before {
            Some(run) => run,
            None => self.begin(zone, first),
        };
        run.slots.extend_from_slice(slots);
        if run.ops.last() != Some(&op) {
            run.ops.push(op);
        }
    }

    fn begin(&mut self, zone: ZoneIndex, first: Blocks) -> &mut Run {
        if self.used == self.runs.len() {
            self.runs.push(Run {
                zone,
                first,
                slots: Vec::new(),
                ops: Vec::new(),
            });
        }
        let run = &mut self.runs[self.used];
        self.used += 1;
        run.zone = zone;
        run.first = first;
        run.slots.clear();
        run.ops.clear();
        run
    }

    /// Writes what gathered, and calls `failed` for every operation whose slots could not be.
    pub(super) fn write(
        &mut self,
        medium: &impl Medium,
        layout: &Layout,
        mut failed: impl FnMut(u32, ZoneIndex, &io::Error),
    ) {
        let filled = self.runs.get(..self.used).unwrap_or_default();
        for run in filled {
            let offset = slot_offset(layout, run.zone, run.first);
            if let Err(e) = medium.write_loose_at(offset, &run.slots) {
                for &op in &run.ops {
                    failed(op, run.zone, &e);
                }
            }
        }
        self.used = 0;
    }
}

/// Where the slot of `block` of `zone` lies.
pub(super) fn slot_offset(layout: &Layout, zone: ZoneIndex, block: Blocks) -> u64 {
    layout.tag_offset(zone) + block.0 * SLOT_LEN as u64
}

/// Pages of slots, one after another, that hold what is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PageRange {
    /// The first page of the zone's tag extent.
    pub(super) first: u64,
    /// How many.
    pub(super) count: u64,
}

impl PageRange {
    /// The pages with the slots of `count` (above 0) blocks from `first` on.
    pub(super) fn of(first: Blocks, count: Blocks) -> Self {
        let page = first.0 / SLOTS_PER_PAGE;
        let last = (first.0 + count.0.saturating_sub(1)) / SLOTS_PER_PAGE;
        Self {
            first: page,
            count: last - page + 1,
        }
    }

    /// Offset and length in the image.
    pub(super) fn extent(&self, layout: &Layout, zone: ZoneIndex) -> (u64, u64) {
        let offset = layout.tag_offset(zone) + self.first * SLOT_PAGE;
        (offset, self.count * SLOT_PAGE)
    }

    /// Where in these pages the slot of `block` is.
    pub(super) fn position(&self, block: Blocks) -> usize {
        let slots = block.0.saturating_sub(self.first * SLOTS_PER_PAGE);
        usize::try_from(slots).map_or(usize::MAX, |slots| slots.saturating_mul(SLOT_LEN))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::volume) fn pages(count: u64) -> Vec<u8> {
        let slots = 0..u32::try_from(count * SLOTS_PER_PAGE).unwrap();
        slots
            .flat_map(|slot| slot.to_le_bytes().repeat(SLOT_LEN / 4))
            .collect()
    }

    pub(in crate::volume) fn slots(first: u64, count: u64) -> Vec<u8> {
        let bytes = |slots: u64| usize::try_from(slots).unwrap() * SLOT_LEN;
        pages(8)[bytes(first)..][..bytes(count)].to_vec()
    }

    #[test]
    fn slots_of_consecutive_blocks_go_out_as_one() {
        let mut writer = SlotWriter::default();
        assert!(writer.is_empty());
        writer.push(ZoneIndex(1), Blocks(7), 10, &slots(7, 1));
        writer.push(ZoneIndex(2), Blocks(0), 11, &slots(0, 2));
        writer.push(ZoneIndex(1), Blocks(8), 12, &slots(8, 3));
        assert_eq!(writer.used, 2);
        assert_eq!(writer.runs[0].slots, slots(7, 4));
        assert_eq!(writer.runs[0].ops, [10, 12]);
    }
}
