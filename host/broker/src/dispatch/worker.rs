//! The worker: one task per processor and input partition. It cuts, calls, decides and commits, one
//! [`round`] after the other. All it knows is progress, which is committed with every batch. It
//! makes no decisions itself: [`Plan`] says what to cut, [`batcher`] cuts, and [`super::delivery`]
//! decides.
//!
//! A batch is processed entirely by the revision that was current when it was cut, and its commit
//! records that revision.

use std::sync::Arc;
use std::time::Duration;

use millrace_engine::{Engine, Transaction};
use millrace_model::processor::Order;
use millrace_model::{Clock, Progress, SteadyClock, Timestamp, TopicName};
use tokio::sync::{Semaphore, watch};

use crate::dispatch::at_hand::AtHand;
use crate::dispatch::batcher;
use crate::dispatch::command::Command;
use crate::dispatch::gate::{Alarms, Entry, Gate};
use crate::dispatch::input::Input;
use crate::dispatch::meters::Meters;
use crate::dispatch::plan::{Came, Plan};
use crate::dispatch::remembered::{Part, Remembered};
use crate::dispatch::shadow::Echo;
use crate::dispatch::source::Source;
use crate::dispatch::standing::{Standing, State};
use crate::ground::backoff::Backoff;
use crate::hosts::living::Hosts;
use crate::messages::delays::delayed::Delays;

mod judging;
mod opening;
mod parking;
mod round;
mod settling;
mod state;
mod waiting;

pub(crate) use opening::run;
use opening::{End, Hold, Trouble};
use round::Round;
use state::Home;
use waiting::Outside;

/// What all workers of a host share.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) hosts: Arc<Hosts>,
    pub(crate) delays: Arc<Delays>,
    pub(crate) alarms: Alarms,
    pub(crate) remembered: Arc<Remembered>,
    /// Limits concurrent calls that may write to state, because each call's writes are in memory
    /// until they are committed.
    pub(crate) attempts: Arc<Semaphore>,
    /// Bounds the memory of batches in work.
    pub(crate) at_hand: Arc<AtHand>,
}

/// The result of a step.
enum Step {
    Done,
    /// There is nothing to do until something changes.
    Idle,
    /// No more dead letters are allowed for this time, with the reason.
    Held(String, Duration),
}

/// A worker that holds the lease of its partition.
struct Worker {
    context: Context,
    input: Input,
    hold: Hold,
    outside: Outside,
    /// The clock for messages: durations stay the same if the system clock is set.
    time: SteadyClock,
    gate: Arc<Gate>,
    source: Source,
    ledger: Ledger,
    /// Decides what to cut next.
    plan: Plan,
    /// The place of the worker's state; `None` until a revision has used state.
    home: Option<Home>,
    /// The queue to the shadow; `None` without a shadow.
    echo: Option<Echo>,
    rng: fastrand::Rng,
    meters: Meters,
}

/// What a worker knows about its messages.
struct Ledger {
    progress: Arc<Progress>,
    /// The worker's share of the host's records of failed attempts.
    records: Part,
}

impl Ledger {
    /// The previous worker's progress, without the mark of its first call.
    fn new(remembered: &Arc<Remembered>, progress: Progress) -> Self {
        Self {
            records: Part::new(remembered, &progress),
            progress: Arc::new(Progress {
                first_call: None,
                ..progress
            }),
        }
    }

    /// Counts the records again after messages were parked or released without a batch.
    fn count(&mut self) {
        self.records.set(&self.progress);
    }

    /// Records that the proposed progress is committed.
    fn settle(&mut self, progress: Arc<Progress>) {
        self.records.settle();
        self.progress = progress;
    }

    /// How many new messages may be read.
    fn room_for_new(&self, order: Order) -> usize {
        let room = batcher::new_messages_max(order, &self.progress.parked);
        self.records.new_messages_max(room)
    }
}

/// Whether the processor still reads the topic that these messages came from.
fn wants(command: &Command, origin: &TopicName) -> bool {
    !command.stopped && command.live.spec.topics.contains(origin)
}

/// Waits for the delay or the next command, whichever comes first; false if the command channel is
/// closed.
async fn changed_within(commands: &mut watch::Receiver<Command>, delay: Duration) -> bool {
    tokio::select! {
        changed = commands.changed() => changed.is_ok(),
        () = tokio::time::sleep(delay) => true,
    }
}

impl Worker {
    /// Works until told to stop, or until it must stop or leave; then releases the lease.
    async fn work(mut self: Box<Self>, beginning: &mut Backoff) -> End {
        let end = self.work_on().await;
        if self.plan.has_settled() {
            // The worker was able to work, so its next start is not delayed.
            beginning.reset();
        }
        let Self { hold, .. } = *self;
        hold.share.leave().await;
        end
    }

