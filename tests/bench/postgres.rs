//! The engine on PostgreSQL, beside what people use on the same server instead: a table as a queue,
//! from which messages are taken with `skip locked`, and a plain `insert`. The server is started
//! for this, with its defaults and `fsync`; both sides use the same client library.

mod queue;

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use millrace_engine::{Engine, Hold, Transaction};
use millrace_model::{Durability, Offset, ProcessorName, RecordBatch, TopicPartition};
use millrace_postgres::{PostgresEngine, PostgresOptions};
use millrace_tests::Postgres;
use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Executor as _};

use self::queue::Queue;
use crate::engines::{
    CALLERS, PARTITIONS, PER_COMMIT, READ_BYTES, ROUND, ROUNDS, SINGLE_ROUNDS, SINGLES, Side,
    append, counter, disk, micros, progress_to, times,
};
use crate::setup;
use crate::table::{Table, median, percentile};

/// Messages that go in and out, by their size.
const SIZES: [(usize, u64); 2] = [(100, 400_000), (1_024, 100_000)];
const PRODUCERS: usize = 8;

pub(crate) async fn measure(table: &mut Table) -> Result<()> {
    let server = Postgres::start()?;
    ensure!(server.sql("show fsync")? == "on", "the server must sync");
    let engine = open(&server, "bench").await?;
    let mut plain = PgConnection::connect(&server.url()).await?;
    machine(table, &mut plain).await?;
    for (bytes, messages) in SIZES {
        let bench = Bench {
            queue: Queue::create(&server, bytes).await?,
            ours: Side::create(&engine, bytes).await?,
        };
        for callers in CALLERS {
            bench.appends(table, callers).await?;
        }
        bench.in_and_out(table, messages).await?;
        bench.reads(table).await?;
        bench.singles(table, &mut plain).await?;
        bench.queue.drop_it().await?;
        bench.ours.delete().await?;
    }
    engine.close().await;
    let mut hosts = Vec::new();
    for _ in 0..counter::HOSTS {
        hosts.push(open(&server, "counter").await?);
    }
    counter::measure(table, "postgres", hosts).await
}

/// A host on this server.
async fn open(server: &Postgres, schema: &str) -> Result<Arc<dyn Engine>> {
    let options = PostgresOptions {
        url: server.url(),
        schema: schema.to_owned(),
        ..PostgresOptions::default()
    };
    // Boxed: it would make every future that opens a host large.
    Ok(Box::pin(PostgresEngine::open(options, setup::clock())).await?)
}

/// What the disk and a trip to the server cost.
async fn machine(table: &mut Table, plain: &mut PgConnection) -> Result<()> {
    let mut trips = Vec::new();
    for _ in 0..2 * SINGLES {
        let began = Instant::now();
        plain.execute(sqlx::query("select 1")).await?;
        trips.push(micros(began));
    }
    table.row(
        "postgres: machine: write + fdatasync of 8 KiB",
        times(&disk()?),
        "a statement that does nothing",
        times(&trips),
        String::new(),
    );
    Ok(())
}

struct Bench {
    ours: Side,
    queue: Queue,
}

impl Bench {
    async fn appends(&self, table: &mut Table, callers: usize) -> Result<()> {
        let (mut ours, mut queues) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            ours.push(self.ours.append_for(callers).await?);
            queues.push(self.queue.insert_for(callers, ROUND).await?);
            self.queue.empty().await?;
        }
        let (ours, queue) = (median(ours), median(queues));
        table.row(
            &format!(
                "postgres: appends of {PER_COMMIT} × {} B, durable, {callers} at once",
                self.ours.bytes
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
        let Side { engine, bytes, .. } = &self.ours;
        let batch = setup::batch(PER_COMMIT, *bytes)?;
        let (mut ours, mut queues) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let commits = messages as usize / PER_COMMIT / PRODUCERS;
            let group = format!("reader-{round}");
            let mut readers = Vec::new();
            for number in 0..PARTITIONS as usize {
                let at = self.ours.partition(number);
                let hold = engine
                    .hold(&group.parse::<ProcessorName>()?.group(), at)
                    .await?;
                readers.push((at, hold.context("nobody else has it")?));
            }
            let began = Instant::now();
            let mut all = Vec::new();
            for (at, hold) in readers {
                let end = engine.ends(at)?.end;
                let own = commits * (PRODUCERS / PARTITIONS as usize);
                let last = end.plus((own * PER_COMMIT) as u64);
                let engine = Arc::clone(engine);
                all.push(tokio::spawn(follow(engine, at, hold, end, last)));
            }
            for number in 0..PRODUCERS {
                let (engine, at) = (Arc::clone(engine), self.ours.partition(number));
                all.push(tokio::spawn(append_all(engine, at, batch.clone(), commits)));
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
                "postgres: in and out with progress, {bytes} B, {PRODUCERS} producers, {PARTITIONS} readers"
            ),
            format!("{ours:.0} messages/s"),
            "insert and delete … skip locked",
            format!("{queue:.0} messages/s"),
            format!("{:.1} × (≥ 2 ×)", ours / queue),
        );
        Ok(())
    }

    async fn reads(&self, table: &mut Table) -> Result<()> {
        self.queue.insert_for(1, ROUND / 3).await?;
        let (mut ours, mut queues, mut short) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            ours.push(self.ours.read_from_start().await?);
            queues.push(self.queue.read_all().await?);
            short.extend(self.ours.read_at_end().await?);
        }
        self.queue.empty().await?;
        table.row(
            &format!(
                "postgres: reading from the start, {} B, one reader",
                self.ours.bytes
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
        let (mut ours, mut bare) = (Vec::new(), Vec::new());
        for round in 0..=SINGLE_ROUNDS {
            ours.extend(self.ours.append_singles().await?);
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
            &format!(
                "postgres: append of one message, {} B, durable",
                self.ours.bytes
            ),
            times(&ours),
            "one insert, committed",
            times(&bare),
            format!("{ratio:.2} × at p50 (≤ 1.6 ×)"),
        );
        Ok(())
    }
}

async fn append_all(
    engine: Arc<dyn Engine>,
    partition: TopicPartition,
    batch: RecordBatch,
    commits: usize,
) -> Result<()> {
    for _ in 0..commits {
        append(&engine, partition, &batch).await?;
    }
    Ok(())
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
