//! The shapes of nouns that live in crates which know nothing of HTTP, as the OpenAPI document has them. A test of [`super::openapi`] holds
//! them to their nouns.
#![allow(dead_code, reason = "the shapes are read by the derive only")]

use utoipa::ToSchema;

/// When a batch is cut.
#[derive(ToSchema)]
#[schema(as = BatchPolicy)]
pub(super) struct BatchPolicySchema {
    /// Messages at the most.
    messages_max: Option<u32>,
    /// Bytes at the most; one larger message still makes a batch.
    bytes_max: Option<u32>,
    /// How long to wait for a fuller batch.
    linger_ms: Option<u64>,
}

/// What may be changed about a topic.
#[derive(ToSchema)]
#[schema(as = TopicSettings)]
pub(super) struct TopicSettingsSchema {
    /// Milliseconds after which a segment is removed; if absent, segments are kept.
    retention_ms: Option<u64>,
    /// Bytes of a partition above which its oldest segments are removed; if absent, there is no such bound.
    retention_bytes: Option<u64>,
    /// Whether only the latest value of each key is kept.
    compact: Option<bool>,
    /// Milliseconds that a compacted topic keeps a message without a value, which removes its key.
    tombstone_ms: Option<u64>,
    /// Bytes of a segment; the host's default without.
    segment_bytes: Option<u64>,
    /// Milliseconds after which a segment ends though it is not full.
    segment_ms: Option<u64>,
    /// `none`, `gzip`, `snappy`, `lz4` or `zstd`.
    compression: Option<String>,
}

/// How failed messages are tried again.
#[derive(ToSchema)]
#[schema(as = RetryPolicy)]
pub(super) struct RetryPolicySchema {
    /// Attempts in all.
    attempts_max: Option<u32>,
    /// Upper bound of the first delay.
    delay_first_ms: Option<u64>,
    /// Upper bound of every delay; thirty days at the most. Whatever this says, no message is tried again within ten milliseconds.
    delay_max_ms: Option<u64>,
}

/// What a call may use at the most.
#[derive(ToSchema)]
#[schema(as = Limits)]
pub(super) struct LimitsSchema {
    /// Linear memory of one instance.
    memory_bytes_max: Option<u64>,
    /// Wall time of one call.
    call_ms_max: Option<u64>,
    /// Bytes of one answer.
    answer_bytes_max: Option<u64>,
    /// Outputs of one answer.
    answer_outputs_max: Option<u32>,
    /// Log lines a second.
    log_lines_per_second: Option<u32>,
}

/// When a processor pauses by itself, and how it probes.
#[derive(ToSchema)]
#[schema(as = BreakerPolicy)]
pub(super) struct BreakerPolicySchema {
    /// Whether failures of messages open it; what the component says is down always does.
    enabled: Option<bool>,
    /// So many different messages in a row that fail alike open it.
    failures_min: Option<u32>,
    /// This share of the latest messages that fail alike opens it.
    failed_percent: Option<u32>,
    /// How many messages are the latest.
    window_messages: Option<u32>,
    /// Older messages are no longer the latest.
    window_ms: Option<u64>,
    /// Upper bound of the wait before the first probe; doubles with each probe that fails.
    probe_first_ms: Option<u64>,
    /// Upper bound of every wait.
    probe_max_ms: Option<u64>,
}

/// How many dead letters a processor may make; at the bound a partition waits.
#[derive(ToSchema)]
#[schema(as = DeadLetterPolicy)]
pub(super) struct DeadLetterPolicySchema {
    /// Dead letters of all partitions together.
    max: Option<u32>,
    /// In so long a time.
    per_ms: Option<u64>,
    /// Dead letters that revisions make in all before one of them is proven, where there is an earlier one to go back to.
    unproven_max: Option<u32>,
}

/// How a processor's breaker stands.
#[derive(ToSchema)]
#[schema(as = BreakerStatus)]
pub(super) struct BreakerStatusSchema {
    /// `closed`, `open` or `off`.
    state: String,
    /// `outage`, `bad-deploy` or `poison-flood`.
    reason: Option<String>,
    /// The same for people.
    text: Option<String>,
    since: Option<u64>,
    /// When one message is tried next.
    next_probe_at: Option<u64>,
    /// Probes that failed since it opened.
    probes: u32,
    /// How often it opened since the host started.
    trips: u64,
    /// Dead letters that may be made before a partition waits.
    dead_letters_left: u32,
    /// Dead letters accepted beforehand and not made yet.
    dead_letters_accepted: u64,
}

