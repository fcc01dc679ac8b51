//! The clients: producers and a reader that go on through every fault and note what they see.
//!
//! A client holds the address from before its request until it has noted the answer. A change of
//! the address waits for that, so that nothing seen in one life of the host is noted in the next.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{PoisonError, RwLock, RwLockWriteGuard};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use serde_json::{Value, json};

use super::counting;
use super::history::{DELAYED, Event, History, Pipeline, Seen, removes_key};
use super::times;
use super::value::{self, Id};
use super::world;
use crate::{Client, Message, Reply};

/// Shorter than the longest pause of a host that stands still: clients then get no answer, and
/// their requests may still be carried out.
pub(super) const TIMEOUT: Duration = Duration::from_millis(1_500);
/// How long a fault is delayed so that a backup can end.
const COPY_PATIENCE: Duration = Duration::from_secs(30);
/// Maximum messages of one request.
const REQUEST_MESSAGES_MAX: u32 = 6;
const PADDING_BYTES_MAX: usize = 400;
/// A producer's messages of equal sequence modulo this have the same key.
pub(super) const KEYS: u64 = 17;
/// One in this many messages of a key removes it, in a compacted topic.
pub(super) const REMOVES_EVERY: u64 = 4;
/// One in this many messages is rejected by the component and becomes a dead letter.
pub(super) const REJECTED_EVERY: u64 = 23;
/// One in this many messages succeeds only at its second attempt.
pub(super) const RETRIED_EVERY: u64 = 19;
/// One in this many requests with an idempotency key is sent again although it was answered.
const AGAIN_ONE_IN: u8 = 12;
/// Maximum number of messages per read.
const PAGE_MESSAGES: u32 = 1_000;
/// Maximum pages of the last reading of a partition.
const LAST_PAGES_MAX: u32 = 10_000;
/// Readings of messages between two readings of the progress.
const PROGRESS_EVERY: u32 = 16;

/// What clients and the injection of faults share.
pub(super) struct Shared {
    pub(super) history: History,
    target: RwLock<Option<String>>,
    /// The addresses of several hosts, each of which takes any request; empty if there is only the target.
    hosts: RwLock<Vec<String>>,
    /// Clients make pauses so many times as long as on one host: several hosts and their store need the processors for themselves.
    pace: AtomicU32,
    producing: AtomicBool,
    reading: AtomicBool,
    /// Whether a backup is running.
    copying: AtomicBool,
}

/// A request that a producer can repeat.
struct Request {
    first: u64,
    /// When they are to be delivered; empty for at once.
    due_ms: Vec<u64>,
    messages: Vec<Value>,
}

/// What a sender knows after a request.
enum Sent {
    Taken,
    Refused,
    Unknown,
}

