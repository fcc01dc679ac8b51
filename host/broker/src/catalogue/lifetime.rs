//! How long messages stay: topics changed while they are used, partitions trimmed, messages found by their time.

use millrace_engine::{CommitError, ReadError, TopicChange, TopicError, TrimError};
use millrace_model::{
    Durability, Offset, PartitionId, ProcessorName, SettingError, SettingsPatch, Timestamp, Topic,
    TopicName,
};

use crate::catalogue::deciding::as_read;
use crate::catalogue::deciding::decision_errors;
use crate::catalogue::growth::{ChangedTopic, KeyedUse, listed};
use crate::catalogue::handle::Catalogue;

/// What is to be different about a topic.
#[derive(Clone, Debug, Default)]
pub struct TopicPatch {
    /// When its appends are acknowledged.
    pub durability: Option<Durability>,
    /// How many partitions it has from now on: as many as before, or more.
    pub partitions: Option<u32>,
    /// Whether it may have more although something depends on a key's messages being in one partition ([`KeyedUse`](crate::KeyedUse)).
    pub accept_moved_keys: bool,
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
    /// More partitions for a topic that follows another one in that.
    #[error(
        "topic {topic} was made for processor {owner} and has as many partitions as the topic that it reads"
    )]
    Follows {
        /// Which topic.
        topic: TopicName,
        /// Whose.
        owner: ProcessorName,
    },
    /// More partitions for a topic of which something depends on it where the messages of a key are.
    #[error(
        "with {asked} partitions instead of {have}, keys of topic {topic} move: further messages of a key may go to another partition \
         than those that are there. {}", listed(.uses)
    )]
    KeysMove {
        /// Which topic.
        topic: TopicName,
        /// How many it has.
        have: u32,
        /// What was asked for.
        asked: u32,
        /// What depends on it.
        uses: Vec<KeyedUse>,
    },
    /// There is none, or it could not be made durable.
    #[error(transparent)]
    Topic(#[from] TopicError),
}

decision_errors! {
    TopicChangeError: TopicChangeError::Topic;
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

impl Catalogue {
    /// Changes what may be changed about a topic, at once, whoever uses it meanwhile.
    ///
    /// # Errors
    /// [`TopicChangeError`]; nothing was changed.
    pub async fn change_topic(
        &self,
        name: &TopicName,
        patch: TopicPatch,
    ) -> Result<ChangedTopic, TopicChangeError> {
        self.decide(|| self.change_topic_now(name, &patch)).await
    }

    async fn change_topic_now(
        &self,
        name: &TopicName,
        patch: &TopicPatch,
    ) -> Result<ChangedTopic, TopicChangeError> {
        let topic = self.topic(name);
        let topic = topic.ok_or_else(|| TopicError::Unknown(name.clone()))?;
        let settings = patch.settings.over(&topic.spec.settings);
        settings.check()?;
        if let (true, Some(owner)) = (settings.compact, &topic.spec.owner) {
            let (topic, owner) = (name.clone(), owner.clone());
            return Err(TopicChangeError::Compacted { topic, owner });
        }
        let change = TopicChange {
            partitions: patch.partitions,
            durability: patch.durability,
            settings: Some(settings),
        };
        let more = patch.partitions.filter(|&p| p > topic.spec.partitions);
        if more.is_some() {
            return self.grow(&topic, change, patch.accept_moved_keys).await;
        }
        let (changes, expects) = (vec![(name.clone(), change)], vec![as_read(&topic)]);
        let changed = self.inner.engine.change_topics(changes, expects).await?;
        let topic = changed.into_iter().next().unwrap_or(topic);
        Ok(ChangedTopic { topic, grown: None })
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
        if let Some(dependents) = self.dependents() {
            dependents.trimmed(name);
        }
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
