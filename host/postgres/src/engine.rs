//! The engine as its callers see it: opens the database, starts the tasks, and passes every verb on.

#[cfg(all(test, has_postgres))]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use millrace_engine::room::Room;
use millrace_engine::state::{StatePage, StateQuery, StateTable};
use millrace_engine::{
    AdoptError, Adoption, CommitError, Ends, Engine, Entry, EntryKind, Expectation, GroupProgress,
    Hold, HostId, HostInfo, Limits, OutboxMessage, ReadError, Receipt, TopicChange, TopicError,
    Transaction, TrimError, Version, Watch,
};
use millrace_model::{
    Clock, Digest, GroupName, Offset, ProducerId, Progress, RecordBatch, Timestamp, Topic, TopicId,
    TopicName, TopicPartition, TopicSpec,
};
use parking_lot::Mutex;
use sqlx::postgres::PgRow;
use sqlx::{Executor as _, Row as _};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::chains::chain_of;
use crate::cleaning::{self, Work};
use crate::commit::lanes::{self, LANES, Queue};
use crate::commit::locking::partition_of;
use crate::connect::{self, Connect, OpenError};
use crate::following;
use crate::hosts::{self, Hosts, Session};
use crate::memory::Memory;
use crate::options::PostgresOptions;
use crate::store::Store;
use crate::tables::{Loaded, TableKey};
use crate::trouble::{Trouble, undone, unread};

/// Bytes of one transaction: it is in the memory of both sides.
const TRANSACTION_BYTES_MAX: usize = 64 << 20;
/// Approximate bytes of each part of a transaction besides its content.
const PART_OVERHEAD_BYTES: usize = 64;

/// A host on a PostgreSQL database.
pub struct PostgresEngine {
    store: Arc<Store>,
    queue: Queue,
    stop: watch::Sender<bool>,
    tasks: Mutex<Option<Tasks>>,
}

struct Tasks {
    lanes: Vec<JoinHandle<()>>,
    followers: Vec<JoinHandle<()>>,
    life: JoinHandle<Option<Session>>,
}

impl PostgresEngine {
    /// Connects to the database, creates its schema if it is new, and joins its hosts.
    ///
    /// # Errors
    /// [`OpenError`]; nothing was lost.
    pub async fn open(
        options: PostgresOptions,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, OpenError> {
        let hosts = Hosts::new();
        let name = hosts::session_name(&options, hosts.id);
        let room = Room::new(options.bounds);
        let memory = Arc::new(Memory::new(room, Arc::clone(&clock)));
        let connect = Connect::new(&options, &name, &memory)?;
        let pool = connect::open(&options, &connect).await?;
        let store = Arc::new(Store {
            hosts,
            connect,
            pool,
            clock,
            memory,
            is_closed: AtomicBool::new(false),
            options,
        });
        let refused = |error: Trouble| OpenError::Refused(error.to_string());
        let session = Session::begin(&store.hosts, &store.options, &store.connect, &*store.clock);
        let session = session.await;
        let session = session.map_err(refused)?;
        store.look().await.map_err(refused)?;
        let (queue, intake) = lanes::queue();
        let (stop, stopped) = watch::channel(false);
        let lane = |_| tokio::spawn(lanes::run(Arc::clone(&store), Arc::clone(&intake)));
        let tasks = Tasks {
            lanes: (0..LANES).map(lane).collect(),
            followers: vec![
                tokio::spawn(following::follow(Arc::clone(&store), stopped.clone())),
                tokio::spawn(following::tell(Arc::clone(&store), stopped.clone())),
                tokio::spawn(cleaning::run(
                    Arc::clone(&store),
                    Work::Clean,
                    stopped.clone(),
                )),
                tokio::spawn(cleaning::run(
                    Arc::clone(&store),
                    Work::Compact,
                    stopped.clone(),
                )),
            ],
            life: tokio::spawn({
                let store = Arc::clone(&store);
                async move {
                    let Store {
                        hosts,
                        options,
                        connect,
                        clock,
                        ..
                    } = &*store;
                    hosts::live(hosts, options, connect, &**clock, session, stopped).await
                }
            }),
        };
        Ok(Arc::new(Self {
            store,
            queue,
            stop,
            tasks: Mutex::new(Some(tasks)),
        }))
    }

    /// The tables that a transaction writes, and the chains that it needs.
    async fn tables_of(
        &self,
        transaction: &Transaction,
    ) -> Result<Vec<(TableKey, Arc<Loaded>)>, CommitError> {
        let mut tables = Vec::with_capacity(transaction.state.len());
        for write in &transaction.state {
            let table = self
                .store
                .known_table(&write.group, write.partition)
                .await?;
            tables.push(((write.partition, write.group.clone()), table));
        }
        for write in &transaction.progress {
            // That of the lease is there, or the lease is not valid.
            if write.partition != write.lease.partition {
                let chain = chain_of(&self.store.pool, &write.lease.group, write.partition);
                let chain = chain.await.map_err(CommitError::from)?;
                chain.ok_or(CommitError::UnknownPartition(write.partition))?;
            }
        }
        Ok(tables)
    }
}

/// Approximately the bytes of a transaction on its way.
fn byte_count(transaction: &Transaction) -> usize {
    let appends = transaction
        .appends
        .iter()
        .map(|append| append.batch.byte_count());
    let progress = transaction
        .progress
        .iter()
        .map(|w| w.progress.encoded_bytes());
    let entries = transaction.entries.iter();
    let entries = entries.map(|e| e.key.len() + e.value.as_ref().map_or(0, Bytes::len));
    let state = transaction
        .state
        .iter()
        .map(|write| write.writes.byte_count());
    let request = transaction.request.iter().map(|mark| mark.note.len());
    let parts = appends.chain(progress).chain(entries).chain(state);
    parts
        .chain(request)
        .map(|bytes| bytes + PART_OVERHEAD_BYTES)
        .sum()
}

/// A process that ended is considered dead.
impl Drop for PostgresEngine {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(tasks) = self.tasks.get_mut() {
            let all = tasks.lanes.iter().chain(&tasks.followers);
            all.for_each(JoinHandle::abort);
            tasks.life.abort();
        }
    }
}

