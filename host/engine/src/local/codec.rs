//! What a group of transactions does, as the journal's bytes.
//!
//! A body is a version, then operations one after the other. The journal keeps a body whole or not at all, so where one
//! transaction ends and the next begins need not be written. Integers are little-endian, lengths have 32 bits.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use millrace_log::FrameBuffer;
use millrace_model::{PartitionId, RecordBatch, Topic, TopicId, TopicPartition};

use crate::contract::EntryKind;

const VERSION: u8 = 1;
const APPEND: u8 = 1;
const PROGRESS: u8 = 2;
const ENTRY: u8 = 3;
const CLAIM: u8 = 4;
const CREATE_TOPIC: u8 = 5;
const DELETE_TOPIC: u8 = 6;

/// At most what an operation takes beside its names and bytes.
pub(super) const OPERATION_OVERHEAD_BYTES: usize = 40;

/// One change, decided: offsets and epochs are given.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Operation {
    Append {
        partition: TopicPartition,
        batch: RecordBatch,
    },
    Progress {
        partition: TopicPartition,
        group: Arc<str>,
        /// As [`millrace_model::Progress::encode`] gives it.
        progress: Bytes,
    },
    Entry {
        kind: EntryKind,
        key: String,
        value: Option<Bytes>,
    },
    Claim {
        partition: TopicPartition,
        group: Arc<str>,
        epoch: u64,
    },
    CreateTopic(Topic),
    DeleteTopic(TopicId),
}

/// Begins a body.
pub(super) fn begin(out: &mut Vec<u8>) {
    out.push(VERSION);
}

/// Appends one operation to a frame's body; a large batch without copying it.
pub(super) fn encode_into(frame: &mut FrameBuffer, operation: &Operation) {
    match operation {
        Operation::Append { partition, batch } => {
            let out = frame.body();
            out.push(APPEND);
            put_partition(out, *partition);
            out.extend((batch.byte_count() as u32).to_le_bytes());
            frame.push(batch.bytes());
        }
        operation => encode(frame.body(), operation),
    }
}

/// Appends one operation to a body.
pub(super) fn encode(out: &mut Vec<u8>, operation: &Operation) {
    match operation {
        Operation::Append { partition, batch } => {
            out.push(APPEND);
            put_partition(out, *partition);
            put_bytes(out, batch.bytes());
        }
        Operation::Progress {
            partition,
            group,
            progress,
        } => {
            out.push(PROGRESS);
            put_partition(out, *partition);
            put_bytes(out, group.as_bytes());
            put_bytes(out, progress);
        }
        Operation::Entry { kind, key, value } => {
            out.push(ENTRY);
            put_bytes(out, kind.as_str().as_bytes());
            put_bytes(out, key.as_bytes());
            out.push(u8::from(value.is_some()));
            put_bytes(out, value.as_deref().unwrap_or_default());
        }
        Operation::Claim {
            partition,
            group,
            epoch,
        } => {
            out.push(CLAIM);
            put_partition(out, *partition);
            put_bytes(out, group.as_bytes());
            out.extend(epoch.to_le_bytes());
        }
        Operation::CreateTopic(topic) => {
            out.push(CREATE_TOPIC);
            put_bytes(out, topic_json(topic).as_bytes());
        }
        Operation::DeleteTopic(topic) => {
            out.push(DELETE_TOPIC);
            out.extend(topic.0.to_le_bytes());
        }
    }
}

/// A topic as text, for the journal and the checkpoint.
pub(super) fn topic_json(topic: &Topic) -> String {
    serde_json::to_string(topic).unwrap_or_else(|error| unreachable!("plain data: {error}"))
}

