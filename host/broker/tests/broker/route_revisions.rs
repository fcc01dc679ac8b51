//! Routes over time: revisions, canaries, components that do not load at once, and several hosts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use millrace_broker::handler::{HTTP_BODY_PARTS_MAX, HttpRequest};
use millrace_broker::{AdmitError, BrokerLimits, CallError, ModuleError, RouteError, RouteStatus};
use millrace_model::{ChangeKind, Digest, RoutePath, RouteSpec, SystemClock};
use tokio::sync::mpsc;

use crate::rig::{Export, Page, Rig};
use crate::two_hosts::until;

fn path(text: &str) -> RoutePath {
    RoutePath::parse(text).unwrap()
}

fn spec(module: Digest) -> RouteSpec {
    RouteSpec {
        module,
        grants: Default::default(),
        config: Default::default(),
        limits: Default::default(),
        breaker: Default::default(),
        public: false,
    }
}

async fn upload(rig: &Rig, name: &'static str, page: &Arc<Page>) -> RouteSpec {
    spec(rig.upload(name, Export::Page(Arc::clone(page))).await)
}

/// A second host on the first one's store.
async fn beside(rig: &Rig) -> Rig {
    let (clock, modules) = (Arc::new(SystemClock::new()), Arc::clone(&rig.modules));
    let engine = rig.engine.second_host();
    Rig::beside(clock, engine, modules, BrokerLimits::default()).await
}

/// The header of the page that answers; why none does otherwise.
async fn asked(rig: &Rig, route: &str) -> String {
    let (sender, body) = mpsc::channel(HTTP_BODY_PARTS_MAX);
    drop(sender);
    let request = HttpRequest {
        method: "GET".to_owned(),
        target: route.to_owned(),
        authority: "localhost".to_owned(),
        headers: Vec::new(),
        body,
    };
    let served = rig.session.routes().serve(&path(route), request).await;
    match served.answer {
        Ok(answer) => String::from_utf8_lossy(&answer.headers[0].1).into_owned(),
        Err(error) => error.to_string(),
    }
}

/// How many of this many requests each page answers.
async fn answers(rig: &Rig, route: &str, requests: usize) -> BTreeMap<String, usize> {
    let mut answers = BTreeMap::new();
    for _ in 0..requests {
        *answers.entry(asked(rig, route).await).or_default() += 1;
    }
    answers
}

fn status(rig: &Rig, route: &str) -> Option<RouteStatus> {
    rig.session.routes().route(&path(route))
}

/// The numbers of the current revision and the canary.
fn numbers(rig: &Rig, route: &str) -> Option<(u32, Option<u32>)> {
    let route = status(rig, route)?.route;
    Some((route.current, route.on_trial()))
}

fn busy() -> AdmitError {
    AdmitError::Busy {
        reason: "others are loaded first".to_owned(),
        retry_after_s: 1,
    }
}

fn trap() -> CallError {
    CallError::Trap {
        message: "unreachable".to_owned(),
        backtrace: String::new(),
    }
}

const PATIENCE: Duration = Duration::from_secs(20);

async fn soon<T>(work: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(PATIENCE, work).await;
    done.expect("it waits for a load")
}

#[tokio::test]
async fn a_component_that_could_not_be_loaded_for_a_passing_reason_is_loaded_later() {
    let rig = Rig::start(1).await;
    let page = Page::of("one");
    let spec = upload(&rig, "one", &page).await;
    rig.session
        .routes()
        .set_route(&path("/a"), spec)
        .await
        .unwrap();
    let failed = AdmitError::Host("too many open files".to_owned());
    *page.load_errors.lock() = vec![failed, busy()];
    let again = Rig::on(Arc::clone(&rig.engine), Arc::clone(&rig.modules)).await;
    let problem = status(&again, "/a").unwrap().problem;
    let loads = page.begun.load(Ordering::SeqCst);
    assert!(problem.is_some_and(|why| why.contains("loaded first")) || loads > 2);
    until("it is loaded", async || asked(&again, "/a").await == "one").await;
    assert_eq!(page.begun.load(Ordering::SeqCst), 4);
    assert_eq!(status(&again, "/a").unwrap().problem, None);
}

#[tokio::test]
async fn a_component_that_cannot_be_loaded_is_refused_when_its_route_is_set() {
    let rig = Rig::start(1).await;
    let page = Page::of("one");
    let spec = upload(&rig, "one", &page).await;
    *page.load_errors.lock() = vec![busy()];
    let routes = rig.session.routes();
    let refused = routes.set_route(&path("/a"), spec.clone()).await;
    assert!(matches!(refused, Err(RouteError::Admit(_))), "{refused:?}");
    assert_eq!(status(&rig, "/a"), None);
    routes.set_route(&path("/a"), spec).await.unwrap();
}

