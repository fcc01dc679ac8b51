//! A queue as it is commonly built on PostgreSQL: a row for each message, taken by deleting what
//! nobody else is taking.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use millrace_tests::Postgres;
use sqlx::postgres::{PgConnection, PgPool, PgPoolOptions};
use sqlx::{Executor as _, Row as _};

use crate::engines::PER_COMMIT;
use crate::setup;

const CONNECTIONS: u32 = 32;
/// Rows of one read.
const READ_ROWS: i64 = 5_000;
const MAKE: &str = "create table if not exists queue (id bigserial primary key, topic text not null, key bytea, payload bytea not null, \
    created_at timestamptz not null default now())";
const INSERT: &str =
    "insert into queue (topic, key, payload) select 'topic', 'key', unnest($1::bytea[])";
const TAKE: &str = "delete from queue where id = any(array( \
    select id from queue where topic = 'topic' order by id limit $1 for update skip locked)) returning id, payload";

pub(super) struct Queue {
    pool: PgPool,
    payload: Vec<u8>,
}

impl Queue {
    pub(super) async fn create(server: &Postgres, bytes: usize) -> Result<Self> {
        let pool = PgPoolOptions::new().max_connections(CONNECTIONS);
        // A trip to try the connection before each statement would not be fair.
        let pool = pool.test_before_acquire(false);
        let pool = pool.connect(&server.url()).await?;
        pool.execute(MAKE).await?;
        let payload = setup::message(0, bytes).value.unwrap_or_default().to_vec();
        Ok(Self { pool, payload })
    }

    pub(super) async fn empty(&self) -> Result<()> {
        self.pool.execute("truncate queue").await?;
        Ok(())
    }

    pub(super) async fn drop_it(&self) -> Result<()> {
        self.pool.execute("drop table queue").await?;
        self.pool.close().await;
        Ok(())
    }

    /// Inserts for a while; messages a second.
    pub(super) async fn insert_for(&self, callers: usize, time: Duration) -> Result<f64> {
        let began = Instant::now();
        let all = (0..callers).map(|_| {
            let (pool, payload) = (self.pool.clone(), self.payload.clone());
            tokio::spawn(async move {
                let mut inserted = 0;
                while began.elapsed() < time {
                    insert(&pool, &payload).await?;
                    inserted += PER_COMMIT;
                }
                anyhow::Ok(inserted)
            })
        });
        let mut inserted = 0;
        for one in all.collect::<Vec<_>>() {
            inserted += one.await??;
        }
        Ok(inserted as f64 / began.elapsed().as_secs_f64())
    }

    pub(super) async fn insert_one(&self, connection: &mut PgConnection) -> Result<()> {
        let insert = "insert into queue (topic, key, payload) values ('topic', 'key', $1)";
        connection
            .execute(sqlx::query(insert).bind(&self.payload))
            .await?;
        Ok(())
    }

    /// The time in which as many go in and come out.
    pub(super) async fn in_and_out(
        &self,
        producers: usize,
        takers: usize,
        commits: usize,
    ) -> Result<Duration> {
        let began = Instant::now();
        let mut all = Vec::new();
        for _ in 0..producers {
            let (pool, payload) = (self.pool.clone(), self.payload.clone());
            all.push(tokio::spawn(async move {
                for _ in 0..commits {
                    insert(&pool, &payload).await?;
                }
                anyhow::Ok(())
            }));
        }
        let left = Arc::new(AtomicI64::new((producers * commits * PER_COMMIT) as i64));
        for _ in 0..takers {
            let (pool, left) = (self.pool.clone(), Arc::clone(&left));
            all.push(tokio::spawn(async move {
                while left.load(Ordering::Relaxed) > 0 {
                    let take = sqlx::query(TAKE).bind(PER_COMMIT as i64);
                    let taken = pool.fetch_all(take).await?.len();
                    left.fetch_sub(taken as i64, Ordering::Relaxed);
                    if taken == 0 {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                }
                anyhow::Ok(())
            }));
        }
        for one in all {
            one.await??;
        }
        let took = began.elapsed();
        let left = left.load(Ordering::Relaxed);
        ensure!(left == 0, "{left} messages too many or too few");
        Ok(took)
    }

    /// Reads all in order; messages a second.
    pub(super) async fn read_all(&self) -> Result<f64> {
        let began = Instant::now();
        let (mut last, mut count) = (0_i64, 0);
        loop {
            let read = sqlx::query(
                "select id, key, payload, created_at::text from queue where id > $1 order by id limit $2",
            );
            let rows = self.pool.fetch_all(read.bind(last).bind(READ_ROWS)).await?;
            let Some(row) = rows.last() else { break };
            last = row.get(0);
            count += rows.len();
        }
        Ok(count as f64 / began.elapsed().as_secs_f64())
    }
}

async fn insert(pool: &PgPool, payload: &[u8]) -> Result<()> {
    let payloads = vec![payload; PER_COMMIT];
    pool.execute(sqlx::query(INSERT).bind(payloads)).await?;
    Ok(())
}
