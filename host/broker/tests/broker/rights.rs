//! What callers with few rights get at through processors: nothing that their rules do not give them.

use std::time::Duration;

use millrace_broker::{
    Caller, ConfigChange, NewToken, PrincipalError, ProcessorError, ReplayRequest, Session,
};
use millrace_model::{PrincipalName, Rule, Timestamp, TokenName};

use crate::revisions::marker;
use crate::rig::{Rig, message, processor, spec, topic};

fn rules(texts: &[&str]) -> Vec<Rule> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn name(text: &str) -> PrincipalName {
    PrincipalName::parse(text).unwrap()
}

/// A session of a principal with these rules, and its token.
async fn caller(rig: &Rig, who: &str, texts: &[&str]) -> Session {
    let access = rig.session.access();
    access
        .set_principal(&name(who), rules(texts))
        .await
        .unwrap();
    let new = NewToken {
        name: TokenName::parse("one").unwrap(),
        scope: None,
        expires_at: None,
    };
    let made = access.make_token(&name(who), new).await.unwrap();
    let proved = access.prove(made.text.reveal()).unwrap();
    rig.broker
        .session(Caller::unnamed().standing(proved.standing))
}

#[track_caller]
fn is_forbidden<T: std::fmt::Debug>(done: Result<T, ProcessorError>, missing: &str) {
    let error = done.unwrap_err();
    assert!(matches!(error, ProcessorError::Forbidden(_)), "{error}");
    assert!(error.to_string().contains(missing), "{error}");
}

#[tokio::test]
async fn who_operates_takes_nothing_up_that_was_taken_away_from_a_processor() {
    let rig = Rig::start(1).await;
    let (a, b) = (marker(&rig, "a").await, marker(&rig, "b").await);
    let mut wide = spec(a);
    wide.grants.topics = vec![topic("salaries")];
    let salaries = rig.session.catalogue();
    let new = millrace_broker::NewTopic {
        name: topic("salaries"),
        partitions: 1,
        durability: Default::default(),
        partitioner: None,
        settings: Default::default(),
    };
    salaries.create_topic(new).await.unwrap();
    rig.deploy(wide).await;
    rig.deploy(spec(b)).await;
    let ops = caller(&rig, "ops", &["operator on processor:p"]).await;
    let back = ops.processors().rollback(&processor("p"), Some(1)).await;
    is_forbidden(back, "produce on topic:salaries");
    // Back to a revision that needs nothing further is what operators are for.
    rig.deploy(spec(a)).await;
    let back = ops.processors().rollback(&processor("p"), Some(2)).await;
    assert_eq!(back.unwrap().current, 2);
}

#[tokio::test]
async fn settings_of_a_component_take_the_rights_that_it_has() {
    let rig = Rig::start(1).await;
    let a = marker(&rig, "a").await;
    rig.deploy(spec(a)).await;
    let narrow = caller(&rig, "narrow", &["deploy on processor:p"]).await;
    let change = ConfigChange::default();
    let changed = narrow.processors().configure(&processor("p"), change).await;
    is_forbidden(changed, "consume on topic:in");
}

#[tokio::test]
async fn a_replay_has_a_name_that_its_maker_may_deploy() {
    let rig = Rig::start(1).await;
    let a = marker(&rig, "a").await;
    rig.deploy(spec(a)).await;
    let all = [
        "deploy on processor:p",
        "consume on topic:in",
        "produce on topic:*",
    ];
    let maker = caller(&rig, "maker", &all).await;
    let into = topic("in");
    let produced = rig
        .session
        .messages()
        .produce(&into, vec![message("k", "v")]);
    produced.await.unwrap();
    for into in [None, Some(processor("billing"))] {
        let request = ReplayRequest {
            revision: None,
            from: Timestamp(0),
            until: Timestamp(100),
            into: topic("again"),
            name: into,
        };
        let made = maker.processors().replay(&processor("p"), request).await;
        is_forbidden(made, "deploy on processor:");
    }
}

#[tokio::test]
async fn a_viewer_sees_how_a_shadow_does_and_no_messages() {
    let rig = Rig::start(1).await;
    let (a, b) = (marker(&rig, "a").await, marker(&rig, "b").await);
    rig.deploy(spec(a)).await;
    let shadow = rig.session.processors();
    shadow
        .deploy_shadow(&processor("p"), spec(b))
        .await
        .unwrap();
    let viewer = caller(&rig, "viewer", &["viewer"]).await;
    let reader = caller(&rig, "reader", &["viewer", "consumer on topic:*"]).await;
    for number in 0..10 {
        let new = message(&number.to_string(), "secret");
        let into = topic("in");
        let produced = rig.session.messages().produce(&into, vec![new]);
        produced.await.unwrap();
    }
    for _ in 0..5_000 {
        let report = reader.processors().shadow_report(&processor("p")).unwrap();
        if !report.samples.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let seen = reader.processors().shadow_report(&processor("p")).unwrap();
    assert!(!seen.samples.is_empty());
    let seen = viewer.processors().shadow_report(&processor("p")).unwrap();
    assert!(seen.samples.is_empty() && seen.compared > 0);
}

#[tokio::test]
async fn a_change_is_not_made_with_credentials_that_ended_before_its_turn() {
    let rig = Rig::start(1).await;
    let access = rig.session.access();
    caller(&rig, "root", &["admin"]).await;
    let leaked = caller(&rig, "leaked", &["admin"]).await;
    let token = TokenName::parse("one").unwrap();
    access.revoke_token(&name("leaked"), &token).await.unwrap();
    let door = name("back-door");
    let changed = leaked.access().set_principal(&door, rules(&["admin"]));
    assert!(matches!(changed.await, Err(PrincipalError::Ended)));
    let unknown = access.principal(&name("back-door"));
    assert!(matches!(unknown, Err(PrincipalError::Unknown(_))));
}

#[tokio::test]
async fn the_first_principal_keeps_no_credentials_of_one_that_had_its_name() {
    let rig = Rig::start(1).await;
    let access = rig.session.access();
    access
        .set_principal(&name("admin"), rules(&["viewer"]))
        .await
        .unwrap();
    let new = NewToken {
        name: TokenName::parse("old").unwrap(),
        scope: None,
        expires_at: None,
    };
    let old = access.make_token(&name("admin"), new).await.unwrap();
    let first = access.first().unwrap().unwrap();
    let text = first.token().clone();
    assert!(access.begin(first).await.unwrap());
    assert!(access.prove(text.reveal()).is_ok());
    assert!(access.prove(old.text.reveal()).is_err());
}
