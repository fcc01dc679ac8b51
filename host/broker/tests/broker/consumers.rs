//! Consumers: one reader at a time, nothing is skipped, and no reader overwrites another's
//! position.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use millrace_broker::{
    Before, BeginAt, Caller, ConsumerCommit, ConsumerError, ConsumerStatus, HeldConsumer,
    HoldRequest, TopicDeleteError, TopicPatch,
};
use millrace_engine::MemoryEngine;
use millrace_model::bounds::CONSUMERS_MAX;
use millrace_model::{
    ConsumerName, Durability, LeaseId, ManualClock, Offset, PartitionId, Timestamp, TopicName,
};

use crate::rig::{Modules, Rig, message, topic};

const MINUTE: u64 = 60_000;

fn name(name: &str) -> ConsumerName {
    ConsumerName::parse(name).unwrap()
}

fn asks(lease: Option<LeaseId>) -> HoldRequest {
    HoldRequest {
        lease,
        lease_ms: MINUTE,
        wait: Duration::ZERO,
        makes: true,
        begin_at: None,
    }
}

async fn hold(rig: &Rig, request: HoldRequest) -> Result<HeldConsumer, ConsumerError> {
    let topic = rig.session.catalogue().topic(&topic("in")).unwrap();
    rig.session
        .consumers()
        .hold_consumer(&topic, &name("billing"), request)
        .await
}

/// A new reader; returns its lease.
async fn reader(rig: &Rig) -> LeaseId {
    let held = hold(rig, asks(None)).await.expect("nobody reads");
    let lease = held.lease;
    held.kept().expect("nobody came between");
    lease
}

fn positions(lease: LeaseId, positions: &[u64]) -> ConsumerCommit {
    let positions = positions.iter().enumerate();
    let positions = positions.map(|(p, &offset)| (PartitionId(p as u32), Offset(offset)));
    ConsumerCommit {
        lease,
        positions: positions.collect::<BTreeMap<_, _>>(),
        release: false,
    }
}

async fn commit(rig: &Rig, commit: ConsumerCommit) -> Result<Option<Timestamp>, ConsumerError> {
    let session = rig.broker.session(Caller::unnamed().named("ada"));
    session
        .consumers()
        .commit_consumer(&topic("in"), &name("billing"), commit)
        .await
}

async fn status(rig: &Rig) -> ConsumerStatus {
    let status = rig
        .session
        .consumers()
        .consumer(&topic("in"), &name("billing"))
        .await;
    status.expect("it is there")
}

async fn committed(rig: &Rig) -> Vec<u64> {
    let partitions = status(rig).await.partitions;
    partitions.iter().map(|place| place.position.0).collect()
}

/// Produces this many messages to each partition of `in`.
async fn fill(rig: &Rig, count: u32) {
    let partitions = rig
        .session
        .catalogue()
        .topic(&topic("in"))
        .unwrap()
        .spec
        .partitions;
    for partition in 0..partitions {
        for number in 0..count {
            let mut new = message("k", "v");
            new.partition = Some(PartitionId(partition));
            new.message.timestamp = Timestamp(u64::from(number + 1) * 100);
            rig.session
                .messages()
                .produce(&topic("in"), vec![new])
                .await
                .unwrap();
        }
    }
}

/// Makes acknowledged messages of `in` durable from now on, so that a reader may continue after a
/// restart.
async fn durable(rig: &Rig) {
    let patch = TopicPatch {
        durability: Some(Durability::Durable),
        ..TopicPatch::default()
    };
    rig.session
        .catalogue()
        .change_topic(&topic("in"), patch)
        .await
        .unwrap();
}

/// A rig with a clock that moves only on command.
async fn timed() -> (Rig, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::at(Timestamp(1_800_000_000_000)));
    let engine = MemoryEngine::new(clock.clone());
    let rig = Rig::by(clock.clone(), engine, Arc::new(Modules::default())).await;
    rig.topic("in", 2).await;
    durable(&rig).await;
    fill(&rig, 10).await;
    (rig, clock)
}

