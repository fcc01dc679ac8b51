//! Promises of engines that keep their data: everything that existed when they were closed exists
//! when they are opened again.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use millrace_model::{Digest, Durability, Offset, Progress, Topic, TopicPartition, TopicSettings};
use sha2::{Digest as _, Sha256};

use super::catalogue::listed;
use super::messages::assert_is_unknown;
use super::progress::{commit_progress, of_twenty_parked, up_to, with_parked};
use super::{
    Place, append, at, end, entries, entry, grow, make_partition, make_topic, name, named, produce,
    progress, read_all, values,
};
use crate::contract::{
    CommitError, Ends, Engine, EntryKind, Lease, ProgressWrite, TopicChange, Transaction,
};

const GROUPS: [&str; 2] = ["copier", "counter"];
static MODULE: [u8; 300_000] = [7; 300_000];

/// The digest of the module, and one that no module has.
fn modules() -> [Digest; 2] {
    [Digest(Sha256::digest(MODULE).into()), Digest([2; 32])]
}

/// Everything that an engine can return.
#[derive(Debug, PartialEq)]
struct Contents {
    topics: Vec<Topic>,
    ends: Vec<Ends>,
    messages: Vec<Vec<(Offset, String)>>,
    progress: Vec<Option<Progress>>,
    entries: Vec<Vec<(String, String)>>,
    modules: Vec<Option<Bytes>>,
}

async fn contents(engine: &dyn Engine) -> Contents {
    let topics = engine.topics();
    let partitions: Vec<TopicPartition> = topics.iter().flat_map(Topic::partitions).collect();
    let (mut ends, mut messages, mut progress) = (Vec::new(), Vec::new(), Vec::new());
    for &partition in &partitions {
        ends.push(engine.ends(partition).expect("it exists"));
        messages.push(read_all(engine, partition).await);
        for group in GROUPS {
            progress.push(
                engine
                    .progress(&named(group), partition)
                    .await
                    .expect("readable"),
            );
        }
    }
    let mut kept = Vec::new();
    for digest in modules() {
        kept.push(engine.module(digest).await.expect("readable"));
    }
    Contents {
        topics,
        ends,
        messages,
        progress,
        entries: EntryKind::ALL.map(|kind| listed(engine, kind)).to_vec(),
        modules: kept,
    }
}

/// Writes messages of several sizes, progress, entries and a module, and replaces some of each.
async fn fill(engine: &dyn Engine) {
    let orders = make_topic(engine, "orders", 3).await;
    let returns = make_topic(engine, "returns", 1).await;
    for number in 0..200 {
        let large = if number % 50 == 0 { 100_000 } else { 10 };
        let text = format!("{number} {}", "x".repeat(large));
        produce(engine, at(&orders, number % 2), &[text, number.to_string()]).await;
    }
    for (group, progress) in GROUPS.into_iter().zip([with_parked(9, 5), up_to(3)]) {
        let lease = engine
            .claim(&named(group), at(&orders, 0))
            .await
            .expect("claimed")
            .lease;
        let first = commit_progress(engine, &lease, up_to(1)).await;
        first.expect("committed");
        let transaction = Transaction {
            appends: vec![append(at(&returns, 0), &[group])],
            progress: vec![ProgressWrite {
                partition: lease.partition,
                lease,
                progress: progress.into(),
            }],
            entries: EntryKind::ALL
                .map(|kind| entry(kind, group, Some("…")))
                .to_vec(),
            ..Transaction::default()
        };
        engine.commit(transaction).await.expect("committed");
    }
    let module = Bytes::from_static(&MODULE);
    let put = engine.put_module(modules()[0], module).await;
    put.expect("kept");
}

/// Including parked messages, after several changes.
pub async fn changes_of_progress_stay<Open>(place: Place<Open>)
where
    Open: AsyncFn(PathBuf) -> Arc<dyn Engine>,
{
    let engine = place.open().await;
    let partition = at(&make_topic(&*engine, "orders", 1).await, 0);
    let mut engine = engine;
    let mut stored = Progress::default();
    for to in [with_parked(20, 20), of_twenty_parked(), up_to(50)] {
        let hold = engine.claim(&named("group"), partition).await;
        let write = ProgressWrite {
            lease: hold.expect("claimed").lease,
            partition,
            progress: stored.change_to(&to),
        };
        engine.commit(progress(write)).await.expect("committed");
        engine = place.reopen(engine).await;
        let found = engine.progress(&named("group"), partition).await;
        assert_eq!(found.expect("read"), Some(to.clone()));
        stored = to;
    }
    engine.close().await;
}

