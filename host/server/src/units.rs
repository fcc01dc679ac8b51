//! Durations, sizes and times in the formats for people. What is printed here can be parsed here.

use millrace_model::calendar::days_since_1970;
use millrace_model::unit::check_ms;
use millrace_model::{Clock, SystemClock, Timestamp};

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
    let wrong = || format!("{text:?} is not a duration; write 7d, 12h, 30m, 45s or 500ms");
    measured(text, &DURATIONS).ok_or_else(wrong)
}

/// Bytes of a text such as `10GiB`, `500MB` or `65536`.
pub(crate) fn size_bytes(text: &str) -> Result<u64, String> {
    let wrong =
        || format!("{text:?} is not a size; write 10GiB, 512MiB, 64KiB, 10GB or a number of bytes");
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

/// Milliseconds in the format of [`duration_ms`], in the largest unit that is exact.
pub(crate) fn duration_text(ms: u64) -> String {
    exact(ms, &DURATIONS)
}

/// Bytes in the format of [`size_bytes`], in the largest binary unit that is exact.
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

/// The formats of a time in every command and in the API.
pub(crate) const TIMES: &str = "2026-11-21T10:00:00Z, 2026-11-21, milliseconds since the Unix epoch, now, 15m or -15m (ago), +15m (from now)";

/// Milliseconds since the Unix epoch of a time in any format of [`TIMES`].
pub(crate) fn time_ms(text: &str, now: Timestamp) -> Result<u64, String> {
    let text = text.trim();
    if text.len() == 4
        && let Ok(1970..=2999) = text.parse::<u64>()
    {
        return Err(format!("{text} looks like a year; write {text}-01-01"));
    }
    if let Ok(ms) = text.parse::<u64>() {
        return check_ms(ms, now).map_err(|unit| unit.to_string());
    }
    if text == "now" {
        return Ok(now.0);
    }
    if let Some(ahead) = text.strip_prefix('+')
        && let Ok(ms) = duration_ms(ahead)
    {
        return Ok(now.0.saturating_add(ms));
    }
    if let Ok(ms) = duration_ms(text.strip_prefix('-').unwrap_or(text)) {
        return Ok(now.0.saturating_sub(ms));
    }
    moment(text).ok_or_else(|| format!("{text:?} is not a time; write {TIMES}"))
}

/// Like [`time_ms`], by this machine's clock: for the command line.
pub(crate) fn time(text: &str) -> Result<u64, String> {
    time_ms(text, SystemClock::new().wall())
}

/// Like [`time`], for future times: a duration without a sign counts from now.
pub(crate) fn time_ahead(text: &str) -> Result<u64, String> {
    match duration_ms(text) {
        Ok(_) => time(&format!("+{text}")),
        Err(_) => time(text),
    }
}

/// A date and time in RFC 3339 format, or a date alone, which means midnight UTC; fractions of milliseconds are cut off.
fn moment(text: &str) -> Option<u64> {
    let midnight = || format!("{text}T00:00:00Z");
    let text = &match text.len() {
        10 => midnight(),
        _ => text.to_owned(),
    };
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

/// Numbers with exactly this many digits each.
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
    fn a_time_is_read_in_every_form_and_in_no_other_unit() {
        let now = Timestamp(1_795_255_200_000);
        for (text, ms) in [
            ("now", now.0),
            ("15m", now.0 - 900_000),
            ("-15m", now.0 - 900_000),
            ("+1d", now.0 + 86_400_000),
            ("-400000d", 0),
            ("1795255200123", 1_795_255_200_123),
            ("0", 0),
            ("2026-11-21", 1_795_219_200_000),
            ("2026-11-21T10:00:00Z", 1_795_255_200_000),
            (" 2026-11-21 11:00:00+01:00", 1_795_255_200_000),
        ] {
            assert_eq!(time_ms(text, now), Ok(ms), "{text}");
        }
        for (text, told) in [
            (
                "1795255200",
                "looks like seconds; times are milliseconds: write 1795255200000",
            ),
            ("1795255200000000", "microseconds"),
            ("1795255200000000000", "nanoseconds"),
            ("2026", "looks like a year; write 2026-01-01"),
            ("-5", "write 2026-11-21"),
            ("--15m", "is not a time"),
            ("15 minutes", "is not a time"),
            ("", "is not a time"),
        ] {
            let error = time_ms(text, now).expect_err(text);
            assert!(error.contains(told), "{error}");
        }
        assert!(time_ahead("1h") > time("+59m") && time_ahead("-1h") < time("now"));
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
            assert_eq!(moment(text), Some(ms), "{text}");
        }
        for wrong in [
            "",
            "yesterday",
            "2026-11-2x",
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
            assert_eq!(moment(wrong), None, "{wrong}");
        }
    }
}
