//! The inflight region of a front-end, guarded: it may shrink like any file that is not ours.

use std::fs::File;
use std::sync::Arc;

use vhost::vhost_user::message::VhostUserInflight;

use crate::queue::inflight::{InflightError, InflightQueue, Region};
use crate::request::DeviceLimits;
use crate::volume::Identity;

/// Why there is no region, or none that can be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum TrackError {
    #[error("{queues} queues of {descriptors} descriptors are more than the device has")]
    TooLarge { queues: u16, descriptors: u16 },
    #[error("what the front-end keeps of requests in flight cannot be used: {0}")]
    Region(#[from] InflightError),
}

/// A region that was handed over.
#[derive(Debug)]
pub(super) struct Tracked {
    region: Arc<Region>,
}

fn check(asked: &VhostUserInflight, limits: DeviceLimits) -> Result<(), TrackError> {
    let (queues, descriptors) = (asked.num_queues, asked.queue_size);
    if queues > limits.queues || descriptors > limits.queue_size {
        return Err(TrackError::TooLarge {
            queues,
            descriptors,
        });
    }
    Ok(())
}

/// GET_INFLIGHT_FD: a new region, of which nothing is kept here; the front-end hands it over.
pub(super) fn create(
    asked: &VhostUserInflight,
    limits: DeviceLimits,
    disk: &Identity,
) -> Result<(VhostUserInflight, File), TrackError> {
    check(asked, limits)?;
    let region = Region::create(asked.num_queues, asked.queue_size, disk)?;
    let answer = VhostUserInflight {
        mmap_size: region.size(),
        mmap_offset: 0,
        ..*asked
    };
    Ok((answer, region.file().map_err(InflightError::from)?))
}

impl Tracked {
    /// SET_INFLIGHT_FD.
    pub(super) fn adopt(
        handed: &VhostUserInflight,
        file: File,
        limits: DeviceLimits,
        disk: &Identity,
    ) -> Result<Self, TrackError> {
        check(handed, limits)?;
        let place = (handed.mmap_offset, handed.mmap_size);
        let region = Region::adopt(file, place, handed.num_queues, handed.queue_size, disk)?;
        Ok(Self {
            region: Arc::new(region),
        })
    }

    pub(super) fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// The part of a queue, if it has one.
    pub(super) fn queue(&self, index: u16) -> Option<InflightQueue> {
        self.region.queue(index)
    }
}
