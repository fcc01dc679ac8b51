//! The counting processor: it emits each message with its id, and its state counts the messages of
//! each key. It gets new revisions while it works, some as canaries first, and its dead letters are
//! sent again; some become dead letters again, except under a patient revision.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use guest_artifacts as guests;
use serde_json::{Value, json};

use super::clients::{Connection, KEYS, REJECTED_EVERY, RETRIED_EVERY, Shared};
use super::history::{Event, Pipeline, Seen, Trial};
use super::value::{self, Id};
use crate::Client;

pub(super) const INPUT: &str = "counted";
pub(super) const OUTPUT: &str = "counts";
pub(super) const DEAD: &str = "counted.count.dlq";
pub(super) const REDRIVE: &str = "counted.count.redrive";
pub(super) const PROCESSOR: &str = "count";
/// The header with the id of a message, whose value the component changes.
pub(super) const ID: &str = "id";
/// The number of partitions of all these topics.
pub(super) const PARTITIONS: u32 = 2;
/// Attempts that an impatient and a patient revision make.
const ATTEMPTS: [u32; 2] = [2, 5];
/// One in this many messages needs more attempts than an impatient revision makes.
const NEEDS_PATIENCE_EVERY: u64 = 13;
/// Dead letters of one listing, more than there ever are.
const LETTERS_MAX: usize = 1_000;
/// Dead letters sent again by one request.
const REDRIVEN_MAX: usize = 20;

/// A message of a producer to the counted topic.
pub(super) fn message(producer: u32, sequence: u64, padding_max: usize, random: &mut Rng) -> Value {
    let id = value::make(Id::new(producer, sequence), padding_max, random);
    let mut headers = json!({ID: id});
    if sequence.is_multiple_of(REJECTED_EVERY) {
        headers["reject"] = json!("torture");
    } else if sequence.is_multiple_of(RETRIED_EVERY) {
        headers["fail-times"] = json!("1");
    } else if sequence.is_multiple_of(NEEDS_PATIENCE_EVERY) {
        headers["fail-times"] = json!(ATTEMPTS[0].to_string());
    }
    json!({"key": format!("{producer}/{}", sequence % KEYS), "value": "-", "headers": headers})
}

pub(super) fn pipeline() -> Pipeline {
    Pipeline {
        processor: PROCESSOR.to_owned(),
        input: INPUT.to_owned(),
        output: OUTPUT.to_owned(),
        dead_letters: DEAD.to_owned(),
        keys: KEYS,
        counts: true,
        redrives: true,
    }
}

/// Deploys the processor's first revision; returns its module.
pub(super) fn set_up(client: &Client) -> Result<String> {
    for name in [INPUT, OUTPUT] {
        let topic = json!({"name": name, "partitions": PARTITIONS, "durability": "durable"});
        client.post_json("/v1/topics", &topic)?.ok()?;
    }
    let module = client.push(guests::MISCOUNT)?;
    deploy(client, &module, false, 32)?;
    Ok(module)
}

fn deploy(client: &Client, module: &str, is_patient: bool, messages_max: u32) -> Result<()> {
    let path = format!("/v1/processors/{PROCESSOR}");
    let spec = spec(module, is_patient, messages_max);
    client.put_json(&path, &spec)?.ok().map(drop)
}

fn spec(module: &str, is_patient: bool, messages_max: u32) -> Value {
    json!({
        "module": module,
        "topics": [INPUT],
        "output": OUTPUT,
        "batch": {"messages_max": messages_max, "bytes_max": 16384},
        "retry": {
            "attempts_max": ATTEMPTS[usize::from(is_patient)],
            "delay_first_ms": 5,
            "delay_max_ms": 20,
        },
        "breaker": {"enabled": false},
        // Its revisions follow so fast that none is ever proven, and the messages that they give up
        // would be held for an hour.
        "dead_letters": {"max": 1_000_000, "unproven_max": 1_000_000},
    })
}

/// Deploys another revision, chosen at random, which ends a running canary.
pub(super) fn swap(client: &Client, module: &str, random: &mut Rng) -> Result<()> {
    deploy(client, module, random.bool(), random.u32(1..40))
}

/// Starts a canary, or does something with one that may be running; notes it only if it succeeded.
fn try_out(shared: &Shared, client: &Client, module: &str, random: &mut Rng) -> Result<()> {
    let path = format!("/v1/processors/{PROCESSOR}");
    let percent = random.u32(1..100);
    let (what, answer) = match random.u8(..7) {
        0..3 => {
            let spec = spec(module, random.bool(), random.u32(1..40));
            let path = format!("{path}?canary={percent}");
            (Trial::Begun, client.put_json(&path, &spec))
        }
        3 => {
            let share = json!({"percent": percent});
            let path = format!("{path}/canary");
            (Trial::Shared, client.post_json(&path, &share))
        }
        4 | 5 => {
            let path = format!("{path}/promote");
            (Trial::Promoted, client.post_json(&path, &json!({})))
        }
        _ => {
            let none = json!({"percent": 0});
            let path = format!("{path}/canary");
            (Trial::Withdrawn, client.post_json(&path, &none))
        }
    };
    answer?.ok()?;
    shared.history.write(Event::Trial { what });
    Ok(())
}

