//! The names of topics that a processor keeps for itself beside each of its inputs.

use millrace_model::{NameError, ProcessorName, TopicName};

/// The suffix of dead-letter topics: `<topic>.<processor>.dlq`.
pub(crate) const DEAD_LETTERS_SUFFIX: &str = ".dlq";

/// The suffix of topics for redriven messages: `<topic>.<processor>.redrive`.
pub(crate) const REDRIVE_SUFFIX: &str = ".redrive";

/// The suffix of topics with the audit trail of dead letters: `<topic>.<processor>.audit`. In directories of earlier versions other
/// topics may have it, too.
pub(crate) const AUDIT_SUFFIX: &str = ".audit";

/// The topic of the host's audit log. Nobody can make another one of this name: the suffix is reserved.
pub(crate) const AUDIT_LOG: &str = "host.audit";

/// The name of a topic that a processor owns beside one of its inputs.
pub(crate) fn own_name(
    input: &TopicName,
    processor: &ProcessorName,
    suffix: &str,
) -> Result<TopicName, NameError> {
    TopicName::parse(&format!("{input}.{processor}{suffix}"))
}
