//! Several runs as one: for each key the value in the newest of them.

use std::cmp::Ordering;
use std::sync::Arc;

use millrace_model::order::head;

use super::{Cursor, Item, Run, RunError, RunFacts, RunWriter};
use crate::pace::Pace;

/// Merges these runs, oldest first, into one, and finishes it. Removals are kept, because they
/// apply to older runs; without older runs they are dropped.
///
/// It reads, and so writes, at a pace; an error of the pace interrupts it. Damage is never skipped.
///
/// # Errors
/// [`RunError`]. The unfinished file is not a run.
pub fn merge(
    runs: &[Arc<Run>],
    are_oldest: bool,
    mut writer: RunWriter,
    pace: &Pace,
) -> Result<RunFacts, RunError> {
    let path = writer.path().to_owned();
    let io = |source| RunError::Io {
        path: path.clone(),
        source,
    };
    let cursors = runs.iter().map(|run| run.cursor_at_pace(pace));
    let mut merged = Merged::of(cursors.collect::<Result<_, _>>()?)?;
    while let Some(item) = merged.item()? {
        if !writer.comes_next(&item) {
            return Err(merged.malformed());
        }
        if item.value.is_some() || !are_oldest {
            writer.put_next(&item).map_err(io)?;
        }
        merged.advance()?;
    }
    writer.finish().map_err(io)
}

/// A position in several runs at once.
pub struct Merged<'a> {
    /// The oldest first.
    cursors: Vec<Cursor<'a>>,
    /// The beginning of each cursor's current key; `None` at the end.
    heads: Vec<Option<u64>>,
    /// The cursors at the least key, the newest last.
    least: Vec<usize>,
}

impl<'a> Merged<'a> {
    /// Starts at the least key of all cursors; the cursor of the oldest run comes first.
    ///
    /// # Errors
    /// [`RunError`].
    pub fn of(cursors: Vec<Cursor<'a>>) -> Result<Self, RunError> {
        let least = Vec::with_capacity(cursors.len());
        let heads = cursors.iter().map(head_of).collect::<Result<_, _>>()?;
        let mut merged = Self {
            cursors,
            heads,
            least,
        };
        merged.look()?;
        Ok(merged)
    }

    /// The newest run's item for the current key; `None` at the end.
    ///
    /// # Errors
    /// [`RunError`].
    pub fn item(&self) -> Result<Option<Item<'_>>, RunError> {
        match self.least.last() {
            Some(&newest) => self.cursors[newest].item(),
            None => Ok(None),
        }
    }

    /// Moves to the next key.
    ///
    /// # Errors
    /// [`RunError`].
    pub fn advance(&mut self) -> Result<(), RunError> {
        for &at in &self.least {
            self.cursors[at].advance()?;
            self.heads[at] = head_of(&self.cursors[at])?;
        }
        self.look()
    }

    /// The error that the newest run at the least key is malformed.
    fn malformed(&self) -> RunError {
        let newest = self.least.last().copied().unwrap_or_default();
        self.cursors[newest].malformed()
    }

    fn look(&mut self) -> Result<(), RunError> {
        self.least.clear();
        let Some(head) = self.heads.iter().copied().flatten().min() else {
            return Ok(());
        };
        let mut least: Option<Item<'_>> = None;
        for (place, cursor) in self.cursors.iter().enumerate() {
            // Only keys with the same beginning must be compared completely.
            if self.heads[place] != Some(head) {
                continue;
            }
            let Some(item) = cursor.item()? else {
                continue;
            };
            match least.map_or(Ordering::Less, |least| item.key.cmp(least.key)) {
                Ordering::Greater => continue,
                Ordering::Equal => {}
                Ordering::Less => self.least.clear(),
            }
            least = Some(item);
            self.least.push(place);
        }
        Ok(())
    }
}

fn head_of(cursor: &Cursor<'_>) -> Result<Option<u64>, RunError> {
    Ok(cursor.item()?.map(|item| head(item.key)))
}
