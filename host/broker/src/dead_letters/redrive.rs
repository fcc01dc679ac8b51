//! Redrives dead letters, to their own processor only. Each transaction appends some messages to the redrive topic, marks their dead
//! letters and records that. It runs to its end even if the caller goes away, so nothing is sent twice, and stopping between two
//! transactions is always safe.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::ops::AddAssign;
use std::sync::Arc;
use std::time::Duration;

use millrace_engine::{Append, CommitError, EntryKind, Expectation, Transaction};
use millrace_model::bounds::{REDRIVE_PACED_MS_MAX, REDRIVES_MAX};
use millrace_model::{BatchBuilder, Offset, ProcessorName, Timestamp, TopicName, TopicPartition};
use serde::Serialize;

use crate::catalogue::deciding::decided;
use crate::catalogue::deployed::Deployed;
use crate::dead_letters::audit::{AuditAction, EditDigests};
use crate::dead_letters::filter::{DeadLetterFilter, Redrives};
use crate::dead_letters::handle::DeadLetters;
use crate::dead_letters::letters::{DeadLetter, DeadLetterError, LETTERS_BYTES, LETTERS_MAX};
use crate::dead_letters::record::Sent;
use crate::dead_letters::shelf::Shelf;
use crate::dispatch::dead_letter;
use crate::ground::own_topics::{DEAD_LETTERS_SUFFIX, REDRIVE_SUFFIX};
use crate::ground::verbs::Verb;
use crate::messages::place::MessagePlace;

/// Approximate transactions per second of a paced redrive.
const STEPS_PER_SECOND: u32 = 10;

/// What to redrive, and how.
#[derive(Clone, Debug)]
pub struct RedriveRequest {
    /// The dead letters.
    pub which: RedriveWhich,
    /// Maximum number.
    pub letters_max: Option<usize>,
    /// Maximum number per second. A paced redrive ends after [`REDRIVE_PACED_MS_MAX`] and says where to continue.
    pub per_second: Option<NonZeroU32>,
    /// Include those that were redriven [`REDRIVES_MAX`] times before and failed each time.
    pub again: bool,
}

/// Which dead letters to redrive.
#[derive(Clone, Debug)]
pub enum RedriveWhich {
    /// These, however often they failed.
    Places(Vec<MessagePlace>),
    /// Those that match and were not redriven.
    Matching {
        /// The filter.
        filter: Box<DeadLetterFilter>,
        /// Where to start; `None` is the first one.
        from: Option<MessagePlace>,
    },
}

impl RedriveRequest {
    /// Everything that was not redriven.
    #[must_use]
    pub fn all() -> Self {
        Self::matching(DeadLetterFilter::default())
    }

    /// Everything that matches and was not redriven.
    #[must_use]
    pub fn matching(filter: DeadLetterFilter) -> Self {
        let filter = Box::new(filter);
        Self::of(RedriveWhich::Matching { filter, from: None })
    }

    /// These dead letters.
    #[must_use]
    pub fn places(places: Vec<MessagePlace>) -> Self {
        Self::of(RedriveWhich::Places(places))
    }

    fn of(which: RedriveWhich) -> Self {
        Self {
            which,
            letters_max: None,
            per_second: None,
            again: false,
        }
    }
}

/// What a redrive did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Redriven {
    /// Redriven now.
    pub sent: usize,
    /// Already redriven before.
    pub already: usize,
    /// Skipped: they were redriven three times before and failed each time.
    pub skipped: usize,
    /// Left where they are: they came from topics that the processor no longer reads.
    pub not_read: usize,
    /// Where to continue, if a bound ended it; dead letters from `started_at` on are for the next redrive.
    pub next: Option<MessagePlace>,
    /// When it began, in milliseconds since the Unix epoch.
    pub started_at: Timestamp,
}

impl Redriven {
    /// Whether dead letters were found, but only from topics that are no longer read.
    fn is_nothing(&self) -> bool {
        self.sent + self.already + self.skipped == 0
    }
}

