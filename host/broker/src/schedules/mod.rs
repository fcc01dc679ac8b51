//! Schedules: each creates a message for a topic, again and again.

pub(crate) mod firing;
pub(crate) mod handle;
pub(crate) mod keeping;
pub(crate) mod known;
