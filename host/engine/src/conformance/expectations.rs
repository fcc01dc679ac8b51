//! Promises about decisions: they take effect only if what they were based on still holds at the
//! commit.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millrace_model::{Digest, Topic, TopicSpec};
use sha2::{Digest as _, Sha256};

use super::catalogue::listed;
use super::progress::up_to;
use super::{
    append, at, end, entries, entry, grow, make_partition, make_topic, name, named, partitions,
    progress, spec, value, values,
};
use crate::contract::{
    CommitError, Engine, EntryKind, EntryWrite, Expectation, ProgressWrite, RequestMark,
    TopicError, Transaction,
};

const KIND: EntryKind = EntryKind::Processor;
/// Longer than any engine takes to report a change.
const TOLD_DURATION_MAX: Duration = Duration::from_secs(30);

/// Expects the entry as it is now.
fn as_now(engine: &dyn Engine, key: &str) -> Expectation {
    Expectation::entry(KIND, key, engine.entry(KIND, key).as_ref())
}

/// Expects that no entry of the kind is written from now on.
fn nothing_since(engine: &dyn Engine, kind: EntryKind) -> Expectation {
    let version = engine.version(kind);
    Expectation::Kind { kind, version }
}

fn of_topic(topic: &Topic) -> Expectation {
    Expectation::Topic {
        name: topic.spec.name.clone(),
        topic: Some(topic.clone()),
    }
}

fn expecting(expects: Vec<Expectation>, writes: Vec<EntryWrite>) -> Transaction {
    Transaction {
        expects,
        ..entries(writes)
    }
}

async fn write(engine: &dyn Engine, key: &str, value: Option<&'static str>) {
    let written = engine.commit(entries(vec![entry(KIND, key, value)])).await;
    written.expect("nothing is expected");
}

#[track_caller]
fn assert_conflict<T: std::fmt::Debug>(answer: Result<T, CommitError>, expected: &Expectation) {
    assert!(
        matches!(&answer, Err(CommitError::Conflict(broken)) if **broken == *expected),
        "{answer:?}"
    );
}

/// For an entry that was replaced, removed, added, or removed and added again with the same value.
pub async fn what_was_decided_on_an_older_entry_changes_nothing(engine: Arc<dyn Engine>) {
    let engine = &*engine;
    for key in ["replaced", "removed", "again"] {
        write(engine, key, Some("first")).await;
    }
    let seen = ["replaced", "removed", "again", "new"].map(|key| as_now(engine, key));
    write(engine, "replaced", Some("second")).await;
    write(engine, "removed", None).await;
    write(engine, "again", None).await;
    write(engine, "again", Some("first")).await;
    write(engine, "new", Some("first")).await;
    for expected in seen {
        let refused = expecting(
            vec![expected.clone()],
            vec![entry(KIND, "late", Some("decided on what was"))],
        );
        assert_conflict(engine.commit(refused).await, &expected);
        assert_eq!(value(engine, KIND, "late"), None);
    }
    let seen = ["replaced", "removed", "again", "new"].map(|key| as_now(engine, key));
    let taken = expecting(seen.to_vec(), vec![entry(KIND, "late", Some("in time"))]);
    engine.commit(taken).await.expect("all is as it was read");
    assert_eq!(value(engine, KIND, "late").as_deref(), Some("in time"));
}

/// Neither messages nor progress nor entries; the same transaction without the expectation
/// succeeds.
pub async fn a_conflict_leaves_nothing_of_its_transaction(engine: Arc<dyn Engine>) {
    let engine = &*engine;
    let input = make_partition(engine, "input").await;
    let output = make_partition(engine, "output").await;
    let lease = engine
        .claim(&named("group"), input)
        .await
        .expect("claimed")
        .lease;
    let absent = as_now(engine, "key");
    write(engine, "key", Some("first")).await;
    let whole = |expects| Transaction {
        appends: vec![append(output, &["a"])],
        progress: vec![ProgressWrite {
            partition: lease.partition,
            lease: lease.clone(),
            progress: up_to(1).into(),
        }],
        ..expecting(expects, vec![entry(KIND, "key", Some("second"))])
    };
    let before = end(engine, output);
    assert_conflict(engine.commit(whole(vec![absent.clone()])).await, &absent);
    assert_eq!(end(engine, output), before);
    assert_eq!(value(engine, KIND, "key").as_deref(), Some("first"));
    assert_eq!(engine.progress(&named("group"), input).await.unwrap(), None);
    engine.commit(whole(Vec::new())).await.expect("committed");
    assert_eq!(values(engine, output).await, ["a"]);
    assert_eq!(value(engine, KIND, "key").as_deref(), Some("second"));
}

