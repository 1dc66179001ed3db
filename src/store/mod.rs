//! Where bytes live: the [`Medium`] holds an image, a [`Store`] is one worker's channel to it.
//!
//! The store knows offsets and buffers and nothing of what they mean. Two kinds of access share
//! an image and never a byte range: *metadata* (header, protectors, zone records, tag slots) is
//! small, goes through the page cache synchronously ([`Medium::read_at`], [`Medium::write_at`];
//! [`Op::ReadMetadata`] waits for the device elsewhere) and so outlives a killed daemon the moment
//! the call returns; *data* goes through a [`Store`],
//! asynchronously where that pays. One [`Op::Sync`], or [`Medium::sync`], makes both durable.
//!
//! Media assumptions: a 512-byte sector is written whole or not at all; what was written before a
//! successful sync survives power loss; after a failed sync nothing is known about unsynced
//! writes.

mod buffer;
mod channel;
mod double;
mod file;
mod mapped;
#[doc(hidden)]
pub mod mem;
mod open;
mod sys;
mod uring;

use std::io;
use std::os::fd::BorrowedFd;

pub use buffer::IoBuf;
pub use channel::FileStore;
pub use double::DoubleArea;
pub use file::{Cache, FileMedium};
pub use open::{Access, OpenError};

/// Names an operation between its submission and its completion. Chosen by the submitter.
pub type Token = u64;

/// One operation on the data of an image. It owns its buffer until it is completed.
#[derive(Debug)]
pub enum Op {
    /// Fill the whole buffer from byte `offset`.
    Read {
        /// Byte offset in the image.
        offset: u64,
        /// Filled on success; of unspecified content on failure.
        buf: IoBuf,
    },
    /// The same for metadata: through the page cache, where [`Medium::write_at`] puts it, whatever
    /// way data goes, and of any alignment.
    ReadMetadata {
        /// Byte offset in the image.
        offset: u64,
        /// Filled on success; of unspecified content on failure.
        buf: IoBuf,
    },
    /// Write the whole buffer at byte `offset`.
    Write {
        /// Byte offset in the image.
        offset: u64,
        /// What to write.
        buf: IoBuf,
    },
    /// Make everything that completed before durable (fdatasync).
    Sync,
    /// Give back the space of a byte range. Reads of it are zero bytes or the old bytes
    /// afterwards: a hint, for space only.
    Deallocate {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
}

/// Which bytes of an image: they may have ways of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Blocks of zones.
    Data,
    /// Everything else.
    Metadata,
}

/// The end of an operation. Exactly one follows every accepted [`Op`].
#[derive(Debug)]
pub struct Completion {
    /// What the submitter called it.
    pub token: Token,
    /// All of it was done, or it failed; a short transfer is never a success.
    pub result: io::Result<()>,
    /// The buffer of a read or a write, given back.
    pub buf: Option<IoBuf>,
}

/// One worker's asynchronous channel to the data of an image. Not shared between threads.
///
/// Offsets and lengths are multiples of what [`Medium::alignment`] demands; the caller keeps that.
/// Dropping a store waits for what is in flight: the kernel may hold its buffers until then.
pub trait Store: Send + std::fmt::Debug {
    /// Takes an operation over. It completes through [`Store::reap`], also when it fails at once.
    fn submit(&mut self, op: Op, token: Token);

    /// The same for a write that is nothing before something else is written after it: if the daemon is killed
    /// meanwhile, any part of it may be written, also of a sector, which [`Store::submit`] does not do.
    fn submit_loose(&mut self, op: Op, token: Token) {
        self.submit(op, token);
    }

    /// Reads at once into the whole of `buf` what lies at byte `offset`, if nothing has to be waited
    /// for. `None`: it would have to, or it failed in a way that may pass; nothing of `buf` counts then,
    /// and [`Store::submit`] is the way.
    fn read_now(&mut self, part: Part, offset: u64, buf: &mut [u8]) -> Option<io::Result<()>>;

    /// Whether [`Store::read_now`] mostly is a copy from memory, whatever part it is of.
    fn is_mapped(&self) -> bool {
        false
    }

    /// What lies at byte `offset` will be read soon: whatever makes that faster and waits for nothing.
    fn prefetch(&self, offset: u64, len: usize) {
        let _ = (offset, len);
    }

    /// Hands what was submitted to the kernel, in one call.
    fn kick(&mut self);

    /// Moves finished operations to the end of `done`; never blocks.
    fn reap(&mut self, done: &mut Vec<Completion>);

    /// Whether [`Store::reap`] would find something; cheap enough to be asked over and over.
    fn is_ready(&mut self) -> bool;

    /// Operations submitted and not yet reaped.
    fn in_flight(&self) -> usize;

    /// A descriptor that polls readable when [`Store::reap`] has something that completed
    /// asynchronously, or `None` if everything completes inside [`Store::submit`].
    fn event(&self) -> Option<BorrowedFd<'_>>;

    /// Blocks until an operation in flight has finished, or for at most `timeout`.
    fn wait(&mut self, timeout: std::time::Duration);
}

/// An image: the shared handle, from which each worker draws its own [`Store`].
pub trait Medium: Send + Sync + std::fmt::Debug + 'static {
    /// The channel that a worker gets.
    type Store: Store;

    /// Opens a channel that carries up to `depth` operations at once.
    fn open_store(&self, depth: u32) -> io::Result<Self::Store>;

    /// Gets now what this thread's stores of up to `depth` operations need of the system, and keeps it
    /// from one store to the next: for a thread that may ask the system for nothing new from now on.
    /// Whether those are stores with an io_uring.
    fn prepare_thread(&self, depth: u32) -> io::Result<bool> {
        let _ = depth;
        Ok(false)
    }

    /// Length of the image in bytes.
    fn size(&self) -> io::Result<u64>;

    /// What offsets, lengths and buffers of data operations must be multiples of, in bytes.
    fn alignment(&self) -> u64;

    /// Reads metadata; the whole buffer or an error.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Writes metadata into the page cache (or beyond); the whole buffer or an error.
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()>;

    /// The same for what is nothing before something else is written after it: if the daemon is killed
    /// meanwhile, a part of it may be written, which [`Medium::write_at`] does not do.
    fn write_loose_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.write_at(offset, buf)
    }

    /// Lets go of what the page cache holds of the image and need not write back, so that reads see
    /// what is on the medium.
    fn forget_cached(&self);

    /// Makes everything written so far durable.
    fn sync(&self) -> io::Result<()>;
}
