//! What bad deployments cost across a whole host: repairs and starts, calls in flight, recreated
//! processors.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use millrace_broker::handler::BatchHandler;
use millrace_broker::{CallError, ParkedAction, ParkedQuery, WhichParked};
use millrace_model::{Answer, Clock, ColumnBatch, ProcessorSpec, SystemClock};
use tokio::sync::Semaphore;

use crate::rig::{Rig, Say, per_message, processor, spec, text, trap};

fn numbered(numbers: std::ops::Range<u32>) -> Vec<(String, String)> {
    let message = |n: u32| (format!("k{n}"), n.to_string());
    numbers.map(message).collect()
}

async fn produce(rig: &Rig, numbers: std::ops::Range<u32>) {
    let messages = numbered(numbers);
    let messages: Vec<(&str, &str)> = messages.iter().map(|(k, v)| (&k[..], &v[..])).collect();
    rig.produce(&messages).await;
}

async fn passing(rig: &Rig) -> ProcessorSpec {
    let passes = per_message(|_, _| Say::Pass);
    spec(rig.upload_handler("passes", passes).await)
}

/// Waits until the breaker is open, or the processor was rolled back to this revision.
async fn stopped(rig: &Rig, back: u32) {
    for _ in 0..5_000 {
        let status = rig
            .session
            .processors()
            .processor(&processor("p"))
            .await
            .unwrap();
        let is_open = status
            .breaker
            .is_some_and(|breaker| breaker.state == "open");
        if is_open || status.processor.current == back {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("the revision was not stopped");
}

/// Each repair rejects with its own class, so that nothing is known of its rejections.
#[tokio::test]
async fn repairs_and_starts_together_give_up_four_messages_whoever_goes_back() {
    const CLASSES: [&str; 6] = ["one", "two", "three", "four", "five", "six"];
    for auto_rollback in [true, false] {
        let mut rig = Rig::start(2).await;
        let base = ProcessorSpec {
            auto_rollback,
            ..passing(&rig).await
        };
        rig.deploy(base.clone()).await;
        produce(&rig, 0..1_100).await;
        rig.settled().await;
        for (repair, class) in CLASSES.into_iter().enumerate() {
            let bad = per_message(move |_, _| Say::Reject(class));
            let module = rig.upload_handler(class, bad).await;
            rig.deploy(ProcessorSpec {
                module,
                ..base.clone()
            })
            .await;
            // One message after the other, as on a quiet topic.
            let first = 2_000 + repair as u32 * 20;
            for number in first..first + 20 {
                produce(&rig, number..number + 1).await;
            }
            stopped(&rig, 1).await;
            if repair % 2 == 1 {
                let (engine, modules) = (Arc::clone(&rig.engine), Arc::clone(&rig.modules));
                rig = Rig::on(engine, modules).await;
            }
        }
        let letters = rig.letters().await.len();
        assert!(letters <= 4, "{letters} with auto_rollback {auto_rollback}");
        rig.deploy(base).await;
        rig.settled().await;
        let out = rig.values("out").await.len();
        assert_eq!(out + letters, 1_100 + CLASSES.len() * 20);
    }
}

/// Answers once the test lets it, and then rejects everything.
struct Held(Arc<Semaphore>);

#[async_trait]
impl BatchHandler for Held {
    async fn process(&self, batch: &Arc<ColumnBatch>) -> Result<Answer, CallError> {
        let _let = self.0.acquire().await;
        per_message(|_, _| Say::Reject("odd")).process(batch).await
    }
}

#[tokio::test]
async fn what_a_revision_has_in_flight_when_another_takes_over_is_the_other_ones() {
    for enabled in [true, false] {
        let rig = Rig::start(1).await;
        let mut base = passing(&rig).await;
        base.breaker.enabled = enabled;
        rig.deploy(base.clone()).await;
        produce(&rig, 0..3).await;
        rig.settled().await;
        let door = Arc::new(Semaphore::new(0));
        let held = rig.upload_handler("held", Held(Arc::clone(&door))).await;
        rig.deploy(ProcessorSpec {
            module: held,
            ..base
        })
        .await;
        produce(&rig, 3..30).await;
        rig.until(|all| all[0].end.0 == 30 && all[0].next.0 == 3)
            .await;
        let back = rig
            .session
            .processors()
            .rollback(&processor("p"), Some(1))
            .await
            .unwrap();
        assert_eq!(back.current, 1);
        door.add_permits(100);
        rig.settled().await;
        assert_eq!(rig.letters().await.len(), 0);
        assert_eq!(rig.values("out").await.len(), 30);
    }
}

/// Both reject four in a hundred messages, in batches of a thousand.
#[tokio::test]
async fn a_validator_that_rejects_as_much_as_the_one_before_is_no_bad_deploy() {
    let rig = Rig::start(1).await;
    let validates = || {
        per_message(|batch, message| {
            let number: u32 = text(batch.value(message)).parse().unwrap();
            match number % 25 {
                0 => Say::Reject("invalid"),
                _ => Say::Pass,
            }
        })
    };
    let deployed = async |name: &str| {
        let mut spec = spec(rig.upload_handler(name, validates()).await);
        spec.batch.messages_max = 1_000;
        spec.dead_letters.max = 1_000_000;
        rig.deploy(spec).await;
    };
    deployed("first").await;
    produce(&rig, 0..2_000).await;
    rig.settled().await;
    deployed("second").await;
    for round in 1..6 {
        produce(&rig, round * 2_000..(round + 1) * 2_000).await;
    }
    rig.settled().await;
    assert_eq!(rig.letters().await.len(), 12_000 / 25);
    let status = rig
        .session
        .processors()
        .processor(&processor("p"))
        .await
        .unwrap();
    assert_eq!(status.breaker.unwrap().trips, 0);
}

#[tokio::test]
async fn attempts_at_a_processor_that_was_deleted_are_none_at_the_one_that_is_made_again() {
    let rig = Rig::start(1).await;
    let mut bad = spec(rig.upload_handler("bad", per_message(|_, _| trap())).await);
    bad.retry.attempts_max = 3;
    bad.retry.delay_first_ms = 60_000;
    bad.retry.delay_max_ms = 60_000;
    bad.breaker.enabled = false;
    rig.deploy(bad.clone()).await;
    produce(&rig, 0..1).await;
    let tried = async |attempts: u32| {
        for _ in 0..5_000 {
            let query = ParkedQuery {
                max: 10,
                ..ParkedQuery::default()
            };
            let page = rig
                .session
                .processors()
                .parked(&processor("p"), &query)
                .await
                .unwrap();
            if page
                .messages
                .first()
                .is_some_and(|one| one.attempts == attempts)
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        panic!("not tried {attempts} times");
    };
    let again = async || {
        let (all, now) = (WhichParked::All, ParkedAction::TryNow);
        let done = rig
            .session
            .processors()
            .do_with_parked(&processor("p"), all, now)
            .await;
        assert_eq!(done.unwrap().done, 1);
    };
    tried(1).await;
    again().await;
    tried(2).await;
    rig.session
        .processors()
        .delete_processor(&processor("p"))
        .await
        .unwrap();
    // The test distinguishes attempts by milliseconds.
    let clock = SystemClock::new();
    let now = clock.wall();
    while clock.wall() == now {
        tokio::task::yield_now().await;
    }
    rig.deploy(bad).await;
    again().await;
    tried(3).await;
    assert_eq!(rig.letters().await.len(), 0, "it is its first");
}
