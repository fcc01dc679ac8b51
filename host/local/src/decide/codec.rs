//! Encodes and decodes the operations of a group of transactions, as they are in the journal.
//!
//! A body is a version followed by operations. The journal keeps a body whole or not at all, so the
//! boundaries between transactions are not written. Integers are little-endian; lengths have 32
//! bits.

pub(crate) mod state;

use std::sync::Arc;

use bytes::{Buf, Bytes};
use millrace_engine::contract::EntryKind;
use millrace_engine::idempotence::requests::Request;
use millrace_engine::state::StateWrites;
use millrace_log::FrameBuffer;
use millrace_log::cipher::{self, Cipher, DecryptError};
use millrace_model::{
    GroupName, Offset, PartitionId, ProducerId, Progress, ProgressChange, RecordBatch, Stamp,
    Timestamp, Topic, TopicId, TopicPartition,
};

const VERSION: u8 = 1;
const ENCRYPTED: u8 = 2;
/// Maximum bytes of a body besides its operations.
pub(crate) const BODY_OVERHEAD_BYTES: usize = 2 + cipher::OVERHEAD_BYTES;
const APPEND: u8 = 1;
/// The whole progress; written by versions before [`PROGRESS_CHANGE`].
const PROGRESS: u8 = 2;
const ENTRY: u8 = 3;
const CLAIM: u8 = 4;
const CREATE_TOPIC: u8 = 5;
const DELETE_TOPIC: u8 = 6;
/// Followed by an operation on producers.
const PRODUCERS: u8 = 9;
const PRODUCERS_MOMENT: u8 = 0;
const PRODUCERS_UNNAMED: u8 = 1;
const PRODUCERS_NAMED: u8 = 2;
const REQUEST: u8 = 10;
const CHANGE_TOPIC: u8 = 7;
const TRIM: u8 = 8;
/// Followed by changes of a state table.
const STATE: u8 = 11;
const PROGRESS_CHANGE: u8 = 12;

/// Maximum bytes of an operation besides its names and contents.
pub(crate) const OPERATION_OVERHEAD_BYTES: usize = 40;

/// One decided change, with its offsets and epochs.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operation {
    Append {
        partition: TopicPartition,
        batch: RecordBatch,
    },
    Progress {
        partition: TopicPartition,
        group: GroupName,
        change: ProgressChange,
    },
    Entry {
        kind: EntryKind,
        key: String,
        value: Option<Bytes>,
    },
    Claim {
        partition: TopicPartition,
        group: GroupName,
        epoch: u64,
    },
    CreateTopic(Topic),
    DeleteTopic(TopicId),
    /// The time for the operations after it: things that are forgotten by age are forgotten by this
    /// time.
    Moment(Timestamp),
    Producer {
        producer: ProducerId,
        name: Option<Arc<str>>,
    },
    Request {
        topic: TopicId,
        request: Arc<Request>,
    },
    /// The topic's new description.
    ChangeTopic(Topic),
    Trim {
        partition: TopicPartition,
        start: Offset,
    },
    State {
        partition: TopicPartition,
        group: GroupName,
        writes: Arc<StateWrites>,
    },
}

/// Begins a body. An encrypted one has its own version, followed by one piece that contains a plain
/// body.
pub(crate) fn begin(out: &mut Vec<u8>, cipher: Option<&Cipher>) {
    if let Some(cipher) = cipher {
        out.push(ENCRYPTED);
        cipher.begin(out);
    }
    out.push(VERSION);
}

/// Ends the body that began at `start`, for the frame of this sequence.
pub(crate) fn finish(out: &mut Vec<u8>, start: usize, cipher: Option<&Cipher>, sequence: u64) {
    if let Some(cipher) = cipher {
        cipher.finish(out, start + 1, &belongs_to(sequence));
    }
}

/// The key that a body is encrypted with; `None` for a plain one.
pub(crate) fn key_id(body: &[u8]) -> Option<u32> {
    let piece = body.strip_prefix(&[ENCRYPTED])?;
    cipher::key_id(piece)
}

