//! The broker: the shared handle. Its methods are in the files of their subjects.

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

/// Alarms queued for automatic rollback. When the queue is full, the alarm is dropped; the next failed probe raises it again.
const ALARMS_MAX: usize = 64;

/// What all calls and all processors together may hold in memory, and when work moves to other hosts.
#[derive(Clone, Copy, Debug)]
pub struct BrokerLimits {
    /// Bytes of produce calls on their way to the engine; at most [`PRODUCE_BYTES_IN_FLIGHT_MAX`].
    pub in_flight_bytes: usize,
    /// Bytes of records of failed attempts.
    pub remembered_bytes: usize,
    /// Concurrent calls that may write to state, each up to
    /// [`STATE_ATTEMPT_BYTES_MAX`](millrace_model::bounds::STATE_ATTEMPT_BYTES_MAX). Another one waits.
    pub state_attempts: usize,
    /// Bytes of batches held by processors, including their answers. A batch without room waits.
    pub at_hand_bytes: usize,
    /// How long after a host joined or left holds move to the new owners: a host that only restarts is back by then.
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
/// How long winding down continues after the last call was interrupted.
const WIND_DOWN_SLACK: Duration = Duration::from_millis(700);

/// The handle; cheap to clone.
#[derive(Clone)]
pub struct Broker {
    pub(crate) inner: Arc<Inner>,
    /// The name under which changes are made.
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
    /// The catalogue's processors, and for those that do not run, why.
    pub(crate) processors: RwLock<BTreeMap<ProcessorName, Deployed>>,
    /// Which writes of processors in the catalogue are known here.
    pub(crate) processors_followed: Followed,
    /// Topics and their partition counts as this host last saw them, if there are other hosts.
    pub(crate) topics_followed: Mutex<HashMap<TopicId, u32>>,
    /// Locked while deciding about the catalogue. Other hosts may decide at the same time: commits carry expectations for what must
    /// still hold.
    pub(crate) changes: tokio::sync::Mutex<()>,
    /// Locked while sending dead letters again, so that redrives need not retry on conflicts.
    pub(crate) redrives: tokio::sync::Mutex<()>,
    /// Processors whose due redrives are running here.
    pub(crate) redriving: Mutex<HashSet<ProcessorName>>,
    /// Limits dry runs: each has an extra revision loaded, and dead letters in memory.
    pub(crate) dry_runs: Semaphore,
    /// Bytes of produce calls on their way to the engine.
    pub(crate) in_flight: Semaphore,
    /// The maximum of those.
    pub(crate) in_flight_bytes: usize,
    pub(crate) consumers: Consumers,
    pub(crate) delays: Arc<Delays>,
    pub(crate) schedules: Schedules,
    tasks: Tasks,
    pub(crate) publish_seconds: Histogram,
    /// Messages received, by topic.
    pub(crate) received: Mutex<HashMap<TopicId, Counter>>,
    /// How often partitions were added to topics.
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
    /// Why the host could not roll the current revision back, at its last try.
    pub(crate) way_back_problem: Option<String>,
}

impl Broker {
    /// Starts: loads the catalogue, then the workers of every processor. A processor that cannot be loaded is stopped and says why; the
    /// others run.
    ///
    /// # Errors
    /// [`ProcessorError`] if the catalogue cannot be read.
    pub async fn start(
        clock: Arc<dyn Clock>,
        engine: Arc<dyn Engine>,
        modules: Arc<dyn ModuleHost>,
    ) -> Result<Self, ProcessorError> {
        Self::start_within(clock, engine, modules, BrokerLimits::default()).await
    }

    /// Like [`Broker::start`], with limits set by the host.
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

    /// Whether the engine accepts commits now.
    ///
    /// # Errors
    /// [`CommitError`] says why not.
    pub async fn ready(&self) -> Result<(), CommitError> {
        self.inner.engine.health().await
    }

    /// Copies everything as of one instant after this call; everything else continues meanwhile.
    ///
    /// # Errors
    /// [`BackupError`].
    pub async fn backup(&self, request: BackupRequest) -> Result<BackupStream, BackupError> {
        self.inner.engine.backup(request).await
    }

    /// Stops the workers at their next batch boundary, then closes the engine. Guest calls that do not end by themselves are
    /// interrupted after [`STOP_CALLS_MS_MAX`].
    pub async fn stop(&self) {
        if !self.inner.interrupt.is_given() {
            let patience = Duration::from_millis(STOP_CALLS_MS_MAX);
            self.wind_down(patience).await;
        }
        self.inner.tasks.stop().await;
        self.inner.engine.close().await;
    }

    /// The first half of [`stop`](Self::stop): no worker takes another batch, and on return no guest call is running or will start.
    /// Calls have `patience` to end by themselves. The engine continues, so that requests are answered.
    pub async fn wind_down(&self, patience: Duration) {
        let Inner {
            supervisor,
            changes,
            interrupt,
            ..
        } = &*self.inner;
        let rested = async {
            supervisor.stop_all(patience).await;
            // A change may be loading a component; changes queued behind it are refused by the engine or were too late.
            drop(changes.lock().await);
        };
        let too_late = async {
            tokio::time::sleep(patience).await;
            interrupt.all();
            // Only the disk can delay us now.
            tokio::time::sleep(WIND_DOWN_SLACK).await;
        };
        tokio::select! {
            () = rested => {}
            () = too_late => {}
        }
        interrupt.all();
    }
}

/// A catalogue entry, serialised.
pub(crate) fn entry<T: Serialize>(kind: EntryKind, key: String, value: Option<&T>) -> EntryWrite {
    // Our own types, whose maps have string keys: they always serialise.
    let value = value.map(|value| serde_json::to_vec(value).unwrap_or_default().into());
    EntryWrite { kind, key, value }
}
