//! Torture: clients that note what they did and saw, faults that are as real as this machine
//! allows, and a checker that judges by those notes alone. `tests/torture` runs it against the real
//! binary; `tests/tests/planted` shows that the checker finds planted mistakes.

mod backups;
mod calm;
pub mod checker;
mod clients;
mod counting;
mod disk;
mod faults;
pub mod history;
pub mod hosts;
mod journal;
mod run;
mod times;
pub mod value;
mod world;

pub use run::{Plan, Report, run};
