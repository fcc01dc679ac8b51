//! One world: a host on its own data directory, clients that never rest, and a number of faults;
//! then calm, a last reading of everything, and the checker.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use guest_artifacts as guests;
use serde_json::json;
use tempfile::TempDir;

use super::backups::Keeper;
use super::calm::Calm;
use super::checker::{self, Verdict};
use super::clients::{self, KEYS, Producer, REMOVES_EVERY, Shared};
use super::counting;
use super::disk::LoopDisk;
use super::faults;
use super::history::{Ages, Event, Fault, History, Pipeline, Rules, TopicRule};
use super::times;
use crate::{Client, Deploy, Host};

const PARTITIONS: u32 = 4;
/// Partitions of topics whose messages are removed over time.
const AGING_PARTITIONS: u32 = 2;
/// Bytes that a partition with retention keeps.
const RETENTION_BYTES: u64 = 96 << 10;
/// How long a message that removes its key is kept.
const TOMBSTONE_MS: u64 = 400;
const SAFE: &str = "safe";
pub(super) const QUICK: &str = "quick";
pub(super) const OUT: &str = "out";
const DEAD: &str = "safe.worker.dlq";
pub(super) const WORKER: &str = "worker";
/// A topic whose messages are removed by trims or, in other worlds, by retention.
pub(super) const AGING: &str = "aging";
/// A compacted topic: only the latest message of each key stays, and nothing of removed keys.
pub(super) const LATEST: &str = "latest";
pub(super) const TOPICS: [&str; 11] = [
    SAFE,
    QUICK,
    OUT,
    DEAD,
    AGING,
    LATEST,
    times::LATER,
    counting::INPUT,
    counting::OUTPUT,
    counting::DEAD,
    counting::REDRIVE,
];
pub(super) const PRODUCERS: [Producer; 8] = [
    producer(0, SAFE, false),
    producer(1, SAFE, true),
    producer(2, QUICK, false),
    producer(3, QUICK, true),
    producer(4, AGING, true),
    producer(5, LATEST, true),
    producer(6, counting::INPUT, false),
    producer(7, times::LATER, true),
];

const fn producer(number: u32, topic: &'static str, once: bool) -> Producer {
    Producer {
        number,
        topic,
        once,
    }
}

pub(super) fn partitions(topic: &str) -> u32 {
    match topic {
        AGING | LATEST => AGING_PARTITIONS,
        times::LATER => times::PARTITIONS,
        counting::INPUT | counting::OUTPUT | counting::DEAD | counting::REDRIVE => {
            counting::PARTITIONS
        }
        _ => PARTITIONS,
    }
}

/// The system's error for a disk that cannot be read.
const UNREADABLE: &str = "(os error 5)";
/// How often such a disk is mounted before the world is given up.
const MOUNTS_MAX: u32 = 3;

/// An error that ends a world early and is not the host's.
#[derive(Debug)]
struct OfTheMachine(String);

impl std::fmt::Display for OfTheMachine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for OfTheMachine {}

/// The plan for one world.
#[derive(Clone, Debug)]
pub(super) struct WorldPlan {
    pub(super) binary: PathBuf,
    pub(super) seed: u64,
    pub(super) fault: Fault,
    pub(super) count: u32,
    /// Where the files of a world with findings are kept for examination.
    pub(super) keep: PathBuf,
}

/// A running world. The host is dropped before the disk under it.
pub(super) struct World {
    pub(super) host: Host,
    pub(super) random: Rng,
    pub(super) shared: Arc<Shared>,
    pub(super) disk: Option<LoopDisk>,
    /// The group of processes with a memory limit, in a world with that fault.
    pub(super) group: Option<faults::Group>,
    pub(super) seed: u64,
    /// The module of the counting processor.
    pub(super) counter: String,
    /// The host's options.
    sizes: [String; 4],
    /// Requests made right before a fault.
    pub(super) asked: counting::Asked,
    places: Vec<(String, u32)>,
    directory: TempDir,
}