/// A revision's spec, with modules by digest.
#[derive(ToSchema)]
#[schema(as = ProcessorSpec)]
pub(super) struct ProcessorSpecSchema {
    topics: Vec<String>,
    module: String,
    output: Option<String>,
    grants: Vec<String>,
    order: String,
    batch: BatchPolicySchema,
    retry: RetryPolicySchema,
    error_handler: Option<String>,
    limits: LimitsSchema,
    breaker: BreakerPolicySchema,
    dead_letters: DeadLetterPolicySchema,
    auto_rollback: bool,
    auto_redrive: bool,
    /// Hops that a message may have; absent if none are counted.
    hops_max: Option<u32>,
}

/// A processor and its revisions.
#[derive(ToSchema)]
#[schema(as = Processor)]
pub(super) struct ProcessorSchema {
    name: String,
    /// When it was made, in milliseconds since the Unix epoch; 0 if a host made it that did not write that down.
    made_at: u64,
    /// The number of the revision that takes the next batch.
    current: u32,
    paused: bool,
    /// Oldest first.
    revisions: Vec<RevisionSchema>,
    /// The revision that takes a share of the keys.
    canary: Option<CanarySchema>,
    /// The revision that is only looked at.
    shadow: Option<ShadowSchema>,
    /// What it reads if it only replays.
    replay: Option<ReplaySchema>,
    /// Where it begins in each topic, if another place than the oldest message was given when it was made.
    start: Option<Vec<TopicStartSchema>>,
    /// How often it was resumed; absent if it never was.
    resumes: Option<ResumesSchema>,
    /// What was done with it, oldest first; left out of `GET /v1/processors`, see `GET /v1/processors/{name}/history`.
    changes: Option<Vec<ChangeSchema>>,
}

/// How often a processor was resumed, paused or not: the breakers of all hosts go by it.
#[derive(ToSchema)]
#[schema(as = Resumes)]
struct ResumesSchema {
    count: u64,
    /// The revision that was current the last time.
    revision: u32,
    /// Dead letters that were accepted while it was.
    dead_letters: u64,
}

/// Where a processor begins in a topic, as long as it has committed nothing there.
#[derive(ToSchema)]
#[schema(as = TopicStart)]
pub(super) struct TopicStartSchema {
    topic: String,
    /// The topic's number, which none of the same name has later.
    id: u64,
    /// The first message of each partition; in those that came later it is the oldest.
    offsets: Vec<u64>,
}

/// How a processor does in one partition.
#[derive(ToSchema)]
#[schema(as = PartitionStatus)]
pub(super) struct PartitionStatusSchema {
    topic: String,
    partition: u32,
    /// The next offset to read.
    next: u64,
    end: u64,
    lag: u64,
    parked: usize,
    /// The revision that processed the last batch.
    revision: u32,
    /// `running`, `paused`, `waiting: reason`, `stopped: reason`, or where all of a replay is settled `done`.
    state: String,
    /// Where it is `waiting`, until when, in milliseconds since the Unix epoch, as far as that is known.
    waiting_until: Option<u64>,
    /// For how many milliseconds the call at hand is under way; absent between two of them.
    calling_ms: Option<u64>,
}

#[derive(ToSchema)]
#[schema(as = GuestLine)]
pub(super) struct GuestLineSchema {
    at: u64,
    level: String,
    revision: u32,
    text: String,
}

/// What one call used.
#[derive(ToSchema)]
#[schema(as = CallUse)]
struct CallUseSchema {
    /// Time that the guest ran or waited for the host, in microseconds.
    guest_us: u64,
    /// Linear memory of its instance.
    memory_bytes: u64,
    /// Messages that the call was for.
    messages: u32,
    /// The last lines that the guest wrote in it, newest last: at most 10 and 2 KiB.
    log: Vec<GuestLineSchema>,
}

/// A message given up on, with its evidence.
#[derive(ToSchema)]
#[schema(as = DeadLetter)]
pub(super) struct DeadLetterSchema {
    topic: String,
    partition: u32,
    offset: u64,
    origin_topic: String,
    origin_partition: u32,
    origin_offset: u64,
    revision: u32,
    module: String,
    attempts: u32,
    cause: String,
    class: String,
    reason: String,
    first_failed_at: u64,
    died_at: u64,
    attempt_log: serde_json::Value,
    backtrace: Option<String>,
    /// What the call used that it died of.
    call: Option<CallUseSchema>,
    /// How often the message had been sent again before it died this time.
    redrives: u32,
    redriven: bool,
    message: super::messages::MessageSchema,
}

