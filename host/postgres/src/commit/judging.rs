//! Decides a group of transactions on the rows that are locked for it: plain code. Each is judged on what those before it in the group have
//! changed; a refused one changes nothing.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use millrace_engine::contract::{Lease, Transaction};
use millrace_engine::idempotence::requests::Request;
use millrace_engine::idempotence::{Judgement, Overlay};
use millrace_engine::room::{Growth, Kept, Room};
use millrace_engine::state::keeper::KeepTable as _;
use millrace_engine::state::{StateChange, StateWrites};
use millrace_engine::{CommitError, EntryKind, Expectation, Receipt, RequestMark, Version};
use millrace_model::{
    Durability, Offset, ProducerId, Progress, RecordBatch, Stamp, Timestamp, TopicPartition,
};

use super::locking::{Locked, Place};
use crate::tables::{Loaded, TableKey};

/// Bytes of batches in one row, unless a single batch is larger: a reader fetches whole rows.
const RUN_BYTES_MAX: usize = 256 << 10;

/// What a group of transactions comes to.
#[derive(Default)]
pub(crate) struct Writes {
    pub(crate) runs: Vec<Run>,
    /// The new ends of partitions.
    pub(crate) ends: BTreeMap<TopicPartition, Offset>,
    pub(crate) progress: BTreeMap<i64, Progress>,
    /// State by chain.
    pub(crate) state: BTreeMap<i64, ChainState>,
    /// Each write of state, as the tables in memory take it.
    pub(crate) applied: Vec<(TableKey, i64, i64, Arc<StateWrites>)>,
    pub(crate) requests: Vec<(u64, Arc<Request>)>,
    pub(crate) entries: BTreeMap<(EntryKind, String), (Option<Bytes>, Version)>,
    pub(crate) kinds: BTreeMap<EntryKind, Version>,
    /// A named producer's new identity.
    pub(crate) producers: Vec<(Arc<str>, ProducerId)>,
    /// What is taken from the outbox.
    pub(crate) outbox: Vec<u64>,
    pub(crate) is_durable: bool,
    /// The time of this host.
    pub(crate) now: Timestamp,
}

/// Batches that one commit appends to one partition, one after the other.
pub(crate) struct Run {
    pub(crate) partition: TopicPartition,
    pub(crate) bucket: i32,
    pub(crate) base: Offset,
    pub(crate) next: Offset,
    pub(crate) latest: Timestamp,
    pub(crate) messages: usize,
    /// Batches, each with its offset within the run.
    pub(crate) bytes: Vec<u8>,
}

/// The state of a chain after the group.
#[derive(Default)]
pub(crate) struct ChainState {
    pub(crate) seq: i64,
    /// The write that emptied it, if one did.
    pub(crate) reset: Option<i64>,
    /// The last change of each key, and its write.
    pub(crate) changes: BTreeMap<Arc<[u8]>, (StateChange, i64)>,
}

impl Writes {
    pub(crate) fn is_empty(&self) -> bool {
        self.runs.is_empty()
            && self.progress.is_empty()
            && self.state.is_empty()
            && self.requests.is_empty()
            && self.entries.is_empty()
            && self.producers.is_empty()
            && self.outbox.is_empty()
    }
}

/// A group that is being decided.
pub(crate) struct Judge<'a> {
    pub(crate) locked: Locked,
    pub(crate) room: &'a Room,
    pub(crate) tables: &'a HashMap<TableKey, Arc<Loaded>>,
    growth: Growth,
    pub(crate) writes: Writes,
}

impl<'a> Judge<'a> {
    pub(crate) fn new(
        mut locked: Locked,
        room: &'a Room,
        tables: &'a HashMap<TableKey, Arc<Loaded>>,
        now: Timestamp,
    ) -> Self {
        locked.idempotence.apply_moment(now);
        Self {
            locked,
            room,
            tables,
            growth: Growth::default(),
            writes: Writes {
                now,
                ..Writes::default()
            },
        }
    }

