//! Parked messages: why and until when each waits, never for centuries, and never a thousand
//! attempts per second; tried now, given up, trimmed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use millrace_broker::{
    Before, Caller, MessagePlace, ParkedAction, ParkedDone, ParkedMessage, ParkedQuery,
    ProcessorError, WhichParked,
};
use millrace_model::bounds::{RETRY_DELAY_MS_MAX, RETRY_DELAY_MS_MIN};
use millrace_model::processor::Order;
use millrace_model::{Clock, Offset, PartitionId, SystemClock};

use crate::rig::{Export, Rig, Say, decide, per_message, processor, spec, text, topic, trap};

/// A processor that asks for a retry at the end of time, until told otherwise; values that begin
/// with `ok` pass.
async fn patient() -> (Rig, Arc<AtomicBool>) {
    let open = Arc::new(AtomicBool::new(false));
    let gate = Arc::clone(&open);
    let rig = Rig::deployed(
        1,
        |spec| spec.breaker.enabled = false,
        move |batch, message| match text(batch.value(message)).starts_with("ok") {
            false if !gate.load(Ordering::SeqCst) => Say::Retry(Some(u64::MAX)),
            _ => Say::Pass,
        },
    )
    .await;
    (rig, open)
}

async fn parked(rig: &Rig, query: ParkedQuery) -> Vec<ParkedMessage> {
    let query = ParkedQuery {
        max: 1_000,
        ..query
    };
    let page = rig
        .session
        .processors()
        .parked(&processor("p"), &query)
        .await
        .unwrap();
    assert_eq!(page.next, None);
    assert_eq!(page.total, page.messages.len());
    page.messages
}

fn at(offset: u64) -> MessagePlace {
    MessagePlace {
        topic: topic("in"),
        partition: PartitionId(0),
        offset: Offset(offset),
    }
}

