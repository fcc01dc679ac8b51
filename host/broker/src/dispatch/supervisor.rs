//! The supervisor: keeps one worker per processor and input partition, passes commands to them, and
//! notices when one is lost.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use metrics::gauge;
use millrace_model::bounds::{REPLACED_CALL_MS_MAX, STOPPED_CALL_MS_MAX};
use millrace_model::{PartitionId, ProcessorName, Timestamp, TopicName};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinHandle};

use crate::dispatch::command::Command;
use crate::dispatch::comparison::ShadowReport;
use crate::dispatch::gate::Gate;
use crate::dispatch::input::Input;
use crate::dispatch::live::Live;
use crate::dispatch::orders::{Order, Orders, ParkedIn};
use crate::dispatch::prepared::{Prepared, PreparedTrial};
use crate::dispatch::shadow::Shadow;
use crate::dispatch::sides::{Canary, Tally};
use crate::dispatch::standing::{Standing, State, Window};
use crate::dispatch::worker;
use crate::dispatch::worker::Context;
use crate::hosts::holding::Holdings;

/// All workers.
pub(crate) struct Supervisor {
    context: Context,
    teams: Mutex<BTreeMap<ProcessorName, Team>>,
    /// Set while the host stops: no further worker starts.
    closed: AtomicBool,
}

/// Interval of log lines about workers that a stop waits for.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// Minimum interval of these log lines.
const REPORT_INTERVAL_MIN: Duration = Duration::from_millis(100);
/// A worker that was told to stop and whose call was interrupted must end within this time. After
/// that its task is aborted, because the disk may be holding it.
const CUT_OFF_AFTER: Duration = Duration::from_millis(500);

/// The workers of one processor.
struct Team {
    commands: watch::Sender<Command>,
    gate: Arc<Gate>,
    holdings: Arc<Holdings>,
    posts: Vec<Post>,
}

/// A worker and its input.
struct Post {
    input: Input,
    window: Window,
    orders: Orders,
    task: JoinHandle<()>,
}

impl Post {
    /// The status for the next worker. The next worker's position is at least this one's, even
    /// before it has read progress.
    fn handed_over(&self) -> Window {
        let standing = self.window.lock().clone();
        Arc::new(Mutex::new(Standing {
            state: State::default(),
            calling: None,
            ..standing
        }))
    }
}

impl Supervisor {
    /// A supervisor without workers.
    pub(crate) fn new(context: Context) -> Self {
        Self {
            context,
            teams: Mutex::default(),
            closed: AtomicBool::new(false),
        }
    }

    /// Runs these revisions of the processor on these inputs from the next batch on. Lost workers
    /// are started again. Workers of other inputs have stopped on return.
    pub(crate) async fn apply(&self, prepared: Prepared, paused: bool) {
        let live = Arc::clone(&prepared.live);
        let patience = self.after_ms(REPLACED_CALL_MS_MAX);
        let leaving = {
            let mut teams = self.teams.lock();
            if self.is_closed() {
                return;
            }
            let team = teams
                .entry(live.processor.clone())
                .or_insert_with(|| Team::new(&self.context, Arc::clone(&live)));
            team.gate.install(&live);
            let (canary, shadow) = match prepared.trial {
                None => (None, None),
                Some(PreparedTrial::Canary { live, percent }) => (Some((live, percent)), None),
                Some(PreparedTrial::Shadow { live, since }) => (None, Some((live, since))),
            };
            let canary = team.canary(canary);
            let shadow = team.shadow(shadow);
            team.commands.send_replace(Command {
                live,
                canary,
                shadow,
                paused,
                stopped: false,
                patience,
            });
            let leaving = team.dismiss(&prepared.inputs);
            team.staff(&self.context, prepared.inputs);
            count_running(&teams);
            leaving
        };
        join_all(leaving).await;
    }

    /// Starts workers for further inputs of the processor; existing workers continue unchanged.
    pub(crate) fn enlarge(&self, name: &ProcessorName, inputs: Vec<Input>) {
        let mut teams = self.teams.lock();
        if self.is_closed() {
            return;
        }
        if let Some(team) = teams.get_mut(name) {
            let is_new = |input: &Input| !team.posts.iter().any(|post| same(input, &post.input));
            let new: Vec<Input> = inputs.into_iter().filter(is_new).collect();
            new.into_iter()
                .for_each(|input| team.post(&self.context, input, Window::default()));
            team.in_order();
        }
    }

