//! Locks the rows on which a group of transactions is decided, and reads them.
//!
//! The order is the same for everybody: partitions, chains, keys of requests, kinds of entries; each in the order of its key. A deletion
//! of a topic takes more at once and may meet it crosswise; the database then ends one of both, which is tried again.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use millrace_engine::contract::{Lease, RequestMark, Transaction};
use millrace_engine::idempotence::Idempotence;
use millrace_engine::idempotence::producers::{Named, ProducerState, Sent};
use millrace_engine::idempotence::requests::Request;
use millrace_engine::{EntryKind, Expectation, Version};
use millrace_model::{
    Digest, GroupName, Offset, PartitionId, ProducerId, Progress, Timestamp, Topic, TopicId,
    TopicName, TopicPartition, TopicSpec,
};
use sqlx::postgres::PgConnection;
use sqlx::{Executor as _, Row as _};

use crate::tables::TableKey;
use crate::trouble::Trouble;

/// The row of `kind` that counts changes of topics.
pub(crate) const TOPICS: &str = "topic";

/// A partition that is appended to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) next: Offset,
    pub(crate) is_durable: bool,
    /// The leaf of the topic's table that takes its messages.
    pub(crate) bucket: i32,
}

#[derive(Clone, Debug)]
pub(crate) struct Chain {
    pub(crate) id: i64,
    pub(crate) epoch: u64,
    pub(crate) progress: Option<Progress>,
    pub(crate) state_seq: i64,
}

/// What is locked, as stored.
#[derive(Default)]
pub(crate) struct Locked {
    pub(crate) places: HashMap<TopicPartition, Place>,
    /// Partitions that exist, and cannot be deleted meanwhile.
    pub(crate) existing: HashSet<TopicPartition>,
    pub(crate) chains: HashMap<TableKey, Chain>,
    pub(crate) idempotence: Idempotence,
    /// The messages of the outbox that are still there.
    pub(crate) outbox: HashSet<u64>,
    pub(crate) catalogue: Catalogue,
}

/// The part of the catalogue that a decision is based on.
#[derive(Default)]
pub(crate) struct Catalogue {
    pub(crate) entries: HashMap<(EntryKind, String), Version>,
    pub(crate) kinds: HashMap<EntryKind, Version>,
    pub(crate) topics: BTreeMap<TopicName, Topic>,
    pub(crate) partitioners: HashSet<Digest>,
}

/// What a group of transactions needs.
#[derive(Default)]
pub(crate) struct Needs {
    appended: BTreeSet<TopicPartition>,
    named: BTreeSet<TopicPartition>,
    chains: BTreeSet<TableKey>,
    requests: BTreeSet<(TopicId, [u8; 16])>,
    numbered: BTreeSet<(TopicPartition, i64)>,
    producers: BTreeSet<i64>,
    producer_names: BTreeSet<String>,
    is_moment_needed: bool,
    outbox: BTreeSet<u64>,
    catalogue: CatalogueNeeds,
}

#[derive(Default)]
pub(crate) struct CatalogueNeeds {
    kinds: BTreeSet<&'static str>,
    writes: bool,
    entries: BTreeSet<(EntryKind, String)>,
    topics: BTreeSet<TopicName>,
    modules: BTreeSet<Digest>,
}

impl CatalogueNeeds {
    pub(crate) fn expect(&mut self, expects: &[Expectation]) {
        for expectation in expects {
            match expectation {
                Expectation::Entry { kind, key, .. } => {
                    self.kinds.insert(kind.as_str());
                    self.entries.insert((*kind, key.clone()));
                }
                Expectation::Kind { kind, .. } => drop(self.kinds.insert(kind.as_str())),
                Expectation::Topic { name, .. } => {
                    self.kinds.insert(TOPICS);
                    self.topics.insert(name.clone());
                }
                Expectation::NoPartitioner { module } => {
                    self.kinds.insert(TOPICS);
                    self.modules.insert(*module);
                }
                // What is taken is checked whoever expects it.
                Expectation::Outbox => {}
            }
        }
    }

