//! The lanes: each takes what waits as one group, locks its rows, decides, writes and commits. One lane locks at a time, so groups begin in
//! the order of the queue; the others write and wait for the disk of the database meanwhile.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use millrace_engine::contract::Transaction;
use millrace_engine::{CommitError, Receipt};
use millrace_model::{Offset, Stamp, TopicPartition};
use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Executor as _};
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::judging::{Judge, Writes};
use super::locking::Needs;
use super::short::Short;
use crate::memory::{Life, Memory};
use crate::store::Store;
use crate::tables::{Loaded, TableKey};
use crate::trouble::Trouble;

/// Groups that are on their way to the database at once.
pub(crate) const LANES: usize = 3;
/// Transactions that wait; further callers wait for their turn.
const QUEUE_TRANSACTIONS_MAX: usize = 4096;
/// KiB of transactions that wait or are being committed.
const QUEUE_KIB_MAX: u32 = 128 << 10;
/// Transactions of one group.
const GROUP_TRANSACTIONS_MAX: usize = 1024;
/// KiB of one group: its transactions are in the memory of both sides.
const GROUP_KIB_MAX: u32 = 16 << 10;
/// Requests with a key in one group: each takes a lock of the table that all users of the database share.
const GROUP_REQUESTS_MAX: usize = 128;
/// How often a group is tried that met another one crosswise.
const TRIES_MAX: u32 = 5;
/// How many connections are tried for a group.
const CONNECTIONS_MAX: u32 = 3;
/// A connection that was not used for so long is tried before it gets a group.
const IDLE_DURATION_MAX: Duration = Duration::from_millis(500);
/// A group that the database does not answer for so long is in doubt.
const GROUP_DURATION_MAX: Duration = Duration::from_secs(30);

/// How long a group that is committed waits for those before it to be visible. Those of this host are within much less; those of other hosts are looked
/// for then.
const BEFORE_DURATION_MAX: Duration = Duration::from_millis(2);

/// A transaction that waits.
pub(crate) struct Waiting {
    pub(crate) transaction: Transaction,
    /// The tables that its state is written to.
    pub(crate) tables: Vec<(TableKey, Arc<Loaded>)>,
    pub(crate) kib: u32,
    pub(crate) answer: oneshot::Sender<Result<Receipt, CommitError>>,
    pub(crate) room: OwnedSemaphorePermit,
}

/// Where transactions wait.
pub(crate) struct Queue {
    /// `None` once it is closed.
    sender: parking_lot::Mutex<Option<mpsc::Sender<Waiting>>>,
    room: Arc<Semaphore>,
}

/// Where lanes take them from.
pub(crate) type Intake = Arc<Mutex<Receiver>>;

pub(crate) struct Receiver {
    waiting: mpsc::Receiver<Waiting>,
    /// The one that did not fit into the last group.
    next: Option<Waiting>,
}

/// A queue and its other end.
pub(crate) fn queue() -> (Queue, Intake) {
    let (sender, waiting) = mpsc::channel(QUEUE_TRANSACTIONS_MAX);
    let room = Arc::new(Semaphore::new(QUEUE_KIB_MAX as usize));
    let receiver = Receiver {
        waiting,
        next: None,
    };
    let sender = parking_lot::Mutex::new(Some(sender));
    (Queue { sender, room }, Arc::new(Mutex::new(receiver)))
}

impl Queue {
    /// Waits until the transaction is committed or refused.
    pub(crate) async fn commit(
        &self,
        transaction: Transaction,
        tables: Vec<(TableKey, Arc<Loaded>)>,
        bytes: usize,
    ) -> Result<Receipt, CommitError> {
        let kib = u32::try_from(bytes / 1024 + 1).unwrap_or(QUEUE_KIB_MAX);
        let kib = kib.min(QUEUE_KIB_MAX);
        let room = Arc::clone(&self.room).acquire_many_owned(kib).await;
        let room = room.map_err(|_| CommitError::Closed)?;
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting {
            transaction,
            tables,
            kib,
            answer,
            room,
        };
        let sender = self.sender.lock().clone();
        let sender = sender.ok_or(CommitError::Closed)?;
        let sent = sender.send(waiting).await;
        drop(sender);
        sent.map_err(|_| CommitError::Closed)?;
        answered.await.unwrap_or(Err(CommitError::Closed))
    }

