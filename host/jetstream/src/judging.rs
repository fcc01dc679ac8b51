//! Decides transactions on what this host knows: plain code. Each is judged on what those before it in the same commit have changed; a
//! refused one changes nothing. Whether the host knew right, the server says: everything that a decision is based on is expected of it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::Bytes;
use millrace_engine::contract::{Lease, Transaction};
use millrace_engine::idempotence::producers::Named;
use millrace_engine::idempotence::requests::Request;
use millrace_engine::idempotence::{Idempotence, Judgement, Overlay};
use millrace_engine::room::{Growth, Kept};
use millrace_engine::state::StateWrites;
use millrace_engine::state::keeper::KeepTable as _;
use millrace_engine::{
    CommitError, EntryKind, Expectation, Receipt, RequestMark, Version, entries,
};
use millrace_model::bounds::{PRODUCER_IDLE_MS, REQUEST_AGE_MS_MAX};
use millrace_model::{
    Numbering, Offset, ProducerId, RecordBatch, Stamp, Timestamp, TopicPartition,
};

use crate::atomic::{GONE, Put};
use crate::cells::{
    Chain, Known, PLACES, decode_named, decode_producer, decode_request, encode_named,
    encode_producer, encode_request,
};
use crate::store::Store;
use crate::tables::{ChainKey, Loaded};
use crate::trouble::Trouble;

/// What must be known of cells before transactions are judged.
#[derive(Debug, Default)]
pub(crate) struct Needs {
    pub(crate) chains: BTreeMap<ChainKey, String>,
    pub(crate) producers: BTreeMap<(TopicPartition, i64), String>,
    pub(crate) ids: BTreeMap<i64, String>,
    pub(crate) names: BTreeMap<Arc<str>, String>,
    /// A request is assumed to be new at first: the server knows.
    pub(crate) requests: BTreeMap<(u64, [u8; 16]), String>,
    /// Whether the last id given to a producer is needed.
    pub(crate) needs_ids: bool,
}

impl Needs {
    pub(crate) fn add(&mut self, store: &Store, transaction: &Transaction) {
        let subjects = &store.subjects;
        let mut chain = |key: ChainKey| {
            let subject = subjects.chain(key.0, &key.1);
            self.chains.insert(key, subject);
        };
        for write in &transaction.progress {
            chain((write.lease.partition, write.lease.group.clone()));
            chain((write.partition, write.lease.group.clone()));
        }
        let of_state = transaction.state.iter().filter_map(|w| w.lease.as_ref());
        for lease in of_state.chain(&transaction.fences) {
            chain((lease.partition, lease.group.clone()));
        }
        for append in &transaction.appends {
            if let Some(Numbering { producer, .. }) = append.batch.numbering() {
                let id = producer.id;
                self.needs_ids = true;
                self.ids.insert(id, subjects.id(id));
                let subject = subjects.producer(append.partition, id);
                self.producers.insert((append.partition, id), subject);
            }
        }
        if let Some(next) = &transaction.producer {
            self.needs_ids = true;
            self.names
                .insert(Arc::clone(&next.name), subjects.name(&next.name));
            let id = next.producer.id;
            self.ids.insert(id, subjects.id(id));
        }
        if let Some(mark) = &transaction.request {
            let subject = subjects.request(mark.topic, &mark.key);
            self.requests.insert((mark.topic.0, mark.key), subject);
        }
    }

    /// All but those of requests.
    pub(crate) fn subjects(&self) -> impl Iterator<Item = &String> {
        let chains = self.chains.values();
        chains
            .chain(self.producers.values())
            .chain(self.ids.values())
            .chain(self.names.values())
    }
}

/// A cell of a chain while it is judged.
struct Judged {
    seq: u64,
    chain: Chain,
    /// Whether it is written, if only to have it expected.
    is_written: bool,
}

/// A batch or changes of state, to be written.
struct Draft {
    subject: String,
    body: Bytes,
    what: Drafted,
}

enum Drafted {
    /// And whether a cell refers to it.
    Piece(RecordBatch, bool),
    State(usize),
}

/// State that is written: the table, the changes, and once it is known, the draft's place.
pub(crate) struct StateDraft {
    pub(crate) key: ChainKey,
    pub(crate) writes: Arc<StateWrites>,
    pub(crate) table: Arc<Loaded>,
    pub(crate) place: usize,
}

