//! Replays: exactly the range, with the revision asked for, into one topic, also with a restart in
//! the middle.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use millrace_broker::{ProcessorError, ReplayRequest};
use millrace_model::{Clock, Processor, ProcessorName, ProcessorSpec, SystemClock, Timestamp};

use crate::revisions::marker;
use crate::rig::{Rig, Say, message, per_message, processor, spec, text, topic};
use crate::states::counting;

fn request(from: u64, until: u64, into: &str) -> ReplayRequest {
    ReplayRequest {
        revision: None,
        from: Timestamp(from),
        until: Timestamp(until),
        into: topic(into),
        name: None,
    }
}

/// Produces messages with these timestamps, and with the timestamps as values.
async fn produce(rig: &Rig, timestamps: std::ops::Range<u64>) {
    for at in timestamps {
        let mut new = message(&format!("k{}", at % 7), &at.to_string());
        new.message.timestamp = Timestamp(at);
        rig.session
            .messages()
            .produce(&topic("in"), vec![new])
            .await
            .unwrap();
    }
}

/// Waits until the replay is done.
async fn done(rig: &Rig, name: &ProcessorName) {
    for _ in 0..5_000 {
        let status = rig.session.processors().processor(name).await.unwrap();
        if status
            .partitions
            .iter()
            .all(|p| p.state == "done" && p.lag == 0)
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!(
        "{:?}",
        rig.session
            .processors()
            .processor(name)
            .await
            .unwrap()
            .partitions
    );
}

async fn replay(rig: &Rig, request: ReplayRequest) -> Processor {
    rig.session
        .processors()
        .replay(&processor("p"), request)
        .await
        .unwrap()
}

fn numbers(values: &[String]) -> Vec<u64> {
    let words = values.iter().filter_map(|v| v.split(' ').next());
    let mut numbers: Vec<u64> = words.map(|word| word.parse().unwrap()).collect();
    numbers.sort_unstable();
    numbers
}

#[tokio::test]
async fn a_replay_takes_exactly_its_range_through_the_revision_asked_for() {
    let rig = Rig::start(3).await;
    rig.topic("again", 2).await;
    let (a, b) = (marker(&rig, "a").await, marker(&rig, "b").await);
    rig.deploy(spec(a)).await;
    rig.deploy(spec(b)).await;
    produce(&rig, 100..400).await;
    rig.settled().await;
    let first = ReplayRequest {
        revision: Some(1),
        ..request(150, 250, "again")
    };
    let made = replay(&rig, first).await;
    assert_eq!((made.name.as_str(), made.current), ("p-replay-1", 1));
    // Messages that arrive after the replay was created do not belong to it, whatever their
    // timestamps.
    produce(&rig, 200..210).await;
    done(&rig, &made.name).await;
    let values = rig.values("again").await;
    assert_eq!(numbers(&values), Vec::from_iter(150..250));
    assert!(values.iter().all(|value| value.ends_with("by a")));
    assert_eq!(
        rig.values("out").await.len(),
        310,
        "the original's, and no more"
    );

    let all = replay(&rig, request(0, u64::MAX, "again")).await;
    assert_eq!((all.name.as_str(), all.current), ("p-replay-2", 2));
    done(&rig, &all.name).await;
    let values = rig.values("again").await;
    let by_b = values
        .iter()
        .filter(|value| value.ends_with("by b"))
        .count();
    assert_eq!(by_b, 310);
    rig.session
        .processors()
        .delete_processor(&made.name)
        .await
        .unwrap();
    let third = replay(&rig, request(0, 150, "again")).await;
    assert_eq!(
        third.name.as_str(),
        "p-replay-3",
        "a name that was used has progress"
    );
}

#[tokio::test]
async fn all_outputs_of_a_replay_go_to_its_topic_and_its_failures_are_its_own() {
    let rig = Rig::start(1).await;
    rig.topic("other", 4).await;
    rig.topic("again", 1).await;
    let elsewhere = crate::rig::whole(|batch| {
        let mut answer = millrace_model::Answer {
            topic_names: vec!["other".to_owned()],
            ..Default::default()
        };
        for message in 0..batch.len() {
            let n: u32 = text(batch.value(message)).parse().unwrap();
            answer.outcomes.push(if n == 5 { 3 } else { 1 });
            if n != 5 {
                answer.sources.push(message as u32);
                answer.topics.push(0);
                answer.partitions.push(3);
            }
        }
        Ok(answer)
    });
    let module = rig.upload_handler("m", elsewhere).await;
    let mut granted = spec(module);
    granted.grants.topics = vec![topic("other")];
    rig.deploy(granted).await;
    produce(&rig, 1..11).await;
    rig.settled().await;
    assert_eq!(rig.values("other").await.len(), 9);
    let made = replay(&rig, request(2, 8, "again")).await;
    done(&rig, &made.name).await;
    assert_eq!(rig.values("other").await.len(), 9, "no more");
    assert_eq!(numbers(&rig.values("again").await), [2, 3, 4, 6, 7]);
    assert_eq!(rig.letters().await.len(), 1, "the original's");
    let filter = millrace_broker::DeadLetterQuery::default();
    let letters = rig
        .session
        .dead_letters()
        .dead_letters(&made.name, filter)
        .await
        .unwrap();
    assert_eq!(letters.letters.len(), 1);
}

#[tokio::test]
async fn a_replay_goes_on_where_it_was_when_the_host_starts_again_and_has_state_of_its_own() {
    let rig = Rig::start(1).await;
    rig.topic("again", 1).await;
    let counted = counting(|batch, message| match batch.attempts[message] {
        // Some messages are retried, so that the host ends in the middle.
        1 if text(batch.value(message)).ends_with('3') => Say::Retry(Some(30)),
        _ => Say::Pass,
    });
    let module = rig.upload_handler("m", counted).await;
    let mut small = spec(module);
    small.batch.messages_max = 4;
    rig.deploy(small).await;
    produce(&rig, 1..200).await;
    rig.settled().await;
    let made = replay(&rig, request(20, 180, "again")).await;
    let mut rig = rig;
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        rig = Rig::on(Arc::clone(&rig.engine), Arc::clone(&rig.modules)).await;
    }
    done(&rig, &made.name).await;
    let values = rig.values("again").await;
    assert_eq!(numbers(&values), Vec::from_iter(20..180));
    let mut last = HashMap::new();
    for value in &values {
        let n: u64 = value.parse().unwrap();
        assert!(
            last.insert(n % 7, n).is_none_or(|before| before < n),
            "keys keep their order"
        );
    }
    let place = millrace_broker::StatePlace {
        processor: made.name.clone(),
        topic: None,
        partition: millrace_model::PartitionId(0),
    };
    let query = millrace_broker::state::StateQuery {
        prefix: Vec::new(),
        after: None,
        entries_max: 100,
        bytes_max: 1 << 20,
        now: Timestamp(0),
    };
    let page = rig.session.processors().state(&place, query).await.unwrap();
    let sum: i64 = page
        .entries
        .iter()
        .filter_map(|e| e.value.as_number())
        .sum();
    assert_eq!(sum, 160);
}

