//! Torture of several hosts on one store: the same clients, history and checker as for one host. Clients send each request to any of the hosts;
//! faults hit hosts, the store, and the connections between them.

mod forwarder;
mod jetstream;
mod members;
mod postgres;
mod silence;
mod store;
mod world;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use fastrand::Rng;

pub use self::store::StoreKind;
use self::world::{Lived, WorldPlan};
use super::checker::{Finding, Tally};
use super::history::Fault;

/// The plan of a run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The host's binary.
    pub binary: PathBuf,
    /// What the hosts share.
    pub store: StoreKind,
    /// Hosts of a world.
    pub hosts: usize,
    /// The seed of all randomness; each world's own seed is derived from it.
    pub seed: u64,
    /// The number of faults of each kind.
    pub faults: Vec<(Fault, u32)>,
    /// Faults per world.
    pub faults_per_world: usize,
    /// Number of concurrent worlds.
    pub worlds_at_once: usize,
    /// Where worlds with findings are kept.
    pub keep: PathBuf,
}

/// How often each fault comes in a mixture. The rare ones take long.
const MIXTURE: [(Fault, u32); 15] = [
    (Fault::HostKill, 8),
    (Fault::HostStop, 1),
    (Fault::HostRestart, 4),
    (Fault::HostClock, 2),
    (Fault::Cut, 6),
    (Fault::Stall, 3),
    (Fault::StoreKill, 6),
    (Fault::Terminate, 12),
    (Fault::Evict, 5),
    (Fault::Promote, 3),
    (Fault::StoreFull, 2),
    (Fault::ServerKill, 8),
    (Fault::LeaderKill, 6),
    (Fault::ServerStop, 4),
    (Fault::StepDown, 8),
];

/// At least so many faults of these kinds, each kind at least once.
#[must_use]
pub fn mixture(total: u32, of: &[Fault]) -> Vec<(Fault, u32)> {
    let kinds = MIXTURE.into_iter().filter(|(fault, _)| of.contains(fault));
    let kinds: Vec<(Fault, u32)> = kinds.collect();
    let sum: u32 = kinds.iter().map(|(_, weight)| weight).sum();
    let share = |(fault, weight): &(Fault, u32)| (*fault, (total * weight).div_ceil(sum.max(1)));
    kinds.iter().map(share).collect()
}

/// The outcome of a run.
#[derive(Debug, Default)]
pub struct Report {
    /// The plan's seed.
    pub seed: u64,
    /// The sums of all worlds' numbers.
    pub tally: Tally,
    /// All findings, with the seed of their world.
    pub findings: Vec<(u64, Finding)>,
    /// How long the longest silence of a partition was, for each fault of a kind.
    pub silences: BTreeMap<Fault, Vec<Duration>>,
    /// Faults that this machine cannot inject, and what it lacks for them.
    pub skipped: Vec<(Fault, String)>,
    /// Worlds that could not be finished, for reasons outside the hosts.
    pub broken: Vec<String>,
    /// The duration of the run.
    pub took: Duration,
}

/// Carries out a plan.
pub fn run(plan: &Plan) -> Report {
    let began = Instant::now();
    let mut report = Report {
        seed: plan.seed,
        ..Report::default()
    };
    let queue = Mutex::new(worlds(plan, &mut report.skipped));
    let shared = Mutex::new(&mut report);
    thread::scope(|scope| {
        for _ in 0..plan.worlds_at_once.max(1) {
            scope.spawn(|| {
                loop {
                    // The lock must not be held while a world runs.
                    let next = lock(&queue).pop_front();
                    let Some(world) = next else { return };
                    // A world that panics counts as broken and does not end the others.
                    let lived = std::panic::catch_unwind(|| world::live(&world));
                    let panicked = anyhow!("seed {}: the torture program panicked", world.seed);
                    lock(&shared).take(&world, lived.unwrap_or(Err(panicked)));
                }
            });
        }
    });
    report.took = began.elapsed();
    report
}