    /// Decides one transaction.
    pub(crate) fn decide(&mut self, transaction: &Transaction) -> Result<Receipt, CommitError> {
        let durability = self.demanded(transaction)?;
        let mark = transaction.request.as_ref();
        let judged =
            self.locked
                .idempotence
                .judge(&Overlay::default(), &transaction.appends, mark)?;
        let producers = &self.locked.idempotence.producers;
        if let Judgement::Repeat(mut receipt) = judged {
            let of = transaction.producer.as_ref();
            receipt.producer = of.and_then(|of| producers.named(&of.name));
            // What it repeats may be less durable than this one asks for; a commit makes it so.
            self.writes.is_durable |= durability == Durability::Durable;
            return Ok(receipt);
        }
        let next = transaction.producer.as_ref();
        let next = next.map(|next| producers.decide_next(next)).transpose()?;
        self.check_leases(transaction)?;
        let outbox = &self.locked.outbox;
        if !transaction.outbox.iter().all(|id| outbox.contains(id)) {
            return Err(CommitError::Conflict(Expectation::Outbox.into()));
        }
        self.locked.catalogue.check(&transaction.expects)?;
        self.check_room(transaction)?;
        self.writes.is_durable |= durability == Durability::Durable || next.is_some();
        Ok(self.accept(transaction, next))
    }

    fn existing(&self, partition: TopicPartition) -> Result<(), CommitError> {
        match self.locked.existing.contains(&partition) {
            true => Ok(()),
            false => Err(CommitError::UnknownPartition(partition)),
        }
    }

    fn demanded(&self, transaction: &Transaction) -> Result<Durability, CommitError> {
        let mut durability = transaction.durability;
        for append in &transaction.appends {
            let place = self.locked.places.get(&append.partition);
            let place = place.ok_or(CommitError::UnknownPartition(append.partition))?;
            if place.is_durable {
                durability = Some(Durability::Durable);
            } else {
                durability = durability.max(Some(Durability::Os));
            }
        }
        if let Some(mark) = &transaction.request {
            self.existing(RequestMark::first_partition(mark))?;
        }
        Ok(durability.unwrap_or_default())
    }

    fn check_leases(&self, transaction: &Transaction) -> Result<(), CommitError> {
        let written = transaction.state.iter().map(|write| write.partition);
        let moved = transaction.progress.iter().map(|write| write.partition);
        for partition in written.chain(moved) {
            self.existing(partition)?;
        }
        let of_state = transaction.state.iter().filter_map(|w| w.lease.as_ref());
        let of_progress = transaction.progress.iter().map(|write| &write.lease);
        let mut leases = of_progress.chain(of_state).chain(&transaction.fences);
        leases.try_for_each(|lease| self.check_lease(lease))
    }

    fn check_lease(&self, lease: &Lease) -> Result<(), CommitError> {
        self.existing(lease.partition)?;
        let chain = self
            .locked
            .chains
            .get(&(lease.partition, lease.group.clone()));
        if chain.map(|chain| chain.epoch) != Some(lease.epoch) {
            return Err(CommitError::Fenced {
                group: lease.group.clone(),
                partition: lease.partition,
            });
        }
        Ok(())
    }

    fn check_room(&mut self, transaction: &Transaction) -> Result<(), CommitError> {
        let mut growth = self.growth;
        let mut grows = false;
        for write in &transaction.state {
            let key = (write.partition, write.group.clone());
            let loaded = self.tables.get(&key);
            if write.writes.keep_values()
                && let Some(loaded) = loaded
            {
                let more = loaded.table.growth(&write.writes);
                growth.add(Kept::of_group(&write.group), more);
                grows |= more > 0;
            }
        }
        if grows {
            self.room.check(&growth)?;
        }
        self.growth = growth;
        Ok(())
    }

