//! Writing a lost copy anew from the one that is left. Never data, and never what would be a guess.

use crate::format::{BootId, ImageError, OpenState, RecordsRoot, image};
use crate::store::Medium;
use crate::zone::RecordWrite;

use super::Subject;
use super::metadata::{Metadata, RecordDamage};

/// Repairs what can be, and notes it in `metadata`.
///
/// *Records*: of a closed disk whose records its header vouches for. The newest record is written
/// over the other copy, so what is sound is never in flight. Of a disk that was not closed the next
/// opening decides what holds, and writes both copies.
///
/// *Header*: the copy that is left is written as its own successor, whose place is that of the lost
/// one. Which of the two was newer nobody knows, so it says what everybody must assume who finds
/// one alone: that the disk was not closed. The next opening recovers from that. One that says that a
/// sync failed is left alone, for more than that would have to be kept of it.
pub(super) fn repair(subject: &Subject, metadata: &mut Metadata) -> Result<(), ImageError> {
    if metadata.is_closed() {
        repair_records(subject, metadata)?;
    }
    if let Some(damage) = &mut metadata.header
        && metadata.state != OpenState::InDoubt
    {
        let mut header = subject.header.clone();
        header.state = OpenState::Open;
        header.boot_id = BootId::default();
        header.records_root = RecordsRoot::default();
        image::write_header(&subject.medium, &subject.header_key, &mut header)?;
        damage.repaired = true;
    }
    Ok(())
}

fn repair_records(subject: &Subject, metadata: &mut Metadata) -> Result<(), ImageError> {
    let mut written = Vec::new();
    for (zone, damage) in &mut metadata.records {
        let found = subject.records.get(zone.as_usize());
        let Some(newest) = found.and_then(|record| record.newest) else {
            continue;
        };
        let copy = match damage.what {
            RecordDamage::Copy(copy, _) | RecordDamage::Stale(copy) if copy != newest.copy => copy,
            _ => continue,
        };
        let order = RecordWrite {
            record: newest.record,
            sequence: newest.sequence,
            copy,
        };
        let Subject {
            medium,
            layout,
            record_key,
            ..
        } = subject;
        image::write_record(medium, layout, record_key, *zone, &order)?;
        written.push(damage);
    }
    if written.is_empty() {
        return Ok(());
    }
    subject.medium.sync()?;
    for damage in written {
        damage.repaired = true;
    }
    Ok(())
}
