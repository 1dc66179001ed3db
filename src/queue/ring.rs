//! The device's half of a split virtqueue (virtio 1.4, 2.7), as one batch of requests sees it.
//!
//! [`Rings`] finds the three parts of a queue in guest memory once; after that taking a chain and
//! giving one back are a load and a store each, where the queue crate looks the address up every time.
//! What was given back becomes visible with [`Rings::publish`], so that a batch costs one barrier and
//! at most one notification. The positions belong to the [`Queue`], where the framework looks for them:
//! [`Rings::leave`] brings them up to date.

use std::sync::atomic::{Ordering, fence};

use thiserror::Error;
use virtio_queue::{Queue, QueueT};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileSlice, guest_memory::Error,
};

/// Bytes before the entries of either ring: flags and index.
const HEADER: usize = 4;
/// Where the index stands.
const INDEX: usize = 2;
/// Bytes of an entry of the available ring: the head of a chain.
const AVAILABLE_LEN: usize = 2;
/// Bytes of an entry of the used ring: head and length.
const USED_LEN: usize = 8;
/// Bytes behind the entries of either ring: the event index.
const EVENT_LEN: usize = 2;
/// `VIRTQ_AVAIL_F_NO_INTERRUPT`: the driver need not be told. Of no meaning with event indices.
const NO_INTERRUPT: u16 = 1;
/// `VIRTQ_USED_F_NO_NOTIFY`: the driver need not kick. A hint, and of no meaning with event indices.
const NO_NOTIFY: u16 = 1;

/// Why a ring cannot be worked with.
#[derive(Debug, Error)]
pub(super) enum RingError {
    /// A part is not in one region of guest memory.
    #[error(
        "the {part} ring of {size} entries at {address:#x} is not in one region of guest memory"
    )]
    NotInMemory {
        part: &'static str,
        size: u16,
        address: u64,
    },
    /// An access failed that lies inside of a ring: one that is not aligned (virtio 1.4, 2.7).
    #[error("the rings are not aligned")]
    Unaligned,
    /// More chains than the queue has descriptors (virtio 1.4, 2.7.13.3).
    #[error("the driver claims {claimed} available chains, of a queue of {size}")]
    TooMany { claimed: u16, size: u16 },
}

/// The rings of a queue and where the device is in them.
pub(super) struct Rings<'m> {
    available: VolatileSlice<'m>,
    used: VolatileSlice<'m>,
    size: u16,
    event_idx: bool,
    next_available: u16,
    /// The driver's index, as last read.
    end: u16,
    next_used: u16,
    published: u16,
}

impl<'m> Rings<'m> {
    /// Finds the rings of `queue`.
    ///
    /// # Errors
    /// [`RingError::NotInMemory`].
    pub(super) fn find(queue: &Queue, memory: &'m GuestMemoryMmap) -> Result<Self, RingError> {
        let size = queue.size();
        let part = |part, address: u64, entry: usize| {
            let len = HEADER + usize::from(size) * entry + EVENT_LEN;
            let found: Result<_, Error> = memory.get_slice(GuestAddress(address), len);
            found.map_err(|_| RingError::NotInMemory {
                part,
                size,
                address,
            })
        };
        let next_available = queue.next_avail();
        Ok(Self {
            available: part("available", queue.avail_ring(), AVAILABLE_LEN)?,
            used: part("used", queue.used_ring(), USED_LEN)?,
            size,
            event_idx: queue.event_idx_enabled(),
            next_available,
            end: next_available,
            next_used: queue.next_used(),
            published: queue.next_used(),
        })
    }

    /// The head of the next chain that the driver offers, if there is one.
    ///
    /// # Errors
    /// [`RingError::TooMany`]: nothing in the ring can be trusted any more.
    pub(super) fn next(&mut self) -> Result<Option<u16>, RingError> {
        if self.next_available == self.end && !self.look()? {
            return Ok(None);
        }
        let entry = usize::from(self.next_available % self.size.max(1));
        let head = load(&self.available, HEADER + entry * AVAILABLE_LEN)?;
        self.next_available = self.next_available.wrapping_add(1);
        Ok(Some(head))
    }

