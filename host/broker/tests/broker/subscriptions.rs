//! Subscriptions: batches of many partitions in one stream. Each message is delivered once and in
//! order, within the credit.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use millrace_broker::{Before, BrokerLimits, Delivery, FetchError, SubscribeError, Subscription};
use millrace_engine::{MemoryEngine, ReadError};
use millrace_model::{Offset, PartitionId, SystemClock};

use crate::raw_batches::{append, batch};
use crate::rig::{Rig, text, topic};

const PATIENCE: Duration = Duration::from_secs(30);

fn add(subscription: &mut Subscription, name: &str, partition: u32, from: u64) {
    let added = subscription.add(&topic(name), PartitionId(partition), Offset(from));
    added.unwrap();
}

async fn next(subscription: &mut Subscription) -> Delivery {
    let next = tokio::time::timeout(PATIENCE, subscription.next()).await;
    next.expect("in time").unwrap()
}

fn values(delivery: &Delivery) -> Vec<String> {
    let mut values = Vec::new();
    for batch in &delivery.batches {
        for record in batch.records().unwrap() {
            let value = record.unwrap().value.unwrap();
            values.push(text(Some(&batch.bytes()[value])));
        }
    }
    values
}

/// Whether nothing is delivered after all other tasks had time to run.
async fn is_quiet(subscription: &mut Subscription) -> bool {
    let mut next = Box::pin(subscription.next());
    for _ in 0..50 {
        let polled = poll_fn(|context| Poll::Ready(next.as_mut().poll(context))).await;
        if polled.is_ready() {
            return false;
        }
        tokio::task::yield_now().await;
    }
    true
}

#[tokio::test]
async fn every_message_of_many_partitions_arrives_once_and_in_order() {
    const PARTITIONS: u32 = 50;
    let rig = Rig::start(PARTITIONS).await;
    let mut subscription = rig.session.messages().subscribe();
    for name in ["in", "out"] {
        for partition in 0..PARTITIONS {
            add(&mut subscription, name, partition, 0);
        }
    }
    subscription.grant(usize::MAX);
    let mut seen: BTreeMap<(String, u32), Vec<String>> = BTreeMap::new();
    let mut sent = seen.clone();
    let mut count = 0;
    for round in 0..600u32 {
        let (name, partition) = (
            ["in", "out"][round as usize % 2],
            fastrand::u32(..PARTITIONS),
        );
        let value = round.to_string();
        append(&rig, name, partition, batch(&[&value]))
            .await
            .unwrap();
        sent.entry((name.to_owned(), partition))
            .or_default()
            .push(value);
        if fastrand::u32(..3) == 0 {
            continue;
        }
        // A reader that cancels at any point loses nothing.
        let given_up = futures_util::FutureExt::now_or_never(subscription.next());
        if let Some(delivery) = given_up {
            take(&delivery.unwrap(), &mut seen, &mut count);
        }
    }
    while count < 600 {
        take(&next(&mut subscription).await, &mut seen, &mut count);
    }
    assert_eq!(seen, sent);
    assert!(is_quiet(&mut subscription).await);
}

fn take(delivery: &Delivery, seen: &mut BTreeMap<(String, u32), Vec<String>>, count: &mut usize) {
    let values = values(delivery);
    *count += values.len();
    let place = (delivery.topic.to_string(), delivery.partition.0);
    seen.entry(place).or_default().extend(values);
}

#[tokio::test]
async fn a_waiting_reader_is_woken_by_the_next_message() {
    let rig = Rig::start(2).await;
    let mut subscription = rig.session.messages().subscribe();
    subscription.grant(1 << 20);
    add(&mut subscription, "in", 0, 0);
    add(&mut subscription, "in", 1, 0);
    let (delivery, _) = tokio::join!(next(&mut subscription), async {
        tokio::task::yield_now().await;
        append(&rig, "in", 1, batch(&["a"])).await.unwrap()
    });
    assert_eq!((delivery.partition.0, delivery.next), (1, Offset(1)));
    let (ready, _) = tokio::join!(
        tokio::time::timeout(PATIENCE, subscription.ready()),
        append(&rig, "in", 0, batch(&["b"]))
    );
    assert_eq!(ready.unwrap(), (topic("in"), PartitionId(0)));
    assert_eq!(
        values(&next(&mut subscription).await),
        ["b"],
        "it was not taken by that"
    );
}

