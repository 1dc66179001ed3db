//! What can be told from header, keys and zone records, before any block is read.

use crate::format::{
    Header, HeaderCopy, HeaderError, ImageError, Layout, LoadedRecord, OpenState, RawHeader,
    RecordError, Slot, Unlocked, image,
};
use crate::geometry::ZoneIndex;
use crate::store::{FileMedium, Medium};
use crate::zone::RecordCopy;

use super::Subject;

/// Bytes of a header copy.
const HEADER_AREA: usize = 4096;

/// One copy of the header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CopyState {
    /// The newest one.
    Newest(OpenState),
    /// The one before that.
    Previous,
    /// Authentic, and older than the one before the newest.
    Stale,
    /// Not a header of this volume, for this reason.
    Damaged(String),
}

impl CopyState {
    const fn is_sound(&self) -> bool {
        matches!(self, Self::Newest(_) | Self::Previous)
    }
}

/// A damaged copy of something of which the other copy is sound.
#[derive(Debug)]
pub(super) struct Damage<T> {
    pub(super) what: T,
    pub(super) why: String,
    pub(super) repaired: bool,
}

/// What is wrong with a zone's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RecordDamage {
    /// One copy is damaged.
    Copy(RecordCopy, RecordError),
    /// One copy of a closed disk is not the newest record.
    Stale(RecordCopy),
    /// Both copies are damaged.
    Lost,
}

/// Whether the records are those with which the disk was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Root {
    /// The disk was not closed: nothing vouches for all records together.
    Open,
    /// They are.
    Matches,
    /// They are not.
    Differs,
}

/// What was found of the metadata.
#[derive(Debug)]
pub(super) struct Metadata {
    pub(super) header: Option<Damage<HeaderCopy>>,
    /// What the newest header says.
    pub(super) state: OpenState,
    /// Keys that are sound.
    pub(super) keys: usize,
    /// Slots that hold no key but bytes.
    pub(super) damaged_keys: Vec<usize>,
    pub(super) records: Vec<(ZoneIndex, Damage<RecordDamage>)>,
    /// Zones whose record was looked at.
    pub(super) zones: usize,
    pub(super) root: Root,
}

impl Metadata {
    pub(super) fn examine(subject: &Subject) -> Result<Self, ImageError> {
        let slots = image::read_protectors(&subject.medium)?;
        let state = newest_state(&subject.copies);
        let header = header_damage(&subject.copies);
        let root = root(subject, state, header.is_some());
        let mut zones = 0;
        let mut records = Vec::new();
        for (zone, record) in subject.zones() {
            zones += 1;
            if let Some((what, why)) = judge(record, root != Root::Open) {
                let repaired = false;
                records.push((
                    zone,
                    Damage {
                        what,
                        why,
                        repaired,
                    },
                ));
            }
        }
        Ok(Self {
            header,
            state,
            keys: count(&slots, |slot| matches!(slot, Slot::Used(_))).len(),
            damaged_keys: count(&slots, |slot| matches!(slot, Slot::Damaged)),
            records,
            zones,
            root,
        })
    }

    /// The disk was closed in order, and its records are those with which it was: they are exact.
    pub(super) fn is_closed(&self) -> bool {
        self.root == Root::Matches
    }

    pub(super) fn is_sound(&self) -> bool {
        self.header.is_none() && self.records.is_empty() && self.is_whole()
    }

    pub(super) fn is_repaired(&self) -> bool {
        self.header.as_ref().is_none_or(|damage| damage.repaired)
            && self.records.iter().all(|(_, damage)| damage.repaired)
            && self.is_whole()
    }

    /// Nothing is wrong of which there is no other copy.
    fn is_whole(&self) -> bool {
        self.damaged_keys.is_empty() && self.root != Root::Differs
    }
}

