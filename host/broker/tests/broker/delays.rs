//! Delayed messages: delivered once, at their time and not before, unless they are cancelled.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use millrace_broker::{
    CallKey, DelayedError, DelayedId, DelayedPage, DelayedQuery, NewMessage, Placed, ProduceError,
};
use millrace_model::bounds::{DELAY_MS_MAX, DELAYED_BYTES_MAX, DELAYED_MESSAGE_BYTES_MAX};
use millrace_model::columns::{NO_TIME, OutcomeCode};
use millrace_model::{Answer, Clock, ColumnBatch, PartitionId, SystemClock, Timestamp};

use crate::rig::{Rig, message, processor, spec, text, topic, whole};

const SOON: Duration = Duration::from_millis(150);
const LATER: Duration = Duration::from_secs(3_600);

fn now() -> Timestamp {
    SystemClock::new().wall()
}

fn delayed(value: &str, by: Duration) -> NewMessage {
    NewMessage {
        deliver_at: Some(now().after(by).into()),
        ..message("k", value)
    }
}

fn id(placed: &Placed) -> DelayedId {
    match placed {
        Placed::Delayed(id) => *id,
        Placed::At { .. } => panic!("it was delivered at once"),
    }
}

impl Rig {
    async fn send(&self, messages: Vec<NewMessage>) -> Vec<Placed> {
        self.session
            .messages()
            .produce(&topic("in"), messages)
            .await
            .unwrap()
    }

    async fn waiting(&self, name: &str) -> DelayedPage {
        let query = DelayedQuery {
            max: 1_000,
            ..DelayedQuery::default()
        };
        self.session
            .messages()
            .delayed(&topic(name), &query)
            .await
            .unwrap()
    }

    async fn waiting_values(&self, name: &str) -> Vec<String> {
        let messages = self.waiting(name).await.messages;
        let value = |m: &millrace_broker::DelayedMessage| text(m.message.value.as_deref());
        messages.iter().map(value).collect()
    }

    /// Another broker on the same data.
    async fn again(self) -> Self {
        let (engine, modules) = (Arc::clone(&self.engine), Arc::clone(&self.modules));
        drop(self);
        Self::on(engine, modules).await
    }
}

#[tokio::test]
async fn a_delayed_message_is_there_at_its_time_and_not_before() {
    let rig = Rig::start(2).await;
    let (late, soon) = (delayed("late", LATER), delayed("soon", SOON));
    let due = soon.deliver_at.unwrap().time;
    let unstamped = NewMessage {
        message: millrace_model::Message {
            timestamp: Timestamp(0),
            ..soon.message.clone()
        },
        ..soon
    };
    let passed = NewMessage {
        deliver_at: Some(Timestamp(1).into()),
        ..message("k", "passed")
    };
    let placed = rig.send(vec![late, unstamped, passed]).await;
    assert_eq!(id(&placed[1]).due(), due);
    assert!(placed[2].offset().is_some(), "its time has passed");
    if now() < due {
        assert_eq!(rig.values("in").await, ["passed"]);
    }
    rig.hold("in", &["passed", "soon"]).await;
    assert!(now() >= due);
    let delivered = rig.messages("in").await;
    let soon = delivered
        .iter()
        .find(|m| m.value.as_deref() == Some(b"soon"));
    let soon = soon.unwrap();
    assert_eq!(soon.timestamp, due, "it has none of its own");
    assert_eq!(soon.headers.len(), 1);
    assert_eq!(rig.waiting_values("in").await, ["late"]);
}

#[tokio::test]
async fn messages_due_in_any_order_are_delivered_in_the_order_of_their_times() {
    let rig = Rig::start(1).await;
    let base = now().after(SOON);
    let at = |ms: u64, value: &str| NewMessage {
        deliver_at: Some(Timestamp(base.0 + ms).into()),
        ..message("k", value)
    };
    rig.send(vec![at(2, "4"), at(0, "1"), at(1, "3"), at(0, "2")])
        .await;
    rig.hold("in", &["1", "2", "3", "4"]).await;
    assert_eq!(rig.values("in").await, ["1", "2", "3", "4"]);
}

#[tokio::test]
async fn delayed_messages_outlive_the_broker_and_come_at_once_if_they_are_late() {
    let rig = Rig::start(1).await;
    rig.send(vec![delayed("a", SOON), delayed("b", LATER)])
        .await;
    let rig = rig.again().await;
    assert_eq!(
        rig.waiting("in").await.total + rig.values("in").await.len(),
        2
    );
    rig.hold("in", &["a"]).await;
    let rig = rig.again().await;
    assert_eq!(rig.waiting_values("in").await, ["b"]);
    assert_eq!(rig.values("in").await, ["a"]);
}

