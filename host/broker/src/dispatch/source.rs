//! Reads one input partition for its worker: new messages in order, many batches at a time, and
//! parked messages by their offsets.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use millrace_engine::{Engine, ReadError, Watch};
use millrace_model::batch::RecordView;
use millrace_model::{BatchError, Offset, RecordBatch, Timestamp, TopicPartition};

/// Bytes per read of parked messages. They are scattered, so reading far beyond the batch is no
/// use.
const PARKED_READ_BYTES: usize = 16 << 10;
/// Approximate bytes of batches held for parked messages, because each message holds its whole
/// batch.
const PARKED_HELD_BYTES: usize = 16 << 20;
/// Minimum bytes per read, so that one call reads many small batches.
const READ_BYTES_MIN: usize = 256 << 10;

/// New messages of one partition, in order, from the worker's position.
pub(crate) struct Source {
    engine: Arc<dyn Engine>,
    partition: TopicPartition,
    watch: Watch,
    /// Messages below this offset are not returned again.
    position: Offset,
    /// The end of the partition when it was last read. Waiting starts from here.
    seen: Offset,
    /// Where the next read continues.
    read_next: Offset,
    batches: VecDeque<RecordBatch>,
    /// Messages and bytes in `batches`.
    waiting: (usize, usize),
    open: Option<RecordBatch>,
    /// The open batch's records; kept to reuse their memory.
    views: Vec<RecordView>,
    at: usize,
    lost: u64,
    /// The first offset that is not returned.
    limit: Offset,
    /// Only messages with these timestamps are returned; `None` means all.
    times: Option<Range<Timestamp>>,
}

/// A message: its batch and its place in it.
pub(crate) type Located = (RecordBatch, RecordView);

impl Source {
    /// Reads the partition from `from` on.
    pub(crate) fn new(
        engine: Arc<dyn Engine>,
        partition: TopicPartition,
        watch: Watch,
        from: Offset,
        limit: Option<Offset>,
    ) -> Self {
        Self {
            engine,
            partition,
            watch,
            limit: limit.unwrap_or(Offset::MAX),
            position: from,
            seen: Offset::default(),
            read_next: from,
            batches: VecDeque::new(),
            waiting: (0, 0),
            open: None,
            views: Vec::new(),
            at: 0,
            lost: 0,
            times: None,
        }
    }

    /// Skips messages outside these timestamps. Timestamps need not ascend, so a range of offsets
    /// may contain such messages.
    pub(crate) fn only(mut self, times: Option<Range<Timestamp>>) -> Self {
        self.times = times;
        self
    }

    /// The committed end of the partition, or of the part to read.
    pub(crate) fn end(&self) -> Offset {
        self.watch.end().min(self.limit)
    }

    /// Whether nothing is left to read, and nothing more will arrive.
    pub(crate) fn is_done(&self) -> bool {
        self.position >= self.limit
    }

    /// The offset after all messages that were taken or skipped.
    pub(crate) fn position(&self) -> Offset {
        self.position
    }

    /// Whether `peek` may return something without new messages arriving.
    pub(crate) fn has_more(&self) -> bool {
        self.position < self.end()
    }

    /// Approximate number of messages that `peek` returns without reading.
    pub(crate) fn at_hand(&self) -> usize {
        self.waiting.0 + self.views.len() - self.at
    }

    /// Number of unreadable messages that were skipped since the last call.
    pub(crate) fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    /// The partition's end now. [`wait`](Self::wait) waits for messages after it.
    pub(crate) fn look(&mut self) -> Offset {
        self.seen = self.end();
        self.seen
    }

    /// Waits for messages after the last known end; false if the partition is gone.
    pub(crate) async fn wait(&mut self) -> bool {
        self.watch.past(self.seen).await.is_some()
    }

    /// Moves to `to`, back or forward.
    pub(crate) fn rewind(&mut self, to: Offset) {
        self.position = to;
        self.read_next = to;
        self.batches.clear();
        self.waiting = (0, 0);
        self.close();
    }

    /// Reads until this many messages or bytes are available, or there are no more.
    pub(crate) async fn fill(&mut self, messages: usize, bytes: usize) -> Result<(), ReadError> {
        while self.at_hand() < messages && self.waiting.1 < bytes && self.read_next < self.end() {
            let bytes_max = bytes.max(READ_BYTES_MIN);
            let read = self.engine.read(self.partition, self.read_next, bytes_max);
            match read.await {
                Ok(batches) if batches.is_empty() => break,
                Ok(batches) => batches.into_iter().for_each(|batch| self.enqueue(batch)),
                Err(_) if self.at < self.views.len() || !self.batches.is_empty() => break,
                Err(error) => self.pass_over(error)?,
            }
        }
        Ok(())
    }

