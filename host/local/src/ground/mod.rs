//! What all rooms stand on: the options, a partition with its tail in memory over its files, and the two ways in which something ends
//! otherwise than hoped for.

pub(crate) mod keep_error;
pub(crate) mod open_error;
pub(crate) mod options;
pub(crate) mod tail;
pub(crate) mod threads;
