//! A lease: what tells whoever works at a group's partition from all who did before.

use millrace_model::{GroupName, TopicPartition};

/// The right to commit progress and state of one group in one partition, until somebody holds or claims it anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Whose progress; a processor's name.
    pub group: GroupName,
    /// Where.
    pub partition: TopicPartition,
    /// Counts the claims; only the highest may commit.
    pub epoch: u64,
}
