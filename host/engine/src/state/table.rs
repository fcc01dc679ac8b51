//! The committed state of one group in one partition: the table that the engine, workers and readers share, and whose turn it is.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use millrace_model::{GroupName, Timestamp};
use parking_lot::{MappedRwLockReadGuard, RwLock, RwLockReadGuard};
use tokio::sync::Mutex;

use super::ending::Ended;
use super::layer::{Layer, Met};
use super::lookup::{Seen, StateFetch, View, Wanted};
use super::paged::{LayersStep, Paged};
use super::picture::Picture;
use super::resident::{Entries, TableChanges};
use super::runs::RunSet;
use super::turn::{HeldTurn, Turn};
use super::{
    Adds, ENTRY_COST_BYTES, ENTRY_OVERHEAD_BYTES, StateChange, StateEntry, StateError, StatePage,
    StateQuery, StateWrites,
};
use crate::room::{Counted, Room, RoomFull, Share};

/// A table, shared by the engine, which changes it with each commit, and by its readers.
#[derive(Debug, Default)]
pub struct StateTable {
    held: RwLock<Held>,
    share: Share,
    first_version: FirstVersion,
    turn: Arc<Mutex<()>>,
}

#[derive(Debug, Default)]
struct Held {
    form: Form,
    /// Its use of the host's room.
    counted: Counted,
}

#[derive(Debug)]
enum Form {
    /// All of it is in memory.
    Resident(Entries),
    /// Memory has the changes; the rest is in runs.
    Paged(Paged),
}

impl Default for Form {
    fn default() -> Self {
        Self::Resident(Entries::default())
    }
}

impl Form {
    fn size(&self) -> StateSize {
        match self {
            Self::Resident(entries) => entries.size(),
            Self::Paged(paged) => paged.size(),
        }
    }

    /// How often it was written to.
    fn version(&self) -> u64 {
        match self {
            Self::Resident(entries) => entries.version(),
            Self::Paged(paged) => paged.version(),
        }
    }

    fn counted(&self) -> Counted {
        let (cost, unwritten) = match self {
            Self::Resident(entries) => (entries.size().cost(), 0),
            Self::Paged(paged) => (paged.cost(), paged.unwritten()),
        };
        Counted {
            cost,
            stored: self.size().bytes,
            unwritten,
        }
    }
}

/// What memory holds of a table beyond the next checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Footing {
    /// All of it, at this many bytes.
    Resident(usize),
    /// The index of its entries in files, this many bytes; it can be read again.
    Paged(usize),
}

/// Entries of a table, or where to read them.
#[derive(Debug)]
pub(crate) enum Reading {
    /// They were in memory.
    Page(StatePage),
    /// They are read from there, perhaps from the disk.
    Picture(Picture),
}

/// What a checkpoint has to write of a table.
#[derive(Clone, Debug)]
pub(crate) enum TableStep {
    /// Rows, of one that is in memory.
    Rows(TableChanges),
    /// A run, of one that is paged.
    Layers(LayersStep),
}

impl TableStep {
    /// Whether earlier steps about the table no longer count.
    pub(crate) fn says_all(&self) -> bool {
        match self {
            Self::Rows(changes) => changes.empties,
            // Each has everything that is not in a run yet.
            Self::Layers(_) => true,
        }
    }
}

/// The size of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateSize {
    /// Entries, including expired ones that are not removed yet.
    pub entries: usize,
    /// Bytes of keys and values, with [`ENTRY_OVERHEAD_BYTES`] for each entry.
    pub bytes: usize,
}

impl StateSize {
    /// Approximate memory; host bounds count this.
    #[must_use]
    pub fn cost(&self) -> usize {
        self.bytes + self.entries * (ENTRY_COST_BYTES - ENTRY_OVERHEAD_BYTES)
    }
}

/// The first version: random, so that versions differ after a restart. 52 bits, which every JSON reader handles exactly.
#[derive(Debug)]
struct FirstVersion(u64);

impl Default for FirstVersion {
    fn default() -> Self {
        Self(RandomState::new().hash_one(0) >> 12)
    }
}

