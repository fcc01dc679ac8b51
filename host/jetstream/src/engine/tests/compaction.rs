//! Compaction as the stream shows it, besides what all engines promise.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use millrace_engine::Engine;
use millrace_engine::conformance::compaction::{Rig, batch, expected};
use millrace_engine::contract::{Append, RequestMark, Transaction};
use millrace_model::{Offset, TopicPartition};

use super::{open_with, options};
use crate::JetstreamOptions;
use crate::engine::JetstreamEngine;

/// It looks often what is to be done.
fn often(directory: &Path) -> JetstreamOptions {
    JetstreamOptions {
        cleaning_interval: Duration::from_millis(30),
        ..options(directory)
    }
}

/// And soon removes what everybody has counted.
fn removing(directory: &Path) -> JetstreamOptions {
    JetstreamOptions {
        counted_after: Duration::from_secs(3),
        ..often(directory)
    }
}

async fn open(directory: PathBuf) -> Arc<dyn Engine> {
    open_with(often(&directory)).await
}

millrace_engine::compaction_tests!(open);

struct InStream {
    directory: tempfile::TempDir,
    engine: Arc<JetstreamEngine>,
    rig: Rig,
}

impl InStream {
    async fn new(options: impl FnOnce(&Path) -> JetstreamOptions) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let engine = open_with(options(directory.path())).await;
        let rig = Rig::new(engine.clone()).await;
        Self {
            directory,
            engine,
            rig,
        }
    }

    /// Subjects and how many messages they have.
    async fn listed(&self, filter: String) -> Vec<(String, usize)> {
        let listed = self.engine.store.stream.info_with_subjects(filter).await;
        let listed = listed.expect("an answer");
        listed.try_collect().await.expect("an answer")
    }

    async fn is_gone(&self, filter: &str) {
        let gone = async {
            while !self.listed(filter.to_owned()).await.is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let gone = tokio::time::timeout(Duration::from_secs(60), gone).await;
        gone.expect("it is removed");
    }

    fn piece(&self) -> String {
        self.engine.store.subjects.piece(self.rig.at)
    }

    fn compacted(&self) -> String {
        self.engine.store.subjects.all_compacted(self.rig.at)
    }
}

/// Only by hand.
fn seldom(directory: &Path) -> JetstreamOptions {
    JetstreamOptions {
        cleaning_interval: Duration::from_secs(3600),
        ..often(directory)
    }
}

