//! A world in this process: the engine on a simulated disk, producers, a processor and a reader,
//! and power cuts by seed. They note the same events as the torture program's clients, and the same
//! checker judges them.

use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use millrace_engine::state::{KeyColumns, StateAttempt, StateQuery, StateWrite, WriteColumns};
use millrace_engine::{
    Append, CommitError, Engine, Lease, ProgressWrite, ReadError, RequestMark, Transaction,
};
use millrace_local::{LocalEngine, LocalOptions, OpenError};
use millrace_log::Disk;
use millrace_log::sim::SimDisk;
use millrace_model::{
    BatchBuilder, Durability, GroupName, Header, Message, Offset, PartitionId, ProcessorName,
    Progress, RecordBatch, SystemClock, Timestamp, Topic, TopicId, TopicName, TopicPartition,
    TopicSettings, TopicSpec,
};
use millrace_tests::torture::checker::{Checker, Verdict};
use millrace_tests::torture::history::{
    Ages, Event, Fault, Pipeline, Rules, Seen, TopicRule, removes_key,
};
use millrace_tests::torture::value::{self, Id};

use crate::bent_disk::{BentDisk, DiskBug};
use crate::bent_engine::{BentEngine, EngineBug};
use millrace_engine::hooked::Hooked;

const PARTITIONS: u32 = 2;
/// Power cuts per world.
const CUTS: u32 = 4;
/// Maximum disk operations between two cuts.
const OPERATIONS_MAX: u64 = 900;
/// Requests that a producer sends after the last cut.
const LAST_REQUESTS: u32 = 10;
const PADDING_BYTES_MAX: usize = 200;
/// Maximum number of messages that the processor takes at once.
const TAKEN_MAX: usize = 8;
const DEAD_EVERY: u64 = 7;
const READ_BYTES: usize = 4_000;
/// How often an idle processor looks for input before it counts as stuck.
const LOOKS_MAX: u32 = 300;

/// The planted bugs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bugs {
    pub(crate) disk: Option<DiskBug>,
    pub(crate) engine: Option<EngineBug>,
}

/// Runs a world and judges it.
pub(crate) fn live(seed: u64, bugs: Bugs) -> Verdict {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .expect("a runtime");
    let world = World::new(seed, bugs);
    runtime.block_on(world.live());
    let mut checker = Checker::default();
    for event in world.history.into_inner().expect("no client panicked") {
        checker.observe(&event);
    }
    checker.finish()
}

struct World {
    bugs: Bugs,
    disk: SimDisk,
    dir: tempfile::TempDir,
    /// How long the compacted topic keeps a message that removes its key.
    tombstone_ms: u64,
    history: Mutex<Vec<Event>>,
    random: Mutex<Rng>,
}

/// An engine, its topics, and whether this is the last life.
struct Life {
    engine: Arc<dyn Engine>,
    topics: [Topic; TOPICS],
    last: bool,
    /// The number of producers that still have something to send.
    producing: AtomicU32,
}

const TOPICS: usize = 6;
const NAMES: [&str; TOPICS] = ["safe", "quick", "out", "dead", "aging", "latest"];
/// This topic is sometimes trimmed, and its producer's requests have a key.
const AGING: usize = 4;
/// This topic is compacted.
const LATEST: usize = 5;
/// Keys of the producer to the compacted topic.
const KEYS: u64 = 5;
/// The seeds alternate between them. With the short one the engine compacts everything at once, so
/// that nothing is left that could come back; with the long one, the messages that a removal hides
/// are still there at the end.
const TOMBSTONE_MS: [u64; 2] = [3, 60_000];
/// One in this many messages of a key removes it.
const REMOVES_EVERY: u64 = 3;
/// The header that stands in for the value of a message without one.
const ID: &str = "id";

/// A producer's position in its own sequence, and the request that it sends again.
#[derive(Default)]
struct Producer {
    next: u64,
    again: Option<(u64, Vec<(u32, String)>)>,
}

impl World {
    fn new(seed: u64, bugs: Bugs) -> Self {
        let world = Self {
            bugs,
            disk: SimDisk::default(),
            dir: tempfile::tempdir().expect("a directory"),
            tombstone_ms: TOMBSTONE_MS[seed as usize % TOMBSTONE_MS.len()],
            history: Mutex::default(),
            random: Mutex::new(Rng::with_seed(seed)),
        };
        world.write(Event::Rules(rules(seed)));
        world
    }

    fn write(&self, event: Event) {
        self.history.lock().expect("no client panicked").push(event);
    }

