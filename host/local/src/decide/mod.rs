//! Decides transactions. Plain code: requests and the current state go in, operations and answers
//! come out. Nothing here waits or writes.

pub(crate) mod codec;
pub(crate) mod holds;
pub(crate) mod requests;
pub(crate) mod retention;
pub(crate) mod state;
pub(crate) mod submission;
