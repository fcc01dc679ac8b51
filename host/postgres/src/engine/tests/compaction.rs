//! Compaction as rows show it, besides what all engines promise.

use std::sync::Arc;
use std::time::Duration;

use millrace_engine::Engine as _;
pub(super) use millrace_engine::conformance::compaction::batch;
use millrace_engine::conformance::compaction::{Rig, expected};
use millrace_model::{Offset, PartitionId, TopicSettings};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, Row as _};

use super::{open_with, options};
use crate::PostgresOptions;
use crate::cleaning::leaf_table;
use crate::engine::PostgresEngine;

struct Rows {
    _directory: tempfile::TempDir,
    engine: Arc<PostgresEngine>,
    rig: Rig,
}

impl Rows {
    async fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let engine = open_with(often(directory.path())).await;
        let rig = Rig::new(engine.clone()).await;
        Self {
            _directory: directory,
            engine,
            rig,
        }
    }

    async fn number(&self, sql: &str) -> i64 {
        let asked = sqlx::query(AssertSqlSafe(sql.to_owned()));
        let row = self.engine.store.pool.fetch_one(asked).await;
        row.expect("a row").get(0)
    }
}

/// It looks often what is to be done.
pub(super) fn often(directory: &std::path::Path) -> PostgresOptions {
    PostgresOptions {
        cleaning_interval: Duration::from_millis(30),
        ..options(directory)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_without_messages_go_and_sql_sees_what_is_left() {
    let rows = Rows::new().await;
    for value in ["a0", "a1", "a2"] {
        rows.rig.put("a", Some(value)).await;
    }
    rows.rig.put("b", Some("b0")).await;
    rows.rig
        .comes_to(&expected(&[(2, "a", "a2"), (3, "b", "b0")]))
        .await;
    assert_eq!(rows.number("select count(*) from run_1").await, 2);
    let seen = "select count(*) from messages('orders', 0) where \"offset\" in (2, 3) and payload is not null";
    assert_eq!(rows.number(seen).await, 2);
    let seen = "select count(*) from messages('orders', 0)";
    assert_eq!(rows.number(seen).await, 2);
    rows.engine.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_compaction_leaves_of_an_old_leaf_moves_on_and_the_leaf_goes() {
    let rows = Rows::new().await;
    let rig = &rows.rig;
    for value in ["a0", "a1", "a2"] {
        rig.put("a", Some(value)).await;
    }
    let pool = &rows.engine.store.pool;
    // As a full leaf is followed by the next, a while ago.
    let turn = format!(
        "{}; insert into leaf (topic, bucket, made_at) values (1, 1, 1); update topic set bucket = 1 where id = 1",
        leaf_table(rig.topic.id.0, 1)
    );
    let turned = pool.execute(sqlx::raw_sql(AssertSqlSafe(turn))).await;
    turned.expect("a leaf more");
    let gone = async {
        while rows.number("select count(*) from leaf").await > 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let gone = tokio::time::timeout(Duration::from_secs(60), gone).await;
    gone.expect("the old leaf goes");
    rig.comes_to(&expected(&[(2, "a", "a2")])).await;
    assert_eq!(rows.number("select count(*) from run_1_1").await, 1);
    rows.engine.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_old_goes_while_a_pass_is_under_way() {
    use super::own::{produce, topic};
    let rows = Rows::new().await;
    let rig = &rows.rig;
    rig.put("key", Some("superseded")).await;
    // The pass that removes it waits for this.
    let schema = &rows.engine.store.options.schema;
    let reader = sqlx::PgConnection::connect_with(&rows.engine.store.connect.options).await;
    let mut reader = reader.expect("connected");
    let hold = format!(
        "begin; select from {schema}.run_{} for update",
        rig.at.topic
    );
    let hold = sqlx::raw_sql(AssertSqlSafe(hold));
    reader.execute(hold).await.expect("locked");
    rig.put("key", Some("latest")).await;
    // Not by the list of sessions, which a transaction sees as it was at first: the one of the pass may be younger.
    let waits = "select exists (select from pg_locks where not granted and pg_backend_pid() = any(pg_blocking_pids(pid))) as waits";
    while !reader
        .fetch_one(sqlx::query(waits))
        .await
        .expect("a row")
        .get::<bool, _>("waits")
    {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // After `orders`, by name.
    let settings = TopicSettings {
        retention_ms: Some(1),
        ..TopicSettings::default()
    };
    let others = topic(&rows.engine, "others", settings).await;
    produce(&rows.engine, &others, 1, &["old"]).await;
    let at = others.partition(PartitionId(0)).expect("it has one");
    let gone = async {
        while rows.engine.ends(at).expect("it exists").start < Offset(1) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let gone = tokio::time::timeout(Duration::from_secs(20), gone).await;
    gone.expect("it is removed meanwhile");
    drop(reader);
    rows.engine.close().await;
}