fn put_partition(out: &mut Vec<u8>, partition: TopicPartition) {
    out.extend(partition.topic.0.to_le_bytes());
    out.extend(partition.partition.0.to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend((bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

/// Reads a body back; the batches share its bytes. The error says what is wrong.
pub(super) fn decode(mut body: Bytes) -> Result<Vec<Operation>, &'static str> {
    if body.try_get_u8() != Ok(VERSION) {
        return Err("its format is of another version");
    }
    let mut operations = Vec::new();
    while body.has_remaining() {
        operations.push(take_operation(&mut body).ok_or("an operation is malformed")?);
    }
    Ok(operations)
}

fn take_operation(body: &mut Bytes) -> Option<Operation> {
    Some(match body.try_get_u8().ok()? {
        APPEND => Operation::Append {
            partition: take_partition(body)?,
            batch: RecordBatch::decode(&take_bytes(body)?).ok()?,
        },
        PROGRESS => Operation::Progress {
            partition: take_partition(body)?,
            group: take_text(body)?.into(),
            progress: take_own_bytes(body)?,
        },
        ENTRY => Operation::Entry {
            kind: EntryKind::parse(&take_text(body)?)?,
            key: take_text(body)?,
            value: {
                let present = body.try_get_u8().ok()? != 0;
                Some(take_own_bytes(body)?).filter(|_| present)
            },
        },
        CLAIM => Operation::Claim {
            partition: take_partition(body)?,
            group: take_text(body)?.into(),
            epoch: body.try_get_u64_le().ok()?,
        },
        CREATE_TOPIC => Operation::CreateTopic(serde_json::from_slice(&take_bytes(body)?).ok()?),
        DELETE_TOPIC => Operation::DeleteTopic(TopicId(body.try_get_u64_le().ok()?)),
        _ => return None,
    })
}

fn take_partition(body: &mut Bytes) -> Option<TopicPartition> {
    Some(TopicPartition {
        topic: TopicId(body.try_get_u64_le().ok()?),
        partition: PartitionId(body.try_get_u32_le().ok()?),
    })
}

fn take_bytes(body: &mut Bytes) -> Option<Bytes> {
    let length = body.try_get_u32_le().ok()? as usize;
    (length <= body.len()).then(|| body.split_to(length))
}

/// Bytes that stay in memory for long, and must not keep those of the whole body there.
fn take_own_bytes(body: &mut Bytes) -> Option<Bytes> {
    Some(Bytes::copy_from_slice(&take_bytes(body)?))
}

fn take_text(body: &mut Bytes) -> Option<String> {
    String::from_utf8(take_bytes(body)?.into()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use millrace_model::{BatchBuilder, Durability, Message, Timestamp, TopicName, TopicSpec};

    fn operations() -> Vec<Operation> {
        let partition = TopicPartition {
            topic: TopicId(7),
            partition: PartitionId(3),
        };
        let mut batch = BatchBuilder::with_capacity(0);
        batch.push(&Message::default());
        let spec = TopicSpec {
            name: TopicName::parse("orders").unwrap(),
            partitions: 3,
            durability: Durability::Os,
            partitioner: None,
            owner: None,
            created_at: Timestamp(5),
            settings: Default::default(),
        };
        let entry = |value| Operation::Entry {
            kind: EntryKind::Processor,
            key: "p".into(),
            value,
        };
        vec![
            Operation::Append {
                partition,
                batch: batch.finish().unwrap(),
            },
            Operation::Progress {
                partition,
                group: "g".into(),
                progress: Bytes::from_static(b"progress"),
            },
            entry(None),
            entry(Some(Bytes::new())),
            entry(Some(Bytes::from_static(b"value"))),
            Operation::Claim {
                partition,
                group: "ü".into(),
                epoch: 9,
            },
            Operation::CreateTopic(Topic {
                id: TopicId(7),
                spec,
            }),
            Operation::DeleteTopic(TopicId(7)),
        ]
    }

    fn body(operations: &[Operation]) -> Bytes {
        let mut out = Vec::new();
        begin(&mut out);
        operations.iter().for_each(|o| encode(&mut out, o));
        out.into()
    }

    #[test]
    fn operations_read_back_as_written() {
        let operations = operations();
        assert_eq!(decode(body(&operations)), Ok(operations));
    }

    #[test]
    fn what_stays_in_memory_does_not_keep_the_bytes_of_the_whole_journal_file() {
        for operation in decode(body(&operations())).unwrap() {
            let kept = match operation {
                Operation::Progress { progress, .. } => progress,
                Operation::Entry {
                    value: Some(value), ..
                } => value,
                _ => continue,
            };
            assert!(kept.is_empty() || kept.is_unique());
        }
    }

    #[test]
    fn cut_and_changed_bodies_are_refused_or_read_without_panic() {
        let whole = body(&operations());
        for length in 0..whole.len() {
            let _ = decode(whole.slice(..length));
            for value in [0, 1, 0x7f, 0xff] {
                let mut changed = whole.to_vec();
                changed[length] = value;
                let _ = decode(changed.into());
            }
        }
        assert!(decode(whole.slice(..whole.len() - 1)).is_err());
        assert!(decode(Bytes::new()).is_err());
    }
}
