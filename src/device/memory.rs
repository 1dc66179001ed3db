//! What a front-end shares of its guest's memory.
//!
//! Who validates: everything about a region is checked here, before it is mapped, and a table changes as
//! a whole or not at all. A [`Table`] is immutable; whoever replaces one has let everything end that
//! works with the old one, so that nothing is written into memory that the front-end has taken back.
//! That a file is long enough is checked when it is mapped; [`crate::guard`] is for those that shrink
//! later.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use thiserror::Error;
use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::mmap::FromRangesError;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use super::sys;
use crate::guard::{Guarded, TooMany, guard};

/// Regions at a time: as many as Linux's own vhost takes, which is what front-ends reckon with.
pub(super) const MAX_REGIONS: usize = 509;
/// Most guest memory: the largest machines have a sixteenth of this, and address space is left for
/// two tables at a time.
const MAX_BYTES: u64 = 1 << 45;

/// Why a region cannot be shared.
#[derive(Debug, Error)]
pub(super) enum MemoryError {
    #[error("the memory region at guest address {0:#x} wraps around or is empty")]
    Wraps(u64),
    #[error("more than {MAX_REGIONS} memory regions")]
    TooManyRegions,
    #[error("more than {} TiB of guest memory", MAX_BYTES >> 40)]
    TooLarge,
    #[error("the memory region at guest address {0:#x} overlaps another")]
    Overlaps(u64),
    #[error("the memory region at guest address {0:#x} is not one that was handed over")]
    Unknown(u64),
    #[error("guest memory must be a regular file (a memfd, or one on tmpfs or hugetlbfs)")]
    NotAFile,
    #[error("a memory region ends at byte {end} of a file of {len}")]
    PastEnd { end: u64, len: u64 },
    #[error(
        "a memory region of {len} bytes is in a file of huge pages of {page}: it has to consist of whole ones"
    )]
    PartOfHugePage { len: u64, page: u64 },
    #[error("cannot look at the file of a memory region: {0}")]
    Stat(io::Error),
    #[error("cannot map a memory region: {0}")]
    Map(#[from] FromRangesError),
    #[error(transparent)]
    Guard(#[from] TooMany),
}

/// Where a region lies: in the guest, in the front-end, in its file. None of the three wraps around.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    guest: u64,
    user: u64,
    offset: u64,
    len: u64,
}

impl Place {
    /// The place that a message names.
    pub(super) fn of(region: &VhostUserMemoryRegion) -> Result<Self, MemoryError> {
        let place = Self {
            guest: region.guest_phys_addr,
            user: region.user_addr,
            offset: region.mmap_offset,
            len: region.memory_size,
        };
        let starts = [place.guest, place.user, place.offset];
        let fits = starts.iter().all(|at| at.checked_add(place.len).is_some());
        if place.len == 0 || !fits {
            return Err(MemoryError::Wraps(place.guest));
        }
        Ok(place)
    }

    fn overlaps(&self, other: &Self) -> bool {
        let meet = |a: u64, b: u64| a < b + other.len && b < a + self.len;
        meet(self.guest, other.guest) || meet(self.user, other.user)
    }

    /// Whether both name the same region: the offset in the file is not part of a region's name.
    fn same(&self, other: &Self) -> bool {
        (self.guest, self.user, self.len) == (other.guest, other.user, other.len)
    }
}

/// A mapped region.
#[derive(Debug)]
pub(super) struct Region {
    place: Place,
    mapping: Arc<GuestRegionMmap>,
    guarded: Guarded,
}

impl Region {
    fn map(place: Place, file: File) -> Result<Self, MemoryError> {
        let metadata = file.metadata().map_err(MemoryError::Stat)?;
        if !metadata.is_file() {
            return Err(MemoryError::NotAFile);
        }
        let (end, len) = (place.offset + place.len, metadata.len());
        if end > len {
            return Err(MemoryError::PastEnd { end, len });
        }
        // The kernel maps whole pages of such a file, and takes back no part of one: what is left over of
        // the mapping would stay for ever.
        let huge = sys::huge_page(&file).map_err(MemoryError::Stat)?;
        if let Some(page) = huge.filter(|page| !place.len.is_multiple_of(*page)) {
            let len = place.len;
            return Err(MemoryError::PartOfHugePage { len, page });
        }
        let size = usize::try_from(place.len).map_err(|_| MemoryError::TooLarge)?;
        let mapped = MmapRegion::from_file(FileOffset::new(file, place.offset), size)
            .map_err(FromRangesError::MmapRegion)?;
        let page = usize::try_from(metadata.blksize()).unwrap_or(0);
        let guarded = guard(mapped.as_ptr(), size, page)?;
        let mapping = GuestRegionMmap::new(mapped, GuestAddress(place.guest))
            .ok_or(MemoryError::Wraps(place.guest))?;
        Ok(Self {
            place,
            mapping: Arc::new(mapping),
            guarded,
        })
    }

