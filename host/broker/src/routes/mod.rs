//! Routes: HTTP requests under a path are answered by a component.

mod access;
pub(crate) mod canary;
pub(crate) mod error;
pub(crate) mod finding;
pub(crate) mod handle;
pub(crate) mod keeping;
pub(crate) mod loading;
pub(crate) mod rehearsal;
mod revisions;
mod rights;
pub(crate) mod serving;
