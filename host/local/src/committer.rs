//! The committer's thread: takes everything queued, decides it, writes it as one frame, shows and answers what needs no sync, and
//! leaves the rest to the [pipeline](super::pipeline). When idle nobody waits for company: a single transaction is a group, and
//! the committer syncs it itself.

use std::collections::HashMap;
use std::sync::Arc;

use millrace_engine::contract::{
    CommitError, Expectation, Lease, Receipt, TopicChange, TopicError, TrimError,
};
use millrace_engine::state::{HeldTurn, StateWrite};
use millrace_log::{FrameBuffer, Journal, disk};
use millrace_model::{
    GroupName, Offset, ProducerId, Topic, TopicId, TopicName, TopicPartition, TopicSpec,
};
use parking_lot::MutexGuard;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::codec::{self, BODY_OVERHEAD_BYTES, OPERATION_OVERHEAD_BYTES, Operation};
use super::pipeline::{COMMITTER, Written};
use super::shared::{PoisonOnPanic, Shared};
use super::state::{Pending, State};
use super::states::may_be_paged;
use super::submission::Submission;

/// Bytes of transactions that one group takes, unless a single one is larger.
const GROUP_BYTES_MAX: usize = 4 << 20;
/// What is alone in its group takes at most so many bytes of the journal; of topics that are changed together, each.
pub(super) const ALONE_BYTES_MAX: usize = 4 << 10;
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
        group: GroupName,
        answer: Answer<Lease, CommitError>,
    },
    CreateTopic {
        spec: TopicSpec,
        expects: Vec<Expectation>,
        answer: Answer<Topic, TopicError>,
    },
    DeleteTopic {
        name: TopicName,
        expects: Vec<Expectation>,
        answer: Answer<TopicId, TopicError>,
    },
    InitProducer {
        name: Option<Arc<str>>,
        answer: Answer<ProducerId, CommitError>,
    },
    ChangeTopics {
        changes: Vec<(TopicName, TopicChange)>,
        expects: Vec<Expectation>,
        answer: Answer<Vec<Topic>, TopicError>,
    },
    Trim {
        partition: TopicPartition,
        before: Offset,
        answer: Answer<Offset, TrimError>,
    },
    Stop,
}

pub(super) type Answer<T, E> = oneshot::Sender<Result<T, E>>;

impl Request {
    /// Topics come, change and go alone: nothing else is decided on a set of topics that may not come true. So do producers.
    fn stands_alone(&self) -> bool {
        match self {
            Self::Commit { submission, .. } => submission.producer.is_some(),
            Self::CreateTopic { .. }
            | Self::DeleteTopic { .. }
            | Self::ChangeTopics { .. }
            | Self::Trim { .. }
            | Self::InitProducer { .. } => true,
            Self::Claim { .. } | Self::Stop => false,
        }
    }

    /// Whether it brings messages or values of state, which a full disk has no room for.
    fn brings_data(&self) -> bool {
        let Self::Commit { submission, .. } = self else {
            return false;
        };
        let keeps = |write: &StateWrite| write.writes.keep_values();
        !submission.appends.is_empty() || submission.state.iter().any(keeps)
    }

    /// Whether it brings values of processors' state.
    fn brings_state(&self) -> bool {
        let Self::Commit { submission, .. } = self else {
            return false;
        };
        let brings = |write: &StateWrite| write.writes.keep_values() && may_be_paged(&write.group);
        submission.state.iter().any(brings)
    }

    /// Whether the catalogue grows by it for good.
    fn brings_names(&self) -> bool {
        match self {
            Self::CreateTopic { .. } | Self::InitProducer { .. } => true,
            Self::ChangeTopics { changes, .. } => changes
                .iter()
                .any(|(_, change)| change.partitions.is_some()),
            _ => false,
        }
    }

