//! Converts bytes to frames and back, without I/O: no sockets, no tasks, no clock. The owner of a
//! connection passes in received bytes and sends the resulting ones.
//!
//! [`native`] is Millrace's own protocol, for push delivery to remote consumers and edge hosts.

#![forbid(unsafe_code)]

pub mod native;
