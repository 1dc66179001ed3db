//! Sizes and times as people write and read them.

/// Units by their letter, largest first.
const UNITS: [(char, u32); 4] = [('T', 40), ('G', 30), ('M', 20), ('K', 10)];

/// Parses a size in bytes: digits, then nothing or one of K, M, G, T (powers of 1024; `KiB` and so
/// on are the same). For clap, hence the `String`.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let advice = "write a whole number of bytes, or one with K, M, G or T, such as 64M";
    if digits.is_empty() {
        return Err(advice.to_owned());
    }
    let shift = match unit.to_ascii_uppercase().trim_end_matches("IB") {
        "" if unit.is_empty() => 0,
        letter => UNITS
            .iter()
            .find(|(name, _)| letter.chars().eq([*name]))
            .map(|&(_, shift)| shift)
            .ok_or_else(|| advice.to_owned())?,
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|count| count.checked_mul(1 << shift))
        .ok_or_else(|| "does not fit 64 bits".to_owned())
}

/// A size in the largest unit that holds it exactly: `64 MiB`, `4097 bytes`.
pub(super) fn show_size(bytes: u64) -> String {
    for (letter, shift) in UNITS {
        if bytes != 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{} {letter}iB", bytes >> shift);
        }
    }
    format!("{bytes} bytes")
}

/// A size as an option takes it, in the largest unit that holds it exactly: `64M`, `4097`.
pub(super) fn size_option(bytes: u64) -> String {
    let unit = UNITS
        .iter()
        .find(|(_, shift)| bytes != 0 && bytes.is_multiple_of(1 << shift));
    match unit {
        Some((letter, shift)) => format!("{}{letter}", bytes >> shift),
        None => bytes.to_string(),
    }
}

/// Seconds since 1970 as `2026-03-01 12:00:00 UTC`.
pub(super) fn show_time(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} UTC",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

/// The Gregorian date that lies `days` after 1970-01-01. Years are counted from March, so that the
/// leap day is the last day of its year and the months before it have a fixed pattern of lengths.
fn civil(days: u64) -> (u64, u64, u64) {
    const DAYS_OF_400_YEARS: u64 = 146_097;
    /// Days from 0000-03-01 to 1970-01-01.
    const EPOCH: u64 = 719_468;
    let since = days.saturating_add(EPOCH);
    let (era, day) = (since / DAYS_OF_400_YEARS, since % DAYS_OF_400_YEARS);
    // Leap days so far within the 400 years: one in 4 years, but not in 100, and the last day.
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    // March to July, August to December and January, February share 31, 30, 31, 30, 31: 153 days.
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    (era * 400 + year + next, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary_and_exact() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("4k", 4096),
            ("64M", 64 << 20),
            ("64MiB", 64 << 20),
            ("2g", 2 << 30),
            ("1T", 1 << 40),
            ("16777215T", 16_777_215 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in [
            "", "M", "-1", "1.5G", "1 G", "1MB", "1X", "1iB", "1KK", "0x10", "1é",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        for text in [
            "18446744073709551616",
            "16777216T",
            "99999999999999999999999",
        ] {
            assert!(parse_size(text).unwrap_err().contains("64 bits"), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_in_the_unit_that_fits() {
        assert_eq!(show_size(64 << 20), "64 MiB");
        assert_eq!(show_size(1536 << 20), "1536 MiB");
        assert_eq!(show_size(4097), "4097 bytes");
        assert_eq!(show_size(0), "0 bytes");
        for bytes in [0, 512, 4096, 4097, 960 << 10, 64 << 20, 3 << 40] {
            assert_eq!(parse_size(&size_option(bytes)), Ok(bytes));
        }
        assert_eq!(size_option(960 << 10), "960K");
    }

    #[test]
    fn dates_follow_the_calendar() {
        assert_eq!(show_time(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(show_time(951_782_399), "2000-02-28 23:59:59 UTC");
        assert_eq!(show_time(951_782_400), "2000-02-29 00:00:00 UTC");
        assert_eq!(show_time(1_767_225_599), "2025-12-31 23:59:59 UTC");
        assert_eq!(show_time(4_107_542_400), "2100-03-01 00:00:00 UTC");
        // Every day of four centuries follows the one before.
        let mut last = civil(0);
        for days in 1..146_097 {
            let next = civil(days);
            let (year, month, day) = next;
            assert!(next > last && (1..=12).contains(&month) && (1..=31).contains(&day));
            assert!(day == last.2 + 1 || day == 1, "{year}");
            last = next;
        }
        assert_eq!(last, (2369, 12, 31));
        assert!(show_time(u64::MAX).starts_with("5845"));
    }
}
