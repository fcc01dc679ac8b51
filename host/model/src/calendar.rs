//! Dates of the Gregorian calendar, in UTC: a day since 1970 and its date. Years are counted from March, so that the leap day is the
//! last one; 1 March of the year 0 is 719,468 days before 1970, and a cycle of 400 years has 146,097 days.

use crate::clock::Timestamp;

/// Year, month and day of a day since 1970.
#[must_use]
pub fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (cycle, day_of_cycle) = (days / 146_097, days % 146_097);
    let leap_days = day_of_cycle / 1_460 - day_of_cycle / 36_524 + day_of_cycle / 146_096;
    let year_of_cycle = (day_of_cycle - leap_days) / 365;
    let day_of_year =
        day_of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = cycle * 400 + year_of_cycle + u64::from(month <= 2);
    (year, month, day)
}

/// A time for people, in UTC and to the second: `2026-11-21T10:00:00Z`.
#[must_use]
pub fn utc(moment: Timestamp) -> String {
    let (days, seconds) = (moment.0 / 86_400_000, moment.0 % 86_400_000 / 1_000);
    let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    let (year, month, day) = date(days);
    format!("{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Days from 1970 to a date; negative before.
#[must_use]
pub fn days_since_1970(year: u64, month: u64, day: u64) -> i64 {
    let year = year as i64 - i64::from(month <= 2);
    let (cycle, year_of_cycle) = (year.div_euclid(400), year.rem_euclid(400));
    let month_from_march = (month as i64 + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day as i64 - 1;
    let day_of_cycle = year_of_cycle * 365 + year_of_cycle / 4 - year_of_cycle / 100 + day_of_year;
    cycle * 146_097 + day_of_cycle - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_day_of_four_centuries_is_the_day_of_its_date() {
        for day in 0..146_098 {
            let (year, month, date) = date(day);
            assert_eq!(days_since_1970(year, month, date), day as i64);
        }
        assert_eq!(date(20_778), (2026, 11, 21));
        assert_eq!(utc(Timestamp(1_795_255_445_999)), "2026-11-21T10:04:05Z");
    }
}
