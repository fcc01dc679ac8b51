//! Read: record batches out, as they are stored. Doors that speak Kafka's format send these bytes, and [`Messages::fetch`] decodes them.

use millrace_engine::Ends;
use millrace_model::batch::{RecordView, Thinned};
use millrace_model::{Offset, PartitionId, RecordBatch, TopicName, TopicPartition};

use crate::ground::keys::{KeyPattern, may_touch};
use crate::ground::packing;
use crate::ground::verbs::Verb;
use crate::messages::fetch::{FetchError, malformed};
use crate::messages::handle::Messages;

/// The batches to read.
#[derive(Clone, Debug)]
pub struct ReadRequest {
    /// The topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: PartitionId,
    /// The first offset to read.
    pub from: Offset,
    /// Stop when the batches have this many bytes; one larger batch is still returned.
    pub bytes_max: usize,
}

/// The result of a read.
#[derive(Clone, Debug)]
pub struct ReadResult {
    /// Stored batches in offset order; empty at the end of the partition. The first one may begin before the requested offset, so the
    /// reader skips records below it. Control batches carry no messages. The leader epoch field holds the host's own stamp:
    /// [`RecordBatch::unstamped`] replaces it for clients.
    pub batches: Vec<RecordBatch>,
    /// Where to continue.
    pub next: Offset,
    /// The partition's start and end.
    pub ends: Ends,
}

impl Messages {
    /// Reads the record batches of one partition from an offset on. Returns immediately; [`Messages::subscribe`] waits.
    ///
    /// # Errors
    /// [`FetchError`], with [`ReadError::BelowStart`](millrace_engine::ReadError::BelowStart) and
    /// [`ReadError::PastEnd`](millrace_engine::ReadError::PastEnd) for an offset that the partition does not have.
    pub async fn read(&self, request: ReadRequest) -> Result<ReadResult, FetchError> {
        self.caller.may(Verb::Read, request.topic.as_str())?;
        self.check_reads()?;
        let partition = self.partition_of(&request.topic, request.partition)?;
        let read = self
            .seen_at(partition, request.from, request.bytes_max)
            .await?;
        self.has_read_batches(&read.batches);
        Ok(read)
    }

    /// Counts what the caller has read.
    pub(super) fn has_read_batches(&self, batches: &[RecordBatch]) {
        let messages = batches.iter().map(RecordBatch::message_count).sum();
        let bytes = batches.iter().map(RecordBatch::byte_count).sum();
        self.has_read(messages, bytes);
    }

    /// The keys that the caller may touch; `None` if it may touch all.
    pub(super) fn keys(&self) -> Option<&[KeyPattern]> {
        self.caller.rights().keys()
    }

    /// Reads what the caller may see: for one with keys, batches without the messages of others. They cover the same offsets.
    pub(super) async fn seen_at(
        &self,
        partition: TopicPartition,
        from: Offset,
        bytes_max: usize,
    ) -> Result<ReadResult, FetchError> {
        let mut read = self.read_at(partition, from, bytes_max).await?;
        if let Some(keys) = self.keys() {
            for batch in &mut read.batches {
                *batch = seen(batch, keys).await?;
            }
        }
        Ok(read)
    }

    pub(super) async fn read_at(
        &self,
        partition: TopicPartition,
        from: Offset,
        bytes_max: usize,
    ) -> Result<ReadResult, FetchError> {
        let engine = &self.inner.engine;
        let before = engine.ends(partition)?.end;
        let batches = engine.read(partition, from, bytes_max).await?;
        // Offsets may have gaps: where nothing was found, nothing is before the end that was known then.
        let next = batches
            .last()
            .map_or_else(|| from.max(before), RecordBatch::end_offset);
        let ends = engine.ends(partition)?;
        Ok(ReadResult {
            batches,
            next,
            // The batches exist, even if this host's view of the end lags behind.
            ends: Ends {
                end: ends.end.max(next),
                ..ends
            },
        })
    }
}

/// A batch without the messages of other keys.
async fn seen(batch: &RecordBatch, keys: &[KeyPattern]) -> Result<RecordBatch, FetchError> {
    if batch.is_control() {
        return Ok(batch.clone());
    }
    let malformed = |error| malformed(batch, error);
    let plain = packing::readable(batch).await.map_err(malformed)?;
    let is_seen = |view: &RecordView| {
        let key = view.key.clone().map(|key| &plain.bytes()[key]);
        may_touch(Some(keys), key)
    };
    Ok(match plain.thinned(is_seen).map_err(malformed)? {
        Thinned::Whole => plain.clone(),
        Thinned::Part(part) => part,
        Thinned::Nothing => RecordBatch::gap(batch.base_offset(), batch.end_offset()),
    })
}
