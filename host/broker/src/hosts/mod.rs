//! The living hosts, and what each of them holds of a group's work.

pub(crate) mod base;
pub(crate) mod holding;
pub(crate) mod living;
mod spread;
