//! Components of `wasi:messaging`: each message of a batch is handled on its own, and what is sent belongs to it.

use std::sync::Arc;

use guest_artifacts as guests;
use millrace_broker::handler::{AdmitError, BatchHandler, CallError, Interface, ModuleHost as _};
use millrace_model::columns::NONE;
use millrace_model::processor::{Grants, Limits};
use millrace_model::{Answer, ColumnBatch, TopicName};

use crate::bytes::{component, exported_instance, imported_instance};
use crate::support::{TestHost, batch, outputs, request};

const HANDLER: &str = "wasi:messaging/incoming-handler@0.2.0-draft";

async fn messenger(host: &TestHost, limits: Limits) -> Arc<dyn BatchHandler> {
    let mut request = request("p", guests::MESSENGER);
    request.grants = Grants::of_topics(vec![TopicName::parse("out").unwrap()]);
    request.limits = limits;
    host.host.processor(request).await.unwrap()
}

/// A batch of one message with a key and headers.
fn dressed(value: &str) -> Arc<ColumnBatch> {
    let mut batch = Arc::unwrap_or_clone(batch([value]));
    let mut span = |bytes: &[u8]| {
        let start = batch.data.len() as u32;
        batch.data.extend_from_slice(bytes);
        [start, bytes.len() as u32]
    };
    let key = span(b"k-1");
    let headers = [
        ("Content-Type", &b"text/csv"[..]),
        ("odd", b"\xff\xfe"),
        ("gone", b"1"),
    ];
    let headers: Vec<u32> = headers
        .iter()
        .flat_map(|(name, value)| [span(name.as_bytes()), span(value)].concat())
        .collect();
    batch.keys = key.to_vec();
    batch.header_ends = vec![3];
    batch.headers = headers;
    Arc::new(batch)
}

/// The headers of an output.
fn headers(batch: &ColumnBatch, answer: &Answer, output: usize) -> Vec<(String, Vec<u8>)> {
    let both = [batch.data.as_slice(), answer.data.as_slice()].concat();
    let start = output
        .checked_sub(1)
        .map_or(0, |before| answer.header_ends[before]);
    let of = |at: usize| {
        let (start, length) = (answer.headers[at], answer.headers[at + 1]);
        both[start as usize..][..length as usize].to_vec()
    };
    let range = start as usize..answer.header_ends[output] as usize;
    let header = |n: usize| (String::from_utf8(of(n * 4)).unwrap(), of(n * 4 + 2));
    range.map(header).collect()
}

fn key(batch: &ColumnBatch, answer: &Answer) -> Vec<u8> {
    let both = [batch.data.as_slice(), answer.data.as_slice()].concat();
    both[answer.keys[0] as usize..][..answer.keys[1] as usize].to_vec()
}

#[tokio::test]
async fn each_message_is_handled_alone_and_what_a_failed_one_sent_is_not_sent() {
    let host = TestHost::start();
    let facts = host.admit(guests::MESSENGER).await.unwrap();
    assert_eq!(facts.exports, [Interface::MessageProcessor]);
    let handler = messenger(&host, Limits::default()).await;
    let batch = batch([
        "ok",
        "send out one",
        "send-and-fail out two",
        "timeout",
        "send - three",
        "connection",
        "send elsewhere four",
        "send out five",
    ]);
    let answer = handler.process(&batch).await.unwrap();
    assert_eq!(answer.outcomes, [0, 1, 2, 2, 1, 2, 2, 1]);
    assert_eq!(
        outputs(&batch, &answer),
        [b"one".to_vec(), b"three".to_vec(), b"five".to_vec()]
    );
    assert_eq!(answer.sources, [1, 4, 7]);
    assert_eq!(
        (&*answer.topic_names, &*answer.topics),
        (&["out".to_owned()][..], &[0, NONE, 0][..])
    );
    let told = answer.details.iter();
    let told = told.map(|detail| (detail.message, &*detail.class));
    let classes = [
        (2, "other"),
        (3, "timeout"),
        (5, "connection"),
        (6, "permission-denied"),
    ];
    assert_eq!(told.collect::<Vec<_>>(), classes);
    assert_eq!(answer.details[0].reason, "after it was sent");
    assert!(answer.details[3].reason.contains("--grant-topic elsewhere"));
}

