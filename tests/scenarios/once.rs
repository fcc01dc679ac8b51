//! Calls that are repeated until they are answered take effect once: through `kill -9`, and over a
//! network that loses answers.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use millrace_tests::{Client, Message};
use serde_json::{Value, json};

use crate::host;

const KILLS: u32 = 20;
const PRODUCERS: u32 = 4;

/// Shared with the producers: the host's present address, and whether to stop.
struct Rig {
    url: Mutex<String>,
    stopping: AtomicBool,
    /// Calls that were not answered and were repeated.
    retries: AtomicU32,
}

impl Rig {
    fn client(&self) -> Client {
        let url = self.url.lock().map(|url| url.clone());
        Client::new(&url.unwrap_or_default())
    }

    /// Repeats each call until it is answered; returns the acknowledged position of each message.
    fn produce(&self, producer: u32) -> Result<BTreeMap<String, (u32, u64)>> {
        let mut told = BTreeMap::new();
        let mut number = 0;
        while !self.stopping.load(Ordering::Relaxed) {
            let values: Vec<String> = (0..1 + number % 40)
                .map(|index| format!("{producer}-{number}-{index}"))
                .collect();
            // Some have a key; the partitioner may choose another partition for the others in a
            // repeat.
            let message = |(index, value): (usize, &String)| match index % 3 {
                0 => json!({"key": value, "value": value}),
                _ => json!({"value": value}),
            };
            let messages: Vec<Value> = values.iter().enumerate().map(message).collect();
            let key = format!("\"{producer}-{number}\"");
            told.extend(values.into_iter().zip(self.retry(&key, &messages)?));
            number += 1;
        }
        Ok(told)
    }

    fn retry(&self, key: &str, messages: &[Value]) -> Result<Vec<(u32, u64)>> {
        let mut client = self.client();
        for _ in 0..10_000 {
            if let Ok(placed) = client.produce_once("in", key, messages) {
                ensure!(placed.len() == messages.len(), "each message has a place");
                return Ok(placed);
            }
            self.retries.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(5));
            client = self.client();
        }
        anyhow::bail!("call {key} was never answered")
    }
}

fn places(messages: &[Message]) -> BTreeMap<String, Vec<(u32, u64)>> {
    let mut places: BTreeMap<String, Vec<(u32, u64)>> = BTreeMap::new();
    for message in messages {
        let places = places.entry(message.text().to_owned()).or_default();
        places.push((message.partition, message.offset));
    }
    places
}

#[test]
fn killed_twenty_times_every_call_takes_effect_once_and_is_answered_with_its_first_places()
-> Result<()> {
    let mut host = host()?;
    let topic = json!({"name": "in", "partitions": 3, "durability": "durable"});
    host.client().post_json("/v1/topics", &topic)?.ok()?;
    let rig = Rig {
        url: Mutex::new(host.url().to_owned()),
        stopping: AtomicBool::new(false),
        retries: AtomicU32::new(0),
    };
    let told = std::thread::scope(|scope| {
        let producing: Vec<_> = (0..PRODUCERS)
            .map(|producer| {
                scope.spawn({
                    let rig = &rig;
                    move || rig.produce(producer)
                })
            })
            .collect();
        let killed = (0..KILLS).try_for_each(|_| {
            std::thread::sleep(Duration::from_millis(50 + fastrand::u64(0..250)));
            host.kill()?;
            host.start_again()?;
            if let Ok(mut url) = rig.url.lock() {
                host.url().clone_into(&mut url);
            }
            anyhow::Ok(())
        });
        rig.stopping.store(true, Ordering::Relaxed);
        killed?;
        let mut told = BTreeMap::new();
        for producer in producing {
            let produced = producer.join().ok().context("a producer panicked")?;
            told.extend(produced?);
        }
        anyhow::Ok(told)
    })?;
    let found = places(&host.client().read("in")?);
    assert!(told.len() > 1_000, "only {} messages: no load", told.len());
    assert_eq!(found.len(), told.len(), "nothing that nobody was told of");
    for (value, place) in &told {
        let expected = vec![*place];
        assert_eq!(found.get(value), Some(&expected), "{value}, once and there");
    }
    let retries = rig.retries.load(Ordering::Relaxed);
    assert!(retries > 0, "no call was cut off");
    eprintln!(
        "{KILLS} kills, {} messages, {retries} calls made again",
        told.len()
    );
    Ok(())
}

