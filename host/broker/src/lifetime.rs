//! How long messages stay: topics changed while they are used, partitions trimmed, messages found by their time.

use millrace_engine::{CommitError, ReadError, TopicChange, TopicError, TrimError};
use millrace_model::{
    Durability, Offset, PartitionId, ProcessorName, SettingError, SettingsPatch, Timestamp, Topic,
    TopicName,
};

use crate::broker::Broker;

/// What is to be different about a topic.
#[derive(Clone, Debug, Default)]
pub struct TopicPatch {
    /// When its appends are acknowledged.
    pub durability: Option<Durability>,
    /// What else; only what is named changes.
    pub settings: SettingsPatch,
}

/// Why a topic stayed as it was.
#[derive(Debug, thiserror::Error)]
pub enum TopicChangeError {
    /// A setting outside its bounds.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// Compaction of a topic whose messages do not stand for their keys.
    #[error(
        "topic {topic} was made for processor {owner}, whose messages are evidence: each counts, so it is not compacted"
    )]
    Compacted {
        /// Which topic.
        topic: TopicName,
        /// Whose.
        owner: ProcessorName,
    },
    /// There is none, or it could not be made durable.
    #[error(transparent)]
    Topic(#[from] TopicError),
}

/// What a trim removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// Everything before an offset.
    Offset(Offset),
    /// Everything that is there now.
    End,
}

/// Why nothing more was removed.
#[derive(Debug, thiserror::Error)]
pub enum TopicTrimError {
    /// No such topic.
    #[error("topic {0} does not exist")]
    Unknown(TopicName),
    /// The topic has fewer partitions.
    #[error("topic {topic} has partitions 0 to {}, not {partition}", .partitions - 1)]
    UnknownPartition {
        /// Which topic.
        topic: TopicName,
        /// What was asked for.
        partition: PartitionId,
        /// How many there are.
        partitions: u32,
    },
    /// What is not there yet cannot be removed.
    #[error("nothing before offset {requested} can be removed: the partition ends at {end}")]
    PastEnd {
        /// What was asked for.
        requested: Offset,
        /// The end.
        end: Offset,
    },
    /// It could not be made durable.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

impl Broker {
    /// Changes what may be changed about a topic, at once, whoever uses it meanwhile.
    ///
    /// # Errors
    /// [`TopicChangeError`]; nothing was changed.
    pub async fn change_topic(
        &self,
        name: &TopicName,
        patch: TopicPatch,
    ) -> Result<Topic, TopicChangeError> {
        let _change = self.inner.changes.lock().await;
        let topic = self.topic(name);
        let topic = topic.ok_or_else(|| TopicError::Unknown(name.clone()))?;
        let settings = patch.settings.over(&topic.spec.settings);
        settings.check()?;
        if let (true, Some(owner)) = (settings.compact, topic.spec.owner) {
            let topic = name.clone();
            return Err(TopicChangeError::Compacted { topic, owner });
        }
        let change = TopicChange {
            durability: patch.durability,
            settings: Some(settings),
        };
        Ok(self.inner.engine.change_topic(name, change).await?)
    }

    /// Removes messages of one partition, or of all of them, one after the other; where each of them begins now. A partition that ends
    /// before the offset is emptied where all are meant, and refused where it is named.
    ///
    /// # Errors
    /// [`TopicTrimError`]; partitions before the one that failed are trimmed.
    pub async fn trim(
        &self,
        name: &TopicName,
        partition: Option<PartitionId>,
        before: Before,
    ) -> Result<Vec<(PartitionId, Offset)>, TopicTrimError> {
        let topic = self.topic(name);
        let topic = topic.ok_or_else(|| TopicTrimError::Unknown(name.clone()))?;
        let partitions = match partition {
            None => topic.partitions().collect(),
            Some(partition) => {
                let unknown = || TopicTrimError::UnknownPartition {
                    topic: name.clone(),
                    partition,
                    partitions: topic.spec.partitions,
                };
                vec![topic.partition(partition).ok_or_else(unknown)?]
            }
        };
        let engine = &self.inner.engine;
        let mut starts = Vec::with_capacity(partitions.len());
        for at in partitions {
            let gone = |_| TopicTrimError::Unknown(name.clone());
            let end = engine.ends(at).map_err(gone)?.end;
            let before = match before {
                Before::End => end,
                Before::Offset(offset) if partition.is_none() => offset.min(end),
                Before::Offset(offset) => offset,
            };
            let start = engine.trim(at, before).await.map_err(refused)?;
            starts.push((at.partition, start));
        }
        // Parked messages that are gone wait for nothing.
        self.inner.supervisor.nudge(name);
        Ok(starts)
    }

    /// The first message of a partition whose timestamp is `at` or later; the partition's end if there is none, and `None` if it does
    /// not exist.
    ///
    /// # Errors
    /// [`ReadError`] where it cannot be looked for.
    pub async fn offset_at(
        &self,
        topic: &Topic,
        partition: PartitionId,
        at: Timestamp,
    ) -> Result<Option<Offset>, ReadError> {
        let Some(partition) = topic.partition(partition) else {
            return Ok(None);
        };
        // Asked first: what comes meanwhile is after it.
        let end = self.inner.engine.ends(partition)?.end;
        let found = self.inner.engine.offset_at(partition, at).await?;
        Ok(Some(found.unwrap_or(end)))
    }
}

fn refused(error: TrimError) -> TopicTrimError {
    match error {
        TrimError::PastEnd { requested, end } => TopicTrimError::PastEnd { requested, end },
        TrimError::Commit(error) => TopicTrimError::Commit(error),
    }
}