/// Runs a world and judges it. Errors are those of the machine or of this program, not of the host.
pub(super) fn live(plan: &WorldPlan) -> Result<Verdict> {
    let mut world = World::make(plan)?;
    let lived = world.live(plan);
    world.shared.history.flush()?;
    let verdict = checker::check_file(&world.directory.path().join("history.jsonl"));
    // The process must not outlive its world; usually it has ended already.
    let _ = world.host.kill();
    if lived.is_err() || !verdict.as_ref().is_ok_and(Verdict::is_clean) {
        world.keep(plan);
    }
    lived.with_context(|| format!("seed {}", plan.seed))?;
    verdict
}

impl World {
    fn make(plan: &WorldPlan) -> Result<Self> {
        let mut random = Rng::with_seed(plan.seed);
        let directory = tempfile::tempdir()?;
        let disk = faults::disk(plan.fault, &mut random)?;
        let data = match &disk {
            Some(disk) => disk.path().join("data"),
            None => directory.path().join("data"),
        };
        let sizes = sizes(&mut random);
        let options: Vec<&str> = sizes.iter().map(String::as_str).collect();
        let mut host = Host::in_directory(&plan.binary, &data, &options);
        host.log_to(&directory.path().join("host.log"));
        let history = History::create(&directory.path().join("history.jsonl"))?;
        let of_topic =
            |topic: &'static str| (0..partitions(topic)).map(move |at| (topic.to_owned(), at));
        Ok(Self {
            host,
            random,
            shared: Arc::new(Shared::new(history)),
            disk,
            group: None,
            seed: plan.seed,
            counter: String::new(),
            sizes,
            asked: counting::Asked::default(),
            places: TOPICS.into_iter().flat_map(of_topic).collect(),
            directory,
        })
    }

    fn live(&mut self, plan: &WorldPlan) -> Result<()> {
        faults::start(self, plan.fault)?;
        let trims = self.random.bool();
        let rules = rules(plan.seed, trims, false);
        self.shared.history.write(Event::Rules(rules.clone()));
        set_up(&self.host.client(), trims, false)?;
        times::set_up(&self.shared, &self.host.client())?;
        self.counter = counting::set_up(&self.host.client())?;
        let counter = self.counter.clone();
        let trimmed = |place: &&(String, u32)| trims && place.0 == AGING;
        let trimmed: Vec<_> = self.places.iter().filter(trimmed).cloned().collect();
        let shared = Arc::clone(&self.shared);
        let places = self.places.clone();
        let seed = self.random.u64(..);
        let (sizes, directory) = (self.sizes.clone(), self.directory.path().to_owned());
        let keeper = Keeper {
            shared: &shared,
            binary: &plan.binary,
            sizes: &sizes,
            directory: &directory,
            code: self.host.directory().join("code"),
            counter: &counter,
            places: &places,
            may_damage: plan.fault == Fault::Eio,
        };
        thread::scope(|scope| {
            for producer in PRODUCERS {
                let (shared, seed) = (&shared, seed ^ u64::from(producer.number));
                scope.spawn(move || clients::produce(shared, producer, seed));
            }
            scope.spawn(|| counting::disturb(&shared, &counter, seed.rotate_left(2)));
            scope.spawn(|| clients::trim(&shared, &trimmed, seed.rotate_left(1)));
            scope.spawn(|| clients::read(&shared, &places, &rules.pipelines, !seed));
            scope.spawn(|| keeper.keep(seed.rotate_left(3)));
            let lived = self.suffer(plan);
            // Also after an error, because the scope waits for its threads.
            shared.stop_producing();
            shared.stop_reading();
            lived
        })?;
        Ok(())
    }

