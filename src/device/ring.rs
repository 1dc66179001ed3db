//! What the front-end said of one queue, and whether it may be served.
//!
//! A ring is *configured* when it has a kick and addresses that lie in shared memory; from then on until
//! GET_VRING_BASE or a reset it is *started*. Its chains are taken while it is also *enabled* and not
//! *broken*, unless the queue is paused ([`super::handle`]: its memory changes).
//!
//! Who validates: size, addresses and position are checked here when they are set, and the addresses
//! once more with the ring's full length when it starts and when the memory changes. The contents of the
//! rings are the guest's and are checked by [`crate::queue`] with every use.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::memory::Table;
use super::refusal::Refusal;
use super::tracked::Tracked;
use crate::guard;

/// Bytes of a descriptor.
const DESCRIPTOR: u64 = 16;
/// Bytes of an available ring besides 2 for each entry: flags, index, event index.
const AVAILABLE: u64 = 6;
/// Bytes of a used ring besides 8 for each entry.
const USED: u64 = 6;
/// What the address of each must be a multiple of (virtio 1.4, 2.7).
const DESCRIPTOR_ALIGNMENT: u64 = 16;
const AVAILABLE_ALIGNMENT: u64 = 2;
const USED_ALIGNMENT: u64 = 4;

/// Where the three parts lie, as the front-end addresses its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
}

/// Where they lie for the guest.
#[derive(Clone, Copy, Debug)]
struct Located {
    descriptors: GuestAddress,
    available: GuestAddress,
    used: GuestAddress,
}

/// The eventfd by which the guest says that there is something in the ring. It is listened to from here
/// to its drop, edge by edge: nobody reads it, so its counter only grows.
#[derive(Debug)]
pub(super) struct Kick {
    event: File,
    events: Arc<Epoll>,
}

impl Kick {
    /// Has `events` report kicks as `token`.
    pub(super) fn listen(event: File, events: &Arc<Epoll>, token: u64) -> Result<Self, Refusal> {
        let interest = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, token);
        events.ctl(ControlOperation::Add, event.as_raw_fd(), interest)?;
        Ok(Self {
            event,
            events: Arc::clone(events),
        })
    }
}

impl Drop for Kick {
    fn drop(&mut self) {
        // Closing does not do: the front-end holds the same eventfd, and the kernel goes by that. It
        // was added and so can be removed.
        let fd = self.event.as_raw_fd();
        let _ = self
            .events
            .ctl(ControlOperation::Delete, fd, EpollEvent::default());
    }
}

/// One queue as its front-end set it up.
#[derive(Debug)]
pub(super) struct Ring {
    index: u16,
    pub(super) queue: Queue,
    /// Guest memory as of now.
    pub(super) memory: Arc<GuestMemoryMmap>,
    addresses: Option<Addresses>,
    kick: Option<Kick>,
    started: bool,
    pub(super) enabled: bool,
    /// Nothing is taken until it is set up anew; the guest was told by the error event.
    pub(super) broken: bool,
    /// What the front-end keeps of its requests in flight: then that says where the ring goes on, and
    /// SET_VRING_BASE counts for nothing.
    pub(super) tracked: Option<Arc<Tracked>>,
    /// Of [`guard::faults`], those before this ring had its memory, which was whole then.
    faults: u64,
}

impl Ring {
    pub(super) fn new(index: u16, most: u16) -> Result<Self, virtio_queue::Error> {
        Ok(Self {
            index,
            queue: Queue::new(most)?,
            memory: Arc::new(GuestMemoryMmap::new()),
            addresses: None,
            kick: None,
            started: false,
            enabled: false,
            broken: false,
            tracked: None,
            faults: 0,
        })
    }

    /// Whether chains are taken from it.
    pub(super) fn is_served(&self) -> bool {
        self.started && self.enabled && !self.broken
    }

    /// Whether it was started and not stopped since.
    pub(super) fn is_started(&self) -> bool {
        self.started
    }

    /// Whether its memory went away since it was set up.
    pub(super) fn has_faults(&self) -> bool {
        self.started && guard::faults() != self.faults
    }

    /// [`guard::faults`] as long as none of its memory went away.
    pub(super) fn faults(&self) -> u64 {
        self.faults
    }

