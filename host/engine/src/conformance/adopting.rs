//! Promises about taking over what another store has: under the same numbers, once, and ready to go on.

use std::path::PathBuf;
use std::sync::Arc;

use millrace_model::{
    BatchBuilder, Offset, ProducerId, RecordBatch, Timestamp, Topic, TopicId, TopicPartition,
};

use super::{
    Place, at, batch, holds_the_count, make_topic, message, name, produce, read_all, spec, values,
};
use crate::contract::{
    AdoptError, Adoption, Append, CommitError, Ends, Engine, TopicError, Transaction,
};

/// A topic of another store.
fn foreign(topic: &str, id: u64, partitions: u32) -> Topic {
    Topic {
        id: TopicId(id),
        spec: spec(topic, partitions),
    }
}

async fn adopt_topic(engine: &dyn Engine, topic: &Topic) {
    let adopted = engine.adopt(Adoption::Topic(topic.clone())).await;
    adopted.expect("the topic is taken over");
}

async fn adopt(
    engine: &dyn Engine,
    partition: TopicPartition,
    batches: Vec<RecordBatch>,
) -> Result<(), AdoptError> {
    let adoption = Adoption::Messages { partition, batches };
    engine.adopt(adoption).await
}

fn placed(values: &[&str], base: u64) -> RecordBatch {
    batch(values).at_offset(Offset(base))
}

/// Ten thousand offsets without messages, two batches with a gap between them, and one after them.
fn with_gaps() -> Vec<RecordBatch> {
    vec![
        RecordBatch::gap(Offset(0), Offset(10_000)),
        placed(&["a", "b"], 10_000),
        RecordBatch::gap(Offset(10_002), Offset(10_005)),
        placed(&["c"], 10_005),
        RecordBatch::gap(Offset(10_006), Offset(10_010)),
    ]
}

fn found() -> Vec<(Offset, String)> {
    let all = [(10_000, "a"), (10_001, "b"), (10_005, "c")];
    all.map(|(offset, value)| (Offset(offset), value.to_owned()))
        .to_vec()
}

/// What is in it, without what only stands for offsets.
async fn messages(engine: &dyn Engine, partition: TopicPartition) -> Vec<(Offset, String)> {
    let mut all = read_all(engine, partition).await;
    all.retain(|(_, value)| !value.is_empty());
    all
}

/// Ids that are given later are higher, and one that may have been given is refused, as is a name that is taken.
pub async fn a_topic_is_taken_over_under_its_id(engine: Arc<dyn Engine>) {
    let orders = foreign("orders", 40, 2);
    adopt_topic(&*engine, &orders).await;
    assert_eq!(engine.topics(), std::slice::from_ref(&orders));
    let made = make_topic(&*engine, "returns", 1).await;
    assert!(made.id > orders.id, "{made:?}");
    let refused = engine.adopt(Adoption::Topic(foreign("late", 40, 1))).await;
    assert!(matches!(refused, Err(AdoptError::Id { .. })), "{refused:?}");
    let taken = engine
        .adopt(Adoption::Topic(foreign("orders", 90, 1)))
        .await;
    let is_taken =
        matches!(&taken, Err(AdoptError::Topic(TopicError::Exists(of))) if *of == name("orders"));
    assert!(is_taken, "{taken:?}");
    let beyond = engine.adopt(Adoption::Topic(foreign("none", 91, 0))).await;
    let is_refused = matches!(
        beyond,
        Err(AdoptError::Topic(TopicError::Partitions { .. }))
    );
    assert!(is_refused, "{beyond:?}");
    assert_eq!(engine.topics().len(), 2);
    adopt_topic(&*engine, &foreign("sparse", 90, 1)).await;
    produce(&*engine, at(&orders, 1), &["into it"]).await;
    assert_eq!(values(&*engine, at(&orders, 1)).await, ["into it"]);
}

/// Whoever waits for them wakes, they are counted, and the partition goes on after them.
pub async fn messages_are_taken_over_at_their_offsets(engine: Arc<dyn Engine>) {
    let topic = make_topic(&*engine, "orders", 2).await;
    let partition = at(&topic, 1);
    let mut watch = engine.watch(partition).expect("the partition exists");
    let adopted = adopt(&*engine, partition, with_gaps()).await;
    adopted.expect("they follow each other from the end on");
    assert_eq!(watch.past(Offset(10_009)).await, Some(Offset(10_010)));
    assert_eq!(messages(&*engine, partition).await, found());
    let counted = engine.count(partition, Offset(0), Offset::MAX).await;
    assert_eq!(counted.expect("the partition exists"), 3);
    let counted = engine.count(partition, Offset(10_001), Offset(10_006));
    assert_eq!(counted.await.expect("the partition exists"), 2);
    let trimmed = engine.trim(partition, Offset(10_001)).await;
    assert_eq!(trimmed.expect("trimmed"), Offset(10_001));
    let base = produce(&*engine, partition, &["d"]).await;
    assert!(base >= Offset(10_010), "{base}");
    let mut expected = found().split_off(1);
    expected.push((base, "d".to_owned()));
    let mut all = messages(&*engine, partition).await;
    all.retain(|(offset, _)| *offset > Offset(10_000));
    assert_eq!(all, expected);
    let at_time = engine.offset_at(partition, Timestamp(1)).await;
    assert_eq!(at_time.expect("the partition exists"), Some(Offset(10_001)));
    let counted = engine.count(partition, Offset(0), Offset::MAX).await;
    assert_eq!(counted.expect("the partition exists"), 3);
    let empty = Ends::default();
    assert_eq!(engine.ends(at(&topic, 0)).expect("exists"), empty);
}

