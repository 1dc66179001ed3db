//! One worker's way to the data of a file: which operations are done at once, and which wait.
//!
//! - O_DIRECT: everything goes to the ring.
//! - Page cache: a read of what is cached and every write are done inside of `submit`, since a
//!   ring would hand each of them to a thread of the kernel, at two to three times the cost. Only
//!   reads that must wait for the device, syncs and deallocations go to the ring. (A write may
//!   wait there while the kernel throttles whoever dirties pages faster than the device takes
//!   them.)
//! - No io_uring on this host: everything inside of `submit`.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use super::sys;
use super::{Completion, Op, Store, Token};

/// The descriptor that carries data, and how it wants to be used.
#[derive(Debug)]
pub(super) struct Data {
    file: File,
    way: Way,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// O_DIRECT, in units of so many bytes.
    Direct(u64),
    /// Through the page cache, with a device behind it.
    Cached,
    /// The page cache is all there is (tmpfs): no read waits, and RWF_NOWAIT is not known.
    Memory,
}

impl Data {
    pub(super) fn direct(file: File, alignment: u64) -> Self {
        Self {
            file,
            way: Way::Direct(alignment),
        }
    }

    pub(super) fn cached(file: File) -> io::Result<Self> {
        let way = if sys::lives_in_memory(&file)? {
            Way::Memory
        } else {
            Way::Cached
        };
        Ok(Self { file, way })
    }

    pub(super) fn is_direct(&self) -> bool {
        matches!(self.way, Way::Direct(_))
    }

    pub(super) fn alignment(&self) -> u64 {
        match self.way {
            Way::Direct(alignment) => alignment,
            Way::Cached | Way::Memory => 1,
        }
    }
}

/// The [`Store`] of a [`FileMedium`](super::FileMedium).
#[derive(Debug)]
pub struct FileStore {
    data: Arc<Data>,
    /// What completed inside of `submit`.
    done: Vec<Completion>,
}

impl FileStore {
    pub(super) fn open(data: Arc<Data>, depth: u32) -> io::Result<Self> {
        Ok(Self::synchronous(data, depth))
    }

    pub(super) fn synchronous(data: Arc<Data>, depth: u32) -> Self {
        Self {
            data,
            done: Vec::with_capacity(depth as usize),
        }
    }

    /// Does an operation here and now.
    fn perform(&mut self, op: Op, token: Token) {
        let file = &self.data.file;
        let (result, buf) = match op {
            Op::Read { offset, mut buf } => (file.read_exact_at(&mut buf, offset), Some(buf)),
            Op::Write { offset, buf } => (file.write_all_at(&buf, offset), Some(buf)),
            Op::Sync => (file.sync_data(), None),
            Op::Deallocate { offset, len } => {
                (deallocated(sys::deallocate(file, offset, len)), None)
            }
        };
        self.done.push(Completion { token, result, buf });
    }
}

/// Deallocation is a hint: a medium that knows none has followed it as well as it can.
fn deallocated(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(()),
        other => other,
    }
}

impl Store for FileStore {
    fn submit(&mut self, op: Op, token: Token) {
        self.perform(op, token);
    }

    fn kick(&mut self) {}

    fn reap(&mut self, done: &mut Vec<Completion>) {
        done.append(&mut self.done);
    }

    fn in_flight(&self) -> usize {
        self.done.len()
    }

    fn event(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn wait(&mut self, _timeout: Duration) {}
}
