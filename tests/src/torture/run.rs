//! Runs many worlds, a few at once, and collects their verdicts.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use fastrand::Rng;

use super::checker::{Finding, Kind, Tally, Verdict};
use super::faults;
use super::history::Fault;
use super::world::{self, WorldPlan};

/// The plan of a run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The host's binary.
    pub binary: PathBuf,
    /// The seed of all randomness; each world's own seed is derived from it.
    pub seed: u64,
    /// The number of faults of each kind.
    pub faults: Vec<(Fault, u32)>,
    /// Faults per world.
    pub faults_per_world: u32,
    /// Number of concurrent worlds.
    pub worlds_at_once: usize,
    /// Where worlds with findings are kept.
    pub keep: PathBuf,
}

/// How many worlds that lost their file system are replaced.
const LOST_MAX: usize = 3;

/// The outcome of a run.
#[derive(Debug, Default)]
pub struct Report {
    /// The plan's seed.
    pub seed: u64,
    /// The sums of all worlds' numbers.
    pub tally: Tally,
    /// All findings, with the seed of their world.
    pub findings: Vec<(u64, Finding)>,
    /// Seeds of worlds whose file system did not survive the failure of its medium.
    pub lost_file_systems: Vec<u64>,
    /// Faults that this machine cannot inject, and what it lacks for them.
    pub skipped: Vec<(Fault, String)>,
    /// Worlds that could not be finished, for reasons outside the host.
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
                    let lived = live(&world);
                    let left = lock(&shared).take(&world, lived);
                    lock(&queue).extend(left);
                }
            });
        }
    });
    report.took = began.elapsed();
    report
}

/// The kinds of faults alternate, so that different kinds run at the same time.
fn worlds(plan: &Plan, skipped: &mut Vec<(Fault, String)>) -> VecDeque<WorldPlan> {
    let mut random = Rng::with_seed(plan.seed);
    let mut left = plan.faults.clone();
    left.retain(|(fault, count)| {
        let missing = faults::available(*fault).err().filter(|_| *count > 0);
        missing.map(|why| skipped.push((*fault, why))).is_none()
    });
    let mut worlds = VecDeque::new();
    while left.iter().any(|(_, count)| *count > 0) {
        for (fault, left) in left.iter_mut().filter(|(_, left)| *left > 0) {
            let count = (*left).min(plan.faults_per_world);
            *left -= count;
            worlds.push_back(WorldPlan {
                binary: plan.binary.clone(),
                seed: random.u64(..),
                fault: *fault,
                count,
                keep: plan.keep.clone(),
            });
        }
    }
    worlds
}

/// Whether the kernel reported that the file system itself is damaged (EBADMSG and EUCLEAN of
/// ext4), or `doctor` reported what a broken medium removed from the files.
fn tells_of_medium(finding: &Finding) -> bool {
    let says = |text: &str| finding.text.contains(text);
    let is_named = says("doctor ends with") && says("are damaged");
    is_named || names_damage(&finding.text)
}

/// Whether a text contains the error of a damaged file system: EBADMSG or EUCLEAN.
fn names_damage(text: &str) -> bool {
    text.contains("(os error 74)") || text.contains("(os error 117)")
}

/// Removes the findings that only the medium is to blame for, and returns whether it lost anything.
/// No program can recover blocks that a medium loses after it reported them durable: where the
/// damage is reported, missing messages are not findings. Neither is a removed key that is back
/// because the renaming of a compacted segment was lost, if `doctor` names the old segment's
/// messages. Everything else remains a finding.
fn excuse_medium(verdict: &mut Verdict) -> bool {
    let is_lost = verdict.tally.mediums_broken > 0 && verdict.findings.iter().any(tells_of_medium);
    if is_lost {
        let uncompacted: Vec<Range<u64>> = verdict.findings.iter().flat_map(uncompacted).collect();
        let is_named = |finding: &Finding| {
            let older = finding.text.rsplit_once("which is at ");
            let older = older.and_then(|(_, offset)| offset.parse().ok());
            older.is_some_and(|older| uncompacted.iter().any(|range| range.contains(&older)))
        };
        verdict.findings.retain(|finding| match finding.kind {
            Kind::Lost | Kind::Missing | Kind::Stuck | Kind::Unexpected => false,
            Kind::Returned => !is_named(finding),
            _ => true,
        });
    }
    is_lost
}

