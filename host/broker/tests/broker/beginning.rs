//! Where a new processor starts: at the oldest message, or once where its first deployment says.

use std::sync::Arc;

use millrace_broker::{BeginAt, NextSpec, ProcessorError};
use millrace_model::{Offset, ProcessorSpec, Timestamp};

use crate::rig::{Rig, Say, message, per_message, processor, spec, topic};

async fn passing(rig: &Rig) -> ProcessorSpec {
    let module = rig.upload_handler("pass", per_message(|_, _| Say::Pass));
    spec(module.await)
}

async fn deploy(rig: &Rig, begin_at: BeginAt) -> Result<(), ProcessorError> {
    let next = NextSpec::from(passing(rig).await).beginning_at(Some(begin_at));
    rig.session
        .processors()
        .deploy(&processor("p"), next)
        .await
        .map(drop)
}

async fn produce_at(rig: &Rig, messages: &[(&str, u64)]) {
    for (value, at) in messages {
        let mut new = message("k", value);
        new.message.timestamp = Timestamp(*at);
        rig.session
            .messages()
            .produce(&topic("in"), vec![new])
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_processor_begins_where_its_first_deployment_says() {
    for (begin_at, expected) in [
        (BeginAt::Earliest, &["a", "b", "c", "new"][..]),
        (BeginAt::Latest, &["new"]),
        (BeginAt::Offset(Offset(1)), &["b", "c", "new"]),
        (BeginAt::Offset(Offset(99)), &["new"]),
        (BeginAt::Time(Timestamp(250)), &["c", "new"]),
        (BeginAt::Time(Timestamp(9_000)), &["new"]),
    ] {
        let rig = Rig::start(1).await;
        produce_at(&rig, &[("a", 100), ("b", 200), ("c", 300)]).await;
        deploy(&rig, begin_at).await.unwrap();
        produce_at(&rig, &[("new", 400)]).await;
        rig.settled().await;
        assert_eq!(rig.values("out").await, expected, "{begin_at:?}");
        assert!(rig.letters().await.is_empty());
    }
}

#[tokio::test]
async fn the_beginning_holds_over_restarts_where_nothing_came_and_counts_once() {
    let mut rig = Rig::start(3).await;
    for value in ["old-1", "old-2", "old-3", "old-4", "old-5", "old-6"] {
        rig.produce(&[(value, value)]).await;
    }
    deploy(&rig, BeginAt::Latest).await.unwrap();
    for round in ["x", "y"] {
        let (engine, modules) = (Arc::clone(&rig.engine), Arc::clone(&rig.modules));
        drop(rig);
        rig = Rig::on(engine, modules).await;
        let status = rig.until(|all| all.len() == 3).await;
        assert_eq!(status.iter().map(|one| one.lag).sum::<u64>(), 0, "{round}");
    }
    let keys: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    let messages: Vec<(&str, &str)> = keys
        .iter()
        .map(|key| (key.as_str(), key.as_str()))
        .collect();
    rig.produce(&messages).await;
    rig.settled().await;
    // An existing processor continues where it is.
    deploy(&rig, BeginAt::Offset(Offset(0))).await.unwrap();
    let mut changed = NextSpec::from(passing(&rig).await);
    changed = changed.beginning_at(Some(BeginAt::Earliest));
    rig.session
        .processors()
        .deploy(&processor("p"), changed)
        .await
        .unwrap();
    let more = passing(&rig).await;
    rig.deploy(ProcessorSpec {
        hops_max: Some(2),
        ..more
    })
    .await;
    rig.settled().await;
    let values: Vec<&str> = keys.iter().map(String::as_str).collect();
    rig.hold("out", &values).await;
}

#[tokio::test]
async fn a_processor_that_was_there_before_is_not_told_where_to_begin() {
    let rig = Rig::start(1).await;
    rig.deploy(passing(&rig).await).await;
    produce_at(&rig, &[("a", 100)]).await;
    rig.hold("out", &["a"]).await;
    rig.session
        .processors()
        .delete_processor(&processor("p"))
        .await
        .unwrap();
    let refused = deploy(&rig, BeginAt::Earliest).await.unwrap_err();
    assert!(
        refused.to_string().contains("will continue where it was"),
        "{refused}"
    );
    rig.deploy(passing(&rig).await).await;
    rig.settled().await;
    rig.hold("out", &["a"]).await;
}
