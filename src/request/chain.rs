//! A descriptor chain, copied out of the ring once and checked as a whole.

use std::sync::Arc;

use thiserror::Error;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Why a chain cannot be answered at all: it is handed back with nothing written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Malformed {
    /// The chain goes on where no descriptor can be read: a bad index, address or indirect table,
    /// or a loop.
    #[error("the descriptor chain breaks off")]
    BrokenOff,
    /// More descriptors than the queue has.
    #[error("the descriptor chain is longer than the queue")]
    TooLong,
    /// The driver must put what it sends before what it receives (virtio 1.4, 2.7.4.2).
    #[error("a device-readable descriptor follows a device-writable one")]
    Order,
    /// A descriptor that is not wholly in guest memory.
    #[error("a descriptor points outside of guest memory")]
    Address,
    /// There is not one byte for a status.
    #[error("no room for a status")]
    NoStatus,
}

/// Guest memory went away under a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("guest memory is not accessible any more")]
pub struct MemoryFault;

#[derive(Clone, Copy, Debug)]
struct Range {
    address: GuestAddress,
    len: u32,
}

#[derive(Debug, Default)]
struct Part {
    ranges: Vec<Range>,
    len: u64,
}

impl Part {
    fn clear(&mut self) {
        self.ranges.clear();
        self.len = 0;
    }

    fn push(&mut self, address: GuestAddress, len: u32) {
        self.ranges.push(Range { address, len });
        self.len += u64::from(len);
    }

    /// Calls `each` with the guest address of every piece of `[offset, offset + len)` and its
    /// place in the caller's buffer.
    fn walk(
        &self,
        offset: u64,
        len: usize,
        mut each: impl FnMut(GuestAddress, usize, usize) -> Result<(), MemoryFault>,
    ) -> Result<(), MemoryFault> {
        let (mut skip, mut done) = (offset, 0);
        for range in &self.ranges {
            if done == len {
                break;
            }
            let range_len = u64::from(range.len);
            if skip >= range_len {
                skip -= range_len;
                continue;
            }
            let rest = usize::try_from(range_len - skip).map_err(|_| MemoryFault)?;
            let take = rest.min(len - done);
            let address = range.address.0.checked_add(skip).ok_or(MemoryFault)?;
            each(GuestAddress(address), done, take)?;
            done += take;
            skip = 0;
        }
        if done == len {
            Ok(())
        } else {
            Err(MemoryFault)
        }
    }
}

/// The two halves of a chain: what the driver sent and where it wants the answer.
///
/// Holds on to the memory map it was checked against, so the guest's pages outlive the request
/// whatever the front-end does to its memory table. Reusable: [`Chain::collect`] keeps the vectors.
#[derive(Debug, Default)]
pub struct Chain {
    memory: Option<Arc<GuestMemoryMmap>>,
    head: u16,
    readable: Part,
    writable: Part,
}

impl Chain {
    /// Fills this chain from the `descriptors` of `head`, each read exactly once, and checks every
    /// range against `memory`. `max_descriptors` bounds the walk.
    pub fn collect(
        &mut self,
        memory: &Arc<GuestMemoryMmap>,
        head: u16,
        descriptors: impl Iterator<Item = Descriptor>,
        max_descriptors: usize,
    ) -> Result<(), Malformed> {
        self.readable.clear();
        self.writable.clear();
        self.head = head;
        // The queue's iterator ends silently where a chain breaks off: the last descriptor then
        // still promises another.
        let mut promised = true;
        for (position, descriptor) in descriptors.enumerate() {
            if position >= max_descriptors {
                return Err(Malformed::TooLong);
            }
            promised = descriptor.has_next();
            let (address, len) = (descriptor.addr(), descriptor.len());
            let writable = descriptor.is_write_only();
            if !writable && !self.writable.ranges.is_empty() {
                return Err(Malformed::Order);
            }
            let bytes = usize::try_from(len).map_err(|_| Malformed::Address)?;
            if bytes != 0 && !memory.check_range(address, bytes) {
                return Err(Malformed::Address);
            }
            let part = if writable {
                &mut self.writable
            } else {
                &mut self.readable
            };
            part.push(address, len);
        }
        if promised {
            return Err(Malformed::BrokenOff);
        }
        if self.writable.len == 0 {
            return Err(Malformed::NoStatus);
        }
        self.memory = Some(Arc::clone(memory));
        Ok(())
    }

    /// Lets go of guest memory; the chain can be collected anew.
    pub fn release(&mut self) {
        self.memory = None;
    }

    /// The descriptor that names the chain in the used ring.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Bytes that the driver sent.
    pub fn readable_len(&self) -> u64 {
        self.readable.len
    }

    /// Bytes that the device may write.
    pub fn writable_len(&self) -> u64 {
        self.writable.len
    }

    /// Copies what the driver sent, from `offset` on.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), MemoryFault> {
        let memory = self.memory.as_deref().ok_or(MemoryFault)?;
        self.readable
            .walk(offset, buf.len(), |address, start, take| {
                memory
                    .read_slice(&mut buf[start..start + take], address)
                    .map_err(|_| MemoryFault)
            })
    }

    /// Writes for the driver, from `offset` on.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), MemoryFault> {
        let memory = self.memory.as_deref().ok_or(MemoryFault)?;
        self.writable
            .walk(offset, data.len(), |address, start, take| {
                memory
                    .write_slice(&data[start..start + take], address)
                    .map_err(|_| MemoryFault)
            })
    }
}
