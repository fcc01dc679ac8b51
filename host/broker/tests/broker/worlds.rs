//! Worlds of several hosts, by seed: hosts start, end, stand still and come back while messages are
//! produced, delayed, cancelled and sent again, revisions are deployed and operators write state.
//! In the end each message has taken effect once, messages of a key in order, the state counts them
//! correctly, and no message was given up because a host ended.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use millrace_broker::state::{StateQuery, StateWrites};
use millrace_broker::{
    BrokerLimits, CallKey, DeadLetterError, DelayedError, DelayedId, DelayedQuery, DueAt,
    NewMessage, Placed, ProcessorError, ProduceError, RedriveRequest, StateAccessError, StatePlace,
};
use millrace_engine::memory::Doubt;
use millrace_engine::{CommitError, Engine, MemoryEngine};
use millrace_model::processor::{BreakerPolicy, DeadLetterPolicy, Order};
use millrace_model::{Clock, PartitionId, ProcessorSpec, SystemClock};
use parking_lot::Mutex;

use crate::rig::{Modules, Rig, Say, message, processor, spec, text, topic};
use crate::states::{change, counting};

/// Number of worlds; `MILLRACE_WORLDS` overrides it, and `MILLRACE_WORLD` selects a single one.
const WORLDS: u64 = 1_000;
/// Worlds that run concurrently: far more than there are cores, because a world mostly waits, for hosts that seem to be dead and for retries.
const THREADS: u64 = 16;
const PARTITIONS: u32 = 3;
const STEPS: usize = 40;
/// A message that is in flight when three hosts end is given up, so fewer hosts end.
const ENDS_MAX: usize = 2;
const PATIENCE: Duration = Duration::from_secs(60);

/// What the handlers of a world remember, whichever host they run on.
#[derive(Default)]
struct Memory {
    tried: Mutex<HashSet<String>>,
    is_mended: AtomicBool,
}

impl Memory {
    /// `r…` is retried once; `d…` is rejected until the processor is repaired.
    fn say(&self, value: &str) -> Say {
        match value.as_bytes().first() {
            Some(b'r') if self.tried.lock().insert(value.to_owned()) => Say::Retry(Some(1)),
            Some(b'd') if !self.is_mended.load(Ordering::SeqCst) => Say::Reject("not yet"),
            _ => Say::Pass,
        }
    }
}

struct Host {
    rig: Rig,
    is_still: bool,
    is_cut: bool,
}

struct World {
    rng: fastrand::Rng,
    hosts: Vec<Host>,
    /// Hosts that are dead or taken for dead; what they still do must have no effect.
    gone: Vec<Rig>,
    memory: Arc<Memory>,
    ends: usize,
    /// Messages to process at once, in order, by key.
    produced: BTreeMap<String, Vec<String>>,
    /// Messages to be delivered later.
    delayed: Vec<(DelayedId, String)>,
    /// Messages with a time of delivery that had passed when they arrived.
    soon: Vec<String>,
    cancelled: HashSet<String>,
    /// Messages that may or may not have been cancelled.
    in_doubt: HashSet<String>,
    operators_writes: usize,
    operators_writes_in_doubt: usize,
    count: usize,
}

/// Whether the error comes from the host or from its connection to the store, and not from the
/// request.
fn is_passing(error: &CommitError) -> bool {
    matches!(
        error,
        CommitError::Unavailable(_) | CommitError::InDoubt(_) | CommitError::Conflict(_)
    )
}

fn limits() -> BrokerLimits {
    BrokerLimits {
        moves_after: Duration::from_millis(5),
        ..BrokerLimits::default()
    }
}

async fn host_on(engine: Arc<MemoryEngine>, modules: Arc<Modules>) -> Rig {
    Rig::beside(Arc::new(SystemClock::new()), engine, modules, limits()).await
}

/// No breaker and no bound stops anything; a message is given up only when the handler rejects it.
fn busy(module: millrace_model::Digest, messages_max: u32) -> ProcessorSpec {
    let mut spec = ProcessorSpec {
        order: Order::Key,
        ..spec(module)
    };
    spec.batch.messages_max = messages_max;
    spec.breaker = BreakerPolicy {
        enabled: false,
        ..spec.breaker
    };
    spec.dead_letters = DeadLetterPolicy {
        max: 1_000_000,
        ..spec.dead_letters
    };
    spec
}

