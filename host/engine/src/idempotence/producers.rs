//! Producers: the issued ids, and in each partition the latest batches of each producer.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use millrace_model::bounds::{
    PRODUCER_BATCHES_KEPT_MAX, PRODUCER_IDLE_MS, PRODUCER_NAME_BYTES_MAX, PRODUCER_NAMES_MAX,
    PRODUCERS_MAX, PRODUCERS_PER_PARTITION_MAX,
};
use millrace_model::producer::sequence_after;
use millrace_model::{Numbering, Offset, ProducerId, Timestamp, TopicPartition};

use crate::contract::{CommitError, NextEpoch};

/// The memory of producers. Bounded per partition, in total, and by age.
#[derive(Debug, Default)]
pub struct Producers {
    next_id: i64,
    names: HashMap<Arc<str>, Named>,
    /// The newest epoch of each named producer, by id.
    epochs: HashMap<i64, i16>,
    /// Names by when they got an epoch.
    name_order: BTreeSet<(Timestamp, Arc<str>)>,
    tables: HashMap<TopicPartition, Table>,
    count: usize,
    bounds: Bounds,
    changed: Vec<(TopicPartition, i64)>,
    changed_names: BTreeSet<Arc<str>>,
}

/// The producer with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// The producer's identity.
    pub producer: ProducerId,
    /// When it got this epoch.
    pub at: Timestamp,
}

/// As in [`millrace_model::bounds`]; smaller in tests.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    per_partition: usize,
    in_all: usize,
    names: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            per_partition: PRODUCERS_PER_PARTITION_MAX,
            in_all: PRODUCERS_MAX,
            names: PRODUCER_NAMES_MAX,
        }
    }
}

/// The producers of one partition.
#[derive(Debug, Default)]
struct Table {
    states: HashMap<i64, ProducerState>,
    /// By the offset of the last batch: the first one is idle longest.
    order: BTreeMap<Offset, i64>,
}

/// A producer's batches in one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerState {
    /// Its newest epoch here.
    pub epoch: i16,
    /// When it sent its last batch.
    pub seen_at: Timestamp,
    /// The last batches, oldest first; `count` of them, at least one.
    batches: [Sent; PRODUCER_BATCHES_KEPT_MAX],
    count: u8,
    changed: bool,
}

/// A batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// The number of its first message.
    pub first: i32,
    /// The number of its last one.
    pub last: i32,
    /// Its place.
    pub base: Offset,
}

/// What changed since a checkpoint.
#[derive(Debug, Default)]
pub struct ProducerChanges {
    /// The id of the next new producer.
    pub next_id: i64,
    /// Batches of producers, by partition and id; `None` if forgotten.
    pub states: Vec<(TopicPartition, i64, Option<ProducerState>)>,
    /// Named producers; `None` if forgotten.
    pub names: Vec<(Arc<str>, Option<Named>)>,
}

impl ProducerState {
    /// A stored producer's state; `None` if it is empty.
    pub fn stored(epoch: i16, seen_at: Timestamp, sent: &[Sent]) -> Option<Self> {
        let count = sent.len().min(PRODUCER_BATCHES_KEPT_MAX);
        let mut batches = [Sent::default(); PRODUCER_BATCHES_KEPT_MAX];
        batches[..count].copy_from_slice(&sent[sent.len() - count..]);
        (count > 0).then_some(Self {
            epoch,
            seen_at,
            batches,
            count: count as u8,
            changed: false,
        })
    }

    /// The state after a batch: continued if the batch continues it, otherwise started over.
    pub fn after(before: Option<Self>, numbering: Numbering, base: Offset, now: Timestamp) -> Self {
        let sent = Sent {
            first: numbering.first,
            last: numbering.last,
            base,
        };
        let epoch = numbering.producer.epoch;
        let goes_on = |state: &Self| state.epoch == epoch && state.next() == numbering.first;
        let mut state = match before.filter(goes_on) {
            Some(state) => state,
            None => Self {
                epoch,
                seen_at: now,
                batches: [sent; PRODUCER_BATCHES_KEPT_MAX],
                count: 0,
                changed: before.is_some_and(|state| state.changed),
            },
        };
        state.seen_at = now;
        if usize::from(state.count) == PRODUCER_BATCHES_KEPT_MAX {
            state.batches.rotate_left(1);
        } else {
            state.count += 1;
        }
        state.batches[usize::from(state.count) - 1] = sent;
        state
    }

