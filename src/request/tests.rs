//! Requests byte by byte: every layout a driver may choose, every one it may not.

use std::sync::Arc;

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::*;
use crate::geometry::GeometrySpec;
use crate::zone::ZoneState;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const MEMORY: usize = 1 << 20;
const STATUS_AT: u64 = 0x8000;

fn geometry(model: Model) -> Geometry {
    GeometrySpec {
        model,
        block_size: 4096,
        disk_size: 4 << 20,
        zone_size: 512 << 10,
        zone_capacity: 256 << 10,
        conventional: 2,
        max_open: 0,
        max_active: 0,
        max_append: 64 << 10,
    }
    .validate()
    .unwrap()
}

fn policy() -> Policy {
    Policy {
        geometry: geometry(Model::HostManaged),
        read_only: false,
        zoned: true,
    }
}

fn memory() -> Arc<GuestMemoryMmap> {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap())
}

/// `(address, len, device-writable)` each, chained.
fn descriptors(parts: &[(u64, u32, bool)]) -> Vec<Descriptor> {
    let last = parts.len().saturating_sub(1);
    parts
        .iter()
        .enumerate()
        .map(|(i, &(address, len, writable))| {
            let next = if i == last { 0 } else { NEXT };
            let flags = next | if writable { WRITE } else { 0 };
            Descriptor::new(address, len, flags, 0)
        })
        .collect()
}

/// Where the tests put the queue's descriptor table, and its size.
const TABLE_AT: u64 = 0xf_0000;
const QUEUE_SIZE: u16 = 64;

fn collect(
    memory: &Arc<GuestMemoryMmap>,
    descriptors: Vec<Descriptor>,
) -> Result<Chain, Malformed> {
    collect_at(memory, TABLE_AT, descriptors)
}

/// Collects the chain that begins at descriptor 5 with descriptors that lie one after the other.
fn collect_at(
    memory: &Arc<GuestMemoryMmap>,
    address: u64,
    descriptors: Vec<Descriptor>,
) -> Result<Chain, Malformed> {
    let head = 5;
    let table = DescriptorTable {
        address: GuestAddress(address),
        size: QUEUE_SIZE,
    };
    for (i, descriptor) in (head..).zip(descriptors) {
        let next = descriptor.has_next() && descriptor.next() == 0;
        let descriptor = match next {
            true => Descriptor::new(
                descriptor.addr().0,
                descriptor.len(),
                descriptor.flags(),
                (i + 1) % QUEUE_SIZE,
            ),
            false => descriptor,
        };
        let at = address + u64::from(i % QUEUE_SIZE) * 16;
        memory.write_obj(descriptor, GuestAddress(at)).unwrap();
    }
    let mut chain = Chain::default();
    chain.collect(memory, table, head)?;
    Ok(chain)
}

/// A request with `out` bytes of data from the driver and `into` for it, besides the status.
fn request(policy: &Policy, kind: u32, sector: u64, out: u32, into: u32) -> Request {
    let memory = memory();
    put_header(&memory, 0, kind, sector);
    let parts = [
        (0, 16, false),
        (0x1000, out, false),
        (0x1_0000, into, true),
        (STATUS_AT, 1, true),
    ];
    Request::parse(collect(&memory, descriptors(&parts)).unwrap(), policy)
}

fn put_header(memory: &GuestMemoryMmap, at: u64, kind: u32, sector: u64) {
    memory.write_obj(kind, GuestAddress(at)).unwrap();
    memory.write_obj(sector, GuestAddress(at + 8)).unwrap();
}

fn command(
    policy: &Policy,
    kind: u32,
    sector: u64,
    out: u32,
    into: u32,
) -> Result<Command, Status> {
    request(policy, kind, sector, out, into).command
}

fn zoned(kind: u32, sector: u64, out: u32, into: u32) -> Result<Command, Status> {
    command(&policy(), kind, sector, out, into)
}

/// First sector of a zone.
fn start(zone: u64) -> u64 {
    zone * 1024
}

