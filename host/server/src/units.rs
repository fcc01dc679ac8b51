//! Durations, sizes and moments as people write them. What is printed here is read here.

use millrace_model::calendar::days_since_1970;

/// Milliseconds of a unit of time.
const DURATIONS: [(&str, u64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
];
/// Bytes of a unit of size.
const SIZES: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
];

/// Milliseconds of a text such as `7d`, `90m` or `1500ms`.
pub(crate) fn duration_ms(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no duration; write 7d, 12h, 30m, 45s or 500ms");
    measured(text, &DURATIONS).ok_or_else(wrong)
}

/// Bytes of a text such as `10GiB`, `500MB` or `65536`.
pub(crate) fn size_bytes(text: &str) -> Result<u64, String> {
    let wrong =
        || format!("{text:?} is no size; write 10GiB, 512MiB, 64KiB, 10GB or a number of bytes");
    let plain = text.parse().ok();
    plain.or_else(|| measured(text, &SIZES)).ok_or_else(wrong)
}

fn measured(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(unit_at);
    let unit = unit.trim_start();
    let (_, scale) = units.iter().find(|(name, _)| unit == *name)?;
    number.parse::<u64>().ok()?.checked_mul(*scale)
}

/// Milliseconds as [`duration_ms`] reads them, in the largest unit that fits exactly.
pub(crate) fn duration_text(ms: u64) -> String {
    exact(ms, &DURATIONS)
}

/// Bytes as [`size_bytes`] reads them, in the largest binary unit that fits exactly.
pub(crate) fn size_text(bytes: u64) -> String {
    exact(bytes, &SIZES[..5])
}

fn exact(number: u64, units: &[(&str, u64)]) -> String {
    let fits = |(_, scale): &&(&str, u64)| number >= *scale && number.is_multiple_of(*scale);
    let (unit, scale) = units
        .iter()
        .find(fits)
        .or_else(|| units.last())
        .unwrap_or(&("", 1));
    format!("{}{unit}", number / scale)
}

/// Milliseconds since the Unix epoch of a date and time as RFC 3339 has it; fractions of milliseconds are cut.
pub(crate) fn moment_ms(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no date and time; write 2026-11-21T10:00:00Z");
    moment(text).ok_or_else(wrong)
}

fn moment(text: &str) -> Option<u64> {
    let (date, time) = text.split_once(['T', 't', ' '])?;
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let zone_at = time.find(['Z', 'z', '+', '-'])?;
    let (clock, zone) = time.split_at(zone_at);
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let [hour, minute, second] = numbers(clock, ':', [2, 2, 2])?;
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let month_days = match month {
        2 => 28 + u64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if day == 0 || day > month_days || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let minutes = (days_since_1970(year, month, day) * 24 + hour as i64) * 60 + minute as i64;
    let ms = ((minutes - offset_minutes(zone)?) * 60 + second as i64) * 1_000;
    u64::try_from(ms + fraction_ms(fraction)?).ok()
}

/// Numbers of exactly so many digits each.
fn numbers(text: &str, between: char, digits: [usize; 3]) -> Option<[u64; 3]> {
    let mut parts = text.split(between);
    let mut found = [0; 3];
    for (number, digits) in found.iter_mut().zip(digits) {
        let part = parts.next().filter(|part| part.len() == digits)?;
        let plain = part.bytes().all(|byte| byte.is_ascii_digit());
        *number = part.parse().ok().filter(|_| plain)?;
    }
    parts.next().is_none().then_some(found)
}

fn fraction_ms(digits: &str) -> Option<i64> {
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let padded: String = digits.chars().chain("00".chars()).take(3).collect();
    padded.parse().ok().filter(|_| plain)
}

fn offset_minutes(zone: &str) -> Option<i64> {
    let sign = match zone.as_bytes().first()? {
        b'Z' | b'z' => return (zone.len() == 1).then_some(0),
        b'+' => 1,
        _ => -1,
    };
    let (hours, minutes) = zone[1..].split_once(':')?;
    let [hours, minutes, _] = numbers(&format!("{hours}:{minutes}:00"), ':', [2, 2, 2])?;
    (hours < 24 && minutes < 60).then_some(sign * (hours * 60 + minutes) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_read_back() {
        for ms in [0, 1, 999, 1_000, 90_000, 3_600_000, 604_800_000, 86_400_001] {
            assert_eq!(duration_ms(&duration_text(ms)), Ok(ms));
        }
        for bytes in [
            0,
            1,
            1_023,
            1_024,
            65_536,
            10 << 30,
            (3 << 40) + 1,
            u64::MAX,
        ] {
            assert_eq!(size_bytes(&size_text(bytes)), Ok(bytes));
        }
        assert_eq!(duration_text(604_800_000), "7d");
        assert_eq!(size_text(10 << 30), "10GiB");
    }

    #[test]
    fn what_people_write_is_understood_and_slips_are_answered_with_examples() {
        assert_eq!(duration_ms("90 m"), Ok(5_400_000));
        assert_eq!(size_bytes("500MB"), Ok(500_000_000));
        assert_eq!(size_bytes("65536"), Ok(65_536));
        for wrong in [
            "",
            "7",
            "d",
            "-1d",
            "1.5h",
            "7 days",
            "99999999999999999999d",
        ] {
            assert!(duration_ms(wrong).expect_err(wrong).contains("write 7d"));
        }
        for wrong in ["", "GiB", "-1", "1e3", "99999999999TiB"] {
            assert!(size_bytes(wrong).expect_err(wrong).contains("write 10GiB"));
        }
    }

    #[test]
    fn moments_are_read_as_rfc_3339_has_them() {
        for (text, ms) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T00:00:00Z", 951_782_400_000),
            ("2024-02-29T23:59:59.999Z", 1_709_251_199_999),
            ("2100-03-01 00:00:00z", 4_107_542_400_000),
            ("2025-12-31T23:59:59.0019+00:00", 1_767_225_599_001),
            ("2026-01-01T01:59:59.5+02:00", 1_767_225_599_500),
        ] {
            assert_eq!(moment_ms(text), Ok(ms), "{text}");
        }
        for wrong in [
            "",
            "yesterday",
            "2026-11-21",
            "2026-11-21T10:00:00",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-11-21T24:00:00Z",
            "2026-11-21T10:00Z",
            "1969-12-31T23:59:59Z",
            "2026-11-21T10:00:00+2:00",
            "2026-11-21T10:00:00.Z",
            "+026-11-21T10:00:00Z",
            "2026-11-21T10:00:00é",
        ] {
            assert!(moment_ms(wrong).is_err(), "{wrong}");
        }
    }
}
