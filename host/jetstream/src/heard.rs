//! What a host knows of the stream at one place in it, and how each message changes that.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millrace_engine::entries::Entries;
use millrace_engine::{Ends, EntryKind, HostId, ReadError, Version};
use millrace_model::{
    GroupName, Offset, RecordBatch, Timestamp, Topic, TopicId, TopicName, TopicPartition,
};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::chains::Holds;
use crate::compacted::Compacted;
use crate::counting::{Agreement, Counted, Counts};
use crate::fresh::Fresh;
use crate::index::{Anchor, Index, Piece};
use crate::subjects::Place;
use crate::tables::{ChainKey, Loaded};

/// Milliseconds between two heartbeats of this host; more than that, and the servers were not there for it.
const SILENCE_MS_MAX: u64 = 5_000;

#[derive(Default)]
pub(crate) struct Heard {
    pub(crate) position: u64,
    pub(crate) counts: Counts,
    pub(crate) counted: Counted,
    /// Batches counted since the last checkpoint.
    pub(crate) uncounted: u64,
    pub(crate) agreement: Agreement,
    /// How often this host has begun to count: places from before do not count after.
    pub(crate) beginnings: u64,
    pub(crate) topics: BTreeMap<TopicName, Topic>,
    /// The sequence of each topic's cell; also of those that are gone.
    pub(crate) topic_cells: HashMap<TopicId, (u64, Option<TopicName>)>,
    pub(crate) topics_seq: u64,
    pub(crate) entries: Entries,
    /// Entries that were removed, and the sequence of that.
    pub(crate) removed: HashMap<(EntryKind, String), u64>,
    pub(crate) kinds: HashMap<EntryKind, u64>,
    pub(crate) partitions: HashMap<TopicPartition, Known>,
    pub(crate) fresh: Fresh,
    pub(crate) chains: HashMap<ChainKey, ChainHeard>,
    pub(crate) tables: HashMap<ChainKey, Arc<Loaded>>,
    pub(crate) beats: HashMap<HostId, Beat>,
    /// The newest time of the server.
    pub(crate) newest_at: u64,
    pub(crate) own_beat_at: u64,
    /// As the server said it last, even if that is earlier.
    pub(crate) own_beat_said: u64,
}

pub(crate) struct Known {
    pub(crate) start: Offset,
    pub(crate) anchor: Anchor,
    pub(crate) start_seq: u64,
    /// What is before the anchor, if it was compacted.
    pub(crate) compacted: Option<Arc<Compacted>>,
    pub(crate) index: Index,
    pub(crate) end: watch::Sender<Offset>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ChainHeard {
    pub(crate) seq: u64,
    pub(crate) epoch: u64,
    /// Where the group goes on, if it has progress.
    pub(crate) next: Option<Offset>,
}

/// What a living host says of itself.
#[derive(Clone, Debug)]
pub(crate) struct Said {
    pub(crate) address: Arc<str>,
    /// `None` until it has seen who else lives.
    pub(crate) seat: Option<u32>,
}

pub(crate) struct Beat {
    pub(crate) said: Said,
    pub(crate) at: u64,
}

/// Something heard, with what is needed of its body.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) seq: u64,
    pub(crate) at: Timestamp,
    pub(crate) place: Place,
    pub(crate) commit: u64,
    /// Its place among the messages of its commit.
    pub(crate) index: usize,
    pub(crate) what: What,
}

#[derive(Clone, Debug)]
pub(crate) enum What {
    Piece {
        piece: Piece,
        part: u64,
    },
    /// The first of so many parts.
    Delta {
        parts: u64,
    },
    Entry(Option<Bytes>),
    Topic(Option<Box<Topic>>),
    Start {
        start: Offset,
        anchor: Anchor,
        compacted: Option<Arc<Compacted>>,
    },
    Chain {
        epoch: u64,
        next: Option<Offset>,
    },
    Host(Option<Said>),
    /// What it counted, unless this host wrote it.
    Checkpoint {
        as_of: u64,
        counts: Option<Box<Counts>>,
    },
    /// Only its sequence counts.
    Nothing,
}

/// What others must be told of.
#[derive(Default)]
pub(crate) struct News {
    /// Tables with new changes, and whether another host made them.
    pub(crate) tables: Vec<(ChainKey, bool)>,
    pub(crate) is_catalogue: bool,
    /// Why what this host counts is wrong.
    pub(crate) wrong: Option<&'static str>,
}

/// How events are applied.
#[derive(Clone, Copy)]
pub(crate) struct Applying<'a> {
    pub(crate) me: HostId,
    pub(crate) holds: &'a Holds,
    pub(crate) now: Duration,
    /// Whether they are cells that a host reads when it starts: newer than the place where it begins to follow.
    pub(crate) is_loading: bool,
}

