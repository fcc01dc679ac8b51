//! How long messages are kept: changing topics in use, trimming partitions, finding messages by time.

use millrace_engine::{ReadError, TopicChange, TopicError, TrimError};
use millrace_model::bounds::AUDIT_KEPT_MS_MIN;
use millrace_model::{
    Advice, Advised, Code, Durability, Offset, PartitionId, ProcessorName, SettingError,
    SettingsPatch, Timestamp, Topic, TopicName,
};

use crate::catalogue::deciding::{as_read, decision_errors};
use crate::catalogue::growth::{ChangedTopic, KeyedUse, listed};
use crate::catalogue::handle::Catalogue;
use crate::catalogue::unknown::{UnknownPartition, UnknownTopic, known_partition};
use crate::ground::own_topics::AUDIT_LOG;
use crate::ground::standing::Forbidden;
use crate::ground::verbs::Verb;

/// The changes to a topic.
#[derive(Clone, Debug, Default)]
pub struct TopicPatch {
    /// When appends are acknowledged.
    pub durability: Option<Durability>,
    /// The new number of partitions: the same as before, or more.
    pub partitions: Option<u32>,
    /// Whether to add partitions although a use depends on all messages of a key being in one partition
    /// ([`KeyedUse`](crate::KeyedUse)).
    pub accept_moved_keys: bool,
    /// Further settings; only those given change.
    pub settings: SettingsPatch,
}

/// Why a topic was not changed.
#[derive(Debug, thiserror::Error)]
pub enum TopicChangeError {
    /// The caller may not do it.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// A setting is out of its range.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// Another change of the audit log than how long it is kept.
    #[error(
        "of the audit log only how long it is kept can be changed, to {AUDIT_KEPT_MS_MIN} ms (a day) or more"
    )]
    AuditLog,
    /// Compaction of a topic in which each message counts, whatever its key.
    #[error(
        "topic {topic} was made for processor {owner}, so each of its messages is evidence and it cannot be compacted"
    )]
    Compacted {
        /// The topic's name.
        topic: TopicName,
        /// Its processor.
        owner: ProcessorName,
    },
    /// More partitions for a topic that follows its source topic.
    #[error(
        "topic {topic} was made for processor {owner} and always has as many partitions as that processor's input topic"
    )]
    Follows {
        /// The topic's name.
        topic: TopicName,
        /// Its processor.
        owner: ProcessorName,
    },
    /// More partitions for a topic with uses that depend on the positions of keys.
    #[error(
        "with {asked} partitions instead of {have}, keys of topic {topic} move: new messages of a key may go to another partition \
         than the existing ones. {}", listed(.uses)
    )]
    KeysMove {
        /// The topic's name.
        topic: TopicName,
        /// The present number of partitions.
        have: u32,
        /// The requested number.
        asked: u32,
        /// The uses that depend on it.
        uses: Vec<KeyedUse>,
    },
    /// The topic does not exist, or the change could not be made durable.
    #[error(transparent)]
    Topic(#[from] TopicError),
}

decision_errors! {
    TopicChangeError: TopicChangeError::Topic;
}

/// Whether a change of the audit log's topic only changes for how long it is kept: anything else would remove or hide records.
fn check_audit_log(patch: &TopicPatch) -> Result<(), TopicChangeError> {
    let only = SettingsPatch {
        retention_ms: patch.settings.retention_ms,
        ..SettingsPatch::default()
    };
    let is_only =
        patch.settings == only && patch.partitions.is_none() && patch.durability.is_none();
    let is_long = match patch.settings.retention_ms {
        Some(Some(kept_ms)) => kept_ms >= AUDIT_KEPT_MS_MIN,
        Some(None) | None => true,
    };
    match is_only && is_long {
        true => Ok(()),
        false => Err(TopicChangeError::AuditLog),
    }
}

