//! The processor of the conformance scenario, in Rust; `../README.md` says what it does.

use millrace_guest::{Batch, Message, Outcome, Outcomes, config, log, metrics, processor, state};

processor!(batch process);

fn process(batch: &Batch, outcomes: &mut Outcomes) {
    let suffix = config::get("suffix").unwrap_or_default();
    match state::Sums::of_keys(batch).add() {
        Ok(counts) => {
            for (message, count) in batch.messages().zip(counts) {
                outcomes.push(decide(&message, count, suffix.as_bytes()));
            }
        }
        Err(full) => {
            for _ in batch.messages() {
                outcomes.push(Outcome::retry("state-full", full.to_string()));
            }
        }
    }
    metrics::add("handled", &[("language", "rust")], batch.len() as u64);
}

fn decide(message: &Message, count: i64, suffix: &[u8]) -> Outcome {
    let value = message.value();
    match value.unwrap_or_default() {
        told if told.starts_with(b"retry") => return Outcome::retry("later", "told to wait"),
        told if told.starts_with(b"reject") => {
            log::warn(format!(
                "rejected the message at offset {}",
                message.offset()
            ));
            return Outcome::reject("bad", "told to reject");
        }
        told if told.starts_with(b"trap") => panic!("told to trap"),
        _ => {}
    }
    let output = message.output().header("count", count.to_string());
    Outcome::Emit(match value {
        None => output,
        Some(value) => output.build_value(|buffer| {
            buffer.extend(value.iter().map(u8::to_ascii_uppercase));
            buffer.extend_from_slice(suffix);
        }),
    })
}

#[cfg(test)]
mod tests {
    use millrace_guest::Sample;
    use millrace_guest::testing::{Said, Sent, Tester};

    #[test]
    fn each_outcome_is_as_the_readme_says() {
        let mut tester = Tester::of_batches(super::process).with_config("suffix", "!");
        let run = tester.run(
            Sample::new("in")
                .message("a", "one")
                .message("a", "reject this")
                .message("c", "retry this")
                .nullable(Some(b"a"), None)
                .message("a", ""),
        );
        let counted =
            |key: &str, value: &str, count: &str| Sent::new(key, value).with_header("count", count);
        assert_eq!(run.said(1), &Said::rejected("bad", "told to reject"));
        assert_eq!(run.outputs()[0], counted("a", "ONE!", "1"));
        assert_eq!(run.outputs()[2], counted("a", "!", "3"));
        assert_eq!(tester.number("a"), Some(3));
        assert_eq!(tester.number("c"), None);
    }

    #[test]
    #[should_panic(expected = "told to trap")]
    fn a_message_may_trap() {
        Tester::of_batches(super::process).run(Sample::new("in").message("d", "trap now"));
    }
}
