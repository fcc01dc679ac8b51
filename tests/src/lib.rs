//! The harness: starts the real `millrace` binary on a free port with its own directory, talks to
//! it over HTTP, and waits for conditions. Scenarios read like what a user does.
#![forbid(unsafe_code)]

mod client;
mod host;
pub mod identity;
mod nats;
mod postgres;
pub mod torture;
pub mod tree;
mod wait;

pub use client::{Client, Deploy, Message, Reply};
pub use host::Host;
pub use nats::{Nats, nats_server};
pub use postgres::{Postgres, sql};
pub use wait::{hold_for, wait_for};
