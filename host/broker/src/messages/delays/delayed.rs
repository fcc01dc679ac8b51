//! Delayed messages: accepted with a time of delivery, stored with their partition, and in the topic from that time on. They can be
//! listed and cancelled until then.
//!
//! A message is delayed by the transaction that would have appended it ([`stored`]), produced or output, and delivered by another one
//! ([`delivering`]). Adding needs no lease, because no two have the same key. Delivering and cancelling need the holder's lease and the
//! table's turn, so exactly one of them happens, however many hosts try.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use metrics::{Histogram, counter, gauge, histogram};
use millrace_engine::state::{Adds, StateTable};
use millrace_engine::{CommitError, Engine, ReadError, RoomFull};
use millrace_model::bounds::{DELAYED_BYTES_MAX, DELAYED_MESSAGES_MAX};
use millrace_model::{
    Advice, Advised, Clock, Code, Message, PartitionId, TopicName, TopicPartition,
};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::catalogue::deciding::decision_errors;
use crate::catalogue::unknown::{UnknownPartition, UnknownTopic};
use crate::ground::standing::Forbidden;
use crate::hosts::holding::{Holdings, Share};
use crate::hosts::living::Hosts;
use crate::messages::delays::agenda::Agenda;
use crate::messages::delays::stored::{Additions, DelayedId, DueAt, GROUP};
use crate::messages::delays::{moving, stored};

/// How long a cancellation waits for a delivery in the same partition.
pub(super) const CANCEL_WAIT_MS_MAX: u64 = 10_000;

/// A message that is not delivered yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DelayedMessage {
    /// Its id, which includes its due time.
    pub id: DelayedId,
    /// The message to deliver.
    pub message: Message,
}

/// A page of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DelayedPage {
    /// By partition, then by time of delivery.
    pub messages: Vec<DelayedMessage>,
    /// How many the topic has in total.
    pub total: usize,
    /// Whether there are more after the last one.
    pub has_more: bool,
}

/// Which delayed messages to list.
#[derive(Clone, Debug, Default)]
pub struct DelayedQuery {
    /// Only those for this partition.
    pub partition: Option<PartitionId>,
    /// Only those after this one.
    pub after: Option<DelayedId>,
    /// Maximum number, never more than [`DELAYED_LISTED_MAX`].
    pub max: usize,
}

/// No room for more delayed messages.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DelaysFull {
    /// In the partition.
    #[error(
        "partition {partition} of topic {topic} already holds {messages} delayed messages of {bytes} bytes; the maximum is \
         {DELAYED_MESSAGES_MAX} and {DELAYED_BYTES_MAX} bytes: wait until some are delivered, or cancel some"
    )]
    Partition {
        /// The topic's name.
        topic: TopicName,
        /// The partition.
        partition: PartitionId,
        /// Their number.
        messages: usize,
        /// Their approximate bytes.
        bytes: usize,
    },
    /// In the host.
    #[error(transparent)]
    Host(#[from] RoomFull),
}

/// Why delayed messages could not be listed or cancelled.
#[derive(Debug, thiserror::Error)]
pub enum DelayedError {
    /// The caller may not do it.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// No such topic.
    #[error(transparent)]
    UnknownTopic(#[from] UnknownTopic),
    /// The topic has fewer partitions.
    #[error(transparent)]
    UnknownPartition(#[from] UnknownPartition),
    /// The message was delivered or cancelled, or never existed.
    #[error(
        "topic {topic} has no delayed message {id}: it was already delivered or cancelled, or never existed"
    )]
    Unknown {
        /// The topic's name.
        topic: TopicName,
        /// The requested id.
        id: DelayedId,
    },
    /// A delivery to the partition is running.
    #[error(
        "a delivery to partition {0} has been running for more than {CANCEL_WAIT_MS_MAX} ms; nothing was cancelled"
    )]
    Busy(PartitionId),
    /// They could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// It could not be made durable.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

decision_errors! {
    DelayedError: DelayedError::Commit;
}

impl Advised for DelaysFull {
    fn advice(&self) -> Advice {
        Code::DelaysFull.advice()
    }
}

impl Advised for DelayedError {
    fn advice(&self) -> Advice {
        match self {
            Self::Forbidden(error) => error.advice(),
            Self::UnknownTopic(error) => error.advice(),
            Self::UnknownPartition(error) => error.advice(),
            Self::Unknown { .. } => Code::UnknownDelayedMessage.advice(),
            Self::Busy(_) => Code::Occupied.hint("try again; the message may be delivered by then"),
            Self::Read(error) => error.advice(),
            Self::Commit(error) => error.advice(),
        }
    }
}

/// Shared by everyone who delays messages and the task that delivers them.
pub(crate) struct Delays {
    pub(super) clock: Arc<dyn Clock>,
    pub(super) engine: Arc<dyn Engine>,
    pub(super) holdings: Arc<Holdings>,
    /// The partitions to which this host delivers.
    pub(super) held: Mutex<HashMap<TopicPartition, Arc<Share>>>,
    pub(super) agenda: Mutex<Agenda>,
    /// Notified when a message is due before all others.
    pub(super) earlier: Notify,
    /// Notified when other hosts should deliver to some partitions.
    pub(super) moved: Notify,
    pub(super) next_arrival: AtomicU64,
    pub(super) steps: moving::Steps,
    /// Partitions in which messages have moved with the clock, so that some may be known by another id.
    pub(super) moved_in: Mutex<HashSet<TopicPartition>>,
    salt: u32,
    /// Each partition's share of its topic's gauge.
    shown: Mutex<HashMap<TopicPartition, (TopicName, usize)>>,
    lateness_seconds: Histogram,
}

