//! What the simulated guest writes: blocks that tell which they are, so that any block found on the disk names the
//! operation that brought it there.

use std::cell::RefCell;
use std::rc::Rc;

use zonevault::request::MemoryFault;
use zonevault::volume::Payload;

/// How every block begins. Known plaintext: the keystream of a GCM block shows through it.
pub(crate) const MAGIC: [u8; 8] = *b"ZVCRASH!";

/// Names one block of one operation. Never used twice in a history.
pub(crate) type Stamp = u64;

/// What a block of the disk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// The block of that stamp, to the last byte.
    Stamp(Stamp),
    /// Zeroes.
    Zero,
    /// Anything else.
    Noise,
    /// The disk refused to give it.
    Failed,
}

/// Fills `block` with the content that `stamp` names.
pub(crate) fn fill(stamp: Stamp, block: &mut [u8]) {
    let mut state = stamp;
    let (words, _) = block.as_chunks_mut::<8>();
    for (position, word) in words.iter_mut().enumerate() {
        *word = match position {
            0 => MAGIC,
            1 => stamp.to_le_bytes(),
            _ => {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (state ^ (state >> 29)).to_le_bytes()
            }
        };
    }
}

/// The blocks that `stamps` name.
pub(crate) fn blocks(stamps: &[Stamp], block: usize) -> Vec<u8> {
    let mut bytes = vec![0; stamps.len() * block];
    for (stamp, block) in stamps.iter().zip(bytes.chunks_mut(block)) {
        fill(*stamp, block);
    }
    bytes
}

/// Tells what a block holds.
pub(crate) fn identify(block: &[u8]) -> Content {
    if block.iter().all(|&byte| byte == 0) {
        return Content::Zero;
    }
    let (words, _) = block.as_chunks::<8>();
    if words[0] != MAGIC {
        return Content::Noise;
    }
    let stamp = Stamp::from_le_bytes(words[1]);
    let mut expected = vec![0; block.len()];
    fill(stamp, &mut expected);
    if expected == block {
        Content::Stamp(stamp)
    } else {
        Content::Noise
    }
}

/// Guest memory of one request.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    /// The operation it belongs to.
    pub(crate) id: u64,
    /// Its bytes.
    pub(crate) bytes: Rc<RefCell<Vec<u8>>>,
}

impl Memory {
    /// Memory that holds `bytes`.
    pub(crate) fn new(id: u64, bytes: Vec<u8>) -> Self {
        let bytes = Rc::new(RefCell::new(bytes));
        Self { id, bytes }
    }
}

impl Payload for Memory {
    fn gather(&self, offset: u64, buf: &mut [u8]) -> Result<(), MemoryFault> {
        let bytes = self.bytes.borrow();
        let at = usize::try_from(offset).map_err(|_| MemoryFault)?;
        buf.copy_from_slice(bytes.get(at..at + buf.len()).ok_or(MemoryFault)?);
        Ok(())
    }

    fn scatter(&self, offset: u64, data: &[u8]) -> Result<(), MemoryFault> {
        let mut bytes = self.bytes.borrow_mut();
        let at = usize::try_from(offset).map_err(|_| MemoryFault)?;
        let to = bytes.get_mut(at..at + data.len()).ok_or(MemoryFault)?;
        to.copy_from_slice(data);
        Ok(())
    }
}
