//! Counts the messages of each key in state, like `counter`. A header `reject: class` rejects,
//! `trap: reason` panics, `fail-times: n` retries the first n attempts; all of them after counting,
//! so that counts are right only if the host undoes them. With `ttl-ms: n` the count expires n
//! milliseconds after its last message.

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

#[cfg(test)]
mod tests {
    use millrace_guest::Sample;
    use millrace_guest::testing::{Said, Tester};

    #[test]
    fn only_messages_that_succeed_are_counted() {
        let mut tester = Tester::of_batches(super::process);
        let run = tester.run(
            Sample::new("in")
                .message("k", "x")
                .message("k", "x")
                .header("reject", "bad")
                .message("k", "x")
                .header("fail-times", "1")
                .message("k", "x")
                .header("ttl-ms", "500"),
        );
        assert_eq!(run.said(1), &Said::rejected("bad", "its header says so"));
        assert_eq!(run.said(2), &Said::retried("flaky", "its header says so"));
        let counts: Vec<_> = run.outputs().iter().map(|sent| sent.value()).collect();
        assert_eq!(counts, [Some("1"), Some("2")]);
        assert_eq!(tester.number("k"), Some(2));
        assert_eq!(run.changes()[0].ttl_ms, Some(500));
    }

    #[test]
    #[should_panic(expected = "poison")]
    fn a_trap_is_a_panic() {
        let trap = Sample::new("in").message("k", "x").header("trap", "poison");
        let _ = Tester::of_batches(super::process).run(trap);
    }
}