#[async_trait]
impl Engine for PostgresEngine {
    async fn commit(&self, transaction: Transaction) -> Result<Receipt, CommitError> {
        self.store.check_open()?;
        let bytes = byte_count(&transaction);
        self.limits().check(bytes)?;
        let tables = self.tables_of(&transaction).await?;
        self.queue.commit(transaction, tables, bytes).await
    }

    async fn read(
        &self,
        partition: TopicPartition,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Vec<RecordBatch>, ReadError> {
        self.store.read(partition, from, bytes_max).await
    }

    fn watch(&self, partition: TopicPartition) -> Result<Watch, ReadError> {
        self.store.memory.mirror.watch(partition)
    }

    fn ends(&self, partition: TopicPartition) -> Result<Ends, ReadError> {
        self.store.memory.mirror.ends(partition)
    }

    async fn count(
        &self,
        partition: TopicPartition,
        from: Offset,
        to: Offset,
    ) -> Result<u64, ReadError> {
        self.store.count(partition, from, to).await
    }

    fn limits(&self) -> Limits {
        Limits {
            transaction_bytes_max: TRANSACTION_BYTES_MAX,
        }
    }

    async fn claim(
        &self,
        group: &GroupName,
        partition: TopicPartition,
    ) -> Result<Hold, CommitError> {
        self.store.check_open()?;
        self.store.claim(group, partition).await
    }

    async fn hold(
        &self,
        group: &GroupName,
        partition: TopicPartition,
    ) -> Result<Option<Hold>, CommitError> {
        self.store.check_open()?;
        self.store.hold(group, partition).await
    }

    async fn release(&self, hold: Hold) -> Result<(), CommitError> {
        self.store.check_open()?;
        self.store.release(hold).await
    }

    fn host(&self) -> HostId {
        self.store.hosts.id
    }

    fn hosts(&self) -> watch::Receiver<Arc<[HostInfo]>> {
        self.store.hosts.alive()
    }

    async fn init_producer(&self, name: Option<&str>) -> Result<ProducerId, CommitError> {
        self.store.check_open()?;
        self.store.init_producer(name).await
    }

    async fn progress(
        &self,
        group: &GroupName,
        partition: TopicPartition,
    ) -> Result<Option<Progress>, ReadError> {
        self.store.memory.mirror.ends(partition)?;
        self.store.progress(group, partition).await
    }

    async fn progress_at_once(
        &self,
        groups: &[GroupName],
    ) -> Result<Option<Vec<GroupProgress>>, ReadError> {
        let find = sqlx::query(
            "select grp, topic, number, progress from chain where grp = any($1) and progress is not null",
        );
        let names: Vec<&str> = groups.iter().map(GroupName::as_str).collect();
        let rows = self.store.pool.fetch_all(find.bind(names)).await;
        let read = |row: &PgRow| {
            let progress = Progress::decode(row.get("progress"));
            let progress = progress.ok_or_else(|| Trouble::malformed("progress"))?;
            Ok(GroupProgress {
                group: GroupName::stored(row.get("grp")),
                partition: partition_of(row),
                progress,
            })
        };
        let all: Result<Vec<GroupProgress>, Trouble> =
            rows.map_err(unread)?.iter().map(read).collect();
        Ok(Some(all?))
    }

    async fn groups(&self, partition: TopicPartition) -> Result<Vec<GroupName>, ReadError> {
        self.store.memory.mirror.ends(partition)?;
        let find = sqlx::query(
            "select grp from chain where topic = $1 and number = $2 and progress is not null",
        );
        let find = find.bind(partition.topic.0 as i64);
        let find = find.bind(partition.partition.0 as i32);
        let rows = self.store.pool.fetch_all(find).await.map_err(unread)?;
        let names = rows.iter().map(|row| GroupName::stored(row.get("grp")));
        // By name, whatever the order of the database's language.
        let mut names: Vec<GroupName> = names.collect();
        names.sort_unstable();
        Ok(names)
    }

    async fn progress_partitions(
        &self,
        group: &GroupName,
    ) -> Result<Vec<TopicPartition>, ReadError> {
        let find = "select topic, number from chain where grp = $1 and progress is not null order by topic, number";
        self.store.partitions(find, group).await
    }

    async fn state(
        &self,
        group: &GroupName,
        partition: TopicPartition,
    ) -> Result<Arc<StateTable>, ReadError> {
        self.store.memory.mirror.ends(partition)?;
        let loaded = self.store.table(group, partition).await?;
        Ok(Arc::clone(&loaded.table))
    }

    fn watch_state(&self, group: &GroupName) -> watch::Receiver<u64> {
        self.store.memory.tables.watch(group)
    }

    async fn read_state(
        &self,
        group: &GroupName,
        partition: TopicPartition,
        query: &StateQuery,
    ) -> Result<StatePage, ReadError> {
        self.store.memory.mirror.ends(partition)?;
        self.store.page(group, partition, query).await
    }

    async fn state_partitions(&self, group: &GroupName) -> Result<Vec<TopicPartition>, ReadError> {
        let find = "select topic, number from chain c where grp = $1 \
            and exists (select from state s where s.chain = c.id and s.value is not null) order by topic, number";
        self.store.partitions(find, group).await
    }

    async fn create_topic(
        &self,
        spec: TopicSpec,
        expects: Vec<Expectation>,
    ) -> Result<Topic, TopicError> {
        self.store.check_open()?;
        self.store.create_topic(spec, expects).await
    }

    async fn change_topics(
        &self,
        changes: Vec<(TopicName, TopicChange)>,
        expects: Vec<Expectation>,
    ) -> Result<Vec<Topic>, TopicError> {
        self.store.check_open()?;
        self.store.change_topics(changes, expects).await
    }

    async fn trim(&self, partition: TopicPartition, before: Offset) -> Result<Offset, TrimError> {
        self.store.check_open()?;
        self.store.trim(partition, before).await
    }

    async fn offset_at(
        &self,
        partition: TopicPartition,
        at: Timestamp,
    ) -> Result<Option<Offset>, ReadError> {
        self.store.offset_at(partition, at).await
    }

    async fn delete_topic(
        &self,
        name: &TopicName,
        expects: Vec<Expectation>,
    ) -> Result<TopicId, TopicError> {
        self.store.check_open()?;
        self.store.delete_topic(name, expects).await
    }

    fn topics(&self) -> Vec<Topic> {
        self.store.memory.mirror.topics()
    }

    fn topic(&self, name: &TopicName) -> Option<Topic> {
        self.store.memory.mirror.topic(name)
    }

    fn entries(&self, kind: EntryKind) -> Vec<(String, Entry)> {
        self.store.memory.mirror.entries(kind)
    }

    fn entry(&self, kind: EntryKind, key: &str) -> Option<Entry> {
        self.store.memory.mirror.entry(kind, key)
    }

    fn version(&self, kind: EntryKind) -> Version {
        self.store.memory.mirror.version(kind)
    }

    fn watch_catalogue(&self) -> watch::Receiver<u64> {
        self.store.memory.mirror.watch_catalogue()
    }

    async fn hear(&self) -> Result<(), ReadError> {
        Ok(self.store.follow_catalogue().await?)
    }

    async fn put_module(&self, digest: Digest, bytes: Bytes) -> Result<(), CommitError> {
        self.store.check_open()?;
        self.store.put_module(digest, bytes).await
    }

    async fn module(&self, digest: Digest) -> Result<Option<Bytes>, ReadError> {
        self.store.module(digest).await
    }

    async fn delete_module(
        &self,
        digest: Digest,
        expects: Vec<Expectation>,
    ) -> Result<(), CommitError> {
        self.store.check_open()?;
        self.store.delete_module(digest, expects).await
    }

    async fn adopt(&self, adoption: Adoption) -> Result<(), AdoptError> {
        self.store.check_open()?;
        if let Adoption::Messages { batches, .. } = &adoption {
            let bytes = batches.iter().map(RecordBatch::byte_count).sum();
            self.limits().check(bytes)?;
        }
        // Boxed: it would make every future of this verb large.
        Box::pin(self.store.adopt(adoption)).await
    }

    fn has_outbox(&self) -> bool {
        true
    }

    async fn outbox(&self, max: usize) -> Result<Vec<OutboxMessage>, ReadError> {
        self.store.outbox(max).await
    }

    async fn refuse_outbox(&self, id: u64, why: &str) -> Result<(), CommitError> {
        self.store.check_open()?;
        self.store.refuse_outbox(id, why).await
    }

    async fn health(&self) -> Result<(), CommitError> {
        self.store.check_open()?;
        match self.store.hosts.is_reached() {
            true => Ok(()),
            false => {
                let reason = "the database does not answer";
                Err(CommitError::Unavailable(reason.into()))
            }
        }
    }

    async fn close(&self) {
        if self.store.is_closed.swap(true, Ordering::AcqRel) {
            return;
        }
        self.queue.close();
        self.stop.send_replace(true);
        let Some(tasks) = self.tasks.lock().take() else {
            return;
        };
        // Each ends when nothing waits: what was taken is committed and answered.
        for lane in tasks.lanes {
            if let Err(error) = lane.await {
                tracing::error!(%error, "a lane of commits failed");
            }
        }
        for follower in tasks.followers {
            follower.abort();
        }
        if let Ok(Some(session)) = tasks.life.await {
            session.end(&self.store.hosts, &self.store.options).await;
        }
        self.store.memory.holds.lose_all();
        self.store.pool.close().await;
    }
}

impl Store {
    async fn partitions(
        &self,
        find: &'static str,
        group: &GroupName,
    ) -> Result<Vec<TopicPartition>, ReadError> {
        let rows = self
            .pool
            .fetch_all(sqlx::query(find).bind(group.as_str()))
            .await;
        let rows = rows.map_err(unread)?;
        Ok(rows.iter().map(partition_of).collect())
    }

