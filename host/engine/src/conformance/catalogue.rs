//! Promises about entries, topics and modules, and that a closed engine changes nothing any more.

use std::sync::Arc;

use bytes::Bytes;
use millrace_model::bounds::TOPIC_PARTITIONS_MAX;
use millrace_model::{Digest, Durability, ProcessorName, Timestamp, TopicSpec};
use sha2::{Digest as _, Sha256};

use super::messages::assert_is_unknown;
use super::progress::{commit_progress, up_to};
use super::{
    append, at, entries, entry, make_partition, make_topic, name, named, produce, spec, value,
    values,
};
use crate::contract::{
    CommitError, Ends, Engine, Entry, EntryKind, EntryWrite, ProgressWrite, TopicError, Transaction,
};

const KIND: EntryKind = EntryKind::Processor;

async fn write(engine: &dyn Engine, writes: Vec<EntryWrite>) {
    engine.commit(entries(writes)).await.expect("committed");
}

pub(super) fn listed(engine: &dyn Engine, kind: EntryKind) -> Vec<(String, String)> {
    let text = |entry: Entry| String::from_utf8_lossy(&entry.value).into_owned();
    let entries = engine.entries(kind).into_iter();
    entries.map(|(key, entry)| (key, text(entry))).collect()
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |&(key, value): &(&str, &str)| (key.to_owned(), value.to_owned());
    pairs.iter().map(owned).collect()
}

/// Within one kind, without affecting another.
pub async fn entries_are_set_replaced_removed_and_listed_by_key(engine: Arc<dyn Engine>) {
    let engine = &*engine;
    write(
        engine,
        vec![
            entry(KIND, "b", Some("2")),
            entry(KIND, "a/…", Some("")),
            entry(KIND, "c", Some("3")),
            entry(EntryKind::Module, "b", Some("another kind")),
        ],
    )
    .await;
    assert_eq!(
        listed(engine, KIND),
        pairs(&[("a/…", ""), ("b", "2"), ("c", "3")])
    );

    write(engine, vec![entry(KIND, "c", Some("4"))]).await;
    write(
        engine,
        vec![entry(KIND, "b", None), entry(KIND, "never", None)],
    )
    .await;
    assert_eq!(listed(engine, KIND), pairs(&[("a/…", ""), ("c", "4")]));
    assert_eq!(engine.entry(KIND, "b"), None);
    assert_eq!(value(engine, KIND, "c").as_deref(), Some("4"));
    assert_eq!(value(engine, KIND, "a/…").as_deref(), Some(""));
    let of_another_kind = pairs(&[("b", "another kind")]);
    assert_eq!(listed(engine, EntryKind::Module), of_another_kind);
    assert_eq!(listed(engine, EntryKind::Redriven), []);
}

/// The last change of a key is the one that counts.
pub async fn changes_of_entries_happen_in_the_order_listed(engine: Arc<dyn Engine>) {
    let writes = vec![
        entry(KIND, "replaced", Some("first")),
        entry(KIND, "removed", Some("first")),
        entry(KIND, "set again", Some("first")),
        entry(KIND, "set again", None),
        entry(KIND, "replaced", Some("last")),
        entry(KIND, "removed", None),
        entry(KIND, "set again", Some("last")),
    ];
    write(&*engine, writes).await;
    let expected = pairs(&[("replaced", "last"), ("set again", "last")]);
    assert_eq!(listed(&*engine, KIND), expected);
}

/// With every field of the specification, and each with its own identity.
pub async fn topics_are_kept_as_asked_for_and_listed_by_name(engine: Arc<dyn Engine>) {
    assert_eq!(engine.topics(), []);
    let rich = TopicSpec {
        durability: Durability::Os,
        partitioner: Some(Digest([7; 32])),
        owner: Some(ProcessorName::parse("copier").expect("a valid name")),
        created_at: Timestamp(5),
        settings: Default::default(),
        ..spec("orders.copier.dlq", 3)
    };
    let mut made = Vec::new();
    for asked in [
        spec("returns", 1),
        rich,
        spec("Orders", 2),
        spec("orders", 2),
    ] {
        let topic = engine
            .create_topic(asked.clone(), Vec::new())
            .await
            .expect("made");
        assert_eq!(topic.spec, asked);
        made.push(topic);
    }
    made.sort_by(|one, other| one.spec.name.cmp(&other.spec.name));
    assert_eq!(engine.topics(), made);
    for topic in &made {
        assert_eq!(engine.topic(&topic.spec.name).as_ref(), Some(topic));
        for partition in topic.partitions() {
            assert_eq!(engine.ends(partition).expect("it exists"), Ends::default());
        }
    }
    assert_eq!(engine.topic(&name("nothing")), None);
    made.sort_by_key(|topic| topic.id);
    assert!(made.windows(2).all(|pair| pair[0].id != pair[1].id));
}

