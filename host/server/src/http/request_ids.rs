//! Ids of requests, which connect an answer with the log lines about it.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use axum::http::HeaderValue;

/// Creates one id after the other.
pub(super) struct RequestIds {
    /// Distinguishes ids of different runs.
    run: u32,
    made: AtomicU64,
}

impl RequestIds {
    pub(super) fn new() -> Self {
        Self {
            run: fastrand::u32(..),
            made: AtomicU64::new(0),
        }
    }

    pub(super) fn next(&self) -> HeaderValue {
        let number = self.made.fetch_add(1, Relaxed);
        let id = format!("{:08x}-{number}", self.run);
        HeaderValue::from_str(&id).unwrap_or_else(|_| HeaderValue::from_static("none"))
    }
}