impl AddAssign for Redriven {
    fn add_assign(&mut self, more: Self) {
        self.sent += more.sent;
        self.already += more.already;
        self.skipped += more.skipped;
        self.not_read += more.not_read;
    }
}

/// Dead letters of one shelf, and the answer about sending them.
pub(super) struct Sending {
    pub(super) processor: ProcessorName,
    pub(super) shelf: Arc<Shelf>,
    pub(super) target: TopicPartition,
    pub(super) letters: Vec<DeadLetter>,
    pub(super) by: String,
    pub(super) action: AuditAction,
    pub(super) edit: Option<EditDigests>,
}

impl DeadLetters {
    /// Redrives dead letters, to this processor only, each at most once. Dropping the future stops it between two transactions.
    ///
    /// # Errors
    /// [`DeadLetterError`]; dead letters redriven before the error stay redriven and are marked.
    pub async fn redrive(
        &self,
        name: &ProcessorName,
        request: RedriveRequest,
    ) -> Result<Redriven, DeadLetterError> {
        self.caller.may(Verb::Redrive, name.as_str())?;
        self.check_taker(name)?;
        let mut run = Run {
            room: self,
            processor: name,
            started: self.inner.clock.monotonic(),
            left: request.letters_max.unwrap_or(usize::MAX),
            per_second: request.per_second,
            by: self.caller.signature().to_owned(),
            total: Redriven {
                started_at: self.inner.clock.wall(),
                ..Redriven::default()
            },
        };
        if run.left == 0 {
            return Ok(run.total);
        }
        match request.which {
            RedriveWhich::Places(places) => run.places(places).await?,
            RedriveWhich::Matching { filter, from } => {
                run.matching(*filter, from, request.again).await?;
            }
        }
        Ok(run.total)
    }

    /// Whether the processor exists to take redriven messages. One that never existed is unknown.
    fn check_taker(&self, name: &ProcessorName) -> Result<(), DeadLetterError> {
        let entry = self.inner.engine.entry(EntryKind::Processor, name.as_str());
        if entry.is_some() {
            return Ok(());
        }
        Err(
            match self.own_shelves(name, DEAD_LETTERS_SUFFIX).is_empty() {
                true => DeadLetterError::UnknownProcessor(name.clone()),
                false => DeadLetterError::Deleted(name.clone()),
            },
        )
    }

    /// Where dead letters of this shelf are redriven to.
    pub(super) fn target_of(
        &self,
        name: &ProcessorName,
        shelf: &Shelf,
    ) -> Result<TopicPartition, DeadLetterError> {
        let origin = shelf.origin();
        let reads = |deployed: &Deployed| {
            let current = deployed.processor.current();
            current
                .is_some_and(|revision| revision.spec.topics.iter().any(|t| t.as_str() == origin))
        };
        let reads = self
            .inner
            .catalogue
            .processors()
            .get(name)
            .is_some_and(reads);
        let topic = TopicName::parse(&format!("{origin}.{name}{REDRIVE_SUFFIX}")).ok();
        let topic = topic
            .filter(|_| reads)
            .and_then(|topic| self.inner.catalogue.topic(&topic));
        let target = topic.and_then(|topic| topic.partition(shelf.partition.partition));
        target.ok_or_else(|| DeadLetterError::NotAnInput {
            processor: name.clone(),
            topic: origin.to_owned(),
        })
    }

    /// Appends messages to the redrive topic, marks their dead letters and records it, in one transaction, which runs to its end.
    pub(super) async fn send_again(&self, sending: Sending) -> Result<Redriven, DeadLetterError> {
        let room = self.clone();
        let sent = tokio::spawn(async move { room.send_to_the_end(sending).await });
        // The task neither panics nor is cancelled, except by the end of the host.
        sent.await
            .unwrap_or_else(|_| Err(CommitError::Closed.into()))
    }

