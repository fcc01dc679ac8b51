//! The committer's thread: takes everything queued, decides it, writes it as one frame, syncs once if anybody needs it, shows
//! it to readers, and then answers. When idle nobody waits for company: a single transaction is a group.

use std::sync::Arc;

use millrace_log::{FrameBuffer, Journal, disk};
use millrace_model::{ProducerId, Topic, TopicId, TopicName, TopicPartition, TopicSpec};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::codec::{self, OPERATION_OVERHEAD_BYTES};
use super::shared::{PoisonOnPanic, Shared};
use super::state::{Pending, Submission};
use super::tail::Partition;
use crate::contract::{CommitError, Lease, Receipt, TopicError};

/// Bytes of transactions that one group takes, unless a single one is larger.
const GROUP_BYTES_MAX: usize = 4 << 20;
/// Looks at the empty queue before the thread sleeps, about 20 µs: to be woken costs more than that.
const IDLE_LOOKS_MAX: u32 = 400;

/// What is asked of the committer.
pub(super) enum Request {
    Commit {
        submission: Submission,
        bytes: usize,
        answer: Answer<Receipt, CommitError>,
        /// Room in the queue; given back when the transaction is answered.
        room: OwnedSemaphorePermit,
    },
    Claim {
        partition: TopicPartition,
        group: Arc<str>,
        answer: Answer<Lease, CommitError>,
    },
    CreateTopic {
        spec: TopicSpec,
        answer: Answer<Topic, TopicError>,
    },
    DeleteTopic {
        name: TopicName,
        answer: Answer<TopicId, TopicError>,
    },
    InitProducer {
        name: Option<Arc<str>>,
        answer: Answer<ProducerId, CommitError>,
    },
    Stop,
}

pub(super) type Answer<T, E> = oneshot::Sender<Result<T, E>>;

impl Request {
    /// Topics come and go alone: nothing else is decided on a set of topics that may not come true. So do producers.
    fn stands_alone(&self) -> bool {
        matches!(
            self,
            Self::CreateTopic { .. } | Self::DeleteTopic { .. } | Self::InitProducer { .. }
        )
    }

    fn byte_count(&self) -> usize {
        match self {
            Self::Commit { bytes, .. } => *bytes,
            Self::Claim { group, .. } => group.len() + OPERATION_OVERHEAD_BYTES,
            // A name and a few numbers, alone in its group.
            Self::CreateTopic { .. }
            | Self::DeleteTopic { .. }
            | Self::InitProducer { .. }
            | Self::Stop => 0,
        }
    }

    // Whoever no longer waits for an answer gets none.
    fn refuse(self, error: CommitError) {
        match self {
            Self::Commit { answer, .. } => drop(answer.send(Err(error))),
            Self::Claim { answer, .. } => drop(answer.send(Err(error))),
            Self::CreateTopic { answer, .. } => drop(answer.send(Err(error.into()))),
            Self::DeleteTopic { answer, .. } => drop(answer.send(Err(error.into()))),
            Self::InitProducer { answer, .. } => drop(answer.send(Err(error))),
            Self::Stop => {}
        }
    }
}

/// An answer decided on, to be given when the group is as durable as it must be.
enum Decided {
    Commit(
        Answer<Receipt, CommitError>,
        Receipt,
        #[expect(dead_code, reason = "held until the answer is given")] OwnedSemaphorePermit,
    ),
    Claim(Answer<Lease, CommitError>, Lease),
    Created(Answer<Topic, TopicError>, Topic),
    Deleted(Answer<TopicId, TopicError>, TopicId),
    Producer(Answer<ProducerId, CommitError>, ProducerId),
}

impl Decided {
    fn give(self) {
        match self {
            Self::Commit(answer, receipt, _) => drop(answer.send(Ok(receipt))),
            Self::Claim(answer, lease) => drop(answer.send(Ok(lease))),
            Self::Created(answer, topic) => drop(answer.send(Ok(topic))),
            Self::Deleted(answer, id) => drop(answer.send(Ok(id))),
            Self::Producer(answer, id) => drop(answer.send(Ok(id))),
        }
    }

