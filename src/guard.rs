//! Mapped files that somebody else may shorten under us.
//!
//! Guest memory and the inflight region are files of the front-end. Touching a page beyond the end that
//! such a file has *now* raises SIGBUS, and the default action of that is the end of the daemon: any
//! front-end could take down a disk in the middle of its work. A mapping that is registered here gets
//! zeros in place of what went, and the fault is counted ([`faults`]); whoever works with
//! the memory looks at the count and stops. An image that is mapped is guarded too, and counts by itself
//! ([`Guarded::is_lost`]): no front-end has anything to do with it. A fault anywhere else does what it did
//! before [`install`].
//!
//! The handler is async-signal-safe: it reads a table of atomics, calls `mmap`, and nothing else.
#![expect(
    unsafe_code,
    reason = "a signal handler, and the page that it maps over a lost one"
)]

mod table;

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use thiserror::Error;

use table::{Range, Table};

/// Mappings at a time: two tables of as many regions as a front-end may hand over, one in use and one
/// about to be, and as much again for what a dying connection still holds. (An image is one more.)
const MAX_RANGES: usize = 2048;
/// The smallest page of any machine that this runs on.
const SMALL_PAGE: usize = 4096;

static RANGES: Table<MAX_RANGES> = Table::new();
static FAULTS: AtomicU64 = AtomicU64::new(0);
/// What SIGBUS did before, for faults that are none of ours.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();
static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();

/// More mappings are guarded than there is room for.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("more than {MAX_RANGES} mappings at a time")]
pub struct TooMany;

/// A mapping that is guarded until this is dropped, which has to happen before it is unmapped or at once
/// afterwards.
#[derive(Debug)]
pub struct Guarded(usize);

impl Guarded {
    /// Whether some of the mapping went. What was read before this was `false` was the file's.
    pub fn is_lost(&self) -> bool {
        // Not before what was read.
        fence(Ordering::Acquire);
        RANGES.is_lost(self.0)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        RANGES.remove(self.0);
    }
}

/// Guards the `len` bytes of a front-end's mapped at `start`. `page`: bytes of a page of the mapped file, as
/// `st_blksize` tells for files with huge pages; anything smaller than a page counts as one.
///
/// # Errors
/// [`TooMany`].
pub fn guard(start: *const u8, len: usize, page: usize) -> Result<Guarded, TooMany> {
    register(start, len, page, true)
}

/// Guards a mapping of an image: its faults are not among [`faults`].
///
/// # Errors
/// [`TooMany`].
pub fn guard_image(start: *const u8, len: usize) -> Result<Guarded, TooMany> {
    register(start, len, SMALL_PAGE, false)
}

fn register(start: *const u8, len: usize, page: usize, counts: bool) -> Result<Guarded, TooMany> {
    let start = start.addr();
    let range = Range {
        start,
        end: start.saturating_add(len),
        page,
        counts,
    };
    RANGES.insert(range).map(Guarded).ok_or(TooMany)
}

/// Faults so far in guarded mappings of front-ends: with each there are zeros where the front-end's memory was.
pub fn faults() -> u64 {
    FAULTS.load(Ordering::Acquire)
}

/// Installs the handler, once for the process.
///
/// # Errors
/// Those of `sigaction`.
pub fn install() -> io::Result<()> {
    let installed = INSTALLED
        .get_or_init(|| install_now().map_err(|e| e.raw_os_error().unwrap_or(libc::EINVAL)));
    installed.map_err(io::Error::from_raw_os_error)
}

fn install_now() -> io::Result<()> {
    let mut before = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: no new action is given; `before` has room for the old one.
    let asked = unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), before.as_mut_ptr()) };
    if asked != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded and filled it.
    let before = unsafe { before.assume_init() };
    // In place before the handler can want it.
    let _ = BEFORE.set(before);
    // SAFETY: sigaction is a plain C structure for which all bits zero is valid; the mask is emptied by
    // that already.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_sigbus;
    action.sa_sigaction = handler as *const () as libc::sighandler_t;
    // On the alternative stack, which every thread of the standard library has: a worker may be deep.
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler has the signature that SA_SIGINFO wants and calls only what is
    // async-signal-safe.
    let set = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) };
    if set != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