    /// Whether it changes what is not shown by offsets: such a group is made durable before anything of it is applied.
    fn changes_catalogue(&self) -> bool {
        match self {
            Self::Commit { submission, .. } => {
                !submission.entries.is_empty() || submission.producer.is_some()
            }
            Self::Claim { .. } | Self::Stop => false,
            Self::CreateTopic { .. }
            | Self::DeleteTopic { .. }
            | Self::ChangeTopics { .. }
            | Self::Trim { .. }
            | Self::InitProducer { .. } => true,
        }
    }

    fn byte_count(&self) -> usize {
        match self {
            Self::Commit { bytes, .. } => *bytes,
            Self::Claim { group, .. } => group.as_str().len() + OPERATION_OVERHEAD_BYTES,
            // Names and settings, alone in their group.
            Self::CreateTopic { .. } | Self::DeleteTopic { .. } | Self::InitProducer { .. } => {
                ALONE_BYTES_MAX
            }
            Self::ChangeTopics { changes, .. } => changes.len() * ALONE_BYTES_MAX,
            Self::Stop => 0,
            Self::Trim { .. } => OPERATION_OVERHEAD_BYTES,
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
            Self::ChangeTopics { answer, .. } => drop(answer.send(Err(error.into()))),
            Self::Trim { answer, .. } => drop(answer.send(Err(error.into()))),
            Self::Stop => {}
        }
    }
}

/// A member of the group, decided.
struct Member {
    answer: Decided,
    /// The sequence that must be durable before anybody may see it; what is durable already needs nothing.
    needs: u64,
    /// How many of the group's operations are its own.
    operation_count: usize,
}

/// An answer decided on, to be given when the transaction is as durable as it must be.
pub(super) enum Decided {
    Commit(
        Answer<Receipt, CommitError>,
        Receipt,
        #[expect(dead_code, reason = "held until the answer is given")]
        (OwnedSemaphorePermit, Vec<HeldTurn>),
    ),
    Claim(Answer<Lease, CommitError>, Lease),
    Created(Answer<Topic, TopicError>, Topic),
    Changed(Answer<Vec<Topic>, TopicError>, Vec<Topic>),
    Deleted(Answer<TopicId, TopicError>, TopicId),
    Producer(Answer<ProducerId, CommitError>, ProducerId),
    Trimmed(Answer<Offset, TrimError>, Offset),
}

impl Decided {
    pub(super) fn give(self) {
        match self {
            Self::Commit(answer, receipt, _) => drop(answer.send(Ok(receipt))),
            Self::Claim(answer, lease) => drop(answer.send(Ok(lease))),
            Self::Created(answer, topic) => drop(answer.send(Ok(topic))),
            Self::Changed(answer, topics) => drop(answer.send(Ok(topics))),
            Self::Deleted(answer, id) => drop(answer.send(Ok(id))),
            Self::Producer(answer, id) => drop(answer.send(Ok(id))),
            Self::Trimmed(answer, start) => drop(answer.send(Ok(start))),
        }
    }

