//! A processor: a named deployment of a module, its policy and limits, and its revisions.

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::digest::Digest;
use crate::name::{ProcessorName, TopicName};
use crate::offset::{Offset, PartitionId};
use crate::topic::TopicId;

/// What must keep its order when a message is retried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Messages of the key wait behind a parked one; all others go on.
    #[default]
    Key,
    /// The whole partition waits.
    Partition,
    /// Nobody waits.
    None,
}

/// When a batch is cut: at whichever bound is met first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BatchPolicy {
    /// Messages at the most.
    pub messages_max: u32,
    /// Bytes of keys, values and headers at the most (one larger message still makes a batch).
    pub bytes_max: u32,
    /// How long to wait for a fuller batch once there is a message; 0 takes what is there.
    pub linger_ms: u64,
}

impl Default for BatchPolicy {
    fn default() -> Self {
        Self {
            messages_max: 1_000,
            bytes_max: 1 << 20,
            linger_ms: 0,
        }
    }
}

/// How failed messages are tried again: exponential backoff with full jitter. By default for minutes: seven on average, 13.5 at the most,
/// so that a database that restarts costs nobody a dead letter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "SaidOfRetry")]
pub struct RetryPolicy {
    /// Attempts in all; after the last failed one the message is a dead letter.
    pub attempts_max: u32,
    /// Upper bound of the first delay; doubles with each attempt.
    pub delay_first_ms: u64,
    /// The delay never exceeds this.
    pub delay_max_ms: u64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts_max: 10,
            delay_first_ms: 2_000,
            delay_max_ms: 300_000,
        }
    }
}

/// What is said of a retry policy.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct SaidOfRetry {
    attempts_max: Option<u32>,
    delay_first_ms: Option<u64>,
    delay_max_ms: Option<u64>,
}

impl From<SaidOfRetry> for RetryPolicy {
    /// What is not said has its default; but whoever only says that no delay is long does not have to say so of the first one.
    fn from(said: SaidOfRetry) -> Self {
        let default = Self::default();
        let delay_max_ms = said.delay_max_ms.unwrap_or(default.delay_max_ms);
        let delay_first_ms = said.delay_first_ms;
        Self {
            attempts_max: said.attempts_max.unwrap_or(default.attempts_max),
            delay_first_ms: delay_first_ms
                .unwrap_or_else(|| default.delay_first_ms.min(delay_max_ms)),
            delay_max_ms,
        }
    }
}

/// When a processor pauses by itself, and how it finds out that it may go on. One breaker stands over all its partitions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BreakerPolicy {
    /// Whether failures of messages open it. An outage that the component itself reports always does.
    pub enabled: bool,
    /// So many different messages in a row that fail alike open it; no trip is made on fewer.
    pub failures_min: u32,
    /// This share of the latest messages that fail alike opens it, too.
    pub failed_percent: u32,
    /// How many messages are the latest.
    pub window_messages: u32,
    /// Older messages are no longer the latest.
    pub window_ms: u64,
    /// Upper bound of the wait before the first probe; doubles with each probe that fails.
    pub probe_first_ms: u64,
    /// The wait between probes never exceeds this.
    pub probe_max_ms: u64,
}

impl Default for BreakerPolicy {
    fn default() -> Self {
        Self {
            enabled: true,
            failures_min: 5,
            failed_percent: 50,
            window_messages: 20,
            window_ms: 10_000,
            probe_first_ms: 100,
            probe_max_ms: 10_000,
        }
    }
}

/// How many dead letters a processor may make. At the bound the partition waits; nothing is dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeadLetterPolicy {
    /// Dead letters of all its partitions together,
    pub max: u32,
    /// in so long a time.
    pub per_ms: u64,
    /// Dead letters that revisions make in all before one of them is proven, where there is an earlier one to go back to. What would
    /// be more waits until the revision is proven, or is taken back.
    pub unproven_max: u32,
}

impl Default for DeadLetterPolicy {
    fn default() -> Self {
        Self {
            max: 100,
            per_ms: 60_000,
            unproven_max: 4,
        }
    }
}

/// What a component may use at the most. Always on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Linear memory of one instance.
    pub memory_bytes_max: u64,
    /// Time of one call: the guest runs or waits for the host; time in the queue for a core does not count.
    pub call_ms_max: u64,
    /// Bytes that one answer may carry.
    pub answer_bytes_max: u64,
    /// Outputs that one answer may carry.
    pub answer_outputs_max: u32,
    /// Log lines a second; more are counted and dropped.
    pub log_lines_per_second: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes_max: 64 << 20,
            call_ms_max: 1_000,
            answer_bytes_max: 16 << 20,
            answer_outputs_max: 100_000,
            log_lines_per_second: 100,
        }
    }
}

