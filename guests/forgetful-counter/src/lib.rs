//! Like `counter`, but without state: the counts are in the instance's memory and lost with it. For
//! comparison.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::Write;

use millrace_guest::{Batch, Outcome, Outcomes, processor};

processor!(batch process);

thread_local! {
    static COUNTS: RefCell<HashMap<Vec<u8>, i64>> = RefCell::default();
}

fn process(batch: &Batch, outcomes: &mut Outcomes) {
    COUNTS.with_borrow_mut(|counts| {
        for message in batch.messages() {
            let count = count(counts, message.key().unwrap_or_default());
            let output = message.output().build_value(|buffer| {
                // Writing to memory does not fail.
                let _ = write!(buffer, "{count}");
            });
            outcomes.push(Outcome::Emit(output));
        }
    });
}

fn count(counts: &mut HashMap<Vec<u8>, i64>, key: &[u8]) -> i64 {
    if let Some(count) = counts.get_mut(key) {
        *count += 1;
        return *count;
    }
    counts.insert(key.to_vec(), 1);
    1
}
