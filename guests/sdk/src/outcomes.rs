//! Collects outcomes in the answer's columns. A column stays empty, which means "as in the input",
//! until the first output that differs in it, so passing a batch through costs one number per
//! message.

use crate::batch::Batch;
use crate::columns::{Answer, Detail, NO_TIME, NONE};
use crate::outcome::Outcome;
use crate::output::Output;
use crate::scratch::{Scratch, Span};

pub(crate) const ACK: u8 = 0;
pub(crate) const EMIT: u8 = 1;
pub(crate) const RETRY: u8 = 2;
pub(crate) const REJECT: u8 = 3;

/// The outcomes of a batch, one for each message, in order.
#[derive(Debug)]
pub struct Outcomes<'a> {
    batch: &'a Batch,
    answer: Answer,
}

impl<'a> Outcomes<'a> {
    /// No outcomes yet.
    #[must_use]
    pub fn new(batch: &'a Batch) -> Self {
        let outcomes = Vec::with_capacity(batch.len());
        Self {
            batch,
            answer: Answer {
                outcomes,
                ..Answer::default()
            },
        }
    }

    /// Sets the outcome of the next message. Panics if all messages have their outcome, or if an
    /// output belongs to another message.
    #[inline]
    pub fn push(&mut self, outcome: Outcome) {
        assert!(
            self.answer.outcomes.len() < self.batch.len(),
            "each message has one outcome"
        );
        match outcome {
            Outcome::Ack => self.answer.outcomes.push(ACK),
            Outcome::Emit(output) => self.emit(&output),
            Outcome::EmitAll(outputs) => self.emit_all(&outputs),
            Outcome::Retry {
                after,
                class,
                reason,
            } => {
                let after_ms = after.map(|after| after.as_millis().try_into().unwrap_or(u64::MAX));
                self.fail(RETRY, after_ms, class.into_owned(), reason.into_owned());
            }
            Outcome::Reject { class, reason } => {
                self.fail(REJECT, None, class.into_owned(), reason.into_owned());
            }
        }
    }

    #[inline]
    fn emit(&mut self, output: &Output) {
        self.add(output);
        self.answer.outcomes.push(EMIT);
    }

    fn emit_all(&mut self, outputs: &[Output]) {
        outputs.iter().for_each(|output| self.add(output));
        self.answer
            .outcomes
            .push(if outputs.is_empty() { ACK } else { EMIT });
    }

    fn fail(&mut self, outcome: u8, after_ms: Option<u64>, class: String, reason: String) {
        let message = self.answer.outcomes.len() as u32;
        self.answer.details.push(Detail {
            message,
            after_ms,
            class,
            reason,
        });
        self.answer.outcomes.push(outcome);
    }

    /// Adds an output of the current message.
    #[inline]
    fn add(&mut self, output: &Output) {
        let scratch: &Scratch = &self.batch.scratch;
        assert!(
            std::ptr::eq(scratch, &raw const *output.scratch)
                && output.source as usize == self.answer.outcomes.len(),
            "an output belongs to the message that it was made from",
        );
        let (answer, input) = (&mut self.answer, &scratch.input);
        let room = self.batch.len();
        add_span(
            &mut answer.keys,
            output.key,
            output.source,
            &answer.sources,
            &input.keys,
            room,
        );
        add_span(
            &mut answer.values,
            output.value,
            output.source,
            &answer.sources,
            &input.values,
            room,
        );
        add_number(&mut answer.topics, output.topic, answer.sources.len(), room);
        add_number(
            &mut answer.partitions,
            output.partition,
            answer.sources.len(),
            room,
        );
        add_headers(answer, output, scratch, room);
        add_times(answer, output.times, room);
        reserve(&mut answer.sources, room);
        answer.sources.push(output.source);
    }

    /// The answer. Panics if a message has no outcome.
    #[must_use]
    pub fn into_answer(mut self) -> Answer {
        let (given, wanted) = (self.answer.outcomes.len(), self.batch.len());
        assert!(
            given == wanted,
            "{given} outcomes for {wanted} messages: each message has one"
        );
        self.answer.data = self.batch.scratch.data.take();
        self.answer.topic_names = self.batch.scratch.topic_names.take();
        self.answer
    }
}

/// Allocates each column once: most batches have one output per message.
#[inline]
fn reserve(column: &mut Vec<u32>, room: usize) {
    if column.capacity() == 0 {
        column.reserve(room);
    }
}

/// Adds a span. Before the first one that differs from the input, adds those of the earlier
/// outputs.
#[inline]
fn add_span(
    column: &mut Vec<u32>,
    given: Option<Span>,
    source: u32,
    earlier: &[u32],
    input: &[u32],
    room: usize,
) {
    let Some(span) = given else {
        if !column.is_empty() {
            column.extend_from_slice(kept(input, source));
        }
        return;
    };
    if column.is_empty() {
        reserve(column, room * 2);
        earlier
            .iter()
            .for_each(|&source| column.extend_from_slice(kept(input, source)));
    }
    span.push_to(column);
}

/// The span of the input's message.
#[inline]
fn kept(input: &[u32], source: u32) -> &[u32] {
    &input[source as usize * 2..][..2]
}

/// Adds a number. Before the first one that is set, adds "not set" for the earlier outputs.
#[inline]
fn add_number(column: &mut Vec<u32>, given: u32, earlier: usize, room: usize) {
    if given == NONE && column.is_empty() {
        return;
    }
    reserve(column, room);
    column.resize(earlier, NONE);
    column.push(given);
}

/// Adds an output's times. Before the first ones that are set, adds "not set" for the earlier
/// outputs.
#[inline]
fn add_times(answer: &mut Answer, given: [u64; 2], room: usize) {
    if given == [NO_TIME; 2] && answer.times.is_empty() {
        return;
    }
    if answer.times.capacity() == 0 {
        answer.times.reserve(room * 2);
    }
    answer.times.resize(answer.sources.len() * 2, NO_TIME);
    answer.times.extend_from_slice(&given);
}

/// Adds an output's headers. Before the first ones that differ from the input, adds those of the
/// earlier outputs.
#[inline]
fn add_headers(answer: &mut Answer, output: &Output, scratch: &Scratch, room: usize) {
    if output.headers.is_none() && answer.header_ends.is_empty() {
        return;
    }
    reserve(&mut answer.header_ends, room);
    reserve(&mut answer.headers, scratch.input.headers.len() + room * 4);
    for earlier in answer.header_ends.len()..answer.sources.len() {
        keep_headers(answer, scratch, answer.sources[earlier]);
    }
    match output.headers.clone() {
        None => keep_headers(answer, scratch, output.source),
        Some(mine) => {
            answer
                .headers
                .extend_from_slice(&scratch.headers.borrow()[mine]);
            answer.header_ends.push((answer.headers.len() / 4) as u32);
        }
    }
}

/// Adds the headers of the input's message.
#[inline]
fn keep_headers(answer: &mut Answer, scratch: &Scratch, source: u32) {
    let mine = scratch.input_headers(source as usize);
    answer
        .headers
        .extend_from_slice(&scratch.input.headers[mine.start * 4..mine.end * 4]);
    answer.header_ends.push((answer.headers.len() / 4) as u32);
}
