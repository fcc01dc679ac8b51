//! A model of bad deployments: random revisions, failures of every kind, canaries, error handlers,
//! outages, several partitions, slow and fast traffic, restarts of the host. The rules under test
//! are the host's own (breaker, gate, delivery, batcher, history); only reading and waiting are
//! left out. After each step the model checks what `docs/bad-deploys.md` promises, with its
//! numbers. It must also detect every deliberately broken rule.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use millrace_model::{
    Answer, Clock, ColumnBatch, Digest, GivenUp, ManualClock, Offset, Parked, PartitionId,
    Processor, ProcessorName, ProcessorSpec, Progress, Record, Rejections, Revision, Timestamp,
    Topic, TopicId, TopicName, TopicPartition, TopicSpec, Trial,
};
use tokio::sync::mpsc;

use crate::dispatch::answer::{Outputs, Verdict};
use crate::dispatch::batcher::{self, Batch, behind, ordering};
use crate::dispatch::breaker::{
    CANARY_TIMEOUTS_MAX, Judgement, PROVEN_AFTER, PROVEN_LEAST, PROVEN_MESSAGES, Report, Says,
};
use crate::dispatch::delivery::{self, Effects, Settling, contradictions, parked_before};
use crate::dispatch::failed::Failed;
use crate::dispatch::gate::{Alarm, Entry, Gate, NotLookedUp, Probe, Wanted};
use crate::dispatch::input::Input;
use crate::dispatch::live::{Live, OutputTopics};
use crate::dispatch::sides::{Side, side_of};
use crate::dispatch::word::Word;
use crate::ground::columns::push;
use crate::ground::planted::{Planted, is_any_broken, plant};
use crate::handler::{BatchHandler, CallError, Cause, Decision};
use crate::processors::loading::back_from;
use crate::processors::revisions::{
    Seen, forget_oldest, leave, make_void, take_down, unproven_run, voided,
};

mod changes;
mod checks;
mod running;

const PAGE: &str = include_str!("../../../../../docs/bad-deploys.md");
/// Number of sequences; `MILLRACE_SEQUENCES` overrides it.
const SEQUENCES: u64 = 100_000;
const BATCH_MESSAGES: usize = 8;
/// Steps of the final phase: enough for dozens of messages that are called alone, about twenty
/// times each.
const FINISH_STEPS: u32 = 5_000;
/// Attempts for which an error handler asks for retries.
const PATIENCE_ATTEMPTS: u32 = 15;
const KEYS: u64 = 5;

/// The number in the row of the page's table that contains `what`.
fn number(what: &str) -> u64 {
    let row = PAGE
        .lines()
        .find(|line| line.contains(what) && line.starts_with('|'));
    let cell = row.and_then(|row| row.split('|').nth(2));
    cell.and_then(|cell| cell.trim().parse().ok())
        .unwrap_or_else(|| panic!("no number for {what:?}"))
}

/// A message's nature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Good,
    /// Every revision traps on it.
    Poison,
    /// Every revision rejects it.
    Unwanted,
    /// It asks for this many retries, under any revision.
    Busy(u32),
    /// It asks for retries forever, and error handlers drop it.
    Ignored,
}

/// A revision's nature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nature {
    Well,
    /// It fails this percentage of the good messages with this cause.
    Fails(Cause, u64),
    /// It rejects all good messages with the usual class.
    Strict,
    /// It reports for every message that an outside dependency is down.
    Down,
}

/// An error handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Patience {
    /// No error handler.
    None,
    /// It drops messages of [`Kind::Ignored`].
    Drops,
    /// It also retries all other failures for a long time, whatever the policy says.
    Waits,
}

struct Nobody;

#[async_trait]
impl BatchHandler for Nobody {
    async fn process(&self, _: &Arc<ColumnBatch>) -> Result<Answer, CallError> {
        Ok(Answer::default())
    }
}

#[derive(Default)]
struct Part {
    messages: Vec<Kind>,
    progress: Progress,
    /// Number of messages to call alone, because their batch failed as a whole.
    alone: usize,
    /// The last settled message of each key.
    settled: HashMap<u64, u64>,
    ended: HashSet<u64>,
    /// A call that has not returned yet.
    flight: Option<Flight>,
}

/// A call and its result.
struct Flight {
    batch: Batch,
    live: Arc<Live>,
    breaker: Arc<Gate>,
    probe: Option<Probe>,
    failed: Vec<Failed>,
}

struct Canary {
    gate: Arc<Gate>,
    live: Arc<Live>,
    percent: u32,
}