/// The decision on one transaction.
#[derive(Debug)]
pub(crate) struct Decided {
    /// Its offsets are places of batches, or sequences.
    pub(crate) receipt: Receipt,
    /// The entries that it writes, by their places among all entries of the commit.
    pub(crate) entries: std::ops::Range<usize>,
}

/// Transactions that are decided.
pub(crate) struct Judge<'a> {
    store: &'a Store,
    now: Timestamp,
    chains: BTreeMap<ChainKey, (String, Judged)>,
    producers: BTreeMap<(TopicPartition, i64), (String, u64)>,
    written_producers: Vec<(TopicPartition, i64)>,
    ids: BTreeMap<i64, (String, u64)>,
    checked_ids: Vec<i64>,
    names: BTreeMap<Arc<str>, (String, u64)>,
    written_names: Vec<(Arc<str>, Named)>,
    requests: Vec<(String, u64, Arc<Request>)>,
    known_requests: BTreeMap<(u64, [u8; 16]), u64>,
    idempotence: Idempotence,
    growth: Growth,
    drafts: Vec<Draft>,
    pub(crate) state: Vec<StateDraft>,
    entries: Vec<(EntryKind, String, Option<Bytes>)>,
    checks: BTreeMap<String, u64>,
}

/// What is written, and where things are in it.
pub(crate) struct Writes {
    pub(crate) puts: Vec<Put>,
    /// The batches, by the place of their first part.
    pub(crate) batches: HashMap<usize, RecordBatch>,
    /// The place of each draft.
    pub(crate) places: Vec<usize>,
    /// The place of each entry.
    pub(crate) entries: Vec<usize>,
    pub(crate) state: Vec<StateDraft>,
}

impl<'a> Judge<'a> {
    /// With the cells that are needed; those that are not there have the sequence 0.
    pub(crate) fn new(
        store: &'a Store,
        needs: &Needs,
        cells: &HashMap<String, Known>,
        last_id: u64,
        now: Timestamp,
    ) -> Result<Self, Trouble> {
        let mut idempotence = Idempotence::default().within(&store.options.bounds);
        idempotence.apply_moment(now);
        let next_id = i64::try_from(last_id).unwrap_or(i64::MAX - 1) + 1;
        idempotence.producers.set_next_id(next_id);
        let cell = |subject: &String| cells.get(subject).cloned().unwrap_or_default();
        let mut chains = BTreeMap::new();
        for (key, subject) in &needs.chains {
            let Known { seq, body } = cell(subject);
            let chain = match seq {
                0 => Some(Chain::default()),
                _ => Chain::decode(&body),
            };
            let judged = Judged {
                seq,
                chain: chain.ok_or_else(|| Trouble::malformed("a chain"))?,
                is_written: false,
            };
            chains.insert(key.clone(), (subject.clone(), judged));
        }
        let mut producers = BTreeMap::new();
        for ((at, id), subject) in &needs.producers {
            let known = cell(subject);
            if known.seq > 0 {
                let state = decode_producer(&known);
                let state = state.ok_or_else(|| Trouble::malformed("a producer"))?;
                idempotence.producers.insert(*at, *id, state);
            }
            producers.insert((*at, *id), (subject.clone(), known.seq));
        }
        let mut ids = BTreeMap::new();
        let mut names = BTreeMap::new();
        for (id, subject) in &needs.ids {
            let known = cell(subject);
            if known.seq > 0 {
                let (name, named) = decode_named(&known.body)
                    .ok_or_else(|| Trouble::malformed("a named producer"))?;
                idempotence.producers.insert_name(name, named);
            }
            ids.insert(*id, (subject.clone(), known.seq));
        }
        for (name, subject) in &needs.names {
            let known = cell(subject);
            if known.seq > 0 {
                let (name, named) = decode_named(&known.body)
                    .ok_or_else(|| Trouble::malformed("a named producer"))?;
                idempotence.producers.insert_name(name, named);
            }
            names.insert(Arc::clone(name), (subject.clone(), known.seq));
        }
        let mut known_requests = BTreeMap::new();
        for ((topic, key), subject) in &needs.requests {
            let known = cell(subject);
            if known.seq > 0 {
                let request = decode_request(&known);
                let request = request.ok_or_else(|| Trouble::malformed("a request"))?;
                let topic = millrace_model::TopicId(*topic);
                idempotence.apply_request(topic, Arc::new(request));
            }
            known_requests.insert((*topic, *key), known.seq);
        }
        Ok(Self {
            store,
            now,
            chains,
            producers,
            written_producers: Vec::new(),
            ids,
            checked_ids: Vec::new(),
            names,
            written_names: Vec::new(),
            requests: Vec::new(),
            known_requests,
            idempotence,
            growth: Growth::default(),
            drafts: Vec::new(),
            state: Vec::new(),
            entries: Vec::new(),
            checks: BTreeMap::new(),
        })
    }