impl World {
    async fn begin(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let engine = MemoryEngine::with_gaps(Arc::new(SystemClock::new()), rng.u64(0..4));
        let first = host_on(engine, Arc::new(Modules::default())).await;
        for name in ["in", "out"] {
            first.topic(name, PARTITIONS).await;
        }
        let memory = Arc::new(Memory::default());
        let known = Arc::clone(&memory);
        let handler = counting(move |batch, message| known.say(&text(batch.value(message))));
        let module = first.upload_handler("m", handler).await;
        first.deploy(busy(module, rng.u32(1..20))).await;
        let mut world = Self {
            rng,
            hosts: vec![Host {
                rig: first,
                is_still: false,
                is_cut: false,
            }],
            gone: Vec::new(),
            memory,
            ends: 0,
            produced: BTreeMap::new(),
            delayed: Vec::new(),
            soon: Vec::new(),
            cancelled: HashSet::new(),
            in_doubt: HashSet::new(),
            operators_writes: 0,
            operators_writes_in_doubt: 0,
            count: 0,
        };
        world.another().await;
        world
    }

    /// Starts another host beside the existing ones.
    async fn another(&mut self) {
        let first = &self.hosts[0].rig;
        let (engine, modules) = (first.engine.second_host(), Arc::clone(&first.modules));
        let rig = host_on(engine, modules).await;
        self.hosts.push(Host {
            rig,
            is_still: false,
            is_cut: false,
        });
    }

    /// A random host that can be reached.
    fn any(&mut self) -> &Rig {
        let at = self.rng.usize(0..self.hosts.len());
        &self.hosts[at].rig
    }

    async fn step(&mut self) {
        match self.rng.u32(0..22) {
            0..=6 => self.produce().await,
            7..=8 => self.delay().await,
            9 => self.cancel().await,
            10 => self.deploy().await,
            11 => self.pause().await,
            12 => self.redrive().await,
            13..=14 => self.operate().await,
            15 => self.claim().await,
            16 => self.end().await,
            17 => self.stand_still().await,
            18 => self.cut_off(),
            19 => self.doubt(),
            _ => self.pause_a_little().await,
        }
    }