struct World {
    rng: fastrand::Rng,
    clock: Arc<ManualClock>,
    alarms: mpsc::Receiver<Alarm>,
    sender: mpsc::Sender<Alarm>,
    processor: Processor,
    gate: Arc<Gate>,
    live: Arc<Live>,
    canary: Option<Canary>,
    natures: BTreeMap<u32, Nature>,
    parts: Vec<Part>,
    outage: bool,
    handler: Patience,
    noisy: bool,
    auto_rollback: bool,
    /// Messages given up by revisions since the last proven one.
    given_up: u64,
    /// When each revision first processed a message since it became current, and how many it has
    /// processed.
    processed: BTreeMap<u32, (Option<Timestamp>, u64)>,
    /// Revisions that ever processed a message as the current one.
    worked: BTreeSet<u32>,
    /// Revisions that were proven, ever and since they last became current.
    proven: BTreeSet<u32>,
    proven_anew: BTreeSet<u32>,
    /// Good messages that were rejected with a usual class since the revision became current.
    excused: u64,
    /// Whether an outside dependency was ever down.
    had_outage: bool,
    /// Failed attempts that counted, by partition, message and revision.
    attempts: HashMap<(usize, u64, u32), u32>,
    /// Different messages in a row that the current revision failed, and how they failed.
    row: (String, BTreeSet<(usize, u64)>),
    what: Vec<String>,
    /// No more deployments follow.
    is_over: bool,
}

fn name(text: &str) -> TopicName {
    TopicName::parse(text).expect("a name")
}

fn topic(id: u64, text: &str) -> Topic {
    let spec = TopicSpec {
        name: name(text),
        partitions: 3,
        durability: Default::default(),
        partitioner: None,
        owner: None,
        created_at: Timestamp(0),
        settings: Default::default(),
    };
    Topic {
        id: TopicId(id),
        spec,
    }
}

fn spec() -> ProcessorSpec {
    ProcessorSpec {
        topics: vec![name("in")],
        module: Digest([0; 32]),
        output: None,
        grants: millrace_model::processor::Grants::default(),
        order: Default::default(),
        batch: Default::default(),
        retry: Default::default(),
        error_handler: None,
        limits: Default::default(),
        breaker: Default::default(),
        dead_letters: Default::default(),
        auto_rollback: true,
        auto_redrive: false,
        hops_max: None,
    }
}

fn revision(number: u32, unproven_run: u32) -> Revision {
    Revision {
        number,
        spec: spec(),
        deployed_at: Timestamp(0),
        deployed_by: None,
        predecessor: None,
        trial: false,
        note: None,
        unproven_run,
        redrive_due: None,
        record: Record::default(),
    }
}

