//! What the host reports of a call besides its answer: what it used, and what its guest wrote
//! during it.

use std::sync::Arc;

use guest_artifacts as guests;
use millrace_broker::CallUse;
use millrace_broker::handler::{BatchHandler, CallError};
use millrace_model::bounds::{CALL_LOG_BYTES_MAX, CALL_LOG_LINES_MAX};
use millrace_model::processor::Limits;

use crate::support::{TestHost, batch};

async fn call(handler: &Arc<dyn BatchHandler>, value: &str) -> (Result<(), CallError>, CallUse) {
    let called = handler.call(&batch([value]), None).await;
    (called.outcome.map(drop), called.used.unwrap())
}

fn texts(used: &CallUse) -> Vec<&str> {
    used.log.iter().map(|line| line.text.as_str()).collect()
}

#[tokio::test]
async fn a_call_without_end_leaves_its_time_its_memory_and_its_last_words() {
    let host = TestHost::start();
    let limits = Limits {
        call_ms_max: 100,
        ..Limits::default()
    };
    let handler = host.limited("p", guests::ENDLESS, limits).await;
    let (outcome, used) = call(&handler, "endless").await;
    assert!(matches!(outcome, Err(CallError::Timeout(_))), "{outcome:?}");
    assert!(used.guest_us >= 100_000, "{used:?}");
    assert!(used.memory_bytes >= 64 << 10, "{used:?}");
    assert_eq!((used.messages, texts(&used)), (1, vec!["never to return"]));
}

#[tokio::test]
async fn what_is_noted_of_a_trap_is_of_that_call_alone() {
    let host = TestHost::start();
    let handler = host.processor("p", guests::POISON).await;
    for _ in 0..3 {
        let (outcome, used) = call(&handler, "poison").await;
        assert!(matches!(outcome, Err(CallError::Trap { .. })));
        let said = texts(&used).join("\n");
        assert_eq!(said.matches("poisoned").count(), 1, "{said}");
        assert_eq!(used.log[0].level, "warn");
        let (outcome, used) = call(&handler, "good").await;
        outcome.unwrap();
        assert_eq!(used.log, []);
    }
}

#[tokio::test]
async fn a_call_that_wants_too_much_memory_says_how_much_it_had() {
    let host = TestHost::start();
    let limits = Limits {
        memory_bytes_max: 16 << 20,
        ..Limits::default()
    };
    let handler = host.limited("p", guests::HOARD, limits).await;
    let (outcome, used) = call(&handler, "hoard").await;
    assert!(matches!(outcome, Err(CallError::Memory(_))), "{outcome:?}");
    assert!(
        (8 << 20..=16 << 20).contains(&used.memory_bytes),
        "{used:?}"
    );
}

#[tokio::test]
async fn a_flood_of_lines_leaves_the_last_ones_within_their_bounds() {
    let host = TestHost::start();
    let limits = Limits {
        log_lines_per_second: 5_000,
        ..Limits::default()
    };
    let handler = host.limited("p", guests::CHATTY, limits).await;
    let (outcome, used) = call(&handler, "chatty").await;
    outcome.unwrap();
    let bytes: usize = texts(&used).iter().map(|text| text.len()).sum();
    assert!(used.log.len() <= CALL_LOG_LINES_MAX && bytes <= CALL_LOG_BYTES_MAX);
    assert!(!used.log.is_empty());
}
