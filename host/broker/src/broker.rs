//! The broker: the handle that everybody holds. Its verbs stand in the files of what they are about.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

use metrics::{Counter, Histogram, histogram};
use millrace_engine::{
    BackupError, BackupRequest, BackupStream, CommitError, Engine, EntryKind, EntryWrite, Version,
};
use millrace_model::bounds::{
    DRY_RUNS_MAX, HOST_AT_HAND_BYTES_MAX, HOST_ATTEMPTS_BYTES_MAX, HOST_STATE_ATTEMPTS_MAX,
    PRODUCE_BYTES_IN_FLIGHT_MAX, STOP_CALLS_MS_MAX,
};
use millrace_model::{Clock, Processor, ProcessorName, TopicId};
use parking_lot::{Mutex, RwLock};
use serde::Serialize;
use tokio::sync::{Semaphore, mpsc, watch};

use crate::catalogue::{self, Followed};
use crate::consumers::Consumers;
use crate::delays::{self, Delays};
use crate::dispatch::at_hand::AtHand;
use crate::dispatch::remembered::Remembered;
use crate::dispatch::supervisor::Supervisor;
use crate::dispatch::worker::Context;
use crate::handler::ModuleHost;
use crate::hosts::{self, Hosts, MOVES_AFTER};
use crate::interrupting::{Interrupt, Interruptible};
use crate::partitioner::Partitioners;
use crate::processors::{ProcessorError, take_back};
use crate::schedules::{self, Schedules};
use crate::tasks::Tasks;

/// Revisions that wait to be taken back. One beyond them is told again by its next failed probe.
const ALARMS_MAX: usize = 64;

/// What all calls and all processors together may hold in memory, and when work goes over to other hosts.
#[derive(Clone, Copy, Debug)]
pub struct BrokerLimits {
    /// Bytes of produce calls on their way to the engine; no more than [`PRODUCE_BYTES_IN_FLIGHT_MAX`].
    pub in_flight_bytes: usize,
    /// Bytes of what is remembered of failed attempts.
    pub remembered_bytes: usize,
    /// Calls that may write to state at once, each up to
    /// [`STATE_ATTEMPT_BYTES_MAX`](millrace_model::bounds::STATE_ATTEMPT_BYTES_MAX). One more waits.
    pub state_attempts: usize,
    /// Bytes of batches that processors have at hand, with what is answered. A batch for which there is no room waits.
    pub at_hand_bytes: usize,
    /// How long after hosts came or went what is held moves to where it is wanted then: a host that is only started again is back by then.
    pub moves_after: Duration,
}

impl Default for BrokerLimits {
    fn default() -> Self {
        Self {
            in_flight_bytes: PRODUCE_BYTES_IN_FLIGHT_MAX,
            remembered_bytes: HOST_ATTEMPTS_BYTES_MAX,
            state_attempts: HOST_STATE_ATTEMPTS_MAX,
            at_hand_bytes: HOST_AT_HAND_BYTES_MAX,
            moves_after: MOVES_AFTER,
        }
    }
}
/// How long winding down goes on after the last call was interrupted.
const WIND_DOWN_SLACK: Duration = Duration::from_millis(700);

/// The handle; cheap to clone.
#[derive(Clone)]
pub struct Broker {
    pub(crate) inner: Arc<Inner>,
    /// In whose name changes are made.
    pub(crate) by: Option<Arc<str>>,
}

