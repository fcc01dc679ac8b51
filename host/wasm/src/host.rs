//! The module host as a whole: admits uploads, compiles them once, loads them for processors, partitioners and error handlers.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use millrace_broker::handler::{
    AdmitError, BatchHandler, Compiling, FailureHandler, GuestLine, HttpHandler, Interface,
    LiveConfig, LoadRequest, ModuleFacts, ModuleHost, PartitionHandler, Uploader,
};
use millrace_model::processor::Limits;
use millrace_model::{Clock, Digest, GuestLimits, ProcessorName, RoutePath};
use parking_lot::Mutex;
use wasmtime::component::Linker;

use crate::admission::{self, Outline};
use crate::call::GuestCall;
use crate::compile::{CODE_BYTES_MAX, CompileChild, Compiler, Job, QUICK_CPU_MS_MAX};
use crate::compiled::{CodeCache, TrustedCode};
use crate::engine;
use crate::epoch::Ticker;
use crate::granted;
use crate::guest_metrics::AllMetrics;
use crate::interfaces::{self, error_handler, http_handler, messaging, partitioner, processor};
use crate::logs::{GuestLogs, HostLog, LogSink, Owner};
use crate::metadata;
use crate::module::Module;
use crate::outbound::{HttpOptions, Outbound};
use crate::pool::{GuestState, NotOpened, Pool, Purpose, Shared};
use crate::secrets::{NoSecrets, SecretStore};
use crate::slots::Slots;
use crate::threads::GuestThreads;
use crate::turns::{Asker, Turns};
use crate::under_way::{Made, Place, UnderWay};

/// Modules remembered as refused by the compiler's limits, so that the same bomb costs its time only once.
const BOMBS_REMEMBERED_MAX: usize = 1_000;

/// How long an upload waits for its turn to be tried with the largest limits; then it is told to come back.
const TRIAL_WAIT_MS_MAX: u64 = 60_000;

/// The configuration of a [`WasmHost`].
#[derive(Clone, Debug)]
pub struct WasmOptions {
    /// Where compiled code is stored; created if missing.
    pub cache_dir: PathBuf,
    /// Whether compiled code is kept across restarts; otherwise modules are compiled at every start.
    pub keeps_code: bool,
    /// The compiler program.
    pub compile_child: CompileChild,
    /// The limits of modules and of their compiles.
    pub limits: GuestLimits,
    /// CPU time after which a compile makes way for others.
    pub quick_compile: Duration,
    /// Whether a longer compile blocks all others: for hosts with little memory.
    pub one_compile: bool,
    /// Maximum bytes of compiled code, up to 256 MiB.
    pub code_bytes_max: u64,
    /// Instances of all modules together. Each reserves about 24 GiB of address space, and no memory until it is used.
    pub instances_max: u32,
    /// Memory of all instances together, each counted with its maximum. Another instance waits until there is room.
    pub memory_bytes_max: u64,
    /// Threads for guests with long computations.
    pub threads: usize,
    /// Whether guests' log lines go to the host's log as well.
    pub ships_lines: bool,
    /// Where secrets come from.
    pub secrets: Arc<dyn SecretStore>,
    /// How guests send HTTP requests.
    pub http: HttpOptions,
}

impl WasmOptions {
    /// The default settings: 512 instances, and as many threads as there are cores.
    #[must_use]
    pub fn new(cache_dir: PathBuf, compile_child: CompileChild) -> Self {
        Self {
            cache_dir,
            keeps_code: true,
            compile_child,
            limits: GuestLimits::default(),
            quick_compile: Duration::from_millis(QUICK_CPU_MS_MAX),
            one_compile: false,
            code_bytes_max: CODE_BYTES_MAX,
            instances_max: 512,
            memory_bytes_max: 64 << 30,
            threads: std::thread::available_parallelism().map_or(2, usize::from),
            ships_lines: false,
            secrets: Arc::new(NoSecrets),
            http: HttpOptions::default(),
        }
    }
}

