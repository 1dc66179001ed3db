//! An image that lives in memory, mapped: its bytes are copied to and fro without a system call.
//!
//! On a tmpfs a read of 4 KiB through a descriptor spends three quarters of its time finding the page and on
//! the way into the kernel and back. A mapping has all that done once a page, by the processor's own tables.
//! Doing it is dear, though, and touching a hole of the file through a mapping makes a page of it, also to
//! read. Hence the map of what is there:
//!
//! - Only pages known to *exist* are touched: those that were written through the descriptor, and those of
//!   which it has read something else than zeroes (and ciphertext is never that). The rest goes through the
//!   descriptor, which reads holes as zeroes and leaves them holes, and allocates at half the cost of a fault.
//! - A page that exists is not in our tables before it is touched for the first time. A read brings in its
//!   neighbours too (the kernel's fault-around), a write only itself; so what is to be written is read first.
//!
//! The file may shrink by whole pages, or its file system may have no page left when one comes back from swap:
//! then there are zeros in the mapping ([`guard`]), it knows that it lost something, and
//! everything goes through the descriptor from then on, which says what is wrong.
//!
//! What is written through a mapping is in the page cache at once, as what is written through a descriptor,
//! and outlives a killed daemon as that does. But a kill can come in the middle of a copy, and never in the
//! middle of a page that is written through a descriptor. Zone records, which must be whole or not there at all,
//! go that way; blocks that are written in place are written twice ([`double`](super::double)).
#![expect(
    unsafe_code,
    reason = "a file's pages are copied by address, and past the processor's caches"
)]

use std::fs::File;
use std::io;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering, compiler_fence};

use log::warn;
use vm_memory::{FileOffset, MmapRegion};

use super::double::{Head, Slot, Slots};
use crate::guard::{self, Guarded, guard_image};
use crate::mutant::{self, Mutant, Point};

/// Bytes of a page: what exists or does not.
const PAGE: u64 = 4096;
/// Pages that one read fault brings in at most (the kernel's default of `fault_around_bytes`, 64 KiB).
const AROUND: u64 = 16;
/// Pages of a word of the map.
const WORD: u64 = u64::BITS as u64;
/// Bytes of what the processor fetches at a time.
#[cfg(target_arch = "x86_64")]
const CACHE_LINE: usize = 64;
/// From how many bytes on it pays to write past the caches.
#[cfg(target_arch = "x86_64")]
const STREAM: usize = 512;

/// A set of pages. Memory is used for what is touched of it.
#[derive(Debug)]
struct Pages(Box<[AtomicU64]>);

impl Pages {
    fn none_of(pages: u64) -> io::Result<Self> {
        let words = usize::try_from(pages.div_ceil(WORD)).map_err(io::Error::other)?;
        // By the allocator and so, if they are many, by the kernel when they are touched.
        let words = Box::new_zeroed_slice(words);
        // SAFETY: an atomic integer of zeroed bytes is zero.
        Ok(Self(unsafe { words.assume_init() }))
    }

    /// The words with `pages`, which are not empty, and the bits of these.
    fn words(&self, first: u64, end: u64) -> impl Iterator<Item = (&AtomicU64, u64)> {
        (first / WORD..end.div_ceil(WORD)).filter_map(move |word| {
            let begin = first.saturating_sub(word * WORD);
            let after = (end - word * WORD).min(WORD);
            let bits = (u64::MAX >> (WORD - (after - begin))) << begin;
            Some((self.0.get(usize::try_from(word).ok()?)?, bits))
        })
    }

    /// Whether `first..end`, which are pages of the set's file, are all in it.
    fn has_all(&self, first: u64, end: u64) -> bool {
        self.words(first, end)
            .all(|(word, bits)| word.load(Ordering::Relaxed) & bits == bits)
    }

    fn add(&self, first: u64, end: u64) {
        for (word, bits) in self.words(first, end) {
            if word.load(Ordering::Relaxed) & bits != bits {
                word.fetch_or(bits, Ordering::Relaxed);
            }
        }
    }

    fn remove(&self, first: u64, end: u64) {
        for (word, bits) in self.words(first, end) {
            // Most of a large file was never there.
            if word.load(Ordering::Relaxed) & bits != 0 {
                word.fetch_and(!bits, Ordering::Relaxed);
            }
        }
    }
}

