//! The engine as its callers see it: opens the stream, starts the tasks, and passes every verb on.

#[cfg(all(test, has_nats))]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use millrace_engine::room::Room;
use millrace_engine::state::{StatePage, StateQuery, StateTable};
use millrace_engine::{
    AdoptError, Adoption, CommitError, Ends, Engine, Entry, EntryKind, Expectation, Hold, HostId,
    HostInfo, Limits, ReadError, Receipt, TopicChange, TopicError, Transaction, TrimError, Version,
    Watch,
};
use millrace_model::{
    Clock, Digest, GroupName, Offset, ProducerId, Progress, RecordBatch, Timestamp, Topic, TopicId,
    TopicName, TopicPartition, TopicSpec,
};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::acknowledged::ACKNOWLEDGED_MAX;
use crate::cells::{Cells, Chain};
use crate::chains::Holds;
use crate::cleaning;
use crate::committing::{self, Queue};
use crate::compaction;
use crate::connect::{self, Connected, OpenError};
use crate::feed;
use crate::hosts::{self, Reached};
use crate::mirror::Mirror;
use crate::options::JetstreamOptions;
use crate::store::{Counting, Store, random};
use crate::subjects::{Place, Subjects};
use crate::tables::Tables;
use crate::trouble::Trouble;

/// How long a host tries to read and write the stream before it gives up to start: a cluster may just be choosing a leader.
const OPEN_DURATION_MAX: std::time::Duration = std::time::Duration::from_secs(30);
const OPEN_INTERVAL: std::time::Duration = std::time::Duration::from_millis(500);
/// Bytes of one transaction: the servers keep it in memory until it is whole.
const TRANSACTION_BYTES_MAX: usize = 48 << 20;
/// Approximate bytes of each part of a transaction besides its content.
const PART_OVERHEAD_BYTES: usize = 64;

/// A host on a JetStream stream.
pub struct JetstreamEngine {
    store: Arc<Store>,
    queue: Queue,
    reached: Arc<Reached>,
    stop: watch::Sender<bool>,
    tasks: Mutex<Option<Tasks>>,
}

struct Tasks {
    committer: JoinHandle<()>,
    feed: JoinHandle<()>,
    others: Vec<JoinHandle<()>>,
}