/// A commit of this host.
pub(crate) struct Own {
    /// Its batches, by their place in the commit.
    pub(crate) batches: Arc<HashMap<usize, RecordBatch>>,
    /// What was heard of it.
    pub(crate) passed: Option<Passed>,
}

/// A commit of this host that was heard.
#[derive(Clone, Debug)]
pub(crate) struct Passed {
    pub(crate) first_seq: u64,
    /// The offsets of its batches, by their place in the commit.
    pub(crate) offsets: HashMap<usize, Offset>,
}

impl Heard {
    pub(crate) fn partition(&self, at: TopicPartition) -> Result<&Known, ReadError> {
        let known = self.partitions.get(&at);
        known.ok_or(ReadError::UnknownPartition(at))
    }

    /// The last sequence of an entry's subject.
    pub(crate) fn entry_seq(&self, kind: EntryKind, key: &str) -> u64 {
        if let Some(entry) = self.entries.get(kind, key) {
            return entry.version.0;
        }
        let removed = self.removed.get(&(kind, key.to_owned()));
        removed.copied().unwrap_or_default()
    }

    /// The highest id that a topic has had.
    pub(crate) fn last_topic_id(&self) -> u64 {
        let ids = self.topic_cells.keys().map(|id| id.0);
        ids.max().unwrap_or_default()
    }

    /// The offset, if it is the first part of a batch.
    pub(crate) fn take(
        &mut self,
        event: Event,
        applying: Applying<'_>,
        own: &Mutex<HashMap<u64, Own>>,
        news: &mut News,
    ) -> Option<Offset> {
        let Event { seq, at, .. } = event;
        match (event.place, event.what) {
            (Place::Piece(at), What::Piece { piece, part }) => {
                // Whoever starts knows what is gone before it comes to what is older.
                if part > 0 || self.is_gone(at.topic) {
                    return None;
                }
                let base = self.counts.count(seq, at, piece.span)?;
                self.uncounted += 1;
                if let Some(known) = self.partitions.get_mut(&at) {
                    known.index.push(base, piece);
                    let own = own.lock();
                    let own = own.get(&event.commit);
                    if let Some(batch) = own.and_then(|own| own.batches.get(&event.index)) {
                        self.fresh.push(at, base, batch.clone());
                    }
                    known.reach(base.plus(piece.span));
                }
                return Some(base);
            }
            (Place::Delta(at, group), What::Delta { parts }) => {
                let key = (at, group);
                let is_own = own.lock().contains_key(&event.commit);
                if let Some(loaded) = self.tables.get(&key) {
                    loaded.hear(seq, parts);
                }
                news.tables.push((key, is_own));
            }
            (Place::Snapshot(at, group), _) => {
                if let Some(loaded) = self.tables.get(&(at, group)) {
                    loaded.hear_snapshot();
                }
            }
            (Place::Entry(kind, key), What::Entry(value)) => {
                let place = (kind, key.clone());
                match value {
                    Some(_) => drop(self.removed.remove(&place)),
                    None => drop(self.removed.insert(place, seq)),
                }
                news.is_catalogue |= self.entries.hear(kind, key, value, Version(seq));
            }
            (Place::Kind(kind), _) => {
                let known = self.kinds.entry(kind).or_default();
                *known = seq.max(*known);
            }
            (Place::Topics, _) => self.topics_seq = self.topics_seq.max(seq),
            (Place::Topic(id), What::Topic(topic)) => {
                news.is_catalogue |=
                    self.take_topic(seq, id, topic.map(|topic| *topic), applying.holds);
            }
            (
                Place::Start(at),
                What::Start {
                    start,
                    anchor,
                    compacted,
                },
            ) => {
                if let Some(known) = self.partitions.get_mut(&at)
                    && known.start_seq < seq
                {
                    if !applying.is_loading && anchor.offset > self.counts.next(at) {
                        news.wrong = Some("a partition starts behind its end");
                    }
                    known.start_seq = seq;
                    known.start = known.start.max(start);
                    known.anchor = anchor;
                    known.compacted = compacted;
                    known.index.trim(anchor);
                    self.fresh.trim(at, anchor.offset);
                }
            }
            (Place::Chain(at, group), What::Chain { epoch, next }) => {
                let key = (at, group);
                applying.holds.hear(&key, epoch);
                let chain = self.chains.entry(key).or_default();
                if chain.seq < seq {
                    *chain = ChainHeard { seq, epoch, next };
                }
            }
            (Place::Checkpoint, What::Checkpoint { as_of, counts }) => {
                self.counted.hear(as_of, applying.now);
                if applying.is_loading {
                    self.agreement.know(seq, as_of);
                    return None;
                }
                self.uncounted = 0;
                let is_own = own.lock().contains_key(&event.commit);
                let is_gone = |topic| self.is_gone(topic);
                let agrees = match counts {
                    None => is_own.then_some(true),
                    Some(counts) => self.counts.agrees(&counts, is_gone),
                };
                self.agreement.hear(seq, as_of, agrees);
                if agrees == Some(false) {
                    news.wrong = Some("another host has written other counts");
                }
            }
            (Place::Host(id), What::Host(said)) => {
                let known = self.beats.get(&id).map_or(0, |beat| beat.at);
                match said {
                    _ if known > at.0 => {}
                    None => drop(self.beats.remove(&id)),
                    Some(said) => {
                        let beat = Beat { said, at: at.0 };
                        self.beats.insert(id, beat);
                    }
                }
                if id == applying.me {
                    self.own_beat(at.0);
                }
            }
            _ => {}
        }
        None
    }

