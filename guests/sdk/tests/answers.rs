//! Tests the columns of handlers' answers, reading them as the host does, span by span.

use std::time::Duration;

use millrace_guest::{
    Answer, Batch, Cause, Columns, Decision, FailureFacts, Message, NO_TIME, NONE, Outcome,
    Outcomes, Sample, Unavailable,
};

/// An output as a host would understand it.
#[derive(Debug, PartialEq)]
struct Seen {
    source: u32,
    topic: Option<String>,
    partition: Option<u32>,
    key: Option<String>,
    value: Option<String>,
    headers: Vec<(String, String)>,
}

fn three_orders() -> Columns {
    Sample::new("orders")
        .message("a", "apples")
        .header("from", "shop")
        .message("b", "books")
        .nullable(None, Some(b"cakes"))
        .header("from", "web")
        .header("rush", "yes")
        .columns()
}

fn answer(columns: &Columns, process: impl Fn(&Message) -> Outcome) -> (Answer, Vec<Seen>) {
    let answer = millrace_guest::process(columns.clone(), process).unwrap();
    let outputs = (0..answer.sources.len())
        .map(|output| see(columns, &answer, output))
        .collect();
    (answer, outputs)
}

fn see(columns: &Columns, answer: &Answer, output: usize) -> Seen {
    let all = [columns.data.as_slice(), answer.data.as_slice()].concat();
    let text = |span: &[u32]| {
        let bytes = || all[span[0] as usize..][..span[1] as usize].to_vec();
        (span[1] != NONE).then(|| String::from_utf8(bytes()).unwrap())
    };
    let source = answer.sources[output] as usize;
    let either = |given: &[u32], kept: &[u32]| match given {
        [] => text(&kept[source * 2..][..2]),
        given => text(&given[output * 2..][..2]),
    };
    let (ends, headers, index) = match answer.header_ends.as_slice() {
        [] => (&columns.header_ends, &columns.headers, source),
        _ => (&answer.header_ends, &answer.headers, output),
    };
    let start = index
        .checked_sub(1)
        .map_or(0, |before| ends[before] as usize);
    let header = |header: &[u32]| (text(&header[..2]).unwrap(), text(&header[2..]).unwrap());
    let number = |column: &[u32]| column.get(output).copied().filter(|number| *number != NONE);
    Seen {
        source: source as u32,
        topic: number(&answer.topics).map(|topic| answer.topic_names[topic as usize].clone()),
        partition: number(&answer.partitions),
        key: either(&answer.keys, &columns.keys),
        value: either(&answer.values, &columns.values),
        headers: headers[start * 4..ends[index] as usize * 4]
            .chunks(4)
            .map(header)
            .collect(),
    }
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

#[test]
fn a_message_tells_all_about_itself() {
    let batch = Batch::new(three_orders());
    let last = batch.messages().last().unwrap();
    assert_eq!(
        (last.key(), last.value()),
        (None, Some(b"cakes".as_slice()))
    );
    assert_eq!(
        (last.header("rush"), last.header("from")),
        (Some(&b"yes"[..]), Some(&b"web"[..]))
    );
    assert_eq!((last.header("none"), last.headers().count()), (None, 2));
    assert_eq!(
        (
            last.topic(),
            last.partition(),
            last.offset(),
            last.attempt()
        ),
        ("orders", 0, 2, 1)
    );
    assert_eq!(batch.message(1).headers().count(), 0);
}

#[test]
fn what_passes_through_is_one_number_per_message() {
    let (answer, seen) = answer(&three_orders(), |message| message.output().into());
    let expected = Answer {
        outcomes: vec![1; 3],
        sources: vec![0, 1, 2],
        ..Answer::default()
    };
    assert_eq!(answer, expected);
    assert_eq!(seen[2].headers, pairs(&[("from", "web"), ("rush", "yes")]));
}

#[test]
fn the_first_output_that_differs_fills_in_those_before_it() {
    let (_, seen) = answer(&three_orders(), |message| match message.index() {
        1 => message
            .output()
            .key("B")
            .build_value(|buffer| buffer.extend_from_slice(b"BOOKS"))
            .topic("library")
            .partition(7)
            .header("shelf", "3")
            .into(),
        _ => message.output().into(),
    });
    let text = |text: &str| Some(text.to_owned());
    let kept = |source, key: Option<&str>, value, headers: &[(&str, &str)]| Seen {
        source,
        topic: None,
        partition: None,
        key: key.map(str::to_owned),
        value: text(value),
        headers: pairs(headers),
    };
    let changed = Seen {
        topic: text("library"),
        partition: Some(7),
        ..kept(1, Some("B"), "BOOKS", &[("shelf", "3")])
    };
    let last = kept(2, None, "cakes", &[("from", "web"), ("rush", "yes")]);
    assert_eq!(
        seen,
        [
            kept(0, Some("a"), "apples", &[("from", "shop")]),
            changed,
            last
        ]
    );
}

#[test]
fn times_are_said_of_all_outputs_once_one_has_them() {
    let (answer, _) = answer(&three_orders(), |message| match message.index() {
        1 => message.output().timestamp(5).into(),
        2 => message.output().deliver_at(9).into(),
        _ => message.output().into(),
    });
    let none = NO_TIME;
    assert_eq!(answer.times, [none, none, 5, none, none, 9]);
}

#[test]
fn bytes_of_the_input_are_not_copied() {
    let (answer, seen) = answer(&three_orders(), |message| {
        let value = message.value().unwrap();
        message.output().key(&value[1..3]).value(&value[2..]).into()
    });
    assert!(answer.data.is_empty());
    assert_eq!(
        (seen[0].key.as_deref(), seen[0].value.as_deref()),
        (Some("pp"), Some("ples"))
    );
}

#[test]
fn a_message_may_have_several_outputs_or_none() {
    let (answer, seen) = answer(&three_orders(), |message| match message.index() {
        0 => {
            // Built alternately, so that their headers are interleaved.
            let (one, two) = (
                message.output().header("n", "1"),
                message.output().header("n", "2"),
            );
            Outcome::EmitAll(vec![
                one.header("also", "x"),
                two.without_key(),
                message.output(),
            ])
        }
        1 => Outcome::EmitAll(vec![]),
        _ => message
            .output()
            .without_headers()
            .without_value()
            .header("only", "one")
            .into(),
    });
    assert_eq!(
        (answer.outcomes, answer.sources),
        (vec![1, 0, 1], vec![0, 0, 0, 2])
    );
    let headers: Vec<_> = seen.iter().map(|seen| seen.headers.clone()).collect();
    assert_eq!(
        headers[0],
        pairs(&[("from", "shop"), ("n", "1"), ("also", "x")])
    );
    assert_eq!(headers[1], pairs(&[("from", "shop"), ("n", "2")]));
    assert_eq!(headers[2], pairs(&[("from", "shop")]));
    assert_eq!(headers[3], pairs(&[("only", "one")]));
    assert_eq!(
        (&seen[1].key, &seen[2].key, &seen[3].value),
        (&None, &Some("a".into()), &None)
    );
}

#[test]
fn a_topic_is_named_once() {
    let (answer, seen) = answer(&three_orders(), |message| {
        let topic = if message.key().is_some() {
            "keyed"
        } else {
            "others"
        };
        message.output().topic(topic).into()
    });
    assert_eq!(
        (answer.topic_names, answer.topics),
        (vec!["keyed".into(), "others".into()], vec![0, 0, 1])
    );
    assert_eq!(seen[2].topic.as_deref(), Some("others"));
}

#[test]
fn failures_keep_their_class_and_reason() {
    let (answer, _) = answer(&three_orders(), |message| match message.index() {
        0 => Outcome::Ack,
        1 => Outcome::retry_after(Duration::from_millis(50), "busy", "come back"),
        _ => Outcome::reject("cake", format!("no {}", "cakes")),
    });
    assert_eq!(answer.outcomes, [0, 2, 3]);
    let told = |detail: &millrace_guest::Detail| {
        (
            detail.message,
            detail.after_ms,
            detail.class.clone(),
            detail.reason.clone(),
        )
    };
    let told: Vec<_> = answer.details.iter().map(told).collect();
    let busy = (1, Some(50), "busy".to_owned(), "come back".to_owned());
    assert_eq!(
        told,
        [busy, (2, None, "cake".to_owned(), "no cakes".to_owned())]
    );
}

#[test]
fn one_message_can_say_that_the_batch_has_to_wait() {
    let result = millrace_guest::process(three_orders(), |message| match message.index() {
        2 => Err(Unavailable::new("the shop is closed")),
        _ => Ok(Outcome::Ack),
    });
    assert_eq!(result, Err(Unavailable::new("the shop is closed")));
}

#[test]
fn an_empty_batch_has_an_empty_answer() {
    let answer = millrace_guest::process(Columns::default(), |_| Outcome::Ack);
    assert_eq!(answer, Ok(Answer::default()));
}

#[test]
#[should_panic(expected = "1 outcomes for 3 messages")]
fn a_message_without_an_outcome_is_a_mistake() {
    let forgetful = |_: &Batch, outcomes: &mut Outcomes| outcomes.push(Outcome::Ack);
    let _ = millrace_guest::process_batch(three_orders(), forgetful);
}

#[test]
#[should_panic(expected = "belongs to the message")]
fn an_output_of_another_message_is_a_mistake() {
    let confused = |batch: &Batch, outcomes: &mut Outcomes| {
        outcomes.push(batch.message(1).output().into());
    };
    let _ = millrace_guest::process_batch(three_orders(), confused);
}

#[test]
fn partitions_and_decisions_come_in_order() {
    let partitions = millrace_guest::assign(three_orders(), 2, |message, partitions| {
        message.index() as u32 % partitions
    });
    assert_eq!(partitions, [0, 1, 0]);

    let failure = |message, class: &str| FailureFacts {
        message,
        revision: 1,
        attempt: 1,
        first_failed_at: 0,
        cause: Cause::Retry,
        class: class.to_owned(),
        reason: String::new(),
    };
    let failures = vec![failure(0, "odd"), failure(2, "busy")];
    let decisions = millrace_guest::decide(three_orders(), failures, |failure| {
        match (failure.class(), failure.message().value()) {
            ("busy", Some(b"cakes")) => Decision::RetryAfter(Duration::from_secs(1)),
            _ => Decision::Policy,
        }
    });
    assert_eq!(
        decisions,
        [
            Decision::Policy,
            Decision::RetryAfter(Duration::from_secs(1))
        ]
    );
}
