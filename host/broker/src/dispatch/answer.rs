//! Checks every number, span, name and size of an answer before anything uses it.

use millrace_engine::state::StateWrite;
use millrace_model::bounds::{BACKTRACE_BYTES_MAX, BATCH_MESSAGES_MAX, DELAY_MS_MAX};
use millrace_model::columns::{NO_TIME, NONE};
use millrace_model::unit::check_ms;
use millrace_model::{Answer, Attempt, BatchBuilder, ColumnBatch, Timestamp};

mod check;

use check::Check;

use crate::dispatch::failed::Failed;
use crate::dispatch::live::OutputTopics;
use crate::ground::chains::HOPS_CLASS;
use crate::ground::chains::Hops;
use crate::ground::chains::Trail;
use crate::ground::chains::is_trail;
use crate::ground::columns;
use crate::ground::text::cut;
use crate::handler::{CallError, CallUse, Cause};

/// The shadow's answer before the commit, if it was called.
pub(crate) type Glance = Option<Result<Verdict, CallError>>;

/// A handler's checked answer to a batch.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) outputs: Outputs,
    /// The failed messages, by ascending index.
    pub(crate) failed: Vec<Failed>,
    /// The writes to state of the messages that did not fail.
    pub(crate) state: Option<StateWrite>,
    /// Whether the same commit also removes expired entries.
    pub(crate) removes_ended: bool,
    /// The resources that the call used, if known; only set if a message failed.
    pub(crate) used: Option<CallUse>,
    /// Whether failed messages are given up without asking the error handler.
    pub(crate) is_final: bool,
}

/// Checked outputs: spans are in range, topics and partitions exist.
#[derive(Debug, Default)]
pub(crate) struct Outputs {
    answer: Answer,
    /// For each topic name of the answer, the index of the output topic.
    names: Vec<u32>,
    default: u32,
    bytes: usize,
    hops: Hops,
}

impl Verdict {
    /// Checks an answer to `batch`.
    pub(crate) fn of(
        answer: Answer,
        batch: &ColumnBatch,
        topics: &OutputTopics,
        outputs_max: usize,
    ) -> Result<Self, CallError> {
        let check = Check {
            answer: &answer,
            batch,
            topics,
        };
        let failed = check.outcomes()?;
        let (names, bytes) = check.outputs(outputs_max.min(BATCH_MESSAGES_MAX))?;
        let default = topics.default.unwrap_or(NONE);
        Ok(Self {
            outputs: Outputs {
                answer,
                names,
                default,
                bytes,
                hops: Hops::default(),
            },
            failed,
            ..Self::default()
        })
    }

    /// The verdict on a message that was in flight when the host ended several times.
    pub(crate) fn host_died(reason: String) -> Self {
        let cause = Cause::HostDied;
        Self {
            failed: vec![Failed {
                message: 0,
                cause,
                class: cause.as_str().to_owned(),
                reason,
                after_ms: None,
                backtrace: None,
            }],
            ..Self::default()
        }
    }

    /// The verdict on a batch of messages that are all out of hops.
    pub(crate) fn spent(messages: usize, hops_max: u32) -> Self {
        let failed = |message| Failed {
            message,
            cause: Cause::Reject,
            class: HOPS_CLASS.to_owned(),
            reason: format!(
                "it passed {hops_max} processors that count hops, the maximum of hops_max, and was not processed"
            ),
            after_ms: None,
            backtrace: None,
        };
        Self {
            failed: (0..messages).map(failed).collect(),
            is_final: true,
            ..Self::default()
        }
    }

    /// The verdict on messages that an operator gives up, with the last attempt of each.
    pub(crate) fn given_up<'a>(
        last: impl Iterator<Item = Option<&'a Attempt>>,
        by: Option<&str>,
    ) -> Self {
        let cause = Cause::GivenUp;
        let by = by.map_or_else(String::new, |by| format!(" by {by}"));
        let failed = |(message, last): (usize, Option<&Attempt>)| Failed {
            message,
            cause,
            class: last.map_or_else(|| cause.as_str().to_owned(), |last| last.class.clone()),
            reason: match last {
                Some(last) => format!("given up{by}; at last: {}", last.reason),
                None => format!("given up{by} before it was tried"),
            },
            after_ms: None,
            backtrace: None,
        };
        Self {
            failed: last.enumerate().map(failed).collect(),
            is_final: true,
            ..Self::default()
        }
    }

    /// Whether an operator gave the messages up.
    pub(crate) fn is_by_hand(&self) -> bool {
        let mut failed = self.failed.iter();
        failed.any(|failed| failed.cause == Cause::GivenUp)
    }

    /// Whether the call returned, so that this is the component's own decision.
    pub(crate) fn is_returned(&self) -> bool {
        let said = |failed: &Failed| matches!(failed.cause, Cause::Retry | Cause::Reject);
        self.failed.iter().all(said)
    }

    /// The verdict on a message that failed alone in its call.
    pub(crate) fn alone(error: &CallError, used: Option<CallUse>) -> Self {
        let (cause, reason, backtrace) = match error {
            CallError::Trap { message, backtrace } => (Cause::Trap, message.clone(), backtrace),
            CallError::Timeout(_) => (Cause::Timeout, error.to_string(), &String::new()),
            CallError::Memory(reason) => (Cause::Memory, reason.clone(), &String::new()),
            CallError::BadAnswer(reason)
            | CallError::Unavailable(reason)
            | CallError::Host(reason) => (Cause::BadAnswer, reason.clone(), &String::new()),
            CallError::Interrupted => (Cause::BadAnswer, error.to_string(), &String::new()),
        };
        let backtrace = cut(backtrace.clone(), BACKTRACE_BYTES_MAX);
        Self {
            failed: vec![Failed {
                message: 0,
                cause,
                class: cause.as_str().to_owned(),
                reason,
                after_ms: None,
                backtrace: (!backtrace.is_empty()).then_some(backtrace),
            }],
            used,
            ..Self::default()
        }
    }
}