async fn act(rig: &Rig, which: WhichParked, action: ParkedAction) -> ParkedDone {
    let session = rig.broker.session(Caller::unnamed().named("ada"));
    let name = processor("p");
    session
        .processors()
        .do_with_parked(&name, which, action)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_wait_of_centuries_is_cut_and_the_list_says_until_when_why_and_behind_whom() {
    let (rig, _) = patient().await;
    rig.produce(&[("k", "first"), ("k", "second"), ("j", "third"), ("i", "ok")])
        .await;
    let status = rig.until(|all| all[0].parked == 3 && all[0].state != "running");
    let status = status.await.remove(0);
    assert!(
        status.state.starts_with("waiting: 3 parked"),
        "{}",
        status.state
    );
    assert!(status.state.contains("(busy)"), "{}", status.state);
    let all = parked(&rig, ParkedQuery::default()).await;
    assert_eq!(status.waiting_until, all[0].due);
    let now = SystemClock::new().wall();
    let longest = now.after(Duration::from_millis(RETRY_DELAY_MS_MAX));
    for first in [&all[0], &all[2]] {
        let due = first.due.unwrap();
        assert!(due <= longest && due.0 + 60_000 > longest.0, "{due:?}");
        assert_eq!((first.attempts, first.behind), (1, None));
        assert_eq!(first.class.as_deref(), Some("busy"));
        assert_eq!(first.reason.as_deref(), Some("said busy"));
    }
    let behind = &all[1];
    assert_eq!((behind.due, behind.behind), (None, Some(all[0].offset)));
    assert_eq!(text(behind.key.as_deref()), "k");
    let busy = ParkedQuery {
        class: Some("busy".to_owned()),
        ..ParkedQuery::default()
    };
    assert_eq!(parked(&rig, busy).await.len(), 2);
    let (name, all) = (processor("q"), ParkedQuery::default());
    let nobody = rig.session.processors().parked(&name, &all).await;
    assert!(matches!(nobody, Err(ProcessorError::Unknown(_))));
}

#[tokio::test]
async fn pages_of_parked_messages_give_each_once() {
    let (rig, _) = patient().await;
    let many: Vec<String> = (0..25).map(|n| format!("k{n}")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|key| (key.as_str(), "v")).collect();
    rig.produce(&many).await;
    rig.until(|all| all[0].parked == 25).await;
    let (mut from, mut offsets) = (None, Vec::new());
    loop {
        let query = ParkedQuery {
            max: 10,
            from,
            ..ParkedQuery::default()
        };
        let page = rig
            .session
            .processors()
            .parked(&processor("p"), &query)
            .await
            .unwrap();
        assert_eq!(page.total, 25);
        offsets.extend(page.messages.iter().map(|message| message.offset.0));
        from = page.next;
        if from.is_none() {
            break;
        }
    }
    assert_eq!(offsets, (0..25).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_error_handlers_delay_is_cut_as_well() {
    let rig = Rig::start(1).await;
    let never = decide(|failures, _| {
        let never = || millrace_broker::handler::Decision::RetryAfter(Duration::MAX);
        Ok(failures.iter().map(|_| never()).collect())
    });
    let mut with_handler = spec(
        rig.upload_handler("traps", per_message(|_, _| trap()))
            .await,
    );
    let handler = Export::ErrorHandler(Arc::new(never));
    with_handler.error_handler = Some(rig.upload("never", handler).await);
    rig.deploy(with_handler).await;
    rig.produce(&[("k", "v")]).await;
    rig.until(|all| all[0].parked == 1).await;
    let due = parked(&rig, ParkedQuery::default()).await[0].due.unwrap();
    let longest = Duration::from_millis(RETRY_DELAY_MS_MAX);
    assert!(due <= SystemClock::new().wall().after(longest));
}

#[tokio::test]
async fn no_message_is_tried_again_at_once_however_short_the_delays() {
    for how in [Say::Retry(Some(0)), Say::Retry(None), trap()] {
        let tries = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&tries);
        let endless = |spec: &mut millrace_model::ProcessorSpec| {
            spec.breaker.enabled = false;
            spec.retry.attempts_max = u32::MAX;
            spec.retry.delay_first_ms = 0;
            spec.retry.delay_max_ms = 0;
        };
        let rig = Rig::deployed(1, endless, move |_, _| {
            counted.fetch_add(1, Ordering::SeqCst);
            how.clone()
        })
        .await;
        rig.produce(&[("k", "v")]).await;
        rig.until(|all| all[0].parked == 1).await;
        let before = tries.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(500)).await;
        let tries = tries.load(Ordering::SeqCst) - before;
        assert!(tries as u64 <= 500 / RETRY_DELAY_MS_MIN + 1, "{tries}");
        assert!(tries > 0, "it is tried");
    }
}

#[tokio::test]
async fn a_policy_that_waits_longer_than_any_message_may_is_refused() {
    let rig = Rig::start(1).await;
    let module = rig
        .upload_handler("ok", per_message(|_, _| Say::Pass))
        .await;
    let mut patient = spec(module);
    patient.retry.delay_max_ms = RETRY_DELAY_MS_MAX + 1;
    let refused = rig
        .session
        .processors()
        .deploy(&processor("p"), patient.clone())
        .await;
    let why = refused.unwrap_err().to_string();
    assert!(why.contains("retry.delay_max_ms"), "{why}");
    patient.retry.delay_max_ms = RETRY_DELAY_MS_MAX;
    rig.deploy(patient).await;
}

#[tokio::test]
async fn a_parked_message_is_tried_now_and_one_behind_it_says_behind_whom_it_waits() {
    let (rig, open) = patient().await;
    rig.produce(&[("k", "first"), ("k", "second"), ("j", "third")])
        .await;
    rig.until(|all| all[0].parked == 3).await;
    open.store(true, Ordering::SeqCst);
    let named = WhichParked::Places(vec![at(1), at(9)]);
    let left = act(&rig, named, ParkedAction::TryNow).await;
    assert_eq!(left.done, 0);
    let mut why: Vec<&str> = left.left.iter().map(|(_, why)| why.as_str()).collect();
    why.sort_unstable();
    assert_eq!(
        why,
        [
            "it is not parked, or no longer parked",
            "it waits behind offset 0"
        ]
    );
    let one = WhichParked::Places(vec![at(0)]);
    assert_eq!(act(&rig, one, ParkedAction::TryNow).await.done, 1);
    rig.hold("out", &["first", "second"]).await;
    let rest = WhichParked::Class("busy".to_owned());
    assert_eq!(act(&rig, rest, ParkedAction::TryNow).await.done, 1);
    rig.hold("out", &["first", "second", "third"]).await;
    rig.settled().await;
}

#[tokio::test]
async fn a_message_that_is_given_up_is_a_dead_letter_with_its_evidence_and_its_key_goes_on() {
    let (rig, _) = patient().await;
    rig.produce(&[("k", "bad"), ("k", "ok behind"), ("j", "other")])
        .await;
    rig.until(|all| all[0].parked == 3).await;
    let one = WhichParked::Places(vec![at(0)]);
    let done = act(&rig, one, ParkedAction::GiveUp).await;
    assert_eq!((done.done, done.left.len()), (1, 0));
    rig.hold("out", &["ok behind"]).await;
    let letter = rig.letters().await.remove(0);
    assert_eq!(
        (letter.cause.as_str(), letter.class.as_str()),
        ("given-up", "busy")
    );
    assert_eq!(letter.attempts, 1);
    assert_eq!(letter.reason, "given up by ada; at last: said busy");
    assert_eq!(letter.origin_offset, Offset(0));
    let again = act(&rig, WhichParked::Places(vec![at(0)]), ParkedAction::GiveUp).await;
    assert_eq!((again.done, again.left.len()), (0, 1), "once is enough");
    assert_eq!(rig.letters().await.len(), 1);
}

#[tokio::test]
async fn all_of_a_paused_processors_messages_can_be_given_up_whatever_the_bound_of_dead_letters() {
    let (rig, _) = patient().await;
    let many: Vec<String> = (0..700).map(|n| format!("k{}", n / 2)).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|key| (key.as_str(), "v")).collect();
    rig.produce(&many).await;
    rig.until(|all| all[0].parked == 700).await;
    rig.session
        .processors()
        .pause(&processor("p"))
        .await
        .unwrap();
    rig.until(|all| all[0].state == "paused").await;
    let done = act(&rig, WhichParked::All, ParkedAction::GiveUp).await;
    assert_eq!((done.done, done.left.len()), (700, 0));
    let status = rig.until(|all| all[0].parked == 0).await;
    assert_eq!(status[0].state, "paused");
    assert_eq!(rig.values("in.p.dlq").await.len(), 700);
}