    /// Sends once through any host, and again through another if the outcome is unknown.
    async fn send(&mut self, new: Vec<NewMessage>) -> Vec<Placed> {
        let key = CallKey {
            key: self.rng.u128(..).to_le_bytes(),
            fingerprint: [7; 16],
        };
        loop {
            let session = &self.any().session;
            let sent = session
                .messages()
                .produce_once(&topic("in"), new.clone(), key)
                .await;
            match sent {
                Ok(sent) => return sent.placed,
                Err(ProduceError::Commit(error)) if is_passing(&error) => {
                    self.pause_a_little().await
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    async fn pause_a_little(&mut self) {
        let pause = Duration::from_micros(self.rng.u64(0..3_000));
        tokio::time::sleep(pause).await;
        for host in &mut self.hosts {
            if std::mem::take(&mut host.is_cut) {
                host.rig.engine.cut_off(false);
            }
        }
    }

    /// Cuts a host off from the store for a while.
    fn cut_off(&mut self) {
        let at = self.rng.usize(0..self.hosts.len());
        self.hosts[at].is_cut = true;
        self.hosts[at].rig.engine.cut_off(true);
    }

    /// Hides the outcome of some commits from their host.
    fn doubt(&mut self) {
        let at = self.rng.usize(0..self.hosts.len());
        for _ in 0..self.rng.usize(1..4) {
            let doubt = [Doubt::Done, Doubt::Late, Doubt::Lost][self.rng.usize(0..3)];
            self.hosts[at].rig.engine.doubt(doubt);
        }
    }

    fn next_value(&mut self) -> (String, String) {
        self.count += 1;
        let key = format!("k{}", self.rng.u32(0..6));
        let kind = ["p", "p", "p", "r", "d"][self.rng.usize(0..5)];
        (key, format!("{kind}{}", self.count))
    }

    async fn produce(&mut self) {
        let mut new = Vec::new();
        for _ in 0..self.rng.usize(1..8) {
            let (key, value) = self.next_value();
            new.push(message(&key, &value));
            self.produced.entry(key).or_default().push(value);
        }
        self.send(new).await;
    }

    async fn delay(&mut self) {
        let (key, value) = self.next_value();
        let now = SystemClock::new().wall();
        let new = NewMessage {
            deliver_at: Some(DueAt::after(now, self.rng.u64(1..60))),
            ..message(&key, &value)
        };
        let placed = self.send(vec![new]).await;
        match placed[0] {
            Placed::Delayed(id) => self.delayed.push((id, value)),
            // It was already due.
            Placed::At { .. } => self.soon.push(value),
        }
    }

    async fn cancel(&mut self) {
        if self.delayed.is_empty() {
            return;
        }
        let at = self.rng.usize(0..self.delayed.len());
        let (id, value) = self.delayed[at].clone();
        match self
            .any()
            .session
            .messages()
            .cancel_delayed(&topic("in"), id)
            .await
        {
            Ok(()) => assert!(self.cancelled.insert(value), "cancelled twice"),
            Err(DelayedError::Unknown { .. } | DelayedError::Read(_)) => {}
            Err(DelayedError::Commit(CommitError::InDoubt(_))) => {
                self.in_doubt.insert(value);
            }
            Err(DelayedError::Commit(error)) if is_passing(&error) => {}
            Err(error) => panic!("{error}"),
        }
    }

    async fn deploy(&mut self) {
        let messages_max = self.rng.u32(1..20);
        let rig = self.any();
        let known = rig.session.processors().deployed_as(&processor("p"));
        let module = known
            .expect("it is deployed")
            .current()
            .unwrap()
            .spec
            .module;
        let name = processor("p");
        let deployed = rig
            .session
            .processors()
            .deploy(&name, busy(module, messages_max));
        match deployed.await {
            Err(ProcessorError::Commit(error)) if is_passing(&error) => {}
            deployed => drop(deployed.expect("deployed")),
        }
    }

    /// Pauses on one host and resumes on another.
    async fn pause(&mut self) {
        let paused = self.any().session.clone();
        let resumed = self.any().session.clone();
        let name = processor("p");
        // A hundredth of the time for which a pause waits for others is enough.
        let pause = tokio::spawn(async move { paused.processors().pause(&name).await.map(drop) });
        tokio::time::sleep(Duration::from_millis(1)).await;
        match pause.await.unwrap() {
            Err(ProcessorError::Commit(error)) if is_passing(&error) => {}
            paused => paused.expect("paused"),
        }
        loop {
            match resumed.processors().resume(&processor("p"), None).await {
                Err(ProcessorError::Commit(error)) if is_passing(&error) => {
                    self.pause_a_little().await;
                }
                resumed => break drop(resumed.expect("resumed")),
            }
        }
    }

    /// Redrives on two hosts at once.
    async fn redrive(&mut self) {
        let redrives = [self.any().session.clone(), self.any().session.clone()];
        let redrives = redrives.map(|session| {
            tokio::spawn(async move {
                let all = RedriveRequest {
                    again: true,
                    ..RedriveRequest::all()
                };
                session.dead_letters().redrive(&processor("p"), all).await
            })
        });
        for redrive in redrives {
            match redrive.await.unwrap() {
                Err(DeadLetterError::Commit(error)) if is_passing(&error) => {}
                Err(DeadLetterError::Fetch(_)) => {}
                sent => drop(sent.expect("sent again")),
            }
        }
    }

    fn place(&mut self) -> StatePlace {
        StatePlace {
            processor: processor("p"),
            topic: None,
            partition: PartitionId(self.rng.u32(0..PARTITIONS)),
        }
    }

    /// Writes state, as an operator, of a partition that is being processed.
    async fn operate(&mut self) {
        let place = self.place();
        let number = self.operators_writes + self.operators_writes_in_doubt;
        let key = format!("op{number}");
        let writes = StateWrites {
            changes: vec![change(&key, Some(1))],
            ..StateWrites::default()
        };
        let written = self
            .any()
            .session
            .processors()
            .write_state(&place, writes)
            .await;
        match written {
            Ok(()) => self.operators_writes += 1,
            Err(StateAccessError::Commit(CommitError::InDoubt(_))) => {
                self.operators_writes_in_doubt += 1;
            }
            Err(StateAccessError::Commit(error)) if is_passing(&error) => {}
            Err(StateAccessError::Read(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }

    /// Takes a partition from its live host, possibly in the middle of its first call.
    async fn claim(&mut self) {
        let number = PartitionId(self.rng.u32(0..PARTITIONS));
        let rig = self.any();
        let partition = rig
            .session
            .catalogue()
            .topic(&topic("in"))
            .unwrap()
            .partition(number);
        let engine = Arc::clone(&rig.engine);
        let Ok(claimed) = engine
            .claim(&processor("p").group(), partition.unwrap())
            .await
        else {
            return;
        };
        tokio::task::yield_now().await;
        while engine.release(claimed.clone()).await.is_err() {
            self.pause_a_little().await;
        }
    }

    /// Kills a host and starts another one.
    async fn end(&mut self) {
        if self.ends >= ENDS_MAX {
            return;
        }
        self.ends += 1;
        self.another().await;
        let at = self.rng.usize(0..self.hosts.len() - 1);
        let host = self.hosts.remove(at);
        host.rig.engine.die();
        self.gone.push(host.rig);
    }

    /// Makes a host be taken for dead while it keeps working.
    async fn stand_still(&mut self) {
        if let Some(still) = self.hosts.iter_mut().find(|host| host.is_still) {
            still.is_still = false;
            still.rig.engine.come_back();
            return;
        }
        if self.ends >= ENDS_MAX || self.hosts.len() < 2 {
            return;
        }
        self.ends += 1;
        let at = self.rng.usize(0..self.hosts.len());
        self.hosts[at].is_still = true;
        self.hosts[at].rig.engine.stall();
    }

    /// Everything that must be in the output.
    fn expected(&self) -> Vec<String> {
        let now = self.produced.values().flatten().cloned();
        let later = self.delayed.iter().map(|(_, value)| value.clone());
        let mut all: Vec<String> = now.chain(later).chain(self.soon.iter().cloned()).collect();
        all.retain(|value| !self.cancelled.contains(value) && !self.in_doubt.contains(value));
        all.sort();
        all
    }

    async fn finish(mut self) {
        for host in &mut self.hosts {
            if std::mem::take(&mut host.is_still) {
                host.rig.engine.come_back();
            }
        }
        self.pause_a_little().await;
        self.memory.is_mended.store(true, Ordering::SeqCst);
        let expected = self.expected();
        let began = Instant::now();
        let mut out = Vec::new();
        while began.elapsed() < PATIENCE {
            self.redrive().await;
            out = self.any().values("out").await;
            if expected.iter().all(|value| out.contains(value)) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let mut sorted = out.clone();
        sorted.sort();
        let missing: Vec<_> = expected.iter().filter(|v| !out.contains(v)).collect();
        let twice: Vec<_> = sorted
            .windows(2)
            .filter(|pair| pair[0] == pair[1])
            .collect();
        if !missing.is_empty() || !twice.is_empty() {
            let mut standing = self.standing().await;
            for Host { rig, .. } in &self.hosts {
                let query = DelayedQuery {
                    max: 100,
                    ..DelayedQuery::default()
                };
                let late = rig
                    .session
                    .messages()
                    .delayed(&topic("in"), &query)
                    .await
                    .unwrap();
                let ids = late
                    .messages
                    .iter()
                    .map(|m| (m.id.to_string(), text(m.message.value.as_deref())));
                standing.push(format!("{:?} of {}", ids.collect::<Vec<_>>(), late.total));
            }
            panic!("missing {missing:?}, twice {twice:?}: {standing:#?}");
        }
        sorted.retain(|value| expected.binary_search(value).is_err());
        let may_be = |value: &String| self.in_doubt.contains(value);
        assert!(sorted.iter().all(may_be), "nothing else: {sorted:?}");
        self.check_letters().await;
        self.check_order(&out);
        self.check_state().await;
        let query = DelayedQuery {
            max: 10,
            ..DelayedQuery::default()
        };
        let began = Instant::now();
        loop {
            let late = self
                .any()
                .session
                .messages()
                .delayed(&topic("in"), &query)
                .await;
            let total = late.expect("listed").total;
            if total == 0 {
                break;
            }
            assert!(began.elapsed() < PATIENCE, "{total} are not delivered");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        for host in self.hosts {
            host.rig.broker.stop().await;
        }
    }

    /// Each host's report on its work.
    async fn standing(&self) -> Vec<String> {
        let mut all = Vec::new();
        for Host { rig, .. } in &self.hosts {
            let status = rig.session.processors().processor(&processor("p")).await;
            let partitions = status.map(|status| status.partitions).unwrap_or_default();
            let one = |one: millrace_broker::PartitionStatus| {
                format!(
                    "{}/{} at {} of {}: {}",
                    one.topic, one.partition, one.next.0, one.end.0, one.state
                )
            };
            all.push(format!(
                "{}: {:?}",
                rig.engine.host(),
                partitions.into_iter().map(one).collect::<Vec<_>>()
            ));
        }
        all
    }

    /// Checks the order of the messages that were never given up or delayed.
    fn check_order(&self, out: &[String]) {
        let place: BTreeMap<&str, usize> = out
            .iter()
            .enumerate()
            .map(|(at, value)| (value.as_str(), at))
            .collect();
        for (key, values) in &self.produced {
            let through = values.iter().filter(|value| !value.starts_with('d'));
            let places: Vec<(usize, &String)> = through
                .map(|value| (place[value.as_str()], value))
                .collect();
            assert!(places.is_sorted(), "of {key}: {places:?}, of {out:?}");
        }
    }

    /// Checks that no message was given up because a host ended: two ends are not enough for that.
    async fn check_letters(&mut self) {
        for letter in self.any().messages("in.p.dlq").await {
            let value = text(letter.value.as_deref());
            let causes = letter.headers.iter();
            let causes: Vec<String> = causes.map(|header| text(header.value.as_deref())).collect();
            assert!(
                !causes.iter().any(|cause| cause == "host-died"),
                "{value}: {causes:?}"
            );
            assert!(value.starts_with('d'), "{value} did not fail: {causes:?}");
        }
    }

    /// Checks that each processed message added 1 to its key, and that the operators' entries are
    /// there.
    async fn check_state(&mut self) {
        let began = Instant::now();
        loop {
            let (mut sum, mut operators) = (0, 0);
            for number in 0..PARTITIONS {
                let place = StatePlace {
                    partition: PartitionId(number),
                    ..self.place()
                };
                let all = StateQuery {
                    entries_max: 1_000,
                    ..StateQuery::default()
                };
                let page = self
                    .any()
                    .session
                    .processors()
                    .state(&place, all)
                    .await
                    .expect("shown");
                for entry in page.entries {
                    let number = entry.value.as_number().unwrap_or_default();
                    match entry.key.starts_with(b"op") {
                        true => operators += 1,
                        false => sum += number as usize,
                    }
                }
            }
            let out = self.any().values("out").await.len();
            let written = self.operators_writes;
            let written = written..=written + self.operators_writes_in_doubt;
            if sum == out && written.contains(&operators) {
                return;
            }
            assert!(
                began.elapsed() < PATIENCE,
                "{sum} of {out} messages, {operators} of {written:?} operators' writes"
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

fn run(seed: u64) {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut world = World::begin(seed).await;
        for _ in 0..STEPS {
            world.step().await;
        }
        world.finish().await;
    });
    runtime.shutdown_background();
}

#[test]
fn whatever_becomes_of_hosts_each_message_takes_effect_once() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse().ok());
    if let Some(seed) = number("MILLRACE_WORLD") {
        return run(seed);
    }
    let worlds = number("MILLRACE_WORLDS").unwrap_or(WORLDS);
    let failed = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let failed = &failed;
            scope.spawn(move || {
                for seed in (0..worlds).filter(|seed| seed % THREADS == thread) {
                    if std::panic::catch_unwind(|| run(seed)).is_err() {
                        eprintln!("MILLRACE_WORLD={seed} failed");
                        failed.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
        }
    });
    assert_eq!(failed.into_inner(), 0, "of {worlds} worlds");
}
