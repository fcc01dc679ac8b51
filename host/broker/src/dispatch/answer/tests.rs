//! Checks of answers with one lie each, and of random answers.

use std::sync::Arc;

use millrace_model::bounds::{FAILURE_CLASS_BYTES_MAX, MESSAGE_BYTES_MAX};
use millrace_model::columns::Detail;
use millrace_model::{Durability, Topic, TopicName, TopicSpec};
use proptest::prelude::*;

use super::*;
use crate::dispatch::live::OutputTopic;
use crate::ground::columns::push;
use crate::ground::partitioner::Partitioner;

pub(super) fn topics(default: bool) -> OutputTopics {
    let spec = |name| TopicSpec {
        name: TopicName::parse(name).unwrap(),
        partitions: 3,
        durability: Durability::Os,
        partitioner: None,
        owner: None,
        created_at: Timestamp::default(),
        settings: Default::default(),
    };
    let topics = ["out", "other"].map(|name| OutputTopic {
        topic: Topic {
            id: Default::default(),
            spec: spec(name),
        },
        partitioner: Arc::new(Partitioner::new(3, None)),
    });
    OutputTopics {
        topics: topics.into(),
        default: default.then_some(0),
        takes_all: false,
    }
}

pub(super) fn batch() -> ColumnBatch {
    let mut batch = ColumnBatch::default();
    for value in [&b"one"[..], b"two", b"three"] {
        let header = [(&b"name"[..], Some(&b"value"[..]))];
        push(
            &mut batch,
            0,
            5,
            1,
            (Some(b"key"), Some(value)),
            header.into_iter(),
        );
    }
    batch
}

/// A correct answer: emits from the first message, retries the second, rejects the third.
pub(super) fn sound() -> Answer {
    let detail = |message, class: &str| Detail {
        message,
        after_ms: Some(7),
        class: class.to_owned(),
        reason: "because".to_owned(),
    };
    Answer {
        outcomes: vec![1, 2, 3],
        details: vec![detail(1, "busy"), detail(2, "")],
        data: b"fresh".to_vec(),
        sources: vec![0, 0],
        topic_names: vec!["other".to_owned()],
        topics: vec![NONE, 0],
        partitions: vec![NONE, 2],
        keys: vec![0, NONE, 0, 3],
        values: vec![0, 3, batch().data.len() as u32, 5],
        header_ends: vec![0, 1],
        headers: vec![0, 3, 0, NONE],
        times: vec![NO_TIME, NO_TIME, 8, 9],
    }
}

fn check(answer: Answer) -> Result<Verdict, CallError> {
    Verdict::of(answer, &batch(), &topics(true), 10)
}

#[test]
fn a_sound_answer_is_understood() {
    let batch = batch();
    let verdict = check(sound()).unwrap();
    let outputs = &verdict.outputs;
    assert_eq!((outputs.len(), outputs.source(1)), (2, 0));
    assert_eq!((outputs.topic(0), outputs.topic(1)), (0, 1));
    assert_eq!(
        (outputs.partition(0), outputs.partition(1)),
        (None, Some(2))
    );
    assert_eq!(
        (outputs.key(0, &batch), outputs.key(1, &batch)),
        (None, Some(&b"key"[..]))
    );
    assert_eq!(outputs.value(0, &batch), Some(&b"key"[..]));
    assert_eq!(outputs.value(1, &batch), Some(&b"fresh"[..]));
    let headers: Vec<_> = outputs.headers(1, &batch).collect();
    assert_eq!(headers, [(&b"key"[..], None)]);
    let [retry, reject] = &verdict.failed[..] else {
        panic!("{:?}", verdict.failed)
    };
    assert_eq!(
        (retry.message, retry.cause, retry.after_ms),
        (1, Cause::Retry, Some(7))
    );
    assert_eq!((reject.message, reject.class.as_str()), (2, "reject"));
}

#[test]
fn empty_columns_keep_what_the_source_has() {
    let answer = Answer {
        outcomes: vec![0, 0, 1],
        sources: vec![2],
        ..Answer::default()
    };
    let verdict = check(answer).unwrap();
    let mut builder = BatchBuilder::with_capacity(0);
    verdict.outputs.write(0, &batch(), &mut builder);
    let written = builder.finish().unwrap();
    let view = written.records().unwrap().next().unwrap().unwrap();
    let message = view.to_message(written.bytes()).unwrap();
    assert_eq!(message.key.as_deref(), Some(&b"key"[..]));
    assert_eq!(message.value.as_deref(), Some(&b"three"[..]));
    assert_eq!(message.headers.len(), 1);
    assert_eq!(message.timestamp, Timestamp(5));
}

