//! The wall clock is set forward or back: durations stay the same, and the order of events is kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use millrace_broker::{DelayedQuery, DueAt, NewMessage};
use millrace_engine::MemoryEngine;
use millrace_model::{Clock, ScheduleName, Timestamp};

use crate::rig::{Modules, Rig, Say, SetClock, message, per_message, spec, text, topic};
use crate::schedules;

const HOUR_MS: i64 = 3_600_000;

async fn rig() -> (Rig, Arc<SetClock>) {
    let clock = Arc::new(SetClock::default());
    let engine = MemoryEngine::new(Arc::clone(&clock) as Arc<dyn Clock>);
    let rig = Rig::by(clock.clone(), engine, Arc::new(Modules::default())).await;
    rig.topic("in", 1).await;
    rig.topic("out", 1).await;
    (rig, clock)
}

/// Another broker on the same data, with the same clock.
async fn again(rig: Rig, clock: &Arc<SetClock>) -> Rig {
    let (engine, modules) = (Arc::clone(&rig.engine), Arc::clone(&rig.modules));
    rig.broker.wind_down(Duration::ZERO).await;
    drop(rig);
    Rig::by(clock.clone(), engine, modules).await
}

/// Deploys a processor that fails the first attempt of values that begin with `busy`, to be retried
/// after `after_ms`.
async fn deploy_busy(rig: &Rig, after_ms: u64) -> Arc<AtomicUsize> {
    let tries = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&tries);
    let busy = per_message(move |batch, message| {
        let is_busy = text(batch.value(message)).starts_with("busy");
        if is_busy {
            counted.fetch_add(1, Ordering::SeqCst);
        }
        match is_busy && batch.attempts[message] == 1 {
            true => Say::Retry(Some(after_ms)),
            false => Say::Pass,
        }
    });
    rig.deploy(spec(rig.upload_handler("busy", busy).await))
        .await;
    tries
}

#[tokio::test]
async fn a_retry_and_its_key_wait_as_long_as_they_were_to_wait_when_the_clock_is_set_back() {
    let (rig, clock) = rig().await;
    deploy_busy(&rig, 1_000).await;
    rig.produce(&[("k", "busy"), ("k", "behind it")]).await;
    rig.until(|all| all[0].parked == 2).await;
    clock.step(-HOUR_MS);
    // Much sooner than an hour, and within the ten seconds of `hold`.
    rig.hold("out", &["busy", "behind it"]).await;
}

