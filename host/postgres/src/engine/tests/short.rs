//! The short way of commits, and reads without the database: they are taken when nobody else has written, and make no difference.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use millrace_engine::state::{NEVER, StateChange, StateQuery, StateValue, StateWrite, StateWrites};
use millrace_engine::{Append, CommitError, Engine, Hold, ProgressWrite, Transaction};
use millrace_model::{
    Durability, Offset, PartitionId, ProcessorName, Progress, Timestamp, Topic, TopicName,
    TopicPartition, TopicSettings, TopicSpec,
};

use super::{open_with, options};
use crate::PostgresOptions;
use crate::engine::PostgresEngine;

pub(super) struct Rig {
    pub(super) one: Arc<PostgresEngine>,
    pub(super) other: Arc<PostgresEngine>,
    pub(super) at: TopicPartition,
    pub(super) output: TopicPartition,
}

impl Rig {
    async fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        Self::with(options(directory.path())).await
    }

    pub(super) async fn with(options: PostgresOptions) -> Self {
        let one = Box::pin(open_with(options.clone())).await;
        let other = Box::pin(open_with(options)).await;
        let place = |topic: Topic| topic.partition(PartitionId(0)).expect("it has one");
        let at = place(make(&one, "in").await);
        let output = place(make(&one, "out").await);
        while other.ends(output).is_err() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        Self {
            one,
            other,
            at,
            output,
        }
    }

    /// Commits as a worker does; whether it went the short way.
    pub(super) async fn work(&self, hold: &Hold, next: u64) -> Result<bool, CommitError> {
        let before = self.one.store.memory.known.taken.load(Ordering::SeqCst);
        let progress = Progress {
            next: Offset(next),
            ..Progress::default()
        };
        let committed = self.one.commit(Transaction {
            appends: vec![Append {
                partition: self.output,
                batch: super::compaction::batch(&[(Some("key"), Some("value"))]),
            }],
            progress: vec![ProgressWrite {
                lease: hold.lease.clone(),
                partition: self.at,
                progress: progress.into(),
            }],
            state: vec![set(hold, Some(&hold.lease), &format!("key {next}"))],
            ..Transaction::default()
        });
        let receipt = committed.await?;
        assert_eq!(receipt.base_offsets.len(), 1);
        let after = self.one.store.memory.known.taken.load(Ordering::SeqCst);
        Ok(after > before)
    }

    pub(super) async fn keys(&self, engine: &dyn Engine, hold: &Hold) -> (u64, Vec<String>) {
        let query = StateQuery {
            entries_max: 100,
            bytes_max: 1 << 20,
            ..StateQuery::default()
        };
        let page = engine.read_state(&hold.lease.group, self.at, &query).await;
        let page = page.expect("readable");
        let keys = page.entries.iter();
        let keys = keys.map(|entry| String::from_utf8_lossy(&entry.key).into_owned());
        (page.as_of.0, keys.collect())
    }
}

async fn make(engine: &PostgresEngine, name: &str) -> Topic {
    let spec = TopicSpec {
        name: TopicName::parse(name).expect("a name"),
        partitions: 1,
        durability: Durability::Os,
        partitioner: None,
        owner: None,
        created_at: Timestamp(1),
        settings: TopicSettings::default(),
    };
    let made = engine.create_topic(spec, Vec::new()).await;
    made.expect("created")
}

