//! A subscription: the batches of many partitions in one stream, up to the credit that the reader
//! grants.
//!
//! Nothing is read ahead: a batch is read when the reader asks for it and has credit left, so a subscription holds no messages. A
//! partition is either ready (it may have messages past its position, and waits for its turn) or waiting (it has none, and a future wakes
//! when its end moves), so that one new message costs the same however many partitions there are.

use std::collections::{HashMap, VecDeque};

use futures_util::future::{self, AbortHandle, Abortable, Aborted, BoxFuture};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use millrace_engine::{Ends, ReadError};
use millrace_model::bounds::SUBSCRIPTION_PARTITIONS_MAX;
use millrace_model::{
    Advice, Advised, Code, Offset, PartitionId, RecordBatch, TopicName, TopicPartition,
};

use crate::catalogue::unknown::UnknownTopic;
use crate::ground::standing::Forbidden;
use crate::ground::verbs::Verb;
use crate::messages::fetch::FetchError;
use crate::messages::handle::Messages;

/// Bytes per read from the engine.
const DELIVERY_BYTES: usize = 1 << 20;

/// The batches of many partitions. Dropping it ends it.
pub struct Subscription {
    messages: Messages,
    places: HashMap<TopicPartition, Place>,
    /// The ready partitions, in the order of their turns.
    ready: VecDeque<TopicPartition>,
    /// The waiting partitions.
    waiting: FuturesUnordered<Abortable<BoxFuture<'static, TopicPartition>>>,
    /// Bytes that may still be delivered.
    credit: usize,
}

struct Place {
    topic: TopicName,
    next: Offset,
    /// Ends the wait; `None` while the partition is ready.
    wait: Option<AbortHandle>,
}

/// What a subscription delivers at once: batches of one partition.
#[derive(Debug)]
pub struct Delivery {
    /// The topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: PartitionId,
    /// As in [`ReadResult::batches`](super::read::ReadResult::batches); at least one.
    pub batches: Vec<RecordBatch>,
    /// Where the subscription continues in this partition.
    pub next: Offset,
    /// The partition's start and end.
    pub ends: Ends,
}

/// A partition of a subscription cannot be read. The other partitions continue; this one does after [`Subscription::add`].
#[derive(Debug, thiserror::Error)]
#[error("topic {topic}, partition {partition}: {error}")]
pub struct SubscriptionError {
    /// The topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: PartitionId,
    /// Why.
    pub error: FetchError,
}

/// The subscription has [`SUBSCRIPTION_PARTITIONS_MAX`] partitions, or one cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SubscribeError {
    /// The caller may not do it.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// The subscription has the maximum number of partitions.
    #[error(
        "a subscription reads at most {SUBSCRIPTION_PARTITIONS_MAX} partitions; open another one"
    )]
    TooMany,
    /// No such topic or partition.
    #[error(transparent)]
    Fetch(#[from] FetchError),
}

impl Advised for SubscribeError {
    fn advice(&self) -> Advice {
        match self {
            Self::Forbidden(error) => error.advice(),
            Self::TooMany => Code::TooLarge.hint("open another subscription"),
            Self::Fetch(error) => error.advice(),
        }
    }
}

impl Advised for SubscriptionError {
    fn advice(&self) -> Advice {
        self.error.advice()
    }
}

impl Messages {
    /// A subscription without partitions or credit.
    #[must_use]
    pub fn subscribe(&self) -> Subscription {
        Subscription {
            messages: self.clone(),
            places: HashMap::new(),
            ready: VecDeque::new(),
            waiting: FuturesUnordered::new(),
            credit: 0,
        }
    }
}

impl Subscription {
    /// Reads a partition from this offset on. A partition that is already read moves there.
    ///
    /// # Errors
    /// [`SubscribeError`]; the subscription is unchanged.
    pub fn add(
        &mut self,
        topic: &TopicName,
        partition: PartitionId,
        from: Offset,
    ) -> Result<(), SubscribeError> {
        self.messages.caller.may(Verb::Read, topic.as_str())?;
        let at = self.messages.partition_of(topic, partition)?;
        let is_full = self.places.len() >= SUBSCRIPTION_PARTITIONS_MAX;
        if is_full && !self.places.contains_key(&at) {
            return Err(SubscribeError::TooMany);
        }
        self.take_out(at);
        let place = Place {
            topic: topic.clone(),
            next: from,
            wait: None,
        };
        self.places.insert(at, place);
        self.queue(at);
        Ok(())
    }

    /// Stops reading a partition. Returns whether it was read.
    pub fn remove(&mut self, topic: &TopicName, partition: PartitionId) -> bool {
        let is_it = |(at, place): &(&TopicPartition, &Place)| {
            at.partition == partition && place.topic == *topic
        };
        let found = self.places.iter().find(is_it).map(|(at, _)| *at);
        found.is_some_and(|at| self.take_out(at))
    }

