//! The cost of a call, compared with the same work in this process. Run it alone, with `--ignored
//! --nocapture`.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use guest_artifacts as guests;
use millrace_broker::handler::BatchHandler;
use millrace_model::{Answer, ColumnBatch};

use crate::support::{TestHost, batch};

const ROUNDS: u32 = 7;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn cost_of_calls() {
    let host = TestHost::start();
    let passthrough = host.processor("pass", guests::PASSTHROUGH).await;
    let uppercase = host.processor("upper", guests::UPPERCASE).await;
    let small = batch(vec!["a".repeat(100); 1_000]);
    let large = batch(vec!["a".repeat(1_024); 1_000]);
    let single = batch(["a".repeat(100)]);
    let pass_large = measure(&passthrough, &large, 300).await / 1_000.0;
    let pass_small = measure(&passthrough, &small, 300).await / 1_000.0;
    let upper_small = measure(&uppercase, &small, 300).await / 1_000.0;
    let native_small = best(|| drop(black_box(native_uppercase(&small))), 300) / 1_000.0;
    let one_pass = measure(&passthrough, &single, 5_000).await;
    let one_upper = measure(&uppercase, &single, 5_000).await;
    println!("pass-through 1 KiB x 1000   {pass_large:8.1} ns/message");
    println!("pass-through 100 B x 1000   {pass_small:8.1} ns/message");
    println!("upper-case   100 B x 1000   {upper_small:8.1} ns/message");
    println!(
        "native upper 100 B x 1000   {native_small:8.1} ns/message, ratio {:.2}",
        upper_small / native_small
    );
    println!("pass-through 100 B x 1      {one_pass:8.1} ns/call");
    println!("upper-case   100 B x 1      {one_upper:8.1} ns/call");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn cost_of_single_calls() {
    let host = TestHost::start();
    let passthrough = host.processor("pass", guests::PASSTHROUGH).await;
    let empty = measure(&passthrough, &batch::<&str>([]), 50_000).await;
    let single = measure(&passthrough, &batch(["a".repeat(100)]), 50_000).await;
    println!("pass-through, no message    {empty:8.1} ns/call");
    println!("pass-through 100 B x 1      {single:8.1} ns/call");
}

/// Nanoseconds of a call, in the best of several rounds.
async fn measure(handler: &Arc<dyn BatchHandler>, batch: &Arc<ColumnBatch>, calls: u32) -> f64 {
    let mut best = f64::MAX;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for _ in 0..calls {
            black_box(handler.process(batch).await.unwrap());
        }
        best = best.min(start.elapsed().as_nanos() as f64 / f64::from(calls));
    }
    best
}

fn best(mut work: impl FnMut(), calls: u32) -> f64 {
    let mut best = f64::MAX;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        (0..calls).for_each(|_| work());
        best = best.min(start.elapsed().as_nanos() as f64 / f64::from(calls));
    }
    best
}

/// Handles each value as a separate message, as a native handler would.
fn native_uppercase(batch: &ColumnBatch) -> Answer {
    let mut answer = Answer {
        outcomes: vec![1; batch.len()],
        ..Answer::default()
    };
    for message in 0..batch.len() {
        let value = batch
            .value(message)
            .unwrap_or_default()
            .to_ascii_uppercase();
        let start = (batch.data.len() + answer.data.len()) as u32;
        answer.data.extend_from_slice(&value);
        answer.values.extend([start, value.len() as u32]);
        answer.sources.push(message as u32);
    }
    answer
}
