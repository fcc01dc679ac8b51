//! What this host has heard from the stream: counts, the catalogue, chains, and who lives. Changed only by [`feed`](crate::feed), one
//! commit at a time and in the order of the stream, so that a reader of it never sees a part of a commit.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use millrace_engine::entries::Entries;
use millrace_engine::{Ends, Entry, EntryKind, HostId, HostInfo, ReadError, Version, Watch};
use millrace_model::{
    Durability, GroupName, Offset, RecordBatch, Timestamp, Topic, TopicId, TopicName,
    TopicPartition,
};
use parking_lot::{Mutex, RwLock};
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

pub(crate) struct Mirror {
    pub(crate) heard: RwLock<Heard>,
    /// Everything up to this sequence is heard.
    position: watch::Sender<u64>,
    catalogue: watch::Sender<u64>,
    hosts: watch::Sender<Arc<[HostInfo]>>,
    /// Commits of this host that are on their way.
    own: Mutex<HashMap<u64, Own>>,
    /// A time, in milliseconds of the monotonic clock, as of which everything is heard.
    heard_at_ms: AtomicU64,
}

/// A commit of this host.
struct Own {
    /// Its batches, by their place in the commit.
    batches: Arc<HashMap<usize, RecordBatch>>,
    /// What was heard of it.
    passed: Option<Passed>,
}

/// A commit of this host that was heard.
#[derive(Clone, Debug)]
pub(crate) struct Passed {
    pub(crate) first_seq: u64,
    /// The offsets of its batches, by their place in the commit.
    pub(crate) offsets: HashMap<usize, Offset>,
}

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
    topic_cells: HashMap<TopicId, (u64, Option<TopicName>)>,
    pub(crate) topics_seq: u64,
    pub(crate) entries: Entries,
    /// Entries that were removed, and the sequence of that.
    removed: HashMap<(EntryKind, String), u64>,
    pub(crate) kinds: HashMap<EntryKind, u64>,
    pub(crate) partitions: HashMap<TopicPartition, Known>,
    pub(crate) fresh: Fresh,
    pub(crate) chains: HashMap<ChainKey, ChainHeard>,
    pub(crate) tables: HashMap<ChainKey, Arc<Loaded>>,
    beats: HashMap<HostId, Beat>,
    /// The newest time of the server.
    newest_at: u64,
    own_beat_at: u64,
    /// As the server said it last, even if that is earlier.
    own_beat_said: u64,
}

pub(crate) struct Known {
    pub(crate) start: Offset,
    pub(crate) anchor: Anchor,
    pub(crate) start_seq: u64,
    /// What is before the anchor, if it was compacted.
    pub(crate) compacted: Option<Arc<Compacted>>,
    pub(crate) index: Index,
    end: watch::Sender<Offset>,
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

struct Beat {
    said: Said,
    at: u64,
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

impl Mirror {
    pub(crate) fn new(fresh_bytes_max: usize) -> Self {
        let heard = Heard {
            fresh: Fresh::new(fresh_bytes_max),
            ..Heard::default()
        };
        Self {
            heard: RwLock::new(heard),
            position: watch::Sender::new(0),
            catalogue: watch::Sender::new(0),
            hosts: watch::Sender::new(Arc::new([])),
            own: Mutex::default(),
            heard_at_ms: AtomicU64::new(0),
        }
    }

    /// Everything is heard that was there at this time.
    pub(crate) fn heard_at(&self, at: Duration) {
        let ms = at.as_millis() as u64;
        self.heard_at_ms.fetch_max(ms, Ordering::AcqRel);
    }

    /// Since when something may be that was not heard.
    pub(crate) fn age(&self, now: Duration) -> Duration {
        let heard_at = Duration::from_millis(self.heard_at_ms.load(Ordering::Acquire));
        now.saturating_sub(heard_at)
    }

