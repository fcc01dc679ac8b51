//! Warm instances of one module for one owner: taken for a call, returned if it succeeded, discarded otherwise.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use millrace_broker::handler::{AdmitError, CallError, CallUse, LiveConfig, RouteAccess};
use millrace_broker::state::StateAttempt;
use millrace_model::bounds::BATCH_MESSAGES_MAX;
use millrace_model::processor::{Config, Grants, Limits};
use millrace_model::{Clock, ColumnBatch, GuestLimits};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use wasmtime::component::{ComponentExportIndex, Func, ResourceTable};
use wasmtime::{Engine, Store, UpdateDeadline};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtxView, WasiHttpView};

use crate::call::{self, GuestCall, Returned, explain};
use crate::epoch::Ticker;
use crate::guest_metrics::GuestMetrics;
use crate::interfaces::http::HttpState;
use crate::interfaces::messaging::Messaging;
use crate::interfaces::wasi;
use crate::limits::{Allowed, InstanceGauges, InstanceLimits};
use crate::logs::{LogSink, Owner, without_places};
use crate::module::Module;
use crate::notes::{Noted, Notes};
use crate::outbound::{Access, Outbound};
use crate::output::LineStream;
use crate::secrets::SecretStore;
use crate::slots::{Slot, Slots};
use crate::threads::{GuestThreads, Lane};

/// Concurrent instances of one loaded module; further calls wait for one. Small compared with the host's total, so that no processor
/// can take what others need.
const INSTANCES_MAX: usize = 16;

/// Calls per instance before a fresh one replaces it, which limits the effect of a guest's leaks.
const INSTANCE_CALLS_MAX: u32 = 10_000;

/// An instance is replaced after this long.
const INSTANCE_AGE_MAX: Duration = Duration::from_secs(600);

/// Handles of the host's resources that a guest may hold: streams, pollables.
const HANDLES_MAX: usize = 1_000;

/// Size of an answer's columns besides its bytes: the numbers of an output, of a message.
const OUTPUT_COLUMNS_BYTES: u64 = 64;

/// What a module is loaded for, and with what.
pub(crate) struct Purpose {
    pub(crate) limits: Limits,
    pub(crate) grants: Arc<Grants>,
    pub(crate) config: LiveConfig,
    pub(crate) access: Option<Arc<dyn RouteAccess>>,
    pub(crate) sink: LogSink,
    pub(crate) metrics: Arc<GuestMetrics>,
}

/// Shared by all pools.
pub(crate) struct Shared {
    pub(crate) engine: Engine,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) ticker: Ticker,
    pub(crate) threads: GuestThreads,
    pub(crate) slots: Slots,
    pub(crate) outbound: Arc<Outbound>,
    pub(crate) instances_made: AtomicU64,
    pub(crate) limits: GuestLimits,
    pub(crate) secrets: Arc<dyn SecretStore>,
}

/// The instances of one loaded module.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    module: Arc<Module>,
    function: ComponentExportIndex,
    limits: Limits,
    grants: Arc<Grants>,
    config: LiveConfig,
    /// What the component of a route may do besides answering.
    route: Option<Arc<dyn RouteAccess>>,
    /// The servers that its guests may reach, if they send requests at all.
    access: Option<Arc<Access>>,
    sink: LogSink,
    metrics: Arc<GuestMetrics>,
    gauges: InstanceGauges,
    /// At most [`INSTANCES_MAX`], like running calls.
    idle: Mutex<Vec<Guest>>,
    turns: Semaphore,
    lane: Lane,
}

/// Why there is no pool.
pub(crate) enum NotOpened {
    /// Its first instance needs more than its limits allow.
    AtLimit(AdmitError),
    Refused(AdmitError),
}

impl From<AdmitError> for NotOpened {
    fn from(error: AdmitError) -> Self {
        Self::Refused(error)
    }
}

impl From<NotOpened> for AdmitError {
    fn from(not_opened: NotOpened) -> Self {
        match not_opened {
            NotOpened::AtLimit(error) | NotOpened::Refused(error) => error,
        }
    }
}

/// What a call needs before it begins. Waiting for it is not the guest's time.
enum Place {
    Warm(Guest),
    Free(Slot),
}

/// One instance.
pub(crate) struct Guest {
    pub(crate) store: Store<GuestState>,
    pub(crate) function: Func,
    calls: u32,
    born: Duration,
    /// Last, so that the instance is gone when its place becomes free.
    _slot: Slot,
}

