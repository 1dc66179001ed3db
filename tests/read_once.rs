//! What a guest changes while the device looks: each byte that it sends is taken once, and what was taken is what
//! counts. Once by watching every access to guest memory, once by racing for seconds on end.

#[cfg(test)]
pub mod common;
#[cfg(test)]
pub mod pipeline;

/// Every access of this thread to a range of memory, one instruction at a time.
///
/// The range is not accessible; an access faults, is noted, and is let through for one instruction by the trap flag.
#[cfg(test)]
#[cfg(target_arch = "x86_64")]
#[expect(
    unsafe_code,
    reason = "signal handlers, page protection and the trap flag"
)]
mod watch {
    use std::cell::UnsafeCell;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// One access: where it begins, from which instruction, and whether it writes.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(crate) struct Access {
        /// Bytes from the beginning of the range.
        pub(crate) offset: usize,
        /// The instruction.
        pub(crate) rip: i64,
        /// A store, not a load.
        pub(crate) write: bool,
    }

    /// Most accesses of a run: a copy may go byte by byte.
    const MOST: usize = 1 << 20;
    /// The trap flag of EFLAGS: a trap after the next instruction.
    const TRAP: i64 = 1 << 8;
    /// In the error code of a page fault: it was a write.
    const FAULT_WRITE: i64 = 1 << 1;

    struct Log(UnsafeCell<Vec<Access>>);
    // SAFETY: only the one watched thread touches it, its handlers included, which interrupt that thread.
    unsafe impl Sync for Log {}

    static LOG: Log = Log(UnsafeCell::new(Vec::new()));
    static BASE: AtomicUsize = AtomicUsize::new(0);
    static LEN: AtomicUsize = AtomicUsize::new(0);

    fn protect(how: i32) {
        let (base, len) = (BASE.load(Ordering::Relaxed), LEN.load(Ordering::Relaxed));
        // SAFETY: the range is a mapping of guest memory that outlives the watch; only its protection changes.
        let done = unsafe { libc::mprotect(base as *mut libc::c_void, len, how) };
        if done != 0 {
            // SAFETY: no memory effect; there is no way on from here.
            unsafe { libc::abort() };
        }
    }

    extern "C" fn on_fault(_: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
        // SAFETY: the kernel passes both, valid for the time of the handler.
        let (at, context) = unsafe {
            (
                (*info).si_addr() as usize,
                &mut *context.cast::<libc::ucontext_t>(),
            )
        };
        let registers = &mut context.uc_mcontext.gregs;
        let (base, len) = (BASE.load(Ordering::Relaxed), LEN.load(Ordering::Relaxed));
        if at < base || at >= base + len {
            // A fault of the program's own: without the handler it happens again and ends the process.
            // SAFETY: the default action is always valid.
            unsafe { libc::signal(libc::SIGSEGV, libc::SIG_DFL) };
            return;
        }
        // SAFETY: only this thread, and the vector never grows here.
        let log = unsafe { &mut *LOG.0.get() };
        if log.len() < log.capacity() {
            log.push(Access {
                offset: at - base,
                rip: registers[libc::REG_RIP as usize],
                write: registers[libc::REG_ERR as usize] & FAULT_WRITE != 0,
            });
        }
        registers[libc::REG_EFL as usize] |= TRAP;
        protect(libc::PROT_READ | libc::PROT_WRITE);
    }

    extern "C" fn on_trap(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
        // SAFETY: as above.
        let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
        context.uc_mcontext.gregs[libc::REG_EFL as usize] &= !TRAP;
        protect(libc::PROT_NONE);
    }

    type Handler = extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void);

    fn handle(signal: i32, handler: Handler) -> libc::sigaction {
        // SAFETY: all zeroes are a valid sigaction; the handler has the signature that SA_SIGINFO wants.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            let mut before: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as usize;
            action.sa_flags = libc::SA_SIGINFO;
            assert_eq!(
                libc::sigaction(signal, &raw const action, &raw mut before),
                0
            );
            before
        }
    }

    fn restore(signal: i32, before: &libc::sigaction) {
        // SAFETY: what was there before.
        let done = unsafe { libc::sigaction(signal, before, std::ptr::null_mut()) };
        assert_eq!(done, 0);
    }

    /// Runs `act` and returns every access of this thread to `[base, base + len)`, which are whole pages.
    pub(crate) fn accesses(base: usize, len: usize, act: impl FnOnce()) -> Vec<Access> {
        // SAFETY: nothing is protected yet, so no handler runs.
        unsafe { *LOG.0.get() = Vec::with_capacity(MOST) };
        BASE.store(base, Ordering::Relaxed);
        LEN.store(len, Ordering::Relaxed);
        let fault = handle(libc::SIGSEGV, on_fault);
        let trap = handle(libc::SIGTRAP, on_trap);
        protect(libc::PROT_NONE);
        act();
        protect(libc::PROT_READ | libc::PROT_WRITE);
        restore(libc::SIGSEGV, &fault);
        restore(libc::SIGTRAP, &trap);
        // SAFETY: nothing is protected any more.
        let log = unsafe { std::mem::take(&mut *LOG.0.get()) };
        assert!(log.len() < MOST, "the log is too small");
        log
    }
}

