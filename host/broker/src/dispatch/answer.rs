//! Checks an answer before anybody believes it: every number, span, name and size. What comes out is sound.

use millrace_model::bounds::{
    ANSWER_OUTPUT_BYTES_MAX, BACKTRACE_BYTES_MAX, BATCH_MESSAGES_MAX, DELAY_MS_MAX,
    DELAYED_MESSAGE_BYTES_MAX, FAILURE_CLASS_BYTES_MAX, MESSAGE_BYTES_MAX, MESSAGE_HEADERS_MAX,
};
use millrace_model::columns::{Detail, NO_TIME, NONE, OutcomeCode};
use millrace_model::{Answer, BatchBuilder, ColumnBatch, Timestamp};

use millrace_engine::state::StateWrite;

use super::{OutputTopics, dead_letter};
use crate::chains::{HOPS, HOPS_CLASS, Hops};
use crate::columns;
use crate::handler::{CallError, CallUse, Cause};

/// What became of a batch, as far as the handler says.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// What is to be sent on.
    pub(crate) outputs: Outputs,
    /// The failed messages, ascending.
    pub(crate) failed: Vec<Failed>,
    /// What the others wrote to state.
    pub(crate) state: Option<StateWrite>,
    /// What the call used, if any of its messages failed and that is known.
    pub(crate) used: Option<CallUse>,
    /// Whether the failed are given up, and no error handler is asked.
    pub(crate) is_final: bool,
}

/// One failed message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failed {
    /// Its place in the batch.
    pub(crate) message: usize,
    pub(crate) cause: Cause,
    pub(crate) class: String,
    pub(crate) reason: String,
    /// The wait that the handler asks for.
    pub(crate) after_ms: Option<u64>,
    pub(crate) backtrace: Option<String>,
}

/// Checked outputs: spans lie inside, topics and partitions exist.
#[derive(Debug, Default)]
pub(crate) struct Outputs {
    answer: Answer,
    /// For each of the answer's topic names, which output topic it is.
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

    /// The verdict on a message with which the host ended more than once.
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