/// The host's data for one instance.
pub(crate) struct GuestState {
    pub(crate) instance_limits: InstanceLimits,
    pub(crate) call_limits: Limits,
    pub(crate) log: LogSink,
    pub(crate) grants: Arc<Grants>,
    /// The settings of this call.
    pub(crate) config: Arc<Config>,
    pub(crate) secret_store: Arc<dyn SecretStore>,
    pub(crate) metrics: Arc<GuestMetrics>,
    /// What the component of a route may do besides answering.
    pub(crate) access: Option<Arc<dyn RouteAccess>>,
    stdout: LineStream,
    stderr: LineStream,
    /// While a batch is processed.
    pub(crate) state: Option<Box<StateAttempt>>,
    /// Of a component of `wasi:messaging`.
    pub(crate) messaging: Messaging,
    wasi: WasiCtx,
    http: HttpState,
    table: ResourceTable,
    notes: Arc<Notes>,
}

impl GuestState {
    /// From here on, log lines are noted for this call.
    fn end_call(&mut self) {
        self.stdout.end_call();
        self.stderr.end_call();
        if self.log.host_log.is_some() {
            self.notes.set_batch(None);
        }
    }

    /// Drops everything that the guest has a handle of: it has ended and is not called again.
    pub(crate) fn drop_handles(&mut self) {
        self.table = ResourceTable::new();
    }

    /// The host's resources that the guest holds.
    pub(crate) fn table(&mut self) -> &mut ResourceTable {
        &mut self.table
    }

    /// The host's notes on the call.
    pub(crate) fn notes(&self) -> &Arc<Notes> {
        &self.notes
    }

    /// The guest's last output in this call: panics and exceptions are printed to standard error, by some languages to standard output.
    pub(crate) fn last_words(&self) -> String {
        match self.stderr.recent() {
            silent if silent.is_empty() => self.stdout.recent(),
            words => words,
        }
    }
}

impl WasiView for GuestState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

impl WasiHttpView for GuestState {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            ctx: &mut self.http.context,
            hooks: &mut self.http.hooks,
            table: &mut self.table,
        }
    }
}

impl Pool {
    /// A pool whose first instance was created under the limits of every later one.
    pub(crate) async fn open<C: GuestCall>(
        shared: Arc<Shared>,
        module: Arc<Module>,
        purpose: Purpose,
    ) -> Result<Arc<Self>, NotOpened> {
        let Purpose {
            limits,
            grants,
            config,
            access: route,
            sink,
            metrics,
        } = purpose;
        let access = || shared.outbound.access(&grants, sink.clone());
        let access = module.sends_http().then(access);
        let pool = Arc::new(Self {
            function: module.function(C::INTERFACE, C::FUNCTION)?,
            lane: shared.threads.lane(&sink.owner().lane()),
            gauges: InstanceGauges::of(sink.owner()),
            shared,
            module,
            limits,
            grants,
            config,
            route,
            access,
            sink,
            metrics,
            idle: Mutex::default(),
            turns: Semaphore::new(INSTANCES_MAX),
        });
        pool.shared.slots.register(&pool);
        pool.try_out::<C>().await?;
        Ok(pool)
    }

    async fn try_out<C: GuestCall>(self: &Arc<Self>) -> Result<(), NotOpened> {
        let guest = self.first().await.map_err(|error| match error {
            CallError::Host(reason) => AdmitError::Host(reason).into(),
            CallError::Memory(_) => NotOpened::AtLimit(AdmitError::Start(error.to_string())),
            CallError::Timeout(_) => NotOpened::AtLimit(AdmitError::Start(self.too_slow())),
            error => AdmitError::Start(error.to_string()).into(),
        })?;
        C::check(&guest).map_err(|error| {
            let function = C::FUNCTION;
            let text = without_places(&format!("{error:#}"));
            AdmitError::Invalid(format!(
                "its `{function}` does not have the type in wit/: {text}"
            ))
        })?;
        self.keep(guest);
        Ok(())
    }

    fn too_slow(&self) -> String {
        let ms = self.start_time_max().as_millis();
        let setting = match self.sink.owner() {
            Owner::Processor(_) | Owner::Topic(_) | Owner::Route(_)
                if ms == self.call_time_max().as_millis() =>
            {
                "limits.call_ms_max"
            }
            Owner::Admission(_) | Owner::Processor(_) | Owner::Topic(_) | Owner::Route(_) => {
                "the host's setting guest_start_ms_max"
            }
        };
        format!("it did not finish within {ms} ms ({setting} = {ms})")
    }

