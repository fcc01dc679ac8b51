//! A guest's call compared with the same Rust function called in-process: the cost of the sandbox
//! and of crossing its border.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use guest_artifacts as guests;
use millrace_broker::ModuleHost;
use millrace_broker::handler::{BatchHandler, LiveConfig, LoadRequest, Uploader};
use millrace_guest::{Batch, Columns, Message, Outcome, Outcomes};
use millrace_model::ColumnBatch;
use millrace_model::processor::{Grants, Limits};

use crate::setup;
use crate::table::{Table, median};

const ROUNDS: usize = 9;
const ROUND: Duration = Duration::from_millis(60);

struct Case {
    name: &'static str,
    component: &'static [u8],
    native: fn(&Message) -> Outcome,
    value: fn(usize, usize) -> String,
    bar: &'static str,
}

const CASES: [Case; 3] = [
    Case {
        name: "upper-case",
        component: guests::UPPERCASE,
        native: uppercase::handle,
        value: letters,
        bar: "≤ 2.5 at 1000 × 100 B",
    },
    Case {
        name: "JSON filter",
        component: guests::FILTER,
        native: filter::handle,
        value: order,
        bar: "≤ 2 at 1000",
    },
    Case {
        name: "pass-through",
        component: guests::PASSTHROUGH,
        native: |message| Outcome::Emit(message.output()),
        value: letters,
        bar: "≤ 200 ns at 1000 × 1 KiB",
    },
];

/// Fills the table with one row per case, size and batch.
pub(crate) async fn measure(table: &mut Table) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let host = setup::components(directory.path())?;
    for case in &CASES {
        let handler = load(&host, case.component).await?;
        for bytes in [100, 1024] {
            for count in [1, 20, 1000] {
                one(table, case, &handler, bytes, count).await?;
            }
        }
    }
    Ok(())
}

async fn load(
    host: &Arc<millrace_wasm::WasmHost>,
    component: &'static [u8],
) -> Result<Arc<dyn BatchHandler>> {
    let bytes = Bytes::from_static(component);
    let digest = host.admit(bytes.clone(), Uploader::default()).await?.digest;
    let request = LoadRequest {
        digest,
        bytes,
        owner: "bench".to_owned(),
        revision: 1,
        limits: Limits::default(),
        grants: Grants::default(),
        config: LiveConfig::default(),
        access: None,
    };
    Ok(host.processor(request).await?)
}

async fn one(
    table: &mut Table,
    case: &Case,
    handler: &Arc<dyn BatchHandler>,
    bytes: usize,
    count: usize,
) -> Result<()> {
    let columns = columns(case, bytes, count);
    let native_batch = Batch::new(native_columns(&columns));
    let columns = Arc::new(columns);
    let (mut guest, mut native) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        guest.push(guest_round(handler, &columns).await?);
        native.push(native_round(case.native, &native_batch));
    }
    let (guest, native) = (median(guest) / count as f64, median(native) / count as f64);
    table.row(
        &format!("{}, {bytes} B, batch {count}", case.name),
        format!("{guest:.0} ns/message"),
        "in-process",
        format!("{native:.0} ns/message"),
        format!("{:.2} ({})", guest / native, case.bar),
    );
    Ok(())
}

/// Nanoseconds of one call.
async fn guest_round(handler: &Arc<dyn BatchHandler>, columns: &Arc<ColumnBatch>) -> Result<f64> {
    let (began, mut calls) = (Instant::now(), 0_u32);
    while began.elapsed() < ROUND {
        black_box(handler.process(columns).await?);
        calls += 1;
    }
    Ok(began.elapsed().as_nanos() as f64 / f64::from(calls))
}

/// Nanoseconds of one batch.
fn native_round(handle: fn(&Message) -> Outcome, batch: &Batch) -> f64 {
    let (began, mut calls) = (Instant::now(), 0_u32);
    while began.elapsed() < ROUND {
        let mut outcomes = Outcomes::new(batch);
        for message in batch.messages() {
            outcomes.push(handle(&message));
        }
        black_box(outcomes.into_answer());
        calls += 1;
    }
    began.elapsed().as_nanos() as f64 / f64::from(calls)
}

fn letters(_number: usize, bytes: usize) -> String {
    "abcdefghij".repeat(bytes.div_ceil(10))[..bytes].to_owned()
}

/// Every second order is large enough to pass.
fn order(number: usize, bytes: usize) -> String {
    let amount = if number.is_multiple_of(2) { 150 } else { 50 };
    let frame = format!(r#"{{"id":{number:04},"item":"","amount":{amount}}}"#).replace(":0", ":1");
    let item = letters(number, bytes.saturating_sub(frame.len()));
    frame.replacen("\"\"", &format!("\"{item}\""), 1)
}

fn columns(case: &Case, bytes: usize, count: usize) -> ColumnBatch {
    let mut columns = ColumnBatch {
        topic: "in".to_owned(),
        ..ColumnBatch::default()
    };
    for number in 0..count {
        let key = format!("key-{number:04}");
        let key = place(&mut columns, &key);
        let value = (case.value)(number, bytes);
        let value = place(&mut columns, &value);
        let name = place(&mut columns, "trace");
        let trace = place(&mut columns, "0123456789abcdef");
        columns.keys.extend(key);
        columns.values.extend(value);
        columns.headers.extend(name);
        columns.headers.extend(trace);
        columns.header_ends.push(number as u32 + 1);
        columns.offsets.push(number as u64);
        columns.timestamps.push(1_700_000_000_000);
        columns.attempts.push(1);
    }
    columns
}

fn place(columns: &mut ColumnBatch, text: &str) -> [u32; 2] {
    let start = columns.data.len() as u32;
    columns.data.extend_from_slice(text.as_bytes());
    [start, text.len() as u32]
}

fn native_columns(of: &ColumnBatch) -> Columns {
    let of = of.clone();
    Columns {
        topic: of.topic,
        partition: of.partition,
        data: of.data,
        offsets: of.offsets,
        timestamps: of.timestamps,
        attempts: of.attempts,
        keys: of.keys,
        values: of.values,
        header_ends: of.header_ends,
        headers: of.headers,
    }
}
