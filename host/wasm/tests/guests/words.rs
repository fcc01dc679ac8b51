//! What a guest writes is recorded as a line of the call that wrote it, complete or marked as cut,
//! however the call ends.

use std::sync::Arc;

use guest_artifacts as guests;
use millrace_broker::handler::{BatchHandler, CallError, ModuleHost as _};
use millrace_broker::{CallUse, GuestLine};
use millrace_model::ProcessorName;
use millrace_model::processor::Limits;

use crate::support::{TestHost, batch};

async fn call(handler: &Arc<dyn BatchHandler>, value: &str) -> (Result<(), CallError>, CallUse) {
    let called = handler.call(&batch([value]), None).await;
    (called.outcome.map(drop), called.used.unwrap())
}

fn texts(lines: &[GuestLine]) -> Vec<&str> {
    lines.iter().map(|line| line.text.as_str()).collect()
}

fn kept(host: &TestHost) -> Vec<GuestLine> {
    host.host.logs(&ProcessorName::parse("p").unwrap())
}

#[tokio::test]
async fn text_without_a_line_end_is_a_line_of_the_call_that_wrote_it() {
    let host = TestHost::start();
    let handler = host.processor("p", guests::MUMBLE).await;
    for (value, said) in [
        ("err one", "one"),
        ("out two", "two"),
        ("err three", "three"),
    ] {
        let (outcome, used) = call(&handler, value).await;
        outcome.unwrap();
        assert_eq!(texts(&used.log), [said]);
    }
    assert_eq!(texts(&kept(&host)), ["one", "two", "three"]);
}

#[tokio::test]
async fn last_words_without_a_line_end_come_with_the_trap_from_either_stream() {
    let host = TestHost::start();
    let handler = host.processor("p", guests::MUMBLE).await;
    for value in [
        "trap TypeError: x is not a function",
        "trap-out TypeError: x is not a function",
        "trap-late TypeError: x is not a function",
    ] {
        let (outcome, used) = call(&handler, value).await;
        let Err(CallError::Trap { message, .. }) = outcome else {
            panic!("{value}: {outcome:?}");
        };
        assert!(
            message.contains("TypeError: x is not a function ("),
            "{message}"
        );
        // The earlier call with a hundred lines exceeded the rate.
        if !value.starts_with("trap-late") {
            assert_eq!(texts(&used.log), ["TypeError: x is not a function"]);
        }
    }
}

#[tokio::test]
async fn words_before_a_call_that_is_cut_off_are_kept() {
    let host = TestHost::start();
    let limits = Limits {
        call_ms_max: 100,
        ..Limits::default()
    };
    let handler = host.limited("p", guests::MUMBLE, limits).await;
    let (outcome, used) = call(&handler, "hang on").await;
    assert!(matches!(outcome, Err(CallError::Timeout(_))), "{outcome:?}");
    assert_eq!(texts(&used.log), ["on"]);
    assert_eq!(texts(&kept(&host)), ["on"]);
}

#[tokio::test]
async fn a_line_that_is_too_long_says_by_how_much_it_is_cut() {
    let host = TestHost::start();
    let handler = host.processor("p", guests::MUMBLE).await;
    call(&handler, "long").await.0.unwrap();
    let kept = kept(&host);
    assert_eq!(kept.len(), 2, "one line of each kind, not several pieces");
    for line in kept {
        assert!(line.text.starts_with("xxxx"), "{}", line.text);
        assert!(
            line.text.ends_with("x [cut: 5944 more bytes]"),
            "{}",
            line.text
        );
    }
}

#[tokio::test]
async fn dropped_lines_are_counted_for_their_processor() {
    let host = TestHost::start();
    let handler = host.processor("p", guests::CHATTY).await;
    call(&handler, "chatty").await.0.unwrap();
    let name = ProcessorName::parse("p").unwrap();
    let (dropped, lines) = (host.host.lines_dropped(&name), kept(&host).len() as u64);
    assert!(dropped >= 5_000, "{dropped} dropped, {lines} kept");
    host.host.forget_logs(&name);
    assert_eq!((host.host.lines_dropped(&name), kept(&host).len()), (0, 0));
}