    /// Whether anybody but a table still holds the mapping. A request that outlived the patience of
    /// whoever stopped its queue does.
    pub(super) fn is_in_use(&self) -> bool {
        Arc::strong_count(&self.mapping) > 1
    }
}

/// The regions that a front-end shares now.
#[derive(Clone, Debug)]
pub(super) struct Table {
    /// In the order of guest addresses.
    regions: Vec<Arc<Region>>,
    map: Arc<GuestMemoryMmap>,
}

impl Table {
    /// No memory at all.
    pub(super) fn empty() -> Self {
        Self {
            regions: Vec::new(),
            map: Arc::new(GuestMemoryMmap::new()),
        }
    }

    /// A table of these regions alone.
    pub(super) fn new(regions: Vec<(Place, File)>) -> Result<Self, MemoryError> {
        Self::empty().with(regions)
    }

    /// This table and these regions.
    pub(super) fn with(&self, more: Vec<(Place, File)>) -> Result<Self, MemoryError> {
        if self.regions.len() + more.len() > MAX_REGIONS {
            return Err(MemoryError::TooManyRegions);
        }
        let mut places: Vec<_> = self.regions.iter().map(|region| region.place).collect();
        for (place, _) in &more {
            if places.iter().any(|other| place.overlaps(other)) {
                return Err(MemoryError::Overlaps(place.guest));
            }
            places.push(*place);
        }
        let total = places
            .iter()
            .try_fold(0_u64, |sum, place| sum.checked_add(place.len));
        if total.is_none_or(|total| total > MAX_BYTES) {
            return Err(MemoryError::TooLarge);
        }
        let mut regions = self.regions.clone();
        for (place, file) in more {
            regions.push(Arc::new(Region::map(place, file)?));
        }
        Self::of(regions)
    }

    /// This table without a region.
    pub(super) fn without(&self, place: &Place) -> Result<Self, MemoryError> {
        let mut regions = self.regions.clone();
        let at = regions
            .iter()
            .position(|region| region.place.same(place))
            .ok_or(MemoryError::Unknown(place.guest))?;
        regions.remove(at);
        Self::of(regions)
    }

    fn of(mut regions: Vec<Arc<Region>>) -> Result<Self, MemoryError> {
        if regions.is_empty() {
            return Ok(Self::empty());
        }
        regions.sort_by_key(|region| region.place.guest);
        let mappings = regions
            .iter()
            .map(|region| Arc::clone(&region.mapping))
            .collect();
        let map = GuestMemoryMmap::from_arc_regions(mappings).map_err(FromRangesError::from)?;
        Ok(Self {
            regions,
            map: Arc::new(map),
        })
    }

    /// Whether nothing of it went away with the file that it is in.
    pub(super) fn is_whole(&self) -> bool {
        !self.regions.iter().any(|region| region.guarded.is_lost())
    }

    /// The memory as the guest addresses it.
    pub(super) fn map(&self) -> &Arc<GuestMemoryMmap> {
        &self.map
    }

    /// Its regions but those that `other` has too. They must outlive every request that works with them.
    pub(super) fn without_those_of(mut self, other: &Self) -> Vec<Arc<Region>> {
        let kept = |region: &Arc<Region>| other.regions.iter().any(|r| Arc::ptr_eq(r, region));
        self.regions.retain(|region| !kept(region));
        self.regions
    }

    /// The guest's address of `len` bytes that the front-end has at `user`, if they lie in one region.
    pub(super) fn guest_address(&self, user: u64, len: u64) -> Option<GuestAddress> {
        let end = user.checked_add(len)?;
        self.regions.iter().find_map(|region| {
            let place = &region.place;
            let inside = user >= place.user && end <= place.user + place.len;
            inside.then(|| GuestAddress(place.guest + (user - place.user)))
        })
    }
}