    fn is_gone(&self, topic: TopicId) -> bool {
        matches!(self.topic_cells.get(&topic), Some((_, None)))
    }

    /// While this host could say nothing, the others could not either: that time counts against nobody.
    fn own_beat(&mut self, at: u64) {
        let silence = at.saturating_sub(self.own_beat_at);
        if self.own_beat_at > 0 && silence > SILENCE_MS_MAX {
            let newest = self.newest_at;
            for beat in self.beats.values_mut() {
                beat.at = beat.at.saturating_add(silence).min(newest);
            }
        }
        self.own_beat_at = self.own_beat_at.max(at);
        self.own_beat_said = at;
    }

    fn take_topic(&mut self, seq: u64, id: TopicId, topic: Option<Topic>, holds: &Holds) -> bool {
        let before = self.topic_cells.get(&id);
        if before.is_some_and(|(known, _)| *known >= seq) {
            return false;
        }
        let before = before.and_then(|(_, name)| name.clone());
        if let Some(name) = before {
            self.topics.remove(&name);
        }
        let name = topic.as_ref().map(|topic| topic.spec.name.clone());
        self.topic_cells.insert(id, (seq, name));
        let Some(topic) = topic else {
            self.partitions.retain(|at, _| at.topic != id);
            self.chains.retain(|(at, _), _| at.topic != id);
            self.tables.retain(|(at, _), _| at.topic != id);
            self.counts.forget(id);
            self.fresh.forget(id);
            holds.forget(id);
            return true;
        };
        for at in topic.partitions() {
            let next = self.counts.next(at);
            let seq = self.position;
            self.partitions.entry(at).or_insert_with(|| Known {
                start: Offset::default(),
                anchor: Anchor::default(),
                start_seq: 0,
                compacted: None,
                index: Index::beginning(Anchor { offset: next, seq }),
                end: watch::Sender::new(next),
            });
        }
        self.topics.insert(topic.spec.name.clone(), topic);
        true
    }

    /// Groups that have a chain in the partition.
    pub(crate) fn groups(&self, at: TopicPartition) -> Vec<GroupName> {
        let chains = self.chains.iter();
        let here = chains.filter(|((of, _), chain)| *of == at && chain.next.is_some());
        let names: HashSet<GroupName> = here.map(|((_, group), _)| group.clone()).collect();
        let mut names: Vec<GroupName> = names.into_iter().collect();
        names.sort_unstable();
        names
    }
}

/// Where a partition begins.
#[derive(Clone, Debug)]
pub(crate) struct Beginning {
    pub(crate) start: Offset,
    /// Where its own messages begin; what is before was compacted.
    pub(crate) anchor: Anchor,
    pub(crate) compacted: Option<Arc<Compacted>>,
    /// The sequence of the cell that says so.
    pub(crate) seq: u64,
}

impl Known {
    pub(crate) fn beginning(&self) -> Beginning {
        Beginning {
            start: self.start,
            anchor: self.anchor,
            compacted: self.compacted.clone(),
            seq: self.start_seq,
        }
    }

    pub(crate) fn ends(&self) -> Ends {
        let end = *self.end.borrow();
        // The start is a cell and may be known before what was counted up to it.
        let start = self.start.min(end);
        Ends { start, end }
    }

    /// Ends never go back.
    pub(crate) fn reach(&self, next: Offset) {
        self.end.send_if_modified(|end| {
            let moves = *end < next;
            *end = next.max(*end);
            moves
        });
    }
}
