//! Compares a shadow's answers with the current revision's, message by message: outcome, class,
//! outputs. Counts all differences and keeps a few samples.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use millrace_model::bounds::{
    SHADOW_KINDS_MAX, SHADOW_SAMPLE_BYTES_MAX, SHADOW_SAMPLES_MAX, SHADOW_SAMPLES_PER_KIND_MAX,
};
use millrace_model::{ColumnBatch, Offset, PartitionId, Timestamp, TopicName};
use serde::{Deserialize, Serialize};

use crate::dispatch::answer::{Outputs, Verdict};
use crate::dispatch::failed::Failed;
use crate::dispatch::live::Live;
use crate::dispatch::settled::SettledBatch;
use crate::ground::text::cut;
use crate::handler::CallError;

/// Outputs shown in a sample.
const SAMPLE_OUTPUTS_MAX: usize = 3;
/// Headers shown for an output of a sample.
const SAMPLE_HEADERS_MAX: usize = 4;
/// The kind that counts all differences beyond the maximum number of kinds.
const OTHER_KINDS: &str = "other";

/// How a shadow compares with the current revision, since it began on this host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ShadowReport {
    /// The shadow's revision.
    pub revision: u32,
    /// When the comparison began, in milliseconds since the Unix epoch.
    pub since: Timestamp,
    /// Messages that both revisions answered.
    pub compared: u64,
    /// Messages that both revisions answered in the same way.
    pub alike: u64,
    /// Messages with a different outcome or class, by both: `emit -> reject too-old`.
    pub outcomes: BTreeMap<String, u64>,
    /// Messages with the same outcome and different outputs.
    pub outputs: u64,
    /// Calls of the shadow that failed, by cause.
    pub failed_calls: BTreeMap<String, u64>,
    /// Messages that the shadow did not answer because of such calls.
    pub not_answered: u64,
    /// Messages that the shadow was not called with because it was busy.
    pub skipped: u64,
    /// Some of the messages that differ.
    pub samples: Vec<ShadowSample>,
}

/// A message that the two revisions answered differently.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ShadowSample {
    /// The message's topic.
    pub topic: TopicName,
    /// The message's partition.
    pub partition: PartitionId,
    /// The message's offset.
    pub offset: Offset,
    /// The message's key as text, cut to a maximum length.
    pub key: Option<String>,
    /// Whether the key is not shown exactly, because it was cut or is not UTF-8.
    pub key_lossy: bool,
    /// The kind of difference: an entry of `outcomes`, or `outputs`.
    pub differs: String,
    /// The current revision's answer.
    pub current: Said,
    /// The shadow's answer.
    pub shadow: Said,
}

/// A revision's answer to a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Said {
    /// `ack`, `emit`, `retry`, `reject`, or the cause of the failed call, followed by the class if
    /// there is one.
    pub outcome: String,
    /// The reason, cut to a maximum length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Number of outputs.
    pub output_count: usize,
    /// The first few outputs, as text, cut to a maximum length.
    pub outputs: Vec<SaidOutput>,
}

/// An output as text, with long fields cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SaidOutput {
    /// The output's topic.
    pub topic: String,
    /// The requested partition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition: Option<u32>,
    /// The output's key.
    pub key: Option<String>,
    /// The output's value.
    pub value: Option<String>,
    /// The first few headers, as `name: value`.
    pub headers: Vec<String>,
    /// Number of headers.
    pub header_count: usize,
    /// Whether the output is not shown exactly: long fields are cut, and bytes that are not UTF-8
    /// are replaced.
    pub lossy: bool,
}

/// A part of a batch with the answers of both revisions.
pub(crate) struct Compared<'a> {
    pub(crate) settled: &'a SettledBatch,
    /// The messages of the part, as indexes in the batch.
    pub(crate) range: Range<usize>,
    pub(crate) shadow: &'a Live,
    /// These messages, as given to the shadow.
    pub(crate) columns: &'a ColumnBatch,
    pub(crate) verdict: &'a Verdict,
}

/// One revision's answer to one batch.
#[derive(Clone, Copy)]
struct Side<'a> {
    live: &'a Live,
    columns: &'a ColumnBatch,
    verdict: &'a Verdict,
}

impl ShadowReport {
    /// A report without messages.
    pub(crate) fn new(revision: u32, since: Timestamp) -> Self {
        Self {
            revision,
            since,
            ..Self::default()
        }
    }

    /// Counts messages that the shadow was not called with.
    pub(crate) fn skip(&mut self, messages: usize) {
        self.skipped += messages as u64;
    }

