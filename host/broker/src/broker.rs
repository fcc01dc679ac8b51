//! The broker builds the rooms, starts them and stops them. The verbs are in the rooms.

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use millrace_engine::{
    BackupError, BackupRequest, BackupStream, CommitError, Engine, EntryWrite, HostId, HostInfo,
};
use millrace_model::bounds::{
    HOST_AT_HAND_BYTES_MAX, HOST_ATTEMPTS_BYTES_MAX, HOST_STATE_ATTEMPTS_MAX,
    PRODUCE_BYTES_IN_FLIGHT_MAX, STOP_CALLS_MS_MAX,
};
use millrace_model::{Clock, ProcessorName, Topic, TopicId, TopicName};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

use crate::access::handle::Access;
use crate::access::proving;
use crate::audit::log::{AuditLog, Outlet};
use crate::audit::writing;
use crate::catalogue::handle::{Catalogue, Dependents};
use crate::catalogue::policy::ModulePolicy;
use crate::dead_letters::handle::DeadLetters;
use crate::dispatch::at_hand::AtHand;
use crate::dispatch::gate::Alarm;
use crate::dispatch::remembered::Remembered;
use crate::dispatch::supervisor::Supervisor;
use crate::dispatch::worker::Context;
use crate::ground::caller::Caller;
use crate::ground::interrupting::{Interrupt, Interruptible};
use crate::ground::partitioner::Partitioners;
use crate::ground::tasks::Tasks;
use crate::groups::handle::Groups;
use crate::handler::ModuleHost;
use crate::hosts::base::Base;
use crate::hosts::living::{Hosts, MOVES_AFTER};
use crate::messages::delays::delayed::Delays;
use crate::messages::delays::delivering;
use crate::messages::handle::Messages;
use crate::messages::outbox;
use crate::processors::error::ProcessorError;
use crate::processors::going_back::heed_alarms;
use crate::processors::handle::{Processors, SendsAgain};
use crate::processors::heard::Heard;
use crate::routes::handle::Routes;
use crate::routes::loading;
use crate::schedules::firing;
use crate::schedules::handle::Schedules;
use crate::session::{Rooms, Session};

/// Alarms queued for automatic rollback. When the queue is full, the alarm is dropped; the next failed probe raises it again.
const ALARMS_MAX: usize = 64;
/// How long a request waits until this host knows what others have changed. Then it gets what this host knows.
const HEAR_WAIT: Duration = Duration::from_secs(2);
const HEAR_LOOK_INTERVAL: Duration = Duration::from_millis(2);

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

/// The handle of the broker; cheap to clone. [`session`](Self::session) leads to the verbs, which
/// are in the rooms.
#[derive(Clone)]
pub struct Broker {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Arc<dyn Engine>,
    interrupt: Interrupt,
    hosts: Arc<Hosts>,
    rooms: Rooms,
    /// Notified by the catalogue, which has only a weak reference to it; the broker keeps it alive.
    _upstairs: Arc<dyn Dependents>,
    /// Sends dead letters again for processors, which have only a weak reference to it.
    _sends_again: Arc<dyn SendsAgain>,
    tasks: Tasks,
    /// Where the audit log's records come out.
    audited: Outlet,
}

/// Passes changes of the catalogue on to the rooms above it.
struct Upstairs {
    messages: Messages,
    groups: Groups,
    processors: Processors,
    dead_letters: DeadLetters,
}

#[async_trait]
impl Dependents for Upstairs {
    async fn catch_up(&self) {
        self.processors.catch_up().await;
    }

    async fn grown(&self, topic: &Topic) {
        self.processors.enlarge(topic).await;
        // With more partitions, other hosts are preferred for some of the existing ones.
        self.processors.supervisor().nudge(&topic.spec.name);
        self.messages.delays().look_who_delivers();
    }

    async fn way_back_is_gone(&self, processor: &ProcessorName) {
        self.processors.prepare_anew(processor).await;
    }

    fn trimmed(&self, topic: &TopicName) {
        // Otherwise a worker would keep waiting for parked messages that were removed.
        self.processors.supervisor().nudge(topic);
    }

    fn deleted(&self, topic: TopicId) {
        self.groups.forget_topic(topic);
        self.messages.forget_topic(topic);
    }

    fn entries_about(&self, topic: TopicId) -> Vec<EntryWrite> {
        self.dead_letters.forgotten_with(topic)
    }
}

impl Broker {
    /// Starts: loads the catalogue, then the workers of every processor. A processor that cannot be
    /// loaded is stopped and reports why; the others run.
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
    /// The same as of [`Broker::start`].
    pub async fn start_within(
        clock: Arc<dyn Clock>,
        engine: Arc<dyn Engine>,
        modules: Arc<dyn ModuleHost>,
        limits: BrokerLimits,
    ) -> Result<Self, ProcessorError> {
        let policy = ModulePolicy::default();
        Self::start_under(clock, engine, modules, limits, policy).await
    }

