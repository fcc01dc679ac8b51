//! Greets whoever a message names, and counts in state how often.

use millrace_guest::{Message, Outcome, config, log, processor, state};

processor!(process);

fn process(message: &Message) -> Outcome {
    let Some(name) = message.value().filter(|name| !name.is_empty()) else {
        return Outcome::reject("no-name", "there is nobody to greet");
    };
    let count = match state::add(message, name, 1) {
        Ok(count) => count,
        Err(full) => return Outcome::retry("state-full", full.to_string()),
    };
    let greeting = config::get("greeting").unwrap_or_else(|| "hello".to_owned());
    if count == 1 {
        log::info(format!("{} is new", String::from_utf8_lossy(name)));
    }
    let output = message.output().build_value(|buffer| {
        buffer.extend_from_slice(greeting.as_bytes());
        buffer.extend_from_slice(b", ");
        buffer.extend_from_slice(name);
    });
    Outcome::Emit(output.header("count", count.to_string()))
}

#[cfg(test)]
mod tests {
    use millrace_guest::Sample;
    use millrace_guest::testing::{Said, Sent, Tester};

    #[test]
    fn whoever_has_a_name_is_greeted_and_counted() {
        let mut tester = Tester::new(super::process).with_number("Ada", 2);
        let run = tester.run(
            Sample::new("names")
                .message("1", "Ada")
                .nullable(Some(b"2"), None),
        );
        assert_eq!(
            run.outputs(),
            [Sent::new("1", "hello, Ada").with_header("count", "3")]
        );
        assert_eq!(
            run.said(1),
            &Said::rejected("no-name", "there is nobody to greet")
        );
        assert_eq!(run.changes(), [("Ada", 3)]);
    }
}