    /// Topics change.
    pub(crate) fn change_topics(&mut self) {
        self.writes = true;
        self.kinds.insert(TOPICS);
    }

    /// These topics are read.
    pub(crate) fn topic(&mut self, name: &TopicName) {
        self.topics.insert(name.clone());
    }

    fn write(&mut self, kind: EntryKind) {
        self.writes = true;
        self.kinds.insert(kind.as_str());
    }
}

impl Needs {
    pub(crate) fn add(&mut self, transaction: &Transaction) {
        for append in &transaction.appends {
            self.appended.insert(append.partition);
            if let Some(numbering) = append.batch.numbering() {
                self.numbered
                    .insert((append.partition, numbering.producer.id));
                self.producers.insert(numbering.producer.id);
                self.is_moment_needed = true;
            }
        }
        if let Some(mark) = &transaction.request {
            self.named.insert(RequestMark::first_partition(mark));
            self.requests.insert((mark.topic, mark.key));
        }
        if let Some(next) = &transaction.producer {
            self.producers.insert(next.producer.id);
            self.producer_names.insert(next.name.to_string());
            self.is_moment_needed = true;
        }
        for write in &transaction.progress {
            self.named.insert(write.partition);
            self.lease(&write.lease);
            // Progress may be of another partition than its lease.
            self.chains
                .insert((write.partition, write.lease.group.clone()));
        }
        transaction
            .fences
            .iter()
            .for_each(|lease| self.lease(lease));
        for write in &transaction.state {
            self.named.insert(write.partition);
            self.chains.insert((write.partition, write.group.clone()));
            write.lease.iter().for_each(|lease| self.lease(lease));
        }
        self.outbox.extend(&transaction.outbox);
        self.catalogue.expect(&transaction.expects);
        for entry in &transaction.entries {
            self.catalogue.write(entry.kind);
        }
    }

    fn lease(&mut self, lease: &Lease) {
        self.named.insert(lease.partition);
        self.chains.insert((lease.partition, lease.group.clone()));
    }

    /// Locks and reads all of it.
    pub(crate) async fn lock(&self, connection: &mut PgConnection) -> Result<Locked, Trouble> {
        let mut locked = Locked::default();
        self.lock_appended(connection, &mut locked).await?;
        self.lock_named(connection, &mut locked).await?;
        self.lock_chains(connection, &mut locked).await?;
        self.lock_requests(connection, &mut locked).await?;
        self.read_producers(connection, &mut locked).await?;
        self.lock_outbox(connection, &mut locked).await?;
        locked.catalogue = self.catalogue.lock(connection).await?;
        Ok(locked)
    }

    async fn lock_appended(
        &self,
        connection: &mut PgConnection,
        locked: &mut Locked,
    ) -> Result<(), Trouble> {
        if self.appended.is_empty() {
            return Ok(());
        }
        let lock = sqlx::query(
            "select p.topic, p.number, p.next, p.durable, t.bucket from partition p join topic t on t.id = p.topic \
             where (p.topic, p.number) in (select * from unnest($1::bigint[], $2::int[])) \
             order by p.topic, p.number for no key update of p",
        );
        let (topics, numbers) = columns(&self.appended);
        let lock = lock.bind(topics).bind(numbers);
        for row in connection.fetch_all(lock).await? {
            let at = partition_of(&row);
            locked.existing.insert(at);
            let place = Place {
                next: Offset(row.get::<i64, _>("next") as u64),
                is_durable: row.get("durable"),
                bucket: row.get("bucket"),
            };
            locked.places.insert(at, place);
        }
        Ok(())
    }

    /// They must not be deleted; whoever appends to them goes on.
    async fn lock_named(
        &self,
        connection: &mut PgConnection,
        locked: &mut Locked,
    ) -> Result<(), Trouble> {
        let named: BTreeSet<_> = self.named.difference(&self.appended).copied().collect();
        if named.is_empty() {
            return Ok(());
        }
        let lock = sqlx::query(
            "select topic, number from partition where (topic, number) in (select * from unnest($1::bigint[], $2::int[])) \
             order by topic, number for key share",
        );
        let (topics, numbers) = columns(&named);
        let lock = lock.bind(topics).bind(numbers);
        let rows = connection.fetch_all(lock).await?;
        locked.existing.extend(rows.iter().map(partition_of));
        Ok(())
    }

