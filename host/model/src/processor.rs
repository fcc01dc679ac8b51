//! A processor: a named deployment of a module, its policy and limits, and its revisions.

mod config;
mod grants;
mod policies;
mod trial;

use serde::{Deserialize, Serialize};

pub use self::config::{Config, ConfigError};
pub use self::grants::{Grants, Origin, OriginError};
pub use self::policies::{
    BatchPolicy, BreakerPolicy, DeadLetterPolicy, Limits, Order, RetryPolicy,
};
pub use self::trial::Trial;
use crate::clock::Timestamp;
use crate::digest::Digest;
use crate::name::{ProcessorName, TopicName};
use crate::offset::{Offset, PartitionId};
use crate::topic::TopicId;

/// A revision's specification, with modules by digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ProcessorSpec {
    /// Topics that the processor reads; at least one.
    pub topics: Vec<TopicName>,
    /// The digest of the module that processes messages.
    pub module: Digest,
    /// The topic for outputs that name none; without it, every output must name one.
    #[serde(default)]
    pub output: Option<TopicName>,
    /// What the module may use.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub grants: Grants,
    /// What stays in order when a message is retried: `key`, `partition` or `none`.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub order: Order,
    /// When a batch is cut.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub batch: BatchPolicy,
    /// How failures are retried.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub retry: RetryPolicy,
    /// The digest of the module that decides about failures; without it, the retry policy alone
    /// decides.
    #[serde(default)]
    pub error_handler: Option<Digest>,
    /// The limits of a call.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub limits: Limits,
    /// When the processor pauses automatically.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub breaker: BreakerPolicy,
    /// How many dead letters the processor may create.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub dead_letters: DeadLetterPolicy,
    /// Whether the host rolls a bad deploy back to the last revision that worked.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub auto_rollback: bool,
    /// Whether, after an automatic rollback, the host redrives messages that the failed revision
    /// gave up.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub auto_redrive: bool,
    /// Counts in a header how many counting processors a message has passed, including this one.
    /// Gives up a message that has already passed this many. At least one processor of a cycle must
    /// have it. Absent if hops are not counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hops_max: Option<u32>,
}

/// One deployment of a processor. Numbers count from 1.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Revision {
    /// The revision's number.
    pub number: u32,
    /// The specification that was deployed.
    pub spec: ProcessorSpec,
    /// When it was deployed, in milliseconds since the Unix epoch.
    pub deployed_at: Timestamp,
    /// Who deployed it, as the caller claimed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deployed_by: Option<String>,
    /// The revision that it replaced; absent for the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predecessor: Option<u32>,
    /// Whether it was never current: it is or was only on trial. Absent if not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub trial: bool,
    /// What the host did with it automatically, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// The number of its run: consecutive revisions of which none is proven. 0 if it was created by
    /// a version without runs.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub unproven_run: u32,
    /// The redrive that the host still has to do after a rollback, of messages that this revision
    /// gave up; absent if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redrive_due: Option<RedriveDue>,
    /// How the revision performed.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub record: Record,
}

/// A due redrive of dead letters of several revisions: from the first one here to the one that
/// stores this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RedriveDue {
    /// The first of the revisions.
    pub from: u32,
    /// Only dead letters given up at this time or later, in milliseconds since the Unix epoch:
    /// earlier ones may be of a deleted processor's revisions with the same numbers.
    pub since: Timestamp,
}

/// The parts of a revision's past that matter for later revisions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(as = RevisionRecord))]
#[serde(default)]
pub struct Record {
    /// When it processed its first message; absent if it never did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worked_at: Option<Timestamp>,
    /// Whether it has processed enough that failures count as the messages' fault, now or when it
    /// was current before.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub proven: bool,
    /// Whether it was proven since it last became current. If so, it ended the run of unproven
    /// revisions.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub proven_anew: bool,
    /// How many messages it has processed since it last became current, up to the number that
    /// proves it; absent if none.
    #[serde(skip_serializing_if = "is_zero")]
    pub processed: u32,
    /// When it processed the first of them, or the first after a stop; absent if none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processed_since: Option<Timestamp>,
    /// Why it is stopped, or was stopped when another revision replaced it; absent if it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped: Option<Stopped>,
    /// Its place in the order in which revisions were last replaced; absent if it was never
    /// replaced.
    #[serde(skip_serializing_if = "is_zero")]
    pub left_as: u32,
    /// The revision's usual rejections; absent if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rejections: Vec<Rejections>,
    /// The number of messages over which these shares were measured; absent if none.
    #[serde(skip_serializing_if = "is_zero")]
    pub measured: u32,
    /// Whether its decisions no longer count, because it was rolled back or withdrawn; absent if
    /// not.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub voided: bool,
    /// Classes that were usual and that it rejected too often; absent if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub doubted: Vec<String>,
}

