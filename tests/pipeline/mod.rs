//! The pipeline without a front-end: a queue's worker over a ring in this process, driven by hand.
//!
//! [`Rig`] makes a disk on any medium and works requests off, as many in flight as asked for. After
//! it was made its own part allocates nothing, so what a test counts is the pipeline's.

pub mod flat;
pub mod guest;

use std::sync::Arc;
use std::time::{Duration, Instant};

use uuid::Uuid;
use zonevault::crypt::Cipher;
use zonevault::format::image::{create, unlock};
use zonevault::format::{Argon2Cost, CreateSpec, Layout, NewProtector, Protector};
use zonevault::geometry::{Geometry, GeometrySpec, Model};
use zonevault::queue::stats::QueueStats;
use zonevault::queue::{Pass, Worker};
use zonevault::request::{Policy, SERIAL_LEN};
use zonevault::secret::{Credential, VolumeKey};
use zonevault::store::Medium;
use zonevault::volume::{Options, Volume};

use guest::{Guest, Request};

/// Bytes of a block.
pub const BLOCK: u64 = 4096;
/// Bytes of a zone, unless there are very many.
pub const ZONE: u64 = 64 << 20;
/// How long nothing may end while requests are in flight.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a rig's disk is.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// With zones or without.
    pub model: Model,
    /// How its data is encrypted.
    pub cipher: Cipher,
    /// Zones.
    pub zones: u32,
    /// Bytes of a zone.
    pub zone: u64,
    /// Bytes of tag slots that may be kept in memory.
    pub tag_cache: usize,
    /// Most bytes of a request's data.
    pub most: u32,
}

impl Shape {
    /// Sixteen zones, or their extent without zones, and requests of at most 128 KiB.
    pub fn new(model: Model, cipher: Cipher) -> Self {
        Self {
            model,
            cipher,
            zones: 16,
            zone: ZONE,
            tag_cache: Options::default().tag_cache,
            most: 128 << 10,
        }
    }

    /// The disk's shape.
    pub fn geometry(&self) -> Geometry {
        let zoned = self.model == Model::HostManaged;
        let spec = GeometrySpec {
            model: self.model,
            block_size: BLOCK,
            disk_size: u64::from(self.zones) * self.zone,
            zone_size: self.zone,
            zone_capacity: self.zone,
            conventional: 0,
            max_open: 0,
            max_active: 0,
            max_append: if zoned { self.zone.min(128 << 10) } else { 0 },
        };
        spec.validate().expect("a shape that can be")
    }

    /// Bytes of the image.
    pub fn image_len(&self) -> u64 {
        Layout::new(&self.geometry(), self.cipher.tag_slot_bytes())
            .expect("a layout")
            .image_len()
    }
}

/// A worker, its disk, and the guest on the other side of the ring.
#[derive(Debug)]
pub struct Rig<M: Medium> {
    /// The driver's side.
    pub guest: Guest,
    worker: Worker<M>,
    policy: Policy,
}

impl<M: Medium> Rig<M> {
    /// Makes an image on `medium`, which is large enough, and opens it. `prepare` sees the medium
    /// between the two.
    pub fn new(mut medium: M, shape: &Shape, prepare: impl FnOnce(&mut M)) -> Self {
        let credential = Credential::read_key(&[7; 64][..], "key").expect("a key");
        format(&medium, shape, &credential);
        prepare(&mut medium);
        let unlocked = unlock(&medium, &credential).expect("its own key");
        let options = Options {
            tag_cache: shape.tag_cache,
            ..Options::default()
        };
        let volume = Volume::open(medium, unlocked, options).expect("an image that was just made");
        let volume = Arc::new(volume);
        let policy = Policy {
            geometry: *volume.geometry(),
            read_only: false,
            zoned: true,
        };
        let mut worker = Worker::new(0, volume, [b'0'; SERIAL_LEN]);
        worker
            .start(guest::RING, zonevault::guard::faults())
            .expect("a channel");
        Self {
            guest: Guest::new(shape.most),
            worker,
            policy,
        }
    }

    /// Has the worker count what it does.
    pub fn count(&mut self) -> Arc<QueueStats> {
        let stats = Arc::new(QueueStats::new().expect("memory"));
        self.worker.count_into(Arc::clone(&stats));
        stats
    }

