//! Disks that file systems take: what `--for` picks, and what it refuses.
//!
//! The figures are demands of mkfs and mount of Linux 6.12 and later; each constant says whose.

use clap::ValueEnum;

use crate::geometry::{Geometry, MAX_ZONE_SIZE, MIN_ZONE_SIZE, Model};

use super::size::show_size;

/// Most zones that a default zone size leads to: the report of so many still takes milliseconds.
const DEFAULT_MAX_ZONES: u64 = 1 << 16;

/// btrfs: BTRFS_MIN_ACTIVE_ZONES, 3 superblock mirrors and 5 block groups.
const BTRFS_MIN_ACTIVE: u32 = 8;
/// btrfs: 2 superblock zones and the block groups of mkfs with its default profiles, DUP and single.
const BTRFS_MIN_ZONES: u32 = 12;
/// btrfs: BTRFS_MIN_ZONE_SIZE and BTRFS_MAX_ZONE_SIZE.
const BTRFS_ZONE_SIZE: (u64, u64) = (4 << 20, 8 << 30);
/// XFS: 3 zones that garbage collection needs, one to write, one for slack.
const XFS_MIN_SEQUENTIAL: u32 = 5;
/// XFS: one zone open for writing and one for garbage collection.
const XFS_MIN_OPEN: u32 = 2;
/// mkfs.xfs takes no data section (here: the conventional zones) below 300 MB.
const XFS_MIN_CONVENTIONAL: u64 = 300 << 20;
/// What the preset gives to metadata and log at least.
const XFS_DEFAULT_CONVENTIONAL: u64 = 384 << 20;
/// f2fs: a segment, of which a zone must be a multiple.
const F2FS_SEGMENT: u64 = 2 << 20;
/// f2fs: its six logs each have a zone open.
const F2FS_MIN_OPEN: u32 = 6;
/// f2fs: largest file system.
const F2FS_MAX_SIZE: u64 = 16 << 40;
/// What the preset gives to superblock, checkpoints and tables at least.
const F2FS_DEFAULT_CONVENTIONAL: u64 = 64 << 20;
/// f2fs: block sizes are those of a page.
const F2FS_BLOCK: u64 = 4096;

/// A file system that the disk is meant for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum FileSystem {
    /// btrfs in zoned mode: no conventional zones
    Btrfs,
    /// XFS with a zoned realtime section: conventional zones for metadata and log
    Xfs,
    /// f2fs: conventional zones for its metadata
    F2fs,
    /// zonefs: a file a zone
    Zonefs,
}

/// What a default zone size aims at.
#[derive(Clone, Copy, Debug)]
pub(super) struct ZoneAim {
    /// Largest zone size, unless there would be too many zones.
    largest: u64,
    /// Smallest.
    smallest: u64,
    /// At least so many zones.
    zones: u64,
}

/// For disks of no stated purpose.
const GENERAL: ZoneAim = ZoneAim {
    largest: 64 << 20,
    smallest: MIN_ZONE_SIZE,
    zones: 16,
};

impl ZoneAim {
    /// The aim for a file system, or for none.
    pub(super) fn of(purpose: Option<FileSystem>) -> Self {
        match purpose {
            None | Some(FileSystem::Zonefs) => GENERAL,
            Some(FileSystem::Btrfs) => Self {
                largest: 256 << 20,
                smallest: BTRFS_ZONE_SIZE.0,
                zones: 32,
            },
            Some(FileSystem::Xfs) => Self {
                largest: 256 << 20,
                smallest: 4 << 20,
                zones: 32,
            },
            Some(FileSystem::F2fs) => Self {
                largest: 64 << 20,
                smallest: F2FS_SEGMENT,
                zones: 64,
            },
        }
    }

    /// A zone size for a disk of `size` bytes: a power of two that divides it if there is one in
    /// range, large enough that zones are not too many, and small enough that they are not too few.
    pub(super) fn zone_size(self, size: u64) -> u64 {
        let mut zone = self.largest;
        while size / zone > DEFAULT_MAX_ZONES && zone < MAX_ZONE_SIZE {
            zone *= 2;
        }
        while zone > self.smallest && (size / zone < self.zones || !size.is_multiple_of(zone)) {
            zone /= 2;
        }
        zone
    }
}