    async fn lock_chains(
        &self,
        connection: &mut PgConnection,
        locked: &mut Locked,
    ) -> Result<(), Trouble> {
        if self.chains.is_empty() {
            return Ok(());
        }
        // One whose progress is written for the first time, under the lease of another partition, may not be there yet.
        let lock = sqlx::query(
            "select id, topic, number, grp, epoch, progress, state_seq from chain \
             where (topic, number, grp) in (select * from unnest($1::bigint[], $2::int[], $3::text[])) \
             order by id for no key update",
        );
        let at = || self.chains.iter().map(|(at, _)| *at);
        let topics: Vec<i64> = at().map(|at| at.topic.0 as i64).collect();
        let numbers: Vec<i32> = at().map(|at| at.partition.0 as i32).collect();
        let groups: Vec<&str> = self
            .chains
            .iter()
            .map(|(_, group)| group.as_str())
            .collect();
        let lock = lock.bind(topics).bind(numbers).bind(groups);
        for row in connection.fetch_all(lock).await? {
            let progress = row.get::<Option<&[u8]>, _>("progress");
            let progress = progress
                .map(|bytes| Progress::decode(bytes).ok_or_else(|| Trouble::malformed("progress")));
            let chain = Chain {
                id: row.get("id"),
                epoch: row.get::<i64, _>("epoch") as u64,
                progress: progress.transpose()?,
                state_seq: row.get("state_seq"),
            };
            let group = GroupName::stored(row.get("grp"));
            locked.chains.insert((partition_of(&row), group), chain);
        }
        Ok(())
    }

    /// A key that was never used has no row to lock.
    async fn lock_requests(
        &self,
        connection: &mut PgConnection,
        locked: &mut Locked,
    ) -> Result<(), Trouble> {
        if self.requests.is_empty() {
            return Ok(());
        }
        let mut locks: Vec<i64> = self.requests.iter().map(lock_of).collect();
        locks.sort_unstable();
        locks.dedup();
        let lock = sqlx::query(
            "select pg_advisory_xact_lock(key) from (select unnest($1::bigint[]) as key order by 1) as keys",
        );
        connection.execute(lock.bind(locks)).await?;
        let (topics, keys): (Vec<i64>, Vec<&[u8]>) = self
            .requests
            .iter()
            .map(|(topic, key)| (topic.0 as i64, &key[..]))
            .unzip();
        let find = sqlx::query(
            "select topic, key, fingerprint, at, offsets, note from request \
             where (topic, key) in (select * from unnest($1::bigint[], $2::bytea[]))",
        );
        for row in connection.fetch_all(find.bind(topics).bind(keys)).await? {
            let bytes = |column: &str| -> Result<[u8; 16], Trouble> {
                let bytes = row.get::<&[u8], _>(column);
                bytes
                    .try_into()
                    .map_err(|_| Trouble::malformed("a request"))
            };
            let request = Request {
                key: bytes("key")?,
                fingerprint: bytes("fingerprint")?,
                at: Timestamp(row.get::<i64, _>("at") as u64),
                base_offsets: offsets_of(row.get("offsets"))
                    .ok_or_else(|| Trouble::malformed("a request"))?,
                note: row.get::<Vec<u8>, _>("note").into(),
            };
            let topic = TopicId(row.get::<i64, _>("topic") as u64);
            let requests = &mut locked.idempotence.requests;
            requests.insert_stored(topic, 0, request);
        }
        Ok(())
    }