    /// Decides one transaction.
    pub(crate) fn decide(&mut self, transaction: &Transaction) -> Result<Decided, CommitError> {
        self.check_appends(transaction)?;
        let mark = transaction.request.as_ref();
        let overlay = Overlay::default();
        let judged = self
            .idempotence
            .judge(&overlay, &transaction.appends, mark)?;
        let producers = &self.idempotence.producers;
        if let Judgement::Repeat(mut receipt) = judged {
            let of = transaction.producer.as_ref();
            receipt.producer = of.and_then(|of| producers.named(&of.name));
            return Ok(Decided {
                receipt,
                entries: 0..0,
            });
        }
        let next = transaction.producer.as_ref();
        let next = next.map(|next| producers.decide_next(next)).transpose()?;
        self.check_leases(transaction)?;
        let checks = self.check_expectations(&transaction.expects)?;
        self.check_room(transaction)?;
        self.checks.extend(checks);
        self.accept(transaction, next)
    }

    /// Takes over batches as they are: their numbers are remembered and not judged.
    pub(crate) fn adopt(&mut self, transaction: &Transaction) -> Result<(), CommitError> {
        self.check_appends(transaction)?;
        for append in &transaction.appends {
            self.append(append.partition, &append.batch, false);
        }
        Ok(())
    }

    fn existing(&self, at: TopicPartition) -> Result<(), CommitError> {
        match self.store.mirror.exists(at) {
            true => Ok(()),
            false => Err(CommitError::UnknownPartition(at)),
        }
    }

    fn check_appends(&self, transaction: &Transaction) -> Result<(), CommitError> {
        for append in &transaction.appends {
            self.existing(append.partition)?;
            if !self.store.options.synced && self.store.mirror.is_durable(append.partition) {
                return Err(CommitError::NotDurable);
            }
        }
        if let Some(mark) = &transaction.request {
            self.existing(RequestMark::first_partition(mark))?;
        }
        Ok(())
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
        let key = (lease.partition, lease.group.clone());
        let newest = self.chains.get(&key);
        let newest = newest.filter(|(_, judged)| judged.seq > 0);
        if newest.map(|(_, judged)| judged.chain.epoch) != Some(lease.epoch) {
            return Err(CommitError::Fenced {
                group: lease.group.clone(),
                partition: lease.partition,
            });
        }
        Ok(())
    }

    /// What must be expected so that these expectations hold.
    fn check_expectations(
        &self,
        expects: &[Expectation],
    ) -> Result<Vec<(String, u64)>, CommitError> {
        self.store.check_expectations(expects)
    }

    fn check_room(&mut self, transaction: &Transaction) -> Result<(), CommitError> {
        let mut growth = self.growth;
        let mut grows = false;
        for write in &transaction.state {
            if write.writes.keep_values() {
                let key = (write.partition, write.group.clone());
                let loaded = self.store.known_table(&key)?;
                let more = loaded.table.growth(&write.writes);
                growth.add(Kept::of_group(&write.group), more);
                grows |= more > 0;
            }
        }
        if grows {
            self.store.tables.room.check(&growth)?;
        }
        self.growth = growth;
        Ok(())
    }