    /// The batches remembered, oldest first.
    pub fn sent(&self) -> &[Sent] {
        &self.batches[..usize::from(self.count)]
    }

    fn last(&self) -> Sent {
        self.batches[usize::from(self.count) - 1]
    }

    fn next(&self) -> i32 {
        sequence_after(self.last().last, 1)
    }

    fn is_idle(&self, now: Timestamp) -> bool {
        now.0.saturating_sub(self.seen_at.0) > PRODUCER_IDLE_MS
    }
}

impl Producers {
    /// The state of one producer in one partition.
    #[must_use]
    pub fn state(&self, partition: TopicPartition, id: i64) -> Option<&ProducerState> {
        self.tables.get(&partition)?.states.get(&id)
    }

    /// `None` if the batch is new and next; its offset if it is a repeat.
    pub fn judge(
        &self,
        state: Option<&ProducerState>,
        partition: TopicPartition,
        numbering: Numbering,
        now: Timestamp,
    ) -> Result<Option<Offset>, CommitError> {
        let producer = numbering.producer;
        self.check_given(producer)?;
        let Some(state) = state.filter(|state| !state.is_idle(now)) else {
            return match numbering.first {
                0 => Ok(None),
                _ => Err(CommitError::UnknownProducer(producer.id)),
            };
        };
        if producer.epoch < state.epoch {
            return Err(fenced(producer, state.epoch));
        }
        let is_new_life = producer.epoch > state.epoch;
        let expected = if is_new_life { 0 } else { state.next() };
        let same = |sent: &&Sent| (sent.first, sent.last) == (numbering.first, numbering.last);
        if !is_new_life && let Some(sent) = state.sent().iter().find(same) {
            return Ok(Some(sent.base));
        }
        if numbering.first != expected {
            return Err(CommitError::OutOfOrderSequence {
                partition,
                producer: producer.id,
                expected,
                found: numbering.first,
            });
        }
        Ok(None)
    }

    /// An unnamed producer counts its own epochs, as Kafka's clients do; a named one gets them from here.
    fn check_given(&self, producer: ProducerId) -> Result<(), CommitError> {
        let unknown = Err(CommitError::UnknownProducer(producer.id));
        if producer.id >= self.next_id {
            return unknown;
        }
        match self.epochs.get(&producer.id) {
            Some(&newest) if producer.epoch < newest => Err(fenced(producer, newest)),
            Some(&newest) if producer.epoch > newest => unknown,
            _ => Ok(()),
        }
    }

    /// Decides a producer's identity: a new one, or the next epoch of the producer with this name.
    pub fn decide(&self, name: Option<&str>) -> Result<ProducerId, CommitError> {
        let fresh = ProducerId {
            id: self.next_id,
            epoch: 0,
        };
        let Some(name) = name else {
            return Ok(fresh);
        };
        if name.is_empty() || name.len() > PRODUCER_NAME_BYTES_MAX {
            return Err(CommitError::ProducerName {
                bytes: name.len(),
                max: PRODUCER_NAME_BYTES_MAX,
            });
        }
        let before = self.names.get(name).map(|named| named.producer);
        let next = |ProducerId { id, epoch }| {
            let epoch = epoch.checked_add(1)?;
            Some(ProducerId { id, epoch })
        };
        Ok(before.and_then(next).unwrap_or(fresh))
    }

    /// The current producer with a name.
    pub fn named(&self, name: &str) -> Option<ProducerId> {
        self.names.get(name).map(|named| named.producer)
    }

    /// Decides a named producer's identity after its next epoch began.
    pub fn decide_next(&self, next: &NextEpoch) -> Result<ProducerId, CommitError> {
        let known = self.named(&next.name);
        match known.filter(|known| known.id == next.producer.id) {
            Some(known) if known.epoch > next.producer.epoch => {
                Err(fenced(next.producer, known.epoch))
            }
            Some(known) if known == next.producer => self.decide(Some(&next.name)),
            _ => Err(CommitError::UnknownProducer(next.producer.id)),
        }
    }

