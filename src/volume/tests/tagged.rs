//! Disks whose blocks have tags: what a cut leaves, what damage does, and the failures in between.

use super::*;
use crate::geometry::{Blocks, Generation};
use crate::integrity::{SLOT_LEN, Slot};
use crate::store::mem::Fate;

pub(super) const CUT: Options = Options {
    after_power_cut: true,
    queues: 2,
    keyslots: MIN_SLOTS,
    read_only: false,
    accept_records: false,
    tag_cache: 64 << 10,
};
const TAGGED: [Cipher; 2] = [Cipher::Aes256Gcm, Cipher::Aes256XtsCrc64];
const BLOCKS_TO_CAPACITY: usize = (CAPACITY / BLOCK) as usize;

pub(super) fn tagged(cipher: Cipher) -> Disk {
    let spec = GeometrySpec {
        conventional: 0,
        ..spec(crate::geometry::Model::HostManaged)
    };
    Disk::open(image_of(spec, cipher))
}

impl Disk {
    fn layout(&self) -> Layout {
        self.volume().layout
    }

    fn slot_offset(&self, zone: u32, block: u64) -> u64 {
        self.layout().tag_offset(ZoneIndex(zone)) + block * SLOT_LEN as u64
    }

    fn slot(&self, zone: u32, block: u64) -> Slot {
        let bytes = self
            .medium
            .control()
            .peek(self.slot_offset(zone, block), SLOT_LEN);
        Slot::parse(bytes.as_slice().try_into().unwrap())
    }

    fn flip(&self, offset: u64) {
        let control = self.medium.control();
        let byte = control.peek(offset, 1)[0];
        control.overwrite(offset, &[byte ^ 1]);
    }

    /// Reads block `block` of a zone; `Err` is the status.
    fn block(&mut self, zone: u32, block: u64) -> Result<Vec<u8>, Status> {
        let sector = (u64::from(zone) * ZONE + block * BLOCK) / 512;
        let before = noise(BLOCK);
        match self.run(Command::Read(span(sector, BLOCK)), before.clone()) {
            (Outcome::Done(Status::Ok, _), bytes) => Ok(bytes),
            (Outcome::Done(status, _), bytes) => {
                assert_eq!(bytes, before, "nothing of a bad block may reach the guest");
                Err(status)
            }
            other => panic!("{other:?}"),
        }
    }
}

fn closed(disk: Disk) -> MemMedium {
    let (medium, volume) = (disk.medium.clone(), Arc::clone(disk.volume()));
    drop(disk);
    volume.close().unwrap();
    medium
}

#[test]
fn what_is_written_reads_back_however_the_disk_was_left() {
    for cipher in TAGGED {
        let mut disk = tagged(cipher);
        let data = blocks(7, 40);
        disk.append(1, &data[..4096 * 3]);
        disk.append(1, &data[4096 * 3..]);
        let check = |mut disk: Disk| {
            assert_eq!(disk.read_zone(1)[..data.len()], data, "{cipher}");
            assert!(disk.read_zone(1)[data.len()..].iter().all(|&b| b == 0));
            assert_eq!(disk.volume().integrity_stats().bad_blocks, 0);
            disk
        };
        let disk = check(disk);
        let disk = check(Disk::open(disk.killed()));
        check(Disk::open(closed(disk)));
    }
}

#[test]
fn a_power_cut_that_loses_nothing_loses_nothing() {
    for cipher in TAGGED {
        let mut disk = tagged(cipher);
        disk.append(2, &blocks(1, 5));
        disk.flush();
        disk.append(2, &blocks(2, 3));
        disk.append(3, &blocks(3, BLOCKS_TO_CAPACITY / 3));
        disk.append(3, &blocks(4, BLOCKS_TO_CAPACITY / 3));
        disk.append(3, &blocks(5, BLOCKS_TO_CAPACITY / 3));
        let medium = disk.medium.control().crash_with(|_| Fate::Kept);
        let disk = Disk::open_with(medium, CUT);
        assert_eq!(disk.record(2).written, Blocks(8));
        assert_eq!(
            (disk.state(2), disk.state(3)),
            (ZoneState::Closed, ZoneState::Full)
        );
        assert_eq!(disk.record(3).durable.0, BLOCKS_TO_CAPACITY as u64);
    }
}

