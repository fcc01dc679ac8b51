//! Two hosts on one store change the same catalogue at once: whatever both do, each decision is
//! based on the current catalogue, and none is lost, made twice, or based on an old one.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millrace_broker::{
    BrokerLimits, DeadLetterError, ModuleError, NewTopic, ProcessorError, RedriveRequest,
    TopicPatch,
};
use millrace_engine::{CommitError, EntryKind, EntryWrite, MemoryEngine, Transaction};
use millrace_model::bounds::REVISIONS_KEPT_MAX;
use millrace_model::{
    ChangeKind, Clock, ConsumerName, Durability, PartitionId, Processor, ProcessorSpec,
    ScheduleName, SystemClock, TopicSettings,
};

use crate::rig::{Export, Modules, Rig, Say, digest, per_message, processor, spec, topic};
use crate::schedules;

const ROUNDS: usize = 20;

/// A second host on the first one's store.
pub(crate) async fn beside(rig: &Rig) -> Rig {
    let (clock, modules) = (Arc::new(SystemClock::new()), Arc::clone(&rig.modules));
    Rig::beside(
        clock,
        rig.engine.second_host(),
        modules,
        BrokerLimits::default(),
    )
    .await
}

async fn two_hosts() -> (Rig, Rig) {
    let one = Rig::deployed(2, |_| (), |_, _| Say::Pass).await;
    let other = beside(&one).await;
    (one, other)
}

/// Runs both at once, each on its own thread.
async fn both<A, B>(
    one: impl Future<Output = A> + Send + 'static,
    other: impl Future<Output = B> + Send + 'static,
) -> (A, B)
where
    A: Send + 'static,
    B: Send + 'static,
{
    let (one, other) = (tokio::spawn(one), tokio::spawn(other));
    (one.await.unwrap(), other.await.unwrap())
}

/// Waits until the condition holds.
pub(crate) async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    for _ in 0..30_000 {
        if is_so().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("it never came to that: {what}");
}

fn known(rig: &Rig) -> Option<Processor> {
    rig.session.processors().deployed_as(&processor("p"))
}

