//! Access to the state of processors: an operator can show, write and empty it; a deployment can
//! empty it.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millrace_engine::state::{
    Adds, StateChange, StatePage, StateQuery, StateSize, StateTable, StateValue, StateWrite,
    StateWrites,
};
use millrace_engine::{
    CommitError, Engine, EntryKind, Expectation, Lease, ReadError, Transaction, Version,
};
use millrace_model::bounds::{
    STATE_ATTEMPT_BYTES_MAX, STATE_CALL_KEYS_MAX, STATE_LISTED_BYTES_MAX, STATE_LISTED_MAX,
};
use millrace_model::{
    Advice, Advised, Code, Durability, GroupName, PartitionId, Processor, ProcessorName, Topic,
    TopicId, TopicName, TopicPartition,
};

use crate::catalogue::deciding::{decided, decision_errors};
use crate::catalogue::entries::entry;
use crate::catalogue::unknown::{UnknownPartition, known_partition};
use crate::ground::keys::{KeyPattern, ranges};
use crate::ground::standing::Forbidden;
use crate::ground::verbs::Verb;
use crate::hosts::holding::Share;
use crate::processors::handle::Processors;

/// Maximum time an operator's write waits for the batch that uses the state. After that the write
/// is refused, and nothing is written.
const STATE_TURN_WAIT_MS_MAX: u64 = 10_000;

/// A processor's state in a partition.
#[derive(Clone, Debug)]
pub struct StatePlace {
    /// The processor.
    pub processor: ProcessorName,
    /// The input topic; `None` if the processor reads only one.
    pub topic: Option<TopicName>,
    /// The partition.
    pub partition: PartitionId,
}

/// Entries of a processor's state in one partition.
#[derive(Clone, Debug)]
pub struct StateHolding {
    /// The input topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: PartitionId,
    /// The entries, and the progress that they belong to.
    pub page: StatePage,
}

fn which(topics: &[TopicName]) -> String {
    let names: Vec<&str> = topics.iter().map(TopicName::as_str).collect();
    match names.is_empty() {
        true => "reads no topics and has no state".to_owned(),
        false => format!(
            "reads, or has state of, {}; name one of them",
            names.join(", ")
        ),
    }
}

