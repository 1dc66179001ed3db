//! A disk opened on the simulated medium, and its queues driven by hand, one step at a time.

use std::sync::Arc;

use zonevault::format::image::unlock;
use zonevault::geometry::{Sector, ZoneIndex};
use zonevault::keyslot::MIN_SLOTS;
use zonevault::request::{Command, Outcome, Span, Status, ZoneAction};
use zonevault::store::mem::{MemControl, MemMedium};
use zonevault::volume::{Channel, Finished, Options, Volume, channel};
use zonevault::zone::ZoneState;

use crate::model::{Action, End};
use crate::payload::{Content, Memory, blocks, identify};
use crate::shape::{Base, Shape, ZONE_SIZE, credential};

/// Queues of the simulated device.
pub(crate) const QUEUES: usize = 2;
/// Operations that a queue takes.
const DEPTH: u16 = 32;
/// Polls after which everything that nothing holds back must have ended.
const PATIENCE: usize = 400;
/// Bytes of tag slots that the disk may keep in memory: a few pages, so that some are thrown out.
const TAG_CACHE: usize = 16 << 10;
const SECTOR: u64 = 512;

/// What the device reports of a zone, and what it reads there.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    pub(crate) state: ZoneState,
    /// Blocks below the write pointer; of a full zone the whole capacity.
    pub(crate) pointer: u64,
    /// What every block of the capacity reads as.
    pub(crate) blocks: Vec<Content>,
}

/// An opened disk.
#[derive(Debug)]
pub(crate) struct Rig {
    pub(crate) control: MemControl,
    shape: Shape,
    channels: Vec<Channel<MemMedium, Memory>>,
    volume: Arc<Volume<MemMedium>>,
    next_read: u64,
}

impl Rig {
    /// Opens the disk on `medium`.
    pub(crate) fn open(base: &Base, medium: MemMedium, end: End) -> Result<Self, String> {
        let control = medium.control();
        let unlocked =
            unlock(&medium, &credential()).map_err(|e| format!("does not unlock: {e}"))?;
        // Every other opening finds what it reads in the page cache.
        control.read_at_once(unlocked.header.sequence().is_multiple_of(2));
        let options = Options {
            queues: u16::try_from(QUEUES).expect("few"),
            keyslots: MIN_SLOTS,
            tag_cache: TAG_CACHE,
            after_power_cut: end == End::Cut,
            ..Options::default()
        };
        let volume = Volume::open(medium, unlocked, options);
        let volume = Arc::new(volume.map_err(|e| format!("does not open: {e}"))?);
        let channels = (0..QUEUES).map(|queue| {
            let queue = u16::try_from(queue).expect("few");
            channel(&volume, queue, DEPTH).expect("a channel")
        });
        Ok(Self {
            control,
            shape: base.shape,
            channels: channels.collect(),
            volume,
            next_read: u64::MAX,
        })
    }

    /// Closes the disk in order. Everything must have ended.
    pub(crate) fn close(&mut self) -> Result<(), String> {
        self.volume
            .close()
            .map_err(|e| format!("does not close: {e}"))
    }

    pub(crate) fn set_write_cache(&self, on: bool) {
        self.volume.set_write_cache(on);
    }

    pub(crate) fn has_room(&self, queue: usize) -> bool {
        self.channels[queue].has_room()
    }

    /// Hands an operation to a queue.
    pub(crate) fn start(&mut self, queue: usize, id: u64, action: &Action) {
        let block = self.shape.block_len();
        let span = |zone: u32, at: u64, len: u64| Span {
            sector: Sector(self.shape.start(zone) + at * self.shape.block / SECTOR),
            len,
        };
        let zone_action = |zone: u32, action| Command::Zone(action, ZoneIndex(zone));
        let (command, bytes) = match action {
            Action::Write { zone, at, stamps } => {
                let bytes = blocks(stamps, block);
                (Command::Write(span(*zone, *at, bytes.len() as u64)), bytes)
            }
            Action::Append { zone, stamps } => {
                let bytes = blocks(stamps, block);
                (Command::Append(ZoneIndex(*zone), bytes.len() as u64), bytes)
            }
            Action::Read { zone } => {
                let len = self.shape.capacity * self.shape.block;
                (
                    Command::Read(span(*zone, 0, len)),
                    vec![0xee; usize::try_from(len).expect("small")],
                )
            }
            Action::Flush => (Command::Flush, Vec::new()),
            Action::Open(zone) => (zone_action(*zone, ZoneAction::Open), Vec::new()),
            Action::Close(zone) => (zone_action(*zone, ZoneAction::Close), Vec::new()),
            Action::Finish(zone) => (zone_action(*zone, ZoneAction::Finish), Vec::new()),
            Action::Reset(zone) => (zone_action(*zone, ZoneAction::Reset), Vec::new()),
            Action::ResetAll => (Command::ResetAll, Vec::new()),
        };
        self.channels[queue].start(command, Memory::new(id, bytes));
    }