    fn accept(
        &mut self,
        transaction: &Transaction,
        next: Option<ProducerId>,
    ) -> Result<Decided, CommitError> {
        let mut receipt = Receipt {
            producer: next,
            ..Receipt::default()
        };
        for append in &transaction.appends {
            let is_of_request = transaction.request.is_some();
            let base = self.append(append.partition, &append.batch, is_of_request);
            receipt.base_offsets.push(base);
        }
        let of_state = transaction.state.iter().filter_map(|w| w.lease.as_ref());
        let of_progress = transaction.progress.iter().map(|write| &write.lease);
        for lease in of_progress.chain(of_state).chain(&transaction.fences) {
            let key = (lease.partition, lease.group.clone());
            if let Some((_, judged)) = self.chains.get_mut(&key) {
                judged.is_written = true;
            }
        }
        for write in &transaction.progress {
            let key = (write.partition, write.lease.group.clone());
            if let Some((_, judged)) = self.chains.get_mut(&key) {
                judged.is_written = true;
                let progress = judged.chain.progress.get_or_insert_default();
                progress.change(write.progress.clone());
            }
        }
        if let (Some(next), Some(of)) = (next, &transaction.producer) {
            let name = Arc::clone(&of.name);
            self.idempotence.give(next, Some(Arc::clone(&name)));
            let named = Named {
                producer: next,
                at: self.now,
            };
            self.written_names.push((name, named));
        }
        for write in &transaction.state {
            let key = (write.partition, write.group.clone());
            let table = self.store.known_table(&key)?;
            let body = crate::encoding::encode_writes(&write.writes);
            self.drafts.push(Draft {
                subject: self.store.subjects.delta(key.0, &key.1),
                body: body.into(),
                what: Drafted::State(self.state.len()),
            });
            self.state.push(StateDraft {
                key,
                writes: Arc::clone(&write.writes),
                table,
                place: 0,
            });
        }
        if let Some(mark) = &transaction.request {
            let at = self.idempotence.written_moment();
            let request = Request::new(mark.clone(), at, receipt.base_offsets.clone());
            let request = Arc::new(request);
            self.idempotence
                .apply_request(mark.topic, Arc::clone(&request));
            let subject = self.store.subjects.request(mark.topic, &mark.key);
            let known = self.known_requests.get(&(mark.topic.0, mark.key));
            let seq = known.copied().unwrap_or_default();
            self.requests.push((subject, seq, request));
        }
        let first = self.entries.len();
        for entry in &transaction.entries {
            let value = entry.value.clone();
            self.entries.push((entry.kind, entry.key.clone(), value));
        }
        Ok(Decided {
            receipt,
            entries: first..self.entries.len(),
        })
    }

    /// The place of the batch among the drafts.
    fn append(&mut self, at: TopicPartition, batch: &RecordBatch, is_of_request: bool) -> Offset {
        let base = Offset(PLACES + self.drafts.len() as u64);
        if let Some(numbering) = batch.numbering() {
            self.idempotence.apply_append(at, numbering, base);
            let id = numbering.producer.id;
            if !self.written_producers.contains(&(at, id)) {
                self.written_producers.push((at, id));
            }
            if !self.checked_ids.contains(&id) {
                self.checked_ids.push(id);
            }
        }
        let placed = batch.clone().placed(Offset::default(), Stamp::of(at));
        self.drafts.push(Draft {
            subject: self.store.subjects.piece(at),
            body: placed.bytes().clone(),
            what: Drafted::Piece(placed, is_of_request || batch.numbering().is_some()),
        });
        base
    }

