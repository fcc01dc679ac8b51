//! The clients: producers and a reader that go on through every fault and write down what they see.
//!
//! A client holds the address while it asks and until it has written down the answer. Whoever wants to change the address waits for that, so
//! that nothing of one life of the host is written down in the next.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock, RwLockWriteGuard};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use fastrand::Rng;
use serde_json::{Value, json};

use super::history::{Event, History, Pipeline, Seen};
use super::value::{self, Id};
use crate::{Client, Message, Reply};

/// Shorter than the longest pause of a host that stands still: clients then see no answer, and what they asked may still be done.
pub(super) const TIMEOUT: Duration = Duration::from_millis(1_500);
/// Messages of one request, at most.
const REQUEST_MESSAGES_MAX: u32 = 6;
const PADDING_BYTES_MAX: usize = 400;
/// Messages of one producer with equal sequence modulo this share a key.
pub(super) const KEYS: u64 = 17;
/// Every so many messages one is rejected by the component and becomes a dead letter.
const REJECTED_EVERY: u64 = 23;
/// Every so many messages one succeeds at the second attempt only.
const RETRIED_EVERY: u64 = 19;
/// Messages that one reading asks for.
const PAGE_MESSAGES: u32 = 1_000;
/// Readings between two looks at the progress.
const PROGRESS_EVERY: u32 = 16;

/// What clients and the one who injects faults share.
pub(super) struct Shared {
    pub(super) history: History,
    target: RwLock<Option<String>>,
    producing: AtomicBool,
    reading: AtomicBool,
}

/// What a producer sends again.
struct Request {
    first: u64,
    messages: Vec<Value>,
}

/// What became of a request.
enum Outcome {
    Ok(Vec<(u32, u64)>),
    Fail(String),
    Info(String),
}

impl Shared {
    pub(super) fn new(history: History) -> Self {
        Self {
            history,
            target: RwLock::new(None),
            producing: AtomicBool::new(true),
            reading: AtomicBool::new(true),
        }
    }

    /// Waits until no client is amid anything, and keeps them out until the address is set and this is dropped.
    pub(super) fn shut(&self) -> RwLockWriteGuard<'_, Option<String>> {
        let mut target = self.target.write().unwrap_or_else(PoisonError::into_inner);
        *target = None;
        target
    }

    pub(super) fn stop_producing(&self) {
        self.producing.store(false, Ordering::Release);
    }

    pub(super) fn stop_reading(&self) {
        self.reading.store(false, Ordering::Release);
    }

    /// Lets a client ask something, if there is a host.
    fn with_host(&self, connection: &mut Connection, ask: impl FnOnce(&Client)) {
        let target = self.target.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(url) = &*target {
            ask(connection.to(url));
            return;
        }
        drop(target);
        thread::sleep(Duration::from_millis(2));
    }
}

/// One client's connections, to the host at its present address.
#[derive(Default)]
struct Connection(Option<(String, Client)>);

impl Connection {
    fn to(&mut self, url: &str) -> &Client {
        if self.0.as_ref().is_none_or(|(known, _)| known != url) {
            self.0 = Some((url.to_owned(), Client::with_timeout(url, TIMEOUT)));
        }
        let (_, client) = self.0.get_or_insert_with(|| {
            // Not reached: it was set above.
            (url.to_owned(), Client::with_timeout(url, TIMEOUT))
        });
        client
    }
}

/// Sends to a topic until told to stop.
pub(super) fn produce(shared: &Shared, producer: u32, topic: &str, seed: u64) {
    let mut random = Rng::with_seed(seed);
    let mut connection = Connection::default();
    let (mut next, mut again) = (0, None);
    while shared.producing.load(Ordering::Acquire) {
        shared.with_host(&mut connection, |client| {
            let request = again
                .take()
                .unwrap_or_else(|| make(producer, &mut next, &mut random));
            let unanswered = send(shared, client, producer, topic, &request);
            if unanswered && random.bool() {
                again = Some(request);
            }
        });
        thread::sleep(Duration::from_micros(random.u64(..4_000)));
    }
}

fn make(producer: u32, next: &mut u64, random: &mut Rng) -> Request {
    let first = *next;
    *next += u64::from(random.u32(1..=REQUEST_MESSAGES_MAX));
    let messages = (first..*next).map(|sequence| {
        let value = value::make(Id::new(producer, sequence), PADDING_BYTES_MAX, random);
        let headers = if sequence % REJECTED_EVERY == 0 {
            json!({"reject": "torture"})
        } else if sequence % RETRIED_EVERY == 0 {
            json!({"fail-times": "1"})
        } else {
            json!({})
        };
        json!({"key": format!("{producer}/{}", sequence % KEYS), "value": value, "headers": headers})
    });
    let messages = messages.collect();
    Request { first, messages }
}

/// Sends and writes down what became of it; whether nobody knows.
fn send(shared: &Shared, client: &Client, producer: u32, topic: &str, request: &Request) -> bool {
    let first = request.first;
    shared.history.write(Event::Invoke {
        producer,
        first,
        count: u32::try_from(request.messages.len()).unwrap_or(u32::MAX),
        topic: topic.to_owned(),
        once: false,
    });
    let path = format!("/v1/topics/{topic}/messages");
    let answer = client.post_json(&path, &json!({"messages": request.messages}));
    let event = match outcome(answer) {
        Outcome::Ok(placed) => Event::Ok {
            producer,
            first,
            placed,
        },
        Outcome::Fail(why) => Event::Fail {
            producer,
            first,
            why,
        },
        Outcome::Info(why) => Event::Info {
            producer,
            first,
            why,
        },
    };
    let unanswered = matches!(event, Event::Info { .. });
    shared.history.write(event);
    unanswered
}

