//! What is committed of one group's state in one partition, and what of it the next checkpoint has to write.

use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use millrace_model::Timestamp;
use parking_lot::{RwLock, RwLockReadGuard};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::{
    Adds, ENTRY_COST_BYTES, ENTRY_OVERHEAD_BYTES, NEVER, StateChange, StateEntry, StatePage,
    StateQuery, StateValue, StateWrites,
};
use crate::room::{Room, RoomFull, Share};

/// Buckets that a table may keep for nothing.
const BUCKETS_LEFT: usize = 1_024;

/// A table, shared by the engine, which changes it with each commit, and by those who read.
#[derive(Debug, Default)]
pub struct StateTable {
    entries: RwLock<Entries>,
    share: Share,
    first_version: FirstVersion,
    turn: Arc<Mutex<()>>,
}

/// The right to read, and then write, what nobody else writes meanwhile.
#[derive(Debug)]
pub struct Turn {
    table: Arc<StateTable>,
    held: Option<HeldTurn>,
    version: u64,
}

/// A turn that lasts until everybody has let go of it: whoever commits hands it over with his writes, so that nobody else reads before
/// they are applied, even if the one who commits does not live to see it.
#[derive(Clone, Debug)]
pub struct HeldTurn {
    _guard: Arc<OwnedMutexGuard<()>>,
}

impl HeldTurn {
    async fn of(turn: &Arc<Mutex<()>>) -> Self {
        Self {
            _guard: Arc::new(Arc::clone(turn).lock_owned().await),
        }
    }
}

impl Turn {
    /// Gives the right up for a while: whoever has to wait lets others write.
    pub fn pause(&mut self) {
        self.version = self.table.version();
        self.held = None;
    }

    /// Takes it again after a pause; whether nobody wrote meanwhile, so that what was read still holds.
    pub async fn resume(&mut self) -> bool {
        if self.held.is_none() {
            self.held = Some(HeldTurn::of(&self.table.turn).await);
        }
        self.version == self.table.version()
    }

    /// To be handed over with writes; `None` during a pause.
    #[must_use]
    pub fn held(&self) -> Option<HeldTurn> {
        self.held.clone()
    }
}

/// How much there is in a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateSize {
    /// Entries, ended ones that are not removed yet included.
    pub entries: usize,
    /// Bytes of keys and values, with [`ENTRY_OVERHEAD_BYTES`] for each entry.
    pub bytes: usize,
}

impl StateSize {
    /// Bytes that it takes in memory, about; what a host's bounds are about.
    #[must_use]
    pub fn cost(&self) -> usize {
        self.bytes + self.entries * (ENTRY_COST_BYTES - ENTRY_OVERHEAD_BYTES)
    }
}

/// Where versions begin: by chance, so that they are others after a restart. 52 bits, which every reader of JSON understands.
#[derive(Debug)]
struct FirstVersion(u64);

impl Default for FirstVersion {
    fn default() -> Self {
        Self(RandomState::new().hash_one(0) >> 12)
    }
}

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

impl Drop for StateTable {
    fn drop(&mut self) {
        self.share.moved(self.entries.get_mut().size().cost(), 0);
    }
}

impl StateTable {
    /// An empty one, which counts for the host's room.
    pub(crate) fn in_room(room: &Arc<Room>, group: &str) -> Self {
        Self::default().into_room(room, group)
    }

    /// The same table, which counts for the host's room from now on.
    pub(crate) fn into_room(mut self, room: &Arc<Room>, group: &str) -> Self {
        self.share = Share::of(room, group);
        let cost = self.entries.get_mut().size().cost();
        self.share.moved(0, cost);
        self
    }

    /// Whether the host has room for so many bytes more, whatever the table's own bounds say.
    ///
    /// # Errors
    /// [`RoomFull`] names the bound.
    pub fn check_room(&self, more: usize) -> Result<(), RoomFull> {
        self.share.check(more)
    }