    /// SET_VRING_NUM.
    pub(super) fn set_size(&mut self, asked: u32) -> Result<(), Refusal> {
        if self.started {
            return Err(Refusal::Running(self.index.into()));
        }
        let most = self.queue.max_size();
        let size = u16::try_from(asked).ok();
        size.and_then(|size| self.queue.try_set_size(size).ok())
            .ok_or(Refusal::QueueSize { asked, most })
    }

    /// SET_VRING_BASE. Where the used ring stands is read from it at the start.
    pub(super) fn set_base(&mut self, base: u32) -> Result<(), Refusal> {
        let index = self.index.into();
        if self.started {
            return Err(Refusal::Running(index));
        }
        let position = u16::try_from(base).map_err(|_| Refusal::Base { index, base })?;
        self.queue.set_next_avail(position);
        Ok(())
    }

    /// The index of the next chain that would be taken.
    pub(super) fn base(&self) -> u16 {
        self.queue.next_avail()
    }

    /// SET_VRING_ADDR of a ring that does not run: the parts must begin in shared memory. That they end
    /// there too is checked at the start, when the size is known for certain.
    pub(super) fn set_addresses(
        &mut self,
        addresses: Addresses,
        table: &Table,
    ) -> Result<(), Refusal> {
        self.locate(&addresses, table, 0)?;
        self.addresses = Some(addresses);
        Ok(())
    }

    /// Whether these are its addresses.
    pub(super) fn has_addresses(&self, addresses: &Addresses) -> bool {
        self.addresses.as_ref() == Some(addresses)
    }

    /// SET_VRING_KICK.
    pub(super) fn set_kick(&mut self, kick: Kick) {
        self.kick = Some(kick);
    }

    /// Starts the ring if it is configured and did not run. `true` if it runs now and did not before.
    pub(super) fn try_start(&mut self, table: &Table) -> Result<bool, Refusal> {
        let (false, Some(_), Some(addresses)) = (self.started, &self.kick, self.addresses) else {
            return Ok(false);
        };
        let located = self.locate(&addresses, table, self.queue.size())?;
        self.place(located)?;
        self.memory = Arc::clone(table.map());
        self.count_faults(table)?;
        let used = self
            .queue
            .used_idx(self.memory.as_ref(), Ordering::Relaxed)
            .map_err(|_| Refusal::RingMemory(self.index))?;
        self.queue.set_next_used(used.0);
        self.queue.set_ready(true);
        self.broken = false;
        self.started = true;
        Ok(true)
    }

    /// The parts of a ring that runs, while its queue is paused, at new addresses.
    pub(super) fn relocate(&mut self, addresses: Addresses, table: &Table) -> Result<(), Refusal> {
        let located = self.locate(&addresses, table, self.queue.size())?;
        self.place(located)?;
        self.addresses = Some(addresses);
        Ok(())
    }

    /// Other memory. A ring that runs, while its queue is paused, is found again in it, or not.
    pub(super) fn set_memory(&mut self, table: &Table) -> Result<(), Refusal> {
        self.memory = Arc::clone(table.map());
        match self.addresses {
            Some(addresses) if self.started => {
                self.count_faults(table)?;
                self.relocate(addresses, table)
            }
            _ => Ok(()),
        }
    }

    /// Counts faults from now on, of memory that had none: zeros in place of what went stay zeros.
    fn count_faults(&mut self, table: &Table) -> Result<(), Refusal> {
        // Before the look: what goes after it is counted.
        self.faults = guard::faults();
        match table.is_whole() {
            true => Ok(()),
            false => Err(Refusal::MemoryGone(self.index)),
        }
    }

    /// More memory: what was there stays where it was.
    pub(super) fn add_memory(&mut self, table: &Table) {
        self.memory = Arc::clone(table.map());
    }

    /// Takes no more chains. What is in flight is still to be answered.
    pub(super) fn stop(&mut self) {
        self.started = false;
        self.queue.set_ready(false);
        self.kick = None;
    }

    /// As if it had never been set up. Nothing may be in flight.
    pub(super) fn reset(&mut self) {
        self.stop();
        self.queue.reset();
        self.addresses = None;
        self.enabled = false;
        self.broken = false;
        self.tracked = None;
    }

