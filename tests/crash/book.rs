//! Every tag slot and every ciphertext block that was ever seen on the medium: no key may meet a nonce twice.
//!
//! A tag is a function of key, nonce, place and ciphertext; so two tags under one key and nonce are two messages. That
//! catches reuse whose slot reached the medium. Where only the data did, the keystream gives it away: every block
//! begins with known plaintext, so the first eight bytes of the keystream are known, and under one keystream there must
//! be one ciphertext.

use std::collections::{HashMap, HashSet};

use zonevault::store::mem::Moment;

use crate::payload::MAGIC;
use crate::reader::Reader;

const SLOT_LEN: usize = 32;

/// What was seen in a history and all its branches.
#[derive(Debug, Default)]
pub(crate) struct Book {
    /// (zone, generation, nonce) to tag.
    tags: HashMap<(u32, u64, [u8; 12]), [u8; 16]>,
    /// Slots that were seen in a zone. A slot belongs to the generation during which it appeared, also where it is still
    /// to be seen after a reset.
    slots: HashSet<(u32, [u8; SLOT_LEN])>,
    /// First bytes of keystream to first bytes of ciphertext.
    streams: HashMap<[u8; 8], [u8; 16]>,
    /// Areas as they were when last looked at, to pass over what is known.
    last: Vec<(Vec<u8>, Vec<u8>, u64)>,
}

fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("so many bytes")
}

impl Book {
    /// Notes all that `moment` shows. Only for disks with AES-GCM.
    pub(crate) fn note(&mut self, reader: &Reader, moment: &Moment) -> Result<(), String> {
        if !reader.is_gcm() {
            return Ok(());
        }
        let peek = |offset, len| moment.peek(offset, len);
        let generations = reader.generations(&peek);
        self.last
            .resize_with(reader.zones() as usize, Default::default);
        for (zone, generation) in (0..reader.zones()).zip(generations) {
            let blocks = usize::try_from(reader.capacity()).expect("a small zone");
            let data = peek(reader.data_offset(zone), blocks * reader.block());
            let slots = peek(reader.slot_offset(zone), blocks * SLOT_LEN);
            let now = (data, slots, generation);
            let before = &self.last[zone as usize];
            if before.1 != now.1 || before.2 != generation {
                for slot in now.1.chunks(SLOT_LEN) {
                    if self.slots.insert((zone, part(slot, 0))) {
                        note_tag(&mut self.tags, (zone, generation), slot)?;
                    }
                }
            }
            if before.0 != now.0 {
                for block in now.0.chunks(reader.block()) {
                    note_stream(&mut self.streams, block, zone)?;
                }
            }
            self.last[zone as usize] = now;
        }
        Ok(())
    }

    /// Nonces that were seen.
    pub(crate) fn nonces(&self) -> usize {
        self.tags.len()
    }
}

fn note_tag(
    tags: &mut HashMap<(u32, u64, [u8; 12]), [u8; 16]>,
    (zone, generation): (u32, u64),
    slot: &[u8],
) -> Result<(), String> {
    if slot.iter().all(|&byte| byte == 0) {
        return Ok(());
    }
    let tag = part(slot, 16);
    let id = (zone, generation, part(slot, 0));
    match tags.insert(id, tag) {
        Some(_) => Err(format!(
            "zone {zone}, generation {generation}: nonce {:02x?} was used for two messages",
            id.2
        )),
        _ => Ok(()),
    }
}

fn note_stream(
    streams: &mut HashMap<[u8; 8], [u8; 16]>,
    block: &[u8],
    zone: u32,
) -> Result<(), String> {
    let first: [u8; 16] = part(block, 0);
    if first == [0; 16] {
        return Ok(());
    }
    let mut stream: [u8; 8] = part(block, 0);
    for (byte, plain) in stream.iter_mut().zip(MAGIC) {
        *byte ^= plain;
    }
    match streams.insert(stream, first) {
        Some(other) if other != first => {
            Err(format!("zone {zone}: two blocks under one keystream"))
        }
        _ => Ok(()),
    }
}