#[test]
fn records_that_were_lost_are_made_good_from_tags() {
    let mut disk = tagged(Cipher::Aes256Gcm);
    let data = blocks(1, 5);
    disk.append(2, &data);
    let records = disk.layout().data_offset(ZoneIndex(0));
    let medium = disk.medium.control().crash_with(|unsynced| {
        if unsynced.range.start < records {
            Fate::Lost
        } else {
            Fate::Kept
        }
    });
    let mut disk = Disk::open_with(medium, CUT);
    assert_eq!(disk.state(2), ZoneState::Closed);
    assert_eq!(disk.read_zone(2)[..data.len()], data);
}

#[test]
fn any_power_cut_leaves_a_prefix_that_holds_what_was_flushed() {
    for cipher in TAGGED {
        let mut disk = tagged(cipher);
        let flushed = blocks(1, 5);
        disk.append(2, &flushed);
        disk.flush();
        let later = [blocks(2, 3), blocks(3, 1), blocks(4, 6)];
        for data in &later {
            disk.append(2, data);
        }
        let all = [flushed.concat_with(&later), noise(0)].concat();
        let mut lengths = std::collections::BTreeSet::new();
        for seed in 0..300 {
            let medium = disk.medium.control().crash(seed);
            let mut after = Disk::open_with(medium, CUT);
            let written = after.record(2).written;
            assert!((5..=15).contains(&written.0), "seed {seed}");
            lengths.insert(written.0);
            let len = usize::try_from(written.0 * BLOCK).unwrap();
            let found = after.read_zone(2);
            assert_eq!(found[..len], all[..len], "seed {seed}");
            assert!(found[len..].iter().all(|&b| b == 0), "seed {seed}");
            assert_eq!(
                after.volume().integrity_stats().bad_blocks,
                0,
                "seed {seed}"
            );
        }
        assert!(
            lengths.len() > 3,
            "the cuts are too much alike: {lengths:?}"
        );
    }
}

trait ConcatWith {
    fn concat_with(&self, rest: &[Vec<u8>]) -> Vec<u8>;
}

impl ConcatWith for Vec<u8> {
    fn concat_with(&self, rest: &[Vec<u8>]) -> Vec<u8> {
        let mut all = self.clone();
        all.extend(rest.iter().flatten());
        all
    }
}

#[test]
fn a_block_of_a_failed_write_never_passes_for_the_one_in_its_place() {
    let mut disk = tagged(Cipher::Aes256Gcm);
    let control = disk.medium.control();
    disk.append(1, &blocks(1, 2));
    disk.flush();
    // Both blocks reach the medium with their slots, and are reported as failed all the same.
    control.hold(&[Kind::Write]);
    let failed = disk.start(0, Command::Append(ZoneIndex(1), 2 * BLOCK), blocks(9, 2));
    disk.poll();
    let held = control.held();
    let offset = disk.layout().data_offset(ZoneIndex(1)) + 2 * BLOCK;
    let slots = control.peek(disk.slot_offset(1, 2), 2 * SLOT_LEN);
    let medium = control.kill_mid_flight(1);
    let ciphertext = medium.control().peek(offset, 2 * 4096);
    for op in held {
        control.release_failing(op.id, 5);
    }
    control.hold(&[]);
    assert_eq!(disk.finish(&failed), Outcome::Done(Status::IoError, 0));
    let first = disk.slot(1, 2).stamp();
    disk.append(1, &blocks(4, 2));
    let second = disk.slot(1, 2).stamp();
    assert_eq!(second.epoch, first.epoch);
    assert_eq!(
        second.counter,
        first.counter + 2,
        "two counters were used up"
    );
    // The cut: the medium has the failed write and not the one in its place.
    let medium = control.crash_with(|_| Fate::Lost);
    medium.control().overwrite(offset, &ciphertext);
    medium.control().overwrite(disk.slot_offset(1, 2), &slots);
    let disk = Disk::open_with(medium, CUT);
    assert_eq!(disk.record(1).written, Blocks(2));
}

