//! The wire layer of virtio-blk: descriptor chains in, [`Command`]s out, statuses back.
//!
//! [`Request::parse`] does all the looking at guest bytes that is ever done for control: it copies
//! the descriptors and the header once, checks layout, direction and bounds, and yields either a
//! command that is valid for the disk's geometry or the status that the guest gets. Afterwards
//! only data is copied, each byte once.

mod chain;
mod config;
mod wire;

pub use chain::{Chain, DescriptorTable, Malformed, MemoryFault};
pub use config::{ConfigSpace, DeviceLimits, SEGMENT_OVERHEAD};
pub use wire::{REPORT_ENTRY_LEN, REPORT_HEADER_LEN, SERIAL_LEN, encode_zone, report_header};

use virtio_bindings::virtio_blk as blk;

use crate::geometry::{Blocks, Geometry, Model, SECTOR_SIZE, Sector, ZoneIndex, ZoneType};
use crate::zone::ZoneError;

use wire::{HEADER_LEN, Header, SEGMENT_LEN, Segment};

/// Fewest device-writable bytes of a zone append: the sector and the status (virtio 1.4,
/// 5.2.6.4). Linux hands over 16, and reads the status from the last of them.
const APPEND_TAIL_MIN: u64 = 9;
/// Most bytes of one read or write: far above what a guest sends (Linux: a few MiB), and it bounds
/// how long overlapping descriptors can keep a worker busy.
pub const MAX_TRANSFER: u64 = 64 << 20;
/// Most bytes of one WRITE_ZEROES: all of them are encrypted and written, so this bounds how long
/// one request occupies a worker.
pub const MAX_WRITE_ZEROES: u64 = 4 << 20;
/// Most bytes of one DISCARD: the 32-bit limit of the field, in whole blocks.
pub const MAX_DISCARD: u64 = 1 << 40;

/// The requests that only VIRTIO_BLK_F_ZONED makes valid.
const ZONE_REQUESTS: [u32; 7] = [
    blk::VIRTIO_BLK_T_ZONE_APPEND,
    blk::VIRTIO_BLK_T_ZONE_REPORT,
    blk::VIRTIO_BLK_T_ZONE_OPEN,
    blk::VIRTIO_BLK_T_ZONE_CLOSE,
    blk::VIRTIO_BLK_T_ZONE_FINISH,
    blk::VIRTIO_BLK_T_ZONE_RESET,
    blk::VIRTIO_BLK_T_ZONE_RESET_ALL,
];

/// The status byte of a request (virtio 1.4, 5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Ok,
    /// It failed, or was out of bounds.
    IoError,
    /// The device does not know it or did not offer it.
    Unsupported,
    /// Not possible for this zone.
    ZoneInvalidCommand,
    /// Not at the write pointer, or not in whole blocks.
    ZoneUnalignedWritePointer,
    /// Too many open zones.
    ZoneOpenResource,
    /// Too many active zones.
    ZoneActiveResource,
}

impl Status {
    /// The byte that stands for it.
    pub const fn byte(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::IoError => 1,
            Self::Unsupported => 2,
            Self::ZoneInvalidCommand => 3,
            Self::ZoneUnalignedWritePointer => 4,
            Self::ZoneOpenResource => 5,
            Self::ZoneActiveResource => 6,
        }
    }
}

impl From<ZoneError> for Status {
    fn from(error: ZoneError) -> Self {
        match error {
            ZoneError::InvalidCommand => Self::ZoneInvalidCommand,
            ZoneError::UnalignedWritePointer => Self::ZoneUnalignedWritePointer,
            ZoneError::OpenResource => Self::ZoneOpenResource,
            ZoneError::ActiveResource => Self::ZoneActiveResource,
            ZoneError::Failed => Self::IoError,
        }
    }
}

/// A zone management request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZoneAction {
    /// ZONE_OPEN.
    Open,
    /// ZONE_CLOSE.
    Close,
    /// ZONE_FINISH.
    Finish,
    /// ZONE_RESET.
    Reset,
}

/// A stretch of the disk: on it, not empty, in whole blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First sector.
    pub sector: Sector,
    /// Length in bytes.
    pub len: u64,
}

/// What a request asks for, valid for the geometry it was parsed against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Read; inside one zone if a sequential one is touched.
    Read(Span),
    /// Write, likewise.
    Write(Span),
    /// Write `len` bytes (whole blocks) wherever the write pointer of a sequential zone is.
    Append(ZoneIndex, u64),
    /// Make what was acknowledged durable.
    Flush,
    /// The serial number.
    GetId,
    /// Zones from this one on, as many as fit.
    Report(ZoneIndex),
    /// Zone management.
    Zone(ZoneAction, ZoneIndex),
    /// Reset every zone.
    ResetAll,
    /// The content is not needed any more (plain disks).
    Discard(Span),
    /// Reads must return zeroes (plain disks).
    WriteZeroes(Span),
}

