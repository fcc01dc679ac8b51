//! A table in memory: its entries by key, in order and by expiry, and what the next checkpoint must write.

use std::collections::{BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use millrace_model::Timestamp;

use super::{
    ENTRY_OVERHEAD_BYTES, NEVER, StateChange, StateEntry, StatePage, StateQuery, StateSize,
    StateValue, StateWrites,
};

/// Empty buckets that a table may keep.
const BUCKETS_LEFT: usize = 1_024;

/// The entries, for reading.
#[derive(Debug, Default)]
pub(super) struct Entries {
    by_key: HashMap<Arc<[u8]>, Entry>,
    pub(super) ordered: BTreeSet<Arc<[u8]>>,
    ending: BTreeSet<(Timestamp, Arc<[u8]>)>,
    bytes: usize,
    /// The number of the next new entry.
    next_slot: u64,
    changed: Vec<Arc<[u8]>>,
    /// Numbers of removed entries.
    freed: Vec<u64>,
    emptied: bool,
    /// The number of writes to it.
    version: u64,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) value: StateValue,
    pub(super) ends_at: Timestamp,
    /// Its number in the checkpoint.
    slot: u64,
    changed: bool,
}

/// What the next checkpoint must write of a table.
#[derive(Clone, Debug, Default)]
pub struct TableChanges {
    /// Whether all rows are removed first.
    pub empties: bool,
    /// Rows to delete.
    pub freed: Vec<u64>,
    /// Rows to write.
    pub entries: Vec<(u64, StateEntry)>,
}

impl Entries {
    /// An empty table that replaces a paged one with this number of writes.
    pub(super) fn after(version: u64) -> Self {
        Self {
            version,
            ..Self::default()
        }
    }

    /// The number of writes to it.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// A page for [`StateTable::page`](super::StateTable::page); its version is the number of
    /// writes.
    pub(super) fn page(&self, query: &StateQuery) -> StatePage {
        let mut page = PageBuilder::new(query);
        let mut keys = range(&self.ordered, &query.prefix, query.after.as_deref());
        while !page.is_over()
            && let Some(key) = keys.next()
        {
            if let Some(entry) = self.get(key, query.now) {
                page.add(StateEntry {
                    key: Arc::clone(key),
                    value: entry.value.clone(),
                    ends_at: entry.ends_at,
                });
            }
        }
        page.end(self.size(), self.version)
    }

    /// Applies committed writes.
    pub(super) fn apply(&mut self, writes: &StateWrites) {
        self.version += 1;
        if writes.resets {
            self.empty();
        }
        for change in &writes.changes {
            self.change(change);
        }
        self.shrink();
    }

    /// Drops data that only row-by-row checkpoints need.
    pub(super) fn forget_slots(&mut self) {
        self.changed = Vec::new();
        self.freed = Vec::new();
    }

    /// Adds an entry from the checkpoint.
    pub(super) fn insert_stored(&mut self, slot: u64, entry: &StateEntry) {
        let next_slot = self.next_slot.max(slot + 1);
        self.next_slot = slot;
        self.insert(&entry.key, entry.value.clone(), entry.ends_at);
        self.next_slot = next_slot;
        let key = self.changed.pop();
        let stored = key.and_then(|key| self.by_key.get_mut(&key));
        stored.into_iter().for_each(|entry| entry.changed = false);
    }

    /// Changes since the last call.
    pub(super) fn take_changes(&mut self) -> TableChanges {
        let changed = std::mem::take(&mut self.changed);
        let mut taken = TableChanges {
            empties: std::mem::take(&mut self.emptied),
            freed: std::mem::take(&mut self.freed),
            entries: Vec::with_capacity(changed.len()),
        };
        for key in changed {
            let Some(entry) = self.by_key.get_mut(&key).filter(|e| e.changed) else {
                continue;
            };
            entry.changed = false;
            let (value, ends_at) = (entry.value.clone(), entry.ends_at);
            let row = StateEntry {
                key,
                value,
                ends_at,
            };
            taken.entries.push((entry.slot, row));
        }
        taken
    }

    /// The entry of a key, unless it has expired.
    pub(super) fn get(&self, key: &[u8], now: Timestamp) -> Option<&Entry> {
        self.by_key.get(key).filter(|entry| entry.ends_at > now)
    }

    /// The table's copy of the key, and its entry, which may have expired.
    pub(super) fn held(&self, key: &[u8]) -> Option<(&Arc<[u8]>, &Entry)> {
        self.by_key.get_key_value(key)
    }

    /// The size of the table, including expired entries.
    pub(super) fn size(&self) -> StateSize {
        StateSize {
            entries: self.by_key.len(),
            bytes: self.bytes,
        }
    }

    /// The size of a key's entry; `None` if there is none, not even an expired one.
    pub(super) fn weight(&self, key: &[u8]) -> Option<usize> {
        let entry = self.by_key.get(key)?;
        Some(weight(key, &entry.value))
    }

    /// When the next entry expires.
    pub(super) fn next_end(&self) -> Timestamp {
        self.ending.first().map_or(NEVER, |(at, _)| *at)
    }

    /// All ends, in order.
    pub(super) fn ends(&self) -> impl Iterator<Item = &(Timestamp, Arc<[u8]>)> {
        self.ending.iter()
    }

