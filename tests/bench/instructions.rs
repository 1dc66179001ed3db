//! What `tests/bench/instructions` counts under callgrind: a few hundred requests of each kind.
//!
//! The pipeline runs from ring to ring over an image that is an array in memory, so nothing depends
//! on a kernel or a disk, and nearly nothing on the processor: callgrind shows every program the
//! same one. It counts inside of [`Rig::pass`] alone, from [`mark`] to [`mark`].
#![expect(clippy::expect_used, reason = "a benchmark fails by panicking")]

#[path = "../pipeline/mod.rs"]
pub mod pipeline;

use std::env;
use std::hint::black_box;

use pipeline::flat::Flat;
use pipeline::guest::Request;
use pipeline::{BLOCK, Cursor, Rig, Shape, ZONE};
use zonevault::crypt::{Backend, Cipher};
use zonevault::geometry::Model;

/// Requests in flight.
const DEPTH: usize = 32;
const SMALL: u32 = 4 << 10;
const LARGE: u32 = 128 << 10;
/// Zones written to at once, from zone 0 on.
const WRITTEN: u64 = 8;
/// The zone that is read, as far as it is written.
const READ: usize = 12;
const EXTENT: u64 = 16 << 20;

type Kind = (&'static str, u64, fn(&mut Cursor, u64) -> Request);

fn zone(n: u64) -> usize {
    usize::try_from(n % WRITTEN).unwrap_or(0)
}

fn write(cursor: &mut Cursor, n: u64, len: u32) -> Request {
    cursor.write(zone(n), len)
}

fn append(cursor: &mut Cursor, n: u64, len: u32) -> Request {
    cursor.append(zone(n), len)
}

fn anywhere(cursor: &mut Cursor, len: u32) -> Request {
    let sector = cursor.random(ZONE / BLOCK) * BLOCK / 512;
    Request::Write { sector, len }
}

const ZONED: &[Kind] = &[
    ("read-4k", 512, |c, _| c.read(READ, EXTENT, SMALL)),
    ("read-128k", 32, |c, _| c.read(READ, EXTENT, LARGE)),
    ("write-4k", 512, |c, n| write(c, n, SMALL)),
    ("write-128k", 32, |c, n| write(c, n, LARGE)),
    ("append-4k", 512, |c, n| append(c, n, SMALL)),
    ("append-128k", 32, |c, n| append(c, n, LARGE)),
    ("report-63-zones", 64, |_, _| Request::Report {
        sector: 0,
        len: SMALL,
    }),
];

const PLAIN: &[Kind] = &[
    ("plain-read-4k", 512, |c, _| c.read(READ, EXTENT, SMALL)),
    ("plain-write-4k", 512, |c, _| anywhere(c, SMALL)),
];

/// Before and after what is counted: callgrind, which looks for this function by its name, begins a
/// new count here.
#[inline(never)]
fn mark() {
    black_box(());
}

/// Runs each kind of request and says so in the order of the counts.
fn run(model: Model, cipher: Cipher, zones: u32, kinds: &[Kind]) {
    let shape = Shape {
        zones,
        ..Shape::new(model, cipher)
    };
    let mut rig = Rig::new(Flat::new(shape.image_len()), &shape, |_| {});
    let mut cursor = Cursor::new(&shape);
    rig.run(EXTENT / u64::from(LARGE), DEPTH, |_| {
        cursor.write(READ, LARGE)
    });
    for (name, count, kind) in kinds {
        rig.run(*count, DEPTH, |n| kind(&mut cursor, n));
        mark();
        rig.run(*count, DEPTH, |n| kind(&mut cursor, n));
        mark();
        println!("counted {}/{name} {count}", cipher.name());
    }
}

fn main() {
    if !env::args().any(|argument| argument == "--count") {
        println!("run tests/bench/instructions, which runs this under callgrind");
        return;
    }
    let backends: Vec<_> = Backend::available().map(Backend::name).collect();
    println!("backends {}", backends.join(" "));
    for cipher in [Cipher::Aes256Gcm, Cipher::Aes256XtsCrc64, Cipher::Aes256Xts] {
        run(Model::HostManaged, cipher, 64, ZONED);
    }
    run(Model::Plain, Cipher::Aes256Xts, 16, PLAIN);
}