    fn enqueue(&mut self, batch: RecordBatch) {
        self.read_next = batch.end_offset();
        self.waiting.0 += batch.message_count();
        self.waiting.1 += batch.byte_count();
        self.batches.push_back(batch);
    }

    /// Moves past messages that cannot be read. Removed messages cannot come back. Damaged ones are
    /// skipped only if their loss was accepted: they may be repaired, and skipping would lose
    /// messages that were never processed.
    fn pass_over(&mut self, error: ReadError) -> Result<(), ReadError> {
        let to = match &error {
            ReadError::BelowStart { start, .. } => *start,
            ReadError::Damaged { to, .. } if *to > self.read_next && self.is_given_up(&error) => {
                *to
            }
            _ => return Err(error),
        };
        if matches!(error, ReadError::BelowStart { .. }) {
            tracing::warn!(partition = %self.partition, from = %self.read_next, %to, "messages were removed before the processor reached them; continuing at the partition's start");
        } else {
            tracing::error!(partition = %self.partition, from = %self.read_next, %to, %error, "messages cannot be read; continuing after them");
        }
        self.lost += to.0.saturating_sub(self.read_next.0);
        self.read_next = to;
        self.position = to;
        Ok(())
    }

    /// Whether the loss of these damaged messages was accepted.
    fn is_given_up(&self, error: &ReadError) -> bool {
        let &ReadError::Damaged {
            partition,
            from,
            to,
            ..
        } = error
        else {
            return false;
        };
        let from = from.max(self.engine.ends(partition).map_or(from, |ends| ends.start));
        let ranges = self.engine.damage().ranges.into_iter();
        let accepted = ranges.filter(|r| r.partition == partition && r.accepted_at.is_some());
        // The accepted range may be stored as several adjacent ranges by now.
        let covered = accepted.fold(from, |covered, range| {
            if range.from <= covered {
                covered.max(range.to)
            } else {
                covered
            }
        });
        covered >= to
    }

    /// The next message, if one is available.
    pub(crate) fn peek(&mut self) -> Option<(&RecordBatch, &RecordView)> {
        while self.at >= self.views.len() {
            let batch = self.batches.pop_front()?;
            self.waiting.0 -= batch.message_count();
            self.waiting.1 -= batch.byte_count();
            self.open(batch);
        }
        let view = &self.views[self.at];
        if view.offset >= self.limit {
            self.position = self.limit;
            return None;
        }
        Some((self.open.as_ref()?, view))
    }

    fn open(&mut self, mut batch: RecordBatch) {
        self.close();
        if !batch.is_control()
            && let Err(error) = self.view(&mut batch)
        {
            self.lost += (batch.message_count() - self.views.len()) as u64;
            tracing::error!(partition = %self.partition, at = %batch.base_offset(), %error, "a batch cannot be decoded; continuing after it");
        }
        if let Some(times) = &self.times {
            self.views.retain(|view| times.contains(&view.timestamp));
        }
        let position = self.position;
        self.at = self.views.partition_point(|view| view.offset < position);
        if self.at == self.views.len() {
            self.position = self.position.max(batch.end_offset());
        }
        self.open = Some(batch);
    }

    /// Reads the batch's records, up to the first that cannot be read. A compressed batch is
    /// replaced by its decompressed form.
    fn view(&mut self, batch: &mut RecordBatch) -> Result<(), BatchError> {
        *batch = batch.inflated()?;
        for record in batch.records()? {
            self.views.push(record?);
        }
        Ok(())
    }

    fn close(&mut self) {
        self.open = None;
        self.views.clear();
        self.at = 0;
    }

    /// Frees memory while there is nothing to do.
    pub(crate) fn rest(&mut self) {
        if self.at_hand() == 0 {
            self.close();
            self.views = Vec::new();
        }
    }

    /// Moves past the message that `peek` returned.
    pub(crate) fn advance(&mut self) {
        let Some(batch) = &self.open else { return };
        self.at += 1;
        self.position = match self.views.get(self.at) {
            Some(next) => next.offset,
            None => batch.end_offset(),
        };
    }

