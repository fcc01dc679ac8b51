//! Dead letters: listing, trying, editing and redriving them, with an audit trail. They are messages of ordinary topics
//! (`<topic>.<processor>.dlq`) whose headers carry the evidence.

use millrace_engine::CommitError;
use millrace_model::bounds::DRY_RUNS_MAX;
use millrace_model::{
    Advice, Advised, Code, Message, Offset, PartitionId, ProcessorName, Timestamp, TopicName,
};
use serde::Serialize;

use crate::catalogue::deciding::decision_errors;
use crate::dead_letters::handle::DeadLetters;
use crate::ground::standing::Forbidden;
use crate::ground::verbs::Verb;
use crate::handler::CallUse;
use crate::messages::fetch::FetchError;
use crate::messages::place::MessagePlace;

/// Dead letters read at once, and redriven by one transaction.
pub(super) const LETTERS_MAX: usize = 1_000;
/// Approximate bytes of them.
pub(super) const LETTERS_BYTES: usize = 4 << 20;

/// A dead letter with its evidence, read from its headers.
#[derive(Clone, Debug, Serialize)]
pub struct DeadLetter {
    /// The dead-letter topic.
    pub topic: TopicName,
    /// Its partition.
    pub partition: PartitionId,
    /// The dead letter's offset there.
    pub offset: Offset,
    /// The topic that the message came from.
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
    /// A short word for grouping.
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
    /// What the last call used, and the last lines that the guest logged in it, if known.
    pub call: Option<CallUse>,
    /// How often the message had been redriven before it failed this time.
    pub redrives: u32,
    /// Whether this dead letter was redriven.
    pub redriven: bool,
    /// The message, including the evidence.
    #[serde(skip)]
    pub message: Message,
}

impl DeadLetter {
    /// Its place.
    #[must_use]
    pub fn place(&self) -> MessagePlace {
        MessagePlace {
            topic: self.topic.clone(),
            partition: self.partition,
            offset: self.offset,
        }
    }
}

/// Why dead letters could not be listed, tried or redriven.
#[derive(Debug, thiserror::Error)]
pub enum DeadLetterError {
    /// The caller may not do it.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// No such processor.
    #[error("processor {0} does not exist")]
    UnknownProcessor(ProcessorName),
    /// The processor was deleted, so nothing would process the messages.
    #[error("processor {0} is not deployed, so nothing would process its dead letters")]
    Deleted(ProcessorName),
    /// There is no dead letter of this processor at that place.
    #[error("there is no dead letter of this processor at {topic}/{partition}/{offset}")]
    NoSuchDeadLetter {
        /// The topic asked for.
        topic: TopicName,
        /// The partition asked for.
        partition: PartitionId,
        /// The offset asked for.
        offset: Offset,
    },
    /// A redriven dead letter can no longer be edited.
    #[error(
        "dead letter {0} was already redriven; if the message failed again, edit the new dead letter"
    )]
    AlreadySent(MessagePlace),
    /// The edit is not possible.
    #[error("the dead letter cannot be edited like this: {0}")]
    Edit(String),
    /// A catalogue entry cannot be read.
    #[error("{0}; the data directory may belong to a newer version of this host")]
    Catalogue(String),
    /// The processor does not read the topic that they came from.
    #[error("processor {processor} does not read topic {topic}; deploy it with that input first")]
    NotAnInput {
        /// The processor.
        processor: ProcessorName,
        /// The topic that they came from.
        topic: String,
    },
    /// [`DRY_RUNS_MAX`] dry runs are running.
    #[error("{DRY_RUNS_MAX} dry runs, the maximum, are running; try again when one has ended")]
    Busy,
    /// The action could not be recorded, so it was not done.
    #[error("the audit trail cannot be written: {0}")]
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

impl Advised for DeadLetterError {
    fn advice(&self) -> Advice {
        match self {
            Self::Forbidden(error) => error.advice(),
            Self::UnknownProcessor(_) => Code::UnknownProcessor.advice(),
            Self::Deleted(_) => Code::NotDeployed.advice(),
            Self::NoSuchDeadLetter { .. } => Code::UnknownDeadLetter.advice(),
            Self::NotAnInput { .. } => Code::NotAnInput.advice(),
            Self::AlreadySent(_) => Code::AlreadySent.advice(),
            Self::Edit(_) => Code::InvalidEdit.advice(),
            Self::Busy => Code::Busy
                .hint("try again when one of them has ended; nothing was done")
                .after_s(5),
            Self::Audit(_) => Code::NoAuditTrail.advice(),
            Self::Catalogue(_) => Code::Internal.advice(),
            Self::Revision(error) => error.advice(),
            Self::Fetch(error) => error.advice(),
            Self::Commit(error) => error.advice(),
        }
    }
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
        self.caller.may(Verb::ReadDeadLetters, name.as_str())?;
        let shelf = self.shelf(name, topic, partition, offset)?;
        self.letter(&shelf, offset).await
    }
}
