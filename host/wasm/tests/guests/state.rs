//! State as a component sees it: its writes are returned with the answer, and discarded after a
//! failure.

use std::sync::Arc;

use guest_artifacts as guests;
use millrace_broker::handler::CallError;
use millrace_broker::state::{StateAttempt, StateTable};
use millrace_model::{ColumnBatch, Timestamp};

use crate::support::{TestHost, batch, outputs};

/// Messages with these keys, and perhaps a header of the first.
fn keyed(keys: &[&str], header: Option<(&str, &str)>) -> Arc<ColumnBatch> {
    let mut batch = ColumnBatch::clone(&batch(keys.iter().map(|_| "x")));
    let mut push = |text: &str| {
        let start = batch.data.len() as u32;
        batch.data.extend_from_slice(text.as_bytes());
        [start, text.len() as u32]
    };
    let spans: Vec<u32> = keys.iter().flat_map(|key| push(key)).collect();
    let headers = header.map(|(name, value)| [push(name), push(value)].concat());
    batch.keys = spans;
    if let Some(headers) = headers {
        batch.headers = headers;
        batch.header_ends = vec![1; keys.len()];
    }
    Arc::new(batch)
}

pub(crate) fn attempt(batch: &ColumnBatch) -> Box<StateAttempt> {
    let table = Arc::new(StateTable::default());
    Box::new(StateAttempt::new(table, Timestamp(1), batch.len()))
}

#[tokio::test]
async fn a_component_counts_in_state_and_its_writes_come_back() {
    let host = TestHost::start();
    let handler = host.processor("p", guests::COUNTER).await;
    assert!(handler.uses_state());
    let batch = keyed(&["a", "b", "a"], None);
    let called = handler.process_with_state(&batch, attempt(&batch)).await;
    let (answer, state) = called.unwrap();
    assert_eq!(outputs(&batch, &answer), [&b"1"[..], b"1", b"2"]);
    let mut written: Vec<_> = state.into_writes().changes;
    written.sort_by(|a, b| a.key.cmp(&b.key));
    let written: Vec<_> = written
        .iter()
        .map(|change| {
            (
                &*change.key,
                change.value.as_ref().and_then(|v| v.as_number()),
            )
        })
        .collect();
    assert_eq!(written, [(&b"a"[..], Some(2)), (b"b", Some(1))]);
}

#[tokio::test]
async fn nothing_of_one_call_is_left_for_the_next() {
    let host = TestHost::start();
    let handler = host.processor("p", guests::MISCOUNT).await;
    for header in [None, Some(("trap", "here")), None] {
        let batch = keyed(&["a"], header);
        match handler.process_with_state(&batch, attempt(&batch)).await {
            Ok((answer, _)) => assert_eq!(outputs(&batch, &answer), [b"1"]),
            Err(error) => assert!(matches!(error, CallError::Trap { .. }), "{error}"),
        }
    }
}

#[tokio::test]
async fn without_state_a_call_on_it_is_a_trap_that_says_so() {
    let host = TestHost::start();
    let handler = host.processor("p", guests::COUNTER).await;
    let error = handler.process(&keyed(&["a"], None)).await.unwrap_err();
    assert!(
        error.to_string().contains("there is no state now"),
        "{error}"
    );
}

#[tokio::test]
async fn what_is_beyond_a_bound_is_a_trap_that_names_it() {
    let host = TestHost::start();
    let handler = host.processor("p", guests::COUNTER).await;
    let batch = keyed(&[&"k".repeat(1_025)], None);
    let called = handler.process_with_state(&batch, attempt(&batch)).await;
    let error = called.unwrap_err();
    assert!(error.to_string().contains("the maximum is 1024"), "{error}");
}

#[tokio::test]
async fn components_that_import_no_state_are_called_without() {
    let host = TestHost::start();
    let handler = host.processor("p", guests::FORGETFUL_COUNTER).await;
    assert!(!handler.uses_state());
    let batch = keyed(&["a", "a"], None);
    let answer = handler.process(&batch).await.unwrap();
    assert_eq!(outputs(&batch, &answer), [b"1", b"2"]);
}
