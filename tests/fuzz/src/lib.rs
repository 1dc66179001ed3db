//! What the fuzz targets share: shapes of disks, guest memory, and a volume whose key is known, so
//! that what a fuzzer makes up can be sealed and is looked at behind the MAC.
//!
//! [`seal`] is written from the format's specification, not from the code that it tests.

pub mod common;
pub mod disk;
pub mod guest;
pub mod seal;

#[path = "../../common/model.rs"]
pub mod model;

use arbitrary::{Result, Unstructured};
use zonevault::geometry::{Geometry, GeometrySpec, Model};

/// Zone size of [`small_disk`].
pub const ZONE: u64 = 64 << 10;

/// One of the small disks: a few zones of [`ZONE`], of either model and either block size.
pub fn small_disk(u: &mut Unstructured<'_>, zones: u32) -> Result<Geometry> {
    let zones = u.int_in_range(1..=zones)?;
    let block = *u.choose(&[512, 4096])?;
    let plain = u.ratio(1_u8, 4_u8)?;
    let short = if plain { u.int_in_range(0..=3)? } else { 0 };
    let capacity = block * u.int_in_range(1..=ZONE / block)?;
    let active = u.int_in_range(0..=5)?;
    let open = u.int_in_range(0..=5_u32)?;
    let spec = GeometrySpec {
        model: if plain {
            Model::Plain
        } else {
            Model::HostManaged
        },
        block_size: block,
        disk_size: u64::from(zones) * ZONE - short * block,
        zone_size: ZONE,
        zone_capacity: capacity,
        conventional: u.int_in_range(0..=zones - 1)?,
        max_open: if active == 0 { open } else { open.min(active) },
        max_active: active,
        max_append: block * u.int_in_range(1..=capacity / block)?,
    };
    Ok(spec.validate().expect("a disk as it should be"))
}

/// The reference model of a disk.
pub fn model_of(geometry: &Geometry) -> model::Model {
    let spec = geometry.spec();
    model::Model::new(model::Geometry {
        zones: geometry.zones().into(),
        zone_size: ZONE / 512,
        zone_capacity: spec.zone_capacity / 512,
        conventional: spec.conventional.into(),
        max_open: spec.max_open.into(),
        max_active: spec.max_active.into(),
        max_append: spec.max_append / 512,
        block: spec.block_size / 512,
    })
}
