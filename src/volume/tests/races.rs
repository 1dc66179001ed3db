//! Regressions: what went wrong where two queues, a kill or a failure met at the wrong moment.

use super::*;
use crate::store::mem::Fate;
use crate::store::{FileMedium, FileStore};

/// A disk whose zones are all sequential.
fn sequential_disk() -> Disk {
    let geometry = GeometrySpec {
        conventional: 0,
        ..spec(crate::geometry::Model::HostManaged)
    };
    let geometry = geometry.validate().unwrap();
    let medium = MemMedium::new(Layout::new(&geometry, 0).unwrap().image_len());
    format(&medium, geometry, Cipher::Aes256Xts);
    Disk::open(medium)
}

/// The disk after a power cut that takes everything no sync covered.
fn after_cut(disk: &Disk) -> Disk {
    let medium = disk.medium.control().crash_with(|_| Fate::Lost);
    Disk::open(forget_boot(medium))
}

#[test]
fn a_flush_covers_what_was_written_before_a_kill() {
    let mut disk = Disk::new();
    disk.append(2, &blocks(3, 7));
    let mut disk = Disk::open(disk.killed());
    disk.flush();
    assert_eq!(after_cut(&disk).record(2).written.0, 7);
    disk.volume().close().unwrap();
    let mut disk = Disk::open(disk.medium.control().crash(1));
    disk.flush();
    assert_eq!(after_cut(&disk).record(2).written.0, 7);
}

/// Releases one held sync after the other, the newest first, and checks after each that what was
/// acknowledged survives a power cut.
fn release_syncs_and_cut(disk: &mut Disk, ops: &[Memory], zone: u32, least: u64) {
    let control = disk.medium.control();
    let mut ended = 0;
    for _ in 0..20 {
        disk.poll();
        if let Some(newest) = control.held().pop() {
            control.release(newest.id);
        }
        disk.poll();
        ended += ops.iter().filter(|op| disk.outcome(op).is_some()).count();
        if ended > 0 {
            assert!(after_cut(disk).record(zone).written.0 >= least);
        }
    }
    control.hold(&[]);
    control.release_all();
    assert_eq!(ended, ops.len(), "every operation ends");
}

#[test]
fn two_flushes_at_once_both_keep_their_promise() {
    let mut disk = Disk::new();
    disk.append(2, &blocks(3, 7));
    disk.medium.control().hold(&[Kind::Sync]);
    let ops = [0, 1].map(|queue| disk.start(queue, Command::Flush, vec![]));
    release_syncs_and_cut(&mut disk, &ops, 2, 7);
}

#[test]
fn a_write_through_append_is_durable_beside_another_queues_sync() {
    let mut disk = Disk::new();
    disk.volume().set_write_cache(false);
    disk.medium.control().hold(&[Kind::Sync]);
    let append = Command::Append(ZoneIndex(1), BLOCK);
    let ops = [0, 1].map(|queue| disk.start(queue, append, blocks(1, 1)));
    release_syncs_and_cut(&mut disk, &ops, 1, 1);
}

#[test]
fn a_finish_is_durable_beside_a_flush_of_another_queue() {
    let mut disk = Disk::new();
    disk.append(2, &blocks(3, 7));
    disk.medium.control().hold(&[Kind::Sync]);
    let finish = Command::Zone(ZoneAction::Finish, ZoneIndex(2));
    let ops = [
        disk.start(0, finish, vec![]),
        disk.start(1, Command::Flush, vec![]),
    ];
    release_syncs_and_cut(&mut disk, &ops, 2, 7);
}

#[test]
fn no_flush_succeeds_after_one_has_failed() {
    let mut disk = sequential_disk();
    disk.append(2, &blocks(3, 7));
    let control = disk.medium.control();
    control.fail_nth(Kind::Sync, 1, Fault::Fail(libc::EIO));
    for _ in 0..3 {
        assert_eq!(disk.status(Command::Flush), Status::IoError);
        assert_eq!(disk.record(2).durable.0, 0);
    }
    let disk = Disk::open(disk.killed());
    assert_eq!(
        disk.state(2),
        ZoneState::ReadOnly,
        "a kill does not heal it"
    );
    assert_eq!(disk.record(2).durable.0, 0);
}