/// Why a [`WasmHost`] cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The engine cannot be set up on this machine.
    #[error(
        "WebAssembly cannot be set up here: {0}. A limit on address space (`ulimit -v`) is one reason; lift it or allow \
             fewer instances"
    )]
    Engine(String),
    /// The directory of compiled code cannot be used.
    #[error("the code cache {directory} cannot be used: {error}")]
    Cache {
        /// The directory.
        directory: PathBuf,
        /// The error.
        error: std::io::Error,
    },
    /// The certificates that guests' requests should trust cannot be read.
    #[error(
        "the certificates for components' HTTP requests cannot be used: {0}. Point the setting http_roots_file at a PEM file"
    )]
    Certificates(String),
    /// Threads could not be started.
    #[error("cannot start threads for guests: {0}")]
    Threads(std::io::Error),
}

/// Runs modules; the one implementation of [`ModuleHost`] for components.
pub struct WasmHost {
    shared: Arc<Shared>,
    linker: Arc<Linker<GuestState>>,
    compiler: Compiler,
    cache: Arc<CodeCache>,
    logs: GuestLogs,
    metrics: AllMetrics,
    host_log: Option<Arc<HostLog>>,
    /// For trials with the largest limits: memory for one of them at a time.
    trials: Arc<Turns>,
    loaded: Mutex<HashMap<Digest, Weak<Module>>>,
    under_way: UnderWay,
    bombs: Mutex<HashMap<Digest, String>>,
}

impl WasmHost {
    /// Sets everything up, with nothing loaded yet. `clock` must advance by itself: time limits are measured with it.
    pub fn new(options: WasmOptions, clock: Arc<dyn Clock>) -> Result<Arc<Self>, StartError> {
        let engine = engine::runner(
            options.instances_max,
            options.memory_bytes_max,
            &options.limits,
        );
        let engine = engine.map_err(engine_error)?;
        let mut linker = Linker::new(&engine);
        interfaces::link(&mut linker).map_err(engine_error)?;
        let compiler = Compiler::new(&options, Arc::clone(&clock));
        let directory = options.cache_dir.clone();
        let cache = CodeCache::open(options.cache_dir, options.keeps_code, &engine)
            .map_err(|error| StartError::Cache { directory, error })?;
        let outbound = Outbound::new(options.http, Arc::clone(&clock));
        let shared = Shared {
            outbound: outbound.map(Arc::new).map_err(StartError::Certificates)?,
            ticker: Ticker::start(engine.clone()).map_err(StartError::Threads)?,
            threads: GuestThreads::start(options.threads).map_err(StartError::Threads)?,
            slots: Slots::new(options.instances_max, options.memory_bytes_max),
            instances_made: AtomicU64::new(0),
            engine,
            limits: options.limits,
            secrets: options.secrets,
            clock,
        };
        Ok(Arc::new(Self {
            shared: Arc::new(shared),
            linker: Arc::new(linker),
            compiler,
            trials: Turns::new(),
            cache: Arc::new(cache),
            logs: GuestLogs::default(),
            metrics: AllMetrics::default(),
            host_log: options.ships_lines.then(Arc::default),
            loaded: Mutex::default(),
            under_way: UnderWay::default(),
            bombs: Mutex::default(),
        }))
    }

    /// Number of compiler processes this host has started.
    #[must_use]
    pub fn compiles(&self) -> u64 {
        self.compiler.children_started()
    }

    /// Number of instances this host has created.
    #[must_use]
    pub fn instances_made(&self) -> u64 {
        self.shared.instances_made.load(Ordering::Relaxed)
    }