/// The offsets that `doctor` names because a segment before the compacted point still holds
/// superseded messages.
fn uncompacted(finding: &Finding) -> Vec<Range<u64>> {
    let named = finding
        .text
        .split("in a segment that is said to be compacted (offsets ");
    let range = |text: &str| {
        let (start, rest) = text.split_once(" to ")?;
        let (end, _) = rest.split_once(" (exclusive)")?;
        Some(start.parse().ok()?..end.parse().ok()?)
    };
    named.skip(1).filter_map(range).collect()
}

/// A world that panics counts as broken and does not end the others.
fn live(world: &WorldPlan) -> Result<Verdict> {
    let lived = std::panic::catch_unwind(|| world::live(world));
    lived.unwrap_or_else(|_| Err(anyhow!("seed {}: the torture program panicked", world.seed)))
}

impl Report {
    /// Adds the outcome of a world. The remaining faults of a world that lost its file system go to
    /// a new world.
    fn take(&mut self, world: &WorldPlan, lived: Result<Verdict>) -> Option<WorldPlan> {
        let mut verdict = match lived {
            Ok(verdict) => verdict,
            // The file system is damaged so far that the world cannot be judged.
            Err(error) if world.fault == Fault::Eio && names_damage(&format!("{error:#}")) => {
                eprintln!("torture: {error:#}");
                self.lost_file_systems.push(world.seed);
                return self.instead_of(world, world.count);
            }
            Err(error) => {
                eprintln!("torture: {error:#}");
                self.broken.push(format!("{error:#}"));
                return None;
            }
        };
        let word = world.fault.word();
        let (seed, count) = (world.seed, verdict.findings_count);
        eprintln!(
            "torture: {word} {:4} faults, seed {seed}: {count} findings",
            world.count
        );
        for finding in &verdict.findings {
            eprintln!("  {finding}");
        }
        self.tally.add(&verdict.tally);
        let is_lost = excuse_medium(&mut verdict);
        if is_lost {
            self.lost_file_systems.push(seed);
        }
        let done = verdict.tally.faults.get(&world.fault).copied();
        let left = u64::from(world.count).saturating_sub(done.unwrap_or(0));
        let findings = verdict.findings.into_iter();
        self.findings
            .extend(findings.map(|finding| (seed, finding)));
        let (kills, cuts) = (self.count(Fault::Kill), self.count(Fault::Power));
        let found = self.findings.len();
        eprintln!("torture: so far {kills} kills, {cuts} power cuts, {found} findings");
        match is_lost && left > 0 {
            true => self.instead_of(world, u32::try_from(left).unwrap_or(u32::MAX)),
            false => None,
        }
    }

    /// A new world for the remaining faults of one that lost its file system, unless too many did.
    fn instead_of(&self, world: &WorldPlan, count: u32) -> Option<WorldPlan> {
        let is_due = self.lost_file_systems.len() <= LOST_MAX;
        is_due.then(|| WorldPlan {
            seed: Rng::with_seed(world.seed).u64(..),
            count,
            ..world.clone()
        })
    }