#[tokio::test]
async fn keys_headers_and_the_type_of_the_content_are_mapped_both_ways() {
    let host = TestHost::start();
    let handler = messenger(&host, Limits::default()).await;
    let told = dressed("tell out");
    let answer = handler.process(&told).await.unwrap();
    let text = String::from_utf8(outputs(&told, &answer).pop().unwrap()).unwrap();
    let expected = r#"Some("in") Some("text/csv") Some([("millrace-key", "k-1"), ("odd", "��"), ("gone", "1")])"#;
    assert_eq!(text, expected);
    assert_eq!(
        key(&told, &answer),
        b"k-1",
        "a message that is made has the key of its cause"
    );
    let made = [("by", "messenger"), ("content-type", "text/plain")];
    let made = made.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()));
    assert_eq!(headers(&told, &answer, 0), made);

    let forwarded = dressed("forward out");
    let answer = handler.process(&forwarded).await.unwrap();
    assert_eq!(outputs(&forwarded, &answer), [b"forward out".to_vec()]);
    let kept = headers(&forwarded, &answer, 0);
    let expected = [
        ("Content-Type", &b"text/csv"[..]),
        ("odd", b"\xff\xfe"),
        ("via", b"messenger"),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.to_vec()));
    assert_eq!(kept, expected, "bytes that are no text stay as they are");

    let keyed = dressed("send-keyed out x");
    let answer = handler.process(&keyed).await.unwrap();
    assert_eq!(key(&keyed, &answer), b"k-2");
}

#[tokio::test]
async fn what_it_holds_and_what_it_sends_is_bounded() {
    let host = TestHost::start();
    let limits = Limits {
        answer_bytes_max: 4 << 20,
        call_ms_max: 20_000,
        ..Limits::default()
    };
    let handler = messenger(&host, limits).await;
    match handler.process(&batch(["flood out"])).await {
        Err(CallError::BadAnswer(why)) => assert!(why.contains("the maximum is 4194304"), "{why}"),
        other => panic!("{other:?}"),
    }
    match handler.process(&batch(["hoard"])).await {
        Err(CallError::Trap { message, .. }) => {
            assert!(message.contains("the messages that it holds"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    // A message that it keeps keeps no batch.
    handler.process(&batch(["keep"])).await.unwrap();
    match handler.process(&batch(["recall out"])).await {
        Err(CallError::Trap { message, .. }) => assert!(message.contains("is gone"), "{message}"),
        other => panic!("{other:?}"),
    }
    let trapped = handler.process(&batch(["ok", "trap"])).await;
    assert!(
        matches!(trapped, Err(CallError::Trap { .. })),
        "{trapped:?}"
    );
    // Every message is let go: far more than an instance may hold go through it.
    for _ in 0..30 {
        let many: Vec<String> = (0..100).map(|n| format!("send out {n}")).collect();
        let answer = handler.process(&batch(&many)).await.unwrap();
        assert_eq!(answer.sources.len(), 100);
    }
}

#[tokio::test]
async fn replies_and_state_are_refused_with_a_reason() {
    let host = TestHost::start();
    for (import, why) in [
        (
            "wasi:messaging/request-reply@0.2.0-draft",
            "cannot wait for a reply",
        ),
        ("millrace:broker/state@0.1.1", "has no state"),
        (
            "wasi:messaging/producer@0.2.0",
            "wasi:messaging/producer@0.2.0",
        ),
    ] {
        let upload = [imported_instance(import), exported_instance(HANDLER, 1)].concat();
        match host.admit(&component(&upload)).await {
            Err(AdmitError::UngrantedImports { imports }) => {
                assert!(imports[0].contains(why), "{imports:?}");
            }
            other => panic!("{import}: {other:?}"),
        }
    }
}