    async fn send_to_the_end(&self, sending: Sending) -> Result<Redriven, DeadLetterError> {
        let shelf = &sending.shelf;
        let audit = self.audit_partition(&sending.processor, shelf).await?;
        let _redrive = self.inner.redrives.lock().await;
        // What was read may have changed: the record of redrives, or the processor.
        decided(&*self.inner.engine, || self.send_once(&sending, audit)).await
    }

    async fn send_once(
        &self,
        sending: &Sending,
        audit: TopicPartition,
    ) -> Result<Redriven, DeadLetterError> {
        let shelf = &sending.shelf;
        // The processor may have been deleted meanwhile.
        self.check_taker(&sending.processor)?;
        let (kind, name) = (EntryKind::Processor, sending.processor.as_str());
        let taker = self.inner.engine.entry(kind, name);
        let taker = taker.ok_or_else(|| DeadLetterError::Deleted(sending.processor.clone()))?;
        let taker = Expectation::entry(kind, name, Some(&taker));
        let offsets = sending.letters.iter().map(|letter| letter.offset);
        let (Some(first), Some(last)) = (offsets.clone().min(), offsets.max()) else {
            return Ok(Redriven::default());
        };
        let mut record = self.sent_of(shelf, first..=last)?;
        let (mut builder, mut now_sent) = (BatchBuilder::with_capacity(0), Sent::default());
        let mut redriven = Redriven::default();
        for letter in &sending.letters {
            if !record.insert(letter.offset) {
                redriven.already += 1;
                continue;
            }
            now_sent.insert(letter.offset);
            let redrives = letter.redrives.saturating_add(1);
            let message = letter.message.clone();
            builder.push(&dead_letter::revive(
                message,
                letter.origin_offset,
                redrives,
            ));
            redriven.sent += 1;
        }
        let Some(batch) = builder.finish() else {
            return Ok(redriven);
        };
        let again = Append {
            partition: sending.target,
            batch,
        };
        let mut appends = vec![again];
        appends.extend(self.audit_append(audit, sending, now_sent, redriven.sent));
        let mut transaction = Transaction {
            appends,
            entries: self.forgotten(shelf, self.ends_of(shelf)?.start),
            expects: vec![taker],
            ..Transaction::default()
        };
        record.write(shelf, &mut transaction);
        self.inner.engine.commit(transaction).await?;
        Ok(redriven)
    }
}

/// A running redrive.
struct Run<'a> {
    room: &'a DeadLetters,
    processor: &'a ProcessorName,
    started: Duration,
    /// Dead letters that may still be sent.
    left: usize,
    per_second: Option<NonZeroU32>,
    by: String,
    total: Redriven,
}