#[tokio::test]
async fn positions_of_many_partitions_are_committed_in_one_step_and_survive() {
    let rig = Rig::start(3).await;
    durable(&rig).await;
    fill(&rig, 10).await;
    let lease = reader(&rig).await;
    assert_eq!(committed(&rig).await, [0, 0, 0]);
    commit(&rig, positions(lease, &[4, 10, 1])).await.unwrap();
    // One wrong position makes the host refuse all of them.
    let refused = commit(&rig, positions(lease, &[5, 9, 2])).await;
    assert!(
        matches!(refused, Err(ConsumerError::Backwards { committed, .. }) if committed == Offset(10)),
        "{refused:?}"
    );
    let refused = commit(&rig, positions(lease, &[5, 10, 11])).await;
    assert!(
        matches!(refused, Err(ConsumerError::PastEnd { end, .. }) if end == Offset(10)),
        "{refused:?}"
    );
    let refused = commit(&rig, positions(lease, &[5, 10, 2, 0])).await;
    assert!(
        matches!(refused, Err(ConsumerError::UnknownPartition { .. })),
        "{refused:?}"
    );
    let (engine, modules) = (Arc::clone(&rig.engine), Arc::clone(&rig.modules));
    drop(rig);
    let rig = Rig::on(engine, modules).await;
    let status = status(&rig).await;
    let at: Vec<u64> = status.partitions.iter().map(|p| p.position.0).collect();
    assert_eq!(at, [4, 10, 1]);
    assert_eq!(status.lag, 6 + 9);
    assert_eq!(status.committed.expect("noted").by, "ada");
    // The reader continues as if there had been no restart.
    let held = hold(&rig, asks(Some(lease))).await.expect("its own lease");
    let stands: Vec<u64> = held.positions.iter().map(|(_, at)| at.0).collect();
    assert_eq!(stands, [4, 10, 1]);
    commit(&rig, positions(lease, &[10, 10, 10])).await.unwrap();
}

#[tokio::test]
async fn a_second_reader_waits_for_the_end_of_the_lease_and_then_the_first_commits_nothing() {
    let (rig, clock) = timed().await;
    let first = reader(&rig).await;
    commit(&rig, positions(first, &[3, 3])).await.unwrap();
    clock.advance(Duration::from_millis(MINUTE - 1));
    let busy = hold(&rig, asks(None)).await.err();
    assert!(
        matches!(busy, Some(ConsumerError::Busy { left_ms: 1, .. })),
        "{busy:?}"
    );
    // Each request of the reader renews the lease.
    let renewed = commit(&rig, positions(first, &[])).await.unwrap();
    assert!(renewed.is_some());
    clock.advance(Duration::from_millis(MINUTE - 1));
    assert!(hold(&rig, asks(Some(first))).await.is_ok());
    clock.advance(Duration::from_millis(MINUTE - 1));
    assert!(hold(&rig, asks(None)).await.is_err());
    clock.advance(Duration::from_millis(1));
    let held = hold(&rig, asks(None)).await.expect("its time has passed");
    let stands: Vec<u64> = held.positions.iter().map(|(_, at)| at.0).collect();
    assert_eq!(stands, [3, 3], "nothing is skipped");
    let second = held.lease;
    held.kept().expect("nobody came between");
    for refused in [
        commit(&rig, positions(first, &[9, 9])).await.err(),
        commit(&rig, positions(first, &[])).await.err(),
        hold(&rig, asks(Some(first))).await.err(),
    ] {
        assert!(
            matches!(refused, Some(ConsumerError::Lost { .. })),
            "{refused:?}"
        );
    }
    assert_eq!(committed(&rig).await, [3, 3]);
    commit(&rig, positions(second, &[4, 4])).await.unwrap();
}

#[tokio::test]
async fn a_reader_whose_time_has_passed_goes_on_if_nobody_came() {
    let (rig, clock) = timed().await;
    let lease = reader(&rig).await;
    clock.advance(Duration::from_millis(2 * MINUTE));
    assert_eq!(status(&rig).await.reader, None);
    commit(&rig, positions(lease, &[5, 5])).await.unwrap();
    assert!(status(&rig).await.reader.is_some(), "and holds it again");
    assert!(hold(&rig, asks(None)).await.is_err());
}

#[tokio::test]
async fn after_a_restart_the_lease_holds_for_its_length_once_more() {
    let (rig, clock) = timed().await;
    let lease = reader(&rig).await;
    clock.advance(Duration::from_millis(MINUTE - 1));
    let again = Rig::by(clock.clone(), Arc::clone(&rig.engine), rig.modules).await;
    clock.advance(Duration::from_millis(MINUTE - 1));
    assert!(hold(&again, asks(None)).await.is_err());
    clock.advance(Duration::from_millis(1));
    assert!(hold(&again, asks(None)).await.is_ok());
    let refused = commit(&again, positions(lease, &[1, 1])).await;
    assert!(matches!(refused, Err(ConsumerError::Lost { .. })));
}

