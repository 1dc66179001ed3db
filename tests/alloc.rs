//! Requests allocate nothing once a queue is warm: no memory is asked of the allocator for any read, write or append.
//!
//! A worker over a ring in this process, on a file: in memory, and with direct I/O where the build directory lies on
//! what has it. Each kind of request is worked off until every buffer, table and vector has the size it needs, and
//! then a thousand times more, counted. A test that fails names the places.
//!
//! Not here: the first use of a zone (its key), zone management, and flushes, each of which lists anew who waits for it
//! and which zones it covers, beside a sync of the medium that takes longer by far.
#![expect(
    unsafe_code,
    reason = "an allocator that counts implements an unsafe trait; memfd_create has no safe call"
)]

#[cfg(test)]
pub mod pipeline;

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::{Cell, RefCell};

/// The system's allocator, but it notes who asks while it is told to.
struct Counting;

thread_local! {
    static WATCHED: Cell<bool> = const { Cell::new(false) };
    static STACKS: RefCell<Vec<Backtrace>> = const { RefCell::new(Vec::new()) };
}

/// Most stacks that are kept: enough to tell what happens every time from what happened once.
const MAX_STACKS: usize = 4000;

fn note() {
    // Not watched while it notes: that allocates. Nor while a failure is told, which holds the lock that a stack needs.
    if WATCHED.replace(false) && !std::thread::panicking() {
        STACKS.with_borrow_mut(|stacks| {
            if stacks.len() < MAX_STACKS {
                stacks.push(Backtrace::force_capture());
            }
        });
        WATCHED.set(true);
    }
}

// SAFETY: every call is handed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note();
        // SAFETY: the caller keeps the contract.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The stacks of every allocation that this thread makes in `work`.
#[cfg(test)]
fn allocations(work: impl FnOnce()) -> Vec<Backtrace> {
    STACKS.take();
    WATCHED.set(true);
    work();
    WATCHED.set(false);
    STACKS.take()
}

#[cfg(test)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "numbers of requests are small"
)]
mod tests {
    use std::backtrace::Backtrace;
    use std::collections::BTreeMap;
    use std::fmt::Write;
    use std::path::PathBuf;

    use tempfile::TempDir;
    use zonevault::crypt::Cipher;
    use zonevault::geometry::Model;
    use zonevault::queue::stats::Interval;
    use zonevault::store::{Cache, FileMedium};

    use super::allocations;
    use crate::pipeline::guest::Request;
    use crate::pipeline::{BLOCK, Cursor, Rig, Shape, ZONE};

    /// Requests counted of each kind.
    const COUNTED: u64 = 1000;
    /// Requests before that.
    const WARM_UP: u64 = 300;
    /// Requests in flight.
    const DEPTH: usize = 32;
    const SMALL: u32 = 4 << 10;
    const LARGE: u32 = 128 << 10;
    /// Zones written to at once, from zone 0 on, and as many appended to, from zone 8 on.
    const WRITTEN: u64 = 8;
    /// The zone that is read, and one that stays empty.
    const READ: usize = 16;
    const EMPTY: usize = 17;
    /// What is read from: more than the tag cache below has the slots of.
    const EXTENT: u64 = 16 << 20;
    const TAG_CACHE: usize = 32 << 10;

    /// How often requests are counted at most, for one time without allocations, and how many each time. In memory
    /// everything happens in the same order each time. A disk has another number of requests in flight at each moment,
    /// and the first time that a zone has more of them than ever before its queue grows.
    const fn rounds(cache: Cache) -> (usize, u64) {
        match cache {
            Cache::Writeback => (1, COUNTED),
            Cache::Direct => (10, COUNTED / 5),
        }
    }