    pub(super) fn refuse(self, error: CommitError) {
        match self {
            Self::Commit(answer, ..) => drop(answer.send(Err(error))),
            Self::Claim(answer, _) => drop(answer.send(Err(error))),
            Self::Created(answer, _) => drop(answer.send(Err(error.into()))),
            Self::Changed(answer, _) => drop(answer.send(Err(error.into()))),
            Self::Deleted(answer, _) => drop(answer.send(Err(error.into()))),
            Self::Producer(answer, _) => drop(answer.send(Err(error))),
            Self::Trimmed(answer, _) => drop(answer.send(Err(error.into()))),
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
    decided: Vec<Member>,
    ready: Vec<Written>,
    unsynced: Unsynced,
    frame: FrameBuffer,
    /// How many the group before had.
    members_before: usize,
    group_bytes_max: usize,
    /// After so many checkpoints the journal had no room, and no further one was made in time.
    waited_in_vain: Option<u64>,
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
            ready: Vec::new(),
            unsynced: Unsynced::default(),
            frame: FrameBuffer::default(),
            members_before: 0,
            waited_in_vain: None,
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
                decided.for_each(|member| member.answer.refuse(error.clone()));
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
        let shared = Arc::clone(&self.shared);
        let mut journal = self.journal_with_room(&shared)?;
        let changes_catalogue = self.group.iter().any(Request::changes_catalogue);
        self.decide_group(journal.last_sequence() + 1);
        if !self.pending.operations.is_empty() {
            self.write(&mut journal)?;
        }
        if changes_catalogue && (self.pending.durable || !shared.pipeline.line().is_empty()) {
            shared.settle(&mut journal, COMMITTER)?;
        }
        let members = self.decided.len();
        metrics::histogram!("millrace_commit_group_transactions").record(members as f64);
        self.apply(journal.written_bytes());
        if let Some(poisoned) = shared.poisoned() {
            // Whoever stood in line when the engine failed was told; who came just now was not.
            shared.pipeline.fail(&poisoned);
        }
        // Whoever was answered with the group before is about to come again: their frames are to be written meanwhile.
        let was_alone = std::mem::replace(&mut self.members_before, members) <= 1;
        let is_idle = self.next.is_none() && self.queue.is_empty() && was_alone && members <= 1;
        let sync = shared.pipeline.sync_soon(is_idle);
        let sync = sync.then(|| journal.begin_sync(COMMITTER));
        if let Some(preparation) = journal.preparation()
            && !shared.reserve.is_full()
        {
            shared.pipeline.prepare_soon(preparation);
        }
        drop(journal);
        self.ready.drain(..).for_each(Written::tell);
        // Whom the sync fails has been told.
        sync.map_or(Ok(()), |sync| shared.finish_sync(sync))
    }

    /// The journal, when it has room for the group; of the group only what brings no data, if it has none for those.
    fn journal_with_room<'a>(
        &mut self,
        shared: &'a Shared,
    ) -> Result<MutexGuard<'a, Journal>, CommitError> {
        let brings_state = self.group.iter().any(Request::brings_state);
        let has_room = shared.wait_for_room(brings_state);
        let mut journal = shared.journal.lock();
        match has_room.and_then(|()| self.make_room(&mut journal)) {
            Err(CommitError::DiskFull) => self.refuse_what_takes_room(),
            has_room => return has_room.map(|()| journal),
        }
        while let Err(error) = self.make_room(&mut journal) {
            let made = shared.checkpoints_made();
            let is_in_vain = self.waited_in_vain == Some(made);
            drop(journal);
            if is_in_vain || !shared.wait_for_checkpoint(made) {
                self.waited_in_vain = Some(made);
                return Err(error);
            }
            journal = shared.journal.lock();
        }
        Ok(journal)
    }

    fn make_room(&self, journal: &mut Journal) -> Result<(), CommitError> {
        let bytes: usize = self.group.iter().map(Request::byte_count).sum();
        let brings_data = self.group.iter().any(Request::brings_data);
        // On a full disk all room is for the checkpoint.
        let may_grow = !self.shared.reserve.is_full();
        let made = journal.make_room(BODY_OVERHEAD_BYTES + bytes, brings_data, may_grow);
        made.map_err(|error| self.unwritten(&error))
    }

    /// What frees room or only administers goes on; some is kept back for it.
    fn refuse_what_takes_room(&mut self) {
        let is_spent = self.shared.reserve.is_spent();
        let takes_room =
            |request: &mut Request| request.brings_data() || (is_spent && request.brings_names());
        let refused = self.group.extract_if(.., takes_room);
        refused.for_each(|request| request.refuse(CommitError::DiskFull));
    }

    fn decide_group(&mut self, sequence: u64) {
        let shared = Arc::clone(&self.shared);
        let state = shared.state.read();
        self.pending.idempotence.set_now(shared.clock.wall());
        let mut needed = {
            let line = shared.pipeline.line();
            if line.is_empty() {
                self.unsynced.clear();
            }
            line.needed()
        };
        let mut is_durable = false;
        for request in self.group.drain(..) {
            self.pending.durable = false;
            let operations_before = self.pending.operations.len();
            let Some(answer) = decide(&state, &mut self.pending, request) else {
                continue;
            };
            is_durable |= self.pending.durable;
            let operations = &self.pending.operations[operations_before..];
            let repeats = operations.iter().all(|o| matches!(o, Operation::Moment(_)));
            let needs = match self.pending.durable {
                // A group without operations has no frame, and is not to wait for one.
                true if !self.pending.operations.is_empty() => sequence,
                // It says what others did, if anything; that counts once it is durable.
                _ if repeats => needed,
                _ => 0,
            };
            let needs = self.unsynced.follow(operations, needs);
            needed = needed.max(needs);
            self.decided.push(Member {
                answer,
                needs,
                operation_count: operations.len(),
            });
        }
        self.pending.durable = is_durable;
    }

    /// One frame.
    fn write(&mut self, journal: &mut Journal) -> Result<(), CommitError> {
        self.frame.clear(2 * GROUP_BYTES_MAX);
        let cipher = self.shared.options.encryption.as_deref();
        let start = self.frame.body().len();
        codec::begin(self.frame.body(), cipher);
        for operation in &self.pending.operations {
            match cipher {
                None => codec::encode_into(&mut self.frame, operation),
                // What is encrypted is in one piece.
                Some(_) => codec::encode(self.frame.body(), operation),
            }
        }
        let sequence = journal.last_sequence() + 1;
        codec::finish(self.frame.body(), start, cipher, sequence);
        let (file_before, bytes_before) = (journal.durable().1, journal.written_bytes());
        let began_at = self.shared.clock.monotonic();
        let appended = journal.append(&mut self.frame);
        appended.map_err(|error| self.unwritten(&error))?;
        let took = self.shared.clock.monotonic().saturating_sub(began_at);
        metrics::histogram!("millrace_journal_write_seconds").record(took.as_secs_f64());
        let bytes = journal.written_bytes() - bytes_before;
        metrics::counter!("millrace_journal_bytes_total").increment(bytes);
        if journal.durable().1 != file_before && !journal.has_reserved() {
            self.shared.orders.ask(|orders| orders.checkpoint = true);
        }
        Ok(())
    }

    fn unwritten(&self, error: &std::io::Error) -> CommitError {
        if disk::is_full(error) {
            // A checkpoint gives journal files back.
            self.shared.orders.ask(|orders| orders.checkpoint = true);
            return CommitError::DiskFull;
        }
        self.shared.poison(&error.to_string());
        let poisoned = self.shared.poisoned();
        poisoned.unwrap_or(CommitError::Closed)
    }

    /// Takes the group over into the state, and shows what needs no sync; the rest stands in line for one.
    fn apply(&mut self, journal_bytes: u64) {
        let mut weight = 0;
        let mut frees_files = false;
        {
            let mut state = self.shared.state.write();
            let mut line = self.shared.pipeline.line();
            let mut operations = self.pending.operations.drain(..);
            for member in self.decided.drain(..) {
                let mut moved = Vec::new();
                for operation in operations.by_ref().take(member.operation_count) {
                    frees_files |= matches!(
                        operation,
                        Operation::DeleteTopic(_) | Operation::Trim { .. }
                    );
                    if let Operation::Append { partition, batch } = &operation {
                        let partition = Arc::clone(&state.partitions[partition]);
                        moved.push((partition, batch.end_offset()));
                    }
                    match state.apply(operation) {
                        Ok(added) => weight += added,
                        Err(reason) => unreachable!("decided under this very state: {reason}"),
                    }
                }
                let written = Written {
                    needs: member.needs,
                    moved,
                    answer: member.answer,
                };
                if written.needs > line.synced() {
                    line.wait(written);
                } else {
                    written.show();
                    self.ready.push(written);
                }
            }
        }
        self.shared.note_growth(weight, journal_bytes);
        if frees_files {
            // Their files and what memory holds of them go with a checkpoint.
            self.shared.orders.ask(|orders| orders.checkpoint = true);
        }
    }
}

