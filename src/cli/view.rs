//! Looking at an image: without a lock, with or without a key, beside a daemon that serves it.

use std::path::Path;

use crate::format::{
    Header, HeaderCopy, HeaderError, ImageError, Layout, LoadedRecord, OpenState, RecordKey, image,
};
use crate::store::{Access, FileMedium, Medium};

use super::credential::KeyArgs;
use super::error::CliError;

/// An image opened to be looked at.
#[derive(Debug)]
pub(super) struct View {
    /// Where it is.
    pub(super) medium: FileMedium,
    /// Its header; believe it only if `key` is there.
    pub(super) header: Header,
    /// Where everything lies.
    pub(super) layout: Layout,
    /// The header copy that is not sound.
    pub(super) damaged_header: Option<HeaderCopy>,
    /// The key of its zone records, if the image was unlocked and its header verified.
    key: Option<RecordKey>,
}

impl View {
    /// Opens the image at `path` and, if the command line names a key, unlocks and verifies it.
    pub(super) fn open(path: &Path, key: &KeyArgs) -> Result<Self, CliError> {
        let credential = key.read_given()?;
        let medium = FileMedium::open(path, Access::ReadOnly)?;
        let fail = CliError::image(path);
        let result = match credential {
            Some(credential) => image::unlock(&medium, &credential).and_then(|unlocked| {
                let key = unlocked.record_key()?;
                Ok((
                    unlocked.header,
                    unlocked.layout,
                    unlocked.damaged_header,
                    Some(key),
                ))
            }),
            None => unverified(&medium),
        };
        let (header, layout, damaged_header, key) = result.map_err(fail)?;
        Ok(Self {
            medium,
            header,
            layout,
            damaged_header,
            key,
        })
    }

    /// Whether a key has vouched for what is shown.
    pub(super) const fn is_verified(&self) -> bool {
        self.key.is_some()
    }

    /// Of a disk that was closed and a verified header: whether these are the records with which it
    /// was closed.
    pub(super) fn root_matches(&self, records: &[LoadedRecord]) -> Option<bool> {
        let key = self.key.as_ref()?;
        let closed = self.header.state == OpenState::Clean;
        closed.then(|| image::records_root(key, records) == self.header.records_root)
    }

    /// The zone records, verified if the header is.
    pub(super) fn records(&self) -> Result<Vec<LoadedRecord>, ImageError> {
        let geometry = self.header.geometry();
        let loaded = match &self.key {
            Some(key) => image::load_records(&self.medium, &self.layout, geometry, key),
            None => image::load_records_unverified(&self.medium, &self.layout, geometry),
        };
        Ok(loaded?)
    }
}

type Found = (Header, Layout, Option<HeaderCopy>, Option<RecordKey>);

/// What an image says of itself.
fn unverified(medium: &FileMedium) -> Result<Found, ImageError> {
    let found = image::read_header(medium)?;
    let header = found.raw.unverified().map_err(|error| match error {
        // Nobody vouches for the body, so an impossible one is damage and no more.
        HeaderError::Geometry(_) => HeaderError::Rot,
        other => other,
    })?;
    let layout = Layout::new(header.geometry(), header.tag_slot_bytes())?;
    let (have, need) = (medium.size()?, layout.image_len());
    if have < need {
        return Err(ImageError::Truncated { have, need });
    }
    Ok((header, layout, found.damaged, None))
}
