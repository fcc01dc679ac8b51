//! Replays: a range of time of a processor's input goes once more through one of its revisions, into another topic. A replay is a
//! processor of its own, with progress, state, retries and dead letters of its own; what it reads is fixed when it is made, and its
//! workers rest where that ends. Timestamps are their producers' and need not ascend: so it reads from the first message of its time to
//! the partition's end, and passes over messages of other times.

use std::ops::Range;

use millrace_model::batch::RecordView;
use millrace_model::bounds::{REPLAY_NAMES_MAX, REPLAY_PARTITIONS_MAX};
use millrace_model::{
    ChangeKind, Offset, PartitionId, Processor, ProcessorName, ProcessorSpec, Replay, ReplayRange,
    Timestamp, Topic, TopicName, TopicPartition,
};

use crate::ground::packing;
use crate::processors::error::ProcessorError;
use crate::processors::handle::Processors;
use crate::processors::revisions::kept;

/// Bytes that are read at the most to see whether there is anything to replay; beyond that the replay finds out.
const LOOKED_AT_BYTES_MAX: usize = 64 << 20;
/// Bytes of one such read.
const LOOK_BYTES: usize = 1 << 20;

/// What is to be replayed.
#[derive(Clone, Debug)]
pub struct ReplayRequest {
    /// Through which revision; `None`: the current one.
    pub revision: Option<u32>,
    /// Messages of this time or later,
    pub from: Timestamp,
    /// and before this one.
    pub until: Timestamp,
    /// Where all outputs go, whatever topic they name.
    pub into: TopicName,
    /// The name of the processor that does it; `None`: `NAME-replay-1`, or the next one.
    pub name: Option<ProcessorName>,
}

impl Processors {
    /// Makes a processor that replays a range of time of the input of processor `of`.
    ///
    /// # Errors
    /// [`ProcessorError`]; nothing has changed then.
    pub async fn replay(
        &self,
        of: &ProcessorName,
        request: ReplayRequest,
    ) -> Result<Processor, ProcessorError> {
        self.inner
            .catalogue
            .decide(|| self.replay_now(of, &request))
            .await
    }

    async fn replay_now(
        &self,
        of: &ProcessorName,
        request: &ReplayRequest,
    ) -> Result<Processor, ProcessorError> {
        let original = self.known(of)?.processor;
        if original.replay.is_some() {
            return refuse(format!("{of} is a replay itself; replay its original"));
        }
        let number = request.revision.unwrap_or(original.current);
        let spec = replayed(kept(&original, number)?.spec.clone(), &request.into)?;
        let topics = spec
            .topics
            .iter()
            .filter_map(|topic| self.inner.catalogue.topic(topic));
        let topics: Vec<Topic> = topics.collect();
        let ranges = self.ranges(&topics, request).await?;
        let name = match &request.name {
            Some(name) => self.unused(name, &topics).await?,
            None => self.next_name(of, &topics).await?,
        };
        let mut processor = self.first_revision(&name, spec);
        // The number that its guests are told is the one that they know.
        processor.current = number;
        for revision in processor.revisions.iter_mut() {
            revision.number = number;
        }
        processor.changes.clear();
        let text = format!("revision {number} of {of} into {}", request.into);
        self.record(&mut processor, ChangeKind::Replay, number, Some(text));
        processor.replay = Some(Replay {
            of: of.clone(),
            revision: number,
            from: request.from,
            until: request.until,
            into: request.into.clone(),
            ranges,
        });
        self.change(processor).await
    }

    /// What lies in the range now, partition by partition.
    async fn ranges(
        &self,
        topics: &[Topic],
        request: &ReplayRequest,
    ) -> Result<Vec<ReplayRange>, ProcessorError> {
        if request.from >= request.until {
            return refuse("its range of time ends before it begins".to_owned());
        }
        let mut ranges = Vec::new();
        let mut bytes_left = LOOKED_AT_BYTES_MAX;
        for topic in topics {
            for place in topic.partitions() {
                let engine = &self.inner.engine;
                // Asked first: what comes meanwhile is after it.
                let end = engine.ends(place)?.end;
                let first = engine.offset_at(place, request.from).await?;
                let first = first.unwrap_or(end)..end;
                if let Some(first) = self.first_in(place, first, request, &mut bytes_left).await {
                    ranges.push(range(&topic.spec.name, place.partition, first, end));
                }
            }
        }
        match ranges.len() {
            0 => refuse("no message is in that range of time; messages of it may have been removed, see `millrace topic show`".to_owned()),
            count if count > REPLAY_PARTITIONS_MAX => refuse(format!(
                "it reads {count} partitions, at most {REPLAY_PARTITIONS_MAX} are replayed at once; take a shorter range of time"
            )),
            _ => Ok(ranges),
        }
    }

