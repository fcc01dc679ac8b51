//! Schedules: each time makes one message, also through restarts, and missed times together make
//! one more.

use std::sync::Arc;
use std::time::Duration;

use millrace_broker::{ProduceError, ScheduleError};
use millrace_model::bounds::SCHEDULE_MESSAGE_BYTES_MAX;
use millrace_model::{Message, ScheduleName, ScheduleSpec};

use crate::rig::{Rig, text, topic};

fn name(name: &str) -> ScheduleName {
    ScheduleName::parse(name).unwrap()
}

pub(crate) fn spec(to: &str, cron: &str) -> ScheduleSpec {
    ScheduleSpec {
        topic: topic(to),
        cron: cron.parse().unwrap(),
        key: Some("k".to_owned()),
        value: Some("tick".to_owned()),
        headers: vec![("colour".to_owned(), "red".to_owned())],
        partition: None,
    }
}

fn header(message: &Message, name: &str) -> Option<String> {
    let found = message.headers.iter().find(|h| h.name == name.as_bytes());
    found.map(|header| text(header.value.as_deref()))
}

/// How many times each message stands for, with its due time.
pub(crate) fn times(messages: &[Message]) -> Vec<(u64, u64)> {
    let number = |m, name| header(m, name).map(|text| text.parse::<u64>().unwrap());
    let mut times: Vec<(u64, u64)> = messages
        .iter()
        .map(|m| {
            let missed = number(m, "millrace-missed").unwrap_or(0);
            (number(m, "millrace-due").unwrap(), missed + 1)
        })
        .collect();
    times.sort_unstable();
    times
}

