//! Requests, from the bytes of a chain to a command: what is refused and what is not, beside the
//! reference model of the tests.
#![no_main]

use arbitrary::{Result, Unstructured};
use vm_memory::GuestAddress;
use zonevault::geometry::{self, Geometry, Sector};
use zonevault::request::{
    Chain, Command, DescriptorTable, MAX_DISCARD, MAX_WRITE_ZEROES, Policy, Request, Span, Status,
    ZoneAction, blocks_of,
};
use zonevault_fuzz::common::request::{kind, status};
use zonevault_fuzz::common::wire::{le32, le64};
use zonevault_fuzz::guest::{LARGE, Shadow};
use zonevault_fuzz::model::Model;
use zonevault_fuzz::{ZONE, model_of, small_disk};

/// Longest data for which the model, which wants to see them, is asked. More than any disk holds.
const MODELLED: u64 = 1 << 20;
static ZEROES: [u8; MODELLED as usize] = [0; MODELLED as usize];

/// A request as the driver lays it out.
#[derive(Debug)]
struct Sent {
    kind: u32,
    sector: u64,
    /// What follows the header, without the zeroes that may follow that.
    head: Vec<u8>,
    data_out: u64,
    /// Device-writable bytes with the status.
    writable: u64,
}

const KINDS: [u32; 15] = [
    kind::IN,
    kind::OUT,
    kind::FLUSH,
    kind::GET_ID,
    kind::GET_LIFETIME,
    kind::DISCARD,
    kind::WRITE_ZEROES,
    kind::SECURE_ERASE,
    kind::ZONE_APPEND,
    kind::ZONE_REPORT,
    kind::ZONE_OPEN,
    kind::ZONE_CLOSE,
    kind::ZONE_FINISH,
    kind::ZONE_RESET,
    kind::ZONE_RESET_ALL,
];

fn length(u: &mut Unstructured<'_>) -> Result<u64> {
    Ok(match u.int_in_range(0..=3)? {
        0 => u64::from(u.arbitrary::<u8>()?),
        1 => u64::from(u.arbitrary::<u32>()?) % (LARGE.1 - 64),
        2 => 512 * u64::from(u.arbitrary::<u8>()?),
        _ => 4096 * u64::from(u.arbitrary::<u8>()? & 31),
    })
}

fn sector(u: &mut Unstructured<'_>) -> Result<u64> {
    let zone = ZONE / 512 * u.int_in_range(0..=9)?;
    Ok(match u.int_in_range(0..=4)? {
        0 => u.arbitrary()?,
        1 => zone,
        2 => zone.wrapping_sub(u64::from(u.arbitrary::<u8>()?)),
        3 => zone + 8 * u64::from(u.arbitrary::<u8>()?),
        _ => zone + u64::from(u.arbitrary::<u8>()?),
    })
}

impl Sent {
    fn invent(u: &mut Unstructured<'_>) -> Result<Self> {
        let any = u.ratio(1, 16)?;
        let kind = if any {
            u.arbitrary()?
        } else {
            *u.choose(&KINDS)?
        };
        let ranges = matches!(
            kind,
            kind::DISCARD | kind::WRITE_ZEROES | kind::SECURE_ERASE
        );
        let mut head = Vec::new();
        if ranges {
            head.extend_from_slice(&sector(u)?.to_le_bytes());
            let sectors = if u.arbitrary()? {
                u32::from(u.arbitrary::<u8>()?) * 8
            } else {
                u.arbitrary()?
            };
            head.extend_from_slice(&sectors.to_le_bytes());
            let flags: u32 = if u.ratio(1, 4)? { u.arbitrary()? } else { 0 };
            head.extend_from_slice(&flags.to_le_bytes());
        }
        let data_out = match ranges && u.ratio(7, 8)? {
            true => 16,
            false => length(u)?,
        };
        head.truncate(usize::try_from(data_out).unwrap());
        Ok(Self {
            kind,
            sector: sector(u)?,
            head,
            data_out,
            writable: length(u)? + u.int_in_range(1..=16)?,
        })
    }