    /// Whether this host has come to where it was, and agrees with the newest counts.
    pub(crate) fn agrees(&self) -> bool {
        let heard = self.heard.read();
        heard.position >= *self.position.borrow() && heard.agreement.reached().is_some()
    }

    /// It has counted anew: ends that were wrong are corrected.
    pub(crate) fn settle(&self) {
        let heard = self.heard.read();
        for (at, known) in &heard.partitions {
            let next = heard.counts.next(*at);
            known.end.send_if_modified(|end| {
                let is_wrong = *end != next;
                *end = next;
                is_wrong
            });
        }
    }

    /// When this host last said that it lives, by the server's clock.
    pub(crate) fn own_beat(&self) -> Timestamp {
        Timestamp(self.heard.read().own_beat_said)
    }

    pub(crate) fn position(&self) -> watch::Receiver<u64> {
        self.position.subscribe()
    }

    pub(crate) fn hosts(&self) -> watch::Receiver<Arc<[HostInfo]>> {
        self.hosts.subscribe()
    }

    pub(crate) fn watch_catalogue(&self) -> watch::Receiver<u64> {
        self.catalogue.subscribe()
    }

    /// The seat of a living host.
    pub(crate) fn seat(&self, id: HostId) -> Option<u32> {
        let hosts = self.hosts.borrow();
        let host = hosts.iter().find(|host| host.id == id);
        host.map(|host| host.seat)
    }

    pub(crate) fn lives(&self, id: HostId) -> bool {
        self.hosts.borrow().iter().any(|host| host.id == id)
    }

    /// A number for a commit of this host, which writes these batches at these places.
    pub(crate) fn expect(&self, commit: u64, batches: Arc<HashMap<usize, RecordBatch>>) {
        let passed = None;
        self.own.lock().insert(commit, Own { batches, passed });
    }

    pub(crate) fn passed(&self, commit: u64) -> Option<Passed> {
        self.own.lock().get(&commit)?.passed.clone()
    }

    pub(crate) fn is_own(&self, commit: u64) -> bool {
        self.own.lock().contains_key(&commit)
    }

    pub(crate) fn forget(&self, commit: u64) {
        self.own.lock().remove(&commit);
    }

    pub(crate) fn topics(&self) -> Vec<Topic> {
        self.heard.read().topics.values().cloned().collect()
    }

    pub(crate) fn topic(&self, name: &TopicName) -> Option<Topic> {
        self.heard.read().topics.get(name).cloned()
    }

    pub(crate) fn entries(&self, kind: EntryKind) -> Vec<(String, Entry)> {
        let heard = self.heard.read();
        let owned = |(key, entry): (&String, &Entry)| (key.clone(), entry.clone());
        heard.entries.of(kind).iter().map(owned).collect()
    }

    pub(crate) fn entry(&self, kind: EntryKind, key: &str) -> Option<Entry> {
        self.heard.read().entries.get(kind, key).cloned()
    }

    pub(crate) fn version(&self, kind: EntryKind) -> Version {
        self.heard.read().entries.version(kind)
    }

    pub(crate) fn ends(&self, at: TopicPartition) -> Result<Ends, ReadError> {
        let heard = self.heard.read();
        Ok(heard.partition(at)?.ends())
    }

    /// What this host has written itself, with its offsets.
    pub(crate) fn fresh(
        &self,
        at: TopicPartition,
        from: Offset,
        bytes_max: usize,
    ) -> Option<Vec<(Offset, RecordBatch)>> {
        let heard = self.heard.read();
        let end = heard.partition(at).ok()?.ends().end;
        heard.fresh.read(at, from, end, bytes_max)
    }

    pub(crate) fn watch(&self, at: TopicPartition) -> Result<Watch, ReadError> {
        let heard = self.heard.read();
        Ok(Watch::new(heard.partition(at)?.end.subscribe()))
    }

    pub(crate) fn exists(&self, at: TopicPartition) -> bool {
        self.heard.read().partitions.contains_key(&at)
    }

