//! Emits every message unchanged, one batch at a time: the minimal processor.

use millrace_guest::{Batch, Outcome, Outcomes, processor};

processor!(batch handle);

/// Passes a batch through.
#[inline]
pub fn handle(batch: &Batch, outcomes: &mut Outcomes) {
    for message in batch.messages() {
        outcomes.push(Outcome::Emit(message.output()));
    }
}