/// All that one revision is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessorSpec {
    /// Topics that it reads; at least one.
    pub topics: Vec<TopicName>,
    /// The module that processes.
    pub module: Digest,
    /// Where outputs go that name no topic; `None`: every output must name one.
    #[serde(default)]
    pub output: Option<TopicName>,
    /// Further topics that it may write to.
    #[serde(default)]
    pub grants: Vec<TopicName>,
    /// What keeps its order.
    #[serde(default)]
    pub order: Order,
    /// When a batch is cut.
    #[serde(default)]
    pub batch: BatchPolicy,
    /// How failures are tried again.
    #[serde(default)]
    pub retry: RetryPolicy,
    /// The component that decides about failures; `None` is the retry policy alone.
    #[serde(default)]
    pub error_handler: Option<Digest>,
    /// What a call may use.
    #[serde(default)]
    pub limits: Limits,
    /// When it pauses by itself.
    #[serde(default)]
    pub breaker: BreakerPolicy,
    /// How many dead letters it may make.
    #[serde(default)]
    pub dead_letters: DeadLetterPolicy,
    /// Whether a bad deploy takes itself back to the last revision that worked.
    #[serde(default)]
    pub auto_rollback: bool,
    /// Whether what a revision gave up is sent again by itself once the host has taken that revision back.
    #[serde(default)]
    pub auto_redrive: bool,
    /// Counts in a header by how many processors that count a message came, this one included, and gives up what came by so many
    /// before. At least one processor of a cycle has it; `None` counts nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hops_max: Option<u32>,
}

/// One deployment of a processor. Numbers count from 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    /// Its number.
    pub number: u32,
    /// What it is made of.
    pub spec: ProcessorSpec,
    /// When it was deployed.
    pub deployed_at: Timestamp,
    /// Who deployed it, as far as they said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployed_by: Option<String>,
    /// The revision that it took over from; `None` for the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predecessor: Option<u32>,
    /// Whether it was never the current one: it is, or only was, tried beside it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub trial: bool,
    /// What the host did with it by itself, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The number of the run that it belongs to: of revisions that came one after the other without one of them being proven. 0 if a host
    /// made it that did not count so.
    #[serde(default)]
    pub unproven_run: u32,
    /// What the host has yet to send again of what it gave up, once it was taken back; `None` if nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redrive_due: Option<RedriveDue>,
    /// How it did.
    #[serde(default)]
    pub record: Record,
}

/// Dead letters that the host sends again by itself: of several revisions, up to the one that it is said of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RedriveDue {
    /// The first of these revisions.
    pub from: u32,
    /// Since when they were deployed. Before that others had their numbers, if the processor was deleted and made again.
    pub since: Timestamp,
}

/// How a revision did, as far as it matters for those after it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// When it processed its first message; `None` if it never did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worked_at: Option<Timestamp>,
    /// Whether it has processed enough for its failures to be the messages', now or when it was current before.
    pub proven: bool,
    /// Whether it was proven since it became current last: then the run of unproven revisions ended with it.
    pub proven_anew: bool,
    /// How many messages it processed since it became current last, as far as that matters for its proof.
    #[serde(skip_serializing_if = "is_zero")]
    pub processed: u32,
    /// When it processed the first of them, or the first after it stood still; `None` if it processed none since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processed_since: Option<Timestamp>,
    /// Why it stands still, or stood still when another revision took over; `None` if it did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped: Option<Stopped>,
    /// Its place in the order in which revisions were left, the last time it was; 0 if it never was.
    #[serde(skip_serializing_if = "is_zero")]
    pub left_as: u32,
    /// What it rejected as a matter of course.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rejections: Vec<Rejections>,
    /// Of how many messages those are shares.
    #[serde(skip_serializing_if = "is_zero")]
    pub measured: u32,
    /// Whether its word counts no longer: it was taken back or withdrawn.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub voided: bool,
    /// Classes that were usual, and of which it rejected so many that they no longer are.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub doubted: Vec<String>,
}

impl Record {
    /// It becomes the current revision: what it did before is no proof of what it does now.
    pub fn begin_anew(&mut self) {
        self.proven_anew = false;
        self.processed = 0;
        self.processed_since = None;
        self.stopped = None;
        self.voided = false;
        self.doubted.clear();
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Why a processor stood still.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    /// What its failures were like: `trap`, `timeout`, … or the class that the component gave; `None` where it said that something outside is down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// For people.
    pub text: String,
}

/// How much a revision rejected of a class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejections {
    /// The class.
    pub class: String,
    /// Of a million messages so many.
    pub per_million: u32,
}