async fn compact(engine: &JetstreamEngine) {
    engine.store.compact(&mut Default::default()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_is_read_by_every_host_and_the_rest_goes() {
    // Any of them may be the one that compacts.
    let stream = InStream::new(removing).await;
    let other = open_with(removing(stream.directory.path())).await;
    for value in ["a0", "a1", "a2"] {
        stream.rig.put("a", Some(value)).await;
    }
    stream.rig.put("b", Some("b0")).await;
    let left = expected(&[(2, "a", "a2"), (3, "b", "b0")]);
    stream.rig.comes_to(&left).await;
    stream.is_gone(&stream.piece()).await;
    let listed = stream.listed(stream.compacted()).await;
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!(listed[0].1, 2, "{listed:?}");
    other.hear().await.expect("the store is there");
    let late = open_with(removing(stream.directory.path())).await;
    for host in [&other, &late] {
        let ends = host.ends(stream.rig.at).expect("known");
        assert_eq!((ends.start, ends.end), (Offset(0), Offset(4)));
        let counted = host.count(stream.rig.at, Offset(0), Offset::MAX).await;
        assert_eq!(counted.expect("counted"), 2);
        assert_eq!(offsets(host, stream.rig.at, 0).await, [2, 3]);
        assert_eq!(offsets(host, stream.rig.at, 3).await, [3]);
    }
    // More, on any host.
    stream.rig.put("b", Some("b1")).await;
    let left = expected(&[(2, "a", "a2"), (4, "b", "b1")]);
    stream.rig.comes_to(&left).await;
    late.hear().await.expect("the store is there");
    assert_eq!(offsets(&late, stream.rig.at, 0).await, [2, 4]);
    for host in [other, late, stream.engine.clone()] {
        host.close().await;
    }
}

async fn offsets(host: &JetstreamEngine, at: TopicPartition, from: u64) -> Vec<u64> {
    let batches = host.read(at, Offset(from), 1 << 20).await;
    let batches = batches.expect("readable");
    let records = batches
        .iter()
        .filter(|batch| !batch.is_control())
        .flat_map(|batch| batch.records().expect("plain"));
    let offsets = records.map(|record| record.expect("readable").offset.0);
    offsets.filter(|offset| *offset >= from).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_moves_through_what_was_compacted_and_beyond_it() {
    let stream = InStream::new(seldom).await;
    let at = stream.rig.at;
    for key in ["a", "b", "a", "c"] {
        stream.rig.put(key, Some(key)).await;
    }
    compact(&stream.engine).await;
    stream.rig.put("d", Some("d")).await;
    assert_eq!(offsets(&stream.engine, at, 0).await, [1, 2, 3]);
    let trimmed = stream.engine.trim(at, Offset(2)).await;
    assert_eq!(trimmed.expect("trimmed"), Offset(2));
    assert!(stream.engine.read(at, Offset(1), 1).await.is_err());
    assert_eq!(offsets(&stream.engine, at, 2).await, [2, 3]);
    assert_eq!(offsets(&stream.engine, at, 4).await, [4]);
    let counted = stream.engine.count(at, Offset(0), Offset::MAX).await;
    assert_eq!(counted.expect("counted"), 3);
    let again = open_with(seldom(stream.directory.path())).await;
    assert_eq!(again.ends(at).expect("known").start, Offset(2));
    assert_eq!(offsets(&again, at, 2).await, [2, 3]);
    again.close().await;
    let trimmed = stream.engine.trim(at, Offset(4)).await;
    assert_eq!(trimmed.expect("trimmed"), Offset(4));
    assert_eq!(offsets(&stream.engine, at, 4).await, [4]);
    stream.is_gone(&stream.compacted()).await;
    stream.engine.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pass_that_was_broken_off_leaves_nothing_and_one_that_was_overtaken_changes_nothing() {
    let stream = InStream::new(seldom).await;
    let (store, at) = (&stream.engine.store, stream.rig.at);
    for key in ["a", "b", "a"] {
        stream.rig.put(key, Some(key)).await;
    }
    // What another host has written that has ended since, or is slow.
    let leftover = crate::atomic::Put {
        subject: store.subjects.compacted(at, 7),
        note: "0 1 1 1 0 0 0".to_owned(),
        ..Default::default()
    };
    store.write(&[leftover]).await.expect("written");
    let begun = {
        let heard = store.mirror.heard.read();
        heard.partition(at).expect("known").beginning()
    };
    compact(&stream.engine).await;
    let listed = stream.listed(stream.compacted()).await;
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert!(!listed[0].0.ends_with(".7"), "{listed:?}");
    let late = crate::heard::Beginning {
        compacted: Some(Arc::new(crate::compacted::Compacted::new(
            7,
            (1, 1),
            None,
            0,
        ))),
        ..begun
    };
    let refused = store.write(&[store.start_put(at, late)]).await;
    assert!(refused.is_err(), "{refused:?}");
    assert_eq!(offsets(&stream.engine, at, 0).await, [1, 2]);
    // A topic that is deleted takes it along.
    let name = stream.rig.topic.spec.name.clone();
    let deleted = stream.engine.delete_topic(&name, Vec::new()).await;
    deleted.expect("deleted");
    stream.is_gone(&stream.compacted()).await;
    stream.engine.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_and_what_follows_it_stays_as_it_is() {
    let stream = InStream::new(seldom).await;
    let (store, at) = (&stream.engine.store, stream.rig.at);
    for key in ["a", "a", "b"] {
        stream.rig.put(key, Some(key)).await;
    }
    let damaged = crate::atomic::Put {
        subject: stream.piece(),
        note: "0 1 1 1 1700000000000".to_owned(),
        body: "no batch".into(),
        ..Default::default()
    };
    store.write(&[damaged]).await.expect("written");
    stream.rig.put("b", Some("b1")).await;
    compact(&stream.engine).await;
    assert_eq!(offsets(&stream.engine, at, 0).await, [1, 2]);
    assert!(stream.engine.read(at, Offset(3), 1).await.is_err());
    assert_eq!(offsets(&stream.engine, at, 4).await, [4]);
    stream.engine.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_repeated_after_compaction_is_told_the_offset_that_it_had() {
    let stream = InStream::new(seldom).await;
    let at = stream.rig.at;
    let request = |number: u8, key: &str| {
        let append = Append {
            partition: at,
            batch: batch(&[(Some(key), Some("value"))]),
        };
        Transaction {
            request: Some(RequestMark {
                topic: at.topic,
                key: [number; 16],
                fingerprint: [number; 16],
                note: Default::default(),
            }),
            ..Transaction::produce(vec![append])
        }
    };
    for (number, key) in (0..).zip(["a", "b", "a", "b", "a"]) {
        let committed = stream.engine.commit(request(number, key)).await;
        let offsets = committed.expect("committed").base_offsets;
        assert_eq!(offsets, [Offset(u64::from(number))]);
    }
    // Twice: what the first pass knows, the second one keeps.
    for more in 5..7 {
        compact(&stream.engine).await;
        let committed = stream.engine.commit(request(more, "a")).await;
        committed.expect("committed");
    }
    compact(&stream.engine).await;
    let other = open_with(seldom(stream.directory.path())).await;
    for host in [&stream.engine, &other] {
        assert_eq!(offsets(host, at, 0).await, [3, 6]);
        for number in 0..7 {
            let again = host.commit(request(number, "a")).await.expect("repeated");
            assert!(again.repeated);
            assert_eq!(again.base_offsets, [Offset(u64::from(number))]);
        }
        host.close().await;
    }
}
