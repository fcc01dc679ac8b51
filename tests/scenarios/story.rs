//! What Millrace was first wanted for: a provider's webhooks become messages of `whatsapp.incoming`, two hosts share the processor that delivers
//! them to a service that fails, and what cannot be delivered is a dead letter that SQL shows. One of the hosts is killed meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, ensure};
use guest_artifacts as guests;
use millrace_tests::{Client, wait_for};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::shared::{Shared, elsewhere};

const TOPIC: &str = "whatsapp.incoming";
const SECRET: &[u8] = b"a secret of the provider's app";
const WEBHOOKS: u32 = 240;
/// The webhook before which a host is killed.
const KILLED_AT: u32 = 100;
/// One in this many webhooks comes again.
const REPEATED_EVERY: u32 = 5;

/// What the service makes of a message, by its number.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It is taken at the first attempt.
    Taken,
    /// It is taken at the third attempt.
    Late,
    /// The service fails whenever it comes.
    Failing,
    /// The service refuses it.
    Refused,
}

fn fate(number: u32) -> Fate {
    match number % 12 {
        3 => Fate::Failing,
        7 => Fate::Refused,
        1 | 5 | 9 => Fate::Late,
        _ => Fate::Taken,
    }
}

/// A service that messages are delivered to. It tells requests apart by their idempotency key.
struct Service {
    origin: String,
    seen: Arc<Mutex<BTreeMap<String, Seen>>>,
}

#[derive(Clone, Default)]
struct Seen {
    number: u32,
    attempts: u32,
    is_taken: bool,
}

impl Service {
    fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let origin = format!("http://{}", listener.local_addr()?);
        let seen = Arc::default();
        let hears = Arc::clone(&seen);
        // It ends with the process of the tests.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let seen = Arc::clone(&hears);
                thread::spawn(move || drop(answer(stream, &seen)));
            }
        });
        Ok(Self { origin, seen })
    }

    fn seen(&self) -> BTreeMap<String, Seen> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.clone()
    }
}

fn answer(mut stream: TcpStream, seen: &Mutex<BTreeMap<String, Seen>>) -> Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = || -> Result<String> {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        Ok(line.trim_end().to_ascii_lowercase())
    };
    let (mut key, mut length) = (String::new(), None);
    loop {
        let line = line()?;
        match line.split_once(": ") {
            Some(("idempotency-key", value)) => value.clone_into(&mut key),
            Some(("content-length", value)) => length = Some(value.parse()?),
            _ if line.is_empty() => break,
            _ => {}
        }
    }
    // Without its length a body comes in chunks; these are small enough for one.
    let length = match length {
        Some(length) => length,
        None => usize::from_str_radix(&line()?, 16)?,
    };
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let said: Value = serde_json::from_slice(&body)?;
    let number = number(&said)?;
    let status = {
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let here = seen.entry(key).or_default();
        here.number = number;
        here.attempts += 1;
        let status = match fate(number) {
            Fate::Refused => 400,
            Fate::Failing => 500,
            Fate::Late if here.attempts < 3 => 500,
            Fate::Taken | Fate::Late => 200,
        };
        here.is_taken |= status == 200;
        status
    };
    write!(
        stream,
        "HTTP/1.1 {status} so\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    )?;
    Ok(())
}

/// The number in the id of a message of the provider.
fn number(message: &Value) -> Result<u32> {
    let id = message["message"]["id"].as_str().context("no id")?;
    Ok(id
        .strip_prefix("wamid.")
        .context("not the provider's")?
        .parse()?)
}

fn webhook(number: u32) -> String {
    let message = json!({"id": format!("wamid.{number}"), "from": format!("4917{}", number % 40), "text": {"body": "hi"}});
    json!({"entry": [{"changes": [{"value": {"messages": [message]}}]}]}).to_string()
}

/// HMAC-SHA-256 (RFC 2104) of a body, as the provider sends it.
fn signature(body: &str) -> String {
    let pad = |with: u8| {
        let mut block = [with; 64];
        block
            .iter_mut()
            .zip(SECRET)
            .for_each(|(byte, secret)| *byte ^= secret);
        block
    };
    let inner = Sha256::digest([&pad(0x36)[..], body.as_bytes()].concat());
    let outer = Sha256::digest([&pad(0x5c)[..], &inner].concat());
    let hex: String = outer.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256={hex}")
}

