//! Topics that get more partitions while they are in use: everything that depends on their number
//! learns of it, and the change needs confirmation if something depends on where the messages of a
//! key are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use millrace_broker::{
    BeginAt, Growth, KeyedUse, NewMessage, NewTopic, NextSpec, Placed, ProduceError,
    RedriveRequest, ReplayRequest, TopicChangeError, TopicPatch,
};
use millrace_engine::{Engine, TopicChange, TopicError};
use millrace_model::bounds::TOPIC_PARTITIONS_MAX;
use millrace_model::processor::Order;
use millrace_model::{
    Clock, Durability, PartitionId, ScheduleName, ScheduleSpec, SystemClock, Timestamp,
};
use tokio::sync::watch;

use crate::revisions::marker;
use crate::rig::{Export, Rig, Say, assign, message, per_message, processor, spec, text, topic};
use crate::states::counting;
use crate::workplace::{by_first_word, dead, redrive};

fn to(partitions: u32) -> TopicPatch {
    TopicPatch {
        partitions: Some(partitions),
        ..TopicPatch::default()
    }
}

fn accepted(partitions: u32) -> TopicPatch {
    TopicPatch {
        accept_moved_keys: true,
        ..to(partitions)
    }
}

async fn grow(rig: &Rig, name: &str, partitions: u32) -> Growth {
    let patch = accepted(partitions);
    let changed = rig
        .session
        .catalogue()
        .change_topic(&topic(name), patch)
        .await
        .unwrap();
    assert_eq!(changed.topic.spec.partitions, partitions);
    changed.grown.expect("it grew")
}

/// Why the change is refused; checks that nothing has changed.
async fn refused(rig: &Rig, name: &str, patch: TopicPatch) -> TopicChangeError {
    let before = rig.session.catalogue().topics();
    let refused = rig
        .session
        .catalogue()
        .change_topic(&topic(name), patch)
        .await;
    assert_eq!(rig.session.catalogue().topics(), before);
    refused.expect_err("it is refused")
}

/// The uses that would have to be accepted.
async fn uses(rig: &Rig, name: &str) -> Vec<KeyedUse> {
    let have = rig
        .session
        .catalogue()
        .topic(&topic(name))
        .unwrap()
        .spec
        .partitions;
    match refused(rig, name, to(have + 1)).await {
        TopicChangeError::KeysMove { uses, .. } => uses,
        other => panic!("{other}"),
    }
}

/// The number of messages in each partition.
fn counts(rig: &Rig, name: &str) -> Vec<u64> {
    let topic = rig.session.catalogue().topic(&topic(name)).unwrap();
    let ends = topic.partitions().map(|at| rig.engine.ends(at).unwrap());
    ends.map(|ends| ends.end.0).collect()
}