#[cfg(test)]
#[cfg(target_arch = "x86_64")]
mod counted {
    use std::collections::BTreeSet;
    use std::ops::Range;

    use virtio_queue::QueueT;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
    use zonevault::crypt::Cipher;
    use zonevault::geometry::Model;
    use zonevault::store::mem::MemMedium;

    use crate::pipeline::guest::Request;
    use crate::pipeline::{Rig, Shape};
    use crate::watch::{Access, accesses};

    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    const INDIRECT: u16 = 4;
    const ZONE_SECTORS: u64 = crate::pipeline::ZONE / 512;

    /// Instructions of one copy lie this close together: memcpy, or what was inlined of it.
    const ONE_ROUTINE: u64 = 2048;

    /// What a piece of guest memory is for.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Use {
        Descriptor,
        Readable,
        Writable,
    }

    #[derive(Clone, Debug)]
    struct Item {
        what: Use,
        place: Range<usize>,
    }

    fn descriptor(memory: &GuestMemoryMmap, at: u64) -> (u64, u32, u16, u16) {
        let raw: [u8; 16] = memory.read_obj(GuestAddress(at)).expect("a descriptor");
        let le = |range: Range<usize>| {
            let mut bytes = [0; 8];
            bytes[..range.len()].copy_from_slice(&raw[range]);
            u64::from_le_bytes(bytes)
        };
        (
            le(0..8),
            u32::try_from(le(8..12)).expect("32 bits"),
            u16::try_from(le(12..14)).expect("16 bits"),
            u16::try_from(le(14..16)).expect("16 bits"),
        )
    }

    /// Everything that the chain which begins at `head` of the table at `table` consists of.
    fn items(memory: &GuestMemoryMmap, table: u64, head: u16, found: &mut Vec<Item>) {
        let mut index = head;
        loop {
            let at = table + 16 * u64::from(index);
            let (address, len, flags, next) = descriptor(memory, at);
            let start = usize::try_from(at).expect("an offset");
            found.push(Item {
                what: Use::Descriptor,
                place: start..start + 16,
            });
            if flags & INDIRECT != 0 {
                items(memory, address, 0, found);
                return;
            }
            let start = usize::try_from(address).expect("an offset");
            found.push(Item {
                what: if flags & WRITE != 0 {
                    Use::Writable
                } else {
                    Use::Readable
                },
                place: start..start + len as usize,
            });
            if flags & NEXT == 0 {
                return;
            }
            index = next;
        }
    }

    /// How many copies the loads in `log` belong to, all of one item. A copy goes on as long as it stays in its routine
    /// and goes forward, in memory or in the code. It may load its first bytes twice, by two instructions: memcpy does,
    /// of one vector that it needs whole and of the same bytes as the last that fit, or ahead of a byte-wise loop.
    fn copies(log: &[Access]) -> usize {
        let (mut count, mut of_this) = (0, 0);
        let mut last: Option<Access> = None;
        for access in log {
            let goes_on = last.is_some_and(|last| {
                let forward = access.rip > last.rip || access.offset > last.offset;
                let again = of_this == 1 && access.offset == last.offset && access.rip != last.rip;
                access.rip.abs_diff(last.rip) < ONE_ROUTINE && (forward || again)
            });
            of_this = if goes_on { of_this + 1 } else { 1 };
            count += usize::from(!goes_on);
            last = Some(*access);
        }
        count
    }

    fn rig(model: Model, cipher: Cipher) -> Rig<MemMedium> {
        let mut shape = Shape::new(model, cipher);
        shape.most = 16 << 10;
        let medium = MemMedium::new(shape.image_len());
        Rig::new(medium, &shape, |_| {})
    }

    /// Works a request off under watch. Returns what was accessed and what the chain consisted of.
    fn watched(rig: &mut Rig<MemMedium>, request: Request) -> (Vec<Access>, Vec<Item>) {
        let head = rig.guest.submit(request);
        let (queue, memory) = rig.guest.device_side();
        let table = queue.desc_table();
        let memory = std::sync::Arc::clone(memory);
        let mut found = Vec::new();
        items(&memory, table, head, &mut found);
        let base = memory.get_host_address(GuestAddress(0)).expect("memory") as usize;
        let len = usize::try_from(memory.last_addr().0 + 1).expect("a length");
        let log = accesses(base, len, || {
            // Some answers come with a later pass.
            for _ in 0..50 {
                rig.pass();
            }
        });
        assert!(rig.guest.reap(), "{request:?} was not answered");
        (log, found)
    }

    /// The first zone is written by place, the fourth appended to.
    const APPENDED: u64 = 3 * ZONE_SECTORS;

    /// Each request on each kind of disk, and what was accessed for it.
    fn each(requests: &[Request], mut judge: impl FnMut(&str, &[Access], &[Item])) {
        for (model, cipher) in [
            (Model::HostManaged, Cipher::Aes256Gcm),
            (Model::HostManaged, Cipher::Aes256Xts),
            (Model::Plain, Cipher::Aes256Xts),
        ] {
            let mut rig = rig(model, cipher);
            for request in requests {
                let zones = matches!(request, Request::Append { .. } | Request::Report { .. });
                if zones && model == Model::Plain {
                    continue;
                }
                let (log, items) = watched(&mut rig, *request);
                judge(&format!("{model:?} {cipher:?} {request:?}"), &log, &items);
            }
        }
    }

    fn to(log: &[Access], place: &Range<usize>, write: bool) -> Vec<Access> {
        let inside = |access: &&Access| place.contains(&access.offset) && access.write == write;
        log.iter().filter(inside).copied().collect()
    }

    #[test]
    fn what_the_guest_sends_is_taken_once() {
        let mut taken = 0;
        let (sector, len) = (APPENDED, 4096);
        let requests = [
            Request::Write { sector: 0, len },
            Request::Write {
                sector: 8,
                len: 8192,
            },
            Request::Append { sector, len },
            Request::Read { sector: 0, len },
            Request::Flush,
        ];
        each(&requests, |name, log, items| {
            for item in items {
                let reads = to(log, &item.place, false);
                let count = copies(&reads);
                match item.what {
                    Use::Descriptor => assert_eq!(count, 1, "{name}: {item:?}: {reads:x?}"),
                    Use::Readable => {
                        assert_eq!(count, 1, "{name}: {item:?}: {} reads", reads.len());
                        // No byte begins more than two loads, and only those that copies() knows of.
                        let starts: BTreeSet<usize> = reads.iter().map(|r| r.offset).collect();
                        let again = reads.len() - starts.len();
                        assert!(again <= 64, "{name}: {item:?}: {again} bytes again");
                    }
                    Use::Writable => {}
                }
                taken += usize::from(item.what != Use::Writable);
            }
        });
        println!("{taken} descriptors and buffers, each taken once");
    }

    #[test]
    fn what_the_device_writes_it_does_not_read() {
        let (sector, len) = (APPENDED, 4096);
        let requests = [
            Request::Append { sector, len },
            Request::Read { sector, len },
            Request::Report { sector: 0, len },
            Request::Flush,
        ];
        each(&requests, |name, log, items| {
            for item in items {
                let (reads, writes) = (to(log, &item.place, false), to(log, &item.place, true));
                match item.what {
                    Use::Writable => {
                        assert_eq!(reads, [], "{name}: {item:?}");
                        assert!(!writes.is_empty(), "{name}: {item:?} was not written");
                    }
                    Use::Readable | Use::Descriptor => assert_eq!(writes, [], "{name}: {item:?}"),
                }
            }
        });
    }

    #[test]
    fn a_second_look_is_noticed() {
        let page = 4096;
        let map = vm_memory::MmapRegion::<()>::new(page).expect("a page");
        let memory = map.as_ptr() as usize;
        let slice = vm_memory::VolatileMemory::get_slice(&map, 0, page).expect("a page");
        let mut bytes = [0; 16];
        let once = accesses(memory, page, || {
            slice.read_slice(&mut bytes, 64).expect("inside");
        });
        let twice = accesses(memory, page, || {
            for _ in 0..2 {
                slice.read_slice(&mut bytes, 64).expect("inside");
            }
        });
        let partly = accesses(memory, page, || {
            slice.read_slice(&mut bytes, 64).expect("inside");
            let byte: u64 = slice.read_obj(72).expect("inside");
            std::hint::black_box(byte);
        });
        let long = accesses(memory, page, || {
            let mut all = [0; 4096];
            slice.read_slice(&mut all, 0).expect("inside");
            std::hint::black_box(&all);
        });
        let written = accesses(memory, page, || {
            slice.write_slice(&bytes, 64).expect("inside");
        });
        assert_eq!(copies(&once), 1, "{once:x?}");
        assert_eq!(copies(&twice), 2, "{twice:x?}");
        assert_eq!(copies(&partly), 2, "{partly:x?}");
        assert_eq!(copies(&long), 1, "{} accesses", long.len());
        assert!(!written.is_empty() && written.iter().all(|access| access.write));
        assert!(once.iter().all(|access| !access.write));
    }
}

