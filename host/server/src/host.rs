//! One running host: starts the engine, the module host, the broker and the doors, and stops them
//! in reverse order.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use millrace_broker::{Broker, BrokerLimits, Caller, PrincipalError, ProcessorError};
use millrace_engine::{CommitError, Engine};
use millrace_local::OpenError;
use millrace_model::{Clock, SystemClock};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::access;
use crate::config::{Config, ConfigError, EngineKind, GuestLog, HttpSettings};
use crate::engine::{self, NotOpened};
use crate::files;
use crate::http::{self, App};
use crate::identity::Identity;
use crate::memory::MemoryPlan;
use crate::modules;
use crate::net::bounds::{RESERVED_CONNECTIONS_MAX, SOCKET_CONNECTIONS_MAX};
use crate::net::{Budgets, DoorLimits, Doors, Listener, Socket, SocketError, SocketFile, Tls};
use crate::secrets::Secrets;
use crate::telemetry;

/// How often metrics of deleted things are removed and the engine is checked.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(1);

/// The name of the HTTP door.
const HTTP_DOOR: &str = "http";
/// The name of the door at the Unix socket.
const SOCKET_DOOR: &str = "socket";
/// Stands for the address of a door that is not open.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// A host that runs until it is stopped.
pub struct Host {
    doors: Doors,
    broker: Broker,
    stop_deadline: Duration,
    poisoned: CancellationToken,
    upkeep: JoinHandle<()>,
    /// Whether its doors speak TLS.
    is_encrypted: bool,
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
        /// The configured address.
        listen: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The Unix socket cannot be opened.
    #[error("{0}")]
    Socket(String),
    /// Another process uses the data directory.
    #[error(
        "the data directory {0} is used by another process; stop that one, or choose another with --data-dir"
    )]
    DataDirInUse(PathBuf),
    /// SQLite cannot open such a path.
    #[error(transparent)]
    DataDirName(OpenError),
    /// The engine does not open.
    #[error("the engine does not open: {0}")]
    Engine(String),
    /// The store is the target of a copy.
    #[error(
        "a copy into this store was begun and is not complete; repeat the `millrace copy`, which goes on, or use another store"
    )]
    UnfinishedCopy,
    /// The engine opened and is poisoned by a disk error.
    #[error("{0}")]
    Poisoned(CommitError),
    /// The module host does not start.
    #[error("the module host does not start: {0}")]
    Modules(String),
    /// The first principal could not be made.
    #[error("the first principal cannot be made: {0}")]
    FirstPrincipal(#[from] PrincipalError),
    /// The first token could not be written.
    #[error("the token of the first principal cannot be written to {}: {source}", path.display())]
    FirstToken {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The broker does not start.
    #[error("the broker does not start: {0}")]
    Broker(#[from] ProcessorError),
}

impl Host {
    /// Opens the engine, starts every processor, and answers HTTP.
    ///
    /// # Errors
    /// [`StartError`] says why it did not start.
    pub async fn start(mut config: Config) -> Result<Self, StartError> {
        config.check()?;
        bound_connections(&mut config.listen.http);
        files::outlive_size_limits();
        if config.engine.kind != EngineKind::Memory {
            files::close_to_others(&config.data_dir);
        }
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let tls = config.listen.tls.open()?;
        let http = listen(&config.listen.http, tls.clone(), &clock).await?;
        let socket = listen_at_socket(&config, &clock).await?;
        let memory = config.limits.plan();
        memory.say();
        let keys = config.encryption.keys()?;
        let (settings, dir) = (&config.engine, &config.data_dir);
        let door = (http.address().unwrap_or(NOWHERE), tls.is_some());
        let engine = engine::open(settings, dir, door, keys, &memory, &clock).await;
        let engine = engine.map_err(not_opened)?;
        let started = match crate::copying::is_unfinished(&*engine).await {
            true => Err(StartError::UnfinishedCopy),
            false => {
                Self::start_on(config, &memory, (http, tls, socket), clock, engine.clone()).await
            }
        };
        if started.is_err() {
            engine.close().await;
        }
        started
    }

    async fn start_on(
        config: Config,
        memory: &MemoryPlan,
        (http, tls, socket): (Listener, Option<Arc<Tls>>, Option<Listener>),
        clock: Arc<dyn Clock>,
        engine: Arc<dyn Engine>,
    ) -> Result<Self, StartError> {
        let metrics = telemetry::metrics();
        let (cache_dir, scratch) = code_cache(&config)?;
        let around = modules::Surroundings {
            cache_dir,
            program: config.compile_program.as_ref(),
            is_encrypted: config.encryption.keys()?.is_some(),
            ships_lines: config.log.guests == GuestLog::Host,
            secrets: Secrets::of(&config.secrets)?,
        };
        let modules = modules::open(&config.modules, around, memory, &clock)
            .map_err(|error| StartError::Modules(error.to_string()))?;
        let limits = BrokerLimits {
            in_flight_bytes: memory.in_flight_bytes,
            remembered_bytes: memory.attempts_bytes,
            state_attempts: memory.state_attempts,
            at_hand_bytes: memory.at_hand_bytes,
            ..BrokerLimits::default()
        };
        let policy = config.modules.policy()?;
        let trust = config.listen.tls.trust(tls.clone())?;
        let broker = Broker::start_under(clock.clone(), engine, modules, limits, policy).await?;
        // A store that several hosts share may be away for a moment, as at any later time; the host goes on when it is back.
        if let Err(error @ CommitError::Poisoned(_)) = broker.ready().await {
            return Err(StartError::Poisoned(error));
        }

        if config.access.is_required() {
            access::begin(&broker, &config.data_dir).await?;
            broker.session(Caller::host()).audit().begin();
        }
        let everyone = broker.session(Caller::host()).access().clone();
        let identity = Identity::start(&config.access.providers, everyone, clock.clone())?;
        let poisoned = CancellationToken::new();
        let address = http.address().unwrap_or(NOWHERE);
        let budgets = Budgets::new(memory.bodies_bytes, memory.answers_bytes);
        let mut doors = Doors::new(budgets);
        let app = App::new(
            &config,
            doors.budgets().clone(),
            &http,
            clock,
            broker.clone(),
            (metrics, trust, identity),
        );
        doors.open(HTTP_DOOR, http, http::door(app.clone()));
        if let Some(socket) = socket {
            doors.open(SOCKET_DOOR, socket, http::door(app.clone()));
        }
        let is_encrypted = tls.is_some();
        let upkeep = tokio::spawn(upkeep(app.clone(), tls, poisoned.clone()));
        http::Called::of_host(&app).log_start(address, &config.data_dir);
        Ok(Self {
            doors,
            broker,
            stop_deadline: Duration::from_millis(config.stop_deadline_ms),
            poisoned,
            upkeep,
            is_encrypted,
            _scratch: scratch,
        })
    }

    /// The address of the HTTP door.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.doors.address(HTTP_DOOR).unwrap_or(NOWHERE)
    }

    /// The URL of the HTTP door, for clients.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.is_encrypted { "https" } else { "http" };
        format!("{scheme}://{}", self.address())
    }

    /// The broker, for code in the same process.
    #[must_use]
    pub fn broker(&self) -> &Broker {
        &self.broker
    }

    /// Waits until the engine is poisoned by a disk error. Nothing more will be acknowledged then,
    /// so the host should stop.
    pub async fn poisoned(&self) {
        self.poisoned.cancelled().await;
    }

    /// The maximum duration of a stop.
    #[must_use]
    pub fn stop_deadline(&self) -> Duration {
        self.stop_deadline
    }

    /// Stops accepting connections, lets requests and calls of guests finish within the deadline,
    /// and closes the engine. Calls are interrupted after half of it, so that requests that wait
    /// for them are still answered.
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

/// Bounds connections so that they cannot take the files that the engine needs.
fn bound_connections(http: &mut HttpSettings) {
    let files = files::raise_limit();
    let wanted = http.connections_max;
    http.connections_max = files::connections(wanted, files);
    if http.connections_max < wanted {
        tracing::warn!(
            files,
            wanted,
            connections_max = http.connections_max,
            "the limit of open files leaves fewer connections; raise it (`ulimit -n`, LimitNOFILE=) for more"
        );
    }
}

/// Binds the port before anything else is opened, so that a taken port is reported at once.
async fn listen(
    http: &HttpSettings,
    tls: Option<Arc<Tls>>,
    clock: &Arc<dyn Clock>,
) -> Result<Listener, StartError> {
    let addresses = http.addresses()?;
    let limits = DoorLimits {
        regular_max: http.connections_max,
        reserved_max: RESERVED_CONNECTIONS_MAX,
        idle: http.idle(),
    };
    let socket = TcpListener::bind(addresses.as_slice()).await;
    socket
        .and_then(|socket| Listener::new(socket, limits, tls, clock.clone()))
        .map_err(|source| StartError::Listen {
            listen: http.address.clone(),
            source,
        })
}

/// Opens the Unix socket, if there is to be one.
async fn listen_at_socket(
    config: &Config,
    clock: &Arc<dyn Clock>,
) -> Result<Option<Listener>, StartError> {
    let Some(path) = &config.listen.socket else {
        return Ok(None);
    };
    let limits = DoorLimits {
        regular_max: SOCKET_CONNECTIONS_MAX,
        reserved_max: 0,
        idle: config.listen.http.idle(),
    };
    let not_opened = |error: SocketError| StartError::Socket(error.to_string());
    let socket = SocketFile::open(path).await.map_err(not_opened)?;
    let listener = Listener::new(Socket::Unix(socket), limits, None, clock.clone());
    let listener = listener.map_err(|source| {
        not_opened(SocketError::System {
            path: path.clone(),
            source,
        })
    })?;
    tracing::info!(socket = %path.display(), "local users reach the host at its Unix socket");
    Ok(Some(listener))
}

/// Where compiled code is stored. A host with the `memory` engine uses a temporary directory, so
/// that it leaves no files.
fn code_cache(config: &Config) -> Result<(PathBuf, Option<TempDir>), StartError> {
    if config.engine.kind != EngineKind::Memory {
        return Ok((config.data_dir.join("code"), None));
    }
    let scratch = tempfile::tempdir().map_err(|error| StartError::Modules(error.to_string()))?;
    Ok((scratch.path().to_owned(), Some(scratch)))
}

fn not_opened(error: NotOpened) -> StartError {
    match error {
        NotOpened::Local(OpenError::InUse { dir }) => StartError::DataDirInUse(dir),
        NotOpened::Local(error @ OpenError::Name { .. }) => StartError::DataDirName(error),
        error => StartError::Engine(error.to_string()),
    }
}

async fn upkeep(app: Arc<App>, tls: Option<Arc<Tls>>, poisoned: CancellationToken) {
    let mut tick = tokio::time::interval(UPKEEP_INTERVAL);
    loop {
        tick.tick().await;
        app.forget_gone();
        if let Some(tls) = &tls {
            tls.reload();
        }
        if let Err(error @ CommitError::Poisoned(_)) = app.broker.ready().await {
            tracing::error!(%error, "the engine is poisoned");
            poisoned.cancel();
            return;
        }
    }
}

#[cfg(test)]
mod tests;