impl Advised for TopicChangeError {
    fn advice(&self) -> Advice {
        match self {
            Self::Forbidden(error) => error.advice(),
            Self::Setting(error) => error.advice(),
            Self::AuditLog => Code::NotAllowed.hint("change retention_ms alone"),
            Self::Compacted { .. } => {
                Code::OwnedTopic.hint("bound it with retention_ms or retention_bytes instead")
            }
            Self::Follows { .. } => {
                Code::OwnedTopic.hint("add partitions to that topic; this one follows")
            }
            Self::KeysMove { .. } => Code::KeysWouldMove.advice(),
            Self::Topic(error) => error.advice(),
        }
    }
}

/// What a trim removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Before {
    /// Everything before an offset.
    Offset(Offset),
    /// Everything up to the end.
    End,
}

/// Why nothing more was removed.
#[derive(Debug, thiserror::Error)]
pub enum TopicTrimError {
    /// The caller may not do it.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// No such topic.
    #[error(transparent)]
    UnknownTopic(#[from] UnknownTopic),
    /// The topic has fewer partitions.
    #[error(transparent)]
    UnknownPartition(#[from] UnknownPartition),
    /// The offset is past the end, or it could not be made durable.
    #[error(transparent)]
    Trim(#[from] TrimError),
}

impl Advised for TopicTrimError {
    fn advice(&self) -> Advice {
        match self {
            Self::Forbidden(error) => error.advice(),
            Self::UnknownTopic(error) => error.advice(),
            Self::UnknownPartition(error) => error.advice(),
            Self::Trim(error) => error.advice(),
        }
    }
}

impl Catalogue {
    /// Changes the settings of a topic, at once, even while it is in use.
    ///
    /// # Errors
    /// [`TopicChangeError`]; nothing was changed.
    pub async fn change_topic(
        &self,
        name: &TopicName,
        patch: TopicPatch,
    ) -> Result<ChangedTopic, TopicChangeError> {
        self.caller.may(Verb::ChangeTopic, name.as_str())?;
        if name.as_str() == AUDIT_LOG && self.caller.rights().principal().is_some() {
            check_audit_log(&patch)?;
        }
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

    /// Removes messages of one partition, or of all of them in turn; returns where each now starts.
    /// A partition that ends before the offset is emptied if all partitions are meant, and refused
    /// if it was named.
    ///
    /// # Errors
    /// [`TopicTrimError`]; partitions before the failed one are trimmed.
    pub async fn trim(
        &self,
        name: &TopicName,
        partition: Option<PartitionId>,
        before: Before,
    ) -> Result<Vec<(PartitionId, Offset)>, TopicTrimError> {
        self.caller.may(Verb::Trim, name.as_str())?;
        let topic = self.known_topic(name)?;
        let partitions = match partition {
            None => topic.partitions().collect(),
            Some(partition) => vec![known_partition(&topic, partition)?],
        };
        let engine = &self.inner.engine;
        let mut starts = Vec::with_capacity(partitions.len());
        for at in partitions {
            let gone = |_| UnknownTopic(name.clone());
            let end = engine.ends(at).map_err(gone)?.end;
            let before = match before {
                Before::End => end,
                Before::Offset(offset) if partition.is_none() => offset.min(end),
                Before::Offset(offset) => offset,
            };
            let start = engine.trim(at, before).await?;
            starts.push((at.partition, start));
        }
        // Otherwise a worker would keep waiting for parked messages that were removed.
        if let Some(dependents) = self.dependents() {
            dependents.trimmed(name);
        }
        Ok(starts)
    }

    /// The first message of a partition whose timestamp is `at` or later; the partition's end if there is none, and `None` if the
    /// partition does not exist.
    ///
    /// # Errors
    /// [`ReadError`] if it cannot be looked up.
    pub async fn offset_at(
        &self,
        topic: &Topic,
        partition: PartitionId,
        at: Timestamp,
    ) -> Result<Option<Offset>, ReadError> {
        let Some(partition) = topic.partition(partition) else {
            return Ok(None);
        };
        // Read first, because messages that arrive meanwhile are after it.
        let end = self.inner.engine.ends(partition)?.end;
        let found = self.inner.engine.offset_at(partition, at).await?;
        Ok(Some(found.unwrap_or(end)))
    }
}
