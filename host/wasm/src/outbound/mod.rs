//! Sends guests' HTTP requests, to the servers that their grants name and to no other.
//!
//! [`interfaces::http`](crate::interfaces::http) receives a request from a guest; [`Access`] checks its server against the grants;
//! [`exchange`] resolves the name once, checks every address, connects to one of those, and sends the request; [`body`] bounds what
//! comes back. Redirects are answers like others: the host follows none. All of it runs on the host's own threads, so a guest that waits
//! for a server holds up nothing but its own call.

mod addresses;
mod body;
mod errors;
mod exchange;

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use http::Request;
use millrace_model::Clock;
use millrace_model::processor::{Grants, Origin};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody};

pub use self::addresses::{Resolver, SystemResolver};
pub(crate) use self::errors::code_of;
use self::exchange::{Times, exchange};
use crate::logs::{Line, LogSink};

/// Bytes of a request's target in a log line.
const NAMED_BYTES_MAX: usize = 300;

/// The settings of guests' HTTP requests.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// Finds the addresses of servers.
    pub resolver: Arc<dyn Resolver>,
    /// A PEM file with further certificates to trust, besides those that browsers trust.
    pub roots_file: Option<PathBuf>,
    /// Until a connection is ready for its request: waiting for others, the name, connecting, TLS.
    pub connect_ms_max: u64,
    /// From there to the head of the answer.
    pub first_byte_ms_max: u64,
    /// Between parts of an answer's body, while the guest waits for it.
    pub between_bytes_ms_max: u64,
    /// How long one connection is kept in all.
    pub exchange_ms_max: u64,
    /// Bytes of one request's body.
    pub request_bytes_max: u64,
    /// Bytes of one answer's body.
    pub response_bytes_max: u64,
    /// Connections of one processor at a time; further requests wait.
    pub owner_requests_max: usize,
    /// Connections of all processors together.
    pub requests_max: usize,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            resolver: Arc::new(SystemResolver),
            roots_file: None,
            connect_ms_max: 10_000,
            first_byte_ms_max: 60_000,
            between_bytes_ms_max: 30_000,
            exchange_ms_max: 600_000,
            request_bytes_max: 16 << 20,
            response_bytes_max: 16 << 20,
            owner_requests_max: 64,
            requests_max: 512,
        }
    }
}

/// Sends the requests of all guests.
pub(crate) struct Outbound {
    settings: HttpOptions,
    tls: Arc<ClientConfig>,
    clock: Arc<dyn Clock>,
    free: Arc<Semaphore>,
    /// The connections of each owner that has a pool.
    owners: Mutex<HashMap<String, Weak<Semaphore>>>,
}

impl Outbound {
    /// Reads the certificates; fails if the file of roots cannot be used.
    pub(crate) fn new(settings: HttpOptions, clock: Arc<dyn Clock>) -> Result<Self, String> {
        Ok(Self {
            tls: Arc::new(tls(settings.roots_file.as_deref())?),
            free: Arc::new(Semaphore::new(settings.requests_max)),
            owners: Mutex::default(),
            settings,
            clock,
        })
    }

    /// What the guests of one pool may reach. All pools of one owner share its connections.
    pub(crate) fn access(self: &Arc<Self>, grants: &Grants, sink: LogSink) -> Arc<Access> {
        let owner = sink.owner().lane();
        let mut all = self.owners.lock();
        let known = all.get(&owner).and_then(Weak::upgrade);
        let own = known.unwrap_or_else(|| {
            all.retain(|_, own| own.strong_count() > 0);
            let own = Arc::new(Semaphore::new(self.settings.owner_requests_max));
            all.insert(owner, Arc::downgrade(&own));
            own
        });
        Arc::new(Access {
            outbound: Arc::clone(self),
            servers: grants.http.as_slice().into(),
            private: grants.http_private,
            own,
            sink,
            runtime: Handle::current(),
        })
    }
}

