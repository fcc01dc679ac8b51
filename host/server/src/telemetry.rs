//! The host's own reports: log lines to standard error ([`crate::log_lines`]), metrics for Prometheus.

use std::io::IsTerminal;
use std::sync::OnceLock;

use clap::{Args, ValueEnum};
use metrics::{describe_counter, describe_gauge, describe_histogram};
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

use crate::config::error::{ConfigError, refused};
use crate::log_lines::LogLines;
use crate::registry::Registry;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Where lines that components write go, besides `processor logs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum GuestLog {
    /// Nowhere.
    #[default]
    Off,
    /// Into the host's log, each at its level, with the fields processor, topic, partition and revision.
    Host,
}

/// `[log]`: what is logged, and how it looks.
#[derive(Args, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogSettings {
    /// Format of log lines [default: text]
    #[arg(
        long = "log-format",
        id = "log.format",
        value_name = "LOG_FORMAT",
        value_enum
    )]
    pub format: LogFormat,
    /// What is logged: a level, or target=level pairs separated by commas [default: info]
    #[arg(long = "log-filter", id = "log.filter", value_name = "FILTER")]
    pub filter: String,
    /// Where log lines of components go, besides `processor logs` [default: off]
    #[arg(
        long = "guest-log",
        id = "log.guests",
        value_name = "GUEST_LOG",
        value_enum
    )]
    pub guests: GuestLog,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self {
            format: LogFormat::default(),
            filter: "info".to_owned(),
            guests: GuestLog::default(),
        }
    }
}

/// Buckets of durations, from a call into a warm instance to a slow disk.
const SECONDS: &[f64] = &[
    0.000_005, 0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005,
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];
const MESSAGES: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 2_000.0, 5_000.0, 10_000.0,
];

/// From here on log lines go to standard error, because standard output is for the command's results. So do panics, which the standard
/// library would otherwise write itself, waiting for the reader.
///
/// # Errors
/// [`ConfigError::Value`] if the filter is invalid.
pub(crate) fn start_logging(settings: &LogSettings) -> Result<LogLines, ConfigError> {
    let refused = |why: String| refused("log.filter", &*settings.filter, why);
    // SQL statements of the checkpoint's database are logged only if asked for by name; so are guests' malformed requests, which could
    // flood the log.
    let filter = format!("sqlx=warn,wasmtime_wasi_http=error,{}", settings.filter);
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        refused(format!(
            "{error}; write a level such as info, or target=level pairs"
        ))
    })?;
    let lines = LogLines::to_standard_error()
        .map_err(|error| refused(format!("the log cannot be written: {error}")))?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(lines.clone());
    // A second start in one process (tests) keeps the first one's subscriber.
    let _ = match settings.format {
        LogFormat::Text => subscriber.try_init(),
        LogFormat::Json => subscriber.json().try_init(),
    };
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string);
        let message = panic.payload_as_str().unwrap_or("no message");
        tracing::error!(place, message, "a panic");
    }));
    Ok(lines)
}

/// The process's metrics. A process has one recorder, so all hosts started in it share it.
pub(crate) fn metrics() -> Option<Registry> {
    static REGISTRY: OnceLock<Option<Registry>> = OnceLock::new();
    REGISTRY.get_or_init(install).clone()
}

fn install() -> Option<Registry> {
    let registry = Registry::new(bounds);
    match metrics::set_global_recorder(registry.clone()) {
        Ok(()) => {
            describe();
            crate::process::measure_build();
            Some(registry)
        }
        Err(error) => {
            tracing::warn!(%error, "metrics are not available");
            None
        }
    }
}

/// The buckets of a histogram.
fn bounds(name: &str) -> &'static [f64] {
    match name.ends_with("_seconds") {
        true => SECONDS,
        false => MESSAGES,
    }
}

fn describe() {
    describe_counter!(
        "millrace_log_lines_lost_total",
        "Log lines that were lost because nobody read them in time"
    );
    describe_counter!(
        "millrace_accept_failures_total",
        "Connections that could not be accepted because too many files were open"
    );
    describe_counter!(
        "millrace_audit_late_total",
        "Requests that were answered before their record was in the audit log"
    );
    describe_counter!(
        "millrace_audit_lost_total",
        "Records that the audit log did not take before the host stopped"
    );
    describe_counter!(
        "millrace_quota_refusals_total",
        "Requests that were refused because their principal is over a quota, by principal and quota"
    );
    describe_counter!(
        "millrace_refusals_held_back_total",
        "Refusals of credentials that were held back, after many from the same address"
    );
    describe_counter!(
        "millrace_tls_failures_total",
        "Connections that did not begin TLS"
    );
    describe_gauge!(
        "millrace_connections",
        "Open connections, by kind: regular, and those of the reserve for administration"
    );
    describe_gauge!("millrace_fetches_waiting", "Fetches that wait for messages");
    describe_gauge!(
        "millrace_identity_keys",
        "Keys of an identity provider that are known"
    );
    describe_counter!(
        "millrace_identity_key_fetches_total",
        "Fetches of an identity provider's keys, by outcome: fetched, or failed, after which the keys before stay in use"
    );
    describe_counter!(
        "millrace_identity_refused_total",
        "JWTs of identity providers that were refused, by reason"
    );
    describe_counter!(
        "millrace_task_panics_total",
        "Times that a task of the host (delays, schedules) panicked and was started again"
    );
    describe_histogram!(
        "millrace_publish_seconds",
        "From a produce call to its acknowledgement"
    );
    describe_counter!(
        "millrace_produce_repeated_total",
        "Repeated batches and requests that had already taken effect and got the first answer"
    );
    describe_counter!(
        "millrace_produce_out_of_order_total",
        "Numbered batches refused because earlier batches are missing"
    );
    describe_histogram!(
        "millrace_commit_seconds",
        "Duration of commits of processors' batches, by processor"
    );
    describe_histogram!(
        "millrace_commit_group_transactions",
        "Transactions in one frame of the journal"
    );
    describe_histogram!(
        "millrace_journal_write_seconds",
        "Writes of a frame to the journal, into the page cache"
    );
    describe_histogram!("millrace_journal_sync_seconds", "Syncs of the journal");
    describe_counter!(
        "millrace_journal_bytes_total",
        "Bytes of frames written to the journal, including padding"
    );
    describe_counter!(
        "millrace_segment_bytes_total",
        "Bytes of batches written to segments; compaction writes more"
    );
    describe_gauge!(
        "millrace_disk_full",
        "1 while messages are refused because the disk is full, or has too little space for the reserve; otherwise 0"
    );
    describe_gauge!(
        "millrace_kept_bytes",
        "Memory of delayed messages and of state in bytes, as the host's bounds count it"
    );
    describe_gauge!(
        "millrace_state_disk_bytes",
        "Bytes of keys and values of all processors' state, in memory or in files, as `state_disk_bytes_max` counts them"
    );
    describe_gauge!(
        "millrace_state_runs",
        "Files of processors' state that does not fit in memory"
    );
    describe_counter!("millrace_checkpoints_total", "Checkpoints made");
    describe_gauge!(
        "millrace_checkpoint_age_seconds",
        "Time since the last checkpoint"
    );
    describe_counter!(
        "millrace_commit_stalls_total",
        "Times that commits waited because the memory for batches not yet in files was full"
    );
    describe_histogram!(
        "millrace_batch_messages",
        "Messages per batch, by processor"
    );
    describe_histogram!(
        "millrace_guest_seconds",
        "Duration of calls into components, by processor"
    );
    describe_gauge!(
        "millrace_build_info",
        "Always 1; the label is the running version"
    );
    describe_counter!(
        "millrace_http_requests_total",
        "HTTP requests, by method, route (as in the OpenAPI document, or none) and status code"
    );
    describe_histogram!(
        "millrace_http_request_seconds",
        "Time from a request's head to its answer's, by method and route; includes the time that fetches wait for messages"
    );
    describe_counter!(
        "millrace_compiles_total",
        "Compiles of uploads, by outcome (ok, invalid, limit, busy, failed)"
    );
    describe_histogram!(
        "millrace_compile_seconds",
        "Duration of compiling a module, without the wait for its turn"
    );
    describe_histogram!(
        "millrace_compile_wait_seconds",
        "Time that a module waited for its turn to be compiled"
    );
    describe_gauge!(
        "millrace_compiles_waiting",
        "Modules that wait for their turn to be compiled"
    );
    describe_counter!(
        "millrace_guest_log_bytes_cut_total",
        "Bytes that were cut from guests' log lines"
    );
    describe_counter!(
        "millrace_guest_log_lines_not_shipped_total",
        "Guest log lines left out of the host's log because of its rate limit"
    );
    describe_counter!("millrace_messages_in_total", "Messages produced, by topic");
    describe_counter!(
        "millrace_messages_processed_total",
        "Messages processed, by outcome"
    );
    describe_counter!("millrace_retries_total", "Scheduled retries");
    describe_counter!("millrace_dead_letters_total", "Messages given up");
    describe_counter!(
        "millrace_traps_total",
        "Calls that failed in the component, by cause"
    );
    describe_counter!(
        "millrace_dropped_total",
        "Messages dropped by an error handler"
    );
    describe_counter!(
        "millrace_missed_total",
        "Messages that were removed, or could not be read, before a processor reached them"
    );
    describe_counter!(
        "millrace_retention_removed_bytes_total",
        "Bytes of segments removed by retention or a trim"
    );
    describe_counter!(
        "millrace_compactions_total",
        "Compaction passes over a partition"
    );
    describe_counter!("millrace_backups_total", "Completed backups");
    describe_gauge!("millrace_segments", "Segment files of all partitions");
    describe_gauge!(
        "millrace_stored_bytes",
        "Bytes of a topic's segments, all its partitions together"
    );
    describe_counter!(
        "millrace_guest_log_lines_dropped_total",
        "Guest log lines dropped because of the rate limit"
    );
    describe_counter!(
        "millrace_dead_letters_held_total",
        "Times that a partition waited before it could create another dead letter"
    );
    describe_gauge!(
        "millrace_breaker_state",
        "Whether a processor's breaker is open (1) or closed (0)"
    );
    describe_counter!(
        "millrace_breaker_trips_total",
        "Times that a breaker opened, by reason"
    );
    describe_counter!(
        "millrace_probes_total",
        "Messages tried while a breaker was open, by outcome"
    );
    describe_counter!(
        "millrace_auto_rollbacks_total",
        "Bad deploys that the host rolled back"
    );
    describe_counter!(
        "millrace_canaries_withdrawn_total",
        "Canaries that the host withdrew"
    );
    describe_counter!(
        "millrace_canary_messages_total",
        "Messages processed while there is a canary, by side (current, canary) and outcome (ok, failed)"
    );
    describe_gauge!(
        "millrace_quarantined_ranges",
        "Known damaged ranges of messages"
    );
    describe_gauge!("millrace_quarantined_messages", "Known damaged messages");
    describe_gauge!("millrace_damaged_modules", "Known damaged modules");
    describe_gauge!(
        "millrace_damaged_state_files",
        "Known damaged files of processors' state"
    );
    describe_counter!(
        "millrace_scrub_bytes_total",
        "Bytes read by the background search for damage"
    );
    describe_counter!(
        "millrace_scrub_rounds_total",
        "Completed rounds of the background search"
    );
    describe_counter!(
        "millrace_scrub_errors_total",
        "Files that the background search could not read"
    );
    describe_gauge!(
        "millrace_scrub_round_seconds",
        "Duration of the last complete round of the background search"
    );
    describe_gauge!(
        "millrace_scrub_round_done_ratio",
        "Share of the partitions that the current round has finished"
    );
    describe_gauge!(
        "millrace_processors_running",
        "Processors that take batches"
    );
    describe_gauge!(
        "millrace_lag_messages",
        "Messages that a processor has not read yet, for the workers of this host"
    );
    describe_gauge!(
        "millrace_consumer_lag_messages",
        "Messages that a consumer has not read yet, all partitions of its topic together"
    );
    describe_gauge!(
        "millrace_parked_messages",
        "Messages that wait for a retry, or behind another message with their key"
    );
    describe_gauge!(
        "millrace_dead_letters_waiting",
        "Dead letters of a processor that are kept and were not redriven"
    );
    describe_gauge!(
        "millrace_left_behind_messages",
        "Messages that wait for a processor in topics which its current revision does not read"
    );
    describe_counter!(
        "millrace_dead_letters_by_class_total",
        "Messages given up, by class; a processor has up to 20 classes, the rest is `other`"
    );
    describe_gauge!(
        "millrace_state_entries",
        "Entries of a processor's state in its active partitions, at most a minute old"
    );
    describe_gauge!(
        "millrace_state_bytes",
        "Approximate bytes of a processor's state in its active partitions, at most a minute old"
    );
    describe_gauge!(
        "millrace_delayed_messages",
        "Delayed messages that are waiting, by topic"
    );
    describe_counter!(
        "millrace_delayed_delivered_total",
        "Delayed messages delivered, by topic"
    );
    describe_counter!(
        "millrace_schedule_messages_total",
        "Messages created by schedules"
    );
    describe_histogram!(
        "millrace_delayed_lateness_seconds",
        "Time from when a delayed message was due until it was committed to its partition"
    );
    describe_counter!(
        "millrace_guest_metric_updates_dropped_total",
        "Updates of components' own metrics that were dropped at a bound"
    );
    describe_counter!(
        "millrace_route_requests_total",
        "Requests that routes were asked to answer, by route, revision and outcome"
    );
    describe_histogram!(
        "millrace_route_seconds",
        "Time from a request to the head of its route's answer, by route"
    );
    describe_gauge!("millrace_instances", "Component instances, by processor");
    describe_gauge!(
        "millrace_guest_memory_bytes",
        "Linear memory of a processor's instances"
    );
}
