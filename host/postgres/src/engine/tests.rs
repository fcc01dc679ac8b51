//! The suites that every engine passes, on a real server that these tests start.

mod access;
mod compaction;
mod examined;
mod lives;
mod outbox;
mod own;
mod server;
mod short;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use millrace_engine::Engine;
use millrace_engine::conformance::hosts::{Fate, TwoHosts};
use millrace_model::SystemClock;

use super::PostgresEngine;
use crate::PostgresOptions;

/// A host is dead soon, so that tests need not wait.
fn options(directory: &std::path::Path) -> PostgresOptions {
    PostgresOptions {
        url: server::url(),
        schema: server::schema_of(directory),
        heartbeat_interval: Duration::from_millis(100),
        dead_after: Duration::from_secs(2),
        poll_interval: Duration::from_millis(200),
        ..PostgresOptions::default()
    }
}

async fn open_with(options: PostgresOptions) -> Arc<PostgresEngine> {
    let opened = PostgresEngine::open(options, Arc::new(SystemClock::new())).await;
    opened.expect("the database opens")
}

async fn open(directory: PathBuf) -> Arc<dyn Engine> {
    open_with(options(&directory)).await
}

async fn open_bounded(directory: PathBuf) -> Arc<dyn Engine> {
    open_with(PostgresOptions {
        bounds: millrace_engine::conformance::bounds::BOUNDS,
        ..options(&directory)
    })
    .await
}

async fn open_busy(directory: PathBuf) -> Arc<dyn Engine> {
    open_with(compaction::often(&directory)).await
}

async fn open_two(directory: PathBuf) -> [TwoHosts; 2] {
    let mut pairs = Vec::new();
    for number in 0..2 {
        let options = PostgresOptions {
            schema: format!("{}_{number}", server::schema_of(&directory)),
            ..options(&directory)
        };
        let one = open_with(options.clone()).await;
        let other = open_with(options).await;
        let (one, other) = match number {
            0 => (one, other),
            _ => (other, one),
        };
        pairs.push(TwoHosts {
            fate: one.clone(),
            one,
            other,
        });
    }
    pairs
        .try_into()
        .unwrap_or_else(|_| unreachable!("two were made"))
}

impl Fate for PostgresEngine {
    fn die(&self) {
        self.store
            .is_closed
            .store(true, std::sync::atomic::Ordering::SeqCst);
        if let Some(tasks) = self.tasks.lock().take() {
            tasks.life.abort();
            let all = tasks.lanes.iter().chain(&tasks.followers);
            all.for_each(tokio::task::JoinHandle::abort);
        }
    }
    fn stall(&self) {
        self.store.hosts.stall(true);
    }
    fn come_back(&self) {
        self.store.hosts.stall(false);
    }
}

millrace_engine::conformance_tests!(open);
millrace_engine::reopening_tests!(open);
millrace_engine::adopting_tests!(open);
millrace_engine::compaction_tests!(open_busy);
millrace_engine::adopting_and_reopening_tests!(open);
millrace_engine::two_hosts_tests!(open_two);

mod bounded {
    millrace_engine::bounds_tests!(super::open_bounded);
}