#[tokio::test]
async fn a_slow_load_of_one_route_delays_no_other_and_no_change() {
    let one = Rig::start(1).await;
    let (slow, quick) = (Page::slow("slow"), Page::of("quick"));
    let slow_spec = upload(&one, "slow", &slow).await;
    let quick_spec = upload(&one, "quick", &quick).await;
    let other = beside(&one).await;
    slow.may_load.add_permits(1);
    let routes = one.session.routes();
    routes.set_route(&path("/a"), slow_spec).await.unwrap();
    until("the other host loads it", async || {
        slow.begun.load(Ordering::SeqCst) == 2
    })
    .await;
    // The first host may change what the other one is still loading something for, and the other one may too.
    soon(async {
        routes
            .set_route(&path("/b"), quick_spec.clone())
            .await
            .unwrap();
        let routes = other.session.routes();
        routes.set_route(&path("/c"), quick_spec).await.unwrap();
        until("the other host follows", async || {
            asked(&other, "/b").await == "quick" && asked(&one, "/c").await == "quick"
        })
        .await;
    })
    .await;
    assert_eq!(status(&other, "/a"), None, "it is not loaded yet");
    slow.may_load.add_permits(1);
    until("it is loaded", async || asked(&other, "/a").await == "slow").await;
}

#[tokio::test]
async fn a_request_waits_for_a_route_that_another_host_has_just_set() {
    let one = Rig::start(1).await;
    let page = Page::slow("page");
    let spec = upload(&one, "page", &page).await;
    let other = beside(&one).await;
    let routes = other.session.routes();
    assert_eq!(routes.found("/a/b").await, None);
    page.may_load.add_permits(1);
    let set = one.session.routes();
    set.set_route(&path("/a"), spec).await.unwrap();
    until("the other host hears of it", async || {
        asked(&other, "/a").await == "route /a cannot answer now: it is being loaded"
    })
    .await;
    let session = other.session.clone();
    let waiting = tokio::spawn(async move { session.routes().found("/a/b").await });
    until("the other host loads it", async || {
        page.begun.load(Ordering::SeqCst) == 2
    })
    .await;
    assert!(!waiting.is_finished(), "it is not loaded yet");
    page.may_load.add_permits(1);
    assert_eq!(soon(waiting).await.unwrap(), Some(path("/a")));
    assert_eq!(asked(&other, "/a").await, "page");
    assert_eq!(routes.found("/b").await, None);
}

#[tokio::test]
async fn a_host_that_has_not_heard_of_a_change_does_not_take_it_for_no_change() {
    let one = Rig::start(1).await;
    let (old, new) = (Page::of("old"), Page::of("new"));
    let old = upload(&one, "old", &old).await;
    let new = upload(&one, "new", &new).await;
    let routes = one.session.routes();
    routes.set_route(&path("/a"), old.clone()).await.unwrap();
    let other = beside(&one).await;
    assert_eq!(numbers(&other, "/a"), Some((1, None)));
    other.engine.deafen(true);
    routes.set_route(&path("/a"), new).await.unwrap();
    let session = other.session.clone();
    let setting = tokio::spawn(async move { session.routes().set_route(&path("/a"), old).await });
    // It looks like what the other host knows, and is what it had been.
    tokio::time::sleep(Duration::from_millis(100)).await;
    other.engine.deafen(false);
    let set = setting.await.unwrap().unwrap();
    assert_eq!(set.route.current, 3);
    until("both know it", async || {
        asked(&one, "/a").await == "old" && asked(&other, "/a").await == "old"
    })
    .await;
}

#[tokio::test]
async fn a_canary_answers_its_share_and_both_revisions_survive_a_restart_and_are_followed() {
    let rig = Rig::start(1).await;
    let one = upload(&rig, "one", &Page::of("one")).await;
    let two = upload(&rig, "two", &Page::of("two")).await;
    let routes = rig.session.routes();
    let alone = routes.set_canary(&path("/a"), two.clone(), 10).await;
    assert!(matches!(alone, Err(RouteError::Unknown(_))), "{alone:?}");
    routes.set_route(&path("/a"), one).await.unwrap();
    routes
        .set_canary(&path("/a"), two.clone(), 10)
        .await
        .unwrap();
    let shares = |canary: usize| {
        let both = [("one".to_owned(), 100 - canary), ("two".to_owned(), canary)];
        BTreeMap::from(both)
    };
    assert_eq!(answers(&rig, "/a", 100).await, shares(10));
    until("all calls are counted", async || {
        let canary = status(&rig, "/a").unwrap().canary.unwrap();
        (canary.requests.requests, canary.current.requests) == (10, 90)
    })
    .await;

    let other = beside(&rig).await;
    assert_eq!(answers(&other, "/a", 100).await, shares(10));
    routes.share_canary(&path("/a"), 40).await.unwrap();
    until("it is followed", async || {
        let canary = status(&other, "/a").unwrap().canary;
        canary.is_some_and(|canary| canary.canary.percent == 40)
    })
    .await;
    assert_eq!(answers(&other, "/a", 100).await, shares(40));

    let again = Rig::on(Arc::clone(&rig.engine), Arc::clone(&rig.modules)).await;
    assert_eq!(answers(&again, "/a", 100).await, shares(40));
    let routes = again.session.routes();
    routes.promote_canary(&path("/a"), false).await.unwrap();
    assert_eq!(asked(&again, "/a").await, "two");
    until("it is followed", async || {
        numbers(&other, "/a") == Some((2, None))
    })
    .await;
    routes
        .roll_back_route(&path("/a"), None, Some(2))
        .await
        .unwrap();
    assert_eq!(asked(&again, "/a").await, "one");
    let twice = routes.roll_back_route(&path("/a"), None, Some(2)).await;
    assert!(
        matches!(twice, Err(RouteError::OtherRevision { .. })),
        "{twice:?}"
    );
    // A module stays as long as a revision has it.
    let kept = again.session.catalogue().delete_module(two.module).await;
    let by = match kept {
        Err(ModuleError::InUse { by, .. }) => by,
        other => panic!("{other:?}"),
    };
    assert_eq!(by, ["route /a revision 2"]);
}

