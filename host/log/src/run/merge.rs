//! Several runs as one: of each key what the newest of them says.

use std::cmp::Ordering;

use super::{Cursor, Item, RunError};

/// A place in several runs at once.
pub struct Merged<'a> {
    /// The oldest first.
    cursors: Vec<Cursor<'a>>,
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
        let mut merged = Self { cursors, least };
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
        }
        self.look()
    }

    fn look(&mut self) -> Result<(), RunError> {
        self.least.clear();
        let mut least: Option<Item<'_>> = None;
        for (place, cursor) in self.cursors.iter().enumerate() {
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
