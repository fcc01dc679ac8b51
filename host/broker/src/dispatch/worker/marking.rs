//! The marks of calls that may end the host ([`suspects`]).

use std::sync::Arc;

use millrace_engine::{ProgressWrite, Transaction};
use millrace_model::{Offset, Progress};

use super::{Trouble, Worker};
use crate::dispatch::answer::Verdict;
use crate::dispatch::batcher::Batch;
use crate::dispatch::breaker::Judgement;
use crate::dispatch::live::Live;
use crate::dispatch::suspects;

const REASON: &str = "the host ended while processing this message, once in a batch and twice alone; it is not called again";

impl Worker {
    /// Whether messages are called alone.
    pub(super) fn has_suspects(&mut self) -> bool {
        if self.plan.suspects.end(&self.progress, self.now()) {
            tracing::info!(topic = %self.input.topic.spec.name, partition = %self.input.partition, "every message in flight at the host's last end has been called alone; continuing with batches");
        }
        self.plan.suspects.are_there()
    }

    /// Writes a mark before a call if this is the first one or the message is a suspect; returns the batch to call.
    pub(super) async fn mark(&mut self, live: &Live, batch: Batch) -> Result<Batch, Trouble> {
        if self.plan.suspects.are_there() {
            return self.mark_suspect(live, batch).await;
        }
        if self.plan.suspects.is_first_call() {
            let mut marked = Progress::clone(&self.progress);
            marked.first_call = Some(batch.next);
            self.keep(marked).await?;
            self.plan.suspects.mark();
        }
        Ok(batch)
    }

    /// The suspect is parked with the mark, so that it is found again wherever it was.
    async fn mark_suspect(&mut self, live: &Live, mut batch: Batch) -> Result<Batch, Trouble> {
        let (offset, at) = (batch.offsets[0], self.now());
        let progress = suspects::parked(&self.progress, live.spec.order, &mut batch, at);
        let marked = self
            .plan
            .suspects
            .marked(&progress, offset, live.revision, at);
        // If the commit is in doubt, this worker ends without a call, and the next one on this host must not take the mark for an end.
        self.share.marks(self.partition, (offset, at));
        self.keep(marked).await?;
        self.share.marked(self.partition);
        self.plan.suspects.mark();
        self.progress = progress.into();
        Ok(batch)
    }

    /// The call has returned. Its commit has removed the mark; otherwise that is done now.
    pub(super) async fn unmark(&mut self, batch: &Batch) {
        if self.plan.suspects.called(&batch.offsets, self.interrupted) {
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
            self.plan.suspects.is_gone();
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