/// Why state could not be shown or written.
#[derive(Debug, thiserror::Error)]
pub enum StateAccessError {
    /// The caller may not do it.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// The processor does not exist and has left no state.
    #[error("processor {0} does not exist")]
    Unknown(ProcessorName),
    /// The processor reads, or has state for, another topic or several topics.
    #[error("processor {name} {}", which(.topics))]
    WhichTopic {
        /// The processor.
        name: ProcessorName,
        /// The topics that it reads, or has state for.
        topics: Vec<TopicName>,
    },
    /// The topic has fewer partitions.
    #[error(transparent)]
    UnknownPartition(#[from] UnknownPartition),
    /// An entry, or all entries together, would exceed a bound; nothing was written.
    #[error("{0}")]
    Bound(String),
    /// The batch that uses the state did not end in time; nothing was written.
    #[error("a batch of partition {0} has been running for more than {STATE_TURN_WAIT_MS_MAX} ms")]
    Busy(PartitionId),
    /// The state could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The state could not be written.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

decision_errors! {
    StateAccessError: StateAccessError::Commit;
}

impl Advised for StateAccessError {
    fn advice(&self) -> Advice {
        match self {
            Self::Forbidden(error) => error.advice(),
            Self::Unknown(_) => Code::UnknownProcessor.hint(
                "GET /v1/processors lists the processors that exist; no deleted processor of this name left state",
            ),
            Self::WhichTopic { .. } => Code::WhichTopic.advice(),
            Self::UnknownPartition(error) => error
                .advice()
                .hint("GET /v1/processors/{name} lists the partitions"),
            Self::Bound(_) => Code::StateBound.advice(),
            Self::Busy(_) => Code::Occupied
                .hint("try again, or pause the processor first; nothing was written"),
            Self::Read(error) => error.advice(),
            Self::Commit(error) => error.advice(),
        }
    }
}

impl Processors {
    /// Entries of a processor's state in a partition, with the committed progress that they belong
    /// to. The bounds of one answer apply.
    ///
    /// # Errors
    /// [`StateAccessError`].
    pub async fn state(
        &self,
        place: &StatePlace,
        mut query: StateQuery,
    ) -> Result<StatePage, StateAccessError> {
        let name = place.processor.as_str();
        self.caller.may(Verb::ReadState, name)?;
        // Before the state is looked for: whether it is there is not for them to know, either.
        let keys = self.caller.rights().keys();
        let ranges = keys.map(|keys| ranges(keys, &query.prefix));
        if ranges.as_ref().is_some_and(Vec::is_empty) {
            return Err(self.caller.outside_keys(Verb::ReadState, name).into());
        }
        let partition = self.state_partition(place).await?;
        query.now = self.inner.clock.wall();
        query.entries_max = query.entries_max.min(STATE_LISTED_MAX);
        query.bytes_max = STATE_LISTED_BYTES_MAX;
        let engine = &self.inner.engine;
        let group = &place.processor.group();
        if let Some(ranges) = ranges {
            return Ok(state_of(&**engine, group, partition, query, &ranges).await?);
        }
        Ok(engine.read_state(group, partition, &query).await?)
    }

    /// The topic that a processor's state belongs to: this one, or the only one that it reads.
    ///
    /// # Errors
    /// [`StateAccessError`].
    pub(crate) async fn state_input(
        &self,
        processor: &ProcessorName,
        topic: Option<&TopicName>,
    ) -> Result<Topic, StateAccessError> {
        let place = StatePlace {
            processor: processor.clone(),
            topic: topic.cloned(),
            partition: PartitionId(0),
        };
        self.state_topic(&place).await
    }

    /// The values of keys of a processor's state, each in its partition of the topic, in order.
    ///
    /// # Errors
    /// [`StateAccessError`], also if the values exceed the bytes of one answer.
    pub(crate) async fn state_values(
        &self,
        processor: &ProcessorName,
        topic: &Topic,
        keys: &[(PartitionId, Bytes)],
    ) -> Result<Vec<Option<StateValue>>, StateAccessError> {
        let (engine, group) = (&self.inner.engine, processor.group());
        let now = self.inner.clock.wall();
        let mut values = Vec::with_capacity(keys.len());
        let mut bytes = 0;
        for (partition, key) in keys {
            let at = known_partition(topic, *partition)?;
            let query = StateQuery {
                prefix: key.to_vec(),
                entries_max: 1,
                bytes_max: STATE_LISTED_BYTES_MAX,
                now,
                ..StateQuery::default()
            };
            let page = engine.read_state(&group, at, &query).await?;
            // The exact key sorts before all others with this prefix.
            let first = page.entries.into_iter().next();
            let value = first.filter(|entry| *entry.key == **key);
            let value = value.map(|entry| entry.value);
            bytes += value.as_ref().map_or(0, |value| value.as_bytes().len());
            if bytes > STATE_LISTED_BYTES_MAX {
                return Err(StateAccessError::Bound(format!(
                    "the values have more than {STATE_LISTED_BYTES_MAX} bytes, the maximum: ask for fewer keys at once"
                )));
            }
            values.push(value);
        }
        Ok(values)
    }

    /// A key of a processor's state in each partition that has it: in this topic, or in all topics
    /// that the processor reads or has state for. A component may store any key in any partition,
    /// so all partitions with state are asked.
    ///
    /// # Errors
    /// [`StateAccessError`].
    pub async fn state_of_key(
        &self,
        processor: &ProcessorName,
        topic: Option<&TopicName>,
        key: &[u8],
    ) -> Result<Vec<StateHolding>, StateAccessError> {
        self.caller
            .may_with_key(Verb::ReadState, processor.as_str(), Some(key))?;
        let query = StateQuery {
            prefix: key.to_vec(),
            entries_max: 1,
            ..StateQuery::default()
        };
        let has_state = self
            .inner
            .engine
            .state_partitions(&processor.group())
            .await?;
        let mut found = Vec::new();
        let mut bytes = 0;
        for holding in self
            .holdings(processor, topic, &query, |at| has_state.contains(&at))
            .await?
        {
            // The exact key sorts before all others with this prefix.
            let Some(first) = holding.page.entries.first().filter(|e| *e.key == *key) else {
                continue;
            };
            bytes += first.key.len() + first.value.as_bytes().len();
            if bytes > STATE_LISTED_BYTES_MAX && !found.is_empty() {
                break;
            }
            found.push(holding);
        }
        Ok(found)
    }

    /// The size of a processor's state in each partition: of this topic, or of all topics that the
    /// processor reads or has state for.
    ///
    /// # Errors
    /// [`StateAccessError`].
    pub async fn state_totals(
        &self,
        processor: &ProcessorName,
        topic: Option<&TopicName>,
    ) -> Result<Vec<StateHolding>, StateAccessError> {
        // How much others have is not theirs to know who may touch only some keys.
        self.caller
            .may_with_key(Verb::ReadState, processor.as_str(), None)?;
        let query = StateQuery::default();
        self.holdings(processor, topic, &query, |_| true).await
    }

    async fn holdings(
        &self,
        processor: &ProcessorName,
        topic: Option<&TopicName>,
        query: &StateQuery,
        asked: impl Fn(TopicPartition) -> bool,
    ) -> Result<Vec<StateHolding>, StateAccessError> {
        let query = StateQuery {
            now: self.inner.clock.wall(),
            bytes_max: STATE_LISTED_BYTES_MAX,
            ..query.clone()
        };
        let (mut topics, kept) = self.state_topics(processor).await?;
        topics.extend(kept);
        let is_wanted = |known: &Topic| topic.is_none_or(|wanted| *wanted == known.spec.name);
        if !topics.iter().any(is_wanted) {
            return Err(StateAccessError::WhichTopic {
                name: processor.clone(),
                topics: topics.into_iter().map(|topic| topic.spec.name).collect(),
            });
        }
        let mut holdings = Vec::new();
        for topic in topics.into_iter().filter(is_wanted) {
            for at in topic.partitions().filter(|at| asked(*at)) {
                let engine = &self.inner.engine;
                let page = engine.read_state(&processor.group(), at, &query).await?;
                holdings.push(StateHolding {
                    topic: topic.spec.name.clone(),
                    partition: at.partition,
                    page,
                });
            }
        }
        Ok(holdings)
    }

    /// Writes entries into a processor's state between two of its batches. Durable on return.
    ///
    /// # Errors
    /// [`StateAccessError`]; nothing was written.
    pub async fn write_state(
        &self,
        place: &StatePlace,
        writes: StateWrites,
    ) -> Result<(), StateAccessError> {
        self.may_write(&place.processor, &writes)?;
        let writes = Arc::new(writes);
        let partition = self.state_partition(place).await?;
        decided(&*self.inner.engine, || {
            self.write_state_now(place, partition, writes.clone())
        })
        .await
    }

    /// Whether the caller may touch what is written: emptying the state touches every key.
    fn may_write(&self, name: &ProcessorName, writes: &StateWrites) -> Result<(), Forbidden> {
        let keys = writes.changes.iter().map(|change| Some(&*change.key));
        let every = writes.resets.then_some(None);
        self.caller
            .may_with_keys(Verb::WriteState, name.as_str(), keys.chain(every))
    }

    async fn write_state_now(
        &self,
        place: &StatePlace,
        partition: TopicPartition,
        writes: Arc<StateWrites>,
    ) -> Result<(), StateAccessError> {
        let group = &place.processor.group();
        // Shares the worker's lease if the worker is on this host.
        let share = self.inner.hosts.holdings(group).claim(partition).await?;
        let written = self.write_under(place, partition, writes, &share).await;
        share.leave().await;
        written
    }

    async fn write_under(
        &self,
        place: &StatePlace,
        partition: TopicPartition,
        mut writes: Arc<StateWrites>,
        share: &Share,
    ) -> Result<(), StateAccessError> {
        let group = &place.processor.group();
        let table = self.inner.engine.state(group, partition).await?;
        let wait = Duration::from_millis(STATE_TURN_WAIT_MS_MAX);
        let turn = tokio::time::timeout(wait, table.turn()).await;
        let turn = turn.map_err(|_| StateAccessError::Busy(place.partition))?;
        check_call(&writes).map_err(StateAccessError::Bound)?;
        let adds = table.adds_in_time(&writes).await.map_err(ReadError::from)?;
        check_bounds(&table, &writes, adds).map_err(StateAccessError::Bound)?;
        Arc::make_mut(&mut writes).adds = Some(adds);
        let transaction = Transaction {
            state: vec![StateWrite {
                group: group.clone(),
                partition,
                lease: share.lease().cloned(),
                writes,
            }],
            turns: turn.held().into_iter().collect(),
            durability: Some(Durability::Durable),
            ..Transaction::default()
        };
        share.commit(transaction).await?;
        Ok(())
    }

    async fn state_partition(
        &self,
        place: &StatePlace,
    ) -> Result<TopicPartition, StateAccessError> {
        let topic = self.state_topic(place).await?;
        Ok(known_partition(&topic, place.partition)?)
    }

    /// A topic that the processor reads or has state for. State stays when a new revision reads
    /// other topics, and when the processor is deleted.
    async fn state_topic(&self, place: &StatePlace) -> Result<Topic, StateAccessError> {
        let name = &place.processor;
        let (read, kept) = self.state_topics(name).await?;
        let mut topics = read;
        if topics.is_empty() || place.topic.is_some() {
            topics.extend(kept);
        }
        let wanted = |topic: &Topic| place.topic.as_ref().is_none_or(|w| *w == topic.spec.name);
        let mut found = topics.iter().filter(|topic| wanted(topic));
        match (found.next(), found.next()) {
            (Some(topic), None) => Ok(topic.clone()),
            _ => Err(StateAccessError::WhichTopic {
                name: name.clone(),
                topics: topics.into_iter().map(|topic| topic.spec.name).collect(),
            }),
        }
    }

    /// The topics that the processor reads, and further ones that it has state for.
    async fn state_topics(
        &self,
        name: &ProcessorName,
    ) -> Result<(Vec<Topic>, Vec<Topic>), StateAccessError> {
        let deployed = self.inner.catalogue.processors().get(name).cloned();
        let current = deployed
            .as_ref()
            .and_then(|d| d.processor.current())
            .map(|r| r.spec.topics.clone());
        let read = current.unwrap_or_default();
        let has_state: HashSet<TopicId> = {
            let partitions = self.inner.engine.state_partitions(&name.group()).await?;
            partitions.into_iter().map(|at| at.topic).collect()
        };
        if deployed.is_none() && has_state.is_empty() {
            return Err(StateAccessError::Unknown(name.clone()));
        }
        let all = self.inner.engine.topics().into_iter();
        let kept = all.filter(|t| has_state.contains(&t.id) && !read.contains(&t.spec.name));
        let read = read
            .iter()
            .filter_map(|read| self.inner.catalogue.topic(read))
            .collect();
        Ok((read, kept.collect()))
    }

    /// Commits a processor's entry, or its removal, and empties its state in every partition, in
    /// one commit. Returns the entry's version. The caller has stopped the workers.
    pub(crate) async fn keep_and_reset(
        &self,
        name: &ProcessorName,
        processor: Option<&Processor>,
        expects: Vec<Expectation>,
    ) -> Result<Version, CommitError> {
        let holdings = self.inner.hosts.holdings(&name.group());
        // Workers on other hosts may not know of the change yet. With these leases claimed, their
        // commits are refused.
        let shares = holdings.claim_all(self.places_of(name).await?).await?;
        let leases: Vec<Lease> = shares.iter().filter_map(|s| s.lease().cloned()).collect();
        let has_state = self.inner.engine.state_partitions(&name.group()).await?;
        // A writer that read the old state must not write after it is emptied. Turns are taken in
        // order, so two resets cannot block each other.
        let mut turns = Vec::with_capacity(has_state.len());
        for &partition in &has_state {
            if let Ok(table) = self.inner.engine.state(&name.group(), partition).await {
                turns.extend(table.turn().await.held());
            }
        }
        let (state, fences): (Vec<Lease>, Vec<Lease>) = leases
            .into_iter()
            .partition(|lease| has_state.binary_search(&lease.partition).is_ok());
        let reset = |lease: Lease| StateWrite {
            group: lease.group.clone(),
            partition: lease.partition,
            lease: Some(lease),
            writes: Arc::new(StateWrites {
                resets: true,
                changes: Vec::new(),
                adds: None,
            }),
        };
        let transaction = Transaction {
            entries: vec![entry(EntryKind::Processor, name.to_string(), processor)],
            state: state.into_iter().map(reset).collect(),
            turns,
            fences,
            durability: Some(Durability::Durable),
            expects,
            ..Transaction::default()
        };
        let committed = self.inner.engine.commit(transaction).await;
        for share in shares {
            share.leave().await;
        }
        Ok(committed?.versions.first().copied().unwrap_or_default())
    }

    /// The partitions where the processor has state or may get some. Revisions that are no longer
    /// kept may have read other topics.
    async fn places_of(&self, name: &ProcessorName) -> Result<BTreeSet<TopicPartition>, ReadError> {
        let engine = &self.inner.engine;
        let mut places = BTreeSet::from_iter(engine.state_partitions(&name.group()).await?);
        if let Some(known) = self.inner.catalogue.deployed(name) {
            let revisions = known.processor.revisions.iter();
            let read = revisions.flat_map(|revision| &revision.spec.topics);
            let topics = read.filter_map(|topic| self.inner.catalogue.topic(topic));
            places.extend(topics.flat_map(|topic| topic.partitions().collect::<Vec<_>>()));
        }
        Ok(places)
    }
}

/// Entries of these ranges of keys, at least one. A page has entries of one range; the next one goes on with the others.
async fn state_of(
    engine: &dyn Engine,
    group: &GroupName,
    partition: TopicPartition,
    query: StateQuery,
    ranges: &[KeyPattern],
) -> Result<StatePage, ReadError> {
    let mut last = StatePage::default();
    for (at, range) in ranges.iter().enumerate() {
        let is_one = matches!(range, KeyPattern::One(_));
        let is_read = query
            .after
            .as_deref()
            .is_some_and(|after| range.beginning() <= after);
        if is_one && is_read {
            continue;
        }
        let within = StateQuery {
            prefix: range.beginning().to_vec(),
            // The exact key sorts before all others with this prefix.
            entries_max: query.entries_max.min(if is_one { 1 } else { usize::MAX }),
            ..query.clone()
        };
        let mut page = engine.read_state(group, partition, &within).await?;
        page.entries.retain(|entry| range.covers(&entry.key));
        // How much others have is not for them to know.
        page.size = StateSize::default();
        page.has_more = (page.has_more && !is_one) || at + 1 < ranges.len();
        if !page.entries.is_empty() {
            return Ok(page);
        }
        last = page;
    }
    // Nothing more in any of them.
    last.has_more = false;
    Ok(last)
}

/// Whether this much may be written at once.
fn check_call(writes: &StateWrites) -> Result<(), String> {
    let count = writes.changes.len();
    if count > STATE_CALL_KEYS_MAX || writes.byte_count() > STATE_ATTEMPT_BYTES_MAX {
        return Err(format!(
            "{count} entries of {} bytes at once; the maximum is {STATE_CALL_KEYS_MAX} entries and {STATE_ATTEMPT_BYTES_MAX} bytes: send several calls",
            writes.byte_count()
        ));
    }
    writes.changes.iter().try_for_each(StateChange::check)
}

/// Whether the table may grow by this much.
fn check_bounds(table: &StateTable, writes: &StateWrites, adds: Adds) -> Result<(), String> {
    let before = table.size();
    let begin = match writes.resets {
        true => StateSize::default(),
        false => before,
    };
    let after = adds.after(begin).unwrap_or(begin);
    let max = table.bounds();
    // Making the state smaller is always allowed.
    let has_entries = after.entries <= max.entries.max(before.entries);
    if !has_entries || after.bytes > max.bytes.max(before.bytes) {
        return Err(format!(
            "the state would have {} entries and {} bytes; the maximum for one partition is {} entries and {} bytes",
            after.entries, after.bytes, max.entries, max.bytes
        ));
    }
    match Adds::between(before, after) {
        more if more.bytes <= 0 && more.cost() == 0 => Ok(()),
        more => table.check_room(more).map_err(|full| full.to_string()),
    }
}
