//! The committer's thread: it takes everything queued, decides it, and writes it as one frame.
//! Transactions that need no sync become visible and are answered; the rest go to the
//! [pipeline](crate::write::pipeline). No transaction waits for others: on an idle engine a single
//! one is a group, and the committer syncs it itself.

use std::collections::HashMap;
use std::sync::Arc;

use millrace_engine::contract::CommitError;
use millrace_log::{FrameBuffer, Journal, disk};
use millrace_model::{GroupName, TopicPartition};
use parking_lot::MutexGuard;
use tokio::sync::mpsc;

use crate::decide::codec::{self, BODY_OVERHEAD_BYTES, Operation};
use crate::decide::requests::{Decided, Request};
use crate::decide::state::Pending;
use crate::write::commits::{Commits, PoisonOnPanic};
use crate::write::pipeline::{COMMITTER, Written};

/// Bytes of transactions in one group, except for a single larger one.
const GROUP_BYTES_MAX: usize = 4 << 20;
/// Number of checks of the empty queue before the thread sleeps, about 20 µs, because waking it
/// costs more than that.
const IDLE_LOOKS_MAX: u32 = 400;

/// A decided member of the group.
struct Member {
    answer: Decided,
    /// The sequence that must be durable before the transaction becomes visible; one that is
    /// already durable needs no wait.
    needs: u64,
    /// The number of the group's operations that belong to it.
    operation_count: usize,
}

pub(crate) struct Committer {
    commits: Arc<Commits>,
    queue: mpsc::Receiver<Request>,
    /// Taken from the queue, but did not fit into the group.
    next: Option<Request>,
    group: Vec<Request>,
    pending: Pending,
    decided: Vec<Member>,
    ready: Vec<Written>,
    unsynced: Unsynced,
    frame: FrameBuffer,
    /// The size of the previous group.
    members_before: usize,
    group_bytes_max: usize,
    /// The number of checkpoints after which the journal was full and no further checkpoint came in
    /// time.
    waited_in_vain: Option<u64>,
    stopping: bool,
}

