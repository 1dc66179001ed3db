//! Scans of images in memory: every fault a block can have, and how a zone's end is found.

use uuid::Uuid;

use super::*;
use crate::crypt::Cipher;
use crate::format::image::fresh_record;
use crate::geometry::{Generation, GeometrySpec, Model};
use crate::secret::VolumeKey;
use crate::store::mem::{Fault as Trap, Kind, MemMedium};
use crate::zone::{ZoneSalt, ZoneState};

const BLOCK: usize = 4096;
/// Blocks of a zone: four chunks.
const CAPACITY: u64 = 256;
const ZONE: ZoneIndex = ZoneIndex(2);
const EPOCH: Epoch = Epoch(7);

/// An image of four zones, with no metadata: a scan needs none.
struct Bench {
    medium: MemMedium,
    geometry: Geometry,
    layout: Layout,
    keyslots: Keyslots,
}

impl Bench {
    fn new(cipher: Cipher) -> Self {
        let geometry = geometry();
        let layout = Layout::new(&geometry, cipher.tag_slot_bytes()).unwrap();
        let volume_key = VolumeKey::random().unwrap();
        Self {
            medium: MemMedium::new(layout.image_len()),
            geometry,
            layout,
            keyslots: Keyslots::new(volume_key, Uuid::from_u128(1), cipher, 0),
        }
    }

    /// One with `count` blocks in [`ZONE`], written under [`EPOCH`].
    fn written(cipher: Cipher, count: u64) -> Self {
        let bench = Self::new(cipher);
        bench.write(ZONE, 0..count, EPOCH, 0);
        bench
    }

    fn scanner(&self) -> Scanner<'_, MemMedium> {
        Scanner::new(&self.medium, &self.layout, &self.geometry, &self.keyslots)
    }

    fn write(&self, zone: ZoneIndex, blocks: std::ops::Range<u64>, epoch: Epoch, skipped: u32) {
        let scanner = self.scanner();
        let key = scanner.key(zone, &record()).unwrap();
        for block in blocks {
            let mut data = vec![u8::try_from(block % 251).unwrap(); BLOCK];
            let mut slot = [0; SLOT_LEN];
            let counter = u32::try_from(block).unwrap().wrapping_add(skipped);
            let stamp = Stamp { epoch, counter };
            let slots: &mut [u8] = if key.is_tagged() { &mut slot } else { &mut [] };
            key.seal(BLOCK, Blocks(block), stamp, &mut data, slots)
                .unwrap();
            let data_at = scanner.layout.block_offset(zone, Blocks(block));
            self.medium.write_at(data_at, &data).unwrap();
            if key.is_tagged() {
                let slot_at = scanner.slot_at(zone, Blocks(block));
                self.medium.write_at(slot_at, &slot).unwrap();
            }
        }
    }

    fn data_at(&self, block: u64) -> u64 {
        self.scanner().layout.block_offset(ZONE, Blocks(block))
    }

    fn slot_at(&self, block: u64) -> u64 {
        self.scanner().slot_at(ZONE, Blocks(block))
    }

    /// Changes a bit of what is there.
    fn flip(&self, offset: u64) {
        let mut byte = self.medium.control().peek(offset, 1);
        byte[0] ^= 1;
        self.medium.control().overwrite(offset, &byte);
    }

    fn break_reads(&self, offset: u64, len: u64, errno: i32) {
        for kind in [Kind::Read, Kind::MetadataRead] {
            let range = offset..offset + len;
            let control = self.medium.control();
            control.fail_range(kind, range, Trap::Fail(errno));
        }
    }

    fn extend(&self, epoch: Epoch, skipped: u32, from: u64, end: u64) -> u64 {
        let scanner = self.scanner();
        let found = scanner.extend(
            ZONE,
            &record(),
            epoch,
            Skipped(skipped),
            Blocks(from),
            Blocks(end),
        );
        found.unwrap().0
    }

    /// The bad runs of blocks 0 to `count` - 1: first block, how many, why.
    fn verify(&self, count: u64) -> Vec<(u64, u64, Fault)> {
        let mut found = Vec::new();
        let range = range(0, count);
        self.scanner()
            .verify(ZONE, &record(), range, &mut |run| found.push(tuple(run)))
            .unwrap();
        found
    }
}

fn tuple(run: BadRun) -> (u64, u64, Fault) {
    (run.blocks.start.0, run.blocks.count.0, run.fault)
}