    /// The module with a digest: already loaded, or from the cache, or compiled from `bytes`.
    async fn module(
        &self,
        digest: Digest,
        bytes: &Bytes,
        job: &mut Job,
    ) -> Result<Arc<Module>, AdmitError> {
        if let Some(module) = self.loaded(&digest) {
            return Ok(module);
        }
        let place = self.under_way.join(digest, self.shared.clock.wall());
        let mut made = place.made().await;
        if let Some(made) = &*made {
            job.compiled = made.compiled;
            return Ok(Arc::clone(&made.module));
        }
        let code = match self.cached(digest).await? {
            Some(code) => code,
            None => {
                let compiled = self.compile(digest, bytes, job, &place).await;
                compiled.inspect_err(|_| place.failed())?
            }
        };
        let module = self.link(digest, code).await?;
        *made = Some(Made {
            module: Arc::clone(&module),
            compiled: job.compiled,
        });
        Ok(module)
    }

    fn loaded(&self, digest: &Digest) -> Option<Arc<Module>> {
        self.loaded.lock().get(digest).and_then(Weak::upgrade)
    }

    async fn cached(&self, digest: Digest) -> Result<Option<TrustedCode>, AdmitError> {
        let cache = Arc::clone(&self.cache);
        self.aside(move || cache.read(&digest)).await
    }

