//! A picture of the whole disk in the width of a terminal.

use std::io::{self, Write};

use crate::format::LoadedRecord;
use crate::geometry::Geometry;
use crate::zone::ZoneState;

use super::size::show_size;

/// Width where there is no terminal.
const DEFAULT_WIDTH: usize = 80;
/// Columns for the number of a line's first zone, and a space.
const LABEL_WIDTH: usize = 9;
/// Most lines of the picture: less than a terminal's height, so that it can be seen at once.
const MAX_LINES: usize = 16;
/// Fewest and most zones' worth of characters on a line.
const CELLS: (usize, usize) = (16, 256);

/// What a character stands for, from what deserves to be seen most to what does least: of a group
/// of zones the first that occurs is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Cell {
    Lost,
    Offline,
    ReadOnly,
    Open,
    Closed,
    /// Full and empty ones together.
    Mixed,
    Full,
    Conventional,
    Empty,
}

impl Cell {
    const ALL: [Self; 9] = [
        Self::Empty,
        Self::Open,
        Self::Closed,
        Self::Full,
        Self::Mixed,
        Self::Conventional,
        Self::ReadOnly,
        Self::Offline,
        Self::Lost,
    ];

    const fn of(record: &LoadedRecord) -> Self {
        let Some(found) = record.newest else {
            return Self::Lost;
        };
        match found.record.state {
            ZoneState::NotWritePointer => Self::Conventional,
            ZoneState::Empty => Self::Empty,
            ZoneState::ImplicitOpen | ZoneState::ExplicitOpen => Self::Open,
            ZoneState::Closed => Self::Closed,
            ZoneState::Full => Self::Full,
            ZoneState::ReadOnly => Self::ReadOnly,
            ZoneState::Offline => Self::Offline,
        }
    }

    /// One character for a group.
    fn of_group(records: &[LoadedRecord]) -> Self {
        let cells = || records.iter().map(Self::of);
        match cells().min() {
            Some(Self::Full) if cells().any(|cell| cell != Self::Full) => Self::Mixed,
            Some(cell) => cell,
            None => Self::Empty,
        }
    }

    const fn letter(self) -> char {
        match self {
            Self::Lost => '?',
            Self::Offline => '!',
            Self::ReadOnly => 'r',
            Self::Open => 'o',
            Self::Closed => '+',
            Self::Mixed => '%',
            Self::Full => '#',
            Self::Conventional => 'c',
            Self::Empty => '.',
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Lost => "record lost",
            Self::Offline => "offline",
            Self::ReadOnly => "read-only",
            Self::Open => "open",
            Self::Closed => "closed",
            Self::Mixed => "full and others",
            Self::Full => "full",
            Self::Conventional => "conventional",
            Self::Empty => "empty",
        }
    }
}

/// The width of the terminal that standard output is, or 80.
pub(super) fn terminal_width() -> usize {
    terminal_size::terminal_size().map_or(DEFAULT_WIDTH, |(width, _)| usize::from(width.0))
}