impl FileSystem {
    /// Conventional zones to begin with, if the command line names no number.
    pub(super) fn conventional(self, size: u64, zone_size: u64) -> u64 {
        let bytes = match self {
            Self::Btrfs | Self::Zonefs => 0,
            Self::Xfs => (size / 100).max(XFS_DEFAULT_CONVENTIONAL),
            Self::F2fs => (size / 100).max(F2FS_DEFAULT_CONVENTIONAL),
        };
        bytes.div_ceil(zone_size)
    }

    /// The name, as on the command line.
    const fn name(self) -> &'static str {
        match self {
            Self::Btrfs => "btrfs",
            Self::Xfs => "xfs",
            Self::F2fs => "f2fs",
            Self::Zonefs => "zonefs",
        }
    }

    /// Refuses what this file system would refuse, with the reason.
    pub(super) fn check(self, geometry: &Geometry) -> Result<(), String> {
        let found = match self {
            Self::Btrfs => check_btrfs(geometry),
            Self::Xfs => check_xfs(geometry),
            Self::F2fs => check_f2fs(geometry),
            Self::Zonefs if geometry.zones() < 2 => {
                Err("it needs a zone for its superblock and one for data".to_owned())
            }
            Self::Zonefs => Ok(()),
        };
        found.map_err(|reason| format!("{} will not take this disk: {reason}", self.name()))
    }
}

fn check_btrfs(geometry: &Geometry) -> Result<(), String> {
    let zone = geometry.zone_size();
    let (least, most) = BTRFS_ZONE_SIZE;
    if !(least..=most).contains(&zone) {
        return Err(format!(
            "zones of {} are out of its range, {} to {}",
            show_size(zone),
            show_size(least),
            show_size(most)
        ));
    }
    if geometry.zones() < BTRFS_MIN_ZONES {
        return Err(format!(
            "it needs {BTRFS_MIN_ZONES} zones or more, this has {}: choose a larger --size or a \
             smaller --zone-size",
            geometry.zones()
        ));
    }
    if limited_below(geometry.max_active(), BTRFS_MIN_ACTIVE)
        || limited_below(geometry.max_open(), BTRFS_MIN_ACTIVE)
    {
        return Err(format!(
            "it needs {BTRFS_MIN_ACTIVE} open and active zones or more (0: no limit)"
        ));
    }
    Ok(())
}

fn check_xfs(geometry: &Geometry) -> Result<(), String> {
    let conventional = u64::from(geometry.conventional()) * geometry.zone_size();
    let least = XFS_MIN_CONVENTIONAL.max(geometry.disk_size() / 100);
    if conventional < least {
        return Err(format!(
            "it keeps metadata and log in conventional zones and needs {} of them or more, this \
             has {}: raise --conventional to {}",
            show_size(least),
            show_size(conventional),
            least.div_ceil(geometry.zone_size())
        ));
    }
    let sequential = geometry.zones() - geometry.conventional();
    if sequential < XFS_MIN_SEQUENTIAL {
        return Err(format!(
            "it needs {XFS_MIN_SEQUENTIAL} sequential zones or more, this has {sequential}: choose \
             a larger --size or a smaller --zone-size"
        ));
    }
    if limited_below(geometry.max_open(), XFS_MIN_OPEN) {
        return Err(format!(
            "it needs {XFS_MIN_OPEN} open zones or more (0: no limit)"
        ));
    }
    Ok(())
}

