//! What this host has heard from the stream: counts, the catalogue, chains, and who lives. Changed only by [`feed`](crate::feed), one
//! commit at a time and in the order of the stream, so that a reader of it never sees a part of a commit.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use millrace_engine::{Ends, Entry, EntryKind, HostId, HostInfo, ReadError, Version, Watch};
use millrace_model::{
    Durability, Offset, RecordBatch, Timestamp, Topic, TopicName, TopicPartition,
};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use crate::counting::{Counted, Counts};
use crate::fresh::Fresh;
use crate::heard::{Applying, Beat, Event, Heard, News, Own, Passed, Said};
use crate::index::{Anchor, Index};

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
