//! A batch that the current revision has settled, as the shadow gets it.

use std::sync::Arc;

use millrace_model::{ColumnBatch, Offset, PartitionId, TopicName};

use crate::dispatch::answer::{Glance, Verdict};
use crate::dispatch::live::Live;

/// A batch that the current revision has settled.
pub(crate) struct SettledBatch {
    pub(crate) topic: TopicName,
    pub(crate) partition: PartitionId,
    pub(crate) columns: Arc<ColumnBatch>,
    pub(crate) offsets: Vec<Offset>,
    /// The revision that settled it, and its answer.
    pub(crate) live: Arc<Live>,
    pub(crate) verdict: Verdict,
    pub(crate) glance: Glance,
}