    /// Like [`Broker::start_within`], with the host's rules for modules.
    ///
    /// # Errors
    /// The same as of [`Broker::start`].
    pub async fn start_under(
        clock: Arc<dyn Clock>,
        engine: Arc<dyn Engine>,
        modules: Arc<dyn ModuleHost>,
        limits: BrokerLimits,
        policy: ModulePolicy,
    ) -> Result<Self, ProcessorError> {
        let (alarms, heard) = mpsc::channel(ALARMS_MAX);
        let broker = Self::build(clock, engine, modules, limits, policy, alarms).await?;
        let Rooms {
            groups,
            processors,
            dead_letters,
            schedules,
            routes,
            ..
        } = &broker.inner.rooms;
        schedules.read_schedules()?;
        groups.recover_consumers().await?;
        broker.inner.rooms.catalogue.log_distrusted();
        processors.start_processors().await?;
        routes.start().await;
        dead_letters.redrive_what_is_due();
        broker.start_tasks();
        tokio::spawn(heed_alarms(processors.downgrade(), heard));
        Ok(broker)
    }

    /// Builds the rooms, from the lowest up: each gets those below it that it uses.
    async fn build(
        clock: Arc<dyn Clock>,
        engine: Arc<dyn Engine>,
        modules: Arc<dyn ModuleHost>,
        limits: BrokerLimits,
        policy: ModulePolicy,
        alarms: mpsc::Sender<Alarm>,
    ) -> Result<Self, ProcessorError> {
        let interrupt = Interrupt::default();
        let modules: Arc<dyn ModuleHost> = Interruptible::new(modules, interrupt.clone());
        let hosts = Hosts::new(Arc::clone(&engine), Arc::clone(&clock), limits.moves_after);
        let base = Base {
            clock: Arc::clone(&clock),
            engine: Arc::clone(&engine),
            modules,
            partitioners: Arc::new(Partitioners::default()),
            hosts: Arc::clone(&hosts),
        };
        let catalogue = Catalogue::new(&base, policy);
        let delays = Delays::new(Arc::clone(&clock), Arc::clone(&engine), &hosts).await?;
        let in_flight_bytes = limits.in_flight_bytes.min(PRODUCE_BYTES_IN_FLIGHT_MAX);
        let messages = Messages::new(
            &base,
            catalogue.clone(),
            Arc::clone(&delays),
            in_flight_bytes,
        );
        let groups = Groups::new(&base, catalogue.clone(), messages.clone());
        let supervisor = Supervisor::new(Context {
            clock,
            engine: Arc::clone(&engine),
            hosts: Arc::clone(&hosts),
            delays,
            alarms,
            remembered: Remembered::new(limits.remembered_bytes),
            attempts: Arc::new(Semaphore::new(limits.state_attempts.max(1))),
            at_hand: AtHand::new(limits.at_hand_bytes),
        });
        let processors = Processors::new(&base, supervisor, catalogue.clone(), messages.clone());
        let dead_letters = DeadLetters::new(
            &base,
            catalogue.clone(),
            messages.clone(),
            processors.clone(),
        );
        let schedules = Schedules::new(&base, catalogue.clone(), messages.clone());
        let routes = Routes::new(
            &base,
            catalogue.clone(),
            messages.clone(),
            processors.clone(),
        );
        let access = Access::new(&base, catalogue.clone());
        let (audit, audited) = AuditLog::new(&base, catalogue.clone(), messages.clone());
        let upstairs: Arc<dyn Dependents> = Arc::new(Upstairs {
            messages: messages.clone(),
            groups: groups.clone(),
            processors: processors.clone(),
            dead_letters: dead_letters.clone(),
        });
        catalogue.tell_of_changes(Arc::downgrade(&upstairs));
        let sends_again: Arc<dyn SendsAgain> = Arc::new(dead_letters.clone());
        processors.send_again_by(Arc::downgrade(&sends_again));
        Ok(Self {
            inner: Arc::new(Inner {
                engine,
                interrupt,
                hosts,
                audited,
                rooms: Rooms {
                    access,
                    audit,
                    catalogue,
                    messages,
                    groups,
                    processors,
                    dead_letters,
                    schedules,
                    routes,
                },
                _upstairs: upstairs,
                _sends_again: sends_again,
                tasks: Tasks::default(),
            }),
        })
    }

    /// A session for this caller: it has the verbs.
    #[must_use]
    pub fn session(&self, caller: Caller) -> Session {
        let broker = Arc::clone(&self.inner);
        Session::new(&self.inner.rooms, caller, broker)
    }