    /// Those of a partition are guarded by its lock, names by that of the counter.
    async fn read_producers(
        &self,
        connection: &mut PgConnection,
        locked: &mut Locked,
    ) -> Result<(), Trouble> {
        if !self.is_moment_needed {
            return Ok(());
        }
        let counter = match self.producer_names.is_empty() {
            true => "select value from meta where name = 'producer'",
            false => "select value from meta where name = 'producer' for no key update",
        };
        let row = connection.fetch_one(sqlx::query(counter)).await?;
        let producers = &mut locked.idempotence.producers;
        producers.set_next_id(row.get("value"));
        let names = sqlx::query(
            "select name, id, epoch, at from producer_name where id = any($1) or name = any($2)",
        );
        let ids: Vec<i64> = self.producers.iter().copied().collect();
        let given: Vec<&str> = self.producer_names.iter().map(String::as_str).collect();
        for row in connection.fetch_all(names.bind(ids).bind(given)).await? {
            let named = Named {
                producer: ProducerId {
                    id: row.get("id"),
                    epoch: row.get("epoch"),
                },
                at: Timestamp(row.get::<i64, _>("at") as u64),
            };
            producers.insert_name(row.get::<String, _>("name").into(), named);
        }
        if self.numbered.is_empty() {
            return Ok(());
        }
        let find = sqlx::query(
            "select topic, number, id, epoch, seen_at, sent from producer \
             where (topic, number, id) in (select * from unnest($1::bigint[], $2::int[], $3::bigint[]))",
        );
        let at = || self.numbered.iter().map(|(at, _)| *at);
        let topics: Vec<i64> = at().map(|at| at.topic.0 as i64).collect();
        let numbers: Vec<i32> = at().map(|at| at.partition.0 as i32).collect();
        let ids: Vec<i64> = self.numbered.iter().map(|(_, id)| *id).collect();
        let find = find.bind(topics).bind(numbers).bind(ids);
        for row in connection.fetch_all(find).await? {
            let sent = sent_of(row.get("sent")).ok_or_else(|| Trouble::malformed("a producer"))?;
            let seen_at = Timestamp(row.get::<i64, _>("seen_at") as u64);
            let state = ProducerState::stored(row.get("epoch"), seen_at, &sent);
            if let Some(state) = state {
                producers.insert(partition_of(&row), row.get("id"), state);
            }
        }
        Ok(())
    }
}

impl Needs {
    async fn lock_outbox(
        &self,
        connection: &mut PgConnection,
        locked: &mut Locked,
    ) -> Result<(), Trouble> {
        if self.outbox.is_empty() {
            return Ok(());
        }
        let lock = sqlx::query("select id from outbox where id = any($1) order by id for update");
        let ids: Vec<i64> = self.outbox.iter().map(|&id| id as i64).collect();
        let rows = connection.fetch_all(lock.bind(ids)).await?;
        let ids = rows.iter().map(|row| row.get::<i64, _>("id") as u64);
        locked.outbox.extend(ids);
        Ok(())
    }
}

impl CatalogueNeeds {
    pub(crate) async fn lock(&self, connection: &mut PgConnection) -> Result<Catalogue, Trouble> {
        let mut catalogue = Catalogue::default();
        if self.kinds.is_empty() {
            return Ok(catalogue);
        }
        let lock = match self.writes {
            true => {
                "select kind, version from kind where kind = any($1) order by kind for no key update"
            }
            false => "select kind, version from kind where kind = any($1) order by kind for share",
        };
        let kinds: Vec<&str> = self.kinds.iter().copied().collect();
        for row in connection.fetch_all(sqlx::query(lock).bind(kinds)).await? {
            let version = Version(row.get::<i64, _>("version") as u64);
            if let Some(kind) = EntryKind::parse(row.get("kind")) {
                catalogue.kinds.insert(kind, version);
            }
        }
        if !self.entries.is_empty() {
            let (kinds, keys): (Vec<&str>, Vec<&str>) = self
                .entries
                .iter()
                .map(|(kind, key)| (kind.as_str(), key.as_str()))
                .unzip();
            let find = sqlx::query(
                "select kind, key, version from entry where value is not null \
                 and (kind, key) in (select * from unnest($1::text[], $2::text[]))",
            );
            for row in connection.fetch_all(find.bind(kinds).bind(keys)).await? {
                let version = Version(row.get::<i64, _>("version") as u64);
                if let Some(kind) = EntryKind::parse(row.get("kind")) {
                    catalogue.entries.insert((kind, row.get("key")), version);
                }
            }
        }
        if !self.topics.is_empty() {
            let names: Vec<&str> = self.topics.iter().map(TopicName::as_str).collect();
            let find = sqlx::query("select id, spec::text as spec from topic where name = any($1)");
            for row in connection.fetch_all(find.bind(names)).await? {
                let topic = topic_of(&row)?;
                catalogue.topics.insert(topic.spec.name.clone(), topic);
            }
        }
        if !self.modules.is_empty() {
            let modules: Vec<String> = self.modules.iter().map(Digest::to_string).collect();
            let find = sqlx::query(
                "select distinct spec ->> 'partitioner' as module from topic where spec ->> 'partitioner' = any($1)",
            );
            for row in connection.fetch_all(find.bind(modules)).await? {
                let module = row.get::<String, _>("module");
                catalogue.partitioners.extend(module.parse::<Digest>().ok());
            }
        }
        Ok(catalogue)
    }
}

