// As much of the device as its queues need.

use std::sync::Arc;
use std::time::Duration;

use super::handle::QueueHandle;
use super::memory::Region;
use super::options::{DeviceOptions, Limits, WithoutInflight};
use super::ring::Ring;
use crate::world::store::Medium;
use crate::world::{Past, Volume};

#[derive(Debug)]
pub(super) struct Device<M: Medium> {
    volume: Arc<Volume<M>>,
    options: DeviceOptions,
    past: Past,
    queues: Vec<Arc<QueueHandle>>,
}

impl<M: Medium> Device<M> {
    pub(super) fn with_one_queue() -> Self {
        let ring = Ring::new(0, 2).expect("a ring");
        let queue = QueueHandle::new(ring, 0, None).expect("a queue");
        Self {
            volume: Arc::new(Volume(std::marker::PhantomData)),
            options: DeviceOptions {
                limits: Limits { queue_size: 2 },
                serial: 0,
                poll: Duration::ZERO,
                stats: Vec::new(),
                without_inflight: WithoutInflight::Refuse,
            },
            past: Past,
            queues: vec![Arc::new(queue)],
        }
    }

    pub(super) fn volume(&self) -> &Arc<Volume<M>> {
        &self.volume
    }

    pub(super) fn options(&self) -> &DeviceOptions {
        &self.options
    }

    pub(super) fn past(&self) -> &Past {
        &self.past
    }

    pub(super) fn queues(&self) -> &[Arc<QueueHandle>] {
        &self.queues
    }

    pub(super) fn policy(&self) {}

    pub(super) fn retire(&self, _regions: Vec<Arc<Region>>) {}
}