#[tokio::test]
async fn where_a_crash_may_lose_messages_a_reader_begins_anew_after_a_start() {
    let rig = Rig::start(2).await;
    fill(&rig, 10).await;
    let lease = reader(&rig).await;
    commit(&rig, positions(lease, &[3, 3])).await.unwrap();
    let again = Rig::on(Arc::clone(&rig.engine), Arc::clone(&rig.modules)).await;
    // The reader may hold an answer with messages that were lost, whose offsets belong to other
    // messages now.
    let refused = commit(&again, positions(lease, &[10, 10])).await;
    assert!(
        matches!(refused, Err(ConsumerError::Lost { .. })),
        "{refused:?}"
    );
    let next = hold(&again, asks(None)).await.expect("nobody reads");
    let stands: Vec<u64> = next.positions.iter().map(|(_, at)| at.0).collect();
    assert_eq!(stands, [3, 3]);
}

#[tokio::test]
async fn a_lease_that_is_given_back_keeps_nobody_waiting_over_a_restart_as_well() {
    let (rig, clock) = timed().await;
    let first = reader(&rig).await;
    let last = ConsumerCommit {
        release: true,
        ..positions(first, &[7, 2])
    };
    assert_eq!(commit(&rig, last.clone()).await.unwrap(), None);
    let again = Rig::by(clock, Arc::clone(&rig.engine), Arc::clone(&rig.modules)).await;
    // Its answer was lost: repeating the same request is not an error.
    assert_eq!(commit(&again, last.clone()).await.unwrap(), None);
    let second = reader(&again).await;
    assert_eq!(committed(&again).await, [7, 2]);
    let refused = commit(&again, last).await;
    assert!(matches!(refused, Err(ConsumerError::Lost { .. })));
    commit(&again, positions(second, &[8, 2])).await.unwrap();
}

#[tokio::test]
async fn a_lease_that_nobody_was_told_of_ends() {
    let rig = Rig::start(1).await;
    let untold = hold(&rig, asks(None)).await.expect("nobody reads");
    assert!(untold.created);
    assert!(hold(&rig, asks(None)).await.is_err());
    drop(untold);
    let next = hold(&rig, asks(None)).await.expect("nobody knows of it");
    assert!(!next.created);
    // A failing request does not end a lease that the reader knows of.
    let lease = next.lease;
    next.kept().expect("nobody came between");
    drop(hold(&rig, asks(Some(lease))).await.expect("its own"));
    assert!(hold(&rig, asks(None)).await.is_err());
}

#[tokio::test]
async fn of_many_first_readers_one_reads() {
    let rig = Rig::start(2).await;
    let session = rig.session.clone();
    let topic = session.catalogue().topic(&topic("in")).unwrap();
    let tries: Vec<_> = (0..16)
        .map(|_| {
            let (session, topic) = (session.clone(), topic.clone());
            tokio::spawn(async move {
                let name = name("billing");
                let held = session
                    .consumers()
                    .hold_consumer(&topic, &name, asks(None))
                    .await;
                held.map(HeldConsumer::kept)
            })
        })
        .collect();
    let mut readers = 0;
    for one in tries {
        match one.await.expect("it ended") {
            Ok(_) => readers += 1,
            Err(error) => assert!(matches!(error, ConsumerError::Busy { .. }), "{error}"),
        }
    }
    assert_eq!(readers, 1);
}

