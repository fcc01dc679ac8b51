//! The front door for HTTP: routes, bounds, and the one shape of every answer that is not what was asked for.
//!
//! A request passes [`listener`] (connections, slow senders and slow readers), [`guard`] (who may call, what is left of bodies, request ids, panics) and arrives at the
//! file of the noun that it is about. What comes out of the broker is turned into JSON here and nowhere else.

mod answers;
mod backup;
mod body;
mod by;
mod called;
mod coding;
mod consumers;
mod consuming;
mod damage;
mod dead_letters;
mod delays;
mod deploying;
mod error;
mod fetch;
mod fetch_all;
mod guard;
mod health;
mod history;
mod host;
mod idempotency;
mod kinds;
mod lifetime;
mod line;
mod listener;
mod lookups;
mod messages;
mod modules;
mod openapi;
mod parked;
mod places;
mod processors;
mod produce;
mod query;
mod record;
mod replays;
mod rest;
mod schedules;
mod states;
mod stream;
mod topics;
mod trials;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderValue, Method};
use axum::routing::{self as on, MethodRouter};
use millrace_broker::{Broker, Caller};
use millrace_engine::CommitError;
use millrace_model::Clock;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub(crate) use called::Called;
pub(crate) use deploying::check_spec;
pub(crate) use listener::serve;
pub(crate) use states::check_entry;

use crate::config::Config;
use crate::memory::MemoryPlan;
use crate::registry::Registry;
use error::ApiError;
use guard::Callers;
use health::ToldOf;
use host::About;
use parking_lot::Mutex;
use places::Places;