extern "C" fn on_sigbus(
    _signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: the kernel hands a valid siginfo over to a handler with SA_SIGINFO.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    // Above zero it is the kernel that speaks of a fault, otherwise somebody sent the signal.
    let fault = code > 0;
    if fault && patch(address) {
        return;
    }
    // SAFETY: as in `install_now`; sigaction and raise are async-signal-safe. If it was a fault, the
    // instruction is tried again under the old action; if not, the signal comes again.
    unsafe {
        if let Some(before) = BEFORE.get().filter(|_| fault) {
            libc::sigaction(libc::SIGBUS, before, ptr::null_mut());
        } else {
            libc::signal(libc::SIGBUS, libc::SIG_DFL);
            libc::raise(libc::SIGBUS);
        }
    }
}

/// Puts a page of zeros where `address` lies in a guarded mapping. `false` if it lies in none.
fn patch(address: usize) -> bool {
    let Some((at, range)) = RANGES.find(address) else {
        return false;
    };
    // Before there are zeros to be read.
    RANGES.lose(at);
    if !range.counts {
        // Of an image nothing is touched any more but by copies that are under way.
        return map_zeros(address, (address | (SMALL_PAGE - 1)) + 1, SMALL_PAGE);
    }
    FAULTS.fetch_add(1, Ordering::Release);
    // Behind a page that went there is none left: all at once, or each would become a mapping of its own,
    // of which a process may have only so many. A mapping of huge pages can be replaced only in whole ones.
    map_zeros(address, range.end, SMALL_PAGE) || map_zeros(address, range.end, range.page)
}

/// Maps zeros from the page of `size` bytes, a power of two, in which `address` lies to that in which the
/// mapping ends.
fn map_zeros(address: usize, end: usize, size: usize) -> bool {
    if !size.is_power_of_two() || size < SMALL_PAGE {
        return false;
    }
    let start = address & !(size - 1);
    let Some(len) = (end - start).checked_next_multiple_of(size) else {
        return false;
    };
    // SAFETY: `address` lies in a mapping that its owner registered, mappings consist of whole pages of
    // their file, and so this replaces nothing else. The contents are a foreign process's anyway: no
    // reference into them exists.
    let mapped = unsafe {
        libc::mmap(
            ptr::without_provenance_mut(start),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED,
            -1,
            0,
        )
    };
    mapped != libc::MAP_FAILED
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;

    use super::*;

    /// A mapping of `len` bytes of a file in memory.
    fn map(file: &File, len: usize) -> *mut u8 {
        // SAFETY: a new mapping at a place that the kernel chooses.
        let mapped = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        assert_ne!(mapped, libc::MAP_FAILED);
        mapped.cast()
    }

    #[test]
    fn a_page_that_went_reads_as_zeros_and_is_counted() {
        install().unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(4 * SMALL_PAGE as u64).unwrap();
        let start = map(&file, 4 * SMALL_PAGE);
        let guarded = guard(start, 4 * SMALL_PAGE, SMALL_PAGE).unwrap();
        let before = faults();
        // SAFETY: inside of the mapping, which lives to the end of the test.
        let byte = |at: usize| unsafe { start.add(at).read_volatile() };
        // SAFETY: the same.
        unsafe { start.add(3 * SMALL_PAGE).write_volatile(7) };
        assert_eq!(byte(3 * SMALL_PAGE), 7);
        assert!(!guarded.is_lost());
        file.set_len(2 * SMALL_PAGE as u64).unwrap();
        assert_eq!(byte(2 * SMALL_PAGE + 5), 0);
        assert_eq!(byte(3 * SMALL_PAGE), 0);
        assert_eq!(byte(SMALL_PAGE), 0);
        assert_eq!(faults() - before, 1, "all that went, at once");
        assert!(guarded.is_lost());
        // The page is ordinary memory now.
        // SAFETY: as above.
        unsafe { start.add(3 * SMALL_PAGE).write_volatile(9) };
        assert_eq!(byte(3 * SMALL_PAGE), 9);
        assert_eq!(faults() - before, 1);
        drop(guarded);
        // SAFETY: nothing refers to it any more.
        unsafe { libc::munmap(start.cast(), 4 * SMALL_PAGE) };
    }
}
