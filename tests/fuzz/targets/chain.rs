//! Descriptor chains over a ring that a guest made up: [`Chain::collect`] beside a walk of our own,
//! and every copy beside one byte by byte.
#![no_main]

use arbitrary::{Result, Unstructured};
use vm_memory::GuestAddress;
use zonevault::request::{Chain, DescriptorTable, Outcome, Status};
use zonevault_fuzz::guest::{LARGE, Shadow, address};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Descriptors that a case places.
const DESCRIPTORS: usize = 48;
/// More than this is not copied: it is the large region over and over.
const COPIED: u64 = 1 << 10;

#[derive(Clone, Copy)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn invent(u: &mut Unstructured<'_>) -> Result<Self> {
        Ok(Self {
            address: address(u)?,
            len: match u.int_in_range(0..=3)? {
                0 => u.arbitrary()?,
                1 => u.int_in_range(0..=20)?,
                // A table, if it is taken for one.
                2 => 16 * u.int_in_range(0..=8)?,
                _ => u.int_in_range(0..=0x700)?,
            },
            flags: match u.arbitrary::<u8>()? {
                flags @ 0..=0xf => u16::from(flags),
                0xff => u.arbitrary()?,
                other => u16::from(other & 3),
            },
            next: match u.arbitrary::<u8>()? {
                0xff => u.arbitrary()?,
                next => u16::from(next & 15),
            },
        })
    }

    fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }

    fn read(memory: &mut Shadow, table: u64, index: u16) -> Option<Self> {
        let start = table.checked_add(16 * u64::from(index))?;
        let mut bytes = [0; 16];
        for (offset, byte) in (0..).zip(&mut bytes) {
            *byte = memory.get(start.checked_add(offset)?)?;
        }
        Some(Self {
            address: u64::from_le_bytes(bytes[..8].try_into().unwrap()),
            len: u32::from_le_bytes(bytes[8..12].try_into().unwrap()),
            flags: u16::from_le_bytes(bytes[12..14].try_into().unwrap()),
            next: u16::from_le_bytes(bytes[14..].try_into().unwrap()),
        })
    }
}

type Ranges = Vec<(u64, u32)>;

/// What virtio 1.4 (2.7.5) makes of a chain: readable and writable ranges, or `None` if it is none.
fn walk(memory: &mut Shadow, table: u64, size: u16, head: u16) -> Option<(Ranges, Ranges)> {
    let (mut readable, mut writable) = (Ranges::new(), Ranges::new());
    let (mut table, mut entries, mut index, mut indirect) = (table, u32::from(size), head, false);
    let mut total = 0_u64;
    loop {
        if u32::from(index) >= entries {
            return None;
        }
        let descriptor = Descriptor::read(memory, table, index)?;
        if descriptor.flags & INDIRECT != 0 {
            let entered = descriptor.len / 16;
            let fits = descriptor.len % 16 == 0 && (1..=0xffff).contains(&entered);
            if indirect || !fits || descriptor.flags & NEXT != 0 {
                return None;
            }
            (table, entries, index, indirect) = (descriptor.address, entered, 0, true);
            continue;
        }
        if readable.len() + writable.len() == usize::from(size) {
            return None;
        }
        let write = descriptor.flags & WRITE != 0;
        if !write && !writable.is_empty() {
            return None;
        }
        let len = u64::from(descriptor.len);
        if len != 0 && !memory.holds(descriptor.address, len) {
            return None;
        }
        total += len;
        let part = if write { &mut writable } else { &mut readable };
        part.push((descriptor.address, descriptor.len));
        if descriptor.flags & NEXT == 0 {
            break;
        }
        index = descriptor.next;
    }
    let room = writable.iter().any(|(_, len)| *len != 0);
    (room && total <= 1 << 32).then_some((readable, writable))
}

/// The address of each byte from `offset` on; fewer than `count` if the ranges end.
fn places(ranges: &Ranges, offset: u64, count: u64) -> Vec<u64> {
    let (mut places, mut start) = (Vec::new(), 0);
    for &(address, len) in ranges {
        let len = u64::from(len);
        let first = offset.max(start).min(start + len);
        let last = (offset + count).min(start + len).max(first);
        places.extend((first..last).map(|at| address + (at - start)));
        start += len;
    }
    places
}

fn len_of(ranges: &Ranges) -> u64 {
    ranges.iter().map(|(_, len)| u64::from(*len)).sum()
}

