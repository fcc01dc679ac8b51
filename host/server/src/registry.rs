//! The process's metrics in the Prometheus format. Series are removed with their subject: a deleted topic leaves none, and a topic
//! created under its name starts at zero.

use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use metrics::{
    Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Label, Metadata, Recorder, SharedString,
    Unit,
};
use parking_lot::RwLock;

/// Maximum series of one counter or gauge; further ones are counted together, with every label set to `other`.
const SERIES_MAX: usize = 50_000;

/// Maximum series of one histogram, each of which has a line for every bucket; further ones are counted together, with every label set
/// to `other`.
const HISTOGRAM_SERIES_MAX: usize = 500;

/// The label values of the combined series.
const OTHER: &str = "other";

/// All metrics of a process. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Registry(Arc<Inner>);

struct Inner {
    families: RwLock<BTreeMap<String, Family>>,
    /// The upper bounds of a histogram's buckets, by its name.
    bounds: fn(&str) -> &'static [f64],
}

#[derive(Default)]
struct Family {
    help: String,
    series: HashMap<Key, Series>,
}

#[derive(Clone)]
enum Series {
    Counter(Arc<AtomicU64>),
    /// The bits of a floating-point number, as in the metrics facade.
    Gauge(Arc<AtomicU64>),
    Histogram(Arc<Buckets>),
}

/// Samples counted by size.
struct Buckets {
    bounds: &'static [f64],
    /// One more than the number of bounds.
    counts: Vec<AtomicU64>,
    sum: AtomicU64,
}

impl Registry {
    pub(crate) fn new(bounds: fn(&str) -> &'static [f64]) -> Self {
        let families = RwLock::default();
        Self(Arc::new(Inner { families, bounds }))
    }

    /// Removes every series in which `label` is `value`. Handles still held count for nothing.
    pub(crate) fn forget(&self, label: &str, value: &str) {
        let is_about = |key: &Key| {
            key.labels()
                .any(|one| one.key() == label && one.value() == value)
        };
        for family in self.0.families.write().values_mut() {
            family.series.retain(|key, _| !is_about(key));
        }
    }

    /// Removes the series of one metric that `keeps` denies.
    pub(crate) fn retain(&self, name: &str, keeps: impl Fn(&Key) -> bool) {
        if let Some(family) = self.0.families.write().get_mut(name) {
            family.series.retain(|key, _| keeps(key));
        }
    }

    /// Removes every series of one metric, but keeps its description.
    pub(crate) fn forget_family(&self, name: &str) {
        if let Some(family) = self.0.families.write().get_mut(name) {
            family.series.clear();
        }
    }

    /// All series as text.
    pub(crate) fn render(&self) -> String {
        let mut text = String::new();
        for (name, family) in self.0.families.read().iter() {
            // Writing to a string does not fail.
            let _ = family.render(name, &mut text);
        }
        text
    }

    fn describe(&self, name: &KeyName, help: &SharedString) {
        let mut families = self.0.families.write();
        families.entry(name.as_str().to_owned()).or_default().help = help.to_string();
    }

    fn series(&self, key: &Key, new: impl Fn() -> Series, series_max: usize) -> Series {
        let known = {
            let families = self.0.families.read();
            families
                .get(key.name())
                .and_then(|family| family.series.get(key).cloned())
        };
        if let Some(known) = known {
            return known;
        }
        let mut families = self.0.families.write();
        let family = families.entry(key.name().to_owned()).or_default();
        let key = match family.series.len() < series_max || family.series.contains_key(key) {
            true => key.clone(),
            false => together(key),
        };
        family.series.entry(key).or_insert_with(new).clone()
    }
}

/// The value of a series' label.
pub(crate) fn value_of<'key>(key: &'key Key, label: &str) -> Option<&'key str> {
    let mut labels = key.labels();
    labels.find(|one| one.key() == label).map(Label::value)
}

/// The key of the series that counts everything beyond the bound.
fn together(key: &Key) -> Key {
    let labels: Vec<Label> = key
        .labels()
        .map(|label| Label::new(label.key().to_owned(), OTHER))
        .collect();
    Key::from_parts(key.name().to_owned(), labels)
}

impl Recorder for Registry {
    fn describe_counter(&self, key: KeyName, _: Option<Unit>, help: SharedString) {
        self.describe(&key, &help);
    }

    fn describe_gauge(&self, key: KeyName, _: Option<Unit>, help: SharedString) {
        self.describe(&key, &help);
    }

    fn describe_histogram(&self, key: KeyName, _: Option<Unit>, help: SharedString) {
        self.describe(&key, &help);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        match self.series(key, || Series::Counter(Arc::default()), SERIES_MAX) {
            Series::Counter(counter) => Counter::from_arc(counter),
            _ => Counter::noop(),
        }
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        match self.series(key, || Series::Gauge(Arc::default()), SERIES_MAX) {
            Series::Gauge(gauge) => Gauge::from_arc(gauge),
            _ => Gauge::noop(),
        }
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        let bounds = (self.0.bounds)(key.name());
        let new = || Series::Histogram(Arc::new(Buckets::new(bounds)));
        match self.series(key, new, HISTOGRAM_SERIES_MAX) {
            Series::Histogram(histogram) => Histogram::from_arc(histogram),
            _ => Histogram::noop(),
        }
    }
}

impl Buckets {
    fn new(bounds: &'static [f64]) -> Self {
        Self {
            bounds,
            counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0),
        }
    }
}

