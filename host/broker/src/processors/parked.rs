//! Parked messages: messages that wait for their next attempt, or behind another message with the
//! same key. Each shows why and until when it waits. An operator can try each one now or give it
//! up.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millrace_engine::Engine;
use millrace_model::bounds::{PARKED_KEY_BYTES_MAX, PARKED_LISTED_MAX, PARKED_ORDER_WAIT_MS_MAX};
use millrace_model::{
    Offset, Parked, PartitionId, ProcessorName, Progress, Timestamp, TopicName, TopicPartition,
};
use tokio::sync::oneshot;

use crate::dispatch::orders::{Meant, Obeyed, Order, Orders, ParkedAction, ParkedIn};
use crate::ground::verbs::Verb;
use crate::messages::place::MessagePlace;
use crate::processors::error::ProcessorError;
use crate::processors::handle::Processors;

/// A parked message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParkedMessage {
    /// The input topic; a redrive topic for a redriven dead letter.
    pub topic: TopicName,
    /// The partition of that topic.
    pub partition: PartitionId,
    /// The offset in that partition.
    pub offset: Offset,
    /// The key, cut to a maximum length; `None` without a key, or if the message cannot be read.
    pub key: Option<Bytes>,
    /// Attempts so far.
    pub attempts: u32,
    /// When it is tried again; `None` if it waits behind another message.
    pub due: Option<Timestamp>,
    /// The parked message it waits behind: one with the same key, or one of the partition if the
    /// whole partition keeps its order.
    pub behind: Option<Offset>,
    /// Since when it is held because the revision that failed is not proven; `None` if it is not
    /// held.
    pub held_since: Option<Timestamp>,
    /// When its first attempt failed; `None` if none has.
    pub first_failed_at: Option<Timestamp>,
    /// The class of its last attempt.
    pub class: Option<String>,
    /// The reason of its last attempt.
    pub reason: Option<String>,
}

impl ParkedMessage {
    fn place(&self) -> MessagePlace {
        MessagePlace {
            topic: self.topic.clone(),
            partition: self.partition,
            offset: self.offset,
        }
    }
}

/// Which parked messages to list.
#[derive(Clone, Debug, Default)]
pub struct ParkedQuery {
    /// Only those in this topic.
    pub topic: Option<TopicName>,
    /// Only those in partitions with this number.
    pub partition: Option<PartitionId>,
    /// Only those whose last attempt failed with this class.
    pub class: Option<String>,
    /// The first message to list, in list order; `None` starts at the beginning.
    pub from: Option<MessagePlace>,
    /// Maximum number, never more than [`PARKED_LISTED_MAX`].
    pub max: usize,
}

/// A page of parked messages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParkedPage {
    /// The messages, by topic, partition and offset.
    pub messages: Vec<ParkedMessage>,
    /// Number of messages that match the query, over all pages.
    pub total: usize,
    /// The first message of the next page; `None` on the last page.
    pub next: Option<MessagePlace>,
}

/// The parked messages that an order applies to.
#[derive(Clone, Debug)]
pub enum WhichParked {
    /// The messages at these places.
    Places(Vec<MessagePlace>),
    /// Messages whose last attempt failed with this class.
    Class(String),
    /// All parked messages of the processor.
    All,
}

/// The result of an order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ParkedDone {
    /// Number of messages that the order was applied to.
    pub done: usize,
    /// Messages that the order left alone, with the reason. If a partition could not be asked, its
    /// offset is 0.
    pub left: Vec<(MessagePlace, String)>,
}