#[derive(ToSchema)]
#[schema(as = Redriven)]
pub(super) struct RedrivenSchema {
    /// Sent now.
    sent: usize,
    /// Sent before, and not again.
    already: usize,
    /// Left alone: sent again three times before, and died each time.
    skipped: usize,
    /// Left where they are: they came from topics that the processor no longer reads.
    not_read: usize,
    /// Where to go on, if a bound ended it.
    next: Option<String>,
    /// When it began, in milliseconds since the Unix epoch.
    started_at: u64,
}

/// Dead letters by group.
#[derive(ToSchema)]
#[schema(as = DeadLetterGroups)]
pub(super) struct DeadLetterGroupsSchema {
    groups: Vec<DeadLetterGroupSchema>,
    /// How many were looked at and fit.
    count: u64,
    /// How many of them are of none of these groups.
    others: u64,
    /// Where to count on, as `from`, if time ended it.
    next: Option<String>,
}

#[derive(ToSchema)]
#[schema(as = DeadLetterGroup)]
struct DeadLetterGroupSchema {
    class: String,
    cause: String,
    revision: u32,
    count: u64,
    first_died_at: u64,
    last_died_at: u64,
    /// The place of one of them.
    sample: String,
    sample_reason: String,
}

#[derive(ToSchema)]
#[schema(as = DryRunOutcome)]
pub(super) struct DryRunOutcomeSchema {
    /// `ok`, or how it failed.
    outcome: String,
    class: String,
    count: u64,
    /// The place of one of them.
    sample: String,
    reason: String,
}

/// An output that there would be.
#[derive(ToSchema)]
#[schema(as = DryRunOutput)]
pub(super) struct DryRunOutputSchema {
    /// The place of the letter that it comes of.
    letter: String,
    topic: String,
    /// Cut to a kilobyte, as the others are.
    key: Option<String>,
    /// As `key`, if it is not text.
    key_base64: Option<String>,
    value: Option<String>,
    /// As `value`, if it is not text.
    value_base64: Option<String>,
    /// Whether any of it was cut.
    is_cut: bool,
}

/// Entries of an audit trail.
#[derive(ToSchema)]
#[schema(as = AuditPage)]
pub(super) struct AuditPageSchema {
    entries: Vec<AuditEntrySchema>,
    /// Where to read on, as `from`; null if that was all.
    next: Option<String>,
}

/// One transaction.
#[derive(ToSchema)]
#[schema(as = AuditEntry)]
struct AuditEntrySchema {
    at: u64,
    /// Who asked, as the caller claims.
    by: String,
    /// `redrive` or `edit`.
    action: String,
    processor: String,
    topic: String,
    partition: u32,
    /// Ranges of offsets, the end exclusive.
    offsets: Vec<Vec<u64>>,
    count: usize,
    edit: Option<EditDigestsSchema>,
}

/// A message before and after an edit.
#[derive(ToSchema)]
#[schema(as = EditDigests)]
struct EditDigestsSchema {
    before: DigestsSchema,
    after: DigestsSchema,
}

/// SHA-256 of the parts of a message.
#[derive(ToSchema)]
#[schema(as = Digests)]
struct DigestsSchema {
    key: Option<String>,
    value: Option<String>,
    headers: String,
}

#[derive(ToSchema)]
#[schema(as = Revision)]
pub(super) struct RevisionSchema {
    number: u32,
    spec: ProcessorSpecSchema,
    /// Milliseconds since the Unix epoch.
    deployed_at: u64,
    /// Who deployed it, as far as they said.
    deployed_by: Option<String>,
    /// The revision that it took over from.
    predecessor: Option<u32>,
    /// Whether it was never the current one.
    trial: Option<bool>,
    /// What the host did with it by itself, and why.
    note: Option<String>,
    /// The number of the run that it belongs to: of revisions that came one after the other without one of them being proven.
    unproven_run: u32,
    /// What the host has yet to send again of what it gave up; absent if nothing.
    redrive_due: Option<RedriveDueSchema>,
    record: RecordSchema,
}