#[tokio::test]
async fn a_retry_does_not_come_early_when_the_clock_is_set_forward() {
    let (rig, clock) = rig().await;
    let tries = deploy_busy(&rig, 60_000).await;
    rig.produce(&[("k", "busy")]).await;
    rig.until(|all| all[0].parked == 1).await;
    clock.step(HOUR_MS);
    // Another message makes the worker look at the clock.
    rig.produce(&[("j", "another key")]).await;
    rig.hold("out", &["another key"]).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(tries.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_retry_waits_no_longer_than_it_was_to_wait_over_a_restart_with_the_clock_set_back() {
    let (rig, clock) = rig().await;
    deploy_busy(&rig, 1_000).await;
    rig.produce(&[("k", "busy"), ("k", "behind it")]).await;
    rig.until(|all| all[0].parked == 2).await;
    clock.step(-HOUR_MS);
    let rig = again(rig, &clock).await;
    rig.hold("out", &["busy", "behind it"]).await;
}

#[tokio::test]
async fn delayed_messages_of_one_time_come_in_the_order_in_which_they_were_taken_whatever_the_clock_did()
 {
    let (rig, clock) = rig().await;
    clock.step(HOUR_MS);
    let due = clock.wall().after(Duration::from_secs(60));
    let at = |value: &str, due: Timestamp| NewMessage {
        deliver_at: Some(due.into()),
        ..message("k", value)
    };
    let send = async |rig: &Rig, values: [&str; 2]| {
        let messages = values.map(|value| at(value, due)).to_vec();
        rig.session
            .messages()
            .produce(&topic("in"), messages)
            .await
            .unwrap();
    };
    send(&rig, ["1", "2"]).await;
    clock.step(-2 * HOUR_MS);
    let rig = again(rig, &clock).await;
    send(&rig, ["3", "4"]).await;
    clock.step(3 * HOUR_MS);
    let rig = again(rig, &clock).await;
    rig.hold("in", &["1", "2", "3", "4"]).await;
    assert_eq!(rig.values("in").await, ["1", "2", "3", "4"]);
}

#[tokio::test]
async fn a_delay_given_as_a_span_stays_one_and_a_time_means_what_the_clock_shows() {
    let (rig, clock) = rig().await;
    let send = async |value: &str, due: DueAt| {
        let message = NewMessage {
            deliver_at: Some(due),
            ..message("k", value)
        };
        let produced = rig
            .session
            .messages()
            .produce(&topic("in"), vec![message])
            .await;
        produced.unwrap();
    };
    let waiting = async || {
        let query = DelayedQuery {
            max: 10,
            ..DelayedQuery::default()
        };
        rig.session
            .messages()
            .delayed(&topic("in"), &query)
            .await
            .unwrap()
            .messages
    };
    send("late", DueAt::after(clock.wall(), 60_000)).await;
    let first_id = waiting().await[0].id;
    send("soon", DueAt::after(clock.wall(), 1_000)).await;
    let half_an_hour = Duration::from_secs(1_800);
    send("fixed", clock.wall().after(half_an_hour).into()).await;
    clock.step(-HOUR_MS);
    // Much sooner than an hour.
    rig.hold("in", &["soon"]).await;
    clock.step(2 * HOUR_MS);
    // Another delayed message makes the host look at the clock at once; one that is already due
    // would not.
    send("now", DueAt::after(clock.wall(), 1_000)).await;
    rig.hold("in", &["soon", "fixed", "now"]).await;
    let late = waiting().await.remove(0);
    assert_eq!(text(late.message.value.as_deref()), "late");
    let left = clock.wall().until(late.id.due());
    assert!(
        left <= Duration::from_secs(60) && left > Duration::from_secs(20),
        "{left:?}"
    );
    // It can also be cancelled by its first id.
    assert_ne!(late.id, first_id);
    rig.session
        .messages()
        .cancel_delayed(&topic("in"), first_id)
        .await
        .unwrap();
    assert!(waiting().await.is_empty());
}

#[tokio::test]
async fn more_delayed_messages_than_one_transaction_moves_all_move_with_the_clock() {
    const MESSAGES: usize = 24;
    let (rig, clock) = rig().await;
    let large = "x".repeat(200 << 10);
    let values: Vec<String> = (0..MESSAGES).map(|n| format!("{n} {large}")).collect();
    let due = DueAt::after(clock.wall(), 2_000);
    for value in &values {
        let message = NewMessage {
            deliver_at: Some(due),
            ..message("k", value)
        };
        let produced = rig
            .session
            .messages()
            .produce(&topic("in"), vec![message])
            .await;
        produced.unwrap();
    }
    clock.step(-HOUR_MS);
    // Much sooner than an hour, and in the order of arrival.
    let expected: Vec<&str> = values.iter().map(String::as_str).collect();
    rig.hold("in", &expected).await;
    assert_eq!(rig.values("in").await, expected);
}

#[tokio::test]
async fn a_schedule_says_that_it_waits_for_the_clock_and_until_when() {
    let (rig, clock) = rig().await;
    let name = ScheduleName::parse("s").unwrap();
    let put = rig
        .session
        .schedules()
        .put_schedule(&name, schedules::spec("in", "* * * * * *"));
    assert_eq!(put.await.unwrap().waiting, None);
    rig.until_made(1).await;
    clock.step(-HOUR_MS / 2);
    let status = rig.session.schedules().schedule(&name).unwrap();
    let waiting = status.waiting.unwrap();
    assert!(waiting.contains("the clock was set back"), "{waiting}");
    let made = status.schedule.made;
    clock.step(HOUR_MS / 2);
    rig.until_made(made + 1).await;
    assert_eq!(
        rig.session.schedules().schedule(&name).unwrap().waiting,
        None
    );
}

impl Rig {
    async fn until_made(&self, count: u64) {
        for _ in 0..6_000 {
            let all = self.session.schedules().schedules();
            if all.iter().all(|status| status.schedule.made >= count) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{:?}", self.session.schedules().schedules());
    }
}