/// The place that an encrypted body is bound to.
fn belongs_to(sequence: u64) -> [u8; 16] {
    let mut bytes = *b"journal\0\0\0\0\0\0\0\0\0";
    bytes[8..].copy_from_slice(&sequence.to_le_bytes());
    bytes
}

/// Appends one operation to a frame's body; a large batch is not copied.
pub(crate) fn encode_into(frame: &mut FrameBuffer, operation: &Operation) {
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
pub(crate) fn encode(out: &mut Vec<u8>, operation: &Operation) {
    match operation {
        Operation::Append { partition, batch } => {
            out.push(APPEND);
            put_partition(out, *partition);
            put_bytes(out, batch.bytes());
        }
        Operation::Progress {
            partition,
            group,
            change,
        } => {
            out.push(PROGRESS_CHANGE);
            put_partition(out, *partition);
            put_bytes(out, group.as_str().as_bytes());
            put_bytes(out, &change.encode());
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
            put_bytes(out, group.as_str().as_bytes());
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
        Operation::Moment(moment) => {
            out.extend([PRODUCERS, PRODUCERS_MOMENT]);
            out.extend(moment.0.to_le_bytes());
        }
        Operation::Producer { producer, name } => {
            let form = name.as_ref().map_or(PRODUCERS_UNNAMED, |_| PRODUCERS_NAMED);
            out.extend([PRODUCERS, form]);
            out.extend(producer.id.to_le_bytes());
            out.extend(producer.epoch.to_le_bytes());
            if let Some(name) = name {
                put_bytes(out, name.as_bytes());
            }
        }
        Operation::Request { topic, request } => {
            out.push(REQUEST);
            out.extend(topic.0.to_le_bytes());
            out.extend(request.key);
            out.extend(request.fingerprint);
            out.extend(request.at.0.to_le_bytes());
            put_bytes(out, &offsets_bytes(&request.base_offsets));
            put_bytes(out, &request.note);
        }
        Operation::ChangeTopic(topic) => {
            out.push(CHANGE_TOPIC);
            put_bytes(out, topic_json(topic).as_bytes());
        }
        Operation::Trim { partition, start } => {
            out.push(TRIM);
            put_partition(out, *partition);
            out.extend(start.0.to_le_bytes());
        }
        Operation::State {
            partition,
            group,
            writes,
        } => {
            out.push(STATE);
            put_partition(out, *partition);
            put_bytes(out, group.as_str().as_bytes());
            state::put(out, writes);
        }
    }
}

/// Offsets as bytes, for the journal and the checkpoint.
pub(crate) fn offsets_bytes(offsets: &[Offset]) -> Vec<u8> {
    let bytes = offsets.iter().flat_map(|offset| offset.0.to_le_bytes());
    bytes.collect()
}

/// Offsets from the bytes of [`offsets_bytes`].
pub(crate) fn offsets_of(bytes: &[u8]) -> Option<Vec<Offset>> {
    let (offsets, rest) = bytes.as_chunks::<8>();
    let offset = |bytes: &[u8; 8]| Offset(u64::from_le_bytes(*bytes));
    rest.is_empty()
        .then(|| offsets.iter().map(offset).collect())
}

/// A topic as text, for the journal and the checkpoint.
pub(crate) fn topic_json(topic: &Topic) -> String {
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

/// Decodes the body of the frame with this sequence, encrypted or not. The error says what is
/// wrong.
pub(crate) fn open(
    body: Bytes,
    cipher: Option<&Cipher>,
    sequence: u64,
) -> Result<Vec<Operation>, String> {
    let Some(id) = key_id(&body) else {
        return decode(body).map_err(str::to_owned);
    };
    let cipher = cipher.ok_or(DecryptError::MissingKey { id });
    let plain = cipher.and_then(|cipher| cipher.decrypt(&body[1..], &belongs_to(sequence)));
    let plain = plain.map_err(|error| error.to_string())?;
    decode(plain.into()).map_err(str::to_owned)
}

/// Decodes a plain body; the batches share its bytes. The error says what is wrong.
pub(crate) fn decode(mut body: Bytes) -> Result<Vec<Operation>, &'static str> {
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
        APPEND => {
            let partition = take_partition(body)?;
            let batch = RecordBatch::decode(&take_bytes(body)?).ok()?;
            // Version 0.1 wrote none.
            let batch = batch.stamped(Stamp::of(partition));
            Operation::Append { partition, batch }
        }
        PROGRESS => Operation::Progress {
            partition: take_partition(body)?,
            group: GroupName::stored(&take_text(body)?),
            change: Progress::decode(&take_bytes(body)?)?.into(),
        },
        PROGRESS_CHANGE => Operation::Progress {
            partition: take_partition(body)?,
            group: GroupName::stored(&take_text(body)?),
            change: ProgressChange::decode(&take_bytes(body)?)?,
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
            group: GroupName::stored(&take_text(body)?),
            epoch: body.try_get_u64_le().ok()?,
        },
        CREATE_TOPIC => Operation::CreateTopic(serde_json::from_slice(&take_bytes(body)?).ok()?),
        DELETE_TOPIC => Operation::DeleteTopic(TopicId(body.try_get_u64_le().ok()?)),
        PRODUCERS => take_of_producers(body)?,
        REQUEST => Operation::Request {
            topic: TopicId(body.try_get_u64_le().ok()?),
            request: Arc::new(take_request(body)?),
        },
        CHANGE_TOPIC => Operation::ChangeTopic(serde_json::from_slice(&take_bytes(body)?).ok()?),
        TRIM => Operation::Trim {
            partition: take_partition(body)?,
            start: Offset(body.try_get_u64_le().ok()?),
        },
        STATE => Operation::State {
            partition: take_partition(body)?,
            group: GroupName::stored(&take_text(body)?),
            writes: Arc::new(state::take(body)?),
        },
        _ => return None,
    })
}