#[test]
fn a_header_may_be_split_at_any_byte_and_merged_with_its_data() {
    for cut in 0..=16 {
        let memory = memory();
        put_header(&memory, 0, blk::VIRTIO_BLK_T_OUT, 8);
        // The header's two parts lie apart; the second runs on into the data.
        let mut tail = vec![0; 16 - cut];
        memory
            .read_slice(&mut tail, GuestAddress(cut as u64))
            .unwrap();
        memory.write_slice(&tail, GuestAddress(0x4000)).unwrap();
        let after = u32::try_from(tail.len()).unwrap() + 4096;
        memory
            .write_slice(&[7; 4096], GuestAddress(0x4000 + tail.len() as u64))
            .unwrap();
        let parts = [
            (0, u32::try_from(cut).unwrap(), false),
            (0x4000, after, false),
            (STATUS_AT, 1, true),
        ];
        let chain = collect(&memory, descriptors(&parts)).unwrap();
        let Request { command, chain } = Request::parse(chain, &policy());
        let span = Span {
            sector: Sector(8),
            len: 4096,
        };
        assert_eq!(command, Ok(Command::Write(span)), "cut at {cut}");
        let mut data = [0; 4096];
        chain.read_data(0, &mut data).unwrap();
        assert_eq!(data, [7; 4096]);
    }
}

#[test]
fn the_status_is_the_last_writable_byte_wherever_it_lies() {
    let memory = memory();
    put_header(&memory, 0, blk::VIRTIO_BLK_T_IN, 0);
    let parts = [(0, 16, false), (0x1000, 100, true), (0x2000, 3997, true)];
    let chain = collect(&memory, descriptors(&parts)).unwrap();
    assert_eq!(chain.data_in_len(), 4096);
    chain.write(98, &[1, 2, 3]).unwrap();
    assert_eq!(chain.answer(Outcome::Done(Status::Unsupported, 0)), Ok(0));
    let byte = |at| memory.read_obj::<u8>(GuestAddress(at)).unwrap();
    assert_eq!([byte(0x1062), byte(0x1063), byte(0x2000)], [1, 2, 3]);
    assert_eq!(byte(0x2000 + 3996), 2);
    assert_eq!(chain.answer(Outcome::Done(Status::Ok, 4096)), Ok(4097));
}

#[test]
fn the_append_sector_comes_first_and_the_status_last_for_any_tail() {
    for tail in [9, 10, 16, 64] {
        let memory = memory();
        put_header(&memory, 0, blk::VIRTIO_BLK_T_ZONE_APPEND, start(2));
        memory
            .write_slice(&[0xaa; 64], GuestAddress(STATUS_AT))
            .unwrap();
        let parts = [
            (0, 16, false),
            (0x1000, 4096, false),
            (STATUS_AT, tail, true),
        ];
        let chain = collect(&memory, descriptors(&parts)).unwrap();
        let Request { command, chain } = Request::parse(chain, &policy());
        assert_eq!(command, Ok(Command::Append(ZoneIndex(2), 4096)));
        let contiguous = if tail == 9 { 9 } else { 8 };
        let answered = chain.answer(Outcome::Appended(Sector(0x1234)));
        assert_eq!(answered, Ok(contiguous));
        let mut bytes = [0; 64];
        memory
            .read_slice(&mut bytes, GuestAddress(STATUS_AT))
            .unwrap();
        let last = tail as usize - 1;
        assert_eq!(bytes[..8], 0x1234u64.to_le_bytes());
        assert_eq!(bytes[last], 0);
        assert!(bytes[8..last].iter().all(|&byte| byte == 0xaa));
        assert!(bytes[last + 1..].iter().all(|&byte| byte == 0xaa));
    }
    let short = |into| command_with_tail(blk::VIRTIO_BLK_T_ZONE_APPEND, into);
    assert_eq!(short(7), Err(Status::IoError));
    assert!(short(8).is_ok());
}

