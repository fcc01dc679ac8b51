//! The interfaces between host and guest, one file for each, as in `wit/`.
//!
//! Columns are passed by reference: the only copy of a batch's bytes is the one into the guest's memory.

pub(crate) mod config;
pub(crate) mod error_handler;
pub(crate) mod http;
pub(crate) mod http_handler;
pub(crate) mod log;
pub(crate) mod messaging;
pub(crate) mod metrics;
pub(crate) mod partitioner;
pub(crate) mod processor;
pub(crate) mod producer;
pub(crate) mod secrets;
pub(crate) mod state;
pub(crate) mod views;
pub(crate) mod wasi;

use millrace_model::ColumnBatch;
use wasmtime::component::{ComponentType, Linker, Lower};

use crate::pool::GuestState;

/// Everything that a guest may import, except [`http`].
pub(crate) fn link(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    log::link(linker)?;
    state::link(linker)?;
    config::link(linker)?;
    secrets::link(linker)?;
    metrics::link(linker)?;
    producer::link(linker)?;
    views::link(linker)?;
    messaging::link(linker)?;
    wasi::link(linker)
}

/// `types.batch`.
#[derive(ComponentType, Lower)]
#[component(record)]
pub(crate) struct BatchColumns<'a> {
    topic: &'a str,
    partition: u32,
    data: &'a [u8],
    offsets: &'a [u64],
    timestamps: &'a [u64],
    attempts: &'a [u32],
    keys: &'a [u32],
    values: &'a [u32],
    #[component(name = "header-ends")]
    header_ends: &'a [u32],
    headers: &'a [u32],
}

impl<'a> BatchColumns<'a> {
    pub(crate) fn of(batch: &'a ColumnBatch) -> Self {
        Self {
            topic: &batch.topic,
            partition: batch.partition,
            data: &batch.data,
            offsets: &batch.offsets,
            timestamps: &batch.timestamps,
            attempts: &batch.attempts,
            keys: &batch.keys,
            values: &batch.values,
            header_ends: &batch.header_ends,
            headers: &batch.headers,
        }
    }
}
