//! Dry runs: what would a revision do with these dead letters? It is loaded in addition to the
//! current one and called with them as a worker would call it; nothing is committed, and its writes
//! to state are discarded.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millrace_engine::state::StateAttempt;
use millrace_model::bounds::{
    DEAD_LETTER_GROUPS_MAX, DRY_RUN_LETTERS_MAX, DRY_RUN_MS_MAX, DRY_RUN_OUTPUT_BYTES_MAX,
    DRY_RUN_OUTPUTS_MAX,
};
use millrace_model::processor::BatchPolicy;
use millrace_model::{Answer, ColumnBatch, Message, ProcessorName, TopicName};
use serde::Serialize;

use crate::dead_letters::handle::DeadLetters;
use crate::dead_letters::letters::{DeadLetter, DeadLetterError};
use crate::dead_letters::redrive::RedriveWhich;
use crate::dead_letters::shelf::Shelf;
use crate::dispatch::answer::Verdict;
use crate::dispatch::live::Live;
use crate::dispatch::{dead_letter, placing};
use crate::ground::verbs::Verb;
use crate::ground::{chains, columns};
use crate::handler::{CallError, Called};
use crate::messages::fetch::FetchError;
use crate::messages::place::MessagePlace;
use crate::processors::error::ProcessorError;

/// The outcome under which successful messages are counted.
const OK: &str = "ok";
/// The class under which failures are counted beyond the maximum number of classes.
const OTHER: &str = "other";

/// What to try.
#[derive(Clone, Debug)]
pub struct DryRunRequest {
    /// The dead letters.
    pub which: RedriveWhich,
    /// The revision; the current one if `None`.
    pub revision: Option<u32>,
    /// Maximum number of dead letters; at most [`DRY_RUN_LETTERS_MAX`].
    pub letters_max: usize,
}

/// The result of a dry run. None of it has happened.
#[derive(Clone, Debug, Default)]
pub struct DryRun {
    /// The revision that was tried.
    pub revision: u32,
    /// How many dead letters it was called with.
    pub letters: usize,
    /// Its outcomes, most frequent first.
    pub outcomes: Vec<DryRunOutcome>,
    /// Number of outputs that would be written.
    pub outputs: usize,
    /// Some of these outputs.
    pub samples: Vec<DryRunOutput>,
    /// Where to continue, if a bound ended the run.
    pub next: Option<MessagePlace>,
    /// Why the run stopped early, if it did.
    pub stopped: Option<String>,
}

/// Dead letters with the same outcome.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DryRunOutcome {
    /// `ok`, or how it failed: `retry`, `reject`, `trap`, `timeout`, `memory`, `bad-answer`.
    pub outcome: String,
    /// The class of the failure; that of `ok` is empty.
    pub class: String,
    /// Their number.
    pub count: u64,
    /// The place of one of them.
    pub sample: MessagePlace,
    /// The reason given for that one.
    pub reason: String,
}

/// An output that would be written.
#[derive(Clone, Debug)]
pub struct DryRunOutput {
    /// The dead letter it comes from.
    pub letter: MessagePlace,
    /// Its topic.
    pub topic: TopicName,
    /// Its key, cut to a maximum length.
    pub key: Option<Bytes>,
    /// Its value, cut to a maximum length.
    pub value: Option<Bytes>,
    /// Whether either was cut.
    pub is_cut: bool,
}

