//! The engine on PostgreSQL, beside what people use on the same server instead: a table as a queue,
//! from which messages are taken with `skip locked`, and a plain `insert`. The server is started
//! for this, with its defaults and `fsync`; both sides use the same client library.

mod counter;
mod queue;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use millrace_engine::{Append, Engine, Hold, ProgressWrite, Transaction};
use millrace_model::{
    Durability, Offset, PartitionId, ProcessorName, Progress, ProgressChange, RecordBatch, Topic,
    TopicPartition,
};
use millrace_postgres::{PostgresEngine, PostgresOptions};
use millrace_tests::Postgres;
use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Executor as _};

use self::queue::Queue;
use crate::machine::synced_writes;
use crate::setup;
use crate::table::{Table, median, percentile};

const ROUNDS: usize = 3;
const ROUND: Duration = Duration::from_millis(1_500);
/// Messages of a commit.
const PER_COMMIT: usize = 1_000;
const PARTITIONS: u32 = 4;
const CALLERS: [usize; 3] = [1, 8, 32];
/// Messages that go in and out, by their size.
const SIZES: [(usize, u64); 2] = [(100, 400_000), (1_024, 100_000)];
const PRODUCERS: usize = 8;
/// Single messages of a round, and how many rounds of them there are.
const SINGLES: usize = 300;
const SINGLE_ROUNDS: usize = 5;
const READ_BYTES: usize = 1 << 20;
const SYNCS: usize = 400;
/// Bytes that the server writes for a small commit.
const SYNC_BYTES: usize = 8_192;

pub(crate) async fn measure(table: &mut Table) -> Result<()> {
    let server = Postgres::start()?;
    ensure!(server.sql("show fsync")? == "on", "the server must sync");
    let engine = open(&server, "bench").await?;
    let mut plain = PgConnection::connect(&server.url()).await?;
    machine(table, &mut plain).await?;
    for (bytes, messages) in SIZES {
        let bench = Bench {
            topic: topic(&engine, &format!("messages-{bytes}"), PARTITIONS).await?,
            queue: Queue::create(&server, bytes).await?,
            engine: Arc::clone(&engine),
            bytes,
        };
        for callers in CALLERS {
            bench.appends(table, callers).await?;
        }
        bench.in_and_out(table, messages).await?;
        bench.reads(table).await?;
        bench.singles(table, &mut plain).await?;
        bench.queue.drop_it().await?;
        engine.delete_topic(&bench.topic.spec.name, vec![]).await?;
    }
    engine.close().await;
    counter::measure(table, &server).await
}

/// A host on this server.
async fn open(server: &Postgres, schema: &str) -> Result<Arc<dyn Engine>> {
    let options = PostgresOptions {
        url: server.url(),
        schema: schema.to_owned(),
        ..PostgresOptions::default()
    };
    Ok(PostgresEngine::open(options, setup::clock()).await?)
}

async fn topic(engine: &Arc<dyn Engine>, name: &str, partitions: u32) -> Result<Topic> {
    let durability = Durability::Durable;
    let spec = serde_json::json!({
        "name": name, "partitions": partitions, "durability": durability, "created_at": 0,
    });
    let spec = serde_json::from_value(spec).context("a topic")?;
    Ok(engine.create_topic(spec, Vec::new()).await?)
}

/// What the disk and a trip to the server cost.
async fn machine(table: &mut Table, plain: &mut PgConnection) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let syncs = synced_writes(&directory.path().join("synced"), SYNC_BYTES, SYNCS)?;
    let mut trips = Vec::new();
    for _ in 0..2 * SINGLES {
        let began = Instant::now();
        plain.execute(sqlx::query("select 1")).await?;
        trips.push(micros(began));
    }
    table.row(
        "postgres: machine: write + fdatasync of 8 KiB",
        times(&syncs),
        "a statement that does nothing",
        times(&trips),
        String::new(),
    );
    Ok(())
}

struct Bench {
    engine: Arc<dyn Engine>,
    topic: Topic,
    queue: Queue,
    bytes: usize,
}

