//! A file system that forgets: it keeps a few files in memory, and at a power cut loses of them what no sync covered.
//!
//! The daemon under test runs on an image in it as on any other, sees its own writes at once, and finds after
//! [`mount::Mount::cut`] what a machine finds whose power failed: of the unsynced sectors some, all or none.

pub mod campaign;
pub mod known;
pub mod load;
pub mod machine;
pub mod medium;
pub mod mount;