impl DeadLetters {
    /// Tries dead letters with a revision, and reports what would happen.
    ///
    /// # Errors
    /// [`DeadLetterError`]; nothing happens in any case.
    pub async fn dry_run(
        &self,
        name: &ProcessorName,
        request: DryRunRequest,
    ) -> Result<DryRun, DeadLetterError> {
        self.caller.may(Verb::Redrive, name.as_str())?;
        let under_way = self.inner.dry_runs.try_acquire();
        let _under_way = under_way.map_err(|_| DeadLetterError::Busy)?;
        let live = self.revision_to_try(name, request.revision).await?;
        let mut running = Running {
            room: self,
            processor: name,
            left: request.letters_max.clamp(1, DRY_RUN_LETTERS_MAX),
            started: self.inner.clock.monotonic(),
            kinds: BTreeMap::new(),
            report: DryRun {
                revision: live.revision,
                ..DryRun::default()
            },
            live,
        };
        match request.which {
            RedriveWhich::Places(places) => running.places(places).await?,
            RedriveWhich::Matching { filter, from } => {
                let mut walk = self.walk(name, from.as_ref())?;
                while let Some((shelf, mut letters)) = self.advance(&mut walk).await? {
                    letters.retain(|letter| filter.fits(letter));
                    letters.truncate(running.left);
                    let last = letters.last().map(|letter| letter.place().after());
                    if !running.letters(&shelf, &letters).await? {
                        break;
                    }
                    if running.left == 0 {
                        running.report.next = last.filter(|last| walk.is_more_from(last));
                        break;
                    }
                    // The time counts even if few dead letters match, because reading takes time as
                    // well.
                    if running.is_over() {
                        running.report.next = walk.next_place();
                        break;
                    }
                }
            }
        }
        Ok(running.finish())
    }

    async fn revision_to_try(
        &self,
        name: &ProcessorName,
        number: Option<u32>,
    ) -> Result<Live, DeadLetterError> {
        let deployed = self.inner.catalogue.processors().get(name).cloned();
        let unknown = || DeadLetterError::UnknownProcessor(name.clone());
        let processor = deployed.ok_or_else(unknown)?.processor;
        let number = number.unwrap_or(processor.current);
        let mut revisions = processor.revisions.iter();
        let revision = revisions.find(|revision| revision.number == number);
        let missing = || ProcessorError::NoSuchRevision {
            name: name.clone(),
            revision: number,
            kept: processor.revisions.iter().map(|r| r.number).collect(),
        };
        let revision = revision.ok_or_else(missing)?;
        Ok(self
            .inner
            .processors
            .load(name, revision, name.as_str())
            .await?)
    }
}

/// A running dry run.
struct Running<'a> {
    room: &'a DeadLetters,
    processor: &'a ProcessorName,
    live: Live,
    /// Dead letters that may still be tried.
    left: usize,
    started: Duration,
    kinds: BTreeMap<(String, String), DryRunOutcome>,
    report: DryRun,
}

