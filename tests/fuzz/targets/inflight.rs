//! What a front-end kept of requests in flight, made up by a hostile one: the queue goes on from it,
//! answers each request once, and leaves a disk that works.
#![no_main]

use std::os::unix::fs::FileExt;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use arbitrary::{Result, Unstructured};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use zonevault::crypt::Cipher;
use zonevault::format::Layout;
use zonevault::geometry::{Geometry, GeometrySpec, Model, ZoneIndex};
use zonevault::queue::Worker;
use zonevault::queue::inflight::Region;
use zonevault::request::Policy;
use zonevault::store::mem::MemMedium;
use zonevault::volume::Volume;
use zonevault::zone::ZoneState;
use zonevault_fuzz::{ZONE, disk};

const QUEUES: u16 = 2;
const DESCRIPTORS: u16 = 64;
/// Requests of a queue, three descriptors each.
const REQUESTS: u16 = 16;
const ZONES: u64 = 5;
const BLOCK: u64 = 4096;

/// Where things lie in the region, by its specification.
const PART: u64 = (16 + 16 * DESCRIPTORS as u64).next_multiple_of(64);
const TAIL: u64 = PART * QUEUES as u64;

static GEOMETRY: LazyLock<Geometry> = LazyLock::new(|| {
    let spec = GeometrySpec {
        model: Model::HostManaged,
        block_size: BLOCK,
        disk_size: ZONES * ZONE,
        zone_size: ZONE,
        zone_capacity: 8 * BLOCK,
        conventional: 0,
        max_open: 2,
        max_active: 3,
        max_append: 2 * BLOCK,
    };
    spec.validate().expect("a disk")
});
static BLANK: LazyLock<[MemMedium; 2]> = LazyLock::new(|| {
    [Cipher::Aes256Xts, Cipher::Aes256Gcm].map(|cipher| disk::blank(&GEOMETRY, cipher))
});

/// Guest memory of a queue: rings, then requests of 8 KiB each.
struct Ring {
    memory: Arc<GuestMemoryMmap>,
    queue: Queue,
    base: u64,
    first: u16,
    offered: u16,
}

impl Ring {
    fn request(&self, number: u16) -> u64 {
        self.base + 0x4000 + 0x2000 * u64::from(number)
    }

    fn put(&self, address: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .expect("guest memory");
    }

    fn get_u16(&self, address: u64) -> u16 {
        self.memory
            .read_obj(GuestAddress(address))
            .expect("guest memory")
    }

    fn new(u: &mut Unstructured<'_>, memory: Arc<GuestMemoryMmap>, base: u64) -> Result<Self> {
        let mut queue = Queue::new(DESCRIPTORS).expect("a queue");
        let low = |address: u64| u32::try_from(address).ok();
        queue.set_size(DESCRIPTORS);
        queue.set_desc_table_address(low(base), Some(0));
        queue.set_avail_ring_address(low(base + 0x1000), Some(0));
        queue.set_used_ring_address(low(base + 0x2000), Some(0));
        queue.set_ready(true);
        let mut ring = Self {
            memory,
            queue,
            base,
            first: u.arbitrary()?,
            offered: 0,
        };
        for index in [0x1002, 0x2002] {
            ring.put(base + index, &ring.first.to_le_bytes());
        }
        for number in 0..u.int_in_range(0..=REQUESTS)? {
            let (kind, count) = (u.arbitrary::<u8>()?, u.int_in_range(0..=2)?);
            let sector = ZONE / 512 * u.int_in_range(0..=ZONES)? + 8 * u.int_in_range(0..=8)?;
            ring.offer(number, kind, sector, count);
        }
        Ok(ring)
    }