impl Drop for StateTable {
    fn drop(&mut self) {
        let counted = self.held.get_mut().counted;
        self.share.moved(counted, Counted::default());
    }
}

impl StateTable {
    /// An empty one, which counts for the host's room.
    pub(crate) fn in_room(room: &Arc<Room>, group: &GroupName) -> Self {
        Self::default().into_room(room, group)
    }

    /// The same table, which counts for the host's room from now on.
    pub(crate) fn into_room(mut self, room: &Arc<Room>, group: &GroupName) -> Self {
        self.share = Share::of(room, group);
        let held = self.held.get_mut();
        held.counted = held.form.counted();
        self.share.moved(Counted::default(), held.counted);
        self
    }

    /// A paged one, as loaded from a checkpoint.
    pub(crate) fn paged(runs: Arc<RunSet>, size: StateSize) -> Self {
        let mut table = Self::default();
        table.held.get_mut().form = Form::Paged(Paged::stored(runs, size));
        table
    }

    /// The table's own maximum, regardless of the host's.
    #[must_use]
    pub fn bounds(&self) -> StateSize {
        self.share.bounds()
    }

    /// Whether the host has room for this, regardless of the table's own bounds.
    ///
    /// # Errors
    /// [`RoomFull`] names the bound.
    pub fn check_room(&self, more: Adds) -> Result<(), RoomFull> {
        self.share.check(more)
    }

    /// Changes the table, and updates its cost.
    fn change<T>(&self, change: impl FnOnce(&mut Form) -> T) -> T {
        let mut held = self.held.write();
        let done = change(&mut held.form);
        let counted = held.form.counted();
        self.share.moved(held.counted, counted);
        held.counted = counted;
        done
    }

    /// Waits for the exclusive right to read and then write. A writer that commits to a table takes it before its first read.
    pub async fn turn(self: &Arc<Self>) -> Turn {
        Turn::of(self).await
    }

    pub(super) fn turn_mutex(&self) -> &Arc<Mutex<()>> {
        &self.turn
    }

    /// Grows with everything that is written.
    pub(crate) fn version(&self) -> u64 {
        self.first_version.0 + self.held.read().form.version()
    }

    /// How much there is.
    #[must_use]
    pub fn size(&self) -> StateSize {
        self.held.read().form.size()
    }

    /// Whether memory has only a part of it, so that reading may need the disk.
    #[must_use]
    pub fn is_paged(&self) -> bool {
        matches!(self.held.read().form, Form::Paged(_))
    }

    /// The size after these writes. For a paged table, the present entries of their keys are read.
    ///
    /// # Errors
    /// [`StateError::Unreadable`].
    pub fn size_after(&self, writes: &StateWrites) -> Result<StateSize, StateError> {
        if writes.resets {
            return Ok(foretold(StateSize::default(), writes, |_| None));
        }
        if let Some(entries) = self.resident() {
            let weight = |key: &[u8]| entries.weight(key);
            return Ok(foretold(entries.size(), writes, weight));
        }
        let mut keys: Vec<&[u8]> = writes.changes.iter().map(|change| &*change.key).collect();
        keys.sort_unstable();
        keys.dedup();
        let mut seen = Seen::default();
        if let Some(mut fetch) = self.ask(None, &keys, Wanted::Lengths, &mut seen) {
            fetch.read()?;
            seen.take_in(fetch);
        }
        let view = View::Seen(&seen);
        let weight = |key: &[u8]| view.held(key).map(|held| held.weight());
        Ok(foretold(seen.size, writes, weight))
    }

    /// What these writes add; for the holder of the turn, because nobody else writes before they are committed.
    ///
    /// # Errors
    /// As [`StateTable::size_after`].
    pub fn adds(&self, writes: &StateWrites) -> Result<Adds, StateError> {
        let before = match writes.resets {
            true => StateSize::default(),
            false => self.size(),
        };
        Ok(Adds::between(before, self.size_after(writes)?))
    }