    /// Changes the entries, and counts what they cost then.
    fn change<T>(&self, change: impl FnOnce(&mut Entries) -> T) -> T {
        let mut entries = self.entries.write();
        let before = entries.size().cost();
        let done = change(&mut entries);
        self.share.moved(before, entries.size().cost());
        done
    }

    /// Waits for the right to read, and then write, what nobody else writes meanwhile. Whoever commits writes of a table takes it
    /// before the first read.
    pub async fn turn(self: &Arc<Self>) -> Turn {
        let held = HeldTurn::of(&self.turn).await;
        Turn {
            version: self.version(),
            table: Arc::clone(self),
            held: Some(held),
        }
    }

    /// Grows with everything that is written.
    pub(crate) fn version(&self) -> u64 {
        self.first_version.0 + self.entries.read().version
    }

    /// How much there is.
    #[must_use]
    pub fn size(&self) -> StateSize {
        let entries = self.entries.read();
        StateSize {
            entries: entries.by_key.len(),
            bytes: entries.bytes,
        }
    }

    /// How much there would be after these writes.
    #[must_use]
    pub fn size_after(&self, writes: &StateWrites) -> StateSize {
        let changes = writes.changes.iter();
        let last: HashMap<&[u8], &StateChange> = changes.map(|c| (&*c.key, c)).collect();
        let entries = self.entries.read();
        let mut size = match writes.resets {
            true => StateSize::default(),
            false => entries.size(),
        };
        for (key, change) in last {
            let before = entries.weight(key).filter(|_| !writes.resets);
            size.entries += usize::from(change.value.is_some());
            size.entries -= usize::from(before.is_some());
            size.bytes = size.bytes + change.weight() - before.unwrap_or(0);
        }
        size
    }

    /// What these writes add; for whoever has the turn, as nobody else writes before they are committed.
    #[must_use]
    pub fn adds(&self, writes: &StateWrites) -> Adds {
        let before = match writes.resets {
            true => StateSize::default(),
            false => self.size(),
        };
        Adds::between(before, self.size_after(writes))
    }

    /// Bytes that these writes add to what the table costs; none if it costs less afterwards.
    pub(crate) fn growth(&self, writes: &StateWrites) -> usize {
        let after = self.size_after(writes).cost();
        after.saturating_sub(self.size().cost())
    }