impl Record {
    /// Begins a new time as the current revision: what the revision did before does not prove it
    /// now.
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

/// Why a processor stopped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Stopped {
    /// The kind of its failures: `trap`, `timeout`, …, or the component's class. Absent if the
    /// component reported an outage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// An explanation for operators.
    pub text: String,
}

/// How often a revision rejects messages with a class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Rejections {
    /// The class.
    pub class: String,
    /// Rejections per million messages.
    pub per_million: u32,
}

/// The kinds of changes to a processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// A revision became current.
    Deploy,
    /// A canary was deployed, or its share was changed.
    Canary,
    /// A shadow was deployed.
    Shadow,
    /// A revision on trial became current.
    Promote,
    /// An earlier revision became current again.
    Rollback,
    /// A trial was ended; the current revision stays.
    Withdraw,
    /// The processor was paused.
    Pause,
    /// The processor was resumed.
    Resume,
    /// The settings that its component reads were changed.
    Configure,
    /// The processor was created as a replay of another one.
    Replay,
}

/// One change of a processor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Change {
    /// When, in milliseconds since the Unix epoch.
    pub at: Timestamp,
    /// Who asked for it, as the caller claimed; `host` is the host itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// `deploy`, `canary`, `shadow`, `promote`, `rollback`, `withdraw`, `pause`, `resume`,
    /// `configure` or `replay`.
    pub what: ChangeKind,
    /// The revision that the change is about.
    pub revision: u32,
    /// An explanation; a long one is cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

/// The input of a replay: fixed when it is created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Replay {
    /// The processor whose input it reads.
    pub of: ProcessorName,
    /// The revision that the replay runs.
    pub revision: u32,
    /// Messages at or after this time, in milliseconds since the Unix epoch.
    pub from: Timestamp,
    /// Messages before this time.
    pub until: Timestamp,
    /// The topic for all outputs, whatever topic they name.
    pub into: TopicName,
    /// The range of offsets in each partition that has messages of that time.
    pub ranges: Vec<ReplayRange>,
}

/// A range of offsets in a partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
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

/// Where a processor starts in a topic: an offset for each partition. In partitions that are added
/// later, it starts at the oldest message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TopicStart {
    /// The topic's name, for display.
    pub topic: TopicName,
    /// The topic's id, which stays unique even if a name is reused.
    pub id: TopicId,
    /// The first message to read, in each partition of the topic.
    pub offsets: Vec<Offset>,
}

/// How often a processor was resumed, whether it was paused or not, and how many dead letters were
/// accepted. The breakers of all hosts follow this.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Resumes {
    /// How often the processor was resumed since it was created.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub count: u64,
    /// The revision that was current when the processor was last resumed.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub revision: u32,
    /// Dead letters that were accepted for that revision.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub dead_letters: u64,
}

impl Resumes {
    /// Records that the processor is resumed and that this many dead letters are accepted.
    pub fn again(&mut self, revision: u32, dead_letters: u64) {
        if self.revision != revision {
            self.dead_letters = 0;
        }
        self.count = self.count.wrapping_add(1);
        self.revision = revision;
        self.dead_letters = self.dead_letters.saturating_add(dead_letters);
    }

