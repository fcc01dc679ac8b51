//! Entries of the catalogue, as they are written.

use millrace_engine::{EntryKind, EntryWrite};
use serde::Serialize;

/// A catalogue entry, serialised.
pub(crate) fn entry<T: Serialize>(kind: EntryKind, key: String, value: Option<&T>) -> EntryWrite {
    // Our own types, whose maps have string keys: they always serialise.
    let value = value.map(|value| serde_json::to_vec(value).unwrap_or_default().into());
    EntryWrite { kind, key, value }
}
