//! Dead letters: found, shown, tried, changed, sent again, each redrive on record. They are messages of ordinary topics
//! (`<topic>.<processor>.dlq`) whose headers carry the evidence.

use millrace_engine::CommitError;
use millrace_model::bounds::DRY_RUNS_MAX;
use millrace_model::{Message, Offset, PartitionId, ProcessorName, Timestamp, TopicName};
use serde::Serialize;

use crate::catalogue::deciding::decision_errors;
use crate::dead_letters::handle::DeadLetters;
use crate::handler::CallUse;
use crate::messages::fetch::FetchError;
use crate::messages::place::MessagePlace;

/// Dead letters read at once, and sent again by one transaction.
pub(super) const LETTERS_MAX: usize = 1_000;
/// Bytes of them, about.
pub(super) const LETTERS_BYTES: usize = 4 << 20;

/// A dead letter with its evidence, read from its headers.
#[derive(Clone, Debug, Serialize)]
pub struct DeadLetter {
    /// The dead-letter topic.
    pub topic: TopicName,
    /// Its partition.
    pub partition: PartitionId,
    /// The letter's offset there.
    pub offset: Offset,
    /// Where the message came from.
    pub origin_topic: TopicName,
    /// Its partition there.
    pub origin_partition: PartitionId,
    /// Its offset there.
    pub origin_offset: Offset,
    /// The revision that failed last.
    pub revision: u32,
    /// The digest of that revision's module.
    pub module: String,
    /// Attempts made.
    pub attempts: u32,
    /// How the last one failed: `retry`, `reject`, `trap`, `timeout`, `memory`, `bad-answer`, `host-died` or `given-up`.
    pub cause: String,
    /// A short word to group by.
    pub class: String,
    /// For people.
    pub reason: String,
    /// When the first attempt failed.
    pub first_failed_at: Timestamp,
    /// When it was given up.
    pub died_at: Timestamp,
    /// The latest attempts: `at`, `revision`, `class`, `reason` of each.
    pub attempt_log: serde_json::Value,
    /// Function names of the guest, innermost first, if it trapped.
    pub backtrace: Option<String>,
    /// What the call used that it died of, and the last lines that the guest wrote in it; where that is known.
    pub call: Option<CallUse>,
    /// How often the message had been sent again before it died this time.
    pub redrives: u32,
    /// Whether this letter was sent again.
    pub redriven: bool,
    /// The message, evidence included.
    #[serde(skip)]
    pub message: Message,
}

impl DeadLetter {
    /// Where it stands.
    #[must_use]
    pub fn place(&self) -> MessagePlace {
        MessagePlace {
            topic: self.topic.clone(),
            partition: self.partition,
            offset: self.offset,
        }
    }
}

/// Why dead letters could not be listed, tried or sent again.
#[derive(Debug, thiserror::Error)]
pub enum DeadLetterError {
    /// No such processor.
    #[error("processor {0} does not exist")]
    UnknownProcessor(ProcessorName),
    /// The processor is gone, and with it whoever would take them.
    #[error("processor {0} is not deployed: nobody would take its dead letters")]
    Deleted(ProcessorName),
    /// No dead letter of this processor stands there.
    #[error("there is no dead letter of this processor at {topic}/{partition}/{offset}")]
    NoSuchDeadLetter {
        /// The topic asked for.
        topic: TopicName,
        /// The partition asked for.
        partition: PartitionId,
        /// The offset asked for.
        offset: Offset,
    },
    /// A letter that was sent again is no longer changed.
    #[error(
        "dead letter {0} was sent again already; if it died once more, edit the letter that came of that"
    )]
    AlreadySent(MessagePlace),
    /// The edit cannot be made.
    #[error("the dead letter cannot be changed so: {0}")]
    Edit(String),
    /// An entry of the catalogue is not one of ours.
    #[error("{0}; the data directory may be of a newer version of this host")]
    Catalogue(String),
    /// The processor does not read the topic that they came from.
    #[error("processor {processor} does not read topic {topic}; deploy it with that input first")]
    NotAnInput {
        /// Whose letters.
        processor: ProcessorName,
        /// The topic that they came from.
        topic: String,
    },
    /// [`DRY_RUNS_MAX`] dry runs are under way.
    #[error(
        "{DRY_RUNS_MAX} dry runs are under way, as many as there may be; try again when one has ended"
    )]
    Busy,
    /// What is done could not be put on record, so nothing was done.
    #[error("the audit trail cannot be kept: {0}")]
    Audit(String),
    /// The revision to try cannot be loaded.
    #[error(transparent)]
    Revision(#[from] crate::processors::error::ProcessorError),
    /// They could not be read.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The engine did not take the messages.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

decision_errors! {
    DeadLetterError: DeadLetterError::Commit;
}

impl DeadLetters {
    /// One dead letter.
    ///
    /// # Errors
    /// [`DeadLetterError`].
    pub async fn dead_letter(
        &self,
        name: &ProcessorName,
        topic: &TopicName,
        partition: PartitionId,
        offset: Offset,
    ) -> Result<DeadLetter, DeadLetterError> {
        let shelf = self.shelf(name, topic, partition, offset)?;
        self.letter(&shelf, offset).await
    }
}