/// Topics, ends, messages, progress, entries and modules, also if nothing happens between two
/// openings.
pub async fn all_is_as_before<Open>(place: Place<Open>)
where
    Open: AsyncFn(PathBuf) -> Arc<dyn Engine>,
{
    let engine = place.open().await;
    fill(&*engine).await;
    let before = contents(&*engine).await;
    assert!(before.messages.iter().map(Vec::len).sum::<usize>() == 402);
    let engine = place.reopen(engine).await;
    assert!(contents(&*engine).await == before, "opened once");
    let engine = place.reopen(engine).await;
    assert!(contents(&*engine).await == before, "opened twice");
    engine.close().await;
}

/// A topic, an entry, a module.
pub async fn what_was_deleted_stays_deleted<Open>(place: Place<Open>)
where
    Open: AsyncFn(PathBuf) -> Arc<dyn Engine>,
{
    let engine = place.open().await;
    fill(&*engine).await;
    // Once with a reopening before the deletion, once with the deletion right after the creation.
    let engine = place.reopen(engine).await;
    let gone = engine.topic(&name("orders")).expect("still there");
    let fresh = make_topic(&*engine, "fresh", 1).await;
    produce(&*engine, at(&fresh, 0), &["a"]).await;
    for topic in ["orders", "fresh"] {
        engine
            .delete_topic(&name(topic), Vec::new())
            .await
            .expect("deleted");
    }
    let removed = entry(EntryKind::Module, GROUPS[0], None);
    let removed = engine.commit(entries(vec![removed])).await;
    removed.expect("committed");
    engine
        .delete_module(modules()[0], Vec::new())
        .await
        .expect("forgotten");
    let before = contents(&*engine).await;

    let engine = place.reopen(engine).await;
    assert!(contents(&*engine).await == before);
    assert_eq!(engine.entry(EntryKind::Module, GROUPS[0]), None);
    for partition in gone.partitions().chain(fresh.partitions()) {
        assert_is_unknown(&*engine, partition).await;
    }
    engine.close().await;
}

/// From their previous values, without overwriting a message.
pub async fn offsets_go_on<Open>(place: Place<Open>)
where
    Open: AsyncFn(PathBuf) -> Arc<dyn Engine>,
{
    let mut engine = place.open().await;
    let partition = make_partition(&*engine, "orders").await;
    for round in 0..3 {
        let before = end(&*engine, partition);
        let base = produce(&*engine, partition, &["a", "b", "c"]).await;
        assert!(base >= before, "round {round}: {base} is below {before}");
        engine = place.reopen(engine).await;
        assert!(end(&*engine, partition) >= base.plus(3));
        let watch = engine.watch(partition).expect("it exists");
        assert_eq!(watch.end(), end(&*engine, partition));
    }
    assert_eq!(values(&*engine, partition).await, ["a", "b", "c"].repeat(3));
    engine.close().await;
}

/// An earlier holder's lease never becomes valid again.
pub async fn leases_are_numbered_on<Open>(place: Place<Open>)
where
    Open: AsyncFn(PathBuf) -> Arc<dyn Engine>,
{
    let engine = place.open().await;
    let partition = make_partition(&*engine, "orders").await;
    let claim = async |engine: &dyn Engine| -> Lease {
        let claimed = engine.claim(&named("group"), partition).await;
        claimed.expect("claimed").lease
    };
    let mut older = claim(&*engine).await;
    let old = claim(&*engine).await;
    let engine = place.reopen(engine).await;
    let still_fenced = commit_progress(&*engine, &older, up_to(1)).await;
    assert!(matches!(still_fenced, Err(CommitError::Fenced { .. })));
    let new = claim(&*engine).await;
    assert!(new.epoch > old.epoch, "{} after {}", new.epoch, old.epoch);
    older.epoch = old.epoch;
    let fenced = commit_progress(&*engine, &older, up_to(1)).await;
    assert!(matches!(fenced, Err(CommitError::Fenced { .. })));
    let committed = commit_progress(&*engine, &new, up_to(2)).await;
    committed.expect("the newest lease");
    engine.close().await;
}

/// Not even that of the last created topic, if it was deleted before closing.
pub async fn topic_identities_are_not_given_again<Open>(place: Place<Open>)
where
    Open: AsyncFn(PathBuf) -> Arc<dyn Engine>,
{
    let mut engine = place.open().await;
    let mut given = BTreeSet::new();
    for round in 0..3 {
        let topic = make_topic(&*engine, "orders", 1).await;
        produce(&*engine, at(&topic, 0), &["old"]).await;
        assert!(given.insert(topic.id), "round {round}: {} again", topic.id);
        engine
            .delete_topic(&name("orders"), Vec::new())
            .await
            .expect("deleted");
        engine = place.reopen(engine).await;
    }
    let partition = make_partition(&*engine, "orders").await;
    assert_eq!(values(&*engine, partition).await, [""; 0]);
    engine.close().await;
}

