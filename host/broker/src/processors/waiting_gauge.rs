//! The gauge of waiting dead letters. The code that counts them sets it; deleting a processor sets
//! it to zero.

use metrics::gauge;
use millrace_model::ProcessorName;

pub(crate) const WAITING: &str = "millrace_dead_letters_waiting";

/// Sets the gauge to zero: a deleted processor has no waiting dead letters.
pub(crate) fn none_waiting(name: &ProcessorName) {
    gauge!(WAITING, "processor" => name.to_string()).set(0.0);
}
