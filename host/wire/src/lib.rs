//! Bytes to frames and back, sans-IO: no sockets, no tasks, no clock. Whoever has a connection feeds what arrived and sends
//! what comes out.
//!
//! [`native`] is Millrace's own protocol, for push delivery to remote consumers and edge hosts.

#![forbid(unsafe_code)]

pub mod native;