/// The existing topic keeps its messages and its partitions.
pub async fn a_name_that_is_taken_is_refused_and_keeps_its_topic(engine: Arc<dyn Engine>) {
    let topic = make_topic(&*engine, "orders", 1).await;
    produce(&*engine, at(&topic, 0), &["kept"]).await;
    let refused = engine.create_topic(spec("orders", 2), Vec::new()).await;
    assert!(
        matches!(&refused, Err(TopicError::Exists(taken)) if *taken == name("orders")),
        "{refused:?}"
    );
    assert_eq!(engine.topics(), std::slice::from_ref(&topic));
    assert_eq!(values(&*engine, at(&topic, 0)).await, ["kept"]);

    let refused = engine.delete_topic(&name("returns"), Vec::new()).await;
    assert!(
        matches!(&refused, Err(TopicError::Unknown(unknown)) if *unknown == name("returns")),
        "{refused:?}"
    );
}

/// Zero, and one too many; the name stays free.
pub async fn partition_counts_out_of_bounds_are_refused(engine: Arc<dyn Engine>) {
    for count in [0, TOPIC_PARTITIONS_MAX + 1, u32::MAX] {
        let refused = engine.create_topic(spec("orders", count), Vec::new()).await;
        assert!(
            matches!(refused, Err(TopicError::Partitions { asked, max })
                if asked == count && max == TOPIC_PARTITIONS_MAX),
            "{refused:?}"
        );
    }
    assert_eq!(engine.topics(), []);
    make_topic(&*engine, "orders", 1).await;
}

/// Its partitions are unknown from then on; other topics are not affected.
pub async fn a_deleted_topic_takes_its_messages_and_progress_along(engine: Arc<dyn Engine>) {
    let topic = make_topic(&*engine, "orders", 2).await;
    let other = make_partition(&*engine, "returns").await;
    for partition in [at(&topic, 0), at(&topic, 1), other] {
        produce(&*engine, partition, &["a"]).await;
        let lease = engine
            .claim(&named("group"), partition)
            .await
            .expect("claimed")
            .lease;
        let written = commit_progress(&*engine, &lease, up_to(1)).await;
        written.expect("committed");
    }
    let deleted = engine.delete_topic(&name("orders"), Vec::new()).await;
    assert_eq!(deleted.expect("deleted"), topic.id);
    assert_eq!(engine.topic(&name("orders")), None);
    assert_eq!(engine.topics().len(), 1);
    for partition in topic.partitions() {
        assert_is_unknown(&*engine, partition).await;
    }
    assert_eq!(values(&*engine, other).await, ["a"]);
    let kept = engine.progress(&named("group"), other).await.unwrap();
    assert_eq!(kept, Some(up_to(1)));
    let again = engine.delete_topic(&name("orders"), Vec::new()).await;
    assert!(matches!(again, Err(TopicError::Unknown(_))), "{again:?}");
}

/// It is a different topic: nothing of the old one is visible, and references to the old one are
/// invalid.
pub async fn a_topic_made_again_starts_empty(engine: Arc<dyn Engine>) {
    let old = make_topic(&*engine, "orders", 2).await;
    produce(&*engine, at(&old, 0), &["old", "older"]).await;
    let lease = engine
        .claim(&named("group"), at(&old, 0))
        .await
        .expect("claimed")
        .lease;
    let written = commit_progress(&*engine, &lease, up_to(2)).await;
    written.expect("committed");
    engine
        .delete_topic(&name("orders"), Vec::new())
        .await
        .expect("deleted");

    let new = make_topic(&*engine, "orders", 1).await;
    assert_ne!(new.id, old.id);
    let partition = at(&new, 0);
    let ends = engine.ends(partition).expect("it exists");
    assert_eq!(ends.start, ends.end);
    let read = engine.read(partition, ends.start, 1000).await;
    assert_eq!(read.expect("readable"), []);
    let progress = engine.progress(&named("group"), partition).await.unwrap();
    assert_eq!(progress, None);
    produce(&*engine, partition, &["new"]).await;
    assert_eq!(values(&*engine, partition).await, ["new"]);
    for partition in old.partitions() {
        assert_is_unknown(&*engine, partition).await;
    }
}