impl Run<'_> {
    async fn matching(
        &mut self,
        mut filter: DeadLetterFilter,
        from: Option<MessagePlace>,
        again: bool,
    ) -> Result<(), DeadLetterError> {
        // Those already redriven are counted, and not sent again.
        if filter.redriven == Redrives::No {
            filter.redriven = Redrives::Also;
        }
        let is_whole = from.is_none();
        let mut not_read = None;
        let mut walk = self.room.walk(self.processor, from.as_ref())?;
        loop {
            self.room.check_taker(self.processor)?;
            let Some((shelf, mut letters)) = self.room.advance(&mut walk).await? else {
                break;
            };
            letters.retain(|letter| filter.fits(letter));
            let target = match self.room.target_of(self.processor, &shelf) {
                Ok(target) => target,
                Err(error) => {
                    self.room.check_taker(self.processor)?;
                    // Dead letters of a topic that the processor no longer reads stay where they are.
                    let left = letters.iter().filter(|letter| !letter.redriven).count();
                    self.total.not_read += left;
                    not_read = not_read.or_else(|| (left > 0).then_some(error));
                    if self.is_over() {
                        let next = letters.last().map(|letter| letter.place().after());
                        self.total.next = next.filter(|next| walk.is_more_from(next));
                        break;
                    }
                    continue;
                }
            };
            let mut wanted = Vec::with_capacity(letters.len());
            for letter in letters {
                let too_often = !again && !letter.redriven && letter.redrives >= REDRIVES_MAX;
                match (too_often, letter.redriven) {
                    (true, _) => self.total.skipped += 1,
                    (_, true) => self.total.already += 1,
                    _ => wanted.push(letter),
                }
            }
            let mut wanted = wanted.into_iter().peekable();
            while wanted.peek().is_some() {
                let step: Vec<_> = wanted.by_ref().take(self.step()).collect();
                let last = step.last().map(|letter| letter.place().after());
                self.send(&shelf, target, step).await?;
                let Some(after) = last.filter(|_| self.is_over()) else {
                    continue;
                };
                if walk.is_more_from(&after) {
                    self.total.next = Some(after);
                    self.rest().await;
                }
                return Ok(());
            }
        }
        match not_read {
            Some(error) if is_whole && self.total.next.is_none() && self.total.is_nothing() => {
                Err(error)
            }
            _ => Ok(()),
        }
    }

    async fn places(&mut self, places: Vec<MessagePlace>) -> Result<(), DeadLetterError> {
        let mut by_shelf: BTreeMap<_, BTreeSet<Offset>> = BTreeMap::new();
        for place in places {
            let shelf = by_shelf.entry((place.topic, place.partition));
            shelf.or_default().insert(place.offset);
        }
        for ((topic, partition), offsets) in by_shelf {
            let first = offsets.first().copied().unwrap_or_default();
            let shelf = self.room.shelf(self.processor, &topic, partition, first)?;
            let target = self.room.target_of(self.processor, &shelf)?;
            let shelf = Arc::new(shelf);
            let (mut letters, mut bytes) = (Vec::new(), 0);
            for offset in offsets {
                let letter = self.room.letter(&shelf, offset).await?;
                bytes += letter.message.byte_count();
                letters.push(letter);
                if letters.len() >= self.step() || bytes >= LETTERS_BYTES {
                    bytes = 0;
                    let full = std::mem::take(&mut letters);
                    self.send(&shelf, target, full).await?;
                    if self.left == 0 {
                        return Ok(());
                    }
                }
            }
            self.send(&shelf, target, letters).await?;
            if self.left == 0 {
                return Ok(());
            }
        }
        Ok(())
    }

    /// One transaction, once the pace allows it.
    async fn send(
        &mut self,
        shelf: &Arc<Shelf>,
        target: TopicPartition,
        letters: Vec<DeadLetter>,
    ) -> Result<(), DeadLetterError> {
        if letters.is_empty() {
            return Ok(());
        }
        self.rest().await;
        let sending = Sending {
            processor: self.processor.clone(),
            shelf: Arc::clone(shelf),
            target,
            letters,
            by: self.by.clone(),
            action: AuditAction::Redrive,
            edit: None,
        };
        let done = self.room.send_again(sending).await?;
        self.left = self.left.saturating_sub(done.sent);
        self.total += done;
        Ok(())
    }

    /// How many dead letters the next transaction takes.
    fn step(&self) -> usize {
        let paced = self
            .per_second
            .map(|rate| (rate.get() / STEPS_PER_SECOND).max(1));
        let step = paced.map_or(LETTERS_MAX, |paced| LETTERS_MAX.min(paced as usize));
        step.min(self.left).max(1)
    }

    /// Waits until the rate allows more.
    async fn rest(&self) {
        if let Some(rate) = self.per_second {
            let due = Duration::from_secs_f64(self.total.sent as f64 / f64::from(rate.get()));
            tokio::time::sleep(due.saturating_sub(self.time())).await;
        }
    }

    /// Whether the redrive has to end here.
    fn is_over(&self) -> bool {
        let time_max = Duration::from_millis(REDRIVE_PACED_MS_MAX);
        self.left == 0 || self.per_second.is_some() && self.time() >= time_max
    }

    fn time(&self) -> Duration {
        let now = self.room.inner.clock.monotonic();
        now.saturating_sub(self.started)
    }
}
