//! The memory that a front-end keeps for a back-end that may die (vhost-user, "Inflight I/O tracking"): handed over, and
//! looked into by the standard layout of a split ring. What follows the standard part is the back-end's own.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use vhost::vhost_user::message::FrontendReq;

use super::wire::{Wire, WireError, le16, le64, longs, words};

/// Bytes of a queue's header in the region.
pub const QUEUE_HEADER: u64 = 16;
/// Bytes of a descriptor's state.
pub const DESC_STATE: u64 = 16;
/// Queues start at multiples of this many bytes, as libvhost-user has it too.
const ALIGNMENT: u64 = 64;

/// The region as the back-end made it.
#[derive(Debug)]
pub struct Inflight {
    /// The back-end's memfd.
    pub file: File,
    /// Bytes of the region.
    pub size: u64,
    /// Where it starts in the file.
    pub offset: u64,
    /// Queues that it tracks.
    pub queues: u16,
    /// Descriptors of each.
    pub queue_size: u16,
}

/// The standard part for one queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracked {
    /// Feature bits; none are defined for a split ring.
    pub features: u64,
    /// 1, or 0 while nobody has used the region.
    pub version: u16,
    /// Descriptors.
    pub desc_num: u16,
    /// Head of the last batch that was completed.
    pub last_batch_head: u16,
    /// Index of the used ring up to which the flags are true.
    pub used_idx: u16,
    /// Heads in flight in the order in which they were taken.
    pub heads: Vec<u16>,
}

impl Inflight {
    /// GET_INFLIGHT_FD: the back-end makes a region.
    pub fn get(wire: &mut Wire, queues: u16, queue_size: u16) -> Result<Self, WireError> {
        let body = payload(0, 0, queues, queue_size);
        let (answer, file) = wire.ask_file(FrontendReq::GET_INFLIGHT_FD, &body)?;
        let file = file.ok_or_else(|| WireError::Garbled("no descriptor".to_owned()))?;
        if answer.len() < 20 || [16, 18].map(|at| le16(&answer, at)) != [queues, queue_size] {
            return Err(WireError::Garbled(format!("inflight region: {answer:?}")));
        }
        let (size, offset) = (le64(&answer, 0), le64(&answer, 8));
        if size == 0 || file.metadata()?.len() < offset.saturating_add(size) {
            return Err(WireError::Garbled(format!(
                "{size} bytes at {offset} of a file of {}",
                file.metadata()?.len()
            )));
        }
        Ok(Self {
            file,
            size,
            offset,
            queues,
            queue_size,
        })
    }

    /// SET_INFLIGHT_FD: hands the region over.
    pub fn set(&self, wire: &mut Wire) -> Result<(), WireError> {
        let body = payload(self.size, self.offset, self.queues, self.queue_size);
        let fd = self.file.as_raw_fd();
        wire.tell(FrontendReq::SET_INFLIGHT_FD, &body, &[fd])
    }

    /// Every byte of it.
    pub fn read(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.size).expect("size")];
        self.file
            .read_exact_at(&mut bytes, self.offset)
            .expect("inflight region");
        bytes
    }

    /// Overwrites bytes of it, `at` counted from its start.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.file
            .write_all_at(bytes, self.offset + at)
            .expect("inflight region");
    }

    /// Where the part of a queue starts.
    pub fn queue_offset(&self, queue: u16) -> u64 {
        let each = QUEUE_HEADER + DESC_STATE * u64::from(self.queue_size);
        u64::from(queue) * each.next_multiple_of(ALIGNMENT)
    }

    /// Where the back-end's own part starts.
    pub fn tail_offset(&self) -> u64 {
        self.queue_offset(self.queues)
    }

    /// Of the heads in flight of a queue, those of whose operation the back-end has noted what it is
    /// about to change: our own tail, of 64 bytes and then 64 for each descriptor of each queue.
    pub fn noted(&self, queue: u16) -> usize {
        let size = |bytes: u64| usize::try_from(bytes).expect("size");
        let bytes = self.read();
        let heads = self.tracked(queue).heads;
        let noted = heads.iter().filter(|head| {
            let state = self.queue_offset(queue) + QUEUE_HEADER + DESC_STATE * u64::from(**head);
            let slot = u64::from(queue) * u64::from(self.queue_size) + u64::from(**head);
            let note = self.tail_offset() + 64 + 64 * slot;
            le64(&bytes, size(note)) == le64(&bytes, size(state + 8))
        });
        noted.count()
    }

    /// What it says of a queue.
    pub fn tracked(&self, queue: u16) -> Tracked {
        let at = usize::try_from(self.queue_offset(queue)).expect("size");
        let bytes = &self.read()[at..];
        let states = &bytes[usize::try_from(QUEUE_HEADER).expect("size")..];
        let unit = usize::try_from(DESC_STATE).expect("size");
        let mut heads: Vec<(u64, u16)> = (0..self.queue_size)
            .zip(states.chunks_exact(unit))
            .filter(|(_, state)| state[0] != 0)
            .map(|(head, state)| (le64(state, 8), head))
            .collect();
        heads.sort_unstable();
        Tracked {
            features: le64(bytes, 0),
            version: le16(bytes, 8),
            desc_num: le16(bytes, 10),
            last_batch_head: le16(bytes, 12),
            used_idx: le16(bytes, 14),
            heads: heads.into_iter().map(|(_, head)| head).collect(),
        }
    }
}

fn payload(size: u64, offset: u64, queues: u16, queue_size: u16) -> Vec<u8> {
    let mut body = longs(&[size, offset]);
    body.extend_from_slice(&queues.to_le_bytes());
    body.extend_from_slice(&queue_size.to_le_bytes());
    // The padding that QEMU's structure has on 64-bit machines.
    body.extend_from_slice(&words(&[0]));
    body
}
