//! The engine as its callers see it: [`Engine`](millrace_engine::Engine) for a data directory. It
//! opens the directory, starts the threads, and passes every verb to the responsible room.

mod modules;
mod states;
#[cfg(test)]
mod tests;
mod threads;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use async_trait::async_trait;
use bytes::Bytes;
use millrace_engine::backup::{BackupError, BackupRequest, BackupStream};
use millrace_engine::contract::{
    AdoptError, Adoption, CommitError, Ends, Engine, Entry, EntryKind, Expectation, Hold, HostId,
    HostInfo, Lease, Limits, ReadError, Receipt, TopicChange, TopicError, Transaction, TrimError,
    Version, Watch,
};
use millrace_engine::damage::{DamageReport, DamagedRange};
use millrace_engine::state::{StatePage, StateQuery, StateTable};
use millrace_log::segment::READ_NOW_BYTES_MAX;
use millrace_log::{Disk, Journal, RealDisk};
use millrace_model::{
    Clock, Digest, Durability, GroupName, Offset, ProducerId, Progress, RecordBatch, Timestamp,
    Topic, TopicId, TopicName, TopicPartition, TopicSpec,
};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task;

use self::threads::Threads;
use crate::decide::codec::{BODY_OVERHEAD_BYTES, OPERATION_OVERHEAD_BYTES};
use crate::decide::holds::Holds;
use crate::decide::requests::{ALONE_BYTES_MAX, Answer, Request};
use crate::decide::submission::{Submission, queue_kib};
use crate::ground::open_error::OpenError;
use crate::ground::options::LocalOptions;
use crate::ground::tail::Partition;
use crate::ground::threads::named;
use crate::keep::backup::sending::Backups;
use crate::keep::care::Care;
use crate::keep::care::keep::Keep;
use crate::keep::care::register::entry_of;
use crate::keep::checkpoints::Checkpoints;
use crate::keep::cleaner::Cleaner;
use crate::keep::flusher::Flusher;
use crate::keep::modules::ModuleFiles;
use crate::keep::pause::Pause;
use crate::keep::runs::{self, Merger};
use crate::start::recovery::{Recovered, recover};
use crate::write::commits::Commits;
use crate::write::committer::Committer;
use crate::write::orders::Stop;
use crate::write::pipeline::SYNCERS;

/// Transactions that wait for the committer; further callers wait for their turn.
const COMMIT_QUEUE_TRANSACTIONS_MAX: usize = 4096;

/// The engine in a data directory.
pub struct LocalEngine {
    commits: Arc<Commits>,
    checkpoints: Arc<Checkpoints>,
    modules: Arc<ModuleFiles>,
    care: Arc<Care>,
    backups: Arc<Backups>,
    queue: Option<mpsc::Sender<Request>>,
    queue_room: Arc<Semaphore>,
    queue_kib_max: u32,
    closing: AtomicBool,
    threads: Mutex<Option<Threads>>,
    care_thread: Mutex<Option<JoinHandle<()>>>,
    limits: Limits,
    holds: Holds,
}