async fn until_counts(rig: &Rig, name: &str, wanted: &[u64]) {
    for _ in 0..5_000 {
        if rig.session.catalogue().topic(&topic(name)).is_some() && counts(rig, name) == wanted {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("{name} holds {:?}, not {wanted:?}", counts(rig, name));
}

async fn produce(rig: &Rig, numbers: std::ops::Range<u32>) {
    let values: Vec<String> = numbers.map(|n| n.to_string()).collect();
    let messages: Vec<(&str, &str)> = values.iter().map(|v| (&v[..], &v[..])).collect();
    rig.produce(&messages).await;
}

fn values(numbers: std::ops::Range<u32>) -> Vec<String> {
    numbers.map(|n| n.to_string()).collect()
}

async fn hold(rig: &Rig, name: &str, numbers: std::ops::Range<u32>) {
    let values = values(numbers);
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    rig.hold(name, &values).await;
}

async fn placed(rig: &Rig, messages: Vec<NewMessage>) -> Vec<PartitionId> {
    let placed = rig
        .session
        .messages()
        .produce(&topic("in"), messages)
        .await
        .unwrap();
    placed.iter().map(Placed::partition).collect()
}

fn into(partition: u32, value: &str) -> NewMessage {
    NewMessage {
        partition: Some(PartitionId(partition)),
        ..message("k", value)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_load_and_a_processor_go_on_over_growth_and_each_message_is_done_once() {
    // Messages before each growth, and after the last one.
    const EACH: u32 = 300;
    const LAST: u32 = 600;
    const MESSAGES: u32 = 3 * EACH + LAST;
    let rig = Arc::new(Rig::deployed(2, |_| {}, |_, _| Say::Pass).await);
    // Otherwise the producers would be done before the first growth.
    let (allow, mut allowed) = watch::channel(EACH);
    let producing = tokio::spawn({
        let rig = Arc::clone(&rig);
        async move {
            for number in 0..MESSAGES {
                allowed.wait_for(|allowed| number < *allowed).await.unwrap();
                produce(&rig, number..number + 1).await;
            }
        }
    });
    for (round, partitions) in [3, 4, 7].into_iter().enumerate() {
        let before = u64::from(EACH) * round as u64 + 200;
        while counts(&rig, "in").iter().sum::<u64>() < before {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let grown = grow(&rig, "in", partitions).await;
        let along: Vec<&str> = grown.along.iter().map(|name| name.as_str()).collect();
        assert_eq!(along, ["in.p.dlq", "in.p.redrive"]);
        grow(&rig, "out", partitions + 1).await;
        allow.send_modify(|allowed| *allowed += if partitions == 7 { LAST } else { EACH });
    }
    producing.await.unwrap();
    hold(&rig, "out", 0..MESSAGES).await;
    rig.settled().await;
    for name in ["in", "out"] {
        let counts = counts(&rig, name);
        assert!(counts.iter().all(|&count| count > 0), "{name}: {counts:?}");
    }
    let status = rig.until(|all| all.len() == 7).await;
    assert!(
        status.iter().all(|one| one.state == "running"),
        "{status:?}"
    );
    let numbers: Vec<u32> = status.iter().map(|one| one.partition.0).collect();
    assert_eq!(numbers, Vec::from_iter(0..7));
    // Another broker on the same data uses the same numbers.
    let again = Rig::on(Arc::clone(&rig.engine), Arc::clone(&rig.modules)).await;
    produce(&again, MESSAGES..MESSAGES + 100).await;
    hold(&again, "out", 0..MESSAGES + 100).await;
}

#[tokio::test]
async fn keys_are_spread_over_the_new_count_from_then_on_and_what_is_there_stays() {
    let rig = Rig::start(2).await;
    let keyed = || {
        (0..300)
            .map(|n| message(&format!("key {n}"), "v"))
            .collect()
    };
    let before = placed(&rig, keyed()).await;
    grow(&rig, "in", 8).await;
    let held = counts(&rig, "in");
    assert_eq!((held[0] + held[1], &held[2..]), (300, &[0; 6][..]));
    let after = placed(&rig, keyed()).await;
    assert_eq!(after, placed(&rig, keyed()).await);
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(before.0, after.0 % 2, "by the hash of the key");
    }
    let used: BTreeSet<u32> = after.iter().map(|partition| partition.0).collect();
    assert_eq!(used, BTreeSet::from_iter(0..8));
    // Without a key, full batches go to all partitions in turn.
    let large = "x".repeat(20 << 10);
    let mut used = BTreeSet::new();
    for _ in 0..8 {
        used.extend(placed(&rig, vec![message("", &large)]).await);
    }
    assert_eq!(used.len(), 8);
}

#[tokio::test]
async fn a_component_is_asked_with_the_new_count_by_producers_and_for_outputs() {
    let rig = Rig::start(2).await;
    let last = |partitions: u32, messages: &millrace_model::ColumnBatch| {
        Ok(vec![partitions - 1; messages.len()])
    };
    let partitioner = Export::Partitioner(Arc::new(assign(last)));
    let partitioner = Some(rig.upload("last", partitioner).await);
    for name in ["picked", "further"] {
        let new = NewTopic {
            name: topic(name),
            partitions: 2,
            durability: Durability::Os,
            partitioner,
            settings: Default::default(),
        };
        rig.session.catalogue().create_topic(new).await.unwrap();
    }
    let passes = per_message(|_, _| Say::Pass);
    let mut spec = spec(rig.upload_handler("m", passes).await);
    spec.topics = vec![topic("picked")];
    spec.output = Some(topic("further"));
    rig.deploy(spec).await;
    let send = async |value: &str| {
        let messages = vec![message("k", value)];
        let sent = rig
            .session
            .messages()
            .produce(&topic("picked"), messages)
            .await;
        sent.unwrap();
    };
    send("a").await;
    rig.hold("further", &["a"]).await;
    grow(&rig, "picked", 3).await;
    grow(&rig, "further", 5).await;
    send("b").await;
    rig.hold("further", &["a", "b"]).await;
    assert_eq!(counts(&rig, "picked"), [0, 1, 1]);
    assert_eq!(counts(&rig, "further"), [0, 1, 0, 0, 1]);
}

#[tokio::test]
async fn a_new_partition_takes_what_names_it_now_later_and_by_schedule() {
    let rig = Rig::deployed(2, |_| {}, |_, _| Say::Pass).await;
    let sent = rig
        .session
        .messages()
        .produce(&topic("in"), vec![into(3, "a")])
        .await;
    assert!(
        matches!(
            &sent,
            Err(ProduceError::UnknownPartition { unknown, .. }) if unknown.partitions == 2
        ),
        "{sent:?}"
    );
    grow(&rig, "in", 4).await;
    let due = Some(SystemClock::new().wall().after(Duration::from_millis(50)));
    let later = NewMessage {
        deliver_at: due.map(Into::into),
        ..into(2, "later")
    };
    let at = placed(&rig, vec![into(3, "now"), later]).await;
    assert_eq!(at, [PartitionId(3), PartitionId(2)]);
    let schedule = ScheduleSpec {
        partition: Some(PartitionId(3)),
        ..crate::schedules::spec("in", "0 0 1 1 *")
    };
    let name = ScheduleName::parse("yearly").unwrap();
    rig.session
        .schedules()
        .put_schedule(&name, schedule)
        .await
        .unwrap();
    rig.session.schedules().run_schedule(&name).await.unwrap();
    rig.hold("out", &["now", "later", "tick"]).await;
    assert_eq!(counts(&rig, "in"), [0, 0, 1, 2]);
}

#[tokio::test]
async fn dead_letters_of_a_new_partition_are_kept_and_sent_again_there() {
    let (rig, open) = by_first_word(1).await;
    dead(&rig, 2).await;
    open.store(true, Ordering::SeqCst);
    // Creates the audit topic, which grows as well.
    redrive(&rig, RedriveRequest::all()).await;
    rig.settled().await;
    open.store(false, Ordering::SeqCst);
    let grown = grow(&rig, "in", 3).await;
    let along: Vec<&str> = grown.along.iter().map(|name| name.as_str()).collect();
    assert_eq!(along, ["in.p.audit", "in.p.dlq", "in.p.redrive"]);
    placed(&rig, vec![into(2, "odd 7")]).await;
    until_counts(&rig, "in.p.dlq", &[2, 0, 1]).await;
    let letters = rig.letters().await;
    assert_eq!(letters.len(), 1, "{letters:?}");
    open.store(true, Ordering::SeqCst);
    let sent = redrive(&rig, RedriveRequest::all()).await;
    assert_eq!(sent.sent, 1);
    rig.hold("out", &["even 0", "odd 1", "odd 7"]).await;
    assert_eq!(counts(&rig, "in.p.redrive"), [2, 0, 1]);
    assert_eq!(counts(&rig, "in.p.audit")[2], 1);
}

#[tokio::test]
async fn a_processor_that_reads_what_grows_along_reads_the_new_partitions_and_its_own_topics_grow()
{
    let (rig, _) = by_first_word(1).await;
    dead(&rig, 1).await;
    // It reads the dead letters of `p`, and has dead letters of its own.
    let reads = per_message(|_, _| Say::Reject("again"));
    let mut second = spec(rig.upload_handler("second", reads).await);
    second.topics = vec![topic("in.p.dlq")];
    rig.session
        .processors()
        .deploy(&processor("q"), second)
        .await
        .unwrap();
    until_counts(&rig, "in.p.dlq.q.dlq", &[1]).await;
    let grown = grow(&rig, "in", 3).await;
    let along: Vec<&str> = grown.along.iter().map(|name| name.as_str()).collect();
    assert!(
        along.contains(&"in.p.dlq") && along.contains(&"in.p.dlq.q.dlq"),
        "{along:?}"
    );
    placed(&rig, vec![into(2, "odd 7")]).await;
    until_counts(&rig, "in.p.dlq", &[1, 0, 1]).await;
    until_counts(&rig, "in.p.dlq.q.dlq", &[1, 0, 1]).await;
}

#[tokio::test]
async fn what_depends_on_it_where_the_messages_of_a_key_are_is_asked_first() {
    let rig = Rig::start(2).await;
    let rest = "read by nobody, and not compacted";
    let changed = rig
        .session
        .catalogue()
        .change_topic(&topic("in"), to(3))
        .await;
    let changed = changed.unwrap();
    assert_eq!(changed.grown.expect("it grew").uses, [], "{rest}");

    let count = rig.upload_handler("m", counting(|_, _| Say::Pass)).await;
    let mut unordered = spec(count);
    unordered.order = Order::None;
    rig.deploy(unordered.clone()).await;
    let changed = rig
        .session
        .catalogue()
        .change_topic(&topic("in"), to(4))
        .await;
    assert!(changed.is_ok(), "there is no state yet: {changed:?}");

    rig.produce(&[("k", "v")]).await;
    rig.settled().await;
    let p = processor("p");
    assert_eq!(uses(&rig, "in").await, [KeyedUse::State(p.clone())]);
    for order in [Order::Key, Order::Partition] {
        let mut ordered = unordered.clone();
        ordered.order = order;
        rig.deploy(ordered).await;
        let both = [KeyedUse::Order(p.clone()), KeyedUse::State(p.clone())];
        assert_eq!(uses(&rig, "in").await, both);
    }
    // A processor created again would continue with its state.
    rig.session.processors().delete_processor(&p).await.unwrap();
    assert_eq!(uses(&rig, "in").await, [KeyedUse::State(p)]);

    let compact = TopicPatch {
        settings: serde_json::from_str(r#"{"compact": true}"#).unwrap(),
        ..to(3)
    };
    let both_at_once = refused(&rig, "out", compact.clone()).await;
    assert!(
        matches!(&both_at_once, TopicChangeError::KeysMove { uses, have: 2, asked: 3, .. }
            if *uses == [KeyedUse::Compaction]),
        "{both_at_once}"
    );
    let compact = TopicPatch {
        partitions: None,
        ..compact
    };
    rig.session
        .catalogue()
        .change_topic(&topic("out"), compact)
        .await
        .unwrap();
    assert_eq!(uses(&rig, "out").await, [KeyedUse::Compaction]);
    let told = refused(&rig, "out", to(4)).await.to_string();
    assert!(told.contains("keys of topic out move"), "{told}");
    assert_eq!(grow(&rig, "out", 4).await.uses, [KeyedUse::Compaction]);
    assert!(grow(&rig, "in", 5).await.before == 4);
}

#[tokio::test]
async fn counts_that_cannot_be_are_refused_and_the_same_one_changes_nothing() {
    let rig = Rig::deployed(3, |_| {}, |_, _| Say::Pass).await;
    let changed = rig
        .session
        .catalogue()
        .change_topic(&topic("in"), to(3))
        .await
        .unwrap();
    assert!(changed.grown.is_none());
    let fewer = refused(&rig, "in", accepted(2)).await;
    assert!(
        matches!(
            &fewer,
            TopicChangeError::Topic(TopicError::FewerPartitions {
                have: 3,
                asked: 2,
                ..
            })
        ),
        "{fewer}"
    );
    let many = refused(&rig, "in", accepted(TOPIC_PARTITIONS_MAX + 1)).await;
    assert!(
        matches!(many, TopicChangeError::Topic(TopicError::Partitions { .. })),
        "{many}"
    );
    for own in ["in.p.dlq", "in.p.redrive"] {
        let follows = refused(&rig, own, accepted(4)).await;
        assert!(
            matches!(&follows, TopicChangeError::Follows { owner, .. } if *owner == processor("p")),
            "{follows}"
        );
    }
    let unknown = refused(&rig, "nothing", accepted(4)).await;
    assert!(
        matches!(unknown, TopicChangeError::Topic(TopicError::Unknown(_))),
        "{unknown}"
    );
    let with_a_setting = TopicPatch {
        settings: serde_json::from_str(r#"{"segment_bytes": 1}"#).unwrap(),
        ..accepted(4)
    };
    let setting = refused(&rig, "in", with_a_setting).await;
    assert!(matches!(setting, TopicChangeError::Setting(_)), "{setting}");
}

/// The case of a host that learns of it only from the engine: an input recreated under its name, or
/// one that got more partitions from another version.
#[tokio::test]
async fn topics_that_a_processor_keeps_for_itself_follow_at_its_start() {
    let (rig, _) = by_first_word(1).await;
    dead(&rig, 1).await;
    let more = TopicChange {
        partitions: Some(3),
        ..TopicChange::default()
    };
    let engine = rig.engine();
    engine.change_topic(&topic("in"), more).await.unwrap();
    rig.broker.wind_down(Duration::from_secs(5)).await;
    let again = Rig::on(Arc::clone(&rig.engine), Arc::clone(&rig.modules)).await;
    for own in ["in.p.dlq", "in.p.redrive"] {
        assert_eq!(counts(&again, own).len(), 3, "{own}");
    }
    placed(&again, vec![into(2, "odd 9")]).await;
    for _ in 0..5_000 {
        if again.letters().await.len() == 2 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!(
        "{:?}",
        again.session.processors().processor(&processor("p")).await
    );
}

#[tokio::test]
async fn state_stays_where_it_is_and_a_key_that_moves_begins_without() {
    let rig = Rig::start(1).await;
    let count = rig.upload_handler("m", counting(|_, _| Say::Pass)).await;
    rig.deploy(spec(count)).await;
    let keys: Vec<String> = (0..20).map(|n| format!("k{n}")).collect();
    let each: Vec<(&str, &str)> = keys.iter().map(|key| (&key[..], "v")).collect();
    for _ in 0..3 {
        rig.produce(&each).await;
    }
    rig.settled().await;
    grow(&rig, "in", 4).await;
    for _ in 0..2 {
        rig.produce(&each).await;
    }
    rig.settled().await;
    let (p, mut moved) = (processor("p"), 0);
    for key in &keys {
        let found = rig
            .session
            .processors()
            .state_of_key(&p, None, key.as_bytes());
        let found: BTreeMap<u32, i64> = found
            .await
            .unwrap()
            .iter()
            .map(|holding| {
                let value = &holding.page.entries[0].value;
                (holding.partition.0, value.as_number().unwrap())
            })
            .collect();
        let mut counts: Vec<i64> = found.values().copied().collect();
        match found.len() {
            1 => assert_eq!(found[&0], 5, "{key} stays"),
            _ => {
                counts.sort_unstable();
                assert_eq!((found[&0], counts), (3, vec![2, 3]), "{key} moves");
                moved += 1;
            }
        }
    }
    assert!((5..20).contains(&moved), "{moved} of 20");
}

#[tokio::test]
async fn a_canary_and_a_shadow_see_new_partitions_too() {
    for shadowed in [false, true] {
        let rig = Rig::start(2).await;
        let (a, b) = (marker(&rig, "a").await, marker(&rig, "b").await);
        rig.deploy(spec(a)).await;
        let p = processor("p");
        match shadowed {
            true => rig
                .session
                .processors()
                .deploy_shadow(&p, spec(b))
                .await
                .unwrap(),
            false => rig
                .session
                .processors()
                .deploy_canary(&p, spec(b), 50)
                .await
                .unwrap(),
        };
        produce(&rig, 0..40).await;
        grow(&rig, "in", 6).await;
        produce(&rig, 40..100).await;
        rig.settled().await;
        let values = rig.values("out").await;
        assert_eq!(values.len(), 100);
        if shadowed {
            for _ in 0..5_000 {
                if rig.session.processors().shadow_report(&p).unwrap().compared == 100 {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            assert_eq!(
                rig.session.processors().shadow_report(&p).unwrap().compared,
                100
            );
        } else {
            let by_b = values.iter().filter(|v| v.ends_with("by b")).count();
            assert!((20..80).contains(&by_b), "{by_b} of 100");
        }
    }
}

#[tokio::test]
async fn a_replay_ends_with_what_was_there_when_it_was_made() {
    let rig = Rig::start(2).await;
    rig.topic("again", 1).await;
    let marks = marker(&rig, "a").await;
    rig.deploy(spec(marks)).await;
    produce(&rig, 0..50).await;
    rig.settled().await;
    let request = ReplayRequest {
        revision: None,
        from: Timestamp(0),
        until: Timestamp(u64::MAX),
        into: topic("again"),
        name: None,
    };
    let replay = rig
        .session
        .processors()
        .replay(&processor("p"), request)
        .await
        .unwrap();
    grow(&rig, "in", 5).await;
    produce(&rig, 50..90).await;
    let mut last = None;
    for _ in 0..5_000 {
        let status = rig
            .session
            .processors()
            .processor(&replay.name)
            .await
            .unwrap();
        let is_done = status
            .partitions
            .iter()
            .all(|p| p.state == "done" && p.lag == 0);
        last = Some(status.partitions);
        if is_done {
            break;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let numbers: BTreeSet<u32> = last.iter().flatten().map(|p| p.partition.0).collect();
    assert_eq!(numbers, BTreeSet::from([0, 1]), "{last:?}");
    rig.settled().await;
    let again = rig.values("again").await;
    let numbers: BTreeSet<u32> = again
        .iter()
        .map(|value| {
            text(value.split(' ').next().map(str::as_bytes))
                .parse()
                .unwrap()
        })
        .collect();
    assert_eq!((again.len(), numbers), (50, BTreeSet::from_iter(0..50)));
}

#[tokio::test]
async fn a_processor_that_began_at_the_end_reads_new_partitions_from_their_oldest_message() {
    let rig = Rig::start(1).await;
    produce(&rig, 0..3).await;
    let passes = rig.upload_handler("m", per_message(|_, _| Say::Pass)).await;
    let next = NextSpec::from(spec(passes)).beginning_at(Some(BeginAt::Latest));
    rig.session
        .processors()
        .deploy(&processor("p"), next)
        .await
        .unwrap();
    rig.session
        .processors()
        .pause(&processor("p"))
        .await
        .unwrap();
    grow(&rig, "in", 2).await;
    placed(&rig, vec![into(1, "a"), into(1, "b")]).await;
    // Also when the processor starts only after the growth.
    let again = Rig::on(Arc::clone(&rig.engine), Arc::clone(&rig.modules)).await;
    let resumed = again
        .session
        .processors()
        .resume(&processor("p"), None)
        .await;
    resumed.unwrap();
    again.hold("out", &["a", "b"]).await;
}

#[tokio::test]
async fn a_paused_processor_reads_new_partitions_when_it_goes_on() {
    let rig = Rig::deployed(1, |_| {}, |_, _| Say::Pass).await;
    rig.session
        .processors()
        .pause(&processor("p"))
        .await
        .unwrap();
    grow(&rig, "in", 3).await;
    placed(&rig, vec![into(2, "a"), into(0, "b")]).await;
    let status = rig
        .until(|all| all.len() == 3 && all.iter().all(|one| one.state == "paused"))
        .await;
    assert_eq!(status[2].lag, 1);
    assert!(rig.values("out").await.is_empty());
    rig.session
        .processors()
        .resume(&processor("p"), None)
        .await
        .unwrap();
    rig.hold("out", &["a", "b"]).await;
}

#[tokio::test]
async fn what_a_room_tells_another_is_told_as_long_as_there_is_a_session() {
    let rig = Rig::start(1).await;
    let pass = per_message(|_, _| Say::Pass);
    rig.deploy(spec(rig.upload_handler("m", pass).await)).await;
    let Rig {
        broker, session, ..
    } = rig;
    drop(broker);
    let catalogue = session.catalogue();
    let grown = catalogue.change_topic(&topic("in"), accepted(4)).await;
    assert_eq!(grown.unwrap().topic.spec.partitions, 4);
    let keys = (0..40).map(|n| format!("k{n}"));
    let new = keys.map(|key| message(&key, "v")).collect();
    let sent = session.messages().produce(&topic("in"), new).await;
    let in_new =
        |placed: &&Placed| matches!(placed, Placed::At { partition, .. } if partition.0 > 0);
    assert!(sent.unwrap().iter().filter(in_new).count() > 0);
    let out = catalogue.topic(&topic("out")).unwrap();
    let processed = || catalogue.ends(&out, PartitionId(0)).unwrap().end.0;
    for _ in 0..5_000 {
        if processed() == 40 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("{} of 40 were processed", processed());
}
