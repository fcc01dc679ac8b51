//! What only this engine promises: durability that is said, counts that are checked, and messages that are removed.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::StreamExt as _;

use futures_util::FutureExt as _;
use millrace_engine::contract::{Append, Transaction};
use millrace_engine::state::{NEVER, StateChange, StateQuery, StateValue, StateWrite, StateWrites};
use millrace_engine::{CommitError, Engine, TopicError};
use millrace_model::{
    BatchBuilder, Durability, Message, Offset, PartitionId, ProcessorName, Timestamp, Topic,
    TopicName, TopicPartition, TopicSpec,
};

use super::{open_with, options};
use crate::JetstreamOptions;
use crate::index::Anchor;

pub(super) fn spec(name: &str, durability: Durability) -> TopicSpec {
    TopicSpec {
        name: TopicName::parse(name).expect("a valid name"),
        partitions: 1,
        durability,
        partitioner: None,
        owner: None,
        created_at: Timestamp(0),
        settings: Default::default(),
    }
}

fn first(topic: &Topic) -> TopicPartition {
    topic.partition(PartitionId(0)).expect("it has one")
}

fn produce(at: TopicPartition, value: u32, bytes: usize) -> Transaction {
    let mut builder = BatchBuilder::with_capacity(1);
    builder.push(&Message {
        value: Some(format!("{value:0bytes$}").into_bytes().into()),
        timestamp: Timestamp(1000 + u64::from(value)),
        ..Message::default()
    });
    Transaction::produce(vec![Append {
        partition: at,
        batch: builder.finish().expect("a message"),
    }])
}

async fn send(engine: &dyn Engine, at: TopicPartition, values: std::ops::Range<u32>, bytes: usize) {
    for value in values {
        let committed = engine.commit(produce(at, value, bytes)).await;
        committed.expect("committed");
    }
}

