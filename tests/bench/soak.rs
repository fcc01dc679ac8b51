//! Whether the host's memory stays flat during ten minutes of producing, processing and reading,
//! with many readers that take their answers slowly or not at all. The host is a separate process.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use millrace_tests::{Client, Host};
use serde_json::{Value, json};

use crate::setup;
use crate::table::{Table, median};

const SOAK: Duration = Duration::from_secs(10 * 60);
/// Memory before this time is not compared, since files, caches and buffers still grow to their
/// size.
const WARM_UP: Duration = Duration::from_secs(2 * 60);
/// This long after the warm-up is compared with this long at the end.
const COMPARED: Duration = Duration::from_secs(2 * 60);
const LOOK: Duration = Duration::from_secs(2);

const PARTITIONS: u32 = 8;
const PRODUCERS: usize = 2;
/// Messages per request, and the interval of a producer's requests: 10 MB per second for all.
const MESSAGES: usize = 100;
const VALUE_BYTES: usize = 1_000;
const PACE: Duration = Duration::from_millis(20);
/// Bytes that each partition keeps.
const RETENTION_BYTES: u64 = 64 << 20;

/// Readers that request a lot and read it slowly, request less and read it slowly, and request but
/// never read.
const READERS: [(usize, u64, Option<Duration>); 3] = [
    (16, 4 << 20, Some(Duration::from_millis(100))),
    (32, 256 << 10, Some(Duration::from_millis(100))),
    (8, 4 << 20, None),
];
/// Bytes that a slow reader reads at once.
const SIP_BYTES: usize = 16 << 10;

#[derive(Default)]
struct Counts {
    over: AtomicBool,
    produced: AtomicU64,
    requests_refused: AtomicU64,
    read_bytes: AtomicU64,
}

/// Adds two rows: the process's own memory, and all resident memory, mapped files included.
pub(crate) fn measure(table: &mut Table) -> Result<()> {
    let host = Host::start(std::env::current_exe()?)?;
    let topic = json!({
        "partitions": PARTITIONS, "durability": "os", "settings": {"retention_bytes": RETENTION_BYTES},
    });
    setup::uppercase_between(&host.client(), &topic)?;
    let counts = Counts::default();
    let samples = thread::scope(|scope| {
        for _ in 0..PRODUCERS {
            scope.spawn(|| produce(&host.client(), &counts));
        }
        for (number, (readers, bytes, pause)) in READERS.into_iter().enumerate() {
            for reader in 0..readers {
                let (url, counts) = (host.url(), &counts);
                let partition = (number + reader) as u32 % PARTITIONS;
                scope.spawn(move || read(url, partition, bytes, pause, counts));
            }
        }
        let samples = watch(&host, &counts);
        counts.over.store(true, Ordering::Relaxed);
        samples
    })?;
    let processed = host.client().metric("millrace_messages_processed_total");
    let processed = processed.unwrap_or(0.0);
    eprintln!(
        "  {} messages produced, {:.0} processed; {} MiB read slowly, {} requests told to come again",
        counts.produced.load(Ordering::Relaxed),
        processed,
        counts.read_bytes.load(Ordering::Relaxed) >> 20,
        counts.requests_refused.load(Ordering::Relaxed)
    );
    for (what, count) in [
        ("produced", counts.produced.load(Ordering::Relaxed)),
        ("processed", processed as u64),
        ("read", counts.read_bytes.load(Ordering::Relaxed)),
    ] {
        ensure!(count > 0, "nothing was {what}");
    }
    let readers: usize = READERS.iter().map(|(count, ..)| count).sum();
    for (what, pick) in [("own memory", 0), ("resident memory", 1)] {
        row(
            table,
            &format!("{what}, {readers} slow readers"),
            &samples,
            pick,
        );
    }
    Ok(())
}

fn row(table: &mut Table, what: &str, samples: &[(Duration, [f64; 2])], pick: usize) {
    let within = |from: Duration, to: Duration| -> Vec<f64> {
        let inside = samples.iter().filter(|(at, _)| (from..to).contains(at));
        inside.map(|(_, mib)| mib[pick]).collect()
    };
    let early = median(within(WARM_UP, WARM_UP + COMPARED));
    let late = median(within(SOAK - COMPARED, SOAK));
    let highest = within(WARM_UP, SOAK).into_iter().fold(0.0, f64::max);
    table.row(
        &format!("{what}: the last two of ten minutes"),
        format!("{late:.0} MiB, highest {highest:.0} MiB"),
        "minutes three and four",
        format!("{early:.0} MiB"),
        format!("{:.2} (flat)", late / early),
    );
}

/// The process's own memory and all its resident memory in MiB, by the time since the start.
fn watch(host: &Host, counts: &Counts) -> Result<Vec<(Duration, [f64; 2])>> {
    let began = Instant::now();
    let mut samples = Vec::new();
    let mut minute = 0;
    while began.elapsed() < SOAK {
        sleep(LOOK);
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let memory = [mib(host.own_bytes()?), mib(host.resident_bytes()?)];
        samples.push((began.elapsed(), memory));
        if began.elapsed().as_secs() / 60 > minute {
            minute += 1;
            eprintln!(
                "  minute {minute}: {:.0} MiB of its own, {:.0} MiB resident, {} messages",
                memory[0],
                memory[1],
                counts.produced.load(Ordering::Relaxed)
            );
        }
    }
    Ok(samples)
}

fn produce(client: &Client, counts: &Counts) {
    let message = json!({"value": "x".repeat(VALUE_BYTES)});
    let messages: Vec<Value> = vec![message; MESSAGES];
    while !counts.over.load(Ordering::Relaxed) {
        let sent = client.produce("in", &messages);
        let (counter, count) = match sent {
            Ok(_) => (&counts.produced, MESSAGES as u64),
            Err(_) => (&counts.requests_refused, 1),
        };
        counter.fetch_add(count, Ordering::Relaxed);
        sleep(PACE);
    }
}

/// Sends requests again and again, and reads each answer in sips, or never.
fn read(url: &str, partition: u32, bytes: u64, pause: Option<Duration>, counts: &Counts) {
    while !counts.over.load(Ordering::Relaxed) {
        if read_once(url, partition, bytes, pause, counts).is_err() {
            sleep(Duration::from_secs(1));
        }
    }
}

fn read_once(
    url: &str,
    partition: u32,
    bytes: u64,
    pause: Option<Duration>,
    counts: &Counts,
) -> Result<()> {
    let address = url.strip_prefix("http://").context("an address")?;
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    let path = format!(
        "/v1/topics/out/partitions/{partition}/messages?from=earliest&max=10000&max_bytes={bytes}"
    );
    stream.write_all(
        format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes(),
    )?;
    let mut sip = vec![0; SIP_BYTES];
    let status = stream.read(&mut sip[..12])?;
    if !sip[..status].ends_with(b"200") {
        counts.requests_refused.fetch_add(1, Ordering::Relaxed);
        sleep(Duration::from_secs(1));
        return Ok(());
    }
    while !counts.over.load(Ordering::Relaxed) {
        let Some(pause) = pause else {
            sleep(Duration::from_secs(1));
            continue;
        };
        match stream.read(&mut sip)? {
            0 => return Ok(()),
            read => counts.read_bytes.fetch_add(read as u64, Ordering::Relaxed),
        };
        sleep(pause);
    }
    Ok(())
}
