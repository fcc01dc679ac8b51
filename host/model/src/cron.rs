//! Cron patterns, in UTC: the seconds at which something is due. Five fields (minute, hour, day of the month, month, day of the week),
//! or six with seconds first; `*`, lists, ranges, steps, and names of months and days. A range may wrap around: `fri-sun`, `22-2`. As
//! in cron, if both days are restricted (neither begins with `*`), either is enough. No time zones: UTC has no missing or repeated
//! hour.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::advice::{Advice, Advised};
use crate::calendar::date;
use crate::clock::Timestamp;
use crate::codes::Code;

const SECONDS_OF_DAY: u64 = 86_400;
/// The longest time until a matching day: 29 February on a given day of the week, across a year that is no leap year.
const DAYS_AHEAD_MAX: u64 = 40 * 366;
/// Characters of a pattern.
pub const CRON_CHARS_MAX: usize = 256;

const MONTHS: [&str; 12] = [
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
const NICKNAMES: [(&str, &str); 7] = [
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];

/// Why a text is not a pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a cron pattern: {why}")]
pub struct CronError {
    text: String,
    why: String,
}

impl Advised for CronError {
    fn advice(&self) -> Advice {
        Code::BadCron.advice()
    }
}

/// A pattern that some second matches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cron {
    text: String,
    /// A bit for each matching number.
    seconds: u64,
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// Whether either day is enough.
    either_day: bool,
}

/// The possible values of a field.
struct Field {
    name: &'static str,
    first: u64,
    last: u64,
    /// After this many numbers the first one comes again.
    period: u64,
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
    period: 7,
    ..Field::numbers("day of the week", 0, 7)
};

impl Cron {
    /// Parses a pattern.
    ///
    /// # Errors
    /// [`CronError`], also for a pattern that no date ever matches.
    pub fn parse(text: &str) -> Result<Self, CronError> {
        let error = |why: String| CronError {
            text: text.chars().take(CRON_CHARS_MAX).collect(),
            why,
        };
        if text.len() > CRON_CHARS_MAX {
            return Err(error(format!("it has more than {CRON_CHARS_MAX} bytes")));
        }
        let lower = text.trim().to_lowercase();
        let nickname = NICKNAMES.iter().find(|(name, _)| *name == lower);
        if nickname.is_none() && lower.starts_with('@') {
            let known: Vec<&str> = NICKNAMES.iter().map(|(name, _)| *name).collect();
            return Err(error(format!("write one of {}", known.join(", "))));
        }
        let meant = nickname.map_or(&*lower, |(_, meant)| *meant);
        let mut fields: Vec<&str> = meant.split_whitespace().collect();
        if fields.len() == 5 {
            fields.insert(0, "0");
        }
        let fields: [&str; 6] = fields
            .try_into()
            .map_err(|found: Vec<&str>| error(number_of_fields(found.len())))?;
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
            false => Err(error(cron.never_comes())),
        }
    }

    /// Why no date ever matches: none of the given months has such a day.
    fn never_comes(&self) -> String {
        let named = |bits: u64, first: u64| (first..=31).filter(move |&n| has(bits, n));
        let longest = named(self.months, 1).map(|month| match month {
            2 => 29,
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        });
        let month_names = named(self.months, 1).filter_map(|month| MONTHS.get(month as usize - 1));
        format!(
            "it never comes: its first day is {}, and {} ends with day {}; write a day that the month has",
            named(self.days, 1).next().unwrap_or_default(),
            month_names.copied().collect::<Vec<_>>().join(" or "),
            longest.max().unwrap_or_default(),
        )
    }

    /// The pattern as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The first matching moment after this one; the end of time if there is none.
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

    /// The first matching second of a day, from this one on.
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