/// What became of a write in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Twice {
    /// It is written.
    Done,
    /// Its pages are not there, or it is of parts of sectors: perhaps some of it is written.
    NotThere,
    /// A page went away meanwhile. All has to be written through the descriptor, and the slot's head after it.
    Lost,
}

/// A mapped image.
#[derive(Debug)]
pub(super) struct Mapped {
    /// Ends before the mapping does.
    guarded: Guarded,
    map: MmapRegion,
    writable: bool,
    /// Whole pages of the file.
    pages: u64,
    /// Those known to exist.
    there: Pages,
    /// Groups of [`AROUND`] pages that were read since they are there.
    touched: Pages,
}

impl Mapped {
    /// Maps the first `len` bytes of a file in memory; `writable`: it is open for that.
    ///
    /// # Errors
    /// Those of the system: whoever limits the address space may forbid it.
    pub(super) fn new(file: &File, len: u64, writable: bool) -> io::Result<Self> {
        guard::install()?;
        let size = usize::try_from(len).map_err(io::Error::other)?;
        let place = FileOffset::new(file.try_clone()?, 0);
        let write = if writable { libc::PROT_WRITE } else { 0 };
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        let mapped = MmapRegion::build(Some(place), size, libc::PROT_READ | write, flags);
        let map = mapped.map_err(io::Error::other)?;
        let guarded = guard_image(map.as_ptr(), map.size()).map_err(io::Error::other)?;
        let pages = len / PAGE;
        Ok(Self {
            guarded,
            map,
            writable,
            pages,
            there: Pages::none_of(pages)?,
            touched: Pages::none_of(pages.div_ceil(AROUND))?,
        })
    }

    /// The pages with `len` bytes at `offset`; `None` if some are not in the mapping, or there are none.
    fn pages(&self, offset: u64, len: usize) -> Option<(u64, u64)> {
        let end = offset.checked_add(u64::try_from(len).ok()?)?;
        let (first, end) = (offset / PAGE, end.div_ceil(PAGE));
        (first < end && end <= self.pages).then_some((first, end))
    }

    /// The pages with `len` bytes at `offset`, if all of them are there, and nothing was ever lost.
    fn known(&self, offset: u64, len: usize) -> Option<(u64, u64)> {
        let (first, end) = self.pages(offset, len)?;
        if self.guarded.is_lost() {
            static SAID: Once = Once::new();
            SAID.call_once(|| {
                warn!(
                    "a page of the image went away under its mapping: was the file cut, or is its \
                     file system full? It is read and written without the mapping from now on"
                );
            });
            return None;
        }
        self.there.has_all(first, end).then_some((first, end))
    }

    fn address(&self, offset: u64) -> *mut u8 {
        // Inside of the mapping, as `pages` has said: the offset fits.
        self.map
            .as_ptr()
            .wrapping_add(usize::try_from(offset).unwrap_or_default())
    }

    /// Fills `buf` from byte `offset`. `false`: not all of it is there, or something is lost, and nothing
    /// of `buf` counts.
    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> bool {
        if self.known(offset, buf.len()).is_none() {
            return false;
        }
        // SAFETY: all of it lies inside of the mapping, which lives as long as `self`, and apart from `buf`,
        // which no mapping of a file can be. Others may write there meanwhile, through their own channels or
        // from outside: whoever reads blocks that are being written, or are tampered with, gets some mixture
        // of bytes, which is checked before it is used. Nothing refers to mapped bytes.
        unsafe { ptr::copy_nonoverlapping(self.address(offset), buf.as_mut_ptr(), buf.len()) };
        !self.guarded.is_lost()
    }

    /// Asks the processor for `len` bytes at `offset`.
    pub(super) fn prefetch(&self, offset: u64, len: usize) {
        if self.known(offset, len).is_some() {
            prefetch(self.address(offset), len);
        }
    }

    /// Writes `buf` at byte `offset`. `false`: not all of the pages are there, or something is lost; all has
    /// to be written once more then, through the descriptor. Other threads may see it late, before [`settle`].
    pub(super) fn write(&self, offset: u64, buf: &[u8]) -> bool {
        let Some((first, end)) = self.known(offset, buf.len()).filter(|_| self.writable) else {
            return false;
        };
        self.touch(first, end);
        // SAFETY: as for `read`.
        unsafe { copy_past_caches(buf, self.address(offset)) };
        !self.guarded.is_lost()
    }