impl Delays {
    pub(crate) async fn new(
        clock: Arc<dyn Clock>,
        engine: Arc<dyn Engine>,
        hosts: &Arc<Hosts>,
    ) -> Result<Arc<Self>, ReadError> {
        // Greater than those of any earlier process, so that waiting messages keep their order whatever happened to the clock.
        let by_clock = (clock.wall().0 << 20) & (u64::MAX >> 1);
        let (last_arrival, moved_in) = found(&*engine).await?;
        let first_arrival = by_clock.max(last_arrival.saturating_add(1));
        Ok(Arc::new(Self {
            steps: moving::Steps::begin(&*clock),
            moved_in: Mutex::new(moved_in),
            clock,
            engine,
            holdings: hosts.holdings(&GROUP),
            held: Mutex::default(),
            agenda: Mutex::default(),
            earlier: Notify::new(),
            moved: Notify::new(),
            next_arrival: AtomicU64::new(first_arrival),
            salt: fastrand::u32(..),
            shown: Mutex::default(),
            lateness_seconds: histogram!("millrace_delayed_lateness_seconds"),
        }))
    }

    /// An id for the next one.
    pub(crate) fn next_id(&self, partition: PartitionId, due: DueAt) -> DelayedId {
        self.notice_steps();
        DelayedId {
            partition,
            due: due.time,
            arrival: self.next_arrival.fetch_add(1, Ordering::Relaxed),
            salt: DelayedId::salt(self.salt, due.is_span),
        }
    }

    /// Whether there is room for them. Concurrent callers may exceed the bound of a partition together; the host's bound is enforced by
    /// the engine.
    pub(crate) async fn check_room(&self, additions: &Additions) -> Result<(), DelaysFull> {
        let additions_of = additions.0.values();
        let adds = additions_of.fold(Adds::default(), |adds, addition| Adds {
            entries: adds.entries + addition.messages() as i64,
            bytes: adds.bytes + addition.bytes as i64,
        });
        for (partition, addition) in &additions.0 {
            // The commit checks whether the partition exists.
            let Ok(table) = self.engine.state(&GROUP, *partition).await else {
                continue;
            };
            let size = table.size();
            let messages = size.entries + addition.messages();
            if messages > DELAYED_MESSAGES_MAX || size.bytes + addition.bytes > DELAYED_BYTES_MAX {
                return Err(DelaysFull::Partition {
                    topic: addition.topic.clone(),
                    partition: partition.partition,
                    messages: size.entries,
                    bytes: size.bytes,
                });
            }
            table.check_room(adds)?;
        }
        Ok(())
    }

    /// A topic has more partitions, so other hosts may be preferred for some of the existing ones.
    pub(crate) fn look_who_delivers(&self) {
        self.moved.notify_one();
    }

    /// Messages are being committed, or just were. Called before the commit, so that an interrupted caller is not waited for, and after
    /// it, because a message due at once may have been looked for too early.
    pub(crate) async fn expect(&self, additions: &Additions) {
        for (partition, addition) in &additions.0 {
            if let Ok(table) = self.engine.state(&GROUP, *partition).await {
                self.show(*partition, &addition.topic, &table);
            }
            let mut agenda = self.agenda.lock();
            if agenda.note(*partition, &addition.topic, addition.earliest) {
                self.earlier.notify_one();
            }
        }
    }

    pub(super) fn show(&self, partition: TopicPartition, topic: &TopicName, table: &StateTable) {
        let mut shown = self.shown.lock();
        let messages = table.size().entries;
        let before = match messages {
            0 => shown.remove(&partition),
            _ => shown.insert(partition, (topic.clone(), messages)),
        };
        move_gauge(topic, before.map_or(0, |(_, before)| before), messages);
    }

    /// The partition was deleted.
    pub(super) fn forget(&self, partition: TopicPartition) {
        self.moved_in.lock().remove(&partition);
        self.held.lock().remove(&partition);
        if let Some((topic, messages)) = self.shown.lock().remove(&partition) {
            move_gauge(&topic, messages, 0);
        }
    }

    /// Forgets the partitions of deleted topics: all that are not among these, which ascend.
    pub(super) fn forget_all_but(&self, partitions: &[TopicPartition]) {
        let shown: Vec<TopicPartition> = self.shown.lock().keys().copied().collect();
        let is_gone = |at: &TopicPartition| partitions.binary_search(at).is_err();
        shown
            .into_iter()
            .filter(is_gone)
            .for_each(|at| self.forget(at));
    }

    pub(super) fn delivered(&self, topic: &TopicName, ids: &[DelayedId]) {
        let now = self.clock.wall();
        counter!("millrace_delayed_delivered_total", "topic" => topic.to_string())
            .increment(ids.len() as u64);
        for id in ids {
            self.lateness_seconds
                .record(id.due.until(now).as_secs_f64());
        }
    }
}

/// The latest arrival of all waiting messages, and where some have moved with the clock.
async fn found(engine: &dyn Engine) -> Result<(u64, HashSet<TopicPartition>), ReadError> {
    let (mut last, mut moved_in) = (0, HashSet::new());
    for partition in engine.state_partitions(&GROUP).await? {
        if let Ok(table) = engine.state(&GROUP, partition).await {
            let mut has_moved = false;
            stored::each_key(&table, |key| {
                if let Some(id) = DelayedId::of_key(partition.partition, key) {
                    last = last.max(id.arrival);
                    has_moved |= id.is_moved();
                }
            });
            if has_moved {
                moved_in.insert(partition);
            }
        }
    }
    Ok((last, moved_in))
}

fn move_gauge(topic: &TopicName, before: usize, messages: usize) {
    if before != messages {
        gauge!("millrace_delayed_messages", "topic" => topic.to_string())
            .increment(messages as f64 - before as f64);
    }
}