    async fn compile(
        &self,
        digest: Digest,
        bytes: &Bytes,
        job: &mut Job,
        place: &Place<'_>,
    ) -> Result<TrustedCode, AdmitError> {
        let limits = self.shared.limits;
        self.examine(bytes, Some(digest), move |bytes| {
            admission::examine(bytes, &limits)
        })
        .await?;
        if let Some(reason) = self.bombs.lock().get(&digest) {
            return Err(AdmitError::CompileLimit(reason.clone()));
        }
        let turn = self.compiler.turn(job).await?;
        place.begins(self.shared.clock.wall());
        let code = self.compiler.compile(job, turn, bytes).await;
        let code = code.inspect_err(|error| self.remember_bomb(digest, error))?;
        let cache = Arc::clone(&self.cache);
        let kept = self.aside(move || cache.keep(&digest, code)).await?;
        kept.map_err(|error| match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => AdmitError::DiskFull,
            _ => AdmitError::Host(format!("cannot write the code cache: {error}")),
        })
    }

    /// Examines the bytes; `expected` is their required digest.
    async fn examine(
        &self,
        bytes: &Bytes,
        expected: Option<Digest>,
        examine: impl FnOnce(&[u8]) -> Result<Outline, AdmitError> + Send + 'static,
    ) -> Result<(Outline, Digest), AdmitError> {
        let bytes = bytes.clone();
        let (outline, digest) = self
            .aside(move || Ok((examine(&bytes)?, admission::digest(&bytes))))
            .await
            .flatten()?;
        match expected {
            Some(expected) if expected != digest => Err(AdmitError::Host(format!(
                "the stored bytes of module {} are damaged; upload it again",
                expected.short()
            ))),
            _ => Ok((outline, digest)),
        }
    }

    fn remember_bomb(&self, digest: Digest, error: &AdmitError) {
        let mut bombs = self.bombs.lock();
        if let AdmitError::CompileLimit(reason) = error
            && bombs.len() < BOMBS_REMEMBERED_MAX
        {
            bombs.insert(digest, reason.clone());
        }
    }

    async fn link(&self, digest: Digest, code: TrustedCode) -> Result<Arc<Module>, AdmitError> {
        let linker = Arc::clone(&self.linker);
        let module = self
            .aside(move || Module::link(&linker, &code))
            .await
            .flatten()?;
        let mut loaded = self.loaded.lock();
        loaded.retain(|_, module| module.strong_count() > 0);
        loaded.insert(digest, Arc::downgrade(&module));
        Ok(module)
    }

    /// Work of milliseconds, done where it does not delay messages.
    async fn aside<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, AdmitError> {
        // Not on the threads for guests: a guest that computes without end would hold up the revision that should replace it.
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|error| AdmitError::Host(error.to_string()))
    }

    async fn load<C: GuestCall>(
        &self,
        owner: Owner,
        request: LoadRequest,
    ) -> Result<Arc<Pool>, AdmitError> {
        let module = self.module_of(&request).await?;
        self.open::<C>(owner, module, request).await
    }

    async fn module_of(&self, request: &LoadRequest) -> Result<Arc<Module>, AdmitError> {
        let mut job = Job::new(Asker::Host);
        self.module(request.digest, &request.bytes, &mut job).await
    }

    async fn open<C: GuestCall>(
        &self,
        owner: Owner,
        module: Arc<Module>,
        request: LoadRequest,
    ) -> Result<Arc<Pool>, AdmitError> {
        granted::check(
            module.imports(),
            &module.interfaces(),
            &request.grants,
            &owner,
        )?;
        let purpose = self.purpose(&owner, request.revision, request.limits);
        let purpose = Purpose {
            grants: Arc::new(request.grants),
            config: request.config,
            access: request.access,
            ..purpose
        };
        let pool = Pool::open::<C>(Arc::clone(&self.shared), module, purpose);
        Ok(pool.await?)
    }

    /// With no grants beyond the default.
    fn purpose(&self, owner: &Owner, revision: u32, limits: Limits) -> Purpose {
        let sink = LogSink {
            log: self.logs.of(owner),
            clock: Arc::clone(&self.shared.clock),
            revision,
            lines_per_second: limits.log_lines_per_second,
            host_log: self.host_log.clone(),
            notes: Arc::default(),
            hidden: Arc::default(),
        };
        Purpose {
            limits,
            grants: Arc::default(),
            config: LiveConfig::default(),
            access: None,
            sink,
            metrics: self.metrics.of(owner),
        }
    }

    /// Creates an instance for each interface, to check that it starts and has the right functions: under the default limits, otherwise
    /// with the largest. The processor's specification decides which limits it gets.
    async fn try_out(&self, module: &Arc<Module>, uploader: &Uploader) -> Result<(), AdmitError> {
        let host = self.shared.limits;
        let usual = Limits::default();
        let usual = Limits {
            memory_bytes_max: usual.memory_bytes_max.min(host.guest_memory_bytes_max),
            call_ms_max: usual.call_ms_max.min(host.guest_start_ms_max),
            ..usual
        };
        match self.start_each(module, uploader, &usual).await {
            Err(NotOpened::AtLimit(_)) => {}
            ended => return Ok(ended?),
        }
        let asker = Asker::Uploader(uploader.clone());
        let wait = Duration::from_millis(TRIAL_WAIT_MS_MAX);
        let turn = tokio::time::timeout(wait, self.trials.take(&asker)).await;
        let _turn = turn.unwrap_or_else(|_| {
            let waiting = self.trials.waiting();
            Err(AdmitError::Busy {
                reason: format!(
                    "it was not its turn to be tried in time; {waiting} more are waiting"
                ),
                retry_after_s: 10,
            })
        })?;
        let most = Limits {
            memory_bytes_max: host.guest_memory_bytes_max,
            call_ms_max: host.guest_start_ms_max,
            ..usual
        };
        Ok(self.start_each(module, uploader, &most).await?)
    }

    async fn start_each(
        &self,
        module: &Arc<Module>,
        uploader: &Uploader,
        limits: &Limits,
    ) -> Result<(), NotOpened> {
        for interface in module.interfaces() {
            let (module, owner) = (Arc::clone(module), Owner::Admission(uploader.to_string()));
            let (shared, purpose) = (
                Arc::clone(&self.shared),
                self.purpose(&owner, 0, limits.clone()),
            );
            match interface {
                Interface::MessageProcessor if module.handles_messages() => {
                    Pool::open::<messaging::Handle>(shared, module, purpose).await
                }
                Interface::MessageProcessor => {
                    Pool::open::<processor::Process>(shared, module, purpose).await
                }
                Interface::Partitioner => {
                    Pool::open::<partitioner::Assign>(shared, module, purpose).await
                }
                Interface::ErrorHandler => {
                    Pool::open::<error_handler::Handle>(shared, module, purpose).await
                }
                Interface::HttpHandler => {
                    Pool::open::<http_handler::Serve>(shared, module, purpose).await
                }
            }?;
        }
        Ok(())
    }
}

