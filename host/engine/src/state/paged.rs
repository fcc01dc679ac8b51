//! A table with only its changes in memory: the rest is stored elsewhere (docs/adr/0020).
//!
//! ```text
//! changes   what commits wrote since the last picture or checkpoint; the only thing that grows
//! aside     layers that stay as they are: what a checkpoint writes down just now, then what pictures are of
//! stored    what the last checkpoint named
//! ```
//! The newest change of a key counts. A write does not look up the previous value: the writer says
//! how the size changes.

use std::sync::{Arc, Weak};

use millrace_model::Timestamp;

use super::ending::{self, Found};
use super::layer::{Changed, Layer, LayersWalk, Met};
use super::picture::Picture;
use super::resident::Entries;
use super::stored::{Nothing, Stored};
use super::{NEVER, StateError, StateSize, StateTable, StateValue, StateWrites};

#[derive(Debug)]
pub(super) struct Paged {
    changes: Changed,
    /// Immutable layers, oldest first.
    aside: Vec<Arc<Layer>>,
    /// How many of these layers a checkpoint is writing.
    handed: usize,
    stored: Arc<dyn Stored>,
    size: StateSize,
    version: u64,
    /// Nothing before this time has expired, as far as known.
    next_end: Timestamp,
    /// All places before this one are vacant, as far as known: searches start here, because there may be many vacant places.
    places_from: Timestamp,
}

/// What a checkpoint must write of a paged table.
#[derive(Clone, Debug)]
pub struct LayersStep {
    /// The table to notify; not held, because a dropped table must not count any more.
    pub table: Weak<StateTable>,
    /// All changes that are not stored yet, oldest first. If they begin with a whole layer, it
    /// replaces everything stored.
    pub layers: Vec<Arc<Layer>>,
    /// The size of the table then.
    pub size: StateSize,
}

impl LayersStep {
    /// Whether it contains the whole table, so that stored data no longer counts.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.layers.first().is_some_and(|layer| layer.is_whole())
    }

    /// Maximum number of keys and vacant places in the layers.
    #[must_use]
    pub fn said_max(&self) -> usize {
        self.layers.iter().map(|layer| layer.len()).sum()
    }

    /// The newest change of each key in the layers, in the order of keys: its value (`None` if
    /// removed) and its expiry.
    pub fn entries(&self) -> impl Iterator<Item = (&Arc<[u8]>, Option<&StateValue>, Timestamp)> {
        LayersWalk::once(&self.layers)
    }

    /// Vacant places that stored data may still have, unless an entry expires there again.
    pub fn vacant(&self) -> impl Iterator<Item = (Timestamp, &Arc<[u8]>)> {
        let vacant = self.layers.iter().flat_map(|layer| layer.vacant());
        vacant.map(|(end, key)| (*end, key))
    }
}

impl Paged {
    /// A table from a checkpoint.
    pub(super) fn stored(stored: Arc<dyn Stored>, size: StateSize) -> Self {
        Self {
            changes: Changed::default(),
            aside: Vec::new(),
            handed: 0,
            stored,
            size,
            version: 0,
            // Not searched yet.
            next_end: Timestamp(0),
            places_from: Timestamp(0),
        }
    }

    /// A table that was in memory: its content becomes the first layer, without being copied.
    pub(super) fn of(mut entries: Entries) -> Self {
        let (size, version) = (entries.size(), entries.version());
        let next_end = entries.next_end();
        entries.forget_slots();
        Self {
            aside: vec![Arc::new(Layer::whole(entries))],
            version,
            next_end,
            ..Self::stored(Arc::new(Nothing), size)
        }
    }

    pub(super) fn size(&self) -> StateSize {
        self.size
    }

    /// The number of writes to it.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Bytes in memory.
    pub(super) fn cost(&self) -> usize {
        let aside: usize = self.aside.iter().map(|layer| layer.cost()).sum();
        self.changes.cost() + aside + self.stored.cost()
    }

    /// Bytes in memory of changes that are not stored. The whole layer of a table that was in
    /// memory before does not count.
    pub(super) fn unwritten(&self) -> usize {
        let changes = self.aside.iter().filter(|layer| !layer.is_whole());
        self.changes.cost() + changes.map(|layer| layer.cost()).sum::<usize>()
    }