    /// Allows this many more bytes of batches. The last delivery may exceed the credit: the excess is not owed.
    pub fn grant(&mut self, bytes: usize) {
        self.credit = self.credit.saturating_add(bytes);
    }

    /// Bytes that may still be delivered.
    #[must_use]
    pub fn credit(&self) -> usize {
        self.credit
    }

    /// Waits until a partition has messages, without reading them, and returns it. Waits forever if no partition is read. Cancel safe.
    pub async fn ready(&mut self) -> (TopicName, PartitionId) {
        loop {
            if let Some(at) = self.ready.front() {
                if let Some(place) = self.places.get(at) {
                    return (place.topic.clone(), at.partition);
                }
                self.ready.pop_front();
                continue;
            }
            match self.waiting.next().await {
                Some(woken) => self.wake(woken),
                None => std::future::pending().await,
            }
        }
    }

    /// Waits for the next batches of any partition, each partition in its turn. Waits forever without credit or partitions: cancel it to
    /// call [`Subscription::grant`] or [`Subscription::add`]. Cancel safe: no batch is lost.
    ///
    /// # Errors
    /// [`SubscriptionError`]: a partition cannot be read any more.
    pub async fn next(&mut self) -> Result<Delivery, SubscriptionError> {
        if self.credit == 0 {
            return std::future::pending().await;
        }
        loop {
            let (topic, partition) = self.ready().await;
            self.messages.reads_on().await;
            let Some((at, next)) = self.front() else {
                continue;
            };
            let bytes_max = self.credit.min(DELIVERY_BYTES);
            let read = self.messages.seen_at(at, next, bytes_max).await;
            // There is no `await` from here on, so cancelling this call loses nothing.
            self.ready.pop_front();
            let read = match read {
                Ok(read) => read,
                Err(error) => {
                    self.places.remove(&at);
                    return Err(failed(topic, partition, error));
                }
            };
            if let Some(place) = self.places.get_mut(&at) {
                place.next = read.next;
            }
            self.queue(at);
            if read.batches.is_empty() {
                continue;
            }
            self.messages.has_read_batches(&read.batches);
            let bytes = read.batches.iter().map(RecordBatch::byte_count).sum();
            self.credit = self.credit.saturating_sub(bytes);
            return Ok(Delivery {
                topic,
                partition,
                batches: read.batches,
                next: read.next,
                ends: read.ends,
            });
        }
    }

    /// The ready partition at the front of the queue, where it stays, and its position.
    fn front(&self) -> Option<(TopicPartition, Offset)> {
        let at = *self.ready.front()?;
        Some((at, self.places.get(&at)?.next))
    }

    /// Puts a partition that is neither ready nor waiting among the ready ones, or among the waiting ones if it has no messages past its
    /// position.
    fn queue(&mut self, at: TopicPartition) {
        let Some(place) = self.places.get_mut(&at) else {
            return;
        };
        let next = place.next;
        let engine = &self.messages.inner.engine;
        // Another host may know of a later end, so if the position is past this host's end, the
        // read decides.
        let is_at_end = engine.ends(at).is_ok_and(|ends| ends.end == next);
        match engine.watch(at) {
            Ok(mut watch) if is_at_end => {
                let wait: BoxFuture<'static, TopicPartition> = Box::pin(async move {
                    // If the partition was deleted, the read reports it.
                    watch.past(next).await;
                    at
                });
                let (wait, abort) = future::abortable(wait);
                place.wait = Some(abort);
                self.waiting.push(wait);
            }
            _ => self.ready.push_back(at),
        }
    }

    fn wake(&mut self, woken: Result<TopicPartition, Aborted>) {
        if let Ok(at) = woken
            && let Some(place) = self.places.get_mut(&at)
        {
            place.wait = None;
            self.ready.push_back(at);
        }
    }

    /// Removes a partition; returns whether it was read.
    fn take_out(&mut self, at: TopicPartition) -> bool {
        let Some(place) = self.places.remove(&at) else {
            return false;
        };
        match place.wait {
            None => self.ready.retain(|ready| *ready != at),
            Some(wait) => {
                wait.abort();
                // Drops the aborted future now: otherwise a reader that changes positions often
                // without reading would accumulate them.
                while let Some(Some(woken)) = self.waiting.next().now_or_never() {
                    self.wake(woken);
                }
            }
        }
        true
    }
}

fn failed(topic: TopicName, partition: PartitionId, error: FetchError) -> SubscriptionError {
    let error = match error {
        FetchError::Read(ReadError::UnknownPartition(_)) => UnknownTopic(topic.clone()).into(),
        error => error,
    };
    SubscriptionError {
        topic,
        partition,
        error,
    }
}