/// Dead letters that the host sends again by itself: of these revisions up to the one that it is said of.
#[derive(ToSchema)]
#[schema(as = RedriveDue)]
struct RedriveDueSchema {
    /// The first revision.
    from: u32,
    /// Of letters that died at this time or later, in milliseconds since the Unix epoch.
    since: u64,
}

/// How a revision did.
#[derive(ToSchema)]
#[schema(as = RevisionRecord)]
struct RecordSchema {
    /// When it processed its first message; absent if it never did.
    worked_at: Option<u64>,
    /// Whether it has processed enough for its failures to be the messages', now or when it was current before.
    proven: bool,
    /// Whether it was proven since it became current last.
    proven_anew: bool,
    /// How many messages it processed since it became current last, as far as that matters for its proof; absent if none.
    processed: Option<u32>,
    /// When it processed the first of them, or the first after it stood still; absent if it processed none since.
    processed_since: Option<u64>,
    /// Why it stands still, or stood still when another revision took over; absent if it does not.
    stopped: Option<StoppedSchema>,
    /// Its place in the order in which revisions were left, the last time it was; absent if it never was.
    left_as: Option<u32>,
    /// What it rejected as a matter of course; absent if nothing.
    rejections: Option<Vec<RejectionsSchema>>,
    /// Of how many messages those are shares; absent if of none.
    measured: Option<u32>,
    /// Whether its word counts no longer: it was taken back or withdrawn; absent if not.
    voided: Option<bool>,
    /// Classes that were usual, and of which it rejected so many that they no longer are; absent if there are none.
    doubted: Option<Vec<String>>,
}

#[derive(ToSchema)]
#[schema(as = Stopped)]
struct StoppedSchema {
    /// What its failures were like; absent where the component said that something outside is down.
    class: Option<String>,
    text: String,
}

#[derive(ToSchema)]
#[schema(as = Rejections)]
struct RejectionsSchema {
    class: String,
    /// Of a million messages so many.
    per_million: u32,
}

/// A revision that takes a share of the keys while another one is current.
#[derive(ToSchema)]
#[schema(as = Canary)]
pub(super) struct CanarySchema {
    revision: u32,
    /// Percentage of the keys.
    percent: u32,
    /// Milliseconds since the Unix epoch.
    since: u64,
}

/// A revision that is called beside the current one, and whose answers only count for a report.
#[derive(ToSchema)]
#[schema(as = Shadow)]
pub(super) struct ShadowSchema {
    revision: u32,
    /// Milliseconds since the Unix epoch.
    since: u64,
}

/// What a processor reads that only replays.
#[derive(ToSchema)]
#[schema(as = Replay)]
pub(super) struct ReplaySchema {
    /// The processor whose input it reads.
    of: String,
    revision: u32,
    from: u64,
    until: u64,
    /// Where all outputs go.
    into: String,
    /// What that is in each partition that has any of it.
    ranges: Vec<ReplayRangeSchema>,
}

/// What was done with a processor.
#[derive(ToSchema)]
#[schema(as = Change)]
pub(super) struct ChangeSchema {
    /// Milliseconds since the Unix epoch.
    at: u64,
    /// Who asked for it, as far as they said; `host` is the host itself.
    by: Option<String>,
    /// `deploy`, `canary`, `shadow`, `promote`, `rollback`, `withdraw`, `pause`, `resume` or `replay`.
    what: String,
    /// The revision that it is about.
    revision: u32,
    text: Option<String>,
}

#[derive(ToSchema)]
#[schema(as = ReplayRange)]
struct ReplayRangeSchema {
    topic: String,
    partition: u32,
    first: u64,
    /// The offset after the last message.
    end: u64,
}

/// How a canary and the current revision do beside each other, since the canary began on this host.
#[derive(ToSchema)]
#[schema(as = CanaryStatus)]
pub(super) struct CanaryStatusSchema {
    percent: u32,
    canary: SideStatusSchema,
    current: SideStatusSchema,
    /// Why it takes no messages any more and is about to be withdrawn.
    trouble: Option<String>,
}

/// What became of one side's messages.
#[derive(ToSchema)]
#[schema(as = SideStatus)]
struct SideStatusSchema {
    revision: u32,
    messages: u64,
    /// Attempts that failed.
    failed: u64,
    /// Calls that failed as a whole.
    failed_calls: u64,
    dead_letters: u64,
    /// Messages that this canary would have given up; the current revision was asked about them. A canary gives up none.
    asked_again: u64,
}
