//! Fetch: messages of a partition from an offset on, optionally waiting for new ones.

use std::time::Duration;

use millrace_engine::{Ends, ReadError};
use millrace_model::{
    Advice, Advised, BatchError, Code, Message, Offset, PartitionId, Quota, RecordBatch, TopicName,
    TopicPartition,
};

use crate::catalogue::unknown::{UnknownPartition, UnknownTopic, known_partition};
use crate::ground::keys::{KeyPattern, may_touch};
use crate::ground::meters::OverQuota;
use crate::ground::packing;
use crate::ground::standing::Forbidden;
use crate::ground::verbs::Verb;
use crate::messages::handle::Messages;

/// Bytes per read from the engine.
const FETCH_READ_BYTES: usize = 1 << 20;
/// Bytes of stored batches that one fetch goes through for a caller who sees only some keys. Then it is answered with what was found, and
/// where to continue.
const FETCH_PASSED_OVER_BYTES_MAX: usize = 16 << 20;

/// What to fetch.
#[derive(Clone, Debug)]
pub struct FetchRequest {
    /// The topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: PartitionId,
    /// The first offset, moved inside the kept range if it is outside.
    pub from: Offset,
    /// Maximum number of messages.
    pub messages_max: usize,
    /// Maximum bytes of keys, values and headers (one larger message is still returned).
    pub bytes_max: usize,
    /// Maximum time to wait if there is nothing.
    pub wait: Duration,
}

/// A message read back.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// Its offset.
    pub offset: Offset,
    /// The message.
    pub message: Message,
}

/// The result of a fetch.
#[derive(Clone, Debug)]
pub struct FetchResult {
    /// In offset order; empty if nothing arrived in time.
    pub messages: Vec<Fetched>,
    /// Where to continue.
    pub next: Offset,
    /// The partition's start and end.
    pub ends: Ends,
}

