//! The evidence of a dead letter: headers that are written when a message is given up and read on
//! request. Their names are defined only here.

use millrace_model::bounds::ATTEMPT_REASON_BYTES_MAX;
use millrace_model::{
    Attempt, BatchBuilder, ColumnBatch, Header, Message, Offset, PartitionId, Timestamp, TopicName,
};

use crate::dispatch::failed::Failed;
use crate::dispatch::input::Input;
use crate::ground::chains::{HOPS_CLASS, Trail, is_trail};
use crate::ground::headers::{HOPS, is_kept};
use crate::ground::text::cut;
use crate::handler::CallUse;

/// Also set on redriven messages. The host removes it before a handler sees them.
pub(crate) const ORIGIN_OFFSET: &str = "millrace-origin-offset";

const ORIGIN_TOPIC: &str = "millrace-origin-topic";
const ORIGIN_PARTITION: &str = "millrace-origin-partition";
const PROCESSOR: &str = "millrace-processor";
const REVISION: &str = "millrace-revision";
const MODULE: &str = "millrace-module";
const ATTEMPTS: &str = "millrace-attempts";
const CAUSE: &str = "millrace-cause";
const CLASS: &str = "millrace-class";
const REASON: &str = "millrace-reason";
const BACKTRACE: &str = "millrace-backtrace";
const FIRST_FAILED_AT: &str = "millrace-first-failed-at";
const DIED_AT: &str = "millrace-died-at";
const ATTEMPT_LOG: &str = "millrace-attempt-log";
const CALL: &str = "millrace-call";
/// The hops of a message when it failed in a processor that counts them. A redrive restores them.
const ORIGIN_HOPS: &str = "millrace-origin-hops";
/// How often a message was redriven; also set on redriven messages, like [`ORIGIN_OFFSET`].
pub(crate) const REDRIVES: &str = "millrace-redrives";

/// The evidence about a message that is given up.
pub(crate) struct Death<'a> {
    pub(crate) input: &'a Input,
    pub(crate) processor: &'a str,
    pub(crate) revision: u32,
    pub(crate) module: &'a str,
    pub(crate) failed: &'a Failed,
    pub(crate) attempts: u32,
    pub(crate) first_failed_at: Timestamp,
    pub(crate) died_at: Timestamp,
    pub(crate) log: &'a [Attempt],
    /// The resources that the last call used.
    pub(crate) used: Option<&'a CallUse>,
    /// How often the message had been redriven.
    pub(crate) redrives: u32,
    /// The hops of the dead letter, and those the message arrived with.
    pub(crate) trail: Option<(Trail, u32)>,
}

/// Writes a message of the batch with its evidence.
pub(crate) fn write(
    batch: &ColumnBatch,
    message: usize,
    death: &Death<'_>,
    builder: &mut BatchBuilder,
) {
    let evidence = evidence(batch.offsets[message], death);
    let kept: Vec<_> = batch
        .headers(message)
        .filter(|(name, _)| is_kept(name) && !is_trail(name))
        .collect();
    let hops = death.trail.map(|(trail, _)| trail.hops.to_string());
    let hops = hops.as_deref().unwrap_or_default();
    let trail = death
        .trail
        .into_iter()
        .flat_map(|(trail, _)| trail.headers(hops));
    let count = kept.len() + trail.clone().count() + evidence.len();
    let added = evidence
        .iter()
        .map(|(name, value)| (name.as_bytes(), Some(value.as_bytes())));
    builder.push_parts(
        Timestamp(batch.timestamps[message]),
        batch.key(message),
        batch.value(message),
        count,
        kept.into_iter().chain(trail).chain(added),
    );
}

fn evidence(origin_offset: u64, death: &Death<'_>) -> Vec<(&'static str, String)> {
    let failed = death.failed;
    let mut evidence = vec![
        (ORIGIN_TOPIC, death.input.origin.to_string()),
        (ORIGIN_PARTITION, death.input.partition.to_string()),
        (ORIGIN_OFFSET, origin_offset.to_string()),
        (PROCESSOR, death.processor.to_owned()),
        (REVISION, death.revision.to_string()),
        (MODULE, death.module.to_owned()),
        (ATTEMPTS, death.attempts.to_string()),
        (CAUSE, failed.cause.as_str().to_owned()),
        (CLASS, failed.class.clone()),
        (REASON, cut(failed.reason.clone(), ATTEMPT_REASON_BYTES_MAX)),
        (FIRST_FAILED_AT, death.first_failed_at.0.to_string()),
        (DIED_AT, death.died_at.0.to_string()),
        (ATTEMPT_LOG, log(death.log).to_string()),
    ];
    evidence.extend(
        failed
            .backtrace
            .clone()
            .map(|backtrace| (BACKTRACE, backtrace)),
    );
    // The host's own type of numbers and strings always serialises.
    let used = death.used.and_then(|used| serde_json::to_string(used).ok());
    evidence.extend(used.map(|used| (CALL, used)));
    if let Some((_, before)) = death.trail.filter(|(trail, before)| trail.hops != *before) {
        evidence.push((ORIGIN_HOPS, before.to_string()));
    }
    if death.redrives > 0 {
        evidence.push((REDRIVES, death.redrives.to_string()));
    }
    evidence
}

