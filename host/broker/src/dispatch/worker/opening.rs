//! Starts and ends a worker. If this host should work on the partition, the worker takes the lease
//! and then reads the previous worker's progress. All its commits use that lease. It starts again
//! while it is wanted.

use std::sync::Arc;
use std::time::Duration;

use millrace_engine::{
    CommitError, Engine, EntryKind, Expectation, HostInfo, Lease, ProgressWrite, ReadError,
    Transaction,
};
use millrace_model::{Offset, Processor, Progress, SteadyClock, TopicPartition};
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

/// Interval at which a worker checks whether another holder has released the lease.
const HELD_LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Runs a worker until it is told to stop or must stop.
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
        // Kept until the worker is opened.
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
                // Only a command ends this wait.
                End::Paused => Duration::MAX,
                End::Left(reason) => {
                    tracing::info!(topic = %input.topic.spec.name, partition = %input.partition, reason, "a worker leaves its partition");
                    backoff.next(&mut rng)
                }
            },
            Ok(Opened::Elsewhere(host)) => {
                window.lock().state = State::Elsewhere(host.name());
                // A paused processor holds no lease, so its work is not left undone.
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
            // An error means that the engine is gone, and the hosts with it.
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
    // Dropping the orders tells their callers that they are not carried out.
    while orders.take().is_some() {}
}

/// Takes over work that the preferred host leaves undone.
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

/// The expectation of a worker's first commit, if there are other hosts: the processor is still
/// deployed as this host knows it. A reset of the state, or a deletion, briefly takes the leases of
/// all workers. A worker whose host does not know of it must not continue afterwards.
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
    /// The lease for the worker's commits.
    pub(super) lease: Lease,
    holdings: Arc<Holdings>,
    /// The worker's partition.
    pub(super) partition: TopicPartition,
    /// The original partition of the messages, to which the lease and the state belong.
    pub(super) origin: TopicPartition,
    /// The expectation of the first commit; `None` after it.
    beginning: Option<Expectation>,
    /// The stored progress. A commit contains the changes to it.
    stored: Arc<Progress>,
    /// Where a successor would begin: what was passed over since is committed with what comes next.
    committed: Offset,
}

impl Hold {
    /// Commits this progress together with the transaction.
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
        self.committed = progress.next;
        Ok(())
    }

    /// Where a successor would begin.
    pub(super) fn committed(&self) -> Offset {
        self.committed
    }

    /// Why the worker must leave; `None` if it may stay.
    pub(super) fn is_over(&self) -> Option<&'static str> {
        if self.share.is_lost() {
            return Some("it was taken over");
        }
        let moves = self.holdings.moves(self.origin);
        moves.then_some("another host should work here")
    }
}

/// Why a worker cannot continue.
pub(super) enum Trouble {
    /// The worker may be able to continue later.
    Wait(String),
    /// The worker must not continue.
    Stop(String),
    /// The worker cannot continue with this lease, which was taken or should go to another host.
    Leave(String),
}

/// How a worker's work ended.
pub(super) enum End {
    /// The worker is no longer wanted.
    Over,
    /// The worker must not continue.
    Stopped(String),
    /// The worker may start again, if it is still wanted on this host.
    Left(String),
    /// The processor is paused. The worker holds no lease, so that other hosts can see it.
    Paused,
}

impl From<ReadError> for Trouble {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::UnknownPartition(_) => Self::Stop(error.to_string()),
            // The worker keeps checking, because the damage may be repaired. It skips no messages
            // meanwhile.
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
            | CommitError::NotDurable
            | CommitError::TooLarge { .. }
            | CommitError::UnknownPartition(_) => Self::Wait(error.to_string()),
            // A new lease settles whether the commit took effect; or the processor was changed when
            // this worker started.
            CommitError::InDoubt(_) | CommitError::Fenced { .. } | CommitError::Conflict(_) => {
                Self::Leave(error.to_string())
            }
            CommitError::Poisoned(_) | CommitError::Closed => Self::Stop(error.to_string()),
            // A worker's commits carry no producer's number and no request's mark. Lease and
            // progress make them take effect once.
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
    /// Another host should work on the partition.
    Elsewhere(HostInfo),
    /// Another holder has not released the lease.
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
        // The lease is taken first. After that the previous holder can commit nothing, so the
        // progress that is read is the latest.
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
                committed: progress.next,
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
