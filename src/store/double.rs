//! Blocks that are written in place through a mapping, whole or not at all.
//!
//! A kill can come in the middle of a copy into a mapped image, and a block that is written in place has been
//! something before: half of that and half of this is neither. So it is written twice. Each store has a slot of
//! the image to itself; a page goes there first, then the slot's head says whither it belongs, then it goes
//! there, then the head says nothing again. Whoever opens the image for change next finishes what a head tells
//! of ([`finish`]). That costs the copying of a page that the processor has in its cache anyway, and no call.
//!
//! The area, all integers little-endian:
//!
//! | from | length | what |
//! |---|---|---|
//! | 0 | 4096 | heads: that of slot i at 64 i, 8 bytes; the rest is zero |
//! | 4096 (i + 1) | 4096 | slot i, of 0 to 4 |
//!
//! A head is the place in the image, a multiple of 512, plus the number of sectors in the slot, 1 to 8, which
//! follow each other from the slot's start; 0: nothing.
//!
//! *Write order.* Slot, head, place, head. The instructions of a thread that is killed have taken effect up to
//! one of them, in this order, so nothing here waits for anything. It is not an order for power cuts, nor need
//! it be: memory is gone then, and images elsewhere are not mapped. An image that was copied elsewhere after a
//! kill is finished there all the same, with a sync between the last two steps.
//!
//! Two stores may write the same block at the same time. One after the other does so, page by page
//! ([`Slots::hold`]), as the kernel has it for writes through descriptors. Either may be the last, also when it
//! is finished later: nobody was told that it was done.
//!
//! If a page of the image goes away in the middle of this, then it is the descriptor that writes it, and after
//! that the head's end, since that may have been put where the page was.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, Ordering};

use log::warn;
use parking_lot::{Mutex, MutexGuard};

const PAGE: usize = 4096;
const SECTOR: u64 = 512;
/// Sectors that a head can tell of: a page.
const MAX_SECTORS: u64 = PAGE as u64 / SECTOR;
/// Bytes from head to head: no two threads write to one cache line.
const HEAD_STRIDE: usize = 64;
/// Slots: what fits into the free pages of an image's first 64 KiB. Stores beyond write through the descriptor.
const SLOTS: u32 = 5;
/// Locks that pages share, by their numbers: as many as a piece of 128 KiB has pages, twice, so that two stores
/// rarely wait for one another.
const LOCKS: usize = 64;
/// Bytes of the area.
pub(super) const AREA_LEN: usize = PAGE * (1 + SLOTS as usize);

/// Where in an image blocks are written that are then written in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DoubleArea {
    /// Byte offset of its 24 KiB; a multiple of 4096.
    pub offset: u64,
    /// Where blocks begin that can be written in place.
    pub data_start: u64,
}

/// What a head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head(pub(super) u64);

impl Head {
    /// Nothing is being written.
    pub(super) const NOTHING: Self = Self(0);

    /// `len` bytes are being written at `offset`; `None` if that is not one to eight whole sectors.
    pub(super) fn new(offset: u64, len: usize) -> Option<Self> {
        let len = len as u64;
        let whole = offset.is_multiple_of(SECTOR) && len.is_multiple_of(SECTOR);
        (whole && len > 0 && len <= MAX_SECTORS * SECTOR).then_some(Self(offset | (len / SECTOR)))
    }

    /// Offset and length in bytes of what is being written, if it lies in `data_start..end`. Anything may
    /// stand in an image.
    fn place(self, data_start: u64, end: u64) -> Option<(u64, usize)> {
        let (offset, sectors) = (self.0 / SECTOR * SECTOR, self.0 % SECTOR);
        let len = (1..=MAX_SECTORS)
            .contains(&sectors)
            .then_some(sectors * SECTOR)?;
        let inside = offset >= data_start && offset.checked_add(len)? <= end;
        inside.then_some((offset, usize::try_from(len).ok()?))
    }
}

/// A slot that one store has to itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    /// Byte offset of its head in the image.
    pub(super) head: u64,
    /// Byte offset of its content.
    pub(super) content: u64,
    index: u32,
}

/// The slots of an image, and which of them are taken; and the pages that are being written in place.
#[derive(Debug)]
pub(super) struct Slots {
    area: u64,
    /// A bit for each.
    taken: AtomicU32,
    pages: [Mutex<()>; LOCKS],
}

