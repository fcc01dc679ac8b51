//! The state of groups: keys and values beside progress, written in the same transactions (docs/adr/0011).
//!
//! A [`StateTable`] has the committed state of one group in one partition. A [`StateAttempt`] is
//! one call's view: its own writes over the table, which become [`StateWrites`] if they are
//! committed, and are dropped otherwise.

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

/// A transaction's changes to one table.
#[derive(Clone, Debug)]
pub struct StateWrite {
    /// The group.
    pub group: GroupName,
    /// The partition.
    pub partition: TopicPartition,
    /// The lease, which may belong to another partition; `None` for an operator, who needs none.
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
    /// How the size of the table changes, relative to its current size, or to zero if it is
    /// emptied. A writer that has had the table's turn since its first read knows this; others
    /// leave it out.
    pub adds: Option<Adds>,
}

/// The size that writes add to a table; negative if they remove more.
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

    /// Additional memory if all of a table is in memory; zero if it shrinks.
    #[must_use]
    pub fn cost(self) -> usize {
        let beside = (ENTRY_COST_BYTES - ENTRY_OVERHEAD_BYTES) as i64;
        let cost = self
            .bytes
            .saturating_add(self.entries.saturating_mul(beside));
        usize::try_from(cost).unwrap_or(0)
    }

    /// The size after it; `None` if it would be negative.
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
    /// The key.
    pub key: Arc<[u8]>,
    /// Its new value; `None` removes it.
    pub value: Option<StateValue>,
    /// When it counts as removed; [`NEVER`] if it does not expire.
    pub ends_at: Timestamp,
}

/// The expiry of an entry that has none.
pub const NEVER: Timestamp = Timestamp(u64::MAX);

/// Size of an entry besides its key and value.
pub const ENTRY_OVERHEAD_BYTES: usize = 64;

/// Approximate memory of an entry besides its key and value: its places in the table and in the key order, and allocation overhead. A
/// host's bounds count with it, a partition's with [`ENTRY_OVERHEAD_BYTES`].
pub const ENTRY_COST_BYTES: usize = 320;

impl StateChange {
    /// Whether key and value are within their bounds.
    ///
    /// # Errors
    /// Says what is too large.
    pub fn check(&self) -> Result<(), String> {
        let value = self.value.as_ref().map_or(0, |v| v.as_bytes().len());
        if self.key.len() > STATE_KEY_BYTES_MAX || value > STATE_VALUE_BYTES_MAX {
            return Err(format!(
                "an entry has a key of {} bytes and a value of {value}; the maximum is {STATE_KEY_BYTES_MAX} and {STATE_VALUE_BYTES_MAX}",
                self.key.len()
            ));
        }
        Ok(())
    }

    /// The entry's size; zero if it is removed.
    #[must_use]
    pub fn weight(&self) -> usize {
        let value = self.value.as_ref();
        value.map_or(0, |value| resident::weight(&self.key, value))
    }

    /// The entry's memory; zero if it is removed.
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

    /// The maximum that they add to a table's cost, if none of the keys exists yet.
    #[must_use]
    pub fn cost(&self) -> usize {
        self.changes.iter().map(StateChange::cost).sum()
    }

    /// Whether any key has a value afterwards: removing and emptying only frees room.
    #[must_use]
    pub fn keep_values(&self) -> bool {
        self.changes.iter().any(|change| change.value.is_some())
    }

    /// Maximum size in a journal.
    #[must_use]
    pub fn byte_count(&self) -> usize {
        let value = |value: &Option<StateValue>| value.as_ref().map_or(0, |v| v.as_bytes().len());
        let bytes = |change: &StateChange| change.key.len() + value(&change.value) + 16;
        self.changes.iter().map(bytes).sum()
    }
}

/// An entry for readers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateEntry {
    /// Its key.
    pub key: Arc<[u8]>,
    /// Its value.
    pub value: StateValue,
    /// Its expiry.
    pub ends_at: Timestamp,
}

/// Which entries to return.
#[derive(Clone, Debug, Default)]
pub struct StateQuery {
    /// Keys with this prefix.
    pub prefix: Vec<u8>,
    /// Only keys after this one.
    pub after: Option<Vec<u8>>,
    /// Maximum number.
    pub entries_max: usize,
    /// Maximum total size; one larger entry is still returned.
    pub bytes_max: usize,
    /// The current time: expired entries are left out.
    pub now: Timestamp,
}

/// Entries by key, as of one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StatePage {
    /// By key.
    pub entries: Vec<StateEntry>,
    /// Whether there are more.
    pub has_more: bool,
    /// The state contains exactly the writes of the messages below this offset, except parked ones.
    pub as_of: Offset,
    /// Changes whenever something is written, and after a restart: pages with the same version belong together.
    pub version: u64,
    /// The size of the whole table.
    pub size: StateSize,
}
