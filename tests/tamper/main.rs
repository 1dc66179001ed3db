//! Tampering: whatever is changed in an image behind our back, the guest gets what it wrote or an error, never anything
//! else, and never a panic. Each test says what is noticed, what is harmless because nothing uses it, and what the
//! format does not promise to notice; the counts are printed (`--no-capture`) and add up.
//!
//! | file | what happens to the image |
//! |---|---|
//! | `flips` | every byte of it, one at a time |
//! | `swaps` | blocks and tag slots change places, within a zone, between zones, between volumes |
//! | `noise` | noise and zeroes over stretches |
//! | `older` | parts are put back from an older copy: blocks, tags, records, headers, everything |
//!
//! `disk` drives the library; `scene` makes the disks and judges them.

#[cfg(test)]
pub mod disk;
#[cfg(test)]
#[path = "../common/rng.rs"]
pub mod rng;
#[cfg(test)]
pub mod scene;

#[cfg(test)]
mod flips;
#[cfg(test)]
mod noise;
#[cfg(test)]
mod older;
#[cfg(test)]
mod swaps;