fn bad<T>(what: String) -> Result<T, CallError> {
    Err(CallError::BadAnswer(what))
}

/// The `index`th span of a checked column.
fn bytes_of<'a>(
    answer: &'a Answer,
    batch: &'a ColumnBatch,
    column: &[u32],
    index: usize,
) -> Option<&'a [u8]> {
    let (start, length) = (column[index * 2] as usize, column[index * 2 + 1]);
    if length == NONE {
        return None;
    }
    let length = length as usize;
    Some(match start.checked_sub(batch.data.len()) {
        None => &batch.data[start..start + length],
        Some(start) => &answer.data[start..start + length],
    })
}

fn length(column: &[u32], index: usize) -> usize {
    match column[index * 2 + 1] {
        NONE => 0,
        length => length as usize,
    }
}

fn header_range(answer: &Answer, output: usize) -> std::ops::Range<usize> {
    let start = output
        .checked_sub(1)
        .map_or(0, |before| answer.header_ends[before] as usize);
    start..answer.header_ends[output] as usize
}

/// An output's timestamp (0) or time of delivery (1).
fn time(answer: &Answer, output: usize, which: usize) -> Option<Timestamp> {
    let given = answer.times.get(output * 2 + which).copied();
    given.filter(|&ms| ms != NO_TIME).map(Timestamp)
}

fn topic_of(answer: &Answer, names: &[u32], default: u32, output: usize) -> u32 {
    match answer.topics.get(output) {
        None | Some(&NONE) => default,
        Some(&name) => names[name as usize],
    }
}

impl Outputs {
    /// Makes the outputs carry the hops of their sources, plus one if this processor counts hops.
    pub(crate) fn carry(&mut self, hops: Hops) {
        self.hops = hops;
    }

    /// The number of outputs.
    pub(crate) fn len(&self) -> usize {
        self.answer.sources.len()
    }

    /// Total bytes of the outputs.
    pub(crate) fn byte_count(&self) -> usize {
        self.bytes
    }

    /// The index of the message that an output comes from.
    pub(crate) fn source(&self, output: usize) -> usize {
        self.answer.sources[output] as usize
    }

    /// The output topic, as an index.
    pub(crate) fn topic(&self, output: usize) -> u32 {
        topic_of(&self.answer, &self.names, self.default, output)
    }

    /// The name of the topic that the handler chose, as it wrote it.
    pub(crate) fn topic_named(&self, output: usize) -> Option<&str> {
        let name = self.answer.topics.get(output).copied();
        let name = name.filter(|&name| name != NONE)?;
        self.answer
            .topic_names
            .get(name as usize)
            .map(String::as_str)
    }

    /// The partition that the handler chose.
    pub(crate) fn partition(&self, output: usize) -> Option<u32> {
        let given = self.answer.partitions.get(output).copied();
        given.filter(|&partition| partition != NONE)
    }

    /// An output's key.
    pub(crate) fn key<'a>(&'a self, output: usize, batch: &'a ColumnBatch) -> Option<&'a [u8]> {
        match self.answer.keys.is_empty() {
            true => batch.key(self.source(output)),
            false => self.bytes_of(batch, &self.answer.keys, output),
        }
    }

    /// An output's value.
    pub(crate) fn value<'a>(&'a self, output: usize, batch: &'a ColumnBatch) -> Option<&'a [u8]> {
        match self.answer.values.is_empty() {
            true => batch.value(self.source(output)),
            false => self.bytes_of(batch, &self.answer.values, output),
        }
    }

