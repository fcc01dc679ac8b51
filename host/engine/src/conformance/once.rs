//! Promises about doing things once: numbered batches and marked requests.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use millrace_model::{BatchBuilder, Offset, ProducerId, TopicId, TopicPartition};

use super::progress::{assert_fenced, up_to};
use super::{Place, append, at, end, make_partition, make_topic, message, name, named, values};
use crate::contract::{
    Append, CommitError, Engine, NextEpoch, ProgressWrite, Receipt, RequestMark, Transaction,
};

async fn start(engine: &dyn Engine, name: Option<&str>) -> ProducerId {
    engine.init_producer(name).await.expect("an id")
}

/// A numbered batch whose values are the numbers.
fn numbered(partition: TopicPartition, producer: ProducerId, first: i32, count: i32) -> Append {
    let mut builder = BatchBuilder::with_capacity(0).numbered(producer, first);
    for number in first..first + count {
        builder.push(&message(&number.to_string()));
    }
    let batch = builder.finish().expect("not empty");
    Append { partition, batch }
}

async fn send(engine: &dyn Engine, append: Append) -> Result<Receipt, CommitError> {
    engine.commit(Transaction::produce(vec![append])).await
}

fn mark(topic: TopicId, key: u8, fingerprint: u8, note: &'static str) -> RequestMark {
    RequestMark {
        topic,
        key: [key; 16],
        fingerprint: [fingerprint; 16],
        note: Bytes::from_static(note.as_bytes()),
    }
}

fn marked(append: Append, mark: RequestMark) -> Transaction {
    Transaction {
        request: Some(mark),
        ..Transaction::produce(vec![append])
    }
}

/// It gets the original offset, and nothing is appended.
pub async fn a_repeated_batch_is_told_its_offset_and_not_appended(engine: Arc<dyn Engine>) {
    let partition = make_partition(&*engine, "orders").await;
    let (one, two) = (start(&*engine, None).await, start(&*engine, None).await);
    let mut receipts = Vec::new();
    for first in [0, 3, 6] {
        for producer in [one, two] {
            let batch = numbered(partition, producer, first, 3);
            let receipt = send(&*engine, batch.clone()).await.expect("next");
            assert!(!receipt.repeated);
            receipts.push((batch, receipt));
        }
    }
    let before = end(&*engine, partition);
    for (batch, receipt) in receipts {
        let again = send(&*engine, batch).await.expect("known");
        assert!(again.repeated);
        assert_eq!(again.base_offsets, receipt.base_offsets);
    }
    assert_eq!(end(&*engine, partition), before);
}

/// Nothing is written, and the missing batch is accepted afterwards.
pub async fn a_gap_between_batches_is_refused(engine: Arc<dyn Engine>) {
    let partition = make_partition(&*engine, "orders").await;
    let producer = start(&*engine, None).await;
    let batch = |first| numbered(partition, producer, first, 1);
    let unknown = send(&*engine, batch(1)).await;
    assert!(matches!(unknown, Err(CommitError::UnknownProducer(_))));
    send(&*engine, batch(0)).await.expect("the first");
    let gap = send(&*engine, batch(2)).await.expect_err("a gap");
    assert!(matches!(
        gap,
        CommitError::OutOfOrderSequence {
            expected: 1,
            found: 2,
            ..
        }
    ));
    assert!(!gap.is_retriable());
    for first in [1, 2] {
        send(&*engine, batch(first)).await.expect("next");
    }
    assert_eq!(values(&*engine, partition).await, ["0", "1", "2"]);
}

/// The next epoch of the name fences earlier ones in every partition.
pub async fn a_producer_started_anew_fences_its_earlier_life(engine: Arc<dyn Engine>) {
    let topic = make_topic(&*engine, "orders", 2).await;
    let old = start(&*engine, Some("shop")).await;
    let first = numbered(at(&topic, 0), old, 0, 1);
    send(&*engine, first).await.expect("the first");
    let new = start(&*engine, Some("shop")).await;
    assert_eq!(new.id, old.id);
    assert!(new.epoch > old.epoch);
    for (partition, first) in [(0, 1), (1, 0)] {
        let fenced = send(&*engine, numbered(at(&topic, partition), old, first, 1)).await;
        assert!(matches!(fenced, Err(CommitError::ProducerFenced { .. })));
    }
    let begun = send(&*engine, numbered(at(&topic, 0), new, 0, 1)).await;
    assert!(!begun.expect("the first of its life").repeated);
    let long = "x".repeat(10_000);
    for bad in ["", &long] {
        let refused = engine.init_producer(Some(bad)).await;
        assert!(matches!(refused, Err(CommitError::ProducerName { .. })));
    }
}