    /// Lays it out over descriptors cut anywhere; `short` leaves bytes of the header out.
    fn chain(&self, u: &mut Unstructured<'_>, short: Option<u64>) -> Result<Chain> {
        let mut front = self.kind.to_le_bytes().to_vec();
        front.extend_from_slice(&u.arbitrary::<u32>()?.to_le_bytes());
        front.extend_from_slice(&self.sector.to_le_bytes());
        front.extend_from_slice(&self.head);
        let mut rest = self.data_out - self.head.len() as u64;
        if let Some(len) = short {
            front.truncate(usize::try_from(len).unwrap());
            rest = 0;
        }
        let mut memory = Shadow::default();
        memory.put(0x15f8, &front); // its middle is where two regions touch
        let mut parts: Vec<(u64, u64, u16)> = Vec::new();
        cut(u, &mut parts, 0x15f8, front.len() as u64, 0)?;
        cut(u, &mut parts, LARGE.0, rest, 0)?;
        cut(u, &mut parts, LARGE.0, self.writable, 2)?;
        for (index, (address, len, flags)) in (0..).zip(&parts) {
            let last = usize::from(index) + 1 == parts.len();
            let mut bytes = address.to_le_bytes().to_vec();
            bytes.extend_from_slice(&u32::try_from(*len).unwrap().to_le_bytes());
            bytes.extend_from_slice(&(flags | u16::from(!last)).to_le_bytes());
            bytes.extend_from_slice(&(index + 1_u16).to_le_bytes());
            memory.put(0x1000 + 16 * u64::from(index), &bytes);
        }
        let table = DescriptorTable {
            address: GuestAddress(0x1000),
            size: 64,
        };
        let mut chain = Chain::default();
        chain
            .collect(&memory.show(), table, 0)
            .expect("a sound chain");
        Ok(chain)
    }
}

fn cut(
    u: &mut Unstructured<'_>,
    parts: &mut Vec<(u64, u64, u16)>,
    address: u64,
    len: u64,
    flags: u16,
) -> Result<()> {
    let mut done = 0;
    for _ in 0..u.int_in_range(0..=3)? {
        let piece = u64::from(u.arbitrary::<u8>()?) % (len - done + 1);
        parts.push((address + done, piece, flags));
        done += piece;
    }
    parts.push((address + done, len - done, flags));
    Ok(())
}

/// What the model allows for a request of a zoned disk that was taken as one.
fn zoned_verdict(model: &mut Model, sent: &Sent) -> Vec<u8> {
    let modelled = |len: u64| len.min(MODELLED) as usize;
    let sector = sent.sector;
    match sent.kind {
        kind::IN => model.read(sector, modelled(sent.writable - 1)).0,
        kind::OUT => {
            let mut verdict = model.write(sector, &ZEROES[..modelled(sent.data_out)]);
            // Of parts of blocks in conventional zones the model has no opinion.
            if !sent.data_out.is_multiple_of(model.geometry.block * 512)
                || !sector.is_multiple_of(model.geometry.block)
            {
                verdict.push(status::IOERR);
            }
            verdict
        }
        kind::FLUSH | kind::GET_ID => vec![status::OK],
        kind::ZONE_REPORT if sector >= model.geometry.capacity() => vec![status::INVALID_CMD],
        kind::ZONE_REPORT => vec![status::OK],
        kind::ZONE_APPEND if sent.writable < 9 => vec![status::IOERR],
        kind::ZONE_APPEND => model.append(sector, &ZEROES[..modelled(sent.data_out)]).0,
        kind::ZONE_OPEN => model.open(sector),
        kind::ZONE_CLOSE => model.close(sector),
        kind::ZONE_FINISH => model.finish(sector),
        kind::ZONE_RESET => model.reset(sector),
        kind::ZONE_RESET_ALL => model.reset_all(),
        _ => vec![status::UNSUPP],
    }
}

fn plain_verdict(geometry: &Geometry, read_only: bool, sent: &Sent) -> Vec<u8> {
    let span = |sector: u64, len: u64| {
        let block = geometry.block_size().bytes();
        let on_disk = sector.checked_mul(512).is_some_and(|start| {
            start.is_multiple_of(block)
                && start
                    .checked_add(len)
                    .is_some_and(|end| end <= geometry.disk_size())
        });
        match len != 0 && len.is_multiple_of(block) && on_disk {
            true => vec![status::OK],
            false => vec![status::IOERR],
        }
    };
    match sent.kind {
        kind::FLUSH | kind::GET_ID => vec![status::OK],
        kind::IN => span(sent.sector, sent.writable - 1),
        kind::OUT | kind::DISCARD | kind::WRITE_ZEROES if read_only => vec![status::IOERR],
        kind::OUT => span(sent.sector, sent.data_out),
        kind::DISCARD | kind::WRITE_ZEROES if sent.data_out != 16 => vec![status::IOERR],
        kind::DISCARD | kind::WRITE_ZEROES => {
            let flags = le32(&sent.head, 12);
            let known = if sent.kind == kind::DISCARD { 0 } else { 1 };
            let len = 512 * u64::from(le32(&sent.head, 8));
            if flags & !known != 0 {
                return vec![status::UNSUPP];
            }
            span(le64(&sent.head, 0), len)
        }
        _ => vec![status::UNSUPP],
    }
}