    fn headers<'a>(
        &'a self,
        output: usize,
        batch: &'a ColumnBatch,
    ) -> impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> + Clone {
        header_range(&self.answer, output).map(move |header| {
            let name = self.bytes_of(batch, &self.answer.headers, header * 2);
            let value = self.bytes_of(batch, &self.answer.headers, header * 2 + 1);
            (name.unwrap_or_default(), value)
        })
    }

    /// An output's headers, unless it keeps its source's.
    pub(crate) fn own_headers<'a>(
        &'a self,
        output: usize,
        batch: &'a ColumnBatch,
    ) -> Option<impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)>> {
        (!self.answer.header_ends.is_empty()).then(|| self.headers(output, batch))
    }

    fn bytes_of<'a>(
        &'a self,
        batch: &'a ColumnBatch,
        column: &[u32],
        index: usize,
    ) -> Option<&'a [u8]> {
        bytes_of(&self.answer, batch, column, index)
    }

    /// When the output is delivered; `None` is at once.
    pub(crate) fn deliver_at(&self, output: usize) -> Option<Timestamp> {
        time(&self.answer, output, 1)
    }

    /// The output's own timestamp, else its time of delivery, else its source's timestamp.
    pub(crate) fn timestamp(&self, output: usize, batch: &ColumnBatch) -> Timestamp {
        let given = time(&self.answer, output, 0).or_else(|| self.deliver_at(output));
        given.unwrap_or_else(|| Timestamp(batch.timestamps[self.source(output)]))
    }

    /// Checks that all times are in milliseconds, and that times of delivery are near enough. A
    /// timestamp copied from the source is not checked.
    pub(crate) fn check_times(&self, batch: &ColumnBatch, now: Timestamp) -> Result<(), CallError> {
        for output in 0..self.answer.times.len() / 2 {
            let own = |at: &Timestamp| at.0 != batch.timestamps[self.source(output)];
            let times = [
                ("timestamp", time(&self.answer, output, 0).filter(own)),
                ("time of delivery", self.deliver_at(output)),
            ];
            for (what, at) in times {
                if let Some(Err(unit)) = at.map(|at| check_ms(at.0, now)) {
                    return bad(format!("the {what} of output {output}: {unit}"));
                }
            }
        }
        let latest = Timestamp(now.0.saturating_add(DELAY_MS_MAX));
        let mut outputs = 0..self.answer.times.len() / 2;
        let far = |output: &usize| self.deliver_at(*output).is_some_and(|due| due > latest);
        match outputs.find(far) {
            None => Ok(()),
            Some(output) => bad(format!(
                "output {output} has a time of delivery more than {DELAY_MS_MAX} ms from now; use milliseconds since the Unix epoch"
            )),
        }
    }

    /// Adds an output to columns that a partitioner reads.
    pub(crate) fn show(&self, output: usize, batch: &ColumnBatch, columns: &mut ColumnBatch) {
        let source = self.source(output);
        let parts = (self.key(output, batch), self.value(output, batch));
        let timestamp = self.timestamp(output, batch).0;
        if self.answer.header_ends.is_empty() {
            columns::push(columns, 0, timestamp, 1, parts, batch.headers(source));
        } else {
            columns::push(columns, 0, timestamp, 1, parts, self.headers(output, batch));
        }
    }

    /// Writes an output into a batch directly from the answer's bytes.
    pub(crate) fn write(&self, output: usize, batch: &ColumnBatch, builder: &mut BatchBuilder) {
        let source = self.source(output);
        let timestamp = self.timestamp(output, batch);
        let parts = (self.key(output, batch), self.value(output, batch));
        let trail = self.hops.after(source);
        let hops = trail.map(|trail| trail.hops.to_string());
        let said = trail.zip(hops.as_deref());
        if !self.answer.header_ends.is_empty() {
            let headers = self.headers(output, batch);
            write_with(builder, timestamp, parts, headers, said);
        } else if trail.is_some() {
            write_with(builder, timestamp, parts, batch.headers(source), said);
        } else {
            let count = batch.header_range(source).len();
            builder.push_parts(timestamp, parts.0, parts.1, count, batch.headers(source));
        }
    }
}

/// Writes a message with these hops and ignores the hops that the component set.
fn write_with<'a>(
    builder: &mut BatchBuilder,
    timestamp: Timestamp,
    (key, value): (Option<&[u8]>, Option<&[u8]>),
    headers: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> + Clone,
    trail: Option<(Trail, &'a str)>,
) {
    let headers = headers.filter(|(name, _)| !is_trail(name));
    let added = trail
        .into_iter()
        .flat_map(|(trail, hops)| trail.headers(hops));
    let count = headers.clone().count() + added.clone().count();
    builder.push_parts(timestamp, key, value, count, headers.chain(added));
}

#[cfg(test)]
mod fuzz_tests;
#[cfg(test)]
mod tests;
