//! Raw record batches in and out: stored batches equal the sent ones, refused batches leave nothing
//! behind, and a producer's numbers make each batch take effect once.

use std::time::Duration;

use bytes::Bytes;
use millrace_broker::{
    AppendRequest, Appended, FetchError, NewTopic, ProduceError, ReadRequest, ReadResult,
    TopicPatch,
};
use millrace_engine::{CommitError, ReadError};
use millrace_model::{
    BatchBuilder, BatchError, Clock, Compression, Durability, Header, Message, Offset, PartitionId,
    RecordBatch, SettingsPatch, SystemClock, Timestamp, TopicSettings,
};

use crate::rig::{Rig, Say, message, topic};

fn now() -> Timestamp {
    SystemClock::new().wall()
}

pub(crate) fn batch(values: &[&str]) -> RecordBatch {
    batch_of(values.iter().map(|value| message("k", value).message))
}

fn batch_of(messages: impl IntoIterator<Item = Message>) -> RecordBatch {
    let mut builder = BatchBuilder::with_capacity(0);
    for message in messages {
        builder.push(&message);
    }
    builder.finish().unwrap()
}

pub(crate) async fn append(
    rig: &Rig,
    name: &str,
    partition: u32,
    batch: RecordBatch,
) -> Result<Appended, ProduceError> {
    let request = AppendRequest {
        topic: topic(name),
        batches: vec![(PartitionId(partition), batch)],
        durability: None,
    };
    rig.session.messages().append(request).await
}

async fn read(rig: &Rig, name: &str, from: u64) -> Result<ReadResult, FetchError> {
    let request = ReadRequest {
        topic: topic(name),
        partition: PartitionId(0),
        from: Offset(from),
        bytes_max: 1 << 20,
    };
    rig.session.messages().read(request).await
}

/// The batch with one byte of its header changed and a valid checksum.
fn with_byte(batch: &RecordBatch, at: usize, value: u8) -> RecordBatch {
    let mut bytes = batch.bytes().to_vec();
    bytes[at] = value;
    let crc = crc32c::crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    RecordBatch::decode(&Bytes::from(bytes)).unwrap()
}

#[tokio::test]
async fn what_is_appended_is_read_byte_for_byte_and_processed_like_any_message() {
    let rig = Rig::deployed(1, |_| {}, |_, _| Say::Pass).await;
    let sent = [
        batch(&["a", "b"]),
        batch(&["c"]).deflated(Compression::Zstd),
        batch(&[&"d".repeat(500)]).deflated(Compression::Gzip),
    ];
    assert_ne!(sent[2].codec(), 0);
    let appended = rig
        .session
        .messages()
        .append(AppendRequest {
            topic: topic("in"),
            batches: sent
                .iter()
                .map(|sent| (PartitionId(0), sent.clone()))
                .collect(),
            durability: Some(Durability::Durable),
        })
        .await
        .unwrap();
    assert_eq!(appended.base_offsets, [Offset(0), Offset(2), Offset(3)]);
    let result = read(&rig, "in", 0).await.unwrap();
    assert_eq!((result.next, result.ends.end), (Offset(4), Offset(4)));
    assert_eq!(result.batches.len(), sent.len());
    for (stored, sent) in result.batches.iter().zip(&sent) {
        // The host sets the offset and its stamp; all other bytes are the producer's.
        assert_eq!(stored.clone().unstamped().bytes()[8..], sent.bytes()[8..]);
    }
    rig.settled().await;
    assert_eq!(rig.values("out").await, ["a", "b", "c", &"d".repeat(500)]);
}

#[tokio::test]
async fn a_read_begins_where_it_is_told_and_refuses_offsets_that_the_partition_does_not_have() {
    let rig = Rig::start(1).await;
    append(&rig, "in", 0, batch(&["a", "b", "c"]))
        .await
        .unwrap();
    append(&rig, "in", 0, batch(&["d"])).await.unwrap();
    let within = read(&rig, "in", 1).await.unwrap();
    assert_eq!(
        within.batches[0].base_offset(),
        Offset(0),
        "the reader skips"
    );
    assert_eq!(read(&rig, "in", 3).await.unwrap().batches.len(), 1);
    let end = read(&rig, "in", 4).await.unwrap();
    assert!(end.batches.is_empty());
    assert_eq!(end.next, Offset(4));
    let past = read(&rig, "in", 5).await.unwrap_err();
    assert!(
        matches!(past, FetchError::Read(ReadError::PastEnd { .. })),
        "{past}"
    );
    assert!(matches!(
        read(&rig, "none", 0).await,
        Err(FetchError::UnknownTopic(_))
    ));
}

