//! A second reader of the format, written from its documentation. It shares no code with the daemon: HMAC, HKDF and
//! AES come from the RustCrypto crates, the modes XTS and the CRCs are written out here, GCM is the crate `aes-gcm`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::rc::Rc;

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Sha256, Sha512};

use crate::modes::{Xts256, crc32c, crc64_nvme};

/// Gives bytes of the image: offset, length.
pub(crate) type Peek<'a> = &'a dyn Fn(u64, usize) -> Vec<u8>;

const PAGE: u64 = 4096;
const HEADER_LEN: usize = 512;
const RECORDS: u64 = 64 << 10;
const RECORD_LEN: usize = 128;
const SLOT_LEN: usize = 32;
const XTS_256: u32 = 2;
const GCM: u32 = 3;
const XTS_CRC: u32 = 4;

/// The numbers of the zone states.
pub(crate) mod state {
    pub(crate) const EMPTY: u8 = 2;
    pub(crate) const IMPLICIT: u8 = 3;
    pub(crate) const EXPLICIT: u8 = 4;
    pub(crate) const CLOSED: u8 = 5;
    pub(crate) const FULL: u8 = 6;
    pub(crate) const READ_ONLY: u8 = 7;
}

/// What a sound header copy says, as far as it can change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) sequence: u64,
    /// Closed in order.
    pub(crate) clean: bool,
    /// A sync failed since it was opened.
    pub(crate) in_doubt: bool,
    pub(crate) epoch: u64,
    pub(crate) boot_id: [u8; 16],
    pub(crate) root: [u8; 32],
}

/// What a sound zone record says.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) state: u8,
    pub(crate) sequence: u64,
    pub(crate) written: u64,
    pub(crate) durable: u64,
    pub(crate) generation: u64,
    pub(crate) epoch: u64,
    pub(crate) salt: [u8; 32],
    pub(crate) skipped: u32,
    pub(crate) mac: [u8; 32],
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            state,
            sequence,
            written,
            durable,
            generation,
            epoch,
            skipped,
            ..
        } = self;
        write!(
            f,
            "#{sequence}: state {state}, {written} written, {durable} durable, "
        )?;
        write!(
            f,
            "generation {generation}, epoch {epoch:x}, skipped {skipped}"
        )
    }
}

/// A block below the write pointer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Block {
    Plain(Vec<u8>),
    /// Its tag does not fit.
    Bad,
}

/// All that an image says.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) header: Header,
    /// Both header copies are sound.
    pub(crate) whole_header: bool,
    /// Of each zone, the sound copies of its record: A, B.
    pub(crate) records: Vec<[Option<Record>; 2]>,
}

impl View {
    /// The record that holds.
    pub(crate) fn newest(&self, zone: u32) -> Option<&Record> {
        let copies = self.records.get(zone as usize)?.iter().flatten();
        copies.max_by_key(|record| record.sequence)
    }
}

/// Which zone's key: zone, generation, salt.
type KeyName = (u32, u64, [u8; 32]);

/// The keys of a zone in a generation.
enum ZoneKey {
    Gcm(Box<Aes256Gcm>),
    Xts(Box<Xts256>),
}

/// Reads the images of one volume.
pub(crate) struct Reader {
    volume_key: [u8; 64],
    uuid: [u8; 16],
    cipher: u32,
    block: usize,
    zones: u32,
    zone_capacity: u64,
    header_mac: Hmac<Sha256>,
    record_mac: Hmac<Sha256>,
    keys: RefCell<HashMap<KeyName, Rc<ZoneKey>>>,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("so many bytes")
}

fn hkdf(key: &[u8], salt: &[u8], info: &[&[u8]], out: &mut [u8]) {
    Hkdf::<Sha512>::new(Some(salt), key)
        .expand(&info.concat(), out)
        .expect("a short key");
}

