//! A paged table as it was at one moment. It is read without a lock, while commits continue.

use std::ops::Bound;
use std::sync::Arc;

use millrace_model::Timestamp;

use super::layer::{Layer, LayersWalk, Met};
use super::resident::{PageBuilder, after_of};
use super::stored::{Stored, StoredEntries};
use super::{StateEntry, StateError, StatePage, StateQuery, StateSize, StateValue};

/// A table at one moment.
#[derive(Clone, Debug)]
pub struct Picture {
    /// The oldest first.
    pub(super) layers: Vec<Arc<Layer>>,
    pub(super) stored: Arc<dyn Stored>,
    pub(super) size: StateSize,
    pub(super) version: u64,
    /// All places before this one are vacant.
    pub(super) places_from: Timestamp,
}

impl Picture {
    /// Entries by key. `as_of` is left to the engine. It may read from the disk.
    ///
    /// # Errors
    /// [`StateError::Unreadable`].
    pub fn page(&self, query: &StateQuery) -> Result<StatePage, StateError> {
        let mut page = PageBuilder::new(query);
        let mut walk = self.walk(after_of(&query.prefix, query.after.as_deref()))?;
        while !page.is_over()
            && let Some(entry) = walk.next()?
            && entry.key.starts_with(&query.prefix)
        {
            page.add(entry);
        }
        Ok(page.end(self.size, self.version))
    }

    /// Passes the key of every entry, in order, including expired ones. May read from the disk.
    ///
    /// # Errors
    /// [`StateError::Unreadable`]; keys passed before are correct.
    pub fn each_key(&self, mut see: impl FnMut(&[u8])) -> Result<(), StateError> {
        let mut walk = self.walk(Bound::Unbounded)?;
        while let Some(entry) = walk.next()? {
            see(&entry.key);
        }
        Ok(())
    }

    /// The key's change in memory, if there is one.
    pub(super) fn said(&self, key: &[u8]) -> Option<Met<'_>> {
        self.layers.iter().rev().find_map(|layer| layer.get(key))
    }

    /// All entries from a bound on, including expired ones, in order.
    pub(super) fn walk(&self, from: Bound<&[u8]>) -> Result<Walk<'_>, StateError> {
        let begin = match from {
            Bound::Included(from) | Bound::Excluded(from) => from,
            Bound::Unbounded => b"",
        };
        let mut stored = self.stored.entries(begin)?;
        if let (Bound::Excluded(from), Some(entry)) = (from, stored.entry()?)
            && entry.key == from
        {
            stored.advance()?;
        }
        Ok(Walk {
            layers: LayersWalk::of(&self.layers, from),
            stored,
        })
    }
}

/// A position among all entries.
pub(super) struct Walk<'a> {
    layers: LayersWalk<'a>,
    stored: Box<dyn StoredEntries + 'a>,
}

impl Walk<'_> {
    /// The next entry.
    pub(super) fn next(&mut self) -> Result<Option<StateEntry>, StateError> {
        loop {
            let said = self.layers.peek();
            let stored = self.stored.entry()?;
            // If both have the key, the newer one, in memory, counts.
            let is_said = match (said, &stored) {
                (None, None) => return Ok(None),
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (Some((key, ..)), Some(entry)) => **key <= *entry.key,
            };
            if let Some((key, value, ends_at)) = said.filter(|_| is_said) {
                let is_same = stored.is_some_and(|entry| *entry.key == **key);
                self.layers.pass(key);
                if is_same {
                    self.stored.advance()?;
                }
                if let Some(value) = value {
                    return Ok(Some(StateEntry {
                        key: Arc::clone(key),
                        value: value.clone(),
                        ends_at,
                    }));
                }
                continue;
            }
            let entry = stored.and_then(|entry| {
                Some(StateEntry {
                    key: entry.key.into(),
                    value: StateValue::new(entry.value?),
                    ends_at: entry.ends_at,
                })
            });
            self.stored.advance()?;
            if entry.is_some() {
                return Ok(entry);
            }
        }
    }
}