    /// Makes the processor take no further batches.
    pub(crate) fn pause(&self, name: &ProcessorName) {
        let teams = self.teams.lock();
        if let Some(team) = teams.get(name) {
            team.commands.send_modify(|command| command.paused = true);
        }
        count_running(&teams);
    }

    /// Whether the host is stopping. Workers may still be finishing their last batches.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    fn after_ms(&self, ms: u64) -> Duration {
        self.context.clock.monotonic() + Duration::from_millis(ms)
    }

    /// Stops the processor's workers at their next batch boundary. Calls that do not end soon are
    /// interrupted.
    pub(crate) async fn stop(&self, name: &ProcessorName) {
        let team = {
            let mut teams = self.teams.lock();
            let team = teams.remove(name);
            count_running(&teams);
            team
        };
        if let Some(team) = team {
            team.dismiss_all(self.after_ms(STOPPED_CALL_MS_MAX));
            join_all(team.posts.into_iter().map(|post| post.task)).await;
        }
    }

    /// Stops all workers at their next batch boundary, permanently. Calls that have not ended after
    /// `patience` are interrupted.
    pub(crate) async fn stop_all(&self, patience: Duration) {
        let teams = {
            let mut teams = self.teams.lock();
            self.closed.store(true, Ordering::SeqCst);
            std::mem::take(&mut *teams)
        };
        let until = self.context.clock.monotonic() + patience;
        let (mut watched, mut tasks) = (Vec::new(), Vec::new());
        let mut commands = Vec::new();
        for (name, team) in teams {
            team.dismiss_all(until);
            for post in team.posts {
                watched.push((name.clone(), post.input, post.window));
                tasks.push(post.task);
            }
            // Kept until the end: a worker whose command channel is closed would not wait for its
            // call.
            commands.push(team.commands);
        }
        let handles: Vec<_> = tasks.iter().map(JoinHandle::abort_handle).collect();
        let mut ended = pin!(join_all(tasks));
        // A stop with a short patience must log at least once, too.
        let interval = REPORT_INTERVAL.min((patience / 4).max(REPORT_INTERVAL_MIN));
        loop {
            let now = self.context.clock.monotonic();
            let left = (until + CUT_OFF_AFTER).saturating_sub(now);
            tokio::select! {
                _ = &mut ended => break,
                () = tokio::time::sleep(interval.min(left)) => {}
            }
            let now = self.context.clock.monotonic();
            self.report(&watched, now, until.saturating_sub(now));
            if now >= until + CUT_OFF_AFTER {
                tracing::error!(
                    "workers did not stop and are cut off; uncommitted work has no effect"
                );
                handles.iter().for_each(AbortHandle::abort);
                ended.await;
                break;
            }
        }
        drop(commands);
        gauge!("millrace_processors_running").set(0);
    }

    /// Logs the workers that a stop is waiting for.
    fn report(&self, watched: &[(ProcessorName, Input, Window)], now: Duration, left: Duration) {
        for (processor, input, window) in watched {
            let standing = window.lock().clone();
            let (topic, partition) = (&input.topic.spec.name, input.partition);
            let interrupted_in_ms = left.as_millis() as u64;
            match (standing.calling, &standing.state) {
                (_, State::Stopped(_)) => {}
                (Some(since), _) => {
                    let for_ms = now.saturating_sub(since).as_millis() as u64;
                    tracing::info!(%processor, %topic, %partition, for_ms, interrupted_in_ms, "waiting for a call to end before stopping");
                }
                (None, state) => {
                    tracing::info!(%processor, %topic, %partition, %state, "waiting for a worker to end before stopping");
                }
            }
        }
    }

    /// The processor's gate; `None` if it has no workers.
    pub(crate) fn gate(&self, name: &ProcessorName) -> Option<Arc<Gate>> {
        let teams = self.teams.lock();
        teams.get(name).map(|team| Arc::clone(&team.gate))
    }

    /// The processor's canary; `None` if none runs.
    pub(crate) fn canary(&self, name: &ProcessorName) -> Option<Arc<Canary>> {
        let teams = self.teams.lock();
        teams.get(name)?.commands.borrow().canary.clone()
    }

    /// The shadow's report; `None` if none runs.
    pub(crate) fn shadow(&self, name: &ProcessorName) -> Option<ShadowReport> {
        let teams = self.teams.lock();
        let shadow = teams.get(name)?.commands.borrow().shadow.clone()?;
        drop(teams);
        let report = shadow.report.lock().clone();
        Some(report)
    }

    /// Queues an order for the worker of a partition. Returns the queue and the number that
    /// withdraws the order; `None` without a worker.
    pub(crate) fn order(
        &self,
        name: &ProcessorName,
        topic: &TopicName,
        partition: PartitionId,
        order: Order,
    ) -> Option<Result<(Orders, u64), State>> {
        let teams = self.teams.lock();
        let team = teams.get(name)?;
        let is_there = |post: &&Post| {
            post.input.topic.spec.name == *topic && post.input.partition == partition
        };
        let mut posts = team.posts.iter().filter(|post| !post.task.is_finished());
        let post = posts.find(is_there)?;
        let state = post.window.lock().state.clone();
        if !state.is_here() {
            return Some(Err(state));
        }
        let orders = post.orders.clone();
        let number = orders.put(order);
        team.commands.send_modify(|_| {});
        Some(Ok((orders, number)))
    }

    /// Makes all workers check whether they should still work on this host.
    pub(crate) fn nudge_all(&self) {
        for team in self.teams.lock().values() {
            team.commands.send_modify(|_| {});
        }
    }

    /// Makes the workers of this topic check it again: its oldest messages may be gone.
    pub(crate) fn nudge(&self, topic: &TopicName) {
        let teams = self.teams.lock();
        let reads = |team: &&Team| {
            let mut posts = team.posts.iter();
            posts.any(|post| post.input.topic.spec.name == *topic)
        };
        for team in teams.values().filter(reads) {
            team.commands.send_modify(|_| {});
        }
    }

    /// The processor's parked messages; empty if it has none.
    pub(crate) fn parked(&self, name: &ProcessorName) -> Vec<ParkedIn> {
        let standings = self.standings(name).into_iter();
        let parked = standings.map(|(input, standing)| {
            // If another host works on the partition, this host only knows old progress.
            let works_here = standing.state.is_here();
            let known = standing.next.filter(|_| works_here);
            let progress = known.map(|_| standing.progress);
            ParkedIn { input, progress }
        });
        parked.collect()
    }

    /// The status of the processor's workers; empty if it has none.
    pub(crate) fn standings(&self, name: &ProcessorName) -> Vec<(Input, Standing)> {
        let teams = self.teams.lock();
        let posts = teams.get(name).map(|team| &team.posts);
        posts
            .into_iter()
            .flatten()
            .map(|post| (post.input.clone(), post.window.lock().clone()))
            .collect()
    }
}

