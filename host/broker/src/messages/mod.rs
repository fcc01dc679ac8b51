//! Messages in and out: producing, choosing places, delaying, and reading.

pub(crate) mod append;
pub(crate) mod beginning;
pub(crate) mod call;
pub(crate) mod checks;
pub(crate) mod delays;
pub(crate) mod fetch;
pub(crate) mod gone;
pub(crate) mod handle;
pub(crate) mod outbox;
pub(crate) mod place;
pub(crate) mod placement;
pub(crate) mod produce;
pub(crate) mod produce_error;
pub(crate) mod read;
pub(crate) mod subscription;