    async fn first(self: &Arc<Self>) -> Result<Guest, CallError> {
        let slot = self.shared.slots.take(self.limits.memory_bytes_max).await?;
        let notes = Arc::<Notes>::default();
        let made = Box::pin(Arc::clone(self).instantiate(slot, Arc::clone(&notes)));
        self.run(made, self.start_time_max(), notes)
            .await
            .0
            .flatten()
    }

    /// A slow start holds up deployments and the host's stop, however long calls may take.
    fn start_time_max(&self) -> Duration {
        let most = Duration::from_millis(self.shared.limits.guest_start_ms_max);
        self.call_time_max().min(most)
    }

    /// Makes one call on an instance, exclusively.
    pub(crate) async fn call<C: GuestCall>(
        self: &Arc<Self>,
        call: C,
    ) -> Result<C::Output, CallError> {
        self.measured(call, 1).await.0
    }

    /// Like [`Pool::call`]; also returns what it used, if a guest was called at all.
    pub(crate) async fn measured<C: GuestCall>(
        self: &Arc<Self>,
        call: C,
        messages: usize,
    ) -> (Result<C::Output, CallError>, Option<CallUse>) {
        // Almost always there is one, and taking it at once is cheaper than waiting for it. Whoever waits still gets the next one.
        let turn = match self.turns.try_acquire() {
            Ok(turn) => Ok(turn),
            Err(_) => self.turns.acquire().await,
        };
        let turn = turn.map_err(|error| CallError::Host(error.to_string()));
        let place = match &turn {
            Ok(_) => self.place().await,
            Err(error) => Err(error.clone()),
        };
        let place = match place {
            Ok(place) => place,
            Err(error) => return (Err(error), None),
        };
        let notes = place.notes();
        let work = Box::pin(Arc::clone(self).work(call, place, Arc::clone(&notes)));
        let (ended, time) = self
            .run(work, self.call_time_max(), Arc::clone(&notes))
            .await;
        match ended.flatten() {
            Ok((output, noted)) => (Ok(output), Some(noted.used(time, messages))),
            // Its instance was returned: new notes may belong to another call.
            Err(error @ CallError::Unavailable(_)) => (Err(error), None),
            Err(error) => (Err(error), Some(notes.take().used(time, messages))),
        }
    }

    async fn place(&self) -> Result<Place, CallError> {
        match self.take_idle() {
            Some(guest) => Ok(Place::Warm(guest)),
            None => {
                let memory = self.limits.memory_bytes_max;
                self.shared.slots.take(memory).await.map(Place::Free)
            }
        }
    }

    fn call_time_max(&self) -> Duration {
        Duration::from_millis(self.limits.call_ms_max.max(1))
    }