#[cfg(test)]
mod race {
    use std::process::Command;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::time::{Duration, Instant};

    use crate::common::daemon::{BINARY, Rig};
    use crate::common::frontend::{Frontend, Options};
    use crate::common::memory::{GuestRam, Span};
    use crate::common::request::{Request, kind, status};
    use crate::common::ring::{DESC_INDIRECT, DESC_NEXT, DESC_WRITE, Descriptor};
    use crate::common::rng::Rng;

    /// How long the guest races: longest where every block has a tag.
    const LONG_RACE: Duration = Duration::from_secs(10);
    const RACE: Duration = Duration::from_secs(5);
    const SOON: Duration = Duration::from_secs(20);

    /// Chains in flight at most, and the descriptors of each: header, data, space, status.
    const SLOTS: u16 = 24;
    const CHAIN: u16 = 4;
    /// The two values that a byte of data flips between.
    const VALUES: [u8; 2] = [0xaa, 0x55];
    /// Bytes of data that a chain may have at most, and at least.
    const LONG: u32 = 12288;
    const SHORT: u32 = 4096;
    /// Sectors of a zone of the disks here, and zones.
    const ZONE: u64 = 2048;
    const ZONES: u64 = 16;

    /// One chain's memory.
    #[derive(Clone, Copy, Debug)]
    struct Slot {
        first: u16,
        header: Span,
        data: Span,
        space: Span,
        status: Span,
        table: Span,
    }

