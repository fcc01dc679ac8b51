//! The broker on the memory engine, with handlers written by hand: every way that a message can go.

mod beginning;
mod breaker;
mod canary;
mod chains;
mod compression;
mod dead_letters;
mod delays;
mod doors;
mod dry_runs;
mod faults;
mod host_headers;
mod lifetime;
mod orders;
mod outcomes;
mod redrives;
mod replay;
mod revisions;
mod rig;
mod schedules;
mod scripts;
mod shadow;
mod states;
mod throughput;
mod trials;
mod workplace;
