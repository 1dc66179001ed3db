//! The guest's side of the ring: requests in slots of its memory, each made where the last one was.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::virtio_blk as blk;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use zonevault::request::DescriptorTable;

/// Entries of the ring.
pub const RING: u16 = 128;
/// Requests that can be in flight: four descriptors of the ring each.
const SLOTS: u16 = RING / 4;

/// Where the rings lie; each has a page or more to itself.
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
/// Where the slots begin.
const SLOT_AREA: u64 = 0x4000;

/// In a slot: request header, bytes for the answer, table of descriptors, and the data a page later.
const HEADER: u64 = 0;
const TAIL: u64 = 64;
const TABLE: u64 = 128;
const DATA: u64 = 0x1000;
/// Data of at most so many bytes lies in pages of its own, backwards, as a guest's rarely does in a row.
const SCATTERED: u32 = 128 << 10;
const PAGE: u32 = 4096;
/// Bytes that Linux has for the answer to an append: the sector, and the status in the last one.
const APPEND_TAIL: u32 = 16;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// What the guest asks for. Sectors are of 512 bytes, lengths in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Read.
    Read {
        /// First sector.
        sector: u64,
        /// Length.
        len: u32,
    },
    /// Write.
    Write {
        /// First sector.
        sector: u64,
        /// Length.
        len: u32,
    },
    /// Append to the zone that begins at a sector.
    Append {
        /// The zone's first sector.
        sector: u64,
        /// Length.
        len: u32,
    },
    /// Report zones into a buffer.
    Report {
        /// Of the first zone.
        sector: u64,
        /// Length of the buffer.
        len: u32,
    },
    /// Flush.
    Flush,
}

impl Request {
    /// Type, sector, length of the data, whether the device writes that, and length of the answer.
    fn wire(self) -> (u32, u64, u32, bool, u32) {
        match self {
            Self::Read { sector, len } => (blk::VIRTIO_BLK_T_IN, sector, len, true, 1),
            Self::Write { sector, len } => (blk::VIRTIO_BLK_T_OUT, sector, len, false, 1),
            Self::Append { sector, len } => {
                let kind = blk::VIRTIO_BLK_T_ZONE_APPEND;
                (kind, sector, len, false, APPEND_TAIL)
            }
            Self::Report { sector, len } => (blk::VIRTIO_BLK_T_ZONE_REPORT, sector, len, true, 1),
            Self::Flush => (blk::VIRTIO_BLK_T_FLUSH, 0, 0, false, 1),
        }
    }
}

/// A pretended guest with one queue.
#[derive(Debug)]
pub struct Guest {
    memory: Arc<GuestMemoryMmap>,
    queue: Queue,
    /// Bytes from a slot to the next.
    stride: u64,
    free: Vec<u16>,
    /// Bytes for the answer of the request in each slot.
    tails: [u32; SLOTS as usize],
    next_available: u16,
    next_used: u16,
}

impl Guest {
    /// One whose requests have at most `most` bytes of data.
    pub fn new(most: u32) -> Self {
        let stride = (DATA + u64::from(most)).next_multiple_of(0x1000);
        let len = SLOT_AREA + stride * u64::from(SLOTS);
        let range = (GuestAddress(0), usize::try_from(len).expect("a length"));
        let memory = GuestMemoryMmap::from_ranges(&[range]).expect("guest memory");
        let mut queue = Queue::new(RING).expect("a ring size");
        queue.set_desc_table_address(Some(low(DESCRIPTORS)), None);
        queue.set_avail_ring_address(Some(low(AVAILABLE)), None);
        queue.set_used_ring_address(Some(low(USED)), None);
        queue.set_event_idx(true);
        queue.set_ready(true);
        let guest = Self {
            memory: Arc::new(memory),
            queue,
            stride,
            free: (0..SLOTS).rev().collect(),
            tails: [0; SLOTS as usize],
            next_available: 0,
            next_used: 0,
        };
        for slot in 0..SLOTS {
            let data: Vec<u8> = (0..most).map(|at| (at >> 4).to_le_bytes()[0]).collect();
            guest.put(guest.at(slot) + DATA, &data);
        }
        guest
    }

    /// The ring and the memory, as the device has them.
    pub fn device_side(&mut self) -> (&mut Queue, &Arc<GuestMemoryMmap>) {
        (&mut self.queue, &self.memory)
    }

    /// Requests that have not been answered.
    pub fn in_flight(&self) -> usize {
        usize::from(SLOTS) - self.free.len()
    }