impl Running<'_> {
    async fn places(&mut self, places: Vec<MessagePlace>) -> Result<(), DeadLetterError> {
        for place in places {
            let (topic, partition, offset) = (&place.topic, place.partition, place.offset);
            let shelf = self.room.shelf(self.processor, topic, partition, offset)?;
            let letter = self.room.letter(&shelf, offset).await?;
            if !self.letters(&shelf, &[letter]).await? || self.left == 0 {
                break;
            }
        }
        Ok(())
    }

    /// Tries dead letters of one shelf; returns false if the run has to end.
    async fn letters(
        &mut self,
        shelf: &Shelf,
        letters: &[DeadLetter],
    ) -> Result<bool, DeadLetterError> {
        let letters = &letters[..letters.len().min(self.left)];
        let mut pieces = pieces(letters, &self.live.spec.batch);
        while let Some(piece) = pieces.pop() {
            if self.is_over() {
                self.report.next = piece.first().map(DeadLetter::place);
                return Ok(false);
            }
            let columns = Arc::new(columns_of(shelf, piece));
            let spent = chains::spent(self.live.spec.hops_max, &columns);
            if !spent.is_empty() && spent.len() < piece.len() {
                pieces.extend(apart(piece, &spent));
                continue;
            }
            let answered = match self.live.spec.hops_max.filter(|_| !spent.is_empty()) {
                Some(hops_max) => Ok(Verdict::spent(piece.len(), hops_max)),
                None => self.call(shelf, &columns).await?,
            };
            match answered {
                Ok(verdict) => self.note(piece, &columns, &verdict),
                Err(
                    error @ (CallError::Unavailable(_)
                    | CallError::Interrupted
                    | CallError::Host(_)),
                ) => {
                    self.report.stopped = Some(why_stopped(error, self.is_over()));
                    self.report.next = piece.first().map(DeadLetter::place);
                    return Ok(false);
                }
                Err(_) if piece.len() > 1 => {
                    let (first, second) = piece.split_at(piece.len() / 2);
                    pieces.extend([second, first]);
                }
                Err(error) => self.note(piece, &columns, &Verdict::alone(&error, None)),
            }
        }
        Ok(true)
    }

    fn is_over(&self) -> bool {
        let time = self.room.inner.clock.monotonic();
        time.saturating_sub(self.started) >= Duration::from_millis(DRY_RUN_MS_MAX)
    }

    async fn call(
        &self,
        shelf: &Shelf,
        batch: &Arc<ColumnBatch>,
    ) -> Result<Result<Verdict, CallError>, DeadLetterError> {
        let attempt = self.attempt(shelf, batch.len()).await?;
        // The caller may be gone, so a guest that does not answer does not get its full time here.
        let time = self.room.inner.clock.monotonic();
        let left =
            Duration::from_millis(DRY_RUN_MS_MAX).saturating_sub(time.saturating_sub(self.started));
        let called = tokio::time::timeout(left, self.live.handler.call(batch, attempt)).await;
        let Ok(Called { outcome, .. }) = called else {
            return Ok(Err(CallError::Interrupted));
        };
        Ok(match outcome {
            Ok((answer, _)) => self.check(answer, batch).await,
            Err(error) => Err(error),
        })
    }

    /// Checks the answer as a worker does.
    async fn check(&self, answer: Answer, batch: &ColumnBatch) -> Result<Verdict, CallError> {
        let topics = &self.live.outputs;
        let outputs_max = self.live.spec.limits.answer_outputs_max as usize;
        let verdict = Verdict::of(answer, batch, topics, outputs_max)?;
        let now = self.room.inner.clock.wall();
        verdict.outputs.check_times(batch, now)?;
        let moment = self.room.inner.clock.monotonic();
        placing::place(&verdict.outputs, batch, topics, moment).await?;
        Ok(verdict)
    }

    /// The committed state at the dead letters' origin, to be written over and thrown away.
    async fn attempt(
        &self,
        shelf: &Shelf,
        messages: usize,
    ) -> Result<Option<Box<StateAttempt>>, DeadLetterError> {
        if !self.live.handler.uses_state() {
            return Ok(None);
        }
        let no_input = || DeadLetterError::NotAnInput {
            processor: self.processor.clone(),
            topic: shelf.origin().to_owned(),
        };
        let topic = TopicName::parse(shelf.origin()).map_err(|_| no_input())?;
        let topic = self
            .room
            .inner
            .catalogue
            .topic(&topic)
            .ok_or_else(no_input)?;
        let partition = topic.partition(shelf.partition.partition);
        let engine = &self.room.inner.engine;
        let group = &self.processor.group();
        let table = engine.state(group, partition.ok_or_else(no_input)?).await;
        let table = table.map_err(FetchError::Read)?;
        let now = self.room.inner.clock.wall();
        let attempt = StateAttempt::new(table, now, messages);
        Ok(Some(Box::new(attempt.at_one_moment())))
    }

    fn note(&mut self, letters: &[DeadLetter], batch: &ColumnBatch, verdict: &Verdict) {
        self.left -= letters.len();
        self.report.letters += letters.len();
        let mut failed = verdict.failed.iter().peekable();
        for (message, letter) in letters.iter().enumerate() {
            match failed.next_if(|failed| failed.message == message) {
                None => self.count(letter, OK, "", ""),
                Some(failed) => {
                    self.count(letter, failed.cause.as_str(), &failed.class, &failed.reason);
                }
            }
        }
        let outputs = &verdict.outputs;
        self.report.outputs += outputs.len();
        let room = DRY_RUN_OUTPUTS_MAX.saturating_sub(self.report.samples.len());
        for output in 0..outputs.len().min(room) {
            let (key, value) = (outputs.key(output, batch), outputs.value(output, batch));
            let topic = &self.live.outputs.topics[outputs.topic(output) as usize].topic;
            let is_long = |bytes: Option<&[u8]>| {
                bytes.is_some_and(|bytes| bytes.len() > DRY_RUN_OUTPUT_BYTES_MAX)
            };
            self.report.samples.push(DryRunOutput {
                letter: letters[outputs.source(output)].place(),
                topic: topic.spec.name.clone(),
                key: key.map(shortened),
                value: value.map(shortened),
                is_cut: is_long(key) || is_long(value),
            });
        }
    }

    fn count(&mut self, letter: &DeadLetter, outcome: &str, class: &str, reason: &str) {
        let mut kind = (outcome.to_owned(), class.to_owned());
        if self.kinds.len() >= DEAD_LETTER_GROUPS_MAX && !self.kinds.contains_key(&kind) {
            kind = (OTHER.to_owned(), String::new());
        }
        let counted = self
            .kinds
            .entry(kind)
            .or_insert_with_key(|kind| DryRunOutcome {
                outcome: kind.0.clone(),
                class: kind.1.clone(),
                count: 0,
                sample: letter.place(),
                reason: reason.to_owned(),
            });
        counted.count += 1;
    }

    fn finish(self) -> DryRun {
        let mut report = self.report;
        report.outcomes = self.kinds.into_values().collect();
        report
            .outcomes
            .sort_by_key(|outcome| std::cmp::Reverse(outcome.count));
        report
    }
}