/// Redrives all dead letters.
pub(super) fn redrive_all(client: &Client) -> Result<()> {
    redrive(client, &json!({"all": true}))
}

fn redrive(client: &Client, which: &Value) -> Result<()> {
    let path = format!("/v1/processors/{PROCESSOR}/dead-letters/redrive");
    client.post_json(&path, which)?.ok().map(drop)
}

/// Redrives some dead letters that may succeed now.
fn redrive_some(client: &Client, random: &mut Rng) -> Result<()> {
    let letters = letters(client, "&class=flaky")?;
    let some = random.usize(1..=REDRIVEN_MAX);
    let first = random.usize(..letters.len().max(1));
    let place = |letter: &Value| {
        json!({
            "topic": letter["topic"], "partition": letter["partition"], "offset": letter["offset"],
        })
    };
    let places: Vec<Value> = letters.iter().skip(first).take(some).map(place).collect();
    if places.is_empty() {
        return Ok(());
    }
    redrive(client, &json!({"dead_letters": places}))
}

/// Dead letters that were not redriven.
fn letters(client: &Client, filter: &str) -> Result<Vec<Value>> {
    let path = format!("/v1/processors/{PROCESSOR}/dead-letters?max={LETTERS_MAX}{filter}");
    let answer = client.get(&path)?.ok()?;
    let letters = answer["dead_letters"].as_array().cloned();
    letters.context("no dead_letters")
}

/// Now and then deploys a new revision, tries one as a canary, or sends dead letters again, until
/// told to stop.
pub(super) fn disturb(shared: &Shared, module: &str, seed: u64) {
    let mut random = Rng::with_seed(seed);
    let mut connection = Connection::default();
    while shared.is_producing() {
        shared.with_host(&mut connection, |client| {
            // A host that was just killed does not answer.
            let _ = match random.u8(..10) {
                _ if !shared.is_producing() => Ok(()),
                0 => swap(client, module, &mut random),
                1..6 => try_out(shared, client, module, &mut random),
                6 => redrive_all(client),
                _ => redrive_some(client, &mut random),
            };
        });
        thread::sleep(Duration::from_millis(random.u64(50..600)));
    }
}

/// Deploys a patient revision and sends all dead letters again, so that those that can succeed do.
pub(super) fn redrive_for_good(client: &Client, module: &str) -> Result<()> {
    deploy(client, module, true, 32)?;
    redrive_all(client)
}

/// Notes the counts in the state.
pub(super) fn write_state(shared: &Shared, client: &Client, last: bool) -> Result<()> {
    for partition in 0..PARTITIONS {
        let counts = counts(client, partition)?;
        shared.history.write(Event::State {
            processor: PROCESSOR.to_owned(),
            partition,
            counts,
            last,
        });
    }
    Ok(())
}

fn counts(client: &Client, partition: u32) -> Result<BTreeMap<String, i64>> {
    let path = format!("/v1/processors/{PROCESSOR}/state?partition={partition}");
    let shown = client.get(&path)?.ok()?;
    ensure!(shown["has_more"] == false, "more state than one page");
    let entries = shown["entries"].as_array().context("no entries")?;
    let count = |entry: &Value| {
        let key = entry["key"].as_str()?.to_owned();
        Some((key, entry["number"].as_str()?.parse().ok()?))
    };
    let counts: Option<_> = entries.iter().map(count).collect();
    counts.with_context(|| format!("state that is no count: {shown}"))
}

/// Notes which dead letters were not sent again.
pub(super) fn write_standing(shared: &Shared, client: &Client) -> Result<()> {
    let letters = letters(client, "")?;
    ensure!(
        letters.len() < LETTERS_MAX,
        "more dead letters than are listed"
    );
    let seen = letters.iter().map(|letter| {
        let id = letter["message"]["headers"][ID].as_str();
        let offset = letter["offset"].as_u64().unwrap_or(0);
        Seen::new(offset, id.unwrap_or_default())
    });
    shared.history.write(Event::Standing {
        processor: PROCESSOR.to_owned(),
        letters: seen.collect(),
    });
    Ok(())
}

/// Requests to a host that is about to be hit by a fault.
#[derive(Default)]
pub(super) struct Asked(Vec<thread::JoinHandle<()>>);

impl Asked {
    /// Makes a request without waiting for the answer.
    pub(super) fn ask(&mut self, ask: impl FnOnce() -> Result<()> + Send + 'static) {
        self.0.retain(|asked| !asked.is_finished());
        // Its outcome shows only by its effects.
        self.0.push(thread::spawn(move || drop(ask())));
    }

    /// Whether the last request has no answer yet.
    pub(super) fn is_open(&self) -> bool {
        self.0.last().is_some_and(|asked| !asked.is_finished())
    }

    /// Waits until all requests were answered or given up.
    pub(super) fn wait(&mut self) {
        for asked in self.0.drain(..) {
            // A thread that panicked made no request.
            let _ = asked.join();
        }
    }
}
