//! One running host: engine, module host, broker and HTTP put together, and taken apart in the reverse order.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use millrace_broker::{Broker, BrokerLimits, ModuleHost, ProcessorError};
use millrace_engine::{CommitError, Engine, LocalEngine, LocalOptions, MemoryEngine, OpenError};
use millrace_model::{Clock, SystemClock};
use millrace_wasm::{CompileChild, WasmHost, WasmOptions};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, ConfigError, EngineKind, GuestLog, StorageSizes, encryption_keys};
use crate::files;
use crate::http::{self, App};
use crate::memory::MemoryPlan;
use crate::net::bounds::RESERVED_CONNECTIONS_MAX;
use crate::net::{Budgets, Doors, Listener, Seats};
use crate::telemetry;

/// How often metrics of what is gone are forgotten and the engine is asked whether it still commits.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(1);

/// The door for HTTP.
const HTTP_DOOR: &str = "http";
/// The address of a door that there is not.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// The hidden subcommand that compiles an upload, in a process of its own.
pub(crate) const COMPILE_COMMAND: &str = "compile-module";

/// A host that runs until it is stopped.
pub struct Host {
    doors: Doors,
    broker: Broker,
    stop_deadline: Duration,
    poisoned: CancellationToken,
    upkeep: JoinHandle<()>,
    /// Removed when it is dropped.
    _scratch: Option<TempDir>,
}

/// Why a host did not start. Nothing is left running.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The port is taken, or the address is not this machine's.
    #[error(
        "cannot listen on {listen}: {source}. Choose another with --listen, or port 0 for a free one"
    )]
    Listen {
        /// As configured.
        listen: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another process has it.
    #[error(
        "the data directory {0} is used by another process; stop that one, or choose another with --data-dir"
    )]
    DataDirInUse(PathBuf),
    /// SQLite takes no such path.
    #[error(transparent)]
    DataDirName(OpenError),
    /// The engine does not open.
    #[error("the engine does not open: {0}")]
    Engine(String),
    /// The engine opened and is poisoned by a disk error.
    #[error("{0}")]
    Poisoned(CommitError),
    /// The module host does not start.
    #[error("the module host does not start: {0}")]
    Modules(String),
    /// The broker does not start.
    #[error("the broker does not start: {0}")]
    Broker(#[from] ProcessorError),
}

impl Host {
    /// Opens the engine, starts every processor, and answers HTTP.
    ///
    /// # Errors
    /// [`StartError`] says what stood in the way.
    pub async fn start(mut config: Config) -> Result<Self, StartError> {
        config.check()?;
        bound_connections(&mut config);
        files::outlive_size_limits();
        if config.engine == EngineKind::Local {
            files::close_to_others(&config.data_dir);
        }
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let http = listen(&config, &clock).await?;
        let memory = config.memory.plan();
        memory.say();
        let engine = open_engine(&config, &memory, &clock).await?;
        let started = Self::start_on(config, &memory, http, clock, engine.clone()).await;
        if started.is_err() {
            engine.close().await;
        }
        started
    }

    async fn start_on(
        config: Config,
        memory: &MemoryPlan,
        http: Listener,
        clock: Arc<dyn Clock>,
        engine: Arc<dyn Engine>,
    ) -> Result<Self, StartError> {
        let metrics = telemetry::metrics();
        let (cache_dir, scratch) = code_cache(&config)?;
        let modules = open_modules(&config, memory, cache_dir, &clock)?;
        let limits = BrokerLimits {
            in_flight_bytes: memory.in_flight_bytes,
            remembered_bytes: memory.attempts_bytes,
            state_attempts: memory.state_attempts,
            at_hand_bytes: memory.at_hand_bytes,
            ..BrokerLimits::default()
        };
        let broker = Broker::start_within(clock.clone(), engine, modules, limits).await?;
        broker.ready().await.map_err(StartError::Poisoned)?;

        let poisoned = CancellationToken::new();
        let address = http.address();
        let budgets = Budgets::new(memory.bodies_bytes, memory.answers_bytes);
        let app = App::new(&config, budgets, &http, clock, broker.clone(), metrics);
        let mut doors = Doors::default();
        doors.open(HTTP_DOOR, http, http::door(app.clone()));
        let upkeep = tokio::spawn(upkeep(app.clone(), poisoned.clone()));
        app.log_start(address, &config.data_dir);
        Ok(Self {
            doors,
            broker,
            stop_deadline: config.stop_deadline,
            poisoned,
            upkeep,
            _scratch: scratch,
        })
    }

    /// Where its door for HTTP listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.doors.address(HTTP_DOOR).unwrap_or(NOWHERE)
    }

    /// Where it listens, as a client wants it.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Its broker, for those in the same process.
    #[must_use]
    pub fn broker(&self) -> &Broker {
        &self.broker
    }

    /// Waits until the engine is poisoned by a disk error: nothing more will be acknowledged, so the host had better stop.
    pub async fn poisoned(&self) {
        self.poisoned.cancelled().await;
    }

    /// How long a stop may take in all.
    #[must_use]
    pub fn stop_deadline(&self) -> Duration {
        self.stop_deadline
    }

    /// Accepts nothing more, lets requests and calls of guests come to their end within the deadline, and closes the engine. Calls have
    /// half of it and are interrupted then, so that requests that wait for one are still answered.
    pub async fn stop(self) {
        let deadline_ms = self.stop_deadline.as_millis() as u64;
        tracing::info!(
            deadline_ms,
            "the host is stopping: it takes nothing more, and waits for requests and calls that are under way"
        );
        let doors = self.doors.stop(self.stop_deadline);
        tokio::join!(doors, self.broker.wind_down(self.stop_deadline / 2));
        self.upkeep.abort();
        self.broker.stop().await;
        tracing::info!("host stopped");
    }
}