/// The first matching number, from this one on.
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
            period: last - first + 1,
            names: &[],
        }
    }

    fn bits(&self, text: &str) -> Result<u64, String> {
        let parts = text.split(',');
        parts
            .map(|part| self.part(part))
            .try_fold(0, |bits, part| Ok(bits | part?))
    }

    /// `*`, `n`, `n-m`, each with `/step`; `n/step` runs to the end, and a range whose end is before its start wraps around.
    fn part(&self, part: &str) -> Result<u64, String> {
        let (range, step) = match part.split_once('/') {
            Some((range, step)) => (range, Some(self.step(part, step)?)),
            None => (part, None),
        };
        let (start, end) = match range.split_once('-') {
            _ if range == "*" => (self.first, self.last),
            Some((start, end)) => (self.value(part, start)?, self.value(part, end)?),
            None => {
                let value = self.value(part, range)?;
                (value, if step.is_some() { self.last } else { value })
            }
        };
        let end = if start > end { end + self.period } else { end };
        // A step beyond the end leaves only the start.
        let step = usize::try_from(step.unwrap_or(1)).unwrap_or(usize::MAX);
        let numbers = (start..=end).step_by(step);
        Ok(numbers.fold(0, |bits, n| bits | 1 << self.round(n)))
    }

    /// The number at a count beyond the last one.
    fn round(&self, number: u64) -> u64 {
        match number > self.last {
            true => (number - self.first) % self.period + self.first,
            false => number,
        }
    }

    fn step(&self, part: &str, text: &str) -> Result<u64, String> {
        match number(text) {
            Some(0) => Err(format!(
                "{part:?} has a step of 0; write a step of 1 or more, such as */5"
            )),
            Some(step) => Ok(step),
            None => Err(format!(
                "{part:?} has no number after its slash; write a step such as */5"
            )),
        }
    }

    fn value(&self, part: &str, text: &str) -> Result<u64, String> {
        let named = self.names.iter().position(|name| *name == text);
        let value = match named {
            Some(index) => Some(self.first + index as u64),
            None => number(text),
        };
        let (name, first, last) = (self.name, self.first, self.last);
        let fits = |value: &u64| (first..=last).contains(value);
        value
            .filter(fits)
            .ok_or_else(|| match (value, self.foreign(part, text)) {
                (Some(_), _) => format!("{text} is not a valid {name}; write {first} to {last}"),
                (None, Some(instead)) => format!("{part:?} is not a valid {name}: {instead}"),
                (None, None) => format!(
                    "{part:?} is not a valid {name}: write numbers from {first} to {last}{}, lists (1,3), ranges (1-5) or steps (*/5)",
                    self.names_text()
                ),
            })
    }

    fn names_text(&self) -> String {
        let Some((first, last)) = self.names.first().zip(self.names.last()) else {
            return String::new();
        };
        format!(", names from {first} to {last}")
    }

    /// Replacements for syntax that other programs accept.
    fn foreign(&self, part: &str, text: &str) -> Option<String> {
        let is_word = text.len() > 3 && text.bytes().all(|byte| byte.is_ascii_lowercase());
        let whole = |name: &&&str| is_word && text.starts_with(**name);
        if let Some(name) = self.names.iter().find(whole) {
            return Some(format!("write {name} for {text}"));
        }
        let instead = match part {
            "" => "an item before or after a comma is missing; remove the comma",
            "?" => "write * for ?",
            _ if part.starts_with('l') || part.ends_with('l') => {
                "L for the last day is not supported; list days, such as 28-31, and check in the processor whether it is the last"
            }
            _ if part.contains('#') => {
                "# for the n-th weekday of a month is not supported; list the possible days of the month, such as 8-14 for the second, and check the day of the week in the processor"
            }
            _ if part.ends_with('w') => {
                "W for the nearest working day is not supported; write mon-fri as days of the week"
            }
            _ if part.starts_with('h') => {
                "H for a time chosen by the host is not supported; write the number that you want"
            }
            _ if text.is_empty() => "a range needs a number on both sides, such as 1-5",
            _ => return None,
        };
        Some(instead.to_owned())
    }
}

fn number_of_fields(count: usize) -> String {
    let what = "write minute, hour, day, month and day of the week, such as \"*/5 * * * *\", optionally with seconds first";
    match count {
        7 => format!("it has 7 fields, and years are not supported; {what}"),
        1 => format!("it has 1 field, not 5 or 6; {what}"),
        count => format!("it has {count} fields, not 5 or 6; {what}"),
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

    #[test]
    fn a_range_may_go_round_and_nicknames_may_be_written_large() {
        for (written, plain) in [
            ("0 0 * * fri-sun", "0 0 * * 5,6,0"),
            ("0 0 * * sat-mon", "0 0 * * 6,0,1"),
            ("0 0 * * 6-1", "0 0 * * 6,0,1"),
            ("0 0 * * 7-2", "0 0 * * 0,1,2"),
            ("0 0 * * fri-tue/2", "0 0 * * 5,0,2"),
            ("0 0 * * 1-7", "0 0 * * *"),
            ("0 0 * * sun-sat", "0 0 * * *"),
            ("0 0 * nov-feb *", "0 0 * 11,12,1,2 *"),
            ("0 22-2 * * *", "0 22,23,0,1,2 * * *"),
            ("0 22-2/2 * * *", "0 22,0,2 * * *"),
            ("50-10/10 * * * *", "50,0,10 * * * *"),
            ("0 0 30-2 * *", "0 0 30,31,1,2 * *"),
            (
                "50-5 0 0 * * *",
                "50,51,52,53,54,55,56,57,58,59,0,1,2,3,4,5 0 0 * * *",
            ),
            ("@annually", "0 0 1 1 *"),
            ("@Daily", "0 0 * * *"),
            (" @HOURLY ", "0 * * * *"),
        ] {
            let (written_cron, plain_cron) = (Cron::parse(written), Cron::parse(plain));
            let (written_cron, plain_cron) = (written_cron.unwrap(), plain_cron.unwrap());
            let mut at = at("2026-11-21 10:00:00");
            for _ in 0..100 {
                let next = written_cron.next_after(at);
                assert_eq!(next, plain_cron.next_after(at), "{written}");
                at = next;
            }
        }
    }

    #[test]
    fn a_refusal_names_its_cause_and_what_to_write() {
        for (wrong, told) in [
            ("* 24 * * *", "24 is not a valid hour; write 0 to 23"),
            ("0 0 L * *", "L for the last day is not supported"),
            ("0 0 * * mon#2", "8-14 for the second"),
            ("H H * * *", "write the number that you want"),
            (
                "0 0 15W * *",
                "W for the nearest working day is not supported",
            ),
            ("0 0 ? * *", "write * for ?"),
            ("0 0 * * monday", "write mon for monday"),
            ("0 0 * january *", "write jan for january"),
            ("*/0 * * * *", "a step of 0"),
            ("*/x * * * *", "a step such as */5"),
            ("1,,2 * * * *", "remove the comma"),
            ("1- * * * *", "a number on both sides"),
            ("0 0 30 2 *", "first day is 30, and feb ends with day 29"),
            (
                "0 0 31 4,6 *",
                "first day is 31, and apr or jun ends with day 30",
            ),
            ("@reboot", "@yearly, @annually"),
            ("0 0 0 * * * 2026", "years are not supported"),
            ("every day", "it has 2 fields"),
            ("x * * * *", "numbers from 0 to 59"),
            ("0 0 * * x", "names from sun to sat"),
        ] {
            let error = Cron::parse(wrong).unwrap_err().to_string();
            assert!(error.contains(told), "{wrong}: {error}");
        }
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
