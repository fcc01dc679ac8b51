//! How many dead letters are waiting: the numbers behind alerts.

use metrics::gauge;
use millrace_model::ProcessorName;

use super::DeadLetterError;
use crate::broker::Broker;
use crate::fetch::FetchError;

/// The gauge's name.
const WAITING: &str = "millrace_dead_letters_waiting";

impl Broker {
    /// Number of dead letters of a processor that are kept and were not redriven.
    ///
    /// # Errors
    /// [`DeadLetterError`].
    pub async fn dead_letters_waiting(&self, name: &ProcessorName) -> Result<u64, DeadLetterError> {
        let mut waiting = 0;
        for shelf in self.shelves(name)? {
            let ends = self.ends_of(&shelf)?;
            let kept = self
                .inner
                .engine
                .count(shelf.partition, ends.start, ends.end);
            let kept = kept.await.map_err(FetchError::Read)?;
            waiting += kept.saturating_sub(self.count_sent(&shelf, ends.start)?);
        }
        Ok(waiting)
    }

    /// Updates the gauges of dead letters.
    pub async fn measure_dead_letters(&self) {
        let names: Vec<ProcessorName> = self.inner.processors.read().keys().cloned().collect();
        for name in names {
            if let Ok(waiting) = self.dead_letters_waiting(&name).await {
                gauge!(WAITING, "processor" => name.to_string()).set(waiting as f64);
            }
        }
    }
}

/// A deleted processor has no waiting dead letters.
pub(crate) fn none_waiting(name: &ProcessorName) {
    gauge!(WAITING, "processor" => name.to_string()).set(0.0);
}