/// What a command claims must hold whatever was sent.
fn check_command(geometry: &Geometry, command: Command, sent: &Sent) {
    let on_disk = |span: Span| {
        let zone = geometry.zone_of(span.sector).expect("on the disk");
        let end = span.sector.0 * 512 + span.len;
        assert!(span.len != 0 && end <= geometry.disk_size());
        let (_, count) = blocks_of(geometry, zone, span);
        assert_eq!(geometry.block_bytes(count), span.len);
    };
    let here = |span: Span, len| {
        assert_eq!((span.sector, span.len), (Sector(sent.sector), len));
        on_disk(span);
    };
    match command {
        Command::Read(span) => here(span, sent.writable - 1),
        Command::Write(span) => here(span, sent.data_out),
        Command::Append(zone, len) => {
            assert_eq!(geometry.zone_start(zone), Sector(sent.sector));
            assert_eq!(geometry.zone_type(zone), geometry::ZoneType::Sequential);
            assert_eq!(len, sent.data_out);
        }
        Command::Zone(action, zone) => {
            assert_eq!(geometry.zone_start(zone), Sector(sent.sector));
            let expected = match sent.kind {
                kind::ZONE_OPEN => ZoneAction::Open,
                kind::ZONE_CLOSE => ZoneAction::Close,
                kind::ZONE_FINISH => ZoneAction::Finish,
                _ => ZoneAction::Reset,
            };
            assert_eq!(action, expected);
        }
        Command::Report(zone) => assert!(zone.0 < geometry.zones()),
        Command::Discard(span) => {
            on_disk(span);
            assert!(span.len <= MAX_DISCARD);
        }
        Command::WriteZeroes(span) => {
            on_disk(span);
            assert!(span.len <= MAX_WRITE_ZEROES);
        }
        Command::Flush | Command::GetId | Command::ResetAll => {}
    }
}

fn run(data: &[u8]) -> Result<()> {
    let u = &mut Unstructured::new(data);
    let policy = Policy {
        geometry: small_disk(u, 4)?,
        read_only: u.ratio(1, 8)?,
        zoned: u.ratio(7, 8)?,
    };
    let geometry = &policy.geometry;
    let sent = Sent::invent(u)?;
    let short = if u.ratio(1, 16)? {
        Some(u.int_in_range(0..=15)?)
    } else {
        None
    };
    let chain = sent.chain(u, short)?;
    let Request { command, chain } = Request::parse(chain, &policy);
    assert_eq!(chain.data_in_len(), sent.writable - 1);
    if let Ok(command) = command {
        assert!(short.is_none(), "{command:?} of half a header");
        check_command(geometry, command, &sent);
    }
    let is_plain = geometry.model() == geometry::Model::Plain;
    let mut model = model_of(geometry);
    model.read_only = policy.read_only;
    let verdict = match (short, is_plain) {
        (Some(_), _) => vec![status::IOERR],
        (None, true) => plain_verdict(geometry, policy.read_only, &sent),
        (None, false) if !policy.zoned => vec![status::IOERR, status::UNSUPP],
        (None, false) => zoned_verdict(&mut model, &sent),
    };
    match command.map_err(Status::byte) {
        // More can be wrong with it than a parser sees: what the zone's state forbids.
        Ok(command) => assert!(
            verdict == [status::OK] || (!is_plain && policy.zoned),
            "{command:?} of {sent:?}, where {verdict:?}"
        ),
        Err(byte) => assert!(
            verdict.contains(&byte),
            "{byte} for {sent:?} on {policy:?}, where {verdict:?}"
        ),
    }
    Ok(())
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = run(data);
});