impl JetstreamEngine {
    /// Connects, creates the stream if it is new, reads what a host must know, and joins the others.
    ///
    /// # Errors
    /// [`OpenError`]; nothing was lost.
    pub async fn open(
        options: JetstreamOptions,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, OpenError> {
        let Connected { client, stream } = connect::open(&options).await?;
        let (sender, acknowledged) = mpsc::channel(ACKNOWLEDGED_MAX);
        let store = Arc::new(Store {
            subjects: Subjects::new(&options.stream),
            // Random: a restarted process is a different host.
            me: HostId(random() >> 2),
            seat: Mutex::default(),
            mirror: Mirror::new(options.fresh_bytes_max),
            cells: Cells::default(),
            tables: Tables::new(Room::new(options.bounds)),
            holds: Holds::default(),
            is_closed: AtomicBool::new(false),
            counting: Counting::default(),
            acknowledged: sender,
            is_stalled: AtomicBool::new(false),
            client,
            stream,
            clock,
            options,
        });
        let refused = |error: Trouble| OpenError::Refused(error.to_string());
        let loaded = patiently(&store, async || feed::load(&store).await).await;
        let begun = loaded.map_err(refused)?;
        let feed = tokio::spawn(feed::run(Arc::clone(&store), begun, acknowledged));
        let (stop, stopped) = watch::channel(false);
        // Joins the others, and hears of everything that is there.
        let begun = patiently(&store, async || store.say_and_hear().await).await;
        if let Err(error) = begun {
            feed.abort();
            return Err(refused(error));
        }
        let reached = Arc::new(Reached::now());
        let (queue, waiting) = committing::queue();
        let living = hosts::live(Arc::clone(&store), Arc::clone(&reached), stopped.clone());
        let tasks = Tasks {
            committer: tokio::spawn(committing::run(Arc::clone(&store), waiting)),
            feed,
            others: vec![
                tokio::spawn(living),
                tokio::spawn(cleaning::run(Arc::clone(&store), stopped.clone())),
                tokio::spawn(compaction::run(Arc::clone(&store), stopped)),
            ],
        };
        Ok(Arc::new(Self {
            store,
            queue,
            reached,
            stop,
            tasks: Mutex::new(Some(tasks)),
        }))
    }

    async fn chain(
        &self,
        group: &GroupName,
        partition: TopicPartition,
    ) -> Result<Option<Chain>, ReadError> {
        self.store.mirror.ends(partition)?;
        let subject = self.store.subjects.chain(partition, group);
        let known = self.store.read_cell(&subject).await?;
        if known.seq == 0 {
            return Ok(None);
        }
        let chain = Chain::decode(&known.body);
        Ok(Some(chain.ok_or_else(|| Trouble::malformed("a chain"))?))
    }
}

/// Tries until it can be done.
async fn patiently<T>(
    store: &Store,
    what: impl AsyncFn() -> Result<T, Trouble>,
) -> Result<T, Trouble> {
    let started = store.clock.monotonic();
    loop {
        let error = match what().await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let passed = store.clock.monotonic().saturating_sub(started);
        if passed > OPEN_DURATION_MAX {
            return Err(error);
        }
        tracing::warn!(%error, "the stream does not answer yet; it is tried again");
        tokio::time::sleep(OPEN_INTERVAL).await;
    }
}

/// Approximately the bytes of a transaction on its way.
fn byte_count(transaction: &Transaction) -> usize {
    let appends = transaction.appends.iter();
    let appends = appends.map(|append| append.batch.byte_count());
    let progress = transaction.progress.iter();
    let progress = progress.map(|write| write.progress.encoded_bytes());
    let entries = transaction.entries.iter();
    let entries = entries.map(|e| e.key.len() + e.value.as_ref().map_or(0, Bytes::len));
    let state = transaction.state.iter();
    let state = state.map(|write| write.writes.byte_count());
    let request = transaction.request.iter().map(|mark| mark.note.len());
    let parts = appends.chain(progress).chain(entries).chain(state);
    parts
        .chain(request)
        .map(|bytes| bytes + PART_OVERHEAD_BYTES)
        .sum()
}

/// A process that ended is considered dead.
impl Drop for JetstreamEngine {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(tasks) = self.tasks.get_mut() {
            tasks.committer.abort();
            tasks.feed.abort();
            tasks.others.iter().for_each(JoinHandle::abort);
        }
    }
}

#[async_trait]
impl Engine for JetstreamEngine {
    async fn commit(&self, transaction: Transaction) -> Result<Receipt, CommitError> {
        self.store.check_open()?;
        self.store.check_durable(transaction.durability)?;
        let bytes = byte_count(&transaction);
        self.limits().check(bytes)?;
        self.queue.commit(&self.store, transaction, bytes).await
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
        self.store.mirror.watch(partition)
    }

    fn ends(&self, partition: TopicPartition) -> Result<Ends, ReadError> {
        self.store.mirror.ends(partition)
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
        let taken = self.store.take(group, partition, false).await?;
        taken.ok_or(CommitError::UnknownPartition(partition))
    }

    async fn hold(
        &self,
        group: &GroupName,
        partition: TopicPartition,
    ) -> Result<Option<Hold>, CommitError> {
        self.store.check_open()?;
        self.store.take(group, partition, true).await
    }

    async fn release(&self, hold: Hold) -> Result<(), CommitError> {
        self.store.check_open()?;
        self.store.release(hold).await
    }

    fn host(&self) -> HostId {
        self.store.me
    }

    fn hosts(&self) -> watch::Receiver<Arc<[HostInfo]>> {
        self.store.mirror.hosts()
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
        let chain = self.chain(group, partition).await?;
        Ok(chain.and_then(|chain| chain.progress))
    }

    async fn groups(&self, partition: TopicPartition) -> Result<Vec<GroupName>, ReadError> {
        self.store.mirror.ends(partition)?;
        Ok(self.store.mirror.heard.read().groups(partition))
    }

