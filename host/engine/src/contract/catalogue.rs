//! The catalogue: entries by kind and key, and topics; and the expectations that must hold when a decision about them is committed.

use std::fmt;

use bytes::Bytes;
use millrace_model::{Digest, Topic, TopicName};

/// A kind of catalogue entry. Topics are not entries: they have storage, so engines know them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EntryKind {
    /// The record of an uploaded module, by its digest.
    Module,
    /// A processor and its revisions, by its name.
    Processor,
    /// The record of redriven dead letters, by DLQ topic and partition.
    Redriven,
    /// Known damaged messages, by partition and first offset. Written by the engine itself.
    Damage,
    /// A schedule and its next time, by its name.
    Schedule,
    /// The newest version that a module's name has had, by the name.
    Newest,
    /// A route, by its path.
    Route,
    /// A principal with its rules and tokens, by its name.
    Principal,
}

impl EntryKind {
    /// All kinds.
    pub const ALL: [Self; 8] = [
        Self::Module,
        Self::Processor,
        Self::Redriven,
        Self::Damage,
        Self::Schedule,
        Self::Newest,
        Self::Route,
        Self::Principal,
    ];

    /// The kind's stored word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Module => "module",
            Self::Processor => "processor",
            Self::Redriven => "redriven",
            Self::Damage => "damage",
            Self::Schedule => "schedule",
            Self::Newest => "newest",
            Self::Route => "route",
            Self::Principal => "principal",
        }
    }

    /// The kind of a stored word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}

/// One change of the catalogue: a value is set or (`None`) removed.
#[derive(Clone, Debug)]
pub struct EntryWrite {
    /// The kind of entry.
    pub kind: EntryKind,
    /// Its key, unique within the kind.
    pub key: String,
    /// Its new value, opaque to the engine.
    pub value: Option<Bytes>,
}

/// The position of a write among all writes of its kind of entry. No version is reused, not even for a key that was removed and created
/// again. Valid while the engine is open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(pub u64);

/// An entry and its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its value, opaque to the engine.
    pub value: Bytes,
    /// The version of the write that set it.
    pub version: Version,
}

/// What a decision was based on. If it no longer holds when the transaction is committed, nothing takes effect
/// ([`CommitError::Conflict`](super::CommitError::Conflict)); everything else may change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expectation {
    /// One entry.
    Entry {
        /// The kind of entry.
        kind: EntryKind,
        /// Its key.
        key: String,
        /// Its version; `None`: the entry does not exist.
        version: Option<Version>,
    },
    /// All entries of a kind, and that there are no others.
    Kind {
        /// The kind.
        kind: EntryKind,
        /// The version of the newest write; a removal counts as one.
        version: Version,
    },
    /// One topic.
    Topic {
        /// Its name.
        name: TopicName,
        /// The whole topic; `None`: the topic does not exist.
        topic: Option<Topic>,
    },
    /// No topic has this module as its partitioner.
    NoPartitioner {
        /// The module.
        module: Digest,
    },
    /// The messages that the transaction takes from the [outbox](super::Transaction::outbox) are still there.
    Outbox,
}

impl Expectation {
    /// An entry is as it was read.
    #[must_use]
    pub fn entry(kind: EntryKind, key: impl Into<String>, read: Option<&Entry>) -> Self {
        Self::Entry {
            kind,
            key: key.into(),
            version: read.map(|entry| entry.version),
        }
    }
}

impl fmt::Display for Expectation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Entry { kind, key, .. } => match kind {
                EntryKind::Redriven => write!(f, "the record of redrives from {key}"),
                EntryKind::Damage => write!(f, "the record of damage at {key}"),
                _ => write!(f, "{} {key}", kind.as_str()),
            },
            Self::Kind { kind, .. } => write!(f, "another {}", kind.as_str()),
            Self::Topic { name, .. } => write!(f, "topic {name}"),
            Self::NoPartitioner { module } => {
                write!(f, "a topic that module {module} is the partitioner of")
            }
            Self::Outbox => f.write_str("the outbox"),
        }
    }
}