#[tokio::test]
async fn a_reset_goes_anywhere_and_the_reader_does_not_undo_it() {
    let rig = Rig::start(2).await;
    fill(&rig, 10).await;
    let lease = reader(&rig).await;
    commit(&rig, positions(lease, &[6, 6])).await.unwrap();
    let session = rig.broker.session(Caller::unnamed().named("eve"));
    let reset = |partition: Option<u32>, to| {
        let session = session.clone();
        async move {
            let partition = partition.map(PartitionId);
            let (topic, name) = (topic("in"), name("billing"));
            session
                .consumers()
                .reset_consumer(&topic, &name, partition, to)
                .await
        }
    };
    for (partition, to, expected) in [
        (None, BeginAt::Earliest, [0, 0]),
        (None, BeginAt::Latest, [10, 10]),
        (Some(1), BeginAt::Offset(Offset(4)), [10, 4]),
        (Some(0), BeginAt::Time(Timestamp(350)), [3, 4]),
        (None, BeginAt::Offset(Offset(99)), [10, 10]),
        (None, BeginAt::Offset(Offset(5)), [5, 5]),
    ] {
        let status = reset(partition, to).await.unwrap();
        assert_eq!(status.reset.expect("noted").by, "eve");
        assert_eq!(committed(&rig).await, expected, "{to:?}");
        assert_eq!(status.reader, None);
    }
    let refused = commit(&rig, positions(lease, &[10, 10])).await;
    assert!(
        matches!(&refused, Err(ConsumerError::Lost { why, .. }) if why.contains("eve")),
        "{refused:?}"
    );
    assert_eq!(committed(&rig).await, [5, 5]);
    // A request that waits for messages meanwhile gets none.
    let waiting = hold(&rig, asks(None)).await.expect("nobody reads");
    reset(None, BeginAt::Offset(Offset(5))).await.unwrap();
    assert_eq!(waiting.kept(), None);
    let refused = reset(Some(2), BeginAt::Earliest).await;
    assert!(matches!(
        refused,
        Err(ConsumerError::UnknownPartition { .. })
    ));
    let next = reader(&rig).await;
    commit(&rig, positions(next, &[6, 6])).await.unwrap();
}

#[tokio::test]
async fn a_consumer_begins_where_it_is_told_and_once() {
    for (begin_at, expected) in [
        (None, [0, 0]),
        (Some(BeginAt::Earliest), [0, 0]),
        (Some(BeginAt::Latest), [10, 10]),
        (Some(BeginAt::Offset(Offset(3))), [3, 3]),
        (Some(BeginAt::Time(Timestamp(250))), [2, 2]),
    ] {
        let rig = Rig::start(2).await;
        fill(&rig, 10).await;
        let (topic, name) = (topic("in"), name("billing"));
        let (_, made) = rig
            .session
            .consumers()
            .make_consumer(&topic, &name, begin_at)
            .await
            .unwrap();
        assert!(made);
        assert_eq!(committed(&rig).await, expected, "{begin_at:?}");
        let again = Some(BeginAt::Offset(Offset(7)));
        let (_, made) = rig
            .session
            .consumers()
            .make_consumer(&topic, &name, again)
            .await
            .unwrap();
        assert!(!made);
        let held = hold(
            &rig,
            HoldRequest {
                begin_at: again,
                ..asks(None)
            },
        )
        .await;
        assert!(!held.expect("nobody reads").created);
        assert_eq!(committed(&rig).await, expected, "it is there already");
    }
}

#[tokio::test]
async fn what_was_deleted_is_not_made_again_by_whoever_read_it() {
    let rig = Rig::start(2).await;
    fill(&rig, 3).await;
    let lease = reader(&rig).await;
    commit(&rig, positions(lease, &[3, 3])).await.unwrap();
    let delete = || async {
        let (topic, name) = (topic("in"), name("billing"));
        rig.session.consumers().delete_consumer(&topic, &name).await
    };
    delete().await.unwrap();
    for refused in [
        commit(&rig, positions(lease, &[3, 3])).await.err(),
        hold(&rig, asks(Some(lease))).await.err(),
        delete().await.err(),
    ] {
        assert!(
            matches!(refused, Some(ConsumerError::Unknown { .. })),
            "{refused:?}"
        );
    }
    let careful = HoldRequest {
        makes: false,
        ..asks(None)
    };
    let refused = hold(&rig, careful).await.err();
    assert!(matches!(refused, Some(ConsumerError::Unknown { .. })));
    assert_eq!(
        rig.session
            .consumers()
            .consumers(&topic("in"))
            .await
            .unwrap()
            .len(),
        0
    );
    let next = reader(&rig).await;
    assert_eq!(committed(&rig).await, [0, 0], "a new one begins anew");
    let refused = commit(&rig, positions(lease, &[3, 3])).await;
    assert!(matches!(refused, Err(ConsumerError::Lost { .. })));
    commit(&rig, positions(next, &[1, 1])).await.unwrap();
}

