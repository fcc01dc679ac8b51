//! How a change on one host affects all hosts: a pause waits for the workers of each, a resume
//! reaches the breaker of each, due work is done by a live host, and a revision is judged by what
//! all hosts saw.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use millrace_broker::{BrokerLimits, NewMessage, NewTopic, ParkedAction, WhichParked};
use millrace_engine::{Engine, EntryKind, EntryWrite, Transaction};
use millrace_model::{
    Durability, PartitionId, Processor, ProcessorSpec, Record, RedriveDue, Revision, SystemClock,
};
use tokio::sync::Semaphore;

use crate::rig::{
    Export, Modules, Rig, Say, assign, digest, message, per_message, processor, spec, text, topic,
    trap,
};
use crate::takeovers::{PARTITIONS, Slow, works_at};
use crate::two_hosts::until;

/// Longer than two hosts take to see each other's changes.
const A_WHILE: Duration = Duration::from_millis(300);
/// An hour.
const LONG_MS: u64 = 3_600_000;

/// Another host with its own modules, so that the same component may behave differently there.
async fn host_beside(rig: &Rig) -> Rig {
    let limits = BrokerLimits {
        moves_after: Duration::from_millis(10),
        ..BrokerLimits::default()
    };
    let (clock, modules) = (Arc::new(SystemClock::new()), Arc::new(Modules::default()));
    Rig::beside(clock, rig.engine.second_host(), modules, limits).await
}

/// Two hosts that both work at `p`, each with its own handler.
async fn two_hosts(
    one_does: Export,
    other_does: Export,
    change: impl FnOnce(&mut ProcessorSpec),
) -> (Rig, Rig) {
    let first = Rig::start(PARTITIONS).await;
    let (one, other) = (host_beside(&first).await, host_beside(&first).await);
    first.broker.stop().await;
    other.modules.know("m", other_does);
    let module = one.upload("m", one_does).await;
    let mut spec = spec(module);
    change(&mut spec);
    one.deploy(spec).await;
    until("both work", async || {
        let (here, there) = (works_at(&one).await, works_at(&other).await);
        !here.is_empty() && !there.is_empty() && here.len() + there.len() == PARTITIONS as usize
    })
    .await;
    (one, other)
}

fn passes() -> Export {
    Export::Processor(Arc::new(per_message(|_, _| Say::Pass)))
}

/// Produces messages for each partition that the host works on.
async fn produce_for(rig: &Rig, each: usize) -> Vec<String> {
    let mut values = Vec::new();
    let mut messages = Vec::new();
    for partition in works_at(rig).await {
        for number in 0..each {
            let value = format!("{partition}-{number}");
            messages.push(NewMessage {
                partition: Some(PartitionId(partition)),
                ..message(&value, &value)
            });
            values.push(value);
        }
    }
    rig.session
        .messages()
        .produce(&topic("in"), messages)
        .await
        .unwrap();
    values
}

async fn holds(rig: &Rig, name: &str, values: &[String]) {
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    rig.hold(name, &values).await;
}

