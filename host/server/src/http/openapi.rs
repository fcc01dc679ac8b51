//! The OpenAPI document, and the schemas of types in crates that know nothing of HTTP. Tests compare both with the code: the document
//! has every route, and every schema the fields of its type.
#![allow(dead_code, reason = "the shapes are read by the derive only")]

mod finish;
mod revisions;

use axum::Json;
use utoipa::{OpenApi, ToSchema};

use self::finish::Finish;
use self::revisions::RevisionSchema;
use super::{
    backup, consumers, consuming, damage, dead_letters, delays, deploying, fetch, fetch_all,
    health, history, host, lifetime, lookups, modules, parked, processors, produce, replays,
    schedules, states, topics, trials,
};

#[derive(OpenApi)]
#[openapi(
    modifiers(&Finish),
    info(
        title = "Millrace",
        description = "A message broker that runs your WebAssembly. Every error has one shape: a code, a message, and what to do."
    ),
    paths(
        health::live,
        health::ready,
        health::metrics,
        document,
        host::show,
        topics::list,
        topics::create,
        topics::show,
        topics::remove,
        lifetime::change,
        lifetime::trim,
        produce::produce,
        delays::list,
        delays::cancel,
        fetch::fetch,
        fetch::value,
        fetch_all::fetch_all,
        consumers::list_all,
        consumers::list_of_topic,
        consumers::show,
        consumers::make,
        consumers::remove,
        consumers::reset,
        consuming::messages,
        consuming::commit,
        damage::list,
        damage::accept,
        backup::make,
        modules::upload,
        modules::list,
        modules::show,
        modules::remove,
        processors::list,
        processors::show,
        processors::deploy,
        deploying::amend,
        processors::remove,
        processors::rollback,
        processors::pause,
        processors::resume,
        processors::logs,
        history::show,
        parked::list,
        parked::try_now,
        parked::give_up,
        replays::make,
        trials::canary,
        trials::promote,
        trials::shadow,
        trials::end_shadow,
        schedules::list,
        schedules::show,
        schedules::put,
        schedules::remove,
        schedules::pause,
        schedules::resume,
        schedules::run,
        states::show,
        lookups::key,
        lookups::totals,
        states::write,
        dead_letters::list,
        dead_letters::groups,
        dead_letters::show,
        dead_letters::work::redrive,
        dead_letters::work::edit,
        dead_letters::work::dry_run,
        dead_letters::work::audit,
    )
)]
struct Document;