fn command_with_tail(kind: u32, into: u32) -> Result<Command, Status> {
    zoned(kind, start(2), 4096, into)
}

#[test]
fn chains_that_cannot_be_answered_are_malformed() {
    let memory = memory();
    let refuse = |descriptors| collect(&memory, descriptors).unwrap_err();
    let header = |flags, next| Descriptor::new(0, 16, flags, next);
    assert_eq!(refuse(vec![header(NEXT, QUEUE_SIZE)]), Malformed::BrokenOff);
    assert_eq!(refuse(vec![header(NEXT, 5)]), Malformed::TooLong, "a loop");
    assert_eq!(
        collect_at(&memory, MEMORY as u64, vec![]).unwrap_err(),
        Malformed::BrokenOff
    );
    assert_eq!(refuse(descriptors(&[(0, 16, false)])), Malformed::NoStatus);
    assert_eq!(
        refuse(descriptors(&[(0, 16, false), (STATUS_AT, 0, true)])),
        Malformed::NoStatus
    );
    assert_eq!(
        refuse(descriptors(&[(STATUS_AT, 1, true), (0, 16, false)])),
        Malformed::Order
    );
    for (address, len) in [
        (MEMORY as u64, 1),
        (MEMORY as u64 - 1, 2),
        (u64::MAX, 1),
        (u64::MAX - 1, u32::MAX),
    ] {
        let parts = [(0, 16, false), (address, len, true)];
        assert_eq!(refuse(descriptors(&parts)), Malformed::Address);
    }
}

#[test]
fn an_indirect_table_holds_a_whole_chain_and_no_other_table() {
    const INDIRECT: u16 = 4;
    const AT: u64 = 0xe_0000;
    let memory = memory();
    put_header(&memory, 0, blk::VIRTIO_BLK_T_IN, 0);
    let inside = descriptors(&[(0, 16, false), (0x1000, 4096, true), (STATUS_AT, 1, true)]);
    let pointer = |len, flags| vec![Descriptor::new(AT, len, INDIRECT | flags, 0)];
    let try_table = |inside: &[Descriptor], len, flags| {
        for (i, descriptor) in inside.iter().enumerate() {
            let next = u16::try_from(i).unwrap() + 1;
            let (flags, len) = (descriptor.flags(), descriptor.len());
            let linked = Descriptor::new(descriptor.addr().0, len, flags, next);
            let at = GuestAddress(AT + 16 * i as u64);
            memory.write_obj(linked, at).unwrap();
        }
        collect(&memory, pointer(len, flags)).map(|chain| chain.writable_len())
    };
    assert_eq!(try_table(&inside, 48, 0), Ok(4097));
    assert_eq!(
        try_table(&inside, 48, WRITE),
        Ok(4097),
        "the flag says nothing"
    );
    assert_eq!(try_table(&inside, 64, 0), Ok(4097), "room to spare");
    assert_eq!(try_table(&inside, 32, 0), Err(Malformed::BrokenOff));
    for len in [0, 15, 47, 49, 16 * 65_536] {
        assert_eq!(try_table(&inside, len, 0), Err(Malformed::Indirect));
    }
    assert_eq!(try_table(&inside, 48, NEXT), Err(Malformed::Indirect));
    assert_eq!(try_table(&pointer(48, 0), 16, 0), Err(Malformed::Indirect));
    let long = descriptors(&vec![(STATUS_AT, 1, true); 65]);
    assert_eq!(try_table(&long, 16 * 65, 0), Err(Malformed::TooLong));
}

#[test]
fn a_header_cut_short_is_an_io_error() {
    for len in 0..16 {
        let memory = memory();
        let parts = [(0, len, false), (STATUS_AT, 1, true)];
        let chain = collect(&memory, descriptors(&parts)).unwrap();
        assert_eq!(
            Request::parse(chain, &policy()).command,
            Err(Status::IoError)
        );
    }
}

