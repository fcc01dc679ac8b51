//! The shapes, for the OpenAPI document, of nouns from crates that know nothing about HTTP. A test
//! of [`super::openapi`] compares them with the nouns.
#![allow(dead_code, reason = "the shapes are read by the derive only")]

use utoipa::ToSchema;

/// When a batch is cut.
#[derive(ToSchema)]
#[schema(as = BatchPolicy)]
pub(super) struct BatchPolicySchema {
    /// Maximum number of messages.
    messages_max: Option<u32>,
    /// Maximum bytes; one larger message still makes a batch.
    bytes_max: Option<u32>,
    /// How long to wait for a fuller batch.
    linger_ms: Option<u64>,
}

/// The settings of a topic.
#[derive(ToSchema)]
#[schema(as = TopicSettings)]
pub(super) struct TopicSettingsSchema {
    /// Milliseconds after which a segment is removed; if absent, segments are kept.
    retention_ms: Option<u64>,
    /// Bytes of a partition above which its oldest segments are removed; if absent, there is no such bound.
    retention_bytes: Option<u64>,
    /// Whether only the latest value of each key is kept.
    compact: Option<bool>,
    /// Milliseconds for which a compacted topic keeps a message without a value, which deletes its key.
    tombstone_ms: Option<u64>,
    /// Bytes of a segment; if absent, the host's default.
    segment_bytes: Option<u64>,
    /// Milliseconds after which a segment ends even if it is not full.
    segment_ms: Option<u64>,
    /// `none`, `gzip`, `snappy`, `lz4` or `zstd`.
    compression: Option<String>,
}

/// How failed messages are retried.
#[derive(ToSchema)]
#[schema(as = RetryPolicy)]
pub(super) struct RetryPolicySchema {
    /// Attempts in total.
    attempts_max: Option<u32>,
    /// Upper bound of the first delay.
    delay_first_ms: Option<u64>,
    /// Upper bound of every delay; at most thirty days. No message is retried within ten milliseconds in any case.
    delay_max_ms: Option<u64>,
}

/// The limits of a call.
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
    /// Log lines per second.
    log_lines_per_second: Option<u32>,
}

/// When a processor pauses by itself, and how it probes.
#[derive(ToSchema)]
#[schema(as = BreakerPolicy)]
pub(super) struct BreakerPolicySchema {
    /// Whether failed messages open it; an outage reported by the component always does.
    enabled: Option<bool>,
    /// This many different messages in a row that fail alike open it.
    failures_min: Option<u32>,
    /// This share of the latest messages that fail alike opens it.
    failed_percent: Option<u32>,
    /// The number of latest messages.
    window_messages: Option<u32>,
    /// Messages older than this do not count.
    window_ms: Option<u64>,
    /// Upper bound of the delay before the first probe; doubles with each failed probe.
    probe_first_ms: Option<u64>,
    /// Upper bound of every delay.
    probe_max_ms: Option<u64>,
}

/// How many dead letters a processor may create; at the bound a partition waits.
#[derive(ToSchema)]
#[schema(as = DeadLetterPolicy)]
pub(super) struct DeadLetterPolicySchema {
    /// Dead letters of all partitions together.
    max: Option<u32>,
    /// The period.
    per_ms: Option<u64>,
    /// Dead letters that revisions may create in total before one of them is proven, if there is an earlier one to go back to.
    unproven_max: Option<u32>,
}

/// The state of a processor's breaker.
#[derive(ToSchema)]
#[schema(as = BreakerStatus)]
pub(super) struct BreakerStatusSchema {
    /// `closed`, `open` or `off`.
    state: String,
    /// `outage`, `bad-deploy` or `poison-flood`.
    reason: Option<String>,
    /// The reason as a sentence.
    text: Option<String>,
    since: Option<u64>,
    /// When one message is tried next.
    next_probe_at: Option<u64>,
    /// Failed probes since it opened.
    probes: u32,
    /// How often it opened since the host started.
    trips: u64,
    /// Dead letters that may be created before a partition waits.
    dead_letters_left: u32,
    /// Dead letters accepted in advance and not created yet.
    dead_letters_accepted: u64,
}

/// A revision's specification, with modules by digest.
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
    /// Maximum number of hops; absent if hops are not counted.
    hops_max: Option<u32>,
}

