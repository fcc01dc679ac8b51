//! Expired entries of a paged table. Removing them is a write like any other, because otherwise a replay would count differently.
//!
//! Each expiring entry has a *place*: its expiry and its key. Places are visited in this order. A
//! place only says when to look: an entry that was rewritten or removed leaves its old place behind
//! in stored data. A search that reaches such a place finds that nothing expires there and marks it
//! as vacant, and the mark is stored with the next changes. Marks are not journaled, because they
//! do not change the table's content; after a crash the search finds them again.

use std::collections::BTreeSet;
use std::iter::Peekable;
use std::sync::Arc;

use millrace_model::Timestamp;

use super::layer::Place;
use super::picture::Picture;
use super::resident::weight_of;
use super::stored::{Reach, StoredPlaces};
use super::{Adds, NEVER, StateChange, StateError, StateWrites};

/// Milliseconds until the next search after everything was found: expired entries are absent in any case.
const REST_MS: u64 = 1_000;
/// The same after a read error.
const REST_UNREADABLE_MS: u64 = 60_000;
/// Journal size of a change besides its key.
const CHANGE_OVERHEAD_BYTES: usize = 16;

/// Expired entries, to be removed with the next commit under the table's turn.
#[derive(Debug, Default)]
pub struct Ended {
    /// Each with what it counts for.
    entries: Vec<(Arc<[u8]>, usize)>,
}

impl Ended {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Their number.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The changes that remove them.
    #[must_use]
    pub fn into_writes(self) -> StateWrites {
        let mut writes = StateWrites {
            adds: Some(Adds::default()),
            ..StateWrites::default()
        };
        self.add_to(&mut writes, |_| true);
        writes
    }

    /// Adds the removals of the selected ones.
    pub(super) fn add_to(self, writes: &mut StateWrites, chosen: impl Fn(&[u8]) -> bool) {
        let adds = writes.adds.get_or_insert_default();
        for (key, weight) in self.entries.into_iter().filter(|(key, _)| chosen(key)) {
            adds.entries -= 1;
            adds.bytes -= weight as i64;
            writes.changes.push(StateChange {
                key,
                value: None,
                ends_at: NEVER,
            });
        }
    }
}

/// The result of a search for expired entries.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) ended: Ended,
    /// Places at which nothing expires.
    pub(super) vacant: Vec<(Timestamp, Arc<[u8]>)>,
    /// When to search again.
    pub(super) look_at: Timestamp,
    /// All places before this one are vacant.
    pub(super) stays_from: Timestamp,
}

/// When to search again after a read error.
pub(super) fn after_unreadable(now: Timestamp) -> Timestamp {
    Timestamp(now.0.saturating_add(REST_UNREADABLE_MS))
}

impl Picture {
    /// Searches a limited number of places, in order, for expired entries: no more than fit into this many bytes of a journal, but at
    /// least one. May read from the disk.
    ///
    /// # Errors
    /// [`StateError::Unreadable`].
    pub(super) fn find_ended(
        &self,
        now: Timestamp,
        places_max: usize,
        bytes_max: usize,
    ) -> Result<Found, StateError> {
        let mut walk = self.places(self.places_from)?;
        let (mut places, mut next) = (Vec::new(), NEVER);
        while let Some((end, key)) = walk.next()? {
            if end > now || places.len() == places_max {
                next = end;
                break;
            }
            places.push((end, key));
        }
        let there = self.ends_of(&places)?;
        let (mut found, mut bytes) = (Found::default(), 0);
        let mut first_ended = NEVER;
        for ((end, key), there) in places.into_iter().zip(there) {
            let Some((_, weight)) = there.filter(|(ends_at, _)| *ends_at == end) else {
                found.vacant.push((end, key));
                continue;
            };
            bytes += key.len() + CHANGE_OVERHEAD_BYTES;
            if bytes > bytes_max && !found.ended.is_empty() {
                next = end;
                break;
            }
            found.ended.entries.push((key, weight));
            // The place stays until the entry is removed.
            first_ended = first_ended.min(end);
        }
        found.stays_from = first_ended.min(next);
        let rest = Timestamp(now.0.saturating_add(REST_MS));
        found.look_at = if next <= now {
            // There are more.
            now
        } else if found.ended.is_empty() {
            next.max(rest)
        } else {
            // Their places are then vacant.
            rest
        };
        Ok(found)
    }

