//! Writes what a group comes to: a few statements with whole columns, however many transactions there are.

use std::collections::{BTreeMap, BTreeSet};

use millrace_engine::idempotence::Idempotence;
use millrace_engine::state::NEVER;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Executor as _};

use super::judging::{ChainState, Run, Writes};
use super::locking::{columns, offsets_bytes, sent_bytes};
use crate::trouble::Trouble;

impl Writes {
    pub(crate) async fn write(
        &self,
        connection: &mut PgConnection,
        idempotence: &mut Idempotence,
    ) -> Result<(), Trouble> {
        self.write_runs(connection).await?;
        self.write_ends(connection).await?;
        self.write_progress(connection).await?;
        self.write_state(connection).await?;
        self.write_requests(connection).await?;
        self.take_from_outbox(connection).await?;
        self.write_entries(connection).await?;
        write_producers(connection, idempotence).await
    }

    async fn write_runs(&self, connection: &mut PgConnection) -> Result<(), Trouble> {
        let topics: BTreeSet<u64> = self.runs.iter().map(|run| run.partition.topic.0).collect();
        for topic in topics {
            let insert = format!(
                "insert into run_{topic} (bucket, number, base, next, latest, at, messages, size, bytes) \
                 select bucket, number, base, next, latest, $8, messages, octet_length(bytes), bytes \
                 from unnest($1::int[], $2::int[], $3::bigint[], $4::bigint[], $5::bigint[], $6::int[], $7::bytea[]) \
                 as run(bucket, number, base, next, latest, messages, bytes)"
            );
            let runs = runs_of(&self.runs, topic);
            let insert = sqlx::query(AssertSqlSafe(insert))
                .bind(runs.buckets)
                .bind(runs.numbers)
                .bind(runs.bases)
                .bind(runs.nexts)
                .bind(runs.latest)
                .bind(runs.messages)
                .bind(runs.bytes);
            let insert = insert.bind(self.now.0 as i64);
            connection.execute(insert).await?;
        }
        Ok(())
    }

    async fn write_ends(&self, connection: &mut PgConnection) -> Result<(), Trouble> {
        if self.ends.is_empty() {
            return Ok(());
        }
        let update = sqlx::query(
            "update partition p set next = w.next from unnest($1::bigint[], $2::int[], $3::bigint[]) as w(topic, number, next) \
             where p.topic = w.topic and p.number = w.number",
        );
        let (topics, numbers) = columns(self.ends.keys());
        let ends: Vec<i64> = self.ends.values().map(|next| next.0 as i64).collect();
        let update = update.bind(topics).bind(numbers).bind(ends);
        connection.execute(update).await?;
        Ok(())
    }

    async fn write_progress(&self, connection: &mut PgConnection) -> Result<(), Trouble> {
        if self.progress.is_empty() {
            return Ok(());
        }
        let update = sqlx::query(
            "update chain c set progress = w.progress from unnest($1::bigint[], $2::bytea[]) as w(id, progress) where c.id = w.id",
        );
        let ids: Vec<i64> = self.progress.keys().copied().collect();
        let progress: Vec<Vec<u8>> = self.progress.values().map(|p| p.encode()).collect();
        connection.execute(update.bind(ids).bind(progress)).await?;
        Ok(())
    }

    async fn write_state(&self, connection: &mut PgConnection) -> Result<(), Trouble> {
        if self.state.is_empty() {
            return Ok(());
        }
        let reset: Vec<(i64, i64)> = self
            .state
            .iter()
            .filter_map(|(chain, state)| Some((*chain, state.reset?)))
            .collect();
        if !reset.is_empty() {
            let (chains, floors): (Vec<i64>, Vec<i64>) = reset.into_iter().unzip();
            let empty = sqlx::query("delete from state where chain = any($1)").bind(&chains);
            connection.execute(empty).await?;
            let floor = sqlx::query(
                "update chain c set state_floor = w.floor from unnest($1::bigint[], $2::bigint[]) as w(id, floor) where c.id = w.id",
            );
            connection.execute(floor.bind(&chains).bind(floors)).await?;
        }
        let number = sqlx::query(
            "update chain c set state_seq = w.seq from unnest($1::bigint[], $2::bigint[]) as w(id, seq) where c.id = w.id",
        );
        let chains: Vec<i64> = self.state.keys().copied().collect();
        let numbers: Vec<i64> = self.state.values().map(|state| state.seq).collect();
        connection
            .execute(number.bind(chains).bind(numbers))
            .await?;
        write_changes(connection, &self.state).await
    }

