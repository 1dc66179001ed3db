//! An image in memory with nothing around it: no faults, no order, no system calls.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use zonevault::store::{Completion, Medium, Op, Part, Store, Token};

/// The medium. Memory is used for what is written only.
#[derive(Clone)]
pub struct Flat(Arc<Mutex<Vec<u8>>>);

impl std::fmt::Debug for Flat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flat").finish_non_exhaustive()
    }
}

impl Flat {
    /// `len` zero bytes.
    pub fn new(len: u64) -> Self {
        let len = usize::try_from(len).expect("a length");
        Self(Arc::new(Mutex::new(vec![0; len])))
    }

    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn part(bytes: &mut [u8], offset: u64, len: usize) -> io::Result<&mut [u8]> {
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        let part = bytes.get_mut(at..at.saturating_add(len));
        part.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

impl Medium for Flat {
    type Store = FlatStore;

    fn open_store(&self, depth: u32) -> io::Result<FlatStore> {
        Ok(FlatStore {
            medium: self.clone(),
            done: Vec::with_capacity(depth as usize),
        })
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.bytes().len() as u64)
    }

    fn alignment(&self) -> u64 {
        1
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        buf.copy_from_slice(Self::part(&mut self.bytes(), offset, buf.len())?);
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        Self::part(&mut self.bytes(), offset, buf.len())?.copy_from_slice(buf);
        Ok(())
    }

    fn forget_cached(&self) {}

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Does everything inside of `submit`.
#[derive(Debug)]
pub struct FlatStore {
    medium: Flat,
    done: Vec<Completion>,
}

impl Store for FlatStore {
    fn submit(&mut self, op: Op, token: Token) {
        let (result, buf) = match op {
            Op::Read { offset, mut buf } | Op::ReadMetadata { offset, mut buf } => {
                (self.medium.read_at(offset, &mut buf), Some(buf))
            }
            Op::Write { offset, buf } => (self.medium.write_at(offset, &buf), Some(buf)),
            Op::Sync | Op::Deallocate { .. } => (Ok(()), None),
        };
        self.done.push(Completion { token, result, buf });
    }

    fn read_now(&mut self, _part: Part, offset: u64, buf: &mut [u8]) -> Option<io::Result<()>> {
        Some(self.medium.read_at(offset, buf))
    }

    fn is_ready(&mut self) -> bool {
        !self.done.is_empty()
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