/// A producer's own transaction begins the epoch; batches under the old epoch are refused
/// afterwards.
pub async fn an_epoch_begins_with_a_transaction_or_not_at_all(engine: Arc<dyn Engine>) {
    let topic = make_topic(&*engine, "orders", 2).await;
    let old = start(&*engine, Some("shop")).await;
    let next = |producer| NextEpoch {
        name: "shop".into(),
        producer,
    };
    let with = |appends, key, next: NextEpoch| Transaction {
        request: Some(mark(topic.id, key, 1, "note")),
        producer: Some(next),
        ..Transaction::produce(appends)
    };
    let last = with(vec![numbered(at(&topic, 0), old, 0, 1)], 1, next(old));
    let receipt = engine.commit(last.clone()).await.expect("its last");
    let new = receipt.producer.expect("an epoch");
    assert_eq!((new.id, new.epoch), (old.id, old.epoch + 1));
    let repeated = engine.commit(last).await.expect("known");
    assert_eq!((repeated.repeated, repeated.producer), (true, Some(new)));
    let late = send(&*engine, numbered(at(&topic, 1), old, 0, 1)).await;
    assert!(matches!(late, Err(CommitError::ProducerFenced { .. })));

    let plain = || append(at(&topic, 1), &["output"]);
    let fenced = engine.commit(with(vec![plain()], 2, next(old))).await;
    assert!(matches!(fenced, Err(CommitError::ProducerFenced { .. })));
    let nobody = NextEpoch {
        name: "nobody".into(),
        producer: new,
    };
    for unknown in [nobody, next(start(&*engine, None).await)] {
        let refused = engine.commit(with(vec![plain()], 2, unknown)).await;
        assert!(matches!(refused, Err(CommitError::UnknownProducer(_))));
    }
    assert_eq!(
        end(&*engine, at(&topic, 1)),
        Offset(0),
        "nothing was written"
    );
    let asked = start(&*engine, Some("shop")).await;
    assert_eq!(asked.epoch, new.epoch + 1);
}

/// Named or not, requested one after the other or concurrently.
pub async fn no_producer_id_is_given_twice(engine: Arc<dyn Engine>) {
    let mut asking = Vec::new();
    for number in 0..40 {
        let engine = engine.clone();
        asking.push(tokio::spawn(async move {
            let name = (number % 2 == 0).then(|| format!("name {number}"));
            engine.init_producer(name.as_deref()).await.expect("an id")
        }));
    }
    let mut given = BTreeSet::new();
    for asked in asking {
        assert!(given.insert(asked.await.expect("asked").id));
    }
    let partition = make_partition(&*engine, "orders").await;
    let invented = ProducerId {
        id: given.last().expect("some") + 1,
        epoch: 0,
    };
    let refused = send(&*engine, numbered(partition, invented, 0, 1)).await;
    assert!(matches!(refused, Err(CommitError::UnknownProducer(_))));
}

/// Including its progress: it does not take effect a second time, even if the lease has changed
/// hands since.
pub async fn a_transaction_repeats_whole_or_not_at_all(engine: Arc<dyn Engine>) {
    let topic = make_topic(&*engine, "orders", 2).await;
    let producer = start(&*engine, None).await;
    let batch = |partition, first| numbered(at(&topic, partition), producer, first, 2);
    let lease = engine
        .claim(&named("group"), at(&topic, 0))
        .await
        .expect("claimed")
        .lease;
    let whole = Transaction {
        progress: vec![ProgressWrite {
            partition: lease.partition,
            lease: lease.clone(),
            progress: up_to(1).into(),
        }],
        ..Transaction::produce(vec![batch(0, 0), batch(1, 0), batch(1, 2)])
    };
    let receipt = engine.commit(whole.clone()).await.expect("new");
    let newer = engine.claim(&named("group"), at(&topic, 0)).await;
    newer.expect("claimed");
    let again = engine.commit(whole).await.expect("a repeat");
    assert!(again.repeated);
    assert_eq!(again.base_offsets, receipt.base_offsets);
    let ends = [0, 1].map(|partition| end(&*engine, at(&topic, partition)));
    let mixes = [
        vec![batch(0, 0), batch(1, 4)],
        vec![batch(0, 2), batch(0, 2)],
        vec![batch(0, 0), append(at(&topic, 1), &["not numbered"])],
    ];
    for appends in mixes {
        let mixed = engine.commit(Transaction::produce(appends)).await;
        assert!(matches!(mixed, Err(CommitError::PartlyRepeated { .. })));
    }
    let fenced = engine
        .commit(Transaction {
            progress: vec![ProgressWrite {
                partition: lease.partition,
                lease: lease.clone(),
                progress: up_to(2).into(),
            }],
            ..Transaction::produce(vec![batch(0, 2)])
        })
        .await;
    assert_fenced(&fenced, &lease);
    let after = [0, 1].map(|partition| end(&*engine, at(&topic, partition)));
    assert_eq!(after, ends);
    send(&*engine, batch(0, 2)).await.expect("next, still");
}