#[tokio::test]
async fn a_topic_takes_its_consumers_with_it() {
    let rig = Rig::start(2).await;
    fill(&rig, 3).await;
    let lease = reader(&rig).await;
    commit(&rig, positions(lease, &[3, 3])).await.unwrap();
    let old = rig.session.catalogue().topic(&topic("in")).unwrap();
    let deleted: Result<_, TopicDeleteError> = rig
        .session
        .catalogue()
        .delete_topic(&topic("in"), false)
        .await;
    deleted.expect("consumers do not hold it");
    let refused = commit(&rig, positions(lease, &[3, 3])).await;
    assert!(matches!(refused, Err(ConsumerError::UnknownTopic(_))));
    let name = name("billing");
    let held = rig
        .session
        .consumers()
        .hold_consumer(&old, &name, asks(None))
        .await;
    assert!(matches!(held.err(), Some(ConsumerError::UnknownTopic(_))));
    assert_eq!(
        rig.session.consumers().all_consumers().await.unwrap().len(),
        0
    );
    rig.topic("in", 2).await;
    let refused = hold(&rig, asks(Some(lease))).await.err();
    assert!(matches!(refused, Some(ConsumerError::Unknown { .. })));
    reader(&rig).await;
    assert_eq!(committed(&rig).await, [0, 0]);
}

#[tokio::test]
async fn a_position_below_the_start_stays_until_it_is_moved_and_holds_nothing_back() {
    let rig = Rig::start(1).await;
    fill(&rig, 10).await;
    let lease = reader(&rig).await;
    commit(&rig, positions(lease, &[2])).await.unwrap();
    let before = Before::Offset(Offset(6));
    rig.session
        .catalogue()
        .trim(&topic("in"), None, before)
        .await
        .unwrap();
    let place = status(&rig).await.partitions[0];
    assert_eq!((place.position, place.start), (Offset(2), Offset(6)));
    assert_eq!(place.lag, 4, "what is gone is not waited for");
    // Messages read before the trim may still be committed.
    commit(&rig, positions(lease, &[4])).await.unwrap();
    commit(&rig, positions(lease, &[7])).await.unwrap();
    assert_eq!(status(&rig).await.lag, 3);
}

#[tokio::test]
async fn names_that_begin_alike_and_topics_are_told_apart() {
    let rig = Rig::start(1).await;
    fill(&rig, 5).await;
    let at = |topic: TopicName, consumer: &'static str, offset| {
        let session = rig.session.clone();
        async move {
            let begin_at = Some(BeginAt::Offset(Offset(offset)));
            let name = name(consumer);
            let made = session
                .consumers()
                .make_consumer(&topic, &name, begin_at)
                .await;
            made.expect("made")
        }
    };
    at(topic("in"), "b-2", 2).await;
    at(topic("in"), "b", 1).await;
    at(topic("out"), "b", 0).await;
    let unknown = rig
        .session
        .consumers()
        .consumer(&topic("in"), &name("b-"))
        .await;
    assert!(matches!(unknown, Err(ConsumerError::Unknown { .. })));
    let found = rig
        .session
        .consumers()
        .consumer(&topic("in"), &name("b"))
        .await
        .unwrap();
    assert_eq!(found.partitions[0].position, Offset(1));
    let all = rig.session.consumers().all_consumers().await.unwrap();
    let all: Vec<(String, String)> = all
        .iter()
        .map(|one| (one.topic.to_string(), one.name.to_string()))
        .collect();
    let expected = [("in", "b"), ("in", "b-2"), ("out", "b")];
    assert_eq!(all, expected.map(|(t, n)| (t.to_owned(), n.to_owned())));
}

#[tokio::test]
async fn a_topic_has_no_more_consumers_than_it_may() {
    let rig = Rig::start(1).await;
    for number in 0..CONSUMERS_MAX {
        let name = name(&format!("c{number}"));
        let made = rig
            .session
            .consumers()
            .make_consumer(&topic("in"), &name, None)
            .await;
        made.expect("made");
    }
    let refused = hold(&rig, asks(None)).await.err();
    assert!(matches!(refused, Some(ConsumerError::TooMany(_))));
    let deleted = rig
        .session
        .consumers()
        .delete_consumer(&topic("in"), &name("c7"))
        .await;
    deleted.unwrap();
    hold(&rig, asks(None)).await.expect("there is room");
    let listed = rig
        .session
        .consumers()
        .consumers(&topic("in"))
        .await
        .unwrap();
    assert_eq!(listed.len(), CONSUMERS_MAX);
}
