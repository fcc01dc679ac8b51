//! How a worker starts and leaves: if this host should work on the partition, it takes the hold first and then reads the previous
//! worker's progress. It starts again for as long as it is wanted. Everything is committed under that hold.

use std::sync::Arc;
use std::time::Duration;

use millrace_engine::{
    CommitError, Engine, EntryKind, Expectation, HostInfo, Lease, ProgressWrite, ReadError,
    Transaction,
};
use millrace_model::{Processor, Progress, SteadyClock, TopicPartition};
use tokio::sync::watch;

use super::waiting::Outside;
use super::{Context, Ledger, Worker, changed_within, wants};
use crate::dispatch::command::Command;
use crate::dispatch::gate::Gate;
use crate::dispatch::input::Input;
use crate::dispatch::live::Live;
use crate::dispatch::meters::Meters;
use crate::dispatch::orders::Orders;
use crate::dispatch::plan::Plan;
use crate::dispatch::retry;
use crate::dispatch::source::Source;
use crate::dispatch::standing::{State, Window};
use crate::dispatch::suspects::{self, Suspects};
use crate::ground::backoff::Backoff;
use crate::ground::tasks::SLEEP_MAX;
use crate::hosts::holding::{Holdings, Share};

/// Interval at which a worker checks whether another holder has released the work.
const HELD_LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Works until told to stop, or until it must.
pub(crate) async fn run(
    context: Context,
    input: Input,
    mut commands: watch::Receiver<Command>,
    window: Window,
    orders: Orders,
    gate: Arc<Gate>,
    holdings: Arc<Holdings>,
) {
    let mut backoff = Backoff::default();
    let mut rng = fastrand::Rng::new();
    let mut hosts = holdings.changes();
    let mut elsewhere_since = None;
    let reason = loop {
        let is_paused = {
            let command = commands.borrow_and_update();
            if !wants(&command, &input.origin) {
                break None;
            }
            command.paused
        };
        hosts.borrow_and_update();
        let now = context.clock.monotonic();
        let lies = |since: &mut Duration| now >= *since + holdings.taken_up_after();
        // Held until it is opened.
        let taken_up = match elsewhere_since.take_if(lies) {
            Some(_) if !is_paused => take_up(&context, &input, &holdings).await,
            _ => None,
        };
        let opened = Box::pin(Worker::open(
            &context, &input, &commands, &window, &orders, &gate, &holdings,
        ));
        let opened = opened.await;
        drop(taken_up);
        let wait = match opened {
            Ok(Opened::Here(worker)) => match Box::pin(worker.work(&mut backoff)).await {
                End::Over => break None,
                End::Stopped(reason) => break Some(reason),
                // A command wakes it.
                End::Paused => Duration::MAX,
                End::Left(reason) => {
                    tracing::info!(topic = %input.topic.spec.name, partition = %input.partition, reason, "a worker leaves its partition");
                    backoff.next(&mut rng)
                }
            },
            Ok(Opened::Elsewhere(host)) => {
                window.lock().state = State::Elsewhere(host.address.to_string());
                // A paused processor holds nothing.
                match is_paused {
                    true => elsewhere_since = None,
                    false => _ = elsewhere_since.get_or_insert(now),
                }
                holdings.taken_up_after().min(SLEEP_MAX)
            }
            Ok(Opened::Held) => {
                window.lock().state = State::Held;
                HELD_LOOK_INTERVAL
            }
            Err(Trouble::Stop(reason)) => break Some(reason),
            Err(Trouble::Wait(reason) | Trouble::Leave(reason)) => {
                window.lock().state = State::Waiting(reason, None);
                backoff.next(&mut rng)
            }
        };
        let goes_on = tokio::select! {
            goes_on = changed_within(&mut commands, wait) => goes_on,
            // Without an engine there are no hosts.
            _ = hosts.changed() => true,
        };
        if !goes_on {
            break None;
        }
    };
    if let Some(reason) = &reason {
        tracing::error!(topic = %input.topic.spec.name, partition = %input.partition, reason, "a worker stopped");
    }
    let reason = reason.unwrap_or_else(|| "no longer deployed".to_owned());
    window.lock().state = State::Stopped(reason);
    // Orders are no longer carried out, and their callers are told so.
    while orders.take().is_some() {}
}