impl Committer {
    pub(crate) fn new(commits: Arc<Commits>, queue: mpsc::Receiver<Request>) -> Self {
        let frame_max = Journal::body_bytes_max(commits.options.journal_file_bytes);
        Self {
            group_bytes_max: GROUP_BYTES_MAX.min(frame_max),
            commits,
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

    /// Runs until it is told to stop, or until the queue is closed.
    pub(crate) fn run(mut self) {
        let commits = Arc::clone(&self.commits);
        let _poison = PoisonOnPanic(&commits);
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

    /// Takes everything queued, up to the bound of a group.
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

    /// Commits all of the group or none of it, except for members that are refused individually.
    fn commit_group(&mut self) -> Result<(), CommitError> {
        if self.group.is_empty() {
            return Ok(());
        }
        if let Some(poisoned) = self.commits.poisoned() {
            return Err(poisoned);
        }
        let commits = Arc::clone(&self.commits);
        let mut journal = self.journal_with_room(&commits)?;
        let changes_catalogue = self.group.iter().any(Request::changes_catalogue);
        self.decide_group(journal.last_sequence() + 1);
        if !self.pending.operations.is_empty() {
            self.write(&mut journal)?;
        }
        if changes_catalogue && (self.pending.durable || !commits.pipeline.line().is_empty()) {
            commits.settle(&mut journal, COMMITTER)?;
        }
        let members = self.decided.len();
        metrics::histogram!("millrace_commit_group_transactions").record(members as f64);
        self.apply(journal.written_bytes());
        if let Some(poisoned) = commits.poisoned() {
            // Transactions that were queued when the engine failed were answered then; this one
            // came later.
            commits.pipeline.fail(&poisoned);
        }
        // Callers that were answered with the previous group are about to return; their frames
        // should be written during this sync.
        let was_alone = std::mem::replace(&mut self.members_before, members) <= 1;
        let is_idle = self.next.is_none() && self.queue.is_empty() && was_alone && members <= 1;
        let sync = commits.pipeline.sync_soon(is_idle);
        let sync = sync.then(|| journal.begin_sync(COMMITTER));
        if let Some(preparation) = journal.preparation()
            && !commits.reserve.is_full()
        {
            commits.pipeline.prepare_soon(preparation);
        }
        drop(journal);
        self.ready.drain(..).for_each(Written::tell);
        // A failed sync has already answered its callers.
        sync.map_or(Ok(()), |sync| commits.finish_sync(sync))
    }

    /// Waits until the journal has room for the group. If there is only room for requests without
    /// data, the others are refused.
    fn journal_with_room<'a>(
        &mut self,
        commits: &'a Commits,
    ) -> Result<MutexGuard<'a, Journal>, CommitError> {
        let brings_state = self.group.iter().any(Request::brings_state);
        let has_room = commits.headroom.wait(brings_state);
        let mut journal = commits.journal.lock();
        match has_room.and_then(|()| self.make_room(&mut journal)) {
            Err(CommitError::DiskFull) => self.refuse_what_takes_room(),
            has_room => return has_room.map(|()| journal),
        }
        while let Err(error) = self.make_room(&mut journal) {
            let made = commits.headroom.checkpoints_made();
            let is_in_vain = self.waited_in_vain == Some(made);
            drop(journal);
            if is_in_vain || !commits.headroom.wait_for_checkpoint(made) {
                self.waited_in_vain = Some(made);
                return Err(error);
            }
            journal = commits.journal.lock();
        }
        Ok(journal)
    }

    fn make_room(&self, journal: &mut Journal) -> Result<(), CommitError> {
        let bytes: usize = self.group.iter().map(Request::byte_count).sum();
        let brings_data = self.group.iter().any(Request::brings_data);
        // On a full disk, all space is for the checkpoint.
        let may_grow = !self.commits.reserve.is_full();
        let made = journal.make_room(BODY_OVERHEAD_BYTES + bytes, brings_data, may_grow);
        made.map_err(|error| self.unwritten(&error))
    }

    /// Refuses requests that need space. Requests that free space or only administer continue, from
    /// a reserve.
    fn refuse_what_takes_room(&mut self) {
        let is_spent = self.commits.reserve.is_spent();
        let takes_room =
            |request: &mut Request| request.brings_data() || (is_spent && request.brings_names());
        let refused = self.group.extract_if(.., takes_room);
        refused.for_each(|request| request.refuse(CommitError::DiskFull));
    }

    fn decide_group(&mut self, sequence: u64) {
        let commits = Arc::clone(&self.commits);
        let state = commits.state.read();
        self.pending.idempotence.set_now(commits.clock.wall());
        let mut needed = {
            let line = commits.pipeline.line();
            if line.is_empty() {
                self.unsynced.clear();
            }
            line.needed()
        };
        let mut is_durable = false;
        for request in self.group.drain(..) {
            self.pending.durable = false;
            let operations_before = self.pending.operations.len();
            let Some(answer) = request.decide(&state, &mut self.pending) else {
                continue;
            };
            is_durable |= self.pending.durable;
            let operations = &self.pending.operations[operations_before..];
            let repeats = operations.iter().all(|o| matches!(o, Operation::Moment(_)));
            let needs = match self.pending.durable {
                // A group without operations has no frame and must not wait for one.
                true if !self.pending.operations.is_empty() => sequence,
                // Its answer may depend on other transactions, and is valid only once these are
                // durable.
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

    /// Writes the group as one frame.
    fn write(&mut self, journal: &mut Journal) -> Result<(), CommitError> {
        self.frame.clear(2 * GROUP_BYTES_MAX);
        let cipher = self.commits.options.encryption.as_deref();
        let start = self.frame.body().len();
        codec::begin(self.frame.body(), cipher);
        for operation in &self.pending.operations {
            match cipher {
                None => codec::encode_into(&mut self.frame, operation),
                // An encrypted body is one piece.
                Some(_) => codec::encode(self.frame.body(), operation),
            }
        }
        let sequence = journal.last_sequence() + 1;
        codec::finish(self.frame.body(), start, cipher, sequence);
        let (file_before, bytes_before) = (journal.durable().1, journal.written_bytes());
        let began_at = self.commits.clock.monotonic();
        let appended = journal.append(&mut self.frame);
        appended.map_err(|error| self.unwritten(&error))?;
        let took = self.commits.clock.monotonic().saturating_sub(began_at);
        metrics::histogram!("millrace_journal_write_seconds").record(took.as_secs_f64());
        let bytes = journal.written_bytes() - bytes_before;
        metrics::counter!("millrace_journal_bytes_total").increment(bytes);
        if journal.durable().1 != file_before && !journal.has_reserved() {
            self.commits.orders.ask(|orders| orders.checkpoint = true);
        }
        Ok(())
    }

    fn unwritten(&self, error: &std::io::Error) -> CommitError {
        if disk::is_full(error) {
            // A checkpoint frees journal files.
            self.commits.orders.ask(|orders| orders.checkpoint = true);
            return CommitError::DiskFull;
        }
        self.commits.poison(&error.to_string());
        let poisoned = self.commits.poisoned();
        poisoned.unwrap_or(CommitError::Closed)
    }

    /// Applies the group to the state and shows transactions that need no sync; the rest wait for
    /// one.
    fn apply(&mut self, journal_bytes: u64) {
        let mut weight = 0;
        let mut frees_files = false;
        {
            let mut state = self.commits.state.write();
            let mut line = self.commits.pipeline.line();
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
        self.commits.headroom.note_growth(weight, journal_bytes);
        if frees_files {
            // Their files and batches in memory are removed with a checkpoint.
            self.commits.orders.ask(|orders| orders.checkpoint = true);
        }
    }
}

/// For each partition and group, the last write that needs a sync: later writes there need the same
/// sync.
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

    /// The sequence that a transaction with these operations needs, if `needs` is its own.
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