/// Sixteen tasks increment a number in one entry, each based on what it read: no step is lost.
pub async fn of_many_who_decide_on_the_same_entry_one_takes_effect(engine: Arc<dyn Engine>) {
    const TASKS: u64 = 16;
    const STEPS: u64 = 20;
    let counting = (0..TASKS).map(|_| {
        let engine = engine.clone();
        tokio::spawn(async move { counts_up(&*engine, STEPS).await })
    });
    let counting: Vec<_> = counting.collect();
    let mut conflicts = 0;
    for task in counting {
        conflicts += task.await.expect("it counts to the end");
    }
    let count = value(&*engine, KIND, "count");
    let expected = (TASKS * STEPS).to_string();
    assert_eq!(count, Some(expected), "after {conflicts} conflicts");
}

/// Increments a number in an entry this many times; returns how often another task was quicker.
pub(super) async fn counts_up(engine: &dyn Engine, steps: u64) -> u64 {
    let mut conflicts = 0;
    for _ in 0..steps {
        loop {
            let read = engine.entry(KIND, "count");
            let count = read.as_ref().map_or(0, |read| {
                let text = String::from_utf8_lossy(&read.value);
                text.parse::<u64>().expect("a number")
            });
            let next = count + 1;
            let count = EntryWrite {
                kind: KIND,
                key: "count".to_owned(),
                value: Some(next.to_string().into()),
            };
            let expected = Expectation::entry(KIND, "count", read.as_ref());
            match engine.commit(expecting(vec![expected], vec![count])).await {
                Ok(_) => break,
                Err(CommitError::Conflict(_)) => conflicts += 1,
                Err(error) => panic!("{error}"),
            }
            // The other task's change may not be visible yet.
            tokio::task::yield_now().await;
        }
    }
    conflicts
}

/// For any entry of the kind, even if it is only added or removed; other kinds do not matter.
pub async fn a_kind_is_unchanged_only_while_nothing_of_it_is_written(engine: Arc<dyn Engine>) {
    let engine = &*engine;
    write(engine, "kept", Some("first")).await;
    let changes = [
        ("kept", Some("second")),
        ("new", Some("first")),
        ("new", None),
        ("never", None),
    ];
    for (key, value) in changes {
        let seen = nothing_since(engine, KIND);
        write(engine, key, value).await;
        let refused = expecting(vec![seen.clone()], vec![]);
        assert_conflict(engine.commit(refused).await, &seen);
    }
    let seen = nothing_since(engine, KIND);
    let other = entry(EntryKind::Module, "kept", Some("another kind"));
    engine.commit(entries(vec![other])).await.expect("written");
    let taken = expecting(vec![seen.clone()], vec![entry(KIND, "kept", Some("third"))]);
    engine.commit(taken).await.expect("nothing of the kind");
    let refused = expecting(vec![seen.clone()], vec![entry(KIND, "kept", None)]);
    assert_conflict(engine.commit(refused).await, &seen);
    assert_eq!(listed(engine, KIND), [("kept".into(), "third".into())]);
}

/// In commits, changes and deletions, for a topic that was changed, deleted, created, or created
/// again.
pub async fn what_was_decided_on_an_older_topic_changes_nothing(engine: Arc<dyn Engine>) {
    let engine = &*engine;
    let absent = Expectation::Topic {
        name: name("orders"),
        topic: None,
    };
    let returns = make_topic(engine, "returns", 1).await;
    let orders = make_topic(engine, "orders", 1).await;
    let grown = grow(engine, "orders", 2).await;
    for (topic, seen) in [(&grown, &absent), (&grown, &of_topic(&orders))] {
        refuses_everything(engine, seen).await;
        assert_eq!(engine.topic(&name("orders")).as_ref(), Some(topic));
        assert_eq!(engine.topic(&name("returns")).as_ref(), Some(&returns));
    }
    let now = [of_topic(&grown), of_topic(&returns)];
    let deleted = engine.delete_topic(&name("orders"), now.to_vec()).await;
    deleted.expect("both are as they were");
    refuses_everything(engine, &now[0]).await;
    let made = engine
        .create_topic(grown.spec.clone(), Vec::new())
        .await
        .expect("made");
    assert_ne!(made.id, grown.id);
    refuses_everything(engine, &now[0]).await;
    let changes = vec![(name("returns"), partitions(2))];
    let changed = engine.change_topics(changes, vec![of_topic(&made)]).await;
    assert_eq!(changed.expect("as it is")[0].spec, spec("returns", 2));
}

