//! A descriptor chain, copied out of the ring once and checked as a whole.

use std::sync::Arc;

use thiserror::Error;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Why a chain cannot be answered at all: it is handed back with nothing written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Malformed {
    /// The chain goes on where no descriptor can be read: a bad index or address.
    #[error("the descriptor chain breaks off")]
    BrokenOff,
    /// More descriptors than the queue has (a loop has no end), or more than 2^32 bytes (virtio
    /// 1.4, 2.7.5.3).
    #[error("the descriptor chain is longer than a queue allows")]
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
    /// An indirect descriptor inside an indirect table, with a successor, or of an odd length
    /// (virtio 1.4, 2.7.5.3).
    #[error("an indirect descriptor that may not be")]
    Indirect,
}

/// Guest memory went away under a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("guest memory is not accessible any more")]
pub struct MemoryFault;

/// Most bytes of a chain (virtio 1.4, 2.7.5.3.1).
const MAX_BYTES: u64 = 1 << 32;
/// Bytes of a descriptor.
const DESCRIPTOR_LEN: u64 = size_of::<Descriptor>() as u64;

/// Where descriptors lie: the queue's own table, or one that an indirect descriptor names.
#[derive(Clone, Copy, Debug)]
pub struct DescriptorTable {
    /// Guest address.
    pub address: GuestAddress,
    /// Descriptors in it. Of the queue's table: the queue size.
    pub size: u16,
}

impl DescriptorTable {
    fn indirect(descriptor: &Descriptor) -> Result<Self, Malformed> {
        let len = u64::from(descriptor.len());
        let size = u16::try_from(len / DESCRIPTOR_LEN).map_err(|_| Malformed::Indirect)?;
        if size == 0 || !len.is_multiple_of(DESCRIPTOR_LEN) {
            return Err(Malformed::Indirect);
        }
        Ok(Self {
            address: descriptor.addr(),
            size,
        })
    }

    fn read(&self, memory: &GuestMemoryMmap, index: u16) -> Result<Descriptor, Malformed> {
        if index >= self.size {
            return Err(Malformed::BrokenOff);
        }
        let offset = u64::from(index) * DESCRIPTOR_LEN;
        let address = self.address.checked_add(offset);
        address
            .and_then(|address| memory.read_obj(address).ok())
            .ok_or(Malformed::BrokenOff)
    }
}

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
    /// Fills this chain from the descriptors that begin at `head` of `table`, each read exactly
    /// once, and checks every range against `memory`.
    ///
    /// An own walk, because the queue crate's iterator ends silently wherever a chain breaks off
    /// and does not show an indirect descriptor that has a successor.
    pub fn collect(
        &mut self,
        memory: &Arc<GuestMemoryMmap>,
        table: DescriptorTable,
        head: u16,
    ) -> Result<(), Malformed> {
        self.readable.clear();
        self.writable.clear();
        self.head = head;
        let (mut part, mut index, mut left) = (table, head, table.size);
        let mut indirect = false;
        loop {
            let descriptor = part.read(memory, index)?;
            if descriptor.refers_to_indirect_table() {
                if indirect || descriptor.has_next() {
                    return Err(Malformed::Indirect);
                }
                part = DescriptorTable::indirect(&descriptor)?;
                (indirect, index) = (true, 0);
                continue;
            }
            left = left.checked_sub(1).ok_or(Malformed::TooLong)?;
            self.push(memory, &descriptor)?;
            if !descriptor.has_next() {
                break;
            }
            index = descriptor.next();
        }
        if self.readable.len.saturating_add(self.writable.len) > MAX_BYTES {
            return Err(Malformed::TooLong);
        }
        if self.writable.len == 0 {
            return Err(Malformed::NoStatus);
        }
        self.memory = Some(Arc::clone(memory));
        Ok(())
    }

    fn push(&mut self, memory: &GuestMemoryMmap, descriptor: &Descriptor) -> Result<(), Malformed> {
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
