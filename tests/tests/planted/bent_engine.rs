//! Engines that sometimes break their contract.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use millrace_engine::hooked::Hooks;
use millrace_engine::{CommitError, Ends, Engine, ReadError, Receipt, Transaction, TrimError};
use millrace_local::LocalEngine;
use millrace_model::{GroupName, Offset, Progress, RecordBatch, TopicPartition};

/// What the engine does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EngineBug {
    /// Commits progress separately, before the outputs.
    ProgressFirst,
    /// Commits outputs separately, before the progress.
    OutputFirst,
    /// Commits state separately, before progress and outputs.
    StateFirst,
    /// Commits state separately, after progress and outputs.
    StateLast,
    /// Every tenth commit's state is lost.
    ForgetsState,
    /// Stores every tenth output twice.
    OutputTwice,
    /// Every tenth output is lost.
    OutputForgotten,
    /// Every tenth request is written twice.
    Twice,
    /// Commits the second half of a request separately.
    Halves,
    /// Every tenth request's messages are written in reverse order.
    Reversed,
    /// In every tenth read, shows the first message's value at the second one's offset.
    OtherValue,
    /// Every tenth request is written, but answered with a refusal.
    RefusedAndTaken,
    /// Every tenth request is acknowledged, but not written.
    NotTaken,
    /// The progress before the last one is returned.
    OldProgress,
    /// After a few commits progress is silently dropped.
    StandsStill,
    /// The idempotency key of a request is forgotten before it is looked up.
    ForgetsKeys,
    /// Trims more than was requested.
    TrimsMore,
    /// A trim is acknowledged, but not done.
    TrimsNothing,
    /// A partition begins later than before, without a trim.
    BeginsLater,
    /// In a compacted topic the newest message is missing, and an older one with its key is there.
    CompactsLatest,
    /// In a compacted topic messages that remove their key are dropped at once, although older
    /// messages of the key are there.
    BringsBack,
}

pub(crate) struct BentEngine {
    pub(crate) inner: Arc<LocalEngine>,
    pub(crate) bug: EngineBug,
    pub(crate) calls: AtomicU64,
}

const EVERY: u64 = 10;

impl BentEngine {
    fn now(&self, bug: EngineBug) -> bool {
        let call = || self.calls.fetch_add(1, Ordering::Relaxed);
        self.bug == bug && call() % EVERY == EVERY - 1
    }

    fn is_compacted(&self, partition: TopicPartition) -> bool {
        let topics = self.inner.topics();
        let topic = topics.iter().find(|topic| topic.id == partition.topic);
        topic.is_some_and(|topic| topic.spec.settings.compact)
    }

    /// Makes two commits instead of one; the second one's appends come after the first one's in the
    /// answer.
    async fn split(&self, first: Transaction, second: Transaction) -> Result<Receipt, CommitError> {
        let mut receipt = self.inner.commit(first).await?;
        let rest = self.inner.commit(second).await?;
        receipt.base_offsets.extend(rest.base_offsets);
        Ok(receipt)
    }

    async fn commit_requests(&self, mut transaction: Transaction) -> Result<Receipt, CommitError> {
        if self.bug == EngineBug::ForgetsKeys {
            transaction.request = None;
        }
        if self.now(EngineBug::Twice) {
            self.inner.commit(transaction.clone()).await?;
        }
        if self.now(EngineBug::Reversed) {
            transaction.appends.reverse();
            let mut receipt = self.inner.commit(transaction).await?;
            receipt.base_offsets.reverse();
            return Ok(receipt);
        }
        if self.now(EngineBug::RefusedAndTaken) {
            self.inner.commit(transaction).await?;
            return Err(CommitError::DiskFull);
        }
        if self.now(EngineBug::NotTaken) {
            let ends = |append: &millrace_engine::Append| self.inner.ends(append.partition);
            let ends = transaction
                .appends
                .iter()
                .filter_map(|append| ends(append).ok());
            let base_offsets = ends.map(|ends| ends.end).collect();
            return Ok(Receipt {
                base_offsets,
                ..Receipt::default()
            });
        }
        if self.bug == EngineBug::Halves && transaction.appends.len() > 1 {
            let half = transaction.appends.len() / 2;
            let second = Transaction::produce(transaction.appends.split_off(half));
            transaction.request = None;
            return self.split(transaction, second).await;
        }
        self.inner.commit(transaction).await
    }
}

