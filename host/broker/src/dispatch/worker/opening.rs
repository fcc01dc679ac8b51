//! How a worker starts and leaves: if this host should work on the partition, it takes the hold first and then reads the previous
//! worker's progress. It starts again for as long as it is wanted.

use std::sync::Arc;
use std::time::Duration;

use millrace_engine::{Engine, EntryKind, Expectation, HostInfo};
use millrace_model::{Offset, Processor, Progress, SteadyClock, TopicPartition};
use tokio::sync::watch;

use super::trouble::{End, Trouble};
use super::{Context, SLEEP_MAX, Worker, changed_within, wants};
use crate::dispatch::command::Command;
use crate::dispatch::gate::Gate;
use crate::dispatch::input::Input;
use crate::dispatch::live::Live;
use crate::dispatch::meters::Meters;
use crate::dispatch::orders::Orders;
use crate::dispatch::plan::Plan;
use crate::dispatch::remembered::Part;
use crate::dispatch::retry;
use crate::dispatch::sides::Side;
use crate::dispatch::source::Source;
use crate::dispatch::standing::{State, Window};
use crate::dispatch::suspects::{self, Suspects};
use crate::ground::backoff::Backoff;
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
            meters: Meters::new(processor.as_str()),
            context: context.clone(),
            input: input.clone(),
            commands: commands.clone(),
            window: Arc::clone(window),
            orders: orders.clone(),
            time,
            gate: Arc::clone(gate),
            gate_changes: gate.changes(),
            share,
            lease,
            beginning,
            holdings: Arc::clone(holdings),
            partition,
            origin,
            source,
            in_hand: None,
            held_up: None,
            attempt_room: None,
            remembered: Part::new(&context.remembered, &progress),
            stored,
            progress: Arc::new(Progress {
                first_call: None,
                ..progress
            }),
            plan: Plan::new(suspects),
            interrupted: false,
            home: None,
            turn: None,
            seen: Offset::default(),
            side: Side::default(),
            canary: None,
            echo: None,
            commits: 0,
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
