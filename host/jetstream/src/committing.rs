//! Commits transactions: those that wait are merged into one step, and several steps are on their way at once. Two that touch the same
//! cells are never on their way at the same time, so that the second builds on the first.
//!
//! A step is decided on what this host knows. If the server says that a cell has moved on, each of its transactions is decided alone,
//! on cells read again.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use millrace_engine::contract::Transaction;
use millrace_engine::{CommitError, Receipt};
use millrace_model::{Offset, TopicPartition};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;

use crate::atomic::{BATCH_PUTS_MAX, Put};
use crate::cells::{Known, PLACES, last_id};
use crate::heard::Passed;
use crate::judging::{Decided, Judge, Needs, Writes};
use crate::store::Store;
use crate::trouble::Trouble;

/// Steps that are on their way at once.
const STEPS_MAX: usize = 4;
/// Transactions that wait; further callers wait for their turn.
const QUEUE_TRANSACTIONS_MAX: usize = 4096;
/// KiB of transactions that wait or are being committed.
const QUEUE_KIB_MAX: u32 = 128 << 10;
/// KiB of one step: the servers keep it in memory until it is whole.
const STEP_KIB_MAX: u32 = 8 << 10;
/// Approximate messages of one step: below what a server takes.
const STEP_PUTS_MAX: usize = 800;
/// Cells that are read at once.
const READS_MAX: usize = 64;
/// How long a transaction is decided again because others keep changing what it is based on.
const DECIDING_DURATION_MAX: Duration = Duration::from_secs(20);
/// Tries after which a pause is made between two.
const PATIENCE_TRIES: u32 = 10;
const PATIENCE_INTERVAL: Duration = Duration::from_millis(2);

/// A transaction that waits.
pub(crate) struct Waiting {
    transaction: Transaction,
    keys: Vec<String>,
    kib: u32,
    puts: usize,
    is_alone: bool,
    answer: oneshot::Sender<Result<Receipt, CommitError>>,
    room: OwnedSemaphorePermit,
}

/// Where transactions wait.
pub(crate) struct Queue {
    /// `None` once it is closed.
    sender: parking_lot::Mutex<Option<mpsc::Sender<Waiting>>>,
    room: Arc<Semaphore>,
}

pub(crate) fn queue() -> (Queue, mpsc::Receiver<Waiting>) {
    let (sender, waiting) = mpsc::channel(QUEUE_TRANSACTIONS_MAX);
    let queue = Queue {
        sender: parking_lot::Mutex::new(Some(sender)),
        room: Arc::new(Semaphore::new(QUEUE_KIB_MAX as usize)),
    };
    (queue, waiting)
}

