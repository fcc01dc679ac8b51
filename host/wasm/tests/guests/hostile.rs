//! Guests that misbehave harm only their own call.

use std::sync::Arc;
use std::time::{Duration, Instant};

use guest_artifacts as guests;
use millrace_broker::handler::{BatchHandler, CallError, ModuleHost as _};
use millrace_model::processor::Limits;

use crate::support::{TestHost, batch, one};

fn quick() -> Limits {
    Limits {
        call_ms_max: 100,
        ..Limits::default()
    }
}

#[tokio::test]
async fn a_guest_without_end_is_stopped_in_time() {
    let host = TestHost::start();
    let handler = host.limited("p", guests::ENDLESS, quick()).await;
    let start = Instant::now();
    let error = one(&handler, "endless").await.unwrap_err();
    assert_eq!(error, CallError::Timeout(Duration::from_millis(100)));
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(one(&handler, "next").await.unwrap(), "next");
}

#[tokio::test]
async fn a_guest_that_takes_all_memory_is_told_apart_from_other_traps() {
    let host = TestHost::start();
    let handler = host
        .limited(
            "p",
            guests::HOARD,
            Limits {
                call_ms_max: 10_000,
                ..quick()
            },
        )
        .await;
    let error = one(&handler, "hoard").await.unwrap_err();
    assert!(matches!(error, CallError::Memory(_)), "{error}");
    assert_eq!(one(&handler, "next").await.unwrap(), "next");
}

#[tokio::test]
async fn endless_recursion_ends_as_a_trap() {
    let host = TestHost::start();
    let handler = host.processor("p", guests::DEEP).await;
    match one(&handler, "deep").await {
        Err(CallError::Trap { message, backtrace }) => {
            assert!(message.contains("stack"), "{message}");
            assert!(backtrace.contains("descend"), "{backtrace}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_panic_says_its_message_and_where() {
    let host = TestHost::start();
    let handler = host.processor("p", guests::POISON).await;
    match one(&handler, "poison").await {
        Err(CallError::Trap { message, backtrace }) => {
            assert!(
                message.contains("poisoned") && message.contains("unreachable"),
                "{message}"
            );
            assert!(!message.contains('\n'), "{message}");
            assert!(backtrace.contains("poison::swallow"), "{backtrace}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_trapped_instance_is_never_used_again() {
    let host = TestHost::start();
    let handler = host.processor("p", guests::POISON).await;
    for round in 0..20 {
        let made = host.host.instances_made();
        one(&handler, "poison").await.unwrap_err();
        assert_eq!(
            one(&handler, "fine").await.unwrap(),
            "fine",
            "round {round}"
        );
        assert_eq!(host.host.instances_made(), made + 1, "round {round}");
    }
}

#[tokio::test]
async fn the_instance_of_an_abandoned_call_is_never_used_again() {
    let host = TestHost::start();
    let limits = Limits {
        call_ms_max: 60_000,
        ..Limits::default()
    };
    let handler = host.limited("p", guests::ENDLESS, limits).await;
    let made = host.host.instances_made();
    let endless = batch(["endless"]);
    for patience_ms in [1, 20] {
        let call = handler.process(&endless);
        let patience = Duration::from_millis(patience_ms);
        tokio::time::timeout(patience, call).await.unwrap_err();
        assert_eq!(one(&handler, "fine").await.unwrap(), "fine");
    }
    assert_eq!(host.host.instances_made(), made + 2);
}

#[tokio::test]
async fn malformed_answers_come_back_as_they_are_or_as_bad_answers() {
    let host = TestHost::start();
    let handler = host.processor("p", guests::BABBLE).await;
    for over in ["huge", "many-outputs"] {
        let error = one(&handler, over).await.unwrap_err();
        assert!(matches!(error, CallError::BadAnswer(_)), "{over}: {error}");
    }
    for odd in [
        "few-outcomes",
        "bad-outcome",
        "bad-span",
        "overflowing-span",
        "bad-topic",
        "bad-headers",
        "odd-times",
        "bad-time",
    ] {
        handler.process(&batch([odd, "beside"])).await.unwrap();
    }
}

#[tokio::test]
async fn a_flood_of_log_lines_is_cut_to_the_rate_and_cleaned() {
    let host = TestHost::start();
    let limits = Limits {
        log_lines_per_second: 50,
        call_ms_max: 10_000,
        ..Limits::default()
    };
    let handler = host.limited("p", guests::CHATTY, limits).await;
    assert_eq!(one(&handler, "chatty").await.unwrap(), "chatty");
    let lines = host.host.logs(&"p".parse().unwrap());
    // Several windows of a second may have passed on a busy machine.
    assert!((50..1_000).contains(&lines.len()), "{}", lines.len());
    assert!(
        lines
            .iter()
            .all(|line| line.text.len() <= 4 << 10 && line.revision == 1)
    );
    assert!(
        lines
            .iter()
            .all(|line| !line.text.contains(|c: char| c.is_control()))
    );
    let of_level = |level: &str| lines.iter().filter(|line| line.level == level).count();
    assert!(of_level("info") > 0 && of_level("warn") > 0);
}

/// Every bad guest, with the value that sets it off.
const BAD: [(&[u8], &str); 6] = [
    (guests::ENDLESS, "endless"),
    (guests::HOARD, "hoard"),
    (guests::DEEP, "deep"),
    (guests::POISON, "poison"),
    (guests::BABBLE, "huge"),
    (guests::CHATTY, "chatty"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_good_neighbour_keeps_going_beside_every_bad_guest() {
    let host = TestHost::start();
    let good = host.processor("good", guests::UPPERCASE).await;
    for (bytes, value) in BAD {
        let bad = host.limited("bad", bytes, quick()).await;
        let trouble = tokio::spawn(make_trouble(bad, value));
        let start = Instant::now();
        for _ in 0..200 {
            assert_eq!(
                one(&good, "steady").await.unwrap(),
                "STEADY",
                "beside {value}"
            );
        }
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "beside {value}: {:?}",
            start.elapsed()
        );
        trouble.abort();
    }
}

async fn make_trouble(bad: Arc<dyn BatchHandler>, value: &'static str) {
    loop {
        let calls = [
            one(&bad, value),
            one(&bad, value),
            one(&bad, value),
            one(&bad, value),
        ];
        for call in calls {
            let _ = call.await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guests_that_compute_for_long_leave_the_network_its_threads() {
    let host = TestHost::start();
    let limits = Limits {
        call_ms_max: 3_000,
        ..Limits::default()
    };
    let hog = host.limited("hog", guests::ENDLESS, limits).await;
    let hogs: Vec<_> = (0..8)
        .map(|_| {
            let hog = Arc::clone(&hog);
            tokio::spawn(async move { one(&hog, "endless").await })
        })
        .collect();
    let mut worst = Duration::ZERO;
    for _ in 0..50 {
        let start = Instant::now();
        tokio::time::sleep(Duration::from_millis(2)).await;
        worst = worst.max(start.elapsed());
    }
    assert!(
        worst < Duration::from_millis(500),
        "a timer of 2 ms took {worst:?}"
    );
    hogs.iter().for_each(tokio::task::JoinHandle::abort);
}
