//! Rows of a checkpoint for producers, and for requests with an idempotency key.

use bytes::Bytes;
use millrace_engine::idempotence::Idempotence;
use millrace_engine::idempotence::producers::{Named, ProducerState, Sent};
use millrace_engine::idempotence::requests::{Request, WindowChange};
use millrace_model::{Offset, ProducerId, Timestamp, TopicId};
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::rows::{self, Value};
use super::{malformed, number, partition};
use crate::decide::codec::{offsets_bytes, offsets_of};
use crate::decide::state::Changes;

pub(super) const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS producers (
        topic INTEGER NOT NULL, partition INTEGER NOT NULL, producer INTEGER NOT NULL,
        epoch INTEGER NOT NULL, seen_at INTEGER NOT NULL, batches BLOB NOT NULL,
        PRIMARY KEY (topic, partition, producer)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS producer_names (
        name TEXT PRIMARY KEY, producer INTEGER NOT NULL, epoch INTEGER NOT NULL,
        given_at INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS requests (
        topic INTEGER NOT NULL, position INTEGER NOT NULL, key BLOB NOT NULL, fingerprint BLOB NOT NULL,
        at INTEGER NOT NULL, offsets BLOB NOT NULL, note BLOB NOT NULL,
        PRIMARY KEY (topic, position)) WITHOUT ROWID;";

/// Bytes of one batch in a producer's row: its first and last sequence, and its offset.
const SENT_BYTES: usize = 16;

pub(super) async fn load(
    on: &mut SqliteConnection,
    sealed: bool,
    loaded: &mut Idempotence,
) -> Result<(), sqlx::Error> {
    for row in rows::PRODUCERS.read(on, sealed).await? {
        let state = producer_state(&row)?;
        let producers = &mut loaded.producers;
        producers.insert(partition(&row)?, row.try_get(2)?, state);
    }
    for row in rows::PRODUCER_NAMES.read(on, sealed).await? {
        let named = Named {
            producer: ProducerId {
                id: row.try_get(1)?,
                epoch: row.try_get(2)?,
            },
            at: Timestamp(number(&row, 3)?),
        };
        let name = row.try_get::<&str, _>(0)?.into();
        loaded.producers.insert_name(name, named);
    }
    let mut requests = Vec::new();
    for row in rows::REQUESTS.read(on, sealed).await? {
        let (topic, position) = (TopicId(number(&row, 0)?), number(&row, 1)?);
        requests.push((topic, position, request(&row)?));
    }
    requests.sort_by_key(|(topic, position, _)| (*topic, *position));
    for (topic, position, request) in requests {
        loaded.requests.insert_stored(topic, position, request);
    }
    Ok(())
}

fn producer_state(row: &SqliteRow) -> Result<ProducerState, sqlx::Error> {
    let (batches, rest) = row.try_get::<&[u8], _>(5)?.as_chunks::<SENT_BYTES>();
    let sent = |bytes: &[u8; SENT_BYTES]| Sent {
        first: i32::from_le_bytes(std::array::from_fn(|i| bytes[i])),
        last: i32::from_le_bytes(std::array::from_fn(|i| bytes[4 + i])),
        base: Offset(u64::from_le_bytes(std::array::from_fn(|i| bytes[8 + i]))),
    };
    let sent: Vec<Sent> = batches.iter().map(sent).collect();
    let seen_at = Timestamp(number(row, 4)?);
    let state = ProducerState::stored(row.try_get(3)?, seen_at, &sent);
    let is_sound = rest.is_empty();
    state
        .filter(|_| is_sound)
        .ok_or_else(|| malformed("producer"))
}

fn batches(state: &ProducerState) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(state.sent().len() * SENT_BYTES);
    for sent in state.sent() {
        bytes.extend(sent.first.to_le_bytes());
        bytes.extend(sent.last.to_le_bytes());
        bytes.extend(sent.base.0.to_le_bytes());
    }
    bytes
}

fn request(row: &SqliteRow) -> Result<Request, sqlx::Error> {
    let digest = |column| {
        let stored: &[u8] = row.try_get(column)?;
        stored.try_into().map_err(|_| malformed("request's key"))
    };
    let offsets = offsets_of(row.try_get(5)?);
    let note: Vec<u8> = row.try_get(6)?;
    Ok(Request {
        key: digest(2)?,
        fingerprint: digest(3)?,
        at: Timestamp(number(row, 4)?),
        base_offsets: offsets.ok_or_else(|| malformed("request"))?,
        note: Bytes::from(note),
    })
}

pub(super) async fn save(on: &mut SqliteConnection, changes: &Changes) -> Result<(), sqlx::Error> {
    for (id, producer, state) in &changes.producers.states {
        let Some(state) = state else {
            let forget = "DELETE FROM producers WHERE topic = ? AND partition = ? AND producer = ?";
            let forget = sqlx::query(forget).bind(id.topic.0 as i64);
            let forget = forget.bind(i64::from(id.partition.0)).bind(producer);
            forget.execute(&mut *on).await?;
            continue;
        };
        let row = vec![
            id.topic.0.into(),
            id.partition.0.into(),
            (*producer).into(),
            i64::from(state.epoch).into(),
            state.seen_at.0.into(),
            batches(state).into(),
        ];
        rows::PRODUCERS.put(on, [row]).await?;
    }
    for (name, named) in &changes.producers.names {
        let Some(named) = named else {
            let forget = sqlx::query("DELETE FROM producer_names WHERE name = ?").bind(&**name);
            forget.execute(&mut *on).await?;
            continue;
        };
        let row = vec![
            Value::from(&**name),
            named.producer.id.into(),
            i64::from(named.producer.epoch).into(),
            named.at.0.into(),
        ];
        rows::PRODUCER_NAMES.put(on, [row]).await?;
    }
    for window in &changes.requests {
        save_window(on, window).await?;
    }
    Ok(())
}

async fn save_window(on: &mut SqliteConnection, window: &WindowChange) -> Result<(), sqlx::Error> {
    let topic = window.topic.0 as i64;
    let added = window.added.iter().map(|(position, request)| {
        vec![
            topic.into(),
            (*position).into(),
            Value::from(&request.key[..]),
            Value::from(&request.fingerprint[..]),
            request.at.0.into(),
            offsets_bytes(&request.base_offsets).into(),
            Value::from(&*request.note),
        ]
    });
    rows::REQUESTS.put(on, added).await?;
    let forget = sqlx::query("DELETE FROM requests WHERE topic = ? AND position < ?");
    let forget = forget.bind(topic).bind(window.first as i64);
    forget.execute(on).await.map(drop)
}