/// Bounds of the front door, by name and unit. What happens at each is said beside it.
pub(crate) mod bounds {
    /// Body of a produce request; a larger one gets 413.
    pub(crate) const PRODUCE_BODY_BYTES_MAX: usize = 32 << 20;
    /// Body of any other JSON request; a larger one gets 413.
    pub(crate) const JSON_BODY_BYTES_MAX: usize = 1 << 20;
    /// Body of a request that writes state; a larger one gets 413. The worst single entry fits: a text of which each byte takes six.
    pub(crate) const STATE_BODY_BYTES_MAX: usize = 2 << 20;
    /// Body of a request for a backup, which names what need not be sent; a larger one gets 413.
    pub(crate) const BACKUP_BODY_BYTES_MAX: usize = 64 << 20;
    /// Messages of one produce request; more get 413.
    pub(crate) const PRODUCE_MESSAGES_MAX: usize = 100_000;
    /// Bodies held in memory at once, all requests together, in KiB. Full means that senders wait, at most
    /// [`BODY_ROOM_WAIT_MS_MAX`], and then get 503.
    pub(crate) const BODIES_KIB_MAX: usize = 256 << 10;
    /// Uploads that are checked and compiled, or wait for it, at once; a further one gets 503. More than the module host lets wait: it
    /// sends away whoever has most waiting.
    pub(crate) const UPLOADS_MAX: usize = 128;
    /// How long a request waits for room for its body.
    pub(crate) const BODY_ROOM_WAIT_MS_MAX: u64 = 5_000;
    /// Silence within a body after which the sender gets 408.
    pub(crate) const BODY_SILENCE_MS_MAX: u64 = 15_000;
    /// A body takes no longer than this in all, or its sender gets 408.
    pub(crate) const BODY_MS_MAX: u64 = 300_000;
    /// Bytes of an unwanted body that are taken before its sender is answered; of more the connection ends with the answer.
    pub(crate) const DISCARDED_BYTES_MAX: u64 = 64 << 20;
    /// How long that may take.
    pub(crate) const DISCARD_MS_MAX: u64 = 5_000;
    /// How long what still comes is thrown away after an answer that ends its connection, so that its sender reads the answer; then the
    /// connection is cut.
    pub(crate) const LINGER_MS_MAX: u64 = 30_000;
    /// Silence after which that ends.
    pub(crate) const LINGER_SILENCE_MS_MAX: u64 = 3_000;
    /// How long that takes at the most when the host stops.
    pub(crate) const STOPPING_LINGER_MS_MAX: u64 = 500;
    /// How long a request is worked on whose caller has closed its side of the connection; then it gets 408. Most such callers have gone
    /// altogether. A fetch that waits is answered at once.
    pub(crate) const HALF_CLOSED_MS_MAX: u64 = 10_000;
    /// A request's head takes no longer than this, from its first byte on; then it gets 408.
    pub(crate) const HEAD_MS_MAX: u64 = 30_000;
    /// A new connection that says nothing for so long is closed.
    pub(crate) const FIRST_BYTE_MS_MAX: u64 = 15_000;
    /// A request's head; a larger one gets 431 and the connection is closed.
    pub(crate) const HEAD_BYTES_MAX: usize = 64 << 10;
    /// Connections for administration beyond `connections_max`, so that a busy host can still be looked at and steered. Each takes one
    /// request, and none that produces or fetches (503).
    pub(crate) const RESERVED_CONNECTIONS_MAX: usize = 32;
    /// Such a connection that says nothing for so long is closed.
    pub(crate) const RESERVED_IDLE_MS_MAX: u64 = 2_000;
    /// Connections beyond those that are told so (503) at once; further ones are closed without a word.
    pub(crate) const REFUSED_CONNECTIONS_MAX: usize = 32;
    /// Connections that are being closed to make room for new ones; further new ones are of the reserve.
    pub(crate) const ENDING_CONNECTIONS_MAX: usize = 32;
    /// Fetches that wait at once, as a share of `connections_max`, in percent; a further one that would wait gets 503.
    pub(crate) const WAITING_PERCENT_MAX: usize = 75;
    /// Header lines of a request; more get 431.
    pub(crate) const HEAD_LINES_MAX: usize = 128;
    /// Messages of one fetch; asking for more gives this many.
    pub(crate) const FETCH_MESSAGES_MAX: usize = 10_000;
    /// Bytes of one fetch; asking for more gives this many (one larger message still comes), or fewer where memory is scarce.
    pub(crate) const FETCH_BYTES_MAX: usize = 16 << 20;
    /// So many fetches at least have room for their answers at once, as they are read.
    pub(crate) const FETCHES_LEAST: usize = 8;
    /// Partitions of one fetch over several; asking for more gets 413.
    pub(crate) const FETCH_PARTITIONS_MAX: usize = 2_000;
    /// How long a fetch waits for messages; asking for longer waits this long.
    pub(crate) const FETCH_WAIT_MS_MAX: u64 = 30_000;
    /// Answers that carry messages, held in memory at once, all readers together, in KiB. Full means that a reader waits, at
    /// most [`ANSWER_ROOM_WAIT_MS_MAX`], and then gets 503. The worst single answer fits: 16 MiB, of which each byte takes thirteen where all are headers.
    pub(crate) const ANSWERS_KIB_MAX: usize = 256 << 10;
    /// How long a request waits for room for its answer.
    pub(crate) const ANSWER_ROOM_WAIT_MS_MAX: u64 = 1_000;
    /// A reader that takes nothing of its answer for so long is disconnected.
    pub(crate) const WRITE_SILENCE_MS_MAX: u64 = 30_000;
    /// What a list of dead letters may take, read and as JSON; it ends where the next one might not fit.
    pub(crate) const DEAD_LETTERS_ROOM_BYTES: usize = 128 << 20;
    /// What one dead letter may take, read and as JSON.
    pub(crate) const DEAD_LETTER_ROOM_BYTES: usize = 112 << 20;
    /// What a list of delayed messages may take as JSON: 4 MiB of them at the worst, where all are headers.
    pub(crate) const DELAYED_ROOM_BYTES: usize = 72 << 20;
    /// Dead letters of one list; asking for more gives this many.
    pub(crate) const DEAD_LETTERS_MAX: usize = 1_000;
    /// Characters of a request id that is taken over from the caller; a longer one is replaced.
    pub(crate) const REQUEST_ID_CHARS_MAX: usize = 64;
    /// Bytes of who says to ask, in the header `Millrace-By`; more are cut.
    pub(crate) const BY_BYTES_MAX: usize = 64;
}

/// What every request needs.
pub(crate) struct App {
    pub(crate) broker: Broker,
    clock: Arc<dyn Clock>,
    metrics: Option<Registry>,
    /// Cancelled when the host stops: whoever waits, answers.
    stopping: CancellationToken,
    callers: Callers,
    bodies_kib: Arc<Semaphore>,
    bodies_kib_max: usize,
    answers_kib: Arc<Semaphore>,
    answers_kib_max: usize,
    uploads: Arc<Semaphore>,
    /// Fetches that may wait for messages.
    waiting: Arc<Semaphore>,
    waiting_max: usize,
    places: Arc<Places>,
    /// How long a connection is kept, as answers say it.
    keep_alive: HeaderValue,
    requests: AtomicU64,
    told_of: Mutex<ToldOf>,
    /// Held while what is measured anew for each reader of metrics is written down.
    measuring: Mutex<()>,
    about: About,
    /// Makes request ids of different runs differ.
    run: u32,
}

