//! The on-disk format, version 1. Each structure is specified, byte by byte and with its write
//! order, at the type that writes it: [`Layout`] (places), [`Header`], [`Protector`], [`RecordKey`]
//! (zone records), [`image::create`] (how an image comes to be).
//!
//! Trust grows in steps. Anybody may have written the bytes of an image; so the preamble of the
//! header and the protectors are parsed with every length and cost bounded, a credential unwraps
//! the volume key, the key verifies the header, and only then are cipher and geometry believed and
//! the zone records, each under its own MAC, read. What this cannot notice is an old state of the
//! whole image put back.

mod field;
mod header;
pub mod image;
mod layout;
mod protector;
mod record;

pub use header::{
    BootId, FORMAT_VERSION, HEADER_LEN, Header, HeaderError, HeaderKey, OpenState, RawHeader,
    RecordsRoot, takes_tags,
};
pub use image::{CreateSpec, ImageError, LoadedRecord, Unlocked};
pub use layout::{
    AREA_ALIGN, DATA_ALIGN, HEADER_AREA_LEN, HeaderCopy, Layout, MAX_TAG_SLOT_BYTES,
    PROTECTOR_SLOT_LEN, PROTECTOR_SLOTS, RECORDS_START, TagSlotError,
};
pub use protector::{
    Argon2Cost, MAX_LABEL_LEN, NewProtector, Protector, ProtectorError, ProtectorKind, Slot,
    Unusable,
};
pub use record::{RECORD_LEN, RecordError, RecordKey};