/// A processor and its revisions.
#[derive(ToSchema)]
#[schema(as = Processor)]
pub(super) struct ProcessorSchema {
    name: String,
    /// When it was created, in milliseconds since the Unix epoch; 0 if an old version created it.
    made_at: u64,
    /// The number of the revision that takes the next batch.
    current: u32,
    paused: bool,
    /// Oldest first.
    revisions: Vec<RevisionSchema>,
    /// The canary.
    canary: Option<CanarySchema>,
    /// The shadow.
    shadow: Option<ShadowSchema>,
    /// The range that it reads, if it is a replay.
    replay: Option<ReplaySchema>,
    /// Where it started in each topic, if it was not the oldest message.
    start: Option<Vec<TopicStartSchema>>,
    /// How often it was resumed; absent if it never was.
    resumes: Option<ResumesSchema>,
    /// Its changes, oldest first; omitted in `GET /v1/processors`, see `GET /v1/processors/{name}/history`.
    changes: Option<Vec<ChangeSchema>>,
}

/// How often a processor was resumed, paused or not: the breakers of all hosts follow this.
#[derive(ToSchema)]
#[schema(as = Resumes)]
struct ResumesSchema {
    count: u64,
    /// The revision that was current the last time.
    revision: u32,
    /// Dead letters that were accepted then.
    dead_letters: u64,
}

/// Where a processor starts in a topic, while it has committed nothing there.
#[derive(ToSchema)]
#[schema(as = TopicStart)]
pub(super) struct TopicStartSchema {
    topic: String,
    /// The topic's number, which no later topic of the same name has.
    id: u64,
    /// The first message of each partition; partitions added later start at their oldest message.
    offsets: Vec<u64>,
}

/// A processor's status in one partition.
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
    /// `running`, `paused`, `waiting: reason`, `stopped: reason`, or `done` when a replay is settled.
    state: String,
    /// If it is `waiting`, until when, in milliseconds since the Unix epoch, if known.
    waiting_until: Option<u64>,
    /// For how many milliseconds the current call has been running; absent between calls.
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
    /// Messages in the call.
    messages: u32,
    /// The last lines that the guest logged in it, newest last: at most 10 and 2 KiB.
    log: Vec<GuestLineSchema>,
}

/// A dead letter with its evidence.
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
    /// What the last call used.
    call: Option<CallUseSchema>,
    /// How often the message had been redriven before it failed this time.
    redrives: u32,
    redriven: bool,
    message: super::messages::MessageSchema,
}

#[derive(ToSchema)]
#[schema(as = Redriven)]
pub(super) struct RedrivenSchema {
    /// Sent now.
    sent: usize,
    /// Already sent before.
    already: usize,
    /// Skipped: sent three times before, and failed each time.
    skipped: usize,
    /// Left where they are: they came from topics that the processor no longer reads.
    not_read: usize,
    /// Where to continue, if a bound ended the run.
    next: Option<String>,
    /// When it began, in milliseconds since the Unix epoch.
    started_at: u64,
}