fn key_of(offset: u64) -> String {
    format!("k{}", offset % KEYS)
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let clock = Arc::new(ManualClock::at(Timestamp(1_000_000_000)));
        let (sender, alarms) = mpsc::channel(64);
        // The first revision is proven and has shown its usual rejections.
        let mut first = revision(1, 1);
        first.record = Record {
            worked_at: Some(clock.wall()),
            proven: true,
            proven_anew: true,
            measured: 100_000,
            rejections: vec![Rejections {
                class: "usual".to_owned(),
                per_million: 30_000,
            }],
            ..Record::default()
        };
        let processor = Processor {
            name: ProcessorName::parse("p").expect("a name"),
            made_at: clock.wall(),
            current: 1,
            paused: false,
            config: Default::default(),
            revisions: vec![first],
            trial: None,
            replay: None,
            start: Vec::new(),
            resumes: Default::default(),
            changes: Vec::new(),
        };
        let live = live(&processor, 1);
        let shared: Arc<dyn Clock> = clock.clone();
        let gate = Arc::new(Gate::new(shared, sender.clone(), Arc::clone(&live)));
        let count = rng.usize(1..=3);
        let handlers = [
            Patience::None,
            Patience::None,
            Patience::Drops,
            Patience::Waits,
        ];
        let (handler, auto_rollback) = (handlers[rng.usize(..4)], rng.u8(..4) > 0);
        let noisy = rng.u8(..4) == 0;
        let world = Self {
            rng,
            clock,
            alarms,
            sender,
            processor,
            gate,
            live,
            canary: None,
            natures: BTreeMap::from([(1, Nature::Well)]),
            parts: (0..count).map(|_| Part::default()).collect(),
            outage: false,
            handler,
            noisy,
            auto_rollback,
            given_up: 0,
            processed: BTreeMap::new(),
            worked: BTreeSet::from([1]),
            proven: BTreeSet::from([1]),
            proven_anew: BTreeSet::from([1]),
            excused: 0,
            had_outage: false,
            attempts: HashMap::new(),
            row: Default::default(),
            what: Vec::new(),
            is_over: false,
        };
        world.tell_inputs();
        world
    }

    fn tell_inputs(&self) {
        let all = (0..self.parts.len() as u32).map(|partition| TopicPartition {
            topic: TopicId(1),
            partition: PartitionId(partition),
        });
        self.gate.reads(all.collect());
    }

    fn arrive(&mut self, count: usize) {
        for _ in 0..count {
            let kind = match self.rng.u32(..100) {
                0..=2 => Kind::Unwanted,
                3 => Kind::Poison,
                4..=6 => Kind::Busy(self.rng.u32(1..4)),
                7..=9 if self.handler != Patience::None => Kind::Ignored,
                // A producer sends messages that the error handler knows to drop.
                10..=69 if self.handler != Patience::None && self.noisy => Kind::Ignored,
                _ => Kind::Good,
            };
            let part = self.rng.usize(..self.parts.len());
            self.parts[part].messages.push(kind);
        }
    }

    /// The outcome of calling a revision with a message; `None` is success.
    fn outcome(&self, number: u32, part: usize, offset: u64) -> Option<(Cause, &'static str)> {
        if self.outage {
            return Some((Cause::Retry, "down"));
        }
        let tried: u32 = self
            .attempts
            .iter()
            .filter(|((p, o, _), _)| (*p, *o) == (part, offset))
            .map(|(_, count)| count)
            .sum();
        let kind = self.parts[part].messages[offset as usize];
        let nature = self.natures[&number];
        match (kind, nature) {
            (Kind::Poison, _) => Some((Cause::Trap, "trap")),
            (Kind::Unwanted, _) => Some((Cause::Reject, "usual")),
            (Kind::Busy(times), _) if tried < times => Some((Cause::Retry, "busy")),
            (Kind::Ignored, _) => Some((Cause::Retry, "ignore")),
            (Kind::Good, Nature::Strict) => Some((Cause::Reject, "usual")),
            (Kind::Good | Kind::Busy(_), Nature::Fails(cause, share)) => {
                let scattered = (offset * 2_654_435_761 + u64::from(number) * 97) >> 7;
                let class = if cause == Cause::Reject {
                    "new"
                } else {
                    cause.as_str()
                };
                (scattered % 100 < share).then_some((cause, class))
            }
            _ => None,
        }
    }

    fn now(&self) -> Timestamp {
        self.clock.wall()
    }

    /// Ends all trouble and checks that every message is settled.
    fn finish(&mut self) {
        (self.outage, self.is_over) = (false, true);
        // The final revision stays, whatever earlier ones have left to it.
        self.auto_rollback = false;
        self.end_canary();
        self.deploy_as(Nature::Well);
        let is_done = |part: &Part| {
            let parked = &part.progress.parked;
            part.progress.next.0 as usize == part.messages.len() && parked.is_empty()
        };
        for _ in 0..FINISH_STEPS {
            if self.parts.iter().all(is_done) {
                return;
            }
            if self.gate.is_open() {
                // Good messages keep coming: with only poison left, no probe could close the
                // breaker.
                let part = self.rng.usize(..self.parts.len());
                self.parts[part].messages.push(Kind::Good);
            }
            self.clock.advance(Duration::from_secs(300));
            self.step_all();
        }
        panic!("messages wait for ever");
    }

    fn run(&mut self) {
        let slow = self.rng.bool();
        for _ in 0..self.rng.usize(4..14) {
            match self.rng.u32(..20) {
                0..=6 => self.deploy(),
                7..=9 => self.try_canary(),
                10 => self.try_shadow(),
                11 => self.promote(),
                12 | 13 => self.start(),
                14 => {
                    self.outage = !self.outage;
                    self.had_outage = true;
                    self.what.push(format!("outage {}", self.outage));
                }
                15 => {
                    self.what.push("rollback".to_owned());
                    if let Some(back) = self.processor.way_back().map(|back| back.number) {
                        self.go_back(back);
                    }
                }
                16 => {
                    self.what.push("hours".to_owned());
                    self.clock.advance(PROVEN_AFTER * 2);
                }
                _ => {}
            }
            let messages = if self.rng.u8(..6) == 0 {
                40
            } else {
                self.rng.usize(2..14)
            };
            self.arrive(messages);
            for _ in 0..self.rng.usize(4..24) {
                let most_ms = if slow { 400_000 } else { 3_000 };
                self.clock
                    .advance(Duration::from_millis(self.rng.u64(1..most_ms)));
                self.step_all();
            }
        }
        self.finish();
    }
}

