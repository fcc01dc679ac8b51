//! The outcome of messages, depending on the answers of the handler, the error handler and the
//! partitioner.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use millrace_broker::CallError;
use millrace_broker::handler::{Cause, Decision};
use millrace_model::columns::{NONE, OutcomeCode};
use millrace_model::processor::Order;
use millrace_model::{Answer, ColumnBatch};
use parking_lot::Mutex;

use crate::rig::{
    Export, Rig, Say, assign, decide, digest, processor, spec, text, topic, trap, whole,
};

fn value(batch: &ColumnBatch, message: usize) -> String {
    text(batch.value(message))
}

#[tokio::test]
async fn a_message_passes_with_key_value_headers_and_timestamp_unchanged() {
    let rig = Rig::deployed(3, |_| (), |_, _| Say::Pass).await;
    rig.produce(&[("a", "1"), ("b", "2"), ("", "3")]).await;
    rig.hold("out", &["1", "2", "3"]).await;
    let mut sent = rig.messages("in").await;
    let mut received = rig.messages("out").await;
    sent.sort_by(|a, b| a.value.cmp(&b.value));
    received.sort_by(|a, b| a.value.cmp(&b.value));
    assert_eq!(sent, received);
}

#[tokio::test]
async fn an_acknowledged_message_is_done_and_leaves_nothing() {
    let rig = Rig::deployed(1, |_| (), |_, _| Say::Ack).await;
    rig.produce(&[("a", "1"), ("b", "2")]).await;
    rig.until(|all| all[0].next.0 == 2 && all[0].parked == 0)
        .await;
    assert!(rig.values("out").await.is_empty());
    assert!(rig.values("in.p.dlq").await.is_empty());
}

#[tokio::test]
async fn a_retried_message_comes_again_with_its_attempt_counted_until_it_succeeds() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let rig = Rig::deployed(
        1,
        |_| (),
        move |batch, message| {
            log.lock().push(batch.attempts[message]);
            match batch.attempts[message] {
                3 => Say::Pass,
                _ => Say::Retry(Some(1)),
            }
        },
    )
    .await;
    rig.produce(&[("a", "1")]).await;
    rig.hold("out", &["1"]).await;
    assert_eq!(*seen.lock(), [1, 2, 3]);
    assert!(rig.values("in.p.dlq").await.is_empty());
}

