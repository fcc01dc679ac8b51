//! Why a processor did not change.

use millrace_engine::{CommitError, ReadError, TopicError};
use millrace_model::{Digest, ProcessorName, TopicName};

use crate::catalogue::deciding::decision_errors;
use crate::handler::{AdmitError, Interface};

/// Why a processor did not change. It is as it was.
#[derive(Debug, thiserror::Error)]
pub enum ProcessorError {
    /// No such processor.
    #[error("processor {0} does not exist")]
    Unknown(ProcessorName),
    /// It names a topic that is not there.
    #[error("topic {0} does not exist; create it first")]
    UnknownTopic(TopicName),
    /// It names a module that is not there.
    #[error("module {0} is not here; upload it first")]
    UnknownModule(Digest),
    /// The module cannot do what it is deployed for.
    #[error("module {digest} exports {has:?}; here it must export {needs:?}")]
    WrongInterface {
        /// Which module.
        digest: Digest,
        /// What it must export.
        needs: Interface,
        /// What it does export.
        has: Vec<Interface>,
    },
    /// Another revision is current than the deployer has seen.
    #[error(
        "this would act on revision {current} of processor {name}, not on {expected}: it has changed since you looked; nothing was changed"
    )]
    OtherRevision {
        /// Whose.
        name: ProcessorName,
        /// What was expected.
        expected: u32,
        /// What there is; 0 where there is no such processor.
        current: u32,
    },
    /// There is no revision before the current one.
    #[error("processor {0} has no revision before its current one")]
    NothingToRollBack(ProcessorName),
    /// Revisions worked before the current one, and none of them can run any more.
    #[error(
        "processor {name} has no revision to go back to: {} worked, and topics or modules of theirs are gone",
        numbered(.revisions)
    )]
    WayBackGone {
        /// Whose.
        name: ProcessorName,
        /// Which revisions.
        revisions: Vec<u32>,
    },
    /// The host has just gone back by itself.
    #[error("{}: nothing was changed", done_by_host(.name, *.current, *.from, *.withdrawn))]
    RolledBackAlready {
        /// Whose.
        name: ProcessorName,
        /// The revision that is current.
        current: u32,
        /// The one that was taken back, or withdrawn.
        from: Option<u32>,
        /// Whether it was a canary: the current revision stayed.
        withdrawn: bool,
        /// Where a further step would lead.
        further: Option<u32>,
    },
    /// The revision on trial does not run.
    #[error("revision {revision} of processor {name} is on trial and cannot be loaded: {why}")]
    TrialNotLoaded {
        /// Whose.
        name: ProcessorName,
        /// Which revision.
        revision: u32,
        /// Why not.
        why: String,
    },
    /// The revision on trial is about to be withdrawn.
    #[error("revision {revision} of processor {name} fails on trial: {why}")]
    TrialFails {
        /// Whose.
        name: ProcessorName,
        /// Which revision.
        revision: u32,
        /// How.
        why: String,
    },
    /// No revision is tried beside the current one.
    #[error("processor {0} has no revision on trial")]
    NoTrial(ProcessorName),
    /// The revision never was, or is no longer kept.
    #[error("processor {name} has no revision {revision}; it keeps {kept:?}")]
    NoSuchRevision {
        /// Whose.
        name: ProcessorName,
        /// What was asked for.
        revision: u32,
        /// What there is.
        kept: Vec<u32>,
    },
    /// It cannot be replayed so.
    #[error("cannot be replayed: {0}")]
    Replay(String),
    /// The specification contradicts itself or a rule.
    #[error("the processor cannot be deployed so: {0}")]
    InvalidSpec(String),
    /// The module could not be loaded.
    #[error(transparent)]
    Admit(#[from] AdmitError),
    /// The engine did not take it.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// A topic of its own could not be made.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// An entry of the catalogue is not one of ours.
    #[error("{0}; the data directory may be of a newer version of this host")]
    Catalogue(String),
    /// The catalogue or a module could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

decision_errors! {
    ProcessorError: ProcessorError::Commit, ProcessorError::Topic;
}

pub(crate) fn invalid<T>(what: String) -> Result<T, ProcessorError> {
    Err(ProcessorError::InvalidSpec(what))
}

/// What the host did by itself, for whoever asks for another rollback.
fn done_by_host(name: &ProcessorName, current: u32, from: Option<u32>, withdrawn: bool) -> String {
    match (from, withdrawn) {
        (Some(from), true) => format!(
            "the host itself has already withdrawn revision {from} of processor {name}, and revision {current} has stayed current"
        ),
        (from, _) => {
            let from = from.map_or(String::new(), |from| format!(" from revision {from}"));
            format!(
                "the host itself has already taken processor {name} back{from} to revision {current}"
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
