//! Listing: the committed keys and those of the attempt, as one, in order.

use std::sync::Arc;

use millrace_model::bounds::{STATE_CALL_BYTES_MAX, STATE_CALL_KEYS_MAX};

use super::StateValue;
use super::attempt::{StateAttempt, StateError, ValueColumns};
use super::picture::Picture;
use super::resident::{Entries, after_of, range};

/// Keys visited before the table is unlocked for a moment, because many may have expired and commits wait.
const KEYS_AT_ONCE: usize = 1_000;

/// The position of a listing.
enum Step {
    /// This key was visited last.
    On(Arc<[u8]>),
    /// Nothing was visited: the table is no longer in memory.
    Paged,
    Over,
}

impl StateAttempt {
    /// Keys with the prefix after a given one, in order, with their values: up to this many, and fewer if they are large. An empty
    /// answer is the end.
    ///
    /// # Errors
    /// [`StateError::Misuse`].
    pub fn list(
        &mut self,
        prefix: &[u8],
        after: Option<&[u8]>,
        keys_max: usize,
    ) -> Result<ValueColumns, StateError> {
        let keys_max = keys_max.min(STATE_CALL_KEYS_MAX);
        if self.ordered.is_none() {
            self.ordered = Some(self.writes.keys().cloned().collect());
        }
        let mut listed = ValueColumns::default();
        let mut last: Option<Arc<[u8]>> = after.map(Arc::from);
        loop {
            // A table may be paged between two steps: the rest is then listed from its runs.
            let picture = self.picture.clone().or_else(|| self.table.picture());
            if let Some(picture) = picture {
                self.list_picture(&picture, prefix, last.as_deref(), keys_max, &mut listed)?;
                return Ok(listed);
            }
            match self.list_on(prefix, last.as_deref(), keys_max, &mut listed)? {
                Step::On(key) => last = Some(key),
                Step::Paged => {}
                Step::Over => return Ok(listed),
            }
        }
    }

    /// Continues a listing of a table in memory.
    fn list_on(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        keys_max: usize,
        listed: &mut ValueColumns,
    ) -> Result<Step, StateError> {
        let Some(entries) = self.table.resident() else {
            return Ok(Step::Paged);
        };
        let entries = &*entries;
        let own = self.ordered.iter();
        let mut own = own.flat_map(|own| range(own, prefix, after)).peekable();
        let mut held = range(&entries.ordered, prefix, after).peekable();
        let mut looked_at = 0;
        while listed.values.len() < keys_max * 2 {
            let key = match (own.peek(), held.peek()) {
                (None, None) => return Ok(Step::Over),
                (Some(own), Some(held)) => (*own).min(*held),
                (Some(key), None) | (None, Some(key)) => *key,
            };
            own.next_if(|own| *own == key);
            held.next_if(|held| *held == key);
            looked_at += 1;
            if let Some(value) = self.value(entries, key)
                && !listed.push(key, value)?
            {
                return Ok(Step::Over);
            }
            if looked_at == KEYS_AT_ONCE {
                return Ok(Step::On(Arc::clone(key)));
            }
        }
        Ok(Step::Over)
    }

    /// A listing of a paged table: it may read from the disk, and holds no lock.
    fn list_picture(
        &self,
        picture: &Picture,
        prefix: &[u8],
        after: Option<&[u8]>,
        keys_max: usize,
        listed: &mut ValueColumns,
    ) -> Result<(), StateError> {
        let own = self.ordered.iter();
        let mut own = own.flat_map(|own| range(own, prefix, after)).peekable();
        let mut walk = picture.walk(after_of(prefix, after))?;
        let mut next = || {
            let entry = walk.next()?;
            Ok::<_, StateError>(entry.filter(|entry| entry.key.starts_with(prefix)))
        };
        let mut held = next()?;
        while listed.values.len() < keys_max * 2 {
            let is_own = match (own.peek(), &held) {
                (None, None) => return Ok(()),
                (Some(own), Some(held)) => **own <= held.key,
                (own, _) => own.is_some(),
            };
            let added = match own.next_if(|_| is_own) {
                Some(key) => {
                    if held.as_ref().is_some_and(|held| held.key == *key) {
                        held = next()?;
                    }
                    let value = self.writes.get(key).and_then(|w| w.value.as_ref());
                    value.map_or(Ok(true), |value| listed.push(key, value))?
                }
                None => {
                    let entry = std::mem::replace(&mut held, next()?);
                    let entry = entry.filter(|entry| entry.ends_at > self.now);
                    entry.map_or(Ok(true), |entry| listed.push(&entry.key, &entry.value))?
                }
            };
            if !added {
                return Ok(());
            }
        }
        Ok(())
    }

    fn value<'a>(&'a self, entries: &'a Entries, key: &[u8]) -> Option<&'a StateValue> {
        match self.writes.get(key) {
            Some(written) => written.value.as_ref(),
            None => entries.get(key, self.now).map(|entry| &entry.value),
        }
    }
}

impl ValueColumns {
    /// Adds a key and its value; returns whether there was room for both.
    fn push(&mut self, key: &[u8], value: &StateValue) -> Result<bool, StateError> {
        let bytes = self.data.len() + key.len() + value.as_bytes().len();
        if bytes > STATE_CALL_BYTES_MAX {
            return Ok(false);
        }
        self.keys.extend([self.data.len() as u32, key.len() as u32]);
        self.data.extend_from_slice(key);
        self.push_value(Some(value))?;
        Ok(true)
    }
}