    /// Counts messages of a call that left nothing to compare.
    pub(crate) fn not_answered(&mut self, messages: usize) {
        self.not_answered += messages as u64;
    }

    /// Counts a failed call of the shadow.
    pub(crate) fn call_failed(&mut self, error: &CallError) {
        let cause = match error {
            CallError::Unavailable(_) => "unavailable",
            CallError::Trap { .. } => "trap",
            CallError::Timeout(_) => "timeout",
            CallError::Memory(_) => "memory",
            CallError::BadAnswer(_) => "bad-answer",
            // An interrupted call says nothing about the revision.
            CallError::Interrupted => return,
            CallError::Host(_) => "host",
        };
        *self.failed_calls.entry(cause.to_owned()).or_default() += 1;
    }

    /// Compares the answers to all messages of the part.
    pub(crate) fn compare(&mut self, compared: &Compared<'_>) {
        let Compared {
            settled, columns, ..
        } = *compared;
        let current = Side {
            live: &settled.live,
            columns: &settled.columns,
            verdict: &settled.verdict,
        };
        let shadow = Side {
            live: compared.shadow,
            columns,
            verdict: compared.verdict,
        };
        let mut at = [
            Cursor::at(current, compared.range.start),
            Cursor::at(shadow, 0),
        ];
        for (place, message) in compared.range.clone().enumerate() {
            let [ours, theirs] = &mut at;
            let (ours, theirs) = (ours.next(message), theirs.next(place));
            self.compared += 1;
            let Some(kind) = difference((current, &ours), (shadow, &theirs)) else {
                self.alike += 1;
                continue;
            };
            let kind = self.count(kind);
            if self.has_room_for(&kind) {
                let mut shown = Shown::default();
                let key = settled.columns.key(message);
                let key = key.map(|key| shown.text(key, 256));
                self.samples.push(ShadowSample {
                    topic: settled.topic.clone(),
                    partition: settled.partition,
                    offset: settled.offsets[message],
                    key,
                    key_lossy: shown.lossy,
                    differs: kind,
                    current: said(current, &ours),
                    shadow: said(shadow, &theirs),
                });
            }
        }
    }

    fn count(&mut self, kind: Option<String>) -> String {
        let Some(mut kind) = kind else {
            self.outputs += 1;
            return "outputs".to_owned();
        };
        if self.outcomes.len() >= SHADOW_KINDS_MAX && !self.outcomes.contains_key(&kind) {
            OTHER_KINDS.clone_into(&mut kind);
        }
        *self.outcomes.entry(kind.clone()).or_default() += 1;
        kind
    }

    fn has_room_for(&self, kind: &str) -> bool {
        let alike = self.samples.iter().filter(|sample| sample.differs == kind);
        self.samples.len() < SHADOW_SAMPLES_MAX && alike.count() < SHADOW_SAMPLES_PER_KIND_MAX
    }
}

/// Iterates over an answer, message by message.
struct Cursor<'a> {
    verdict: &'a Verdict,
    failed: usize,
    output: usize,
}

/// The part of an answer that belongs to one message.
struct Share<'a> {
    failed: Option<&'a Failed>,
    outputs: Range<usize>,
}

impl<'a> Cursor<'a> {
    fn at(side: Side<'a>, message: usize) -> Self {
        let verdict = side.verdict;
        let outputs = &verdict.outputs;
        let count = outputs.len();
        Self {
            verdict,
            failed: verdict.failed.partition_point(|f| f.message < message),
            output: (0..count)
                .find(|&output| outputs.source(output) >= message)
                .unwrap_or(count),
        }
    }

    fn next(&mut self, message: usize) -> Share<'a> {
        let verdict = self.verdict;
        let failed = verdict.failed.get(self.failed);
        let failed = failed.filter(|failed| failed.message == message);
        self.failed += usize::from(failed.is_some());
        let (start, outputs) = (self.output, &verdict.outputs);
        while self.output < outputs.len() && outputs.source(self.output) == message {
            self.output += 1;
        }
        Share {
            failed,
            outputs: start..self.output,
        }
    }
}

/// `None` if both answers are the same. Otherwise the kind of difference, or `Some(None)` if only
/// the outputs differ.
#[allow(clippy::option_option, reason = "said above")]
fn difference(
    ours: (Side<'_>, &Share<'_>),
    theirs: (Side<'_>, &Share<'_>),
) -> Option<Option<String>> {
    let outcomes = [outcome(ours.1), outcome(theirs.1)];
    if outcomes[0] != outcomes[1] {
        return Some(Some(outcomes.join(" -> ")));
    }
    let pairs = ours.1.outputs.clone().zip(theirs.1.outputs.clone());
    let alike = ours.1.outputs.len() == theirs.1.outputs.len()
        && pairs
            .into_iter()
            .all(|(a, b)| same_output((ours.0, a), (theirs.0, b)));
    (!alike).then_some(None)
}