    /// Offers request `number`: any kind, `blocks` of data both ways.
    fn offer(&mut self, number: u16, kind: u8, sector: u64, blocks: u32) {
        let kinds = [15, 15, 15, 1, 1, 0, 4, 18, 20, 22, 24, 26, 16];
        let kind: u32 = kinds[usize::from(kind) % kinds.len()];
        let whole = matches!(kind, 15 | 18..=26);
        let sector = if whole { sector - sector % 128 } else { sector };
        let at = self.request(number);
        let mut header = kind.to_le_bytes().to_vec();
        header.extend_from_slice(&[0; 4]);
        header.extend_from_slice(&sector.to_le_bytes());
        self.put(at, &header);
        let data = if matches!(kind, 0 | 16) { 2 } else { 0 };
        let parts: [(u64, u32, u16); 3] = [
            (at, 16, 1),
            (at + 0x1000, blocks * 0x800, 1 | data),
            (at + 0x20, 16, 2),
        ];
        for (place, (address, len, flags)) in (3 * number..).zip(parts) {
            let mut bytes = address.to_le_bytes().to_vec();
            bytes.extend_from_slice(&len.to_le_bytes());
            bytes.extend_from_slice(&flags.to_le_bytes());
            bytes.extend_from_slice(&(place + 1).to_le_bytes());
            self.put(self.base + 16 * u64::from(place), &bytes);
        }
        let index = self.first.wrapping_add(self.offered);
        let entry = self.base + 0x1004 + 2 * u64::from(index % DESCRIPTORS);
        self.put(entry, &(3 * number).to_le_bytes());
        self.offered += 1;
        let next = index.wrapping_add(1);
        self.put(self.base + 0x1002, &next.to_le_bytes());
    }

    fn answered(&self) -> u16 {
        self.get_u16(self.base + 0x2002).wrapping_sub(self.first)
    }
}

/// Fills the region with what may have been in flight.
fn invent(u: &mut Unstructured<'_>, region: &Region, rings: &[Ring]) -> Result<()> {
    let file = region.file().expect("a memfd");
    let put = |at: u64, bytes: &[u8]| file.write_all_at(bytes, at).expect("a memfd");
    for (queue, ring) in (0_u64..).zip(rings) {
        let part = PART * queue;
        for number in 0..u.int_in_range(0..=REQUESTS)? {
            let head = u64::from(if u.ratio(7, 8)? {
                3 * number
            } else {
                u.int_in_range(0..=DESCRIPTORS - 1)?
            });
            let state = part + 16 + 16 * head;
            let counter = if u.ratio(7, 8)? {
                u64::from(u.arbitrary::<u8>()?)
            } else {
                u.arbitrary()?
            };
            put(state, &[u.arbitrary::<u8>()? & 1]);
            put(
                state + 6,
                &u16::from(u.arbitrary::<u8>()? & 63).to_le_bytes(),
            );
            put(state + 8, &counter.to_le_bytes());
            if u.ratio(3, 4)? {
                let at = TAIL + 64 + (queue * u64::from(DESCRIPTORS) + head) * 64;
                put(at, &intent(u, counter)?);
            }
        }
        let used = ring.first.wrapping_sub(u16::from(u.arbitrary::<u8>()? & 3));
        put(part + 14, &used.to_le_bytes());
        put(
            part + 12,
            &u16::from(u.arbitrary::<u8>()? & 63).to_le_bytes(),
        );
    }
    // And anything anywhere.
    for _ in 0..u.int_in_range(0..=3)? {
        let at = u64::from(u.arbitrary::<u16>()?) % region.size();
        put(at, &[u.arbitrary()?]);
    }
    Ok(())
}

fn intent(u: &mut Unstructured<'_>, counter: u64) -> Result<Vec<u8>> {
    let small = |u: &mut Unstructured<'_>, most: u64| -> Result<u64> {
        if u.ratio(15, 16)? {
            u.int_in_range(0..=most)
        } else {
            u.arbitrary()
        }
    };
    let counter = if u.ratio(15, 16)? {
        counter
    } else {
        u.arbitrary()?
    };
    let mut bytes = counter.to_le_bytes().to_vec();
    for most in [ZONES, 4, 2, 9, 2] {
        bytes.extend_from_slice(&small(u, most)?.to_le_bytes());
    }
    let check = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, &bytes);
    let check = if u.ratio(15, 16)? {
        check
    } else {
        u.arbitrary()?
    };
    bytes.extend_from_slice(&check.to_le_bytes());
    Ok(bytes)
}

/// Zones as they were left: state, write pointer, generation.
fn put_records(u: &mut Unstructured<'_>, medium: &MemMedium, layout: &Layout) -> Result<()> {
    for zone in GEOMETRY.all_zones() {
        let written = u.int_in_range(0..=8_u8)?;
        let mut record = [0; 128];
        record[0] = 1;
        record[1] = match (written, u.int_in_range(0..=7)?) {
            (8, _) => 6,
            (_, 0) => 6,
            (_, 1) => 7,
            (0, _) => 2,
            (_, 2..=4) => 3,
            _ => 5,
        };
        record[4..8].copy_from_slice(&zone.0.to_le_bytes());
        record[8] = 1;
        record[16] = written;
        record[24] = written;
        record[32] = u.int_in_range(0..=2)?;
        disk::put_record(medium, layout, zone, record);
    }
    Ok(())
}

