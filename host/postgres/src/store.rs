//! What all parts of the engine share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use millrace_engine::CommitError;
use millrace_model::Clock;
use sqlx::postgres::PgPool;

use crate::connect::Connect;
use crate::hosts::Hosts;
use crate::memory::Memory;
use crate::options::PostgresOptions;

pub(crate) struct Store {
    pub(crate) options: PostgresOptions,
    pub(crate) connect: Connect,
    pub(crate) pool: PgPool,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) hosts: Hosts,
    pub(crate) memory: Arc<Memory>,
    pub(crate) is_closed: AtomicBool,
}

impl Store {
    pub(crate) fn check_open(&self) -> Result<(), CommitError> {
        match self.is_closed.load(Ordering::Acquire) {
            true => Err(CommitError::Closed),
            false => Ok(()),
        }
    }

    pub(crate) fn dead_ms(&self) -> i64 {
        self.options.dead_after.as_millis() as i64
    }
}
