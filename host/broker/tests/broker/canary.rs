//! A canary beside the current revision: its share, order, withdrawal, promotion, and restarts.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use millrace_broker::handler::BatchHandler;
use millrace_broker::{CallError, CanaryStatus, ProcessorError};
use millrace_model::processor::Order;
use millrace_model::{Answer, ChangeKind, ColumnBatch, Processor, ProcessorSpec};
use parking_lot::Mutex;

use crate::revisions::marker;
use crate::rig::{Rig, Say, per_message, processor, spec, text, topic, trap};

/// Produces messages `KEY NUMBER`, with the keys in turn.
async fn produce(rig: &Rig, keys: u32, numbers: std::ops::Range<u32>) {
    let all =
        numbers.flat_map(|n| (0..keys).map(move |key| (key.to_string(), format!("{key} {n}"))));
    let all: Vec<(String, String)> = all.collect();
    for some in all.chunks(1_000) {
        let some: Vec<(&str, &str)> = some.iter().map(|(k, v)| (&k[..], &v[..])).collect();
        rig.produce(&some).await;
    }
}

/// The parts of a marker's output `KEY NUMBER by NAME`.
fn parsed(value: &str) -> (String, u32, String) {
    let mut words = value.split(' ');
    let mut word = || words.next().unwrap().to_owned();
    let (key, number) = (word(), word().parse().unwrap());
    word();
    (key, number, word())
}

/// For each key, its numbers and the revisions that processed them, in order.
async fn by_key(rig: &Rig) -> BTreeMap<String, Vec<(u32, String)>> {
    let mut keys: BTreeMap<String, Vec<(u32, String)>> = BTreeMap::new();
    for value in rig.values("out").await {
        let (key, number, name) = parsed(&value);
        keys.entry(key).or_default().push((number, name));
    }
    keys
}

fn assert_each_once_in_order(keys: &BTreeMap<String, Vec<(u32, String)>>, numbers: u32) {
    for (key, seen) in keys {
        let seen: Vec<u32> = seen.iter().map(|(number, _)| *number).collect();
        assert_eq!(seen, Vec::from_iter(0..numbers), "key {key}");
    }
}

async fn canary(rig: &Rig, spec: ProcessorSpec, percent: u32) -> Processor {
    let name = processor("p");
    let canary = rig
        .session
        .processors()
        .deploy_canary(&name, spec, percent)
        .await;
    canary.unwrap()
}

async fn current(rig: &Rig) -> Processor {
    let status = rig.session.processors().processor(&processor("p")).await;
    status.unwrap().processor
}

async fn canary_status(rig: &Rig) -> CanaryStatus {
    let status = rig.session.processors().processor(&processor("p")).await;
    status.unwrap().canary.expect("a canary")
}

