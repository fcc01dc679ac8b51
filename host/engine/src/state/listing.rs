//! Listing: the committed keys and those of the attempt, as one, in order.

use std::sync::Arc;

use millrace_model::bounds::{STATE_CALL_BYTES_MAX, STATE_CALL_KEYS_MAX};

use super::StateValue;
use super::attempt::{StateAttempt, StateError, ValueColumns};
use super::table::Entries;

impl StateAttempt {
    /// Keys that begin with the prefix and come after one, in order, with their values: at most so many, and fewer where they have
    /// many bytes. An empty answer is the end.
    ///
    /// # Errors
    /// [`StateError::Misuse`].
    pub fn list(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        keys_max: usize,
    ) -> Result<ValueColumns, StateError> {
        let keys_max = keys_max.min(STATE_CALL_KEYS_MAX);
        let entries = self.table.read();
        let mut own: Vec<&Arc<[u8]>> = self.writes.keys().collect();
        own.retain(|key| key.starts_with(prefix) && after.is_none_or(|after| ***key > *after));
        own.sort_unstable();
        let mut own = own.into_iter().peekable();
        let mut held = entries.keys(prefix, after).peekable();
        let mut listed = ValueColumns::default();
        while listed.values.len() < keys_max * 2 {
            let key = match (own.peek(), held.peek()) {
                (None, None) => break,
                (Some(own), Some(held)) => (*own).min(*held),
                (Some(key), None) | (None, Some(key)) => *key,
            };
            own.next_if(|own| *own == key);
            held.next_if(|held| *held == key);
            let Some(value) = self.value(&entries, key) else {
                continue;
            };
            let bytes = listed.data.len() + key.len() + value.as_bytes().len();
            if bytes > STATE_CALL_BYTES_MAX {
                break;
            }
            listed
                .keys
                .extend([listed.data.len() as u32, key.len() as u32]);
            listed.data.extend_from_slice(key);
            listed.push_value(Some(value))?;
        }
        Ok(listed)
    }

    fn value<'a>(&'a self, entries: &'a Entries, key: &[u8]) -> Option<&'a StateValue> {
        match self.writes.get(key) {
            Some(written) => written.value.as_ref(),
            None => entries.get(key, self.now).map(|entry| &entry.value),
        }
    }
}
