//! What the host says about itself: log lines to standard error ([`crate::log_lines`]), metrics for Prometheus.

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
    /// One JSON object a line.
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
    /// How log lines look [default: text]
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
    /// Where lines that components write go, besides `processor logs` [default: off]
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

/// From a call into a warm instance to a disk that has to think.
const SECONDS: &[f64] = &[
    0.000_005, 0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005,
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];
const MESSAGES: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 2_000.0, 5_000.0, 10_000.0,
];

/// Log lines go to standard error from here on: standard output belongs to what a command answers. So do panics, which the standard
/// library would write itself, waiting for whoever reads.
///
/// # Errors
/// [`ConfigError::Value`] where the filter cannot be read.
pub(crate) fn start_logging(settings: &LogSettings) -> Result<LogLines, ConfigError> {
    let refused = |why: String| refused("log.filter", &*settings.filter, why);
    // Whoever wants to hear of statements of the checkpoint's database asks for them by name.
    let filter = format!("sqlx=warn,{}", settings.filter);
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
        let message = panic.payload_as_str().unwrap_or("it said nothing");
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
        "Connections that could not be accepted, for want of files"
    );
    describe_gauge!(
        "millrace_connections",
        "Connections under way, by kind: regular, and those of the reserve for administration"
    );
    describe_gauge!("millrace_fetches_waiting", "Fetches that wait for messages");
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
        "Batches and requests that had taken effect before, and were answered as the first time"
    );
    describe_counter!(
        "millrace_produce_out_of_order_total",
        "Numbered batches refused because batches before them are missing"
    );
    describe_histogram!(
        "millrace_commit_seconds",
        "Commits of a processor's batches, by processor"
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
        "Bytes of frames written to the journal, with what aligns them"
    );
    describe_counter!(
        "millrace_segment_bytes_total",
        "Bytes of batches written to segments; compaction writes more"
    );
    describe_gauge!(
        "millrace_disk_full",
        "Whether messages are refused (1) because the disk has no room, or too little to reserve some; else 0"
    );
    describe_gauge!(
        "millrace_kept_bytes",
        "Bytes that delayed messages, and likewise state, take in memory, as the host's bounds count them"
    );
    describe_gauge!(
        "millrace_state_disk_bytes",
        "Bytes of the keys and values of all processors' state, in memory or not, as `state_disk_bytes_max` counts them"
    );
    describe_gauge!(
        "millrace_state_runs",
        "Files that processors' state stands in where it is larger than memory has room for"
    );
    describe_counter!("millrace_checkpoints_total", "Checkpoints made");
    describe_gauge!(
        "millrace_checkpoint_age_seconds",
        "Time since the last checkpoint"
    );
    describe_counter!(
        "millrace_commit_stalls_total",
        "Times that commits waited because memory was full of what is not in files yet"
    );
    describe_histogram!(
        "millrace_batch_messages",
        "Messages in a batch given to a processor, by processor"
    );
    describe_histogram!(
        "millrace_guest_seconds",
        "Calls into components, by processor"
    );
    describe_gauge!(
        "millrace_build_info",
        "Always 1; its label says which version runs"
    );
    describe_counter!(
        "millrace_http_requests_total",
        "Requests over HTTP, by method, route (as the API's document has it, or none) and status code"
    );
    describe_histogram!(
        "millrace_http_request_seconds",
        "From a request's head to its answer's, by method and route; what waits for messages waits here, too"
    );
    describe_counter!(
        "millrace_compiles_total",
        "Compiles of uploads, by outcome (ok, invalid, limit, busy, failed)"
    );
    describe_histogram!(
        "millrace_compile_seconds",
        "What the compile of a module took, without waiting for its turn"
    );
    describe_histogram!(
        "millrace_compile_wait_seconds",
        "How long a module waited for its turn to be compiled"
    );
    describe_gauge!(
        "millrace_compiles_waiting",
        "Modules that wait for their turn to be compiled"
    );
    describe_counter!(
        "millrace_guest_log_bytes_cut_total",
        "Bytes that guests' log lines were cut by"
    );
    describe_counter!(
        "millrace_guest_log_lines_not_shipped_total",
        "Guest log lines that were left out of the host's log, which has so many in a second"
    );
    describe_counter!("millrace_messages_in_total", "Messages produced, by topic");
    describe_counter!(
        "millrace_messages_processed_total",
        "Messages processed, by outcome"
    );
    describe_counter!("millrace_retries_total", "Retries planned");
    describe_counter!("millrace_dead_letters_total", "Messages given up on");
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
        "Messages that were removed, or could not be read, before a processor came to them"
    );
    describe_counter!(
        "millrace_retention_removed_bytes_total",
        "Bytes of segments removed because their partition begins after them"
    );
    describe_counter!(
        "millrace_compactions_total",
        "Passes over a partition that left only the latest value of each key"
    );
    describe_counter!(
        "millrace_backups_total",
        "Backups that were sent to their end"
    );
    describe_gauge!("millrace_segments", "Segment files of all partitions");
    describe_gauge!(
        "millrace_stored_bytes",
        "Bytes of segments that a topic holds, all its partitions together"
    );
    describe_counter!(
        "millrace_guest_log_lines_dropped_total",
        "Guest log lines over the rate"
    );
    describe_counter!(
        "millrace_dead_letters_held_total",
        "Times that a partition waited before it could make another dead letter"
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
        "Canaries that the host withdrew because their breaker opened"
    );
    describe_counter!(
        "millrace_canary_messages_total",
        "Messages processed while there is a canary, by side (current, canary) and outcome (ok, failed)"
    );
    describe_gauge!(
        "millrace_quarantined_ranges",
        "Ranges of messages that are known to be damaged"
    );
    describe_gauge!(
        "millrace_quarantined_messages",
        "Messages that are known to be damaged"
    );
    describe_gauge!(
        "millrace_damaged_modules",
        "Modules that are known to be damaged"
    );
    describe_gauge!(
        "millrace_damaged_state_files",
        "Files of processors' state that are known to be damaged"
    );
    describe_counter!(
        "millrace_scrub_bytes_total",
        "Bytes that the background search for damage read"
    );
    describe_counter!(
        "millrace_scrub_rounds_total",
        "Rounds of the background search through everything"
    );
    describe_counter!(
        "millrace_scrub_errors_total",
        "Files that the background search could not read"
    );
    describe_gauge!(
        "millrace_scrub_round_seconds",
        "What the last full round of the background search took"
    );
    describe_gauge!(
        "millrace_scrub_round_done_ratio",
        "Share of the partitions that the present round is done with"
    );
    describe_gauge!(
        "millrace_processors_running",
        "Processors that take batches"
    );
    describe_gauge!(
        "millrace_lag_messages",
        "Messages that a processor has still to read, by the workers of this host"
    );
    describe_gauge!(
        "millrace_consumer_lag_messages",
        "Messages that a consumer has still to read, all partitions of its topic together"
    );
    describe_gauge!(
        "millrace_parked_messages",
        "Messages that wait for a retry or their key"
    );
    describe_gauge!(
        "millrace_dead_letters_waiting",
        "Dead letters of a processor that are kept and were not sent again"
    );
    describe_gauge!(
        "millrace_left_behind_messages",
        "Messages that wait for a processor in topics which its current revision does not read"
    );
    describe_counter!(
        "millrace_dead_letters_by_class_total",
        "Messages given up on, by class; only so many classes are told apart, the rest is `other`"
    );
    describe_gauge!(
        "millrace_state_entries",
        "Entries of a processor's state in the partitions that it works in, as of its last batch or a minute ago at most"
    );
    describe_gauge!(
        "millrace_state_bytes",
        "Bytes of a processor's state in the partitions that it works in, about; as of its last batch or a minute ago at most"
    );
    describe_gauge!(
        "millrace_delayed_messages",
        "Messages that wait for their time, by topic"
    );
    describe_counter!(
        "millrace_delayed_delivered_total",
        "Delayed messages that were delivered, by topic"
    );
    describe_counter!(
        "millrace_schedule_messages_total",
        "Messages made by a schedule"
    );
    describe_histogram!(
        "millrace_delayed_lateness_seconds",
        "From when a delayed message was due until it was committed to its partition"
    );
    describe_gauge!("millrace_instances", "Component instances, by processor");
    describe_gauge!(
        "millrace_guest_memory_bytes",
        "Linear memory of a processor's instances"
    );
}
