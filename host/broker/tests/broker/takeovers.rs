//! Work on several hosts: each partition, with its delayed messages, its state and its readers,
//! belongs to one host at a time; it moves to another host without a message lost, repeated or
//! given up.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use millrace_broker::handler::BatchHandler;
use millrace_broker::state::StateQuery;
use millrace_broker::{
    BrokerLimits, CallError, ConsumerCommit, ConsumerError, DelayedError, DueAt, HoldRequest,
    NewMessage, Placed,
};
use millrace_engine::Engine;
use millrace_engine::memory::Doubt;
use millrace_model::columns::OutcomeCode;
use millrace_model::{Answer, Clock, ColumnBatch, ConsumerName, Offset, PartitionId, SystemClock};
use tokio::sync::Semaphore;

use crate::rig::{Export, Rig, Say, message, processor, spec, topic};
use crate::states::{change, counting, number, place, write};
use crate::two_hosts::until;

pub(crate) const PARTITIONS: u32 = 8;

/// A second host on the store of the first, to which work will move soon.
async fn beside(rig: &Rig) -> Rig {
    let limits = BrokerLimits {
        moves_after: Duration::from_millis(10),
        ..BrokerLimits::default()
    };
    let (clock, modules) = (Arc::new(SystemClock::new()), Arc::clone(&rig.modules));
    Rig::beside(clock, rig.engine.second_host(), modules, limits).await
}

/// Two hosts, both of which soon release what belongs to the other.
async fn two_hosts(partitions: u32) -> (Rig, Rig) {
    let first = Rig::start(partitions).await;
    let one = beside(&first).await;
    let other = beside(&first).await;
    first.broker.stop().await;
    (one, other)
}

