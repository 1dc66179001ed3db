//! Why a message of the front-end is not obeyed.

use std::io;

use thiserror::Error;
use vhost::vhost_user::Error as ProtocolError;

use super::memory::MemoryError;
use super::tracked::TrackError;

/// A message that changed nothing. A front-end that asked for an acknowledgement is told and may go on;
/// one that did not would take the message for obeyed, so its connection ends.
#[derive(Debug, Error)]
pub(super) enum Refusal {
    #[error(
        "queue {index} does not exist, there are {queues}: serve with a larger --queues, or give the \
         front-end fewer (num_vqs of QEMU)"
    )]
    NoSuchQueue { index: u32, queues: usize },
    #[error(
        "a queue of {asked} descriptors: a power of two up to {most} is possible; serve with a larger \
         --queue-size, or give the front-end fewer (vq_size of QEMU)"
    )]
    QueueSize { asked: u32, most: u16 },
    #[error("queue {0} runs: it has to be stopped before its size or position is set")]
    Running(u32),
    #[error("queue {index}: a ring is at index {base}, which 16 bits cannot count")]
    Base { index: u32, base: u32 },
    #[error("queue {0}: the {1} ring is not in one region of the memory that was shared")]
    RingAddress(u16, &'static str),
    #[error("queue {0}: the {1} ring is not at a multiple of {2} bytes")]
    RingAlignment(u16, &'static str, u64),
    #[error("queue {0}: some of the memory that is shared went away (its file shrank)")]
    MemoryGone(u16),
    #[error("queue {0}: its memory cannot be read")]
    RingMemory(u16),
    #[error("queue {0}: what was in flight has not ended yet")]
    Busy(u16),
    #[error("queue {0}: its worker does not come back from the host's disk")]
    Stuck(u16),
    #[error("queue {0}: a queue that is not kicked would have to be polled, which is not offered")]
    NoKick(u8),
    #[error("the descriptor for a kick, call or error is no eventfd")]
    NotAnEvent,
    #[error("features {0:#x} were not offered")]
    Features(u64),
    #[error("features cannot change while a queue runs")]
    FeaturesInUse,
    #[error("protocol features {0:#x} were not offered")]
    ProtocolFeatures(u64),
    #[error("what is in flight cannot be told anew while a queue runs")]
    TrackedInUse,
    #[error(transparent)]
    Track(#[from] TrackError),
    #[error("this connection has an owner")]
    Owned,
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<Refusal> for ProtocolError {
    fn from(refusal: Refusal) -> Self {
        Self::ReqHandlerError(io::Error::other(refusal))
    }
}
