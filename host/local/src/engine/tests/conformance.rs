//! The suite that every engine passes.

use std::path::PathBuf;
use std::sync::Arc;

use millrace_engine::Engine;
use millrace_log::Cipher;
use millrace_model::SystemClock;

use crate::LocalEngine;
use crate::LocalOptions;

async fn open(dir: PathBuf) -> Arc<dyn Engine> {
    let clock = Arc::new(SystemClock::new());
    let opened = LocalEngine::open(&dir, LocalOptions::default(), clock).await;
    opened.expect("the directory opens")
}

/// Small sizes, so that files roll, memory fills and checkpoints are made all the time.
async fn open_small(dir: PathBuf) -> Arc<dyn Engine> {
    open_with(dir, None, None).await
}

/// The same, encrypted.
async fn open_encrypted(dir: PathBuf) -> Arc<dyn Engine> {
    open_with(dir, Some(cipher()), None).await
}

/// Like `open_small`, with state in files.
async fn open_paged(dir: PathBuf) -> Arc<dyn Engine> {
    open_with(dir, None, Some(0)).await
}

/// Like `open_paged`, encrypted.
async fn open_paged_encrypted(dir: PathBuf) -> Arc<dyn Engine> {
    open_with(dir, Some(cipher()), Some(0)).await
}

fn cipher() -> Arc<Cipher> {
    let key = format!("1:{}", "0123456789abcdef".repeat(4));
    Arc::new(Cipher::parse(&key).expect("a key"))
}

async fn open_with(
    dir: PathBuf,
    encryption: Option<Arc<Cipher>>,
    state_resident_bytes: Option<usize>,
) -> Arc<dyn Engine> {
    let options = LocalOptions {
        journal_file_bytes: 12 << 20,
        segment_bytes: 8 << 10,
        tail_bytes_max: 16 << 10,
        checkpoint_journal_bytes: 64 << 10,
        checkpoint_interval: std::time::Duration::from_millis(5),
        encryption,
        state_resident_bytes,
        cleaning_interval: std::time::Duration::from_millis(5),
        ..LocalOptions::default()
    };
    let opened = LocalEngine::open(&dir, options, Arc::new(SystemClock::new())).await;
    opened.expect("the directory opens")
}

async fn open_bounded(dir: PathBuf) -> Arc<dyn Engine> {
    let options = LocalOptions {
        checkpoint_interval: std::time::Duration::from_millis(5),
        bounds: millrace_engine::conformance::bounds::BOUNDS,
        ..LocalOptions::default()
    };
    let opened = LocalEngine::open(&dir, options, Arc::new(SystemClock::new())).await;
    opened.expect("the directory opens")
}

mod bounded {
    millrace_engine::bounds_tests!(super::open_bounded);
}

mod default {
    millrace_engine::conformance_tests!(super::open);
    millrace_engine::reopening_tests!(super::open);
    millrace_engine::adopting_tests!(super::open);
    millrace_engine::adopting_and_reopening_tests!(super::open);
}

mod small {
    millrace_engine::conformance_tests!(super::open_small);
    millrace_engine::reopening_tests!(super::open_small);
    millrace_engine::adopting_tests!(super::open_small);
    millrace_engine::adopting_and_reopening_tests!(super::open_small);
}

mod encrypted {
    millrace_engine::conformance_tests!(super::open_encrypted);
    millrace_engine::reopening_tests!(super::open_encrypted);
    millrace_engine::adopting_tests!(super::open_encrypted);
    millrace_engine::adopting_and_reopening_tests!(super::open_encrypted);
}

mod paged {
    millrace_engine::conformance_tests!(super::open_paged);
    millrace_engine::reopening_tests!(super::open_paged);
    millrace_engine::adopting_tests!(super::open_paged);
    millrace_engine::adopting_and_reopening_tests!(super::open_paged);
}

mod paged_encrypted {
    millrace_engine::conformance_tests!(super::open_paged_encrypted);
    millrace_engine::reopening_tests!(super::open_paged_encrypted);
    millrace_engine::adopting_tests!(super::open_paged_encrypted);
    millrace_engine::adopting_and_reopening_tests!(super::open_paged_encrypted);
}