    /// The same, by way of `slot`, which the caller has to itself: if the process is killed meanwhile, the next
    /// one finds of each page what was there before, or what should be; and of two threads that write a page at
    /// the same time, one is the last.
    pub(super) fn write_twice(&self, slots: &Slots, slot: Slot, offset: u64, buf: &[u8]) -> Twice {
        let Some((first, end)) = self.known(offset, buf.len()).filter(|_| self.writable) else {
            return Twice::NotThere;
        };
        self.touch(first, end);
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let in_page = usize::try_from(PAGE - at % PAGE).unwrap_or(rest.len());
            let (page, behind) = rest.split_at(in_page.min(rest.len()));
            let Some(head) = Head::new(at, page.len()) else {
                return Twice::NotThere;
            };
            let _held = slots.hold(at);
            if !self.write_page(slot, head, at, page) {
                return Twice::Lost;
            }
            at += page.len() as u64;
            rest = behind;
        }
        Twice::Done
    }

    /// Slot, head, place, head. `false`: something is lost, and the head may say anything.
    fn write_page(&self, slot: Slot, head: Head, at: u64, page: &[u8]) -> bool {
        // SAFETY: the slot is a whole page of the mapping, apart from `page`, and this thread's alone.
        unsafe {
            let content = self.address(slot.content);
            ptr::copy_nonoverlapping(page.as_ptr(), content, page.len());
        }
        if self.guarded.is_lost() {
            return false;
        }
        if !Mutant::WriteInPlaceOnce.is_on() {
            self.say(slot, head);
        }
        for (index, half) in page.chunks(page.len().div_ceil(2)).enumerate() {
            if index == 1 {
                mutant::pass(Point::HalfWritten);
            }
            let place = self.address(at + (index * half.len()) as u64);
            // SAFETY: as for `read`.
            unsafe { copy_past_caches(half, place) };
        }
        if self.guarded.is_lost() {
            return false;
        }
        self.say(slot, Head::NOTHING);
        !self.guarded.is_lost()
    }

    /// Puts down what `slot` holds, after all that was written before, and before all that is written later.
    fn say(&self, slot: Slot, head: Head) {
        // A killed thread has done what stands before the instruction that it got to, and nothing behind it:
        // that the compiler keeps the order is enough.
        compiler_fence(Ordering::SeqCst);
        // SAFETY: the head is eight bytes of the mapping, at a multiple of that, and this thread's alone.
        let place = unsafe { AtomicU64::from_ptr(self.address(slot.head).cast()) };
        place.store(head.0.to_le(), Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
    }

    /// Brings pages that exist into our tables.
    fn touch(&self, first: u64, end: u64) {
        for group in first / AROUND..end.div_ceil(AROUND) {
            if self.touched.has_all(group, group + 1) {
                continue;
            }
            let page = first.max(group * AROUND);
            // SAFETY: `first..end` lies inside of the mapping, and so does `page`, which is of it.
            unsafe { ptr::read_volatile(self.address(page * PAGE)) };
            self.touched.add(group, group + 1);
        }
    }

    /// `buf` was read at `offset` through the descriptor: a page exists if there is anything in it.
    pub(super) fn note_read(&self, offset: u64, buf: &[u8]) {
        let Some((first, end)) = self.pages(offset, buf.len()) else {
            return;
        };
        let mut rest = buf;
        for page in first..end {
            let in_page = (page + 1) * PAGE - offset.max(page * PAGE);
            let len = usize::try_from(in_page).unwrap_or(rest.len());
            let (of_page, behind) = rest.split_at(len.min(rest.len()));
            // The first byte of ciphertext tells mostly.
            if of_page.iter().any(|&byte| byte != 0) {
                self.there.add(page, page + 1);
            }
            rest = behind;
        }
    }

    /// `len` bytes at `offset` were written through the descriptor: their pages exist.
    pub(super) fn note_written(&self, offset: u64, len: usize) {
        if let Some((first, end)) = self.pages(offset, len) {
            self.there.add(first, end);
        }
    }

    /// `len` bytes at `offset` are about to be given back.
    pub(super) fn note_freed(&self, offset: u64, len: u64) {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if let Some((first, end)) = self.pages(offset, len) {
            self.there.remove(first, end);
            self.touched.remove(first / AROUND, end.div_ceil(AROUND));
        }
    }
}