fn why_stopped(error: CallError, is_over: bool) -> String {
    match error {
        CallError::Unavailable(reason) | CallError::Host(reason) => reason,
        CallError::Interrupted if is_over => format!(
            "a call was still running when the {DRY_RUN_MS_MAX} ms of the dry run had passed, and was interrupted; try fewer dead letters at once"
        ),
        error => error.to_string(),
    }
}

fn shortened(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(&bytes[..bytes.len().min(DRY_RUN_OUTPUT_BYTES_MAX)])
}

/// The dead letters cut into batches: each ends at whichever bound is reached first, with at least one dead letter. The first piece
/// comes last.
fn pieces<'a>(mut letters: &'a [DeadLetter], policy: &BatchPolicy) -> Vec<&'a [DeadLetter]> {
    let mut pieces = Vec::new();
    while !letters.is_empty() {
        let mut bytes = 0;
        let fits = |letter: &&DeadLetter| {
            bytes += byte_count(&letter.message);
            bytes <= policy.bytes_max as usize
        };
        let count = letters.iter().take(policy.messages_max as usize);
        let (piece, rest) = letters.split_at(count.take_while(fits).count().max(1));
        pieces.push(piece);
        letters = rest;
    }
    pieces.reverse();
    pieces
}

/// A piece, split as a worker does: dead letters that are out of hops, which are not called, and others. The first comes last.
fn apart<'a>(mut piece: &'a [DeadLetter], spent: &[usize]) -> Vec<&'a [DeadLetter]> {
    let runs = chains::runs(spent, piece.len()).into_iter();
    let mut parts: Vec<_> = runs
        .map(|letters| piece.split_off(..letters).unwrap_or_default())
        .collect();
    parts.reverse();
    parts
}

/// Bytes of the message without its evidence.
fn byte_count(message: &Message) -> usize {
    let length = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
    let headers = dead_letter::kept(message);
    let headers = headers
        .iter()
        .map(|header| header.name.len() + length(&header.value));
    length(&message.key) + length(&message.value) + headers.sum::<usize>()
}

/// The dead letters as the handler saw the messages first: without evidence, at their original place.
fn columns_of(shelf: &Shelf, letters: &[DeadLetter]) -> ColumnBatch {
    let mut batch = ColumnBatch {
        topic: shelf.origin().to_owned(),
        partition: shelf.partition.partition.0,
        ..ColumnBatch::default()
    };
    for letter in letters {
        let message = &letter.message;
        let headers = dead_letter::kept(message);
        let headers = headers
            .iter()
            .map(|header| (&header.name[..], header.value.as_deref()));
        let (offset, parts) = (
            letter.origin_offset.0,
            (message.key.as_deref(), message.value.as_deref()),
        );
        columns::push(&mut batch, offset, message.timestamp.0, 1, parts, headers);
    }
    batch
}