/// A proxy between client and host that loses the answer of every second produce request.
struct Lossy {
    address: std::net::SocketAddr,
    lost: Arc<AtomicU32>,
}

impl Lossy {
    fn before(url: &str) -> Result<Self> {
        let host = url.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let lost = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&lost);
        std::thread::spawn(move || {
            let mut turn = 0;
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                let Ok(host) = TcpStream::connect(&host) else {
                    return;
                };
                turn += 1;
                let (counter, loses) = (Arc::clone(&counter), turn % 2 == 0);
                std::thread::spawn(move || relay(client, host, loses, &counter));
            }
        });
        Ok(Self { address, lost })
    }
}

/// Relays one connection in both directions. The answer to a POST may be cut off: the host has done
/// what was requested, but the client does not learn it.
fn relay(mut client: TcpStream, mut host: TcpStream, loses: bool, lost: &AtomicU32) {
    let (Ok(mut from_client), Ok(mut to_host)) = (client.try_clone(), host.try_clone()) else {
        return;
    };
    let posted = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&posted);
    std::thread::spawn(move || {
        let mut bytes = [0; 16 << 10];
        while let Ok(count @ 1..) = from_client.read(&mut bytes) {
            if bytes.starts_with(b"POST") {
                seen.store(true, Ordering::SeqCst);
            }
            if to_host.write_all(&bytes[..count]).is_err() {
                break;
            }
        }
        let _ = to_host.shutdown(Shutdown::Write);
    });
    let mut bytes = [0; 16 << 10];
    while let Ok(count @ 1..) = host.read(&mut bytes) {
        if loses && posted.load(Ordering::SeqCst) {
            lost.fetch_add(1, Ordering::SeqCst);
            break;
        }
        if client.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _ = client.shutdown(Shutdown::Both);
    let _ = host.shutdown(Shutdown::Both);
}

#[test]
fn the_command_line_produces_once_over_a_network_that_loses_answers() -> Result<()> {
    let host = host()?;
    host.client().topic("in", 2)?;
    let lossy = Lossy::before(host.url())?;
    let url = format!("http://{}", lossy.address);
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("lines");
    let lines: Vec<String> = (0..40_000).map(|n| format!("line {n}")).collect();
    std::fs::write(&file, lines.join("\n"))?;
    let file = file.to_str().context("a path")?;
    let again = ["--idempotency-key", "import-7"];
    for round in 0..2 {
        let arguments = ["--host", &url, "produce", "in", "--file", file];
        let mut produced = host.command(&arguments);
        let produced = produced.args(again).output()?;
        let told = String::from_utf8_lossy(&produced.stdout).into_owned();
        ensure!(
            produced.status.success(),
            "round {round}: {told} {}",
            String::from_utf8_lossy(&produced.stderr)
        );
        match round {
            0 => assert_eq!(told, "40000 messages in 8 commits\n"),
            // Perhaps not all 40,000: a chunk that this command had to send twice, because its
            // answer was lost, does not count as repeated.
            _ => ensure!(told.contains("repeated: "), "{told}"),
        }
    }
    assert!(lossy.lost.load(Ordering::SeqCst) > 0, "no answer was lost");
    let found = places(&host.client().read("in")?);
    assert_eq!(found.len(), lines.len());
    assert!(found.values().all(|places| places.len() == 1));
    Ok(())
}