fn known(rig: &Rig) -> Processor {
    rig.session
        .processors()
        .deployed_as(&processor("p"))
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_pause_is_answered_when_the_workers_of_every_host_stand_still() {
    let (calls, ends) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let slow = Slow(Arc::clone(&calls), Arc::clone(&ends));
    let (one, other) = two_hosts(passes(), Export::Processor(Arc::new(slow)), |_| ()).await;
    let mut values = produce_for(&other, 3).await;
    until("it is called there", async || {
        calls.load(Ordering::SeqCst) > 0
    })
    .await;
    let pausing = one.session.clone();
    let pausing = tokio::spawn(async move { pausing.processors().pause(&processor("p")).await });
    tokio::time::sleep(A_WHILE).await;
    assert!(!pausing.is_finished(), "the other one is in a call");
    ends.add_permits(1_000);
    let paused = tokio::time::timeout(Duration::from_secs(3), pausing).await;
    paused.expect("in time").unwrap().unwrap();
    let called = calls.load(Ordering::SeqCst);
    let done = one.values("out").await;
    let late: Vec<NewMessage> = (0..64)
        .map(|n| message(&format!("k{n}"), &format!("late {n}")))
        .collect();
    values.extend((0..64).map(|n| format!("late {n}")));
    other
        .session
        .messages()
        .produce(&topic("in"), late)
        .await
        .unwrap();
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(calls.load(Ordering::SeqCst), called, "nothing is called");
    assert_eq!(one.values("out").await, done, "nor committed");
    for rig in [&one, &other] {
        let is_at_rest = |state: &str| state == "paused" || state.starts_with("at host");
        rig.until(|all| all.iter().all(|at| is_at_rest(&at.state)))
            .await;
    }
    other
        .session
        .processors()
        .resume(&processor("p"), None)
        .await
        .unwrap();
    holds(&one, "out", &values).await;
    assert_eq!(one.values("in.p.dlq").await, [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_pause_does_not_wait_for_a_host_that_is_gone_or_for_ever() {
    let (calls, ends) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let slow = Slow(Arc::clone(&calls), Arc::clone(&ends));
    let (one, other) = two_hosts(passes(), Export::Processor(Arc::new(slow)), |_| ()).await;
    produce_for(&other, 1).await;
    until("it is called there", async || {
        calls.load(Ordering::SeqCst) > 0
    })
    .await;
    let name = processor("p");
    let paused = one.session.processors().pause(&name);
    let paused = tokio::time::timeout(Duration::from_secs(10), paused).await;
    assert!(paused.expect("it ends by itself").unwrap().paused);
    other.engine.die();
    let paused = one.session.processors().pause(&name);
    let paused = tokio::time::timeout(Duration::from_secs(2), paused).await;
    assert!(paused.expect("nobody works there").unwrap().paused);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_an_operator_does_with_parked_messages_of_a_paused_processor_holds_when_it_goes_on() {
    let is_open = Arc::new(AtomicBool::new(false));
    let patient = || {
        let is_open = Arc::clone(&is_open);
        let say = move |_: &_, _| match is_open.load(Ordering::SeqCst) {
            false => Say::Retry(Some(LONG_MS)),
            true => Say::Pass,
        };
        Export::Processor(Arc::new(per_message(say)))
    };
    let (one, other) = two_hosts(patient(), patient(), |spec| spec.breaker.enabled = false).await;
    let mut values = produce_for(&one, 1).await;
    values.extend(produce_for(&other, 1).await);
    until("all are parked", async || {
        let status = one
            .session
            .processors()
            .processor(&processor("p"))
            .await
            .unwrap();
        let parked: usize = status.partitions.iter().map(|at| at.parked).sum();
        parked == values.len()
    })
    .await;
    other
        .session
        .processors()
        .pause(&processor("p"))
        .await
        .unwrap();
    is_open.store(true, Ordering::SeqCst);
    let mut done = 0;
    for rig in [&one, &other] {
        let (name, all) = (processor("p"), WhichParked::All);
        let tried = rig
            .session
            .processors()
            .do_with_parked(&name, all, ParkedAction::TryNow);
        done += tried.await.unwrap().done;
    }
    assert_eq!(done, values.len(), "each by the host that is to work there");
    assert_eq!(one.values("out").await, [""; 0], "it is paused");
    one.session
        .processors()
        .resume(&processor("p"), None)
        .await
        .unwrap();
    holds(&one, "out", &values).await;
}

/// Opens the breaker for an hour at its first message, while `is_up` is false.
fn down(is_up: &Arc<AtomicBool>, say: Say) -> Export {
    let is_up = Arc::clone(is_up);
    let say = move |_: &_, _| match is_up.load(Ordering::SeqCst) {
        false => say.clone(),
        true => Say::Pass,
    };
    Export::Processor(Arc::new(per_message(say)))
}

async fn breaker(rig: &Rig) -> String {
    let status = rig.session.processors().processor(&processor("p")).await;
    let breaker = status.and_then(|status| status.breaker);
    breaker.map(|breaker| breaker.state).unwrap_or_default()
}

fn probes_late(spec: &mut ProcessorSpec) {
    spec.breaker.probe_first_ms = LONG_MS;
    spec.breaker.probe_max_ms = LONG_MS;
    spec.retry.attempts_max = 1;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_resume_reaches_the_breaker_of_every_host() {
    let is_up = Arc::new(AtomicBool::new(false));
    let (one, other) = two_hosts(passes(), down(&is_up, trap()), probes_late).await;
    let mut values = produce_for(&other, 20).await;
    until("it is open there", async || breaker(&other).await == "open").await;
    assert_eq!(breaker(&one).await, "closed");
    is_up.store(true, Ordering::SeqCst);
    // The processor was not paused, so nothing else changes.
    one.session
        .processors()
        .resume(&processor("p"), None)
        .await
        .unwrap();
    until("it is closed there", async || {
        breaker(&other).await == "closed"
    })
    .await;
    let letters = one.values("in.p.dlq").await;
    values.retain(|value| !letters.contains(value));
    holds(&one, "out", &values).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn dead_letters_that_are_accepted_on_one_host_are_accepted_on_every_host_once() {
    let is_up = Arc::new(AtomicBool::new(false));
    let (one, other) = two_hosts(passes(), down(&is_up, trap()), |spec| {
        probes_late(spec);
        spec.dead_letters.max = 1;
    })
    .await;
    let values = produce_for(&other, 20).await;
    until("it is open there", async || breaker(&other).await == "open").await;
    let made = one.values("in.p.dlq").await.len();
    let accepted = Some((values.len() - made) as u64);
    one.session
        .processors()
        .resume(&processor("p"), accepted)
        .await
        .unwrap();
    holds(&one, "in.p.dlq", &values).await;
    // Later changes and readings of the processor must not repeat it.
    one.session
        .processors()
        .pause(&processor("p"))
        .await
        .unwrap();
    one.session
        .processors()
        .resume(&processor("p"), None)
        .await
        .unwrap();
    let status = other
        .session
        .processors()
        .processor(&processor("p"))
        .await
        .unwrap();
    assert_eq!(status.breaker.unwrap().dead_letters_accepted, 0);
}

/// Writes what a host writes when it rolls back revision 2 and must send again what that revision
/// gave up.
async fn taken_back(engine: &dyn Engine, mut processor: Processor) {
    processor.current = 1;
    for revision in processor.revisions.iter_mut().filter(|r| r.number == 2) {
        revision.note = Some("rolled back to revision 1 by the host: a test".to_owned());
        revision.redrive_due = Some(RedriveDue {
            from: 2,
            since: revision.deployed_at,
        });
    }
    let value = serde_json::to_vec(&processor).unwrap();
    let entry = EntryWrite {
        kind: EntryKind::Processor,
        key: processor.name.to_string(),
        value: Some(Bytes::from(value)),
    };
    let transaction = Transaction {
        entries: vec![entry],
        ..Transaction::default()
    };
    engine.commit(transaction).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_due_after_a_rollback_is_sent_again_though_the_host_that_rolled_back_is_gone() {
    let (one, other) = two_hosts(passes(), passes(), |_| ()).await;
    let is_up = Arc::new(AtomicBool::new(false));
    other.modules.know("bad", down(&is_up, Say::Reject("bad")));
    let bad = one.upload("bad", down(&is_up, Say::Reject("bad"))).await;
    let mut second = spec(bad);
    second.breaker.enabled = false;
    second.dead_letters.unproven_max = 1_000;
    one.deploy(second).await;
    until("both know it", async || known(&other).current == 2).await;
    let mut values = produce_for(&one, 3).await;
    values.extend(produce_for(&other, 3).await);
    holds(&one, "in.p.dlq", &values).await;
    let third = one.engine.second_host();
    until("it is known", async || third.hosts().borrow().len() == 3).await;
    taken_back(&*third, known(&one)).await;
    third.die();
    for rig in [&one, &other] {
        until("nothing is due", async || {
            let processor = known(rig);
            let due = processor.revisions.iter().any(|r| r.redrive_due.is_some());
            processor.current == 1 && !due
        })
        .await;
    }
    holds(&one, "out", &values).await;
    holds(&one, "in.p.redrive", &values).await;
}

fn record(rig: &Rig) -> Record {
    known(rig).revision(1).unwrap().record.clone()
}

/// Regularly rejects one message in fifty.
fn rejects_some(class: &'static str) -> Export {
    let say = move |batch: &millrace_model::ColumnBatch, message| {
        let value = text(batch.value(message));
        let number = value.split_once('-').map(|(_, number)| number.to_owned());
        match number.and_then(|n| n.parse::<u32>().ok()) {
            Some(number) if number % 50 == 49 => Say::Reject(class),
            _ => Say::Pass,
        }
    };
    Export::Processor(Arc::new(per_message(say)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_proves_a_revision_is_what_all_hosts_saw_of_it() {
    let (one, other) = two_hosts(rejects_some("one"), rejects_some("other"), |spec| {
        spec.dead_letters.max = 1_000;
    })
    .await;
    for rig in [&one, &other] {
        // Fewer than one host alone would need.
        let each = 600usize.div_ceil(works_at(rig).await.len());
        produce_for(rig, each).await;
    }
    one.settled().await;
    until("it is proven by what both saw", async || {
        record(&one).proven_anew && record(&other).proven_anew
    })
    .await;
    until("what each rejects is known", async || {
        let classes: Vec<String> = record(&one)
            .rejections
            .into_iter()
            .map(|one| one.class)
            .collect();
        classes.contains(&"one".to_owned()) && classes.contains(&"other".to_owned())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn that_a_revision_stands_still_on_one_host_is_not_forgotten_for_it_goes_on_on_another() {
    let is_up = Arc::new(AtomicBool::new(false));
    let (one, other) = two_hosts(passes(), down(&is_up, trap()), probes_late).await;
    produce_for(&other, 20).await;
    let stopped = |rig: &Rig| {
        let record = record(rig);
        record.stopped.and_then(|stopped| stopped.class)
    };
    until("that is written down", async || {
        stopped(&one).as_deref() == Some("trap")
    })
    .await;
    // Enough for this host to write down its results.
    let before = record(&one).processed;
    produce_for(&one, 40).await;
    until("that is, too", async || record(&one).processed > before).await;
    assert_eq!(stopped(&one).as_deref(), Some("trap"));
    is_up.store(true, Ordering::SeqCst);
    one.session
        .processors()
        .resume(&processor("p"), None)
        .await
        .unwrap();
    until("it goes on everywhere", async || stopped(&one).is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_entry_of_before_counts_no_resumes() {
    let (one, _other) = two_hosts(passes(), passes(), |_| ()).await;
    let mut value = serde_json::to_value(known(&one)).unwrap();
    value.as_object_mut().unwrap().remove("resumes");
    let read: Processor = serde_json::from_value(value).unwrap();
    let number = |revision: &Revision| revision.number;
    assert_eq!(read.revisions.iter().map(number).collect::<Vec<_>>(), [1]);
    assert_eq!(read, known(&one));
}

/// Often enough to hit rare cases.
const RACES: usize = 200;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_topic_has_its_partitioner_though_another_host_deletes_modules() {
    let one = Rig::start(1).await;
    let other = host_beside(&one).await;
    let assigns = |_, batch: &millrace_model::ColumnBatch| Ok(vec![0; batch.len()]);
    let module = digest("assigns");
    let (mut made, mut gone) = (0, 0);
    for round in 0..RACES {
        let export = || Export::Partitioner(Arc::new(assign(assigns)));
        one.upload("assigns", export()).await;
        until("the other knows it", async || {
            other
                .session
                .catalogue()
                .find_module(&module.to_string())
                .is_some()
        })
        .await;
        let new = NewTopic {
            name: topic(&format!("topic-{round}")),
            partitions: 1,
            durability: Durability::Os,
            partitioner: Some(module),
            settings: Default::default(),
        };
        let (making, deleting) = (one.session.clone(), other.session.clone());
        let name = new.name.clone();
        let making = tokio::spawn(async move { making.catalogue().create_topic(new).await });
        let deleting =
            tokio::spawn(async move { deleting.catalogue().delete_module(module).await });
        let (topic, deleted) = (making.await.unwrap(), deleting.await.unwrap());
        assert_ne!(topic.is_ok(), deleted.is_ok(), "{topic:?} {deleted:?}");
        let bytes = one.engine.module(module).await.unwrap();
        assert_eq!(bytes.is_some(), topic.is_ok());
        made += usize::from(topic.is_ok());
        gone += usize::from(deleted.is_ok());
        if topic.is_ok() {
            one.session
                .catalogue()
                .delete_topic(&name, false)
                .await
                .unwrap();
        }
    }
    assert_eq!(made + gone, RACES);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_module_that_is_uploaded_while_another_host_deletes_it_is_there_whole_or_not_at_all() {
    let one = Rig::start(1).await;
    let other = host_beside(&one).await;
    for round in 0..RACES {
        let module = one.upload("m", passes()).await;
        until("the other knows it", async || {
            other
                .session
                .catalogue()
                .find_module(&module.to_string())
                .is_some()
        })
        .await;
        let (uploading, deleting) = (one.session.clone(), other.session.clone());
        let tag = format!("m@{round}");
        let uploading = tokio::spawn(async move {
            uploading
                .catalogue()
                .upload_module("m".into(), Some(tag))
                .await
        });
        let deleting =
            tokio::spawn(async move { deleting.catalogue().delete_module(module).await });
        uploading.await.unwrap().expect("uploaded");
        deleting.await.unwrap().expect("deleted");
        let entry = one.engine.entry(EntryKind::Module, &module.to_string());
        let bytes = one.engine.module(module).await.unwrap();
        assert_eq!(entry.is_some(), bytes.is_some(), "in round {round}");
    }
}