impl HistogramFn for Buckets {
    fn record(&self, value: f64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.counts[bucket].fetch_add(1, Relaxed);
        let add = |bits| Some((f64::from_bits(bits) + value).to_bits());
        // This cannot fail: `add` never returns `None`.
        let _ = self.sum.fetch_update(Relaxed, Relaxed, add);
    }
}

impl Family {
    fn render(&self, name: &str, text: &mut String) -> fmt::Result {
        let Some(kind) = self.series.values().next().map(Series::kind) else {
            return Ok(());
        };
        if !self.help.is_empty() {
            let help = self.help.replace('\\', "\\\\").replace('\n', "\\n");
            writeln!(text, "# HELP {name} {help}")?;
        }
        writeln!(text, "# TYPE {name} {kind}")?;
        let mut series: Vec<_> = self.series.iter().collect();
        series.sort_unstable_by_key(|(key, _)| *key);
        for (key, series) in series {
            let labels = labels(key);
            match series {
                Series::Counter(count) => {
                    line(text, name, &labels, "", &count.load(Relaxed).to_string())?;
                }
                Series::Gauge(bits) => {
                    let value = f64::from_bits(bits.load(Relaxed));
                    line(text, name, &labels, "", &value.to_string())?;
                }
                Series::Histogram(buckets) => buckets.render(name, &labels, text)?,
            }
        }
        writeln!(text)
    }
}

impl Series {
    fn kind(&self) -> &'static str {
        match self {
            Self::Counter(_) => "counter",
            Self::Gauge(_) => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

impl Buckets {
    fn render(&self, name: &str, labels: &str, text: &mut String) -> fmt::Result {
        let mut total = 0;
        let ends = self.bounds.iter().map(f64::to_string);
        let ends = ends.chain(["+Inf".to_owned()]);
        for (end, count) in ends.zip(&self.counts) {
            total += count.load(Relaxed);
            let end = format!("le=\"{end}\"");
            line(
                text,
                &format!("{name}_bucket"),
                labels,
                &end,
                &total.to_string(),
            )?;
        }
        let sum = f64::from_bits(self.sum.load(Relaxed));
        line(text, &format!("{name}_sum"), labels, "", &sum.to_string())?;
        line(
            text,
            &format!("{name}_count"),
            labels,
            "",
            &total.to_string(),
        )
    }
}

fn line(text: &mut String, name: &str, labels: &str, more: &str, value: &str) -> fmt::Result {
    let comma = if labels.is_empty() || more.is_empty() {
        ""
    } else {
        ","
    };
    match labels.is_empty() && more.is_empty() {
        true => writeln!(text, "{name} {value}"),
        false => writeln!(text, "{name}{{{labels}{comma}{more}}} {value}"),
    }
}

fn labels(key: &Key) -> String {
    let shown = |label: &Label| {
        let value = label.value().replace('\\', "\\\\");
        let value = value.replace('"', "\\\"").replace('\n', "\\n");
        format!("{}=\"{value}\"", label.key())
    };
    key.labels().map(shown).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use metrics::{counter, gauge, histogram, with_local_recorder};

    use super::*;

    fn registry() -> Registry {
        Registry::new(|_| &[1.0, 2.5])
    }

    #[test]
    fn every_kind_is_shown_as_prometheus_reads_it() {
        let registry = registry();
        with_local_recorder(&registry, || {
            metrics::describe_counter!("one_total", "Ones");
            counter!("one_total", "topic" => "a\"b\\c\n").increment(2);
            gauge!("two").set(1.5);
            gauge!("two").increment(2.0);
            for sample in [0.5, 1.0, 2.0, 9.0] {
                histogram!("three_seconds", "processor" => "p").record(sample);
            }
        });
        let expected = "# HELP one_total Ones\n# TYPE one_total counter\none_total{topic=\"a\\\"b\\\\c\\n\"} 2\n\n\
            # TYPE three_seconds histogram\n\
            three_seconds_bucket{processor=\"p\",le=\"1\"} 2\n\
            three_seconds_bucket{processor=\"p\",le=\"2.5\"} 3\n\
            three_seconds_bucket{processor=\"p\",le=\"+Inf\"} 4\n\
            three_seconds_sum{processor=\"p\"} 12.5\nthree_seconds_count{processor=\"p\"} 4\n\n\
            # TYPE two gauge\ntwo 3.5\n\n";
        assert_eq!(registry.render(), expected);
    }

    #[test]
    fn what_is_forgotten_begins_at_nothing_when_it_comes_again() {
        let registry = registry();
        with_local_recorder(&registry, || {
            let held = counter!("in_total", "topic" => "a");
            held.increment(5);
            counter!("in_total", "topic" => "b").increment(1);
            gauge!("lag", "processor" => "p", "topic" => "a").set(7.0);
            registry.forget("topic", "a");
            held.increment(1);
            let text = registry.render();
            assert_eq!(text, "# TYPE in_total counter\nin_total{topic=\"b\"} 1\n\n");
            counter!("in_total", "topic" => "a").increment(1);
            let text = registry.render();
            assert!(text.contains("in_total{topic=\"a\"} 1\n"), "{text}");
        });
    }

    #[test]
    fn beyond_a_bound_series_are_counted_together() {
        let registry = registry();
        with_local_recorder(&registry, || {
            for n in 0..HISTOGRAM_SERIES_MAX + 10 {
                histogram!("took_seconds", "processor" => n.to_string()).record(1.0);
            }
        });
        let text = registry.render();
        assert!(text.contains("took_seconds_count{processor=\"other\"} 10\n"));
        let counts = text
            .lines()
            .filter(|line| line.starts_with("took_seconds_count"));
        assert_eq!(counts.count(), HISTOGRAM_SERIES_MAX + 1);
    }
}