#[test]
fn writes_behind_a_failed_one_fail_and_the_zone_goes_on_from_there() {
    for cipher in TAGGED {
        let mut disk = tagged(cipher);
        let control = disk.medium.control();
        disk.append(1, &blocks(1, 2));
        control.hold(&[Kind::Write]);
        let append = |disk: &mut Disk, stamp| {
            let memory = disk.start(0, Command::Append(ZoneIndex(1), BLOCK), blocks(stamp, 1));
            // A batch of its own each, or the two would be one write.
            disk.poll();
            memory
        };
        let (one, two) = (append(&mut disk, 2), append(&mut disk, 3));
        let held = control.held();
        control.hold(&[]);
        control.release_failing(held[0].id, 5);
        control.release(held[1].id);
        assert_eq!(disk.finish(&one), Outcome::Done(Status::IoError, 0));
        assert_eq!(disk.finish(&two), Outcome::Done(Status::IoError, 0));
        let next = disk.append(1, &blocks(6, 1));
        assert_eq!(next, Sector((ZONE + 2 * BLOCK) / 512));
        assert_eq!(disk.block(1, 2), Ok(blocks(6, 1)));
        let mut disk = Disk::open(disk.killed());
        assert_eq!(disk.block(1, 2), Ok(blocks(6, 1)));
        assert_eq!(disk.record(1).written, Blocks(3));
    }
}

#[test]
fn slots_that_cannot_be_written_fail_the_write_they_belong_to() {
    let mut disk = tagged(Cipher::Aes256Gcm);
    let control = disk.medium.control();
    disk.append(1, &blocks(1, 2));
    let slots = disk.slot_offset(1, 0);
    control.fail_range(Kind::MetadataWrite, slots..slots + 4096, Fault::Fail(28));
    let status = disk.status(Command::Append(ZoneIndex(1), BLOCK));
    assert_eq!(status, Status::IoError);
    control.heal();
    assert_eq!(disk.record(1).written, Blocks(2));
    disk.append(1, &blocks(2, 1));
    assert_eq!(disk.block(1, 2), Ok(blocks(2, 1)));
}

#[test]
fn a_bad_block_is_an_error_and_its_neighbours_are_readable() {
    for cipher in TAGGED {
        let mut disk = tagged(cipher);
        let data = blocks(1, 6);
        disk.append(1, &data);
        disk.flip(disk.layout().data_offset(ZoneIndex(1)) + 2 * BLOCK + 77);
        disk.flip(disk.slot_offset(1, 4) + 20);
        for block in 0..6 {
            let found = disk.block(1, block);
            if block == 2 || block == 4 {
                assert_eq!(found, Err(Status::IoError), "{cipher} {block}");
            } else {
                let at = usize::try_from(block).unwrap() * 4096;
                assert_eq!(found.as_deref(), Ok(&data[at..at + 4096]));
            }
        }
        assert_eq!(disk.volume().integrity_stats().bad_blocks, 2);
        let whole = Command::Read(span(ZONE / 512, 6 * BLOCK));
        assert_eq!(disk.status(whole), Status::IoError);
    }
}