fn check_f2fs(geometry: &Geometry) -> Result<(), String> {
    if geometry.conventional() == 0 {
        return Err(
            "it keeps its metadata in conventional zones: raise --conventional above 0".to_owned(),
        );
    }
    if !geometry.zone_size().is_multiple_of(F2FS_SEGMENT) {
        return Err(format!(
            "its segments are {}, and zones must be a multiple of that",
            show_size(F2FS_SEGMENT)
        ));
    }
    if limited_below(geometry.max_open(), F2FS_MIN_OPEN) {
        return Err(format!(
            "its {F2FS_MIN_OPEN} logs need as many open zones (0: no limit)"
        ));
    }
    if geometry.disk_size() > F2FS_MAX_SIZE {
        return Err(format!("it ends at {}", show_size(F2FS_MAX_SIZE)));
    }
    if geometry.block_size().bytes() != F2FS_BLOCK {
        return Err(format!("its blocks are {F2FS_BLOCK} bytes"));
    }
    Ok(())
}

/// Whether a limit of which 0 means none is below `least`.
const fn limited_below(limit: u32, least: u32) -> bool {
    limit != 0 && limit < least
}

/// Open and active limits where the command line gives neither or one of them.
///
/// 128, as SMR disks have and as Linux assumes; half of the sequential zones where that is less,
/// because Linux takes a limit that no zone count can reach for none, and zoned btrfs of Linux 7.3
/// hangs on small disks without a limit. Never below 14, which btrfs and XFS work with.
pub(super) fn default_limits(
    model: Model,
    sequential: u64,
    open: Option<u32>,
    active: Option<u32>,
) -> (u32, u32) {
    const USUAL: u64 = 128;
    const LEAST: u64 = 14;
    if model == Model::Plain {
        return (0, 0);
    }
    let usual = if sequential > LEAST {
        u32::try_from((sequential / 2).clamp(LEAST, USUAL)).unwrap_or(0)
    } else {
        0
    };
    match (open, active) {
        (Some(open), Some(active)) => (open, active),
        // An open zone is active: a larger open limit lifts the usual active limit.
        (Some(open), None) => (open, if open > usual { 0 } else { usual }),
        (None, Some(0)) => (usual, 0),
        (None, Some(active)) if usual == 0 => (active, active),
        (None, Some(active)) => (usual.min(active), active),
        (None, None) => (usual, usual),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zone_sizes_suit_the_disk() {
        let general = |size| ZoneAim::of(None).zone_size(size);
        assert_eq!(general(2 << 30), 64 << 20);
        assert_eq!(general(1 << 30), 64 << 20);
        assert_eq!(general(512 << 20), 32 << 20);
        assert_eq!(general(16 << 20), 1 << 20);
        assert_eq!(general(8 << 40), 128 << 20);
        assert_eq!(general((1 << 30) + (4 << 20)), 4 << 20);
        assert_eq!(general(1), MIN_ZONE_SIZE);
        assert_eq!(general(0), MIN_ZONE_SIZE);
        assert_eq!(general(u64::MAX), MIN_ZONE_SIZE);
        let btrfs = |size| ZoneAim::of(Some(FileSystem::Btrfs)).zone_size(size);
        assert_eq!(btrfs(2 << 30), 64 << 20);
        assert_eq!(btrfs(64 << 20), 4 << 20);
        assert_eq!(btrfs(1 << 40), 256 << 20);
    }

    #[test]
    fn limits_never_contradict_each_other() {
        for sequential in [1, 128, 129, 70_000] {
            for open in [None, Some(0), Some(1), Some(128), Some(500)] {
                for active in [None, Some(0), Some(1), Some(128), Some(500)] {
                    let limits = default_limits(Model::HostManaged, sequential, open, active);
                    assert_eq!(limits.0, open.unwrap_or(limits.0));
                    assert_eq!(limits.1, active.unwrap_or(limits.1));
                    let sound = limits.1 == 0 || limits.0 <= limits.1;
                    assert!(sound || (open.is_some() && active.is_some()), "{limits:?}");
                }
            }
        }
        let usual = |sequential| default_limits(Model::HostManaged, sequential, None, None);
        let zones = [14, 15, 32, 255, 256, 70_000];
        assert_eq!(
            zones.map(|count| usual(count).0),
            [0, 14, 16, 127, 128, 128]
        );
        assert!(zones.iter().all(|&count| usual(count).0 == usual(count).1));
    }
}