    /// The expiry and the size of each key's entry in the table.
    fn ends_of(
        &self,
        places: &[(Timestamp, Arc<[u8]>)],
    ) -> Result<Vec<Option<(Timestamp, usize)>>, StateError> {
        let mut there = vec![None; places.len()];
        let mut left: BTreeSet<(&[u8], usize)> = BTreeSet::new();
        for (at, (_, key)) in places.iter().enumerate() {
            match self.said(key) {
                Some((key, value, ends_at)) => {
                    let weight = value.map(|value| weight_of(key.len(), value.as_bytes().len()));
                    there[at] = weight.map(|weight| (ends_at, weight));
                }
                None => {
                    left.insert((&**key, at));
                }
            }
        }
        let mut keys: Vec<&[u8]> = left.iter().map(|(key, _)| *key).collect();
        keys.dedup();
        let unread = self.stored.find(&keys, Reach::Disk, &mut |place, item| {
            let key = keys[place];
            let found = item.map(|(value, ends_at)| (ends_at, weight_of(key.len(), value.len())));
            // A key may have several places.
            let asked = left.range((key, 0)..=(key, usize::MAX));
            asked.for_each(|(_, at)| there[*at] = found);
        })?;
        debug_assert!(unread.is_empty(), "the disk was read");
        Ok(there)
    }

    /// All places from this one on at which something may expire, in order.
    fn places(&self, from: Timestamp) -> Result<Places<'_>, StateError> {
        let layers = self.layers.iter().map(|layer| {
            let places = layer.places().skip_while(move |place| place.0 < from);
            let places: Box<dyn Iterator<Item = Place<'_>>> = Box::new(places);
            places.peekable()
        });
        Ok(Places {
            layers: layers.collect(),
            stored: self.stored.places(from)?,
        })
    }
}

/// An expiry, and the key that expires then.
type End = (Timestamp, Arc<[u8]>);

/// A position among the places of all layers and of stored data.
struct Places<'a> {
    /// The oldest first.
    layers: Vec<Peekable<Box<dyn Iterator<Item = Place<'a>> + 'a>>>,
    stored: Box<dyn StoredPlaces + 'a>,
}

impl<'a> Places<'a> {
    /// The next place that is not vacant.
    fn next(&mut self) -> Result<Option<End>, StateError> {
        loop {
            let said = self.said();
            let stored = self.stored.place()?;
            // If both have a place, the newer one, in memory, counts.
            let is_said = match (said, stored) {
                (None, None) => return Ok(None),
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (Some(said), Some(stored)) => (said.0, &**said.1) <= (stored.0, stored.1),
            };
            if let Some((end, key, is_vacant)) = said.filter(|_| is_said) {
                let is_same = stored.is_some_and(|stored| (stored.0, stored.1) == (end, &**key));
                for layer in &mut self.layers {
                    layer.next_if(|place| (place.0, place.1) == (end, key));
                }
                if is_same {
                    self.stored.advance()?;
                }
                if !is_vacant {
                    return Ok(Some((end, Arc::clone(key))));
                }
                continue;
            }
            let place = stored.filter(|(.., is_vacant)| !is_vacant);
            let place = place.map(|(end, key, _)| (end, Arc::from(key)));
            self.stored.advance()?;
            if place.is_some() {
                return Ok(place);
            }
        }
    }

    /// Peeks at the least place of all layers, as the newest layer has it.
    fn said(&mut self) -> Option<Place<'a>> {
        let mut least: Option<Place<'a>> = None;
        for layer in &mut self.layers {
            let Some(place) = layer.peek() else { continue };
            // Of equal ones, the last one is the newest.
            if least.is_none_or(|least| (place.0, place.1) <= (least.0, least.1)) {
                least = Some(*place);
            }
        }
        least
    }
}
