//! Rehearsals of routes: what a component sends is kept instead of stored, and what it reads of processors' state comes from a sample.
//! For `millrace test`.
//!
//! Each topic has one partition here unless a message names another, and each processor keeps its state in partition 0. Messages count
//! as settled at once.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use millrace_engine::state::keeper::KeepTable;
use millrace_engine::state::{
    StateChange, StatePage, StateQuery, StateTable, StateValue, StateWrites,
};
use millrace_model::bounds::VIEW_KEYS_MAX;
use millrace_model::{Clock, Offset, PartitionId, ProcessorName, TopicName};
use parking_lot::Mutex;

use crate::handler::{AccessError, Outgoing, RouteAccess, Sent, SentPlace, View};

/// What the component of a route can reach in a rehearsal.
pub struct RouteRehearsal {
    /// The topics that are granted; `None`: every topic.
    topics: Option<Vec<TopicName>>,
    views: BTreeMap<ProcessorName, Arc<StateTable>>,
    clock: Arc<dyn Clock>,
    done: Mutex<Done>,
}

/// What was sent so far.
#[derive(Default)]
struct Done {
    /// Since the last look.
    sent: Vec<(TopicName, Outgoing)>,
    /// The next offset of each partition.
    next: BTreeMap<(TopicName, PartitionId), u64>,
    /// Calls with a key.
    keys: BTreeMap<(TopicName, String), (Vec<Outgoing>, Sent)>,
}

impl fmt::Debug for RouteRehearsal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RouteRehearsal")
            .field("topics", &self.topics)
            .finish_non_exhaustive()
    }
}

impl RouteRehearsal {
    /// With these topics granted, or every topic, and no state.
    #[must_use]
    pub fn new(topics: Option<Vec<TopicName>>, clock: Arc<dyn Clock>) -> Self {
        Self {
            topics,
            views: BTreeMap::new(),
            clock,
            done: Mutex::default(),
        }
    }

    /// Grants the state of a processor, which is this.
    ///
    /// # Errors
    /// Says which entry is too large.
    pub fn set_view(
        &mut self,
        processor: ProcessorName,
        changes: Vec<StateChange>,
    ) -> Result<(), String> {
        changes.iter().try_for_each(StateChange::check)?;
        let writes = StateWrites {
            changes,
            ..StateWrites::default()
        };
        let table = self.views.entry(processor).or_default();
        Ok(table.apply(&writes)?)
    }

    /// The messages that were sent since the last look, with their topics, in order.
    #[must_use]
    pub fn take_sent(&self) -> Vec<(TopicName, Outgoing)> {
        std::mem::take(&mut self.done.lock().sent)
    }

    fn granted_topic(&self, topic: &str) -> Result<TopicName, AccessError> {
        let topic = TopicName::parse(topic).map_err(misspelt)?;
        let granted = self.topics.as_ref();
        match granted.is_none_or(|granted| granted.contains(&topic)) {
            true => Ok(topic),
            false => Err(AccessError::NotGranted(format!(
                "the sample does not grant topic {topic}; add it to `topics` in the sample's settings"
            ))),
        }
    }

    fn granted_view(&self, view: &View) -> Result<&Arc<StateTable>, AccessError> {
        let processor = ProcessorName::parse(&view.processor).map_err(misspelt)?;
        self.views.get(&processor).ok_or_else(|| {
            AccessError::NotGranted(format!(
                "the sample has no state of processor {processor}; write [views.{processor}] in the sample's settings"
            ))
        })
    }

    fn page(table: &StateTable, query: &StateQuery) -> Result<StatePage, AccessError> {
        let page = table.page(query);
        page.map_err(|error| AccessError::Unavailable(error.to_string()))
    }
}

fn misspelt(error: impl fmt::Display) -> AccessError {
    AccessError::Refused(error.to_string())
}

fn check_partition(partition: PartitionId) -> Result<(), AccessError> {
    match partition {
        PartitionId(0) => Ok(()),
        PartitionId(other) => Err(AccessError::Refused(format!(
            "there is no partition {other}; the state of a sample is in partition 0"
        ))),
    }
}

#[async_trait]
impl RouteAccess for RouteRehearsal {
    async fn send(
        &self,
        topic: &str,
        messages: Vec<Outgoing>,
        key: Option<String>,
    ) -> Result<Sent, AccessError> {
        let topic = self.granted_topic(topic)?;
        let mut done = self.done.lock();
        let key = key.map(|key| (topic.clone(), key));
        if let Some((before, sent)) = key.as_ref().and_then(|key| done.keys.get(key)) {
            return match *before == messages {
                true => Ok(Sent {
                    repeated: true,
                    ..sent.clone()
                }),
                false => Err(AccessError::KeyReused(
                    "the key was used before, for other messages".to_owned(),
                )),
            };
        }
        let mut place = |outgoing: &Outgoing| {
            let partition = outgoing.partition.unwrap_or(PartitionId(0));
            let offset = outgoing.deliver_at.is_none().then(|| {
                let next = done.next.entry((topic.clone(), partition)).or_default();
                *next += 1;
                Offset(*next - 1)
            });
            SentPlace { partition, offset }
        };
        let sent = Sent {
            places: messages.iter().map(&mut place).collect(),
            repeated: false,
        };
        if let Some(key) = key {
            done.keys.insert(key, (messages.clone(), sent.clone()));
        }
        let named = messages.into_iter().map(|message| (topic.clone(), message));
        done.sent.extend(named);
        Ok(sent)
    }