fn serve(workers: &mut [Worker<MemMedium>], rings: &mut [Ring], policy: &Policy) {
    let mut quiet = 0;
    // One wakes the other; when neither has anything to do for some rounds, all is done that will be.
    while quiet < 4 {
        quiet += 1;
        for (worker, ring) in workers.iter_mut().zip(rings.iter_mut()) {
            let before = ring.answered();
            worker.clear_wake_up();
            let pass = worker.service(&mut ring.queue, &ring.memory, Some(policy));
            if pass.again || ring.answered() != before {
                quiet = 0;
            }
        }
    }
}

fn check_zones(volume: &Volume<MemMedium>) {
    let (mut open, mut active) = (0, 0);
    volume.report(ZoneIndex(0), usize::MAX, |_, info| {
        let past = info.write_pointer.0 - info.start.0;
        assert!(past <= info.capacity.0 || info.state == ZoneState::Full);
        open += u32::from(info.state.is_open());
        active += u32::from(info.state.is_active());
    });
    assert!(open <= GEOMETRY.max_open() && active <= GEOMETRY.max_active());
}

fn run(data: &[u8]) -> Result<()> {
    let u = &mut Unstructured::new(data);
    let tagged: bool = u.arbitrary()?;
    let medium = BLANK[usize::from(tagged)].control().kill();
    let cipher = [Cipher::Aes256Xts, Cipher::Aes256Gcm][usize::from(tagged)];
    let layout = Layout::new(&GEOMETRY, cipher.tag_slot_bytes()).expect("a layout");
    put_records(u, &medium, &layout)?;
    let volume = Arc::new(disk::open(medium, QUEUES));
    let region = [(GuestAddress(0x10000), 0x80000)];
    let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&region).expect("guest memory"));
    let mut rings = Vec::new();
    for queue in 0..u64::from(QUEUES) {
        rings.push(Ring::new(
            u,
            Arc::clone(&memory),
            0x10000 + queue * 0x40000,
        )?);
    }
    let identity = volume.identity();
    let made = Region::create(QUEUES, DESCRIPTORS, &identity).expect("a region");
    let (size, file) = (made.size(), made.file().expect("a memfd"));
    invent(u, &made, &rings)?;
    let place = if u.ratio(15, 16)? {
        (0, size)
    } else {
        (u.arbitrary()?, u.arbitrary()?)
    };
    let adopted = Region::adopt(file, place, QUEUES, DESCRIPTORS, &identity);
    let Ok(region) = adopted.map(Arc::new) else {
        return Ok(());
    };
    volume.expect(&region, region.epoch());
    let policy = Policy {
        geometry: *GEOMETRY,
        read_only: false,
        zoned: true,
    };
    let mut workers: Vec<_> = (0..QUEUES)
        .map(|index| Worker::new(index, Arc::clone(&volume), [0; 20]))
        .collect();
    for (index, worker) in (0..).zip(&mut workers) {
        let ring: &mut Ring = &mut rings[usize::from(index)];
        worker.start(DESCRIPTORS, zonevault::guard::faults()).expect("a channel");
        let kept = region.queue(index).expect("a queue of it");
        worker
            .track(kept, &mut ring.queue, &memory)
            .expect("a ring in guest memory");
    }
    serve(&mut workers, &mut rings, &policy);
    volume.give_up();
    serve(&mut workers, &mut rings, &policy);
    assert!(!volume.expects());
    for ring in &rings {
        assert_eq!(ring.answered(), ring.offered, "each once");
    }
    check_zones(&volume);
    // No zone is left waiting for what does not come.
    for zone in 0..ZONES {
        rings[0].offer(0, 0, zone * ZONE / 512, 2);
        serve(&mut workers[..1], &mut rings[..1], &policy);
        assert_eq!(rings[0].answered(), rings[0].offered, "zone {zone}");
    }
    for (worker, ring) in workers.iter_mut().zip(&mut rings) {
        assert!(worker.drain(&mut ring.queue, &memory, Duration::from_secs(5)));
    }
    check_zones(&volume);
    Ok(())
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = run(data);
});
