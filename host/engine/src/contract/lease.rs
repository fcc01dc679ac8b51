//! A lease: distinguishes the current worker of a group in a partition from all earlier ones.

use millrace_model::{GroupName, TopicPartition};

/// The right to commit progress and state of one group in one partition, until someone else holds or claims it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The group.
    pub group: GroupName,
    /// The partition.
    pub partition: TopicPartition,
    /// Counts the claims; only the highest may commit.
    pub epoch: u64,
}
