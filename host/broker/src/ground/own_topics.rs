//! The names of topics that a processor keeps for itself beside each of its inputs.

use millrace_model::{NameError, ProcessorName, TopicName};

/// How the names of dead-letter topics end: `<topic>.<processor>.dlq`.
pub(crate) const DEAD_LETTERS_SUFFIX: &str = ".dlq";

/// How the names of topics end through which dead letters are sent again: `<topic>.<processor>.redrive`.
pub(crate) const REDRIVE_SUFFIX: &str = ".redrive";

/// How the names of topics end that say what was done with dead letters: `<topic>.<processor>.audit`. In directories of earlier versions
/// others may end so, too.
pub(crate) const AUDIT_SUFFIX: &str = ".audit";

/// The name of a topic that a processor keeps for itself beside one of its inputs.
pub(crate) fn own_name(
    input: &TopicName,
    processor: &ProcessorName,
    suffix: &str,
) -> Result<TopicName, NameError> {
    TopicName::parse(&format!("{input}.{processor}{suffix}"))
}
