//! What a paged table has outside memory, below what memory says of it: an engine's files, or whatever place it has for them.
//!
//! It tells of entries by key, and of the places of their ends by time: at a place something may end, or it is vacant, whatever is below
//! says. A removed entry is told of as well where something below may have it.

use std::any::Any;
use std::fmt::Debug;

use millrace_model::Timestamp;

use super::StateError;

/// How far a look goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// What the system has in memory: never waits for the disk.
    Memory,
    /// All of it.
    Disk,
}

/// An entry as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredEntry<'a> {
    /// Its key.
    pub key: &'a [u8],
    /// Its value; `None` if it is removed.
    pub value: Option<&'a [u8]>,
    /// Its expiry.
    pub ends_at: Timestamp,
}

/// The value of an entry that is there, and when that ends.
pub type StoredValue<'a> = (&'a [u8], Timestamp);

/// The place of an end: the end, the key of what ends then, and whether it is vacant.
pub type StoredPlace<'a> = (Timestamp, &'a [u8], bool);

/// What is stored of one table. It never changes: a table gets another one, which is told from this one by its address.
pub trait Stored: Any + Debug + Send + Sync {
    /// Bytes of memory for what leads to it.
    fn cost(&self) -> usize;

    /// Gives back as much of that as can be made again when somebody asks.
    fn forget_cost(&self);

    /// In how many parts it stands, each of which a look may have to go through.
    fn part_count(&self) -> usize;

    /// Looks for keys, which ascend, and hands over what there is of each: its place among them, and its value and end, or `None` if there is
    /// nothing. Answers with the places of those for which the look would have to reach further.
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

    /// All places of ends from this one on, in order.
    ///
    /// # Errors
    /// [`StateError::Unreadable`].
    fn places(&self, from: Timestamp) -> Result<Box<dyn StoredPlaces + '_>, StateError>;
}

/// Somewhere among stored entries.
pub trait StoredEntries {
    /// The entry that it is at, which may be removed; `None` past the last one.
    ///
    /// # Errors
    /// [`StateError::Unreadable`].
    fn entry(&self) -> Result<Option<StoredEntry<'_>>, StateError>;

    /// Goes to the next one.
    ///
    /// # Errors
    /// [`StateError::Unreadable`].
    fn advance(&mut self) -> Result<(), StateError>;
}

/// Somewhere among stored places of ends.
pub trait StoredPlaces {
    /// The place that it is at; `None` past the last one.
    ///
    /// # Errors
    /// [`StateError::Unreadable`].
    fn place(&self) -> Result<Option<StoredPlace<'_>>, StateError>;

    /// Goes to the next one.
    ///
    /// # Errors
    /// [`StateError::Unreadable`].
    fn advance(&mut self) -> Result<(), StateError>;
}

/// Of a table of which nothing is stored yet.
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