    fn random(&self) -> Rng {
        self.random.lock().expect("no client panicked").fork()
    }

    async fn live(&self) {
        let mut random = self.random();
        let mut producers: [Producer; 5] = Default::default();
        for cut in 0..=CUTS {
            let opened = self.open(cut).await;
            let life = match opened {
                Ok(engine) => Life {
                    topics: topics(&*engine, self.tombstone_ms).await,
                    engine,
                    last: cut == CUTS,
                    producing: AtomicU32::new(producers.len() as u32),
                },
                Err(error) => {
                    let why = error.to_string();
                    return self.write(Event::NotStarted { why });
                }
            };
            if cut > 0 {
                self.write_ends(&life, true);
                self.write_state(&life, false).await;
                self.write(Event::Started { after_ms: 0 });
            }
            if !life.last {
                self.disk.cut_power_after(random.u64(1..OPERATIONS_MAX));
            }
            let [a, b, c, d, e] = &mut producers;
            tokio::join!(
                self.produce(&life, 0, 0, a),
                self.produce(&life, 1, 0, b),
                self.produce(&life, 2, 1, c),
                self.produce(&life, 3, AGING, d),
                self.produce(&life, 4, LATEST, e),
                self.trim(&life),
                self.process(&life, 0),
                self.process(&life, 1),
                self.read(&life),
            );
            if life.last {
                self.write_ends(&life, false);
                self.read_all(&life).await;
                self.write_state(&life, true).await;
                return;
            }
            drop(life);
            let how = format!("cut {cut}");
            let kind = Fault::Power;
            let forgets = true;
            self.write(Event::Fault { kind, how, forgets });
            self.disk.cut_power();
            self.disk.restore_power(random.u64(..));
        }
    }

    async fn open(&self, life: u32) -> Result<Arc<dyn Engine>, OpenError> {
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        let disk = match self.bugs.disk {
            // The first start finds no earlier data.
            Some(bug) if life > 0 || matches!(bug, DiskBug::NoSync | DiskBug::NoDirectorySync) => {
                Arc::new(BentDisk { inner: disk, bug })
            }
            _ => disk,
        };
        let engine = open(disk, self.dir.path()).await?;
        Ok(match self.bugs.engine {
            None => engine,
            Some(bug) => Arc::new(Hooked(Arc::new(BentEngine {
                inner: engine,
                bug,
                calls: AtomicU64::new(0),
            }))),
        })
    }

    /// Sends until the power fails; in the last life, a few more requests.
    async fn produce(&self, life: &Life, producer: u32, topic: usize, state: &mut Producer) {
        self.send_all(life, producer, topic, state).await;
        life.producing.fetch_sub(1, Ordering::Release);
    }

    async fn send_all(&self, life: &Life, producer: u32, topic: usize, state: &mut Producer) {
        let mut random = self.random();
        let mut left = LAST_REQUESTS;
        while left > 0 {
            left -= u32::from(life.last);
            let (first, messages) = state.again.take().unwrap_or_else(|| {
                let first = state.next;
                state.next += random.u64(1..=3);
                let message = |sequence| {
                    let id = Id::new(producer, sequence);
                    let value = value::make(id, PADDING_BYTES_MAX, &mut random);
                    (random.u32(..PARTITIONS), value)
                };
                (first, (first..state.next).map(message).collect())
            });
            if !self.send(life, producer, topic, first, &messages).await {
                state.again = random.bool().then_some((first, messages));
                return;
            }
            if topic == AGING && random.u8(..4) == 0 {
                state.again = Some((first, messages));
            }
        }
    }

    /// Sends one request; false if the power has failed.
    async fn send(
        &self,
        life: &Life,
        producer: u32,
        topic: usize,
        first: u64,
        messages: &[(u32, String)],
    ) -> bool {
        let count = u32::try_from(messages.len()).expect("a few");
        self.write(Event::Invoke {
            producer,
            first,
            count,
            topic: NAMES[topic].to_owned(),
            once: topic == AGING,
        });
        let appends = messages.iter().map(|(partition, value)| {
            let partition = at(&life.topics[topic], *partition);
            let batch = match value::parse(value) {
                Some(id) if topic == LATEST => {
                    let removes = removes_key(id.sequence, KEYS, REMOVES_EVERY);
                    batch_of(value, Some(id.sequence % KEYS), removes)
                }
                _ => batch(value),
            };
            Append { partition, batch }
        });
        let transaction = Transaction {
            request: (topic == AGING).then(|| mark(life.topics[topic].id, first)),
            ..Transaction::produce(appends.collect())
        };
        let (event, goes_on) = match life.engine.commit(transaction).await {
            Ok(receipt) => {
                let offsets = receipt.base_offsets.iter().map(|offset| offset.0);
                let placed = messages.iter().map(|(partition, _)| *partition);
                let placed = placed.zip(offsets).collect();
                let ok = Event::Ok {
                    producer,
                    first,
                    placed,
                };
                (ok, true)
            }
            Err(CommitError::DiskFull) => {
                let why = "full".to_owned();
                let fail = Event::Fail {
                    producer,
                    first,
                    why,
                };
                (fail, true)
            }
            Err(error) => {
                let why = error.to_string();
                let info = Event::Info {
                    producer,
                    first,
                    why,
                };
                (info, false)
            }
        };
        self.write(event);
        goes_on
    }

