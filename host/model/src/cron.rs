//! Cron patterns, in UTC: at which seconds something is due. Five fields (minute, hour, day of the month, month, day of the week),
//! or six with seconds in front; `*`, lists, ranges, steps, and names of months and days. As in cron, where both days are given
//! (neither begins with `*`), either will do. No time zones: UTC has no hour that is missing or comes twice.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::calendar::date;
use crate::clock::Timestamp;

const SECONDS_OF_DAY: u64 = 86_400;
/// The longest that a day may be away which comes at all: 29 February on one day of the week, over a year that is no leap year.
const DAYS_AHEAD_MAX: u64 = 40 * 366;
/// Characters of a pattern.
pub const CRON_CHARS_MAX: usize = 256;

const MONTHS: [&str; 12] = [
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const NICKNAMES: [(&str, &str); 6] = [
    ("@yearly", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];

/// Why a text is no pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no cron pattern: {why}; write minute, hour, day, month and day of the week, such as \"*/5 * * * *\", with seconds in front if you like"
)]
pub struct CronError {
    text: String,
    why: String,
}

/// A pattern that some second matches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cron {
    text: String,
    /// A bit for each number that matches.
    seconds: u64,
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Whether either day will do.
    either_day: bool,
}

/// What a field may say.
struct Field {
    name: &'static str,
    first: u64,
    last: u64,
    names: &'static [&'static str],
}

const SECOND: Field = Field::numbers("second", 0, 59);
const MINUTE: Field = Field::numbers("minute", 0, 59);
const HOUR: Field = Field::numbers("hour", 0, 23);
const DAY: Field = Field::numbers("day", 1, 31);
const MONTH: Field = Field {
    names: &MONTHS,
    ..Field::numbers("month", 1, 12)
};
/// 7 is Sunday as well.
const WEEKDAY: Field = Field {
    names: &DAYS,
    ..Field::numbers("day of the week", 0, 7)
};

impl Cron {
    /// Understands a pattern.
    ///
    /// # Errors
    /// [`CronError`], also for one that no date ever matches.
    pub fn parse(text: &str) -> Result<Self, CronError> {
        let error = |why: String| CronError {
            text: text.chars().take(CRON_CHARS_MAX).collect(),
            why,
        };
        if text.len() > CRON_CHARS_MAX {
            return Err(error(format!("it has more than {CRON_CHARS_MAX} bytes")));
        }
        let nickname = NICKNAMES.iter().find(|(name, _)| *name == text.trim());
        let meant = nickname.map_or(text, |(_, meant)| *meant).to_lowercase();
        let mut fields: Vec<&str> = meant.split_whitespace().collect();
        if fields.len() == 5 {
            fields.insert(0, "0");
        }
        let fields: [&str; 6] = fields.try_into().map_err(|found: Vec<&str>| {
            error(format!("it has {} fields, not 5 or 6", found.len()))
        })?;
        let [seconds, minutes, hours, days, months, weekdays] = fields;
        let given = |field: &str| !field.starts_with('*');
        let sundays = WEEKDAY.bits(weekdays).map_err(error)?;
        let cron = Self {
            text: text.trim().to_owned(),
            seconds: SECOND.bits(seconds).map_err(error)?,
            minutes: MINUTE.bits(minutes).map_err(error)?,
            hours: HOUR.bits(hours).map_err(error)?,
            days: DAY.bits(days).map_err(error)?,
            months: MONTH.bits(months).map_err(error)?,
            weekdays: sundays | sundays >> 7,
            either_day: given(days) && given(weekdays),
        };
        match cron.comes_ever() {
            true => Ok(cron),
            false => Err(error("no date is ever like that".to_owned())),
        }
    }

    /// The pattern as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The first moment after this one that matches; the end of time if there is none before it.
    #[must_use]
    pub fn next_after(&self, moment: Timestamp) -> Timestamp {
        let after = moment.0 / 1_000 + 1;
        let (mut day, mut second) = (after / SECONDS_OF_DAY, after % SECONDS_OF_DAY);
        let last = day + DAYS_AHEAD_MAX;
        while day <= last {
            if self.matches_day(day)
                && let Some(found) = self.second_from(second)
            {
                let seconds = (day * SECONDS_OF_DAY).saturating_add(found);
                return Timestamp(seconds.saturating_mul(1_000));
            }
            (day, second) = (day + 1, 0);
        }
        Timestamp(u64::MAX)
    }