/// Checks that a commit, changes of topics and the deletion of a module with this expectation are
/// refused.
async fn refuses_everything(engine: &dyn Engine, expected: &Expectation) {
    let expects = || vec![expected.clone()];
    let late = entry(KIND, "late", Some("decided on what was"));
    let refused = engine.commit(expecting(expects(), vec![late])).await;
    assert_conflict(refused, expected);
    assert_eq!(value(engine, KIND, "late"), None);
    let changes = vec![(name("returns"), partitions(7))];
    let of_commit = |error| match error {
        TopicError::Commit(error) => error,
        other => panic!("{other}"),
    };
    let refused = engine.change_topics(changes, expects()).await;
    assert_conflict(refused.map_err(of_commit), expected);
    let refused = engine.delete_topic(&name("returns"), expects()).await;
    assert_conflict(refused.map_err(of_commit), expected);
    let refused = engine.create_topic(spec("late", 1), expects()).await;
    assert_conflict(refused.map_err(of_commit), expected);
    assert_eq!(engine.topic(&name("late")), None);
    let bytes = Bytes::from_static(b"module");
    let module = Digest(Sha256::digest(&bytes).into());
    let put = engine.put_module(module, bytes).await;
    put.expect("kept");
    let refused = engine.delete_module(module, expects()).await;
    assert_conflict(refused, expected);
    assert!(engine.module(module).await.is_ok_and(|kept| kept.is_some()));
}

/// Whatever other topics there are, and whatever their partitioners.
pub async fn a_module_is_known_to_be_a_partitioner_as_long_as_a_topic_has_it(
    engine: Arc<dyn Engine>,
) {
    let engine = &*engine;
    let [module, other] = [Digest([7; 32]), Digest([8; 32])];
    let unused = |module| Expectation::NoPartitioner { module };
    let partitioned = |topic, module| TopicSpec {
        partitioner: Some(module),
        ..spec(topic, 1)
    };
    make_topic(engine, "returns", 1).await;
    let made = partitioned("orders", module);
    let made = engine.create_topic(made, vec![unused(module)]).await;
    made.expect("no other topic has it");
    let made = engine.create_topic(partitioned("others", other), vec![unused(other)]);
    made.await.expect("it is another module");
    refuses_everything(engine, &unused(module)).await;
    let (orders, nobodys) = (name("orders"), Digest([9; 32]));
    let gone = engine.delete_topic(&orders, vec![unused(nobodys)]).await;
    gone.expect("nobody has that one");
    let removed = engine.delete_module(module, vec![unused(module)]).await;
    removed.expect("no topic has it any more");
    assert_eq!(engine.module(module).await.unwrap(), None);
    refuses_everything(engine, &unused(other)).await;
}

/// One task removes a module's bytes if there is no entry; another one writes an entry and stores
/// the bytes again if they are gone. Neither can come between the other's steps.
pub async fn a_module_with_an_entry_keeps_its_bytes_whoever_removes_them(engine: Arc<dyn Engine>) {
    const ROUNDS: usize = 50;
    let bytes = Bytes::from_static(b"module");
    let module = Digest(Sha256::digest(&bytes).into());
    let (kind, key) = (EntryKind::Module, module.to_string());
    for round in 0..ROUNDS {
        let uploads = async {
            let put = engine.put_module(module, bytes.clone()).await;
            put.expect("kept");
            let write = entry(kind, &key, Some("uploaded"));
            engine.commit(entries(vec![write])).await.expect("written");
            if engine.module(module).await.expect("readable").is_none() {
                let put = engine.put_module(module, bytes.clone()).await;
                put.expect("kept");
            }
        };
        let deletes = async {
            for _ in 0..round % 4 {
                tokio::task::yield_now().await;
            }
            let no_entry = Expectation::entry(kind, key.clone(), None);
            let removed = engine.delete_module(module, vec![no_entry]).await;
            let is_kept = matches!(removed, Err(CommitError::Conflict(_)));
            assert!(removed.is_ok() || is_kept, "{removed:?}");
        };
        tokio::join!(uploads, deletes);
        let kept = engine.module(module).await.expect("readable");
        assert_eq!(kept.as_ref(), Some(&bytes));
        let gone = entry(kind, &key, None);
        engine.commit(entries(vec![gone])).await.expect("written");
    }
}