/// Asks the processor for `len` bytes at `from`, without waiting for them.
fn prefetch(from: *const u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        for line in (0..len).step_by(CACHE_LINE) {
            // SAFETY: a prefetch is a hint: it touches no register and no memory, faults nowhere, and SSE
            // is part of every x86-64 processor.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(line).cast()) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (from, len);
}

/// Copies `from` to `to` without asking the processor for what is there now, and without leaving there what
/// nobody reads soon. Other threads may see it late, before [`settle`].
///
/// # Safety
/// `to` is the start of as many bytes as `from` has, mapped and writable, and apart from `from`.
unsafe fn copy_past_caches(from: &[u8], to: *mut u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};
        const LANE: usize = size_of::<__m128i>();
        if from.len() >= STREAM && to.addr().is_multiple_of(LANE) {
            let (lanes, rest) = from.as_chunks::<LANE>();
            for (at, lane) in lanes.iter().enumerate() {
                // SAFETY: SSE2 is part of every x86-64 processor; the source is a live array of 16 bytes,
                // of any alignment, the target lies inside of what the caller vouches for, and is aligned.
                unsafe {
                    let lane = _mm_loadu_si128(lane.as_ptr().cast());
                    _mm_stream_si128(to.add(at * LANE).cast(), lane);
                }
            }
            let done = lanes.len() * LANE;
            // SAFETY: the caller vouches for all of `to`; the rest lies behind what is done.
            unsafe { ptr::copy_nonoverlapping(rest.as_ptr(), to.add(done), rest.len()) };
            return;
        }
    }
    // SAFETY: the caller vouches for it.
    unsafe { ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
}