    fn comes_ever(&self) -> bool {
        (0..DAYS_AHEAD_MAX).any(|day| self.matches_day(day))
    }

    fn matches_day(&self, day: u64) -> bool {
        let (_, month, day_of_month) = date(day);
        // 1 January 1970 was a Thursday.
        let weekday = has(self.weekdays, (day + 4) % 7);
        let day_of_month = has(self.days, day_of_month);
        let fits = match self.either_day {
            true => weekday || day_of_month,
            false => weekday && day_of_month,
        };
        fits && has(self.months, month)
    }

    /// The first second of a day that matches, from this one on.
    fn second_from(&self, second: u64) -> Option<u64> {
        let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
        let later = |minutes: u64, seconds: u64| minutes * 60 + seconds;
        let (first_minute, first_second) = (from(self.minutes, 0)?, from(self.seconds, 0)?);
        if has(self.hours, hour) {
            if has(self.minutes, minute)
                && let Some(second) = from(self.seconds, second)
            {
                return Some(hour * 3_600 + later(minute, second));
            }
            if let Some(minute) = from(self.minutes, minute + 1) {
                return Some(hour * 3_600 + later(minute, first_second));
            }
        }
        let hour = from(self.hours, hour + 1)?;
        Some(hour * 3_600 + later(first_minute, first_second))
    }
}

/// The first number that matches, from this one on.
fn from(bits: u64, number: u64) -> Option<u64> {
    let rest = bits.checked_shr(u32::try_from(number).ok()?)?;
    (rest != 0).then(|| number + u64::from(rest.trailing_zeros()))
}

fn has(bits: u64, number: u64) -> bool {
    bits >> number & 1 == 1
}

impl Field {
    const fn numbers(name: &'static str, first: u64, last: u64) -> Self {
        Self {
            name,
            first,
            last,
            names: &[],
        }
    }

    fn bits(&self, text: &str) -> Result<u64, String> {
        text.split(',').try_fold(0, |bits, part| {
            let wrong = || {
                format!(
                    "{part:?} is no {}; it goes from {} to {}",
                    self.name, self.first, self.last
                )
            };
            Ok(bits | self.part(part).ok_or_else(wrong)?)
        })
    }

    /// `*`, `n`, `n-m`, each with `/step`; `n/step` goes to the end.
    fn part(&self, part: &str) -> Option<u64> {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(number(step)?)),
            None => (part, None),
        };
        let (start, end) = match range.split_once('-') {
            _ if range == "*" => (self.first, self.last),
            Some((start, end)) => (self.value(start)?, self.value(end)?),
            None => {
                let value = self.value(range)?;
                (value, if step.is_some() { self.last } else { value })
            }
        };
        let step = step.unwrap_or(1);
        if start > end || step == 0 {
            return None;
        }
        let step = usize::try_from(step).ok()?;
        Some((start..=end).step_by(step).fold(0, |bits, n| bits | 1 << n))
    }

    fn value(&self, text: &str) -> Option<u64> {
        let named = self.names.iter().position(|name| *name == text);
        let value = match named {
            Some(index) => self.first + index as u64,
            None => number(text)?,
        };
        (self.first..=self.last).contains(&value).then_some(value)
    }
}

fn number(text: &str) -> Option<u64> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| plain)
}

impl fmt::Display for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for Cron {
    type Err = CronError;

