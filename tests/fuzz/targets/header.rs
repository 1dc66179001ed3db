//! Image headers and the layout that follows from one, in front of the MAC and behind it.
#![no_main]

use std::io;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use zonevault::format::image::{read_header, unlock, write_header};
use zonevault::format::{HeaderCopy, Layout, OpenState, RawHeader, takes_tags};
use zonevault::geometry::{Geometry, ZoneIndex};
use zonevault::secret::Credential;
use zonevault::store::Medium;
use zonevault::store::mem::MemStore;
use zonevault::zone::RecordCopy;
use zonevault_fuzz::seal::{self, AREA};

static KEY: LazyLock<Credential> = LazyLock::new(seal::credential);

/// The head of an image, of any length that its header asks for.
#[derive(Debug)]
struct Head(std::sync::Mutex<Vec<u8>>);

impl Medium for Head {
    type Store = MemStore;

    fn open_store(&self, _depth: u32) -> io::Result<MemStore> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn size(&self) -> io::Result<u64> {
        Ok(u64::MAX)
    }

    fn alignment(&self) -> u64 {
        1
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap();
        let bytes = self.0.lock().unwrap();
        buf.copy_from_slice(
            bytes
                .get(start..start + buf.len())
                .ok_or(io::ErrorKind::UnexpectedEof)?,
        );
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let start = usize::try_from(offset).unwrap();
        self.0.lock().unwrap()[start..start + buf.len()].copy_from_slice(buf);
        Ok(())
    }

    fn forget_cached(&self) {}

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A header copy of the input's bytes. By `seals`, 4 bits: 15 as it is, 14 with a sound CRC, 12 and
/// 13 sealed; else sealed, of a version and length that can be read and at the right place. For what
/// cannot be read is read thrice with pauses, and there are better things to do.
fn copy_of(seals: u8, odd: bool, bytes: &[u8]) -> [u8; AREA] {
    let mut area = [0; AREA];
    let len = bytes.len().min(AREA);
    area[..len].copy_from_slice(&bytes[..len]);
    if seals < 12 {
        area[8..16].copy_from_slice(&[1, 0, 0, 0, 0, 2, 0, 0]);
        area[40..48].fill(0);
        area[64] = area[64] & !1 | u8::from(odd);
        area[512..].fill(0);
    }
    if seals < 14 {
        area[..8].copy_from_slice(b"ZONEVLT\0");
        seal::header_mac(&mut area);
    }
    if seals < 15 {
        seal::header_crc(&mut area);
    }
    area
}

fn check_layout(geometry: &Geometry, tag_slot_bytes: u32, probe: u32) {
    assert_eq!(geometry.spec().validate().as_ref(), Ok(geometry));
    let layout = Layout::new(geometry, tag_slot_bytes).expect("tags of a known cipher");
    let (a, len) = layout.record_area(RecordCopy::A);
    let (b, _) = layout.record_area(RecordCopy::B);
    assert!(a + len <= b && b + len <= layout.data_offset(ZoneIndex(0)));
    let last = ZoneIndex(geometry.zones() - 1);
    for zone in [0, probe % geometry.zones(), last.0] {
        let zone = ZoneIndex(zone);
        let record = layout.record_offset(RecordCopy::B, zone);
        assert!(record >= b && record + 128 <= b + len);
        let (start, len) = layout.extents(zone);
        assert!(start + layout.data_len(zone) <= layout.tag_offset(zone));
        assert!(layout.tag_offset(zone) + layout.tag_len(zone) <= start + len);
        let end = match zone == last {
            true => layout.image_len(),
            false => layout.data_offset(ZoneIndex(zone.0 + 1)),
        };
        assert_eq!(start + len, end, "{zone}");
    }
}

fn check_image(head: &Head, seals: u8, probe: u32) {
    let Ok(found) = read_header(head) else {
        return;
    };
    let uuid = found.raw.uuid().into_bytes();
    head.write_at(Layout::protector_offset(0), &seal::protector(&uuid, 0))
        .expect("memory");
    if let Ok(shown) = found.raw.unverified() {
        check_layout(shown.geometry(), shown.tag_slot_bytes(), probe);
    }
    let Ok(mut unlocked) = unlock(head, &KEY) else {
        return;
    };
    assert!(seals & 15 < 14 || seals >> 4 < 14, "neither was sealed");
    let key = unlocked.header_key().expect("a MAC key");
    let header = &mut unlocked.header;
    check_layout(header.geometry(), header.tag_slot_bytes(), probe);
    assert_eq!(header.tag_slot_bytes(), header.cipher().tag_slot_bytes());
    assert!(!header.cipher().is_tagged() || takes_tags(header.geometry()));
    if unlocked.damaged_header.is_some() {
        assert_ne!(header.state, OpenState::Clean);
    }
    let sequence = header.sequence();
    assert_eq!(sequence, found.raw.sequence());
    if write_header(head, &key, header).is_ok() {
        assert_eq!(header.sequence(), sequence.saturating_add(1));
        let again = read_header(head).expect("what was just written");
        if sequence != u64::MAX {
            assert_eq!(again.raw.sequence(), sequence + 1);
            let found = unlock(head, &KEY).expect("what was just written");
            assert!(found.damaged_header.is_some() || found.header == *header);
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&[rare, seals, probe, split], bytes)) = data.split_first_chunk() else {
        return;
    };
    let seals = if rare < 0xf0 { 0 } else { seals };
    let split = bytes.len().min(4 * usize::from(split));
    let (first, second) = bytes.split_at(split);
    let mut image = vec![0; 64 << 10];
    for (copy, seals, bytes) in [
        (HeaderCopy::A, seals & 15, first),
        (HeaderCopy::B, seals >> 4, second),
    ] {
        let area = copy_of(seals, copy == HeaderCopy::B, bytes);
        let _ = RawHeader::parse(&area).map(|raw| raw.unverified().is_ok());
        let at = usize::try_from(Layout::header_offset(copy)).unwrap();
        image[at..at + AREA].copy_from_slice(&area);
    }
    let probe = u32::from(probe).wrapping_mul(0x0101_0101);
    check_image(&Head(std::sync::Mutex::new(image)), seals, probe);
});
