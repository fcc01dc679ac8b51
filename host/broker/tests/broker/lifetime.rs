//! What processors do when messages are removed before they have read them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millrace_broker::{Before, BrokerLimits, ProduceError, TopicChangeError, TopicPatch};
use millrace_engine::{MemoryEngine, TopicError};
use millrace_model::{Offset, PartitionId, SettingsPatch, SystemClock};

use crate::rig::{Modules, Rig, Say, message, per_message, processor, spec, text, topic};

async fn trim(rig: &Rig, before: Before) -> Offset {
    let partition = Some(PartitionId(0));
    let trimmed = rig
        .session
        .catalogue()
        .trim(&topic("in"), partition, before)
        .await;
    trimmed.unwrap()[0].1
}

#[tokio::test]
async fn what_is_remembered_of_parked_messages_that_were_removed_makes_room_for_new_ones() {
    let limits = BrokerLimits {
        remembered_bytes: 20_000,
        ..BrokerLimits::default()
    };
    let clock = Arc::new(SystemClock::new());
    let engine = MemoryEngine::new(clock.clone());
    let rig = Rig::within(clock, engine, Arc::new(Modules::default()), limits).await;
    rig.topic("in", 1).await;
    rig.topic("out", 1).await;
    let waits = per_message(|batch, message| match text(batch.value(message)).as_str() {
        "wait" => Say::Retry(Some(100)),
        _ => Say::Pass,
    });
    let mut patient = spec(rig.upload_handler("m", waits).await);
    patient.retry.attempts_max = 100_000;
    patient.breaker.enabled = false;
    rig.deploy(patient).await;
    let keys: Vec<String> = (0..200).map(|n| n.to_string()).collect();
    let messages: Vec<(&str, &str)> = keys.iter().map(|key| (&key[..], "wait")).collect();
    rig.produce(&messages).await;
    rig.until(|all| all[0].state.contains("records of failed attempts"))
        .await;
    trim(&rig, Before::End).await;
    rig.produce(&[("a", "new")]).await;
    rig.hold("out", &["new"]).await;
    rig.settled().await;
}

#[tokio::test]
async fn a_processor_whose_next_messages_were_removed_goes_on_at_the_start() {
    let rig = Rig::deployed(1, |_| {}, |_, _| Say::Pass).await;
    rig.produce(&[("a", "0"), ("a", "1")]).await;
    rig.hold("out", &["0", "1"]).await;
    rig.settled().await;
    rig.session
        .processors()
        .pause(&processor("p"))
        .await
        .unwrap();
    rig.produce(&[("a", "2"), ("a", "3"), ("a", "4")]).await;
    assert_eq!(trim(&rig, Before::Offset(Offset(4))).await, Offset(4));
    rig.session
        .processors()
        .resume(&processor("p"), None)
        .await
        .unwrap();
    rig.hold("out", &["0", "1", "4"]).await;
    rig.settled().await;
    // If nothing is left, it waits for new messages.
    rig.session
        .processors()
        .pause(&processor("p"))
        .await
        .unwrap();
    rig.produce(&[("a", "5")]).await;
    assert_eq!(trim(&rig, Before::End).await, Offset(6));
    rig.session
        .processors()
        .resume(&processor("p"), None)
        .await
        .unwrap();
    rig.settled().await;
    rig.produce(&[("a", "6")]).await;
    rig.hold("out", &["0", "1", "4", "6"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_paused_processor_had_read_ahead_and_was_removed_is_not_processed() {
    let begun = Arc::new(AtomicBool::new(false));
    let free = Arc::new(AtomicBool::new(false));
    let (begins, waits) = (Arc::clone(&begun), Arc::clone(&free));
    let rig = Rig::deployed(
        1,
        |spec| spec.batch.messages_max = 1,
        move |_, _| {
            begins.store(true, Ordering::SeqCst);
            while !waits.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
            Say::Pass
        },
    )
    .await;
    // All four are read in one batch, and called one by one.
    rig.produce(&[("a", "0"), ("a", "1"), ("a", "2"), ("a", "3")])
        .await;
    while !begun.load(Ordering::SeqCst) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let name = processor("p");
    let pause = rig.session.processors().pause(&name);
    let release = async {
        tokio::task::yield_now().await;
        free.store(true, Ordering::SeqCst);
    };
    let (paused, ()) = tokio::join!(pause, release);
    paused.unwrap();
    rig.until(|all| all[0].state == "paused").await;
    trim(&rig, Before::End).await;
    rig.session.processors().resume(&name, None).await.unwrap();
    rig.produce(&[("a", "4")]).await;
    rig.settled().await;
    let processed = rig.values("out").await;
    assert_eq!(processed.last().map(String::as_str), Some("4"));
    // One more message may have been processed before the pause.
    assert!(
        processed.len() < 4 && !processed.contains(&"3".to_owned()),
        "{processed:?}"
    );
}

#[tokio::test]
async fn parked_messages_that_were_removed_are_given_up_and_hold_back_nobody() {
    let rig = Rig::deployed(
        1,
        |spec| spec.retry.attempts_max = 1_000,
        |batch, message| match text(batch.value(message)).as_str() {
            "bad" => Say::Retry(Some(20)),
            _ => Say::Pass,
        },
    )
    .await;
    rig.produce(&[("k", "bad"), ("k", "behind")]).await;
    rig.until(|all| all[0].parked == 2).await;
    trim(&rig, Before::End).await;
    rig.settled().await;
    rig.produce(&[("k", "after")]).await;
    rig.hold("out", &["after"]).await;
    assert!(rig.letters().await.is_empty());
}

fn compacted() -> TopicPatch {
    TopicPatch {
        settings: SettingsPatch {
            compact: Some(true),
            ..SettingsPatch::default()
        },
        ..TopicPatch::default()
    }
}

#[tokio::test]
async fn a_compacted_topic_takes_no_message_without_a_key() {
    let rig = Rig::start(1).await;
    let name = topic("in");
    rig.session
        .catalogue()
        .change_topic(&name, compacted())
        .await
        .unwrap();
    let messages = vec![message("k", "v"), message("", "v")];
    let refused = rig.session.messages().produce(&name, messages).await;
    assert!(
        matches!(&refused, Err(ProduceError::KeyMissing { index: 1, .. })),
        "{refused:?}"
    );
    assert!(rig.values("in").await.is_empty());
    let messages = vec![message("k", "v")];
    rig.session
        .messages()
        .produce(&name, messages)
        .await
        .unwrap();
}

#[tokio::test]
async fn dead_letters_are_not_compacted_away() {
    let rig = Rig::deployed(1, |_| {}, |_, _| Say::Reject("bad")).await;
    rig.produce(&[("k", "v")]).await;
    rig.settled().await;
    let refused = rig
        .session
        .catalogue()
        .change_topic(&topic("in.p.dlq"), compacted())
        .await;
    assert!(
        matches!(refused, Err(TopicChangeError::Compacted { .. })),
        "{refused:?}"
    );
    let refused = rig
        .session
        .catalogue()
        .change_topic(&topic("nothing"), compacted())
        .await;
    assert!(
        matches!(
            refused,
            Err(TopicChangeError::Topic(TopicError::Unknown(_)))
        ),
        "{refused:?}"
    );
}
