//! Counts the messages of each key in state, and emits the count as text under the same key.

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

#[cfg(test)]
mod tests {
    use millrace_guest::Sample;
    use millrace_guest::testing::{Sent, Tester};

    #[test]
    fn each_message_is_answered_with_the_count_of_its_key() {
        let mut tester = Tester::of_batches(super::process).with_number("b", 6);
        let run = tester.run(
            Sample::new("in")
                .message("a", "x")
                .message("b", "x")
                .message("a", "x"),
        );
        let expected =
            [("a", "1"), ("b", "7"), ("a", "2")].map(|(key, count)| Sent::new(key, count));
        assert_eq!(run.outputs(), expected);
        assert_eq!(run.changes(), [("a", 2), ("b", 7)]);

        let again = tester.run(Sample::new("in").message("a", "x"));
        assert_eq!(again.output().value(), Some("3"));
        assert_eq!(tester.number("a"), Some(3));
    }
}