#[tokio::test]
async fn a_message_that_keeps_failing_reaches_the_dead_letter_topic_after_its_last_attempt() {
    let rig = Rig::deployed(1, |_| (), |_, _| Say::Retry(None)).await;
    rig.produce(&[("a", "1")]).await;
    rig.hold("in.p.dlq", &["1"]).await;
    rig.settled().await;
    let letters = rig.letters().await;
    assert_eq!(
        (letters[0].attempts, letters[0].cause.as_str()),
        (3, "retry")
    );
    assert_eq!(letters[0].attempt_log.as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn messages_of_a_parked_key_wait_in_order_and_others_go_on() {
    let open = Arc::new(AtomicBool::new(false));
    let gate = Arc::clone(&open);
    let rig = Rig::deployed(
        1,
        |spec| spec.retry.attempts_max = 1_000_000,
        move |batch, message| match value(batch, message).as_str() {
            "a1" if !gate.load(Ordering::SeqCst) => Say::Retry(Some(1)),
            _ => Say::Pass,
        },
    )
    .await;
    rig.produce(&[("a", "a1"), ("b", "b1"), ("a", "a2")]).await;
    rig.hold("out", &["b1"]).await;
    rig.produce(&[("a", "a3"), ("b", "b2")]).await;
    rig.hold("out", &["b1", "b2"]).await;
    let status = rig.until(|all| all[0].parked == 3).await;
    assert_eq!(status[0].next.0, 5);
    open.store(true, Ordering::SeqCst);
    rig.hold("out", &["b1", "b2", "a1", "a2", "a3"]).await;
    assert_eq!(rig.values("out").await, ["b1", "b2", "a1", "a2", "a3"]);
}

#[tokio::test]
async fn with_order_by_partition_a_retry_stops_the_partition_and_keeps_its_order() {
    let rig = Rig::deployed(
        1,
        |spec| spec.order = Order::Partition,
        |batch, message| match (value(batch, message).as_str(), batch.attempts[message]) {
            ("1", 1 | 2) => Say::Retry(Some(5)),
            _ => Say::Pass,
        },
    )
    .await;
    rig.produce(&[("a", "1"), ("b", "2")]).await;
    rig.produce(&[("", "3"), ("c", "4")]).await;
    rig.hold("out", &["1", "2", "3", "4"]).await;
    assert_eq!(rig.values("out").await, ["1", "2", "3", "4"]);
}

#[tokio::test]
async fn without_order_messages_of_the_same_key_do_not_wait() {
    let open = Arc::new(AtomicBool::new(false));
    let gate = Arc::clone(&open);
    let rig = Rig::deployed(
        1,
        |spec| {
            spec.order = Order::None;
            spec.retry.attempts_max = 1_000_000;
        },
        move |batch, message| match value(batch, message).as_str() {
            "1" if !gate.load(Ordering::SeqCst) => Say::Retry(Some(1)),
            _ => Say::Pass,
        },
    )
    .await;
    rig.produce(&[("a", "1"), ("a", "2")]).await;
    rig.hold("out", &["2"]).await;
    open.store(true, Ordering::SeqCst);
    rig.hold("out", &["1", "2"]).await;
}

#[tokio::test]
async fn a_poison_message_is_found_by_bisection_and_the_others_succeed_without_losing_attempts() {
    for poison in [
        trap(),
        Say::Fail(CallError::Timeout(Duration::from_millis(5))),
        Say::Fail(CallError::Memory("hoard".to_owned())),
        Say::Fail(CallError::BadAnswer("babble".to_owned())),
    ] {
        let attempts = Arc::new(Mutex::new(HashMap::<String, u32>::new()));
        let (seen, say) = (Arc::clone(&attempts), poison.clone());
        let rig = Rig::deployed(
            1,
            |_| (),
            move |batch, message| {
                let mut seen = seen.lock();
                let most = seen.entry(value(batch, message)).or_default();
                *most = batch.attempts[message].max(*most);
                match value(batch, message).as_str() {
                    "poison" => say.clone(),
                    _ => Say::Pass,
                }
            },
        )
        .await;
        let good: Vec<String> = (0..50).map(|n| format!("m{n}")).collect();
        let mut messages: Vec<(&str, &str)> = good.iter().map(|v| (&v[..], &v[..])).collect();
        messages.insert(33, ("p", "poison"));
        rig.produce(&messages).await;
        rig.hold("in.p.dlq", &["poison"]).await;
        rig.settled().await;
        let good: Vec<&str> = good.iter().map(String::as_str).collect();
        assert_eq!(rig.values("out").await, good);
        for (value, &attempts) in attempts.lock().iter() {
            let expected = if value == "poison" { 3 } else { 1 };
            assert_eq!(attempts, expected, "{value}");
        }
    }
}

#[tokio::test]
async fn a_handler_that_answers_differently_each_time_is_committed_once_for_each_message() {
    // Each call writes its own number; one message traps, so the others are called again, in smaller and smaller batches.
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let handler = whole(move |batch: &ColumnBatch| {
        let call = counted.fetch_add(1, Ordering::SeqCst);
        let is_poison = |message| value(batch, message) == "poison";
        if (0..batch.len()).any(is_poison) {
            let Say::Fail(error) = trap() else {
                unreachable!()
            };
            return Err(error);
        }
        let mut answer = Answer::default();
        for message in 0..batch.len() {
            let start = (batch.data.len() + answer.data.len()) as u32;
            let text = format!("{} by call {call}", value(batch, message));
            answer.data.extend(text.as_bytes());
            answer.outcomes.push(OutcomeCode::Emit as u8);
            answer.sources.push(message as u32);
            answer.values.extend([start, text.len() as u32]);
        }
        Ok(answer)
    });
    let rig = Rig::start(1).await;
    let module = rig.upload_handler("fickle", handler).await;
    rig.deploy(spec(module)).await;
    let good: Vec<String> = (0..40).map(|n| format!("m{n}")).collect();
    let mut messages: Vec<(&str, &str)> = good.iter().map(|v| (&v[..], &v[..])).collect();
    messages.insert(17, ("p", "poison"));
    rig.produce(&messages).await;
    rig.hold("in.p.dlq", &["poison"]).await;
    rig.settled().await;
    let outputs = rig.values("out").await;
    let first = |text: &String| text.split(' ').next().unwrap_or_default().to_owned();
    let of: Vec<String> = outputs.iter().map(first).collect();
    assert_eq!(of, good, "each once, in order");
    assert!(calls.load(Ordering::SeqCst) > 3, "some were called again");
}

#[tokio::test]
async fn a_batch_full_of_poison_ends_in_the_dead_letter_topic_whole() {
    let rig = Rig::deployed(1, |spec| spec.breaker.enabled = false, |_, _| trap()).await;
    let values: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    let messages: Vec<(&str, &str)> = values.iter().map(|v| ("same", &v[..])).collect();
    rig.produce(&messages).await;
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    rig.hold("in.p.dlq", &values).await;
    assert_eq!(
        rig.values("in.p.dlq").await,
        values,
        "in the order of their key"
    );
}

#[tokio::test]
async fn an_outage_spends_no_attempts_and_dead_letters_nothing() {
    let down = Arc::new(AtomicBool::new(true));
    let calls = Arc::new(AtomicUsize::new(0));
    let (gate, count) = (Arc::clone(&down), Arc::clone(&calls));
    let rig = Rig::deployed(
        1,
        |_| (),
        move |batch, message| {
            count.fetch_add(1, Ordering::SeqCst);
            assert_eq!(batch.attempts[message], 1);
            match gate.load(Ordering::SeqCst) {
                true => Say::Fail(CallError::Unavailable("the till is closed".to_owned())),
                false => Say::Pass,
            }
        },
    )
    .await;
    rig.produce(&[("a", "1")]).await;
    rig.until(|all| {
        all[0]
            .state
            .starts_with("waiting: outage: the till is closed")
    })
    .await;
    while calls.load(Ordering::SeqCst) < 4 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    down.store(false, Ordering::SeqCst);
    rig.hold("out", &["1"]).await;
    rig.until(|all| all[0].state == "running").await;
    assert!(rig.values("in.p.dlq").await.is_empty());
}

#[tokio::test]
async fn our_own_fault_is_waited_out_like_an_outage() {
    let calls = AtomicUsize::new(0);
    let rig = Rig::deployed(
        1,
        |_| (),
        move |_, _| match calls.fetch_add(1, Ordering::SeqCst) {
            0..3 => Say::Fail(CallError::Host("no instance left".to_owned())),
            _ => Say::Pass,
        },
    )
    .await;
    rig.produce(&[("a", "1")]).await;
    rig.hold("out", &["1"]).await;
    assert!(rig.values("in.p.dlq").await.is_empty());
}

#[tokio::test]
async fn a_panic_in_a_handler_stops_that_worker_and_resume_starts_it_again() {
    let calls = AtomicUsize::new(0);
    let rig = Rig::deployed(
        1,
        |_| (),
        move |_, _| {
            assert!(
                calls.fetch_add(1, Ordering::SeqCst) > 0,
                "the first call panics"
            );
            Say::Pass
        },
    )
    .await;
    rig.produce(&[("a", "1")]).await;
    rig.until(|all| all[0].state.starts_with("stopped: the worker panicked"))
        .await;
    rig.session
        .processors()
        .resume(&processor("p"), None)
        .await
        .unwrap();
    rig.hold("out", &["1"]).await;
}

async fn with_error_handler(
    decisions: impl Fn(Cause, u32) -> Option<Decision> + Send + Sync + 'static,
    say: impl Fn(u32) -> Say + Send + Sync + 'static,
) -> Rig {
    let rig = Rig::start(1).await;
    let handler = decide(move |failures, messages| {
        assert_eq!(failures.len(), messages.len());
        let decisions = failures.iter().map(|failure| {
            assert!(messages.value(failure.message as usize).is_some());
            decisions(failure.cause, failure.attempt)
        });
        let decisions: Option<Vec<_>> = decisions.collect();
        decisions.ok_or_else(|| CallError::Memory("the error handler itself".to_owned()))
    });
    let errors = rig
        .upload("errors", Export::ErrorHandler(Arc::new(handler)))
        .await;
    let module = rig
        .upload_handler(
            "m",
            crate::rig::per_message(move |batch, message| say(batch.attempts[message])),
        )
        .await;
    let mut spec = spec(module);
    spec.error_handler = Some(errors);
    rig.deploy(spec).await;
    rig
}

#[tokio::test]
async fn an_error_handler_may_be_more_patient_than_the_policy() {
    let rig = with_error_handler(
        |_, _| Some(Decision::RetryAfter(Duration::from_millis(1))),
        |attempt| match attempt {
            1..9 => Say::Reject("odd"),
            _ => Say::Pass,
        },
    )
    .await;
    rig.produce(&[("a", "1")]).await;
    rig.hold("out", &["1"]).await;
}

#[tokio::test]
async fn an_error_handler_may_give_up_at_once() {
    let rig = with_error_handler(|_, _| Some(Decision::DeadLetter), |_| Say::Retry(None)).await;
    rig.produce(&[("a", "1")]).await;
    rig.hold("in.p.dlq", &["1"]).await;
    let letters = rig.letters().await;
    assert_eq!(letters[0].attempts, 1);
}

#[tokio::test]
async fn an_error_handler_may_drop_a_trapping_message() {
    let rig = with_error_handler(
        |cause, _| {
            assert_eq!(cause, Cause::Trap);
            Some(Decision::Drop("noise".to_owned()))
        },
        |_| trap(),
    )
    .await;
    rig.produce(&[("a", "1")]).await;
    rig.until(|all| all[0].next.0 == 1 && all[0].parked == 0)
        .await;
    assert!(rig.values("out").await.is_empty());
    assert!(rig.values("in.p.dlq").await.is_empty());
}

#[tokio::test]
async fn the_policy_decides_where_the_error_handler_fails_or_says_so() {
    for fails in [true, false] {
        let rig = with_error_handler(
            move |_, _| (!fails).then_some(Decision::Policy),
            |_| Say::Retry(None),
        )
        .await;
        rig.produce(&[("a", "1")]).await;
        rig.hold("in.p.dlq", &["1"]).await;
        let letters = rig.letters().await;
        assert_eq!(letters[0].attempts, 3);
    }
}

#[tokio::test]
async fn outputs_go_to_granted_topics_with_fresh_bytes_and_the_partition_asked_for() {
    let rig = Rig::start(2).await;
    rig.topic("other", 5).await;
    let handler = whole(|batch| {
        let count = batch.len() as u32;
        let theirs = batch.data.len() as u32;
        Ok(Answer {
            outcomes: vec![1; batch.len()],
            data: b"fresh".to_vec(),
            sources: (0..count).flat_map(|m| [m, m]).collect(),
            topic_names: vec!["other".to_owned()],
            topics: (0..count).flat_map(|_| [0, NONE]).collect(),
            partitions: (0..count).flat_map(|_| [4, NONE]).collect(),
            values: (0..count as usize)
                .flat_map(|m| [theirs, 5, batch.values[m * 2], batch.values[m * 2 + 1]])
                .collect(),
            ..Answer::default()
        })
    });
    let module = rig.upload_handler("m", handler).await;
    let mut spec = spec(module);
    spec.grants.topics = vec![topic("other")];
    rig.deploy(spec).await;
    rig.produce(&[("a", "1"), ("b", "2")]).await;
    rig.hold("out", &["1", "2"]).await;
    rig.hold("other", &["fresh", "fresh"]).await;
    let other = rig.session.catalogue().topic(&topic("other")).unwrap();
    let fifth = rig
        .session
        .catalogue()
        .ends(&other, millrace_model::PartitionId(4));
    assert_eq!(fifth.unwrap().end.0, 2);
}

#[tokio::test]
async fn an_output_topics_partitioner_component_places_outputs_and_its_faults_are_the_batchs() {
    let rig = Rig::start(1).await;
    let placing = assign(|partitions, messages| {
        let place = |m| match value(messages, m).as_str() {
            "lost" => Ok(partitions),
            text => Ok(text.len() as u32 % partitions),
        };
        (0..messages.len()).map(place).collect()
    });
    let partitioner = rig
        .upload("by-length", Export::Partitioner(Arc::new(placing)))
        .await;
    let new = millrace_broker::NewTopic {
        name: topic("placed"),
        partitions: 4,
        durability: Default::default(),
        partitioner: Some(partitioner),
        settings: Default::default(),
    };
    rig.session.catalogue().create_topic(new).await.unwrap();
    let module = rig
        .upload_handler("m", crate::rig::per_message(|_, _| Say::Pass))
        .await;
    let mut spec = spec(module);
    spec.output = Some(topic("placed"));
    rig.deploy(spec).await;
    rig.produce(&[("a", "xx"), ("a", "lost"), ("b", "x"), ("c", "yyy")])
        .await;
    rig.hold("placed", &["xx", "x", "yyy"]).await;
    rig.hold("in.p.dlq", &["lost"]).await;
    assert_eq!(
        rig.values("placed").await,
        ["x", "xx", "yyy"],
        "by partition"
    );
    let letters = rig.letters().await;
    assert_eq!(letters[0].cause, "bad-answer");
    assert!(letters[0].reason.contains("partitioner of topic placed"));
    assert_eq!(letters[0].module, digest("m").to_string());
}

#[tokio::test]
async fn batches_are_cut_by_messages_and_by_bytes() {
    for (messages_max, bytes_max) in [(3, 1 << 20), (1_000, 40)] {
        let most = Arc::new(AtomicUsize::new(0));
        let seen = Arc::clone(&most);
        let rig = Rig::deployed(
            1,
            |spec| {
                spec.batch.messages_max = messages_max;
                spec.batch.bytes_max = bytes_max;
            },
            move |batch, _| {
                seen.fetch_max(batch.len(), Ordering::SeqCst);
                Say::Ack
            },
        )
        .await;
        let messages = [("k", "0123456789"); 10]; // of 21 bytes, with its header
        rig.produce(&messages).await;
        rig.until(|all| all[0].next.0 == 10).await;
        let expected = if messages_max == 3 { 3 } else { 2 };
        assert_eq!(most.load(Ordering::SeqCst), expected);
    }
}

#[tokio::test]
async fn a_lingering_processor_takes_messages_of_several_calls_in_one_batch() {
    let most = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&most);
    let rig = Rig::deployed(
        1,
        |spec| {
            spec.batch.linger_ms = 60_000;
            spec.batch.messages_max = 5;
        },
        move |batch, _| {
            seen.fetch_max(batch.len(), Ordering::SeqCst);
            Say::Ack
        },
    )
    .await;
    for _ in 0..5 {
        rig.produce(&[("a", "1")]).await;
        tokio::task::yield_now().await;
    }
    rig.until(|all| all[0].next.0 == 5).await;
    assert_eq!(most.load(Ordering::SeqCst), 5);
}

#[tokio::test]
async fn a_flood_of_retries_does_not_keep_new_messages_out() {
    for say in [Say::Retry(None), trap()] {
        let rig = Rig::deployed(
            1,
            |spec| {
                spec.breaker.enabled = false;
                spec.batch.messages_max = 4;
                spec.retry.attempts_max = u32::MAX;
                spec.retry.delay_first_ms = 0;
                spec.retry.delay_max_ms = 0;
            },
            move |batch, message| match value(batch, message).starts_with("stuck") {
                true => say.clone(),
                false => Say::Pass,
            },
        )
        .await;
        let stuck: Vec<String> = (0..40).map(|n| format!("stuck {n}")).collect();
        let messages: Vec<(&str, &str)> = stuck.iter().map(|v| (&v[..], &v[..])).collect();
        rig.produce(&messages).await;
        rig.until(|all| all[0].parked == 40).await;
        rig.produce(&[("a", "1"), ("b", "2")]).await;
        rig.hold("out", &["1", "2"]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_handler_is_given_as_much_as_it_manages_in_time() {
    const CALL_MS_MAX: u64 = 100;
    let late = Arc::new(AtomicUsize::new(0));
    let rig = Rig::start(1).await;
    let slow = {
        let late = Arc::clone(&late);
        whole(move |batch| {
            let took = Duration::from_millis((batch.len() as u64).min(CALL_MS_MAX));
            std::thread::sleep(took);
            if batch.len() as u64 >= CALL_MS_MAX {
                late.fetch_add(1, Ordering::SeqCst);
                return Err(CallError::Timeout(took));
            }
            Ok(Answer {
                outcomes: vec![OutcomeCode::Ack as u8; batch.len()],
                ..Answer::default()
            })
        })
    };
    let module = rig.upload_handler("m", slow).await;
    let mut spec = spec(module);
    spec.limits.call_ms_max = CALL_MS_MAX;
    let messages: Vec<(&str, &str)> = vec![("", "x"); 2_000];
    rig.produce(&messages).await;
    rig.deploy(spec).await;
    rig.settled().await;
    // If batches were halved again and again, about thirty calls would run out of time.
    let late = late.load(Ordering::SeqCst);
    assert!(late <= 4, "{late} calls ran out of time");
    assert!(rig.letters().await.is_empty());
}

#[tokio::test]
async fn retries_do_not_keep_new_messages_out_of_batches_of_one() {
    let change = |spec: &mut millrace_model::ProcessorSpec| {
        spec.batch.messages_max = 1;
        spec.retry.attempts_max = 1_000_000;
        spec.breaker.enabled = false;
    };
    let rig = Rig::deployed(1, change, |batch, message| {
        match value(batch, message).as_str() {
            "again" => Say::Retry(Some(0)),
            _ => Say::Pass,
        }
    })
    .await;
    let keys: Vec<String> = (0..10).map(|number| format!("k{number}")).collect();
    let mut messages: Vec<(&str, &str)> = keys.iter().map(|key| (key.as_str(), "again")).collect();
    messages.push(("n", "new"));
    rig.produce(&messages).await;
    rig.hold("out", &["new"]).await;
}
