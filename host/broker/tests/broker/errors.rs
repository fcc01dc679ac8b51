//! Errors in code and text: the same condition gives the same error in every operation.

use std::time::Duration;

use millrace_broker::{
    AdmitError, Before, BeginAt, CallError, DeadLetterError, DelayedQuery, FetchRequest,
    ModuleError, ProcessorError, ProduceError, ScheduleError, StateAccessError, StatePlace,
};
use millrace_engine::state::StateQuery;
use millrace_engine::{CommitError, HostBound, Kept, ReadError, RoomFull};
use millrace_model::{Advised, Code, ConsumerName, Kind, Offset, PartitionId, TopicName};

use crate::rig::{Rig, Say, message, processor, topic};

/// Runs every operation on a topic; returns the errors.
async fn said(rig: &Rig, name: &TopicName, partition: Option<u32>) -> Vec<(String, Code)> {
    let partition = partition.map(PartitionId);
    let at = partition.unwrap_or_default();
    let consumer = ConsumerName::parse("c").expect("a name");
    let told = |error: &dyn Advised| (error.to_string(), error.advice().code);
    let session = &rig.session;
    let mut said = Vec::new();
    let fetched = session.messages().fetch(FetchRequest {
        topic: name.clone(),
        partition: at,
        from: Offset(0),
        messages_max: 1,
        bytes_max: 1,
        wait: Duration::ZERO,
    });
    said.push(told(&fetched.await.expect_err("a fetch")));
    let query = DelayedQuery {
        partition,
        after: None,
        max: 1,
    };
    let delayed = session.messages().delayed(name, &query).await;
    said.push(told(&delayed.expect_err("a list of what is delayed")));
    let trimmed = session.catalogue().trim(name, partition, Before::End).await;
    said.push(told(&trimmed.expect_err("a trim")));
    let groups = session.consumers();
    let reset = groups.reset_consumer(name, &consumer, partition, BeginAt::Latest);
    said.push(told(&reset.await.expect_err("a reset")));
    said
}

#[tokio::test]
async fn of_a_missing_topic_or_partition_everyone_says_the_same() {
    let rig = Rig::deployed(2, |_| (), |_, _| Say::Ack).await;
    let session = &rig.session;
    let (known, unknown) = (topic("in"), topic("nowhere"));

    let (text, code) = ("topic nowhere does not exist", Code::UnknownTopic);
    for told in said(&rig, &unknown, None).await {
        assert_eq!(told, (text.to_owned(), code));
    }
    let produced = session
        .messages()
        .produce(&unknown, vec![message("k", "v")]);
    let produced = produced.await;
    let produced = produced.expect_err("a message for a topic that is not there");
    let deleted = session.catalogue().delete_topic(&unknown, true).await;
    let deleted = deleted.expect_err("a deletion of what is not there");
    for (said, advice) in [
        (produced.to_string(), produced.advice()),
        (deleted.to_string(), deleted.advice()),
    ] {
        assert_eq!((said.as_str(), advice.code), (text, code));
    }

    let (text, code) = (
        "topic in has partitions 0 to 1, not 2",
        Code::UnknownPartition,
    );
    for told in said(&rig, &known, Some(2)).await {
        assert_eq!(told, (text.to_owned(), code));
    }
    let mut elsewhere = message("k", "v");
    elsewhere.partition = Some(PartitionId(2));
    let produced = session.messages().produce(&known, vec![elsewhere]).await;
    let produced = produced.expect_err("a message for a partition that is not there");
    assert_eq!(produced.to_string(), format!("message 0: {text}"));
    assert_eq!(produced.advice().code, code);
    let place = StatePlace {
        processor: processor("p"),
        topic: None,
        partition: PartitionId(2),
    };
    let state = session.processors().state(&place, StateQuery::default());
    let state = state
        .await
        .expect_err("state of a partition that is not there");
    assert_eq!(
        (state.to_string().as_str(), state.advice().code),
        (text, code)
    );
}

#[test]
fn an_error_within_another_one_keeps_its_code_and_its_time() {
    let full = || CommitError::DiskFull;
    let nested: [&dyn Advised; 5] = [
        &ScheduleError::Message(ProduceError::Commit(full())),
        &DeadLetterError::Revision(ProcessorError::Commit(full())),
        &ModuleError::Admit(AdmitError::DiskFull),
        &StateAccessError::Commit(full()),
        &ProcessorError::Admit(AdmitError::DiskFull),
    ];
    for error in nested {
        let advice = error.advice();
        assert_eq!(
            (advice.code, advice.retry_after_s),
            (Code::DiskFull, Some(10)),
            "{error}"
        );
    }
    let start = Offset(7);
    let requested = Offset(3);
    let kept = DeadLetterError::Fetch(ReadError::BelowStart { requested, start }.into());
    assert_eq!(kept.advice().next, Some(start));
    let stopping = ProduceError::Partitioner(CallError::Interrupted).advice();
    assert_eq!(stopping.code, Code::Stopping);
}

#[test]
fn whoever_fills_a_bound_is_told_apart_from_whoever_waits_for_it() {
    let full = |kept| RoomFull {
        kept,
        bound: HostBound::Together,
        held: 1,
        max: 1,
    };
    let told = |error: &dyn Advised| {
        let advice = error.advice();
        (advice.kind(), advice.code.as_str(), advice.retry_after_s)
    };
    assert_eq!(
        told(&ProduceError::Busy { max: 1 }),
        (Kind::Busy, "busy", Some(1))
    );
    assert_eq!(told(&DeadLetterError::Busy), (Kind::Busy, "busy", Some(5)));
    assert_eq!(
        told(&full(Kept::Delayed)),
        (Kind::Busy, "delays-full", Some(1))
    );
    let compiling = AdmitError::Busy {
        reason: "others are compiled first".to_owned(),
        retry_after_s: 9,
    };
    assert_eq!(told(&compiling), (Kind::Unavailable, "busy", Some(9)));
    let running = StateAccessError::Busy(PartitionId(0));
    assert_eq!(told(&running), (Kind::Unavailable, "busy", Some(1)));
    assert_eq!(
        told(&CommitError::RoomFull(full(Kept::State))),
        (Kind::Refused, "state-bound", None)
    );
}