#[tokio::test]
async fn what_may_not_be_sent_is_refused_with_all_that_came_with_it() {
    let rig = Rig::deployed(1, |_| {}, |_, _| Say::Ack).await;
    let compacted = TopicPatch {
        settings: SettingsPatch {
            compact: Some(true),
            ..SettingsPatch::default()
        },
        ..TopicPatch::default()
    };
    let catalogue = rig.session.catalogue();
    catalogue
        .change_topic(&topic("out"), compacted)
        .await
        .unwrap();
    let sound = batch(&["a"]);
    let header = |name: &'static str| Message {
        headers: vec![Header {
            name: name.into(),
            value: None,
        }],
        ..message("k", "v").message
    };
    let at = |timestamp| Message {
        timestamp,
        ..message("k", "v").message
    };
    let reserved = batch_of([header("fine"), header("millrace-hops")]);
    let bad: Vec<(&str, RecordBatch)> = vec![
        ("a control batch", RecordBatch::gap(Offset(0), Offset(1))),
        ("a control batch", with_byte(&sound, 22, 0b10_0000)),
        ("transaction", with_byte(&sound, 22, 0b1_0000)),
        ("offset delta", sound.reaching(Offset(9))),
        ("record", with_byte(&sound, 64, 0x7e)),
        (
            "offset deltas do not count",
            with_byte(&batch(&["a", "b"]), 64, 2),
        ),
        ("message 2: header \"millrace-hops\"", reserved.clone()),
        (
            "message 2: header \"millrace-hops\"",
            reserved.deflated(Compression::Zstd),
        ),
        ("more than", batch_of([at(Timestamp(now().0 + (1 << 40)))])),
        ("seconds", batch_of([at(Timestamp(now().0 / 1000))])),
        ("has 9000", batch(&[&"x".repeat(9_000_000)])),
    ];
    for (word, bad) in bad {
        let request = AppendRequest {
            topic: topic("in"),
            batches: vec![(PartitionId(0), sound.clone()), (PartitionId(0), bad)],
            durability: None,
        };
        let error = rig
            .session
            .messages()
            .append(request)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains(word), "{word}: {error}");
    }
    let keyless = batch_of([Message {
        key: None,
        ..message("k", "v").message
    }]);
    let error = append(&rig, "out", 0, keyless).await.unwrap_err();
    assert!(
        matches!(error, ProduceError::KeyMissing { index: 0, .. }),
        "{error}"
    );
    let error = append(&rig, "in", 7, sound.clone()).await.unwrap_err();
    assert!(
        matches!(error, ProduceError::UnknownPartition { .. }),
        "{error}"
    );
    let error = append(&rig, "in.p.dlq", 0, sound).await.unwrap_err();
    assert!(
        matches!(
            error,
            ProduceError::UnknownTopic(_) | ProduceError::Owned { .. }
        ),
        "{error}"
    );
    let nothing = AppendRequest {
        topic: topic("in"),
        batches: Vec::new(),
        durability: None,
    };
    let error = rig.session.messages().append(nothing).await.unwrap_err();
    assert!(matches!(error, ProduceError::NothingToSend), "{error}");
    for name in ["in", "out"] {
        assert!(
            read(&rig, name, 0).await.unwrap().batches.is_empty(),
            "{name}"
        );
    }
}

#[tokio::test]
async fn a_batch_without_timestamps_has_the_time_of_its_arrival() {
    let rig = Rig::start(1).await;
    let mut untimed = batch_of([Message {
        timestamp: Timestamp(0),
        ..message("k", "v").message
    }]);
    for at in 27..35 {
        untimed = with_byte(&untimed, at, 0xff);
    }
    let before = now();
    append(&rig, "in", 0, untimed).await.unwrap();
    let stored = rig.messages("in").await;
    assert!(
        (before..=now()).contains(&stored[0].timestamp),
        "{stored:?}"
    );
}