#[test]
fn a_reset_that_was_killed_half_way_is_completed() {
    for again in [false, true] {
        let mut disk = Disk::new();
        disk.append(1, &blocks(1, 4));
        disk.flush();
        let (old, layout) = (disk.record(1), disk.volume().layout);
        disk.medium.control().hold(&[Kind::Sync]);
        let reset = Command::Zone(ZoneAction::Reset, ZoneIndex(1));
        let reset = disk.start(0, reset, vec![]);
        assert_eq!(disk.outcome(&reset), None);
        let mut disk = Disk::open(disk.killed());
        if again {
            assert_eq!(disk.zone(ZoneAction::Reset, 1), Status::Ok);
        }
        let len = usize::try_from(layout.image_len()).unwrap();
        let image = disk.medium.control().peek(0, len);
        let extent = usize::try_from(layout.data_offset(ZoneIndex(1))).unwrap();
        assert!(image[extent..extent + 4 * 4096].iter().all(|&b| b == 0));
        assert!(!image.windows(32).any(|window| window == old.salt.0));
    }
}

#[test]
fn a_zone_closed_before_its_first_write_was_over_is_empty_after_a_kill() {
    let mut disk = Disk::new();
    disk.medium.control().hold(&[Kind::Write]);
    for zone in 1..5 {
        let append = Command::Append(ZoneIndex(zone), BLOCK);
        disk.start(0, append, blocks(1, 1));
        disk.poll();
    }
    let disk = Disk::open(disk.killed());
    for zone in 1..5 {
        let record = disk.record(zone);
        assert!(record.state != ZoneState::Closed || record.written.0 > 0);
    }
}

#[test]
fn writes_of_a_queue_keep_their_order_behind_a_reset_of_another() {
    let mut disk = Disk::new();
    disk.append(1, &blocks(1, 4));
    let control = disk.medium.control();
    control.hold(&[Kind::Sync]);
    let reset = Command::Zone(ZoneAction::Reset, ZoneIndex(1));
    let reset = disk.start(1, reset, vec![]);
    disk.poll();
    let write = |at: u64| Command::Write(span(APPENDED_1 + at * 8, BLOCK));
    let first = disk.start(0, write(0), blocks(2, 1));
    disk.poll();
    control.hold(&[]);
    control.release_all();
    // The other queue is done and has told this one, which has not looked yet.
    let Disk { channels, done, .. } = &mut disk;
    for _ in 0..10 {
        channels[1].poll(done);
    }
    let second = disk.start(0, write(1), blocks(3, 1));
    for op in [&reset, &first, &second] {
        assert_eq!(disk.finish(op), Outcome::Done(Status::Ok, 0));
    }
    assert_eq!(disk.read_zone(1)[4096..8192], blocks(3, 1));
}

/// A file whose channels know no io_uring.
#[derive(Debug)]
struct NoRing(FileMedium);

impl Medium for NoRing {
    type Store = FileStore;

    fn open_store(&self, depth: u32) -> io::Result<FileStore> {
        Ok(self.0.open_synchronous(depth))
    }

    fn size(&self) -> io::Result<u64> {
        self.0.size()
    }

    fn alignment(&self) -> u64 {
        self.0.alignment()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, buf)
    }

    fn forget_cached(&self) {}

    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }
}

#[test]
fn one_poll_ends_a_flush_where_nothing_would_call_for_another() {
    let dir = tempfile::tempdir().unwrap();
    let geometry = spec(crate::geometry::Model::HostManaged)
        .validate()
        .unwrap();
    let len = Layout::new(&geometry, 0).unwrap().image_len();
    let file = FileMedium::create(&dir.path().join("image"), len, false).unwrap();
    let medium = NoRing(file);
    format(&medium, geometry, Cipher::Aes256Xts);
    let unlocked = unlock(&medium, &credential()).unwrap();
    let options = Options {
        queues: 1,
        keyslots: MIN_SLOTS,
        ..Options::default()
    };
    let volume = Arc::new(Volume::open(medium, unlocked, options).unwrap());
    let mut channel = channel::<_, Memory>(&volume, 0, 64).unwrap();
    assert!(channel.store_event().is_none());
    for command in [Command::Append(ZoneIndex(1), BLOCK), Command::Flush] {
        channel.start(command, Memory::new(0, blocks(1, 1)));
        let mut done = Vec::new();
        channel.poll(&mut done);
        assert_eq!(done.len(), 1, "{command:?}");
    }
}