/// What decides about a request besides its bytes.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// The disk.
    pub geometry: Geometry,
    /// Refuse whatever changes the disk.
    pub read_only: bool,
    /// The front-end took VIRTIO_BLK_F_ZONED.
    pub zoned: bool,
}

impl Policy {
    /// What `header` asks for; `data_in` and `data_out` are the bytes that the device may write
    /// before the status and that the driver sent after the header.
    fn command(
        &self,
        header: Header,
        chain: &Chain,
        data_in: u64,
        data_out: u64,
    ) -> Result<Command, Status> {
        if self.is_zoned() && !self.zoned {
            // The guest takes this for an ordinary disk and would destroy what is on it.
            return Err(if ZONE_REQUESTS.contains(&header.kind) {
                Status::Unsupported
            } else {
                Status::IoError
            });
        }
        match header.kind {
            blk::VIRTIO_BLK_T_IN => self.read(header.sector, data_in),
            blk::VIRTIO_BLK_T_OUT => self.write(header.sector, data_out),
            blk::VIRTIO_BLK_T_FLUSH => Ok(Command::Flush),
            blk::VIRTIO_BLK_T_GET_ID => Ok(Command::GetId),
            blk::VIRTIO_BLK_T_DISCARD | blk::VIRTIO_BLK_T_WRITE_ZEROES if !self.is_zoned() => {
                self.range_command(header.kind, chain, data_out)
            }
            kind if self.is_zoned() => self.zone_command(kind, header.sector, chain, data_out),
            _ => Err(Status::Unsupported),
        }
    }

    fn is_zoned(&self) -> bool {
        self.geometry.model() == Model::HostManaged
    }

    fn read(&self, sector: Sector, len: u64) -> Result<Command, Status> {
        must_be_moderate(len)?;
        self.span(sector, len, Status::IoError).map(Command::Read)
    }

    fn write(&self, sector: Sector, len: u64) -> Result<Command, Status> {
        self.must_be_writable()?;
        must_be_moderate(len)?;
        let sequential = self
            .geometry
            .zone_of(sector)
            .is_some_and(|zone| self.geometry.zone_type(zone) == ZoneType::Sequential);
        let unaligned = if sequential {
            Status::ZoneUnalignedWritePointer
        } else {
            Status::IoError
        };
        self.span(sector, len, unaligned).map(Command::Write)
    }

    fn must_be_writable(&self) -> Result<(), Status> {
        if self.read_only {
            return Err(Status::IoError);
        }
        Ok(())
    }

    /// Checks a stretch of the disk. Units: the protocol counts sectors, alignment is in blocks.
    fn span(&self, sector: Sector, len: u64, unaligned: Status) -> Result<Span, Status> {
        let geometry = &self.geometry;
        if len == 0 || !geometry.contains(sector, len) {
            return Err(Status::IoError);
        }
        if !geometry.is_block_aligned(sector) || !len.is_multiple_of(geometry.block_size().bytes())
        {
            return Err(unaligned);
        }
        let last = Sector(sector.0 + len / SECTOR_SIZE - 1);
        let (first, last) = (geometry.zone_of(sector), geometry.zone_of(last));
        let sequential = last.is_some_and(|z| geometry.zone_type(z) == ZoneType::Sequential);
        if first != last && sequential {
            return Err(Status::ZoneInvalidCommand);
        }
        Ok(Span { sector, len })
    }

    fn range_command(&self, kind: u32, chain: &Chain, data_out: u64) -> Result<Command, Status> {
        self.must_be_writable()?;
        // One segment is what the config space promises to take.
        if data_out != SEGMENT_LEN as u64 {
            return Err(Status::IoError);
        }
        let segment = Segment::read(chain, HEADER_LEN as u64).map_err(|_| Status::IoError)?;
        let discard = kind == blk::VIRTIO_BLK_T_DISCARD;
        if !segment.flags_valid(!discard) {
            return Err(Status::Unsupported);
        }
        let len = u64::from(segment.sectors) * SECTOR_SIZE;
        if len
            > if discard {
                MAX_DISCARD
            } else {
                MAX_WRITE_ZEROES
            }
        {
            return Err(Status::IoError);
        }
        let span = self.span(segment.sector, len, Status::IoError)?;
        Ok(if discard {
            Command::Discard(span)
        } else {
            Command::WriteZeroes(span)
        })
    }