#[test]
fn blocks_that_change_places_fail_and_so_does_an_older_generation() {
    let mut disk = tagged(Cipher::Aes256Gcm);
    let control = disk.medium.control();
    let (layout, len) = (disk.layout(), 4096);
    let put = |to: (u64, u64), block: &[u8], slot: &[u8]| {
        control.overwrite(to.0, block);
        control.overwrite(to.1, slot);
    };
    let places = |disk: &Disk, zone, block| {
        let data = layout.data_offset(ZoneIndex(zone)) + block * BLOCK;
        (data, disk.slot_offset(zone, block))
    };
    disk.append(1, &blocks(1, 3));
    disk.append(2, &blocks(2, 3));
    let (here, there) = (places(&disk, 1, 0), places(&disk, 2, 0));
    let taken = |at: (u64, u64)| (control.peek(at.0, len), control.peek(at.1, SLOT_LEN));
    let (one, two) = (taken(here), taken(there));
    put(here, &two.0, &two.1);
    put(there, &one.0, &one.1);
    assert_eq!(disk.block(1, 0), Err(Status::IoError));
    assert_eq!(disk.block(2, 0), Err(Status::IoError));
    let next = places(&disk, 1, 1);
    put(next, &one.0, &one.1);
    assert_eq!(disk.block(1, 1), Err(Status::IoError));
    put(here, &one.0, &one.1);
    assert!(disk.block(1, 0).is_ok(), "put right again");
    assert_eq!(disk.zone(ZoneAction::Reset, 1), Status::Ok);
    disk.append(1, &blocks(1, 1));
    assert_eq!(disk.record(1).generation, Generation(1));
    put(here, &one.0, &one.1);
    assert_eq!(disk.block(1, 0), Err(Status::IoError));
}

#[test]
fn a_flush_is_one_sync() {
    let mut disk = tagged(Cipher::Aes256Gcm);
    disk.append(1, &blocks(1, 3));
    let before = disk.medium.control().counts().syncs;
    disk.flush();
    assert_eq!(disk.medium.control().counts().syncs, before + 1);
}

#[test]
fn a_cached_page_of_slots_is_no_excuse_for_a_block_written_after_it() {
    let mut disk = tagged(Cipher::Aes256Gcm);
    for block in 0..8 {
        let data = blocks(u8::try_from(block).unwrap(), 1);
        disk.append(1, &data);
        // Each read caches the page as it is now, without the slots to come.
        assert_eq!(disk.block(1, block), Ok(data));
    }
    let before = disk.volume().integrity_stats().slot_reads;
    for block in 0..8 {
        assert!(disk.block(1, block).is_ok());
    }
    assert_eq!(disk.volume().integrity_stats().slot_reads, before);
}

#[test]
fn records_put_back_from_an_older_copy_are_refused() {
    let mut disk = tagged(Cipher::Aes256Gcm);
    disk.append(1, &blocks(1, 3));
    let medium = closed(disk);
    let (layout, records) = {
        let layout = unlock(&medium, &credential()).unwrap().layout;
        let at = |copy| layout.record_offset(copy, ZoneIndex(1));
        let both = [crate::zone::RecordCopy::A, crate::zone::RecordCopy::B].map(at);
        (layout, both.map(|at| (at, medium.control().peek(at, 128))))
    };
    assert_eq!(records[0].1, records[1].1, "a clean disk has both alike");
    assert_eq!(layout.tag_slot_bytes(), 32);
    let mut disk = Disk::open(medium);
    disk.append(1, &blocks(2, 3));
    let medium = closed(disk);
    for (at, record) in &records {
        medium.control().overwrite(*at, record);
    }
    let unlocked = || unlock(&medium, &credential()).unwrap();
    let refused = Volume::open(medium.clone(), unlocked(), Options::default());
    assert!(matches!(refused, Err(VolumeError::ForeignRecords)));
    let accepting = Options {
        accept_records: true,
        ..Options::default()
    };
    let disk = Disk::open_with(medium.clone(), accepting);
    assert_eq!(disk.record(1).written, Blocks(3));
}

#[test]
fn a_second_cut_during_recovery_finds_the_same() {
    let mut disk = tagged(Cipher::Aes256Gcm);
    disk.append(2, &blocks(1, 5));
    disk.flush();
    disk.append(2, &blocks(2, 3));
    let medium = disk.medium.control().crash_with(|_| Fate::Kept);
    let image = Disk::open_with(medium.clone(), CUT);
    let again = image.medium.control();
    for seed in 0..50 {
        let disk = Disk::open_with(again.crash(seed), CUT);
        assert_eq!(disk.record(2).written, Blocks(8), "seed {seed}");
    }
}