    async fn progress(
        &self,
        group: &GroupName,
        partition: TopicPartition,
    ) -> Result<Option<Progress>, ReadError> {
        let find =
            sqlx::query("select progress from chain where topic = $1 and number = $2 and grp = $3");
        let find = find.bind(partition.topic.0 as i64);
        let find = find.bind(partition.partition.0 as i32).bind(group.as_str());
        let row = self.pool.fetch_optional(find).await.map_err(unread)?;
        let Some(bytes) = row.and_then(|row| row.get::<Option<Vec<u8>>, _>("progress")) else {
            return Ok(None);
        };
        let progress = Progress::decode(&bytes);
        let progress = progress.ok_or_else(|| Trouble::malformed("progress"));
        Ok(Some(progress?))
    }

    async fn init_producer(&self, name: Option<&str>) -> Result<ProducerId, CommitError> {
        use millrace_engine::idempotence::Idempotence;
        use millrace_engine::idempotence::producers::Named;
        let mut giving = self.pool.begin().await.map_err(undone)?;
        let counter =
            sqlx::query("select value from meta where name = 'producer' for no key update");
        let row = giving.fetch_one(counter).await.map_err(undone)?;
        let mut idempotence = Idempotence::default();
        idempotence.apply_moment(self.clock.wall());
        idempotence.producers.set_next_id(row.get("value"));
        if let Some(name) = name {
            let find = sqlx::query("select id, epoch, at from producer_name where name = $1");
            let known = giving.fetch_optional(find.bind(name)).await;
            if let Some(row) = known.map_err(undone)? {
                let named = Named {
                    producer: ProducerId {
                        id: row.get("id"),
                        epoch: row.get("epoch"),
                    },
                    at: Timestamp(row.get::<i64, _>("at") as u64),
                };
                idempotence.producers.insert_name(name.into(), named);
            }
        }
        let given = idempotence.producers.decide(name)?;
        idempotence.give(given, name.map(Arc::from));
        crate::commit::writing::write_producers(&mut giving, &mut idempotence).await?;
        let count =
            sqlx::query("update meta set value = greatest(value, $1) where name = 'producer'");
        giving
            .execute(count.bind(given.id + 1))
            .await
            .map_err(undone)?;
        let ended = giving.commit().await;
        ended.map_err(|error| CommitError::InDoubt(error.to_string().into()))?;
        Ok(given)
    }
}

#[cfg(all(test, not(has_postgres)))]
#[test]
#[ignore = "PostgreSQL is not installed: the suites of engines need a real server"]
fn the_suites_hold_on_a_server() {}