    impl Slot {
        fn new(ram: &GuestRam, number: u16) -> Self {
            let alloc = |len: u32| ram.alloc(u64::from(len), 512, 0);
            Self {
                first: number * CHAIN,
                header: alloc(16),
                data: alloc(LONG),
                space: alloc(LONG),
                status: alloc(16),
                table: alloc(u32::from(CHAIN) * 16),
            }
        }

        /// The four descriptors, numbered from `first`; the data or the space is empty.
        fn descriptors(&self, first: u16, data: u32, space: u32, tail: u32) -> [Descriptor; 4] {
            let make = |span: Span, len, flags, number: u16| Descriptor {
                addr: span.start,
                len,
                flags,
                next: first + number + 1,
            };
            [
                make(self.header, 16, DESC_NEXT, 0),
                make(self.data, data, DESC_NEXT, 1),
                make(self.space, space, DESC_NEXT | DESC_WRITE, 2),
                make(self.status, tail, DESC_WRITE, 3),
            ]
        }
    }

    /// What the race is about.
    struct Track {
        ram: Arc<GuestRam>,
        slots: Vec<Slot>,
        ring_table: u64,
        zoned: bool,
        over: AtomicBool,
        flips: AtomicU64,
    }

    impl Track {
        fn start_of_zone(rng: &mut Rng) -> u64 {
            rng.below(ZONES) * ZONE
        }

        fn kind(&self, rng: &mut Rng) -> u32 {
            let zoned = [
                kind::ZONE_APPEND,
                kind::ZONE_APPEND,
                kind::OUT,
                kind::IN,
                kind::ZONE_RESET,
                kind::FLUSH,
                kind::GET_ID,
            ];
            let plain = [
                kind::OUT,
                kind::OUT,
                kind::IN,
                kind::WRITE_ZEROES,
                kind::DISCARD,
            ];
            *rng.pick(if self.zoned { &zoned } else { &plain })
        }

        fn sector(&self, rng: &mut Rng) -> u64 {
            let zone = Self::start_of_zone(rng);
            if self.zoned && rng.one_in(2) {
                zone
            } else {
                zone + 8 * rng.below(40)
            }
        }