/// Some pages, for as long as nobody else is to write there.
#[derive(Debug)]
pub(super) struct Held<'s>(
    #[expect(dead_code, reason = "what counts is when they are dropped")]
    [Option<MutexGuard<'s, ()>>; LOCKS],
);

impl Slots {
    /// Those of the area at `offset`, which is finished and all zero.
    pub(super) fn new(offset: u64) -> Self {
        Self {
            area: offset,
            taken: AtomicU32::new(0),
            pages: [const { Mutex::new(()) }; LOCKS],
        }
    }

    /// Keeps others away from the page with byte `offset`.
    pub(super) fn hold(&self, offset: u64) -> Option<MutexGuard<'_, ()>> {
        let number = offset / PAGE as u64 % LOCKS as u64;
        Some(self.pages.get(usize::try_from(number).ok()?)?.lock())
    }

    /// Keeps others away from all pages with some of `len` bytes at `offset`.
    pub(super) fn hold_all(&self, offset: u64, len: usize) -> Held<'_> {
        let (page, locks) = (PAGE as u64, LOCKS as u64);
        let first = offset / page;
        let count = offset
            .saturating_add(len as u64)
            .div_ceil(page)
            .saturating_sub(first);
        let wanted = |lock: u64| (lock + locks - first % locks) % locks < count;
        let mut held = (0..)
            .zip(&self.pages)
            .map(|(lock, mutex)| wanted(lock).then(|| mutex.lock()));
        // In the order that they lie in, so that nobody waits for who waits for him.
        Held(std::array::from_fn(|_| held.next().flatten()))
    }

    /// A slot that nobody has.
    pub(super) fn take(&self) -> Option<Slot> {
        let index = (0..SLOTS).find(|index| {
            let bit = 1 << index;
            self.taken.fetch_or(bit, Ordering::Acquire) & bit == 0
        })?;
        let number = u64::from(index);
        Some(Slot {
            head: self.area + number * HEAD_STRIDE as u64,
            content: self.area + (number + 1) * PAGE as u64,
            index,
        })
    }

    /// Takes one back.
    pub(super) fn give(&self, slot: Slot) {
        self.taken.fetch_and(!(1 << slot.index), Ordering::Release);
    }
}

/// What a killed process was writing in place: heads that say something, each with its slot's number.
fn begun(file: &File, area: DoubleArea) -> io::Result<Vec<(usize, Head)>> {
    let mut heads = [0; PAGE];
    file.read_exact_at(&mut heads, area.offset)?;
    let (heads, _) = heads.as_chunks::<HEAD_STRIDE>();
    let all = heads.iter().take(SLOTS as usize).enumerate();
    let said = all.filter_map(|(index, line)| {
        let head = Head(u64::from_le_bytes(*line.first_chunk()?));
        (head != Head::NOTHING).then_some((index, head))
    });
    Ok(said.collect())
}

/// Whether some block may be written in half.
pub(super) fn is_unfinished(file: &File, area: DoubleArea) -> io::Result<bool> {
    Ok(!begun(file, area)?.is_empty())
}

