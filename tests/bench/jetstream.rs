//! The engine on JetStream, beside NATS itself on the same three servers: the same bytes as atomic
//! batches in a stream of its own, and a bare publish. The servers are started for this, and sync
//! before they answer; both sides use the same client library.

mod bare;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use millrace_engine::{Append, Engine, Hold, Transaction};
use millrace_jetstream::{JetstreamEngine, JetstreamOptions};
use millrace_model::{Durability, ProcessorName, TopicPartition};
use millrace_tests::Nats;

use self::bare::Bare;
use crate::engines::{
    CALLERS, PER_COMMIT, READ_BYTES, ROUND, ROUNDS, SINGLE_ROUNDS, SINGLES, Side, append, counter,
    disk, micros, progress_to, times, topic,
};
use crate::setup;
use crate::table::{Table, median, percentile};

const SERVERS: usize = 3;
const SIZES: [usize; 2] = [100, 1_024];
/// Messages of NATS in which the bytes of one commit are published.
const PARTS: usize = 3;
/// Servers that have just started need a moment until they have a leader.
const OPEN_TRIES_MAX: u32 = 50;
const OPEN_INTERVAL: Duration = Duration::from_millis(200);

pub(crate) async fn measure(table: &mut Table) -> Result<()> {
    let servers = Nats::start(SERVERS)?;
    let engine = open(&servers, "bench").await?;
    for bytes in SIZES {
        let bench = Bench {
            bare: Bare::create(&servers, bytes).await?,
            ours: Side::create(&engine, bytes).await?,
        };
        if bytes == SIZES[0] {
            bench.machine(table).await?;
        }
        for callers in CALLERS {
            bench.appends(table, callers).await?;
        }
        bench.reads(table).await?;
        bench.singles(table).await?;
        bench.passes_on(table).await?;
        bench.bare.delete().await?;
        bench.ours.delete().await?;
    }
    engine.close().await;
    let mut hosts = Vec::new();
    for _ in 0..counter::HOSTS {
        hosts.push(open(&servers, "counter").await?);
    }
    counter::measure(table, "jetstream", hosts).await
}

/// A host on these servers.
async fn open(servers: &Nats, stream: &str) -> Result<Arc<dyn Engine>> {
    let mut tries = 0;
    loop {
        let options = JetstreamOptions {
            servers: servers.urls(),
            stream: stream.to_owned(),
            replicas: Some(SERVERS),
            synced: true,
            ..JetstreamOptions::default()
        };
        match JetstreamEngine::open(options, setup::clock()).await {
            Ok(engine) => return Ok(engine),
            Err(error) if tries >= OPEN_TRIES_MAX => return Err(error.into()),
            Err(_) => tries += 1,
        }
        tokio::time::sleep(OPEN_INTERVAL).await;
    }
}

struct Bench {
    ours: Side,
    bare: Bare,
}

impl Bench {
    /// What the disk and a publish cost.
    async fn machine(&self, table: &mut Table) -> Result<()> {
        table.row(
            "jetstream: machine: write + fdatasync of 8 KiB",
            times(&disk()?),
            &format!("a publish of one message, {SERVERS} copies"),
            times(&self.bare.publish_singles(2 * SINGLES).await?),
            String::new(),
        );
        Ok(())
    }