impl Queue {
    /// Waits until the transaction is committed or refused.
    pub(crate) async fn commit(
        &self,
        store: &Store,
        transaction: Transaction,
        bytes: usize,
    ) -> Result<Receipt, CommitError> {
        let kib = u32::try_from(bytes / 1024 + 1).unwrap_or(QUEUE_KIB_MAX);
        let kib = kib.min(QUEUE_KIB_MAX);
        let room = Arc::clone(&self.room).acquire_many_owned(kib).await;
        let room = room.map_err(|_| CommitError::Closed)?;
        let (answer, answered) = oneshot::channel();
        let waiting = Waiting {
            keys: keys_of(store, &transaction),
            puts: puts_of(store, &transaction),
            is_alone: is_alone(&transaction),
            transaction,
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

/// What only one step at a time may touch.
fn keys_of(store: &Store, transaction: &Transaction) -> Vec<String> {
    let mut needs = Needs::default();
    needs.add(store, transaction);
    let mut keys: Vec<String> = needs.subjects().cloned().collect();
    keys.extend(needs.requests.values().cloned());
    // Changes of one table stay in the order in which they came.
    for write in &transaction.state {
        keys.push(store.subjects.delta(write.partition, &write.group));
    }
    if is_of_catalogue(transaction) {
        keys.push("catalogue".to_owned());
    }
    keys
}

fn is_of_catalogue(transaction: &Transaction) -> bool {
    !transaction.entries.is_empty() || !transaction.expects.is_empty()
}

/// Whether it is a step of its own.
fn is_alone(transaction: &Transaction) -> bool {
    is_of_catalogue(transaction) || transaction.producer.is_some()
}

/// About how many messages it needs.
fn puts_of(store: &Store, transaction: &Transaction) -> usize {
    let size = store.part_bytes();
    let parts = |bytes: usize| bytes / size + 1;
    let appends = transaction.appends.iter();
    let appends: usize = appends.map(|a| parts(a.batch.byte_count()) + 1).sum();
    let state = transaction.state.iter();
    let state: usize = state.map(|s| parts(s.writes.byte_count()) + 1).sum();
    let others = transaction.progress.len() * 2 + transaction.fences.len();
    appends + state + others + 2 * transaction.entries.len() + transaction.expects.len() + 3
}

/// Commits until the queue is closed and empty.
pub(crate) async fn run(store: Arc<Store>, mut waiting: mpsc::Receiver<Waiting>) {
    let mut pending: VecDeque<Waiting> = VecDeque::new();
    let mut busy: HashSet<String> = HashSet::new();
    let mut steps: JoinSet<Vec<String>> = JoinSet::new();
    let mut is_open = true;
    loop {
        while let Ok(next) = waiting.try_recv() {
            pending.push_back(next);
        }
        while steps.len() < STEPS_MAX {
            let group = take_group(&mut pending, &busy);
            if group.is_empty() {
                break;
            }
            let keys: Vec<String> = group.iter().flat_map(|w| w.keys.iter().cloned()).collect();
            busy.extend(keys.iter().cloned());
            let store = Arc::clone(&store);
            steps.spawn(async move {
                step(&store, group).await;
                keys
            });
        }
        if !is_open && pending.is_empty() && steps.is_empty() {
            return;
        }
        tokio::select! {
            next = waiting.recv(), if is_open && pending.len() < QUEUE_TRANSACTIONS_MAX => match next {
                Some(next) => pending.push_back(next),
                None => is_open = false,
            },
            Some(done) = steps.join_next() => match done {
                Ok(keys) => {
                    keys.iter().for_each(|key| {
                        busy.remove(key);
                    });
                },
                Err(error) => {
                    // Its callers are told that the engine is closed; its keys are not known any more.
                    tracing::error!(%error, "a step of commits failed");
                    busy.clear();
                }
            },
        }
    }
}

/// Those that can go together now, in the order in which they came.
fn take_group(pending: &mut VecDeque<Waiting>, busy: &HashSet<String>) -> Vec<Waiting> {
    let mut group: Vec<Waiting> = Vec::new();
    let mut left = VecDeque::new();
    // What waits keeps its place before those that came later and touch the same.
    let mut blocked: HashSet<String> = HashSet::new();
    let (mut kib, mut puts) = (0u32, 0usize);
    let mut is_full = false;
    while let Some(next) = pending.pop_front() {
        let is_free = next
            .keys
            .iter()
            .all(|key| !busy.contains(key) && !blocked.contains(key));
        let fits = group.is_empty()
            || (!next.is_alone
                && kib.saturating_add(next.kib) <= STEP_KIB_MAX
                && puts + next.puts <= STEP_PUTS_MAX);
        if is_full || !is_free || !fits {
            blocked.extend(next.keys.iter().cloned());
            left.push_back(next);
            continue;
        }
        kib = kib.saturating_add(next.kib);
        puts += next.puts;
        is_full = next.is_alone;
        group.push(next);
    }
    *pending = left;
    group
}

/// Commits a group, and answers.
async fn step(store: &Store, group: Vec<Waiting>) {
    let transactions: Vec<&Transaction> = group.iter().map(|w| &w.transaction).collect();
    let mut answers = together(store, &transactions).await;
    for (answer, transaction) in answers.iter_mut().zip(&transactions) {
        if may_know_too_little(answer) {
            *answer = alone(store, transaction).await;
        }
    }
    for (waiting, answer) in group.into_iter().zip(answers) {
        // The turns of its tables end here, with what was written applied.
        drop(waiting.transaction);
        // The caller may have gone.
        let _ = waiting.answer.send(answer);
        drop(waiting.room);
    }
}

/// Commits all that can be, in one step.
async fn together(store: &Store, transactions: &[&Transaction]) -> Answers {
    let failed = |error: CommitError| vec![Err(error); transactions.len()];
    for reads_again in [false, true] {
        match commit(store, transactions, reads_again).await {
            Ok(answers) => return answers,
            // Somebody has changed something: on cells that are read again, it is found what.
            Err(Trouble::Moved) => {}
            Err(trouble) => return failed(trouble.into()),
        }
    }
    let mut answers = Vec::with_capacity(transactions.len());
    for transaction in transactions {
        answers.push(alone(store, transaction).await);
    }
    answers
}

/// Whether a refusal may come from cells that this host knows too little of.
fn may_know_too_little(answer: &Result<Receipt, CommitError>) -> bool {
    matches!(
        answer,
        Err(CommitError::Fenced { .. }
            | CommitError::Conflict(_)
            | CommitError::OutOfOrderSequence { .. }
            | CommitError::ProducerFenced { .. }
            | CommitError::UnknownProducer(_)
            | CommitError::UnknownPartition(_)
            | CommitError::PartlyRepeated { .. }
            | CommitError::RequestReused)
    )
}

type Answers = Vec<Result<Receipt, CommitError>>;

/// Decides one transaction on cells that are read again, until nobody changes them in between.
async fn alone(store: &Store, transaction: &Transaction) -> Result<Receipt, CommitError> {
    let started = store.clock.monotonic();
    let mut tries = 0;
    loop {
        tries += 1;
        match commit(store, &[transaction], true).await {
            Ok(mut answers) => return answers.pop().unwrap_or(Err(CommitError::Closed)),
            Err(Trouble::Moved) => {
                let passed = store.clock.monotonic().saturating_sub(started);
                if passed > DECIDING_DURATION_MAX {
                    return Err(Trouble::Moved.into());
                }
                if tries > PATIENCE_TRIES {
                    tokio::time::sleep(PATIENCE_INTERVAL).await;
                }
            }
            Err(trouble) => return Err(trouble.into()),
        }
    }
}

/// Decides and writes transactions in one step.
async fn commit(
    store: &Store,
    transactions: &[&Transaction],
    reads_again: bool,
) -> Result<Answers, Trouble> {
    let mut needs = Needs::default();
    for transaction in transactions {
        needs.add(store, transaction);
    }
    if reads_again {
        store.sync().await?;
    }
    let (cells, last_id) = read(store, &needs, reads_again).await?;
    let mut judge = Judge::new(store, &needs, &cells, last_id, store.clock.wall())?;
    let decided: Vec<Result<Decided, CommitError>> = transactions
        .iter()
        .map(|transaction| judge.decide(transaction))
        .collect();
    let mut writes = judge.into_writes();
    let passed = match writes.puts.is_empty() {
        true => Passed {
            first_seq: 0,
            offsets: HashMap::new(),
        },
        false => {
            if let Err(refused) = store.check_puts(&writes.puts) {
                return Ok(vec![Err(refused); transactions.len()]);
            }
            let batches = std::mem::take(&mut writes.batches);
            store.write_batches(&writes.puts, batches).await?
        }
    };
    remember(store, &writes, &passed);
    for draft in &writes.state {
        let seq = passed.first_seq + draft.place as u64;
        draft.table.keep_own(seq, &draft.writes);
    }
    for draft in &writes.state {
        if let Err(error) = store.catch_up(&draft.key, &draft.table).await {
            tracing::warn!(%error, "a table of state cannot be read again now; it is when it is next asked for");
        }
        store.may_write_snapshot(&draft.key, &draft.table).await;
    }
    let mut answers = Vec::with_capacity(decided.len());
    for (decided, transaction) in decided.into_iter().zip(transactions) {
        answers.push(match decided {
            Ok(decided) => answer(store, decided, &writes, &passed, transaction).await,
            Err(refused) => Err(refused),
        });
    }
    Ok(answers)
}

/// The cells that are needed, and the last id given to a producer.
pub(crate) async fn read(
    store: &Store,
    needs: &Needs,
    reads_again: bool,
) -> Result<(HashMap<String, Known>, u64), Trouble> {
    let mut cells = HashMap::new();
    let mut unknown = Vec::new();
    let requests = needs.requests.values().map(|subject| (subject, false));
    let others = needs.subjects().map(|subject| (subject, true));
    for (subject, is_needed) in others.chain(requests) {
        match store.cells.get(subject) {
            Some(known) if !reads_again => drop(cells.insert(subject.clone(), known)),
            _ if is_needed || reads_again => unknown.push(subject),
            _ => {}
        }
    }
    for some in unknown.chunks(READS_MAX) {
        let read = some.iter().map(|subject| store.read_cell(subject));
        let read = try_join_all(read).await?;
        cells.extend(some.iter().map(|subject| (*subject).clone()).zip(read));
    }
    let ids = store.subjects.ids();
    let known = match store.cells.get(&ids) {
        _ if !needs.needs_ids => Known::default(),
        Some(known) if !reads_again => known,
        _ => store.read_cell(&ids).await?,
    };
    let last = last_id(&known).ok_or_else(|| Trouble::malformed("ids of producers"))?;
    Ok((cells, last))
}

/// The host knows what it has written.
pub(crate) fn remember(store: &Store, writes: &Writes, passed: &Passed) {
    for (place, put) in writes.puts.iter().enumerate() {
        // Entries are known from the feed.
        if put.is_last && put.expected.is_some() && put.expected_of.is_none() {
            let seq = passed.first_seq + place as u64;
            let body = put.body.clone();
            store.cells.put(&put.subject, Known { seq, body });
        }
    }
}

/// The receipt, with offsets and versions as they are in the stream.
async fn answer(
    store: &Store,
    decided: Decided,
    writes: &Writes,
    passed: &Passed,
    transaction: &Transaction,
) -> Result<Receipt, CommitError> {
    let mut receipt = decided.receipt;
    for (number, base) in receipt.base_offsets.iter_mut().enumerate() {
        let partition = transaction.appends.get(number).map(|a| a.partition);
        let offset = match base.0.checked_sub(PLACES) {
            Some(draft) => {
                let place = writes.places.get(draft as usize).copied();
                match place.and_then(|place| passed.offsets.get(&place).copied()) {
                    Some(offset) => Some(offset),
                    None => place_of(store, partition, place, passed).await?,
                }
            }
            // What is repeated may go elsewhere this time: a delayed message that is due by now, or another choice of a partition.
            None => match store.partition_of(base.0).await?.or(partition) {
                Some(partition) => store.offset_of(partition, base.0).await?,
                None => None,
            },
        };
        *base = match (offset, partition) {
            (Some(offset), _) => offset,
            // Its topic was deleted meanwhile.
            (None, Some(partition)) => return Err(CommitError::UnknownPartition(partition)),
            (None, None) => Offset::default(),
        };
    }
    let places = writes.entries.get(decided.entries).unwrap_or_default();
    let version = |place: &usize| millrace_engine::Version(passed.first_seq + *place as u64);
    receipt.versions = places.iter().map(version).collect();
    Ok(receipt)
}

/// The offset of a batch that was written, but did not pass: this host began anew behind it.
async fn place_of(
    store: &Store,
    partition: Option<TopicPartition>,
    place: Option<usize>,
    passed: &Passed,
) -> Result<Option<Offset>, CommitError> {
    let (Some(partition), Some(place)) = (partition, place) else {
        return Ok(None);
    };
    let found = store.offset_of(partition, passed.first_seq + place as u64);
    found.await.map_err(|error| {
        let why = format!("it was written, but its offset cannot be found now ({error})");
        CommitError::InDoubt(why.into())
    })
}

impl Store {
    /// Whether the servers take so much in one step.
    pub(crate) fn check_puts(&self, puts: &[Put]) -> Result<(), CommitError> {
        if puts.len() > BATCH_PUTS_MAX {
            let (bytes, max) = (puts.len(), BATCH_PUTS_MAX);
            return Err(CommitError::TooLarge { bytes, max });
        }
        let largest = puts.iter().map(|put| put.body.len()).max();
        let (bytes, max) = (largest.unwrap_or_default(), self.message_bytes_max());
        match bytes > max {
            true => Err(CommitError::TooLarge { bytes, max }),
            false => Ok(()),
        }
    }

    /// A cell as the leader has it.
    pub(crate) async fn read_cell(&self, subject: &str) -> Result<Known, Trouble> {
        let known = match self.last(subject).await? {
            Some(message) => Known {
                seq: message.seq,
                body: message.body,
            },
            None => {
                // It may have been removed with its topic, or by its age.
                self.cells.forget(subject);
                Known::default()
            }
        };
        self.cells.put(subject, known.clone());
        Ok(known)
    }
}
