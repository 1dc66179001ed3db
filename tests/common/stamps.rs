//! Blocks that tell where they belong: each carries the stamp of its request and its position in it.

use std::collections::{HashMap, HashSet};

use super::queue::{Queue, QueueError};
use super::request::{Layout, Request};
use super::rng::Rng;
use super::wire::le64;

/// Consecutive blocks written by one request.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// In each of its blocks, with the block's position in it.
    pub stamp: u64,
    /// Length.
    pub blocks: u64,
    /// The block of the zone where it must lie; appends go where the device puts them.
    pub at: Option<u64>,
}

/// Blocks of `block` bytes, each filled with the stamp and its position.
pub fn stamped(stamp: u64, blocks: u64, block: usize) -> Vec<u8> {
    let unit = |i: u64| [stamp.to_le_bytes(), i.to_le_bytes()].concat();
    (0..blocks)
        .flat_map(|i| unit(i).repeat(block / 16))
        .collect()
}

/// Stamp and position that fill all these bytes, `None` for zeroes.
///
/// # Panics
/// If they are not of one piece.
pub fn decode(bytes: &[u8], what: &str) -> Option<(u64, u64)> {
    let (unit, _) = bytes.split_at(16);
    let same = bytes.chunks_exact(16).all(|part| part == unit);
    assert!(same, "{what}: torn, or of no request");
    let [stamp, i] = [0, 8].map(|at| le64(unit, at));
    ((stamp, i) != (0, 0)).then_some((stamp, i))
}

/// Blocks of a zone that nobody acknowledged must come from requests in flight: each once, in place and whole but for
/// the last. `found` is stamp and position of each block.
///
/// # Panics
/// If they do not.
pub fn check_unacknowledged(
    found: &[Option<(u64, u64)>],
    acknowledged: impl Fn(u64) -> bool,
    pending: &HashMap<u64, Piece>,
    what: &str,
) {
    let mut seen = HashSet::new();
    let mut open: Option<(Piece, u64)> = None;
    for (at, block) in (0..).zip(found) {
        let Some((stamp, i)) = *block else { continue };
        if acknowledged(at) {
            assert!(open.is_none(), "{what}: a piece cut short before {at}");
            continue;
        }
        let piece = pending
            .get(&stamp)
            .unwrap_or_else(|| panic!("{what}: block {at} of no request in flight"));
        match open {
            None => {
                assert!(seen.insert(stamp), "{what}: {piece:?} twice");
                assert_eq!(i, 0, "{what}: {piece:?} from its middle");
                assert!(piece.at.is_none_or(|wanted| wanted == at), "{what}: moved");
            }
            Some((before, last)) => {
                assert_eq!((stamp, i), (before.stamp, last + 1), "{what}: mixed up");
            }
        }
        open = (i + 1 < piece.blocks).then_some((*piece, i));
    }
}

/// Submits a request in one of the usual layouts; its ticket if there was room for it.
///
/// # Panics
/// If the queue fails otherwise.
pub fn submit(rng: &mut Rng, queue: &mut Queue, request: &Request) -> Option<u64> {
    let layout = if rng.one_in(2) {
        Layout::indirect()
    } else {
        Layout::default()
    };
    match queue.submit(request, &layout) {
        Ok(ticket) => Some(ticket),
        Err(QueueError::Full) => None,
        Err(err) => panic!("{err}"),
    }
}