    pub(super) fn below(&self) -> &Arc<dyn Stored> {
        &self.stored
    }

    /// The key's change in memory, if there is one.
    pub(super) fn said(&self, key: &[u8]) -> Option<Met<'_>> {
        let aside = || self.aside.iter().rev().find_map(|layer| layer.get(key));
        self.changes.get(key).or_else(aside)
    }

    /// Applies committed writes; `None`, without effect, if they do not say how the size changes, or it would become negative.
    pub(super) fn apply(&mut self, writes: &StateWrites) -> Option<()> {
        self.size = writes.adds?.after(self.size)?;
        self.version += 1;
        for change in &writes.changes {
            if change.value.is_some() {
                self.next_end = self.next_end.min(change.ends_at);
                self.places_from = self.places_from.min(change.ends_at);
            }
            self.changes.note(change);
        }
        Some(())
    }

    /// Whether there may be expired entries.
    pub(super) fn has_ended(&self, now: Timestamp) -> bool {
        self.next_end <= now
    }

    /// The current table, for a search for expired entries; later writes are recorded separately.
    pub(super) fn begin_look(&mut self) -> Picture {
        self.next_end = NEVER;
        self.picture()
    }

    /// The result of a search in the table as of that version.
    pub(super) fn end_look(
        &mut self,
        version: u64,
        now: Timestamp,
        found: Result<&Found, &StateError>,
    ) {
        let look_at = match found {
            Ok(found) => found.look_at,
            Err(_) => ending::after_unreadable(now),
        };
        self.next_end = self.next_end.min(look_at);
        // Only if nothing was written meanwhile that expires there.
        if let Ok(found) = found
            && self.version == version
        {
            self.places_from = found.stays_from;
            for (end, key) in &found.vacant {
                self.changes.note_vacant(*end, key);
            }
        }
    }

    /// Sets the changes aside as an immutable layer.
    fn set_aside(&mut self) {
        if self.changes.is_empty() {
            return;
        }
        let mut layer = Layer::changes(std::mem::take(&mut self.changes));
        while self.aside.len() > self.handed
            && let Some(older) = self.aside.last()
            && let Some(joined) = Layer::joined(older, &layer)
        {
            layer = joined;
            self.aside.pop();
        }
        self.aside.push(Arc::new(layer));
    }

    /// The current table.
    pub(super) fn picture(&mut self) -> Picture {
        self.set_aside();
        Picture {
            layers: self.aside.clone(),
            stored: Arc::clone(&self.stored),
            size: self.size,
            version: self.version,
            places_from: self.places_from,
        }
    }

    /// All changes that are not stored; `None` if there are none.
    pub(super) fn hand_over(&mut self, table: Weak<StateTable>) -> Option<LayersStep> {
        self.set_aside();
        self.handed = self.aside.len();
        (!self.aside.is_empty()).then(|| LayersStep {
            table,
            layers: self.aside.clone(),
            size: self.size,
        })
    }

    /// A durable checkpoint now has these layers in stored data, or a merge has replaced the stored
    /// data. (Below a whole layer, the previous stored data is nothing.) Does nothing if the table
    /// was emptied since.
    pub(super) fn install(
        &mut self,
        layers: &[Arc<Layer>],
        before: Option<&Arc<dyn Stored>>,
        stored: Arc<dyn Stored>,
    ) {
        let mut pairs = layers.iter().zip(&self.aside);
        let are_mine =
            layers.len() <= self.aside.len() && pairs.all(|(one, mine)| Arc::ptr_eq(one, mine));
        let is_on_mine = match before {
            Some(before) => std::ptr::addr_eq(Arc::as_ptr(before), Arc::as_ptr(&self.stored)),
            None => layers.first().is_some_and(|layer| layer.is_whole()),
        };
        if are_mine && is_on_mine {
            self.aside.drain(..layers.len());
            self.handed = self.handed.saturating_sub(layers.len());
            self.stored = stored;
        }
    }
}
