//! The answers of good guests, and how instances are reused.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use guest_artifacts as guests;
use millrace_broker::handler::{CallError, Cause, Decision, Failure, LoadRequest, ModuleHost as _};
use millrace_model::processor::Limits;
use millrace_model::{ColumnBatch, Timestamp};

use crate::support::{TestHost, batch, one, outputs, request};

#[tokio::test]
async fn values_go_in_and_come_out_upper_case() {
    let host = TestHost::start();
    let handler = host.processor("p", guests::UPPERCASE).await;
    let batch = batch(["one", "", "drei \u{fc}"]);
    let answer = handler.process(&batch).await.unwrap();
    assert_eq!(answer.outcomes, [1, 1, 1]);
    let expected = [b"ONE".to_vec(), Vec::new(), "DREI \u{fc}".into()];
    assert_eq!(outputs(&batch, &answer), expected);
}

#[tokio::test]
async fn an_empty_batch_gets_an_empty_answer() {
    let host = TestHost::start();
    let handler = host.processor("p", guests::UPPERCASE).await;
    let answer = handler.process(&batch::<&str>([])).await.unwrap();
    assert!(answer.outcomes.is_empty() && answer.sources.is_empty());
}

#[tokio::test]
async fn a_passing_filter_copies_no_payload_out() {
    let host = TestHost::start();
    let handler = host.processor("p", guests::PASSTHROUGH).await;
    let answer = handler.process(&batch(["x".repeat(1_000)])).await.unwrap();
    assert!(answer.data.is_empty());
}

#[tokio::test]
async fn an_outage_is_told_apart_and_costs_no_instance() {
    let host = TestHost::start();
    let handler = host.processor("p", guests::FLAKY).await;
    let made = host.host.instances_made();
    let mut batch = ColumnBatch::clone(&batch(["v"]));
    let start = batch.data.len() as u32;
    batch.data.extend_from_slice(b"unavailabledb down");
    batch.headers = vec![start, 11, start + 11, 7];
    batch.header_ends = vec![1];
    let error = handler.process(&Arc::new(batch)).await.unwrap_err();
    assert_eq!(error, CallError::Unavailable("db down".into()));
    one(&handler, "fine").await.unwrap();
    assert_eq!(host.host.instances_made(), made);
}

#[tokio::test]
async fn a_partitioner_names_a_partition_for_each_message() {
    let host = TestHost::start();
    let handler = host
        .host
        .partitioner(request("in", guests::REGION_PARTITIONER))
        .await
        .unwrap();
    let assigned = handler.assign(4, &batch(["a", "b", "c"])).await.unwrap();
    assert_eq!(assigned.len(), 3);
    assert!(
        assigned.iter().all(|partition| *partition < 4),
        "{assigned:?}"
    );
}

#[tokio::test]
async fn an_error_handler_decides_about_each_failure() {
    let host = TestHost::start();
    let handler = host
        .host
        .error_handler(request("p", guests::PATIENT_ERRORS))
        .await
        .unwrap();
    let failure = |message, cause, class: &str| Failure {
        message,
        revision: 1,
        attempt: 1,
        first_failed_at: Timestamp(1),
        cause,
        class: class.to_owned(),
        reason: "because".to_owned(),
    };
    let failures = [
        failure(0, Cause::Retry, "busy"),
        failure(1, Cause::Reject, "malformed"),
        failure(2, Cause::Trap, "trap"),
    ];
    let decisions = handler
        .handle(&failures, &batch(["a", "b", "c"]))
        .await
        .unwrap();
    let patient = Decision::RetryAfter(Duration::from_millis(100));
    assert_eq!(decisions, [patient, Decision::DeadLetter, Decision::Policy]);
}

#[tokio::test]
async fn one_warm_instance_answers_call_after_call() {
    let host = TestHost::start();
    let handler = host.processor("p", guests::UPPERCASE).await;
    let made = host.host.instances_made();
    for _ in 0..500 {
        assert_eq!(one(&handler, "again").await.unwrap(), "AGAIN");
    }
    assert_eq!(host.host.instances_made(), made);
}

#[tokio::test]
async fn an_instance_is_replaced_after_its_ten_thousand_calls() {
    let host = TestHost::start();
    let handler = host.processor("p", guests::PASSTHROUGH).await;
    let made = host.host.instances_made();
    let batch = batch(["x"]);
    for _ in 0..10_001 {
        handler.process(&batch).await.unwrap();
    }
    assert_eq!(host.host.instances_made(), made + 1);
}

#[tokio::test]
async fn processors_of_one_module_share_its_code_and_not_its_instances() {
    let host = TestHost::start();
    let first = host.processor("first", guests::UPPERCASE).await;
    let second = host.processor("second", guests::UPPERCASE).await;
    assert_eq!((host.host.compiles(), host.host.instances_made()), (1, 2));
    assert_eq!(
        one(&first, "a").await.unwrap() + &one(&second, "b").await.unwrap(),
        "AB"
    );
}

#[tokio::test]
async fn idle_instances_make_room_when_the_host_has_no_more() {
    let host = TestHost::start_with(|options| options.instances_max = 2);
    let mut handlers = Vec::new();
    for number in 0..6 {
        let bytes = Bytes::from_static(guests::UPPERCASE);
        let request = LoadRequest {
            bytes,
            ..request(&format!("p{number}"), guests::UPPERCASE)
        };
        handlers.push(host.host.processor(request).await.unwrap());
    }
    for handler in &handlers {
        assert_eq!(one(handler, "room").await.unwrap(), "ROOM");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_calls_at_once_all_come_back_even_with_one_instance_for_all() {
    let host = TestHost::start_with(|options| options.instances_max = 1);
    let handlers = [
        host.processor("a", guests::UPPERCASE).await,
        host.processor("b", guests::PASSTHROUGH).await,
    ];
    let calls = (0..400).map(|number| {
        let handler = Arc::clone(&handlers[number % 2]);
        tokio::spawn(async move { one(&handler, "at once").await })
    });
    for call in calls.collect::<Vec<_>>() {
        assert!(call.await.unwrap().unwrap().eq_ignore_ascii_case("at once"));
    }
}

#[tokio::test]
async fn an_answer_over_its_bounds_is_a_bad_answer() {
    let host = TestHost::start();
    let limits = Limits {
        answer_bytes_max: 10,
        answer_outputs_max: 2,
        ..Limits::default()
    };
    let handler = host.limited("p", guests::UPPERCASE, limits).await;
    assert_eq!(one(&handler, "short").await.unwrap(), "SHORT");
    for batch in [batch(["much too long"]), batch(["a", "b", "c"])] {
        let error = handler.process(&batch).await.unwrap_err();
        assert!(matches!(error, CallError::BadAnswer(_)), "{error}");
    }
}
