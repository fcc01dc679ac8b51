//! A table that is in memory: its entries by key, in order and by their ends, and what of them the next checkpoint has to write.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use millrace_model::Timestamp;

use super::{
    ENTRY_OVERHEAD_BYTES, NEVER, StateChange, StateEntry, StatePage, StateQuery, StateSize,
    StateValue, StateWrites,
};

/// Buckets that a table may keep for nothing.
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
    /// Numbers of entries that are gone.
    freed: Vec<u64>,
    emptied: bool,
    /// How often it was written to.
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

/// What the next checkpoint has to write of a table.
#[derive(Clone, Debug, Default)]
pub(crate) struct TableChanges {
    /// Whether all rows go first.
    pub(crate) empties: bool,
    pub(crate) freed: Vec<u64>,
    pub(crate) entries: Vec<(u64, StateEntry)>,
}

impl Entries {
    /// How often it was written to.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// What [`StateTable::page`](super::StateTable::page) shows; its version is how often it was written to.
    pub(super) fn page(&self, query: &StateQuery) -> StatePage {
        let keys = range(&self.ordered, &query.prefix, query.after.as_deref());
        let mut shown = keys.filter_map(|key| {
            let entry = self.get(key, query.now)?;
            Some(StateEntry {
                key: Arc::clone(key),
                value: entry.value.clone(),
                ends_at: entry.ends_at,
            })
        });
        let (mut page, mut bytes) = (Vec::new(), 0);
        let has_more = loop {
            let Some(entry) = shown.next() else {
                break false;
            };
            bytes += weight(&entry.key, &entry.value);
            let is_full = bytes > query.bytes_max && !page.is_empty();
            if is_full || page.len() >= query.entries_max {
                break true;
            }
            page.push(entry);
        };
        drop(shown);
        StatePage {
            entries: page,
            has_more,
            as_of: Default::default(),
            version: self.version,
            size: self.size(),
        }
    }

    /// How much there would be after these writes.
    pub(super) fn size_after(&self, writes: &StateWrites) -> StateSize {
        let changes = writes.changes.iter();
        let last: HashMap<&[u8], &StateChange> = changes.map(|c| (&*c.key, c)).collect();
        let mut size = match writes.resets {
            true => StateSize::default(),
            false => self.size(),
        };
        for (key, change) in last {
            let before = self.weight(key).filter(|_| !writes.resets);
            size.entries += usize::from(change.value.is_some());
            size.entries -= usize::from(before.is_some());
            size.bytes = size.bytes + change.weight() - before.unwrap_or(0);
        }
        size
    }

    /// Takes over what is committed.
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

    /// An entry of the checkpoint.
    pub(super) fn insert_stored(&mut self, slot: u64, entry: &StateEntry) {
        let next_slot = self.next_slot.max(slot + 1);
        self.next_slot = slot;
        self.insert(&entry.key, entry.value.clone(), entry.ends_at);
        self.next_slot = next_slot;
        let key = self.changed.pop();
        let stored = key.and_then(|key| self.by_key.get_mut(&key));
        stored.into_iter().for_each(|entry| entry.changed = false);
    }

    /// What changed since the last call.
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

    /// The entry of a key, unless it has ended.
    pub(super) fn get(&self, key: &[u8], now: Timestamp) -> Option<&Entry> {
        self.by_key.get(key).filter(|entry| entry.ends_at > now)
    }

    /// The key as the table holds it, and its entry, which may have ended.
    pub(super) fn held(&self, key: &[u8]) -> Option<(&Arc<[u8]>, &Entry)> {
        self.by_key.get_key_value(key)
    }

    /// What the table holds, ended entries included.
    pub(super) fn size(&self) -> StateSize {
        StateSize {
            entries: self.by_key.len(),
            bytes: self.bytes,
        }
    }

    /// Bytes that the entry of a key counts for; `None` if there is none, not even an ended one.
    pub(super) fn weight(&self, key: &[u8]) -> Option<usize> {
        let entry = self.by_key.get(key)?;
        Some(weight(key, &entry.value))
    }

    /// When the next entry ends.
    pub(super) fn next_end(&self) -> Timestamp {
        self.ending.first().map_or(NEVER, |(at, _)| *at)
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
            // Numbers are not given again: a checkpoint may be on its way with the old ones.
            next_slot: self.next_slot,
            version: self.version,
            emptied: true,
            ..Self::default()
        };
    }

    /// Gives back what a table that was larger once holds of buckets.
    fn shrink(&mut self) {
        let count = self.by_key.len();
        if self.by_key.capacity() > BUCKETS_LEFT.max(8 * count) {
            self.by_key.shrink_to(2 * count);
        }
    }

    /// Removes entries that have ended, at most so many; how many it were.
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

/// Keys that begin with the prefix and come after one, in order.
pub(super) fn range<'a>(
    keys: &'a BTreeSet<Arc<[u8]>>,
    prefix: &'a [u8],
    after: Option<&[u8]>,
) -> impl Iterator<Item = &'a Arc<[u8]>> + use<'a> {
    use std::ops::Bound::{Excluded, Included, Unbounded};
    let from = match after {
        Some(after) if after >= prefix => Excluded(after),
        _ => Included(prefix),
    };
    let keys = keys.range::<[u8], _>((from, Unbounded));
    keys.take_while(move |key| key.starts_with(prefix))
}

/// What an entry counts for.
pub(super) fn weight(key: &[u8], value: &StateValue) -> usize {
    key.len() + value.as_bytes().len() + ENTRY_OVERHEAD_BYTES
}
