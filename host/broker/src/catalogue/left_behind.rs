//! Messages that wait for a processor in topics that it does not read: a revision dropped the topic, or the processor was deleted. They
//! wait until it reads the topic again.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use futures_util::future::try_join_all;
use metrics::gauge;
use millrace_engine::ReadError;
use millrace_model::{Offset, ProcessorName, Progress, Topic, TopicName, TopicPartition};
use serde::Serialize;

use crate::catalogue::handle::Catalogue;
use crate::ground::own_topics::REDRIVE_SUFFIX;

/// The gauge's name.
const LEFT_BEHIND: &str = "millrace_left_behind_messages";

/// Messages that wait for a processor in a topic that its current revision does not read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LeftBehind {
    /// The topic; for redriven dead letters their redrive topic.
    pub topic: TopicName,
    /// Parked messages.
    pub parked: u64,
    /// Redriven dead letters that were not read; absent if there are none.
    #[serde(skip_serializing_if = "is_zero")]
    pub unread: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Catalogue {
    /// What a processor leaves waiting in topics that it does not read, by topic; for a deleted one, everything that waits for it.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn left_behind(&self, name: &ProcessorName) -> Result<Vec<LeftBehind>, ReadError> {
        self.left_behind_in(name, &self.topics(), None).await
    }

    /// The same for these topics, by what it has committed, if that was read.
    pub(crate) async fn left_behind_in(
        &self,
        name: &ProcessorName,
        topics: &[Topic],
        committed: Option<&HashMap<TopicPartition, Arc<Progress>>>,
    ) -> Result<Vec<LeftBehind>, ReadError> {
        let known = self.deployed(name);
        let current = known.as_ref().and_then(|known| known.processor.current());
        let read = current.map_or(&[][..], |current| &current.spec.topics);
        let touched: HashSet<TopicPartition> = match committed {
            Some(committed) => committed.keys().copied().collect(),
            None => {
                let touched = self.inner.engine.progress_partitions(&name.group()).await?;
                touched.into_iter().collect()
            }
        };
        let topics_touched: HashSet<_> = touched.iter().map(|at| at.topic).collect();
        let mut asked = Vec::new();
        for topic in topics {
            let input = redriven_of(topic, name);
            let is_read = read.iter().any(|read| match input {
                Some(input) => read.as_str() == input,
                None => *read == topic.spec.name,
            });
            if is_read || input.is_none() && !topics_touched.contains(&topic.id) {
                continue;
            }
            asked.push(self.waiting_in(name, topic, &touched));
        }
        let found = try_join_all(asked).await?.into_iter();
        let waits = |waiting: &LeftBehind| waiting.parked + waiting.unread > 0;
        Ok(found.filter(waits).collect())
    }

    /// What waits for a processor in a topic, according to committed progress; `touched` says where it has progress.
    pub(crate) async fn waiting_in(
        &self,
        name: &ProcessorName,
        topic: &Topic,
        touched: &HashSet<TopicPartition>,
    ) -> Result<LeftBehind, ReadError> {
        let is_own = redriven_of(topic, name).is_some();
        let mut waiting = LeftBehind {
            topic: topic.spec.name.clone(),
            parked: 0,
            unread: 0,
        };
        // Concurrently: each one waits until earlier commits are durable.
        let asked = topic.partitions().map(|partition| async move {
            match touched.contains(&partition) {
                true => self.waits_in(name, partition).await,
                false => Ok((0, Offset::default())),
            }
        });
        let found = try_join_all(asked).await?;
        for (partition, (parked, next)) in topic.partitions().zip(found) {
            waiting.parked += parked;
            if is_own {
                let unread = self.inner.engine.count(partition, next, Offset::MAX);
                waiting.unread += unread.await?;
            }
        }
        Ok(waiting)
    }

    /// Parked messages in a partition, and the progress there.
    async fn waits_in(
        &self,
        name: &ProcessorName,
        partition: TopicPartition,
    ) -> Result<(u64, Offset), ReadError> {
        let progress = self.inner.engine.progress(&name.group(), partition).await?;
        let progress = progress.unwrap_or_default();
        Ok((progress.parked.len() as u64, progress.next))
    }

    /// Updates the gauges of messages that are left behind.
    pub async fn measure_left_behind(&self) {
        let topics = self.topics();
        for name in self.processor_names() {
            if let Ok(left) = self.left_behind_in(&name, &topics, None).await {
                let messages: u64 = left.iter().map(|left| left.parked + left.unread).sum();
                gauge!(LEFT_BEHIND, "processor" => name.to_string()).set(messages as f64);
            }
        }
    }
}

/// The input whose dead letters are redriven through this topic; `None` for any other topic.
fn redriven_of<'a>(topic: &'a Topic, name: &ProcessorName) -> Option<&'a str> {
    let is_own = topic.spec.owner.as_ref() == Some(name);
    let suffix = format!(".{name}{REDRIVE_SUFFIX}");
    let input = topic.spec.name.as_str().strip_suffix(suffix.as_str());
    input.filter(|_| is_own)
}
