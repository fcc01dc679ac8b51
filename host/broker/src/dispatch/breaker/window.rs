//! The window of latest messages: how many there were, and how many failed alike.

use std::collections::VecDeque;
use std::time::Duration;

use millrace_model::processor::BreakerPolicy;

use super::Kind;
use crate::dispatch::failed::Failed;

/// Maximum number of kinds of failures that are distinguished in one batch. If every failure has
/// its own class, the failures are not alike, and a few kinds are enough to show it.
const KINDS_MAX: usize = 8;

/// A batch's share of the window.
#[derive(Debug)]
struct Sample {
    at: Duration,
    all: u64,
    failed: u32,
    /// The most frequent kind of failure.
    kind: Option<Kind>,
}

/// The samples of the latest batches. They cover at least the policy's number of messages, if there
/// were that many in its period.
#[derive(Debug, Default)]
pub(super) struct Window {
    samples: VecDeque<Sample>,
    all: u64,
    /// Samples with failures.
    failing: usize,
}

impl Window {
    /// Adds messages that all succeeded.
    pub(super) fn good(
        &mut self,
        count: u64,
        at: Duration,
        span: Duration,
        policy: &BreakerPolicy,
    ) {
        if self.failing == 0 && self.samples.len() == 1 {
            // The usual case: one sample stands for all successes.
            let sample = &mut self.samples[0];
            sample.at = at;
            sample.all = count.max(
                sample
                    .all
                    .saturating_add(count)
                    .min(policy.window_messages.into()),
            );
            self.all = sample.all;
            return;
        }
        self.push(
            Sample {
                at,
                all: count,
                failed: 0,
                kind: None,
            },
            span,
            policy,
        );
    }

    /// Adds messages of which some failed.
    pub(super) fn mixed(
        &mut self,
        good: u64,
        failed: &[&Failed],
        at: Duration,
        span: Duration,
        policy: &BreakerPolicy,
    ) {
        let mut kinds: Vec<(Kind, u32)> = Vec::new();
        for failed in failed {
            if let Some((_, count)) = kinds.iter_mut().find(|(kind, _)| kind.is(failed)) {
                *count += 1;
            } else if kinds.len() < KINDS_MAX {
                kinds.push((Kind::of(failed), 1));
            }
        }
        let most = kinds.into_iter().max_by_key(|(_, count)| *count);
        let (kind, count) = most.map_or((None, 0), |(kind, count)| (Some(kind), count));
        let all = good + failed.len() as u64;
        self.push(
            Sample {
                at,
                all,
                failed: count,
                kind,
            },
            span,
            policy,
        );
    }

    /// The kind of the last failures, how many of the latest messages failed in this way, and the
    /// number of latest messages.
    pub(super) fn most(&self) -> Option<(&Kind, u32, u64)> {
        let kind = self
            .samples
            .iter()
            .rev()
            .find_map(|sample| sample.kind.as_ref())?;
        let alike = self
            .samples
            .iter()
            .filter(|sample| sample.kind.as_ref() == Some(kind));
        Some((kind, alike.map(|sample| sample.failed).sum(), self.all))
    }

    /// Adds a sample, and drops those older than `span`.
    fn push(&mut self, sample: Sample, span: Duration, policy: &BreakerPolicy) {
        if sample.all == 0 {
            return;
        }
        let oldest = sample.at.saturating_sub(span);
        self.all += sample.all;
        self.failing += usize::from(sample.failed > 0);
        self.samples.push_back(sample);
        while let Some(first) = self.samples.front()
            && (first.at < oldest || self.all - first.all >= u64::from(policy.window_messages))
            && self.samples.len() > 1
        {
            self.all -= first.all;
            self.failing -= usize::from(first.failed > 0);
            self.samples.pop_front();
        }
    }
}
