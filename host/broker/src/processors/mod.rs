//! Processors: deploy, try beside the current revision, roll back, pause, delete; their state and
//! their parked messages. A change is loaded first, without the catalogue's lock. One commit of the
//! catalogue makes it effective, and the workers adopt it at their next batch.

#[cfg(test)]
mod bad_deploys;
pub(crate) mod beginning;
pub(crate) mod canary;
pub(crate) mod deploying;
pub(crate) mod error;
pub(crate) mod following;
pub(crate) mod going_back;
pub(crate) mod handle;
pub(crate) mod heard;
pub(crate) mod loaded;
pub(crate) mod loading;
pub(crate) mod next_spec;
pub(crate) mod parked;
pub(crate) mod passing;
pub(crate) mod replay;
pub(crate) mod revisions;
mod rights;
pub(crate) mod seen;
pub(crate) mod shadow;
pub(crate) mod states;
pub(crate) mod status;
pub(crate) mod turns;
pub(crate) mod waiting_gauge;
