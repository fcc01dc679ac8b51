//! Promises of an engine that is opened with [`BOUNDS`]: every engine refuses transactions beyond
//! them as a whole and with the same errors, and accepts them again when there is room.

use std::sync::Arc;

use millrace_model::{GroupName, TopicPartition};

use super::{append, at, end, grow, make_topic, name, named, partitions, spec};
use crate::contract::{CommitError, Engine, TopicError, Transaction};
use crate::room::{DELAYS_GROUP, HostBound, HostBounds, Kept, RoomFull, TABLE_MAX};
use crate::state::{NEVER, StateChange, StateValue, StateWrite, StateWrites};

const KIB: usize = 1 << 10;

/// The bounds with which the engine is opened.
pub const BOUNDS: HostBounds = HostBounds {
    delayed_bytes: 20 * KIB,
    state_bytes: 30 * KIB,
    kept_bytes: 40 * KIB,
    state_disk_bytes: Some(17 * KIB),
    table: TABLE_MAX,
    requests_bytes: 64 * KIB,
    partitions: 8,
};

fn change(key: usize, bytes: Option<usize>) -> StateChange {
    StateChange {
        key: format!("{key:04}").as_bytes().into(),
        value: bytes.map(|bytes| StateValue::new(&vec![1; bytes])),
        ends_at: NEVER,
    }
}

/// Sets (or removes) a key, together with an append, which must not take effect either if it is
/// refused.
fn writing(group: &GroupName, partition: TopicPartition, change: StateChange) -> Transaction {
    Transaction {
        appends: vec![append(partition, &["a"])],
        state: vec![StateWrite {
            group: group.clone(),
            partition,
            lease: None,
            writes: Arc::new(StateWrites {
                resets: false,
                changes: vec![change],
                adds: None,
            }),
        }],
        ..Transaction::default()
    }
}

async fn set(
    engine: &dyn Engine,
    group: &GroupName,
    partition: TopicPartition,
    key: usize,
) -> Result<(), RoomFull> {
    let writing = writing(group, partition, change(key, Some(KIB)));
    match engine.commit(writing).await {
        Ok(_) => Ok(()),
        Err(CommitError::RoomFull(full)) => Err(full),
        Err(other) => panic!("{other}"),
    }
}

/// Sets keys in all partitions in turn until there is no room; returns their number and the error.
async fn fill(
    engine: &dyn Engine,
    group: &GroupName,
    partitions: &[TopicPartition],
) -> (usize, RoomFull) {
    for key in 0.. {
        let partition = partitions[key % partitions.len()];
        let before = end(engine, partition);
        if let Err(full) = set(engine, group, partition, key).await {
            assert_eq!(end(engine, partition), before, "nothing of it was done");
            return (key, full);
        }
    }
    unreachable!("there is a bound")
}

/// The entries are spread over partitions and count with their memory cost.
pub async fn each_kind_is_refused_beyond_its_bound_wherever_it_is(engine: Arc<dyn Engine>) {
    let topic = make_topic(&*engine, "orders", 4).await;
    let partitions: Vec<_> = topic.partitions().collect();
    let (count, full) = fill(&*engine, &DELAYS_GROUP, &partitions).await;
    assert_eq!((full.kept, full.bound), (Kept::Delayed, HostBound::Delayed));
    assert!((12..20).contains(&count), "{count} of about 1,300 bytes");
    let (count, full) = fill(&*engine, &named("group"), &partitions).await;
    assert_eq!(full.kept, Kept::State);
    // If state may be in files, its size on the disk counts.
    let bounds = [HostBound::Together, HostBound::StateDisk];
    assert!(bounds.contains(&full.bound), "{full}");
    assert!((12..20).contains(&count), "{count} of 1,100 to 1,300 bytes");
    // The other group shares the same room.
    let other = set(&*engine, &named("other"), partitions[0], 0).await;
    assert_eq!(other, Err(full));
}

/// Also within a transaction that would otherwise exceed the bound.
pub async fn what_is_there_may_be_replaced_and_removed_at_the_bound(engine: Arc<dyn Engine>) {
    let topic = make_topic(&*engine, "orders", 2).await;
    let partitions: Vec<_> = topic.partitions().collect();
    let (count, full) = fill(&*engine, &named("group"), &partitions).await;
    assert_eq!(full.kept, Kept::State);
    let bounds = [HostBound::State, HostBound::StateDisk];
    assert!(bounds.contains(&full.bound), "{full}");
    set(&*engine, &named("group"), partitions[0], 0)
        .await
        .expect("it takes the room that it has");
    let removed = engine
        .commit(writing(&named("group"), partitions[0], change(0, None)))
        .await;
    removed.expect("what is removed needs no room");
    set(&*engine, &named("group"), partitions[1], count)
        .await
        .expect("there is room");
    let full = set(&*engine, &named("group"), partitions[1], count + 2).await;
    assert!(full.is_err(), "and no more");
}

/// Of every kind.
pub async fn a_deleted_topic_gives_its_room_back(engine: Arc<dyn Engine>) {
    for round in 0..3 {
        let topic = make_topic(&*engine, "orders", 2).await;
        let partitions: Vec<_> = topic.partitions().collect();
        let (delayed, _) = fill(&*engine, &DELAYS_GROUP, &partitions).await;
        let (state, _) = fill(&*engine, &named("group"), &partitions).await;
        assert!(
            delayed.min(state) >= 12,
            "{delayed} and {state} in round {round}"
        );
        let deleted = engine.delete_topic(&topic.spec.name, Vec::new()).await;
        deleted.expect("deleted");
    }
}

/// All topics count, except deleted ones.
pub async fn partitions_beyond_the_hosts_bound_are_refused(engine: Arc<dyn Engine>) {
    let first = make_topic(&*engine, "first", 5).await;
    let refused = engine.create_topic(spec("second", 4), Vec::new()).await;
    assert!(
        matches!(
            refused,
            Err(TopicError::HostPartitions {
                have: 5,
                asked: 4,
                max: 8
            })
        ),
        "{refused:?}"
    );
    make_topic(&*engine, "second", 3).await;
    let deleted = engine.delete_topic(&first.spec.name, Vec::new()).await;
    deleted.expect("deleted");
    let third = make_topic(&*engine, "third", 5).await;
    assert_eq!(end(&*engine, at(&third, 4)).0, 0);
}

/// Added partitions count too, of all topics that grow in one step. A change that adds none is not
/// refused.
pub async fn a_topic_does_not_grow_beyond_the_hosts_bound(engine: Arc<dyn Engine>) {
    let first = make_topic(&*engine, "first", 3).await;
    make_topic(&*engine, "second", 2).await;
    let both = vec![
        (name("first"), partitions(5)),
        (name("second"), partitions(4)),
    ];
    let refused = engine.change_topics(both, Vec::new()).await;
    assert!(
        matches!(
            refused,
            Err(TopicError::HostPartitions {
                have: 5,
                asked: 4,
                max: 8
            })
        ),
        "{refused:?}"
    );
    assert_eq!(engine.topic(&name("first")), Some(first));
    let grown = grow(&*engine, "first", 6).await;
    assert_eq!(end(&*engine, at(&grown, 5)).0, 0);
    grow(&*engine, "first", 6).await;
    let refused = engine.change_topic(&name("second"), partitions(3)).await;
    assert!(
        matches!(refused, Err(TopicError::HostPartitions { have: 8, .. })),
        "{refused:?}"
    );
}