impl Reader {
    /// Unlocks the volume by its key file, in protector slot 0, and reads its shape.
    pub(crate) fn unlock(peek: Peek<'_>, key_file: &[u8]) -> Result<Self, String> {
        let headers = peek(0, 8192);
        let copy = [0, 4096]
            .into_iter()
            .find(|&at| preamble(&headers[at..at + 4096]).is_ok())
            .ok_or("no header")?;
        let header = &headers[copy..copy + HEADER_LEN];
        let uuid: [u8; 16] = bytes_at(header, 48);
        let slot = peek(2 * PAGE, HEADER_LEN);
        let mut bound = slot[..104].to_vec();
        bound[8..12].fill(0);
        let mut wrapping = [0; 32];
        hkdf(
            key_file,
            &slot[72..104],
            &[
                b"zonevault 1 protector",
                &uuid,
                &0_u32.to_le_bytes(),
                &bound,
            ],
            &mut wrapping,
        );
        let mut volume_key = [0; 64];
        aes_kw::KwAes256::new_from_slice(&wrapping)
            .map_err(|_| "a wrapping key")?
            .unwrap_key(&slot[104..176], &mut volume_key)
            .map_err(|_| "the key file opens nothing")?;
        let mac = |label: &[u8]| {
            let mut key = [0; 64];
            hkdf(&volume_key, &uuid, &[label, &uuid], &mut key);
            Hmac::<Sha256>::new_from_slice(&key).expect("any length")
        };
        let mut record_mac = mac(b"zonevault 1 zone record mac");
        record_mac.update(&uuid);
        Ok(Self {
            header_mac: mac(b"zonevault 1 header mac"),
            record_mac,
            uuid,
            cipher: u32_at(header, 80),
            block: u32_at(header, 88) as usize,
            zones: u32::try_from(u64_at(header, 96) / u64_at(header, 104)).expect("few zones"),
            zone_capacity: u64_at(header, 112),
            volume_key,
            keys: RefCell::default(),
        })
    }

    /// Zones of the disk.
    pub(crate) fn zones(&self) -> u32 {
        self.zones
    }

    /// Blocks that a zone holds.
    pub(crate) fn capacity(&self) -> u64 {
        self.zone_capacity / self.block as u64
    }

    /// Bytes of a block.
    pub(crate) fn block(&self) -> usize {
        self.block
    }

    /// The generation of each zone, by the newer copy of its record, authentic or not.
    pub(crate) fn generations(&self, peek: Peek<'_>) -> Vec<u64> {
        let len = self.zones as usize * RECORD_LEN;
        let areas = [0, 1].map(|copy| peek(RECORDS + copy * self.record_area(), len));
        let records = areas[0].chunks(RECORD_LEN).zip(areas[1].chunks(RECORD_LEN));
        let newer = records.map(|(a, b)| if u64_at(b, 8) > u64_at(a, 8) { b } else { a });
        newer.map(|record| u64_at(record, 32)).collect()
    }

    pub(crate) fn is_gcm(&self) -> bool {
        self.cipher == GCM
    }

    fn tagged(&self) -> bool {
        self.cipher != XTS_256
    }

    fn record_area(&self) -> u64 {
        (u64::from(self.zones) * RECORD_LEN as u64).next_multiple_of(PAGE)
    }

    /// Where the data of a zone begins.
    pub(crate) fn data_offset(&self, zone: u32) -> u64 {
        let start = (RECORDS + 2 * self.record_area()).next_multiple_of(RECORDS);
        let slots = if self.tagged() {
            self.capacity() * SLOT_LEN as u64
        } else {
            0
        };
        let stride = self.zone_capacity.next_multiple_of(PAGE) + slots.next_multiple_of(PAGE);
        start + u64::from(zone) * stride
    }

    /// Where the tag slots of a zone begin.
    pub(crate) fn slot_offset(&self, zone: u32) -> u64 {
        self.data_offset(zone) + self.zone_capacity.next_multiple_of(PAGE)
    }

    fn header(&self, area: &[u8]) -> Result<Header, String> {
        preamble(area)?;
        let mut covered = area[..480].to_vec();
        covered[16..20].fill(0);
        let mut mac = self.header_mac.clone();
        mac.update(&covered);
        if mac.finalize().into_bytes()[..] != area[480..512] || area[48..64] != self.uuid {
            return Err("a forged header".into());
        }
        let state = u32_at(area, 132);
        if !(1..=3).contains(&state) {
            return Err(format!("header state {state}"));
        }
        Ok(Header {
            sequence: u64_at(area, 64),
            clean: state == 1,
            in_doubt: state == 3,
            epoch: u64_at(area, 144),
            boot_id: bytes_at(area, 152),
            root: bytes_at(area, 184),
        })
    }

    fn record(&self, raw: &[u8], zone: u32) -> Option<Record> {
        let mut mac = self.record_mac.clone();
        mac.update(&raw[..96]);
        let sound = mac.finalize().into_bytes()[..] == raw[96..128];
        let fits = raw[0] == 1
            && raw[2] <= 1
            && raw[3] == 0
            && u32_at(raw, 4) == zone
            && raw[84..96] == [0; 12];
        (sound && fits).then(|| Record {
            state: raw[1],
            sequence: u64_at(raw, 8),
            written: u64_at(raw, 16),
            durable: u64_at(raw, 24),
            generation: u64_at(raw, 32),
            epoch: u64_at(raw, 40),
            salt: bytes_at(raw, 48),
            skipped: u32_at(raw, 80),
            mac: bytes_at(raw, 96),
        })
    }