impl Bench {
    fn partition(&self, number: usize) -> TopicPartition {
        TopicPartition {
            topic: self.topic.id,
            partition: PartitionId(number as u32 % PARTITIONS),
        }
    }

    async fn appends(&self, table: &mut Table, callers: usize) -> Result<()> {
        let batch = setup::batch(PER_COMMIT, self.bytes)?;
        let (mut ours, mut queues) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let began = Instant::now();
            let until = began + ROUND;
            let all = (0..callers).map(|number| {
                let (engine, at) = (Arc::clone(&self.engine), self.partition(number));
                tokio::spawn(append_until(engine, at, batch.clone(), until))
            });
            let mut commits = 0;
            for appended in all.collect::<Vec<_>>() {
                commits += appended.await??;
            }
            ours.push((commits * PER_COMMIT) as f64 / began.elapsed().as_secs_f64());
            queues.push(self.queue.insert_for(callers, ROUND).await?);
            self.queue.empty().await?;
        }
        let (ours, queue) = (median(ours), median(queues));
        table.row(
            &format!(
                "postgres: appends of {PER_COMMIT} × {} B, durable, {callers} at once",
                self.bytes
            ),
            format!("{ours:.0} messages/s"),
            "inserts into a queue's table",
            format!("{queue:.0} messages/s"),
            format!("{:.1} × (≥ 2 ×, ≥ 300,000/s of 100 B)", ours / queue),
        );
        Ok(())
    }

    /// As many messages go in and come out, each once: progress is committed after each read, as a
    /// queue deletes what it gave.
    async fn in_and_out(&self, table: &mut Table, messages: u64) -> Result<()> {
        let batch = setup::batch(PER_COMMIT, self.bytes)?;
        let (mut ours, mut queues) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let commits = messages as usize / PER_COMMIT / PRODUCERS;
            let group = format!("reader-{round}");
            let mut readers = Vec::new();
            for number in 0..PARTITIONS as usize {
                let at = self.partition(number);
                let hold = self
                    .engine
                    .hold(&group.parse::<ProcessorName>()?.group(), at)
                    .await?;
                readers.push((at, hold.context("nobody else has it")?));
            }
            let began = Instant::now();
            let mut all = Vec::new();
            for (at, hold) in readers {
                let end = self.engine.ends(at)?.end;
                let own = commits * (PRODUCERS / PARTITIONS as usize);
                let last = end.plus((own * PER_COMMIT) as u64);
                let engine = Arc::clone(&self.engine);
                all.push(tokio::spawn(follow(engine, at, hold, end, last)));
            }
            for number in 0..PRODUCERS {
                let (engine, at) = (Arc::clone(&self.engine), self.partition(number));
                all.push(tokio::spawn(append(engine, at, batch.clone(), commits)));
            }
            for one in all {
                one.await??;
            }
            let passed = (commits * PRODUCERS * PER_COMMIT) as f64;
            ours.push(passed / began.elapsed().as_secs_f64());
            let through = self
                .queue
                .in_and_out(PRODUCERS, PARTITIONS as usize, commits);
            queues.push(passed / through.await?.as_secs_f64());
        }
        let (ours, queue) = (median(ours), median(queues));
        table.row(
            &format!(
                "postgres: in and out with progress, {} B, {PRODUCERS} producers, {PARTITIONS} readers",
                self.bytes
            ),
            format!("{ours:.0} messages/s"),
            "insert and delete … skip locked",
            format!("{queue:.0} messages/s"),
            format!("{:.1} × (≥ 2 ×)", ours / queue),
        );
        Ok(())
    }

    async fn reads(&self, table: &mut Table) -> Result<()> {
        let at = self.partition(0);
        self.queue.insert_for(1, ROUND / 3).await?;
        let (mut ours, mut queues, mut short) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let (began, end) = (Instant::now(), self.engine.ends(at)?.end);
            let (mut next, mut count) = (Offset(0), 0);
            while next < end && began.elapsed() < ROUND {
                let batches = self.engine.read(at, next, READ_BYTES).await?;
                count += batches.iter().map(|b| b.message_count()).sum::<usize>();
                next = batches.last().context("messages")?.end_offset();
            }
            ours.push(count as f64 / began.elapsed().as_secs_f64());
            queues.push(self.queue.read_all().await?);
            for _ in 0..SINGLES {
                let began = Instant::now();
                ensure!(self.engine.read(at, end, READ_BYTES).await?.is_empty());
                short.push(micros(began));
            }
        }
        self.queue.empty().await?;
        table.row(
            &format!(
                "postgres: reading from the start, {} B, one reader",
                self.bytes
            ),
            format!("{:.0} messages/s", median(ours)),
            "selecting from a queue's table in order",
            format!("{:.0} messages/s", median(queues)),
            format!("a read at the end: {}", times(&short)),
        );
        Ok(())
    }

    /// One message at a time, in turns with a plain `insert` by a connection of its own.
    async fn singles(&self, table: &mut Table, plain: &mut PgConnection) -> Result<()> {
        let batch = setup::batch(1, self.bytes)?;
        let at = self.partition(0);
        let (mut ours, mut bare) = (Vec::new(), Vec::new());
        for round in 0..=SINGLE_ROUNDS {
            for _ in 0..SINGLES {
                let began = Instant::now();
                append(Arc::clone(&self.engine), at, batch.clone(), 1).await?;
                ours.push(micros(began));
            }
            for _ in 0..SINGLES {
                let began = Instant::now();
                self.queue.insert_one(plain).await?;
                bare.push(micros(began));
            }
            if round == 0 {
                // The first time, statements are prepared and caches are empty.
                (ours, bare) = (Vec::new(), Vec::new());
            }
        }
        let ratio = percentile(ours.clone(), 0.5) / percentile(bare.clone(), 0.5);
        table.row(
            &format!("postgres: append of one message, {} B, durable", self.bytes),
            times(&ours),
            "one insert, committed",
            times(&bare),
            format!("{ratio:.2} × at p50 (≤ 1.6 ×)"),
        );
        Ok(())
    }
}