    fn refuse(self, error: CommitError) {
        match self {
            Self::Commit(answer, ..) => drop(answer.send(Err(error))),
            Self::Claim(answer, _) => drop(answer.send(Err(error))),
            Self::Created(answer, _) => drop(answer.send(Err(error.into()))),
            Self::Deleted(answer, _) => drop(answer.send(Err(error.into()))),
            Self::Producer(answer, _) => drop(answer.send(Err(error))),
        }
    }
}

pub(super) struct Committer {
    shared: Arc<Shared>,
    queue: mpsc::Receiver<Request>,
    /// Taken from the queue, and did not fit the group.
    next: Option<Request>,
    group: Vec<Request>,
    pending: Pending,
    decided: Vec<Decided>,
    moved: Vec<Arc<Partition>>,
    frame: FrameBuffer,
    group_bytes_max: usize,
    stopping: bool,
}

impl Committer {
    pub(super) fn new(shared: Arc<Shared>, queue: mpsc::Receiver<Request>) -> Self {
        let frame_max = Journal::body_bytes_max(shared.options.journal_file_bytes);
        Self {
            group_bytes_max: GROUP_BYTES_MAX.min(frame_max),
            shared,
            queue,
            next: None,
            group: Vec::new(),
            pending: Pending::default(),
            decided: Vec::new(),
            moved: Vec::new(),
            frame: FrameBuffer::default(),
            stopping: false,
        }
    }

