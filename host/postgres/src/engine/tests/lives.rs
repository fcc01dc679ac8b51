//! A database that has forgotten its last commits: whoever remembers them goes by what is there.

use std::path::Path;
use std::time::Duration;

use millrace_engine::{Append, CommitError, Engine as _, Hold, Transaction};
use millrace_model::{
    GroupName, Offset, PartitionId, ProcessorName, Topic, TopicPartition, TopicSettings,
};

use sqlx::{Executor as _, Row as _};

use super::compaction::batch;
use super::own::topic;
use super::server::{self, Postgres};
use super::short::Rig;
use crate::PostgresOptions;
use crate::engine::PostgresEngine;

fn options(server: &Postgres) -> PostgresOptions {
    PostgresOptions {
        url: server.url(),
        heartbeat_interval: Duration::from_millis(100),
        poll_interval: Duration::from_millis(200),
        ..super::options(Path::new("lives"))
    }
}

fn worker() -> GroupName {
    "worker".parse::<ProcessorName>().expect("a name").group()
}

/// Tries until the database is reached.
async fn reached<T, F>(attempt: impl Fn() -> F) -> Result<T, CommitError>
where
    F: Future<Output = Result<T, CommitError>>,
{
    let trying = async {
        loop {
            match attempt().await {
                Err(CommitError::Unavailable(_) | CommitError::InDoubt(_)) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                done => return done,
            }
        }
    };
    let done = tokio::time::timeout(Duration::from_secs(60), trying).await;
    done.expect("the database is reached again")
}

async fn held(engine: &PostgresEngine, group: &GroupName, at: TopicPartition) -> Hold {
    let hold = reached(|| engine.hold(group, at)).await;
    hold.expect("it is there").expect("nobody has it")
}

/// Appends one message; returns its offset.
async fn send(engine: &PostgresEngine, partition: TopicPartition, text: &str) -> u64 {
    let append = || {
        let batch = batch(&[(None, Some(text))]);
        engine.commit(Transaction::produce(vec![Append { partition, batch }]))
    };
    let receipt = reached(append).await.expect("committed");
    receipt.base_offsets[0].0
}

/// All messages, as an engine reads them.
async fn texts(engine: &PostgresEngine, partition: TopicPartition) -> Vec<String> {
    let mut texts = Vec::new();
    let mut from = Offset(0);
    loop {
        let batches = engine.read(partition, from, 1 << 20).await;
        let batches = batches.expect("readable");
        let Some(last) = batches.last() else {
            return texts;
        };
        from = last.end_offset();
        for batch in &batches {
            for view in batch.records().expect("records") {
                let view = view.expect("a record");
                let message = view.to_message(batch.bytes()).expect("a message");
                let value = message.value.unwrap_or_default();
                texts.push(String::from_utf8_lossy(&value).into_owned());
            }
        }
    }
}

