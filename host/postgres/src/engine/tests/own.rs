//! Promises of this engine besides those of every engine.

use std::sync::Arc;
use std::time::Duration;

use millrace_engine::{Append, CommitError, Engine, TopicChange, Transaction};
use millrace_model::{
    BatchBuilder, Durability, Header, Message, Offset, PartitionId, SystemClock, Timestamp, Topic,
    TopicName, TopicSettings, TopicSpec,
};
use sqlx::{Connection as _, Executor as _, Row as _};

use super::{open_with, options};
use crate::connect::{MIGRATIONS, Migration, SCHEMA_VERSION, connect_options, make_schema};
use crate::engine::PostgresEngine;
use crate::hosts::Session;
use crate::{OpenError, PostgresOptions};

async fn open(directory: &tempfile::TempDir) -> Arc<PostgresEngine> {
    open_with(PostgresOptions {
        cleaning_interval: Duration::from_millis(50),
        ..options(directory.path())
    })
    .await
}

pub(super) async fn topic(engine: &PostgresEngine, name: &str, settings: TopicSettings) -> Topic {
    let spec = TopicSpec {
        name: TopicName::parse(name).expect("a name"),
        partitions: 1,
        durability: Durability::Os,
        partitioner: None,
        owner: None,
        created_at: Timestamp(1),
        settings,
    };
    engine
        .create_topic(spec, Vec::new())
        .await
        .expect("created")
}

pub(super) async fn produce(engine: &PostgresEngine, topic: &Topic, at: u64, values: &[&str]) {
    let mut builder = BatchBuilder::with_capacity(64);
    for value in values {
        builder.push(&Message {
            key: Some("key".into()),
            value: Some(value.as_bytes().to_vec().into()),
            headers: vec![Header {
                name: "kind".into(),
                value: Some("test".into()),
            }],
            timestamp: Timestamp(at),
        });
    }
    let append = Append {
        partition: topic.partition(PartitionId(0)).expect("it has one"),
        batch: builder.finish().expect("messages"),
    };
    let committed = engine.commit(Transaction::produce(vec![append])).await;
    committed.expect("committed");
}

