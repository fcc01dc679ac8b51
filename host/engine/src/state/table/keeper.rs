//! The verbs with which an engine maintains its tables of state. They are in a separate trait, so
//! that code that only reads state, or writes it with transactions, does not see them.
//!
//! 1. **Created** empty within the host's room ([`KeepTable::in_room`]), or from stored data
//!    ([`KeepTable::insert_stored`], [`KeepTable::paged`]) and then moved into that room
//!    ([`KeepTable::into_room`]).
//! 2. **Checked** before anything is written: whether a table can apply writes
//!    ([`KeepTable::can_apply`]), and how much more memory and storage it then takes
//!    ([`KeepTable::growth`], [`KeepTable::stores`]).
//! 3. **Changed** with each commit, in the order of commits ([`KeepTable::apply`]). Reads see the
//!    change from then on.
//! 4. **Stored** whenever the engine chooses: [`KeepTable::take_step`] returns the changes since
//!    the last time. A paged table reads from stored data ([`Stored`]) once that is durable and
//!    [`KeepTable::install`] was called.
//!
//! An engine that keeps tables only in memory needs only the first three, and drops what
//! [`KeepTable::take_changes`] returns.

use std::sync::Arc;

use millrace_model::GroupName;

pub use super::super::layer::Layer;
pub use super::super::paged::LayersStep;
use super::super::paged::Paged;
use super::super::picture::Picture;
use super::super::resident::Entries;
pub use super::super::resident::TableChanges;
pub use super::super::stored::{
    Reach, Stored, StoredEntries, StoredEntry, StoredPlace, StoredPlaces, StoredValue,
};
use super::super::{StateEntry, StatePage, StateQuery, StateWrites};
use super::{Form, StateSize, StateTable, foretold};
use crate::room::{Counted, Room, Share};

/// How much of a table stays in memory after the next checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Footing {
    /// All of it: this many bytes.
    Resident(usize),
    /// Only indexes of its stored entries: this many bytes, which can be rebuilt.
    Paged(usize),
}

/// Entries of a table, or where to read them.
#[derive(Debug)]
pub enum Reading {
    /// Entries that were in memory.
    Page(StatePage),
    /// A picture to read them from, perhaps from the disk.
    Picture(Picture),
}

/// What a checkpoint must write of a table.
#[derive(Clone, Debug)]
pub enum TableStep {
    /// Rows, for a table in memory.
    Rows(TableChanges),
    /// Changes that are not stored yet, for a paged table.
    Layers(LayersStep),
}

impl TableStep {
    /// Whether earlier steps about the table no longer count.
    pub fn says_all(&self) -> bool {
        match self {
            Self::Rows(changes) => changes.empties,
            // Each step has all changes that are not stored yet.
            Self::Layers(_) => true,
        }
    }
}

/// The verbs of engines that maintain tables.
pub trait KeepTable: Sized {
    /// An empty table that counts for the host's room.
    fn in_room(room: &Arc<Room>, group: &GroupName) -> Self;

    /// The same table, which counts for the host's room from now on.
    fn into_room(self, room: &Arc<Room>, group: &GroupName) -> Self;

    /// A paged table whose whole content is stored.
    fn paged(stored: Arc<dyn Stored>, size: StateSize) -> Self;

    /// Whether it can apply these writes: for a paged table they must say how the size changes, and it must not become negative.
    fn can_apply(&self, writes: &StateWrites) -> bool;

    /// Maximum memory that these writes add to the table; zero if it shrinks.
    fn growth(&self, writes: &StateWrites) -> usize;

    /// How the size changes with these writes. Nothing is read for it: if the writes do not say it, only a table in memory knows it.
    fn stores(&self, writes: &StateWrites) -> i64;

    /// Applies committed writes. A table that is emptied is in memory from then on.
    ///
    /// # Errors
    /// If it cannot ([`KeepTable::can_apply`]); nothing was done.
    fn apply(&self, writes: &StateWrites) -> Result<(), &'static str>;

    /// Like [`StateTable::page`], but leaves reading from the disk to the caller; the page shows this moment, whenever it is read.
    fn reading(&self, query: &StateQuery) -> Reading;

    /// Adds an entry from the checkpoint.
    fn insert_stored(&self, slot: u64, entry: &StateEntry);

