//! A vhost-user-blk backend that presents a zoned, encrypted disk.
#![warn(missing_docs)]
pub mod cli;
pub mod crypt;
pub mod device;
pub mod format;
pub mod geometry;
pub mod keyslot;
pub mod limit;
pub mod queue;
pub mod request;
pub mod secret;
pub mod store;
pub mod volume;
pub mod zone;
