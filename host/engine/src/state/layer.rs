//! Changes of a paged table that are not stored yet, by key. One layer grows with each commit; all
//! others never change, so that pictures and checkpoints can read them without a lock.

use std::collections::{HashMap, HashSet, hash_map};
use std::iter::Peekable;
use std::ops::Bound;
use std::sync::{Arc, OnceLock};

use millrace_model::Timestamp;
use millrace_model::order::head;

use super::resident::Entries;
use super::{NEVER, StateChange, StateValue};

/// Approximate memory of a change besides its key and value.
const CHANGE_COST_BYTES: usize = 160;

/// The change of a key.
#[derive(Clone, Debug)]
pub(super) struct Said {
    /// The new value; `None` if the key is removed.
    pub(super) value: Option<StateValue>,
    pub(super) ends_at: Timestamp,
}

/// Changes of keys.
#[derive(Debug, Default)]
pub(super) struct Changed {
    by_key: HashMap<Arc<[u8]>, Said>,
    /// Vacant places: nothing expires there any more, whatever older layers and stored data have.
    vacant: HashSet<(Timestamp, Arc<[u8]>)>,
    cost: usize,
    /// The keys in order, computed when first needed; nothing changes after that.
    sorted: OnceLock<Vec<Arc<[u8]>>>,
    /// Places in order, with vacant ones marked; computed in the same way.
    places: OnceLock<Vec<HeldPlace>>,
}

/// An immutable set of changes.
#[derive(Debug)]
pub struct Layer(Of);

#[derive(Debug)]
enum Of {
    /// The whole content of a table that was in memory: it replaces everything below it.
    Whole(Entries),
    Changes(Changed),
}

/// A key and its change.
pub(super) type Met<'a> = (&'a Arc<[u8]>, Option<&'a StateValue>, Timestamp);

/// Like [`Place`], with an owned key.
type HeldPlace = (Timestamp, Arc<[u8]>, bool);

/// A place of expiry: the time, the key, and whether the place is vacant.
pub(super) type Place<'a> = (Timestamp, &'a Arc<[u8]>, bool);

impl Changed {
    pub(super) fn is_empty(&self) -> bool {
        self.by_key.is_empty() && self.vacant.is_empty()
    }

    pub(super) fn cost(&self) -> usize {
        self.cost
    }

    pub(super) fn note(&mut self, change: &StateChange) {
        self.put(
            &change.key,
            Said {
                value: change.value.clone(),
                ends_at: change.ends_at,
            },
        );
    }

    /// Marks a place as vacant.
    pub(super) fn note_vacant(&mut self, end: Timestamp, key: &Arc<[u8]>) {
        if self.vacant.insert((end, Arc::clone(key))) {
            self.cost += key.len() + CHANGE_COST_BYTES;
        }
    }

    fn put(&mut self, key: &Arc<[u8]>, said: Said) {
        let ends = said.value.is_some() && said.ends_at != NEVER && !self.vacant.is_empty();
        if ends && self.vacant.remove(&(said.ends_at, Arc::clone(key))) {
            self.cost -= key.len() + CHANGE_COST_BYTES;
        }
        let bytes = |said: &Said| said.value.as_ref().map_or(0, |v| v.as_bytes().len());
        self.cost += bytes(&said);
        match self.by_key.entry(Arc::clone(key)) {
            hash_map::Entry::Occupied(mut before) => {
                self.cost -= bytes(before.get());
                before.insert(said);
            }
            hash_map::Entry::Vacant(place) => {
                self.cost += key.len() + CHANGE_COST_BYTES;
                place.insert(said);
            }
        }
    }

    /// Merges two layers.
    fn over(older: &Self, newer: &Self) -> Self {
        let mut both = Self {
            by_key: older.by_key.clone(),
            vacant: older.vacant.clone(),
            cost: older.cost,
            ..Self::default()
        };
        for (key, said) in &newer.by_key {
            both.put(key, said.clone());
        }
        for (end, key) in &newer.vacant {
            both.note_vacant(*end, key);
        }
        both
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<Met<'_>> {
        let (key, said) = self.by_key.get_key_value(key)?;
        Some((key, said.value.as_ref(), said.ends_at))
    }

    fn sorted(&self) -> &[Arc<[u8]>] {
        self.sorted.get_or_init(|| {
            let mut keys: Vec<_> = self.by_key.keys().cloned().collect();
            keys.sort_unstable();
            keys
        })
    }

    fn places(&self) -> &[HeldPlace] {
        self.places.get_or_init(|| {
            let said = self.by_key.iter();
            let ending = said.filter(|(_, said)| said.value.is_some() && said.ends_at != NEVER);
            let ending = ending.map(|(key, said)| (said.ends_at, Arc::clone(key), false));
            let vacant = self.vacant.iter();
            let vacant = vacant.map(|(end, key)| (*end, Arc::clone(key), true));
            let mut places: Vec<_> = ending.chain(vacant).collect();
            places.sort_unstable();
            places
        })
    }

    fn len(&self) -> usize {
        self.by_key.len() + self.vacant.len()
    }
}

impl Layer {
    /// The whole content of a table that was in memory until now.
    pub(super) fn whole(entries: Entries) -> Self {
        Self(Of::Whole(entries))
    }

