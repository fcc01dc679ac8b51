//! Metrics of guests: a bounded number of series for each owner, shared by its instances and revisions.

use std::collections::HashMap;
use std::sync::Arc;

use metrics::{Counter, Gauge, Histogram, Label, counter, gauge, histogram};
use millrace_model::plain::steers;
use parking_lot::Mutex;

use crate::logs::Owner;

/// Series of one owner: names with their labels. Updates of further ones are dropped and counted.
const SERIES_MAX: usize = 200;

/// Labels of one series; more are a trap.
const LABELS_MAX: usize = 8;

/// Characters of a metric's or label's name.
const NAME_CHARS_MAX: usize = 60;

/// Bytes of a label's value.
const VALUE_BYTES_MAX: usize = 100;

/// Owners whose series are kept. Beyond it, those without a loaded module are forgotten.
const OWNERS_MAX: usize = 1_000;

/// Ends of names that Prometheus gives to the parts of a metric.
const RESERVED_ENDS: [&str; 5] = ["_total", "_bucket", "_sum", "_count", "_observed"];

/// Labels that the host sets.
const RESERVED_LABELS: [&str; 6] = ["processor", "topic", "route", "schedule", "le", "quantile"];

/// One update.
pub(crate) enum Kind {
    Counter(u64),
    Gauge(f64),
    Histogram(f64),
}

/// The guest's name of a metric or label is not one; the text says why.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct WrongName(pub(crate) String);

/// The series of all owners.
#[derive(Default)]
pub(crate) struct AllMetrics(Mutex<HashMap<Owner, Arc<GuestMetrics>>>);

impl AllMetrics {
    /// The series that an owner's guests update.
    pub(crate) fn of(&self, owner: &Owner) -> Arc<GuestMetrics> {
        let mut all = self.0.lock();
        if all.len() >= OWNERS_MAX {
            all.retain(|_, metrics| Arc::strong_count(metrics) > 1);
        }
        let known = all.entry(owner.clone());
        Arc::clone(known.or_insert_with(|| Arc::new(GuestMetrics::new(owner))))
    }

    /// Forgets a deleted owner: its series are gone, and one of the same name needs new ones.
    pub(crate) fn forget(&self, owner: &Owner) {
        self.0.lock().remove(owner);
    }
}

/// The series of one owner.
pub(crate) struct GuestMetrics {
    owner: Label,
    dropped: Counter,
    series: Mutex<HashMap<Key, Series>>,
}

/// The metric's full name and its labels in ascending order.
type Key = (String, Vec<(String, String)>);

enum Series {
    Counter(Counter),
    Gauge(Gauge),
    Histogram(Histogram),
}

impl GuestMetrics {
    fn new(owner: &Owner) -> Self {
        let (label, name) = (owner.label(), owner.name().to_owned());
        Self {
            dropped: counter!("millrace_guest_metric_updates_dropped_total", label => name.clone()),
            owner: Label::new(label, name),
            series: Mutex::default(),
        }
    }

    /// Updates a series, and creates it if it is new and there is room.
    pub(crate) fn update(
        &self,
        name: &str,
        mut labels: Vec<(String, String)>,
        kind: Kind,
    ) -> Result<(), WrongName> {
        check(name, &labels)?;
        for (_, value) in &mut labels {
            value.truncate(value.floor_char_boundary(VALUE_BYTES_MAX));
            *value = value.replace(steers, " ");
        }
        labels.sort_unstable();
        // Each kind has names of its own: Prometheus knows one kind for a name.
        let full = match kind {
            Kind::Counter(_) => format!("guest_{name}_total"),
            Kind::Gauge(_) => format!("guest_{name}"),
            Kind::Histogram(_) => format!("guest_{name}_observed"),
        };
        let key = (full, labels);
        let mut all = self.series.lock();
        let series = match all.get(&key) {
            Some(series) => series,
            None if all.len() >= SERIES_MAX => {
                self.dropped.increment(1);
                return Ok(());
            }
            None => {
                let series = self.series_of(&key, &kind);
                all.entry(key).or_insert(series)
            }
        };
        match (series, kind) {
            (Series::Counter(counter), Kind::Counter(delta)) => counter.increment(delta),
            (Series::Gauge(gauge), Kind::Gauge(value)) => gauge.set(value),
            (Series::Histogram(histogram), Kind::Histogram(value)) => histogram.record(value),
            // A full name is of one kind.
            _ => self.dropped.increment(1),
        }
        Ok(())
    }