    /// Reads header and records.
    pub(crate) fn view(&self, peek: Peek<'_>) -> Result<View, String> {
        let areas = peek(0, 8192);
        let mut sound: Vec<Header> = Vec::new();
        for (copy, area) in areas.chunks(4096).enumerate() {
            if let Ok(header) = self.header(area)
                && header.sequence % 2 == copy as u64
            {
                sound.push(header);
            }
        }
        let whole_header = sound.len() == 2;
        let newest = sound.into_iter().max_by_key(|header| header.sequence);
        let mut header = newest.ok_or("no sound header")?;
        // The lost one may have been the newer one.
        header.clean &= whole_header;
        let areas = [0, 1].map(|copy| {
            let len = self.zones as usize * RECORD_LEN;
            peek(RECORDS + copy * self.record_area(), len)
        });
        let records = (0..self.zones).map(|zone| {
            let at = zone as usize * RECORD_LEN;
            [0, 1].map(|copy: usize| self.record(&areas[copy][at..at + RECORD_LEN], zone))
        });
        let view = View {
            header,
            whole_header,
            records: records.collect(),
        };
        self.judge(&view)?;
        Ok(view)
    }

    /// What must hold of every image, cut off or not.
    fn judge(&self, view: &View) -> Result<(), String> {
        for zone in 0..self.zones {
            let record = view
                .newest(zone)
                .ok_or_else(|| format!("zone {zone}: no sound record"))?;
            if record.durable > record.written || record.written > self.capacity() {
                return Err(format!("zone {zone}: a record out of range: {record:?}"));
            }
        }
        if !view.header.clean && view.header.root != [0; 32] {
            return Err("an open header with a records root".into());
        }
        if view.header.clean && view.header.root != self.root(view) {
            return Err("a clean header whose records root does not fit the records".into());
        }
        Ok(())
    }

    fn root(&self, view: &View) -> [u8; 32] {
        let mut mac = self.record_mac.clone();
        mac.update(b"records");
        for zone in 0..self.zones {
            mac.update(&view.newest(zone).map_or([0; 32], |record| record.mac));
        }
        mac.finalize().into_bytes().into()
    }

    fn key(&self, zone: u32, record: &Record) -> Rc<ZoneKey> {
        let id = (zone, record.generation, record.salt);
        let mut keys = self.keys.borrow_mut();
        let make = || {
            let mut key = [0; 64];
            let len = if self.cipher == GCM { 32 } else { 64 };
            let (zone, generation) = (zone.to_le_bytes(), record.generation.to_le_bytes());
            let info: [&[u8]; 4] = [b"zonevault 1 zone key", &self.uuid, &zone, &generation];
            hkdf(&self.volume_key, &record.salt, &info, &mut key[..len]);
            Rc::new(if self.cipher == GCM {
                ZoneKey::Gcm(Box::new(
                    Aes256Gcm::new_from_slice(&key[..len]).expect("32 bytes"),
                ))
            } else {
                ZoneKey::Xts(Box::new(Xts256::new(&key)))
            })
        };
        Rc::clone(keys.entry(id).or_insert_with(make))
    }

    /// Forgets the zone keys, which resets make ever more of.
    pub(crate) fn forget_keys(&self) {
        self.keys.borrow_mut().clear();
    }

    fn aad(&self, zone: u32, generation: u64, block: u64, flags: u32) -> [u8; 64] {
        let mut aad = [0; 64];
        aad[..17].copy_from_slice(b"zonevault 1 block");
        aad[20..24].copy_from_slice(&self.cipher.to_le_bytes());
        aad[24..40].copy_from_slice(&self.uuid);
        aad[40..44].copy_from_slice(&zone.to_le_bytes());
        aad[44..48].copy_from_slice(&flags.to_le_bytes());
        aad[48..56].copy_from_slice(&generation.to_le_bytes());
        aad[56..64].copy_from_slice(&block.to_le_bytes());
        aad
    }