impl LocalEngine {
    /// Opens the data directory, creating it if it does not exist, and recovers its content. The
    /// work runs on a blocking thread and takes as long as reading the journal since the last
    /// checkpoint.
    ///
    /// # Errors
    /// [`OpenError`]; nothing on disk was lost.
    pub async fn open(
        dir: &Path,
        options: LocalOptions,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, OpenError> {
        Self::open_on(Arc::new(RealDisk), dir, options, clock).await
    }

    /// Like [`LocalEngine::open`], with the journal, the messages and the modules on `disk`. The
    /// lock and the checkpoint's database are always on the machine's own disk.
    ///
    /// # Errors
    /// [`OpenError`]; nothing on disk was lost.
    pub async fn open_on(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: LocalOptions,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, OpenError> {
        let dir = dir.to_owned();
        let opened = task::spawn_blocking(move || {
            let options = options.within_bounds();
            let recovered = recover(Arc::clone(&disk), &dir, &options, Arc::clone(&clock))?;
            Self::start(recovered, disk, &dir, options, clock).map_err(|error| OpenError::Io {
                dir,
                reason: error.to_string(),
            })
        });
        match opened.await {
            Ok(opened) => opened.map(Arc::new),
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }

    fn start(
        recovered: Recovered,
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: LocalOptions,
        clock: Arc<dyn Clock>,
    ) -> std::io::Result<Self> {
        let transaction_bytes_max =
            Journal::body_bytes_max(options.journal_file_bytes) - BODY_OVERHEAD_BYTES;
        let Recovered {
            lock,
            state,
            journal,
            keeper,
            mut saver,
            modules,
            evidence,
            reserve,
        } = recovered;
        let queue_kib_max = options.queue_kib_max();
        let commits = Arc::new(Commits::new(options, clock, journal, state, reserve));
        let checkpoints = Arc::new(Checkpoints::new(Arc::clone(&commits), evidence));
        checkpoints.note_durable(false);
        let (queue, requests) = mpsc::channel(COMMIT_QUEUE_TRANSACTIONS_MAX);
        let committer = Committer::new(Arc::clone(&commits), requests);
        saver.runs().merge_with(Arc::clone(&checkpoints.merges));
        let merger = Merger {
            commits: Arc::clone(&commits),
            merges: Arc::clone(&checkpoints.merges),
            disk: Arc::clone(&disk),
            dir: dir.join(runs::DIRECTORY),
            cipher: commits.options.encryption.clone(),
        };
        let flusher = Flusher::new(
            Arc::clone(&commits),
            Arc::clone(&checkpoints),
            keeper,
            saver,
        );
        let syncer = |who| {
            let commits = Arc::clone(&commits);
            named(&format!("millrace-sync-{who}"), move || {
                commits.sync_until_stopped(who)
            })
        };
        let modules = Arc::new(modules);
        let queue_room = Arc::new(Semaphore::new(queue_kib_max as usize));
        let backups = Backups::new(
            Arc::clone(&commits),
            Arc::clone(&checkpoints),
            Arc::clone(&disk),
            dir.to_owned(),
            Arc::clone(&modules),
        );
        let care = Care::new(
            Arc::clone(&commits),
            Arc::clone(&checkpoints),
            disk,
            dir.to_owned(),
            Arc::clone(&modules),
        );
        let keep = Keep {
            queue: queue.clone(),
            room: Arc::clone(&queue_room),
        };
        let care_thread = care.start(keep)?;
        let pause = Arc::new(Pause::default());
        let room = Arc::clone(&queue_room);
        let cleaner = Cleaner::new(
            Arc::clone(&commits),
            Arc::clone(&checkpoints),
            queue.downgrade(),
            room,
            Arc::clone(&pause),
        );
        let threads = Threads {
            syncers: SYNCERS.map(syncer).collect::<std::io::Result<_>>()?,
            cleaner: named("millrace-clean", move || cleaner.run())?,
            pause,
            committer: named("millrace-commit", move || committer.run())?,
            flusher: named("millrace-flush", move || flusher.run())?,
            merger: named("millrace-state", move || merger.run())?,
            _lock: lock,
        };
        Ok(Self {
            commits,
            checkpoints,
            modules,
            care,
            backups,
            queue: Some(queue),
            queue_room,
            queue_kib_max,
            closing: AtomicBool::new(false),
            threads: Mutex::new(Some(threads)),
            care_thread: Mutex::new(Some(care_thread)),
            limits: Limits {
                transaction_bytes_max,
            },
            holds: Holds::default(),
        })
    }

    /// Takes a lease under the group's next epoch.
    async fn take(
        &self,
        group: &GroupName,
        partition: TopicPartition,
    ) -> Result<Lease, CommitError> {
        let bytes = group.as_str().len() + OPERATION_OVERHEAD_BYTES;
        self.limits.check(bytes)?;
        let group = group.clone();
        self.ask(|answer| Request::Claim {
            partition,
            group,
            answer,
        })
        .await
    }

    async fn ask<T, E: From<CommitError>>(
        &self,
        request: impl FnOnce(Answer<T, E>) -> Request,
    ) -> Result<T, E> {
        self.check_open()?;
        let (answer, answered) = oneshot::channel();
        let queue = self.queue.as_ref().ok_or(CommitError::Closed)?;
        let sent = queue.send(request(answer)).await;
        sent.map_err(|_| self.why_stopped())?;
        match answered.await {
            Ok(answer) => answer,
            Err(_) => Err(self.why_stopped().into()),
        }
    }

    fn check_open(&self) -> Result<(), CommitError> {
        if let Some(poisoned) = self.commits.poisoned() {
            return Err(poisoned);
        }
        if self.closing.load(Ordering::Acquire) {
            return Err(CommitError::Closed);
        }
        Ok(())
    }

    fn why_stopped(&self) -> CommitError {
        self.commits.poisoned().unwrap_or(CommitError::Closed)
    }

    fn partition(&self, id: TopicPartition) -> Result<Arc<Partition>, ReadError> {
        let state = self.commits.state.read();
        let found = state.partitions.get(&id).cloned();
        found.ok_or(ReadError::UnknownPartition(id))
    }
}

#[async_trait]
impl Engine for LocalEngine {
    async fn commit(&self, mut transaction: Transaction) -> Result<Receipt, CommitError> {
        if !transaction.state.is_empty() {
            self.complete(&mut transaction).await?;
        }
        let submission = Submission::from(transaction);
        let bytes = submission.byte_count();
        self.limits.check(bytes)?;
        let kib = queue_kib(bytes);
        let room = Arc::clone(&self.queue_room).acquire_many_owned(kib.min(self.queue_kib_max));
        let room = room.await.map_err(|_| CommitError::Closed)?;
        let asked = self.ask(|answer| Request::Commit {
            submission,
            bytes,
            answer,
            room,
        });
        let answered = asked.await;
        count(&answered);
        answered
    }

    async fn read(
        &self,
        partition: TopicPartition,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Vec<RecordBatch>, ReadError> {
        let found = self.partition(partition)?;
        let Ends { start, end } = found.ends();
        if from < start {
            let requested = from;
            return Err(ReadError::BelowStart { requested, start });
        }
        if from > end {
            let requested = from;
            return Err(ReadError::PastEnd { requested, end });
        }
        if let Some(batches) = found.read_tail(from, bytes_max) {
            return Ok(batches);
        }
        if let Some(batches) = found.read_now(from, bytes_max.min(READ_NOW_BYTES_MAX)) {
            return Ok(batches);
        }
        let read = task::spawn_blocking(move || found.read_files(from, bytes_max));
        let failed = |_| ReadError::Io("the reading thread failed".into());
        let read = read.await.map_err(failed)?;
        read.inspect_err(|error| self.care.note(error))
    }

    fn watch(&self, partition: TopicPartition) -> Result<Watch, ReadError> {
        let watch = self.partition(partition)?.watch();
        watch.ok_or(ReadError::UnknownPartition(partition))
    }

    fn ends(&self, partition: TopicPartition) -> Result<Ends, ReadError> {
        Ok(self.partition(partition)?.ends())
    }

    async fn count(
        &self,
        partition: TopicPartition,
        from: Offset,
        to: Offset,
    ) -> Result<u64, ReadError> {
        let (counting, in_memory) = self.partition(partition)?.counting(from..to);
        let counted = match counting.reads() {
            false => counting.count(),
            true => {
                let counted = task::spawn_blocking(move || counting.count()).await;
                counted.map_err(|_| ReadError::Io("the reading thread failed".into()))?
            }
        };
        let counted = counted.map_err(|error| ReadError::Io(error.to_string().into()))?;
        Ok(counted + in_memory)
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    async fn claim(
        &self,
        group: &GroupName,
        partition: TopicPartition,
    ) -> Result<Hold, CommitError> {
        let lease = self.take(group, partition).await?;
        Ok(self.holds.claim(lease))
    }

    async fn hold(
        &self,
        group: &GroupName,
        partition: TopicPartition,
    ) -> Result<Option<Hold>, CommitError> {
        let lease = self.take(group, partition).await?;
        Ok(Some(self.holds.hold(lease)))
    }

    async fn release(&self, hold: Hold) -> Result<(), CommitError> {
        self.holds.release(&hold);
        Ok(())
    }

    fn host(&self) -> HostId {
        self.holds.host()
    }

    fn hosts(&self) -> watch::Receiver<Arc<[HostInfo]>> {
        self.holds.hosts()
    }

    async fn init_producer(&self, name: Option<&str>) -> Result<ProducerId, CommitError> {
        let name = name.map(Arc::from);
        self.ask(|answer| Request::InitProducer { name, answer })
            .await
    }

    async fn progress(
        &self,
        group: &GroupName,
        partition: TopicPartition,
    ) -> Result<Option<Progress>, ReadError> {
        let (progress, written) = {
            let state = self.commits.state.read();
            if !state.partitions.contains_key(&partition) {
                return Err(ReadError::UnknownPartition(partition));
            }
            let found = state.group(partition, group);
            let progress = found.and_then(|group| group.progress.clone());
            (progress, self.commits.pipeline.line().needed())
        };
        // The epoch may come from a transaction that is not visible yet.
        self.commits.pipeline.shown(written).await;
        if let Some(poisoned) = self.commits.poisoned() {
            return Err(ReadError::Io(poisoned.to_string().into()));
        }
        Ok(progress.map(Arc::unwrap_or_clone))
    }

    async fn groups(&self, partition: TopicPartition) -> Result<Vec<GroupName>, ReadError> {
        let state = self.commits.state.read();
        match state.partitions.contains_key(&partition) {
            true => Ok(state.groups_with_progress(partition)),
            false => Err(ReadError::UnknownPartition(partition)),
        }
    }

    async fn progress_partitions(
        &self,
        group: &GroupName,
    ) -> Result<Vec<TopicPartition>, ReadError> {
        Ok(self.commits.state.read().progress_of(group))
    }

    fn watch_state(&self, _group: &GroupName) -> watch::Receiver<u64> {
        self.holds.others()
    }

    async fn state(
        &self,
        group: &GroupName,
        partition: TopicPartition,
    ) -> Result<Arc<StateTable>, ReadError> {
        let mut state = self.commits.state.write();
        if !state.partitions.contains_key(&partition) {
            return Err(ReadError::UnknownPartition(partition));
        }
        Ok(state.table(partition, group))
    }

    async fn read_state(
        &self,
        group: &GroupName,
        partition: TopicPartition,
        query: &StateQuery,
    ) -> Result<StatePage, ReadError> {
        self.page_of_state(group, partition, query).await
    }

    async fn state_partitions(&self, group: &GroupName) -> Result<Vec<TopicPartition>, ReadError> {
        Ok(self.commits.state.read().tables_of(group))
    }

    async fn create_topic(
        &self,
        spec: TopicSpec,
        expects: Vec<Expectation>,
    ) -> Result<Topic, TopicError> {
        self.ask(|answer| Request::CreateTopic {
            spec,
            expects,
            answer,
        })
        .await
    }

    async fn delete_topic(
        &self,
        name: &TopicName,
        expects: Vec<Expectation>,
    ) -> Result<TopicId, TopicError> {
        let name = name.clone();
        let asked = self.ask(|answer| Request::DeleteTopic {
            name,
            expects,
            answer,
        });
        let id = asked.await?;
        self.holds.forget_topic(id);
        Ok(id)
    }

    async fn change_topics(
        &self,
        changes: Vec<(TopicName, TopicChange)>,
        expects: Vec<Expectation>,
    ) -> Result<Vec<Topic>, TopicError> {
        let bytes = changes.len().saturating_mul(ALONE_BYTES_MAX);
        self.limits.check(bytes)?;
        self.ask(|answer| Request::ChangeTopics {
            changes,
            expects,
            answer,
        })
        .await
    }

    async fn trim(&self, partition: TopicPartition, before: Offset) -> Result<Offset, TrimError> {
        self.ask(|answer| Request::Trim {
            partition,
            before,
            answer,
        })
        .await
    }

    async fn offset_at(
        &self,
        partition: TopicPartition,
        at: Timestamp,
    ) -> Result<Option<Offset>, ReadError> {
        let found = self.partition(partition)?;
        let search = task::spawn_blocking(move || found.offset_at(at));
        let failed = |_| ReadError::Io("the reading thread failed".into());
        search.await.map_err(failed)?
    }

    fn topics(&self) -> Vec<Topic> {
        self.commits.state.read().topics()
    }

    fn topic(&self, name: &TopicName) -> Option<Topic> {
        self.commits.state.read().topic(name)
    }

    fn entries(&self, kind: EntryKind) -> Vec<(String, Entry)> {
        let state = self.commits.state.read();
        let entries = state.entries.of(kind).iter();
        entries.map(|(k, v)| (k.clone(), v.clone())).collect()
    }

    fn entry(&self, kind: EntryKind, key: &str) -> Option<Entry> {
        self.commits.state.read().entries.get(kind, key).cloned()
    }

    fn version(&self, kind: EntryKind) -> Version {
        self.commits.state.read().entries.version(kind)
    }

    fn watch_catalogue(&self) -> watch::Receiver<u64> {
        self.commits.state.read().watch_catalogue()
    }

    async fn health(&self) -> Result<(), CommitError> {
        // The committer must still answer.
        let nothing = Transaction {
            durability: Some(Durability::None),
            ..Transaction::default()
        };
        self.commit(nothing).await.map(drop)
    }

    async fn put_module(&self, digest: Digest, bytes: Bytes) -> Result<(), CommitError> {
        self.change_module(move |modules| modules.put(digest, &bytes))
            .await?;
        self.care.note_module(digest, false);
        Ok(())
    }

    async fn module(&self, digest: Digest) -> Result<Option<Bytes>, ReadError> {
        let modules = Arc::clone(&self.modules);
        let read = task::spawn_blocking(move || modules.read(digest)).await;
        let io = |reason: String| ReadError::Io(reason.into());
        let read = read.map_err(|error| io(error.to_string()))?;
        let read = read.map_err(|error| match error.kind() {
            std::io::ErrorKind::InvalidData => ReadError::ModuleDamaged(digest),
            _ => io(error.to_string()),
        });
        read.inspect_err(|error| self.care.note(error))
    }

    async fn delete_module(
        &self,
        digest: Digest,
        expects: Vec<Expectation>,
    ) -> Result<(), CommitError> {
        self.remove_module(digest, expects).await
    }

    fn damage(&self) -> DamageReport {
        self.care.report()
    }

    async fn accept_damage(
        &self,
        partition: TopicPartition,
        from: Offset,
        to: Offset,
    ) -> Result<Vec<DamagedRange>, CommitError> {
        self.partition(partition)
            .map_err(|_| CommitError::UnknownPartition(partition))?;
        let now = self.commits.clock.wall();
        let register = self.care.register();
        let ranges = register.accept(partition, from..to, now);
        if !ranges.is_empty() {
            let transaction = Transaction {
                entries: ranges.iter().map(entry_of).collect(),
                durability: Some(Durability::Durable),
                ..Transaction::default()
            };
            let committed = self.commit(transaction).await;
            committed.inspect_err(|_| register.reject(&ranges, now))?;
        }
        Ok(ranges)
    }

    async fn adopt(&self, adoption: Adoption) -> Result<(), AdoptError> {
        let bytes = match &adoption {
            Adoption::Topic(_) | Adoption::ProducerIds { .. } => ALONE_BYTES_MAX,
            Adoption::Messages { batches, .. } => {
                let bytes = batches.iter().map(RecordBatch::byte_count);
                let operations = bytes.map(|bytes| bytes + OPERATION_OVERHEAD_BYTES);
                operations.sum::<usize>() + OPERATION_OVERHEAD_BYTES
            }
        };
        self.limits.check(bytes)?;
        let kib = queue_kib(bytes).min(self.queue_kib_max);
        let room = Arc::clone(&self.queue_room).acquire_many_owned(kib);
        let room = room.await.map_err(|_| CommitError::Closed)?;
        self.ask(|answer| Request::Adopt {
            adoption,
            bytes,
            answer,
            room,
        })
        .await
    }

    async fn backup(&self, request: BackupRequest) -> Result<BackupStream, BackupError> {
        self.check_open()?;
        self.backups.begin(request).await
    }

    async fn close(&self) {
        self.closing.store(true, Ordering::Release);
        // It asks the flusher and reads files, so it ends before them.
        let backups = Arc::clone(&self.backups);
        let _ = task::spawn_blocking(move || backups.end()).await;
        // It ends first, because its notes are committed like every transaction.
        self.care.stop();
        let care_thread = self.care_thread.lock().take();
        if let Some(thread) = care_thread {
            let _ = task::spawn_blocking(move || thread.join()).await;
        }
        if let Some(queue) = &self.queue {
            // If the request cannot be delivered, the committer has already stopped.
            let _ = queue.send(Request::Stop).await;
        }
        let Some(threads) = self.threads.lock().take() else {
            return;
        };
        let commits = Arc::clone(&self.commits);
        let checkpoints = Arc::clone(&self.checkpoints);
        let stopped =
            task::spawn_blocking(move || threads.stop(&commits, &checkpoints, Stop::InOrder));
        if let Err(error) = stopped.await {
            tracing::error!(%error, "the engine did not stop cleanly; the journal has everything");
        }
    }
}

impl Drop for LocalEngine {
    /// Without [`Engine::close`]: like the end of the process, except that the directory can be
    /// opened again.
    fn drop(&mut self) {
        self.queue = None;
        self.backups.end();
        self.care.stop();
        if let Some(thread) = self.care_thread.lock().take() {
            let _ = thread.join();
        }
        if let Some(threads) = self.threads.lock().take() {
            threads.stop(&self.commits, &self.checkpoints, Stop::AtOnce);
        }
    }
}

fn count(answered: &Result<Receipt, CommitError>) {
    let name = match answered {
        Ok(receipt) if receipt.repeated => "millrace_produce_repeated_total",
        Err(CommitError::OutOfOrderSequence { .. }) => "millrace_produce_out_of_order_total",
        _ => return,
    };
    metrics::counter!(name).increment(1);
}
