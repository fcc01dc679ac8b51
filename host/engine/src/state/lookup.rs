//! What a call reads of a committed table: directly from memory if all of it is there; keys of a paged table are looked up first, all
//! at once, and kept for the duration of the call.

use std::collections::HashMap;
use std::sync::Arc;

use millrace_model::Timestamp;
use millrace_model::bounds::{STATE_ATTEMPT_BYTES_MAX, STATE_CALL_BYTES_MAX};

use super::layer::Met;
use super::resident::{Entries, weight_of};
use super::stored::{Reach, Stored};
use super::{StateError, StateSize, StateValue};

/// Keys looked up in stored data at once; the bound on bytes is checked between two such steps.
const KEYS_AT_ONCE: usize = 1_024;
/// Memory of a key that was read besides its bytes and those of its value.
const SEEN_OVERHEAD_BYTES: usize = 128;
/// A value up to this length is kept even if only its length was requested.
const KEPT_BYTES_MAX: usize = size_of::<i64>();

/// What to read for each key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Values.
    Values,
    /// Their lengths, and values that may be numbers.
    Lengths,
}

/// An entry of the committed table.
pub(super) struct Held<'a> {
    /// The table's copy of the key.
    pub(super) key: &'a Arc<[u8]>,
    /// `None` if only its length was requested.
    pub(super) value: Option<&'a StateValue>,
    pub(super) value_bytes: usize,
    pub(super) ends_at: Timestamp,
}

impl Held<'_> {
    pub(super) fn weight(&self) -> usize {
        weight_of(self.key.len(), self.value_bytes)
    }
}

/// A call's view of the table.
pub(super) enum View<'a> {
    Resident(&'a Entries),
    Seen(&'a Seen),
}

impl<'a> View<'a> {
    /// The entry, which may have expired.
    pub(super) fn held(&self, key: &[u8]) -> Option<Held<'a>> {
        match self {
            Self::Resident(entries) => {
                let (key, entry) = entries.held(key)?;
                Some(Held {
                    key,
                    value: Some(&entry.value),
                    value_bytes: entry.value.as_bytes().len(),
                    ends_at: entry.ends_at,
                })
            }
            Self::Seen(seen) => seen.held(key),
        }
    }

    /// The size of the table.
    pub(super) fn size(&self) -> StateSize {
        match self {
            Self::Resident(entries) => entries.size(),
            Self::Seen(seen) => seen.size,
        }
    }
}

/// Entries of a paged table that were found so far.
#[derive(Debug, Default)]
pub(super) struct Seen {
    by_key: HashMap<Arc<[u8]>, Option<SeenEntry>>,
    /// Bytes of keys and values that are held for it.
    bytes: usize,
    pub(super) size: StateSize,
}

#[derive(Clone, Debug)]
struct SeenEntry {
    value: Option<StateValue>,
    value_bytes: usize,
    ends_at: Timestamp,
}