    async fn run<F>(
        &self,
        work: Pin<Box<F>>,
        time_max: Duration,
        notes: Arc<Notes>,
    ) -> (Result<F::Output, CallError>, Duration)
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let _ticking = self.shared.ticker.ticking();
        let clock = Arc::clone(&self.shared.clock);
        let threads = &self.shared.threads;
        call::run(work, time_max, notes, clock, threads, &self.lane).await
    }

    /// Only success returns the instance: any other end of this future drops it.
    async fn work<C: GuestCall>(
        self: Arc<Self>,
        call: C,
        place: Place,
        notes: Arc<Notes>,
    ) -> Result<(C::Output, Noted), CallError> {
        let mut guest = match place {
            Place::Warm(guest) => guest,
            // Boxed, because it is large and rare: otherwise every call would move it.
            Place::Free(slot) => Box::pin(Arc::clone(&self).instantiate(slot, notes)).await?,
        };
        guest.begin_call(call.batch(), &self.config);
        let made = call.make(&mut guest).await;
        guest.store.data_mut().end_call();
        match made {
            Ok(Returned::Answer(answer)) => {
                let noted = guest.store.data().notes.take();
                if C::REUSES {
                    self.give_back(guest);
                }
                Ok((answer, noted))
            }
            Ok(Returned::Unavailable(reason)) => {
                self.give_back(guest);
                Err(CallError::Unavailable(reason))
            }
            Ok(Returned::Bad(why)) => Err(CallError::BadAnswer(why)),
            Err(error) => Err(explain(&error, guest.store.data())),
        }
    }

    /// Whether its module imports `state`.
    pub(crate) fn uses_state(&self) -> bool {
        self.module.imports_state()
    }

    /// An instance that waits for a call.
    pub(crate) fn take_idle(&self) -> Option<Guest> {
        self.idle.lock().pop()
    }

    fn give_back(&self, guest: Guest) {
        let age = self.shared.clock.monotonic().saturating_sub(guest.born);
        let worn = guest.calls >= INSTANCE_CALLS_MAX
            || age >= INSTANCE_AGE_MAX
            || guest.store.data().instance_limits.is_nearly_full();
        if !worn {
            self.keep(guest);
        }
    }

    fn keep(&self, guest: Guest) {
        self.idle.lock().push(guest);
        if self.shared.slots.are_wanted() {
            drop(self.take_idle());
        }
    }

    async fn instantiate(
        self: Arc<Self>,
        slot: Slot,
        notes: Arc<Notes>,
    ) -> Result<Guest, CallError> {
        self.shared.instances_made.fetch_add(1, Ordering::Relaxed);
        let mut store = self.store(notes);
        let instance = match self.module.linked.instantiate_async(&mut store).await {
            Ok(instance) => instance,
            Err(error) => return Err(explain_start(&error, store.data())),
        };
        let function = instance.get_func(&mut store, self.function);
        Ok(Guest {
            function: function.ok_or_else(|| CallError::Host("the function is gone".into()))?,
            store,
            calls: 0,
            born: self.shared.clock.monotonic(),
            _slot: slot,
        })
    }

    /// The smaller of the processor's limit and the host's.
    fn allowed(&self) -> Allowed {
        let (own, host) = (self.limits.memory_bytes_max, self.shared.limits);
        let is_own = own < host.guest_memory_bytes_max;
        Allowed {
            memory_bytes_max: own.min(host.guest_memory_bytes_max),
            memory_setting: match is_own {
                true => "limits.memory_bytes_max",
                false => "the host's setting guest_memory_bytes_max",
            },
            table_elements_max: host.guest_table_elements_max,
        }
    }

    fn store(&self, notes: Arc<Notes>) -> Store<GuestState> {
        let sink = self.sink.noting(&notes);
        let stderr = LineStream::new(sink.clone(), "warn");
        let stdout = LineStream::new(sink.clone(), "info");
        let access = self.access.as_ref();
        let http = HttpState::new(access.map(|access| access.noting(sink.clone())));
        let mut table = ResourceTable::new();
        table.set_max_capacity(HANDLES_MAX);
        let state = GuestState {
            instance_limits: InstanceLimits::new(
                self.allowed(),
                self.gauges.clone(),
                Arc::clone(&notes),
            ),
            call_limits: self.limits.clone(),
            log: sink,
            grants: Arc::clone(&self.grants),
            config: self.config.now(),
            secret_store: Arc::clone(&self.shared.secrets),
            metrics: Arc::clone(&self.metrics),
            access: self.route.clone(),
            wasi: wasi::context(&self.shared.clock, stdout.clone(), stderr.clone()),
            stdout,
            stderr,
            state: None,
            messaging: Messaging::default(),
            http,
            table,
            notes,
        };
        let mut store = Store::new(&self.shared.engine, state);
        store.limiter(|state| &mut state.instance_limits);
        store.set_hostcall_fuel(lifted_bytes_max(&self.limits));
        store.set_max_component_handles(HANDLES_MAX);
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(|store| {
            store.data().notes.count_yield();
            Ok(UpdateDeadline::Yield(1))
        });
        store
    }
}

impl Place {
    fn notes(&self) -> Arc<Notes> {
        match self {
            Self::Warm(guest) => Arc::clone(&guest.store.data().notes),
            Self::Free(_) => Arc::default(),
        }
    }
}

impl Guest {
    fn begin_call(&mut self, batch: Option<&Arc<ColumnBatch>>, config: &LiveConfig) {
        self.calls += 1;
        self.store.set_epoch_deadline(1);
        let state = self.store.data_mut();
        state.notes.begin_call();
        if state.log.host_log.is_some() {
            state.notes.set_batch(batch.cloned());
        }
        state.config = config.now();
        state.instance_limits.begin_call();
        state.stdout.begin_call();
        state.stderr.begin_call();
        state.state = None;
    }
}

/// Maximum size of an answer that the host reads before it checks any of it: the bytes and the columns allowed.
fn lifted_bytes_max(limits: &Limits) -> usize {
    let columns =
        (u64::from(limits.answer_outputs_max) + BATCH_MESSAGES_MAX as u64) * OUTPUT_COLUMNS_BYTES;
    usize::try_from(limits.answer_bytes_max.saturating_add(columns)).unwrap_or(usize::MAX)
}

/// A start fails like a call, but an instance that cannot be created even without a trap is the module's fault as well.
fn explain_start(error: &wasmtime::Error, guest: &GuestState) -> CallError {
    match explain(error, guest) {
        CallError::BadAnswer(message) => CallError::Trap {
            message,
            backtrace: String::new(),
        },
        other => other,
    }
}
