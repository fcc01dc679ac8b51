//! The stored part of a paged table, below its changes in memory: an engine's files, or another
//! place that the engine has.
//!
//! It has entries by key, and places of expiry by time. At a place something may expire, or the
//! place is vacant, which overrides anything below it. A removed entry is included too if something
//! below may still have it.

use std::any::Any;
use std::fmt::Debug;

use millrace_model::Timestamp;

use super::StateError;

/// What a lookup may read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Only the page cache: never waits for the disk.
    Memory,
    /// Everything, also from the disk.
    Disk,
}

/// A stored entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredEntry<'a> {
    /// Its key.
    pub key: &'a [u8],
    /// Its value; `None` if it is removed.
    pub value: Option<&'a [u8]>,
    /// Its expiry.
    pub ends_at: Timestamp,
}

/// The value of an existing entry, and its expiry.
pub type StoredValue<'a> = (&'a [u8], Timestamp);

/// A place of expiry: the time, the key, and whether the place is vacant.
pub type StoredPlace<'a> = (Timestamp, &'a [u8], bool);

/// The stored part of one table. It never changes: a table gets a new one, which differs in its
/// address.
pub trait Stored: Any + Debug + Send + Sync {
    /// Bytes of memory for finding its entries, such as indexes.
    fn cost(&self) -> usize;

    /// Frees as much of this memory as can be rebuilt on demand.
    fn forget_cost(&self);

    /// The number of its parts, each of which a lookup may have to search.
    fn part_count(&self) -> usize;

    /// Looks up ascending keys, and passes on for each its index among them, and its value and
    /// expiry, or `None` if there is no entry. Returns the indexes of keys for which the lookup
    /// would have to reach further.
    ///
    /// # Errors
    /// [`StateError::Unreadable`].
    fn find(
        &self,
        keys: &[&[u8]],
        reach: Reach,
        found: &mut dyn FnMut(usize, Option<StoredValue<'_>>),
    ) -> Result<Vec<usize>, StateError>;

    /// All entries from a key on, in order.
    ///
    /// # Errors
    /// [`StateError::Unreadable`].
    fn entries(&self, from: &[u8]) -> Result<Box<dyn StoredEntries + '_>, StateError>;

    /// All places of expiry from this time on, in order.
    ///
    /// # Errors
    /// [`StateError::Unreadable`].
    fn places(&self, from: Timestamp) -> Result<Box<dyn StoredPlaces + '_>, StateError>;
}

/// A position among stored entries.
pub trait StoredEntries {
    /// The current entry, which may be a removed one; `None` past the last one.
    ///
    /// # Errors
    /// [`StateError::Unreadable`].
    fn entry(&self) -> Result<Option<StoredEntry<'_>>, StateError>;

    /// Moves to the next one.
    ///
    /// # Errors
    /// [`StateError::Unreadable`].
    fn advance(&mut self) -> Result<(), StateError>;
}

/// A position among stored places of expiry.
pub trait StoredPlaces {
    /// The current place; `None` past the last one.
    ///
    /// # Errors
    /// [`StateError::Unreadable`].
    fn place(&self) -> Result<Option<StoredPlace<'_>>, StateError>;

    /// Moves to the next one.
    ///
    /// # Errors
    /// [`StateError::Unreadable`].
    fn advance(&mut self) -> Result<(), StateError>;
}

/// The stored part of a table of which nothing is stored yet.
#[derive(Debug)]
pub(super) struct Nothing;

impl Stored for Nothing {
    fn cost(&self) -> usize {
        0
    }

    fn forget_cost(&self) {}

    fn part_count(&self) -> usize {
        0
    }

    fn find(
        &self,
        keys: &[&[u8]],
        _reach: Reach,
        found: &mut dyn FnMut(usize, Option<StoredValue<'_>>),
    ) -> Result<Vec<usize>, StateError> {
        (0..keys.len()).for_each(|place| found(place, None));
        Ok(Vec::new())
    }

    fn entries(&self, _from: &[u8]) -> Result<Box<dyn StoredEntries + '_>, StateError> {
        Ok(Box::new(Self))
    }

    fn places(&self, _from: Timestamp) -> Result<Box<dyn StoredPlaces + '_>, StateError> {
        Ok(Box::new(Self))
    }
}

impl StoredEntries for Nothing {
    fn entry(&self) -> Result<Option<StoredEntry<'_>>, StateError> {
        Ok(None)
    }

    fn advance(&mut self) -> Result<(), StateError> {
        Ok(())
    }
}

impl StoredPlaces for Nothing {
    fn place(&self) -> Result<Option<StoredPlace<'_>>, StateError> {
        Ok(None)
    }

    fn advance(&mut self) -> Result<(), StateError> {
        Ok(())
    }
}
