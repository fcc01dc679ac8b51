//! API paths of processors.

use millrace_model::ProcessorName;

pub(super) fn path(name: &ProcessorName, rest: &str) -> String {
    format!("/v1/processors/{name}{rest}")
}
