//! Compressed topics: messages are handled exactly like uncompressed ones, and a batch that cannot
//! be decompressed is skipped like one that cannot be read.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use millrace_broker::{FetchError, FetchRequest, NewTopic};
use millrace_engine::{Append, Transaction};
use millrace_model::{
    BatchError, Compression, Durability, Offset, PartitionId, RecordBatch, TopicSettings,
};

use crate::rig::{Rig, Say, per_message, processor, spec, text, topic};

async fn compressed_topic(rig: &Rig, name: &str, compression: Compression) {
    let new = NewTopic {
        name: topic(name),
        partitions: 1,
        durability: Durability::Os,
        partitioner: None,
        settings: TopicSettings {
            compression,
            ..TopicSettings::default()
        },
    };
    rig.session
        .catalogue()
        .delete_topic(&topic(name), false)
        .await
        .unwrap();
    rig.session.catalogue().create_topic(new).await.unwrap();
}

async fn stored(rig: &Rig, name: &str) -> Vec<RecordBatch> {
    let partition = rig.session.catalogue().topic(&topic(name)).unwrap();
    let partition = partition.partition(PartitionId(0)).unwrap();
    rig.engine()
        .read(partition, Offset(0), 64 << 20)
        .await
        .unwrap()
}

async fn codecs(rig: &Rig, name: &str) -> Vec<i16> {
    stored(rig, name)
        .await
        .iter()
        .map(RecordBatch::codec)
        .collect()
}

#[tokio::test]
async fn messages_of_compressed_topics_are_processed_retried_and_buried_like_plain_ones() {
    let rig = Rig::start(1).await;
    compressed_topic(&rig, "in", Compression::Zstd).await;
    compressed_topic(&rig, "out", Compression::Lz4).await;
    let calls = AtomicUsize::new(0);
    let module = rig.upload_handler(
        "m",
        per_message(
            move |batch, message| match &text(batch.value(message))[..1] {
                "d" => Say::Reject("no"),
                "r" if calls.fetch_add(1, Ordering::SeqCst) < 2 => Say::Retry(Some(1)),
                _ => Say::Pass,
            },
        ),
    );
    let spec = spec(module.await);
    let long = |first: char, n: usize| format!("{first}{n}: {}", "the same again ".repeat(200));
    let values: Vec<String> = (0..40)
        .map(|n| match n {
            7 => long('r', n),
            20 => long('d', n),
            _ => long('p', n),
        })
        .collect();
    let messages: Vec<(&str, &str)> = values
        .iter()
        .map(|value| (&value[..3], &value[..]))
        .collect();
    rig.produce(&messages).await;
    rig.produce(&[("a", "p")]).await;
    // The second batch is too small to gain by compression.
    assert_eq!(codecs(&rig, "in").await, [Compression::Zstd.code(), 0]);
    rig.deploy(spec).await;
    let mut wanted: Vec<&str> = values.iter().map(String::as_str).chain(["p"]).collect();
    let dead = wanted.remove(20);
    rig.hold("out", &wanted).await;
    rig.settled().await;
    let out = codecs(&rig, "out").await;
    assert!(out.contains(&Compression::Lz4.code()), "{out:?}");
    let letters = rig.letters().await;
    assert_eq!(letters.len(), 1);
    assert_eq!(text(letters[0].message.value.as_deref()), dead);
    assert_eq!(codecs(&rig, "in.p.dlq").await, [0]);
}

#[tokio::test]
async fn a_batch_that_cannot_be_inflated_is_named_by_fetch_and_passed_over_by_processors() {
    let rig = Rig::start(1).await;
    rig.produce(&[("a", "before")]).await;
    let partition = rig.session.catalogue().topic(&topic("in")).unwrap();
    let partition = partition.partition(PartitionId(0)).unwrap();
    let append = Append {
        partition,
        batch: broken(),
    };
    let transaction = Transaction::produce(vec![append]);
    rig.engine().commit(transaction).await.unwrap();
    rig.produce(&[("a", "after")]).await;
    let fetch = |from: u64| FetchRequest {
        topic: topic("in"),
        partition: PartitionId(0),
        from: Offset(from),
        messages_max: 100,
        bytes_max: 1 << 20,
        wait: Duration::ZERO,
    };
    let first = rig.session.messages().fetch(fetch(0)).await.unwrap();
    assert_eq!((first.messages.len(), first.next), (1, Offset(1)));
    let refused = rig.session.messages().fetch(fetch(1)).await;
    let Err(FetchError::Malformed { at, next, error }) = refused else {
        panic!("{refused:?}");
    };
    assert_eq!((at, next), (Offset(1), Offset(3)));
    let codec = Compression::Gzip;
    assert!(
        matches!(&error, BatchError::Inflate { codec: found, .. } if *found == codec),
        "{error}"
    );
    let last = rig.session.messages().fetch(fetch(3)).await.unwrap();
    assert_eq!((last.messages.len(), last.next), (1, Offset(4)));

    let module = rig.upload_handler("m", per_message(|_, _| Say::Pass)).await;
    rig.deploy(spec(module)).await;
    rig.hold("out", &["before", "after"]).await;
    rig.settled().await;
    assert!(
        rig.session
            .processors()
            .processor(&processor("p"))
            .await
            .is_some()
    );
}

/// A batch of two messages with a valid checksum and invalid gzip data.
fn broken() -> RecordBatch {
    let mut builder = millrace_model::BatchBuilder::with_capacity(0);
    for _ in 0..2 {
        builder.push(&crate::rig::message("k", &"lost ".repeat(100)).message);
    }
    let batch = builder.finish_with(Compression::Zstd).unwrap();
    let mut bytes = batch.bytes().to_vec();
    bytes[22] = Compression::Gzip.code() as u8;
    let crc = crc32c::crc32c(&bytes[21..]);
    bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    RecordBatch::decode(&bytes.into()).expect("the frame is sound")
}