    /// The verdict on messages that came round too often, all of a batch.
    pub(crate) fn spent(messages: usize, hops_max: u32) -> Self {
        let failed = |message| Failed {
            message,
            cause: Cause::Reject,
            class: HOPS_CLASS.to_owned(),
            reason: format!(
                "it came by {hops_max} processors that count hops, as many as hops_max allows; it was not processed"
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

    /// The verdict on a message that failed its call alone.
    pub(crate) fn alone(error: &CallError, used: Option<CallUse>) -> Self {
        let (cause, reason, backtrace) = match error {
            CallError::Trap { message, backtrace } => (Cause::Trap, message.clone(), backtrace),
            CallError::Timeout(_) => (Cause::Timeout, error.to_string(), &String::new()),
            CallError::Memory(reason) => (Cause::Memory, reason.clone(), &String::new()),
            CallError::BadAnswer(reason)
            | CallError::Unavailable(reason)
            | CallError::Host(reason) => (Cause::BadAnswer, reason.clone(), &String::new()),
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

/// The text, cut to so many bytes at a character.
pub(crate) fn cut(mut text: String, bytes_max: usize) -> String {
    text.truncate(text.floor_char_boundary(bytes_max));
    text
}

fn bad<T>(what: String) -> Result<T, CallError> {
    Err(CallError::BadAnswer(what))
}

struct Check<'a> {
    answer: &'a Answer,
    batch: &'a ColumnBatch,
    topics: &'a OutputTopics,
}

impl Check<'_> {
    fn outcomes(&self) -> Result<Vec<Failed>, CallError> {
        let (given, asked) = (self.answer.outcomes.len(), self.batch.len());
        if given != asked {
            return bad(format!(
                "{given} outcomes for {asked} messages; give one per message"
            ));
        }
        let mut failed = Vec::new();
        let mut details = self.answer.details.iter().peekable();
        for (message, &number) in self.answer.outcomes.iter().enumerate() {
            let Some(outcome) = OutcomeCode::of(number) else {
                return bad(format!(
                    "outcome {number} of message {message}; there are 0 to 3"
                ));
            };
            let cause = match outcome {
                OutcomeCode::Ack | OutcomeCode::Emit => continue,
                OutcomeCode::Retry => Cause::Retry,
                OutcomeCode::Reject => Cause::Reject,
            };
            let detail = details.next_if(|detail| detail.message as usize == message);
            failed.push(failure(message, cause, detail));
        }
        match details.next() {
            None => Ok(failed),
            Some(detail) => bad(format!(
                "a detail for message {}; details stand for retried and rejected messages, ascending, one each",
                detail.message
            )),
        }
    }

    /// Which output topic each name is, and the bytes of all outputs.
    fn outputs(&self, outputs_max: usize) -> Result<(Vec<u32>, usize), CallError> {
        let count = self.answer.sources.len();
        if count > outputs_max {
            return bad(format!("{count} outputs; at most {outputs_max} are taken"));
        }
        self.columns(count)?;
        self.sources()?;
        let names = self.names()?;
        self.places(count, &names)?;
        self.times()?;
        let bytes = self.sizes(count)?;
        self.headers()?;
        Ok((names, bytes))
    }

    fn columns(&self, count: usize) -> Result<(), CallError> {
        let answer = self.answer;
        let lengths = [
            ("topics", answer.topics.len(), 1),
            ("partitions", answer.partitions.len(), 1),
            ("keys", answer.keys.len(), 2),
            ("values", answer.values.len(), 2),
            ("header-ends", answer.header_ends.len(), 1),
            ("times", answer.times.len(), 2),
        ];
        for (column, length, width) in lengths {
            if length != 0 && length != count * width {
                return bad(format!(
                    "column {column} has {length} entries for {count} outputs; it has {} or none",
                    count * width
                ));
            }
        }
        let mut start = 0;
        for (output, &end) in answer.header_ends.iter().enumerate() {
            if end < start || (end - start) as usize > MESSAGE_HEADERS_MAX {
                return bad(format!(
                    "header-ends of output {output} goes from {start} to {end}; an output has 0 to {MESSAGE_HEADERS_MAX} headers"
                ));
            }
            start = end;
        }
        match answer.headers.len() == start as usize * 4 {
            true => Ok(()),
            false => bad(format!(
                "column headers has {} entries where header-ends tell of {start} headers, four entries each",
                answer.headers.len()
            )),
        }
    }

    fn sources(&self) -> Result<(), CallError> {
        let emit = OutcomeCode::Emit as u8;
        let mut sending = 0;
        let mut last = None;
        for (output, &source) in self.answer.sources.iter().enumerate() {
            if last.is_some_and(|last| source < last) {
                return bad(format!(
                    "source {source} of output {output} goes back; sources ascend"
                ));
            }
            if self.answer.outcomes.get(source as usize) != Some(&emit) {
                return bad(format!(
                    "output {output} comes from message {source}, whose outcome is not emit"
                ));
            }
            sending += usize::from(last != Some(source));
            last = Some(source);
        }
        let emits = self
            .answer
            .outcomes
            .iter()
            .filter(|&&outcome| outcome == emit);
        match emits.count() == sending {
            true => Ok(()),
            false => bad("a message's outcome is emit and it has no output; say ack".to_owned()),
        }
    }

    fn names(&self) -> Result<Vec<u32>, CallError> {
        let name = |name: &String| {
            self.topics.find(name).ok_or_else(|| {
                CallError::BadAnswer(format!(
                    "output topic {:?} does not exist or is not granted; add it to the processor's grants",
                    cut(name.clone(), 256)
                ))
            })
        };
        self.answer.topic_names.iter().map(name).collect()
    }

    fn places(&self, count: usize, names: &[u32]) -> Result<(), CallError> {
        if count > 0 && self.answer.topics.is_empty() && self.topics.default.is_none() {
            return bad(
                "an output names no topic and the processor has no output topic".to_owned(),
            );
        }
        for (output, &index) in self.answer.topics.iter().enumerate() {
            if index == NONE && self.topics.default.is_none() {
                return bad(format!(
                    "output {output} names no topic and the processor has no output topic"
                ));
            }
            if index != NONE && index as usize >= names.len() {
                return bad(format!(
                    "output {output} names topic {index} of {}",
                    names.len()
                ));
            }
        }
        for (output, &partition) in self.answer.partitions.iter().enumerate() {
            let topic = topic_of(
                self.answer,
                names,
                self.topics.default.unwrap_or(NONE),
                output,
            );
            let partitions = self.topics.partitions(topic);
            if partition != NONE && partition >= partitions && !self.topics.takes_all {
                return bad(format!(
                    "output {output} goes to partition {partition} of {partitions}"
                ));
            }
        }
        Ok(())
    }

    /// What is stored is signed, as in Kafka; a larger number would come back as another one.
    fn times(&self) -> Result<(), CallError> {
        let beyond = |&ms: &u64| ms != NO_TIME && ms > i64::MAX as u64;
        match self.answer.times.iter().position(beyond) {
            None => Ok(()),
            Some(at) => bad(format!(
                "a time of output {} is {}; give milliseconds since the Unix epoch, or {NO_TIME} for none",
                at / 2,
                self.answer.times[at]
            )),
        }
    }

    fn sizes(&self, count: usize) -> Result<usize, CallError> {
        let mut total = 0;
        for output in 0..count {
            let size = self.size(output)?;
            if size > MESSAGE_BYTES_MAX {
                return bad(format!(
                    "output {output} has {size} bytes; a message has at most {MESSAGE_BYTES_MAX}"
                ));
            }
            if size > DELAYED_MESSAGE_BYTES_MAX && time(self.answer, output, 1).is_some() {
                return bad(format!(
                    "output {output} has {size} bytes; one with a time of delivery has at most {DELAYED_MESSAGE_BYTES_MAX}"
                ));
            }
            total += size;
            if total > ANSWER_OUTPUT_BYTES_MAX {
                return bad(format!(
                    "the outputs have more than {ANSWER_OUTPUT_BYTES_MAX} bytes together"
                ));
            }
        }
        Ok(total)
    }

    fn size(&self, output: usize) -> Result<usize, CallError> {
        let answer = self.answer;
        let source = answer.sources[output] as usize;
        let mut size = match answer.keys.is_empty() {
            true => length(&self.batch.keys, source),
            false => self.span("key", output, &answer.keys, output)?,
        };
        size += match answer.values.is_empty() {
            true => length(&self.batch.values, source),
            false => self.span("value", output, &answer.values, output)?,
        };
        if answer.header_ends.is_empty() {
            for header in self.batch.header_range(source) {
                size += length(&self.batch.headers, header * 2);
                size += length(&self.batch.headers, header * 2 + 1) + 10;
            }
            return Ok(size);
        }
        for header in header_range(answer, output) {
            if answer.headers[header * 4 + 1] == NONE {
                return bad(format!("a header of output {output} has no name"));
            }
            size += self.span("header", output, &answer.headers, header * 2)?;
            size += self.span("header", output, &answer.headers, header * 2 + 1)? + 10;
        }
        Ok(size)
    }

    /// What the host said of a message may be carried on; nobody says anything in its name. Hops are the exception: whatever is said
    /// of them, they are counted anew.
    fn headers(&self) -> Result<(), CallError> {
        let answer = self.answer;
        let part = |index| bytes_of(answer, self.batch, &answer.headers, index);
        // Those of one source at a time, for sources ascend: an answer may have a million headers, and its messages thousands.
        let (mut source, mut carried) = (None, Vec::new());
        for output in 0..answer.header_ends.len() {
            for header in header_range(answer, output) {
                let name = part(header * 2).unwrap_or_default();
                if !dead_letter::is_reserved(name) || name == HOPS.as_bytes() {
                    continue;
                }
                if source.replace(answer.sources[output]) != Some(answer.sources[output]) {
                    let headers = self.batch.headers(answer.sources[output] as usize);
                    carried = headers
                        .filter(|(name, _)| dead_letter::is_reserved(name))
                        .collect();
                }
                let value = part(header * 2 + 1);
                if !carried.contains(&(name, value)) {
                    return bad(format!(
                        "output {output} has the header {:?}, which its message does not have so; names that begin with {} are the host's own",
                        cut(String::from_utf8_lossy(name).into_owned(), 256),
                        dead_letter::PREFIX
                    ));
                }
            }
        }
        Ok(())
    }

    /// The length of a span, which lies whole in the batch's data or whole in the answer's.
    fn span(
        &self,
        what: &str,
        output: usize,
        column: &[u32],
        index: usize,
    ) -> Result<usize, CallError> {
        let (start, length) = (column[index * 2], column[index * 2 + 1]);
        if length == NONE {
            return Ok(0);
        }
        let (theirs, ours) = (self.batch.data.len() as u64, self.answer.data.len() as u64);
        let end = u64::from(start) + u64::from(length);
        let inside = match u64::from(start) < theirs {
            true => end <= theirs,
            false => end <= theirs + ours,
        };
        match inside {
            true => Ok(length as usize),
            false => bad(format!(
                "the {what} of output {output} is bytes {start} to {end}; the batch has {theirs} and the answer {ours} after them"
            )),
        }
    }
}

fn failure(message: usize, cause: Cause, detail: Option<&Detail>) -> Failed {
    let given = detail
        .map(|detail| detail.class.as_str())
        .unwrap_or_default();
    let class = if given.is_empty() || given == Cause::HostDied.as_str() {
        // The latter is the host's own word: it says that a message was never answered.
        cause.as_str()
    } else {
        given
    };
    Failed {
        message,
        cause,
        class: cut(class.to_owned(), FAILURE_CLASS_BYTES_MAX),
        reason: detail
            .map(|detail| detail.reason.clone())
            .unwrap_or_default(),
        after_ms: detail.and_then(|detail| detail.after_ms),
        backtrace: None,
    }
}

/// The `index`th span of a column that was checked.
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
    /// From now on they carry the hops of their sources, and one more where they are counted.
    pub(crate) fn carry(&mut self, hops: Hops) {
        self.hops = hops;
    }

    /// How many.
    pub(crate) fn len(&self) -> usize {
        self.answer.sources.len()
    }

    /// Bytes of all of them.
    pub(crate) fn byte_count(&self) -> usize {
        self.bytes
    }

    /// The message that an output comes from.
    pub(crate) fn source(&self, output: usize) -> usize {
        self.answer.sources[output] as usize
    }

    /// The output topic, as an index.
    pub(crate) fn topic(&self, output: usize) -> u32 {
        topic_of(&self.answer, &self.names, self.default, output)
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

    /// An output's headers, if it does not keep its source's.
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

    /// When it is delivered; `None` is at once.
    pub(crate) fn deliver_at(&self, output: usize) -> Option<Timestamp> {
        time(&self.answer, output, 1)
    }

    /// Its own, that of its delivery, or its source's.
    fn timestamp(&self, output: usize, batch: &ColumnBatch) -> Timestamp {
        let given = time(&self.answer, output, 0).or_else(|| self.deliver_at(output));
        given.unwrap_or_else(|| Timestamp(batch.timestamps[self.source(output)]))
    }

    /// Whether all times of delivery are near enough.
    pub(crate) fn check_delays(&self, now: Timestamp) -> Result<(), CallError> {
        let latest = Timestamp(now.0.saturating_add(DELAY_MS_MAX));
        let mut outputs = 0..self.answer.times.len() / 2;
        let far = |output: &usize| self.deliver_at(*output).is_some_and(|due| due > latest);
        match outputs.find(far) {
            None => Ok(()),
            Some(output) => bad(format!(
                "output {output} is to be delivered more than {DELAY_MS_MAX} ms from now; give milliseconds since the Unix epoch"
            )),
        }
    }

    /// Adds an output to columns, for a partitioner to see.
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

    /// Writes an output into a batch: straight from where it lies.
    pub(crate) fn write(&self, output: usize, batch: &ColumnBatch, builder: &mut BatchBuilder) {
        let source = self.source(output);
        let timestamp = self.timestamp(output, batch);
        let parts = (self.key(output, batch), self.value(output, batch));
        let hops = self.hops.after(source).map(|hops| hops.to_string());
        let hops = hops.as_deref();
        if !self.answer.header_ends.is_empty() {
            write_with(builder, timestamp, parts, self.headers(output, batch), hops);
        } else if hops.is_some() {
            write_with(builder, timestamp, parts, batch.headers(source), hops);
        } else {
            let count = batch.header_range(source).len();
            builder.push_parts(timestamp, parts.0, parts.1, count, batch.headers(source));
        }
    }
}

/// Writes a message with these hops and no others, whatever the component says.
fn write_with<'a>(
    builder: &mut BatchBuilder,
    timestamp: Timestamp,
    (key, value): (Option<&[u8]>, Option<&[u8]>),
    headers: impl Iterator<Item = (&'a [u8], Option<&'a [u8]>)> + Clone,
    hops: Option<&'a str>,
) {
    let headers = headers.filter(|(name, _)| *name != HOPS.as_bytes());
    let added = hops.map(|hops| (HOPS.as_bytes(), Some(hops.as_bytes())));
    let count = headers.clone().count() + usize::from(hops.is_some());
    builder.push_parts(timestamp, key, value, count, headers.chain(added));
}

#[cfg(test)]
mod tests;