async fn until_it_holds(rig: &Rig, count: usize) -> Vec<Message> {
    for _ in 0..3_000 {
        let messages = rig.messages("in").await;
        if messages.len() >= count {
            return messages;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("there were never {count} messages");
}

#[tokio::test]
async fn each_time_of_a_schedule_makes_one_message_over_restarts() {
    let mut rig = Rig::start(2).await;
    let status = rig
        .session
        .schedules()
        .put_schedule(&name("s"), spec("in", "* * * * * *"))
        .await
        .unwrap();
    let first = status.schedule.next.0;
    let mut held = 0;
    for _ in 0..3 {
        held = until_it_holds(&rig, held + 1).await.len();
        let (engine, modules) = (Arc::clone(&rig.engine), Arc::clone(&rig.modules));
        drop(rig);
        tokio::time::sleep(Duration::from_millis(300)).await;
        rig = Rig::on(engine, modules).await;
    }
    rig.session
        .schedules()
        .pause_schedule(&name("s"), true)
        .await
        .unwrap();
    let messages = rig.messages("in").await;
    assert_eq!(
        header(&messages[0], "millrace-schedule").as_deref(),
        Some("s")
    );
    assert_eq!(header(&messages[0], "colour").as_deref(), Some("red"));
    let mut next = first;
    for (due, count) in times(&messages) {
        assert_eq!(due, next + (count - 1) * 1_000, "each second once");
        next = due + 1_000;
    }
    let status = rig.session.schedules().schedule(&name("s")).unwrap();
    assert_eq!(status.schedule.made, messages.len() as u64);
    assert_eq!(status.schedule.next.0, next);
    let made = messages.len();
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    assert_eq!(rig.messages("in").await.len(), made, "it is paused");
    let resumed = rig
        .session
        .schedules()
        .pause_schedule(&name("s"), false)
        .await
        .unwrap();
    assert!(
        resumed.schedule.next.0 > next,
        "what was missed is passed over"
    );
    until_it_holds(&rig, made + 1).await;
    rig.session
        .schedules()
        .delete_schedule(&name("s"))
        .await
        .unwrap();
    let gone = rig.session.schedules().delete_schedule(&name("s")).await;
    assert!(matches!(gone, Err(ScheduleError::Unknown(_))));
    assert!(rig.session.schedules().schedules().is_empty());
}

#[tokio::test]
async fn times_that_were_missed_make_one_message_that_says_how_many() {
    let rig = Rig::start(1).await;
    let every_second = spec("in", "* * * * * *");
    let put = rig
        .session
        .schedules()
        .put_schedule(&name("s"), every_second)
        .await
        .unwrap();
    let first = put.schedule.next.0;
    let (engine, modules) = (Arc::clone(&rig.engine), Arc::clone(&rig.modules));
    drop(rig);
    tokio::time::sleep(Duration::from_millis(3_300)).await;
    let rig = Rig::on(engine, modules).await;
    let messages = until_it_holds(&rig, 1).await;
    let (due, count) = times(&messages)[0];
    assert!(count >= 3, "{count}");
    assert_eq!(due, first + (count - 1) * 1_000);
}

#[tokio::test]
async fn a_schedule_is_changed_by_putting_another_and_the_same_again_changes_nothing() {
    let rig = Rig::start(1).await;
    let put = async |spec| rig.session.schedules().put_schedule(&name("s"), spec).await;
    let first = put(spec("in", "0 0 1 1 *")).await.unwrap();
    assert_eq!(put(spec("in", "0 0 1 1 *")).await.unwrap(), first);
    let second = put(spec("in", "0 0 1 6 *")).await.unwrap();
    assert_ne!(second.schedule.next, first.schedule.next);
    assert_eq!(rig.session.schedules().schedules(), [second]);
}

#[tokio::test]
async fn a_schedule_that_its_topic_would_not_take_is_refused() {
    let rig = Rig::start(1).await;
    let put = async |spec| {
        rig.session
            .schedules()
            .put_schedule(&name("s"), spec)
            .await
            .unwrap_err()
    };
    let refused = put(spec("nowhere", "@daily")).await;
    assert!(matches!(
        refused,
        ScheduleError::Message(ProduceError::UnknownTopic(_))
    ));
    let mut reserved = spec("in", "@daily");
    reserved.headers[0].0 = "millrace-due".to_owned();
    let refused = put(reserved).await;
    assert!(matches!(
        refused,
        ScheduleError::Message(ProduceError::ReservedHeader { .. })
    ));
    let mut large = spec("in", "@daily");
    large.value = Some("x".repeat(SCHEDULE_MESSAGE_BYTES_MAX));
    assert!(matches!(put(large).await, ScheduleError::TooLarge { .. }));
    assert!(rig.session.schedules().schedules().is_empty());
}

#[tokio::test]
async fn a_schedule_without_its_topic_says_so_and_goes_on_when_it_is_back() {
    let rig = Rig::start(1).await;
    let every_second = spec("in", "* * * * * *");
    rig.session
        .schedules()
        .put_schedule(&name("s"), every_second)
        .await
        .unwrap();
    rig.session
        .catalogue()
        .delete_topic(&topic("in"), false)
        .await
        .unwrap();
    for _ in 0..2_000 {
        let status = rig.session.schedules().schedule(&name("s")).unwrap();
        if status.problem.is_some_and(|why| why.contains("topic in")) {
            rig.topic("in", 1).await;
            let messages = until_it_holds(&rig, 1).await;
            assert_eq!(times(&messages)[0].1, 1);
            for _ in 0..1_000 {
                if rig
                    .session
                    .schedules()
                    .schedule(&name("s"))
                    .unwrap()
                    .problem
                    .is_none()
                {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            panic!("it still has a problem");
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("it never said that its topic is gone");
}

#[tokio::test]
async fn a_schedule_run_by_hand_makes_one_message_and_keeps_its_next_time() {
    let rig = Rig::start(1).await;
    let yearly = spec("in", "0 0 1 1 *");
    let made = rig
        .session
        .schedules()
        .put_schedule(&name("s"), yearly)
        .await
        .unwrap();
    let operator = rig.named("operator");
    let ran = operator.schedules().run_schedule(&name("s")).await.unwrap();
    assert_eq!(ran.schedule.next, made.schedule.next);
    assert_eq!((ran.schedule.last, ran.schedule.made), (None, 1));
    rig.session
        .schedules()
        .pause_schedule(&name("s"), true)
        .await
        .unwrap();
    operator.schedules().run_schedule(&name("s")).await.unwrap();
    let messages = rig.messages("in").await;
    assert_eq!(messages.len(), 2);
    for message in &messages {
        assert_eq!(header(message, "millrace-schedule").as_deref(), Some("s"));
        assert_eq!(
            header(message, "millrace-run-by").as_deref(),
            Some("operator")
        );
        assert_eq!(text(message.value.as_deref()), "tick");
    }
    // The run is recorded, and the record survives a restart.
    let (engine, modules) = (Arc::clone(&rig.engine), Arc::clone(&rig.modules));
    drop(rig);
    let rig = Rig::on(engine, modules).await;
    let kept = rig
        .session
        .schedules()
        .schedule(&name("s"))
        .unwrap()
        .schedule;
    let by = kept.last_run.and_then(|run| run.by);
    assert_eq!(
        (kept.paused, kept.made, by.as_deref()),
        (true, 2, Some("operator"))
    );
    let nobody = rig.session.schedules().run_schedule(&name("t")).await;
    assert!(matches!(nobody, Err(ScheduleError::Unknown(_))));
}

#[tokio::test]
async fn a_run_whose_message_the_topic_does_not_take_changes_nothing() {
    let rig = Rig::start(1).await;
    rig.topic("gone", 1).await;
    let yearly = spec("gone", "0 0 1 1 *");
    rig.session
        .schedules()
        .put_schedule(&name("s"), yearly)
        .await
        .unwrap();
    rig.session
        .catalogue()
        .delete_topic(&topic("gone"), false)
        .await
        .unwrap();
    let refused = rig
        .session
        .schedules()
        .run_schedule(&name("s"))
        .await
        .unwrap_err();
    assert!(matches!(
        refused,
        ScheduleError::Message(ProduceError::UnknownTopic(_))
    ));
    let kept = rig
        .session
        .schedules()
        .schedule(&name("s"))
        .unwrap()
        .schedule;
    assert_eq!((kept.made, kept.last_run), (0, None));
}