/// Its own writes invalidated its expectations; it must get its first answer, not a conflict.
pub async fn a_repeated_request_is_no_conflict_with_itself(engine: Arc<dyn Engine>) {
    let engine = &*engine;
    let topic = make_topic(engine, "orders", 1).await;
    let request = Transaction {
        request: Some(RequestMark {
            topic: topic.id,
            key: [1; 16],
            fingerprint: [2; 16],
            note: Default::default(),
        }),
        appends: vec![append(at(&topic, 0), &["once"])],
        ..expecting(
            vec![as_now(engine, "key"), nothing_since(engine, KIND)],
            vec![entry(KIND, "key", Some("first"))],
        )
    };
    let first = engine.commit(request.clone()).await.expect("committed");
    let again = engine.commit(request).await.expect("it took effect");
    assert!(again.repeated);
    assert_eq!(again.base_offsets, first.base_offsets);
    assert_eq!(values(engine, at(&topic, 0)).await, ["once"]);
}

/// For each change of entries and topics; changes that are not visible in the catalogue wake no
/// watcher.
pub async fn whoever_watches_the_catalogue_hears_of_each_change(engine: Arc<dyn Engine>) {
    let engine = &*engine;
    let mut watch = engine.watch_catalogue();
    let topic = make_topic(engine, "orders", 1).await;
    told(&mut watch).await;
    assert_eq!(engine.topics(), std::slice::from_ref(&topic));
    write(engine, "key", Some("first")).await;
    told(&mut watch).await;
    write(engine, "key", None).await;
    told(&mut watch).await;
    grow(engine, "orders", 2).await;
    told(&mut watch).await;
    let produced = Transaction::produce(vec![append(at(&topic, 0), &["a"])]);
    engine.commit(produced).await.expect("committed");
    let lease = engine
        .claim(&named("group"), at(&topic, 0))
        .await
        .expect("claimed")
        .lease;
    let write = ProgressWrite {
        partition: lease.partition,
        lease,
        progress: up_to(1).into(),
    };
    engine.commit(progress(write)).await.expect("committed");
    assert!(!watch.has_changed().expect("the engine is open"));
    let deleted = engine.delete_topic(&name("orders"), Vec::new()).await;
    deleted.expect("deleted");
    told(&mut watch).await;
    assert_eq!(engine.topics(), []);
}

async fn told(watch: &mut tokio::sync::watch::Receiver<u64>) {
    let changed = tokio::time::timeout(TOLD_DURATION_MAX, watch.changed()).await;
    changed.expect("it is told in time").expect("it is open");
}

/// Removals count, so a version distinguishes an entry that was removed and created again from one
/// that stayed.
pub async fn no_version_is_given_twice(engine: Arc<dyn Engine>) {
    let engine = &*engine;
    let mut given = BTreeSet::new();
    let mut newest = engine.version(KIND);
    let of_another_kind = engine.version(EntryKind::Schedule);
    for round in 0..20 {
        let key = if round % 2 == 0 { "one" } else { "other" };
        let value = (round % 3 != 0).then_some("same");
        let transaction = entries(vec![
            entry(KIND, "replaced", Some("within the transaction")),
            entry(KIND, key, value),
        ]);
        let receipt = engine.commit(transaction).await.expect("committed");
        let version = engine.version(KIND);
        assert!(version > newest, "{version:?} after {newest:?}");
        let [before, told] = receipt.versions[..] else {
            panic!("{receipt:?}")
        };
        assert_eq!(told, version);
        assert!(newest < before && before < told, "{receipt:?}");
        newest = version;
        if let Some(entry) = engine.entry(KIND, key) {
            assert_eq!(entry.version, version);
            assert!(given.insert(version), "{version:?} was given before");
        }
    }
    assert_eq!(engine.version(EntryKind::Schedule), of_another_kind);
}