impl Processors {
    /// Parked messages of a processor: by topic, partition and offset.
    ///
    /// # Errors
    /// [`ProcessorError`].
    pub async fn parked(
        &self,
        name: &ProcessorName,
        query: &ParkedQuery,
    ) -> Result<ParkedPage, ProcessorError> {
        self.caller.may(Verb::SeeParked, name.as_str())?;
        let mut page = ParkedPage::default();
        let max = query.max.clamp(1, PARKED_LISTED_MAX);
        let mut partitions = self.parked_in(name).await?;
        let place =
            |at: &(TopicName, TopicPartition, Arc<Progress>)| (at.0.clone(), at.1.partition);
        partitions.sort_by_key(place);
        for (topic, partition, progress) in partitions {
            let is_asked = query.topic.as_ref().is_none_or(|asked| *asked == topic)
                && query.partition.is_none_or(|p| p == partition.partition);
            if !is_asked {
                continue;
            }
            let mut fronts = std::collections::HashMap::new();
            for parked in &progress.parked {
                let ordering = parked.ordering;
                let front = ordering.map(|o| *fronts.entry(o).or_insert(parked.offset));
                let message = shown(&topic, partition.partition, parked, front);
                let fits = query.class.is_none() || query.class == message.class;
                if !fits {
                    continue;
                }
                page.total += 1;
                let place = message.place();
                if query.from.as_ref().is_some_and(|from| place < *from) {
                    continue;
                }
                if page.messages.len() < max {
                    page.messages.push(message);
                } else if page.next.is_none() {
                    page.next = Some(place);
                }
            }
        }
        for message in &mut page.messages {
            message.key = self.key_of(message).await;
        }
        Ok(page)
    }

    /// Tries parked messages now, or gives them up. Each partition's worker does it between two
    /// batches, even while the processor is paused. A worker that stays busy for longer than
    /// [`PARKED_ORDER_WAIT_MS_MAX`] does nothing.
    ///
    /// # Errors
    /// [`ProcessorError`]; what was done in earlier partitions remains.
    pub async fn do_with_parked(
        &self,
        name: &ProcessorName,
        which: WhichParked,
        action: ParkedAction,
    ) -> Result<ParkedDone, ProcessorError> {
        self.caller.may(Verb::ActOnParked, name.as_str())?;
        self.known(name)?;
        let mut done = ParkedDone::default();
        for (topic, partition, meant) in self.meant(name, which).await? {
            let place = |offset| MessagePlace {
                topic: topic.clone(),
                partition,
                offset,
            };
            let named = match &meant {
                Meant::Offsets(offsets) => offsets.clone(),
                _ => vec![Offset(0)],
            };
            match self.order(name, &topic, partition, meant, action).await {
                Ok(obeyed) => {
                    done.done += obeyed.done;
                    let left = obeyed.left.into_iter();
                    done.left
                        .extend(left.map(|(offset, why)| (place(offset), why)));
                }
                Err(why) => {
                    let left = named.into_iter();
                    done.left
                        .extend(left.map(|offset| (place(offset), why.clone())));
                }
            }
        }
        Ok(done)
    }

    /// The selected messages in each partition that has any.
    async fn meant(
        &self,
        name: &ProcessorName,
        which: WhichParked,
    ) -> Result<Vec<(TopicName, PartitionId, Meant)>, ProcessorError> {
        let mut partitions = Vec::new();
        let whole = match which {
            WhichParked::Places(places) => {
                for place in places {
                    let (topic, partition) = (&place.topic, place.partition);
                    let known = partitions
                        .iter_mut()
                        .find(|(t, p, _)| t == topic && *p == partition);
                    match known {
                        Some((.., Meant::Offsets(offsets))) => offsets.push(place.offset),
                        _ => partitions.push((
                            place.topic.clone(),
                            partition,
                            Meant::Offsets(vec![place.offset]),
                        )),
                    }
                }
                return Ok(partitions);
            }
            WhichParked::Class(class) => Meant::Class(class),
            WhichParked::All => Meant::All,
        };
        for (topic, partition, progress) in self.parked_in(name).await? {
            if !progress.parked.is_empty() {
                partitions.push((topic, partition.partition, whole.clone()));
            }
        }
        Ok(partitions)
    }

    async fn order(
        &self,
        name: &ProcessorName,
        topic: &TopicName,
        partition: PartitionId,
        meant: Meant,
        action: ParkedAction,
    ) -> Result<Obeyed, String> {
        let (answer, answered) = oneshot::channel();
        let order = Order {
            action,
            meant,
            by: self.caller.name().map(str::to_owned),
            answer,
        };
        let supervisor = &self.inner.supervisor;
        let given = supervisor.order(name, topic, partition, order);
        let (orders, number) = match given {
            Some(Ok(given)) => given,
            Some(Err(state)) => {
                return Err(format!(
                    "its worker is on another host ({state}), and nothing was done; ask that host"
                ));
            }
            None => {
                return Err(format!(
                    "there is no worker for {topic}/{partition}: the processor does not read it, or cannot be started (`millrace processor show {name}`)"
                ));
            }
        };
        wait_for(answered, &orders, number).await
    }

