//! What the component of a route may do besides answering, within its grants: it sends messages as every producer does, and reads the
//! state of processors as operators do.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use millrace_engine::CommitError;
use millrace_engine::state::{StatePage, StateQuery, StateValue};
use millrace_model::bounds::{IDEMPOTENCY_KEY_CHARS_MAX, VIEW_KEYS_MAX};
use millrace_model::processor::Grants;
use millrace_model::{Advised, PartitionId, ProcessorName, RoutePath, TopicName};
use sha2::{Digest as _, Sha256};

use crate::handler::{AccessError, Outgoing, RouteAccess, Sent, SentPlace, View};
use crate::messages::call::{CallKey, NewMessage, Placed, Produced};
use crate::messages::handle::Messages;
use crate::messages::produce_error::ProduceError;
use crate::processors::handle::Processors;
use crate::processors::states::StatePlace;

/// The access of one route under its present grants.
pub(super) struct Access {
    pub(super) path: RoutePath,
    pub(super) grants: Grants,
    /// The maximum duration of a request.
    pub(super) call_ms_max: u64,
    pub(super) messages: Messages,
    pub(super) processors: Processors,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access")
            .field("path", &self.path)
            .field("grants", &self.grants)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl RouteAccess for Access {
    async fn send(
        &self,
        topic: &str,
        messages: Vec<Outgoing>,
        key: Option<String>,
    ) -> Result<Sent, AccessError> {
        let topic = self.granted_topic(topic)?;
        let key = key.map(|key| self.call_key(&key, &messages)).transpose()?;
        let messages: Vec<NewMessage> = messages.into_iter().map(NewMessage::from).collect();
        let producer = self.messages.clone();
        // On its own: a request that ends meanwhile must not leave the commit half watched.
        let producing = tokio::spawn(async move {
            match key {
                Some(key) => producer.produce_once(&topic, messages, key).await,
                None => {
                    let placed = producer.produce(&topic, messages).await?;
                    Ok(Produced {
                        placed,
                        repeated: false,
                        gone: Default::default(),
                    })
                }
            }
        });
        match producing.await {
            Ok(Ok(produced)) => Ok(produced.into()),
            Ok(Err(ProduceError::Commit(error @ CommitError::RequestReused))) => {
                Err(AccessError::KeyReused(error.to_string()))
            }
            Ok(Err(error)) => Err(refused(&error)),
            Err(error) => Err(AccessError::Unavailable(error.to_string())),
        }
    }

    async fn settled(
        &self,
        processor: &str,
        topic: &str,
        places: Vec<SentPlace>,
        patience: Duration,
    ) -> Result<bool, AccessError> {
        let topic = self.granted_topic(topic)?;
        let processor = ProcessorName::parse(processor).map_err(misspelt)?;
        let placed = |place: &SentPlace| {
            let (partition, offset) = (place.partition, place.offset?);
            Some(Placed::At { partition, offset })
        };
        let placed: Vec<Placed> = places.iter().filter_map(placed).collect();
        let patience = patience.min(Duration::from_millis(self.call_ms_max));
        let settled = self
            .processors
            .settled(&processor, &topic, &placed, patience);
        settled.await.map_err(|error| refused(&error))
    }

    async fn partitions(&self, view: &View) -> Result<u32, AccessError> {
        let (processor, topic) = self.granted_view(view)?;
        let input = self.processors.state_input(&processor, topic.as_ref());
        let input = input.await.map_err(|error| refused(&error))?;
        Ok(input.spec.partitions)
    }

    async fn values(
        &self,
        view: &View,
        partition: Option<PartitionId>,
        keys: Vec<Bytes>,
    ) -> Result<Vec<Option<StateValue>>, AccessError> {
        let (processor, topic) = self.granted_view(view)?;
        if keys.len() > VIEW_KEYS_MAX {
            return Err(AccessError::Refused(format!(
                "{} keys at once; the maximum is {VIEW_KEYS_MAX}: ask in several calls",
                keys.len()
            )));
        }
        let input = self.processors.state_input(&processor, topic.as_ref());
        let input = input.await.map_err(|error| refused(&error))?;
        let partitions = match partition {
            Some(partition) => vec![partition; keys.len()],
            None => {
                let partitions = self.messages.partitions_of_keys(&input, &keys);
                partitions.await.map_err(|error| refused(&error))?
            }
        };
        let keys: Vec<(PartitionId, Bytes)> = partitions.into_iter().zip(keys).collect();
        let values = self.processors.state_values(&processor, &input, &keys);
        values.await.map_err(|error| refused(&error))
    }

    async fn entries(
        &self,
        view: &View,
        partition: PartitionId,
        query: StateQuery,
    ) -> Result<StatePage, AccessError> {
        let (processor, topic) = self.granted_view(view)?;
        let place = StatePlace {
            processor,
            topic,
            partition,
        };
        let page = self.processors.state(&place, query).await;
        page.map_err(|error| refused(&error))
    }
}

impl Access {
    fn granted_topic(&self, topic: &str) -> Result<TopicName, AccessError> {
        let topic = TopicName::parse(topic).map_err(misspelt)?;
        match self.grants.topics.contains(&topic) {
            true => Ok(topic),
            false => Err(AccessError::NotGranted(format!(
                "route {} is not granted topic {topic}; an operator can grant it with --grant-topic {topic}",
                self.path
            ))),
        }
    }

