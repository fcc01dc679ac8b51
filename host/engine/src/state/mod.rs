//! The state of groups: keys and values beside progress, written in the same transactions (docs/adr/0011).
//!
//! A [`StateTable`] holds what is committed of one group in one partition. A [`StateAttempt`] is what one call makes of it: its own
//! writes over the table, which become [`StateWrites`] if they are to count, and are dropped if not.

mod attempt;
mod ending;
mod layer;
mod listing;
mod lookup;
mod paged;
mod picture;
mod resident;
mod stored;
mod table;
#[cfg(test)]
mod tests;
mod turn;
mod value;

use std::sync::Arc;

use millrace_model::bounds::{STATE_KEY_BYTES_MAX, STATE_VALUE_BYTES_MAX};
use millrace_model::{GroupName, Offset, Timestamp, TopicPartition};

pub use attempt::{KeyColumns, StateAttempt, StateError, ValueColumns, WriteColumns};
pub use ending::Ended;
pub use lookup::StateFetch;
pub use picture::Picture;
pub use table::{StateSize, StateTable, keeper};
pub use turn::{HeldTurn, Turn};
pub use value::StateValue;

use crate::contract::lease::Lease;

/// What a transaction makes of one table.
#[derive(Clone, Debug)]
pub struct StateWrite {
    /// Whose state; a processor's name.
    pub group: GroupName,
    /// Which partition's.
    pub partition: TopicPartition,
    /// The right to write it, which may be that to another partition; `None` is the operator's, who needs none.
    pub lease: Option<Lease>,
    /// What is written.
    pub writes: Arc<StateWrites>,
}

/// Changes of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateWrites {
    /// Whether the table is emptied first.
    pub resets: bool,
    /// The keys that change; one key at most once.
    pub changes: Vec<StateChange>,
    /// What the table has more afterwards than before, or than nothing if it is emptied. Whoever has had the table's turn since his
    /// first read knows it; others say nothing.
    pub adds: Option<Adds>,
}

/// What writes add to a table; less than nothing where they remove more than they bring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Adds {
    /// Entries.
    pub entries: i64,
    /// Bytes, counted as in [`StateSize`].
    pub bytes: i64,
}

impl Adds {
    /// From one size to another.
    #[must_use]
    pub fn between(before: StateSize, after: StateSize) -> Self {
        Self {
            entries: after.entries as i64 - before.entries as i64,
            bytes: after.bytes as i64 - before.bytes as i64,
        }
    }

    /// Bytes of memory that it takes more where all of a table is in memory; none if it takes less.
    #[must_use]
    pub fn cost(self) -> usize {
        let beside = (ENTRY_COST_BYTES - ENTRY_OVERHEAD_BYTES) as i64;
        let cost = self
            .bytes
            .saturating_add(self.entries.saturating_mul(beside));
        usize::try_from(cost).unwrap_or(0)
    }

    /// The size after it; `None` if there never were as many entries or bytes as it takes away.
    #[must_use]
    pub fn after(self, before: StateSize) -> Option<StateSize> {
        let with = |size: usize, more: i64| size.checked_add_signed(isize::try_from(more).ok()?);
        Some(StateSize {
            entries: with(before.entries, self.entries)?,
            bytes: with(before.bytes, self.bytes)?,
        })
    }
}

/// One key's change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateChange {
    /// Which key.
    pub key: Arc<[u8]>,
    /// Its new value; `None` removes it.
    pub value: Option<StateValue>,
    /// From when on it counts as removed; [`NEVER`] for as long as it is kept.
    pub ends_at: Timestamp,
}

/// The end of an entry that has none.
pub const NEVER: Timestamp = Timestamp(u64::MAX);

/// Bytes that an entry counts for beside its key and value.
pub const ENTRY_OVERHEAD_BYTES: usize = 64;

/// Bytes that an entry costs in memory beside its key and value, about: its places in the table and in the order of keys, and what the
/// allocator rounds up. The bounds of a host count with it, that of a partition with [`ENTRY_OVERHEAD_BYTES`].
pub const ENTRY_COST_BYTES: usize = 320;

impl StateChange {
    /// Whether key and value are within their bounds.
    ///
    /// # Errors
    /// What is too large.
    pub fn check(&self) -> Result<(), String> {
        let value = self.value.as_ref().map_or(0, |v| v.as_bytes().len());
        if self.key.len() > STATE_KEY_BYTES_MAX || value > STATE_VALUE_BYTES_MAX {
            return Err(format!(
                "an entry has a key of {} bytes and a value of {value}; at most {STATE_KEY_BYTES_MAX} and {STATE_VALUE_BYTES_MAX} are taken",
                self.key.len()
            ));
        }
        Ok(())
    }

    /// Bytes that the entry counts for; none if it is removed.
    #[must_use]
    pub fn weight(&self) -> usize {
        let value = self.value.as_ref();
        value.map_or(0, |value| resident::weight(&self.key, value))
    }

    /// Bytes that the entry costs in memory; none if it is removed.
    #[must_use]
    pub fn cost(&self) -> usize {
        match self.weight() {
            0 => 0,
            weight => weight + ENTRY_COST_BYTES - ENTRY_OVERHEAD_BYTES,
        }
    }
}

impl StateWrites {
    /// Whether nothing is written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.resets && self.changes.is_empty()
    }

    /// What they add to a table's cost, at the most: as if none of the keys were there.
    #[must_use]
    pub fn cost(&self) -> usize {
        self.changes.iter().map(StateChange::cost).sum()
    }

    /// Whether any key has a value afterwards: removing and emptying only frees room.
    #[must_use]
    pub fn keep_values(&self) -> bool {
        self.changes.iter().any(|change| change.value.is_some())
    }

    /// What it takes in a journal, at most.
    #[must_use]
    pub fn byte_count(&self) -> usize {
        let value = |value: &Option<StateValue>| value.as_ref().map_or(0, |v| v.as_bytes().len());
        let bytes = |change: &StateChange| change.key.len() + value(&change.value) + 16;
        self.changes.iter().map(bytes).sum()
    }
}

/// An entry as others see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateEntry {
    /// Its key.
    pub key: Arc<[u8]>,
    /// Its value.
    pub value: StateValue,
    /// When it ends.
    pub ends_at: Timestamp,
}

/// Which entries are asked for.
#[derive(Clone, Debug, Default)]
pub struct StateQuery {
    /// Keys that begin so.
    pub prefix: Vec<u8>,
    /// Only keys after this one.
    pub after: Option<Vec<u8>>,
    /// At most so many.
    pub entries_max: usize,
    /// Entries that count for so many bytes at the most; one larger entry still comes.
    pub bytes_max: usize,
    /// What time it is: entries that have ended are left out.
    pub now: Timestamp,
}

/// Entries by key, and of when they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatePage {
    /// By key.
    pub entries: Vec<StateEntry>,
    /// Whether there are more.
    pub has_more: bool,
    /// The state holds the writes of the messages below, but for the parked ones, and no others.
    pub as_of: Offset,
    /// Another one whenever something was written, and after a restart: pages of the same version belong together.
    pub version: u64,
    /// All that the table holds.
    pub size: StateSize,
}
