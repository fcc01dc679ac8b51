//! What is committed of one group's state in one partition: the table that the engine, workers and readers share, and whose turn it is.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use millrace_model::Timestamp;
use parking_lot::{RwLock, RwLockReadGuard};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::resident::{Entries, TableChanges};
use super::{
    Adds, ENTRY_COST_BYTES, ENTRY_OVERHEAD_BYTES, StateEntry, StatePage, StateQuery, StateWrites,
};
use crate::room::{Room, RoomFull, Share};

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
        self.first_version.0 + self.entries.read().version()
    }

    /// How much there is.
    #[must_use]
    pub fn size(&self) -> StateSize {
        self.entries.read().size()
    }

    /// How much there would be after these writes.
    #[must_use]
    pub fn size_after(&self, writes: &StateWrites) -> StateSize {
        self.entries.read().size_after(writes)
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
        let page = self.entries.read().page(query);
        let version = self.first_version.0 + page.version;
        StatePage { version, ..page }
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
        self.change(|entries| entries.apply(writes));
    }

    /// An entry of the checkpoint.
    pub(crate) fn insert_stored(&self, slot: u64, entry: &StateEntry) {
        self.change(|entries| entries.insert_stored(slot, entry));
    }

    /// What changed since the last call.
    pub(crate) fn take_changes(&self) -> TableChanges {
        self.entries.write().take_changes()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{StateChange, StateValue};
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