    /// Decrypts a block, if its tag says that it belongs there.
    fn open(&self, zone: u32, record: &Record, block: u64, data: &[u8], slot: &[u8]) -> Block {
        let key = self.key(zone, record);
        let mut plain = data.to_vec();
        if let ZoneKey::Xts(xts) = &*key {
            if self.cipher == XTS_CRC {
                let aad = self.aad(zone, record.generation, block, u32_at(slot, 12));
                let crc = crc64_nvme(&[&aad, &slot[..12], data]);
                if slot[16..24] != crc.to_le_bytes()
                    || slot[24..32] != [0; 8]
                    || slot[12..16] != [0; 4]
                {
                    return Block::Bad;
                }
            }
            xts.decrypt(block, &mut plain);
            return Block::Plain(plain);
        }
        let ZoneKey::Gcm(gcm) = &*key else {
            return Block::Bad;
        };
        let aad = self.aad(zone, record.generation, block, u32_at(slot, 12));
        let nonce: Nonce<_> = bytes_at::<12>(slot, 0).into();
        let tag: Tag = bytes_at::<16>(slot, 16).into();
        let opened = gcm.decrypt_inout_detached(&nonce, &aad, plain.as_mut_slice().into(), &tag);
        if opened.is_err() || slot[12..16] != [0; 4] {
            return Block::Bad;
        }
        Block::Plain(plain)
    }

    /// The blocks `0..written` of a zone.
    pub(crate) fn blocks(
        &self,
        peek: Peek<'_>,
        zone: u32,
        record: &Record,
        written: u64,
    ) -> Vec<Block> {
        let count = usize::try_from(written).expect("a small zone");
        if count == 0 {
            return Vec::new();
        }
        let data = peek(self.data_offset(zone), count * self.block);
        let slots = match self.tagged() {
            true => peek(self.slot_offset(zone), count * SLOT_LEN),
            false => vec![0; count * SLOT_LEN],
        };
        let pairs = data.chunks(self.block).zip(slots.chunks(SLOT_LEN));
        (0..)
            .zip(pairs)
            .map(|(block, (data, slot))| self.open(zone, record, block, data, slot))
            .collect()
    }

    /// What every tag slot of a zone says, for who looks for a fault.
    pub(crate) fn describe(&self, peek: Peek<'_>, zone: u32, record: &Record) -> String {
        if !self.tagged() {
            return String::new();
        }
        let mut text = String::new();
        let blocks = self.blocks(peek, zone, record, self.capacity());
        for (number, block) in (0..).zip(blocks) {
            let slot = peek(self.slot_offset(zone) + number * SLOT_LEN as u64, SLOT_LEN);
            let sound = if block == Block::Bad { "bad" } else { "sound" };
            let (epoch, counter) = (u64_at(&slot, 0), u32_at(&slot, 8));
            text.push_str(&format!(
                "  zone {zone} block {number}: {sound}, {epoch:x}/{counter}\n"
            ));
        }
        text
    }

    /// Where recovery after a power cut must put the write pointer of a zone, by the book.
    pub(crate) fn recovered(&self, peek: Peek<'_>, view: &View, zone: u32) -> u64 {
        let Some(record) = view.newest(zone) else {
            return 0;
        };
        if !self.tagged() {
            return record.durable;
        }
        let (epoch, skipped) = if record.epoch == view.header.epoch || !view.whole_header {
            (record.epoch, record.skipped)
        } else {
            (view.header.epoch, 0)
        };
        let limit = if matches!(record.state, state::FULL | state::READ_ONLY) {
            record.written
        } else {
            self.capacity()
        };
        let mut n = record.durable;
        while n < limit {
            let slot = peek(self.slot_offset(zone) + n * SLOT_LEN as u64, SLOT_LEN);
            let ours =
                u64_at(&slot, 0) == epoch && u64::from(u32_at(&slot, 8)) == n + u64::from(skipped);
            let data = peek(self.data_offset(zone) + n * self.block as u64, self.block);
            if !ours || self.open(zone, record, n, &data, &slot) == Block::Bad {
                break;
            }
            n += 1;
        }
        n
    }
}

/// Checks what is before the MAC.
fn preamble(area: &[u8]) -> Result<(), String> {
    let mut bytes = area[..HEADER_LEN].to_vec();
    bytes[16..20].fill(0);
    let sound = area[..8] == *b"ZONEVLT\0"
        && u32_at(area, 8) == 1
        && u32_at(area, 12) as usize == HEADER_LEN
        && crc32c(&bytes) == u32_at(area, 16)
        && u64_at(area, 40) == 0
        && area[HEADER_LEN..].iter().all(|&byte| byte == 0);
    if sound {
        Ok(())
    } else {
        Err("not a header".into())
    }
}