    /// As [`Ring::reset`], and forgets its memory too.
    pub(super) fn forget(&mut self) {
        self.reset();
        self.memory = Arc::new(GuestMemoryMmap::new());
    }

    fn locate(&self, addresses: &Addresses, table: &Table, size: u16) -> Result<Located, Refusal> {
        let entries = u64::from(size);
        let part = |what, user, len: u64, alignment: u64| {
            let found = table.guest_address(user, len.max(1));
            let at = found.ok_or(Refusal::RingAddress(self.index, what))?;
            match at.0.is_multiple_of(alignment) {
                true => Ok(at),
                false => Err(Refusal::RingAlignment(self.index, what, alignment)),
            }
        };
        let Addresses {
            descriptors,
            available,
            used,
        } = *addresses;
        let [table_len, available_len, used_len] = [
            entries * DESCRIPTOR,
            AVAILABLE + entries * 2,
            USED + entries * 8,
        ];
        Ok(Located {
            descriptors: part("descriptor", descriptors, table_len, DESCRIPTOR_ALIGNMENT)?,
            available: part("available", available, available_len, AVAILABLE_ALIGNMENT)?,
            used: part("used", used, used_len, USED_ALIGNMENT)?,
        })
    }

    fn place(&mut self, at: Located) -> Result<(), Refusal> {
        let (queue, index) = (&mut self.queue, self.index);
        let misplaced = |what| move |_| Refusal::RingAddress(index, what);
        queue
            .try_set_desc_table_address(at.descriptors)
            .map_err(misplaced("descriptor"))?;
        queue
            .try_set_avail_ring_address(at.available)
            .map_err(misplaced("available"))?;
        queue
            .try_set_used_ring_address(at.used)
            .map_err(misplaced("used"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use vhost::vhost_user::message::VhostUserMemoryRegion;

    use super::super::memory::Place;
    use super::*;

    const SIZE: u64 = 64 << 10;
    /// Where front-end and guest have a region in one place.
    const EVEN: u64 = 0x1_0000;
    /// Where the guest has one two bytes further.
    const ODD: u64 = 0x4_0000;

    /// The front-end aligns its addresses, which the `vhost` crate checks; what the guest makes of them is ours.
    fn table() -> Table {
        let region = |user, guest| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(SIZE).unwrap();
            let region = VhostUserMemoryRegion::new(guest, SIZE, user, 0);
            (Place::of(&region).unwrap(), file)
        };
        Table::new(vec![region(EVEN, EVEN), region(ODD, ODD + 2)]).unwrap()
    }

    fn parts(descriptors: u64, available: u64, used: u64) -> Addresses {
        Addresses {
            descriptors,
            available,
            used,
        }
    }

    #[test]
    fn a_ring_is_moved_as_a_whole_or_not_at_all() {
        let table = table();
        let mut ring = Ring::new(0, 64).unwrap();
        let before = parts(EVEN, EVEN + 0x1000, EVEN + 0x2000);
        ring.set_addresses(before, &table).unwrap();
        // Anything that can be waited for.
        let (kick, _kicks) = std::io::pipe().unwrap();
        let events = Arc::new(Epoll::new().unwrap());
        ring.set_kick(Kick::listen(OwnedFd::from(kick).into(), &events, 0).unwrap());
        assert!(ring.try_start(&table).unwrap());
        let place = |ring: &Ring| {
            let queue = &ring.queue;
            [queue.desc_table(), queue.avail_ring(), queue.used_ring()]
        };
        let stood = place(&ring);
        for misaligned in [
            parts(EVEN + 0x3000, EVEN + 0x4000, ODD),
            parts(ODD, EVEN + 0x4000, EVEN + 0x5000),
        ] {
            let moved = ring.relocate(misaligned, &table);
            assert!(
                matches!(moved, Err(Refusal::RingAlignment(0, ..))),
                "{moved:?}"
            );
            assert_eq!(place(&ring), stood);
            assert!(ring.has_addresses(&before));
        }
        ring.relocate(parts(EVEN + 0x3000, EVEN + 0x4000, EVEN + 0x5000), &table)
            .unwrap();
        assert_eq!(place(&ring), stood.map(|at| at + 0x3000));
    }
}
