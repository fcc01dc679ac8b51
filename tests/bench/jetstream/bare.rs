//! NATS without the engine: a stream with as many copies, and what its clients do with it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use async_nats::jetstream::consumer::push;
use async_nats::jetstream::stream::{Config, StorageType, Stream};
use async_nats::{Client, HeaderMap};
use bytes::Bytes;
use futures_util::StreamExt as _;
use millrace_tests::Nats;
use serde_json::Value;

use super::SERVERS;
use crate::engines::{PER_COMMIT, micros};
use crate::setup;

const NAME: &str = "bare";
/// The server's code for a batch of which a message was lost on the way; it is sent again.
const INCOMPLETE: u64 = 10176;

pub(super) struct Bare {
    client: Client,
    stream: Stream,
    /// The bytes of one commit, and of one message.
    many: Bytes,
    one: Bytes,
}

impl Bare {
    pub(super) async fn create(servers: &Nats, bytes: usize) -> Result<Self> {
        let client = async_nats::connect(servers.urls()).await?;
        let config = Config {
            name: NAME.to_owned(),
            subjects: vec![NAME.to_owned()],
            storage: StorageType::File,
            num_replicas: SERVERS,
            allow_atomic_publish: true,
            ..Config::default()
        };
        let context = async_nats::jetstream::new(client.clone());
        Ok(Self {
            client,
            stream: context.create_stream(config).await?,
            many: setup::batch(PER_COMMIT, bytes)?.bytes().clone(),
            one: setup::batch(1, bytes)?.bytes().clone(),
        })
    }

    pub(super) async fn empty(&self) -> Result<()> {
        self.stream.purge().await?;
        Ok(())
    }

    pub(super) async fn delete(&self) -> Result<()> {
        let context = async_nats::jetstream::new(self.client.clone());
        context.delete_stream(NAME).await?;
        Ok(())
    }

    /// Publishes the bytes of commits for a while, each as a batch of so many parts; messages of
    /// the commits a second.
    pub(super) async fn publish_for(
        &self,
        callers: usize,
        time: Duration,
        parts: usize,
    ) -> Result<f64> {
        let size = self.many.len().div_ceil(parts);
        let part = |from| self.many.slice(from..self.many.len().min(from + size));
        let parts: Vec<Bytes> = (0..self.many.len()).step_by(size).map(part).collect();
        let began = Instant::now();
        let all = (0..callers).map(|_| {
            let (client, parts) = (self.client.clone(), parts.clone());
            tokio::spawn(async move {
                let mut published = 0;
                while began.elapsed() < time {
                    published += usize::from(publish(&client, &parts).await?);
                }
                anyhow::Ok(published)
            })
        });
        let mut published = 0;
        for one in all.collect::<Vec<_>>() {
            published += one.await??;
        }
        ensure!(published > 0, "no batch arrived");
        Ok((published * PER_COMMIT) as f64 / began.elapsed().as_secs_f64())
    }

    /// Microseconds of each publish of one message.
    pub(super) async fn publish_singles(&self, count: usize) -> Result<Vec<f64>> {
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            let began = Instant::now();
            let answer = self.client.request(NAME, self.one.clone()).await?;
            ensure!(is_done(&answer.payload)?, "it is one message");
            times.push(micros(began));
        }
        Ok(times)
    }

    /// Reads all that was published in so many parts; messages of the commits a second.
    pub(super) async fn read_all(&self, parts: usize) -> Result<f64> {
        let began = Instant::now();
        let consumer = self.stream.create_consumer(push::OrderedConfig {
            deliver_subject: self.client.new_inbox(),
            ..push::OrderedConfig::default()
        });
        let consumer = consumer.await?;
        let all = consumer.cached_info().num_pending as usize;
        let mut messages = consumer.messages().await?;
        for _ in 0..all {
            messages.next().await.context("a message")??;
        }
        Ok((all / parts * PER_COMMIT) as f64 / began.elapsed().as_secs_f64())
    }
}

/// Publishes the parts as one atomic batch. `false` if one was lost on the way, and so nothing was
/// written.
async fn publish(client: &Client, parts: &[Bytes]) -> Result<bool> {
    let id = format!("{:016x}", fastrand::u64(..));
    let (last, others) = parts.split_last().context("parts")?;
    let headers = |index: usize| {
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Batch-Id", &*id);
        headers.insert("Nats-Batch-Sequence", (index + 1).to_string());
        headers
    };
    for (index, part) in others.iter().enumerate() {
        client
            .publish_with_headers(NAME, headers(index), part.clone())
            .await?;
    }
    let mut headers = headers(others.len());
    headers.insert("Nats-Batch-Commit", "1");
    let answer = client
        .request_with_headers(NAME, headers, last.clone())
        .await?;
    is_done(&answer.payload)
}

fn is_done(answer: &Bytes) -> Result<bool> {
    let answer: Value = serde_json::from_slice(answer)?;
    match answer.get("error") {
        None => Ok(true),
        Some(error) if error["err_code"] == INCOMPLETE => Ok(false),
        Some(error) => bail!("the server refused: {error}"),
    }
}
