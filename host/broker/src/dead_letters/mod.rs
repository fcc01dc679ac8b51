//! Dead letters: listing, trying, editing and redriving them, with an audit trail. They are messages of ordinary topics
//! (`<topic>.<processor>.dlq`) whose headers carry the evidence.

mod audit;
mod dry_run;
mod edit;
mod filter;
mod listing;
mod record;
mod redrive;
mod shelf;
mod waiting;

pub use audit::{AuditAction, AuditEntry, AuditPage, Digests, EditDigests};
pub use dry_run::{DryRun, DryRunOutcome, DryRunOutput, DryRunRequest};
pub use edit::LetterEdit;
pub use filter::{DeadLetterFilter, HeaderFilter, Redrives};
pub use listing::{DeadLetterGroup, DeadLetterGroups, DeadLetterPage, DeadLetterQuery};
pub use redrive::{RedriveRequest, RedriveWhich, Redriven};
pub(crate) use waiting::none_waiting;

use std::fmt;
use std::str::FromStr;

use millrace_engine::CommitError;
use millrace_model::bounds::DRY_RUNS_MAX;
use millrace_model::{Message, Offset, PartitionId, ProcessorName, Timestamp, TopicName};
use serde::Serialize;

use crate::broker::Broker;
use crate::fetch::FetchError;
use crate::handler::CallUse;

/// Dead letters read at once, and redriven by one transaction.
const LETTERS_MAX: usize = 1_000;
/// Approximate bytes of them.
const LETTERS_BYTES: usize = 4 << 20;

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
    /// An explanation for people.
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
    pub fn place(&self) -> DeadLetterPlace {
        DeadLetterPlace {
            topic: self.topic.clone(),
            partition: self.partition,
            offset: self.offset,
        }
    }
}

/// The place of a dead letter; as text `TOPIC/PARTITION/OFFSET`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeadLetterPlace {
    /// The dead-letter topic.
    pub topic: TopicName,
    /// Its partition.
    pub partition: PartitionId,
    /// The offset there.
    pub offset: Offset,
}

impl DeadLetterPlace {
    /// The next one in its partition.
    fn after(mut self) -> Self {
        self.offset = self.offset.next();
        self
    }
}

impl fmt::Display for DeadLetterPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.topic, self.partition, self.offset)
    }
}

impl FromStr for DeadLetterPlace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        let [topic, partition, offset] = parts[..] else {
            return Err("write TOPIC/PARTITION/OFFSET".to_owned());
        };
        let partition = partition.parse().map_err(|_| "the partition is a number")?;
        let offset = offset.parse().map_err(|_| "the offset is a number")?;
        Ok(Self {
            topic: TopicName::parse(topic).map_err(|error| error.to_string())?,
            partition: PartitionId(partition),
            offset: Offset(offset),
        })
    }
}

impl Serialize for DeadLetterPlace {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Why dead letters could not be listed, tried or redriven.
#[derive(Debug, thiserror::Error)]
pub enum DeadLetterError {
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
    AlreadySent(DeadLetterPlace),
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
    Revision(#[from] crate::processors::ProcessorError),
    /// They could not be read.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The engine did not take the messages.
    #[error(transparent)]
    Commit(#[from] CommitError),
}

impl Broker {
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