/// The outcome of a request.
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
            hosts: RwLock::default(),
            pace: AtomicU32::new(1),
            producing: AtomicBool::new(true),
            reading: AtomicBool::new(true),
            copying: AtomicBool::new(false),
        }
    }

    /// Waits until no client is in the middle of a request, and keeps clients out until the
    /// returned guard, which sets the address, is dropped.
    pub(super) fn shut(&self) -> RwLockWriteGuard<'_, Option<String>> {
        let mut target = self.target.write().unwrap_or_else(PoisonError::into_inner);
        *target = None;
        target
    }

    pub(super) fn stop_producing(&self) {
        self.producing.store(false, Ordering::Release);
    }

    pub(super) fn is_producing(&self) -> bool {
        self.producing.load(Ordering::Acquire)
    }

    pub(super) fn stop_reading(&self) {
        self.reading.store(false, Ordering::Release);
    }

    /// The hosts that clients go to, each request to one of them.
    pub(super) fn go_to(&self, hosts: Vec<String>) {
        *self.hosts.write().unwrap_or_else(PoisonError::into_inner) = hosts;
    }

    /// From now on clients make longer pauses.
    pub(super) fn slow_down(&self, times: u32) {
        self.pace.store(times, Ordering::Release);
    }

    fn pause(&self, on_one_host: Duration) {
        thread::sleep(on_one_host * self.pace.load(Ordering::Acquire));
    }

    /// One of several hosts.
    fn any_host(&self) -> Option<String> {
        let hosts = self.hosts.read().unwrap_or_else(PoisonError::into_inner);
        fastrand::choice(&*hosts).cloned()
    }

    /// Lets a client make a request, if there is a host.
    pub(super) fn with_host(&self, connection: &mut Connection, ask: impl FnOnce(&Client)) {
        if let Some(url) = self.any_host() {
            ask(connection.to(&url));
            return;
        }
        let target = self.target.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(url) = &*target {
            ask(connection.to(url));
            return;
        }
        drop(target);
        thread::sleep(Duration::from_millis(2));
    }

    /// As [`Shared::with_host`], for backups.
    pub(super) fn with_address(&self, copy: impl FnOnce(&str)) {
        let target = self.target.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(url) = &*target {
            self.copying.store(true, Ordering::Release);
            copy(url);
            self.copying.store(false, Ordering::Release);
        }
    }

    /// Waits for a backup that is under way, within [`COPY_PATIENCE`].
    pub(super) fn wait_for_copy(&self) {
        let began = Instant::now();
        while self.copying.load(Ordering::Acquire) && began.elapsed() < COPY_PATIENCE {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Addresses whose connections a client keeps; older ones are of hosts that have ended.
const CONNECTIONS_MAX: usize = 4;

/// A client's connections to the hosts at their present addresses.
#[derive(Default)]
pub(super) struct Connection(Vec<(String, Client)>);

impl Connection {
    pub(super) fn to(&mut self, url: &str) -> &Client {
        let known = self.0.iter().position(|(known, _)| known == url);
        let at = known.unwrap_or_else(|| {
            if self.0.len() == CONNECTIONS_MAX {
                self.0.remove(0);
            }
            self.0
                .push((url.to_owned(), Client::with_timeout(url, TIMEOUT)));
            self.0.len() - 1
        });
        &self.0[at].1
    }
}

/// A producer, and the topic that it sends to.
#[derive(Clone, Copy)]
pub(super) struct Producer {
    pub(super) number: u32,
    pub(super) topic: &'static str,
    /// Whether its requests carry an idempotency key, so that they may be sent again whatever their
    /// outcome.
    pub(super) once: bool,
}

/// Sends to a topic until told to stop.
pub(super) fn produce(shared: &Shared, producer: Producer, seed: u64) {
    let mut random = Rng::with_seed(seed);
    let mut connection = Connection::default();
    let (mut next, mut again) = (0, None);
    while shared.producing.load(Ordering::Acquire) {
        shared.with_host(&mut connection, |client| {
            let request = again
                .take()
                .unwrap_or_else(|| make(producer, &mut next, &mut random));
            let sent = send(shared, client, producer, &request);
            let sends_again = match sent {
                Sent::Unknown => random.bool(),
                Sent::Taken => producer.once && random.u8(..AGAIN_ONE_IN) == 0,
                Sent::Refused => false,
            };
            again = sends_again.then_some(request);
        });
        shared.pause(Duration::from_micros(random.u64(..4_000)));
    }
}

fn make(producer: Producer, next: &mut u64, random: &mut Rng) -> Request {
    let Producer {
        number: producer,
        topic,
        ..
    } = producer;
    let first = *next;
    *next += u64::from(random.u32(1..=REQUEST_MESSAGES_MAX));
    let mut due_ms = Vec::new();
    let messages = (first..*next).map(|sequence| {
        if topic == counting::INPUT {
            return counting::message(producer, sequence, PADDING_BYTES_MAX, random);
        }
        let value = value::make(Id::new(producer, sequence), PADDING_BYTES_MAX, random);
        let key = format!("{producer}/{}", sequence % KEYS);
        if topic == times::LATER {
            let due = times::due(random);
            due_ms.push(due);
            return json!({"key": key, "value": value, "deliver_at": due});
        }
        if topic == world::LATEST && removes_key(sequence, KEYS, REMOVES_EVERY) {
            return json!({"key": key, "value": null, "headers": {counting::ID: value}});
        }
        let headers = if sequence % REJECTED_EVERY == 0 {
            json!({"reject": "torture"})
        } else if sequence % RETRIED_EVERY == 0 {
            json!({"fail-times": "1"})
        } else {
            json!({})
        };
        json!({"key": key, "value": value, "headers": headers})
    });
    let messages = messages.collect();
    Request {
        first,
        due_ms,
        messages,
    }
}

/// Sends a request and notes its outcome.
fn send(shared: &Shared, client: &Client, producer: Producer, request: &Request) -> Sent {
    let first = request.first;
    let Producer {
        number,
        topic,
        once,
    } = producer;
    if !request.due_ms.is_empty() {
        shared.history.write(Event::Due {
            producer: number,
            first,
            due_ms: request.due_ms.clone(),
        });
    }
    shared.history.write(Event::Invoke {
        producer: number,
        first,
        count: u32::try_from(request.messages.len()).unwrap_or(u32::MAX),
        topic: topic.to_owned(),
        once,
    });
    let path = format!("/v1/topics/{topic}/messages");
    let body = json!({"messages": request.messages});
    let answer = match once {
        true => client.post_json_once(&path, &format!("{number}-{first}"), &body),
        false => client.post_json(&path, &body),
    };
    if !request.due_ms.is_empty() {
        times::write_clock(shared);
    }
    let producer = number;
    let (sent, event) = match outcome(answer) {
        Outcome::Ok(placed) => (
            Sent::Taken,
            Event::Ok {
                producer,
                first,
                placed,
            },
        ),
        Outcome::Fail(why) => (
            Sent::Refused,
            Event::Fail {
                producer,
                first,
                why,
            },
        ),
        Outcome::Info(why) => (
            Sent::Unknown,
            Event::Info {
                producer,
                first,
                why,
            },
        ),
    };
    shared.history.write(event);
    sent
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
    // These mean that nothing was written; after any other status the outcome is unknown.
    if (400..500).contains(&reply.status) || code == "disk-full" {
        Outcome::Fail(why)
    } else {
        Outcome::Info(why)
    }
}

/// Whether the request certainly never left this machine.
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
        let comes_later = one["delayed"].is_string().then_some(DELAYED);
        Some((partition, one["offset"].as_u64().or(comes_later)?))
    };
    let placed: Option<Vec<_>> = placed.iter().map(place).collect();
    placed.context("a place without partition or offset")
}