/// An empty partition that had messages begins and ends where it did.
pub async fn an_empty_partition_is_taken_over_where_it_ends(engine: Arc<dyn Engine>) {
    let topic = make_topic(&*engine, "orders", 1).await;
    let partition = at(&topic, 0);
    let end = Offset(3_000_000_000);
    let mut from = Offset(0);
    while from < end {
        // One stands for so many at most.
        let gap = RecordBatch::gap(from, end);
        from = gap.end_offset();
        adopt(&*engine, partition, vec![gap])
            .await
            .expect("taken over");
    }
    engine.trim(partition, end).await.expect("trimmed");
    let ends = engine.ends(partition).expect("the partition exists");
    assert_eq!(ends, Ends { start: end, end });
    assert_eq!(holds_the_count(&*engine, partition).await, 0);
    assert!(produce(&*engine, partition, &["next"]).await >= end);
    assert_eq!(values(&*engine, partition).await, ["next"]);
}

/// Nothing is there twice, whoever repeats it.
pub async fn what_does_not_begin_at_the_end_is_refused(engine: Arc<dyn Engine>) {
    let topic = make_topic(&*engine, "orders", 1).await;
    let partition = at(&topic, 0);
    let first = || vec![placed(&["a"], 0), placed(&["b", "c"], 1)];
    adopt(&*engine, partition, first())
        .await
        .expect("taken over");
    for batches in [
        first(),
        vec![placed(&["too far"], 4)],
        vec![placed(&["d"], 3), placed(&["not next"], 5)],
        vec![placed(&["d"], 3), placed(&["again"], 3)],
    ] {
        let refused = adopt(&*engine, partition, batches).await;
        let is_told = matches!(refused, Err(AdoptError::Misplaced { end: Offset(3), .. }));
        assert!(is_told, "{refused:?}");
    }
    let unknown = TopicPartition {
        topic: TopicId(77),
        ..partition
    };
    let refused = adopt(&*engine, unknown, first()).await;
    let is_told = matches!(refused, Err(AdoptError::Commit(CommitError::UnknownPartition(of))) if of == unknown);
    assert!(is_told, "{refused:?}");
    adopt(&*engine, partition, vec![placed(&["d"], 3)])
        .await
        .expect("it is next");
    assert_eq!(values(&*engine, partition).await, ["a", "b", "c", "d"]);
}

fn numbered(producer: ProducerId, sequence: i32, values: &[&str]) -> RecordBatch {
    let mut builder = BatchBuilder::with_capacity(64).numbered(producer, sequence);
    values
        .iter()
        .for_each(|value| builder.push(&message(value)));
    builder.finish().expect("at least one message")
}

/// A producer that numbers its batches goes on where it was; its id is given to nobody else.
pub async fn producers_go_on_after_their_batches_were_taken_over(engine: Arc<dyn Engine>) {
    let topic = make_topic(&*engine, "orders", 1).await;
    let partition = at(&topic, 0);
    engine
        .adopt(Adoption::ProducerIds { next: 500 })
        .await
        .expect("taken over");
    let producer = ProducerId { id: 321, epoch: 2 };
    let sent = |base: u64, sequence, values: &[&str]| {
        numbered(producer, sequence, values).at_offset(Offset(base))
    };
    // It began long ago; what was before is no longer kept.
    let batches = vec![
        RecordBatch::gap(Offset(0), Offset(70)),
        sent(70, 40, &["a", "b"]),
        sent(72, 42, &["c"]),
    ];
    adopt(&*engine, partition, batches)
        .await
        .expect("taken over");
    let commit = |batch: RecordBatch| {
        let append = Append { partition, batch };
        engine.commit(Transaction::produce(vec![append]))
    };
    let repeated = commit(numbered(producer, 42, &["c"])).await;
    let repeated = repeated.expect("it is known");
    assert!(repeated.repeated);
    assert_eq!(repeated.base_offsets, [Offset(72)]);
    let next = commit(numbered(producer, 43, &["d"])).await;
    assert!(!next.expect("it is next").repeated);
    let gap = commit(numbered(producer, 50, &["e"])).await;
    let is_refused = matches!(
        gap,
        Err(CommitError::OutOfOrderSequence { expected: 44, .. })
    );
    assert!(is_refused, "{gap:?}");
    let given = engine.init_producer(None).await.expect("given");
    assert!(given.id >= 500, "{given:?}");
}

/// Also after the engine was opened again.
pub async fn what_was_taken_over_stays<Open>(place: Place<Open>)
where
    Open: AsyncFn(PathBuf) -> Arc<dyn Engine>,
{
    let engine = place.open().await;
    let topic = foreign("orders", 40, 2);
    adopt_topic(&*engine, &topic).await;
    let partition = at(&topic, 0);
    adopt(&*engine, partition, with_gaps())
        .await
        .expect("taken over");
    let end = Offset(10_010);
    let gap = vec![RecordBatch::gap(Offset(0), end)];
    adopt(&*engine, at(&topic, 1), gap)
        .await
        .expect("taken over");
    engine.trim(at(&topic, 1), end).await.expect("trimmed");
    let mut engine = engine;
    for _ in 0..2 {
        engine = place.reopen(engine).await;
        assert_eq!(engine.topics(), std::slice::from_ref(&topic));
        assert_eq!(messages(&*engine, partition).await, found());
        let counted = engine.count(partition, Offset(0), Offset::MAX).await;
        assert_eq!(counted.expect("the partition exists"), 3);
        let ends = engine.ends(at(&topic, 1)).expect("the partition exists");
        assert_eq!(ends, Ends { start: end, end });
    }
    let made = make_topic(&*engine, "returns", 1).await;
    assert!(made.id > topic.id, "{made:?}");
    assert!(produce(&*engine, partition, &["d"]).await >= end);
    engine.close().await;
}