    /// The parked messages of each input partition: those of its worker, or else the committed
    /// ones.
    async fn parked_in(
        &self,
        name: &ProcessorName,
    ) -> Result<Vec<(TopicName, TopicPartition, Arc<Progress>)>, ProcessorError> {
        let known = self.known(name)?;
        let engine = &self.inner.engine;
        let mut partitions = Vec::new();
        let workers = self.inner.supervisor.parked(name);
        let has_workers = !workers.is_empty();
        for ParkedIn { input, progress } in workers {
            let Some(partition) = input.topic.partition(input.partition) else {
                continue;
            };
            let progress = match progress {
                Some(progress) => progress,
                None => {
                    let committed = engine.progress(&name.group(), partition).await?;
                    Arc::new(committed.unwrap_or_default())
                }
            };
            partitions.push((input.topic.spec.name, partition, progress));
        }
        if has_workers {
            return Ok(partitions);
        }
        let topics = known.processor.current().map(|r| r.spec.topics.clone());
        for topic in topics.iter().flatten() {
            let redrive = format!(
                "{topic}.{name}{}",
                crate::ground::own_topics::REDRIVE_SUFFIX
            );
            let names = [Some(topic.clone()), TopicName::parse(&redrive).ok()];
            let topics = names.into_iter().flatten();
            for topic in topics.filter_map(|name| self.inner.catalogue.topic(&name)) {
                for partition in topic.partitions() {
                    let committed = engine.progress(&name.group(), partition).await?;
                    let progress = Arc::new(committed.unwrap_or_default());
                    partitions.push((topic.spec.name.clone(), partition, progress));
                }
            }
        }
        Ok(partitions)
    }

    async fn key_of(&self, message: &ParkedMessage) -> Option<Bytes> {
        let topic = self.inner.catalogue.topic(&message.topic)?;
        let partition = topic.partition(message.partition)?;
        let key = key_at(&*self.inner.engine, partition, message.offset).await?;
        Some(key.slice(..key.len().min(PARKED_KEY_BYTES_MAX)))
    }
}

async fn key_at(engine: &dyn Engine, at: TopicPartition, offset: Offset) -> Option<Bytes> {
    let batches = engine.read(at, offset, 1).await.ok()?;
    let batch = batches.first()?.clone().inflated().ok()?;
    let records = batch.records().ok()?;
    let view = records.map_while(Result::ok).find(|v| v.offset == offset)?;
    let key = view.key?;
    Some(Bytes::copy_from_slice(&batch.bytes()[key]))
}

fn shown(
    topic: &TopicName,
    partition: PartitionId,
    parked: &Parked,
    front: Option<Offset>,
) -> ParkedMessage {
    let behind = front.filter(|front| *front != parked.offset);
    let last = parked.log.last();
    ParkedMessage {
        topic: topic.clone(),
        partition,
        offset: parked.offset,
        key: None,
        attempts: parked.attempts,
        // A message behind another one has no due time, unless its own is later.
        due: parked.due,
        behind,
        held_since: parked.held_since,
        first_failed_at: (parked.attempts > 0).then_some(parked.first_failed_at),
        class: last.map(|last| last.class.clone()),
        reason: last.map(|last| last.reason.clone()),
    }
}

async fn wait_for(
    mut answered: oneshot::Receiver<Result<Obeyed, String>>,
    orders: &Orders,
    number: u64,
) -> Result<Obeyed, String> {
    const GONE: &str = "the worker has ended; see the processor's state";
    let wait = Duration::from_millis(PARKED_ORDER_WAIT_MS_MAX);
    if let Ok(answer) = tokio::time::timeout(wait, &mut answered).await {
        return answer.unwrap_or_else(|_| Err(GONE.to_owned()));
    }
    if orders.take_back(number) {
        return Err(format!(
            "its worker has been processing a batch for more than {PARKED_ORDER_WAIT_MS_MAX} ms, and nothing was done; try again, or see how long the call may take (call_ms_max)"
        ));
    }
    // The worker has started the order, so its result comes soon unless the disk is slow.
    match tokio::time::timeout(wait, answered).await {
        Ok(answer) => answer.unwrap_or_else(|_| Err(GONE.to_owned())),
        Err(_) => Err("it is being done but takes long; the list shows the progress".to_owned()),
    }
}