impl Seen {
    fn held(&self, key: &[u8]) -> Option<Held<'_>> {
        let (key, entry) = self.by_key.get_key_value(key)?;
        let entry = entry.as_ref()?;
        Some(Held {
            key,
            value: entry.value.as_ref(),
            value_bytes: entry.value_bytes,
            ends_at: entry.ends_at,
        })
    }

    /// Whether the requested information about the key is known.
    pub(super) fn knows(&self, key: &[u8], wanted: Wanted) -> bool {
        match (self.by_key.get(key), wanted) {
            (None, _) => false,
            (Some(Some(entry)), Wanted::Values) => entry.value.is_some(),
            (Some(_), _) => true,
        }
    }

    /// Adds what memory has for the key.
    pub(super) fn note(&mut self, key: &[u8], said: Option<Met<'_>>) {
        let entry = said.and_then(|(_, value, ends_at)| {
            let value = value?.clone();
            Some(SeenEntry {
                value_bytes: value.as_bytes().len(),
                value: Some(value),
                ends_at,
            })
        });
        let key = said.map_or_else(|| Arc::from(key), |(key, ..)| Arc::clone(key));
        self.put(key, entry);
    }

    fn put(&mut self, key: Arc<[u8]>, entry: Option<SeenEntry>) {
        let value_bytes = entry.as_ref().map_or(0, |entry| entry.value_bytes);
        self.bytes += SEEN_OVERHEAD_BYTES + key.len() + value_bytes;
        self.by_key.insert(key, entry);
    }

    /// Drops everything if it is large, since it can be read again; returns whether it did.
    pub(super) fn bound(&mut self) -> bool {
        let is_much = self.bytes > STATE_ATTEMPT_BYTES_MAX;
        if is_much {
            self.by_key.clear();
            self.bytes = 0;
        }
        is_much
    }

    pub(super) fn take_in(&mut self, fetch: StateFetch) {
        self.by_key.reserve(fetch.found.len());
        fetch
            .found
            .into_iter()
            .for_each(|(key, entry)| self.put(key, entry));
    }
}

/// Keys of a paged table that must be looked up in stored data.
#[derive(Debug)]
pub struct StateFetch {
    stored: Arc<dyn Stored>,
    wanted: Wanted,
    /// The remaining keys, ascending.
    keys: Vec<Arc<[u8]>>,
    found: Vec<(Arc<[u8]>, Option<SeenEntry>)>,
    value_bytes: usize,
}

impl StateFetch {
    /// The keys ascend.
    pub(super) fn new(stored: Arc<dyn Stored>, wanted: Wanted, keys: Vec<Arc<[u8]>>) -> Self {
        Self {
            stored,
            wanted,
            keys,
            found: Vec::new(),
            value_bytes: 0,
        }
    }

    /// Whether nothing is left to be read.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.keys.is_empty()
    }

    /// Looks keys up in the page cache, without waiting for the disk.
    ///
    /// # Errors
    /// [`StateError::Unreadable`]; [`StateError::Misuse`] if the values exceed what one call may request.
    pub fn read_cached(&mut self) -> Result<(), StateError> {
        self.read_within(Reach::Memory)
    }

    /// Looks up all remaining keys; may wait for the disk.
    ///
    /// # Errors
    /// Like [`StateFetch::read_cached`].
    pub fn read(&mut self) -> Result<(), StateError> {
        self.read_within(Reach::Disk)
    }

    fn read_within(&mut self, reach: Reach) -> Result<(), StateError> {
        let keys = std::mem::take(&mut self.keys);
        for some in keys.chunks(KEYS_AT_ONCE) {
            if self.value_bytes > STATE_CALL_BYTES_MAX {
                return Err(StateError::too_many_bytes());
            }
            let asked: Vec<&[u8]> = some.iter().map(|key| &**key).collect();
            let (found, value_bytes) = (&mut self.found, &mut self.value_bytes);
            let wanted = self.wanted;
            let left = self.stored.find(&asked, reach, &mut |place, item| {
                let entry = item.map(|(value, ends_at)| {
                    let is_kept = wanted == Wanted::Values || value.len() <= KEPT_BYTES_MAX;
                    // Values that are too large for one call are dropped.
                    let is_kept = is_kept && *value_bytes <= STATE_CALL_BYTES_MAX;
                    if is_kept {
                        *value_bytes += value.len();
                    }
                    SeenEntry {
                        value: is_kept.then(|| StateValue::new(value)),
                        value_bytes: value.len(),
                        ends_at,
                    }
                });
                found.push((Arc::clone(&some[place]), entry));
            })?;
            let left = left.into_iter().map(|place| Arc::clone(&some[place]));
            self.keys.extend(left);
        }
        match self.value_bytes > STATE_CALL_BYTES_MAX {
            true => Err(StateError::too_many_bytes()),
            false => Ok(()),
        }
    }
}