    /// Works until told to stop, or until nobody can ask any more.
    pub(super) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let _poison = PoisonOnPanic(&shared);
        while let Some(first) = self.wait() {
            self.gather(first);
            if let Err(error) = self.commit_group() {
                let undecided = self.group.drain(..);
                undecided.for_each(|request| request.refuse(error.clone()));
                let decided = self.decided.drain(..);
                decided.for_each(|member| member.refuse(error.clone()));
            }
            self.pending.clear();
            if self.stopping {
                break;
            }
        }
        self.queue.close();
        while let Some(request) = self.next.take().or_else(|| self.queue.try_recv().ok()) {
            request.refuse(CommitError::Closed);
        }
    }

    fn wait(&mut self) -> Option<Request> {
        if let Some(request) = self.next.take() {
            return Some(request);
        }
        for _ in 0..IDLE_LOOKS_MAX {
            if let Ok(request) = self.queue.try_recv() {
                return Some(request);
            }
            std::hint::spin_loop();
        }
        self.queue.blocking_recv()
    }

    /// Everything queued, up to the bound of a group.
    fn gather(&mut self, first: Request) {
        let mut bytes = first.byte_count();
        let alone = first.stands_alone();
        self.add(first);
        while !alone && !self.stopping {
            let Ok(request) = self.queue.try_recv() else {
                return;
            };
            bytes += request.byte_count();
            if request.stands_alone() || bytes > self.group_bytes_max {
                self.next = Some(request);
                return;
            }
            self.add(request);
        }
    }

    fn add(&mut self, request: Request) {
        match request {
            Request::Stop => self.stopping = true,
            request => self.group.push(request),
        }
    }

    /// All of the group, or (but for what is refused on its own) nothing of it.
    fn commit_group(&mut self) -> Result<(), CommitError> {
        if self.group.is_empty() {
            return Ok(());
        }
        if let Some(poisoned) = self.shared.poisoned() {
            return Err(poisoned);
        }
        self.shared.wait_for_room()?;
        let shared = Arc::clone(&self.shared);
        let mut journal = shared.journal.lock();
        self.decide_group();
        if self.pending.operations.is_empty() {
            self.decided.drain(..).for_each(Decided::give);
            return Ok(());
        }
        self.write(&mut journal)?;
        self.publish(journal.written_bytes());
        drop(journal);
        metrics::histogram!("millrace_commit_group_transactions").record(self.decided.len() as f64);
        self.moved.drain(..).for_each(|p| p.announce());
        self.decided.drain(..).for_each(Decided::give);
        Ok(())
    }

    fn decide_group(&mut self) {
        let shared = Arc::clone(&self.shared);
        let state = shared.state.read();
        let pending = &mut self.pending;
        pending.idempotence.set_now(shared.clock.wall());
        for request in self.group.drain(..) {
            match request {
                Request::Commit {
                    submission,
                    answer,
                    room,
                    ..
                } => match state.decide(pending, submission) {
                    Ok(receipt) => self.decided.push(Decided::Commit(answer, receipt, room)),
                    Err(error) => drop(answer.send(Err(error))),
                },
                Request::Claim {
                    partition,
                    group,
                    answer,
                } => match state.decide_claim(pending, partition, group) {
                    Ok(lease) => self.decided.push(Decided::Claim(answer, lease)),
                    Err(error) => drop(answer.send(Err(error))),
                },
                Request::CreateTopic { spec, answer } => match state.decide_create(pending, spec) {
                    Ok(topic) => self.decided.push(Decided::Created(answer, topic)),
                    Err(error) => drop(answer.send(Err(error))),
                },
                Request::DeleteTopic { name, answer } => {
                    match state.decide_delete(pending, &name) {
                        Ok(id) => self.decided.push(Decided::Deleted(answer, id)),
                        Err(error) => drop(answer.send(Err(error))),
                    }
                }
                Request::InitProducer { name, answer } => {
                    match state.decide_producer(pending, name) {
                        Ok(id) => self.decided.push(Decided::Producer(answer, id)),
                        Err(error) => drop(answer.send(Err(error))),
                    }
                }
                Request::Stop => {}
            }
        }
    }

    /// One frame, and one sync if a member needs it: those that do not are answered a little later, never wrongly.
    fn write(&mut self, journal: &mut Journal) -> Result<(), CommitError> {
        self.frame.clear(2 * GROUP_BYTES_MAX);
        let cipher = self.shared.options.encryption.as_deref();
        let body = self.frame.body();
        let start = body.len();
        codec::begin(body, cipher);
        for operation in &self.pending.operations {
            codec::encode(body, operation);
        }
        codec::finish(body, start, cipher, journal.last_sequence() + 1);
        match journal.append(&mut self.frame) {
            Ok(_) => {}
            Err(error) if disk::is_full(&error) => {
                // A checkpoint gives journal files back.
                self.shared.orders.ask(|orders| orders.checkpoint = true);
                return Err(CommitError::DiskFull);
            }
            Err(error) => return Err(self.poison(&error)),
        }
        if self.pending.durable {
            let began_at = self.shared.clock.monotonic();
            journal.sync().map_err(|error| self.poison(&error))?;
            let took = self.shared.clock.monotonic().saturating_sub(began_at);
            metrics::histogram!("millrace_journal_sync_seconds").record(took.as_secs_f64());
        }
        Ok(())
    }

    fn poison(&self, error: &std::io::Error) -> CommitError {
        self.shared.poison(&error.to_string());
        let poisoned = self.shared.poisoned();
        poisoned.unwrap_or(CommitError::Closed)
    }

    /// Shows the group to readers, all at once.
    fn publish(&mut self, journal_bytes: u64) {
        let mut weight = 0;
        let mut removed_topics = false;
        {
            let mut state = self.shared.state.write();
            for operation in self.pending.operations.drain(..) {
                if let codec::Operation::Append { partition, .. } = &operation {
                    let partition = &state.partitions[partition];
                    if !self
                        .moved
                        .last()
                        .is_some_and(|last| Arc::ptr_eq(last, partition))
                    {
                        self.moved.push(Arc::clone(partition));
                    }
                }
                removed_topics |= matches!(operation, codec::Operation::DeleteTopic(_));
                match state.apply(operation) {
                    Ok(added) => weight += added,
                    Err(reason) => unreachable!("decided under this very state: {reason}"),
                }
            }
        }
        self.shared.note_growth(weight, journal_bytes);
        if removed_topics {
            // Their files and what memory holds of them go with a checkpoint.
            self.shared.orders.ask(|orders| orders.checkpoint = true);
        }
    }
}
