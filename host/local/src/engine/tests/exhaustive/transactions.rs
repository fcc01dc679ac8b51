//! The transactions of scripts' steps.

use millrace_engine::conformance::named;
use millrace_engine::state::{StateWrite, StateWrites};
use millrace_engine::{EntryKind, EntryWrite, Lease, ProgressWrite, RequestMark};

use super::super::*;
use super::model::{Dump, Place, Sending, value};

pub(super) fn keyed(number: u64, messages: &[(u8, Option<usize>)], now: Timestamp) -> RecordBatch {
    let mut builder = BatchBuilder::with_capacity(0);
    for (key, bytes) in messages {
        builder.push(&Message {
            key: Some(vec![*key].into()),
            value: bytes.map(|bytes| value(number, bytes).into()),
            headers: Vec::new(),
            timestamp: now,
        });
    }
    builder.finish().expect("a batch")
}

pub(super) fn request(
    number: u64,
    before: &Dump,
    to: &[Place],
    key: u8,
    bytes: usize,
) -> Transaction {
    let value = value(number, bytes);
    let appends = to.iter().map(|to| append(before.at(*to), &value));
    Transaction {
        request: Some(mark(before.at(to[0]).topic, key, number)),
        ..Transaction::produce(appends.collect())
    }
}

pub(super) fn mark(topic: millrace_model::TopicId, key: u8, number: u64) -> RequestMark {
    RequestMark {
        topic,
        key: [key; 16],
        fingerprint: [key; 16],
        note: number.to_string().into(),
    }
}

pub(super) fn send(number: u64, sending: &Sending, partition: TopicPartition) -> Transaction {
    let Sending {
        producer, sequence, ..
    } = *sending;
    let mut builder = BatchBuilder::with_capacity(0).numbered(producer, sequence);
    builder.push(&Message {
        value: Some(value(number, 30).into()),
        ..Message::default()
    });
    let batch = builder.finish().expect("a batch");
    Transaction::produce(vec![Append { partition, batch }])
}

pub(super) fn renew(number: u64, group: &str, topic: &Topic) -> Transaction {
    let empty = |partition| StateWrite {
        group: named(group),
        partition,
        lease: None,
        writes: Arc::new(StateWrites {
            resets: true,
            changes: Vec::new(),
            adds: None,
        }),
    };
    Transaction {
        entries: vec![EntryWrite {
            kind: EntryKind::Processor,
            key: "p".to_owned(),
            value: Some(vec![7; number as usize].into()),
        }],
        state: topic.partitions().map(empty).collect(),
        durability: Some(Durability::Durable),
        ..Transaction::default()
    }
}

pub(super) fn work(number: u64, lease: &Lease, output: TopicPartition) -> Transaction {
    Transaction {
        appends: vec![append(output, &value(number, 20))],
        progress: vec![ProgressWrite {
            partition: lease.partition,
            lease: lease.clone(),
            progress: millrace_model::Progress {
                next: Offset(number),
                ..Default::default()
            }
            .into(),
        }],
        entries: vec![EntryWrite {
            kind: EntryKind::Redriven,
            key: "work".to_owned(),
            value: Some(vec![7; number as usize].into()),
        }],
        ..Transaction::default()
    }
}