fn outcome(share: &Share<'_>) -> String {
    match share.failed {
        None if share.outputs.is_empty() => "ack".to_owned(),
        None => "emit".to_owned(),
        Some(failed) if failed.class == failed.cause.as_str() => failed.class.clone(),
        Some(failed) => format!("{} {}", failed.cause.as_str(), failed.class),
    }
}

fn same_output(ours: (Side<'_>, usize), theirs: (Side<'_>, usize)) -> bool {
    let ((x, i), (y, j)) = (ours, theirs);
    let (a, b) = (&x.verdict.outputs, &y.verdict.outputs);
    topic_name(x, i) == topic_name(y, j)
        && a.partition(i) == b.partition(j)
        && a.key(i, x.columns) == b.key(j, y.columns)
        && a.value(i, x.columns) == b.value(j, y.columns)
        && headers(a, i, x.columns).eq(headers(b, j, y.columns))
}

/// An output's headers: its own, or those of its source message.
pub(crate) fn headers<'a>(
    outputs: &'a Outputs,
    output: usize,
    columns: &'a ColumnBatch,
) -> impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> {
    let own = outputs.own_headers(output, columns);
    let inherited = own
        .is_none()
        .then(|| columns.headers(outputs.source(output)));
    own.into_iter()
        .flatten()
        .chain(inherited.into_iter().flatten())
}

fn topic_name<'a>(side: Side<'a>, output: usize) -> &'a str {
    let topic = side.verdict.outputs.topic(output) as usize;
    let found = side.live.outputs.topics.get(topic);
    found.map_or("", |output| output.topic.spec.name.as_str())
}

fn said(side: Side<'_>, share: &Share<'_>) -> Said {
    let reason = share.failed.map(|failed| cut(failed.reason.clone(), 256));
    let shown = share.outputs.clone().take(SAMPLE_OUTPUTS_MAX);
    Said {
        outcome: outcome(share),
        reason: reason.filter(|reason| !reason.is_empty()),
        output_count: share.outputs.len(),
        outputs: shown.map(|output| said_output(side, output)).collect(),
    }
}

fn said_output(side: Side<'_>, output: usize) -> SaidOutput {
    // Half of the bytes are for the current revision. A field may take half of its output's share.
    let bytes_max = SHADOW_SAMPLE_BYTES_MAX / 2 / SAMPLE_OUTPUTS_MAX;
    let outputs = &side.verdict.outputs;
    let mut shown = Shown::default();
    let key = outputs.key(output, side.columns);
    let key = key.map(|key| shown.text(key, bytes_max / 8));
    let value = outputs.value(output, side.columns);
    let value = value.map(|value| shown.text(value, bytes_max / 2));
    let all = headers(outputs, output, side.columns);
    let first = all.take(SAMPLE_HEADERS_MAX).map(|(name, value)| {
        let value = value.map_or_else(String::new, |value| shown.text(value, bytes_max / 32));
        format!("{}: {value}", shown.text(name, bytes_max / 32))
    });
    let first: Vec<String> = first.collect();
    let header_count = headers(outputs, output, side.columns).count();
    SaidOutput {
        topic: topic_name(side, output).to_owned(),
        partition: outputs.partition(output),
        key,
        value,
        lossy: shown.lossy || first.len() < header_count,
        headers: first,
        header_count,
    }
}

/// Converts bytes to text and remembers whether any text is inexact.
#[derive(Default)]
struct Shown {
    lossy: bool,
}

impl Shown {
    /// The bytes as text, cut after a whole character.
    fn text(&mut self, bytes: &[u8], bytes_max: usize) -> String {
        let kept = &bytes[..bytes.len().min(bytes_max)];
        let is_cut = kept.len() < bytes.len();
        let kept = match str::from_utf8(kept) {
            Err(error) if is_cut && error.error_len().is_none() => &kept[..error.valid_up_to()],
            _ => kept,
        };
        let text = String::from_utf8_lossy(kept);
        self.lossy |= is_cut || matches!(text, Cow::Owned(_));
        match is_cut {
            true => text.into_owned() + "…",
            false => text.into_owned(),
        }
    }
}
