//! Promises about the lifetime of messages: changing topics in use, trimming partitions, and
//! finding messages by time.

use std::sync::Arc;

use millrace_model::{
    BatchBuilder, Compression, Durability, Message, Offset, RecordBatch, Timestamp, TopicPartition,
    TopicSettings,
};

use super::messages::assert_is_unknown;
use super::progress::{commit_progress, up_to};
use super::{at, end, make_partition, make_topic, name, named, produce, read_all, values};
use crate::contract::{
    Append, CommitError, Engine, ReadError, TopicChange, TopicError, Transaction, TrimError,
};

/// For settings, durability, and both; nothing else of the topic changes, and no other topic.
pub async fn a_change_of_a_topic_shows_at_once_and_changes_nothing_else(engine: Arc<dyn Engine>) {
    let topic = make_topic(&*engine, "orders", 2).await;
    let other = make_topic(&*engine, "returns", 1).await;
    produce(&*engine, at(&topic, 1), &["before"]).await;
    let settings = TopicSettings {
        retention_ms: Some(1 << 40),
        retention_bytes: Some(1 << 40),
        tombstone_ms: 7,
        segment_bytes: Some(1 << 20),
        segment_ms: Some(1 << 40),
        compression: Compression::Lz4,
        ..TopicSettings::default()
    };
    let mut expected = topic.clone();
    for (durability, settings) in [
        (Some(Durability::Os), None),
        (None, Some(settings)),
        (Some(Durability::None), Some(TopicSettings::default())),
        (None, None),
    ] {
        expected.spec.durability = durability.unwrap_or(expected.spec.durability);
        if let Some(settings) = &settings {
            expected.spec.settings = settings.clone();
        }
        let change = TopicChange {
            durability,
            settings,
            ..TopicChange::default()
        };
        let changed = engine.change_topic(&name("orders"), change).await;
        assert_eq!(changed.expect("changed"), expected);
        assert_eq!(engine.topic(&name("orders")).as_ref(), Some(&expected));
        produce(&*engine, at(&topic, 1), &["after"]).await;
    }
    assert_eq!(engine.topics(), [expected, other]);
    let found = values(&*engine, at(&topic, 1)).await;
    assert_eq!(found, ["before", "after", "after", "after", "after"]);
}

/// An unknown topic is an error.
pub async fn a_change_names_a_topic_that_exists(engine: Arc<dyn Engine>) {
    let orders = name("orders");
    let refused = engine.change_topic(&orders, TopicChange::default()).await;
    assert!(
        matches!(&refused, Err(TopicError::Unknown(unknown)) if *unknown == name("orders")),
        "{refused:?}"
    );
    assert_eq!(engine.topics(), []);
}

async fn trim(engine: &dyn Engine, partition: TopicPartition, before: u64) -> Offset {
    let trimmed = engine.trim(partition, Offset(before)).await;
    trimmed.expect("trimmed")
}

fn start(engine: &dyn Engine, partition: TopicPartition) -> Offset {
    engine.ends(partition).expect("the partition exists").start
}

/// Also if the start is within a batch; other partitions are not affected.
pub async fn what_is_before_a_trim_is_gone_and_all_after_stays(engine: Arc<dyn Engine>) {
    let topic = make_topic(&*engine, "orders", 2).await;
    let (partition, other) = (at(&topic, 0), at(&topic, 1));
    let numbers: Vec<String> = (0..60)
        .map(|n| format!("{n} {}", "x".repeat(500)))
        .collect();
    let mut offsets = Vec::new();
    for three in numbers.chunks(3) {
        let first = produce(&*engine, partition, three).await;
        offsets.extend((first.0..).take(three.len()));
        produce(&*engine, other, three).await;
    }
    offsets.push(end(&*engine, partition).0);
    for gone in [0, 1, 7, 30, 59, 60] {
        let before = offsets[gone];
        assert_eq!(trim(&*engine, partition, before).await, Offset(before));
        assert_eq!(start(&*engine, partition), Offset(before));
        assert_eq!(values(&*engine, partition).await, &numbers[gone..]);
        if let Some(below) = before.checked_sub(1) {
            let refused = engine.read(partition, Offset(below), 1_000).await;
            assert!(
                matches!(refused, Err(ReadError::BelowStart { requested, start })
                    if requested.0 == below && start.0 == before),
                "{refused:?}"
            );
        }
    }
    assert_eq!(values(&*engine, other).await, numbers);
    assert_eq!(start(&*engine, other), Offset(0));
}