/// Why nothing was fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The caller may not do it.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// The caller reads too much.
    #[error(transparent)]
    OverQuota(#[from] OverQuota),
    /// No such topic.
    #[error(transparent)]
    UnknownTopic(#[from] UnknownTopic),
    /// The topic has fewer partitions.
    #[error(transparent)]
    UnknownPartition(#[from] UnknownPartition),
    /// The engine could not read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A stored batch cannot be decoded.
    #[error("the batch at offset {at} cannot be read ({error}); continue at {next}")]
    Malformed {
        /// Its base offset.
        at: Offset,
        /// The offset after it.
        next: Offset,
        /// What is wrong with it.
        error: BatchError,
    },
}

impl Advised for FetchError {
    fn advice(&self) -> Advice {
        match self {
            Self::Forbidden(error) => error.advice(),
            Self::OverQuota(error) => error.advice(),
            Self::UnknownTopic(error) => error.advice(),
            Self::UnknownPartition(error) => error.advice(),
            Self::Read(error) => error.advice(),
            Self::Malformed { next, .. } => Code::Unreadable.advice().next(*next),
        }
    }
}

impl Messages {
    /// Reads messages of one partition.
    ///
    /// # Errors
    /// [`FetchError`].
    pub async fn fetch(&self, request: FetchRequest) -> Result<FetchResult, FetchError> {
        self.caller.may(Verb::Read, request.topic.as_str())?;
        self.check_reads()?;
        let partition = self.partition_of(&request.topic, request.partition)?;
        let engine = &self.inner.engine;
        let ends = self
            .inner
            .catalogue
            .ends_about(partition, request.from)
            .await?;
        let from = request.from.clamp(ends.start, ends.end);
        if from == ends.end && !request.wait.is_zero() {
            let mut watch = engine.watch(partition)?;
            // Whatever ended the wait, the answer is what is there now.
            let _ = tokio::time::timeout(request.wait, watch.past(from)).await;
        }
        let room = Room {
            messages: request.messages_max,
            bytes: request.bytes_max,
        };
        let (messages, next) = self
            .messages_for(self.keys(), partition, from, room)
            .await?;
        let bytes = messages.iter().map(|read| read.message.byte_count()).sum();
        self.has_read(messages.len(), bytes);
        let ends = engine.ends(partition)?;
        // The messages exist, even if this host's view of the end lags behind.
        let ends = Ends {
            end: ends.end.max(next),
            ..ends
        };
        Ok(FetchResult {
            messages,
            next,
            ends,
        })
    }

    /// Whether the caller may read more now.
    pub(super) fn check_reads(&self) -> Result<(), OverQuota> {
        let now = self.inner.clock.monotonic();
        self.caller
            .check_quotas(&[Quota::ReadBytes, Quota::ReadMessages], now)
    }

    /// Waits until the caller may read more.
    pub(super) async fn reads_on(&self) {
        while let Err(over) = self.check_reads() {
            tokio::time::sleep(Duration::from_millis(over.wait_ms)).await;
        }
    }

    /// Counts what the caller has read.
    pub(super) fn has_read(&self, messages: usize, bytes: usize) {
        let amounts = [
            (Quota::ReadMessages, messages as u64),
            (Quota::ReadBytes, bytes as u64),
        ];
        self.caller.take(&amounts, self.inner.clock.monotonic());
    }

    pub(super) fn partition_of(
        &self,
        topic: &TopicName,
        partition: PartitionId,
    ) -> Result<TopicPartition, FetchError> {
        let topic = self.inner.catalogue.known_topic(topic)?;
        Ok(known_partition(&topic, partition)?)
    }

    /// Messages from `from` on as far as there is room, and where to continue.
    pub(crate) async fn messages_from(
        &self,
        partition: TopicPartition,
        from: Offset,
        room: Room,
    ) -> Result<(Vec<Fetched>, Offset), FetchError> {
        self.messages_for(None, partition, from, room).await
    }

    /// The same, for somebody who sees only messages with some keys: the others are passed over, as many as one call may.
    async fn messages_for(
        &self,
        keys: Option<&[KeyPattern]>,
        partition: TopicPartition,
        from: Offset,
        mut room: Room,
    ) -> Result<(Vec<Fetched>, Offset), FetchError> {
        let mut messages = Vec::new();
        let mut next = from;
        let mut passed_over = 0;
        while room.messages > 0 && room.bytes > 0 {
            let bytes_max = room.bytes.min(FETCH_READ_BYTES);
            let read = match self.read_at(partition, next, bytes_max).await {
                Ok(read) => read,
                // Messages before the damage are returned; the next call meets the damage first.
                Err(_) if !messages.is_empty() => break,
                Err(error) => return Err(error),
            };
            if read.batches.is_empty() {
                next = read.next;
                break;
            }
            for batch in &read.batches {
                let readable = packing::readable(batch).await;
                let readable = readable.map_err(|error| malformed(batch, error));
                let taken =
                    readable.and_then(|batch| take(&batch, keys, next, &mut room, &mut messages));
                match taken {
                    Ok(Some(end)) => {
                        next = end;
                        passed_over += batch.byte_count();
                        if keys.is_some() && passed_over >= FETCH_PASSED_OVER_BYTES_MAX {
                            return Ok((messages, next));
                        }
                    }
                    Ok(None) => {
                        next = messages.last().map_or(next, |last| last.offset.next());
                        return Ok((messages, next));
                    }
                    // Messages before it in its batch were already returned.
                    Err(_) if !messages.is_empty() => {
                        next = messages.last().map_or(next, |last| last.offset.next());
                        return Ok((messages, next));
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok((messages, next))
    }
}

/// The remaining room of an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
}

pub(super) fn malformed(batch: &RecordBatch, error: BatchError) -> FetchError {
    FetchError::Malformed {
        at: batch.base_offset(),
        next: batch.end_offset(),
        error,
    }
}

/// Adds a readable batch's messages from `from` on, of those keys that the caller may touch; returns the batch's end, or `None` if there was not enough room.
fn take(
    batch: &RecordBatch,
    keys: Option<&[KeyPattern]>,
    from: Offset,
    room: &mut Room,
    messages: &mut Vec<Fetched>,
) -> Result<Option<Offset>, FetchError> {
    let malformed = |error| malformed(batch, error);
    if batch.is_control() {
        return Ok(Some(batch.end_offset()));
    }
    for view in batch.records().map_err(malformed)? {
        let view = view.map_err(malformed)?;
        let key = view.key.clone().map(|key| &batch.bytes()[key]);
        if view.offset < from || !may_touch(keys, key) {
            continue;
        }
        let message = view.to_message(batch.bytes()).map_err(malformed)?;
        let bytes = message.byte_count();
        if room.messages == 0 || (bytes > room.bytes && !messages.is_empty()) {
            return Ok(None);
        }
        room.messages -= 1;
        room.bytes = room.bytes.saturating_sub(bytes);
        let offset = view.offset;
        messages.push(Fetched { offset, message });
    }
    Ok(Some(batch.end_offset()))
}