fn decision(handler: Patience, failed: &Failed, tried: u32) -> Decision {
    match failed.class.as_str() {
        "ignore" => Decision::Drop(String::new()),
        "busy" => Decision::RetryAfter(Duration::from_millis(100)),
        _ if handler == Patience::Waits && tried < PATIENCE_ATTEMPTS => {
            Decision::RetryAfter(Duration::from_secs(60))
        }
        _ => Decision::Policy,
    }
}

fn live(processor: &Processor, number: u32) -> Arc<Live> {
    let revision = processor.revision(number).expect("it is kept");
    Arc::new(Live {
        processor: processor.name.clone(),
        revision: number,
        made_at: processor.made_at,
        back: back_from(processor, number),
        voided: voided(processor),
        record: revision.record.clone(),
        unproven_run: revision.unproven_run,
        spec: revision.spec.clone(),
        module: String::new(),
        handler: Arc::new(Nobody),
        failures: None,
        outputs: OutputTopics::default(),
    })
}

/// Runs a sequence; returns the promise that it broke, if any.
fn wrong(seed: u64) -> Option<String> {
    let mut world = World::new(seed);
    let ran = catch_unwind(AssertUnwindSafe(|| world.run()));
    let why = ran.err()?;
    let text = why.downcast_ref::<String>().cloned();
    let text = text.or_else(|| why.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    Some(format!(
        "{} ({})",
        text.unwrap_or_default(),
        world.what.join(", ")
    ))
}

#[test]
fn the_numbers_of_the_page_are_those_of_the_rules() {
    let spec = spec();
    let pairs = [
        (
            "different messages in a row",
            u64::from(spec.breaker.failures_min),
        ),
        ("or this percentage", spec.breaker.failed_percent.into()),
        ("size of that window", spec.breaker.window_messages.into()),
        (
            "messages that unproven revisions may give up",
            spec.dead_letters.unproven_max.into(),
        ),
        ("processed messages after which", PROVEN_MESSAGES),
        ("or minutes after", PROVEN_AFTER.as_secs() / 60),
        ("with at least this many", PROVEN_LEAST),
        (
            "messages a canary may be wrong about",
            spec.dead_letters.unproven_max.into(),
        ),
        ("consecutive calls of a canary", CANARY_TIMEOUTS_MAX.into()),
        ("attempts of one revision", spec.retry.attempts_max.into()),
    ];
    for (what, rule) in pairs {
        assert_eq!(number(what), rule, "{what}");
    }
}

#[test]
fn no_sequence_of_deployments_and_failures_breaks_a_promise() {
    let given = std::env::var("MILLRACE_SEQUENCES").ok();
    let sequences = given.and_then(|given| given.parse().ok());
    let sequences = sequences.unwrap_or(SEQUENCES);
    for seed in 0..sequences {
        if let Some(why) = wrong(seed) {
            panic!("sequence {seed}: {why}");
        }
    }
    // Written directly, so that it is shown although the test passes.
    let _ = writeln!(std::io::stderr(), "{sequences} sequences of deployments");
}

#[test]
fn each_broken_rule_is_found_out() {
    /// Maximum number of sequences per broken rule.
    const LOOKS: u64 = 10_000;
    // Panics of planted faults are expected and not printed; other tests' panics are.
    let hook = Arc::new(std::panic::take_hook());
    let before = Arc::clone(&hook);
    std::panic::set_hook(Box::new(move |info| {
        if !is_any_broken() {
            before(info);
        }
    }));
    let rules = [
        Planted::FirstAttemptsOnly,
        Planted::DropsAreFailures,
        Planted::AttemptsAddUp,
        Planted::CanaryGivesUp,
        Planted::NoBound,
        Planted::BoundPerRevision,
        Planted::BoundPerStart,
        Planted::KnownClassExcuses,
        Planted::IdleIsProof,
        Planted::BackToTheOneBefore,
        Planted::FirstIsLast,
        Planted::OthersOvertake,
    ];
    let mut missed = Vec::new();
    for rule in rules {
        plant(Some(rule));
        let found = (0..LOOKS).find_map(|seed| wrong(seed).map(|why| (seed, why)));
        plant(None);
        match found {
            Some((seed, why)) => println!("{rule:?}: sequence {seed}: {why}"),
            None => missed.push(rule),
        }
    }
    std::panic::set_hook(Box::new(move |info| hook(info)));
    assert_eq!(missed, [], "not found out");
}