pub(crate) struct Inner {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) modules: Arc<dyn ModuleHost>,
    interrupt: Interrupt,
    pub(crate) partitioners: Partitioners,
    pub(crate) supervisor: Supervisor,
    pub(crate) hosts: Arc<Hosts>,
    /// The catalogue's processors, and why those that do not run do not.
    pub(crate) processors: RwLock<BTreeMap<ProcessorName, Deployed>>,
    /// Up to which of the catalogue's writes of processors they are known.
    pub(crate) processors_followed: Followed,
    /// Topics as this host last looked at them, and how many partitions they had, where there are other hosts.
    pub(crate) topics_followed: Mutex<HashMap<TopicId, u32>>,
    /// Held by whoever decides about the catalogue. Others may decide on other hosts: what must hold is expected by the commit.
    pub(crate) changes: tokio::sync::Mutex<()>,
    /// Held by whoever sends dead letters again, so that they need not try twice.
    pub(crate) redrives: tokio::sync::Mutex<()>,
    /// Processors of which what is due is being sent again here.
    pub(crate) redriving: Mutex<HashSet<ProcessorName>>,
    /// Held by dry runs: each has a revision loaded beside those that work, and letters in memory.
    pub(crate) dry_runs: Semaphore,
    /// Bytes of produce calls on their way to the engine.
    pub(crate) in_flight: Semaphore,
    /// How many those may be.
    pub(crate) in_flight_bytes: usize,
    pub(crate) consumers: Consumers,
    pub(crate) delays: Arc<Delays>,
    pub(crate) schedules: Schedules,
    tasks: Tasks,
    pub(crate) publish_seconds: Histogram,
    /// Messages received, by topic.
    pub(crate) received: Mutex<HashMap<TopicId, Counter>>,
    /// How often topics were given more partitions.
    pub(crate) growths: watch::Sender<u64>,
}

/// A processor in the catalogue.
#[derive(Clone, Debug)]
pub(crate) struct Deployed {
    pub(crate) processor: Processor,
    /// The version of its entry.
    pub(crate) version: Version,
    /// Why its current revision could not be loaded.
    pub(crate) problem: Option<String>,
    /// Why the revision on trial could not be loaded; the current one runs alone.
    pub(crate) trial_problem: Option<String>,
    /// Why the host could not take its current revision back, when it tried last.
    pub(crate) way_back_problem: Option<String>,
}

impl Broker {
    /// Starts: loads the catalogue, then the workers of every processor. A processor that cannot be loaded is stopped and says
    /// why; the others run.
    ///
    /// # Errors
    /// [`ProcessorError`] where the catalogue cannot be read.
    pub async fn start(
        clock: Arc<dyn Clock>,
        engine: Arc<dyn Engine>,
        modules: Arc<dyn ModuleHost>,
    ) -> Result<Self, ProcessorError> {
        Self::start_within(clock, engine, modules, BrokerLimits::default()).await
    }

    /// As [`Broker::start`], with limits of the host's own.
    ///
    /// # Errors
    /// As of [`Broker::start`].
    pub async fn start_within(
        clock: Arc<dyn Clock>,
        engine: Arc<dyn Engine>,
        modules: Arc<dyn ModuleHost>,
        limits: BrokerLimits,
    ) -> Result<Self, ProcessorError> {
        let in_flight_bytes = limits.in_flight_bytes.min(PRODUCE_BYTES_IN_FLIGHT_MAX);
        let (alarms, heard) = mpsc::channel(ALARMS_MAX);
        let interrupt = Interrupt::default();
        let modules: Arc<dyn ModuleHost> = Interruptible::new(modules, interrupt.clone());
        let (e, c) = (Arc::clone(&engine), Arc::clone(&clock));
        let hosts = Hosts::new(e, c, limits.moves_after);
        let delays = Delays::new(Arc::clone(&clock), Arc::clone(&engine), &hosts).await?;
        let context = Context {
            clock: Arc::clone(&clock),
            engine: Arc::clone(&engine),
            hosts: Arc::clone(&hosts),
            delays: Arc::clone(&delays),
            alarms,
            remembered: Remembered::new(limits.remembered_bytes),
            attempts: Arc::new(Semaphore::new(limits.state_attempts.max(1))),
            at_hand: AtHand::new(limits.at_hand_bytes),
        };
        let broker = Self {
            by: None,
            inner: Arc::new(Inner {
                consumers: Consumers::new(clock.monotonic(), &hosts),
                hosts,
                clock,
                engine,
                modules,
                interrupt,
                partitioners: Partitioners::default(),
                supervisor: Supervisor::new(context),
                processors: RwLock::default(),
                processors_followed: Followed::default(),
                topics_followed: Mutex::default(),
                changes: tokio::sync::Mutex::default(),
                redrives: tokio::sync::Mutex::default(),
                redriving: Mutex::default(),
                dry_runs: Semaphore::new(DRY_RUNS_MAX),
                in_flight: Semaphore::new(in_flight_bytes),
                in_flight_bytes,
                schedules: Schedules::default(),
                tasks: Tasks::default(),
                delays,
                publish_seconds: histogram!("millrace_publish_seconds"),
                received: Mutex::default(),
                growths: watch::Sender::new(0),
            }),
        };
        broker.read_schedules()?;
        broker.recover_consumers().await?;
        broker.start_processors().await?;
        broker.start_tasks();
        tokio::spawn(take_back(Arc::downgrade(&broker.inner), heard));
        Ok(broker)
    }