#[test]
fn every_lie_is_found_and_named() {
    type Lie = fn(&mut Answer);
    let lies: [(&str, Lie); 26] = [
        ("2 outcomes for 3", |a| a.outcomes.truncate(2)),
        ("4 outcomes for 3", |a| a.outcomes.push(0)),
        ("outcome 4 of message 1", |a| a.outcomes[1] = 4),
        ("unexpected detail for message 0", |a| {
            a.details[0].message = 0
        }),
        ("unexpected detail for message 1", |a| a.details.swap(0, 1)),
        ("unexpected detail for message 9", |a| {
            a.details[1].message = 9
        }),
        ("source 0 of output 1 is lower", |a| {
            a.outcomes[1] = 1;
            a.details.remove(0);
            a.sources = vec![1, 0];
        }),
        ("whose outcome is not emit", |a| a.sources[1] = 1),
        ("whose outcome is not emit", |a| a.sources[1] = 99),
        ("has no output", |a| {
            *a = Answer {
                outcomes: vec![1, 0, 0],
                ..Answer::default()
            }
        }),
        ("column topics has 1", |a| a.topics.truncate(1)),
        ("names topic 1 of 1", |a| a.topics[0] = 1),
        ("does not exist or is not granted", |a| {
            a.topic_names[0] = "secret".to_owned()
        }),
        ("does not exist or is not granted", |a| {
            a.topic_names[0] = "../etc".to_owned()
        }),
        ("goes to partition 3 of 3", |a| a.partitions[0] = 3),
        ("column partitions has 3", |a| a.partitions.push(0)),
        ("column keys has 3", |a| a.keys.truncate(3)),
        ("the key of output 1", |a| {
            a.keys[2..].copy_from_slice(&[0, 1_000])
        }),
        ("the value of output 0", |a| a.values[0] = u32::MAX - 1),
        // Half of the span is in the batch's data, half in the answer's.
        ("the value of output 0", |a| {
            a.values[..2].copy_from_slice(&[40, 20])
        }),
        ("column times has 3 entries", |a| a.times.truncate(3)),
        ("a time of output 1", |a| a.times[3] = NO_TIME - 1),
        ("header-ends of output 1", |a| a.header_ends = vec![1, 0]),
        ("column headers has 4 entries", |a| a.header_ends[1] = 2),
        ("has no name", |a| a.headers[1] = NONE),
        ("the header of output 1", |a| {
            a.headers[2..].copy_from_slice(&[9_999, 1])
        }),
    ];
    for (expected, lie) in lies {
        let mut answer = sound();
        lie(&mut answer);
        match check(answer) {
            Err(CallError::BadAnswer(what)) => assert!(what.contains(expected), "{what}"),
            other => panic!("{expected}: {other:?}"),
        }
    }
}

#[test]
fn too_many_too_large_and_homeless_outputs_are_refused() {
    let answer = |count: usize| Answer {
        outcomes: vec![1, 0, 0],
        sources: vec![0; count],
        ..Answer::default()
    };
    assert!(check(answer(10)).is_ok());
    assert!(check(answer(11)).is_err());
    assert!(Verdict::of(answer(1), &batch(), &topics(false), 10).is_err());
    // A small answer can ask for much by naming a large span many times.
    let mut large = answer(4);
    large.data = vec![0; MESSAGE_BYTES_MAX];
    let theirs = batch().data.len() as u32;
    large.values = [theirs, MESSAGE_BYTES_MAX as u32].repeat(4);
    large.keys = [0, NONE].repeat(4);
    large.header_ends = vec![0; 4];
    assert!(check(large).unwrap_err().to_string().contains("together"));
    let mut large = answer(1);
    large.data = vec![0; MESSAGE_BYTES_MAX + 1];
    large.values = vec![theirs, MESSAGE_BYTES_MAX as u32 + 1];
    assert!(
        check(large)
            .unwrap_err()
            .to_string()
            .contains("a message has at most")
    );
}

#[test]
fn what_a_failure_says_is_cut_at_a_character() {
    assert_eq!(cut("häh".to_owned(), 2), "h");
    assert_eq!(cut("häh".to_owned(), 3), "hä");
    let mut answer = sound();
    answer.details[0].class = "ä".repeat(1_000);
    let class = &check(answer).unwrap().failed[0].class;
    assert!(class.len() <= FAILURE_CLASS_BYTES_MAX);
}

fn number() -> impl Strategy<Value = u32> {
    prop_oneof![0..8u32, 20..80u32, Just(NONE), any::<u32>()]
}

proptest! {
    #[test]
    fn any_answer_is_refused_or_can_be_written(
        outcomes in proptest::collection::vec(0..4u8, 3),
        sources in proptest::collection::vec(0..4u32, 0..4),
        columns in proptest::collection::vec(proptest::collection::vec(number(), 0..9), 6),
        times in proptest::collection::vec(any::<u64>(), 0..9),
        data in proptest::collection::vec(any::<u8>(), 0..20),
    ) {
        let [topics_, partitions, keys, values, header_ends, headers] =
            <[Vec<u32>; 6]>::try_from(columns).unwrap();
        let answer = Answer {
            times,
            outcomes,
            details: Vec::new(),
            data,
            sources,
            topic_names: vec!["out".to_owned()],
            topics: topics_,
            partitions,
            keys,
            values,
            header_ends,
            headers,
        };
        if let Ok(verdict) = check(answer) {
            let mut builder = BatchBuilder::with_capacity(0);
            for output in 0..verdict.outputs.len() {
                verdict.outputs.write(output, &batch(), &mut builder);
                prop_assert!(verdict.outputs.topic(output) < 2);
            }
        }
    }
}
