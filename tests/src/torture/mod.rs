//! Torture: clients that record what they did and observed, faults that are as real as this machine
//! allows, and a checker that uses only these records. `tests/torture` runs it against the real
//! binary; `tests/tests/planted` shows that the checker finds what it should find.

mod backups;
mod calm;
pub mod checker;
mod clients;
mod counting;
mod disk;
mod faults;
pub mod history;
mod journal;
mod run;
mod times;
pub mod value;
mod world;

pub use run::{Plan, Report, run};