#[tokio::test]
async fn an_uncompressed_batch_is_compressed_as_its_topic_requires_and_another_keeps_its_codec() {
    let rig = Rig::start(1).await;
    let new = NewTopic {
        name: topic("packed"),
        partitions: 1,
        durability: Durability::Os,
        partitioner: None,
        settings: TopicSettings {
            compression: Compression::Lz4,
            ..TopicSettings::default()
        },
    };
    rig.session.catalogue().create_topic(new).await.unwrap();
    let plain = batch(&[&"x".repeat(1_000)]);
    append(&rig, "packed", 0, plain.clone()).await.unwrap();
    append(&rig, "packed", 0, plain.deflated(Compression::Gzip))
        .await
        .unwrap();
    let stored = read(&rig, "packed", 0).await.unwrap().batches;
    let codecs: Vec<i16> = stored.iter().map(RecordBatch::codec).collect();
    assert_eq!(codecs, [Compression::Lz4.code(), Compression::Gzip.code()]);
}

#[tokio::test]
async fn a_numbered_batch_is_stored_once_and_in_order_and_a_newer_epoch_fences_the_older_one() {
    let rig = Rig::start(2).await;
    let messages = rig.session.messages();
    let first = messages.init_producer(Some("importer")).await.unwrap();
    let numbered = |producer, sequence, values: &[&str]| {
        let mut builder = BatchBuilder::with_capacity(0).numbered(producer, sequence);
        for value in values {
            builder.push(&message("k", value).message);
        }
        builder.finish().unwrap()
    };
    let sent = numbered(first, 0, &["a", "b"]);
    let once = append(&rig, "in", 0, sent.clone()).await.unwrap();
    let again = append(&rig, "in", 0, sent.clone()).await.unwrap();
    assert!(!once.repeated && again.repeated);
    assert_eq!(once.base_offsets, again.base_offsets);
    let ahead = append(&rig, "in", 0, numbered(first, 5, &["z"]))
        .await
        .unwrap_err();
    let is_ahead = matches!(
        ahead,
        ProduceError::Commit(CommitError::OutOfOrderSequence { .. })
    );
    assert!(is_ahead, "{ahead}");
    let second = messages.init_producer(Some("importer")).await.unwrap();
    assert_eq!((second.id, second.epoch), (first.id, first.epoch + 1));
    let fenced = append(&rig, "in", 1, numbered(first, 0, &["z"]))
        .await
        .unwrap_err();
    let is_fenced = matches!(
        fenced,
        ProduceError::Commit(CommitError::ProducerFenced { .. })
    );
    assert!(is_fenced, "{fenced}");
    append(&rig, "in", 0, numbered(second, 0, &["c"]))
        .await
        .unwrap();
    assert_eq!(rig.values("in").await, ["a", "b", "c"]);
    assert!(messages.init_producer(Some("")).await.is_err());
}

/// Changed bytes that still decode as a batch are either refused, or stored unchanged and readable.
#[tokio::test]
async fn bent_batches_are_refused_or_readable() {
    let rig = Rig::deployed(1, |_| {}, |_, _| Say::Ack).await;
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let sent = [
        batch(&["a", "b", "c"]),
        batch(&["hello hello hello hello"; 9]).deflated(Compression::Lz4),
    ];
    let mut taken = 0;
    for _ in 0..2_000 {
        let mut bytes = sent[random.usize(..2)].bytes().to_vec();
        for _ in 0..random.usize(1..4) {
            let at = random.usize(21..bytes.len());
            bytes[at] = random.u8(..);
        }
        let crc = crc32c::crc32c(&bytes[21..]);
        bytes[17..21].copy_from_slice(&crc.to_be_bytes());
        let Ok(bent) = RecordBatch::decode(&Bytes::from(bytes)) else {
            continue;
        };
        let count = bent.message_count();
        match append(&rig, "in", 0, bent).await {
            Ok(_) => taken += count,
            Err(ProduceError::Batch { error, .. }) => {
                assert!(!matches!(error, BatchError::Checksum { .. }));
            }
            Err(_) => {}
        }
    }
    assert_eq!(rig.messages("in").await.len(), taken, "seed {seed}");
    tokio::time::timeout(Duration::from_secs(60), rig.settled())
        .await
        .unwrap();
}
