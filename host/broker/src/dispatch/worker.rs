//! The worker: one task per processor and input partition. It reads, calls, decides and commits, one batch after the other; everything
//! it knows is progress, which is committed with every batch. [`batcher`] and [`super::delivery`] decide.
//!
//! A batch is processed entirely by the revision that was current when it was cut, and its commit records that revision.

use std::sync::Arc;
use std::time::Duration;

use millrace_engine::state::Turn;
use millrace_engine::{Engine, Expectation, Lease};
use millrace_model::processor::Order;
use millrace_model::{Clock, Offset, Progress, SteadyClock, Timestamp, TopicName, TopicPartition};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::dispatch::at_hand::{AtHand, InHand};
use crate::dispatch::batcher::Batch;
use crate::dispatch::command::Command;
use crate::dispatch::gate::{Alarms, Entry, Gate, Probe};
use crate::dispatch::input::Input;
use crate::dispatch::meters::Meters;
use crate::dispatch::orders::Orders;
use crate::dispatch::plan::{Came, Plan, Take};
use crate::dispatch::remembered::{Part, Remembered};
use crate::dispatch::shadow::Echo;
use crate::dispatch::sides::{Canary, Side};
use crate::dispatch::source::Source;
use crate::dispatch::standing::{Standing, State, Window};
use crate::dispatch::{at_hand, batcher};
use crate::ground::backoff::Backoff;
use crate::ground::chains;
use crate::hosts::holding::{Holdings, Share};
use crate::hosts::living::Hosts;
use crate::messages::delays::delayed::Delays;

mod calling;
mod committing;
mod cutting;
mod delaying;
mod gating;
mod hopping;
mod marking;
mod opening;
mod parking;
mod settling;
mod shadowing;
mod stateful;
mod trouble;

pub(crate) use opening::run;
use stateful::Home;
use trouble::{End, Trouble};

/// The longest sleep, because the wall clock may be set meanwhile.
const SLEEP_MAX: Duration = Duration::from_secs(60);

/// How often a worker checks whether there is room for records of failed attempts again.
const FULL_LOOK_INTERVAL: Duration = Duration::from_secs(1);

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

/// What a worker waits for while holding nothing; its batch is called again afterwards.
enum HeldUp {
    /// No more dead letters are allowed for this long.
    Allowance(String, Duration),
    /// Something is in the way.
    Trouble(String),
}

/// What a step did.
enum Step {
    Done,
    /// There is nothing to do until something changes.
    Idle,
}

/// A worker at its partition, under its lease.
struct Worker {
    context: Context,
    input: Input,
    commands: watch::Receiver<Command>,
    window: Window,
    orders: Orders,
    /// The clock for its messages: durations stay the same if the system clock is set.
    time: SteadyClock,
    gate: Arc<Gate>,
    gate_changes: watch::Receiver<u64>,
    /// Its hold, with the right to commit.
    share: Arc<Share>,
    lease: Lease,
    /// What the first commit expects, until it is made.
    beginning: Option<Expectation>,
    holdings: Arc<Holdings>,
    /// The partition it works on.
    partition: TopicPartition,
    /// The original partition of the messages: the hold and the state belong to it.
    origin: TopicPartition,
    source: Source,
    progress: Arc<Progress>,
    /// The stored progress: a commit contains the changes to it.
    stored: Arc<Progress>,
    /// Held while a batch is in memory.
    in_hand: Option<InHand>,
    /// Why the last batch was put back.
    held_up: Option<HeldUp>,
    /// Held while a call's writes to state are in memory.
    attempt_room: Option<OwnedSemaphorePermit>,
    /// Its share of the records of failed attempts, as the host's bound counts it.
    remembered: Part,
    /// The end of the partition when the last batch was cut: waiting starts from here.
    seen: Offset,
    /// What to cut next.
    plan: Plan,
    /// The side of the current batch.
    side: Side,
    /// The canary while there is one, for its breaker and the counts of both sides.
    canary: Option<Arc<Canary>>,
    /// The queue to the shadow while there is one.
    echo: Option<Echo>,
    /// Number of committed batches.
    commits: u64,
    rng: fastrand::Rng,
    meters: Meters,
    /// Whether the running call was interrupted: nothing happened.
    interrupted: bool,
    /// The place of its state; `None` until a revision has used any.
    home: Option<Home>,
    /// The right to write state, exclusive from the first read of a batch to its commit.
    turn: Option<Turn>,
}