/// A worker that did not notice the deletion cannot write to the new topic.
pub async fn a_lease_does_not_outlive_its_topic(engine: Arc<dyn Engine>) {
    let input = make_partition(&*engine, "orders").await;
    let output = make_partition(&*engine, "outputs").await;
    let lease = engine
        .claim(&named("group"), input)
        .await
        .expect("claimed")
        .lease;
    engine
        .delete_topic(&name("orders"), Vec::new())
        .await
        .expect("deleted");
    let again = make_partition(&*engine, "orders").await;
    engine.claim(&named("group"), again).await.expect("claimed");
    let refused = engine
        .commit(Transaction {
            progress: vec![ProgressWrite {
                partition: lease.partition,
                lease,
                progress: up_to(1).into(),
            }],
            ..Transaction::produce(vec![append(output, &["late"])])
        })
        .await;
    assert!(
        matches!(refused, Err(CommitError::UnknownPartition(gone)) if gone == input),
        "{refused:?}"
    );
    assert_eq!(values(&*engine, output).await, [""; 0]);
    assert_eq!(engine.progress(&named("group"), again).await.unwrap(), None);
}

/// By digest: stored bytes are returned, storing twice is the same as once, and deleting one
/// deletes no other.
pub async fn modules_are_kept_once_and_forgotten(engine: Arc<dyn Engine>) {
    let bytes = |fill: u8| Bytes::from(vec![fill; 100_000]);
    let digest = |fill: u8| Digest(Sha256::digest(bytes(fill)).into());
    let (one, other) = (digest(1), digest(2));
    assert_eq!(engine.module(one).await.unwrap(), None);
    for (digest, fill) in [(one, 1), (other, 2), (one, 1)] {
        let put = engine.put_module(digest, bytes(fill)).await;
        put.expect("kept");
    }
    assert_eq!(engine.module(one).await.unwrap(), Some(bytes(1)));
    assert_eq!(engine.module(other).await.unwrap(), Some(bytes(2)));
    for _ in 0..2 {
        engine
            .delete_module(one, Vec::new())
            .await
            .expect("forgotten");
        assert_eq!(engine.module(one).await.unwrap(), None);
    }
    assert_eq!(engine.module(other).await.unwrap(), Some(bytes(2)));
    engine.put_module(one, bytes(1)).await.expect("kept");
    assert_eq!(engine.module(one).await.unwrap(), Some(bytes(1)));
}

/// With an error that says that it is closed, however often it was closed.
pub async fn a_closed_engine_refuses_every_change(engine: Arc<dyn Engine>) {
    let partition = make_partition(&*engine, "orders").await;
    let lease = engine
        .claim(&named("group"), partition)
        .await
        .expect("claimed")
        .lease;
    engine.close().await;
    engine.close().await;
    let produced = Transaction::produce(vec![append(partition, &["late"])]);
    let write = entry(KIND, "late", Some("late"));
    let changes = [
        engine.commit(produced).await.err(),
        engine.commit(entries(vec![write])).await.err(),
        commit_progress(&*engine, &lease, up_to(1)).await.err(),
        engine.claim(&named("group"), partition).await.err(),
        engine.put_module(Digest([1; 32]), Bytes::new()).await.err(),
        engine
            .delete_module(Digest([1; 32]), Vec::new())
            .await
            .err(),
    ];
    for refused in changes {
        assert!(matches!(refused, Some(CommitError::Closed)), "{refused:?}");
    }
    let topic_changes = [
        engine
            .create_topic(spec("returns", 1), Vec::new())
            .await
            .err(),
        engine.delete_topic(&name("orders"), Vec::new()).await.err(),
    ];
    for refused in topic_changes {
        let closed = matches!(refused, Some(TopicError::Commit(CommitError::Closed)));
        assert!(closed, "{refused:?}");
    }
}