/// Decides a request, or refuses it.
fn decide(state: &State, pending: &mut Pending, request: Request) -> Option<Decided> {
    match request {
        Request::Commit {
            mut submission,
            answer,
            room,
            ..
        } => {
            let turns = std::mem::take(&mut submission.turns);
            match state.decide(pending, submission) {
                Ok(receipt) => return Some(Decided::Commit(answer, receipt, (room, turns))),
                Err(error) => drop(answer.send(Err(error))),
            }
        }
        Request::Claim {
            partition,
            group,
            answer,
        } => match state.decide_claim(pending, partition, group) {
            Ok(lease) => return Some(Decided::Claim(answer, lease)),
            Err(error) => drop(answer.send(Err(error))),
        },
        Request::CreateTopic {
            spec,
            expects,
            answer,
        } => match state.decide_create(pending, spec, &expects) {
            Ok(topic) => return Some(Decided::Created(answer, topic)),
            Err(error) => drop(answer.send(Err(error))),
        },
        Request::DeleteTopic {
            name,
            expects,
            answer,
        } => match state.decide_delete(pending, &name, &expects) {
            Ok(id) => return Some(Decided::Deleted(answer, id)),
            Err(error) => drop(answer.send(Err(error))),
        },
        Request::InitProducer { name, answer } => match state.decide_producer(pending, name) {
            Ok(id) => return Some(Decided::Producer(answer, id)),
            Err(error) => drop(answer.send(Err(error))),
        },
        Request::ChangeTopics {
            changes,
            expects,
            answer,
        } => match state.decide_change(pending, changes, &expects) {
            Ok(topics) => return Some(Decided::Changed(answer, topics)),
            Err(error) => drop(answer.send(Err(error))),
        },
        Request::Trim {
            partition,
            before,
            answer,
        } => match state.decide_trim(pending, partition, before) {
            Ok(start) => return Some(Decided::Trimmed(answer, start)),
            Err(error) => drop(answer.send(Err(error))),
        },
        Request::Stop => {}
    }
    None
}