/// The partitions that the host works on.
pub(crate) async fn works_at(rig: &Rig) -> BTreeSet<u32> {
    let status = rig.session.processors().processor(&processor("p")).await;
    let partitions = status.map(|status| status.partitions).unwrap_or_default();
    let here = partitions.iter().filter(|one| one.state == "running");
    here.map(|one| one.partition.0).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn work_is_spread_over_the_hosts_and_goes_over_when_one_ends() {
    let (one, other) = two_hosts(PARTITIONS).await;
    let pass = crate::rig::per_message(|_, _| Say::Pass);
    let module = one.upload_handler("m", pass).await;
    one.deploy(spec(module)).await;
    let all: BTreeSet<u32> = (0..PARTITIONS).collect();
    until("each works at some", async || {
        let (here, there) = (works_at(&one).await, works_at(&other).await);
        let both = !here.is_empty() && !there.is_empty();
        both && here.is_disjoint(&there) && &here | &there == all
    })
    .await;
    let messages: Vec<(String, String)> =
        (0..200).map(|n| (format!("k{n}"), n.to_string())).collect();
    let messages: Vec<(&str, &str)> = messages
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .collect();
    one.produce(&messages[..100]).await;
    // Killed, with some of the work done.
    one.engine.die();
    other.produce(&messages[100..]).await;
    until("all is at the other", async || {
        works_at(&other).await == all
    })
    .await;
    let values: Vec<&str> = messages.iter().map(|(_, value)| *value).collect();
    other.hold("out", &values).await;
    assert_eq!(other.values("in.p.dlq").await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_a_living_host_cannot_do_another_takes_up() {
    let one = beside(&Rig::start(PARTITIONS).await).await;
    let pass = crate::rig::per_message(|_, _| Say::Pass);
    let module = one.upload_handler("m", pass).await;
    one.deploy(spec(module)).await;
    // This host lacks the component.
    let limits = BrokerLimits {
        moves_after: Duration::from_millis(10),
        ..BrokerLimits::default()
    };
    let (clock, engine) = (Arc::new(SystemClock::new()), one.engine.second_host());
    let other = Rig::beside(clock, engine, Arc::default(), limits).await;
    assert!(works_at(&other).await.is_empty());
    let all: BTreeSet<u32> = (0..PARTITIONS).collect();
    until("some are let go", async || works_at(&one).await != all).await;
    until("all are taken up", async || works_at(&one).await == all).await;
    let messages: Vec<(String, String)> =
        (0..100).map(|n| (format!("k{n}"), n.to_string())).collect();
    let messages: Vec<(&str, &str)> = messages.iter().map(|(k, v)| (&**k, &**v)).collect();
    other.produce(&messages).await;
    let values: Vec<&str> = messages.iter().map(|(_, value)| *value).collect();
    one.hold("out", &values).await;
}

/// Calls that each end when the test lets them.
pub(crate) struct Slow(pub(crate) Arc<AtomicUsize>, pub(crate) Arc<Semaphore>);

#[async_trait]
impl BatchHandler for Slow {
    async fn process(&self, batch: &Arc<ColumnBatch>) -> Result<Answer, CallError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        self.1.acquire().await.unwrap().forget();
        Ok(Answer {
            outcomes: vec![OutcomeCode::Emit as u8; batch.len()],
            sources: (0..batch.len() as u32).collect(),
            ..Answer::default()
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_host_that_lives_may_lose_its_work_in_the_first_call_and_no_message_is_suspected() {
    let rig = Rig::start(1).await;
    let (calls, ends) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let slow = Export::Processor(Arc::new(Slow(Arc::clone(&calls), Arc::clone(&ends))));
    let module = rig.upload("m", slow).await;
    rig.deploy(spec(module)).await;
    rig.produce(&[("k", "innocent")]).await;
    let input = rig.session.catalogue().topic(&topic("in")).unwrap();
    let partition = input.partition(PartitionId(0)).unwrap();
    // More often than the number of host ends after which a message is given up.
    for taken in 1..=5 {
        until("it is called", async || {
            calls.load(Ordering::SeqCst) == taken
        })
        .await;
        let claimed = rig
            .engine
            .claim(&processor("p").group(), partition)
            .await
            .unwrap();
        rig.engine.release(claimed).await.unwrap();
        ends.add_permits(1);
    }
    until("it is called once more", async || {
        calls.load(Ordering::SeqCst) == 6
    })
    .await;
    ends.add_permits(1);
    rig.hold("out", &["innocent"]).await;
    assert_eq!(rig.values("in.p.dlq").await, [""; 0]);
}

fn later(value: &str, after_ms: u64) -> NewMessage {
    NewMessage {
        deliver_at: Some(DueAt::after(SystemClock::new().wall(), after_ms)),
        ..message(value, value)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_delayed_is_delivered_by_one_host_or_cancelled_by_one() {
    let (one, other) = two_hosts(4).await;
    let hosts = [&one, &other];
    let mut kept = Vec::new();
    let mut cancelled = Vec::new();
    for number in 0..200 {
        let value = format!("{number}");
        let new = vec![later(&value, 40)];
        let placed = hosts[number % 2]
            .session
            .messages()
            .produce(&topic("in"), new)
            .await
            .unwrap();
        match placed[0] {
            Placed::Delayed(id) if number % 3 == 0 => cancelled.push((id, value)),
            _ => kept.push(value),
        }
    }
    let cancels = cancelled
        .into_iter()
        .enumerate()
        .map(|(number, (id, value))| {
            // Through the host that did not accept it.
            let session = hosts[(number + 1) % 2].session.clone();
            tokio::spawn(async move {
                match session.messages().cancel_delayed(&topic("in"), id).await {
                    Ok(()) => None,
                    Err(DelayedError::Unknown { .. }) => Some(value),
                    Err(error) => panic!("{error}"),
                }
            })
        });
    for cancel in cancels.collect::<Vec<_>>() {
        kept.extend(cancel.await.unwrap());
    }
    let kept: Vec<&str> = kept.iter().map(String::as_str).collect();
    one.hold("in", &kept).await;
    // Nothing is delivered twice, and cancelled messages not at all.
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(one.values("in").await.len(), kept.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_operators_write_on_any_host_stands_beside_what_the_worker_writes() {
    const ROUNDS: i64 = 60;
    let (one, other) = two_hosts(1).await;
    let module = one.upload_handler("m", counting(|_, _| Say::Pass)).await;
    one.deploy(spec(module)).await;
    until("the other host knows it", async || {
        other
            .session
            .processors()
            .deployed_as(&processor("p"))
            .is_some()
    })
    .await;
    let operators = [&one, &other]
        .into_iter()
        .enumerate()
        .map(|(which, rig)| async move {
            for round in 0..ROUNDS {
                let key = format!("op{which}-{round}");
                write(rig, vec![change(&key, Some(1))])
                    .await
                    .expect("written");
            }
        });
    let producing = async {
        for round in 0..ROUNDS {
            one.produce(&[("counted", &round.to_string())]).await;
        }
    };
    tokio::join!(futures_util::future::join_all(operators), producing);
    until("all are counted", async || {
        number(&other, &place(), "counted").await == Some(ROUNDS)
    })
    .await;
    let all = StateQuery {
        prefix: b"op".to_vec(),
        entries_max: 1_000,
        ..StateQuery::default()
    };
    let page = one.session.processors().state(&place(), all).await.unwrap();
    assert_eq!(page.entries.len() as i64, 2 * ROUNDS);
    assert_eq!(one.values("out").await.len() as i64, ROUNDS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_that_another_host_still_does_comes_into_state_that_was_emptied() {
    for _ in 0..10 {
        let (one, other) = two_hosts(4).await;
        let module = one.upload_handler("m", counting(|_, _| Say::Ack)).await;
        one.deploy(spec(module)).await;
        let producing = other.session.clone();
        let producing = tokio::spawn(async move {
            for round in 0..40 {
                let new = (0..8).map(|key| message(&format!("k{key}"), &round.to_string()));
                producing
                    .messages()
                    .produce(&topic("in"), new.collect())
                    .await
                    .unwrap();
            }
        });
        until("some are counted", async || {
            works_at(&other).await.len() > 1
        })
        .await;
        one.session
            .processors()
            .delete_processor_and_state(&processor("p"))
            .await
            .unwrap();
        producing.await.unwrap();
        until("the other host knows it", async || {
            other
                .session
                .processors()
                .deployed_as(&processor("p"))
                .is_none()
        })
        .await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        let group = processor("p").group();
        assert_eq!(one.engine.state_partitions(&group).await.unwrap(), []);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_host_that_hears_late_of_a_deletion_does_nothing_any_more() {
    let (one, other) = two_hosts(4).await;
    let module = one.upload_handler("m", counting(|_, _| Say::Pass)).await;
    one.deploy(spec(module)).await;
    until("the other works", async || {
        !works_at(&other).await.is_empty()
    })
    .await;
    other.engine.deafen(true);
    let deleted = one
        .session
        .processors()
        .delete_processor_and_state(&processor("p"))
        .await;
    deleted.unwrap();
    let messages: Vec<(String, String)> =
        (0..40).map(|n| (format!("k{n}"), n.to_string())).collect();
    let messages: Vec<(&str, &str)> = messages.iter().map(|(k, v)| (&**k, &**v)).collect();
    one.produce(&messages).await;
    // Several times as long as its workers take to start over.
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(one.values("out").await, [""; 0]);
    let group = processor("p").group();
    assert_eq!(one.engine.state_partitions(&group).await.unwrap(), []);
    other.engine.deafen(false);
    until("the other knows it", async || {
        other
            .session
            .processors()
            .deployed_as(&processor("p"))
            .is_none()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_consumer_has_one_reader_whichever_host_is_asked() {
    let (one, other) = two_hosts(1).await;
    let input = one.session.catalogue().topic(&topic("in")).unwrap();
    let name = ConsumerName::parse("c").unwrap();
    let ask = |lease| HoldRequest {
        lease,
        lease_ms: 60_000,
        wait: Duration::ZERO,
        makes: true,
        begin_at: None,
    };
    let held = one
        .session
        .consumers()
        .hold_consumer(&input, &name, ask(None))
        .await
        .unwrap();
    let lease = held.lease;
    held.kept().expect("it is the newest");
    let busy = other
        .session
        .consumers()
        .hold_consumer(&input, &name, ask(None))
        .await;
    assert!(
        matches!(busy, Err(ConsumerError::Busy { .. })),
        "the other host knows"
    );
    one.produce(&[("a", "1"), ("a", "2")]).await;
    for (host, position) in [(&other, 1), (&one, 2)] {
        let commit = ConsumerCommit {
            lease,
            positions: [(PartitionId(0), Offset(position))].into(),
            release: position == 2,
        };
        host.session
            .consumers()
            .commit_consumer(&topic("in"), &name, commit)
            .await
            .expect("its reader");
    }
    let next = other
        .session
        .consumers()
        .hold_consumer(&input, &name, ask(None))
        .await
        .unwrap();
    assert_eq!(next.positions, [(PartitionId(0), Offset(2))]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_in_doubt_before_a_call_is_no_end_of_a_host_and_no_message_is_suspected() {
    for doubt in [Doubt::Done, Doubt::Late, Doubt::Lost] {
        let one = Rig::start(1).await;
        let (calls, ends) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
        let slow = Export::Processor(Arc::new(Slow(Arc::clone(&calls), Arc::clone(&ends))));
        let module = one.upload("m", slow).await;
        one.deploy(spec(module)).await;
        one.produce(&[("k", "innocent")]).await;
        until("it is called", async || calls.load(Ordering::SeqCst) == 1).await;
        let other = beside(&one).await;
        // More than the number of host ends after which a message is given up.
        for _ in 0..5 {
            other.engine.doubt(doubt);
        }
        one.engine.die();
        until("it is called there", async || {
            calls.load(Ordering::SeqCst) == 2
        })
        .await;
        ends.add_permits(10);
        other.hold("out", &["innocent"]).await;
        assert_eq!(other.values("in.p.dlq").await, [""; 0], "{doubt:?}");
    }
}