    async fn write_requests(&self, connection: &mut PgConnection) -> Result<(), Trouble> {
        if self.requests.is_empty() {
            return Ok(());
        }
        // A key that was used so long ago that it is new again has a row.
        let insert = sqlx::query(
            "insert into request (topic, key, fingerprint, at, offsets, note) \
             select * from unnest($1::bigint[], $2::bytea[], $3::bytea[], $4::bigint[], $5::bytea[], $6::bytea[]) \
             on conflict (topic, key) do update set fingerprint = excluded.fingerprint, at = excluded.at, \
             offsets = excluded.offsets, note = excluded.note",
        );
        let all = || self.requests.iter().map(|(_, request)| request);
        let insert = insert
            .bind(
                self.requests
                    .iter()
                    .map(|(topic, _)| *topic as i64)
                    .collect::<Vec<i64>>(),
            )
            .bind(all().map(|r| &r.key[..]).collect::<Vec<&[u8]>>())
            .bind(all().map(|r| &r.fingerprint[..]).collect::<Vec<&[u8]>>())
            .bind(all().map(|r| r.at.0 as i64).collect::<Vec<i64>>())
            .bind(
                all()
                    .map(|r| offsets_bytes(&r.base_offsets))
                    .collect::<Vec<Vec<u8>>>(),
            )
            .bind(all().map(|r| &r.note[..]).collect::<Vec<&[u8]>>());
        connection.execute(insert).await?;
        Ok(())
    }

    async fn take_from_outbox(&self, connection: &mut PgConnection) -> Result<(), Trouble> {
        if !self.outbox.is_empty() {
            let ids: Vec<i64> = self.outbox.iter().map(|&id| id as i64).collect();
            let take = sqlx::query("delete from outbox where id = any($1)");
            connection.execute(take.bind(ids)).await?;
        }
        Ok(())
    }

    async fn write_entries(&self, connection: &mut PgConnection) -> Result<(), Trouble> {
        if self.entries.is_empty() {
            return Ok(());
        }
        let write = sqlx::query(
            "insert into entry (kind, key, value, version) \
             select * from unnest($1::text[], $2::text[], $3::bytea[], $4::bigint[]) \
             on conflict (kind, key) do update set value = excluded.value, version = excluded.version",
        );
        let kinds: Vec<&str> = self.entries.keys().map(|(kind, _)| kind.as_str()).collect();
        let keys: Vec<&str> = self.entries.keys().map(|(_, key)| key.as_str()).collect();
        let values: Vec<Option<&[u8]>> = self.entries.values().map(|(v, _)| v.as_deref()).collect();
        let versions: Vec<i64> = self.entries.values().map(|(_, v)| v.0 as i64).collect();
        let write = write.bind(kinds).bind(keys).bind(values).bind(versions);
        connection.execute(write).await?;
        let count = sqlx::query(
            "update kind k set version = w.version from unnest($1::text[], $2::bigint[]) as w(kind, version) where k.kind = w.kind",
        );
        let kinds: Vec<&str> = self.kinds.keys().map(|kind| kind.as_str()).collect();
        let versions: Vec<i64> = self
            .kinds
            .values()
            .map(|version| version.0 as i64)
            .collect();
        connection.execute(count.bind(kinds).bind(versions)).await?;
        Ok(())
    }
}

async fn write_changes(
    connection: &mut PgConnection,
    state: &BTreeMap<i64, ChainState>,
) -> Result<(), Trouble> {
    let changes = changes_of(state);
    if changes.chains.is_empty() {
        return Ok(());
    }
    let write = sqlx::query(
        "insert into state (chain, key, value, ends_at, seq) \
         select * from unnest($1::bigint[], $2::bytea[], $3::bytea[], $4::bigint[], $5::bigint[]) \
         on conflict (chain, key) do update set value = excluded.value, ends_at = excluded.ends_at, seq = excluded.seq",
    );
    let write = write
        .bind(changes.chains)
        .bind(changes.keys)
        .bind(changes.values)
        .bind(changes.ends)
        .bind(changes.seqs);
    connection.execute(write).await?;
    Ok(())
}