    /// The ring's descriptors, and the memory that they are in.
    pub fn descriptors(&self) -> (DescriptorTable, &Arc<GuestMemoryMmap>) {
        let table = DescriptorTable {
            address: GuestAddress(DESCRIPTORS),
            size: RING,
        };
        (table, &self.memory)
    }

    /// Puts a request into the ring and returns its first descriptor. 32 requests fit.
    pub fn submit(&mut self, request: Request) -> u16 {
        let slot = self.free.pop().expect("a free slot");
        let (kind, sector, len, device_writes, tail) = request.wire();
        self.tails[usize::from(slot)] = tail;
        let base = self.at(slot);
        self.put(base + HEADER, &kind.to_le_bytes());
        self.put(base + HEADER + 8, &sector.to_le_bytes());
        self.put(base + TAIL + u64::from(tail) - 1, &[0xff]);
        let head = slot * 4;
        let ring = DESCRIPTORS + u64::from(head) * 16;
        if len <= PAGE {
            self.chain(ring, head, base, (len, device_writes), tail);
        } else {
            let last = self.chain(base + TABLE, 0, base, (len, device_writes), tail);
            let table = (u32::from(last) + 1) * 16;
            self.descriptor(ring, base + TABLE, table, INDIRECT, 0);
        }
        let place = AVAILABLE + 4 + 2 * u64::from(self.next_available % RING);
        self.put(place, &head.to_le_bytes());
        self.next_available = self.next_available.wrapping_add(1);
        let index = self.next_available.to_le();
        self.memory
            .store(index, GuestAddress(AVAILABLE + 2), Ordering::Release)
            .expect("guest memory");
        head
    }

    /// Says that so many requests more than there are lie in the ring.
    pub fn claim(&self, more: u16) {
        let index = self.next_available.wrapping_add(more).to_le();
        self.memory
            .store(index, GuestAddress(AVAILABLE + 2), Ordering::Release)
            .expect("guest memory");
    }

    /// Whether the device wants no kicks, as far as a ring without event indices says so.
    pub fn is_hushed(&self) -> bool {
        self.get::<1>(USED)[0] & 1 != 0
    }

    /// Takes an answer out of the ring, if there is one. Every request must succeed.
    pub fn reap(&mut self) -> bool {
        let index: u16 = self
            .memory
            .load(GuestAddress(USED + 2), Ordering::Acquire)
            .expect("guest memory");
        if u16::from_le(index) == self.next_used {
            return false;
        }
        let place = USED + 4 + 8 * u64::from(self.next_used % RING);
        let head = u32::from_le_bytes(self.get(place));
        let slot = u16::try_from(head / 4).expect("a head");
        let tail = self.tails[usize::from(slot)];
        let [status] = self.get(self.at(slot) + TAIL + u64::from(tail) - 1);
        assert_eq!(status, 0, "status of the request in slot {slot}");
        self.next_used = self.next_used.wrapping_add(1);
        // Asks for an interrupt with the next answer.
        let event = AVAILABLE + 4 + 2 * u64::from(RING);
        self.put(event, &self.next_used.to_le_bytes());
        self.free.push(slot);
        true
    }

    /// Writes the descriptors of a request, the first at `table` with number `first`; returns the
    /// number of the last.
    fn chain(&self, table: u64, first: u16, base: u64, data: (u32, bool), tail: u32) -> u16 {
        let (len, device_writes) = data;
        let flags = NEXT | if device_writes { WRITE } else { 0 };
        let mut number = first;
        let mut put = |address, len, flags| {
            let at = table + u64::from(number - first) * 16;
            self.descriptor(at, address, len, flags, number + 1);
            number += 1;
        };
        put(base + HEADER, 16, NEXT);
        if len > SCATTERED {
            put(base + DATA, len, flags);
        } else {
            for page in (0..len / PAGE).rev() {
                put(base + DATA + u64::from(page * PAGE), PAGE, flags);
            }
            assert_eq!(len % PAGE, 0, "whole pages");
        }
        put(base + TAIL, tail, WRITE);
        number - 1
    }

    fn descriptor(&self, at: u64, address: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.put(at, &bytes);
    }

    fn at(&self, slot: u16) -> u64 {
        SLOT_AREA + u64::from(slot) * self.stride
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(at))
            .expect("guest memory");
    }

    fn get<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory
            .read_slice(&mut bytes, GuestAddress(at))
            .expect("guest memory");
        bytes
    }
}

fn low(address: u64) -> u32 {
    u32::try_from(address).expect("below 4 GiB")
}
