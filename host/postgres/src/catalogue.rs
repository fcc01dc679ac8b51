//! Topics and modules: created, changed and deleted in one transaction each, on the rows that decide.

use std::collections::BTreeSet;

use bytes::Bytes;
use millrace_engine::contract::{AdoptError, changed, check_partitions};
use millrace_engine::{CommitError, Expectation, ReadError, TopicChange, TopicError, TrimError};
use millrace_model::bounds::TOPIC_PARTITIONS_MAX;
use millrace_model::{
    Digest, Durability, Offset, Topic, TopicId, TopicName, TopicPartition, TopicSpec,
};
use sqlx::postgres::{PgConnection, PgTransaction};
use sqlx::{AssertSqlSafe, Executor as _, Row as _};

use crate::cleaning::leaf_table;
use crate::commit::locking::{Catalogue, CatalogueNeeds, columns};
use crate::store::Store;
use crate::trouble::{Trouble, undone, unread};

/// How often a change is tried that met another one crosswise.
const TRIES_MAX: u32 = 10;

/// Why a change did not happen: something to try again, or an answer.
pub(crate) enum Failed<E> {
    Trouble(Trouble),
    Refused(E),
}

impl<E> From<Trouble> for Failed<E> {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

impl<E> From<sqlx::Error> for Failed<E> {
    fn from(error: sqlx::Error) -> Self {
        Self::Trouble(error.into())
    }
}

/// Counts the tries of a change.
#[derive(Default)]
pub(crate) struct Tries(u32);

impl Tries {
    /// Whether it is to be tried again.
    ///
    /// # Errors
    /// The answer, if it is not.
    pub(crate) fn again<E: From<CommitError>>(&mut self, failed: Failed<E>) -> Result<(), E> {
        self.0 += 1;
        match failed {
            Failed::Trouble(Trouble::Again(_)) if self.0 < TRIES_MAX => Ok(()),
            Failed::Trouble(trouble) => Err(CommitError::from(trouble).into()),
            Failed::Refused(error) => Err(error),
        }
    }
}

/// In a transaction that locks a whole table: readers go on behind whoever waits for that, so it must not wait long. But the server ends an
/// automatic vacuum that is in the way only after `deadlock_timeout`, for whoever still waits.
pub(crate) const WAIT_BRIEFLY: &str = "select set_config('lock_timeout', (1000 + extract(epoch from current_setting('deadlock_timeout')::interval) * 1000)::int::text, true)";

/// Commits; an error leaves it in doubt.
pub(crate) async fn end<E: From<CommitError>>(
    changing: PgTransaction<'_>,
) -> Result<(), Failed<E>> {
    let ended = changing.commit().await;
    ended.map_err(|error| {
        let in_doubt = CommitError::InDoubt(error.to_string().into());
        Failed::Refused(in_doubt.into())
    })
}

/// Locks what a change of topics decides on, and checks its expectations.
async fn lock<E: From<CommitError>>(
    connection: &mut PgConnection,
    expects: &[Expectation],
    names: impl IntoIterator<Item = &TopicName>,
) -> Result<Catalogue, Failed<E>> {
    let mut needs = CatalogueNeeds::default();
    needs.change_topics();
    needs.expect(expects);
    names.into_iter().for_each(|name| needs.topic(name));
    let catalogue = needs.lock(connection).await?;
    let checked = catalogue.check(expects);
    checked.map_err(|error| Failed::Refused(error.into()))?;
    Ok(catalogue)
}

async fn topics_changed(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let count = sqlx::query("update kind set version = version + 1 where kind = 'topic'");
    connection.execute(count).await.map(drop)
}

async fn partition_count(connection: &mut PgConnection) -> Result<usize, sqlx::Error> {
    let count = sqlx::query("select count(*) as count from partition");
    let row = connection.fetch_one(count).await?;
    Ok(row.get::<i64, _>("count") as usize)
}

/// Adds the partitions that the topic does not have.
async fn add_partitions(connection: &mut PgConnection, topic: &Topic) -> Result<(), sqlx::Error> {
    let add = sqlx::query(
        "insert into partition (topic, number, durable) select $1, number, $3 from generate_series(0, $2 - 1) as number \
         on conflict do nothing",
    );
    let add = add.bind(topic.id.0 as i64);
    let add = add
        .bind(topic.spec.partitions as i32)
        .bind(is_durable(topic));
    connection.execute(add).await.map(drop)
}

/// Takes an id that no topic can have had; the topics are locked.
async fn take_topic_id(
    connection: &mut PgConnection,
    id: TopicId,
) -> Result<TopicId, Failed<AdoptError>> {
    let name = "select pg_get_serial_sequence('topic', 'id') as name";
    let row = connection.fetch_one(sqlx::query(name)).await?;
    let sequence: String = row.get("name");
    // The name comes from the database, with quotes where it needs them.
    let last = format!(
        "select case when is_called then last_value + 1 else last_value end as next from {sequence}"
    );
    let row = connection
        .fetch_one(sqlx::query(AssertSqlSafe(last)))
        .await?;
    let next = TopicId(row.get::<i64, _>("next") as u64);
    if id < next {
        return Err(Failed::Refused(AdoptError::Id { id, next }));
    }
    let take = sqlx::query("select setval($1::regclass, $2)");
    let take = take.bind(sequence).bind(id.0 as i64);
    connection.execute(take).await?;
    Ok(id)
}

/// Why a topic without an id of its own was not made.
fn into_topic_error(error: AdoptError) -> TopicError {
    match error {
        AdoptError::Topic(error) => error,
        AdoptError::Commit(error) => error.into(),
        other => CommitError::Unavailable(other.to_string().into()).into(),
    }
}

fn is_durable(topic: &Topic) -> bool {
    topic.spec.durability == Durability::Durable
}

fn spec_json(spec: &TopicSpec) -> String {
    serde_json::to_string(spec).unwrap_or_else(|error| unreachable!("plain data: {error}"))
}

impl Store {
    pub(crate) async fn create_topic(
        &self,
        spec: TopicSpec,
        expects: Vec<Expectation>,
    ) -> Result<Topic, TopicError> {
        let mut tries = Tries::default();
        let made = loop {
            match self.create_topic_once(None, &spec, &expects).await {
                Ok(done) => break done,
                Err(failed) => tries.again(failed).map_err(into_topic_error)?,
            }
        };
        self.see_catalogue().await;
        Ok(made)
    }

