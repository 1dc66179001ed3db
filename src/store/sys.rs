//! The system calls that the standard library has no safe name for, each behind a safe one.
#![expect(
    unsafe_code,
    reason = "OFD locks, statx, preadv2, fallocate and eventfd are reachable through libc only"
)]

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// What a file demands of O_DIRECT transfers, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DirectDemands {
    /// Alignment of buffers in memory.
    pub(super) memory: u64,
    /// Alignment of offsets and lengths.
    pub(super) offset: u64,
}

/// What statx says of O_DIRECT on a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DirectSupport {
    /// The kernel or the file system is too old to say.
    Unknown,
    /// It has none.
    No,
    /// With these demands.
    Yes(DirectDemands),
}

/// `struct statx` of the kernel's interface up to the fields wanted here: the C libraries differ
/// in how many of them they know. 256 bytes, fixed by the kernel.
#[repr(C)]
struct Statx {
    mask: u32,
    /// Block size to a 64-bit mount id: nothing of it is read.
    unread: [u8; 148],
    dio_mem_align: u32,
    dio_offset_align: u32,
    reserved: [u8; 96],
}

const _: () = assert!(size_of::<Statx>() == 256);
const _: () = assert!(std::mem::offset_of!(Statx, dio_mem_align) == 0x98);

/// `STATX_DIOALIGN` (Linux 6.1).
const STATX_DIOALIGN: libc::c_uint = 0x2000;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// A byte of a file that stands for a right to it. Where a lock lies is a convention of its users;
/// it says nothing of the byte itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct LockByte(pub(super) libc::off_t);

/// What to do with a lock.
#[derive(Clone, Copy, Debug)]
pub(super) enum Lock {
    /// Take it, alone.
    Exclusive,
    /// Take it, along with others.
    Shared,
    /// Give it back.
    Release,
}

/// Changes a lock of an open file description, without waiting. `false` if another description
/// holds one that forbids it.
///
/// Unlike the older POSIX locks it belongs to the description, not to the process: closing some
/// other descriptor of the file does not drop it, a second opening in one process conflicts, and
/// it lasts until the kernel has ended what it does on the description, after the process too.
pub(super) fn lock(file: &File, byte: LockByte, lock: Lock) -> io::Result<bool> {
    let kind = match lock {
        Lock::Exclusive => libc::F_WRLCK,
        Lock::Shared => libc::F_RDLCK,
        Lock::Release => libc::F_UNLCK,
    };
    // SAFETY: flock is a plain C structure for which all bits zero is valid. The pid must be 0 for
    // OFD locks, and is.
    let mut request: libc::flock = unsafe { MaybeUninit::zeroed().assume_init() };
    // Constants below 3: they fit whatever width a C library gives the field.
    request.l_type = kind.try_into().unwrap_or_default();
    request.l_whence = libc::SEEK_SET.try_into().unwrap_or_default();
    request.l_start = byte.0;
    request.l_len = 1;
    // SAFETY: the descriptor is open for as long as `file` is borrowed; `request` outlives the call.
    match check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const request) }) {
        Ok(_) => Ok(true),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Asks what the file demands of O_DIRECT.
pub(super) fn direct_support(file: &File) -> io::Result<DirectSupport> {
    const EMPTY: &CStr = c"";
    let mut answer = MaybeUninit::<Statx>::zeroed();
    // SAFETY: the path is a C string, and `answer` has the 256 bytes that the kernel writes.
    let result = unsafe {
        libc::syscall(
            libc::SYS_statx,
            file.as_raw_fd(),
            EMPTY.as_ptr(),
            libc::AT_EMPTY_PATH,
            STATX_DIOALIGN,
            answer.as_mut_ptr(),
        )
    };
    if result < 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::ENOSYS) => Ok(DirectSupport::Unknown),
            _ => Err(error),
        };
    }
    // SAFETY: it was zeroed, every field is an integer, and so any content is valid.
    let answer = unsafe { answer.assume_init() };
    if answer.mask & STATX_DIOALIGN == 0 {
        return Ok(DirectSupport::Unknown);
    }
    if answer.dio_mem_align == 0 || answer.dio_offset_align == 0 {
        return Ok(DirectSupport::No);
    }
    Ok(DirectSupport::Yes(DirectDemands {
        memory: answer.dio_mem_align.into(),
        offset: answer.dio_offset_align.into(),
    }))
}

/// Whether a regular file lives in memory alone (tmpfs, ramfs, hugetlbfs): its page cache is the
/// medium, so O_DIRECT means nothing there and a read never waits for a device. (Not for device
/// nodes, which lie in a tmpfs themselves.)
pub(super) fn lives_in_memory(file: &File) -> io::Result<bool> {
    /// `RAMFS_MAGIC` of the kernel's linux/magic.h.
    const RAMFS_MAGIC: i128 = 0x8584_58f6;
    let mut answer = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the descriptor is open, and `answer` is the structure that the call fills.
    check(unsafe { libc::fstatfs(file.as_raw_fd(), answer.as_mut_ptr()) })?;
    // SAFETY: it was zeroed and every field is an integer.
    let answer = unsafe { answer.assume_init() };
    // The width and the sign of the field differ between C libraries.
    let in_memory = [
        i128::from(libc::TMPFS_MAGIC),
        i128::from(libc::HUGETLBFS_MAGIC),
        RAMFS_MAGIC,
    ];
    Ok(in_memory.contains(&i128::from(answer.f_type)))
}

