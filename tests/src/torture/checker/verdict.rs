//! What the checker says in the end.

use std::collections::BTreeMap;
use std::fmt;

use super::super::history::{Fault, Step};

/// Findings that are kept; further ones are only counted.
const FINDINGS_MAX: usize = 100;

/// What kind of wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Acknowledged or shown, and not there.
    Lost,
    /// There, and not sent.
    Phantom,
    /// One offset, two values.
    Divergent,
    /// In another order than sent.
    Reordered,
    /// More often there than sent, or than promised.
    Duplicated,
    /// A part of a request.
    Torn,
    /// Progress, start or end smaller than before.
    WentBack,
    /// An input without output and dead letter.
    Missing,
    /// An input with more than one of both.
    Twice,
    /// State that is not the count of the outputs.
    Miscounted,
    /// Does not start, or does not get through.
    Stuck,
    /// A fault did not lead to what it has to lead to.
    Unexpected,
}

/// One thing that is wrong.
#[derive(Clone, Debug)]
pub struct Finding {
    /// What kind.
    pub kind: Kind,
    /// The line of the history at which it showed.
    pub line: u64,
    /// Where and what.
    pub text: String,
}

/// What was done and seen, in numbers.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Faults, by kind.
    pub faults: BTreeMap<Fault, u64>,
    /// Mediums that broke under a file system.
    pub mediums_broken: u64,
    /// Those that met a host that had been asked for a step, by step: before, amid or just after it.
    pub steps: BTreeMap<Step, u64>,
    /// Dead letters that were sent again.
    pub redriven: u64,
    /// Starts after faults.
    pub starts: u64,
    /// How long each took.
    pub start_ms: Vec<u64>,
    /// Messages sent.
    pub sent: u64,
    /// Requests sent again after no answer came.
    pub sent_again: u64,
    /// Messages acknowledged.
    pub acknowledged: u64,
    /// Requests refused.
    pub refused: u64,
    /// Requests of which nobody knows.
    pub unanswered: u64,
    /// Messages read, again and again.
    pub read: u64,
    /// Acknowledged messages that a topic without durability lost to power cuts.
    pub tail_lost: u64,
    /// Copies beyond the first, of requests sent again.
    pub duplicates: u64,
    /// Messages that retention, trims and compaction removed.
    pub removed: u64,
    /// Dead letters.
    pub dead_letters: u64,
    /// How long it took at most until everything was through.
    pub drained_ms_max: u64,
}

/// Findings and numbers.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// The first ones.
    pub findings: Vec<Finding>,
    /// All of them.
    pub findings_count: u64,
    /// What was done and seen.
    pub tally: Tally,
}

impl Verdict {
    /// Whether there is nothing to complain about.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.findings_count == 0
    }

    /// Whether there is a finding of that kind.
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
    /// Adds another history's numbers.
    pub fn add(&mut self, other: &Self) {
        for (fault, count) in &other.faults {
            *self.faults.entry(*fault).or_default() += count;
        }
        self.mediums_broken += other.mediums_broken;
        for (step, count) in &other.steps {
            *self.steps.entry(*step).or_default() += count;
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
        self.drained_ms_max = self.drained_ms_max.max(other.drained_ms_max);
    }

    /// The time within which that share of the starts served again.
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
    /// As the documentation calls it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Phantom => "phantom",
            Self::Divergent => "divergent",
            Self::Reordered => "reordered",
            Self::Duplicated => "duplicated",
            Self::Torn => "torn",
            Self::WentBack => "went-back",
            Self::Missing => "missing",
            Self::Twice => "twice",
            Self::Miscounted => "miscounted",
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
        let steps = { self.steps.iter() };
        let steps = steps.map(|(step, n)| format!("{n} when a {} was asked for", step.word()));
        let all: Vec<String> = faults.chain(steps).collect();
        writeln!(f, "  faults: {}", all.join(", "))?;
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
        write!(
            f,
            "  requests: {} unanswered, {} sent again, {} refused; {} duplicates; {} messages of relaxed topics lost with the power",
            self.unanswered, self.sent_again, self.refused, self.duplicates, self.tail_lost
        )
    }
}
