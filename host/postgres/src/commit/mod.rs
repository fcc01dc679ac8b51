//! The way of a commit: what waits is committed in groups, by a few lanes that lock in turn and write beside each other.

pub(crate) mod judging;
pub(crate) mod lanes;
pub(crate) mod locking;
pub(crate) mod short;
pub(crate) mod writing;
