//! Messages that may have ended the host. A trap is caught; a crash of the process is not, and would recur at every start. So a new
//! worker writes a mark with its progress before its first call. If the next worker finds the mark, the host ended during that call:
//! its messages are suspects, and each is called alone, under its own mark. A message found marked like this twice was in flight at
//! three ends of the host: it is not called again but given up. Once the first call has returned nothing is marked any more, so all
//! this costs one commit per start.

use std::sync::Arc;

use millrace_engine::{ProgressWrite, Transaction};
use millrace_model::bounds::ATTEMPT_LOG_MAX;
use millrace_model::{Attempt, Offset, Parked, Progress, Timestamp};

use super::{Trouble, Worker};
use crate::dispatch::answer::Verdict;
use crate::dispatch::batcher::{self, Batch};
use crate::dispatch::breaker::Judgement;
use crate::dispatch::live::Live;
use crate::handler::Cause;

/// The number of ends of the host during which a message may be in flight alone before it is given up. One is not enough: a host that
/// is ended from outside, and again while it starts, may well be calling a harmless message.
const ENDS_ALONE_MAX: usize = 2;

const REASON: &str = "the host ended while processing this message, once in a batch and twice alone; it is not called again";

/// The previous worker's host is alive: what it was calling when it lost its hold does not incriminate any message.
pub(super) fn forget_call(progress: &mut Progress) {
    if progress.first_call.take().is_none() {
        return;
    }
    let died = Cause::HostDied.as_str();
    let called = |parked: &Parked| {
        let last = parked.log.last().filter(|attempt| attempt.class == died);
        last.map(|attempt| attempt.at)
    };
    // The newest mark belongs to the call, if there was one; if not, one end is forgotten, and one message is called once more.
    let newest = progress
        .parked
        .iter_mut()
        .max_by_key(|parked| called(parked));
    if let Some(parked) = newest.filter(|parked| called(parked).is_some()) {
        parked.log.pop();
    }
}

/// Takes off the mark of a call that this host was about to make: it was in doubt whether it is committed, and nobody was called.
pub(super) fn forget_mark(progress: &mut Progress, (offset, at): (Offset, Timestamp)) {
    let marked = progress.parked.iter_mut().find(|p| p.offset == offset);
    let died = Cause::HostDied.as_str();
    if let Some(parked) = marked {
        let mark = |attempt: &Attempt| attempt.class == died && attempt.at == at;
        if let Some(found) = parked.log.iter().rposition(mark) {
            parked.log.remove(found);
        }
    }
}

/// What a worker knows of the host's last end.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    /// Messages below were in flight at the host's last end; `None` if all of them were called since, or there were none.
    until: Option<Offset>,
    /// Messages that are given up without a call.
    convicted: Vec<Offset>,
    /// Whether a call has returned since the worker started.
    begun: bool,
    /// Whether there is a mark that no commit has removed yet.
    marked: bool,
}

impl Suspects {
    /// Reads the previous worker's progress. If its host is alive (`left` is false), no host ended during it.
    pub(super) fn of(progress: &Progress, left: bool) -> Self {
        let died = Cause::HostDied.as_str();
        let ends = |parked: &Parked| parked.log.iter().filter(|a| a.class == died).count();
        let convicted = progress
            .parked
            .iter()
            .filter(|parked| ends(parked) >= ENDS_ALONE_MAX);
        Self {
            until: progress.first_call.filter(|_| left),
            convicted: convicted.map(|parked| parked.offset).collect(),
            ..Self::default()
        }
    }

    /// The next message to give up.
    pub(super) fn convicted(&self) -> Option<Offset> {
        self.convicted.last().copied()
    }

    /// Nothing was left to call below `next`: returns whether that ends the search.
    pub(super) fn end_at(&mut self, next: Offset) -> bool {
        let ends = self.until.is_some_and(|until| next >= until);
        if ends {
            self.until = None;
        }
        ends
    }

    /// A commit has removed the mark.
    pub(super) fn answered(&mut self) {
        self.marked = false;
    }
}

impl Worker {
    /// Whether messages are called alone.
    pub(super) fn has_suspects(&mut self) -> bool {
        if let Some(until) = self.suspects.until
            && self.progress.next >= until
        {
            let due = batcher::oldest_due(&self.progress.parked, self.now(), &self.cleared);
            if due.offsets.first().is_none_or(|&offset| offset >= until) {
                tracing::info!(topic = %self.input.topic.spec.name, partition = %self.input.partition, "every message in flight at the host's last end has been called alone; continuing with batches");
                self.suspects.until = None;
                self.cleared.clear();
            }
        }
        self.suspects.until.is_some()
    }