/// Dead letters by group.
#[derive(ToSchema)]
#[schema(as = DeadLetterGroups)]
pub(super) struct DeadLetterGroupsSchema {
    groups: Vec<DeadLetterGroupSchema>,
    /// How many dead letters matched.
    count: u64,
    /// How many of them are in none of these groups.
    others: u64,
    /// Where to continue counting, as `from`, if time ran out.
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

/// An output that would be written.
#[derive(ToSchema)]
#[schema(as = DryRunOutput)]
pub(super) struct DryRunOutputSchema {
    /// The place of the dead letter it comes from.
    letter: String,
    topic: String,
    /// Cut to a kilobyte, like the others.
    key: Option<String>,
    /// Like `key`, if it is not text.
    key_base64: Option<String>,
    value: Option<String>,
    /// Like `value`, if it is not text.
    value_base64: Option<String>,
    /// Whether any of it was cut.
    is_cut: bool,
}

/// Entries of an audit trail.
#[derive(ToSchema)]
#[schema(as = AuditPage)]
pub(super) struct AuditPageSchema {
    entries: Vec<AuditEntrySchema>,
    /// Where to continue, as `from`; null at the end.
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
    /// Who deployed it, as claimed.
    deployed_by: Option<String>,
    /// The revision that it replaced.
    predecessor: Option<u32>,
    /// Whether it was never current.
    trial: Option<bool>,
    /// What the host did with it by itself, and why.
    note: Option<String>,
    /// The number of its run: consecutive revisions without a proven one among them.
    unproven_run: u32,
    /// What the host still has to redrive of what it gave up; absent if nothing.
    redrive_due: Option<RedriveDueSchema>,
    record: RecordSchema,
}

/// A due redrive: of these revisions, up to the one that it is stored with.
#[derive(ToSchema)]
#[schema(as = RedriveDue)]
struct RedriveDueSchema {
    /// The first revision.
    from: u32,
    /// Only dead letters given up at this time or later, in milliseconds since the Unix epoch.
    since: u64,
}

/// A revision's record.
#[derive(ToSchema)]
#[schema(as = RevisionRecord)]
struct RecordSchema {
    /// When it processed its first message; absent if it never did.
    worked_at: Option<u64>,
    /// Whether it has processed enough that failures count as the messages' fault, now or when it was current before.
    proven: bool,
    /// Whether it was proven since it last became current.
    proven_anew: bool,
    /// How many messages it has processed since it last became current, as far as that matters for its proof; absent if none.
    processed: Option<u32>,
    /// When it processed the first of them, or the first after a stop; absent if none.
    processed_since: Option<u64>,
    /// Why it is stopped, or was stopped when another revision replaced it; absent if it is not.
    stopped: Option<StoppedSchema>,
    /// Its position in the order in which revisions were last replaced; absent if it never was.
    left_as: Option<u32>,
    /// Its usual rejections; absent if there are none.
    rejections: Option<Vec<RejectionsSchema>>,
    /// Over how many messages these shares were measured; absent if none.
    measured: Option<u32>,
    /// Whether its decisions no longer count, because it was rolled back or withdrawn; absent if not.
    voided: Option<bool>,
    /// Classes that were usual and that it rejected too often; absent if there are none.
    doubted: Option<Vec<String>>,
}

#[derive(ToSchema)]
#[schema(as = Stopped)]
struct StoppedSchema {
    /// The kind of its failures; absent if the component reported an outage.
    class: Option<String>,
    text: String,
}

#[derive(ToSchema)]
#[schema(as = Rejections)]
struct RejectionsSchema {
    class: String,
    /// Rejections per million messages.
    per_million: u32,
}

/// A canary: a revision that takes a share of the keys while another one is current.
#[derive(ToSchema)]
#[schema(as = Canary)]
pub(super) struct CanarySchema {
    revision: u32,
    /// Percentage of the keys.
    percent: u32,
    /// Milliseconds since the Unix epoch.
    since: u64,
}

/// A shadow: a revision that is called beside the current one, and whose answers only count for a report.
#[derive(ToSchema)]
#[schema(as = Shadow)]
pub(super) struct ShadowSchema {
    revision: u32,
    /// Milliseconds since the Unix epoch.
    since: u64,
}

/// The input of a replay.
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
    /// The range in each partition that has messages of that time.
    ranges: Vec<ReplayRangeSchema>,
}

/// The kinds of changes to a processor.
#[derive(ToSchema)]
#[schema(as = Change)]
pub(super) struct ChangeSchema {
    /// Milliseconds since the Unix epoch.
    at: u64,
    /// Who asked for it, as claimed; `host` is the host itself.
    by: Option<String>,
    /// `deploy`, `canary`, `shadow`, `promote`, `rollback`, `withdraw`, `pause`, `resume` or `replay`.
    what: String,
    /// The revision concerned.
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

/// How a canary compares with the current revision, since the canary began on this host.
#[derive(ToSchema)]
#[schema(as = CanaryStatus)]
pub(super) struct CanaryStatusSchema {
    percent: u32,
    canary: SideStatusSchema,
    current: SideStatusSchema,
    /// Why it takes no more messages and is about to be withdrawn.
    trouble: Option<String>,
}

/// The results of one side's messages.
#[derive(ToSchema)]
#[schema(as = SideStatus)]
struct SideStatusSchema {
    revision: u32,
    messages: u64,
    /// Failed attempts.
    failed: u64,
    /// Calls that failed as a whole.
    failed_calls: u64,
    dead_letters: u64,
    /// Messages that this canary would have given up and passed to the current revision. A canary gives none up.
    asked_again: u64,
}
