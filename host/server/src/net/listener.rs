//! Accepts connections one at a time, gives each a place, has it served, and closes those that are
//! silent for too long.
//!
//! [`super::places`] decides which connections get a place. If the process cannot open more files,
//! an idle connection makes room, and accepting pauses.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use millrace_model::Clock;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::connection::{Accepted, Connection};
use super::places::{DoorLimits, Places};
use super::socket::Socket;
use super::tls::Tls;

/// After an accept that failed (too many open files, say): long enough to let some close.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Failed accepts are logged at most this often, with their number.
const ACCEPT_SAID_EVERY: Duration = Duration::from_secs(10);
/// How often silent connections are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_millis(500);

/// A bound socket with places for connections. It accepts nothing until it is served.
pub(crate) struct Listener {
    socket: Socket,
    address: Option<SocketAddr>,
    places: Arc<Places>,
    tls: Option<Arc<Tls>>,
    clock: Arc<dyn Clock>,
    stopping: CancellationToken,
    closed: CancellationToken,
    /// Signals that it is closed, also if it is dropped before it serves.
    open: DropGuard,
}

impl Listener {
    pub(crate) fn new(
        socket: impl Into<Socket>,
        limits: DoorLimits,
        tls: Option<Arc<Tls>>,
        clock: Arc<dyn Clock>,
    ) -> std::io::Result<Self> {
        let closed = CancellationToken::new();
        let socket = socket.into();
        Ok(Self {
            open: closed.clone().drop_guard(),
            closed,
            address: socket.address()?,
            socket,
            places: Places::new(limits),
            tls,
            clock,
            stopping: CancellationToken::new(),
        })
    }

    /// `None` for a Unix socket.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    pub(crate) fn places(&self) -> Arc<Places> {
        self.places.clone()
    }

    /// Cancelled to stop accepting; requests that wait on its connections are then answered.
    pub(crate) fn stopping(&self) -> CancellationToken {
        self.stopping.clone()
    }

    /// Cancelled when it accepts nothing more.
    pub(super) fn closed(&self) -> CancellationToken {
        self.closed.clone()
    }

    /// Serves until it is told to stop, and returns when the last connection is closed. Dropping it
    /// cuts off its connections.
    pub(super) async fn serve<Served>(
        self,
        serve: impl Fn(Connection) -> Served + Send + Sync + 'static,
    ) where
        Served: Future<Output = ()> + Send + 'static,
    {
        let serve = Arc::new(serve);
        let mut connections = JoinSet::new();
        let mut sweep = interval(SWEEP_INTERVAL);
        let mut failures = Failures::default();
        loop {
            let accepted = tokio::select! {
                accepted = self.socket.accept() => accepted,
                _ = sweep.tick() => {
                    self.places.sweep(self.now());
                    continue;
                }
                () = self.stopping.cancelled() => break,
            };
            // Finished connections are removed, so the set never has more than there are places.
            while connections.try_join_next().is_some() {}
            match accepted {
                Ok(stream) => {
                    let place = self.places.take(self.now());
                    let (clock, stopping) = (self.clock.clone(), self.stopping.clone());
                    let Some(accepted) =
                        place.and_then(|place| Accepted::new(stream, place, clock, stopping))
                    else {
                        continue;
                    };
                    match &self.tls {
                        None => {
                            connections.spawn(serve(accepted.plain()));
                        }
                        Some(tls) => {
                            let (tls, serve) = (Arc::clone(tls), Arc::clone(&serve));
                            connections.spawn(async move {
                                if let Some(connection) = accepted.encrypted(&tls).await {
                                    serve(connection).await;
                                }
                            });
                        }
                    }
                }
                Err(error) => {
                    failures.met(&error, self.now());
                    self.places.shrink(self.now());
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(self.socket);
        drop(self.open);
        self.places.stop();
        loop {
            tokio::select! {
                ended = connections.join_next() => if ended.is_none() { break },
                _ = sweep.tick() => self.places.sweep(self.clock.monotonic()),
            }
        }
    }

    fn now(&self) -> Duration {
        self.clock.monotonic()
    }
}

/// Counts failed accepts between two log lines: while the process lacks files, accepting fails
/// twenty times a second.
#[derive(Default)]
struct Failures {
    count: u64,
    said_at: Option<Duration>,
}

impl Failures {
    fn met(&mut self, error: &std::io::Error, now: Duration) {
        self.count += 1;
        metrics::counter!("millrace_accept_failures_total").increment(1);
        if self
            .said_at
            .is_none_or(|at| now.saturating_sub(at) >= ACCEPT_SAID_EVERY)
        {
            let count = std::mem::take(&mut self.count);
            self.said_at = Some(now);
            tracing::warn!(%error, count, "connections were not accepted");
        }
    }
}