/// Draws the disk: powers of two of zones a character and of characters a line, so that places are
/// easy to count, then a legend with how many zones are in each state.
pub(super) fn draw(
    geometry: &Geometry,
    records: &[LoadedRecord],
    width: usize,
    out: &mut impl Write,
) -> io::Result<()> {
    let room = width.saturating_sub(LABEL_WIDTH).clamp(CELLS.0, CELLS.1);
    let cells = 1 << room.ilog2();
    let group = records
        .len()
        .div_ceil(cells * MAX_LINES)
        .max(1)
        .next_power_of_two();
    writeln!(
        out,
        "{} zones of {}, {} a character",
        records.len(),
        show_size(geometry.zone_size()),
        match group {
            1 => "one".to_owned(),
            count => count.to_string(),
        }
    )?;
    for (line, piece) in records.chunks(group * cells).enumerate() {
        let picture: String = piece
            .chunks(group)
            .map(|group| Cell::of_group(group).letter())
            .collect();
        writeln!(out, "{:>8} {picture}", line * group * cells)?;
    }
    for cell in Cell::ALL {
        let count = records.iter().filter(|r| Cell::of(r) == cell).count();
        let shown = count > 0 || (cell == Cell::Mixed && group > 1);
        match (shown, cell) {
            (false, _) => {}
            (true, Cell::Mixed) => writeln!(out, "  {} {}", cell.letter(), cell.name())?,
            (true, _) => writeln!(out, "  {} {:<13} {count}", cell.letter(), cell.name())?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::image::fresh_record;
    use crate::geometry::{Blocks, GeometrySpec, Model};
    use crate::zone::{Loaded, RecordCopy, ZoneSalt};

    fn disk(zones: u64) -> (Geometry, Vec<LoadedRecord>) {
        let geometry = GeometrySpec {
            model: Model::HostManaged,
            block_size: 4096,
            disk_size: zones << 20,
            zone_size: 1 << 20,
            zone_capacity: 1 << 20,
            conventional: 1,
            max_open: 0,
            max_active: 0,
            max_append: 4096,
        }
        .validate()
        .unwrap();
        let records = geometry
            .all_zones()
            .map(|zone| LoadedRecord {
                newest: Some(Loaded {
                    record: fresh_record(&geometry, zone, ZoneSalt([0; 32])),
                    sequence: 0,
                    copy: RecordCopy::A,
                    mirrored: true,
                    proven: Blocks(0),
                }),
                mac: [0; 32],
                faults: [None, None],
                stale: false,
            })
            .collect();
        (geometry, records)
    }

    fn set(records: &mut [LoadedRecord], zone: usize, state: ZoneState) {
        records[zone].newest.as_mut().unwrap().record.state = state;
    }

    fn picture(geometry: &Geometry, records: &[LoadedRecord], width: usize) -> String {
        let mut out = Vec::new();
        draw(geometry, records, width, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_small_disk_has_a_character_a_zone() {
        let (geometry, mut records) = disk(20);
        set(&mut records, 1, ZoneState::Full);
        set(&mut records, 2, ZoneState::ImplicitOpen);
        set(&mut records, 3, ZoneState::Closed);
        set(&mut records, 4, ZoneState::ReadOnly);
        set(&mut records, 5, ZoneState::Offline);
        records[6].newest = None;
        let shown = picture(&geometry, &records, 80);
        assert!(shown.starts_with("20 zones of 1 MiB, one a character\n"));
        assert!(shown.contains("       0 c#o+r!?.............\n"), "{shown}");
        assert!(shown.contains("  . empty         13\n"), "{shown}");
        assert!(!shown.contains('%'), "{shown}");
    }

    #[test]
    fn a_large_disk_fits_the_screen_and_hides_no_trouble() {
        let (geometry, mut records) = disk(100_000);
        for zone in 1..5000 {
            set(&mut records, zone, ZoneState::Full);
        }
        set(&mut records, 77_777, ZoneState::Offline);
        for width in [0, 20, 80, 200, 10_000] {
            let shown = picture(&geometry, &records, width);
            let lines: Vec<&str> = shown.lines().collect();
            assert!(lines.len() < 30, "{width}");
            assert!(lines.iter().all(|line| line.len() <= width.max(60)));
            let is_picture = |line: &&&str| {
                line.get(..8)
                    .is_some_and(|label| label.trim().parse::<usize>().is_ok())
            };
            let picture: String = lines.iter().filter(is_picture).map(|l| &l[9..]).collect();
            let drawn = |letter| picture.contains(letter);
            assert!(
                drawn('#') && drawn('!') && drawn('%') && drawn('.'),
                "{shown}"
            );
        }
    }

    #[test]
    fn groups_show_what_matters_most() {
        let (_, mut records) = disk(4);
        assert_eq!(Cell::of_group(&records[1..]), Cell::Empty);
        set(&mut records, 1, ZoneState::Full);
        assert_eq!(Cell::of_group(&records[1..]), Cell::Mixed);
        assert_eq!(Cell::of_group(&records[1..2]), Cell::Full);
        set(&mut records, 2, ZoneState::ExplicitOpen);
        assert_eq!(Cell::of_group(&records[1..]), Cell::Open);
        records[3].newest = None;
        assert_eq!(Cell::of_group(&records[1..]), Cell::Lost);
    }
}
