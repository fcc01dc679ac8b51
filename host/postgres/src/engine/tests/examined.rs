//! What the doctor says of a real server: nothing of a healthy one, and each fault by its name.

use std::time::Duration;

use millrace_engine::findings::{Finding, Severity, worst};
use millrace_engine::{Engine, EntryKind, EntryWrite, Transaction};
use millrace_model::{Digest, Durability, SystemClock, Timestamp, TopicName, TopicSpec};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

use super::server;
use crate::connect::SCHEMA_VERSION;
use crate::engine::PostgresEngine;
use crate::{OpenError, PostgresOptions, Thresholds, examine};

/// Everything shows at once.
const SOON: Thresholds = Thresholds {
    idle_transaction: Duration::ZERO,
    snapshot: Duration::from_secs(600),
    lock_wait: Duration::ZERO,
    standby_bytes: 0,
    standby_delay: Duration::ZERO,
    slot_bytes: 0,
    dead_rows: 500,
    outbox_wait: Duration::ZERO,
};

struct Examined {
    options: PostgresOptions,
    sql: PgConnection,
}

impl Examined {
    async fn run(&mut self, statements: &str) {
        let statements = sqlx::raw_sql(AssertSqlSafe(statements.to_owned()));
        self.sql.execute(statements).await.expect("it is executed");
    }

    async fn findings(&self) -> Vec<Finding> {
        let examined = examine(&self.options, &SOON).await;
        examined.expect("it can be examined")
    }

