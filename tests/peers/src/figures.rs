//! What is measured, how it is written in a table, and how two figures of a kind compare.

use std::fmt;

use crate::load::Done;

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Figure {
    /// Messages a second, and the server's cost of each.
    Rate {
        per_second: f64,
        /// Microseconds of CPU time per message.
        server_us: f64,
        /// Whether the load itself may be the limit.
        is_bound_by_load: bool,
    },
    /// Microseconds.
    Median(f64),
    /// Microseconds.
    Spread { p50: f64, p99: f64 },
    /// Bytes.
    Memory(f64),
}

impl Figure {
    pub(crate) fn rate(done: &Done) -> Self {
        Self::Rate {
            per_second: done.count as f64 / done.spent.seconds,
            server_us: done.spent.server_us(done.count),
            is_bound_by_load: done.spent.is_bound_by_load(),
        }
    }

    /// The spread of times in microseconds.
    pub(crate) fn spread(times: Vec<f64>) -> Self {
        Self::Spread {
            p50: percentile(times.clone(), 0.5),
            p99: percentile(times, 0.99),
        }
    }

    /// The median of figures of one kind, of each number separately.
    pub(crate) fn median(all: &[Self]) -> Option<Self> {
        let each = |number: fn(&Self) -> f64| median(all.iter().map(number).collect());
        let (first, second) = (each(Self::first), each(Self::second));
        Some(match all.first()? {
            Self::Rate { .. } => {
                let bound = all.iter().filter(|figure| figure.is_bound_by_load());
                Self::Rate {
                    per_second: first,
                    server_us: second,
                    is_bound_by_load: bound.count() * 2 > all.len(),
                }
            }
            Self::Median(_) => Self::Median(first),
            Self::Spread { .. } => Self::Spread {
                p50: first,
                p99: second,
            },
            Self::Memory(_) => Self::Memory(first),
        })
    }

    /// How many times as good this figure is as the other, for each of its numbers: more a second,
    /// less time, less memory.
    pub(crate) fn times_as_good(&self, other: &Self) -> (f64, Option<f64>) {
        let less = other.first() / self.first();
        match self {
            Self::Rate { .. } => (1.0 / less, Some(other.second() / self.second())),
            Self::Spread { .. } => (less, Some(other.second() / self.second())),
            Self::Median(_) | Self::Memory(_) => (less, None),
        }
    }

    pub(crate) fn is_bound_by_load(&self) -> bool {
        matches!(
            self,
            Self::Rate {
                is_bound_by_load: true,
                ..
            }
        )
    }

    pub(crate) fn server_us(&self) -> Option<f64> {
        match self {
            Self::Rate { server_us, .. } => Some(*server_us),
            _ => None,
        }
    }

    fn first(&self) -> f64 {
        match self {
            Self::Rate { per_second, .. } => *per_second,
            Self::Median(p50) | Self::Spread { p50, .. } => *p50,
            Self::Memory(bytes) => *bytes,
        }
    }

    fn second(&self) -> f64 {
        match self {
            Self::Rate { server_us, .. } => *server_us,
            Self::Spread { p99, .. } => *p99,
            Self::Median(_) | Self::Memory(_) => f64::NAN,
        }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Rate {
                per_second,
                server_us,
                is_bound_by_load,
            } => {
                let mark = if is_bound_by_load { " †" } else { "" };
                write!(f, "{}{mark} ({})", rate(per_second), short(server_us))
            }
            Self::Median(p50) => write!(f, "{}", time(p50)),
            Self::Spread { p50, p99 } => write!(f, "{} · {}", time(p50), time(p99)),
            Self::Memory(bytes) => write!(f, "{:.0} MiB", bytes / f64::from(1 << 20)),
        }
    }
}

/// The number below which `share` (0 to 1) of all numbers are.
pub(crate) fn percentile(mut figures: Vec<f64>, share: f64) -> f64 {
    figures.sort_by(f64::total_cmp);
    let place = (figures.len() as f64 * share) as usize;
    let place = place.min(figures.len().saturating_sub(1));
    figures.get(place).copied().unwrap_or(f64::NAN)
}

/// The middle number, or the mean of the two in the middle.
pub(crate) fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    let (upper, lower) = (figures.len() / 2, figures.len().saturating_sub(1) / 2);
    match (figures.get(lower), figures.get(upper)) {
        (Some(lower), Some(upper)) => f64::midpoint(*lower, *upper),
        _ => f64::NAN,
    }
}

/// A number with its digits in groups of three.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev();
    let groups: Vec<&str> = groups
        .filter_map(|group| std::str::from_utf8(group).ok())
        .collect();
    groups.join(",")
}

/// Two or three significant digits, or all digits before the point.
pub(crate) fn short(number: f64) -> String {
    let decimals = match number.abs() {
        number if number >= 100.0 => 0,
        number if number >= 10.0 => 1,
        number if number >= 0.095 => 2,
        number if number >= 0.0095 => 3,
        _ => 4,
    };
    format!("{number:.decimals$}")
}

fn rate(per_second: f64) -> String {
    match per_second {
        many if many >= 1e6 => format!("{} M/s", short(many / 1e6)),
        some if some >= 1e3 => format!("{}k/s", short(some / 1e3)),
        few => format!("{few:.0}/s"),
    }
}

fn time(us: f64) -> String {
    match us {
        longest if longest >= 1e6 => format!("{} s", short(longest / 1e6)),
        long if long >= 1e3 => format!("{} ms", short(long / 1e3)),
        brief => format!("{brief:.0} µs"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some_rate(per_second: f64, server_us: f64) -> Figure {
        Figure::Rate {
            per_second,
            server_us,
            is_bound_by_load: false,
        }
    }

    #[test]
    fn figures_read_as_people_write_them() {
        assert_eq!(some_rate(2_170_000.0, 0.254).to_string(), "2.17 M/s (0.25)");
        assert_eq!(some_rate(12_340.0, 69.1).to_string(), "12.3k/s (69.1)");
        let spread = Figure::Spread {
            p50: 216.4,
            p99: 58_600.0,
        };
        assert_eq!(spread.to_string(), "216 µs · 58.6 ms");
        assert_eq!(Figure::Median(4_880_000.0).to_string(), "4.88 s");
        assert_eq!(
            (grouped(7), grouped(2_000_000)),
            ("7".into(), "2,000,000".into())
        );
        assert_eq!(Figure::Memory(1_073_741_824.0).to_string(), "1024 MiB");
    }

    #[test]
    fn more_a_second_and_less_time_are_good() {
        let (rate, cost) = some_rate(200.0, 2.0).times_as_good(&some_rate(100.0, 1.0));
        assert_eq!((rate, cost), (2.0, Some(0.5)));
        let (time, none) = Figure::Median(100.0).times_as_good(&Figure::Median(300.0));
        assert_eq!((time, none), (3.0, None));
    }

    #[test]
    fn a_median_is_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0]), 2.5);
        let all = [
            some_rate(1.0, 9.0),
            some_rate(3.0, 1.0),
            some_rate(2.0, 5.0),
        ];
        assert_eq!(Figure::median(&all), Some(some_rate(2.0, 5.0)));
        assert_eq!(Figure::median(&[]), None);
    }
}
