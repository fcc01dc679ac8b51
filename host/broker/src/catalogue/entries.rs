//! Entries of the catalogue, as they are written.

use millrace_engine::{EntryKind, EntryWrite};
use serde::Serialize;

/// An entry of the catalogue, as written.
pub(crate) fn entry<T: Serialize>(kind: EntryKind, key: String, value: Option<&T>) -> EntryWrite {
    // Our own types, whose maps have text keys: they always serialise.
    let value = value.map(|value| serde_json::to_vec(value).unwrap_or_default().into());
    EntryWrite { kind, key, value }
}
