//! Forwards each message as its headers say, and removes these headers. This covers everything that
//! a processor can set on an output. `to: a,b` names topics, with one output for each (the
//! processor needs the grants); `to-partition: n`, `set-key: k`, `set-header: name=value` and
//! `set-timestamp: ms` apply to each output; `deliver-after-ms: n` delays delivery until n
//! milliseconds after the message's own timestamp.

use millrace_guest::{Message, Outcome, Output, processor};

processor!(process);

fn process(message: &Message) -> Outcome {
    let outputs = match text(message, "to") {
        Some(topics) => topics
            .split(',')
            .map(|topic| addressed(message).topic(topic))
            .collect(),
        None => vec![addressed(message)],
    };
    Outcome::EmitAll(outputs)
}

fn addressed(message: &Message) -> Output {
    let mut output = message.output().without_headers();
    if let Some(partition) = number(message, "to-partition") {
        output = output.partition(partition as u32);
    }
    if let Some(key) = message.header("set-key") {
        output = output.key(key);
    }
    if let Some(header) = text(message, "set-header") {
        let (name, value) = header.split_once('=').unwrap_or((header, ""));
        output = output.header(name, value);
    }
    if let Some(ms) = number(message, "set-timestamp") {
        output = output.timestamp(ms);
    }
    if let Some(ms) = number(message, "deliver-after-ms") {
        output = output.deliver_at(message.timestamp() + ms);
    }
    output
}

fn number(message: &Message, header: &str) -> Option<u64> {
    text(message, header)?.parse().ok()
}

fn text<'a>(message: &'a Message, header: &str) -> Option<&'a str> {
    std::str::from_utf8(message.header(header)?).ok()
}

#[cfg(test)]
mod tests {
    use millrace_guest::Sample;
    use millrace_guest::testing::{Said, Sent, Tester};

    use super::*;

    #[test]
    fn outputs_are_what_the_headers_say() {
        let run = Tester::new(process).run(
            Sample::new("in")
                .message("k", "v")
                .header("colour", "red")
                .message("k", "v")
                .timestamp(5_000)
                .header("to", "a,b")
                .header("to-partition", "3")
                .header("set-key", "other")
                .header("set-header", "colour=blue")
                .header("set-timestamp", "7")
                .header("deliver-after-ms", "1000"),
        );
        assert_eq!(run.said(0), &Said::Sent(vec![Sent::new("k", "v")]));
        let expected = Sent::new("other", "v")
            .in_partition(3)
            .with_header("colour", "blue")
            .with_timestamp(7)
            .delivered_at(6_000);
        assert_eq!(run.outputs_to("a"), [expected.clone().to("a")]);
        assert_eq!(run.outputs_to("b"), [expected.to("b")]);
    }
}
