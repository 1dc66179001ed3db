//! The driver's half of a split virtqueue (virtio 1.4, "Split Virtqueues"), with access to every field.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::memory::{GuestRam, Span};
use super::wire::{le16, le32};

/// The buffer goes on in the descriptor that `next` names.
pub const DESC_NEXT: u16 = 1;
/// The device writes the buffer.
pub const DESC_WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const DESC_INDIRECT: u16 = 4;

/// Bytes of a descriptor.
pub const DESC_SIZE: u64 = 16;

/// One descriptor, any bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest-physical address of the buffer.
    pub addr: u64,
    /// Length of the buffer in bytes.
    pub len: u32,
    /// `DESC_*`.
    pub flags: u16,
    /// Index of the next descriptor where [`DESC_NEXT`] is set.
    pub next: u16,
}

impl Descriptor {
    /// The wire form.
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// An element of the used ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Head of the chain that was used.
    pub id: u32,
    /// Bytes that the device says it wrote.
    pub len: u32,
}

/// A split ring in guest memory.
#[derive(Debug)]
pub struct Ring {
    ram: Arc<GuestRam>,
    size: u16,
    event_idx: bool,
    desc: Span,
    avail: Span,
    used: Span,
    free: Vec<u16>,
    next_avail: u16,
    next_used: u16,
    kicked: u16,
}

impl Ring {
    /// Lays out a zeroed ring of `size` entries.
    pub fn new(ram: Arc<GuestRam>, size: u16, event_idx: bool) -> Self {
        let n = u64::from(size);
        let zeroed = |len: u64, align| {
            let span = ram.alloc(len, align, 0);
            ram.write(span.start, &vec![0; usize::try_from(len).expect("size")]);
            span
        };
        // Both rings end in a 16-bit event field, used with EVENT_IDX alone.
        let desc = zeroed(n * DESC_SIZE, 16);
        let avail = zeroed(4 + 2 * n + 2, 2);
        let used = zeroed(4 + 8 * n + 2, 4);
        Self {
            ram,
            size,
            event_idx,
            desc,
            avail,
            used,
            free: (0..size).rev().collect(),
            next_avail: 0,
            next_used: 0,
            kicked: 0,
        }
    }

    /// Entries of the ring.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Guest-physical addresses of descriptor table, available ring and used ring.
    pub fn addresses(&self) -> [u64; 3] {
        [self.desc.start, self.avail.start, self.used.start]
    }

    /// The index at which the driver will look for the next used element.
    pub fn next_used(&self) -> u16 {
        self.next_used
    }

    /// The index that the next offered chain gets.
    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// Descriptors that no chain holds.
    pub fn free_descriptors(&self) -> usize {
        self.free.len()
    }

    /// Takes `n` descriptors out of the free list, or none.
    pub fn take(&mut self, n: usize) -> Option<Vec<u16>> {
        let keep = self.free.len().checked_sub(n)?;
        Some(self.free.split_off(keep))
    }

    /// Returns descriptors to the free list.
    pub fn give_back(&mut self, indices: &[u16]) {
        self.free.extend_from_slice(indices);
    }

    /// Writes one descriptor of the ring's own table.
    pub fn write_descriptor(&self, index: u16, descriptor: Descriptor) {
        let at = self.desc.start + u64::from(index) * DESC_SIZE;
        self.ram.write(at, &descriptor.to_bytes());
    }

    /// Puts a head into the available ring and publishes it.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.next_avail % self.size);
        self.ram.store_u16(self.avail.start + 4 + 2 * slot, head);
        self.next_avail = self.next_avail.wrapping_add(1);
        self.set_avail_index(self.next_avail);
    }

    /// Publishes any index of the available ring.
    pub fn set_avail_index(&self, index: u16) {
        self.ram.store_u16(self.avail.start + 2, index);
    }

    /// True if the device wants to be told of what was offered since the last kick; notes it as told.
    pub fn take_kick(&mut self) -> bool {
        fence(Ordering::SeqCst);
        let (old, new) = (self.kicked, self.next_avail);
        self.kicked = new;
        if self.event_idx {
            let event = self
                .ram
                .load_u16(self.used.start + 4 + 8 * u64::from(self.size));
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.ram.load_u16(self.used.start) & 1 == 0
        }
    }

    /// Asks for a notification with the next used element.
    pub fn arm(&self) {
        if self.event_idx {
            let at = self.avail.start + 4 + 2 * u64::from(self.size);
            self.ram.store_u16(at, self.next_used);
        } else {
            self.ram.store_u16(self.avail.start, 0);
        }
        fence(Ordering::SeqCst);
    }

    /// Asks for no notifications, as far as the ring can say so.
    pub fn disarm(&self) {
        if self.event_idx {
            let at = self.avail.start + 4 + 2 * u64::from(self.size);
            self.ram.store_u16(at, self.next_used.wrapping_sub(1));
        } else {
            self.ram.store_u16(self.avail.start, 1);
        }
    }

    /// Sets the flags of the available ring, whatever they mean.
    pub fn set_avail_flags(&self, flags: u16) {
        self.ram.store_u16(self.avail.start, flags);
    }

    /// Asks for a notification with the used element of this index (with event indices).
    pub fn ask_for(&self, index: u16) {
        self.write_event(index);
        fence(Ordering::SeqCst);
    }

    /// Writes the place of the event index, whether it means anything or not.
    pub fn write_event(&self, index: u16) {
        let at = self.avail.start + 4 + 2 * u64::from(self.size);
        self.ram.store_u16(at, index);
    }

    /// The device's index of the used ring.
    pub fn used_index(&self) -> u16 {
        self.ram.load_u16(self.used.start + 2)
    }

    /// Used elements that the driver has not taken yet.
    pub fn ready(&self) -> u16 {
        self.used_index().wrapping_sub(self.next_used)
    }

    /// Takes the next used element, if there is one.
    pub fn pop(&mut self) -> Option<Used> {
        if self.ready() == 0 {
            return None;
        }
        let slot = u64::from(self.next_used % self.size);
        let raw = self.ram.read(Span::new(self.used.start + 4 + 8 * slot, 8));
        self.next_used = self.next_used.wrapping_add(1);
        Some(Used {
            id: le32(&raw, 0),
            len: le32(&raw, 4),
        })
    }

    /// Forgets every chain: the ring as a driver makes it after a reset.
    pub fn reset(&mut self) {
        for span in [self.desc, self.avail, self.used] {
            let len = usize::try_from(span.len).expect("size");
            self.ram.write(span.start, &vec![0; len]);
        }
        self.free = (0..self.size).rev().collect();
        self.next_avail = 0;
        self.next_used = 0;
        self.kicked = 0;
    }

    /// The flags word of the used ring (bit 0: the device wants no kicks).
    pub fn used_flags(&self) -> u16 {
        le16(&self.ram.read(Span::new(self.used.start, 2)), 0)
    }
}