    pub(crate) async fn adopt_topic(&self, topic: &Topic) -> Result<(), AdoptError> {
        let mut tries = Tries::default();
        while let Err(failed) = self
            .create_topic_once(Some(topic.id), &topic.spec, &[])
            .await
        {
            tries.again(failed)?;
        }
        self.see_catalogue().await;
        Ok(())
    }

    /// Makes a topic, under the id that it has in another store if one is given.
    async fn create_topic_once(
        &self,
        id: Option<TopicId>,
        spec: &TopicSpec,
        expects: &[Expectation],
    ) -> Result<Topic, Failed<AdoptError>> {
        let refused = |error: TopicError| Failed::Refused(error.into());
        if spec.partitions == 0 || spec.partitions > TOPIC_PARTITIONS_MAX {
            let (asked, max) = (spec.partitions, TOPIC_PARTITIONS_MAX);
            return Err(refused(TopicError::Partitions { asked, max }));
        }
        let mut making = self.pool.begin().await?;
        let catalogue = lock(&mut making, expects, [&spec.name]).await?;
        if catalogue.topics.contains_key(&spec.name) {
            return Err(refused(TopicError::Exists(spec.name.clone())));
        }
        let have = partition_count(&mut making).await?;
        let checked = check_partitions(&self.memory.tables.room, have, spec.partitions);
        checked.map_err(refused)?;
        let id = match id {
            Some(id) => take_topic_id(&mut making, id).await?,
            None => {
                let next = "select nextval(pg_get_serial_sequence('topic', 'id')) as id";
                let row = making.fetch_one(sqlx::query(next)).await?;
                TopicId(row.get::<i64, _>("id") as u64)
            }
        };
        let insert = sqlx::query(
            "insert into topic (id, name, spec) overriding system value values ($1, $2, $3::jsonb)",
        );
        let insert = insert.bind(id.0 as i64).bind(spec.name.as_str());
        making.execute(insert.bind(spec_json(spec))).await?;
        let topic = Topic {
            id,
            spec: spec.clone(),
        };
        add_partitions(&mut making, &topic).await?;
        let leaf = leaf_table(id.0, 0);
        let table = format!(
            "create table run_{id} (bucket int not null, number int not null, base bigint not null, next bigint not null, \
               latest bigint not null, at bigint not null, messages int not null, size int not null, bytes bytea not null) \
             partition by range (bucket); {leaf}"
        );
        making.execute(sqlx::raw_sql(AssertSqlSafe(table))).await?;
        let note = sqlx::query("insert into leaf (topic, bucket, made_at) values ($1, 0, $2)");
        let note = note.bind(id.0 as i64).bind(self.clock.wall().0 as i64);
        making.execute(note).await?;
        topics_changed(&mut making).await?;
        end(making).await?;
        Ok(topic)
    }