/// Finishes what a killed process was writing in place in an image of `len` bytes. Returns how many pages
/// that were; afterwards no head says anything.
///
/// # Errors
/// Those of the file. What is not finished stays as it was.
pub(super) fn finish(file: &File, area: DoubleArea, len: u64) -> io::Result<usize> {
    let begun = begun(file, area)?;
    if begun.is_empty() {
        return Ok(0);
    }
    let mut finished = 0;
    for &(index, head) in &begun {
        let Some((place, bytes)) = head.place(area.data_start, len) else {
            warn!(
                "what was being written to byte {:#x} of the image is not a block; left alone",
                head.0
            );
            continue;
        };
        let mut page = [0; PAGE];
        let content = page.get_mut(..bytes).unwrap_or_default();
        file.read_exact_at(content, area.offset + ((index + 1) * PAGE) as u64)?;
        file.write_all_at(content, place)?;
        finished += 1;
    }
    // Or a power cut could take the block and leave the head's end.
    file.sync_data()?;
    file.write_all_at(&[0; PAGE], area.offset)?;
    Ok(finished)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AREA: DoubleArea = DoubleArea {
        offset: 40960,
        data_start: 1 << 20,
    };
    const LEN: u64 = 2 << 20;

    /// An image in which a process was killed that had written `content` to slot 2, and this head.
    fn killed(head: u64, content: &[u8]) -> File {
        let memory = memfd::MemfdOptions::new().create("image").unwrap();
        let file = memory.into_file();
        file.set_len(LEN).unwrap();
        file.write_all_at(content, AREA.offset + 3 * 4096).unwrap();
        file.write_all_at(&head.to_le_bytes(), AREA.offset + 2 * 64)
            .unwrap();
        file
    }

    fn at(file: &File, offset: u64) -> [u8; 4096] {
        let mut buf = [0; 4096];
        file.read_exact_at(&mut buf, offset).unwrap();
        buf
    }

    #[test]
    fn what_a_head_tells_of_is_finished_once() {
        let place = (1 << 20) + 1024;
        let file = killed(place | 3, &[7; 4096]);
        assert!(is_unfinished(&file, AREA).unwrap());
        assert_eq!(finish(&file, AREA, LEN).unwrap(), 1);
        let mut expected = [0; 4096];
        expected[1024..1024 + 1536].fill(7);
        assert_eq!(at(&file, 1 << 20), expected);
        assert!(!is_unfinished(&file, AREA).unwrap());
        file.write_all_at(&[9; 4096], 1 << 20).unwrap();
        assert_eq!(finish(&file, AREA, LEN).unwrap(), 0);
        assert_eq!(at(&file, 1 << 20), [9; 4096]);
    }

    #[test]
    fn a_head_that_no_daemon_writes_moves_nothing() {
        let heads = [
            // Among the records; behind the end; over the end of all numbers; no sector; nine of them.
            65536 | 1,
            LEN | 1,
            (LEN - 512) | 2,
            (u64::MAX / 512 * 512) | 8,
            1 << 20,
            (1 << 20) | 9,
            u64::MAX,
        ];
        for head in heads {
            let file = killed(head, &[7; 4096]);
            assert_eq!(finish(&file, AREA, LEN).unwrap(), 0, "{head:#x}");
            let mut all = vec![0; usize::try_from(LEN).unwrap()];
            file.read_exact_at(&mut all, 0).unwrap();
            let slot = usize::try_from(AREA.offset).unwrap() + 3 * 4096;
            all[slot..slot + 4096].fill(0);
            assert!(all.iter().all(|&byte| byte == 0), "{head:#x}");
        }
    }

    #[test]
    fn a_head_is_one_to_eight_whole_sectors() {
        let head = Head::new(1 << 20, 4096).unwrap();
        assert_eq!(head.place(0, LEN), Some((1 << 20, 4096)));
        let head = Head::new((1 << 20) + 512, 512).unwrap();
        assert_eq!(head.place(0, LEN), Some(((1 << 20) + 512, 512)));
        for (offset, len) in [(0, 0), (0, 4608), (0, 511), (256, 512)] {
            assert_eq!(Head::new(offset, len), None, "{offset} {len}");
        }
    }

    #[test]
    fn pages_are_held_and_others_are_not() {
        let slots = Slots::new(AREA.offset);
        let free = |slots: &Slots| -> Vec<usize> {
            let all = slots.pages.iter().enumerate();
            all.filter_map(|(at, lock)| lock.try_lock().map(|_| at))
                .collect()
        };
        let held = slots.hold_all(62 * 4096 + 512, 3 * 4096);
        assert_eq!(free(&slots), (2..62).collect::<Vec<_>>());
        drop(held);
        let held = slots.hold(65 * 4096 + 4095);
        assert_eq!(
            free(&slots),
            [0].into_iter().chain(2..64).collect::<Vec<_>>()
        );
        drop(held);
        let held = slots.hold_all(4096, 1 << 20);
        assert_eq!(free(&slots), Vec::<usize>::new());
        drop(held);
        assert_eq!(free(&slots).len(), 64);
    }

    #[test]
    fn no_two_stores_have_the_same_slot() {
        let slots = Slots::new(AREA.offset);
        let mut taken: Vec<Slot> = std::iter::from_fn(|| slots.take()).collect();
        assert_eq!(taken.len(), 5);
        let mut places: Vec<_> = taken.iter().flat_map(|s| [s.head, s.content]).collect();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), 10);
        assert!(places.iter().all(|place| (40960..65536).contains(place)));
        let back = taken.swap_remove(1);
        slots.give(back);
        assert_eq!(slots.take().unwrap().head, back.head);
    }
}
