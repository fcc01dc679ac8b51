//! Messages that wait in topics that nobody reads: they are reported, and not lost silently.

use std::sync::Arc;

use millrace_broker::{DeadLetterError, LeftBehind, Loss, RedriveRequest, TopicDeleteError};
use millrace_model::ProcessorSpec;

use crate::rig::{Rig, Say, processor, text, topic};

/// A processor that parks `wait` and gives up `bad`, and a similar one that reads `more` instead.
async fn parking() -> (Rig, ProcessorSpec) {
    let rig = Rig::deployed(
        1,
        |spec| spec.retry.delay_max_ms = 60_000,
        |batch, message| match text(batch.value(message)).as_str() {
            "wait" => Say::Retry(Some(60_000)),
            "bad" => Say::Reject("bad"),
            _ => Say::Pass,
        },
    )
    .await;
    rig.topic("more", 1).await;
    let status = rig
        .session
        .processors()
        .processor(&processor("p"))
        .await
        .unwrap();
    let mut other = status.processor.current().unwrap().spec.clone();
    other.topics = vec![topic("more")];
    (rig, other)
}

fn left(name: &str, parked: u64, unread: u64) -> LeftBehind {
    LeftBehind {
        topic: topic(name),
        parked,
        unread,
    }
}

async fn left_behind(rig: &Rig) -> Vec<LeftBehind> {
    let status = rig.session.processors().processor(&processor("p")).await;
    status.unwrap().left_behind
}

/// What would be lost by deleting a topic.
async fn losses(rig: &Rig, name: &str) -> Vec<Loss> {
    match rig
        .session
        .catalogue()
        .delete_topic(&topic(name), false)
        .await
    {
        Err(TopicDeleteError::Missed { losses, .. }) => losses,
        other => panic!("{other:?}"),
    }
}

fn waiting(name: &str, messages: u64, deployed: bool) -> Loss {
    Loss::Waiting {
        processor: processor(name),
        messages,
        deployed,
    }
}

#[tokio::test]
async fn parked_messages_of_a_topic_that_is_read_no_longer_are_told_of_and_not_lost_silently() {
    let (rig, other) = parking().await;
    let name = processor("p");
    rig.produce(&[("a", "wait"), ("b", "wait"), ("c", "on")])
        .await;
    rig.until(|all| all[0].parked == 2).await;
    assert_eq!(left_behind(&rig).await, []);
    rig.deploy(other).await;
    assert_eq!(left_behind(&rig).await, [left("in", 2, 0)]);
    let objections = losses(&rig, "in").await;
    // The first revision is also the way back.
    assert!(
        objections.contains(&waiting("p", 2, true)),
        "{objections:?}"
    );
    assert!(
        objections
            .iter()
            .any(|loss| matches!(loss, Loss::WayBack { revision: 1, .. })),
        "{objections:?}"
    );

    // They also wait for a deleted processor, across a restart.
    rig.session
        .processors()
        .delete_processor(&name)
        .await
        .unwrap();
    let left_waiting = rig.session.catalogue().left_behind(&name).await.unwrap();
    assert_eq!(left_waiting, [left("in", 2, 0)]);
    let next = Rig::on(Arc::clone(&rig.engine), Arc::clone(&rig.modules)).await;
    assert_eq!(losses(&next, "in").await, [waiting("p", 2, false)]);
    let lost = next
        .session
        .catalogue()
        .delete_topic(&topic("in"), true)
        .await;
    assert_eq!(lost.unwrap(), [waiting("p", 2, false)]);
    assert_eq!(
        next.session.catalogue().left_behind(&name).await.unwrap(),
        []
    );
}

#[tokio::test]
async fn letters_that_were_sent_again_and_lie_unread_are_left_behind_as_well() {
    let (rig, other) = parking().await;
    let name = processor("p");
    rig.produce(&[("a", "bad"), ("b", "bad")]).await;
    rig.hold("in.p.dlq", &["bad", "bad"]).await;
    rig.session.processors().pause(&name).await.unwrap();
    let sent = rig
        .session
        .dead_letters()
        .redrive(&name, RedriveRequest::all())
        .await;
    assert_eq!(sent.unwrap().sent, 2);
    rig.deploy(other).await;
    assert_eq!(left_behind(&rig).await, [left("in.p.redrive", 0, 2)]);
    rig.session
        .processors()
        .delete_processor(&name)
        .await
        .unwrap();
    assert_eq!(losses(&rig, "in.p.redrive").await, [waiting("p", 2, false)]);
    // With the processor's own topics, they are meant to be deleted.
    rig.session
        .catalogue()
        .delete_topics_of(&name)
        .await
        .unwrap();
    assert!(
        rig.session
            .catalogue()
            .topic(&topic("in.p.redrive"))
            .is_none()
    );
}

#[tokio::test]
async fn letters_of_a_processor_that_is_deleted_are_not_sent_and_one_that_never_was_is_unknown() {
    let (rig, _) = parking().await;
    let name = processor("p");
    rig.produce(&[("a", "bad")]).await;
    rig.hold("in.p.dlq", &["bad"]).await;
    rig.session
        .processors()
        .delete_processor(&name)
        .await
        .unwrap();
    let refused = rig
        .session
        .dead_letters()
        .redrive(&name, RedriveRequest::all())
        .await;
    assert!(
        matches!(refused, Err(DeadLetterError::Deleted(_))),
        "{refused:?}"
    );
    let nobody = processor("nobody");
    let refused = rig
        .session
        .dead_letters()
        .redrive(&nobody, RedriveRequest::all())
        .await;
    assert!(
        matches!(refused, Err(DeadLetterError::UnknownProcessor(_))),
        "{refused:?}"
    );
    assert_eq!(rig.values("in.p.redrive").await.len(), 0);
}

#[tokio::test]
async fn letters_of_a_topic_that_is_read_no_longer_are_counted() {
    let (rig, other) = parking().await;
    let name = processor("p");
    rig.produce(&[("a", "bad"), ("b", "bad")]).await;
    rig.hold("in.p.dlq", &["bad", "bad"]).await;
    rig.deploy(other).await;
    let refused = rig
        .session
        .dead_letters()
        .redrive(&name, RedriveRequest::all())
        .await;
    assert!(
        matches!(refused, Err(DeadLetterError::NotAnInput { .. })),
        "{refused:?}"
    );
    let message = vec![crate::rig::message("c", "bad")];
    rig.session
        .messages()
        .produce(&topic("more"), message)
        .await
        .unwrap();
    rig.hold("more.p.dlq", &["bad"]).await;
    let done = rig
        .session
        .dead_letters()
        .redrive(&name, RedriveRequest::all())
        .await;
    let done = done.unwrap();
    assert_eq!((done.sent, done.not_read), (1, 2));
}