    /// Applies a decision.
    pub fn give(&mut self, producer: ProducerId, name: Option<Arc<str>>, now: Timestamp) {
        self.next_id = self.next_id.max(producer.id.saturating_add(1));
        let Some(name) = name else { return };
        self.changed_names.insert(Arc::clone(&name));
        self.insert_name(name, Named { producer, at: now });
        while self.names.len() > self.bounds.names {
            let Some((_, oldest)) = self.name_order.pop_first() else {
                return;
            };
            if let Some(named) = self.names.remove(&oldest) {
                self.epochs.remove(&named.producer.id);
            }
            self.changed_names.insert(oldest);
        }
    }

    /// Applies a name, new or stored.
    pub fn insert_name(&mut self, name: Arc<str>, named: Named) {
        if let Some(before) = self.names.insert(Arc::clone(&name), named) {
            self.name_order.remove(&(before.at, Arc::clone(&name)));
            self.epochs.remove(&before.producer.id);
        }
        self.epochs.insert(named.producer.id, named.producer.epoch);
        self.name_order.insert((named.at, name));
    }

    /// In the form for a checkpoint.
    pub fn set_next_id(&mut self, next_id: i64) {
        self.next_id = next_id;
    }

    /// Applies a batch, and forgets producers that exceed a bound or an age.
    pub fn apply(
        &mut self,
        partition: TopicPartition,
        numbering: Numbering,
        base: Offset,
        now: Timestamp,
    ) {
        let id = numbering.producer.id;
        let before = self.state(partition, id).copied();
        let mut state = ProducerState::after(before, numbering, base, now);
        if !std::mem::replace(&mut state.changed, true) {
            self.changed.push((partition, id));
        }
        self.insert(partition, id, state);
        self.forget_idlest(partition, now);
    }

    /// Applies a state, new or stored.
    pub fn insert(&mut self, partition: TopicPartition, id: i64, state: ProducerState) {
        let table = self.tables.entry(partition).or_default();
        match table.states.insert(id, state) {
            Some(before) => drop(table.order.remove(&before.last().base)),
            None => self.count += 1,
        }
        table.order.insert(state.last().base, id);
    }

    fn forget_idlest(&mut self, partition: TopicPartition, now: Timestamp) {
        let Some(table) = self.tables.get_mut(&partition) else {
            return;
        };
        while let Some(first) = table.order.first_entry() {
            let is_idle = |state: &ProducerState| state.is_idle(now);
            let over = table.states.len() > self.bounds.per_partition
                || (self.count > self.bounds.in_all && table.states.len() > 1);
            if !over && !table.states.get(first.get()).is_some_and(is_idle) {
                return;
            }
            let id = first.remove();
            table.states.remove(&id);
            self.count -= 1;
            self.changed.push((partition, id));
        }
    }

    /// Forgets a deleted partition.
    pub fn forget(&mut self, partition: TopicPartition) {
        if let Some(table) = self.tables.remove(&partition) {
            self.count -= table.states.len();
        }
    }

    /// Everything that changed since the last call.
    pub fn take_changes(&mut self) -> ProducerChanges {
        let mut states = Vec::with_capacity(self.changed.len());
        for (partition, id) in self.changed.drain(..) {
            let table = self.tables.get_mut(&partition);
            let state = table.and_then(|table| table.states.get_mut(&id));
            states.push((partition, id, state.as_deref().copied()));
            if let Some(state) = state {
                state.changed = false;
            }
        }
        let changed_names = std::mem::take(&mut self.changed_names).into_iter();
        let names = changed_names.map(|name| {
            let named = self.names.get(&name).copied();
            (name, named)
        });
        ProducerChanges {
            next_id: self.next_id,
            states,
            names: names.collect(),
        }
    }
}

fn fenced(producer: ProducerId, newest: i16) -> CommitError {
    CommitError::ProducerFenced {
        producer: producer.id,
        epoch: producer.epoch,
        newest,
    }
}

impl ProducerChanges {
    /// Adds later changes.
    pub fn merge(&mut self, later: Self) {
        self.next_id = later.next_id;
        self.states.extend(later.states);
        self.names.extend(later.names);
    }
}

#[cfg(test)]
mod tests;