    fn accept(&mut self, transaction: &Transaction, next: Option<ProducerId>) -> Receipt {
        let mut receipt = Receipt {
            producer: next,
            ..Receipt::default()
        };
        for append in &transaction.appends {
            let base = self.append(append.partition, &append.batch);
            receipt.base_offsets.push(base);
        }
        for write in &transaction.progress {
            let key = (write.partition, write.lease.group.clone());
            if let Some(chain) = self.locked.chains.get_mut(&key) {
                let progress = chain.progress.get_or_insert_default();
                progress.change(write.progress.clone());
                self.writes.progress.insert(chain.id, progress.clone());
            }
        }
        if let (Some(next), Some(of)) = (next, &transaction.producer) {
            let name = Arc::clone(&of.name);
            self.locked.idempotence.give(next, Some(Arc::clone(&name)));
            self.writes.producers.push((name, next));
        }
        for write in &transaction.state {
            self.write_state((write.partition, write.group.clone()), &write.writes);
        }
        if let Some(mark) = &transaction.request {
            let at = self.locked.idempotence.written_moment();
            let request = Request::new(mark.clone(), at, receipt.base_offsets.clone());
            let request = Arc::new(request);
            let idempotence = &mut self.locked.idempotence;
            idempotence.apply_request(mark.topic, Arc::clone(&request));
            self.writes.requests.push((mark.topic.0, request));
        }
        for id in &transaction.outbox {
            self.locked.outbox.remove(id);
            self.writes.outbox.push(*id);
        }
        for entry in &transaction.entries {
            let version = self.write_entry(entry.kind, &entry.key, entry.value.clone());
            receipt.versions.push(version);
        }
        receipt
    }

    fn append(&mut self, partition: TopicPartition, batch: &RecordBatch) -> Offset {
        // It was checked to be there.
        let place = self.locked.places.get_mut(&partition);
        let Some(Place { next, bucket, .. }) = place else {
            return Offset::default();
        };
        let (base, bucket) = (*next, *bucket);
        let end = base.plus(batch.end_offset().0 - batch.base_offset().0);
        *next = end;
        if let Some(numbering) = batch.numbering() {
            let idempotence = &mut self.locked.idempotence;
            idempotence.apply_append(partition, numbering, base);
        }
        self.writes.ends.insert(partition, end);
        append_to(&mut self.writes.runs, partition, bucket, base, batch);
        base
    }

    fn write_state(&mut self, key: TableKey, writes: &Arc<StateWrites>) {
        let Some(chain) = self.locked.chains.get_mut(&key) else {
            return;
        };
        chain.state_seq += 1;
        let seq = chain.state_seq;
        let state = self.writes.state.entry(chain.id).or_default();
        state.seq = seq;
        if writes.resets {
            state.reset = Some(seq);
            state.changes.clear();
        }
        for change in &writes.changes {
            let key = Arc::clone(&change.key);
            state.changes.insert(key, (change.clone(), seq));
        }
        let applied = (key, chain.id, seq, Arc::clone(writes));
        self.writes.applied.push(applied);
    }

    fn write_entry(&mut self, kind: EntryKind, key: &str, value: Option<Bytes>) -> Version {
        let catalogue = &mut self.locked.catalogue;
        let newest = catalogue.kinds.entry(kind).or_default();
        newest.0 += 1;
        let version = *newest;
        let place = (kind, key.to_owned());
        match value {
            Some(_) => catalogue.entries.insert(place.clone(), version),
            None => catalogue.entries.remove(&place),
        };
        self.writes.kinds.insert(kind, version);
        self.writes.entries.insert(place, (value, version));
        version
    }
}

/// Adds a batch at this offset to the last run of its partition, or begins another one.
pub(crate) fn append_to(
    runs: &mut Vec<Run>,
    partition: TopicPartition,
    bucket: i32,
    base: Offset,
    batch: &RecordBatch,
) {
    let end = base.plus(batch.end_offset().0 - batch.base_offset().0);
    let stamp = Stamp::of(partition);
    let going = runs.iter_mut().rfind(|run| run.partition == partition);
    let going = going.filter(|run| run.bytes.len() + batch.byte_count() <= RUN_BYTES_MAX);
    let placed = |run: Offset| batch.clone().placed(Offset(base.0 - run.0), stamp);
    // What only stands for offsets has no messages.
    let messages = match batch.is_control() {
        true => 0,
        false => batch.message_count(),
    };
    match going {
        Some(run) => {
            run.next = end;
            run.latest = run.latest.max(batch.max_timestamp());
            run.messages += messages;
            run.bytes.extend_from_slice(placed(run.base).bytes());
        }
        None => runs.push(Run {
            partition,
            bucket,
            base,
            next: end,
            latest: batch.max_timestamp(),
            messages,
            bytes: placed(base).bytes().to_vec(),
        }),
    }
}
