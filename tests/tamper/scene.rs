//! The disks under attack, what they hold, and how a disk that was tampered with is judged.

use std::collections::BTreeMap;
use std::fmt;

use zonevault::crypt::Cipher;
use zonevault::format::HeaderCopy;
use zonevault::format::Layout;
use zonevault::geometry::ZoneIndex;
use zonevault::integrity::SLOT_LEN;
use zonevault::request::{Status, ZoneAction};
use zonevault::store::mem::MemMedium;
use zonevault::volume::Options;
use zonevault::zone::{RecordCopy, ZoneState};

use crate::disk::{Disk, Shape, bytes_of, medium_of};

/// Bytes of a zone record.
pub const RECORD: usize = 128;

/// The ciphers whose blocks have tags.
pub const TAGGED: [Cipher; 2] = [Cipher::Aes256Gcm, Cipher::Aes256XtsCrc64];

/// The smallest disk with a zone in every condition.
pub const fn shape(cipher: Cipher) -> Shape {
    Shape {
        cipher,
        block: 512,
        capacity: 16,
        zones: 6,
        conventional: 0,
    }
}

/// A zone of [`shape`] in which nothing was written. The others: what the tour leaves in them.
pub const EMPTY: u32 = 0;
/// Five blocks, flushed.
pub const PARTLY: u32 = 1;
/// Written to its end, flushed.
pub const FULL: u32 = 2;
/// Three blocks, then finished.
pub const FINISHED: u32 = 3;
/// Reset once, then four blocks, flushed.
pub const RESET: u32 = 4;
/// Six blocks, the last two not flushed.
pub const TAIL: u32 = 5;
/// Blocks of each that hold data.
pub const WRITTEN: [u64; 6] = [0, 5, 16, 3, 4, 6];
/// Blocks of each that a flush covered.
pub const FLUSHED: [u64; 6] = [0, 5, 16, 3, 4, 4];

/// Options that find tag slots on the medium, not in memory.
pub const UNCACHED: Options = Options {
    queues: 1,
    keyslots: 16,
    read_only: false,
    after_power_cut: false,
    accept_records: false,
    tag_cache: 0,
};
/// The same for a disk whose host lost its power.
pub const CUT: Options = Options {
    after_power_cut: true,
    ..UNCACHED
};

/// How the disk under attack was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Left {
    /// Closed in order.
    Clean,
    /// Its daemon was killed.
    Killed,
    /// The power failed. Nothing was lost in it: whatever is missing, tampering took.
    Cut,
}

impl Left {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Clean, Self::Killed, Self::Cut];

    /// How it is opened then.
    pub const fn options(self) -> Options {
        match self {
            Self::Cut => CUT,
            _ => UNCACHED,
        }
    }

    /// Leaves it so.
    pub fn leave(self, disk: Disk) -> MemMedium {
        match self {
            Self::Clean => disk.close(),
            Self::Killed | Self::Cut => disk.kill(),
        }
    }
}

/// Blocks that tell which they are: `life` is the zone's generation, or what else sets them apart.
pub fn blocks(shape: Shape, zone: u32, life: u8, range: std::ops::Range<u64>) -> Vec<u8> {
    let name = |block: u64| {
        let place = [u8::try_from(zone).unwrap(), u8::try_from(block).unwrap()];
        let text = [place[0], place[1], life, 0xa5];
        (0..shape.block_len()).map(move |at| text[at % 4] ^ u8::try_from(at % 251).unwrap())
    };
    range.flat_map(name).collect()
}

/// What the guest has written after the tour, zone by zone.
pub fn content(shape: Shape) -> Vec<Vec<u8>> {
    (0..shape.zones)
        .map(|zone| {
            let life = u8::from(zone == RESET);
            blocks(shape, zone, life, 0..WRITTEN[zone as usize])
        })
        .collect()
}

/// Brings a new disk into every condition.
pub fn tour(disk: &mut Disk, shape: Shape) {
    disk.append(RESET, &blocks(shape, RESET, 0, 0..7));
    disk.flush();
    disk.zone(ZoneAction::Reset, RESET);
    let content = content(shape);
    for zone in [PARTLY, FULL, FINISHED, RESET] {
        disk.append(zone, &content[zone as usize]);
    }
    disk.zone(ZoneAction::Finish, FINISHED);
    let (flushed, rest) = content[TAIL as usize].split_at(4 * shape.block_len());
    disk.append(TAIL, flushed);
    disk.flush();
    disk.append(TAIL, rest);
}

