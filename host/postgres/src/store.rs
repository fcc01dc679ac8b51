//! What all parts of the engine share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use millrace_engine::CommitError;
use millrace_model::Clock;
use sqlx::postgres::PgPool;

use crate::chains::Holds;
use crate::commit::short::KnownChains;
use crate::connect::Connect;
use crate::following::News;
use crate::hosts::Hosts;
use crate::mirror::Mirror;
use crate::options::PostgresOptions;
use crate::tables::Tables;
use crate::tail::Tail;

pub(crate) struct Store {
    pub(crate) options: PostgresOptions,
    pub(crate) connect: Connect,
    pub(crate) pool: PgPool,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) hosts: Hosts,
    pub(crate) mirror: Mirror,
    pub(crate) tables: Tables,
    pub(crate) holds: Holds,
    pub(crate) known: KnownChains,
    pub(crate) tail: Tail,
    pub(crate) news: News,
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