fn count(slots: &[Slot], wanted: impl Fn(&Slot) -> bool) -> Vec<usize> {
    let slots = slots.iter().enumerate();
    slots
        .filter(|(_, slot)| wanted(slot))
        .map(|(number, _)| number)
        .collect()
}

/// Both copies of the header, each verified by itself.
pub(super) fn header_copies(
    medium: &FileMedium,
    unlocked: &Unlocked,
) -> Result<[CopyState; 2], ImageError> {
    let newest = unlocked.header.sequence();
    let mut states = [CopyState::Previous, CopyState::Previous];
    for (copy, state) in HeaderCopy::BOTH.into_iter().zip(&mut states) {
        let mut area = [0; HEADER_AREA];
        medium.read_at(Layout::header_offset(copy), &mut area)?;
        *state = match verified(&area, copy, unlocked) {
            Ok(header) if header.sequence() == newest => CopyState::Newest(header.state),
            Ok(header) if header.sequence().checked_add(1) == Some(newest) => CopyState::Previous,
            Ok(_) => CopyState::Stale,
            Err(why) => CopyState::Damaged(why),
        };
    }
    Ok(states)
}

fn verified(
    area: &[u8; HEADER_AREA],
    copy: HeaderCopy,
    unlocked: &Unlocked,
) -> Result<Header, String> {
    let raw = RawHeader::parse(area).map_err(|error| match error {
        HeaderError::NotAnImage => "it is no header".to_owned(),
        other => other.to_string(),
    })?;
    if raw.uuid() != *unlocked.header.uuid() {
        return Err("it is another volume's header".to_owned());
    }
    if HeaderCopy::of_sequence(raw.sequence()) != copy {
        return Err("it is the other copy's content".to_owned());
    }
    raw.verify(&unlocked.volume_key)
        .map_err(|error| error.to_string())
}

fn newest_state(copies: &[CopyState; 2]) -> OpenState {
    let newest = copies.iter().find_map(|copy| match copy {
        CopyState::Newest(state) => Some(*state),
        _ => None,
    });
    newest.unwrap_or(OpenState::Open)
}

fn header_damage(copies: &[CopyState; 2]) -> Option<Damage<HeaderCopy>> {
    let mut both = HeaderCopy::BOTH.into_iter().zip(copies);
    let (what, state) = both.find(|(_, state)| !state.is_sound())?;
    let why = match state {
        CopyState::Damaged(why) => why.clone(),
        _ => "it is older than it can be".to_owned(),
    };
    Some(Damage {
        what,
        why,
        repaired: false,
    })
}

/// What is wrong with a record. Copies of a disk that was not closed differ as a matter of course.
fn judge(record: &LoadedRecord, closed: bool) -> Option<(RecordDamage, String)> {
    let copy = |copy, error: RecordError| (RecordDamage::Copy(copy, error), error.to_string());
    match (record.faults, record.newest) {
        ([None, None], Some(newest)) if closed && !newest.mirrored => {
            let why = match record.stale {
                true => "it is of an earlier generation, whose key it keeps",
                false => "it is older than the other one",
            };
            Some((RecordDamage::Stale(newest.copy.other()), why.to_owned()))
        }
        ([None, None], _) => None,
        ([Some(error), None], _) => Some(copy(RecordCopy::A, error)),
        ([None, Some(error)], _) => Some(copy(RecordCopy::B, error)),
        ([Some(a), Some(_)], _) => Some((RecordDamage::Lost, a.to_string())),
    }
}

/// Whether the records are those of the header. Where one copy of that is lost, it may have said
/// that the disk was opened again: then that they are not tells nothing.
fn root(subject: &Subject, state: OpenState, header_damaged: bool) -> Root {
    let found = image::records_root(&subject.record_key, &subject.records);
    match state {
        OpenState::Open | OpenState::InDoubt => Root::Open,
        OpenState::Clean if subject.header.records_root == found => Root::Matches,
        OpenState::Clean if header_damaged => Root::Open,
        OpenState::Clean => Root::Differs,
    }
}