    /// Whether there are no findings and no broken worlds.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty() && self.broken.is_empty()
    }

    /// The number of injected faults of a kind.
    #[must_use]
    pub fn count(&self, fault: Fault) -> u64 {
        self.tally.faults.get(&fault).copied().unwrap_or(0)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.took.as_secs_f64();
        writeln!(f, "torture: seed {}, {seconds:.0} s", self.seed)?;
        writeln!(f, "{}", self.tally)?;
        for (fault, why) in &self.skipped {
            writeln!(f, "  {} skipped: {why}", fault.word())?;
        }
        for seed in &self.lost_file_systems {
            writeln!(
                f,
                "  seed {seed}: a broken medium took blocks with it that were durable, and that is said; what is not there is no finding"
            )?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(mediums_broken: u64) -> Verdict {
        let finding = |kind, text: &str| Finding {
            kind,
            line: 1,
            text: text.to_owned(),
        };
        let named = "doctor ends with 1: offsets 7 to 9 (exclusive) are damaged";
        Verdict {
            findings: vec![
                finding(Kind::Unexpected, named),
                finding(Kind::Lost, "offset 7"),
                finding(Kind::Twice, "input 3"),
            ],
            findings_count: 3,
            tally: Tally {
                mediums_broken,
                ..Tally::default()
            },
        }
    }

    #[test]
    fn damage_is_a_finding_where_no_medium_broke() {
        let mut verdict = verdict(0);
        assert!(!excuse_medium(&mut verdict));
        assert_eq!(verdict.findings.len(), 3);
    }

    #[test]
    fn a_broken_medium_excuses_what_is_gone_and_nothing_else() {
        let mut verdict = verdict(1);
        assert!(excuse_medium(&mut verdict));
        let kinds: Vec<Kind> = verdict.findings.iter().map(|found| found.kind).collect();
        assert_eq!(kinds, [Kind::Twice]);
    }

    #[test]
    fn a_broken_medium_excuses_a_key_that_is_back_only_where_doctor_names_its_segment() {
        let mut verdict = verdict(1);
        let named = "doctor ends with 1: 3 superseded messages stand in a segment that is said to be compacted (offsets 695 to 698 (exclusive))";
        let finding = |kind, text: &str| Finding {
            kind,
            line: 1,
            text: text.to_owned(),
        };
        verdict.findings.push(finding(Kind::Unexpected, named));
        for older in [694, 695, 697, 698] {
            let text = format!("latest/0 at 934: removed its key, which is at {older}");
            verdict.findings.push(finding(Kind::Returned, &text));
        }
        assert!(excuse_medium(&mut verdict));
        let left: Vec<&str> = verdict
            .findings
            .iter()
            .map(|found| found.text.as_str())
            .collect();
        assert_eq!(left.len(), 3, "{left:?}");
        assert!(
            left[1].ends_with("694") && left[2].ends_with("698"),
            "{left:?}"
        );
    }

    #[test]
    fn a_broken_medium_that_nobody_tells_of_excuses_nothing() {
        let mut verdict = verdict(1);
        verdict.findings.remove(0);
        assert!(!excuse_medium(&mut verdict));
        assert_eq!(verdict.findings.len(), 2);
    }

    #[test]
    fn a_world_on_a_damaged_file_system_is_replaced_if_its_medium_broke_and_is_broken_otherwise() {
        let world = |fault| WorldPlan {
            binary: PathBuf::new(),
            seed: 7,
            fault,
            count: 4,
            keep: PathBuf::new(),
        };
        let ended = || Err(anyhow!("reading failed: Bad message (os error 74)"));
        let mut report = Report::default();
        let again = report.take(&world(Fault::Eio), ended());
        assert_eq!(again.map(|again| again.count), Some(4));
        assert!(report.is_clean());
        assert!(report.take(&world(Fault::Kill), ended()).is_none());
        assert!(!report.is_clean());
    }

    #[test]
    fn what_a_lost_file_system_left_undone_is_for_another_world_and_what_a_finding_left_is_not() {
        let world = WorldPlan {
            binary: PathBuf::new(),
            seed: 7,
            fault: Fault::Eio,
            count: 4,
            keep: PathBuf::new(),
        };
        let of = |mediums_broken| {
            let mut verdict = verdict(mediums_broken);
            verdict.tally.faults.insert(Fault::Eio, 1);
            verdict
        };
        let mut report = Report::default();
        assert!(report.take(&world, Ok(of(0))).is_none());
        for _ in 0..LOST_MAX {
            let left = report.take(&world, Ok(of(1)));
            assert_eq!(
                left.map(|left| (left.count, left.fault)),
                Some((3, Fault::Eio))
            );
        }
        assert!(report.take(&world, Ok(of(1))).is_none(), "not for ever");
        assert_eq!(report.lost_file_systems.len(), LOST_MAX + 1);
    }
}
