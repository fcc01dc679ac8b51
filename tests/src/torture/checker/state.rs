//! What the checker knows while it reads a history.

use std::collections::BTreeMap;

use super::super::history::{Ages, TopicRule};
use super::super::value::Id;

pub(super) struct Topic {
    pub(super) durable: bool,
    pub(super) produced: bool,
    pub(super) ages: Ages,
    pub(super) delays: bool,
    pub(super) partitions: BTreeMap<u32, Partition>,
}

#[derive(Default)]
pub(super) struct Partition {
    pub(super) start: u64,
    /// The largest start that a trim asked for.
    pub(super) asked_start: u64,
    /// The largest end that a client saw.
    pub(super) end: u64,
    /// Messages that were acknowledged or read, by offset.
    pub(super) known: BTreeMap<u64, Known>,
    /// The messages of the last reading.
    pub(super) last: BTreeMap<u64, Id>,
}

/// What clients know of an offset.
pub(super) struct Known {
    pub(super) id: Id,
    /// Known only once the message was read.
    hash: Option<u64>,
    /// The line at which it first became known.
    pub(super) line: u64,
    /// The line of the acknowledgement.
    pub(super) acknowledged: Option<u64>,
}

pub(super) struct Request {
    pub(super) topic: String,
    pub(super) count: u32,
    pub(super) once: bool,
    pub(super) attempts: u32,
    pub(super) refused: u32,
    pub(super) unanswered: u32,
    pub(super) invoked_line: u64,
    pub(super) acknowledged_line: Option<u64>,
    /// The time by which it had been accepted.
    pub(super) taken_ms: Option<u64>,
    /// The places that the host reported for its messages.
    pub(super) placed: Vec<(u32, u64)>,
}

impl Topic {
    pub(super) fn new(rule: &TopicRule) -> Self {
        Self {
            durable: rule.durable,
            produced: rule.produced,
            ages: rule.ages,
            delays: rule.delays,
            partitions: BTreeMap::new(),
        }
    }

    /// The largest start that a partition may have, as far as is known.
    pub(super) fn start_max(&self, partition: &Partition) -> u64 {
        match self.ages {
            Ages::Never | Ages::ByCompaction { .. } => 0,
            Ages::WhenTrimmed => partition.asked_start,
            Ages::ByRetention => partition.end,
        }
    }

    pub(super) fn at(&mut self, partition: u32) -> &mut Partition {
        self.partitions.entry(partition).or_default()
    }
}

impl Known {
    pub(super) fn acknowledged(id: Id, line: u64) -> Self {
        Self {
            id,
            hash: None,
            line,
            acknowledged: Some(line),
        }
    }

    pub(super) fn read(id: Id, hash: u64, line: u64) -> Self {
        Self {
            id,
            hash: Some(hash),
            line,
            acknowledged: None,
        }
    }

    pub(super) fn agrees_with(&self, other: &Self) -> bool {
        let hashes = self.hash.zip(other.hash);
        self.id == other.id && hashes.is_none_or(|(one, other)| one == other)
    }

    pub(super) fn learn(&mut self, other: &Self) {
        self.hash = self.hash.or(other.hash);
        self.acknowledged = self.acknowledged.or(other.acknowledged);
    }
}

impl Request {
    pub(super) fn new(topic: &str, count: u32, once: bool) -> Self {
        Self {
            topic: topic.to_owned(),
            count,
            once,
            attempts: 0,
            refused: 0,
            unanswered: 0,
            invoked_line: 0,
            taken_ms: None,
            acknowledged_line: None,
            placed: Vec::new(),
        }
    }

    /// How many copies of it there may be.
    pub(super) fn copies_max(&self) -> u32 {
        let sent = self.attempts - self.refused.min(self.attempts);
        if self.once { sent.min(1) } else { sent }
    }
}
