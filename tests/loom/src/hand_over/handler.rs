// As much of a connection as the messages need that hand queues over.

use std::sync::Arc;

use log::warn;

use super::handle::{QueueHandle, Wake};
use super::memory::Table;
use super::refusal::Refusal;
use super::ring::{Addresses, Kick};
use super::state::Device;
use super::sys;
use crate::world::File;
use crate::world::limit::LogLimit;
use crate::world::store::Medium;

static LOST_RINGS: LogLimit = LogLimit::new();

pub(super) struct Handler<M: Medium> {
    pub(super) device: Arc<Device<M>>,
    pub(super) memory: Table,
    pub(super) tracked: Option<()>,
}

impl<M: Medium> Handler<M> {
    fn give_up(&mut self) {}
}