    async fn progress_partitions(
        &self,
        group: &GroupName,
    ) -> Result<Vec<TopicPartition>, ReadError> {
        let heard = self.store.mirror.heard.read();
        let chains = heard.chains.iter();
        let own = chains.filter(|((_, of), chain)| of == group && chain.next.is_some());
        let mut found: Vec<TopicPartition> = own.map(|((at, _), _)| *at).collect();
        found.sort_unstable();
        Ok(found)
    }

    async fn state(
        &self,
        group: &GroupName,
        partition: TopicPartition,
    ) -> Result<Arc<StateTable>, ReadError> {
        let loaded = self.store.table(&(partition, group.clone())).await?;
        Ok(Arc::clone(&loaded.table))
    }

    fn watch_state(&self, group: &GroupName) -> watch::Receiver<u64> {
        self.store.tables.watch(group)
    }

    async fn read_state(
        &self,
        group: &GroupName,
        partition: TopicPartition,
        query: &StateQuery,
    ) -> Result<StatePage, ReadError> {
        self.store.page(&(partition, group.clone()), query).await
    }

    async fn state_partitions(&self, group: &GroupName) -> Result<Vec<TopicPartition>, ReadError> {
        let mut places = std::collections::BTreeSet::new();
        for filter in self.store.subjects.state_of(group) {
            let listed = self.store.stream.info_with_subjects(filter).await;
            let mut listed = listed.map_err(Trouble::unavailable)?;
            while let Some((subject, _)) = listed.try_next().await.map_err(Trouble::unavailable)? {
                match self.store.subjects.parse(&subject) {
                    Place::Delta(at, _) | Place::Snapshot(at, _) => drop(places.insert(at)),
                    _ => {}
                }
            }
        }
        let mut found = Vec::new();
        for at in places {
            match self.store.table(&(at, group.clone())).await {
                Ok(loaded) if loaded.table.size().entries > 0 => found.push(at),
                Ok(_) | Err(ReadError::UnknownPartition(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
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
        self.store.mirror.topics()
    }

    fn topic(&self, name: &TopicName) -> Option<Topic> {
        self.store.mirror.topic(name)
    }

    fn entries(&self, kind: EntryKind) -> Vec<(String, Entry)> {
        self.store.mirror.entries(kind)
    }

    fn entry(&self, kind: EntryKind, key: &str) -> Option<Entry> {
        self.store.mirror.entry(kind, key)
    }

    fn version(&self, kind: EntryKind) -> Version {
        self.store.mirror.version(kind)
    }

    fn watch_catalogue(&self) -> watch::Receiver<u64> {
        self.store.mirror.watch_catalogue()
    }

    async fn hear(&self) -> Result<(), ReadError> {
        Ok(self.store.sync().await?)
    }

    async fn adopt(&self, adoption: Adoption) -> Result<(), AdoptError> {
        self.store.check_open()?;
        self.store.adopt(adoption).await
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

    async fn health(&self) -> Result<(), CommitError> {
        self.store.check_open()?;
        match self.reached.is_so() {
            true => Ok(()),
            false => {
                let reason = "no server answers";
                Err(CommitError::Unavailable(reason.into()))
            }
        }
    }

    async fn close(&self) {
        if self.store.is_closed.swap(true, Ordering::AcqRel) {
            return;
        }
        self.queue.close();
        let Some(tasks) = self.tasks.lock().take() else {
            return;
        };
        // It ends when nothing waits: what was taken is committed and answered.
        if let Err(error) = tasks.committer.await {
            tracing::error!(%error, "the task of commits failed");
        }
        self.stop.send_replace(true);
        for task in tasks.others {
            // The heartbeat must not come after the farewell.
            let _ = task.await;
        }
        self.store.leave().await;
        tasks.feed.abort();
        self.store.holds.clear();
        if let Err(error) = self.store.client.drain().await {
            tracing::debug!(%error, "the connection was closed already");
        }
    }
}

#[cfg(all(test, not(has_nats)))]
#[test]
#[ignore = "there is no nats-server: the suites of engines need a real one (MILLRACE_TEST_NATS, or on the PATH)"]
fn the_suites_hold_on_a_server() {}