    pub(crate) async fn change_topics(
        &self,
        changes: Vec<(TopicName, TopicChange)>,
        expects: Vec<Expectation>,
    ) -> Result<Vec<Topic>, TopicError> {
        let mut tries = Tries::default();
        let done = loop {
            match self.change_topics_once(&changes, &expects).await {
                Ok(done) => break done,
                Err(failed) => tries.again(failed)?,
            }
        };
        self.see_catalogue().await;
        Ok(done)
    }

    async fn change_topics_once(
        &self,
        changes: &[(TopicName, TopicChange)],
        expects: &[Expectation],
    ) -> Result<Vec<Topic>, Failed<TopicError>> {
        let mut changing = self.pool.begin().await?;
        let names: BTreeSet<&TopicName> = changes.iter().map(|(name, _)| name).collect();
        let asked: Vec<&str> = names.iter().map(|name| name.as_str()).collect();
        let partitions = sqlx::query(
            "select from partition where topic in (select id from topic where name = any($1)) order by topic, number for no key update",
        );
        changing.execute(partitions.bind(asked)).await?;
        let catalogue = lock(&mut changing, expects, names).await?;
        let find = |name: &TopicName| catalogue.topics.get(name).cloned();
        let (topics, more) = changed(changes.to_vec(), find).map_err(Failed::Refused)?;
        if more > 0 {
            let have = partition_count(&mut changing).await?;
            let checked = check_partitions(&self.memory.tables.room, have, more);
            checked.map_err(Failed::Refused)?;
        }
        for topic in &topics {
            let id = topic.id.0 as i64;
            let update = sqlx::query("update topic set spec = $2::jsonb where id = $1").bind(id);
            changing
                .execute(update.bind(spec_json(&topic.spec)))
                .await?;
            let durable =
                sqlx::query("update partition set durable = $2 where topic = $1 and durable <> $2");
            changing
                .execute(durable.bind(id).bind(is_durable(topic)))
                .await?;
            add_partitions(&mut changing, topic).await?;
        }
        topics_changed(&mut changing).await?;
        end(changing).await?;
        Ok(topics)
    }

    pub(crate) async fn delete_topic(
        &self,
        name: &TopicName,
        expects: Vec<Expectation>,
    ) -> Result<TopicId, TopicError> {
        let mut tries = Tries::default();
        let gone = loop {
            match self.delete_topic_once(name, &expects).await {
                Ok(done) => break done,
                Err(failed) => tries.again(failed)?,
            }
        };
        self.see_catalogue().await;
        Ok(gone)
    }

    async fn delete_topic_once(
        &self,
        name: &TopicName,
        expects: &[Expectation],
    ) -> Result<TopicId, Failed<TopicError>> {
        let mut deleting = self.pool.begin().await?;
        deleting.execute(sqlx::query(WAIT_BRIEFLY)).await?;
        let partitions = sqlx::query(
            "select from partition where topic in (select id from topic where name = $1) order by topic, number for update",
        );
        deleting.execute(partitions.bind(name.as_str())).await?;
        let catalogue = lock(&mut deleting, expects, [name]).await?;
        let topic = catalogue.topics.get(name);
        let topic = topic.ok_or_else(|| Failed::Refused(TopicError::Unknown(name.clone())))?;
        let id = topic.id;
        for statement in [
            "delete from state where chain in (select id from chain where topic = $1)",
            "delete from chain where topic = $1",
            "delete from producer where topic = $1",
            "delete from request where topic = $1",
            "delete from partition where topic = $1",
            "delete from topic where id = $1",
        ] {
            let delete = sqlx::query(statement).bind(id.0 as i64);
            deleting.execute(delete).await?;
        }
        let table = format!("drop table run_{id}");
        deleting
            .execute(sqlx::raw_sql(AssertSqlSafe(table)))
            .await?;
        topics_changed(&mut deleting).await?;
        end(deleting).await?;
        Ok(id)
    }