fn log(attempts: &[Attempt]) -> serde_json::Value {
    let attempt = |attempt: &Attempt| {
        serde_json::json!({
            "at": attempt.at,
            "revision": attempt.revision,
            "class": attempt.class,
            "reason": attempt.reason,
        })
    };
    attempts.iter().map(attempt).collect()
}

/// The evidence of a dead letter, read back.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Evidence {
    pub(crate) origin_topic: TopicName,
    pub(crate) origin_partition: PartitionId,
    pub(crate) origin_offset: Offset,
    pub(crate) revision: u32,
    pub(crate) module: String,
    pub(crate) attempts: u32,
    pub(crate) cause: String,
    pub(crate) class: String,
    pub(crate) reason: String,
    pub(crate) first_failed_at: Timestamp,
    pub(crate) died_at: Timestamp,
    pub(crate) attempt_log: serde_json::Value,
    pub(crate) backtrace: Option<String>,
    pub(crate) call: Option<CallUse>,
    pub(crate) redrives: u32,
}

impl Evidence {
    /// Reads what [`write`] wrote; `None` for any other message.
    pub(crate) fn of(message: &Message) -> Option<Self> {
        let text = |name| header(message, name);
        let own = |name| text(name).map(str::to_owned);
        Some(Self {
            origin_topic: TopicName::parse(text(ORIGIN_TOPIC)?).ok()?,
            origin_partition: PartitionId(text(ORIGIN_PARTITION)?.parse().ok()?),
            origin_offset: Offset(text(ORIGIN_OFFSET)?.parse().ok()?),
            revision: text(REVISION)?.parse().ok()?,
            module: own(MODULE)?,
            attempts: text(ATTEMPTS)?.parse().ok()?,
            cause: own(CAUSE)?,
            class: own(CLASS)?,
            reason: own(REASON)?,
            first_failed_at: Timestamp(text(FIRST_FAILED_AT)?.parse().ok()?),
            died_at: Timestamp(text(DIED_AT)?.parse().ok()?),
            attempt_log: serde_json::from_str(text(ATTEMPT_LOG)?).ok()?,
            backtrace: own(BACKTRACE),
            call: text(CALL).and_then(|call| serde_json::from_str(call).ok()),
            redrives: text(REDRIVES).map_or(Some(0), |text| text.parse().ok())?,
        })
    }
}

fn header<'a>(message: &'a Message, name: &str) -> Option<&'a str> {
    let found = message
        .headers
        .iter()
        .find(|header| header.name == name.as_bytes())?;
    str::from_utf8(found.value.as_deref()?).ok()
}

/// The headers that the message had before it failed, for a redrive. A message that was out of hops
/// starts again without hops, because a redrive means that it must run again.
pub(crate) fn kept(message: &Message) -> Vec<Header> {
    let spent = header(message, CLASS) == Some(HOPS_CLASS);
    let hops = header(message, ORIGIN_HOPS);
    let stays = |header: &&Header| {
        let replaced = hops.is_some() && header.name == HOPS;
        is_kept(&header.name) && !replaced && !(spent && is_trail(&header.name))
    };
    let mut headers: Vec<Header> = message.headers.iter().filter(stays).cloned().collect();
    // The message had not yet passed the processor that it returns to.
    headers.extend(hops.filter(|hops| *hops != "0").map(|hops| Header {
        name: HOPS.into(),
        value: Some(hops.to_owned().into()),
    }));
    headers
}

/// The message as it was before it failed, plus two headers with its original position and the
/// number of redrives.
pub(crate) fn revive(mut message: Message, origin_offset: Offset, redrives: u32) -> Message {
    message.headers = kept(&message);
    let added = [
        (ORIGIN_OFFSET, origin_offset.to_string()),
        (REDRIVES, redrives.to_string()),
    ];
    message.headers.extend(added.map(|(name, value)| Header {
        name: name.into(),
        value: Some(value.into()),
    }));
    message
}