    /// Nothing more is taken; what waits is committed.
    pub(crate) fn close(&self) {
        self.room.close();
        self.sender.lock().take();
    }
}

impl Receiver {
    /// Waits for a group; `None` if nothing more comes.
    async fn group(&mut self) -> Option<Vec<Waiting>> {
        let first = match self.next.take() {
            Some(first) => first,
            None => self.waiting.recv().await?,
        };
        let mut kib = first.kib;
        let mut requests = usize::from(first.transaction.request.is_some());
        // A producer's new epoch counts for what comes after it.
        let mut is_alone = first.transaction.producer.is_some();
        let mut group = vec![first];
        while !is_alone && group.len() < GROUP_TRANSACTIONS_MAX {
            let Ok(next) = self.waiting.try_recv() else {
                break;
            };
            kib = kib.saturating_add(next.kib);
            requests += usize::from(next.transaction.request.is_some());
            is_alone = next.transaction.producer.is_some();
            if kib > GROUP_KIB_MAX || requests > GROUP_REQUESTS_MAX || is_alone {
                self.next = Some(next);
                break;
            }
            group.push(next);
        }
        Some(group)
    }
}

/// Why a group failed, and whether it may have taken effect.
enum Failed {
    Undone(Trouble),
    InDoubt(Trouble),
}

impl From<Trouble> for Failed {
    fn from(trouble: Trouble) -> Self {
        Self::Undone(trouble)
    }
}

type Answers = Vec<Result<Receipt, CommitError>>;

/// Commits groups until the queue is closed.
pub(crate) async fn run(store: Arc<Store>, intake: Intake) {
    let mut connection = None;
    loop {
        let mut turn = Arc::clone(&intake).lock_owned().await;
        let Some(group) = turn.group().await else {
            return;
        };
        let mut turn = Some(turn);
        let mut tries = 0;
        let answers = loop {
            tries += 1;
            let done = commit(&store, &mut connection, &group, || drop(turn.take()));
            let done = tokio::time::timeout(GROUP_DURATION_MAX, done).await;
            let done = done.unwrap_or_else(|_| {
                let reason = "the database does not answer";
                Err(Failed::InDoubt(Trouble::Unavailable(reason.into())))
            });
            match done {
                Ok(answers) => break answers,
                Err(Failed::Undone(Trouble::Again(_))) if tries < TRIES_MAX => {
                    connection = None;
                }
                // The server may have closed a connection that was kept, or ended the sessions of a host that stood still.
                Err(Failed::Undone(Trouble::Unavailable(_))) if tries < CONNECTIONS_MAX => {
                    connection = None;
                }
                Err(failed) => {
                    connection = None;
                    let error = match failed {
                        Failed::Undone(trouble) => trouble.into(),
                        Failed::InDoubt(trouble) => {
                            CommitError::InDoubt(trouble.to_string().into())
                        }
                    };
                    break vec![Err(error); group.len()];
                }
            }
        };
        for (waiting, answer) in group.into_iter().zip(answers) {
            // The turns of its tables end here, with what was written applied.
            drop(waiting.transaction);
            // The caller may have gone.
            let _ = waiting.answer.send(answer);
            drop(waiting.room);
        }
    }
}

/// A lane's connection.
struct Lane {
    connection: PgConnection,
    /// The life of the database that it is in.
    life: Life,
    /// Whether commits do not wait for the disk.
    is_relaxed: bool,
    /// When it was last used, by the monotonic clock.
    used_at: Duration,
}

impl Lane {
    async fn open(store: &Store) -> Result<Self, Trouble> {
        let (connection, life) = store.connect.session_in_life().await?;
        Ok(Self {
            connection,
            life,
            is_relaxed: false,
            used_at: store.clock.monotonic(),
        })
    }

    /// Whether it can be used. One that was closed meanwhile would leave a group in doubt.
    async fn is_sound(&mut self, store: &Store) -> bool {
        if store.memory.life() != Some(self.life) {
            return false;
        }
        let idle = store.clock.monotonic().saturating_sub(self.used_at);
        idle < IDLE_DURATION_MAX || self.connection.ping().await.is_ok()
    }