    /// Looks whether the driver offers anything; what it wrote before is visible then.
    pub(super) fn look(&mut self) -> Result<bool, RingError> {
        let index = self
            .available
            .load::<u16>(INDEX, Ordering::Acquire)
            .map_err(|_| RingError::Unaligned)?;
        let end = u16::from_le(index);
        let claimed = end.wrapping_sub(self.next_available);
        if claimed > self.size {
            let size = self.size;
            return Err(RingError::TooMany { claimed, size });
        }
        self.end = end;
        Ok(claimed > 0)
    }

    /// Hands a chain back, of which `len` bytes were written. The driver sees it with the next
    /// [`Rings::publish`].
    pub(super) fn give_back(&mut self, head: u16, len: u32) -> Result<(), RingError> {
        let entry = usize::from(self.next_used % self.size.max(1));
        let element = u64::from(head) | u64::from(len) << 32;
        self.used
            .write_obj(element.to_le(), HEADER + entry * USED_LEN)
            .map_err(|_| RingError::Unaligned)?;
        self.next_used = self.next_used.wrapping_add(1);
        Ok(())
    }

    /// Shows the driver what was handed back. `true` if it wants to be told.
    ///
    /// With event indices it does if the one that it named is among those shown now, without if its
    /// flag does not say otherwise (virtio 1.4, 2.7.7.2).
    pub(super) fn publish(&mut self) -> Result<bool, RingError> {
        let (old, new) = (self.published, self.next_used);
        if old == new {
            return Ok(false);
        }
        self.used
            .store(new.to_le(), INDEX, Ordering::Release)
            .map_err(|_| RingError::Unaligned)?;
        self.published = new;
        // The driver says what it wants to be told of and then looks at the used ring: one of the
        // two sees the other's store.
        fence(Ordering::SeqCst);
        if !self.event_idx {
            return Ok(load(&self.available, 0)? & NO_INTERRUPT == 0);
        }
        let event = load(&self.available, self.available.len() - EVENT_LEN)?;
        Ok(new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old))
    }

    /// Asks the driver not to kick, as far as there is a word for it: with event indices it stays
    /// quiet by itself once it has passed the one that was named.
    pub(super) fn hush(&self) -> Result<(), RingError> {
        if self.event_idx {
            return Ok(());
        }
        store(&self.used, 0, NO_NOTIFY)
    }

    /// Asks for a kick with the next chain. `true` if there is one already, of which no kick will
    /// tell.
    pub(super) fn listen(&mut self) -> Result<bool, RingError> {
        if self.event_idx {
            let place = self.used.len() - EVENT_LEN;
            store(&self.used, place, self.next_available)?;
        } else {
            store(&self.used, 0, 0)?;
        }
        // Pairs with the driver's barrier between its index and its look at what was asked for.
        fence(Ordering::SeqCst);
        self.look()
    }

    /// The index up to which the driver sees what was handed back.
    pub(super) fn used_index(&self) -> u16 {
        self.published
    }

    /// The indices of both rings as they stand in guest memory: available, used. For who begins in the
    /// middle of a ring's life.
    pub(super) fn indices(&self) -> Result<(u16, u16), RingError> {
        let index = |part: &VolatileSlice<'_>| {
            let value = part.load::<u16>(INDEX, Ordering::Acquire);
            value.map(u16::from_le).map_err(|_| RingError::Unaligned)
        };
        Ok((index(&self.available)?, index(&self.used)?))
    }

    /// Ends the batch: the queue goes on from here.
    pub(super) fn leave(self, queue: &mut Queue) {
        queue.set_next_avail(self.next_available);
        queue.set_next_used(self.next_used);
    }
}

fn load(part: &VolatileSlice<'_>, offset: usize) -> Result<u16, RingError> {
    let value = part.load::<u16>(offset, Ordering::Relaxed);
    value.map(u16::from_le).map_err(|_| RingError::Unaligned)
}

fn store(part: &VolatileSlice<'_>, offset: usize, value: u16) -> Result<(), RingError> {
    part.store(value.to_le(), offset, Ordering::Relaxed)
        .map_err(|_| RingError::Unaligned)
}