    type Kind = (&'static str, fn(&mut Cursor, u64) -> Request);

    const ZONED: &[Kind] = &[
        ("read 4K", |c, _| c.read(READ, EXTENT, SMALL)),
        ("read 128K", |c, _| c.read(READ, EXTENT, LARGE)),
        ("read 4K, slots cached", |c, _| c.read(READ, 1 << 20, SMALL)),
        ("read 4K, never written", |c, _| {
            c.read(EMPTY, EXTENT, SMALL)
        }),
        ("write 4K", |c, n| c.write((n % WRITTEN) as usize, SMALL)),
        ("write 128K", |c, n| c.write((n % WRITTEN) as usize, LARGE)),
        ("append 4K", |c, n| {
            c.append((WRITTEN + n % WRITTEN) as usize, SMALL)
        }),
        ("append 128K", |c, n| {
            c.append((WRITTEN + n % WRITTEN) as usize, LARGE)
        }),
        ("report", |_, _| Request::Report {
            sector: 0,
            len: 4096,
        }),
    ];

    const PLAIN: &[Kind] = &[
        ("read 4K", |c, _| c.read(READ, EXTENT, SMALL)),
        ("read 128K", |c, _| c.read(READ, EXTENT, LARGE)),
        ("write 4K", |c, _| {
            let sector = c.random(4 * ZONE / BLOCK) * BLOCK / 512;
            Request::Write { sector, len: SMALL }
        }),
        ("write 128K", |c, _| {
            let sector = c.random(4 * ZONE / BLOCK) * BLOCK / 512;
            Request::Write { sector, len: LARGE }
        }),
    ];

    /// An empty file in memory, wherever tmpfs is mounted and however small. It is there until the process ends.
    fn memory_file() -> PathBuf {
        // SAFETY: the name is a NUL-terminated literal and the call has no other memory effect.
        let fd = unsafe { libc::memfd_create(c"image".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(fd >= 0, "memfd_create: {}", std::io::Error::last_os_error());
        format!("/proc/self/fd/{fd}").into()
    }

    /// The places of ours on a stack, the innermost first.
    fn places(stack: &Backtrace) -> String {
        let text = stack.to_string();
        let mut lines = text.lines().peekable();
        let mut places = Vec::new();
        while let Some(line) = lines.next() {
            if let Some((_, name)) = line.split_once(": ")
                && name.contains("zonevault::")
            {
                let at = lines.peek().and_then(|at| at.rsplit_once("/src/"));
                places.push(format!("      {name} {}", at.map_or("", |at| at.1)));
            }
        }
        places.truncate(5);
        places.join("\n")
    }

    fn must_not_allocate(model: Model, cipher: Cipher, cache: Cache, kinds: &[Kind]) {
        must_not_allocate_with(model, cipher, cache, kinds, |_| {});
    }

    fn must_not_allocate_with(
        model: Model,
        cipher: Cipher,
        cache: Cache,
        kinds: &[Kind],
        prepare: impl FnOnce(&mut Rig<FileMedium>),
    ) {
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = match cache {
            Cache::Writeback => memory_file(),
            Cache::Direct => dir.path().join("image"),
        };
        let shape = Shape {
            zones: 18,
            tag_cache: TAG_CACHE,
            ..Shape::new(model, cipher)
        };
        let medium = FileMedium::create(&path, shape.image_len(), false).unwrap();
        let mut rig = Rig::new(medium, &shape, |medium| {
            medium.enable_data(cache, BLOCK).unwrap();
        });
        prepare(&mut rig);
        let mut cursor = Cursor::new(&shape);
        rig.run(EXTENT / u64::from(LARGE), DEPTH, |_| {
            cursor.write(READ, LARGE)
        });
        let mut found = String::new();
        for (name, kind) in kinds {
            rig.run(WARM_UP, DEPTH, |n| kind(&mut cursor, n));
            let mut stacks = Vec::new();
            let (rounds, counted) = rounds(cache);
            for _ in 0..rounds {
                stacks = allocations(|| rig.run(counted, DEPTH, |n| kind(&mut cursor, n)));
                if stacks.is_empty() {
                    break;
                }
            }
            if stacks.is_empty() {
                continue;
            }
            writeln!(found, "{name}: {} in {counted} requests", stacks.len()).unwrap();
            let mut by_place = BTreeMap::<String, usize>::new();
            for stack in &stacks {
                *by_place.entry(places(stack)).or_default() += 1;
            }
            for (place, times) in by_place {
                writeln!(found, "   {times} times\n{place}").unwrap();
            }
        }
        assert!(found.is_empty(), "allocations:\n{found}");
    }

    #[test]
    fn an_allocation_is_seen() {
        let stacks = allocations(|| drop(std::hint::black_box(vec![1_u8; 100])));
        assert_eq!(stacks.len(), 1);
    }

    #[test]
    fn nothing_is_allocated_with_gcm() {
        must_not_allocate(
            Model::HostManaged,
            Cipher::Aes256Gcm,
            Cache::Writeback,
            ZONED,
        );
    }

    #[test]
    fn nothing_is_allocated_with_crc() {
        must_not_allocate(
            Model::HostManaged,
            Cipher::Aes256XtsCrc64,
            Cache::Writeback,
            ZONED,
        );
    }

    #[test]
    fn nothing_is_allocated_with_xts() {
        must_not_allocate(
            Model::HostManaged,
            Cipher::Aes256Xts,
            Cache::Writeback,
            ZONED,
        );
    }

    #[test]
    fn nothing_is_allocated_without_zones() {
        must_not_allocate(Model::Plain, Cipher::Aes256Xts, Cache::Writeback, PLAIN);
    }

    #[test]
    fn nothing_is_allocated_for_statistics() {
        let mut stats = None;
        must_not_allocate_with(
            Model::HostManaged,
            Cipher::Aes256Gcm,
            Cache::Writeback,
            ZONED,
            |rig| stats = Some(rig.count()),
        );
        let mut counted = Interval::new().unwrap();
        stats.unwrap().take(&mut counted);
        let kinds = ZONED.len() as u64 * (WARM_UP + COUNTED);
        let filled = EXTENT / u64::from(LARGE);
        assert_eq!(counted.counts.requests(), kinds + filled);
        assert_eq!(counted.latency.len(), kinds + filled);
    }

    #[test]
    fn nothing_is_allocated_with_direct_io() {
        must_not_allocate(Model::HostManaged, Cipher::Aes256Gcm, Cache::Direct, ZONED);
    }
}