    async fn settled(
        &self,
        processor: &str,
        topic: &str,
        _places: Vec<SentPlace>,
        _patience: Duration,
    ) -> Result<bool, AccessError> {
        self.granted_topic(topic)?;
        ProcessorName::parse(processor).map_err(misspelt)?;
        Ok(true)
    }

    async fn partitions(&self, view: &View) -> Result<u32, AccessError> {
        self.granted_view(view).map(|_| 1)
    }

    async fn values(
        &self,
        view: &View,
        partition: Option<PartitionId>,
        keys: Vec<Bytes>,
    ) -> Result<Vec<Option<StateValue>>, AccessError> {
        let table = self.granted_view(view)?;
        partition.map_or(Ok(()), check_partition)?;
        if keys.len() > VIEW_KEYS_MAX {
            return Err(AccessError::Refused(format!(
                "{} keys at once; the maximum is {VIEW_KEYS_MAX}: ask in several calls",
                keys.len()
            )));
        }
        let value = |key: &Bytes| {
            let query = StateQuery {
                prefix: key.to_vec(),
                entries_max: 1,
                bytes_max: usize::MAX,
                now: self.clock.wall(),
                ..StateQuery::default()
            };
            let page = Self::page(table, &query)?;
            let mut entries = page.entries.into_iter();
            // The first entry that begins with the key is the key itself, if it exists.
            let found = entries.next().filter(|entry| *entry.key == **key);
            Ok(found.map(|entry| entry.value))
        };
        keys.iter().map(value).collect()
    }

    async fn entries(
        &self,
        view: &View,
        partition: PartitionId,
        query: StateQuery,
    ) -> Result<StatePage, AccessError> {
        let table = self.granted_view(view)?;
        check_partition(partition)?;
        let query = StateQuery {
            now: self.clock.wall(),
            bytes_max: usize::MAX,
            ..query
        };
        Self::page(table, &query)
    }
}

#[cfg(test)]
mod tests {
    use millrace_engine::state::NEVER;
    use millrace_model::{Message, SystemClock};

    use super::*;

    fn rehearsal(topics: Option<&[&str]>) -> RouteRehearsal {
        let name = |name: &&str| TopicName::parse(name).expect("a name");
        let topics = topics.map(|topics| topics.iter().map(name).collect());
        RouteRehearsal::new(topics, Arc::new(SystemClock::new()))
    }

    fn outgoing(value: &'static str) -> Outgoing {
        Outgoing {
            partition: None,
            message: Message {
                value: Some(value.into()),
                ..Message::default()
            },
            deliver_at: None,
        }
    }

    #[tokio::test]
    async fn what_is_sent_with_a_key_is_sent_once() {
        let rehearsal = rehearsal(None);
        let send = |value, key: Option<&str>| {
            rehearsal.send("names", vec![outgoing(value)], key.map(str::to_owned))
        };
        let first = send("a", Some("1")).await.expect("sent");
        let again = send("a", Some("1")).await.expect("sent");
        assert_eq!(
            (first.repeated, again.repeated, &again.places),
            (false, true, &first.places)
        );
        let other = send("b", Some("1")).await;
        assert!(matches!(other, Err(AccessError::KeyReused(_))), "{other:?}");
        let without = send("b", None).await.expect("sent");
        assert_eq!(without.places[0].offset, Some(Offset(1)));
        let sent = rehearsal.take_sent();
        let values: Vec<_> = sent.iter().map(|(_, sent)| &sent.message.value).collect();
        assert_eq!(values, [&Some("a".into()), &Some("b".into())]);
        assert!(rehearsal.take_sent().is_empty());
    }

    #[tokio::test]
    async fn only_the_granted_topics_and_the_given_state_can_be_used() {
        let mut rehearsal = rehearsal(Some(&["names"]));
        let refused = rehearsal.send("orders", vec![outgoing("a")], None).await;
        assert!(
            matches!(refused, Err(AccessError::NotGranted(_))),
            "{refused:?}"
        );
        let counts = ProcessorName::parse("counts").expect("a name");
        let change = |key: &str, number| StateChange {
            key: Arc::from(key.as_bytes()),
            value: Some(StateValue::of_number(number)),
            ends_at: NEVER,
        };
        let changes = vec![change("ada", 1), change("adam", 2)];
        rehearsal.set_view(counts, changes).expect("set");
        let view = |processor: &str| View {
            processor: processor.to_owned(),
            topic: None,
        };
        let keys = ["ada", "ad", "adam"].map(Bytes::from).to_vec();
        let values = rehearsal.values(&view("counts"), None, keys).await;
        let numbers: Vec<_> = values
            .expect("values")
            .into_iter()
            .map(|value| value.and_then(|value| value.as_number()))
            .collect();
        assert_eq!(numbers, [Some(1), None, Some(2)]);
        let other = rehearsal.partitions(&view("sums")).await;
        assert!(
            matches!(other, Err(AccessError::NotGranted(_))),
            "{other:?}"
        );
    }
}