    fn start_tasks(&self) {
        let Inner {
            tasks,
            delays,
            schedules,
            engine,
            ..
        } = &*self.inner;
        let (broker, changed) = (Arc::downgrade(&self.inner), engine.watch_catalogue());
        tasks.start("catalogue", move |stop| {
            catalogue::follow(Weak::clone(&broker), changed.clone(), stop)
        });
        let (broker, hosts) = (Arc::downgrade(&self.inner), engine.hosts());
        let moved_after = self.inner.hosts.moved_after();
        tasks.start("hosts", move |stop| {
            hosts::follow(Weak::clone(&broker), moved_after, hosts.clone(), stop)
        });
        let delays = Arc::clone(delays);
        tasks.start("delays", move |stop| delays::run(Arc::clone(&delays), stop));
        let (broker, changed) = (Arc::downgrade(&self.inner), schedules.changed());
        tasks.start("schedules", move |stop| {
            schedules::run(Weak::clone(&broker), Arc::clone(&changed), stop)
        });
    }

    /// Whether the engine takes commits now.
    ///
    /// # Errors
    /// [`CommitError`] says why not.
    pub async fn ready(&self) -> Result<(), CommitError> {
        self.inner.engine.health().await
    }

    /// Copies everything as of one instant that comes after this call; all else goes on meanwhile.
    ///
    /// # Errors
    /// [`BackupError`].
    pub async fn backup(&self, request: BackupRequest) -> Result<BackupStream, BackupError> {
        self.inner.engine.backup(request).await
    }

    /// Stops the workers at their next batch boundary, then closes the engine. Calls of guests that do not end by themselves are
    /// interrupted after [`STOP_CALLS_MS_MAX`].
    pub async fn stop(&self) {
        if !self.inner.interrupt.is_given() {
            let patience = Duration::from_millis(STOP_CALLS_MS_MAX);
            self.wind_down(patience).await;
        }
        self.inner.tasks.stop().await;
        self.inner.engine.close().await;
    }

    /// The first half of [`stop`](Self::stop): no worker takes a further batch, and on return no guest is called any more, nor will
    /// be. Calls have `patience` to end by themselves. The engine goes on, so that requests are answered.
    pub async fn wind_down(&self, patience: Duration) {
        let Inner {
            supervisor,
            changes,
            interrupt,
            ..
        } = &*self.inner;
        let rested = async {
            supervisor.stop_all(patience).await;
            // Whoever changes something may be loading a component; what waits behind is refused by the engine, or was too late.
            drop(changes.lock().await);
        };
        let too_late = async {
            tokio::time::sleep(patience).await;
            interrupt.all();
            // Only the disk can hold anybody up now.
            tokio::time::sleep(WIND_DOWN_SLACK).await;
        };
        tokio::select! {
            () = rested => {}
            () = too_late => {}
        }
        interrupt.all();
    }
}

/// An entry of the catalogue, as written.
pub(crate) fn entry<T: Serialize>(kind: EntryKind, key: String, value: Option<&T>) -> EntryWrite {
    // Our own types, whose maps have text keys: they always serialise.
    let value = value.map(|value| serde_json::to_vec(value).unwrap_or_default().into());
    EntryWrite { kind, key, value }
}