/// All values from an offset on.
async fn values(engine: &dyn Engine, at: TopicPartition, from: u64) -> Vec<u32> {
    let mut values = Vec::new();
    let mut next = Offset(from);
    loop {
        let batches = engine.read(at, next, 100_000).await.expect("readable");
        let Some(last) = batches.last() else {
            return values;
        };
        next = last.end_offset();
        for batch in &batches {
            for record in batch.records().expect("records") {
                let message = record.expect("a record").to_message(batch.bytes());
                let value = message.expect("a message").value.expect("a value");
                let value = String::from_utf8_lossy(&value);
                values.push(value.parse().expect("a number"));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn durable_is_refused_unless_the_servers_are_said_to_be_synced() {
    let directory = tempfile::tempdir().expect("a directory");
    let engine = open_with(JetstreamOptions {
        synced: false,
        ..options(directory.path())
    })
    .await;
    let refused = engine.create_topic(spec("sure", Durability::Durable), Vec::new());
    assert!(matches!(
        refused.await,
        Err(TopicError::Commit(CommitError::NotDurable))
    ));
    let made = engine.create_topic(spec("quick", Durability::Os), Vec::new());
    let at = first(&made.await.expect("made"));
    send(&*engine, at, 0..1, 1).await;
    let sure = Transaction {
        durability: Some(Durability::Durable),
        ..Transaction::default()
    };
    let refused = engine.commit(sure).await;
    assert!(
        matches!(refused, Err(CommitError::NotDurable)),
        "{refused:?}"
    );
    engine.close().await;
}

/// A host that starts does not read what was there before the last counts, and finds all of it when it is asked for.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_starts_begins_at_the_counts_and_finds_what_is_older() {
    let directory = tempfile::tempdir().expect("a directory");
    let engine = open_with(JetstreamOptions {
        checkpoint_interval: Duration::from_secs(3600),
        ..options(directory.path())
    })
    .await;
    let made = engine.create_topic(spec("orders", Durability::Os), Vec::new());
    let at = first(&made.await.expect("made"));
    send(&*engine, at, 0..40, 10_000).await;
    engine.store.write_counts().await.expect("written");
    send(&*engine, at, 40..60, 10_000).await;
    let other = open_with(options(directory.path())).await;
    {
        let heard = other.store.mirror.heard.read();
        let known = heard.partition(at).expect("known");
        assert!(
            known.index.from.offset >= Offset(40),
            "{:?}",
            known.index.from
        );
    }
    assert_eq!(other.ends(at).expect("known").end, Offset(60));
    let expected: Vec<u32> = (0..60).collect();
    assert_eq!(values(&*other, at, 0).await, expected);
    assert_eq!(values(&*other, at, 17).await, expected[17..]);
    assert_eq!(other.count(at, Offset(5), Offset(55)).await.ok(), Some(50));
    let found = other.offset_at(at, Timestamp(1033)).await;
    assert_eq!(found.expect("readable"), Some(Offset(33)));
    engine.close().await;
    other.close().await;
}

/// What is before the start is removed from the stream once everybody has counted it, and not before.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_trimmed_is_removed_once_it_is_counted() {
    let directory = tempfile::tempdir().expect("a directory");
    let engine = open_with(JetstreamOptions {
        counted_after: Duration::from_secs(4),
        checkpoint_interval: Duration::from_secs(3600),
        ..options(directory.path())
    })
    .await;
    let made = engine.create_topic(spec("orders", Durability::Os), Vec::new());
    let at = first(&made.await.expect("made"));
    send(&*engine, at, 0..100, 2_000).await;
    let subject = engine.store.subjects.piece(at);
    let start = engine.trim(at, Offset(70)).await.expect("trimmed");
    assert_eq!(start, Offset(70));
    let mut purged = HashMap::new();
    engine.store.clean(&mut purged).await.expect("cleaned");
    let oldest = || async { engine.store.next(&subject, 1).await.expect("readable") };
    let before = oldest().await.expect("it is there").seq;
    engine.store.write_counts().await.expect("written");
    engine.store.clean(&mut purged).await.expect("cleaned");
    assert_eq!(
        oldest().await.map(|message| message.seq),
        Some(before),
        "the counts are young"
    );
    let mut removed = false;
    for _ in 0..300 {
        engine.store.clean(&mut purged).await.expect("cleaned");
        removed = oldest().await.is_some_and(|message| message.seq > before);
        if removed {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(removed, "it is removed when the counts are old enough");
    let expected: Vec<u32> = (70..100).collect();
    assert_eq!(values(&*engine, at, 70).await, expected);
    let other = open_with(options(directory.path())).await;
    assert_eq!(values(&*other, at, 70).await, expected);
    assert_eq!(other.ends(at).ok(), engine.ends(at).ok());
    engine.close().await;
    other.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_moves_the_start_of_what_is_too_much() {
    let directory = tempfile::tempdir().expect("a directory");
    let engine = open_with(options(directory.path())).await;
    let mut kept = spec("orders", Durability::Os);
    kept.settings.retention_bytes = Some(200_000);
    let made = engine.create_topic(kept, Vec::new());
    let at = first(&made.await.expect("made"));
    send(&*engine, at, 0..100, 10_000).await;
    engine
        .store
        .clean(&mut HashMap::new())
        .await
        .expect("cleaned");
    let start = engine.ends(at).expect("known").start.0;
    assert!((75..90).contains(&start), "{start}");
    let expected: Vec<u32> = (start as u32..100).collect();
    assert_eq!(values(&*engine, at, start).await, expected);
    engine.close().await;
}

/// A table whose changes are many is written whole, and the changes before are removed; whoever reads it finds the same.
#[tokio::test(flavor = "multi_thread")]
async fn state_is_read_from_a_snapshot_and_what_came_after() {
    let directory = tempfile::tempdir().expect("a directory");
    let engine = open_with(options(directory.path())).await;
    let made = engine.create_topic(spec("orders", Durability::Os), Vec::new());
    let at = first(&made.await.expect("made"));
    let group = ProcessorName::parse("sums").expect("a valid name").group();
    let change = |round: u32| StateWrites {
        changes: (0..4)
            .map(|key| StateChange {
                key: format!("key {key}").into_bytes().into(),
                value: Some(StateValue::new(&vec![round as u8; 400_000])),
                ends_at: NEVER,
            })
            .collect(),
        ..StateWrites::default()
    };
    for round in 0..24 {
        let write = Transaction {
            state: vec![StateWrite {
                group: group.clone(),
                partition: at,
                lease: None,
                writes: change(round).into(),
            }],
            ..Transaction::default()
        };
        engine.commit(write).await.expect("committed");
    }
    let snapshot = engine.store.subjects.snapshot(at, &group, 0);
    let snapshot = engine.store.last(&snapshot).await.expect("readable");
    assert!(snapshot.is_some(), "one was written");
    let all = StateQuery {
        entries_max: 100,
        bytes_max: usize::MAX,
        ..StateQuery::default()
    };
    let other = open_with(options(directory.path())).await;
    let page = other.read_state(&group, at, &all).await.expect("readable");
    assert_eq!(page.entries.len(), 4);
    for entry in page.entries {
        assert_eq!(entry.value.as_bytes(), &*vec![23u8; 400_000]);
    }
    let deltas = engine.store.subjects.delta(at, &group);
    let oldest = engine.store.next(&deltas, 1).await.expect("readable");
    let first_delta = oldest.expect("some are there").seq;
    assert!(
        first_delta > 20,
        "those before the last snapshot but one are removed: {first_delta}"
    );
    engine.close().await;
    other.close().await;
}

/// A client that goes away while its request reads a table leaves nothing behind for those who come after.
#[tokio::test(flavor = "multi_thread")]
async fn a_read_of_state_that_is_broken_off_loses_no_change() {
    let directory = tempfile::tempdir().expect("a directory");
    let engine = open_with(options(directory.path())).await;
    let other = open_with(options(directory.path())).await;
    let made = engine.create_topic(spec("orders", Durability::Os), Vec::new());
    let at = first(&made.await.expect("made"));
    let group = ProcessorName::parse("sums").expect("a valid name").group();
    let key = (at, group.clone());
    let write = |name: &'static str| Transaction {
        state: vec![StateWrite {
            group: group.clone(),
            partition: at,
            lease: None,
            writes: StateWrites {
                changes: vec![StateChange {
                    key: name.as_bytes().into(),
                    value: Some(StateValue::new(b"value")),
                    ends_at: NEVER,
                }],
                ..StateWrites::default()
            }
            .into(),
        }],
        ..Transaction::default()
    };
    engine.commit(write("one")).await.expect("committed");
    other.hear().await.expect("heard");
    let loaded = other.store.table(&key).await.expect("readable");
    assert_eq!(loaded.table.size().entries, 1);
    {
        // Nobody else reads it meanwhile.
        let mut as_of = loaded.as_of.lock().await;
        engine.commit(write("two")).await.expect("committed");
        other.hear().await.expect("heard");
        let reading = other.store.catch_up_from(&key, &loaded, &mut as_of);
        assert!(reading.now_or_never().is_none(), "it waits for the server");
    }
    let loaded = other.store.table(&key).await.expect("readable");
    assert_eq!(loaded.table.size().entries, 2);
    engine.close().await;
    other.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_somebody_has_changed_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let mine = options(directory.path());
    let engine = open_with(mine.clone()).await;
    let context = async_nats::jetstream::new(engine.store.client.clone());
    let stream = context.get_stream(&mine.stream).await.expect("it is there");
    let mut config = stream.cached_info().config.clone();
    config.max_age = Duration::from_secs(3600);
    context.update_stream(config).await.expect("updated");
    let clock = std::sync::Arc::new(millrace_model::SystemClock::new());
    let refused = crate::JetstreamEngine::open(mine, clock).await.err();
    let refused = refused.map(|error| error.to_string()).unwrap_or_default();
    assert!(refused.contains("age"), "{refused}");
    engine.close().await;
}

/// Delayed messages and schedules go from host to host.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_whose_clock_is_wrong_goes_by_the_clock_of_the_servers() {
    use millrace_model::{Clock as _, ManualClock, SystemClock};
    const HOUR_MS: u64 = 3_600_000;
    let directory = tempfile::tempdir().expect("a directory");
    let now = || SystemClock::new().wall().0;
    // The stream is there for those who have no second try.
    open_with(options(directory.path())).await.close().await;
    for wrong in [now() - HOUR_MS, now() + HOUR_MS] {
        let clock = std::sync::Arc::new(ManualClock::at(Timestamp(wrong)));
        let opened = crate::JetstreamEngine::open(options(directory.path()), clock.clone()).await;
        let engine = opened.expect("it opens");
        assert!(clock.wall().0.abs_diff(now()) < 60_000);
        // Somebody sets it while the host runs.
        clock.step(HOUR_MS as i64);
        let set_back = async {
            while clock.wall().0.abs_diff(now()) > 60_000 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let set_back = tokio::time::timeout(Duration::from_secs(60), set_back).await;
        set_back.expect("it is corrected");
        engine.close().await;
    }
}

/// In one thread, so that no task of the host has run since it was opened.
#[tokio::test]
async fn a_host_that_has_just_been_opened_is_healthy() {
    let directory = tempfile::tempdir().expect("a directory");
    let engine = open_with(options(directory.path())).await;
    engine.health().await.expect("it has reached the servers");
    engine.close().await;
}

/// A server that was away has old counts, and some of what they do not count may have been removed meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_does_not_begin_with_what_a_server_knows_that_is_behind() {
    let directory = tempfile::tempdir().expect("a directory");
    let engine = open_with(options(directory.path())).await;
    let said = engine.store.say_word().await.expect("said");
    let loaded = crate::feed::load_cells(&engine.store, said).await;
    loaded.expect("the server has what it acknowledged");
    let behind = crate::feed::load_cells(&engine.store, said + 1_000_000).await;
    let behind = behind
        .err()
        .expect("it has not heard this host's last word");
    assert!(behind.to_string().contains("behind"), "{behind}");
    engine.close().await;
}

/// Counts are those of the leader, the newest, and only its own word says that there are none.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_begins_with_the_counts_that_the_leader_has() {
    let directory = tempfile::tempdir().expect("a directory");
    let engine = open_with(JetstreamOptions {
        checkpoint_interval: Duration::from_secs(3600),
        ..options(directory.path())
    })
    .await;
    let store = &engine.store;
    let made = engine.create_topic(spec("orders", Durability::Os), Vec::new());
    let at = first(&made.await.expect("made"));
    let said = store.say_word().await.expect("said");
    let newest = crate::feed::newest_counts(store, said).await;
    let newest = newest.expect("readable");
    assert_eq!((newest.seq, newest.counts.as_of()), (0, 0));
    let mut before = 0;
    for round in 1..4 {
        send(&*engine, at, 0..5, 10).await;
        store.write_counts().await.expect("written");
        let said = store.say_word().await.expect("said");
        let newest = crate::feed::newest_counts(store, said).await;
        let newest = newest.expect("readable");
        assert_eq!(newest.counts.next(at), Offset(5 * round));
        assert!(newest.seq > before);
        before = newest.seq;
    }
    engine.close().await;
}

/// A server that is behind this host has older messages.
#[tokio::test(flavor = "multi_thread")]
async fn a_cell_is_read_as_new_as_this_host_has_heard() {
    let directory = tempfile::tempdir().expect("a directory");
    let engine = open_with(options(directory.path())).await;
    let store = &engine.store;
    let subject = store.subjects.word(store.me);
    let said = store.say_word().await.expect("said");
    // It has heard of more than the leader has.
    store.mirror.reached(said + 20);
    let goes_on = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        for _ in 0..20 {
            store.say_word().await.expect("said");
        }
    };
    let (found, ()) = tokio::join!(store.last(&subject), goes_on);
    let found = found.expect("readable").expect("it is there").seq;
    assert!(found > said, "{found} was before");
    engine.close().await;
}

/// What one host writes, all others begin with. One that has not come to the newest counts of another writes none, and removes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_has_not_compared_its_counts_writes_none_and_removes_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let quiet = JetstreamOptions {
        checkpoint_interval: Duration::from_secs(3600),
        cleaning_interval: Duration::from_secs(3600),
        ..options(directory.path())
    };
    let engine = open_with(quiet).await;
    let store = &engine.store;
    let mut kept = spec("orders", Durability::Os);
    kept.settings.retention_bytes = Some(20_000);
    let made = engine.create_topic(kept, Vec::new());
    let at = first(&made.await.expect("made"));
    send(&*engine, at, 0..30, 10_000).await;
    store.write_counts().await.expect("written");
    let newest = store.mirror.heard.read().agreement.reached();
    let newest = newest.expect("its own");
    // Another host has written some that this one does not know yet.
    store.mirror.heard.write().agreement.know(newest + 1, 0);
    assert!(store.write_counts().await.is_err());
    assert!(store.clean(&mut HashMap::new()).await.is_err());
    assert_eq!(engine.ends(at).expect("known").start, Offset(0));
    let agrees = Some(true);
    store
        .mirror
        .heard
        .write()
        .agreement
        .hear(newest + 1, 0, agrees);
    store.clean(&mut HashMap::new()).await.expect("cleaned");
    assert!(engine.ends(at).expect("known").start > Offset(0));
    // Nor does one that is known to count wrongly.
    store.counting.is_wrong();
    assert!(store.write_counts().await.is_err());
    assert!(store.clean(&mut HashMap::new()).await.is_err());
    engine.close().await;
}

