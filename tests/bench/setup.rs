//! Engines, hosts of modules and messages for the measurements.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use millrace_broker::{Broker, ModuleHost, NewTopic};
use millrace_engine::Engine;
use millrace_engine::local::{LocalEngine, LocalOptions};
use millrace_model::{
    BatchBuilder, Clock, Durability, Header, Message, RecordBatch, SystemClock, Timestamp,
};
use millrace_wasm::{CompileChild, WasmHost, WasmOptions};

pub(crate) fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock::new())
}

/// Components, compiled by this program as its own child.
pub(crate) fn components(directory: &Path) -> Result<Arc<WasmHost>> {
    let child = CompileChild {
        program: std::env::current_exe()?,
        args: vec![crate::COMPILE.to_owned()],
    };
    Ok(WasmHost::new(
        WasmOptions::new(directory.join("code"), child),
        clock(),
    )?)
}

pub(crate) async fn engine(directory: &Path) -> Result<Arc<dyn Engine>> {
    Ok(LocalEngine::open(&directory.join("data"), LocalOptions::default(), clock()).await?)
}

pub(crate) async fn broker(
    engine: &Arc<dyn Engine>,
    modules: Arc<dyn ModuleHost>,
) -> Result<Broker> {
    Ok(Broker::start(clock(), engine.clone(), modules).await?)
}

pub(crate) async fn topic(
    broker: &Broker,
    name: &str,
    partitions: u32,
    durability: Durability,
) -> Result<()> {
    let topic = NewTopic {
        name: name.parse().context("a topic's name")?,
        partitions,
        durability,
        partitioner: None,
        settings: Default::default(),
    };
    broker.create_topic(topic).await?;
    Ok(())
}

/// A record batch of `count` messages with a key, one header and a value of `bytes`.
pub(crate) fn batch(count: usize, bytes: usize) -> Result<RecordBatch> {
    let mut builder = BatchBuilder::with_capacity(count * (bytes + 64));
    for number in 0..count {
        builder.push(&message(number, bytes));
    }
    builder.finish().context("a batch is not empty")
}

pub(crate) fn message(number: usize, bytes: usize) -> Message {
    Message {
        timestamp: Timestamp(1_700_000_000_000),
        key: Some(format!("key-{number:04}").into()),
        value: Some(
            "abcdefghij".repeat(bytes.div_ceil(10))[..bytes]
                .to_owned()
                .into(),
        ),
        headers: vec![Header {
            name: "trace".into(),
            value: Some("0123456789abcdef".into()),
        }],
    }
}