fn set(hold: &Hold, lease: Option<&millrace_engine::contract::Lease>, key: &str) -> StateWrite {
    StateWrite {
        group: hold.lease.group.clone(),
        partition: hold.lease.partition,
        lease: lease.cloned(),
        writes: Arc::new(StateWrites {
            resets: false,
            changes: vec![StateChange {
                key: key.as_bytes().into(),
                value: Some(StateValue::new(b"1")),
                ends_at: NEVER,
            }],
            adds: None,
        }),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_commits_in_one_trip_unless_somebody_else_has_written() {
    let rig = Rig::new().await;
    let group = "worker".parse::<ProcessorName>().expect("a name").group();
    let hold = rig.one.hold(&group, rig.at).await.expect("it is there");
    let hold = hold.expect("nobody has it");
    assert!(
        !rig.work(&hold, 1).await.expect("committed"),
        "the chain is not known yet"
    );
    assert!(rig.work(&hold, 2).await.expect("committed"));
    assert!(rig.work(&hold, 3).await.expect("committed"));
    // An operator on another host writes an entry, without a lease.
    let written = rig.other.commit(Transaction {
        state: vec![set(&hold, None, "by an operator")],
        ..Transaction::default()
    });
    written.await.expect("committed");
    // Another host appends to the same partition, which needs no long way.
    let appended = rig.other.commit(Transaction::produce(vec![Append {
        partition: rig.output,
        batch: super::compaction::batch(&[(None, Some("from elsewhere"))]),
    }]));
    let receipt = appended.await.expect("committed");
    assert_eq!(receipt.base_offsets, [Offset(3)]);
    rig.work(&hold, 4).await.expect("committed");
    assert!(rig.work(&hold, 5).await.expect("committed"));
    let keys = [
        "by an operator",
        "key 1",
        "key 2",
        "key 3",
        "key 4",
        "key 5",
    ];
    for engine in [&rig.one, &rig.other] {
        let (next, found) = rig.keys(&**engine, &hold).await;
        assert_eq!(next, 5);
        assert_eq!(found, keys);
        assert_eq!(
            engine
                .store
                .table(&group, rig.at)
                .await
                .expect("readable")
                .table
                .size()
                .entries,
            6
        );
    }
    let messages = rig.other.count(rig.output, Offset(0), Offset(10)).await;
    assert_eq!(messages.expect("counted"), 6);
    // A newer lease, of which this host has not heard.
    let claimed = rig.other.claim(&group, rig.at).await.expect("claimed");
    let refused = rig.work(&hold, 6).await;
    assert!(
        matches!(refused, Err(CommitError::Fenced { .. })),
        "{refused:?}"
    );
    assert_eq!(rig.keys(&*rig.one, &hold).await.0, 5);
    drop(claimed);
    rig.one.close().await;
    rig.other.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_this_host_appended_is_read_without_the_database_until_others_come_between() {
    let rig = Rig::new().await;
    let append = async |engine: &PostgresEngine, value: &str| {
        let batch = super::compaction::batch(&[(None, Some(value)), (None, Some(value))]);
        let partition = rig.output;
        let appended = engine.commit(Transaction::produce(vec![Append { partition, batch }]));
        appended.await.expect("committed").base_offsets[0]
    };
    let hits = || rig.one.store.memory.tail.hits.load(Ordering::SeqCst);
    // From each offset, and with each bound, as the other host reads it.
    let compare = async |from: u64, to: u64| {
        for from in from..to {
            for bytes_max in [1, 150, 1 << 20] {
                let read = rig.one.read(rig.output, Offset(from), bytes_max).await;
                let other = rig.other.read(rig.output, Offset(from), bytes_max).await;
                let (read, other) = (read.expect("readable"), other.expect("readable"));
                assert_eq!(read, other, "from {from}, {bytes_max} bytes");
            }
        }
    };
    append(&rig.one, "a").await;
    append(&rig.one, "b").await;
    let before = hits();
    compare(0, 4).await;
    assert!(hits() > before, "nothing was read from memory");
    let between = append(&rig.other, "c").await;
    while rig.one.ends(rig.output).expect("it exists").end <= between {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    append(&rig.one, "d").await;
    compare(0, 8).await;
    // What is trimmed is gone from memory, too.
    rig.one.trim(rig.output, Offset(7)).await.expect("trimmed");
    let gone = rig.one.read(rig.output, Offset(6), 1).await;
    assert!(gone.is_err(), "{gone:?}");
    rig.one.close().await;
    rig.other.close().await;
}