    /// Waits until this is found.
    async fn finds(&self, severity: Severity, place: &str, words: &str) {
        let mut findings = Vec::new();
        for _ in 0..200 {
            findings = self.findings().await;
            let is_it = |finding: &Finding| {
                finding.severity == severity
                    && finding.place.contains(place)
                    && finding.meaning.contains(words)
            };
            if findings.iter().any(is_it) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("no {severity:?} at {place} with {words:?}: {findings:#?}");
    }
}

async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.expect("it connects")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_fault_of_a_server_is_found_and_a_healthy_one_has_none() {
    // Others would show on a shared one.
    let server = server::start();
    let options = PostgresOptions {
        url: server.url(),
        release: "1.2.3".to_owned(),
        ..PostgresOptions::default()
    };
    let missing = examine(&options, &SOON).await;
    assert!(
        matches!(&missing, Err(OpenError::NoSchema(of)) if of == "millrace"),
        "{missing:?}"
    );
    let clock = std::sync::Arc::new(SystemClock::new());
    let engine = PostgresEngine::open(options.clone(), clock).await;
    let engine = engine.expect("the database opens");
    let spec = TopicSpec {
        name: TopicName::parse("orders").expect("a name"),
        partitions: 2,
        durability: Durability::Durable,
        partitioner: None,
        owner: None,
        created_at: Timestamp(1),
        settings: Default::default(),
    };
    let topic = engine.create_topic(spec, Vec::new()).await.expect("made");
    let mut it = Examined {
        sql: connect(&server.url()).await,
        options,
    };
    it.run("create role other; set search_path = millrace")
        .await;

    let findings = it.findings().await;
    assert!(worst(&findings) < Severity::Fault, "{findings:#?}");
    for (place, words) in [
        ("server", "PostgreSQL 1"),
        ("schema millrace", &format!("version {SCHEMA_VERSION}")),
        ("fsync", "it is on"),
        ("full_page_writes", "it is on"),
        ("synchronous_commit", "it is on"),
        ("connections", "are free"),
        ("host ", "version 1.2.3"),
        ("locks", "nobody waits"),
        ("sessions", "none has been"),
        ("outbox", "0 messages wait"),
        ("topic orders", "0 offsets in 2 partitions"),
    ] {
        it.finds(Severity::Ok, place, words).await;
    }

    for (setting, severity, words) in [
        ("fsync = off", Severity::Fault, "loses messages"),
        ("full_page_writes = off", Severity::Note, "tears a page"),
        ("autovacuum = off", Severity::Fault, "never cleaned"),
        (
            "synchronous_commit = off",
            Severity::Fault,
            "before they are on a disk",
        ),
        ("synchronous_commit = local", Severity::Ok, "it is local"),
        (
            "synchronous_standby_names = 'far'",
            Severity::Fault,
            "none of them is connected",
        ),
    ] {
        let name = setting.split(' ').next().unwrap_or_default();
        it.run(&format!("alter system set {setting}")).await;
        it.run("select pg_reload_conf()").await;
        it.finds(severity, name, words).await;
        it.run(&format!("alter system reset {name}")).await;
        it.run("select pg_reload_conf()").await;
    }
    it.finds(Severity::Ok, "fsync", "it is on").await;
    it.run("alter role other set synchronous_commit = off")
        .await;
    it.finds(Severity::Note, "synchronous_commit", "set for other")
        .await;
    it.run("alter role millrace set synchronous_commit = off")
        .await;
    it.finds(Severity::Fault, "synchronous_commit", "(user)")
        .await;
    it.run("alter role millrace reset all").await;

    it.run("alter database postgres connection limit 12").await;
    it.finds(Severity::Fault, "connections", "would not start")
        .await;
    it.run("alter database postgres connection limit -1").await;
    it.finds(Severity::Ok, "connections", "are free").await;

    // Somebody forgets a transaction, and somebody else waits for it.
    let mut idle = connect(&server.url()).await;
    let lock = "begin; select from millrace.topic for update";
    idle.execute(sqlx::raw_sql(lock)).await.expect("locked");
    it.finds(Severity::Fault, "session", "idle in a transaction")
        .await;
    let mut waits = connect(&server.url()).await;
    let waiting = tokio::spawn(async move {
        let delete = sqlx::raw_sql("select from millrace.topic for update");
        waits.execute(delete).await.map(drop)
    });
    it.finds(Severity::Fault, "session", "waits for").await;
    idle.execute(sqlx::raw_sql("rollback"))
        .await
        .expect("ended");
    waiting.await.expect("it ends").expect("it is not refused");
    it.finds(Severity::Ok, "locks", "nobody waits").await;

    // Rows that every commit reads, and that nothing cleans.
    it.run("alter table partition set (autovacuum_enabled = off)")
        .await;
    it.run("do $$ begin for turn in 1..600 loop update partition set next = next where number = 0; end loop; end $$")
        .await;
    it.finds(Severity::Note, "table partition", "dead rows")
        .await;

    it.run("insert into outbox (topic, payload, due) values ('gone', 'x', clock_timestamp() + interval '1 hour')")
        .await;
    it.run("update outbox set tries = 3, error = 'no such topic'")
        .await;
    it.finds(Severity::Note, "outbox", "gone: no such topic")
        .await;
    it.run("update outbox set tries = 0, due = clock_timestamp() - interval '1 hour'")
        .await;
    it.finds(Severity::Fault, "outbox", "no host has tried")
        .await;
    it.run("delete from outbox").await;

    // What belongs to nothing, and what is missing.
    let digest = Digest([7; 32]);
    let put = engine.put_module(digest, "bytes".into()).await;
    put.expect("stored");
    it.finds(Severity::Note, &digest.to_string(), "no module names")
        .await;
    let entries = vec![EntryWrite {
        kind: EntryKind::Module,
        key: digest.to_string(),
        value: Some("{}".into()),
    }];
    let named = Transaction {
        entries,
        ..Transaction::default()
    };
    engine.commit(named).await.expect("committed");
    it.run("delete from module").await;
    it.finds(Severity::Fault, &digest.to_string(), "bytes are missing")
        .await;
    it.run("create table run_4711 (number int)").await;
    it.finds(Severity::Note, "run_4711", "does not exist").await;
    it.run(&format!("alter table run_{} rename to hidden", topic.id))
        .await;
    it.finds(Severity::Fault, "topic orders", "is missing")
        .await;

    it.run("insert into host values (5, '10.0.0.9:7400', '1.2.2', 5, clock_timestamp() - interval '1 hour')")
        .await;
    // When a server has just started, every host counts as living.
    let aged = PostgresOptions {
        dead_after: Duration::from_millis(1),
        ..it.options.clone()
    };
    let aged = Examined {
        options: aged,
        sql: connect(&server.url()).await,
    };
    aged.finds(Severity::Note, "10.0.0.9", "counts as dead")
        .await;
    it.run("update meta set value = 99 where name = 'schema'")
        .await;
    aged.finds(Severity::Note, "schema millrace", "version 99")
        .await;
    it.run("insert into meta values ('schema_min', 99)").await;
    aged.finds(Severity::Fault, "schema millrace", "version 99")
        .await;
    engine.close().await;
}