    /// Now and then trims a part of the messages, until the power fails.
    async fn trim(&self, life: &Life) {
        let mut random = self.random();
        for _ in 0..6 {
            tokio::time::sleep(Duration::from_micros(random.u64(..3_000))).await;
            let partition = random.u32(..PARTITIONS);
            let place = at(&life.topics[AGING], partition);
            let Ok(ends) = life.engine.ends(place) else {
                return;
            };
            let before =
                random.u64(ends.start.0..=ends.start.0.midpoint(ends.end.0).max(ends.start.0));
            let topic = || NAMES[AGING].to_owned();
            self.write(Event::Trim {
                topic: topic(),
                partition,
                before,
            });
            let Ok(start) = life.engine.trim(place, Offset(before)).await else {
                return;
            };
            self.write(Event::Trimmed {
                topic: topic(),
                partition,
                start: start.0,
            });
        }
    }

    /// Turns inputs into outputs and dead letters until the power fails or, in the last life, until
    /// all are processed.
    async fn process(&self, life: &Life, partition: u32) {
        let input = at(&life.topics[0], partition);
        let Ok(claimed) = life.engine.claim(&worker(), input).await else {
            return;
        };
        let lease = claimed.lease;
        let Ok(progress) = life.engine.progress(&worker(), input).await else {
            return;
        };
        let mut next = progress.unwrap_or_default().next;
        self.write_progress(partition, next);
        let mut idle_looks = 0;
        loop {
            let taken = match read_from(&*life.engine, input, next, TAKEN_MAX).await {
                Ok(taken) => taken,
                Err(_) if life.last => Vec::new(),
                Err(_) => return,
            };
            let Some((last, _)) = taken.last() else {
                idle_looks += 1;
                let through = self.is_through(life, input).await;
                if life.last && (through || idle_looks > LOOKS_MAX) || self.disk.is_off() {
                    self.write_drained(life, partition, through);
                    return;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            };
            let after = last.next();
            let done = self.commit(life, &lease, partition, &taken, after).await;
            if !done {
                return;
            }
            next = after;
            self.write_progress(partition, next);
        }
    }

    async fn commit(
        &self,
        life: &Life,
        lease: &Lease,
        partition: u32,
        taken: &[(Offset, String)],
        next: Offset,
    ) -> bool {
        let appends = taken.iter().map(|(_, text)| {
            let topic = &life.topics[if is_dead(text) { 3 } else { 2 }];
            Append {
                partition: at(topic, partition),
                batch: batch(text),
            }
        });
        let progress = Progress {
            next,
            ..Progress::default()
        };
        let transaction = Transaction {
            appends: appends.collect(),
            state: count(&*life.engine, lease, taken).await,
            progress: vec![ProgressWrite {
                partition: lease.partition,
                lease: lease.clone(),
                progress: progress.into(),
            }],
            ..Transaction::default()
        };
        life.engine.commit(transaction).await.is_ok()
    }

    /// Whether the stored progress has reached the end, and no producer is left that may extend it.
    async fn is_through(&self, life: &Life, input: TopicPartition) -> bool {
        let nobody_sends = life.producing.load(Ordering::Acquire) == 0;
        let progress = life.engine.progress(&worker(), input).await;
        let next = progress.ok().flatten().unwrap_or_default().next;
        nobody_sends && life.engine.ends(input).is_ok_and(|ends| ends.end <= next)
    }

    fn write_drained(&self, life: &Life, partition: u32, through: bool) {
        if life.last && !through {
            let why = format!("partition {partition} does not get through");
            self.write(Event::NotDrained { why });
        }
    }

    fn write_progress(&self, partition: u32, next: Offset) {
        self.write(Event::Progress {
            host: String::new(),
            processor: "worker".to_owned(),
            topic: NAMES[0].to_owned(),
            partition,
            next: next.0,
        });
    }

    /// Notes the counts in the processor's state.
    async fn write_state(&self, life: &Life, last: bool) {
        for partition in 0..PARTITIONS {
            let all = StateQuery {
                entries_max: usize::MAX,
                bytes_max: usize::MAX,
                ..StateQuery::default()
            };
            let place = at(&life.topics[0], partition);
            let page = life.engine.read_state(&worker(), place, &all).await;
            let entries = page.expect("state is read").entries.into_iter();
            let counts = entries.map(|entry| {
                let key = String::from_utf8_lossy(&entry.key).into_owned();
                (key, entry.value.as_number().expect("a count"))
            });
            self.write(Event::State {
                processor: "worker".to_owned(),
                partition,
                counts: counts.collect(),
                last,
            });
        }
    }

    fn write_ends(&self, life: &Life, recovered: bool) {
        for topic in &life.topics {
            for partition in 0..PARTITIONS {
                let ends = life.engine.ends(at(topic, partition)).expect("it is there");
                self.write(Event::Ends {
                    topic: topic.spec.name.to_string(),
                    partition,
                    start: ends.start.0,
                    end: ends.end.0,
                    recovered,
                });
            }
        }
    }

    /// Reads at random places.
    async fn read(&self, life: &Life) {
        let mut random = self.random();
        for _ in 0..30 {
            let topic = &life.topics[random.usize(..TOPICS)];
            let partition = random.u32(..PARTITIONS);
            let ends = life.engine.ends(at(topic, partition)).unwrap_or_default();
            let from = Offset(random.u64(ends.start.min(ends.end).0..=ends.end.0));
            let found = read_from(&*life.engine, at(topic, partition), from, usize::MAX).await;
            self.write_read(topic, partition, &found.unwrap_or_default(), false);
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
    }

    async fn read_all(&self, life: &Life) {
        for topic in &life.topics {
            for partition in 0..PARTITIONS {
                let place = at(topic, partition);
                let mut found = Vec::new();
                let mut from = life.engine.ends(place).unwrap_or_default().start;
                loop {
                    match life.engine.read(place, from, READ_BYTES).await {
                        Ok(batches) if batches.is_empty() => break,
                        Ok(batches) => {
                            // Compaction may leave a batch without messages; more may follow it.
                            let more = batches.iter().flat_map(values);
                            found.extend(more.filter(|(offset, _)| *offset >= from));
                            from = batches.last().map_or(from, RecordBatch::end_offset);
                        }
                        Err(ReadError::Damaged { to, .. }) => from = to,
                        Err(_) => break,
                    }
                }
                self.write_read(topic, partition, &found, true);
            }
        }
    }

    fn write_read(&self, topic: &Topic, partition: u32, found: &[(Offset, String)], last: bool) {
        let seen = found
            .iter()
            .map(|(offset, value)| Seen::new(offset.0, value));
        self.write(Event::Read {
            topic: topic.spec.name.to_string(),
            partition,
            messages: seen.collect(),
            last,
        });
    }
}

fn is_dead(text: &str) -> bool {
    value::parse(text).is_some_and(|id| id.sequence % DEAD_EVERY == 0)
}

/// Counts in state the messages that do not become dead letters.
async fn count(engine: &dyn Engine, lease: &Lease, taken: &[(Offset, String)]) -> Vec<StateWrite> {
    let Ok(table) = engine.state(&lease.group, lease.partition).await else {
        return Vec::new();
    };
    let mut attempt = StateAttempt::new(table, Timestamp::default(), taken.len());
    let succeed = taken.iter().filter(|(_, text)| !is_dead(text));
    for id in succeed.filter_map(|(_, text)| value::parse(text)) {
        let key = format!("{}/0", id.producer);
        let keys = KeyColumns {
            data: key.as_bytes(),
            spans: &[0, key.len() as u32],
        };
        let how = WriteColumns {
            ttl_ms: &[],
            messages: &[],
        };
        attempt.add(&keys, &[], &how).expect("it is counted");
    }
    vec![StateWrite {
        group: lease.group.clone(),
        partition: lease.partition,
        lease: Some(lease.clone()),
        writes: Arc::new(attempt.into_writes()),
    }]
}

/// Opens an engine with small sizes: files roll, memory fills, checkpoints are frequent.
async fn open(disk: Arc<dyn Disk>, dir: &Path) -> Result<Arc<LocalEngine>, OpenError> {
    let options = LocalOptions {
        journal_file_bytes: 16 << 10,
        segment_bytes: 4 << 10,
        tail_bytes_max: 8 << 10,
        checkpoint_journal_bytes: 12 << 10,
        cleaning_interval: Duration::from_millis(2),
        ..LocalOptions::default()
    };
    LocalEngine::open_on(disk, dir, options, Arc::new(SystemClock::new())).await
}

/// Creates the topics, or finds them.
async fn topics(engine: &dyn Engine, tombstone_ms: u64) -> [Topic; TOPICS] {
    for name in NAMES {
        let durable = name != "quick";
        let spec = TopicSpec {
            name: TopicName::parse(name).expect("a name"),
            partitions: PARTITIONS,
            durability: match durable {
                true => Durability::Durable,
                false => Durability::Os,
            },
            partitioner: None,
            owner: None,
            created_at: Timestamp(1),
            settings: TopicSettings {
                compact: name == NAMES[LATEST],
                tombstone_ms,
                ..TopicSettings::default()
            },
        };
        if engine.topic(&spec.name).is_none() {
            let made = engine.create_topic(spec, Vec::new()).await;
            made.expect("the topic is made");
        }
    }
    NAMES.map(|name| {
        let name = TopicName::parse(name).expect("a name");
        engine.topic(&name).expect("it was made")
    })
}

fn at(topic: &Topic, partition: u32) -> TopicPartition {
    topic
        .partition(PartitionId(partition))
        .expect("a partition of it")
}

fn mark(topic: TopicId, first: u64) -> RequestMark {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&first.to_le_bytes());
    RequestMark {
        topic,
        key,
        fingerprint: key,
        note: Bytes::new(),
    }
}

fn batch(value: &str) -> RecordBatch {
    batch_of(value, None, false)
}

fn batch_of(value: &str, key: Option<u64>, removes: bool) -> RecordBatch {
    let mut builder = BatchBuilder::with_capacity(0);
    let value = Bytes::copy_from_slice(value.as_bytes());
    let id = Header {
        name: ID.into(),
        value: Some(value.clone()),
    };
    builder.push(&Message {
        key: key.map(|key| key.to_string().into()),
        value: (!removes).then_some(value),
        headers: removes.then_some(id).into_iter().collect(),
        ..Message::default()
    });
    builder.finish().expect("a batch is not empty")
}

async fn read_from(
    engine: &dyn Engine,
    place: TopicPartition,
    from: Offset,
    max: usize,
) -> Result<Vec<(Offset, String)>, ReadError> {
    let batches = engine.read(place, from, READ_BYTES).await?;
    let found = batches.iter().flat_map(values);
    Ok(found
        .filter(|(offset, _)| *offset >= from)
        .take(max)
        .collect())
}

fn values(batch: &RecordBatch) -> Vec<(Offset, String)> {
    if batch.is_control() {
        // The remains of several batches after compaction.
        return Vec::new();
    }
    let records = batch.records().expect("readable");
    let values = records.map(|record| {
        let record = record.expect("readable");
        let message = record.to_message(batch.bytes()).expect("readable");
        let id = || message.headers.first()?.value.clone();
        let value = message.value.clone().or_else(id).unwrap_or_default();
        (record.offset, String::from_utf8_lossy(&value).into_owned())
    });
    values.collect()
}

/// Whether all messages of a batch remove their key.
pub(crate) fn removes(batch: &RecordBatch) -> bool {
    let records = batch.records().ok().filter(|_| !batch.is_control());
    records.is_some_and(|mut records| records.all(|r| r.is_ok_and(|r| r.value.is_none())))
}

fn rules(seed: u64) -> Rules {
    let rule = |name: &str| TopicRule {
        name: name.to_owned(),
        durable: name != "quick",
        produced: name != "out" && name != "dead",
        ages: match name {
            "aging" => Ages::WhenTrimmed,
            "latest" => Ages::ByCompaction {
                keys: KEYS,
                removes_every: REMOVES_EVERY,
            },
            _ => Ages::Never,
        },
        delays: false,
    };
    Rules {
        seed,
        topics: NAMES.into_iter().map(rule).collect(),
        pipelines: vec![Pipeline {
            processor: "worker".to_owned(),
            input: NAMES[0].to_owned(),
            output: NAMES[2].to_owned(),
            dead_letters: NAMES[3].to_owned(),
            keys: 1,
            counts: true,
            redrives: false,
        }],
        several: false,
    }
}

/// The processor's group.
fn worker() -> GroupName {
    ProcessorName::parse("worker").expect("a name").group()
}