/// The image after the tour.
pub fn image(shape: Shape, left: Left) -> Vec<u8> {
    let mut disk = Disk::open(shape.format(), UNCACHED).unwrap();
    tour(&mut disk, shape);
    bytes_of(&left.leave(disk))
}

/// Where things lie in an image, as ranges of it.
#[derive(Clone, Copy, Debug)]
pub struct Places {
    shape: Shape,
    layout: Layout,
}

/// A range of an image.
pub type Range = std::ops::Range<usize>;

fn range(offset: u64, len: usize) -> Range {
    let at = usize::try_from(offset).unwrap();
    at..at + len
}

impl Places {
    /// Those of a disk of this shape.
    pub fn of(shape: Shape) -> Self {
        let layout = shape.layout();
        Self { shape, layout }
    }

    /// A copy of the header.
    pub fn header(&self, copy: HeaderCopy) -> Range {
        range(Layout::header_offset(copy), 4096)
    }

    /// A protector slot.
    pub fn protector(&self, slot: u32) -> Range {
        range(Layout::protector_offset(slot), 4096)
    }

    /// From the protectors to the records: zero, and reserved.
    pub fn gap(&self) -> Range {
        self.protector(7).end..range(self.layout.record_area(RecordCopy::A).0, 0).start
    }

    /// A copy of a zone's record.
    pub fn record(&self, copy: RecordCopy, zone: u32) -> Range {
        range(self.layout.record_offset(copy, ZoneIndex(zone)), RECORD)
    }

    /// Both copies of all records, padding included.
    pub fn records(&self) -> Range {
        let (a, len) = self.layout.record_area(RecordCopy::A);
        range(a, 2 * usize::try_from(len).unwrap())
    }

    /// Behind the last record of a copy.
    pub fn record_padding(&self, copy: RecordCopy) -> Range {
        let (start, len) = self.layout.record_area(copy);
        let area = range(start, usize::try_from(len).unwrap());
        self.record(copy, self.shape.zones - 1).end..area.end
    }

    /// From the records to the first zone.
    pub fn lead_in(&self) -> Range {
        let first = range(self.layout.data_offset(ZoneIndex(0)), 0);
        self.records().end..first.start
    }

    /// The data of a block.
    pub fn data(&self, zone: u32, block: u64) -> Range {
        let start = self.layout.data_offset(ZoneIndex(zone));
        range(start + block * self.shape.block, self.shape.block_len())
    }

    /// The tag slot of a block.
    pub fn slot(&self, zone: u32, block: u64) -> Range {
        let start = self.layout.tag_offset(ZoneIndex(zone));
        range(start + block * SLOT_LEN as u64, SLOT_LEN)
    }

    /// Behind the last slot of a zone.
    pub fn slot_padding(&self, zone: u32) -> Range {
        let start = self.layout.tag_offset(ZoneIndex(zone));
        let all = range(
            start,
            usize::try_from(self.layout.tag_len(ZoneIndex(zone))).unwrap(),
        );
        all.start + SLOT_LEN * usize::try_from(self.shape.capacity).unwrap()..all.end
    }

    /// Data and tags of a zone.
    pub fn zone(&self, zone: u32) -> Range {
        let (offset, len) = self.layout.extents(ZoneIndex(zone));
        range(offset, usize::try_from(len).unwrap())
    }
}

/// Puts `range` of `from` into `to`.
pub fn put_back(to: &mut [u8], from: &[u8], range: Range) {
    to[range.clone()].copy_from_slice(&from[range]);
}

/// Exchanges two ranges of the same length.
pub fn swap(bytes: &mut [u8], one: Range, two: Range) {
    let kept = bytes[one.clone()].to_vec();
    bytes.copy_within(two.clone(), one.start);
    bytes[two].copy_from_slice(&kept);
}

/// What a tampered disk shows of what it held.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// It is not opened, for this reason.
    Refused(String),
    /// Everything is there.
    Unharmed,
    /// It opens; nothing is shown that was not written, and this is missed.
    Missed(Missed),
}

/// What a disk lost, and says so.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Missed {
    /// Blocks below the write pointer that read as errors.
    pub bad: Vec<(u32, u64)>,
    /// Zones whose write pointer stands further back, and where.
    pub shorter: Vec<(u32, u64)>,
    /// Zones that are offline.
    pub offline: Vec<u32>,
    /// Blocks of full zones that read as zeroes, as what was not written before a zone was finished does.
    pub zeroes: Vec<(u32, u64)>,
    /// Blocks that read as something which the guest never wrote there: only where nothing can tell.
    pub wrong: Vec<(u32, u64)>,
}