#[tokio::test]
async fn who_is_told_nothing_of_a_partition_says_so() {
    let (rig, _) = patient().await;
    let elsewhere = MessagePlace {
        topic: topic("out"),
        ..at(0)
    };
    let done = act(
        &rig,
        WhichParked::Places(vec![elsewhere]),
        ParkedAction::GiveUp,
    )
    .await;
    assert_eq!((done.done, done.left.len()), (0, 1));
    assert!(done.left[0].1.contains("no worker for out/0"), "{done:?}");
}

#[tokio::test]
async fn a_trim_lets_go_of_parked_messages_and_what_waits_behind_them_goes_on() {
    for paused in [false, true] {
        let (rig, _) = patient().await;
        rig.produce(&[("k", "bad"), ("k", "ok behind"), ("j", "stays")])
            .await;
        rig.until(|all| all[0].parked == 3).await;
        if paused {
            rig.session
                .processors()
                .pause(&processor("p"))
                .await
                .unwrap();
        }
        let before = Before::Offset(Offset(1));
        rig.session
            .catalogue()
            .trim(&topic("in"), None, before)
            .await
            .unwrap();
        if paused {
            rig.until(|all| all[0].parked == 2).await;
            rig.session
                .processors()
                .resume(&processor("p"), None)
                .await
                .unwrap();
        }
        rig.hold("out", &["ok behind"]).await;
        rig.until(|all| all[0].parked == 1).await;
        let committed = rig.session.catalogue().topic(&topic("in")).unwrap();
        let committed = committed.partition(PartitionId(0)).unwrap();
        let progress = rig
            .engine()
            .progress(&processor("p").group(), committed)
            .await
            .unwrap();
        assert_eq!(progress.unwrap().parked.len(), 1);
        assert_eq!(rig.letters().await.len(), 0);
    }
}

#[tokio::test]
async fn a_partition_that_keeps_its_order_says_what_it_waits_for() {
    let in_line = |spec: &mut millrace_model::ProcessorSpec| spec.order = Order::Partition;
    let rig = Rig::deployed(1, in_line, |_, _| Say::Retry(Some(3_600_000))).await;
    rig.produce(&[("a", "1"), ("b", "2")]).await;
    let status = rig.until(|all| all[0].state.starts_with("waiting"));
    let status = status.await.remove(0);
    assert!(
        status.state.contains("the order of the partition is kept"),
        "{}",
        status.state
    );
    let due = status.waiting_until.unwrap();
    let hour = SystemClock::new().wall().after(Duration::from_secs(3_600));
    assert!(due <= hour && due.0 + 60_000 > hour.0);
}