/// A revision that takes a share of the messages while another one is current.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Canary {
    /// Its number.
    pub revision: u32,
    /// Its share of the keys.
    pub percent: u32,
    /// Since when.
    pub since: Timestamp,
}

/// A revision that is called beside the current one, and whose answers only count for a report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shadow {
    /// Its number.
    pub revision: u32,
    /// Since when.
    pub since: Timestamp,
}

/// What was done with a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// A revision was made the current one.
    Deploy,
    /// A revision was given a share of the keys, or another share.
    Canary,
    /// A revision is called beside the current one.
    Shadow,
    /// A revision on trial was made the current one.
    Promote,
    /// An earlier revision was made the current one again.
    Rollback,
    /// A trial was ended; the current revision stays.
    Withdraw,
    /// It takes no batches.
    Pause,
    /// It goes on.
    Resume,
    /// It was made to replay what another one has read.
    Replay,
}

/// One change of a processor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// When.
    pub at: Timestamp,
    /// Who asked for it, as far as they said; `host` is the host itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// What was done.
    pub what: ChangeKind,
    /// The revision that it is about.
    pub revision: u32,
    /// For people; cut to [`crate::bounds::CHANGE_TEXT_BYTES_MAX`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// What a processor reads that only replays: fixed when it is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replay {
    /// The processor whose input it reads.
    pub of: ProcessorName,
    /// Through which of its revisions.
    pub revision: u32,
    /// Messages of this time or later,
    pub from: Timestamp,
    /// and before this one.
    pub until: Timestamp,
    /// Where all outputs go, whatever topic they name.
    pub into: TopicName,
    /// What that is in each partition that has any of it; at most [`crate::bounds::REPLAY_PARTITIONS_MAX`].
    pub ranges: Vec<ReplayRange>,
}

/// A range of messages of a partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplayRange {
    /// The topic.
    pub topic: TopicName,
    /// The partition.
    pub partition: PartitionId,
    /// The first message.
    pub first: Offset,
    /// The offset after the last one.
    pub end: Offset,
}

/// Where a processor begins in a topic: at these offsets, partition by partition. Beyond them, in partitions that came later, it begins at
/// the oldest message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopicStart {
    /// The topic, for people.
    pub topic: TopicName,
    /// Which one of that name.
    pub id: TopicId,
    /// The first message to read in each of its partitions.
    pub offsets: Vec<Offset>,
}

/// How often a processor was resumed, whether it was paused or not, and what was accepted with that: the breakers of all hosts go by it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resumes {
    /// How often, since it was made.
    pub count: u64,
    /// The revision that was current the last time.
    pub revision: u32,
    /// Dead letters that were accepted while it was.
    pub dead_letters: u64,
}

impl Resumes {
    /// It is resumed, and so many dead letters are accepted with that.
    pub fn again(&mut self, revision: u32, dead_letters: u64) {
        if self.revision != revision {
            self.dead_letters = 0;
        }
        self.count = self.count.wrapping_add(1);
        self.revision = revision;
        self.dead_letters = self.dead_letters.saturating_add(dead_letters);
    }

    /// Dead letters that were accepted since it was so; `None` if it was not resumed since.
    #[must_use]
    pub fn since(&self, before: &Self) -> Option<u64> {
        let counted = match before.revision == self.revision {
            true => before.dead_letters,
            false => 0,
        };
        let accepted = self.dead_letters.saturating_sub(counted);
        (self.count != before.count).then_some(accepted)
    }

    fn is_none(&self) -> bool {
        self.count == 0
    }
}

/// A processor and its history. Its name is its consumer group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Processor {
    /// Its name.
    pub name: ProcessorName,
    /// When it was made. What is in progress from before is of a processor of the same name that was deleted.
    #[serde(default)]
    pub made_at: Timestamp,
    /// The number of the revision that takes the next batch.
    pub current: u32,
    /// Whether it takes no batches for now.
    pub paused: bool,
    /// Oldest first; at most [`crate::bounds::REVISIONS_KEPT_MAX`].
    pub revisions: Vec<Revision>,
    /// The revision that takes a share of the messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
    /// The revision that is only looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<Shadow>,
    /// What it reads if it only replays; such a processor has one revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<Replay>,
    /// Where it begins, as was said when it was made; empty is the oldest message everywhere. Counts in each partition until progress is
    /// committed there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub start: Vec<TopicStart>,
    /// How often it was resumed.
    #[serde(default, skip_serializing_if = "Resumes::is_none")]
    pub resumes: Resumes,
    /// What was done with it, oldest first; at most [`crate::bounds::CHANGES_KEPT_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
}

