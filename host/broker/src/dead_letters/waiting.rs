//! How many dead letters are waiting: the numbers behind alerts.

use metrics::gauge;
use millrace_model::ProcessorName;

use crate::dead_letters::handle::DeadLetters;
use crate::dead_letters::letters::DeadLetterError;
use crate::ground::verbs::Verb;
use crate::messages::fetch::FetchError;
use crate::processors::waiting_gauge::WAITING;

impl DeadLetters {
    /// Number of dead letters of a processor that are kept and were not redriven.
    ///
    /// # Errors
    /// [`DeadLetterError`].
    pub async fn dead_letters_waiting(&self, name: &ProcessorName) -> Result<u64, DeadLetterError> {
        self.caller.may(Verb::SeeDeadLetters, name.as_str())?;
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
        let names: Vec<ProcessorName> = self.inner.catalogue.processors().keys().cloned().collect();
        for name in names {
            if let Ok(waiting) = self.dead_letters_waiting(&name).await {
                gauge!(WAITING, "processor" => name.to_string()).set(waiting as f64);
            }
        }
    }
}
