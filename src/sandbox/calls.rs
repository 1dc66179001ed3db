//! Which system calls each thread has, and what for.

use libc::c_long;

/// What a thread of the daemon is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thread {
    /// The first one: accepts front-ends, talks with them, closes the disk at the end.
    Main,
    /// Serves a queue by way of its io_uring.
    Worker,
    /// Serves a queue on a host without io_uring.
    PlainWorker,
    /// Waits for SIGTERM and SIGINT.
    Signals,
    /// Prints statistics.
    Stats,
}

impl Thread {
    /// All kinds.
    pub const ALL: [Self; 5] = [
        Self::Main,
        Self::Worker,
        Self::PlainWorker,
        Self::Signals,
        Self::Stats,
    ];

    /// What it may call; anything else kills the process.
    pub fn calls(self) -> impl Iterator<Item = &'static Call> {
        let (own, more) = match self {
            Self::Main => (MAIN, NONE),
            Self::Worker => (QUEUE, RING),
            Self::PlainWorker => (QUEUE, NO_RING),
            Self::Signals => (SIGNALS, NONE),
            Self::Stats => (NONE, NONE),
        };
        EVERY.iter().chain(own).chain(more)
    }
}

/// A system call that is let through.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// As its manual page is called.
    pub name: &'static str,
    /// What needs it.
    pub why: &'static str,
    pub(super) number: c_long,
    /// With one of these arguments only; none: with any.
    pub(super) arguments: &'static [Argument],
}

/// The lower 32 bits of an argument, under `mask`, must be `value`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Argument {
    pub(super) index: u8,
    pub(super) mask: u64,
    pub(super) value: u64,
}

impl Argument {
    /// All 32 bits.
    const fn is(index: u8, value: u32) -> Self {
        Self {
            index,
            mask: u32::MAX as u64,
            value: value as u64,
        }
    }
}

/// Memory never becomes code.
const NOT_EXECUTABLE: &[Argument] = &[Argument {
    index: 2,
    mask: libc::PROT_EXEC.cast_unsigned() as u64,
    value: 0,
}];

/// `F_GETFD`.
const GET_FLAGS: &[Argument] = &[Argument::is(1, 1)];

/// An accepted connection waits or does not, and how much there is to read; no other control of any
/// device. (`FIONBIO` and `FIONREAD`, the same on all of Linux' architectures that are built for.)
const SOCKET_CONTROLS: &[Argument] = &[Argument::is(1, 0x5421), Argument::is(1, 0x541b)];

macro_rules! calls {
    ($($name:ident $(if $argument:ident)?: $why:literal,)*) => {
        &[$(Call {
            name: stringify!($name),
            why: $why,
            number: number::$name,
            arguments: calls!(@ $($argument)?),
        }),*]
    };
    (@) => { &[] };
    (@ $argument:ident) => { $argument };
}

/// Calls of the C library's own that fail with EACCES instead of ending the daemon: it does without what
/// it wanted to know.
pub(super) const DENIED: &[Call] = calls! {
    getcwd: "a panic prints paths relative to it",
    openat: "malloc reads the kernel's policy when a heap first shrinks; a panic reads symbols",
};

/// What a build with assertions has besides: the standard library asks whether what it closes is open.
pub(super) const ASSERTIONS: &[Call] = if cfg!(debug_assertions) {
    calls! { fcntl if GET_FLAGS: "a descriptor is closed", }
} else {
    &[]
};

/// The same and whether standard error is a terminal (`TCGETS`).
const REPORT_CONTROLS: &[Argument] = &[
    Argument::is(1, 0x5421),
    Argument::is(1, 0x541b),
    Argument::is(1, 0x5401),
];

/// What a build with AddressSanitizer has besides, on every thread: without, the kernel would end the daemon before it
/// has said what it found.
pub(super) const SANITIZER: &[Call] = if cfg!(asan) {
    calls! {
        exit_group: "the end after a report",
        getpid: "a report names the process",
        ioctl if REPORT_CONTROLS: "a report has colours on a terminal",
    }
} else {
    &[]
};

/// Numbers by name; where architectures or C libraries differ, what the name stands for here.
#[expect(
    non_upper_case_globals,
    reason = "named after the calls, so that the lists read like them"
)]
mod number {
    use libc::c_long;

    macro_rules! same {
        ($($name:ident = $number:ident;)*) => { $(pub(super) const $name: c_long = libc::$number;)* };
    }