#[tokio::test]
async fn what_cannot_be_replayed_is_refused_with_its_reason() {
    let rig = Rig::start(1).await;
    rig.topic("again", 1).await;
    let module = rig.upload_handler("m", per_message(|_, _| Say::Pass)).await;
    let name = processor("p");
    let unknown = rig
        .session
        .processors()
        .replay(&name, request(0, 9, "again"))
        .await;
    assert!(matches!(unknown, Err(ProcessorError::Unknown(_))));
    rig.deploy(spec(module)).await;
    produce(&rig, 5..8).await;
    rig.settled().await;
    let refused = async |request: ReplayRequest| {
        rig.session
            .processors()
            .replay(&name, request)
            .await
            .unwrap_err()
    };
    for (request, why) in [
        (request(9, 3, "again"), "ends before it begins"),
        (request(50, 90, "again"), "no message"),
        (request(0, 9, "in"), "the processor reads in"),
        (
            ReplayRequest {
                name: Some(processor("p")),
                ..request(0, 9, "again")
            },
            "needs an unused name",
        ),
        (request(0, 9, "in.p.dlq"), "belongs to processor"),
    ] {
        let error = refused(request).await;
        assert!(error.to_string().contains(why), "{error}");
    }
    let error = refused(request(0, 9, "nowhere")).await;
    assert!(matches!(error, ProcessorError::UnknownTopic(_)), "{error}");
    let no_such = ReplayRequest {
        revision: Some(7),
        ..request(0, 9, "again")
    };
    let error = refused(no_such).await;
    assert!(
        matches!(error, ProcessorError::NoSuchRevision { .. }),
        "{error}"
    );
    assert_eq!(
        rig.session.processors().processors().await.len(),
        1,
        "nothing was made"
    );

    let made = replay(&rig, request(0, 9, "again")).await;
    done(&rig, &made.name).await;
    let other = ProcessorSpec {
        output: Some(topic("out")),
        ..spec(module)
    };
    for refused in [
        rig.session
            .processors()
            .deploy(&made.name, other.clone())
            .await,
        rig.session
            .processors()
            .deploy_and_reset_state(&made.name, other.clone())
            .await,
        rig.session
            .processors()
            .deploy_canary(&made.name, other.clone(), 10)
            .await,
        rig.session
            .processors()
            .deploy_shadow(&made.name, other)
            .await,
        rig.session
            .processors()
            .replay(&made.name, request(0, 9, "again"))
            .await,
    ] {
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("replay"), "{error}");
    }
}

#[tokio::test]
async fn a_replay_takes_every_message_of_its_time_wherever_it_stands_and_no_other() {
    let rig = Rig::start(1).await;
    rig.topic("again", 1).await;
    let module = rig.upload_handler("m", per_message(|_, _| Say::Pass)).await;
    rig.deploy(spec(module)).await;
    let ahead = SystemClock::new().wall().0 + 3_600_000;
    let times = [ahead, 100, 199, 5, 200, 7, ahead, 150, 300, 120, 99];
    for at in times {
        produce(&rig, at..at + 1).await;
    }
    rig.settled().await;
    let made = replay(&rig, request(100, 200, "again")).await;
    done(&rig, &made.name).await;
    assert_eq!(numbers(&rig.values("again").await), [100, 120, 150, 199]);

    // There are messages on both sides of the range, and none in it.
    let name = processor("p");
    let nothing = rig
        .session
        .processors()
        .replay(&name, request(201, 300, "again"));
    let error = nothing.await.unwrap_err();
    assert!(error.to_string().contains("no message"), "{error}");

    let last = replay(&rig, request(99, 100, "again")).await;
    done(&rig, &last.name).await;
    let seen = numbers(&rig.values("again").await);
    assert_eq!(seen, [99, 100, 120, 150, 199]);
}