    /// Injects the faults, then waits for calm.
    fn suffer(&mut self, plan: &WorldPlan) -> Result<()> {
        *self.shared.shut() = Some(self.host.url().to_owned());
        let mut done = 0;
        while done < plan.count {
            thread::sleep(Duration::from_millis(self.random.u64(20..350)));
            // Half of the faults may hit a backup that is under way.
            if self.random.bool() {
                self.shared.wait_for_copy();
            }
            let Some(faults) = faults::inject(self, plan.fault)? else {
                // The host does not start; the history says so.
                return Ok(());
            };
            done += faults;
        }
        self.shared.stop_producing();
        self.asked.wait();
        // Clients finish the requests that they have begun.
        *self.shared.shut() = Some(self.host.url().to_owned());
        let calm = Calm {
            shared: &self.shared,
            client: self.host.client(),
            counter: &self.counter,
            places: &self.places,
        };
        calm.drain()?;
        self.shared.stop_reading();
        drop(self.shared.shut());
        calm.read_last()?;
        self.end()
    }

    /// Stops the host in order, and has `doctor` check the files.
    fn end(&mut self) -> Result<()> {
        let stopped = self.host.stop()?;
        if !stopped.success() {
            let what = format!("asked to stop, the host ended with {stopped}");
            self.shared.history.write(Event::Unexpected { what });
        }
        let directory = self.host.directory();
        let doctor = self.host.command(&["doctor"]).arg(directory).output()?;
        if !doctor.status.success() {
            let says = String::from_utf8_lossy(&doctor.stdout);
            let what = format!("doctor ends with {}: {says}", doctor.status);
            self.shared.history.write(Event::Unexpected { what });
        }
        Ok(())
    }

    /// After the host has ended: starts it again, notes what was recovered, and lets the clients
    /// in. False if it does not start.
    pub(super) fn recover(&mut self) -> Result<bool> {
        let shared = Arc::clone(&self.shared);
        let mut target = shared.shut();
        let began = Instant::now();
        if let Err(error) = self.start_again() {
            if error.is::<OfTheMachine>() {
                return Err(error);
            }
            let log = std::fs::read_to_string(self.directory.path().join("host.log"));
            let log = log.unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(5).collect();
            let why = format!("{error:#}; its log ends with {last:?}");
            shared.history.write(Event::NotStarted { why });
            return Ok(false);
        }
        let after_ms = u64::try_from(began.elapsed().as_millis())?;
        let client = self.host.client();
        for place in &self.places {
            clients::write_ends(&shared, &client, place, true)?;
        }
        counting::write_state(&shared, &client, false)?;
        times::write_clock(&shared);
        shared.history.write(Event::Started { after_ms });
        *target = Some(self.host.url().to_owned());
        Ok(true)
    }

    /// Starts again. If the world's own disk cannot be read at first, because the machine had not
    /// released it, it is mounted again; if it still cannot be read, the machine is to blame and
    /// not the host.
    fn start_again(&mut self) -> Result<()> {
        let mut mounts = 0;
        loop {
            let log = self.directory.path().join("host.log");
            let before = std::fs::metadata(&log).map_or(0, |found| found.len());
            let Err(error) = faults::start_again(self) else {
                return Ok(());
            };
            let said = std::fs::read(&log).unwrap_or_default();
            let said = said.get(usize::try_from(before)?..).unwrap_or_default();
            let said = String::from_utf8_lossy(said);
            let Some(disk) = self.disk.as_mut().filter(|_| said.contains(UNREADABLE)) else {
                return Err(error);
            };
            // It may have ended by itself.
            let _ = self.host.kill();
            mounts += 1;
            if mounts > MOUNTS_MAX {
                let why = format!("the disk cannot be read: {said}");
                return Err(OfTheMachine(why).into());
            }
            disk.restore()?;
        }
    }