/// A host that counts otherwise than what is written in the stream stops, loses what it holds, counts anew, and serves again.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_counts_wrongly_counts_anew_and_serves_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let forgetful = JetstreamOptions {
        fresh_bytes_max: 0,
        ..options(directory.path())
    };
    let mut hosts = [
        open_with(forgetful.clone()).await,
        open_with(forgetful).await,
    ];
    // The first of them writes the counts.
    hosts.sort_by_key(|host| host.host());
    let [engine, wrong] = hosts;
    let made = engine.create_topic(spec("orders", Durability::Os), Vec::new());
    let at = first(&made.await.expect("made"));
    send(&*engine, at, 0..10, 10).await;
    wrong.hear().await.expect("heard");
    let group = ProcessorName::parse("sums").expect("a valid name").group();
    let hold = wrong.claim(&group, at).await.expect("claimed");
    {
        let mut heard = wrong.store.mirror.heard.write();
        let next = heard.position + 1;
        heard.counts.count(next, at, 7);
    }
    let noticed = async {
        let mut value = 10;
        while !hold.is_lost() {
            send(&*engine, at, value..value + 1, 10).await;
            value += 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        while wrong.health().await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        value
    };
    let noticed = tokio::time::timeout(Duration::from_secs(60), noticed).await;
    let sent = noticed.expect("it serves again");
    wrong.hear().await.expect("heard");
    let ends = wrong.ends(at).expect("known");
    assert_eq!(ends.end, engine.ends(at).expect("known").end);
    let expected: Vec<u32> = (0..sent).collect();
    assert_eq!(values(&*wrong, at, 0).await, expected);
    engine.close().await;
    wrong.close().await;
}

