//! Fetch: messages of a partition from an offset on, waiting a while if there are none yet.

use std::time::Duration;

use millrace_engine::{Ends, ReadError};
use millrace_model::{
    BatchError, Message, Offset, PartitionId, RecordBatch, TopicName, TopicPartition,
};

use crate::ground::packing;
use crate::messages::handle::Messages;

/// Bytes that one read asks the engine for.
const FETCH_READ_BYTES: usize = 1 << 20;

/// What to fetch.
#[derive(Clone, Debug)]
pub struct FetchRequest {
    /// From which topic.
    pub topic: TopicName,
    /// From which of its partitions.
    pub partition: PartitionId,
    /// The first offset; below the first one kept it is that one, past the end it is the end.
    pub from: Offset,
    /// Messages at the most.
    pub messages_max: usize,
    /// Bytes of keys, values and headers at the most (one larger message is still given).
    pub bytes_max: usize,
    /// Wait at most so long if there is nothing.
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

/// What one fetch gives.
#[derive(Clone, Debug)]
pub struct FetchResult {
    /// In offset order; empty if nothing came in time.
    pub messages: Vec<Fetched>,
    /// Where to go on.
    pub next: Offset,
    /// Where the partition begins and ends.
    pub ends: Ends,
}

/// Why nothing was fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No such topic.
    #[error("topic {0} does not exist")]
    UnknownTopic(TopicName),
    /// The topic has fewer partitions.
    #[error("topic {topic} has partitions 0 to {}, not {partition}", .partitions - 1)]
    UnknownPartition {
        /// Which topic.
        topic: TopicName,
        /// What was asked for.
        partition: PartitionId,
        /// How many there are.
        partitions: u32,
    },
    /// The engine could not read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A stored batch cannot be decoded.
    #[error("the batch at offset {at} cannot be read ({error}); read on from {next}")]
    Malformed {
        /// Where it begins.
        at: Offset,
        /// The offset after it.
        next: Offset,
        /// What is wrong.
        error: BatchError,
    },
}

impl Messages {
    /// Reads messages of one partition.
    ///
    /// # Errors
    /// [`FetchError`].
    pub async fn fetch(&self, request: FetchRequest) -> Result<FetchResult, FetchError> {
        let partition = self.partition_of(&request)?;
        let engine = &self.inner.engine;
        let ends = self
            .inner
            .catalogue
            .ends_about(partition, request.from)
            .await?;
        let from = request.from.clamp(ends.start, ends.end);
        if from == ends.end && !request.wait.is_zero() {
            let mut watch = engine.watch(partition)?;
            // Whatever comes of it, the answer is what is there now.
            let _ = tokio::time::timeout(request.wait, watch.past(from)).await;
        }
        let room = Room {
            messages: request.messages_max,
            bytes: request.bytes_max,
        };
        let (messages, next) = self.read(partition, from, room).await?;
        let ends = engine.ends(partition)?;
        // What was read is there, whatever was heard of it.
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

    fn partition_of(&self, request: &FetchRequest) -> Result<TopicPartition, FetchError> {
        let topic = self.inner.catalogue.topic(&request.topic);
        let topic = topic.ok_or_else(|| FetchError::UnknownTopic(request.topic.clone()))?;
        let partition = topic.partition(request.partition);
        partition.ok_or_else(|| FetchError::UnknownPartition {
            topic: request.topic.clone(),
            partition: request.partition,
            partitions: topic.spec.partitions,
        })
    }

    /// Messages from `from` on as far as there is room, and where to go on.
    pub(crate) async fn read(
        &self,
        partition: TopicPartition,
        from: Offset,
        mut room: Room,
    ) -> Result<(Vec<Fetched>, Offset), FetchError> {
        let mut messages = Vec::new();
        let mut next = from;
        while room.messages > 0 && room.bytes > 0 {
            let bytes_max = room.bytes.min(FETCH_READ_BYTES);
            let batches = match self.inner.engine.read(partition, next, bytes_max).await {
                Ok(batches) => batches,
                // What was found before the damage is given; the next call meets it first.
                Err(_) if !messages.is_empty() => break,
                Err(error) => return Err(error.into()),
            };
            if batches.is_empty() {
                break;
            }
            for batch in &batches {
                let readable = packing::readable(batch).await;
                let readable = readable.map_err(|error| malformed(batch, error));
                match readable.and_then(|batch| take(&batch, next, &mut room, &mut messages)) {
                    Ok(Some(end)) => next = end,
                    Ok(None) => {
                        next = messages.last().map_or(next, |last| last.offset.next());
                        return Ok((messages, next));
                    }
                    // What stands before it in its batch was given.
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

/// What still fits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
}

fn malformed(batch: &RecordBatch, error: BatchError) -> FetchError {
    FetchError::Malformed {
        at: batch.base_offset(),
        next: batch.end_offset(),
        error,
    }
}

/// Takes a readable batch's messages from `from` on; where the batch ends, or `None` if there was no room for all.
fn take(
    batch: &RecordBatch,
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
        if view.offset < from {
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
