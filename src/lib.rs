//! A vhost-user-blk backend that presents a zoned, encrypted disk to virtual machines.
//!
//! The guest sees a host-managed zoned virtio-blk device; the host stores ciphertext. The device
//! owns every zone's write pointer, so it knows the place of a block before it encrypts it, also
//! for a zone append: many appends of one zone may be in flight, each encrypted for its own place.
//!
//! # The way of a write
//!
//! ```text
//! virtqueue -> request   parse: layout, direction, bounds, all at once, each byte read once
//!           -> zone      admit: state, write pointer, limits -> Grant { zone, start, generation, stamp }
//!           -> volume    copy to a private buffer, beside what this batch wrote before it in the zone
//!           -> keyslot   the key of (zone, generation)
//!           -> integrity encrypt for the place that is known now; fill the tag slots
//!           -> store     submit slots and data, neighbours as one; an operation owns its buffer
//!                        until completed
//!           -> zone      complete, then settle: acknowledgements in write-pointer order,
//!                        each zone's record written before anyone is told
//!           -> queue     status, append sector, used ring, one notification a pass
//! ```
//!
//! A read goes the other way: place, data and slots from the store, verified and decrypted in the
//! private buffer, then copied to the guest. If all it needs is in the page cache that happens in one
//! go (`volume::now`).
//!
//! # Modules, from the guest down
//!
//! | module | what it does | what it must not know |
//! |---|---|---|
//! | [`cli`] | the command line; one line for every error | how a request works |
//! | [`device`] | the vhost-user protocol: features, config, queues started and stopped | crypto, format |
//! | [`queue`] | one worker a virtqueue: chains in, answers out | vhost-user messages, crypto |
//! | [`volume`] | the disk: joins what follows, keeps the order of writes | virtio rings |
//! | [`request`] | the wire layer: chain to command, outcome to status | threads, I/O |
//! | [`zone`] | the state machine: states, write pointers, limits, order of release | I/O |
//! | [`keyslot`] | programmed zone keys, least recently used | files |
//! | [`integrity`] | blocks bound to their place: tags, stamps, bad blocks told from good | files |
//! | [`crypt`] | batched AES-XTS, AES-GCM | zones, files |
//! | [`mod@format`] | the image, byte by byte; protectors; create and unlock | virtio |
//! | [`store`] | where bytes live: files by io_uring or the page cache; the in-memory twin | what bytes mean |
//! | [`sandbox`] | what the daemon gives up before it listens; what each thread may call | what the threads do |
//! | [`secret`] | the volume key and what is derived from it | I/O of data |
//! | [`arena`] | memory that holds keys: locked, undumpable, wiped | what a key is |
//! | [`limit`] | bounded logging | |
//! | [`guard`] | mapped files that somebody else may shorten under us | who maps them |
//! | [`mutant`] | faults for the simulator to find, absent from a normal build | |
//! | [`geometry`] | units, and the shape of a disk | everything |
//!
//! Imports run downward only; `tests/layering.rs` checks it. The on-disk format is specified at
//! [`format::Layout`], [`format::Header`], [`format::Protector`] and [`format::RecordKey`]; the
//! order of writes at [`volume`] and [`zone`].

pub mod arena;
pub mod cli;
pub mod crypt;
pub mod device;
pub mod format;
pub mod geometry;
pub mod guard;
pub mod integrity;
pub mod keyslot;
pub mod limit;
#[doc(hidden)]
pub mod mutant;
pub mod queue;
pub mod request;
pub mod sandbox;
pub mod secret;
pub mod store;
pub mod volume;
pub mod zone;
