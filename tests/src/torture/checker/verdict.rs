//! The checker's verdict.

use std::collections::BTreeMap;
use std::fmt;

use super::super::history::{Copied, Fault, Step, Trial};

/// Findings that are kept; further ones are only counted.
const FINDINGS_MAX: usize = 100;

/// The kind of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Acknowledged or read, and not there.
    Lost,
    /// There, but never sent.
    Phantom,
    /// A removed key that reads as an older value.
    Returned,
    /// Two values at one offset.
    Divergent,
    /// In another order than it was sent in.
    Reordered,
    /// There more often than sent, or than promised.
    Duplicated,
    /// Only a part of a request is there.
    Torn,
    /// Progress, a start or an end is smaller than before.
    WentBack,
    /// An input with neither output nor dead letter.
    Missing,
    /// An input with more than one output or dead letter.
    Twice,
    /// State that differs from the count of the outputs.
    Miscounted,
    /// Shown before its time.
    Early,
    /// The host does not start, or accepted messages do not get processed.
    Stuck,
    /// A fault did not have the effect that it must have.
    Unexpected,
}

/// One finding.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Its kind.
    pub kind: Kind,
    /// The line of the history that revealed it.
    pub line: u64,
    /// What is wrong, and where.
    pub text: String,
}

/// Numbers of what was done and observed.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Faults, by kind.
    pub faults: BTreeMap<Fault, u64>,
    /// Media that broke under a file system.
    pub mediums_broken: u64,
    /// Faults that were aimed at a step and met it, by step and kind.
    pub steps: BTreeMap<(Step, Fault), u64>,
    /// Dead letters that were redriven.
    pub redriven: u64,
    /// Starts after faults.
    pub starts: u64,
    /// The duration of each start in milliseconds.
    pub start_ms: Vec<u64>,
    /// Messages sent.
    pub sent: u64,
    /// Requests that were repeated because no answer came.
    pub sent_again: u64,
    /// Messages acknowledged.
    pub acknowledged: u64,
    /// Requests refused.
    pub refused: u64,
    /// Requests whose outcome is unknown.
    pub unanswered: u64,
    /// Messages read, each counted as often as it was read.
    pub read: u64,
    /// Acknowledged messages that power cuts took from a topic without durability.
    pub tail_lost: u64,
    /// Additional copies from repeated requests.
    pub duplicates: u64,
    /// Messages that retention, trims and compaction removed.
    pub removed: u64,
    /// Dead letters.
    pub dead_letters: u64,
    /// Messages that were accepted with a later time of delivery.
    pub delayed: u64,
    /// Messages that schedules created.
    pub ticks: u64,
    /// Missed times that such messages stand for.
    pub ticks_missed: u64,
    /// Events of revisions on trial.
    pub trials: BTreeMap<Trial, u64>,
    /// Backups, by result.
    pub backups: BTreeMap<Copied, u64>,
    /// The longest time until everything was processed, in milliseconds.
    pub drained_ms_max: u64,
}

/// The result of a check.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// The first findings.
    pub findings: Vec<Finding>,
    /// The number of all findings.
    pub findings_count: u64,
    /// Numbers of what was done and observed.
    pub tally: Tally,
}

impl Verdict {
    /// Whether there are no findings.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.findings_count == 0
    }

    /// Whether there is a finding of this kind.
    #[must_use]
    pub fn has(&self, kind: Kind) -> bool {
        self.findings.iter().any(|finding| finding.kind == kind)
    }

    pub(super) fn add(&mut self, finding: Finding) {
        self.findings_count += 1;
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        }
    }
}

impl Tally {
    /// Adds the numbers of another history.
    pub fn add(&mut self, other: &Self) {
        for (fault, count) in &other.faults {
            *self.faults.entry(*fault).or_default() += count;
        }
        self.mediums_broken += other.mediums_broken;
        for (met, count) in &other.steps {
            *self.steps.entry(*met).or_default() += count;
        }
        self.redriven += other.redriven;
        self.starts += other.starts;
        self.start_ms.extend(&other.start_ms);
        self.sent += other.sent;
        self.sent_again += other.sent_again;
        self.acknowledged += other.acknowledged;
        self.refused += other.refused;
        self.unanswered += other.unanswered;
        self.read += other.read;
        self.tail_lost += other.tail_lost;
        self.duplicates += other.duplicates;
        self.removed += other.removed;
        self.dead_letters += other.dead_letters;
        self.delayed += other.delayed;
        self.ticks += other.ticks;
        self.ticks_missed += other.ticks_missed;
        for (what, count) in &other.trials {
            *self.trials.entry(*what).or_default() += count;
        }
        for (what, count) in &other.backups {
            *self.backups.entry(*what).or_default() += count;
        }
        self.drained_ms_max = self.drained_ms_max.max(other.drained_ms_max);
    }