    /// The messages of everything that was decided.
    pub(crate) fn into_writes(mut self) -> Writes {
        let store = self.store;
        let mut puts: Vec<Put> = Vec::new();
        let mut places = Vec::with_capacity(self.drafts.len());
        let mut batches = HashMap::with_capacity(self.drafts.len());
        for draft in &self.drafts {
            places.push(puts.len());
            let note = |part: usize, parts: usize| match &draft.what {
                Drafted::Piece(batch, is_referred) => {
                    // It was placed at zero.
                    let (span, latest) = (batch.end_offset().0, batch.max_timestamp().0);
                    let messages = batch.messages_within(Offset::default(), batch.end_offset());
                    let referred = if *is_referred { " 1" } else { "" };
                    format!("{part} {parts} {span} {messages} {latest}{referred}")
                }
                Drafted::State(_) => format!("{part} {parts}"),
            };
            match &draft.what {
                Drafted::Piece(batch, _) => drop(batches.insert(puts.len(), batch.clone())),
                Drafted::State(state) => self.state[*state].place = puts.len(),
            }
            puts.extend(store.in_parts(&draft.subject, &draft.body, note));
        }
        let place_of = |draft: usize| places.get(draft).copied().unwrap_or_default();
        for (at, id) in &self.written_producers {
            let state = self.idempotence.producers.state(*at, *id);
            if let (Some(state), Some((subject, seq))) = (state, self.producers.get(&(*at, *id))) {
                let body = encode_producer(state, puts.len(), place_of);
                let mut put = Put::cell(subject.clone(), Some(*seq), body);
                put.ttl_s = Some(PRODUCER_IDLE_MS / 1000);
                puts.push(put);
            }
        }
        for (subject, seq, request) in &self.requests {
            let body = encode_request(request, puts.len(), place_of);
            let mut put = Put::cell(subject.clone(), Some(*seq), body);
            put.ttl_s = Some(REQUEST_AGE_MS_MAX / 1000);
            puts.push(put);
        }
        let mut named = Vec::new();
        for (name, what) in &self.written_names {
            let body = encode_named(name, *what);
            let (subject, seq) = match self.names.get(name) {
                Some((subject, seq)) => (subject.clone(), *seq),
                None => (store.subjects.name(name), 0),
            };
            puts.push(Put::cell(subject, Some(seq), body.clone()));
            let id = what.producer.id;
            let seq = self.ids.get(&id).map(|(_, seq)| *seq);
            puts.push(Put::cell(store.subjects.id(id), seq, body));
            named.push(id);
        }
        for id in &self.checked_ids {
            // Whether a producer has a name never changes.
            if let Some((subject, seq)) = self.ids.get(id)
                && *seq > 0
                && !named.contains(id)
            {
                self.checks.insert(subject.clone(), *seq);
            }
        }
        for (subject, judged) in self.chains.values().filter(|(_, j)| j.is_written) {
            let put = Put::cell(subject.clone(), Some(judged.seq), judged.chain.encode());
            puts.push(put.noted(judged.chain.note()));
        }
        let mut entries = Vec::with_capacity(self.entries.len());
        let mut kinds = Vec::new();
        for (kind, key, value) in &self.entries {
            let subject = store.subjects.entry(*kind, key);
            // Of several writes of one entry, only the first can be checked and replaces what was there.
            let expected = self.checks.remove(&subject);
            let is_first = !puts.iter().any(|put| put.subject == subject);
            let mut put = match value {
                Some(value) => Put::cell(subject, expected, value.clone()),
                None => Put::cell(subject, expected, Bytes::new()).noted(GONE),
            };
            put.is_last = is_first;
            entries.push(puts.len());
            puts.push(put);
            if !kinds.contains(kind) {
                kinds.push(*kind);
            }
        }
        for kind in kinds {
            let subject = store.subjects.kind(kind);
            let expected = self.checks.remove(&subject);
            puts.push(Put::cell(subject, expected, Bytes::new()));
        }
        for (number, (subject, seq)) in self.checks.into_iter().enumerate() {
            let carrier = store.subjects.check(store.me, number);
            puts.push(Put::check(carrier, subject, seq));
        }
        Writes {
            puts,
            batches,
            places,
            entries,
            state: self.state,
        }
    }
}

impl Store {
    /// What must be expected so that these expectations hold.
    pub(crate) fn check_expectations(
        &self,
        expects: &[Expectation],
    ) -> Result<Vec<(String, u64)>, CommitError> {
        let heard = self.mirror.heard.read();
        let entry = |kind, key: &str| heard.entries.get(kind, key).map(|entry| entry.version);
        let newest = |kind| -> Version { heard.entries.version(kind) };
        let topic = |name: &_| heard.topics.get(name);
        entries::check(expects, entry, newest, topic, |module| {
            let mut topics = heard.topics.values();
            topics.any(|topic| topic.spec.partitioner == Some(module))
        })?;
        let mut checks = Vec::new();
        for expectation in expects {
            match expectation {
                Expectation::Entry { kind, key, .. } => {
                    let seq = heard.entry_seq(*kind, key);
                    checks.push((self.subjects.entry(*kind, key), seq));
                }
                Expectation::Kind { kind, .. } => {
                    let seq = heard.kinds.get(kind).copied().unwrap_or_default();
                    checks.push((self.subjects.kind(*kind), seq));
                }
                Expectation::Topic { .. } | Expectation::NoPartitioner { .. } => {
                    checks.push((self.subjects.topics(), heard.topics_seq));
                }
                Expectation::Outbox => {}
            }
        }
        Ok(checks)
    }
}