/// Many openings, each with a little work, lose nothing.
pub async fn nothing_wears_off<Open>(place: Place<Open>)
where
    Open: AsyncFn(PathBuf) -> Arc<dyn Engine>,
{
    let mut engine = place.open().await;
    let partition = make_partition(&*engine, "orders").await;
    let mut expected = Vec::new();
    for round in 0..10 {
        let lease = engine
            .claim(&named("group"), partition)
            .await
            .expect("claimed")
            .lease;
        for number in 0..20 {
            let text = format!("{round} {number}");
            produce(&*engine, partition, &[&text]).await;
            expected.push(text);
        }
        let written = commit_progress(&*engine, &lease, up_to(expected.len() as u64)).await;
        written.expect("committed");
        engine = place.reopen(engine).await;
        let progress = engine.progress(&named("group"), partition).await.unwrap();
        assert_eq!(progress, Some(up_to(expected.len() as u64)));
    }
    assert_eq!(values(&*engine, partition).await, expected);
    engine.close().await;
}

/// Changed settings and starts of partitions stay, with and without checkpoints in between.
pub async fn changes_and_trims_stay<Open>(place: Place<Open>)
where
    Open: AsyncFn(PathBuf) -> Arc<dyn Engine>,
{
    let mut engine = place.open().await;
    let topic = make_topic(&*engine, "orders", 2).await;
    let numbers: Vec<String> = (0..40)
        .map(|n| format!("{n} {}", "x".repeat(900)))
        .collect();
    for number in &numbers {
        produce(&*engine, at(&topic, 0), &[number]).await;
    }
    for (round, before) in [3, 17, 40].into_iter().enumerate() {
        let settings = TopicSettings {
            retention_bytes: Some(round as u64 + 1_000_000),
            ..TopicSettings::default()
        };
        let change = TopicChange {
            durability: Some(Durability::Os),
            settings: Some(settings),
            ..TopicChange::default()
        };
        let changed = engine.change_topic(&name("orders"), change).await;
        let changed = changed.expect("changed");
        let start = engine.trim(at(&topic, 0), Offset(before)).await;
        assert_eq!(start.expect("trimmed"), Offset(before));
        engine = place.reopen(engine).await;
        assert_eq!(engine.topic(&name("orders")), Some(changed));
        let ends = engine.ends(at(&topic, 0)).expect("it exists");
        assert_eq!((ends.start, ends.end), (Offset(before), Offset(40)));
        let kept = &numbers[before as usize..];
        assert_eq!(values(&*engine, at(&topic, 0)).await, kept);
        let untouched = engine.ends(at(&topic, 1)).expect("it exists");
        assert_eq!(untouched, Ends::default());
    }
    assert_eq!(produce(&*engine, at(&topic, 0), &["on"]).await, Offset(40));
    engine.close().await;
}

/// So do messages in them, with and without checkpoints in between; the earlier partitions are
/// unchanged.
pub async fn partitions_that_were_added_stay<Open>(place: Place<Open>)
where
    Open: AsyncFn(PathBuf) -> Arc<dyn Engine>,
{
    let mut engine = place.open().await;
    let topic = make_topic(&*engine, "orders", 1).await;
    let mut expected: Vec<Vec<String>> = vec![Vec::new()];
    let mut number = 0;
    for round in 0..5 {
        let grown = grow(&*engine, "orders", expected.len() as u32 + round).await;
        assert_eq!(grown.id, topic.id);
        expected.resize_with(grown.spec.partitions as usize, Vec::new);
        for (partition, expected) in expected.iter_mut().enumerate() {
            for _ in 0..8 {
                let value = format!("{number} {}", "x".repeat(900));
                produce(&*engine, at(&grown, partition as u32), &[&value]).await;
                expected.push(value);
                number += 1;
            }
        }
        engine = place.reopen(engine).await;
        assert_eq!(engine.topic(&name("orders")), Some(grown.clone()));
        for (partition, expected) in expected.iter().enumerate() {
            let found = values(&*engine, at(&grown, partition as u32)).await;
            assert_eq!(found, *expected, "partition {partition} in round {round}");
        }
    }
    engine.close().await;
}