/// Reads every partition of the topics in turns, and the processor's progress, until told to stop.
pub(super) fn read(shared: &Shared, places: &[(String, u32)], pipelines: &[Pipeline], seed: u64) {
    let mut random = Rng::with_seed(seed);
    let mut connection = Connection::default();
    let mut positions: BTreeMap<&(String, u32), Option<u64>> = BTreeMap::new();
    let mut rounds = 0_u32;
    while shared.reading.load(Ordering::Acquire) {
        let place = &places[random.usize(..places.len())];
        let position = positions.entry(place).or_default();
        // Now and then from the start, since what was read once must not change.
        if random.u16(..400) == 0 {
            *position = None;
        }
        shared.with_host(&mut connection, |client| {
            // A refusal may mean that the next message was removed.
            *position = read_page(shared, client, place, *position, false).ok();
            rounds += 1;
            if rounds.is_multiple_of(PROGRESS_EVERY) {
                // A host that was just killed does not answer.
                let _ = pipelines
                    .iter()
                    .try_for_each(|pipeline| look(shared, client, pipeline))
                    .and_then(|()| times::read_ticks(shared, client, false));
            }
        });
        shared.pause(Duration::from_millis(random.u64(1..6)));
    }
}

/// Reads from an offset, or from the start; returns where to read next.
fn read_page(
    shared: &Shared,
    client: &Client,
    (topic, partition): &(String, u32),
    from: Option<u64>,
    last: bool,
) -> Result<u64> {
    let from = from.map_or_else(|| "earliest".to_owned(), |from| from.to_string());
    let path = format!(
        "/v1/topics/{topic}/partitions/{partition}/messages?from={from}&max={PAGE_MESSAGES}&max_bytes=4000000"
    );
    let page = client.get(&path)?.ok()?;
    let found: Vec<Message> = serde_json::from_value(page["messages"].clone())?;
    let messages = seen(&found);
    if topic == times::LATER {
        times::write_clock(shared);
    }
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

fn seen(messages: &[Message]) -> Vec<Seen> {
    let one = |message: &Message| Seen::new(message.offset, id_of(message));
    messages.iter().map(one).collect()
}

/// Waits for the next messages of a partition and returns the id of the last. They are noted, so
/// that they must stay like anything that was read.
pub(super) fn wait_for_next(
    shared: &Shared,
    client: &Client,
    (topic, partition): &(String, u32),
    patience: Duration,
) -> Result<Option<String>> {
    let wait_ms = patience.as_millis();
    let path =
        format!("/v1/topics/{topic}/partitions/{partition}/messages?from=latest&wait_ms={wait_ms}");
    let page = client.get(&path)?.ok()?;
    let found: Vec<Message> = serde_json::from_value(page["messages"].clone())?;
    let messages = seen(&found);
    let last = found.last().map(|message| id_of(message).to_owned());
    if last.is_some() {
        shared.history.write(Event::Read {
            topic: topic.clone(),
            partition: *partition,
            messages,
            last: false,
        });
    }
    Ok(last)
}

/// A component that changes the value keeps the header.
fn id_of(message: &Message) -> &str {
    let id = message.header(counting::ID);
    id.unwrap_or_else(|| message.text())
}

fn look(shared: &Shared, client: &Client, pipeline: &Pipeline) -> Result<()> {
    // What one host knows never goes back. What it adds up may: a host that dies takes with it what only it knew.
    let path = format!("/v1/processors/{}?hosts=this", pipeline.processor);
    let status = client.get(&path)?.ok()?;
    let partitions = status["partitions"].as_array().context("no partitions")?;
    for at in partitions {
        shared.history.write(Event::Progress {
            host: client.url().to_owned(),
            processor: pipeline.processor.clone(),
            topic: at["topic"].as_str().unwrap_or_default().to_owned(),
            partition: u32::try_from(at["partition"].as_u64().unwrap_or(0))?,
            next: at["next"].as_u64().context("no next")?,
        });
    }
    Ok(())
}

/// Reads a partition from its start to its end, for the last time, and then its start once more,
/// which may have moved meanwhile.
pub(super) fn read_last(shared: &Shared, client: &Client, place: &(String, u32)) -> Result<()> {
    let end = write_ends(shared, client, place, false)?;
    let mut from = None;
    for _ in 0..LAST_PAGES_MAX {
        match read_page(shared, client, place, from, true) {
            Ok(next) if next >= end || from == Some(next) => {
                return write_ends(shared, client, place, false).map(drop);
            }
            Ok(next) => from = Some(next),
            // The next message has been removed; any other reason is wrong.
            Err(error) if from.is_some() && error.to_string().contains("offset-not-kept") => {
                from = None;
            }
            Err(error) => {
                let what = format!("{place:?} cannot be read from {from:?}: {error:#}");
                shared.history.write(Event::Unexpected { what });
                return write_ends(shared, client, place, false).map(drop);
            }
        }
    }
    bail!("{place:?} is not read to its end in {LAST_PAGES_MAX} pages")
}

/// Now and then trims the older half of a partition's messages, until told to stop.
pub(super) fn trim(shared: &Shared, places: &[(String, u32)], seed: u64) {
    let mut random = Rng::with_seed(seed);
    let mut connection = Connection::default();
    while shared.producing.load(Ordering::Acquire) && !places.is_empty() {
        let place = &places[random.usize(..places.len())];
        shared.with_host(&mut connection, |client| {
            // A host that was just killed does not answer.
            let _ = trim_once(shared, client, place, &mut random);
        });
        thread::sleep(Duration::from_millis(random.u64(20..400)));
    }
}

fn trim_once(
    shared: &Shared,
    client: &Client,
    place: &(String, u32),
    random: &mut Rng,
) -> Result<()> {
    let (start, end) = ends(client, place)?;
    ensure!(
        start <= end,
        "{place:?} starts at {start}, after its end at {end}"
    );
    let before = random.u64(start..=start + (end - start) / 2);
    let (topic, partition) = (place.0.clone(), place.1);
    shared.history.write(Event::Trim {
        topic: topic.clone(),
        partition,
        before,
    });
    let path = format!("/v1/topics/{topic}/trim");
    let body = json!({"before": before, "partition": partition});
    let answer = client.post_json(&path, &body)?.ok()?;
    let start = answer["starts"][0]["start"].as_u64();
    let start = start.with_context(|| format!("no start in {answer}"))?;
    shared.history.write(Event::Trimmed {
        topic,
        partition,
        start,
    });
    Ok(())
}

/// Notes where a partition begins and ends; returns its end.
pub(super) fn write_ends(
    shared: &Shared,
    client: &Client,
    place: &(String, u32),
    recovered: bool,
) -> Result<u64> {
    let (start, end) = ends(client, place)?;
    let (topic, partition) = place;
    shared.history.write(Event::Ends {
        topic: topic.clone(),
        partition: *partition,
        start,
        end,
        recovered,
    });
    Ok(end)
}

fn ends(client: &Client, (topic, partition): &(String, u32)) -> Result<(u64, u64)> {
    let described = client.get(&format!("/v1/topics/{topic}"))?.ok()?;
    let ends = described["ends"].as_array().context("no ends")?;
    let here = ends.iter().find(|end| end["partition"] == *partition);
    let here = here.with_context(|| format!("{topic} has no partition {partition}"))?;
    let (start, end) = (here["start"].as_u64(), here["end"].as_u64());
    start.zip(end).context("no start or end")
}