/// Changes of state as columns of a statement.
#[derive(Default)]
pub(super) struct ChangeColumns<'a> {
    pub(super) chains: Vec<i64>,
    pub(super) keys: Vec<&'a [u8]>,
    pub(super) values: Vec<Option<&'a [u8]>>,
    pub(super) ends: Vec<Option<i64>>,
    pub(super) seqs: Vec<i64>,
}

pub(super) fn changes_of(state: &BTreeMap<i64, ChainState>) -> ChangeColumns<'_> {
    let mut columns = ChangeColumns::default();
    for (chain, state) in state {
        for (change, seq) in state.changes.values() {
            columns.chains.push(*chain);
            columns.keys.push(&change.key);
            let value = change.value.as_ref().map(|value| value.as_bytes());
            columns.values.push(value);
            let ends = change.ends_at != NEVER;
            let ends_at = || i64::try_from(change.ends_at.0).unwrap_or(i64::MAX);
            columns.ends.push(ends.then(ends_at));
            columns.seqs.push(*seq);
        }
    }
    columns
}

/// The runs of a topic as columns of a statement.
#[derive(Default)]
pub(super) struct RunColumns<'a> {
    pub(super) buckets: Vec<i32>,
    pub(super) numbers: Vec<i32>,
    pub(super) bases: Vec<i64>,
    pub(super) nexts: Vec<i64>,
    pub(super) latest: Vec<i64>,
    pub(super) messages: Vec<i32>,
    pub(super) bytes: Vec<&'a [u8]>,
}

/// The time of its latest message, in the range of the column.
pub(super) fn latest_of(run: &Run) -> i64 {
    i64::try_from(run.latest.0).unwrap_or(i64::MAX)
}

pub(super) fn runs_of(runs: &[Run], topic: u64) -> RunColumns<'_> {
    let mut columns = RunColumns::default();
    for run in runs.iter().filter(|run| run.partition.topic.0 == topic) {
        columns.buckets.push(run.bucket);
        columns.numbers.push(run.partition.partition.0 as i32);
        columns.bases.push(run.base.0 as i64);
        columns.nexts.push(run.next.0 as i64);
        columns.latest.push(latest_of(run));
        columns.messages.push(run.messages as i32);
        columns.bytes.push(&run.bytes);
    }
    columns
}

/// What the group's numbered batches and new epochs come to.
pub(crate) async fn write_producers(
    connection: &mut PgConnection,
    idempotence: &mut Idempotence,
) -> Result<(), Trouble> {
    let changes = idempotence.producers.take_changes();
    // Of each, the last state counts.
    let states: BTreeMap<_, _> = changes
        .states
        .into_iter()
        .filter_map(|(at, id, state)| Some(((at, id), state?)))
        .collect();
    if !states.is_empty() {
        let write = sqlx::query(
            "insert into producer (topic, number, id, epoch, seen_at, sent) \
             select * from unnest($1::bigint[], $2::int[], $3::bigint[], $4::smallint[], $5::bigint[], $6::bytea[]) \
             on conflict (topic, number, id) do update set epoch = excluded.epoch, seen_at = excluded.seen_at, sent = excluded.sent",
        );
        let (topics, numbers) = columns(states.keys().map(|(at, _)| at));
        let write = write
            .bind(topics)
            .bind(numbers)
            .bind(states.keys().map(|(_, id)| *id).collect::<Vec<i64>>())
            .bind(states.values().map(|s| s.epoch).collect::<Vec<i16>>())
            .bind(
                states
                    .values()
                    .map(|s| s.seen_at.0 as i64)
                    .collect::<Vec<i64>>(),
            )
            .bind(
                states
                    .values()
                    .map(|s| sent_bytes(s.sent()))
                    .collect::<Vec<Vec<u8>>>(),
            );
        connection.execute(write).await?;
    }
    for (name, named) in changes.names {
        let Some(named) = named else { continue };
        // An id is one name's only; a name whose epochs were used up has a new id.
        let write = sqlx::query(
            "insert into producer_name (name, id, epoch, at) values ($1, $2, $3, $4) \
             on conflict (name) do update set id = excluded.id, epoch = excluded.epoch, at = excluded.at",
        );
        let producer = named.producer;
        let write = write.bind(&*name).bind(producer.id).bind(producer.epoch);
        connection.execute(write.bind(named.at.0 as i64)).await?;
        let count =
            sqlx::query("update meta set value = greatest(value, $1) where name = 'producer'");
        connection.execute(count.bind(changes.next_id)).await?;
    }
    Ok(())
}