/// Calls the hosts in turn, as a provider behind a balancer does, until one takes the webhook.
fn deliver(clients: &[Client], number: u32) -> Result<()> {
    let body = webhook(number);
    let signed = signature(&body);
    let mut turn = number as usize;
    wait_for("a host to take the webhook", || {
        turn += 1;
        let client = &clients[turn % clients.len()];
        let headers = [
            ("content-type", "application/json"),
            ("x-hub-signature-256", &signed),
        ];
        let taken = client.post_with("/hooks/whatsapp", &headers, body.as_bytes());
        match taken {
            Ok(reply) if reply.status == 200 => Ok(Some(())),
            Ok(reply) => {
                let said = String::from_utf8_lossy(&reply.body);
                ensure!(reply.status == 503, "{}: {said}", reply.status);
                Ok(None)
            }
            // That host is dead.
            Err(_) => Ok(None),
        }
    })
}

fn set_up(clients: &[Client; 2], service: &Service) -> Result<()> {
    clients[0].topic(TOPIC, 8)?;
    let webhook = clients[0].push(guests::WEBHOOK)?;
    let route = json!({
        "module": webhook,
        "config": {"provider": "meta"},
        "grants": {"topics": [TOPIC], "secrets": ["webhook-secret"]},
        "limits": {"call_ms_max": 60_000},
    });
    clients[0]
        .put_json("/v1/routes/hooks/whatsapp", &route)?
        .ok()?;
    let sink = clients[1].push(guests::HTTP_SINK)?;
    let deploy = json!({
        "module": sink,
        "topics": [TOPIC],
        "config": {"url": service.origin},
        "grants": {"http": [service.origin], "secrets": ["webhook-secret"]},
        "limits": {"call_ms_max": 60_000},
        "retry": {"attempts_max": 4, "delay_first_ms": 50, "delay_max_ms": 400},
        "breaker": {"enabled": false},
        "dead_letters": {"max": 1_000_000, "unproven_max": 1_000_000},
    });
    clients[1]
        .put_json("/v1/processors/deliver", &deploy)?
        .ok()?;
    wait_for("each host to work some of the partitions", || {
        let (partitions, others) = elsewhere(&clients[0], "deliver")?;
        Ok((partitions == 8 && (1..8).contains(&others)).then_some(()))
    })
}

#[test]
fn a_webhook_is_delivered_once_or_a_dead_letter_in_sql_though_a_host_is_killed() -> Result<()> {
    let secrets = tempfile::tempdir()?;
    std::fs::write(secrets.path().join("webhook-secret"), SECRET)?;
    let directory = secrets.path().display().to_string();
    let Some(mut shared) = Shared::start_with(2, &["--secrets-dir", &directory])? else {
        return Ok(());
    };
    let service = Service::start()?;
    let clients = [shared.client(0), shared.client(1)];
    set_up(&clients, &service)?;
    for number in 0..WEBHOOKS {
        if number == KILLED_AT {
            shared.hosts[1].kill()?;
        }
        let times = 1 + u32::from(number % REPEATED_EVERY == 0);
        (0..times).try_for_each(|_| deliver(&clients, number))?;
    }
    let client = &clients[0];
    client.wait_until_idle("deliver")?;

    let all: BTreeSet<u32> = (0..WEBHOOKS).collect();
    let of = |fates: [Fate; 2]| -> BTreeSet<u32> {
        let all = all.iter().copied();
        all.filter(|&number| fates.contains(&fate(number)))
            .collect()
    };
    let stored = client.read(TOPIC)?;
    let numbers: Result<Vec<u32>> = stored
        .iter()
        .map(|message| number(&serde_json::from_str(message.text())?))
        .collect();
    let mut numbers = numbers?;
    numbers.sort_unstable();
    ensure!(
        numbers == Vec::from_iter(all.iter().copied()),
        "each webhook is one message: {numbers:?}"
    );
    let seen = service.seen();
    ensure!(
        seen.len() == all.len(),
        "{} idempotency keys for {} messages",
        seen.len(),
        all.len()
    );
    let taken = seen.values().filter(|seen| seen.is_taken);
    let taken: BTreeSet<u32> = taken.map(|seen| seen.number).collect();
    ensure!(taken == of([Fate::Taken, Fate::Late]), "{taken:?}");
    let letters = shared.database.sql(
        "select payload::json -> 'message' ->> 'id', headers ->> 'millrace-attempts' from millrace.broker_dlq where processor = 'deliver'",
    )?;
    let mut dead = BTreeSet::new();
    for letter in letters.lines() {
        let (id, attempts) = letter.split_once('|').context("two columns")?;
        let number: u32 = id.trim_start_matches("wamid.").parse()?;
        let expected = if fate(number) == Fate::Failing {
            "4"
        } else {
            "1"
        };
        ensure!(attempts == expected, "{id} after {attempts} attempts");
        ensure!(dead.insert(number), "{id} is there twice");
    }
    ensure!(dead == of([Fate::Failing, Fate::Refused]), "{dead:?}");
    Ok(())
}
