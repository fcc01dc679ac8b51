//! Taking over what another store has, with its numbers: how `millrace copy` fills an empty store.

use millrace_model::{Offset, RecordBatch, Topic, TopicId, TopicPartition};

use super::errors::{CommitError, TopicError};

/// Something of another store, with the numbers that it has there. So nothing that names a topic, an offset or a producer needs to be
/// translated.
#[derive(Clone, Debug)]
pub enum Adoption {
    /// A topic with its id, which must be higher than all ids given so far; ids given later are higher. It begins empty.
    Topic(Topic),
    /// Batches at the offsets that they have. The first begins where the partition ends, each other one where the one before it ends:
    /// [gaps](RecordBatch::gap) stand for offsets without messages. So a repeat is refused, and after a doubt the partition's end says
    /// what has happened. The numbers of producers are remembered, so that they go on, and not judged. As durable on return as the topic
    /// says.
    Messages {
        /// The partition.
        partition: TopicPartition,
        /// The batches; at least one.
        batches: Vec<RecordBatch>,
    },
    /// Ids of producers below this one were given by the other store: none of them is given again. Durable on return.
    ProducerIds {
        /// The first that may be given.
        next: i64,
    },
}

/// Why something was not taken over. Nothing was changed, except after [`CommitError::InDoubt`].
#[derive(Clone, Debug, thiserror::Error)]
pub enum AdoptError {
    /// The engine gives all numbers itself.
    #[error(
        "this engine cannot take over topics and messages with the numbers that they have in another store"
    )]
    Unsupported,
    /// The topic cannot be made.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// The topic's id may have been given before.
    #[error(
        "topic id {id} may have been given before; the next one here is {next}: copy into a store that never had topics"
    )]
    Id {
        /// The id.
        id: TopicId,
        /// The lowest that is still free.
        next: TopicId,
    },
    /// The batches do not continue the partition.
    #[error(
        "partition {partition} ends at {end}, and the batches do not begin there and follow each other"
    )]
    Misplaced {
        /// The partition.
        partition: TopicPartition,
        /// Its end.
        end: Offset,
    },
    /// It could not be committed.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

/// The end of a partition after these batches.
///
/// # Errors
/// [`AdoptError::Misplaced`] if they do not begin at `end` and follow each other.
pub fn end_after(
    partition: TopicPartition,
    end: Offset,
    batches: &[RecordBatch],
) -> Result<Offset, AdoptError> {
    let follows =
        |at: Offset, batch: &RecordBatch| (batch.base_offset() == at).then(|| batch.end_offset());
    let after = batches.iter().try_fold(end, follows);
    after.ok_or(AdoptError::Misplaced { partition, end })
}