#[async_trait]
impl Hooks for BentEngine {
    fn engine(&self) -> &dyn Engine {
        &*self.inner
    }

    async fn commit(&self, mut transaction: Transaction) -> Result<Receipt, CommitError> {
        if transaction.progress.is_empty() {
            return self.commit_requests(transaction).await;
        }
        let only_state = Transaction {
            state: transaction.state.clone(),
            ..Transaction::default()
        };
        let only_progress = Transaction {
            progress: transaction.progress.clone(),
            state: transaction.state.clone(),
            ..Transaction::default()
        };
        match self.bug {
            EngineBug::ProgressFirst => {
                transaction.progress.clear();
                transaction.state.clear();
                self.split(only_progress, transaction).await
            }
            EngineBug::OutputFirst => {
                transaction.progress.clear();
                transaction.state.clear();
                self.split(transaction, only_progress).await
            }
            EngineBug::StateFirst => {
                transaction.state.clear();
                self.split(only_state, transaction).await
            }
            EngineBug::StateLast => {
                transaction.state.clear();
                self.split(transaction, only_state).await
            }
            EngineBug::ForgetsState if self.now(EngineBug::ForgetsState) => {
                transaction.state.clear();
                self.inner.commit(transaction).await
            }
            EngineBug::OutputTwice if self.now(EngineBug::OutputTwice) => {
                transaction
                    .appends
                    .extend(transaction.appends.first().cloned());
                self.inner.commit(transaction).await
            }
            EngineBug::OutputForgotten if self.now(EngineBug::OutputForgotten) => {
                transaction.appends.pop();
                self.inner.commit(transaction).await
            }
            EngineBug::StandsStill if self.calls.fetch_add(1, Ordering::Relaxed) > 2 => {
                Ok(Receipt::default())
            }
            _ => self.inner.commit(transaction).await,
        }
    }

    async fn trim(&self, partition: TopicPartition, before: Offset) -> Result<Offset, TrimError> {
        let before = match self.bug {
            EngineBug::TrimsNothing => return Ok(before),
            EngineBug::TrimsMore => {
                let end = self.inner.ends(partition).map_or(before, |ends| ends.end);
                Offset((before.0 + 2).min(end.0))
            }
            _ => before,
        };
        self.inner.trim(partition, before).await
    }

    async fn read(
        &self,
        partition: TopicPartition,
        from: Offset,
        bytes_max: usize,
    ) -> Result<Vec<RecordBatch>, ReadError> {
        let mut batches = self.inner.read(partition, from, bytes_max).await?;
        if batches.len() > 1 && self.now(EngineBug::OtherValue) {
            batches[1] = batches[0].at_offset(batches[1].base_offset());
        }
        if self.bug == EngineBug::CompactsLatest && self.is_compacted(partition) {
            let newest = self.inner.ends(partition)?.end;
            batches.retain(|batch| batch.end_offset() < newest);
        }
        if self.bug == EngineBug::BringsBack && self.is_compacted(partition) {
            batches.retain(|batch| !crate::life::removes(batch));
        }
        Ok(batches)
    }

    fn ends(&self, partition: TopicPartition) -> Result<Ends, ReadError> {
        let mut ends = self.inner.ends(partition)?;
        if self.bug == EngineBug::BeginsLater && ends.end.0 > 20 {
            ends.start.0 += 3;
        }
        Ok(ends)
    }

    async fn progress(
        &self,
        group: &GroupName,
        partition: TopicPartition,
    ) -> Result<Option<Progress>, ReadError> {
        let mut progress = self.inner.progress(group, partition).await?;
        if let Some(progress) = &mut progress
            && self.bug == EngineBug::OldProgress
        {
            progress.next.0 = progress.next.0.saturating_sub(1);
        }
        Ok(progress)
    }
}
