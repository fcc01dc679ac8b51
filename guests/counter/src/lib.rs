//! Counts the messages of each key, in state, and emits the count as text under the same key.

use std::io::Write;

use millrace_guest::{Batch, Outcome, Outcomes, processor, state};

processor!(batch process);

fn process(batch: &Batch, outcomes: &mut Outcomes) {
    match state::Sums::of_keys(batch).add() {
        Ok(counts) => {
            for (message, count) in batch.messages().zip(counts) {
                let output = message.output().build_value(|buffer| {
                    // Writing to memory does not fail.
                    let _ = write!(buffer, "{count}");
                });
                outcomes.push(Outcome::Emit(output));
            }
        }
        Err(full) => {
            for _ in batch.messages() {
                outcomes.push(Outcome::retry("state-full", full.to_string()));
            }
        }
    }
}
