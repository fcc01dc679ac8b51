//! The parts of a processor's specification that say how it works: order, batches, retries, the breaker,
//! dead letters and limits, with their defaults.

use serde::{Deserialize, Serialize};

/// What stays in order when a message is retried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Messages with the same key wait behind a parked one; all others continue.
    #[default]
    Key,
    /// All later messages of the partition wait.
    Partition,
    /// No message waits for another one.
    None,
}

/// When a batch is cut: at whichever bound is reached first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct BatchPolicy {
    /// Maximum number of messages.
    pub messages_max: u32,
    /// Maximum bytes of keys, values and headers; one larger message still makes a batch.
    pub bytes_max: u32,
    /// Maximum time to wait for a fuller batch once there is a message; 0 takes the messages at
    /// hand.
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

/// How failed messages are retried: exponential backoff with full jitter. The defaults retry for
/// minutes (seven on average, at most 13.5), so that a restart of a database does not create dead
/// letters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(from = "SaidOfRetry")]
pub struct RetryPolicy {
    /// Attempts in total. When the last one fails, the message becomes a dead letter.
    pub attempts_max: u32,
    /// Upper bound of the first delay; doubles with each attempt.
    pub delay_first_ms: u64,
    /// Upper bound of every delay; at most thirty days. The minimum delay is ten milliseconds.
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

/// The fields of a retry policy that were given.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct SaidOfRetry {
    attempts_max: Option<u32>,
    delay_first_ms: Option<u64>,
    delay_max_ms: Option<u64>,
}

impl From<SaidOfRetry> for RetryPolicy {
    /// Omitted fields get their defaults, but a low maximum delay also lowers the default of the
    /// first one.
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

/// When a processor pauses automatically, and how it finds out that it may resume. All partitions
/// of a processor share one breaker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct BreakerPolicy {
    /// Whether failed messages open the breaker. An outage reported by the component always does.
    pub enabled: bool,
    /// The breaker opens when this many different messages in a row fail alike; fewer never open
    /// it.
    pub failures_min: u32,
    /// The breaker also opens when this percentage of the latest messages fail alike.
    pub failed_percent: u32,
    /// How many messages count as the latest.
    pub window_messages: u32,
    /// Messages older than this do not count as the latest.
    pub window_ms: u64,
    /// Upper bound of the delay before the first probe; doubles with each failed probe.
    pub probe_first_ms: u64,
    /// Upper bound of every delay between probes.
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

/// How many dead letters a processor may create. At the maximum a partition waits; nothing is
/// dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct DeadLetterPolicy {
    /// Dead letters of all partitions together in one period.
    pub max: u32,
    /// The period.
    pub per_ms: u64,
    /// Dead letters that revisions may create in total before one of them is proven, if there is an
    /// earlier one to go back to. Further messages wait until a revision is proven or rolled back.
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

/// The limits of a component. They always apply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Linear memory of one instance.
    pub memory_bytes_max: u64,
    /// Duration of one call, in which the guest runs or waits for the host. Time in the queue for a
    /// core does not count.
    pub call_ms_max: u64,
    /// Bytes of one answer.
    pub answer_bytes_max: u64,
    /// Outputs of one answer.
    pub answer_outputs_max: u32,
    /// Log lines per second. Further lines are counted and dropped.
    pub log_lines_per_second: u32,
}

impl Limits {
    /// Each limit that has a range: its field in a specification, its value, from, to (inclusive).
    #[must_use]
    pub fn ranges(&self) -> [(&'static str, u64, u64, u64); 4] {
        let outputs = self.answer_outputs_max.into();
        let outputs_max = crate::bounds::BATCH_MESSAGES_MAX as u64;
        [
            ("limits.memory_bytes_max", self.memory_bytes_max, 1, 4 << 30),
            ("limits.call_ms_max", self.call_ms_max, 1, 600_000),
            ("limits.answer_bytes_max", self.answer_bytes_max, 1, 1 << 30),
            ("limits.answer_outputs_max", outputs, 0, outputs_max),
        ]
    }
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