async fn append(
    engine: Arc<dyn Engine>,
    partition: TopicPartition,
    batch: RecordBatch,
    commits: usize,
) -> Result<()> {
    for _ in 0..commits {
        let batch = batch.clone();
        let append = Append { partition, batch };
        engine.commit(Transaction::produce(vec![append])).await?;
    }
    Ok(())
}

async fn append_until(
    engine: Arc<dyn Engine>,
    partition: TopicPartition,
    batch: RecordBatch,
    until: Instant,
) -> Result<usize> {
    let mut commits = 0;
    while Instant::now() < until {
        append(Arc::clone(&engine), partition, batch.clone(), 1).await?;
        commits += 1;
    }
    Ok(commits)
}

/// Reads what is appended and commits progress, until the last message.
async fn follow(
    engine: Arc<dyn Engine>,
    partition: TopicPartition,
    hold: Hold,
    from: Offset,
    last: Offset,
) -> Result<()> {
    let mut watch = engine.watch(partition)?;
    let mut next = from;
    while next < last {
        watch.past(next).await.context("the partition is there")?;
        let batches = engine.read(partition, next, READ_BYTES).await?;
        next = batches.last().context("messages")?.end_offset();
        engine
            .commit(Transaction {
                progress: vec![progress_to(&hold, next)],
                durability: Some(Durability::Durable),
                ..Transaction::default()
            })
            .await?;
    }
    Ok(())
}

fn progress_to(hold: &Hold, next: Offset) -> ProgressWrite {
    let progress = Progress {
        next,
        ..Progress::default()
    };
    ProgressWrite {
        lease: hold.lease.clone(),
        partition: hold.lease.partition,
        progress: ProgressChange::from(progress),
    }
}

fn micros(began: Instant) -> f64 {
    began.elapsed().as_nanos() as f64 / 1_000.0
}

fn times(micros: &[f64]) -> String {
    let [p50, p99] = [0.5, 0.99].map(|share| percentile(micros.to_vec(), share));
    format!("p50 {p50:.0} µs, p99 {p99:.0} µs")
}