fn outcome(answer: Result<Reply>) -> Outcome {
    let reply = match answer {
        Ok(reply) => reply,
        Err(error) if was_refused(&error) => return Outcome::Fail(error.to_string()),
        Err(error) => return Outcome::Info(error.to_string()),
    };
    if reply.status == 200 {
        return match placed(&reply) {
            Ok(placed) => Outcome::Ok(placed),
            Err(error) => Outcome::Info(error.to_string()),
        };
    }
    let code = reply.error().map(|(code, ..)| code).unwrap_or_default();
    let why = format!("{} {code}", reply.status);
    // These say that nothing was written; anything else may mean that nobody knows.
    if (400..500).contains(&reply.status) || code == "disk-full" {
        Outcome::Fail(why)
    } else {
        Outcome::Info(why)
    }
}

/// Whether the request cannot have left this machine.
fn was_refused(error: &anyhow::Error) -> bool {
    match error.downcast_ref() {
        Some(ureq::Error::Io(error)) => error.kind() == ErrorKind::ConnectionRefused,
        Some(ureq::Error::ConnectionFailed) => true,
        _ => false,
    }
}

fn placed(reply: &Reply) -> Result<Vec<(u32, u64)>> {
    let json = reply.json()?;
    let placed = json["placed"].as_array().context("no placed")?;
    let place = |one: &Value| {
        let partition = u32::try_from(one["partition"].as_u64()?).ok()?;
        Some((partition, one["offset"].as_u64()?))
    };
    let placed: Option<Vec<_>> = placed.iter().map(place).collect();
    placed.context("a place without partition or offset")
}

/// Reads every partition of the topics round and round, and the processor's progress, until told to stop.
pub(super) fn read(shared: &Shared, places: &[(String, u32)], pipelines: &[Pipeline], seed: u64) {
    let mut random = Rng::with_seed(seed);
    let mut connection = Connection::default();
    let mut positions: BTreeMap<&(String, u32), u64> = BTreeMap::new();
    let mut rounds = 0_u32;
    while shared.reading.load(Ordering::Acquire) {
        let place = &places[random.usize(..places.len())];
        let position = positions.entry(place).or_default();
        // Now and then from the start: what was once read must not change.
        if random.u16(..400) == 0 {
            *position = 0;
        }
        shared.with_host(&mut connection, |client| {
            *position = read_page(shared, client, place, *position, false).unwrap_or(0);
            rounds += 1;
            if rounds.is_multiple_of(PROGRESS_EVERY) {
                // A host that has just been killed does not answer.
                let _ = pipelines
                    .iter()
                    .try_for_each(|pipeline| look(shared, client, pipeline));
            }
        });
        thread::sleep(Duration::from_millis(random.u64(1..6)));
    }
}

/// Reads from an offset; where to read next.
fn read_page(
    shared: &Shared,
    client: &Client,
    (topic, partition): &(String, u32),
    from: u64,
    last: bool,
) -> Result<u64> {
    let path = format!(
        "/v1/topics/{topic}/partitions/{partition}/messages?from={from}&max={PAGE_MESSAGES}&max_bytes=4000000"
    );
    let page = client.get(&path)?.ok()?;
    let found: Vec<Message> = serde_json::from_value(page["messages"].clone())?;
    let messages = found
        .iter()
        .map(|message| Seen::new(message.offset, message.text()));
    let messages: Vec<Seen> = messages.collect();
    if !messages.is_empty() || last {
        shared.history.write(Event::Read {
            topic: topic.clone(),
            partition: *partition,
            messages,
            last,
        });
    }
    page["next"].as_u64().context("no next")
}

fn look(shared: &Shared, client: &Client, pipeline: &Pipeline) -> Result<()> {
    let path = format!("/v1/processors/{}", pipeline.processor);
    let status = client.get(&path)?.ok()?;
    let partitions = status["partitions"].as_array().context("no partitions")?;
    for at in partitions {
        shared.history.write(Event::Progress {
            processor: pipeline.processor.clone(),
            topic: at["topic"].as_str().unwrap_or_default().to_owned(),
            partition: u32::try_from(at["partition"].as_u64().unwrap_or(0))?,
            next: at["next"].as_u64().context("no next")?,
        });
    }
    Ok(())
}

/// Reads a partition from its start to its end, for the last time.
pub(super) fn read_last(shared: &Shared, client: &Client, place: &(String, u32)) -> Result<()> {
    let end = write_ends(shared, client, place, false)?;
    let mut from = 0;
    loop {
        let next = read_page(shared, client, place, from, true)?;
        if next >= end || next == from {
            return Ok(());
        }
        from = next;
    }
}

/// Writes down where a partition begins and ends; its end.
pub(super) fn write_ends(
    shared: &Shared,
    client: &Client,
    (topic, partition): &(String, u32),
    recovered: bool,
) -> Result<u64> {
    let described = client.get(&format!("/v1/topics/{topic}"))?.ok()?;
    let ends = described["ends"].as_array().context("no ends")?;
    let here = ends.iter().find(|end| end["partition"] == *partition);
    let here = here.with_context(|| format!("{topic} has no partition {partition}"))?;
    let (start, end) = (here["start"].as_u64(), here["end"].as_u64());
    let (start, end) = start.zip(end).context("no start or end")?;
    shared.history.write(Event::Ends {
        topic: topic.clone(),
        partition: *partition,
        start,
        end,
        recovered,
    });
    Ok(end)
}