    /// Entries by key. `as_of` is left to the engine.
    #[must_use]
    pub fn page(&self, query: &StateQuery) -> StatePage {
        let entries = self.entries.read();
        let keys = range(&entries.ordered, &query.prefix, query.after.as_deref());
        let mut shown = keys.filter_map(|key| {
            let entry = entries.get(key, query.now)?;
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
            version: self.first_version.0 + entries.version,
            size: entries.size(),
        }
    }

    /// Hands over the key of every entry, in order, ended ones that are not removed yet included.
    pub fn each_key(&self, mut see: impl FnMut(&[u8])) {
        let entries = self.entries.read();
        entries.ordered.iter().for_each(|key| see(key));
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, Entries> {
        self.entries.read()
    }

    /// Removes entries that have ended, at most so many; they count as absent in any case. How many it were. Whoever has the
    /// table's turn may count on what an entry was at the beginning of it, so this is his to do; [`StateTable::sweep_idle`] is
    /// anybody's.
    pub fn sweep(&self, now: Timestamp, entries_max: usize) -> usize {
        let has_ended = self.entries.read().next_end() <= now;
        if !has_ended {
            return 0;
        }
        self.change(|entries| entries.sweep(now, entries_max))
    }

    /// As [`StateTable::sweep`], unless somebody has the turn.
    pub fn sweep_idle(&self, now: Timestamp, entries_max: usize) -> usize {
        let turn = self.turn.try_lock();
        turn.map_or(0, |_turn| self.sweep(now, entries_max))
    }

    /// Takes over what is committed.
    pub(crate) fn apply(&self, writes: &StateWrites) {
        self.change(|entries| {
            entries.version += 1;
            if writes.resets {
                entries.empty();
            }
            for change in &writes.changes {
                entries.change(change);
            }
            entries.shrink();
        });
    }

    /// An entry of the checkpoint.
    pub(crate) fn insert_stored(&self, slot: u64, entry: &StateEntry) {
        self.change(|entries| {
            let next_slot = entries.next_slot.max(slot + 1);
            entries.next_slot = slot;
            entries.insert(&entry.key, entry.value.clone(), entry.ends_at);
            entries.next_slot = next_slot;
            let key = entries.changed.pop();
            let stored = key.and_then(|key| entries.by_key.get_mut(&key));
            stored.into_iter().for_each(|entry| entry.changed = false);
        });
    }

    /// What changed since the last call.
    pub(crate) fn take_changes(&self) -> TableChanges {
        let mut entries = self.entries.write();
        let changed = std::mem::take(&mut entries.changed);
        let mut taken = TableChanges {
            empties: std::mem::take(&mut entries.emptied),
            freed: std::mem::take(&mut entries.freed),
            entries: Vec::with_capacity(changed.len()),
        };
        for key in changed {
            let Some(entry) = entries.by_key.get_mut(&key).filter(|e| e.changed) else {
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
}

impl Entries {
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

    fn next_end(&self) -> Timestamp {
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

    fn sweep(&mut self, now: Timestamp, entries_max: usize) -> usize {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn write(key: &str, value: Option<&str>, ends_at: u64) -> StateChange {
        StateChange {
            key: key.as_bytes().into(),
            value: value.map(|value| StateValue::new(value.as_bytes())),
            ends_at: Timestamp(ends_at),
        }
    }

    fn writes(changes: Vec<StateChange>) -> StateWrites {
        StateWrites {
            resets: false,
            changes,
            adds: None,
        }
    }

    fn keys(table: &StateTable, prefix: &str, now: u64) -> Vec<String> {
        let page = table.page(&StateQuery {
            prefix: prefix.into(),
            entries_max: 100,
            bytes_max: usize::MAX,
            now: Timestamp(now),
            ..StateQuery::default()
        });
        let key = |entry: &StateEntry| String::from_utf8_lossy(&entry.key).into_owned();
        page.entries.iter().map(key).collect()
    }

    #[test]
    fn a_checkpoint_is_told_what_changed_and_nothing_else() {
        let table = StateTable::default();
        table.apply(&writes(vec![
            write("a", Some("1"), u64::MAX),
            write("b", Some("2"), u64::MAX),
        ]));
        assert_eq!(table.take_changes().entries.len(), 2);
        assert!(table.take_changes().entries.is_empty());
        table.apply(&writes(vec![
            write("a", None, 0),
            write("b", Some("3"), u64::MAX),
        ]));
        table.apply(&writes(vec![write("a", Some("4"), u64::MAX)]));
        let changes = table.take_changes();
        assert_eq!(changes.freed, [0]);
        let slots: Vec<u64> = changes.entries.iter().map(|(slot, _)| *slot).collect();
        assert_eq!(slots, [1, 2]);
    }

    #[test]
    fn what_was_stored_is_no_change() {
        let (before, after) = (StateTable::default(), StateTable::default());
        before.apply(&writes(vec![
            write("a", Some("1"), 5),
            write("b", Some("2"), u64::MAX),
        ]));
        for (slot, entry) in before.take_changes().entries {
            after.insert_stored(slot, &entry);
        }
        assert!(after.take_changes().entries.is_empty());
        assert_eq!(after.size(), before.size());
        after.apply(&writes(vec![write("c", Some("3"), u64::MAX)]));
        assert_eq!(after.take_changes().entries[0].0, 2);
    }

    #[test]
    fn ended_entries_are_absent_and_then_gone() {
        let table = StateTable::default();
        table.apply(&writes(vec![
            write("a", Some("1"), 10),
            write("b", Some("2"), 20),
        ]));
        table.apply(&writes(vec![write("b", Some("2"), 30)]));
        assert_eq!(keys(&table, "", 9), ["a", "b"]);
        assert_eq!(keys(&table, "", 10), ["b"]);
        let turn = table.turn.try_lock().unwrap();
        assert_eq!(
            table.sweep_idle(Timestamp(25), 100),
            0,
            "somebody is at work"
        );
        drop(turn);
        table.sweep_idle(Timestamp(25), 100);
        assert_eq!(table.size().entries, 1);
        table.sweep(Timestamp(30), 100);
        assert_eq!(table.size(), StateSize::default());
    }

    #[test]
    fn keys_are_listed_in_order_by_prefix_and_after_another() {
        let table = StateTable::default();
        let all = ["b", "ab", "a", "abc", "ac"];
        let changes = all.map(|key| write(key, Some(""), u64::MAX));
        table.apply(&writes(changes.to_vec()));
        assert_eq!(keys(&table, "a", 0), ["a", "ab", "abc", "ac"]);
        let after = |key: &[u8]| StateQuery {
            prefix: b"a".to_vec(),
            after: Some(key.to_vec()),
            entries_max: 1,
            bytes_max: 0,
            now: Timestamp(0),
        };
        let page = table.page(&after(b"ab"));
        assert_eq!((&*page.entries[0].key, page.has_more), (&b"abc"[..], true));
        assert!(!table.page(&after(b"abc")).has_more);
        assert!(table.page(&after(b"b")).entries.is_empty());
    }

    #[test]
    fn pages_of_one_version_have_nothing_written_between_them() {
        let table = StateTable::default();
        let version = || table.page(&StateQuery::default()).version;
        let first = version();
        assert_eq!(version(), first);
        table.apply(&writes(vec![write("absent", None, u64::MAX)]));
        assert_ne!(version(), first);
        let resets = StateWrites {
            resets: true,
            ..StateWrites::default()
        };
        table.apply(&resets);
        assert_eq!(version(), first + 2);
    }

    #[test]
    fn a_page_ends_at_its_bytes_and_has_one_entry_at_least() {
        let table = StateTable::default();
        let all = ["a", "b", "c"].map(|key| write(key, Some("123"), u64::MAX));
        table.apply(&writes(all.to_vec()));
        let page = |bytes_max| {
            let page = table.page(&StateQuery {
                entries_max: 3,
                bytes_max,
                ..StateQuery::default()
            });
            (page.entries.len(), page.has_more)
        };
        let entry = 4 + ENTRY_OVERHEAD_BYTES;
        assert_eq!(page(0), (1, true));
        assert_eq!(page(2 * entry), (2, true));
        assert_eq!(page(3 * entry - 1), (2, true));
        assert_eq!(page(3 * entry), (3, false));
    }

    #[test]
    fn the_size_after_writes_is_known_before_them() {
        let table = StateTable::default();
        table.apply(&writes(vec![
            write("a", Some("long before"), u64::MAX),
            write("b", Some("2"), u64::MAX),
        ]));
        let changes = vec![
            write("a", Some("1"), u64::MAX),
            write("b", None, u64::MAX),
            write("absent", None, u64::MAX),
            write("c", Some("first"), u64::MAX),
            write("c", Some("twice"), u64::MAX),
        ];
        for resets in [false, true, false] {
            let writes = StateWrites {
                resets,
                changes: changes.clone(),
                adds: None,
            };
            let foretold = table.size_after(&writes);
            let before = match resets {
                true => StateSize::default(),
                false => table.size(),
            };
            assert_eq!(table.adds(&writes).after(before), Some(foretold));
            table.apply(&writes);
            assert_eq!(table.size(), foretold);
            assert_eq!(foretold.entries, 2);
        }
    }

    #[test]
    fn an_emptied_table_has_no_bytes_and_gives_no_number_again() {
        let table = StateTable::default();
        table.apply(&writes(vec![write("a", Some("1"), u64::MAX)]));
        table.apply(&StateWrites {
            resets: true,
            changes: vec![write("a", Some("2"), u64::MAX)],
            adds: None,
        });
        let changes = table.take_changes();
        assert!(changes.empties);
        assert_eq!(changes.entries[0].0, 1);
        assert_eq!(table.size().entries, 1);
    }
}
