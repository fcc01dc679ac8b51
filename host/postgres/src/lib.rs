//! The engine on PostgreSQL: any number of hosts on one database, each of which takes any request.
//!
//! ```text
//!   commit ──► queue ──► lanes: lock rows ─► decide ─► write ─► commit ──► mirror, tables ──► notification
//!                                                                            ▲
//!   reads ──► rows of runs                      other hosts' changes ────────┘
//! ```
//! A transaction is decided by plain code ([`commit::judging`]) on rows that are locked in one order ([`commit::locking`]), so what holds
//! for one host holds for many. A host keeps in memory what must be answered without waiting ([`mirror`]) and the tables of state that it
//! uses ([`tables`]), and follows the others ([`following`]). Who lives is judged by sessions and the database's clock ([`hosts`]); who may
//! commit, by the epochs of leases ([`chains`]).

#![forbid(unsafe_code)]

mod adopting;
mod catalogue;
mod chains;
mod cleaning;
mod commit;
mod compaction;
mod connect;
mod engine;
mod examine;
mod following;
mod hosts;
mod memory;
mod mirror;
mod options;
mod outbox;
mod reading;
mod store;
mod tables;
mod tail;
mod trouble;

pub use self::connect::OpenError;
pub use self::engine::PostgresEngine;
pub use self::examine::{Thresholds, examine};
pub use self::options::PostgresOptions;
