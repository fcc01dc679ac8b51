//! What every room builds on: header names, names of processors' own topics, columns, packing,
//! partitioners, the rules of chains, tasks, callers, and the interruption of calls.

pub(crate) mod backoff;
pub(crate) mod caller;
pub(crate) mod chains;
pub(crate) mod columns;
pub(crate) mod headers;
pub(crate) mod interrupting;
pub(crate) mod own_topics;
pub(crate) mod packing;
pub(crate) mod partitioner;
pub(crate) mod planted;
pub(crate) mod tasks;
pub(crate) mod text;
