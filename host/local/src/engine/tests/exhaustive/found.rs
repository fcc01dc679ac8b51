//! The result of a recovery, as the engine's own readers see it, and whether the model allows it.

use std::collections::BTreeMap;

use millrace_engine::EntryKind;
use millrace_engine::conformance::named;
use millrace_model::batch::RecordView;
use millrace_model::{ProducerId, TopicId};

use super::super::*;
use super::model::{
    Answered, Dump, GROUPS, Kept, Log, MODULES, Modules, PRODUCERS, REQUESTS, digest,
};
use super::stateful::table_of;
use crate::decide::state::State;
use crate::ground::tail::Partition;
use crate::start::recovery::Recovered;

impl Dump {
    pub(super) fn of(recovered: &Recovered) -> Self {
        let state = &recovered.state;
        let mut dump = Self {
            moment: state.idempotence.written_moment(),
            now: Timestamp::default(),
            ..Self::default()
        };
        dump.take_producers(state);
        for topic in state.topics() {
            for at in topic.partitions() {
                dump.logs.insert(at, log_of(&state.partitions[&at]));
                dump.take_groups(state, at);
                dump.take_sent(state, at);
            }
            dump.take_requests(state, topic.id);
            dump.topics.insert(topic.spec.name.to_string(), topic);
        }
        for kind in EntryKind::ALL {
            for (key, entry) in state.entries.of(kind) {
                dump.entries.insert((kind, key.clone()), entry.value.len());
            }
        }
        dump
    }

    fn take_groups(&mut self, state: &State, at: TopicPartition) {
        for group in GROUPS {
            if let Some(found) = state.group(at, &named(group)) {
                let progress = found.progress.as_ref();
                let next = progress.map(|progress| progress.next.0);
                if (found.epoch, next) != (0, None) {
                    self.groups.insert((at, group), (found.epoch, next));
                }
                let table = found.state.as_ref().map(|table| table_of(table));
                if let Some(table) = table.filter(|table| !table.is_empty()) {
                    self.state.insert((at, group), table);
                }
            }
        }
    }

    fn take_producers(&mut self, state: &State) {
        let decide = |name| state.idempotence.producers.decide(name).expect("a name");
        self.next_producer = decide(None).id;
        for name in PRODUCERS {
            let ProducerId { id, epoch } = decide(Some(name));
            if id < self.next_producer {
                let epoch = epoch - 1;
                self.named.insert(name, ProducerId { id, epoch });
            }
        }
    }

    fn take_sent(&mut self, state: &State, at: TopicPartition) {
        for id in 0..self.next_producer {
            if let Some(found) = state.idempotence.producers.state(at, id) {
                let sent = found.sent().iter().map(|sent| (sent.first, sent.base));
                let sent = (found.epoch, sent.collect());
                self.sent.insert((at, id), sent);
            }
        }
    }

    fn take_requests(&mut self, state: &State, topic: TopicId) {
        for key in REQUESTS {
            if let Some(found) = state.idempotence.requests.get(topic, &[key; 16]) {
                let number = std::str::from_utf8(&found.note).ok();
                let number = number.and_then(|number| number.parse().ok());
                let answered = Answered {
                    number: number.expect("a note of the script"),
                    at: found.at,
                    offsets: found.base_offsets.clone(),
                };
                self.requests.insert((topic, key), answered);
            }
        }
    }

    /// Whether this matches the model; `now` is the latest time at which anything may have changed
    /// it.
    pub(super) fn is_like(&self, model: &Self, now: Timestamp) -> bool {
        let rest = |dump: &Self| Self {
            logs: BTreeMap::new(),
            state: BTreeMap::new(),
            now: Timestamp::default(),
            ..dump.clone()
        };
        rest(self) == rest(model)
            && self.has_state_of(model, now)
            && self.logs.len() == model.logs.len()
            && model.topics.values().all(|topic| {
                let like = |at| match (self.logs.get(&at), model.logs.get(&at)) {
                    (Some(found), Some(log)) => found.is_like(log, topic, now),
                    _ => false,
                };
                topic.partitions().all(like)
            })
    }

