//! The server from outside: over HTTP, and as the built binary. One test binary, because linking a host takes its time.

mod access;
mod admissions;
mod audit;
mod cli;
mod connections;
mod consumers;
mod damage;
mod dead_letters;
mod deploying;
mod doctor;
mod formats;
mod growth;
mod http;
mod idempotency;
mod lifetime;
mod monitoring;
mod operating;
mod parked;
mod processing;
mod routes;
mod slow_readers;
mod state;
mod support;
mod times;
mod waiting;
mod webhooks;
