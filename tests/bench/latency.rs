//! One message at a time over HTTP: from the producer's request until the reader has the processed
//! message.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use millrace_tests::Client;
use serde_json::json;

use crate::setup;
use crate::table::{Table, percentile};

const WARM_UP: usize = 200;
const MESSAGES: usize = 2_000;

/// Adds one row: `os` compared with `durable`.
pub(crate) async fn measure(table: &mut Table) -> Result<()> {
    let os = end_to_end("os").await?;
    let durable = end_to_end("durable").await?;
    let figure = |times: &[f64]| {
        format!(
            "p50 {:.2} ms, p99 {:.2} ms",
            percentile(times.to_vec(), 0.5),
            percentile(times.to_vec(), 0.99)
        )
    };
    table.row(
        "produce → processed → read over HTTP, one message, os",
        figure(&os),
        "durable",
        figure(&durable),
        "p50 ≤ 1 ms os, ≤ 2 ms durable".to_owned(),
    );
    Ok(())
}

/// The milliseconds of each message.
async fn end_to_end(durability: &'static str) -> Result<Vec<f64>> {
    let directory = tempfile::tempdir()?;
    let host = setup::host(directory.path()).await?;
    let url = host.url();
    let times = tokio::task::spawn_blocking(move || messages(&url, durability)).await??;
    host.stop().await;
    Ok(times)
}

fn messages(url: &str, durability: &str) -> Result<Vec<f64>> {
    let client = Client::new(url);
    setup::uppercase_between(&client, &json!({"durability": durability}))?;

    let (arrived, arrivals) = mpsc::channel();
    let reader = std::thread::spawn({
        let client = Client::new(url);
        move || read_all(&client, &arrived)
    });
    let mut times = Vec::with_capacity(MESSAGES);
    for number in 0..WARM_UP + MESSAGES {
        let began = Instant::now();
        client
            .post(
                "/v1/topics/in/messages",
                "application/octet-stream",
                b"hello, one message",
            )?
            .ok()?;
        let at: Instant = arrivals
            .recv_timeout(Duration::from_secs(30))
            .context("nothing arrived")?;
        if number >= WARM_UP {
            times.push(at.duration_since(began).as_secs_f64() * 1_000.0);
        }
    }
    reader.join().ok().context("the reader panicked")??;
    Ok(times)
}

/// Long-polls for each message and reports when it arrived.
fn read_all(client: &Client, arrived: &mpsc::Sender<Instant>) -> Result<()> {
    let mut next = 0;
    while next < (WARM_UP + MESSAGES) as u64 {
        let path = format!("/v1/topics/out/partitions/0/messages?from={next}&max=1&wait_ms=10000");
        let page = client.get(&path)?;
        let now = Instant::now();
        let page = page.ok()?;
        for _ in page["messages"].as_array().context("no messages")? {
            arrived.send(now)?;
        }
        next = page["next"].as_u64().context("no next")?;
    }
    Ok(())
}