/// Connections get no file that the engine needs.
fn bound_connections(config: &mut Config) {
    let files = files::raise_limit();
    let wanted = config.connections_max;
    config.connections_max = files::connections(wanted, files);
    if config.connections_max < wanted {
        tracing::warn!(
            files,
            wanted,
            connections_max = config.connections_max,
            "the limit of open files leaves fewer connections; raise it (`ulimit -n`, LimitNOFILE=) for more"
        );
    }
}

/// Has the port before anything else is opened: whoever cannot have it is told at once.
async fn listen(config: &Config, clock: &Arc<dyn Clock>) -> Result<Listener, StartError> {
    let addresses = config.addresses()?;
    let seats = Seats {
        regular_max: config.connections_max,
        reserved_max: RESERVED_CONNECTIONS_MAX,
        idle: config.idle,
    };
    let socket = TcpListener::bind(addresses.as_slice()).await;
    socket
        .and_then(|socket| Listener::new(socket, seats, clock.clone()))
        .map_err(|source| StartError::Listen {
            listen: config.listen.clone(),
            source,
        })
}

/// Where compiled code is kept. A host that keeps nothing leaves nothing.
fn code_cache(config: &Config) -> Result<(PathBuf, Option<TempDir>), StartError> {
    if config.engine == EngineKind::Local {
        return Ok((config.data_dir.join("code"), None));
    }
    let scratch = tempfile::tempdir().map_err(|error| StartError::Modules(error.to_string()))?;
    Ok((scratch.path().to_owned(), Some(scratch)))
}

async fn open_engine(
    config: &Config,
    memory: &MemoryPlan,
    clock: &Arc<dyn Clock>,
) -> Result<Arc<dyn Engine>, StartError> {
    match config.engine {
        EngineKind::Memory => Ok(MemoryEngine::bounded(clock.clone(), memory.bounds)),
        EngineKind::Local => {
            let sizes = StorageSizes {
                checkpoint_journal_bytes: Some(
                    config
                        .storage
                        .checkpoint_journal_bytes
                        .unwrap_or(memory.journal_bytes),
                ),
                ..config.storage
            };
            warn_of_strangers(&config.data_dir);
            let options = LocalOptions {
                scrub_bytes_per_second: config.scrub_bytes_per_second,
                scrub_interval: config.scrub_interval,
                encryption: encryption_keys(config.encryption_key_file.as_deref())?,
                cleaning_interval: config.cleaning_interval,
                tail_bytes_max: memory.tail_bytes,
                queue_bytes_max: memory.queue_bytes,
                bounds: memory.bounds,
                ..sizes.options()
            };
            let engine = LocalEngine::open(&config.data_dir, options, clock.clone()).await;
            Ok(engine.map_err(not_opened)?)
        }
    }
}

/// A directory that holds something, but nothing of ours, is likely to be meant for something else.
fn warn_of_strangers(data_dir: &Path) {
    let Ok(entries) = std::fs::read_dir(data_dir) else {
        return;
    };
    let names = entries.flatten().map(|entry| entry.file_name());
    let names: Vec<String> = names
        .map(|name| name.to_string_lossy().into_owned())
        .collect();
    let is_ours = ["journal", "checkpoint.sqlite"].map(|own| names.iter().any(|name| name == own));
    let first = names.iter().find(|name| *name != "lock");
    if let (Some(first), [false, false]) = (first, is_ours) {
        tracing::warn!(
            data_dir = %data_dir.display(), first,
            "the data directory holds files of others; Millrace leaves them alone and puts its own beside them. Is --data-dir right?"
        );
    }
}

fn not_opened(error: OpenError) -> StartError {
    match error {
        OpenError::InUse { dir } => StartError::DataDirInUse(dir),
        OpenError::Name { .. } => StartError::DataDirName(error),
        error => StartError::Engine(error.to_string()),
    }
}

fn open_modules(
    config: &Config,
    memory: &MemoryPlan,
    cache_dir: PathBuf,
    clock: &Arc<dyn Clock>,
) -> Result<Arc<dyn ModuleHost>, StartError> {
    let program = match &config.compile_program {
        Some(program) => program.clone(),
        None => own_program()?,
    };
    let compile_child = CompileChild {
        program,
        args: vec![COMPILE_COMMAND.to_owned()],
    };
    let mut options = WasmOptions::new(cache_dir, compile_child);
    options.memory_bytes_max = memory.guest_bytes as u64;
    options.limits = memory.guests(config.guests);
    options.one_compile = memory.compile_bytes < config.guests.compile_memory_bytes_max;
    options.code_bytes_max = options.code_bytes_max.min(options.limits.module_bytes_max);
    options.ships_lines = config.guest_log == GuestLog::Host;
    // Compiled code holds what the component holds, and is not encrypted.
    options.keeps_code = encryption_keys(config.encryption_key_file.as_deref())?.is_none();
    let host = WasmHost::new(options, clock.clone());
    let host = host.map_err(|error| StartError::Modules(error.to_string()))?;
    Ok(host)
}

/// The running binary itself, even after another one was installed in its place.
fn own_program() -> Result<PathBuf, StartError> {
    let running = PathBuf::from("/proc/self/exe");
    if running.exists() {
        return Ok(running);
    }
    std::env::current_exe().map_err(|error| StartError::Modules(error.to_string()))
}

async fn upkeep(app: Arc<App>, poisoned: CancellationToken) {
    let mut tick = tokio::time::interval(UPKEEP_INTERVAL);
    loop {
        tick.tick().await;
        app.forget_gone();
        if let Err(error @ CommitError::Poisoned(_)) = app.broker.ready().await {
            tracing::error!(%error, "the engine is poisoned");
            poisoned.cancel();
            return;
        }
    }
}