        /// One change to one chain, whether it is in flight or not.
        fn flip(&self, rng: &mut Rng) {
            let slot = rng.pick(&self.slots);
            let table = if rng.one_in(2) {
                self.ring_table + 16 * u64::from(slot.first)
            } else {
                slot.table.start
            };
            let entry = table + 16 * rng.below(u64::from(CHAIN));
            match rng.below(12) {
                0 => self
                    .ram
                    .write(slot.header.start, &self.kind(rng).to_le_bytes()),
                1 => self
                    .ram
                    .write(slot.header.start + 8, &self.sector(rng).to_le_bytes()),
                2 => {
                    let lengths = [SHORT, 2 * SHORT, LONG, 0, 512, 16, 17, u32::MAX];
                    self.ram.write(entry + 8, &rng.pick(&lengths).to_le_bytes());
                }
                3 => {
                    let flags = rng.below(8).to_le_bytes();
                    self.ram.write(entry + 12, &flags[..2]);
                }
                4 => {
                    let next = u64::from(slot.first) * rng.below(2) + rng.below(6);
                    self.ram.write(entry + 14, &next.to_le_bytes()[..2]);
                }
                5 => {
                    let places = [slot.data, slot.space, slot.header, slot.status, slot.table];
                    self.ram
                        .write(entry, &rng.pick(&places).start.to_le_bytes());
                }
                _ => {
                    let value = *rng.pick(&VALUES);
                    let at = rng.below(u64::from(LONG));
                    let len = usize::try_from(rng.range(1, 64)).expect("small");
                    let room = usize::try_from(slot.data.len - at).expect("small");
                    let bytes = vec![value; len.min(room)];
                    self.ram.write(slot.data.start + at, &bytes);
                }
            }
            self.flips.fetch_add(1, Ordering::Relaxed);
        }

        fn run(&self, mut rng: Rng) {
            while !self.over.load(Ordering::Relaxed) {
                for _ in 0..200 {
                    self.flip(&mut rng);
                }
            }
        }
    }

    /// What came back.
    #[derive(Debug, Default)]
    struct Tally {
        answered: u64,
        good: u64,
        empty: u64,
    }

    /// Lays the slot out anew, as a well-formed request, and offers it.
    fn offer(f: &mut Frontend, track: &Track, at: usize, rng: &mut Rng) {
        let slot = track.slots[at];
        let (ram, ring) = (&f.ram, &mut f.queues[0].ring);
        let code = track.kind(rng);
        ram.write(
            slot.header.start,
            &Request::new(code, track.sector(rng)).readable,
        );
        let len = SHORT * u32::try_from(rng.range(1, 3)).expect("small");
        let (data, space) = match code {
            kind::OUT | kind::ZONE_APPEND => (len, 0),
            kind::IN => (0, len),
            _ => (0, 0),
        };
        let tail = if code == kind::ZONE_APPEND { 16 } else { 1 };
        ram.write(slot.status.start, &[0xa5; 16]);
        if rng.one_in(2) {
            let bytes: Vec<u8> = slot
                .descriptors(0, data, space, tail)
                .iter()
                .flat_map(|d| d.to_bytes())
                .collect();
            ram.write(slot.table.start, &bytes);
            let table = Descriptor {
                addr: slot.table.start,
                len: u32::from(CHAIN) * 16,
                flags: DESC_INDIRECT,
                next: 0,
            };
            ring.write_descriptor(slot.first, table);
        } else {
            let chain = slot.descriptors(slot.first, data, space, tail);
            for (number, descriptor) in (slot.first..).zip(chain) {
                ring.write_descriptor(number, descriptor);
            }
        }
        ring.offer(slot.first);
    }

    /// Offers and reaps for `time` while the other thread flips. Every chain that was offered comes back once.
    fn drive(f: &mut Frontend, track: &Track, rng: &mut Rng, time: Duration) -> Tally {
        let mut tally = Tally::default();
        let mut idle: Vec<usize> = (0..track.slots.len()).collect();
        let (end, mut last) = (Instant::now() + time, Instant::now());
        while Instant::now() < end || idle.len() < track.slots.len() {
            if Instant::now() < end {
                while let Some(at) = idle.pop() {
                    offer(f, track, at, rng);
                }
                f.queues[0].force_kick();
            }
            while let Some(used) = f.queues[0].ring.pop() {
                let at = usize::try_from(used.id / u32::from(CHAIN)).expect("small");
                assert!(!idle.contains(&at), "{used:?} twice");
                assert_eq!(used.id, u32::from(track.slots[at].first));
                // The longest that any mixture of the flips allows.
                assert!(u64::from(used.len) <= 4 * u64::from(LONG) + 64, "{used:?}");
                tally.answered += 1;
                tally.empty += u64::from(used.len == 0);
                let code = f.ram.read(Span::new(track.slots[at].status.start, 1))[0];
                tally.good += u64::from(code == status::OK || used.len > 1);
                idle.push(at);
                last = Instant::now();
            }
            assert!(
                last.elapsed() < SOON,
                "{} are not answered",
                track.slots.len() - idle.len()
            );
            std::thread::yield_now();
        }
        tally
    }