impl App {
    pub(crate) fn new(
        config: &Config,
        memory: &MemoryPlan,
        clock: Arc<dyn Clock>,
        broker: Broker,
        metrics: Option<Registry>,
        stopping: CancellationToken,
    ) -> Arc<Self> {
        let waiting_max = waiting_max(config.connections_max);
        Arc::new(Self {
            told_of: Mutex::default(),
            measuring: Mutex::default(),
            about: About::of(config, &clock),
            broker,
            clock,
            metrics,
            stopping,
            callers: Callers::new(config),
            bodies_kib: Arc::new(Semaphore::new(memory.bodies_bytes >> 10)),
            bodies_kib_max: memory.bodies_bytes >> 10,
            answers_kib: Arc::new(Semaphore::new(memory.answers_bytes >> 10)),
            answers_kib_max: memory.answers_bytes >> 10,
            uploads: Arc::new(Semaphore::new(bounds::UPLOADS_MAX)),
            waiting: Arc::new(Semaphore::new(waiting_max)),
            waiting_max,
            places: Places::new(config.connections_max, config.idle),
            keep_alive: keep_alive(config.idle),
            requests: AtomicU64::new(0),
            run: fastrand::u32(..),
        })
    }

    /// What takes its time and may be left at any moment, unless the host stops meanwhile.
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

    fn measure_connections(&self) {
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

/// A bound that leaves connections for those who do not wait.
fn waiting_max(connections_max: usize) -> usize {
    (connections_max.saturating_mul(bounds::WAITING_PERCENT_MAX) / 100).max(1)
}

/// What is said is a little less than what is kept: a request may be on its way.
fn keep_alive(idle: Duration) -> HeaderValue {
    let seconds = idle.as_secs().saturating_sub(1).max(1);
    let said = HeaderValue::from_str(&format!("timeout={seconds}"));
    said.unwrap_or_else(|_| HeaderValue::from_static("timeout=1"))
}

struct Route {
    #[cfg_attr(
        not(test),
        allow(dead_code, reason = "for the test that compares with openapi")
    )]
    method: Method,
    path: &'static str,
    handler: MethodRouter<Arc<App>>,
}

fn router(app: Arc<App>) -> Router {
    let routes = routes().into_iter();
    routes
        .fold(Router::new(), |router, route| {
            router.route(route.path, route.handler)
        })
        .fallback(error::unknown_route)
        .method_not_allowed_fallback(error::unknown_method)
        .layer(axum::middleware::from_fn_with_state(
            app.clone(),
            guard::admit,
        ))
        .with_state(app)
}

