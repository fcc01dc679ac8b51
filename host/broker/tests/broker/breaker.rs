//! Outages, bad deployments and poison messages: when a processor pauses, and which messages it
//! must not give up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use millrace_broker::handler::BatchHandler;
use millrace_broker::{BreakerStatus, CallError};
use millrace_model::processor::Order;
use millrace_model::{Answer, ColumnBatch, ProcessorSpec};

use crate::rig::{Export, Rig, Say, per_message, processor, spec, text, trap};

fn quick(spec: &mut ProcessorSpec) {
    spec.breaker.probe_first_ms = 2;
    spec.breaker.probe_max_ms = 20;
}

fn numbered(count: usize) -> Vec<(String, String)> {
    (0..count)
        .map(|n| (format!("k{n}"), n.to_string()))
        .collect()
}

fn borrowed(messages: &[(String, String)]) -> Vec<(&str, &str)> {
    messages.iter().map(|(k, v)| (&k[..], &v[..])).collect()
}

fn values(messages: &[(String, String)]) -> Vec<&str> {
    messages.iter().map(|(_, v)| &v[..]).collect()
}

async fn breaker(rig: &Rig) -> BreakerStatus {
    let status = rig.session.processors().processor(&processor("p")).await;
    status.and_then(|status| status.breaker).unwrap_or_default()
}

