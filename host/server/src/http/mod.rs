//! The HTTP door: routes, bounds, and the one shape of all errors.
//!
//! A request arrives on a [`connection`], passes [`guard`] (callers, unread bodies, request ids,
//! panics) and reaches the file of its noun. The broker's answers are turned into JSON here and
//! nowhere else.

mod about;
mod answers;
mod app;
mod auditing;
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
mod credentials;
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
mod principals;
mod processors;
mod produce;
mod proving;
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

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::http::Method;
use axum::routing::{self as on, MethodRouter};
use millrace_broker::Verb;

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

/// What the requests to each path do, by method: those that take a right.
static VERBS: LazyLock<HashMap<&'static str, Vec<(Method, Verb)>>> = LazyLock::new(|| {
    let mut verbs: HashMap<&str, Vec<(Method, Verb)>> = HashMap::new();
    for route in every_route() {
        if let Some(verb) = route.verb {
            verbs
                .entry(route.path)
                .or_default()
                .push((route.method, verb));
        }
    }
    verbs
});

/// What a request to a path does; `None` if it takes no right, or nothing answers it.
fn verb_of(method: &Method, path: &str) -> Option<Verb> {
    // The framework answers HEAD by what answers GET.
    let method = match *method {
        Method::HEAD => &Method::GET,
        _ => method,
    };
    let verbs = VERBS.get(path)?;
    let found = verbs.iter().find(|(of, _)| of == method);
    found.map(|(_, verb)| *verb)
}