async fn starts_at(engine: &PostgresEngine, topic: &Topic, start: u64) {
    let at = topic.partition(PartitionId(0)).expect("it has one");
    let moved = async {
        while engine.ends(at).expect("it exists").start < Offset(start) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let moved = tokio::time::timeout(Duration::from_secs(60), moved).await;
    moved.expect("the start moves");
    assert_eq!(engine.ends(at).expect("it exists").start, Offset(start));
}

pub(super) async fn rows(engine: &PostgresEngine, sql: &'static str) -> i64 {
    let row = engine.store.pool.fetch_one(sqlx::query(sql)).await;
    row.expect("a row").get(0)
}

fn now() -> u64 {
    use millrace_model::Clock as _;
    SystemClock::new().wall().0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_old_goes_and_the_rest_stays() {
    let directory = tempfile::tempdir().expect("a directory");
    let engine = open(&directory).await;
    let hour = 3_600_000;
    let settings = TopicSettings {
        retention_ms: Some(hour),
        ..TopicSettings::default()
    };
    let orders = topic(&engine, "orders", settings).await;
    produce(&engine, &orders, now() - 2 * hour, &["old", "older"]).await;
    // A message's own time in the future keeps nothing for ever, and one without a time goes by that of its commit.
    produce(&engine, &orders, 0, &["now"]).await;
    produce(&engine, &orders, now() - 2 * hour, &["late"]).await;
    starts_at(&engine, &orders, 2).await;
    let gone = async {
        while rows(&engine, "select count(*) from run_1").await > 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let gone = tokio::time::timeout(Duration::from_secs(60), gone).await;
    gone.expect("their rows go");
    engine.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_keeps_no_more_than_its_bytes() {
    let directory = tempfile::tempdir().expect("a directory");
    let engine = open(&directory).await;
    let orders = topic(&engine, "orders", TopicSettings::default()).await;
    let value = "x".repeat(1000);
    for _ in 0..10 {
        produce(&engine, &orders, now(), &[&value]).await;
    }
    let settings = TopicSettings {
        retention_bytes: Some(5_500),
        ..TopicSettings::default()
    };
    let change = TopicChange {
        settings: Some(settings),
        ..TopicChange::default()
    };
    let changed = engine.change_topic(&orders.spec.name, change).await;
    changed.expect("changed");
    starts_at(&engine, &orders, 5).await;
    engine.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_are_seen_in_sql() {
    let directory = tempfile::tempdir().expect("a directory");
    let engine = open(&directory).await;
    let orders = topic(&engine, "orders", TopicSettings::default()).await;
    topic(&engine, "other", TopicSettings::default()).await;
    produce(&engine, &orders, 1_700_000_000_123, &["one", "two"]).await;
    produce(&engine, &orders, 1_700_000_000_124, &["three"]).await;
    let asked = sqlx::query(
        "select partition, \"offset\", key, payload, headers ->> 'kind' as kind, (extract(epoch from created_at) * 1000)::bigint as ms \
         from broker_messages where topic = 'orders' order by \"offset\"",
    );
    let found = engine.store.pool.fetch_all(asked).await.expect("rows");
    let found: Vec<(i32, i64, String, String, String, i64)> = found
        .iter()
        .map(|row| {
            (
                row.get(0),
                row.get(1),
                row.get(2),
                row.get(3),
                row.get(4),
                row.get(5),
            )
        })
        .collect();
    let expected = [("one", 123), ("two", 123), ("three", 124)];
    let expected = expected.iter().enumerate().map(|(offset, (value, ms))| {
        let at = 1_700_000_000_000 + ms;
        (
            0,
            offset as i64,
            "key".to_owned(),
            (*value).to_owned(),
            "test".to_owned(),
            at,
        )
    });
    assert_eq!(found, expected.collect::<Vec<_>>());
    let within = "select count(*) from messages('orders', 0, 1, 2)";
    assert_eq!(rows(&engine, within).await, 1);
    // As somebody who does not have the schema in the search path.
    let stranger = sqlx::PgConnection::connect_with(&engine.store.connect.options).await;
    let mut stranger = stranger.expect("connected");
    let schema = &engine.store.options.schema;
    for (asked, count) in [
        ("broker_messages where topic = 'orders'", 3),
        ("messages('orders', 0)", 3),
        ("consumer_offsets", 0),
        ("broker_dlq", 0),
    ] {
        let sql = format!("select count(*) from {schema}.{asked}");
        let row = stranger.fetch_one(sqlx::query(sqlx::AssertSqlSafe(sql)));
        let row = row.await.expect(asked);
        assert_eq!(row.get::<i64, _>(0), count, "{asked}");
    }
    engine.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_of_newer_hosts_is_used_if_they_say_so_and_otherwise_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let engine = open(&directory).await;
    let clock = || Arc::new(SystemClock::new());
    let write = async |sql: &'static str| {
        let written = engine.store.pool.execute(sqlx::query(sql)).await;
        written.expect("written");
    };
    // A newer host has added something. One that knows nothing of it may work beside.
    write("update meta set value = 99 where name = 'schema'").await;
    let beside = PostgresEngine::open(options(directory.path()), clock()).await;
    beside.expect("an older host may join").close().await;
    write("insert into meta values ('schema_min', 99)").await;
    let refused = PostgresEngine::open(options(directory.path()), clock()).await;
    assert!(matches!(
        refused.err(),
        Some(OpenError::SchemaVersion {
            found: 99,
            needed: 99,
            known: SCHEMA_VERSION
        })
    ));
    // One that stood still while that happened gets no session any more.
    let refused = engine.store.connect.session().await.err();
    let refused = refused.map(|error| error.to_string()).unwrap_or_default();
    assert!(refused.contains("run a newer one"), "{refused}");
    engine.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_is_brought_up_to_date_once_and_never_under_hosts_that_could_not_go_on() {
    const MORE: Migration = Migration::new("create table more (n int)", true);
    const OTHERWISE: Migration = Migration::new("alter table more rename n to m", false);
    let directory = tempfile::tempdir().expect("a directory");
    let engine = open(&directory).await;
    let then = |more: &[Migration]| [&MIGRATIONS[..], more].concat();
    let migrate = async |migrations: &[Migration]| {
        let mut session = engine.store.connect.session().await.expect("connected");
        make_schema(&mut session, &engine.store.options, migrations).await
    };
    let version = "select value from meta where name = 'schema'";
    for _ in 0..2 {
        migrate(&then(&[MORE]))
            .await
            .expect("it is added beside a host");
        assert_eq!(rows(&engine, version).await, SCHEMA_VERSION + 1);
    }
    assert_eq!(rows(&engine, "select count(*) from more").await, 0);
    let refused = migrate(&then(&[MORE, OTHERWISE])).await.err();
    assert!(matches!(refused, Some(OpenError::OlderHosts { others: 1 })));
    assert_eq!(
        rows(&engine, version).await,
        SCHEMA_VERSION + 1,
        "nothing has changed"
    );
    let mut later = engine.store.connect.session().await.expect("connected");
    engine.close().await;
    let migrated = make_schema(&mut later, &engine.store.options, &then(&[MORE, OTHERWISE])).await;
    migrated.expect("no host lives");
    let needed = sqlx::query("select value from meta where name = 'schema_min'");
    let needed = later.fetch_one(needed).await.expect("a row");
    assert_eq!(needed.get::<i64, _>(0), SCHEMA_VERSION + 2);
    let refused = make_schema(&mut later, &engine.store.options, &then(&[MORE])).await;
    let refused = refused
        .expect_err("it knows the version before")
        .to_string();
    assert!(refused.contains("run a newer host on it"), "{refused}");
}

#[test]
fn names_that_need_quotes_are_refused() {
    for schema in ["", "a b", "Ab", "1a", "a\"b", "pg_queue", &"a".repeat(41)] {
        let options = PostgresOptions {
            schema: schema.to_owned(),
            ..PostgresOptions::default()
        };
        let refused = connect_options(&options, "name");
        assert!(
            matches!(refused.err(), Some(OpenError::Schema(_))),
            "{schema:?}"
        );
    }
}

/// Each refusal says what can be done now.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_is_not_let_in_is_told_why_and_what_to_do() {
    let directory = tempfile::tempdir().expect("a directory");
    let options = options(directory.path());
    let open = async |options: &PostgresOptions| {
        let opened = PostgresEngine::open(options.clone(), Arc::new(SystemClock::new())).await;
        opened.err().map(|error| error.to_string())
    };
    let (user, rest) = options.url.split_once('@').expect("it names its user");
    let (host, parameters) = rest.split_once("/postgres").expect("it names its database");
    let other = PostgresOptions {
        url: format!("{user}@{host}/nowhere{parameters}"),
        ..options.clone()
    };
    let refused = open(&other).await.expect("there is no such database");
    assert!(refused.contains("\"nowhere\" does not exist"), "{refused}");
    assert!(
        refused.contains("create it, or correct the name"),
        "{refused}"
    );
    let other = PostgresOptions {
        url: format!("postgres://nobody:s3cret@{rest}"),
        ..options.clone()
    };
    let refused = open(&other).await.expect("there is no such role");
    assert!(
        refused.contains("check the user and the password"),
        "{refused}"
    );
    assert!(!refused.contains("s3cret"), "{refused}");

    let connect = connect_options(&options, "test").expect("options");
    let session = sqlx::PgConnection::connect_with(&connect).await;
    let mut session = session.expect("connected");
    let schema = &options.schema;
    let make = format!("create schema {schema}; create table {schema}.meta (n int)");
    let make = sqlx::raw_sql(sqlx::AssertSqlSafe(make));
    session.execute(make).await.expect("made");
    let refused = open(&options).await.expect("the schema is another's");
    assert!(refused.contains("has tables of others in it"), "{refused}");
    let empty = sqlx::raw_sql(sqlx::AssertSqlSafe(format!("drop table {schema}.meta")));
    session.execute(empty).await.expect("dropped");
    assert_eq!(open(&options).await, None, "an empty one is taken");
}

/// The session that locks of a stopped host are in ends, and nothing that it left unfinished has taken effect.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_are_ended_by_others_are_made_anew() {
    let directory = tempfile::tempdir().expect("a directory");
    let engine = open(&directory).await;
    let orders = topic(&engine, "orders", TopicSettings::default()).await;
    let connection = engine.store.connect.session().await;
    let mut connection = connection.expect("connected");
    let mut sent = 0;
    for _ in 0..5 {
        let end = sqlx::query(
            "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = current_setting('application_name') \
             and pid <> pg_backend_pid()",
        );
        connection.fetch_one(end).await.expect("ended");
        for _ in 0..5 {
            let mut builder = BatchBuilder::with_capacity(64);
            builder.push(&Message {
                value: Some(format!("{sent}").into()),
                ..Message::default()
            });
            let append = Append {
                partition: orders.partition(PartitionId(0)).expect("it has one"),
                batch: builder.finish().expect("a message"),
            };
            match engine.commit(Transaction::produce(vec![append])).await {
                Ok(_) => sent += 1,
                Err(CommitError::Unavailable(_) | CommitError::InDoubt(_)) => {}
                Err(other) => panic!("{other}"),
            }
        }
    }
    let healthy = async {
        while engine.health().await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let healthy = tokio::time::timeout(Duration::from_secs(60), healthy).await;
    healthy.expect("it is reached again");
    assert!(rows(&engine, "select count(*) from run_1").await >= sent);
    assert!(sent > 0);
    engine.close().await;
}

/// The server does not notice when a machine in between goes.
#[tokio::test]
async fn a_host_does_not_wait_for_a_session_of_its_own_that_the_server_still_has() {
    let directory = tempfile::tempdir().expect("a directory");
    let engine = open_with(PostgresOptions {
        heartbeat_interval: Duration::from_secs(3_600),
        ..options(directory.path())
    })
    .await;
    let store = &engine.store;
    let again = Session::begin(&store.hosts, &store.options, &store.connect, &*store.clock);
    let again = tokio::time::timeout(Duration::from_secs(60), again).await;
    assert!(again.expect("in time").is_ok(), "it has the lock");
}

/// Long before its next round: whoever waits for the work of a host that leaves need not wait for that.
#[tokio::test]
async fn hosts_that_join_and_leave_are_known_at_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let options = PostgresOptions {
        heartbeat_interval: Duration::from_secs(3_600),
        dead_after: Duration::from_secs(36_000),
        ..options(directory.path())
    };
    let one = open_with(options.clone()).await;
    for _ in 0..3 {
        let other = open_with(options.clone()).await;
        for count in [2, 1] {
            let mut listed = one.hosts();
            let known = listed.wait_for(|hosts| hosts.len() == count);
            let known = tokio::time::timeout(Duration::from_secs(60), known).await;
            known.expect("in time").expect("the engine is open");
            if count == 2 {
                other.close().await;
            }
        }
    }
}

/// Delayed messages and schedules go from host to host.
#[tokio::test]
async fn a_host_whose_clock_is_wrong_goes_by_the_clock_of_the_database() {
    use millrace_model::{Clock as _, ManualClock};
    const HOUR_MS: u64 = 3_600_000;
    let directory = tempfile::tempdir().expect("a directory");
    for wrong in [now() - HOUR_MS, now() + HOUR_MS] {
        let clock = Arc::new(ManualClock::at(Timestamp(wrong)));
        let opened = PostgresEngine::open(options(directory.path()), clock.clone()).await;
        let engine = opened.expect("the database opens");
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

/// An automatic vacuum of a large table takes longer than any deletion waits, and the server ends it only for whoever waits long enough.
#[tokio::test]
async fn a_topic_is_deleted_while_its_table_is_vacuumed() {
    let directory = tempfile::tempdir().expect("a directory");
    let engine = open(&directory).await;
    let orders = topic(&engine, "orders", TopicSettings::default()).await;
    // A tenth of a second for each page, of four rows.
    let quarter = "some".repeat(450);
    for _ in 0..400 {
        produce(&engine, &orders, 1, &[&quarter]).await;
    }
    let table = format!("run_{}_0", orders.id.0);
    let pool = &engine.store.pool;
    let slow_vacuum = format!(
        "alter table {table} set (autovacuum_vacuum_insert_threshold = 1, autovacuum_vacuum_insert_scale_factor = 0, \
         autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1)"
    );
    for statement in [
        "alter system set autovacuum_naptime = '1s'",
        "select pg_reload_conf()",
        &slow_vacuum,
    ] {
        let done = pool.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(statement.to_owned())));
        done.await.expect("done");
    }
    let begun = async {
        loop {
            produce(&engine, &orders, 1, &["more"]).await;
            let vacuum = format!(
                "select count(*) from pg_stat_progress_vacuum where relid = '{table}'::regclass"
            );
            let count = pool
                .fetch_one(sqlx::query(sqlx::AssertSqlSafe(vacuum)))
                .await;
            if count.expect("a row").get::<i64, _>(0) > 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let begun = tokio::time::timeout(Duration::from_secs(120), begun).await;
    begun.expect("a vacuum begins");
    let deleted = engine.delete_topic(&orders.spec.name, Vec::new()).await;
    deleted.expect("deleted");
    engine.close().await;
}
