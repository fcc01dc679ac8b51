//! The supervisor: keeps one worker per processor and input partition, tells them what changes, and sees when one is lost.

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::join_all;
use metrics::gauge;
use millrace_model::{ProcessorName, Timestamp};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::comparison::ShadowReport;
use super::gate::Gate;
use super::shadow::Shadow;
use super::sides::{Canary, Tally};
use super::standing::{Standing, State, Window};
use super::worker::{self, Context};
use super::{Command, Input, Live};
use crate::loading::Prepared;

/// All workers.
pub(crate) struct Supervisor {
    context: Context,
    teams: Mutex<BTreeMap<ProcessorName, Team>>,
}

/// The workers of one processor.
struct Team {
    commands: watch::Sender<Command>,
    gate: Arc<Gate>,
    posts: Vec<Post>,
}

/// One worker.
struct Post {
    input: Input,
    window: Window,
    task: JoinHandle<()>,
}

impl Post {
    /// For the next worker: it has come as far as this one, also if it never comes to read that.
    fn handed_over(&self) -> Window {
        let standing = self.window.lock().clone();
        Arc::new(Mutex::new(Standing {
            state: State::default(),
            ..standing
        }))
    }
}

impl Supervisor {
    /// Without workers yet.
    pub(crate) fn new(context: Context) -> Self {
        Self {
            context,
            teams: Mutex::default(),
        }
    }

    /// From the next batch on, the processor runs these revisions on these inputs. Workers that are lost are started again; those
    /// of other inputs stop, and have stopped on return.
    pub(crate) async fn apply(&self, prepared: Prepared, paused: bool) {
        let live = Arc::clone(&prepared.live);
        let leaving = {
            let mut teams = self.teams.lock();
            let team = teams
                .entry(live.processor.clone())
                .or_insert_with(|| Team::new(&self.context, Arc::clone(&live)));
            team.gate.install(&live);
            let canary = team.canary(prepared.canary);
            let shadow = team.shadow(prepared.shadow);
            team.commands.send_replace(Command {
                live,
                canary,
                shadow,
                paused,
                stopped: false,
            });
            let leaving = team.dismiss(&prepared.inputs);
            team.staff(&self.context, prepared.inputs);
            count_running(&teams);
            leaving
        };
        join_all(leaving).await;
    }

    /// The processor takes no further batches.
    pub(crate) fn pause(&self, name: &ProcessorName) {
        let teams = self.teams.lock();
        if let Some(team) = teams.get(name) {
            team.commands.send_modify(|command| command.paused = true);
        }
        count_running(&teams);
    }

    /// Stops the processor's workers at their next batch boundary.
    pub(crate) async fn stop(&self, name: &ProcessorName) {
        let team = {
            let mut teams = self.teams.lock();
            let team = teams.remove(name);
            count_running(&teams);
            team
        };
        if let Some(team) = team {
            team.stop().await;
        }
    }

    /// Stops all workers at their next batch boundaries.
    pub(crate) async fn stop_all(&self) {
        let teams = std::mem::take(&mut *self.teams.lock());
        join_all(teams.into_values().map(Team::stop)).await;
        gauge!("millrace_processors_running").set(0);
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

    /// What the processor's shadow has been found to do; `None` if none runs.
    pub(crate) fn shadow(&self, name: &ProcessorName) -> Option<ShadowReport> {
        let teams = self.teams.lock();
        let shadow = teams.get(name)?.commands.borrow().shadow.clone()?;
        drop(teams);
        let report = shadow.report.lock().clone();
        Some(report)
    }

    /// How the processor's workers do; empty if it has none.
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
            gate: Arc::new(Gate::new(clock, alarms, Arc::clone(&live))),
            commands: watch::Sender::new(Command {
                live,
                canary: None,
                shadow: None,
                paused: false,
                stopped: false,
            }),
            posts: Vec::new(),
        }
    }

    /// The shadow to run from now on. The report of one that is there goes on.
    fn shadow(&self, wanted: Option<(Arc<Live>, Timestamp)>) -> Option<Arc<Shadow>> {
        let (live, since) = wanted?;
        let before = self.commands.borrow().shadow.clone();
        let stays = before.filter(|before| before.live.revision == live.revision);
        Some(stays.unwrap_or_else(|| Arc::new(Shadow::new(live, since))))
    }

    /// The canary to run from now on. The breaker and the counts of one that is there stay, whatever its share.
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

    /// Takes workers off the list whose input is no longer read; they see that for themselves.
    fn dismiss(&mut self, inputs: &[Input]) -> Vec<JoinHandle<()>> {
        let stays = |post: &Post| inputs.iter().any(|input| same(input, &post.input));
        let (staying, leaving) = std::mem::take(&mut self.posts).into_iter().partition(stays);
        self.posts = staying;
        Vec::from_iter(leaving)
            .into_iter()
            .map(|post: Post| post.task)
            .collect()
    }

    /// Sees to it that every input has its worker.
    fn staff(&mut self, context: &Context, inputs: Vec<Input>) {
        let (lost, staying): (Vec<Post>, _) = std::mem::take(&mut self.posts)
            .into_iter()
            .partition(|post| post.task.is_finished());
        self.posts = staying;
        for input in inputs {
            if !self.posts.iter().any(|post| same(&input, &post.input)) {
                let before = lost.iter().find(|post| same(&input, &post.input));
                let window = before.map(Post::handed_over).unwrap_or_default();
                let run = worker::run(
                    context.clone(),
                    input.clone(),
                    self.commands.subscribe(),
                    Arc::clone(&window),
                    Arc::clone(&self.gate),
                );
                let task = tokio::spawn(guard(run, Arc::clone(&window)));
                self.posts.push(Post {
                    input,
                    window,
                    task,
                });
            }
        }
        let place = |post: &Post| (post.input.topic.spec.name.clone(), post.input.partition);
        self.posts.sort_by_cached_key(place);
    }

    async fn stop(self) {
        self.commands.send_modify(|command| command.stopped = true);
        join_all(self.posts.into_iter().map(|post| post.task)).await;
    }
}

fn same(a: &Input, b: &Input) -> bool {
    a.topic.id == b.topic.id && a.partition == b.partition
}

/// A panic is our fault and ends this worker only. Nothing was committed of its batch.
async fn guard(run: impl Future<Output = ()>, window: Window) {
    if AssertUnwindSafe(run).catch_unwind().await.is_err() {
        tracing::error!("a worker panicked; nothing of its batch was committed");
        let reason = "the worker panicked, see the host's log; deploy or resume to start it again";
        window.lock().state = State::Stopped(reason.to_owned());
    }
}
