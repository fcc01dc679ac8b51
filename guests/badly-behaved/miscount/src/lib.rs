//! Counts the messages of each key, in state, as `counter` does. A header `reject: class` rejects,
//! `trap: reason` panics, `fail-times: n` retries until attempt n is over; all of them after counting, so that only a host which
//! takes the count back comes out right. With `ttl-ms: n` the count ends so many milliseconds after its last message.

use std::io::Write;

use millrace_guest::{Batch, Message, Outcome, Outcomes, processor, state};

processor!(batch process);

fn process(batch: &Batch, outcomes: &mut Outcomes) {
    let counts = match state::Sums::of_keys(batch)
        .ttl_ms(|message| number(message, "ttl-ms"))
        .add()
    {
        Ok(counts) => counts,
        Err(full) => {
            for _ in batch.messages() {
                outcomes.push(Outcome::retry("state-full", full.to_string()));
            }
            return;
        }
    };
    for (message, count) in batch.messages().zip(counts) {
        outcomes.push(outcome(&message, count));
    }
}

fn outcome(message: &Message, count: i64) -> Outcome {
    if let Some(why) = message.header("trap") {
        panic!("{}", String::from_utf8_lossy(why));
    }
    if let Some(class) = message.header("reject") {
        let class = String::from_utf8_lossy(class).into_owned();
        return Outcome::reject(class, "its header says so");
    }
    if number(message, "fail-times").is_some_and(|times| u64::from(message.attempt()) <= times) {
        return Outcome::retry("flaky", "its header says so");
    }
    let output = message.output().build_value(|buffer| {
        // Writing to memory does not fail.
        let _ = write!(buffer, "{count}");
    });
    Outcome::Emit(output)
}

fn number(message: &Message, header: &str) -> Option<u64> {
    std::str::from_utf8(message.header(header)?)
        .ok()?
        .parse()
        .ok()
}