struct Route {
    method: Method,
    path: &'static str,
    /// What it does; `None` if it takes no right.
    verb: Option<Verb>,
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
    /// Takes no right.
    const OPEN: Option<Verb> = None;
    const PRINCIPAL: &str = "/v1/access/principals/{name}";
    const IDENTITY: &str = "/v1/access/principals/{name}/identities/{identity}";
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
    let get = |path, verb, handler| Route::new(Method::GET, path, verb, handler);
    let post = |path, verb, handler| Route::new(Method::POST, path, verb, handler);
    let put = |path, verb, handler| Route::new(Method::PUT, path, verb, handler);
    let delete = |path, verb, handler| Route::new(Method::DELETE, path, verb, handler);
    let patch = |path, verb, handler| Route::new(Method::PATCH, path, verb, handler);
    vec![
        get("/health/live", OPEN, on::get(health::live)),
        get("/health/ready", OPEN, on::get(health::ready)),
        get(
            "/metrics",
            Some(Verb::ReadMetrics),
            on::get(health::metrics),
        ),
        get("/openapi.json", OPEN, on::get(openapi::document)),
        get("/v1/host", Some(Verb::SeeHost), on::get(host::show)),
        get("/v1/hosts", Some(Verb::SeeHost), on::get(host::list)),
        get("/v1/access/self", OPEN, on::get(principals::oneself)),
        get(
            "/v1/access/check",
            Some(Verb::SeePrincipal),
            on::get(principals::check),
        ),
        get(
            "/v1/access/audit",
            Some(Verb::ReadAudit),
            on::get(principals::audit),
        ),
        get(
            "/v1/access/principals",
            Some(Verb::SeePrincipal),
            on::get(principals::list),
        ),
        get(
            PRINCIPAL,
            Some(Verb::SeePrincipal),
            on::get(principals::show),
        ),
        put(
            PRINCIPAL,
            Some(Verb::SetPrincipal),
            on::put(principals::put),
        ),
        delete(
            PRINCIPAL,
            Some(Verb::DeletePrincipal),
            on::delete(principals::remove),
        ),
        patch(
            "/v1/access/principals/{name}/quotas",
            Some(Verb::SetPrincipal),
            on::patch(principals::limit),
        ),
        post(
            "/v1/access/principals/{name}/grant",
            Some(Verb::SetPrincipal),
            on::post(principals::grant),
        ),
        post(
            "/v1/access/principals/{name}/withdraw",
            Some(Verb::SetPrincipal),
            on::post(principals::withdraw),
        ),
        post(
            "/v1/access/principals/{name}/tokens",
            Some(Verb::MakeToken),
            on::post(credentials::make_token),
        ),
        post(
            "/v1/access/principals/{name}/tokens/{token}/rotate",
            Some(Verb::MakeToken),
            on::post(credentials::rotate_token),
        ),
        delete(
            "/v1/access/principals/{name}/tokens/{token}",
            Some(Verb::RevokeToken),
            on::delete(credentials::revoke_token),
        ),
        put(
            "/v1/access/principals/{name}/password",
            Some(Verb::SetPassword),
            on::put(credentials::set_password),
        ),
        delete(
            "/v1/access/principals/{name}/password",
            Some(Verb::RemovePassword),
            on::delete(credentials::remove_password),
        ),
        put(
            IDENTITY,
            Some(Verb::SetPrincipal),
            on::put(principals::add_identity),
        ),
        delete(
            IDENTITY,
            Some(Verb::SetPrincipal),
            on::delete(principals::remove_identity),
        ),
        get("/v1/topics", Some(Verb::SeeTopic), on::get(topics::list)),
        post(
            "/v1/topics",
            Some(Verb::CreateTopic),
            on::post(topics::create),
        ),
        get(TOPIC, Some(Verb::SeeTopic), on::get(topics::show)),
        delete(TOPIC, Some(Verb::DeleteTopic), on::delete(topics::remove)),
        patch(TOPIC, Some(Verb::ChangeTopic), on::patch(lifetime::change)),
        post(
            "/v1/topics/{topic}/trim",
            Some(Verb::Trim),
            on::post(lifetime::trim),
        ),
        post(
            "/v1/topics/{topic}/messages",
            Some(Verb::Produce),
            on::post(produce::produce),
        ),
        get(
            "/v1/topics/{topic}/messages",
            Some(Verb::Read),
            on::get(fetch_all::fetch_all),
        ),
        get(
            "/v1/topics/{topic}/delayed",
            Some(Verb::SeeDelayed),
            on::get(delays::list),
        ),
        delete(
            "/v1/topics/{topic}/delayed/{id}",
            Some(Verb::CancelDelayed),
            on::delete(delays::cancel),
        ),
        get(PARTITION, Some(Verb::Read), on::get(fetch::fetch)),
        get(
            "/v1/topics/{topic}/partitions/{partition}/messages/{offset}/value",
            Some(Verb::Read),
            on::get(fetch::value),
        ),
        get(
            "/v1/consumers",
            Some(Verb::SeeConsumers),
            on::get(consumers::list_all),
        ),
        get(
            "/v1/topics/{topic}/consumers",
            Some(Verb::SeeConsumers),
            on::get(consumers::list_of_topic),
        ),
        get(CONSUMER, Some(Verb::SeeConsumers), on::get(consumers::show)),
        put(
            CONSUMER,
            Some(Verb::KeepPositions),
            on::put(consumers::make),
        ),
        delete(
            CONSUMER,
            Some(Verb::DeleteConsumer),
            on::delete(consumers::remove),
        ),
        post(
            "/v1/topics/{topic}/consumers/{name}/reset",
            Some(Verb::ResetConsumer),
            on::post(consumers::reset),
        ),
        get(
            "/v1/topics/{topic}/consumers/{name}/messages",
            Some(Verb::Read),
            on::get(consuming::messages),
        ),
        post(
            "/v1/topics/{topic}/consumers/{name}/commit",
            Some(Verb::KeepPositions),
            on::post(consuming::commit),
        ),
        get("/v1/damage", Some(Verb::SeeHost), on::get(damage::list)),
        post(
            "/v1/topics/{topic}/partitions/{partition}/damage/accept",
            Some(Verb::AcceptDamage),
            on::post(damage::accept),
        ),
        post("/v1/backup", Some(Verb::BackUp), on::post(backup::make)),
        post(
            "/v1/modules",
            Some(Verb::UploadModule),
            on::post(modules::upload),
        ),
        get("/v1/modules", Some(Verb::SeeModule), on::get(modules::list)),
        get(
            "/v1/modules/{reference}",
            Some(Verb::SeeModule),
            on::get(modules::show),
        ),
        get(
            "/v1/modules/{reference}/bytes",
            Some(Verb::ReadModule),
            on::get(modules::bytes),
        ),
        delete(
            "/v1/modules/{reference}",
            Some(Verb::DeleteModule),
            on::delete(modules::remove),
        ),
        put(
            "/v1/modules/{reference}/tags/{tag}",
            Some(Verb::TagModule),
            on::put(modules::tag),
        ),
        delete(
            "/v1/modules/{reference}/tags/{tag}",
            Some(Verb::TagModule),
            on::delete(modules::untag),
        ),
        get(
            "/v1/processors",
            Some(Verb::SeeProcessor),
            on::get(processors::list),
        ),
        get(
            PROCESSOR,
            Some(Verb::SeeProcessor),
            on::get(processors::show),
        ),
        put(
            PROCESSOR,
            Some(Verb::DeployProcessor),
            on::put(processors::deploy),
        ),
        patch(
            PROCESSOR,
            Some(Verb::DeployProcessor),
            on::patch(deploying::amend),
        ),
        delete(
            PROCESSOR,
            Some(Verb::DeleteProcessor),
            on::delete(processors::remove),
        ),
        post(
            "/v1/processors/{name}/rollback",
            Some(Verb::RollBackProcessor),
            on::post(processors::rollback),
        ),
        get(CONFIG, Some(Verb::SeeProcessor), on::get(configuring::show)),
        put(
            CONFIG,
            Some(Verb::DeployProcessor),
            on::put(configuring::replace),
        ),
        patch(
            CONFIG,
            Some(Verb::DeployProcessor),
            on::patch(configuring::amend),
        ),
        post(
            "/v1/processors/{name}/pause",
            Some(Verb::PauseProcessor),
            on::post(processors::pause),
        ),
        post(
            "/v1/processors/{name}/resume",
            Some(Verb::PauseProcessor),
            on::post(processors::resume),
        ),
        get(
            "/v1/processors/{name}/logs",
            Some(Verb::ReadLogs),
            on::get(processors::logs),
        ),
        get(
            "/v1/processors/{name}/history",
            Some(Verb::SeeProcessor),
            on::get(history::show),
        ),
        get(
            "/v1/processors/{name}/parked",
            Some(Verb::SeeParked),
            on::get(parked::list),
        ),
        post(
            "/v1/processors/{name}/parked/try-now",
            Some(Verb::ActOnParked),
            on::post(parked::try_now),
        ),
        post(
            "/v1/processors/{name}/parked/give-up",
            Some(Verb::ActOnParked),
            on::post(parked::give_up),
        ),
        post(
            "/v1/processors/{name}/canary",
            Some(Verb::DeployProcessor),
            on::post(trials::canary),
        ),
        post(
            "/v1/processors/{name}/promote",
            Some(Verb::DeployProcessor),
            on::post(trials::promote),
        ),
        get(SHADOW, Some(Verb::SeeTrial), on::get(trials::shadow)),
        post(
            "/v1/processors/{name}/replay",
            Some(Verb::Replay),
            on::post(replays::make),
        ),
        delete(
            SHADOW,
            Some(Verb::EndShadow),
            on::delete(trials::end_shadow),
        ),
        get(STATE, Some(Verb::ReadState), on::get(states::show)),
        post(STATE, Some(Verb::WriteState), on::post(states::write)),
        get(
            "/v1/processors/{name}/state/key",
            Some(Verb::ReadState),
            on::get(lookups::key),
        ),
        get(
            "/v1/processors/{name}/state/totals",
            Some(Verb::ReadState),
            on::get(lookups::totals),
        ),
        get(
            "/v1/schedules",
            Some(Verb::SeeSchedule),
            on::get(schedules::list),
        ),
        get(SCHEDULE, Some(Verb::SeeSchedule), on::get(schedules::show)),
        put(SCHEDULE, Some(Verb::SetSchedule), on::put(schedules::put)),
        delete(
            SCHEDULE,
            Some(Verb::DeleteSchedule),
            on::delete(schedules::remove),
        ),
        post(
            "/v1/schedules/{name}/pause",
            Some(Verb::PauseSchedule),
            on::post(schedules::pause),
        ),
        post(
            "/v1/schedules/{name}/resume",
            Some(Verb::PauseSchedule),
            on::post(schedules::resume),
        ),
        post(
            "/v1/schedules/{name}/run",
            Some(Verb::RunSchedule),
            on::post(schedules::run),
        ),
        get("/v1/routes", Some(Verb::SeeRoute), on::get(routes::list)),
        get(ROUTE, Some(Verb::SeeRoute), on::get(routes::show)),
        put(ROUTE, Some(Verb::SetRoute), on::put(routes::put)),
        delete(ROUTE, Some(Verb::DeleteRoute), on::delete(routes::remove)),
        post(ROUTE, Some(Verb::RollBackRoute), on::post(routes::act)),
        get(
            DEAD,
            Some(Verb::ReadDeadLetters),
            on::get(dead_letters::list),
        ),
        get(
            "/v1/processors/{name}/dead-letters/groups",
            Some(Verb::ReadDeadLetters),
            on::get(dead_letters::groups),
        ),
        get(
            "/v1/processors/{name}/dead-letters/audit",
            Some(Verb::ReadDeadLetters),
            on::get(dead_letters::work::audit),
        ),
        post(
            "/v1/processors/{name}/dead-letters/dry-run",
            Some(Verb::Redrive),
            on::post(dead_letters::work::dry_run),
        ),
        post(
            "/v1/processors/{name}/dead-letters/{topic}/{partition}/{offset}/edit",
            Some(Verb::Redrive),
            on::post(dead_letters::work::edit),
        ),
        get(
            "/v1/processors/{name}/dead-letters/{topic}/{partition}/{offset}",
            Some(Verb::ReadDeadLetters),
            on::get(dead_letters::show),
        ),
        post(
            "/v1/processors/{name}/dead-letters/redrive",
            Some(Verb::Redrive),
            on::post(dead_letters::work::redrive),
        ),
    ]
}

impl Route {
    fn new(
        method: Method,
        path: &'static str,
        verb: Option<Verb>,
        handler: MethodRouter<Arc<App>>,
    ) -> Self {
        Self {
            method,
            path,
            verb,
            handler,
        }
    }
}