    /// Sets whether commits wait for the disk.
    async fn relax(&mut self, is_relaxed: bool) -> Result<(), Trouble> {
        if self.is_relaxed != is_relaxed {
            let set = match is_relaxed {
                true => "set synchronous_commit = off",
                false => "reset synchronous_commit",
            };
            self.connection.execute(sqlx::raw_sql(set)).await?;
            self.is_relaxed = is_relaxed;
        }
        Ok(())
    }
}

async fn commit(
    store: &Store,
    kept: &mut Option<Lane>,
    group: &[Waiting],
    locked: impl FnOnce(),
) -> Result<Answers, Failed> {
    let mut sound = None;
    if let Some(mut lane) = kept.take()
        && lane.is_sound(store).await
    {
        sound = Some(lane);
    }
    let mut lane = match sound {
        Some(lane) => lane,
        None => Lane::open(store).await?,
    };
    let committed = commit_on(store, &mut lane, group, locked).await;
    if committed.is_ok() {
        lane.used_at = store.clock.monotonic();
        *kept = Some(lane);
    }
    committed
}

async fn commit_on(
    store: &Store,
    lane: &mut Lane,
    group: &[Waiting],
    locked_now: impl FnOnce(),
) -> Result<Answers, Failed> {
    let tables: HashMap<TableKey, Arc<Loaded>> = group
        .iter()
        .flat_map(|waiting| waiting.tables.iter().cloned())
        .collect();
    let Some(mut short) = Short::of(store, group, &tables) else {
        return commit_long(store, lane, group, &tables, locked_now).await;
    };
    lane.relax(!short.writes.is_durable).await?;
    // It locks and commits at once, so the next group may begin.
    locked_now();
    match short
        .commit(store, group, (&mut lane.connection, lane.life))
        .await
    {
        Ok(Some(answers)) => {
            show(store, lane, group, &answers, &short.writes, &tables).await;
            Ok(answers)
        }
        // The database is not as this host knows it: a chain has moved, a topic is gone, or its durability is another.
        Ok(None) | Err(Trouble::Refused(_)) => {
            commit_long(store, lane, group, &tables, || ()).await
        }
        // The server says what it did not do.
        Err(failed @ (Trouble::Again(_) | Trouble::DiskFull(_))) => Err(Failed::Undone(failed)),
        Err(failed) => Err(Failed::InDoubt(failed)),
    }
}

/// The long way: locks, decides, writes and commits one after the other.
async fn commit_long(
    store: &Store,
    lane: &mut Lane,
    group: &[Waiting],
    tables: &HashMap<TableKey, Arc<Loaded>>,
    locked_now: impl FnOnce(),
) -> Result<Answers, Failed> {
    // Whether it waits for the disk is decided when the rows are known.
    lane.relax(false).await?;
    let connection = &mut lane.connection;
    let mut needs = Needs::default();
    for waiting in group {
        needs.add(&waiting.transaction);
    }
    begin(connection).await?;
    let locked = needs.lock(connection).await?;
    locked_now();
    for (key, loaded) in tables {
        // Others may have written; nobody does from here on.
        if let Some(chain) = locked.chains.get(key) {
            loaded.reach(chain.state_seq, connection).await?;
        }
    }
    let now = store.clock.wall();
    let mut judge = Judge::new(locked, &store.memory.tables.room, tables, now);
    let decide = |waiting: &Waiting| judge.decide(&waiting.transaction);
    let answers: Answers = group.iter().map(decide).collect();
    let Judge {
        writes, mut locked, ..
    } = judge;
    if writes.is_empty() && !writes.is_durable {
        rollback(connection).await?;
        return Ok(answers);
    }
    if !writes.is_durable {
        let relax = sqlx::query("set local synchronous_commit = off");
        connection.execute(relax).await.map_err(Trouble::from)?;
    }
    writes.write(connection, &mut locked.idempotence).await?;
    let committed = connection.execute(sqlx::raw_sql("commit")).await;
    committed.map_err(|error| Failed::InDoubt(error.into()))?;
    let life = Some(lane.life);
    let note = || store.memory.known.note(locked.chains);
    let _ = store.memory.remember(life, note);
    show(store, lane, group, &answers, &writes, tables).await;
    Ok(answers)
}

