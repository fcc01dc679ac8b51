//! How often the engine synced its journal and how many bytes it wrote there, from the same metrics
//! that a host exports.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use metrics::{
    Counter, CounterFn, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};

const SYNCS: &str = "millrace_journal_sync_seconds";
const BYTES: &str = "millrace_journal_bytes_total";

/// Counts from its creation on.
#[derive(Clone, Default)]
pub(crate) struct Meter {
    syncs: Arc<Count>,
    bytes: Arc<Count>,
}

#[derive(Default)]
struct Count(AtomicU64);

impl Meter {
    /// Installs the meter; possible once in a process.
    pub(crate) fn install() -> Result<Self> {
        let meter = Self::default();
        let installed = metrics::set_global_recorder(meter.clone());
        installed.ok().context("there is a recorder already")?;
        Ok(meter)
    }

    /// The number of syncs, and of bytes in frames, so far.
    pub(crate) fn read(&self) -> [u64; 2] {
        [&self.syncs, &self.bytes].map(|count| count.0.load(Ordering::Relaxed))
    }
}

impl HistogramFn for Count {
    fn record(&self, _value: f64) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl CounterFn for Count {
    fn increment(&self, value: u64) {
        self.0.fetch_add(value, Ordering::Relaxed);
    }

    fn absolute(&self, value: u64) {
        self.0.fetch_max(value, Ordering::Relaxed);
    }
}

impl Recorder for Meter {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        match key.name() {
            BYTES => Counter::from_arc(Arc::clone(&self.bytes)),
            _ => Counter::noop(),
        }
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        match key.name() {
            SYNCS => Histogram::from_arc(Arc::clone(&self.syncs)),
            _ => Histogram::noop(),
        }
    }
}
