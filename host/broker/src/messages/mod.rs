//! Messages: produced, placed in partitions, delayed, and read.

pub(crate) mod append;
pub(crate) mod beginning;
pub(crate) mod delays;
pub(crate) mod fetch;
pub(crate) mod gone;
pub(crate) mod handle;
pub(crate) mod place;
pub(crate) mod placement;
pub(crate) mod produce;
pub(crate) mod read;
pub(crate) mod subscription;
