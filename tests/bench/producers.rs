//! Many producers at once over HTTP, each waiting for its answer: what `durable` costs them beside `os`.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use millrace_tests::Client;
use serde_json::{Value, json};

use crate::setup;
use crate::table::{Table, median, percentile};

const PRODUCERS: usize = 64;
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(1);
const VALUE_BYTES: usize = 100;
/// Messages of one request.
const BATCHES: [usize; 2] = [1, 100];

/// A row for each number of messages in a request.
pub(crate) async fn measure(table: &mut Table) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let host = setup::host(directory.path()).await?;
    let url = host.url();
    let rows = tokio::task::spawn_blocking(move || rounds(&url)).await?;
    host.stop().await;
    for (messages, os, durable) in rows? {
        row(table, messages, &os, &durable);
    }
    Ok(())
}

/// Messages a second, and the median milliseconds of a request.
type Rates = Vec<(f64, f64)>;

fn rounds(url: &str) -> Result<Vec<(usize, Rates, Rates)>> {
    for durability in ["os", "durable"] {
        let topic = json!({"name": durability, "durability": durability});
        Client::new(url).post_json("/v1/topics", &topic)?.ok()?;
    }
    let mut rows = Vec::new();
    for messages in BATCHES {
        let (mut os, mut durable) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            os.push(round(url, "os", messages)?);
            durable.push(round(url, "durable", messages)?);
        }
        rows.push((messages, os, durable));
    }
    Ok(rows)
}

fn round(url: &str, topic: &str, messages: usize) -> Result<(f64, f64)> {
    let began = Instant::now();
    let produce = || produce(&Client::new(url), topic, messages, began + ROUND);
    let times = thread::scope(|scope| {
        let producers: Vec<_> = (0..PRODUCERS).map(|_| scope.spawn(produce)).collect();
        let times = producers.into_iter().map(|producer| {
            let joined = producer.join().ok();
            joined.context("a producer panicked")?
        });
        times.collect::<Result<Vec<_>>>()
    })?;
    let times = times.concat();
    let rate = (times.len() * messages) as f64 / began.elapsed().as_secs_f64();
    Ok((rate, percentile(times, 0.5)))
}

/// Milliseconds of each request.
fn produce(client: &Client, topic: &str, messages: usize, until: Instant) -> Result<Vec<f64>> {
    let message = json!({"value": "x".repeat(VALUE_BYTES)});
    let messages: Vec<Value> = vec![message; messages];
    let mut times = Vec::new();
    while Instant::now() < until {
        let began = Instant::now();
        client.produce(topic, &messages)?;
        times.push(began.elapsed().as_secs_f64() * 1_000.0);
    }
    Ok(times)
}

fn row(table: &mut Table, messages: usize, os: &Rates, durable: &Rates) {
    let middle = |rates: &Rates| {
        let rate = median(rates.iter().map(|one| one.0).collect());
        (rate, median(rates.iter().map(|one| one.1).collect()))
    };
    let (os, durable) = (middle(os), middle(durable));
    let figure = |(rate, p50): (f64, f64)| format!("{rate:.0} messages/s, p50 {p50:.2} ms");
    table.row(
        &format!(
            "{PRODUCERS} producers over HTTP, {messages} × {VALUE_BYTES} B a request, durable"
        ),
        figure(durable),
        "os",
        figure(os),
        format!("{:.0} % (≥ 70 %)", durable.0 / os.0 * 100.0),
    );
}