#[tokio::test]
async fn a_canary_that_fails_is_withdrawn_by_the_host_and_the_history_says_why() {
    let rig = Rig::start(1).await;
    let one = upload(&rig, "one", &Page::of("one")).await;
    let bad = Page::of("bad");
    *bad.failure.lock() = Some(trap());
    let two = upload(&rig, "two", &bad).await;
    let routes = rig.session.routes();
    routes.set_route(&path("/a"), one).await.unwrap();
    routes.set_canary(&path("/a"), two, 50).await.unwrap();
    let told = answers(&rig, "/a", 100).await;
    // A request that meets it before its failures are counted may fail as well.
    let failed: usize = told
        .iter()
        .filter(|(text, _)| *text != "one")
        .map(|(_, n)| n)
        .sum();
    assert!((5..10).contains(&failed), "{told:?}");
    until("it is withdrawn", async || {
        numbers(&rig, "/a") == Some((1, None))
    })
    .await;
    let route = status(&rig, "/a").unwrap().route;
    let last = route.changes.last().unwrap();
    assert_eq!(
        (last.what, last.by.as_deref()),
        (ChangeKind::Withdraw, Some("host"))
    );
    let why = last.text.as_deref().unwrap();
    assert!(
        why.contains("in a row failed") && why.contains("unreachable"),
        "{why}"
    );
}

#[tokio::test]
async fn what_the_current_revision_suffers_too_withdraws_no_canary() {
    let rig = Rig::start(1).await;
    let (page, other) = (Page::of("one"), Page::of("two"));
    for page in [&page, &other] {
        *page.failure.lock() = Some(trap());
    }
    let one = upload(&rig, "one", &page).await;
    let two = upload(&rig, "two", &other).await;
    let routes = rig.session.routes();
    routes.set_route(&path("/a"), one).await.unwrap();
    answers(&rig, "/a", 20).await;
    routes.set_canary(&path("/a"), two, 10).await.unwrap();
    answers(&rig, "/a", 200).await;
    let canary = status(&rig, "/a").unwrap().canary.unwrap();
    assert_eq!(canary.trouble, None);
    assert!(canary.requests.failed >= 19, "{canary:?}");
}

#[tokio::test]
async fn a_canary_that_cannot_be_loaded_here_leaves_all_requests_to_the_current_revision() {
    let rig = Rig::start(1).await;
    let bad = Page::of("bad");
    let one = upload(&rig, "one", &Page::of("one")).await;
    let two = upload(&rig, "two", &bad).await;
    let routes = rig.session.routes();
    routes.set_route(&path("/a"), one).await.unwrap();
    routes.set_canary(&path("/a"), two, 50).await.unwrap();
    let traps = || AdmitError::Start("it traps".to_owned());
    *bad.load_errors.lock() = vec![traps(), traps()];
    let again = Rig::on(Arc::clone(&rig.engine), Arc::clone(&rig.modules)).await;
    assert_eq!(
        answers(&again, "/a", 50).await,
        BTreeMap::from([("one".to_owned(), 50)])
    );
    let told = status(&again, "/a").unwrap();
    let problem = told.canary.unwrap().problem.unwrap();
    assert!(problem.contains("it traps"), "{problem}");
    let routes = again.session.routes();
    let refused = routes.promote_canary(&path("/a"), false).await;
    assert!(matches!(refused, Err(RouteError::Admit(_))), "{refused:?}");
    routes.share_canary(&path("/a"), 0).await.unwrap();
    assert_eq!(numbers(&again, "/a"), Some((1, None)));
}