    fn series_of(&self, (name, labels): &Key, kind: &Kind) -> Series {
        let own = labels
            .iter()
            .map(|(label, value)| Label::new(label.clone(), value.clone()));
        let labels: Vec<Label> = std::iter::once(self.owner.clone()).chain(own).collect();
        match kind {
            Kind::Counter(_) => Series::Counter(counter!(name.clone(), labels)),
            Kind::Gauge(_) => Series::Gauge(gauge!(name.clone(), labels)),
            Kind::Histogram(_) => Series::Histogram(histogram!(name.clone(), labels)),
        }
    }
}

fn check(name: &str, labels: &[(String, String)]) -> Result<(), WrongName> {
    check_name("metric", name)?;
    if let Some(end) = RESERVED_ENDS.iter().find(|end| name.ends_with(**end)) {
        return Err(WrongName(format!(
            "the metric's name {name} ends with {end}, which the host adds where it belongs; leave it out"
        )));
    }
    if labels.len() > LABELS_MAX {
        let count = labels.len();
        return Err(WrongName(format!(
            "a metric has at most {LABELS_MAX} labels; {name} has {count}"
        )));
    }
    for (at, (label, _)) in labels.iter().enumerate() {
        check_name("label", label)?;
        if RESERVED_LABELS.contains(&label.as_str()) {
            return Err(WrongName(format!(
                "the label {label} of metric {name} is set by the host; choose another name"
            )));
        }
        if labels[..at].iter().any(|(earlier, _)| earlier == label) {
            return Err(WrongName(format!(
                "metric {name} has the label {label} twice"
            )));
        }
    }
    Ok(())
}

fn check_name(kind: &str, name: &str) -> Result<(), WrongName> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let begins = name.starts_with(|c: char| c.is_ascii_lowercase());
    match begins && name.len() <= NAME_CHARS_MAX && name.chars().all(allowed) {
        true => Ok(()),
        false => {
            let shown: String = name.chars().take(NAME_CHARS_MAX).collect();
            Err(WrongName(format!(
                "{shown:?} is not the name of a {kind}: use 1 to {NAME_CHARS_MAX} of a-z, 0-9 and '_', beginning with a letter"
            )))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = pairs
            .iter()
            .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()));
        owned.collect()
    }

    #[test]
    fn an_owner_has_a_bounded_number_of_series_whatever_it_names_them() {
        let metrics = GuestMetrics::new(&Owner::Processor("p".into()));
        for n in 0..3 * SERIES_MAX {
            let of = labels(&[("n", &n.to_string())]);
            metrics
                .update("handled", of, Kind::Counter(1))
                .expect("a good name");
        }
        assert_eq!(metrics.series.lock().len(), SERIES_MAX);
        // A name may be used for each kind.
        let metrics = GuestMetrics::new(&Owner::Processor("q".into()));
        for kind in [Kind::Counter(1), Kind::Gauge(2.0), Kind::Histogram(3.0)] {
            metrics
                .update("size", Vec::new(), kind)
                .expect("a good name");
        }
        let both = [
            labels(&[("a", "1"), ("b", "2")]),
            labels(&[("b", "2"), ("a", "1")]),
        ];
        for of in both {
            metrics
                .update("size", of, Kind::Counter(1))
                .expect("good labels");
        }
        assert_eq!(metrics.series.lock().len(), 4);
    }

    #[test]
    fn names_that_prometheus_or_the_host_use_are_refused() {
        let metrics = GuestMetrics::new(&Owner::Processor("p".into()));
        let long = "a".repeat(NAME_CHARS_MAX + 1);
        for name in [
            "", "A", "1a", "a-b", "é", "a\n", "x_total", "x_bucket", &long,
        ] {
            let refused = metrics.update(name, Vec::new(), Kind::Counter(1));
            assert!(refused.is_err(), "{name:?}");
        }
        let many: Vec<_> = (0..9).map(|n| (format!("l{n}"), String::new())).collect();
        let wrong = [
            labels(&[("processor", "other")]),
            labels(&[("le", "1")]),
            labels(&[("route", "/x")]),
            labels(&[("a", "1"), ("a", "2")]),
            labels(&[("a b", "1")]),
            many,
        ];
        for of in wrong {
            assert!(
                metrics.update("x", of.clone(), Kind::Gauge(1.0)).is_err(),
                "{of:?}"
            );
        }
        assert!(metrics.series.lock().is_empty());
    }
}