    /// Without messages that compaction may remove.
    pub(super) fn uncompacted(&self) -> Self {
        let mut all = self.clone();
        let compact = |topic: &&Topic| topic.spec.settings.compact;
        for topic in self.topics.values().filter(compact) {
            for at in topic.partitions() {
                all.logs.entry(at).and_modify(|log| log.messages.clear());
            }
        }
        all
    }

    /// The number of messages that the model has and this has not.
    pub(super) fn compacted_away(&self, model: &Self) -> usize {
        let messages = |dump: &Self| dump.logs.values().map(|log| log.messages.len()).sum();
        let (all, found): (usize, usize) = (messages(model), messages(self));
        all.saturating_sub(found)
    }
}

impl Log {
    fn is_like(&self, model: &Self, topic: &Topic, now: Timestamp) -> bool {
        if self.end != model.end || !(model.start..=model.start_max).contains(&self.start) {
            return false;
        }
        let kept = model.messages.iter();
        let kept: Vec<&Kept> = kept
            .filter(|message| message.offset >= self.start)
            .collect();
        if !topic.spec.settings.compact {
            return self.messages.iter().eq(kept
                .iter()
                .map(|kept| kept.as_found())
                .collect::<Vec<_>>()
                .iter());
        }
        let all: Vec<Kept> = kept.iter().map(|kept| kept.as_found()).collect();
        let known = self.messages.iter().all(|found| all.contains(found));
        let ascending = self.messages.is_sorted_by_key(|found| found.offset);
        let tombstone_ms = topic.spec.settings.tombstone_ms;
        known
            && ascending
            && kept.iter().all(|message| {
                let is_there = self
                    .messages
                    .iter()
                    .any(|found| found.offset == message.offset);
                let Some(key) = message.key else {
                    return is_there;
                };
                let same = |other: &&&Kept| other.key == Some(key);
                let last = kept.iter().rfind(same).map(|last| last.offset);
                if is_there || last != Some(message.offset) {
                    return true;
                }
                // Only a tombstone may be removed without a later message: if it is old and the
                // last one of its key.
                let is_old = now.0.saturating_sub(message.at.0) > tombstone_ms;
                let others = self.messages.iter().any(|found| found.key == Some(key));
                message.bytes.is_none() && is_old && !others
            })
    }
}

impl Kept {
    /// As a reader sees it: the step of a tombstone is unknown.
    fn as_found(&self) -> Self {
        let mut found = self.clone();
        found.at = Timestamp::default();
        if found.bytes.is_none() {
            found.number = 0;
        }
        found
    }
}

/// The content of a partition.
fn log_of(partition: &Partition) -> Log {
    let ends = partition.ends();
    let (mut from, mut messages) = (ends.start, Vec::new());
    while from < ends.end {
        let read = partition.read_files(from, 3_000);
        for batch in read.expect("nothing is damaged") {
            let base = batch.base_offset();
            assert!(
                base == from || (base < from && from == ends.start),
                "no hole in {}",
                partition.id
            );
            from = batch.end_offset();
            if batch.is_control() {
                continue;
            }
            let records = batch.records().expect("records");
            let records = records.map(|record| kept(&batch, &record.expect("a record")));
            messages.extend(records.filter(|kept| kept.offset >= ends.start));
        }
    }
    Log {
        start: ends.start,
        start_max: ends.start,
        end: ends.end,
        messages,
    }
}

fn kept(batch: &RecordBatch, record: &RecordView) -> Kept {
    let bytes = |range: &std::ops::Range<usize>| &batch.bytes()[range.clone()];
    let value = record.value.as_ref().map(bytes);
    let number = value.map_or(Some(0), |value| {
        let text = std::str::from_utf8(value).ok()?;
        text.split(' ').next()?.parse().ok()
    });
    Kept {
        offset: record.offset,
        number: number.expect("a message of the script"),
        key: record.key.as_ref().map(bytes).map(|key| key[0]),
        bytes: value.map(<[u8]>::len),
        at: Timestamp::default(),
    }
}

pub(super) fn modules_of(recovered: &Recovered) -> Modules {
    let read = |number| Some((number, recovered.modules.read(digest(number)).unwrap()?));
    MODULES.filter_map(read).collect()
}
