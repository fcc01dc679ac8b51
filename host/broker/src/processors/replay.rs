//! Replays: run a time range of a processor's input through one of its revisions again, into
//! another topic. A replay is a separate processor with its own progress, state, retries and dead
//! letters. Its input is fixed when it is created, and its workers rest when they reach the end.
//! Producers set timestamps, which need not ascend: a replay reads from the first message of the
//! time range to the partition's end, and skips messages outside the range.

use std::ops::Range;

use millrace_model::batch::RecordView;
use millrace_model::bounds::{REPLAY_NAMES_MAX, REPLAY_PARTITIONS_MAX};
use millrace_model::{
    Offset, PartitionId, Processor, ProcessorName, ProcessorSpec, Replay, ReplayRange, Timestamp,
    Topic, TopicName, TopicPartition,
};
use parking_lot::Mutex;

use crate::ground::packing;
use crate::ground::verbs::Verb;
use crate::processors::error::ProcessorError;
use crate::processors::handle::Processors;
use crate::processors::loaded::Loaded;
use crate::processors::revisions::{create_replay, kept};
use crate::processors::turns::TurnError;

/// Maximum bytes read to check whether the range contains any message. If that is not enough, the
/// replay itself finds out.
const LOOKED_AT_BYTES_MAX: usize = 64 << 20;
/// Bytes per read of that check.
const LOOK_BYTES: usize = 1 << 20;

/// What to replay.
#[derive(Clone, Debug)]
pub struct ReplayRequest {
    /// The revision to run; `None` is the current one.
    pub revision: Option<u32>,
    /// The start of the time range, inclusive.
    pub from: Timestamp,
    /// The end of the time range, exclusive.
    pub until: Timestamp,
    /// The topic for all outputs, whatever topic they name.
    pub into: TopicName,
    /// The replay's name; `None` is `NAME-replay-1`, or the next free number.
    pub name: Option<ProcessorName>,
}

/// What one turn found in the topics, kept for the next turn because the search may take a while.
#[derive(Clone)]
struct Looked {
    at: Vec<Topic>,
    ranges: Vec<ReplayRange>,
}

impl Processors {
    /// Creates a processor that replays a time range of the input of processor `of`.
    ///
    /// # Errors
    /// [`ProcessorError`]; nothing has changed then.
    pub async fn replay(
        &self,
        of: &ProcessorName,
        request: ReplayRequest,
    ) -> Result<Processor, ProcessorError> {
        self.caller.may(Verb::Replay, of.as_str())?;
        let looked = Mutex::default();
        self.decide(of, async |loaded| {
            self.replay_now(of, &request, &looked, &loaded).await
        })
        .await
    }

    async fn replay_now(
        &self,
        of: &ProcessorName,
        request: &ReplayRequest,
        looked: &Mutex<Option<Looked>>,
        loaded: &Loaded,
    ) -> Result<Processor, TurnError> {
        let original = self.known(of)?.processor;
        if original.replay.is_some() {
            let why = format!("{of} is itself a replay; replay its original");
            return Err(ProcessorError::Replay(why).into());
        }
        let number = request.revision.unwrap_or(original.current);
        let spec = replayed(kept(&original, number)?.spec.clone(), &request.into)?;
        let config = original.config.clone();
        self.check_rights(&spec)?;
        self.check_trusted(&spec).await?;
        let topics = spec
            .topics
            .iter()
            .filter_map(|topic| self.inner.catalogue.topic(topic));
        let topics: Vec<Topic> = topics.collect();
        let before = looked.lock().clone().filter(|looked| looked.at == topics);
        let ranges = match before {
            Some(before) => before.ranges,
            None => self.ranges(&topics, request).await?,
        };
        *looked.lock() = Some(Looked {
            at: topics.clone(),
            ranges: ranges.clone(),
        });
        let name = match &request.name {
            Some(name) => {
                let asked = self.caller.may(Verb::DeployProcessor, name.as_str());
                asked.map_err(ProcessorError::from)?;
                self.unused(name, &topics).await?
            }
            None => self.next_name(of, &topics).await?,
        };
        let replay = Replay {
            of: of.clone(),
            revision: number,
            from: request.from,
            until: request.until,
            into: request.into.clone(),
            ranges,
        };
        let mut processor = create_replay(&name, spec, replay, self.asked());
        processor.config = config;
        self.change(processor, loaded).await
    }

    /// The offsets to replay in each partition, as the topics are now.
    async fn ranges(
        &self,
        topics: &[Topic],
        request: &ReplayRequest,
    ) -> Result<Vec<ReplayRange>, ProcessorError> {
        if request.from >= request.until {
            return refuse("the time range ends before it begins".to_owned());
        }
        let mut ranges = Vec::new();
        let mut bytes_left = LOOKED_AT_BYTES_MAX;
        for topic in topics {
            for place in topic.partitions() {
                let engine = &self.inner.engine;
                // The end is read first: messages that arrive meanwhile lie beyond it.
                let end = engine.ends(place)?.end;
                let first = engine.offset_at(place, request.from).await?;
                let first = first.unwrap_or(end)..end;
                if let Some(first) = self.first_in(place, first, request, &mut bytes_left).await {
                    ranges.push(range(&topic.spec.name, place.partition, first, end));
                }
            }
        }
        match ranges.len() {
            0 => refuse("there are no messages in that time range; they may have been removed, see `millrace topic show`".to_owned()),
            count if count > REPLAY_PARTITIONS_MAX => refuse(format!(
                "it covers {count} partitions; the maximum is {REPLAY_PARTITIONS_MAX}: use a shorter time range"
            )),
            _ => Ok(ranges),
        }
    }

    /// The first message of the time range within these offsets; `None` if there is none. If the
    /// search takes too long or a read fails, the offset where it stopped.
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

    /// The next free name for a replay of the processor.
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
            self.caller.may(Verb::DeployProcessor, name.as_str())?;
            if self.unused(&name, topics).await.is_ok() {
                return Ok(name);
            }
        }
        refuse(format!(
            "{of} was replayed {REPLAY_NAMES_MAX} times; name the replay yourself"
        ))
    }

    /// This name, if it is free and no progress or state is stored under it: a replay must start
    /// from scratch.
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
                "{name} is or was a processor; a replay needs an unused name"
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

/// The specification of the replay of a revision.
fn replayed(mut spec: ProcessorSpec, into: &TopicName) -> Result<ProcessorSpec, ProcessorError> {
    if spec.topics.contains(into) {
        return refuse(format!(
            "the processor reads {into}; replay into another topic, or outputs would be read as input"
        ));
    }
    spec.output = Some(into.clone());
    spec.grants.topics.clear();
    spec.auto_rollback = false;
    Ok(spec)
}

fn refuse<T>(why: String) -> Result<T, ProcessorError> {
    Err(ProcessorError::Replay(why))
}
