//! The harness: starts the real `millrace` binary on a free port in its own directory, talks to it
//! over HTTP, and waits for conditions. A scenario reads like what a user does.
#![forbid(unsafe_code)]

mod client;
mod host;
pub mod torture;
pub mod tree;
mod wait;

pub use client::{Client, Deploy, Message, Reply};
pub use host::Host;
pub use wait::{hold_for, wait_for};