    /// The first message of the time among these, or, where that takes too long or something cannot be read, one before it; `None` if
    /// there is none.
    async fn first_in(
        &self,
        place: TopicPartition,
        among: Range<Offset>,
        request: &ReplayRequest,
        bytes_left: &mut usize,
    ) -> Option<Offset> {
        let times = request.from..request.until;
        let mut next = among.start;
        while next < among.end && *bytes_left > 0 {
            let read = self.inner.engine.read(place, next, LOOK_BYTES).await;
            let Some(batches) = read.ok().filter(|batches| !batches.is_empty()) else {
                return Some(next);
            };
            for batch in batches {
                next = next.max(batch.base_offset());
                *bytes_left = bytes_left.saturating_sub(batch.byte_count());
                let Ok(plain) = packing::readable(&batch).await else {
                    return Some(next);
                };
                let Ok(records) = plain.records() else {
                    return Some(next);
                };
                let mut views = records.map_while(Result::ok);
                let is_of = |view: &RecordView| {
                    among.contains(&view.offset) && times.contains(&view.timestamp)
                };
                if !batch.is_control()
                    && let Some(found) = views.find(is_of)
                {
                    return Some(found.offset);
                }
                next = batch.end_offset();
            }
        }
        (next < among.end).then_some(next)
    }

    /// The next free name of a replay of the processor.
    async fn next_name(
        &self,
        of: &ProcessorName,
        topics: &[Topic],
    ) -> Result<ProcessorName, ProcessorError> {
        for number in 1..=REPLAY_NAMES_MAX {
            let name = ProcessorName::parse(&format!("{of}-replay-{number}"));
            let Ok(name) = name else {
                return refuse(format!(
                    "{of}-replay-{number} is too long for a name; name the replay yourself"
                ));
            };
            if self.unused(&name, topics).await.is_ok() {
                return Ok(name);
            }
        }
        refuse(format!(
            "{of} was replayed {REPLAY_NAMES_MAX} times; name the replay yourself"
        ))
    }

    /// The name, if nobody has it, and nobody left progress or state under it: a replay begins afresh.
    async fn unused(
        &self,
        name: &ProcessorName,
        topics: &[Topic],
    ) -> Result<ProcessorName, ProcessorError> {
        let engine = &self.inner.engine;
        let with_state = engine.state_partitions(&name.group()).await?;
        let mut used = self.known(name).is_ok() || !with_state.is_empty();
        for place in topics.iter().flat_map(Topic::partitions) {
            used = used || engine.progress(&name.group(), place).await?.is_some();
        }
        match used {
            false => Ok(name.clone()),
            true => refuse(format!(
                "{name} is, or was, a processor; a replay needs a name of its own"
            )),
        }
    }
}

fn range(topic: &TopicName, partition: PartitionId, first: Offset, end: Offset) -> ReplayRange {
    ReplayRange {
        topic: topic.clone(),
        partition,
        first,
        end,
    }
}

/// The specification with which a revision is replayed.
fn replayed(mut spec: ProcessorSpec, into: &TopicName) -> Result<ProcessorSpec, ProcessorError> {
    if spec.topics.contains(into) {
        return refuse(format!(
            "{into} is read by it; replay into another topic, or its outputs are read as input"
        ));
    }
    spec.output = Some(into.clone());
    spec.grants.clear();
    spec.auto_rollback = false;
    Ok(spec)
}

fn refuse<T>(why: String) -> Result<T, ProcessorError> {
    Err(ProcessorError::Replay(why))
}