    async fn appends(&self, table: &mut Table, callers: usize) -> Result<()> {
        let (mut ours, mut bare, mut single) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            ours.push(self.ours.append_for(callers).await?);
            bare.push(self.bare.publish_for(callers, ROUND, PARTS).await?);
            single.push(self.bare.publish_for(callers, ROUND, PER_COMMIT).await?);
            self.bare.empty().await?;
        }
        let (ours, bare, single) = (median(ours), median(bare), median(single));
        table.row(
            &format!(
                "jetstream: appends of {PER_COMMIT} × {} B, durable, {callers} at once",
                self.ours.bytes
            ),
            format!("{ours:.0} messages/s"),
            &format!("atomic batches of the same bytes, {PARTS} messages of NATS each"),
            format!("{bare:.0} messages/s; {PER_COMMIT} each: {single:.0}/s"),
            format!("{:.2} × (≥ 0.8 ×, ≥ 500,000/s of 100 B)", ours / bare),
        );
        Ok(())
    }

    async fn reads(&self, table: &mut Table) -> Result<()> {
        self.bare.publish_for(1, ROUND / 3, PARTS).await?;
        let (mut ours, mut bare, mut short) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            ours.push(self.ours.read_from_start().await?);
            bare.push(self.bare.read_all(PARTS).await?);
            short.extend(self.ours.read_at_end().await?);
        }
        self.bare.empty().await?;
        let (ours, bare) = (median(ours), median(bare));
        table.row(
            &format!(
                "jetstream: reading from the start, {} B, one reader",
                self.ours.bytes
            ),
            format!("{ours:.0} messages/s"),
            "an ordered consumer of the same bytes",
            format!("{bare:.0} messages/s"),
            format!("{:.2} ×; a read at the end: {}", ours / bare, times(&short)),
        );
        Ok(())
    }

    /// One message at a time.
    async fn singles(&self, table: &mut Table) -> Result<()> {
        let (mut ours, mut bare) = (Vec::new(), Vec::new());
        for round in 0..=SINGLE_ROUNDS {
            ours.extend(self.ours.append_singles().await?);
            bare.extend(self.bare.publish_singles(SINGLES).await?);
            if round == 0 {
                // The first time, caches are empty.
                (ours, bare) = (Vec::new(), Vec::new());
            }
        }
        let name = format!(
            "jetstream: append of one message, {} B, durable",
            self.ours.bytes
        );
        beside_publish(table, &name, &ours, &bare, String::new());
        Ok(())
    }

    /// One message at a time, from its append until a reader has what a worker made of it.
    async fn passes_on(&self, table: &mut Table) -> Result<()> {
        let Side { engine, bytes, .. } = &self.ours;
        let name = format!("passed-on-{bytes}");
        let output = topic(engine, &name, 1).await?;
        let (from, to) = (self.ours.partition(1), partition_of(&output));
        let group = name.parse::<ProcessorName>()?.group();
        let hold = engine.hold(&group, from).await?;
        let worker = tokio::spawn(pass_on(
            Arc::clone(engine),
            hold.context("nobody else has it")?,
            to,
        ));
        let batch = setup::batch(1, *bytes)?;
        let mut watch = engine.watch(to)?;
        let (mut ours, mut bare) = (Vec::new(), Vec::new());
        for round in 0..=SINGLE_ROUNDS {
            for _ in 0..SINGLES {
                let next = watch.end();
                let began = Instant::now();
                append(engine, from, &batch).await?;
                watch.past(next).await.context("the output is there")?;
                let read = engine.read(to, next, READ_BYTES).await?;
                read.first().context("the message")?;
                ours.push(micros(began));
            }
            bare.extend(self.bare.publish_singles(SINGLES).await?);
            if round == 0 {
                (ours, bare) = (Vec::new(), Vec::new());
            }
        }
        worker.abort();
        let name = format!("jetstream: a message in, through a worker and read, {bytes} B");
        beside_publish(table, &name, &ours, &bare, " (≤ 3 ×)".to_owned());
        engine.delete_topic(&output.spec.name, vec![]).await?;
        Ok(())
    }
}

fn beside_publish(table: &mut Table, name: &str, ours: &[f64], bare: &[f64], bar: String) {
    let ratio = percentile(ours.to_vec(), 0.5) / percentile(bare.to_vec(), 0.5);
    table.row(
        name,
        times(ours),
        &format!("a publish of one message, {SERVERS} copies"),
        times(bare),
        format!("{ratio:.2} × at p50{bar}"),
    );
}

fn partition_of(topic: &millrace_model::Topic) -> TopicPartition {
    TopicPartition {
        topic: topic.id,
        partition: millrace_model::PartitionId(0),
    }
}

/// What a worker does: reads what is new, and commits its output and its progress in one step.
async fn pass_on(engine: Arc<dyn Engine>, hold: Hold, to: TopicPartition) -> Result<()> {
    let from = hold.lease.partition;
    let mut next = engine.ends(from)?.end;
    let mut watch = engine.watch(from)?;
    loop {
        watch.past(next).await.context("the input is there")?;
        for batch in engine.read(from, next, READ_BYTES).await? {
            next = batch.end_offset();
            let output = Append {
                partition: to,
                batch,
            };
            engine
                .commit(Transaction {
                    appends: vec![output],
                    progress: vec![progress_to(&hold, next)],
                    durability: Some(Durability::Durable),
                    ..Transaction::default()
                })
                .await?;
        }
    }
}