    fn from_str(text: &str) -> Result<Self, CronError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for Cron {
    type Error = CronError;

    fn try_from(text: String) -> Result<Self, CronError> {
        Self::parse(&text)
    }
}

impl From<Cron> for String {
    fn from(cron: Cron) -> Self {
        cron.text
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::calendar::days_since_1970;

    /// `2026-11-21 10:00:00`, a Saturday.
    fn at(text: &str) -> Timestamp {
        let number = |range: std::ops::Range<usize>| text[range].parse::<u64>().unwrap();
        let days = days_since_1970(number(0..4), number(5..7), number(8..10)) as u64;
        let seconds = number(11..13) * 3_600 + number(14..16) * 60 + number(17..19);
        Timestamp((days * SECONDS_OF_DAY + seconds) * 1_000)
    }

    fn next(pattern: &str, after: &str) -> Timestamp {
        Cron::parse(pattern).unwrap().next_after(at(after))
    }

    #[test]
    fn the_next_moment_is_the_first_one_after_that_matches() {
        for (pattern, after, expected) in [
            ("* * * * *", "2026-11-21 10:00:00", "2026-11-21 10:01:00"),
            ("* * * * * *", "2026-11-21 10:00:59", "2026-11-21 10:01:00"),
            ("*/5 * * * *", "2026-11-21 10:57:30", "2026-11-21 11:00:00"),
            (
                "0 9-17/4 * * *",
                "2026-11-21 17:00:00",
                "2026-11-22 09:00:00",
            ),
            (
                "30 8 * * mon-fri",
                "2026-11-20 09:00:00",
                "2026-11-23 08:30:00",
            ),
            ("0 0 31 * *", "2026-11-21 10:00:00", "2026-12-31 00:00:00"),
            ("0 0 29 2 *", "2026-11-21 10:00:00", "2028-02-29 00:00:00"),
            ("0 0 29 2 *", "2096-03-01 00:00:00", "2104-02-29 00:00:00"),
            ("0 0 29 2 */6", "2026-11-21 10:00:00", "2032-02-29 00:00:00"),
            ("0 0 13 * fri", "2026-11-21 10:00:00", "2026-11-27 00:00:00"),
            ("0 0 * * 7", "2026-11-21 10:00:00", "2026-11-22 00:00:00"),
            (
                "15,45 * * JAN *",
                "2026-11-21 10:00:00",
                "2027-01-01 00:15:00",
            ),
            ("@monthly", "2026-12-21 10:00:00", "2027-01-01 00:00:00"),
            (
                "30 5/20 * * * *",
                "2026-11-21 10:45:30",
                "2026-11-21 11:05:30",
            ),
        ] {
            assert_eq!(
                next(pattern, after),
                at(expected),
                "{pattern} after {after}"
            );
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        for wrong in [
            "",
            "* * * *",
            "* * * * * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * * 13 *",
            "* * * * 8",
            "5-1 * * * *",
            "*/0 * * * *",
            "a * * * *",
            "1- * * * *",
            "+1 * * * *",
            "0 0 31 2 *",
            "0 0 30 feb *",
            "1,,2 * * * *",
            "@never",
        ] {
            assert!(Cron::parse(wrong).is_err(), "{wrong:?}");
        }
        assert!(Cron::parse(&" ".repeat(CRON_CHARS_MAX + 1)).is_err());
    }

    fn field(last: u64) -> impl Strategy<Value = String> {
        prop_oneof![
            Just("*".to_owned()),
            (1..last).prop_map(|n| n.to_string()),
            (2..last).prop_map(|n| format!("*/{n}")),
        ]
    }

    proptest! {
        #[test]
        fn no_moment_that_matches_is_passed_over(
            second in field(59), minute in field(59), hour in field(23), after in 0_u64..4_000_000_000,
        ) {
            let cron = Cron::parse(&format!("{second} {minute} {hour} * * *")).unwrap();
            let next = cron.next_after(Timestamp(after * 1_000)).0 / 1_000;
            prop_assert!(next > after && next <= after + SECONDS_OF_DAY);
            let of_day = |second: u64| cron.second_from(second % SECONDS_OF_DAY) == Some(second % SECONDS_OF_DAY);
            prop_assert!(of_day(next));
            prop_assert!(!(after + 1..next).any(of_day));
        }

        #[test]
        fn any_text_and_any_moment_is_taken_without_panic(text in "[*/,0-9a-z -]{0,30}", moment: u64) {
            if let Ok(cron) = Cron::parse(&text) {
                prop_assert!(cron.next_after(Timestamp(moment)) >= Timestamp(moment / 1_000 * 1_000));
                prop_assert_eq!(Cron::parse(cron.as_str()), Ok(cron));
            }
        }
    }
}