fn take_of_producers(body: &mut Bytes) -> Option<Operation> {
    let form = body.try_get_u8().ok()?;
    if form == PRODUCERS_MOMENT {
        return Some(Operation::Moment(Timestamp(body.try_get_u64_le().ok()?)));
    }
    Some(Operation::Producer {
        producer: ProducerId {
            id: body.try_get_i64_le().ok()?,
            epoch: body.try_get_i16_le().ok()?,
        },
        name: match form {
            PRODUCERS_UNNAMED => None,
            PRODUCERS_NAMED => Some(take_text(body)?.into()),
            _ => return None,
        },
    })
}

fn take_request(body: &mut Bytes) -> Option<Request> {
    Some(Request {
        key: take_digest(body)?,
        fingerprint: take_digest(body)?,
        at: Timestamp(body.try_get_u64_le().ok()?),
        base_offsets: offsets_of(&take_bytes(body)?)?,
        note: take_own_bytes(body)?,
    })
}

fn take_digest(body: &mut Bytes) -> Option<[u8; 16]> {
    let mut digest = [0; 16];
    body.try_copy_to_slice(&mut digest).ok()?;
    Some(digest)
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

/// Copies bytes that stay in memory for long, so that they do not keep the whole body there.
fn take_own_bytes(body: &mut Bytes) -> Option<Bytes> {
    Some(Bytes::copy_from_slice(&take_bytes(body)?))
}

fn take_text(body: &mut Bytes) -> Option<String> {
    String::from_utf8(take_bytes(body)?.into()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use millrace_engine::conformance::named;
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
        let producer = |name| Operation::Producer {
            producer: ProducerId { id: 5, epoch: 6 },
            name,
        };
        let mut operations = vec![
            Operation::Append {
                partition,
                batch: batch.finish().unwrap(),
            },
            Operation::Progress {
                partition,
                group: named("g"),
                change: Progress::default().into(),
            },
            Operation::Progress {
                partition,
                group: named("g"),
                change: ProgressChange {
                    to: Progress {
                        next: Offset(5),
                        ..Progress::default()
                    },
                    unparked: vec![Offset(3), Offset(4)],
                    is_whole: false,
                },
            },
            entry(None),
            entry(Some(Bytes::new())),
            entry(Some(Bytes::from_static(b"value"))),
            Operation::Claim {
                partition,
                group: GroupName::consumer("ü"),
                epoch: 9,
            },
            Operation::CreateTopic(Topic {
                id: TopicId(7),
                spec: spec.clone(),
            }),
            Operation::DeleteTopic(TopicId(7)),
            Operation::Moment(Timestamp(77)),
            producer(None),
            producer(Some("shop".into())),
            Operation::Request {
                topic: TopicId(7),
                request: Arc::new(Request {
                    key: [1; 16],
                    fingerprint: [2; 16],
                    at: Timestamp(9),
                    base_offsets: vec![Offset(3), Offset(1 << 40)],
                    note: Bytes::from_static(b"note"),
                }),
            },
            Operation::ChangeTopic(Topic {
                id: TopicId(7),
                spec,
            }),
            Operation::Trim {
                partition,
                start: Offset(1 << 40),
            },
        ];
        let writes = state::tests::all_writes().into_iter();
        operations.extend(writes.map(|writes| Operation::State {
            partition,
            group: named("g"),
            writes: Arc::new(writes),
        }));
        operations
    }

    fn body(operations: &[Operation]) -> Bytes {
        let mut out = Vec::new();
        begin(&mut out, None);
        operations.iter().for_each(|o| encode(&mut out, o));
        out.into()
    }

    #[test]
    fn operations_read_back_as_written() {
        let operations = operations();
        assert_eq!(decode(body(&operations)), Ok(operations));
    }

    #[test]
    fn an_encrypted_body_reads_back_with_its_key_and_only_under_its_sequence() {
        let keys = |id| Cipher::parse(&format!("{id}:{}", "0f".repeat(31) + "01")).unwrap();
        let cipher = keys(3);
        let mut out = b"before".to_vec();
        begin(&mut out, Some(&cipher));
        operations().iter().for_each(|o| encode(&mut out, o));
        finish(&mut out, 6, Some(&cipher), 77);
        let body = Bytes::from(out.split_off(6));
        assert!(!body.windows(6).any(|bytes| bytes == b"orders"));
        assert_eq!(key_id(&body), Some(3));
        assert_eq!(open(body.clone(), Some(&cipher), 77), Ok(operations()));
        assert!(open(body.clone(), Some(&cipher), 78).is_err());
        let told = open(body.clone(), None, 77).unwrap_err();
        assert!(told.contains("key 3"), "{told}");
        assert!(open(body.clone(), Some(&keys(4)), 77).is_err());
        assert!(decode(body).is_err());
    }

    #[test]
    fn progress_that_was_written_whole_replaces_what_there_is() {
        let progress = Progress {
            next: Offset(5),
            revision: 2,
            ..Progress::default()
        };
        let Operation::Progress {
            partition, group, ..
        } = operations().swap_remove(1)
        else {
            panic!("progress comes second");
        };
        let mut body = vec![VERSION, PROGRESS];
        put_partition(&mut body, partition);
        put_bytes(&mut body, group.as_str().as_bytes());
        put_bytes(&mut body, &progress.encode());
        let read = decode(body.into()).unwrap();
        let change = progress.into();
        let expected = Operation::Progress {
            partition,
            group,
            change,
        };
        assert_eq!(read, [expected]);
    }

    #[test]
    fn what_stays_in_memory_does_not_keep_the_bytes_of_the_whole_journal_file() {
        for operation in decode(body(&operations())).unwrap() {
            let kept = match operation {
                Operation::Entry {
                    value: Some(value), ..
                } => value,
                Operation::Request { request, .. } => request.note.clone(),
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