    fn start_tasks(&self) {
        let Inner { tasks, engine, .. } = &*self.inner;
        let Rooms {
            access,
            audit,
            messages,
            processors,
            schedules,
            routes,
            ..
        } = &self.inner.rooms;
        let (broker, changed) = (Arc::downgrade(&self.inner), engine.watch_catalogue());
        tasks.start("catalogue", move |stop| {
            follow_catalogue(Weak::clone(&broker), changed.clone(), stop)
        });
        let (broker, heard) = (Arc::downgrade(&self.inner), processors.heard());
        tasks.start("heard", move |stop| {
            start_what_is_heard(Weak::clone(&broker), Arc::clone(&heard), stop)
        });
        let (broker, hosts) = (Arc::downgrade(&self.inner), engine.hosts());
        let moved_after = self.inner.hosts.moved_after();
        tasks.start("hosts", move |stop| {
            follow_hosts(Weak::clone(&broker), moved_after, hosts.clone(), stop)
        });
        let delays = Arc::clone(messages.delays());
        tasks.start("delays", move |stop| {
            delivering::run(Arc::clone(&delays), stop)
        });
        if engine.has_outbox() {
            let messages = messages.downgrade();
            tasks.start("outbox", move |stop| {
                outbox::run(Weak::clone(&messages), stop)
            });
        }
        let (known, changed) = (schedules.downgrade(), schedules.changed());
        tasks.start("schedules", move |stop| {
            firing::run(Weak::clone(&known), Arc::clone(&changed), stop)
        });
        let access = access.downgrade();
        tasks.start("access", move |stop| {
            proving::run(Weak::clone(&access), stop)
        });
        let (audit, outlet) = (audit.downgrade(), Arc::clone(&self.inner.audited));
        tasks.start("audit", move |stop| {
            writing::run(Weak::clone(&audit), Arc::clone(&outlet), stop)
        });
        let (known, news) = (routes.downgrade(), routes.news());
        tasks.start("routes", move |stop| {
            loading::run(Weak::clone(&known), Arc::clone(&news), stop)
        });
    }

    /// This host, and all that live on its store, by id.
    #[must_use]
    pub fn hosts(&self) -> (HostId, Arc<[HostInfo]>) {
        let engine = &self.inner.engine;
        (engine.host(), engine.hosts().borrow().clone())
    }

    /// Knows, when it returns, what other hosts have changed before: a client's next request may come to another host. If this host must
    /// load components for it, or the store does not answer, it goes on with what it knows.
    pub async fn hear(&self) {
        if self.ready().await.is_err() {
            return;
        }
        let hearing = async {
            let _ = self.inner.engine.hear().await;
            while !self.inner.rooms.catalogue.is_followed() {
                tokio::time::sleep(HEAR_LOOK_INTERVAL).await;
            }
        };
        let _ = tokio::time::timeout(HEAR_WAIT, hearing).await;
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
            rooms, interrupt, ..
        } = &*self.inner;
        let rested = async {
            rooms.processors.supervisor().stop_all(patience).await;
            // A change may be loading a component; those that begin now are refused by the engine or were too late.
            rooms.processors.changes_rest().await;
            // Another may be taking over what another host changed.
            drop(rooms.catalogue.change().await);
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

/// Follows changes by other hosts as they become visible, until told to stop or the broker is gone.
async fn follow_catalogue(
    broker: Weak<Inner>,
    mut changed: watch::Receiver<u64>,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        match broker.upgrade() {
            Some(inner) => {
                inner.rooms.processors.follow_once().await;
                inner.rooms.schedules.follow_schedules().await;
                inner.rooms.routes.follow().await;
                inner.rooms.catalogue.follow_topics().await;
            }
            None => return,
        }
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            // No engine, no changes.
            still = changed.changed() => if still.is_err() { return },
        }
    }
}

/// Starts processors as other hosts have stored them, until told to stop.
async fn start_what_is_heard(
    broker: Weak<Inner>,
    heard: Arc<Heard>,
    mut stop: watch::Receiver<bool>,
) {
    let mut under_way = JoinSet::new();
    loop {
        let next = match broker.upgrade() {
            Some(inner) => inner.rooms.processors.start_what_is_heard(&mut under_way),
            None => return,
        };
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            () = heard.more() => {}
            () = tokio::time::sleep(next) => {}
        }
    }
    // A stop waits for starts as for any change.
    under_way.join_all().await;
}

/// Notifies the workers when hosts join or leave, and again when work should move.
async fn follow_hosts(
    broker: Weak<Inner>,
    moved_after: Duration,
    mut hosts: watch::Receiver<Arc<[HostInfo]>>,
    mut stop: watch::Receiver<bool>,
) {
    let mut wait = None;
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            // Without an engine there are no hosts.
            changed = hosts.changed() => match changed {
                Ok(()) => wait = Some(moved_after),
                Err(_) => return,
            },
            () = tokio::time::sleep(wait.unwrap_or(Duration::MAX)), if wait.is_some() => wait = None,
        }
        match broker.upgrade() {
            Some(inner) => {
                inner.hosts.notice();
                inner.rooms.processors.supervisor().nudge_all();
                inner.rooms.dead_letters.redrive_what_was_left();
            }
            None => return,
        }
    }
}
