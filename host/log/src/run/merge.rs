//! Several runs as one: of each key what the newest of them says.

use std::cmp::Ordering;
use std::sync::Arc;

use millrace_model::order::head;

use super::{Cursor, Item, Run, RunError, RunFacts, RunWriter};
use crate::pace::Pace;

/// Writes what these runs say together, the oldest of them first, into one, and ends it. Removals stay in it, for they count against
/// older runs; they go where there are none.
///
/// It reads at a pace, and so writes at it; an error of the pace breaks it off. What is damaged is never passed over.
///
/// # Errors
/// [`RunError`]. What was written until then is no run.
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

/// A place in several runs at once.
pub struct Merged<'a> {
    /// The oldest first.
    cursors: Vec<Cursor<'a>>,
    /// How the key that each is at begins; `None` at the end.
    heads: Vec<Option<u64>>,
    /// Those that are at the least key, the newest last.
    least: Vec<usize>,
}

impl<'a> Merged<'a> {
    /// At the least key of all; the cursors of the oldest run come first.
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

    /// What the newest run says of the key that it is at; `None` at the end.
    ///
    /// # Errors
    /// [`RunError`].
    pub fn item(&self) -> Result<Option<Item<'_>>, RunError> {
        match self.least.last() {
            Some(&newest) => self.cursors[newest].item(),
            None => Ok(None),
        }
    }

    /// Goes to the next key.
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

    /// The newest run that is at the least key is not as it was written.
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
            // Only keys that begin alike have to be looked at.
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