fn check_copies(
    u: &mut Unstructured<'_>,
    chain: &Chain,
    memory: &mut Shadow,
    readable: &Ranges,
    writable: &Ranges,
) -> Result<()> {
    let offset = u64::from(u.arbitrary::<u16>()?) % COPIED;
    let len = u64::from(u.arbitrary::<u16>()?) % COPIED;
    let from = places(readable, offset, len);
    let mut got = vec![0; usize::try_from(len).unwrap()];
    let read = chain.read(offset, &mut got);
    assert_eq!(
        read.is_ok(),
        from.len() as u64 == len,
        "a read of {len} at {offset}"
    );
    if read.is_ok() {
        for (byte, at) in got.iter().zip(from) {
            assert_eq!(Some(*byte), memory.get(at), "read from {at:#x}");
        }
    }
    let to = places(writable, offset, len);
    if to
        .iter()
        .any(|at| *at >= LARGE.0 && *at - LARGE.0 < LARGE.1)
    {
        return Ok(()); // it is to stay all zeroes
    }
    let pattern: Vec<u8> = (0..len).map(|i| (i * 7 + 1) as u8).collect();
    let written = chain.write(offset, &pattern);
    assert_eq!(
        written.is_ok(),
        to.len() as u64 == len,
        "a write of {len} at {offset}"
    );
    for (byte, at) in pattern.iter().zip(to) {
        memory.put(at, &[*byte]);
    }
    Ok(())
}

fn check_answer(chain: &Chain, memory: &mut Shadow, writable: &Ranges, appended: bool) {
    let len = len_of(writable);
    let status = places(writable, len - 1, 1)[0];
    let head = places(writable, 0, 8);
    let large = |at: &u64| *at >= LARGE.0 && *at - LARGE.0 < LARGE.1;
    if large(&status) || head.iter().any(large) {
        return;
    }
    if appended {
        let answer = chain.answer(Outcome::Appended(zonevault::geometry::Sector(0x1122_3344)));
        // Bytes from the beginning on: the status counts if nothing lies between.
        let used = (head.len() == 8).then(|| 8 + u32::from(len == 9));
        assert_eq!(answer.ok(), used);
        for (at, byte) in head.iter().zip(0x1122_3344_u64.to_le_bytes()) {
            memory.put(*at, &[byte]);
        }
        if answer.is_err() {
            return;
        }
        memory.put(status, &[0]);
    } else {
        let answer = chain.answer(Outcome::Done(Status::ZoneUnalignedWritePointer, 0));
        assert_eq!(answer.ok(), Some(u32::from(len == 1)));
        memory.put(status, &[4]);
    }
}

fn run(data: &[u8]) -> Result<()> {
    let u = &mut Unstructured::new(data);
    let mut memory = Shadow::default();
    let table = if u.ratio(7, 8)? { 0x1000 } else { address(u)? };
    // A loop is followed as long as the queue is.
    let size = match u.arbitrary::<u8>()? {
        0xff => u.arbitrary()?,
        size @ 0..=0x1f => u16::from(size),
        _ => 16,
    };
    let head = if u.ratio(7, 8)? { 0 } else { u.arbitrary()? };
    let (appended, mut at) = (u.arbitrary()?, table);
    for _ in 0..u.int_in_range(1..=DESCRIPTORS)? {
        // Another table begins, of which an indirect descriptor may know.
        if u.ratio(1, 8)? {
            at = address(u)?;
        }
        memory.put(at, &Descriptor::invent(u)?.bytes());
        at = at.wrapping_add(16);
    }
    let guest = memory.show();
    let mut chain = Chain::default();
    let table_of = DescriptorTable {
        address: GuestAddress(table),
        size,
    };
    let collected = chain.collect(&guest, table_of, head);
    assert_eq!(chain.head(), head);
    let Some((readable, writable)) = walk(&mut memory, table, size, head) else {
        assert!(collected.is_err(), "no chain, and taken for one");
        return Ok(());
    };
    assert!(collected.is_ok(), "{collected:?} of a sound chain");
    assert_eq!(chain.readable_len(), len_of(&readable));
    assert_eq!(chain.writable_len(), len_of(&writable));
    let copied = check_copies(u, &chain, &mut memory, &readable, &writable);
    check_answer(&chain, &mut memory, &writable, appended);
    assert!(
        Shadow::read_back() == memory,
        "bytes that nobody was to write"
    );
    chain.release();
    assert!(chain.read(0, &mut [0]).is_err(), "memory is let go of");
    copied
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    // Input that ends too soon is a case of its own, and over.
    let _ = run(data);
});