#[test]
fn reads_and_writes_keep_to_the_disk_in_whole_blocks() {
    use blk::{VIRTIO_BLK_T_IN as IN, VIRTIO_BLK_T_OUT as OUT};
    let end = 8192;
    for (sector, len) in [
        (0, 0),
        (0, 511),
        (end, 4096),
        (end - 8, 8192),
        (1 << 55, 4096),
        (u64::MAX, 4096),
        (u64::MAX - 7, 4096),
    ] {
        assert_eq!(zoned(IN, sector, 0, len), Err(Status::IoError));
        assert_eq!(zoned(OUT, sector, len, 0), Err(Status::IoError));
    }
    assert!(zoned(IN, end - 8, 0, 4096).is_ok());
    assert_eq!(zoned(IN, 1, 0, 4096), Err(Status::IoError));
    assert_eq!(zoned(IN, 0, 0, 512), Err(Status::IoError));
    assert_eq!(zoned(OUT, 1, 4096, 0), Err(Status::IoError));
    let unaligned = Err(Status::ZoneUnalignedWritePointer);
    assert_eq!(zoned(OUT, start(2) + 1, 4096, 0), unaligned);
    assert_eq!(zoned(OUT, start(2), 512, 0), unaligned);
}

#[test]
fn only_conventional_zones_may_be_crossed() {
    use blk::{VIRTIO_BLK_T_IN as IN, VIRTIO_BLK_T_OUT as OUT};
    let invalid = Err(Status::ZoneInvalidCommand);
    assert!(zoned(IN, start(1) - 8, 0, 8192).is_ok());
    assert!(zoned(OUT, start(1) - 8, 8192, 0).is_ok());
    assert_eq!(zoned(IN, start(2) - 8, 0, 8192), invalid);
    assert_eq!(zoned(OUT, start(2) - 8, 8192, 0), invalid);
    assert_eq!(zoned(IN, start(3) - 8, 0, 8192), invalid);
}

#[test]
fn appends_name_a_sequential_zone_and_keep_to_the_limit() {
    let append = |sector, out| zoned(blk::VIRTIO_BLK_T_ZONE_APPEND, sector, out, 15);
    let invalid = Err(Status::ZoneInvalidCommand);
    assert_eq!(
        append(start(2), 65536),
        Ok(Command::Append(ZoneIndex(2), 65536))
    );
    assert_eq!(append(start(2) + 8, 4096), invalid);
    assert_eq!(append(start(1), 4096), invalid);
    assert_eq!(append(start(8), 4096), invalid);
    assert_eq!(append(start(2), 0), invalid);
    assert_eq!(append(start(2), 69632), invalid);
    assert_eq!(
        append(start(2), 4608),
        Err(Status::ZoneUnalignedWritePointer)
    );
}

#[test]
fn zone_management_names_the_start_of_a_sequential_zone() {
    let kinds = [
        (blk::VIRTIO_BLK_T_ZONE_OPEN, ZoneAction::Open),
        (blk::VIRTIO_BLK_T_ZONE_CLOSE, ZoneAction::Close),
        (blk::VIRTIO_BLK_T_ZONE_FINISH, ZoneAction::Finish),
        (blk::VIRTIO_BLK_T_ZONE_RESET, ZoneAction::Reset),
    ];
    for (kind, action) in kinds {
        assert_eq!(
            zoned(kind, start(3), 0, 0),
            Ok(Command::Zone(action, ZoneIndex(3)))
        );
        for sector in [0, start(3) + 1, start(8), u64::MAX] {
            assert_eq!(zoned(kind, sector, 0, 0), Err(Status::ZoneInvalidCommand));
        }
    }
    let all = blk::VIRTIO_BLK_T_ZONE_RESET_ALL;
    assert_eq!(zoned(all, u64::MAX, 0, 0), Ok(Command::ResetAll));
    let report = blk::VIRTIO_BLK_T_ZONE_REPORT;
    assert_eq!(
        zoned(report, start(3) + 5, 0, 64),
        Ok(Command::Report(ZoneIndex(3)))
    );
    assert_eq!(
        zoned(report, start(8), 0, 64),
        Err(Status::ZoneInvalidCommand)
    );
}

