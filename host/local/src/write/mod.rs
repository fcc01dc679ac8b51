//! The path of a commit from the queue to the answer: decided by the room below, written to the
//! journal, made durable, made visible.

pub(crate) mod commits;
pub(crate) mod committer;
pub(crate) mod headroom;
pub(crate) mod orders;
pub(crate) mod pipeline;
pub(crate) mod poison;
pub(crate) mod reserve;
pub(crate) mod syncer;