    same! {
        accept4 = SYS_accept4;
        brk = SYS_brk;
        clock_gettime = SYS_clock_gettime;
        clock_nanosleep = SYS_clock_nanosleep;
        close = SYS_close;
        epoll_create1 = SYS_epoll_create1;
        epoll_ctl = SYS_epoll_ctl;
        eventfd2 = SYS_eventfd2;
        exit = SYS_exit;
        exit_group = SYS_exit_group;
        fallocate = SYS_fallocate;
        fcntl = SYS_fcntl;
        fdatasync = SYS_fdatasync;
        fstat = SYS_fstat;
        fstatfs = SYS_fstatfs;
        getcwd = SYS_getcwd;
        ftruncate = SYS_ftruncate;
        futex = SYS_futex;
        geteuid = SYS_geteuid;
        getpid = SYS_getpid;
        getrandom = SYS_getrandom;
        getsockopt = SYS_getsockopt;
        gettid = SYS_gettid;
        io_uring_enter = SYS_io_uring_enter;
        ioctl = SYS_ioctl;
        lseek = SYS_lseek;
        madvise = SYS_madvise;
        memfd_create = SYS_memfd_create;
        openat = SYS_openat;
        mmap = SYS_mmap;
        mprotect = SYS_mprotect;
        mremap = SYS_mremap;
        munmap = SYS_munmap;
        pread64 = SYS_pread64;
        preadv2 = SYS_preadv2;
        pwrite64 = SYS_pwrite64;
        read = SYS_read;
        recvfrom = SYS_recvfrom;
        recvmsg = SYS_recvmsg;
        restart_syscall = SYS_restart_syscall;
        rt_sigaction = SYS_rt_sigaction;
        rt_sigprocmask = SYS_rt_sigprocmask;
        rt_sigreturn = SYS_rt_sigreturn;
        sched_yield = SYS_sched_yield;
        sendmsg = SYS_sendmsg;
        sendto = SYS_sendto;
        sigaltstack = SYS_sigaltstack;
        statx = SYS_statx;
        tgkill = SYS_tgkill;
        write = SYS_write;
    }

    // The C libraries do with the newer one where there is no older one, and musl does always.
    #[cfg(all(target_arch = "x86_64", not(target_env = "musl")))]
    same! { epoll_wait = SYS_epoll_wait; }
    #[cfg(not(all(target_arch = "x86_64", not(target_env = "musl"))))]
    same! { epoll_wait = SYS_epoll_pwait; }
    #[cfg(target_arch = "x86_64")]
    same! { poll = SYS_poll; unlink = SYS_unlink; }
    #[cfg(not(target_arch = "x86_64"))]
    same! { poll = SYS_ppoll; unlink = SYS_unlinkat; }
}

/// What every thread has: memory, locks, the clock, the log, its end.
const EVERY: &[Call] = calls! {
    brk: "the heap grows and shrinks",
    clock_gettime: "the time, where the kernel's page of it has none",
    clock_nanosleep: "a pause",
    exit: "the end of the thread",
    futex: "locks, joining threads",
    madvise: "the heap and the stack of a thread that ends give memory back",
    mmap if NOT_EXECUTABLE: "the heap; a front-end's memory",
    mprotect if NOT_EXECUTABLE: "the heap of a thread grows",
    mremap: "a large buffer grows",
    munmap: "what mmap gave goes back",
    rt_sigprocmask: "the end of the thread",
    restart_syscall: "a pause or a lock goes on after the process was stopped",
    sched_yield: "a lock is about to come free",
    sigaltstack: "the end of the thread",
    write: "the log; wakes other threads; interrupts the guest",
};

/// What it takes to serve a queue.
const QUEUE: &[Call] = calls! {
    close: "the last reference to a front-end's memory goes",
    epoll_wait: "sleep until there is something to do",
    getrandom: "the salt of a zone's next generation",
    pread64: "data and records by way of the page cache",
    preadv2: "what the page cache has",
    pwrite64: "data and records by way of the page cache",
    read: "wake-ups",
    rt_sigreturn: "a page of guest memory went away and was replaced",
};

const RING: &[Call] = calls! {
    epoll_ctl: "the ring's event comes with a queue",
    io_uring_enter: "operations go out and come back",
};

const NO_RING: &[Call] = calls! {
    fallocate: "a zone gives its space back",
    fdatasync: "a flush",
};

const MAIN: &[Call] = calls! {
    accept4: "a front-end comes",
    close: "and goes",
    epoll_create1: "what a queue waits on",
    epoll_ctl: "what a queue waits on",
    epoll_wait: "wait for the next front-end, or the end",
    eventfd2: "wakes a queue",
    exit_group: "the end",
    fallocate: "the disk is closed",
    fcntl: "descriptors are copied, memory is sealed",
    fdatasync: "the disk is closed",
    fstat: "what a front-end sent is looked at",
    fstatfs: "whether memory that a front-end sent has huge pages",
    ftruncate: "memory for the front-end to keep gets its size",
    geteuid: "who we are",
    getpid: "a panic that cannot be survived",
    getrandom: "a new epoch",
    getsockopt: "who the front-end is",
    gettid: "a panic that cannot be survived",
    ioctl if SOCKET_CONTROLS: "a connection waits, or does not",
    lseek: "the size of what a front-end sent",
    memfd_create: "memory for the front-end to keep",
    poll: "wait for the front-end, or the end",
    pread64: "the disk is closed",
    preadv2: "an event that keeps its writer waiting is emptied",
    pwrite64: "the disk is closed",
    read: "wake-ups",
    recvfrom: "messages",
    recvmsg: "messages with descriptors",
    rt_sigaction: "memory that went away ends the process as SIGBUS does",
    rt_sigreturn: "return from a handler",
    sendmsg: "answers with descriptors",
    statx: "what a front-end sent is looked at",
    tgkill: "a panic that cannot be survived",
    unlink: "the socket goes; Landlock keeps it to that directory",
};

const SIGNALS: &[Call] = calls! {
    exit_group: "the end, if the disk cannot be closed",
    recvfrom: "take it from the handler",
    rt_sigreturn: "return from the handler",
    sendto: "the handler says so",
};

const NONE: &[Call] = &[];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_call_stands_in_a_list_once() {
        for thread in Thread::ALL {
            let numbers: BTreeSet<c_long> = thread.calls().map(|call| call.number).collect();
            assert_eq!(numbers.len(), thread.calls().count(), "{thread:?}");
        }
    }
}