fn range(start: u64, count: u64) -> BlockRange {
    BlockRange {
        start: Blocks(start),
        count: Blocks(count),
    }
}

fn geometry() -> Geometry {
    GeometrySpec {
        model: Model::HostManaged,
        block_size: BLOCK as u64,
        disk_size: 4 << 20,
        zone_size: 1 << 20,
        zone_capacity: 1 << 20,
        conventional: 0,
        max_open: 0,
        max_active: 0,
        max_append: 4096,
    }
    .validate()
    .unwrap()
}

fn record() -> ZoneRecord {
    let fresh = fresh_record(&geometry(), ZONE, ZoneSalt([5; 32]));
    ZoneRecord {
        state: ZoneState::Closed,
        generation: Generation(3),
        ..fresh
    }
}

#[test]
fn a_zone_ends_where_the_stamps_of_its_epoch_do() {
    for cipher in [Cipher::Aes256Gcm, Cipher::Aes256XtsCrc64] {
        let bench = Bench::written(cipher, 150);
        assert_eq!(bench.extend(EPOCH, 0, 10, CAPACITY), 150);
        assert_eq!(bench.extend(EPOCH, 0, 0, 100), 100);
        assert_eq!(bench.extend(EPOCH, 0, 150, CAPACITY), 150);
        assert_eq!(bench.extend(EPOCH, 0, 20, 20), 20);
        assert_eq!(bench.extend(Epoch(8), 0, 10, CAPACITY), 10);
        assert_eq!(bench.extend(EPOCH, 1, 10, CAPACITY), 10);
        bench.write(ZONE, 0..CAPACITY, EPOCH, 0);
        assert_eq!(bench.extend(EPOCH, 0, 1, CAPACITY), CAPACITY);
    }
}

#[test]
fn a_block_of_another_epoch_or_counter_ends_a_zone() {
    let bench = Bench::written(Cipher::Aes256Gcm, 200);
    bench.write(ZONE, 120..121, Epoch(9), 0);
    assert_eq!(bench.extend(EPOCH, 0, 5, CAPACITY), 120);
    bench.write(ZONE, 70..71, EPOCH, 1);
    assert_eq!(bench.extend(EPOCH, 0, 5, CAPACITY), 70);
    // After a failed write at 70 the counters of what follows run ahead.
    bench.write(ZONE, 71..90, EPOCH, 1);
    assert_eq!(bench.extend(EPOCH, 1, 70, CAPACITY), 90);
}

#[test]
fn blank_slots_and_counters_beyond_their_field_verify_nothing() {
    let bench = Bench::new(Cipher::Aes256Gcm);
    assert_eq!(bench.extend(Epoch(0), 0, 0, CAPACITY), 0);
    bench.write(ZONE, 0..8, EPOCH, u32::MAX);
    assert_eq!(bench.extend(EPOCH, u32::MAX, 0, CAPACITY), 1);
}

#[test]
fn what_does_not_verify_or_cannot_be_read_ends_a_zone() {
    let bench = Bench::written(Cipher::Aes256Gcm, 200);
    let damages: [(u64, &dyn Fn(u64)); 5] = [
        (180, &|block| bench.flip(bench.data_at(block) + 4095)),
        (140, &|block| bench.flip(bench.slot_at(block) + 31)),
        (100, &|block| bench.flip(bench.slot_at(block) + 12)),
        (64, &|block| {
            bench.break_reads(bench.data_at(block), 512, libc::EIO);
        }),
        (30, &|block| {
            bench.break_reads(bench.slot_at(block), 32, libc::ENODATA);
        }),
    ];
    for (block, damage) in damages {
        damage(block);
        assert_eq!(bench.extend(EPOCH, 0, 3, CAPACITY), block);
        assert_eq!(bench.extend(EPOCH, 0, 0, block), block);
    }
}