async fn until_open(rig: &Rig, reason: &str) -> BreakerStatus {
    for _ in 0..5_000 {
        let status = breaker(rig).await;
        if status.reason.as_deref() == Some(reason) {
            return status;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("it never opened for {reason}: {:?}", breaker(rig).await);
}

/// Messages fail in this way for a while. They have only two attempts, so that each one that is
/// used up shows.
async fn outage(order: Order, say: Say) {
    let down = Arc::new(AtomicBool::new(true));
    let gate = Arc::clone(&down);
    let rig = Rig::deployed(
        3,
        |spec| {
            quick(spec);
            spec.order = order;
            spec.retry.attempts_max = 2;
        },
        move |_, _| match gate.load(Ordering::SeqCst) {
            true => say.clone(),
            false => Say::Pass,
        },
    )
    .await;
    let messages = numbered(500);
    rig.produce(&borrowed(&messages)).await;
    while breaker(&rig).await.probes < 8 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let status = breaker(&rig).await;
    assert_eq!(status.state, "open");
    assert!(status.next_probe_at.is_some() && status.since.is_some());
    down.store(false, Ordering::SeqCst);
    rig.settled().await;
    all_but_a_handful(&rig, &messages).await;
    assert_eq!(breaker(&rig).await.state, "closed");
}

#[tokio::test]
async fn an_outage_gives_up_a_handful_at_the_most_whatever_it_looks_like_and_ends_by_itself() {
    let timeout = CallError::Timeout(Duration::from_millis(1));
    for say in [Say::Retry(None), Say::Fail(timeout), trap()] {
        for order in [Order::Key, Order::Partition, Order::None] {
            outage(order, say.clone()).await;
        }
    }
}

#[tokio::test]
async fn a_row_of_poison_at_the_front_does_not_keep_good_messages_out_for_ever() {
    let rig = Rig::deployed(1, quick, |batch, message| {
        match text(batch.value(message)).parse::<u32>() {
            Ok(0..8) => trap(),
            _ => Say::Pass,
        }
    })
    .await;
    let messages = numbered(50);
    rig.produce(&borrowed(&messages)).await;
    rig.hold("out", &values(&messages)[8..]).await;
    rig.hold("in.p.dlq", &values(&messages)[..8]).await;
    assert!(breaker(&rig).await.trips > 0);
}

#[tokio::test]
async fn a_topic_of_nothing_but_poison_waits_for_an_operator_who_may_accept_the_dead_letters() {
    let rig = Rig::deployed(2, quick, |_, _| trap()).await;
    let messages = numbered(30);
    rig.produce(&borrowed(&messages)).await;
    let status = until_open(&rig, "poison-flood").await;
    assert!(
        status
            .text
            .is_some_and(|text| text.contains("in a row failed alike (trap"))
    );
    rig.session
        .processors()
        .resume(&processor("p"), None)
        .await
        .unwrap();
    while breaker(&rig).await.probes < 5 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let dead = rig.values("in.p.dlq").await.len() as u64;
    assert!(dead <= 4, "a handful");
    rig.session
        .processors()
        .resume(&processor("p"), Some(30))
        .await
        .unwrap();
    rig.hold("in.p.dlq", &values(&messages)).await;
    rig.settled().await;
    // Messages that were dead letters before were not among the accepted ones.
    assert_eq!(breaker(&rig).await.dead_letters_accepted, dead);
}

async fn bad_deploy(auto_rollback: bool) -> Rig {
    let rig = Rig::start(2).await;
    let good = rig
        .upload_handler("good", per_message(|_, _| Say::Pass))
        .await;
    let bad = rig.upload_handler("bad", per_message(|_, _| trap())).await;
    let mut first = spec(good);
    quick(&mut first);
    first.auto_rollback = auto_rollback;
    first.retry.attempts_max = 1;
    rig.deploy(first.clone()).await;
    rig.produce(&[("a", "before")]).await;
    rig.hold("out", &["before"]).await;
    rig.deploy(ProcessorSpec {
        module: bad,
        ..first
    })
    .await;
    rig
}

/// Checks that everything is in the output, except for at most four messages that failed before the
/// breaker could know; those are dead letters.
async fn all_but_a_handful(rig: &Rig, messages: &[(String, String)]) {
    rig.settled().await;
    let mut seen = rig.values("out").await;
    let dead = rig.values("in.p.dlq").await;
    assert!(dead.len() <= 4, "{dead:?}");
    seen.extend(dead);
    seen.retain(|value| value != "before");
    seen.sort_by_key(|value| value.parse::<u32>().unwrap_or(u32::MAX));
    assert_eq!(seen, values(messages));
}

#[tokio::test]
async fn a_bad_deploy_is_named_and_after_a_rollback_every_message_takes_effect_once() {
    let rig = bad_deploy(false).await;
    let messages = numbered(300);
    rig.produce(&borrowed(&messages)).await;
    let status = until_open(&rig, "bad-deploy").await;
    let text = status.text.unwrap_or_default();
    assert!(
        text.contains("revision 2 fails where revision 1 did not"),
        "{text}"
    );
    rig.session
        .processors()
        .rollback(&processor("p"), None)
        .await
        .unwrap();
    all_but_a_handful(&rig, &messages).await;
    assert_eq!(breaker(&rig).await.state, "closed");
}

#[tokio::test]
async fn a_bad_deploy_takes_itself_back_once_if_its_specification_says_so() {
    let rig = bad_deploy(true).await;
    let messages = numbered(300);
    rig.produce(&borrowed(&messages)).await;
    all_but_a_handful(&rig, &messages).await;
    let name = processor("p");
    let deployed = rig
        .session
        .processors()
        .processor(&name)
        .await
        .unwrap()
        .processor;
    assert_eq!(deployed.current, 1);
    let note = deployed
        .revision(2)
        .and_then(|r| r.note.clone())
        .unwrap_or_default();
    assert!(
        note.starts_with("rolled back to revision 1 by the host: bad deploy"),
        "{note}"
    );
    // An operator who makes it current again is assumed to have a reason.
    rig.session
        .processors()
        .rollback(&name, Some(2))
        .await
        .unwrap();
    let more = numbered(20);
    rig.produce(&borrowed(&more)).await;
    until_open(&rig, "bad-deploy").await;
    while breaker(&rig).await.probes < 5 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let deployed = rig
        .session
        .processors()
        .processor(&name)
        .await
        .unwrap()
        .processor;
    assert_eq!(deployed.current, 2);
}

#[tokio::test]
async fn a_rollback_goes_to_the_revision_that_the_bad_one_took_over_from() {
    let rig = Rig::start(1).await;
    for (revision, name) in [(1, "a"), (2, "b")] {
        let module = rig
            .upload_handler(name, per_message(|_, _| Say::Pass))
            .await;
        rig.deploy(spec(module)).await;
        let status = rig
            .session
            .processors()
            .processor(&processor("p"))
            .await
            .unwrap();
        assert_eq!(status.processor.current, revision);
    }
    rig.session
        .processors()
        .rollback(&processor("p"), None)
        .await
        .unwrap();
    let third = rig.upload_handler("c", per_message(|_, _| Say::Pass)).await;
    rig.deploy(spec(third)).await;
    let back = rig
        .session
        .processors()
        .rollback(&processor("p"), None)
        .await
        .unwrap();
    assert_eq!(back.current, 1, "not to 2, which nobody wanted");
}

#[tokio::test]
async fn at_the_bound_of_dead_letters_the_partition_waits_and_nothing_is_dropped_or_repeated() {
    let rig = Rig::deployed(
        2,
        |spec| {
            spec.dead_letters.max = 10;
            spec.dead_letters.per_ms = 600;
        },
        |batch, message| match text(batch.value(message)).parse::<u32>() {
            Ok(number) if number % 3 == 0 => Say::Reject("third"),
            _ => Say::Pass,
        },
    )
    .await;
    let messages = numbered(120);
    rig.produce(&borrowed(&messages)).await;
    rig.until(|all| {
        all.iter().any(|one| {
            one.state
                .starts_with("waiting: poison flood: 10 dead letters")
        })
    })
    .await;
    assert_eq!(rig.values("in.p.dlq").await.len(), 10);
    rig.settled().await;
    let all = values(&messages);
    let third = |value: &&str| value.parse::<u32>().is_ok_and(|n| n % 3 == 0);
    let (dead, good): (Vec<&str>, Vec<&str>) = all.iter().partition(|value| third(value));
    rig.hold("in.p.dlq", &dead).await;
    rig.hold("out", &good).await;
}

#[tokio::test]
async fn accepted_dead_letters_do_not_wait_for_the_bound() {
    let rig = Rig::deployed(
        1,
        |spec| {
            spec.dead_letters.max = 10;
            spec.dead_letters.per_ms = 3_600_000;
        },
        |_, _| Say::Reject("all"),
    )
    .await;
    let messages = numbered(25);
    rig.produce(&borrowed(&messages)).await;
    rig.until(|all| all[0].state.starts_with("waiting: poison flood"))
        .await;
    rig.session
        .processors()
        .resume(&processor("p"), Some(15))
        .await
        .unwrap();
    rig.hold("in.p.dlq", &values(&messages)).await;
}

/// Reports that it was called, and then ends the host, as far as that is possible within this
/// process.
struct Killer(Arc<AtomicUsize>);

#[async_trait]
impl BatchHandler for Killer {
    async fn process(&self, batch: &Arc<ColumnBatch>) -> Result<Answer, CallError> {
        if (0..batch.len()).any(|m| batch.value(m) == Some(b"killer")) {
            self.0.fetch_add(1, Ordering::SeqCst);
            std::future::pending::<()>().await;
        }
        per_message(|_, _| Say::Pass).process(batch).await
    }
}

#[tokio::test]
async fn a_message_with_which_the_host_ends_again_and_again_is_given_up_and_all_others_take_effect_once()
 {
    let orders = [Order::Key, Order::Partition, Order::None];
    // With the first call since the start, or with a later one, in which case the first end left no
    // mark.
    for (order, warm) in orders.into_iter().flat_map(|o| [(o, false), (o, true)]) {
        let all_ends = if warm { 4 } else { 3 };
        let calls = Arc::new(AtomicUsize::new(0));
        let rig = Rig::start(1).await;
        let killer = Export::Processor(Arc::new(Killer(Arc::clone(&calls))));
        let module = rig.upload("m", killer).await;
        rig.deploy(ProcessorSpec {
            order,
            ..spec(module)
        })
        .await;
        if warm {
            rig.produce(&[("k", "first")]).await;
            rig.hold("out", &["first"]).await;
        }
        let mut messages = numbered(40);
        messages[17].1 = "killer".to_owned();
        rig.produce(&borrowed(&messages)).await;
        let mut hosts = vec![rig];
        for ends in 1..=all_ends {
            while calls.load(Ordering::SeqCst) < ends {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            // The next host takes over the leases of the one before, whose calls never return.
            let (engine, modules) = (Arc::clone(&hosts[0].engine), Arc::clone(&hosts[0].modules));
            hosts.push(Rig::on(engine, modules).await);
        }
        let rig = &hosts[all_ends];
        rig.hold("in.p.dlq", &["killer"]).await;
        rig.settled().await;
        let mut all = values(&messages);
        all.retain(|&value| value != "killer");
        if warm {
            all.insert(0, "first");
        }
        assert_eq!(rig.values("out").await, all, "once, in order");
        assert_eq!(calls.load(Ordering::SeqCst), all_ends, "never called again");
        let letters = rig.letters().await;
        assert_eq!(letters[0].cause, "host-died");
    }
}

#[tokio::test]
async fn a_host_that_ends_for_other_reasons_gives_nothing_up() {
    let rig = Rig::deployed(1, |_| (), |_, _| Say::Pass).await;
    let messages = numbered(200);
    rig.produce(&borrowed(&messages)).await;
    let mut hosts = vec![rig];
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_micros(fastrand::u64(0..3_000))).await;
        let (engine, modules) = (Arc::clone(&hosts[0].engine), Arc::clone(&hosts[0].modules));
        hosts.push(Rig::on(engine, modules).await);
    }
    hosts[20].settled().await;
    assert_eq!(hosts[20].values("out").await, values(&messages));
    assert!(hosts[20].values("in.p.dlq").await.is_empty());
}
