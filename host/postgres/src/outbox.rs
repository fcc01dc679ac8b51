//! The outbox: messages that users of the database left for topics, by `send` in transactions of their own.

use bytes::Bytes;
use millrace_engine::{CommitError, OutboxMessage, ReadError};
use millrace_model::{Header, Message, Timestamp};
use sqlx::postgres::PgRow;
use sqlx::{Executor as _, Row as _};

use crate::store::Store;
use crate::trouble::{undone, unread};

impl Store {
    /// The oldest messages that are due.
    pub(crate) async fn outbox(&self, max: usize) -> Result<Vec<OutboxMessage>, ReadError> {
        let find = sqlx::query(
            "select id, topic, key, payload, headers::text as headers, (extract(epoch from deliver_at) * 1000)::bigint as deliver_at, \
             (extract(epoch from sent_at) * 1000)::bigint as sent_at from outbox where due <= clock_timestamp() order by id limit $1",
        );
        let rows = self.pool.fetch_all(find.bind(max as i64)).await;
        Ok(rows.map_err(unread)?.iter().map(message).collect())
    }

    /// It is tried again, later each time.
    pub(crate) async fn refuse_outbox(&self, id: u64, why: &str) -> Result<(), CommitError> {
        let refuse = sqlx::query(
            "update outbox set tries = tries + 1, error = $2, \
             due = clock_timestamp() + least(power(2, least(tries, 10)), 300) * interval '1 second' where id = $1",
        );
        let refuse = refuse.bind(id as i64).bind(why);
        self.pool.execute(refuse).await.map_err(undone)?;
        Ok(())
    }
}

fn message(row: &PgRow) -> OutboxMessage {
    let bytes = |column: &str| row.get::<Option<Vec<u8>>, _>(column).map(Bytes::from);
    let time = |ms: i64| Timestamp(ms.max(0) as u64);
    OutboxMessage {
        id: row.get::<i64, _>("id") as u64,
        topic: row.get("topic"),
        message: Message {
            key: bytes("key"),
            value: bytes("payload"),
            headers: headers(row.get("headers")),
            timestamp: time(row.get("sent_at")),
        },
        deliver_at: row.get::<Option<i64>, _>("deliver_at").map(time),
    }
}

/// A value that is no text is sent as JSON.
fn headers(json: Option<&str>) -> Vec<Header> {
    let json = json.and_then(|json| serde_json::from_str(json).ok());
    let Some(serde_json::Value::Object(fields)) = json else {
        return Vec::new();
    };
    let header = |(name, value): (String, serde_json::Value)| Header {
        name: name.into(),
        value: match value {
            serde_json::Value::Null => None,
            serde_json::Value::String(text) => Some(text.into()),
            other => Some(other.to_string().into()),
        },
    };
    fields.into_iter().map(header).collect()
}