/// Reads what is in the page cache, and fails with `WouldBlock` rather than wait for a device.
/// Returns the bytes read: less than asked for where the rest is not in the cache.
pub(super) fn read_cached(file: &File, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
    let offset = file_offset(offset)?;
    let vector = libc::iovec {
        iov_base: buf.as_mut_ptr().cast(),
        iov_len: buf.len(),
    };
    let read = {
        // SAFETY: the one vector names memory that `buf` borrows exclusively during the call.
        unsafe {
            libc::preadv2(
                file.as_raw_fd(),
                &raw const vector,
                1,
                offset,
                libc::RWF_NOWAIT,
            )
        }
    };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// Drops the clean pages of a file from the page cache. Advice: some may stay.
pub(super) fn forget_cached(file: &File) {
    // SAFETY: no memory is involved; the descriptor is open.
    let _ = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
}

/// Gives back the space of a range (punches a hole, keeps the size). On a block device: discards.
pub(super) fn deallocate(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let (offset, len) = (file_offset(offset)?, file_offset(len)?);
    // SAFETY: no memory is involved; the descriptor is open.
    check(unsafe { libc::fallocate(file.as_raw_fd(), DEALLOCATE_MODE, offset, len) }).map(|_| ())
}

/// The fallocate(2) mode of a deallocation.
pub(super) const DEALLOCATE_MODE: libc::c_int =
    libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

fn file_offset(value: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(value).map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))
}

/// A counter in the kernel that polls readable while it is not zero.
#[derive(Debug)]
pub(super) struct Event(OwnedFd);

impl Event {
    /// A non-blocking one, at zero.
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: no memory is involved.
        let fd = check(unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) })?;
        // SAFETY: the descriptor was made just now and belongs to nobody else.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The descriptor to poll.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.0)
    }

    /// Makes it readable. (The one failure, a counter at its maximum, leaves it readable too.)
    pub(super) fn raise(&self) {
        // SAFETY: no memory is involved; the descriptor is open.
        unsafe { libc::eventfd_write(self.0.as_raw_fd(), 1) };
    }

    /// Makes it unreadable.
    pub(super) fn clear(&self) {
        let mut count = 0;
        // SAFETY: `count` is the eight bytes that the call writes; non-blocking, so at zero it
        // returns at once with an error that says just that.
        unsafe { libc::eventfd_read(self.0.as_raw_fd(), &raw mut count) };
    }

    /// Waits until it is readable, for at most `timeout` (whole milliseconds, rounded up).
    #[cfg(test)]
    pub(super) fn poll(&self, timeout: std::time::Duration) -> bool {
        let mut fd = libc::pollfd {
            fd: self.0.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let millis = timeout.as_nanos().div_ceil(1_000_000);
        let millis = libc::c_int::try_from(millis).unwrap_or(libc::c_int::MAX);
        // SAFETY: one structure is named and `fd` is one.
        unsafe { libc::poll(&raw mut fd, 1, millis) > 0 }
    }
}

/// The kernel has this memory: under AddressSanitizer, which does not see what the kernel does, whoever
/// touches or wipes it until [`allow`] is reported. Nothing in an ordinary build.
pub(super) fn forbid(memory: &[u8]) {
    #[cfg(asan)]
    // SAFETY: it marks the addresses and does not touch what is there.
    unsafe {
        poison::__asan_poison_memory_region(memory.as_ptr().cast(), memory.len());
    }
    let _ = memory;
}

/// The end of [`forbid`].
pub(super) fn allow(memory: &[u8]) {
    #[cfg(asan)]
    // SAFETY: as in `forbid`.
    unsafe {
        poison::__asan_unpoison_memory_region(memory.as_ptr().cast(), memory.len());
    }
    let _ = memory;
}

/// Whether it is forbidden to touch this byte.
#[cfg(all(asan, test))]
pub(super) fn is_forbidden(byte: *const u8) -> bool {
    // SAFETY: it looks for the mark of an address.
    unsafe { poison::__asan_address_is_poisoned(byte.cast()) != 0 }
}

#[cfg(asan)]
mod poison {
    use std::ffi::c_void;

    unsafe extern "C" {
        pub(super) fn __asan_poison_memory_region(start: *const c_void, len: usize);
        pub(super) fn __asan_unpoison_memory_region(start: *const c_void, len: usize);
        #[cfg(test)]
        pub(super) fn __asan_address_is_poisoned(address: *const c_void) -> std::ffi::c_int;
    }
}
