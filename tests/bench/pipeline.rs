//! The steps of a request one by one, timed by criterion.
//!
//! ```text
//! cargo bench --bench pipeline               # two minutes; a name after -- picks some
//! ```
//! Times are of a warm cache and a machine that is left alone. What must not grow is counted instead:
//! see `tests/bench/instructions`. Ciphers beside others' are in `xts.rs` and `sealed.rs`.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a benchmark fails by panicking"
)]

#[path = "../pipeline/mod.rs"]
pub mod pipeline;

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use pipeline::flat::Flat;
use pipeline::guest::{Guest, Request};
use pipeline::{BLOCK, Cursor, Rig, Shape};
use uuid::Uuid;
use zonevault::crypt::Cipher;
use zonevault::format::image::fresh_record;
use zonevault::geometry::{Blocks, Generation, Geometry, Model, ZoneIndex};
use zonevault::integrity::{Binding, BlockCipher, SLOT_LEN, Stamp};
use zonevault::request::{Chain, Policy, Request as Parsed};
use zonevault::zone::{Admission, Epoch, Loaded, Opening, RecordCopy, Table, Ticket, ZoneSalt};

const SMALL: u32 = 4 << 10;
const LARGE: u32 = 128 << 10;
const SIZES: [(&str, u32); 2] = [("4K", SMALL), ("128K", LARGE)];
const CIPHERS: [Cipher; 3] = [Cipher::Aes256Gcm, Cipher::Aes256XtsCrc64, Cipher::Aes256Xts];
/// Zones of the reported disk, of the smallest size that there is.
const MANY: u32 = 1 << 16;
const SMALL_ZONE: u64 = 64 << 10;

/// Pieces made at once to be opened: few enough that all of them stay in the cache.
const AT_ONCE: BatchSize = BatchSize::NumIterations(4);

/// A request from its descriptors: read, checked, understood.
fn parse(c: &mut Criterion) {
    let mut group = c.benchmark_group("parse");
    let geometry = Shape::new(Model::HostManaged, Cipher::Aes256Gcm).geometry();
    let policy = Policy {
        geometry,
        read_only: false,
        zoned: true,
    };
    for (name, len) in SIZES {
        let mut guest = Guest::new(LARGE);
        let head = guest.submit(Request::Append { sector: 0, len });
        let (table, memory) = guest.descriptors();
        let mut chain = Chain::default();
        group.bench_function(format!("append-{name}"), |b| {
            b.iter(|| {
                let mut taken = std::mem::take(&mut chain);
                taken.collect(memory, table, head).unwrap();
                let request = Parsed::parse(taken, &policy);
                black_box(request.command).unwrap();
                chain = request.chain;
            });
        });
    }
    group.finish();
}

fn table(geometry: Geometry) -> Table {
    let fresh = |zone| {
        Some(Loaded {
            record: fresh_record(&geometry, zone, ZoneSalt([7; 32])),
            sequence: 1,
            copy: RecordCopy::A,
            mirrored: true,
            proven: Blocks(0),
        })
    };
    let records = geometry.all_zones().map(fresh).collect();
    Table::new(geometry, records, Opening::Clean, Epoch(1))
}

/// An append through the zone machine: granted, over, released, with a record ordered.
fn admit(c: &mut Criterion) {
    let geometry = Shape::new(Model::HostManaged, Cipher::Aes256Gcm).geometry();
    let (zone, block) = (ZoneIndex(0), Blocks(1));
    let ticket = Ticket {
        queue: 0,
        life: 0,
        op: 0,
    };
    let mut zones = table(geometry);
    c.bench_function("admit and commit", |b| {
        b.iter(|| {
            let Ok(admission) = zones.admit_write(zone, None, block, ticket) else {
                // Full: once in sixteen thousand times.
                zones = table(geometry);
                return;
            };
            let Admission::Granted(grant) = admission else {
                panic!("nobody else writes");
            };
            zones.complete(grant, true);
            let settled = zones.settle(zone);
            zones.record_written(zone, &settled.record.unwrap());
            black_box(&settled.released);
        });
    });
}

/// Blocks encrypted and tagged, verified and decrypted. Every piece is opened as it was sealed.
fn crypt(c: &mut Criterion) {
    let key: Vec<u8> = (0..64).collect();
    let binding = Binding {
        uuid: Uuid::from_u128(1),
        zone: ZoneIndex(2),
        generation: Generation(3),
    };
    let stamp = Stamp {
        epoch: Epoch(1),
        counter: 0,
    };
    let block = usize::try_from(BLOCK).unwrap();
    for cipher in CIPHERS {
        let keys = BlockCipher::new(cipher, &key[..cipher.key_len()], binding).unwrap();
        for (name, len) in SIZES {
            let mut group = c.benchmark_group(format!("{}/{name}", cipher.name()));
            group.throughput(Throughput::Bytes(len.into()));
            let mut data = vec![7; len as usize];
            let blocks = if keys.is_tagged() {
                data.len() / block
            } else {
                0
            };
            let mut slots = vec![0; blocks * SLOT_LEN];
            group.bench_function("seal", |b| {
                b.iter(|| {
                    let data = black_box(&mut data);
                    keys.seal(block, Blocks(0), stamp, data, &mut slots)
                        .unwrap();
                });
            });
            // Also if only opening is asked for.
            keys.seal(block, Blocks(0), stamp, &mut data, &mut slots)
                .unwrap();
            group.bench_function("open", |b| {
                let open = |sealed: &mut Vec<u8>| {
                    keys.open(block, Blocks(0), sealed, black_box(&slots))
                        .unwrap();
                };
                b.iter_batched_ref(|| data.clone(), open, AT_ONCE);
            });
            group.finish();
        }
    }
}

/// Requests from ring to ring over an image that is an array in memory.
fn ring_to_ring(c: &mut Criterion) {
    let shape = Shape {
        zones: MANY,
        zone: SMALL_ZONE,
        most: 8 << 20,
        ..Shape::new(Model::HostManaged, Cipher::Aes256Gcm)
    };
    let mut rig = Rig::new(Flat::new(shape.image_len()), &shape, |_| {});
    let len = (MANY + 1) * 64 + 4096 - 64;
    c.bench_function("report of 65,536 zones", |b| {
        b.iter(|| rig.run(1, 1, |_| Request::Report { sector: 0, len }));
    });
    drop(rig);
    let mut group = c.benchmark_group("ring to ring");
    for cipher in CIPHERS {
        let shape = Shape::new(Model::HostManaged, cipher);
        let mut rig = Rig::new(Flat::new(shape.image_len()), &shape, |_| {});
        let mut cursor = Cursor::new(&shape);
        rig.run(128, 32, |_| cursor.write(0, LARGE));
        for (name, len) in SIZES {
            group.throughput(Throughput::Bytes(u64::from(len) * 32));
            group.bench_function(format!("{}/32 reads of {name}", cipher.name()), |b| {
                b.iter(|| rig.run(32, 32, |_| cursor.read(0, 16 << 20, len)));
            });
        }
    }
    group.finish();
}

criterion_group! {
    name = all;
    config = Criterion::default()
        .without_plots()
        .sample_size(30)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = parse, admit, crypt, ring_to_ring
}
criterion_main!(all);