fn count_running(teams: &BTreeMap<ProcessorName, Team>) {
    let running = teams
        .values()
        .filter(|team| !team.commands.borrow().paused)
        .count();
    gauge!("millrace_processors_running").set(running as f64);
}

impl Team {
    fn new(context: &Context, live: Arc<Live>) -> Self {
        let (clock, alarms) = (Arc::clone(&context.clock), context.alarms.clone());
        Self {
            holdings: context.hosts.holdings(&live.processor.group()),
            gate: Arc::new(Gate::new(clock, alarms, Arc::clone(&live)).among(&context.hosts)),
            commands: watch::Sender::new(Command {
                live,
                canary: None,
                shadow: None,
                paused: false,
                stopped: false,
                patience: Duration::ZERO,
            }),
            posts: Vec::new(),
        }
    }

    /// The shadow to run from now on. An existing shadow continues with its report.
    fn shadow(&self, wanted: Option<(Arc<Live>, Timestamp)>) -> Option<Arc<Shadow>> {
        let (live, since) = wanted?;
        let before = self.commands.borrow().shadow.clone();
        let stays = before.filter(|before| before.live.revision == live.revision);
        Some(stays.unwrap_or_else(|| Arc::new(Shadow::new(live, since))))
    }

    /// The canary to run from now on. An existing canary keeps its breaker and counts, even if its
    /// share changes.
    fn canary(&self, wanted: Option<(Arc<Live>, u32)>) -> Option<Arc<Canary>> {
        let before = self.commands.borrow().canary.clone();
        let wanted_revision = wanted.as_ref().map(|(live, _)| live.revision);
        let stays = before.filter(|before| {
            let stays = wanted_revision == Some(before.live.revision);
            if !stays {
                before.gate.retire();
            }
            stays
        });
        let (live, percent) = wanted?;
        let (gate, tally) = match stays {
            Some(before) => (Arc::clone(&before.gate), Arc::clone(&before.tally)),
            None => (
                Arc::new(Gate::of_canary(&self.gate, Arc::clone(&live))),
                Arc::new(Tally::new(&live.processor)),
            ),
        };
        Some(Arc::new(Canary {
            live,
            percent,
            gate,
            tally,
        }))
    }