/// Opens the image and compares what it shows with what was written: `WRITTEN` blocks a zone.
/// The states of zones are compared with `states`.
pub fn judge(shape: Shape, bytes: &[u8], options: Options, expected: &Expected) -> Verdict {
    match Disk::open(medium_of(bytes), options) {
        Err(why) => Verdict::Refused(why),
        Ok(mut disk) => compare(shape, &mut disk, expected),
    }
}

/// What an untampered disk shows.
#[derive(Clone, Debug)]
pub struct Expected {
    /// What each zone holds from its start.
    pub content: Vec<Vec<u8>>,
    /// Their states.
    pub states: Vec<ZoneState>,
}

/// What the image after the tour shows as it is. Without tags nothing proves after a power cut what no flush covered.
pub fn expected(shape: Shape, bytes: &[u8], left: Left) -> Expected {
    let mut disk = Disk::open(medium_of(bytes), left.options()).unwrap();
    let mut content = content(shape);
    if left == Left::Cut && !shape.cipher.is_tagged() {
        for (content, &flushed) in content.iter_mut().zip(&FLUSHED) {
            content.truncate(usize::try_from(flushed).unwrap() * shape.block_len());
        }
    }
    let expected = Expected {
        content,
        states: (0..shape.zones).map(|zone| disk.state(zone)).collect(),
    };
    assert_eq!(compare(shape, &mut disk, &expected), Verdict::Unharmed);
    expected
}

/// The same with a disk that is open.
pub fn compare(shape: Shape, disk: &mut Disk, expected: &Expected) -> Verdict {
    let mut missed = Missed::default();
    let zones = (0..).zip(expected.states.iter().zip(&expected.content));
    for (zone, (&state, content)) in zones {
        let found = disk.state(zone);
        if found == ZoneState::Offline {
            missed.offline.push(zone);
            assert_eq!(disk.block(zone, 0), Err(Status::ZoneInvalidCommand));
            continue;
        }
        let written = content.len() as u64 / shape.block;
        let here = match found {
            ZoneState::Full => shape.capacity,
            _ => disk.write_pointer(zone),
        };
        if found != state {
            assert!(here < written || written == 0 || found == ZoneState::Closed);
        }
        if here < written {
            missed.shorter.push((zone, here));
        }
        compare_blocks(shape, disk, zone, content, here, &mut missed);
    }
    if missed == Missed::default() {
        Verdict::Unharmed
    } else {
        Verdict::Missed(missed)
    }
}

fn compare_blocks(
    shape: Shape,
    disk: &mut Disk,
    zone: u32,
    content: &[u8],
    write_pointer: u64,
    missed: &mut Missed,
) {
    let zeroes = vec![0; shape.block_len()];
    let mut written = content.chunks(shape.block_len());
    for block in 0..shape.capacity {
        let written = written.next().filter(|_| block < write_pointer);
        match (disk.block(zone, block), written) {
            (Ok(found), Some(written)) if found == written => {}
            (Ok(found), None) if found == zeroes => {}
            (Ok(found), Some(_)) if found == zeroes && disk.state(zone) == ZoneState::Full => {
                missed.zeroes.push((zone, block));
            }
            (Ok(_), _) => missed.wrong.push((zone, block)),
            (Err(Status::IoError), Some(_)) => missed.bad.push((zone, block)),
            (Err(status), _) => panic!("zone {zone} block {block}: {status:?}"),
        }
    }
}

/// How trials ended, by class. Every trial must be booked, or the table does not add up.
#[derive(Debug, Default)]
pub struct Tally(BTreeMap<(String, &'static str), u64>);

impl Tally {
    /// One trial of a class.
    pub fn add(&mut self, class: &str, end: &'static str) {
        *self.0.entry((class.to_owned(), end)).or_default() += 1;
    }

    /// Several at once.
    pub fn add_many(&mut self, class: &str, end: &'static str, count: usize) {
        *self.0.entry((class.to_owned(), end)).or_default() += count as u64;
    }

    /// Takes in what another one has.
    pub fn merge(&mut self, other: Self) {
        for (key, count) in other.0 {
            *self.0.entry(key).or_default() += count;
        }
    }

    /// How many trials of `class` ended so.
    pub fn count(&self, class: &str, end: &'static str) -> u64 {
        self.0.get(&(class.to_owned(), end)).copied().unwrap_or(0)
    }

    /// How many trials there were of `class`.
    pub fn tried(&self, class: &str) -> u64 {
        let of_class = self.0.iter().filter(|((name, _), _)| name == class);
        of_class.map(|(_, count)| count).sum()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ((class, end), count) in &self.0 {
            writeln!(f, "{count:9}  {class}: {end}")?;
        }
        Ok(())
    }
}