    /// Like [`StateTable::adds`], with reads from the disk on a separate thread.
    ///
    /// # Errors
    /// As [`StateTable::size_after`].
    pub async fn adds_in_time(
        self: &Arc<Self>,
        writes: &Arc<StateWrites>,
    ) -> Result<Adds, StateError> {
        if writes.resets || !self.is_paged() {
            return self.adds(writes);
        }
        let (table, writes) = (Arc::clone(self), Arc::clone(writes));
        let read = tokio::task::spawn_blocking(move || table.adds(&writes)).await;
        let failed = |_| Err(StateError::Unreadable("the reading thread failed".into()));
        read.unwrap_or_else(failed)
    }

    /// Maximum memory that these writes add to the table; zero if it shrinks.
    pub(crate) fn growth(&self, writes: &StateWrites) -> usize {
        let Some(entries) = self.resident() else {
            return writes.cost();
        };
        let (before, weight) = match writes.resets {
            true => (StateSize::default(), None),
            false => (entries.size(), Some(|key: &[u8]| entries.weight(key))),
        };
        let after = foretold(before, writes, |key| weight.as_ref().and_then(|w| w(key)));
        after.cost().saturating_sub(entries.size().cost())
    }

    /// How the size changes with these writes. Nothing is read for it: if the writes do not say it, only a table in memory knows it.
    pub(crate) fn stores(&self, writes: &StateWrites) -> i64 {
        let before = self.size().bytes as i64;
        let begin = match writes.resets {
            true => 0,
            false => before,
        };
        let after = match writes.adds {
            Some(adds) => begin.saturating_add(adds.bytes),
            None if writes.resets || !self.is_paged() => {
                let after = self.size_after(writes);
                after.map_or(before, |after| after.bytes as i64)
            }
            // It is refused.
            None => before,
        };
        after.saturating_sub(before)
    }

    /// Entries by key. `as_of` is left to the engine. Entries of a paged table are read from the disk.
    ///
    /// # Errors
    /// [`StateError::Unreadable`]; never of a table that is in memory.
    pub fn page(&self, query: &StateQuery) -> Result<StatePage, StateError> {
        match self.reading(query) {
            Reading::Page(page) => Ok(page),
            Reading::Picture(picture) => picture.page(query),
        }
    }

    /// Like [`StateTable::page`], but leaves reading from the disk to the caller; the page shows this moment, whenever it is read.
    pub(crate) fn reading(&self, query: &StateQuery) -> Reading {
        if let Some(picture) = self.picture() {
            return Reading::Picture(picture);
        }
        let page = self.resident().map(|entries| entries.page(query));
        let page = page.unwrap_or_default();
        let version = self.first_version.0 + page.version;
        Reading::Page(StatePage { version, ..page })
    }

    /// Passes the key of every entry, in order, including expired ones that are not removed yet.
    ///
    /// # Errors
    /// As for [`StateTable::page`]; keys passed before are correct.
    pub fn each_key(&self, mut see: impl FnMut(&[u8])) -> Result<(), StateError> {
        if let Some(picture) = self.picture() {
            return picture.each_key(see);
        }
        if let Some(entries) = self.resident() {
            entries.ordered.iter().for_each(|key| see(key));
        }
        Ok(())
    }

    /// The files of a paged table; `None` of one that is in memory.
    pub(crate) fn runs(&self) -> Option<Arc<RunSet>> {
        match &self.held.read().form {
            Form::Paged(paged) => Some(Arc::clone(paged.runs())),
            Form::Resident(_) => None,
        }
    }

    /// Whether memory has changes that are not in a file yet.
    pub(crate) fn has_unwritten(&self) -> bool {
        self.held.read().counted.unwritten > 0
    }

    /// The number of its files.
    pub(crate) fn run_count(&self) -> usize {
        match &self.held.read().form {
            Form::Paged(paged) => paged.runs().runs().len(),
            Form::Resident(_) => 0,
        }
    }

    /// A paged table as it is now; `None` of one that is in memory.
    pub(super) fn picture(&self) -> Option<Picture> {
        if !self.is_paged() {
            return None;
        }
        match &mut self.held.write().form {
            Form::Paged(paged) => {
                let mut picture = paged.picture();
                picture.version += self.first_version.0;
                Some(picture)
            }
            Form::Resident(_) => None,
        }
    }