/// What is removed while somebody reads it must not be taken for what follows it.
#[tokio::test(flavor = "multi_thread")]
async fn a_place_whose_messages_were_removed_is_not_where_the_next_ones_are() {
    let directory = tempfile::tempdir().expect("a directory");
    let engine = open_with(JetstreamOptions {
        fresh_bytes_max: 0,
        ..options(directory.path())
    })
    .await;
    let store = &engine.store;
    let made = engine.create_topic(spec("orders", Durability::Os), Vec::new());
    let at = first(&made.await.expect("made"));
    send(&*engine, at, 0..40, 1_000).await;
    store.write_counts().await.expect("written");
    let place = store.anchor_at(at, Offset(5)).await.expect("known");
    let beginnings = store.mirror.heard.read().beginnings;
    assert!(store.is_kept(at, place, beginnings).await.expect("known"));
    engine.trim(at, Offset(20)).await.expect("trimmed");
    assert!(!store.is_kept(at, place, beginnings).await.expect("known"));
    let anchor = store
        .mirror
        .heard
        .read()
        .partition(at)
        .expect("known")
        .anchor;
    assert!(store.is_kept(at, anchor, beginnings).await.expect("known"));
    let later = beginnings + 1;
    assert!(!store.is_kept(at, anchor, later).await.expect("known"));
    // A start that this host has yet to hear of.
    store
        .mirror
        .heard
        .write()
        .partitions
        .get_mut(&at)
        .expect("known")
        .anchor = Anchor::default();
    let start = crate::atomic::Put::cell(store.subjects.start(at), None, Vec::new());
    let start = [start.noted(format!("30 30 {}", anchor.seq + 10))];
    let said = crate::atomic::publish(&store.client, &start, crate::store::random);
    said.await.expect("said");
    assert!(!store.is_kept(at, place, beginnings).await.expect("known"));
    engine.close().await;
}

