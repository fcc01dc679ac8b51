//! Deploying, swapping, pausing, deleting and restarting.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millrace_broker::{ProcessorError, TopicDeleteError};
use millrace_model::processor::Order;
use millrace_model::{Digest, Durability, PartitionId, TopicSpec};

use crate::rig::{Export, Rig, Say, per_message, processor, spec, text, topic, whole};

/// A handler that marks its outputs with its name.
pub(crate) async fn marker(rig: &Rig, name: &'static str) -> Digest {
    let handler = whole(move |batch| {
        let mut answer = millrace_model::Answer::default();
        for message in 0..batch.len() {
            let start = (batch.data.len() + answer.data.len()) as u32;
            let value = format!("{} by {name}", text(batch.value(message)));
            answer.data.extend(value.as_bytes());
            answer.values.extend([start, value.len() as u32]);
            answer.sources.push(message as u32);
            answer.outcomes.push(1);
        }
        Ok(answer)
    });
    rig.upload_handler(name, handler).await
}

#[tokio::test]
async fn the_same_specification_deployed_again_is_the_same_revision() {
    let rig = Rig::start(1).await;
    let spec = spec(marker(&rig, "a").await);
    let name = processor("p");
    let first = rig
        .session
        .processors()
        .deploy(&name, spec.clone())
        .await
        .unwrap();
    let again = rig.session.processors().deploy(&name, spec).await.unwrap();
    assert_eq!(first, again);
    assert_eq!(first.current, 1);
}

#[tokio::test]
async fn a_new_revision_takes_over_and_rollback_goes_back_to_the_one_before() {
    let rig = Rig::start(1).await;
    let (a, b) = (marker(&rig, "a").await, marker(&rig, "b").await);
    rig.deploy(spec(a)).await;
    rig.produce(&[("k", "1")]).await;
    rig.hold("out", &["1 by a"]).await;
    rig.deploy(spec(b)).await;
    rig.produce(&[("k", "2")]).await;
    rig.hold("out", &["1 by a", "2 by b"]).await;
    rig.until(|all| all[0].revision == 2).await;
    let back = rig
        .session
        .processors()
        .rollback(&processor("p"), None)
        .await
        .unwrap();
    assert_eq!(back.current, 1);
    rig.produce(&[("k", "3")]).await;
    rig.hold("out", &["1 by a", "2 by b", "3 by a"]).await;
    let next = rig
        .session
        .processors()
        .rollback(&processor("p"), Some(2))
        .await
        .unwrap();
    assert_eq!(next.current, 2);
    let refused = rig
        .session
        .processors()
        .rollback(&processor("p"), Some(7))
        .await;
    assert!(matches!(
        refused,
        Err(ProcessorError::NoSuchRevision { .. })
    ));
    rig.session
        .processors()
        .rollback(&processor("p"), None)
        .await
        .unwrap();
    let refused = rig
        .session
        .processors()
        .rollback(&processor("p"), None)
        .await;
    assert!(matches!(refused, Err(ProcessorError::NothingToRollBack(_))));
}