    /// Whether the topic asks for what is acknowledged to be on a disk.
    pub(crate) fn is_durable(&self, at: TopicPartition) -> bool {
        let heard = self.heard.read();
        let cell = heard.topic_cells.get(&at.topic);
        let name = cell.and_then(|(_, name)| name.as_ref());
        let topic = name.and_then(|name| heard.topics.get(name));
        topic.is_some_and(|topic| topic.spec.durability == Durability::Durable)
    }

    /// Begins with the counts of a checkpoint. What was heard before stays, except for the counts and where batches are.
    pub(crate) fn begin(&self, mut counts: Counts, seq: u64) {
        let mut heard = self.heard.write();
        let gone = heard.topic_cells.iter();
        let gone = gone.filter(|(_, (_, name))| name.is_none());
        gone.for_each(|(id, _)| counts.forget(*id));
        heard.beginnings += 1;
        heard.agreement.begin(seq, counts.as_of());
        heard.position = counts.as_of();
        heard.counted = Counted::default();
        heard.uncounted = 0;
        let Heard {
            partitions, tables, ..
        } = &mut *heard;
        for (at, known) in partitions {
            let next = counts.next(*at);
            known.index = Index::beginning(Anchor {
                offset: next,
                seq: counts.as_of(),
            });
            known.index.trim(known.anchor);
            known.reach(next);
        }
        tables.values().for_each(|loaded| loaded.read_anew());
        heard.fresh.clear();
        heard.counts = counts;
    }

    /// Applies events that belong together, or any number of cells while the host starts.
    pub(crate) fn apply(&self, events: Vec<Event>, applying: Applying<'_>) -> News {
        let mut news = News::default();
        let mut heard = self.heard.write();
        let mut offsets = HashMap::new();
        let mut first: Option<(u64, u64)> = None;
        let mut position = 0;
        for event in events {
            position = position.max(event.seq);
            heard.newest_at = heard.newest_at.max(event.at.0);
            let first_seq = event.seq.saturating_sub(event.index as u64);
            first.get_or_insert((event.commit, first_seq));
            let index = event.index;
            if let Some(base) = heard.take(event, applying, &self.own, &mut news) {
                offsets.insert(index, base);
            }
        }
        if !applying.is_loading {
            heard.position = heard.position.max(position);
            heard.counts.pass(position);
        }
        if let Some((commit, first_seq)) = first
            && !applying.is_loading
            && let Some(own) = self.own.lock().get_mut(&commit)
        {
            own.passed = Some(Passed { first_seq, offsets });
        }
        drop(heard);
        if news.is_catalogue {
            self.catalogue.send_modify(|count| *count += 1);
        }
        news
    }

    /// Those who wait for a sequence go on.
    pub(crate) fn reached(&self, position: u64) {
        self.position.send_if_modified(|known| {
            let moves = *known < position;
            *known = position.max(*known);
            moves
        });
    }

    /// Judges who lives, by the times that the server gave to what they said.
    pub(crate) fn look(&self, dead_after: Duration) {
        let mut heard = self.heard.write();
        let dead_ms = dead_after.as_millis() as u64;
        let newest = heard.newest_at;
        heard
            .beats
            .retain(|_, beat| newest.saturating_sub(beat.at) <= dead_ms * 100);
        let living = heard.beats.iter();
        let living = living.filter(|(_, beat)| newest.saturating_sub(beat.at) <= dead_ms);
        let said = |(id, beat): (&HostId, &Beat)| {
            let Said { address, seat } = &beat.said;
            (*id, Arc::clone(address), *seat)
        };
        let living = HostInfo::seated(living.map(said));
        drop(heard);
        self.hosts.send_if_modified(|known| {
            let is_new = **known != *living;
            if is_new {
                *known = living.into();
            }
            is_new
        });
    }
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
    fn take(
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
    fn reach(&self, next: Offset) {
        self.end.send_if_modified(|end| {
            let moves = *end < next;
            *end = next.max(*end);
            moves
        });
    }
}