impl Processor {
    /// The revision that takes the next batch.
    #[must_use]
    pub fn current(&self) -> Option<&Revision> {
        self.revision(self.current)
    }

    /// Whether the revision takes batches, or runs beside one that does.
    #[must_use]
    pub fn runs(&self, number: u32) -> bool {
        let canary = self.canary.as_ref().map(|canary| canary.revision);
        let shadow = self.shadow.as_ref().map(|shadow| shadow.revision);
        number == self.current || canary == Some(number) || shadow == Some(number)
    }

    /// The first message to read in a partition that has no progress yet; `None` is the oldest one.
    #[must_use]
    pub fn start_in(&self, topic: TopicId, partition: PartitionId) -> Option<Offset> {
        let start = self.start.iter().find(|start| start.id == topic)?;
        start.offsets.get(partition.0 as usize).copied()
    }

    /// Where a rollback from this revision leads: of those before it to the one that worked last and did not stand still when it was left;
    /// else to the last that was proven.
    #[must_use]
    pub fn way_back_from(&self, number: u32) -> Option<&Revision> {
        self.way_back_among(number, |_| true)
    }

    /// As [`way_back_from`](Self::way_back_from), leaving out revisions that cannot be gone to.
    #[must_use]
    pub fn way_back_among(
        &self,
        number: u32,
        may: impl Fn(&Revision) -> bool,
    ) -> Option<&Revision> {
        let was_current = |r: &&Revision| r.number < number && !r.trial && may(r);
        let before = || self.revisions.iter().filter(was_current);
        let last = |r: &&Revision| (r.record.left_as, r.number);
        let worked = |r: &&Revision| r.record.worked_at.is_some() && r.record.stopped.is_none();
        let proven = || before().filter(|r| r.record.proven).max_by_key(last);
        before().filter(worked).max_by_key(last).or_else(proven)
    }

    /// Where a rollback from the current revision leads.
    #[must_use]
    pub fn way_back(&self) -> Option<&Revision> {
        self.way_back_from(self.current)
    }

    /// One of its revisions, if it is still kept.
    #[must_use]
    pub fn revision(&self, number: u32) -> Option<&Revision> {
        self.revisions
            .iter()
            .find(|revision| revision.number == number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(said: &str) -> RetryPolicy {
        serde_json::from_str(said).expect("a policy")
    }

    #[test]
    fn what_was_accepted_since_is_told_however_many_resumes_were_missed() {
        let mut resumes = Resumes::default();
        assert_eq!(resumes.since(&Resumes::default()), None);
        resumes.again(1, 0);
        let first = resumes;
        assert_eq!(first.since(&Resumes::default()), Some(0));
        resumes.again(1, 5);
        resumes.again(1, 7);
        assert_eq!(resumes.since(&first), Some(12));
        let second = resumes;
        resumes.again(2, 3);
        assert_eq!(resumes.since(&second), Some(3), "another revision");
        assert_eq!(resumes.since(&resumes), None);
    }

    #[test]
    fn what_is_not_said_of_retries_has_its_default() {
        assert_eq!(policy("{}"), RetryPolicy::default());
        assert_eq!(policy(r#"{"attempts_max": 3}"#).attempts_max, 3);
        let short = policy(r#"{"delay_max_ms": 50}"#);
        assert_eq!((short.delay_first_ms, short.delay_max_ms), (50, 50));
        let long = policy(r#"{"delay_max_ms": 5000000}"#);
        assert_eq!(long.delay_first_ms, RetryPolicy::default().delay_first_ms);
        assert!(serde_json::from_str::<RetryPolicy>(r#"{"attempts": 3}"#).is_err());
    }

    #[test]
    fn by_default_a_message_is_tried_for_minutes() {
        let RetryPolicy {
            attempts_max,
            delay_first_ms,
            delay_max_ms,
        } = RetryPolicy::default();
        let waits = 1..attempts_max;
        let bounds = waits.map(|wait| (delay_first_ms << (wait - 1)).min(delay_max_ms));
        let longest: u64 = bounds.sum();
        // With full jitter half of it, on average.
        assert!(
            (5 * 60_000..15 * 60_000).contains(&(longest / 2)),
            "{longest}"
        );
        assert!(longest < 15 * 60_000, "{longest}");
    }
}
