//! The runs of one paged table, read as one: its stored part below the layers in memory
//! (docs/adr/0020), and how layers become a run.
//!
//! A key in a run begins with a type byte: 0 for an entry, followed by its key; 1 for the place of an expiry, followed by the expiry as
//! a big-endian number and the entry's key. A place has an empty value, or none if it is vacant, because a merge drops keys without a
//! value.

use std::any::Any;
use std::sync::Arc;

use millrace_engine::state::keeper::{
    KeepTable as _, LayersStep, Reach, Stored, StoredEntries, StoredEntry, StoredPlace,
    StoredPlaces, StoredValue,
};
use millrace_engine::state::{ENTRY_OVERHEAD_BYTES, NEVER, StateError, StateSize, StateTable};
use millrace_log::run::{self, Item, Merged, Run, RunError, RunWriter, Sought};
use millrace_model::Timestamp;

const ENTRY: u8 = 0;
const END: u8 = 1;

/// Runs, oldest first. A set never changes; a table gets a new one.
#[derive(Debug, Default)]
pub(crate) struct RunSet {
    runs: Vec<Arc<Run>>,
}

impl RunSet {
    /// A set of these runs, oldest first.
    pub(crate) fn of(runs: Vec<Arc<Run>>) -> Arc<Self> {
        Arc::new(Self { runs })
    }

    /// The oldest first.
    pub(crate) fn runs(&self) -> &[Arc<Run>] {
        &self.runs
    }

    /// Looks up keys, which ascend, and passes on what it finds; `None` if nothing. Returns the indexes of those for which it would
    /// have to read from the disk.
    fn look(
        &self,
        keys: &[&[u8]],
        reach: run::Reach,
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
        // Keys that no newer run has.
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

    /// The size of the content. Reads all of it.
    ///
    /// # Errors
    /// [`RunError`].
    pub(crate) fn count(&self) -> Result<StateSize, RunError> {
        let mut size = StateSize::default();
        let mut walk = self.walk(b"")?;
        while let Some(item) = walk.item()? {
            if let Some(value) = item.value {
                size.entries += 1;
                size.bytes += item.key.len() + value.len() + ENTRY_OVERHEAD_BYTES;
            }
            walk.merged.advance()?;
        }
        Ok(size)
    }

    /// All entries from a key on, in order.
    fn walk(&self, from: &[u8]) -> Result<RunsWalk<'_>, RunError> {
        self.walk_from(&[&[ENTRY][..], from].concat())
    }

    /// All places of expiry from this time on, in order.
    fn walk_places(&self, from: Timestamp) -> Result<RunsWalk<'_>, RunError> {
        self.walk_from(&[&[END][..], &from.0.to_be_bytes()].concat())
    }

    fn walk_from(&self, from: &[u8]) -> Result<RunsWalk<'_>, RunError> {
        let cursors = self.runs.iter().map(|run| run.cursor(from));
        let merged = Merged::of(cursors.collect::<Result<_, _>>()?)?;
        Ok(RunsWalk { merged })
    }
}

/// A position among the entries of all runs, or among their places of expiry.
struct RunsWalk<'a> {
    merged: Merged<'a>,
}

impl RunsWalk<'_> {
    fn item(&self) -> Result<Option<Item<'_>>, RunError> {
        let item = self.merged.item()?;
        Ok(item.and_then(|item| match item.key.split_first() {
            Some((&ENTRY, key)) => Some(Item { key, ..item }),
            _ => None,
        }))
    }
}

impl StoredEntries for RunsWalk<'_> {
    fn entry(&self) -> Result<Option<StoredEntry<'_>>, StateError> {
        let item = self.item().map_err(unreadable)?;
        Ok(item.map(|item| StoredEntry {
            key: item.key,
            value: item.value,
            ends_at: Timestamp(item.ends_at),
        }))
    }

    fn advance(&mut self) -> Result<(), StateError> {
        self.merged.advance().map_err(unreadable)
    }
}

impl StoredPlaces for RunsWalk<'_> {
    fn place(&self) -> Result<Option<StoredPlace<'_>>, StateError> {
        let item = self.merged.item().map_err(unreadable)?;
        Ok(item.and_then(|item| {
            let place = item.key.strip_prefix(&[END])?;
            let (end, key) = place.split_first_chunk()?;
            let end = Timestamp(u64::from_be_bytes(*end));
            Some((end, key, item.value.is_none()))
        }))
    }

    fn advance(&mut self) -> Result<(), StateError> {
        self.merged.advance().map_err(unreadable)
    }
}

impl Stored for RunSet {
    fn cost(&self) -> usize {
        self.runs.iter().map(|run| run.cost()).sum()
    }

    fn forget_cost(&self) {
        self.runs.iter().for_each(|run| run.forget_map());
    }

    fn part_count(&self) -> usize {
        self.runs.len()
    }

    fn find(
        &self,
        keys: &[&[u8]],
        reach: Reach,
        found: &mut dyn FnMut(usize, Option<StoredValue<'_>>),
    ) -> Result<Vec<usize>, StateError> {
        let reach = match reach {
            Reach::Memory => run::Reach::Memory,
            Reach::Disk => run::Reach::Disk,
        };
        self.look(keys, reach, found).map_err(unreadable)
    }

    fn entries(&self, from: &[u8]) -> Result<Box<dyn StoredEntries + '_>, StateError> {
        Ok(Box::new(self.walk(from).map_err(unreadable)?))
    }

    fn places(&self, from: Timestamp) -> Result<Box<dyn StoredPlaces + '_>, StateError> {
        Ok(Box::new(self.walk_places(from).map_err(unreadable)?))
    }
}

fn unreadable(error: RunError) -> StateError {
    StateError::Unreadable(error.to_string().into())
}

/// The runs that a table reads from; none if it is in memory.
pub(crate) fn runs_of(table: &StateTable) -> Vec<Arc<Run>> {
    let stored = table.stored();
    let set = stored.as_deref().map(|stored| stored as &dyn Any);
    let set = set.and_then(|set| set.downcast_ref::<RunSet>());
    set.map_or_else(Vec::new, |set| set.runs.clone())
}

/// The entry's key in a run's key, for an entry or the place of its expiry.
pub(crate) fn entry_key(key: &[u8]) -> &[u8] {
    let entry = match key.split_first() {
        Some((&END, place)) => place.get(size_of::<u64>()..),
        Some((_, entry)) => Some(entry),
        None => None,
    };
    entry.unwrap_or_default()
}

/// The maximum number of items that [`write`] writes.
pub(super) fn items_max(step: &LayersStep) -> u64 {
    2 * step.said_max() as u64
}

/// Writes the layers as a run; `are_oldest` if there is no run below them. Returns whether anything
/// was written.
///
/// # Errors
/// Errors of the disk.
pub(super) fn write(
    step: &LayersStep,
    are_oldest: bool,
    writer: &mut RunWriter,
) -> std::io::Result<bool> {
    let mut ending = Vec::new();
    let mut key = Vec::new();
    let mut is_any = false;
    for (entry, value, ends_at) in step.entries() {
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
        ending.extend(step.vacant().map(|(end, entry)| (end, entry, true)));
    }
    ending.sort_unstable();
    // A place at which something expires again is not vacant.
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