/// Whether the processor still reads the topic that these messages came from.
fn wants(command: &Command, origin: &TopicName) -> bool {
    !command.stopped && command.live.spec.topics.contains(origin)
}

/// Ends when a call of this revision is no longer useful and has had its time to end by itself.
async fn pointless(
    mut commands: watch::Receiver<Command>,
    clock: Arc<dyn Clock>,
    origin: TopicName,
    revision: u32,
) {
    let mut until: Option<Duration> = None;
    loop {
        {
            let command = commands.borrow_and_update();
            until = match wants(&command, &origin) && command.runs(revision) {
                true => None,
                // A second command does not extend the time.
                false => Some(until.unwrap_or(Duration::MAX).min(command.patience)),
            };
        }
        let now = clock.monotonic();
        let wait = match until {
            Some(until) if until <= now => return,
            Some(until) => (until - now).min(SLEEP_MAX),
            None => SLEEP_MAX,
        };
        if !changed_within(&mut commands, wait).await {
            return;
        }
    }
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
        let Self { share, .. } = *self;
        share.leave().await;
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
            self.in_hand = None;
            self.remembered.rest();
            let trouble = match step {
                Ok(Step::Done) => match self.held_up.take() {
                    None => continue,
                    Some(HeldUp::Trouble(reason)) => Trouble::Wait(reason),
                    Some(HeldUp::Allowance(reason, wait)) => {
                        self.wait_for_allowance(reason, wait).await;
                        continue;
                    }
                },
                Ok(Step::Idle) => match self.idle().await {
                    Ok(()) => continue,
                    Err(trouble) => trouble,
                },
                Err(trouble) => trouble,
            };
            match trouble {
                Trouble::Stop(reason) => return End::Stopped(reason),
                Trouble::Leave(reason) => return End::Left(reason),
                Trouble::Wait(reason) => {
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
            if self.share.is_lost() {
                return Err(End::Left("it was taken over".to_owned()));
            }
            if self.holdings.moves(self.origin) {
                return Err(End::Left("another host should work here".to_owned()));
            }
            let command = self.commands.borrow_and_update().clone();
            if !wants(&command, &self.input.origin) || self.commands.has_changed().is_err() {
                return Err(End::Over);
            }
            self.follow_clock();
            if let Err(Trouble::Wait(why) | Trouble::Stop(why) | Trouble::Leave(why)) =
                self.release().await
            {
                // The next step meets the same error and reports it.
                tracing::debug!(why, "parked messages could not be released");
            }
            if self.orders.wait() {
                // Boxed, like everything rare or per batch: thousands of workers are idle.
                Box::pin(self.obey(&command.live)).await;
                if self.commands.has_changed().unwrap_or(true) {
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
            self.commands.changed().await.map_err(|_| End::Over)?;
            if !self.commands.borrow().paused {
                self.show(State::Running);
            }
        }
    }

    /// Passes the processor's gate for the next batch.
    async fn step(&mut self, command: &Command) -> Result<Step, Trouble> {
        self.canary = command.canary.clone();
        self.attend(command);
        if let Some(canary) = &self.canary {
            canary.gate.remind();
        }
        if let Some(offset) = self.plan.suspects.convicted() {
            self.side = Side::Current;
            self.plan.pick();
            Box::pin(self.bury(&command.live, offset)).await?;
            return Ok(Step::Done);
        }
        self.gate_changes.borrow_and_update();
        match self.gate.enter() {
            Entry::Go => Box::pin(self.advance(command, None)).await,
            // A probe is for the current revision, whatever its key.
            Entry::Probe(probe) => {
                Box::pin(self.advance(&command.without_canary(), Some(probe))).await
            }
            Entry::Wait(wait, reason) => {
                self.hold(wait, reason).await;
                Ok(Step::Done)
            }
        }
    }

    /// Processes the next batch to its end.
    async fn advance(
        &mut self,
        command: &Command,
        mut probe: Option<Probe>,
    ) -> Result<Step, Trouble> {
        let take = match probe {
            _ if self.has_suspects() => Take::Suspect,
            Some(_) => Take::Probe,
            None => Take::Batch,
        };
        let Some(batch) = self.next_batch(command, take).await? else {
            // A command came while it waited for room.
            return Ok(Step::Done);
        };
        self.meters.lost(self.source.take_lost());
        if batch.len() == 0 {
            return self.pass(command, batch, take, probe.is_some()).await;
        }
        self.plan.cut(&batch);
        self.side = batch.side;
        let live = match (&command.canary, batch.side) {
            (Some(canary), Side::Canary) => &canary.live,
            _ => &command.live,
        };
        if !wants(&self.commands.borrow(), &self.input.origin) {
            // A command came while it waited for a fuller batch: no new batch is started.
            self.put_back(&batch, Came::Discarded);
            return Ok(Step::Done);
        }
        let spent = chains::spent(live.spec.hops_max, &batch.columns);
        if !spent.is_empty() {
            drop(probe);
            self.end_of_chain(live, &batch, &spent).await?;
            return Ok(Step::Done);
        }
        if let Some(in_hand) = &mut self.in_hand {
            in_hand.keep(at_hand::called(&live.spec, &batch));
        }
        let batch = self.mark(live, batch).await?;
        self.interrupted = false;
        self.window.lock().calling = Some(self.context.clock.monotonic());
        self.share.calls();
        let processed = self.process(live, &batch, probe.as_mut()).await;
        self.share.answered();
        self.window.lock().calling = None;
        self.turn = None;
        self.attempt_room = None;
        self.unmark(&batch).await;
        processed.map(|()| Step::Done)
    }

    /// There is nothing to call: any messages read wait behind others.
    async fn pass(
        &mut self,
        command: &Command,
        batch: Batch,
        take: Take,
        is_probe: bool,
    ) -> Result<Step, Trouble> {
        let (next, passes) = (batch.next, batch.next != self.progress.next);
        if passes {
            // Kept in memory and committed with the next batch; they are not read again.
            let progress = Arc::make_mut(&mut self.progress);
            progress.next = next;
            progress.parked.extend(batch.skipped);
            self.remembered.set(&self.progress);
        }
        if passes || take == Take::Suspect && self.plan.suspects.end_at(next) {
            return Ok(Step::Done);
        }
        self.plan.join();
        self.source.rest();
        if !is_probe {
            let state = self.resting(&command.live);
            self.show(state);
        }
        // Another revision may be the first to use state, and others may have written it.
        self.home(&command.live).await?;
        self.show_state();
        Ok(Step::Idle)
    }

    /// The batch has no effect: it is cut again, as this demands.
    fn put_back(&mut self, batch: &Batch, came: Came<'_>) {
        self.plan.on(batch, came);
        self.rewind();
    }

    /// What was read ahead is read again.
    fn rewind(&mut self) {
        self.source.rewind(self.progress.next);
    }

    /// Waits until there may be something to do.
    async fn idle(&mut self) -> Result<(), Trouble> {
        let sleep = match batcher::next_due(&self.progress.parked) {
            Some(due) => self.now().until(due).min(SLEEP_MAX),
            None => SLEEP_MAX,
        };
        let order = self.commands.borrow().live.spec.order;
        let room = self.room_for_new(order);
        let mut sleep = sleep;
        if let Some(why) = self.remembered.why_none() {
            self.show(State::Waiting(why, None));
            // Nobody signals when other workers have settled some.
            sleep = sleep.min(FULL_LOOK_INTERVAL);
        }
        let reads = room > 0 && !self.source.is_done();
        if !reads {
            // As after a pause; and it may wait for hours.
            self.rewind();
        }
        let exists = tokio::select! {
            _ = self.commands.changed() => {
                self.commands.mark_changed();
                true
            }
            () = tokio::time::sleep(sleep) => true,
            exists = self.source.wait(self.seen), if reads => exists,
        };
        match exists {
            true => Ok(()),
            false => Err(Trouble::Stop("the topic was deleted".to_owned())),
        }
    }

    /// How many new messages may be read.
    fn room_for_new(&self, order: Order) -> usize {
        let room = batcher::new_messages_max(order, &self.progress.parked);
        self.remembered.new_messages_max(room)
    }

    /// Waits with growing delays, but never through a command.
    async fn back_off(&mut self, reason: String) {
        let delay = self.plan.back_off(&mut self.rng);
        let until = self.now().after(delay);
        self.show(State::Waiting(reason, Some(until)));
        changed_within(&mut self.commands, delay).await;
    }

    fn show(&mut self, state: State) {
        self.meters.parked(self.progress.parked.len());
        let mut window = self.window.lock();
        *window = Standing {
            state,
            next: Some(self.progress.next),
            parked: self.progress.parked.len(),
            progress: Arc::clone(&self.progress),
            revision: self.progress.revision,
            calling: window.calling,
        };
    }

    fn now(&self) -> Timestamp {
        self.time.now(&*self.context.clock)
    }
}
