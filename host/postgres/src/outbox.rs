//! The outbox: messages that users of the database left for topics, by `send` in transactions of their own.

use bytes::Bytes;
use millrace_engine::{CommitError, OutboxMessage, ReadError};
use millrace_model::bounds::MESSAGE_BYTES_MAX;
use millrace_model::{Header, Message, Timestamp};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Executor as _, Row as _};

use crate::store::Store;
use crate::trouble::{undone, unread};

/// Bytes of messages that are read from the outbox at once.
const OUTBOX_READ_BYTES_MAX: usize = 16 << 20;
/// Characters of a topic's name that are read; no topic has so many.
const TOPIC_CHARS_MAX: usize = 1_000;

impl Store {
    /// The oldest messages that are due. Nobody but users checked what is there, so a row that cannot be sent must not make the statement
    /// fail, which would hold up all others.
    pub(crate) async fn outbox(&self, max: usize) -> Result<Vec<OutboxMessage>, ReadError> {
        let find = format!(
            "select id, left(topic, {TOPIC_CHARS_MAX}) as topic, unfit, \
               case when unfit is null then key end as key, case when unfit is null then payload end as payload, \
               case when unfit is null then names end as names, case when unfit is null then texts end as texts, \
               case when isfinite(deliver_at) then (extract(epoch from deliver_at) * 1000)::bigint end as deliver_at, \
               case when isfinite(sent_at) then (extract(epoch from sent_at) * 1000)::bigint else 0 end as sent_at \
             from ( \
               select *, sum(case when unfit is null then bytes else 0 end) over (order by id) as up_to from ( \
                 select *, case \
                   when not isfinite(deliver_at) then 'time' \
                   when jsonb_typeof(headers) <> 'object' then 'headers' \
                   when bytes > {MESSAGE_BYTES_MAX} then 'size' end as unfit \
                 from ( \
                   select o.*, h.names, h.texts, \
                     coalesce(octet_length(o.key), 0) + coalesce(octet_length(o.payload), 0) + coalesce(h.size, 0) as bytes \
                   from (select * from outbox where due <= clock_timestamp() order by id limit $1) as o cross join lateral ( \
                     select array_agg(key) as names, array_agg(value) as texts, \
                       sum(octet_length(key) + coalesce(octet_length(value), 0)) as size \
                     from jsonb_each_text(case when jsonb_typeof(o.headers) = 'object' then o.headers end) \
                   ) as h \
                 ) as measured \
               ) as judged \
             ) as summed where up_to <= {OUTBOX_READ_BYTES_MAX} order by id"
        );
        let find = sqlx::query(AssertSqlSafe(find)).bind(max as i64);
        let rows = self.pool.fetch_all(find).await;
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
            headers: headers(row),
            timestamp: time(row.get("sent_at")),
        },
        deliver_at: row.get::<Option<i64>, _>("deliver_at").map(time),
        unfit: row.get::<Option<&str>, _>("unfit").map(why),
    }
}

fn why(unfit: &str) -> &'static str {
    match unfit {
        "time" => "deliver_at is infinity, which never comes; update it to a time, or to null",
        "headers" => {
            "the headers are no JSON object; update them to one of names and texts, or to null"
        }
        _ => {
            "the message is larger than any topic takes; delete it, store the payload elsewhere and send a reference"
        }
    }
}

/// A value that is no text is sent as JSON.
fn headers(row: &PgRow) -> Vec<Header> {
    let names = row.get::<Option<Vec<String>>, _>("names");
    let texts = row.get::<Option<Vec<Option<String>>>, _>("texts");
    let header = |(name, text): (String, Option<String>)| Header {
        name: name.into(),
        value: text.map(Into::into),
    };
    let both = names.into_iter().flatten();
    let both = both.zip(texts.into_iter().flatten());
    both.map(header).collect()
}