/// What this thread has written to mappings is seen by whoever sees what it writes from here on.
pub(super) fn settle() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of every x86-64 processor.
    unsafe {
        core::arch::x86_64::_mm_sfence();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::super::sys;
    use super::*;

    const LEN: u64 = 1 << 20;

    /// An image in memory of which nothing exists.
    fn sparse() -> File {
        let memory = memfd::MemfdOptions::new().create("image").unwrap();
        let file = memory.into_file();
        file.set_len(LEN).unwrap();
        file
    }

    fn allocated(file: &File) -> u64 {
        file.metadata().unwrap().blocks() * 512
    }

    #[test]
    fn what_does_not_exist_is_not_touched() {
        let file = sparse();
        let mapped = Mapped::new(&file, LEN, true).unwrap();
        let mut buf = [1; 4096];
        assert!(!mapped.read(8192, &mut buf));
        assert!(!mapped.write(8192, &buf));
        assert_eq!(allocated(&file), 0);
        file.write_all_at(&buf, 8192).unwrap();
        mapped.note_written(8192, buf.len());
        assert!(mapped.write(8192, &[7; 4096]));
        assert!(mapped.read(8192, &mut buf));
        assert_eq!(buf, [7; 4096]);
        assert!(!mapped.read(8191, &mut buf) && !mapped.read(8193, &mut buf));
        assert_eq!(allocated(&file), 4096);
    }

    #[test]
    fn what_was_read_is_there_and_what_is_given_back_is_left_alone() {
        let file = sparse();
        file.write_all_at(&[3; 65536], 131_072).unwrap();
        let mapped = Mapped::new(&file, LEN, true).unwrap();
        let mut buf = vec![0; 65536 + 8192];
        assert!(!mapped.read(131_072, &mut buf[..4096]));
        file.read_exact_at(&mut buf, 131_072 - 4096).unwrap();
        mapped.note_read(131_072 - 4096, &buf);
        let data = &mut buf[..65536];
        assert!(mapped.read(131_072, data));
        assert!(data.iter().all(|&byte| byte == 3));
        assert!(!mapped.read(131_071, &mut data[..2]) && !mapped.read(196_607, &mut data[..2]));
        mapped.note_freed(131_072, 65536);
        sys::deallocate(&file, 131_072, 65536).unwrap();
        assert!(!mapped.read(135_168, &mut data[..4096]));
        assert_eq!(allocated(&file), 0);
    }

    #[test]
    fn reads_of_parts_of_pages_tell_of_these_pages_only() {
        let file = sparse();
        file.write_all_at(&[3; 8192], 4096).unwrap();
        let mapped = Mapped::new(&file, LEN, true).unwrap();
        let mut buf = [0; 5000];
        file.read_exact_at(&mut buf, 8000).unwrap();
        mapped.note_read(8000, &buf);
        assert!(mapped.read(4096, &mut buf[..10]) && mapped.read(12_280, &mut buf[..8]));
        assert!(!mapped.read(12_288, &mut buf[..1]) && !mapped.read(0, &mut buf[..1]));
    }

    #[test]
    fn a_last_page_that_is_not_whole_is_left_to_the_descriptor() {
        let file = sparse();
        let len = WORD * PAGE + 512;
        let mapped = Mapped::new(&file, len, true).unwrap();
        mapped.note_written(0, usize::try_from(len).unwrap());
        mapped.note_written(WORD * PAGE, 512);
        assert!(!mapped.read(WORD * PAGE, &mut [0; 512]));
        assert_eq!(allocated(&file), 0);
    }

    #[test]
    fn writes_of_any_place_and_length_are_in_the_file() {
        let file = sparse();
        file.write_all_at(&vec![0; usize::try_from(LEN).unwrap()], 0)
            .unwrap();
        let mapped = Mapped::new(&file, LEN, true).unwrap();
        mapped.note_written(0, usize::try_from(LEN).unwrap());
        let bytes: Vec<u8> = (0..=250).cycle().take(140_000).collect();
        for (offset, len) in [
            (0, 4096),
            (512, 512),
            (4095, 2),
            (65_535, 131_072),
            (16, 1000),
        ] {
            assert!(mapped.write(offset, &bytes[..len]));
            let mut found = vec![0; len];
            file.read_exact_at(&mut found, offset).unwrap();
            assert_eq!(found, bytes[..len]);
        }
        let slots = Slots::new(LEN / 2);
        let slot = slots.take().unwrap();
        for (offset, len) in [
            (65_536, 4096),
            (66_048, 512),
            (69_120, 131_072),
            (LEN - 4096, 4096),
        ] {
            let written = mapped.write_twice(&slots, slot, offset, &bytes[..len]);
            assert_eq!(written, Twice::Done);
            let mut found = vec![0; len];
            file.read_exact_at(&mut found, offset).unwrap();
            assert_eq!(found, bytes[..len]);
        }
        let mut heads = [1; 4096];
        file.read_exact_at(&mut heads, LEN / 2).unwrap();
        assert_eq!(heads, [0; 4096], "nothing is being written");
        for (offset, len) in [(65_537, 512), (65_536, 513), (LEN, 512)] {
            let written = mapped.write_twice(&slots, slot, offset, &bytes[..len]);
            assert_eq!(written, Twice::NotThere);
        }
        let last = LEN - 10;
        assert!(mapped.write(last, &bytes[..10]));
        assert!(!mapped.write(last, &bytes[..11]));
        assert!(!mapped.write(u64::MAX, &bytes[..11]));
    }

    #[test]
    fn a_file_that_shrank_is_left_to_the_descriptor() {
        let file = sparse();
        file.write_all_at(&[3; 65536], 0).unwrap();
        let mapped = Mapped::new(&file, LEN, true).unwrap();
        mapped.note_written(0, 65536);
        let mut buf = [0; 4096];
        assert!(mapped.read(61_440, &mut buf));
        file.set_len(32768).unwrap();
        assert!(!mapped.read(61_440, &mut buf));
        assert!(!mapped.read(0, &mut buf), "nothing is sure any more");
        let slots = Slots::new(0);
        let slot = slots.take().unwrap();
        let written = mapped.write_twice(&slots, slot, 28_672, &buf);
        assert_eq!(written, Twice::NotThere);
        assert!(!mapped.write(0, &buf));
    }

    #[test]
    fn sets_of_pages_begin_and_end_anywhere() {
        let pages = Pages::none_of(200).unwrap();
        pages.add(60, 130);
        assert!(pages.has_all(60, 130) && pages.has_all(64, 128) && pages.has_all(63, 65));
        assert!(!pages.has_all(59, 61) && !pages.has_all(129, 131));
        pages.remove(64, 65);
        assert!(!pages.has_all(60, 130) && pages.has_all(65, 130) && pages.has_all(60, 64));
        pages.add(0, 200);
        assert!(pages.has_all(0, 200));
    }
}
