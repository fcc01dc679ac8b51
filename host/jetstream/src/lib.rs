//! The engine on NATS JetStream: any number of hosts on one stream, each of which takes any request.
//!
//! ```text
//!   commit ──► queue ──► decide on cells ──► one atomic batch ──► stream ──► feed ──► mirror, tables ──► answer
//!                                                                              ▲
//!   reads ──► index ──► messages                   other hosts' commits ───────┘
//! ```
//! A transaction is decided by plain code ([`judging`]) on what this host knows, and written as one step that expects what it was decided
//! on ([`atomic`]); the server refuses it if somebody was faster. Offsets are counted along the stream, by all hosts alike ([`counting`]).
//! Each follows the headers of the whole stream ([`feed`]), which is also how it learns of the others' changes and of who lives
//! ([`mirror`], [`hosts`]). Who may commit is decided by the epochs of leases ([`chains`]).

#![forbid(unsafe_code)]

mod acknowledged;
mod adopting;
mod atomic;
mod catalogue;
mod cells;
mod chains;
mod cleaning;
mod committing;
mod compacted;
mod compaction;
mod connect;
mod counting;
mod encoding;
mod engine;
mod feed;
mod fetch;
mod fresh;
mod heard;
mod hosts;
mod index;
mod judging;
mod loading;
mod mirror;
mod older;
mod options;
mod reading;
mod store;
mod subjects;
mod tables;
mod trouble;

pub use self::connect::OpenError;
pub use self::engine::JetstreamEngine;
pub use self::options::{Credentials, JetstreamOptions};