    /// Reads everything: no error, and every byte is one that the guest had there, or nothing was written.
    fn check_disk(f: &mut Frontend, zoned: bool) -> u64 {
        let mut written = 0;
        for zone in 0..ZONES {
            let end = if zoned {
                f.queue().zone(zone * ZONE).wp.min((zone + 1) * ZONE)
            } else {
                (zone + 1) * ZONE
            };
            for sector in (zone * ZONE..end).step_by(8) {
                let (code, data) = f.queue().read(sector, 4096);
                assert_eq!(code, status::OK, "sector {sector}");
                if zoned {
                    // Headers, tables and statuses may have been sent as data too: they are no flips of ours.
                    let known = data.iter().filter(|byte| VALUES.contains(byte)).count();
                    written += u64::from(known == data.len());
                }
            }
        }
        written
    }

    fn race(create: &[&str], zoned: bool, time: Duration, stream: u64) {
        let mut rng = Rng::from_env(stream);
        let mut rig = Rig::new(create, &[]);
        let options = Options {
            queue_size: 128,
            ..Options::default()
        };
        let mut f = Frontend::open_with(&rig.socket(), options);
        let track = Track {
            ram: Arc::clone(&f.ram),
            slots: (0..SLOTS).map(|number| Slot::new(&f.ram, number)).collect(),
            ring_table: f.queues[0].ring.addresses()[0],
            zoned,
            over: AtomicBool::new(false),
            flips: AtomicU64::new(0),
        };
        for slot in &track.slots {
            f.ram
                .write(slot.data.start, &vec![VALUES[0]; LONG as usize]);
        }
        let flipper = Rng::new(rng.bits());
        let tally = std::thread::scope(|scope| {
            scope.spawn(|| track.run(flipper));
            let drive = std::panic::AssertUnwindSafe(|| drive(&mut f, &track, &mut rng, time));
            let tally = std::panic::catch_unwind(drive);
            track.over.store(true, Ordering::Relaxed);
            tally
        })
        .unwrap_or_else(|why| std::panic::resume_unwind(why));
        drop(f);
        assert!(
            rig.daemon.as_mut().expect("started").is_running(),
            "the daemon died"
        );
        let mut f = Frontend::open(&rig.socket());
        let whole = check_disk(&mut f, zoned);
        drop(f);
        let log = rig.log();
        let complaints = log.lines().filter(|line| {
            ["damage", "tag", "panic"]
                .iter()
                .any(|word| line.contains(word))
        });
        assert_eq!(complaints.count(), 0, "{log}");
        rig.daemon.take().expect("started").stop();
        let checked = Command::new(BINARY)
            .arg("check")
            .arg(rig.image.path())
            .arg("--key-file")
            .arg(rig.image.key())
            .output()
            .expect("the binary");
        assert!(checked.status.success(), "{checked:?}");
        let flips = track.flips.load(Ordering::Relaxed);
        println!("{flips} flips, {tally:?}, {whole} blocks of flipped data alone");
        assert!(
            tally.good > 100 && flips > 10_000,
            "no race: {flips} flips, {tally:?}"
        );
    }

    #[test]
    fn a_racing_guest_gets_nothing_out_of_step() {
        race(
            &["--size", "16M", "--zone-size", "1M"],
            true,
            LONG_RACE,
            511,
        );
    }

    #[test]
    fn a_racing_guest_gets_nothing_out_of_step_with_checksums() {
        let create = [
            "--size",
            "16M",
            "--zone-size",
            "1M",
            "--cipher",
            "aes-256-xts+crc64",
        ];
        race(&create, true, RACE, 512);
    }

    #[test]
    fn a_racing_guest_gets_nothing_out_of_step_without_zones() {
        race(&["--size", "16M", "--plain"], false, RACE, 513);
    }
}