    pub(super) fn changes(changed: Changed) -> Self {
        Self(Of::Changes(changed))
    }

    pub(super) fn cost(&self) -> usize {
        match &self.0 {
            Of::Whole(entries) => entries.size().cost(),
            Of::Changes(changed) => changed.cost,
        }
    }

    /// The number of keys and vacant places.
    pub(super) fn len(&self) -> usize {
        match &self.0 {
            Of::Whole(entries) => entries.size().entries,
            Of::Changes(changed) => changed.len(),
        }
    }

    pub(super) fn is_whole(&self) -> bool {
        matches!(self.0, Of::Whole(_))
    }

    /// The change of the key, if there is one.
    pub(super) fn get(&self, key: &[u8]) -> Option<Met<'_>> {
        match &self.0 {
            Of::Whole(entries) => {
                let (key, entry) = entries.held(key)?;
                Some((key, Some(&entry.value), entry.ends_at))
            }
            Of::Changes(changed) => changed.get(key),
        }
    }

    /// Merges both if the newer one is not much smaller, so that each change is copied only a few times.
    pub(super) fn joined(older: &Self, newer: &Self) -> Option<Self> {
        match (&older.0, &newer.0) {
            (Of::Changes(older), Of::Changes(newer)) if older.len() <= 2 * newer.len() => {
                Some(Self::changes(Changed::over(older, newer)))
            }
            _ => None,
        }
    }

    /// Places of expiry, in order.
    pub(super) fn places(&self) -> Box<dyn Iterator<Item = Place<'_>> + '_> {
        match &self.0 {
            Of::Whole(entries) => Box::new(entries.ends().map(|(end, key)| (*end, key, false))),
            Of::Changes(changed) => {
                let places = changed.places().iter();
                Box::new(places.map(|(end, key, is_vacant)| (*end, key, *is_vacant)))
            }
        }
    }

    /// Vacant places.
    pub(super) fn vacant(&self) -> impl Iterator<Item = &(Timestamp, Arc<[u8]>)> {
        let changed = match &self.0 {
            Of::Whole(_) => None,
            Of::Changes(changed) => Some(changed),
        };
        changed.into_iter().flat_map(|changed| &changed.vacant)
    }

    /// All keys in order, for a single pass: the order is not kept.
    fn once(&self) -> Box<dyn Iterator<Item = Met<'_>> + '_> {
        let Of::Changes(changed) = &self.0 else {
            return self.from(Bound::Unbounded);
        };
        let said = changed.by_key.iter();
        let mut said: Vec<_> = said.map(|(key, said)| (head(key), key, said)).collect();
        // Sorted by prefix first, which is stored in place: the keys themselves are scattered in
        // memory.
        said.sort_unstable_by(|one, other| (one.0, one.1).cmp(&(other.0, other.1)));
        let said = said.into_iter();
        Box::new(said.map(|(_, key, said)| (key, said.value.as_ref(), said.ends_at)))
    }

    /// All keys from a bound on, in order.
    fn from(&self, from: Bound<&[u8]>) -> Box<dyn Iterator<Item = Met<'_>> + '_> {
        match &self.0 {
            Of::Whole(entries) => {
                let keys = entries.ordered.range::<[u8], _>((from, Bound::Unbounded));
                Box::new(keys.filter_map(|key| self.get(key)))
            }
            Of::Changes(changed) => {
                let keys = changed.sorted();
                let begin = keys.partition_point(|key| match from {
                    Bound::Included(from) => **key < *from,
                    Bound::Excluded(from) => **key <= *from,
                    Bound::Unbounded => false,
                });
                let keys = keys[begin..].iter();
                Box::new(keys.filter_map(|key| changed.get(key)))
            }
        }
    }
}

/// Layers as one, in key order: the newest change of each key.
pub(super) struct LayersWalk<'a> {
    /// The oldest first.
    layers: Vec<Peekable<Box<dyn Iterator<Item = Met<'a>> + 'a>>>,
}

impl<'a> LayersWalk<'a> {
    pub(super) fn of(layers: &'a [Arc<Layer>], from: Bound<&[u8]>) -> Self {
        let layers = layers.iter().map(|layer| layer.from(from).peekable());
        Self {
            layers: layers.collect(),
        }
    }

    /// All of it, for a single pass.
    pub(super) fn once(layers: &'a [Arc<Layer>]) -> Self {
        let layers = layers.iter().map(|layer| layer.once().peekable());
        Self {
            layers: layers.collect(),
        }
    }

    /// Peeks at the next change.
    pub(super) fn peek(&mut self) -> Option<Met<'a>> {
        let mut least: Option<Met<'a>> = None;
        for layer in &mut self.layers {
            let Some(met) = layer.peek() else { continue };
            // Of equal ones, the last one is the newest.
            if least.is_none_or(|least| met.0 <= least.0) {
                least = Some(*met);
            }
        }
        least
    }

    /// Moves past this key in all layers.
    pub(super) fn pass(&mut self, key: &[u8]) {
        for layer in &mut self.layers {
            layer.next_if(|met| **met.0 == *key);
        }
    }
}

impl<'a> Iterator for LayersWalk<'a> {
    type Item = Met<'a>;

    fn next(&mut self) -> Option<Met<'a>> {
        let met = self.peek()?;
        self.pass(met.0);
        Some(met)
    }
}