    /// Works off `count` requests, at most `depth` at a time; `next` says what the n-th is.
    pub fn run(&mut self, count: u64, depth: usize, mut next: impl FnMut(u64) -> Request) {
        let (mut begun, mut ended) = (0, 0);
        let mut last = Instant::now();
        while ended < count {
            while begun < count && self.guest.in_flight() < depth {
                self.guest.submit(next(begun));
                begun += 1;
            }
            self.pass();
            let before = ended;
            while self.guest.reap() {
                ended += 1;
            }
            if ended > before {
                last = Instant::now();
            } else {
                assert!(last.elapsed() < PATIENCE, "nothing ends");
                std::thread::yield_now();
            }
        }
    }

    /// What the worker does when it is woken. Callgrind looks for this function by its name.
    #[inline(never)]
    pub fn pass(&mut self) -> Pass {
        let (queue, memory) = self.guest.device_side();
        self.worker.service(queue, memory, Some(&self.policy))
    }

    /// Whether a worker that watches would begin another pass at once.
    pub fn sees_something(&mut self) -> bool {
        let (queue, memory) = self.guest.device_side();
        let mut look = self.worker.watch(queue, memory);
        look(&mut self.worker)
    }

    /// What the worker does before it sleeps. `true`: it begins another pass instead.
    pub fn rest(&mut self) -> bool {
        let (queue, memory) = self.guest.device_side();
        self.worker.rest(queue, memory)
    }

    /// Stops the queue.
    pub fn stop(&mut self) {
        let (queue, memory) = self.guest.device_side();
        assert!(self.worker.drain(queue, memory, PATIENCE), "it drains");
    }
}

fn format(medium: &impl Medium, shape: &Shape, credential: &Credential) {
    let uuid = Uuid::from_u128(1);
    let volume_key = VolumeKey::random().expect("randomness");
    let new = NewProtector {
        credential,
        cost: Argon2Cost::default(),
        label: "",
        created: 0,
    };
    let protector = Protector::seal(&volume_key, &uuid, 0, &new).expect("a protector");
    let spec = CreateSpec {
        geometry: &shape.geometry(),
        cipher: shape.cipher,
        uuid,
        created: 0,
        volume_key: &volume_key,
        protector: &protector,
    };
    create(medium, &spec).expect("an image");
}

/// What requests do with a zoned disk: positions that a run takes one after another.
#[derive(Clone, Debug)]
pub struct Cursor {
    /// Bytes below each zone's write pointer.
    pub written: Vec<u64>,
    random: u64,
}

impl Cursor {
    /// Of a disk on which nothing is written.
    pub fn new(shape: &Shape) -> Self {
        Self {
            written: vec![0; shape.zones as usize],
            random: 0x9e37_79b9_7f4a_7c15,
        }
    }

    /// A number below `end`: the same ones in every run.
    pub fn random(&mut self, end: u64) -> u64 {
        // Xorshift (Marsaglia 2003).
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % end
    }

    /// Writes `len` bytes where the write pointer of `zone` is.
    pub fn write(&mut self, zone: usize, len: u32) -> Request {
        let at = self.advance(zone, len);
        Request::Write { sector: at, len }
    }

    /// Appends `len` bytes to `zone`.
    pub fn append(&mut self, zone: usize, len: u32) -> Request {
        self.advance(zone, len);
        let sector = zone as u64 * ZONE / 512;
        Request::Append { sector, len }
    }

    /// Reads `len` bytes, aligned to as many, from the first `extent` bytes of `zone`.
    pub fn read(&mut self, zone: usize, extent: u64, len: u32) -> Request {
        let at = self.random(extent / u64::from(len)) * u64::from(len);
        let sector = (zone as u64 * ZONE + at) / 512;
        Request::Read { sector, len }
    }

    fn advance(&mut self, zone: usize, len: u32) -> u64 {
        let written = &mut self.written[zone];
        let at = *written;
        *written += u64::from(len);
        assert!(*written <= ZONE, "the zone is full");
        (zone as u64 * ZONE + at) / 512
    }
}
