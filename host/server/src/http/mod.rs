//! The HTTP door: routes, bounds, and the one shape of all errors.
//!
//! A request arrives on a [`connection`], passes [`guard`] (callers, unread bodies, request ids,
//! panics) and reaches the file of its noun. The broker's answers are turned into JSON here and
//! nowhere else.

mod about;
mod answers;
mod app;
mod backup;
mod body;
pub(crate) mod bounds;
mod by;
mod called;
mod callers;
mod coding;
mod configuring;
mod connection;
mod consumers;
mod consuming;
mod damage;
mod dead_letters;
mod delays;
mod deploying;
mod error;
mod fetch;
mod fetch_all;
mod gathering;
mod guard;
mod health;
mod history;
mod host;
mod idempotency;
mod kinds;
mod lifetime;
mod lookups;
mod messages;
mod modules;
mod mount;
mod openapi;
mod others;
mod parked;
mod processors;
mod produce;
mod query;
mod receiving;
mod record;
mod replays;
mod request_ids;
mod rest;
mod routes;
mod schedules;
pub(crate) mod settings;
mod shapes;
mod states;
mod stream;
mod told_of;
mod topics;
mod trials;

use std::sync::Arc;

use axum::Router;
use axum::http::Method;
use axum::routing::{self as on, MethodRouter};

pub(crate) use app::App;
pub(crate) use called::Called;
pub(crate) use deploying::check_spec;
pub use error::own::{ErrorCode, error_codes};
pub(crate) use messages::message_of;
pub(crate) use states::check_entry;

use crate::net::Connection;
use connection::Door;

/// What serves the connections of this door.
pub(crate) fn door(app: Arc<App>) -> impl Fn(Connection) -> connection::Served {
    let door = Door::new(router(app.clone()), &app);
    move |connection| door.clone().converse(connection)
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
    let all = every_route().into_iter();
    all.fold(Router::new(), |router, route| {
        router.route(route.path, route.handler)
    })
    .fallback(mount::answer)
    .method_not_allowed_fallback(error::unknown_method)
    .layer(axum::middleware::from_fn_with_state(
        app.clone(),
        guard::admit,
    ))
    .with_state(app)
}

/// Every route. A test checks that the OpenAPI document has the same ones.
fn every_route() -> Vec<Route> {
    const TOPIC: &str = "/v1/topics/{topic}";
    const PARTITION: &str = "/v1/topics/{topic}/partitions/{partition}/messages";
    const CONSUMER: &str = "/v1/topics/{topic}/consumers/{name}";
    const PROCESSOR: &str = "/v1/processors/{name}";
    const SCHEDULE: &str = "/v1/schedules/{name}";
    const ROUTE: &str = "/v1/routes/{*path}";
    const STATE: &str = "/v1/processors/{name}/state";
    const CONFIG: &str = "/v1/processors/{name}/config";
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
        get("/v1/hosts", on::get(host::list)),
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
        get("/v1/modules/{reference}/bytes", on::get(modules::bytes)),
        delete("/v1/modules/{reference}", on::delete(modules::remove)),
        put("/v1/modules/{reference}/tags/{tag}", on::put(modules::tag)),
        delete(
            "/v1/modules/{reference}/tags/{tag}",
            on::delete(modules::untag),
        ),
        get("/v1/processors", on::get(processors::list)),
        get(PROCESSOR, on::get(processors::show)),
        put(PROCESSOR, on::put(processors::deploy)),
        patch(PROCESSOR, on::patch(deploying::amend)),
        delete(PROCESSOR, on::delete(processors::remove)),
        post(
            "/v1/processors/{name}/rollback",
            on::post(processors::rollback),
        ),
        get(CONFIG, on::get(configuring::show)),
        put(CONFIG, on::put(configuring::replace)),
        patch(CONFIG, on::patch(configuring::amend)),
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
        get("/v1/routes", on::get(routes::list)),
        get(ROUTE, on::get(routes::show)),
        put(ROUTE, on::put(routes::put)),
        delete(ROUTE, on::delete(routes::remove)),
        post(ROUTE, on::post(routes::act)),
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