/// What was last written where, and needs a sync: whatever follows it there needs the same.
#[derive(Default)]
struct Unsynced {
    partitions: HashMap<TopicPartition, u64>,
    groups: HashMap<(TopicPartition, GroupName), u64>,
}

impl Unsynced {
    fn clear(&mut self) {
        self.partitions.clear();
        self.groups.clear();
    }

    /// What a transaction needs that itself needs `needs` and does `operations`.
    fn follow(&mut self, operations: &[Operation], needs: u64) -> u64 {
        if needs == 0 && self.partitions.is_empty() && self.groups.is_empty() {
            return 0;
        }
        let before = operations.iter().filter_map(|operation| match operation {
            Operation::Append { partition, .. } => self.partitions.get(partition).copied(),
            Operation::Progress {
                partition, group, ..
            }
            | Operation::State {
                partition, group, ..
            } => self.groups.get(&(*partition, group.clone())).copied(),
            _ => None,
        });
        let needs = before.fold(needs, u64::max);
        for operation in operations.iter().filter(|_| needs > 0) {
            match operation {
                Operation::Append { partition, .. } => {
                    self.partitions.insert(*partition, needs);
                }
                Operation::Progress {
                    partition, group, ..
                }
                | Operation::State {
                    partition, group, ..
                } => {
                    self.groups.insert((*partition, group.clone()), needs);
                }
                _ => {}
            }
        }
        needs
    }
}