async fn begin(connection: &mut PgConnection) -> Result<(), Trouble> {
    connection.execute(sqlx::raw_sql("begin")).await?;
    Ok(())
}

async fn rollback(connection: &mut PgConnection) -> Result<(), Trouble> {
    connection.execute(sqlx::raw_sql("rollback")).await?;
    Ok(())
}

/// Keeps what was appended in memory for readers of the end, before they hear of it.
fn remember(store: &Store, group: &[Waiting], answers: &Answers) {
    let now = store.clock.monotonic();
    for (waiting, answer) in group.iter().zip(answers) {
        let Some(receipt) = answer.as_ref().ok().filter(|receipt| !receipt.repeated) else {
            continue;
        };
        let appends = &waiting.transaction.appends;
        for (append, &base) in appends.iter().zip(&receipt.base_offsets) {
            // What was superseded must not be read from anywhere.
            if !store.memory.mirror.is_compacted(append.partition.topic) {
                let stamp = Stamp::of(append.partition);
                let batch = append.batch.clone().placed(base, stamp);
                store.memory.tail.note(append.partition, batch, now);
            }
        }
    }
}

/// Makes visible what is committed.
async fn show(
    store: &Store,
    lane: &mut Lane,
    group: &[Waiting],
    answers: &Answers,
    writes: &Writes,
    tables: &HashMap<TableKey, Arc<Loaded>>,
) {
    let Memory {
        mirror,
        tables: all,
        news,
        ..
    } = &*store.memory;
    let (life, connection) = (Some(lane.life), &mut lane.connection);
    // Whatever of it is said when the database has begun another life, it may be lost.
    let appended = || remember(store, group, answers);
    let _ = store.memory.remember(life, appended);
    for (key, chain, seq, writes) in &writes.applied {
        let note = || all.note(&key.1, *chain, *seq, true);
        let _ = store.memory.remember(life, note);
        if let Some(loaded) = tables.get(key)
            && !loaded.apply(*seq, writes).await
            && let Err(error) = loaded.catch_up(connection).await
        {
            tracing::warn!(%error, "a table of state cannot be read again now; it is when it is next asked for");
        }
        news.state();
    }
    if !writes.entries.is_empty() {
        store.hear_own_catalogue(life, connection).await;
    }
    let others = see_what_was_before(store, group, answers).await;
    let ends = writes.ends.iter().map(|(at, next)| (*at, *next));
    let _ = store.memory.remember(life, || {
        mirror.hear_ends(ends.clone());
        news.ends(others.into_iter().chain(ends));
    });
}

/// Waits until everything is visible that was committed to the group's partitions before it: a reader who finds the group must find all parts of
/// what is before, those in other partitions, too. Returns ends that other hosts moved, and this one had not heard of: whoever hears of
/// the group must hear of them.
async fn see_what_was_before(
    store: &Store,
    group: &[Waiting],
    answers: &Answers,
) -> Vec<(TopicPartition, Offset)> {
    let mirror = &store.memory.mirror;
    let mut bases: BTreeMap<TopicPartition, Offset> = BTreeMap::new();
    for (waiting, answer) in group.iter().zip(answers) {
        let Some(receipt) = answer.as_ref().ok().filter(|receipt| !receipt.repeated) else {
            continue;
        };
        for (append, &base) in waiting
            .transaction
            .appends
            .iter()
            .zip(&receipt.base_offsets)
        {
            let first = bases.entry(append.partition).or_insert(base);
            *first = base.min(*first);
        }
    }
    let before = async {
        for (at, base) in bases {
            // Its topic may be gone.
            if let (Some(last), Ok(mut watch)) = (base.0.checked_sub(1), mirror.watch(at)) {
                watch.past(Offset(last)).await;
            }
        }
    };
    if tokio::time::timeout(BEFORE_DURATION_MAX, before)
        .await
        .is_ok()
    {
        return Vec::new();
    }
    store.look_at_ends().await.unwrap_or_else(|error| {
        tracing::debug!(%error, "what was committed before cannot be looked at now");
        Vec::new()
    })
}
