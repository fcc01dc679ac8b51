//! Exactly-once: producers that number their batches, and requests with a key. The same rules for every engine.
//!
//! A transaction is judged before anything is written ([`Idempotence::judge`]); what must be remembered follows from what is written,
//! so a replay of the journal remembers the same. Time is written as well ([`Idempotence::moment`]) and never read from a clock while
//! something is applied, so that a replay forgets by age at the same point.

pub mod producers;
pub mod requests;

use std::collections::HashMap;
use std::sync::Arc;

use millrace_model::{Numbering, Offset, ProducerId, Timestamp, TopicId, TopicPartition};

use self::producers::{ProducerState, Producers};
use self::requests::{Request, Requests};
use crate::contract::{Append, CommitError, Receipt, RequestMark};
use crate::room::HostBounds;

/// The memory of producers and requests.
#[derive(Debug, Default)]
pub struct Idempotence {
    /// The latest written time.
    moment: Timestamp,
    /// Of producers.
    pub producers: Producers,
    /// Of requests.
    pub requests: Requests,
}

/// The judgement on a transaction.
#[derive(Debug, PartialEq)]
pub enum Judgement {
    /// It has no numbers and no mark.
    Plain,
    /// New, and something must be remembered.
    New,
    /// It took effect earlier.
    Repeat(Receipt),
}

/// Changes by transactions that are decided but not yet applied.
#[derive(Debug, Default)]
pub struct Overlay {
    now: Timestamp,
    producers: HashMap<(TopicPartition, i64), ProducerState>,
    requests: HashMap<(TopicId, [u8; 16]), Arc<Request>>,
}

impl Overlay {
    /// Starts over, at this time.
    pub fn clear(&mut self) {
        self.producers.clear();
        self.requests.clear();
    }

    /// Records the time.
    pub fn set_now(&mut self, now: Timestamp) {
        self.now = now;
    }

    /// Records a numbered batch that was judged to be new.
    pub fn accept(
        &mut self,
        kept: &Idempotence,
        partition: TopicPartition,
        numbering: Numbering,
        base: Offset,
    ) {
        let now = kept.now(self);
        let key = (partition, numbering.producer.id);
        let before = kept.producers.state(partition, numbering.producer.id);
        let before = self.producers.get(&key).or(before).copied();
        let after = ProducerState::after(before, numbering, base, now);
        self.producers.insert(key, after);
    }

    /// Records a request that was judged to be new.
    pub fn remember(&mut self, topic: TopicId, request: Arc<Request>) {
        self.requests.insert((topic, request.key), request);
    }
}

impl Idempotence {
    /// The same memory, with these bounds from now on.
    pub fn within(mut self, bounds: &HostBounds) -> Self {
        self.requests.bound(bounds.requests_bytes);
        self
    }

    /// Judges whether a transaction is new, or a repeat with its first answer.
    ///
    /// # Errors
    /// If it is neither: a gap, an older epoch, an unknown producer, a key used for something else.
    pub fn judge(
        &self,
        overlay: &Overlay,
        appends: &[Append],
        mark: Option<&RequestMark>,
    ) -> Result<Judgement, CommitError> {
        if mark.is_none() && !appends.iter().any(is_numbered) {
            return Ok(Judgement::Plain);
        }
        if let Some(mark) = mark
            && let Some(request) = self.request(overlay, mark)
        {
            return request.repeat(mark).map(Judgement::Repeat);
        }
        self.judge_numbers(overlay, appends)
    }

    fn request<'a>(&'a self, overlay: &'a Overlay, mark: &RequestMark) -> Option<&'a Request> {
        let undecided = overlay.requests.get(&(mark.topic, mark.key));
        let found = undecided.or_else(|| self.requests.get(mark.topic, &mark.key));
        let young = |request: &&Arc<Request>| !request.is_old(self.now(overlay));
        found.filter(young).map(|request| &**request)
    }

    /// A transaction is repeated as a whole: each append repeats, or none does.
    fn judge_numbers(
        &self,
        overlay: &Overlay,
        appends: &[Append],
    ) -> Result<Judgement, CommitError> {
        let now = self.now(overlay);
        let mut repeated = Vec::new();
        // What the transaction's own appends change for later ones.
        let mut own: HashMap<(TopicPartition, i64), ProducerState> = HashMap::new();
        for Append { partition, batch } in appends {
            let Some(numbering) = batch.numbering() else {
                continue;
            };
            let key = (*partition, numbering.producer.id);
            let state = own.get(&key).or_else(|| overlay.producers.get(&key));
            let state = state.or_else(|| self.producers.state(key.0, key.1));
            match self.producers.judge(state, *partition, numbering, now)? {
                Some(base) => repeated.push(base),
                None if appends.len() > 1 => {
                    let state = state.copied();
                    let after = ProducerState::after(state, numbering, Offset::MAX, now);
                    own.insert(key, after);
                }
                None => {}
            }
        }
        match repeated.len() {
            0 => Ok(Judgement::New),
            all if all == appends.len() && !repeated.contains(&Offset::MAX) => {
                Ok(Judgement::Repeat(Receipt {
                    base_offsets: repeated,
                    repeated: true,
                    ..Receipt::default()
                }))
            }
            repeated => Err(CommitError::PartlyRepeated {
                repeated,
                appends: appends.len(),
            }),
        }
    }

    fn now(&self, overlay: &Overlay) -> Timestamp {
        self.moment.max(overlay.now)
    }

    /// The time to write before the next decision.
    pub fn moment(&self, overlay: &Overlay) -> Timestamp {
        self.now(overlay)
    }

    /// The latest time that was written, for a checkpoint.
    pub fn written_moment(&self) -> Timestamp {
        self.moment
    }

    /// Applies a written time; time does not go back.
    pub fn apply_moment(&mut self, moment: Timestamp) {
        self.moment = self.moment.max(moment);
    }

    /// Applies an append.
    pub fn apply_append(&mut self, partition: TopicPartition, numbering: Numbering, base: Offset) {
        self.producers
            .apply(partition, numbering, base, self.moment);
    }

    /// Applies a producer's identity.
    pub fn give(&mut self, producer: ProducerId, name: Option<Arc<str>>) {
        self.producers.give(producer, name, self.moment);
    }

    /// Applies a request.
    pub fn apply_request(&mut self, topic: TopicId, request: Arc<Request>) {
        self.requests.apply(topic, request, self.moment);
    }

    /// Forgets everything about a deleted topic.
    pub fn forget_topic(
        &mut self,
        topic: TopicId,
        partitions: impl Iterator<Item = TopicPartition>,
    ) {
        partitions.for_each(|partition| self.producers.forget(partition));
        self.requests.forget(topic);
    }
}

fn is_numbered(append: &Append) -> bool {
    append.batch.numbering().is_some()
}
