//! The checks of an answer. A failed check says what is wrong.

use millrace_model::bounds::{
    ANSWER_OUTPUT_BYTES_MAX, DELAYED_MESSAGE_BYTES_MAX, FAILURE_CLASS_BYTES_MAX, MESSAGE_BYTES_MAX,
    MESSAGE_HEADERS_MAX,
};
use millrace_model::columns::{Detail, NO_TIME, NONE, OutcomeCode};
use millrace_model::{Answer, ColumnBatch};

use super::{bad, bytes_of, cut, header_range, length, time, topic_of};
use crate::dispatch::failed::Failed;
use crate::dispatch::live::OutputTopics;
use crate::ground::chains::is_trail;
use crate::ground::headers;
use crate::handler::{CallError, Cause};

/// An answer, and the batch that it answers.
pub(super) struct Check<'a> {
    pub(super) answer: &'a Answer,
    pub(super) batch: &'a ColumnBatch,
    pub(super) topics: &'a OutputTopics,
}

impl Check<'_> {
    pub(super) fn outcomes(&self) -> Result<Vec<Failed>, CallError> {
        let (given, asked) = (self.answer.outcomes.len(), self.batch.len());
        if given != asked {
            return bad(format!(
                "{given} outcomes for {asked} messages; return one per message"
            ));
        }
        let mut failed = Vec::new();
        let mut details = self.answer.details.iter().peekable();
        for (message, &number) in self.answer.outcomes.iter().enumerate() {
            let Some(outcome) = OutcomeCode::of(number) else {
                return bad(format!(
                    "outcome {number} of message {message} does not exist; use 0 to 3"
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
                "unexpected detail for message {}; return one for each retried or rejected message, in ascending order",
                detail.message
            )),
        }
    }

    /// The index of each named output topic, and the total bytes of the outputs.
    pub(super) fn outputs(&self, outputs_max: usize) -> Result<(Vec<u32>, usize), CallError> {
        let count = self.answer.sources.len();
        if count > outputs_max {
            return bad(format!("{count} outputs; the maximum is {outputs_max}"));
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
                "column headers has {} entries, but header-ends count {start} headers of four entries each",
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
                    "source {source} of output {output} is lower than the one before; sources must ascend"
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
            false => bad("a message's outcome is emit but it has no output; use ack".to_owned()),
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
                "an output names no topic, and the processor has no output topic".to_owned(),
            );
        }
        for (output, &index) in self.answer.topics.iter().enumerate() {
            if index == NONE && self.topics.default.is_none() {
                return bad(format!(
                    "output {output} names no topic, and the processor has no output topic"
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

    /// Checks timestamps. They are stored signed, as in Kafka; a larger number would be read back
    /// as another one.
    fn times(&self) -> Result<(), CallError> {
        let beyond = |&ms: &u64| ms != NO_TIME && ms > i64::MAX as u64;
        match self.answer.times.iter().position(beyond) {
            None => Ok(()),
            Some(at) => bad(format!(
                "a time of output {} is {}; use milliseconds since the Unix epoch, or {NO_TIME} for none",
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

    /// An output may repeat its message's `millrace-` headers unchanged, but may not set any of its
    /// own. `millrace-hops` is always recomputed.
    fn headers(&self) -> Result<(), CallError> {
        let answer = self.answer;
        let part = |index| bytes_of(answer, self.batch, &answer.headers, index);
        // The headers of one source are collected at a time, because sources ascend: an answer may
        // have a million headers, and its messages thousands.
        let (mut source, mut carried) = (None, Vec::new());
        for output in 0..answer.header_ends.len() {
            for header in header_range(answer, output) {
                let name = part(header * 2).unwrap_or_default();
                if !headers::is_reserved(name) || is_trail(name) {
                    continue;
                }
                if source.replace(answer.sources[output]) != Some(answer.sources[output]) {
                    let headers = self.batch.headers(answer.sources[output] as usize);
                    carried = headers
                        .filter(|(name, _)| headers::is_reserved(name))
                        .collect();
                }
                let value = part(header * 2 + 1);
                if !carried.contains(&(name, value)) {
                    return bad(format!(
                        "output {output} has the header {:?}, which its message does not have; names that begin with {} are reserved for the host",
                        cut(String::from_utf8_lossy(name).into_owned(), 256),
                        headers::PREFIX
                    ));
                }
            }
        }
        Ok(())
    }

    /// The length of a span. The span must lie entirely in the batch's data or entirely in the
    /// answer's.
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
    let own = [Cause::HostDied, Cause::GivenUp].map(Cause::as_str);
    let class = if given.is_empty() || own.contains(&given) {
        // Only the host may set its own headers.
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
