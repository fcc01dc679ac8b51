//! Routes: HTTP requests under a path are answered by a component.

mod access;
pub(crate) mod handle;
pub(crate) mod keeping;
pub(crate) mod rehearsal;
pub(crate) mod serving;
