//! Promises about topics that get more partitions while they are in use.

use std::sync::Arc;

use millrace_model::bounds::TOPIC_PARTITIONS_MAX;
use millrace_model::{Durability, Offset, TopicPartition, TopicSettings};

use super::messages::assert_is_unknown;
use super::progress::{commit_progress, up_to};
use super::{append, at, end, grow, make_topic, name, named, partitions, produce, values};
use crate::contract::{CommitError, Engine, TopicChange, TopicError, Transaction};
use crate::state::{NEVER, StateChange, StateQuery, StateValue, StateWrite, StateWrites};

/// Writes one key of the group's state.
async fn keep(engine: &dyn Engine, partition: TopicPartition) {
    let change = StateChange {
        key: b"k".as_slice().into(),
        value: Some(StateValue::new(b"v")),
        ends_at: NEVER,
    };
    let transaction = Transaction {
        state: vec![StateWrite {
            group: named("group"),
            partition,
            lease: None,
            writes: Arc::new(StateWrites {
                resets: false,
                changes: vec![change],
                adds: None,
            }),
        }],
        ..Transaction::default()
    };
    engine.commit(transaction).await.expect("committed");
}

async fn entries(engine: &dyn Engine, partition: TopicPartition) -> usize {
    let query = StateQuery {
        entries_max: 10,
        bytes_max: 1 << 20,
        ..StateQuery::default()
    };
    let page = engine.read_state(&named("group"), partition, &query).await;
    page.expect("readable").entries.len()
}

/// Messages, leases, progress, state and waiting readers stay. Added partitions are empty, and are
/// like the others from then on. Other parts of the change apply to all partitions.
pub async fn a_topic_that_is_given_more_partitions_keeps_what_it_has(engine: Arc<dyn Engine>) {
    let topic = make_topic(&*engine, "orders", 2).await;
    let other = make_topic(&*engine, "returns", 1).await;
    let before = at(&topic, 1);
    produce(&*engine, before, &["a", "b"]).await;
    let lease = engine
        .claim(&named("group"), before)
        .await
        .expect("claimed")
        .lease;
    let written = commit_progress(&*engine, &lease, up_to(1)).await;
    written.expect("committed");
    keep(&*engine, before).await;
    let mut watch = engine.watch(before).expect("it exists");

    let change = TopicChange {
        partitions: Some(5),
        durability: Some(Durability::Os),
        settings: Some(TopicSettings {
            retention_ms: Some(1 << 40),
            ..TopicSettings::default()
        }),
    };
    let mut expected = topic.clone();
    expected.spec.partitions = 5;
    expected.spec.durability = Durability::Os;
    expected.spec.settings.retention_ms = Some(1 << 40);
    let grown = engine.change_topic(&name("orders"), change).await;
    assert_eq!(grown.expect("it grows"), expected);
    assert_eq!(engine.topic(&name("orders")).as_ref(), Some(&expected));
    assert_eq!(engine.topics(), [expected.clone(), other]);

    assert_eq!(values(&*engine, before).await, ["a", "b"]);
    let progress = engine
        .progress(&named("group"), before)
        .await
        .expect("readable");
    assert_eq!(progress, Some(up_to(1)));
    assert_eq!(entries(&*engine, before).await, 1);
    assert_eq!(
        engine
            .state_partitions(&named("group"))
            .await
            .expect("readable"),
        [before]
    );
    let written = commit_progress(&*engine, &lease, up_to(2)).await;
    written.expect("the lease holds");
    let third = produce(&*engine, before, &["c"]).await;
    assert!(third >= Offset(2));
    assert_eq!(watch.past(third).await, Some(third.next()));

    for number in 2..5 {
        let added = at(&expected, number);
        assert_eq!(end(&*engine, added), Offset(0));
        let progress = engine
            .progress(&named("group"), added)
            .await
            .expect("readable");
        assert_eq!(progress, None);
        assert_eq!(entries(&*engine, added).await, 0);
        let mut watch = engine.watch(added).expect("it exists");
        let lease = engine
            .claim(&named("group"), added)
            .await
            .expect("claimed")
            .lease;
        let value = format!("in {number}");
        assert_eq!(produce(&*engine, added, &[&value]).await, Offset(0));
        assert_eq!(watch.past(Offset(0)).await, Some(Offset(1)));
        let written = commit_progress(&*engine, &lease, up_to(1)).await;
        written.expect("committed");
        keep(&*engine, added).await;
        assert_eq!(values(&*engine, added).await, [value]);
        assert_eq!(entries(&*engine, added).await, 1);
    }
    let beyond = TopicPartition {
        partition: millrace_model::PartitionId(5),
        ..before
    };
    assert_is_unknown(&*engine, beyond).await;
}