/// TLS with the roots that browsers trust, and those of the file.
fn tls(roots_file: Option<&Path>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    if let Some(file) = roots_file {
        let named = |why: &dyn fmt::Display| format!("{}: {why}", file.display());
        let certificates = CertificateDer::pem_file_iter(file).map_err(|error| named(&error))?;
        let mut added = 0;
        for certificate in certificates {
            let certificate = certificate.map_err(|error| named(&error))?;
            roots.add(certificate).map_err(|error| named(&error))?;
            added += 1;
        }
        if added == 0 {
            return Err(named(&"there is no certificate in it"));
        }
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// What the guests of one pool may reach.
#[derive(Clone)]
pub(crate) struct Access {
    outbound: Arc<Outbound>,
    servers: Arc<[Origin]>,
    /// Whether names may have private addresses.
    private: bool,
    own: Arc<Semaphore>,
    sink: LogSink,
    /// The host's threads: those for guests have no network.
    runtime: Handle,
}

/// A response and what its connection does meanwhile, in the form of `wasmtime-wasi-http`.
pub(crate) type Answering = Box<
    dyn Future<
            Output = Result<
                (
                    http::Response<WasiBody>,
                    Box<dyn Future<Output = Result<(), Error>> + Send>,
                ),
                Error,
            >,
        > + Send,
>;

impl Access {
    /// The same for one instance, whose refusals are noted with its other lines.
    pub(crate) fn noting(&self, sink: LogSink) -> Arc<Self> {
        Arc::new(Self {
            sink,
            ..self.clone()
        })
    }

    /// Sends a request if its server is granted.
    pub(crate) fn send(
        self: &Arc<Self>,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
    ) -> Answering {
        let origin = match self.granted(&request) {
            Ok(origin) => origin,
            Err(error) => return Box::new(std::future::ready(Err(error))),
        };
        let times = self.times(options.unwrap_or_default());
        let sent = exchange(Arc::clone(self), origin, request, times);
        let task = AbortOnDrop(self.runtime.spawn(sent));
        Box::new(async move {
            let nothing: Box<dyn Future<Output = _> + Send> = Box::new(std::future::ready(Ok(())));
            Ok((task.await?, nothing))
        })
    }

    fn granted(&self, request: &Request<WasiBody>) -> Result<Origin, Error> {
        let uri = request.uri();
        let (scheme, server) = (uri.scheme_str(), uri.authority());
        let server = server.map_or("", |server| server.as_str());
        let target = format!("{}://{server}", scheme.unwrap_or("https"));
        match Origin::parse(&target) {
            Ok(origin) if self.servers.contains(&origin) => Ok(origin),
            Ok(origin) => {
                self.note(&format!(
                    "a request to {origin} was denied: the grants do not name this server (grants.http)"
                ));
                Err(Error::HttpRequestDenied)
            }
            Err(error) => {
                let why = error.to_string();
                self.note(&format!(
                    "a request was denied: {}",
                    &why[..why.floor_char_boundary(NAMED_BYTES_MAX)]
                ));
                Err(Error::HttpRequestDenied)
            }
        }
    }

    /// The guest may ask for less time than the host's bounds.
    fn times(&self, options: RequestOptions) -> Times {
        let within = |asked: Option<Duration>, max_ms: u64| {
            let max = Duration::from_millis(max_ms);
            asked.map_or(max, |asked| asked.min(max))
        };
        let settings = self.settings();
        Times {
            connect: within(options.connect_timeout, settings.connect_ms_max),
            first_byte: within(options.first_byte_timeout, settings.first_byte_ms_max),
            between_bytes: within(options.between_bytes_timeout, settings.between_bytes_ms_max),
        }
    }

    /// The right to one more connection, of this owner and of the host.
    async fn permits(&self) -> [OwnedSemaphorePermit; 2] {
        // Never closed. All callers take them in this order.
        let own = Arc::clone(&self.own).acquire_owned().await;
        let free = Arc::clone(&self.outbound.free).acquire_owned().await;
        [own, free].map(|permit| permit.expect("the semaphores are never closed"))
    }

    fn settings(&self) -> &HttpOptions {
        &self.outbound.settings
    }

    fn tls(&self) -> &Arc<ClientConfig> {
        &self.outbound.tls
    }

    fn now(&self) -> Duration {
        self.outbound.clock.monotonic()
    }

    fn left(&self, until: Duration) -> Duration {
        until.saturating_sub(self.now())
    }

    /// A line in the processor's log: the guest sees only a code.
    fn note(&self, text: &str) {
        self.sink.write("warn", || Line::of(text));
    }
}

/// A task on the host's threads that ends when nobody waits for it any more.
struct AbortOnDrop<T>(JoinHandle<T>);

impl<T> Future for AbortOnDrop<Result<T, Error>> {
    type Output = Result<T, Error>;

    fn poll(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Self::Output> {
        let joined = std::task::ready!(Pin::new(&mut self.0).poll(context));
        let failed = |_| {
            Err(Error::InternalError(Some(
                "the host is stopping".to_owned(),
            )))
        };
        std::task::Poll::Ready(joined.unwrap_or_else(failed))
    }
}

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_the_roots_is_said_with_the_files_name() {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("absent.pem", None),
            ("empty.pem", Some("")),
            ("broken.pem", Some("-----BEGIN CERTIFICATE-----\n!\n")),
        ] {
            let file = dir.path().join(name);
            if let Some(text) = text {
                std::fs::write(&file, text).unwrap();
            }
            let why = tls(Some(&file)).unwrap_err();
            assert!(why.starts_with(&file.display().to_string()), "{why}");
        }
        tls(None).unwrap();
    }
}