#[tokio::test]
async fn a_revision_that_fails_changes_nothing() {
    let rig = Rig::start(1).await;
    let good = spec(marker(&rig, "a").await);
    rig.deploy(good.clone()).await;
    let broken = rig.upload("broken", Export::Broken).await;
    let name = processor("p");
    let refuse = async |change: &dyn Fn(&mut millrace_model::ProcessorSpec)| {
        let mut bad = good.clone();
        change(&mut bad);
        let refused = rig
            .session
            .processors()
            .deploy(&name, bad)
            .await
            .unwrap_err();
        let status = rig.session.processors().processor(&name).await.unwrap();
        assert_eq!(status.processor.current, 1, "{refused}");
        refused
    };
    let refused = refuse(&|spec| spec.module = broken).await;
    assert!(matches!(refused, ProcessorError::Admit(_)), "{refused}");
    let refused = refuse(&|spec| spec.module = Digest([9; 32])).await;
    assert!(
        matches!(refused, ProcessorError::UnknownModule(_)),
        "{refused}"
    );
    let refused = refuse(&|spec| spec.error_handler = Some(spec.module)).await;
    assert!(
        matches!(refused, ProcessorError::WrongInterface { .. }),
        "{refused}"
    );
    let refused = refuse(&|spec| spec.topics.push(topic("nowhere"))).await;
    assert!(
        matches!(refused, ProcessorError::UnknownTopic(_)),
        "{refused}"
    );
    let refused = refuse(&|spec| spec.topics.clear()).await;
    assert!(
        matches!(refused, ProcessorError::InvalidSpec(_)),
        "{refused}"
    );
    let refused = refuse(&|spec| spec.output = Some(topic("in"))).await;
    assert!(
        matches!(refused, ProcessorError::InvalidSpec(_)),
        "{refused}"
    );
    let refused = refuse(&|spec| spec.topics = vec![topic("in.p.dlq")]).await;
    assert!(
        matches!(refused, ProcessorError::InvalidSpec(_)),
        "{refused}"
    );
    let refused = refuse(&|spec| spec.batch.messages_max = 0).await;
    assert!(
        matches!(refused, ProcessorError::InvalidSpec(_)),
        "{refused}"
    );
    rig.produce(&[("k", "1")]).await;
    rig.hold("out", &["1 by a"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swaps_under_load_lose_and_repeat_nothing() {
    let rig = Arc::new(Rig::start(4).await);
    let (a, b) = (marker(&rig, "a").await, marker(&rig, "b").await);
    rig.deploy(spec(a)).await;
    let producing = Arc::new(AtomicBool::new(true));
    let (producer, running) = (Arc::clone(&rig), Arc::clone(&producing));
    let producer = tokio::spawn(async move {
        let mut sent = 0;
        while running.load(Ordering::SeqCst) {
            let values: Vec<String> = (sent..sent + 20).map(|n| n.to_string()).collect();
            let messages: Vec<(&str, &str)> = values.iter().map(|v| (&v[..], &v[..])).collect();
            producer.produce(&messages).await;
            sent += 20;
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        sent
    });
    let current = async || {
        rig.session
            .processors()
            .processor(&processor("p"))
            .await
            .unwrap()
    };
    for swap in 0..30 {
        let before = current().await.partitions[0].next;
        rig.deploy(spec(if swap % 2 == 0 { b } else { a })).await;
        // The next swap comes once this revision has processed something.
        rig.until(|all| all[0].next > before && all[0].revision == swap + 2)
            .await;
    }
    producing.store(false, Ordering::SeqCst);
    let sent: usize = producer.await.unwrap();
    rig.settled().await;
    let values = rig.values("out").await;
    let distinct: HashSet<&str> = values.iter().filter_map(|v| v.split(' ').next()).collect();
    assert_eq!((values.len(), distinct.len()), (sent, sent), "each once");
    for name in ["a", "b"] {
        assert!(values.iter().any(|value| value.ends_with(name)));
    }
}

#[tokio::test]
async fn a_paused_processor_takes_nothing_and_goes_on_when_resumed() {
    let rig = Rig::deployed(1, |_| (), |_, _| Say::Pass).await;
    rig.session
        .processors()
        .pause(&processor("p"))
        .await
        .unwrap();
    rig.until(|all| all[0].state == "paused").await;
    rig.produce(&[("a", "1")]).await;
    let status = rig.until(|all| all[0].lag == 1).await;
    assert_eq!(status[0].state, "paused");
    assert!(rig.values("out").await.is_empty());
    let resumed = rig
        .session
        .processors()
        .resume(&processor("p"), None)
        .await
        .unwrap();
    assert!(!resumed.paused);
    rig.hold("out", &["1"]).await;
}

#[tokio::test]
async fn a_worker_that_waits_in_an_outage_obeys_at_once() {
    let down = millrace_broker::CallError::Unavailable("down".to_owned());
    let rig = Rig::deployed(1, |_| (), move |_, _| Say::Fail(down.clone())).await;
    rig.produce(&[("a", "1")]).await;
    rig.until(|all| all[0].state.starts_with("waiting")).await;
    rig.session
        .processors()
        .pause(&processor("p"))
        .await
        .unwrap();
    rig.until(|all| all[0].state == "paused").await;
    rig.session
        .processors()
        .resume(&processor("p"), None)
        .await
        .unwrap();
    rig.until(|all| all[0].state.starts_with("waiting")).await;
    let good = rig
        .upload_handler("good", per_message(|_, _| Say::Pass))
        .await;
    rig.deploy(spec(good)).await;
    rig.hold("out", &["1"]).await;
}

#[tokio::test]
async fn a_deleted_processor_is_gone_and_one_made_again_goes_on_where_it_was() {
    let rig = Rig::deployed(1, |_| (), |_, _| Say::Pass).await;
    rig.produce(&[("a", "1")]).await;
    rig.hold("out", &["1"]).await;
    let name = processor("p");
    rig.session
        .processors()
        .delete_processor(&name)
        .await
        .unwrap();
    assert!(rig.session.processors().processor(&name).await.is_none());
    assert!(
        rig.session.catalogue().topic(&topic("in.p.dlq")).is_some(),
        "its dead letters stay"
    );
    let gone = rig.session.processors().delete_processor(&name).await;
    assert!(matches!(gone, Err(ProcessorError::Unknown(_))));
    rig.produce(&[("a", "2")]).await;
    rig.deploy(spec(crate::rig::digest("m"))).await;
    rig.hold("out", &["1", "2"]).await;
}

#[tokio::test]
async fn after_a_start_processors_go_on_and_one_that_does_not_load_hinders_nobody() {
    let rig = Rig::deployed(1, |_| (), |_, _| Say::Pass).await;
    let lame = rig
        .upload_handler("lame", per_message(|_, _| Say::Pass))
        .await;
    rig.topic("lame-out", 1).await;
    let mut lame_spec = spec(lame);
    lame_spec.output = Some(topic("lame-out"));
    rig.session
        .processors()
        .deploy(&processor("lame"), lame_spec)
        .await
        .unwrap();
    rig.produce(&[("a", "1")]).await;
    rig.hold("out", &["1"]).await;
    rig.hold("lame-out", &["1"]).await;
    rig.modules.know("lame", Export::Broken);
    // The host is killed; the next one takes over its leases.
    let next = Rig::on(Arc::clone(&rig.engine), Arc::clone(&rig.modules)).await;
    next.produce(&[("a", "2")]).await;
    next.hold("out", &["1", "2"]).await;
    let status = next
        .session
        .processors()
        .processor(&processor("lame"))
        .await
        .unwrap();
    assert!(
        status.partitions[0].state.starts_with("stopped: "),
        "{status:?}"
    );
    let refused = next
        .session
        .processors()
        .resume(&processor("lame"), None)
        .await;
    assert!(matches!(refused, Err(ProcessorError::Admit(_))));
    next.modules.know(
        "lame",
        Export::Processor(Arc::new(per_message(|_, _| Say::Pass))),
    );
    next.session
        .processors()
        .resume(&processor("lame"), None)
        .await
        .unwrap();
    next.until(|all| all[0].lag == 0).await;
}

#[tokio::test]
async fn a_worker_whose_lease_was_taken_over_goes_on_under_a_new_one() {
    let rig = Rig::deployed(1, |_| (), |_, _| Say::Pass).await;
    rig.produce(&[("a", "1")]).await;
    rig.hold("out", &["1"]).await;
    let input = rig.session.catalogue().topic(&topic("in")).unwrap();
    let partition = input.partition(PartitionId(0)).unwrap();
    rig.engine()
        .claim(&processor("p").group(), partition)
        .await
        .unwrap();
    rig.produce(&[("a", "2")]).await;
    rig.hold("out", &["1", "2"]).await;
    rig.settled().await;
    assert_eq!(rig.values("out").await, ["1", "2"]);
}

#[tokio::test]
async fn a_revision_may_change_its_inputs() {
    let rig = Rig::deployed(1, |_| (), |_, _| Say::Pass).await;
    rig.topic("more", 2).await;
    let mut changed = spec(crate::rig::digest("m"));
    changed.topics = vec![topic("more")];
    rig.deploy(changed.clone()).await;
    let status = rig.until(|all| all.len() == 2).await;
    assert!(status.iter().all(|one| one.topic == topic("more")));
    rig.produce(&[("a", "in vain")]).await;
    let message = vec![crate::rig::message("a", "1")];
    rig.session
        .messages()
        .produce(&topic("more"), message)
        .await
        .unwrap();
    rig.hold("out", &["1"]).await;
    changed.topics.push(topic("in"));
    rig.deploy(changed).await;
    rig.hold("out", &["1", "in vain"]).await;
}

#[tokio::test]
async fn a_topic_in_use_is_not_deleted_and_one_that_is_not_is() {
    let rig = Rig::deployed(1, |_| (), |_, _| Say::Pass).await;
    for used in ["in", "out", "in.p.dlq"] {
        let refused = rig
            .session
            .catalogue()
            .delete_topic(&topic(used), false)
            .await;
        assert!(
            matches!(refused, Err(TopicDeleteError::InUse { .. })),
            "{used}"
        );
    }
    rig.session
        .processors()
        .delete_processor(&processor("p"))
        .await
        .unwrap();
    for free in ["in", "out", "in.p.dlq"] {
        rig.session
            .catalogue()
            .delete_topic(&topic(free), false)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_foreign_topic_of_the_dead_letter_name_is_not_taken_over() {
    let rig = Rig::start(1).await;
    let foreign = TopicSpec {
        name: topic("in.p.dlq"),
        partitions: 1,
        durability: Durability::Os,
        partitioner: None,
        owner: None,
        created_at: Default::default(),
        settings: Default::default(),
    };
    rig.engine()
        .create_topic(foreign, Vec::new())
        .await
        .unwrap();
    let module = marker(&rig, "a").await;
    let refused = rig
        .session
        .processors()
        .deploy(&processor("p"), spec(module))
        .await;
    assert!(matches!(refused, Err(ProcessorError::InvalidSpec(_))));
    assert!(
        rig.session
            .processors()
            .processor(&processor("p"))
            .await
            .is_none()
    );
}

#[tokio::test]
async fn stopping_ends_the_workers_and_closes_the_engine() {
    let rig = Rig::deployed(2, |_| (), |_, _| Say::Pass).await;
    rig.produce(&[("a", "1")]).await;
    rig.hold("out", &["1"]).await;
    rig.broker.ready().await.unwrap();
    rig.broker.stop().await;
    assert!(rig.broker.ready().await.is_err());
}

#[tokio::test]
async fn what_is_parked_for_the_whole_partition_is_not_overtaken_under_an_order_by_key() {
    let rig = Rig::deployed(
        1,
        |spec| spec.order = Order::Partition,
        |batch, message| match text(batch.value(message)).as_str() {
            "1" if batch.attempts[message] == 1 => Say::Retry(Some(500)),
            _ => Say::Pass,
        },
    )
    .await;
    rig.produce(&[("k", "1"), ("k", "2")]).await;
    rig.until(|all| all[0].parked == 2).await;
    let deployed = rig
        .session
        .processors()
        .processor(&processor("p"))
        .await
        .unwrap();
    let mut spec = deployed.processor.current().unwrap().spec.clone();
    spec.order = Order::Key;
    rig.deploy(spec).await;
    rig.produce(&[("k", "3")]).await;
    rig.settled().await;
    assert_eq!(rig.values("out").await, ["1", "2", "3"]);
}