#[async_trait]
impl ModuleHost for WasmHost {
    async fn admit(&self, bytes: Bytes, uploader: Uploader) -> Result<ModuleFacts, AdmitError> {
        let limits = self.shared.limits;
        let examine = move |bytes: &[u8]| admission::examine_upload(bytes, &limits);
        let (outline, digest) = self.examine(&bytes, None, examine).await?;
        let mut job = Job::new(Asker::Uploader(uploader.clone()));
        let module = self.module(digest, &bytes, &mut job).await?;
        let tried_out = self.try_out(&module, &uploader).await;
        tried_out.inspect_err(|_| self.forget(digest))?;
        let component = bytes.clone();
        let metadata = self.aside(move || metadata::metadata(&component)).await?;
        Ok(ModuleFacts {
            digest,
            byte_count: bytes.len() as u64,
            exports: outline.exports,
            imports: outline.imports,
            compile_ms: job.compiled.as_millis() as u64,
            waited_ms: job.waited.as_millis() as u64,
            metadata,
        })
    }

    fn limits(&self) -> GuestLimits {
        self.shared.limits
    }

    fn compiling(&self, digest: Digest) -> Option<Compiling> {
        self.under_way.progress(&digest)
    }

    async fn processor(&self, request: LoadRequest) -> Result<Arc<dyn BatchHandler>, AdmitError> {
        let owner = Owner::Processor(request.owner.clone());
        let module = self.module_of(&request).await?;
        if module.handles_messages() {
            let pool = self.open::<messaging::Handle>(owner, module, request);
            return Ok(Arc::new(messaging::Handler(pool.await?)));
        }
        let pool = self.open::<processor::Process>(owner, module, request);
        Ok(Arc::new(processor::Processor(pool.await?)))
    }

    async fn partitioner(
        &self,
        request: LoadRequest,
    ) -> Result<Arc<dyn PartitionHandler>, AdmitError> {
        let owner = Owner::Topic(request.owner.clone());
        let pool = self.load::<partitioner::Assign>(owner, request).await?;
        Ok(Arc::new(partitioner::Partitioner(pool)))
    }

    async fn error_handler(
        &self,
        request: LoadRequest,
    ) -> Result<Arc<dyn FailureHandler>, AdmitError> {
        let owner = Owner::Processor(request.owner.clone());
        let pool = self.load::<error_handler::Handle>(owner, request).await?;
        Ok(Arc::new(error_handler::ErrorHandler(pool)))
    }

    async fn http_handler(&self, request: LoadRequest) -> Result<Arc<dyn HttpHandler>, AdmitError> {
        let owner = Owner::Route(request.owner.clone());
        let pool = self.load::<http_handler::Serve>(owner, request).await?;
        Ok(Arc::new(http_handler::Handler(pool)))
    }

    fn route_logs(&self, route: &RoutePath) -> Vec<GuestLine> {
        self.logs.lines(&Owner::Route(route.to_string()))
    }

    fn forget_route_logs(&self, route: &RoutePath) {
        let owner = Owner::Route(route.to_string());
        self.logs.forget(&owner);
        self.metrics.forget(&owner);
    }

    fn forget(&self, digest: Digest) {
        self.cache.forget(&digest);
        self.loaded.lock().remove(&digest);
    }

    fn logs(&self, processor: &ProcessorName) -> Vec<GuestLine> {
        self.logs.lines(&Owner::Processor(processor.to_string()))
    }

    fn lines_dropped(&self, processor: &ProcessorName) -> u64 {
        self.logs.dropped(&Owner::Processor(processor.to_string()))
    }

    fn forget_logs(&self, processor: &ProcessorName) {
        let owner = Owner::Processor(processor.to_string());
        self.logs.forget(&owner);
        self.metrics.forget(&owner);
    }
}

fn engine_error(error: wasmtime::Error) -> StartError {
    StartError::Engine(format!("{error:#}"))
}
