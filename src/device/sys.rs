//! The system calls that the standard library has no safe name for, each behind a safe one.
#![expect(
    unsafe_code,
    reason = "eventfds of others, file systems, credentials, peeking, and sockets made 0600 are reachable through libc only"
)]

use std::fs::File;
use std::io::{self, Write};
use std::mem::{MaybeUninit, offset_of};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// Who may use the socket: its owner.
const SOCKET_MODE: libc::mode_t = 0o600;
/// Connections that wait to be accepted. One is served at a time; the others are told so.
const BACKLOG: libc::c_int = 16;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Whether a descriptor that a front-end sent can be an eventfd. It is none if it has a file type: files,
/// pipes, sockets and devices have, the kernel's anonymous objects do not, and of those only the eventfd
/// takes what we write. So no write can wait for somebody but a full counter ([`empty_event`]).
pub(super) fn may_be_event(file: &File) -> io::Result<bool> {
    Ok(file.metadata()?.mode() & libc::S_IFMT == 0)
}

/// Bytes of a page of a file on hugetlbfs, a `MFD_HUGETLB` one too; `None` for files of ordinary pages, also
/// if the kernel may join some of those (tmpfs with `huge=`).
pub(super) fn huge_page(file: &File) -> io::Result<Option<u64>> {
    // SAFETY: a C structure of integers.
    let mut found: libc::statfs = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: the descriptor is open, and `found` outlives the call.
    check(unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut found) })?;
    let is_huge = found.f_type == libc::HUGETLBFS_MAGIC;
    Ok(u64::try_from(found.f_bsize).ok().filter(|_| is_huge))
}

/// Raises an eventfd.
pub(super) fn raise_event(mut event: &File) -> io::Result<()> {
    #[expect(
        clippy::host_endian_bytes,
        reason = "an eventfd counts in the machine's order"
    )]
    let one = 1_u64.to_ne_bytes();
    match event.write(&one) {
        // Raised as far as it can be.
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
        Err(e) => Err(e),
        Ok(_) => Ok(()),
    }
}

/// Empties an eventfd without ever waiting, whatever mode its owner gave it: whoever waits to raise it
/// goes on.
pub(super) fn empty_event(event: &File) {
    let mut count = [0_u8; 8];
    let part = libc::iovec {
        iov_base: count.as_mut_ptr().cast(),
        iov_len: count.len(),
    };
    // SAFETY: one buffer of 8 bytes that outlives the call. -1: at the present position, of which an
    // eventfd has none. That it was empty already is as good.
    let _ = unsafe { libc::preadv2(event.as_raw_fd(), &raw const part, 1, -1, libc::RWF_NOWAIT) };
}

/// How a connection stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct SocketState {
    /// Bytes that have arrived and were not read.
    pub(super) unread: usize,
    /// What is sent now is not waited for.
    pub(super) writable: bool,
    /// Nothing more will come.
    pub(super) hung_up: bool,
}

/// Looks how a connection stands.
pub(super) fn socket_state(socket: &UnixStream) -> io::Result<SocketState> {
    let mut poll = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP,
        revents: 0,
    };
    // SAFETY: one entry, which outlives the call; it does not wait.
    check(unsafe { libc::poll(&raw mut poll, 1, 0) })?;
    // After the poll: whoever hung up before it has sent all that he will.
    let mut unread: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &raw mut unread) })?;
    let gone = libc::POLLHUP | libc::POLLRDHUP | libc::POLLERR;
    Ok(SocketState {
        unread: usize::try_from(unread).unwrap_or(0),
        writable: poll.revents & libc::POLLOUT != 0,
        hung_up: poll.revents & gone != 0,
    })
}

/// What lies ahead on a socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ahead {
    /// Bytes, up to the length of the buffer.
    pub(super) len: usize,
    /// More descriptors came with them than there was room for.
    pub(super) more_descriptors: bool,
}

/// Reads ahead without taking anything and without waiting. Bytes behind a place where descriptors were
/// attached are not seen. There is room for `descriptors` of these, which are let go at once.
pub(super) fn peek(socket: &UnixStream, buf: &mut [u8], descriptors: usize) -> io::Result<Ahead> {
    let mut part = libc::iovec {
        iov_base: buf.as_mut_ptr().cast(),
        iov_len: buf.len(),
    };
    let room = match libc::c_uint::try_from(descriptors * size_of::<RawFd>()) {
        Ok(0) | Err(_) => 0,
        // SAFETY: it only computes.
        Ok(len) => unsafe { libc::CMSG_SPACE(len) as usize },
    };
    // Of longs, for the alignment of the headers in it.
    let mut control = vec![0_usize; room.div_ceil(size_of::<usize>())];
    // SAFETY: a C structure of integers and pointers, all of which may be zero.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = room as _;
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the buffers have the lengths that are given and outlive the call.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
    let len = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    drop_descriptors(&message);
    Ok(Ahead {
        len,
        more_descriptors: message.msg_flags & libc::MSG_CTRUNC != 0,
    })
}

