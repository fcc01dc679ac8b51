//! What a transaction comes to. Plain code: what is asked and what there is go in, operations and answers come out. Nothing here waits, and
//! nothing is written.

pub(crate) mod codec;
pub(crate) mod holds;
pub(crate) mod requests;
pub(crate) mod retention;
pub(crate) mod state;
pub(crate) mod submission;
