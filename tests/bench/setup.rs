//! Engines, module hosts and messages for the measurements.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use guest_artifacts as guests;
use millrace::{Config, Host};
use millrace_broker::{Broker, ModuleHost, NewTopic, Session};
use millrace_engine::Engine;
use millrace_local::{LocalEngine, LocalOptions};
use millrace_model::{
    BatchBuilder, Clock, Durability, Header, Message, PartitionId, RecordBatch, SystemClock,
    Timestamp,
};
use millrace_tests::{Client, Deploy};
use millrace_wasm::{CompileChild, WasmHost, WasmOptions};
use serde_json::{Value, json};

pub(crate) fn clock() -> Arc<dyn Clock> {
    Arc::new(SystemClock::new())
}

/// A module host whose components are compiled by this program as its own child process.
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
    session: &Session,
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
    session.catalogue().create_topic(topic).await?;
    Ok(())
}

/// The number of messages in the topic.
pub(crate) fn count(session: &Session, topic: &str) -> Result<u64> {
    let topic = session
        .catalogue()
        .topic(&topic.parse()?)
        .context("a topic")?;
    let partitions = 0..topic.spec.partitions;
    let ends = partitions.filter_map(|at| session.catalogue().ends(&topic, PartitionId(at)));
    Ok(ends.map(|ends| ends.end.0 - ends.start.0).sum())
}

/// A host in this process that listens on a free port.
pub(crate) async fn host(directory: &Path) -> Result<Host> {
    let mut config = Config {
        data_dir: directory.join("data"),
        ..Config::default()
    };
    config.listen.http.address = "127.0.0.1:0".to_owned();
    Ok(Host::start(config).await?)
}

/// Creates the topics `in` and `out` with these settings, and the upper-case processor between
/// them, over HTTP.
pub(crate) fn uppercase_between(client: &Client, topic: &Value) -> Result<()> {
    for name in ["in", "out"] {
        let mut topic = topic.clone();
        topic["name"] = name.into();
        client.post_json("/v1/topics", &topic)?.ok()?;
    }
    let module = client.push(guests::UPPERCASE)?;
    let deployed = client.deploy(&Deploy {
        name: "worker",
        module: &module,
        topic: "in",
        output: "out",
        more: json!({}),
    });
    deployed.map(drop)
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