impl Catalogue {
    /// Whether all expectations hold.
    pub(crate) fn check(
        &self,
        expects: &[Expectation],
    ) -> Result<(), millrace_engine::CommitError> {
        millrace_engine::entries::check(
            expects,
            |kind, key| self.entries.get(&(kind, key.to_owned())).copied(),
            |kind| self.kinds.get(&kind).copied().unwrap_or_default(),
            |name| self.topics.get(name),
            |module| self.partitioners.contains(&module),
        )
    }
}

pub(crate) fn topic_of(row: &sqlx::postgres::PgRow) -> Result<Topic, Trouble> {
    let spec = serde_json::from_str::<TopicSpec>(row.get("spec"));
    Ok(Topic {
        id: TopicId(row.get::<i64, _>("id") as u64),
        spec: spec.map_err(|_| Trouble::malformed("a topic"))?,
    })
}

pub(crate) fn partition_of(row: &sqlx::postgres::PgRow) -> TopicPartition {
    TopicPartition {
        topic: TopicId(row.get::<i64, _>("topic") as u64),
        partition: PartitionId(row.get::<i32, _>("number") as u32),
    }
}

/// Partitions as columns of a statement.
pub(crate) fn columns<'a>(
    partitions: impl IntoIterator<Item = &'a TopicPartition>,
) -> (Vec<i64>, Vec<i32>) {
    let column = |at: &TopicPartition| (at.topic.0 as i64, at.partition.0 as i32);
    partitions.into_iter().map(column).unzip()
}

/// The key's digest is random, so that half of it tells keys apart; two that share it wait for each other.
fn lock_of((topic, key): &(TopicId, [u8; 16])) -> i64 {
    let half = std::array::from_fn(|index| key[index]);
    i64::from_le_bytes(half) ^ (topic.0 as i64)
}

/// Offsets as stored.
pub(crate) fn offsets_bytes(offsets: &[Offset]) -> Vec<u8> {
    let bytes = offsets.iter().flat_map(|offset| offset.0.to_le_bytes());
    bytes.collect()
}

fn offsets_of(bytes: &[u8]) -> Option<Vec<Offset>> {
    let (offsets, rest) = bytes.as_chunks::<8>();
    let offset = |bytes: &[u8; 8]| Offset(u64::from_le_bytes(*bytes));
    rest.is_empty()
        .then(|| offsets.iter().map(offset).collect())
}

/// A producer's last batches as stored: the numbers of the first and the last message, and the offset; oldest first.
pub(crate) fn sent_bytes(sent: &[Sent]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(sent.len() * 16);
    for Sent { first, last, base } in sent {
        bytes.extend(first.to_le_bytes());
        bytes.extend(last.to_le_bytes());
        bytes.extend(base.0.to_le_bytes());
    }
    bytes
}

fn sent_of(bytes: &[u8]) -> Option<Vec<Sent>> {
    let (all, rest) = bytes.as_chunks::<16>();
    let sent = |bytes: &[u8; 16]| {
        let number = |at: usize| i32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        Sent {
            first: number(0),
            last: number(4),
            base: Offset(u64::from_le_bytes(std::array::from_fn(|i| bytes[8 + i]))),
        }
    };
    rest.is_empty().then(|| all.iter().map(sent).collect())
}
