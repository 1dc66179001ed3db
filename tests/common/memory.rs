//! Guest memory: memfd-backed regions that a back-end can map, and an allocator for the buffers of requests.
#![expect(
    unsafe_code,
    reason = "memfd_create has no safe wrapper among the crate's dependencies"
)]

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, MmapRegion,
};

/// Where a region of guest memory lies, in bytes of guest-physical address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First guest-physical address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
}

impl Span {
    /// A span of `len` bytes at `start`.
    pub const fn new(start: u64, len: u64) -> Self {
        Self { start, len }
    }
}

/// One region as the memory table of vhost-user describes it.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    /// Guest-physical place.
    pub span: Span,
    /// Address of the mapping in this process, which ring addresses are expressed in.
    pub user_addr: u64,
    /// Offset of the region in its file, in bytes.
    pub file_offset: u64,
    /// The memfd.
    pub fd: RawFd,
}

/// The memory of the pretended guest.
#[derive(Debug)]
pub struct GuestRam {
    mem: GuestMemoryMmap<()>,
    free: Mutex<Vec<Span>>,
}

/// Regions lie this far into their files, so that a back-end that forgets the file offset is found out.
const FILE_OFFSET: u64 = 0x3000;

impl GuestRam {
    /// Maps one memfd a span. Touching spans make one range that crosses mappings.
    pub fn new(spans: &[Span]) -> Self {
        let regions = spans
            .iter()
            .map(|span| {
                let file = memfd(FILE_OFFSET + span.len);
                let len = usize::try_from(span.len).expect("a region fits the address space");
                let map = MmapRegion::from_file(FileOffset::new(file, FILE_OFFSET), len)
                    .expect("mapping guest memory");
                GuestRegionMmap::new(map, GuestAddress(span.start)).expect("region address")
            })
            .collect();
        let mut free: Vec<Span> = Vec::new();
        for span in spans {
            match free.last_mut() {
                Some(last) if last.start + last.len == span.start => last.len += span.len,
                _ => free.push(*span),
            }
        }
        Self {
            mem: GuestMemoryMmap::from_regions(regions).expect("guest memory map"),
            free: Mutex::new(free),
        }
    }

    /// The regions in the order of their addresses.
    pub fn regions(&self) -> Vec<Region> {
        self.mem
            .iter()
            .map(|region| {
                let file = region.file_offset().expect("file-backed");
                Region {
                    span: Span::new(region.start_addr().0, region.len()),
                    user_addr: region.as_ptr() as u64,
                    file_offset: file.start(),
                    fd: file.file().as_raw_fd(),
                }
            })
            .collect()
    }

    /// Takes the file of a region away from under both sides: who touches that memory then gets SIGBUS.
    pub fn shrink(&self, at: usize) {
        let region = self.mem.iter().nth(at).expect("a region");
        let file = region.file_offset().expect("file-backed").file();
        file.set_len(0).expect("shrinking guest memory");
    }

    /// Leaves the first `len` bytes of a region.
    pub fn shrink_to(&self, at: usize, len: u64) {
        let region = self.mem.iter().nth(at).expect("a region");
        let file = region.file_offset().expect("file-backed").file();
        file.set_len(FILE_OFFSET + len)
            .expect("shrinking guest memory");
    }

    /// The address of this process at which a guest-physical address is mapped.
    pub fn user_addr(&self, gpa: u64) -> u64 {
        self.mem
            .get_host_address(GuestAddress(gpa))
            .expect("address inside guest memory") as u64
    }

    /// Reserves `len` bytes (at least one) whose address is a multiple of `align` plus `skew`.
    ///
    /// # Panics
    /// If guest memory is used up: the test asked for more than it gave the guest.
    pub fn alloc(&self, len: u64, align: u64, skew: u64) -> Span {
        let len = len.max(1);
        let mut free = self.free.lock().expect("allocator");
        for i in 0..free.len() {
            let hole = free[i];
            let start = hole.start.next_multiple_of(align) + skew;
            let end = hole.start + hole.len;
            if start + len > end {
                continue;
            }
            free[i].len = start - hole.start;
            if start + len < end {
                free.insert(i + 1, Span::new(start + len, end - start - len));
            }
            if free[i].len == 0 {
                free.remove(i);
            }
            return Span::new(start, len);
        }
        panic!("guest memory exhausted: {len} bytes wanted");
    }

    /// Gives back what [`GuestRam::alloc`] reserved.
    pub fn free(&self, span: Span) {
        let mut free = self.free.lock().expect("allocator");
        let at = free.partition_point(|hole| hole.start < span.start);
        free.insert(at, span);
        if at + 1 < free.len() && free[at].start + free[at].len == free[at + 1].start {
            free[at].len += free[at + 1].len;
            free.remove(at + 1);
        }
        if at > 0 && free[at - 1].start + free[at - 1].len == free[at].start {
            free[at - 1].len += free[at].len;
            free.remove(at);
        }
    }

    /// Copies bytes into guest memory.
    pub fn write(&self, gpa: u64, bytes: &[u8]) {
        self.mem
            .write_slice(bytes, GuestAddress(gpa))
            .expect("write inside guest memory");
    }

    /// Copies bytes out of guest memory.
    pub fn read(&self, span: Span) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(span.len).expect("length")];
        self.mem
            .read_slice(&mut bytes, GuestAddress(span.start))
            .expect("read inside guest memory");
        bytes
    }

    /// Atomically stores a little-endian 16-bit ring field.
    pub fn store_u16(&self, gpa: u64, value: u16) {
        self.mem
            .store(value.to_le(), GuestAddress(gpa), Ordering::Release)
            .expect("ring field");
    }

    /// Atomically loads a little-endian 16-bit ring field.
    pub fn load_u16(&self, gpa: u64) -> u16 {
        let raw: u16 = self
            .mem
            .load(GuestAddress(gpa), Ordering::Acquire)
            .expect("ring field");
        u16::from_le(raw)
    }
}

fn memfd(len: u64) -> File {
    // SAFETY: the name is a NUL-terminated literal and the call has no other memory effect.
    let fd = unsafe { libc::memfd_create(c"guest-ram".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0, "memfd_create: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptor was just made and has no other owner.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len).expect("sizing guest memory");
    file
}