/// It would give messages the offsets of others.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_counts_otherwise_than_another_reads_nothing_and_commits_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let engine = open_with(options(directory.path())).await;
    let made = engine.create_topic(spec("orders", Durability::Os), Vec::new());
    let at = first(&made.await.expect("made"));
    send(&*engine, at, 0..3, 10).await;
    // It would begin anew at once.
    engine.store.counting.is_wrong();
    let read = engine.read(at, Offset(0), 1000).await.err();
    let counted = engine.count(at, Offset(0), Offset(3)).await.err();
    let found = engine.offset_at(at, Timestamp(0)).await.err();
    for refused in [read, counted, found] {
        let refused = refused.map(|error| error.to_string()).unwrap_or_default();
        assert!(refused.contains("counts them anew"), "{refused}");
    }
    let refused = engine.commit(produce(at, 4, 10)).await;
    assert!(matches!(refused, Err(CommitError::Unavailable(_))));
    assert!(engine.health().await.is_err());
    // Others take over its work, as it does not say that it lives. One of its words may have been on its way.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let said = engine.store.mirror.own_beat();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(engine.store.mirror.own_beat(), said);
    engine.store.counting.begin_anew();
    let served = async {
        while engine.health().await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let served = tokio::time::timeout(Duration::from_secs(60), served).await;
    served.expect("it serves again");
    assert_eq!(values(&*engine, at, 0).await, [0, 1, 2]);
    engine.close().await;
}