/// This document.
#[utoipa::path(get, path = "/openapi.json", tag = "health", responses((status = 200, body = serde_json::Value)))]
pub(super) async fn document() -> Json<utoipa::openapi::OpenApi> {
    Json(Document::openapi())
}

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
    canary: Option<trials::CanarySchema>,
    /// The shadow.
    shadow: Option<trials::ShadowSchema>,
    /// The range that it reads, if it is a replay.
    replay: Option<replays::ReplaySchema>,
    /// Where it started in each topic, if it was not the oldest message.
    start: Option<Vec<TopicStartSchema>>,
    /// How often it was resumed; absent if it never was.
    resumes: Option<ResumesSchema>,
    /// Its changes, oldest first; omitted in `GET /v1/processors`, see `GET /v1/processors/{name}/history`.
    changes: Option<Vec<history::ChangeSchema>>,
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
    /// Where to continue, if a bound ended it.
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use millrace_broker::BreakerStatus;
    use millrace_model::TopicSettings;
    use millrace_model::processor::{
        BatchPolicy, BreakerPolicy, DeadLetterPolicy, Limits, RetryPolicy,
    };
    use serde_json::{Value, json};

    use super::*;

    fn document() -> Value {
        serde_json::to_value(Document::openapi()).expect("JSON")
    }

    #[test]
    fn the_document_has_every_route_and_no_other() {
        let document = document();
        let paths = document["paths"].as_object().expect("paths");
        let documented: BTreeSet<String> = paths
            .iter()
            .flat_map(|(path, item)| {
                let methods = item.as_object().expect("methods").keys();
                methods.map(move |method| format!("{} {path}", method.to_uppercase()))
            })
            .collect();
        let routed: BTreeSet<String> = super::super::routes()
            .iter()
            .map(|route| format!("{} {}", route.method, route.path))
            .collect();
        assert_eq!(documented, routed);
    }

    #[test]
    fn the_shapes_have_the_fields_of_their_nouns() {
        let document = document();
        let nouns = [
            ("BatchPolicy", json!(BatchPolicy::default())),
            ("RetryPolicy", json!(RetryPolicy::default())),
            ("Limits", json!(Limits::default())),
            ("BreakerPolicy", json!(BreakerPolicy::default())),
            ("DeadLetterPolicy", json!(DeadLetterPolicy::default())),
            ("BreakerStatus", json!(BreakerStatus::default())),
            ("TopicSettings", json!(TopicSettings::default())),
        ];
        for (name, noun) in nouns {
            let shape = &document["components"]["schemas"][name]["properties"];
            let fields = |value: &Value| -> BTreeSet<String> {
                value.as_object().expect(name).keys().cloned().collect()
            };
            assert_eq!(fields(shape), fields(&noun), "{name}");
        }
    }

    /// Each operation, and what the document says of it.
    fn operations(document: &Value) -> Vec<(String, &Value)> {
        let paths = document["paths"].as_object().expect("paths");
        let methods = paths.iter().flat_map(|(path, item)| {
            let methods = item.as_object().expect("methods").iter();
            methods.map(move |(method, operation)| (format!("{method} {path}"), operation))
        });
        methods.collect()
    }

    #[test]
    fn every_answer_is_described_and_every_operation_declares_its_errors() {
        let document = document();
        for (name, operation) in operations(&document) {
            let responses = operation["responses"].as_object().expect("answers");
            assert!(responses.contains_key("default"), "{name}");
            for (status, response) in responses {
                let description = response["description"].as_str().unwrap_or_default();
                assert!(!description.is_empty(), "{name}: {status}");
            }
            if operation["parameters"].is_array() {
                assert!(responses.contains_key("400"), "{name}");
            }
        }
    }

    #[test]
    fn every_operation_has_an_id_of_its_own_that_says_what_it_is() {
        let document = document();
        let ids: Vec<&str> = operations(&document)
            .iter()
            .map(|(_, operation)| operation["operationId"].as_str().expect("an id"))
            .collect();
        let different: BTreeSet<&str> = ids.iter().copied().collect();
        assert_eq!(ids.len(), different.len(), "{ids:?}");
        for id in ["post_topic_messages", "get_processor", "get_processors"] {
            assert!(different.contains(id), "{id}");
        }
    }

    #[test]
    fn names_in_paths_have_patterns_and_bytes_are_binary() {
        let document = document();
        for (name, operation) in operations(&document) {
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                if parameter["in"] == "path"
                    && ["topic", "name"].contains(&parameter["name"].as_str().expect("a name"))
                {
                    assert!(parameter["schema"]["pattern"].is_string(), "{name}");
                }
            }
        }
        let value = "/v1/topics/{topic}/partitions/{partition}/messages/{offset}/value";
        let content = &document["paths"][value]["get"]["responses"]["200"]["content"];
        assert_eq!(
            content["application/octet-stream"]["schema"]["format"],
            "binary"
        );
    }

    #[test]
    fn whatever_takes_a_body_says_what_a_malformed_one_gets() {
        let document = document();
        for (name, operation) in operations(&document) {
            if !operation["requestBody"].is_null() {
                assert!(!operation["responses"]["400"].is_null(), "{name}");
            }
        }
    }

    #[test]
    fn whatever_records_who_asked_says_where_they_say_it() {
        let document = document();
        let records = |name: &str| {
            let processor = name.contains(" /v1/processors/{name}");
            let own = [
                "/dead-letters/dry-run",
                "/state",
                "get ",
                "delete /v1/processors/{name}",
            ];
            let own = own.iter().any(|part| name.contains(part));
            let of_processor = processor && (!own || name == "delete /v1/processors/{name}/shadow");
            let consumer = ["get ", "post "].into_iter().any(|method| {
                let path = "/v1/topics/{topic}/consumers/{name}/";
                name.starts_with(&format!("{method}{path}"))
            });
            of_processor
                || consumer
                || ["post /v1/schedules/{name}/run", "post /v1/modules"].contains(&name)
        };
        for (name, operation) in operations(&document) {
            let declared = operation["parameters"].to_string().contains("Millrace-By");
            assert_eq!(declared, records(&name), "{name}");
        }
    }

    #[test]
    fn every_reference_in_the_document_is_defined() {
        let text = document().to_string();
        let document = document();
        let schemas = &document["components"]["schemas"];
        for reference in text.split("#/components/schemas/").skip(1) {
            let name = reference.split('"').next().expect("a name");
            assert!(
                !schemas[name].is_null(),
                "{name} is referred to but not defined"
            );
        }
    }
}