#[tokio::test]
async fn nothing_is_delivered_beyond_the_credit_and_partitions_have_their_turns() {
    let rig = Rig::start(2).await;
    let big = "x".repeat(1_000);
    for partition in [0, 0, 0, 1, 1, 1] {
        append(&rig, "in", partition, batch(&[&big])).await.unwrap();
    }
    let mut subscription = rig.session.messages().subscribe();
    add(&mut subscription, "in", 0, 0);
    add(&mut subscription, "in", 1, 0);
    assert!(is_quiet(&mut subscription).await, "no credit");
    let mut turns = Vec::new();
    for _ in 0..6 {
        // One byte of credit is enough for one batch.
        subscription.grant(1);
        let delivery = next(&mut subscription).await;
        assert_eq!((delivery.batches.len(), subscription.credit()), (1, 0));
        assert!(is_quiet(&mut subscription).await);
        turns.push(delivery.partition.0);
    }
    assert_eq!(turns, [0, 1, 0, 1, 0, 1]);
}

#[tokio::test]
async fn a_partition_that_cannot_be_read_is_reported_once_and_keeps_no_other_waiting() {
    let rig = Rig::start(2).await;
    for partition in [0, 1] {
        append(&rig, "in", partition, batch(&["a", "b"]))
            .await
            .unwrap();
    }
    let catalogue = rig.session.catalogue();
    let before = Before::Offset(Offset(2));
    catalogue
        .trim(&topic("in"), Some(PartitionId(0)), before)
        .await
        .unwrap();
    let mut subscription = rig.session.messages().subscribe();
    subscription.grant(1 << 20);
    add(&mut subscription, "in", 0, 0);
    add(&mut subscription, "in", 1, 0);
    let error = subscription.next().await.unwrap_err();
    let is_gone = matches!(error.error, FetchError::Read(ReadError::BelowStart { .. }));
    assert!(is_gone && error.partition.0 == 0, "{error}");
    assert_eq!(values(&next(&mut subscription).await), ["a", "b"]);
    assert!(is_quiet(&mut subscription).await);
    add(&mut subscription, "in", 0, 2);
    append(&rig, "in", 0, batch(&["c"])).await.unwrap();
    assert_eq!(values(&next(&mut subscription).await), ["c"]);

    catalogue.delete_topic(&topic("in"), false).await.unwrap();
    for _ in 0..2 {
        let error = tokio::time::timeout(PATIENCE, subscription.next()).await;
        let error = error.expect("in time").unwrap_err();
        assert!(
            matches!(error.error, FetchError::UnknownTopic(_)),
            "{error}"
        );
    }
    assert!(is_quiet(&mut subscription).await);
}

/// Offsets in a store with several writing hosts have gaps, and a partition may end with one.
#[tokio::test]
async fn gaps_in_a_partition_are_passed_over_also_at_its_end() {
    let clock = Arc::new(SystemClock::new());
    let gapped = MemoryEngine::with_gaps(clock.clone(), 3);
    let one = Rig::on(gapped, Arc::default()).await;
    one.topic("in", 1).await;
    let (engine, modules) = (one.engine.second_host(), Arc::clone(&one.modules));
    let two = Rig::beside(clock, engine, modules, BrokerLimits::default()).await;
    for round in 0..20 {
        let rig = [&one, &two][round % 2];
        append(rig, "in", 0, batch(&[&round.to_string()]))
            .await
            .unwrap();
    }
    for rig in [&one, &two] {
        let mut subscription = rig.session.messages().subscribe();
        subscription.grant(1 << 20);
        add(&mut subscription, "in", 0, 0);
        let mut seen = Vec::new();
        while seen.len() < 20 {
            seen.extend(values(&next(&mut subscription).await));
        }
        let sent: Vec<String> = (0..20).map(|round: u32| round.to_string()).collect();
        assert_eq!(seen, sent);
        assert!(is_quiet(&mut subscription).await);
    }
}

#[tokio::test]
async fn a_partition_can_move_and_leave_at_any_time() {
    let rig = Rig::start(1).await;
    for value in ["a", "b", "c"] {
        append(&rig, "in", 0, batch(&[value])).await.unwrap();
    }
    let mut subscription = rig.session.messages().subscribe();
    subscription.grant(1 << 20);
    for round in 0..10_000 {
        add(&mut subscription, "in", 0, round % 4);
        add(&mut subscription, "out", 0, 0);
    }
    add(&mut subscription, "in", 0, 1);
    assert_eq!(values(&next(&mut subscription).await), ["b", "c"]);
    assert!(subscription.remove(&topic("in"), PartitionId(0)));
    assert!(!subscription.remove(&topic("in"), PartitionId(0)));
    append(&rig, "in", 0, batch(&["d"])).await.unwrap();
    assert!(is_quiet(&mut subscription).await);
    append(&rig, "out", 0, batch(&["e"])).await.unwrap();
    assert_eq!(values(&next(&mut subscription).await), ["e"]);
    let error = subscription.add(&topic("in"), PartitionId(1), Offset(0));
    assert!(matches!(
        error,
        Err(SubscribeError::Fetch(FetchError::UnknownPartition { .. }))
    ));
}
