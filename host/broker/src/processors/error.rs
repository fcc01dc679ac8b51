//! Why a processor did not change.

use millrace_engine::{CommitError, ReadError, TopicError};
use millrace_model::processor::ConfigError;
use millrace_model::{Advice, Advised, Code, Digest, ProcessorName, TopicName};

use crate::catalogue::deciding::decision_errors;
use crate::catalogue::signatures::DistrustError;
use crate::catalogue::unknown::{CREATE_TOPIC, UnknownTopic};
use crate::ground::standing::Forbidden;
use crate::handler::{AdmitError, Interface};

/// Why a processor did not change.
#[derive(Debug, thiserror::Error)]
pub enum ProcessorError {
    /// The caller may not do it.
    #[error(transparent)]
    Forbidden(#[from] Forbidden),
    /// No such processor.
    #[error("processor {0} does not exist")]
    Unknown(ProcessorName),
    /// It does not read this topic.
    #[error("processor {name} does not read topic {topic}")]
    DoesNotRead {
        /// The processor.
        name: ProcessorName,
        /// The topic.
        topic: TopicName,
    },
    /// The specification names a topic that does not exist.
    #[error(transparent)]
    UnknownTopic(#[from] UnknownTopic),
    /// The specification names a module that does not exist.
    #[error("module {0} does not exist; upload it first")]
    UnknownModule(Digest),
    /// The module does not export the required interface.
    #[error("module {digest} exports {}; this use requires {needs}", Interface::listed(.has))]
    WrongInterface {
        /// The module.
        digest: Digest,
        /// The required interface.
        needs: Interface,
        /// Its exports.
        has: Vec<Interface>,
    },
    /// The current revision is not the one that the caller expected.
    #[error(
        "this would act on revision {current} of processor {name}, not on {expected}: the processor has changed meanwhile. Nothing was done"
    )]
    OtherRevision {
        /// The processor.
        name: ProcessorName,
        /// The expected revision.
        expected: u32,
        /// The actual one; 0 if the processor does not exist.
        current: u32,
    },
    /// There is no revision before the current one.
    #[error("processor {0} has no revision before its current one")]
    NothingToRollBack(ProcessorName),
    /// Revisions before the current one worked, but none of them can run any more.
    #[error(
        "processor {name} has no revision to go back to: {} worked, but their topics or modules are gone",
        numbered(.revisions)
    )]
    WayBackGone {
        /// The processor.
        name: ProcessorName,
        /// The earlier revisions that worked.
        revisions: Vec<u32>,
    },
    /// The host has just rolled back automatically.
    #[error("{}: nothing was changed", done_by_host(.name, *.current, *.from, *.withdrawn))]
    RolledBackAlready {
        /// The processor.
        name: ProcessorName,
        /// The current revision.
        current: u32,
        /// The revision that was rolled back or withdrawn.
        from: Option<u32>,
        /// Whether that revision was a canary, so that the current one stayed.
        withdrawn: bool,
        /// The target of a further rollback.
        further: Option<u32>,
    },
    /// The revision on trial could not be loaded.
    #[error("revision {revision} of processor {name} is on trial and cannot be loaded: {why}")]
    TrialNotLoaded {
        /// The processor.
        name: ProcessorName,
        /// The revision.
        revision: u32,
        /// The reason.
        why: String,
    },
    /// The revision on trial fails and is about to be withdrawn.
    #[error("revision {revision} of processor {name} fails on trial: {why}")]
    TrialFails {
        /// The processor.
        name: ProcessorName,
        /// The revision.
        revision: u32,
        /// A description of its failures.
        why: String,
    },
    /// The processor has no revision on trial.
    #[error("processor {0} has no revision on trial")]
    NoTrial(ProcessorName),
    /// The revision never existed, or is no longer kept.
    #[error("processor {name} has no revision {revision}; it keeps {kept:?}")]
    NoSuchRevision {
        /// The processor.
        name: ProcessorName,
        /// The requested revision.
        revision: u32,
        /// The kept revisions.
        kept: Vec<u32>,
    },
    /// The replay is not possible.
    #[error("cannot be replayed: {0}")]
    Replay(String),
    /// The specification contradicts itself or a rule.
    #[error("the processor cannot be deployed like this: {0}")]
    InvalidSpec(String),
    /// The settings have a wrong key or are over a bound.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The module could not be loaded.
    #[error(transparent)]
    Admit(#[from] AdmitError),
    /// The module's signature does not allow a deployment.
    #[error(transparent)]
    Distrust(#[from] DistrustError),
    /// The engine refused the commit.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// A topic that the processor owns could not be created.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// A catalogue entry cannot be read.
    #[error("{0}; the data directory may belong to a newer version of this host")]
    Catalogue(String),
    /// The catalogue or a module could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

decision_errors! {
    ProcessorError: ProcessorError::Commit, ProcessorError::Topic;
}

impl Advised for ProcessorError {
    fn advice(&self) -> Advice {
        match self {
            Self::Forbidden(error) => error.advice(),
            Self::DoesNotRead { .. } => {
                Code::NotAnInput.hint("name a processor that reads this topic")
            }
            Self::Unknown(_) => Code::UnknownProcessor.advice(),
            Self::UnknownTopic(error) => error.advice().hint(CREATE_TOPIC),
            Self::UnknownModule(_) => Code::UnknownModule.advice(),
            Self::WrongInterface { .. } => Code::WrongInterface.advice(),
            Self::OtherRevision { .. } => Code::OtherRevision.advice(),
            Self::RolledBackAlready { further, .. } => {
                Code::RolledBackAlready.hint(further_back(*further))
            }
            Self::NothingToRollBack(_) => Code::NothingToRollBack.advice(),
            Self::WayBackGone { .. } => Code::NothingToRollBack.hint(
                "create the missing topics and upload the missing modules again, or deploy a revision instead",
            ),
            Self::TrialFails { .. } => Code::TrialFails.advice(),
            Self::TrialNotLoaded { .. } => Code::TrialNotLoaded.advice(),
            Self::NoTrial(_) => Code::NoTrial.advice(),
            Self::NoSuchRevision { .. } => Code::UnknownRevision.advice(),
            Self::Replay(_) => Code::InvalidReplay.advice(),
            Self::InvalidSpec(_) => Code::InvalidSpec.advice(),
            Self::Config(_) => Code::InvalidConfig.advice(),
            Self::Admit(error) => error.advice(),
            Self::Distrust(error) => error.advice(),
            Self::Commit(error) => error.advice(),
            Self::Topic(error) => error.advice(),
            Self::Read(error) => error.advice(),
            Self::Catalogue(_) => Code::Internal.advice(),
        }
    }
}

/// How to roll back further than the host did.
fn further_back(revision: Option<u32>) -> String {
    match revision {
        Some(revision) => format!(
            "to go further back, name the revision: `millrace processor rollback NAME --to {revision}`; over HTTP {{\"revision\": {revision}}}"
        ),
        None => "there is no earlier revision to go back to".to_owned(),
    }
}

pub(crate) fn invalid<T>(what: String) -> Result<T, ProcessorError> {
    Err(ProcessorError::InvalidSpec(what))
}

/// What the host did automatically, as the answer to another rollback.
fn done_by_host(name: &ProcessorName, current: u32, from: Option<u32>, withdrawn: bool) -> String {
    match (from, withdrawn) {
        (Some(from), true) => format!(
            "the host itself has already withdrawn revision {from} of processor {name}, and revision {current} has stayed current"
        ),
        (from, _) => {
            let from = from.map_or(String::new(), |from| format!(" from revision {from}"));
            format!(
                "the host itself has already rolled processor {name} back{from} to revision {current}"
            )
        }
    }
}

/// Revisions by number: `revision 1`, `revisions 1 and 2`.
fn numbered(revisions: &[u32]) -> String {
    let numbers: Vec<String> = revisions.iter().map(ToString::to_string).collect();
    match numbers.as_slice() {
        [] => "no revision".to_owned(),
        [one] => format!("revision {one}"),
        [before @ .., last] => format!("revisions {} and {last}", before.join(", ")),
    }
}