    fn granted_view(&self, view: &View) -> Result<(ProcessorName, Option<TopicName>), AccessError> {
        let processor = ProcessorName::parse(&view.processor).map_err(misspelt)?;
        if !self.grants.views.contains(&processor) {
            return Err(AccessError::NotGranted(format!(
                "route {} is not granted the state of processor {processor}; an operator can grant it with --grant-view {processor}",
                self.path
            )));
        }
        let topic = view.topic.as_deref().map(TopicName::parse).transpose();
        Ok((processor, topic.map_err(misspelt)?))
    }

    /// The key of a route is no other's, and no producer's.
    fn call_key(&self, key: &str, messages: &[Outgoing]) -> Result<CallKey, AccessError> {
        if key.is_empty() || key.len() > IDEMPOTENCY_KEY_CHARS_MAX {
            return Err(AccessError::Refused(format!(
                "a key has 1 to {IDEMPOTENCY_KEY_CHARS_MAX} bytes, not {}",
                key.len()
            )));
        }
        let mut parts = Parts::default();
        parts.add(Some(b"route"));
        parts.add(Some(self.path.as_str().as_bytes()));
        parts.add(Some(key.as_bytes()));
        Ok(CallKey {
            key: parts.digest(),
            fingerprint: fingerprint(messages),
        })
    }
}

/// A digest of everything that a component sends.
fn fingerprint(messages: &[Outgoing]) -> [u8; 16] {
    let mut parts = Parts::default();
    for outgoing in messages {
        let Outgoing {
            partition,
            message,
            deliver_at,
        } = outgoing;
        parts.add(message.key.as_deref());
        parts.add(message.value.as_deref());
        parts.number(message.headers.len() as u64);
        for header in &message.headers {
            parts.add(Some(&header.name));
            parts.add(header.value.as_deref());
        }
        parts.number(partition.map_or(u64::MAX, |partition| partition.0.into()));
        parts.number(message.timestamp.0);
        parts.number(deliver_at.map_or(0, |at| at.0));
    }
    parts.digest()
}

/// A digest of parts that tells where each one ends.
#[derive(Default)]
struct Parts(Sha256);

impl Parts {
    fn number(&mut self, number: u64) {
        self.0.update(number.to_le_bytes());
    }

    fn add(&mut self, part: Option<&[u8]>) {
        self.number(part.map_or(u64::MAX, |part| part.len() as u64));
        self.0.update(part.unwrap_or_default());
    }

    fn digest(self) -> [u8; 16] {
        let hash = self.0.finalize();
        std::array::from_fn(|index| hash[index])
    }
}

fn misspelt(error: impl fmt::Display) -> AccessError {
    AccessError::Refused(error.to_string())
}

/// An error in the component's words: whether a later call may succeed is what it must know.
fn refused<E: Advised + fmt::Display>(error: &E) -> AccessError {
    let text = error.to_string();
    match error.advice().kind().is_passing() {
        true => AccessError::Unavailable(text),
        false => AccessError::Refused(text),
    }
}

impl From<Outgoing> for NewMessage {
    fn from(outgoing: Outgoing) -> Self {
        let Outgoing {
            partition,
            message,
            deliver_at,
        } = outgoing;
        Self {
            partition,
            message,
            deliver_at: deliver_at.map(Into::into),
        }
    }
}

impl From<Produced> for Sent {
    fn from(produced: Produced) -> Self {
        let place = |placed: &Placed| SentPlace {
            partition: placed.partition(),
            offset: placed.offset(),
        };
        Self {
            places: produced.placed.iter().map(place).collect(),
            repeated: produced.repeated,
        }
    }
}

#[cfg(test)]
mod tests {
    use millrace_model::Message;

    use super::*;

    fn outgoing(key: Option<&'static str>, value: &'static str) -> Outgoing {
        Outgoing {
            partition: None,
            message: Message {
                key: key.map(Into::into),
                value: Some(value.into()),
                ..Message::default()
            },
            deliver_at: None,
        }
    }

    #[test]
    fn messages_that_differ_have_different_fingerprints() {
        let sent = [
            vec![],
            vec![outgoing(None, "a")],
            vec![outgoing(Some(""), "a")],
            vec![outgoing(Some("a"), "")],
            vec![outgoing(Some("a"), "b")],
            vec![outgoing(Some("ab"), "")],
            vec![outgoing(None, "a"), outgoing(None, "a")],
            vec![Outgoing {
                partition: Some(PartitionId(1)),
                ..outgoing(None, "a")
            }],
        ];
        let mut seen: Vec<[u8; 16]> = sent.iter().map(|sent| fingerprint(sent)).collect();
        assert_eq!(seen[1], fingerprint(&[outgoing(None, "a")]));
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), sent.len());
    }
}
