//! Pages for keys, from the kernel.
#![expect(
    unsafe_code,
    reason = "memfd_secret, mmap, madvise and mlock2 have no safe form"
)]

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::{NonNull, null_mut};
use std::sync::Once;

/// How pages are protected, the strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protection {
    /// Not in the kernel's map of memory (memfd_secret): not swapped, not dumped, not read from outside.
    Secret,
    /// Locked: not swapped, not dumped.
    Locked,
    /// Not dumped, but they may be written to swap.
    Swappable,
}

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Secret => "secret memory",
            Self::Locked => "locked memory",
            Self::Swappable => "memory that may be swapped",
        })
    }
}

/// Which system calls may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Calls {
    /// Those of a process that is not confined yet.
    All,
    /// Those that any heap makes, mmap and madvise: a sandbox may end the process for others.
    OfTheHeap,
}

/// `len` bytes of fresh zeroed pages that live as long as the process, as well protected as `calls` can
/// do it. `None` without memory.
pub(super) fn map(len: usize, calls: Calls) -> Option<(NonNull<u8>, Protection)> {
    if calls == Calls::OfTheHeap {
        let start = map_anonymous(len).ok()?;
        warn_of_swap(&io::Error::other("there are more than expected"));
        return Some((start, Protection::Swappable));
    }
    if let Ok(start) = map_secret(len) {
        return Some((start, Protection::Secret));
    }
    let start = map_anonymous(len).ok()?;
    match lock(start, len) {
        Ok(()) => Some((start, Protection::Locked)),
        Err(error) => {
            warn_of_swap(&error);
            Some((start, Protection::Swappable))
        }
    }
}

fn map_secret(len: usize) -> io::Result<NonNull<u8>> {
    // SAFETY: the call takes a flag and no pointer.
    let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us. The mapping outlives it.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len as u64)?;
    let start = mmap(len, libc::MAP_SHARED, file.as_raw_fd())?;
    // Such pages can only be shared, and MADV_WIPEONFORK is for private ones: a child gets none.
    advise(start, len, libc::MADV_DONTFORK).inspect_err(|_| unmap(start, len))?;
    Ok(start)
}

fn map_anonymous(len: usize) -> io::Result<NonNull<u8>> {
    let start = mmap(len, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)?;
    for advice in [libc::MADV_DONTDUMP, libc::MADV_WIPEONFORK] {
        // The process is not dumpable and does not fork: these are for the day when it is and does.
        if let Err(error) = advise(start, len, advice) {
            log::debug!("madvise({advice}) of pages for keys: {error}");
        }
    }
    Ok(start)
}

fn mmap(len: usize, flags: i32, fd: i32) -> io::Result<NonNull<u8>> {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: without an address of ours it replaces no other mapping.
    let start = unsafe { libc::mmap(null_mut(), len, access, flags, fd, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(start.cast()).ok_or_else(|| io::Error::other("a mapping at 0"))
}

fn unmap(start: NonNull<u8>, len: usize) {
    // SAFETY: the mapping is ours and nobody was given it yet.
    unsafe { libc::munmap(start.as_ptr().cast(), len) };
}

fn advise(start: NonNull<u8>, len: usize, advice: i32) -> io::Result<()> {
    // SAFETY: the range is a mapping of ours that nobody was given yet.
    check(unsafe { libc::madvise(start.as_ptr().cast(), len, advice) })
}

/// Locks pages, each as it is first used: those that never are cost nothing but a part of the limit.
fn lock(start: NonNull<u8>, len: usize) -> io::Result<()> {
    let on_fault = libc::MLOCK_ONFAULT;
    // SAFETY: it reads and writes nothing; the range is a mapping of ours.
    check(unsafe { libc::mlock2(start.as_ptr().cast(), len, on_fault) })
}

fn check(result: i32) -> io::Result<()> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn warn_of_swap(error: &io::Error) {
    static WARNED: Once = Once::new();
    WARNED.call_once(|| {
        log::warn!(
            "not all keys are locked into memory ({error}), they may be written to swap: raise \
             RLIMIT_MEMLOCK (`ulimit -l`, `LimitMEMLOCK=` of systemd), or use fewer --keyslots"
        );
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The flags of the mapping at `start`.
    fn flags(start: NonNull<u8>) -> String {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let prefix = format!("{:x}-", start.as_ptr().addr());
        let from = smaps.find(&prefix).unwrap();
        let line = smaps[from..].lines().find(|l| l.starts_with("VmFlags:"));
        format!("{} ", line.unwrap())
    }

    #[test]
    fn anonymous_pages_are_undumpable_and_wiped_in_a_child() {
        // Of a size of its own, so that the kernel joins it to no neighbour with other flags.
        let start = map_anonymous(48 << 10).unwrap();
        let locked = lock(start, 48 << 10).is_ok();
        let flags = flags(start);
        assert!(flags.contains(" dd ") && flags.contains(" wf "), "{flags}");
        assert_eq!(flags.contains(" lo "), locked, "{flags}");
    }

    #[test]
    fn secret_pages_are_locked_undumpable_and_unknown_to_a_child() {
        match map_secret(48 << 10) {
            Ok(start) => {
                let flags = flags(start);
                for wanted in [" lo ", " dd ", " dc "] {
                    assert!(flags.contains(wanted), "{flags}");
                }
            }
            // An older kernel, or a limit: what is used then is tested above.
            Err(error) => assert!(
                [libc::ENOSYS, libc::EPERM, libc::EAGAIN].contains(&error.raw_os_error().unwrap()),
                "{error}"
            ),
        }
    }
}