/// All faults in a random order, as many to a world as the plan says. A disk is filled only where there is no second server: what happens to
/// it is not the hosts' concern.
fn worlds(plan: &Plan, skipped: &mut Vec<(Fault, String)>) -> VecDeque<WorldPlan> {
    let mut random = Rng::with_seed(plan.seed);
    let (mut all, mut promoted) = (Vec::new(), Vec::new());
    for (fault, count) in plan.faults.iter().filter(|(_, count)| *count > 0) {
        if let Some(why) = missing(plan, *fault) {
            skipped.push((*fault, why));
            continue;
        }
        let into = match fault {
            Fault::Promote => &mut promoted,
            _ => &mut all,
        };
        into.extend(std::iter::repeat_n(*fault, *count as usize));
    }
    if all.is_empty() && promoted.is_empty() {
        return VecDeque::new();
    }
    random.shuffle(&mut all);
    let count = (all.len() + promoted.len()).div_ceil(plan.faults_per_world.max(1));
    // Every second world has a standby, as long as there is something to promote.
    let mut worlds: Vec<Vec<Fault>> = vec![Vec::new(); count.max(1)];
    let standby: Vec<usize> = (0..worlds.len()).step_by(2).collect();
    for (number, fault) in promoted.into_iter().enumerate() {
        worlds[standby[number % standby.len()]].push(fault);
    }
    let has_standby = |faults: &Vec<Fault>| faults.contains(&Fault::Promote);
    for fault in all {
        let may_be = |faults: &&mut Vec<Fault>| fault != Fault::StoreFull || !has_standby(faults);
        let fewest = worlds
            .iter_mut()
            .filter(may_be)
            .min_by_key(|faults| faults.len());
        match fewest {
            Some(faults) => faults.push(fault),
            None => worlds.push(vec![fault]),
        }
    }
    let worlds = worlds.into_iter().map(|mut faults| {
        random.shuffle(&mut faults);
        WorldPlan {
            binary: plan.binary.clone(),
            store: plan.store,
            hosts: plan.hosts,
            seed: random.u64(..),
            faults,
            keep: plan.keep.clone(),
        }
    });
    worlds.collect()
}

fn missing(plan: &Plan, fault: Fault) -> Option<String> {
    match fault {
        Fault::HostClock => members::clocks()
            .is_none()
            .then(|| "needs libfaketime".to_owned()),
        fault => plan.store.missing(fault),
    }
}

impl Report {
    fn take(&mut self, world: &WorldPlan, lived: anyhow::Result<Lived>) {
        let Lived { verdict, silences } = match lived {
            Ok(lived) => lived,
            Err(error) => {
                eprintln!("torture: {error:#}");
                self.broken.push(format!("{error:#}"));
                return;
            }
        };
        let (seed, count) = (world.seed, world.faults.len());
        let found = verdict.findings_count;
        eprintln!("torture: {count} faults, seed {seed}: {found} findings");
        for finding in &verdict.findings {
            eprintln!("  {finding}");
        }
        self.tally.add(&verdict.tally);
        for (fault, silence) in silences {
            self.silences.entry(fault).or_default().push(silence);
        }
        let findings = verdict.findings.into_iter();
        self.findings
            .extend(findings.map(|finding| (seed, finding)));
    }

    /// Whether there are no findings and no broken worlds.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty() && self.broken.is_empty()
    }

    /// The number of injected faults.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.tally.faults.values().sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.took.as_secs_f64();
        let faults = self.faults();
        writeln!(
            f,
            "torture of several hosts: seed {}, {faults} faults, {seconds:.0} s",
            self.seed
        )?;
        writeln!(f, "{}", self.tally)?;
        for (fault, silences) in &self.silences {
            let mut sorted = silences.clone();
            sorted.sort_unstable();
            let (middle, longest) = (sorted[sorted.len() / 2], sorted[sorted.len() - 1]);
            writeln!(
                f,
                "  {} {}: the longest silence of a partition was {:.1} s, in half of them at most {:.1} s",
                sorted.len(),
                fault.word(),
                longest.as_secs_f64(),
                middle.as_secs_f64()
            )?;
        }
        for (fault, why) in &self.skipped {
            writeln!(f, "  {} skipped: {why}", fault.word())?;
        }
        for (seed, finding) in &self.findings {
            writeln!(f, "  seed {seed}: {finding}")?;
        }
        for broken in &self.broken {
            writeln!(f, "  broken: {broken}")?;
        }
        let broken = self.broken.len();
        write!(
            f,
            "  {} findings, {broken} worlds broken",
            self.findings.len()
        )
    }
}

fn lock<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