#[test]
fn bad_blocks_are_named_and_their_neighbours_are_not() {
    for cipher in [Cipher::Aes256Gcm, Cipher::Aes256XtsCrc64] {
        let bench = Bench::written(cipher, CAPACITY);
        assert_eq!(bench.verify(CAPACITY), []);
        bench.flip(bench.data_at(3));
        bench.flip(bench.slot_at(4));
        bench.medium.control().overwrite(bench.slot_at(5), &[0; 32]);
        bench.break_reads(bench.data_at(6) + 512, 512, libc::EIO);
        bench.break_reads(bench.slot_at(7), 2 * 32, libc::EILSEQ);
        // Across the end of a chunk.
        for block in 62..67 {
            bench.flip(bench.data_at(block) + 100);
        }
        // The last block, and one that is another one's content with its tag.
        bench.flip(bench.slot_at(CAPACITY - 1) + 20);
        for at in [Bench::data_at, Bench::slot_at] {
            let len = usize_of(at(&bench, 1) - at(&bench, 0));
            let other = bench.medium.control().peek(at(&bench, 200), len);
            bench.medium.control().overwrite(at(&bench, 100), &other);
        }
        let expected = [
            (3, 2, Fault::Mismatch),
            (5, 1, Fault::Missing),
            (6, 3, Fault::Unreadable),
            (62, 5, Fault::Mismatch),
            (100, 1, Fault::Mismatch),
            (CAPACITY - 1, 1, Fault::Mismatch),
        ];
        assert_eq!(bench.verify(CAPACITY), expected, "{cipher}");
        assert_eq!(bench.verify(3), []);
        assert_eq!(bench.verify(0), []);
    }
}

#[test]
fn blocks_of_another_generation_are_none_of_this_one() {
    let bench = Bench::written(Cipher::Aes256Gcm, 70);
    let mut found = Vec::new();
    let later = ZoneRecord {
        generation: Generation(4),
        ..record()
    };
    bench
        .scanner()
        .verify(ZONE, &later, range(0, 70), &mut |run| {
            found.push(tuple(run));
        })
        .unwrap();
    assert_eq!(found, [(0, 70, Fault::Mismatch)]);
}

#[test]
fn without_tags_only_the_medium_is_judged() {
    let bench = Bench::written(Cipher::Aes256Xts, 100);
    bench.flip(bench.data_at(3));
    bench.break_reads(bench.data_at(10), 2 * BLOCK as u64, libc::EIO);
    assert_eq!(bench.verify(100), [(10, 2, Fault::Unreadable)]);
    assert_eq!(bench.extend(EPOCH, 0, 5, CAPACITY), 5);
}

#[test]
fn an_error_that_says_nothing_of_the_block_is_one() {
    let bench = Bench::written(Cipher::Aes256Gcm, 100);
    bench.break_reads(bench.data_at(50), 1, libc::ENOMEM);
    let scanner = bench.scanner();
    let verified = scanner.verify(ZONE, &record(), range(0, 100), &mut |run| {
        panic!("{run:?}");
    });
    assert_eq!(verified.unwrap_err().raw_os_error(), Some(libc::ENOMEM));
    let found = scanner.extend(ZONE, &record(), EPOCH, Skipped(0), Blocks(0), Blocks(100));
    assert_eq!(found.unwrap_err().raw_os_error(), Some(libc::ENOMEM));
}

#[test]
fn many_zones_are_scanned_at_once() {
    let bench = Bench::written(Cipher::Aes256Gcm, CAPACITY);
    for zone in [0, 1, 3].map(ZoneIndex) {
        bench.write(zone, 0..u64::from(zone.0) * 50, EPOCH, 0);
    }
    let scanner = bench.scanner();
    let mut ends = Vec::new();
    let mut heard = vec![0];
    scanner
        .in_parallel(
            bench.geometry.all_zones(),
            |zone| {
                let end = Blocks(CAPACITY);
                let found = scanner.extend(zone, &record(), EPOCH, Skipped(0), Blocks(0), end)?;
                Ok((zone.0, found.0))
            },
            |end| ends.push(end),
            |bytes| heard.push(bytes),
        )
        .unwrap();
    ends.sort_unstable();
    assert_eq!(ends, [(0, 0), (1, 50), (2, CAPACITY), (3, 150)]);
    assert!(heard.is_sorted());
    assert_eq!(heard.last(), Some(&((50 + CAPACITY + 150) * BLOCK as u64)));
}

#[test]
fn the_first_error_ends_a_scan() {
    let bench = Bench::new(Cipher::Aes256Gcm);
    let begun = AtomicU64::new(0);
    let result = bench.scanner().in_parallel(
        0..1_000_000,
        |job| {
            begun.fetch_add(1, Ordering::Relaxed);
            match job {
                10 => Err(io::Error::other("enough")),
                _ => Ok(()),
            }
        },
        |()| (),
        |_| (),
    );
    assert_eq!(result.unwrap_err().to_string(), "enough");
    assert!(begun.load(Ordering::Relaxed) < 1_000_000);
}
