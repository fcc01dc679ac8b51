//! `bench`: loads a running host over HTTP, on a temporary topic. The cost of components and commits compared with native code is
//! measured by the bench of the tests.

use millrace_model::{Clock, SystemClock};
use serde_json::{Value, json};
use ureq::http::Method;

use super::client::Client;
use super::failure::Failure;
use super::output::Output;
use super::table;

/// Maximum number of concurrent requests: more would measure this program instead of the host.
const CONNECTIONS_MAX: u32 = 64;
/// Messages that are sent one by one to measure latency.
const SINGLE_MESSAGES: u32 = 500;

/// Measure a running host: produce throughput and latency over HTTP
#[derive(clap::Args)]
#[command(after_help = "Example:\n  millrace bench --messages 200000 --durability durable")]
pub(super) struct Args {
    /// Number of messages to produce
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=100_000_000))]
    messages: u32,
    /// Size of each value in bytes
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    bytes: u32,
    /// Messages per request
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    batch: u32,
    /// Concurrent requests
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=CONNECTIONS_MAX as i64))]
    connections: u32,
    /// When messages are acknowledged
    #[arg(long, default_value = "os", value_parser = ["durable", "os", "none"])]
    durability: String,
}

pub(super) fn run(args: Args, client: &Client) -> Result<(), Failure> {
    let topic = format!("bench-{:08x}", fastrand::u32(..));
    let spec =
        json!({"name": topic, "partitions": args.connections, "durability": args.durability});
    client.send(Method::POST, "/v1/topics", &spec)?;
    let measured = measure(&args, client, &topic);
    client.delete(&format!("/v1/topics/{topic}"))?;
    let measured = measured?;
    Output::new(client.json).answer(&measured, for_people)
}

fn measure(args: &Args, client: &Client, topic: &str) -> Result<Value, Failure> {
    let seconds = produce_all(args, client, topic)?;
    let sent = requests_each(args) * args.connections * args.batch;
    let mut single = (0..SINGLE_MESSAGES)
        .map(|_| single(args, client, topic))
        .collect::<Result<Vec<f64>, Failure>>()?;
    single.sort_by(f64::total_cmp);
    let at = |share: f64| single[((single.len() - 1) as f64 * share) as usize];
    Ok(json!({
        "durability": args.durability,
        "messages": sent,
        "messages_per_second": (f64::from(sent) / seconds).round(),
        "mib_per_second": f64::from(sent) * f64::from(args.bytes) / seconds / f64::from(1 << 20),
        "single_p50_ms": at(0.5),
        "single_p99_ms": at(0.99),
    }))
}

/// Requests per connection, so that all of them together produce at least the number asked for.
fn requests_each(args: &Args) -> u32 {
    args.messages.div_ceil(args.batch * args.connections)
}

/// Elapsed seconds of all connections together.
fn produce_all(args: &Args, client: &Client, topic: &str) -> Result<f64, Failure> {
    let clock = SystemClock::new();
    std::thread::scope(|scope| {
        let connections: Vec<_> = (0..args.connections)
            .map(|partition| scope.spawn(move || produce(args, client, topic, partition)))
            .collect();
        connections.into_iter().try_for_each(|connection| {
            connection
                .join()
                .unwrap_or_else(|_| Err(Failure::failed("a connection's thread panicked")))
        })
    })?;
    Ok(clock.monotonic().as_secs_f64())
}

fn produce(args: &Args, client: &Client, topic: &str, partition: u32) -> Result<(), Failure> {
    let path = format!("/v1/topics/{topic}/messages");
    let line = json!({"partition": partition, "value": value(args)}).to_string() + "\n";
    let body = line.repeat(args.batch as usize);
    for _ in 0..requests_each(args) {
        client.upload(&path, "application/x-ndjson", body.as_str())?;
    }
    Ok(())
}

/// Milliseconds until a message is acknowledged.
fn single(args: &Args, client: &Client, topic: &str) -> Result<f64, Failure> {
    let path = format!("/v1/topics/{topic}/messages?partition=0");
    let value = value(args);
    let clock = SystemClock::new();
    client.upload(&path, "application/octet-stream", value.as_str())?;
    Ok(clock.monotonic().as_secs_f64() * 1_000.0)
}

fn value(args: &Args) -> String {
    "x".repeat(args.bytes as usize)
}

fn for_people(measured: &Value) -> String {
    let number = |name: &str, digits: usize| {
        format!("{:.digits$}", measured[name].as_f64().unwrap_or_default())
    };
    table::facts(&[
        ("durability", table::cell(&measured["durability"])),
        ("produced", format!("{} messages", number("messages", 0))),
        (
            "throughput",
            format!(
                "{} messages/s, {} MiB/s",
                number("messages_per_second", 0),
                number("mib_per_second", 1)
            ),
        ),
        (
            "one message",
            format!(
                "p50 {} ms, p99 {} ms",
                number("single_p50_ms", 2),
                number("single_p99_ms", 2)
            ),
        ),
    ])
}