    /// Writes a mark before a call if this is the first one or the message is a suspect; returns the batch to call.
    pub(super) async fn mark(&mut self, live: &Live, batch: Batch) -> Result<Batch, Trouble> {
        if self.suspects.until.is_some() {
            return self.mark_suspect(live, batch).await;
        }
        if !self.suspects.begun {
            let mut marked = Progress::clone(&self.progress);
            marked.first_call = Some(batch.next);
            self.keep(marked).await?;
            self.suspects.marked = true;
        }
        Ok(batch)
    }

    /// The suspect is parked with the mark, so that it is found again wherever it was.
    async fn mark_suspect(&mut self, live: &Live, mut batch: Batch) -> Result<Batch, Trouble> {
        let offset = batch.offsets[0];
        let mut progress = Progress::clone(&self.progress);
        if batch.retried == 0 {
            let ordering = batcher::ordering(live.spec.order, batch.columns.key(0));
            progress.parked.push(Parked {
                due: Some(self.now()),
                ..batcher::behind(offset, ordering)
            });
            progress.parked.append(&mut batch.skipped);
            progress.parked.sort_unstable_by_key(|parked| parked.offset);
            progress.next = batch.next;
            batch.retried = 1;
        }
        let at = self.now();
        let mut marked = progress.clone();
        // If the host ends now, this one and those behind it are still suspects.
        marked.first_call = self.suspects.until;
        if let Some(parked) = marked.parked.iter_mut().find(|p| p.offset == offset) {
            // The oldest is dropped: the marks of the latest ends are the newest.
            if parked.log.len() >= ATTEMPT_LOG_MAX {
                parked.log.remove(0);
            }
            parked.log.push(Attempt {
                at,
                revision: live.revision,
                class: Cause::HostDied.as_str().to_owned(),
                reason: "called alone without an answer: the host ended".to_owned(),
            });
        }
        // If the commit is in doubt, this worker ends without a call, and the next one on this host must not take the mark for an end.
        self.share.marks(self.partition, (offset, at));
        self.keep(marked).await?;
        self.share.marked(self.partition);
        self.suspects.marked = true;
        self.progress = progress.into();
        Ok(batch)
    }

    /// The call has returned. Its commit has removed the mark; otherwise that is done now.
    pub(super) async fn unmark(&mut self, batch: &Batch) {
        self.suspects.begun = true;
        if self.suspects.until.is_some() && !self.interrupted {
            self.cleared.extend(&batch.offsets);
        }
        if std::mem::take(&mut self.suspects.marked) {
            // If this fails, the mark stays until the next commit, which will not succeed before the disk works again.
            let _ = self.keep(Progress::clone(&self.progress)).await;
        }
    }

    /// Gives a message up without a call.
    pub(super) async fn bury(&mut self, live: &Live, offset: Offset) -> Result<(), Trouble> {
        let batch = self.parked_alone(offset).await?;
        if batch.len() > 0 {
            tracing::error!(processor = %live.processor, topic = %self.input.topic.spec.name, partition = %self.input.partition, %offset, "the host ended repeatedly with this message in flight; it becomes a dead letter");
            let verdict = Verdict::host_died(REASON.to_owned());
            self.settle(live, &batch, &verdict, &[], &[], Judgement::Settle)
                .await?;
        }
        let parked = &self.progress.parked;
        let waits = parked.binary_search_by_key(&offset, |parked| parked.offset);
        if waits.is_err() {
            self.suspects.convicted.pop();
        }
        Ok(())
    }

    /// Commits progress and nothing else.
    pub(super) async fn keep(&mut self, progress: Progress) -> Result<(), Trouble> {
        let progress = Arc::new(progress);
        let transaction = Transaction {
            progress: vec![ProgressWrite {
                partition: self.partition,
                lease: self.lease.clone(),
                progress: self.stored.change_to(&progress),
            }],
            durability: Some(self.input.topic.spec.durability),
            expects: self.beginning.iter().cloned().collect(),
            ..Transaction::default()
        };
        let committed = self.share.commit(transaction).await;
        if let Err(error) = committed {
            self.rewind();
            return Err(error.into());
        }
        self.beginning = None;
        self.stored = progress;
        Ok(())
    }
}