#[test]
fn a_read_only_disk_changes_nothing() {
    let policy = Policy {
        read_only: true,
        ..policy()
    };
    let kinds = [
        blk::VIRTIO_BLK_T_OUT,
        blk::VIRTIO_BLK_T_ZONE_APPEND,
        blk::VIRTIO_BLK_T_ZONE_OPEN,
        blk::VIRTIO_BLK_T_ZONE_CLOSE,
        blk::VIRTIO_BLK_T_ZONE_FINISH,
        blk::VIRTIO_BLK_T_ZONE_RESET,
        blk::VIRTIO_BLK_T_ZONE_RESET_ALL,
    ];
    for kind in kinds {
        assert_eq!(
            command(&policy, kind, start(2), 4096, 15),
            Err(Status::IoError)
        );
    }
    assert!(command(&policy, blk::VIRTIO_BLK_T_IN, start(2), 0, 4096).is_ok());
}

#[test]
fn a_zoned_disk_does_nothing_for_a_driver_that_knows_no_zones() {
    let policy = Policy {
        zoned: false,
        ..policy()
    };
    for kind in 0..32 {
        let status = match kind {
            15 | 16 | 18 | 20 | 22 | 24 | 26 => Status::Unsupported,
            _ => Status::IoError,
        };
        assert_eq!(command(&policy, kind, 0, 4096, 4096), Err(status));
    }
}

#[test]
fn unknown_and_unoffered_types_are_unsupported() {
    let plain = Policy {
        geometry: geometry(Model::Plain),
        ..policy()
    };
    let unsupported = Err(Status::Unsupported);
    for kind in [2, 3, 5, 10, 14, 17, 19, 27, 28, 0x8000_0000, u32::MAX] {
        assert_eq!(zoned(kind, 0, 4096, 4096), unsupported, "type {kind}");
        assert_eq!(command(&plain, kind, 0, 4096, 4096), unsupported);
    }
    for kind in [15, 16, 18, 20, 22, 24, 26] {
        assert_eq!(command(&plain, kind, 0, 4096, 4096), unsupported);
    }
    for kind in [11, 13] {
        assert_eq!(zoned(kind, 0, 16, 0), unsupported, "type {kind}");
    }
}

fn range(kind: u32, sector: u64, sectors: u32, flags: u32, out: u32) -> Result<Command, Status> {
    let plain = Policy {
        geometry: geometry(Model::Plain),
        ..policy()
    };
    let memory = memory();
    put_header(&memory, 0, kind, 0);
    memory.write_obj(sector, GuestAddress(16)).unwrap();
    memory.write_obj(sectors, GuestAddress(24)).unwrap();
    memory.write_obj(flags, GuestAddress(28)).unwrap();
    let parts = [(0, 16 + out, false), (STATUS_AT, 1, true)];
    let chain = collect(&memory, descriptors(&parts)).unwrap();
    Request::parse(chain, &plain).command
}

#[test]
fn discard_and_write_zeroes_check_their_one_segment() {
    use blk::{VIRTIO_BLK_T_DISCARD as DISCARD, VIRTIO_BLK_T_WRITE_ZEROES as ZEROES};
    let span = Span {
        sector: Sector(8),
        len: 8192,
    };
    assert_eq!(range(DISCARD, 8, 16, 0, 16), Ok(Command::Discard(span)));
    assert_eq!(range(ZEROES, 8, 16, 0, 16), Ok(Command::WriteZeroes(span)));
    assert_eq!(range(ZEROES, 8, 16, 1, 16), Ok(Command::WriteZeroes(span)));
    assert_eq!(range(DISCARD, 8, 16, 1, 16), Err(Status::Unsupported));
    for flags in [2, 3, u32::MAX] {
        for kind in [DISCARD, ZEROES] {
            assert_eq!(range(kind, 8, 16, flags, 16), Err(Status::Unsupported));
        }
    }
    for (sector, sectors, out) in [
        (8, 16, 0),
        (8, 16, 15),
        (8, 16, 32),
        (8, 0, 16),
        (4, 16, 16),
        (8, 17, 16),
        (8192, 8, 16),
        (u64::MAX, 8, 16),
        (0, u32::MAX, 16),
    ] {
        assert_eq!(
            range(DISCARD, sector, sectors, 0, out),
            Err(Status::IoError)
        );
        assert_eq!(range(ZEROES, sector, sectors, 0, out), Err(Status::IoError));
    }
}

