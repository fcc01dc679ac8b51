//! Sends each message on as its headers say, and leaves them out: all that a processor may say of an output.
//! `to: a,b` names topics, an output each (the processor needs the grants); `to-partition: n`, `set-key: k`, `set-header: name=value`
//! and `set-timestamp: ms` are said of each; `deliver-after-ms: n` has them delivered so long after the message's own timestamp.

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
    use millrace_guest::{NO_TIME, Sample};

    use super::*;

    #[test]
    fn outputs_are_what_the_headers_say() {
        let batch = Sample::new("in")
            .message("k", "v")
            .message("k", "v")
            .header("to", "a,b")
            .header("to-partition", "3")
            .header("set-timestamp", "7")
            .header("deliver-after-ms", "1000")
            .columns();
        let then = batch.timestamps[1] + 1_000;
        let answer = millrace_guest::process(batch, process).unwrap();
        assert_eq!(answer.sources, [0, 1, 1]);
        assert_eq!(answer.topic_names, ["a", "b"]);
        assert_eq!(answer.partitions[1..], [3, 3]);
        assert_eq!(answer.times, [NO_TIME, NO_TIME, 7, then, 7, then]);
    }
}