    pub(crate) async fn trim(
        &self,
        partition: TopicPartition,
        before: Offset,
    ) -> Result<Offset, TrimError> {
        let life = self.memory.life();
        let mut tries = Tries::default();
        let start = loop {
            match self.trim_once(partition, before).await {
                Ok(done) => break done,
                Err(failed) => tries.again(failed)?,
            }
        };
        let stored = crate::mirror::Stored {
            partition,
            start,
            next: Offset::default(),
        };
        let hear = || self.memory.mirror.hear_partitions(&[stored]);
        let _ = self.memory.remember(life, hear);
        Ok(start)
    }

    async fn trim_once(
        &self,
        partition: TopicPartition,
        before: Offset,
    ) -> Result<Offset, Failed<TrimError>> {
        let trim = sqlx::query(
            "update partition set start = greatest(start, $3) where topic = $1 and number = $2 and next >= $3 returning start",
        );
        let (topics, numbers) = columns([&partition]);
        let trim = trim.bind(topics[0]).bind(numbers[0]);
        let trim = trim.bind(before.0.min(Offset::MAX.0) as i64);
        if let Some(row) = self.pool.fetch_optional(trim).await? {
            return Ok(Offset(row.get::<i64, _>("start") as u64));
        }
        let find = sqlx::query("select next from partition where topic = $1 and number = $2");
        let find = find.bind(topics[0]).bind(numbers[0]);
        let refused = match self.pool.fetch_optional(find).await? {
            Some(row) => TrimError::PastEnd {
                requested: before,
                end: Offset(row.get::<i64, _>("next") as u64),
            },
            None => CommitError::UnknownPartition(partition).into(),
        };
        Err(Failed::Refused(refused))
    }

    /// This host's own changes show when they return.
    async fn see_catalogue(&self) {
        let life = self.memory.life();
        if let Ok(mut connection) = self.pool.acquire().await {
            self.hear_own_catalogue(life, &mut connection).await;
        }
    }

    pub(crate) async fn put_module(&self, digest: Digest, bytes: Bytes) -> Result<(), CommitError> {
        // What is there may be damaged; storing it again repairs it.
        let put = sqlx::query(
            "insert into module (digest, bytes) values ($1, $2) on conflict (digest) do update set bytes = excluded.bytes",
        );
        let put = put.bind(digest.0.to_vec()).bind(bytes.to_vec());
        self.pool.execute(put).await.map_err(undone)?;
        Ok(())
    }

    pub(crate) async fn module(&self, digest: Digest) -> Result<Option<Bytes>, ReadError> {
        let find = sqlx::query("select bytes from module where digest = $1");
        let find = find.bind(digest.0.to_vec());
        let row = self.pool.fetch_optional(find).await.map_err(unread)?;
        Ok(row.map(|row| row.get::<Vec<u8>, _>("bytes").into()))
    }

    pub(crate) async fn delete_module(
        &self,
        digest: Digest,
        expects: Vec<Expectation>,
    ) -> Result<(), CommitError> {
        let mut tries = Tries::default();
        loop {
            match self.delete_module_once(digest, &expects).await {
                Ok(()) => return Ok(()),
                Err(failed) => tries.again(failed)?,
            }
        }
    }

    async fn delete_module_once(
        &self,
        digest: Digest,
        expects: &[Expectation],
    ) -> Result<(), Failed<CommitError>> {
        let mut deleting = self.pool.begin().await?;
        let mut needs = CatalogueNeeds::default();
        needs.expect(expects);
        let catalogue = needs.lock(&mut deleting).await?;
        catalogue.check(expects).map_err(Failed::Refused)?;
        let delete = sqlx::query("delete from module where digest = $1");
        let delete = delete.bind(digest.0.to_vec());
        deleting.execute(delete).await?;
        end(deleting).await
    }
}