/// Takes over work that its preferred host leaves undone.
async fn take_up(context: &Context, input: &Input, holdings: &Holdings) -> Option<Arc<Share>> {
    let origin = origin(input, &*context.engine).ok()?;
    // Work that cannot be taken now is tried again later.
    holdings.take_up(origin).await.ok().flatten()
}

/// The original partition of an input's messages.
fn origin(input: &Input, engine: &dyn Engine) -> Result<TopicPartition, Trouble> {
    let topic = match input.is_redriven() {
        false => Some(input.topic.clone()),
        true => engine.topic(&input.origin),
    };
    let found = topic.and_then(|topic| topic.partition(input.partition));
    found.ok_or_else(|| Trouble::Stop(format!("topic {} was deleted", input.origin)))
}

/// What a worker's first commit expects, if there are other hosts: that the processor is still deployed as this host knows it. A reset
/// of its state or its deletion takes the work from all workers for that moment; a worker whose host has not heard of it must not
/// continue.
fn expected(context: &Context, live: &Live) -> Result<Option<Expectation>, Trouble> {
    if !context.hosts.had_others() {
        return Ok(None);
    }
    let (kind, name) = (EntryKind::Processor, live.processor.as_str());
    let entry = context.engine.entry(kind, name);
    let value = entry.as_ref().map(|entry| &entry.value);
    let processor = value.and_then(|value| serde_json::from_slice::<Processor>(value).ok());
    match processor.is_some_and(|processor| processor.current == live.revision) {
        true => Ok(Some(Expectation::entry(kind, name, entry.as_ref()))),
        false => Err(Trouble::Wait(
            "this host does not run the deployed revision yet".to_owned(),
        )),
    }
}

/// A worker's right to work on its partition, and what it has stored there.
pub(super) struct Hold {
    pub(super) share: Arc<Share>,
    /// What its commits are made with.
    pub(super) lease: Lease,
    holdings: Arc<Holdings>,
    /// The partition it works on.
    pub(super) partition: TopicPartition,
    /// The original partition of the messages: the hold and the state belong to it.
    pub(super) origin: TopicPartition,
    /// What the first commit expects, until it is made.
    beginning: Option<Expectation>,
    /// The stored progress: a commit contains the changes to it.
    stored: Arc<Progress>,
}

impl Hold {
    /// Commits this progress, with all that the transaction contains.
    pub(super) async fn commit(
        &mut self,
        progress: &Arc<Progress>,
        transaction: Transaction,
    ) -> Result<(), CommitError> {
        let transaction = Transaction {
            progress: vec![ProgressWrite {
                partition: self.partition,
                lease: self.lease.clone(),
                progress: self.stored.change_to(progress),
            }],
            expects: self.beginning.iter().cloned().collect(),
            ..transaction
        };
        self.share.commit(transaction).await?;
        self.beginning = None;
        self.stored = Arc::clone(progress);
        Ok(())
    }

    /// Why the worker should leave, if it should.
    pub(super) fn is_over(&self) -> Option<&'static str> {
        if self.share.is_lost() {
            return Some("it was taken over");
        }
        let moves = self.holdings.moves(self.origin);
        moves.then_some("another host should work here")
    }
}

/// Why a worker cannot go on.
pub(super) enum Trouble {
    /// It may be able to later.
    Wait(String),
    /// It must not.
    Stop(String),
    /// Not under this hold: it was taken, or should go to another host.
    Leave(String),
}

/// How a worker's work at its partition ended.
pub(super) enum End {
    /// It is no longer wanted.
    Over,
    /// It must not go on.
    Stopped(String),
    /// It may start again, if it is still wanted on this host.
    Left(String),
    /// It is stopped and holds nothing, so that other hosts can see it.
    Paused,
}

impl From<ReadError> for Trouble {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::UnknownPartition(_) => Self::Stop(error.to_string()),
            // It keeps checking, because the damage may be repaired; nothing is skipped meanwhile.
            ReadError::Damaged { .. } => Self::Wait(format!(
                "{error} once the loss is accepted (`millrace damage accept`), or restore the file from a backup"
            )),
            _ => Self::Wait(error.to_string()),
        }
    }
}