/// A different specification for each number.
fn nth(module: millrace_model::Digest, number: usize) -> ProcessorSpec {
    let mut spec = spec(module);
    spec.batch.messages_max = 100 + u32::try_from(number).unwrap();
    spec
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_two_hosts_deploy_at_once_are_two_revisions() {
    let (one, other) = two_hosts().await;
    let module = known(&one).unwrap().current().unwrap().spec.module;
    for round in 0..ROUNDS {
        let before = known(&one).unwrap().revisions.len();
        let deploy = |rig: &Rig, number| {
            let session = rig.session.clone();
            async move {
                session
                    .processors()
                    .deploy(&processor("p"), nth(module, number))
                    .await
            }
        };
        let (first, second) = both(deploy(&one, 2 * round), deploy(&other, 2 * round + 1)).await;
        let numbers = [first.unwrap().current, second.unwrap().current];
        assert_ne!(numbers[0], numbers[1], "each is a revision of its own");
        until("both hosts know both", async || {
            known(&one) == known(&other)
        })
        .await;
        let now = known(&one).unwrap();
        let kept: BTreeSet<u32> = now.revisions.iter().map(|r| r.number).collect();
        assert!(
            numbers.iter().all(|n| kept.contains(n)),
            "{numbers:?} {kept:?}"
        );
        assert!(
            kept.len() > before || kept.len() >= REVISIONS_KEPT_MAX,
            "{kept:?}"
        );
        let newest = now.changes.iter().rev().take(2).map(|c| c.revision);
        let newest: BTreeSet<u32> = newest.collect();
        assert_eq!(newest, BTreeSet::from(numbers), "its history has both");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_rollback_that_two_hosts_are_asked_for_is_done_once() {
    let (one, other) = two_hosts().await;
    let module = known(&one).unwrap().current().unwrap().spec.module;
    for round in 0..ROUNDS {
        let bad = one
            .session
            .processors()
            .deploy(&processor("p"), nth(module, round))
            .await;
        let bad = bad.unwrap().current;
        let take_back = |rig: &Rig| {
            let session = rig.session.clone();
            let name = processor("p");
            async move {
                session
                    .processors()
                    .rollback_expecting(&name, Some(1), Some(bad))
                    .await
            }
        };
        let (first, second) = both(take_back(&one), take_back(&other)).await;
        let done = [&first, &second].into_iter().filter(|done| done.is_ok());
        assert_eq!(done.count(), 1, "{first:?} {second:?}");
        let refused = first.err().or_else(|| second.err());
        let is_told = matches!(refused, Some(ProcessorError::OtherRevision { .. }));
        assert!(is_told, "{refused:?}");
        until("both hosts are back", async || {
            known(&one) == known(&other) && known(&one).unwrap().current == 1
        })
        .await;
        let changes = known(&one).unwrap().changes;
        let is_back = |c: &&millrace_model::Change| c.what == ChangeKind::Rollback;
        let last_two = changes.iter().rev().take(2).filter(is_back).count();
        assert_eq!(last_two, 1, "its history has one: {changes:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_one_host_does_with_a_processor_shows_on_the_other() {
    let (one, other) = two_hosts().await;
    one.session
        .processors()
        .pause(&processor("p"))
        .await
        .unwrap();
    until("it is paused there", async || {
        known(&other).is_some_and(|p| p.paused)
    })
    .await;
    // Each works one of the two partitions.
    other
        .until(|all| all.iter().any(|one| one.state == "paused"))
        .await;
    other
        .session
        .processors()
        .resume(&processor("p"), None)
        .await
        .unwrap();
    until("it goes on here", async || {
        known(&one).is_some_and(|p| !p.paused)
    })
    .await;
    other
        .until(|all| all.iter().any(|one| one.state == "running"))
        .await;
    one.session
        .processors()
        .delete_processor(&processor("p"))
        .await
        .unwrap();
    until("it is gone there", async || known(&other).is_none()).await;
    let gone = other.session.processors().pause(&processor("p")).await;
    assert!(matches!(gone, Err(ProcessorError::Unknown(_))), "{gone:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn letters_that_two_hosts_send_again_at_once_are_sent_once() {
    for _ in 0..ROUNDS / 4 {
        let one = Rig::deployed(1, |_| (), |_, _| Say::Reject("closed")).await;
        let values: Vec<String> = (0..96).map(|n| n.to_string()).collect();
        let messages: Vec<(&str, &str)> = values.iter().map(|v| ("k", v.as_str())).collect();
        one.produce(&messages).await;
        let values: Vec<&str> = values.iter().map(String::as_str).collect();
        one.hold("in.p.dlq", &values).await;
        one.session
            .processors()
            .pause(&processor("p"))
            .await
            .unwrap();
        let other = beside(&one).await;
        let redrive = |rig: &Rig| {
            let session = rig.session.clone();
            async move {
                let all = RedriveRequest::all();
                session.dead_letters().redrive(&processor("p"), all).await
            }
        };
        let (first, second) = both(redrive(&one), redrive(&other)).await;
        let sent = first.unwrap().sent + second.unwrap().sent;
        assert_eq!(sent, values.len());
        one.hold("in.p.redrive", &values).await;
        one.session
            .processors()
            .delete_processor(&processor("p"))
            .await
            .unwrap();
        until("it is gone there", async || known(&other).is_none()).await;
        let late = redrive(&other).await;
        assert!(matches!(late, Err(DeadLetterError::Deleted(_))), "{late:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_two_hosts_one_makes_the_message_of_a_schedule() {
    let one = Rig::start(2).await;
    let name = ScheduleName::parse("s").unwrap();
    let every_second = schedules::spec("in", "* * * * * *");
    let put = one
        .session
        .schedules()
        .put_schedule(&name, every_second.clone())
        .await;
    let first = put.unwrap().schedule.next.0;
    let other = beside(&one).await;
    until("three times have come", async || {
        let made = schedules::times(&one.messages("in").await);
        let due: BTreeSet<u64> = made.iter().map(|(due, _)| *due).collect();
        assert_eq!(due.len(), made.len(), "no time made two: {made:?}");
        due.len() >= 3
    })
    .await;
    other
        .session
        .schedules()
        .pause_schedule(&name, true)
        .await
        .unwrap();
    until("it is paused here as well", async || {
        let known = one.session.schedules().schedule(&name);
        known.is_some_and(|known| known.schedule.paused)
    })
    .await;
    let messages = one.messages("in").await;
    let made = schedules::times(&messages);
    let stands_for: u64 = made.iter().map(|(_, times)| times).sum();
    let last = made.last().unwrap().0;
    assert_eq!((last - first) / 1_000 + 1, stands_for, "{made:?}");
    let status = one.session.schedules().schedule(&name).unwrap();
    assert_eq!(status.schedule.made, made.len() as u64);

    other
        .session
        .schedules()
        .delete_schedule(&name)
        .await
        .unwrap();
    until("it is gone here", async || {
        one.session.schedules().schedule(&name).is_none()
    })
    .await;
    one.session
        .schedules()
        .put_schedule(&name, every_second)
        .await
        .unwrap();
    until("it is there again", async || {
        other.session.schedules().schedule(&name).is_some()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_tag_that_two_hosts_are_asked_for_is_one_modules() {
    let (one, other) = two_hosts().await;
    for round in 0..ROUNDS {
        let names = ["a", "b"].map(|which| format!("{which}{round}"));
        for name in &names {
            let handler = per_message(|_, _| Say::Ack);
            one.modules.know(name, Export::Processor(Arc::new(handler)));
        }
        let tag = format!("handler@{round}");
        let upload = |rig: &Rig, name: &String| {
            let (session, tag) = (rig.session.clone(), tag.clone());
            let bytes = Bytes::from(name.clone());
            async move { session.catalogue().upload_module(bytes, Some(tag)).await }
        };
        let uploads = (upload(&one, &names[0]), upload(&other, &names[1]));
        let (first, second) = both(uploads.0, uploads.1).await;
        let taken = [&first, &second].into_iter().filter(|done| done.is_ok());
        assert_eq!(taken.count(), 1, "{first:?} {second:?}");
        let refused = first.err().or_else(|| second.err());
        assert!(
            matches!(refused, Some(ModuleError::TagTaken { .. })),
            "{refused:?}"
        );
        let modules = one.session.catalogue().modules();
        let tagged = modules.iter().filter(|m| m.tag.as_ref() == Some(&tag));
        assert_eq!(tagged.count(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_host_takes_away_what_another_deploys_on() {
    let (one, other) = two_hosts().await;
    let module = known(&one).unwrap().current().unwrap().spec.module;
    for round in 0..ROUNDS {
        let name = topic(&format!("out-{round}"));
        let new = NewTopic {
            name: name.clone(),
            partitions: 1,
            durability: Durability::Os,
            partitioner: None,
            settings: TopicSettings::default(),
        };
        one.session.catalogue().create_topic(new).await.unwrap();
        let mut next = spec(module);
        next.output = Some(name.clone());
        let (session, gone) = (other.session.clone(), name.clone());
        let deploying = one.session.clone();
        let (deployed, deleted) = both(
            async move { deploying.processors().deploy(&processor("p"), next).await },
            async move { session.catalogue().delete_topic(&gone, false).await },
        )
        .await;
        let is_there = one.session.catalogue().topic(&name).is_some();
        assert_eq!(deployed.is_ok(), is_there, "{deployed:?} {deleted:?}");
        assert_eq!(deleted.is_err(), is_there, "{deployed:?} {deleted:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_two_hosts_change_of_a_topic_at_once_stands_both() {
    let (one, other) = two_hosts().await;
    for round in 1..=ROUNDS as u64 {
        let change = |rig: &Rig, patch: TopicPatch| {
            let session = rig.session.clone();
            async move { session.catalogue().change_topic(&topic("out"), patch).await }
        };
        let mut age = TopicPatch::default();
        age.settings.retention_ms = Some(Some(round * 1_000));
        let mut size = TopicPatch::default();
        size.settings.retention_bytes = Some(Some(round << 20));
        let (first, second) = both(change(&one, age), change(&other, size)).await;
        first.unwrap();
        second.unwrap();
        let settings = one
            .session
            .catalogue()
            .topic(&topic("out"))
            .unwrap()
            .spec
            .settings;
        assert_eq!(settings.retention_ms, Some(round * 1_000));
        assert_eq!(settings.retention_bytes, Some(round << 20));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_topic_that_one_host_enlarges_is_larger_on_the_other() {
    let (one, other) = two_hosts().await;
    let mut growths = other.session.catalogue().growths();
    let more = TopicPatch {
        partitions: Some(6),
        accept_moved_keys: true,
        ..TopicPatch::default()
    };
    let grown = one
        .session
        .catalogue()
        .change_topic(&topic("in"), more)
        .await;
    grown.unwrap();
    let heard = tokio::time::timeout(Duration::from_secs(10), growths.changed());
    heard.await.expect("in time").unwrap();
    other.until(|all| all.len() == 6).await;
    let messages: Vec<(String, String)> =
        (0..60).map(|n| (format!("k{n}"), n.to_string())).collect();
    let messages: Vec<(&str, &str)> = messages.iter().map(|(k, v)| (&**k, &**v)).collect();
    let placed = other.produce(&messages).await;
    let values: Vec<&str> = messages.iter().map(|(_, value)| *value).collect();
    one.hold("out", &values).await;
    let used: BTreeSet<u32> = placed.iter().map(|placed| placed.partition().0).collect();
    assert!(used.iter().any(|partition| *partition >= 2), "{used:?}");
}

/// With more partitions, the work of existing ones is divided otherwise, too. Nobody waits for a host that does not know that it should work.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn work_goes_on_at_once_when_a_topic_grows() {
    let (one, other) = two_hosts().await;
    let mut values = Vec::new();
    for partitions in [5, 9, 16, 30] {
        let more = TopicPatch {
            partitions: Some(partitions),
            accept_moved_keys: true,
            ..TopicPatch::default()
        };
        let grown = one
            .session
            .catalogue()
            .change_topic(&topic("in"), more)
            .await;
        grown.unwrap();
        other.until(|all| all.len() == partitions as usize).await;
        let messages: Vec<(String, String)> = (0..100)
            .map(|n| (format!("k{n}"), format!("{partitions}-{n}")))
            .collect();
        let messages: Vec<(&str, &str)> = messages.iter().map(|(k, v)| (&**k, &**v)).collect();
        one.produce(&messages).await;
        values.extend(messages.iter().map(|(_, value)| (*value).to_owned()));
        let values: Vec<&str> = values.iter().map(String::as_str).collect();
        // Long before another host would take up what lies undone.
        one.hold("out", &values).await;
    }
}

#[tokio::test]
async fn what_this_host_cannot_read_stops_here_and_is_left_as_it_is_until_it_can_be_read() {
    let rig = Rig::deployed(1, |_| (), |_, _| Say::Pass).await;
    let engine = rig.engine();
    let readable = engine.entry(EntryKind::Processor, "p").unwrap().value;
    let write = async |value: Bytes| {
        let entry = EntryWrite {
            kind: EntryKind::Processor,
            key: "p".to_owned(),
            value: Some(value),
        };
        let transaction = Transaction {
            entries: vec![entry],
            ..Transaction::default()
        };
        engine.commit(transaction).await.unwrap();
    };
    write("of a later version".into()).await;
    let is_told = |state: &str| state.starts_with("stopped") && state.contains("cannot read");
    rig.until(|all| all.iter().all(|one| is_told(&one.state)))
        .await;
    let deployed = rig
        .session
        .processors()
        .deploy(&processor("p"), nth(digest("m"), 1))
        .await;
    assert!(
        matches!(
            deployed,
            Err(ProcessorError::Commit(CommitError::Conflict(_)))
        ),
        "{deployed:?}"
    );
    let left = engine.entry(EntryKind::Processor, "p").unwrap().value;
    assert_eq!(left, "of a later version", "nothing is written over it");
    write(readable).await;
    rig.produce(&[("a", "1")]).await;
    rig.hold("out", &["1"]).await;
    rig.session
        .processors()
        .deploy(&processor("p"), nth(digest("m"), 1))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_behind_is_counted_in_messages_where_offsets_have_gaps() {
    const MESSAGES: u64 = 12;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let engine = MemoryEngine::with_gaps(Arc::clone(&clock), 3);
    let modules = Arc::new(Modules::default());
    let one = Rig::beside(clock, engine, modules, BrokerLimits::default()).await;
    one.topic("in", 1).await;
    one.topic("out", 1).await;
    let handler = per_message(|_, _| Say::Reject("no"));
    let module = one.upload_handler("m", handler).await;
    one.deploy(spec(module)).await;
    let other = beside(&one).await;
    let name = processor("p");
    one.session.processors().pause(&name).await.unwrap();
    let reader: ConsumerName = "billing".parse().unwrap();
    let input = topic("in");
    let made = one.session.consumers().make_consumer(&input, &reader, None);
    made.await.unwrap();
    for number in 0..MESSAGES {
        one.produce(&[("k", &number.to_string())]).await;
    }
    let ends = one.session.catalogue().ends(
        &one.session.catalogue().topic(&topic("in")).unwrap(),
        PartitionId(0),
    );
    assert!(ends.unwrap().end.0 > MESSAGES, "its offsets have gaps");
    for rig in [&one, &other] {
        until("each host counts them", async || {
            let consumer = rig
                .session
                .consumers()
                .consumer(&topic("in"), &reader)
                .await
                .unwrap();
            let status = rig.session.processors().processor(&name).await.unwrap();
            let lag: u64 = status
                .partitions
                .iter()
                .map(|partition| partition.lag)
                .sum();
            (lag, consumer.lag) == (MESSAGES, MESSAGES)
        })
        .await;
    }
    one.session.processors().resume(&name, None).await.unwrap();
    until("all are given up, and counted", async || {
        let waiting = other
            .session
            .dead_letters()
            .dead_letters_waiting(&name)
            .await;
        waiting.is_ok_and(|waiting| waiting == MESSAGES)
    })
    .await;
}