/// Waits until it knows this end, and it is the end.
async fn ends_at(engine: &PostgresEngine, partition: TopicPartition, end: u64) {
    let known = async {
        while engine.ends(partition).map(|ends| ends.end).ok() != Some(Offset(end)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let known = tokio::time::timeout(Duration::from_secs(60), known).await;
    let ends = engine.ends(partition);
    known.unwrap_or_else(|_| panic!("the end is {end}, and not {ends:?}"));
}

async fn close(rig: Rig) {
    rig.one.close().await;
    rig.other.close().await;
}

fn first(topic: &Topic) -> TopicPartition {
    topic.partition(PartitionId(0)).expect("it has one")
}

/// Whatever the clock says: the first is lost when the second begins.
#[tokio::test]
async fn two_lives_that_begin_from_the_same_one_have_different_numbers() {
    let server = server::start();
    let rig = Rig::with(options(&server)).await;
    let pool = &rig.one.store.pool;
    let begun_from = async |number: &'static str| -> i64 {
        let mut lost = pool.begin().await.expect("begun");
        let before = format!("update life set started_at = 'epoch', number = {number}");
        let before = sqlx::raw_sql(sqlx::AssertSqlSafe(before));
        lost.execute(before).await.expect("executed");
        let ask = sqlx::query("select current_life() as life");
        let life = lost.fetch_one(ask).await.expect("asked").get("life");
        lost.rollback().await.expect("undone");
        life
    };
    for _ in 0..3 {
        let first = begun_from("number").await;
        assert!(first < begun_from("number").await, "later ones are higher");
    }
    const AHEAD: i64 = 9_000_000_000_000_000;
    let ahead = [
        begun_from("9000000000000000").await,
        begun_from("9000000000000000").await,
    ];
    assert!(ahead[0] != ahead[1] && ahead.iter().all(|life| *life > AHEAD));
    close(rig).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_copy_of_the_database_is_gone_on_with_as_it_is() {
    let server = server::start();
    let rig = Rig::with(options(&server)).await;
    let Rig {
        one,
        other,
        at,
        output,
    } = &rig;
    let again = |meanwhile: &str| {
        let started = server.start_again("fast", meanwhile);
        started.expect("it starts again");
    };
    for number in 0..5 {
        send(one, *at, &format!("kept {number}")).await;
    }
    let group = worker();
    let hold = held(one, &group, *at).await;
    for next in 1..=2 {
        reached(|| rig.work(&hold, next)).await.expect("committed");
    }
    again("rm -rf older && cp -a data older");
    // Nothing is lost yet, but a host cannot know that: leases are void, and everything goes on.
    let fenced = reached(|| rig.work(&hold, 3)).await;
    assert!(
        matches!(fenced, Err(CommitError::Fenced { .. })),
        "{fenced:?}"
    );
    // Nobody has the work, although the host that had it lives.
    let free = held(other, &group, *at).await;
    other.release(free).await.expect("given back");
    let hold = held(one, &group, *at).await;
    for next in 3..=6 {
        reached(|| rig.work(&hold, next)).await.expect("committed");
    }
    let late: GroupName = "late".parse::<ProcessorName>().expect("a name").group();
    let late_hold = held(one, &late, *at).await;
    let producer = reached(|| one.init_producer(None)).await.expect("given");
    let gone = first(&topic(one, "gone", TopicSettings::default()).await);
    for number in 0..10 {
        send(one, gone, &format!("gone {number}")).await;
        send(one, *at, &format!("lost {number}")).await;
    }
    for engine in [one, other] {
        ends_at(engine, *at, 15).await;
        ends_at(engine, *output, 6).await;
        assert_eq!(rig.keys(&**engine, &hold).await.0, 6);
    }
    let epochs = [hold.lease.epoch, late_hold.lease.epoch];

    again("rm -rf data && cp -a older data");
    // The one host gives the offsets to other messages before the other one has looked.
    assert_eq!(send(one, *at, "new").await, 5);
    for engine in [one, other] {
        ends_at(engine, *at, 6).await;
        ends_at(engine, *output, 2).await;
        assert!(engine.topic(&"gone".parse().expect("a name")).is_none());
        let kept = ["kept 0", "kept 1", "kept 2", "kept 3", "kept 4", "new"];
        assert_eq!(texts(engine, *at).await, kept);
    }
    for hold in [&hold, &late_hold] {
        assert!(hold.is_lost());
    }
    // The lease is of progress that is not there.
    let fenced = reached(|| rig.work(&hold, 7)).await;
    assert!(
        matches!(fenced, Err(CommitError::Fenced { .. })),
        "{fenced:?}"
    );
    let hold = held(one, &group, *at).await;
    let late_hold = held(other, &late, *at).await;
    for (hold, before) in [(&hold, epochs[0]), (&late_hold, epochs[1])] {
        assert!(hold.lease.epoch > before, "an epoch is given twice");
    }
    for engine in [one, other] {
        let (next, keys) = rig.keys(&**engine, &hold).await;
        assert_eq!(
            (next, &keys[..]),
            (2, &["key 1", "key 2"].map(String::from)[..])
        );
    }
    // Another topic may get the id; nothing of the one before shows.
    let anew = first(&topic(other, "anew", TopicSettings::default()).await);
    assert_eq!(anew, gone, "the id is given again");
    assert_eq!(send(other, anew, "anew").await, 0);
    for next in 3..=4 {
        reached(|| rig.work(&hold, next)).await.expect("committed");
    }
    for engine in [one, other] {
        ends_at(engine, anew, 1).await;
        assert_eq!(texts(engine, anew).await, ["anew"]);
        ends_at(engine, *output, 4).await;
        let (next, keys) = rig.keys(&**engine, &hold).await;
        assert_eq!((next, keys.len()), (4, 4));
    }
    let later = reached(|| other.init_producer(None)).await.expect("given");
    assert!(later.id > producer.id, "a number is given twice");
    close(rig).await;
}

/// The server itself goes on; its processes that write are stopped first, so that nothing reaches the disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_that_loses_commits_voids_what_was_decided_on_them() {
    let server = server::start_with("echo 'autovacuum = off' >>data/postgresql.conf");
    // Notifications and heartbeats would wait for the disk, and what was committed before with them.
    server
        .sql("alter database postgres set synchronous_commit = off")
        .expect("set");
    let started = || {
        let asked = server.sql("select pg_postmaster_start_time()");
        asked.ok()
    };
    let before = started();
    let rig = Rig::with(options(&server)).await;
    let Rig {
        one,
        other,
        at,
        output,
    } = &rig;
    let group = worker();
    let hold = held(one, &group, *at).await;
    for next in 1..=2 {
        reached(|| rig.work(&hold, next)).await.expect("committed");
        send(one, *at, "kept").await;
    }
    server.sql("checkpoint").expect("written");
    let writers = "select string_agg(pid::text, ' ') from pg_stat_activity \
        where backend_type in ('walwriter', 'background writer', 'checkpointer')";
    let writers = server.sql(writers).expect("they run");
    let signal = |signal: &str| {
        let mut kill = std::process::Command::new("kill");
        let killed = kill.arg(signal).args(writers.split(' ')).status();
        assert!(killed.expect("kill runs").success());
    };
    signal("-STOP");
    for next in 3..=5 {
        reached(|| rig.work(&hold, next)).await.expect("committed");
        send(one, *at, "lost").await;
    }
    for engine in [one, other] {
        ends_at(engine, *output, 5).await;
        assert_eq!(rig.keys(&**engine, &hold).await.0, 5);
    }
    signal("-KILL");
    // It may take some more until the server has noticed.
    let fenced = reached(async || match rig.work(&hold, 6).await {
        Ok(_) => Err(CommitError::Unavailable("not yet".into())),
        refused => refused,
    });
    let fenced = fenced.await;
    assert!(
        matches!(fenced, Err(CommitError::Fenced { .. })),
        "{fenced:?}"
    );
    assert_eq!(
        started(),
        before,
        "it has not started anew, by its own account"
    );
    assert_eq!(send(other, *at, "new").await, 2, "the others are lost");
    let hold = held(one, &group, *at).await;
    reached(|| rig.work(&hold, 3)).await.expect("committed");
    for engine in [one, other] {
        ends_at(engine, *output, 3).await;
        ends_at(engine, *at, 3).await;
        assert_eq!(texts(engine, *at).await, ["kept", "kept", "new"]);
        let (next, keys) = rig.keys(&**engine, &hold).await;
        assert_eq!((next, keys.len()), (3, 3));
    }
    close(rig).await;
}
