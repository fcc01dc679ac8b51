//! The gauge of dead letters that wait: set by who counts them, and to nothing when their processor is gone.

use metrics::gauge;
use millrace_model::ProcessorName;

/// The gauge's name.
pub(crate) const WAITING: &str = "millrace_dead_letters_waiting";

/// A deleted processor has no waiting dead letters.
pub(crate) fn none_waiting(name: &ProcessorName) {
    gauge!(WAITING, "processor" => name.to_string()).set(0.0);
}