    /// The changes since the last call, as rows; none for a paged table.
    fn take_changes(&self) -> TableChanges;

    /// What a checkpoint must write; `None` if nothing. A table that should be paged, and is not empty, becomes so.
    fn take_step(self: &Arc<Self>, is_to_be_paged: bool) -> Option<TableStep>;

    /// Says that this durable stored data now replaces `before` and the layers. Does nothing if the
    /// table has others by now.
    fn install(
        &self,
        layers: &[Arc<Layer>],
        before: Option<&Arc<dyn Stored>>,
        stored: Arc<dyn Stored>,
    );

    /// The stored part of a paged table; `None` for one in memory.
    fn stored(&self) -> Option<Arc<dyn Stored>>;

    /// The number of parts in which it is stored.
    fn part_count(&self) -> usize;

    /// Whether it has changes that must still be stored.
    fn has_unwritten(&self) -> bool;

    /// How much of it stays in memory.
    fn footing(&self) -> Footing;

    /// Frees the memory for finding its stored entries, which is rebuilt on demand.
    fn forget_cost(&self);
}

impl KeepTable for StateTable {
    fn in_room(room: &Arc<Room>, group: &GroupName) -> Self {
        Self::default().into_room(room, group)
    }

    fn into_room(mut self, room: &Arc<Room>, group: &GroupName) -> Self {
        self.share = Share::of(room, group);
        let held = self.held.get_mut();
        held.counted = held.form.counted();
        self.share.moved(Counted::default(), held.counted);
        self
    }

    fn paged(stored: Arc<dyn Stored>, size: StateSize) -> Self {
        let mut table = Self::default();
        table.held.get_mut().form = Form::Paged(Paged::stored(stored, size));
        table
    }

    fn can_apply(&self, writes: &StateWrites) -> bool {
        match &self.held.read().form {
            Form::Paged(paged) if !writes.resets => {
                let adds = writes.adds;
                adds.is_some_and(|adds| adds.after(paged.size()).is_some())
            }
            _ => true,
        }
    }

    fn growth(&self, writes: &StateWrites) -> usize {
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

    fn stores(&self, writes: &StateWrites) -> i64 {
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
            // The writes are refused.
            None => before,
        };
        after.saturating_sub(before)
    }

    fn apply(&self, writes: &StateWrites) -> Result<(), &'static str> {
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

    fn reading(&self, query: &StateQuery) -> Reading {
        if let Some(picture) = self.picture() {
            return Reading::Picture(picture);
        }
        Reading::Page(self.resident_page(query))
    }

    fn insert_stored(&self, slot: u64, entry: &StateEntry) {
        self.change(|form| {
            if let Form::Resident(entries) = form {
                entries.insert_stored(slot, entry);
            }
        });
    }

    fn take_changes(&self) -> TableChanges {
        match &mut self.held.write().form {
            Form::Resident(entries) => entries.take_changes(),
            Form::Paged(_) => TableChanges::default(),
        }
    }

    fn take_step(self: &Arc<Self>, is_to_be_paged: bool) -> Option<TableStep> {
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

    fn install(
        &self,
        layers: &[Arc<Layer>],
        before: Option<&Arc<dyn Stored>>,
        stored: Arc<dyn Stored>,
    ) {
        self.change(|form| {
            if let Form::Paged(paged) = form {
                paged.install(layers, before, stored);
            }
        });
    }

    fn stored(&self) -> Option<Arc<dyn Stored>> {
        match &self.held.read().form {
            Form::Paged(paged) => Some(Arc::clone(paged.below())),
            Form::Resident(_) => None,
        }
    }

    fn part_count(&self) -> usize {
        match &self.held.read().form {
            Form::Paged(paged) => paged.below().part_count(),
            Form::Resident(_) => 0,
        }
    }

    fn has_unwritten(&self) -> bool {
        self.held.read().counted.unwritten > 0
    }

    fn footing(&self) -> Footing {
        match &self.held.read().form {
            Form::Resident(entries) => Footing::Resident(entries.size().cost()),
            Form::Paged(paged) => Footing::Paged(paged.below().cost()),
        }
    }

    fn forget_cost(&self) {
        self.change(|form| {
            if let Form::Paged(paged) = form {
                paged.below().forget_cost();
            }
        });
    }
}
