//! What users leave in the outbox, whatever it is, holds up nobody else.

use millrace_engine::Engine as _;
use millrace_model::TopicSettings;
use millrace_model::bounds::MESSAGE_BYTES_MAX;
use sqlx::Executor as _;

use super::own::topic;
use super::{open_with, options};
use crate::engine::PostgresEngine;

async fn run(engine: &PostgresEngine, sql: &'static str) -> Result<(), String> {
    let done = engine.store.pool.execute(sqlx::query(sql)).await;
    done.map(|_| ()).map_err(|error| error.to_string())
}

#[tokio::test]
async fn a_row_that_cannot_be_sent_is_given_to_be_refused_and_the_others_with_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let engine = open_with(options(directory.path())).await;
    topic(&engine, "orders", TopicSettings::default()).await;
    let never = "select send('orders', 'k', '1', deliver_at => 'infinity')";
    let refused = run(&engine, never).await.expect_err("it never comes");
    assert!(refused.contains("deliver_at is infinity"), "{refused}");
    for (sql, why) in [
        (
            "insert into outbox (topic, deliver_at) values ('orders', 'infinity')",
            Some("deliver_at is infinity"),
        ),
        (
            "insert into outbox (topic, deliver_at) values ('orders', '-infinity')",
            Some("deliver_at is infinity"),
        ),
        (
            "insert into outbox (topic, headers) values ('orders', '[1]')",
            Some("the headers are no JSON object"),
        ),
        (
            "insert into outbox (topic, payload) values ('orders', repeat('x', 8388609)::bytea)",
            Some("larger than any topic takes"),
        ),
        (
            "insert into outbox (topic, sent_at) values ('orders', 'infinity')",
            None,
        ),
        (
            "select send('orders', 'k', '1', '{\"n\": 12345678901234567890123, \"none\": null, \"text\": \"a\"}', '294276-12-31')",
            None,
        ),
    ] {
        run(&engine, sql).await.expect("it is there");
        let left = engine.outbox(500).await.expect("the outbox is read");
        let last = left.last().expect("there is one");
        match (last.unfit, why) {
            (Some(found), Some(why)) => assert!(found.contains(why), "{found}"),
            (found, why) => assert_eq!(found, why, "{sql}"),
        }
    }
    let left = engine.outbox(500).await.expect("the outbox is read");
    assert_eq!(left.len(), 6);
    assert!(left.iter().take(5).all(|m| m.message.value.is_none()));
    let last = &left[5].message;
    let header = |name: &str| {
        let found = last
            .headers
            .iter()
            .find(|header| header.name == name.as_bytes());
        found.expect("it has it").value.clone()
    };
    assert_eq!(header("n"), Some("12345678901234567890123".into()));
    assert_eq!(header("none"), None);
    assert_eq!(header("text"), Some("a".into()));
    engine.close().await;
}

#[tokio::test]
async fn no_more_bytes_are_read_at_once_than_the_bound() {
    let directory = tempfile::tempdir().expect("a directory");
    let engine = open_with(options(directory.path())).await;
    let fill = "insert into outbox (topic, payload) select 'orders', repeat('x', 6000000)::bytea from generate_series(1, 5)";
    run(&engine, fill).await.expect("they are there");
    let left = engine.outbox(500).await.expect("the outbox is read");
    let ids: Vec<u64> = left.iter().map(|message| message.id).collect();
    assert_eq!(ids, [1, 2]);
    let bytes = left.iter().filter_map(|m| m.message.value.as_ref());
    assert!(
        bytes
            .map(bytes::Bytes::len)
            .all(|len| len <= MESSAGE_BYTES_MAX)
    );
    engine.close().await;
}
