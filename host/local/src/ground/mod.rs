//! What all rooms use: the options, a partition with its tail in memory and its files, and two
//! kinds of errors.

pub(crate) mod keep_error;
pub(crate) mod open_error;
pub(crate) mod options;
pub(crate) mod tail;
pub(crate) mod threads;