    /// How many faults met a step.
    #[must_use]
    pub fn met(&self, step: Step) -> u64 {
        let here = self.steps.iter().filter(|((met, _), _)| *met == step);
        here.map(|(_, count)| count).sum()
    }

    /// How many backups ended that way.
    #[must_use]
    pub fn copied(&self, what: Copied) -> u64 {
        self.backups.get(&what).copied().unwrap_or(0)
    }

    fn at_step(&self, step: Step) -> String {
        let here = self.steps.iter().filter(|((met, _), _)| *met == step);
        let kinds: Vec<String> = here
            .map(|((_, kind), count)| format!("{count} {}", kind.word()))
            .collect();
        let kinds = match kinds.is_empty() {
            true => String::new(),
            false => format!(" ({})", kinds.join(", ")),
        };
        format!("{} {}{kinds}", self.met(step), step.words())
    }

    /// The time within which that share of the starts was ready.
    #[must_use]
    pub fn start_ms_at(&self, share: f64) -> u64 {
        let mut sorted = self.start_ms.clone();
        sorted.sort_unstable();
        let at = (sorted.len().saturating_sub(1) as f64 * share) as usize;
        sorted.get(at).copied().unwrap_or(0)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} (line {}): {}",
            self.kind.word(),
            self.line,
            self.text
        )
    }
}

impl Kind {
    /// The word for it in the documentation.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Phantom => "phantom",
            Self::Returned => "returned",
            Self::Divergent => "divergent",
            Self::Reordered => "reordered",
            Self::Duplicated => "duplicated",
            Self::Torn => "torn",
            Self::WentBack => "went-back",
            Self::Missing => "missing",
            Self::Twice => "twice",
            Self::Miscounted => "miscounted",
            Self::Early => "early",
            Self::Stuck => "stuck",
            Self::Unexpected => "unexpected",
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let faults = self
            .faults
            .iter()
            .map(|(fault, count)| format!("{count} {}", fault.word()));
        let faults: Vec<String> = faults.collect();
        writeln!(f, "  faults: {}", faults.join(", "))?;
        let steps = Step::ALL.map(|step| self.at_step(step));
        writeln!(f, "  of them: {}", steps.join(", "))?;
        writeln!(
            f,
            "  starts: {}, ready after p50 {} ms, p99 {} ms, at most {} ms; all through after at most {} ms",
            self.starts,
            self.start_ms_at(0.5),
            self.start_ms_at(0.99),
            self.start_ms_at(1.0),
            self.drained_ms_max
        )?;
        writeln!(
            f,
            "  messages: {} sent, {} acknowledged, {} dead letters, {} of them sent again, {} removed by retention, trims and compaction, {} read in all",
            self.sent, self.acknowledged, self.dead_letters, self.redriven, self.removed, self.read
        )?;
        let of = |what| self.trials.get(&what).copied().unwrap_or(0);
        writeln!(
            f,
            "  times: {} delayed messages; schedules made {}, which stand for {} more; canaries: {} begun, {} given another share, {} promoted, {} withdrawn",
            self.delayed,
            self.ticks,
            self.ticks_missed,
            of(Trial::Begun),
            of(Trial::Shared),
            of(Trial::Promoted),
            of(Trial::Withdrawn)
        )?;
        writeln!(
            f,
            "  backups: {} taken, {} broken off; {} restored and judged, {} not for reasons outside the host",
            self.copied(Copied::Taken),
            self.copied(Copied::BrokenOff),
            self.copied(Copied::Judged),
            self.copied(Copied::Unjudged)
        )?;
        write!(
            f,
            "  requests: {} unanswered, {} sent again, {} refused; {} duplicates; {} messages of relaxed topics lost with the power",
            self.unanswered, self.sent_again, self.refused, self.duplicates, self.tail_lost
        )
    }
}
