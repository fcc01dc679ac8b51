//! Emits every message unchanged, a batch at a time: the least that a processor can do.

use millrace_guest::{Batch, Outcome, Outcomes, processor};

processor!(batch handle);

/// Passes a batch through.
#[inline]
pub fn handle(batch: &Batch, outcomes: &mut Outcomes) {
    for message in batch.messages() {
        outcomes.push(Outcome::Emit(message.output()));
    }
}
