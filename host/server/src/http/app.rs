//! What every request to the HTTP door needs, whatever its subject.

use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderValue;
use millrace_broker::{Access, Attempts, AuditLog, Broker, Caller};
use millrace_engine::CommitError;
use millrace_model::Clock;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::about::About;
use super::bounds;
use super::callers::Callers;
use super::error::ApiError;
use super::request_ids::RequestIds;
use super::told_of::ToldOf;
use crate::config::Config;
use crate::identity::Identity;
use crate::net::{Budgets, Listener, Places, Trust};
use crate::registry::Registry;

/// What every request needs.
pub(crate) struct App {
    pub(crate) broker: Broker,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) metrics: Option<Registry>,
    /// Cancelled when the host stops; waiting requests are then answered.
    pub(super) stopping: CancellationToken,
    pub(super) callers: Callers,
    pub(super) access: Access,
    pub(super) audit: AuditLog,
    /// Failed attempts to prove who one is.
    pub(super) attempts: Mutex<Attempts>,
    /// Refusals that are held back.
    pub(super) held_back: Semaphore,
    /// The identity providers whose JWTs count.
    pub(super) identity: Identity,
    /// Whether requests of which nothing says who sends them may do only what needs no right.
    pub(super) requires_credentials: bool,
    /// The number of the user that the process runs as.
    pub(super) own_user: u32,
    /// Whom this host trusts to be another one.
    pub(super) trust: Trust,
    /// Memory that all doors share.
    pub(super) budgets: Budgets,
    pub(super) uploads: Arc<Semaphore>,
    /// Fetches that may wait for messages.
    pub(super) waiting: Arc<Semaphore>,
    /// Requests that ask other hosts.
    pub(super) asking: Semaphore,
    waiting_max: usize,
    places: Arc<Places>,
    /// The `Keep-Alive` header of answers: how long an idle connection is kept.
    pub(super) keep_alive: HeaderValue,
    pub(super) request_ids: Arc<RequestIds>,
    pub(super) told_of: Mutex<ToldOf>,
    /// Held while the values that are computed for each reader of metrics are updated.
    pub(super) measuring: Mutex<()>,
    pub(super) about: About,
}

impl App {
    pub(crate) fn new(
        config: &Config,
        budgets: Budgets,
        listener: &Listener,
        clock: Arc<dyn Clock>,
        broker: Broker,
        (metrics, trust, identity): (Option<Registry>, Trust, Identity),
    ) -> Arc<Self> {
        let http = &config.listen.http;
        let waiting_max = waiting_max(http.connections_max);
        let host = broker.session(Caller::host());
        Arc::new(Self {
            told_of: Mutex::default(),
            measuring: Mutex::default(),
            about: About::of(config, &clock),
            access: host.access().clone(),
            audit: host.audit().clone(),
            attempts: Mutex::default(),
            held_back: Semaphore::new(bounds::HELD_BACK_MAX),
            broker,
            clock,
            metrics,
            stopping: listener.stopping(),
            callers: Callers::new(
                http,
                config.engine.advertised(),
                config.listen.insecure_no_auth || config.is_exposed().unwrap_or_default(),
            ),
            trust,
            identity,
            own_user: rustix::process::geteuid().as_raw(),
            requires_credentials: config.access.is_required(),
            budgets,
            uploads: Arc::new(Semaphore::new(bounds::UPLOADS_MAX)),
            waiting: Arc::new(Semaphore::new(waiting_max)),
            asking: Semaphore::new(bounds::OTHERS_ASKING_MAX),
            waiting_max,
            places: listener.places(),
            keep_alive: keep_alive(http.idle()),
            request_ids: Arc::new(RequestIds::new()),
        })
    }

    /// Runs work that may be dropped at any moment, and ends it if the host stops.
    pub(crate) async fn unless_stopping<T, E: Into<ApiError>>(
        &self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, ApiError> {
        tokio::select! {
            biased;
            done = work => done.map_err(Into::into),
            () = self.stopping.cancelled() => Err(CommitError::Closed.into()),
        }
    }

    pub(super) fn measure_connections(&self) {
        let (regular, reserved) = self.places.counts();
        let waiting = self.waiting_max - self.waiting.available_permits();
        metrics::gauge!("millrace_connections", "kind" => "regular").set(regular as f64);
        metrics::gauge!("millrace_connections", "kind" => "reserved").set(reserved as f64);
        metrics::gauge!("millrace_fetches_waiting").set(waiting as f64);
    }

    /// Forgets the metrics of what was deleted since the last time.
    pub(crate) fn forget_gone(&self) {
        if let Some(metrics) = &self.metrics {
            let session = self.broker.session(Caller::host());
            self.told_of.lock().forget_gone(&session, metrics);
        }
    }
}

/// How many fetches may wait, so that connections remain for other requests.
fn waiting_max(connections_max: usize) -> usize {
    (connections_max.saturating_mul(bounds::WAITING_PERCENT_MAX) / 100).max(1)
}

/// The announced time is a little shorter than the real one, because a request may be on its way.
fn keep_alive(idle: Duration) -> HeaderValue {
    let seconds = idle.as_secs().saturating_sub(1).max(1);
    let said = HeaderValue::from_str(&format!("timeout={seconds}"));
    said.unwrap_or_else(|_| HeaderValue::from_static("timeout=1"))
}

/// Runs a change to its end even if the caller hangs up half way.
pub(super) async fn to_the_end<T: Send + 'static>(
    change: impl Future<Output = Result<T, ApiError>> + Send + 'static,
) -> Result<T, ApiError> {
    match tokio::spawn(change).await {
        Ok(outcome) => outcome,
        Err(_) => Err(ApiError::internal("the change panicked")),
    }
}