    /// Copies history, log and data to where they are kept.
    fn keep(&self, plan: &WorldPlan) {
        let to = plan.keep.join(format!("seed-{}", plan.seed));
        let copy = || -> Result<()> {
            std::fs::create_dir_all(&plan.keep)?;
            let copied = std::process::Command::new("cp")
                .arg("-r")
                .arg(self.directory.path())
                .arg(&to)
                .status()?;
            ensure!(copied.success(), "cp: {copied}");
            if self.disk.is_some() {
                let data = self.host.directory();
                let copied = std::process::Command::new("cp")
                    .arg("-r")
                    .arg(data)
                    .arg(&to)
                    .status()?;
                ensure!(copied.success(), "cp: {copied}");
            }
            Ok(())
        };
        match copy() {
            Ok(()) => eprintln!(
                "torture: history, log and data are kept in {}",
                to.display()
            ),
            Err(error) => eprintln!("torture: nothing is kept: {error:#}"),
        }
    }
}

/// Small sizes of many kinds, so that files roll, checkpoints happen and journal files are reused
/// all the time.
fn sizes(random: &mut Rng) -> [String; 4] {
    let journal = (64 << 10) << random.u32(..3);
    let segment = (8 << 10) << random.u32(..4);
    [
        format!("--journal-file-bytes={journal}"),
        format!("--segment-bytes={segment}"),
        format!("--checkpoint-journal-bytes={}", journal * random.u64(1..4)),
        format!("--cleaning-interval-ms={}", random.u64(5..200)),
    ]
}

/// `several`: hosts on one store, which may lose whatever is not durable.
pub(super) fn rules(seed: u64, trims: bool, several: bool) -> Rules {
    let aging = |name: &str, durable, produced, ages| TopicRule {
        name: name.to_owned(),
        durable,
        produced,
        ages,
        delays: name == times::LATER,
    };
    let rule = |name, durable, produced| aging(name, durable, produced, Ages::Never);
    let ages = if trims {
        Ages::WhenTrimmed
    } else {
        Ages::ByRetention
    };
    let worker = Pipeline {
        processor: WORKER.to_owned(),
        input: SAFE.to_owned(),
        output: OUT.to_owned(),
        dead_letters: DEAD.to_owned(),
        keys: KEYS,
        counts: false,
        redrives: false,
    };
    let latest = Ages::ByCompaction {
        keys: KEYS,
        removes_every: REMOVES_EVERY,
    };
    Rules {
        seed,
        topics: vec![
            rule(SAFE, true, true),
            rule(QUICK, several, true),
            rule(OUT, true, false),
            rule(DEAD, true, false),
            aging(AGING, several, true, ages),
            aging(LATEST, true, true, latest),
            rule(times::LATER, true, true),
            rule(counting::INPUT, true, true),
            rule(counting::OUTPUT, true, false),
            rule(counting::DEAD, true, false),
            rule(counting::REDRIVE, true, false),
        ],
        pipelines: vec![worker, counting::pipeline()],
        several,
    }
}

pub(super) fn set_up(client: &Client, trims: bool, several: bool) -> Result<()> {
    let relaxed = if several { "durable" } else { "os" };
    let retention = if trims {
        json!({})
    } else {
        json!({"retention_bytes": RETENTION_BYTES})
    };
    for (name, durability, settings) in [
        (SAFE, "durable", json!({})),
        (QUICK, relaxed, json!({})),
        (OUT, "durable", json!({})),
        (AGING, relaxed, retention),
        (
            LATEST,
            "durable",
            json!({"compact": true, "tombstone_ms": TOMBSTONE_MS}),
        ),
    ] {
        let topic = json!({
            "name": name, "partitions": partitions(name), "durability": durability, "settings": settings,
        });
        client.post_json("/v1/topics", &topic)?.ok()?;
    }
    let module = client.push(guests::FLAKY)?;
    client.deploy(&Deploy {
        name: WORKER,
        module: &module,
        topic: SAFE,
        output: OUT,
        more: json!({
            "batch": {"messages_max": 32, "bytes_max": 16384},
            "retry": {"attempts_max": 3, "delay_first_ms": 5, "delay_max_ms": 20},
            // One message in 23 becomes a dead letter, which may be more than a hundred per minute.
            "dead_letters": {"max": 1_000_000, "unproven_max": 1_000_000},
        }),
    })?;
    Ok(())
}
