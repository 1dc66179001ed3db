//! What the integration tests share: a vhost-user front-end in this process, a reference model of the zoned device and
//! the daemon as a process. Written from the virtio and vhost-user specifications; nothing here uses the crate's code.
//!
//! A test takes the highest layer that can say what it means:
//! [`frontend`] (a session) > [`ops`] (one call a request) > [`queue`] (submit and reap, many in flight, hand-made
//! chains) > [`ring`] and [`wire`] (every field and every byte). Every wait ends by itself after [`wire::PATIENCE`].
//! The reference model (`model.rs`) is taken in by the tests that need it.

pub mod daemon;
pub mod disk;
pub mod frontend;
pub mod inflight;
pub mod memory;
pub mod ops;
pub mod queue;
pub mod refused;
pub mod request;
pub mod ring;
pub mod rng;
pub mod stamps;
pub mod wire;
