//! The entries of a catalogue and their versions, as an engine keeps them in memory.

use std::collections::BTreeMap;

use bytes::Bytes;
use millrace_model::{Digest, Topic, TopicName};

use crate::contract::{CommitError, Entry, EntryKind, Expectation, Version};

/// Entries by kind and key.
#[derive(Clone, Debug, Default)]
pub struct Entries {
    kinds: [Kind; EntryKind::ALL.len()],
}

#[derive(Clone, Debug, Default)]
struct Kind {
    by_key: BTreeMap<String, Entry>,
    newest: Version,
}

impl Entries {
    /// Sets or removes an entry; either is a write with a version.
    pub fn set(&mut self, kind: EntryKind, key: String, value: Option<Bytes>) -> Version {
        let kind = &mut self.kinds[kind as usize];
        kind.newest.0 += 1;
        let version = kind.newest;
        match value {
            Some(value) => kind.by_key.insert(key, Entry { value, version }),
            None => kind.by_key.remove(&key),
        };
        version
    }

    /// Takes over a write that was given its version elsewhere; returns whether it is news. Writes of one key arrive in any order.
    pub fn hear(
        &mut self,
        kind: EntryKind,
        key: String,
        value: Option<Bytes>,
        version: Version,
    ) -> bool {
        let kind = &mut self.kinds[kind as usize];
        let is_newer = kind.newest < version;
        kind.newest = kind.newest.max(version);
        let known = kind.by_key.get(&key).map(|entry| entry.version);
        if !is_newer && known.is_none_or(|known| known >= version) {
            return false;
        }
        match value {
            Some(value) => kind.by_key.insert(key, Entry { value, version }),
            None => kind.by_key.remove(&key),
        };
        true
    }

    /// All entries of a kind, by key.
    pub fn of(&self, kind: EntryKind) -> &BTreeMap<String, Entry> {
        &self.kinds[kind as usize].by_key
    }

    /// One entry.
    pub fn get(&self, kind: EntryKind, key: &str) -> Option<&Entry> {
        self.of(kind).get(key)
    }

    /// The version of the newest write.
    pub fn version(&self, kind: EntryKind) -> Version {
        self.kinds[kind as usize].newest
    }
}

/// Whether all expectations hold in the current state.
pub fn check<'a>(
    expects: &[Expectation],
    entry: impl Fn(EntryKind, &str) -> Option<Version>,
    newest: impl Fn(EntryKind) -> Version,
    topic: impl Fn(&TopicName) -> Option<&'a Topic>,
    partitions_some: impl Fn(Digest) -> bool,
) -> Result<(), CommitError> {
    let is_so = |expectation: &&Expectation| match expectation {
        Expectation::Entry { kind, key, version } => entry(*kind, key) == *version,
        Expectation::Kind { kind, version } => newest(*kind) == *version,
        Expectation::Topic {
            name,
            topic: expected,
        } => topic(name) == expected.as_ref(),
        Expectation::NoPartitioner { module } => !partitions_some(*module),
        // The engine that has one checks what is taken from it.
        Expectation::Outbox => true,
    };
    match expects.iter().find(|expectation| !is_so(expectation)) {
        Some(broken) => Err(CommitError::Conflict(broken.clone().into())),
        None => Ok(()),
    }
}
