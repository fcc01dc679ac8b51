//! Producers over HTTP that wait for their answers: what `durable` costs them compared with `os`.
//! The load is cheaper than the host, so that the host is measured.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use millrace_tests::Client;
use serde_json::json;

use crate::load::{Load, produce_request};
use crate::setup;
use crate::table::{Table, median, percentile};

const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(1);
const VALUE_BYTES: usize = 100;

/// A kind of load.
struct Shape {
    connections: usize,
    messages_per_request: usize,
}

const SHAPES: [Shape; 3] = [
    Shape {
        connections: 64,
        messages_per_request: 1,
    },
    Shape {
        connections: 64,
        messages_per_request: 100,
    },
    Shape {
        connections: 2,
        messages_per_request: 1_000,
    },
];

/// A row for each shape.
pub(crate) async fn measure(table: &mut Table) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let host = setup::host(directory.path()).await?;
    let url = host.url();
    let rows = tokio::task::spawn_blocking(move || rounds(&url)).await?;
    host.stop().await;
    for (shape, (os, durable)) in SHAPES.iter().zip(rows?) {
        row(table, shape, &os, &durable);
    }
    Ok(())
}

/// Messages per second, and the median milliseconds of a request.
type Rates = Vec<(f64, f64)>;

fn rounds(url: &str) -> Result<Vec<(Rates, Rates)>> {
    for durability in ["os", "durable"] {
        let topic = json!({"name": durability, "durability": durability});
        Client::new(url).post_json("/v1/topics", &topic)?.ok()?;
    }
    let mut rows = Vec::new();
    for shape in &SHAPES {
        let (mut os, mut durable) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            os.push(round(url, "os", shape)?);
            durable.push(round(url, "durable", shape)?);
        }
        rows.push((os, durable));
    }
    Ok(rows)
}

fn round(url: &str, topic: &str, shape: &Shape) -> Result<(f64, f64)> {
    let messages = shape.messages_per_request;
    let load = Load {
        address: url
            .strip_prefix("http://")
            .context("an address")?
            .to_owned(),
        connections: shape.connections,
        request: produce_request(topic, messages, VALUE_BYTES),
    };
    let began = Instant::now();
    let times = load.run(ROUND)?;
    let rate = (times.len() * messages) as f64 / began.elapsed().as_secs_f64();
    Ok((rate, percentile(times, 0.5)))
}

fn row(table: &mut Table, shape: &Shape, os: &Rates, durable: &Rates) {
    let middle = |rates: &Rates| {
        let rate = median(rates.iter().map(|one| one.0).collect());
        (rate, median(rates.iter().map(|one| one.1).collect()))
    };
    let (os, durable) = (middle(os), middle(durable));
    let figure = |(rate, p50): (f64, f64)| format!("{rate:.0} messages/s, p50 {p50:.2} ms");
    table.row(
        &format!(
            "{} producers over HTTP, {} × {VALUE_BYTES} B a request, durable",
            shape.connections, shape.messages_per_request
        ),
        figure(durable),
        "os",
        figure(os),
        format!("{:.0} % (≥ 70 %)", durable.0 / os.0 * 100.0),
    );
}