    /// Removes workers whose input is no longer read. They notice it themselves and end.
    fn dismiss(&mut self, inputs: &[Input]) -> Vec<JoinHandle<()>> {
        let stays = |post: &Post| inputs.iter().any(|input| same(input, &post.input));
        let (staying, leaving) = std::mem::take(&mut self.posts).into_iter().partition(stays);
        self.posts = staying;
        Vec::from_iter(leaving)
            .into_iter()
            .map(|post: Post| post.task)
            .collect()
    }

    /// Starts a worker for every input that has none.
    fn staff(&mut self, context: &Context, inputs: Vec<Input>) {
        let (lost, staying): (Vec<Post>, _) = std::mem::take(&mut self.posts)
            .into_iter()
            .partition(|post| post.task.is_finished());
        self.posts = staying;
        for input in inputs {
            if !self.posts.iter().any(|post| same(&input, &post.input)) {
                let before = lost.iter().find(|post| same(&input, &post.input));
                let window = before.map(Post::handed_over).unwrap_or_default();
                self.post(context, input, window);
            }
        }
        self.in_order();
    }

    /// Starts a worker.
    fn post(&mut self, context: &Context, input: Input, window: Window) {
        let orders = Orders::default();
        let run = worker::run(
            context.clone(),
            input.clone(),
            self.commands.subscribe(),
            Arc::clone(&window),
            orders.clone(),
            Arc::clone(&self.gate),
            Arc::clone(&self.holdings),
        );
        // Boxed: otherwise the task would reserve memory for a second copy of the future.
        let task = tokio::spawn(guard(Box::pin(run), Arc::clone(&window)));
        self.posts.push(Post {
            input,
            window,
            orders,
            task,
        });
    }

    /// Sorts workers by topic and partition, the order of lists, and tells the gate the inputs.
    fn in_order(&mut self) {
        let place = |post: &Post| (post.input.topic.spec.name.clone(), post.input.partition);
        self.posts.sort_by_cached_key(place);
        let read = |post: &Post| post.input.topic.partition(post.input.partition);
        self.gate
            .reads(self.posts.iter().filter_map(read).collect());
    }

    /// Tells all workers of the processor to stop. Running calls may continue until `patience`, a
    /// time of the monotonic clock.
    fn dismiss_all(&self, patience: Duration) {
        self.commands.send_modify(|command| {
            command.stopped = true;
            command.patience = patience;
        });
    }
}

fn same(a: &Input, b: &Input) -> bool {
    a.topic.id == b.topic.id && a.partition == b.partition
}

/// Catches a panic, which is a bug of the host, so that it ends only this worker. Nothing of the
/// worker's batch was committed.
async fn guard(run: impl Future<Output = ()>, window: Window) {
    if AssertUnwindSafe(run).catch_unwind().await.is_err() {
        tracing::error!("a worker panicked; nothing of its batch was committed");
        let reason = "the worker panicked, see the host's log; deploy or resume the processor to start it again";
        window.lock().state = State::Stopped(reason.to_owned());
    }
}
