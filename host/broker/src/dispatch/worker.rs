//! The worker: one task per processor and input partition. It cuts, calls, decides and commits, one [`round`] after the other;
//! everything it knows is progress, which is committed with every batch. It holds no opinion: [`Plan`] says what to cut, [`batcher`]
//! cuts, and [`super::delivery`] decides.
//!
//! A batch is processed entirely by the revision that was current when it was cut, and its commit records that revision.

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

/// What every worker works with.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) hosts: Arc<Hosts>,
    pub(crate) delays: Arc<Delays>,
    pub(crate) alarms: Alarms,
    pub(crate) remembered: Arc<Remembered>,
    /// Concurrent calls that may write to state: each call's writes are in memory until they are committed.
    pub(crate) attempts: Arc<Semaphore>,
    /// Memory of batches in work.
    pub(crate) at_hand: Arc<AtHand>,
}

/// What a step did.
enum Step {
    Done,
    /// There is nothing to do until something changes.
    Idle,
    /// No more dead letters are allowed, for this reason and time.
    Held(String, Duration),
}

/// A worker at its partition, under its hold.
struct Worker {
    context: Context,
    input: Input,
    hold: Hold,
    outside: Outside,
    /// The clock for its messages: durations stay the same if the system clock is set.
    time: SteadyClock,
    gate: Arc<Gate>,
    source: Source,
    ledger: Ledger,
    /// What to cut next.
    plan: Plan,
    /// The place of its state; `None` until a revision has used any.
    home: Option<Home>,
    /// The queue to the shadow while there is one.
    echo: Option<Echo>,
    rng: fastrand::Rng,
    meters: Meters,
}

/// What a worker knows of its messages.
struct Ledger {
    progress: Arc<Progress>,
    /// Its share of the records of failed attempts, as the host's bound counts it.
    records: Part,
}

impl Ledger {
    /// Begins with the previous worker's progress, without the mark of its first call.
    fn new(remembered: &Arc<Remembered>, progress: Progress) -> Self {
        Self {
            records: Part::new(remembered, &progress),
            progress: Arc::new(Progress {
                first_call: None,
                ..progress
            }),
        }
    }

    /// Counts the records anew: messages were parked or released without a batch.
    fn count(&mut self) {
        self.records.set(&self.progress);
    }

    /// What was proposed is committed.
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

/// Waits for the delay or the next command, whichever comes first; false if the command channel is closed.
async fn changed_within(commands: &mut watch::Receiver<Command>, delay: Duration) -> bool {
    tokio::select! {
        changed = commands.changed() => changed.is_ok(),
        () = tokio::time::sleep(delay) => true,
    }
}

impl Worker {
    /// Works until it is told to stop, must stop, or should leave; then its hold is released.
    async fn work(mut self: Box<Self>, beginning: &mut Backoff) -> End {
        let end = self.work_on().await;
        if self.plan.has_settled() {
            // It was able to work, so the next start is immediate.
            beginning.reset();
        }
        let Self { hold, .. } = *self;
        hold.share.leave().await;
        end
    }

    async fn work_on(&mut self) -> End {
        loop {
            // An in-memory engine never waits, and a busy worker would keep its thread from all other tasks.
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
                    // Messages read ahead may be trimmed or compacted meanwhile: they are read again.
                    self.rewind();
                    self.back_off(reason).await;
                }
            }
        }
    }

    /// The revisions to work with; waits while paused.
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
                // Boxed, like everything rare or per batch: thousands of workers are idle.
                Box::pin(self.obey(&command)).await;
                if self.outside.commands.has_changed().unwrap_or(true) {
                    // That may have taken a while.
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
            // Messages read ahead may be trimmed or compacted meanwhile: they are read again.
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

    /// Passes the processor's gate for the next batch.
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

    /// The round has no effect: its messages are cut again, as this demands.
    fn put_back(&mut self, round: &Round, came: Came<'_>) {
        self.plan.on(&round.batch, came);
        self.rewind();
    }

    /// What was read ahead is read again.
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
            next: Some(progress.next),
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