    /// Lets a queue go on; returns what ended.
    pub(crate) fn poll(&mut self, queue: usize) -> Vec<Finished<Memory>> {
        let mut done = Vec::new();
        self.channels[queue].poll(&mut done);
        done
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.channels.iter().all(Channel::is_idle)
    }

    /// The block that an outcome names, counted from the start of `zone`.
    pub(crate) fn place(&self, zone: u32, outcome: Outcome) -> Option<u64> {
        let Outcome::Appended(Sector(sector)) = outcome else {
            return None;
        };
        let bytes = sector.checked_sub(self.shape.start(zone))? * SECTOR;
        (bytes < ZONE_SIZE).then_some(bytes / self.shape.block)
    }

    /// Reads a part of a zone, with nothing else under way; `None` if that fails.
    fn read(&mut self, zone: u32, at: u64, count: u64) -> Result<Option<Vec<u8>>, String> {
        let sector = Sector(self.shape.start(zone) + at * self.shape.block / SECTOR);
        let len = count * self.shape.block;
        self.next_read -= 1;
        let memory = Memory::new(
            self.next_read,
            vec![0xee; usize::try_from(len).expect("small")],
        );
        self.channels[0].start(Command::Read(Span { sector, len }), memory);
        for _ in 0..PATIENCE {
            for finished in self.poll(0) {
                if finished.payload.id == self.next_read {
                    let bytes = finished.payload.bytes.take();
                    if finished.outcome == Outcome::Done(Status::Ok, len) {
                        return Ok(Some(bytes));
                    }
                    return self.nothing_leaked(&bytes).map(|()| None);
                }
            }
        }
        Err("a read does not end".into())
    }

    /// A read that failed may have handed over good blocks, never what it could not vouch for.
    fn nothing_leaked(&self, bytes: &[u8]) -> Result<(), String> {
        let untouched = |block: &[u8]| block.iter().all(|&byte| byte == 0xee);
        let blocks = bytes.chunks(self.shape.block_len());
        let leaked = blocks.filter(|block| !untouched(block) && identify(block) == Content::Noise);
        match leaked.count() {
            0 => Ok(()),
            _ => {
                Err("a read failed and left what it had not verified in the guest's memory".into())
            }
        }
    }

    /// What the blocks of a zone read as, each by itself where the zone cannot be read as a whole.
    pub(crate) fn read_zone(&mut self, zone: u32) -> Result<Vec<Content>, String> {
        let (capacity, block) = (self.shape.capacity, self.shape.block_len());
        if let Some(bytes) = self.read(zone, 0, capacity)? {
            return Ok(bytes.chunks(block).map(identify).collect());
        }
        let mut found = Vec::new();
        for at in 0..capacity {
            let content = self.read(zone, at, 1)?;
            found.push(content.map_or(Content::Failed, |bytes| identify(&bytes)));
        }
        Ok(found)
    }

    /// Which zones a report shows as read-only.
    pub(crate) fn read_only(&self) -> Vec<bool> {
        let mut found = Vec::new();
        let note =
            |_, info: zonevault::zone::ZoneInfo| found.push(info.state == ZoneState::ReadOnly);
        self.volume.report(ZoneIndex(0), usize::MAX, note);
        found
    }

    /// Reports and reads all zones, with nothing under way.
    pub(crate) fn look(&mut self) -> Result<Vec<Report>, String> {
        let mut reports = Vec::new();
        let shape = self.shape;
        self.volume.report(ZoneIndex(0), usize::MAX, |_, info| {
            let pointer = (info.write_pointer.0 - info.start.0) * SECTOR / shape.block;
            let pointer = pointer.min(shape.capacity);
            let blocks = Vec::new();
            reports.push(Report {
                state: info.state,
                pointer,
                blocks,
            });
        });
        for (zone, report) in (0..).zip(&mut reports) {
            report.blocks = self.read_zone(zone)?;
        }
        Ok(reports)
    }

    /// Lets go of everything and waits for its end, so that the disk can be dropped.
    pub(crate) fn retire(mut self) {
        self.control.record(false);
        self.control.heal();
        self.control.hold(&[]);
        for _ in 0..PATIENCE {
            self.control.release_all();
            for queue in 0..QUEUES {
                self.poll(queue);
            }
            if self.is_idle() {
                return;
            }
        }
        panic!("operations do not end");
    }
}