impl From<CommitError> for Trouble {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::DiskFull
            | CommitError::RoomFull(_)
            | CommitError::Unavailable(_)
            | CommitError::State(_)
            | CommitError::TooLarge { .. }
            | CommitError::UnknownPartition(_) => Self::Wait(error.to_string()),
            // Under a new lease its state is known; or the processor was changed when this worker started.
            CommitError::InDoubt(_) | CommitError::Fenced { .. } | CommitError::Conflict(_) => {
                Self::Leave(error.to_string())
            }
            CommitError::Poisoned(_) | CommitError::Closed => Self::Stop(error.to_string()),
            // A worker's commits have no number or mark: its lease and its progress make them take effect once.
            CommitError::OutOfOrderSequence { .. }
            | CommitError::ProducerFenced { .. }
            | CommitError::UnknownProducer(_)
            | CommitError::PartlyRepeated { .. }
            | CommitError::ProducerName { .. }
            | CommitError::RequestReused => Self::Stop(error.to_string()),
        }
    }
}

/// The result of opening a worker.
enum Opened {
    Here(Box<Worker>),
    /// Another host should work there.
    Elsewhere(HostInfo),
    /// Another host has not released it.
    Held,
}

impl Worker {
    async fn open(
        context: &Context,
        input: &Input,
        commands: &watch::Receiver<Command>,
        window: &Window,
        orders: &Orders,
        gate: &Arc<Gate>,
        holdings: &Arc<Holdings>,
    ) -> Result<Opened, Trouble> {
        let partition = input.topic.partition(input.partition);
        let partition =
            partition.ok_or_else(|| Trouble::Stop("the partition does not exist".to_owned()))?;
        let engine = &context.engine;
        let origin = origin(input, &**engine)?;
        if let Some(host) = holdings.elsewhere(origin) {
            return Ok(Opened::Elsewhere(host));
        }
        let processor = commands.borrow().live.processor.clone();
        // The hold comes first: after that the previous holder can commit nothing, so the progress read is the latest.
        let share = holdings.take(origin).await?;
        let held = share.and_then(|share| Some((share.lease()?.clone(), share)));
        let Some((lease, share)) = held else {
            return Ok(Opened::Held);
        };
        let live = Arc::clone(&commands.borrow().live);
        let beginning = expected(context, &live)?;
        let progress = engine.progress(&processor.group(), partition).await?;
        let time = SteadyClock::begin(&*context.clock);
        let stored = Arc::new(progress.clone().unwrap_or_default());
        let progress = match progress {
            Some(mut progress) => {
                retry::brought_near(&mut progress.parked, time.now(&*context.clock));
                if !share.is_left() {
                    suspects::forget_call(&mut progress);
                } else if let Some(mark) = share.doubtful_mark(partition) {
                    suspects::forget_mark(&mut progress, mark);
                }
                progress
            }
            None => Progress {
                next: match input.range {
                    Some((first, _)) => first,
                    None => {
                        let start = engine.ends(partition)?.start;
                        input.first.map_or(start, |first| first.max(start))
                    }
                },
                ..Progress::default()
            },
        };
        let suspects = Suspects::of(&progress, share.is_left());
        let watch = engine.watch(partition)?;
        let limit = input.range.map(|(_, end)| end);
        let source = Source::new(Arc::clone(engine), partition, watch, progress.next, limit)
            .only(input.times.clone());
        let mut worker = Self {
            hold: Hold {
                share,
                lease,
                holdings: Arc::clone(holdings),
                partition,
                origin,
                beginning,
                stored,
            },
            outside: Outside {
                commands: commands.clone(),
                orders: orders.clone(),
                gate: gate.changes(),
                window: Arc::clone(window),
            },
            ledger: Ledger::new(&context.remembered, progress),
            meters: Meters::new(processor.as_str()),
            context: context.clone(),
            input: input.clone(),
            gate: Arc::clone(gate),
            time,
            source,
            plan: Plan::new(suspects),
            home: None,
            echo: None,
            rng: fastrand::Rng::new(),
        };
        let is_paused = commands.borrow().paused;
        worker.show(match is_paused {
            true => State::Paused,
            false => State::Running,
        });
        worker.home(&live).await?;
        Ok(Opened::Here(Box::new(worker)))
    }
}
