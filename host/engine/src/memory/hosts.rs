//! Several hosts on one store: who lives, and what each has heard of.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use millrace_model::{Clock, Offset, Topic, TopicName, TopicPartition};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::MemoryEngine;
use super::store::{Group, State};
use crate::contract::{CommitError, Ends, HostId, HostInfo, ReadError, Watch};
use crate::entries::Entries;

/// A host that is not the first hears of others' changes so much later at the most.
const HEARS_AFTER_MAX: Duration = Duration::from_millis(10);

/// What all hosts share.
pub(super) struct Store {
    pub(super) state: Mutex<State>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) hosts: watch::Sender<Arc<[HostInfo]>>,
    ids_given: Mutex<u64>,
}

impl Store {
    pub(super) fn new(state: State, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(state),
            clock,
            hosts: watch::Sender::new(Arc::new([])),
            ids_given: Mutex::default(),
        })
    }

    /// A new host, which lives.
    pub(super) fn join(&self) -> HostId {
        let id = {
            let mut given = self.ids_given.lock();
            *given += 1;
            HostId(*given)
        };
        self.come_back(id);
        id
    }

    fn come_back(&self, id: HostId) {
        self.change_hosts(|hosts| {
            hosts.retain(|host| host.id != id);
            let address = format!("memory-{id}").into();
            hosts.push(HostInfo { id, address });
            hosts.sort_by_key(|host| host.id);
        });
    }

    /// It is taken for dead.
    pub(super) fn leave(&self, id: HostId) {
        self.change_hosts(|hosts| hosts.retain(|host| host.id != id));
    }

    pub(super) fn lives(&self, id: HostId) -> bool {
        self.hosts.borrow().iter().any(|host| host.id == id)
    }

    fn change_hosts(&self, change: impl FnOnce(&mut Vec<HostInfo>)) {
        self.hosts.send_modify(|hosts| {
            let mut changed = hosts.to_vec();
            change(&mut changed);
            *hosts = changed.into();
        });
    }
}

impl MemoryEngine {
    /// Another host on the same store. Of what others change it hears late: its ends, its catalogue and its watches are mirrors.
    #[must_use]
    pub fn second_host(&self) -> Arc<Self> {
        let mut mirror = Mirror::default();
        mirror.hear(&self.store.state.lock());
        let second = Arc::new(Self {
            store: Arc::clone(&self.store),
            host: self.store.join(),
            closed: AtomicBool::new(false),
            mirror: Some(Mutex::new(mirror)),
            place: Arc::default(),
        });
        let listening = Arc::downgrade(&second);
        std::thread::spawn(move || listen(&listening));
        second
    }

    /// As if the host's process, or the one that was last begun in its place, had ended without a word, and another one begun on what is there.
    #[must_use]
    pub fn restarted(&self) -> Arc<Self> {
        let mut last = self.place.lock();
        self.die();
        last.upgrade().iter().for_each(|last| last.die());
        let next = Arc::new(Self {
            store: Arc::clone(&self.store),
            host: self.store.join(),
            closed: AtomicBool::new(false),
            mirror: None,
            place: Arc::clone(&self.place),
        });
        *last = Arc::downgrade(&next);
        next
    }

    /// As if the host's process had ended, without a word: it is taken for dead at once, and does nothing any more.
    pub fn die(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.store.leave(self.host);
    }

    /// As if the host stood still for longer than its time: it is taken for dead, and does not know that.
    pub fn stall(&self) {
        self.store.leave(self.host);
    }

    /// It goes on after a [`stall`](Self::stall).
    pub fn come_back(&self) {
        self.store.come_back(self.host);
    }
}

/// Hears again and again, as long as there is somebody to hear.
fn listen(host: &Weak<MemoryEngine>) {
    loop {
        let most = HEARS_AFTER_MAX.as_micros() as u64;
        std::thread::sleep(Duration::from_micros(fastrand::u64(0..most)));
        let Some(host) = host.upgrade() else {
            return;
        };
        let state = host.store.state.lock();
        host.hear(&state);
    }
}

/// What a host has heard of.
#[derive(Default)]
pub(super) struct Mirror {
    topics: BTreeMap<TopicName, Topic>,
    entries: Entries,
    catalogue: watch::Sender<u64>,
    partitions: HashMap<TopicPartition, Known>,
}

struct Known {
    start: Offset,
    end: watch::Sender<Offset>,
}

/// A catalogue, as somebody sees it.
pub(super) struct Seen<'a> {
    pub(super) topics: &'a BTreeMap<TopicName, Topic>,
    pub(super) entries: &'a Entries,
    pub(super) catalogue: &'a watch::Sender<u64>,
}

impl<'a> Seen<'a> {
    pub(super) fn of(state: &'a State) -> Self {
        Self {
            topics: &state.topics,
            entries: &state.entries,
            catalogue: &state.catalogue,
        }
    }
}

impl Mirror {
    pub(super) fn seen(&self) -> Seen<'_> {
        Seen {
            topics: &self.topics,
            entries: &self.entries,
            catalogue: &self.catalogue,
        }
    }

    /// Takes over all that is.
    pub(super) fn hear(&mut self, state: &State) {
        self.partitions
            .retain(|id, _| state.partitions.contains_key(id));
        for (id, partition) in &state.partitions {
            let Ends { start, end } = partition.ends();
            let known = self.partitions.entry(*id).or_insert_with(|| Known {
                start,
                end: watch::Sender::new(end),
            });
            known.start = start;
            known.end.send_if_modified(|known| {
                let moves = *known != end;
                *known = end;
                moves
            });
        }
        let changes = *state.catalogue.borrow();
        if *self.catalogue.borrow() != changes {
            self.topics = state.topics.clone();
            self.entries = state.entries.clone();
            self.catalogue.send_replace(changes);
        }
    }

    pub(super) fn ends(&self, partition: TopicPartition) -> Result<Ends, ReadError> {
        let known = self.partition(partition)?;
        Ok(Ends {
            start: known.start,
            end: *known.end.borrow(),
        })
    }

    pub(super) fn watch(&self, partition: TopicPartition) -> Result<Watch, ReadError> {
        Ok(Watch::new(self.partition(partition)?.end.subscribe()))
    }

    fn partition(&self, partition: TopicPartition) -> Result<&Known, ReadError> {
        let unknown = ReadError::UnknownPartition(partition);
        self.partitions.get(&partition).ok_or(unknown)
    }
}

impl State {
    /// A group in a partition that is there.
    pub(super) fn group(
        &mut self,
        group: &Arc<str>,
        partition: TopicPartition,
    ) -> Result<&mut Group, CommitError> {
        let unknown = CommitError::UnknownPartition(partition);
        let partition = self.partitions.get_mut(&partition).ok_or(unknown)?;
        Ok(partition.groups.entry(Arc::clone(group)).or_default())
    }
}

impl Group {
    /// Whoever had it has it no longer; the epoch of the next lease.
    pub(super) fn take(&mut self) -> u64 {
        self.lost.send_replace(true);
        self.lost = watch::Sender::new(false);
        self.epoch += 1;
        self.epoch
    }
}