/// The second time it gets the first answer, with the original note; in other topics the key has no
/// meaning.
pub async fn a_request_takes_effect_once(engine: Arc<dyn Engine>) {
    let topic = make_topic(&*engine, "orders", 1).await;
    let other = make_topic(&*engine, "returns", 1).await;
    let before = Transaction::produce(vec![append(at(&topic, 0), &["before"])]);
    engine.commit(before).await.expect("appended");
    let request = |topic: &millrace_model::Topic, fingerprint, note| {
        let append = append(at(topic, 0), &["a", "b"]);
        engine.commit(marked(append, mark(topic.id, 1, fingerprint, note)))
    };
    let first = request(&topic, 5, "first").await.expect("new");
    assert!(!first.repeated);
    let again = request(&topic, 5, "again").await.expect("known");
    assert!(again.repeated);
    assert_eq!(again.base_offsets, first.base_offsets);
    assert_eq!(again.note, "first");
    // A delayed message that is due by now, for one, would go elsewhere.
    for appends in [Vec::new(), vec![append(at(&other, 0), &["a", "b"])]] {
        let moved = Transaction {
            request: Some(mark(topic.id, 1, 5, "moved")),
            ..Transaction::produce(appends)
        };
        let moved = engine.commit(moved).await.expect("known");
        assert!(moved.repeated);
        assert_eq!(moved.base_offsets, first.base_offsets);
    }
    let reused = request(&topic, 6, "other").await;
    assert!(matches!(reused, Err(CommitError::RequestReused)));
    let elsewhere = request(&other, 5, "first").await;
    assert!(!elsewhere.expect("another topic").repeated);
    assert_eq!(values(&*engine, at(&topic, 0)).await, ["before", "a", "b"]);
    assert!(values(&*engine, at(&other, 0)).await == ["a", "b"]);

    engine
        .delete_topic(&name("orders"), Vec::new())
        .await
        .expect("deleted");
    let gone = request(&topic, 5, "first").await;
    assert!(matches!(gone, Err(CommitError::UnknownPartition(_))));
    let made = make_topic(&*engine, "orders", 1).await;
    let new = request(&made, 5, "first").await;
    assert!(!new.expect("another topic").repeated);
}

/// Exactly one takes effect, and all get the same answer.
pub async fn of_many_at_once_with_one_key_one_takes_effect(engine: Arc<dyn Engine>) {
    let topic = make_topic(&*engine, "orders", 1).await;
    let partition = at(&topic, 0);
    for key in 0..20 {
        let mut asking = Vec::new();
        for _ in 0..8 {
            let engine = engine.clone();
            let append = append(partition, &[key.to_string()]);
            let transaction = marked(append, mark(topic.id, key, key, ""));
            asking.push(tokio::spawn(async move {
                engine.commit(transaction).await.expect("new or known")
            }));
        }
        let mut offsets = BTreeSet::new();
        let mut new = 0;
        for asked in asking {
            let receipt = asked.await.expect("asked");
            offsets.extend(receipt.base_offsets);
            new += usize::from(!receipt.repeated);
        }
        assert_eq!((offsets.len(), new), (1, 1));
    }
    assert_eq!(values(&*engine, partition).await.len(), 20);
}

/// Ids, names, the last batches and keys, however much is written in between.
pub async fn what_took_effect_is_known_after_reopening<Open>(place: Place<Open>)
where
    Open: AsyncFn(PathBuf) -> Arc<dyn Engine>,
{
    let mut engine = place.open().await;
    let topic = make_topic(&*engine, "orders", 2).await;
    let (partition, aside) = (at(&topic, 0), at(&topic, 1));
    let producer = start(&*engine, Some("shop")).await;
    let mut bases: Vec<Offset> = Vec::new();
    for round in 0..8i32 {
        let receipt = send(&*engine, numbered(partition, producer, round * 2, 2)).await;
        bases.push(receipt.expect("next").base_offsets[0]);
        let request = marked(append(aside, &["x"]), mark(topic.id, round as u8, 0, "n"));
        let receipt = engine.commit(request.clone()).await.expect("new");
        assert!(!receipt.repeated);
        for _ in 0..round % 3 {
            let filler = append(aside, &["y".repeat(20_000)]);
            send(&*engine, filler).await.expect("committed");
        }
        engine = place.reopen(engine).await;
        let again = engine.commit(request).await.expect("known");
        assert_eq!(again.base_offsets, receipt.base_offsets);
        assert!(again.repeated && again.note == "n");
        for known in (0..=round).rev().take(5) {
            let again = send(&*engine, numbered(partition, producer, known * 2, 2)).await;
            let again = again.expect("known");
            assert!(again.repeated);
            assert_eq!(again.base_offsets, [bases[known as usize]]);
        }
        let gap = send(&*engine, numbered(partition, producer, round * 2 + 3, 1)).await;
        assert!(matches!(gap, Err(CommitError::OutOfOrderSequence { .. })));
    }
    let next = start(&*engine, Some("shop")).await;
    assert_eq!((next.id, next.epoch), (producer.id, producer.epoch + 1));
    engine = place.reopen(engine).await;
    let fenced = send(&*engine, numbered(partition, producer, 16, 1)).await;
    assert!(matches!(fenced, Err(CommitError::ProducerFenced { .. })));
    assert!(start(&*engine, None).await.id > next.id);
    assert_eq!(end(&*engine, partition), bases[7].plus(2));
    engine.close().await;
}
