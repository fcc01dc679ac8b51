//! The runs of one paged table, as one: what was changed before the layers in memory (docs/adr/0020).
//!
//! A key of a run begins with a byte that says what it is: of an entry 0, then the entry's key; of the place of an end 1, then the end
//! as a big-endian number, then the entry's key. A place has an empty value, or none if it is vacant, for a merge drops what has none.

use std::sync::Arc;

use millrace_log::run::{Item, Merged, Reach, Run, RunError, RunWriter, Sought};
use millrace_model::Timestamp;

use super::ending::vacant_of;
use super::layer::{Layer, LayersWalk};
use super::paged::LayersStep;
use super::resident::weight_of;
use super::{NEVER, StateError, StateSize};

/// The place of an end: the end, the key, and whether it is vacant.
type StoredPlace<'a> = (Timestamp, &'a [u8], bool);

const ENTRY: u8 = 0;
const END: u8 = 1;

/// Runs, the oldest first. They never change; a table gets another set.
#[derive(Debug, Default)]
pub struct RunSet {
    runs: Vec<Arc<Run>>,
}

impl RunSet {
    /// In this order, the oldest first.
    #[must_use]
    pub fn of(runs: Vec<Arc<Run>>) -> Arc<Self> {
        Arc::new(Self { runs })
    }

    /// The oldest first.
    #[must_use]
    pub fn runs(&self) -> &[Arc<Run>] {
        &self.runs
    }

    /// Bytes in memory.
    pub(super) fn cost(&self) -> usize {
        self.runs.iter().map(|run| run.cost()).sum()
    }

    /// Looks for keys, which ascend, and hands over what is there of each, `None` if nothing. Answers with the places of those for
    /// which the disk would have to be read.
    pub(super) fn find(
        &self,
        keys: &[&[u8]],
        reach: Reach,
        mut found: impl FnMut(usize, Option<(&[u8], Timestamp)>),
    ) -> Result<Vec<usize>, RunError> {
        let mut bytes = Vec::with_capacity(keys.iter().map(|key| key.len() + 1).sum());
        let ends = keys.iter().map(|key| {
            bytes.push(ENTRY);
            bytes.extend_from_slice(key);
            bytes.len()
        });
        let ends: Vec<usize> = ends.collect();
        let key = |place: usize| {
            let from = place.checked_sub(1).map_or(0, |before| ends[before]);
            Sought::of(&bytes[from..ends[place]])
        };
        let keys: Vec<Sought<'_>> = (0..keys.len()).map(key).collect();
        // Keys of which no newer run has said anything.
        let mut open: Vec<usize> = (0..keys.len()).collect();
        let mut unread = Vec::new();
        for run in self.runs.iter().rev() {
            if open.is_empty() {
                break;
            }
            let asked: Vec<Sought<'_>> = open.iter().map(|&place| keys[place]).collect();
            let mut is_over = vec![false; open.len()];
            let left = run.find(&asked, reach, |at, item| {
                is_over[at] = true;
                let value = item.value.map(|value| (value, Timestamp(item.ends_at)));
                found(open[at], value);
            })?;
            for at in left {
                is_over[at] = true;
                unread.push(open[at]);
            }
            let mut is_over = is_over.iter();
            open.retain(|_| is_over.next() == Some(&false));
        }
        open.into_iter().for_each(|place| found(place, None));
        unread.sort_unstable();
        Ok(unread)
    }

    /// How much stands in them. All of it is read.
    ///
    /// # Errors
    /// [`RunError`].
    pub fn count(&self) -> Result<StateSize, RunError> {
        let mut size = StateSize::default();
        let mut walk = self.walk(b"")?;
        while let Some(item) = walk.entry()? {
            if let Some(value) = item.value {
                size.entries += 1;
                size.bytes += weight_of(item.key.len(), value.len());
            }
            walk.advance()?;
        }
        Ok(size)
    }

    /// All entries from a key on, in order.
    pub(super) fn walk(&self, from: &[u8]) -> Result<RunsWalk<'_>, RunError> {
        self.walk_from(&[&[ENTRY][..], from].concat())
    }

    /// All places of ends from this one on, in order.
    pub(super) fn walk_places(&self, from: Timestamp) -> Result<RunsWalk<'_>, RunError> {
        self.walk_from(&[&[END][..], &from.0.to_be_bytes()].concat())
    }

    fn walk_from(&self, from: &[u8]) -> Result<RunsWalk<'_>, RunError> {
        let cursors = self.runs.iter().map(|run| run.cursor(from));
        let merged = Merged::of(cursors.collect::<Result<_, _>>()?)?;
        Ok(RunsWalk { merged })
    }
}

