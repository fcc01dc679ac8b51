//! The suites that every engine passes, on a real server that these tests start: one, or with `MILLRACE_TEST_NATS_SERVERS=3` a cluster.

mod access;
mod compaction;
#[path = "../../../../tests/src/nats.rs"]
#[expect(
    unreachable_pub,
    dead_code,
    reason = "it is part of the harness, for more than these tests"
)]
mod nats;
mod own;

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use millrace_engine::Engine;
use millrace_engine::conformance::hosts::{Fate, TwoHosts};
use millrace_model::SystemClock;

use super::JetstreamEngine;
use crate::JetstreamOptions;

/// One for all tests: the shell behind it ends it with this process.
static NATS: LazyLock<nats::Nats> = LazyLock::new(|| {
    let count = std::env::var("MILLRACE_TEST_NATS_SERVERS");
    let count = count.ok().and_then(|count| count.parse().ok()).unwrap_or(1);
    nats::Nats::start(count).expect("the server starts")
});

/// A stream of its own for each directory.
fn stream_of(directory: &Path) -> String {
    let mut hasher = DefaultHasher::new();
    directory.hash(&mut hasher);
    format!("test_{:016x}", hasher.finish())
}

/// A host is dead soon, so that tests need not wait.
fn options(directory: &Path) -> JetstreamOptions {
    JetstreamOptions {
        servers: NATS.urls(),
        stream: stream_of(directory),
        synced: true,
        heartbeat_interval: Duration::from_millis(100),
        dead_after: Duration::from_secs(2),
        checkpoint_interval: Duration::from_millis(300),
        ..JetstreamOptions::default()
    }
}

async fn open_with(options: JetstreamOptions) -> Arc<JetstreamEngine> {
    // A cluster needs a moment until it can have streams.
    for _ in 0..300 {
        match JetstreamEngine::open(options.clone(), Arc::new(SystemClock::new())).await {
            Ok(engine) => return engine,
            Err(error) => eprintln!("not yet: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the stream does not open: {}", NATS.log(0));
}

async fn open(directory: PathBuf) -> Arc<dyn Engine> {
    open_with(options(&directory)).await
}

/// A host that reads everything from the servers.
async fn open_forgetful(directory: PathBuf) -> Arc<dyn Engine> {
    open_with(JetstreamOptions {
        fresh_bytes_max: 0,
        ..options(&directory)
    })
    .await
}

async fn open_bounded(directory: PathBuf) -> Arc<dyn Engine> {
    open_with(JetstreamOptions {
        bounds: millrace_engine::conformance::bounds::BOUNDS,
        ..options(&directory)
    })
    .await
}

async fn open_two(directory: PathBuf) -> [TwoHosts; 2] {
    let mut pairs = Vec::new();
    for number in 0..2 {
        let options = options(&directory.join(number.to_string()));
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

impl Fate for JetstreamEngine {
    fn die(&self) {
        self.store.is_closed.store(true, Ordering::SeqCst);
        if let Some(tasks) = self.tasks.lock().take() {
            tasks.committer.abort();
            tasks.feed.abort();
            tasks.others.iter().for_each(tokio::task::JoinHandle::abort);
        }
    }
    fn stall(&self) {
        self.store.is_stalled.store(true, Ordering::SeqCst);
    }
    fn come_back(&self) {
        self.store.is_stalled.store(false, Ordering::SeqCst);
    }
}

millrace_engine::conformance_tests!(open_forgetful);
millrace_engine::reopening_tests!(open);
millrace_engine::two_hosts_tests!(open_two);
millrace_engine::adopting_tests!(open_forgetful);
millrace_engine::adopting_and_reopening_tests!(open);

mod bounded {
    millrace_engine::bounds_tests!(super::open_bounded);
}

/// What a reader finds in memory is the same.
mod remembered {
    millrace_engine::conformance_tests! { @tests hold super::open;
        messages::sixteen_writers_are_given_no_offset_twice_and_everything_is_read,
        messages::a_reader_sees_a_transaction_whole,
        messages::writers_beside_a_transaction_show_no_part_of_it,
        messages::a_batch_is_read_as_it_was_written,
        messages::the_largest_message_is_kept,
        messages::an_offset_within_a_batch_gives_the_batch_that_holds_it,
        messages::a_read_is_bounded_in_bytes_and_gives_at_least_one_batch,
        messages::reading_at_the_end_is_empty_and_past_it_an_error,
    }
}