/// A place in the index that is not where it says it is: messages would be given the offsets of others.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_where_it_was_counted_is_not_read() {
    let directory = tempfile::tempdir().expect("a directory");
    let engine = open_with(JetstreamOptions {
        fresh_bytes_max: 0,
        ..options(directory.path())
    })
    .await;
    let made = engine.create_topic(spec("orders", Durability::Os), Vec::new());
    let at = first(&made.await.expect("made"));
    send(&*engine, at, 0..40, 10_000).await;
    assert_eq!(values(&*engine, at, 30).await.len(), 10);
    {
        let mut heard = engine.store.mirror.heard.write();
        let index = &mut heard.partitions.get_mut(&at).expect("known").index;
        let block = index.blocks()[1].clone();
        index.note(Anchor {
            offset: block.base.plus(1),
            seq: block.seq - 1,
        });
    }
    let read = engine.read(at, Offset(8), 200_000).await;
    let refused = read.err().map(|error| error.to_string());
    let refused = refused.unwrap_or_default();
    assert!(refused.contains("counted anew"), "{refused}");
    let again = async {
        while engine.read(at, Offset(8), 200_000).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let again = tokio::time::timeout(Duration::from_secs(60), again).await;
    again.expect("it is counted anew");
    let expected: Vec<u32> = (8..40).collect();
    assert_eq!(values(&*engine, at, 8).await, expected);
    engine.close().await;
}

/// A server that stands still as the leader, and goes on when another one leads, refuses what the other one writes.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_former_leader_refuses_and_the_leader_has_written_is_written_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let engine = open_with(options(directory.path())).await;
    let made = engine.create_topic(spec("orders", Durability::Os), Vec::new());
    let at = first(&made.await.expect("made"));
    // It hears everything, and answers at once.
    let store = &engine.store;
    let former = async_nats::connect(super::NATS.urls()[0].clone()).await;
    let former = former.expect("connected");
    let pieces = former.subscribe(store.subjects.piece(at)).await;
    let mut pieces = pieces.expect("subscribed");
    former.flush().await.expect("it is known");
    let refuses = async {
        let mut refused = 0;
        for number in [10071, 10176, 10164, 10071, 10008].into_iter().cycle() {
            let piece: async_nats::Message = pieces.next().await.expect("it goes on");
            let Some(reply) = piece.reply else { continue };
            let error = format!("{{\"error\":{{\"code\":400,\"err_code\":{number}}}}}");
            former.publish(reply, error.into()).await.expect("sent");
            former.flush().await.expect("sent");
            refused += 1;
            tracing::trace!(refused);
        }
    };
    let sends = async {
        let mut acknowledged = Vec::new();
        for value in 0..20 {
            if engine.commit(produce(at, value, 10)).await.is_ok() {
                acknowledged.push(value);
            }
        }
        acknowledged
    };
    let acknowledged = tokio::select! {
        () = refuses => unreachable!("it goes on"),
        acknowledged = sends => acknowledged,
    };
    assert_eq!(acknowledged, (0..20).collect::<Vec<_>>());
    assert_eq!(values(&*engine, at, 0).await, acknowledged);
    engine.close().await;
}