/// Closes the descriptors that a peek made.
fn drop_descriptors(message: &libc::msghdr) {
    // SAFETY: the kernel filled the control part in; the macros keep to its length, and each descriptor in
    // it is new and has no other owner.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(message);
        while !at.is_null() {
            if (*at).cmsg_level == libc::SOL_SOCKET && (*at).cmsg_type == libc::SCM_RIGHTS {
                let bytes = (*at).cmsg_len - libc::CMSG_LEN(0) as usize;
                let first = libc::CMSG_DATA(at).cast::<RawFd>();
                for n in 0..bytes / size_of::<RawFd>() {
                    drop(OwnedFd::from_raw_fd(first.add(n).read_unaligned()));
                }
            }
            at = libc::CMSG_NXTHDR(message, at);
        }
    }
}

fn socket_option<T>(socket: RawFd, option: libc::c_int) -> io::Result<T> {
    let mut value = MaybeUninit::<T>::zeroed();
    let mut len = libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0);
    // SAFETY: `value` has `len` bytes.
    check(unsafe {
        libc::getsockopt(
            socket,
            libc::SOL_SOCKET,
            option,
            value.as_mut_ptr().cast(),
            &raw mut len,
        )
    })?;
    // SAFETY: callers ask for C structures of integers, for which any bits are valid.
    Ok(unsafe { value.assume_init() })
}

/// The user who connected, as the kernel noted it then.
pub(super) fn peer_uid(socket: &UnixStream) -> io::Result<u32> {
    let peer: libc::ucred = socket_option(socket.as_raw_fd(), libc::SO_PEERCRED)?;
    Ok(peer.uid)
}

/// The user that this process acts as.
pub(super) fn own_uid() -> u32 {
    // SAFETY: it takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

/// Listens at `path`, which must not exist. The socket has mode 0600 from its first moment: the file
/// gets the mode of the socket that is bound, less the umask.
pub(super) fn listen(path: &Path) -> io::Result<UnixListener> {
    // SAFETY: sockaddr_un is a C structure of integers.
    let mut address: libc::sockaddr_un = unsafe { MaybeUninit::zeroed().assume_init() };
    address.sun_family = libc::sa_family_t::try_from(libc::AF_UNIX).unwrap_or_default();
    let bytes = path.as_os_str().as_bytes();
    // One more stays zero and ends the name.
    if bytes.is_empty() || bytes.len() >= address.sun_path.len() {
        let most = address.sun_path.len() - 1;
        let what = format!("a socket's path has 1 to {most} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        // Signed or not, as the machine has it.
        *to = libc::c_char::from_le_bytes([*from]);
    }
    // SAFETY: it returns a descriptor or an error.
    let fd =
        check(unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: a new descriptor, which nobody else owns.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the descriptor is open.
    check(unsafe { libc::fchmod(socket.as_raw_fd(), SOCKET_MODE) })?;
    let len = offset_of!(libc::sockaddr_un, sun_path) + bytes.len() + 1;
    let len = libc::socklen_t::try_from(len).unwrap_or_default();
    // SAFETY: the address outlives the call and has `len` bytes.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) })?;
    // SAFETY: the descriptor is a bound socket.
    check(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) })?;
    Ok(socket.into())
}

/// Takes over a listening Unix stream socket that this process was started with. Anything else is
/// refused, and so is a descriptor that some other part of the process owns: none of those listens.
pub(super) fn inherit(fd: RawFd) -> io::Result<UnixListener> {
    let asked = |option, wanted: libc::c_int| {
        let is: libc::c_int = socket_option(fd, option)?;
        Ok::<_, io::Error>(is == wanted)
    };
    let fits = asked(libc::SO_DOMAIN, libc::AF_UNIX)?
        && asked(libc::SO_TYPE, libc::SOCK_STREAM)?
        && asked(libc::SO_ACCEPTCONN, 1)?;
    if !fits {
        let what = "not a listening Unix stream socket";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    // SAFETY: fcntl on an open descriptor; children, if there ever are any, do not get it.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: it is open and listens. Nothing in this process listens before it has taken its socket
    // over, which it does once: so it was inherited, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) }.into())
}
