//! Several hosts on one store: which of them are alive, and what each has heard.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use millrace_model::{Clock, GroupName, Offset, Timestamp, Topic, TopicName, TopicPartition};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::MemoryEngine;
use super::link::Link;
use super::store::{Group, State};
use crate::contract::{CommitError, Ends, Hold, HostId, HostInfo, Lease, ReadError, Watch};
use crate::entries::Entries;
use crate::state::keeper::KeepTable as _;
use crate::state::{NEVER, StateChange, StateQuery, StateTable, StateWrites};

/// Maximum delay until a host that is not the first hears of others' changes.
const HEARS_AFTER_MAX: Duration = Duration::from_millis(10);

/// Shared by all hosts.
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

    /// A new, living host.
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
            let others = hosts.drain(..).filter(|host| host.id != id);
            let others = others.map(|host| (host.id, host.address, Some(host.seat)));
            let address = Arc::from(format!("memory-{id}"));
            *hosts = HostInfo::seated(others.chain([(id, address, None)]));
        });
    }

    /// It is considered dead.
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
    /// Another host on the same store. It hears of others' changes late: its ends, its catalogue and its watches are mirrors.
    #[must_use]
    pub fn second_host(&self) -> Arc<Self> {
        let mut mirror = Mirror::default();
        mirror.hear(&self.store.state.lock(), false);
        let second = Arc::new(Self {
            store: Arc::clone(&self.store),
            host: self.store.join(),
            closed: AtomicBool::new(false),
            mirror: Some(Mutex::new(mirror)),
            link: Link::default(),
            place: Arc::default(),
        });
        let listening = Arc::downgrade(&second);
        std::thread::spawn(move || listen(&listening));
        second
    }

    /// Simulates that the host's process, or its last replacement, ended without notice, and that a new one started on the same store.
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
            link: Link::default(),
            place: Arc::clone(&self.place),
        });
        *last = Arc::downgrade(&next);
        next
    }

    /// Simulates that the host's process ended without notice: it is considered dead at once, and does nothing more.
    pub fn die(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.store.leave(self.host);
    }

    /// Simulates that the host stood still for longer than its time: it is considered dead, and does not know it.
    pub fn stall(&self) {
        self.store.leave(self.host);
    }

    /// It continues after a [`stall`](Self::stall).
    pub fn come_back(&self) {
        self.store.come_back(self.host);
    }
}

/// Hears of changes repeatedly, while the host exists.
fn listen(host: &Weak<MemoryEngine>) {
    loop {
        let most = HEARS_AFTER_MAX.as_micros() as u64;
        std::thread::sleep(Duration::from_micros(fastrand::u64(0..most)));
        let Some(host) = host.upgrade() else {
            return;
        };
        for late in host.link.take_late() {
            // It is cut off for good.
            let _ = host.commit_now(late);
        }
        if host.link.check().is_ok() {
            let state = host.store.state.lock();
            host.hear(&state);
        }
    }
}

/// What a host has heard.
#[derive(Default)]
pub(super) struct Mirror {
    topics: BTreeMap<TopicName, Topic>,
    entries: Entries,
    catalogue: watch::Sender<u64>,
    partitions: HashMap<TopicPartition, Known>,
    tables: HashMap<(TopicPartition, GroupName), Mirrored>,
}

/// This host's copy of a table.
struct Mirrored {
    table: Arc<StateTable>,
    /// The store's version that it is a copy of.
    of: Option<u64>,
}

struct Known {
    start: Offset,
    end: watch::Sender<Offset>,
}

/// A catalogue as a host sees it.
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

    /// Copies everything.
    pub(super) fn hear(&mut self, state: &State, is_deaf: bool) {
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
        self.tables.retain(|(at, group), copy| {
            let partition = state.partitions.get(at);
            let group = partition.and_then(|partition| partition.groups.get(group));
            let table = group.and_then(|group| group.state.as_ref());
            table.inspect(|table| copy.hear(table)).is_some()
        });
        let changes = *state.catalogue.borrow();
        if !is_deaf && *self.catalogue.borrow() != changes {
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

    /// The copy of a table, brought up to date.
    pub(super) fn table(
        &mut self,
        group: &GroupName,
        partition: TopicPartition,
        stored: &StateTable,
    ) -> Arc<StateTable> {
        let key = (partition, group.clone());
        let copy = self.tables.entry(key).or_insert_with(|| Mirrored {
            table: Arc::default(),
            of: None,
        });
        copy.hear(stored);
        Arc::clone(&copy.table)
    }

    fn partition(&self, partition: TopicPartition) -> Result<&Known, ReadError> {
        let unknown = ReadError::UnknownPartition(partition);
        self.partitions.get(&partition).ok_or(unknown)
    }
}

impl Mirrored {
    fn hear(&mut self, stored: &StateTable) {
        let version = Some(stored.version());
        if self.of == version {
            return;
        }
        self.of = version;
        let all = |table: &StateTable| {
            let everything = StateQuery {
                entries_max: usize::MAX,
                bytes_max: usize::MAX,
                // None has ended then.
                now: Timestamp(0),
                ..StateQuery::default()
            };
            // It is in memory.
            let entries = table
                .page(&everything)
                .unwrap_or_default()
                .entries
                .into_iter();
            let by_key = entries.map(|entry| (entry.key, (entry.value, entry.ends_at)));
            by_key.collect::<BTreeMap<_, _>>()
        };
        let (stored, known) = (all(stored), all(&self.table));
        let gone = known.keys().filter(|key| !stored.contains_key(*key));
        let gone = gone.map(|key| StateChange {
            key: Arc::clone(key),
            value: None,
            ends_at: NEVER,
        });
        let new = stored
            .iter()
            .filter(|(key, entry)| known.get(*key) != Some(entry));
        let new = new.map(|(key, (value, ends_at))| StateChange {
            key: Arc::clone(key),
            value: Some(value.clone()),
            ends_at: *ends_at,
        });
        let changes: Vec<StateChange> = gone.chain(new).collect();
        if !changes.is_empty() {
            let applied = self.table.apply(&StateWrites {
                changes,
                ..StateWrites::default()
            });
            debug_assert_eq!(applied, Ok(()), "its tables are in memory");
            // There is no checkpoint to write it.
            self.table.take_changes();
        }
    }
}

impl State {
    /// A group in an existing partition.
    pub(super) fn group(
        &mut self,
        group: &GroupName,
        partition: TopicPartition,
    ) -> Result<&mut Group, CommitError> {
        let unknown = CommitError::UnknownPartition(partition);
        let partition = self.partitions.get_mut(&partition).ok_or(unknown)?;
        Ok(partition.groups.entry(group.clone()).or_default())
    }
}

impl Group {
    /// The previous holder loses it.
    pub(super) fn take(
        &mut self,
        group: &GroupName,
        partition: TopicPartition,
        left: bool,
    ) -> Hold {
        self.lost.send_replace(true);
        self.lost = watch::Sender::new(false);
        self.epoch += 1;
        let lease = Lease {
            group: group.clone(),
            partition,
            epoch: self.epoch,
        };
        Hold::new(lease, left, self.lost.subscribe())
    }

    /// A dead holder left it.
    pub(super) fn leave_if(&mut self, is_dead: impl FnOnce(HostId) -> bool) {
        if let Some(dead) = self.holder.filter(|holder| is_dead(holder.host)) {
            self.left |= dead.works;
            self.holder = None;
        }
    }
}