    async fn work_on(&mut self) -> End {
        loop {
            // An in-memory engine never waits, so a busy worker would keep its thread from all
            // other tasks.
            tokio::task::yield_now().await;
            let command = match self.command().await {
                Ok(command) => command,
                Err(end) => return end,
            };
            let step = self.step(&command).await;
            self.ledger.records.rest();
            let gone_on = match step {
                Ok(Step::Done) => Ok(()),
                Ok(Step::Idle) => self.idle().await,
                Ok(Step::Held(reason, wait)) => {
                    self.wait_for_allowance(wait, reason).await;
                    Ok(())
                }
                Err(trouble) => Err(trouble),
            };
            match gone_on {
                Ok(()) => {}
                Err(Trouble::Stop(reason)) => return End::Stopped(reason),
                Err(Trouble::Leave(reason)) => return End::Left(reason),
                Err(Trouble::Wait(reason)) => {
                    // Messages that were read ahead may be trimmed or compacted during the wait, so
                    // they are read again.
                    self.rewind();
                    self.back_off(reason).await;
                }
            }
        }
    }

    /// Waits while the processor is paused; returns the command with the revisions to run.
    async fn command(&mut self) -> Result<Command, End> {
        loop {
            if let Some(why) = self.hold.is_over() {
                return Err(End::Left(why.to_owned()));
            }
            let commands = &mut self.outside.commands;
            let command = commands.borrow_and_update().clone();
            if !wants(&command, &self.input.origin) || commands.has_changed().is_err() {
                return Err(End::Over);
            }
            self.follow_clock();
            if let Err(Trouble::Wait(why) | Trouble::Stop(why) | Trouble::Leave(why)) =
                self.release().await
            {
                // The next step meets the same error and reports it.
                tracing::debug!(why, "parked messages could not be released");
            }
            if self.outside.orders.wait() {
                // Boxed, like everything that is rare or happens once per batch: thousands of
                // workers are idle, and each one's future would hold it.
                Box::pin(self.obey(&command)).await;
                if self.outside.commands.has_changed().unwrap_or(true) {
                    // The orders may have taken a while, so the new command is read first.
                    continue;
                }
            }
            if !command.paused {
                if self.plan.run(command.revisions()) {
                    self.let_go(&command);
                }
                return Ok(command);
            }
            self.show(State::Paused);
            // Messages that were read ahead may be trimmed or compacted during the pause, so they
            // are read again.
            self.rewind();
            if !self.context.hosts.is_alone() {
                return Err(End::Paused);
            }
            let commands = &mut self.outside.commands;
            commands.changed().await.map_err(|_| End::Over)?;
            if !commands.borrow().paused {
                self.show(State::Running);
            }
        }
    }

    /// Passes the processor's gate and works on the next batch.
    async fn step(&mut self, command: &Command) -> Result<Step, Trouble> {
        Echo::follow(&mut self.echo, command.shadow.as_ref());
        if let Some(canary) = &command.canary {
            canary.gate.remind();
        }
        if let Some(offset) = self.plan.suspects.convicted() {
            return Box::pin(self.bury(command, offset)).await;
        }
        self.outside.gate.borrow_and_update();
        match self.gate.enter() {
            Entry::Go => Box::pin(self.advance(command, None)).await,
            Entry::Probe(probe) => Box::pin(self.advance(command, Some(probe))).await,
            Entry::Wait(wait, reason) => {
                self.wait_for_probe(wait, reason).await;
                Ok(Step::Done)
            }
        }
    }

    /// Discards the round: its messages are cut again as `came` requires.
    fn put_back(&mut self, round: &Round, came: Came<'_>) {
        self.plan.on(&round.batch, came);
        self.rewind();
    }

    /// Discards messages that were read ahead, so that they are read again.
    fn rewind(&mut self) {
        self.source.rewind(self.ledger.progress.next);
    }

    /// Commits progress and nothing else.
    async fn keep(&mut self, progress: Progress) -> Result<(), Trouble> {
        let transaction = Transaction {
            durability: Some(self.input.topic.spec.durability),
            ..Transaction::default()
        };
        let committed = self.hold.commit(&Arc::new(progress), transaction).await;
        committed.map_err(|error| {
            self.rewind();
            error.into()
        })
    }

    fn show(&mut self, state: State) {
        let progress = &self.ledger.progress;
        self.meters.parked(progress.parked.len());
        let mut window = self.outside.window.lock();
        *window = Standing {
            state,
            // What is not committed may be read again, by a successor too, and what is shown must not go back.
            next: Some(self.hold.committed()),
            parked: progress.parked.len(),
            progress: Arc::clone(progress),
            revision: progress.revision,
            calling: window.calling,
        };
    }

    fn now(&self) -> Timestamp {
        self.time.now(&*self.context.clock)
    }
}