/// Somewhere among the entries of all runs, or among their places of ends.
pub(super) struct RunsWalk<'a> {
    merged: Merged<'a>,
}

impl RunsWalk<'_> {
    /// The entry that it is at, which may be removed; `None` at the end.
    pub(super) fn entry(&self) -> Result<Option<Item<'_>>, RunError> {
        let item = self.merged.item()?;
        Ok(item.and_then(|item| match item.key.split_first() {
            Some((&ENTRY, key)) => Some(Item { key, ..item }),
            _ => None,
        }))
    }

    /// The place of an end that it is at, and whether that is vacant; `None` past the last one.
    pub(super) fn place(&self) -> Result<Option<StoredPlace<'_>>, RunError> {
        let item = self.merged.item()?;
        Ok(item.and_then(|item| {
            let place = item.key.strip_prefix(&[END])?;
            let (end, key) = place.split_first_chunk()?;
            let end = Timestamp(u64::from_be_bytes(*end));
            Some((end, key, item.value.is_none()))
        }))
    }

    pub(super) fn advance(&mut self) -> Result<(), RunError> {
        self.merged.advance()
    }
}

/// The key of the entry that a run's key is about, be it the entry itself or the place of its end.
#[must_use]
pub fn entry_key(key: &[u8]) -> &[u8] {
    let entry = match key.split_first() {
        Some((&END, place)) => place.get(size_of::<u64>()..),
        Some((_, entry)) => Some(entry),
        None => None,
    };
    entry.unwrap_or_default()
}

impl LayersStep {
    /// Whether it says all that there is in the table, whatever stands in runs.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.layers.first().is_some_and(|layer| layer.is_whole())
    }

    /// How many items [`LayersStep::write`] writes at the most.
    #[must_use]
    pub fn items_max(&self) -> u64 {
        let said: usize = self.layers.iter().map(|layer| layer.len()).sum();
        2 * said as u64
    }

    /// Writes what the layers say into a run; `are_oldest` if there is no run below them. Says whether there was anything.
    ///
    /// # Errors
    /// The disk's.
    pub fn write(&self, are_oldest: bool, writer: &mut RunWriter) -> std::io::Result<bool> {
        write_layers(&self.layers, are_oldest, writer)
    }
}

fn write_layers(
    layers: &[Arc<Layer>],
    are_oldest: bool,
    writer: &mut RunWriter,
) -> std::io::Result<bool> {
    let mut ending = Vec::new();
    let mut key = Vec::new();
    let mut is_any = false;
    for (entry, value, ends_at) in LayersWalk::once(layers) {
        if value.is_none() && are_oldest {
            continue;
        }
        key.clear();
        key.push(ENTRY);
        key.extend_from_slice(entry);
        let ends_at = match value {
            Some(_) => ends_at,
            None => NEVER,
        };
        writer.add(&Item {
            key: &key,
            value: value.map(|value| value.as_bytes()),
            ends_at: ends_at.0,
        })?;
        is_any = true;
        if ends_at != NEVER {
            ending.push((ends_at, entry, false));
        }
    }
    if !are_oldest {
        ending.extend(vacant_of(layers).map(|(end, entry)| (end, entry, true)));
    }
    ending.sort_unstable();
    // A place at which something ends again is not vacant.
    ending.dedup_by(|later, earlier| (later.0, later.1) == (earlier.0, earlier.1));
    for (ends_at, entry, is_vacant) in ending {
        key.clear();
        key.push(END);
        key.extend(ends_at.0.to_be_bytes());
        key.extend_from_slice(entry);
        writer.add(&Item {
            key: &key,
            value: (!is_vacant).then_some(b""),
            ends_at: NEVER.0,
        })?;
        is_any = true;
    }
    Ok(is_any)
}

impl From<RunError> for StateError {
    fn from(error: RunError) -> Self {
        Self::Unreadable(error.to_string().into())
    }
}