#[tokio::test]
async fn a_cancelled_message_is_never_delivered_and_a_delivered_one_cannot_be_cancelled() {
    let rig = Rig::start(1).await;
    let placed = rig.send(vec![delayed("a", SOON), delayed("b", SOON)]).await;
    let (a, b) = (id(&placed[0]), id(&placed[1]));
    let cancel = async |id| {
        rig.session
            .messages()
            .cancel_delayed(&topic("in"), id)
            .await
    };
    cancel(a).await.unwrap();
    assert!(matches!(cancel(a).await, Err(DelayedError::Unknown { .. })));
    rig.hold("in", &["b"]).await;
    assert!(matches!(cancel(b).await, Err(DelayedError::Unknown { .. })));
    let elsewhere: DelayedId = "7-1-2-3".parse().unwrap();
    let refused = cancel(elsewhere).await;
    assert!(matches!(
        refused,
        Err(DelayedError::UnknownPartition { .. })
    ));
    assert_eq!(rig.waiting("in").await, DelayedPage::default());
    assert_eq!(rig.values("in").await, ["b"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_delivery_and_cancellation_exactly_one_wins() {
    let rig = Rig::start(2).await;
    let messages = (0..400).map(|n| NewMessage {
        deliver_at: Some(now().after(Duration::from_millis(30 + n / 4)).into()),
        partition: Some(PartitionId(n as u32 % 2)),
        ..message("k", &n.to_string())
    });
    let placed = rig.send(messages.collect()).await;
    let mut cancelled = BTreeSet::new();
    for (n, placed) in placed.iter().enumerate() {
        // About as fast as they become due.
        tokio::time::sleep(Duration::from_micros(200)).await;
        let Placed::Delayed(id) = placed else {
            continue;
        };
        match rig
            .session
            .messages()
            .cancel_delayed(&topic("in"), *id)
            .await
        {
            Ok(()) => drop(cancelled.insert(n.to_string())),
            Err(DelayedError::Unknown { .. }) => {}
            Err(other) => panic!("{other}"),
        }
    }
    let kept = (0..400).map(|n| n.to_string());
    let kept: Vec<String> = kept.filter(|n| !cancelled.contains(n)).collect();
    let kept: Vec<&str> = kept.iter().map(String::as_str).collect();
    rig.hold("in", &kept).await;
}

#[tokio::test]
async fn a_call_with_a_key_delays_its_messages_once() {
    let rig = Rig::start(1).await;
    let key = |n| CallKey {
        key: [n; 16],
        fingerprint: [1; 16],
    };
    let messages = || vec![delayed("a", SOON), message("k", "now"), delayed("b", LATER)];
    let again = async |n| {
        let (topic, key) = (topic("in"), key(n));
        rig.session
            .messages()
            .produce_once(&topic, messages(), key)
            .await
            .unwrap()
    };
    let first = again(1).await;
    let second = again(1).await;
    assert!(second.repeated && !first.repeated);
    assert_eq!(first.placed, second.placed);
    rig.hold("in", &["a", "now"]).await;
    let third = again(1).await;
    assert_eq!((third.placed, third.repeated), (first.placed, true));
    assert_eq!(rig.waiting_values("in").await, ["b"]);
    assert_eq!(rig.values("in").await.len(), 2);

    let only = vec![delayed("c", LATER)];
    let name = topic("in");
    let one = rig
        .session
        .messages()
        .produce_once(&name, only.clone(), key(2));
    let one = one.await.unwrap();
    let two = rig.session.messages().produce_once(&name, only, key(2));
    assert_eq!(two.await.unwrap().placed, one.placed);
    assert_eq!(rig.waiting_values("in").await, ["b", "c"]);
}

#[tokio::test]
async fn what_is_too_large_or_too_far_away_is_refused_whole() {
    let rig = Rig::start(1).await;
    let mut large = delayed("", LATER);
    large.message.value = Some(vec![1; DELAYED_MESSAGE_BYTES_MAX].into());
    let far = delayed("far", Duration::from_millis(DELAY_MS_MAX + 60_000));
    let send = async |messages| rig.session.messages().produce(&topic("in"), messages).await;
    let refused = send(vec![message("k", "v"), large]).await;
    assert!(matches!(
        refused,
        Err(ProduceError::DelayedTooLarge { index: 1, .. })
    ));
    let refused = send(vec![far]).await;
    assert!(matches!(refused, Err(ProduceError::TooFar { .. })));
    assert_eq!(
        rig.waiting("in").await.total + rig.values("in").await.len(),
        0
    );
}

#[tokio::test]
async fn delayed_messages_are_listed_by_partition_and_time_in_pages() {
    let rig = Rig::start(3).await;
    let message = |partition, minutes: u64, value: &str| NewMessage {
        partition: Some(PartitionId(partition)),
        ..delayed(value, Duration::from_secs(60 * minutes))
    };
    rig.send(vec![
        message(2, 1, "e"),
        message(0, 2, "b"),
        message(1, 1, "c"),
        message(0, 1, "a"),
        message(1, 2, "d"),
    ])
    .await;
    let mut query = DelayedQuery {
        max: 2,
        ..DelayedQuery::default()
    };
    let mut seen = Vec::new();
    loop {
        let page = rig
            .session
            .messages()
            .delayed(&topic("in"), &query)
            .await
            .unwrap();
        assert_eq!(page.total, 5);
        let values = page
            .messages
            .iter()
            .map(|m| text(m.message.value.as_deref()));
        seen.extend(values);
        query.after = page.messages.last().map(|m| m.id);
        if !page.has_more {
            break;
        }
    }
    assert_eq!(seen, ["a", "b", "c", "d", "e"]);
    let query = DelayedQuery {
        partition: Some(PartitionId(1)),
        after: None,
        max: 9,
    };
    let page = rig
        .session
        .messages()
        .delayed(&topic("in"), &query)
        .await
        .unwrap();
    assert_eq!((page.total, page.has_more), (2, false));
}

#[tokio::test]
async fn delayed_messages_go_with_their_topic() {
    let rig = Rig::start(1).await;
    rig.send(vec![delayed("a", LATER), delayed("b", SOON)])
        .await;
    rig.session
        .catalogue()
        .delete_topic(&topic("in"), false)
        .await
        .unwrap();
    let query = DelayedQuery::default();
    let gone = rig.session.messages().delayed(&topic("in"), &query).await;
    assert!(matches!(gone, Err(DelayedError::UnknownTopic(_))));
    rig.topic("in", 1).await;
    rig.send(vec![delayed("c", SOON)]).await;
    rig.hold("in", &["c"]).await;
    assert_eq!(rig.waiting("in").await.total, 0);
}

/// Emits each message twice: at once with its own timestamp, and delayed by `after`.
fn echo(after: Duration) -> impl Fn(&ColumnBatch) -> Result<Answer, millrace_broker::CallError> {
    move |batch| {
        let count = batch.len() as u32;
        let due = now().after(after).0;
        Ok(Answer {
            outcomes: vec![OutcomeCode::Emit as u8; batch.len()],
            sources: (0..count).flat_map(|source| [source; 2]).collect(),
            times: [5, NO_TIME, NO_TIME, due].repeat(batch.len()),
            ..Answer::default()
        })
    }
}

#[tokio::test]
async fn an_output_says_its_timestamp_and_when_it_is_delivered() {
    let rig = Rig::start(2).await;
    let module = rig.upload_handler("echo", whole(echo(SOON))).await;
    rig.deploy(spec(module)).await;
    rig.produce(&[("a", "1"), ("b", "2")]).await;
    rig.settled().await;
    let rig = rig.again().await;
    rig.hold("out", &["1", "1", "2", "2"]).await;
    assert_eq!(rig.waiting("out").await.total, 0);
    let messages = rig.messages("out").await;
    let at_once = messages.iter().filter(|m| m.timestamp == Timestamp(5));
    assert_eq!(at_once.count(), 2);
    assert!(messages.iter().all(|m| m.timestamp != Timestamp(77)));
}

#[tokio::test]
async fn an_output_that_finds_no_room_to_wait_in_makes_its_partition_wait() {
    let rig = Rig::start(1).await;
    let module = rig.upload_handler("echo", whole(echo(LATER))).await;
    let mut large = delayed("", LATER);
    large.message.value = Some(vec![1; DELAYED_MESSAGE_BYTES_MAX - 1_000].into());
    let mut placed = Vec::new();
    let full = loop {
        match rig
            .session
            .messages()
            .produce(&topic("out"), vec![large.clone()])
            .await
        {
            Ok(more) => placed.extend(more),
            Err(full) => break full,
        }
    };
    assert!(matches!(full, ProduceError::DelaysFull(_)), "{full}");
    assert!(placed.len() > DELAYED_BYTES_MAX / DELAYED_MESSAGE_BYTES_MAX - 2);
    rig.deploy(spec(module)).await;
    let mut next = message("k", "x");
    next.message.value = large.message.value.clone();
    rig.send(vec![next]).await;
    let waits = |all: &[millrace_broker::PartitionStatus]| {
        all.iter()
            .any(|one| format!("{one:?}").contains("delayed messages"))
    };
    rig.until(waits).await;
    assert_eq!(rig.messages("out").await.len(), 0);
    let name = topic("out");
    rig.session
        .messages()
        .cancel_delayed(&name, id(&placed[0]))
        .await
        .unwrap();
    rig.settled().await;
    assert_eq!(rig.waiting("out").await.total, placed.len());
    assert_eq!(rig.messages("out").await.len(), 1);
    assert!(
        rig.session
            .processors()
            .processor(&processor("p"))
            .await
            .is_some()
    );
}

#[tokio::test]
async fn an_output_far_away_is_a_bad_answer() {
    let rig = Rig::start(1).await;
    let far = Duration::from_millis(DELAY_MS_MAX + 60_000);
    let module = rig.upload_handler("echo", whole(echo(far))).await;
    rig.deploy(spec(module)).await;
    rig.produce(&[("a", "1")]).await;
    rig.settled().await;
    let letters = rig.letters().await;
    assert_eq!(letters[0].cause, "bad-answer");
    assert!(letters[0].reason.contains("more than"), "{letters:?}");
}