/// Waits until the host has withdrawn the canary.
async fn withdrawn(rig: &Rig) -> Processor {
    for _ in 0..5_000 {
        let processor = current(rig).await;
        if processor.trial.is_none() {
            return processor;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("the canary is still there");
}

fn changes(processor: &Processor) -> Vec<(ChangeKind, u32)> {
    let changes = processor.changes.iter();
    changes
        .map(|change| (change.what, change.revision))
        .collect()
}

#[tokio::test]
async fn a_canary_takes_its_share_of_the_keys_and_no_key_changes_sides() {
    let rig = Rig::start(2).await;
    let (a, b) = (marker(&rig, "a").await, marker(&rig, "b").await);
    rig.deploy(spec(a)).await;
    let with_canary = canary(&rig, spec(b), 20).await;
    assert_eq!(with_canary.current, 1);
    assert!(with_canary.revision(2).unwrap().trial);
    produce(&rig, 500, 0..5).await;
    rig.settled().await;
    let keys = by_key(&rig).await;
    assert_eq!(keys.len(), 500);
    assert_each_once_in_order(&keys, 5);
    let of = |name: &str| {
        let all_by = |seen: &&Vec<(u32, String)>| seen.iter().all(|(_, by)| by == name);
        keys.values().filter(all_by).count()
    };
    assert_eq!(of("a") + of("b"), 500, "each key has one revision");
    assert!((50..150).contains(&of("b")), "{}", of("b"));
    let status = canary_status(&rig).await;
    assert_eq!(status.canary.messages as usize, of("b") * 5);
    assert_eq!(status.current.messages as usize, of("a") * 5);
    assert_eq!((status.canary.revision, status.current.revision), (2, 1));

    // A larger share keeps the keys of the smaller one.
    rig.session
        .processors()
        .set_canary(&processor("p"), 60)
        .await
        .unwrap();
    produce(&rig, 500, 5..6).await;
    rig.settled().await;
    let more = by_key(&rig).await;
    for (key, seen) in &more {
        let last = &seen.last().unwrap().1;
        assert!(keys[key][0].1 == "a" || last == "b", "key {key}");
    }
    let promoted = rig
        .session
        .processors()
        .promote(&processor("p"))
        .await
        .unwrap();
    assert_eq!((promoted.current, promoted.trial.as_ref()), (2, None));
    assert!(!promoted.revision(2).unwrap().trial);
    produce(&rig, 500, 6..7).await;
    rig.settled().await;
    let keys = by_key(&rig).await;
    assert_each_once_in_order(&keys, 7);
    assert!(keys.values().all(|seen| seen[6].1 == "b"));
    use ChangeKind::{Canary, Deploy, Promote};
    let wanted = [(Deploy, 1), (Canary, 2), (Canary, 2), (Promote, 2)];
    assert_eq!(changes(&promoted), wanted);
    let back = rig
        .session
        .processors()
        .rollback(&processor("p"), None)
        .await
        .unwrap();
    assert_eq!(back.current, 1);
}

#[tokio::test]
async fn messages_without_a_key_are_shared_out_as_well() {
    let rig = Rig::start(1).await;
    let (a, b) = (marker(&rig, "a").await, marker(&rig, "b").await);
    rig.deploy(spec(a)).await;
    canary(&rig, spec(b), 30).await;
    let values: Vec<String> = (0..1_000).map(|n| format!("- {n}")).collect();
    let messages: Vec<(&str, &str)> = values.iter().map(|v| ("", &v[..])).collect();
    rig.produce(&messages).await;
    rig.settled().await;
    let values = rig.values("out").await;
    let share = values.iter().filter(|v| v.ends_with("by b")).count();
    let distinct: HashSet<&String> = values.iter().collect();
    assert_eq!((values.len(), distinct.len()), (1_000, 1_000));
    assert!((200..400).contains(&share), "{share}");
}

#[tokio::test]
async fn under_an_order_of_the_whole_partition_a_canary_changes_no_order() {
    let rig = Rig::start(1).await;
    let (a, b) = (marker(&rig, "a").await, marker(&rig, "b").await);
    let ordered = |module| ProcessorSpec {
        order: Order::Partition,
        ..spec(module)
    };
    rig.deploy(ordered(a)).await;
    canary(&rig, ordered(b), 50).await;
    produce(&rig, 20, 0..10).await;
    rig.settled().await;
    let values = rig.values("out").await;
    let wanted = (0..10).flat_map(|n| (0..20).map(move |key| (key.to_string(), n)));
    let seen = values.iter().map(|value| parsed(value));
    assert!(seen.map(|(key, n, _)| (key, n)).eq(wanted));
    for name in ["a", "b"] {
        assert!(values.iter().any(|value| value.ends_with(name)), "{name}");
    }
}

#[tokio::test]
async fn a_canary_that_traps_on_everything_is_withdrawn_and_each_message_is_processed_once() {
    let rig = Rig::start(2).await;
    let a = marker(&rig, "a").await;
    let bad = rig.upload_handler("bad", per_message(|_, _| trap())).await;
    rig.deploy(spec(a)).await;
    canary(&rig, spec(bad), 30).await;
    produce(&rig, 100, 0..10).await;
    let processor = withdrawn(&rig).await;
    rig.settled().await;
    let keys = by_key(&rig).await;
    assert_eq!(keys.len(), 100);
    assert_each_once_in_order(&keys, 10);
    assert_eq!(rig.letters().await.len(), 0);
    assert_eq!(processor.current, 1);
    let note = processor.revision(2).unwrap().note.clone().unwrap();
    assert!(
        note.contains("withdrawn by the host") && note.contains("trap"),
        "{note}"
    );
    let last = processor.changes.last().unwrap();
    assert_eq!(
        (last.what, last.by.as_deref()),
        (ChangeKind::Withdraw, Some("host"))
    );
    let status = rig
        .session
        .processors()
        .processor(&crate::rig::processor("p"))
        .await
        .unwrap();
    assert_eq!(
        status.breaker.unwrap().state,
        "closed",
        "the current revision's"
    );
    // A revision on trial was never current, so that a rollback does not lead to it.
    let refused = rig
        .session
        .processors()
        .rollback(&crate::rig::processor("p"), None)
        .await;
    assert!(matches!(refused, Err(ProcessorError::NothingToRollBack(_))));
}

#[tokio::test]
async fn a_canary_that_says_unavailable_is_withdrawn() {
    let rig = Rig::start(1).await;
    let a = marker(&rig, "a").await;
    let down = CallError::Unavailable("the new address is wrong".to_owned());
    let bad = per_message(move |_, _| Say::Fail(down.clone()));
    let bad = rig.upload_handler("bad", bad).await;
    rig.deploy(spec(a)).await;
    canary(&rig, spec(bad), 50).await;
    produce(&rig, 50, 0..4).await;
    let processor = withdrawn(&rig).await;
    rig.settled().await;
    assert_each_once_in_order(&by_key(&rig).await, 4);
    let text = processor.changes.last().unwrap().text.clone().unwrap();
    assert!(text.contains("the new address is wrong"), "{text}");
}

#[tokio::test]
async fn a_canary_that_rejects_what_the_current_revision_rejects_stays_and_one_that_rejects_more_goes()
 {
    let rig = Rig::start(1).await;
    let rejecting = |class: &'static str| per_message(move |_, _| Say::Reject(class));
    let a = rig.upload_handler("a", rejecting("known")).await;
    let b = rig.upload_handler("b", rejecting("known")).await;
    let c = rig.upload_handler("c", rejecting("unheard-of")).await;
    let lenient = |module| {
        let mut spec = spec(module);
        spec.dead_letters.max = 10_000;
        spec
    };
    rig.deploy(lenient(a)).await;
    produce(&rig, 100, 0..1).await;
    rig.settled().await;
    canary(&rig, lenient(b), 50).await;
    produce(&rig, 100, 1..3).await;
    rig.settled().await;
    let status = canary_status(&rig).await;
    assert_eq!(status.trouble, None);
    assert!(status.canary.asked_again > 40, "{status:?}");
    assert_eq!(status.canary.dead_letters, 0, "{status:?}");
    assert_eq!(rig.letters().await.len(), 300);
    canary(&rig, lenient(c), 50).await;
    produce(&rig, 100, 3..5).await;
    withdrawn(&rig).await;
    rig.settled().await;
    let letters = rig.letters().await;
    assert_eq!(letters.len(), 500);
    let new = letters.iter().filter(|l| l.class == "unheard-of").count();
    assert!(new < 5, "{new}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn canaries_that_come_and_go_amid_load_lose_repeat_and_reorder_nothing() {
    let rig = Arc::new(Rig::start(3).await);
    let (a, b) = (marker(&rig, "a").await, marker(&rig, "b").await);
    rig.deploy(spec(a)).await;
    let producing = Arc::new(AtomicBool::new(true));
    let (producer, running) = (Arc::clone(&rig), Arc::clone(&producing));
    let producer = tokio::spawn(async move {
        let mut number = 0;
        while running.load(Ordering::SeqCst) {
            produce(&producer, 40, number..number + 1).await;
            number += 1;
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        number
    });
    let name = processor("p");
    for round in 0..20 {
        let before = current(&rig).await;
        let module = before.current().unwrap().spec.module;
        let next = if module == a { b } else { a };
        canary(&rig, spec(next), 20 + round * 3).await;
        let worked = async || canary_status(&rig).await.canary.messages > 0;
        while !worked().await {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        match round % 3 {
            0 => rig.session.processors().promote(&name).await.unwrap(),
            1 => rig
                .session
                .processors()
                .rollback(&name, None)
                .await
                .unwrap(),
            _ => rig.session.processors().set_canary(&name, 0).await.unwrap(),
        };
        assert!(current(&rig).await.trial.is_none());
    }
    producing.store(false, Ordering::SeqCst);
    let numbers = producer.await.unwrap();
    rig.settled().await;
    let keys = by_key(&rig).await;
    assert_eq!(keys.len(), 40);
    assert_each_once_in_order(&keys, numbers);
}

#[tokio::test]
async fn random_outcomes_under_a_canary_keep_the_order_of_keys_and_once_ness() {
    for seed in 0..12u64 {
        let order = [Order::Key, Order::Partition, Order::None][seed as usize % 3];
        let failures = Arc::new(Mutex::new(HashMap::<String, u64>::new()));
        let fickle = |name: &'static str, salt: u64| {
            let failures = Arc::clone(&failures);
            per_message(move |batch, message| {
                let value = text(batch.value(message));
                let mut failures = failures.lock();
                let failed = failures.entry(value.clone()).or_default();
                let mut rng = fastrand::Rng::with_seed(
                    value.bytes().fold(seed * 31 + salt, |hash, byte| {
                        hash.wrapping_mul(31).wrapping_add(byte.into())
                    }) + *failed * 7,
                );
                if *failed >= 2 || rng.u32(..100) < 85 {
                    return Say::Pass;
                }
                *failed += 1;
                match (rng.u32(..3), name) {
                    (0, _) => trap(),
                    (1, _) => Say::Retry(Some(rng.u64(..4))),
                    _ => Say::Retry(None),
                }
            })
        };
        let rig = Rig::start(1).await;
        let a = rig.upload_handler("a", fickle("a", 1)).await;
        let b = rig.upload_handler("b", fickle("b", 2)).await;
        let policy = |module| {
            let mut spec = spec(module);
            (spec.order, spec.retry.attempts_max) = (order, 10);
            spec.batch.messages_max = 16;
            spec.breaker.enabled = false;
            spec
        };
        rig.deploy(policy(a)).await;
        canary(&rig, policy(b), 30 + seed as u32 * 4).await;
        produce(&rig, 12, 0..20).await;
        rig.settled().await;
        let values = rig.values("out").await;
        let distinct: HashSet<&String> = values.iter().collect();
        assert_eq!((values.len(), distinct.len()), (240, 240), "seed {seed}");
        let mut last = HashMap::new();
        for value in values.iter().filter(|_| order != Order::None) {
            let (key, number) = value.split_once(' ').unwrap();
            let number: u32 = number.parse().unwrap();
            let before = last.insert(key.to_owned(), number);
            assert!(
                before.is_none_or(|before| before < number),
                "seed {seed}: {value}"
            );
        }
        let status = canary_status(&rig).await;
        assert!(status.canary.messages > 0 && status.current.messages > 0);
    }
}

#[tokio::test]
async fn a_canary_stays_a_canary_over_a_start_and_one_that_does_not_load_hinders_nobody() {
    let rig = Rig::start(1).await;
    let (a, b) = (marker(&rig, "a").await, marker(&rig, "b").await);
    rig.deploy(spec(a)).await;
    canary(&rig, spec(b), 40).await;
    produce(&rig, 100, 0..2).await;
    rig.until(|all| all[0].next.0 > 0).await;
    // The host is killed, possibly with messages set aside.
    let next = Rig::on(Arc::clone(&rig.engine), Arc::clone(&rig.modules)).await;
    produce(&next, 100, 2..4).await;
    next.settled().await;
    let keys = by_key(&next).await;
    assert_each_once_in_order(&keys, 4);
    let of_one = keys
        .values()
        .all(|seen| seen.iter().all(|(_, by)| *by == seen[0].1));
    assert!(of_one, "no key changed sides");
    assert!(keys.values().any(|seen| seen[0].1 == "b"));
    assert_eq!(current(&next).await.trial.unwrap().percent(), Some(40));

    next.modules.know("b", crate::rig::Export::Broken);
    let last = Rig::on(Arc::clone(&rig.engine), Arc::clone(&rig.modules)).await;
    produce(&last, 100, 4..5).await;
    last.settled().await;
    let keys = by_key(&last).await;
    assert_each_once_in_order(&keys, 5);
    assert!(keys.values().all(|seen| seen[4].1 == "a"));
}

#[tokio::test]
async fn what_cannot_be_a_canary_is_refused_and_changes_nothing() {
    let rig = Rig::start(1).await;
    let (a, b) = (marker(&rig, "a").await, marker(&rig, "b").await);
    rig.topic("more", 1).await;
    let name = processor("p");
    let unknown = rig
        .session
        .processors()
        .deploy_canary(&name, spec(b), 10)
        .await;
    assert!(matches!(unknown, Err(ProcessorError::Unknown(_))));
    rig.deploy(spec(a)).await;
    let before = current(&rig).await;
    let mut other_topics = spec(b);
    other_topics.topics = vec![topic("more")];
    let mut other_order = spec(b);
    other_order.order = Order::None;
    for (bad, percent) in [
        (spec(a), 10),
        (spec(b), 0),
        (spec(b), 100),
        (other_topics, 10),
        (other_order, 10),
    ] {
        let refused = rig
            .session
            .processors()
            .deploy_canary(&name, bad, percent)
            .await;
        assert!(
            matches!(refused, Err(ProcessorError::InvalidSpec(_))),
            "{refused:?}"
        );
    }
    assert!(matches!(
        rig.session.processors().promote(&name).await,
        Err(ProcessorError::NoTrial(_))
    ));
    let none = rig.session.processors().set_canary(&name, 5).await;
    assert!(matches!(none, Err(ProcessorError::NoTrial(_))));
    assert_eq!(current(&rig).await, before);

    canary(&rig, spec(b), 10).await;
    let again = canary(&rig, spec(b), 10).await;
    assert_eq!(
        again.revisions.len(),
        2,
        "the same canary again is the same"
    );
    let whole = rig
        .session
        .processors()
        .deploy(&name, spec(b))
        .await
        .unwrap();
    assert_eq!(
        (whole.current, whole.revisions.len()),
        (2, 2),
        "deployed whole it is promoted"
    );
}

struct Stuck;

#[async_trait]
impl BatchHandler for Stuck {
    async fn process(&self, _: &Arc<ColumnBatch>) -> Result<Answer, CallError> {
        std::future::pending().await
    }
}

/// The canary's calls may take ten minutes; those of the current revision take no time.
#[tokio::test]
async fn a_canary_that_hangs_is_out_long_before_its_calls_have_to_end() {
    let rig = Rig::start(2).await;
    let a = marker(&rig, "a").await;
    let patient = |module| {
        let mut patient = spec(module);
        patient.limits.call_ms_max = 600_000;
        patient
    };
    rig.deploy(patient(a)).await;
    produce(&rig, 50, 0..2).await;
    rig.settled().await;
    let stuck = rig.upload_handler("stuck", Stuck).await;
    canary(&rig, patient(stuck), 50).await;
    produce(&rig, 50, 2..4).await;
    let processor = withdrawn(&rig).await;
    let text = processor.changes.last().unwrap().text.clone().unwrap();
    assert!(text.contains("timed out"), "{text}");
    rig.settled().await;
    assert_each_once_in_order(&by_key(&rig).await, 4);
    assert_eq!(rig.letters().await.len(), 0);
}