    fn zone_command(
        &self,
        kind: u32,
        sector: Sector,
        chain: &Chain,
        data_out: u64,
    ) -> Result<Command, Status> {
        let invalid = Status::ZoneInvalidCommand;
        let action = match kind {
            blk::VIRTIO_BLK_T_ZONE_REPORT => {
                let zone = self.geometry.zone_of(sector).ok_or(invalid)?;
                return Ok(Command::Report(zone));
            }
            blk::VIRTIO_BLK_T_ZONE_APPEND => return self.append(sector, chain, data_out),
            blk::VIRTIO_BLK_T_ZONE_RESET_ALL => {
                self.must_be_writable()?;
                return Ok(Command::ResetAll);
            }
            blk::VIRTIO_BLK_T_ZONE_OPEN => ZoneAction::Open,
            blk::VIRTIO_BLK_T_ZONE_CLOSE => ZoneAction::Close,
            blk::VIRTIO_BLK_T_ZONE_FINISH => ZoneAction::Finish,
            blk::VIRTIO_BLK_T_ZONE_RESET => ZoneAction::Reset,
            _ => return Err(Status::Unsupported),
        };
        // Zone management of a read-only device is left open by the specification: it fails.
        self.must_be_writable()?;
        let zone = self.sequential_zone_at(sector)?;
        Ok(Command::Zone(action, zone))
    }

    fn sequential_zone_at(&self, sector: Sector) -> Result<ZoneIndex, Status> {
        self.geometry
            .zone_starting_at(sector)
            .filter(|&zone| self.geometry.zone_type(zone) == ZoneType::Sequential)
            .ok_or(Status::ZoneInvalidCommand)
    }

    fn append(&self, sector: Sector, chain: &Chain, data_out: u64) -> Result<Command, Status> {
        self.must_be_writable()?;
        if chain.writable_len() < APPEND_TAIL_MIN {
            return Err(Status::IoError);
        }
        let zone = self.sequential_zone_at(sector)?;
        // A zero-length append is left open by the specification: it appends nothing and fails.
        if data_out == 0 || data_out > self.geometry.max_append() {
            return Err(Status::ZoneInvalidCommand);
        }
        if !data_out.is_multiple_of(self.geometry.block_size().bytes()) {
            return Err(Status::ZoneUnalignedWritePointer);
        }
        Ok(Command::Append(zone, data_out))
    }
}

fn must_be_moderate(len: u64) -> Result<(), Status> {
    if len > MAX_TRANSFER {
        return Err(Status::IoError);
    }
    Ok(())
}

/// A request: what is asked for, or the status that refuses it, and the chain to answer into.
#[derive(Debug)]
pub struct Request {
    /// The command, or why there is none.
    pub command: Result<Command, Status>,
    /// The buffers.
    pub chain: Chain,
}

impl Request {
    /// Makes a request of a collected chain. A chain too short for a status cannot be answered and
    /// is malformed; one too short for a header gets an I/O error.
    pub fn parse(chain: Chain, policy: &Policy) -> Self {
        let command = Header::read(&chain)
            .map_err(|_| Status::IoError)
            .and_then(|header| {
                let data_in = chain.writable_len().saturating_sub(1);
                let data_out = chain.readable_len().saturating_sub(HEADER_LEN as u64);
                policy.command(header, &chain, data_in, data_out)
            });
        Self { command, chain }
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A status, and how many bytes of data were written for the guest.
    Done(Status, u64),
    /// The append went to this sector.
    Appended(Sector),
}

impl Chain {
    /// Bytes of data the device may write before the status byte.
    pub fn data_in_len(&self) -> u64 {
        self.writable_len().saturating_sub(1)
    }

    /// Copies data that the driver sent, from `offset` after the header.
    pub fn read_data(&self, offset: u64, buf: &mut [u8]) -> Result<(), MemoryFault> {
        self.read((HEADER_LEN as u64).saturating_add(offset), buf)
    }

    /// Writes the outcome where the driver looks for it. Returns the used length: how many bytes
    /// were written from the beginning of the device-writable part on. A status behind bytes that
    /// were not written is not among them (virtio 1.4, 2.7.8.2).
    pub fn answer(&self, outcome: Outcome) -> Result<u32, MemoryFault> {
        let last = self.writable_len().saturating_sub(1);
        let (status, data) = match outcome {
            Outcome::Done(status, data) => (status, data),
            Outcome::Appended(sector) => {
                self.write(0, &sector.0.to_le_bytes())?;
                (Status::Ok, u64::from(u64::BITS / 8))
            }
        };
        self.write(last, &[status.byte()])?;
        let written = data + u64::from(data == last);
        Ok(u32::try_from(written).unwrap_or(u32::MAX))
    }
}

/// Blocks of a span that lies in one zone: its first block and how many.
pub fn blocks_of(geometry: &Geometry, zone: ZoneIndex, span: Span) -> (Blocks, Blocks) {
    let into_zone = span.sector.0.saturating_sub(geometry.zone_start(zone).0);
    (
        geometry.blocks_in(into_zone.saturating_mul(SECTOR_SIZE)),
        geometry.blocks_in(span.len),
    )
}

#[cfg(test)]
mod tests;