/// In both cases nothing changes, including the other parts of the change.
pub async fn a_topic_never_has_fewer_partitions_and_the_same_count_changes_nothing(
    engine: Arc<dyn Engine>,
) {
    let topic = make_topic(&*engine, "orders", 3).await;
    for count in [0, 1, 2] {
        let change = TopicChange {
            durability: Some(Durability::None),
            ..partitions(count)
        };
        let refused = engine.change_topic(&name("orders"), change).await;
        assert!(
            matches!(&refused, Err(TopicError::FewerPartitions { topic, have: 3, asked })
                if *topic == name("orders") && *asked == count),
            "{refused:?}"
        );
    }
    for count in [TOPIC_PARTITIONS_MAX + 1, u32::MAX] {
        let refused = engine
            .change_topic(&name("orders"), partitions(count))
            .await;
        assert!(
            matches!(refused, Err(TopicError::Partitions { asked, max })
                if asked == count && max == TOPIC_PARTITIONS_MAX),
            "{refused:?}"
        );
    }
    assert_eq!(grow(&*engine, "orders", 3).await, topic);
    assert_eq!(engine.topics(), [topic]);
}

/// Whichever of them cannot grow.
pub async fn topics_grow_together_or_not_at_all(engine: Arc<dyn Engine>) {
    let orders = make_topic(&*engine, "orders", 2).await;
    let letters = make_topic(&*engine, "orders.p.dlq", 2).await;
    let to = |topic: &str, count| (name(topic), partitions(count));
    for refused in [
        to("nothing", 4),
        to("orders.p.dlq", 1),
        to("orders.p.dlq", TOPIC_PARTITIONS_MAX + 1),
    ] {
        for changes in [
            vec![to("orders", 4), refused.clone()],
            vec![refused.clone(), to("orders", 4)],
        ] {
            let refused = engine.change_topics(changes, Vec::new()).await;
            assert!(refused.is_err(), "{refused:?}");
            assert_eq!(engine.topics(), [orders.clone(), letters.clone()]);
        }
    }
    let changes = vec![to("orders.p.dlq", 4), to("orders", 4)];
    let grown = engine
        .change_topics(changes, Vec::new())
        .await
        .expect("both grow");
    let names: Vec<_> = grown.iter().map(|topic| topic.spec.name.as_str()).collect();
    assert_eq!(names, ["orders.p.dlq", "orders"], "in the order given");
    let appends = grown
        .iter()
        .map(|topic| append(at(topic, 3), &["a"]))
        .collect();
    let committed = engine.commit(Transaction::produce(appends)).await;
    committed.expect("committed");
    assert_eq!(
        engine
            .change_topics(Vec::new(), Vec::new())
            .await
            .expect("none"),
        []
    );
}

/// A caller that sees a count can use every partition of it, and nothing acknowledged meanwhile is
/// lost.
pub async fn every_partition_that_a_topic_shows_is_there_while_it_grows(engine: Arc<dyn Engine>) {
    const WRITERS: usize = 8;
    const LAST: u32 = 24;
    make_topic(&*engine, "orders", 1).await;
    let writers = (0..WRITERS).map(|writer| {
        let engine = Arc::clone(&engine);
        tokio::spawn(async move {
            let (mut written, mut shown) = (Vec::new(), 0);
            while shown < LAST {
                let topic = engine.topic(&name("orders")).expect("it is there");
                assert!(topic.spec.partitions >= shown, "it only grows");
                shown = topic.spec.partitions;
                let last = at(&topic, shown - 1);
                let value = format!("{writer} {}", written.len());
                produce(&*engine, last, &[&value]).await;
                written.push((last, value));
            }
            written
        })
    });
    let writers: Vec<_> = writers.collect();
    for count in 2..=LAST {
        grow(&*engine, "orders", count).await;
        tokio::task::yield_now().await;
    }
    for writer in writers {
        for (partition, value) in writer.await.expect("no panic") {
            let found = values(&*engine, partition).await;
            assert!(found.contains(&value), "{value} of {partition}");
        }
    }
}

/// A topic that is created again has only the partitions of its specification.
pub async fn partitions_that_were_added_go_with_their_topic(engine: Arc<dyn Engine>) {
    make_topic(&*engine, "orders", 1).await;
    let grown = grow(&*engine, "orders", 3).await;
    produce(&*engine, at(&grown, 2), &["gone"]).await;
    engine
        .delete_topic(&name("orders"), Vec::new())
        .await
        .expect("deleted");
    for partition in grown.partitions() {
        assert_is_unknown(&*engine, partition).await;
    }
    let again = make_topic(&*engine, "orders", 2).await;
    assert_eq!(values(&*engine, at(&again, 1)).await, [""; 0]);
    let append = append(at(&grown, 2), &["lost"]);
    let refused = engine.commit(Transaction::produce(vec![append])).await;
    assert!(
        matches!(refused, Err(CommitError::UnknownPartition(_))),
        "{refused:?}"
    );
}
