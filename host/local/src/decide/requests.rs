//! Requests to the committer, the decisions on them, and the answers that wait for the required
//! durability.

use std::sync::Arc;

use millrace_engine::contract::{
    AdoptError, Adoption, CommitError, Expectation, Lease, Receipt, TopicChange, TopicError,
    Transaction, TrimError,
};
use millrace_engine::state::{HeldTurn, StateWrite};
use millrace_model::{
    GroupName, Offset, ProducerId, Topic, TopicId, TopicName, TopicPartition, TopicSpec,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::decide::codec::OPERATION_OVERHEAD_BYTES;
use crate::decide::state::{Pending, State, may_be_paged};
use crate::decide::submission::{Submission, queue_kib};

/// Maximum journal bytes of a request that is alone in its group; if several topics change
/// together, of each.
pub(crate) const ALONE_BYTES_MAX: usize = 4 << 10;

/// A request to the committer.
pub(crate) enum Request {
    Commit {
        submission: Submission,
        bytes: usize,
        answer: Answer<Receipt, CommitError>,
        /// Room in the queue; returned when the transaction is answered.
        room: OwnedSemaphorePermit,
    },
    Claim {
        partition: TopicPartition,
        group: GroupName,
        answer: Answer<Lease, CommitError>,
    },
    CreateTopic {
        spec: TopicSpec,
        expects: Vec<Expectation>,
        answer: Answer<Topic, TopicError>,
    },
    DeleteTopic {
        name: TopicName,
        expects: Vec<Expectation>,
        answer: Answer<TopicId, TopicError>,
    },
    InitProducer {
        name: Option<Arc<str>>,
        answer: Answer<ProducerId, CommitError>,
    },
    ChangeTopics {
        changes: Vec<(TopicName, TopicChange)>,
        expects: Vec<Expectation>,
        answer: Answer<Vec<Topic>, TopicError>,
    },
    Trim {
        partition: TopicPartition,
        before: Offset,
        answer: Answer<Offset, TrimError>,
    },
    Adopt {
        adoption: Adoption,
        bytes: usize,
        answer: Answer<(), AdoptError>,
        /// Room in the queue; returned when it is answered.
        room: OwnedSemaphorePermit,
    },
    Stop,
}

pub(crate) type Answer<T, E> = oneshot::Sender<Result<T, E>>;

impl Request {
    /// Whether it must be alone in its group. A change of topics must: if it failed, other
    /// decisions in the group would be based on topics that never existed. So must a new producer.
    pub(crate) fn stands_alone(&self) -> bool {
        match self {
            Self::Commit { submission, .. } => submission.producer.is_some(),
            Self::CreateTopic { .. }
            | Self::DeleteTopic { .. }
            | Self::ChangeTopics { .. }
            | Self::Trim { .. }
            | Self::Adopt { .. }
            | Self::InitProducer { .. } => true,
            Self::Claim { .. } | Self::Stop => false,
        }
    }

    /// Whether it adds messages or values of state, which a full disk has no room for.
    pub(crate) fn brings_data(&self) -> bool {
        let submission = match self {
            Self::Commit { submission, .. } => submission,
            Self::Adopt { adoption, .. } => return matches!(adoption, Adoption::Messages { .. }),
            _ => return false,
        };
        let keeps = |write: &StateWrite| write.writes.keep_values();
        !submission.appends.is_empty() || submission.state.iter().any(keeps)
    }

    /// Whether it adds values of processors' state.
    pub(crate) fn brings_state(&self) -> bool {
        let Self::Commit { submission, .. } = self else {
            return false;
        };
        let brings = |write: &StateWrite| write.writes.keep_values() && may_be_paged(&write.group);
        submission.state.iter().any(brings)
    }

    /// Whether it makes the catalogue grow permanently.
    pub(crate) fn brings_names(&self) -> bool {
        match self {
            Self::CreateTopic { .. } | Self::InitProducer { .. } => true,
            Self::Adopt { adoption, .. } => !matches!(adoption, Adoption::Messages { .. }),
            Self::ChangeTopics { changes, .. } => changes
                .iter()
                .any(|(_, change)| change.partitions.is_some()),
            _ => false,
        }
    }

    /// Whether it changes something whose visibility does not depend on offsets. Such a group is
    /// made durable before any of it is applied.
    pub(crate) fn changes_catalogue(&self) -> bool {
        match self {
            Self::Commit { submission, .. } => {
                !submission.entries.is_empty() || submission.producer.is_some()
            }
            Self::Claim { .. } | Self::Stop => false,
            Self::Adopt { adoption, .. } => !matches!(adoption, Adoption::Messages { .. }),
            Self::CreateTopic { .. }
            | Self::DeleteTopic { .. }
            | Self::ChangeTopics { .. }
            | Self::Trim { .. }
            | Self::InitProducer { .. } => true,
        }
    }

    pub(crate) fn byte_count(&self) -> usize {
        match self {
            Self::Commit { bytes, .. } | Self::Adopt { bytes, .. } => *bytes,
            Self::Claim { group, .. } => group.as_str().len() + OPERATION_OVERHEAD_BYTES,
            // Only names and settings, alone in their group.
            Self::CreateTopic { .. } | Self::DeleteTopic { .. } | Self::InitProducer { .. } => {
                ALONE_BYTES_MAX
            }
            Self::ChangeTopics { changes, .. } => changes.len() * ALONE_BYTES_MAX,
            Self::Stop => 0,
            Self::Trim { .. } => OPERATION_OVERHEAD_BYTES,
        }
    }

    // A caller that no longer waits gets no answer.
    pub(crate) fn refuse(self, error: CommitError) {
        match self {
            Self::Commit { answer, .. } => drop(answer.send(Err(error))),
            Self::Claim { answer, .. } => drop(answer.send(Err(error))),
            Self::CreateTopic { answer, .. } => drop(answer.send(Err(error.into()))),
            Self::DeleteTopic { answer, .. } => drop(answer.send(Err(error.into()))),
            Self::InitProducer { answer, .. } => drop(answer.send(Err(error))),
            Self::ChangeTopics { answer, .. } => drop(answer.send(Err(error.into()))),
            Self::Trim { answer, .. } => drop(answer.send(Err(error.into()))),
            Self::Adopt { answer, .. } => drop(answer.send(Err(error.into()))),
            Self::Stop => {}
        }
    }

    /// Decides it, or refuses it.
    pub(crate) fn decide(self, state: &State, pending: &mut Pending) -> Option<Decided> {
        match self {
            Self::Commit {
                mut submission,
                answer,
                room,
                ..
            } => {
                let turns = std::mem::take(&mut submission.turns);
                match state.decide(pending, submission) {
                    Ok(receipt) => return Some(Decided::Commit(answer, receipt, (room, turns))),
                    Err(error) => drop(answer.send(Err(error))),
                }
            }
            Self::Claim {
                partition,
                group,
                answer,
            } => match state.decide_claim(pending, partition, group) {
                Ok(lease) => return Some(Decided::Claim(answer, lease)),
                Err(error) => drop(answer.send(Err(error))),
            },
            Self::CreateTopic {
                spec,
                expects,
                answer,
            } => match state.decide_create(pending, spec, &expects) {
                Ok(topic) => return Some(Decided::Created(answer, topic)),
                Err(error) => drop(answer.send(Err(error))),
            },
            Self::DeleteTopic {
                name,
                expects,
                answer,
            } => match state.decide_delete(pending, &name, &expects) {
                Ok(id) => return Some(Decided::Deleted(answer, id)),
                Err(error) => drop(answer.send(Err(error))),
            },
            Self::InitProducer { name, answer } => match state.decide_producer(pending, name) {
                Ok(id) => return Some(Decided::Producer(answer, id)),
                Err(error) => drop(answer.send(Err(error))),
            },
            Self::ChangeTopics {
                changes,
                expects,
                answer,
            } => match state.decide_change(pending, changes, &expects) {
                Ok(topics) => return Some(Decided::Changed(answer, topics)),
                Err(error) => drop(answer.send(Err(error))),
            },
            Self::Trim {
                partition,
                before,
                answer,
            } => match state.decide_trim(pending, partition, before) {
                Ok(start) => return Some(Decided::Trimmed(answer, start)),
                Err(error) => drop(answer.send(Err(error))),
            },
            Self::Adopt {
                adoption,
                answer,
                room,
                ..
            } => match state.decide_adoption(pending, adoption) {
                Ok(()) => return Some(Decided::Adopted(answer, room)),
                Err(error) => drop(answer.send(Err(error))),
            },
            Self::Stop => {}
        }
        None
    }
}

/// A decided answer, given once the transaction is as durable as required.
pub(crate) enum Decided {
    Commit(
        Answer<Receipt, CommitError>,
        Receipt,
        #[expect(dead_code, reason = "held until the answer is given")]
        (OwnedSemaphorePermit, Vec<HeldTurn>),
    ),
    Claim(Answer<Lease, CommitError>, Lease),
    Created(Answer<Topic, TopicError>, Topic),
    Changed(Answer<Vec<Topic>, TopicError>, Vec<Topic>),
    Deleted(Answer<TopicId, TopicError>, TopicId),
    Producer(Answer<ProducerId, CommitError>, ProducerId),
    Trimmed(Answer<Offset, TrimError>, Offset),
    Adopted(
        Answer<(), AdoptError>,
        #[expect(dead_code, reason = "held until the answer is given")] OwnedSemaphorePermit,
    ),
}

impl Decided {
    pub(crate) fn give(self) {
        match self {
            Self::Commit(answer, receipt, _) => drop(answer.send(Ok(receipt))),
            Self::Claim(answer, lease) => drop(answer.send(Ok(lease))),
            Self::Created(answer, topic) => drop(answer.send(Ok(topic))),
            Self::Changed(answer, topics) => drop(answer.send(Ok(topics))),
            Self::Deleted(answer, id) => drop(answer.send(Ok(id))),
            Self::Producer(answer, id) => drop(answer.send(Ok(id))),
            Self::Trimmed(answer, start) => drop(answer.send(Ok(start))),
            Self::Adopted(answer, _) => drop(answer.send(Ok(()))),
        }
    }

    pub(crate) fn refuse(self, error: CommitError) {
        match self {
            Self::Commit(answer, ..) => drop(answer.send(Err(error))),
            Self::Claim(answer, _) => drop(answer.send(Err(error))),
            Self::Created(answer, _) => drop(answer.send(Err(error.into()))),
            Self::Changed(answer, _) => drop(answer.send(Err(error.into()))),
            Self::Deleted(answer, _) => drop(answer.send(Err(error.into()))),
            Self::Producer(answer, _) => drop(answer.send(Err(error))),
            Self::Trimmed(answer, _) => drop(answer.send(Err(error.into()))),
            Self::Adopted(answer, _) => drop(answer.send(Err(error.into()))),
        }
    }
}

/// Commits a transaction of the engine itself, through the same queue as all others, from a thread
/// that may wait for the answer. `None` if the queue is full or the engine ends.
pub(crate) fn commit_own(
    queue: &mpsc::Sender<Request>,
    room: &Arc<Semaphore>,
    transaction: Transaction,
) -> Option<Result<Receipt, CommitError>> {
    let submission = Submission::from(transaction);
    let bytes = submission.byte_count();
    let room = Arc::clone(room).try_acquire_many_owned(queue_kib(bytes));
    let (answer, answered) = oneshot::channel();
    let request = Request::Commit {
        submission,
        bytes,
        answer,
        room: room.ok()?,
    };
    queue.blocking_send(request).ok()?;
    answered.blocking_recv().ok()
}
