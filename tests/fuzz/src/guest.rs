//! Guest memory in awkward pieces, and a copy of it to compare with.

use std::sync::{Arc, LazyLock};

use arbitrary::{Result, Unstructured};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Regions: two that touch, one behind a hole, one that ends where addresses end.
pub const SMALL: [(u64, u64); 4] = [
    (0x1000, 0x600),
    (0x1600, 0x200),
    (0x4000, 0x200),
    (u64::MAX - 0x3ff, 0x200),
];
/// A large region of zeroes that costs nothing until it is written to.
pub const LARGE: (u64, u64) = (1 << 32, 256 << 20);

static MEMORY: LazyLock<Arc<GuestMemoryMmap>> = LazyLock::new(|| {
    let regions = SMALL.iter().chain([&LARGE]);
    let mut regions: Vec<_> = regions
        .map(|&(start, len)| (GuestAddress(start), usize::try_from(len).unwrap()))
        .collect();
    regions.sort_unstable();
    Arc::new(GuestMemoryMmap::from_ranges(&regions).expect("guest memory"))
});

/// What the small regions hold. The large one holds zeroes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shadow(Vec<(u64, Vec<u8>)>);

impl Default for Shadow {
    fn default() -> Self {
        Self(
            SMALL
                .iter()
                .map(|&(start, len)| (start, vec![0; usize::try_from(len).unwrap()]))
                .collect(),
        )
    }
}

impl Shadow {
    fn at(&mut self, address: u64) -> Option<&mut u8> {
        let (start, bytes) = self
            .0
            .iter_mut()
            .find(|(start, bytes)| address >= *start && address - *start < bytes.len() as u64)?;
        bytes.get_mut(usize::try_from(address - *start).ok()?)
    }

    /// The byte at `address`; `None` where there is no memory.
    pub fn get(&mut self, address: u64) -> Option<u8> {
        let large = address >= LARGE.0 && address - LARGE.0 < LARGE.1;
        if large {
            return Some(0);
        }
        self.at(address).map(|byte| *byte)
    }

    /// Whether `[address, address + len)` is memory, also across regions that touch.
    pub fn holds(&self, address: u64, len: u64) -> bool {
        let mut at = address;
        let Some(end) = address.checked_add(len) else {
            return false;
        };
        while at < end {
            let mut regions = SMALL.iter().chain([&LARGE]);
            let Some((start, len)) = regions.find(|(start, len)| at >= *start && at - start < *len)
            else {
                return false;
            };
            at = start + len;
        }
        true
    }

    /// Puts bytes where there is memory; the rest is dropped.
    pub fn put(&mut self, address: u64, bytes: &[u8]) {
        for (offset, byte) in (0..).zip(bytes) {
            if let Some(place) = address.checked_add(offset).and_then(|at| self.at(at)) {
                *place = *byte;
            }
        }
    }

    /// Guest memory that holds this. There is one, so two at a time share their content.
    pub fn show(&self) -> Arc<GuestMemoryMmap> {
        for (start, bytes) in &self.0 {
            MEMORY
                .write_slice(bytes, GuestAddress(*start))
                .expect("guest memory");
        }
        Arc::clone(&MEMORY)
    }

    /// What guest memory holds now.
    pub fn read_back() -> Self {
        let mut now = Self::default();
        for (start, bytes) in &mut now.0 {
            MEMORY
                .read_slice(bytes, GuestAddress(*start))
                .expect("guest memory");
        }
        now
    }
}

/// An address: mostly one in or near a region, sometimes any.
pub fn address(u: &mut Unstructured<'_>) -> Result<u64> {
    let (start, len) = match u.int_in_range(0..=7)? {
        0 => return u.arbitrary(),
        1 => LARGE,
        number => SMALL[usize::from(number as u8 - 2) % SMALL.len()],
    };
    let offset = u64::from(u.arbitrary::<u16>()?);
    Ok(match u.int_in_range(0..=3)? {
        // Around the end of the region.
        0 => start
            .wrapping_add(len)
            .wrapping_add(offset & 63)
            .wrapping_sub(32),
        1 => start.wrapping_sub(offset & 31),
        _ => start.wrapping_add(offset % len),
    })
}
