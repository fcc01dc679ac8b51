//! What every room stands on: columns, packing, partitioners, the rules of chains, tasks, and the end of all calls. Nothing here knows
//! a topic's name or who asks.

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