/// Every route there is; the OpenAPI document has the same ones, a test says so.
fn routes() -> Vec<Route> {
    const TOPIC: &str = "/v1/topics/{topic}";
    const PARTITION: &str = "/v1/topics/{topic}/partitions/{partition}/messages";
    const CONSUMER: &str = "/v1/topics/{topic}/consumers/{name}";
    const PROCESSOR: &str = "/v1/processors/{name}";
    const SCHEDULE: &str = "/v1/schedules/{name}";
    const STATE: &str = "/v1/processors/{name}/state";
    const SHADOW: &str = "/v1/processors/{name}/shadow";
    const DEAD: &str = "/v1/processors/{name}/dead-letters";
    let get = |path, handler| Route::new(Method::GET, path, handler);
    let post = |path, handler| Route::new(Method::POST, path, handler);
    let put = |path, handler| Route::new(Method::PUT, path, handler);
    let delete = |path, handler| Route::new(Method::DELETE, path, handler);
    let patch = |path, handler| Route::new(Method::PATCH, path, handler);
    vec![
        get("/health/live", on::get(health::live)),
        get("/health/ready", on::get(health::ready)),
        get("/metrics", on::get(health::metrics)),
        get("/openapi.json", on::get(openapi::document)),
        get("/v1/host", on::get(host::show)),
        get("/v1/topics", on::get(topics::list)),
        post("/v1/topics", on::post(topics::create)),
        get(TOPIC, on::get(topics::show)),
        delete(TOPIC, on::delete(topics::remove)),
        patch(TOPIC, on::patch(lifetime::change)),
        post("/v1/topics/{topic}/trim", on::post(lifetime::trim)),
        post("/v1/topics/{topic}/messages", on::post(produce::produce)),
        get("/v1/topics/{topic}/messages", on::get(fetch_all::fetch_all)),
        get("/v1/topics/{topic}/delayed", on::get(delays::list)),
        delete(
            "/v1/topics/{topic}/delayed/{id}",
            on::delete(delays::cancel),
        ),
        get(PARTITION, on::get(fetch::fetch)),
        get(
            "/v1/topics/{topic}/partitions/{partition}/messages/{offset}/value",
            on::get(fetch::value),
        ),
        get("/v1/consumers", on::get(consumers::list_all)),
        get(
            "/v1/topics/{topic}/consumers",
            on::get(consumers::list_of_topic),
        ),
        get(CONSUMER, on::get(consumers::show)),
        put(CONSUMER, on::put(consumers::make)),
        delete(CONSUMER, on::delete(consumers::remove)),
        post(
            "/v1/topics/{topic}/consumers/{name}/reset",
            on::post(consumers::reset),
        ),
        get(
            "/v1/topics/{topic}/consumers/{name}/messages",
            on::get(consuming::messages),
        ),
        post(
            "/v1/topics/{topic}/consumers/{name}/commit",
            on::post(consuming::commit),
        ),
        get("/v1/damage", on::get(damage::list)),
        post(
            "/v1/topics/{topic}/partitions/{partition}/damage/accept",
            on::post(damage::accept),
        ),
        post("/v1/backup", on::post(backup::make)),
        post("/v1/modules", on::post(modules::upload)),
        get("/v1/modules", on::get(modules::list)),
        get("/v1/modules/{reference}", on::get(modules::show)),
        delete("/v1/modules/{reference}", on::delete(modules::remove)),
        get("/v1/processors", on::get(processors::list)),
        get(PROCESSOR, on::get(processors::show)),
        put(PROCESSOR, on::put(processors::deploy)),
        patch(PROCESSOR, on::patch(deploying::amend)),
        delete(PROCESSOR, on::delete(processors::remove)),
        post(
            "/v1/processors/{name}/rollback",
            on::post(processors::rollback),
        ),
        post("/v1/processors/{name}/pause", on::post(processors::pause)),
        post("/v1/processors/{name}/resume", on::post(processors::resume)),
        get("/v1/processors/{name}/logs", on::get(processors::logs)),
        get("/v1/processors/{name}/history", on::get(history::show)),
        get("/v1/processors/{name}/parked", on::get(parked::list)),
        post(
            "/v1/processors/{name}/parked/try-now",
            on::post(parked::try_now),
        ),
        post(
            "/v1/processors/{name}/parked/give-up",
            on::post(parked::give_up),
        ),
        post("/v1/processors/{name}/canary", on::post(trials::canary)),
        post("/v1/processors/{name}/promote", on::post(trials::promote)),
        get(SHADOW, on::get(trials::shadow)),
        post("/v1/processors/{name}/replay", on::post(replays::make)),
        delete(SHADOW, on::delete(trials::end_shadow)),
        get(STATE, on::get(states::show)),
        post(STATE, on::post(states::write)),
        get("/v1/processors/{name}/state/key", on::get(lookups::key)),
        get(
            "/v1/processors/{name}/state/totals",
            on::get(lookups::totals),
        ),
        get("/v1/schedules", on::get(schedules::list)),
        get(SCHEDULE, on::get(schedules::show)),
        put(SCHEDULE, on::put(schedules::put)),
        delete(SCHEDULE, on::delete(schedules::remove)),
        post("/v1/schedules/{name}/pause", on::post(schedules::pause)),
        post("/v1/schedules/{name}/resume", on::post(schedules::resume)),
        post("/v1/schedules/{name}/run", on::post(schedules::run)),
        get(DEAD, on::get(dead_letters::list)),
        get(
            "/v1/processors/{name}/dead-letters/groups",
            on::get(dead_letters::groups),
        ),
        get(
            "/v1/processors/{name}/dead-letters/audit",
            on::get(dead_letters::work::audit),
        ),
        post(
            "/v1/processors/{name}/dead-letters/dry-run",
            on::post(dead_letters::work::dry_run),
        ),
        post(
            "/v1/processors/{name}/dead-letters/{topic}/{partition}/{offset}/edit",
            on::post(dead_letters::work::edit),
        ),
        get(
            "/v1/processors/{name}/dead-letters/{topic}/{partition}/{offset}",
            on::get(dead_letters::show),
        ),
        post(
            "/v1/processors/{name}/dead-letters/redrive",
            on::post(dead_letters::work::redrive),
        ),
    ]
}

impl Route {
    fn new(method: Method, path: &'static str, handler: MethodRouter<Arc<App>>) -> Self {
        Self {
            method,
            path,
            handler,
        }
    }
}

/// Runs a change to its end even if the caller hangs up half way.
async fn to_the_end<T: Send + 'static>(
    change: impl Future<Output = Result<T, ApiError>> + Send + 'static,
) -> Result<T, ApiError> {
    match tokio::spawn(change).await {
        Ok(outcome) => outcome,
        Err(_) => Err(ApiError::internal("the change panicked")),
    }
}
