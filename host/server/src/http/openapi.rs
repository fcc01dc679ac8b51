//! The OpenAPI document, and the shapes of nouns that live in crates which know nothing of HTTP. Tests hold both to the truth:
//! the document has every route, and every shape the fields of its noun.
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
    canary: Option<trials::CanarySchema>,
    /// The revision that is only looked at.
    shadow: Option<trials::ShadowSchema>,
    /// What it reads if it only replays.
    replay: Option<replays::ReplaySchema>,
    /// Where it begins in each topic, if another place than the oldest message was given when it was made.
    start: Option<Vec<TopicStartSchema>>,
    /// How often it was resumed; absent if it never was.
    resumes: Option<ResumesSchema>,
    /// What was done with it, oldest first; left out of `GET /v1/processors`, see `GET /v1/processors/{name}/history`.
    changes: Option<Vec<history::ChangeSchema>>,
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