/// A later start stays. An offset beyond the end is an error, and nothing moves.
pub async fn a_trim_never_goes_back_nor_beyond_the_end(engine: Arc<dyn Engine>) {
    let topic = make_topic(&*engine, "orders", 1).await;
    let partition = at(&topic, 0);
    produce(&*engine, partition, &["0", "1", "2"]).await;
    assert_eq!(trim(&*engine, partition, 2).await, Offset(2));
    assert_eq!(trim(&*engine, partition, 1).await, Offset(2));
    assert_eq!(start(&*engine, partition), Offset(2));
    let refused = engine.trim(partition, Offset(4)).await;
    assert!(
        matches!(refused, Err(TrimError::PastEnd { requested, end })
            if requested == Offset(4) && end == Offset(3)),
        "{refused:?}"
    );
    assert_eq!(values(&*engine, partition).await, ["2"]);
    engine
        .delete_topic(&name("orders"), Vec::new())
        .await
        .expect("deleted");
    let refused = engine.trim(partition, Offset(0)).await;
    assert!(
        matches!(refused, Err(TrimError::Commit(CommitError::UnknownPartition(gone))) if gone == partition),
        "{refused:?}"
    );
    assert_is_unknown(&*engine, partition).await;
}

/// An emptied partition does not restart at offset 0.
pub async fn a_trimmed_partition_goes_on_at_its_end(engine: Arc<dyn Engine>) {
    let partition = make_partition(&*engine, "orders").await;
    produce(&*engine, partition, &["0", "1"]).await;
    trim(&*engine, partition, 2).await;
    assert_eq!(values(&*engine, partition).await, [""; 0]);
    assert_eq!(produce(&*engine, partition, &["2"]).await, Offset(2));
    assert_eq!(values(&*engine, partition).await, ["2"]);
    let read = engine.read(partition, Offset(3), 1_000).await;
    assert_eq!(read.expect("the end is readable"), []);
}

/// It belongs to the group, which can see for itself what it missed.
pub async fn progress_below_the_start_is_kept_as_it_was(engine: Arc<dyn Engine>) {
    let partition = make_partition(&*engine, "orders").await;
    produce(&*engine, partition, &["0", "1", "2"]).await;
    let lease = engine
        .claim(&named("group"), partition)
        .await
        .expect("claimed")
        .lease;
    let written = commit_progress(&*engine, &lease, up_to(1)).await;
    written.expect("committed");
    trim(&*engine, partition, 3).await;
    let progress = engine.progress(&named("group"), partition).await.unwrap();
    assert_eq!(progress, Some(up_to(1)));
    let written = commit_progress(&*engine, &lease, up_to(3)).await;
    written.expect("the lease holds");
}

fn timed(times: &[u64]) -> RecordBatch {
    let mut builder = BatchBuilder::with_capacity(64);
    for &time in times {
        builder.push(&Message {
            value: Some(vec![b'x'; 300].into()),
            timestamp: Timestamp(time),
            ..Message::default()
        });
    }
    builder.finish().expect("at least one message")
}

/// Before and after a trim, across several segments and messages still in memory.
pub async fn the_first_message_at_a_time_is_found_though_times_go_up_and_down(
    engine: Arc<dyn Engine>,
) {
    let partition = make_partition(&*engine, "orders").await;
    let mut state = 88_172_645_463_325_252u64;
    let mut random = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let mut sent: Vec<(u64, u64)> = Vec::new();
    for round in 0..120u64 {
        let messages = 1 + random(3);
        let times: Vec<u64> = (0..messages).map(|_| round * 10 + random(200)).collect();
        let batch = timed(&times);
        let append = Append { partition, batch };
        let committed = engine.commit(Transaction::produce(vec![append])).await;
        let first = committed.expect("committed").base_offsets[0];
        sent.extend((first.0..).zip(times));
    }
    assert_eq!(read_all(&*engine, partition).await.len(), sent.len());
    for before in [0, 100] {
        let start = trim(&*engine, partition, before).await.0;
        for at in (0..1_500).step_by(7) {
            let is_it = |(offset, time): &&(u64, u64)| *offset >= start && *time >= at;
            let expected = sent.iter().find(is_it).map(|(offset, _)| Offset(*offset));
            let found = engine.offset_at(partition, Timestamp(at)).await;
            assert_eq!(found.expect("readable"), expected, "at {at}");
        }
    }
}