    fn change(&mut self, change: &StateChange) {
        match &change.value {
            Some(value) => self.insert(&change.key, value.clone(), change.ends_at),
            None => self.remove(&change.key),
        }
    }

    fn insert(&mut self, key: &Arc<[u8]>, value: StateValue, ends_at: Timestamp) {
        let Some(entry) = self.by_key.get_mut(key) else {
            return self.add(key, value, ends_at);
        };
        self.bytes = self.bytes + value.as_bytes().len() - entry.value.as_bytes().len();
        entry.value = value;
        let ended_before = std::mem::replace(&mut entry.ends_at, ends_at);
        if !std::mem::replace(&mut entry.changed, true) {
            self.changed.push(Arc::clone(key));
        }
        if ended_before != ends_at {
            self.ending.remove(&(ended_before, Arc::clone(key)));
            self.note_end(key, ends_at);
        }
    }

    fn add(&mut self, key: &Arc<[u8]>, value: StateValue, ends_at: Timestamp) {
        self.bytes += weight(key, &value);
        self.note_end(key, ends_at);
        self.ordered.insert(Arc::clone(key));
        self.changed.push(Arc::clone(key));
        let entry = Entry {
            value,
            ends_at,
            slot: self.next_slot,
            changed: true,
        };
        self.next_slot += 1;
        self.by_key.insert(Arc::clone(key), entry);
    }

    fn note_end(&mut self, key: &Arc<[u8]>, ends_at: Timestamp) {
        if ends_at != NEVER {
            self.ending.insert((ends_at, Arc::clone(key)));
        }
    }

    fn remove(&mut self, key: &Arc<[u8]>) {
        let Some(entry) = self.by_key.remove(key) else {
            return;
        };
        self.bytes -= weight(key, &entry.value);
        self.ordered.remove(key);
        if entry.ends_at != NEVER {
            self.ending.remove(&(entry.ends_at, Arc::clone(key)));
        }
        self.freed.push(entry.slot);
    }

    fn empty(&mut self) {
        *self = Self {
            // Numbers are not reused here: a running checkpoint may still use the old ones.
            next_slot: self.next_slot,
            version: self.version,
            emptied: true,
            ..Self::default()
        };
    }

    /// Releases excess buckets of a table that was larger.
    fn shrink(&mut self) {
        let count = self.by_key.len();
        if self.by_key.capacity() > BUCKETS_LEFT.max(8 * count) {
            self.by_key.shrink_to(2 * count);
        }
    }

    /// Removes up to this many expired entries; returns how many.
    pub(super) fn sweep(&mut self, now: Timestamp, entries_max: usize) -> usize {
        let mut swept = 0;
        while swept < entries_max
            && let Some((_, key)) = self.ending.first().filter(|(at, _)| *at <= now).cloned()
        {
            self.remove(&key);
            swept += 1;
        }
        self.shrink();
        swept
    }
}

/// Puts a page together, of entries in order.
pub(super) struct PageBuilder<'a> {
    query: &'a StateQuery,
    entries: Vec<StateEntry>,
    bytes: usize,
    has_more: bool,
}

impl<'a> PageBuilder<'a> {
    pub(super) fn new(query: &'a StateQuery) -> Self {
        Self {
            query,
            entries: Vec::new(),
            bytes: 0,
            has_more: false,
        }
    }

    /// Whether the page is full.
    pub(super) fn is_over(&self) -> bool {
        self.has_more
    }

    /// Adds the entry, unless it has expired, or the page is full: then there is more.
    pub(super) fn add(&mut self, entry: StateEntry) {
        if entry.ends_at <= self.query.now {
            return;
        }
        self.bytes += weight(&entry.key, &entry.value);
        let is_full = self.bytes > self.query.bytes_max && !self.entries.is_empty();
        self.has_more = is_full || self.entries.len() >= self.query.entries_max;
        if !self.has_more {
            self.entries.push(entry);
        }
    }

    pub(super) fn end(self, size: StateSize, version: u64) -> StatePage {
        StatePage {
            entries: self.entries,
            has_more: self.has_more,
            as_of: Default::default(),
            version,
            size,
        }
    }
}

/// The start of the keys with the prefix that come after one.
pub(super) fn after_of<'a>(prefix: &'a [u8], after: Option<&'a [u8]>) -> Bound<&'a [u8]> {
    match after {
        Some(after) if after >= prefix => Bound::Excluded(after),
        _ => Bound::Included(prefix),
    }
}

/// Keys with the prefix that come after one, in order.
pub(super) fn range<'a>(
    keys: &'a BTreeSet<Arc<[u8]>>,
    prefix: &'a [u8],
    after: Option<&[u8]>,
) -> impl Iterator<Item = &'a Arc<[u8]>> + use<'a> {
    let keys = keys.range::<[u8], _>((after_of(prefix, after), Bound::Unbounded));
    keys.take_while(move |key| key.starts_with(prefix))
}

/// The size of an entry.
pub(super) fn weight(key: &[u8], value: &StateValue) -> usize {
    weight_of(key.len(), value.as_bytes().len())
}

/// The size of an entry with a key and value of these lengths.
pub(super) fn weight_of(key_bytes: usize, value_bytes: usize) -> usize {
    key_bytes + value_bytes + ENTRY_OVERHEAD_BYTES
}