    /// Dead letters that were accepted since `before`; `None` if the processor was not resumed
    /// since.
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
    /// The processor's name.
    pub name: ProcessorName,
    /// When it was created. Older progress belongs to a deleted processor of the same name.
    #[serde(default)]
    pub made_at: Timestamp,
    /// The number of the revision that takes the next batch.
    pub current: u32,
    /// Whether it is paused.
    pub paused: bool,
    /// Settings that its component reads, changed without a deployment. Absent if there are none.
    #[serde(default, skip_serializing_if = "Config::is_empty")]
    pub config: Config,
    /// Its revisions, oldest first; at most [`crate::bounds::REVISIONS_KEPT_MAX`], besides the
    /// current one, the one on trial and the newest.
    pub revisions: Vec<Revision>,
    /// The revision on trial; stored as `canary` or `shadow`.
    #[serde(flatten, with = "trial")]
    pub trial: Option<Trial>,
    /// The input of a replay; absent for other processors. A replay has only one revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay: Option<Replay>,
    /// Where it starts, as given when it was created; empty means at the oldest message everywhere.
    /// Applies in each partition until progress is committed there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub start: Vec<TopicStart>,
    /// How often it was resumed, and what was accepted then.
    #[serde(default, skip_serializing_if = "Resumes::is_none")]
    pub resumes: Resumes,
    /// The processor's changes, oldest first; at most [`crate::bounds::CHANGES_KEPT_MAX`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
}

impl Processor {
    /// The revision that takes the next batch.
    #[must_use]
    pub fn current(&self) -> Option<&Revision> {
        self.revision(self.current)
    }

    /// Whether the revision is current or on trial.
    #[must_use]
    pub fn runs(&self, number: u32) -> bool {
        number == self.current || self.on_trial() == Some(number)
    }

    /// The number of the revision on trial.
    #[must_use]
    pub fn on_trial(&self) -> Option<u32> {
        self.trial.as_ref().map(Trial::revision)
    }

    /// The first message to read in a partition that has no progress yet; `None` is the oldest one.
    #[must_use]
    pub fn start_in(&self, topic: TopicId, partition: PartitionId) -> Option<Offset> {
        let start = self.start.iter().find(|start| start.id == topic)?;
        start.offsets.get(partition.0 as usize).copied()
    }

    /// The target of a rollback from this revision: the latest earlier one that worked and was not
    /// stopped when it was replaced, or else the last one that was proven.
    #[must_use]
    pub fn way_back_from(&self, number: u32) -> Option<&Revision> {
        self.way_back_among(number, |_| true)
    }

    /// Like [`way_back_from`](Self::way_back_from), among those revisions that can be returned to.
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

    /// The target of a rollback from the current revision.
    #[must_use]
    pub fn way_back(&self) -> Option<&Revision> {
        self.way_back_from(self.current)
    }

    /// The revision with this number, if it is still kept.
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

    /// A processor as versions before [`Trial`] stored it, with these fields for its trial.
    fn stored(trial: &str) -> String {
        format!(r#"{{"name":"p","made_at":5,"current":1,"paused":false,"revisions":[]{trial}}}"#)
    }

    fn read(trial: &str) -> Result<Processor, serde_json::Error> {
        serde_json::from_str(&stored(trial))
    }

    #[test]
    fn a_trial_is_stored_as_a_canary_or_as_a_shadow() {
        let canary = Trial::Canary {
            revision: 2,
            percent: 40,
            since: Timestamp(7),
        };
        let shadow = Trial::Shadow {
            revision: 3,
            since: Timestamp(u64::MAX),
        };
        for (written, trial) in [
            ("", None),
            (
                r#","canary":{"revision":2,"percent":40,"since":7}"#,
                Some(canary),
            ),
            (
                r#","shadow":{"revision":3,"since":18446744073709551615}"#,
                Some(shadow),
            ),
        ] {
            let processor = read(written).expect("a processor");
            assert_eq!(processor.trial, trial);
            assert_eq!(
                serde_json::to_string(&processor).expect("JSON"),
                stored(written)
            );
        }
        let absent = read(r#","canary":null,"shadow":null,"of a newer version":[1]"#);
        assert_eq!(absent.expect("a processor").trial, None);
    }

    #[test]
    fn a_canary_and_a_shadow_at_once_are_refused() {
        let both =
            r#","canary":{"revision":2,"percent":40,"since":7},"shadow":{"revision":3,"since":7}"#;
        let error = read(both).expect_err("two trials").to_string();
        assert!(
            error.contains("a canary (revision 2) and a shadow (revision 3)"),
            "{error}"
        );
        let error = read(r#","canary":{"revision":2}"#).expect_err("half a canary");
        assert!(error.to_string().contains("percent"), "{error}");
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
        // Full jitter halves the delay on average.
        assert!(
            (5 * 60_000..15 * 60_000).contains(&(longest / 2)),
            "{longest}"
        );
        assert!(longest < 15 * 60_000, "{longest}");
    }
}