#[test]
fn the_config_space_is_96_bytes_and_answers_any_range() {
    let limits = DeviceLimits {
        queues: 3,
        queue_size: 256,
    };
    let config = ConfigSpace::new(&geometry(Model::HostManaged), limits);
    let all = config.read(0, 96);
    let le32 = |at: usize| u32::from_le_bytes(all[at..at + 4].try_into().unwrap());
    assert_eq!(all[..8], 8192u64.to_le_bytes());
    assert_eq!((le32(12), le32(20)), (254, 4096));
    assert_eq!(all[34..36], [3, 0]);
    assert_eq!(
        [72, 76, 80, 84, 88].map(le32),
        [1024, 0, 0, 128, 4096],
        "zone size, open, active, append, granularity"
    );
    assert_eq!(all[92..], [1, 0, 0, 0]);
    for offset in 0..100u32 {
        for size in 0..100u32 {
            let read = config.read(offset, size);
            assert_eq!(read.len(), size as usize);
            let known = all.get(offset as usize..).unwrap_or_default();
            let known = &known[..known.len().min(read.len())];
            assert!(read.starts_with(known));
            assert!(read[known.len()..].iter().all(|&byte| byte == 0));
        }
    }
    assert_eq!(config.read(u32::MAX, 4), [0; 4]);
}

#[test]
fn only_the_write_cache_byte_can_be_written() {
    assert_eq!(ConfigSpace::requested_writeback(32, &[0]), Some(false));
    assert_eq!(
        ConfigSpace::requested_writeback(30, &[9, 9, 1, 9]),
        Some(true)
    );
    for (offset, len) in [(33, 4), (0, 32), (31, 1), (u32::MAX, 8)] {
        assert_eq!(
            ConfigSpace::requested_writeback(offset, &vec![1; len]),
            None
        );
    }
}

#[test]
fn a_plain_disk_offers_ranges_and_no_zones() {
    let limits = DeviceLimits {
        queues: 1,
        queue_size: 128,
    };
    let all = ConfigSpace::new(&geometry(Model::Plain), limits).read(0, 96);
    assert!(all[72..].iter().all(|&byte| byte == 0));
    let le32 = |at: usize| u32::from_le_bytes(all[at..at + 4].try_into().unwrap());
    assert_eq!([40, 44, 48, 52].map(le32), [1, 8, 8192, 1]);
    assert!(le32(36) > 1 << 30);
    assert_eq!(all[56], 0);
}

#[test]
fn a_zone_descriptor_is_64_bytes_as_specified() {
    let zone = crate::zone::ZoneInfo {
        start: Sector(1024),
        len: Sector(1024),
        capacity: Sector(512),
        write_pointer: Sector(1032),
        kind: ZoneType::Sequential,
        state: ZoneState::Closed,
    };
    let bytes = encode_zone(&zone);
    assert_eq!(bytes[..8], 512u64.to_le_bytes());
    assert_eq!(bytes[8..16], 1024u64.to_le_bytes());
    assert_eq!(bytes[16..24], 1032u64.to_le_bytes());
    assert_eq!(bytes[24..26], [2, 4]);
    assert!(bytes[26..].iter().all(|&byte| byte == 0));
    assert_eq!(report_header(3)[..8], 3u64.to_le_bytes());
}
