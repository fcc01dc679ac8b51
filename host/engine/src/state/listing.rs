//! Listing: the committed keys and those of the attempt, as one, in order.

use std::sync::Arc;

use millrace_model::bounds::{STATE_CALL_BYTES_MAX, STATE_CALL_KEYS_MAX};

use super::StateValue;
use super::attempt::{StateAttempt, StateError, ValueColumns};
use super::resident::{Entries, range};

/// Keys that are looked at before the table is let go for a moment, for there may be many that have ended: commits wait meanwhile.
const KEYS_AT_ONCE: usize = 1_000;

impl StateAttempt {
    /// Keys that begin with the prefix and come after one, in order, with their values: at most so many, and fewer where they have
    /// many bytes. An empty answer is the end.
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
            match self.list_on(prefix, last.as_deref(), keys_max, &mut listed)? {
                Some(key) => last = Some(key),
                None => return Ok(listed),
            }
        }
    }

    /// Goes on with a listing; the last key looked at, unless it is at its end.
    fn list_on(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        keys_max: usize,
        listed: &mut ValueColumns,
    ) -> Result<Option<Arc<[u8]>>, StateError> {
        let entries = self.table.read();
        let own = self.ordered.iter();
        let mut own = own.flat_map(|own| range(own, prefix, after)).peekable();
        let mut held = range(&entries.ordered, prefix, after).peekable();
        let mut looked_at = 0;
        while listed.values.len() < keys_max * 2 {
            let key = match (own.peek(), held.peek()) {
                (None, None) => return Ok(None),
                (Some(own), Some(held)) => (*own).min(*held),
                (Some(key), None) | (None, Some(key)) => *key,
            };
            own.next_if(|own| *own == key);
            held.next_if(|held| *held == key);
            looked_at += 1;
            if let Some(value) = self.value(&entries, key) {
                let bytes = listed.data.len() + key.len() + value.as_bytes().len();
                if bytes > STATE_CALL_BYTES_MAX {
                    return Ok(None);
                }
                listed
                    .keys
                    .extend([listed.data.len() as u32, key.len() as u32]);
                listed.data.extend_from_slice(key);
                listed.push_value(Some(value))?;
            }
            if looked_at == KEYS_AT_ONCE {
                return Ok(Some(Arc::clone(key)));
            }
        }
        Ok(None)
    }

    fn value<'a>(&'a self, entries: &'a Entries, key: &[u8]) -> Option<&'a StateValue> {
        match self.writes.get(key) {
            Some(written) => written.value.as_ref(),
            None => entries.get(key, self.now).map(|entry| &entry.value),
        }
    }
}