    /// The entries, if all are in memory; nothing can be committed to the table while they are held.
    pub(super) fn resident(&self) -> Option<MappedRwLockReadGuard<'_, Entries>> {
        RwLockReadGuard::try_map(self.held.read(), |held| match &held.form {
            Form::Resident(entries) => Some(entries),
            Form::Paged(_) => None,
        })
        .ok()
    }

    /// Records what memory has for keys, which ascend: as in the picture, or now. The rest must be read from runs.
    pub(super) fn ask(
        &self,
        picture: Option<&Picture>,
        keys: &[&[u8]],
        wanted: Wanted,
        seen: &mut Seen,
    ) -> Option<StateFetch> {
        let mut left = Vec::new();
        let mut note = |key: &[u8], said: Option<Met<'_>>| match said {
            Some(said) => seen.note(key, Some(said)),
            None => left.push(Arc::from(key)),
        };
        let held;
        let (runs, size) = match picture {
            Some(picture) => {
                keys.iter().for_each(|key| note(key, picture.said(key)));
                (Arc::clone(&picture.runs), picture.size)
            }
            None => {
                held = self.held.read();
                match &held.form {
                    Form::Paged(paged) => {
                        keys.iter().for_each(|key| note(key, paged.said(key)));
                        (Arc::clone(paged.runs()), paged.size())
                    }
                    Form::Resident(entries) => {
                        let said = |key: &[u8]| {
                            let (key, entry) = entries.held(key)?;
                            Some((key, Some(&entry.value), entry.ends_at))
                        };
                        keys.iter().for_each(|key| note(key, said(key)));
                        (Arc::default(), entries.size())
                    }
                }
            }
        };
        seen.size = size;
        (!left.is_empty()).then(|| StateFetch::new(runs, wanted, left))
    }

    /// Removes up to this many expired entries, which count as absent in any case. Returns how many; none for a paged table, where
    /// removal is a write ([`StateTable::find_ended`]). Call it only while holding the turn: a batch relies on entries staying as they
    /// were when its turn began. [`StateTable::sweep_idle`] can be called by anyone.
    pub fn sweep(&self, now: Timestamp, entries_max: usize) -> usize {
        let has_ended = self.resident().is_some_and(|e| e.next_end() <= now);
        if !has_ended {
            return 0;
        }
        self.change(|form| match form {
            Form::Resident(entries) => entries.sweep(now, entries_max),
            Form::Paged(_) => 0,
        })
    }

    /// Like [`StateTable::sweep`], unless somebody has the turn.
    pub fn sweep_idle(&self, now: Timestamp, entries_max: usize) -> usize {
        let turn = self.turn.try_lock();
        turn.map_or(0, |_turn| self.sweep(now, entries_max))
    }

    /// Whether there may be expired entries that only a write removes: those of a paged table.
    #[must_use]
    pub fn may_have_ended(&self, now: Timestamp) -> bool {
        match &self.held.read().form {
            Form::Paged(paged) => paged.has_ended(now),
            Form::Resident(_) => false,
        }
    }

    /// Searches for expired entries of a paged table: up to this many, and no more than fit into this many bytes of a journal, except a
    /// single larger one. For the holder of the turn, to be removed with its commit; until then they are found again. May read from the
    /// disk.
    ///
    /// # Errors
    /// [`StateError::Unreadable`]; the next search is later then.
    pub fn find_ended(
        &self,
        now: Timestamp,
        entries_max: usize,
        bytes_max: usize,
    ) -> Result<Ended, StateError> {
        let picture = self.change(|form| match form {
            Form::Paged(paged) if paged.has_ended(now) => Some(paged.begin_look()),
            _ => None,
        });
        let Some(picture) = picture else {
            return Ok(Ended::default());
        };
        let found = picture.find_ended(now, entries_max, bytes_max);
        self.change(|form| {
            if let Form::Paged(paged) = form {
                paged.end_look(picture.version, now, found.as_ref());
            }
        });
        Ok(found?.ended)
    }

    /// As [`StateTable::turn`], if nobody else has it.
    pub(crate) fn try_turn(&self) -> Option<HeldTurn> {
        HeldTurn::try_of(&self.turn)
    }

    /// Whether it can apply these writes: for a paged table they must say how the size changes, and it must not become negative.
    pub(crate) fn can_apply(&self, writes: &StateWrites) -> bool {
        match &self.held.read().form {
            Form::Paged(paged) if !writes.resets => {
                let adds = writes.adds;
                adds.is_some_and(|adds| adds.after(paged.size()).is_some())
            }
            _ => true,
        }
    }

    /// Applies committed writes. A table that is emptied is in memory from then on.
    ///
    /// # Errors
    /// If it cannot ([`StateTable::can_apply`]); it has no effect then.
    pub(crate) fn apply(&self, writes: &StateWrites) -> Result<(), &'static str> {
        self.change(|form| {
            if let Form::Paged(paged) = form {
                if !writes.resets {
                    let applied = paged.apply(writes);
                    return applied.ok_or("the writes do not match the state");
                }
                *form = Form::Resident(Entries::after(paged.version()));
            }
            if let Form::Resident(entries) = form {
                entries.apply(writes);
            }
            Ok(())
        })
    }

    /// An entry of the checkpoint.
    pub(crate) fn insert_stored(&self, slot: u64, entry: &StateEntry) {
        self.change(|form| {
            if let Form::Resident(entries) = form {
                entries.insert_stored(slot, entry);
            }
        });
    }

    /// The changes since the last call, as rows; none for a paged table.
    pub(crate) fn take_changes(&self) -> TableChanges {
        match &mut self.held.write().form {
            Form::Resident(entries) => entries.take_changes(),
            Form::Paged(_) => TableChanges::default(),
        }
    }

    /// What a checkpoint must write; `None` if nothing. A table that should be paged, and is not empty, becomes so.
    pub(crate) fn take_step(self: &Arc<Self>, is_to_be_paged: bool) -> Option<TableStep> {
        self.change(|form| {
            if let Form::Resident(entries) = form
                && is_to_be_paged
                && entries.size().entries > 0
            {
                *form = Form::Paged(Paged::of(std::mem::take(entries)));
            }
            match form {
                Form::Resident(entries) => Some(TableStep::Rows(entries.take_changes())),
                Form::Paged(paged) => {
                    let step = paged.hand_over(Arc::downgrade(self));
                    step.map(TableStep::Layers)
                }
            }
        })
    }

    /// What memory holds of it in the long run.
    pub(crate) fn footing(&self) -> Footing {
        match &self.held.read().form {
            Form::Resident(entries) => Footing::Resident(entries.size().cost()),
            Form::Paged(paged) => Footing::Paged(paged.runs().cost()),
        }
    }

    /// Releases the index of its files; it is read again when needed.
    pub(crate) fn forget_maps(&self) {
        self.change(|form| {
            if let Form::Paged(paged) = form {
                paged.runs().runs().iter().for_each(|run| run.forget_map());
            }
        });
    }

    /// A durable checkpoint names these runs in place of `before` and the layers.
    pub(crate) fn install(
        &self,
        layers: &[Arc<Layer>],
        before: Option<&Arc<RunSet>>,
        runs: Arc<RunSet>,
    ) {
        self.change(|form| {
            if let Form::Paged(paged) = form {
                paged.install(layers, before, runs);
            }
        });
    }
}

/// The size after writes to a table of this size, in which keys have these sizes.
fn foretold(
    mut size: StateSize,
    writes: &StateWrites,
    weight: impl Fn(&[u8]) -> Option<usize>,
) -> StateSize {
    let changes = writes.changes.iter();
    let last: HashMap<&[u8], &StateChange> = changes.map(|c| (&*c.key, c)).collect();
    for (key, change) in last {
        let before = weight(key);
        size.entries += usize::from(change.value.is_some());
        size.entries = size.entries.saturating_sub(usize::from(before.is_some()));
        size.bytes = (size.bytes + change.weight()).saturating_sub(before.unwrap_or(0));
    }
    size
}