    /// Reads messages at these ascending offsets; `None` for a message that no longer exists.
    /// Returns fewer than asked for, but at least one, if more would take too much memory.
    pub(crate) async fn load(&self, offsets: &[Offset]) -> Result<Vec<Option<Located>>, ReadError> {
        let mut found = Vec::with_capacity(offsets.len());
        let mut held_bytes = 0;
        while let Some(&wanted) = offsets.get(found.len())
            && held_bytes < PARKED_HELD_BYTES
        {
            let read = self.engine.read(self.partition, wanted, PARKED_READ_BYTES);
            let gone_below = match read.await {
                Ok(batches) if batches.is_empty() => Offset::MAX,
                Ok(batches) => {
                    for batch in &batches {
                        held_bytes += locate(batch, offsets, &mut found);
                    }
                    continue;
                }
                Err(ReadError::BelowStart { start, .. }) => start,
                Err(ref error @ ReadError::Damaged { to, .. }) if self.is_given_up(error) => {
                    to.max(wanted.next())
                }
                Err(ReadError::PastEnd { .. }) => Offset::MAX,
                // Messages found before the damage can be processed meanwhile.
                Err(ReadError::Damaged { .. }) if !found.is_empty() => break,
                Err(error) => return Err(error),
            };
            let rest = &offsets[found.len()..];
            let gone = rest.partition_point(|&offset| offset < gone_below);
            found.extend((0..gone.max(1)).map(|_| None));
        }
        Ok(found)
    }
}

/// Finds the next wanted offsets that lie in the batch, or before it and so no longer exist.
/// Returns the bytes held for them: the decompressed size if the batch is compressed.
fn locate(batch: &RecordBatch, offsets: &[Offset], found: &mut Vec<Option<Located>>) -> usize {
    let before = found.len();
    let in_reach = |wanted: &Offset| *wanted < batch.end_offset();
    if !offsets.get(before).is_some_and(in_reach) {
        return 0;
    }
    let plain = batch.inflated();
    let batch = plain.as_ref().unwrap_or(batch);
    let mut records = batch
        .records()
        .ok()
        .into_iter()
        .flatten()
        .map_while(Result::ok)
        .peekable();
    while let Some(&wanted) = offsets.get(found.len())
        && wanted < batch.end_offset()
    {
        while records.next_if(|view| view.offset < wanted).is_some() {}
        let view = records.next_if(|view| view.offset == wanted);
        found.push(view.map(|view| (batch.clone(), view)));
    }
    match found[before..].iter().any(Option::is_some) {
        true => batch.byte_count(),
        false => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use millrace_engine::{Append, MemoryEngine, Transaction};
    use millrace_model::{
        BatchBuilder, Durability, Message, PartitionId, SystemClock, Timestamp, TopicName,
        TopicSpec,
    };

    use super::*;

    #[tokio::test]
    async fn parked_messages_are_loaded_in_order_and_no_more_than_memory_may_hold() {
        let engine = MemoryEngine::new(Arc::new(SystemClock::new()));
        let topic = engine.create_topic(
            TopicSpec {
                name: TopicName::parse("in").unwrap(),
                partitions: 1,
                durability: Durability::Os,
                partitioner: None,
                owner: None,
                created_at: Timestamp(1),
                settings: Default::default(),
            },
            Vec::new(),
        );
        let partition = topic.await.unwrap().partition(PartitionId(0)).unwrap();
        let value = bytes::Bytes::from(vec![0; 1 << 20]);
        for _ in 0..40 {
            let mut builder = BatchBuilder::with_capacity(0);
            builder.push(&Message {
                value: Some(value.clone()),
                ..Message::default()
            });
            let batch = builder.finish().unwrap();
            let append = Append { partition, batch };
            let transaction = Transaction::produce(vec![append]);
            engine.commit(transaction).await.unwrap();
        }
        let watch = engine.watch(partition).unwrap();
        let source = Source::new(engine, partition, watch, Offset(0), None);
        let offsets: Vec<Offset> = (0..40).map(Offset).collect();
        let loaded = source.load(&offsets).await.unwrap();
        assert!((1..=17).contains(&loaded.len()), "{}", loaded.len());
        for (offset, located) in offsets.iter().zip(loaded) {
            assert_eq!(located.unwrap().1.offset, *offset);
        }
    }
}
