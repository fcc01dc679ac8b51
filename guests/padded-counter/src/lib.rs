//! Counts the messages of each key in state, like `counter`, but in values of a hundred bytes that
//! begin with the count. For comparison.

use std::collections::HashMap;
use std::io::Write;

use millrace_guest::{Batch, Outcome, Outcomes, processor, state};

processor!(batch process);

const VALUE_BYTES: usize = 100;

fn process(batch: &Batch, outcomes: &mut Outcomes) {
    let keys: Vec<Vec<u8>> = batch
        .messages()
        .map(|message| message.key().unwrap_or_default().to_vec())
        .collect();
    let asked: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
    let mut counts: HashMap<&[u8], u64> = HashMap::with_capacity(keys.len());
    for (key, value) in asked.iter().zip(state::get_many(&asked)) {
        let count = value.as_ref().and_then(|value| value.first_chunk());
        counts.insert(key, count.map_or(0, |count| u64::from_le_bytes(*count)));
    }
    let mut writes = state::Writes::default();
    let mut reached = Vec::with_capacity(keys.len());
    for (message, key) in batch.messages().zip(&asked) {
        let count = counts.entry(key).or_default();
        *count += 1;
        reached.push(*count);
        let mut value = [0; VALUE_BYTES];
        value[..8].copy_from_slice(&count.to_le_bytes());
        writes.set(&message, key, &value);
    }
    if let Err(full) = writes.write() {
        for _ in batch.messages() {
            outcomes.push(Outcome::retry("state-full", full.to_string()));
        }
        return;
    }
    for (message, count) in batch.messages().zip(reached) {
        let output = message.output().build_value(|buffer| {
            // Writing to memory does not fail.
            let _ = write!(buffer, "{count}");
        });
        outcomes.push(Outcome::Emit(output));
    }
}
